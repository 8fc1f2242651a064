// The local APIC (SDM 3A chapter 11; x2APIC: 11.12), one per vCPU and run beside it.
//
// Threads: registers belong to the vCPU's thread. Only IRR, TMR and the external-interrupt flag are set from
// elsewhere (lapic_deliver(), lapic_set_lint0()), by atomic operations; the vCPU then learns of it by
// `request`. The timer counts a 1 GHz bus clock: one count at divide-by-1 is one nanosecond of the machine's
// clock. Periods that the host came late for are owed to the guest, which may count them, and handed out up to four
// times as fast as programmed; what the guest itself keeps waiting merges in IRR, as in hardware.
#include "cpu/lapic.h"
#include "cpu/model.h"
#include "devices/chips.h"
#include "devices/device.h"
#include <stdlib.h>

// Register offsets of the xAPIC page (table 11-1); x2APIC MSR = 800h + offset / 16 (table 11-6).
#define REG_ID        0x020
#define REG_VERSION   0x030
#define REG_TPR       0x080
#define REG_APR       0x090
#define REG_PPR       0x0a0
#define REG_EOI       0x0b0
#define REG_RRD       0x0c0
#define REG_LDR       0x0d0
#define REG_DFR       0x0e0
#define REG_SVR       0x0f0
#define REG_ISR       0x100
#define REG_TMR       0x180
#define REG_IRR       0x200
#define REG_ESR       0x280
#define REG_ICR_LOW   0x300
#define REG_ICR_HIGH  0x310
#define REG_LVT_TIMER 0x320
#define REG_LVT_ERROR 0x370
#define REG_INITIAL   0x380
#define REG_CURRENT   0x390
#define REG_DIVIDE    0x3e0
#define REG_SELF_IPI  0x3f0

#define MSR_APIC_BASE    0x01b
#define MSR_TSC_DEADLINE 0x6e0
#define MSR_X2APIC_FIRST 0x800
#define MSR_X2APIC_LAST  0x8ff

#define APIC_BASE_BSP    0x100u
#define APIC_BASE_EXTD   0x400u
#define APIC_BASE_ENABLE 0x800u

#define VERSION 0x00050014u // LVT entries 0-5, version 14h
#define SVR_ENABLE 0x100u
#define SVR_WRITABLE 0x3ffu // vector, enable, focus checking
#define ESR_SEND_ILLEGAL    0x20u
#define ESR_RECEIVE_ILLEGAL 0x40u
#define ESR_ILLEGAL_REG     0x80u

enum lvt { LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVT_COUNT };
#define LVT_MASKED     0x10000u
#define LVT_LEVEL      0x08000u
#define LVT_REMOTE_IRR 0x04000u
#define LVT_MODE(x)    ((x) >> 8 & 7)
#define LVT_TIMER_MODE(x) ((x) >> 17 & 3)

enum { TIMER_ONE_SHOT, TIMER_PERIODIC, TIMER_DEADLINE };
enum { MODE_FIXED, MODE_LOWEST, MODE_SMI, MODE_NMI = 4, MODE_INIT, MODE_SIPI, MODE_EXTINT };

// Writable bits of each LVT entry (figure 11-8).
static const uint32_t lvt_writable[LVT_COUNT] = {
    [LVT_TIMER] = 0x700ff, [LVT_THERMAL] = 0x107ff, [LVT_PERF] = 0x107ff,
    [LVT_LINT0] = 0x1a7ff, [LVT_LINT1] = 0x1a7ff,   [LVT_ERROR] = 0x100ff,
};

// A periodic timer faster than this would only keep the host busy.
#define MIN_PERIOD_NS 10000ull
#define MAX_OWED_NS   60000000000ull

struct lapic {
    struct vcpu *v;
    void (*request)(void *opaque, uint32_t bits);
    void (*eoi)(void *opaque, uint8_t vector);
    void *opaque;

    uint32_t tpr, ldr, dfr, svr;
    uint32_t esr, esr_pending;
    uint64_t icr;
    uint32_t lvt[LVT_COUNT];
    uint32_t isr[8], tmr[8], irr[8]; // tmr, irr: atomic
    uint32_t lint0;                  // level of the pin
    uint32_t extint;                 // an I/O APIC routes the 8259's INTR here

