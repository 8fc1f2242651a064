#include "device_fixture.h"

struct board {
    struct fixture f;
    struct debug_ports *d;
};

static int setup(void **state)
{
    struct board *b = calloc(1, sizeof *b);
    fixture_init(&b->f);
    b->d = debug_ports_create(b->f.bus, fixture_out(&b->f), fixture_control(&b->f));
    assert_non_null(b->d);
    *state = b;
    return 0;
}

static int teardown(void **state)
{
    struct board *b = *state;
    debug_ports_device.destroy(b->d);
    fixture_done(&b->f);
    free(b);
    return 0;
}

static void console_passes_bytes_and_reads_e9(void **state)
{
    struct board *b = *state;
    assert_int_equal(bus_read(b->f.bus, 0xe9, 1), 0xe9);
    bus_write(b->f.bus, 0xe9, 1, 'h');
    bus_write(b->f.bus, 0xe9, 1, 0);
    assert_int_equal(b->f.out_count, 2);
    assert_memory_equal(b->f.out, "h\0", 2);
}

static void exit_status_is_odd(void **state)
{
    struct board *b = *state;
    bus_write(b->f.bus, 0xf4, 1, 0x10);
    assert_int_equal(b->f.requests, 1);
    assert_int_equal(b->f.last_request, MACHINE_GUEST_EXIT);
    assert_int_equal(b->f.last_value, 0x21);
    bus_write(b->f.bus, 0xf4, 4, 0);
    assert_int_equal(b->f.requests, 2);
    assert_int_equal(b->f.last_value, 1);
    bus_write(b->f.bus, 0xf4, 2, 0x1234);
    assert_int_equal(b->f.last_value, 0x2469);
}

static void pvpanic_reports_a_crash_on_bit_0_only(void **state)
{
    struct board *b = *state;
    assert_int_equal(bus_read(b->f.bus, 0x505, 1), 3);
    bus_write(b->f.bus, 0x505, 1, 2);
    assert_int_equal(b->f.requests, 0);
    bus_write(b->f.bus, 0x505, 1, 1);
    assert_int_equal(b->f.requests, 1);
    assert_int_equal(b->f.last_request, MACHINE_GUEST_CRASHED);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(console_passes_bytes_and_reads_e9),
        T(exit_status_is_odd),
        T(pvpanic_reports_a_crash_on_bit_0_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
