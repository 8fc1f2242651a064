// How a PC reports x87 errors while CR0.NE is clear (SDM 1 8.7.2, figure 8-8; PIIX3 datasheet 2.5.6): FERR# of the
// processor latches interrupt 13; a write to port F0h takes that back and, while FERR# is still there, holds IGNNE#,
// with which the processor goes on as if there was no error.
#include "devices/chips.h"
#include <stdlib.h>

#define PORT_COPROCESSOR_ERROR 0xf0

struct ferr {
    struct bus *bus;
    struct irq_line irq13, ignne;
    bool error; // FERR#
    bool latched, ignoring;
};

static void drive(struct ferr *f)
{
    irq_set(&f->irq13, f->latched);
    irq_set(&f->ignne, f->ignoring);
}

static void ferr_reset(void *opaque)
{
    struct ferr *f = opaque;

    f->error = f->latched = f->ignoring = false;
    drive(f);
}

void ferr_set(struct ferr *f, bool level)
{
    if (level && !f->error)
        f->latched = true;
    if (!level)
        f->ignoring = false;
    f->error = level;
    drive(f);
}

static uint32_t ferr_read(void *opaque, uint16_t port, unsigned size)
{
    (void)opaque, (void)port, (void)size;
    return 0xff; // write only
}

static void ferr_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    struct ferr *f = opaque;
    (void)port, (void)size, (void)value;

    f->latched = false;
    f->ignoring = f->error;
    drive(f);
}

static void ferr_state(void *opaque, struct stream *s)
{
    struct ferr *f = opaque;

    stream_section(s, "ferr", 1);
    stream_bool(s, &f->error);
    stream_bool(s, &f->latched);
    stream_bool(s, &f->ignoring);
    if (s->loading) // the interrupt's level is part of the wires
        irq_set(&f->ignne, f->ignoring);
}

static void ferr_destroy(void *opaque)
{
    struct ferr *f = opaque;

    bus_release(f->bus, PORT_COPROCESSOR_ERROR, 1);
    free(f);
}

const struct device_ops ferr_device = {
    .name = "ferr",
    .reset = ferr_reset,
    .state = ferr_state,
    .destroy = ferr_destroy,
};

struct ferr *ferr_create(struct bus *bus, struct irq_line irq13, struct irq_line ignne)
{
    static const struct port_ops ops = {ferr_read, ferr_write, 1};
    struct ferr *f = calloc(1, sizeof *f);

    if (!f)
        return NULL;
    *f = (struct ferr){.bus = bus, .irq13 = irq13, .ignne = ignne};
    if (bus_claim(bus, PORT_COPROCESSOR_ERROR, 1, &ops, f) < 0) {
        free(f);
        return NULL;
    }
    return f;
}
