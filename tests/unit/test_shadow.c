// Shadows of guest address spaces: what is mapped, what takes it away, and a torture against a model of the
// host.
#include "mmu_fixture.h"
#include "mmu/shadow.h"
#include <stdio.h>
#include <time.h>

#define LA           0x40000000ull
#define DATA         0x400000ull // 2 MiB of RAM that large pages map too
#define PAGES        4096u       // of RAM
#define TOP          (1ull << 47)
#define ALL          (P | W | U)
#define RESERVED     0x10000ull
#define RESERVED_END 0x30000ull
#define R_           SHADOW_READ
#define RW_          (SHADOW_READ | SHADOW_WRITE)
#define RX_          (SHADOW_READ | SHADOW_EXEC)

static struct world world;
static struct shadow *shadow;
static unsigned asked; // may_execute() calls

static struct {
    unsigned written, changed;
} heard;

static bool may_execute(void *opaque, uint64_t ram_page)
{
    (void)opaque;
    asked++;
    return world.mem.ram[ram_page * 4096] != 0xcc;
}

static void on_written(void *opaque, uint64_t gpa, unsigned len)
{
    (void)opaque, (void)gpa, (void)len;
    heard.written++;
}

static void on_traced(void *opaque, uint64_t gpa)
{
    mmu_drop_writable(opaque, gpa);
}

static void on_changed(void *opaque)
{
    heard.changed++;
    mmu_flush_all(opaque, true);
}

static void create(unsigned spaces, unsigned prefill, uint64_t max_mappings)
{
    struct shadow_policy policy = {.may_execute = may_execute,
                                   .reserved = {{RESERVED, RESERVED_END}},
                                   .spaces = spaces,
                                   .prefill = prefill,
                                   .max_mappings = max_mappings};
    shadow_destroy(shadow);
    shadow = shadow_create(world.v, &policy);
    assert_non_null(shadow);
}

static int setup(void **state)
{
    (void)state;
    world_create(&world);
    world_paging(&world, PAGING_LONG);
    world.v->tlb = tlb_create(NULL);
    assert_non_null(world.v->tlb);
    world.mem.changed = on_changed;
    world.mem.changed_opaque = world.v;
    mem_trace_register(&world.mem,
                       (struct mem_trace_client){
                           .written = on_written, .traced = on_traced, .opaque = world.v, .bit = TRACE_CODE});
    memset(&heard, 0, sizeof heard);
    asked = 0;
    create(4, 1, 60000);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    shadow_destroy(shadow);
    shadow = NULL;
    for (unsigned page = 0; page < PAGES; page++)
        assert_false(world.mem.trace[page] & (TRACE_TABLE | TRACE_RAW));
    world_destroy(&world);
    return 0;
}

// ---- what the tests say

static uint64_t map(uint64_t la, uint64_t frame, uint64_t size, uint64_t flags, uint64_t entry[4])
{
    uint64_t own[4];
    entry = entry ? entry : own;
    struct mode mode = {"", PAGING_LONG, size == 4096 ? 4 : size == 1 << 30 ? 2 : 3, la, frame, size};
    world_map(&world, &mode, entry);
    uint64_t leaf = entry[mode.levels - 1];
    poke(&world, leaf, frame | flags | (size > 4096 ? PS : 0), 8);
    return leaf;
}

static int open_space(void)
{
    bool fresh;
    int space = shadow_open(shadow, &fresh);
    assert_true(space >= 0);
    return space;
}

static enum shadow_result fill(uint64_t la, unsigned acc)
{
    uint32_t error;
    return shadow_fill(shadow, open_space(), la, acc, &error);
}

static unsigned rights(uint64_t la)
{
    return shadow_rights(shadow, shadow_find(shadow), la, NULL);
}

static unsigned changes(void)
{
    unsigned count;
    shadow_changes(shadow, shadow_find(shadow), &count);
    return count;
}

static struct shadow_change change(unsigned n)
{
    unsigned count;
    const struct shadow_change *c = shadow_changes(shadow, shadow_find(shadow), &count);
    assert_true(n < count);
    return c[n];
}

static void done(void)
{
    shadow_done(shadow, shadow_find(shadow));
}

#define assert_change(n, a, s, o, r)                                                                         \
    do {                                                                                                     \
        struct shadow_change c_ = change(n);                                                                 \
        assert_int_equal(c_.la, a);                                                                          \
        assert_int_equal(c_.size, s);                                                                        \
        assert_int_equal(c_.rights, r);                                                                      \
        if (r)                                                                                               \
            assert_int_equal(c_.ram_offset, o);                                                              \
    } while (0)

static bool traced(uint64_t gpa, uint8_t bits)
{
    return mem_trace_bits(&world.mem, gpa >> 12) & bits;
}

// ---- spaces

static void a_space_is_found_by_its_root(void **state)
{
    (void)state;
    bool fresh;
    assert_int_equal(shadow_find(shadow), -1);
    int a = shadow_open(shadow, &fresh);
    assert_true(fresh);
    assert_int_equal(shadow_find(shadow), a);
    world.v->s.cr3 = ROOT | 0x7; // PCID
    assert_int_equal(shadow_open(shadow, &fresh), a);
    assert_false(fresh);
    world.v->s.cr3 = 0x11000;
    assert_int_equal(shadow_find(shadow), -1);
    assert_int_not_equal(shadow_open(shadow, &fresh), a);
    assert_true(fresh);
}

static void the_space_opened_longest_ago_makes_room(void **state)
{
    (void)state;
    map(LA, DATA, 4096, ALL, NULL);
    int first = open_space();
    assert_int_equal(fill(LA, ACC_READ), SHADOW_FILLED);
    for (uint64_t i = 1; i < 4; i++) {
        world.v->s.cr3 = ROOT + 0x8000 + i * 4096;
        assert_int_not_equal(open_space(), first);
    }
    assert_true(traced(ROOT, TRACE_TABLE));
    world.v->s.cr3 = ROOT + 0xc000;
    bool fresh;
    assert_int_equal(shadow_open(shadow, &fresh), first);
    assert_true(fresh);
    assert_false(traced(ROOT, TRACE_TABLE));
    assert_int_equal(changes(), 0);
    world.v->s.cr3 = ROOT;
    assert_int_equal(shadow_find(shadow), -1);
}

static void only_4_level_paging_has_a_space(void **state)
{
    (void)state;
    bool fresh;
    world_paging(&world, PAGING_PAE);
    assert_int_equal(shadow_open(shadow, &fresh), -1);
    world_paging(&world, PAGING_32);
    assert_int_equal(shadow_open(shadow, &fresh), -1);
    world_paging(&world, PAGING_LONG);
    world.v->s.cr0 &= ~(uint64_t)CR0_PG;
    assert_int_equal(shadow_open(shadow, &fresh), -1);
    uint32_t error;
    assert_int_equal(shadow_fill(shadow, 0, LA, ACC_READ, &error), SHADOW_REFUSED);
    assert_int_equal(shadow_fill(shadow, -1, LA, ACC_READ, &error), SHADOW_REFUSED);
    assert_int_equal(shadow_fill(shadow, 100, LA, ACC_READ, &error), SHADOW_REFUSED);
}

static void closing_forgets_changes_and_traces(void **state)
{
    (void)state;
    uint64_t entry[4];
    map(LA, DATA, 4096, ALL, entry);
    map(LA + 4096, DATA + 4096, 4096, ALL, NULL);
    fill(LA, ACC_WRITE);
    fill(LA + 4096, ACC_EXEC);
    int space = shadow_find(shadow);
    for (unsigned i = 0; i < 4; i++)
        assert_true(traced(entry[i], TRACE_TABLE));
    assert_true(traced(DATA + 4096, TRACE_RAW));
    assert_int_equal(shadow_counters(shadow)->tables, 4);
    shadow_close(shadow, space);
    for (unsigned i = 0; i < 4; i++)
        assert_false(traced(entry[i], TRACE_TABLE));
    assert_false(traced(DATA + 4096, TRACE_RAW));
    unsigned count;
    shadow_changes(shadow, space, &count);
    assert_int_equal(count, 0);
    assert_int_equal(shadow_rights(shadow, space, LA, NULL), 0);
    assert_int_equal(shadow_counters(shadow)->tables, 0);
}

// ---- rights

static void a_read_maps_for_reads_until_the_page_is_dirty(void **state)
{
    (void)state;
    uint64_t leaf = map(LA, DATA, 4096, ALL, NULL), offset = 0;
    assert_int_equal(fill(LA + 0x123, ACC_READ), SHADOW_FILLED);
    assert_int_equal(shadow_rights(shadow, open_space(), LA, &offset), R_);
    assert_int_equal(offset, DATA);
    assert_int_equal(peek(&world, leaf, 8) & (A | D), A);
    assert_int_equal(changes(), 1);
    assert_change(0, LA, 4096, DATA, R_);
    assert_false(shadow_takes(shadow, open_space()));
    done();
    assert_int_equal(fill(LA + 8, ACC_WRITE), SHADOW_FILLED);
    assert_int_equal(rights(LA), RW_);
    assert_int_equal(peek(&world, leaf, 8) & (A | D), A | D);
    assert_change(0, LA, 4096, DATA, RW_);
    assert_false(shadow_takes(shadow, open_space()));
    poke(&world, leaf, 0, 8);
    poke(&world, leaf, DATA | ALL | A | D, 8);
    fill(LA, ACC_READ);
    assert_int_equal(rights(LA), RW_); // D is set already
}

