// The cache's regions in turn: filled a little with blocks that lead to each other across regions and pages,
// then left for the next, which loses what it held. After each step nothing may lead to what is gone, and all
// that is left must be found. Nothing translated is run.
#include "tests/fuzz/core.h"
#include "tests/fuzz/fuzz.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#define PML4_GPA 0x1000u
#define PDPT_GPA 0x2000u
#define PD_GPA   0x3000u
#define AREA     0x200000u // the first pages of code; others, mapped global, 2 MiB further on
#define PAGES    96u
#define SIZE     64u // of the code for a block
#define PER_PAGE (PAGE_SIZE / SIZE)
#define STEPS    (REGIONS + 8) // once around, and on
#define TRIES    160u

static struct core *core; // there can be one in a process
static uint32_t random_state = 2463534242u;

static uint32_t any(uint32_t below)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state % below;
}

static uint64_t place(unsigned page, unsigned n)
{
    return AREA + (page < PAGES / 2 ? 0 : 0x200000 - PAGES / 2 * PAGE_SIZE) + page * PAGE_SIZE + n * SIZE;
}

// Now and then at an instruction that ends in the next page, with the first bytes of the code there.
static uint64_t any_place(void)
{
    unsigned page = any(PAGES);
    if (any(16) || page == PAGES / 2 - 1 || page == PAGES - 1)
        return place(page, any(PER_PAGE));
    uint64_t at = place(page + 1, 0) - 3;
    mem_write(&core->mem, at, "\x05", 1); // add eax, n
    return at;
}

static void put64(uint64_t gpa, uint64_t value)
{
    memcpy(core->mem.ram + gpa, &value, 8);
}

static unsigned put_branch(uint8_t *code, unsigned at, unsigned opcode, uint64_t from, uint64_t to)
{
    if (opcode > 0xff)
        code[at++] = (uint8_t)(opcode >> 8);
    code[at++] = (uint8_t)opcode;
    int32_t relative = (int32_t)(to - (from + at + 4));
    memcpy(code + at, &relative, 4);
    return at + 4;
}

// ADD, a store, a branch ahead in the page or to another, and a way out of one of four kinds.
static void put_code(uint64_t at)
{
    uint8_t code[SIZE] = {0x05, (uint8_t)any(256), 1, 2, 3, 0x89, 0x07, 0xa8,
                          0x01}; // add eax, n; mov [rdi], eax; test al, 1
    uint64_t page_end = (at | (PAGE_SIZE - 1)) + 1;
    unsigned n = 9;
    n = put_branch(code, n, 0x0f84, at, any(4) && at + SIZE < page_end ? at + SIZE : any_place());
    memcpy(code + n, "\x03\x47\x08\x89\x47\x10", 6); // add eax, [rdi + 8]; mov [rdi + 16], eax
    n += 6;
    switch (any(4)) {
    case 0: n = put_branch(code, n, 0xe9, at, any_place()); break; // jmp
    case 1: n = put_branch(code, n, 0xe8, at, any_place()); break; // call
    case 2: code[n++] = 0xc3; break;
    default:
        n = put_branch(code, n, 0x0f85, at, (at & ~(PAGE_SIZE - 1ull)) + any(PER_PAGE) * SIZE); // jnz
        n = put_branch(code, n, 0xe9, at, (at & ~(PAGE_SIZE - 1ull)) + any(PER_PAGE) * SIZE);
        break;
    }
    mem_write(&core->mem, at, code, SIZE);
}

static void set_mode(void)
{
    struct vcpu *v = core->v;
    struct cpu_state *s = &v->s;
    uint32_t attr = SEG_S | SEG_P | SEG_TYPE_W | SEG_TYPE_A;
    put64(PML4_GPA, PDPT_GPA | 3);
    put64(PDPT_GPA, PD_GPA | 3);
    for (unsigned i = 0; i < CORE_RAM >> 21; i++)
        put64(PD_GPA + 8 * i, (uint64_t)i << 21 | 0x83 | (i == 2 ? 0x100 : 0)); // 2 MiB pages
    s->rflags = FL_ONE;
    s->cr0 = CR0_ET | CR0_NE | CR0_PE | CR0_PG;
    s->cr3 = PML4_GPA;
    s->cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR;
    s->efer = EFER_LME | EFER_LMA;
    s->cpl = 0;
    for (unsigned i = 0; i < SEG_COUNT; i++)
        s->seg[i] = (struct segment){
            .limit = 0xffffffff, .attr = attr | (i == SEG_CS ? SEG_TYPE_CODE | SEG_L : 0), .sel = 8};
    v->mode_gen++;
    mmu_flush_all(v, true);
}

