// Exceptions and interrupts: delivery through the IVT of real mode and the IDT of protected and long mode,
// the order of pending events, and the instructions that call handlers (SDM 2A INT n; 3A chapter 6; 3B 20.3
// for VME).
//
// event_enter() throws like an instruction and leaves the state alone when it does. cpu_deliver() catches
// what it throws: it lends v->throw_buf to itself, combines the exceptions (3A table 6-5) and tries again, so
// that the pair "first, second" becomes the second, a double fault, or a shutdown.
#include "cpu/internal.h"
#include "cpu/lapic.h"
#include "cpu/planted.h"

// ---- delivery in each mode

static uint64_t handler_flags(uint64_t flags, bool interrupt_gate)
{
    return flags & ~(uint64_t)(FL_TF | FL_NT | FL_RF | FL_VM | (interrupt_gate ? FL_IF : 0));
}

static void enter_real(struct vcpu *v, unsigned vector, uint32_t ext, uint64_t rip)
{
    struct stack st;
    struct segment cs = v->s.seg[SEG_CS];
    uint64_t flags = cpu_rflags(v);
    if (vector * 4 + 3 > v->s.idtr.limit)
        cpu_throw_error(v, EXC_GP, vector * 8 + ERROR_IDT + ext);
    uint32_t entry = system_read(v, (uint32_t)(v->s.idtr.base + vector * 4), 4);
    stack_current(v, &st);
    stack_push(v, &st, 2, flags);
    stack_push(v, &st, 2, cs.sel);
    stack_push(v, &st, 2, rip);
    segment_set_real(&cs, entry >> 16);
    uint64_t target = code_check_rip(v, &cs, entry & 0xffff, ext);
    v->s.gpr[RSP] = st.rsp;
    cpu_set_rflags(v, flags & ~(uint64_t)(FL_IF | FL_TF | FL_RF | FL_AC));
    code_commit(v, &cs, target, v->s.cpl);
}

// The handler's code segment, checked as far as both IDT forms agree. Returns its DPL.
static unsigned handler_code(struct vcpu *v, uint16_t selector, uint32_t ext, struct descriptor *d)
{
    uint32_t error = (selector & 0xfffc) | ext;
    if (is_null(selector))
        cpu_throw_error(v, EXC_GP, ext);
    if (!descriptor_fetch(v, selector, d) || !descriptor_is_code(d) || descriptor_dpl(d) > v->s.cpl)
        cpu_throw_error(v, EXC_GP, error);
    if (!descriptor_present(d))
        cpu_throw_error(v, EXC_NP, error);
    return descriptor_dpl(d);
}

static void check_gate(struct vcpu *v, uint64_t raw, enum event_kind kind, uint32_t error)
{
    if (kind == EVENT_SOFT && (raw >> 45 & 3) < v->s.cpl)
        cpu_throw_error(v, EXC_GP, error);
    if (!(raw >> 47 & 1))
        cpu_throw_error(v, EXC_NP, error);
}

// SDM 3A 6.14. The frame is always SS RSP RFLAGS CS RIP, on a stack aligned to 16.
static void enter_long(struct vcpu *v, unsigned vector, enum event_kind kind, uint32_t ext, bool rf,
                       bool has_error, uint32_t error, uint64_t rip)
{
    struct cpu_state *s = &v->s;
    struct descriptor d;
    struct segment cs;
    uint64_t gate[2];
    uint32_t idt_error = vector * 8 + ERROR_IDT + ext;
    if (vector * 16 + 15 > s->idtr.limit)
        cpu_throw_error(v, EXC_GP, idt_error);
    mmu_read(v, s->idtr.base + vector * 16, gate, 16, ACC_READ | ACC_SYSTEM);
    unsigned type = gate[0] >> 40 & 0x1f;
    if (type != SYS_INT && type != SYS_TRAP)
        cpu_throw_error(v, EXC_GP, idt_error);
    check_gate(v, gate[0], kind, idt_error);

    uint16_t selector = gate[0] >> 16;
    unsigned dpl = handler_code(v, selector, ext, &d), cpl = descriptor_is_conforming(&d) ? s->cpl : dpl;
    if (!descriptor_l(&d) || descriptor_db(&d))
        cpu_throw_error(v, EXC_GP, (selector & 0xfffc) | ext);
    uint64_t target = (gate[0] & 0xffff) | (gate[0] >> 32 & 0xffff0000) | gate[1] << 32;
    if (!is_canonical(target))
        cpu_throw_error(v, EXC_GP, ext);

    unsigned ist = gate[0] >> 32 & 7;
    uint64_t rsp = s->gpr[RSP];
    if (ist)
        rsp = task_stack64(v, 0x1c + 8 * ist, ext);
    else if (cpl != s->cpl)
        rsp = task_stack64(v, 4 + 8 * cpl, ext);
    rsp &= ~15ull;

    uint64_t flags = cpu_rflags(v);
    uint64_t frame[6] = {
        error, rip, s->seg[SEG_CS].sel, rf ? flags | FL_RF : flags, s->gpr[RSP], s->seg[SEG_SS].sel};
    unsigned skip = has_error ? 0 : 1, size = 48 - 8 * skip;
    rsp -= size;
    if (!is_canonical(rsp) || !is_canonical(rsp + size - 1))
        cpu_throw_error(v, EXC_SS, ext);
    descriptor_set_accessed(v, &d);
    mmu_write(v, rsp, &frame[skip], size, ACC_WRITE | (cpl == 3 ? ACC_USER : 0));

    if (cpl != s->cpl)
        segment_set_null_ss(&s->seg[SEG_SS], cpl, cpl);
    s->gpr[RSP] = rsp;
    cpu_set_rflags(v, handler_flags(flags, type == SYS_INT));
    descriptor_to_segment(&d, (selector & 0xfffc) | cpl, false, &cs);
    code_commit(v, &cs, target, cpl);
}

