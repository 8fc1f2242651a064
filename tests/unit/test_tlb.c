// The software TLB as translated code sees it, its coherence with tables, flushes and traces, and the
// accesses that C code makes through it.
#include "mmu_fixture.h"

#define LA_BASE 0x40000000ull

static struct world world;

// What the translator and the traces were told.
static struct {
    unsigned pages, flushes, global_flushes, written;
    uint64_t page, gpa;
    unsigned len;
} heard;

static void on_page_flushed(void *opaque, uint64_t la)
{
    (void)opaque;
    heard.pages++;
    heard.page = la;
}

static void on_tlb_flushed(void *opaque, bool global)
{
    (void)opaque;
    heard.flushes++;
    heard.global_flushes += global;
}

static void on_written(void *opaque, uint64_t gpa, unsigned len)
{
    (void)opaque;
    heard.written++;
    heard.gpa = gpa;
    heard.len = len;
}

static void on_traced(void *opaque, uint64_t gpa)
{
    mmu_drop_writable(opaque, gpa);
}
static void on_changed(void *opaque)
{
    mmu_flush_all(opaque, true);
}

// A machine with 64-bit paging, an empty TLB, and a client for traced code.
static int setup(void **state)
{
    (void)state;
    world_create(&world);
    world_paging(&world, PAGING_LONG);
    world.v->s.cr4 |= CR4_PGE;
    world.v->tlb = tlb_create(NULL);
    assert_non_null(world.v->tlb);
    world.v->listener =
        (struct vcpu_listener){.page_flushed = on_page_flushed, .tlb_flushed = on_tlb_flushed};
    world.mem.changed = on_changed;
    world.mem.changed_opaque = world.v;
    mem_trace_register(&world.mem,
                       (struct mem_trace_client){
                           .written = on_written, .traced = on_traced, .opaque = world.v, .bit = TRACE_CODE});
    memset(&heard, 0, sizeof heard);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    world_destroy(&world);
    return 0;
}

// Maps one page (of `size`) and returns the address of its leaf entry.
static uint64_t map(uint64_t la, uint64_t frame, uint64_t size, uint64_t flags)
{
    struct mode mode = {"", PAGING_LONG, size == 4096 ? 4 : size == 1 << 30 ? 2 : 3, la, frame, size};
    uint64_t entry[4];
    world_map(&world, &mode, entry);
    uint64_t leaf = entry[mode.levels - 1];
    poke(&world, leaf, frame | flags | (size > 4096 ? PS : 0), 8);
    return leaf;
}

// What translated code finds for an access of n bytes: a host address, or null for a miss.
static uint8_t *lookup(uint64_t la, unsigned n, bool write, enum tlb_kind kind)
{
    const struct tlb_set *set = &world.v->tlb->set[kind];
    unsigned i = (uint32_t)la >> 12;
    uint64_t off = la - (write ? set->write_tag : set->read_tag)[i];
    return off > 4096 - n ? NULL : (uint8_t *)set->host_page[i] + off;
}

static bool hits(uint64_t la, bool write)
{
    return lookup(la, 1, write, mmu_tlb_kind(world.v));
}

static uint8_t *ram(uint64_t gpa)
{
    return world.mem.ram + gpa;
}

static uint8_t *fill(uint64_t la, unsigned acc)
{
    uint8_t *volatile host = NULL;
    assert_false(FAULTS(host = mmu_fill(world.v, la, acc)));
    return host;
}

// ---- the table

static void a_new_tlb_misses_every_address(void **state)
{
    (void)state;
    static const uint64_t high[] = {
        0, 0x100000000, 0x7fff00000000, 0x7ffe00000000, 0xffff800000000000, 0xffffffff00000000};
    for (enum tlb_kind kind = 0; kind < TLB_KINDS; kind++)
        for (unsigned h = 0; h < 6; h++)
            for (uint64_t page = 0; page < TLB_ENTRIES; page++)
                for (unsigned n = 1; n <= 64; n += 63) {
                    assert_null(lookup(high[h] + page * 4096, n, false, kind));
                    assert_null(lookup(high[h] + page * 4096 + 4095, n, true, kind));
                }
}

static void it_is_made_at_the_address_asked_for_or_not_at_all(void **state)
{
    (void)state;
    struct tlb *t = tlb_create((void *)0x20000000);
    assert_ptr_equal(t, (void *)0x20000000);
    assert_null(tlb_create((void *)0x20000000)); // taken
    tlb_destroy(t);
    assert_null(tlb_create((void *)0x20000800));
    assert_null(tlb_create((void *)0x7ffff000));
}