static struct block *block_for(struct dbt *d, uint64_t rip)
{
    mode_update(d);
    d->v->s.rip = rip;
    struct block *b = cache_find(d, rip, rip, d->key);
    return b ? b : translate(d, d->key);
}

static struct block *any_block(struct dbt *d)
{
    uint32_t count = 0;
    while (cache_block(d, count))
        count++;
    return count ? cache_block(d, any(count)) : NULL;
}

// ---- what must hold

static unsigned region_of(const struct dbt *d, const void *p)
{
    uint64_t offset = (uint64_t)((const uint8_t *)p - d->arena);
    assert_true(offset < REGIONS * REGION_ARENA);
    unsigned region = (unsigned)(offset / REGION_ARENA);
    assert_true(offset < d->regions[region].arena_used); // else it has been discarded
    return region;
}

static unsigned age_of(const struct dbt *d, const void *p) // 0: the region being filled
{
    return (d->region + REGIONS - region_of(d, p)) % REGIONS;
}

static void check_exit(const struct dbt *d, const struct block *b, const struct exit *e)
{
    uint64_t leads_to;
    assert_ptr_equal(exit_block(e), b);
    if (e->kind == EXIT_FAR) {
        leads_to = *(const uint64_t *)(uint64_t)e->site;
        unsigned slot = (unsigned)((const uint64_t *)(uint64_t)e->site - d->slots), region = region_of(d, e);
        assert_true(slot >= region * REGION_SLOTS && slot < d->regions[region].slot_used);
    } else {
        int32_t relative;
        memcpy(&relative, d->rw + (e->site - d->rx), 4);
        leads_to = e->site + 4 + (uint64_t)(int64_t)relative;
    }
    if (e->to) {
        const struct block *to = LOW(struct block, e->to);
        region_of(d, to);
        assert_false(to->dead);
        assert_int_equal(to->rip, e->target);
        assert_int_equal(leads_to, e->kind == EXIT_FAR ? to->code_parked : to->code);
    } else {
        assert_int_equal(leads_to, e->cold);
    }
}

static void check_logs(const struct dbt *d)
{
    for (unsigned g = 0; g < 2; g++)
        for (uint32_t i = 0; i < d->far_count[g]; i++) {
            region_of(d, d->far_log[g][i]);
            assert_true(d->far_log[g][i]->logged && d->far_log[g][i]->kind == EXIT_FAR);
        }
}

static void check_tables(struct dbt *d)
{
    for (unsigned c = 0; c < d->context_count; c++)
        for (unsigned i = 0; i < 65536; i++) {
            uint64_t rip = d->contexts[c].tag[i];
            if (rip == (i == 0))
                continue;
            struct block *b = cache_block_at(d, d->contexts[c].code[i]);
            assert_non_null(b);
            assert_true(!b->dead && b->rip == rip && b->key == d->contexts[c].key &&
                        b->code_parked == d->contexts[c].code[i]);
        }
}

static void check_pages(const struct dbt *d)
{
    for (uint64_t page = 0; page < d->page_count; page++) {
        unsigned age = REGIONS;
        for (const struct page_link *l = d->pages[page]; l; l = l->next) {
            assert_int_equal(region_of(d, l), region_of(d, l->block));
            assert_true(age_of(d, l) <= age); // the oldest first
            age = age_of(d, l);
            if (!l->next)
                assert_ptr_equal(d->page_end[page], &l->next);
        }
        if (d->pages[page])
            assert_true(mem_trace_bits(d->v->mem, page) & TRACE_CODE);
    }
}

static void check_all(struct dbt *d)
{
    uint32_t live = 0, hashed = 0, logged = 0;
    const struct block *b;
    core_verify_cache(d);
    for (uint32_t i = 0; (b = cache_block(d, i)); i++) {
        region_of(d, b);
        live += !b->dead;
        for (unsigned e = 0; e < b->exit_count; e++) {
            check_exit(d, b, &b->exits[e]);
            logged += b->exits[e].logged;
        }
        if (!b->dead)
            assert_ptr_equal(cache_find(d, b->rip, b->gpa, b->key), b);
    }
    for (uint32_t i = 0; i <= d->hash_mask; i++)
        for (b = d->hash[i]; b; b = b->hash_next) {
            region_of(d, b);
            assert_false(b->dead);
            hashed++;
        }
    assert_int_equal(hashed, live);
    assert_int_equal(logged, d->far_count[0] + d->far_count[1]);
    check_logs(d);
    check_tables(d);
    check_pages(d);
}

// ---- the tests

