// The MC146818 real-time clock of a PC with 256 bytes of CMOS RAM (Motorola MC146818 datasheet; PIIX4
// datasheet 5.2.2 for the upper bank and the divider).
//
// The time lives in the registers as the guest wrote it, as in the chip; nothing runs per second. An access
// first applies the updates that have passed since the last one. Two counters follow from the machine's
// clock: seconds, and periods of the 32,768 Hz time base; `divider_ns` is what the guest shifted them by when
// it last reset the divider.
#include "devices/chips.h"
#include <stdlib.h>
#include <string.h>

#define PORT_INDEX    0x70
#define PORT_DATA     0x71
#define PORT_INDEX_HI 0x72
#define PORT_DATA_HI  0x73

enum rtc_register {
    RTC_SECONDS,
    RTC_SECONDS_ALARM,
    RTC_MINUTES,
    RTC_MINUTES_ALARM,
    RTC_HOURS,
    RTC_HOURS_ALARM,
    RTC_DAY_OF_WEEK,
    RTC_DAY_OF_MONTH,
    RTC_MONTH,
    RTC_YEAR,
    RTC_A,
    RTC_B,
    RTC_C,
    RTC_D,
    RTC_CENTURY = 0x32,
};

#define A_UIP      0x80
#define A_DV_SHIFT 4
#define A_DV_RUN   2 // 32,768 Hz crystal, divider running
#define A_RS       0x0f
#define B_SET      0x80
#define B_PIE      0x40
#define B_AIE      0x20
#define B_UIE      0x10
#define B_SQWE     0x08
#define B_DM       0x04 // binary
#define B_24H      0x02
#define C_IRQF     0x80
#define C_PF       0x40
#define C_AF       0x20
#define C_UF       0x10
#define D_VRT      0x80
#define HOURS_PM   0x80
#define ALARM_ANY  0xc0 // both bits set: don't care

#define NS               1000000000u
#define CRYSTAL_HZ       32768u
#define UIP_NS           244140u // 8 periods of the crystal before an update (table 6: tBUC)
#define DAY_SECONDS      86400
#define MIN_REPEAT_NS    10000u // from a read of register C to a periodic interrupt that is overdue
#define MAX_OWED_SECONDS 10u

struct rtc {
    struct bus *bus;
    struct timer_queue *clock;
    struct timer timer;
    struct irq_line irq8;
    uint8_t cmos[256];
    uint8_t index, index_hi;
    bool irq8_enabled, irq8_level;
    uint64_t divider_ns; // added to the machine's clock: the divider chain's own time
    uint64_t seconds;    // of the divider, up to which updates are applied
    uint64_t crystal;    // periods of the crystal, up to which periodic events are counted
    uint64_t owed;       // periodic interrupts the guest has not had yet
    uint64_t repeat_ns;  // an owed one may not come earlier
};

// ---- the divider

static bool running(const struct rtc *r)
{
    return (r->cmos[RTC_A] >> A_DV_SHIFT & 7) == A_DV_RUN;
}

static bool updating(const struct rtc *r)
{
    return running(r) && !(r->cmos[RTC_B] & B_SET);
}

static uint64_t divider_ns(const struct rtc *r, uint64_t now_ns)
{
    return now_ns + r->divider_ns;
}

static uint64_t crystal_at(const struct rtc *r, uint64_t now_ns)
{
    return time_scale(divider_ns(r, now_ns), CRYSTAL_HZ, NS);
}

// Periods of the crystal between two periodic events; 0: none (table 5).
static uint64_t periodic_crystals(const struct rtc *r)
{
    unsigned rs = r->cmos[RTC_A] & A_RS;

    if (!rs || !running(r))
        return 0;
    return 1u << ((rs < 3 ? rs + 7 : rs) - 1);
}

static uint64_t quarter_period_ns(const struct rtc *r)
{
    return time_scale(periodic_crystals(r), NS / 4, CRYSTAL_HZ);
}

// ---- time of day and calendar

struct calendar {
    int64_t day;    // since 1970-01-01
    int64_t second; // of the day
    bool century;
};

