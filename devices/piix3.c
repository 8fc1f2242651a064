// 82371SB PIIX3 ISA bridge (Intel 290550-002), function 00:01.0: PIRQ routing and the reset control register.
#include "devices/pci_private.h"

#include <stdlib.h>

#define XBCS         0x4eu // 2.2.7: storage
#define PIRQRCA      0x60u // 2.2.12: PIRQA#..PIRQD# at 60h..63h
#define PIRQ_DISABLE 0x80u
#define TOM          0x69u // 2.2.14: storage

#define RCR_RCPU 0x04u // 2.5.1, port CF9h: a rising edge resets
#define RCR_SRST 0x02u // hard (1) or soft (0)

struct piix3 {
    struct pci_device *pci;
    struct pci_bus *bus;
    struct machine_control control;
    uint8_t rcr;
};

static void route(struct piix3 *p)
{
    const uint8_t *pirqrc = pci_config(p->pci) + PIRQRCA;

    for (unsigned n = 0; n < 4; n++) {
        unsigned irq = pirqrc[n] & 0xf;
        // 0, 1, 2, 8 and 13 are reserved: those interrupts have no line on the ISA bus.
        bool routed = !(pirqrc[n] & PIRQ_DISABLE) && !(0x2107u >> irq & 1);
        pci_route_pirq(p->bus, n, routed ? (int)irq : -1);
    }
}

static void config_written(void *opaque, unsigned offset, unsigned size)
{
    if (offset < PIRQRCA + 4 && offset + size > PIRQRCA)
        route(opaque);
}

static uint8_t rcr_read(void *opaque)
{
    struct piix3 *p = opaque;
    return p->rcr;
}

static void rcr_write(void *opaque, uint8_t value)
{
    struct piix3 *p = opaque;
    bool rising = (value & RCR_RCPU) && !(p->rcr & RCR_RCPU);

    p->rcr = value & (RCR_RCPU | RCR_SRST);
    if (rising && p->control.request)
        p->control.request(p->control.opaque, value & RCR_SRST ? MACHINE_RESET : MACHINE_INIT_CPU, 0);
    if (rising)
        p->rcr &= ~RCR_RCPU; // the reset clears it
}

static void piix3_reset(void *opaque)
{
    struct piix3 *p = opaque;
    uint8_t *config = pci_config(p->pci);

    config[PCI_COMMAND] = 0x07;    // I/O, memory and master are hardwired (2.2.3)
    config[PCI_STATUS + 1] = 0x02; // medium DEVSEL
    config[0x4c] = 0x4d;           // IORT
    pci_put(config + XBCS, 0x0003, 2);
    for (unsigned n = 0; n < 4; n++)
        config[PIRQRCA + n] = PIRQ_DISABLE;
    config[TOM] = 0x02;
    p->rcr = 0;
    route(p);
}

static void piix3_state(void *opaque, struct stream *s)
{
    struct piix3 *p = opaque;

    stream_section(s, "piix3", 1);
    stream_u8(s, &p->rcr);
    if (s->loading)
        p->rcr &= RCR_RCPU | RCR_SRST;
}

static void piix3_destroy(void *opaque)
{
    free(opaque);
}

const struct device_ops piix3_device = {"piix3", piix3_reset, piix3_state, piix3_destroy};

struct piix3 *piix3_create(struct pci_bus *b, struct bus *ports, struct machine_control control)
{
    static const struct pci_device_info info = {
        .vendor = 0x8086,
        .device = 0x7000,
        .subsystem_vendor = 0x1af4,
        .subsystem = 0x1100,
        .subclass = 0x01,
        .class_code = 0x06,
        .header_type = 0x80,
        .name = "piix3",
    };
    struct piix3 *p = calloc(1, sizeof *p);

    (void)ports; // CF9h comes through the bus, inside the configuration address register
    if (!p)
        return NULL;
    p->bus = b;
    p->control = control;
    p->pci = pci_add(b, 1 << 3, &info, NULL, p);
    if (!p->pci) {
        free(p);
        return NULL;
    }
    pci_config_writable(p->pci, PCI_COMMAND, 0x0100, 2);
    pci_config_writable(p->pci, 0x4c, 0xff, 1);
    pci_config_writable(p->pci, XBCS, 0x01ff, 2);
    pci_config_writable(p->pci, PIRQRCA, 0x8f8f8f8f, 4);
    pci_config_writable(p->pci, TOM, 0xfe, 1);
    pci_on_config_write(p->pci, config_written);
    pci_set_cf9(b, (struct pci_cf9){rcr_read, rcr_write, p});
    piix3_reset(p);
    return p;
}