    uint32_t initial_count, divide_config;
    uint64_t start_ns; // when the count was `initial_count` (or reloaded)
    uint64_t tsc_deadline; // 0: not armed
    uint64_t owed;         // periods whose interrupt the guest has not had
    struct timer timer;
};

static void signal(struct lapic *l, uint32_t bits)
{
    if (l->request)
        l->request(l->opaque, bits);
}

static bool hardware_enabled(const struct lapic *l) { return l->v->s.apic_base & APIC_BASE_ENABLE; }
static bool x2apic(const struct lapic *l)
{
    return (l->v->s.apic_base & (APIC_BASE_ENABLE | APIC_BASE_EXTD)) == (APIC_BASE_ENABLE | APIC_BASE_EXTD);
}
static bool software_enabled(const struct lapic *l) { return l->svr & SVR_ENABLE; }

// ---- vectors

static int highest(const uint32_t set[8])
{
    for (int i = 7; i >= 0; i--) {
        uint32_t word = __atomic_load_n(&set[i], __ATOMIC_ACQUIRE);
        if (word)
            return i * 32 + 31 - __builtin_clz(word);
    }
    return -1;
}

static void bit_set(uint32_t set[8], uint8_t n)
{
    __atomic_or_fetch(&set[n >> 5], 1u << (n & 31), __ATOMIC_RELEASE);
}
static void bit_clear(uint32_t set[8], uint8_t n)
{
    __atomic_and_fetch(&set[n >> 5], ~(1u << (n & 31)), __ATOMIC_RELEASE);
}
static bool bit_test(const uint32_t set[8], uint8_t n)
{
    return __atomic_load_n(&set[n >> 5], __ATOMIC_ACQUIRE) >> (n & 31) & 1;
}

static void error(struct lapic *l, uint32_t bit);

// Posts a fixed interrupt. Vectors 0-15 are illegal (11.5.2).
static void post(struct lapic *l, uint8_t vector, bool level)
{
    if (vector < 16) {
        error(l, ESR_RECEIVE_ILLEGAL);
        return;
    }
    if (level)
        bit_set(l->tmr, vector);
    else
        bit_clear(l->tmr, vector);
    bit_set(l->irr, vector);
    signal(l, REQ_INTR);
}

// 11.8.3.1: the higher of TPR and the class of the vector in service.
static uint32_t ppr(const struct lapic *l)
{
    int isrv = highest(l->isr);
    uint32_t in_service = isrv < 0 ? 0 : (uint32_t)isrv & 0xf0;
    return (l->tpr & 0xf0) >= in_service ? l->tpr : in_service;
}

int lapic_pending(const struct lapic *l)
{
    if (!hardware_enabled(l) || !software_enabled(l))
        return -1;
    int vector = highest(l->irr);
    return vector >= 0 && ((uint32_t)vector & 0xf0) > (ppr(l) & 0xf0) ? vector : -1;
}

int lapic_ack(struct lapic *l)
{
    int vector = lapic_pending(l);
    if (vector < 0)
        return -1;
    bit_clear(l->irr, (uint8_t)vector);
    bit_set(l->isr, (uint8_t)vector);
    return vector;
}

static void request_if_pending(struct lapic *l)
{
    if (lapic_pending(l) >= 0)
        signal(l, REQ_INTR);
}

// 11.8.5. A level-triggered vector's EOI goes to the I/O APICs.
static void end_of_interrupt(struct lapic *l)
{
    int vector = highest(l->isr);
    if (vector < 0)
        return;
    bit_clear(l->isr, (uint8_t)vector);
    if (bit_test(l->tmr, (uint8_t)vector)) {
        if ((l->lvt[LVT_LINT0] & 0xff) == (uint32_t)vector)
            l->lvt[LVT_LINT0] &= ~LVT_REMOTE_IRR;
        if (l->eoi)
            l->eoi(l->opaque, (uint8_t)vector);
    }
    request_if_pending(l);
}

