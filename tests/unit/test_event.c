// Delivery of exceptions and interrupts in every mode, their combination, and the order of pending ones.
#include "cpu_fixture.h"

#define HANDLER 0xb000u

static void throw_at(struct world *w, unsigned vector, bool has_error, uint32_t error)
{
    w->v->event = (struct cpu_event){.vector = vector, .has_error = has_error, .error = error};
    cpu_deliver(w->v);
}

// ---- real mode

static void real_mode_pushes_flags_cs_ip_and_clears_if_tf_ac(void **state)
{
    struct world *w = *state;
    enter_real(w);
    poke(w, 0x21 * 4, 0x05001234, 4);
    w->v->s.iflag = 1;
    w->v->s.rflags |= FL_TF | FL_AC | FL_CF;
    cpu_interrupt(w->v, 0x21);
    assert_int_equal(w->v->s.rip, 0x1234);
    assert_int_equal(w->v->s.seg[SEG_CS].sel, 0x500);
    assert_int_equal(w->v->s.seg[SEG_CS].base, 0x5000);
    assert_int_equal(w->v->s.gpr[RSP], 0x7fa);
    uint32_t ss = 0x1020;
    assert_int_equal(peek(w, ss + 0x7fe, 2), 0x303); // TF IF CF and bit 1
    assert_int_equal(peek(w, ss + 0x7fc, 2), 0x101);
    assert_int_equal(peek(w, ss + 0x7fa, 2), 0x20);
    assert_int_equal(cpu_rflags(w->v), 3);
}

static void real_mode_exceptions_push_no_error_code(void **state)
{
    struct world *w = *state;
    enter_real(w);
    poke(w, EXC_GP * 4, 0x05001234, 4);
    throw_at(w, EXC_GP, true, 0x18);
    assert_int_equal(w->v->s.gpr[RSP], 0x7fa);
    assert_int_equal(peek(w, 0x1020 + 0x7fa, 2), 0x20);
}

static void real_mode_without_ivt_shuts_down(void **state)
{
    struct world *w = *state;
    enter_real(w);
    w->v->s.idtr.limit = 0;
    throw_at(w, EXC_UD, false, 0);
    assert_int_equal(w->v->s.activity, ACT_SHUTDOWN);
    assert_int_equal(w->v->s.rip, 0x20);
}

// ---- protected mode

static void same_level_32_bit_gate(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    put_gate32(w, EXC_GP, CS32, HANDLER, SYS_INT, 0);
    w->v->s.iflag = 1;
    w->v->s.rflags |= FL_NT | FL_TF;
    throw_at(w, EXC_GP, true, 0x1234);
    assert_int_equal(w->v->s.rip, HANDLER);
    assert_int_equal(w->v->s.gpr[RSP], KSTACK - 16);
    assert_int_equal(peek(w, KSTACK - 16, 4), 0x1234);
    assert_int_equal(peek(w, KSTACK - 12, 4), CODE);
    assert_int_equal(peek(w, KSTACK - 8, 4), CS32);
    assert_int_equal(peek(w, KSTACK - 4, 4), FL_RF | FL_NT | FL_TF | FL_IF | FL_ONE); // a fault: RF
    assert_int_equal(cpu_rflags(w->v), FL_ONE);
}

static void trap_gate_leaves_if(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    put_gate32(w, 0x20, CS32, HANDLER, SYS_TRAP, 0);
    w->v->s.iflag = 1;
    cpu_interrupt(w->v, 0x20);
    assert_int_equal(w->v->s.iflag, 1);
    assert_int_equal(peek(w, KSTACK - 4, 4), FL_IF | FL_ONE); // no RF: an interrupt
}

static void inner_level_takes_the_stack_of_the_tss(void **state)
{
    struct world *w = *state;
    enter_protected(w, 3);
    put_gate32(w, 0x20, CS32, HANDLER, SYS_INT, 0);
    poke(w, TSS + 4, KSTACK2, 4);
    poke(w, TSS + 8, DS32, 2);
    cpu_interrupt(w->v, 0x20);
    assert_int_equal(w->v->s.cpl, 0);
    assert_int_equal(w->v->s.seg[SEG_SS].sel, DS32);
    assert_int_equal(w->v->s.gpr[RSP], KSTACK2 - 20);
    assert_int_equal(peek(w, KSTACK2 - 4, 4), UDS);
    assert_int_equal(peek(w, KSTACK2 - 8, 4), USTACK);
    assert_int_equal(peek(w, KSTACK2 - 12, 4), FL_ONE);
    assert_int_equal(peek(w, KSTACK2 - 16, 4), UCS32);
    assert_int_equal(peek(w, KSTACK2 - 20, 4), CODE);
    assert_int_equal(w->v->s.seg[SEG_DS].sel, UDS); // data segments stay
}

