#include "frontend/figures.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define ROOM    320
#define HELPERS "helper_*" // the most frequent first

struct figure {
    char name[48];
    uint64_t value;
    bool listed;
};

struct table {
    struct figure row[ROOM];
    unsigned count;
};

static struct figure *find(struct table *t, const char *name)
{
    for (unsigned i = 0; i < t->count; i++)
        if (!strcmp(t->row[i].name, name))
            return &t->row[i];
    return NULL;
}

static uint64_t value_of(struct table *t, const char *name)
{
    const struct figure *f = find(t, name);
    return f ? f->value : 0;
}

// The first who tells a figure is right: the engine measures what others estimate.
static void add(void *opaque, const char *name, uint64_t value)
{
    struct table *t = opaque;
    if (t->count == ROOM || find(t, name))
        return;
    struct figure *f = &t->row[t->count++];
    strncpy(f->name, name, sizeof f->name - 1);
    f->value = value;
}

// ---- where they come from
static uint64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static uint64_t timeval_ns(struct timeval t)
{
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_usec * 1000;
}

static void collect_host(struct table *t, const struct figures *r)
{
    struct rusage own;
    if (getrusage(RUSAGE_SELF, &own))
        return;
    uint64_t user_ns = timeval_ns(own.ru_utime), system_ns = timeval_ns(own.ru_stime);
    uint64_t peak_bytes = (uint64_t)own.ru_maxrss << 10;
    // What this process takes besides the cell, it takes for devices and back ends.
    struct figure *devices = find(t, "time_cpu_devices");
    if (devices && machine_cell_pid(r->machine))
        devices->value += user_ns + system_ns;
    uint64_t direct_ns = 0, guest_memory = 0;
    if (r->usage_count)
        usage_add(&r->usage[0], &user_ns, &system_ns, &peak_bytes);
    for (unsigned i = 1; i < r->usage_count; i++) // what is resident there is the guest's, nearly all
        usage_add(&r->usage[i], &direct_ns, &system_ns, &guest_memory);
    user_ns += direct_ns;
    if (r->usage_count > 1)
        add(t, "time_cpu_direct", direct_ns);
    add(t, "time_cpu_user", user_ns);
    add(t, "time_cpu_system", system_ns);
    add(t, "memory_peak_resident", peak_bytes);
}

static void collect_machine(struct table *t, struct machine *m)
{
    const struct machine_counters *n = machine_counters(m);
    add(t, "time_devices", n->device_ns);
    add(t, "time_idle", n->idle_ns);
    add(t, "exits_port", n->port_exits);
    add(t, "exits_mmio", n->mmio_exits);
    add(t, "core_port", n->core_ports);
    add(t, "core_mmio", n->core_mmio);
    add(t, "timer_runs", n->timer_runs);
    add(t, "timer_rearms", n->timer_rearms);
    add(t, "idle_entries", n->idles);
}

// ---- how they are shown
static const char *const time_rows[] = {"time_direct",     "time_translated", "time_helpers", "time_translator",
                                        "time_devices",    "time_idle",       NULL};
static const char *const guest_rows[] = {"time_guest_raw", "time_guest_user", "time_guest_checked", "time_guest_kernel", NULL};
static const char *const cpu_rows[] = {"time_cpu_user",
                                       "time_cpu_system",
                                       "time_cpu_direct",
                                       "time_cpu_translated",
                                       "time_cpu_helpers",
                                       "time_cpu_translator",
                                       "time_cpu_devices",
                                       NULL};
static const struct {
    const char *title;
    const char *rows[24]; // "*" ends a name that others begin with
} groups[] = {
    {"translator",
     {"blocks_translated", "blocks_copied", "guest_instructions_translated", "guest_instructions_executed",
      "guest_bytes_translated", "host_bytes_emitted", "expansion_percent", "translation_cycles",
      "cycles_per_instruction_translated", "group_misses", "blocks_invalidated", "cache_evictions",
      "time_eviction_max"}},
    {"control flow",
     {"blocks_entered", "chain_hit_rate", "chained_jumps", "chains_made", "cross_page_links_reset",
      "indirect_hit_rate", "indirect_lookups", "indirect_misses", "return_hit_rate", "returns",
      "return_misses", "return_unpredicted", "dispatches"}},
    {"memory",
     {"tlb_misses", "page_walks", "tlb_flushes", "tlb_page_flushes", "bounced_accesses", "segment_checks",
      "memory_peak_resident"}},
    {"direct execution",
     {"direct_spaces", "direct_handoffs", "direct_hidden_faults", "direct_prefilled", "direct_*", "scan_*", "shadow_*"}},
    {"exits by cause", {"exits_port",   "exits_mmio",          "core_port",     "core_mmio",
                        "idle_entries", "timer_runs",          "timer_rearms",  "kicks",
                        "kick_traps",   "time_kick_p50",       "time_kick_p99", "time_kick_max",
                        "interrupts",   "exceptions",          "host_faults",   "services",
                        "steps",        "string_instructions", "gathers",       "sensitive_instructions"}},
    {"sensitive instructions by kind", {HELPERS}},
    {"others", {"*"}},
};