// What an unmasked LVT entry does when its source fires.
static void lvt_fire(struct lapic *l, enum lvt n)
{
    uint32_t lvt = l->lvt[n];
    if (lvt & LVT_MASKED || !hardware_enabled(l))
        return;
    switch (n == LVT_TIMER || n == LVT_ERROR ? MODE_FIXED : LVT_MODE(lvt)) {
    case MODE_FIXED: post(l, (uint8_t)lvt, n == LVT_LINT0 && lvt & LVT_LEVEL); break;
    case MODE_NMI: signal(l, REQ_NMI); break;
    case MODE_INIT: signal(l, REQ_INIT); break;
    case MODE_EXTINT: signal(l, REQ_INTR); break;
    default: break; // SMI: there is no SMM
    }
}

// 11.5.3. Errors gather until the guest writes ESR; the first one interrupts.
static void error(struct lapic *l, uint32_t bit)
{
    bool first = !(l->esr_pending & bit);
    l->esr_pending |= bit;
    // An illegal vector in the error entry itself must not recurse.
    if (first && (l->lvt[LVT_ERROR] & 0xff) >= 16)
        lvt_fire(l, LVT_ERROR);
}

void lapic_set_lint0(struct lapic *l, int level)
{
    bool rising = level && !l->lint0;
    l->lint0 = level != 0;
    uint32_t lvt = l->lvt[LVT_LINT0];
    if (LVT_MODE(lvt) == MODE_FIXED && lvt & LVT_LEVEL) {
        if (level && !(lvt & (LVT_MASKED | LVT_REMOTE_IRR))) {
            l->lvt[LVT_LINT0] |= LVT_REMOTE_IRR;
            lvt_fire(l, LVT_LINT0);
        }
        return;
    }
    if (!hardware_enabled(l) && rising)
        signal(l, REQ_INTR); // LINT0 is INTR then
    else if (rising)
        lvt_fire(l, LVT_LINT0);
    if (rising && __atomic_load_n(&l->extint, __ATOMIC_RELAXED))
        signal(l, REQ_INTR);
}

bool lapic_accepts_pic(const struct lapic *l)
{
    if (!hardware_enabled(l) || __atomic_load_n(&l->extint, __ATOMIC_RELAXED))
        return true;
    uint32_t lvt = l->lvt[LVT_LINT0];
    return !(lvt & LVT_MASKED) && LVT_MODE(lvt) == MODE_EXTINT;
}

uint8_t lapic_tpr(const struct lapic *l) { return (uint8_t)l->tpr; }

void lapic_set_tpr(struct lapic *l, uint8_t tpr)
{
    l->tpr = tpr;
    request_if_pending(l);
}

// ---- messages

static bool addressed(const struct lapic *l, bool logical, uint32_t dest)
{
    uint32_t id = l->v->id;
    if (dest == 0xff || dest == 0xffffffff) // broadcast, also by what knows 8-bit destinations only
        return true;
    if (!logical)
        return dest == id;
    if (x2apic(l))
        return dest >> 16 == l->ldr >> 16 && dest & l->ldr & 0xffff;
    uint32_t mda = dest & 0xff, ldr = l->ldr >> 24;
    if (l->dfr >> 28 == 0xf) // flat model (11.6.2.2)
        return mda & ldr;
    return (mda >> 4 == ldr >> 4 || mda >> 4 == 0xf) && mda & ldr & 0xf;
}

static bool accept(struct lapic *l, unsigned mode, uint8_t vector, bool level)
{
    switch (mode) {
    case MODE_FIXED:
    case MODE_LOWEST:
        if (!software_enabled(l))
            return false;
        post(l, vector, level);
        return true;
    case MODE_NMI: signal(l, REQ_NMI); return true;
    case MODE_INIT: signal(l, REQ_INIT); return true;
    case MODE_EXTINT:
        // Virtual wire through an I/O APIC: the vector comes from the 8259, whose INTR pin is seen by the
        // vCPU.
        __atomic_store_n(&l->extint, 1, __ATOMIC_RELAXED);
        signal(l, REQ_INTR);
        return true;
    default: return true; // SMI: no SMM; SIPI: only a CPU waiting for it takes one
    }
}

