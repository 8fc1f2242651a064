// Loads of data segment registers, and the instructions that look at selectors.
//
// Real mode changes selector and base only, so a limit loaded in protected mode survives ("unreal" mode);
// v8086 mode loads all of the hidden part; protected mode checks (SDM 2B MOV, table of #GP #SS #NP;
// 3A 5.5-5.8).
#include "cpu/internal.h"
#include "cpu/planted.h"

#define ATTR_REAL (SEG_P | SEG_S | SEG_TYPE_W | SEG_TYPE_A)

// A null selector clears the hidden base, except on AMD processors without NullSelectorClearsBase (CPUID
// 80000021h).
static bool null_keeps_base(struct vcpu *v)
{
    return cpu_model_is_amd(v->model) && !(cpu_cpuid(v, 0x80000021, 0).eax & (1u << 6));
}

void segment_set_null(struct vcpu *v, struct segment *s, uint16_t selector)
{
    if (s->base && !null_keeps_base(v))
        s->base = 0;
    s->sel = selector;
    s->attr = SEG_UNUSABLE;
    s->limit = 0;
}

void segment_set_null_ss(struct segment *s, uint16_t selector, unsigned cpl)
{
    *s = (struct segment){.sel = selector, .attr = SEG_UNUSABLE | cpl << SEG_DPL_SHIFT};
}

void segment_set_v86(struct segment *s, uint16_t selector)
{
    *s = (struct segment){.base = (uint32_t)selector << 4,
                          .limit = 0xffff,
                          .attr = ATTR_REAL | 3u << SEG_DPL_SHIFT,
                          .sel = selector};
}

void segment_set_real(struct segment *s, uint16_t selector)
{
    if (!seg_usable(s))
        s->limit = 0xffff;
    s->attr = (s->attr & (SEG_DB | SEG_G | SEG_AVL)) | ATTR_REAL;
    s->base = (uint32_t)selector << 4;
    s->sel = selector;
}

void segment_set_flat(struct segment *s, uint16_t selector, uint32_t attr)
{
    *s = (struct segment){.limit = 0xffffffff, .attr = attr, .sel = selector};
}

void segment_check_ss(struct vcpu *v, uint16_t selector, unsigned cpl, struct segment *out)
{
    struct descriptor d;
    uint32_t error = selector & 0xfffc;
    if (!error)
        cpu_throw_error(v, EXC_GP, 0);
    if (!descriptor_fetch(v, selector, &d))
        cpu_throw_error(v, EXC_GP, error);
    if ((selector & 3) != cpl || !descriptor_is_writable_data(&d) || descriptor_dpl(&d) != cpl)
        cpu_throw_error(v, EXC_GP, error);
    if (!descriptor_present(&d))
        cpu_throw_error(v, EXC_SS, error);
    descriptor_set_accessed(v, &d);
    descriptor_to_segment(&d, selector, false, out);
}

// Whether the descriptor may be in DS, ES, FS or GS of this CPL.
static bool data_loadable(const struct descriptor *d, unsigned rpl, unsigned cpl)
{
    unsigned type = descriptor_type(d), dpl = descriptor_dpl(d);
    if (!(type & SEG_S) || (type & (SEG_TYPE_CODE | SEG_TYPE_W)) == SEG_TYPE_CODE)
        return false; // system, or execute-only
    return descriptor_is_conforming(d) || (rpl <= dpl && cpl <= dpl);
}

static void load_data(struct vcpu *v, struct segment *s, uint16_t selector)
{
    struct descriptor d;
    uint32_t error = selector & 0xfffc;
    if (!error) {
        segment_set_null(v, s, selector);
        return;
    }
    if (!descriptor_fetch(v, selector, &d) || !data_loadable(&d, selector & 3, v->s.cpl))
        cpu_throw_error(v, EXC_GP, error);
    if (!descriptor_present(&d))
        cpu_throw_error(v, EXC_NP, error);
    descriptor_set_accessed(v, &d);
    descriptor_to_segment(&d, selector, false, s);
}

