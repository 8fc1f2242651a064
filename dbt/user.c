// Policy `user`: 64-bit user code for a user worker, where the guest's pages are mapped at the guest's own addresses. Registers,
// flags, the return stack and the ways from block to block are those of `checked`; a memory operand stays what it is, so there
// is nothing to compare and nothing to miss. What the host's processor makes of an access is what the guest's would: what is
// not mapped, not canonical or not aligned stops the worker, and dbt/direct/ looks.
//
// A block never calls C. Where one of `checked` would, it executes INT3 at a place that says what is wanted (user_* in struct
// dbt), and the worker's owner goes on from there. DF is in the host's flags.
#include "dbt/internal.h"

void plain_prefixes(struct asm_buf *a, const struct plain *p)
{
    if (p->segment)
        a8(a, p->segment);
    if (p->addr32)
        a8(a, 0x67);
}

void plain_modrm(struct asm_buf *a, unsigned reg, const struct plain *p, bool disp32)
{
    unsigned ss = p->scale == 8 ? 3 : p->scale == 4 ? 2 : p->scale == 2 ? 1 : 0;
    if (p->base < 0) {
        a_modrm(a, 0, reg, 4);
        a8(a, ss << 6 | (p->index < 0 ? 4 : (unsigned)p->index & 7) << 3 | 5);
        a32(a, (uint32_t)p->disp);
    } else if (disp32) {
        a_modrm(a, 2, reg, 4);
        a8(a, ss << 6 | (p->index < 0 ? 4 : (unsigned)p->index & 7) << 3 | ((unsigned)p->base & 7));
        a32(a, (uint32_t)p->disp);
    } else {
        a_mem(a, reg, (unsigned)p->base, p->index, p->scale, p->disp);
    }
}

void mem_plain(struct translation *t, const struct ea *ea)
{
    struct plain *p = &t->plain;
    *p = (struct plain){.base = -1, .index = -1, .scale = ea->scale, .disp = (int32_t)ea->disp, .addr32 = ea->addr_size == 4,
                        .segment = ea->sreg == SEG_FS ? 0x64 : ea->sreg == SEG_GS ? 0x65 : 0};
    t->is_plain = true;
    t->based = false;
    t->t1_group = -1;
    if (ea->base == EA_IN_T0) { // as wide as it is
        p->base = T0;
        p->disp = 0;
        p->addr32 = false;
    } else if (ea->base < 0 && ea->index < 0) {
        uint64_t at = (uint64_t)ea->disp & (p->addr32 ? 0xffffffffull : ~0ull);
        p->addr32 = false;
        if ((int64_t)at == (int32_t)at)
            return;
        a_mov_imm(&t->a, T1, at);
        p->base = T1;
        p->disp = 0;
    } else {
        if (ea->base >= 0)
            p->base = (int)guest_in(t, (unsigned)ea->base, T1);
        if (ea->index >= 0)
            p->index = (int)guest_in(t, (unsigned)ea->index, T0);
    }
}

// T1 = the linear address.
void plain_combine(struct translation *t)
{
    struct asm_buf *a = &t->a;
    struct plain *p = &t->plain;
    unsigned size = p->addr32 ? 4 : 8;
    a_rex(a, size, T1, p->index < 0 ? 0 : (unsigned)p->index, p->base < 0 ? 0 : (unsigned)p->base, 0);
    a8(a, 0x8d); // lea
    plain_modrm(a, T1, p, false);
    if (p->segment) {
        a_bytes(a, "\xf3\x48\x0f\xae", 4); // rdfsbase, rdgsbase
        a_modrm(a, 3, p->segment == 0x65, T0);
        a_lea(a, 8, T1, T1, T0, 1, 0);
    }
    t->is_plain = false;
}

// MOVS, CMPS, STOS, SCAS, LODS: guest RDI is in RDI while they run.
void emit_user_string(struct translation *t, struct ginsn *g)
{
    struct asm_buf *a = &t->a;
    struct map_entry *m = &t->map[t->current];
    t->t1_group = -1;
    a_mov_rr(a, 8, T1, host_of_guest[RDI]);
    m->string = (asm_here(a) - t->b->code - m->host) & 31;
    a_bytes(a, g->bytes, g->z->length);
    a_mov_rr(a, 8, host_of_guest[RDI], T1);
}
