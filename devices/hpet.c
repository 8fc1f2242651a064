// IA-PC HPET (specification 1.0a): a 64-bit main counter at 100 MHz and three comparators, each
// periodic-capable.
//
// Nothing runs per tick. While ENABLE_CNF is set the counter is base + elapsed, elapsed being ticks since
// `start_ns`. A comparator's next match is kept as a value of elapsed (`due`), which never wraps, and found
// again whenever the counter or the comparator is written. Matches of a periodic comparator that the host
// comes late for are owed to the guest and handed out one by one, up to four times as fast as programmed.
#include "devices/chips.h"
#include "mmu/mem.h"
#include <stdlib.h>

#define HPET_BASE   0xfed00000u
#define HPET_BYTES  0x1000u
#define COMPARATORS 3u
#define TICK_NS     10u
#define TICK_FS     10000000ull

// Registers (section 2.3.1), by the 8-byte unit they start.
#define GCAP_ID     0x000
#define GEN_CONF    0x010
#define GINTR_STA   0x020
#define MAIN_CNT    0x0f0
#define TN_FIRST    0x100
#define TN_STRIDE   0x20
#define TN_CONF_CAP 0x00
#define TN_COMP     0x08

#define GCAP_VALUE (TICK_FS << 32 | 0x8086ull << 16 | 1u << 15 | 1u << 13 | (COMPARATORS - 1) << 8 | 1u)
#define GEN_ENABLE 0x1u
#define GEN_LEGACY 0x2u

#define TN_INT_TYPE     0x0002u // 1: level
#define TN_INT_ENB      0x0004u
#define TN_TYPE         0x0008u // 1: periodic
#define TN_PER_INT_CAP  0x0010u
#define TN_SIZE_CAP     0x0020u
#define TN_VAL_SET      0x0040u
#define TN_32MODE       0x0100u
#define TN_ROUTE_SHIFT  9
#define TN_ROUTE        0x3e00u
#define TN_WRITABLE     (TN_INT_TYPE | TN_INT_ENB | TN_TYPE | TN_VAL_SET | TN_32MODE | TN_ROUTE)
#define TN_ROUTE_CAP    0x00f00000u // inputs 20-23
#define TN_CAPABILITIES ((uint64_t)TN_ROUTE_CAP << 32 | TN_PER_INT_CAP | TN_SIZE_CAP)

#define LEGACY_GSI0    2 // the I/O APIC input that IRQ 0 is wired to
#define LEGACY_GSI1    8
#define NOT_DUE        UINT64_MAX
#define FAR            (1ull << 59) // ticks: 180 years, and in nanoseconds still below 2^63
#define MIN_SPACING_NS 20000u
#define MAX_OWED_TICKS 6000000000ull // a minute

struct comparator {
    struct hpet *hpet;
    struct timer timer;
    uint32_t config;   // TN_WRITABLE
    uint64_t value;    // comparator register
    uint64_t period;   // last value written in periodic mode
    uint64_t due;      // elapsed at the next match, or NOT_DUE
    uint64_t owed;     // matches not given to the guest yet
    uint64_t pulse_ns; // time of the last one given
    int gsi;           // input whose line we hold up, or -1
};

struct hpet {
    struct timer_queue *clock;
    struct hpet_lines lines;
    uint32_t gen_conf;
    uint32_t gintr_sta;
    uint64_t base; // main counter at start_ns, or while halted
    uint64_t start_ns;
    bool legacy; // as last told to lines.legacy
    struct comparator comparator[COMPARATORS];
};

// ---- counter

static bool enabled(const struct hpet *h)
{
    return h->gen_conf & GEN_ENABLE;
}

static uint64_t elapsed(const struct hpet *h, uint64_t now_ns)
{
    return now_ns > h->start_ns ? (now_ns - h->start_ns) / TICK_NS : 0;
}

static uint64_t main_counter(const struct hpet *h, uint64_t now_ns)
{
    return enabled(h) ? h->base + elapsed(h, now_ns) : h->base;
}

