// The stack: PUSH, POP, LEAVE, and what CALL and RET do to it.
#include "dbt/internal.h"

static struct ea stack_ea(const struct translation *t, int64_t disp)
{
    unsigned size = t->code_size == 8 ? 8 : t->key & KEY_STACK32 ? 4 : 2;
    return (struct ea){.base = RSP, .index = -1, .scale = 1, .addr_size = size, .sreg = SEG_SS, .disp = disp};
}

// Guest RSP += n, in the width of the stack, flags untouched.
static void stack_adjust(struct translation *t, int32_t n)
{
    struct asm_buf *a = &t->a;
    if (t->code_size == 8) {
        a_lea(a, 8, H_12, H_12, -1, 1, n);
    } else if (t->key & KEY_STACK32) {
        a_lea(a, 4, H_12, H_12, -1, 1, n);
    } else {
        a_lea(a, 4, T1, H_12, -1, 1, n);
        a8(a, 0x66); // mov r12w, di
        a_mov_rr(a, 4, H_12, T1);
    }
}

// PUSH, POP of a register, or RET, whose slot lies in a range that has been checked: it can neither fault nor miss.
static bool surely_on_stack(const struct translation *t, unsigned i)
{
    if (i >= t->count || t->code_size != 8)
        return false;
    const struct ginsn *g = &t->insn[i];
    if (g->cls != CLASS_CONTROL || t->access_count[i] != 1 || t->access[i][0].group < 0 || !t->group[t->access[i][0].group].checked)
        return false;
    switch (g->z->mnemonic) {
    case ZYDIS_MNEMONIC_PUSH:
    case ZYDIS_MNEMONIC_POP:
        return g->z->operand_width != 16 && g->op[0].type != ZYDIS_OPERAND_TYPE_MEMORY && g->op[0].reg.value != ZYDIS_REGISTER_RSP;
    case ZYDIS_MNEMONIC_RET: return branch_size(t, g) == 8;
    default: return false;
    }
}

// Guest RSP += n, after an instruction's access. In a run of PUSH and POP the register follows at its end: nothing looks at
// it before, because a kick waits until then.
void rsp_change(struct translation *t, int32_t n)
{
    const struct ginsn *g = &t->insn[t->current];
    bool in_run = g->z->mnemonic == ZYDIS_MNEMONIC_PUSH || g->z->mnemonic == ZYDIS_MNEMONIC_POP;
    t->rsp_pending += n;
    if (in_run && surely_on_stack(t, t->current + 1))
        return;
    stack_adjust(t, t->rsp_pending);
    t->rsp_pending = 0;
}

// ModRM of the operand mem_begin() left: [t1 + base + disp] in a checked group, else [t1 + t0] (mem_at_t0()) or [t1]
// (mem_settle()).
static void operand_modrm(struct translation *t, unsigned reg)
{
    if (t->is_plain)
        plain_modrm(&t->a, reg, &t->plain, false);
    else if (t->based)
        a_mem(&t->a, reg, T1, (int)t->based_on, 1, t->based_disp);
    else
        a_modrm(&t->a, 0, reg, T1);
}

static unsigned operand_index(const struct translation *t)
{
    if (t->is_plain)
        return t->plain.index < 0 ? 0 : (unsigned)t->plain.index;
    return t->based ? t->based_on : 0;
}

static unsigned operand_base(const struct translation *t)
{
    return !t->is_plain ? T1 : t->plain.base < 0 ? 0 : (unsigned)t->plain.base;
}

// Makes the operand addressable by operand_modrm() with T0 free.
static void mem_settle(struct translation *t)
{
    if (t->is_plain ? t->plain.base == T0 || t->plain.index == T0 || t->plain.segment || t->plain.addr32 : !t->based || t->based_on == T0)
        mem_combine(t);
}

// The same where T0 is not needed before the access.
static void mem_at_t0(struct translation *t)
{
    if (t->based || t->is_plain)
        return;
    t->based = true;
    t->based_on = T0;
    t->based_disp = 0;
}

static void store_sized(struct translation *t, unsigned size, unsigned src) // mov [operand], src
{
    struct asm_buf *a = &t->a;
    if (size == 2)
        a8(a, 0x66);
    a_rex(a, size, src, operand_index(t), operand_base(t), 0);
    a8(a, 0x89);
    operand_modrm(t, src);
}

void load_sized(struct translation *t, unsigned size, unsigned dst) // dst = zero-extended [operand]
{
    struct asm_buf *a = &t->a;
    if (size == 2) {
        a_rex(a, 4, dst, operand_index(t), operand_base(t), 0);
        a_bytes(a, "\x0f\xb7", 2);
    } else {
        a_rex(a, size, dst, operand_index(t), operand_base(t), 0);
        a8(a, 0x8b);
    }
    operand_modrm(t, dst);
}