static void a_read_fills_for_reads_until_the_page_is_dirty(void **state)
{
    (void)state;
    uint64_t leaf = map(LA_BASE, 0x400000, 4096, P | W | U);
    assert_ptr_equal(fill(LA_BASE + 0x123, ACC_READ), ram(0x400123));
    assert_ptr_equal(lookup(LA_BASE + 0x123, 8, false, TLB_KERNEL_AC), ram(0x400123));
    assert_false(hits(LA_BASE, true));
    assert_int_equal(peek(&world, leaf, 8) & (A | D), A);
    assert_ptr_equal(fill(LA_BASE + 8, ACC_WRITE), ram(0x400008));
    assert_true(hits(LA_BASE, true));
    assert_int_equal(peek(&world, leaf, 8) & (A | D), A | D);
    mmu_flush_all(world.v, false);
    fill(LA_BASE, ACC_READ);
    assert_true(hits(LA_BASE, true)); // D is set already
}

static void a_page_crossing_access_misses(void **state)
{
    (void)state;
    map(LA_BASE, 0x400000, 4096, P | W | U);
    fill(LA_BASE, ACC_WRITE);
    assert_non_null(lookup(LA_BASE + 4088, 8, true, TLB_KERNEL_AC));
    assert_null(lookup(LA_BASE + 4089, 8, true, TLB_KERNEL_AC));
    assert_null(lookup(LA_BASE - 1, 2, false, TLB_KERNEL_AC));
}

static void kinds_do_not_see_each_other(void **state)
{
    (void)state;
    struct cpu_state *s = &world.v->s;
    map(LA_BASE, 0x400000, 4096, P | W | U);
    map(LA_BASE + 4096, 0x401000, 4096, P | W);
    s->cr4 |= CR4_SMAP;
    assert_true(FAULTS(mmu_fill(world.v, LA_BASE, ACC_READ)));
    assert_int_equal(world.v->event.error, 1);
    fill(LA_BASE + 4096, ACC_READ);
    assert_non_null(lookup(LA_BASE + 4096, 1, false, TLB_KERNEL));
    assert_null(lookup(LA_BASE + 4096, 1, false, TLB_KERNEL_AC));
    s->rflags |= FL_AC;
    fill(LA_BASE, ACC_READ);
    assert_non_null(lookup(LA_BASE, 1, false, TLB_KERNEL_AC));
    assert_null(lookup(LA_BASE, 1, false, TLB_KERNEL));
    assert_null(lookup(LA_BASE, 1, false, TLB_USER));
    s->cpl = 3;
    fill(LA_BASE, ACC_READ | ACC_USER);
    assert_non_null(lookup(LA_BASE, 1, false, TLB_USER));
    assert_true(FAULTS(mmu_fill(world.v, LA_BASE + 4096, ACC_READ | ACC_USER)));
    assert_int_equal(world.v->event.error, 5);
}

static void a_fault_throws_its_address_and_drops_what_was_cached(void **state)
{
    (void)state;
    uint64_t leaf = map(LA_BASE, 0x400000, 4096, P | U);
    fill(LA_BASE, ACC_READ);
    assert_true(FAULTS(mmu_fill(world.v, LA_BASE + 0x777, ACC_WRITE)));
    assert_int_equal(world.v->event.error, 3);
    assert_int_equal(world.v->event.cr2, LA_BASE + 0x777);
    assert_false(hits(LA_BASE, false));
    poke(&world, leaf, 0, 8);
    assert_true(FAULTS(mmu_fill(world.v, LA_BASE, ACC_READ)));
    assert_int_equal(world.v->event.error, 0);
}

static void rom_fills_for_reads_and_mmio_not_at_all(void **state)
{
    (void)state;
    static const uint8_t data[4096] = {0x55, 0xaa};
    static const struct mmio_ops ops;
    mem_add_rom(&world.mem, 0xfffff000, data, sizeof data, "rom");
    mem_add_mmio(&world.mem, 0xfee00000, 4096, &ops, NULL, "device");
    map(LA_BASE, 0xfffff000, 4096, P | W | A | D);
    map(LA_BASE + 4096, 0xfee00000, 4096, P | W | A | D);
    assert_int_equal(fill(LA_BASE + 1, ACC_READ)[0], 0xaa);
    assert_true(hits(LA_BASE, false));
    assert_null(fill(LA_BASE, ACC_WRITE));
    assert_false(hits(LA_BASE, true));
    assert_null(fill(LA_BASE + 4096, ACC_READ));
    assert_null(fill(LA_BASE + 4096, ACC_WRITE));
    assert_false(hits(LA_BASE + 4096, false));
}

