// RFLAGS: the whole register, and the instructions that see or change more of it than arithmetic does.
//
// v8086 mode with IOPL < 3 and CR4.VME, and CPL 3 with CR4.PVI, work on VIF in place of IF (SDM
// 3B 20.3, 20.4).
#include "cpu/internal.h"

#define FL_KEYED   (FL_TF | FL_VM | FL_AC)

uint64_t cpu_rflags(const struct vcpu *v)
{
    return v->s.rflags | FL_ONE | (uint64_t)v->s.iflag << 9 | (uint64_t)v->s.dflag << 10;
}

void cpu_set_rflags(struct vcpu *v, uint64_t value)
{
    uint64_t flags = (value & FL_DEFINED & ~(FL_IF | FL_DF)) | FL_ONE;
    if ((flags ^ v->s.rflags) & FL_KEYED)
        v->mode_gen++;
    v->s.rflags = flags;
    v->s.iflag = value >> 9 & 1;
    v->s.dflag = value >> 10 & 1;
}

static bool v86_virtual(const struct vcpu *v)
{
    return cpu_v86(v) && cpu_iopl(v) < 3;
}

// The 16-bit PUSHF, POPF and IRET of v8086 mode under VME; anything else traps to the monitor.
static void need_vme(struct vcpu *v, const struct insn *in)
{
    if (!(v->s.cr4 & CR4_VME) || in->op_size != 2)
        cpu_throw_error(v, EXC_GP, 0);
}

void op_pushf(struct vcpu *v, const struct insn *in)
{
    uint64_t flags = cpu_rflags(v) & ~(uint64_t)(FL_VM | FL_RF);
    if (__builtin_expect(v86_virtual(v), 0)) {
        need_vme(v, in);
        flags = (flags & ~(uint64_t)FL_IF) | FL_IOPL | (flags & FL_VIF ? FL_IF : 0);
    }
    cpu_push(v, in->op_size, flags);
    advance(v, in);
}

static void popf_vme(struct vcpu *v, const struct insn *in)
{
    const uint64_t mask = FL_ARITH | FL_TF | FL_DF | FL_NT;
    struct stack st;
    need_vme(v, in);
    stack_current(v, &st);
    uint64_t image = stack_read(v, &st, 0, 2), old = cpu_rflags(v);
    if ((image & FL_TF) || ((image & FL_IF) && (old & FL_VIP)))
        cpu_throw_error(v, EXC_GP, 0);
    v->s.gpr[RSP] = stack_merge(st.rsp, st.rsp + 2, st.mask);
    cpu_set_rflags(v, (old & ~(mask | FL_RF | FL_VIF)) | (image & mask) | (image & FL_IF ? FL_VIF : 0));
    advance(v, in);
}

// SDM 2B POPF, table 4-16. RF is cleared, VM VIF VIP stay.
void op_popf(struct vcpu *v, const struct insn *in)
{
    if (__builtin_expect(v86_virtual(v), 0)) {
        popf_vme(v, in);
        return;
    }
    uint64_t mask = FL_ARITH | FL_TF | FL_DF | FL_NT;
    if (in->op_size > 2)
        mask |= FL_AC | FL_ID;
    if (v->s.cpl == 0)
        mask |= FL_IOPL | FL_IF;
    else if (v->s.cpl <= cpu_iopl(v))
        mask |= FL_IF;
    uint64_t image = cpu_pop(v, in->op_size);
    cpu_set_rflags(v, (cpu_rflags(v) & ~(mask | FL_RF)) | (image & mask));
    advance(v, in);
}

// Whether CLI and STI act on VIF here.
static bool virtual_if(const struct vcpu *v)
{
    return cpu_v86(v) ? v->s.cr4 & CR4_VME : v->s.cpl == 3 && (v->s.cr4 & CR4_PVI);
}

void op_cli(struct vcpu *v, const struct insn *in)
{
    if (v->s.cpl <= cpu_iopl(v))
        v->s.iflag = 0;
    else if (virtual_if(v))
        v->s.rflags &= ~(uint64_t)FL_VIF;
    else
        cpu_throw_error(v, EXC_GP, 0);
    advance(v, in);
}

void op_sti(struct vcpu *v, const struct insn *in)
{
    if (v->s.cpl <= cpu_iopl(v)) {
        if (!v->s.iflag)
            set_shadow(v, SHADOW_STI);
        v->s.iflag = 1;
    } else if (virtual_if(v) && !(v->s.rflags & FL_VIP)) {
        v->s.rflags |= FL_VIF;
    } else {
        cpu_throw_error(v, EXC_GP, 0);
    }
    advance(v, in);
}

static void set_ac(struct vcpu *v, const struct insn *in, bool ac)
{
    if (v->s.cpl != 0 || !cpu_model_has(v->model, CPU_SMAP))
        cpu_throw(v, EXC_UD);
    uint64_t flags = ac ? v->s.rflags | FL_AC : v->s.rflags & ~(uint64_t)FL_AC;
    if (flags != v->s.rflags)
        v->mode_gen++;
    v->s.rflags = flags;
    advance(v, in);
}

void op_stac(struct vcpu *v, const struct insn *in)
{
    set_ac(v, in, true);
}

void op_clac(struct vcpu *v, const struct insn *in)
{
    set_ac(v, in, false);
}

void op_hlt(struct vcpu *v, const struct insn *in)
{
    if (v->s.cpl != 0)
        cpu_throw_error(v, EXC_GP, 0);
    advance(v, in);
    v->s.activity = ACT_HALTED;
}
