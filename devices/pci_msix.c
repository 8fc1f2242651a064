// The MSI-X capability (PCI 3.0, 6.8.2): a table of messages and a pending bit array in a BAR of their own.
//
// A message goes out when the capability is enabled, the function is a bus master, and neither the function
// nor the vector is masked; otherwise the vector's pending bit is set and the message goes when the last
// obstacle does.
#include "devices/pci_private.h"

#define MSIX_CONTROL        2u // offset in the capability
#define MSIX_TABLE          4u
#define MSIX_PBA            8u
#define MSIX_CAPABILITY_LEN 12u
#define CONTROL_ENABLE      0x8000u
#define CONTROL_MASK        0x4000u
#define VECTOR_MASKED       1u // bit 0 of vector control

static unsigned control(const struct pci_device *d)
{
    return pci_get16(d->config + d->msix.capability + MSIX_CONTROL);
}

bool pci_msix_enabled(const struct pci_device *d)
{
    return d->msix.vectors && (control(d) & CONTROL_ENABLE);
}

static bool may_send(const struct pci_device *d, unsigned vector)
{
    return pci_msix_enabled(d) && !(control(d) & CONTROL_MASK) &&
           (pci_get16(d->config + PCI_COMMAND) & PCI_COMMAND_MASTER) &&
           !(d->msix.table[vector][3] & VECTOR_MASKED);
}

void pci_msix_flush(struct pci_device *d)
{
    struct pci_msix *m = &d->msix;

    for (unsigned n = 0; n < m->vectors && m->pending; n++) {
        if (!(m->pending >> n & 1) || !may_send(d, n))
            continue;
        m->pending &= ~(1ull << n);
        pci_msi(d, m->table[n][0] | (uint64_t)m->table[n][1] << 32, m->table[n][2]);
    }
}

void pci_msix_notify(struct pci_device *d, unsigned vector)
{
    if (vector >= d->msix.vectors || !pci_msix_enabled(d))
        return;
    d->msix.pending |= 1ull << vector;
    pci_msix_flush(d);
}

static uint32_t dword_read(const struct pci_msix *m, uint64_t offset)
{
    if (offset < m->vectors * 16ull)
        return m->table[offset / 16][offset / 4 % 4];
    if (offset == PCI_MSIX_PBA)
        return m->pending;
    if (offset == PCI_MSIX_PBA + 4)
        return m->pending >> 32;
    return 0;
}

// The table takes dword and qword accesses only (6.8.2); the rest of the page reads zero.
static uint64_t msix_read(void *opaque, uint64_t offset, unsigned size)
{
    struct pci_device *d = opaque;

    if (size == 8 && !(offset & 7))
        return dword_read(&d->msix, offset) | (uint64_t)dword_read(&d->msix, offset + 4) << 32;
    return dword_read(&d->msix, offset & ~3ull) >> 8 * (offset & 3);
}

static void dword_write(struct pci_device *d, uint64_t offset, uint32_t value)
{
    unsigned field = offset / 4 % 4;

    if (offset >= d->msix.vectors * 16ull)
        return; // the pending bits are read-only
    if (field == 0)
        value &= ~3u;
    if (field == 3)
        value &= VECTOR_MASKED;
    d->msix.table[offset / 16][field] = value;
}

static void msix_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct pci_device *d = opaque;

    if (size < 4 || (offset & (size - 1)))
        return;
    dword_write(d, offset, value);
    if (size == 8)
        dword_write(d, offset + 4, value >> 32);
    pci_msix_flush(d);
}

static const struct mmio_ops msix_mmio = {msix_read, msix_write};

void pci_msix_reset(struct pci_device *d)
{
    struct pci_msix *m = &d->msix;

    if (!m->vectors)
        return;
    for (unsigned n = 0; n < m->vectors; n++) {
        m->table[n][0] = m->table[n][1] = m->table[n][2] = 0;
        m->table[n][3] = VECTOR_MASKED;
    }
    m->pending = 0;
    d->config[m->capability + MSIX_CONTROL + 1] &= ~((CONTROL_ENABLE | CONTROL_MASK) >> 8);
}

void pci_msix_state(struct pci_device *d, struct stream *s)
{
    struct pci_msix *m = &d->msix;

    for (unsigned n = 0; n < m->vectors; n++)
        for (unsigned i = 0; i < 4; i++)
            stream_u32(s, &m->table[n][i]);
    stream_u64(s, &m->pending);
    if (s->loading)
        m->pending &= m->vectors == 64 ? ~0ull : (1ull << m->vectors) - 1;
}

bool pci_msix_add(struct pci_device *d, unsigned bar, unsigned vectors)
{
    static const struct pci_bar page = {.size = PCI_MSIX_SIZE, .mmio = &msix_mmio};

    if (bar > 5 || d->bar[bar].size || (bar > 0 && d->bar[bar - 1].size && d->bar[bar - 1].bits64) ||
        !vectors || vectors > PCI_MSIX_MAX || d->msix.vectors)
        return false;
    unsigned offset = pci_add_capability(d, PCI_CAP_MSIX, MSIX_CAPABILITY_LEN);
    if (!offset)
        return false;
    d->msix.vectors = vectors;
    d->msix.capability = offset;
    pci_put(d->config + offset + MSIX_CONTROL, vectors - 1, 2);
    pci_config_writable(d, offset + MSIX_CONTROL, CONTROL_ENABLE | CONTROL_MASK, 2);
    pci_put(d->config + offset + MSIX_TABLE, bar, 4);
    pci_put(d->config + offset + MSIX_PBA, PCI_MSIX_PBA | bar, 4);
    pci_set_bar(d, bar, &page, d);
    pci_msix_reset(d);
    return true;
}