// ---- flushes

static void a_cr3_load_keeps_global_entries(void **state)
{
    (void)state;
    map(LA_BASE, 0x400000, 4096, P | W);
    map(LA_BASE + 4096, 0x401000, 4096, P | W | G);
    fill(LA_BASE, ACC_WRITE);
    fill(LA_BASE + 4096, ACC_WRITE);
    mmu_flush_all(world.v, false);
    assert_false(hits(LA_BASE, false) || hits(LA_BASE, true));
    assert_true(hits(LA_BASE + 4096, false) && hits(LA_BASE + 4096, true));
    assert_int_equal(heard.flushes, 1);
    assert_int_equal(heard.global_flushes, 0);
    mmu_flush_all(world.v, true);
    assert_false(hits(LA_BASE + 4096, false) || hits(LA_BASE + 4096, true));
    assert_int_equal(heard.global_flushes, 1);
}

static void an_entry_that_stops_being_global_is_flushed_like_one(void **state)
{
    (void)state;
    uint64_t leaf = map(LA_BASE, 0x400000, 4096, P | W | G);
    fill(LA_BASE, ACC_READ);
    poke(&world, leaf, 0x402000 | P | W, 8);
    assert_ptr_equal(fill(LA_BASE, ACC_WRITE), ram(0x402000));
    assert_ptr_equal(lookup(LA_BASE, 1, false, TLB_KERNEL_AC), ram(0x402000));
    mmu_flush_all(world.v, false);
    assert_false(hits(LA_BASE, false));
}

static void refills_take_no_room_in_the_log(void **state)
{
    (void)state;
    map(LA_BASE, 0x400000, 4096, P | W);
    map(LA_BASE + (1ull << 32), 0x401000, 4096, P | W); // the same entry
    for (unsigned i = 0; i < 3 * TLB_LOG; i++)
        fill(LA_BASE + (i & 1 ? 1ull << 32 : 0), ACC_WRITE);
    assert_int_equal(world.v->tlb->log_count, 1);
    mmu_flush_all(world.v, false);
    assert_int_equal(world.v->tlb->log_count, 0);
    assert_false(hits(LA_BASE, true) || hits(LA_BASE + (1ull << 32), true));
    fill(LA_BASE, ACC_WRITE);
    assert_int_equal(world.v->tlb->log_count, 1);
}

static void a_full_log_makes_the_next_flush_clear_everything(void **state)
{
    (void)state;
    const uint64_t pages = TLB_LOG + 100;
    for (uint64_t off = 0; off < pages * 4096; off += 2 << 20) // 24 large pages, all of the same RAM
        map(LA_BASE + off, 0x800000, 2 << 20, P | W | A | D);
    for (uint64_t i = 0; i < pages; i++)
        fill(LA_BASE + i * 4096, ACC_WRITE);
    mmu_flush_all(world.v, false);
    for (uint64_t i = 0; i < pages; i++)
        assert_false(hits(LA_BASE + i * 4096, true) || hits(LA_BASE + i * 4096, false));
    assert_int_equal(world.v->tlb->log_count, 0);
    fill(LA_BASE, ACC_WRITE);
    assert_true(hits(LA_BASE, true));
    mmu_flush_all(world.v, false);
    assert_false(hits(LA_BASE, true));
}

static void a_full_global_log_survives_cr3_loads_and_is_cleared_by_a_global_flush(void **state)
{
    (void)state;
    const uint64_t pages = TLB_LOG + 100;
    for (uint64_t off = 0; off < pages * 4096; off += 2 << 20)
        map(LA_BASE + off, 0x800000, 2 << 20, P | W | A | D | G);
    for (uint64_t i = 0; i < pages; i++)
        fill(LA_BASE + i * 4096, ACC_WRITE);
    mmu_flush_all(world.v, false);
    assert_true(hits(LA_BASE, true) && hits(LA_BASE + (pages - 1) * 4096, true));
    mmu_flush_all(world.v, true);
    for (uint64_t i = 0; i < pages; i++)
        assert_false(hits(LA_BASE + i * 4096, true));
}

