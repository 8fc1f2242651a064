// What every chip is given and offers: interrupt lines, port and MMIO handlers, a clock with timers, reset, and a
// versioned state stream. A chip reaches nothing else, so it can be made in a unit test with a fake line and a
// stepped clock.
//
// Threads: a machine's devices run under its device lock; every callback below is called with it held.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// ---- interrupt lines: a value, copied freely. Level-triggered semantics: set(…, 1) raises, set(…, 0) lowers.
struct irq_line {
    void (*set)(void *opaque, int n, int level);
    void *opaque;
    int n;
};
static inline void irq_set(const struct irq_line *l, int level)
{
    if (l->set)
        l->set(l->opaque, l->n, level);
}

// ---- time
struct timer_queue;
struct timer { // embedded in a chip; initialise with timer_init()
    struct timer_queue *queue;
    void (*expired)(void *opaque, uint64_t now_ns);
    void *opaque;
    uint64_t deadline_ns; // UINT64_MAX: not armed
    struct timer *next;
};
struct timer_queue {
    uint64_t (*now)(void *opaque);             // nanoseconds of the machine's clock (starts at 0, stops while paused)
    void (*rearm)(void *opaque, uint64_t deadline_ns); // the earliest deadline changed (UINT64_MAX: none); may be null
    void *opaque;
    struct timer *head; // sorted by deadline
    // Private to timer.c: what rearm() was last told; whether timer_run() is under way, which tells once at its end.
    uint64_t announced_ns;
    bool announced, running;
};
void timer_init(struct timer *t, struct timer_queue *q, void (*expired)(void *opaque, uint64_t now_ns), void *opaque);
void timer_arm(struct timer *t, uint64_t deadline_ns); // absolute; re-arming moves it
void timer_cancel(struct timer *t);
uint64_t timer_now(const struct timer_queue *q);
// Runs every timer whose deadline is <= now, in order; returns the next deadline (UINT64_MAX: none).
uint64_t timer_run(struct timer_queue *q);
// value * mul / div without overflow of the product, rounded down or up; saturates at UINT64_MAX. One DIV
// instruction: the compiler's own 128-bit division would call a library that may use vector registers.
static inline uint64_t time_div(unsigned __int128 dividend, uint64_t div)
{
    uint64_t high = (uint64_t)(dividend >> 64), low = (uint64_t)dividend, quotient;
    if (high >= div)
        return UINT64_MAX;
    __asm__("divq %[div]" : "=a"(quotient), "+d"(high) : [div] "rm"(div), "a"(low) : "cc");
    return quotient;
}
static inline uint64_t time_scale(uint64_t value, uint64_t mul, uint64_t div)
{
    return time_div((unsigned __int128)value * mul, div);
}
static inline uint64_t time_scale_up(uint64_t value, uint64_t mul, uint64_t div)
{
    return time_div((unsigned __int128)value * mul + (div - 1), div);
}

// ---- state stream: sections with a name and a version, fields in a fixed order, little-endian
struct stream {
    uint8_t *data;
    size_t size, capacity, position; // bytes
    bool loading;
    int error; // 0 or -errno: first error sticks; loads after it leave fields unchanged
};
void stream_init_save(struct stream *s);
void stream_init_load(struct stream *s, const void *data, size_t size);
void stream_free(struct stream *s);
// Opens a section; when loading, checks the name and returns the stored version (refuses newer than `version`:
// s->error = -EPROTO); when saving returns `version`.
unsigned stream_section(struct stream *s, const char *name, unsigned version);
// One function for both directions: writes *p when saving, sets it when loading.
void stream_u8(struct stream *s, uint8_t *p);
void stream_u16(struct stream *s, uint16_t *p);
void stream_u32(struct stream *s, uint32_t *p);
void stream_u64(struct stream *s, uint64_t *p);
void stream_bool(struct stream *s, bool *p);
void stream_bytes(struct stream *s, void *p, size_t n);
// A value used as an index or size after loading: out of [0, limit] makes the load fail instead.
void stream_u32_max(struct stream *s, uint32_t *p, uint32_t limit);
// The deadline of a timer; loading arms or cancels it.
void stream_timer(struct stream *s, struct timer *t);

// ---- buses
struct port_ops {
    uint32_t (*read)(void *opaque, uint16_t port, unsigned size); // port as the guest named it; size 1, 2, 4
    void (*write)(void *opaque, uint16_t port, unsigned size, uint32_t value);
    unsigned max_size; // wider accesses are split by the bus into accesses of this size; 0 means 1
};
struct bus; // 65,536 I/O ports
struct bus *bus_create(void);
void bus_destroy(struct bus *b);
// Claims [port, port+count). Returns 0 or -EBUSY. Unclaimed ports read all ones.
int bus_claim(struct bus *b, uint16_t port, unsigned count, const struct port_ops *ops, void *opaque);
void bus_release(struct bus *b, uint16_t port, unsigned count);
uint32_t bus_read(struct bus *b, uint16_t port, unsigned size);
void bus_write(struct bus *b, uint16_t port, unsigned size, uint32_t value);

// ---- the machine's list of devices
struct device_ops {
    const char *name;
    void (*reset)(void *opaque);                    // power-on values
    void (*state)(void *opaque, struct stream *s);  // save or load, as s says
    void (*destroy)(void *opaque);
};
struct device {
    const struct device_ops *ops;
    void *opaque;
};

// ---- what a chip may ask of the machine as a whole
enum machine_request { MACHINE_RESET, MACHINE_POWER_OFF, MACHINE_GUEST_EXIT, MACHINE_GUEST_CRASHED, MACHINE_INIT_CPU };
struct machine_control {
    void (*request)(void *opaque, enum machine_request what, uint32_t value); // value: exit status of GUEST_EXIT
    void *opaque;
};

// ---- character back end: bytes out; bytes in arrive by the chip's own receive function
struct char_out {
    void (*write)(void *opaque, const uint8_t *data, size_t n);
    void *opaque;
};