void emit_push(struct translation *t, unsigned size, int kind, uint64_t value)
{
    struct asm_buf *a = &t->a;
    struct ea ea = stack_ea(t, -(int64_t)size);
    mem_begin(t, &ea, size, true, false);
    bool number = kind == PUSH_IMM || kind == PUSH_RIP, short_imm = number && (int64_t)value == (int32_t)value && size == 8;
    a->fixed |= kind == PUSH_RIP && (short_imm || size != 8);
    if (short_imm || (kind == PUSH_REG && host_reg((unsigned)value) != HOMED))
        mem_at_t0(t);
    else
        mem_settle(t);
    if (kind == PUSH_REG)
        store_sized(t, size, guest_in(t, (unsigned)value, T0));
    else if (short_imm) {
        a_rex(a, 8, 0, operand_index(t), operand_base(t), 0);
        a8(a, 0xc7);
        operand_modrm(t, 0);
        a32(a, (uint32_t)value);
    } else {
        if (kind == PUSH_RIP)
            a_mov_rip(a, T0, value);
        else if (kind == PUSH_IMM)
            a_mov_imm(a, T0, value);
        else
            a_load_abs(a, 8, T0, DBT(t, tmp));
        store_sized(t, size, T0);
    }
    rsp_change(t, -(int32_t)size);
}

// dst = value popped (zero-extended); RSP is not changed yet.
void emit_peek_stack(struct translation *t, unsigned size, unsigned dst)
{
    struct ea ea = stack_ea(t, 0);
    mem_begin(t, &ea, size, false, false);
    mem_at_t0(t);
    load_sized(t, size, dst);
}

void emit_push_insn(struct translation *t, struct ginsn *g)
{
    struct asm_buf *a = &t->a;
    unsigned size = g->z->operand_width / 8u;
    if (t->code_size == 8 && size == 4)
        size = 8;
    struct ea ea;
    unsigned msize;
    if (g->op[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        uint64_t v = g->imm;
        if (g->z->raw.imm.size == 32)
            v = (uint64_t)(int32_t)g->imm;
        emit_push(t, size, PUSH_IMM, size == 8 ? v : size == 4 ? (uint32_t)v : (uint16_t)v);
    } else if (g->op[0].type == ZYDIS_OPERAND_TYPE_REGISTER) {
        unsigned r = g->z->opcode == 0xff ? insn_fields(g).rm : insn_fields(g).opreg;
        emit_push(t, size, PUSH_REG, r);
    } else {
        bool rd, wr;
        mem_operand(g, &ea, &msize, &rd, &wr);
        mem_begin(t, &ea, size, false, false);
        mem_combine(t);
        load_sized(t, size, T0);
        a_store_abs(a, 8, DBT(t, tmp), T0);
        emit_push(t, size, PUSH_TMP, 0);
    }
}

// mov of `size` bytes from T0 into a guest register, upper parts as x86 keeps or clears them
void assign_sized(struct translation *t, unsigned size, unsigned guest)
{
    struct asm_buf *a = &t->a;
    unsigned h = host_reg(guest);
    if (h == HOMED) {
        if (size == 2)
            a8(a, 0x66);
        a_store_abs(a, size == 2 ? 4 : 8, STATE(t, gpr[guest]), T0); // T0 is zero-extended
        return;
    }
    if (size == 2)
        a8(a, 0x66);
    a_mov_rr(a, size == 2 ? 4 : size, h, T0);
}

void emit_pop_insn(struct translation *t, struct ginsn *g)
{
    struct asm_buf *a = &t->a;
    unsigned size = g->z->operand_width / 8u;
    if (t->code_size == 8 && size == 4)
        size = 8;
    bool to_register = g->op[0].type == ZYDIS_OPERAND_TYPE_REGISTER;
    unsigned r = g->z->opcode == 0x8f ? insn_fields(g).rm : insn_fields(g).opreg;
    if (to_register && size == 8 && host_reg(r) != HOMED && r != RSP) {
        emit_peek_stack(t, size, host_reg(r));
        rsp_change(t, (int32_t)size);
        return;
    }
    emit_peek_stack(t, size, T0);
    if (to_register) {
        rsp_change(t, (int32_t)size); // uses T1 only
        assign_sized(t, size, r);       // POP RSP: the popped value wins
        return;
    }
    a_store_abs(a, 8, DBT(t, tmp), T0);
    struct ea ea;
    unsigned msize;
    bool rd, wr;
    mem_operand(g, &ea, &msize, &rd, &wr);
    if (ea.base == RSP) // the address uses RSP after the pop
        ea.disp += size;
    mem_begin(t, &ea, size, true, false);
    mem_combine(t);
    a_load_abs(a, 8, T0, DBT(t, tmp));
    store_sized(t, size, T0);
    stack_adjust(t, (int32_t)size);
}

void emit_leave(struct translation *t, struct ginsn *g)
{
    struct asm_buf *a = &t->a;
    unsigned size = g->z->operand_width / 8u;
    if (t->code_size == 8 && size == 4)
        size = 8;
    struct ea ea = stack_ea(t, 0);
    ea.base = RBP;
    mem_begin(t, &ea, size, false, false);
    mem_settle(t);
    load_sized(t, size, T0);
    // RSP = RBP (in the stack's width) + size, then RBP = popped
    unsigned width = ea.addr_size;
    if (width == 2) {
        a_lea(a, 4, T1, H_13, -1, 1, (int32_t)size);
        a8(a, 0x66);
        a_mov_rr(a, 4, H_12, T1);
    } else {
        a_lea(a, width, H_12, H_13, -1, 1, (int32_t)size);
    }
    assign_sized(t, size, RBP);
}
