// `gnomon info`: what this host allows, each found out by trying it, and what a denied thing costs.
#include <cpuid.h>
#include <errno.h>
#include <grp.h>
#include <inttypes.h>
#include <pwd.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "cpu/model.h"
#include "frontend/cgroup.h"
#include "frontend/commands.h"
#include "frontend/exit.h"
#include "frontend/probe.h"
#include "frontend/stats.h"

#define MAX_FACTS    48
#define OWN_BYTES    (300ull << 20) // address space of a machine's process beyond its guest's memory
#define OWN_FILES    16             // descriptors, without disks
#define OWN_MAPPINGS 1000           // more than a machine's process makes
#define LABEL_WIDTH  20
#define STATE_WIDTH  11

struct fact {
    const char *group; // heading, on the first of its group
    const char *key, *label;
    bool numeric;
    uint64_t number;
    char state[192]; // of numbers: as people read it
    char means[448]; // what follows from it
};

struct report {
    struct fact fact[MAX_FACTS];
    unsigned count;
    const char *group; // of the next fact
};

static struct fact *add(struct report *r, const char *key, const char *label)
{
    struct fact *f = &r->fact[r->count < MAX_FACTS - 1 ? r->count++ : r->count];
    *f = (struct fact){.group = r->group, .key = key, .label = label};
    r->group = NULL;
    return f;
}

__attribute__((format(printf, 2, 3))) static void state(struct fact *f, const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    vsnprintf(f->state, sizeof f->state, format, ap);
    va_end(ap);
}

__attribute__((format(printf, 2, 3))) static void means(struct fact *f, const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    vsnprintf(f->means, sizeof f->means, format, ap);
    va_end(ap);
}

static void size_text(char *text, size_t size, uint64_t bytes)
{
    if (bytes >= 10ull << 30)
        snprintf(text, size, "%" PRIu64 " GiB", bytes >> 30);
    else
        snprintf(text, size, "%" PRIu64 " MiB", bytes >> 20);
}

// The first line of a file, without its end.
static bool first_line(char *line, size_t size, const char *path)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    bool ok = fgets(line, (int)size, f);
    fclose(f);
    if (ok)
        line[strcspn(line, "\n")] = 0;
    return ok;
}

// A thing that is tried: its consequence where it works and where it does not. Returns whether it works.
static bool add_probe(struct report *r, enum probe what, const char *key, const char *label,
                      const char *allowed, const char *denied)
{
    struct fact *f = add(r, key, label);
    int result = probe(what);
    state(f, result == 0 ? "allowed" : result == PROBE_UNTRIED ? "not tried" : "denied");
    if (!result)
        means(f, "%s", allowed);
    else if (result == PROBE_UNTRIED)
        means(f, "there could be no process to try it in");
    else
        means(f, "%s (%s)", denied, result < 0 ? strsignal(-result) : strerror(result));
    return !result;
}

// ---- the processor

struct processor {
    char vendor[13], brand[49];
    unsigned family, model, stepping;
    struct cpuid_regs leaf1, leaf7;
    uint64_t xcr0;
};

static struct cpuid_regs cpuid(uint32_t leaf, uint32_t subleaf)
{
    struct cpuid_regs r = {0};
    __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx); // zeros where there is no such leaf
    return r;
}

static void put_printable(char *to, const void *from, size_t n)
{
    const char *p = from;
    for (size_t i = 0; i < n; i++)
        to[i] = p[i] && (p[i] < 0x20 || p[i] > 0x7e) ? '?' : p[i];
    to[n] = 0;
}

