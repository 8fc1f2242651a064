// The 8254 interval timer of a PC (Intel 8254 datasheet, order 231164) and system control port 61h.
//
// Nothing runs per clock pulse. A channel is a few numbers from which its output and count at any pulse
// follow:
//
//   load_tick  the pulse at which the counting element (CE) took the initial count n; a register access at
//   pulse T
//              takes effect at pulse T+1. Pulses are numbered from the start of the machine's clock.
//   elapsed    pulses counted since: t - load_tick, or `frozen` while the gate is low.
//
// Example, mode 2 with n = 4 written at pulse 10: CE reads 4 3 2 1 4 3 2 1 … from pulse 11 on, OUT is low at
// pulses 14, 18, …, where CE is 1, and rises at 15, 19, …: load_tick + k * n. In mode 3 CE goes by twos and
// OUT is low in the second half of each period; it rises at load_tick + k * n as well. A count written to a
// running channel in modes 2 and 3 waits in the count register (CR) for `reload_tick`, the end of the period
// or half period. In mode 3 the reload may start a low half: load_tick is then put half a period back.
//
// IRQ 0 is the rising edge of OUT 0. When the host comes late for some of them they are owed to the guest and
// handed out one by one, up to four times as fast as programmed, until it has had every one.
#include "devices/chips.h"
#include <stdlib.h>

#define PIT_HZ 1193182u
#define NS     1000000000u

#define PORT_CHANNEL0 0x40
#define PORT_CONTROL  0x43
#define PORT_61       0x61

#define CW_BCD        0x01
#define CW_MODE_SHIFT 1
#define CW_RW_SHIFT   4
#define CW_SC_SHIFT   6
#define RW_LSB        1
#define RW_MSB        2
#define RW_BOTH       3
#define SC_READ_BACK  3
#define RB_NO_STATUS  0x10
#define RB_NO_COUNT   0x20
#define STATUS_NULL   0x40
#define STATUS_OUT    0x80

#define P61_GATE2    0x01
#define P61_WRITABLE 0x0f
#define P61_REFRESH  0x10
#define P61_OUT2     0x20

#define REFRESH_COUNT    18     // of channel 1 as every BIOS sets it: 15.09 us
#define MIN_SPACING_NS   20000u // between two IRQ 0, whatever the guest programs
#define MAX_OWED_SECONDS 60u

struct channel {
    uint8_t control; // control word bits 5:0 as written
    uint8_t mode;    // 0..5
    bool gate;
    bool count_written;       // CR holds a count since the control word
    bool armed;               // CE was, or at load_tick will be, loaded from CR
    bool paused;              // counting is stopped by the gate
    bool null_count;          // CR holds a count that has no load time yet
    bool reload_pending;      // CR goes to CE at reload_tick
    bool reload_low;          // mode 3: that is the start of a low half
    bool out_before;          // OUT and CE until load_tick, or while not armed
    bool write_msb, read_msb; // RW_BOTH: the second byte is next
    bool count_latched, status_latched;
    uint8_t write_lsb;
    uint8_t status;
    uint16_t latch;
    uint16_t count_before;
    uint16_t cr;
    uint32_t n; // count in use, 1..65536
    int64_t load_tick, reload_tick, frozen;
};

struct pit {
    struct bus *bus;
    struct timer_queue *clock;
    struct timer timer;
    struct irq_line irq0;
    struct channel channel[3];
    uint8_t port61;
    bool irq0_enabled;
    bool irq0_level;
    uint64_t owed;        // rising edges of OUT 0 not yet given to the guest
    int64_t counted_tick; // up to which edges have been counted
    uint64_t pulse_ns;    // time of the last one given
};

static int64_t tick_at(uint64_t now_ns)
{
    return (int64_t)time_scale(now_ns, PIT_HZ, NS);
}

// The first nanosecond that belongs to a tick.
static uint64_t tick_ns(int64_t tick)
{
    return time_scale_up((uint64_t)tick, NS, PIT_HZ);
}

// ---- one channel

static bool periodic(const struct channel *c)
{
    return c->mode == 2 || c->mode == 3;
}

// CE is loaded by a rising gate only.
static bool triggered(const struct channel *c)
{
    return c->mode == 1 || c->mode == 5;
}

static uint32_t modulus(const struct channel *c)
{
    return c->control & CW_BCD ? 10000 : 65536;
}

static uint32_t decode_count(const struct channel *c)
{
    uint32_t n = c->cr;

    if (c->control & CW_BCD)
        n = (n >> 12) * 1000 + ((n >> 8) & 15) * 100 + ((n >> 4) & 15) * 10 + (n & 15);
    return n ? n : modulus(c);
}