static uint64_t width_mask(const struct comparator *c)
{
    return c->config & TN_32MODE ? UINT32_MAX : UINT64_MAX;
}

static bool periodic(const struct comparator *c)
{
    return c->config & TN_TYPE;
}

// Ticks from one match to the next; 0: more than the clock will ever count.
static uint64_t interval(const struct comparator *c)
{
    uint64_t period = periodic(c) ? c->period & width_mask(c) : 0;

    if (period)
        return period < FAR ? period : 0;
    return c->config & TN_32MODE ? 1ull << 32 : 0;
}

static unsigned number(const struct comparator *c)
{
    return (unsigned)(c - c->hpet->comparator);
}

// ---- interrupts

static int wanted_gsi(const struct comparator *c)
{
    unsigned route = (c->config & TN_ROUTE) >> TN_ROUTE_SHIFT;

    if (c->hpet->legacy && number(c) < 2)
        return number(c) ? LEGACY_GSI1 : LEGACY_GSI0;
    return TN_ROUTE_CAP >> route & 1 ? (int)route : -1;
}

static void hold(struct comparator *c, int gsi)
{
    if (c->gsi == gsi)
        return;
    if (c->gsi >= 0)
        irq_set(&c->hpet->lines.gsi[c->gsi], 0);
    c->gsi = gsi;
    if (gsi >= 0)
        irq_set(&c->hpet->lines.gsi[gsi], 1);
}

static bool can_interrupt(const struct comparator *c)
{
    return enabled(c->hpet) && (c->config & TN_INT_ENB);
}

// After a change of configuration or status: a level follows its status bit, an edge's line goes or stays.
static void update_line(struct comparator *c)
{
    int gsi = can_interrupt(c) ? wanted_gsi(c) : -1;

    if (c->config & TN_INT_TYPE)
        hold(c, c->hpet->gintr_sta >> number(c) & 1 ? gsi : -1);
    else if (c->gsi != gsi)
        hold(c, -1);
}

// An edge's line stays up until the next edge, for an 8259A wants it up until the interrupt is acknowledged.
static void deliver(struct comparator *c, uint64_t now_ns)
{
    c->owed--;
    c->pulse_ns = now_ns;
    if (c->config & TN_INT_TYPE) {
        c->hpet->gintr_sta |= 1u << number(c);
        update_line(c);
        return;
    }
    hold(c, -1);
    if (can_interrupt(c))
        hold(c, wanted_gsi(c));
}

static uint64_t spacing_ns(const struct comparator *c)
{
    uint64_t ticks = interval(c), quarter_ns;

    if (!periodic(c) || !ticks)
        return 0;
    quarter_ns = ticks * TICK_NS / 4;
    return quarter_ns > MIN_SPACING_NS ? quarter_ns : MIN_SPACING_NS;
}

// Counts the matches up to now and moves on to the next one.
static void count_matches(struct comparator *c, uint64_t now_ns)
{
    uint64_t at = elapsed(c->hpet, now_ns), step = interval(c), n = 1, limit;

    if (!enabled(c->hpet) || c->due == NOT_DUE || c->due > at)
        return;
    if (step) {
        n = (at - c->due) / step + 1;
        c->due += n * step;
    } else {
        c->due = NOT_DUE;
    }
    if (!periodic(c)) {
        c->owed = 1;
        return;
    }
    c->value = (c->value + n * c->period) & width_mask(c);
    limit = step ? MAX_OWED_TICKS / step + 1 : 1;
    c->owed = c->owed + n > limit ? limit : c->owed + n;
}

static void service(struct comparator *c, uint64_t now_ns)
{
    uint64_t next_ns = UINT64_MAX;

    count_matches(c, now_ns);
    if (!(c->config & (TN_INT_TYPE | TN_INT_ENB))) {
        // Its matches show in nothing but registers, and every access to those comes here first.
        c->owed = 0;
        timer_cancel(&c->timer);
        return;
    }
    if (c->owed && (!c->pulse_ns || now_ns >= c->pulse_ns + spacing_ns(c)))
        deliver(c, now_ns);
    if (enabled(c->hpet) && c->due != NOT_DUE)
        next_ns = c->hpet->start_ns + c->due * TICK_NS;
    if (c->owed && c->pulse_ns + spacing_ns(c) < next_ns)
        next_ns = c->pulse_ns + spacing_ns(c);
    timer_arm(&c->timer, next_ns);
}