static void sixteen_bit_gate_pushes_words(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    put_gate32(w, EXC_GP, CS32, 0xffff1234, SYS_INT16, 0);
    throw_at(w, EXC_GP, true, 0x50);
    assert_int_equal(w->v->s.rip, 0x1234);
    assert_int_equal(w->v->s.gpr[RSP], KSTACK - 8);
    assert_int_equal(peek(w, KSTACK - 8, 2), 0x50);
    assert_int_equal(peek(w, KSTACK - 6, 2), CODE);
    assert_int_equal(peek(w, KSTACK - 4, 2), CS32);
}

static void v86_interrupt_pushes_and_clears_the_data_segments(void **state)
{
    struct world *w = *state;
    enter_v86(w, 0);
    put_gate32(w, 0x20, CS32, HANDLER, SYS_INT, 0);
    poke(w, TSS + 4, KSTACK2, 4);
    poke(w, TSS + 8, DS32, 2);
    cpu_interrupt(w->v, 0x20);
    assert_int_equal(w->v->s.cpl, 0);
    assert_false(cpu_v86(w->v));
    assert_int_equal(w->v->s.gpr[RSP], KSTACK2 - 36);
    static const uint32_t frame[9] = {0x20, 0x101, FL_VM | FL_ONE, 0x800, 0x102, 0x100, 0x103, 0x104, 0x105};
    for (unsigned i = 0; i < 9; i++)
        assert_int_equal(peek(w, KSTACK2 - 36 + 4 * i, 4), frame[i]);
    assert_int_equal(w->v->s.seg[SEG_GS].sel, 0);
    assert_true(w->v->s.seg[SEG_DS].attr & SEG_UNUSABLE);
}

static void v86_handler_must_be_at_level_0(void **state)
{
    struct world *w = *state;
    struct insn in = {.len = 2, .imm = 0x20};
    enter_v86(w, 3);
    put_gate32(w, 0x20, CONFORMING, HANDLER, SYS_INT, 3);
    assert_fault(try_op(w->v, op_int, &in), EXC_GP, CONFORMING);
    enter_v86(w, 2);
    assert_fault(try_op(w->v, op_int, &in), EXC_GP, 0); // IOPL
}

static void software_interrupts_check_the_gates_dpl(void **state)
{
    struct world *w = *state;
    struct insn in = {.len = 2, .imm = 0x80};
    enter_protected(w, 3);
    poke(w, TSS + 4, KSTACK2, 4);
    poke(w, TSS + 8, DS32, 2);
    put_gate32(w, 0x80, CS32, HANDLER, SYS_INT, 0);
    assert_fault(try_op(w->v, op_int, &in), EXC_GP, 0x80 * 8 + 2); // no EXT
    assert_int_equal(w->v->s.rip, CODE);
    put_gate32(w, 0x80, CS32, HANDLER, SYS_INT, 3);
    assert_int_equal(try_op(w->v, op_int, &in), -1);
    assert_int_equal(peek(w, KSTACK2 - 20, 4), CODE + 2);
    assert_int_equal(peek(w, KSTACK2 - 12, 4), FL_ONE); // no RF
    enter_protected(w, 3);
    put_gate32(w, EXC_DB, CS32, HANDLER, SYS_INT, 0);
    assert_int_equal(try_op(w->v, op_int1, &in), -1); // INT1 doesn't look at the DPL
}

static void into_is_taken_with_of_only(void **state)
{
    struct world *w = *state;
    struct insn in = {.len = 1};
    enter_protected(w, 0);
    put_gate32(w, EXC_OF, CS32, HANDLER, SYS_INT, 0);
    assert_int_equal(try_op(w->v, op_into, &in), -1);
    assert_int_equal(w->v->s.rip, CODE + 1);
    w->v->s.rflags |= FL_OF;
    assert_int_equal(try_op(w->v, op_into, &in), -1);
    assert_int_equal(w->v->s.rip, HANDLER);
    assert_int_equal(peek(w, KSTACK - 12, 4), CODE + 2);
}

