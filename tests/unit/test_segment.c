// Segment loads, segmented addresses, and the instructions that look at selectors.
#include "cpu_fixture.h"

static void reset_state_is_that_of_table_9_1(void **state)
{
    struct world *w = *state;
    struct cpu_state *s = &w->v->s;
    cpu_reset(w->v);
    assert_int_equal(s->rip, 0xfff0);
    assert_int_equal(cpu_rflags(w->v), 2);
    assert_int_equal(s->cr0, 0x60000010);
    assert_int_equal(s->seg[SEG_CS].sel, 0xf000);
    assert_int_equal(s->seg[SEG_CS].base, 0xffff0000);
    assert_int_equal(s->seg[SEG_SS].limit, 0xffff);
    assert_int_equal(s->seg[SEG_SS].attr, 0x93);
    assert_int_equal(s->idtr.limit, 0xffff);
    assert_int_equal(s->dr[6], 0xffff0ff0);
    assert_int_equal(s->dr[7], 0x400);
    assert_int_equal(s->gpr[RDX], cpu_cpuid(w->v, 1, 0).eax);
    assert_int_equal(s->gpr[RAX], 0);
    assert_int_equal(s->activity, ACT_RUNNING);
}

static void real_mode_load_keeps_a_big_limit(void **state)
{
    struct world *w = *state;
    struct segment *ds = &w->v->s.seg[SEG_DS];
    ds->limit = 0xffffffff;
    assert_int_equal(try_load(w->v, SEG_DS, 0x1234), -1);
    assert_int_equal(ds->base, 0x12340);
    assert_int_equal(ds->sel, 0x1234);
    assert_int_equal(ds->limit, 0xffffffff);
}

static void v86_load_sets_64k_at_dpl_3(void **state)
{
    struct world *w = *state;
    enter_v86(w, 0);
    w->v->s.seg[SEG_ES].limit = 0xffffffff;
    assert_int_equal(try_load(w->v, SEG_ES, 0xffff), -1);
    assert_int_equal(w->v->s.seg[SEG_ES].base, 0xffff0);
    assert_int_equal(w->v->s.seg[SEG_ES].limit, 0xffff);
    assert_int_equal(w->v->s.seg[SEG_ES].attr, 0xf3);
}

static void data_load_checks_in_the_manuals_order(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    assert_fault(try_load(w->v, SEG_DS, GDT_LIMIT + 1), EXC_GP, GDT_LIMIT + 1);
    assert_fault(try_load(w->v, SEG_DS, (GDT_LIMIT & ~7) | 3), EXC_GP, GDT_LIMIT & ~7); // inside, but type 0
    assert_fault(try_load(w->v, SEG_DS, DS32 | 1), EXC_GP, DS32);                       // RPL > DPL
    assert_fault(try_load(w->v, SEG_DS, EXECONLY), EXC_GP, EXECONLY);
    assert_fault(try_load(w->v, SEG_DS, TSS_SEL), EXC_GP, TSS_SEL);
    assert_fault(try_load(w->v, SEG_DS, ABSENT), EXC_NP, ABSENT);
    assert_fault(try_load(w->v, SEG_DS, 0x0c), EXC_GP, 0x0c); // no LDT
    assert_int_equal(w->v->s.seg[SEG_DS].sel, DS32);
    assert_int_equal(try_load(w->v, SEG_DS, CS32), -1); // readable code
    assert_int_equal(try_load(w->v, SEG_GS, READONLY), -1);
    enter_protected(w, 3);
    assert_fault(try_load(w->v, SEG_DS, DS32), EXC_GP, DS32);
    assert_int_equal(try_load(w->v, SEG_DS, CONFORMING | 3), -1);
}

static void stack_load_needs_writable_data_of_exactly_cpl(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    assert_fault(try_load(w->v, SEG_SS, 0), EXC_GP, 0);
    assert_fault(try_load(w->v, SEG_SS, UDS), EXC_GP, UDS & ~3);
    assert_fault(try_load(w->v, SEG_SS, UDS & ~3), EXC_GP, UDS & ~3);
    assert_fault(try_load(w->v, SEG_SS, READONLY), EXC_GP, READONLY);
    assert_fault(try_load(w->v, SEG_SS, CS32), EXC_GP, CS32);
    assert_fault(try_load(w->v, SEG_SS, ABSENT), EXC_SS, ABSENT);
    assert_int_equal(try_load(w->v, SEG_SS, DS16), -1);
    assert_int_equal(w->v->s.seg[SEG_SS].limit, 0xffff);
}