static void fill(struct dbt *d)
{
    for (unsigned i = 0; i < TRIES; i++) {
        struct block *b = block_for(d, any_place());
        unsigned region = d->region;
        cache_ib_set(d, b);
        for (unsigned e = 0; e < b->exit_count && d->region == region; e++)
            run_chain(d, (uint64_t)&b->exits[e]);
        b = any_block(d); // an old one is linked to what is new
        if (b && !b->dead && b->exit_count)
            run_chain(d, (uint64_t)&b->exits[any(b->exit_count)]);
        if (!any(40))
            put_code(any_place());
        if (!any(60))
            mmu_flush_page(d->v, any_place());
        if (!any(150))
            mmu_flush_all(d->v, any(2));
    }
}

static void nothing_leads_to_a_region_that_went(void **state)
{
    (void)state;
    struct dbt *d = core->v->engine;
    uint64_t before = d->n.evictions;
    for (unsigned step = 0; step < STEPS; step++) {
        fill(d);
        check_all(d);
        unsigned next = (d->region + 1) % REGIONS;
        bool held = d->regions[next].block_count;
        d->contexts[0].ras_sp = d->ras_sp = d->ras_base - 16; // a prediction of a RET
        cache_advance(d);
        assert_int_equal(d->region, next);
        assert_int_equal(d->regions[next].block_count, 0);
        if (held)
            for (unsigned c = 0; c < d->context_count; c++)
                assert_int_equal(d->contexts[c].ras_sp, d->contexts[c].ras_base);
        if (held)
            assert_int_equal(d->ras_sp, d->ras_base);
        check_all(d);
    }
    assert_true(d->n.evictions >= before + 2 * STEPS - REGIONS);
}

static void breakpoints_go_before_their_region(void **state)
{
    (void)state;
    struct dbt *d = core->v->engine;
    fill(d);
    struct block *b = block_for(d, place(3, 3));
    uint8_t *code = d->rw + (b->code - d->rx), *copy = malloc(b->code_len);
    uint32_t length = b->code_len;
    memcpy(copy, code, length);
    plant(d, b);
    assert_true(d->planted_count > 1);
    assert_memory_not_equal(code, copy, length);
    unsigned region = d->region;
    while ((d->region + 1) % REGIONS != region) { // all but its own region
        cache_advance(d);
        block_for(d, place(5, d->region)); // none is empty
    }
    plant_remove(d);
    plant(d, b);
    cache_advance(d);
    assert_int_equal(d->planted_count, 0);
    assert_memory_equal(code + b->map[0].host, copy + b->map[0].host, 1);
    free(copy);
    check_all(d);
}

static void a_flush_leaves_nothing(void **state)
{
    (void)state;
    struct dbt *d = core->v->engine;
    for (unsigned i = 0; i < REGIONS + 5; i++) { // the region being filled is not the last
        fill(d);
        cache_advance(d);
    }
    fill(d);
    cache_flush(d);
    assert_null(cache_block(d, 0));
    assert_int_equal(d->far_count[0] + d->far_count[1], 0);
    for (uint64_t page = 0; page < d->page_count; page++) {
        assert_null(d->pages[page]);
        assert_false(mem_trace_bits(d->v->mem, page) & TRACE_CODE);
    }
    check_all(d);
    fill(d);
    check_all(d);
}

static void a_full_region_makes_room_in_the_next(void **state)
{
    (void)state;
    struct dbt *d = core->v->engine;
    cache_flush(d);
    for (unsigned what = 0; what < 3; what++) {
        unsigned region = d->region;
        struct region *r = &d->regions[region];
        fill(d);
        switch (what) { // hardly anything is left of
        case 0: r->code_used = (uint64_t)(region + 1) * REGION_CODE - 64; break;
        case 1: r->arena_used = (uint64_t)(region + 1) * REGION_ARENA - 304; break;
        default: r->slot_used = (region + 1) * REGION_SLOTS; break;
        }
        for (unsigned i = 0; i < PER_PAGE; i++)
            block_for(d, place(7 + what, i));
        assert_int_equal(d->region, region + 1);
        check_all(d);
    }
}

static int create(void **state)
{
    (void)state;
    core = core_create();
    set_mode();
    for (unsigned page = 0; page < PAGES; page++)
        for (unsigned n = 0; n < PER_PAGE; n++)
            put_code(place(page, n));
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_leads_to_a_region_that_went),
        cmocka_unit_test(breakpoints_go_before_their_region),
        cmocka_unit_test(a_flush_leaves_nothing),
        cmocka_unit_test(a_full_region_makes_room_in_the_next),
    };
    return cmocka_run_group_tests(tests, create, NULL);
}
