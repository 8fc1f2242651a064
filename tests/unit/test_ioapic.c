#include "device_fixture.h"

struct board {
    struct fixture f;
    struct ioapic *io;
    struct apic_message last;
    int count;
};

static void deliver(void *opaque, const struct apic_message *m)
{
    struct board *b = opaque;
    b->last = *m;
    b->count++;
}

static int setup(void **state)
{
    struct board *b = calloc(1, sizeof *b);
    fixture_init(&b->f);
    b->io = ioapic_create(&b->f.mem, (struct apic_bus){deliver, b});
    assert_non_null(b->io);
    *state = b;
    return 0;
}

static int teardown(void **state)
{
    struct board *b = *state;
    ioapic_device.destroy(b->io);
    fixture_done(&b->f);
    free(b);
    return 0;
}

static uint32_t get(struct board *b, unsigned index)
{
    mem_mmio_write(&b->f.mem, 0xfec00000, 4, index);
    return mem_mmio_read(&b->f.mem, 0xfec00010, 4);
}

static void set(struct board *b, unsigned index, uint32_t value)
{
    mem_mmio_write(&b->f.mem, 0xfec00000, 4, index);
    mem_mmio_write(&b->f.mem, 0xfec00010, 4, value);
}

static void reset_masks_every_entry(void **state)
{
    struct board *b = *state;
    assert_int_equal(get(b, 1), 0x00170011);
    for (unsigned n = 0; n < 24; n++) {
        assert_int_equal(get(b, 0x10 + 2 * n), 0x10000);
        assert_int_equal(get(b, 0x11 + 2 * n), 0);
    }
    assert_int_equal(get(b, 0x40), 0); // beyond the table
    set(b, 0xff, 0xffffffff);
}

static void id_is_four_bits_and_shows_in_arbitration(void **state)
{
    struct board *b = *state;
    set(b, 0, 0xffffffff);
    assert_int_equal(get(b, 0), 0x0f000000);
    assert_int_equal(get(b, 2), 0x0f000000);
}

static void read_only_bits_do_not_stick(void **state)
{
    struct board *b = *state;
    set(b, 0x10, 0xffffffff);
    set(b, 0x11, 0xffffffff);
    assert_int_equal(get(b, 0x10), 0x0001afff);
    assert_int_equal(get(b, 0x11), 0xff000000);
}

static void edge_sends_once_per_rising_edge(void **state)
{
    struct board *b = *state;
    set(b, 0x11 + 2 * 4, 0x05000000);
    set(b, 0x10 + 2 * 4, 0x00000934); // logical, lowest priority, vector 34h
    ioapic_set_irq(b->io, 4, 1);
    ioapic_set_irq(b->io, 4, 1);
    assert_int_equal(b->count, 1);
    assert_int_equal(b->last.vector, 0x34);
    assert_int_equal(b->last.delivery_mode, 1);
    assert_int_equal(b->last.dest_logical, 1);
    assert_int_equal(b->last.level_triggered, 0);
    assert_int_equal(b->last.destination, 5);
    ioapic_set_irq(b->io, 4, 0);
    ioapic_set_irq(b->io, 4, 1);
    assert_int_equal(b->count, 2);
}

static void masked_edge_is_lost(void **state)
{
    struct board *b = *state;
    set(b, 0x10, 0x10040);
    ioapic_set_irq(b->io, 0, 1);
    set(b, 0x10, 0x00040);
    assert_int_equal(b->count, 0);
}

static void masked_level_is_sent_on_unmask(void **state)
{
    struct board *b = *state;
    set(b, 0x10 + 2 * 11, 0x18040);
    ioapic_set_irq(b->io, 11, 1);
    assert_int_equal(b->count, 0);
    set(b, 0x10 + 2 * 11, 0x08040);
    assert_int_equal(b->count, 1);
    assert_int_equal(b->last.level_triggered, 1);
    assert_int_equal(get(b, 0x10 + 2 * 11), 0x0c040); // remote IRR
}

