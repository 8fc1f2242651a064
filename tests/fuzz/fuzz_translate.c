// The decoder and the translator: arbitrary bytes in each mode become blocks, which must pass the verifier (verify.c); then
// they are linked, partly overwritten, and looked at again. Nothing translated is run.
//
// Input: mode (1 byte), settings (2), where the code lies in its page (2), then the code.
#include "cpu/model.h"
#include "dbt/internal.h"
#include "tests/fuzz/core.h"
#include "tests/fuzz/fuzz.h"

#define CODE_GPA  0x100000u // three pages: code, what follows it, and one for 16-bit wrap-around
#define PML4_GPA  0x1000u
#define PDPT_GPA  0x2000u
#define PD_GPA    0x3000u
#define PT_GPA    0x4000u
#define STEPS     48u

#define PTE_P 1ull
#define PTE_W 2ull
#define PTE_U 4ull
#define PTE_G 0x100ull

enum { REAL, V86, PROT16, PROT32, FLAT32, COMPAT, LONG, LONG_KERNEL, MODES };

// settings
#define SET_CPL3    0x0001u
#define SET_TS      0x0002u
#define SET_EM      0x0004u
#define SET_MP      0x0008u
#define SET_NOSSE   0x0010u
#define SET_NOAVX   0x0020u
#define SET_ONE     0x0040u
#define SET_BOUNCE  0x0080u
#define SET_EXACT   0x0100u
#define SET_ADVANCE 0x4000u // the cache goes on to its next region
#define SET_SMAP    0x0200u
#define SET_UNPAGED 0x0400u // the page behind the code is not there
#define SET_SMALL   0x0800u // segments end early
#define SET_EDGE    0x1000u // the code ends where addresses do
#define SET_GLOBAL  0x2000u

static struct core *core; // LLVMFuzzerTestOneInput() has no argument of ours

static void put64(uint64_t gpa, uint64_t value)
{
    memcpy(core->mem.ram + gpa, &value, 8);
}

static struct segment segment(uint64_t base, uint32_t limit, uint32_t attr)
{
    return (struct segment){.base = base, .limit = limit, .attr = attr, .sel = 8};
}

// One page table maps the three code pages, at the same place of the page-table hierarchy for every address used.
static uint64_t set_paging(struct cpu_state *s, unsigned mode, unsigned set)
{
    uint64_t la = mode == LONG_KERNEL ? (set & SET_EDGE ? 0xffffffffffffe000ull : 0xffffffff81000000ull)
                  : mode == LONG      ? (set & SET_EDGE ? 0x00007fffffffe000ull : 0x0000555555554000ull)
                  : set & SET_EDGE    ? 0xffffe000ull
                                      : 0x08048000ull;
    uint64_t user = mode == LONG_KERNEL ? 0 : PTE_U, global = set & SET_GLOBAL ? PTE_G : 0;
    memset(core->mem.ram + PML4_GPA, 0, 4 * 4096);
    for (unsigned i = 0; i < 3; i++) {
        uint64_t page = la + i * 4096;
        if (mode == COMPAT)
            page = (uint32_t)page;
        if (i == 1 && set & SET_UNPAGED)
            continue;
        put64(PML4_GPA + 8 * (page >> 39 & 511), PDPT_GPA | PTE_P | PTE_W | PTE_U);
        put64(PDPT_GPA + 8 * (page >> 30 & 511), PD_GPA | PTE_P | PTE_W | PTE_U);
        put64(PD_GPA + 8 * (page >> 21 & 511), PT_GPA | PTE_P | PTE_W | PTE_U);
        put64(PT_GPA + 8 * (page >> 12 & 511), (CODE_GPA + i * 4096) | PTE_P | PTE_W | user | global);
    }
    s->cr3 = PML4_GPA;
    s->cr0 |= CR0_PG;
    s->cr4 |= CR4_PAE | CR4_PGE;
    s->efer = EFER_LME | EFER_LMA | EFER_NXE;
    return la;
}