static uint16_t encode_count(const struct channel *c, int64_t value)
{
    int64_t m = modulus(c);
    uint32_t v = (uint32_t)(((value % m) + m) % m);

    if (c->control & CW_BCD)
        v = v / 1000 << 12 | v / 100 % 10 << 8 | v / 10 % 10 << 4 | v % 10;
    return (uint16_t)v;
}

static int64_t elapsed(const struct channel *c, int64_t t)
{
    return c->paused ? c->frozen : t - c->load_tick;
}

static int64_t high_half(uint32_t n)
{
    return (n + 1) / 2;
}

static bool out(const struct channel *c, int64_t t)
{
    if (!c->armed || t < c->load_tick)
        return c->out_before;

    int64_t e = elapsed(c, t), n = c->n;
    switch (c->mode) {
    case 0:
    case 1: return e >= n;
    // A count of 1 is illegal in modes 2 and 3: no pulse.
    case 2: return c->paused || n < 2 || e % n != n - 1;
    case 3: return c->paused || n < 2 || e % n < high_half(c->n);
    default: return e != n;
    }
}

static uint16_t count(const struct channel *c, int64_t t)
{
    if (!c->armed || t < c->load_tick)
        return c->count_before;

    int64_t e = elapsed(c, t), n = c->n;
    if (c->mode == 2)
        return encode_count(c, n - e % n);
    if (c->mode == 3) { // an odd count is loaded less one, and its high half has a pulse at 0
        int64_t phase = e % n;
        if (phase >= high_half(c->n))
            phase -= high_half(c->n);
        return encode_count(c, (n & ~(int64_t)1) - 2 * phase);
    }
    return encode_count(c, n - e);
}

static void sync(struct channel *c, int64_t t)
{
    if (!c->reload_pending || t < c->reload_tick)
        return;
    c->n = decode_count(c);
    c->load_tick = c->reload_tick - (c->reload_low ? high_half(c->n) : 0);
    c->reload_pending = false;
}

// CR to CE at the next clock pulse.
static void load(struct channel *c, int64_t t)
{
    bool out_now = c->mode != 0 && out(c, t);
    uint16_t count_now = count(c, t);

    c->out_before = out_now;
    c->count_before = count_now;
    c->n = decode_count(c);
    c->load_tick = t + 1;
    c->armed = true;
    c->paused = !c->gate && !triggered(c);
    c->frozen = 0;
    c->null_count = false;
    c->reload_pending = false;
}

static void schedule_reload(struct channel *c, int64_t t)
{
    int64_t n = c->n, phase = (t - c->load_tick) % n, start = t - phase;

    if (c->reload_pending) // decode_count() at reload_tick finds the newer one
        return;
    c->reload_low = c->mode == 3 && phase < high_half(c->n);
    c->reload_tick = start + (c->reload_low ? high_half(c->n) : n);
    c->reload_pending = true;
}

static void count_complete(struct channel *c, int64_t t)
{
    c->count_written = true;
    if (triggered(c)) {
        c->null_count = true;
    } else if (!periodic(c) || !c->armed || (!c->paused && c->n < 2)) {
        load(c, t);
    } else if (t < c->load_tick) {
        c->n = decode_count(c);
    } else if (c->paused) {
        c->null_count = true;
    } else {
        schedule_reload(c, t);
    }
}

static void write_count(struct channel *c, int64_t t, uint8_t value)
{
    switch (c->control >> CW_RW_SHIFT) {
    case RW_LSB: c->cr = value; break;
    case RW_MSB: c->cr = (uint16_t)(value << 8); break;
    default:
        if (!c->write_msb) {
            c->write_lsb = value;
            c->write_msb = true;
            if (c->mode == 0) { // the first byte stops counting and lowers OUT at once
                c->count_before = count(c, t);
                c->out_before = false;
                c->armed = false;
            }
            return;
        }
        c->write_msb = false;
        c->cr = (uint16_t)(value << 8 | c->write_lsb);
    }
    count_complete(c, t);
}

static void write_control(struct channel *c, int64_t t, uint8_t value)
{
    c->count_before = count(c, t);
    c->control = value & 0x3f;
    c->mode = (value >> CW_MODE_SHIFT) & 7;
    if (c->mode > 5) // the high bit of modes 2 and 3 is a don't-care
        c->mode -= 4;
    c->out_before = c->mode != 0;
    c->cr = 0;
    c->armed = c->paused = c->count_written = c->reload_pending = false;
    c->null_count = true;
    c->write_msb = c->read_msb = c->count_latched = c->status_latched = false;
}

