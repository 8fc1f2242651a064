// PUSHF POPF CLI STI STAC CLAC HLT in every mode.
#include "cpu_fixture.h"

#define ALL 0x3f7fd7u

static const struct insn i16 = {.len = 1, .op_size = 2}, i32 = {.len = 1, .op_size = 4},
                         i64 = {.len = 1, .op_size = 8};

static void pushf_hides_vm_and_rf(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    cpu_set_rflags(w->v, ALL & ~FL_VM);
    assert_int_equal(try_op(w->v, op_pushf, &i32), -1);
    assert_int_equal(peek(w, KSTACK - 4, 4), ALL & ~(FL_VM | FL_RF));
    assert_int_equal(w->v->s.gpr[RSP], KSTACK - 4);
    enter_long(w, 0);
    assert_int_equal(try_op(w->v, op_pushf, &i64), -1);
    assert_int_equal(peek(w, KSTACK - 8, 8), ALL & ~(FL_VM | FL_RF));
}

static uint64_t popf(struct world *w, const struct insn *in, uint64_t before, uint64_t image)
{
    w->v->s.gpr[RSP] = USTACK;
    cpu_set_rflags(w->v, before);
    poke(w, USTACK, image, 8);
    assert_int_equal(try_op(w->v, op_popf, in), -1);
    assert_int_equal(w->v->s.gpr[RSP], USTACK + in->op_size);
    return cpu_rflags(w->v);
}

static void popf_changes_what_privilege_allows(void **state)
{
    struct world *w = *state;
    const uint64_t all = ALL & ~FL_VM, virtual = FL_VIF | FL_VIP;
    enter_protected(w, 0);
    assert_int_equal(popf(w, &i32, 0, ALL), all & ~(virtual | FL_RF));
    assert_int_equal(popf(w, &i32, all, 0), virtual | FL_ONE);
    assert_int_equal(popf(w, &i16, 0, ALL), all & 0xffff);
    enter_protected(w, 3);
    assert_int_equal(popf(w, &i32, 0, ALL), all & ~(virtual | FL_RF | FL_IOPL | FL_IF));
    assert_int_equal(popf(w, &i32, FL_IOPL | FL_IF, 0), FL_IOPL | FL_ONE); // CPL <= IOPL: IF too
    assert_int_equal(popf(w, &i32, FL_IF, 0), FL_IF | FL_ONE);
    enter_long(w, 0);
    assert_int_equal(popf(w, &i64, 0, ALL), all & ~(virtual | FL_RF));
}

static void mode_generation_moves_with_tf_and_ac_only(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    uint32_t gen = w->v->mode_gen;
    popf(w, &i32, 0, FL_ARITH | FL_IF | FL_DF | FL_NT | FL_IOPL | FL_ID);
    assert_int_equal(w->v->mode_gen, gen);
    popf(w, &i32, 0, FL_AC);
    assert_true(w->v->mode_gen != gen);
}

static void v86_pushf_popf_need_iopl_3_or_vme(void **state)
{
    struct world *w = *state;
    enter_v86(w, 3);
    w->v->s.iflag = 1;
    assert_int_equal(try_op(w->v, op_pushf, &i16), -1);
    assert_int_equal(peek(w, 0x1020 + 0x7fe, 2), FL_IF | FL_IOPL | FL_ONE);
    enter_v86(w, 0);
    assert_fault(try_op(w->v, op_pushf, &i16), EXC_GP, 0);
    assert_fault(try_op(w->v, op_popf, &i16), EXC_GP, 0);
    w->v->s.cr4 |= CR4_VME;
    assert_fault(try_op(w->v, op_pushf, &i32), EXC_GP, 0);
    w->v->s.iflag = 1;
    assert_int_equal(try_op(w->v, op_pushf, &i16), -1);
    assert_int_equal(peek(w, 0x1020 + 0x7fe, 2), FL_IOPL | FL_ONE); // IF shows VIF, which is 0
    poke(w, 0x1020 + 0x7fe, FL_IF | FL_CF, 2);
    w->v->s.iflag = 0;
    w->v->s.rflags |= FL_VIP;
    assert_fault(try_op(w->v, op_popf, &i16), EXC_GP, 0); // a virtual interrupt waits
    w->v->s.rflags &= ~(uint64_t)FL_VIP;
    assert_int_equal(try_op(w->v, op_popf, &i16), -1);
    assert_int_equal(cpu_rflags(w->v), FL_VM | FL_VIF | FL_CF | FL_ONE);
}