static void level_waits_for_eoi_and_repeats_while_asserted(void **state)
{
    struct board *b = *state;
    set(b, 0x10 + 2 * 11, 0x08040);
    ioapic_set_irq(b->io, 11, 1);
    ioapic_set_irq(b->io, 11, 0);
    ioapic_set_irq(b->io, 11, 1);
    assert_int_equal(b->count, 1);
    ioapic_eoi(b->io, 0x41);
    assert_int_equal(b->count, 1);
    ioapic_eoi(b->io, 0x40);
    assert_int_equal(b->count, 2);
    ioapic_set_irq(b->io, 11, 0);
    ioapic_eoi(b->io, 0x40);
    assert_int_equal(b->count, 2);
    assert_int_equal(get(b, 0x10 + 2 * 11), 0x08040);
}

static void switching_to_edge_clears_remote_irr(void **state)
{
    struct board *b = *state;
    set(b, 0x10 + 2 * 11, 0x08040);
    ioapic_set_irq(b->io, 11, 1);
    set(b, 0x10 + 2 * 11, 0x10040); // how software without an EOI register acknowledges
    set(b, 0x10 + 2 * 11, 0x18040);
    assert_int_equal(get(b, 0x10 + 2 * 11), 0x18040);
    set(b, 0x10 + 2 * 11, 0x08040);
    assert_int_equal(b->count, 2);
}

static void nmi_mode_is_an_edge(void **state)
{
    struct board *b = *state;
    set(b, 0x10 + 2 * 2, 0x08400);
    ioapic_set_irq(b->io, 2, 1);
    assert_int_equal(b->count, 1);
    assert_int_equal(b->last.delivery_mode, 4);
    assert_int_equal(b->last.level_triggered, 0);
    assert_int_equal(get(b, 0x10 + 2 * 2), 0x08400);
}

static void inputs_out_of_range_are_ignored(void **state)
{
    struct board *b = *state;
    ioapic_set_irq(b->io, 24, 1);
    ioapic_set_irq(b->io, -1, 1);
    assert_int_equal(b->count, 0);
}

static void msi_fields_decode(void **state)
{
    (void)state;
    struct apic_message m = apic_msi_message(0xfeeab00c, 0xc3a5);
    assert_int_equal(m.destination, 0xab);
    assert_int_equal(m.dest_logical, 1);
    assert_int_equal(m.vector, 0xa5);
    assert_int_equal(m.delivery_mode, 3);
    assert_int_equal(m.level_triggered, 1);
    m = apic_msi_message(0xfee01000, 0x4030);
    assert_int_equal(m.dest_logical, 0);
    assert_int_equal(m.level_triggered, 0);
}

static void state_survives_save_and_load(void **state)
{
    struct board *b = *state;
    struct stream s, l;
    set(b, 0x10 + 2 * 11, 0x08040);
    set(b, 0x11 + 2 * 11, 0x03000000);
    ioapic_set_irq(b->io, 11, 1);
    stream_init_save(&s);
    ioapic_device.state(b->io, &s);
    assert_int_equal(s.error, 0);
    ioapic_device.reset(b->io);
    stream_init_load(&l, s.data, s.size);
    ioapic_device.state(b->io, &l);
    assert_int_equal(l.error, 0);
    assert_int_equal(get(b, 0x10 + 2 * 11), 0x0c040);
    ioapic_eoi(b->io, 0x40); // still asserted
    assert_int_equal(b->count, 2);
    assert_int_equal(b->last.destination, 3);
    stream_free(&s);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(reset_masks_every_entry),
        T(id_is_four_bits_and_shows_in_arbitration),
        T(read_only_bits_do_not_stick),
        T(edge_sends_once_per_rising_edge),
        T(masked_edge_is_lost),
        T(masked_level_is_sent_on_unmask),
        T(level_waits_for_eoi_and_repeats_while_asserted),
        T(switching_to_edge_clears_remote_irr),
        T(nmi_mode_is_an_edge),
        T(inputs_out_of_range_are_ignored),
        T(msi_fields_decode),
        T(state_survives_save_and_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