static unsigned decode(const struct rtc *r, uint8_t value)
{
    return r->cmos[RTC_B] & B_DM ? value : (value >> 4) * 10u + (value & 15);
}

static uint8_t encode(const struct rtc *r, unsigned value)
{
    return (uint8_t)(r->cmos[RTC_B] & B_DM ? value : (value / 10) << 4 | value % 10);
}

static unsigned decode_hours(const struct rtc *r, uint8_t value)
{
    if (r->cmos[RTC_B] & B_24H)
        return decode(r, value);
    return decode(r, value & 0x7f) % 12 + (value & HOURS_PM ? 12 : 0);
}

static uint8_t encode_hours(const struct rtc *r, unsigned hours)
{
    if (r->cmos[RTC_B] & B_24H)
        return encode(r, hours);
    return encode(r, hours % 12 ? hours % 12 : 12) | (hours >= 12 ? HOURS_PM : 0);
}

// Days from 1970-01-01 to a Gregorian date; years are counted from March so that the leap day ends one.
static int64_t days_of(int64_t year, unsigned month, unsigned day)
{
    int64_t y = month > 2 ? year : year - 1;
    int64_t day_of_year = (153 * (int64_t)(month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1;

    return 365 * y + y / 4 - y / 100 + y / 400 + day_of_year - 719468;
}

static void date_of(int64_t days, int64_t *year, unsigned *month, unsigned *day)
{
    int64_t d = days + 719468, era = d / 146097, of_era = d % 146097;
    int64_t y = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    int64_t of_year = of_era - (365 * y + y / 4 - y / 100);
    int64_t m = (5 * of_year + 2) / 153;

    *day = (unsigned)(of_year - (153 * m + 2) / 5 + 1);
    *month = (unsigned)(m < 10 ? m + 3 : m - 9);
    *year = era * 400 + y + (*month <= 2);
}

// The registers as a point in time. What is no time of day or date is brought into range; without a sane
// century byte the years are those of 20xx.
static struct calendar calendar_of(const struct rtc *r)
{
    const uint8_t *c = r->cmos;
    unsigned month = decode(r, c[RTC_MONTH]), day = decode(r, c[RTC_DAY_OF_MONTH]);
    unsigned century = decode(r, c[RTC_CENTURY]);
    bool sane = century >= 19 && century <= 99;
    int64_t year = (int64_t)(sane ? century : 20) * 100 + decode(r, c[RTC_YEAR]) % 100;

    month = month < 1 ? 1 : month > 12 ? 12 : month;
    day = day < 1 ? 1 : day > 31 ? 31 : day;
    return (struct calendar){
        .day = days_of(year, month, day),
        .second = decode_hours(r, c[RTC_HOURS]) % 24 * 3600 + decode(r, c[RTC_MINUTES]) % 60 * 60 +
                  decode(r, c[RTC_SECONDS]) % 60,
        .century = sane,
    };
}

static void set_calendar(struct rtc *r, const struct calendar *t)
{
    int64_t year;
    unsigned month, day, second = (unsigned)t->second;

    date_of(t->day, &year, &month, &day);
    r->cmos[RTC_SECONDS] = encode(r, second % 60);
    r->cmos[RTC_MINUTES] = encode(r, second / 60 % 60);
    r->cmos[RTC_HOURS] = encode_hours(r, second / 3600);
    r->cmos[RTC_DAY_OF_MONTH] = encode(r, day);
    r->cmos[RTC_MONTH] = encode(r, month);
    r->cmos[RTC_YEAR] = encode(r, (unsigned)(year % 100));
    if (t->century)
        r->cmos[RTC_CENTURY] = encode(r, (unsigned)(year / 100 % 100));
}

// Seconds from `second` of the day to the next one the alarm matches, 1..86400; 0: never.
static int64_t alarm_in(const struct rtc *r, int64_t second)
{
    const uint8_t *c = r->cmos;
    bool any_h = (c[RTC_HOURS_ALARM] & ALARM_ANY) == ALARM_ANY;
    bool any_m = (c[RTC_MINUTES_ALARM] & ALARM_ANY) == ALARM_ANY;
    bool any_s = (c[RTC_SECONDS_ALARM] & ALARM_ANY) == ALARM_ANY;
    unsigned hour = decode_hours(r, c[RTC_HOURS_ALARM]), minute = decode(r, c[RTC_MINUTES_ALARM]);
    unsigned sec = decode(r, c[RTC_SECONDS_ALARM]);
    int64_t t = second + 1, end = second + DAY_SECONDS;

    while (t <= end) { // skips whole hours, then minutes, that don't match
        if (!any_h && t / 3600 % 24 != hour)
            t = (t / 3600 + 1) * 3600;
        else if (!any_m && t / 60 % 60 != minute)
            t = (t / 60 + 1) * 60;
        else if (!any_s && t % 60 != sec)
            t++;
        else
            return t - second;
    }
    return 0;
}

// n update cycles.
static void advance(struct rtc *r, uint64_t n)
{
    struct calendar t = calendar_of(r);
    int64_t alarm = alarm_in(r, t.second);
    int64_t days = (t.second + (int64_t)n) / DAY_SECONDS;
    unsigned weekday = decode(r, r->cmos[RTC_DAY_OF_WEEK]);

    r->cmos[RTC_C] |= C_UF;
    if (alarm && (uint64_t)alarm <= n)
        r->cmos[RTC_C] |= C_AF;
    t.day += days;
    t.second = (t.second + (int64_t)n) % DAY_SECONDS;
    set_calendar(r, &t);
    if (days)
        r->cmos[RTC_DAY_OF_WEEK] = encode(r, (unsigned)((weekday + 6 + (uint64_t)days) % 7) + 1);
}

// ---- events

static void sync(struct rtc *r, uint64_t now_ns)
{
    uint64_t seconds = divider_ns(r, now_ns) / NS, crystal = crystal_at(r, now_ns);
    uint64_t period = periodic_crystals(r), events;

    if (updating(r) && seconds > r->seconds)
        advance(r, seconds - r->seconds);
    r->seconds = seconds;
    if (period && (events = crystal / period - r->crystal / period) > 0) {
        uint64_t limit = (uint64_t)MAX_OWED_SECONDS * CRYSTAL_HZ / period;
        if (r->cmos[RTC_B] & B_PIE)
            r->owed = r->owed + events > limit ? limit : r->owed + events;
        else
            r->cmos[RTC_C] |= C_PF;
    }
    r->crystal = crystal;
    if (r->owed && !(r->cmos[RTC_C] & C_PF) && now_ns >= r->repeat_ns) {
        r->owed--;
        r->cmos[RTC_C] |= C_PF;
        r->repeat_ns = now_ns + quarter_period_ns(r);
    }
}

static bool interrupting(const struct rtc *r)
{
    return r->cmos[RTC_C] & r->cmos[RTC_B] & (C_PF | C_AF | C_UF);
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

// A flag that is set already keeps the line up until register C is read: nothing to wait for.
static uint64_t next_event_ns(const struct rtc *r, uint64_t now_ns)
{
    uint8_t wanted = r->cmos[RTC_B] & (uint8_t)~r->cmos[RTC_C];
    uint64_t next_ns = UINT64_MAX, period = periodic_crystals(r);

    if (updating(r) && (wanted & B_UIE))
        next_ns = (r->seconds + 1) * NS - r->divider_ns;
    if (updating(r) && (wanted & B_AIE)) {
        int64_t alarm = alarm_in(r, calendar_of(r).second);
        if (alarm)
            next_ns = earlier(next_ns, (r->seconds + (uint64_t)alarm) * NS - r->divider_ns);
    }
    if (period && (wanted & B_PIE)) {
        uint64_t crystal = (r->crystal / period + 1) * period;
        uint64_t periodic_ns = time_scale_up(crystal, NS, CRYSTAL_HZ) - r->divider_ns;
        if (r->owed)
            periodic_ns = r->repeat_ns > now_ns ? r->repeat_ns : now_ns + 1;
        next_ns = earlier(next_ns, periodic_ns);
    }
    return next_ns;
}

static void update(struct rtc *r, uint64_t now_ns)
{
    bool level = interrupting(r) && r->irq8_enabled;

    if (level != r->irq8_level) { // while the HPET has IRQ 8 the line is its, and we say nothing
        r->irq8_level = level;
        irq_set(&r->irq8, level);
    }
    timer_arm(&r->timer, next_event_ns(r, now_ns));
}

static void expired(void *opaque, uint64_t now_ns)
{
    struct rtc *r = opaque;
    sync(r, now_ns);
    update(r, now_ns);
}

// ---- registers

static uint8_t read_register(struct rtc *r, uint64_t now_ns, unsigned index)
{
    uint8_t value = r->cmos[index];

    switch (index) {
    case RTC_A:
        if (updating(r) && divider_ns(r, now_ns) % NS >= NS - UIP_NS)
            value |= A_UIP;
        break;
    case RTC_C:
        if (interrupting(r))
            value |= C_IRQF;
        if ((value & C_PF) && r->repeat_ns < now_ns + MIN_REPEAT_NS)
            r->repeat_ns = now_ns + MIN_REPEAT_NS;
        r->cmos[RTC_C] = 0;
        break;
    default: break;
    }
    return value;
}

static void write_a(struct rtc *r, uint64_t now_ns, uint8_t value)
{
    bool was_running = running(r);

    if ((value ^ r->cmos[RTC_A]) & A_RS)
        r->owed = 0;
    r->cmos[RTC_A] = value & (uint8_t)~A_UIP;
    if (!was_running && running(r)) // the first update comes half a second later ("divider control")
        r->divider_ns = (NS + NS / 2 - now_ns % NS) % NS;
    r->seconds = divider_ns(r, now_ns) / NS;
    r->crystal = crystal_at(r, now_ns);
}

static void write_b(struct rtc *r, uint8_t value)
{
    if ((value & B_SET) && !(r->cmos[RTC_B] & B_SET))
        value &= (uint8_t)~B_UIE;
    if ((value ^ r->cmos[RTC_B]) & B_PIE) {
        r->owed = 0;
        r->repeat_ns = 0;
    }
    r->cmos[RTC_B] = value;
}

static uint32_t port_read(void *opaque, uint16_t port, unsigned size)
{
    struct rtc *r = opaque;
    uint64_t now_ns = timer_now(r->clock);
    uint8_t value;
    (void)size;

    switch (port) {
    case PORT_DATA:
        sync(r, now_ns);
        value = read_register(r, now_ns, r->index & 0x7f);
        update(r, now_ns);
        return value;
    case PORT_INDEX_HI: return r->index_hi;
    case PORT_DATA_HI: return r->cmos[0x80 | r->index_hi];
    default: return 0xff; // 70h is write-only
    }
}

static void port_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    struct rtc *r = opaque;
    uint64_t now_ns = timer_now(r->clock);
    (void)size;

    switch (port) {
    case PORT_INDEX:
        r->index = (uint8_t)value;
        return; // bit 7, NMI mask: no NMI source passes through it here
    case PORT_INDEX_HI: r->index_hi = value & 0x7f; return;
    case PORT_DATA_HI: r->cmos[0x80 | r->index_hi] = (uint8_t)value; return;
    default: break;
    }
    sync(r, now_ns);
    switch (r->index & 0x7f) {
    case RTC_A: write_a(r, now_ns, (uint8_t)value); break;
    case RTC_B: write_b(r, (uint8_t)value); break;
    case RTC_C:
    case RTC_D: break; // read-only
    default: r->cmos[r->index & 0x7f] = (uint8_t)value;
    }
    update(r, now_ns);
}

void rtc_set_cmos(struct rtc *r, unsigned index, uint8_t value)
{
    if (index > RTC_D && index < sizeof r->cmos)
        r->cmos[index] = value;
}

void rtc_set_irq8_enabled(struct rtc *r, bool enabled)
{
    uint64_t now_ns = timer_now(r->clock);

    sync(r, now_ns);
    r->irq8_enabled = enabled;
    update(r, now_ns);
}

// The battery keeps time and RAM; the RESET pin clears the interrupt enables and flags.
static void reset(void *opaque)
{
    struct rtc *r = opaque;
    uint64_t now_ns = timer_now(r->clock);

    sync(r, now_ns);
    r->cmos[RTC_B] &= (uint8_t) ~(B_PIE | B_AIE | B_UIE | B_SQWE);
    r->cmos[RTC_C] = 0;
    r->index = r->index_hi = 0;
    r->owed = 0;
    r->repeat_ns = 0;
    r->irq8_enabled = true;
    update(r, now_ns);
}

static void state(void *opaque, struct stream *s)
{
    struct rtc *r = opaque;

    if (!s->loading)
        sync(r, timer_now(r->clock));
    stream_section(s, "rtc", 1);
    stream_bytes(s, r->cmos, sizeof r->cmos);
    stream_u8(s, &r->index);
    stream_u8(s, &r->index_hi);
    stream_bool(s, &r->irq8_enabled);
    stream_u64(s, &r->divider_ns);
    stream_u64(s, &r->seconds);
    stream_u64(s, &r->crystal);
    stream_u64(s, &r->owed);
    stream_u64(s, &r->repeat_ns);
    if (!s->loading)
        return;

    uint64_t now_ns = timer_now(r->clock);
    r->index_hi &= 0x7f;
    r->cmos[RTC_A] &= (uint8_t)~A_UIP;
    r->cmos[RTC_C] &= C_PF | C_AF | C_UF;
    r->cmos[RTC_D] = D_VRT;
    r->divider_ns %= NS;
    if (r->seconds > divider_ns(r, now_ns) / NS)
        r->seconds = divider_ns(r, now_ns) / NS;
    if (r->crystal > crystal_at(r, now_ns))
        r->crystal = crystal_at(r, now_ns);
    if (r->owed > (uint64_t)MAX_OWED_SECONDS * CRYSTAL_HZ)
        r->owed = 0;
    if (r->repeat_ns > now_ns + NS)
        r->repeat_ns = now_ns;
    sync(r, now_ns);
    r->irq8_level = interrupting(r) && r->irq8_enabled;
    if (r->irq8_enabled)
        irq_set(&r->irq8, r->irq8_level);
    update(r, now_ns);
}

static void destroy(void *opaque)
{
    struct rtc *r = opaque;
    timer_cancel(&r->timer);
    bus_release(r->bus, PORT_INDEX, 4);
    free(r);
}

static const struct port_ops ports = {.read = port_read, .write = port_write};
const struct device_ops rtc_device = {.name = "rtc", .reset = reset, .state = state, .destroy = destroy};

struct rtc *rtc_create(struct bus *bus, struct timer_queue *clock, struct irq_line irq8,
                       uint64_t start_unix_ns)
{
    struct rtc *r = calloc(1, sizeof *r);

    if (!r)
        return NULL;
    r->bus = bus;
    r->clock = clock;
    r->irq8 = irq8;
    timer_init(&r->timer, clock, expired, r);

    uint64_t now_ns = timer_now(clock), unix_s = (start_unix_ns + now_ns) / NS;
    struct calendar t = {
        .day = (int64_t)(unix_s / DAY_SECONDS), .second = (int64_t)(unix_s % DAY_SECONDS), .century = true};
    r->cmos[RTC_A] = A_DV_RUN << A_DV_SHIFT | 6; // 1,024 Hz
    r->cmos[RTC_B] = B_24H;
    r->cmos[RTC_D] = D_VRT;
    set_calendar(r, &t);
    r->cmos[RTC_DAY_OF_WEEK] =
        encode(r, (unsigned)((t.day + 4) % 7) + 1); // 1970-01-01 was a Thursday; Sunday is 1
    r->divider_ns = start_unix_ns % NS;
    r->seconds = divider_ns(r, now_ns) / NS;
    r->crystal = crystal_at(r, now_ns);
    reset(r);
    if (bus_claim(bus, PORT_INDEX, 4, &ports, r)) {
        timer_cancel(&r->timer);
        free(r);
        return NULL;
    }
    return r;
}
