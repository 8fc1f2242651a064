// What pci.c, pci_msix.c and the chips that are part of the PCI host share.
#pragma once
#include "devices/chips.h"
#include "mmu/mem.h"

// Configuration space registers (PCI Local Bus Specification 3.0, chapter 6).
#define PCI_VENDOR_ID           0x00u
#define PCI_DEVICE_ID           0x02u
#define PCI_COMMAND             0x04u
#define PCI_STATUS              0x06u
#define PCI_REVISION            0x08u
#define PCI_PROG_IF             0x09u
#define PCI_SUBCLASS            0x0au
#define PCI_CLASS               0x0bu
#define PCI_CACHE_LINE          0x0cu
#define PCI_LATENCY             0x0du
#define PCI_HEADER_TYPE         0x0eu
#define PCI_BAR(n)              (0x10u + 4u * (n))
#define PCI_SUBSYSTEM_VENDOR_ID 0x2cu
#define PCI_SUBSYSTEM_ID        0x2eu
#define PCI_CAPABILITIES        0x34u
#define PCI_INTERRUPT_LINE      0x3cu
#define PCI_INTERRUPT_PIN       0x3du

#define PCI_COMMAND_IO           0x0001u
#define PCI_COMMAND_MEMORY       0x0002u
#define PCI_COMMAND_MASTER       0x0004u
#define PCI_COMMAND_INTX_DISABLE 0x0400u
#define PCI_COMMAND_WRITABLE     0x0547u
#define PCI_STATUS_INTERRUPT     0x0008u
#define PCI_STATUS_CAPABILITIES  0x0010u
#define PCI_STATUS_W1C           0xf900u

#define PCI_CAP_VENDOR 0x09u
#define PCI_CAP_MSIX   0x11u

#define PCI_MSIX_MAX    64u // vectors of one function
#define PCI_MSIX_SIZE   0x1000u
#define PCI_MSIX_PBA    0x800u // offset in the BAR, behind 64 entries of 16 bytes
#define PCI_UNMAPPED    UINT64_MAX
#define PCI_MAX_DEVICES 32u // functions of a bus that this host has room for

struct pci_msix {
    unsigned vectors, capability;    // 0 vectors: none
    uint32_t table[PCI_MSIX_MAX][4]; // address, upper address, data, vector control (PCI 3.0, 6.8.2.6)
    uint64_t pending;
};

struct pci_device {
    struct pci_bus *bus;
    void *opaque;
    const char *name;
    uint8_t devfn;
    uint8_t config[256], writable[256], clear[256]; // clear: bits a 1 written to them clears
    struct pci_bar bar[6];
    void *bar_opaque[6];
    uint64_t mapped[6];   // where the BAR decodes now, or PCI_UNMAPPED
    int region[6];        // its index in the memory map, -1 before it was first mapped
    unsigned free_config; // next free byte for a capability
    int irq_level;        // what the function asserts, before the INTx disable bit
    struct pci_msix msix;
    void (*config_written)(void *opaque, unsigned offset, unsigned size);
    void (*config_read)(void *opaque, unsigned offset, unsigned size);
};

// Called before the guest reads the configuration space (offset, size): the function can refresh it.
void pci_on_config_read(struct pci_device *d, void (*fn)(void *opaque, unsigned offset, unsigned size));

// Gives a function that has no BAR n yet one whose handlers get their own `opaque`.
void pci_set_bar(struct pci_device *d, unsigned n, const struct pci_bar *bar, void *opaque);

// PIRQ n (0: A) drives ISA interrupt `irq`, or nothing when irq is negative (PIIX3 2.2.12).
void pci_route_pirq(struct pci_bus *b, unsigned pirq, int irq);

// Port CF9h lies inside the configuration address register, which decodes only 32-bit accesses: its byte
// accesses are the reset control register's.
struct pci_cf9 {
    uint8_t (*read)(void *opaque);
    void (*write)(void *opaque, uint8_t value);
    void *opaque;
};
void pci_set_cf9(struct pci_bus *b, struct pci_cf9 handlers);

static inline uint16_t pci_get16(const uint8_t *p)
{
    return p[0] | p[1] << 8;
}

static inline uint32_t pci_get32(const uint8_t *p)
{
    return pci_get16(p) | (uint32_t)pci_get16(p + 2) << 16;
}

static inline void pci_put(uint8_t *p, uint64_t value, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        p[i] = value >> 8 * i;
}

// pci_msix.c, called by pci.c
void pci_msix_reset(struct pci_device *d);
void pci_msix_state(struct pci_device *d, struct stream *s);
void pci_msix_flush(struct pci_device *d); // sends pending messages that may go now
