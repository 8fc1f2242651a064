// Memory operands: effective address, segmentation, and the stacks.
#include "cpu/internal.h"

#define FOUR_GIB 0x100000000ull

uint64_t cpu_effective_address(const struct vcpu *v, const struct insn *in)
{
    uint64_t ea = in->disp;
    if (in->base == 16)
        ea += v->s.rip + in->len;
    else if (in->base >= 0)
        ea += v->s.gpr[in->base & 15];
    if (in->index >= 0)
        ea += v->s.gpr[in->index & 15] * in->scale;
    return ea & size_mask(in->addr_size);
}

// SDM 3A 5.3 and 5.5; 3.4.5.1 for expand-down. With a limit of FFFFFFFFh an access may wrap: processors let
// it.
uint64_t segment_linear(struct vcpu *v, const struct segment *s, uint64_t offset, unsigned size, bool write,
                        unsigned vector, uint32_t error)
{
    uint64_t first = (uint32_t)offset, last = first + (size ? size - 1 : 0);
    bool expand_down = false;
    if (!seg_usable(s))
        cpu_throw_error(v, vector, error);
    if (cpu_protected(v)) { // v8086 segments are writable data
        bool code = s->attr & SEG_TYPE_CODE, w_or_r = s->attr & SEG_TYPE_W;
        if (write ? code || !w_or_r : code && !w_or_r)
            cpu_throw_error(v, vector, error);
        expand_down = !code && (s->attr & SEG_TYPE_E);
    }
    if (expand_down) {
        if (first <= s->limit || last > (s->attr & SEG_DB ? 0xffffffffu : 0xffffu))
            cpu_throw_error(v, vector, error);
    } else if (last > s->limit && s->limit != 0xffffffffu) {
        cpu_throw_error(v, vector, error);
    }
    return (uint32_t)(s->base + first);
}

uint64_t cpu_linear(struct vcpu *v, unsigned sreg, uint64_t offset, unsigned size, bool write)
{
    unsigned vector = sreg == SEG_SS ? EXC_SS : EXC_GP;
    if (cpu_code64(v)) {
        uint64_t la = sreg >= SEG_FS ? offset + v->s.seg[sreg].base : offset;
        if (!is_canonical(la) || !is_canonical(la + (size ? size - 1 : 0)))
            cpu_throw_error(v, vector, 0);
        return la;
    }
    return segment_linear(v, &v->s.seg[sreg], offset, size, write, vector, 0);
}

// Linear addresses wrap at 4 GiB outside 64-bit code.
static bool wraps(const struct vcpu *v, uint64_t la, unsigned n)
{
    return la + n > FOUR_GIB && la < FOUR_GIB && !cpu_code64(v);
}

static void linear_read(struct vcpu *v, uint64_t la, void *data, unsigned n, unsigned acc)
{
    unsigned head = n;
    if (__builtin_expect(wraps(v, la, n), 0)) {
        head = FOUR_GIB - la;
        mmu_read(v, 0, (uint8_t *)data + head, n - head, acc | ACC_READ);
    }
    mmu_read(v, la, data, head, acc | ACC_READ);
}

static void linear_write(struct vcpu *v, uint64_t la, const void *data, unsigned n, unsigned acc)
{
    unsigned head = n;
    if (__builtin_expect(wraps(v, la, n), 0)) {
        head = FOUR_GIB - la;
        mmu_check(v, la, head, acc | ACC_WRITE);
        mmu_write(v, 0, (const uint8_t *)data + head, n - head, acc | ACC_WRITE);
    }
    mmu_write(v, la, data, head, acc | ACC_WRITE);
}

static void check_alignment(struct vcpu *v, uint64_t la, unsigned size)
{
    if (__builtin_expect(alignment_checked(v), 0) && (la & (size - 1)))
        cpu_throw_error(v, EXC_AC, 0);
}

