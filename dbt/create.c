// Making and unmaking a translator: allocation, so libc is allowed here.
#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include "cpu/model.h"
#include "dbt/direct/direct.h"
#include "dbt/internal.h"

// Their layout is dbt/masked.c's.
static bool make_windows(struct dbt *d)
{
    uint8_t *p = mmap(NULL, MASKED_WINDOWS_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return false;
    d->windows = p;
    return !mprotect(p + PAGE_SIZE, 2 * PAGE_SIZE, PROT_READ | PROT_WRITE) &&
           !mprotect(p + MASKED_STORE_AGAIN + PAGE_SIZE, 2 * PAGE_SIZE, PROT_READ | PROT_WRITE);
}

// AMD's processors don't ask the SHA instructions' operands to be aligned (SDM vol. 2: exceptions type 4 of Intel's do).
static bool host_is_amd(void)
{
    uint32_t eax, ebx = 0, ecx, edx;
    return __get_cpuid(0, &eax, &ebx, &ecx, &edx) && (ebx == signature_AMD_ebx || ebx == 0x6f677948); // Auth…, Hygo…
}

static enum vector_kind guest_vectors(const struct cpu_model *m)
{
    uint32_t eax, ebx = 0, ecx, edx;
    if ((m->fpu_mask & 0xe0) == 0xe0)
        return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && ebx & bit_AVX512BW ? VECTORS_ZMM : VECTORS_ZMM_K16;
    return m->fpu_mask & 4 ? VECTORS_YMM : VECTORS_XMM;
}

int dbt_create(struct vcpu *v, const struct dbt_hooks *hooks)
{
    struct dbt *d = map_low(sizeof *d, -1, PROT_READ | PROT_WRITE);
    if (!d)
        return -ENOMEM;
    d->v = v;
    void *tr = mmap(NULL, sizeof *d->tr, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    d->tr = tr == MAP_FAILED ? NULL : tr;
    int err = d->tr && make_windows(d) ? cache_create(d) : -ENOMEM;
    if (!err)
        err = stubs_create(d);
    if (!err)
        err = signal_attach(d);
    if (err)
        return err;
    decoders_init(d->tr, v->model);
    classify_init(d->tr);
    features_init(d->tr, v->model);
    d->tr->sha_unaligned = host_is_amd();
    gather_layout(&d->layout);
    d->vector_kind = guest_vectors(v->model);
    d->key_gen = v->mode_gen - 1;
    d->syscall.star = ~v->s.star;
    d->region_count = REGIONS;
    d->max_insns = MAX_INSNS;
    if (v->count.is_time) // where blocks begin and end must not show
        d->exact_flags = v->x87_exact = true;
    v->engine = d;
    v->listener.page_flushed = hooks->page_flushed;
    v->listener.tlb_flushed = hooks->tlb_flushed;
    v->listener.fip_to_guest = hooks->fip_to_guest;
    v->listener.opaque = d;
    struct mem_trace_client client = {
        .written = hooks->code_written, .traced = hooks->code_traced, .opaque = d, .bit = TRACE_CODE};
    return mem_trace_register(v->mem, client) < 0 ? -ENOSPC : 0;
}

void dbt_destroy(struct vcpu *v)
{
    struct dbt *d = v->engine;
    if (!d)
        return;
    v->engine = NULL;
    v->listener = (struct vcpu_listener){0};
    measure_end(d);
    direct_destroy(d->direct);
    signal_detach(d);
    cache_destroy(d);
    munmap(d->tr, sizeof *d->tr);
    munmap(d->windows, MASKED_WINDOWS_SIZE);
    munmap(d, sizeof *d);
}
