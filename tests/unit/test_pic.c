#include "device_fixture.h"

#define INTR 0

struct board {
    struct fixture f;
    struct pic *pic;
};

static void out(struct board *b, uint16_t port, uint8_t value)
{
    bus_write(b->f.bus, port, 1, value);
}

static uint8_t in(struct board *b, uint16_t port)
{
    return (uint8_t)bus_read(b->f.bus, port, 1);
}

// As a PC's firmware does, with all inputs enabled.
static void init(struct board *b, uint8_t icw4_master, uint8_t icw4_slave)
{
    out(b, 0x20, 0x11);
    out(b, 0x21, 0x30);
    out(b, 0x21, 0x04);
    out(b, 0x21, icw4_master);
    out(b, 0xa0, 0x11);
    out(b, 0xa1, 0x38);
    out(b, 0xa1, 0x02);
    out(b, 0xa1, icw4_slave);
}

static int setup(void **state)
{
    struct board *b = calloc(1, sizeof *b);
    fixture_init(&b->f);
    b->pic = pic_create(b->f.bus, fixture_line(&b->f, INTR));
    assert_non_null(b->pic);
    init(b, 1, 1);
    *state = b;
    return 0;
}

static int teardown(void **state)
{
    struct board *b = *state;
    pic_device.destroy(b->pic);
    fixture_done(&b->f);
    free(b);
    return 0;
}

static uint8_t irr(struct board *b, uint16_t port)
{
    out(b, port, 0x0a);
    return in(b, port);
}

static uint8_t isr(struct board *b, uint16_t port)
{
    out(b, port, 0x0b);
    return in(b, port);
}

static void raise(struct board *b, int irq)
{
    pic_set_irq(b->pic, irq, 1);
}

static void lower(struct board *b, int irq)
{
    pic_set_irq(b->pic, irq, 0);
}

static void edge_makes_one_request_that_is_acknowledged_once(void **state)
{
    struct board *b = *state;
    assert_false(pic_intr(b->pic));
    raise(b, 1);
    assert_true(pic_intr(b->pic));
    assert_int_equal(b->f.level[INTR], 1);
    assert_int_equal(irr(b, 0x20), 0x02);
    assert_int_equal(pic_ack(b->pic), 0x31);
    assert_int_equal(irr(b, 0x20), 0);
    assert_int_equal(isr(b, 0x20), 0x02);
    assert_int_equal(b->f.level[INTR], 0);
    out(b, 0x20, 0x20);
    assert_int_equal(isr(b, 0x20), 0);
    raise(b, 1); // still high: no edge
    assert_false(pic_intr(b->pic));
    lower(b, 1);
    raise(b, 1);
    assert_true(pic_intr(b->pic));
}

static void request_that_falls_before_the_acknowledge_is_spurious_irq7(void **state)
{
    struct board *b = *state;
    raise(b, 5);
    lower(b, 5);
    assert_false(pic_intr(b->pic));
    assert_int_equal(irr(b, 0x20), 0);
    assert_int_equal(pic_ack(b->pic), 0x37);
    assert_int_equal(isr(b, 0x20), 0);
}

static void fully_nested_order_is_that_of_the_inputs(void **state)
{
    struct board *b = *state;
    raise(b, 7);
    raise(b, 3);
    assert_int_equal(pic_ack(b->pic), 0x33);
    assert_false(pic_intr(b->pic)); // 7 waits
    raise(b, 0);
    assert_int_equal(pic_ack(b->pic), 0x30);
    assert_int_equal(isr(b, 0x20), 0x09);
    out(b, 0x20, 0x20); // the highest in service
    assert_int_equal(isr(b, 0x20), 0x08);
    out(b, 0x20, 0x20);
    assert_int_equal(pic_ack(b->pic), 0x37);
}

static void slave_request_passes_through_ir2(void **state)
{
    struct board *b = *state;
    raise(b, 12);
    assert_int_equal(irr(b, 0x20), 0x04);
    assert_int_equal(irr(b, 0xa0), 0x10);
    assert_int_equal(pic_ack(b->pic), 0x3c);
    assert_int_equal(isr(b, 0x20), 0x04);
    assert_int_equal(isr(b, 0xa0), 0x10);
    out(b, 0xa0, 0x64); // specific EOI
    out(b, 0x20, 0x62);
    assert_int_equal(isr(b, 0x20), 0);
    assert_int_equal(isr(b, 0xa0), 0);
}