static void the_guests_own_faults_are_told(void **state)
{
    (void)state;
    uint64_t entry[4];
    uint32_t error = 0;
    map(LA, DATA, 4096, P | W, NULL);
    map(LA + 0x1000, DATA, 4096, P | U, NULL);
    map(LA + 0x2000, DATA, 4096, ALL | XD, NULL);
    uint64_t leaf = map(LA + 0x3000, DATA, 4096, ALL | 1ull << 45, NULL);
    int space = open_space();
    assert_int_equal(shadow_fill(shadow, space, LA, ACC_READ, &error), SHADOW_FAULT);
    assert_int_equal(error, 5);
    assert_int_equal(shadow_fill(shadow, space, LA + 0x1000, ACC_WRITE, &error), SHADOW_FAULT);
    assert_int_equal(error, 7);
    assert_int_equal(shadow_fill(shadow, space, LA + 0x2000, ACC_EXEC, &error), SHADOW_FAULT);
    assert_int_equal(error, 0x15);
    assert_int_equal(shadow_fill(shadow, space, LA + 0x3000, ACC_READ, &error), SHADOW_FAULT);
    assert_int_equal(error, 0xd);
    assert_int_equal(shadow_fill(shadow, space, LA + 0x4000, ACC_READ, &error), SHADOW_FAULT);
    assert_int_equal(error, 4);
    assert_int_equal(changes(), 0);
    assert_int_equal(shadow_counters(shadow)->faults, 5);
    assert_int_equal(shadow_counters(shadow)->tables, 0);
    (void)leaf, (void)entry;
}

static void upper_levels_forbid_too(void **state)
{
    (void)state;
    uint64_t entry[4];
    for (unsigned level = 0; level < 3; level++) {
        map(LA, DATA, 4096, ALL | A | D, entry);
        uint64_t old = peek(&world, entry[level], 8);
        poke(&world, entry[level], old & ~W, 8);
        assert_int_equal(fill(LA, ACC_READ), SHADOW_FILLED);
        assert_int_equal(rights(LA), R_);
        assert_int_equal(fill(LA, ACC_WRITE), SHADOW_FAULT);
        poke(&world, entry[level], old | XD, 8);
        assert_int_equal(rights(LA), 0);
        assert_int_equal(fill(LA, ACC_EXEC), SHADOW_FAULT);
        assert_int_equal(fill(LA, ACC_READ), SHADOW_FILLED);
        assert_int_equal(rights(LA), RW_);
        poke(&world, entry[level], old & ~U, 8);
        assert_int_equal(rights(LA), 0);
        poke(&world, entry[level], old, 8);
    }
}

static void what_is_no_ram_is_refused(void **state)
{
    (void)state;
    static const uint8_t data[4096];
    static const struct mmio_ops ops;
    mem_add_rom(&world.mem, 0xfffff000, data, sizeof data, "rom");
    mem_add_mmio(&world.mem, 0xfee00000, 4096, &ops, NULL, "device");
    map(LA, 0xfffff000, 4096, ALL, NULL);
    map(LA + 4096, 0xfee00000, 4096, ALL, NULL);
    map(LA + 8192, 0x80000000, 4096, ALL, NULL);
    for (unsigned i = 0; i < 3; i++)
        for (unsigned acc = ACC_READ; acc <= ACC_EXEC; acc++)
            assert_int_equal(fill(LA + i * 4096, acc), SHADOW_REFUSED);
    assert_int_equal(changes(), 0);
    assert_int_equal(shadow_counters(shadow)->tables, 0);
}

static void what_the_owner_keeps_is_refused(void **state)
{
    (void)state;
    static const uint64_t refused[] = {RESERVED, RESERVED_END - 1,  TOP - 4096, TOP - 1, TOP,
                                       ~0ull,    0xffff800000000000};
    static const uint64_t filled[] = {RESERVED - 1, RESERVED_END, TOP - 4097, 0};
    for (unsigned i = 0; i < 7; i++) {
        if (refused[i] < TOP)
            map(refused[i], DATA, 4096, ALL, NULL);
        assert_int_equal(fill(refused[i], ACC_READ), SHADOW_REFUSED);
    }
    for (unsigned i = 0; i < 4; i++) {
        map(filled[i], DATA, 4096, ALL, NULL);
        assert_int_equal(fill(filled[i], ACC_READ), SHADOW_FILLED);
    }
}

static void a_space_is_filled_only_while_it_is_the_current_one(void **state)
{
    (void)state;
    uint32_t error;
    map(LA, DATA, 4096, ALL, NULL);
    int space = open_space();
    world.v->s.cr3 = 0x18000;
    assert_int_equal(shadow_fill(shadow, space, LA, ACC_READ, &error), SHADOW_REFUSED);
    assert_int_equal(shadow_rights(shadow, space, LA, NULL), 0);
}

// ---- traces

static void a_traced_page_is_not_writable(void **state)
{
    (void)state;
    map(LA, DATA, 4096, ALL | A | D, NULL);
    mem_trace_set(&world.mem, DATA, TRACE_CODE);
    assert_int_equal(fill(LA, ACC_WRITE), SHADOW_REFUSED);
    assert_int_equal(shadow_counters(shadow)->tables, 0); // nothing is mapped
    assert_int_equal(fill(LA, ACC_READ), SHADOW_FILLED);
    assert_int_equal(rights(LA), R_);
    assert_int_equal(fill(LA, ACC_WRITE), SHADOW_REFUSED);
    assert_int_equal(rights(LA), R_);
    mem_trace_clear(&world.mem, DATA, TRACE_CODE);
    assert_int_equal(fill(LA, ACC_WRITE), SHADOW_FILLED);
    assert_int_equal(rights(LA), RW_);
    mem_trace_set(&world.mem, DATA, TRACE_RAW); // whoever it was
    assert_int_equal(rights(LA), R_);
    assert_int_equal(fill(LA, ACC_WRITE), SHADOW_REFUSED);
    mem_trace_clear(&world.mem, DATA, TRACE_RAW);
}

static void tracing_takes_write_permission_from_all_aliases_in_all_spaces(void **state)
{
    (void)state;
    uint64_t entry[4];
    map(LA, DATA, 4096, ALL | A | D, entry);
    map(LA + 0x5000, DATA, 4096, ALL | A | D, NULL);
    map(LA + 0x80000000, DATA, 4096, ALL | A | D, NULL);
    map(LA + 0x6000, DATA + 4096, 4096, ALL | A | D, NULL);
    static const uint64_t la[] = {LA, LA + 0x5000, LA + 0x80000000, LA + 0x6000};
    const uint64_t roots[] = {ROOT, ROOT + 0xe000};
    poke(&world, roots[1], peek(&world, ROOT, 8), 8);
    for (unsigned r = 0; r < 2; r++) {
        world.v->s.cr3 = roots[r];
        for (unsigned i = 0; i < 4; i++)
            assert_int_equal(fill(la[i], ACC_WRITE), SHADOW_FILLED);
        assert_false(shadow_takes(shadow, shadow_find(shadow)));
        done();
    }
    static const uint8_t bits[] = {TRACE_CODE, TRACE_DIRTY};
    for (unsigned b = 0; b < 2; b++) {
        mem_trace_set(&world.mem, DATA + 0x800, bits[b]);
        for (unsigned r = 0; r < 2; r++) {
            world.v->s.cr3 = roots[r];
            for (unsigned i = 0; i < 3; i++)
                assert_int_equal(rights(la[i]), R_);
            assert_int_equal(rights(la[3]), RW_);
            assert_true(shadow_takes(shadow, shadow_find(shadow)));
            assert_int_equal(changes(), 3);
            assert_int_equal(change(0).rights, R_);
        }
        mem_trace_clear(&world.mem, DATA, bits[b]);
        for (unsigned r = 0; r < 2; r++) {
            world.v->s.cr3 = roots[r];
            done();
            assert_false(shadow_takes(shadow, shadow_find(shadow)));
            for (unsigned i = 0; i < 4; i++)
                assert_int_equal(fill(la[i], ACC_WRITE), SHADOW_FILLED);
            done();
        }
    }
}

static void a_page_under_the_dirty_log_is_writable_after_its_first_write(void **state)
{
    (void)state;
    uint64_t bitmap[PAGES / 64] = {0};
    map(LA, DATA, 4096, ALL | A | D, NULL);
    fill(LA, ACC_WRITE);
    mem_dirty_start(&world.mem);
    assert_int_equal(rights(LA), 0);
    assert_true(shadow_takes(shadow, shadow_find(shadow)));
    assert_int_equal(fill(LA, ACC_READ), SHADOW_FILLED);
    assert_int_equal(rights(LA), R_);
    assert_true(traced(DATA, TRACE_DIRTY));
    assert_int_equal(fill(LA, ACC_WRITE), SHADOW_FILLED);
    assert_int_equal(rights(LA), RW_);
    mem_dirty_collect(&world.mem, bitmap);
    assert_true(bitmap[(DATA >> 12) / 64] >> (DATA >> 12) % 64 & 1);
    assert_int_equal(rights(LA), 0);
    mem_dirty_stop(&world.mem);
}

