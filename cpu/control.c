// Control and debug registers, descriptor-table registers, TLB invalidation: the instructions that decide
// which machine the others run on. SDM 3A 2.5 (control registers), 4.1 (paging modes), 9.8.5 (IA-32e
// mode), 17.2 (debug registers).
//
// A change that the translator keys blocks by bumps mode_gen; a change that alters what a linear address
// means flushes. Both happen after every check and every access that can fault.
#include "cpu/internal.h"
#include "cpu/lapic.h"
#include "cpu/model.h"
#include "cpu/planted.h"
#include "mmu/mem.h"

#define CR0_DEFINED                                                                                          \
    (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG)
#define CR3_NOFLUSH  (1ull << 63)
#define CR3_PCID     0xfffull
#define DR6_ONE      0xffff0ff0ull // bits that read as one
#define DR6_WRITABLE 0x0000e00full
#define DR7_ONE      0x00000400ull
#define DR7_WRITABLE 0xffff23ffull

static _Noreturn void general_protection(struct vcpu *v) { cpu_throw_error(v, EXC_GP, 0); }

static void require_cpl0(struct vcpu *v)
{
    if (v->s.cpl != 0)
        general_protection(v);
}

// ---- paging

// 3A 4.4.1: the four PDPTEs of PAE paging are registers, checked as a whole when loaded.
static void load_pdptes(struct vcpu *v, uint64_t cr3, uint64_t pdpte[4])
{
    unsigned phys_bits = cpu_model_phys_bits(v->model);
    uint64_t reserved = 0x1e6 | ~((1ull << (phys_bits & 63)) - 1);
    if (!mem_read(v->mem, (cr3 & 0xffffffe0) & v->mem->a20_mask, pdpte, 32))
        for (unsigned i = 0; i < 4; i++)
            pdpte[i] = ~0ull; // nothing answers there
    for (unsigned i = 0; i < 4; i++)
        if (pdpte[i] & 1 && pdpte[i] & reserved)
            general_protection(v);
}

static void commit_pdptes(struct vcpu *v, const uint64_t pdpte[4])
{
    for (unsigned i = 0; i < 4; i++)
        v->s.pdpte[i] = pdpte[i];
}

void cpu_set_cr0(struct vcpu *v, uint64_t value)
{
    struct cpu_state *s = &v->s;
    if (value >> 32)
        general_protection(v);
    value = (value & CR0_DEFINED) | CR0_ET;
    uint64_t changed = s->cr0 ^ value, efer = s->efer;
    if ((value & CR0_PG && !(value & CR0_PE)) || (value & CR0_NW && !(value & CR0_CD)))
        general_protection(v);
    if (changed & CR0_PG && efer & EFER_LME) {
        bool cs_l = s->seg[SEG_CS].attr & SEG_L;
        unsigned tr_type = s->tr.attr & SEG_TYPE_MASK;
        if (value & CR0_PG) { // 9.8.5
            if (!(s->cr4 & CR4_PAE) || cs_l || tr_type == SYS_TSS16_AVAIL || tr_type == SYS_TSS16_BUSY)
                general_protection(v);
            efer |= EFER_LMA;
        } else {
            if (cs_l || s->cr4 & CR4_PCIDE)
                general_protection(v);
            efer &= ~(uint64_t)EFER_LMA;
        }
    }
    uint64_t pdpte[4];
    bool load = value & CR0_PG && s->cr4 & CR4_PAE && !(efer & EFER_LMA) &&
                changed & (CR0_PG | CR0_CD | CR0_NW);
    if (load) {
        load_pdptes(v, s->cr3, pdpte);
        commit_pdptes(v, pdpte);
    }
    s->cr0 = value;
    s->efer = efer;
    if (changed)
        v->mode_gen++;
    if (changed & (CR0_PG | CR0_PE | CR0_WP))
        mmu_flush_all(v, true);
}

void cpu_set_cr3(struct vcpu *v, uint64_t value)
{
    struct cpu_state *s = &v->s;
    bool noflush = false;
    if (cpu_long(v)) {
        if (s->cr4 & CR4_PCIDE) {
            noflush = value & CR3_NOFLUSH;
            value &= ~CR3_NOFLUSH;
        }
        if (value >> (cpu_model_phys_bits(v->model) & 63))
            general_protection(v);
    } else {
        value = (uint32_t)value;
    }
    if (s->cr0 & CR0_PG && s->cr4 & CR4_PAE && !cpu_long(v)) {
        uint64_t pdpte[4];
        load_pdptes(v, value, pdpte);
        commit_pdptes(v, pdpte);
    }
    // The TLB is not tagged by PCID: only a reload of the very same root may keep it.
    bool keep = noflush && value == s->cr3;
    s->cr3 = value;
    if (s->cr0 & CR0_PG && !keep)
        mmu_flush_all(v, false);
}