static void expired(void *opaque, uint64_t now_ns)
{
    service(opaque, now_ns);
}

// Finds the next match after the counter, the comparator or its width changed. A match now counts.
static void find_match(struct comparator *c, uint64_t now_ns)
{
    uint64_t distance = (c->value - main_counter(c->hpet, now_ns)) & width_mask(c);

    c->due = distance < FAR ? elapsed(c->hpet, now_ns) + distance : NOT_DUE;
    c->owed = 0;
    service(c, now_ns);
}

static void find_matches(struct hpet *h, uint64_t now_ns)
{
    for (unsigned i = 0; i < COMPARATORS; i++)
        find_match(&h->comparator[i], now_ns);
}

// ---- registers

static bool legacy_wanted(const struct hpet *h)
{
    return (h->gen_conf & (GEN_ENABLE | GEN_LEGACY)) == (GEN_ENABLE | GEN_LEGACY);
}

static void set_legacy(struct hpet *h)
{
    bool legacy = legacy_wanted(h);

    if (legacy != h->legacy) {
        for (unsigned i = 0; i < COMPARATORS; i++)
            hold(&h->comparator[i], -1);
        h->legacy = legacy;
        if (h->lines.legacy)
            h->lines.legacy(h->lines.opaque, legacy);
    }
    for (unsigned i = 0; i < COMPARATORS; i++)
        update_line(&h->comparator[i]);
}

static void write_gen_conf(struct hpet *h, uint64_t now_ns, uint32_t value)
{
    bool was_enabled = enabled(h);
    uint64_t counter = main_counter(h, now_ns);

    h->gen_conf = value & (GEN_ENABLE | GEN_LEGACY);
    if (enabled(h) != was_enabled) {
        h->base = counter;
        h->start_ns = now_ns;
    }
    set_legacy(h);
    if (enabled(h) != was_enabled)
        find_matches(h, now_ns);
}

static void write_gintr_sta(struct hpet *h, uint32_t value)
{
    h->gintr_sta &= ~value;
    for (unsigned i = 0; i < COMPARATORS; i++)
        update_line(&h->comparator[i]);
}

static void write_config(struct comparator *c, uint64_t now_ns, uint32_t value)
{
    uint32_t old = c->config;

    value &= TN_WRITABLE;
    if (!(TN_ROUTE_CAP >> ((value & TN_ROUTE) >> TN_ROUTE_SHIFT) & 1)) // an input we lack doesn't read back
        value = (value & ~TN_ROUTE) | (old & TN_ROUTE);
    c->config = value;
    if (value & TN_32MODE) {
        c->value &= UINT32_MAX;
        c->period &= UINT32_MAX;
    }
    update_line(c);
    if ((old ^ value) & (TN_TYPE | TN_32MODE))
        find_match(c, now_ns);
    else
        service(c, now_ns);
}

// In periodic mode every write sets the period; the comparator itself only after VAL_SET (2.3.9.2.2).
static void write_comparator(struct comparator *c, uint64_t now_ns, uint64_t value, uint64_t mask)
{
    if (periodic(c))
        c->period = ((c->period & ~mask) | (value & mask)) & width_mask(c);
    if (!periodic(c) || (c->config & TN_VAL_SET)) {
        c->value = ((c->value & ~mask) | (value & mask)) & width_mask(c);
        c->config &= ~TN_VAL_SET;
    }
    find_match(c, now_ns);
}

