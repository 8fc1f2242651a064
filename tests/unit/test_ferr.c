#include "device_fixture.h"

#define IRQ13 13
#define IGNNE 0

struct board {
    struct fixture f;
    struct ferr *ferr;
};

static int setup(void **state)
{
    struct board *b = calloc(1, sizeof *b);
    fixture_init(&b->f);
    b->ferr = ferr_create(b->f.bus, fixture_line(&b->f, IRQ13), fixture_line(&b->f, IGNNE));
    assert_non_null(b->ferr);
    *state = b;
    return 0;
}

static int teardown(void **state)
{
    struct board *b = *state;
    ferr_device.destroy(b->ferr);
    fixture_done(&b->f);
    free(b);
    return 0;
}

static void assert_lines(const struct board *b, int irq13, int ignne)
{
    assert_int_equal(b->f.level[IRQ13], irq13);
    assert_int_equal(b->f.level[IGNNE], ignne);
}

static void write_f0(struct board *b) { bus_write(b->f.bus, 0xf0, 1, 0); }

static void error_latches_interrupt_13(void **state)
{
    struct board *b = *state;
    ferr_set(b->ferr, true);
    assert_lines(b, 1, 0);
    ferr_set(b->ferr, false);
    assert_lines(b, 1, 0);
    write_f0(b);
    assert_lines(b, 0, 0);
}

static void port_f0_ignores_an_error_that_is_there(void **state)
{
    struct board *b = *state;
    ferr_set(b->ferr, true);
    write_f0(b);
    assert_lines(b, 0, 1);
    ferr_set(b->ferr, true); // the same error
    assert_lines(b, 0, 1);
    ferr_set(b->ferr, false);
    assert_lines(b, 0, 0);
    ferr_set(b->ferr, true); // another
    assert_lines(b, 1, 0);
}

static void port_f0_reads_as_nothing(void **state)
{
    struct board *b = *state;
    ferr_set(b->ferr, true);
    assert_int_equal(bus_read(b->f.bus, 0xf0, 1), 0xff);
    assert_lines(b, 1, 0);
}

static void reset_takes_everything_back(void **state)
{
    struct board *b = *state;
    ferr_set(b->ferr, true);
    write_f0(b);
    ferr_device.reset(b->ferr);
    assert_lines(b, 0, 0);
    write_f0(b);
    assert_lines(b, 0, 0);
}

static void state_holds_ignne(void **state)
{
    struct board *b = *state;
    struct stream s;
    ferr_set(b->ferr, true);
    write_f0(b);
    stream_init_save(&s);
    ferr_device.state(b->ferr, &s);
    ferr_device.reset(b->ferr);
    struct stream load;
    stream_init_load(&load, s.data, s.size);
    ferr_device.state(b->ferr, &load);
    assert_int_equal(load.error, 0);
    assert_lines(b, 0, 1);
    stream_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(error_latches_interrupt_13, setup, teardown),
        cmocka_unit_test_setup_teardown(port_f0_ignores_an_error_that_is_there, setup, teardown),
        cmocka_unit_test_setup_teardown(port_f0_reads_as_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(reset_takes_everything_back, setup, teardown),
        cmocka_unit_test_setup_teardown(state_holds_ignne, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
