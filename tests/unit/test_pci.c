#include "device_fixture.h"

#define TEST_DEVFN (4 << 3)
#define MSIX_DEVFN (5 << 3)

struct board {
    struct fixture f;
    struct pci_bus *pci;
    struct i440fx *host;
    struct piix3 *isa;
    struct pci_device *d, *m;
    uint64_t mmio_offset, mmio_value;
    uint16_t io_port;
    uint64_t msi_address;
    uint32_t msi_data;
    int msi_count;
    unsigned written_offset, written_size;
};

static uint64_t mmio_read(void *opaque, uint64_t offset, unsigned size)
{
    ((struct board *)opaque)->mmio_offset = offset;
    return size == 4 ? 0x12345678 : 0;
}

static void mmio_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct board *b = opaque;
    (void)size;
    b->mmio_offset = offset;
    b->mmio_value = value;
}

static uint32_t io_read(void *opaque, uint16_t port, unsigned size)
{
    (void)size;
    ((struct board *)opaque)->io_port = port;
    return 0xab;
}

static void io_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    (void)opaque, (void)port, (void)size, (void)value;
}

static void msi(void *opaque, uint64_t address, uint32_t data)
{
    struct board *b = opaque;
    b->msi_address = address;
    b->msi_data = data;
    b->msi_count++;
}

static void written(void *opaque, unsigned offset, unsigned size)
{
    struct board *b = opaque;
    b->written_offset = offset;
    b->written_size = size;
}

static const struct mmio_ops mmio = {mmio_read, mmio_write};
static const struct port_ops io = {io_read, io_write, 4};

static int setup(void **state)
{
    struct board *b = calloc(1, sizeof *b);
    struct irq_line gsi[24], isa[16];
    const struct pci_device_info info = {
        .vendor = 0x1234,
        .device = 0x5678,
        .subsystem_vendor = 0x9abc,
        .subsystem = 0xdef0,
        .revision = 7,
        .subclass = 2,
        .class_code = 3,
        .interrupt_pin = 1,
        .name = "test",
    };
    const struct pci_bar bars[6] = {
        {.size = 0x4000, .mmio = &mmio},
        {.size = 0x20, .io = true, .port = &io},
        {.size = 0x10000, .mmio = &mmio, .bits64 = true, .prefetch = true},
    };

    fixture_init(&b->f);
    for (int n = 0; n < 16; n++)
        isa[n] = fixture_line(&b->f, n);
    for (int n = 0; n < 24; n++)
        gsi[n] = fixture_line(&b->f, 16 + n);
    b->pci = pci_bus_create(b->f.bus, &b->f.mem, gsi, isa);
    assert_non_null(b->pci);
    pci_set_msi(b->pci, msi, b);
    b->host = i440fx_create(b->pci, &b->f.mem);
    b->isa = piix3_create(b->pci, b->f.bus, fixture_control(&b->f));
    b->d = pci_add(b->pci, TEST_DEVFN, &info, bars, b);
    b->m = pci_add(b->pci, MSIX_DEVFN, &info, NULL, b);
    assert_true(b->host && b->isa && b->d && b->m);
    assert_true(pci_msix_add(b->m, 1, 3));
    *state = b;
    return 0;
}

static int teardown(void **state)
{
    struct board *b = *state;
    piix3_device.destroy(b->isa);
    i440fx_device.destroy(b->host);
    pci_bus_destroy(b->pci);
    fixture_done(&b->f);
    free(b);
    return 0;
}

static void address_register_takes_dwords_only(void **state)
{
    struct board *b = *state;
    bus_write(b->f.bus, 0xcf8, 4, 0xffffffff);
    assert_int_equal(bus_read(b->f.bus, 0xcf8, 4), 0x80fffffc);
    bus_write(b->f.bus, 0xcfb, 1, 0x01);
    assert_int_equal(bus_read(b->f.bus, 0xcf8, 4), 0x80fffffc);
    assert_int_equal(bus_read(b->f.bus, 0xcfc, 4), 0xffffffff); // bus 255
    bus_write(b->f.bus, 0xcf8, 4, 0);
    assert_int_equal(bus_read(b->f.bus, 0xcfc, 2), 0xffff); // not enabled
}

