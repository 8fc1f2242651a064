// Instructions gone in 64-bit mode, and ENTER: those with no short native sequence (SDM 2A, 2B).
#include "cpu/internal.h"

// ---- PUSHA POPA ENTER BOUND

void op_pusha(struct vcpu *v, const struct insn *in)
{
    unsigned size = in->op_size;
    uint64_t mask = cpu_stack_mask(v), rsp = v->s.gpr[RSP], la[8];
    for (unsigned i = 0; i < 8; i++) {
        la[i] = cpu_linear(v, SEG_SS, (rsp - (i + 1) * size) & mask, size, true);
        if (alignment_checked(v) && (la[i] & (size - 1)))
            cpu_throw_error(v, EXC_AC, 0);
        mmu_check(v, la[i], size, ACC_WRITE | mmu_acc(v));
    }
    for (unsigned i = 0; i < 8; i++)
        cpu_write(v, SEG_SS, (rsp - (i + 1) * size) & mask, size, v->s.gpr[RAX + i]);
    v->s.gpr[RSP] = stack_merge(rsp, rsp - 8 * size, mask);
    advance(v, in);
}

void op_popa(struct vcpu *v, const struct insn *in)
{
    unsigned size = in->op_size;
    uint64_t mask = cpu_stack_mask(v), rsp = v->s.gpr[RSP];
    for (unsigned i = 0; i < 8; i++) { // DI first; what was popped before a fault stays so
        uint64_t value = cpu_read(v, SEG_SS, (rsp + i * size) & mask, size);
        if (7 - i != RSP)
            gpr_write(v, 7 - i, size, value);
    }
    v->s.gpr[RSP] = stack_merge(rsp, rsp + 8 * size, mask);
    advance(v, in);
}

static void require_aligned(struct vcpu *v, uint64_t rsp, unsigned size)
{
    if (alignment_checked(v) && cpu_linear(v, SEG_SS, rsp, size, true) & (size - 1))
        cpu_throw_error(v, EXC_AC, 0);
}

void op_enter(struct vcpu *v, const struct insn *in)
{
    unsigned size = in->op_size, frame_size = in->imm & 0xffff, level = in->imm >> 16 & 31;
    struct stack st;
    stack_current(v, &st);
    uint64_t rbp = v->s.gpr[RBP];
    require_aligned(v, (st.rsp - size) & st.mask, size);
    stack_push(v, &st, size, rbp);
    uint64_t frame = st.rsp;
    for (unsigned i = 1; i < level; i++) {
        rbp = stack_merge(rbp, rbp - size, st.mask);
        stack_push(v, &st, size, cpu_read(v, SEG_SS, rbp & st.mask, size));
    }
    if (level)
        stack_push(v, &st, size, frame);
    uint64_t rsp = stack_merge(st.rsp, st.rsp - frame_size, st.mask);
    // #SS, #AC or #PF if a write at the final stack pointer would fault
    require_aligned(v, rsp & st.mask, size);
    mmu_check(v, cpu_linear(v, SEG_SS, rsp & st.mask, size, true), size, ACC_WRITE | mmu_acc(v));
    v->s.gpr[RSP] = rsp;
    gpr_write(v, RBP, size, frame);
    advance(v, in);
}

void op_bound(struct vcpu *v, const struct insn *in)
{
    unsigned size = in->op_size;
    uint64_t ea = cpu_effective_address(v, in);
    uint64_t lower = cpu_read(v, in->sreg, ea, size);
    uint64_t index = gpr_read(v, in->reg, size);
    bool below = size == 2 ? (int16_t)index < (int16_t)lower : (int32_t)index < (int32_t)lower;
    if (below && !cpu_model_is_amd(v->model)) // AMD's read both bounds first
        cpu_throw(v, EXC_BR);
    uint64_t upper = cpu_read(v, in->sreg, (ea + size) & size_mask(in->addr_size), size);
    if (below || (size == 2 ? (int16_t)index > (int16_t)upper : (int32_t)index > (int32_t)upper))
        cpu_throw(v, EXC_BR);
    advance(v, in);
}

