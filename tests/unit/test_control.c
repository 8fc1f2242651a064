// Control and debug registers, system table registers, TLB invalidation.
#include "model_fixture.h"
#include "cpu/lapic.h"
#include "devices/device.h"

static struct {
    unsigned pages, alls, globals;
    uint64_t la;
} flushed;

static void note_page(void *opaque, uint64_t la)
{
    (void)opaque;
    flushed.pages++;
    flushed.la = la;
}

static void note_all(void *opaque, bool global)
{
    (void)opaque;
    flushed.alls++;
    flushed.globals += global;
}

static int setup(void **state)
{
    intel_setup(state);
    struct world *w = *state;
    memset(&flushed, 0, sizeof flushed);
    w->v->listener.page_flushed = note_page;
    w->v->listener.tlb_flushed = note_all;
    return 0;
}

static int mov_to_cr(struct world *w, unsigned cr, uint64_t value)
{
    w->v->s.gpr[RAX] = value;
    return run(w, (struct insn){.op = OP_MOV_TO_CR, .len = 3, .reg = (uint8_t)cr, .rm = RAX});
}

static uint64_t mov_from_cr(struct world *w, unsigned cr)
{
    assert_int_equal(run(w, (struct insn){.op = OP_MOV_FROM_CR, .len = 3, .reg = (uint8_t)cr, .rm = RBX}),
                     -1);
    return w->v->s.gpr[RBX];
}

static struct insn at(unsigned op, unsigned op_size, uint32_t address)
{
    return (struct insn){.op = (uint8_t)op,
                         .op_size = (uint8_t)op_size,
                         .addr_size = 4,
                         .is_mem = 1,
                         .sreg = SEG_DS,
                         .base = -1,
                         .index = -1,
                         .disp = address};
}

static void invalid_control_registers_are_undefined_at_any_cpl(void **state)
{
    struct world *w = *state;
    static const uint8_t bad[] = {1, 5, 6, 7, 9, 15};
    for (unsigned cpl = 0; cpl <= 3; cpl += 3) {
        enter_long(w, cpl);
        for (unsigned i = 0; i < sizeof bad; i++) {
            assert_int_equal(mov_to_cr(w, bad[i], 0), EXC_UD);
            assert_int_equal(run(w, (struct insn){.op = OP_MOV_FROM_CR, .reg = bad[i]}), EXC_UD);
        }
    }
    assert_fault(mov_to_cr(w, 0, 0), EXC_GP, 0);
    assert_fault(mov_to_cr(w, 3, 0), EXC_GP, 0);
    enter_protected(w, 0);
    w->v->s.efer = 0;
    assert_int_equal(mov_to_cr(w, 8, 0), EXC_UD); // 64-bit code only
}

static void cr0_refuses_impossible_combinations(void **state)
{
    struct world *w = *state;
    assert_fault(mov_to_cr(w, 0, CR0_PG), EXC_GP, 0);
    assert_fault(mov_to_cr(w, 0, CR0_PE | CR0_NW), EXC_GP, 0);
    assert_int_equal(mov_to_cr(w, 0, CR0_PE | CR0_NW | CR0_CD), -1);
    assert_int_equal(mov_from_cr(w, 0), CR0_PE | CR0_NW | CR0_CD | CR0_ET);
    assert_int_equal(mov_to_cr(w, 0, CR0_PE | 0x1ffaffc0), -1); // reserved bits are ignored
    assert_int_equal(mov_from_cr(w, 0), CR0_PE | CR0_ET);
    enter_long(w, 0);
    assert_fault(mov_to_cr(w, 0, 1ull << 32 | CR0_PE | CR0_PG), EXC_GP, 0);
}

