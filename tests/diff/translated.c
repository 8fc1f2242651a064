// The translated side: one vCPU of the software engine, in long mode with page tables that put the code and
// the arena where the native side has them. Code under test runs at CPL 3. It ends with INT 80h or with its
// exception; every gate leads to supervisor code that writes to port F4h, where the engine is asked to stop,
// and the frame that the event pushed tells the rest.
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
#define SYS_GPA   0x10000u
#define CODE_GPA  0x100000u
#define ARENA_GPA 0x200000u

// System pages, seen by the guest at SYS_BASE.
#define SYS_BASE   0x20400000u
#define SYS_TABLES 0u // GDT, LDT, TSS
#define SYS_IDT    0x1000u
#define SYS_GATES  0x2000u // 16 bytes of code for each vector
#define SYS_STACK  0x3000u
#define SYS_PAGES  4u
#define LDT_OFFSET 0x100u
#define TSS_OFFSET 0x200u
#define TSS_LIMIT  0x67u

#define KERNEL_CS  0x08
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
    put64(t, gdt + LDT_SEL, descriptor(SYS_BASE + LDT_OFFSET, 15, SEG_P | 2));
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
    s->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
    s->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
    s->cr3 = PML4_GPA;
    s->efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE;
    s->xcr0 = t->layout.mask;
    s->gdtr = (struct dtable){.base = SYS_BASE + SYS_TABLES, .limit = 0xff};
    s->idtr = (struct dtable){.base = SYS_BASE + SYS_IDT, .limit = 0xfff};
    s->tr = segment(TSS_SEL, SYS_BASE + TSS_OFFSET, TSS_LIMIT, SEG_P | 0xb);
    s->ldtr = segment(LDT_SEL, SYS_BASE + LDT_OFFSET, 15, SEG_P | 2);
    s->apic_base = 0;
}

static void set_segments(struct cpu_state *s, enum diff_mode mode)
{
    struct segment data = mode == MODE16 ? segment(DATA16_SEL, ARENA_BASE, 0xffff, ATTR_DATA16 | ATTR_DPL3)
                                         : segment(USER_DS, 0, ~0u, ATTR_DATA32 | ATTR_DPL3);
    s->seg[SEG_CS] = mode == MODE64   ? segment(USER_CS64, 0, ~0u, ATTR_CODE64 | ATTR_DPL3)
                     : mode == MODE32 ? segment(USER_CS32, 0, ~0u, ATTR_CODE32 | ATTR_DPL3)
                                      : segment(CODE16_SEL, CODE16_BASE, 0xffff, ATTR_CODE16 | ATTR_DPL3);
    s->seg[SEG_SS] = s->seg[SEG_DS] = s->seg[SEG_ES] = data;
    s->seg[SEG_FS] = s->seg[SEG_GS] = segment(0, 0, 0, SEG_UNUSABLE);
}

// ---- one run
static void write_code(struct translated *t, const struct diff_code *code)
{
    uint32_t at = code->linear - CODE_BASE, room = CODE_SIZE - at;
    uint8_t image[MAX_CODE + EXIT_SLOT];
    memcpy(image, code->bytes, code->length);
    memcpy(image + code->length, "\xcd\x80\xeb\xfe", 4); // int 80h; jmp $
    uint32_t size = code->length + 4;
    mem_write(&t->mem, CODE_GPA + at, image, size < room ? size : room);
}

static uint8_t *arena(struct translated *t, uint32_t linear)
{
    return t->mem.ram + ARENA_GPA + (linear - ARENA_BASE);
}

static void set_state(struct translated *t, const struct diff_code *code, const struct diff_state *in)
{
    struct vcpu *v = t->v;
    struct cpu_state *s = &v->s;
    set_segments(s, code->mode);
    s->cpl = 3;
    s->shadow = 0;
    s->activity = ACT_RUNNING;
    s->cr2 = 0;
    memcpy(s->gpr, in->gpr, sizeof s->gpr);
    s->rip = code->linear - code_base(code->mode);
    cpu_set_rflags(v, (in->rflags & ~0x7300ull) | 0x202);
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

static int get_state(struct translated *t, struct diff_state *out)
{
    const struct cpu_state *s = &t->v->s;
    uint64_t gate = s->rip - (SYS_BASE + SYS_GATES), stack = s->gpr[RSP] - SYS_BASE;
    if (gate >= 256 * 16 || stack < SYS_STACK || stack > SYS_STACK + 0x1000 - 40)
        return -EIO;
    unsigned vector = (unsigned)(gate / 16);
    uint64_t frame[6]; // error code (if any), RIP, CS, RFLAGS, RSP, SS
    memcpy(frame, t->mem.ram + SYS_GPA + stack, sizeof frame);
    const uint64_t *f = has_error_code(vector) ? frame + 1 : frame;
    memcpy(out->gpr, s->gpr, sizeof out->gpr);
    out->gpr[RSP_NUMBER] = f[3];
    out->rflags = f[2];
    bool ended = vector == VECTOR_END;
    out->vector = ended ? VECTOR_NONE : (int32_t)vector;
    out->error = has_error_code(vector) ? (uint32_t)frame[0] : 0;
    out->address = vector == EXC_PF ? s->cr2 : 0;
    out->rip = ended ? 0 : f[0];
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
    int error = get_state(t, out);
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
    t->v->exits = (struct vcpu_exits){port_read, port_write, mmio_read, mmio_write, pic_ack,
                                      no_time,   no_time,    no_trace,  t->v};
    cpu_reset(t->v);
    make_page_tables(t);
    make_descriptors(t);
    make_gates(t);
    make_system_state(t);
    memcpy(arena(t, READ_ONLY_LINEAR), read_only, 4096);
    if (engine_software.attach(t->v)) {
        snprintf(error, sizeof error, "the engine did not attach");
        goto fail;
    }
    engine_software_exact_flags(t->v, true);
    t->attached = true;
    engine_software_set_host(t->v, (struct engine_host){nothing, nothing, t->v});
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
