// PCI bus 0 behind the 82441FX: configuration mechanism 1 (PCI 3.0, 3.2.2.3.2), base address registers, INTx.
//
// INTx: pin p (A: 0) of slot s drives PIRQ (s - 1 + p) & 3, the classic i440FX board; PIIX3 routes each PIRQ
// to one ISA interrupt, which is level-triggered and wired-OR, and reaches the 8259 and the I/O APIC input of
// the same number.
//
// A memory BAR decodes only in the PCI holes of the address map (above low RAM up to the I/O APIC, and above
// high RAM): elsewhere the 82441FX claims the cycle first, so a guest that moves a BAR over its RAM does not
// lose the RAM.
#include "devices/pci_private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CONFIG_ADDRESS 0xcf8u // 32-bit accesses only
#define RESET_CONTROL  0xcf9u // byte accesses only
#define CONFIG_DATA    0xcfcu
#define CONFIG_ENABLE  0x80000000u
#define PCI_HOLE_END   0xfec00000ull
#define PCI_TOP        (1ull << 52) // no address is wider (SDM 3A 4.1.4)

struct pci_bus {
    struct bus *ports;
    struct mem_map *mem;
    struct irq_line gsi[24], isa[16];
    uint32_t config_address;
    int pirq_route[4];               // ISA interrupt or -1
    uint32_t isa_levels;             // lines driven high now
    struct pci_device *devices[256]; // by devfn
    struct pci_device *list[PCI_MAX_DEVICES];
    unsigned count;
    struct pci_cf9 cf9;
    void (*msi)(void *opaque, uint64_t address, uint32_t data);
    void *msi_opaque;
};

// ---- INTx
static void update_lines(struct pci_bus *b)
{
    uint32_t levels = 0;

    for (unsigned i = 0; i < b->count; i++) {
        struct pci_device *d = b->list[i];
        unsigned pin = d->config[PCI_INTERRUPT_PIN];

        if (!d->irq_level || !pin || (pci_get16(d->config + PCI_COMMAND) & PCI_COMMAND_INTX_DISABLE) ||
            pci_msix_enabled(d)) // MSI-X replaces INTx (6.8.3.3)
            continue;
        int irq = b->pirq_route[((d->devfn >> 3) - 1 + pin - 1) & 3];
        if (irq >= 0)
            levels |= 1u << irq;
    }
    uint32_t changed = levels ^ b->isa_levels;
    b->isa_levels = levels;
    for (unsigned irq = 0; changed; irq++, changed >>= 1) {
        if (!(changed & 1))
            continue;
        irq_set(&b->isa[irq], levels >> irq & 1);
        irq_set(&b->gsi[irq], levels >> irq & 1);
    }
}

void pci_set_irq(struct pci_device *d, int level)
{
    d->irq_level = !!level;
    if (level)
        d->config[PCI_STATUS] |= PCI_STATUS_INTERRUPT;
    else
        d->config[PCI_STATUS] &= ~PCI_STATUS_INTERRUPT;
    update_lines(d->bus);
}

void pci_route_pirq(struct pci_bus *b, unsigned pirq, int irq)
{
    b->pirq_route[pirq & 3] = irq >= 0 && irq < 16 ? irq : -1;
    update_lines(b);
}

// ---- base address registers
static uint64_t bar_address(const struct pci_device *d, unsigned n)
{
    const struct pci_bar *bar = &d->bar[n];
    unsigned command = pci_get16(d->config + PCI_COMMAND);
    uint64_t base = pci_get32(d->config + PCI_BAR(n));

    if (bar->io) {
        base &= ~3ull;
        if (!(command & PCI_COMMAND_IO) || base == 0 || base + bar->size > 0x10000)
            return PCI_UNMAPPED;
        return base;
    }
    base &= ~0xfull;
    if (bar->bits64)
        base |= (uint64_t)pci_get32(d->config + PCI_BAR(n + 1)) << 32;
    if (!(command & PCI_COMMAND_MEMORY) || base >= PCI_TOP || bar->size > PCI_TOP - base)
        return PCI_UNMAPPED;

    const struct mem_map *mem = d->bus->mem;
    uint64_t high_end = (1ull << 32) + (mem->ram_size - mem->low_size);
    bool low_hole = base >= mem->low_size && base >= 0x100000 && base + bar->size <= PCI_HOLE_END;
    return low_hole || base >= high_end ? base : PCI_UNMAPPED;
}

