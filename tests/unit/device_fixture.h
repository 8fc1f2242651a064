// What the device tests share: ports, a memory map, a stepped clock, and lines and requests that are
// recorded.
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "devices/chips.h"
#include "mmu/mem.h"

#define FIXTURE_RAM (16u << 20)

struct fixture {
    struct bus *bus;
    struct mem_map mem;
    struct timer_queue clock;
    uint64_t now_ns;
    int level[64], rises[64]; // by line number
    int requests;
    enum machine_request last_request;
    uint32_t last_value;
    char out[256];
    size_t out_count;
};

static inline uint64_t fixture_now(void *opaque)
{
    return ((struct fixture *)opaque)->now_ns;
}

static inline void fixture_set(void *opaque, int n, int level)
{
    struct fixture *f = opaque;

    if (level && !f->level[n])
        f->rises[n]++;
    f->level[n] = level;
}

static inline void fixture_request(void *opaque, enum machine_request what, uint32_t value)
{
    struct fixture *f = opaque;

    f->requests++;
    f->last_request = what;
    f->last_value = value;
}

static inline void fixture_write(void *opaque, const uint8_t *data, size_t n)
{
    struct fixture *f = opaque;

    for (size_t i = 0; i < n && f->out_count < sizeof f->out; i++)
        f->out[f->out_count++] = data[i];
}

static inline struct irq_line fixture_line(struct fixture *f, int n)
{
    return (struct irq_line){fixture_set, f, n};
}

static inline struct machine_control fixture_control(struct fixture *f)
{
    return (struct machine_control){fixture_request, f};
}

static inline struct char_out fixture_out(struct fixture *f)
{
    return (struct char_out){fixture_write, f};
}

static inline void fixture_init(struct fixture *f)
{
    memset(f, 0, sizeof *f);
    f->bus = bus_create();
    assert_non_null(f->bus);
    assert_int_equal(mem_create(&f->mem, FIXTURE_RAM), 0);
    f->clock.now = fixture_now;
    f->clock.opaque = f;
}

static inline void fixture_done(struct fixture *f)
{
    mem_destroy(&f->mem);
    bus_destroy(f->bus);
}

static inline void fixture_advance(struct fixture *f, uint64_t to_ns) // runs timers at their own times
{
    while (f->clock.head && f->clock.head->deadline_ns <= to_ns) {
        if (f->clock.head->deadline_ns > f->now_ns)
            f->now_ns = f->clock.head->deadline_ns;
        timer_run(&f->clock);
    }
    f->now_ns = to_ns;
}

static inline uint32_t config_get(struct fixture *f, unsigned devfn, unsigned offset, unsigned size)
{
    bus_write(f->bus, 0xcf8, 4, 0x80000000u | devfn << 8 | (offset & 0xfc));
    return bus_read(f->bus, 0xcfc + (offset & 3), size);
}

static inline void config_set(struct fixture *f, unsigned devfn, unsigned offset, unsigned size,
                              uint32_t value)
{
    bus_write(f->bus, 0xcf8, 4, 0x80000000u | devfn << 8 | (offset & 0xfc));
    bus_write(f->bus, 0xcfc + (offset & 3), size, value);
}
