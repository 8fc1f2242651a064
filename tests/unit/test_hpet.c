#include "device_fixture.h"

#define BASE     0xfed00000u
#define CONF(n)  (0x100u + 0x20u * (n))
#define COMP(n)  (0x108u + 0x20u * (n))
#define LEVEL    0x002u
#define ENABLE   0x004u
#define PERIODIC 0x008u
#define SETVAL   0x040u
#define MODE32   0x100u
#define ROUTE(g) ((unsigned)(g) << 9)

struct board {
    struct fixture f;
    struct hpet *hpet;
    int legacy, switches;
};

static void legacy(void *opaque, bool enabled)
{
    struct board *b = opaque;
    b->legacy = enabled;
    b->switches++;
}

static uint64_t get(struct board *b, unsigned offset, unsigned size)
{
    return mem_mmio_read(&b->f.mem, BASE + offset, size);
}

static void set(struct board *b, unsigned offset, unsigned size, uint64_t value)
{
    mem_mmio_write(&b->f.mem, BASE + offset, size, value);
}

static void go(struct board *b, uint64_t ticks)
{
    fixture_advance(&b->f, b->f.now_ns + 10 * ticks);
}

static int setup(void **state)
{
    struct board *b = calloc(1, sizeof *b);
    fixture_init(&b->f);
    b->f.now_ns = 12345;
    struct hpet_lines lines = {.legacy = legacy, .opaque = b};
    for (int i = 0; i < 24; i++)
        lines.gsi[i] = fixture_line(&b->f, i);
    b->hpet = hpet_create(&b->f.mem, &b->f.clock, lines);
    assert_non_null(b->hpet);
    *state = b;
    return 0;
}

static int teardown(void **state)
{
    struct board *b = *state;
    hpet_device.destroy(b->hpet);
    fixture_done(&b->f);
    free(b);
    return 0;
}

static void identity_says_100_mhz_three_comparators_64_bits(void **state)
{
    struct board *b = *state;
    assert_true(get(b, 0, 8) == 0x009896808086a201);
    assert_int_equal(get(b, 0, 4), 0x8086a201);
    assert_int_equal(get(b, 4, 4), 10000000);
    for (unsigned n = 0; n < 3; n++) {
        assert_true(get(b, CONF(n), 8) == 0x00f0000000000030);
        assert_true(get(b, COMP(n), 8) == UINT64_MAX);
        assert_int_equal(get(b, CONF(n) + 16, 8), 0);
    }
    assert_int_equal(get(b, 0x160, 8), 0);
    set(b, 0, 8, 0);
    assert_int_equal(get(b, 0, 4), 0x8086a201);
}

static void counter_runs_while_enabled_and_is_written_whole_or_by_halves(void **state)
{
    struct board *b = *state;
    go(b, 100);
    assert_int_equal(get(b, 0xf0, 8), 0);
    set(b, 0x10, 4, 1);
    go(b, 100);
    assert_int_equal(get(b, 0xf0, 8), 100);
    b->f.now_ns += 9;
    assert_int_equal(get(b, 0xf0, 4), 100);
    b->f.now_ns += 1;
    assert_int_equal(get(b, 0xf0, 4), 101);
    set(b, 0x10, 4, 0);
    go(b, 50);
    assert_int_equal(get(b, 0xf0, 8), 101);
    set(b, 0xf0, 8, 0x1234567890);
    set(b, 0xf4, 4, 0x55);
    assert_int_equal(get(b, 0xf0, 8), 0x5534567890);
    set(b, 0xf0, 4, 0xffffffff);
    set(b, 0x10, 8, 1);
    go(b, 1);
    assert_int_equal(get(b, 0xf0, 8), 0x5600000000);
    assert_int_equal(get(b, 0xf4, 4), 0x56);
    set(b, 0xf0, 8, UINT64_MAX);
    go(b, 2);
    assert_int_equal(get(b, 0xf0, 8), 1);
}

static void a_comparator_that_can_not_interrupt_needs_no_timer(void **state)
{
    struct board *b = *state;
    set(b, CONF(0), 4, PERIODIC | SETVAL | ROUTE(20));
    set(b, COMP(0), 8, 1000);
    set(b, COMP(0), 8, 1000);
    set(b, 0x10, 4, 1);
    assert_null(b->f.clock.head);
    b->f.now_ns += 10 * 3500;
    assert_int_equal(get(b, COMP(0), 8), 4000); // it counts all the same
    set(b, CONF(0), 4, PERIODIC | ENABLE | ROUTE(20));
    assert_int_equal(b->f.rises[20], 0); // what is past was nobody's
    assert_non_null(b->f.clock.head);
    go(b, 500);
    assert_int_equal(b->f.rises[20], 1);
}