static void second_slave_request_makes_a_new_edge_on_ir2(void **state)
{
    struct board *b = *state;
    raise(b, 14);
    raise(b, 15);
    assert_int_equal(pic_ack(b->pic), 0x3e);
    assert_int_equal(irr(b, 0x20), 0);
    out(b, 0xa0, 0x20);
    out(b, 0x20, 0x20);
    assert_true(pic_intr(b->pic));
    assert_int_equal(pic_ack(b->pic), 0x3f);
    out(b, 0xa0, 0x20);
    out(b, 0x20, 0x20);
    raise(b, 15);
    assert_false(pic_intr(b->pic));
}

static void higher_slave_request_waits_for_the_master_unless_special_fully_nested(void **state)
{
    struct board *b = *state;
    raise(b, 12);
    assert_int_equal(pic_ack(b->pic), 0x3c);
    raise(b, 8);
    assert_false(pic_intr(b->pic));
    init(b, 0x11, 0x01);
    lower(b, 8);
    lower(b, 12);
    raise(b, 12);
    assert_int_equal(pic_ack(b->pic), 0x3c);
    raise(b, 3); // lower than IR2: no
    assert_false(pic_intr(b->pic));
    raise(b, 8);
    assert_true(pic_intr(b->pic));
    assert_int_equal(pic_ack(b->pic), 0x38);
}

static void mask_hides_a_request_and_gives_it_back(void **state)
{
    struct board *b = *state;
    out(b, 0x21, 0x02);
    assert_int_equal(in(b, 0x21), 0x02);
    raise(b, 1);
    assert_false(pic_intr(b->pic));
    assert_int_equal(irr(b, 0x20), 0x02);
    out(b, 0x21, 0x00);
    assert_true(pic_intr(b->pic));
    out(b, 0x21, 0xff);
    assert_int_equal(b->f.level[INTR], 0);
    assert_int_equal(pic_ack(b->pic), 0x37);
}

static void special_mask_mode_enables_lower_levels(void **state)
{
    struct board *b = *state;
    raise(b, 3);
    assert_int_equal(pic_ack(b->pic), 0x33);
    raise(b, 6);
    out(b, 0x21, 0x08);
    assert_false(pic_intr(b->pic));
    out(b, 0x20, 0x68); // ESMM, SMM
    assert_true(pic_intr(b->pic));
    assert_int_equal(pic_ack(b->pic), 0x36);
    out(b, 0x20, 0x20); // finds 6, for 3 is masked
    assert_int_equal(isr(b, 0x20), 0x08);
    out(b, 0x20, 0x20);
    assert_int_equal(isr(b, 0x20), 0x08);
    out(b, 0x20, 0x48); // back
    out(b, 0x20, 0x20);
    assert_int_equal(isr(b, 0x20), 0);
}

static void rotation_puts_the_served_level_last(void **state)
{
    struct board *b = *state;
    raise(b, 4);
    raise(b, 6);
    assert_int_equal(pic_ack(b->pic), 0x34);
    lower(b, 4);
    raise(b, 4);
    out(b, 0x20, 0xa0); // rotate on non-specific EOI
    assert_int_equal(pic_ack(b->pic), 0x36);
    out(b, 0x20, 0xe6); // rotate on specific EOI
    assert_int_equal(pic_ack(b->pic), 0x34);
    out(b, 0x20, 0x20);
    out(b, 0x20, 0xc0); // set priority: 0 is the lowest, 1 the highest
    raise(b, 0);
    raise(b, 7);
    assert_int_equal(pic_ack(b->pic), 0x37);
    out(b, 0x20, 0x20);
    assert_int_equal(pic_ack(b->pic), 0x30);
}

static void automatic_eoi_leaves_nothing_in_service(void **state)
{
    struct board *b = *state;
    init(b, 0x03, 0x01);
    raise(b, 1);
    raise(b, 5);
    assert_int_equal(pic_ack(b->pic), 0x31);
    assert_int_equal(isr(b, 0x20), 0);
    assert_int_equal(pic_ack(b->pic), 0x35);
    out(b, 0x20, 0x80); // rotate in automatic EOI mode
    lower(b, 1);
    lower(b, 5);
    raise(b, 1);
    assert_int_equal(pic_ack(b->pic), 0x31); // now 2 is the highest
    lower(b, 1);
    raise(b, 1);
    raise(b, 7);
    assert_int_equal(pic_ack(b->pic), 0x37);
    assert_int_equal(pic_ack(b->pic), 0x31);
}

static void poll_is_an_acknowledge(void **state)
{
    struct board *b = *state;
    out(b, 0x20, 0x0c);
    assert_int_equal(in(b, 0x20), 0x00);
    raise(b, 6);
    out(b, 0x20, 0x0c);
    assert_int_equal(in(b, 0x20), 0x86);
    assert_int_equal(isr(b, 0x20), 0x40);
    assert_false(pic_intr(b->pic));
    raise(b, 9);
    out(b, 0xa0, 0x0c);
    assert_int_equal(in(b, 0xa1), 0x81); // whichever address is read
    assert_int_equal(isr(b, 0xa0), 0x02);
    assert_int_equal(in(b, 0xa1), 0x00); // the mask again
}

