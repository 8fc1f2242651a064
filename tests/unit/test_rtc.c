#include "device_fixture.h"

#define IRQ8 8
#define S    1000000000ull
// 2024-02-28 23:59:57.25 UTC, a Wednesday
#define START (1709164797ull * S + S / 4)

struct board {
    struct fixture f;
    struct rtc *rtc;
};

static void set(struct board *b, unsigned index, unsigned value)
{
    bus_write(b->f.bus, 0x70, 1, index);
    bus_write(b->f.bus, 0x71, 1, value);
}

static unsigned get(struct board *b, unsigned index)
{
    bus_write(b->f.bus, 0x70, 1, index);
    return bus_read(b->f.bus, 0x71, 1);
}

static void go(struct board *b, uint64_t ns)
{
    fixture_advance(&b->f, b->f.now_ns + ns);
}

static void expect_time(struct board *b, unsigned h, unsigned m, unsigned s)
{
    assert_int_equal(get(b, 4), h);
    assert_int_equal(get(b, 2), m);
    assert_int_equal(get(b, 0), s);
}

static void expect_date(struct board *b, unsigned century, unsigned year, unsigned month, unsigned day,
                        unsigned weekday)
{
    assert_int_equal(get(b, 0x32), century);
    assert_int_equal(get(b, 9), year);
    assert_int_equal(get(b, 8), month);
    assert_int_equal(get(b, 7), day);
    assert_int_equal(get(b, 6), weekday);
}

static void set_time(struct board *b, unsigned h, unsigned m, unsigned s)
{
    set(b, 4, h);
    set(b, 2, m);
    set(b, 0, s);
}

static void set_date(struct board *b, unsigned century, unsigned year, unsigned month, unsigned day,
                     unsigned weekday)
{
    set(b, 0x32, century);
    set(b, 9, year);
    set(b, 8, month);
    set(b, 7, day);
    set(b, 6, weekday);
}

static int setup(void **state)
{
    struct board *b = calloc(1, sizeof *b);
    fixture_init(&b->f);
    b->rtc = rtc_create(b->f.bus, &b->f.clock, fixture_line(&b->f, IRQ8), START);
    assert_non_null(b->rtc);
    *state = b;
    return 0;
}

static int teardown(void **state)
{
    struct board *b = *state;
    rtc_device.destroy(b->rtc);
    fixture_done(&b->f);
    free(b);
    return 0;
}

static void starts_at_the_given_time_in_bcd_and_24_hours(void **state)
{
    struct board *b = *state;
    expect_time(b, 0x23, 0x59, 0x57);
    expect_date(b, 0x20, 0x24, 0x02, 0x28, 4);
    assert_int_equal(get(b, 10), 0x26);
    assert_int_equal(get(b, 11), 0x02);
    assert_int_equal(get(b, 13), 0x80);
    go(b, 3 * S / 4 - 1);
    expect_time(b, 0x23, 0x59, 0x57);
    go(b, 1);
    expect_time(b, 0x23, 0x59, 0x58);
}

static void day_rolls_over_into_a_leap_day(void **state)
{
    struct board *b = *state;
    go(b, 3 * S);
    expect_time(b, 0, 0, 0);
    expect_date(b, 0x20, 0x24, 0x02, 0x29, 5);
    go(b, 86400 * S);
    expect_date(b, 0x20, 0x24, 0x03, 0x01, 6);
}

static void century_rolls_over_and_2100_is_no_leap_year(void **state)
{
    struct board *b = *state;
    set(b, 11, 0x82);
    set_time(b, 0x23, 0x59, 0x59);
    set_date(b, 0x20, 0x99, 0x12, 0x31, 5);
    set(b, 11, 0x02);
    go(b, S);
    expect_time(b, 0, 0, 0);
    expect_date(b, 0x21, 0x00, 0x01, 0x01, 6);
    go(b, 59 * 86400 * S);
    expect_date(b, 0x21, 0x00, 0x03, 0x01, 2);
}

static void twelve_hour_clock_has_noon_and_midnight_as_12(void **state)
{
    struct board *b = *state;
    set(b, 11, 0x80);
    set_time(b, 0x11, 0x59, 0x59);
    set(b, 11, 0x00);
    go(b, S);
    expect_time(b, 0x92, 0, 0);
    go(b, 3600 * S);
    expect_time(b, 0x81, 0, 0);
    go(b, 11 * 3600 * S);
    expect_time(b, 0x12, 0, 0);
}

