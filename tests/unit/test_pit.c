#include "device_fixture.h"

#define IRQ0 0
#define HZ   1193182u

struct board {
    struct fixture f;
    struct pit *pit;
    uint64_t t; // pulse of the input clock we stand at
};

static void out(struct board *b, uint16_t port, unsigned value)
{
    bus_write(b->f.bus, port, 1, value);
}

static unsigned in(struct board *b, uint16_t port)
{
    return bus_read(b->f.bus, port, 1);
}

static uint64_t ns_of(uint64_t tick)
{
    return time_scale_up(tick, 1000000000, HZ);
}

static void go(struct board *b, uint64_t pulses)
{
    b->t += pulses;
    fixture_advance(&b->f, ns_of(b->t));
}

static unsigned count16(struct board *b, unsigned channel)
{
    out(b, 0x43, channel << 6);
    unsigned low = in(b, (uint16_t)(0x40 + channel));
    return low | in(b, (uint16_t)(0x40 + channel)) << 8;
}

static void program(struct board *b, unsigned channel, unsigned mode, unsigned count)
{
    out(b, 0x43, channel << 6 | 0x30 | mode << 1);
    out(b, (uint16_t)(0x40 + channel), count & 0xff);
    out(b, (uint16_t)(0x40 + channel), count >> 8);
}

static unsigned out2(struct board *b)
{
    return in(b, 0x61) >> 5 & 1;
}

static unsigned status(struct board *b, unsigned channel)
{
    out(b, 0x43, 0xe0 | 2u << channel);
    return in(b, (uint16_t)(0x40 + channel));
}

static int setup(void **state)
{
    struct board *b = calloc(1, sizeof *b);
    fixture_init(&b->f);
    b->pit = pit_create(b->f.bus, &b->f.clock, fixture_line(&b->f, IRQ0));
    assert_non_null(b->pit);
    go(b, 1000);
    out(b, 0x61, 1); // gate 2
    *state = b;
    return 0;
}

static int teardown(void **state)
{
    struct board *b = *state;
    pit_device.destroy(b->pit);
    fixture_done(&b->f);
    free(b);
    return 0;
}

static void expect_out2(struct board *b, const char *levels) // one per pulse, from the next one on
{
    for (; *levels; levels++) {
        go(b, 1);
        assert_int_equal(out2(b), *levels == '1');
    }
}

static void expect_counts(struct board *b, const unsigned *counts, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        go(b, 1);
        assert_int_equal(count16(b, 2), counts[i]);
    }
}
#define COUNTS(b, ...)                                                                                       \
    expect_counts(b, (const unsigned[]){__VA_ARGS__},                                                        \
                  sizeof((const unsigned[]){__VA_ARGS__}) / sizeof(unsigned))

static void pit_mode0_rises_n_plus_1_pulses_after_the_count(void **state)
{
    struct board *b = *state;
    out(b, 0x43, 0xb0);
    assert_int_equal(out2(b), 0);
    go(b, 100);
    assert_int_equal(out2(b), 0);
    program(b, 2, 0, 4);
    expect_out2(b, "00001111");
    program(b, 2, 0, 2);
    assert_int_equal(out2(b), 0);
    COUNTS(b, 2, 1, 0, 0xffff, 0xfffe);
    assert_int_equal(out2(b), 1);
}

static void pit_mode0_first_byte_of_a_new_count_stops_and_lowers(void **state)
{
    struct board *b = *state;
    program(b, 2, 0, 3);
    go(b, 10);
    assert_int_equal(out2(b), 1);
    out(b, 0x42, 5);
    assert_int_equal(out2(b), 0);
    unsigned stopped = count16(b, 2);
    go(b, 10);
    assert_int_equal(count16(b, 2), stopped);
    out(b, 0x42, 0);
    expect_out2(b, "000001");
}

static void pit_mode0_gate_holds_the_count(void **state)
{
    struct board *b = *state;
    program(b, 2, 0, 4);
    COUNTS(b, 4, 3);
    out(b, 0x61, 0);
    COUNTS(b, 3, 3, 3);
    out(b, 0x61, 1);
    COUNTS(b, 2, 1);
    assert_int_equal(out2(b), 0);
    COUNTS(b, 0);
    assert_int_equal(out2(b), 1);
    out(b, 0x61, 0); // loaded, but not counted, with the gate low
    program(b, 2, 0, 2);
    COUNTS(b, 2, 2);
    out(b, 0x61, 1);
    expect_out2(b, "01");
}