static void invlpg_drops_one_page_of_all_kinds_global_too(void **state)
{
    (void)state;
    map(LA_BASE, 0x400000, 4096, P | W | U | G);
    map(LA_BASE + 4096, 0x401000, 4096, P | W | U);
    fill(LA_BASE, ACC_WRITE);
    fill(LA_BASE, ACC_WRITE | ACC_USER);
    fill(LA_BASE + 4096, ACC_WRITE);
    mmu_flush_page(world.v, LA_BASE + 0xabc);
    for (enum tlb_kind kind = 0; kind < TLB_KINDS; kind++)
        assert_true(!lookup(LA_BASE, 1, false, kind) && !lookup(LA_BASE, 1, true, kind));
    assert_true(hits(LA_BASE + 4096, true));
    assert_int_equal(heard.pages, 1);
    assert_int_equal(heard.page, LA_BASE + 0xabc);
    assert_int_equal(heard.flushes, 0);
}

static void invlpg_of_the_same_index_elsewhere_drops_nothing(void **state)
{
    (void)state;
    map(LA_BASE, 0x400000, 4096, P | W);
    fill(LA_BASE, ACC_WRITE);
    mmu_flush_page(world.v, LA_BASE + (1ull << 32));
    assert_true(hits(LA_BASE, true));
}

static void invlpg_drops_all_pieces_of_a_large_page(void **state)
{
    (void)state;
    static const uint64_t sizes[] = {2 << 20, 1 << 30};
    for (unsigned k = 0; k < 4; k++) {
        uint64_t size = sizes[k / 2], global = k & 1 ? G : 0;
        map(LA_BASE + (1ull << 39), 0, size, P | W | A | D | global);
        map(LA_BASE, 0x800000, 4096, P | W | A | D); // its own page, same indices
        uint64_t large = LA_BASE + (1ull << 39);
        fill(large + 0x1000, ACC_WRITE);
        fill(large + 0x9f000, ACC_READ);
        fill(large + 0x1fe000, ACC_READ);
        mmu_flush_page(world.v, large + 0x55000);
        assert_false(hits(large + 0x1000, true) || hits(large + 0x1000, false));
        assert_false(hits(large + 0x9f000, false) || hits(large + 0x1fe000, false));
        mmu_flush_all(world.v, true);
        poke(&world, ROOT, 0, 8); // all that was mapped
        poke(&world, ROOT + 8, 0, 8);
    }
    assert_int_equal(heard.pages, 4);
}

static void invlpg_drops_all_pieces_of_a_4_mib_page(void **state)
{
    (void)state;
    world_paging(&world, PAGING_32);
    poke(&world, ROOT + 0x100 * 4, 0x800000 | P | W | PS | A | D, 4);
    poke(&world, ROOT + 0x101 * 4, 0x800000 | P | W | PS | A | D, 4);
    fill(0x40000000, ACC_WRITE);
    fill(0x403ff000, ACC_WRITE);
    fill(0x40400000, ACC_WRITE);
    mmu_flush_page(world.v, 0x40201000);
    assert_false(hits(0x40000000, true) || hits(0x403ff000, false));
    assert_true(hits(0x40400000, true));
}

static void invlpg_inside_a_large_page_that_code_came_from_flushes_the_translator(void **state)
{
    (void)state;
    map(LA_BASE, 0x800000, 2 << 20, P | W);
    volatile uint64_t gpa = 0;
    assert_false(FAULTS(gpa = mmu_fetch_gpa(world.v, LA_BASE + 0x12345)));
    assert_int_equal(gpa, 0x812345);
    mmu_flush_page(world.v, LA_BASE + 0x1000);
    assert_int_equal(heard.pages, 0);
    assert_int_equal(heard.global_flushes, 1);
    mmu_flush_page(world.v, LA_BASE + 0x1000); // forgotten
    assert_int_equal(heard.pages, 1);
    assert_int_equal(heard.global_flushes, 1);
}

static void a_fetch_obeys_nx_and_smep_and_fills_nothing(void **state)
{
    (void)state;
    map(LA_BASE, 0x400000, 4096, P | U);
    map(LA_BASE + 4096, 0x401000, 4096, P | U | XD);
    assert_false(FAULTS(mmu_fetch_gpa(world.v, LA_BASE)));
    assert_false(hits(LA_BASE, false));
    assert_true(FAULTS(mmu_fetch_gpa(world.v, LA_BASE + 4096)));
    assert_int_equal(world.v->event.error, 0x11);
    world.v->s.cr4 |= CR4_SMEP;
    assert_true(FAULTS(mmu_fetch_gpa(world.v, LA_BASE)));
    assert_int_equal(world.v->event.error, 0x11);
    world.v->s.cpl = 3;
    assert_false(FAULTS(mmu_fetch_gpa(world.v, LA_BASE)));
}