void cpu_set_cr4(struct vcpu *v, uint64_t value)
{
    struct cpu_state *s = &v->s;
    uint64_t changed = s->cr4 ^ value;
    if (value & ~cpu_model_cr4_mask(v->model))
        general_protection(v);
    if (cpu_long(v) && !(value & CR4_PAE))
        general_protection(v);
    if (changed & value & CR4_PCIDE && (!cpu_long(v) || s->cr3 & CR3_PCID)) // 4.10.1
        general_protection(v);
    if (value & CR4_PAE && s->cr0 & CR0_PG && !cpu_long(v) &&
        changed & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP)) {
        uint64_t pdpte[4];
        load_pdptes(v, s->cr3, pdpte);
        commit_pdptes(v, pdpte);
    }
    s->cr4 = value;
    if (changed)
        v->mode_gen++;
    if (changed & CR4_DE)
        cpu_debug_update(v);
    if (changed & (CR4_PSE | CR4_PAE | CR4_PGE | CR4_SMEP | CR4_SMAP | CR4_PCIDE))
        mmu_flush_all(v, true);
}

// ---- control registers

// MOV CRn moves 64 bits in 64-bit mode and 32 elsewhere, whatever the prefixes say.
static unsigned mov_cr_size(const struct vcpu *v) { return cpu_code64(v) ? 8 : 4; }

void op_mov_from_cr(struct vcpu *v, const struct insn *in)
{
    uint64_t value;
    switch (in->reg) {
    case 0: value = v->s.cr0; break;
    case 2: value = v->s.cr2; break;
    case 3: value = v->s.cr3; break;
    case 4:
        if (!cpu_model_cr4_mask(v->model))
            cpu_throw(v, EXC_UD);
        value = v->s.cr4;
        break;
    case 8:
        if (!cpu_code64(v))
            cpu_throw(v, EXC_UD);
        value = v->lapic ? lapic_tpr(v->lapic) >> 4 : 0;
        break;
    default: cpu_throw(v, EXC_UD);
    }
    require_cpl0(v);
    gpr_write(v, in->rm, mov_cr_size(v), value);
    advance(v, in);
}

void op_mov_to_cr(struct vcpu *v, const struct insn *in)
{
    if (in->reg != 0 && in->reg != 2 && in->reg != 3 && in->reg != 4 && (in->reg != 8 || !cpu_code64(v)))
        cpu_throw(v, EXC_UD);
    require_cpl0(v);
    uint64_t value = gpr_read(v, in->rm, mov_cr_size(v));
    uint64_t next = next_rip(v, in);
    switch (in->reg) {
    case 0: cpu_set_cr0(v, value); break;
    case 2: v->s.cr2 = value; break;
    case 3: cpu_set_cr3(v, value); break;
    case 4: cpu_set_cr4(v, value); break;
    default: // CR8: the task priority (10.8.6)
        if (value & ~0xfull)
            general_protection(v);
        if (v->lapic)
            lapic_set_tpr(v->lapic, (uint8_t)(value << 4));
        break;
    }
    v->s.rip = next;
}

void op_clts(struct vcpu *v, const struct insn *in)
{
    require_cpl0(v);
    if (v->s.cr0 & CR0_TS) {
        v->s.cr0 &= ~(uint64_t)CR0_TS;
        v->mode_gen++;
    }
    advance(v, in);
}

void op_lmsw(struct vcpu *v, const struct insn *in)
{
    require_cpl0(v);
    uint64_t value = rm_read(v, in, 2);
    // PE can be set but not cleared.
    uint64_t cr0 = (v->s.cr0 & ~0xeull) | (value & 0xf);
    cpu_set_cr0(v, cr0);
    advance(v, in);
}

// ---- debug registers

static unsigned dr_number(struct vcpu *v, const struct insn *in)
{
    unsigned n = in->reg;
    if (n > 7)
        cpu_throw(v, EXC_UD);
    if (n == 4 || n == 5) { // 17.2.2
        if (v->s.cr4 & CR4_DE)
            cpu_throw(v, EXC_UD);
        n += 2;
    }
    require_cpl0(v);
    if (v->s.dr[7] & DR7_GD) {
        v->s.dr[6] |= DR6_BD; // GD itself is cleared by the delivery (17.2.4)
        cpu_throw(v, EXC_DB);
    }
    return n;
}

