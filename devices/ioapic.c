// 82093AA I/O APIC (Intel 290566-001): 24 redirection entries behind an index/window pair at FEC00000h.
//
// Runs beside the vCPU with the guest's vector registers live: general registers only after creation.
//
// Input levels are the logical ones (1: asserted): every board line is wired so that the polarity bit agrees
// with it, and the bit is stored but does not invert.
#include "devices/chips.h"
#include "mmu/mem.h"

#include <stdlib.h>

#define IOAPIC_BASE    0xfec00000ull
#define IOAPIC_SIZE    0x1000ull
#define IOAPIC_INPUTS  24u
#define IOAPIC_VERSION 0x11u // 82093AA; no EOI register, which came with version 20h

// Direct registers (290566-001, 3.1) and indexed registers (3.2).
#define IOREGSEL  0x00u
#define IOWIN     0x10u
#define IOAPICID  0x00u
#define IOAPICVER 0x01u
#define IOAPICARB 0x02u
#define IOREDTBL  0x10u

#define RTE_VECTOR     0xffull
#define RTE_DELMOD(e)  (((e) >> 8) & 7)
#define RTE_DESTMOD    (1ull << 11) // 1: logical
#define RTE_DELIVS     (1ull << 12) // read-only; delivery is immediate here, so always 0
#define RTE_REMOTE_IRR (1ull << 14) // read-only
#define RTE_LEVEL      (1ull << 15)
#define RTE_MASK       (1ull << 16)
#define RTE_DEST(e)    ((uint32_t)((e) >> 56))
#define RTE_WRITABLE   0xff0000000001afffull

struct ioapic {
    struct apic_bus apics;
    uint64_t redirection[IOAPIC_INPUTS];
    uint32_t lines; // input levels
    uint8_t ioregsel;
    uint8_t id; // bits 27:24 of IOAPICID
};

static void ioapic_reset(void *opaque)
{
    struct ioapic *io = opaque;

    for (unsigned n = 0; n < IOAPIC_INPUTS; n++)
        io->redirection[n] = RTE_MASK;
    io->lines = 0;
    io->ioregsel = 0;
    io->id = 0;
}

// Only fixed and lowest priority can be level-triggered; the other modes are edges whatever bit 15 says.
static bool level_triggered(uint64_t entry)
{
    return (entry & RTE_LEVEL) && RTE_DELMOD(entry) <= 1;
}

static void send(struct ioapic *io, unsigned n)
{
    uint64_t entry = io->redirection[n];
    struct apic_message m = {
        .vector = entry & RTE_VECTOR,
        .delivery_mode = RTE_DELMOD(entry),
        .dest_logical = !!(entry & RTE_DESTMOD),
        .level_triggered = level_triggered(entry),
        .destination = RTE_DEST(entry),
    };

    if (level_triggered(entry))
        io->redirection[n] |= RTE_REMOTE_IRR;
    if (io->apics.deliver)
        io->apics.deliver(io->apics.opaque, &m);
}

// Level-triggered input: sends when asserted, unmasked, and the last message has been acknowledged.
static void service_level(struct ioapic *io, unsigned n)
{
    uint64_t entry = io->redirection[n];

    if ((io->lines >> n & 1) && level_triggered(entry) && !(entry & (RTE_MASK | RTE_REMOTE_IRR)))
        send(io, n);
}

void ioapic_set_irq(struct ioapic *io, int gsi, int level)
{
    if (gsi < 0 || gsi >= (int)IOAPIC_INPUTS)
        return;
    unsigned n = gsi;
    bool was = io->lines >> n & 1;

    if (!level) {
        io->lines &= ~(1u << n);
        return;
    }
    io->lines |= 1u << n;
    if (level_triggered(io->redirection[n]))
        service_level(io, n);
    else if (!was && !(io->redirection[n] & RTE_MASK)) // edges on a masked pin are ignored (3.2.4, bit 16)
        send(io, n);
}

void ioapic_eoi(struct ioapic *io, uint8_t vector)
{
    for (unsigned n = 0; n < IOAPIC_INPUTS; n++) {
        uint64_t entry = io->redirection[n];

        if ((entry & RTE_REMOTE_IRR) && (entry & RTE_VECTOR) == vector) {
            io->redirection[n] = entry & ~RTE_REMOTE_IRR;
            service_level(io, n);
        }
    }
}