static void read_processor(struct processor *p)
{
    struct cpuid_regs r = cpuid(0, 0), words[3];
    const uint32_t vendor[3] = {r.ebx, r.edx, r.ecx};
    put_printable(p->vendor, vendor, sizeof vendor);
    for (uint32_t i = 0; i < 3; i++)
        words[i] = cpuid(0x80000002 + i, 0);
    put_printable(p->brand, words, sizeof words);
    for (size_t n = strlen(p->brand); n && p->brand[n - 1] == ' '; n--)
        p->brand[n - 1] = 0;
    p->leaf1 = cpuid(1, 0);
    p->leaf7 = cpuid(7, 0);
    // SDM 2A CPUID, figure 3-6.
    uint32_t a = p->leaf1.eax, family = a >> 8 & 15;
    p->family = family + (family == 15 ? a >> 20 & 255 : 0);
    p->model = (a >> 4 & 15) | (family == 6 || family == 15 ? (a >> 16 & 15) << 4 : 0);
    p->stepping = a & 15;
    if (p->leaf1.ecx & bit_OSXSAVE) {
        uint32_t low, high;
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        p->xcr0 = (uint64_t)high << 32 | low;
    }
}

// The model that --cpu would make; null with the reason, which is what the message has between its ": " and
// "; ".
static struct cpu_model *try_model(const char *spec, char *reason, size_t size)
{
    char error[256] = "";
    struct cpu_model *m = cpu_model_create(spec, error, sizeof error);
    char *p = strstr(error, ": ");
    p = p ? p + 2 : error;
    p[strcspn(p, ";")] = 0;
    snprintf(reason, size, "%s", p);
    return m;
}

static void add_xsave(struct report *r, const struct processor *p)
{
    // SDM 1 13.1
    static const char *const names[] = {
        "x87",      "SSE", "AVX",  "BNDREGS",        "BNDCSR",          "opmask",    "ZMM_Hi256",
        "Hi16_ZMM", NULL,  "PKRU", [17] = "TILECFG", [18] = "TILEDATA", [19] = "APX"};
    struct fact *f = add(r, "xsave", "XSAVE components");
    size_t n = 0;
    if (!p->xcr0)
        state(f, "none");
    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++)
        if (p->xcr0 >> i & 1 && names[i] && n < sizeof f->state)
            n += (size_t)snprintf(f->state + n, sizeof f->state - n, "%s%s", n ? " " : "", names[i]);
    means(f, p->xcr0 ? "what the host's kernel switched on; guests can have x87, SSE, AVX and the three of "
                       "AVX-512 of it"
                     : "the host's kernel saves no more than SSE registers: no AVX in guests");
}

static void add_processor(struct report *r, const struct processor *p)
{
    r->group = "Processor";
    struct fact *f = add(r, "processor", "processor");
    state(f, "%s", *p->brand ? p->brand : "without a name");
    means(f, "%s, family %u, model %u, stepping %u; guests see the same vendor", p->vendor, p->family,
          p->model, p->stepping);

    char reason[256], missing[256] = "";
    unsigned level = 1;
    for (unsigned i = 2; i <= 4; i++) {
        char spec[8];
        snprintf(spec, sizeof spec, "v%u", i);
        struct cpu_model *m = try_model(spec, reason, sizeof reason);
        if (m)
            level = i;
        else if (!*missing)
            snprintf(missing, sizeof missing, "%s", reason);
        cpu_model_destroy(m);
    }
    f = add(r, "level", "level");
    state(f, "x86-64-v%u", level);
    if (level == 4)
        means(f, "guests can have v2, v3 and v4 (--cpu)");
    else if (level == 1)
        means(f, "no 64-bit guests: %s", missing);
    else
        means(f, "guests can have v2%s, but no v%u: %s", level == 3 ? " and v3" : "", level + 1, missing);

    f = add(r, "avx512", "AVX-512");
    if (!(p->leaf7.ebx & bit_AVX512F)) {
        state(f, "no");
        means(f, "no AVX-512 in guests: the processor has none");
    } else if ((p->xcr0 & 0xe0) != 0xe0) {
        state(f, "off");
        means(f, "no AVX-512 in guests: the host's kernel or monitor has it switched off");
    } else {
        state(f, "yes");
        means(f, "guests have it with --cpu v4 or --cpu host");
    }
    add_xsave(r, p);

    f = add(r, "virtualization", "VMX, SVM");
    bool vmx = p->leaf1.ecx >> 5 & 1, svm = cpuid(0x80000001, 0).ecx >> 2 & 1;
    state(f, vmx ? "VMX" : svm ? "SVM" : "no");
    means(f, "%s",
          vmx || svm ? "nothing uses it yet: guests run in software"
                     : "costs nothing: guests run in software");

    f = add(r, "monitor", "under a monitor");
    char name[13];
    struct cpuid_regs h = {0};
    if (p->leaf1.ecx >> 31)
        __cpuid(0x40000000, h.eax, h.ebx, h.ecx, h.edx);
    put_printable(name, &h.ebx, sizeof name - 1);
    state(f, p->leaf1.ecx >> 31 ? "yes" : "no");
    if (p->leaf1.ecx >> 31)
        means(f, "%s%sthis host is a virtual machine; gnomon needs nothing of its monitor", name,
              *name ? ": " : "");
}

