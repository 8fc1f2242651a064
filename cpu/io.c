// Port I/O: IN OUT INS OUTS, with IOPL and the TSS permission bitmap (SDM 1 18.5). Every check comes before
// the port is touched, as reads of ports have effects.
#include "cpu/internal.h"

static _Noreturn void denied(struct vcpu *v) { cpu_throw_error(v, EXC_GP, 0); }

// 1 18.5.2: both bytes that may hold the bits must lie within the limit.
static void check_bitmap(struct vcpu *v, uint16_t port, unsigned size)
{
    const struct segment *tr = &v->s.tr;
    unsigned type = tr->attr & SEG_TYPE_MASK;
    if (!seg_usable(tr) || (type != SYS_TSS_AVAIL && type != SYS_TSS_BUSY) || tr->limit < 0x67)
        denied(v);
    uint32_t offset = (uint32_t)system_read(v, tr->base + 0x66, 2) + port / 8;
    if (offset + 1 > tr->limit)
        denied(v);
    uint64_t bits = system_read(v, tr->base + offset, 2);
    if (bits >> (port & 7) & ((1u << size) - 1))
        denied(v);
}

static void check_port(struct vcpu *v, uint16_t port, unsigned size)
{
    if (cpu_protected(v) && (v->s.cpl > cpu_iopl(v) || cpu_v86(v)))
        check_bitmap(v, port, size);
}

static unsigned port_size(const struct insn *in) // REX.W does not widen
{
    return in->op_size == 1 || in->op_size == 2 ? in->op_size : 4;
}

static uint16_t port_number(const struct vcpu *v, const struct insn *in)
{
    return in->reg ? (uint16_t)v->s.gpr[RDX] : (uint8_t)in->imm;
}

static void write_accumulator(struct vcpu *v, unsigned size, uint32_t value)
{
    if (size == 1)
        v->s.gpr[RAX] = (v->s.gpr[RAX] & ~0xffull) | (value & 0xff);
    else
        gpr_write(v, RAX, size, value);
}

void op_in(struct vcpu *v, const struct insn *in)
{
    unsigned size = port_size(in);
    uint16_t port = port_number(v, in);
    check_port(v, port, size);
    write_accumulator(v, size, v->exits.port_read(v->exits.opaque, port, size));
    cpu_watch_port(v, port, size);
    advance(v, in);
}

void op_out(struct vcpu *v, const struct insn *in)
{
    unsigned size = port_size(in);
    uint16_t port = port_number(v, in);
    check_port(v, port, size);
    v->exits.port_write(v->exits.opaque, port, size, (uint32_t)gpr_read(v, RAX, size));
    cpu_watch_port(v, port, size);
    advance(v, in);
}

// ---- string forms

static uint64_t address_mask(const struct insn *in) { return size_mask(in->addr_size); }

// Steps an index register by one element. 32-bit addressing clears the upper half, 16-bit leaves the rest
// alone.
static void step_index(struct vcpu *v, const struct insn *in, unsigned reg, unsigned size)
{
    uint64_t step = v->s.dflag ? -(uint64_t)size : size;
    gpr_write(v, reg, in->addr_size, (v->s.gpr[reg] + step) & address_mask(in));
}

static void ins_once(struct vcpu *v, const struct insn *in, uint16_t port, unsigned size)
{
    uint64_t offset = v->s.gpr[RDI] & address_mask(in);
    // Faults of the store must come before the port is read.
    uint64_t la = cpu_linear(v, SEG_ES, offset, size, true);
    if (alignment_checked(v) && la & (size - 1))
        cpu_throw_error(v, EXC_AC, 0);
    mmu_check(v, la, size, mmu_acc(v) | ACC_WRITE);
    uint32_t value = v->exits.port_read(v->exits.opaque, port, size);
    cpu_write(v, SEG_ES, offset, size, value);
    step_index(v, in, RDI, size);
}

static void outs_once(struct vcpu *v, const struct insn *in, uint16_t port, unsigned size)
{
    uint64_t offset = v->s.gpr[RSI] & address_mask(in);
    unsigned sreg = in->sreg < SEG_COUNT ? in->sreg : SEG_DS;
    uint32_t value = (uint32_t)cpu_read(v, sreg, offset, size);
    v->exits.port_write(v->exits.opaque, port, size, value);
    step_index(v, in, RSI, size);
}

// One iteration at least; then on until the count is used up or something waits. RIP stays at the instruction
// while iterations are left, so that it resumes after an interrupt or a fault.
static void repeat(struct vcpu *v, const struct insn *in,
                   void (*once)(struct vcpu *v, const struct insn *in, uint16_t port, unsigned size))
{
    unsigned size = port_size(in);
    uint16_t port = (uint16_t)v->s.gpr[RDX];
    check_port(v, port, size);
    if (!in->rep) {
        once(v, in, port, size);
        cpu_watch_port(v, port, size);
        advance(v, in);
        return;
    }
    while (v->s.gpr[RCX] & address_mask(in)) {
        once(v, in, port, size);
        cpu_watch_port(v, port, size);
        gpr_write(v, RCX, in->addr_size, (v->s.gpr[RCX] - 1) & address_mask(in));
        if (!(v->s.gpr[RCX] & address_mask(in)))
            break;
        if (v->s.rflags & FL_TF || v->debug_hits || __atomic_load_n(&v->requests, __ATOMIC_ACQUIRE))
            return;
    }
    advance(v, in);
}

void op_ins(struct vcpu *v, const struct insn *in) { repeat(v, in, ins_once); }
void op_outs(struct vcpu *v, const struct insn *in) { repeat(v, in, outs_once); }
