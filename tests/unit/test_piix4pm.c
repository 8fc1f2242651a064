#include "device_fixture.h"

#define PM_DEVFN (1 << 3 | 3)
#define SCI      9
// PM timer counts 2^23 and 2^24 are reached in these nanoseconds: ceil(count * 10^9 / 3579545).
#define HALF_NS  2343484438ull
#define WHOLE_NS 4686968875ull

struct board {
    struct fixture f;
    struct pci_bus *pci;
    struct piix4pm *pm;
};

static int setup(void **state)
{
    struct board *b = calloc(1, sizeof *b);
    fixture_init(&b->f);
    b->pci = pci_bus_create(b->f.bus, &b->f.mem, NULL, NULL);
    b->pm = piix4pm_create(b->pci, b->f.bus, &b->f.clock, fixture_line(&b->f, SCI), fixture_control(&b->f));
    assert_non_null(b->pm);
    *state = b;
    return 0;
}

static int teardown(void **state)
{
    struct board *b = *state;
    piix4pm_device.destroy(b->pm);
    pci_bus_destroy(b->pci);
    fixture_done(&b->f);
    free(b);
    return 0;
}

static uint32_t in(struct board *b, unsigned offset, unsigned size)
{
    return bus_read(b->f.bus, 0x600 + offset, size);
}

static void out(struct board *b, unsigned offset, unsigned size, uint32_t value)
{
    bus_write(b->f.bus, 0x600 + offset, size, value);
}

static void base_is_600h_after_reset_and_moves(void **state)
{
    struct board *b = *state;
    assert_int_equal(config_get(&b->f, PM_DEVFN, 0, 4), 0x71138086);
    assert_int_equal(config_get(&b->f, PM_DEVFN, 0x40, 4), 0x601);
    assert_int_equal(config_get(&b->f, PM_DEVFN, 0x58, 4) & 0x02000000, 0x02000000);
    assert_int_equal(in(b, 4, 2), 0);
    config_set(&b->f, PM_DEVFN, 0x40, 4, 0xb03f);
    assert_int_equal(config_get(&b->f, PM_DEVFN, 0x40, 4), 0xb001);
    assert_int_equal(in(b, 4, 2), 0xffff);
    assert_int_equal(bus_read(b->f.bus, 0xb004, 2), 0);
    config_set(&b->f, PM_DEVFN, 0x80, 1, 0);
    assert_int_equal(bus_read(b->f.bus, 0xb004, 2), 0xffff);
    piix4pm_device.reset(b->pm);
    assert_int_equal(in(b, 4, 2), 0);
}

static void timer_counts_at_3579545_hz_in_24_bits(void **state)
{
    struct board *b = *state;
    assert_int_equal(in(b, 8, 4), 0);
    b->f.now_ns = 1000000000;
    assert_int_equal(in(b, 8, 4), 3579545);
    b->f.now_ns = WHOLE_NS - 1;
    assert_int_equal(in(b, 8, 4), 0xffffff);
    b->f.now_ns = WHOLE_NS;
    assert_int_equal(in(b, 8, 4), 0);
    b->f.now_ns = 86400000000000ull; // a day
    assert_int_equal(in(b, 8, 4), (3579545ull * 86400) & 0xffffff);
    assert_int_equal(in(b, 9, 1), (3579545ull * 86400) >> 8 & 0xff);
}

static void overflow_sets_status_when_bit_23_changes(void **state)
{
    struct board *b = *state;
    b->f.now_ns = HALF_NS - 1;
    assert_int_equal(in(b, 0, 2), 0);
    b->f.now_ns = HALF_NS;
    assert_int_equal(in(b, 0, 2), 1);
    out(b, 0, 2, 1);
    assert_int_equal(in(b, 0, 2), 0);
    b->f.now_ns = WHOLE_NS;
    assert_int_equal(in(b, 0, 2), 1);
}