void cpu_load_segment(struct vcpu *v, unsigned sreg, uint16_t selector)
{
    struct segment *s = &v->s.seg[sreg];
    unsigned cpl = v->s.cpl;
    if (!cpu_protected(v)) {
        segment_set_real(s, selector);
    } else if (cpu_v86(v)) {
        segment_set_v86(s, selector);
    } else if (sreg != SEG_SS) {
        load_data(v, s, selector);
    } else if (is_null(selector) && cpu_code64(v) && cpl != 3 && (selector & 3) == cpl) {
        segment_set_null_ss(s, selector, cpl);
    } else {
        segment_check_ss(v, selector, cpl, s);
    }
    v->mode_gen++;
}

// Null registers count as DPL 0: a nonzero null selector becomes zero as well. The base stays, which matters
// to 64-bit code with a null FS or GS.
void segments_drop_inner(struct vcpu *v)
{
    static const uint8_t order[4] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
    for (unsigned i = 0; i < 4; i++) {
        struct segment *s = &v->s.seg[order[i]];
        bool conforming = (s->attr & (SEG_TYPE_CODE | SEG_TYPE_E)) == (SEG_TYPE_CODE | SEG_TYPE_E);
        if (!seg_usable(s)) {
            s->sel = 0;
        } else if (!conforming && SEG_DPL(s->attr) < v->s.cpl) {
            s->sel = 0;
            s->attr = SEG_UNUSABLE;
            s->limit = 0;
        }
    }
}

// ---- instructions

void op_mov_from_sreg(struct vcpu *v, const struct insn *in)
{
    if (in->reg >= SEG_COUNT)
        cpu_throw(v, EXC_UD);
    uint16_t selector = v->s.seg[in->reg].sel;
    if (in->is_mem)
        cpu_write(v, in->sreg, cpu_effective_address(v, in), 2, selector);
    else
        gpr_write(v, in->rm, in->op_size, selector);
    advance(v, in);
}

void op_mov_to_sreg(struct vcpu *v, const struct insn *in)
{
    if (in->reg == SEG_CS || in->reg >= SEG_COUNT)
        cpu_throw(v, EXC_UD);
    cpu_load_segment(v, in->reg, rm_read(v, in, 2));
    advance(v, in);
    if (in->reg == SEG_SS)
        set_shadow(v, SHADOW_MOV_SS);
}

// With a 32-bit operand Intel processors write 16 bits only (SDM 2B PUSH).
void op_push_sreg(struct vcpu *v, const struct insn *in)
{
    uint64_t mask = cpu_stack_mask(v), rsp = v->s.gpr[RSP] - in->op_size;
    unsigned width = in->op_size == 4 && !cpu_model_is_amd(v->model) ? 2 : in->op_size;
    cpu_write(v, SEG_SS, rsp & mask, width, v->s.seg[in->reg].sel);
    v->s.gpr[RSP] = stack_merge(v->s.gpr[RSP], rsp, mask);
    advance(v, in);
}

void op_pop_sreg(struct vcpu *v, const struct insn *in)
{
    uint64_t mask = cpu_stack_mask(v), rsp = v->s.gpr[RSP];
    uint16_t selector = cpu_read(v, SEG_SS, rsp & mask, 2);
    cpu_load_segment(v, in->reg, selector);
    v->s.gpr[RSP] = stack_merge(rsp, rsp + in->op_size, mask); // by the old stack's size
    advance(v, in);
    if (in->reg == SEG_SS)
        set_shadow(v, SHADOW_MOV_SS);
}

void op_load_far_ptr(struct vcpu *v, const struct insn *in)
{
    unsigned size = in->op_size == 8 && cpu_model_is_amd(v->model) ? 4 : in->op_size; // APM 3: no m16:64
    uint64_t ea = cpu_effective_address(v, in);
    uint64_t offset = cpu_read(v, in->sreg, ea, size);
    uint16_t selector = cpu_read(v, in->sreg, (ea + size) & size_mask(in->addr_size), 2);
    cpu_load_segment(v, in->imm, selector);
    gpr_write(v, in->reg, size, offset);
    advance(v, in);
}

