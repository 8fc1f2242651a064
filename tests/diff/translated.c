// The translated side: one vCPU of the software engine, with page tables that put the code and the arena where
// the native side has them. Code under test runs at CPL 3 of long mode, of 32-bit protected mode or of v8086
// mode. It ends with INT 80h or with its exception; every gate leads to supervisor code that writes to port F4h,
// where the engine is asked to stop, and the frame that the event pushed tells the rest.
//
// Real mode has no paging, so code and arena are reached at their physical addresses; the code ends by writing to
// the port itself, as an interrupt would push onto the code's own stack. An exception does that: what it spoils is
// reported.
#include "cpu/cpu.h"
#include "cpu/engine.h"
#include "cpu/model.h"
#include "mmu/mem.h"
#include "mmu/mmu.h"
#include "tests/diff/side.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define VCPU_BASE 0x30000000u
#define TLB_BASE  0x32000000u
#define RAM_SIZE  (16u << 20)

// Guest-physical layout.
#define PML4_GPA  0x1000u
#define PDPT_GPA  0x2000u
#define PD_GPA    0x3000u
#define PT_GPA    0x4000u // three page tables: code, arena, system
#define PAE_GPA   0x8000u // PDPT of PAE paging
#define REAL_GATES_GPA 0x9000u
#define SYS_GPA   0x10000u
#define CODE_GPA  0x100000u
#define ARENA_GPA 0x200000u

// System pages, seen by the guest at SYS_BASE.
#define SYS_BASE   0x20400000u
#define SYS_TABLES 0u // GDT, LDT, TSS
#define SYS_IDT    0x1000u
#define SYS_GATES  0x2000u // 16 bytes of code for each vector
#define SYS_STACK  0x3000u
#define SYS_IDT32  0x4000u
#define SYS_PAGES  5u
#define LDT_OFFSET 0x100u
#define LDT_LIMIT  0x2fu
#define TSS_OFFSET 0x200u
#define TSS32_OFFSET 0x300u
#define TSS_LIMIT  0x67u

#define KERNEL_CS  0x08
#define KERNEL_CS32 0x10
#define KERNEL_DS32 0x18
#define TSS32_SEL  0x60
#define USER_CS32  0x23
#define USER_DS    0x2b
#define USER_CS64  0x33
#define TSS_SEL    0x40
#define LDT_SEL    0x50
#define CODE16_SEL 0x07
#define DATA16_SEL 0x0f

#define VECTOR_END 0x80
#define EXIT_PORT  0xf4

#define PTE_P  1ull
#define PTE_W  2ull
#define PTE_U  4ull
#define PTE_NX (1ull << 63)

#define ATTR_CODE64 (SEG_TYPE_CODE | SEG_TYPE_W | SEG_TYPE_A | SEG_S | SEG_P | SEG_L | SEG_G)
#define ATTR_CODE32 (SEG_TYPE_CODE | SEG_TYPE_W | SEG_TYPE_A | SEG_S | SEG_P | SEG_DB | SEG_G)
#define ATTR_CODE16 (SEG_TYPE_CODE | SEG_TYPE_W | SEG_TYPE_A | SEG_S | SEG_P)
#define ATTR_DATA32 (SEG_TYPE_W | SEG_TYPE_A | SEG_S | SEG_P | SEG_DB | SEG_G)
#define ATTR_DATA16 (SEG_TYPE_W | SEG_TYPE_A | SEG_S | SEG_P)
#define ATTR_DPL3   (3u << SEG_DPL_SHIFT)

struct translated {
    struct vcpu *v; // at VCPU_BASE: translated code addresses it by absolute displacement
    struct mem_map mem;
    struct cpu_model *model;
    struct xsave_layout layout;
    bool attached, mem_made;
    enum diff_world world;
    uint32_t used_at, used; // the code region's bytes that are not INT3
};

bool translated_available(void)
{
    return true;
}