static void overflow_interrupts_at_the_exact_time(void **state)
{
    struct board *b = *state;
    out(b, 2, 2, 1);
    out(b, 4, 2, 1); // SCI_EN
    assert_int_equal(b->f.clock.head->deadline_ns, HALF_NS);
    fixture_advance(&b->f, HALF_NS - 1);
    assert_int_equal(b->f.level[SCI], 0);
    fixture_advance(&b->f, HALF_NS);
    assert_int_equal(b->f.level[SCI], 1);
    assert_null(b->f.clock.head); // nothing to wait for until the status is cleared
    out(b, 0, 2, 1);
    assert_int_equal(b->f.level[SCI], 0);
    assert_int_equal(b->f.clock.head->deadline_ns, WHOLE_NS);
}

static void acpi_enable_handshake_sets_sci_en(void **state)
{
    struct board *b = *state;
    bus_write(b->f.bus, 0xb3, 1, 0x5a);
    bus_write(b->f.bus, 0xb2, 1, 0xf1);
    assert_int_equal(in(b, 4, 2), 1);
    assert_int_equal(bus_read(b->f.bus, 0xb2, 2), 0x5af1);
    bus_write(b->f.bus, 0xb2, 1, 0xf0);
    assert_int_equal(in(b, 4, 2), 0);
}

static void power_button_raises_sci_when_enabled(void **state)
{
    struct board *b = *state;
    piix4pm_power_button(b->pm);
    assert_int_equal(b->f.level[SCI], 0);
    assert_int_equal(in(b, 0, 2), 0x100);
    out(b, 0, 4, 0x01000000); // PMEN by a dword write that clears no status
    assert_int_equal(b->f.level[SCI], 0);
    out(b, 4, 2, 1);
    assert_int_equal(b->f.level[SCI], 1);
    out(b, 1, 1, 1);
    assert_int_equal(b->f.level[SCI], 0);
    assert_int_equal(in(b, 0, 4), 0x01000000);
}

static void soft_off_powers_off_and_other_sleeps_do_not(void **state)
{
    struct board *b = *state;
    out(b, 4, 2, 0x2000 | 1 << 10);
    assert_int_equal(b->f.requests, 0);
    assert_int_equal(in(b, 4, 2), 1 << 10); // SUS_EN reads zero
    out(b, 4, 2, 0x2001);
    assert_int_equal(b->f.requests, 1);
    assert_int_equal(b->f.last_request, MACHINE_POWER_OFF);
}

static void gpe0_enable_keeps_its_bits(void **state)
{
    struct board *b = *state;
    out(b, 0xe, 2, 0xffff);
    assert_int_equal(in(b, 0xc, 4), 0x0f010000);
    out(b, 0xc, 4, 0);
    assert_int_equal(in(b, 0xe, 2), 0);
    assert_int_equal(in(b, 0x30, 4), 0);
}

static void state_survives_save_and_load(void **state)
{
    struct board *b = *state;
    struct stream s, l;
    out(b, 2, 2, 0x101);
    out(b, 4, 2, 1);
    piix4pm_power_button(b->pm);
    stream_init_save(&s);
    piix4pm_device.state(b->pm, &s);
    piix4pm_device.reset(b->pm);
    assert_int_equal(b->f.level[SCI], 0);
    stream_init_load(&l, s.data, s.size);
    piix4pm_device.state(b->pm, &l);
    assert_int_equal(l.error, 0);
    assert_int_equal(b->f.level[SCI], 1);
    assert_int_equal(in(b, 0, 4), 0x01010100);
    assert_int_equal(b->f.clock.head->deadline_ns, HALF_NS);
    stream_free(&s);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(base_is_600h_after_reset_and_moves),
        T(timer_counts_at_3579545_hz_in_24_bits),
        T(overflow_sets_status_when_bit_23_changes),
        T(overflow_interrupts_at_the_exact_time),
        T(acpi_enable_handshake_sets_sci_en),
        T(power_button_raises_sci_when_enabled),
        T(soft_off_powers_off_and_other_sleeps_do_not),
        T(gpe0_enable_keeps_its_bits),
        T(state_survives_save_and_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
