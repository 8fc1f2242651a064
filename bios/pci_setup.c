// What firmware does to PCI before it starts an operating system: base addresses, interrupt routing and
// lines, and the firmware area turned into RAM. Done through the same ports a firmware would use, for direct
// kernel boot.
#include "bios/acpi.h"
#include "devices/device.h"

#define CONFIG_ADDRESS 0xcf8u
#define CONFIG_DATA    0xcfcu
#define ELCR2          0x4d1u

#define PCI_COMMAND        0x04u
#define PCI_COMMAND_DECODE 0x07u // I/O, memory, master
#define PCI_HEADER_TYPE    0x0eu
#define PCI_BAR0           0x10u
#define PCI_INTERRUPT_LINE 0x3cu
#define PCI_INTERRUPT_PIN  0x3du
#define HOST_BRIDGE        0u
#define ISA_BRIDGE         (1u << 3)
#define POWER_MANAGEMENT   (1u << 3 | 3)
#define PAM0               0x59u
#define PIRQRCA            0x60u
#define SCI_IRQ            9u

#define IO_BASE     0xc000u
#define IO_LIMIT    0x10000u
#define MEMORY_BASE 0xe0000000ull // BARs start here, well above the end of RAM for kernels that round it up

struct allocator {
    uint64_t io, memory, memory_limit; // next free addresses
};

static uint32_t config_read(struct bus *b, unsigned devfn, unsigned offset, unsigned size)
{
    bus_write(b, CONFIG_ADDRESS, 4, 0x80000000u | devfn << 8 | (offset & 0xfc));
    return bus_read(b, (uint16_t)(CONFIG_DATA + (offset & 3)), size);
}

static void config_write(struct bus *b, unsigned devfn, unsigned offset, unsigned size, uint32_t value)
{
    bus_write(b, CONFIG_ADDRESS, 4, 0x80000000u | devfn << 8 | (offset & 0xfc));
    bus_write(b, (uint16_t)(CONFIG_DATA + (offset & 3)), size, value);
}

// Sizes and places one BAR (PCI 3.0, 6.2.5.1); returns how many registers it has.
static unsigned place_bar(struct bus *b, unsigned devfn, unsigned offset, struct allocator *a)
{
    config_write(b, devfn, offset, 4, 0xffffffff);
    uint32_t low = config_read(b, devfn, offset, 4);
    if (!low) // none
        return 1;
    bool io = low & 1, bits64 = !io && (low & 6) == 4;
    uint64_t mask = io ? low & ~3u : low & ~0xfu;
    if (bits64) {
        config_write(b, devfn, offset + 4, 4, 0xffffffff);
        mask |= (uint64_t)config_read(b, devfn, offset + 4, 4) << 32;
    } else {
        mask |= 0xffffffff00000000ull;
    }
    uint64_t size = mask & -mask, *next = io ? &a->io : &a->memory;
    uint64_t base = (*next + size - 1) & ~(size - 1), limit = io ? IO_LIMIT : a->memory_limit;
    if (base > limit || size > limit - base)
        base = 0; // no room: left unassigned
    else
        *next = base + size;
    config_write(b, devfn, offset, 4, (uint32_t)base);
    if (bits64)
        config_write(b, devfn, offset + 4, 4, 0);
    return bits64 ? 2 : 1;
}

static void set_up_function(struct bus *b, unsigned devfn, struct allocator *a)
{
    for (unsigned n = 0; n < 6;)
        n += place_bar(b, devfn, PCI_BAR0 + n * 4, a);
    config_write(b, devfn, PCI_COMMAND, 2, PCI_COMMAND_DECODE);

    unsigned pin = config_read(b, devfn, PCI_INTERRUPT_PIN, 1);
    if (pin >= 1 && pin <= 4) {
        unsigned pirq = ((devfn >> 3) - 1 + pin - 1) & 3;
        config_write(b, devfn, PCI_INTERRUPT_LINE, 1, devfn == POWER_MANAGEMENT ? SCI_IRQ : PIRQ_IRQ(pirq));
    }
}

void pci_setup(struct bus *ports, const struct acpi_config *config)
{
    struct pci_window window = acpi_pci_window32(config);
    struct allocator a = {IO_BASE, window.base > MEMORY_BASE ? window.base : MEMORY_BASE, window.limit + 1};

    for (unsigned pirq = 0; pirq < 4; pirq++)
        config_write(ports, ISA_BRIDGE, PIRQRCA + pirq, 1, PIRQ_IRQ(pirq));
    bus_write(ports, ELCR2, 1, bus_read(ports, ELCR2, 1) | 1 << (PIRQ_IRQ(0) - 8) | 1 << (PIRQ_IRQ(1) - 8));
    config_write(ports, HOST_BRIDGE, PAM0, 1, 0x30);
    for (unsigned n = 1; n < 7; n++)
        config_write(ports, HOST_BRIDGE, PAM0 + n, 1, 0x33);

    for (unsigned devfn = 0; devfn < 256; devfn++) {
        if ((devfn & 7) && !(config_read(ports, devfn & ~7u, PCI_HEADER_TYPE, 1) & 0x80))
            continue;
        if ((config_read(ports, devfn, 0, 4) & 0xffff) != 0xffff)
            set_up_function(ports, devfn, &a);
    }
}