// ---- exits: only the port counts
static uint32_t port_read(void *opaque, uint16_t port, unsigned size)
{
    (void)opaque, (void)port, (void)size;
    return ~0u;
}
static void port_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    (void)size, (void)value;
    struct vcpu *v = opaque;
    if (port == EXIT_PORT)
        __atomic_or_fetch(&v->requests, REQ_EXIT, __ATOMIC_SEQ_CST);
}
static uint64_t mmio_read(void *opaque, uint64_t gpa, unsigned size)
{
    (void)opaque, (void)gpa, (void)size;
    return ~0ull;
}
static void mmio_write(void *opaque, uint64_t gpa, unsigned size, uint64_t value)
{
    (void)opaque, (void)gpa, (void)size, (void)value;
}
static int pic_ack(void *opaque)
{
    (void)opaque;
    return 7;
}
static uint64_t no_time(void *opaque)
{
    (void)opaque;
    return 0;
}
static void no_trace(void *opaque, const char *what, uint64_t a, uint64_t b)
{
    (void)opaque, (void)what, (void)a, (void)b;
}
static void nothing(void *opaque)
{
    (void)opaque;
}

// ---- the guest's tables
static void put64(struct translated *t, uint64_t gpa, uint64_t value)
{
    memcpy(t->mem.ram + gpa, &value, 8);
}

static void map_pages(struct translated *t, uint32_t linear, uint32_t gpa, uint32_t pages, uint64_t bits)
{
    uint32_t table = (linear >> 21) - (CODE_BASE >> 21);
    put64(t, PD_GPA + 8 * (linear >> 21 & 511), (PT_GPA + table * 4096) | PTE_P | PTE_W | PTE_U);
    for (uint32_t i = 0; i < pages; i++)
        put64(t, PT_GPA + table * 4096 + 8 * ((linear >> 12 & 511) + i), (gpa + i * 4096) | bits);
}

static void make_page_tables(struct translated *t)
{
    put64(t, PML4_GPA, PDPT_GPA | PTE_P | PTE_W | PTE_U);
    put64(t, PDPT_GPA, PD_GPA | PTE_P | PTE_W | PTE_U);
    map_pages(t, CODE_BASE, CODE_GPA, CODE_SIZE / 4096, PTE_P | PTE_U);
    map_pages(t, DATA_LINEAR, ARENA_GPA + ARENA_DATA * 4096, 2, PTE_P | PTE_W | PTE_U | PTE_NX);
    map_pages(t, READ_ONLY_LINEAR, ARENA_GPA + ARENA_READ_ONLY * 4096, 1, PTE_P | PTE_U | PTE_NX);
    map_pages(t, STACK_LINEAR, ARENA_GPA + ARENA_STACK * 4096, 2, PTE_P | PTE_W | PTE_U | PTE_NX);
    map_pages(t, SYS_BASE, SYS_GPA, SYS_PAGES, PTE_P | PTE_W);
    put64(t, PAE_GPA, PD_GPA | PTE_P);
}

// SDM 3A figure 3-8.
static uint64_t descriptor(uint32_t base, uint32_t limit, uint32_t attr)
{
    uint32_t field = attr & SEG_G ? limit >> 12 : limit;
    return (field & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)(attr & 0xff) << 40 |
           (uint64_t)(field >> 16 & 15) << 48 | (uint64_t)(attr >> 12 & 15) << 52 |
           (uint64_t)(base >> 24) << 56;
}

static void make_descriptors(struct translated *t)
{
    uint64_t gdt = SYS_GPA + SYS_TABLES;
    put64(t, gdt + KERNEL_CS, descriptor(0, ~0u, ATTR_CODE64));
    put64(t, gdt + (USER_CS32 & ~7u), descriptor(0, ~0u, ATTR_CODE32 | ATTR_DPL3));
    put64(t, gdt + (USER_DS & ~7u), descriptor(0, ~0u, ATTR_DATA32 | ATTR_DPL3));
    put64(t, gdt + (USER_CS64 & ~7u), descriptor(0, ~0u, ATTR_CODE64 | ATTR_DPL3));
    put64(t, gdt + TSS_SEL, descriptor(SYS_BASE + TSS_OFFSET, TSS_LIMIT, SEG_P | 0xb));
    put64(t, gdt + LDT_SEL, descriptor(SYS_BASE + LDT_OFFSET, LDT_LIMIT, SEG_P | 2));
    put64(t, gdt + KERNEL_CS32, descriptor(0, ~0u, ATTR_CODE32));
    put64(t, gdt + KERNEL_DS32, descriptor(0, ~0u, ATTR_DATA32));
    put64(t, gdt + TSS32_SEL, descriptor(SYS_BASE + TSS32_OFFSET, TSS_LIMIT, SEG_P | 0xb));
    put64(t, gdt + TSS32_OFFSET + 4, (SYS_BASE + SYS_STACK + 0x1000) | (uint64_t)KERNEL_DS32 << 32); // ESP0, SS0
    put64(t, gdt + LDT_OFFSET, descriptor(CODE16_BASE, 0xffff, ATTR_CODE16 | ATTR_DPL3));
    put64(t, gdt + LDT_OFFSET + 8, descriptor(ARENA_BASE, 0xffff, ATTR_DATA16 | ATTR_DPL3));
    put64(t, gdt + TSS_OFFSET + 4, SYS_BASE + SYS_STACK + 0x1000); // RSP0
}

