// What of the CPU's state blocks are keyed by, and where code is fetched from.
#include "dbt/dbt.h"

#define ATTR_FLAT_MASK (SEG_UNUSABLE | SEG_P | SEG_S | SEG_TYPE_CODE | SEG_TYPE_E | SEG_TYPE_W)
#define ATTR_FLAT      (SEG_P | SEG_S | SEG_TYPE_W)

static bool flat_data(const struct segment *s)
{
    return s->base == 0 && s->limit == 0xffffffffu && (s->attr & ATTR_FLAT_MASK) == ATTR_FLAT;
}

// Highest offset a read or write may touch without asking cpu/: real and v8086 mode and plain expand-up segments.
static void segment_limits(struct dbt *d, unsigned i)
{
    const struct vcpu *v = d->v;
    const struct segment *s = &v->s.seg[i];
    int64_t limit = s->limit, read = limit, write = limit;
    if (cpu_protected(v) && !cpu_v86(v)) {
        if (s->attr & SEG_UNUSABLE || !(s->attr & SEG_P) || !(s->attr & SEG_S)) {
            read = write = -1;
        } else if (s->attr & SEG_TYPE_CODE) {
            write = -1;
            if (!(s->attr & SEG_TYPE_W))
                read = -1;
        } else {
            if (s->attr & SEG_TYPE_E)
                read = write = -1;
            if (!(s->attr & SEG_TYPE_W))
                write = -1;
        }
    }
    d->limit_read[i] = read;
    d->limit_write[i] = write;
}

struct context *mode_context(struct dbt *d, uint32_t key)
{
    const struct segment *cs = &d->v->s.seg[SEG_CS];
    bool code64 = (key & KEY_CODE_MASK) == KEY_CODE64;
    uint64_t base = code64 ? 0 : cs->base;
    uint32_t limit = code64 ? 0 : cs->limit;
    uint8_t *last = &d->context_of[(key ^ key >> 8 ^ key >> 16) & 0xff];
    if (*last && *last <= d->context_count) {
        struct context *c = &d->contexts[*last - 1];
        if (c->key == key && c->cs_base == base && c->cs_limit == limit)
            return c;
    }
    for (unsigned i = 0; i < d->context_count; i++)
        if (d->contexts[i].key == key && d->contexts[i].cs_base == base && d->contexts[i].cs_limit == limit) {
            *last = (uint8_t)(i + 1);
            return &d->contexts[i];
        }
    if (d->context_count == CONTEXTS) {
        // Forgetting them all would leave translated code that uses their tables: only a flush may do that.
        return NULL;
    }
    struct context *c = &d->contexts[d->context_count++];
    c->key = key;
    c->cs_base = base;
    c->cs_limit = limit;
    c->ras_sp = c->ras_base;
    return c;
}

#define SYSCALL_CLEARS (FL_ARITH | FL_TF | FL_IF | FL_DF | FL_AC)

// Fast are those after which neither flags nor modes of translated code depend on what they were before.
static void update_syscall(struct dbt *d)
{
    const struct cpu_state *s = &d->v->s;
    struct fast_syscall *f = &d->syscall;
    f->usable = s->efer & EFER_SCE && cpu_long(d->v) && !(s->cr4 & CR4_TSD) && !(SYSCALL_CLEARS & ~s->sfmask);
    f->keep = ~(s->sfmask | FL_RF) | FL_ONE;
    if (f->usable && f->star != s->star) {
        f->star = s->star;
        cpu_syscall_segments(s->star, f->kernel, f->user);
    }
}

