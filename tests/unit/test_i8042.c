#include "device_fixture.h"

#define A20 30

struct board {
    struct fixture f;
    struct i8042 *k;
};

static int setup(void **state)
{
    struct board *b = calloc(1, sizeof *b);
    fixture_init(&b->f);
    b->k = i8042_create(b->f.bus, &b->f.clock, fixture_line(&b->f, 1), fixture_line(&b->f, 12),
                        fixture_line(&b->f, A20), fixture_control(&b->f));
    assert_non_null(b->k);
    *state = b;
    return 0;
}

static int teardown(void **state)
{
    struct board *b = *state;
    i8042_device.destroy(b->k);
    fixture_done(&b->f);
    free(b);
    return 0;
}

static uint8_t status(struct board *b)
{
    return bus_read(b->f.bus, 0x64, 1);
}

static void command(struct board *b, uint8_t byte)
{
    bus_write(b->f.bus, 0x64, 1, byte);
}

static void data(struct board *b, uint8_t byte)
{
    bus_write(b->f.bus, 0x60, 1, byte);
}

static void expect(struct board *b, const char *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(status(b) & 1, 1);
        assert_int_equal(bus_read(b->f.bus, 0x60, 1), (uint8_t)bytes[i]);
    }
    assert_int_equal(status(b) & 1, 0);
}

static void set_command_byte(struct board *b, uint8_t value)
{
    command(b, 0x60);
    data(b, value);
}

static void self_tests_pass(void **state)
{
    struct board *b = *state;
    assert_int_equal(status(b), 0x10);
    command(b, 0xaa);
    assert_int_equal(status(b), 0x1d); // OBF, SYS, CMD, not locked
    expect(b, "\x55", 1);
    command(b, 0xab);
    expect(b, "\0", 1);
    command(b, 0xa9);
    expect(b, "\0", 1);
}

static void command_byte_reads_back_and_ports_switch_it(void **state)
{
    struct board *b = *state;
    set_command_byte(b, 0x47);
    command(b, 0x20);
    expect(b, "\x47", 1);
    command(b, 0xa7);
    command(b, 0xad);
    command(b, 0x20);
    expect(b, "\x77", 1);
    command(b, 0xa8);
    command(b, 0xae);
    command(b, 0x20);
    expect(b, "\x47", 1);
    command(b, 0x7f); // controller RAM
    data(b, 0x99);
    command(b, 0x3f);
    expect(b, "\x99", 1);
}

static void status_tells_command_from_data_writes(void **state)
{
    struct board *b = *state;
    command(b, 0xae);
    assert_int_equal(status(b) & 8, 8);
    data(b, 0xf4);
    assert_int_equal(status(b) & 8, 0);
}

static void output_port_switches_a20(void **state)
{
    struct board *b = *state;
    assert_int_equal(b->f.level[A20], 1);
    command(b, 0xd1);
    data(b, 0xdd);
    assert_int_equal(b->f.level[A20], 0);
    assert_int_equal(bus_read(b->f.bus, 0x92, 1), 0);
    command(b, 0xd0);
    expect(b, "\xc1", 1);
    command(b, 0xd1);
    data(b, 0xdf);
    assert_int_equal(b->f.level[A20], 1);
    assert_int_equal(b->f.requests, 0);
    bus_write(b->f.bus, 0x92, 1, 0);
    assert_int_equal(b->f.level[A20], 0);
    bus_write(b->f.bus, 0x92, 1, 2);
    assert_int_equal(b->f.level[A20], 1);
    assert_int_equal(bus_read(b->f.bus, 0x92, 1), 2);
}

static void every_way_to_reset_resets(void **state)
{
    struct board *b = *state;
    command(b, 0xff); // pulses nothing
    assert_int_equal(b->f.requests, 0);
    command(b, 0xfe);
    assert_int_equal(b->f.requests, 1);
    assert_int_equal(b->f.last_request, MACHINE_RESET);
    command(b, 0xd1);
    data(b, 0xde);
    assert_int_equal(b->f.requests, 2);
    bus_write(b->f.bus, 0x92, 1, 3);
    assert_int_equal(b->f.requests, 3);
}

static void keyboard_answers_its_commands(void **state)
{
    struct board *b = *state;
    set_command_byte(b, 0x01); // no translation
    data(b, 0xff);
    expect(b, "\xfa\xaa", 2);
    data(b, 0xf2);
    expect(b, "\xfa\xab\x83", 3);
    data(b, 0xed);
    expect(b, "\xfa", 1);
    data(b, 0x07);
    expect(b, "\xfa", 1);
    data(b, 0xee);
    expect(b, "\xee", 1);
    data(b, 0xf3);
    data(b, 0x20);
    expect(b, "\xfa\xfa", 2);
    data(b, 0xf0);
    data(b, 0x00);
    expect(b, "\xfa\xfa\x02", 3);
    data(b, 0xf5);
    expect(b, "\xfa", 1);
    data(b, 0xf4);
    expect(b, "\xfa", 1);
    data(b, 0xef);
    expect(b, "\xfe", 1);
    data(b, 0xf0);
    data(b, 0x03); // no set 3
    expect(b, "\xfa\xfe", 2);
    data(b, 0xfe);
    expect(b, "\xfe", 1); // the last byte again
}

static void identity_is_translated_like_any_other_bytes(void **state)
{
    struct board *b = *state;
    data(b, 0xf2);
    expect(b, "\xfa\xab\x41", 3);
}

