// The MSR policy, in one table: what exists, what can be written, which bits are reserved. What is not in it
// raises #GP(0) and shows in --trace. SDM 4 chapter 2; APM 2 appendix A; KVM's paravirtual clock: Linux
// Documentation/virt/kvm/x86/msr.rst.
#include "cpu/internal.h"
#include "cpu/lapic.h"
#include "cpu/model.h"
#include "mmu/mem.h"
#include <stddef.h>

#define MSR_TSC          0x00000010u
#define MSR_APIC_BASE    0x0000001bu
#define MSR_TSC_DEADLINE 0x000006e0u
#define MSR_FS_BASE      0xc0000100u
#define MSR_GS_BASE      0xc0000101u

// IA32_ARCH_CAPABILITIES: none of the known leaks crosses from this guest to another, as each has processes
// of its own; so its kernel need not spend time on them.
#define ARCH_CAPABILITIES                                                                                    \
    (1ull << 0 /* RDCL_NO */ | 1ull << 1 /* IBRS_ALL */ | 1ull << 3 /* SKIP_L1DFL_VMENTRY */ |               \
     1ull << 4 /* SSB_NO */ | 1ull << 5 /* MDS_NO */ | 1ull << 6 /* PSCHANGE_MC_NO */ |                      \
     1ull << 8 /* TAA_NO */ | 1ull << 13 /* SBDR_SSDP_NO */ | 1ull << 14 /* FBSDP_NO */ |                    \
     1ull << 15 /* PSDP_NO */ | 1ull << 20 /* BHI_NO */ | 1ull << 24 /* PBRSB_NO */ |                        \
     1ull << 26 /* GDS_NO */ | 1ull << 27 /* RFDS_NO */ | 1ull << 62 /* ITS_NO */)

#define MC_BANKS 4u
#define MTRR_VARIABLE 8u

struct msr {
    uint32_t first, last;
    const char *name;
    uint64_t reserved; // a write with one of these bits set raises #GP
    // How it reads: read(), else the field of struct cpu_state, else `value`.
    uint64_t (*read)(struct vcpu *v, uint32_t msr);
    // How it is written: write(), else the field, else #GP.
    void (*write)(struct vcpu *v, uint32_t msr, uint64_t value);
    uint64_t value;
    uint16_t field;    // offset in struct cpu_state; 0 (which is RAX): none
    uint8_t feature;   // enum cpu_feature it belongs to; CPU_FPU: always there
    uint8_t vendor;    // 0: both, FEAT_INTEL, FEAT_AMD
};

static _Noreturn void bad_value(struct vcpu *v) { cpu_throw_error(v, EXC_GP, 0); }

static void ignore(struct vcpu *v, uint32_t msr, uint64_t value)
{
    (void)v, (void)msr, (void)value;
}

static _Noreturn uint64_t write_only(struct vcpu *v, uint32_t msr)
{
    (void)msr;
    bad_value(v);
}

// ---- time

// The guest's TSC moved by `delta`: what was computed from it must follow.
static void tsc_moved(struct vcpu *v, uint64_t delta)
{
    v->s.tsc_offset += delta;
    uint64_t deadline;
    if (v->lapic && lapic_msr_read(v->lapic, MSR_TSC_DEADLINE, &deadline) && deadline)
        lapic_msr_write(v->lapic, MSR_TSC_DEADLINE, deadline);
    cpu_kvmclock_update(v);
}

static uint64_t tsc_read(struct vcpu *v, uint32_t msr)
{
    (void)msr;
    return cpu_tsc(v);
}

// SDM 3B 17.17.3: a write of the TSC shows in IA32_TSC_ADJUST, and the other way round.
static void tsc_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
    (void)msr;
    uint64_t delta = value - cpu_tsc(v);
    v->s.tsc_adjust += delta;
    tsc_moved(v, delta);
}

static void tsc_adjust_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
    (void)msr;
    uint64_t delta = value - v->s.tsc_adjust;
    v->s.tsc_adjust = value;
    tsc_moved(v, delta);
}

