// The firmware tables: found and checked as an operating system does, relocated as SeaBIOS does; PCI set-up.
#include "tests/unit/loader_fixture.h"
#include "devices/chips.h"

static const struct acpi_config config = {
    .cpus = 1,
    .apic = true,
    .low_ram = 0x10000000,
    .high_ram = 1ull << 32,
    .phys_bits = 46,
};

static uint64_t get(const uint8_t *p, unsigned size)
{
    uint64_t value = 0;
    for (unsigned n = 0; n < size; n++)
        value |= (uint64_t)p[n] << 8 * n;
    return value;
}

static uint8_t sum(const uint8_t *p, size_t n)
{
    uint8_t total = 0;
    while (n--)
        total += *p++;
    return total;
}

#define BASE 0x0fff0000u

static const uint8_t *table_at(const struct acpi_tables *t, uint64_t address, const char *signature)
{
    assert_in_range(address, BASE, BASE + t->size - 36);
    const uint8_t *p = t->data + (address - BASE);
    assert_memory_equal(p, signature, 4);
    if (memcmp(signature, "FACS", 4)) {
        assert_in_range(get(p + 4, 4), 36, t->size - (p - t->data));
        assert_int_equal(sum(p, get(p + 4, 4)), 0);
    }
    return p;
}

static const uint8_t *find_table(const struct acpi_tables *t, const char *signature)
{
    const uint8_t *xsdt = table_at(t, get(t->rsdp + 24, 8), "XSDT");
    for (unsigned at = 36; at < get(xsdt + 4, 4); at += 8)
        if (!memcmp(t->data + (get(xsdt + at, 8) - BASE), signature, 4))
            return table_at(t, get(xsdt + at, 8), signature);
    return NULL;
}

static void rsdp_leads_to_every_table_with_right_checksums(void **state)
{
    struct acpi_tables t;
    (void)state;

    assert_int_equal(acpi_build(&t, &config), 0);
    acpi_relocate(&t, BASE);
    assert_memory_equal(t.rsdp, "RSD PTR ", 8);
    assert_int_equal(sum(t.rsdp, 20), 0);
    assert_int_equal(sum(t.rsdp, 36), 0);
    const uint8_t *rsdt = table_at(&t, get(t.rsdp + 16, 4), "RSDT"),
                  *xsdt = table_at(&t, get(t.rsdp + 24, 8), "XSDT");
    assert_int_equal(get(rsdt + 4, 4), 36 + 3 * 4);
    assert_int_equal(get(xsdt + 4, 4), 36 + 3 * 8);
    for (unsigned n = 0; n < 3; n++)
        assert_int_equal(get(rsdt + 36 + 4 * n, 4), get(xsdt + 36 + 8 * n, 8));
    const uint8_t *fadt = find_table(&t, "FACP");
    assert_non_null(fadt);
    table_at(&t, get(fadt + 40, 4), "DSDT");
    assert_int_equal(get(fadt + 140, 8), get(fadt + 40, 4));
    const uint8_t *facs = table_at(&t, get(fadt + 36, 4), "FACS");
    assert_int_equal((facs - t.data) % 64, 0);
    assert_int_equal(get(facs + 4, 4), 64);
    assert_non_null(find_table(&t, "HPET"));
    acpi_free(&t);
}

static void fadt_names_the_piix4_registers(void **state)
{
    struct acpi_tables t;
    (void)state;

    assert_int_equal(acpi_build(&t, &config), 0);
    acpi_relocate(&t, BASE);
    const uint8_t *fadt = find_table(&t, "FACP");
    assert_int_equal(get(fadt + 46, 2), 9);
    assert_int_equal(get(fadt + 48, 4), 0xb2);
    assert_int_equal(fadt[52], 0xf1);
    assert_int_equal(fadt[53], 0xf0);
    assert_int_equal(get(fadt + 56, 4), 0x600);
    assert_int_equal(get(fadt + 64, 4), 0x604);
    assert_int_equal(get(fadt + 76, 4), 0x608);
    assert_int_equal(get(fadt + 80, 4), 0x60c);
    assert_int_equal(fadt[88], 4);
    assert_int_equal(fadt[89], 2);
    assert_int_equal(fadt[91], 4);
    assert_int_equal(fadt[92], 4);
    assert_int_equal(get(fadt + 112, 4) & (1 << 4), 0); // fixed power button
    assert_int_equal(get(fadt + 112, 4) & (1 << 8), 0); // 24-bit PM timer
    assert_int_equal(get(fadt + 112, 4) >> 10 & 1, 1);  // reset register
    assert_int_equal(get(fadt + 120, 8), 0xcf9);
    assert_int_equal(fadt[128], 6);
    acpi_free(&t);
}

