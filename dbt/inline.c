// Sensitive instructions hot enough to be worth a sequence of their own. Each does what its function in cpu/ does in the
// one case it covers, and goes to that function in every other.
#include "dbt/internal.h"

bool can_inline(const struct translation *t, const struct ginsn *g)
{
    if (t->key & (KEY_ONE | KEY_VM) || (t->key & KEY_PE && (t->key & KEY_CPL_MASK)))
        return false;
    return g->sens == OP_CLI || g->sens == OP_STI;
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
    if (g->sens == OP_CLI)
        a_store_imm8_abs(&t->a, STATE(t, iflag), 0);
    else
        emit_sti(t, g, last);
}