struct pvclock_time { // pvclock-abi: 32 bytes
    uint32_t version, pad0;
    uint64_t tsc_timestamp, system_time;
    uint32_t tsc_to_system_mul;
    int8_t tsc_shift;
    uint8_t flags, pad[2];
};
#define PVCLOCK_TSC_STABLE 1u

struct pvclock_wall {
    uint32_t version, sec, nsec;
};

static bool guest_store(struct vcpu *v, uint64_t gpa, const void *data, unsigned n)
{
    return mem_write(v->mem, gpa & v->mem->a20_mask, data, n);
}

static uint32_t next_version(struct vcpu *v, uint64_t gpa)
{
    uint32_t version = 0;
    mem_read(v->mem, gpa & v->mem->a20_mask, &version, sizeof version);
    return (version + 1) | 1; // odd: being written
}

void cpu_kvmclock_update(struct vcpu *v)
{
    uint64_t gpa = v->s.kvmclock_system & ~3ull;
    if (!(v->s.kvmclock_system & 1) || !v->exits.monotonic_ns)
        return;
    struct pvclock_time t = {.version = next_version(v, gpa), .tsc_to_system_mul = v->model->pvclock_mul,
                             .tsc_shift = v->model->pvclock_shift, .flags = PVCLOCK_TSC_STABLE};
    // Both clocks at one moment: the smallest of a few windows.
    uint64_t best = ~0ull;
    for (int i = 0; i < 4; i++) {
        uint64_t before = cpu_tsc(v), ns = v->exits.monotonic_ns(v->exits.opaque),
                 width = cpu_tsc(v) - before;
        if (width < best) {
            best = width;
            t.tsc_timestamp = before + width / 2;
            t.system_time = ns;
        }
    }
    if (!guest_store(v, gpa, &t.version, 4))
        return;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    guest_store(v, gpa + 4, (uint8_t *)&t + 4, sizeof t - 4);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    t.version++;
    guest_store(v, gpa, &t.version, 4);
}

static void kvmclock_system_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
    (void)msr;
    v->s.kvmclock_system = value;
    cpu_kvmclock_update(v);
}

// The wall clock at the moment the system clock was zero, written once per MSR write.
static void kvmclock_wall_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
    (void)msr;
    v->s.kvmclock_wall = value;
    if (!v->exits.realtime_ns || !v->exits.monotonic_ns)
        return;
    uint64_t ns = v->exits.realtime_ns(v->exits.opaque) - v->exits.monotonic_ns(v->exits.opaque);
    struct pvclock_wall w = {next_version(v, value), (uint32_t)(ns / 1000000000u),
                             (uint32_t)(ns % 1000000000u)};
    if (!guest_store(v, value, &w.version, 4))
        return;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    guest_store(v, value + 4, &w.sec, 8);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    w.version++;
    guest_store(v, value, &w.version, 4);
}

// ---- local APIC

static uint64_t apic_read(struct vcpu *v, uint32_t msr)
{
    uint64_t value = 0;
    if (!v->lapic) {
        if (msr == MSR_APIC_BASE)
            return v->s.apic_base;
        bad_value(v);
    }
    if (!lapic_msr_read(v->lapic, msr, &value))
        bad_value(v);
    return value;
}

static void apic_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
    if (!v->lapic || !lapic_msr_write(v->lapic, msr, value))
        bad_value(v);
}

// ---- system

static void efer_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
    (void)msr;
    uint64_t old = v->s.efer;
    value = (value & ~(uint64_t)EFER_LMA) | (old & EFER_LMA); // LMA is read-only
    if (value & ~(cpu_model_efer_mask(v->model) | EFER_LMA))
        bad_value(v);
    if ((old ^ value) & EFER_LME && v->s.cr0 & CR0_PG) // 3A 9.8.5: not while paging
        bad_value(v);
    v->s.efer = value;
    if ((old ^ value) & (EFER_LME | EFER_NXE | EFER_SCE))
        v->mode_gen++;
    if ((old ^ value) & EFER_NXE)
        mmu_flush_all(v, true);
}

// Translated code has what SYSCALL and SYSRET do with these at hand.
static void syscall_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
    if (msr == 0xc0000081)
        v->s.star = value;
    else
        v->s.sfmask = value;
    v->mode_gen++;
}