static void make_gates(struct translated *t)
{
    for (unsigned i = 0; i < 256; i++) {
        uint64_t handler = SYS_BASE + SYS_GATES + 16 * i;
        uint64_t dpl = i == EXC_BP || i == EXC_OF || i == VECTOR_END ? 3 : 0;
        put64(t, SYS_GPA + SYS_IDT + 16 * i,
              (handler & 0xffff) | (uint64_t)KERNEL_CS << 16 | (0x8eull | dpl << 5) << 40 |
                  (handler >> 16 & 0xffff) << 48);
        put64(t, SYS_GPA + SYS_IDT + 16 * i + 8, handler >> 32);
        put64(t, SYS_GPA + SYS_IDT32 + 8 * i,
              (handler & 0xffff) | (uint64_t)KERNEL_CS32 << 16 | (0x8eull | dpl << 5) << 40 |
                  (handler >> 16 & 0xffff) << 48);
        uint16_t real[2] = {(uint16_t)(16 * i), REAL_GATES_GPA >> 4};
        memcpy(t->mem.ram + 4 * i, real, 4);
        memcpy(t->mem.ram + REAL_GATES_GPA + 16 * i, "\xe6\xf4\xeb\xfe", 4);
        memcpy(t->mem.ram + SYS_GPA + SYS_GATES + 16 * i, "\xe6\xf4\xeb\xfe", 4); // out 0f4h, al; jmp $
    }
}

static struct segment segment(uint16_t sel, uint64_t base, uint32_t limit, uint32_t attr)
{
    return (struct segment){.base = base, .limit = limit, .attr = attr, .sel = sel};
}

static void make_system_state(struct translated *t)
{
    struct cpu_state *s = &t->v->s;
    s->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
    s->xcr0 = t->layout.mask;
    s->gdtr = (struct dtable){.base = SYS_BASE + SYS_TABLES, .limit = 0xff};
    s->ldtr = segment(LDT_SEL, SYS_BASE + LDT_OFFSET, LDT_LIMIT, SEG_P | 2);
    s->apic_base = 0;
}

static void set_world(struct translated *t, enum diff_world world, bool ac)
{
    struct cpu_state *s = &t->v->s;
    uint64_t paging = world == WORLD_REAL ? 0 : CR0_PE | CR0_PG | CR0_WP;
    s->cr0 = CR0_MP | CR0_ET | CR0_NE | (ac ? 0 : CR0_AM) | paging;
    if (t->world == world)
        return;
    bool flush = (t->world == WORLD_LONG || t->world == WORLD_REAL) != (world == WORLD_LONG || world == WORLD_REAL) ||
                 world == WORLD_LONG || world == WORLD_REAL;
    t->world = world;
    s->cr3 = world == WORLD_LONG ? PML4_GPA : PAE_GPA;
    s->pdpte[0] = PD_GPA | PTE_P;
    s->efer = world == WORLD_LONG ? EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE : EFER_NXE;
    s->idtr = world == WORLD_LONG   ? (struct dtable){.base = SYS_BASE + SYS_IDT, .limit = 0xfff}
              : world == WORLD_REAL ? (struct dtable){.base = 0, .limit = 0x3ff}
                                    : (struct dtable){.base = SYS_BASE + SYS_IDT32, .limit = 0x7ff};
    s->tr = world == WORLD_LONG ? segment(TSS_SEL, SYS_BASE + TSS_OFFSET, TSS_LIMIT, SEG_P | 0xb)
                                : segment(TSS32_SEL, SYS_BASE + TSS32_OFFSET, TSS_LIMIT, SEG_P | 0xb);
    if (flush)
        mmu_flush_all(t->v, true);
}

