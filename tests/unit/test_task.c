// Task switches between 32- and 16-bit TSSs.
#include "cpu_fixture.h"

#define NEW_CODE  0xc000u
#define NEW_STACK 0x6000u

static struct insn jump(uint16_t selector)
{
    return (struct insn){.len = 7, .op_size = 4, .imm_sel = selector, .imm = 0x9999};
}

// A task at CPL 0 in the second TSS.
static void put_task(struct world *w)
{
    poke(w, TSS2 + 0x20, NEW_CODE, 4);
    poke(w, TSS2 + 0x24, FL_ONE | FL_CF | FL_IF, 4);
    for (unsigned i = 0; i < 8; i++)
        poke(w, TSS2 + 0x28 + 4 * i, i == RSP ? NEW_STACK : 0x11111111u * i, 4);
    for (unsigned i = 0; i < SEG_COUNT; i++)
        poke(w, TSS2 + 0x48 + 4 * i, i == SEG_CS ? CS32 : DS32, 2);
}

static unsigned type_of(struct world *w, uint16_t selector)
{
    return peek(w, GDT + selector + 5, 1) & 0x1f;
}

static void jmp_saves_and_loads_everything(void **state)
{
    struct world *w = *state;
    struct cpu_state *s = &w->v->s;
    struct insn in = jump(TSS2_SEL);
    enter_protected(w, 0);
    put_task(w);
    s->gpr[RDI] = 0x77;
    s->rflags |= FL_ZF;
    s->dr[7] = 0x4ff;
    assert_int_equal(try_op(w->v, op_jmp_far, &in), -1);
    assert_int_equal(peek(w, TSS + 0x20, 4), CODE + 7);
    assert_int_equal(peek(w, TSS + 0x24, 4), FL_ONE | FL_ZF);
    assert_int_equal(peek(w, TSS + 0x28 + 4 * RSP, 4), KSTACK);
    assert_int_equal(peek(w, TSS + 0x28 + 4 * RDI, 4), 0x77);
    assert_int_equal(peek(w, TSS + 0x4c, 2), CS32);
    assert_int_equal(s->rip, NEW_CODE);
    assert_int_equal(s->gpr[RBX], 0x33333333);
    assert_int_equal(s->gpr[RSP], NEW_STACK);
    assert_int_equal(cpu_rflags(w->v), FL_ONE | FL_CF | FL_IF);
    assert_int_equal(s->tr.sel, TSS2_SEL);
    assert_int_equal(s->tr.attr & 0xf, SYS_TSS_BUSY);
    assert_int_equal(type_of(w, TSS_SEL), SYS_TSS_AVAIL);
    assert_int_equal(type_of(w, TSS2_SEL), SYS_TSS_BUSY);
    assert_true(s->cr0 & CR0_TS);
    assert_int_equal(s->dr[7], 0x4ff & ~0x155u);
    assert_true(s->ldtr.attr & SEG_UNUSABLE);
}

static void call_nests_and_iret_returns(void **state)
{
    struct world *w = *state;
    struct insn in = jump(TSS2_SEL), ret = {.len = 1, .op_size = 4};
    enter_protected(w, 0);
    put_task(w);
    assert_int_equal(try_op(w->v, op_call_far, &in), -1);
    assert_int_equal(peek(w, TSS2, 2), TSS_SEL);
    assert_true(w->v->s.rflags & FL_NT);
    assert_int_equal(type_of(w, TSS_SEL), SYS_TSS_BUSY);
    assert_int_equal(try_op(w->v, op_iret, &ret), -1);
    assert_int_equal(w->v->s.rip, CODE + 7);
    assert_int_equal(w->v->s.gpr[RSP], KSTACK);
    assert_int_equal(w->v->s.tr.sel, TSS_SEL);
    assert_int_equal(type_of(w, TSS_SEL), SYS_TSS_BUSY);
    assert_int_equal(type_of(w, TSS2_SEL), SYS_TSS_AVAIL);
    assert_int_equal(peek(w, TSS2 + 0x20, 4), NEW_CODE + 1);
    assert_false(peek(w, TSS2 + 0x24, 4) & FL_NT);
    assert_false(w->v->s.rflags & FL_NT);
}