static void add_kvm(struct report *r)
{
    struct stat st;
    int result = probe(PROBE_KVM);
    struct fact *f = add(r, "kvm", "/dev/kvm");
    if (stat("/dev/kvm", &st) < 0) {
        state(f, errno == ENOENT ? "absent" : "denied");
        means(f, "costs nothing: no engine uses it yet, guests run in software");
        return;
    }
    const struct passwd *user = getpwuid(st.st_uid);
    const struct group *group = getgrgid(st.st_gid);
    char owner[160];
    snprintf(owner, sizeof owner, "%.60s:%.60s, mode %04o", user ? user->pw_name : "?",
             group ? group->gr_name : "?", st.st_mode & 07777);
    state(f, result ? "denied" : "allowed");
    if (result)
        means(f, "costs nothing: no engine uses it yet, guests run in software (%s; it is %s)",
              result == PROBE_UNTRIED ? "not tried"
              : result < 0            ? strsignal(-result)
                                      : strerror(result),
              owner);
    else
        means(f, "no engine uses it yet: guests run in software all the same (it is %s)", owner);
}

// ---- what a guest gets

// What the host's processor has, and no model shows.
static void list_withheld(char *text, size_t size)
{
    static const struct {
        const char *name;
        uint32_t leaf, subleaf;
        uint8_t reg, bit;
    } features[] = {
        {"vmx", 1, 0, CPUID_ECX, 5},
        {"svm", 0x80000001, 0, CPUID_ECX, 2},
        {"pku", 7, 0, CPUID_ECX, 3},
        {"shstk", 7, 0, CPUID_ECX, 7},
        {"ibt", 7, 0, CPUID_EDX, 20},
        {"la57", 7, 0, CPUID_ECX, 16},
        {"waitpkg", 7, 0, CPUID_ECX, 5},
        {"rtm", 7, 0, CPUID_EBX, 11},
        {"amx_tile", 7, 0, CPUID_EDX, 24},
        {"xsaves", 0xd, 1, CPUID_EAX, 3},
        {"clzero", 0x80000008, 0, CPUID_EBX, 0},
    };
    size_t n = 0;
    *text = 0;
    for (size_t i = 0; i < sizeof features / sizeof features[0]; i++) {
        struct cpuid_regs r = cpuid(features[i].leaf, features[i].subleaf);
        const uint32_t regs[] = {
            [CPUID_EAX] = r.eax, [CPUID_EBX] = r.ebx, [CPUID_ECX] = r.ecx, [CPUID_EDX] = r.edx};
        if (regs[features[i].reg] >> features[i].bit & 1 && n < size)
            n += (size_t)snprintf(text + n, size - n, "%s%s", n ? " " : "", features[i].name);
    }
}

// What the host's model has beyond the default, and how many features that is.
static unsigned list_beyond(char *text, size_t size, const struct cpu_model *host,
                            const struct cpu_model *model)
{
    size_t n = 0;
    unsigned count = 0;
    *text = 0;
    for (unsigned i = 0; i < CPU_FEATURE_COUNT; i++) {
        if (!cpu_model_has(host, (enum cpu_feature)i) || cpu_model_has(model, (enum cpu_feature)i))
            continue;
        if (count++ < 12 && n < size)
            n += (size_t)snprintf(text + n, size - n, "%s%s", n ? " " : "", cpu_feature_table[i].name);
    }
    if (count > 12 && n < size)
        snprintf(text + n, size - n, " and %u more", count - 12);
    return count;
}