static void a_change_of_the_map_reaches_the_tlb(void **state)
{
    (void)state;
    world_paging(&world, PAGING_32);
    world.v->s.cr0 &= ~(uint64_t)CR0_PG;
    fill(0xc8000, ACC_WRITE);
    assert_true(hits(0xc8000, true));
    mem_set_pam(&world.mem, 0xc8000, 0x4000, true, false);
    assert_false(hits(0xc8000, true));
    assert_null(fill(0xc8000, ACC_WRITE));
    assert_ptr_equal(fill(0xc8000, ACC_READ), ram(0xc8000));
    fill(0x100000, ACC_WRITE);
    mem_set_a20(&world.mem, false);
    assert_ptr_equal(fill(0x100000, ACC_WRITE), ram(0));
}

// ---- traces

static void tracing_takes_write_permission_from_every_alias(void **state)
{
    (void)state;
    map(LA_BASE, 0x400000, 4096, P | W | U);
    map(LA_BASE + 0x5000, 0x400000, 4096, P | W | U | G);
    map(LA_BASE + 0x6000, 0x401000, 4096, P | W | U);
    fill(LA_BASE, ACC_WRITE);
    fill(LA_BASE, ACC_WRITE | ACC_USER);
    fill(LA_BASE + 0x5000, ACC_WRITE);
    fill(LA_BASE + 0x6000, ACC_WRITE);
    mem_trace_set(&world.mem, 0x400800, TRACE_CODE);
    assert_false(hits(LA_BASE, true) || hits(LA_BASE + 0x5000, true));
    assert_null(lookup(LA_BASE, 1, true, TLB_USER));
    assert_true(hits(LA_BASE, false) && hits(LA_BASE + 0x5000, false));
    assert_true(hits(LA_BASE + 0x6000, true));
    assert_null(fill(LA_BASE, ACC_WRITE));
    mem_trace_clear(&world.mem, 0x400800, TRACE_CODE);
    assert_non_null(fill(LA_BASE, ACC_WRITE));
    assert_true(hits(LA_BASE, true));
}

static void tracing_finds_one_alias_after_many_came_and_went(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 8; i++)
        map(LA_BASE + i * 4096, 0x400000, 4096, P | W);
    for (unsigned round = 0; round < 8; round++) {
        fill(LA_BASE + round * 4096, ACC_WRITE);
        if (round % 3 == 2)
            mmu_flush_all(world.v, false);
        if (round % 3 == 1)
            mmu_flush_page(world.v, LA_BASE + round * 4096);
        fill(LA_BASE + (7 - round) * 4096, ACC_WRITE);
        mmu_drop_writable(world.v, 0x400000);
        for (unsigned i = 0; i < 8; i++)
            assert_false(hits(LA_BASE + i * 4096, true));
    }
}

static void tracing_finds_aliases_when_the_logs_are_full(void **state)
{
    (void)state;
    const uint64_t pages = TLB_LOG + 100;
    for (uint64_t off = 0; off < pages * 4096; off += 2 << 20)
        map(LA_BASE + off, 0x800000, 2 << 20, P | W | A | D);
    for (uint64_t i = 0; i < pages; i++)
        fill(LA_BASE + i * 4096, ACC_WRITE);
    mem_trace_set(&world.mem, 0x803000, TRACE_CODE);
    for (uint64_t i = 0; i < pages; i++)
        assert_int_equal(hits(LA_BASE + i * 4096, true), i % 512 != 3);
}

static void a_traced_write_stores_and_tells(void **state)
{
    (void)state;
    uint64_t value = 0x1122334455667788;
    map(LA_BASE, 0x400000, 4096, P | W);
    mem_trace_set(&world.mem, 0x400000, TRACE_CODE);
    assert_false(FAULTS(mmu_write(world.v, LA_BASE + 0x10, &value, 8, 0)));
    assert_int_equal(peek(&world, 0x400010, 8), value);
    assert_int_equal(heard.written, 1);
    assert_int_equal(heard.gpa, 0x400010);
    assert_int_equal(heard.len, 8);
}