bool lapic_deliver(struct lapic *l, const struct apic_message *m)
{
    if (!hardware_enabled(l) || !addressed(l, m->dest_logical, m->destination))
        return false;
    return accept(l, m->delivery_mode, m->vector, m->level_triggered);
}

// 11.6.1. The only CPU is this one.
static void send_ipi(struct lapic *l, uint64_t icr)
{
    unsigned mode = icr >> 8 & 7, shorthand = icr >> 18 & 3;
    uint8_t vector = (uint8_t)icr;
    uint32_t dest = x2apic(l) ? (uint32_t)(icr >> 32) : (uint32_t)(icr >> 56);
    bool to_self;
    switch (shorthand) {
    case 0: to_self = addressed(l, icr & 0x800, dest); break;
    case 3: to_self = false; break;
    default: to_self = true; break;
    }
    if ((mode == MODE_FIXED || mode == MODE_LOWEST) && vector < 16) {
        error(l, ESR_SEND_ILLEGAL);
        return;
    }
    if (mode == MODE_INIT && !(icr & 0x4000)) // INIT level de-assert: not for these processors
        return;
    if (shorthand == 1 && mode != MODE_FIXED) // "self" takes fixed interrupts only (table 11-3)
        return;
    if (to_self && mode != MODE_EXTINT)
        accept(l, mode, vector, false); // IPIs are edge-triggered
}

// ---- timer (11.5.4)

static unsigned divide_shift(uint32_t config)
{
    // bits 3, 1, 0: 000 = 2, 001 = 4 … 110 = 128, 111 = 1
    return (((config & 3) | (config >> 1 & 4)) + 1) & 7;
}

static unsigned timer_mode(const struct lapic *l) { return LVT_TIMER_MODE(l->lvt[LVT_TIMER]); }

static uint64_t period_ns(const struct lapic *l)
{
    return (uint64_t)l->initial_count << divide_shift(l->divide_config);
}

static uint32_t current_count(const struct lapic *l)
{
    if (!l->initial_count || timer_mode(l) == TIMER_DEADLINE)
        return 0;
    uint64_t elapsed = timer_now(l->timer.queue) - l->start_ns, period = period_ns(l);
    if (timer_mode(l) == TIMER_PERIODIC)
        elapsed %= period;
    else if (elapsed >= period)
        return 0;
    return l->initial_count - (uint32_t)(elapsed >> divide_shift(l->divide_config));
}

static uint64_t saturating_add(uint64_t a, uint64_t b) { return a + b < a ? UINT64_MAX - 1 : a + b; }

static void arm_deadline(struct lapic *l)
{
    int64_t cycles = (int64_t)(l->tsc_deadline - cpu_tsc(l->v));
    uint64_t now = timer_now(l->timer.queue), ns = 0;
    if (cycles > 0) {
        unsigned __int128 product = (unsigned __int128)(uint64_t)cycles * l->v->model->ns_per_tsc_q32;
        ns = product >> 96 ? UINT64_MAX : (uint64_t)(product >> 32) + 1;
    }
    timer_arm(&l->timer, saturating_add(now, ns));
}

static uint64_t spacing_ns(uint64_t period) { return period / 4 > MIN_PERIOD_NS ? period / 4 : MIN_PERIOD_NS; }

// Sets the queue's timer from the registers. `now` must be what a start of the count was taken from: a second look at the
// clock may come after a short count has passed, which would then pass for one that has fired.
static void timer_schedule(struct lapic *l, uint64_t now)
{
    if (timer_mode(l) == TIMER_DEADLINE) {
        if (l->tsc_deadline)
            arm_deadline(l);
        else
            timer_cancel(&l->timer);
        return;
    }
    if (!l->initial_count) {
        timer_cancel(&l->timer);
        return;
    }
    uint64_t period = period_ns(l), next = l->start_ns + period;
    if (next <= now) {
        if (timer_mode(l) != TIMER_PERIODIC) {
            timer_cancel(&l->timer); // it has fired
            return;
        }
        next = now + period - (now - l->start_ns) % period;
    }
    if (timer_mode(l) == TIMER_PERIODIC && next < now + MIN_PERIOD_NS && period < MIN_PERIOD_NS)
        next = now + MIN_PERIOD_NS;
    if (l->owed && now + spacing_ns(period) < next)
        next = now + spacing_ns(period);
    timer_arm(&l->timer, next);
}