void op_mov_from_dr(struct vcpu *v, const struct insn *in)
{
    unsigned n = dr_number(v, in);
    gpr_write(v, in->rm, mov_cr_size(v), v->s.dr[n]);
    advance(v, in);
}

void op_mov_to_dr(struct vcpu *v, const struct insn *in)
{
    unsigned n = dr_number(v, in);
    uint64_t value = gpr_read(v, in->rm, mov_cr_size(v));
    if (n >= 6 && value >> 32)
        general_protection(v);
    if (n == 6)
        value = (value & DR6_WRITABLE) | DR6_ONE;
    else if (n == 7)
        value = (value & DR7_WRITABLE) | DR7_ONE;
    if (v->s.dr[n] != value) {
        v->s.dr[n] = value ^ (PLANTED(debug_register) ? 4 : 0);
        if (n != 6) {
            v->mode_gen++;
            cpu_debug_update(v);
        }
    }
    advance(v, in);
}

// ---- stores of system registers. CR4.UMIP keeps them from applications (2A SGDT, note).

static void check_umip(struct vcpu *v)
{
    if (v->s.cr4 & CR4_UMIP && v->s.cpl != 0)
        general_protection(v);
}

static void store_table(struct vcpu *v, const struct insn *in, const struct dtable *t)
{
    if (!in->is_mem)
        cpu_throw(v, EXC_UD);
    check_umip(v);
    struct __attribute__((packed)) {
        uint16_t limit;
        uint64_t base;
    } image = {(uint16_t)(t->limit + PLANTED(table_limit)), t->base};
    // Processors since the 386 store all 32 bits of the base, whatever the operand size.
    cpu_write_block(v, in->sreg, cpu_effective_address(v, in), &image, cpu_code64(v) ? 10 : 6);
    advance(v, in);
}

void op_sgdt(struct vcpu *v, const struct insn *in) { store_table(v, in, &v->s.gdtr); }
void op_sidt(struct vcpu *v, const struct insn *in) { store_table(v, in, &v->s.idtr); }

// Memory gets 16 bits, a register the operand size.
static void store_word(struct vcpu *v, const struct insn *in, uint64_t value)
{
    check_umip(v);
    if (in->is_mem)
        cpu_write(v, in->sreg, cpu_effective_address(v, in), 2, value & 0xffff);
    else
        gpr_write(v, in->rm, in->op_size, value);
    advance(v, in);
}

void op_smsw(struct vcpu *v, const struct insn *in) { store_word(v, in, v->s.cr0); }

static void require_protected(struct vcpu *v)
{
    if (!cpu_protected(v) || cpu_v86(v))
        cpu_throw(v, EXC_UD);
}

void op_sldt(struct vcpu *v, const struct insn *in)
{
    require_protected(v);
    store_word(v, in, v->s.ldtr.sel);
}

void op_str(struct vcpu *v, const struct insn *in)
{
    require_protected(v);
    store_word(v, in, v->s.tr.sel);
}

// ---- loads of system registers

static void load_table(struct vcpu *v, const struct insn *in, struct dtable *t)
{
    if (!in->is_mem)
        cpu_throw(v, EXC_UD);
    require_cpl0(v);
    struct __attribute__((packed)) {
        uint16_t limit;
        uint64_t base;
    } image = {0, 0};
    bool code64 = cpu_code64(v);
    cpu_read_block(v, in->sreg, cpu_effective_address(v, in), &image, code64 ? 10 : 6);
    if (code64 && !is_canonical(image.base))
        general_protection(v);
    if (!code64 && in->op_size == 2)
        image.base &= 0xffffff;
    t->limit = image.limit;
    t->base = image.base;
    advance(v, in);
}

void op_lgdt(struct vcpu *v, const struct insn *in) { load_table(v, in, &v->s.gdtr); }
void op_lidt(struct vcpu *v, const struct insn *in) { load_table(v, in, &v->s.idtr); }

// Fetches the system descriptor of LLDT and LTR; in IA-32e mode all 16 bytes, with the upper type zero and a
// canonical base.
static void fetch_system(struct vcpu *v, uint16_t sel, struct descriptor *d)
{
    *d = (struct descriptor){0};
    if (sel & 4 || !descriptor_fetch(v, sel, d))
        cpu_throw_error(v, EXC_GP, sel & 0xfffc);
    if (cpu_long(v) && !descriptor_fetch_high(v, sel, d))
        cpu_throw_error(v, EXC_GP, sel & 0xfffc);
}