static void cr0_pe_pg_and_wp_flush_and_ts_does_not(void **state)
{
    struct world *w = *state;
    uint32_t gen = w->v->mode_gen;
    w->v->s.cr0 = CR0_ET;
    assert_int_equal(mov_to_cr(w, 0, CR0_ET | CR0_TS | CR0_MP | CR0_NE), -1);
    assert_int_equal(flushed.alls, 0);
    assert_int_equal(w->v->mode_gen, gen + 1);
    assert_int_equal(mov_to_cr(w, 0, CR0_ET | CR0_TS | CR0_MP | CR0_NE), -1);
    assert_int_equal(w->v->mode_gen, gen + 1); // nothing changed
    assert_int_equal(mov_to_cr(w, 0, CR0_ET | CR0_PE), -1);
    assert_int_equal(flushed.globals, 1);
    assert_int_equal(mov_to_cr(w, 0, CR0_ET | CR0_PE | CR0_WP), -1);
    assert_int_equal(flushed.globals, 2);
}

static void long_mode_begins_with_paging_and_ends_with_it(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    w->v->s.cr0 = CR0_PE | CR0_ET;
    assert_int_equal(mov_to_cr(w, 3, PML4), -1);
    assert_int_equal(try_wrmsr(w, 0xc0000080, EFER_LME), -1);
    assert_fault(mov_to_cr(w, 0, CR0_PE | CR0_PG), EXC_GP, 0); // no PAE
    assert_int_equal(mov_to_cr(w, 4, CR4_PAE), -1);
    w->v->s.tr.attr = SEG_P | SYS_TSS16_BUSY;
    assert_fault(mov_to_cr(w, 0, CR0_PE | CR0_PG), EXC_GP, 0);
    w->v->s.tr.attr = SEG_P | SYS_TSS_BUSY;
    w->v->s.seg[SEG_CS].attr |= SEG_L;
    assert_fault(mov_to_cr(w, 0, CR0_PE | CR0_PG), EXC_GP, 0);
    w->v->s.seg[SEG_CS].attr &= ~SEG_L;
    assert_int_equal(mov_to_cr(w, 0, CR0_PE | CR0_PG), -1);
    assert_int_equal(w->v->s.efer, EFER_LME | EFER_LMA);
    assert_fault(mov_to_cr(w, 4, 0), EXC_GP, 0); // PAE must stay
    assert_int_equal(mov_to_cr(w, 0, CR0_PE), -1);
    assert_int_equal(w->v->s.efer, EFER_LME);
    enter_long(w, 0);
    assert_fault(mov_to_cr(w, 0, CR0_PE), EXC_GP, 0); // from 64-bit code
}

static void pae_paging_loads_and_checks_four_pdptes(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    w->v->s.cr0 = CR0_PE | CR0_ET;
    for (unsigned i = 0; i < 4; i++)
        poke(w, 0x5020 + 8 * i, 0x100001 + 0x1000 * i, 8);
    assert_int_equal(mov_to_cr(w, 3, 0x5020), -1);
    assert_int_equal(mov_to_cr(w, 4, CR4_PAE), -1);
    assert_int_equal(w->v->s.pdpte[3], 0); // not before paging
    assert_int_equal(mov_to_cr(w, 0, CR0_PE | CR0_PG), -1);
    assert_int_equal(w->v->s.pdpte[0], 0x100001);
    assert_int_equal(w->v->s.pdpte[3], 0x103001);
    poke(w, 0x5028, 0x200001, 8);
    assert_int_equal(w->v->s.pdpte[1], 0x101001); // registers
    assert_int_equal(mov_to_cr(w, 3, 0x5020), -1);
    assert_int_equal(w->v->s.pdpte[1], 0x200001);
    static const uint64_t reserved[] = {3, 5, 0x21, 0x101, 1ull << 46 | 1, 1ull << 63 | 1};
    for (unsigned i = 0; i < 6; i++) {
        poke(w, 0x5038, reserved[i], 8);
        assert_fault(mov_to_cr(w, 3, 0x5020), EXC_GP, 0);
        assert_fault(mov_to_cr(w, 4, CR4_PAE | CR4_PGE), EXC_GP, 0);
        assert_int_equal(w->v->s.pdpte[3], 0x103001);
    }
    poke(w, 0x5038, ~1ull, 8); // not present: ignored
    assert_int_equal(mov_to_cr(w, 3, 0x5020), -1);
    assert_int_equal(w->v->s.pdpte[3], ~1ull);
}