// Whether a periodic timer that expired has an interrupt for the guest now.
static bool periodic_expired(struct lapic *l, uint64_t now_ns)
{
    uint64_t period = period_ns(l), passed = now_ns > l->start_ns ? (now_ns - l->start_ns) / period : 0;
    bool fire = passed;
    if (passed) {
        l->start_ns += passed * period; // the phase stays
        if (period >= MIN_PERIOD_NS)
            l->owed += passed - 1;
        if (l->owed > MAX_OWED_NS / period)
            l->owed = MAX_OWED_NS / period;
    } else if (l->owed && !bit_test(l->irr, (uint8_t)l->lvt[LVT_TIMER])) {
        l->owed--;
        fire = true;
    }
    if (l->lvt[LVT_TIMER] & LVT_MASKED)
        l->owed = 0;
    timer_schedule(l, now_ns);
    return fire;
}

static void timer_expired(void *opaque, uint64_t now_ns)
{
    struct lapic *l = opaque;
    if (timer_mode(l) == TIMER_DEADLINE) {
        if (!l->tsc_deadline)
            return;
        // The machine's clock may run a little faster than the TSC; the guest must not see an early
        // interrupt.
        if ((int64_t)(l->tsc_deadline - cpu_tsc(l->v)) > 0) {
            arm_deadline(l);
            return;
        }
        l->tsc_deadline = 0;
    } else if (timer_mode(l) == TIMER_PERIODIC) {
        if (!l->initial_count || !periodic_expired(l, now_ns))
            return;
    }
    lvt_fire(l, LVT_TIMER);
}

static void timer_set_initial(struct lapic *l, uint32_t count)
{
    if (timer_mode(l) == TIMER_DEADLINE)
        return;
    l->initial_count = count;
    l->owed = 0;
    l->start_ns = timer_now(l->timer.queue);
    timer_schedule(l, l->start_ns);
}

static void timer_set_divide(struct lapic *l, uint32_t config)
{
    // The count reached so far stays and goes on at the new rate.
    uint32_t passed = l->initial_count - current_count(l);
    bool running = l->initial_count && current_count(l);
    l->divide_config = config & 0xb;
    if (running) {
        uint64_t now = timer_now(l->timer.queue);
        l->start_ns = now - ((uint64_t)passed << divide_shift(l->divide_config));
        timer_schedule(l, now);
    }
}

static void lvt_write(struct lapic *l, enum lvt n, uint32_t value)
{
    uint32_t old = l->lvt[n];
    value &= lvt_writable[n];
    if (!software_enabled(l))
        value |= LVT_MASKED;
    l->lvt[n] = value | (old & LVT_REMOTE_IRR & (value & LVT_LEVEL ? ~0u : 0u));
    if (n == LVT_TIMER && LVT_TIMER_MODE(old) != LVT_TIMER_MODE(value)) {
        if (LVT_TIMER_MODE(old) == TIMER_DEADLINE || LVT_TIMER_MODE(value) == TIMER_DEADLINE) {
            l->initial_count = 0; // 11.5.4.1: a change to or from this mode disarms
            l->tsc_deadline = 0;
        }
        l->owed = 0;
        timer_schedule(l, timer_now(l->timer.queue));
    }
    if (n == LVT_LINT0) {
        __atomic_store_n(&l->extint, 0, __ATOMIC_RELAXED);
        if (l->lint0 && old != l->lvt[n]) { // the pin may be up already
            l->lint0 = 0;
            lapic_set_lint0(l, 1);
        }
    }
}

// ---- reset (11.4.7.1)