static void latch_count(struct channel *c, int64_t t)
{
    if (c->count_latched)
        return;
    c->latch = count(c, t);
    c->count_latched = true;
}

static void latch_status(struct channel *c, int64_t t)
{
    bool null_count = c->null_count || c->reload_pending || (c->armed && t < c->load_tick);

    if (c->status_latched)
        return;
    c->status = c->control | (null_count ? STATUS_NULL : 0) | (out(c, t) ? STATUS_OUT : 0);
    c->status_latched = true;
}

static uint8_t read_count(struct channel *c, int64_t t)
{
    uint16_t value = c->count_latched ? c->latch : count(c, t);
    unsigned rw = c->control >> CW_RW_SHIFT;
    bool msb = rw == RW_MSB || (rw == RW_BOTH && c->read_msb);

    if (c->status_latched) {
        c->status_latched = false;
        return c->status;
    }
    if (rw == RW_BOTH)
        c->read_msb = !c->read_msb;
    if (rw != RW_BOTH || msb)
        c->count_latched = false;
    return (uint8_t)(msb ? value >> 8 : value);
}

static void set_gate(struct channel *c, int64_t t, bool gate)
{
    if (gate == c->gate)
        return;
    c->gate = gate;
    if (!gate) {
        if (!c->armed || triggered(c))
            return;
        int64_t e = elapsed(c, t);
        c->frozen = e < 0 ? 0 : e;
        c->paused = true;
        if (periodic(c))
            c->out_before = true;
        if (c->reload_pending) {
            c->reload_pending = false;
            c->null_count = true;
        }
    } else if (periodic(c) || triggered(c)) {
        if (c->count_written)
            load(c, t);
    } else if (c->paused) {
        c->paused = false;
        if (c->load_tick < t - c->frozen)
            c->load_tick = t - c->frozen;
    }
}

// ---- channel 0 and its interrupt

// Rising edges of OUT in (from, to]; no reload lies between.
static uint64_t rises(const struct channel *c, int64_t from, int64_t to)
{
    int64_t n = c->n, at;

    if (!c->armed || c->paused || to < c->load_tick || to <= from)
        return 0;
    if (periodic(c)) {
        if (n < 2)
            return 0;
        return (uint64_t)((to - c->load_tick) / n - (from < c->load_tick ? 0 : (from - c->load_tick) / n));
    }
    at = c->load_tick + n + (c->mode >= 4);
    return from < at && at <= to;
}

// The first tick after t with something to do; INT64_MAX: none.
static int64_t next_event(const struct channel *c, int64_t t)
{
    int64_t n = c->n, at = INT64_MAX;

    if (!c->armed || c->paused)
        return INT64_MAX;
    if (periodic(c)) {
        if (n >= 2)
            at = t < c->load_tick ? c->load_tick + n : c->load_tick + ((t - c->load_tick) / n + 1) * n;
        if (c->reload_pending && c->reload_tick > t && c->reload_tick < at)
            at = c->reload_tick;
        return at;
    }
    at = c->load_tick + n + (c->mode >= 4);
    return at > t ? at : INT64_MAX;
}

static void set_irq0(struct pit *p, bool level)
{
    level = level && p->irq0_enabled;
    if (level == p->irq0_level)
        return;
    p->irq0_level = level;
    irq_set(&p->irq0, level);
}

static uint64_t spacing_ns(const struct pit *p)
{
    uint64_t quarter_ns = time_scale(p->channel[0].n, NS / 4, PIT_HZ);
    return quarter_ns > MIN_SPACING_NS ? quarter_ns : MIN_SPACING_NS;
}

static void count_edges(struct pit *p, int64_t t)
{
    struct channel *c = &p->channel[0];
    uint64_t limit;

    if (c->reload_pending && t >= c->reload_tick) {
        p->owed += rises(c, p->counted_tick, c->reload_tick);
        p->counted_tick = c->reload_tick;
        sync(c, t);
    }
    p->owed += rises(c, p->counted_tick, t);
    p->counted_tick = t;
    limit = (uint64_t)MAX_OWED_SECONDS * PIT_HZ / (c->n ? c->n : 1) + 1;
    if (!p->irq0_enabled)
        p->owed = 0;
    else if (p->owed > limit)
        p->owed = limit;
}

static void pulse(struct pit *p, uint64_t now_ns)
{
    p->owed--;
    p->pulse_ns = now_ns;
    set_irq0(p, false);
    set_irq0(p, true);
}

