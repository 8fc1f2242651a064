// The guest-physical map: layout of RAM, holes, ROM, MMIO, PAM, A20, RAM above 4 GiB, and write tracing.
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <cmocka.h>
#include "mmu/mem.h"

#define MIB (1ull << 20)
#define GIB (1ull << 30)

static struct mem_map m;

static int setup(void **state)
{
    (void)state;
    assert_int_equal(mem_create(&m, 16 * MIB), 0);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    mem_destroy(&m);
    return 0;
}

static uint64_t peek(uint64_t gpa, unsigned size)
{
    uint64_t value = 0;
    mem_read(&m, gpa, &value, size);
    return value;
}

static bool poke(uint64_t gpa, uint64_t value, unsigned size)
{
    return mem_write(&m, gpa, &value, size);
}

struct chip {
    unsigned reads, writes, size;
    uint64_t offset, value;
};

static uint64_t chip_read(void *opaque, uint64_t offset, unsigned size)
{
    struct chip *chip = opaque;
    chip->reads++;
    chip->offset = offset;
    chip->size = size;
    return 0x1122334455667788 + offset;
}

static void chip_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct chip *chip = opaque;
    chip->writes++;
    chip->offset = offset;
    chip->size = size;
    chip->value = value;
}

static const struct mmio_ops chip_ops = {chip_read, chip_write};

static unsigned changes;
static void on_changed(void *opaque)
{
    (void)opaque, changes++;
}

// ---- layout

static void sizes_that_are_no_memory_are_refused(void **state)
{
    (void)state;
    struct mem_map bad;
    assert_int_equal(mem_create(&bad, 0), -EINVAL);
    assert_int_equal(mem_create(&bad, MIB / 2), -EINVAL);
    assert_int_equal(mem_create(&bad, 3 * MIB + 4096), -EINVAL);
    assert_int_equal(mem_create(&bad, 1ull << 60), -EINVAL);
}

static void ram_starts_as_zero_and_ends_in_nothing(void **state)
{
    (void)state;
    assert_int_equal(peek(0, 8), 0);
    assert_int_equal(peek(16 * MIB - 8, 8), 0);
    assert_int_equal(mem_find(&m, 16 * MIB - 1).kind, MEM_RAM);
    struct mem_slot slot = mem_find(&m, 16 * MIB);
    assert_int_equal(slot.kind, MEM_NONE);
    assert_int_equal(slot.left, -(16 * MIB));
    assert_null(slot.region);
    assert_int_equal(peek(16 * MIB, 8), ~0ull);
    assert_false(poke(16 * MIB, 0, 8));
    slot = mem_find(&m, 0x123456);
    assert_int_equal(slot.kind, MEM_RAM);
    assert_ptr_equal(slot.host, m.ram + 0x123456);
    assert_int_equal(slot.ram_page, 0x123);
    assert_int_equal(slot.left, 16 * MIB - 0x123456);
}

