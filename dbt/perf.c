// --perf: names for translated code, in the form of perf's map files (Linux, tools/perf/Documentation/jit-interface.txt):
// "START SIZE name" a line, start and size in hexadecimal. First the stubs, then each block as it is made. When the cache
// is full its oldest places are used again: later lines then overlap earlier ones.
#include <inttypes.h>
#include <stdio.h>
#include "dbt/dbt.h"

// guest_ADDRESS_BITS_MODE: linear address and mode of the guest code.
void perf_print_block(struct dbt *d, const struct block *b)
{
    FILE *f = d->perf_file;
    unsigned bits = key_bits(b->key);
    uint64_t la = bits == 64 ? b->rip : (uint32_t)(b->rip + b->cs_base);
    const char *alone = b->key & KEY_BOUNCE ? "_bounce" : "_one";
    fprintf(f, "%s%x %x guest_%" PRIx64 "_%u_", d->perf_mark, b->code, b->code_len, la, bits);
    if (b->key & KEY_VM)
        fputs("v86", f);
    else if (b->key & KEY_PE)
        fprintf(f, "cpl%u", (b->key & KEY_CPL_MASK) >> KEY_CPL_SHIFT);
    else
        fputs("real", f);
    fprintf(f, "%s\n", b->key & KEY_ONE ? alone : ""); // one instruction
}

static void print_stubs(struct dbt *d)
{
    const struct {
        const char *name;
        uint64_t at;
    } stubs[] = {
        {"enter", d->stub_enter},
        {"tail", d->tail_begin},
        {"chain_host", d->stub_chain_host},
        {"chain", d->stub_chain},
        {"sensitive", d->stub_sensitive},
        {"string", d->stub_string},
        {"gather", d->stub_gather},
        {"indirect", d->stub_ib_miss},
        {"step", d->stub_step},
        {"commit", d->stub_commit},
        {"return", d->stub_ret_none},
        {"slow", d->stub_slow[0][0]},
        {"slow_flags", d->stub_slow[0][1]},
        {"segment", d->stub_seg},
        {"bounce", d->stub_bounce},
        {"fault", d->stub_fault},
    };
    const unsigned count = sizeof stubs / sizeof stubs[0];
    for (unsigned i = 0; i < count; i++) {
        uint64_t end = d->stubs_end;
        for (unsigned k = 0; k < count; k++)
            if (stubs[k].at > stubs[i].at && stubs[k].at < end)
                end = stubs[k].at;
        fprintf(d->perf_file, "%s%" PRIx64 " %" PRIx64 " gnomon_stub_%s\n", d->perf_mark, stubs[i].at,
                end - stubs[i].at, stubs[i].name);
    }
}

void engine_software_perf(struct vcpu *v, FILE *out, const char *mark)
{
    struct dbt *d = v->engine;
    d->perf_file = out;
    d->perf_mark = mark;
    trace_choose_hook(d);
    if (out)
        print_stubs(d);
}
