// 82371AB PIIX4 power management (Intel 290562-001), function 00:01.3: ACPI registers, PM timer, SCI, APM
// ports.
//
// There is no system management mode, so what a PC's SMI handler would do on a write to the APM control port
// (switch between legacy and ACPI mode) is done here, with the command values of the FADT.
#include "devices/pci_private.h"

#include <stdlib.h>

#define PMBASE  0x40u // configuration space, 7.1
#define DEVACTB 0x58u
#define DEVACTB_APMC_EN                                                                                      \
    0x02000000u // SMI on APMC writes is set up: tells firmware not to look for an SMI handler
#define PMREGMISC    0x80u
#define PMIOSE       0x01u
#define PM_IO_BASE   0x600u
#define PM_IO_SIZE   0x40u
#define APMC         0xb2u
#define APMS         0xb3u
#define ACPI_ENABLE  0xf1u
#define ACPI_DISABLE 0xf0u

// I/O registers, 7.2.
#define PMSTS   0x00u
#define PMEN    0x02u
#define PMCNTRL 0x04u
#define PMTMR   0x08u
#define GPSTS   0x0cu
#define GPEN    0x0eu

#define TMROF_STS    0x0001u
#define PWRBTN_STS   0x0100u
#define PMSTS_ALL    0x8d31u
#define PMEN_ALL     0x0521u
#define SCI_EN       0x0001u
#define PMCNTRL_RW   0x1c03u // SUS_TYP, BRLD_EN_BM, SCI_EN
#define SUS_EN       0x2000u // write-only
#define SUS_TYP(v)   ((v) >> 10 & 7)
#define SUS_TYP_SOFF 0u
#define GPSTS_ALL    0x0f81u
#define GPEN_ALL     0x0f01u

#define PMTMR_HZ   3579545ull
#define PMTMR_HALF 23 // TMROF_STS is set whenever bit 23 changes

struct piix4pm {
    struct pci_device *pci;
    struct bus *ports;
    struct timer_queue *clock;
    struct timer overflow;
    struct irq_line sci;
    struct machine_control control;
    uint64_t half;    // PM timer count >> 23 when TMROF_STS was last brought up to date
    uint64_t io_base; // claimed, or PCI_UNMAPPED
    uint16_t pmsts, pmen, pmcntrl, gpsts, gpen;
    uint8_t apmc, apms;
};

static uint64_t pm_count(const struct piix4pm *p)
{
    return (unsigned __int128)timer_now(p->clock) * PMTMR_HZ / 1000000000u;
}

static uint64_t count_to_ns(uint64_t count) // the first nanosecond at which the timer shows it
{
    return ((unsigned __int128)count * 1000000000u + PMTMR_HZ - 1) / PMTMR_HZ;
}

static void update(struct piix4pm *p)
{
    uint64_t half = pm_count(p) >> PMTMR_HALF;

    if (half != p->half) {
        p->half = half;
        p->pmsts |= TMROF_STS;
    }
    bool acpi = p->pmcntrl & SCI_EN;
    irq_set(&p->sci, acpi && ((p->pmsts & p->pmen) || (p->gpsts & p->gpen)));
    if (acpi && (p->pmen & TMROF_STS) && !(p->pmsts & TMROF_STS))
        timer_arm(&p->overflow, count_to_ns((half + 1) << PMTMR_HALF));
    else
        timer_cancel(&p->overflow);
}

static void overflow_expired(void *opaque, uint64_t now_ns)
{
    (void)now_ns;
    update(opaque);
}

uint16_t piix4pm_timer_port(const struct piix4pm *p)
{
    return p->io_base == PCI_UNMAPPED ? 0 : (uint16_t)(p->io_base + PMTMR);
}

void piix4pm_power_button(struct piix4pm *p)
{
    p->pmsts |= PWRBTN_STS;
    update(p);
}

static uint32_t register_dword(struct piix4pm *p, unsigned offset)
{
    switch (offset) {
    case PMSTS: return p->pmsts | (uint32_t)p->pmen << 16;
    case PMCNTRL: return p->pmcntrl;
    case PMTMR: return piix4pm_timer_value(timer_now(p->clock));
    case GPSTS: return p->gpsts | (uint32_t)p->gpen << 16;
    default: return 0;
    }
}

static uint32_t io_read(void *opaque, uint16_t port, unsigned size)
{
    struct piix4pm *p = opaque;
    unsigned offset = (port - p->io_base) & (PM_IO_SIZE - 1), shift = 8 * (offset & 3);

    update(p);
    uint64_t value = register_dword(p, offset & ~3u);
    if (shift + 8 * size > 32)
        value |= (uint64_t)register_dword(p, (offset & ~3u) + 4) << 32;
    return value >> shift & (0xffffffffu >> (32 - 8 * size));
}

static void control_high_write(struct piix4pm *p, uint8_t byte)
{
    uint16_t value = byte << 8;

    p->pmcntrl = (p->pmcntrl & 0xff) | (value & PMCNTRL_RW);
    if ((value & SUS_EN) && SUS_TYP(value) == SUS_TYP_SOFF && p->control.request)
        p->control.request(p->control.opaque, MACHINE_POWER_OFF, 0);
}

static uint16_t set_byte(uint16_t old, unsigned high, uint8_t byte, uint16_t writable)
{
    uint16_t mask = (high ? 0xff00 : 0x00ff) & writable;
    return (old & ~mask) | ((byte << 8 * high) & mask);
}