// Rates: hits of hits and misses. Present when their hits were counted.
static const struct {
    const char *name, *all, *hits, *misses[2];
} rates[] = {
    {"chain_hit_rate", NULL, "chained_jumps", {"chains_made"}},
    {"indirect_hit_rate", "indirect_lookups", NULL, {"indirect_misses"}},
    {"return_hit_rate", "returns", NULL, {"return_misses", "return_unpredicted"}},
};

static bool put_rate(struct table *t, struct stats_sink *sink, const char *name)
{
    for (unsigned i = 0; i < sizeof rates / sizeof rates[0]; i++) {
        if (strcmp(rates[i].name, name))
            continue;
        uint64_t misses = 0;
        for (unsigned k = 0; k < 2 && rates[i].misses[k]; k++)
            misses += value_of(t, rates[i].misses[k]);
        uint64_t all = rates[i].all ? value_of(t, rates[i].all) : value_of(t, rates[i].hits) + misses;
        if (find(t, rates[i].all ? rates[i].all : rates[i].hits))
            stats_ratio(sink, name, all > misses ? all - misses : 0, all);
        return true;
    }
    return false;
}

static void put(struct stats_sink *sink, struct figure *f)
{
    if (f->listed || (!f->value && !strcmp(f->name, "guest_instructions_executed"))) // 0: nobody counts them
        return;
    f->listed = true;
    if (!strncmp(f->name, "time_", 5))
        stats_ns(sink, f->name, f->value);
    else if (!strncmp(f->name, "memory_", 7))
        stats_bytes(sink, f->name, f->value);
    else
        stats_count(sink, f->name, f->value);
}

static int larger_first(const void *a, const void *b)
{
    const struct figure *x = a, *y = b;
    return (x->value < y->value) - (x->value > y->value);
}

static void put_matching(struct table *t, struct stats_sink *sink, const char *pattern)
{
    size_t n = strcspn(pattern, "*");
    if (!strcmp(pattern, HELPERS)) // the last use of the order they came in is over
        qsort(t->row, t->count, sizeof t->row[0], larger_first);
    for (unsigned i = 0; i < t->count; i++)
        if (pattern[n] ? !strncmp(t->row[i].name, pattern, n) : !strcmp(t->row[i].name, pattern))
            put(sink, &t->row[i]);
}

// Times with their shares of `whole_ns`, which is theirs together if nothing is missing.
static void put_times(struct table *t, struct stats_sink *sink, const char *const rows[], uint64_t whole_ns)
{
    for (unsigned i = 0; rows[i]; i++) {
        struct figure *f = find(t, rows[i]);
        if (!f)
            continue;
        f->listed = true;
        stats_share(sink, f->name, f->value, whole_ns);
    }
}

static void put_wall(struct table *t, struct stats_sink *sink, uint64_t wall_ns)
{
    uint64_t sum = 0;
    stats_group(sink, "time on the wall");
    stats_ns(sink, "time_wall", wall_ns);
    put_times(t, sink, time_rows, wall_ns);
    for (unsigned i = 0; time_rows[i]; i++)
        sum += value_of(t, time_rows[i]);
    if (find(t, "time_translated")) // the guest stood still: start, end, resets
        stats_share(sink, "time_stopped", wall_ns > sum ? wall_ns - sum : 0, wall_ns);
    put_matching(t, sink, "samples");
}

void figures_list(void *opaque, struct stats_sink *sink)
{
    const struct figures *r = opaque;
    static const struct table none; // some kilobytes of zeros
    struct table *t = malloc(sizeof *t);
    uint64_t wall_ns = clock_ns(CLOCK_MONOTONIC) - r->started_ns;

    if (!t)
        return;
    *t = none;
    machine_engine_stats(r->machine, add, t);
    collect_machine(t, r->machine);
    collect_host(t, r);

    put_wall(t, sink, wall_ns);
    if (find(t, "time_guest_kernel")) {
        uint64_t sum = 0;
        for (unsigned i = 0; guest_rows[i]; i++)
            sum += value_of(t, guest_rows[i]);
        stats_group(sink, "guest time by how code is run");
        put_times(t, sink, guest_rows, sum);
    }
    stats_group(sink, "processor time, of all processes");
    put_times(t, sink, cpu_rows, value_of(t, "time_cpu_user") + value_of(t, "time_cpu_system"));
    for (unsigned g = 0; g < sizeof groups / sizeof groups[0]; g++) {
        stats_group(sink, groups[g].title);
        for (unsigned i = 0; i < 24 && groups[g].rows[i]; i++)
            if (!put_rate(t, sink, groups[g].rows[i]))
                put_matching(t, sink, groups[g].rows[i]);
    }
    free(t);
}