static void load_sets_the_accessed_bit(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    put_descriptor(w, SPARE, 0x123456, 0x10, 0x92 | SEG_G);
    assert_int_equal(try_load(w->v, SEG_FS, SPARE), -1);
    assert_int_equal(peek(w, GDT + SPARE + 5, 1), 0x93);
    assert_int_equal(w->v->s.seg[SEG_FS].base, 0x123456);
    assert_int_equal(w->v->s.seg[SEG_FS].limit, 0x10fff);
    assert_int_equal(w->v->s.seg[SEG_FS].attr, 0x93 | SEG_G);
}

static void ldt_selectors_use_ldtr(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    set_segment(w, &w->v->s.ldtr, LDT_SEL);
    poke(w, LDT + 8, make_descriptor(0x5000, 0xff, ATTR_DATA), 8);
    assert_int_equal(try_load(w->v, SEG_ES, 0x0c), -1);
    assert_int_equal(w->v->s.seg[SEG_ES].base, 0x5000);
    assert_fault(try_load(w->v, SEG_ES, 0x24), EXC_GP, 0x24); // past the limit
}

static void null_load_clears_the_base_as_the_vendor_does(void **state)
{
    struct world *w = *state;
    enter_long(w, 0);
    w->v->s.seg[SEG_FS].base = 0x1122334455;
    assert_int_equal(try_load(w->v, SEG_FS, 3), -1);
    assert_int_equal(w->v->s.seg[SEG_FS].base, 0);
    assert_int_equal(w->v->s.seg[SEG_FS].sel, 3);
    assert_true(w->v->s.seg[SEG_FS].attr & SEG_UNUSABLE);
    w->model->amd = true; // without NullSelectorClearsBase the base stays
    for (unsigned i = 0; i < w->model->entry_count; i++) {
        if (w->model->entry[i].leaf == 0x80000021)
            w->model->entry[i].r.eax &= ~(1u << 6);
    }
    w->v->s.seg[SEG_FS].base = 0x1122334455;
    assert_int_equal(try_load(w->v, SEG_FS, 0), -1);
    assert_true(w->v->s.seg[SEG_FS].base == 0x1122334455);
}

static void null_stack_is_for_64_bit_code_below_cpl_3(void **state)
{
    struct world *w = *state;
    enter_long(w, 0);
    assert_int_equal(try_load(w->v, SEG_SS, 0), -1);
    assert_fault(try_load(w->v, SEG_SS, 1), EXC_GP, 0);
    enter_long(w, 3);
    assert_fault(try_load(w->v, SEG_SS, 3), EXC_GP, 0);
}

static void limits_hold_for_every_byte(void **state)
{
    struct world *w = *state;
    uint64_t la = 0;
    enter_protected(w, 0);
    put_descriptor(w, SPARE, 0x30000, 0x0fff, ATTR_DATA);
    set_segment(w, &w->v->s.seg[SEG_DS], SPARE);
    assert_int_equal(try_linear(w->v, SEG_DS, 0xffc, 4, true, &la), -1);
    assert_int_equal(la, 0x30ffc);
    assert_fault(try_linear(w->v, SEG_DS, 0xffd, 4, false, &la), EXC_GP, 0);
    assert_fault(try_linear(w->v, SEG_DS, 0xffffffff, 2, false, &la), EXC_GP, 0);
    w->v->s.seg[SEG_SS] = w->v->s.seg[SEG_DS];
    assert_fault(try_linear(w->v, SEG_SS, 0x1000, 1, false, &la), EXC_SS, 0);
    w->v->s.seg[SEG_DS].attr = SEG_UNUSABLE;
    assert_fault(try_linear(w->v, SEG_DS, 0, 1, false, &la), EXC_GP, 0);
}