static void cr3_reserved_bits_fault_in_long_mode(void **state)
{
    struct world *w = *state;
    enter_long(w, 0);
    assert_fault(mov_to_cr(w, 3, 1ull << 46 | PML4), EXC_GP, 0);
    assert_fault(mov_to_cr(w, 3, 1ull << 63 | PML4), EXC_GP, 0); // without PCIDE
    assert_int_equal(flushed.alls, 0);
    assert_int_equal(mov_to_cr(w, 3, PML4 | 0x18), -1);
    assert_int_equal(mov_from_cr(w, 3), PML4 | 0x18);
    assert_int_equal(flushed.alls, 1);
    assert_int_equal(flushed.globals, 0);
}

static void pcide_needs_long_mode_and_pcid_0(void **state)
{
    struct world *w = *state;
    w->v->s.cr0 = CR0_PE | CR0_ET;
    assert_fault(mov_to_cr(w, 4, CR4_PCIDE), EXC_GP, 0);
    enter_long(w, 0);
    w->v->s.cr3 = PML4 | 1;
    assert_fault(mov_to_cr(w, 4, CR4_PAE | CR4_PCIDE), EXC_GP, 0);
    w->v->s.cr3 = PML4;
    assert_int_equal(mov_to_cr(w, 4, CR4_PAE | CR4_PCIDE), -1);
    assert_int_equal(flushed.globals, 1);
    assert_int_equal(mov_to_cr(w, 3, 1ull << 63 | PML4 | 5), -1);
    assert_int_equal(mov_from_cr(w, 3), PML4 | 5); // bit 63 is not kept
    unsigned alls = flushed.alls;
    assert_int_equal(mov_to_cr(w, 3, 1ull << 63 | PML4 | 5), -1);
    assert_int_equal(flushed.alls, alls); // same root, no flush asked for
    assert_int_equal(mov_to_cr(w, 3, PML4 | 5), -1);
    assert_int_equal(flushed.alls, alls + 1);
    w->v->s.seg[SEG_CS].attr &= ~SEG_L;
    assert_fault(mov_to_cr(w, 0, CR0_PE), EXC_GP, 0); // paging can't end with PCIDE
}

static void cr4_refuses_what_the_model_lacks(void **state)
{
    struct world *w = *state;
    static const unsigned unknown[] = {12, 13, 14, 15, 19, 22, 23, 24};
    for (unsigned i = 0; i < 8; i++)
        assert_fault(mov_to_cr(w, 4, 1ull << unknown[i]), EXC_GP, 0);
    uint32_t gen = w->v->mode_gen;
    assert_int_equal(mov_to_cr(w, 4, CR4_OSFXSR | CR4_OSXSAVE), -1);
    assert_int_equal(w->v->mode_gen, gen + 1);
    assert_int_equal(flushed.alls, 0);
    static const uint32_t flushing[] = {CR4_PSE, CR4_PAE, CR4_PGE, CR4_SMEP, CR4_SMAP};
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(mov_to_cr(w, 4, flushing[i]), -1);
        assert_int_equal(flushed.globals, i + 1);
    }
    use_model(w, "486", false);
    assert_fault(mov_to_cr(w, 4, CR4_PAE), EXC_GP, 0);
    assert_int_equal(mov_to_cr(w, 4, CR4_PSE), -1);
}

static uint64_t zero_clock(void *opaque)
{
    (void)opaque;
    return 0;
}

static void cr8_is_the_task_priority(void **state)
{
    struct world *w = *state;
    struct timer_queue clock = {.now = zero_clock};
    struct lapic *l = lapic_create(w->v, &clock, NULL, NULL, NULL);
    w->v->lapic = l;
    enter_long(w, 0);
    assert_int_equal(mov_to_cr(w, 8, 0xb), -1);
    assert_int_equal(lapic_tpr(l), 0xb0);
    assert_int_equal(mov_from_cr(w, 8), 0xb);
    assert_fault(mov_to_cr(w, 8, 0x10), EXC_GP, 0);
    lapic_destroy(l);
    w->v->lapic = NULL;
}