static void header_reads_back_in_every_width(void **state)
{
    struct board *b = *state;
    assert_int_equal(config_get(&b->f, 0, 0, 4), 0x12378086);
    assert_int_equal(config_get(&b->f, 8, 0, 4), 0x70008086);
    assert_int_equal(config_get(&b->f, 8, 0x0e, 1), 0x80);
    assert_int_equal(config_get(&b->f, TEST_DEVFN, 2, 2), 0x5678);
    assert_int_equal(config_get(&b->f, TEST_DEVFN, 9, 1), 0);
    assert_int_equal(config_get(&b->f, TEST_DEVFN, 8, 4), 0x03020007);
    assert_int_equal(config_get(&b->f, TEST_DEVFN, 0x2c, 4), 0xdef09abc);
    assert_int_equal(config_get(&b->f, 9 << 3, 0, 4), 0xffffffff);
    config_set(&b->f, TEST_DEVFN, 0, 4, 0);
    assert_int_equal(config_get(&b->f, TEST_DEVFN, 0, 4), 0x56781234);
}

static void bars_size_and_move(void **state)
{
    struct board *b = *state;
    struct fixture *f = &b->f;
    for (unsigned n = 0; n < 6; n++)
        config_set(f, TEST_DEVFN, 0x10 + 4 * n, 4, 0xffffffff);
    assert_int_equal(config_get(f, TEST_DEVFN, 0x10, 4), 0xffffc000);
    assert_int_equal(config_get(f, TEST_DEVFN, 0x14, 4), 0xffffffe1);
    assert_int_equal(config_get(f, TEST_DEVFN, 0x18, 4), 0xffff000c);
    assert_int_equal(config_get(f, TEST_DEVFN, 0x1c, 4), 0xffffffff);
    assert_int_equal(config_get(f, TEST_DEVFN, 0x20, 4), 0);

    config_set(f, TEST_DEVFN, 0x10, 4, 0xe0000000);
    assert_int_equal(mem_find(&f->mem, 0xe0000000).kind, MEM_NONE); // memory decoding is off
    config_set(f, TEST_DEVFN, 4, 2, 3);
    assert_int_equal(mem_mmio_read(&f->mem, 0xe0000010, 4), 0x12345678);
    assert_int_equal(b->mmio_offset, 0x10);
    config_set(f, TEST_DEVFN, 0x10, 4, 0xe0004000);
    assert_int_equal(mem_find(&f->mem, 0xe0000000).kind, MEM_NONE);
    mem_mmio_write(&f->mem, 0xe0004020, 4, 99);
    assert_int_equal(b->mmio_offset, 0x20);
    assert_int_equal(b->mmio_value, 99);

    config_set(f, TEST_DEVFN, 0x14, 4, 0xc000);
    assert_int_equal(bus_read(f->bus, 0xc004, 1), 0xab);
    assert_int_equal(b->io_port, 0xc004);
    config_set(f, TEST_DEVFN, 0x14, 4, 0xc100);
    assert_int_equal(bus_read(f->bus, 0xc004, 1), 0xff);
    assert_int_equal(bus_read(f->bus, 0xc11f, 1), 0xab);
    config_set(f, TEST_DEVFN, 4, 2, 0);
    assert_int_equal(bus_read(f->bus, 0xc11f, 1), 0xff);
    assert_int_equal(mem_find(&f->mem, 0xe0004000).kind, MEM_NONE);
}

// Another process follows the map by the index of a region: none may come while the guest runs.
static void placing_a_bar_makes_no_region(void **state)
{
    struct board *b = *state;
    unsigned count = b->f.mem.region_count;
    config_set(&b->f, TEST_DEVFN, 0x10, 4, 0xe0000000);
    config_set(&b->f, TEST_DEVFN, 4, 2, 2);
    assert_int_equal(mem_find(&b->f.mem, 0xe0000000).kind, MEM_MMIO);
    assert_int_equal(b->f.mem.region_count, count);
}

static void bar_above_4g_decodes(void **state)
{
    struct board *b = *state;
    config_set(&b->f, TEST_DEVFN, 0x18, 4, 0);
    config_set(&b->f, TEST_DEVFN, 0x1c, 4, 8);
    config_set(&b->f, TEST_DEVFN, 4, 2, 2);
    assert_int_equal(mem_mmio_read(&b->f.mem, 0x800000004, 4), 0x12345678);
    assert_int_equal(b->mmio_offset, 4);
}