// Code and arena at 16-bit segments whose hidden parts no selector of that mode could give: only offsets are seen.
static void set_segments_old(struct cpu_state *s, bool real)
{
    uint32_t code = real ? CODE_GPA + (CODE16_BASE - CODE_BASE) : CODE16_BASE;
    uint32_t data = real ? ARENA_GPA : ARENA_BASE, dpl = real ? 0 : ATTR_DPL3;
    s->seg[SEG_CS] = segment(0x1000, code, 0xffff, (real ? ATTR_CODE16 : ATTR_DATA16) | dpl);
    for (unsigned i = 0; i < SEG_COUNT; i++)
        if (i != SEG_CS)
            s->seg[i] = segment(0x2000, data, 0xffff, ATTR_DATA16 | dpl);
}

static struct segment extra(enum diff_mode mode, bool gs)
{
    struct diff_segment x = extra_segment(mode, gs);
    uint32_t attr = SEG_TYPE_W | SEG_TYPE_A | SEG_S | SEG_P | ATTR_DPL3 | (x.expand_down ? SEG_TYPE_E : 0);
    attr |= mode == MODE16 ? 0 : SEG_DB;
    attr |= x.limit > 0xfffff ? SEG_G : 0;
    return segment(0, x.base, x.limit, attr);
}

static void set_segments(struct cpu_state *s, enum diff_mode mode, enum diff_world world)
{
    if (world == WORLD_V86 || world == WORLD_REAL) {
        set_segments_old(s, world == WORLD_REAL);
        return;
    }
    struct segment data = mode == MODE16 ? segment(DATA16_SEL, ARENA_BASE, 0xffff, ATTR_DATA16 | ATTR_DPL3)
                                         : segment(USER_DS, 0, ~0u, ATTR_DATA32 | ATTR_DPL3);
    s->seg[SEG_CS] = mode == MODE64   ? segment(USER_CS64, 0, ~0u, ATTR_CODE64 | ATTR_DPL3)
                     : mode == MODE32 ? segment(USER_CS32, 0, ~0u, ATTR_CODE32 | ATTR_DPL3)
                                      : segment(CODE16_SEL, CODE16_BASE, 0xffff, ATTR_CODE16 | ATTR_DPL3);
    s->seg[SEG_SS] = s->seg[SEG_DS] = s->seg[SEG_ES] = data;
    s->seg[SEG_FS] = extra(mode, false);
    s->seg[SEG_GS] = extra(mode, true);
}

// ---- one run
#define EXIT_LENGTH 4u
#define INT3        0xcc

static void write_code(struct translated *t, const struct diff_code *code)
{
    uint32_t at = code->linear - CODE_BASE, room = CODE_SIZE - at;
    uint8_t image[MAX_CODE + EXIT_SLOT];
    memcpy(image, code->bytes, code->length);
    // int 80h; jmp $ or out 0f4h, al; jmp $
    memcpy(image + code->length, code->world == WORLD_REAL ? "\xe6\xf4\xeb\xfe" : "\xcd\x80\xeb\xfe", EXIT_LENGTH);
    uint32_t size = code->length + EXIT_LENGTH;
    uint8_t empty[MAX_CODE + EXIT_SLOT];
    memset(empty, INT3, sizeof empty);
    mem_write(&t->mem, CODE_GPA + t->used_at, empty, t->used);
    t->used_at = at;
    t->used = size < room ? size : room;
    mem_write(&t->mem, CODE_GPA + at, image, t->used);
}

static uint8_t *arena(struct translated *t, uint32_t linear)
{
    return t->mem.ram + ARENA_GPA + (linear - ARENA_BASE);
}