static void pit_mode1_pulse_starts_with_the_gate_and_can_be_restarted(void **state)
{
    struct board *b = *state;
    out(b, 0x61, 0);
    program(b, 2, 1, 3);
    assert_int_equal(status(b, 2), 0xf2); // OUT high, null count
    go(b, 10);
    out(b, 0x61, 1);
    assert_int_equal(out2(b), 1);
    expect_out2(b, "00011");
    assert_int_equal(status(b, 2), 0xb2);
    out(b, 0x61, 0);
    out(b, 0x61, 1);
    expect_out2(b, "00");
    out(b, 0x61, 0);
    out(b, 0x61, 1);
    expect_out2(b, "0001");
    out(b, 0x42, 2); // a new count waits for the next trigger
    out(b, 0x42, 0);
    expect_out2(b, "111");
    out(b, 0x61, 0);
    out(b, 0x61, 1);
    expect_out2(b, "001");
}

static void pit_mode2_is_low_for_the_last_pulse_of_n(void **state)
{
    struct board *b = *state;
    program(b, 2, 2, 4);
    assert_int_equal(out2(b), 1);
    expect_out2(b, "11101110");
    program(b, 2, 2, 3);
    COUNTS(b, 3, 2, 1, 3, 2, 1, 3);
    program(b, 2, 6, 3); // the high mode bit is a don't-care but reads back
    COUNTS(b, 3, 2, 1, 3);
    assert_int_equal(status(b, 2) & 0x3f, 0x3c);
}

static void pit_mode2_new_count_waits_for_the_end_of_the_period(void **state)
{
    struct board *b = *state;
    program(b, 2, 2, 4);
    COUNTS(b, 4, 3);
    out(b, 0x42, 3);
    out(b, 0x42, 0);
    assert_int_equal(status(b, 2) & 0x40, 0x40);
    COUNTS(b, 2, 1, 3);
    assert_int_equal(status(b, 2) & 0x40, 0);
    COUNTS(b, 2, 1, 3);
    out(b, 0x42, 9);
    out(b, 0x42, 0);
    out(b, 0x42, 2); // the last one written counts
    out(b, 0x42, 0);
    COUNTS(b, 2, 1, 2, 1, 2);
}

static void pit_mode2_gate_raises_out_and_restarts(void **state)
{
    struct board *b = *state;
    program(b, 2, 2, 4);
    expect_out2(b, "1110");
    out(b, 0x61, 0);
    assert_int_equal(out2(b), 1);
    expect_out2(b, "1111");
    out(b, 0x61, 1);
    COUNTS(b, 4, 3, 2, 1, 4);
}

static void pit_mode3_even_count_is_a_square_wave(void **state)
{
    struct board *b = *state;
    program(b, 2, 3, 6);
    expect_out2(b, "111000111000");
    program(b, 2, 3, 4);
    COUNTS(b, 4, 2, 4, 2, 4, 2);
}

static void pit_mode3_odd_count_is_asymmetric(void **state)
{
    struct board *b = *state;
    program(b, 2, 3, 5);
    expect_out2(b, "1110011100");
    program(b, 2, 3, 5);
    COUNTS(b, 4, 2, 0, 4, 2, 4, 2, 0);
}

static void pit_mode3_new_count_waits_for_the_end_of_the_half(void **state)
{
    struct board *b = *state;
    program(b, 2, 3, 6);
    expect_out2(b, "11");
    out(b, 0x42, 4);
    out(b, 0x42, 0);
    expect_out2(b, "1001100");
    out(b, 0x42, 8);
    out(b, 0x42, 0);
    expect_out2(b, "111100001");
}

static void pit_mode3_gate_low_is_high_and_trigger_takes_the_new_count(void **state)
{
    struct board *b = *state;
    program(b, 2, 3, 6);
    expect_out2(b, "1110");
    out(b, 0x61, 0);
    assert_int_equal(out2(b), 1);
    out(b, 0x42, 2);
    out(b, 0x42, 0);
    expect_out2(b, "11");
    out(b, 0x61, 1);
    expect_out2(b, "1010");
}

static void pit_mode4_strobes_once_n_plus_1_pulses_after_the_count(void **state)
{
    struct board *b = *state;
    program(b, 2, 4, 3);
    expect_out2(b, "1110111");
    program(b, 2, 4, 3);
    expect_out2(b, "11");
    out(b, 0x42, 2); // takes effect at once
    out(b, 0x42, 0);
    expect_out2(b, "11011");
}

