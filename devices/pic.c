// The pair of 8259A interrupt controllers of a PC (Intel 8259A datasheet, order 231468), as the PIIX3 has
// them: the cascade on IR2 is wired, ICW1.LTIM is replaced by the edge/level control registers (PIIX3
// datasheet 2.5, 2.5.7).
#include "devices/chips.h"
#include <stdlib.h>

#define PORT_MASTER 0x20
#define PORT_SLAVE  0xa0
#define PORT_ELCR   0x4d0
#define CASCADE_IR  2

#define ICW1_IC4  0x01 // ICW4 follows
#define ICW1_SNGL 0x02 // no ICW3
#define ICW1      0x10
#define ICW4_AEOI 0x02
#define ICW4_SFNM 0x10
#define OCW2_EOI  0x20
#define OCW2_SL   0x40
#define OCW2_R    0x80
#define OCW3      0x08
#define OCW3_RIS  0x01
#define OCW3_RR   0x02
#define OCW3_P    0x04
#define OCW3_SMM  0x20
#define OCW3_ESMM 0x40
#define POLL_I    0x80

enum init_step { INIT_DONE, INIT_ICW2, INIT_ICW3, INIT_ICW4 };

struct i8259 {
    uint8_t lines; // levels of IR7..IR0 now
    uint8_t edge;  // edge-sense latches: rose since last acknowledged, and still high
    uint8_t imr, isr;
    uint8_t elcr;      // 1: level triggered
    uint8_t elcr_mask; // writable bits of elcr
    uint8_t icw1, icw2, icw3, icw4;
    uint8_t step;   // enum init_step
    uint8_t lowest; // the IR with the lowest priority, 0..7
    bool rotate_aeoi;
    bool special_mask;
    bool read_isr;
    bool poll;
    bool master;
};

struct pic {
    struct bus *bus;
    struct irq_line intr;
    struct i8259 chip[2]; // master, slave
    bool intr_level;
};

static uint8_t irr(const struct i8259 *c)
{
    return c->edge | (c->lines & c->elcr);
}

// How far down IR n stands in the current order: 0 is the highest.
static unsigned rank(const struct i8259 *c, unsigned n)
{
    return (n - c->lowest - 1) & 7;
}

// The highest-priority IR of a set, or -1.
static int highest(const struct i8259 *c, uint8_t set)
{
    for (unsigned i = 0; i < 8; i++) {
        unsigned n = (c->lowest + 1 + i) & 7;
        if (set & (1u << n))
            return (int)n;
    }
    return -1;
}

// The request that INT stands for, or -1.
static int pending(const struct i8259 *c)
{
    int request = highest(c, irr(c) & (uint8_t)~c->imr);
    // Special mask mode: a masked level in service no longer holds back lower ones.
    int in_service = highest(c, c->special_mask ? c->isr & (uint8_t)~c->imr : c->isr);

    if (request < 0 || in_service < 0)
        return request;
    if (rank(c, (unsigned)request) < rank(c, (unsigned)in_service))
        return request;
    // Special fully nested mode: a slave in service may interrupt again with a higher request of its own.
    if (c->master && (c->icw4 & ICW4_SFNM) && request == CASCADE_IR && in_service == CASCADE_IR)
        return request;
    return -1;
}

static void set_line(struct i8259 *c, unsigned n, int level)
{
    uint8_t bit = (uint8_t)(1u << n);

    if (!level) {
        c->lines &= (uint8_t)~bit;
        c->edge &= (uint8_t)~bit; // a request must stay until acknowledged (figure 9)
    } else if (!(c->lines & bit)) {
        c->lines |= bit;
        if (!(c->elcr & bit))
            c->edge |= bit;
    }
}

static void update(struct pic *p)
{
    set_line(&p->chip[0], CASCADE_IR, pending(&p->chip[1]) >= 0);
    bool level = pending(&p->chip[0]) >= 0;
    if (level != p->intr_level) {
        p->intr_level = level;
        irq_set(&p->intr, level);
    }
}