uint64_t cpu_read(struct vcpu *v, unsigned sreg, uint64_t offset, unsigned size)
{
    uint64_t value = 0, la = cpu_linear(v, sreg, offset, size, false);
    check_alignment(v, la, size);
    linear_read(v, la, &value, size, mmu_acc(v));
    return value;
}

void cpu_write(struct vcpu *v, unsigned sreg, uint64_t offset, unsigned size, uint64_t value)
{
    uint64_t la = cpu_linear(v, sreg, offset, size, true);
    check_alignment(v, la, size);
    linear_write(v, la, &value, size, mmu_acc(v));
}

void cpu_write_block(struct vcpu *v, unsigned sreg, uint64_t offset, const void *data, unsigned n)
{
    linear_write(v, cpu_linear(v, sreg, offset, n, true), data, n, mmu_acc(v));
}

void cpu_read_block(struct vcpu *v, unsigned sreg, uint64_t offset, void *data, unsigned n)
{
    linear_read(v, cpu_linear(v, sreg, offset, n, false), data, n, mmu_acc(v));
}

// ---- the current stack

uint64_t cpu_stack_mask(const struct vcpu *v)
{
    if (cpu_code64(v))
        return ~0ull;
    return v->s.seg[SEG_SS].attr & SEG_DB ? 0xffffffffu : 0xffffu;
}

void cpu_push(struct vcpu *v, unsigned size, uint64_t value)
{
    uint64_t mask = cpu_stack_mask(v), rsp = v->s.gpr[RSP] - size;
    cpu_write(v, SEG_SS, rsp & mask, size, value);
    v->s.gpr[RSP] = stack_merge(v->s.gpr[RSP], rsp, mask);
}

uint64_t cpu_pop(struct vcpu *v, unsigned size)
{
    uint64_t mask = cpu_stack_mask(v), rsp = v->s.gpr[RSP];
    uint64_t value = cpu_read(v, SEG_SS, rsp & mask, size);
    v->s.gpr[RSP] = stack_merge(rsp, rsp + size, mask);
    return value;
}

// ---- stacks in the making

void stack_current(const struct vcpu *v, struct stack *st)
{
    st->ss = v->s.seg[SEG_SS];
    st->rsp = v->s.gpr[RSP];
    st->mask = cpu_stack_mask(v);
    st->error = 0;
    st->acc = mmu_acc(v);
    st->flat64 = cpu_code64(v);
}

void stack_new(struct stack *st, const struct segment *ss, uint64_t rsp, unsigned cpl, uint32_t error,
               bool flat64)
{
    st->ss = *ss;
    st->rsp = rsp;
    st->mask = flat64 ? ~0ull : ss->attr & SEG_DB ? 0xffffffffu : 0xffffu;
    st->error = error;
    st->acc = cpl == 3 ? ACC_USER : 0;
    st->flat64 = flat64;
}

static uint64_t stack_linear(struct vcpu *v, const struct stack *st, uint64_t rsp, unsigned size, bool write)
{
    uint64_t la = rsp & st->mask;
    if (!st->flat64)
        la = segment_linear(v, &st->ss, la, size, write, EXC_SS, st->error);
    else if (!is_canonical(la) || !is_canonical(la + size - 1))
        cpu_throw_error(v, EXC_SS, st->error);
    if (st->acc)
        check_alignment(v, la, size);
    return la;
}

void stack_push(struct vcpu *v, struct stack *st, unsigned size, uint64_t value)
{
    uint64_t rsp = st->rsp - size;
    linear_write(v, stack_linear(v, st, rsp, size, true), &value, size, st->acc);
    st->rsp = stack_merge(st->rsp, rsp, st->mask);
}

uint64_t stack_read(struct vcpu *v, const struct stack *st, uint64_t offset, unsigned size)
{
    uint64_t value = 0;
    linear_read(v, stack_linear(v, st, st->rsp + offset, size, false), &value, size, st->acc);
    return value;
}
