// Ports for talking to whoever runs the machine: Bochs debug console E9h, debug exit F4h (QEMU's
// isa-debug-exit), pvpanic 505h (QEMU's docs/specs/pvpanic).
#include "devices/chips.h"

#include <stdlib.h>

#define DEBUG_CONSOLE 0xe9u
#define DEBUG_EXIT    0xf4u // four ports, so that byte, word and dword writes arrive whole
#define PVPANIC       0x505u

#define DEBUG_CONSOLE_READBACK 0xe9u
#define PVPANIC_PANICKED       0x01u
#define PVPANIC_CRASH_LOADED   0x02u // a crash kernel will handle it: nothing to do

struct debug_ports {
    struct char_out out;
    struct machine_control control;
};

// No state: writes take effect at once.
static void debug_ports_reset(void *opaque)
{
    (void)opaque;
}

static void debug_ports_state(void *opaque, struct stream *s)
{
    (void)opaque;
    stream_section(s, "debug_ports", 1);
}

static void request(struct debug_ports *d, enum machine_request what, uint32_t value)
{
    if (d->control.request)
        d->control.request(d->control.opaque, what, value);
}

static uint32_t console_read(void *opaque, uint16_t port, unsigned size)
{
    (void)opaque, (void)port, (void)size;
    return DEBUG_CONSOLE_READBACK;
}

static void console_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    struct debug_ports *d = opaque;
    uint8_t byte = value;
    (void)port, (void)size;

    if (d->out.write)
        d->out.write(d->out.opaque, &byte, 1);
}

static uint32_t exit_read(void *opaque, uint16_t port, unsigned size)
{
    (void)opaque, (void)port, (void)size;
    return 0;
}

static void exit_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    (void)size;
    if (port == DEBUG_EXIT)
        request(opaque, MACHINE_GUEST_EXIT, value << 1 | 1);
}

static uint32_t pvpanic_read(void *opaque, uint16_t port, unsigned size)
{
    (void)opaque, (void)port, (void)size;
    return PVPANIC_PANICKED | PVPANIC_CRASH_LOADED;
}

static void pvpanic_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    (void)port, (void)size;
    if (value & PVPANIC_PANICKED)
        request(opaque, MACHINE_GUEST_CRASHED, 0);
}

static void debug_ports_destroy(void *opaque)
{
    free(opaque);
}

static const struct port_ops console_ports = {console_read, console_write, 1};
static const struct port_ops exit_ports = {exit_read, exit_write, 4};
static const struct port_ops pvpanic_ports = {pvpanic_read, pvpanic_write, 1};
const struct device_ops debug_ports_device = {"debug_ports", debug_ports_reset, debug_ports_state,
                                              debug_ports_destroy};

struct debug_ports *debug_ports_create(struct bus *bus, struct char_out out, struct machine_control control)
{
    struct debug_ports *d = calloc(1, sizeof *d);

    if (!d)
        return NULL;
    d->out = out;
    d->control = control;
    if (bus_claim(bus, DEBUG_CONSOLE, 1, &console_ports, d))
        goto fail;
    if (bus_claim(bus, DEBUG_EXIT, 4, &exit_ports, d))
        goto fail_exit;
    if (bus_claim(bus, PVPANIC, 1, &pvpanic_ports, d))
        goto fail_pvpanic;
    return d;
fail_pvpanic:
    bus_release(bus, DEBUG_EXIT, 4);
fail_exit:
    bus_release(bus, DEBUG_CONSOLE, 1);
fail:
    free(d);
    return NULL;
}