static void push_frame(struct vcpu *v, struct stack *st, unsigned size, uint64_t flags, uint64_t rip)
{
    stack_push(v, st, size, flags);
    stack_push(v, st, size, v->s.seg[SEG_CS].sel);
    stack_push(v, st, size, rip);
}

// SDM 3A 6.12.1, and 3B 20.3 when the interrupted program is in v8086 mode.
static void enter_protected(struct vcpu *v, unsigned vector, enum event_kind kind, uint32_t ext, bool rf,
                            bool has_error, uint32_t error, uint64_t rip)
{
    static const uint8_t v86_order[4] = {SEG_GS, SEG_FS, SEG_DS, SEG_ES};
    struct cpu_state *s = &v->s;
    struct descriptor d, gate = {0};
    struct segment cs;
    struct stack st;
    uint32_t idt_error = vector * 8 + ERROR_IDT + ext;
    if (vector * 8 + 7 > s->idtr.limit)
        cpu_throw_error(v, EXC_GP, idt_error);
    gate.raw = system_read(v, (uint32_t)(s->idtr.base + vector * 8), 8);
    unsigned type = descriptor_type(&gate);
    bool is32 = type == SYS_INT || type == SYS_TRAP;
    if (!is32 && type != SYS_INT16 && type != SYS_TRAP16 && type != SYS_TASK_GATE)
        cpu_throw_error(v, EXC_GP, idt_error);
    check_gate(v, gate.raw, kind, idt_error);
    if (type == SYS_TASK_GATE) {
        task_gate(v, &gate, TASK_EVENT, rip, rf, ext, has_error, error);
        return;
    }

    uint16_t selector = gate.raw >> 16;
    bool v86 = cpu_v86(v);
    unsigned size = is32 ? 4 : 2, dpl = handler_code(v, selector, ext, &d);
    unsigned cpl = descriptor_is_conforming(&d) ? s->cpl : dpl;
    if (v86 && cpl != 0) // v8086 mode is left to level 0 only
        cpu_throw_error(v, EXC_GP, (selector & 0xfffc) | ext);
    descriptor_set_accessed(v, &d);
    descriptor_to_segment(&d, (selector & 0xfffc) | cpl, false, &cs);

    bool inner = cpl != s->cpl;
    uint64_t flags = cpu_rflags(v), image = rf ? flags | FL_RF : flags;
    uint64_t target = (gate.raw & 0xffff) | (is32 ? gate.raw >> 32 & 0xffff0000 : 0);
    if (inner)
        task_inner_stack(v, cpl, ext, &st);
    else
        stack_current(v, &st);
    target = code_check_rip(v, &cs, target, ext);
    if (inner) {
        for (unsigned i = 0; v86 && i < 4; i++)
            stack_push(v, &st, size, s->seg[v86_order[i]].sel);
        stack_push(v, &st, size, s->seg[SEG_SS].sel);
        stack_push(v, &st, size, s->gpr[RSP]);
    } else {
        st.error = ext;
    }
    push_frame(v, &st, size, image, rip);
    if (has_error)
        stack_push(v, &st, size, error);

    if (v86) {
        for (unsigned i = 0; i < 4; i++)
            s->seg[v86_order[i]] = (struct segment){.attr = SEG_UNUSABLE};
    }
    if (inner)
        s->seg[SEG_SS] = st.ss;
    s->gpr[RSP] = st.rsp;
    cpu_set_rflags(v, handler_flags(flags, type == SYS_INT || type == SYS_INT16));
    code_commit(v, &cs, target, cpl);
}

