#include "device_fixture.h"

#define IRQ4 4

struct board {
    struct fixture f;
    struct uart *uart;
};

static void out(struct board *b, unsigned reg, unsigned value)
{
    bus_write(b->f.bus, (uint16_t)(0x3f8 + reg), 1, value);
}

static unsigned in(struct board *b, unsigned reg)
{
    return bus_read(b->f.bus, (uint16_t)(0x3f8 + reg), 1);
}

static size_t host(struct board *b, const char *text)
{
    return uart_receive(b->uart, (const uint8_t *)text, strlen(text));
}

static int setup(void **state)
{
    struct board *b = calloc(1, sizeof *b);
    fixture_init(&b->f);
    b->uart = uart_create(b->f.bus, &b->f.clock, 0x3f8, fixture_line(&b->f, IRQ4), fixture_out(&b->f));
    assert_non_null(b->uart);
    out(b, 3, 0x83); // 115,200 8n1
    out(b, 0, 1);
    out(b, 1, 0);
    out(b, 3, 0x03);
    out(b, 4, 0x0b);
    *state = b;
    return 0;
}

static int teardown(void **state)
{
    struct board *b = *state;
    uart_device.destroy(b->uart);
    fixture_done(&b->f);
    free(b);
    return 0;
}

static void byte_written_is_out_at_once_and_the_transmitter_empty(void **state)
{
    struct board *b = *state;
    assert_int_equal(in(b, 5), 0x60);
    for (const char *p = "hello"; *p; p++) {
        out(b, 0, (unsigned)*p);
        assert_int_equal(in(b, 5), 0x60);
    }
    assert_int_equal(b->f.out_count, 5);
    assert_memory_equal(b->f.out, "hello", 5);
}

static void divisor_latch_hides_data_and_enable_registers(void **state)
{
    struct board *b = *state;
    out(b, 1, 0x05);
    out(b, 3, 0x83);
    out(b, 0, 0x34);
    out(b, 1, 0x12);
    assert_int_equal(in(b, 0), 0x34);
    assert_int_equal(in(b, 1), 0x12);
    assert_int_equal(b->f.out_count, 0);
    out(b, 3, 0x03);
    assert_int_equal(in(b, 1), 0x05);
    out(b, 1, 0xff);
    assert_int_equal(in(b, 1), 0x0f);
    out(b, 7, 0xa5);
    assert_int_equal(in(b, 7), 0xa5);
    out(b, 4, 0xe3);
    assert_int_equal(in(b, 4), 0x03);
}

static void thre_interrupt_comes_on_enable_and_after_each_write(void **state)
{
    struct board *b = *state;
    assert_int_equal(in(b, 2), 0x01);
    out(b, 1, 0x02);
    assert_int_equal(b->f.level[IRQ4], 1);
    assert_int_equal(in(b, 2), 0x02); // the read answers it
    assert_int_equal(b->f.level[IRQ4], 0);
    assert_int_equal(in(b, 2), 0x01);
    out(b, 1, 0x02); // already enabled: nothing new
    assert_int_equal(b->f.level[IRQ4], 0);
    out(b, 0, 'a');
    assert_int_equal(b->f.level[IRQ4], 1);
    int rises = b->f.rises[IRQ4];
    out(b, 0, 'b'); // without reading IIR: an edge all the same
    assert_int_equal(b->f.rises[IRQ4], rises + 1);
    out(b, 1, 0x00);
    assert_int_equal(b->f.level[IRQ4], 0);
    out(b, 1, 0x02);
    assert_int_equal(b->f.level[IRQ4], 1);
}

static void without_fifo_one_byte_fits_and_the_rest_waits_at_the_host(void **state)
{
    struct board *b = *state;
    out(b, 1, 0x01);
    assert_int_equal(uart_room(b->uart), 1);
    assert_int_equal(host(b, "xyz"), 1);
    assert_int_equal(uart_room(b->uart), 0);
    assert_int_equal(host(b, "yz"), 0);
    assert_int_equal(in(b, 5), 0x61);
    assert_int_equal(in(b, 2), 0x04);
    assert_int_equal(b->f.level[IRQ4], 1);
    assert_int_equal(in(b, 0), 'x');
    assert_int_equal(b->f.level[IRQ4], 0);
    assert_int_equal(in(b, 5), 0x60);
    assert_int_equal(in(b, 0), 'x'); // RBR keeps the last one
}