static void busy_or_local_or_short_tss_is_refused(void **state)
{
    struct world *w = *state;
    struct insn in = jump(TSS_SEL);
    enter_protected(w, 0);
    assert_fault(try_op(w->v, op_jmp_far, &in), EXC_GP, TSS_SEL);
    put_descriptor(w, TSS2_SEL, TSS2, 0x66, SEG_P | SYS_TSS_AVAIL);
    in = jump(TSS2_SEL);
    assert_fault(try_op(w->v, op_jmp_far, &in), EXC_TS, TSS2_SEL);
    put_descriptor(w, TSS2_SEL, TSS2, 0x67, SYS_TSS_AVAIL);
    assert_fault(try_op(w->v, op_jmp_far, &in), EXC_NP, TSS2_SEL);
    assert_int_equal(w->v->s.tr.sel, TSS_SEL);
    assert_int_equal(w->v->s.rip, CODE);
    enter_protected(w, 3);
    assert_fault(try_op(w->v, op_jmp_far, &in), EXC_GP, TSS2_SEL); // DPL
}

static void fault_after_the_commit_belongs_to_the_new_task(void **state)
{
    struct world *w = *state;
    struct insn in = jump(TSS2_SEL);
    enter_protected(w, 0);
    put_task(w);
    poke(w, TSS2 + 0x48 + 4 * SEG_SS, READONLY, 2);
    assert_fault(try_op(w->v, op_jmp_far, &in), EXC_TS, READONLY);
    assert_int_equal(w->v->s.rip, NEW_CODE);
    assert_int_equal(w->v->s.tr.sel, TSS2_SEL);
    assert_int_equal(w->v->s.seg[SEG_SS].sel, READONLY);
    assert_true(w->v->s.seg[SEG_SS].attr & SEG_UNUSABLE);
}

static void new_ldt_is_loaded_and_checked(void **state)
{
    struct world *w = *state;
    struct insn in = jump(TSS2_SEL);
    enter_protected(w, 0);
    put_task(w);
    poke(w, TSS2 + 0x60, LDT_SEL, 2);
    poke(w, LDT + 8, make_descriptor(0x5000, 0xff, ATTR_DATA), 8);
    poke(w, TSS2 + 0x48, 0x0c, 2); // ES from it
    assert_int_equal(try_op(w->v, op_jmp_far, &in), -1);
    assert_int_equal(w->v->s.ldtr.base, LDT);
    assert_int_equal(w->v->s.seg[SEG_ES].base, 0x5000);
    poke(w, TSS + 0x60, DS32, 2);
    in = jump(TSS_SEL);
    assert_fault(try_op(w->v, op_jmp_far, &in), EXC_TS, DS32);
}

static void task_gate_in_the_idt_pushes_the_error_code_in_the_new_task(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    put_task(w);
    put_gate32(w, EXC_GP, TSS2_SEL, 0, SYS_TASK_GATE, 0);
    w->v->event = (struct cpu_event){.vector = EXC_GP, .has_error = 1, .error = 0x1238};
    cpu_deliver(w->v);
    assert_int_equal(w->v->s.rip, NEW_CODE);
    assert_int_equal(w->v->s.gpr[RSP], NEW_STACK - 4);
    assert_int_equal(peek(w, NEW_STACK - 4, 4), 0x1238);
    assert_int_equal(peek(w, TSS + 0x20, 4), CODE);
    assert_int_equal(peek(w, TSS + 0x24, 4), FL_RF | FL_ONE);
    assert_int_equal(peek(w, TSS2, 2), TSS_SEL);
    assert_true(w->v->s.rflags & FL_NT);
}

static void task_gate_is_checked_for_far_calls(void **state)
{
    struct world *w = *state;
    struct insn in = jump(SPARE);
    enter_protected(w, 0);
    put_task(w);
    poke(w, GDT + SPARE, make_gate(TSS2_SEL, 0, SYS_TASK_GATE, 0, 0), 8);
    assert_int_equal(try_op(w->v, op_call_far, &in), -1);
    assert_int_equal(w->v->s.tr.sel, TSS2_SEL);
    poke(w, GDT + SPARE, make_gate(DS32, 0, SYS_TASK_GATE, 0, 0), 8);
    assert_fault(try_op(w->v, op_call_far, &in), EXC_GP, DS32);
}