static void a_mapped_page_that_becomes_a_table_is_written_with_care(void **state)
{
    (void)state;
    uint64_t entry[4];
    map(LA, DATA, 4096, ALL, entry);
    map(LA + 0x1000, entry[3], 4096, ALL, NULL);      // its own last-level table
    map(LA + 0x2000, ROOT, 4096, ALL | A | D, NULL);  // and the root
    map(1ull << 40, DATA + 0x5000, 4096, ALL, entry); // other tables
    uint64_t table = entry[3] & ~0xfffull;
    map(LA + 0x3000, table, 4096, ALL, NULL);
    assert_int_equal(fill(LA + 0x1000, ACC_WRITE), SHADOW_REFUSED);
    assert_int_equal(fill(LA + 0x2000, ACC_WRITE), SHADOW_REFUSED);
    assert_int_equal(fill(LA + 0x2000, ACC_READ), SHADOW_FILLED);
    assert_int_equal(rights(LA + 0x2000), R_);
    assert_int_equal(fill(LA + 0x3000, ACC_WRITE), SHADOW_FILLED); // not one that is live
    assert_int_equal(rights(LA + 0x3000), RW_);
    assert_int_equal(fill(1ull << 40, ACC_READ), SHADOW_FILLED);
    assert_int_equal(rights(LA + 0x3000), R_);
    assert_int_equal(fill(LA + 0x3000, ACC_WRITE), SHADOW_REFUSED);
    // Without a live use it is a page like others.
    poke(&world, entry[3], 0, 8);
    assert_int_equal(rights(1ull << 40), 0);
    assert_false(traced(table, TRACE_TABLE));
    assert_int_equal(fill(LA + 0x3000, ACC_WRITE), SHADOW_FILLED);
}

static void the_software_tlb_writes_no_table_and_no_executable_page_unseen(void **state)
{
    (void)state;
    uint64_t entry[4], value = 0;
    map(LA, DATA, 4096, ALL, entry);
    map(LA + 0x1000, entry[3] & ~0xfffull, 4096, P | W, NULL);
    map(LA + 0x2000, DATA, 4096, P | W, NULL);
    assert_false(FAULTS(mmu_write(world.v, LA + 0x1000 + 0x700, &value, 8, 0))); // fills the TLB
    assert_false(FAULTS(mmu_write(world.v, LA + 0x2000, &value, 8, 0)));
    fill(LA, ACC_EXEC);
    assert_int_equal(rights(LA), RX_);
    assert_false(FAULTS(mmu_write(world.v, LA + 0x2000, &value, 8, 0)));
    assert_int_equal(rights(LA), R_);
    assert_false(FAULTS(mmu_write(world.v, LA + 0x1000 + (entry[3] & 0xfff), &value, 8, 0)));
    assert_int_equal(rights(LA), 0);
}

// ---- writes to tables

static void a_write_to_a_table_drops_what_it_changed(void **state)
{
    (void)state;
    uint64_t leaf = map(LA, DATA, 4096, ALL, NULL);
    map(LA + 0x1000, DATA + 0x1000, 4096, ALL, NULL);
    map(LA + 0x2000, DATA + 0x2000, 4096, ALL, NULL);
    for (unsigned i = 0; i < 3; i++)
        fill(LA + i * 4096, ACC_WRITE);
    done();
    poke(&world, leaf + 8, DATA + 0x9000 + (ALL | A | D), 8);
    assert_int_equal(rights(LA), RW_);
    assert_int_equal(rights(LA + 0x1000), 0);
    assert_int_equal(rights(LA + 0x2000), RW_);
    assert_int_equal(changes(), 1);
    assert_change(0, LA + 0x1000, 4096, 0, 0);
    assert_true(shadow_takes(shadow, shadow_find(shadow)));
    assert_int_equal(fill(LA + 0x1000, ACC_READ), SHADOW_FILLED);
    uint64_t offset;
    shadow_rights(shadow, open_space(), LA + 0x1000, &offset);
    assert_int_equal(offset, DATA + 0x9000);
}

static void a_write_that_takes_nothing_away_drops_nothing(void **state)
{
    (void)state;
    uint64_t entry[4];
    uint64_t leaf = map(LA, DATA, 4096, ALL, entry);
    fill(LA, ACC_READ);
    done();
    poke(&world, leaf, peek(&world, leaf, 8), 8);
    poke(&world, leaf, peek(&world, leaf, 8) | D | G | 0xe00 | 1ull << 52 | 0x18,
         8); // D, available bits, caching
    poke(&world, entry[1], peek(&world, entry[1], 8) | D | 0xe00 | 1ull << 62, 8);
    poke(&world, leaf + 8, (DATA + 0x1000) | ALL, 8); // present now
    poke(&world, entry[0] + 8, 0x12000 | ALL, 8);
    assert_int_equal(rights(LA), R_);
    assert_int_equal(changes(), 0);
    assert_int_equal(shadow_counters(shadow)->dropped, 0);
    assert_true(shadow_counters(shadow)->table_hits >= 4);
    fill(LA, ACC_WRITE);
    poke(&world, leaf + 2, 0x40, 1); // other bytes of the address: the same
    assert_int_equal(rights(LA), RW_);
}

static void clearing_a_or_d_drops(void **state)
{
    (void)state;
    uint64_t leaf = map(LA, DATA, 4096, ALL, NULL);
    static const uint64_t bits[] = {A, D, P, W, U};
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(fill(LA, ACC_WRITE), SHADOW_FILLED);
        uint64_t old = peek(&world, leaf, 8);
        assert_int_equal(old & (A | D), A | D);
        poke(&world, leaf, old & ~bits[i], 8);
        assert_int_equal(rights(LA), 0);
        poke(&world, leaf, old | bits[i], 8);
    }
    poke(&world, leaf, DATA | ALL, 8);
    assert_int_equal(fill(LA, ACC_READ), SHADOW_FILLED);
    poke(&world, leaf, (DATA | ALL | A) & ~W, 8); // readable it was, readable it is
    assert_int_equal(rights(LA), R_);
    assert_int_equal(fill(LA, ACC_EXEC), SHADOW_FILLED);
    poke(&world, leaf, DATA | ALL | A | XD, 8);
    assert_int_equal(rights(LA), 0);
}

static void an_upper_entry_takes_all_below_it_along(void **state)
{
    (void)state;
    for (unsigned level = 0; level < 3; level++) {
        uint64_t entry[4];
        static const uint64_t la[] = {LA, LA + 0x3000, LA + 0x200000, LA + 0x40000000, LA + (1ull << 39)};
        for (unsigned i = 0; i < 5; i++) {
            map(la[i], DATA + i * 4096, 4096, ALL, i ? NULL : entry);
            assert_int_equal(fill(la[i], ACC_READ), SHADOW_FILLED);
        }
        done();
        uint64_t old = peek(&world, entry[level], 8);
        poke(&world, entry[level], 0, 8);
        unsigned gone = 4 - level;
        for (unsigned i = 0; i < 5; i++)
            assert_int_equal(rights(la[i]), i < gone ? 0 : R_);
        for (unsigned i = level + 1; i < 4; i++)
            assert_false(traced(entry[i], TRACE_TABLE));
        assert_true(traced(entry[level], TRACE_TABLE)); // others are mapped through it
        assert_int_equal(changes(), 1);
        assert_int_equal(change(0).rights, 0);
        assert_int_equal(shadow_counters(shadow)->dropped, 4 * (level + 1));
        poke(&world, entry[level], old, 8);
        done();
    }
}

static void a_table_without_a_use_is_not_traced(void **state)
{
    (void)state;
    uint64_t entry[4];
    map(LA, DATA, 4096, ALL, entry);
    uint64_t other = LA + 0x200000, pde = entry[2] + 8;
    poke(&world, pde, peek(&world, entry[2], 8), 8); // the same table twice
    fill(LA, ACC_READ);
    fill(other, ACC_READ);
    poke(&world, pde, 0, 8);
    assert_int_equal(rights(LA), R_);
    assert_int_equal(rights(other), 0);
    assert_true(traced(entry[3], TRACE_TABLE));
    poke(&world, entry[3], 0, 8);
    assert_int_equal(rights(LA), 0);
    for (unsigned i = 0; i < 4; i++)
        assert_false(traced(entry[i], TRACE_TABLE)); // nothing is mapped
}

static void a_table_used_at_two_places_drops_at_both(void **state)
{
    (void)state;
    uint64_t entry[4];
    map(LA, DATA, 4096, ALL, entry);
    poke(&world, entry[2] + 8, peek(&world, entry[2], 8), 8);
    poke(&world, entry[1] + 8, peek(&world, entry[1], 8), 8);
    const uint64_t la[] = {LA, LA + 0x200000, LA + 0x40000000, LA + 0x40200000};
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(fill(la[i], ACC_READ), SHADOW_FILLED);
    poke(&world, entry[3], (DATA + 0x1000) | ALL | A, 8);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(rights(la[i]), 0);
}

static void a_recursive_slot_is_one_table_at_four_levels(void **state)
{
    (void)state;
    uint64_t entry[4];
    map(LA, DATA, 4096, ALL, entry);
    poke(&world, ROOT + 8 * 100, ROOT | ALL, 8);
    const uint64_t slot = 100;
    uint64_t ptes = slot << 39 | (LA >> 9 & 0x7ffffff000); // the last-level table, seen as a page
    uint64_t roots = slot << 39 | slot << 30 | slot << 21 | slot << 12;
    assert_int_equal(fill(LA, ACC_READ), SHADOW_FILLED);
    assert_int_equal(fill(ptes, ACC_READ), SHADOW_FILLED);
    assert_int_equal(fill(roots, ACC_READ), SHADOW_FILLED);
    assert_int_equal(fill(roots, ACC_WRITE), SHADOW_REFUSED);
    uint64_t offset;
    assert_int_equal(shadow_rights(shadow, open_space(), roots, &offset), R_);
    assert_int_equal(offset, ROOT);
    shadow_rights(shadow, open_space(), ptes, &offset);
    assert_int_equal(offset, entry[3] & ~0xfffull);
    poke(&world, ROOT + 8 * slot, 0, 8);
    assert_int_equal(rights(roots), 0);
    assert_int_equal(rights(ptes), 0);
    assert_int_equal(rights(LA), R_);
}