static void madt_overrides_irq_0_and_level_interrupts(void **state)
{
    static const uint8_t expected[] = {
        0,    8,  0,  0,  1, 0,  0,    0,                      // processor 0, local APIC 0, enabled
        1,    12, 1,  0,  0, 0,  0xc0, 0xfe, 0, 0,    0,    0, // I/O APIC 1 at FEC00000h, GSI 0
        2,    10, 0,  0,  2, 0,  0,    0,    0, 0,    2,    10, 0,  5, 5,    0,  0, 0, 0x0d,
        0,    2,  10, 0,  9, 9,  0,    0,    0, 0x0d, 0,    2,  10, 0, 10,   10, 0, 0, 0,
        0x0d, 0,  2,  10, 0, 11, 11,   0,    0, 0,    0x0d, 0,  4,  6, 0xff, 0,  0, 1,
    };
    struct acpi_tables t;
    (void)state;

    assert_int_equal(acpi_build(&t, &config), 0);
    acpi_relocate(&t, BASE);
    const uint8_t *madt = find_table(&t, "APIC");
    assert_int_equal(get(madt + 4, 4), 44 + sizeof expected);
    assert_int_equal(get(madt + 36, 4), 0xfee00000);
    assert_int_equal(get(madt + 40, 4), 1);
    assert_memory_equal(madt + 44, expected, sizeof expected);
    acpi_free(&t);
}

static void cpu_without_apic_has_no_madt(void **state)
{
    struct acpi_config no_apic = config;
    struct acpi_tables t;
    (void)state;

    no_apic.apic = false;
    assert_int_equal(acpi_build(&t, &no_apic), 0);
    acpi_relocate(&t, BASE);
    assert_null(find_table(&t, "APIC"));
    assert_non_null(find_table(&t, "FACP"));
    acpi_free(&t);
}

static uint64_t dsdt_name(const struct acpi_tables *t, const char *name)
{
    const uint8_t *p = table_at(t, get(find_table(t, "FACP") + 40, 4), "DSDT"), *end = p + get(p + 4, 4);
    for (p += 36; p + 10 <= end; p++)
        if (p[0] == 8 && !memcmp(p + 1, name, 4) && p[5] == 0x0c)
            return get(p + 6, 4);
    fail();
    return 0;
}

static void dsdt_gives_the_pci_windows(void **state)
{
    struct acpi_config c = config;
    struct acpi_tables t;
    (void)state;

    assert_int_equal(acpi_build(&t, &c), 0);
    acpi_relocate(&t, BASE);
    assert_int_equal(dsdt_name(&t, "P32B"), 0x10000000);
    assert_int_equal(dsdt_name(&t, "P32E"), 0xfebfffff);
    assert_int_equal(dsdt_name(&t, "P64B"), ((1ull << 46) - (1ull << 40)) >> 20);
    assert_int_equal(dsdt_name(&t, "P64N"), 1ull << 20);
    acpi_free(&t);
    c.phys_bits = 32;
    assert_int_equal(acpi_build(&t, &c), 0);
    acpi_relocate(&t, BASE);
    assert_int_equal(dsdt_name(&t, "P64N"), 0);
    acpi_free(&t);

    c.phys_bits = 36;
    struct pci_window none = acpi_pci_window64(&c);
    assert_true(none.limit < none.base);
    c.phys_bits = 39;
    c.high_ram = (300ull << 30) + 1; // RAM reaches into the upper half
    struct pci_window rest = acpi_pci_window64(&c);
    assert_int_equal(rest.base, 301ull << 30);
    assert_int_equal(rest.limit, (512ull << 30) - 1);
    c.high_ram = 512ull << 30;
    none = acpi_pci_window64(&c);
    assert_true(none.limit < none.base);
}

// ---- the script for firmware, followed as SeaBIOS follows it
struct firmware {
    struct bus *bus;
    struct mem_map mem;
    struct fw_cfg *fw_cfg;
    struct {
        char name[56];
        uint8_t data[16384];
        uint32_t size, address;
    } file[2];
};

static uint32_t read_file(struct firmware *f, const char *name, uint8_t *data, uint32_t capacity)
{
    uint8_t directory[4 + 64 * 16] = {0};

    bus_write(f->bus, 0x510, 2, 0x19);
    for (unsigned n = 0; n < sizeof directory; n++)
        directory[n] = (uint8_t)bus_read(f->bus, 0x511, 1);
    unsigned count = directory[3];
    for (unsigned n = 0; n < count; n++) {
        const uint8_t *entry = directory + 4 + 64 * n;
        uint32_t size = (uint32_t)entry[0] << 24 | entry[1] << 16 | entry[2] << 8 | entry[3];
        if (strcmp((const char *)entry + 8, name))
            continue;
        assert_in_range(size, 1, capacity);
        bus_write(f->bus, 0x510, 2, entry[4] << 8 | entry[5]);
        for (unsigned i = 0; i < size; i++)
            data[i] = (uint8_t)bus_read(f->bus, 0x511, 1);
        return size;
    }
    return 0;
}