static void binary_mode_counts_in_binary(void **state)
{
    struct board *b = *state;
    set(b, 11, 0x86);
    set_time(b, 19, 59, 59);
    set_date(b, 20, 29, 9, 29, 1);
    set(b, 11, 0x06);
    go(b, S);
    expect_time(b, 20, 0, 0);
    go(b, 86400 * S);
    expect_date(b, 20, 29, 9, 30, 2);
}

static void uip_is_up_for_244_us_before_an_update(void **state)
{
    struct board *b = *state;
    go(b, 3 * S / 4 - 244141);
    assert_int_equal(get(b, 10), 0x26);
    go(b, 1);
    assert_int_equal(get(b, 10), 0xa6);
    go(b, 244139);
    assert_int_equal(get(b, 10), 0xa6);
    go(b, 1);
    assert_int_equal(get(b, 10), 0x26);
}

static void set_stops_updates_and_keeps_the_phase(void **state)
{
    struct board *b = *state;
    set(b, 11, 0x82);
    go(b, 10 * S);
    expect_time(b, 0x23, 0x59, 0x57);
    go(b, 3 * S / 4 - 1);
    assert_int_equal(get(b, 10), 0x26); // no UIP
    set_time(b, 0x12, 0x34, 0x56);
    set(b, 11, 0x02);
    expect_time(b, 0x12, 0x34, 0x56);
    go(b, 1);
    expect_time(b, 0x12, 0x34, 0x57);
}

static void divider_reset_makes_the_first_update_half_a_second_later(void **state)
{
    struct board *b = *state;
    set(b, 10, 0x76);
    go(b, 5 * S);
    expect_time(b, 0x23, 0x59, 0x57);
    set(b, 10, 0x26);
    go(b, S / 2 - 1);
    expect_time(b, 0x23, 0x59, 0x57);
    go(b, 1);
    expect_time(b, 0x23, 0x59, 0x58);
}

static void update_ended_interrupt_waits_for_register_c(void **state)
{
    struct board *b = *state;
    get(b, 12);
    set(b, 11, 0x12);
    go(b, 3 * S / 4 - 1);
    assert_int_equal(b->f.level[IRQ8], 0);
    go(b, 1);
    assert_int_equal(b->f.level[IRQ8], 1);
    go(b, 5 * S);
    assert_int_equal(b->f.rises[IRQ8], 1);
    assert_int_equal(get(b, 12), 0xf0); // PF, and AF for midnight, are set without their enables
    assert_int_equal(b->f.level[IRQ8], 0);
    assert_int_equal(get(b, 12), 0x00);
    go(b, S);
    assert_int_equal(b->f.rises[IRQ8], 2);
    set(b, 11, 0x92); // SET clears UIE
    assert_int_equal(get(b, 11), 0x82);
    assert_int_equal(b->f.level[IRQ8], 0);
}

static void flags_are_set_without_enables_and_without_timers(void **state)
{
    struct board *b = *state;
    set(b, 10, 0x20); // no periodic rate
    get(b, 12);
    assert_null(b->f.clock.head);
    go(b, S);
    assert_int_equal(get(b, 12), 0x10);
    assert_int_equal(get(b, 12), 0x00);
    assert_int_equal(b->f.rises[IRQ8], 0);
}

static void alarm_comes_once_a_day_at_its_second(void **state)
{
    struct board *b = *state;
    set(b, 10, 0x20);
    set(b, 5, 0x06);
    set(b, 3, 0x30);
    set(b, 1, 0x15);
    set(b, 11, 0x22);
    get(b, 12);
    uint64_t at = 2 * S + 3 * S / 4 + (6 * 3600 + 30 * 60 + 15) * S;
    assert_int_equal(b->f.clock.head->deadline_ns, at);
    fixture_advance(&b->f, at - 1);
    assert_int_equal(b->f.level[IRQ8], 0);
    fixture_advance(&b->f, at);
    assert_int_equal(b->f.level[IRQ8], 1);
    expect_time(b, 0x06, 0x30, 0x15);
    assert_int_equal(get(b, 12), 0xb0);
    go(b, 86400 * S - 1);
    assert_int_equal(b->f.rises[IRQ8], 1);
    go(b, 1);
    assert_int_equal(b->f.rises[IRQ8], 2);
}