// ---- large pages, prefill, changes

static void a_large_page_is_one_change(void **state)
{
    (void)state;
    uint64_t pde = map(LA, DATA, 2 << 20, ALL, NULL);
    assert_int_equal(fill(LA + 0x7123, ACC_READ), SHADOW_FILLED);
    assert_int_equal(changes(), 1);
    assert_change(0, LA, 2 << 20, DATA, R_);
    done();
    assert_int_equal(fill(LA + 0x1ff000, ACC_WRITE), SHADOW_FILLED);
    assert_int_equal(changes(), 1);
    assert_change(0, LA, 2 << 20, DATA, RW_);
    assert_false(shadow_takes(shadow, open_space()));
    done();
    mem_trace_set(&world.mem, DATA + 0x5000, TRACE_CODE);
    assert_int_equal(rights(LA + 0x5000), R_);
    assert_int_equal(rights(LA + 0x4000), RW_);
    assert_change(0, LA + 0x5000, 4096, DATA + 0x5000, R_);
    done();
    assert_int_equal(fill(LA + 0x5000, ACC_READ), SHADOW_FILLED); // and its neighbours stay as they are
    assert_int_equal(changes(), 0);
    poke(&world, pde, DATA | PS | ALL | A, 8); // D
    assert_int_equal(rights(LA + 0x4000), 0);
    assert_int_equal(changes(), 1);
    assert_change(0, LA, 2 << 20, 0, 0);
}

static void of_a_1_gib_page_2_mib_are_mapped_at_once(void **state)
{
    (void)state;
    uint64_t pdpte = map(LA, 0, 1 << 30, ALL, NULL);
    assert_int_equal(fill(LA + DATA + 0x3000, ACC_WRITE), SHADOW_FILLED);
    assert_change(0, LA + DATA, 2 << 20, DATA, RW_);
    assert_int_equal(fill(LA + DATA + 0x200000, ACC_WRITE), SHADOW_FILLED);
    assert_int_equal(changes(), 1); // continues
    assert_change(0, LA + DATA, 4 << 20, DATA, RW_);
    assert_int_equal(fill(LA + ROOT, ACC_READ), SHADOW_FILLED); // tables are in the way
    assert_int_equal(rights(LA + ROOT), R_);
    assert_int_equal(rights(LA + ROOT + 0x8000), 0);
    assert_int_equal(fill(LA + 0x20000000, ACC_READ), SHADOW_REFUSED); // no RAM
    poke(&world, pdpte, 0, 8);
    assert_int_equal(rights(LA + DATA), 0);
    assert_int_equal(rights(LA + ROOT), 0);
}

static void a_large_page_in_the_way_of_the_owner_is_mapped_in_pieces(void **state)
{
    (void)state;
    map(0, DATA, 2 << 20, ALL | A | D, NULL);
    map(TOP - (2 << 20), DATA, 2 << 20, ALL | A | D, NULL);
    create(4, 16, 60000);
    assert_int_equal(fill(RESERVED_END, ACC_WRITE), SHADOW_FILLED);
    assert_change(0, RESERVED_END, 16 * 4096, DATA + RESERVED_END, RW_);
    assert_int_equal(fill(RESERVED, ACC_WRITE), SHADOW_REFUSED);
    assert_int_equal(fill(TOP - 8192, ACC_WRITE), SHADOW_FILLED);
    assert_change(1, TOP - 16 * 4096, 15 * 4096, DATA + 0x1f0000, RW_);
    assert_int_equal(rights(TOP - 4096), 0);
}

static void a_large_page_with_a_hole_is_mapped_in_pieces(void **state)
{
    (void)state;
    static const uint8_t data[4096];
    mem_add_rom(&world.mem, 0xc0000, data, sizeof data, "rom");
    map(LA, 0, 2 << 20, P | U, NULL);
    assert_int_equal(fill(LA, ACC_READ), SHADOW_FILLED);
    assert_change(0, LA, 4096, 0, R_);
    assert_int_equal(fill(LA + 0xc0000, ACC_READ), SHADOW_REFUSED);
}

static void a_large_page_that_code_is_executed_from_is_mapped_in_pieces(void **state)
{
    (void)state;
    map(LA, DATA, 2 << 20, P | U, NULL);
    assert_int_equal(fill(LA + 0x3000, ACC_EXEC), SHADOW_FILLED);
    assert_change(0, LA + 0x3000, 4096, DATA + 0x3000, RX_);
    assert_int_equal(fill(LA + 0x6000, ACC_READ), SHADOW_FILLED);
    assert_change(1, LA + 0x6000, 4096, DATA + 0x6000, R_);
    assert_int_equal(rights(LA + 0x3000), RX_);
    assert_int_equal(asked, 1);
}

static void a_large_page_that_is_split_is_dropped(void **state)
{
    (void)state;
    uint64_t pde = map(LA, DATA, 2 << 20, ALL, NULL);
    fill(LA, ACC_WRITE);
    poke(&world, 0x18000, DATA | ALL | A | D, 8);
    poke(&world, pde, 0x18000 | ALL, 8);
    assert_int_equal(rights(LA), 0);
    assert_int_equal(fill(LA, ACC_WRITE), SHADOW_FILLED);
    assert_true(traced(0x18000, TRACE_TABLE));
    poke(&world, pde, DATA | ALL | PS, 8);
    assert_int_equal(rights(LA), 0);
    assert_false(traced(0x18000, TRACE_TABLE));
    fill(LA, ACC_WRITE);
    assert_int_equal(rights(LA + 0x100000), RW_);
}

static void neighbours_that_were_accessed_are_mapped_too(void **state)
{
    (void)state;
    create(4, 8, 60000);
    uint64_t leaf = 0;
    static const uint64_t flags[16] = {
        [0] = ALL | A | D,
        [1] = ALL | A | D,
        [2] = ALL | A,
        [3] = ALL, // not accessed
        [4] = P | W | A | D /* supervisor */,
        [5] = ALL | A | D,
        [6] = P | U | A | D,
        [7] = ALL | A | D | 1ull << 45,
        [8] = ALL | A | D,
    };
    for (unsigned i = 0; i < 16; i++) {
        uint64_t at = map(LA + i * 4096, DATA + i * 4096, 4096, flags[i], NULL);
        leaf = i ? leaf : at;
    }
    assert_int_equal(fill(LA + 0x1000, ACC_READ), SHADOW_FILLED);
    static const unsigned expected[16] = {RW_, RW_, R_, 0, 0, RW_, R_};
    for (unsigned i = 0; i < 16; i++)
        assert_int_equal(rights(LA + i * 4096), expected[i]);
    assert_int_equal(peek(&world, leaf + 3 * 8, 8) & A, 0);
    assert_int_equal(shadow_counters(shadow)->prefilled, 4);
    assert_int_equal(changes(), 4);
    assert_change(0, LA, 8192, DATA, RW_); // contiguous
    assert_false(shadow_takes(shadow, open_space()));
    assert_int_equal(fill(LA + 0x3000, ACC_READ), SHADOW_FILLED);
    assert_int_equal(shadow_counters(shadow)->prefilled, 4);
}

static void unmapped_neighbours_are_one_change(void **state)
{
    (void)state;
    uint64_t leaf = 0;
    for (unsigned i = 0; i < 16; i++) {
        uint64_t at = map(LA + i * 4096, DATA + (i * 7 & 15) * 4096, 4096, ALL, NULL);
        leaf = i ? leaf : at;
        if (i != 5)
            fill(LA + i * 4096, ACC_WRITE);
    }
    done();
    for (unsigned i = 0; i < 16; i++)
        poke(&world, leaf + i * 8, 0, 8);
    assert_int_equal(changes(), 1);
    assert_change(0, LA, 16 * 4096, 0, 0);
    assert_int_equal(shadow_counters(shadow)->dropped, 15);
}

static void too_many_changes_become_one_that_unmaps_everything(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 2; i++)
        map(LA + i * 4096, DATA + i * 8192, 4096, ALL | A | D, NULL);
    for (unsigned i = 0; i < 400; i++) {
        fill(LA, ACC_WRITE);
        fill(LA + 4096, ACC_WRITE);
        for (unsigned k = 0; k < 2; k++) {
            mem_trace_set(&world.mem, DATA + k * 8192, TRACE_CODE);
            mem_trace_clear(&world.mem, DATA + k * 8192, TRACE_CODE);
        }
        if (change(0).size == TOP)
            break;
        assert_true(i < 399);
    }
    assert_change(0, 0, TOP, 0, 0);
    assert_true(shadow_takes(shadow, open_space()));
    assert_int_equal(fill(LA, ACC_WRITE), SHADOW_FILLED);
    assert_int_equal(rights(LA), RW_);
    unsigned count = changes();
    assert_int_equal(change(count - 1).la, LA);
}

static void a_drop_that_the_list_has_no_room_for_unmaps_everything(void **state)
{
    (void)state;
    uint64_t leaf = 0;
    for (unsigned i = 0; i < 512; i++) {
        uint64_t at = map(LA + i * 4096, DATA + i * 8192, 4096, ALL, NULL);
        leaf = i ? leaf : at;
        assert_int_equal(fill(LA + i * 4096, ACC_WRITE), SHADOW_FILLED);
    }
    assert_int_equal(changes(), 512);
    assert_false(shadow_takes(shadow, open_space()));
    poke(&world, leaf + 3 * 8, 0, 8);
    assert_int_equal(changes(), 1);
    assert_change(0, 0, TOP, 0, 0);
    assert_true(shadow_takes(shadow, open_space()));
    for (unsigned i = 0; i < 512; i++)
        assert_int_equal(rights(LA + i * 4096), 0);
}