static void canonical_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
    if (!is_canonical(value))
        bad_value(v);
    switch (msr) {
    case 0x175: v->s.sysenter_esp = value; break;
    case 0x176: v->s.sysenter_eip = value; break;
    case 0xc0000082: v->s.lstar = value; break;
    case 0xc0000083: v->s.cstar = value; break;
    default: v->s.kernel_gs_base = value; break;
    }
}

static uint64_t segment_base_read(struct vcpu *v, uint32_t msr)
{
    return v->s.seg[msr == MSR_FS_BASE ? SEG_FS : SEG_GS].base;
}

static void segment_base_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
    if (!is_canonical(value))
        bad_value(v);
    v->s.seg[msr == MSR_FS_BASE ? SEG_FS : SEG_GS].base = value;
    if (!cpu_code64(v)) // in 64-bit code these bases are operands, not part of the mode
        v->mode_gen++;
}

// 3A 12.12.2: each byte one of UC, WC, WT, WP, WB, UC-.
static void pat_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
    (void)msr;
    for (unsigned i = 0; i < 64; i += 8) {
        unsigned type = value >> i & 0xff;
        if (type > 7 || type == 2 || type == 3)
            bad_value(v);
    }
    v->s.pat = value;
}

// ---- MTRRs (3A 11.11): shown, stored, without effect

static bool mtrr_type_valid(unsigned type) { return type <= 6 && type != 2 && type != 3; }

static unsigned fixed_index(uint32_t msr)
{
    return msr == 0x250 ? 0 : msr <= 0x259 ? msr - 0x258 + 1 : (msr - 0x268 + 3) & 15;
}

static uint64_t mtrr_fixed_read(struct vcpu *v, uint32_t msr) { return v->s.mtrr_fix[fixed_index(msr) % 11]; }

static void mtrr_fixed_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
    for (unsigned i = 0; i < 64; i += 8)
        if (!mtrr_type_valid(value >> i & 0xff))
            bad_value(v);
    v->s.mtrr_fix[fixed_index(msr) % 11] = value;
}

static uint64_t mtrr_variable_read(struct vcpu *v, uint32_t msr) { return v->s.mtrr_var[(msr - 0x200) & 15]; }

static void mtrr_variable_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
    uint64_t above = ~((1ull << (cpu_model_phys_bits(v->model) & 63)) - 1);
    if (msr & 1 ? value & (above | 0x7ff) : (value & (above | 0xf00)) || !mtrr_type_valid(value & 0xff))
        bad_value(v);
    v->s.mtrr_var[(msr - 0x200) & 15] = value;
}

static void mtrr_default_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
    (void)msr;
    if (!mtrr_type_valid(value & 0xff))
        bad_value(v);
    v->s.mtrr_def_type = value;
}

// ---- machine check: banks that never report

static uint64_t bank_read(struct vcpu *v, uint32_t msr)
{
    (void)v;
    return msr & 3 ? 0 : ~0ull; // MCi_CTL: all enabled; STATUS, ADDR, MISC: nothing
}

static void bank_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
    if (msr & 3 ? value != 0 : value != 0 && value != ~0ull)
        bad_value(v); // 3B 15.3.2
}

static void misc_enable_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
    (void)msr;
    v->s.misc_enable = value & (1u | 1u << 22 | 1ull << 34);
}

static uint64_t misc_enable_read(struct vcpu *v, uint32_t msr)
{
    (void)msr;
    return v->s.misc_enable | 1u << 11 | 1u << 12; // no BTS, no PEBS
}

// MSR_PLATFORM_INFO 15:8: base ratio in units of 100 MHz.
static uint64_t platform_info_read(struct vcpu *v, uint32_t msr)
{
    (void)msr;
    return (uint64_t)((cpu_model_tsc_khz(v->model) + 50000) / 100000 & 0xff) << 8;
}

static uint64_t spec_ctrl_read(struct vcpu *v, uint32_t msr)
{
    (void)msr;
    if (!cpu_model_has(v->model, CPU_SPEC_CTRL) && !cpu_model_has(v->model, CPU_AMD_IBRS))
        bad_value(v);
    return v->s.spec_ctrl;
}