static void bar_over_ram_or_apic_does_not_decode(void **state)
{
    struct board *b = *state;
    config_set(&b->f, TEST_DEVFN, 4, 2, 2);
    config_set(&b->f, TEST_DEVFN, 0x10, 4, 0x00100000);
    assert_int_equal(mem_find(&b->f.mem, 0x100000).kind, MEM_RAM);
    config_set(&b->f, TEST_DEVFN, 0x10, 4, 0xfec00000);
    assert_int_equal(mem_find(&b->f.mem, 0xfec00000).kind, MEM_NONE);
    config_set(&b->f, TEST_DEVFN, 0x10, 4, 0xfffff000);
    config_set(&b->f, TEST_DEVFN, 0x18, 4, 0xffffffff);
    config_set(&b->f, TEST_DEVFN, 0x1c, 4, 0xffffffff);
    assert_int_equal(mem_find(&b->f.mem, 0xffffffffffff0000).kind, MEM_NONE);
}

static void io_bar_over_another_device_yields(void **state)
{
    struct board *b = *state;
    config_set(&b->f, TEST_DEVFN, 0x14, 4, 0x0ce0); // CE0h-CFFh includes CF8h
    config_set(&b->f, TEST_DEVFN, 4, 2, 1);
    assert_int_equal(config_get(&b->f, TEST_DEVFN, 0, 4), 0x56781234);
    assert_int_equal(bus_read(b->f.bus, 0xce0, 1), 0xff);
}

static void command_bits_outside_the_mask_stay_zero_and_hook_is_told(void **state)
{
    struct board *b = *state;
    pci_on_config_write(b->d, written);
    config_set(&b->f, TEST_DEVFN, 4, 4, 0x0000ffff);
    assert_int_equal(config_get(&b->f, TEST_DEVFN, 4, 2), 0x0547);
    assert_int_equal(b->written_offset, 4);
    assert_int_equal(b->written_size, 4);
}

static void status_errors_clear_by_writing_ones(void **state)
{
    struct board *b = *state;
    pci_config(b->d)[7] = 0x90;
    config_set(&b->f, TEST_DEVFN, 6, 2, 0x8000);
    assert_int_equal(config_get(&b->f, TEST_DEVFN, 6, 2), 0x1000);
}

static void intx_follows_pirq_routing(void **state)
{
    struct board *b = *state;
    struct fixture *f = &b->f;
    pci_set_irq(b->d, 1); // slot 4 pin A: PIRQ (4 - 1) & 3 = D
    for (int n = 0; n < 40; n++)
        assert_int_equal(f->level[n], 0);
    assert_int_equal(config_get(f, TEST_DEVFN, 6, 2) & 8, 8);
    config_set(f, 8, 0x63, 1, 0x0b);
    assert_int_equal(f->level[11], 1);
    assert_int_equal(f->level[16 + 11], 1);
    config_set(f, 8, 0x63, 1, 0x0a);
    assert_int_equal(f->level[11], 0);
    assert_int_equal(f->level[10], 1);
    config_set(f, 8, 0x63, 1, 0x8a);
    assert_int_equal(f->level[10], 0);
    config_set(f, 8, 0x63, 1, 0x08); // reserved
    assert_int_equal(f->level[8], 0);
    config_set(f, 8, 0x60, 4, 0x0a0a0a0a);
    assert_int_equal(f->level[10], 1);
    pci_set_irq(b->m, 1); // slot 5: PIRQ A, same interrupt
    pci_set_irq(b->d, 0);
    assert_int_equal(f->level[10], 1);
    pci_set_irq(b->m, 0);
    assert_int_equal(f->level[10], 0);
}

static void intx_disable_holds_the_line_down(void **state)
{
    struct board *b = *state;
    config_set(&b->f, 8, 0x60, 4, 0x0b0b0b0b);
    config_set(&b->f, TEST_DEVFN, 4, 2, 0x400);
    pci_set_irq(b->d, 1);
    assert_int_equal(b->f.level[11], 0);
    assert_int_equal(config_get(&b->f, TEST_DEVFN, 6, 2) & 8, 8);
    config_set(&b->f, TEST_DEVFN, 4, 2, 0);
    assert_int_equal(b->f.level[11], 1);
}

static unsigned msix_on(struct board *b)
{
    unsigned cap = config_get(&b->f, MSIX_DEVFN, 0x34, 1);
    config_set(&b->f, MSIX_DEVFN, 0x14, 4, 0xe0100000);
    config_set(&b->f, MSIX_DEVFN, 4, 2, 6);
    config_set(&b->f, MSIX_DEVFN, cap + 2, 2, 0x8000);
    return cap;
}