static void alarm_fields_with_both_top_bits_match_anything(void **state)
{
    struct board *b = *state;
    set(b, 10, 0x20);
    set(b, 5, 0xff);
    set(b, 3, 0xc0);
    set(b, 1, 0x10);
    set(b, 11, 0x22);
    for (int i = 1; i <= 5; i++) { // every minute at second 10
        fixture_advance(&b->f, 2 * S + 3 * S / 4 + (10 + 60 * (uint64_t)(i - 1)) * S);
        assert_int_equal(b->f.rises[IRQ8], i);
        assert_int_equal(get(b, 12) & 0xa0, 0xa0);
    }
    set(b, 1, 0xff); // every second
    for (int i = 6; i <= 9; i++) {
        go(b, S);
        assert_int_equal(b->f.rises[IRQ8], i);
        get(b, 12);
    }
    set(b, 1, 0x7a); // no second at all
    go(b, 200000 * S);
    assert_int_equal(b->f.rises[IRQ8], 9);
}

static void alarm_passed_by_a_poller_is_seen_later(void **state)
{
    struct board *b = *state;
    set(b, 10, 0x20);
    set(b, 5, 0x00);
    set(b, 3, 0x00);
    set(b, 1, 0x01);
    get(b, 12);
    go(b, 3 * S);
    assert_int_equal(get(b, 12), 0x10);
    go(b, 100 * S);
    assert_int_equal(get(b, 12), 0x30);
}

static void periodic_rates_are_those_of_the_table(void **state)
{
    struct board *b = *state;
    static const unsigned hz[16] = {0, 256, 128, 8192, 4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8, 4, 2};
    for (unsigned rs = 0; rs < 16; rs++) {
        set(b, 10, 0x20 | rs);
        get(b, 12);
        set(b, 11, 0x42);
        int n = 0;
        for (uint64_t end = b->f.now_ns + S; b->f.clock.head && b->f.clock.head->deadline_ns <= end;) {
            fixture_advance(&b->f, b->f.clock.head->deadline_ns);
            assert_int_equal(get(b, 12) & 0xc0, 0xc0);
            n++;
        }
        assert_int_equal(n, hz[rs]);
        set(b, 11, 0x02);
    }
}

static void periodic_interrupt_falls_on_the_divider_to_the_nanosecond(void **state)
{
    struct board *b = *state;
    set(b, 10, 0x23); // 122,070.3125 ns
    get(b, 12);
    set(b, 11, 0x42);
    // A quarter second of the divider has passed at the start: 2,048 whole periods.
    for (uint64_t i = 1; i <= 32; i++) {
        assert_int_equal(b->f.clock.head->deadline_ns, (i * 1220703125 + 9999) / 10000);
        fixture_advance(&b->f, b->f.clock.head->deadline_ns);
        assert_int_equal(b->f.rises[IRQ8], i);
        get(b, 12);
    }
}

static void periodic_interrupts_missed_in_a_stall_are_made_up(void **state)
{
    struct board *b = *state;
    set(b, 10, 0x26); // 976,562.5 ns
    get(b, 12);
    set(b, 11, 0x42);
    b->f.now_ns = S; // nobody ran the timers
    timer_run(&b->f.clock);
    assert_int_equal(b->f.rises[IRQ8], 1);
    int n = 1;
    while (b->f.now_ns < 2 * S) {
        get(b, 12);
        assert_true(b->f.clock.head->deadline_ns >= b->f.now_ns + 10000);
        fixture_advance(&b->f, b->f.clock.head->deadline_ns);
        n++;
    }
    assert_int_equal(n, 2048);
    assert_int_equal(b->f.rises[IRQ8], 2048);
}

static void reset_keeps_time_and_ram_and_drops_interrupts(void **state)
{
    struct board *b = *state;
    set(b, 0x40, 0x5a);
    set(b, 10, 0x2f);
    set(b, 11, 0x7a);
    go(b, S);
    assert_int_equal(b->f.level[IRQ8], 1);
    rtc_device.reset(b->rtc);
    assert_int_equal(b->f.level[IRQ8], 0);
    assert_int_equal(get(b, 11), 0x02);
    assert_int_equal(get(b, 10), 0x2f);
    assert_int_equal(get(b, 12), 0x00);
    assert_int_equal(get(b, 0x40), 0x5a);
    expect_time(b, 0x23, 0x59, 0x58);
}