static void too_many_mappings_begin_anew(void **state)
{
    (void)state;
    create(4, 1, 20);
    for (unsigned i = 0; i < 64; i++) {
        map(LA + i * 4096, DATA + i * 8192, 4096, ALL, NULL);
        assert_int_equal(fill(LA + i * 4096, ACC_READ), SHADOW_FILLED);
        unsigned mapped = 0;
        for (unsigned k = 0; k <= i; k++)
            mapped += rights(LA + k * 4096) != 0;
        assert_true(mapped <= 20);
        assert_int_equal(rights(LA + i * 4096), R_);
        if (i == 16)
            assert_int_equal(mapped, 17);
    }
    // What continues a mapping is none of its own.
    create(4, 1, 20);
    for (unsigned i = 0; i < 64; i++) {
        map(LA + i * 4096, DATA + i * 4096, 4096, ALL, NULL);
        assert_int_equal(fill(LA + i * 4096, ACC_READ), SHADOW_FILLED);
    }
    for (unsigned i = 0; i < 64; i++)
        assert_int_equal(rights(LA + i * 4096), R_);
}

static void a_pool_that_runs_dry_drops_the_oldest_space(void **state)
{
    (void)state;
    uint64_t entry[4];
    map(LA, DATA, 4096, P | U | A, entry);
    world.v->s.cr3 = ROOT + 0xe000;
    poke(&world, ROOT + 0xe000, peek(&world, ROOT, 8), 8);
    int old = open_space();
    fill(LA, ACC_READ);
    shadow_done(shadow, old);
    world.v->s.cr3 = ROOT;
    uint64_t pde = peek(&world, entry[2], 8), pdpte = peek(&world, entry[1], 8);
    for (unsigned i = 0; i < 512; i++) {
        poke(&world, (entry[2] & ~0xfffull) + i * 8, pde, 8);
        poke(&world, (entry[1] & ~0xfffull) + i * 8, pdpte, 8);
    }
    assert_int_equal(shadow_rights(shadow, old, LA, NULL), R_);
    bool again = false;
    for (uint64_t i = 0; i < 17000; i++) {
        uint64_t la = i << 21;
        if (la < 0x200000)
            continue;
        assert_int_equal(fill(la, ACC_READ), SHADOW_FILLED);
        assert_int_equal(rights(la), R_);
        again |= i > 1000 && change(0).size == TOP;
        done();
        if (i == 16000)
            assert_int_equal(shadow_rights(shadow, old, LA, NULL), R_);
    }
    assert_int_equal(shadow_rights(shadow, old, LA, NULL), 0);
    unsigned count;
    assert_int_equal(shadow_changes(shadow, old, &count)[0].size, TOP);
    assert_true(again); // then itself
}

static void sixteen_spaces_of_1_gib_have_room(void **state)
{
    (void)state;
    create(16, 512, UINT64_MAX);
    uint64_t entry[4];
    for (unsigned i = 0; i < 512; i++)
        map(LA + i * 4096, DATA + (i ^ 1) * 4096, 4096, P | U | A, entry);
    for (unsigned i = 1; i < 512; i++)
        poke(&world, (entry[2] & ~0xfffull) + i * 8, peek(&world, entry[2], 8), 8);
    for (uint64_t r = 0; r < 16; r++) {
        world.v->s.cr3 = 0x200000 + r * 4096;
        poke(&world, world.v->s.cr3, peek(&world, ROOT, 8), 8);
        for (uint64_t la = LA; la < LA + (1 << 30); la += 2 << 20) {
            assert_int_equal(fill(la, ACC_READ), SHADOW_FILLED);
            done();
        }
    }
    for (uint64_t r = 0; r < 16; r++) {
        world.v->s.cr3 = 0x200000 + r * 4096;
        for (uint64_t la = LA; la < LA + (1 << 30); la += 4096 * 31)
            assert_int_equal(rights(la), R_);
    }
}

// ---- executable pages

static void an_executable_page_is_writable_nowhere(void **state)
{
    (void)state;
    map(LA, DATA, 4096, ALL | A | D, NULL);
    map(LA + 0x5000, DATA, 4096, ALL | A | D, NULL);
    fill(LA, ACC_WRITE);
    world.v->s.cr3 = ROOT + 0xe000;
    poke(&world, ROOT + 0xe000, peek(&world, ROOT, 8), 8);
    int other = open_space();
    fill(LA + 0x5000, ACC_WRITE);
    shadow_done(shadow, other);
    world.v->s.cr3 = ROOT;
    assert_int_equal(fill(LA, ACC_EXEC), SHADOW_FILLED);
    assert_int_equal(asked, 1);
    assert_int_equal(rights(LA), RX_);
    assert_true(traced(DATA, TRACE_RAW));
    assert_int_equal(shadow_rights(shadow, other, LA + 0x5000, NULL), R_);
    assert_true(shadow_takes(shadow, other));
    assert_int_equal(fill(LA + 0x5000, ACC_EXEC), SHADOW_FILLED);
    assert_int_equal(asked, 1); // its bytes are still those
    // A write fill takes it away from all.
    assert_int_equal(fill(LA + 0x5000, ACC_WRITE), SHADOW_FILLED);
    assert_int_equal(rights(LA + 0x5000), RW_);
    assert_int_equal(rights(LA), R_);
    assert_false(traced(DATA, TRACE_RAW));
    assert_int_equal(shadow_counters(shadow)->exec_lost, 1);
}

static void a_write_by_whomever_takes_execution_away(void **state)
{
    (void)state;
    map(LA, DATA, 4096, P | U, NULL);
    assert_int_equal(fill(LA, ACC_EXEC), SHADOW_FILLED);
    poke(&world, DATA + 0x800, 0x1234, 2);
    assert_int_equal(rights(LA), R_);
    assert_true(shadow_takes(shadow, open_space()));
    assert_int_equal(fill(LA, ACC_EXEC), SHADOW_FILLED);
    assert_int_equal(asked, 2);
    poke(&world, DATA, 0xcc, 1);
    assert_int_equal(fill(LA, ACC_EXEC), SHADOW_REFUSED);
    assert_int_equal(asked, 3);
    assert_int_equal(fill(LA, ACC_EXEC), SHADOW_REFUSED);
    assert_int_equal(asked, 3); // the answer is known
    poke(&world, DATA + 1, 0x90, 1);
    assert_false(traced(DATA, TRACE_RAW));
    assert_int_equal(fill(LA, ACC_EXEC), SHADOW_REFUSED);
    assert_int_equal(asked, 4); // until the page is written
    assert_int_equal(fill(LA, ACC_READ), SHADOW_FILLED);
    assert_int_equal(rights(LA), R_);
}

static void code_that_is_translated_may_be_executed_too(void **state)
{
    (void)state;
    map(LA, DATA, 4096, ALL | A | D, NULL);
    mem_trace_set(&world.mem, DATA, TRACE_CODE);
    assert_int_equal(fill(LA, ACC_EXEC), SHADOW_FILLED);
    assert_int_equal(rights(LA), RX_);
    assert_int_equal(fill(LA, ACC_WRITE), SHADOW_REFUSED);
    assert_int_equal(rights(LA), RX_);
    poke(&world, DATA + 8, 1, 1);
    assert_int_equal(rights(LA), R_);
    assert_true(traced(DATA, TRACE_CODE));
    assert_int_equal(heard.written, 1);
}

static void a_page_that_alternates_loses_execution(void **state)
{
    (void)state;
    map(LA, DATA, 4096, ALL, NULL);
    unsigned turns = 0;
    while (fill(LA, ACC_EXEC) == SHADOW_FILLED) {
        assert_int_equal(fill(LA, ACC_WRITE), SHADOW_FILLED);
        turns++;
        assert_true(turns < 100);
    }
    assert_int_equal(turns, 9);
    assert_int_equal(rights(LA), RW_); // nothing was taken in vain
    shadow_close(shadow, open_space());
    assert_int_equal(fill(LA, ACC_EXEC), SHADOW_FILLED);
}

static void neighbours_are_executable_where_that_takes_nothing(void **state)
{
    (void)state;
    create(4, 8, 60000);
    map(LA, DATA, 4096, P | U | A, NULL);
    map(LA + 0x1000, DATA + 0x1000, 4096, P | U | A, NULL);
    map(LA + 0x2000, DATA + 0x2000, 4096, P | U | A | XD, NULL);
    map(LA + 0x3000, DATA + 0x3000, 4096, ALL | A | D, NULL);
    map(LA + 0x4000, DATA + 0x4000, 4096, P | U | A, NULL);
    map(LA + 0x5000, DATA + 0x5000, 4096, P | U | A, NULL);
    map(LA + 0x9000, DATA + 0x5000, 4096, ALL | A | D, NULL);
    poke(&world, DATA + 0x4000, 0xcc, 1);
    assert_int_equal(fill(LA + 0x9000, ACC_WRITE), SHADOW_FILLED);
    assert_int_equal(fill(LA, ACC_EXEC), SHADOW_FILLED);
    static const unsigned expected[] = {RX_, RX_, R_, RW_, R_, R_};
    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(rights(LA + i * 4096), expected[i]);
    assert_int_equal(rights(LA + 0x9000), RW_);
    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(traced(DATA + i * 4096, TRACE_RAW), expected[i] == RX_ || i == 4); // known not to pass
}