static void arm(struct pit *p, int64_t t)
{
    int64_t next = next_event(&p->channel[0], t);

    if (!p->irq0_enabled)
        timer_cancel(&p->timer);
    else if (p->owed)
        timer_arm(&p->timer, p->pulse_ns + spacing_ns(p));
    else if (next == INT64_MAX)
        timer_cancel(&p->timer);
    else
        timer_arm(&p->timer, tick_ns(next));
}

// The line stays high between pulses although OUT has low phases: an 8259A forgets a request whose line falls
// before it is acknowledged, and here the host may be what keeps the guest from doing so in time.
static void expired(void *opaque, uint64_t now_ns)
{
    struct pit *p = opaque;
    int64_t t = tick_at(now_ns);

    count_edges(p, t);
    if (p->owed && now_ns >= p->pulse_ns + spacing_ns(p))
        pulse(p, now_ns);
    arm(p, t);
}

// ---- registers

static void control_write(struct pit *p, uint64_t now_ns, int64_t t, uint8_t value)
{
    unsigned select = value >> CW_SC_SHIFT;

    if (select == SC_READ_BACK) {
        for (unsigned i = 0; i < 3; i++) {
            if (!(value & (2u << i)))
                continue;
            if (!(value & RB_NO_COUNT))
                latch_count(&p->channel[i], t);
            if (!(value & RB_NO_STATUS))
                latch_status(&p->channel[i], t);
        }
        return;
    }
    if (!((value >> CW_RW_SHIFT) & 3)) {
        latch_count(&p->channel[select], t);
        return;
    }
    if (select == 0) {
        if (p->owed)
            pulse(p, now_ns);
        p->owed = 0;
    }
    write_control(&p->channel[select], t, value);
    if (select == 0)
        set_irq0(p, p->channel[0].mode != 0);
}

// A read changes nothing about when the timer is due: what it finds to be past is due already.
static int64_t begin_access(struct pit *p, uint64_t now_ns)
{
    int64_t t = tick_at(now_ns);

    count_edges(p, t);
    sync(&p->channel[1], t);
    sync(&p->channel[2], t);
    return t;
}

static uint32_t port_read(void *opaque, uint16_t port, unsigned size)
{
    struct pit *p = opaque;
    int64_t t = begin_access(p, timer_now(p->clock));
    uint32_t value = 0xff; // 43h: no operation, nobody drives the bus
    (void)size;

    if ((port & 3) != 3)
        value = read_count(&p->channel[port & 3], t);
    return value;
}

static void port_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    struct pit *p = opaque;
    uint64_t now_ns = timer_now(p->clock);
    int64_t t = begin_access(p, now_ns);
    (void)size;

    if ((port & 3) == 3)
        control_write(p, now_ns, t, (uint8_t)value);
    else
        write_count(&p->channel[port & 3], t, (uint8_t)value);
    if ((port & 3) == 0 && p->channel[0].mode == 0)
        set_irq0(p, false);
    arm(p, t);
}

// Each refresh cycle, requested by OUT 1, toggles bit 4.
static bool refresh_toggle(const struct channel *c, int64_t t)
{
    if (c->armed && periodic(c) && c->n >= 2 && t >= c->load_tick)
        return (elapsed(c, t) / c->n) & 1;
    return (t / REFRESH_COUNT) & 1;
}

static uint32_t port61_read(void *opaque, uint16_t port, unsigned size)
{
    struct pit *p = opaque;
    int64_t t = begin_access(p, timer_now(p->clock));
    uint32_t value = p->port61;
    (void)port, (void)size;

    if (refresh_toggle(&p->channel[1], t))
        value |= P61_REFRESH;
    if (out(&p->channel[2], t))
        value |= P61_OUT2;
    return value;
}

static void port61_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    struct pit *p = opaque;
    int64_t t = begin_access(p, timer_now(p->clock));
    (void)port, (void)size;

    p->port61 = value & P61_WRITABLE;
    set_gate(&p->channel[2], t, value & P61_GATE2);
}

void pit_set_irq0_enabled(struct pit *p, bool enabled)
{
    int64_t t = begin_access(p, timer_now(p->clock));

    if (!enabled) {
        set_irq0(p, false);
        p->owed = 0;
    }
    p->irq0_enabled = enabled;
    arm(p, t);
}