static void the_memfd_cannot_be_resized(void **state)
{
    (void)state;
    assert_int_equal(fcntl(m.ram_fd, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
}

static void accesses_across_the_end_of_ram_do_the_part_that_is_there(void **state)
{
    (void)state;
    uint8_t data[16];
    memset(data, 0x5a, sizeof data);
    assert_false(mem_write(&m, 16 * MIB - 8, data, sizeof data));
    memset(data, 0, sizeof data);
    assert_false(mem_read(&m, 16 * MIB - 8, data, sizeof data));
    for (unsigned i = 0; i < 16; i++)
        assert_int_equal(data[i], i < 8 ? 0x5a : 0xff);
}

static void accesses_do_not_wrap_around_the_end_of_the_address_space(void **state)
{
    (void)state;
    uint8_t data[16] = {0};
    poke(0, 0, 8);
    assert_false(mem_read(&m, UINT64_MAX - 3, data, sizeof data));
    for (unsigned i = 0; i < 16; i++)
        assert_int_equal(data[i], 0xff);
    assert_false(mem_write(&m, UINT64_MAX - 3, data, sizeof data));
    assert_int_equal(peek(0, 8), 0);
}

static void ram_above_3_gib_continues_at_4_gib(void **state)
{
    (void)state;
    mem_destroy(&m);
    assert_int_equal(mem_create(&m, 6 * GIB), 0); // sparse
    assert_int_equal(m.low_size, 3 * GIB);
    assert_int_equal(mem_find(&m, 3 * GIB - 1).kind, MEM_RAM);
    struct mem_slot hole = mem_find(&m, 3 * GIB);
    assert_int_equal(hole.kind, MEM_NONE);
    assert_int_equal(hole.left, GIB);
    struct mem_slot high = mem_find(&m, 4 * GIB + 0x1234567);
    assert_int_equal(high.kind, MEM_RAM);
    assert_int_equal(high.ram_page, (3 * GIB + 0x1234567) >> 12);
    assert_ptr_equal(high.host, m.ram + 3 * GIB + 0x1234567);
    assert_int_equal(high.left, 3 * GIB - 0x1234567);
    assert_true(poke(7 * GIB - 8, 0xfeedface, 8));
    assert_int_equal(peek(7 * GIB - 8, 8), 0xfeedface);
    assert_int_equal(mem_find(&m, 7 * GIB).kind, MEM_NONE);
    assert_true(poke(4 * GIB, 0x77, 1));
    assert_int_equal(m.ram[3 * GIB], 0x77);
}

static void a_first_touch_faults_in_two_mib(void **state)
{
    (void)state;
    unsigned char resident[1024];
    poke(4 * MIB + 5, 1, 1);
    assert_int_equal(mincore(m.ram + 4 * MIB, 2 * MIB, resident), 0);
    unsigned pages = 0;
    for (unsigned i = 0; i < 512; i++)
        pages += resident[i] & 1;
    assert_int_equal(pages, 512);
    assert_int_equal(m.populated[0], 1 << 2);
    mem_populate(&m, 9); // nothing there
    assert_int_equal(m.populated[0], 1 << 2);
}

// ---- regions

static void rom_is_read_only_and_padded_with_ones(void **state)
{
    (void)state;
    uint8_t data[5000];
    memset(data, 0xc3, sizeof data);
    assert_true(mem_add_rom(&m, 0xffffe000, data, sizeof data, "bios") >= 0);
    assert_int_equal(peek(0xffffe000, 4), 0xc3c3c3c3);
    assert_int_equal(peek(0xffffe000 + 4999, 2), 0xffc3);
    assert_false(poke(0xffffe000, 0, 4));
    assert_int_equal(peek(0xffffe000, 4), 0xc3c3c3c3);
    assert_int_equal(mem_find(&m, 0xffffe000).left, 8192);
    assert_true(mem_read(&m, 0xffffe000, data, sizeof data));
}

static void a_later_region_covers_an_earlier_one(void **state)
{
    (void)state;
    struct chip chip = {0};
    poke(0xb8000, 0x0720, 2);
    assert_true(mem_add_mmio(&m, 0xa0000, 0x20000, &chip_ops, &chip, "vga") >= 0);
    assert_int_equal(mem_find(&m, 0x9ffff).left, 1);
    assert_int_equal(mem_find(&m, 0xa0000).kind, MEM_MMIO);
    assert_int_equal(mem_find(&m, 0xbffff).kind, MEM_MMIO);
    assert_int_equal(mem_find(&m, 0xc0000).kind, MEM_RAM);
    assert_int_equal(peek(0xb8000, 2), 0xffff);
    assert_false(poke(0xb8000, 0, 2));
    assert_int_equal(chip.reads + chip.writes, 0);
    assert_int_equal(m.ram[0xb8000], 0x20);
}

static void a_region_can_move_and_be_unmapped(void **state)
{
    (void)state;
    struct chip chip = {0};
    int bar = mem_add_mmio(&m, UINT64_MAX, 0x4000, &chip_ops, &chip, "bar");
    assert_true(bar >= 0);
    m.changed = on_changed;
    changes = 0;
    mem_move(&m, bar, 0xe0000000);
    assert_int_equal(mem_find(&m, 0xe0003fff).kind, MEM_MMIO);
    assert_int_equal(mem_find(&m, 0xe0004000).kind, MEM_NONE);
    mem_move(&m, bar, 0xe0000000);
    assert_int_equal(changes, 1);
    mem_move(&m, bar, 0x200000000);
    assert_int_equal(mem_find(&m, 0xe0000000).kind, MEM_NONE);
    assert_int_equal(mem_mmio_read(&m, 0x200001008, 4), 0x55667788 + 0x1008);
    mem_move(&m, bar, 0x100000); // over RAM, as a guest may
    assert_int_equal(mem_find(&m, 0x100000).kind, MEM_MMIO);
    assert_int_equal(mem_find(&m, 0x104000).kind, MEM_RAM);
    mem_move(&m, bar, UINT64_MAX);
    assert_int_equal(mem_find(&m, 0x100000).kind, MEM_RAM);
    assert_int_equal(changes, 4);
}

static void bases_that_make_no_sense_map_nothing(void **state)
{
    (void)state;
    struct chip chip = {0};
    int bar = mem_add_mmio(&m, 0xe0000000, 0x4000, &chip_ops, &chip, "bar");
    mem_move(&m, bar, 0xe0000010);
    assert_int_equal(mem_find(&m, 0xe0000010).kind, MEM_NONE);
    mem_move(&m, bar, -0x1000ull);
    assert_int_equal(mem_find(&m, -0x1000ull).kind, MEM_NONE);
    mem_move(&m, bar, -0x5000ull);
    assert_int_equal(mem_find(&m, -0x5000ull).kind, MEM_MMIO);
    mem_move(&m, 99, 0);
    mem_move(&m, -1, 0);
    assert_int_equal(mem_add_mmio(&m, 0x1234, 0x1000, &chip_ops, &chip, "x"), -EINVAL);
    assert_int_equal(mem_add_mmio(&m, 0x1000, 0x10, &chip_ops, &chip, "x"), -EINVAL);
    assert_int_equal(mem_add_mmio(&m, 0x1000, 0, &chip_ops, &chip, "x"), -EINVAL);
}

static void regions_are_limited_in_number(void **state)
{
    (void)state;
    struct chip chip = {0};
    for (unsigned i = 1; i < MEM_MAX_REGIONS; i++) // every second page: as many pieces as can be
        assert_int_equal(mem_add_mmio(&m, i * 0x2000, 0x1000, &chip_ops, &chip, "x"), i);
    assert_int_equal(mem_add_mmio(&m, 0xe0000000, 0x1000, &chip_ops, &chip, "x"), -ENOSPC);
    for (uint64_t gpa = 0xc0000; gpa < 0x100000; gpa += 0x8000)
        mem_set_pam(&m, gpa, 0x4000, false, false);
    for (unsigned i = 1; i < MEM_MAX_REGIONS; i++) {
        assert_int_equal(mem_find(&m, i * 0x2000).kind, MEM_MMIO);
        assert_int_equal(mem_find(&m, i * 0x2000 + 0x1000).kind, MEM_RAM);
    }
    for (uint64_t gpa = 0xc0000; gpa < 0x100000; gpa += 0x4000)
        assert_int_equal(mem_find(&m, gpa).kind, gpa & 0x4000 ? MEM_RAM : MEM_NONE);
}

static void mmio_accesses_reach_the_chip_naturally_aligned(void **state)
{
    (void)state;
    struct chip chip = {0};
    mem_add_mmio(&m, 0xe0000000, 0x1000, &chip_ops, &chip, "chip");
    assert_int_equal(mem_mmio_read(&m, 0xe0000010, 8), 0x1122334455667798);
    assert_int_equal(chip.size, 8);
    assert_int_equal(mem_mmio_read(&m, 0xe0000014, 1), 0x9c);
    assert_int_equal(chip.size, 1);
    mem_mmio_write(&m, 0xe0000ffe, 2, 0xabcdef);
    assert_int_equal(chip.value, 0xcdef);
    assert_int_equal(chip.offset, 0xffe);
    chip.writes = 0;
    mem_mmio_write(&m, 0xe0000ffe, 4, 0x11223344); // half of it hits nothing
    assert_int_equal(chip.writes, 1);
    assert_int_equal(chip.size, 2);
    assert_int_equal(chip.value, 0x3344);
    assert_int_equal(mem_mmio_read(&m, 0xe0001000, 4), 0xffffffff);
    chip.reads = 0;
    assert_int_equal(mem_mmio_read(&m, 0xe0000001, 3), 0x778a89);
    assert_int_equal(chip.reads, 2);
    assert_int_equal(mem_mmio_read(&m, 0xe0000000, 0), ~0ull);
    assert_int_equal(mem_mmio_read(&m, 0xe0000000, 9), ~0ull);
    mem_mmio_write(&m, 0x5000, 4, 0x01020304); // RAM by now
    assert_int_equal(mem_mmio_read(&m, 0x5000, 4), 0x01020304);
}

static void a_partly_covered_chip_sees_its_own_offsets(void **state)
{
    (void)state;
    struct chip chip = {0}, other = {0};
    mem_add_mmio(&m, 0xe0000000, 0x3000, &chip_ops, &chip, "below");
    mem_add_mmio(&m, 0xe0001000, 0x1000, &chip_ops, &other, "above");
    assert_int_equal(mem_mmio_read(&m, 0xe0002004, 4), 0x55667788 + 0x2004);
    assert_int_equal(mem_find(&m, 0xe0002004).region->base, 0xe0000000);
    assert_int_equal(chip.reads, 1);
    assert_int_equal(other.reads, 0);
}

// ---- PAM and A20

static void pam_selects_rom_or_ram_for_reads_and_writes(void **state)
{
    (void)state;
    uint8_t rom[0x20000];
    memset(rom, 0xb1, sizeof rom);
    mem_add_rom(&m, 0xe0000, rom, sizeof rom, "bios");
    m.ram[0xf0000] = 0x11;
    m.changed = on_changed;
    changes = 0;

    mem_set_pam(&m, 0xf0000, 0x10000, false, false);
    assert_int_equal(peek(0xf0000, 1), 0xb1);
    assert_false(poke(0xf0000, 0x22, 1));
    assert_int_equal(m.ram[0xf0000], 0x11);

    mem_set_pam(&m, 0xf0000, 0x10000, false, true);
    assert_int_equal(peek(0xf0000, 1), 0xb1);
    assert_true(poke(0xf0000, 0x33, 1));
    assert_int_equal(peek(0xf0000, 1), 0xb1);
    assert_int_equal(m.ram[0xf0000], 0x33);
    assert_int_equal(mem_find(&m, 0xf0123).ram_page, 0xf0);
    assert_ptr_equal(mem_find(&m, 0xf0123).shadow, m.ram + 0xf0123);

    mem_set_pam(&m, 0xf0000, 0x10000, true, true);
    assert_int_equal(mem_find(&m, 0xf0000).kind, MEM_RAM);
    assert_int_equal(peek(0xf0000, 1), 0x33);
    assert_true(poke(0xf0000, 0x44, 1));

    mem_set_pam(&m, 0xf0000, 0x10000, true, false);
    assert_int_equal(mem_find(&m, 0xf0000).kind, MEM_ROM);
    assert_false(poke(0xf0000, 0x55, 1));
    assert_int_equal(peek(0xf0000, 1), 0x44);
    assert_int_equal(peek(0xe0000, 1), 0xb1); // the neighbour is as it was

    assert_int_equal(changes, 4);
    mem_set_pam(&m, 0xf0000, 0x10000, true, false);
    assert_int_equal(changes, 4);
}

static void pam_off_with_no_rom_is_nothing(void **state)
{
    (void)state;
    assert_int_equal(mem_find(&m, 0xc8000).kind, MEM_RAM); // before anybody said anything
    mem_set_pam(&m, 0xc8000, 0x4000, false, false);
    assert_int_equal(mem_find(&m, 0xc7fff).kind, MEM_RAM);
    assert_int_equal(mem_find(&m, 0xc8000).kind, MEM_NONE);
    assert_int_equal(mem_find(&m, 0xcbfff).left, 1);
    assert_int_equal(mem_find(&m, 0xcc000).kind, MEM_RAM);
    mem_set_pam(&m, 0xc8000, 0x4000, false, true);
    assert_int_equal(peek(0xc8000, 1), 0xff);
    assert_true(poke(0xc8000, 0x66, 1));
    assert_int_equal(m.ram[0xc8000], 0x66);
    assert_int_equal(peek(0xc8000, 1), 0xff);
}

static void pam_outside_its_range_is_ignored(void **state)
{
    (void)state;
    mem_set_pam(&m, 0xbc000, 0x4000, false, false);
    mem_set_pam(&m, 0xfc000, 0x8000, false, false);
    mem_set_pam(&m, 0xc1000, 0x4000, false, false);
    mem_set_pam(&m, 0x100000, 0x4000, false, false);
    for (uint64_t gpa = 0xbc000; gpa < 0x108000; gpa += 0x1000)
        assert_int_equal(mem_find(&m, gpa).kind, MEM_RAM);
}

static unsigned written, traced;
static uint64_t last_gpa;
static unsigned last_len;

static void on_written(void *opaque, uint64_t gpa, unsigned len)
{
    (void)opaque;
    written++;
    last_gpa = gpa;
    last_len = len;
}

static void on_traced(void *opaque, uint64_t gpa)
{
    (void)opaque;
    traced++;
    last_gpa = gpa;
}

static void add_client(uint8_t bit)
{
    written = traced = 0;
    struct mem_trace_client client = {.written = on_written, .traced = on_traced, .bit = bit};
    assert_int_equal(mem_trace_register(&m, client), 0);
}

static void pam_tells_code_clients_that_the_bytes_are_others_now(void **state)
{
    (void)state;
    add_client(TRACE_CODE);
    mem_set_pam(&m, 0xe8000, 0x8000, true, false);
    assert_int_equal(written, 8);
    assert_int_equal(last_gpa, 0xef000);
    assert_int_equal(last_len, 4096);
}

static void a20_only_changes_the_mask(void **state)
{
    (void)state;
    m.changed = on_changed;
    changes = 0;
    assert_int_equal(m.a20_mask, ~0ull);
    mem_set_a20(&m, false);
    assert_int_equal(m.a20_mask, ~(1ull << 20));
    mem_set_a20(&m, false);
    assert_int_equal(changes, 1);
    poke(0x100000, 0x99, 1); // devices don't go through the gate
    assert_int_equal(m.ram[0x100000], 0x99);
    mem_set_a20(&m, true);
    assert_int_equal(m.a20_mask, ~0ull);
    assert_int_equal(changes, 2);
}

// ---- tracing

static void a_trace_bit_tells_its_client_once(void **state)
{
    (void)state;
    add_client(TRACE_CODE);
    mem_trace_set(&m, 0x5432, TRACE_CODE);
    assert_int_equal(traced, 1);
    assert_int_equal(last_gpa, 0x5432);
    mem_trace_set(&m, 0x5000, TRACE_CODE);
    assert_int_equal(traced, 1);
    mem_trace_set(&m, 0x5000, TRACE_TABLE); // somebody else's
    assert_int_equal(traced, 1);
    assert_int_equal(mem_trace_bits(&m, 5), TRACE_CODE | TRACE_TABLE);
    mem_trace_clear(&m, 0x5fff, TRACE_CODE);
    assert_int_equal(traced, 2);
    assert_int_equal(mem_trace_bits(&m, 5), TRACE_TABLE);
    mem_trace_set(&m, 0xd0000000, TRACE_CODE); // no RAM
    assert_int_equal(traced, 2);
}

static void a_device_write_to_a_traced_page_tells_the_client_what_was_written(void **state)
{
    (void)state;
    uint8_t data[0x3000] = {0};
    add_client(TRACE_CODE);
    mem_trace_set(&m, 0x6000, TRACE_CODE);
    mem_write(&m, 0x5800, data, 0x800);
    assert_int_equal(written, 0);
    mem_write(&m, 0x5ff0, data, 0x18);
    assert_int_equal(written, 1);
    assert_int_equal(last_gpa, 0x6000);
    assert_int_equal(last_len, 8);
    mem_write(&m, 0x5800, data, 0x3000);
    assert_int_equal(written, 2);
    assert_int_equal(last_gpa, 0x6000);
    assert_int_equal(last_len, 0x1000);
    mem_trace_written(&m, 0x7000, 4);
    assert_int_equal(written, 2);
}

static void clients_are_limited_in_number(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 8; i++)
        add_client(TRACE_TABLE);
    assert_int_equal(mem_trace_register(&m, (struct mem_trace_client){.bit = TRACE_CODE}), -ENOSPC);
}

static void the_dirty_log_holds_what_was_written_since_the_last_collect(void **state)
{
    (void)state;
    uint64_t bitmap[64] = {0};
    poke(0x1000, 1, 1);
    assert_int_equal(mem_dirty_collect(&m, bitmap), 0); // not started
    mem_dirty_start(&m);
    assert_int_equal(mem_dirty_collect(&m, bitmap), 0);
    poke(0x2ffc, 1, 8); // two pages
    poke(0xfff000, 1, 1);
    peek(0x9000, 8);
    assert_int_equal(mem_dirty_collect(&m, bitmap), 3);
    assert_int_equal(bitmap[0], 1 << 2 | 1 << 3);
    assert_int_equal(bitmap[63], 1ull << 63);
    assert_int_equal(mem_dirty_collect(&m, bitmap), 0);
    assert_int_equal(bitmap[0], 1 << 2 | 1 << 3); // ORed
    poke(0x2000, 1, 1);
    mem_dirty_stop(&m);
    assert_int_equal(mem_trace_bits(&m, 100), 0);
    assert_int_equal(mem_dirty_collect(&m, bitmap), 0);
}

static void other_traces_survive_the_dirty_log(void **state)
{
    (void)state;
    uint64_t bitmap[64] = {0};
    add_client(TRACE_CODE);
    mem_trace_set(&m, 0x2000, TRACE_CODE);
    mem_dirty_start(&m);
    poke(0x2000, 1, 1);
    assert_int_equal(written, 1);
    assert_int_equal(mem_trace_bits(&m, 2), TRACE_CODE);
    assert_int_equal(mem_dirty_collect(&m, bitmap), 1);
    mem_dirty_stop(&m);
    assert_int_equal(mem_trace_bits(&m, 2), TRACE_CODE);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(sizes_that_are_no_memory_are_refused),
        T(ram_starts_as_zero_and_ends_in_nothing),
        T(the_memfd_cannot_be_resized),
        T(accesses_across_the_end_of_ram_do_the_part_that_is_there),
        T(accesses_do_not_wrap_around_the_end_of_the_address_space),
        T(ram_above_3_gib_continues_at_4_gib),
        T(a_first_touch_faults_in_two_mib),
        T(rom_is_read_only_and_padded_with_ones),
        T(a_later_region_covers_an_earlier_one),
        T(a_region_can_move_and_be_unmapped),
        T(bases_that_make_no_sense_map_nothing),
        T(regions_are_limited_in_number),
        T(mmio_accesses_reach_the_chip_naturally_aligned),
        T(a_partly_covered_chip_sees_its_own_offsets),
        T(pam_selects_rom_or_ram_for_reads_and_writes),
        T(pam_off_with_no_rom_is_nothing),
        T(pam_outside_its_range_is_ignored),
        T(pam_tells_code_clients_that_the_bytes_are_others_now),
        T(a20_only_changes_the_mask),
        T(a_trace_bit_tells_its_client_once),
        T(a_device_write_to_a_traced_page_tells_the_client_what_was_written),
        T(clients_are_limited_in_number),
        T(the_dirty_log_holds_what_was_written_since_the_last_collect),
        T(other_traces_survive_the_dirty_log),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