static void set_state(struct translated *t, const struct diff_code *code, const struct diff_state *in)
{
    struct vcpu *v = t->v;
    struct cpu_state *s = &v->s;
    set_world(t, code->world, code->ac);
    set_segments(s, code->mode, code->world);
    s->cpl = code->world == WORLD_REAL ? 0 : 3;
    s->shadow = 0;
    s->activity = ACT_RUNNING;
    s->cr2 = 0;
    memcpy(s->gpr, in->gpr, sizeof s->gpr);
    s->rip = code->linear - code_base(code->mode);
    uint64_t flags = code->world == WORLD_V86 ? FL_VM | FL_IOPL : code->ac ? FL_AC : 0;
    cpu_set_rflags(v, (in->rflags & ~0x7300ull) | 0x202 | flags);
    fpu_to_xsave(&t->layout, &in->fpu, s->xsave);
    memcpy(arena(t, DATA_LINEAR), in->mem, 2 * 4096);
    memcpy(arena(t, STACK_LINEAR), in->mem + 2 * 4096, 2 * 4096);
    v->mode_gen++;
    v->requests = 0;
}

static bool has_error_code(unsigned vector)
{
    return vector < 32 &&
           ((1u << 8 | 1u << 10 | 1u << 11 | 1u << 12 | 1u << 13 | 1u << 14 | 1u << 17) >> vector & 1);
}

// The end of a long-mode run: the gate the event went through and its frame.
static int get_end_long(struct translated *t, struct diff_state *out)
{
    const struct cpu_state *s = &t->v->s;
    uint64_t gate = s->rip - (SYS_BASE + SYS_GATES), stack = s->gpr[RSP] - SYS_BASE;
    if (gate >= 256 * 16 || stack < SYS_STACK || stack > SYS_STACK + 0x1000 - 40)
        return -EIO;
    unsigned vector = (unsigned)(gate / 16);
    uint64_t frame[6]; // error code (if any), RIP, CS, RFLAGS, RSP, SS
    memcpy(frame, t->mem.ram + SYS_GPA + stack, sizeof frame);
    const uint64_t *f = has_error_code(vector) ? frame + 1 : frame;
    out->gpr[RSP_NUMBER] = f[3];
    out->rflags = f[2];
    out->vector = (int32_t)vector;
    out->error = has_error_code(vector) ? (uint32_t)frame[0] : 0;
    out->rip = f[0];
    return 0;
}

static int get_end_protected(struct translated *t, struct diff_state *out)
{
    const struct cpu_state *s = &t->v->s;
    uint64_t gate = s->rip - (SYS_BASE + SYS_GATES), stack = s->gpr[RSP] - SYS_BASE;
    if (gate >= 256 * 16 || stack < SYS_STACK || stack > SYS_STACK + 0x1000 - 20)
        return -EIO;
    unsigned vector = (unsigned)(gate / 16);
    uint32_t frame[6]; // as above, of 4 bytes each
    memcpy(frame, t->mem.ram + SYS_GPA + stack, sizeof frame);
    const uint32_t *f = has_error_code(vector) ? frame + 1 : frame;
    out->gpr[RSP_NUMBER] = f[3];
    out->rflags = f[2];
    out->vector = (int32_t)vector;
    out->error = has_error_code(vector) ? frame[0] : 0;
    out->rip = f[0];
    return 0;
}

static int get_end_real(struct translated *t, const struct diff_code *code, struct diff_state *out)
{
    const struct cpu_state *s = &t->v->s;
    out->gpr[RSP_NUMBER] = s->gpr[RSP];
    if (s->seg[SEG_CS].base != REAL_GATES_GPA) {
        out->vector = VECTOR_END;
        out->rflags = cpu_rflags(t->v);
        return s->rip == code->linear - CODE16_BASE + code->length + 2 ? 0 : -EIO;
    }
    uint16_t sp = (uint16_t)s->gpr[RSP], frame[3]; // IP, CS, FLAGS
    if (sp > 0x10000 - 6)
        return -EIO;
    memcpy(frame, t->mem.ram + ARENA_GPA + sp, sizeof frame);
    out->vector = (int32_t)(s->rip / 16);
    out->rip = frame[0];
    out->rflags = frame[2] | (cpu_rflags(t->v) & ~0xffffull);
    out->spoilt = ARENA_BASE + sp;
    out->spoilt_size = sizeof frame;
    out->gpr[RSP_NUMBER] = (s->gpr[RSP] & ~0xffffull) | (uint16_t)(sp + sizeof frame);
    return 0;
}

