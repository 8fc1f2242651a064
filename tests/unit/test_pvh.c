// PVH: the entry found in the Xen note, hvm_start_info as a kernel reads it, every refusal.
#include "tests/unit/loader_fixture.h"

#define INFO(b, offset, size) guest(b, (b)->v->s.gpr[RBX] + (offset), size)

static uint8_t file[0x3000];

// ELF64: 1000h.. at 16 MiB; notes at 2000h: another one first, then Xen's with an 8-byte entry.
static void make_elf64(void)
{
    memset(file, 0, sizeof file);
    memcpy(file, "\177ELF\2\1\1", 7);
    store(file + 16, 2, 2);
    store(file + 18, 62, 2);
    store(file + 24, 0xffffffff81000000, 8);
    store(file + 32, 64, 8);
    store(file + 54, 56, 2);
    store(file + 56, 2, 2);
    uint8_t *p = file + 64;
    store(p, 1, 4);
    store(p + 8, 0x1000, 8);
    store(p + 16, 0xffffffff81000000, 8);
    store(p + 24, 0x1000000, 8);
    store(p + 32, 0x800, 8);
    store(p + 40, 0x2000, 8);
    p += 56;
    store(p, 4, 4);
    store(p + 8, 0x2000, 8);
    store(p + 32, 64, 8);
    store(p + 40, 64, 8);
    store(p + 48, 4, 8);
    p = file + 0x2000;
    store(p, 6, 4); // "Linux", 3 bytes: both padded to 4
    store(p + 4, 3, 4);
    store(p + 8, 18, 4);
    memcpy(p + 12, "Linux", 6);
    p += 12 + 8 + 4;
    store(p, 4, 4);
    store(p + 4, 8, 4);
    store(p + 8, 18, 4);
    memcpy(p + 12, "Xen", 4);
    store(p + 16, 0x1000230, 8);
    file[0x1230] = 0xfc;
}

static void entry_is_found_behind_other_notes(void **state)
{
    struct boot *b = boot_create(64);
    (void)state;

    make_elf64();
    assert_int_equal(boot_prepare(b, file, sizeof file), 0);
    assert_int_equal(b->loader.protocol, BOOT_PVH);
    boot_load(b);
    assert_flat32(b->v, 0x1000230);
    assert_int_equal(b->v->s.cr4, 0);
    assert_int_equal(b->v->s.tr.limit, 0x67);
    assert_int_equal(b->v->s.tr.attr & 0x1f, 0xb);
    assert_int_equal(guest(b, 0x1000230, 1), 0xfc);
    boot_destroy(b);
}

static void start_info_has_map_rsdp_and_one_module(void **state)
{
    struct boot *b = boot_create(64);
    (void)state;

    make_elf64();
    boot_initrd(b, "one", "abcde", 5);
    boot_initrd(b, "two", "fgh", 3);
    assert_int_equal(boot_prepare(b, file, sizeof file), 0);
    boot_load(b);
    assert_int_equal(INFO(b, 0, 4), 0x336ec578);
    assert_int_equal(INFO(b, 4, 4), 1);
    assert_int_equal(INFO(b, 8, 4), 0);
    assert_int_equal(INFO(b, 12, 4), 1);
    uint64_t module = INFO(b, 16, 8);
    assert_int_equal(guest(b, module, 8), 0x3fef000);
    assert_int_equal(guest(b, module + 8, 8), 12);
    uint8_t data[12];
    assert_true(mem_read(&b->mem, 0x3fef000, data, 12));
    assert_memory_equal(data, "abcde\0\0\0fgh\0", 12);
    guest_string(b, INFO(b, 24, 8), "console=ttyS0");
    assert_int_equal(INFO(b, 32, 8), BOOT_RSDP);
    assert_int_equal(guest(b, BOOT_RSDP, 8), 0x2052545020445352); // "RSD PTR "
    assert_int_equal(INFO(b, 48, 4), 5);
    uint64_t map = INFO(b, 40, 8);
    assert_int_equal(guest(b, map + 3 * 24, 8), 0x100000);
    assert_int_equal(guest(b, map + 3 * 24 + 8, 8), 0x3ef0000);
    assert_int_equal(guest(b, map + 3 * 24 + 16, 4), 1);
    assert_int_equal(guest(b, map + 4 * 24 + 16, 4), 3);
    boot_destroy(b);
}

static void without_initrd_there_is_no_module(void **state)
{
    struct boot *b = boot_create(64);
    (void)state;

    make_elf64();
    store(file + 0x2000 + 24 + 4, 4, 4); // a 4-byte entry is as good
    assert_int_equal(boot_prepare(b, file, sizeof file), 0);
    boot_load(b);
    assert_int_equal(b->v->s.rip, 0x1000230);
    assert_int_equal(INFO(b, 12, 4), 0);
    assert_int_equal(INFO(b, 16, 8), 0);
    boot_destroy(b);
}

static void expect_refusal(const char *text)
{
    struct boot *b = boot_create(64);

    assert_int_equal(boot_prepare(b, file, sizeof file), -22);
    assert_mentions(b, text);
    boot_destroy(b);
}

static void elf_without_entry_is_refused_with_advice(void **state)
{
    (void)state;
    make_elf64();
    store(file + 0x2000 + 24 + 8, 17, 4);
    expect_refusal("neither multiboot header nor PVH entry");
}

static void notes_that_leave_their_segment_are_not_read(void **state)
{
    (void)state;
    make_elf64();
    store(file + 0x2000, 0xffffffff, 4);
    expect_refusal("neither");
    make_elf64();
    store(file + 0x2000 + 4, 0xfffffffc, 4);
    expect_refusal("neither");
    make_elf64();
    store(file + 64 + 56 + 8, UINT64_MAX - 8, 8);
    expect_refusal("neither");
}

static void entry_outside_the_segments_is_refused(void **state)
{
    (void)state;
    make_elf64();
    store(file + 0x2000 + 24 + 16, 0x2000000, 8);
    expect_refusal("in none of its segments");
}

static void segment_that_wraps_is_refused(void **state)
{
    (void)state;
    make_elf64();
    store(file + 64 + 24, UINT64_MAX - 0xfff, 8);
    expect_refusal("give more --memory");
    make_elf64();
    store(file + 64 + 40, UINT64_MAX, 8);
    expect_refusal("give more --memory");
}

static void kernel64_needs_a_64_bit_cpu(void **state)
{
    struct boot *b = boot_create(64);
    (void)state;

    make_elf64();
    b->config.long_mode = false;
    assert_int_equal(boot_prepare(b, file, sizeof file), -22);
    assert_mentions(b, "64-bit kernel");
    boot_destroy(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(entry_is_found_behind_other_notes),
        cmocka_unit_test(start_info_has_map_rsdp_and_one_module),
        cmocka_unit_test(without_initrd_there_is_no_module),
        cmocka_unit_test(elf_without_entry_is_refused_with_advice),
        cmocka_unit_test(notes_that_leave_their_segment_are_not_read),
        cmocka_unit_test(entry_outside_the_segments_is_refused),
        cmocka_unit_test(segment_that_wraps_is_refused),
        cmocka_unit_test(kernel64_needs_a_64_bit_cpu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