static bool add_guest(struct report *r)
{
    char reason[256], text[320];
    r->group = "What a guest gets";
    struct cpu_model *model = try_model(NULL, reason, sizeof reason),
                     *host = try_model("host", text, sizeof text);
    struct fact *f = add(r, "cpu_default", "default processor");
    if (!model) {
        state(f, "none");
        means(f, "%s: use --cpu pentium2 or older", reason);
        cpu_model_destroy(host);
        return false;
    }
    state(f, "%s", model->name);
    bool v3 = model->level >= LEVEL_V3;
    struct cpu_model *above = v3 ? NULL : try_model("v3", reason, sizeof reason);
    cpu_model_destroy(above);
    if (!v3)
        means(f, "no more than that: %s", reason);
    else if (host && list_beyond(text, sizeof text, host, model))
        means(f, "the default is never more than v3; --cpu host adds %s", text);
    else
        means(f, "all this host has that gnomon can carry");
    list_withheld(text, sizeof text);
    f = add(r, "cpu_withheld", "not for guests");
    state(f, "%s", *text ? text : "none");
    means(f, "%s", *text ? "the host's processor has these; no --cpu gives them to a guest" : "");

    f = add(r, "tsc", "time-stamp counter");
    char clock[64] = "unknown";
    first_line(clock, sizeof clock, "/sys/devices/system/clocksource/clocksource0/current_clocksource");
    bool invariant = cpuid(0x80000007, 0).edx >> 8 & 1;
    state(f, invariant ? "invariant" : "varies");
    if (invariant && !strcmp(clock, "tsc"))
        means(f, "guests read it directly, %u.%03u GHz; the host keeps time by it too",
              model->tsc_khz / 1000000, model->tsc_khz / 1000 % 1000);
    else
        means(
            f,
            "guests read it directly, %u.%03u GHz, and take it for invariant; the host keeps time by %s: %s",
            model->tsc_khz / 1000000, model->tsc_khz / 1000 % 1000, clock,
            invariant ? "a guest's clock may drift from the host's" : "a guest's clock can be wrong by much");
    cpu_model_destroy(model);
    cpu_model_destroy(host);
    return true;
}

// ---- what a machine needs, and what makes it faster

static void add_summary(struct report *r, bool can_run, bool sandbox, bool little)
{
    struct fact *f = &r->fact[0]; // its place was kept
    state(f, !can_run ? "no" : sandbox && !little ? "yes" : "limited");
    if (!can_run)
        means(f, "something that every machine needs is denied: see below; gnomon run ends with status 4");
    else if (!sandbox || little)
        means(f, "only with%s%s%s: see below", sandbox ? "" : " --sandbox off",
              sandbox || !little ? "" : " and", little ? " less --memory than the default" : "");
    else
        means(f, "gnomon run works here, with its sandbox");
}

// `little`: only a guest with less memory than the default can be made.
static bool add_guest_memory(struct report *r, bool *little)
{
    char denied[192];
    *little = false;
    if (add_probe(r, PROBE_MEMORY, "guest_memory", "guest memory",
                  "512 MiB in a memfd, as a machine makes it",
                  "no machine: its memory, 512 MiB in a memfd, can't be made"))
        return true;
    if (probe(PROBE_LITTLE))
        return false;
    struct fact *f = &r->fact[r->count - 1];
    const char *why = strrchr(f->means, '(');
    snprintf(denied, sizeof denied, "%s", why ? why : "");
    state(f, "limited");
    means(f, "no machine of 512 MiB, the default, but smaller ones: give less with --memory %s", denied);
    *little = true;
    return true;
}