static void a_dirty_logged_page_is_writable_again_after_its_first_write(void **state)
{
    (void)state;
    uint64_t bitmap[64] = {0}, value = 1;
    map(LA_BASE, 0x400000, 4096, P | W | A | D);
    map(LA_BASE + 4096, 0x401000, 4096, P | W | A | D);
    fill(LA_BASE, ACC_WRITE);
    mem_dirty_start(&world.mem);
    assert_false(hits(LA_BASE, true));
    fill(LA_BASE, ACC_READ);
    assert_false(hits(LA_BASE, true));
    assert_false(FAULTS(mmu_write(world.v, LA_BASE, &value, 8, 0)));
    assert_true(hits(LA_BASE, true));
    fill(LA_BASE + 4096, ACC_READ);
    assert_int_equal(mem_dirty_collect(&world.mem, bitmap), 1);
    assert_int_equal(bitmap[0x400 / 64], 1);
    assert_false(hits(LA_BASE, true));
    assert_int_equal(mem_dirty_collect(&world.mem, bitmap), 0);
    mem_dirty_stop(&world.mem);
    fill(LA_BASE, ACC_WRITE);
    assert_true(hits(LA_BASE, true));
}

// ---- linear accesses

static struct {
    char op;
    uint64_t gpa, value;
    unsigned size;
} device_log[32];
static unsigned device_count;

static uint64_t device_read(void *opaque, uint64_t gpa, unsigned size)
{
    (void)opaque;
    device_log[device_count].op = 'r';
    device_log[device_count].gpa = gpa;
    device_log[device_count++].size = size;
    return gpa & 0xff;
}

static void device_write(void *opaque, uint64_t gpa, unsigned size, uint64_t value)
{
    (void)opaque;
    device_log[device_count].op = 'w';
    device_log[device_count].gpa = gpa;
    device_log[device_count].value = value;
    device_log[device_count++].size = size;
}

// Functions of their own: setjmp() leaves its caller's changed locals undefined.
static bool write_faults(uint64_t la, const void *data, unsigned n)
{
    return FAULTS(mmu_write(world.v, la, data, n, 0));
}

static bool read_faults(uint64_t la, void *data, unsigned n)
{
    return FAULTS(mmu_read(world.v, la, data, n, 0));
}

static void reads_and_writes_cross_pages(void **state)
{
    (void)state;
    uint8_t out[10000], in[10000];
    for (unsigned i = 0; i < sizeof out; i++)
        out[i] = (uint8_t)(i * 7 + (i >> 8));
    for (unsigned i = 0; i < 4; i++)
        map(LA_BASE + i * 4096, 0x400000 + (3 - i) * 4096, 4096, P | W);
    static const unsigned sizes[] = {1, 2, 3, 4, 8, 16, 64, 5000, 10000};
    for (unsigned k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
        for (uint64_t la = LA_BASE + 4096 - 10; la < LA_BASE + 4096 + 2; la++) {
            assert_false(write_faults(la, out, sizes[k]));
            memset(in, 0, sizeof in);
            assert_false(read_faults(la, in, sizes[k]));
            assert_memory_equal(in, out, sizes[k]);
        }
    }
    assert_int_equal(*ram(0x402001), out[0]); // the last write went to LA_BASE + 0x1001
    assert_int_equal(*ram(0x401000), out[4095]);
    assert_int_equal(*ram(0x400000), out[8191]);
}

static void a_write_that_faults_on_its_second_page_changes_nothing(void **state)
{
    (void)state;
    uint64_t value = ~0ull;
    uint64_t leaf = map(LA_BASE, 0x400000, 4096, P | W);
    uint64_t second = map(LA_BASE + 4096, 0x401000, 4096, P);
    assert_true(FAULTS(mmu_write(world.v, LA_BASE + 4092, &value, 8, 0)));
    assert_int_equal(world.v->event.cr2, LA_BASE + 4096);
    assert_int_equal(world.v->event.error, 3);
    assert_int_equal(peek(&world, 0x400ffc, 4), 0);
    assert_int_equal(peek(&world, leaf, 8) & D, 0);
    poke(&world, leaf, 0, 8);
    poke(&world, second, 0, 8);
    assert_true(FAULTS(mmu_read(world.v, LA_BASE + 4092, &value, 8, 0)));
    assert_int_equal(world.v->event.cr2, LA_BASE + 4092); // the lower page first
    assert_int_equal(world.v->event.error, 0);
}