// IBRS, STIBP, SSBD are kept and change nothing.
static void spec_ctrl_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
    spec_ctrl_read(v, msr);
    v->s.spec_ctrl = value;
}

static void pred_cmd_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
    (void)msr, (void)value;
    if (!cpu_model_has(v->model, CPU_SPEC_CTRL) && !cpu_model_has(v->model, CPU_AMD_IBPB))
        bad_value(v);
}

static void tsc_aux_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
    (void)msr;
    v->s.tsc_aux = value;
}

static uint64_t tsc_aux_read(struct vcpu *v, uint32_t msr)
{
    (void)msr;
    if (!cpu_model_has(v->model, CPU_RDTSCP) && !cpu_model_has(v->model, CPU_RDPID))
        bad_value(v);
    return v->s.tsc_aux;
}

// ---- the table, sorted by number

#define HIGH32 0xffffffff00000000ull
#define FIELD(f) .field = offsetof(struct cpu_state, f)
#define ONE(n) n, n
#define INTEL .vendor = FEAT_INTEL
#define AMD .vendor = FEAT_AMD
#define IGNORED .write = ignore // accepted where `reserved` allows, without effect

static const struct msr table[] = {
    {0x0, 0x1, "P5_MC_ADDR, P5_MC_TYPE", .value = 0, .write = ignore, .feature = CPU_MCE},
    {ONE(0x10), "TIME_STAMP_COUNTER", .read = tsc_read, .write = tsc_write, .feature = CPU_TSC},
    {ONE(0x11), "KVM_WALL_CLOCK", FIELD(kvmclock_wall), .write = kvmclock_wall_write,
     .feature = CPU_HYPERVISOR},
    {ONE(0x12), "KVM_SYSTEM_TIME", FIELD(kvmclock_system), .write = kvmclock_system_write,
     .feature = CPU_HYPERVISOR},
    {ONE(0x17), "IA32_PLATFORM_ID", INTEL},
    {ONE(0x1b), "IA32_APIC_BASE", .read = apic_read, .write = apic_write, .feature = CPU_APIC},
    {ONE(0x2a), "EBL_CR_POWERON", IGNORED, INTEL},
    {ONE(0x3a), "IA32_FEATURE_CONTROL", .value = 1 /* locked, no VMX */, INTEL},
    {ONE(0x3b), "IA32_TSC_ADJUST", FIELD(tsc_adjust), .write = tsc_adjust_write, .feature = CPU_TSC_ADJUST},
    {ONE(0x48), "IA32_SPEC_CTRL", .read = spec_ctrl_read, .write = spec_ctrl_write, .reserved = ~7ull},
    {ONE(0x49), "IA32_PRED_CMD", .read = write_only, .write = pred_cmd_write, .reserved = ~1ull},
    {ONE(0x79), "IA32_BIOS_UPDT_TRIG", .read = write_only, IGNORED, INTEL},
    {ONE(0x8b), "IA32_BIOS_SIGN_ID", .value = 1ull << 32, IGNORED, INTEL},
    {ONE(0x8b), "PATCH_LEVEL", .value = 0x0a10113e, AMD},
    {ONE(0xcd), "FSB_FREQ", .value = 3, INTEL},
    {ONE(0xce), "PLATFORM_INFO", .read = platform_info_read, INTEL},
    {ONE(0xfe), "IA32_MTRRCAP", .value = 0x500 | MTRR_VARIABLE /* WC, fixed ranges */, .feature = CPU_MTRR},
    {ONE(0x10a), "IA32_ARCH_CAPABILITIES", .value = ARCH_CAPABILITIES, .feature = CPU_ARCH_CAPABILITIES},
    {ONE(0x119), "BBL_CR_CTL", IGNORED, INTEL},
    {ONE(0x11e), "BBL_CR_CTL3", .value = 0xbe702111, IGNORED, INTEL},
    {ONE(0x140), "MISC_FEATURES_ENABLES", .reserved = ~0ull, IGNORED, INTEL},
    {ONE(0x174), "IA32_SYSENTER_CS", FIELD(sysenter_cs), .feature = CPU_SEP},
    {ONE(0x175), "IA32_SYSENTER_ESP", FIELD(sysenter_esp), .write = canonical_write, .feature = CPU_SEP},
    {ONE(0x176), "IA32_SYSENTER_EIP", FIELD(sysenter_eip), .write = canonical_write, .feature = CPU_SEP},
    {ONE(0x179), "IA32_MCG_CAP", .value = MC_BANKS, .feature = CPU_MCA},
    {ONE(0x17a), "IA32_MCG_STATUS", FIELD(mcg_status), .reserved = ~7ull, .feature = CPU_MCA},
    {ONE(0x198), "IA32_PERF_STATUS", .value = 0x1000, INTEL},
    {ONE(0x199), "IA32_PERF_CTL", IGNORED, INTEL},
    {ONE(0x1a0), "IA32_MISC_ENABLE", .read = misc_enable_read, .write = misc_enable_write, INTEL},
    {ONE(0x1d9), "IA32_DEBUGCTL", .reserved = ~3ull /* LBR, BTF */, IGNORED},
    {0x1db, 0x1de, "LASTBRANCH, LASTINT", .value = 0},
    {0x200, 0x20f, "IA32_MTRR_PHYS", .read = mtrr_variable_read, .write = mtrr_variable_write,
     .feature = CPU_MTRR},
    {ONE(0x250), "IA32_MTRR_FIX64K", .read = mtrr_fixed_read, .write = mtrr_fixed_write, .feature = CPU_MTRR},
    {0x258, 0x259, "IA32_MTRR_FIX16K", .read = mtrr_fixed_read, .write = mtrr_fixed_write,
     .feature = CPU_MTRR},
    {0x268, 0x26f, "IA32_MTRR_FIX4K", .read = mtrr_fixed_read, .write = mtrr_fixed_write,
     .feature = CPU_MTRR},
    {ONE(0x277), "IA32_PAT", FIELD(pat), .write = pat_write, .feature = CPU_PAT},
    {ONE(0x2ff), "IA32_MTRR_DEF_TYPE", FIELD(mtrr_def_type), .write = mtrr_default_write,
     .reserved = ~0xcffull, .feature = CPU_MTRR},
    {0x400, 0x400 + MC_BANKS * 4 - 1, "IA32_MC", .read = bank_read, .write = bank_write, .feature = CPU_MCA},
    {ONE(0x6e0), "IA32_TSC_DEADLINE", .read = apic_read, .write = apic_write, .feature = CPU_TSC_DEADLINE},
    {0x800, 0x8ff, "x2APIC", .read = apic_read, .write = apic_write, .feature = CPU_X2APIC},
    {ONE(0x4b564d00), "KVM_WALL_CLOCK_NEW", FIELD(kvmclock_wall), .write = kvmclock_wall_write,
     .feature = CPU_HYPERVISOR},
    {ONE(0x4b564d01), "KVM_SYSTEM_TIME_NEW", FIELD(kvmclock_system), .write = kvmclock_system_write,
     .feature = CPU_HYPERVISOR},
    {ONE(0x4b564d05), "KVM_POLL_CONTROL", .value = 1, .reserved = ~1ull, IGNORED, .feature = CPU_HYPERVISOR},
    {ONE(0xc0000080), "IA32_EFER", FIELD(efer), .write = efer_write, .feature = CPU_NX},
    {ONE(0xc0000081), "STAR", FIELD(star), .write = syscall_write, .feature = CPU_SYSCALL},
    {ONE(0xc0000082), "LSTAR", FIELD(lstar), .write = canonical_write, .feature = CPU_LM},
    {ONE(0xc0000083), "CSTAR", FIELD(cstar), .write = canonical_write, .feature = CPU_LM},
    {ONE(0xc0000084), "FMASK", FIELD(sfmask), .write = syscall_write, .reserved = HIGH32, .feature = CPU_SYSCALL},
    {ONE(0xc0000100), "FS_BASE", .read = segment_base_read, .write = segment_base_write, .feature = CPU_LM},
    {ONE(0xc0000101), "GS_BASE", .read = segment_base_read, .write = segment_base_write, .feature = CPU_LM},
    {ONE(0xc0000102), "KERNEL_GS_BASE", FIELD(kernel_gs_base), .write = canonical_write, .feature = CPU_LM},
    {ONE(0xc0000103), "IA32_TSC_AUX", .read = tsc_aux_read, .write = tsc_aux_write, .reserved = HIGH32},
    {0xc0010000, 0xc0010003, "PERF_CTL", .value = 0, IGNORED, AMD},
    {0xc0010004, 0xc0010007, "PERF_CTR", .value = 0, IGNORED, AMD},
    {ONE(0xc0010010), "SYSCFG", .value = 0, IGNORED, AMD},
    {ONE(0xc0010015), "HWCR", .value = 1u << 24 /* TscFreqSel */, IGNORED, .reserved = HIGH32, AMD},
    {ONE(0xc001001a), "TOP_MEM", .value = 0, IGNORED, AMD},
    {ONE(0xc001001b), "CLK_CTL", .value = 0x20000000, IGNORED, AMD},
    {ONE(0xc001001d), "TOP_MEM2", .value = 0, IGNORED, AMD},
    {ONE(0xc001001f), "NB_CFG", .value = 0, IGNORED, AMD},
    {ONE(0xc0010055), "INT_PENDING_MSG", .value = 0, IGNORED, AMD},
    {ONE(0xc0010058), "MMIO_CFG_BASE", .value = 0, IGNORED, AMD},
    {0xc0010112, 0xc0010113, "TSEG_ADDR, TSEG_MASK", .value = 0, IGNORED, AMD},
    {ONE(0xc0010114), "VM_CR", .value = 0x18 /* SVM disabled, locked */, IGNORED, AMD},
    {0xc0011020, 0xc0011023, "LS_CFG, IC_CFG, DC_CFG, TW_CFG", .value = 0, IGNORED, AMD},
    {ONE(0xc0011029), "DE_CFG", .value = 2 /* LFENCE waits */, IGNORED, AMD},
    {ONE(0xc001102a), "BU_CFG2", .value = 0, IGNORED, AMD},
    {ONE(0xc001102c), "EX_CFG", .value = 0, IGNORED, AMD},
};
#define TABLE_SIZE (sizeof table / sizeof table[0])