static bool add_needs(struct report *r, bool *little)
{
    r->group = "What every machine needs";
    bool all = add_probe(r, PROBE_PROCESS, "processes", "processes",
                         "guest code has a process of its own, without files", "");
    if (!all)
        means(
            &r->fact[r->count - 1],
            "no machine: guest code has a process of its own, and the devices three threads; see ulimit -u");
    all &= add_guest_memory(r, little);
    all &= add_probe(r, PROBE_CODE, "executable_memory", "executable memory",
                     "translated code runs in it, below 2 GiB",
                     "no machine: translated code has no place to run, below 2 GiB");
    all &=
        add_probe(r, PROBE_TIMER, "timers", "timers", "they end a guest's loops in time for its interrupts",
                  "no machine: nothing could interrupt a guest; see ulimit -i");
    return all;
}

static bool add_isolation(struct report *r)
{
    return add_probe(
        r, PROBE_SECCOMP, "seccomp", "seccomp filters",
        "the sandbox holds: a guest's process may make eleven system calls",
        "no machine but with --sandbox off: then a guest that breaks out of its process has your rights");
}

static void add_huge_pages(struct report *r)
{
    char setting[96] = "not readable";
    struct fact *f = add(r, "huge_pages", "large pages");
    int result = probe(PROBE_HUGE);
    first_line(setting, sizeof setting, "/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    state(f, result == 0 ? "yes" : result == ENODATA ? "no" : "unknown");
    if (!result)
        means(f, "guest memory lies in pages of 2 MiB, as far as the host finds any");
    else if (result == ENODATA)
        means(f,
              "guest memory lies in pages of 4 KiB: more misses of the processor's TLB; shmem_enabled in "
              "/sys/kernel/mm/transparent_hugepage is: %s",
              setting);
    else
        means(f, "it can't be told which pages guest memory gets here");
}

static void add_speed(struct report *r)
{
    r->group = "What makes it faster";
    add_probe(r, PROBE_WORKER, "workers", "user processes",
              "64-bit programs that compute run in processes of their own, close to the processor's speed",
              "all user code is translated with checks: programs that compute take about one and a half times as long");
    add_probe(r, PROBE_FSGSBASE, "fsgsbase", "FSGSBASE", "processes for user code need it",
              "no processes for user code: they load segment bases by it");
    add_probe(r, PROBE_POPULATE, "populate", "MADV_POPULATE_WRITE",
              "guest memory is faulted in 2 MiB at a time",
              "guest memory is faulted in page by page: each first touch costs about 20 times as much");
    add_huge_pages(r);
    add_probe(r, PROBE_PIN, "pinning", "pinning to a CPU",
              "guest code and devices stay on one CPU, where handing over between them is cheapest",
              "handing over from guest code to devices costs more whenever they are on different CPUs");
}

// ---- limits

static void add_cpus(struct report *r, const struct cgroup_limits *limits)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    struct fact *f = add(r, "cpus", "CPUs");
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    int count = sched_getaffinity(0, sizeof set, &set) < 0 ? (int)online : CPU_COUNT(&set);
    f->numeric = true;
    f->number = (uint64_t)count;
    state(f, "%d of %ld", count, online);
    means(f, "a machine has one virtual CPU and keeps one of these busy");

    f = add(r, "cpu_quota", "CPU quota");
    if (limits->cpus == 0) {
        state(f, "none");
        means(f, "no control group holds guests back");
        return;
    }
    state(f, "%.2f CPUs", limits->cpus);
    means(f,
          limits->cpus < 1
              ? "of the control group: a busy guest stands still for a part of each period, its clock goes on"
              : "of the control group: enough for a machine");
}