static void acknowledge(struct pic *p, struct i8259 *c, unsigned n)
{
    c->edge &= (uint8_t) ~(1u << n);
    if (!(c->icw4 & ICW4_AEOI))
        c->isr |= (uint8_t)(1u << n);
    else if (c->rotate_aeoi)
        c->lowest = (uint8_t)n;
    if (!c->master) // INT drops during the acknowledge cycle, so that what is still pending makes a new edge
        set_line(&p->chip[0], CASCADE_IR, 0);
}

void pic_set_irq(struct pic *p, int irq, int level)
{
    if (irq < 0 || irq > 15 || irq == CASCADE_IR)
        return;
    set_line(&p->chip[irq >> 3], (unsigned)irq & 7, level);
    update(p);
}

// A request that went away before INTA gives IR7 of the chip that is asked, with no ISR bit set for it.
int pic_ack(struct pic *p)
{
    struct i8259 *master = &p->chip[0], *slave = &p->chip[1];
    int n = pending(master), vector;

    if (n < 0) {
        vector = master->icw2 | 7;
    } else {
        acknowledge(p, master, (unsigned)n);
        vector = master->icw2 | n;
        if (n == CASCADE_IR) {
            n = pending(slave);
            if (n >= 0)
                acknowledge(p, slave, (unsigned)n);
            vector = slave->icw2 | (n < 0 ? 7 : n);
        }
    }
    update(p);
    return vector;
}

bool pic_intr(const struct pic *p)
{
    return p->intr_level;
}

static void write_icw1(struct i8259 *c, uint8_t value)
{
    c->icw1 = value;
    c->edge = 0;
    c->imr = 0;
    c->isr = 0;
    c->lowest = 7;
    c->special_mask = false;
    c->rotate_aeoi = false;
    c->read_isr = false;
    c->poll = false;
    c->icw4 = 0;
    c->step = INIT_ICW2;
}

static void write_ocw2(struct i8259 *c, uint8_t value)
{
    int n = value & 7;

    if (value & OCW2_EOI) {
        if (!(value & OCW2_SL)) // an ISR bit hidden by special mask mode is not found
            n = highest(c, c->special_mask ? c->isr & (uint8_t)~c->imr : c->isr);
        if (n < 0)
            return;
        c->isr &= (uint8_t) ~(1u << n);
        if (value & OCW2_R)
            c->lowest = (uint8_t)n;
    } else if (!(value & OCW2_SL)) {
        c->rotate_aeoi = value & OCW2_R;
    } else if (value & OCW2_R) {
        c->lowest = (uint8_t)n;
    }
}

static void write_ocw3(struct i8259 *c, uint8_t value)
{
    c->poll = value & OCW3_P;
    if (value & OCW3_RR)
        c->read_isr = value & OCW3_RIS;
    if (value & OCW3_ESMM)
        c->special_mask = value & OCW3_SMM;
}

// The byte after an ICW1, or the mask.
static void write_data(struct i8259 *c, uint8_t value)
{
    switch (c->step) {
    case INIT_ICW2:
        c->icw2 = value & 0xf8;
        c->step = !(c->icw1 & ICW1_SNGL) ? INIT_ICW3 : c->icw1 & ICW1_IC4 ? INIT_ICW4 : INIT_DONE;
        break;
    case INIT_ICW3:
        c->icw3 = value;
        c->step = c->icw1 & ICW1_IC4 ? INIT_ICW4 : INIT_DONE;
        break;
    case INIT_ICW4:
        c->icw4 = value;
        c->step = INIT_DONE;
        break;
    default: c->imr = value;
    }
}

static struct i8259 *chip_of(struct pic *p, uint16_t port)
{
    return &p->chip[(port & 0x80) != 0];
}

static uint32_t port_read(void *opaque, uint16_t port, unsigned size)
{
    struct pic *p = opaque;
    struct i8259 *c = chip_of(p, port);
    (void)size;

    if (c->poll) { // the read is the acknowledge
        int n = pending(c);
        c->poll = false;
        if (n < 0)
            return 0;
        acknowledge(p, c, (unsigned)n);
        update(p);
        return POLL_I | (uint32_t)n;
    }
    if (port & 1)
        return c->imr;
    return c->read_isr ? c->isr : irr(c);
}

