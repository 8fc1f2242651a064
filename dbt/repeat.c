// MOVS and STOS that stay within a page of each operand, upwards, in 64-bit code: without a call (docs/decisions/019-short-strings.md).
//
// The operands are checked as policy `checked` does (dbt/operand.c), but for as many elements as RCX says:
//
//     cmp   byte [dflag], 0 ; jne slow
//     mov   t0, address ; mov t1d, t0d ; shr t1d, 12
//     sub   t0, [tag + t1*8] ; cmp t0, 4095 ; ja slow          T0: offset in the page
//     mov   t1, [host_page + t1*8] ; add t1, t0
//     neg   t0 ; add t0, 4096 ; shr t0, log2(size)             T0: elements to the page's end
//     cmp   rcx, t0 ; ja slow                                  without REP: test t0, t0 ; je slow
//
// for the source of MOVS, whose host address is kept in `tmp` the while, then for the destination. Nothing the guest can see has
// changed before the host's own instruction runs, and that can't fault: `slow` is the instruction from its beginning, by string_execute().
#include "dbt/internal.h"

enum { REPEAT_MOVS = 0xa4, REPEAT_STOS = 0xaa };

// What its prefixes say: whether it repeats, and whether they are all known here.
static bool prefixes(const struct ginsn *g, bool *rep)
{
    *rep = false;
    for (unsigned i = 0; i < g->z->raw.prefix_count; i++)
        switch (g->bytes[i]) {
        case 0xf0: // LOCK
        case 0x64: // FS, GS
        case 0x65: return false;
        case 0xf2:
        case 0xf3: *rep = true; break;
        default: break;
        }
    return true;
}

static bool is_covered(const struct translation *t, const struct ginsn *g)
{
    unsigned op = g->z->opcode & 0xfe;
    return !user(t) && !(t->key & (KEY_ONE | KEY_BOUNCE)) && t->code_size == 8 && !t->d->v->count.on && g->z->address_width == 64 &&
           (op == REPEAT_MOVS || op == REPEAT_STOS);
}

// T1 = host address of the elements at guest register `pointer`; the two jumps that are taken where they can't be reached so.
static void reach(struct translation *t, unsigned pointer, bool write, unsigned log2_size, bool rep, uint8_t *slow[2])
{
    struct asm_buf *a = &t->a;
    const struct tlb_set *set = &t->d->v->tlb->set[(t->key & KEY_TLB_MASK) >> KEY_TLB_SHIFT];
    a_mov_rr(a, 8, T0, host_reg(pointer));
    a_mov_rr(a, 4, T1, T0);
    a_put(a, 0x0cefc1, 3);                                                                  // shr edi, 12
    a_op_table(a, 0x2b, T0, (uint64_t)(write ? set->write_tag : set->read_tag), T1);         // sub t0, [tag + t1*8]
    a_alu_imm(a, 8, 7, T0, PAGE_SIZE - 1);
    slow[0] = a_jcc(a, CC_A);
    a_load_table(a, T1, (uint64_t)set->host_page, T1);
    a_put(a, 0xef0148, 3); // add rdi, rbp
    a_put(a, 0xddf748, 3); // neg rbp
    a_alu_imm(a, 8, 0, T0, PAGE_SIZE);
    if (log2_size)
        a_put(a, 0xedc148 | log2_size << 24, 4); // shr rbp, log2_size
    a_put(a, rep ? 0xe93948 : 0xed8548, 3);      // cmp rcx, rbp, or test rbp, rbp
    slow[1] = a_jcc(a, rep ? CC_A : CC_E);
}

void emit_string(struct translation *t, struct ginsn *g)
{
    struct asm_buf *a = &t->a;
    bool moves = (g->z->opcode & 0xfe) == REPEAT_MOVS, rep, known = prefixes(g, &rep);
    unsigned size = !(g->z->opcode & 1) ? 1 : g->z->operand_width / 8;
    unsigned log2_size = (unsigned)__builtin_ctz(size);
    uint8_t *slow[5];
    unsigned n = 0;

    if (!known || !is_covered(t, g)) {
        emit_site(t, g);
        return;
    }
    if (t->flags == FLAGS_HOST)
        flags_park(t);
    t->t1_group = -1;
    a_op_abs(a, 0, 0x80, 7, STATE(t, dflag), 1); // cmp byte [dflag], 0
    a8(a, 0);
    slow[n++] = a_jcc(a, CC_NE);
    if (moves) {
        reach(t, RSI, false, log2_size, rep, slow + n);
        n += 2;
        a_store_abs(a, 8, DBT(t, tmp), T1);
    }
    reach(t, RDI, true, log2_size, rep, slow + n);
    n += 2;
    if (moves) {
        a_mov_rr(a, 8, T0, H_SI);
        a_load_abs(a, 8, H_SI, DBT(t, tmp));
        a_store_abs(a, 8, DBT(t, tmp), T0);
    }
    if (rep)
        a_mov_rr(a, 8, T0, H_CX);
    uint64_t bytes = g->z->opcode & 0xff;
    if (size == 8 || size == 2)
        bytes = bytes << 8 | (size == 8 ? 0x48 : 0x66);
    unsigned length = size == 8 || size == 2 ? 2 : 1;
    if (rep && size == 2)
        bytes = (g->z->opcode & 0xffu) << 16 | 0xf366, length = 3; // legacy prefixes in either order
    else if (rep)
        bytes = bytes << 8 | 0xf3, length++;
    a_put(a, bytes, length);
    if (moves)
        a_load_abs(a, 8, H_SI, DBT(t, tmp));
    for (unsigned i = 0; i < (moves ? 2u : 1u); i++) {
        unsigned r = host_reg(i ? RSI : RDI);
        a_lea(a, 8, r, r, rep ? T0 : -1, size, rep ? 0 : (int)size);
    }
    enum flag_place flags = t->flags;
    uint64_t next = g->rip + g->z->length;
    t->flags = flags == FLAGS_PARKED && peek_live(t, next) ? FLAGS_PARKED : FLAGS_DEAD;
    emit_exit_to(t, next);
    t->flags = flags;
    while (n--)
        a_patch(a, slow[n]);
    emit_site(t, g);
}
