// Far control transfers: CALL, JMP, RET and IRET to other segments, through call gates and task gates, and
// between privilege levels (SDM 2A CALL, IRET, JMP; 2B RET; 3A 5.8).
//
// Everything is read and checked first; then CS, RIP, CPL, SS and RSP change together.
#include "cpu/internal.h"

static _Noreturn void gp(struct vcpu *v, uint32_t error)
{
    cpu_throw_error(v, EXC_GP, error);
}

uint64_t code_check_rip(struct vcpu *v, const struct segment *cs, uint64_t rip, uint32_t ext)
{
    if (cpu_long(v) && (cs->attr & SEG_L)) {
        if (!is_canonical(rip))
            gp(v, ext);
        return rip;
    }
    rip = (uint32_t)rip;
    if (rip > cs->limit)
        gp(v, ext);
    return rip;
}

// A near branch out of the code segment, or to an address that is not canonical (SDM 2A CALL, JMP; 2B RET). Where the
// return address can't be stored either, AMD's processors (seen on Zen 3) raise that fault, Intel's as documented this one.
void op_bad_branch(struct vcpu *v, const struct insn *in)
{
    if (in->imm && cpu_model_is_amd(v->model)) {
        uint64_t offset = (v->s.gpr[RSP] - in->imm) & cpu_stack_mask(v);
        mmu_check(v, cpu_linear(v, SEG_SS, offset, (unsigned)in->imm, true), (unsigned)in->imm, mmu_acc(v) | ACC_WRITE);
    }
    gp(v, 0);
}

// CS as real and v8086 mode load it.
static void real_code(struct vcpu *v, uint16_t selector, struct segment *cs)
{
    *cs = v->s.seg[SEG_CS];
    if (cpu_v86(v))
        segment_set_v86(cs, selector);
    else
        segment_set_real(cs, selector);
}

// Presence and the L and D bits of a code segment about to be entered; fills the hidden part.
static void finish_code(struct vcpu *v, struct descriptor *d, uint16_t selector, unsigned cpl,
                        struct segment *cs)
{
    if (cpu_long(v) && descriptor_l(d) && descriptor_db(d))
        gp(v, selector & 0xfffc);
    if (!descriptor_present(d))
        cpu_throw_error(v, EXC_NP, selector & 0xfffc);
    descriptor_set_accessed(v, d);
    descriptor_to_segment(d, (selector & ~3u) | cpl, false, cs);
}

// ---- CALL and JMP

struct far_pointer {
    uint64_t offset;
    uint16_t selector;
    unsigned size; // bytes of the offset and of what CALL pushes
};

// AMD processors have no m16:64 form: REX.W is ignored (APM 3, CALL far).
static struct far_pointer far_operand(struct vcpu *v, const struct insn *in)
{
    struct far_pointer p = {.size = in->op_size};
    if (!in->is_mem) {
        p.offset = in->imm & size_mask(p.size);
        p.selector = in->imm_sel;
        return p;
    }
    if (p.size == 8 && cpu_model_is_amd(v->model))
        p.size = 4;
    uint64_t ea = cpu_effective_address(v, in);
    p.offset = cpu_read(v, in->sreg, ea, p.size);
    p.selector = cpu_read(v, in->sreg, (ea + p.size) & size_mask(in->addr_size), 2);
    return p;
}

static void enter_code(struct vcpu *v, const struct segment *cs, uint64_t rip, unsigned cpl, bool call,
                       unsigned size, uint64_t next)
{
    if (call) {
        struct stack st;
        stack_current(v, &st);
        stack_push(v, &st, size, v->s.seg[SEG_CS].sel);
        stack_push(v, &st, size, next);
        v->s.gpr[RSP] = st.rsp;
    }
    code_commit(v, cs, rip, cpl);
}

static void direct(struct vcpu *v, struct descriptor *d, const struct far_pointer *p, bool call,
                   uint64_t next)
{
    struct segment cs;
    unsigned cpl = v->s.cpl, dpl = descriptor_dpl(d), rpl = p->selector & 3;
    bool allowed = descriptor_is_conforming(d) ? dpl <= cpl : rpl <= cpl && dpl == cpl;
    if (!allowed)
        gp(v, p->selector & 0xfffc);
    finish_code(v, d, p->selector, cpl, &cs);
    enter_code(v, &cs, code_check_rip(v, &cs, p->offset, 0), cpl, call, p->size, next);
}