// The 8254 has no reset input; after power-on its mode is undefined. Here: mode 0, no count, OUT low.
static void reset(void *opaque)
{
    struct pit *p = opaque;

    for (unsigned i = 0; i < 3; i++) {
        struct channel *c = &p->channel[i];
        write_control(c, 0, RW_BOTH << CW_RW_SHIFT);
        c->count_before = 0;
        c->n = modulus(c);
        c->load_tick = c->reload_tick = c->frozen = 0;
        c->gate = i != 2;
    }
    p->port61 = 0;
    p->irq0_enabled = true;
    p->owed = 0;
    p->pulse_ns = 0;
    p->counted_tick = tick_at(timer_now(p->clock));
    timer_cancel(&p->timer);
    set_irq0(p, false);
}

static void stream_i64(struct stream *s, int64_t *p)
{
    uint64_t value = (uint64_t)*p;
    stream_u64(s, &value);
    *p = (int64_t)value;
}

static void channel_state(struct channel *c, struct stream *s)
{
    bool *flags[] = {&c->gate,       &c->count_written,  &c->armed,         &c->paused,
                     &c->null_count, &c->reload_pending, &c->reload_low,    &c->out_before,
                     &c->write_msb,  &c->read_msb,       &c->count_latched, &c->status_latched};

    stream_u8(s, &c->control);
    stream_u8(s, &c->mode);
    for (unsigned i = 0; i < sizeof flags / sizeof flags[0]; i++)
        stream_bool(s, flags[i]);
    stream_u8(s, &c->write_lsb);
    stream_u8(s, &c->status);
    stream_u16(s, &c->latch);
    stream_u16(s, &c->count_before);
    stream_u16(s, &c->cr);
    stream_u32_max(s, &c->n, 65536);
    stream_i64(s, &c->load_tick);
    stream_i64(s, &c->reload_tick);
    stream_i64(s, &c->frozen);
}

// What a stream may hold that no run of the chip could have made must still give sane arithmetic.
static void repair(struct channel *c, int64_t t)
{
    c->control &= 0x3f;
    if (c->mode > 5)
        c->mode = 0;
    if (!c->n)
        c->n = modulus(c);
    if (c->load_tick > t + 1 || c->load_tick < -65536)
        c->load_tick = t + 1;
    if (c->frozen < 0 || c->frozen > t + 65536)
        c->frozen = 0;
    if (c->reload_tick > t + 65536 || c->reload_tick < 0)
        c->reload_tick = t;
    if (!periodic(c))
        c->reload_pending = false;
}

static void state(void *opaque, struct stream *s)
{
    struct pit *p = opaque;

    stream_section(s, "pit", 1);
    for (unsigned i = 0; i < 3; i++)
        channel_state(&p->channel[i], s);
    stream_u8(s, &p->port61);
    stream_bool(s, &p->irq0_enabled);
    stream_bool(s, &p->irq0_level);
    stream_u64(s, &p->owed);
    stream_i64(s, &p->counted_tick);
    stream_u64(s, &p->pulse_ns);
    if (!s->loading)
        return;

    uint64_t now_ns = timer_now(p->clock);
    int64_t t = tick_at(now_ns);
    for (unsigned i = 0; i < 3; i++)
        repair(&p->channel[i], t);
    p->port61 &= P61_WRITABLE;
    if (p->counted_tick > t || p->counted_tick < 0)
        p->counted_tick = t;
    if (p->pulse_ns > now_ns)
        p->pulse_ns = now_ns;
    count_edges(p, t);
    p->irq0_level = p->irq0_level && p->irq0_enabled;
    if (p->irq0_enabled) // else the line is the HPET's
        irq_set(&p->irq0, p->irq0_level);
    arm(p, t);
}

static void destroy(void *opaque)
{
    struct pit *p = opaque;
    timer_cancel(&p->timer);
    bus_release(p->bus, PORT_CHANNEL0, 4);
    bus_release(p->bus, PORT_61, 1);
    free(p);
}

static const struct port_ops ports = {.read = port_read, .write = port_write};
static const struct port_ops port61_ports = {.read = port61_read, .write = port61_write};
const struct device_ops pit_device = {.name = "pit", .reset = reset, .state = state, .destroy = destroy};

struct pit *pit_create(struct bus *bus, struct timer_queue *clock, struct irq_line irq0)
{
    struct pit *p = calloc(1, sizeof *p);

    if (!p)
        return NULL;
    p->bus = bus;
    p->clock = clock;
    p->irq0 = irq0;
    timer_init(&p->timer, clock, expired, p);
    reset(p);
    if (bus_claim(bus, PORT_CHANNEL0, 4, &ports, p))
        goto fail;
    if (bus_claim(bus, PORT_61, 1, &port61_ports, p))
        goto fail_channels;
    return p;

fail_channels:
    bus_release(bus, PORT_CHANNEL0, 4);
fail:
    free(p);
    return NULL;
}