static unsigned file_number(struct firmware *f, const uint8_t *name)
{
    for (unsigned n = 0; n < 2; n++)
        if (!strcmp(f->file[n].name, (const char *)name))
            return n;
    fail();
    return 0;
}

static void follow(struct firmware *f, const uint8_t *c)
{
    const uint8_t *args = c + 4 + 56;
    unsigned n;

    switch (get(c, 4)) {
    case 1:
        n = f->file[0].size ? 1 : 0;
        memcpy(f->file[n].name, c + 4, 56);
        f->file[n].size = read_file(f, f->file[n].name, f->file[n].data, sizeof f->file[n].data);
        assert_true(f->file[n].size > 0);
        assert_int_equal(args[4], n == 0 ? 1 : 2);
        f->file[n].address = n == 0 ? BASE : 0xf5a00;
        break;
    case 2: {
        unsigned to = file_number(f, args);
        uint32_t offset = get(args + 56, 4), size = args[60];
        n = file_number(f, c + 4);
        assert_true(offset + size <= f->file[n].size);
        uint64_t value = get(f->file[n].data + offset, size);
        assert_true(value < f->file[to].size);
        store(f->file[n].data + offset, value + f->file[to].address, size);
        break;
    }
    case 3: {
        uint32_t offset = get(args, 4), start = get(args + 4, 4), length = get(args + 8, 4);
        n = file_number(f, c + 4);
        assert_true(start + length <= f->file[n].size && offset < f->file[n].size);
        f->file[n].data[offset] -= sum(f->file[n].data + start, length);
        break;
    }
    default: fail();
    }
}

static void table_loader_script_gives_what_direct_boot_gives(void **state)
{
    static struct firmware f;
    static uint8_t script[16384];
    struct acpi_tables t;
    (void)state;

    f.bus = bus_create();
    assert_int_equal(mem_create(&f.mem, 16 << 20), 0);
    f.fw_cfg = fw_cfg_create(f.bus, &f.mem);
    assert_int_equal(acpi_build(&t, &config), 0);
    assert_int_equal(acpi_export(&t, f.fw_cfg), 0);
    uint32_t size = read_file(&f, "etc/table-loader", script, sizeof script);
    assert_true(size > 0 && size % 128 == 0);
    for (uint32_t at = 0; at < size; at += 128)
        follow(&f, script + at);

    acpi_relocate(&t, BASE);
    assert_int_equal(f.file[0].size, t.size);
    assert_memory_equal(f.file[0].data, t.data, t.size);
    assert_memory_equal(f.file[1].data, t.rsdp, sizeof t.rsdp);
    acpi_free(&t);
    fw_cfg_device.destroy(f.fw_cfg);
    mem_destroy(&f.mem);
    bus_destroy(f.bus);
}

// ---- without ACPI
static void mp_table_routes_isa_and_pci(void **state)
{
    struct mem_map mem;
    uint8_t fp[16], table[2048];
    unsigned counts[5] = {0}, timer_pin = 99, slot3_pin = 99;
    (void)state;

    assert_int_equal(mem_create(&mem, 16 << 20), 0);
    assert_true(mptable_write(&mem, &config, BOOT_MPFP, BOOT_MPTABLE));
    assert_true(mem_read(&mem, BOOT_MPFP, fp, sizeof fp));
    assert_memory_equal(fp, "_MP_", 4);
    assert_int_equal(sum(fp, 16), 0);
    assert_int_equal(get(fp + 4, 4), BOOT_MPTABLE);
    assert_true(mem_read(&mem, BOOT_MPTABLE, table, sizeof table));
    assert_memory_equal(table, "PCMP", 4);
    unsigned length = get(table + 4, 2), entries = get(table + 34, 2);
    assert_in_range(length, 44, sizeof table);
    assert_int_equal(sum(table, length), 0);
    unsigned at = 44;
    for (; entries; entries--) {
        const uint8_t *p = table + at;
        assert_in_range(p[0], 0, 4);
        counts[p[0]]++;
        if (p[0] == 3 && p[4] == 1 && p[5] == 0)
            timer_pin = p[7];
        if (p[0] == 3 && p[4] == 0 && p[5] == 3 << 2) {
            slot3_pin = p[7];
            assert_int_equal(get(p + 2, 2), 0x0d);
        }
        at += p[0] == 0 ? 20 : 8;
    }
    assert_int_equal(at, length);
    assert_int_equal(counts[0], 1);
    assert_int_equal(counts[1], 2);
    assert_int_equal(counts[2], 1);
    assert_int_equal(counts[4], 2);
    assert_int_equal(timer_pin, 2);
    assert_int_equal(slot3_pin, PIRQ_IRQ(2)); // slot 3 pin A is PIRQC
    mem_destroy(&mem);
}