static void check_checks_every_page_and_accesses_none(void **state)
{
    (void)state;
    map(LA_BASE, 0x400000, 4096, P | W);
    map(LA_BASE + 4096, 0x401000, 4096, P | W);
    map(LA_BASE + 8192, 0x402000, 4096, P);
    assert_false(FAULTS(mmu_check(world.v, LA_BASE + 1, 8191, ACC_WRITE)));
    assert_false(FAULTS(mmu_check(world.v, LA_BASE + 1, 8192, ACC_READ)));
    assert_true(FAULTS(mmu_check(world.v, LA_BASE + 1, 8192, ACC_WRITE)));
    assert_int_equal(world.v->event.cr2, LA_BASE + 8192);
    assert_false(FAULTS(mmu_check(world.v, LA_BASE + (1ull << 40), 0, ACC_WRITE)));
}

static void addresses_wrap_at_4_gib_outside_long_mode(void **state)
{
    (void)state;
    uint64_t value = 0x8877665544332211, back = 0;
    world_paging(&world, PAGING_32);
    poke(&world, ROOT + 0x3ff * 4, 0x800000 | P | W | PS, 4);
    poke(&world, ROOT, 0xc00000 | P | W | PS, 4);
    assert_false(FAULTS(mmu_write(world.v, 0xfffffffd, &value, 8, 0)));
    assert_int_equal(peek(&world, 0xbffffd, 3), 0x332211);
    assert_int_equal(peek(&world, 0xc00000, 5), 0x8877665544);
    assert_false(FAULTS(mmu_read(world.v, 0xfffffffd, &back, 8, 0)));
    assert_int_equal(back, value);
}

static void mmio_goes_through_the_exits_naturally_split(void **state)
{
    (void)state;
    static const struct mmio_ops ops;
    uint64_t value = 0x8877665544332211;
    mem_add_mmio(&world.mem, 0xfee00000, 8192, &ops, NULL, "device");
    world.v->exits.mmio_read = device_read;
    world.v->exits.mmio_write = device_write;
    map(LA_BASE, 0xfee00000, 4096, P | W);
    device_count = 0;
    assert_false(FAULTS(mmu_write(world.v, LA_BASE + 0x21, &value, 8, 0)));
    static const struct {
        uint64_t gpa, value;
        unsigned size;
    } pieces[] = {
        {0xfee00021, 0x11, 1}, {0xfee00022, 0x3322, 2}, {0xfee00024, 0x77665544, 4}, {0xfee00028, 0x88, 1}};
    assert_int_equal(device_count, 4);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(device_log[i].op, 'w');
        assert_int_equal(device_log[i].gpa, pieces[i].gpa);
        assert_int_equal(device_log[i].value, pieces[i].value);
        assert_int_equal(device_log[i].size, pieces[i].size);
    }
    device_count = 0;
    uint32_t in = ~0u;
    assert_false(FAULTS(mmu_read(world.v, LA_BASE + 0x44, &in, 4, 0)));
    assert_int_equal(device_count, 1);
    assert_int_equal(in, 0x44);
    // A fault of the other page comes before the device is touched.
    device_count = 0;
    assert_true(FAULTS(mmu_read(world.v, LA_BASE + 4094, &in, 4, 0)));
    assert_int_equal(device_count, 0);
}

static void nothing_reads_ones_and_rom_ignores_writes(void **state)
{
    (void)state;
    static const uint8_t data[4096] = {0x12, 0x34, 0x56, 0x78};
    uint32_t value = 0, back = 0;
    mem_add_rom(&world.mem, 0xfffff000, data, sizeof data, "rom");
    map(LA_BASE, 0xd0000000, 4096, P | W);
    map(LA_BASE + 4096, 0xfffff000, 4096, P | W);
    assert_false(FAULTS(mmu_write(world.v, LA_BASE, &value, 4, 0)));
    assert_false(FAULTS(mmu_read(world.v, LA_BASE, &back, 4, 0)));
    assert_int_equal(back, 0xffffffff);
    assert_false(FAULTS(mmu_write(world.v, LA_BASE + 4096, &value, 4, 0)));
    assert_false(FAULTS(mmu_read(world.v, LA_BASE + 4096, &back, 4, 0)));
    assert_int_equal(back, 0x78563412);
}