static void cli_and_sti_obey_iopl(void **state)
{
    struct world *w = *state;
    enter_protected(w, 3);
    assert_fault(try_op(w->v, op_cli, &i32), EXC_GP, 0);
    assert_fault(try_op(w->v, op_sti, &i32), EXC_GP, 0);
    w->v->s.rflags |= FL_IOPL;
    assert_int_equal(try_op(w->v, op_sti, &i32), -1);
    assert_int_equal(w->v->s.iflag, 1);
    assert_int_equal(w->v->s.shadow, SHADOW_STI);
    w->v->s.shadow = 0;
    assert_int_equal(try_op(w->v, op_sti, &i32), -1);
    assert_int_equal(w->v->s.shadow, 0); // IF was set already
    assert_int_equal(try_op(w->v, op_cli, &i32), -1);
    assert_int_equal(w->v->s.iflag, 0);
}

static void pvi_and_vme_work_on_vif(void **state)
{
    struct world *w = *state;
    enter_protected(w, 3);
    w->v->s.cr4 |= CR4_PVI;
    w->v->s.iflag = 1;
    assert_int_equal(try_op(w->v, op_sti, &i32), -1);
    assert_true(w->v->s.rflags & FL_VIF);
    assert_int_equal(try_op(w->v, op_cli, &i32), -1);
    assert_false(w->v->s.rflags & FL_VIF);
    assert_int_equal(w->v->s.iflag, 1);
    w->v->s.rflags |= FL_VIP;
    assert_fault(try_op(w->v, op_sti, &i32), EXC_GP, 0);
    enter_v86(w, 0);
    assert_fault(try_op(w->v, op_cli, &i32), EXC_GP, 0); // PVI isn't VME
    w->v->s.cr4 = CR4_VME;
    assert_int_equal(try_op(w->v, op_sti, &i32), -1);
    assert_true(w->v->s.rflags & FL_VIF);
}

static void stac_and_clac_need_cpl_0(void **state)
{
    struct world *w = *state;
    w->model->features[CPU_SMAP / 64] |= 1ull << (CPU_SMAP % 64);
    enter_long(w, 0);
    assert_int_equal(try_op(w->v, op_stac, &i32), -1);
    assert_true(w->v->s.rflags & FL_AC);
    assert_int_equal(try_op(w->v, op_clac, &i32), -1);
    assert_false(w->v->s.rflags & FL_AC);
    enter_long(w, 3);
    assert_int_equal(try_op(w->v, op_stac, &i32), EXC_UD);
}

static void hlt_needs_cpl_0(void **state)
{
    struct world *w = *state;
    enter_protected(w, 3);
    assert_fault(try_op(w->v, op_hlt, &i32), EXC_GP, 0);
    assert_int_equal(w->v->s.activity, ACT_RUNNING);
    enter_protected(w, 0);
    assert_int_equal(try_op(w->v, op_hlt, &i32), -1);
    assert_int_equal(w->v->s.activity, ACT_HALTED);
    assert_int_equal(w->v->s.rip, CODE + 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(pushf_hides_vm_and_rf),
        TEST(popf_changes_what_privilege_allows),
        TEST(mode_generation_moves_with_tf_and_ac_only),
        TEST(v86_pushf_popf_need_iopl_3_or_vme),
        TEST(cli_and_sti_obey_iopl),
        TEST(pvi_and_vme_work_on_vif),
        TEST(stac_and_clac_need_cpl_0),
        TEST(hlt_needs_cpl_0),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