static void pir_table_names_the_piix3_registers(void **state)
{
    struct mem_map mem;
    uint8_t table[32 + 31 * 16];
    (void)state;

    assert_int_equal(mem_create(&mem, 16 << 20), 0);
    assert_true(pirtable_write(&mem, BOOT_PIR));
    assert_true(mem_read(&mem, BOOT_PIR, table, sizeof table));
    assert_memory_equal(table, "$PIR", 4);
    assert_int_equal(get(table + 6, 2), sizeof table);
    assert_int_equal(sum(table, sizeof table), 0);
    assert_int_equal(table[9], 1 << 3);
    const uint8_t *slot3 = table + 32 + 2 * 16;
    assert_int_equal(slot3[1], 3 << 3);
    assert_int_equal(slot3[2], 0x62);
    assert_int_equal(slot3[5], 0x63);
    assert_int_equal(slot3[8], 0x60);
    assert_int_equal(slot3[11], 0x61);
    mem_destroy(&mem);
}

// ---- PCI as firmware leaves it
static uint64_t bar_read(void *opaque, uint64_t offset, unsigned size)
{
    (void)opaque, (void)size;
    return 0x1234 + offset;
}

static void bar_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    (void)opaque, (void)offset, (void)size, (void)value;
}

static uint32_t config_read(struct bus *b, unsigned devfn, unsigned offset)
{
    bus_write(b, 0xcf8, 4, 0x80000000u | devfn << 8 | offset);
    return bus_read(b, 0xcfc, 4);
}

static void pci_setup_places_bars_and_routes_interrupts(void **state)
{
    static const struct mmio_ops mmio = {bar_read, bar_write};
    static const struct pci_bar bars[6] = {
        {.size = 0x1000, .mmio = &mmio},
        {0},
        {.size = 0x100000, .bits64 = true, .prefetch = true, .mmio = &mmio},
    };
    static const struct pci_device_info info = {
        .vendor = 0x1af4, .device = 0x1042, .interrupt_pin = 1, .name = "x"};
    struct bus *bus = bus_create();
    struct irq_line none[24] = {0};
    struct mem_map mem;
    (void)state;

    assert_int_equal(mem_create(&mem, 16 << 20), 0);
    struct pci_bus *pci = pci_bus_create(bus, &mem, none, none);
    struct i440fx *host = i440fx_create(pci, &mem);
    struct piix3 *isa = piix3_create(pci, bus, (struct machine_control){0});
    assert_non_null(pci_add(pci, 4 << 3, &info, bars, NULL));
    assert_int_equal(mem_find(&mem, 0xf0000).kind, MEM_NONE); // PAM at reset
    pci_setup(bus,
              &(struct acpi_config){.cpus = 1, .low_ram = 16 << 20, .high_ram = 1ull << 32, .phys_bits = 36});
    assert_int_equal(config_read(bus, 4 << 3, 0x10), 0xe0000000);
    assert_int_equal(config_read(bus, 4 << 3, 0x18), 0xe010000c);
    assert_int_equal(config_read(bus, 4 << 3, 0x1c), 0);
    assert_int_equal(config_read(bus, 4 << 3, 0x04) & 7, 7);
    assert_int_equal(config_read(bus, 4 << 3, 0x3c) & 0xff, PIRQ_IRQ(3));
    assert_int_equal(mem_mmio_read(&mem, 0xe0100010, 4), 0x1244);
    assert_int_equal(config_read(bus, 1 << 3, 0x60), 0x0b0a0b0a);
    assert_int_equal(mem_find(&mem, 0xf0000).kind, MEM_RAM);
    assert_int_equal(mem_find(&mem, 0xc0000).kind, MEM_RAM);
    piix3_device.destroy(isa);
    i440fx_device.destroy(host);
    pci_bus_destroy(pci);
    mem_destroy(&mem);
    bus_destroy(bus);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rsdp_leads_to_every_table_with_right_checksums),
        cmocka_unit_test(fadt_names_the_piix4_registers),
        cmocka_unit_test(madt_overrides_irq_0_and_level_interrupts),
        cmocka_unit_test(cpu_without_apic_has_no_madt),
        cmocka_unit_test(dsdt_gives_the_pci_windows),
        cmocka_unit_test(table_loader_script_gives_what_direct_boot_gives),
        cmocka_unit_test(mp_table_routes_isa_and_pci),
        cmocka_unit_test(pir_table_names_the_piix3_registers),
        cmocka_unit_test(pci_setup_places_bars_and_routes_interrupts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