static void pit_mode5_strobes_after_a_trigger(void **state)
{
    struct board *b = *state;
    out(b, 0x61, 0);
    program(b, 2, 5, 3);
    expect_out2(b, "1111");
    out(b, 0x61, 1);
    expect_out2(b, "11101");
    out(b, 0x61, 0);
    out(b, 0x61, 1);
    expect_out2(b, "11");
    out(b, 0x61, 0);
    out(b, 0x61, 1);
    expect_out2(b, "11101");
}

static void pit_counts_in_bcd(void **state)
{
    struct board *b = *state;
    out(b, 0x43, 0xb5); // mode 2, BCD
    out(b, 0x42, 0x00);
    out(b, 0x42, 0x10);
    COUNTS(b, 0x1000, 0x0999, 0x0998);
    go(b, 998);
    assert_int_equal(count16(b, 2), 0x1000);
    out(b, 0x43, 0xb1); // mode 0, zero is 10,000
    out(b, 0x42, 0);
    out(b, 0x42, 0);
    COUNTS(b, 0x0000, 0x9999, 0x9998);
    go(b, 9997);
    assert_int_equal(out2(b), 0);
    go(b, 1);
    assert_int_equal(out2(b), 1);
    COUNTS(b, 0x9999);
}

static void pit_zero_count_is_65536(void **state)
{
    struct board *b = *state;
    program(b, 2, 2, 0);
    COUNTS(b, 0, 0xffff);
    go(b, 65534);
    assert_int_equal(count16(b, 2), 1);
    assert_int_equal(out2(b), 0);
    COUNTS(b, 0);
}

static void pit_latch_holds_until_read_and_the_second_latch_is_ignored(void **state)
{
    struct board *b = *state;
    program(b, 2, 0, 0x1234);
    go(b, 1);
    out(b, 0x43, 0x80);
    go(b, 0x200);
    out(b, 0x43, 0x80);
    assert_int_equal(in(b, 0x42), 0x34);
    assert_int_equal(in(b, 0x42), 0x12);
    assert_int_equal(count16(b, 2), 0x1034);
}

static void pit_single_byte_modes_read_and_write_one_byte(void **state)
{
    struct board *b = *state;
    out(b, 0x43, 0x90); // LSB, mode 0
    out(b, 0x42, 0x40);
    go(b, 1);
    assert_int_equal(in(b, 0x42), 0x40);
    go(b, 1);
    assert_int_equal(in(b, 0x42), 0x3f);
    out(b, 0x43, 0xa0); // MSB, mode 0
    out(b, 0x42, 0x40);
    go(b, 2);
    assert_int_equal(in(b, 0x42), 0x3f);
    out(b, 0x43, 0x80);
    go(b, 0x400);
    assert_int_equal(in(b, 0x42), 0x3f);
    assert_int_equal(in(b, 0x42), 0x3b);
}

static void pit_read_back_gives_status_before_count(void **state)
{
    struct board *b = *state;
    program(b, 2, 3, 0x100);
    assert_int_equal(status(b, 2), 0x80 | 0x40 | 0x36);
    go(b, 1);
    out(b, 0x43, 0xc8); // both, channel 2
    go(b, 0x81);
    assert_int_equal(in(b, 0x42), 0x80 | 0x36);
    assert_int_equal(in(b, 0x42), 0x00);
    assert_int_equal(in(b, 0x42), 0x01);
    assert_int_equal(status(b, 2), 0x36); // OUT is low now
    program(b, 0, 2, 0x100);
    go(b, 2);
    out(b, 0x43, 0xda); // count only, channels 0 and 2
    go(b, 5);
    assert_int_equal(in(b, 0x40), 0xff);
    assert_int_equal(in(b, 0x40), 0x00);
    assert_int_equal(in(b, 0x43), 0xff);
}

static void port_61_keeps_four_bits_and_toggles_refresh_every_18_pulses(void **state)
{
    struct board *b = *state;
    out(b, 0x61, 0xff);
    assert_int_equal(in(b, 0x61) & 0xcf, 0x0f);
    out(b, 0x61, 0);
    go(b, 18 * 100 - b->t % 18);
    unsigned bit = in(b, 0x61) & 0x10;
    for (int i = 0; i < 10; i++) {
        go(b, 17);
        assert_int_equal(in(b, 0x61) & 0x10, bit);
        go(b, 1);
        bit ^= 0x10;
        assert_int_equal(in(b, 0x61) & 0x10, bit);
    }
}

