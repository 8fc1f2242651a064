// What the tests of the boot loaders share: a small guest memory, a CPU that is only its state, files in
// memory.
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "bios/loader.h"
#include "cpu/cpu.h"
#include "mmu/mem.h"

struct boot {
    struct mem_map mem;
    struct vcpu *v;
    struct loader loader;
    struct image kernel, initrds[LOADER_MAX_INITRDS];
    struct loader_config config;
    char error[512];
};

static inline struct boot *boot_create(unsigned memory_mib)
{
    struct boot *b = calloc(1, sizeof *b);

    assert_non_null(b);
    assert_int_equal(mem_create(&b->mem, (uint64_t)memory_mib << 20), 0);
    assert_int_equal(posix_memalign((void **)&b->v, 64, sizeof *b->v), 0);
    memset(b->v, 0, sizeof *b->v);
    b->v->mem = &b->mem;
    b->config = (struct loader_config){
        .kernel = &b->kernel,
        .initrds = b->initrds,
        .cmdline = "console=ttyS0",
        .long_mode = true,
        .acpi = {.cpus = 1,
                 .apic = true,
                 .low_ram = b->mem.low_size,
                 .high_ram = (1ull << 32) + b->mem.ram_size - b->mem.low_size,
                 .phys_bits = 46},
    };
    return b;
}

static inline void boot_destroy(struct boot *b)
{
    loader_free(&b->loader);
    mem_destroy(&b->mem);
    free(b->v);
    free(b);
}

static inline void boot_initrd(struct boot *b, const char *name, const void *data, uint64_t size)
{
    b->initrds[b->config.initrd_count++] = image_memory(name, data, size);
}

static inline int boot_prepare(struct boot *b, const void *file, uint64_t size)
{
    b->kernel = image_memory("vmlinuz", file, size);
    return loader_prepare(&b->loader, &b->config, &b->mem, b->error, sizeof b->error);
}

static inline void boot_load(struct boot *b)
{
    assert_int_equal(loader_load(&b->loader, &b->mem, b->v, b->error, sizeof b->error), 0);
}

#define assert_mentions(b, text) assert_non_null(strstr((b)->error, text))

static inline uint64_t guest(struct boot *b, uint64_t gpa, unsigned size)
{
    uint64_t value = 0;
    assert_true(mem_read(&b->mem, gpa, &value, size));
    return value;
}

static inline void guest_string(struct boot *b, uint64_t gpa, const char *expected)
{
    char text[600] = {0};
    assert_true(mem_read(&b->mem, gpa, text, strlen(expected) + 1));
    assert_string_equal(text, expected);
}

static inline void store(uint8_t *p, uint64_t value, unsigned size)
{
    for (unsigned n = 0; n < size; n++)
        p[n] = (uint8_t)(value >> 8 * n);
}

// The flat 32-bit state that all 32-bit entries have.
static inline void assert_flat32(const struct vcpu *v, uint64_t entry)
{
    const struct cpu_state *s = &v->s;

    assert_int_equal(s->rip, entry);
    assert_int_equal(s->cr0 & (CR0_PE | CR0_PG), CR0_PE);
    assert_int_equal(s->efer, 0);
    assert_int_equal(s->cpl, 0);
    assert_int_equal(s->iflag, 0);
    assert_int_equal(s->dflag, 0);
    for (unsigned n = 0; n < SEG_COUNT; n++) {
        assert_int_equal(s->seg[n].base, 0);
        assert_int_equal(s->seg[n].limit, 0xffffffff);
        assert_int_equal(s->seg[n].attr & (SEG_P | SEG_S | SEG_DB | SEG_G | SEG_L),
                         SEG_P | SEG_S | SEG_DB | SEG_G);
    }
    assert_true(s->seg[SEG_CS].attr & SEG_TYPE_CODE);
    assert_false(s->seg[SEG_DS].attr & SEG_TYPE_CODE);
    assert_true(s->seg[SEG_DS].attr & SEG_TYPE_W);
}
