// What the tests of mmu/ share: a machine of RAM and one vCPU without engine, and page tables built by hand.
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "cpu/model.h"
#include "mmu/mem.h"
#include "mmu/mmu.h"

#define P         0x001ull
#define W         0x002ull
#define U         0x004ull
#define A         0x020ull
#define D         0x040ull
#define PS        0x080ull
#define G         0x100ull
#define PAT_LARGE 0x1000ull
#define XD        (1ull << 63)

static struct cpu_model fixture_model;
static struct vcpu *fixture_vcpu;

// Runs `call`; true if it raised #PF (v->event tells which).
#define FAULTS(call) (__builtin_setjmp(fixture_vcpu->throw_buf) ? true : ((call), false))

enum paging { PAGING_32, PAGING_PAE, PAGING_LONG };

// One mapping of one page, its entries spelled out from the root (of PAE: the page directory) to the leaf.
struct mode {
    const char *name;
    enum paging paging;
    unsigned levels;
    uint64_t la, frame, size; // frame: what the leaf maps
};

static const struct mode modes[] = {
    {"32-bit, 4 KiB", PAGING_32, 2, 0xc0403123, 0x00423000, 0x1000},
    {"32-bit, 4 MiB", PAGING_32, 1, 0xc0403123, 0x00800000, 0x400000},
    {"PAE, 4 KiB", PAGING_PAE, 2, 0xc0403123, 0x00423000, 0x1000},
    {"PAE, 2 MiB", PAGING_PAE, 1, 0xc0403123, 0x00800000, 0x200000},
    {"4-level, 4 KiB", PAGING_LONG, 4, 0xffff888040403123, 0x00423000, 0x1000},
    {"4-level, 2 MiB", PAGING_LONG, 3, 0xffff888040403123, 0x00800000, 0x200000},
    {"4-level, 1 GiB", PAGING_LONG, 2, 0xffff888040403123, 0x40000000, 0x40000000},
};
#define MODES (sizeof modes / sizeof modes[0])

struct world {
    struct mem_map mem;
    struct vcpu *v;
    uint64_t next_table; // where the next page table goes
};

#define ROOT 0x10000ull

static inline uint64_t peek(struct world *w, uint64_t gpa, unsigned size)
{
    uint64_t value = 0;
    assert_true(mem_read(&w->mem, gpa, &value, size));
    return value;
}

static inline void poke(struct world *w, uint64_t gpa, uint64_t value, unsigned size)
{
    assert_true(mem_write(&w->mem, gpa, &value, size));
}

static inline unsigned entry_size(enum paging paging)
{
    return paging == PAGING_32 ? 4 : 8;
}

// Control registers for a paging mode, no protections on but CR0.WP and EFER.NXE; no tables.
static void world_paging(struct world *w, enum paging paging)
{
    struct cpu_state *s = &w->v->s;
    static const uint8_t zero[4096];
    for (uint64_t gpa = ROOT; gpa < 0x20000; gpa += 4096)
        mem_write(&w->mem, gpa, zero, sizeof zero);
    w->next_table = ROOT + 0x1000;
    s->cr0 = CR0_PE | CR0_PG | CR0_WP;
    s->cr3 = ROOT;
    s->cr4 = CR4_PSE | (paging == PAGING_32 ? 0 : CR4_PAE);
    s->efer = (paging == PAGING_32 ? 0 : EFER_NXE) | (paging == PAGING_LONG ? EFER_LME | EFER_LMA : 0);
    s->rflags = FL_ONE;
    s->cpl = 0;
    if (paging == PAGING_PAE)
        for (unsigned i = 0; i < 4; i++)
            s->pdpte[i] = (ROOT + i * 0x1000) | P;
    if (paging == PAGING_PAE)
        w->next_table = ROOT + 0x4000;
    fixture_model.phys_bits = 40;
    fixture_model.amd = false;
    memset(fixture_model.features, 0xff, sizeof fixture_model.features);
}

static unsigned level_shift(const struct mode *mode, unsigned level)
{
    if (mode->paging == PAGING_32)
        return level ? 12 : 22;
    return (mode->paging == PAGING_LONG ? 39 : 21) - 9 * level;
}

// Maps the page of mode->la with all rights, making the tables that are missing. Entry addresses go to
// entry[level].
static void world_map(struct world *w, const struct mode *mode, uint64_t entry[4])
{
    unsigned size = entry_size(mode->paging);
    uint64_t table = ROOT;
    if (mode->paging == PAGING_PAE)
        table = w->v->s.pdpte[mode->la >> 30 & 3] & ~0xfffull;
    for (unsigned level = 0; level < mode->levels; level++) {
        unsigned mask = mode->paging == PAGING_32 ? 0x3ff : 0x1ff;
        entry[level] = table + (mode->la >> level_shift(mode, level) & mask) * size;
        if (level == mode->levels - 1) {
            poke(w, entry[level], mode->frame | P | W | U | (mode->size > 4096 ? PS : 0), size);
        } else {
            if (!peek(w, entry[level], size)) {
                poke(w, entry[level], w->next_table | P | W | U, size);
                w->next_table += 0x1000;
            }
            table = peek(w, entry[level], size) & 0x000ffffffffff000ull;
        }
    }
}

// 16 MiB of RAM, a vCPU as after reset as far as mmu/ looks.
static void world_create(struct world *w)
{
    memset(w, 0, sizeof *w);
    assert_int_equal(mem_create(&w->mem, 16 << 20), 0);
    w->v = aligned_alloc(64, (sizeof *w->v + 63) & ~63ull);
    assert_non_null(w->v);
    fixture_vcpu = w->v;
    memset(w->v, 0, sizeof *w->v);
    w->v->mem = &w->mem;
    w->v->model = &fixture_model;
    w->v->s.rflags = FL_ONE;
}

static void world_destroy(struct world *w)
{
    tlb_destroy(w->v->tlb);
    free(w->v);
    mem_destroy(&w->mem);
}