static void update_bars(struct pci_device *d)
{
    for (unsigned n = 0; n < 6; n++) {
        const struct pci_bar *bar = &d->bar[n];
        uint64_t address = bar->size ? bar_address(d, n) : PCI_UNMAPPED;

        if (address == d->mapped[n])
            continue;
        if (bar->io) {
            if (d->mapped[n] != PCI_UNMAPPED)
                bus_release(d->bus->ports, d->mapped[n], bar->size);
            d->mapped[n] = PCI_UNMAPPED;
            if (address != PCI_UNMAPPED &&
                bus_claim(d->bus->ports, address, bar->size, bar->port, d->bar_opaque[n]) == 0)
                d->mapped[n] = address; // else: lies over another device's ports, which keep them
            continue;
        }
        d->mapped[n] = address;
        mem_move(d->bus->mem, d->region[n], address);
    }
}

// ---- configuration space
static void config_changed(struct pci_device *d, unsigned offset, unsigned size)
{
    update_bars(d);
    update_lines(d->bus);
    pci_msix_flush(d);
    if (d->config_written)
        d->config_written(d->opaque, offset, size);
}

static void config_write(struct pci_device *d, unsigned offset, unsigned size, uint32_t value)
{
    for (unsigned i = 0; i < size; i++, value >>= 8) {
        uint8_t byte = value, *p = &d->config[offset + i], writable = d->writable[offset + i];

        *p = (*p & ~writable) | (byte & writable);
        *p &= ~(byte & d->clear[offset + i]);
    }
    config_changed(d, offset, size);
}

static struct pci_device *addressed(struct pci_bus *b)
{
    if (!(b->config_address & CONFIG_ENABLE) || (b->config_address >> 16 & 0xff) != 0)
        return NULL;
    return b->devices[b->config_address >> 8 & 0xff];
}

static uint32_t ports_read(void *opaque, uint16_t port, unsigned size)
{
    struct pci_bus *b = opaque;

    if (port == CONFIG_ADDRESS && size == 4)
        return b->config_address;
    if (port == RESET_CONTROL && size == 1 && b->cf9.read)
        return b->cf9.read(b->cf9.opaque);

    unsigned lane = port - CONFIG_DATA;
    struct pci_device *d = addressed(b);
    if (port < CONFIG_DATA || lane + size > 4 || !d)
        return 0xffffffffu >> (32 - 8 * size);
    unsigned offset = (b->config_address & 0xfc) + lane;
    if (d->config_read)
        d->config_read(d->opaque, offset, size);
    uint32_t value = 0;
    for (unsigned i = 0; i < size; i++)
        value |= (uint32_t)d->config[offset + i] << 8 * i;
    return value;
}

static void ports_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    struct pci_bus *b = opaque;

    if (port == CONFIG_ADDRESS && size == 4) {
        b->config_address = value & 0x80fffffcu;
    } else if (port == RESET_CONTROL && size == 1) {
        if (b->cf9.write)
            b->cf9.write(b->cf9.opaque, value);
    } else if (port >= CONFIG_DATA && port - CONFIG_DATA + size <= 4) {
        struct pci_device *d = addressed(b);
        if (d)
            config_write(d, (b->config_address & 0xfc) + (port - CONFIG_DATA), size, value);
    }
}

// ---- what functions use
static bool bar_valid(const struct pci_bar *bar, unsigned n)
{
    if (!bar->size)
        return true;
    if (bar->size & (bar->size - 1))
        return false;
    if (bar->io)
        return bar->size >= 4 && bar->size <= 256 && bar->port;
    return bar->size >= 4096 && bar->mmio && (bar->bits64 ? n < 5 : bar->size <= 1u << 31);
}