// The fault class pushes RF = 1 so that the handler's IRET resumes past an instruction breakpoint; of debug
// exceptions instruction breakpoints and general detect are of that class (SDM 3B 17.3.1.1).
static bool pushes_rf(const struct vcpu *v, unsigned vector, enum event_kind kind)
{
    if (kind != EVENT_FAULT)
        return false;
    return vector != EXC_DB || v->event.breakpoint || ((v->s.dr[6] & DR6_BD) && (v->s.dr[7] & DR7_GD));
}

void event_enter(struct vcpu *v, unsigned vector, enum event_kind kind, bool has_error, uint32_t error,
                 uint64_t rip)
{
    uint32_t ext = kind == EVENT_SOFT ? 0 : ERROR_EXT;
    bool rf = pushes_rf(v, vector, kind);
    vector &= 0xff;
    if (cpu_long(v))
        enter_long(v, vector, kind, ext, rf, has_error, error, rip);
    else if (cpu_protected(v))
        enter_protected(v, vector, kind, ext, rf, has_error, error, rip);
    else
        enter_real(v, vector, ext, rip);
    if (vector == EXC_DB)
        v->s.dr[7] &= ~(uint64_t)DR7_GD;
    if (v->s.shadow & (SHADOW_STI | SHADOW_MOV_SS)) {
        v->s.shadow &= SHADOW_NMI;
        __atomic_and_fetch(&v->requests, ~REQ_SHADOW, __ATOMIC_RELAXED);
    }
}

// ---- combining exceptions

enum exception_class { BENIGN, CONTRIBUTORY, PAGE_FAULT, DOUBLE_FAULT };

static enum exception_class classify(unsigned vector)
{
    switch (vector) {
    case EXC_DE:
    case EXC_TS:
    case EXC_NP:
    case EXC_SS:
    case EXC_GP: return CONTRIBUTORY;
    case EXC_PF: return PAGE_FAULT;
    case EXC_DF: return DOUBLE_FAULT;
    default: return BENIGN;
    }
}

// v->event holds the second exception; makes it what is to be delivered now. False: shutdown.
static bool combine(struct vcpu *v, enum exception_class first)
{
    enum exception_class second = classify(v->event.vector);
    if (v->event.vector == EXC_PF)
        v->s.cr2 = v->event.cr2;
    if (second == BENIGN || first == BENIGN || (first == CONTRIBUTORY && second == PAGE_FAULT))
        return true;
    if (first == DOUBLE_FAULT)
        return false;
    v->event = (struct cpu_event){.vector = EXC_DF, .has_error = 1};
    return true;
}

// Delivers v->event. The loop ends because a chain of exceptions without a double fault is short: benign ones
// are not raised by delivery itself except #DB of a new task and #AC; still it is bounded.
#define MAX_CHAIN 8

static void deliver(struct vcpu *v, enum event_kind first_kind)
{
    void *volatile saved[5];
    volatile enum event_kind kind = first_kind;
    volatile enum exception_class class = BENIGN;
    volatile unsigned chain = 0;
    if (v->x87_hidden)
        cpu_x87_unhide(v);
    for (unsigned i = 0; i < 5; i++)
        saved[i] = v->throw_buf[i];
    if (__builtin_setjmp(v->throw_buf)) {
        kind = EVENT_FAULT;
        if (!combine(v, class) || ++chain == MAX_CHAIN) {
            v->s.activity = ACT_SHUTDOWN;
            goto out;
        }
    }
    class = kind == EVENT_FAULT ? classify(v->event.vector) : BENIGN;
    if (__builtin_expect(v->listener.delivering != NULL, 0))
        v->listener.delivering(v->listener.opaque, kind == EVENT_EXTERNAL);
    event_enter(v, v->event.vector, kind, v->event.has_error, v->event.error, v->s.rip);
out:
    for (unsigned i = 0; i < 5; i++)
        v->throw_buf[i] = saved[i];
}

void cpu_deliver(struct vcpu *v)
{
    if (v->event.none)
        return;
    if (v->event.vector == EXC_PF && !v->event.soft)
        v->s.cr2 = v->event.cr2 + PLANTED(fault_address);
    v->s.activity = ACT_RUNNING;
    deliver(v, v->event.soft ? EVENT_SOFT : EVENT_FAULT);
}

void cpu_interrupt(struct vcpu *v, unsigned vector)
{
    v->event = (struct cpu_event){.vector = vector};
    v->s.activity = ACT_RUNNING;
    deliver(v, EVENT_EXTERNAL);
}

void cpu_nmi(struct vcpu *v)
{
    v->s.shadow |= SHADOW_NMI;
    cpu_interrupt(v, EXC_NMI);
}

// ---- pending events