static void expand_down_is_valid_above_its_limit(void **state)
{
    struct world *w = *state;
    uint64_t la = 0;
    enter_protected(w, 0);
    set_segment(w, &w->v->s.seg[SEG_DS], EXPANDDOWN);
    assert_fault(try_linear(w->v, SEG_DS, 0xfff, 1, false, &la), EXC_GP, 0);
    assert_int_equal(try_linear(w->v, SEG_DS, 0x1000, 4, false, &la), -1);
    assert_int_equal(la, 0x21000);
    assert_int_equal(try_linear(w->v, SEG_DS, 0xfffffffc, 4, false, &la), -1);
    assert_int_equal(la, 0x1fffc); // wraps at 4 GiB
    assert_fault(try_linear(w->v, SEG_DS, 0xfffffffd, 4, false, &la), EXC_GP, 0);
    w->v->s.seg[SEG_DS].attr &= ~SEG_DB;
    assert_fault(try_linear(w->v, SEG_DS, 0xffff, 2, false, &la), EXC_GP, 0);
}

static void types_forbid_writes_and_reads(void **state)
{
    struct world *w = *state;
    uint64_t la = 0;
    enter_protected(w, 0);
    assert_fault(try_linear(w->v, SEG_CS, 0, 1, true, &la), EXC_GP, 0);
    assert_int_equal(try_linear(w->v, SEG_CS, 0, 1, false, &la), -1);
    set_segment(w, &w->v->s.seg[SEG_DS], READONLY);
    assert_fault(try_linear(w->v, SEG_DS, 0, 1, true, &la), EXC_GP, 0);
    set_segment(w, &w->v->s.seg[SEG_CS], EXECONLY);
    assert_fault(try_linear(w->v, SEG_CS, 0, 1, false, &la), EXC_GP, 0);
}

static void long_mode_checks_canonical_and_adds_fs_gs_only(void **state)
{
    struct world *w = *state;
    uint64_t la = 0;
    enter_long(w, 0);
    w->v->s.seg[SEG_DS].base = 0x1000;
    w->v->s.seg[SEG_GS].base = 0xffff800000000000;
    assert_int_equal(try_linear(w->v, SEG_DS, 0x10, 8, true, &la), -1);
    assert_int_equal(la, 0x10);
    assert_int_equal(try_linear(w->v, SEG_GS, 0x10, 8, true, &la), -1);
    assert_true(la == 0xffff800000000010);
    assert_fault(try_linear(w->v, SEG_DS, 0x7ffffffffff9, 8, false, &la), EXC_GP, 0);
    assert_fault(try_linear(w->v, SEG_SS, 0x800000000000, 8, false, &la), EXC_SS, 0);
    assert_int_equal(try_linear(w->v, SEG_DS, 0x7ffffffffff8, 8, false, &la), -1);
}

static void effective_address_is_cut_to_the_address_size(void **state)
{
    struct world *w = *state;
    w->v->s.gpr[RBX] = 0xfff0;
    w->v->s.gpr[RSI] = 0x20;
    struct insn in = {.addr_size = 2, .base = RBX, .index = RSI, .scale = 1, .disp = 1};
    assert_int_equal(cpu_effective_address(w->v, &in), 0x11);
    in = (struct insn){.addr_size = 8, .base = 16, .index = -1, .len = 7, .disp = -0x10};
    w->v->s.rip = 0x1000;
    assert_int_equal(cpu_effective_address(w->v, &in), 0xff7);
    in = (struct insn){.addr_size = 4, .base = -1, .index = RSI, .scale = 8, .disp = -0x101};
    assert_int_equal(cpu_effective_address(w->v, &in), 0xffffffff);
}

static void mov_ss_blocks_events_for_one_instruction(void **state)
{
    struct world *w = *state;
    struct insn in = {.len = 2, .op_size = 4, .reg = SEG_SS, .rm = RAX};
    enter_protected(w, 0);
    w->v->s.gpr[RAX] = DS32;
    w->v->s.iflag = 1;
    assert_int_equal(try_op(w->v, op_mov_to_sreg, &in), -1);
    assert_int_equal(w->v->s.shadow, SHADOW_MOV_SS);
    assert_true(w->v->requests & REQ_SHADOW);
    assert_false(cpu_interruptible(w->v));
    assert_int_equal(w->v->s.rip, CODE + 2);
    in.reg = SEG_CS;
    assert_int_equal(try_op(w->v, op_mov_to_sreg, &in), EXC_UD);
}