static void absent_gate_gives_not_present_with_ext(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    put_gate32(w, 0x20, CS32, HANDLER, SYS_INT, 0);
    poke(w, IDT + 0x20 * 8 + 5, SYS_INT, 1);
    put_gate32(w, EXC_NP, CS32, HANDLER, SYS_INT, 0);
    cpu_interrupt(w->v, 0x20);
    assert_int_equal(w->v->s.rip, HANDLER);
    assert_int_equal(peek(w, KSTACK - 16, 4), 0x20 * 8 + 3);
    assert_int_equal(peek(w, KSTACK - 12, 4), CODE);
}

// ---- combinations

static void two_contributory_exceptions_make_a_double_fault(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    put_gate32(w, EXC_DF, CS32, HANDLER, SYS_INT, 0); // #GP's gate is all zero: #GP in delivery
    throw_at(w, EXC_GP, true, 0);
    assert_int_equal(w->v->s.rip, HANDLER);
    assert_int_equal(w->v->event.vector, EXC_DF);
    assert_int_equal(peek(w, KSTACK - 16, 4), 0);
    assert_int_equal(peek(w, KSTACK - 12, 4), CODE);
}

static void a_fault_in_the_double_fault_shuts_down(void **state)
{
    struct world *w = *state;
    void *before[5];
    enter_protected(w, 0);
    memcpy(before, w->v->throw_buf, sizeof before);
    throw_at(w, EXC_GP, true, 0);
    assert_int_equal(w->v->s.activity, ACT_SHUTDOWN);
    assert_memory_equal(before, w->v->throw_buf, sizeof before);
}

static void benign_then_contributory_is_delivered_serially(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    put_gate32(w, EXC_GP, CS32, HANDLER, SYS_INT, 0);
    throw_at(w, EXC_UD, false, 0); // its gate is empty
    assert_int_equal(w->v->s.rip, HANDLER);
    assert_int_equal(peek(w, KSTACK - 16, 4), EXC_UD * 8 + 3);
}

static void page_faults_set_cr2_and_nest_to_a_double_fault(void **state)
{
    struct world *w = *state;
    enter_long(w, 0);
    put_gate64(w, EXC_PF, CS64, HANDLER, SYS_INT, 0, 0);
    w->v->event = (struct cpu_event){.vector = EXC_PF, .has_error = 1, .error = 2, .cr2 = 0x12345678};
    cpu_deliver(w->v);
    assert_int_equal(w->v->s.cr2, 0x12345678);
    assert_int_equal(w->v->s.rip, HANDLER);
    assert_int_equal(peek(w, w->v->s.gpr[RSP], 8), 2);

    put_gate64(w, EXC_DF, CS64, HANDLER + 0x100, SYS_INT, 0, 1);
    poke(w, TSS + 0x24, KSTACK2, 8);
    w->v->s.gpr[RSP] = UNMAPPED + 0x100; // the frame faults: #PF in #PF
    cpu_deliver(w->v);
    assert_int_equal(w->v->s.rip, HANDLER + 0x100);
    assert_int_equal(w->v->s.gpr[RSP], KSTACK2 - 48);
    assert_int_equal(peek(w, KSTACK2 - 48, 8), 0);
    assert_int_equal(peek(w, KSTACK2 - 16, 8), UNMAPPED + 0x100);
    assert_in_range(w->v->s.cr2, UNMAPPED, UNMAPPED + 0xff);
}

static void contributory_then_page_fault_is_delivered_serially(void **state)
{
    struct world *w = *state;
    enter_long(w, 0);
    put_gate64(w, EXC_PF, CS64, HANDLER, SYS_INT, 0, 1);
    put_gate64(w, EXC_GP, CS64, HANDLER + 0x100, SYS_INT, 0, 0);
    poke(w, TSS + 0x24, KSTACK2, 8);
    w->v->s.gpr[RSP] = UNMAPPED + 0x100;
    throw_at(w, EXC_GP, true, 0);
    assert_int_equal(w->v->s.rip, HANDLER);
}

// ---- long mode