void pci_set_bar(struct pci_device *d, unsigned n, const struct pci_bar *bar, void *opaque)
{
    uint64_t mask = ~(bar->size - 1);
    uint32_t type = bar->io ? 1 : (bar->bits64 ? 4 : 0) | (bar->prefetch ? 8 : 0);

    d->bar[n] = *bar;
    d->bar_opaque[n] = opaque;
    pci_put(d->config + PCI_BAR(n), type, 4);
    pci_config_writable(d, PCI_BAR(n), bar->io ? mask & 0xfffffffcu : mask & 0xfffffff0u, 4);
    if (bar->bits64)
        pci_config_writable(d, PCI_BAR(n + 1), mask >> 32, 4);
    // Regions only move once the guest runs: it may be firmware that places the BARs, in a process of its own.
    if (!bar->io)
        d->region[n] = mem_add_mmio(d->bus->mem, PCI_UNMAPPED, bar->size, bar->mmio, opaque, d->name);
}

struct pci_device *pci_add(struct pci_bus *b, unsigned devfn, const struct pci_device_info *info,
                           const struct pci_bar bars[6], void *opaque)
{
    if (devfn > 255 || b->devices[devfn] || b->count == PCI_MAX_DEVICES)
        return NULL;
    for (unsigned n = 0; bars && n < 6; n++)
        if (!bar_valid(&bars[n], n))
            return NULL;
    struct pci_device *d = calloc(1, sizeof *d);
    if (!d)
        return NULL;
    d->bus = b;
    d->opaque = opaque;
    d->name = info->name;
    d->devfn = devfn;
    d->free_config = 0x40;
    for (unsigned n = 0; n < 6; n++) {
        d->mapped[n] = PCI_UNMAPPED;
        d->region[n] = -1;
    }

    pci_put(d->config + PCI_VENDOR_ID, info->vendor, 2);
    pci_put(d->config + PCI_DEVICE_ID, info->device, 2);
    d->config[PCI_REVISION] = info->revision;
    d->config[PCI_PROG_IF] = info->prog_if;
    d->config[PCI_SUBCLASS] = info->subclass;
    d->config[PCI_CLASS] = info->class_code;
    d->config[PCI_HEADER_TYPE] = info->header_type;
    pci_put(d->config + PCI_SUBSYSTEM_VENDOR_ID, info->subsystem_vendor, 2);
    pci_put(d->config + PCI_SUBSYSTEM_ID, info->subsystem, 2);
    d->config[PCI_INTERRUPT_PIN] = info->interrupt_pin <= 4 ? info->interrupt_pin : 0;
    pci_config_writable(d, PCI_COMMAND, PCI_COMMAND_WRITABLE, 2);
    pci_config_writable(d, PCI_CACHE_LINE, 0xff, 1);
    pci_config_writable(d, PCI_LATENCY, 0xff, 1);
    if (info->interrupt_pin)
        pci_config_writable(d, PCI_INTERRUPT_LINE, 0xff, 1);
    pci_put(d->clear + PCI_STATUS, PCI_STATUS_W1C, 2);
    for (unsigned n = 0; bars && n < 6; n++)
        if (bars[n].size)
            pci_set_bar(d, n, &bars[n], opaque);

    b->devices[devfn] = d;
    b->list[b->count++] = d;
    return d;
}

uint8_t *pci_config(struct pci_device *d)
{
    return d->config;
}

void pci_config_writable(struct pci_device *d, unsigned offset, uint32_t mask, unsigned size)
{
    if (offset < sizeof d->writable && size <= 4 && size <= sizeof d->writable - offset)
        pci_put(d->writable + offset, mask, size);
}

// Capabilities are chained in the order they are added; returns 0 when the space is used up.
unsigned pci_add_capability(struct pci_device *d, uint8_t id, unsigned size)
{
    unsigned offset = d->free_config;

    if (size < 2 || size > 256 - offset)
        return 0;
    d->free_config = (offset + size + 3) & ~3u;
    unsigned link = PCI_CAPABILITIES;
    while (d->config[link])
        link = d->config[link] + 1;
    d->config[link] = offset;
    d->config[offset] = id;
    d->config[offset + 1] = 0;
    d->config[PCI_STATUS] |= PCI_STATUS_CAPABILITIES;
    return offset;
}

void pci_on_config_write(struct pci_device *d, void (*fn)(void *opaque, unsigned offset, unsigned size))
{
    d->config_written = fn;
}