static void one_shot_interrupts_at_equality_and_never_again(void **state)
{
    struct board *b = *state;
    set(b, CONF(2), 4, ENABLE | ROUTE(20));
    set(b, COMP(2), 8, 1000);
    set(b, 0x10, 4, 1);
    assert_int_equal(b->f.clock.head->deadline_ns, b->f.now_ns + 10000);
    go(b, 999);
    assert_int_equal(b->f.rises[20], 0);
    go(b, 1);
    assert_int_equal(b->f.rises[20], 1);
    go(b, 1ull << 40);
    assert_int_equal(b->f.rises[20], 1);
    assert_int_equal(get(b, COMP(2), 8), 1000);
    assert_int_equal(get(b, 0x20, 4), 0);    // edges have no status
    set(b, COMP(2), 8, get(b, 0xf0, 8) - 1); // already past: waits for the wrap
    assert_null(b->f.clock.head);
    set(b, COMP(2), 8, get(b, 0xf0, 8) + 128);
    go(b, 128);
    assert_int_equal(b->f.rises[20], 2);
}

static void one_shot_in_32_bits_matches_at_every_wrap(void **state)
{
    struct board *b = *state;
    set(b, CONF(0), 4, ENABLE | ROUTE(21) | MODE32);
    set(b, COMP(0), 8, 0x1200000064);
    assert_int_equal(get(b, COMP(0), 8), 0x64);
    set(b, 0xf0, 8, 0x7fffffff0);
    set(b, 0x10, 4, 1);
    go(b, 0x10 + 0x63);
    assert_int_equal(b->f.rises[21], 0);
    go(b, 1);
    assert_int_equal(b->f.rises[21], 1);
    go(b, 0xffffffff);
    assert_int_equal(b->f.rises[21], 1);
    go(b, 1);
    assert_int_equal(b->f.rises[21], 2);
}

static void periodic_adds_the_period_at_each_match(void **state)
{
    struct board *b = *state;
    set(b, 0x10, 4, 1);
    go(b, 77);
    set(b, CONF(0), 4, ENABLE | PERIODIC | SETVAL | ROUTE(22)); // as Linux does
    assert_int_equal(get(b, CONF(0), 4) & SETVAL, SETVAL);
    set(b, COMP(0), 4, 77 + 10000);
    set(b, COMP(0) + 4, 4, 0); // without VAL_SET: high half of the period
    assert_int_equal(get(b, CONF(0), 4) & SETVAL, 0);
    assert_true(get(b, COMP(0), 8) == (UINT64_MAX << 32 | 10077)); // only the low half was set
    set(b, CONF(0), 4, ENABLE | PERIODIC | SETVAL | MODE32 | ROUTE(22));
    set(b, COMP(0), 4, 77 + 10000);
    go(b, 100);
    set(b, COMP(0), 4, 10000);
    assert_int_equal(get(b, COMP(0), 4), 10077);
    go(b, 9899);
    assert_int_equal(b->f.rises[22], 0);
    go(b, 1);
    assert_int_equal(b->f.rises[22], 1);
    assert_int_equal(get(b, COMP(0), 4), 20077);
    go(b, 9999);
    assert_int_equal(b->f.rises[22], 1);
    go(b, 1);
    assert_int_equal(b->f.rises[22], 2);
    go(b, 10000 * 98);
    assert_int_equal(b->f.rises[22], 100);
    assert_int_equal(get(b, COMP(0), 4), 77 + 101 * 10000);
}

static void one_write_with_val_set_sets_comparator_and_period(void **state)
{
    struct board *b = *state;
    set(b, CONF(1), 4, ENABLE | PERIODIC | SETVAL | ROUTE(23));
    set(b, COMP(1), 8, 5000);
    set(b, 0x10, 4, 1);
    go(b, 20000);
    assert_int_equal(b->f.rises[23], 4);
    assert_int_equal(get(b, COMP(1), 8), 25000);
}