static void msix_capability_describes_table_and_pba(void **state)
{
    struct board *b = *state;
    unsigned cap = config_get(&b->f, MSIX_DEVFN, 0x34, 1);
    assert_int_equal(cap, 0x40);
    assert_int_equal(config_get(&b->f, MSIX_DEVFN, 6, 2) & 0x10, 0x10);
    assert_int_equal(config_get(&b->f, MSIX_DEVFN, cap, 4), 0x00020011);
    assert_int_equal(config_get(&b->f, MSIX_DEVFN, cap + 4, 4), 1);
    assert_int_equal(config_get(&b->f, MSIX_DEVFN, cap + 8, 4), 0x801);
    config_set(&b->f, MSIX_DEVFN, cap + 2, 2, 0xffff);
    assert_int_equal(config_get(&b->f, MSIX_DEVFN, cap + 2, 2), 0xc002);
}

static void msix_vector_sends_its_message(void **state)
{
    struct board *b = *state;
    pci_msix_notify(b->m, 1); // not enabled: nothing, and nothing pends
    msix_on(b);
    mem_mmio_write(&b->f.mem, 0xe0100010, 4, 0xfee01003);
    mem_mmio_write(&b->f.mem, 0xe0100014, 4, 1);
    mem_mmio_write(&b->f.mem, 0xe0100018, 4, 0x41);
    mem_mmio_write(&b->f.mem, 0xe010001c, 4, 0);
    assert_int_equal(b->msi_count, 0);
    pci_msix_notify(b->m, 1);
    assert_int_equal(b->msi_count, 1);
    assert_int_equal(b->msi_address, 0x1fee01000);
    assert_int_equal(b->msi_data, 0x41);
    pci_msix_notify(b->m, 3);
    pci_msix_notify(b->m, 1000);
    assert_int_equal(b->msi_count, 1);
}

static void msix_masked_vector_pends_until_unmasked(void **state)
{
    struct board *b = *state;
    unsigned cap = msix_on(b);
    assert_int_equal(mem_mmio_read(&b->f.mem, 0xe010000c, 4), 1);
    pci_msix_notify(b->m, 0);
    assert_int_equal(b->msi_count, 0);
    assert_int_equal(mem_mmio_read(&b->f.mem, 0xe0100800, 4), 1);
    mem_mmio_write(&b->f.mem, 0xe0100800, 4, 0); // read-only
    config_set(&b->f, MSIX_DEVFN, cap + 2, 2, 0xc000);
    mem_mmio_write(&b->f.mem, 0xe010000c, 4, 0);
    assert_int_equal(b->msi_count, 0); // the function mask
    config_set(&b->f, MSIX_DEVFN, cap + 2, 2, 0x8000);
    assert_int_equal(b->msi_count, 1);
    assert_int_equal(mem_mmio_read(&b->f.mem, 0xe0100800, 4), 0);
}

static void pam_switches_between_rom_and_ram(void **state)
{
    struct board *b = *state;
    static uint8_t rom[0x20000];
    uint8_t byte = 0x55, got = 0;
    memset(rom, 0x99, sizeof rom);
    assert_true(mem_add_rom(&b->f.mem, 0xe0000, rom, sizeof rom, "bios") >= 0);
    assert_true(mem_read(&b->f.mem, 0xf0000, &got, 1));
    assert_int_equal(got, 0x99);
    config_set(&b->f, 0, 0x59, 1, 0x20); // reads ROM, writes RAM
    mem_write(&b->f.mem, 0xf0000, &byte, 1);
    mem_read(&b->f.mem, 0xf0000, &got, 1);
    assert_int_equal(got, 0x99);
    config_set(&b->f, 0, 0x59, 1, 0x30);
    mem_read(&b->f.mem, 0xf0000, &got, 1);
    assert_int_equal(got, 0x55);
    mem_read(&b->f.mem, 0xe4000, &got, 1);
    assert_int_equal(got, 0x99);
    config_set(&b->f, 0, 0x5e, 1, 0xff); // E0000-E7FFF; reserved bits read zero
    assert_int_equal(config_get(&b->f, 0, 0x5e, 1), 0x33);
    mem_write(&b->f.mem, 0xe4000, &byte, 1);
    mem_read(&b->f.mem, 0xe4000, &got, 1);
    assert_int_equal(got, 0x55);
    mem_read(&b->f.mem, 0xe8000, &got, 1);
    assert_int_equal(got, 0x99);
    i440fx_device.reset(b->host);
    mem_read(&b->f.mem, 0xe4000, &got, 1);
    assert_int_equal(got, 0x99);
}