static void irq0_rises_at_every_period_to_the_nanosecond(void **state)
{
    struct board *b = *state;
    program(b, 0, 2, 11932);
    int before = b->f.rises[IRQ0];
    assert_int_equal(b->f.clock.head->deadline_ns, ns_of(b->t + 1 + 11932));
    go(b, 11932);
    assert_int_equal(b->f.rises[IRQ0], before);
    go(b, 1);
    assert_int_equal(b->f.rises[IRQ0], before + 1);
    assert_int_equal(b->f.level[IRQ0], 1);
    for (int i = 2; i <= 100; i++) {
        go(b, 11931);
        assert_int_equal(b->f.rises[IRQ0], before + i - 1);
        go(b, 1);
        assert_int_equal(b->f.rises[IRQ0], before + i);
    }
}

static void irq0_gives_an_hour_of_18_2_hz_ticks_exactly(void **state)
{
    struct board *b = *state;
    program(b, 0, 3, 0);
    int before = b->f.rises[IRQ0];
    go(b, 1);
    go(b, 3600ull * HZ);
    assert_int_equal(b->f.rises[IRQ0] - before, 3600ull * HZ / 65536);
}

static void irq0_new_period_starts_at_the_end_of_the_old_one(void **state)
{
    struct board *b = *state;
    program(b, 0, 2, 1000);
    go(b, 500);
    out(b, 0x40, 300 & 0xff);
    out(b, 0x40, 300 >> 8);
    int before = b->f.rises[IRQ0];
    go(b, 500);
    assert_int_equal(b->f.rises[IRQ0], before);
    go(b, 1);
    assert_int_equal(b->f.rises[IRQ0], before + 1);
    go(b, 299);
    assert_int_equal(b->f.rises[IRQ0], before + 1);
    go(b, 1);
    assert_int_equal(b->f.rises[IRQ0], before + 2);
    go(b, 3000);
    assert_int_equal(b->f.rises[IRQ0], before + 12);
}

static void irq0_one_shot_modes_interrupt_once(void **state)
{
    struct board *b = *state;
    program(b, 0, 0, 100);
    assert_int_equal(b->f.level[IRQ0], 0);
    go(b, 100);
    assert_int_equal(b->f.level[IRQ0], 0);
    go(b, 1);
    assert_int_equal(b->f.level[IRQ0], 1);
    go(b, 1000000);
    assert_int_equal(b->f.rises[IRQ0], 1);
    program(b, 0, 4, 100); // OUT stays high but for its strobe
    go(b, 101);
    assert_int_equal(b->f.rises[IRQ0], 1);
    go(b, 1);
    assert_int_equal(b->f.rises[IRQ0], 2);
    go(b, 1000000);
    assert_int_equal(b->f.rises[IRQ0], 2);
    assert_null(b->f.clock.head);
}

static void irq0_ticks_missed_in_a_stall_are_made_up_at_four_times_the_rate(void **state)
{
    struct board *b = *state;
    program(b, 0, 2, 11932);
    uint64_t start = b->t + 1;
    int before = b->f.rises[IRQ0];
    b->t = start + 11932 * 100; // one second in which nobody ran the timers
    b->f.now_ns = ns_of(b->t);
    timer_run(&b->f.clock);
    assert_int_equal(b->f.rises[IRQ0], before + 1);
    uint64_t quarter_ns = time_scale(11932, 250000000, HZ);
    for (int i = 2; i <= 5; i++) {
        assert_int_equal(b->f.clock.head->deadline_ns, ns_of(b->t) + (uint64_t)(i - 1) * quarter_ns);
        fixture_advance(&b->f, b->f.clock.head->deadline_ns);
        assert_int_equal(b->f.rises[IRQ0], before + i);
    }
    b->t = start + 11932 * 200 + 5966;
    fixture_advance(&b->f, ns_of(b->t));
    assert_int_equal(b->f.rises[IRQ0], before + 200); // none lost, none too many
    assert_int_equal(b->f.clock.head->deadline_ns, ns_of(start + 11932 * 201));
}

static void irq0_rate_is_bounded_whatever_is_programmed(void **state)
{
    struct board *b = *state;
    program(b, 0, 2, 2);
    int before = b->f.rises[IRQ0];
    go(b, HZ / 10);
    assert_in_range(b->f.rises[IRQ0] - before, 4990, 5001);
    program(b, 0, 2, 1); // illegal: no pulses
    before = b->f.rises[IRQ0];
    go(b, 1000);
    assert_int_equal(b->f.rises[IRQ0], before);
    assert_null(b->f.clock.head);
}