static void io_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    struct piix4pm *p = opaque;

    update(p);
    for (unsigned i = 0; i < size; i++, value >>= 8) {
        unsigned offset = (port - p->io_base + i) & (PM_IO_SIZE - 1), high = offset & 1;
        uint8_t byte = value;

        switch (offset & ~1u) {
        case PMSTS: p->pmsts &= ~((byte << 8 * high) & PMSTS_ALL); break;
        case PMEN: p->pmen = set_byte(p->pmen, high, byte, PMEN_ALL); break;
        case PMCNTRL:
            if (high)
                control_high_write(p, byte);
            else
                p->pmcntrl = set_byte(p->pmcntrl, 0, byte, PMCNTRL_RW);
            break;
        case GPSTS: p->gpsts &= ~((byte << 8 * high) & GPSTS_ALL); break;
        case GPEN: p->gpen = set_byte(p->gpen, high, byte, GPEN_ALL); break;
        default: break;
        }
    }
    update(p);
}

static uint32_t apm_read(void *opaque, uint16_t port, unsigned size)
{
    struct piix4pm *p = opaque;
    (void)size;
    return port == APMC ? p->apmc : p->apms;
}

static void apm_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    struct piix4pm *p = opaque;
    (void)size;

    if (port == APMS) {
        p->apms = value;
        return;
    }
    p->apmc = value;
    if (p->apmc == ACPI_ENABLE)
        p->pmcntrl |= SCI_EN;
    else if (p->apmc == ACPI_DISABLE)
        p->pmcntrl &= ~SCI_EN;
    update(p);
}

static const struct port_ops io_ports = {io_read, io_write, 4};
static const struct port_ops apm_ports = {apm_read, apm_write, 1};

static void update_io_base(struct piix4pm *p)
{
    const uint8_t *config = pci_config(p->pci);
    uint64_t base = pci_get16(config + PMBASE) & 0xffc0;

    if (!(config[PMREGMISC] & PMIOSE) || base == 0)
        base = PCI_UNMAPPED;
    if (base == p->io_base)
        return;
    if (p->io_base != PCI_UNMAPPED)
        bus_release(p->ports, p->io_base, PM_IO_SIZE);
    p->io_base = PCI_UNMAPPED;
    if (base != PCI_UNMAPPED && bus_claim(p->ports, base, PM_IO_SIZE, &io_ports, p) == 0)
        p->io_base = base;
}

static void config_written(void *opaque, unsigned offset, unsigned size)
{
    (void)offset;
    (void)size;
    update_io_base(opaque);
}

static void piix4pm_reset(void *opaque)
{
    struct piix4pm *p = opaque;
    uint8_t *config = pci_config(p->pci);

    // A PC's firmware sets base and enable; a kernel started without firmware finds them set.
    pci_put(config + PMBASE, PM_IO_BASE | 1, 4);
    pci_put(config + DEVACTB, DEVACTB_APMC_EN, 4);
    config[PMREGMISC] = PMIOSE;
    config[PCI_STATUS] |= 0x80; // fast back-to-back
    config[PCI_STATUS + 1] = 0x02;
    p->pmsts = p->pmen = p->pmcntrl = p->gpsts = p->gpen = 0;
    p->apmc = p->apms = 0;
    p->half = pm_count(p) >> PMTMR_HALF;
    update_io_base(p);
    update(p);
}

static void piix4pm_state(void *opaque, struct stream *s)
{
    struct piix4pm *p = opaque;

    stream_section(s, "piix4pm", 1);
    stream_u16(s, &p->pmsts);
    stream_u16(s, &p->pmen);
    stream_u16(s, &p->pmcntrl);
    stream_u16(s, &p->gpsts);
    stream_u16(s, &p->gpen);
    stream_u8(s, &p->apmc);
    stream_u8(s, &p->apms);
    stream_u64(s, &p->half);
    if (s->loading) {
        p->pmsts &= PMSTS_ALL;
        p->pmen &= PMEN_ALL;
        p->pmcntrl &= PMCNTRL_RW;
        p->gpsts &= GPSTS_ALL;
        p->gpen &= GPEN_ALL;
        update(p);
    }
}

static void piix4pm_destroy(void *opaque)
{
    struct piix4pm *p = opaque;
    timer_cancel(&p->overflow);
    free(p);
}

const struct device_ops piix4pm_device = {"piix4pm", piix4pm_reset, piix4pm_state, piix4pm_destroy};

struct piix4pm *piix4pm_create(struct pci_bus *b, struct bus *ports, struct timer_queue *clock,
                               struct irq_line sci, struct machine_control control)
{
    static const struct pci_device_info info = {
        .vendor = 0x8086,
        .device = 0x7113,
        .subsystem_vendor = 0x1af4,
        .subsystem = 0x1100,
        .revision = 3,
        .subclass = 0x80,
        .class_code = 0x06,
        .interrupt_pin = 1,
        .name = "piix4pm",
    };
    struct piix4pm *p = calloc(1, sizeof *p);

    if (!p)
        return NULL;
    p->ports = ports;
    p->clock = clock;
    p->sci = sci;
    p->control = control;
    p->io_base = PCI_UNMAPPED;
    timer_init(&p->overflow, clock, overflow_expired, p);
    p->pci = pci_add(b, 1 << 3 | 3, &info, NULL, p);
    if (!p->pci || bus_claim(ports, APMC, 2, &apm_ports, p)) {
        free(p);
        return NULL;
    }
    pci_config_writable(p->pci, PCI_COMMAND, 0x0001, 2);
    pci_config_writable(p->pci, PMBASE, 0xffc0, 4);
    pci_config_writable(p->pci, DEVACTB, 0xffffffff, 4);
    pci_config_writable(p->pci, PMREGMISC, PMIOSE, 1);
    pci_on_config_write(p->pci, config_written);
    piix4pm_reset(p);
    return p;
}