void pci_on_config_read(struct pci_device *d, void (*fn)(void *opaque, unsigned offset, unsigned size))
{
    d->config_read = fn;
}

void pci_set_msi(struct pci_bus *b, void (*send)(void *opaque, uint64_t address, uint32_t data), void *opaque)
{
    b->msi = send;
    b->msi_opaque = opaque;
}

void pci_msi(struct pci_device *d, uint64_t address, uint32_t data)
{
    if (d->bus->msi)
        d->bus->msi(d->bus->msi_opaque, address, data);
}

void pci_set_cf9(struct pci_bus *b, struct pci_cf9 handlers)
{
    b->cf9 = handlers;
}

// ---- the bus as a device. The header (offsets below 40h) and MSI-X belong to the bus; registers from 40h up
// are reset by the chips that own them.
static void pci_bus_reset(void *opaque)
{
    struct pci_bus *b = opaque;

    b->config_address = 0;
    for (unsigned i = 0; i < b->count; i++) {
        struct pci_device *d = b->list[i];

        for (unsigned offset = 0; offset < 0x40; offset++)
            d->config[offset] &= ~(d->writable[offset] | d->clear[offset]);
        d->config[PCI_STATUS] &= ~PCI_STATUS_INTERRUPT;
        d->irq_level = 0;
        pci_msix_reset(d);
        update_bars(d);
    }
    update_lines(b);
}

static void device_state(struct pci_device *d, struct stream *s)
{
    uint8_t stored[256];
    uint8_t devfn = d->devfn, level = d->irq_level;

    memcpy(stored, d->config, sizeof stored);
    stream_u8(s, &devfn);
    if (s->loading && devfn != d->devfn && !s->error)
        s->error = -EPROTO; // another set of functions
    stream_bytes(s, stored, sizeof stored);
    stream_u8(s, &level);
    if (s->loading && !s->error) {
        // Only what a guest could have written is taken from outside.
        for (unsigned i = 0; i < 256; i++) {
            uint8_t mask = d->writable[i] | d->clear[i];
            d->config[i] = (d->config[i] & ~mask) | (stored[i] & mask);
        }
        d->irq_level = !!level;
        d->config[PCI_STATUS] &= ~PCI_STATUS_INTERRUPT;
        if (level)
            d->config[PCI_STATUS] |= PCI_STATUS_INTERRUPT;
    }
    pci_msix_state(d, s);
}

static void pci_bus_state(void *opaque, struct stream *s)
{
    struct pci_bus *b = opaque;
    uint32_t count = b->count;

    stream_section(s, "pci", 1);
    stream_u32(s, &b->config_address);
    stream_u32(s, &count);
    if (s->loading) {
        b->config_address &= 0x80fffffcu;
        if (count != b->count && !s->error)
            s->error = -EPROTO;
    }
    for (unsigned i = 0; i < b->count; i++)
        device_state(b->list[i], s);
    if (s->loading && !s->error)
        for (unsigned i = 0; i < b->count; i++)
            config_changed(b->list[i], 0, 256);
}

void pci_bus_destroy(struct pci_bus *b)
{
    if (!b)
        return;
    for (unsigned i = 0; i < b->count; i++)
        free(b->list[i]);
    free(b);
}

static void pci_bus_device_destroy(void *opaque)
{
    pci_bus_destroy(opaque);
}

static const struct port_ops config_ports = {ports_read, ports_write, 4};
const struct device_ops pci_bus_device = {"pci", pci_bus_reset, pci_bus_state, pci_bus_device_destroy};

struct pci_bus *pci_bus_create(struct bus *ports, struct mem_map *mem, struct irq_line gsi[24],
                               struct irq_line isa[16])
{
    struct pci_bus *b = calloc(1, sizeof *b);

    if (!b)
        return NULL;
    b->ports = ports;
    b->mem = mem;
    if (gsi)
        memcpy(b->gsi, gsi, sizeof b->gsi);
    if (isa)
        memcpy(b->isa, isa, sizeof b->isa);
    for (unsigned n = 0; n < 4; n++)
        b->pirq_route[n] = -1;
    if (bus_claim(ports, CONFIG_ADDRESS, 8, &config_ports, b)) {
        free(b);
        return NULL;
    }
    return b;
}
