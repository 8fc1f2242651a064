// PUSHA POPA ENTER BOUND and decimal arithmetic.
#include "cpu_fixture.h"

static void pusha_and_popa(void **state)
{
    struct world *w = *state;
    struct insn in = {.len = 1, .op_size = 4};
    enter_protected(w, 0);
    for (unsigned i = 0; i < 8; i++)
        w->v->s.gpr[i] = i == RSP ? KSTACK : 0x10 + i;
    assert_int_equal(try_op(w->v, op_pusha, &in), -1);
    assert_int_equal(w->v->s.gpr[RSP], KSTACK - 32);
    for (unsigned i = 0; i < 8; i++)
        assert_int_equal(peek(w, KSTACK - 4 * (i + 1), 4), i == RSP ? KSTACK : 0x10 + i);
    for (unsigned i = 0; i < 8; i++)
        poke(w, KSTACK - 4 * (i + 1), 0x20 + i, 4);
    assert_int_equal(try_op(w->v, op_popa, &in), -1);
    for (unsigned i = 0; i < 8; i++)
        assert_int_equal(w->v->s.gpr[i], i == RSP ? KSTACK : 0x20 + i);
}

static void pusha_without_room_stores_nothing(void **state)
{
    struct world *w = *state;
    struct insn in = {.len = 1, .op_size = 2};
    enter_real(w);
    poke(w, 0x1020 + 5, 0, 2);
    w->v->s.gpr[RSP] = 7; // SP = 1, then a word at FFFFh
    assert_fault(try_op(w->v, op_pusha, &in), EXC_SS, 0);
    assert_int_equal(w->v->s.gpr[RSP], 7);
    assert_int_equal(peek(w, 0x1020 + 5, 2), 0);
}

static void enter_copies_the_display(void **state)
{
    struct world *w = *state;
    struct insn in = {.len = 4, .op_size = 4, .imm = 0x10 | 2 << 16};
    enter_protected(w, 0);
    w->v->s.gpr[RBP] = 0x6100;
    poke(w, 0x60fc, 0xabcd, 4);
    assert_int_equal(try_op(w->v, op_enter, &in), -1);
    assert_int_equal(peek(w, KSTACK - 4, 4), 0x6100);
    assert_int_equal(peek(w, KSTACK - 8, 4), 0xabcd);
    assert_int_equal(peek(w, KSTACK - 12, 4), KSTACK - 4);
    assert_int_equal(w->v->s.gpr[RBP], KSTACK - 4);
    assert_int_equal(w->v->s.gpr[RSP], KSTACK - 12 - 0x10);
}

static void enter_probes_the_final_stack_pointer(void **state)
{
    struct world *w = *state;
    struct insn in = {.len = 4, .op_size = 8, .imm = 0x2000};
    enter_long(w, 0);
    w->v->s.gpr[RSP] = 0x1000;
    w->v->s.gpr[RBP] = 0x55;
    assert_fault(try_op(w->v, op_enter, &in), EXC_PF, 2);
    assert_int_equal(w->v->s.gpr[RSP], 0x1000);
    assert_int_equal(w->v->s.gpr[RBP], 0x55);
}

static void bound_is_signed_and_inclusive(void **state)
{
    struct world *w = *state;
    struct insn in = {.len = 4,
                      .op_size = 2,
                      .addr_size = 4,
                      .is_mem = 1,
                      .sreg = SEG_DS,
                      .reg = RCX,
                      .base = -1,
                      .index = -1,
                      .disp = 0x6000};
    enter_protected(w, 0);
    poke(w, 0x6000, (uint16_t)-5, 2);
    poke(w, 0x6002, 5, 2);
    static const struct {
        int16_t index;
        int result;
    } cases[] = {{-5, -1}, {5, -1}, {-6, EXC_BR}, {6, EXC_BR}, {0, -1}};
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        w->v->s.gpr[RCX] = (uint16_t)cases[i].index;
        w->v->s.rip = CODE;
        assert_int_equal(try_op(w->v, op_bound, &in), cases[i].result);
        assert_int_equal(w->v->s.rip, cases[i].result == -1 ? CODE + 4 : CODE);
    }
}

// AX and the flags that are defined, before and after.
static void decimal(struct world *w, insn_fn *op, uint16_t ax, uint64_t flags, uint16_t ax_after,
                    uint64_t flags_after, uint64_t defined)
{
    struct insn in = {.len = 1, .op_size = 1, .imm = 10};
    w->v->s.gpr[RAX] = 0xcafe0000 | ax;
    w->v->s.rflags = FL_ONE | flags;
    assert_int_equal(try_op(w->v, op, &in), -1);
    assert_int_equal(w->v->s.gpr[RAX], 0xcafe0000 | ax_after);
    assert_int_equal(w->v->s.rflags & defined, flags_after);
}

static void decimal_adjustments(void **state)
{
    struct world *w = *state;
    const uint64_t d = FL_CF | FL_AF | FL_SF | FL_ZF | FL_PF, a = FL_CF | FL_AF;
    enter_protected(w, 0);
    decimal(w, op_daa, 0x00ae, 0, 0x0014, FL_CF | FL_AF | FL_PF, d); // 79h + 35h: the manual's example
    decimal(w, op_daa, 0x009a, 0, 0x0000, FL_CF | FL_AF | FL_ZF | FL_PF, d);
    decimal(w, op_daa, 0x0042, 0, 0x0042, FL_PF, d);
    decimal(w, op_das, 0x00ee, FL_CF | FL_AF, 0x0088, FL_CF | FL_AF | FL_SF | FL_PF,
            d); // 35h - 47h: the manual's
    decimal(w, op_das, 0x0003, FL_AF, 0x00fd, FL_CF | FL_AF | FL_SF, d);
    decimal(w, op_aaa, 0x010b, 0, 0x0201, a, a);
    decimal(w, op_aaa, 0x00fa, 0, 0x0200, a, a); // the carry of AL goes on into AH
    decimal(w, op_aaa, 0x0105, 0, 0x0105, 0, a);
    decimal(w, op_aas, 0x0203, FL_AF, 0x000d, a, a);
    decimal(w, op_aam, 0x0063, 0, 0x0909, FL_PF, FL_SF | FL_ZF | FL_PF);
    decimal(w, op_aad, 0x0203, 0, 0x0017, FL_PF, FL_SF | FL_ZF | FL_PF);
}

static void aam_by_zero_divides_by_zero(void **state)
{
    struct world *w = *state;
    struct insn in = {.len = 2, .op_size = 1, .imm = 0};
    enter_protected(w, 0);
    assert_int_equal(try_op(w->v, op_aam, &in), EXC_DE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(pusha_and_popa),
        TEST(pusha_without_room_stores_nothing),
        TEST(enter_copies_the_display),
        TEST(enter_probes_the_final_stack_pointer),
        TEST(bound_is_signed_and_inclusive),
        TEST(decimal_adjustments),
        TEST(aam_by_zero_divides_by_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