// ---- decimal arithmetic

static uint8_t al(const struct vcpu *v)
{
    return v->s.gpr[RAX];
}

static uint8_t ah(const struct vcpu *v)
{
    return v->s.gpr[RAX] >> 8;
}

static void set_ax(struct vcpu *v, uint8_t high, uint8_t low)
{
    v->s.gpr[RAX] = (v->s.gpr[RAX] & ~0xffffull) | (unsigned)high << 8 | low;
}

// SF, ZF and PF of a byte; CF, AF and OF as given. The manual leaves some of them undefined for each
// instruction; those come out as on a Zen processor: as the additions inside would set them.
static void finish(struct vcpu *v, const struct insn *in, uint8_t result, bool cf, bool af, bool of)
{
    uint64_t flags = v->s.rflags & ~(uint64_t)FL_ARITH;
    flags |= result & 0x80 ? FL_SF : 0;
    flags |= result == 0 ? FL_ZF : 0;
    flags |= __builtin_parity(result) ? 0 : FL_PF;
    flags |= (cf ? FL_CF : 0) | (af ? FL_AF : 0) | (of ? FL_OF : 0);
    v->s.rflags = flags;
    advance(v, in);
}

static void decimal_adjust(struct vcpu *v, const struct insn *in, bool subtract)
{
    uint8_t old = al(v), result = old;
    bool old_cf = v->s.rflags & FL_CF, cf = false, af = (old & 15) > 9 || (v->s.rflags & FL_AF);
    if (af) {
        cf = old_cf || (subtract ? old < 6 : old > 0xf9);
        result = subtract ? result - 6 : result + 6;
    }
    if (old > 0x99 || old_cf) {
        result = subtract ? result - 0x60 : result + 0x60;
        cf = true;
    } else if (!subtract) {
        cf = false; // SDM 2A DAA: the second step decides
    }
    set_ax(v, ah(v), result);
    finish(v, in, result, cf, af, (subtract ? old & ~result : ~old & result) & 0x80);
}

void op_daa(struct vcpu *v, const struct insn *in)
{
    decimal_adjust(v, in, false);
}

void op_das(struct vcpu *v, const struct insn *in)
{
    decimal_adjust(v, in, true);
}

// AX is adjusted as a whole: a carry out of AL goes into AH (SDM 2A AAA, AAS).
static void ascii_adjust(struct vcpu *v, const struct insn *in, bool subtract)
{
    uint16_t ax = v->s.gpr[RAX];
    bool adjust = (ax & 15) > 9 || (v->s.rflags & FL_AF);
    if (adjust)
        ax = subtract ? ax - 0x106 : ax + 0x106;
    set_ax(v, ax >> 8, ax & 15);
    finish(v, in, ax, adjust, adjust, false);
    v->s.rflags &= ~(uint64_t)(FL_SF | FL_ZF);
    v->s.rflags |= (ax & 0x8000 ? FL_SF : 0) | (ax == 0 ? FL_ZF : 0); // of the 16-bit sum, before AL is cut
}

void op_aaa(struct vcpu *v, const struct insn *in)
{
    ascii_adjust(v, in, false);
}

void op_aas(struct vcpu *v, const struct insn *in)
{
    ascii_adjust(v, in, true);
}

void op_aam(struct vcpu *v, const struct insn *in)
{
    uint8_t divisor = in->imm;
    if (!divisor)
        cpu_throw(v, EXC_DE);
    uint8_t low = al(v) % divisor;
    set_ax(v, al(v) / divisor, low);
    finish(v, in, low, false, false, false);
}

void op_aad(struct vcpu *v, const struct insn *in)
{
    uint8_t old = al(v), add = ah(v) * (uint8_t)in->imm, low = old + add;
    set_ax(v, 0, low);
    finish(v, in, low, low < old, (old ^ add ^ low) & 0x10, (old ^ low) & (add ^ low) & 0x80);
}
