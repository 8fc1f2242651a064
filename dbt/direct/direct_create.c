// Making and unmaking what direct execution needs: allocation, so libc is allowed here.
#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "cpu/model.h"
#include "dbt/dbt.h"
#include "dbt/direct/private.h"

#define XCR0_APX (1ull << 19)

// What instructions that don't trap would show of this host, if the guest's state is what is_eligible() asks for.
static void look_at_host(struct direct *d)
{
    uint32_t eax, ebx = 0, ecx, edx;
    for (unsigned i = 1; i < HOST_DESCRIPTORS; i++) {
        uint32_t rights = 0;
        __asm__("lar %1, %0" : "+r"(rights) : "r"(i << 3 | 3) : "cc");
        d->lar[i] = rights & 0x00f0ff00;
    }
    uint16_t ldtr = 1, tr = 0, cr0 = 0;
    __asm__("sldt %0" : "=m"(ldtr));
    __asm__("str %0" : "=m"(tr));
    __asm__("smsw %0" : "=m"(cr0));
    __get_cpuid(0, &eax, &ebx, &ecx, &edx);
    bool amd = ebx == signature_AMD_ebx || ebx == 0x6f677948;
    d->rules = (struct scan_rules){
        .same_xcr0 = d->v->model->xcr0 == d->v->model->host_xcr0,
        .same_tsc = true,
        .no_sysenter = amd,
        .same_ldtr = ldtr == 0,
        .same_tr = tr == HOST_TR,
        .same_cr0 = cr0 == HOST_CR0,
        .rdrand = cpu_model_has(d->v->model, CPU_RDRAND),
        .rdseed = cpu_model_has(d->v->model, CPU_RDSEED),
        .same_descriptors = true,
    };
}