// ---- the map, the mode

static void a_change_of_the_map_empties_all_spaces(void **state)
{
    (void)state;
    static const uint8_t data[0x10000];
    map(LA, 0xc8000, 4096, ALL, NULL);
    map(LA + 4096, DATA, 4096, ALL, NULL);
    fill(LA, ACC_READ);
    fill(LA + 4096, ACC_EXEC);
    done();
    mem_add_rom(&world.mem, 0xc0000, data, sizeof data, "rom");
    assert_int_equal(rights(LA), 0);
    assert_int_equal(rights(LA + 4096), 0);
    assert_change(0, 0, TOP, 0, 0);
    assert_false(traced(DATA, TRACE_RAW) || traced(ROOT, TRACE_TABLE));
    assert_int_equal(fill(LA, ACC_READ), SHADOW_REFUSED);
    mem_set_pam(&world.mem, 0xc8000, 0x4000, true, true);
    assert_int_equal(fill(LA, ACC_WRITE), SHADOW_FILLED);
    mem_set_a20(&world.mem, false);
    assert_int_equal(rights(LA), 0);
    mem_set_a20(&world.mem, true);
}

static void addresses_have_no_bit_20_without_a20(void **state)
{
    (void)state;
    uint64_t entry[4], offset;
    map(LA, DATA, 4096, ALL, entry);
    for (unsigned i = 0; i < 4; i++)
        poke(&world, entry[i], peek(&world, entry[i], 8) | 0x100000, 8);
    world.v->s.cr3 = ROOT | 0x100000;
    mem_set_a20(&world.mem, false);
    assert_int_equal(fill(LA, ACC_WRITE), SHADOW_FILLED);
    assert_int_equal(shadow_rights(shadow, open_space(), LA, &offset), RW_);
    assert_int_equal(offset, DATA);
    for (unsigned i = 0; i < 4; i++) {
        assert_true(traced(entry[i], TRACE_TABLE));
        poke(&world, entry[i], peek(&world, entry[i], 8), 8);
    }
    assert_int_equal(rights(LA), RW_);
}

static void a_table_whose_ram_vanishes_from_the_map_keeps_no_trace(void **state)
{
    (void)state;
    static const uint8_t data[0x10000];
    map(LA, DATA, 4096, ALL, NULL);
    poke(&world, 0xc8000, peek(&world, ROOT, 8), 8);
    world.v->s.cr3 = 0xc8000;
    fill(LA, ACC_READ);
    assert_true(traced(0xc8000, TRACE_TABLE));
    mem_add_rom(&world.mem, 0xc0000, data, sizeof data, "rom");
    assert_false(traced(0xc8000, TRACE_TABLE));
    assert_int_equal(fill(LA, ACC_READ), SHADOW_FAULT); // ROM of zeros
}

static void without_nx_the_bit_is_reserved(void **state)
{
    (void)state;
    map(LA, DATA, 4096, ALL | XD, NULL);
    fill(LA, ACC_READ);
    done();
    world.v->s.efer &= ~(uint64_t)EFER_NXE;
    assert_int_equal(shadow_find(shadow), -1);
    open_space();
    assert_int_equal(rights(LA), 0);
    assert_int_equal(changes(), 1);
    assert_int_equal(fill(LA, ACC_READ), SHADOW_FAULT);
}

// ---- torture: random guests against a model of the host's mappings
//
// The linear addresses used are 27 pieces of 2 MiB, every combination of three slots at the three upper
// levels; the tables are 24 pages of which any may be used at any level, mapped as data, or written by
// whoever can.

#define SLOTS       3u
#define PIECES      (SLOTS * SLOTS * SLOTS)
#define TABLES      24u
#define ROOTS       5u
#define TABLE0      0x100000ull
#define KERNEL      0xffffff8000000000ull // all RAM, for the guest's kernel
#define KERNEL_PDPT 0x20000ull

static const unsigned slot4[] = {0, 1, 255}, slot3[] = {0, 1, 511}, slot2[] = {0, 1, 511};

static struct {
    unsigned seed, operation, spaces, patience; // operations, about, that changes wait for the owner
    uint64_t max_mappings;
    uint64_t random;
    uint64_t root[SHADOW_SPACES];              // of the open ones, else 0
    uint64_t host[SHADOW_SPACES][PIECES][512]; // RAM offset | rights
    unsigned count[SHADOW_SPACES][PIECES];
    unsigned filled[3], faults, refused, evicted, code; // what happened
} t;

#define must(condition)                                                                                      \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            print_error("seed %u, operation %u\n", t.seed, t.operation);                                     \
            assert_true(condition);                                                                          \
        }                                                                                                    \
    } while (0)

static unsigned below(unsigned n)
{
    t.random = t.random * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned)((t.random >> 33) % n);
}

static bool chance(unsigned percent)
{
    return below(100) < percent;
}

static uint64_t piece_base(unsigned piece)
{
    return (uint64_t)slot4[piece / 9] << 39 | (uint64_t)slot3[piece / 3 % 3] << 30 |
           (uint64_t)slot2[piece % 3] << 21;
}

static uint64_t random_la(void)
{
    unsigned page = chance(80) ? below(24) : chance(50) ? 500 + below(12) : below(512);
    return piece_base(below(PIECES)) + page * 4096ull + below(4096);
}

static uint64_t random_frame(void)
{
    unsigned kind = below(100);
    if (kind < 40)
        return DATA + below(24) * 4096ull;
    if (kind < 85)
        return TABLE0 + below(TABLES) * 4096ull;
    if (kind < 92)
        return 0xc8000 + below(4) * 4096ull;
    if (kind < 94)
        return 0x40000000; // nothing
    if (kind < 96)
        return 0xfee00000; // a device
    return (uint64_t)below(3) * DATA;
}

static uint64_t random_entry(void)
{
    uint64_t value = random_frame();
    static const struct {
        uint64_t bit;
        unsigned percent;
    } bits[] = {{P, 92}, {W, 85}, {U, 92}, {A, 60}, {D, 50}, {G, 10}, {XD, 8}, {1ull << 45, 1}, {1 << 9, 20}};
    for (unsigned i = 0; i < sizeof bits / sizeof bits[0]; i++)
        if (chance(bits[i].percent))
            value |= bits[i].bit;
    if (chance(6))
        value = (value & 0xfff) | PS | (chance(70) ? DATA : chance(50) ? 2 * DATA : 0);
    return value;
}

// What neither tables nor user code may overwrite here: the kernel's own mappings.
static bool is_kernels(uint64_t gpa)
{
    return (gpa & ~0xfffull) == KERNEL_PDPT ||
           (gpa >= TABLE0 && gpa < TABLE0 + ROOTS * 4096 && (gpa & 0xfff) >= 0xff8);
}

// A place for an entry, mostly one that is used.
static uint64_t random_place(void)
{
    static const unsigned common[] = {0, 1, 255, 511};
    uint64_t gpa;
    do {
        unsigned index = chance(60) ? common[below(4)] : below(24);
        gpa = (chance(90) ? TABLE0 + below(TABLES) * 4096ull : DATA + below(24) * 4096ull) + index * 8;
    } while (is_kernels(gpa));
    return gpa;
}

// The guest's kernel writes; by way of the software TLB.
static void kernel_write(uint64_t gpa, const void *data, unsigned n)
{
    world.v->s.cpl = 0;
    if (FAULTS(mmu_write(world.v, KERNEL + gpa, data, n, 0)))
        must(!(world.mem.a20_mask >> 20 & 1));
}

static void write_entry(uint64_t gpa, uint64_t value)
{
    if (chance(50))
        poke(&world, gpa, value, 8);
    else
        kernel_write(gpa, &value, 8);
}

struct path { // the guest's tables for an address, read without a shadow
    bool in_ram, accessed;
    uint64_t table[4];
    unsigned levels;
};

static struct path path_of(uint64_t root, uint64_t la)
{
    struct path p = {.in_ram = true, .accessed = true};
    uint64_t table = root;
    for (unsigned shift = 39;; shift -= 9) {
        uint64_t value;
        table &= world.mem.a20_mask;
        p.table[p.levels++] = table;
        if (mem_find(&world.mem, table).kind != MEM_RAM)
            p.in_ram = false;
        mem_read(&world.mem, table + (la >> shift & 511) * 8, &value, 8);
        p.accessed &= (value & A) != 0;
        if (!(value & P) || shift == 12 || (shift < 39 && (value & PS)))
            return p;
        table = value & 0x000ffffffffff000ull;
    }
}

struct seen { // by RAM page, in all spaces
    bool writable, executable, table;
};

static void check_page(unsigned space, uint64_t la, uint64_t mapped, struct seen *seen)
{
    struct walk w;
    uint32_t error;
    uint64_t page = mapped >> 12, offset = 0;
    must(shadow_rights(shadow, (int)space, la, &offset) == (mapped & 0xfff));
    must(offset == (mapped & ~0xfffull));
    must(mmu_probe(world.v, la, ACC_READ | ACC_USER, &w, &error));
    struct mem_slot slot = mem_find(&world.mem, w.gpa);
    must(slot.kind == MEM_RAM && slot.ram_page == page);
    struct path path = path_of(t.root[space], la);
    must(path.in_ram && path.accessed);
    for (unsigned i = 0; i < path.levels; i++) {
        must(mem_trace_bits(&world.mem, path.table[i] >> 12) & TRACE_TABLE);
        seen[path.table[i] >> 12].table = true;
    }
    must(la + 4096 <= RESERVED || (la >= RESERVED_END && la < TOP - 4096));
    if (mapped & SHADOW_WRITE) {
        must(mmu_probe(world.v, la, ACC_WRITE | ACC_USER, &w, &error) && w.writable);
        must(!mem_trace_bits(&world.mem, page));
        seen[page].writable = true;
    }
    if (mapped & SHADOW_EXEC) {
        must(mmu_probe(world.v, la, ACC_EXEC | ACC_USER, &w, &error));
        must(mem_trace_bits(&world.mem, page) & TRACE_RAW);
        must(world.mem.ram[page * 4096] != 0xcc);
        seen[page].executable = true;
    }
}