static void fifo_takes_sixteen_and_gives_them_in_order(void **state)
{
    struct board *b = *state;
    out(b, 2, 0x01);
    assert_int_equal(in(b, 2), 0xc1);
    for (int round = 0; round < 3; round++) {
        assert_int_equal(host(b, "0123456789abcdefXYZ"), 16);
        for (const char *p = "0123456789abcdef"; *p; p++) {
            assert_int_equal(in(b, 5), 0x61);
            assert_int_equal(in(b, 0), *p);
        }
        assert_int_equal(in(b, 5), 0x60);
    }
}

static void trigger_levels_are_1_4_8_14(void **state)
{
    struct board *b = *state;
    static const unsigned level[4] = {1, 4, 8, 14};
    out(b, 1, 0x01);
    for (unsigned i = 0; i < 4; i++) {
        out(b, 2, 0x01 | 0x02 | i << 6);
        for (unsigned n = 1; n < level[i]; n++) {
            host(b, "x");
            assert_int_equal(b->f.level[IRQ4], 0);
            assert_int_equal(in(b, 2), 0xc1);
        }
        host(b, "x");
        assert_int_equal(b->f.level[IRQ4], 1);
        assert_int_equal(in(b, 2), 0xc4);
        in(b, 0); // below the level again
        assert_int_equal(b->f.level[IRQ4], 0);
    }
}

static void characters_below_the_trigger_time_out_after_four_of_them(void **state)
{
    struct board *b = *state;
    out(b, 1, 0x01);
    out(b, 2, 0xc1);
    host(b, "ab");
    uint64_t four_ns = 4 * 10 * 1000000000ull / 115200;
    fixture_advance(&b->f, four_ns - 1);
    assert_int_equal(b->f.level[IRQ4], 0);
    host(b, "c"); // starts it again
    fixture_advance(&b->f, 2 * four_ns - 2);
    assert_int_equal(b->f.level[IRQ4], 0);
    fixture_advance(&b->f, 2 * four_ns - 1);
    assert_int_equal(b->f.level[IRQ4], 1);
    assert_int_equal(in(b, 2), 0xcc);
    assert_int_equal(in(b, 2), 0xcc); // reading IIR does not answer it
    assert_int_equal(in(b, 0), 'a');
    assert_int_equal(b->f.level[IRQ4], 0);
    fixture_advance(&b->f, 3 * four_ns - 1);
    assert_int_equal(in(b, 2), 0xcc);
    in(b, 0), in(b, 0);
    assert_int_equal(in(b, 2), 0xc1);
    assert_null(b->f.clock.head);
    // 5 bits, parity, 1.5 stop bits at 300 baud: 8.5 bits a character
    out(b, 3, 0x8c);
    out(b, 0, 384 & 0xff);
    out(b, 1, 384 >> 8);
    out(b, 3, 0x0c);
    uint64_t now_ns = b->f.now_ns;
    host(b, "d");
    assert_int_equal(b->f.clock.head->deadline_ns, now_ns + 34 * 1000000000ull / 300);
}

static void fifo_reset_and_mode_change_empty_it(void **state)
{
    struct board *b = *state;
    out(b, 2, 0x01);
    host(b, "abc");
    out(b, 2, 0x03);
    assert_int_equal(in(b, 5), 0x60);
    host(b, "abc");
    out(b, 2, 0x00);
    assert_int_equal(in(b, 5), 0x60);
    assert_int_equal(in(b, 2), 0x01);
    assert_null(b->f.clock.head);
}

static void interrupts_come_by_priority(void **state)
{
    struct board *b = *state;
    out(b, 2, 0x01);
    out(b, 4, 0x1b); // loopback: DTR, RTS, OUT2; CTS DSR DCD stay, nothing else
    for (int i = 0; i < 17; i++)
        out(b, 0, 'x');
    out(b, 4, 0x18); // drops two inputs
    out(b, 1, 0x0f);
    assert_int_equal(in(b, 2), 0xc6);
    assert_int_equal(in(b, 5), 0x63);
    assert_int_equal(in(b, 2), 0xc4);
    out(b, 2, 0x03);
    assert_int_equal(in(b, 2), 0xc2);
    assert_int_equal(in(b, 2), 0xc0);
    assert_int_equal(in(b, 6), 0x83);
    assert_int_equal(in(b, 2), 0xc1);
    assert_int_equal(b->f.level[IRQ4], 0);
}

