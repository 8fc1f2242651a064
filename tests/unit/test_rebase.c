// Copies of blocks at other guest addresses (dbt/rebase.c) are what translating them there makes: the C library's text is translated at
// one address, copied to another, and translated there anew. Nothing translated is run.
#include "cpu/model.h"
#include "dbt/internal.h"
#include "tests/fuzz/core.h"
#include "tests/fuzz/fuzz.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#define CODE_GPA  0x200000u
#define PML4_GPA  0x1000u
#define PDPT_GPA  0x2000u
#define PD_GPA    0x3000u
#define PT_GPA    0x4000u // and the next
#define TABLE     0x207u  // present, writable, user
#define CODE_SIZE 0x60000u
#define SHIFT     37u // pages
#define HERE      0x7f0000000000ull
#define THERE     (HERE + 0x12200000ull + SHIFT * PAGE_SIZE)

static struct core *core;

static void put64(uint64_t gpa, uint64_t value)
{
    memcpy(core->mem.ram + gpa, &value, 8);
}

static void set_up(void)
{
    struct vcpu *v = core->v;
    struct cpu_state *s = &v->s;
    put64(PML4_GPA + 8 * (HERE >> 39 & 511), PDPT_GPA | TABLE);
    put64(PDPT_GPA, PD_GPA | TABLE);
    put64(PD_GPA, PT_GPA | TABLE);
    put64(PD_GPA + 8 * (THERE >> 21 & 511), (PT_GPA + PAGE_SIZE) | TABLE);
    for (unsigned i = 0; i < CODE_SIZE / PAGE_SIZE; i++) {
        put64(PT_GPA + 8 * i, (CODE_GPA + i * PAGE_SIZE) | TABLE);
        put64(PT_GPA + PAGE_SIZE + 8 * (i + SHIFT), (CODE_GPA + i * PAGE_SIZE) | TABLE);
    }
    s->rflags = FL_ONE | FL_IF;
    s->cr0 = CR0_ET | CR0_NE | CR0_PE | CR0_PG | CR0_WP;
    s->cr3 = PML4_GPA;
    s->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXSAVE | CR4_OSXMMEXCPT;
    s->efer = EFER_LME | EFER_LMA | EFER_SCE;
    s->xcr0 = v->model->xcr0;
    s->cpl = 3;
    for (unsigned i = 0; i < SEG_COUNT; i++)
        s->seg[i] = (struct segment){.limit = 0xffffffff, .sel = i == SEG_CS ? 0x33 : 0x2b,
                                     .attr = SEG_S | SEG_P | SEG_TYPE_W | SEG_TYPE_A | 3 << 5 | (i == SEG_CS ? SEG_TYPE_CODE | SEG_L : SEG_DB)};
    v->mode_gen++;
    mmu_flush_all(v, true);
}

static struct block *make(uint64_t rip)
{
    struct dbt *d = core->v->engine;
    mode_update(d);
    d->v->s.rip = rip;
    return translate(d, d->key);
}

// ---- comparing two blocks of one guest address

static const uint8_t *code_of(const struct block *b)
{
    const struct dbt *d = core->v->engine;
    return d->rw + (b->code - d->rx);
}

static uint64_t value_at(const struct block *b, unsigned at, unsigned size)
{
    uint64_t value = 0;
    memcpy(&value, code_of(b) + at, size);
    return value;
}

// What a distance leads to: a place in the block, the slot of one of its exits, or a place of all.
static uint64_t what_it_leads_to(const struct block *b, unsigned at)
{
    uint32_t target = b->code + at + 4 + (uint32_t)value_at(b, at, 4);
    for (unsigned i = 0; i < b->exit_count; i++)
        if (b->exits[i].kind == EXIT_FAR && b->exits[i].site == target)
            return 1ull << 40 | i;
    return target - b->code < b->code_len ? 1ull << 41 | (target - b->code) : target;
}