static void long_frame_is_aligned_and_complete(void **state)
{
    struct world *w = *state;
    enter_long(w, 3);
    put_gate64(w, 0x20, CS64, 0xffff800000001000, SYS_INT, 0, 0);
    poke(w, TSS + 4, KSTACK2 - 8, 8);
    w->v->s.gpr[RSP] = 0x7fff12345679;
    w->v->s.iflag = 1;
    cpu_interrupt(w->v, 0x20);
    assert_true(w->v->s.rip == 0xffff800000001000);
    assert_int_equal(w->v->s.gpr[RSP], KSTACK2 - 16 - 40);
    assert_int_equal(w->v->s.seg[SEG_SS].sel, 0);
    assert_int_equal(w->v->s.seg[SEG_CS].sel, CS64);
    assert_int_equal(w->v->s.cpl, 0);
    assert_int_equal(w->v->s.iflag, 0);
    const uint64_t frame[5] = {CODE, UCS64, FL_IF | FL_ONE, 0x7fff12345679, UDS};
    for (unsigned i = 0; i < 5; i++)
        assert_true(peek(w, w->v->s.gpr[RSP] + 8 * i, 8) == frame[i]);
}

static void ist_switches_stacks_at_the_same_level(void **state)
{
    struct world *w = *state;
    enter_long(w, 0);
    put_gate64(w, EXC_NMI, CS64, HANDLER, SYS_INT, 0, 7);
    poke(w, TSS + 0x54, KSTACK2, 8);
    cpu_nmi(w->v);
    assert_int_equal(w->v->s.gpr[RSP], KSTACK2 - 40);
    assert_int_equal(w->v->s.seg[SEG_SS].sel, DS32); // no change of level
    assert_int_equal(w->v->s.shadow, SHADOW_NMI);
}

static void long_gate_needs_64_bit_code(void **state)
{
    struct world *w = *state;
    struct insn in = {.len = 2, .imm = 0x20};
    enter_long(w, 0);
    put_gate64(w, 0x20, CS32, HANDLER, SYS_INT, 0, 0);
    assert_fault(try_op(w->v, op_int, &in), EXC_GP, CS32);
    put_gate64(w, 0x20, 0, HANDLER, SYS_INT, 0, 0);
    assert_fault(try_op(w->v, op_int, &in), EXC_GP, 0);
    put_gate64(w, 0x20, CS64, HANDLER, SYS_TASK_GATE, 0, 0);
    assert_fault(try_op(w->v, op_int, &in), EXC_GP, 0x20 * 8 + 2);
    w->v->s.idtr.limit = 0x20 * 16 + 14;
    assert_fault(try_op(w->v, op_int, &in), EXC_GP, 0x20 * 8 + 2);
}

static void long_stack_outside_the_tss_is_ts(void **state)
{
    struct world *w = *state;
    struct insn in = {.len = 2, .imm = 0x20};
    enter_long(w, 3);
    put_gate64(w, 0x20, CS64, HANDLER, SYS_INT, 3, 7);
    w->v->s.tr.limit = 0x5a;
    assert_fault(try_op(w->v, op_int, &in), EXC_TS, TSS_SEL);
}

// ---- debug exceptions

static void single_step_sets_bs_and_not_rf(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    put_gate32(w, EXC_DB, CS32, HANDLER, SYS_INT, 0);
    w->v->s.rflags |= FL_TF;
    w->v->s.dr[7] |= DR7_GD;
    cpu_debug_trap(w->v, true);
    assert_int_equal(w->v->s.dr[6], 0xffff4ff0);
    assert_int_equal(peek(w, KSTACK - 4, 4), FL_TF | FL_ONE);
    assert_false(w->v->s.rflags & FL_TF);
    assert_int_equal(w->v->s.dr[7], 0x400); // GD is cleared
}

// ---- pending events

static int ack(void *opaque)
{
    unsigned *acks = opaque;
    ++*acks;
    return 0x30;
}

static void nmi_goes_before_interrupts_and_waits_for_iret(void **state)
{
    struct world *w = *state;
    unsigned acks = 0;
    struct insn in = {.len = 1, .op_size = 4};
    enter_protected(w, 0);
    put_gate32(w, EXC_NMI, CS32, HANDLER, SYS_INT, 0);
    put_gate32(w, 0x30, CS32, HANDLER + 0x30, SYS_INT, 0);
    w->v->exits.pic_ack = ack;
    w->v->exits.opaque = &acks;
    w->v->pic_intr = true;
    w->v->s.iflag = 1;
    w->v->requests = REQ_INTR | REQ_NMI;
    assert_true(cpu_take_pending(w->v));
    assert_int_equal(w->v->s.rip, HANDLER);
    assert_int_equal(w->v->requests, REQ_INTR);
    w->v->requests |= REQ_NMI;
    assert_false(cpu_take_pending(w->v)); // IF = 0, NMI blocked
    assert_int_equal(acks, 0);
    assert_int_equal(try_op(w->v, op_iret, &in), -1);
    w->v->requests &= ~REQ_NMI;
    assert_int_equal(w->v->s.shadow, 0);
    assert_true(cpu_take_pending(w->v));
    assert_int_equal(w->v->s.rip, HANDLER + 0x30);
    assert_int_equal(acks, 1);
}