// CALL through a gate to a more privileged level: a new stack from the TSS, with parameters copied outside
// long mode.
static void gate_inner(struct vcpu *v, const struct descriptor *gate, const struct segment *cs, uint64_t rip,
                       unsigned dpl, unsigned size, uint64_t next)
{
    struct stack old, st;
    uint64_t parameter[31];
    unsigned count = size == 8 ? 0 : gate->raw >> 32 & 31;
    stack_current(v, &old);
    if (size == 8) {
        struct segment null_ss;
        uint64_t rsp = task_stack64(v, 4 + 8 * dpl, 0);
        segment_set_null_ss(&null_ss, dpl, dpl);
        stack_new(&st, &null_ss, rsp, dpl, 0, true);
    } else {
        task_inner_stack(v, dpl, 0, &st);
    }
    for (unsigned i = 0; i < count; i++)
        parameter[i] = stack_read(v, &old, i * size, size);
    stack_push(v, &st, size, v->s.seg[SEG_SS].sel);
    stack_push(v, &st, size, v->s.gpr[RSP]);
    while (count--)
        stack_push(v, &st, size, parameter[count]);
    stack_push(v, &st, size, v->s.seg[SEG_CS].sel);
    stack_push(v, &st, size, next);
    v->s.seg[SEG_SS] = st.ss;
    v->s.gpr[RSP] = st.rsp;
    code_commit(v, cs, rip, dpl);
}

static void call_gate(struct vcpu *v, uint16_t selector, struct descriptor *gate, bool call, uint64_t next)
{
    struct descriptor d;
    struct segment cs;
    unsigned cpl = v->s.cpl;
    bool is_long = cpu_long(v);
    if (!descriptor_present(gate))
        cpu_throw_error(v, EXC_NP, selector & 0xfffc);
    if (is_long && (!descriptor_fetch_high(v, selector, gate) || (gate->high >> 40 & 0x1f)))
        gp(v, selector & 0xfffc);
    unsigned size = is_long ? 8 : descriptor_type(gate) == SYS_CALL ? 4 : 2;
    uint16_t target = gate->raw >> 16;
    uint64_t rip = (gate->raw & 0xffff) | (size == 2 ? 0 : gate->raw >> 32 & 0xffff0000) | gate->high << 32;
    if (is_null(target))
        gp(v, 0);
    if (!descriptor_fetch(v, target, &d) || !descriptor_is_code(&d) || descriptor_dpl(&d) > cpl)
        gp(v, target & 0xfffc);
    if (is_long && (!descriptor_l(&d) || descriptor_db(&d)))
        gp(v, target & 0xfffc);
    unsigned dpl = descriptor_dpl(&d);
    bool inner = !descriptor_is_conforming(&d) && dpl < cpl;
    if (inner && !call)
        gp(v, target & 0xfffc);
    finish_code(v, &d, target, inner ? dpl : cpl, &cs);
    rip = code_check_rip(v, &cs, rip, 0);
    if (inner) {
        gate_inner(v, gate, &cs, rip, dpl, size, next);
    } else if (call && is_long) {
        struct stack st; // the stack is that of 64-bit code already
        stack_new(&st, &v->s.seg[SEG_SS], v->s.gpr[RSP], cpl, 0, true);
        stack_push(v, &st, 8, v->s.seg[SEG_CS].sel);
        stack_push(v, &st, 8, next);
        v->s.gpr[RSP] = st.rsp;
        code_commit(v, &cs, rip, cpl);
    } else {
        enter_code(v, &cs, rip, cpl, call, size, next);
    }
}

static void system_transfer(struct vcpu *v, uint16_t selector, struct descriptor *d, bool call, uint64_t next)
{
    enum task_cause cause = call ? TASK_CALL : TASK_JMP;
    unsigned type = descriptor_type(d), dpl = descriptor_dpl(d);
    bool valid = type == SYS_CALL || (!cpu_long(v) && (type == SYS_CALL16 || type == SYS_TASK_GATE ||
                                                       type == SYS_TSS16_AVAIL || type == SYS_TSS_AVAIL));
    if (!valid || dpl < v->s.cpl || dpl < (selector & 3u))
        gp(v, selector & 0xfffc);
    if (type == SYS_CALL || type == SYS_CALL16) {
        call_gate(v, selector, d, call, next);
        return;
    }
    if ((type == SYS_TSS_AVAIL || type == SYS_TSS16_AVAIL) && (selector & 4))
        gp(v, selector & 0xfffc); // a TSS lives in the GDT
    if (!descriptor_present(d))
        cpu_throw_error(v, EXC_NP, selector & 0xfffc);
    if (type == SYS_TASK_GATE)
        task_gate(v, d, cause, next, false, 0, false, 0);
    else
        task_switch(v, selector, d, cause, next, false, 0, false, 0);
}

static void far_transfer(struct vcpu *v, const struct insn *in, bool call)
{
    struct descriptor d;
    struct far_pointer p = far_operand(v, in);
    uint64_t next = next_rip(v, in);
    if (!cpu_protected(v) || cpu_v86(v)) {
        struct segment cs;
        real_code(v, p.selector, &cs);
        enter_code(v, &cs, code_check_rip(v, &cs, p.offset, 0), v->s.cpl, call, p.size, next);
        return;
    }
    if (is_null(p.selector))
        gp(v, 0);
    if (!descriptor_fetch(v, p.selector, &d))
        gp(v, p.selector & 0xfffc);
    if (descriptor_is_code(&d))
        direct(v, &d, &p, call, next);
    else
        system_transfer(v, p.selector, &d, call, next);
}