static int get_state(struct translated *t, const struct diff_code *code, struct diff_state *out)
{
    const struct cpu_state *s = &t->v->s;
    memcpy(out->gpr, s->gpr, sizeof out->gpr);
    int error = code->world == WORLD_REAL   ? get_end_real(t, code, out)
                : code->world == WORLD_LONG ? get_end_long(t, out)
                                            : get_end_protected(t, out);
    if (error)
        return error;
    out->address = out->vector == EXC_PF ? s->cr2 : 0;
    if (out->vector == VECTOR_END) {
        out->vector = VECTOR_NONE;
        out->rip = 0;
    }
    fpu_from_xsave(&t->layout, s->xsave, &out->fpu);
    memcpy(out->mem, arena(t, DATA_LINEAR), 2 * 4096);
    memcpy(out->mem + 2 * 4096, arena(t, STACK_LINEAR), 2 * 4096);
    return 0;
}

int translated_run(struct translated *t, const struct diff_code *code, const struct diff_state *in,
                   struct diff_state *out)
{
    if (code->length > MAX_CODE || code->linear - CODE_BASE >= CODE_SIZE)
        return -EINVAL;
    write_code(t, code);
    set_state(t, code, in);
    memset(out, 0, offsetof(struct diff_state, mem));
    if (engine_software.run(t->v) != ENGINE_REQUESTED) {
        out->vector = EXC_DF; // a triple fault: shown as what it is not, but never equal to a native run
        out->rip = t->v->s.rip;
        return 0;
    }
    int error = get_state(t, code, out);
    if (error) {
        out->vector = EXC_DF;
        out->rip = t->v->s.rip;
    }
    return 0;
}

// ---- create, destroy
struct translated *translated_create(const uint8_t *read_only)
{
    struct translated *t = calloc(1, sizeof *t);
    char error[256] = "out of memory";
    if (!t)
        return NULL;
    t->layout = xsave_layout_host();
    void *at = mmap((void *)(uintptr_t)VCPU_BASE, (sizeof *t->v + 4095) & ~4095ul, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (at != (void *)(uintptr_t)VCPU_BASE || mem_create(&t->mem, RAM_SIZE))
        goto fail;
    t->mem_made = true;
    t->v = at;
    t->v->mem = &t->mem;
    t->v->tlb = tlb_create((void *)(uintptr_t)TLB_BASE);
    t->model = cpu_model_create("host", error, sizeof error);
    if (!t->v->tlb || !t->model)
        goto fail;
    t->v->model = t->model;
    t->v->exits = (struct vcpu_exits){.port_read = port_read, .port_write = port_write, .mmio_read = mmio_read,
                                      .mmio_write = mmio_write, .pic_ack = pic_ack, .monotonic_ns = no_time,
                                      .realtime_ns = no_time, .trace = no_trace, .opaque = t->v};
    cpu_reset(t->v);
    make_page_tables(t);
    make_descriptors(t);
    make_gates(t);
    memset(t->mem.ram + CODE_GPA, INT3, CODE_SIZE);
    make_system_state(t);
    t->world = WORLD_REAL;
    memcpy(arena(t, READ_ONLY_LINEAR), read_only, 4096);
    if (engine_software.attach(t->v)) {
        snprintf(error, sizeof error, "the engine did not attach");
        goto fail;
    }
    engine_software_exact_flags(t->v, true);
    t->attached = true;
    engine_software_set_host(t->v, (struct engine_host){nothing, nothing, NULL, t->v});
    return t;
fail:
    fprintf(stderr, "difftest: cannot set up the translated side: %s\n", error);
    translated_destroy(t);
    return NULL;
}

void translated_destroy(struct translated *t)
{
    if (!t)
        return;
    if (t->attached)
        engine_software.detach(t->v);
    if (t->v) {
        if (t->v->tlb)
            tlb_destroy(t->v->tlb);
        munmap(t->v, (sizeof *t->v + 4095) & ~4095ul);
    }
    if (t->model)
        cpu_model_destroy(t->model);
    if (t->mem_made)
        mem_destroy(&t->mem);
    free(t);
}
