// Breakpoints of the debug registers: what arms them, what hits them, and what the TLB must not keep (SDM 3B 17.2-17.3).
#include "cpu_fixture.h"

#define HANDLER 0x6000u
#define PLACE   0x5008u

static void arm(struct world *w, unsigned n, uint64_t address, unsigned rw, unsigned len)
{
    w->v->s.dr[n] = address;
    w->v->s.dr[7] |= 1u << (2 * n) | (rw | len << 2) << (16 + 4 * n);
    cpu_debug_update(w->v);
}

static __attribute__((noinline)) int try_fetch(struct vcpu *v, uint64_t la, bool *stepwise)
{
    if (__builtin_setjmp(v->throw_buf))
        return v->event.vector;
    *stepwise = cpu_debug_fetch(v, la);
    return -1;
}

static void lengths_align_the_address(void **state)
{
    struct world *w = *state;
    static const struct {
        unsigned len, first, last;
    } lengths[] = {{0, 0xd, 0xd}, {1, 0xc, 0xd}, {3, 0xc, 0xf}, {2, 8, 0xf}};
    enter_protected(w, 0);
    for (unsigned i = 0; i < 4; i++) {
        w->v->s.dr[7] = 0x400;
        arm(w, 2, 0x500d, 1, lengths[i].len);
        for (unsigned at = 4; at < 0x14; at++)
            assert_int_equal(cpu_watch_hits(w->v, 0x5000 + at, 1, true),
                             at >= lengths[i].first && at <= lengths[i].last ? 4 : 0);
    }
    assert_int_equal(cpu_watch_hits(w->v, 0x5000, 8, true), 0);
    assert_int_equal(cpu_watch_hits(w->v, 0x5001, 8, true), 4);
    assert_int_equal(cpu_watch_hits(w->v, 0x500f, 8, true), 4);
    assert_int_equal(cpu_watch_hits(w->v, 0x5010, 8, true), 0);
}

static void reads_hit_access_breakpoints_only(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    arm(w, 0, PLACE, 1, 3);
    arm(w, 3, PLACE, 3, 3);
    assert_int_equal(cpu_watch_hits(w->v, PLACE, 4, false), 8);
    assert_int_equal(cpu_watch_hits(w->v, PLACE, 4, true), 9);
}

static void an_access_is_recorded_although_the_tlb_knew_the_page(void **state)
{
    struct world *w = *state;
    uint32_t value = 7;
    enter_protected(w, 0);
    mmu_write(w->v, PLACE, &value, 4, 0);
    arm(w, 1, PLACE, 1, 3);
    mmu_write(w->v, PLACE + 4, &value, 4, 0);
    assert_int_equal(w->v->debug_hits, 0);
    assert_null(mmu_fill(w->v, PLACE + 64, ACC_WRITE)); // its page stays out of the TLB
    assert_non_null(mmu_fill(w->v, PLACE + 4096, ACC_WRITE));
    mmu_write(w->v, PLACE + 3, &value, 1, 0);
    assert_int_equal(w->v->debug_hits, 2);
    assert_int_equal(peek(w, PLACE, 4), 0x07000007);
    w->v->debug_hits = 0;
    mmu_write(w->v, 0x5ffe, &value, 4, 0); // across the end of the page
    assert_int_equal(w->v->debug_hits, 0);
}

static void disabled_breakpoints_let_the_tlb_fill(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    arm(w, 1, PLACE, 1, 3);
    w->v->s.dr[7] = 0x400;
    cpu_debug_update(w->v);
    assert_non_null(mmu_fill(w->v, PLACE, ACC_WRITE));
    assert_int_equal(w->v->watch_data, 0);
}

static void a_hit_is_a_trap_with_its_bit(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    put_gate32(w, EXC_DB, CS32, HANDLER, SYS_INT, 0);
    w->v->debug_hits = 4;
    cpu_debug_trap(w->v, false);
    assert_int_equal(w->v->s.dr[6], 0xffff0ff4);
    assert_int_equal(w->v->s.rip, HANDLER);
    assert_int_equal(peek(w, KSTACK - 4, 4) & FL_RF, 0);
    assert_int_equal(w->v->debug_hits, 0);
}

static void an_instruction_breakpoint_is_a_fault_that_rf_passes(void **state)
{
    struct world *w = *state;
    bool stepwise = false;
    enter_protected(w, 0);
    put_gate32(w, EXC_DB, CS32, HANDLER, SYS_INT, 0);
    arm(w, 1, CODE + 4, 0, 0);
    assert_int_equal(try_fetch(w->v, CODE, &stepwise), -1);
    assert_true(stepwise);
    assert_int_equal(try_fetch(w->v, CODE + 4, &stepwise), EXC_DB);
    assert_int_equal(w->v->s.dr[6], 0xffff0ff2);
    cpu_deliver(w->v);
    assert_int_equal(peek(w, KSTACK - 4, 4) & FL_RF, FL_RF);
    w->v->s.rflags |= FL_RF;
    assert_int_equal(try_fetch(w->v, CODE + 4, &stepwise), -1);
    assert_int_equal(w->v->s.rflags & FL_RF, FL_RF); // until it has completed
    assert_int_equal(try_fetch(w->v, CODE + 0x1000, &stepwise), -1);
    assert_false(stepwise);
}

static void ports_need_cr4_de(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    arm(w, 0, 0x3f8, 2, 1);
    cpu_watch_port(w->v, 0x3f9, 1);
    assert_int_equal(w->v->debug_hits, 0);
    w->v->s.cr4 |= CR4_DE;
    cpu_debug_update(w->v);
    cpu_watch_port(w->v, 0x3fa, 1);
    assert_int_equal(w->v->debug_hits, 0);
    cpu_watch_port(w->v, 0x3f9, 1);
    assert_int_equal(w->v->debug_hits, 1);
}

static void long_mode_compares_64_bits_others_32(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    arm(w, 0, 0x700005008, 1, 0);
    assert_int_equal(cpu_watch_hits(w->v, PLACE, 1, true), 1);
    enter_long(w, 0);
    assert_int_equal(cpu_watch_hits(w->v, PLACE, 1, true), 0);
    assert_int_equal(cpu_watch_hits(w->v, 0x700005008, 1, true), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(lengths_align_the_address),
        TEST(reads_hit_access_breakpoints_only),
        TEST(an_access_is_recorded_although_the_tlb_knew_the_page),
        TEST(disabled_breakpoints_let_the_tlb_fill),
        TEST(a_hit_is_a_trap_with_its_bit),
        TEST(an_instruction_breakpoint_is_a_fault_that_rf_passes),
        TEST(ports_need_cr4_de),
        TEST(long_mode_compares_64_bits_others_32),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