void op_call_far(struct vcpu *v, const struct insn *in)
{
    far_transfer(v, in, true);
}

void op_jmp_far(struct vcpu *v, const struct insn *in)
{
    far_transfer(v, in, false);
}

// ---- RET and IRET

// CS of a return: RPL is the new CPL (SDM 2B RET, 2A IRET).
static void return_code(struct vcpu *v, uint16_t selector, struct segment *cs)
{
    struct descriptor d;
    uint32_t error = selector & 0xfffc;
    unsigned rpl = selector & 3;
    if (!error)
        gp(v, 0);
    if (!descriptor_fetch(v, selector, &d) || !descriptor_is_code(&d) || rpl < v->s.cpl)
        gp(v, error);
    unsigned dpl = descriptor_dpl(&d);
    if (descriptor_is_conforming(&d) ? dpl > rpl : dpl != rpl)
        gp(v, error);
    finish_code(v, &d, selector, rpl, cs);
}

// SS of a return that pops it. Null is for 64-bit code below CPL 3.
static void return_stack(struct vcpu *v, uint16_t selector, unsigned cpl, bool to64, struct segment *ss)
{
    if (is_null(selector) && to64 && cpl != 3 && (selector & 3) == cpl)
        segment_set_null_ss(ss, selector, cpl);
    else
        segment_check_ss(v, selector, cpl, ss);
}

// The stack pointer popped: a 16-bit stack gets 16 bits of it, the rest stays from before.
static uint64_t popped_rsp(const struct vcpu *v, uint64_t value, bool to64, const struct segment *ss)
{
    return to64 ? value : stack_merge(v->s.gpr[RSP], value, ss->attr & SEG_DB ? 0xffffffffu : 0xffffu);
}

void op_ret_far(struct vcpu *v, const struct insn *in)
{
    struct stack st;
    struct segment cs, ss;
    unsigned size = in->op_size;
    uint16_t release = in->imm;
    stack_current(v, &st);
    uint64_t rip = stack_read(v, &st, 0, size);
    uint16_t selector = stack_read(v, &st, size, size);
    uint64_t rsp = stack_merge(st.rsp, st.rsp + 2 * size + release, st.mask);
    if (!cpu_protected(v) || cpu_v86(v)) {
        real_code(v, selector, &cs);
        rip = code_check_rip(v, &cs, rip, 0);
        v->s.gpr[RSP] = rsp;
        code_commit(v, &cs, rip, v->s.cpl);
        return;
    }
    return_code(v, selector, &cs);
    unsigned cpl = selector & 3;
    bool to64 = cpu_long(v) && (cs.attr & SEG_L);
    if (cpl == v->s.cpl) {
        rip = code_check_rip(v, &cs, rip, 0);
        v->s.gpr[RSP] = rsp;
        code_commit(v, &cs, rip, cpl);
        return;
    }
    uint64_t outer_rsp = stack_read(v, &st, 2 * size + release, size);
    uint16_t outer_ss = stack_read(v, &st, 3 * size + release, size);
    return_stack(v, outer_ss, cpl, to64, &ss);
    rip = code_check_rip(v, &cs, rip, 0);
    v->s.gpr[RSP] = popped_rsp(v, outer_rsp + release, to64, &ss);
    v->s.seg[SEG_SS] = ss;
    code_commit(v, &cs, rip, cpl);
    segments_drop_inner(v);
}

// Flags IRET takes from the image at this CPL and operand size in protected mode.
static uint64_t iret_flags_mask(const struct vcpu *v, unsigned size)
{
    uint64_t mask = FL_ARITH | FL_TF | FL_DF | FL_NT;
    if (size > 2)
        mask |= FL_RF | FL_AC | FL_ID;
    if (v->s.cpl <= cpu_iopl(v))
        mask |= FL_IF;
    if (v->s.cpl == 0)
        mask |= FL_IOPL | (size > 2 ? FL_VIF | FL_VIP : 0);
    return mask;
}