static void loopback_ties_modem_outputs_to_inputs(void **state)
{
    struct board *b = *state;
    assert_int_equal(in(b, 6), 0xb0);
    out(b, 4, 0x10);
    assert_int_equal(in(b, 6), 0x0b);
    out(b, 4, 0x1a); // RTS, OUT2: as a driver that looks for the chip does
    assert_int_equal(in(b, 6), 0x99);
    assert_int_equal(in(b, 6), 0x90);
    out(b, 4, 0x15);
    assert_int_equal(in(b, 6), 0x6b); // the ring indicator's rise is no event
    out(b, 4, 0x11);
    assert_int_equal(in(b, 6), 0x24); // its fall is
    out(b, 4, 0x0b);
    assert_int_equal(in(b, 6), 0xb9);
}

static void loopback_returns_bytes_and_keeps_the_host_out(void **state)
{
    struct board *b = *state;
    out(b, 4, 0x1b);
    assert_int_equal(uart_room(b->uart), 0);
    assert_int_equal(host(b, "a"), 0);
    out(b, 0, 0xa5);
    assert_int_equal(b->f.out_count, 0);
    assert_int_equal(in(b, 5), 0x61);
    assert_int_equal(in(b, 0), 0xa5);
    out(b, 3, 0x00); // 5 bits
    out(b, 0, 0xff);
    assert_int_equal(in(b, 0), 0x1f);
}

static void overrun_loses_the_old_byte_without_fifo_and_the_new_one_with_it(void **state)
{
    struct board *b = *state;
    out(b, 4, 0x1b);
    out(b, 1, 0x04);
    out(b, 0, 'a');
    out(b, 0, 'b');
    assert_int_equal(in(b, 2), 0x06);
    assert_int_equal(in(b, 5), 0x63);
    assert_int_equal(in(b, 5), 0x61);
    assert_int_equal(in(b, 0), 'b');
    out(b, 2, 0x01);
    for (unsigned i = 0; i < 18; i++)
        out(b, 0, 'A' + i);
    assert_int_equal(in(b, 5), 0x63);
    for (unsigned i = 0; i < 16; i++)
        assert_int_equal(in(b, 0), 'A' + i);
    assert_int_equal(in(b, 5), 0x60);
}

static void out2_gates_the_interrupt(void **state)
{
    struct board *b = *state;
    out(b, 4, 0x03);
    out(b, 1, 0x02);
    assert_int_equal(b->f.level[IRQ4], 0);
    out(b, 4, 0x0b);
    assert_int_equal(b->f.level[IRQ4], 1);
}

static void reset_and_state(void **state)
{
    struct board *b = *state;
    struct stream s, l;
    out(b, 2, 0xc1);
    out(b, 1, 0x01);
    out(b, 7, 0x42);
    host(b, "abc");
    stream_init_save(&s);
    uart_device.state(b->uart, &s);
    uart_device.reset(b->uart);
    assert_int_equal(in(b, 1), 0);
    assert_int_equal(in(b, 2), 0x01);
    assert_int_equal(in(b, 4), 0);
    assert_int_equal(in(b, 5), 0x60);
    assert_int_equal(in(b, 6), 0xb0);
    assert_null(b->f.clock.head);
    stream_init_load(&l, s.data, s.size);
    uart_device.state(b->uart, &l);
    assert_int_equal(l.error, 0);
    assert_int_equal(l.position, l.size);
    assert_int_equal(in(b, 7), 0x42);
    fixture_advance(&b->f, 1000000);
    assert_int_equal(b->f.level[IRQ4], 1);
    assert_int_equal(in(b, 2), 0xcc);
    assert_int_equal(in(b, 0), 'a');
    assert_int_equal(in(b, 0), 'b');
    assert_int_equal(in(b, 0), 'c');
    stream_free(&s);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(byte_written_is_out_at_once_and_the_transmitter_empty),
        TEST(divisor_latch_hides_data_and_enable_registers),
        TEST(thre_interrupt_comes_on_enable_and_after_each_write),
        TEST(without_fifo_one_byte_fits_and_the_rest_waits_at_the_host),
        TEST(fifo_takes_sixteen_and_gives_them_in_order),
        TEST(trigger_levels_are_1_4_8_14),
        TEST(characters_below_the_trigger_time_out_after_four_of_them),
        TEST(fifo_reset_and_mode_change_empty_it),
        TEST(interrupts_come_by_priority),
        TEST(loopback_ties_modem_outputs_to_inputs),
        TEST(loopback_returns_bytes_and_keeps_the_host_out),
        TEST(overrun_loses_the_old_byte_without_fifo_and_the_new_one_with_it),
        TEST(out2_gates_the_interrupt),
        TEST(reset_and_state),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