static uint32_t window_read(struct ioapic *io)
{
    unsigned index = io->ioregsel;

    if (index == IOAPICID || index == IOAPICARB)
        return (uint32_t)io->id << 24;
    if (index == IOAPICVER)
        return IOAPIC_VERSION | (IOAPIC_INPUTS - 1) << 16;
    if (index >= IOREDTBL && index < IOREDTBL + 2 * IOAPIC_INPUTS) {
        uint64_t entry = io->redirection[(index - IOREDTBL) / 2];
        return index & 1 ? entry >> 32 : (uint32_t)entry;
    }
    return 0;
}

static void window_write(struct ioapic *io, uint32_t value)
{
    unsigned index = io->ioregsel;

    if (index == IOAPICID)
        io->id = value >> 24 & 0xf;
    if (index < IOREDTBL || index >= IOREDTBL + 2 * IOAPIC_INPUTS)
        return;

    unsigned n = (index - IOREDTBL) / 2;
    uint64_t old = io->redirection[n], entry;
    if (index & 1)
        entry = (old & 0xffffffffull) | (uint64_t)value << 32;
    else
        entry = (old & ~0xffffffffull) | value;
    entry = (entry & RTE_WRITABLE) | (old & RTE_REMOTE_IRR);
    // Remote IRR means nothing in edge mode; software for chips without an EOI register switches to edge and
    // back to clear it.
    if (!level_triggered(entry))
        entry &= ~RTE_REMOTE_IRR;
    io->redirection[n] = entry;
    service_level(io, n);
}

static uint64_t ioapic_read(void *opaque, uint64_t offset, unsigned size)
{
    struct ioapic *io = opaque;
    (void)size;

    switch (offset & 0xff) {
    case IOREGSEL: return io->ioregsel;
    case IOWIN: return window_read(io);
    default: return 0;
    }
}

static void ioapic_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct ioapic *io = opaque;
    (void)size;

    switch (offset & 0xff) {
    case IOREGSEL: io->ioregsel = value; break;
    case IOWIN: window_write(io, value); break;
    default: break;
    }
}

static void ioapic_state(void *opaque, struct stream *s)
{
    struct ioapic *io = opaque;

    stream_section(s, "ioapic", 1);
    for (unsigned n = 0; n < IOAPIC_INPUTS; n++) {
        stream_u64(s, &io->redirection[n]);
        if (s->loading)
            io->redirection[n] &= RTE_WRITABLE | RTE_REMOTE_IRR;
    }
    stream_u32(s, &io->lines);
    stream_u8(s, &io->ioregsel);
    stream_u8(s, &io->id);
    if (s->loading) {
        io->lines &= (1u << IOAPIC_INPUTS) - 1;
        io->id &= 0xf;
    }
}

static void ioapic_destroy(void *opaque)
{
    free(opaque);
}

static const struct mmio_ops ioapic_mmio = {ioapic_read, ioapic_write};
const struct device_ops ioapic_device = {"ioapic", ioapic_reset, ioapic_state, ioapic_destroy};

struct ioapic *ioapic_create(struct mem_map *mem, struct apic_bus apics)
{
    struct ioapic *io = calloc(1, sizeof *io);

    if (!io)
        return NULL;
    io->apics = apics;
    ioapic_reset(io);
    if (mem_add_mmio(mem, IOAPIC_BASE, IOAPIC_SIZE, &ioapic_mmio, io, "ioapic") < 0) {
        free(io);
        return NULL;
    }
    return io;
}

// SDM 3A 11.11.1 and 11.11.2, tables 11-3 and 11-4. The redirection hint changes nothing where each message
// goes to whoever it addresses.
struct apic_message apic_msi_message(uint64_t address, uint32_t data)
{
    return (struct apic_message){
        .vector = data & 0xff,
        .delivery_mode = data >> 8 & 7,
        .dest_logical = address >> 2 & 1,
        .level_triggered = data >> 15 & 1,
        .destination = address >> 12 & 0xff,
    };
}