static void moves_are_32_bits_outside_64_bit_code(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    w->v->s.cr2 = 0x1122334455667788;
    w->v->s.gpr[RBX] = ~0ull;
    assert_int_equal(mov_from_cr(w, 2), 0x55667788);
    assert_int_equal(mov_to_cr(w, 2, 0xffffffff12345678), -1);
    assert_int_equal(w->v->s.cr2, 0x12345678);
    enter_long(w, 0);
    assert_int_equal(mov_to_cr(w, 2, 0xffffffff12345678), -1);
    assert_int_equal(w->v->s.cr2, 0xffffffff12345678);
    assert_int_equal(w->v->s.rip, CODE + 3);
}

static void lmsw_sets_pe_but_does_not_clear_it(void **state)
{
    struct world *w = *state;
    w->v->s.cr0 = CR0_ET | CR0_WP;
    w->v->s.gpr[RAX] = 0xffff;
    struct insn lmsw = {.op = OP_LMSW, .rm = RAX};
    assert_int_equal(run(w, lmsw), -1);
    assert_int_equal(w->v->s.cr0, CR0_ET | CR0_WP | 0xf);
    w->v->s.gpr[RAX] = 0;
    assert_int_equal(run(w, lmsw), -1);
    assert_int_equal(w->v->s.cr0, CR0_ET | CR0_WP | CR0_PE);
    w->v->s.cr0 |= CR0_TS;
    assert_int_equal(run(w, (struct insn){.op = OP_CLTS}), -1);
    assert_int_equal(w->v->s.cr0, CR0_ET | CR0_WP | CR0_PE);
    enter_protected(w, 3);
    assert_fault(run(w, lmsw), EXC_GP, 0);
    assert_fault(run(w, (struct insn){.op = OP_CLTS}), EXC_GP, 0);
}

static void debug_registers_alias_and_keep_their_fixed_bits(void **state)
{
    struct world *w = *state;
    uint64_t *r = w->v->s.gpr;
    enter_long(w, 0);
    struct insn to = {.op = OP_MOV_TO_DR, .reg = 4, .rm = RAX},
                from = {.op = OP_MOV_FROM_DR, .reg = 6, .rm = RBX};
    r[RAX] = 0;
    assert_int_equal(run(w, to), -1);
    assert_int_equal(run(w, from), -1);
    assert_int_equal(r[RBX], 0xffff0ff0);
    r[RAX] = 0xffffffff;
    assert_int_equal(run(w, to), -1);
    assert_int_equal(w->v->s.dr[6], 0xffffefff);
    to.reg = 5;
    r[RAX] = 0xffffdfff; // all but GD
    assert_int_equal(run(w, to), -1);
    assert_int_equal(w->v->s.dr[7], 0xffff07ff);
    r[RAX] = 1ull << 32;
    assert_fault(run(w, to), EXC_GP, 0);
    w->v->s.cr4 |= CR4_DE;
    assert_int_equal(run(w, to), EXC_UD);
    to.reg = 8;
    assert_int_equal(run(w, to), EXC_UD);
    to.reg = 3;
    r[RAX] = 0x123456789abcdef0;
    uint32_t gen = w->v->mode_gen;
    assert_int_equal(run(w, to), -1);
    assert_int_equal(w->v->s.dr[3], 0x123456789abcdef0);
    assert_int_equal(w->v->mode_gen, gen + 1);
    enter_long(w, 3);
    assert_fault(run(w, to), EXC_GP, 0);
}

static void general_detect_traps_before_the_access(void **state)
{
    struct world *w = *state;
    enter_long(w, 0);
    w->v->s.dr[7] = 0x2400;
    assert_int_equal(run(w, (struct insn){.op = OP_MOV_FROM_DR, .reg = 0, .rm = RBX}), EXC_DB);
    assert_int_equal(w->v->s.dr[6], 0xffff2ff0);
    assert_int_equal(w->v->s.rip, CODE);
    assert_int_equal(w->v->s.dr[7], 0x2400); // delivery, which clears it, has to see a fault
}