static void add_memory(struct report *r, const struct cgroup_limits *limits)
{
    char line[128], text[32];
    uint64_t kib, bytes = UINT64_MAX;
    FILE *f = fopen("/proc/meminfo", "re");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %" SCNu64, &kib) == 1)
            bytes = kib << 10;
    if (f)
        fclose(f);
    bool group = limits->memory_bytes < bytes;
    if (group)
        bytes = limits->memory_bytes;
    struct fact *fact = add(r, "memory", "memory for guests");
    if (bytes == UINT64_MAX) {
        state(fact, "unknown");
        means(fact, "/proc/meminfo can't be read");
        return;
    }
    fact->numeric = true;
    fact->number = bytes;
    size_text(text, sizeof text, bytes);
    state(fact, "%s", text);
    means(fact, "%s%s", group ? "what the control group leaves" : "available",
          bytes < PROBE_GUEST_BYTES ? ": less than the 512 MiB a machine has without --memory"
                                    : ": a guest takes of it what it touches, up to --memory");
}

static void add_resource(struct report *r, int resource, const char *key, const char *label, uint64_t need,
                         bool bytes, const char *enough, const char *bites)
{
    struct rlimit limit;
    if (getrlimit(resource, &limit) < 0)
        return;
    struct fact *f = add(r, key, label);
    if (limit.rlim_cur == RLIM_INFINITY) {
        state(f, "none");
        means(f, "%s", enough);
        return;
    }
    f->numeric = true;
    f->number = limit.rlim_cur;
    if (bytes)
        size_text(f->state, sizeof f->state, limit.rlim_cur);
    else
        state(f, "%" PRIu64, (uint64_t)limit.rlim_cur);
    means(f, "%s", limit.rlim_cur < need ? bites : enough);
}

static void add_limits(struct report *r)
{
    struct cgroup_limits limits = cgroup_limits("/proc/self/cgroup", "/sys/fs/cgroup");
    char line[64];
    r->group = "Limits";
    add_cpus(r, &limits);
    add_memory(r, &limits);
    add_resource(r, RLIMIT_AS, "address_space", "address space", PROBE_GUEST_BYTES + OWN_BYTES, true,
                 "room for a machine of 512 MiB; each needs its --memory and 300 MiB",
                 "no machine of the default size: each needs its --memory and 300 MiB; see ulimit -v");
    add_resource(r, RLIMIT_FSIZE, "file_size", "file size", PROBE_GUEST_BYTES, true,
                 "room for a machine of 512 MiB: its memory counts as a file",
                 "no machine of the default size: its memory counts as a file; give less with --memory, or "
                 "see ulimit -f");
    add_resource(r, RLIMIT_NOFILE, "open_files", "open files", OWN_FILES, false,
                 "a machine has about 13 open, and one more for each disk",
                 "too few for a machine: it has about 13 open, and one more for each disk; see ulimit -n");
    if (first_line(line, sizeof line, "/proc/sys/vm/max_map_count")) {
        struct fact *f = add(r, "mappings", "memory mappings");
        f->numeric = true;
        f->number = strtoull(line, NULL, 10);
        state(f, "%" PRIu64, f->number);
        means(f, f->number < OWN_MAPPINGS
                     ? "may be too few for a machine: it makes hundreds; see vm.max_map_count"
                     : "a machine makes a few hundred at most");
    }
}

// ---- looking inside, and the rest

static void add_tools(struct report *r)
{
    char line[32] = "", denied[160];
    first_line(line, sizeof line, "/proc/sys/kernel/perf_event_paranoid");
    snprintf(denied, sizeof denied,
             "perf record -e cpu-clock gnomon run --perf measures nothing; kernel.perf_event_paranoid is %s",
             *line ? line : "not readable");
    r->group = "Looking inside";
    add_probe(r, PROBE_PERF_CLOCK, "perf_clock", "perf by time",
              "perf record -e cpu-clock gnomon run --perf names guest code", denied);
    add_probe(r, PROBE_PERF_CYCLES, "perf_cycles", "perf by cycles",
              "perf record gnomon run --perf has the processor's counter",
              "perf record takes time instead, -e cpu-clock");
    add_probe(r, PROBE_PTY, "pty", "pseudo-terminals", "--serial pty works", "--serial pty is an error");
}