static void trap_bit_raises_db_in_the_new_task(void **state)
{
    struct world *w = *state;
    struct insn in = jump(TSS2_SEL);
    enter_protected(w, 0);
    put_task(w);
    poke(w, TSS2 + 100, 1, 2);
    assert_int_equal(try_op(w->v, op_jmp_far, &in), EXC_DB);
    assert_true(w->v->s.dr[6] & DR6_BT);
    assert_int_equal(w->v->s.rip, NEW_CODE);
    assert_int_equal(w->v->s.seg[SEG_CS].sel, CS32);
}

static void sixteen_bit_task(void **state)
{
    struct world *w = *state;
    struct insn in = jump(TSS2_SEL), back = jump(TSS_SEL);
    enter_protected(w, 0);
    put_descriptor(w, TSS2_SEL, TSS2, 0x2b, SEG_P | SYS_TSS16_AVAIL);
    const uint16_t image[22] = {[7] = 0x4321, [8] = FL_CF | FL_ONE, [9] = 1,     [10] = 2,   [11] = 3,
                                [12] = 4,     [13] = NEW_STACK,     [14] = 6,    [15] = 7,   [16] = 8,
                                [17] = DS16,  [18] = CS16,          [19] = DS16, [20] = DS16};
    assert_true(mem_write(&w->mem, TSS2, image, sizeof image));
    w->v->s.gpr[RAX] = 0x12345678;
    assert_int_equal(try_op(w->v, op_jmp_far, &in), -1);
    assert_int_equal(w->v->s.rip, 0x4321);
    assert_int_equal(w->v->s.gpr[RAX] & 0xffff, 1);
    assert_int_equal(w->v->s.gpr[RDI] & 0xffff, 8);
    assert_int_equal(w->v->s.seg[SEG_CS].sel, CS16);
    assert_int_equal(w->v->s.seg[SEG_FS].sel, 0);
    assert_int_equal(peek(w, TSS + 0x28, 4), 0x12345678);
    put_descriptor(w, SPARE, TSS2, 0x2b, SEG_P | SYS_TSS16_AVAIL); // and saves 16 bits when left
    w->v->s.gpr[RCX] = 0xabcd5555;
    assert_int_equal(try_op(w->v, op_jmp_far, &back), -1);
    assert_int_equal(peek(w, TSS2 + 0x0e, 2), 0x4328);
    assert_int_equal(peek(w, TSS2 + 0x14, 2), 0x5555);
    assert_int_equal(w->v->s.gpr[RAX], 0x12345678);
}

static void task_switch_to_v86(void **state)
{
    struct world *w = *state;
    struct insn in = jump(TSS2_SEL);
    enter_protected(w, 0);
    put_task(w);
    poke(w, TSS2 + 0x20, 0x100, 4);
    poke(w, TSS2 + 0x24, FL_VM | FL_ONE, 4);
    poke(w, TSS2 + 0x4c, 0x1234, 2);
    assert_int_equal(try_op(w->v, op_jmp_far, &in), -1);
    assert_true(cpu_v86(w->v));
    assert_int_equal(w->v->s.cpl, 3);
    assert_int_equal(w->v->s.seg[SEG_CS].base, 0x12340);
    assert_int_equal(w->v->s.seg[SEG_DS].attr, 0xf3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(jmp_saves_and_loads_everything),
        TEST(call_nests_and_iret_returns),
        TEST(busy_or_local_or_short_tss_is_refused),
        TEST(fault_after_the_commit_belongs_to_the_new_task),
        TEST(new_ldt_is_loaded_and_checked),
        TEST(task_gate_in_the_idt_pushes_the_error_code_in_the_new_task),
        TEST(task_gate_is_checked_for_far_calls),
        TEST(trap_bit_raises_db_in_the_new_task),
        TEST(sixteen_bit_task),
        TEST(task_switch_to_v86),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