static void registers_reset(struct lapic *l)
{
    l->tpr = 0;
    l->ldr = x2apic(l) ? (l->v->id >> 4) << 16 | 1u << (l->v->id & 15) : 0;
    l->dfr = 0xffffffff;
    l->svr = 0xff;
    l->esr = l->esr_pending = 0;
    l->icr = 0;
    for (unsigned i = 0; i < LVT_COUNT; i++)
        l->lvt[i] = LVT_MASKED;
    for (unsigned i = 0; i < 8; i++)
        l->isr[i] = l->tmr[i] = l->irr[i] = 0;
    // Firmware of a PC leaves the boot CPU in virtual wire mode; kernels loaded without firmware rely on it.
    if (l->v->s.apic_base & APIC_BASE_BSP)
        l->lvt[LVT_LINT0] = MODE_EXTINT << 8;
    l->extint = 0;
    l->initial_count = l->divide_config = 0;
    l->start_ns = 0;
    l->tsc_deadline = l->owed = 0;
    timer_cancel(&l->timer);
}

void lapic_reset(struct lapic *l)
{
    l->v->s.apic_base = 0xfee00000 | APIC_BASE_ENABLE | (l->v->id == 0 ? APIC_BASE_BSP : 0);
    registers_reset(l);
}

// ---- register access

static uint32_t register_read(struct lapic *l, unsigned reg)
{
    switch (reg) {
    case REG_ID: return x2apic(l) ? l->v->id : l->v->id << 24;
    case REG_VERSION: return VERSION;
    case REG_TPR: return l->tpr;
    case REG_APR: return 0;
    case REG_PPR: return ppr(l);
    case REG_RRD: return 0;
    case REG_EOI: return 0;
    case REG_LDR: return l->ldr;
    case REG_DFR: return l->dfr;
    case REG_SVR: return l->svr;
    case REG_ESR: return l->esr;
    case REG_ICR_LOW: return (uint32_t)l->icr;
    case REG_ICR_HIGH: return (uint32_t)(l->icr >> 32);
    case REG_INITIAL: return l->initial_count;
    case REG_CURRENT: return current_count(l);
    case REG_DIVIDE: return l->divide_config;
    default: break;
    }
    if (reg >= REG_LVT_TIMER && reg <= REG_LVT_ERROR)
        return l->lvt[(reg - REG_LVT_TIMER) >> 4];
    if (reg >= REG_ISR && reg < REG_TMR)
        return l->isr[(reg - REG_ISR) >> 4];
    if (reg >= REG_TMR && reg < REG_IRR)
        return __atomic_load_n(&l->tmr[(reg - REG_TMR) >> 4], __ATOMIC_ACQUIRE);
    if (reg >= REG_IRR && reg < REG_ESR)
        return __atomic_load_n(&l->irr[(reg - REG_IRR) >> 4], __ATOMIC_ACQUIRE);
    error(l, ESR_ILLEGAL_REG);
    return 0;
}

static void svr_write(struct lapic *l, uint32_t value)
{
    bool was_enabled = software_enabled(l);
    l->svr = value & SVR_WRITABLE;
    if (!software_enabled(l)) { // 11.4.7.2: all LVT entries become masked
        for (unsigned i = 0; i < LVT_COUNT; i++)
            l->lvt[i] |= LVT_MASKED;
    } else if (!was_enabled) {
        request_if_pending(l);
    }
}

static void register_write(struct lapic *l, unsigned reg, uint32_t value)
{
    switch (reg) {
    case REG_TPR: lapic_set_tpr(l, (uint8_t)value); return;
    case REG_EOI: end_of_interrupt(l); return;
    case REG_LDR: l->ldr = value & 0xff000000; return;
    case REG_DFR: l->dfr = value | 0x0fffffff; return;
    case REG_SVR: svr_write(l, value); return;
    case REG_ESR:
        l->esr = l->esr_pending;
        l->esr_pending = 0;
        return;
    case REG_ICR_LOW:
        l->icr = (l->icr & ~0xffffffffull) | (value & 0xccfff);
        l->icr &= ~0x1000ull; // delivery status: idle
        send_ipi(l, l->icr);
        return;
    case REG_ICR_HIGH: l->icr = (uint32_t)l->icr | (uint64_t)(value & 0xff000000) << 32; return;
    case REG_INITIAL: timer_set_initial(l, value); return;
    case REG_DIVIDE: timer_set_divide(l, value); return;
    case REG_ID:
    case REG_VERSION:
    case REG_APR:
    case REG_PPR:
    case REG_RRD:
    case REG_CURRENT: return; // read-only
    default: break;
    }
    if (reg >= REG_LVT_TIMER && reg <= REG_LVT_ERROR)
        lvt_write(l, (reg - REG_LVT_TIMER) >> 4, value);
    else if (reg < REG_ISR || reg >= REG_ESR)
        error(l, ESR_ILLEGAL_REG);
}

