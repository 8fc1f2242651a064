// Counted instructions (struct vcpu_count). They are counted by runs: a run ends with a conditional branch, a call, or the
// block, and code before it takes its length from `left`. Where that is not enough for the whole run, C goes on instruction by
// instruction (KEY_ONE) to the limit. What leaves a run before its end gives back what it has not executed: every place
// where that can happen has an entry in the block's map or a struct site, which say how much that is (`rest`).
//
// Flags of the guest that are in the host's survive, so the test is a JRCXZ on the sign's upper half then.
#include "dbt/internal.h"

void count_plan(struct translation *t)
{
    unsigned rest = 0;
    if (!t->d->v->count.on) {
        memset(t->rest, 0, t->count);
        return;
    }
    for (unsigned i = t->count; i-- > 0;) {
        if (is_conditional(&t->insn[i]) || is_call(&t->insn[i]))
            rest = 0;
        t->rest[i] = (uint8_t)++rest;
    }
}

void count_run(struct translation *t)
{
    struct asm_buf *a = &t->a;
    uint64_t left = (uint64_t)&t->d->v->count.left;
    unsigned n = t->rest[t->current];
    uint8_t *from;
    if (t->flags == FLAGS_HOST) {
        t->t1_group = -1;
        a_load_abs(a, 8, T0, left);
        a_lea(a, 8, T0, T0, -1, 1, -(int32_t)n);
        a_store_abs(a, 8, left, T0);
        a_mov_rr(a, 8, T1, H_CX);
        a_load_abs(a, 4, H_CX, left + 4);
        a_bytes(a, "\xe3\x08", 2);  // jrcxz enough
        a_mov_rr(a, 8, H_CX, T1);   // 3 bytes
        from = a_jmp(a);            // 5 bytes
        a_mov_rr(a, 8, H_CX, T1);
    } else {
        a_rex(a, 8, 0, 0, 0, 0);
        a8(a, 0x83); // sub qword [left], n
        a_abs(a, 5, left, 1);
        a8(a, n);
        from = a_jcc(a, CC_S);
    }
    cold_add(t, COLD_LIMIT, t->current, false, from)->flags = (uint8_t)t->flags;
}

void count_cold(struct translation *t, const struct cold *c)
{
    struct asm_buf *a = &t->a;
    uint64_t left = (uint64_t)&t->d->v->count.left;
    a_load_abs(a, 8, T0, left);
    a_lea(a, 8, T0, T0, -1, 1, t->rest[c->info]);
    a_store_abs(a, 8, left, T0);
    a_mov_imm(a, T0, t->insn[c->info].rip);
    a_jmp_to(a, c->flags == FLAGS_HOST ? t->d->stub_limit_host : t->d->stub_limit);
}
