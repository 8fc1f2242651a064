// CPUID: the leaves of a model, laid out once at start, and the look-up, which fills in what depends on the
// state (OSXSAVE, APIC enable, the XSAVE sizes of the current XCR0). SDM 2A CPUID; APM 3 appendix E.
#include "cpu/cpu.h"
#include "cpu/model.h"

#define HYPERVISOR_KVM   0x40000000u // where Linux looks for KVM's interface
#define HYPERVISOR_OWN   0x40000100u // where it looks next: ours
#define KVM_NOP_IO_DELAY 0x00000002u
#define KVM_CLOCKSOURCE2 0x00000008u
#define KVM_CLOCKSOURCE_STABLE 0x01000000u
#define APIC_BUS_KHZ     1000000u

#define LEAF1_EDX_APIC    (1u << 9)
#define LEAF1_ECX_OSXSAVE (1u << 27)

// ---- layout, at start only

static struct cpuid_entry *entry(struct cpu_model *m, uint32_t leaf, uint32_t subleaf, bool indexed)
{
    for (unsigned i = 0; i < m->entry_count; i++)
        if (m->entry[i].leaf == leaf && m->entry[i].subleaf == subleaf)
            return &m->entry[i];
    // The number of entries is fixed by this file; 64 is above it.
    unsigned n = m->entry_count < CPUID_MAX_ENTRIES ? m->entry_count++ : CPUID_MAX_ENTRIES - 1;
    m->entry[n] = (struct cpuid_entry){.leaf = leaf, .subleaf = subleaf, .indexed = indexed};
    return &m->entry[n];
}

static uint32_t text(const char *s) // four characters as a register
{
    return (uint32_t)(uint8_t)s[0] | (uint32_t)(uint8_t)s[1] << 8 | (uint32_t)(uint8_t)s[2] << 16 |
           (uint32_t)(uint8_t)s[3] << 24;
}

static void add_features(struct cpu_model *m)
{
    for (unsigned f = 0; f < CPU_FEATURE_COUNT; f++) {
        const struct cpu_feature_info *i = &cpu_feature_table[f];
        if (!cpu_model_has(m, (enum cpu_feature)f))
            continue;
        if (i->leaf & 0x80000000 ? i->leaf > m->max_extended : i->leaf > m->max_basic)
            continue;
        struct cpuid_regs *r = &entry(m, i->leaf, i->subleaf, i->leaf == 7 || i->leaf == 0xd)->r;
        uint32_t bit = 1u << i->bit;
        switch (i->reg) {
        case CPUID_EAX: r->eax |= bit; break;
        case CPUID_EBX: r->ebx |= bit; break;
        case CPUID_ECX: r->ecx |= bit; break;
        default: r->edx |= bit; break;
        }
    }
    if (m->max_basic >= 7 && (entry(m, 7, 1, true)->r.eax))
        entry(m, 7, 0, true)->r.eax = 1; // highest subleaf
}

static struct cpuid_regs host_leaf(const struct cpu_host *h, uint32_t leaf, uint32_t subleaf)
{
    if (h->cpuid(h->opaque, leaf & 0x80000000, 0).eax < leaf)
        return (struct cpuid_regs){0};
    return h->cpuid(h->opaque, leaf, subleaf);
}

static bool host_is_amd(const struct cpu_host *h)
{
    uint32_t ebx = h->cpuid(h->opaque, 0, 0).ebx;
    return ebx == text("Auth") || ebx == text("Hygo");
}

// Caches and TLBs are the host's: C libraries choose block sizes by them. Nothing is shared: there is one
// CPU.
static void add_caches(struct cpu_model *m, const struct cpu_host *h)
{
    if (m->level == LEVEL_PENTIUM2) // 16+16 KiB L1, 512 KiB L2
        entry(m, 2, 0, false)->r = (struct cpuid_regs){0x03020101, 0, 0, 0x0c040843};
    if (m->level < LEVEL_V2 || host_is_amd(h) != m->amd)
        return;
    if (!m->amd) {
        entry(m, 2, 0, false)->r = host_leaf(h, 2, 0);
        for (uint32_t i = 0; i < 6; i++) {
            struct cpuid_regs r = host_leaf(h, 4, i);
            r.eax &= 0x00003fff;
            entry(m, 4, i, true)->r = r;
            if (!(r.eax & 0x1f))
                break;
        }
        entry(m, 0x80000006, 0, false)->r.ecx = host_leaf(h, 0x80000006, 0).ecx;
        return;
    }
    entry(m, 0x80000005, 0, false)->r = host_leaf(h, 0x80000005, 0);
    entry(m, 0x80000006, 0, false)->r = host_leaf(h, 0x80000006, 0);
    entry(m, 0x8000001a, 0, false)->r.eax = host_leaf(h, 0x8000001a, 0).eax & 7;
    for (uint32_t i = 0; i < 6; i++) {
        struct cpuid_regs r = host_leaf(h, 0x8000001d, i);
        r.eax &= 0x00003fff;
        entry(m, 0x8000001d, i, true)->r = r;
        if (!(r.eax & 0x1f))
            break;
    }
}