static void pam_write_only_reads_rom_and_writes_the_ram_below(void **state)
{
    (void)state;
    static const uint8_t data[0x10000] = {0x12, 0x34, 0x56, 0x78};
    uint32_t value = 0xcafef00d, back = 0;
    world_paging(&world, PAGING_32);
    world.v->s.cr0 &= ~(uint64_t)CR0_PG;
    mem_add_rom(&world.mem, 0xf0000, data, sizeof data, "bios");
    mem_set_pam(&world.mem, 0xf0000, 0x10000, false, true);
    assert_false(FAULTS(mmu_write(world.v, 0xf0000, &value, 4, 0)));
    assert_false(FAULTS(mmu_read(world.v, 0xf0000, &back, 4, 0)));
    assert_int_equal(back, 0x78563412);
    mem_set_pam(&world.mem, 0xf0000, 0x10000, true, false);
    assert_false(FAULTS(mmu_read(world.v, 0xf0000, &back, 4, 0)));
    assert_int_equal(back, 0xcafef00d);
}

static void implicit_accesses_use_entries_that_smap_guards(void **state)
{
    (void)state;
    uint64_t value = 0;
    map(LA_BASE, 0x400000, 4096, P | W | U);
    world.v->s.cr4 |= CR4_SMAP;
    world.v->s.rflags |= FL_AC;
    assert_false(FAULTS(mmu_read(world.v, LA_BASE, &value, 8, ACC_READ)));
    assert_true(FAULTS(mmu_read(world.v, LA_BASE, &value, 8, ACC_READ | ACC_SYSTEM)));
    assert_int_equal(world.v->event.error, 1);
}

static void accesses_work_without_a_tlb(void **state)
{
    (void)state;
    uint64_t value = 0x0123456789abcdef, back = 0;
    tlb_destroy(world.v->tlb);
    world.v->tlb = NULL;
    map(LA_BASE, 0x400000, 4096, P | W);
    map(LA_BASE + 4096, 0x402000, 4096, P | W);
    assert_false(FAULTS(mmu_write(world.v, LA_BASE + 4093, &value, 8, 0)));
    assert_false(FAULTS(mmu_read(world.v, LA_BASE + 4093, &back, 8, 0)));
    assert_int_equal(back, value);
    mmu_flush_all(world.v, true);
    mmu_drop_writable(world.v, 0x400000);
    assert_int_equal(heard.global_flushes, 1);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(a_new_tlb_misses_every_address),
        T(it_is_made_at_the_address_asked_for_or_not_at_all),
        T(a_read_fills_for_reads_until_the_page_is_dirty),
        T(a_page_crossing_access_misses),
        T(kinds_do_not_see_each_other),
        T(a_fault_throws_its_address_and_drops_what_was_cached),
        T(rom_fills_for_reads_and_mmio_not_at_all),
        T(a_cr3_load_keeps_global_entries),
        T(an_entry_that_stops_being_global_is_flushed_like_one),
        T(refills_take_no_room_in_the_log),
        T(a_full_log_makes_the_next_flush_clear_everything),
        T(a_full_global_log_survives_cr3_loads_and_is_cleared_by_a_global_flush),
        T(invlpg_drops_one_page_of_all_kinds_global_too),
        T(invlpg_of_the_same_index_elsewhere_drops_nothing),
        T(invlpg_drops_all_pieces_of_a_large_page),
        T(invlpg_drops_all_pieces_of_a_4_mib_page),
        T(invlpg_inside_a_large_page_that_code_came_from_flushes_the_translator),
        T(a_fetch_obeys_nx_and_smep_and_fills_nothing),
        T(a_change_of_the_map_reaches_the_tlb),
        T(tracing_takes_write_permission_from_every_alias),
        T(tracing_finds_one_alias_after_many_came_and_went),
        T(tracing_finds_aliases_when_the_logs_are_full),
        T(a_traced_write_stores_and_tells),
        T(a_dirty_logged_page_is_writable_again_after_its_first_write),
        T(reads_and_writes_cross_pages),
        T(a_write_that_faults_on_its_second_page_changes_nothing),
        T(check_checks_every_page_and_accesses_none),
        T(addresses_wrap_at_4_gib_outside_long_mode),
        T(mmio_goes_through_the_exits_naturally_split),
        T(nothing_reads_ones_and_rom_ignores_writes),
        T(pam_write_only_reads_rom_and_writes_the_ram_below),
        T(implicit_accesses_use_entries_that_smap_guards),
        T(accesses_work_without_a_tlb),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