static void need_protected(struct vcpu *v)
{
    if (!cpu_protected(v) || cpu_v86(v))
        cpu_throw(v, EXC_UD);
}

static void finish_zf(struct vcpu *v, const struct insn *in, bool zf)
{
    v->s.rflags = zf ? v->s.rflags | FL_ZF : v->s.rflags & ~(uint64_t)FL_ZF;
    advance(v, in);
}

// Types LAR and LSL accept (SDM 2A, tables at LAR and LSL), as bit masks over the type with S = 0.
#define LAR_TYPES      0x1a3eu // 1 2 3 4 5 9 11 12
#define LAR_TYPES_LONG 0x1a04u // 2 9 11 12
#define LSL_TYPES      0x0a0eu // 1 2 3 9 11
#define LSL_TYPES_LONG 0x0a04u // 2 9 11

// Fetches the descriptor if the type is one of `types` (or code or data) and visible at CPL and RPL.
static bool visible(struct vcpu *v, uint16_t selector, unsigned types, struct descriptor *d)
{
    if (is_null(selector) || !descriptor_fetch(v, selector, d))
        return false;
    unsigned type = descriptor_type(d), dpl = descriptor_dpl(d);
    if (!(type & SEG_S) && !(types >> type & 1))
        return false;
    return descriptor_is_conforming(d) || (dpl >= v->s.cpl && dpl >= (selector & 3u));
}

void op_lar(struct vcpu *v, const struct insn *in)
{
    struct descriptor d;
    need_protected(v);
    bool ok = visible(v, rm_read(v, in, 2), cpu_long(v) ? LAR_TYPES_LONG : LAR_TYPES, &d);
    if (ok)
        gpr_write(v, in->reg, in->op_size, (d.raw >> 32) & (in->op_size == 2 ? 0xff00 : 0xffff00));
    finish_zf(v, in, ok != PLANTED(zero_flag));
}

void op_lsl(struct vcpu *v, const struct insn *in)
{
    struct descriptor d;
    struct segment s;
    need_protected(v);
    bool ok = visible(v, rm_read(v, in, 2), cpu_long(v) ? LSL_TYPES_LONG : LSL_TYPES, &d);
    if (ok) {
        descriptor_to_segment(&d, 0, false, &s);
        gpr_write(v, in->reg, in->op_size, s.limit - PLANTED(segment_limit));
    }
    finish_zf(v, in, ok);
}

void op_verr(struct vcpu *v, const struct insn *in)
{
    struct descriptor d;
    need_protected(v);
    bool ok = visible(v, rm_read(v, in, 2), 0, &d);
    finish_zf(v, in, ok && (descriptor_type(&d) & (SEG_TYPE_CODE | SEG_TYPE_W)) != SEG_TYPE_CODE);
}

void op_verw(struct vcpu *v, const struct insn *in)
{
    struct descriptor d;
    need_protected(v);
    bool ok = visible(v, rm_read(v, in, 2), 0, &d);
    finish_zf(v, in, ok && descriptor_is_writable_data(&d));
}

void op_arpl(struct vcpu *v, const struct insn *in)
{
    need_protected(v);
    uint64_t ea = in->is_mem ? cpu_effective_address(v, in) : 0;
    unsigned rpl = gpr_read(v, in->reg, 2) & 3;
    uint16_t selector = rm_read(v, in, 2);
    bool raise = (selector & 3u) < rpl;
    selector = (selector & ~3u) | rpl;
    if (raise && in->is_mem)
        cpu_write(v, in->sreg, ea, 2, selector);
    else if (raise)
        gpr_write(v, in->rm, 2, selector);
    finish_zf(v, in, raise);
}