static uint64_t read_register(struct hpet *h, uint64_t now_ns, unsigned offset)
{
    switch (offset) {
    case GCAP_ID: return GCAP_VALUE;
    case GEN_CONF: return h->gen_conf;
    case GINTR_STA: return h->gintr_sta;
    case MAIN_CNT: return main_counter(h, now_ns);
    default: break;
    }
    if (offset < TN_FIRST || offset >= TN_FIRST + COMPARATORS * TN_STRIDE)
        return 0;
    struct comparator *c = &h->comparator[(offset - TN_FIRST) / TN_STRIDE];
    switch (offset % TN_STRIDE) {
    case TN_CONF_CAP: return TN_CAPABILITIES | c->config;
    case TN_COMP: return c->value;
    default: return 0; // FSB interrupts are not offered
    }
}

static uint64_t mmio_read(void *opaque, uint64_t offset, unsigned size)
{
    struct hpet *h = opaque;
    uint64_t now_ns = timer_now(h->clock), value;

    if (offset >= HPET_BYTES)
        return UINT64_MAX;
    if ((offset & ~7ull) != MAIN_CNT) { // status and comparators move with time; the counter is read often
        for (unsigned i = 0; i < COMPARATORS; i++)
            service(&h->comparator[i], now_ns);
    }
    value = read_register(h, now_ns, (unsigned)offset & ~7u) >> (8 * (offset & 7));
    return size >= 8 ? value : value & ((1ull << (8 * size)) - 1);
}

// Accesses are aligned and of 4 or 8 bytes (2.3.1); others are ignored.
static void mmio_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct hpet *h = opaque;
    uint64_t now_ns = timer_now(h->clock), mask = UINT64_MAX, counter;
    unsigned at = (unsigned)offset & ~7u;

    if (offset >= HPET_BYTES || (size != 4 && size != 8) || offset % size)
        return;
    if (size == 4) {
        mask = offset & 4 ? (uint64_t)UINT32_MAX << 32 : UINT32_MAX;
        value = offset & 4 ? value << 32 : value & UINT32_MAX;
    }
    for (unsigned i = 0; i < COMPARATORS; i++)
        service(&h->comparator[i], now_ns);

    bool low = mask & UINT32_MAX;
    switch (at) {
    case GEN_CONF:
        if (low)
            write_gen_conf(h, now_ns, (uint32_t)value);
        return;
    case GINTR_STA: write_gintr_sta(h, (uint32_t)value); return;
    case MAIN_CNT:
        counter = main_counter(h, now_ns);
        h->base = (counter & ~mask) | (value & mask);
        h->start_ns = now_ns;
        find_matches(h, now_ns);
        return;
    default: break;
    }
    if (at < TN_FIRST || at >= TN_FIRST + COMPARATORS * TN_STRIDE)
        return;
    struct comparator *c = &h->comparator[(at - TN_FIRST) / TN_STRIDE];
    if (at % TN_STRIDE == TN_CONF_CAP && low)
        write_config(c, now_ns, (uint32_t)value);
    else if (at % TN_STRIDE == TN_COMP)
        write_comparator(c, now_ns, value, mask);
}

static void reset(void *opaque)
{
    struct hpet *h = opaque;

    h->gen_conf = 0;
    h->gintr_sta = 0;
    h->base = 0;
    h->start_ns = 0;
    for (unsigned i = 0; i < COMPARATORS; i++) {
        struct comparator *c = &h->comparator[i];
        hold(c, -1);
        timer_cancel(&c->timer);
        c->config = 0;
        c->value = UINT64_MAX;
        c->period = 0;
        c->due = NOT_DUE;
        c->owed = 0;
        c->pulse_ns = 0;
    }
    set_legacy(h);
}

static void comparator_state(struct comparator *c, struct stream *s)
{
    uint32_t held = (uint32_t)(c->gsi + 1);

    stream_u32(s, &c->config);
    stream_u64(s, &c->value);
    stream_u64(s, &c->period);
    stream_u64(s, &c->due);
    stream_u64(s, &c->owed);
    stream_u64(s, &c->pulse_ns);
    stream_u32_max(s, &held, 24);
    if (s->loading && !s->error)
        c->gsi = (int)held - 1;
}