static void add_basic(struct cpu_model *m)
{
    bool modern = m->level >= LEVEL_V2;
    m->max_basic = m->level < LEVEL_PENTIUM2 ? 1 : m->level == LEVEL_PENTIUM2 ? 2 : m->amd ? 0xd : 0x15;
    entry(m, 0, 0, false)->r =
        (struct cpuid_regs){m->max_basic, text(m->vendor), text(m->vendor + 8), text(m->vendor + 4)};
    struct cpuid_regs *r = &entry(m, 1, 0, false)->r;
    r->eax = m->signature;
    if (modern)
        r->ebx = 1u << 16 | 8u << 8; // one logical processor, CLFLUSH of 64 bytes; APIC id at run time
    if (!modern)
        return;
    entry(m, 6, 0, false);
    entry(m, 7, 0, true);
    entry(m, 7, 1, true);
    // Topology: one thread, one core; shift counts 0. EDX (x2APIC id) and ECX[7:0] at run time.
    if (cpu_model_has(m, CPU_X2APIC)) {
        entry(m, 0xb, 0, true)->r = (struct cpuid_regs){0, 1, 1u << 8, 0};
        entry(m, 0xb, 1, true)->r = (struct cpuid_regs){0, 1, 2u << 8, 0};
    }
    if (m->xcr0) {
        entry(m, 0xd, 0, true)->r = (struct cpuid_regs){
            (uint32_t)m->xcr0, 0, cpu_model_xsave_size(m, m->xcr0, false), (uint32_t)(m->xcr0 >> 32)};
        entry(m, 0xd, 1, true);
        for (uint32_t i = 2; i < XSAVE_COMPONENTS; i++)
            if (m->xcr0 >> i & 1)
                entry(m, 0xd, i, true)->r =
                    (struct cpuid_regs){m->xsave[i].size, m->xsave[i].offset, m->xsave[i].align64 ? 2 : 0, 0};
    }
    if (!m->amd) // TSC = crystal * EBX / EAX; the crystal is what clocks the APIC timer
        entry(m, 0x15, 0, false)->r = (struct cpuid_regs){APIC_BUS_KHZ, m->tsc_khz, APIC_BUS_KHZ * 1000, 0};
}

static void add_extended(struct cpu_model *m)
{
    if (m->level < LEVEL_V2)
        return; // Pentium II and older have none
    m->max_extended = m->amd ? 0x80000021 : 0x80000008;
    struct cpuid_regs *r = &entry(m, 0x80000000, 0, false)->r;
    r->eax = m->max_extended;
    if (m->amd) {
        r->ebx = text(m->vendor);
        r->edx = text(m->vendor + 4);
        r->ecx = text(m->vendor + 8);
        entry(m, 0x80000001, 0, false)->r.eax = m->signature;
    }
    // The table of contents of the brand string: 48 bytes, zero-padded.
    char brand[48] = "gnomon virtual CPU (";
    unsigned n = 20;
    for (unsigned i = 0; m->name[i] && n < sizeof brand - 2; i++)
        brand[n++] = m->name[i];
    brand[n] = ')';
    for (uint32_t i = 0; i < 3; i++)
        entry(m, 0x80000002 + i, 0, false)->r =
            (struct cpuid_regs){text(brand + i * 16), text(brand + i * 16 + 4), text(brand + i * 16 + 8),
                                text(brand + i * 16 + 12)};
    entry(m, 0x80000007, 0, false);
    entry(m, 0x80000008, 0, false)->r.eax = m->virt_bits << 8 | m->phys_bits; // ECX: one core
}