static void table_stores_are_6_or_10_bytes(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    w->v->s.gdtr = (struct dtable){.base = 0x12345678, .limit = 0x9abc};
    poke(w, 0x6000, ~0ull, 8);
    poke(w, 0x6008, ~0ull, 8);
    assert_int_equal(run(w, at(OP_SGDT, 2, 0x6000)), -1);
    assert_int_equal(peek(w, 0x6000, 8), 0xffff123456789abc);
    enter_long(w, 0);
    w->v->s.idtr = (struct dtable){.base = 0xffffffff12345678, .limit = 0xfff};
    assert_int_equal(run(w, at(OP_SIDT, 8, 0x6000)), -1);
    assert_int_equal(peek(w, 0x6000, 8), 0xffff123456780fff);
    assert_int_equal(peek(w, 0x6008, 8), 0xffffffffffffffff);
}

static void table_loads_take_24_32_or_64_bits(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    poke(w, 0x6000, 0xffff8876543210ff, 8);
    poke(w, 0x6008, 0xffff, 8);
    assert_int_equal(run(w, at(OP_LIDT, 2, 0x6000)), -1);
    assert_int_equal(w->v->s.idtr.limit, 0x10ff);
    assert_int_equal(w->v->s.idtr.base, 0x765432);
    assert_int_equal(run(w, at(OP_LIDT, 4, 0x6000)), -1);
    assert_int_equal(w->v->s.idtr.base, 0x88765432);
    enter_long(w, 0);
    assert_int_equal(run(w, at(OP_LGDT, 8, 0x6000)), -1);
    assert_int_equal(w->v->s.gdtr.base, 0xffffffff88765432);
    poke(w, 0x6008, 0x8000, 8);
    assert_fault(run(w, at(OP_LGDT, 8, 0x6000)), EXC_GP, 0); // not canonical
    enter_long(w, 3);
    assert_fault(run(w, at(OP_LGDT, 8, 0x6000)), EXC_GP, 0);
}

static void umip_hides_system_registers_from_applications(void **state)
{
    struct world *w = *state;
    static const uint8_t ops[] = {OP_SGDT, OP_SIDT, OP_SLDT, OP_STR, OP_SMSW};
    enter_long(w, 3);
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(run(w, at(ops[i], 8, 0x6000)), -1);
    w->v->s.cr4 |= CR4_UMIP;
    for (unsigned i = 0; i < 5; i++)
        assert_fault(run(w, at(ops[i], 8, 0x6000)), EXC_GP, 0);
    w->v->s.cpl = 0;
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(run(w, at(ops[i], 8, 0x6000)), -1);
}

static void word_stores_fill_a_register_but_two_bytes_of_memory(void **state)
{
    struct world *w = *state;
    enter_long(w, 0);
    w->v->s.cr0 = 0x80050033;
    w->v->s.gpr[RCX] = ~0ull;
    assert_int_equal(run(w, (struct insn){.op = OP_SMSW, .op_size = 2, .rm = RCX}), -1);
    assert_int_equal(w->v->s.gpr[RCX], 0xffffffffffff0033);
    assert_int_equal(run(w, (struct insn){.op = OP_SMSW, .op_size = 4, .rm = RCX}), -1);
    assert_int_equal(w->v->s.gpr[RCX], 0x80050033);
    w->v->s.gpr[RCX] = ~0ull;
    assert_int_equal(run(w, (struct insn){.op = OP_STR, .op_size = 4, .rm = RCX}), -1);
    assert_int_equal(w->v->s.gpr[RCX], TSS_SEL);
    poke(w, 0x6000, ~0ull, 8);
    assert_int_equal(run(w, at(OP_SMSW, 8, 0x6000)), -1);
    assert_int_equal(peek(w, 0x6000, 8), 0xffffffffffff0033);
    enter_real(w);
    w->v->s.cr0 = CR0_ET;
    assert_int_equal(run(w, (struct insn){.op = OP_STR, .op_size = 2, .rm = RCX}), EXC_UD);
    assert_int_equal(run(w, (struct insn){.op = OP_SLDT, .op_size = 2, .rm = RCX}), EXC_UD);
    assert_int_equal(run(w, (struct insn){.op = OP_LLDT, .op_size = 2, .rm = RCX}), EXC_UD);
}

static int load_selector(struct world *w, unsigned op, uint16_t sel)
{
    w->v->s.gpr[RAX] = sel;
    return run(w, (struct insn){.op = (uint8_t)op, .op_size = 2, .rm = RAX});
}