void mode_update(struct dbt *d)
{
    const struct vcpu *v = d->v;
    const struct cpu_state *s = &v->s;
    const struct segment *cs = &s->seg[SEG_CS], *ss = &s->seg[SEG_SS];
    uint32_t k = 0;
    if (cpu_code64(v))
        k |= KEY_CODE64;
    else if (cs->attr & SEG_DB)
        k |= KEY_CODE32;
    if (ss->attr & SEG_DB)
        k |= KEY_STACK32;
    k |= (uint32_t)s->cpl << KEY_CPL_SHIFT;
    if (s->cr0 & CR0_PE)
        k |= KEY_PE;
    if (s->rflags & FL_VM)
        k |= KEY_VM;
    if (!(k & KEY_CODE64)) {
        k |= flat_data(&s->seg[SEG_DS]) ? KEY_FLAT_DS : 0;
        k |= flat_data(&s->seg[SEG_ES]) ? KEY_FLAT_ES : 0;
        k |= flat_data(ss) ? KEY_FLAT_SS : 0;
        k |= cs->base == 0 && cs->limit == 0xffffffffu ? KEY_FLAT_CS : 0;
        for (unsigned i = 0; i < SEG_COUNT; i++)
            segment_limits(d, i);
    } else {
        k &= ~KEY_STACK32;
    }
    k |= (uint32_t)mmu_tlb_kind(v) << KEY_TLB_SHIFT;
    k |= s->cr4 & CR4_SMAP ? KEY_SMAP : 0;
    k |= s->cr0 & CR0_TS ? KEY_TS : 0;
    k |= s->cr0 & CR0_EM ? KEY_EM : 0;
    k |= s->cr0 & CR0_MP ? KEY_MP : 0;
    k |= s->cr4 & CR4_OSFXSR ? KEY_OSFXSR : 0;
    k |= s->cr4 & CR4_TSD && s->cpl ? KEY_TSD : 0;
    if (s->cr4 & CR4_OSXSAVE) {
        k |= KEY_OSXSAVE;
        k |= (s->xcr0 & 6) == 6 ? KEY_AVX : 0;
        k |= (s->xcr0 & 0xe6) == 0xe6 ? KEY_AVX512 : 0;
    }
    if (v->ignne || d->single) // cpu_x87_ignored() comes behind each instruction
        k |= KEY_ONE;
    // The host checks the alignment itself, where the instruction runs on a bounce buffer that keeps it.
    if (s->cpl == 3 && s->rflags & FL_AC && s->cr0 & CR0_AM)
        k |= KEY_ONE | KEY_BOUNCE | KEY_AC;
    if (k != d->key || !d->context || d->context->cs_base != ((k & KEY_CODE64) ? 0 : cs->base) ||
        d->context->cs_limit != ((k & KEY_CODE64) ? 0 : cs->limit)) {
        struct context *c = mode_context(d, k);
        if (!c) {
            cache_flush(d);
            d->context_count = 0;
            c = mode_context(d, k);
        } else if (d->context) {
            d->context->ras_sp = d->ras_sp;
        }
        d->context = c;
        d->ras_base = c->ras_base;
        d->ras_sp = c->ras_sp;
    }
    update_syscall(d);
    d->key = k;
    d->key_gen = v->mode_gen;
}

struct code_page mode_fetch(struct dbt *d, uint64_t la)
{
    struct vcpu *v = d->v;
    uint64_t page = la >> PAGE_SHIFT;
    unsigned kind = v->s.cpl == 3 ? 2 : 1;
    unsigned i = page & 255;
    if (d->code_tlb[i].page == page && d->code_tlb[i].kind == kind)
        return (struct code_page){d->code_tlb[i].gpa_page | (la & (PAGE_SIZE - 1)), d->code_tlb[i].global};
    if ((uint64_t)((int64_t)(la << 16) >> 16) != la) // 64-bit code only
        cpu_throw_error(v, EXC_GP, 0);
    uint64_t gpa = mmu_fetch_gpa(v, la);
    struct walk w = {0};
    uint32_t error;
    bool global = mmu_probe(v, la, ACC_EXEC | mmu_acc(v), &w, &error) && w.global;
    unsigned bit = code_page_bit(page);
    d->code_pages[global][bit >> 6] |= 1ull << (bit & 63);
    d->code_tlb[i].page = page;
    d->code_tlb[i].gpa_page = gpa & ~(PAGE_SIZE - 1);
    d->code_tlb[i].kind = (uint8_t)kind;
    d->code_tlb[i].global = global;
    return (struct code_page){gpa, global};
}