static void level_input_requests_as_long_as_it_is_high(void **state)
{
    struct board *b = *state;
    out(b, 0x4d0, 0xff);
    out(b, 0x4d1, 0xff);
    assert_int_equal(in(b, 0x4d0), 0xf8); // 0, 1, 2 are always edge
    assert_int_equal(in(b, 0x4d1), 0xde); // 8 and 13 too
    raise(b, 11);
    assert_int_equal(pic_ack(b->pic), 0x3b);
    assert_int_equal(irr(b, 0xa0), 0x08);
    out(b, 0xa0, 0x20);
    out(b, 0x20, 0x20);
    assert_int_equal(pic_ack(b->pic), 0x3b);
    lower(b, 11);
    out(b, 0xa0, 0x20);
    out(b, 0x20, 0x20);
    assert_false(pic_intr(b->pic));
}

static void icw1_clears_mask_service_and_edges(void **state)
{
    struct board *b = *state;
    raise(b, 4);
    assert_int_equal(pic_ack(b->pic), 0x34);
    raise(b, 6);
    out(b, 0x21, 0x55);
    out(b, 0x20, 0x68);
    out(b, 0x20, 0xc3);
    out(b, 0x20, 0x11);
    assert_int_equal(in(b, 0x21), 0);
    assert_int_equal(in(b, 0x20), 0); // IRR is selected, and a new edge is needed
    assert_int_equal(isr(b, 0x20), 0);
    out(b, 0x21, 0x40);
    out(b, 0x21, 0x04);
    out(b, 0x21, 0x01);
    lower(b, 4);
    raise(b, 4);
    lower(b, 3);
    raise(b, 3);
    assert_int_equal(pic_ack(b->pic), 0x43);
}

static void single_mode_without_icw4_takes_two_words(void **state)
{
    struct board *b = *state;
    out(b, 0x20, 0x12);
    out(b, 0x21, 0x57); // low three bits come from the input
    out(b, 0x21, 0xa5); // already the mask
    assert_int_equal(in(b, 0x21), 0xa5);
    raise(b, 1);
    assert_int_equal(pic_ack(b->pic), 0x51);
}

static void lines_outside_the_pair_are_ignored(void **state)
{
    struct board *b = *state;
    raise(b, 2);
    raise(b, 16);
    raise(b, -1);
    assert_false(pic_intr(b->pic));
    assert_int_equal(irr(b, 0x20), 0);
}

static void state_survives_save_and_load(void **state)
{
    struct board *b = *state;
    struct stream s, l;
    raise(b, 1);
    raise(b, 12);
    assert_int_equal(pic_ack(b->pic), 0x31);
    out(b, 0x21, 0x80);
    stream_init_save(&s);
    pic_device.state(b->pic, &s);
    pic_device.reset(b->pic);
    lower(b, 12);
    assert_false(pic_intr(b->pic));
    stream_init_load(&l, s.data, s.size);
    pic_device.state(b->pic, &l);
    assert_int_equal(l.error, 0);
    assert_int_equal(in(b, 0x21), 0x80);
    assert_int_equal(isr(b, 0x20), 0x02);
    out(b, 0x20, 0x20);
    assert_int_equal(b->f.level[INTR], 1);
    assert_int_equal(pic_ack(b->pic), 0x3c);
    stream_free(&s);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(edge_makes_one_request_that_is_acknowledged_once),
        TEST(request_that_falls_before_the_acknowledge_is_spurious_irq7),
        TEST(fully_nested_order_is_that_of_the_inputs),
        TEST(slave_request_passes_through_ir2),
        TEST(second_slave_request_makes_a_new_edge_on_ir2),
        TEST(higher_slave_request_waits_for_the_master_unless_special_fully_nested),
        TEST(mask_hides_a_request_and_gives_it_back),
        TEST(special_mask_mode_enables_lower_levels),
        TEST(rotation_puts_the_served_level_last),
        TEST(automatic_eoi_leaves_nothing_in_service),
        TEST(poll_is_an_acknowledge),
        TEST(level_input_requests_as_long_as_it_is_high),
        TEST(icw1_clears_mask_service_and_edges),
        TEST(single_mode_without_icw4_takes_two_words),
        TEST(lines_outside_the_pair_are_ignored),
        TEST(state_survives_save_and_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