static void *shared(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static int by_address(const void *a, const void *b)
{
    const struct worker_window *x = a, *y = b;
    return (x->at > y->at) - (x->at < y->at);
}

// What translated code of user spaces needs in a worker, at the addresses it has here.
static unsigned make_windows(struct direct *x, unsigned workers, struct worker_window window[WORKER_WINDOWS])
{
    struct dbt *d = x->v->engine;
    void *ras = map_low(RAS_SIZE + PAGE_SIZE, -1, PROT_NONE); // nothing is there in the owner
    x->state_pages = shared(workers * PAGE_SIZE);
    x->dbt_pages = shared(workers * PAGE_SIZE);
    x->ras_pages = shared(workers * RAS_SIZE);
    if (!ras || !x->state_pages || !x->dbt_pages || !x->ras_pages)
        return 0;
    x->ras_base = (uint64_t)ras + PAGE_SIZE + RAS_SIZE - 16;
    const struct worker_window all[] = {
        {(uint64_t)&x->v->s, PAGE_SIZE, PROT_READ | PROT_WRITE, x->state_pages},
        {(uint64_t)d, PAGE_SIZE, PROT_READ | PROT_WRITE, x->dbt_pages},
        {(uint64_t)ras + PAGE_SIZE, RAS_SIZE, PROT_READ | PROT_WRITE, x->ras_pages},
        {d->rx, d->cache_size, PROT_READ | PROT_EXEC, NULL},
        {(uint64_t)d->slots, SLOT_COUNT * 8, PROT_READ, NULL},
        {(uint64_t)d->contexts[CONTEXTS].tag, USER_SPACES * USER_TABLE, PROT_READ, NULL},
    };
    memcpy(window, all, sizeof all);
    qsort(window, sizeof all / sizeof all[0], sizeof all[0], by_address);
    return sizeof all / sizeof all[0];
}

_Static_assert(offsetof(struct dbt, parked) < PAGE_SIZE && offsetof(struct dbt, call_rip) < PAGE_SIZE && offsetof(struct dbt, tmp) < PAGE_SIZE &&
                   offsetof(struct dbt, ras_base) < PAGE_SIZE && offsetof(struct dbt, spill_ax) < PAGE_SIZE && offsetof(struct dbt, target) < PAGE_SIZE &&
                   offsetof(struct cpu_state, tsc_offset) < PAGE_SIZE,
               "what translated user code uses lies in the first page of each");

struct direct *direct_create(struct vcpu *v, int ram_fd, unsigned workers, enum direct_choice choice, enum direct_policy policy, int *error)
{
    struct direct *d = calloc(1, sizeof *d);
    struct worker_window window[WORKER_WINDOWS];
    struct shadow_policy shadow = {.may_execute = direct_may_execute, .opaque = d, .reserved = {{0, WORKER_END}, {OWN_LOW_BEGIN, OWN_LOW_END}},
                                   .spaces = workers, .prefill = 16, .max_mappings = 50000};
    *error = -ENOMEM;
    if (!d)
        return NULL;
    d->v = v;
    d->choice = choice;
    d->policy = policy;
    d->running = -1;
    d->xsave_mask = v->model->host_xcr0;
    d->xsave_size = cpu_model_xsave_size(v->model, v->model->fpu_mask, false);
    look_at_host(d);
    unsigned windows = make_windows(d, workers, window);
    if (v->model->host_xcr0 & XCR0_APX) // scan.h
        *error = -ENOSYS;
    else if (windows)
        *error = workers_create(&d->workers, workers, ram_fd, window, windows);
    if (!*error && !(d->shadow = shadow_create(v, &shadow)))
        *error = -ENOMEM;
    if (*error) {
        direct_destroy(d);
        return NULL;
    }
    return d;
}

void direct_destroy(struct direct *d)
{
    if (d && d->workers)
        workers_destroy(d->workers);
    if (d && d->shadow)
        shadow_destroy(d->shadow);
    free(d);
}

void direct_emit(struct direct *d, void (*emit)(void *opaque, const char *name, uint64_t value), void *opaque)
{
    static const char *const causes[DIRECT_CAUSES] = {
        "direct_system_calls", "direct_kicks", "direct_page_faults", "direct_traced_accesses", "direct_code_refused", "direct_exceptions",
    };
    static const char *const scan[SCAN_CAUSES] = {
        "scan_passed", "scan_cpuid", "scan_descriptor_tables", "scan_extended_state", "scan_time", "scan_int80", "scan_sysenter", "scan_other", "scan_page_edge",
    };
    const struct direct_counters *n = &d->n;
    const struct shadow_counters *s = shadow_counters(d->shadow);
    emit(opaque, "direct_spaces", n->opened);
    emit(opaque, "direct_handoffs", n->handoffs);
    emit(opaque, "direct_hidden_faults", n->hidden_faults);
    emit(opaque, "direct_prefilled", s->prefilled);
    for (unsigned i = 0; i < DIRECT_CAUSES; i++)
        emit(opaque, causes[i], n->cause[i]);
    emit(opaque, "direct_state_refused", n->refused_state);
    emit(opaque, "direct_workers_lost", n->lost);
    emit(opaque, "direct_links", n->follows);
    emit(opaque, "direct_look_ups", n->looks);
    emit(opaque, "direct_blocks", n->makes);
    emit(opaque, "direct_links_reset", n->forgets);
    emit(opaque, "direct_chosen", n->chosen);
    emit(opaque, "direct_left", n->left);
    emit(opaque, "direct_became_translated", n->became_translated);
    for (unsigned i = 0; i < SCAN_CAUSES; i++)
        emit(opaque, scan[i], n->scan_failed[i]);
    emit(opaque, "shadow_mappings", s->mappings);
    emit(opaque, "shadow_unmappings", s->unmappings);
    emit(opaque, "shadow_table_hits", s->table_hits);
    emit(opaque, "shadow_dropped", s->dropped);
    emit(opaque, "shadow_tables", s->tables);
    emit(opaque, "shadow_execute_lost", s->exec_lost);
}