static void keys_arrive_translated_to_set_1(void **state)
{
    struct board *b = *state;
    i8042_key(b->k, (const uint8_t *)"\x1c", 1);
    assert_int_equal(b->f.level[1], 1);
    expect(b, "\x1e", 1);
    assert_int_equal(b->f.level[1], 0);
    i8042_key(b->k, (const uint8_t *)"\xf0\x1c", 2);
    expect(b, "\x9e", 1);
    i8042_key(b->k, (const uint8_t *)"\xe0\xf0\x75", 3); // up arrow released
    expect(b, "\xe0\xc8", 2);
    i8042_key(b->k, (const uint8_t *)"\x83", 1); // F7
    expect(b, "\x41", 1);
    set_command_byte(b, 0x01);
    i8042_key(b->k, (const uint8_t *)"\xf0\x1c", 2);
    expect(b, "\xf0\x1c", 2);
}

static void set_1_keyboard_needs_no_translation(void **state)
{
    struct board *b = *state;
    set_command_byte(b, 0x01);
    data(b, 0xf0);
    data(b, 0x01);
    expect(b, "\xfa\xfa", 2);
    i8042_key(b->k, (const uint8_t *)"\xe0\xf0\x75", 3);
    expect(b, "\xe0\xc8", 2);
}

static void each_byte_is_an_interrupt_edge(void **state)
{
    struct board *b = *state;
    i8042_key(b->k, (const uint8_t *)"\xe0\x75", 2);
    assert_int_equal(b->f.rises[1], 1);
    bus_read(b->f.bus, 0x60, 1);
    assert_int_equal(b->f.rises[1], 2);
    assert_int_equal(b->f.level[1], 1);
    bus_read(b->f.bus, 0x60, 1);
    assert_int_equal(b->f.level[1], 0);
}

static void disabled_keyboard_holds_its_bytes(void **state)
{
    struct board *b = *state;
    command(b, 0xad);
    i8042_key(b->k, (const uint8_t *)"\x1c", 1);
    assert_int_equal(status(b) & 1, 0);
    command(b, 0x20); // the controller still answers
    expect(b, "\x51", 1);
    command(b, 0xae);
    expect(b, "\x1e", 1);
}

static void scanning_off_drops_keys(void **state)
{
    struct board *b = *state;
    data(b, 0xf5);
    expect(b, "\xfa", 1);
    i8042_key(b->k, (const uint8_t *)"\x1c", 1);
    assert_int_equal(status(b) & 1, 0);
}

static void overrun_is_marked_once(void **state)
{
    struct board *b = *state;
    set_command_byte(b, 0x01);
    for (int i = 0; i < 40; i++)
        i8042_key(b->k, (const uint8_t *)"\x1c", 1);
    // One byte in the output buffer, fifteen in the keyboard, and the mark.
    expect(b, "\x1c\x1c\x1c\x1c\x1c\x1c\x1c\x1c\x1c\x1c\x1c\x1c\x1c\x1c\x1c\x1c\x00", 17);
    uint8_t many[1000];
    memset(many, 0x1c, sizeof many);
    i8042_key(b->k, many, sizeof many);
    expect(b, "\x00", 1);
}

static void absent_mouse_times_out(void **state)
{
    struct board *b = *state;
    set_command_byte(b, 0x43);
    command(b, 0xd4);
    data(b, 0xff);
    assert_int_equal(status(b) & 0x61, 0x61); // timeout, auxiliary, full
    assert_int_equal(b->f.level[12], 1);
    assert_int_equal(b->f.level[1], 0);
    expect(b, "\xfe", 1);
    assert_int_equal(b->f.level[12], 0);
    command(b, 0xd3);
    data(b, 0xa5);
    assert_int_equal(status(b) & 0x61, 0x21);
    expect(b, "\xa5", 1);
    command(b, 0xd2);
    data(b, 0x5a);
    assert_int_equal(status(b) & 0x61, 0x01);
    expect(b, "\x5a", 1);
}

static void state_survives_and_bad_counts_are_refused(void **state)
{
    struct board *b = *state;
    struct stream s, l;
    i8042_key(b->k, (const uint8_t *)"\xe0\x75", 2);
    command(b, 0xdd);
    stream_init_save(&s);
    i8042_device.state(b->k, &s);
    i8042_device.reset(b->k);
    assert_int_equal(b->f.level[A20], 1);
    stream_init_load(&l, s.data, s.size);
    i8042_device.state(b->k, &l);
    assert_int_equal(l.error, 0);
    assert_int_equal(b->f.level[A20], 0);
    expect(b, "\xe0\x48", 2);
    for (size_t i = 0; i < s.size; i++) { // any corruption leaves a chip that can be used
        s.data[i] ^= 0xff;
        stream_init_load(&l, s.data, s.size);
        i8042_device.state(b->k, &l);
        s.data[i] ^= 0xff;
        for (int n = 0; n < 100; n++)
            bus_read(b->f.bus, 0x60, 1);
        data(b, 0xff);
        i8042_key(b->k, (const uint8_t *)"\x1c", 1);
        i8042_device.reset(b->k);
    }
    stream_free(&s);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(self_tests_pass),
        T(command_byte_reads_back_and_ports_switch_it),
        T(status_tells_command_from_data_writes),
        T(output_port_switches_a20),
        T(every_way_to_reset_resets),
        T(keyboard_answers_its_commands),
        T(identity_is_translated_like_any_other_bytes),
        T(keys_arrive_translated_to_set_1),
        T(set_1_keyboard_needs_no_translation),
        T(each_byte_is_an_interrupt_edge),
        T(disabled_keyboard_holds_its_bytes),
        T(scanning_off_drops_keys),
        T(overrun_is_marked_once),
        T(absent_mouse_times_out),
        T(state_survives_and_bad_counts_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