static void push_sreg_of_32_bits_writes_16_on_intel(void **state)
{
    struct world *w = *state;
    struct insn in = {.len = 1, .op_size = 4, .reg = SEG_DS};
    enter_protected(w, 0);
    poke(w, KSTACK - 4, 0xaaaaaaaa, 4);
    assert_int_equal(try_op(w->v, op_push_sreg, &in), -1);
    assert_int_equal(peek(w, KSTACK - 4, 4), 0xaaaa0000 | DS32);
    w->model->amd = true;
    assert_int_equal(try_op(w->v, op_push_sreg, &in), -1);
    assert_int_equal(peek(w, KSTACK - 8, 4), DS32);
    assert_int_equal(w->v->s.gpr[RSP], KSTACK - 8);
    assert_int_equal(try_op(w->v, op_pop_sreg, &in), -1);
    assert_int_equal(w->v->s.gpr[RSP], KSTACK - 4);
}

static void load_far_pointer_changes_nothing_when_it_faults(void **state)
{
    struct world *w = *state;
    struct insn in = {.len = 7,
                      .op_size = 4,
                      .addr_size = 4,
                      .is_mem = 1,
                      .reg = RCX,
                      .sreg = SEG_DS,
                      .base = -1,
                      .index = -1,
                      .disp = 0x6000,
                      .imm = SEG_GS};
    enter_protected(w, 0);
    w->v->s.gpr[RCX] = 5;
    poke(w, 0x6000, 0x12345678, 4);
    poke(w, 0x6004, ABSENT, 2);
    assert_fault(try_op(w->v, op_load_far_ptr, &in), EXC_NP, ABSENT);
    assert_int_equal(w->v->s.gpr[RCX], 5);
    assert_int_equal(w->v->s.rip, CODE);
    poke(w, 0x6004, READONLY, 2);
    assert_int_equal(try_op(w->v, op_load_far_ptr, &in), -1);
    assert_int_equal(w->v->s.gpr[RCX], 0x12345678);
    assert_int_equal(w->v->s.seg[SEG_GS].sel, READONLY);
}

static bool zf(struct world *w)
{
    return w->v->s.rflags & FL_ZF;
}

static void lar_and_lsl_obey_type_and_privilege(void **state)
{
    struct world *w = *state;
    struct insn in = {.len = 3, .op_size = 4, .reg = RCX, .rm = RAX};
    enter_protected(w, 0);
    w->v->s.gpr[RAX] = DS32;
    assert_int_equal(try_op(w->v, op_lar, &in), -1);
    assert_true(zf(w));
    assert_int_equal(w->v->s.gpr[RCX], 0xcf9300);
    assert_int_equal(try_op(w->v, op_lsl, &in), -1);
    assert_int_equal(w->v->s.gpr[RCX], 0xffffffff);
    w->v->s.gpr[RAX] = TSS_SEL;
    assert_int_equal(try_op(w->v, op_lsl, &in), -1);
    assert_true(zf(w));
    assert_int_equal(w->v->s.gpr[RCX], 0x67);
    w->v->s.gpr[RAX] = DS32 | 3; // RPL above DPL
    assert_int_equal(try_op(w->v, op_lar, &in), -1);
    assert_false(zf(w));
    assert_int_equal(w->v->s.gpr[RCX], 0x67);
    w->v->s.gpr[RAX] = 0;
    w->v->s.rflags |= FL_ZF;
    assert_int_equal(try_op(w->v, op_lsl, &in), -1);
    assert_false(zf(w));
    put_descriptor(w, SPARE, 0, 0, SEG_P | SYS_INT); // gates of the IDT are not for LAR
    w->v->s.gpr[RAX] = SPARE;
    assert_int_equal(try_op(w->v, op_lar, &in), -1);
    assert_false(zf(w));
    enter_v86(w, 3);
    assert_int_equal(try_op(w->v, op_lar, &in), EXC_UD);
}