static void periodic_matches_missed_in_a_stall_are_made_up(void **state)
{
    struct board *b = *state;
    set(b, CONF(0), 4, ENABLE | PERIODIC | SETVAL | ROUTE(20));
    set(b, COMP(0), 8, 100000); // 1 ms
    set(b, 0x10, 4, 1);
    uint64_t start = b->f.now_ns;
    b->f.now_ns = start + 100 * 1000000; // nobody ran the timers
    assert_int_equal(get(b, 0xf0, 8), 10000000);
    timer_run(&b->f.clock);
    assert_int_equal(b->f.rises[20], 1);
    assert_int_equal(get(b, COMP(0), 8), 10100000);
    assert_int_equal(b->f.clock.head->deadline_ns, b->f.now_ns + 250000);
    fixture_advance(&b->f, b->f.now_ns + 250000);
    assert_int_equal(b->f.rises[20], 2);
    fixture_advance(&b->f, start + 200 * 1000000 + 500000);
    assert_int_equal(b->f.rises[20], 200);
}

static void level_interrupt_stays_until_its_status_is_cleared(void **state)
{
    struct board *b = *state;
    set(b, CONF(1), 4, ENABLE | LEVEL | PERIODIC | SETVAL | ROUTE(21));
    set(b, COMP(1), 8, 5000);
    set(b, 0x10, 4, 1);
    go(b, 5000);
    assert_int_equal(b->f.level[21], 1);
    assert_int_equal(get(b, 0x20, 8), 2);
    go(b, 5000); // merges
    set(b, 0x20, 4, 5);
    assert_int_equal(b->f.level[21], 1);
    set(b, 0x20, 4, 2);
    assert_int_equal(b->f.level[21], 0);
    assert_int_equal(get(b, 0x20, 8), 0);
    go(b, 5000);
    assert_int_equal(b->f.level[21], 1);
    set(b, CONF(1), 4, LEVEL | PERIODIC | ROUTE(21)); // status shows without the enable
    assert_int_equal(b->f.level[21], 0);
    assert_int_equal(get(b, 0x20, 8), 2);
    set(b, CONF(1), 4, ENABLE | LEVEL | PERIODIC | ROUTE(22));
    assert_int_equal(b->f.level[22], 1);
    set(b, 0x10, 4, 0); // halted: no interrupts
    assert_int_equal(b->f.level[22], 0);
}

static void legacy_replacement_takes_irq_0_and_8(void **state)
{
    struct board *b = *state;
    assert_int_equal(b->switches, 0);
    set(b, 0x10, 4, 2); // not before the counter is enabled
    assert_int_equal(b->legacy, 0);
    set(b, 0x10, 4, 3);
    assert_int_equal(b->legacy, 1);
    assert_int_equal(get(b, 0x10, 4), 3);
    for (unsigned n = 0; n < 3; n++) {
        set(b, CONF(n), 4, ENABLE | ROUTE(20));
        set(b, COMP(n), 8, 1000);
    }
    go(b, 1000);
    assert_int_equal(b->f.level[2], 1);
    assert_int_equal(b->f.level[8], 1);
    assert_int_equal(b->f.level[20], 1);
    set(b, 0x10, 4, 1);
    assert_int_equal(b->legacy, 0);
    assert_int_equal(b->switches, 2);
    assert_int_equal(b->f.level[2], 0);
    assert_int_equal(b->f.level[8], 0);
}

static void edge_line_drops_and_rises_at_each_match(void **state)
{
    struct board *b = *state;
    set(b, CONF(0), 4, ENABLE | PERIODIC | SETVAL | ROUTE(20));
    set(b, COMP(0), 8, 100000);
    set(b, 0x10, 4, 1);
    go(b, 100000);
    assert_int_equal(b->f.level[20], 1);
    go(b, 100000);
    assert_int_equal(b->f.rises[20], 2);
    set(b, CONF(0), 4, PERIODIC | ROUTE(20));
    assert_int_equal(b->f.level[20], 0);
    go(b, 1000000);
    assert_int_equal(b->f.rises[20], 2);
}

static void route_that_is_not_offered_does_not_read_back(void **state)
{
    struct board *b = *state;
    set(b, CONF(0), 4, ROUTE(22));
    set(b, CONF(0), 8, UINT64_MAX & ~(uint64_t)SETVAL);
    assert_true(get(b, CONF(0), 8) == (0x00f0000000000030 | LEVEL | ENABLE | PERIODIC | MODE32 | ROUTE(22)));
    set(b, CONF(1), 4, ENABLE);
    set(b, COMP(1), 8, 10);
    set(b, 0x10, 4, 1);
    go(b, 10);
    for (int i = 0; i < 24; i++)
        assert_int_equal(b->f.rises[i], 0); // no route yet
}