// ---- xAPIC page. Registers are 32 bits wide at multiples of 16 (11.4.1).

uint64_t lapic_mmio_read(struct lapic *l, uint64_t offset, unsigned size)
{
    uint64_t ones = size >= 8 ? ~0ull : (1ull << (size * 8)) - 1;
    if (!hardware_enabled(l) || x2apic(l))
        return ones; // nothing answers at this address
    if ((offset & 0xf) > 3)
        return 0;
    uint64_t value = register_read(l, (unsigned)(offset & 0xff0));
    return value >> (8 * (offset & 3)) & ones;
}

void lapic_mmio_write(struct lapic *l, uint64_t offset, unsigned size, uint64_t value)
{
    if (!hardware_enabled(l) || x2apic(l) || offset & 0xf || size < 4)
        return;
    register_write(l, (unsigned)(offset & 0xff0), (uint32_t)value);
}

// ---- MSRs

static bool apic_base_write(struct lapic *l, uint64_t value)
{
    uint64_t old = l->v->s.apic_base;
    const uint32_t mode_bits = APIC_BASE_ENABLE | APIC_BASE_EXTD;
    uint64_t valid = APIC_BASE_BSP | mode_bits | ((1ull << (cpu_model_phys_bits(l->v->model) & 63)) - 4096);
    if (value & ~valid)
        return false;
    if (value & APIC_BASE_EXTD && !cpu_model_has(l->v->model, CPU_X2APIC))
        return false;
    // Figure 11-27: EXTD without EN never; from x2APIC only to disabled; to x2APIC only from xAPIC.
    unsigned from = old & mode_bits, to = value & mode_bits;
    if (to == APIC_BASE_EXTD || (from == mode_bits && to == APIC_BASE_ENABLE) ||
        (from == 0 && to == mode_bits))
        return false;
    l->v->s.apic_base = value;
    if (from != to) {
        if (to == 0 || from == 0)
            registers_reset(l);
        else // xAPIC to x2APIC: 11.12.5.1, LDR is derived from the id
            l->ldr = (l->v->id >> 4) << 16 | 1u << (l->v->id & 15);
        signal(l, REQ_INTR);
    }
    return true;
}

static bool x2apic_read(struct lapic *l, unsigned reg, uint64_t *value)
{
    switch (reg) {
    case REG_ICR_LOW: *value = l->icr; return true;
    case REG_ID:
    case REG_VERSION:
    case REG_TPR:
    case REG_PPR:
    case REG_LDR:
    case REG_SVR:
    case REG_ESR:
    case REG_INITIAL:
    case REG_CURRENT:
    case REG_DIVIDE: break;
    default:
        if (!(reg >= REG_ISR && reg < REG_ESR) && !(reg >= REG_LVT_TIMER && reg <= REG_LVT_ERROR))
            return false;
    }
    *value = register_read(l, reg);
    return true;
}

static bool x2apic_write(struct lapic *l, unsigned reg, uint64_t value)
{
    if (reg == REG_ICR_LOW) {
        if (value & 0xfff33000)
            return false;
        l->icr = value;
        send_ipi(l, value);
        return true;
    }
    uint64_t writable;
    switch (reg) {
    case REG_TPR: writable = 0xff; break;
    case REG_EOI:
    case REG_ESR: writable = 0; break;
    case REG_SVR: writable = SVR_WRITABLE; break;
    case REG_INITIAL: writable = 0xffffffff; break;
    case REG_DIVIDE: writable = 0xb; break;
    case REG_SELF_IPI:
        if (value & ~0xffull)
            return false;
        send_ipi(l, 1u << 18 | value);
        return true;
    default:
        if (reg < REG_LVT_TIMER || reg > REG_LVT_ERROR)
            return false;
        // Delivery status and remote IRR may be written back as read.
        writable = lvt_writable[(reg - REG_LVT_TIMER) >> 4] | 0x1000 | LVT_REMOTE_IRR;
    }
    if (value & ~writable)
        return false;
    register_write(l, reg, (uint32_t)value);
    return true;
}

