// What the tests of cpu/ share: 16 MiB of RAM, one vCPU without engine, a GDT with the usual segments, and
// ways to put it into each mode. Faults come back as values.
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "cpu/internal.h"
#include "mmu/mem.h"

#define GDT      0x1000u
#define IDT      0x2000u
#define TSS      0x3000u
#define TSS2     0x3800u
#define LDT      0x4000u
#define PML4     0x10000u
#define PDPT     0x11000u
#define KSTACK   0x8000u // top of the stack in use at CPL 0
#define KSTACK2  0x7000u // top of the stack in the TSS
#define USTACK   0x9000u // top of the stack in use at CPL 3
#define CODE     0xa000u
#define UNMAPPED 0x40000000u // long mode: the first page that is not there

// Selectors. The numbers are offsets in the GDT; those of user segments carry RPL 3.
enum {
    CS32 = 0x08,
    DS32 = 0x10,
    CS64 = 0x18,
    UCS32 = 0x23,
    UDS = 0x2b,
    UCS64 = 0x33,
    CS16 = 0x38,
    DS16 = 0x40,
    TSS_SEL = 0x50,
    TSS2_SEL = 0x60,
    LDT_SEL = 0x70,
    SPARE = 0x80,
    CONFORMING = 0x88,
    ABSENT = 0x90,
    READONLY = 0x98,
    EXECONLY = 0xa0,
    EXPANDDOWN = 0xa8,
    GDT_LIMIT = 0xff,
};

#define ATTR_DATA 0x93u
#define ATTR_CODE 0x9bu
#define ATTR_USER 0x60u
#define ATTR_FLAT (SEG_DB | SEG_G)

struct world {
    struct mem_map mem;
    struct vcpu *v;
    struct cpu_model *model;
};

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

// `attr` as in struct segment; `limit` is the raw 20-bit field.
static inline uint64_t make_descriptor(uint32_t base, uint32_t limit, uint32_t attr)
{
    return (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)(attr & 0xf0ff) << 40 |
           (uint64_t)(limit & 0xf0000) << 32 | (uint64_t)(base & 0xff000000) << 32;
}

static inline void put_descriptor(struct world *w, uint16_t sel, uint32_t base, uint32_t limit, uint32_t attr)
{
    poke(w, GDT + (sel & 0xfff8), make_descriptor(base, limit, attr), 8);
}

static inline uint64_t make_gate(uint16_t sel, uint32_t offset, unsigned type, unsigned dpl, unsigned low)
{
    return (offset & 0xffff) | (uint64_t)sel << 16 | (uint64_t)(low & 0xff) << 32 |
           (uint64_t)(0x80 | dpl << 5 | type) << 40 | (uint64_t)(offset & 0xffff0000) << 32;
}

static inline void put_gate32(struct world *w, unsigned vector, uint16_t sel, uint32_t offset, unsigned type,
                              unsigned dpl)
{
    poke(w, IDT + vector * 8, make_gate(sel, offset, type, dpl, 0), 8);
}

static inline void put_gate64(struct world *w, unsigned vector, uint16_t sel, uint64_t offset, unsigned type,
                              unsigned dpl, unsigned ist)
{
    poke(w, IDT + vector * 16, make_gate(sel, offset, type, dpl, ist), 8);
    poke(w, IDT + vector * 16 + 8, offset >> 32, 8);
}

// Loads a hidden part straight from the GDT, no checks.
static inline void set_segment(struct world *w, struct segment *s, uint16_t sel)
{
    struct descriptor d = {.raw = peek(w, GDT + (sel & 0xfff8), 8)};
    descriptor_to_segment(&d, sel, false, s);
}

static inline void set_segments(struct world *w, uint16_t cs, uint16_t ds)
{
    struct cpu_state *s = &w->v->s;
    for (unsigned i = 0; i < SEG_COUNT; i++)
        set_segment(w, &s->seg[i], i == SEG_CS ? cs : ds);
    s->cpl = cs & 3;
    s->rip = CODE;
    s->gpr[RSP] = s->cpl == 3 ? USTACK : KSTACK;
}

static inline void enter_protected(struct world *w, unsigned cpl)
{
    w->v->s.cr0 |= CR0_PE;
    set_segments(w, cpl ? UCS32 : CS32, cpl ? UDS : DS32);
}

static inline void enter_long(struct world *w, unsigned cpl)
{
    poke(w, PML4, PDPT | 7, 8);
    poke(w, PDPT, 0x87, 8); // 1 GiB, present, writable, user
    w->v->s.cr0 |= CR0_PE | CR0_PG;
    w->v->s.cr4 |= CR4_PAE;
    w->v->s.cr3 = PML4;
    w->v->s.efer = EFER_LME | EFER_LMA | EFER_SCE;
    set_segments(w, cpl ? UCS64 : CS64, cpl ? UDS : DS32);
}