static void port_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    struct pic *p = opaque;
    struct i8259 *c = chip_of(p, port);
    (void)size;

    if (port & 1)
        write_data(c, (uint8_t)value);
    else if (value & ICW1)
        write_icw1(c, (uint8_t)value);
    else if (value & OCW3)
        write_ocw3(c, (uint8_t)value);
    else
        write_ocw2(c, (uint8_t)value);
    update(p);
}

static uint32_t elcr_read(void *opaque, uint16_t port, unsigned size)
{
    struct pic *p = opaque;
    (void)size;
    return p->chip[port & 1].elcr;
}

static void elcr_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    struct pic *p = opaque;
    struct i8259 *c = &p->chip[port & 1];
    (void)size;

    c->elcr = (uint8_t)value & c->elcr_mask;
    c->edge &= (uint8_t)~c->elcr;
    update(p);
}

// The levels of the inputs belong to whoever drives them and stay.
static void reset(void *opaque)
{
    struct pic *p = opaque;

    for (unsigned i = 0; i < 2; i++) {
        struct i8259 *c = &p->chip[i];
        write_icw1(c, 0);
        c->step = INIT_DONE;
        c->icw2 = c->icw3 = 0;
        c->elcr = 0;
    }
    update(p);
}

static void state(void *opaque, struct stream *s)
{
    struct pic *p = opaque;

    stream_section(s, "pic", 1);
    for (unsigned i = 0; i < 2; i++) {
        struct i8259 *c = &p->chip[i];
        uint8_t *bytes[] = {&c->lines, &c->edge, &c->imr,  &c->isr,  &c->elcr,  &c->icw1,
                            &c->icw2,  &c->icw3, &c->icw4, &c->step, &c->lowest};
        for (unsigned k = 0; k < sizeof bytes / sizeof bytes[0]; k++)
            stream_u8(s, bytes[k]);
        stream_bool(s, &c->rotate_aeoi);
        stream_bool(s, &c->special_mask);
        stream_bool(s, &c->read_isr);
        stream_bool(s, &c->poll);
        if (s->loading) {
            c->lowest &= 7;
            c->step &= 3;
            c->icw2 &= 0xf8;
            c->elcr &= c->elcr_mask;
            c->edge &= c->lines & (uint8_t)~c->elcr;
        }
    }
    if (s->loading) {
        p->intr_level = pending(&p->chip[0]) >= 0;
        irq_set(&p->intr, p->intr_level);
    }
}

static void destroy(void *opaque)
{
    struct pic *p = opaque;
    bus_release(p->bus, PORT_MASTER, 2);
    bus_release(p->bus, PORT_SLAVE, 2);
    bus_release(p->bus, PORT_ELCR, 2);
    free(p);
}

static const struct port_ops ports = {.read = port_read, .write = port_write};
static const struct port_ops elcr_ports = {.read = elcr_read, .write = elcr_write};
const struct device_ops pic_device = {.name = "pic", .reset = reset, .state = state, .destroy = destroy};

struct pic *pic_create(struct bus *bus, struct irq_line intr)
{
    struct pic *p = calloc(1, sizeof *p);

    if (!p)
        return NULL;
    p->bus = bus;
    p->intr = intr;
    p->chip[0].master = true;
    p->chip[0].elcr_mask = 0xf8; // IRQ 0, 1, 2
    p->chip[1].elcr_mask = 0xde; // IRQ 8, 13 are always edge triggered
    reset(p);
    if (bus_claim(bus, PORT_MASTER, 2, &ports, p))
        goto fail;
    if (bus_claim(bus, PORT_SLAVE, 2, &ports, p))
        goto fail_master;
    if (bus_claim(bus, PORT_ELCR, 2, &elcr_ports, p))
        goto fail_slave;
    return p;

fail_slave:
    bus_release(bus, PORT_SLAVE, 2);
fail_master:
    bus_release(bus, PORT_MASTER, 2);
fail:
    free(p);
    return NULL;
}