static void verr_and_verw(void **state)
{
    struct world *w = *state;
    static const struct {
        uint16_t sel;
        bool r, wr;
    } cases[] = {
        {DS32, true, true},      {READONLY, true, false}, {CS32, true, false},  {EXECONLY, false, false},
        {TSS_SEL, false, false}, {0, false, false},       {ABSENT, true, true},
    };
    struct insn in = {.len = 3, .op_size = 2, .rm = RAX};
    enter_protected(w, 0);
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        w->v->s.gpr[RAX] = cases[i].sel;
        assert_int_equal(try_op(w->v, op_verr, &in), -1);
        assert_int_equal(zf(w), cases[i].r);
        assert_int_equal(try_op(w->v, op_verw, &in), -1);
        assert_int_equal(zf(w), cases[i].wr);
    }
    enter_protected(w, 3);
    w->v->s.gpr[RAX] = DS32;
    assert_int_equal(try_op(w->v, op_verr, &in), -1);
    assert_false(zf(w));
    w->v->s.gpr[RAX] = CONFORMING | 3;
    assert_int_equal(try_op(w->v, op_verr, &in), -1);
    assert_true(zf(w));
}

static void arpl_raises_rpl_only(void **state)
{
    struct world *w = *state;
    struct insn in = {.len = 2, .op_size = 2, .reg = RCX, .rm = RAX};
    enter_protected(w, 0);
    w->v->s.gpr[RAX] = 0x11110008;
    w->v->s.gpr[RCX] = 3;
    assert_int_equal(try_op(w->v, op_arpl, &in), -1);
    assert_int_equal(w->v->s.gpr[RAX], 0x1111000b);
    assert_true(zf(w));
    w->v->s.gpr[RCX] = 1;
    assert_int_equal(try_op(w->v, op_arpl, &in), -1);
    assert_int_equal(w->v->s.gpr[RAX], 0x1111000b);
    assert_false(zf(w));
}

static void sixteen_bit_stack_wraps_and_keeps_upper_rsp(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    set_segment(w, &w->v->s.seg[SEG_SS], DS16);
    w->v->s.gpr[RSP] = 0x12340000;
    cpu_push(w->v, 2, 0xbeef);
    assert_int_equal(w->v->s.gpr[RSP], 0x1234fffe);
    assert_int_equal(peek(w, 0xfffe, 2), 0xbeef);
    assert_int_equal(cpu_pop(w->v, 2), 0xbeef);
    assert_int_equal(w->v->s.gpr[RSP], 0x12340000);
}

static void alignment_is_checked_at_cpl_3_only(void **state)
{
    struct world *w = *state;
    struct insn in = {.len = 3,
                      .op_size = 2,
                      .is_mem = 1,
                      .addr_size = 4,
                      .sreg = SEG_DS,
                      .base = -1,
                      .index = -1,
                      .disp = 0x6001};
    enter_protected(w, 3);
    w->v->s.cr0 |= CR0_AM;
    w->v->s.rflags |= FL_AC;
    assert_fault(try_op(w->v, op_verr, &in), EXC_AC, 0);
    enter_protected(w, 0);
    assert_int_equal(try_op(w->v, op_verr, &in), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(reset_state_is_that_of_table_9_1),
        TEST(real_mode_load_keeps_a_big_limit),
        TEST(v86_load_sets_64k_at_dpl_3),
        TEST(data_load_checks_in_the_manuals_order),
        TEST(stack_load_needs_writable_data_of_exactly_cpl),
        TEST(load_sets_the_accessed_bit),
        TEST(ldt_selectors_use_ldtr),
        TEST(null_load_clears_the_base_as_the_vendor_does),
        TEST(null_stack_is_for_64_bit_code_below_cpl_3),
        TEST(limits_hold_for_every_byte),
        TEST(expand_down_is_valid_above_its_limit),
        TEST(types_forbid_writes_and_reads),
        TEST(long_mode_checks_canonical_and_adds_fs_gs_only),
        TEST(effective_address_is_cut_to_the_address_size),
        TEST(mov_ss_blocks_events_for_one_instruction),
        TEST(push_sreg_of_32_bits_writes_16_on_intel),
        TEST(load_far_pointer_changes_nothing_when_it_faults),
        TEST(lar_and_lsl_obey_type_and_privilege),
        TEST(verr_and_verw),
        TEST(arpl_raises_rpl_only),
        TEST(sixteen_bit_stack_wraps_and_keeps_upper_rsp),
        TEST(alignment_is_checked_at_cpl_3_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