bool cpu_interruptible(const struct vcpu *v)
{
    return v->s.iflag && !(v->s.shadow & (SHADOW_STI | SHADOW_MOV_SS));
}

static bool pic_pending(const struct vcpu *v)
{
    return v->pic_intr && (!v->lapic || lapic_accepts_pic(v->lapic));
}

static bool interrupt_pending(const struct vcpu *v)
{
    return pic_pending(v) || (v->lapic && lapic_pending(v->lapic) >= 0);
}

// REQ_INTR stays set while an interrupt waits for IF, and while another one waits behind the one taken. It is
// cleared before the chips are asked, so that a request made meanwhile is not lost.
static bool take_interrupt(struct vcpu *v)
{
    if (!cpu_interruptible(v))
        return false;
    __atomic_and_fetch(&v->requests, ~REQ_INTR, __ATOMIC_ACQ_REL);
    int vector = -1;
    if (pic_pending(v))
        vector = v->exits.pic_ack(v->exits.opaque);
    else if (v->lapic && lapic_pending(v->lapic) >= 0)
        vector = lapic_ack(v->lapic);
    if (vector < 0)
        return false;
    cpu_interrupt(v, vector & 0xff);
    if (interrupt_pending(v))
        raise_request(v, REQ_INTR);
    return true;
}

bool cpu_take_pending(struct vcpu *v)
{
    uint32_t requests = __atomic_load_n(&v->requests, __ATOMIC_ACQUIRE);
    if (v->s.activity == ACT_SHUTDOWN)
        return false;
    if ((requests & REQ_NMI) && !(v->s.shadow & (SHADOW_NMI | SHADOW_MOV_SS))) {
        __atomic_and_fetch(&v->requests, ~REQ_NMI, __ATOMIC_ACQ_REL);
        cpu_nmi(v);
        return true;
    }
    return (requests & REQ_INTR) && take_interrupt(v);
}

// ---- INT n, INT3, INT1, INTO

// VME: a clear bit in the TSS's redirection bitmap sends INT n to the 8086 program's own handler (SDM
// 3B 20.3.3).
static bool redirected(struct vcpu *v, unsigned vector)
{
    const struct segment *tr = &v->s.tr;
    if (!(v->s.cr4 & CR4_VME))
        return false;
    if (!task_is_32(v) || tr->limit < 0x67)
        cpu_throw_error(v, EXC_GP, 0);
    uint32_t map = (uint32_t)system_read(v, (uint32_t)(tr->base + 0x66), 2), at = map - 32 + vector / 8;
    if (map < 32 || at > tr->limit)
        cpu_throw_error(v, EXC_GP, 0);
    return !(system_read(v, (uint32_t)(tr->base + at), 1) >> (vector & 7) & 1);
}

static void int_redirect(struct vcpu *v, unsigned vector, uint64_t rip)
{
    struct stack st;
    struct segment cs;
    uint32_t entry = 0;
    uint64_t flags = cpu_rflags(v), image = flags;
    bool virtual_if = cpu_iopl(v) < 3;
    if (virtual_if)
        image = (flags & ~(uint64_t)FL_IF) | FL_IOPL | (flags & FL_VIF ? FL_IF : 0);
    mmu_read(v, vector * 4, &entry, 4, ACC_READ | ACC_USER);
    stack_current(v, &st);
    push_frame(v, &st, 2, image, rip);
    segment_set_v86(&cs, entry >> 16);
    v->s.gpr[RSP] = st.rsp;
    cpu_set_rflags(v, flags & ~(uint64_t)(FL_TF | FL_RF | (virtual_if ? FL_VIF : FL_IF)));
    code_commit(v, &cs, entry & 0xffff, 3);
}

void op_int(struct vcpu *v, const struct insn *in)
{
    unsigned vector = in->imm & 0xff;
    if (cpu_v86(v)) {
        if (redirected(v, vector)) {
            int_redirect(v, vector, next_rip(v, in));
            return;
        }
        if (cpu_iopl(v) < 3)
            cpu_throw_error(v, EXC_GP, 0);
    }
    event_enter(v, vector, EVENT_SOFT, false, 0, next_rip(v, in) + PLANTED(return_address));
}

void op_int3(struct vcpu *v, const struct insn *in)
{
    event_enter(v, EXC_BP, EVENT_SOFT, false, 0, next_rip(v, in));
}

void op_int1(struct vcpu *v, const struct insn *in)
{
    event_enter(v, EXC_DB, EVENT_INT1, false, 0, next_rip(v, in));
}

void op_into(struct vcpu *v, const struct insn *in)
{
    if (v->s.rflags & FL_OF)
        event_enter(v, EXC_OF, EVENT_SOFT, false, 0, next_rip(v, in));
    else
        advance(v, in);
}