static void odd_accesses_are_harmless(void **state)
{
    struct board *b = *state;
    set(b, 0x10, 4, 1);
    for (unsigned size = 1; size <= 8; size *= 2) {
        for (unsigned offset = 0; offset + size <= 0x1000; offset++) {
            get(b, offset, size);
            if (offset < 0xf0 || size < 4 || offset % size)
                set(b, offset, size, 0x0102030405060708);
        }
    }
    set(b, 0x10, 2, 1);
    assert_int_equal(get(b, 0x10, 4), 0);
    assert_int_equal(get(b, 2, 2), 0x8086);
    assert_int_equal(get(b, 0x400, 4), 0);
}

static void shortest_periods_are_bounded_to_a_sane_rate(void **state)
{
    struct board *b = *state;
    set(b, CONF(0), 4, ENABLE | PERIODIC | SETVAL | ROUTE(20));
    set(b, COMP(0), 8, 1);
    set(b, 0x10, 4, 1);
    go(b, 1000000); // 10 ms
    assert_in_range(b->f.rises[20], 499, 502);
    set(b, COMP(0), 8, 0);
    go(b, 1000000);
}

static void reset_and_state(void **state)
{
    struct board *b = *state;
    struct stream s, l;
    set(b, CONF(0), 4, ENABLE | PERIODIC | SETVAL);
    set(b, COMP(0), 8, 100000);
    set(b, CONF(1), 4, ENABLE | LEVEL);
    set(b, COMP(1), 8, 150000);
    set(b, 0x10, 4, 3);
    go(b, 170000);
    assert_int_equal(b->f.level[2], 1);
    assert_int_equal(b->f.level[8], 1);
    stream_init_save(&s);
    hpet_device.state(b->hpet, &s);
    int rises = b->f.rises[2];
    stream_init_load(&l, s.data, s.size); // over itself: no edge
    hpet_device.state(b->hpet, &l);
    assert_int_equal(l.error, 0);
    assert_int_equal(b->f.rises[2], rises);
    hpet_device.reset(b->hpet);
    assert_int_equal(b->f.level[2], 0);
    assert_int_equal(b->f.level[8], 0);
    assert_int_equal(b->legacy, 0);
    assert_int_equal(get(b, 0xf0, 8), 0);
    assert_null(b->f.clock.head);
    stream_init_load(&l, s.data, s.size);
    hpet_device.state(b->hpet, &l);
    assert_int_equal(l.position, l.size);
    assert_int_equal(b->legacy, 1);
    assert_int_equal(b->f.level[2], 1);
    assert_int_equal(b->f.level[8], 1);
    assert_int_equal(get(b, 0x20, 4), 2);
    assert_int_equal(get(b, 0xf0, 8), 170000);
    rises = b->f.rises[2];
    go(b, 29999);
    assert_int_equal(b->f.rises[2], rises);
    go(b, 1);
    assert_int_equal(b->f.rises[2], rises + 1);
    uint32_t seed = 1;
    for (int round = 0; round < 1000; round++) { // and any other leaves a chip that works
        for (size_t i = 9; i < s.size; i++) {
            seed = seed * 1664525 + 1013904223;
            s.data[i] = (uint8_t)(seed >> 24) & (round & 1 ? 0xff : 0x01);
        }
        stream_init_load(&l, s.data, s.size);
        hpet_device.state(b->hpet, &l);
        for (unsigned offset = 0; offset < 0x160; offset += 8)
            get(b, offset, 8);
        go(b, 100000);
        set(b, 0xf0, 8, seed);
        set(b, COMP(round % 3), 8, seed >> 3);
    }
    stream_free(&s);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(identity_says_100_mhz_three_comparators_64_bits),
        TEST(counter_runs_while_enabled_and_is_written_whole_or_by_halves),
        TEST(one_shot_interrupts_at_equality_and_never_again),
        TEST(a_comparator_that_can_not_interrupt_needs_no_timer),
        TEST(one_shot_in_32_bits_matches_at_every_wrap),
        TEST(periodic_adds_the_period_at_each_match),
        TEST(one_write_with_val_set_sets_comparator_and_period),
        TEST(periodic_matches_missed_in_a_stall_are_made_up),
        TEST(level_interrupt_stays_until_its_status_is_cleared),
        TEST(legacy_replacement_takes_irq_0_and_8),
        TEST(edge_line_drops_and_rises_at_each_match),
        TEST(route_that_is_not_offered_does_not_read_back),
        TEST(odd_accesses_are_harmless),
        TEST(shortest_periods_are_bounded_to_a_sane_rate),
        TEST(reset_and_state),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