// Nothing is mapped that the model has not, in the addresses used.
static void check_no_more(unsigned space)
{
    for (unsigned piece = 0; piece < PIECES; piece++)
        for (unsigned i = 0; i < 512; i++)
            if (!t.host[space][piece][i])
                must(!shadow_rights(shadow, (int)space, piece_base(piece) + i * 4096ull, NULL));
}

static void check(void)
{
    static struct seen seen[PAGES];
    memset(seen, 0, sizeof seen);
    uint64_t cr3 = world.v->s.cr3;
    bool all = t.operation % 32 == 0;
    for (unsigned space = 0; space < t.spaces; space++) {
        if (!t.root[space])
            continue;
        world.v->s.cr3 = t.root[space];
        uint64_t runs = 0;
        for (unsigned piece = 0; piece < PIECES; piece++) {
            const uint64_t *host = t.host[space][piece];
            unsigned left = t.count[space][piece];
            for (unsigned i = 0; left; i++) {
                if (!host[i])
                    continue;
                left--;
                runs += !i || !host[i - 1] || host[i - 1] + 4096 != host[i];
                // Of large pages a part, each time another.
                if (all || t.count[space][piece] < 100 || below(8) == 0 || i < 24)
                    check_page(space, piece_base(piece) + i * 4096ull, host[i], seen);
            }
        }
        must(runs <= t.max_mappings);
        if (t.operation % 64 == space)
            check_no_more(space);
    }
    world.v->s.cr3 = cr3;
    unsigned tables = 0;
    for (unsigned page = 0; page < PAGES; page++) {
        uint8_t bits = mem_trace_bits(&world.mem, page);
        must(!seen[page].writable || !seen[page].executable);
        must(!all || !(bits & TRACE_TABLE) == !seen[page].table);
        must(!all || bits & TRACE_RAW || !seen[page].executable);
        must(!all || !(bits & TRACE_RAW) || seen[page].executable || world.mem.ram[page * 4096] == 0xcc); // known not to pass
        tables += (bits & TRACE_TABLE) != 0;
    }
    must(tables == shadow_counters(shadow)->tables);
}

static void set_host(unsigned space, unsigned piece, unsigned i, uint64_t value, bool *took)
{
    uint64_t *at = &t.host[space][piece][i], old = *at;
    if (old && ((old ^ value) >> 12 || (old & ~value & 7)))
        *took = true;
    t.count[space][piece] += !old * 1u - !value * 1u;
    *at = value;
}

// The owner's part: carries out the changes of all spaces.
static void apply(void)
{
    for (unsigned space = 0; space < t.spaces; space++) {
        unsigned count;
        bool took = false;
        const struct shadow_change *c = shadow_changes(shadow, (int)space, &count);
        must(!count || t.root[space]);
        bool takes = shadow_takes(shadow, (int)space);
        for (; count; count--, c++) {
            must(c->size && !(c->size & 0xfff) && !(c->la & 0xfff) && c->size <= TOP &&
                 c->la <= TOP - c->size);
            must(!c->rights || (c->rights & SHADOW_READ));
            uint64_t done = 0;
            for (unsigned piece = 0; piece < PIECES; piece++) {
                uint64_t base = piece_base(piece), end = c->la + c->size;
                if (end <= base || c->la >= base + 0x200000)
                    continue;
                unsigned from = c->la <= base ? 0 : (unsigned)((c->la - base) >> 12);
                unsigned to = end >= base + 0x200000 ? 512 : (unsigned)((end - base) >> 12);
                for (unsigned i = from; i < to; i++, done += 4096)
                    set_host(space, piece, i,
                             c->rights ? (c->ram_offset + base + i * 4096ull - c->la) | c->rights : 0, &took);
            }
            must(!c->rights || done == c->size);
        }
        must(!took || takes);
        shadow_done(shadow, (int)space);
    }
}

static int torture_open(void)
{
    bool fresh;
    int space = shadow_open(shadow, &fresh);
    must(space >= 0 && (unsigned)space < t.spaces);
    must(shadow_find(shadow) == space);
    if (fresh) {
        t.evicted += t.root[space] != 0;
        memset(t.host[space], 0, sizeof t.host[space]);
        memset(t.count[space], 0, sizeof t.count[space]);
    }
    must(fresh || t.root[space] == world.v->s.cr3);
    t.root[space] = world.v->s.cr3;
    return space;
}

static uint64_t host_at(unsigned space, uint64_t la)
{
    for (unsigned piece = 0; piece < PIECES; piece++)
        if (la - piece_base(piece) < 0x200000)
            return t.host[space][piece][la >> 12 & 511];
    return 0;
}

// Whether there is a reason to refuse what the guest's tables allow.
static bool refusable(uint64_t la, unsigned acc)
{
    struct walk w;
    uint32_t error;
    uint64_t page = la & ~0xfffull;
    if (la >= TOP - 4096 || (page + 4096 > RESERVED && page < RESERVED_END))
        return true;
    struct path path = path_of(world.v->s.cr3, la);
    must(mmu_probe(world.v, la, acc | ACC_USER, &w, &error));
    struct mem_slot slot = mem_find(&world.mem, w.gpa);
    if (!path.in_ram || slot.kind != MEM_RAM || acc == ACC_EXEC)
        return true;
    if (acc == ACC_READ)
        return false;
    for (unsigned i = 0; i < path.levels; i++)
        if (path.table[i] == (w.gpa & ~0xfffull))
            return true;
    return mem_trace_bits(&world.mem, slot.ram_page) & (TRACE_CODE | TRACE_TABLE);
}

static void torture_fill(void)
{
    struct walk w;
    uint32_t error = 0, expected = 0;
    int space = torture_open();
    uint64_t la = random_la();
    unsigned acc = below(3);
    if (chance(60)) // so that there is something to find
        for (unsigned i = 0; i < 8 && !mmu_probe(world.v, la, acc | ACC_USER, &w, &expected); i++)
            la = random_la();
    enum shadow_result result = shadow_fill(shadow, space, la, acc, &error);
    if (t.patience == 1)
        apply();
    switch (result) {
    case SHADOW_FILLED: {
        unsigned need = acc == ACC_READ ? SHADOW_READ : acc == ACC_WRITE ? SHADOW_WRITE : SHADOW_EXEC;
        must(shadow_rights(shadow, space, la, NULL) & need);
        must(t.patience > 1 || (host_at((unsigned)space, la) & need));
        t.filled[acc]++;
        break;
    }
    case SHADOW_FAULT:
        must(!mmu_probe(world.v, la, acc | ACC_USER, &w, &expected));
        must(error == expected);
        t.faults++;
        break;
    default: must(refusable(la, acc)); t.refused++;
    }
}

// A complete path to a page, through tables that may be used elsewhere.
static void torture_map(void)
{
    uint64_t la = random_la(), table = world.v->s.cr3;
    for (unsigned shift = 39; shift >= 12; shift -= 9) {
        uint64_t gpa = table + (la >> shift & 511) * 8, value = 0;
        if (is_kernels(gpa) || mem_find(&world.mem, gpa).kind != MEM_RAM)
            return;
        mem_read(&world.mem, gpa, &value, 8);
        if (shift == 12) {
            write_entry(gpa, random_entry() | P | U | W);
            return;
        }
        if (shift == 21 && chance(10)) {
            write_entry(gpa, DATA * (1 + below(2)) | PS | ALL | (chance(50) ? A | D : 0));
            return;
        }
        if ((value & ALL) != ALL || (value & (XD | 1ull << 45)) || (shift < 39 && (value & PS)) ||
            chance(3)) {
            value = (TABLE0 + below(TABLES) * 4096ull) | ALL | (chance(50) ? A : 0);
            write_entry(gpa, value);
        }
        table = value & 0x000ffffffffff000ull;
    }
}

// User code in a worker writes, which nobody hears.
static void torture_worker(void)
{
    for (unsigned tries = 0; tries < 200; tries++) {
        unsigned space = below(t.spaces), piece = below(PIECES), i = below(24);
        uint64_t mapped = t.host[space][piece][i];
        uint64_t offset;
        if (!(mapped & SHADOW_WRITE))
            continue;
        // Before user code runs, changes are carried out.
        if (!(shadow_rights(shadow, (int)space, piece_base(piece) + i * 4096ull, &offset) & SHADOW_WRITE) ||
            offset != (mapped & ~0xfffull))
            continue;
        uint64_t gpa = (mapped & ~0xfffull) + below(24) * 8;
        uint64_t value = chance(10) ? 0xcc : random_entry();
        if (!is_kernels(gpa))
            memcpy(world.mem.ram + gpa, &value, 8);
        return;
    }
}