static void lldt_checks_in_the_manuals_order(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    assert_int_equal(load_selector(w, OP_LLDT, LDT_SEL), -1);
    assert_int_equal(w->v->s.ldtr.base, LDT);
    assert_int_equal(w->v->s.ldtr.limit, 0x1f);
    assert_fault(load_selector(w, OP_LLDT, LDT_SEL | 4), EXC_GP, LDT_SEL | 4);
    assert_fault(load_selector(w, OP_LLDT, DS32), EXC_GP, DS32);
    assert_fault(load_selector(w, OP_LLDT, GDT_LIMIT + 1), EXC_GP, GDT_LIMIT + 1);
    put_descriptor(w, SPARE, LDT, 0x1f, SYS_LDT);
    assert_fault(load_selector(w, OP_LLDT, SPARE), EXC_NP, SPARE);
    assert_int_equal(w->v->s.ldtr.sel, LDT_SEL);
    assert_int_equal(load_selector(w, OP_LLDT, 3), -1); // null
    assert_false(seg_usable(&w->v->s.ldtr));
    enter_protected(w, 3);
    assert_fault(load_selector(w, OP_LLDT, LDT_SEL), EXC_GP, 0);
}

static void ltr_marks_the_descriptor_busy(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    assert_fault(load_selector(w, OP_LTR, 0), EXC_GP, 0);
    assert_fault(load_selector(w, OP_LTR, TSS_SEL), EXC_GP, TSS_SEL); // busy
    assert_int_equal(load_selector(w, OP_LTR, TSS2_SEL), -1);
    assert_int_equal(w->v->s.tr.base, TSS2);
    assert_int_equal(w->v->s.tr.attr & 0xf, SYS_TSS_BUSY);
    assert_int_equal(peek(w, GDT + TSS2_SEL + 5, 1), SEG_P | SYS_TSS_BUSY);
    put_descriptor(w, SPARE, TSS, 0x2b, SEG_P | SYS_TSS16_AVAIL);
    assert_int_equal(load_selector(w, OP_LTR, SPARE), -1);
    enter_long(w, 0);
    put_descriptor(w, SPARE, TSS, 0x2b, SEG_P | SYS_TSS16_AVAIL);
    poke(w, GDT + SPARE + 8, 0, 8);
    assert_fault(load_selector(w, OP_LTR, SPARE), EXC_GP, SPARE); // no 16-bit TSS in long mode
    put_descriptor(w, SPARE, TSS, 0x67, SEG_P | SYS_TSS_AVAIL);
    poke(w, GDT + SPARE + 8, 0xffff8000, 8);
    assert_int_equal(load_selector(w, OP_LTR, SPARE), -1);
    assert_int_equal(w->v->s.tr.base, 0xffff800000000000 | TSS);
    put_descriptor(w, SPARE, TSS, 0x67, SEG_P | SYS_TSS_AVAIL);
    poke(w, GDT + SPARE + 8, 0x8000, 8); // not canonical
    assert_fault(load_selector(w, OP_LTR, SPARE), EXC_GP, SPARE);
    poke(w, GDT + SPARE + 8, 1ull << 40, 8); // upper type not zero
    assert_fault(load_selector(w, OP_LTR, SPARE), EXC_GP, SPARE);
}

static void invlpg_checks_privilege_but_no_segment(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    w->v->s.seg[SEG_DS].base = 0x1000;
    w->v->s.seg[SEG_DS].limit = 0;
    assert_int_equal(run(w, at(OP_INVLPG, 4, 0x5123)), -1);
    assert_int_equal(flushed.pages, 1);
    assert_int_equal(flushed.la >> 12, 6);
    assert_int_equal(run(w, (struct insn){.op = OP_INVLPG}), EXC_UD); // a register operand
    enter_long(w, 0);
    w->v->s.gpr[RBX] = 1ull << 47;
    struct insn in = at(OP_INVLPG, 8, 0);
    in.base = RBX;
    in.addr_size = 8;
    assert_int_equal(run(w, in), -1); // not canonical: nothing
    assert_int_equal(flushed.pages, 1);
    enter_long(w, 3);
    assert_fault(run(w, in), EXC_GP, 0);
}