static void check_system(struct vcpu *v, uint16_t sel, const struct descriptor *d, struct segment *out)
{
    if (!descriptor_present(d))
        cpu_throw_error(v, EXC_NP, sel & 0xfffc);
    descriptor_to_segment(d, sel, cpu_long(v), out);
    if (cpu_long(v) && ((d->high >> 40 & 0x1f) || !is_canonical(out->base)))
        cpu_throw_error(v, EXC_GP, sel & 0xfffc);
}

void op_lldt(struct vcpu *v, const struct insn *in)
{
    require_protected(v);
    require_cpl0(v);
    uint16_t sel = (uint16_t)rm_read(v, in, 2);
    if (is_null(sel)) {
        v->s.ldtr = (struct segment){.sel = sel, .attr = SEG_UNUSABLE};
    } else {
        struct descriptor d;
        struct segment ldtr;
        fetch_system(v, sel, &d);
        if (descriptor_type(&d) != SYS_LDT)
            cpu_throw_error(v, EXC_GP, sel & 0xfffc);
        check_system(v, sel, &d, &ldtr);
        v->s.ldtr = ldtr;
    }
    advance(v, in);
}

void op_ltr(struct vcpu *v, const struct insn *in)
{
    require_protected(v);
    require_cpl0(v);
    uint16_t sel = (uint16_t)rm_read(v, in, 2);
    if (is_null(sel))
        general_protection(v);
    struct descriptor d;
    struct segment tr;
    fetch_system(v, sel, &d);
    unsigned type = descriptor_type(&d);
    if (type != SYS_TSS_AVAIL && (cpu_long(v) || type != SYS_TSS16_AVAIL))
        cpu_throw_error(v, EXC_GP, sel & 0xfffc);
    check_system(v, sel, &d, &tr);
    system_write(v, d.la + 5, 1, (d.raw >> 40 & 0xff) | 2); // busy
    tr.attr |= 2;
    v->s.tr = tr;
    advance(v, in);
}

// ---- invalidation

void op_invlpg(struct vcpu *v, const struct insn *in)
{
    if (!in->is_mem)
        cpu_throw(v, EXC_UD);
    require_cpl0(v);
    // No segment or canonical check is made (2A INVLPG).
    uint64_t offset = cpu_effective_address(v, in);
    unsigned sreg = in->sreg < SEG_COUNT ? in->sreg : SEG_DS;
    uint64_t la;
    if (cpu_code64(v))
        la = offset + (sreg >= SEG_FS ? v->s.seg[sreg].base : 0);
    else
        la = (uint32_t)(offset + v->s.seg[sreg].base);
    if (is_canonical(la) && !PLANTED(stale_tlb))
        mmu_flush_page(v, la);
    advance(v, in);
}

void op_invpcid(struct vcpu *v, const struct insn *in)
{
    if (!in->is_mem || !cpu_model_has(v->model, CPU_INVPCID))
        cpu_throw(v, EXC_UD);
    require_cpl0(v);
    uint64_t type = gpr_read(v, in->reg, mov_cr_size(v));
    uint64_t desc[2] = {0, 0}; // PCID, linear address
    cpu_read_block(v, in->sreg, cpu_effective_address(v, in), desc, sizeof desc);
    uint64_t pcid = desc[0], la = desc[1];
    if (type > 3 || pcid & ~CR3_PCID)
        general_protection(v);
    if (type <= 1 && pcid && !(v->s.cr4 & CR4_PCIDE))
        general_protection(v);
    // The TLB holds the current PCID only; what belongs to another is gone since the switch.
    bool current = pcid == (v->s.cr4 & CR4_PCIDE ? v->s.cr3 & CR3_PCID : 0);
    switch (type) {
    case 0: // one address
        if (!is_canonical(la))
            general_protection(v);
        if (current)
            mmu_flush_page(v, la);
        break;
    case 1: // one PCID
        if (current)
            mmu_flush_all(v, false);
        break;
    case 2: mmu_flush_all(v, true); break;  // all, global ones too
    default: mmu_flush_all(v, false); break; // all but global ones
    }
    advance(v, in);
}

// There are no caches that could hold what memory does not.
static void no_caches(struct vcpu *v, const struct insn *in)
{
    require_cpl0(v);
    advance(v, in);
}

void op_invd(struct vcpu *v, const struct insn *in) { no_caches(v, in); }
void op_wbinvd(struct vcpu *v, const struct insn *in) { no_caches(v, in); }
