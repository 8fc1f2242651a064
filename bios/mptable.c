// Tables for kernels that run without ACPI: MultiProcessor Specification 1.4 (I/O APIC) and the PCI interrupt
// routing table (8259 only; Microsoft's "PCI IRQ Routing Table Specification" 1.0).
#include "bios/acpi.h"
#include "mmu/mem.h"

#include <string.h>

#define SLOTS              32u // of PCI bus 0
#define PIRQ_OF(slot, pin) (((slot) + (pin) + 3) & 3)

#define MP_PROCESSOR      0u
#define MP_BUS            1u
#define MP_IOAPIC         2u
#define MP_IO_INT         3u
#define MP_LOCAL_INT      4u
#define INT_INT           0u
#define INT_NMI           1u
#define INT_EXTINT        3u
#define LEVEL_ACTIVE_HIGH 0x0du
#define BUS_PCI           0u
#define BUS_ISA           1u
#define MP_MAX_CPUS       64u
#define MP_MAX_SIZE       (44 + MP_MAX_CPUS * 20 + 2 * 8 + 8 + 16 * 8 + SLOTS * 4 * 8 + 2 * 8)

struct table {
    uint8_t data[MP_MAX_SIZE];
    size_t size;
    unsigned entries;
};

static void put(uint8_t *p, uint32_t value, unsigned size)
{
    for (unsigned n = 0; n < size; n++)
        p[n] = (uint8_t)(value >> 8 * n);
}

static uint8_t checksum(const uint8_t *p, size_t n)
{
    uint8_t sum = 0;

    while (n--)
        sum += *p++;
    return (uint8_t)-sum;
}

static uint8_t *add(struct table *t, uint8_t type, size_t size)
{
    uint8_t *p = t->data + t->size;

    p[0] = type;
    t->size += size;
    t->entries++;
    return p;
}

static void add_interrupt(struct table *t, uint8_t entry, uint8_t type, uint16_t flags, uint8_t bus,
                          uint8_t irq, uint8_t apic, uint8_t pin)
{
    uint8_t *p = add(t, entry, 8);

    p[1] = type;
    put(p + 2, flags, 2);
    p[4] = bus;
    p[5] = irq;
    p[6] = apic;
    p[7] = pin;
}

bool mptable_write(struct mem_map *mem, const struct acpi_config *config, uint64_t fp_gpa, uint64_t table_gpa)
{
    struct table t = {.size = 44};
    uint8_t fp[16] = "_MP_", ioapic = (uint8_t)config->cpus, *p;

    if (config->cpus > MP_MAX_CPUS)
        return false;
    for (unsigned n = 0; n < config->cpus; n++) {
        p = add(&t, MP_PROCESSOR, 20);
        p[1] = (uint8_t)n;
        p[2] = 0x14;           // version of an integrated local APIC
        p[3] = n == 0 ? 3 : 1; // enabled, bootstrap processor
        put(p + 4, 0x600, 4);
        put(p + 8, 0x201, 4); // FPU, APIC
    }
    p = add(&t, MP_BUS, 8);
    p[1] = BUS_PCI;
    memcpy(p + 2, "PCI   ", 6);
    p = add(&t, MP_BUS, 8);
    p[1] = BUS_ISA;
    memcpy(p + 2, "ISA   ", 6);
    p = add(&t, MP_IOAPIC, 8);
    p[1] = ioapic;
    p[2] = 0x11;
    p[3] = 1;
    put(p + 4, 0xfec00000, 4);

    for (unsigned slot = 1; slot < SLOTS; slot++)
        for (unsigned pin = 0; pin < 4; pin++)
            add_interrupt(&t, MP_IO_INT, INT_INT, LEVEL_ACTIVE_HIGH, BUS_PCI, (uint8_t)(slot << 2 | pin),
                          ioapic, PIRQ_IRQ(PIRQ_OF(slot, pin)));
    for (unsigned irq = 0; irq < 16; irq++)
        if (irq != 2 && irq != PIRQ_IRQ(0) && irq != PIRQ_IRQ(1))
            add_interrupt(&t, MP_IO_INT, INT_INT, 0, BUS_ISA, (uint8_t)irq, ioapic,
                          irq == 0 ? 2 : (uint8_t)irq);
    add_interrupt(&t, MP_LOCAL_INT, INT_EXTINT, 0, BUS_ISA, 0, 0, 0);
    add_interrupt(&t, MP_LOCAL_INT, INT_NMI, 0, BUS_ISA, 0, 0xff, 1);

    memcpy(t.data, "PCMP", 4);
    put(t.data + 4, (uint32_t)t.size, 2);
    t.data[6] = 4; // 1.4
    memcpy(t.data + 8, "GNOMON  PC          ", 20);
    put(t.data + 34, t.entries, 2);
    put(t.data + 36, 0xfee00000, 4);
    t.data[7] = checksum(t.data, t.size);

    put(fp + 4, (uint32_t)table_gpa, 4);
    fp[8] = 1; // 16-byte units
    fp[9] = 4;
    fp[10] = checksum(fp, sizeof fp);
    return mem_write(mem, table_gpa, t.data, t.size) && mem_write(mem, fp_gpa, fp, sizeof fp);
}

bool pirtable_write(struct mem_map *mem, uint64_t gpa)
{
    uint8_t table[32 + (SLOTS - 1) * 16] = "$PIR", *p = table + 32;

    put(table + 4, 0x0100, 2);
    put(table + 6, sizeof table, 2);
    table[9] = 1 << 3;              // router: 00:01.0
    put(table + 12, 0x122e8086, 4); // compatible with the PIIX
    for (unsigned slot = 1; slot < SLOTS; slot++, p += 16) {
        p[1] = (uint8_t)(slot << 3);
        for (unsigned pin = 0; pin < 4; pin++) {
            p[2 + pin * 3] = (uint8_t)(0x60 + PIRQ_OF(slot, pin)); // the router's register is the link
            put(p + 3 + pin * 3, 1 << 5 | 1 << 10 | 1 << 11, 2);
        }
    }
    table[31] = checksum(table, sizeof table);
    return mem_write(mem, gpa, table, sizeof table);
}
