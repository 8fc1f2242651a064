#include "device_fixture.h"
#include <errno.h>

struct access {
    uint16_t port;
    unsigned size;
    uint32_t value;
};
struct chip {
    struct access seen[8];
    int count;
    uint32_t answer;
};

static uint32_t chip_read(void *opaque, uint16_t port, unsigned size)
{
    struct chip *c = opaque;
    c->seen[c->count++] = (struct access){port, size, 0};
    return c->answer + port;
}

static void chip_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    struct chip *c = opaque;
    c->seen[c->count++] = (struct access){port, size, value};
}

static const struct port_ops bytes = {.read = chip_read, .write = chip_write};
static const struct port_ops words = {.read = chip_read, .write = chip_write, .max_size = 2};
static const struct port_ops dwords = {.read = chip_read, .write = chip_write, .max_size = 4};
static const struct port_ops deaf = {.max_size = 4};

static void saw(const struct chip *c, int i, uint16_t port, unsigned size, uint32_t value)
{
    assert_int_equal(c->seen[i].port, port);
    assert_int_equal(c->seen[i].size, size);
    assert_int_equal(c->seen[i].value, value);
}

static int setup(void **state)
{
    *state = bus_create();
    return *state ? 0 : -1;
}

static int teardown(void **state)
{
    bus_destroy(*state);
    return 0;
}

static void unclaimed_ports_read_all_ones_of_their_size(void **state)
{
    struct bus *b = *state;
    assert_int_equal(bus_read(b, 0x80, 1), 0xff);
    assert_int_equal(bus_read(b, 0x80, 2), 0xffff);
    assert_int_equal(bus_read(b, 0xfffe, 4), 0xffffffff);
    bus_write(b, 0xffff, 4, 0x12345678);
}

static void narrow_chip_gets_wide_accesses_in_pieces(void **state)
{
    struct bus *b = *state;
    struct chip c = {0};
    assert_int_equal(bus_claim(b, 0x100, 8, &bytes, &c), 0);
    bus_write(b, 0x101, 4, 0x44332211);
    assert_int_equal(c.count, 4);
    saw(&c, 0, 0x101, 1, 0x11);
    saw(&c, 3, 0x104, 1, 0x44);
    c.count = 0;
    assert_int_equal(bus_read(b, 0x102, 2), 0x0302); // answers are cut to the piece
    struct chip w = {0};
    assert_int_equal(bus_claim(b, 0x200, 8, &words, &w), 0);
    bus_write(b, 0x201, 4, 0x44332211);
    assert_int_equal(w.count, 2);
    saw(&w, 0, 0x201, 2, 0x2211);
    saw(&w, 1, 0x203, 2, 0x4433);
}

static void wide_chip_gets_every_access_whole(void **state)
{
    struct bus *b = *state;
    struct chip c = {.answer = 0xcafe0000};
    assert_int_equal(bus_claim(b, 0xcf8, 8, &dwords, &c), 0);
    assert_int_equal(bus_read(b, 0xcfc, 4), 0xcafe0cfc);
    assert_int_equal(bus_read(b, 0xcfe, 2), 0x0cfe);
    bus_write(b, 0xcf9, 1, 6);
    saw(&c, 0, 0xcfc, 4, 0);
    saw(&c, 1, 0xcfe, 2, 0);
    saw(&c, 2, 0xcf9, 1, 6);
}

static void access_across_two_owners_goes_to_each_by_bytes(void **state)
{
    struct bus *b = *state;
    struct chip c = {0}, d = {0};
    assert_int_equal(bus_claim(b, 0x300, 2, &dwords, &c), 0);
    assert_int_equal(bus_claim(b, 0x302, 1, &dwords, &d), 0);
    bus_write(b, 0x300, 4, 0x44332211);
    assert_int_equal(c.count, 2);
    saw(&c, 0, 0x300, 1, 0x11);
    saw(&c, 1, 0x301, 1, 0x22);
    assert_int_equal(d.count, 1);
    saw(&d, 0, 0x302, 1, 0x33);
    assert_int_equal(bus_read(b, 0x302, 2), 0xff02);
}

static void last_ports_do_not_wrap_to_the_first(void **state)
{
    struct bus *b = *state;
    struct chip low = {0}, high = {0};
    assert_int_equal(bus_claim(b, 0, 4, &dwords, &low), 0);
    assert_int_equal(bus_claim(b, 0xfffe, 2, &dwords, &high), 0);
    bus_write(b, 0xfffe, 4, 0x44332211);
    assert_int_equal(low.count, 0);
    assert_int_equal(high.count, 2);
    assert_int_equal(bus_read(b, 0xffff, 2), 0xffff);
    assert_int_equal(bus_claim(b, 0xffff, 2, &dwords, &low), -EINVAL);
}

static void port_has_one_owner_until_released(void **state)
{
    struct bus *b = *state;
    struct chip c = {0}, d = {0};
    assert_int_equal(bus_claim(b, 0x3f8, 8, &bytes, &c), 0);
    assert_int_equal(bus_claim(b, 0x3f0, 9, &bytes, &d), -EBUSY);
    assert_int_equal(bus_read(b, 0x3f0, 1), 0xff); // nothing of the refused claim stays
    assert_int_equal(d.count, 0);
    bus_release(b, 0x3f8, 8);
    assert_int_equal(bus_read(b, 0x3f8, 1), 0xff);
    assert_int_equal(bus_claim(b, 0x3f0, 16, &bytes, &d), 0);
    assert_int_equal(bus_read(b, 0x3f8, 1), 0xf8);
}

static void claims_that_move_forever_do_not_run_out(void **state)
{
    struct bus *b = *state;
    static struct chip c;
    for (unsigned i = 0; i < 4096; i++) {
        uint16_t port = (uint16_t)(0x1000 + 16 * (i % 256));
        assert_int_equal(bus_claim(b, port, 16, i & 1 ? &bytes : &dwords, &c), 0);
        bus_release(b, port, 16);
    }
}

static void chip_without_handlers_reads_all_ones(void **state)
{
    struct bus *b = *state;
    assert_int_equal(bus_claim(b, 0x500, 4, &deaf, NULL), 0);
    assert_int_equal(bus_read(b, 0x500, 4), 0xffffffff);
    bus_write(b, 0x500, 4, 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(unclaimed_ports_read_all_ones_of_their_size),
        TEST(narrow_chip_gets_wide_accesses_in_pieces),
        TEST(wide_chip_gets_every_access_whole),
        TEST(access_across_two_owners_goes_to_each_by_bytes),
        TEST(last_ports_do_not_wrap_to_the_first),
        TEST(port_has_one_owner_until_released),
        TEST(claims_that_move_forever_do_not_run_out),
        TEST(chip_without_handlers_reads_all_ones),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
