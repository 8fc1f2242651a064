// Sensitive instructions hot enough to be worth a sequence of their own. Each does what its function in cpu/ does in the
// one case it covers, and goes to that function in every other.
#include "dbt/internal.h"

bool can_inline(const struct translation *t, const struct ginsn *g)
{
    if (t->key & KEY_ONE || (user(t) && g->sens != OP_RDTSC))
        return false;
    if (g->sens == OP_SYSCALL)
        return can_inline_syscall(t);
    bool level0 = !(t->key & KEY_VM) && (!(t->key & KEY_PE) || !(t->key & KEY_CPL_MASK));
    switch (g->sens) {
    case OP_CLI:
    case OP_STI: return level0;
    case OP_SWAPGS: return level0 && t->code_size == 8;
    case OP_SYSRET: return level0 && can_inline_sysret(t, g);
    case OP_RDTSC: return !(t->key & KEY_TSD) && !t->d->v->count.is_time;
    case OP_PUSHF: return !(t->key & KEY_VM) && t->code_size == 8 && g->z->operand_width == 64;
    case OP_STAC:
    case OP_CLAC: return level0 && t->code_size == 8 && t->key & KEY_SMAP;
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

void emit_flags_image(struct translation *t)
{
    struct asm_buf *a = &t->a;
    const struct { uint64_t at; unsigned bit; } bytes[] = {
        {DBT(t, parked), 11}, {STATE(t, iflag), 9}, {STATE(t, dflag), 10}, // OF, IF, DF
    };
    t->t1_group = -1;
    a_load_abs(a, 4, T0, STATE(t, rflags));
    a_alu_imm(a, 4, 4, T0, (int32_t)~(FL_ARITH | FL_RF | FL_VM)); // and
    a_bytes(a, "\x0f\xb6", 2); // movzx edi, byte: SF ZF AF PF CF as LAHF gives them
    a_abs(a, T1, DBT(t, parked) + 1, 0);
    a_bytes(a, "\x09\xfd", 2); // or ebp, edi
    for (unsigned i = 0; i < sizeof bytes / sizeof bytes[0]; i++) {
        a_bytes(a, "\x0f\xb6", 2);
        a_abs(a, T1, bytes[i].at, 0);
        a_bytes(a, "\xc1\xe7", 2); // shl edi, bit
        a8(a, bytes[i].bit);
        a_bytes(a, "\x09\xfd", 2);
    }
}

static void emit_pushf(struct translation *t)
{
    emit_flags_image(t);
    a_store_abs(&t->a, 8, DBT(t, tmp), T0);
    emit_push(t, 8, PUSH_TMP, 0);
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

void emit_switch_mode(struct translation *t, uint32_t key, const struct context *to)
{
    struct asm_buf *a = &t->a;
    a_store_abs(a, 8, (uint64_t)&t->d->context->ras_sp, H_SP);
    a_load_abs(a, 8, H_SP, (uint64_t)&to->ras_sp);
    a_store_imm32_abs(a, 8, DBT(t, ras_base), (uint32_t)to->ras_base);
    a_store_imm32_abs(a, 8, DBT(t, context), (uint32_t)(uint64_t)to);
    a_store_imm32_abs(a, 4, DBT(t, key), key);
}

// STAC, CLAC: on in the mode that may resp. may not touch user pages, which has a return stack of its own.
static void emit_ac(struct translation *t, struct ginsn *g)
{
    struct asm_buf *a = &t->a;
    struct dbt *d = t->d;
    struct block *b = t->b;
    uint64_t next = g->rip + g->z->length;
    unsigned kind = g->sens == OP_STAC ? TLB_KERNEL_AC : TLB_KERNEL;
    uint32_t key = (b->key & ~(KEY_TLB_MASK | KEY_NOMERGE)) | kind << KEY_TLB_SHIFT;
    struct context *from = d->context, *to = mode_context(d, key);
    if (!from || !to) {
        emit_site(t, g);
        return;
    }
    a8(a, 0x80); // or/and byte [rflags + 2]
    a_abs(a, g->sens == OP_STAC ? 1 : 4, STATE(t, rflags) + 2, 1);
    a8(a, g->sens == OP_STAC ? FL_AC >> 16 : (uint8_t)~(FL_AC >> 16));
    if (from != to)
        emit_switch_mode(t, key, to);
    unsigned exits = b->exit_count;
    t->flags = peek_live(t, next) ? FLAGS_PARKED : FLAGS_DEAD;
    emit_exit_to(t, next);
    if (b->exit_count > exits)
        b->exits[exits].tlb = (uint8_t)kind;
}

void emit_inline(struct translation *t, struct ginsn *g, bool last)
{
    switch (g->sens) {
    case OP_CLI: a_store_imm8_abs(&t->a, STATE(t, iflag), 0); break;
    case OP_STI: emit_sti(t, g, last); break;
    case OP_SWAPGS: emit_swapgs(t); break;
    case OP_PUSHF: emit_pushf(t); break;
    case OP_SYSCALL: emit_syscall(t, g); break;
    case OP_SYSRET: emit_sysret(t, g); break;
    case OP_STAC:
    case OP_CLAC: emit_ac(t, g); break;
    default: emit_rdtsc(t); break;
    }
}