static bool shown(const struct cpu_model *m, const struct msr *e)
{
    // EFER is there from long mode or NX on; NX can be switched off, LM not without it.
    if (e->feature == CPU_NX)
        return cpu_model_has(m, CPU_NX) || cpu_model_has(m, CPU_LM);
    return cpu_model_has(m, (enum cpu_feature)e->feature) &&
           (!e->vendor || (e->vendor == FEAT_AMD) == m->amd);
}

static const struct msr *find(const struct cpu_model *m, uint32_t msr)
{
    unsigned low = 0, high = TABLE_SIZE;
    while (low < high) { // the first entry whose range does not end below
        unsigned mid = (low + high) / 2;
        if (table[mid].last < msr)
            low = mid + 1;
        else
            high = mid;
    }
    for (; low < TABLE_SIZE && table[low].first <= msr; low++)
        if (shown(m, &table[low]))
            return &table[low];
    return NULL;
}

static uint64_t *field(struct vcpu *v, const struct msr *e)
{
    return (uint64_t *)(void *)((uint8_t *)&v->s + e->field);
}

uint64_t cpu_rdmsr(struct vcpu *v, uint32_t msr)
{
    const struct msr *e = find(v->model, msr);
    if (!e) {
        if (v->exits.trace)
            v->exits.trace(v->exits.opaque, "RDMSR of an unknown MSR", msr, 0);
        bad_value(v);
    }
    if (e->read)
        return e->read(v, msr);
    return e->field ? *field(v, e) : e->value;
}

void cpu_wrmsr(struct vcpu *v, uint32_t msr, uint64_t value)
{
    const struct msr *e = find(v->model, msr);
    if (!e || (!e->write && !e->field)) {
        if (v->exits.trace)
            v->exits.trace(v->exits.opaque, e ? "WRMSR of a read-only MSR" : "WRMSR of an unknown MSR", msr,
                           value);
        bad_value(v);
    }
    if (value & e->reserved)
        bad_value(v);
    if (e->write)
        e->write(v, msr, value);
    else
        *field(v, e) = value;
}