static void iret_real(struct vcpu *v, const struct insn *in)
{
    struct stack st;
    struct segment cs;
    unsigned size = in->op_size;
    uint64_t mask =
        FL_ARITH | FL_TF | FL_DF | FL_NT | FL_IF | FL_IOPL | (size > 2 ? FL_RF | FL_AC | FL_ID : 0);
    uint64_t old = cpu_rflags(v);
    bool vme = false;
    stack_current(v, &st);
    if (cpu_v86(v)) {
        mask &= ~(uint64_t)FL_IOPL;
        vme = cpu_iopl(v) < 3;
        if (vme && (!(v->s.cr4 & CR4_VME) || size != 2))
            gp(v, 0);
    }
    uint64_t rip = stack_read(v, &st, 0, size);
    uint16_t selector = stack_read(v, &st, size, size);
    uint64_t image = stack_read(v, &st, 2 * size, size);
    if (vme) { // SDM 3B 20.3.3.1: IF of the image is VIF
        if ((image & FL_TF) || ((image & FL_IF) && (old & FL_VIP)))
            gp(v, 0);
        mask = (mask & ~(uint64_t)FL_IF) | FL_VIF;
        image = image & FL_IF ? image | FL_VIF : image & ~(uint64_t)FL_VIF;
    }
    real_code(v, selector, &cs);
    rip = code_check_rip(v, &cs, rip, 0);
    v->s.gpr[RSP] = stack_merge(st.rsp, st.rsp + 3 * size, st.mask);
    cpu_set_rflags(v, (old & ~(mask | FL_RF)) | (image & mask));
    code_commit(v, &cs, rip, v->s.cpl);
}

static void iret_to_v86(struct vcpu *v, const struct stack *st, uint64_t rip, uint16_t cs, uint64_t flags)
{
    static const uint8_t order[5] = {SEG_SS, SEG_ES, SEG_DS, SEG_FS, SEG_GS};
    uint16_t selector[5];
    struct segment code;
    uint64_t rsp = stack_read(v, st, 12, 4);
    for (unsigned i = 0; i < 5; i++)
        selector[i] = stack_read(v, st, 16 + 4 * i, 4);
    segment_set_v86(&code, cs);
    rip = code_check_rip(v, &code, rip, 0);
    for (unsigned i = 0; i < 5; i++)
        segment_set_v86(&v->s.seg[order[i]], selector[i]);
    v->s.gpr[RSP] = (uint32_t)rsp;
    cpu_set_rflags(v, flags);
    code_commit(v, &code, rip, 3);
}

// Reads RIP, CS, RFLAGS and, from 64-bit code, RSP and SS. The common case is one access.
static void iret_frame(struct vcpu *v, const struct stack *st, unsigned size, uint64_t frame[5])
{
    unsigned count = st->flat64 ? 5 : 3;
    if (size == 8 && st->flat64 && !alignment_checked(v) && is_canonical(st->rsp) &&
        is_canonical(st->rsp + 39)) {
        mmu_read(v, st->rsp, frame, 40, ACC_READ | st->acc);
        return;
    }
    for (unsigned i = 0; i < count; i++)
        frame[i] = stack_read(v, st, i * size, size);
}

static void iret_protected(struct vcpu *v, const struct insn *in)
{
    struct stack st;
    struct segment cs, ss;
    uint64_t frame[5];
    unsigned size = in->op_size;
    stack_current(v, &st);
    iret_frame(v, &st, size, frame);
    uint64_t rip = frame[0], image = frame[2];
    uint16_t selector = frame[1];
    if (size == 4 && (image & FL_VM) && v->s.cpl == 0 && !cpu_long(v)) {
        iret_to_v86(v, &st, rip, selector, image);
        return;
    }
    return_code(v, selector, &cs);
    unsigned cpl = selector & 3;
    bool outer = cpl != v->s.cpl, to64 = cpu_long(v) && (cs.attr & SEG_L);
    uint64_t rsp = stack_merge(st.rsp, st.rsp + 3 * size, st.mask);
    if (outer && !st.flat64) {
        frame[3] = stack_read(v, &st, 3 * size, size);
        frame[4] = stack_read(v, &st, 4 * size, size);
    }
    if (outer || st.flat64) {
        return_stack(v, frame[4], cpl, to64, &ss);
        rsp = popped_rsp(v, frame[3], to64, &ss);
    }
    rip = code_check_rip(v, &cs, rip, 0);
    uint64_t mask = iret_flags_mask(v, size);
    if (outer || st.flat64)
        v->s.seg[SEG_SS] = ss;
    v->s.gpr[RSP] = rsp;
    cpu_set_rflags(v, (cpu_rflags(v) & ~(mask | FL_RF)) | (image & mask));
    code_commit(v, &cs, rip, cpl);
    if (outer)
        segments_drop_inner(v);
}

// NMIs are unblocked even if the instruction faults (SDM 3A 6.7.1).
void op_iret(struct vcpu *v, const struct insn *in)
{
    v->s.shadow &= ~SHADOW_NMI;
    if (!cpu_protected(v) || cpu_v86(v)) {
        iret_real(v, in);
    } else if (v->s.rflags & FL_NT) {
        if (cpu_long(v))
            gp(v, 0);
        task_return(v, next_rip(v, in));
    } else {
        iret_protected(v, in);
    }
}