static void interrupt_waits_for_the_sti_shadow_and_wakes_from_hlt(void **state)
{
    struct world *w = *state;
    unsigned acks = 0;
    struct insn in = {.len = 1};
    enter_protected(w, 0);
    put_gate32(w, 0x30, CS32, HANDLER, SYS_INT, 0);
    w->v->exits.pic_ack = ack;
    w->v->exits.opaque = &acks;
    w->v->pic_intr = true;
    w->v->requests = REQ_INTR;
    assert_int_equal(try_op(w->v, op_sti, &in), -1);
    assert_false(cpu_take_pending(w->v));
    assert_int_equal(try_op(w->v, op_hlt, &in), -1);
    assert_int_equal(w->v->s.activity, ACT_HALTED);
    w->v->s.shadow = 0;
    w->v->pic_intr = true;
    assert_true(cpu_take_pending(w->v));
    assert_int_equal(w->v->s.activity, ACT_RUNNING);
    assert_int_equal(peek(w, KSTACK - 12, 4), CODE + 2);
}

static void request_without_a_source_is_dropped(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    w->v->s.iflag = 1;
    w->v->requests = REQ_INTR;
    assert_false(cpu_take_pending(w->v));
    assert_int_equal(w->v->requests, 0);
}

// ---- virtual-8086 mode extensions

static void vme_redirects_int_n_to_the_8086_program(void **state)
{
    struct world *w = *state;
    struct insn in = {.len = 2, .imm = 0x21};
    enter_v86(w, 0);
    w->v->s.cr4 |= CR4_VME;
    w->v->s.rflags |= FL_VIF;
    w->v->s.tr.limit = 0xff;
    poke(w, TSS + 0x66, 0x88, 2); // I/O map; the redirection map is the 32 bytes before it
    poke(w, 0x21 * 4, 0x05001234, 4);
    assert_int_equal(try_op(w->v, op_int, &in), -1);
    assert_int_equal(w->v->s.rip, 0x1234);
    assert_int_equal(w->v->s.seg[SEG_CS].base, 0x5000);
    assert_int_equal(peek(w, 0x1020 + 0x7fe, 2), FL_IF | FL_IOPL | FL_ONE);
    assert_int_equal(peek(w, 0x1020 + 0x7fa, 2), 0x22);
    assert_false(w->v->s.rflags & FL_VIF);
    assert_true(cpu_v86(w->v));
    poke(w, TSS + 0x68 + 0x21 / 8, 1 << (0x21 & 7), 1);
    assert_fault(try_op(w->v, op_int, &in), EXC_GP, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(real_mode_pushes_flags_cs_ip_and_clears_if_tf_ac),
        TEST(real_mode_exceptions_push_no_error_code),
        TEST(real_mode_without_ivt_shuts_down),
        TEST(same_level_32_bit_gate),
        TEST(trap_gate_leaves_if),
        TEST(inner_level_takes_the_stack_of_the_tss),
        TEST(sixteen_bit_gate_pushes_words),
        TEST(v86_interrupt_pushes_and_clears_the_data_segments),
        TEST(v86_handler_must_be_at_level_0),
        TEST(software_interrupts_check_the_gates_dpl),
        TEST(into_is_taken_with_of_only),
        TEST(absent_gate_gives_not_present_with_ext),
        TEST(two_contributory_exceptions_make_a_double_fault),
        TEST(a_fault_in_the_double_fault_shuts_down),
        TEST(benign_then_contributory_is_delivered_serially),
        TEST(page_faults_set_cr2_and_nest_to_a_double_fault),
        TEST(contributory_then_page_fault_is_delivered_serially),
        TEST(long_frame_is_aligned_and_complete),
        TEST(ist_switches_stacks_at_the_same_level),
        TEST(long_gate_needs_64_bit_code),
        TEST(long_stack_outside_the_tss_is_ts),
        TEST(single_step_sets_bs_and_not_rf),
        TEST(nmi_goes_before_interrupts_and_waits_for_iret),
        TEST(interrupt_waits_for_the_sti_shadow_and_wakes_from_hlt),
        TEST(request_without_a_source_is_dropped),
        TEST(vme_redirects_int_n_to_the_8086_program),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