static int invpcid(struct world *w, uint64_t type, uint64_t pcid, uint64_t la)
{
    poke(w, 0x6000, pcid, 8);
    poke(w, 0x6008, la, 8);
    w->v->s.gpr[RCX] = type;
    struct insn in = at(OP_INVPCID, 8, 0x6000);
    in.reg = RCX;
    return run(w, in);
}

static void invpcid_has_four_types(void **state)
{
    struct world *w = *state;
    enter_long(w, 0);
    assert_fault(invpcid(w, 4, 0, 0), EXC_GP, 0);
    assert_fault(invpcid(w, 2, 0x1000, 0), EXC_GP, 0);
    assert_fault(invpcid(w, 0, 1, 0), EXC_GP, 0); // PCID not enabled
    assert_fault(invpcid(w, 1, 1, 0), EXC_GP, 0);
    assert_fault(invpcid(w, 0, 0, 1ull << 47), EXC_GP, 0);
    assert_int_equal(flushed.alls + flushed.pages, 0);
    w->v->s.cr4 |= CR4_PCIDE;
    w->v->s.cr3 = PML4 | 7;
    assert_int_equal(invpcid(w, 0, 7, 0x123456), -1);
    assert_int_equal(flushed.pages, 1);
    assert_int_equal(flushed.la >> 12, 0x123);
    assert_int_equal(invpcid(w, 0, 8, 0x123456), -1); // another PCID: nothing of it is cached
    assert_int_equal(invpcid(w, 1, 8, 0), -1);
    assert_int_equal(flushed.pages + flushed.alls, 1);
    assert_int_equal(invpcid(w, 1, 7, 0), -1);
    assert_int_equal(flushed.alls, 1);
    assert_int_equal(invpcid(w, 3, 0, 0), -1);
    assert_int_equal(flushed.alls, 2);
    assert_int_equal(flushed.globals, 0);
    assert_int_equal(invpcid(w, 2, 0, 0), -1);
    assert_int_equal(flushed.globals, 1);
    enter_long(w, 3);
    assert_fault(invpcid(w, 2, 0, 0), EXC_GP, 0);
    use_model(w, "pentium2", false);
    assert_int_equal(invpcid(w, 2, 0, 0), EXC_UD);
}

#define CONTROL_TEST(name) cmocka_unit_test_setup_teardown(name, setup, world_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CONTROL_TEST(invalid_control_registers_are_undefined_at_any_cpl),
        CONTROL_TEST(cr0_refuses_impossible_combinations),
        CONTROL_TEST(cr0_pe_pg_and_wp_flush_and_ts_does_not),
        CONTROL_TEST(long_mode_begins_with_paging_and_ends_with_it),
        CONTROL_TEST(pae_paging_loads_and_checks_four_pdptes),
        CONTROL_TEST(cr3_reserved_bits_fault_in_long_mode),
        CONTROL_TEST(pcide_needs_long_mode_and_pcid_0),
        CONTROL_TEST(cr4_refuses_what_the_model_lacks),
        CONTROL_TEST(cr8_is_the_task_priority),
        CONTROL_TEST(moves_are_32_bits_outside_64_bit_code),
        CONTROL_TEST(lmsw_sets_pe_but_does_not_clear_it),
        CONTROL_TEST(debug_registers_alias_and_keep_their_fixed_bits),
        CONTROL_TEST(general_detect_traps_before_the_access),
        CONTROL_TEST(table_stores_are_6_or_10_bytes),
        CONTROL_TEST(table_loads_take_24_32_or_64_bits),
        CONTROL_TEST(umip_hides_system_registers_from_applications),
        CONTROL_TEST(word_stores_fill_a_register_but_two_bytes_of_memory),
        CONTROL_TEST(lldt_checks_in_the_manuals_order),
        CONTROL_TEST(ltr_marks_the_descriptor_busy),
        CONTROL_TEST(invlpg_checks_privilege_but_no_segment),
        CONTROL_TEST(invpcid_has_four_types),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