static void assert_field(const struct block *x, const struct block *y, const struct reloc *r)
{
    uint64_t vx = value_at(x, r->at, 4), vy = value_at(y, r->at, 4);
    switch ((enum reloc_kind)r->kind) {
    case RELOC_REL32: assert_int_equal(what_it_leads_to(x, r->at), what_it_leads_to(y, r->at)); break;
    case RELOC_RIP64: assert_int_equal(value_at(x, r->at, 8), value_at(y, r->at, 8)); break;
    case RELOC_RIP32:
    case RELOC_TLB:
    case RELOC_INDEX: assert_int_equal(vx, vy); break;
    case RELOC_EXIT:
        assert_int_equal(LOW(struct exit, vx) - x->exits, LOW(struct exit, vy) - y->exits);
        assert_in_range(LOW(struct exit, vx) - x->exits, 0, x->exit_count - 1);
        break;
    case RELOC_BRANCH:
        assert_int_equal(LOW(struct branch, vx)->rip, LOW(struct branch, vy)->rip);
        assert_int_equal(LOW(struct branch, vx)->popped, LOW(struct branch, vy)->popped);
        assert_int_not_equal(vx, vy);
        break;
    case RELOC_SITE:
        assert_int_equal(LOW(struct site, vx)->rip, LOW(struct site, vy)->rip);
        assert_memory_equal(&LOW(struct site, vx)->in, &LOW(struct site, vy)->in, sizeof(struct insn));
        assert_int_not_equal(vx, vy);
        break;
    }
}

static void assert_map_entry(const struct map_entry *m, const struct map_entry *n) // one bit of them is nobody's
{
    assert_int_equal(m->host, n->host);
    assert_int_equal(m->guest, n->guest);
    assert_int_equal(m->string, n->string);
    assert_int_equal(m->shadow, n->shadow);
    assert_int_equal(m->parked, n->parked);
    assert_int_equal(m->borrowed, n->borrowed);
    assert_int_equal(m->rest, n->rest);
}

static void assert_same(const struct block *x, const struct block *y)
{
    static uint8_t code[2][65536];
    assert_int_equal(x->rip, y->rip);
    assert_int_equal(x->gpa, y->gpa);
    assert_int_equal(x->code_len, y->code_len);
    assert_int_equal(x->code_parked - x->code, y->code_parked - y->code);
    assert_int_equal(x->map_count, y->map_count);
    for (unsigned i = 0; i < x->map_count; i++)
        assert_map_entry(&x->map[i], &y->map[i]);
    assert_int_equal(x->range_count, y->range_count);
    assert_memory_equal(x->range, y->range, x->range_count * sizeof *x->range);
    assert_int_equal(x->indirect_count, y->indirect_count);
    assert_memory_equal(x->indirect, y->indirect, x->indirect_count * sizeof *x->indirect);
    assert_int_equal(x->reloc_count, y->reloc_count);
    memcpy(code[0], code_of(x), x->code_len);
    memcpy(code[1], code_of(y), y->code_len);
    for (unsigned i = 0; i < x->reloc_count; i++) {
        const struct reloc *r = &x->relocs[i];
        assert_int_equal(r->at, y->relocs[i].at);
        assert_int_equal(r->kind, y->relocs[i].kind);
        assert_field(x, y, r);
        for (unsigned k = 0; k < 2; k++)
            memset(code[k] + r->at, 0, r->kind == RELOC_RIP64 ? 8 : 4);
    }
    assert_memory_equal(code[0], code[1], x->code_len); // all that depends on the place is noted
    assert_int_equal(x->exit_count, y->exit_count);
    for (unsigned i = 0; i < x->exit_count; i++) {
        const struct exit *e = &x->exits[i], *f = &y->exits[i];
        assert_int_equal(e->target, f->target);
        assert_int_equal(e->kind, f->kind);
        assert_int_equal(e->out, f->out);
        assert_int_equal(e->at_out, f->at_out);
        assert_int_equal(e->tlb, f->tlb);
        assert_int_equal(e->cold - x->code, f->cold - y->code);
        assert_int_equal(e->to | f->to | e->incoming_next | f->incoming_next | e->logged | f->logged, 0);
        assert_ptr_equal(LOW(struct block, e->block), x);
        if (e->kind == EXIT_FAR)
            assert_int_equal(*LOW(uint64_t, e->site), e->cold);
        else
            assert_int_equal(e->site - x->code, f->site - y->code);
    }
}