static inline void enter_v86(struct world *w, unsigned iopl)
{
    struct cpu_state *s = &w->v->s;
    s->cr0 |= CR0_PE;
    for (unsigned i = 0; i < SEG_COUNT; i++)
        segment_set_v86(&s->seg[i], 0x100 + i);
    s->cpl = 3;
    s->rip = 0x20;
    s->gpr[RSP] = 0x800;
    s->rflags = FL_ONE | FL_VM | iopl << 12;
}

static inline void enter_real(struct world *w)
{
    struct cpu_state *s = &w->v->s;
    for (unsigned i = 0; i < SEG_COUNT; i++)
        segment_set_real(&s->seg[i], 0x100 + i);
    s->rip = 0x20;
    s->gpr[RSP] = 0x800;
    s->idtr = (struct dtable){.limit = 0x3ff};
}

// The vector thrown, or -1. v->event tells the rest.
static __attribute__((noinline, unused)) int try_op(struct vcpu *v, insn_fn *op, const struct insn *in)
{
    if (__builtin_setjmp(v->throw_buf))
        return v->event.vector;
    op(v, in);
    return -1;
}

static __attribute__((noinline, unused)) int try_load(struct vcpu *v, unsigned sreg, uint16_t sel)
{
    if (__builtin_setjmp(v->throw_buf))
        return v->event.vector;
    cpu_load_segment(v, sreg, sel);
    return -1;
}

static __attribute__((noinline, unused)) int try_linear(struct vcpu *v, unsigned sreg, uint64_t offset,
                                                        unsigned size, bool write, uint64_t *la)
{
    if (__builtin_setjmp(v->throw_buf))
        return v->event.vector;
    *la = cpu_linear(v, sreg, offset, size, write);
    return -1;
}

#define assert_fault(call, vec, err)                                                                         \
    do {                                                                                                     \
        assert_int_equal((call), (vec));                                                                     \
        assert_int_equal(w->v->event.error, (err));                                                          \
    } while (0)

static int world_setup(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    char error[128];
    assert_non_null(w);
    assert_int_equal(mem_create(&w->mem, 16 << 20), 0);
    w->v = aligned_alloc(64, (sizeof *w->v + 63) & ~63ull);
    assert_non_null(w->v);
    memset(w->v, 0, sizeof *w->v);
    w->v->mem = &w->mem;
    w->v->tlb = tlb_create((void *)0x20000000);
    assert_non_null(w->v->tlb);
    w->model = cpu_model_create("v2", error, sizeof error);
    assert_non_null(w->model);
    w->model->amd = false;
    w->v->model = w->model;
    cpu_reset(w->v);
    w->v->s.gdtr = (struct dtable){.base = GDT, .limit = GDT_LIMIT};
    w->v->s.idtr = (struct dtable){.base = IDT, .limit = 0xfff};
    put_descriptor(w, CS32, 0, 0xfffff, ATTR_CODE | ATTR_FLAT);
    put_descriptor(w, DS32, 0, 0xfffff, ATTR_DATA | ATTR_FLAT);
    put_descriptor(w, CS64, 0, 0xfffff, ATTR_CODE | SEG_G | SEG_L);
    put_descriptor(w, UCS32, 0, 0xfffff, ATTR_CODE | ATTR_USER | ATTR_FLAT);
    put_descriptor(w, UDS, 0, 0xfffff, ATTR_DATA | ATTR_USER | ATTR_FLAT);
    put_descriptor(w, UCS64, 0, 0xfffff, ATTR_CODE | ATTR_USER | SEG_G | SEG_L);
    put_descriptor(w, CS16, 0, 0xffff, ATTR_CODE);
    put_descriptor(w, DS16, 0, 0xffff, ATTR_DATA);
    put_descriptor(w, TSS_SEL, TSS, 0x67, SEG_P | SYS_TSS_BUSY);
    put_descriptor(w, TSS2_SEL, TSS2, 0x67, SEG_P | SYS_TSS_AVAIL);
    put_descriptor(w, LDT_SEL, LDT, 0x1f, SEG_P | SYS_LDT);
    put_descriptor(w, CONFORMING, 0, 0xfffff, (ATTR_CODE | SEG_TYPE_E) | ATTR_FLAT);
    put_descriptor(w, ABSENT, 0, 0xfffff, (ATTR_DATA & ~SEG_P) | ATTR_FLAT);
    put_descriptor(w, READONLY, 0, 0xfffff, (ATTR_DATA & ~SEG_TYPE_W) | ATTR_FLAT);
    put_descriptor(w, EXECONLY, 0, 0xfffff, (ATTR_CODE & ~SEG_TYPE_W) | ATTR_FLAT);
    put_descriptor(w, EXPANDDOWN, 0x20000, 0x0fff, ATTR_DATA | SEG_TYPE_E | SEG_DB);
    set_segment(w, &w->v->s.tr, TSS_SEL);
    w->v->s.ldtr = (struct segment){.attr = SEG_UNUSABLE};
    *state = w;
    return 0;
}

static int world_teardown(void **state)
{
    struct world *w = *state;
    tlb_destroy(w->v->tlb);
    cpu_model_destroy(w->model);
    free(w->v);
    mem_destroy(&w->mem);
    free(w);
    return 0;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, world_setup, world_teardown)