static void repair(struct hpet *h, uint64_t now_ns)
{
    h->gen_conf &= GEN_ENABLE | GEN_LEGACY;
    h->gintr_sta &= (1u << COMPARATORS) - 1;
    if (h->start_ns > now_ns)
        h->start_ns = now_ns;
    for (unsigned i = 0; i < COMPARATORS; i++) {
        struct comparator *c = &h->comparator[i];
        c->config &= TN_WRITABLE;
        c->value &= width_mask(c);
        c->period &= width_mask(c);
        if (c->due > FAR + elapsed(h, now_ns))
            c->due = NOT_DUE;
        if (c->owed > MAX_OWED_TICKS)
            c->owed = 0;
        if (c->pulse_ns > now_ns)
            c->pulse_ns = now_ns;
    }
}

static void set_lines(struct hpet *h, const int gsi[COMPARATORS], int level)
{
    for (unsigned i = 0; i < COMPARATORS; i++)
        if (gsi[i] >= 0)
            irq_set(&h->lines.gsi[gsi[i]], level);
}

static bool held_by_any(const struct hpet *h, int gsi)
{
    for (unsigned i = 0; i < COMPARATORS; i++)
        if (h->comparator[i].gsi == gsi)
            return true;
    return false;
}

// Loading makes no edge on a line that is up before and after: the interrupt controllers have their own
// state.
static void state(void *opaque, struct stream *s)
{
    struct hpet *h = opaque;
    int before[COMPARATORS], after[COMPARATORS];

    for (unsigned i = 0; i < COMPARATORS; i++)
        before[i] = h->comparator[i].gsi;
    stream_section(s, "hpet", 1);
    stream_u32(s, &h->gen_conf);
    stream_u32(s, &h->gintr_sta);
    stream_u64(s, &h->base);
    stream_u64(s, &h->start_ns);
    for (unsigned i = 0; i < COMPARATORS; i++)
        comparator_state(&h->comparator[i], s);
    if (!s->loading)
        return;

    uint64_t now_ns = timer_now(h->clock);
    repair(h, now_ns);
    h->legacy = legacy_wanted(h);
    for (unsigned i = 0; i < COMPARATORS; i++) {
        struct comparator *c = &h->comparator[i];
        if (!can_interrupt(c) || c->gsi != wanted_gsi(c))
            c->gsi = -1;
    }
    for (unsigned i = 0; i < COMPARATORS; i++) {
        after[i] = h->comparator[i].gsi;
        if (held_by_any(h, before[i]))
            before[i] = -1;
    }
    set_lines(h, before, 0);
    set_lines(h, after, 1);
    if (h->lines.legacy)
        h->lines.legacy(h->lines.opaque, h->legacy);
    for (unsigned i = 0; i < COMPARATORS; i++) {
        update_line(&h->comparator[i]);
        service(&h->comparator[i], now_ns);
    }
}

static void destroy(void *opaque)
{
    struct hpet *h = opaque;
    for (unsigned i = 0; i < COMPARATORS; i++)
        timer_cancel(&h->comparator[i].timer);
    free(h);
}

static const struct mmio_ops mmio = {.read = mmio_read, .write = mmio_write};
const struct device_ops hpet_device = {.name = "hpet", .reset = reset, .state = state, .destroy = destroy};

struct hpet *hpet_create(struct mem_map *mem, struct timer_queue *clock, struct hpet_lines lines)
{
    struct hpet *h = calloc(1, sizeof *h);

    if (!h)
        return NULL;
    h->clock = clock;
    h->lines = lines;
    for (unsigned i = 0; i < COMPARATORS; i++) {
        struct comparator *c = &h->comparator[i];
        c->hpet = h;
        c->gsi = -1;
        timer_init(&c->timer, clock, expired, c);
    }
    reset(h);
    if (mem_add_mmio(mem, HPET_BASE, HPET_BYTES, &mmio, h, "hpet") < 0) {
        free(h);
        return NULL;
    }
    return h;
}