static void ram_has_two_banks_and_firmware_bytes(void **state)
{
    struct board *b = *state;
    rtc_set_cmos(b->rtc, 0x34, 0x80);
    rtc_set_cmos(b->rtc, 0x90, 0x11);
    rtc_set_cmos(b->rtc, 0x00, 0x33); // not the time
    rtc_set_cmos(b->rtc, 0x100, 0x44);
    assert_int_equal(get(b, 0x34), 0x80);
    assert_int_equal(get(b, 0xb4), 0x80); // bit 7 is the NMI mask
    expect_time(b, 0x23, 0x59, 0x57);
    bus_write(b->f.bus, 0x72, 1, 0x90);
    assert_int_equal(bus_read(b->f.bus, 0x72, 1), 0x10);
    assert_int_equal(bus_read(b->f.bus, 0x73, 1), 0x11);
    bus_write(b->f.bus, 0x72, 2, 0x7f7f);
    assert_int_equal(bus_read(b->f.bus, 0x73, 1), 0x7f);
    set(b, 13, 0);
    set(b, 12, 0xff);
    assert_int_equal(get(b, 13), 0x80);
    assert_int_equal(get(b, 12), 0);
    assert_int_equal(bus_read(b->f.bus, 0x70, 1), 0xff);
}

static void nonsense_in_the_time_registers_is_harmless(void **state)
{
    struct board *b = *state;
    for (unsigned v = 0; v < 256; v++) {
        for (unsigned i = 0; i < 10; i++)
            set(b, i, v);
        set(b, 0x32, v);
        set(b, 11, v & 0x7e);
        go(b, 86400 * S + S);
        for (unsigned i = 0; i < 14; i++)
            get(b, i);
    }
}

static void irq8_is_silent_while_the_hpet_has_it(void **state)
{
    struct board *b = *state;
    rtc_set_irq8_enabled(b->rtc, false);
    set(b, 11, 0x12);
    go(b, S);
    assert_int_equal(b->f.level[IRQ8], 0);
    assert_int_equal(get(b, 12) & 0x90, 0x90);
    rtc_set_irq8_enabled(b->rtc, true);
    go(b, S);
    assert_int_equal(b->f.level[IRQ8], 1);
}

static void state_survives_save_and_load(void **state)
{
    struct board *b = *state;
    struct stream s, l;
    set(b, 11, 0x12);
    set(b, 0x50, 0x77);
    stream_init_save(&s);
    rtc_device.state(b->rtc, &s);
    rtc_device.reset(b->rtc);
    set(b, 0x50, 0);
    set(b, 2, 0);
    stream_init_load(&l, s.data, s.size);
    rtc_device.state(b->rtc, &l);
    assert_int_equal(l.error, 0);
    assert_int_equal(l.position, l.size);
    assert_int_equal(get(b, 0x50), 0x77);
    go(b, 3 * S / 4 - 1);
    assert_int_equal(b->f.level[IRQ8], 0);
    go(b, 1);
    assert_int_equal(b->f.level[IRQ8], 1);
    expect_time(b, 0x23, 0x59, 0x58);
    uint32_t seed = 1;
    for (int round = 0; round < 500; round++) { // and any other leaves a chip that works
        for (size_t i = 8; i < s.size; i++) {
            seed = seed * 1664525 + 1013904223;
            s.data[i] = (uint8_t)(seed >> 24) & (round & 1 ? 0xff : 0x01);
        }
        stream_init_load(&l, s.data, s.size);
        rtc_device.state(b->rtc, &l);
        get(b, 12);
        go(b, S / 100);
    }
    stream_free(&s);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(starts_at_the_given_time_in_bcd_and_24_hours),
        TEST(day_rolls_over_into_a_leap_day),
        TEST(century_rolls_over_and_2100_is_no_leap_year),
        TEST(twelve_hour_clock_has_noon_and_midnight_as_12),
        TEST(binary_mode_counts_in_binary),
        TEST(uip_is_up_for_244_us_before_an_update),
        TEST(set_stops_updates_and_keeps_the_phase),
        TEST(divider_reset_makes_the_first_update_half_a_second_later),
        TEST(update_ended_interrupt_waits_for_register_c),
        TEST(flags_are_set_without_enables_and_without_timers),
        TEST(alarm_comes_once_a_day_at_its_second),
        TEST(alarm_fields_with_both_top_bits_match_anything),
        TEST(alarm_passed_by_a_poller_is_seen_later),
        TEST(periodic_rates_are_those_of_the_table),
        TEST(periodic_interrupt_falls_on_the_divider_to_the_nanosecond),
        TEST(periodic_interrupts_missed_in_a_stall_are_made_up),
        TEST(reset_keeps_time_and_ram_and_drops_interrupts),
        TEST(ram_has_two_banks_and_firmware_bytes),
        TEST(nonsense_in_the_time_registers_is_harmless),
        TEST(irq8_is_silent_while_the_hpet_has_it),
        TEST(state_survives_save_and_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
