// Making and unmaking a translator: allocation, so libc is allowed here.
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include "dbt/internal.h"

int dbt_create(struct vcpu *v, const struct dbt_hooks *hooks)
{
    struct dbt *d = map_low(sizeof *d, -1, PROT_READ | PROT_WRITE);
    if (!d)
        return -ENOMEM;
    d->v = v;
    d->tr = calloc(1, sizeof *d->tr);
    int err = d->tr ? cache_create(d) : -ENOMEM;
    if (!err)
        err = stubs_create(d);
    if (!err)
        err = signal_attach(d);
    if (err)
        return err;
    ZydisDecoderInit(&d->tr->decoder[0], ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
    ZydisDecoderInit(&d->tr->decoder[1], ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
    ZydisDecoderInit(&d->tr->decoder[2], ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    for (unsigned i = 0; i < 3; i++) { // encodings that are reserved NOPs for a processor without these
        static const ZydisDecoderMode off[] = {ZYDIS_DECODER_MODE_MPX, ZYDIS_DECODER_MODE_CET, ZYDIS_DECODER_MODE_CLDEMOTE};
        for (unsigned m = 0; m < sizeof off / sizeof off[0]; m++)
            ZydisDecoderEnableMode(&d->tr->decoder[i], off[m], ZYAN_FALSE);
    }
    classify_init(d->tr);
    gather_layout(&d->layout);
    d->key_gen = v->mode_gen - 1;
    v->engine = d;
    v->listener.page_flushed = hooks->page_flushed;
    v->listener.tlb_flushed = hooks->tlb_flushed;
    v->listener.code_written = hooks->code_written;
    v->listener.fip_to_guest = hooks->fip_to_guest;
    v->listener.opaque = d;
    return mem_trace_register(v->mem, (struct mem_trace_client){hooks->code_written, hooks->code_traced, d, TRACE_CODE}) < 0
               ? -ENOSPC : 0;
}

void dbt_destroy(struct vcpu *v)
{
    struct dbt *d = v->engine;
    if (!d)
        return;
    v->engine = NULL;
    v->listener = (struct vcpu_listener){0};
    signal_detach(d);
    cache_destroy(d);
    free(d->tr);
    munmap(d, sizeof *d);
}