static void add_unused(struct report *r)
{
    static const char none[] = "nothing uses it", cost[] = "costs nothing: nothing uses it";
    r->group = "What gnomon does not use";
    add_kvm(r);
    add_probe(r, PROBE_USER_NAMESPACE, "user_namespaces", "user namespaces", none, cost);
    add_probe(r, PROBE_PTRACE, "ptrace", "ptrace", none, cost);
    add_probe(r, PROBE_USERFAULTFD, "userfaultfd", "userfaultfd", none, cost);
    add_probe(r, PROBE_MODIFY_LDT, "modify_ldt", "modify_ldt", none, cost);
    add_probe(r, PROBE_PKEY, "pku", "protection keys", none, cost);
    add_resource(r, RLIMIT_MEMLOCK, "locked_memory", "locked memory", 0, true, "nothing is locked", "");
}

// ---- printing

static void list_json(void *opaque, struct stats_sink *sink)
{
    const struct report *r = opaque;
    stats_text(sink, "version", GNOMON_VERSION);
    for (unsigned i = 0; i < r->count; i++) {
        const struct fact *f = &r->fact[i];
        char key[64];
        if (f->numeric)
            stats_count(sink, f->key, f->number);
        else
            stats_text(sink, f->key, f->state);
        snprintf(key, sizeof key, "%s_means", f->key);
        if (*f->means)
            stats_text(sink, key, f->means);
    }
}

// Breaks text between words; all lines but the first begin at `indent`, where the first is already.
static void put_wrapped(const char *text, int indent, int width)
{
    int column = indent;
    while (*text) {
        int n = (int)strcspn(text, " ");
        if (column > indent && column + 1 + n > width) {
            printf("\n%*s", indent, "");
            column = indent;
        } else if (column > indent) {
            putchar(' ');
            column++;
        }
        printf("%.*s", n, text);
        column += n;
        text += n + (text[n] == ' ');
    }
}

static int screen_width(void)
{
    struct winsize size;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) < 0 || !size.ws_col)
        return 100;
    return size.ws_col < 70 ? 70 : size.ws_col > 120 ? 120 : size.ws_col;
}

static void print_text(const struct report *r)
{
    int width = screen_width(), indent = 2 + LABEL_WIDTH + 1 + STATE_WIDTH + 1;
    struct utsname host;
    printf("gnomon " GNOMON_VERSION);
    if (!uname(&host))
        printf(" on %s %s", host.sysname, host.release);
    putchar('\n');
    for (unsigned i = 0; i < r->count; i++) {
        const struct fact *f = &r->fact[i];
        if (f->group)
            printf("\n%s\n", f->group);
        int state_column = 2 + LABEL_WIDTH + 1;
        printf("  %-*s ", LABEL_WIDTH, f->label);
        if (strlen(f->state) > STATE_WIDTH) {
            put_wrapped(f->state, state_column, width);
            if (*f->means)
                printf("\n%*s", indent, "");
        } else {
            printf(*f->means ? "%-*s " : "%.*s", *f->means ? STATE_WIDTH : (int)sizeof f->state, f->state);
        }
        put_wrapped(f->means, indent, width);
        putchar('\n');
    }
}

int info_command(int argc, char *const argv[])
{
    bool json = argc && !strcmp(argv[0], "--json");
    if (argc > json) {
        print_error_about("unexpected word", argv[json], "gnomon info takes --json or nothing");
        return EXIT_USAGE;
    }
    struct report *r = calloc(1, sizeof *r);
    if (!r) {
        error_line("out of memory: info: end some programs and try again");
        return EXIT_HOST_ERROR;
    }
    struct processor p = {0};
    read_processor(&p);
    add(r, "machines", "machines can run");
    add_processor(r, &p);
    bool can_run = add_guest(r);
    bool little = false;
    can_run &= add_needs(r, &little);
    bool sandbox = add_isolation(r);
    add_summary(r, can_run, sandbox, little);
    add_speed(r);
    add_limits(r);
    add_tools(r);
    add_unused(r);
    if (json)
        stats_print(stdout, true, list_json, r);
    else
        print_text(r);
    free(r);
    return 0;
}