static void cf9_resets_on_the_rising_edge(void **state)
{
    struct board *b = *state;
    bus_write(b->f.bus, 0xcf9, 1, 0x02);
    assert_int_equal(b->f.requests, 0);
    assert_int_equal(bus_read(b->f.bus, 0xcf9, 1), 0x02);
    bus_write(b->f.bus, 0xcf9, 1, 0x06);
    assert_int_equal(b->f.requests, 1);
    assert_int_equal(b->f.last_request, MACHINE_RESET);
    bus_write(b->f.bus, 0xcf9, 1, 0x00);
    bus_write(b->f.bus, 0xcf9, 1, 0x04);
    assert_int_equal(b->f.last_request, MACHINE_INIT_CPU);
}

static void reset_unmaps_bars_and_lowers_lines(void **state)
{
    struct board *b = *state;
    config_set(&b->f, 8, 0x60, 4, 0x0b0b0b0b);
    config_set(&b->f, TEST_DEVFN, 0x10, 4, 0xe0000000);
    config_set(&b->f, TEST_DEVFN, 4, 2, 7);
    pci_set_irq(b->d, 1);
    pci_bus_device.reset(b->pci);
    assert_int_equal(b->f.level[11], 0);
    assert_int_equal(mem_find(&b->f.mem, 0xe0000000).kind, MEM_NONE);
    assert_int_equal(config_get(&b->f, TEST_DEVFN, 4, 2), 0);
    assert_int_equal(config_get(&b->f, TEST_DEVFN, 0x10, 4), 0);
    assert_int_equal(config_get(&b->f, TEST_DEVFN, 0x18, 4), 0xc);
}

static void state_restores_bars_routing_and_refuses_other_machines(void **state)
{
    struct board *b = *state;
    struct stream s, l;
    config_set(&b->f, 8, 0x60, 4, 0x0b0b0b0b);
    config_set(&b->f, TEST_DEVFN, 0x10, 4, 0xe0000000);
    config_set(&b->f, TEST_DEVFN, 4, 2, 2);
    pci_set_irq(b->d, 1);
    stream_init_save(&s);
    pci_bus_device.state(b->pci, &s);
    piix3_device.reset(b->isa);
    pci_bus_device.reset(b->pci);
    assert_int_equal(b->f.level[11], 0);
    stream_init_load(&l, s.data, s.size);
    pci_bus_device.state(b->pci, &l);
    assert_int_equal(l.error, 0);
    assert_int_equal(b->f.level[11], 1);
    assert_int_equal(mem_mmio_read(&b->f.mem, 0xe0000000, 4), 0x12345678);

    for (size_t i = 0; i < s.size; i++) { // whatever the stream says, identity stays
        uint8_t old = s.data[i];
        s.data[i] ^= 0xff;
        stream_init_load(&l, s.data, s.size);
        pci_bus_device.state(b->pci, &l);
        s.data[i] = old;
        assert_int_equal(config_get(&b->f, TEST_DEVFN, 0, 4), 0x56781234);
    }
    stream_init_load(&l, s.data, s.size / 2);
    pci_bus_device.state(b->pci, &l);
    assert_int_not_equal(l.error, 0);
    stream_free(&s);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(address_register_takes_dwords_only),
        T(header_reads_back_in_every_width),
        T(bars_size_and_move),
        T(placing_a_bar_makes_no_region),
        T(bar_above_4g_decodes),
        T(bar_over_ram_or_apic_does_not_decode),
        T(io_bar_over_another_device_yields),
        T(command_bits_outside_the_mask_stay_zero_and_hook_is_told),
        T(status_errors_clear_by_writing_ones),
        T(intx_follows_pirq_routing),
        T(intx_disable_holds_the_line_down),
        T(msix_capability_describes_table_and_pba),
        T(msix_vector_sends_its_message),
        T(msix_masked_vector_pends_until_unmasked),
        T(pam_switches_between_rom_and_ram),
        T(cf9_resets_on_the_rising_edge),
        T(reset_unmaps_bars_and_lowers_lines),
        T(state_restores_bars_routing_and_refuses_other_machines),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