static void add_hypervisor(struct cpu_model *m)
{
    if (!cpu_model_has(m, CPU_HYPERVISOR))
        return;
    entry(m, HYPERVISOR_KVM, 0, false)->r =
        (struct cpuid_regs){HYPERVISOR_KVM + 0x10, text("KVMK"), text("VMKV"), text("M\0\0\0")};
    entry(m, HYPERVISOR_KVM + 1, 0, false)->r.eax =
        KVM_NOP_IO_DELAY | KVM_CLOCKSOURCE2 | KVM_CLOCKSOURCE_STABLE;
    entry(m, HYPERVISOR_KVM + 0x10, 0, false)->r = (struct cpuid_regs){m->tsc_khz, APIC_BUS_KHZ, 0, 0};
    entry(m, HYPERVISOR_OWN, 0, false)->r =
        (struct cpuid_regs){HYPERVISOR_OWN + 1, text("gnom"), text("on\0\0"), text("\0\0\0\0")};
    entry(m, HYPERVISOR_OWN + 1, 0, false)->r =
        (struct cpuid_regs){m->tsc_khz, APIC_BUS_KHZ, (uint32_t)m->level, 0};
}

void cpu_model_build_cpuid(struct cpu_model *m, const struct cpu_host *host)
{
    m->entry_count = 0;
    add_basic(m);
    add_extended(m);
    add_hypervisor(m);
    add_caches(m, host);
    add_features(m);
    if (m->amd && m->max_extended) { // AMD repeats these bits of leaf 1 (APM 3 E.4.2)
        uint32_t edx = entry(m, 1, 0, false)->r.edx & 0x0183f3ff;
        entry(m, 0x80000001, 0, false)->r.edx |= edx;
    }
}

// ---- look-up

static const struct cpuid_entry *find(const struct cpu_model *m, uint32_t leaf, uint32_t subleaf)
{
    for (unsigned i = 0; i < m->entry_count; i++) {
        const struct cpuid_entry *e = &m->entry[i];
        if (e->leaf == leaf && (!e->indexed || e->subleaf == subleaf))
            return e;
    }
    return 0;
}

// What depends on the state of the CPU.
static void add_state(const struct vcpu *v, uint32_t leaf, uint32_t subleaf, struct cpuid_regs *r)
{
    const struct cpu_model *m = v->model;
    bool apic_off =
        !v->lapic || !(v->s.apic_base & 0x800); // an APIC disabled by its MSR is not reported (10.4.3)
    switch (leaf) {
    case 0:
        if (v->s.misc_enable & 1u << 22 && r->eax > 2) // limit CPUID maxval
            r->eax = 2;
        break;
    case 1:
        if (m->level >= LEVEL_PENTIUM)
            r->ebx |= (v->id & 0xff) << 24;
        if (apic_off)
            r->edx &= ~LEAF1_EDX_APIC;
        if (v->s.cr4 & CR4_OSXSAVE)
            r->ecx |= LEAF1_ECX_OSXSAVE;
        break;
    case 0xb:
        r->ecx |= subleaf & 0xff;
        r->edx = v->id;
        break;
    case 0xd:
        if (subleaf == 0)
            r->ebx = cpu_model_xsave_size(m, v->s.xcr0, false);
        else if (subleaf == 1 && cpu_model_has(m, CPU_XSAVEC))
            r->ebx = cpu_model_xsave_size(m, v->s.xcr0, true);
        break;
    case 0x80000001:
        if (m->amd && apic_off)
            r->edx &= ~LEAF1_EDX_APIC;
        if (v->s.misc_enable >> 34 & 1) // XD disable
            r->edx &= ~(1u << 20);
        if (!m->amd && !((v->s.efer & EFER_LMA) && (v->s.seg[SEG_CS].attr & SEG_L)))
            r->edx &= ~(1u << 11); // Intel shows SYSCALL to 64-bit code only
        break;
    default: break;
    }
}

struct cpuid_regs cpu_cpuid(struct vcpu *v, uint32_t leaf, uint32_t subleaf)
{
    const struct cpu_model *m = v->model;
    struct cpuid_regs r = {0};
    bool hypervisor = leaf >> 28 == 4;
    uint32_t max = leaf & 0x80000000 ? m->max_extended : m->max_basic;
    if (leaf > max && !(hypervisor && cpu_model_has(m, CPU_HYPERVISOR))) {
        if (m->amd)
            return r;
        leaf = m->max_basic; // Intel: as the highest basic leaf
    }
    const struct cpuid_entry *e = find(m, leaf, subleaf);
    if (!e && !(leaf == 0xb && cpu_model_has(m, CPU_X2APIC)))
        return r;
    if (e)
        r = e->r;
    add_state(v, leaf, subleaf, &r);
    return r;
}