static void irq0_is_silent_while_the_hpet_has_it(void **state)
{
    struct board *b = *state;
    program(b, 0, 2, 1000);
    pit_set_irq0_enabled(b->pit, false);
    assert_int_equal(b->f.level[IRQ0], 0);
    int before = b->f.rises[IRQ0];
    go(b, 100500);
    assert_int_equal(b->f.rises[IRQ0], before);
    pit_set_irq0_enabled(b->pit, true);
    assert_int_equal(b->f.rises[IRQ0], before);
    go(b, 501);
    assert_int_equal(b->f.rises[IRQ0], before + 1);
}

static void state_survives_save_and_load(void **state)
{
    struct board *b = *state;
    struct stream s, l;
    program(b, 0, 2, 1000);
    program(b, 2, 3, 60);
    go(b, 100);
    out(b, 0x42, 20); // half a count
    out(b, 0x43, 0x80);
    stream_init_save(&s);
    pit_device.state(b->pit, &s);
    unsigned latched = in(b, 0x42);
    int before = b->f.rises[IRQ0];
    pit_device.reset(b->pit);
    assert_null(b->f.clock.head);
    go(b, 50);
    stream_init_load(&l, s.data, s.size);
    pit_device.state(b->pit, &l);
    assert_int_equal(l.error, 0);
    assert_int_equal(l.position, l.size);
    assert_int_equal(in(b, 0x42), latched);
    assert_int_equal(in(b, 0x61) & 0x0f, 1);
    before = b->f.rises[IRQ0];
    go(b, 850);
    assert_int_equal(b->f.rises[IRQ0], before);
    go(b, 1);
    assert_int_equal(b->f.rises[IRQ0], before + 1);
    stream_free(&s);
}

static void any_state_stream_leaves_a_chip_that_works(void **state)
{
    struct board *b = *state;
    struct stream s, l;
    uint32_t seed = 1;
    stream_init_save(&s);
    pit_device.state(b->pit, &s);
    for (int round = 0; round < 2000; round++) {
        for (size_t i = 8; i < s.size; i++) { // behind the header
            seed = seed * 1664525 + 1013904223;
            s.data[i] = (uint8_t)(seed >> 24) & (round & 1 ? 0xff : 0x01);
        }
        stream_init_load(&l, s.data, s.size);
        pit_device.state(b->pit, &l);
        for (unsigned c = 0; c < 3; c++)
            count16(b, c), status(b, c);
        in(b, 0x61);
        out(b, 0x61, (unsigned)round);
        go(b, 100);
    }
    stream_free(&s);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(pit_mode0_rises_n_plus_1_pulses_after_the_count),
        TEST(pit_mode0_first_byte_of_a_new_count_stops_and_lowers),
        TEST(pit_mode0_gate_holds_the_count),
        TEST(pit_mode1_pulse_starts_with_the_gate_and_can_be_restarted),
        TEST(pit_mode2_is_low_for_the_last_pulse_of_n),
        TEST(pit_mode2_new_count_waits_for_the_end_of_the_period),
        TEST(pit_mode2_gate_raises_out_and_restarts),
        TEST(pit_mode3_even_count_is_a_square_wave),
        TEST(pit_mode3_odd_count_is_asymmetric),
        TEST(pit_mode3_new_count_waits_for_the_end_of_the_half),
        TEST(pit_mode3_gate_low_is_high_and_trigger_takes_the_new_count),
        TEST(pit_mode4_strobes_once_n_plus_1_pulses_after_the_count),
        TEST(pit_mode5_strobes_after_a_trigger),
        TEST(pit_counts_in_bcd),
        TEST(pit_zero_count_is_65536),
        TEST(pit_latch_holds_until_read_and_the_second_latch_is_ignored),
        TEST(pit_single_byte_modes_read_and_write_one_byte),
        TEST(pit_read_back_gives_status_before_count),
        TEST(port_61_keeps_four_bits_and_toggles_refresh_every_18_pulses),
        TEST(irq0_rises_at_every_period_to_the_nanosecond),
        TEST(irq0_gives_an_hour_of_18_2_hz_ticks_exactly),
        TEST(irq0_new_period_starts_at_the_end_of_the_old_one),
        TEST(irq0_one_shot_modes_interrupt_once),
        TEST(irq0_ticks_missed_in_a_stall_are_made_up_at_four_times_the_rate),
        TEST(irq0_rate_is_bounded_whatever_is_programmed),
        TEST(irq0_is_silent_while_the_hpet_has_it),
        TEST(state_survives_save_and_load),
        TEST(any_state_stream_leaves_a_chip_that_works),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
