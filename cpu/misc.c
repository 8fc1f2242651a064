// Sensitive instructions that are short: MSR and TSC access, CPUID, FS and GS bases, and those that are only
// faults.
#include "cpu/internal.h"
#include "cpu/lapic.h"
#include "cpu/model.h"
#include "cpu/planted.h"

#define KVM_ENOSYS 1000 // Linux include/uapi/linux/kvm_para.h
#define KVM_EPERM  1

static _Noreturn void general_protection(struct vcpu *v) { cpu_throw_error(v, EXC_GP, 0); }

static void require_cpl0(struct vcpu *v)
{
    if (v->s.cpl != 0)
        general_protection(v);
}

static void require_feature(struct vcpu *v, enum cpu_feature f)
{
    if (!cpu_model_has(v->model, f))
        cpu_throw(v, EXC_UD);
}

static void set_edx_eax(struct vcpu *v, uint64_t value)
{
    v->s.gpr[RAX] = (uint32_t)value;
    v->s.gpr[RDX] = value >> 32;
}

// ---- MSRs, counters, CPUID

void op_rdmsr(struct vcpu *v, const struct insn *in)
{
    require_feature(v, CPU_MSR);
    require_cpl0(v);
    set_edx_eax(v, cpu_rdmsr(v, (uint32_t)v->s.gpr[RCX]));
    advance(v, in);
}

void op_wrmsr(struct vcpu *v, const struct insn *in)
{
    require_feature(v, CPU_MSR);
    require_cpl0(v);
    uint32_t msr = (uint32_t)v->s.gpr[RCX];
    cpu_wrmsr(v, msr, v->s.gpr[RDX] << 32 | ((uint32_t)v->s.gpr[RAX] ^ (PLANTED(msr) && msr == 0xc0000102 ? 16 : 0)));
    advance(v, in);
}

static void check_tsd(struct vcpu *v)
{
    if (v->s.cr4 & CR4_TSD && v->s.cpl != 0)
        general_protection(v);
}

void op_rdtsc(struct vcpu *v, const struct insn *in)
{
    require_feature(v, CPU_TSC);
    check_tsd(v);
    set_edx_eax(v, cpu_tsc(v) + PLANTED(time_stamp));
    advance(v, in);
}

void op_rdtscp(struct vcpu *v, const struct insn *in)
{
    require_feature(v, CPU_RDTSCP);
    check_tsd(v);
    set_edx_eax(v, cpu_tsc(v));
    v->s.gpr[RCX] = (uint32_t)v->s.tsc_aux;
    advance(v, in);
}

// There is no performance monitoring; AMD's four legacy counters read as zero, like their MSRs.
void op_rdpmc(struct vcpu *v, const struct insn *in)
{
    require_feature(v, CPU_MMX); // with which it came
    if (v->s.cpl != 0 && !(v->s.cr4 & CR4_PCE))
        general_protection(v);
    if (!cpu_model_is_amd(v->model) || (uint32_t)v->s.gpr[RCX] > 3)
        general_protection(v);
    set_edx_eax(v, 0);
    advance(v, in);
}

void op_rdpid(struct vcpu *v, const struct insn *in)
{
    require_feature(v, CPU_RDPID);
    gpr_write(v, in->rm, cpu_code64(v) ? 8 : 4, v->s.tsc_aux);
    advance(v, in);
}

void op_cpuid(struct vcpu *v, const struct insn *in)
{
    struct cpuid_regs r = cpu_cpuid(v, (uint32_t)v->s.gpr[RAX], (uint32_t)v->s.gpr[RCX]);
    v->s.gpr[RAX] = r.eax;
    v->s.gpr[RBX] = r.ebx;
    v->s.gpr[RCX] = r.ecx;
    v->s.gpr[RDX] = r.edx;
    advance(v, in);
}

// ---- FS and GS bases. 64-bit code only; these bases are operands there, not part of the mode.

static void require_fsgsbase(struct vcpu *v)
{
    if (!cpu_code64(v) || !(v->s.cr4 & CR4_FSGSBASE))
        cpu_throw(v, EXC_UD);
}

static void read_base(struct vcpu *v, const struct insn *in, enum seg seg)
{
    require_fsgsbase(v);
    gpr_write(v, in->rm, in->op_size == 8 ? 8 : 4, v->s.seg[seg].base);
    advance(v, in);
}

static void write_base(struct vcpu *v, const struct insn *in, enum seg seg)
{
    require_fsgsbase(v);
    uint64_t value = gpr_read(v, in->rm, in->op_size == 8 ? 8 : 4);
    if (!is_canonical(value))
        general_protection(v);
    v->s.seg[seg].base = value;
    advance(v, in);
}

void op_rdfsbase(struct vcpu *v, const struct insn *in) { read_base(v, in, SEG_FS); }
void op_rdgsbase(struct vcpu *v, const struct insn *in) { read_base(v, in, SEG_GS); }
void op_wrfsbase(struct vcpu *v, const struct insn *in) { write_base(v, in, SEG_FS); }
void op_wrgsbase(struct vcpu *v, const struct insn *in) { write_base(v, in, SEG_GS); }

void op_swapgs(struct vcpu *v, const struct insn *in)
{
    if (!cpu_code64(v))
        cpu_throw(v, EXC_UD);
    require_cpl0(v);
    uint64_t base = v->s.seg[SEG_GS].base;
    v->s.seg[SEG_GS].base = v->s.kernel_gs_base;
    v->s.kernel_gs_base = base;
    advance(v, in);
}

// ---- hints and calls

void op_pause(struct vcpu *v, const struct insn *in) { advance(v, in); }

// KVM's interface is shown, so its hypercall instructions exist; there is no hypercall. Without it: #UD.
void op_vmcall(struct vcpu *v, const struct insn *in)
{
    require_feature(v, CPU_HYPERVISOR);
    int64_t result = v->s.cpl != 0 ? -KVM_EPERM : -KVM_ENOSYS;
    v->s.gpr[RAX] = cpu_code64(v) ? (uint64_t)result : (uint32_t)result;
    advance(v, in);
}

// ---- instructions that are faults: not offered, or decoded as such

static _Noreturn void undefined(struct vcpu *v) { cpu_throw(v, EXC_UD); }

void op_monitor(struct vcpu *v, const struct insn *in) { (void)in, undefined(v); }
void op_mwait(struct vcpu *v, const struct insn *in) { (void)in, undefined(v); }
void op_rsm(struct vcpu *v, const struct insn *in) { (void)in, undefined(v); } // outside SMM
void op_rdpkru(struct vcpu *v, const struct insn *in) { (void)in, undefined(v); }
void op_wrpkru(struct vcpu *v, const struct insn *in) { (void)in, undefined(v); }
void op_ud(struct vcpu *v, const struct insn *in) { (void)in, undefined(v); }
void op_nm(struct vcpu *v, const struct insn *in) { (void)in, cpu_throw(v, EXC_NM); }
void op_gp0(struct vcpu *v, const struct insn *in) { (void)in, general_protection(v); }