// ----

static uint64_t copies, blocks, full;

// At `offset` of the code: returns where the next block begins.
static unsigned compare_at(unsigned offset)
{
    struct dbt *d = core->v->engine;
    uint64_t before = d->n.rebased;
    struct block *here = make(HERE + offset);
    core_verify_block(d, here);
    unsigned next = offset + here->guest_len;
    blocks++;
    if (here->relocs) {
        for (unsigned i = 0; i < here->exit_count; i++) // as if it had run
            cache_link(d, &here->exits[i], here);
        struct block *there = make(THERE + offset);
        if (d->n.rebased == before) { // the region was full
            full++;
            cache_kill(d, here);
            cache_kill(d, there);
            return offset;
        }
        core_verify_block(d, there);
        cache_kill(d, here);
        cache_kill(d, there);
        struct block *anew = make(THERE + offset);
        assert_int_equal(d->n.rebased, before + 1); // it was translated
        if (anew->relocs) { // else there was no room for them
            assert_same(there, anew);
            copies++;
        }
    }
    cache_kill(d, make(THERE + offset));
    return next;
}

static void the_c_librarys_code(void **state)
{
    (void)state;
    FILE *f = fopen("/lib/x86_64-linux-gnu/libc.so.6", "rb");
    if (!f)
        skip();
    for (long at = 0x28000; at < 0x170000; at += CODE_SIZE - 0x8000) {
        assert_int_equal(fseek(f, at, SEEK_SET), 0);
        cache_flush(core->v->engine);
        if (fread(core->mem.ram + CODE_GPA, 1, CODE_SIZE, f) != CODE_SIZE)
            break;
        for (unsigned offset = 0; offset < CODE_SIZE - PAGE_SIZE;)
            offset = compare_at(offset);
    }
    fclose(f);
    print_message("%llu of %llu blocks can be copied\n", (unsigned long long)copies, (unsigned long long)blocks);
    assert_true(blocks > 10000 && copies > blocks * 8 / 10 && full < blocks / 200);
}

static void random_bytes(void **state)
{
    (void)state;
    for (unsigned seed = 1; seed < 6; seed++) {
        srand(seed);
        cache_flush(core->v->engine);
        for (unsigned i = 0; i < CODE_SIZE; i++)
            core->mem.ram[CODE_GPA + i] = (uint8_t)(rand() >> 8);
        for (unsigned offset = 0; offset < CODE_SIZE / 4;)
            offset = compare_at(offset) + 1;
    }
}

// Other bytes, another mode or another physical page: never a copy.
static void only_the_same_code_is_copied(void **state)
{
    (void)state;
    struct dbt *d = core->v->engine;
    static const uint8_t code[] = {0x48, 0x8b, 0x05, 0x10, 0, 0, 0, 0xc3}; // mov rax, [rip + 10h]; ret
    cache_flush(d);
    memset(core->mem.ram + CODE_GPA, 0xcc, 2 * PAGE_SIZE);
    mem_write(&core->mem, CODE_GPA, code, sizeof code);
    mem_write(&core->mem, CODE_GPA + PAGE_SIZE, code, sizeof code);
    uint64_t before = d->n.rebased;
    make(HERE);
    make(HERE + PAGE_SIZE);
    assert_int_equal(d->n.rebased, before); // the page next to it
    make(THERE);
    assert_int_equal(d->n.rebased, before + 1);
    mem_write(&core->mem, CODE_GPA + 3, "\x20", 1);
    struct block *b = make(THERE);
    assert_int_equal(d->n.rebased, before + 1); // both were discarded
    assert_true(b->relocs);
    core->v->s.cr0 |= CR0_TS;
    core->v->mode_gen++;
    make(HERE);
    assert_int_equal(d->n.rebased, before + 1);
    core->v->s.cr0 &= ~(uint64_t)CR0_TS;
    core->v->mode_gen++;
    make(HERE);
    assert_int_equal(d->n.rebased, before + 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_the_same_code_is_copied),
        cmocka_unit_test(the_c_librarys_code),
        cmocka_unit_test(random_bytes),
    };
    core = core_create();
    if (!core)
        return 1;
    set_up();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
