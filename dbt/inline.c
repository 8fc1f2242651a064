// Sensitive instructions hot enough to be worth a sequence of their own. Each does what its function in cpu/ does in the
// one case it covers, and goes to that function in every other.
#include "dbt/internal.h"

bool can_inline(const struct translation *t, const struct ginsn *g)
{
    if (t->key & KEY_ONE)
        return false;
    bool level0 = !(t->key & KEY_VM) && (!(t->key & KEY_PE) || !(t->key & KEY_CPL_MASK));
    switch (g->sens) {
    case OP_CLI:
    case OP_STI: return level0;
    case OP_SWAPGS: return level0 && t->code_size == 8;
    case OP_RDTSC: return !(t->key & KEY_TSD);
    default: return false;
    }
}

// Guest TSC = host TSC + offset, as cpu_tsc(). Flags are parked (flags.c).
static void emit_rdtsc(struct translation *t)
{
    struct asm_buf *a = &t->a;
    a_bytes(a, "\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0\x48\x03", 11); // rdtsc; shl rdx, 32; or rax, rdx; add rax, [...]
    a_abs(a, H_AX, STATE(t, tsc_offset), 0);
    a_mov_rr(a, 8, H_DX, H_AX);
    a_bytes(a, "\x48\xc1\xea\x20", 4); // shr rdx, 32
    a_mov_rr(a, 4, H_AX, H_AX);
}

static void emit_swapgs(struct translation *t)
{
    struct asm_buf *a = &t->a;
    a_load_abs(a, 8, T0, STATE(t, seg[SEG_GS].base));
    a_load_abs(a, 8, T1, STATE(t, kernel_gs_base));
    a_store_abs(a, 8, STATE(t, seg[SEG_GS].base), T1);
    a_store_abs(a, 8, STATE(t, kernel_gs_base), T0);
}

// STI: with nothing requested, set IF; the map keeps kicks away until the next instruction is done. An interrupt that
// waits needs the exact shadow: that is the function's.
static void emit_sti(struct translation *t, struct ginsn *g, bool last)
{
    struct asm_buf *a = &t->a;
    if (last) {
        emit_site(t, g);
        return;
    }
    a_mov_rr(a, 8, T1, H_CX);
    a_load_abs(a, 4, H_CX, (uint64_t)&t->d->v->requests);
    a8(a, 0xe3); // jrcxz quiet
    uint8_t *quiet = a->p;
    a8(a, 0);
    a_mov_rr(a, 8, H_CX, T1);
    emit_site(t, g);
    t->ended = false;
    if (!a->overflow)
        *quiet = (uint8_t)(a->p - (quiet + 1));
    a_mov_rr(a, 8, H_CX, T1);
    a_store_imm8_abs(a, STATE(t, iflag), 1);
}

void emit_inline(struct translation *t, struct ginsn *g, bool last)
{
    switch (g->sens) {
    case OP_CLI: a_store_imm8_abs(&t->a, STATE(t, iflag), 0); break;
    case OP_STI: emit_sti(t, g, last); break;
    case OP_SWAPGS: emit_swapgs(t); break;
    default: emit_rdtsc(t); break;
    }
}