bool lapic_msr_read(struct lapic *l, uint32_t msr, uint64_t *value)
{
    if (msr == MSR_APIC_BASE) {
        *value = l->v->s.apic_base;
        return true;
    }
    if (msr == MSR_TSC_DEADLINE) {
        *value = timer_mode(l) == TIMER_DEADLINE ? l->tsc_deadline : 0;
        return true;
    }
    if (msr < MSR_X2APIC_FIRST || msr > MSR_X2APIC_LAST || !x2apic(l))
        return false;
    return x2apic_read(l, (msr - MSR_X2APIC_FIRST) << 4, value);
}

bool lapic_msr_write(struct lapic *l, uint32_t msr, uint64_t value)
{
    if (msr == MSR_APIC_BASE)
        return apic_base_write(l, value);
    if (msr == MSR_TSC_DEADLINE) {
        if (timer_mode(l) == TIMER_DEADLINE) { // else ignored (11.5.4.1)
            l->tsc_deadline = value;
            timer_schedule(l, timer_now(l->timer.queue));
        }
        return true;
    }
    if (msr < MSR_X2APIC_FIRST || msr > MSR_X2APIC_LAST || !x2apic(l))
        return false;
    return x2apic_write(l, (msr - MSR_X2APIC_FIRST) << 4, value);
}

// ---- state

static void after_load(struct lapic *l)
{
    l->tpr &= 0xff;
    l->svr &= SVR_WRITABLE;
    l->divide_config &= 0xb;
    for (unsigned i = 0; i < LVT_COUNT; i++)
        l->lvt[i] &= lvt_writable[i] | (i == LVT_LINT0 || i == LVT_LINT1 ? LVT_REMOTE_IRR : 0);
    uint64_t now = timer_now(l->timer.queue);
    if (l->start_ns > now)
        l->start_ns = now;
    if (l->owed > MAX_OWED_NS / MIN_PERIOD_NS)
        l->owed = 0;
    timer_schedule(l, now);
    request_if_pending(l);
}

void lapic_state(struct lapic *l, struct stream *s)
{
    stream_section(s, "lapic", 1);
    stream_u32(s, &l->tpr);
    stream_u32(s, &l->ldr);
    stream_u32(s, &l->dfr);
    stream_u32(s, &l->svr);
    stream_u32(s, &l->esr);
    stream_u32(s, &l->esr_pending);
    stream_u64(s, &l->icr);
    for (unsigned i = 0; i < LVT_COUNT; i++)
        stream_u32(s, &l->lvt[i]);
    for (unsigned i = 0; i < 8; i++) {
        stream_u32(s, &l->isr[i]);
        stream_u32(s, &l->tmr[i]);
        stream_u32(s, &l->irr[i]);
    }
    stream_u32(s, &l->lint0);
    stream_u32(s, &l->extint);
    stream_u32(s, &l->initial_count);
    stream_u32(s, &l->divide_config);
    stream_u64(s, &l->start_ns);
    stream_u64(s, &l->tsc_deadline);
    stream_u64(s, &l->owed);
    if (s->loading && !s->error)
        after_load(l);
}

// ---- create, destroy

struct lapic *lapic_create(struct vcpu *v, struct timer_queue *clock,
                           void (*request)(void *opaque, uint32_t bits),
                           void (*eoi)(void *opaque, uint8_t vector), void *opaque)
{
    struct lapic *l = calloc(1, sizeof *l);
    if (!l)
        return NULL;
    l->v = v;
    l->request = request;
    l->eoi = eoi;
    l->opaque = opaque;
    timer_init(&l->timer, clock, timer_expired, l);
    lapic_reset(l);
    return l;
}

void lapic_destroy(struct lapic *l)
{
    if (!l)
        return;
    timer_cancel(&l->timer);
    free(l);
}