// Returns the linear address of the first code page.
static uint64_t set_mode(unsigned mode, unsigned set)
{
    struct vcpu *v = core->v;
    struct cpu_state *s = &v->s;
    uint64_t la = CODE_GPA, base = 0;
    uint32_t code = SEG_S | SEG_P | SEG_TYPE_CODE | SEG_TYPE_W | SEG_TYPE_A, data = SEG_S | SEG_P | SEG_TYPE_W | SEG_TYPE_A;
    uint32_t limit = 0xffffffff;
    unsigned cpl = set & SET_CPL3 ? 3 : 0;

    memset(s->gpr, 0, sizeof s->gpr);
    s->rflags = FL_ONE;
    s->shadow = 0;
    s->activity = ACT_RUNNING;
    s->cr0 = CR0_ET | CR0_NE | (set & SET_TS ? CR0_TS : 0) | (set & SET_EM ? CR0_EM : 0) | (set & SET_MP ? CR0_MP : 0);
    s->cr4 = (set & SET_NOSSE ? 0 : CR4_OSFXSR) | (set & SET_NOAVX ? 0 : CR4_OSXSAVE) | (set & SET_SMAP ? CR4_SMAP : 0);
    s->efer = 0;
    s->xcr0 = core->model->xcr0;
    switch (mode) {
    case REAL: case V86:
        base = CODE_GPA & 0xf0000;
        limit = 0xffff;
        s->cr0 |= mode == V86 ? CR0_PE : 0;
        s->rflags |= mode == V86 ? FL_VM : 0;
        cpl = mode == V86 ? 3 : 0;
        base = la = 0x20000; // within the reach of a real-mode segment
        break;
    case PROT16:
        s->cr0 |= CR0_PE;
        limit = set & SET_SMALL ? 0x17ff : 0xffff;
        base = la;
        break;
    case PROT32:
        s->cr0 |= CR0_PE;
        code |= SEG_DB;
        data |= SEG_DB;
        base = la = 0x00123000;
        limit = set & SET_SMALL ? 0x17ff : 0xfffff;
        break;
    case FLAT32:
        s->cr0 |= CR0_PE;
        code |= SEG_DB;
        data |= SEG_DB;
        break;
    case COMPAT:
        s->cr0 |= CR0_PE;
        code |= SEG_DB;
        data |= SEG_DB;
        la = set_paging(s, mode, set);
        break;
    default:
        s->cr0 |= CR0_PE;
        code |= SEG_L;
        if (mode == LONG_KERNEL)
            cpl = 0;
        la = set_paging(s, mode, set);
        break;
    }
    s->cpl = (uint8_t)cpl;
    s->seg[SEG_CS] = segment(base, limit, code | cpl << SEG_DPL_SHIFT);
    for (unsigned i = 0; i < SEG_COUNT; i++)
        if (i != SEG_CS)
            s->seg[i] = segment(base, limit, data | cpl << SEG_DPL_SHIFT);
    v->mode_gen++;
    mmu_flush_all(v, true);
    return la;
}

static uint64_t gpa_of(unsigned mode, uint64_t la)
{
    return mode == COMPAT || mode >= LONG ? CODE_GPA : la;
}

// Both return false when the guest would have got a fault instead.
static struct block *try_translate(struct dbt *d, uint32_t key)
{
    if (__builtin_setjmp(core->v->throw_buf))
        return NULL;
    return translate(d, key);
}

static bool try_chain(struct dbt *d, struct exit *e)
{
    if (__builtin_setjmp(core->v->throw_buf)) {
        if (d->fpu_saved)
            d->fpu_saved = 0;
        return false;
    }
    uint64_t code = run_chain(d, (uint64_t)e);
    claim(code >= d->stubs_begin && code < d->rx + d->cache_size, "run_chain() leads to %llx", (unsigned long long)code);
    return true;
}

static void link_exits(struct dbt *d, struct block *b)
{
    uint64_t evictions = d->n.evictions;
    for (unsigned i = 0; i < b->exit_count && d->n.evictions == evictions; i++) {
        mode_update(d);
        if (d->n.evictions == evictions)
            try_chain(d, &b->exits[i]);
    }
}

static uint32_t key_of(struct dbt *d, unsigned set)
{
    mode_update(d);
    uint32_t key = d->key;
    if (set & (SET_ONE | SET_BOUNCE))
        key |= KEY_ONE;
    if (set & SET_BOUNCE)
        key |= KEY_BOUNCE;
    return key;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct cursor c = {data, size};
    if (!core)
        core = core_create();
    struct vcpu *v = core->v;
    struct dbt *d = v->engine;
    unsigned mode = (unsigned)take(&c, 1) % MODES, set = (unsigned)take(&c, 2);
    unsigned start = (unsigned)take(&c, 2) & 0xfff, rewrite = start * 7;
    uint64_t la = set_mode(mode, set), gpa = gpa_of(mode, la);
    size_t n = c.left < 0x2000u - start ? c.left : 0x2000u - start;

    if (cache_block(d, 300))
        cache_flush(d);
    if (set & SET_ADVANCE)
        cache_advance(d);
    d->exact_flags = set & SET_EXACT;
    mem_write(&core->mem, gpa + start, take_bytes(&c, &n), n);

    // Along the code, block by block, as it would be met if no branch were taken.
    uint64_t rip = la + start - v->s.seg[SEG_CS].base;
    if (mode >= LONG)
        rip = la + start;
    for (unsigned step = 0; step < STEPS && rip - (la - (mode >= LONG ? 0 : v->s.seg[SEG_CS].base)) < start + n; step++) {
        v->s.rip = rip;
        uint32_t key = key_of(d, set);
        struct block *b = try_translate(d, key);
        if (!b)
            break;
        core_verify_block(d, b);
        unsigned length = b->guest_len; // linking may flush
        link_exits(d, b);
        rip += length;
    }
    core_verify_cache(d);
    struct block *b;
    for (uint32_t i = cache_block(d, 64) ? 64 : 0; (b = cache_block(d, i)); i++)
        if (!b->dead)
            core_verify_block(d, b);
    // The guest changes part of it, then all its mappings, then everything.
    mem_write(&core->mem, gpa + rewrite % 0x2000, data, size < 8 ? size : 8);
    core_verify_cache(d);
    mmu_flush_page(v, la);
    mmu_flush_all(v, false);
    static const uint8_t nops[0x3000];
    mem_write(&core->mem, gpa, nops, sizeof nops);
    core_verify_cache(d);
    return 0;
}