static void torture_user_write(void)
{
    struct walk w;
    uint32_t error;
    uint64_t la = random_la() & ~7ull, value = random_entry();
    if (!mmu_probe(world.v, la, ACC_WRITE | ACC_USER, &w, &error) || is_kernels(w.gpa) ||
        mem_find(&world.mem, w.gpa).kind == MEM_MMIO)
        return;
    world.v->s.cpl = 3;
    mmu_flush_all(world.v, true);
    must(!FAULTS(mmu_write(world.v, la, &value, 8, ACC_USER)));
    world.v->s.cpl = 0;
}

static void torture_bits(void)
{
    static const uint64_t bits[] = {A, D, W, U, P, XD, 1 << 9};
    uint64_t gpa = random_place(), value = peek(&world, gpa, 8);
    write_entry(gpa, chance(60) ? value & ~bits[below(7)] : value | bits[below(7)]);
}

static void torture_block(void)
{
    uint64_t gpa = TABLE0 + ROOTS * 4096 + below(TABLES - ROOTS) * 4096ull;
    static const uint8_t zero[4096];
    unsigned from = chance(50) ? 0 : below(4000), n = chance(30) ? 4096 - from : 1 + below(96);
    n = n > 4096 - from ? 4096 - from : n;
    if (chance(50))
        mem_write(&world.mem, gpa + from, zero, n);
    else
        kernel_write(gpa + from, zero, n);
}

static void torture_dirty(void)
{
    static uint64_t bitmap[PAGES / 64];
    if (!world.mem.dirty_logging)
        mem_dirty_start(&world.mem);
    else if (chance(50))
        mem_dirty_collect(&world.mem, bitmap);
    else
        mem_dirty_stop(&world.mem);
}

static void torture_step(void)
{
    unsigned what = below(1000);
    uint64_t code =
        (chance(70) ? DATA + below(24) * 4096ull : TABLE0 + below(TABLES) * 4096ull) + below(4096);
    if (what >= 985 && t.patience > 1 && chance(99))
        what = below(985); // so that lists of changes become long
    if (what < 420)
        torture_fill();
    else if (what < 600)
        torture_map();
    else if (what < 680)
        torture_bits();
    else if (what < 740)
        write_entry(random_place(), random_entry());
    else if (what < 760)
        torture_block();
    else if (what < 830)
        torture_worker();
    else if (what < 860)
        torture_user_write();
    else if (what < 890)
        mem_trace_set(&world.mem, code, TRACE_CODE);
    else if (what < 930)
        mem_trace_clear(&world.mem, code, TRACE_CODE);
    else if (what < 950)
        poke(&world, DATA + below(24) * 4096ull, chance(20) ? 0xcc : 0x90, 1);
    else if (what < 985)
        world.v->s.cr3 = TABLE0 + below(ROOTS) * 4096ull;
    else if (what < 988)
        torture_dirty();
    else if (what < 990)
        mem_set_pam(&world.mem, 0xc8000, 0x4000, chance(70), chance(70));
    else if (what < 991)
        mem_set_a20(&world.mem, false);
    else if (what < 993) {
        world.v->s.efer ^= EFER_NXE;
        torture_open();
    } else {
        unsigned space = below(t.spaces);
        shadow_close(shadow, (int)space);
        t.root[space] = 0;
        memset(t.host[space], 0, sizeof t.host[space]);
        memset(t.count[space], 0, sizeof t.count[space]);
    }
    if (!(world.mem.a20_mask >> 20 & 1) && chance(30))
        mem_set_a20(&world.mem, true);
    if (!(world.v->s.efer & EFER_NXE) && chance(10)) {
        world.v->s.efer ^= EFER_NXE;
        torture_open();
    }
}

static void torture(unsigned seed, unsigned operations, unsigned patience, unsigned spaces, unsigned prefill,
                    uint64_t max_mappings)
{
    static const uint8_t rom[0x10000];
    static const struct mmio_ops ops;
    memset(&t, 0, sizeof t);
    t.seed = seed;
    t.random = seed;
    t.spaces = spaces;
    t.patience = patience;
    t.max_mappings = max_mappings;
    mem_add_rom(&world.mem, 0xc0000, rom, sizeof rom, "rom");
    mem_add_mmio(&world.mem, 0xfee00000, 4096, &ops, NULL, "device");
    create(spaces, prefill, max_mappings);
    poke(&world, KERNEL_PDPT, P | W | A | D | PS, 8);
    for (unsigned i = 0; i < ROOTS; i++)
        poke(&world, TABLE0 + i * 4096 + 511 * 8, KERNEL_PDPT | P | W | A, 8);
    world.v->s.cr3 = TABLE0;
    for (t.operation = 0; t.operation < operations; t.operation++) {
        torture_step();
        if (below(patience))
            continue;
        apply();
        check();
    }
    struct shadow_counters c = *shadow_counters(shadow);
    if (getenv("SHADOW_FIGURES"))
        printf("seed %u: filled %u %u %u, faults %u, refused %u, evicted %u; prefilled %lu, mappings %lu, "
               "unmappings %lu, "
               "hits %lu, dropped %lu, exec lost %lu\n",
               seed, t.filled[0], t.filled[1], t.filled[2], t.faults, t.refused, t.evicted, c.prefilled,
               c.mappings, c.unmappings, c.table_hits, c.dropped, c.exec_lost);
    for (unsigned acc = 0; acc < 3; acc++)
        must(t.filled[acc] > operations / 100);
    must(t.faults > operations / 100 && t.refused > operations / 200);
    must(c.dropped > operations / 10 && c.exec_lost > operations / 400 && c.table_hits > operations / 20);
    must(spaces >= ROOTS || t.evicted);
    mem_set_a20(&world.mem, true);
    for (unsigned space = 0; space < spaces; space++)
        shadow_close(shadow, (int)space);
    for (unsigned page = 0; page < PAGES; page++)
        must(!(mem_trace_bits(&world.mem, page) & TRACE_TABLE) &&
             (!(mem_trace_bits(&world.mem, page) & TRACE_RAW) || world.mem.ram[page * 4096] == 0xcc));
}

static void torture_with_two_spaces(void **state)
{
    (void)state;
    torture(1, 20000, 1, 2, 8, 60000);
}

static void torture_with_room_for_all(void **state)
{
    (void)state;
    torture(2, 20000, 1, 6, 16, 60000);
}

static void torture_without_prefill(void **state)
{
    (void)state;
    torture(3, 20000, 1, 3, 1, 60000);
}

static void torture_with_few_mappings(void **state)
{
    (void)state;
    torture(4, 20000, 1, 4, 4, 30);
}

static void torture_with_a_slow_owner(void **state)
{
    (void)state;
    torture(5, 200000, 2000, 6, 1, 60000);
}

static void torture_with_a_slow_owner_and_few_mappings(void **state)
{
    (void)state;
    torture(6, 100000, 50, 5, 4, 30);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(a_space_is_found_by_its_root),
        T(the_space_opened_longest_ago_makes_room),
        T(only_4_level_paging_has_a_space),
        T(closing_forgets_changes_and_traces),
        T(a_read_maps_for_reads_until_the_page_is_dirty),
        T(the_guests_own_faults_are_told),
        T(upper_levels_forbid_too),
        T(what_is_no_ram_is_refused),
        T(what_the_owner_keeps_is_refused),
        T(a_space_is_filled_only_while_it_is_the_current_one),
        T(a_traced_page_is_not_writable),
        T(tracing_takes_write_permission_from_all_aliases_in_all_spaces),
        T(a_page_under_the_dirty_log_is_writable_after_its_first_write),
        T(a_mapped_page_that_becomes_a_table_is_written_with_care),
        T(the_software_tlb_writes_no_table_and_no_executable_page_unseen),
        T(a_write_to_a_table_drops_what_it_changed),
        T(a_write_that_takes_nothing_away_drops_nothing),
        T(clearing_a_or_d_drops),
        T(an_upper_entry_takes_all_below_it_along),
        T(a_table_without_a_use_is_not_traced),
        T(a_table_used_at_two_places_drops_at_both),
        T(a_recursive_slot_is_one_table_at_four_levels),
        T(a_large_page_is_one_change),
        T(of_a_1_gib_page_2_mib_are_mapped_at_once),
        T(a_large_page_in_the_way_of_the_owner_is_mapped_in_pieces),
        T(a_large_page_with_a_hole_is_mapped_in_pieces),
        T(a_large_page_that_code_is_executed_from_is_mapped_in_pieces),
        T(a_large_page_that_is_split_is_dropped),
        T(neighbours_that_were_accessed_are_mapped_too),
        T(unmapped_neighbours_are_one_change),
        T(too_many_changes_become_one_that_unmaps_everything),
        T(a_drop_that_the_list_has_no_room_for_unmaps_everything),
        T(too_many_mappings_begin_anew),
        T(a_pool_that_runs_dry_drops_the_oldest_space),
        T(sixteen_spaces_of_1_gib_have_room),
        T(an_executable_page_is_writable_nowhere),
        T(a_write_by_whomever_takes_execution_away),
        T(code_that_is_translated_may_be_executed_too),
        T(a_page_that_alternates_loses_execution),
        T(neighbours_are_executable_where_that_takes_nothing),
        T(a_change_of_the_map_empties_all_spaces),
        T(addresses_have_no_bit_20_without_a20),
        T(a_table_whose_ram_vanishes_from_the_map_keeps_no_trace),
        T(without_nx_the_bit_is_reserved),
        T(torture_with_two_spaces),
        T(torture_with_room_for_all),
        T(torture_without_prefill),
        T(torture_with_few_mappings),
        T(torture_with_a_slow_owner),
        T(torture_with_a_slow_owner_and_few_mappings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
