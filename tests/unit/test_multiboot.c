// Multiboot 1: ELF kernels and the a.out kludge, the information structure as a kernel reads it, every
// refusal.
#include "tests/unit/loader_fixture.h"

#define INFO(b, offset) guest(b, (b)->v->s.gpr[RBX] + (offset), 4)

static uint8_t file[0x3000];

static void put_header(uint8_t *p, uint32_t flags)
{
    store(p, 0x1badb002, 4);
    store(p + 4, flags, 4);
    store(p + 8, -(0x1badb002 + flags), 4);
}

// ELF32: one segment of file bytes 1000h.. at 2 MiB, linked at C0200000h, with BSS.
static void make_elf32(void)
{
    memset(file, 0, sizeof file);
    memcpy(file, "\177ELF\1\1\1", 7);
    store(file + 16, 2, 2);
    store(file + 18, 3, 2);
    store(file + 24, 0xc0200010, 4);
    store(file + 28, 52, 4);
    store(file + 42, 32, 2);
    store(file + 44, 1, 2);
    uint8_t *p = file + 52;
    store(p, 1, 4);
    store(p + 4, 0x1000, 4);
    store(p + 8, 0xc0200000, 4);
    store(p + 12, 0x200000, 4);
    store(p + 16, 0x800, 4);
    store(p + 20, 0x5000, 4);
    put_header(file + 0x1000, 0x00000003);
    for (unsigned n = 16; n < 0x800; n++)
        file[0x1000 + n] = (uint8_t)(n * 3);
}

static void elf_is_loaded_at_physical_addresses_with_bss_cleared(void **state)
{
    struct boot *b = boot_create(16);
    (void)state;

    make_elf32();
    assert_int_equal(boot_prepare(b, file, sizeof file), 0);
    assert_int_equal(b->loader.protocol, BOOT_MULTIBOOT);
    assert_true(mem_write(&b->mem, 0x204ff8, "\xff\xff\xff\xff\xff\xff\xff\xff", 8));
    boot_load(b);
    assert_int_equal(guest(b, 0x200000, 4), 0x1badb002);
    assert_int_equal(guest(b, 0x2007ff, 1), (uint8_t)(0x7ff * 3));
    assert_int_equal(guest(b, 0x200800, 8), 0);
    assert_int_equal(guest(b, 0x204ff8, 8), 0);
    assert_flat32(b->v, 0x200010); // the entry is virtual in the file
    assert_int_equal(b->v->s.gpr[RAX], 0x2badb002);
    boot_destroy(b);
}

static void information_structure_has_map_command_line_and_name(void **state)
{
    struct boot *b = boot_create(16);
    (void)state;

    make_elf32();
    b->config.cmdline = "a=1 b";
    assert_int_equal(boot_prepare(b, file, sizeof file), 0);
    boot_load(b);
    assert_true(b->v->s.gpr[RBX] >= 0x205000); // behind the BSS
    assert_int_equal(INFO(b, 0), 0x1 | 0x4 | 0x40 | 0x200);
    assert_int_equal(INFO(b, 4), 639);
    assert_int_equal(INFO(b, 8), (16 << 10) - 1024 - 64);
    guest_string(b, INFO(b, 16), "vmlinuz a=1 b");
    guest_string(b, INFO(b, 64), "gnomon");
    uint64_t map = INFO(b, 48);
    assert_int_equal(INFO(b, 44), 5 * 24);
    assert_int_equal(guest(b, map, 4), 20);
    assert_int_equal(guest(b, map + 4, 8), 0);
    assert_int_equal(guest(b, map + 12, 8), 0x9fc00);
    assert_int_equal(guest(b, map + 20, 4), 1);
    assert_int_equal(guest(b, map + 4 * 24 + 20, 4), 3);
    boot_destroy(b);
}

static void modules_are_page_aligned_and_named(void **state)
{
    struct boot *b = boot_create(16);
    (void)state;

    make_elf32();
    boot_initrd(b, "one.img", "first", 5);
    boot_initrd(b, "two.img", "second!", 7);
    assert_int_equal(boot_prepare(b, file, sizeof file), 0);
    boot_load(b);
    assert_true(INFO(b, 0) & 8);
    assert_int_equal(INFO(b, 20), 2);
    uint64_t list = INFO(b, 24);
    assert_int_equal(list & 3, 0);
    assert_int_equal(guest(b, list, 4), 0x205000);
    assert_int_equal(guest(b, list + 4, 4), 0x205005);
    assert_int_equal(guest(b, list + 16, 4), 0x206000);
    assert_int_equal(guest(b, list + 20, 4), 0x206007);
    guest_string(b, guest(b, list + 8, 4), "one.img");
    guest_string(b, guest(b, list + 24, 4), "two.img");
    uint8_t data[7];
    assert_true(mem_read(&b->mem, 0x206000, data, 7));
    assert_memory_equal(data, "second!", 7);
    boot_destroy(b);
}

static void elf64_is_accepted(void **state)
{
    struct boot *b = boot_create(16);
    (void)state;

    memset(file, 0, sizeof file);
    memcpy(file, "\177ELF\2\1\1", 7);
    store(file + 16, 2, 2);
    store(file + 18, 62, 2);
    store(file + 24, 0x100020, 8);
    store(file + 32, 64, 8);
    store(file + 54, 56, 2);
    store(file + 56, 1, 2);
    uint8_t *p = file + 64;
    store(p, 1, 4);
    store(p + 8, 0x1000, 8);
    store(p + 16, 0x100000, 8);
    store(p + 24, 0x100000, 8);
    store(p + 32, 0x100, 8);
    store(p + 40, 0x100, 8);
    put_header(file + 0x1000, 0);
    assert_int_equal(boot_prepare(b, file, sizeof file), 0);
    boot_load(b);
    assert_flat32(b->v, 0x100020);
    boot_destroy(b);
}

// Header at file offset 40h; loaded from 20h on, at 1 MiB.
static void make_kludge(void)
{
    memset(file, 0, sizeof file);
    put_header(file + 0x40, 0x00010000);
    store(file + 0x40 + 12, 0x100020, 4);
    store(file + 0x40 + 16, 0x100000, 4);
    store(file + 0x40 + 20, 0x100200, 4);
    store(file + 0x40 + 24, 0x100800, 4);
    store(file + 0x40 + 28, 0x100040, 4);
    file[0x21f] = 0x77;
    file[0x220] = 0x88;
}

static void addresses_in_the_header_replace_elf(void **state)
{
    struct boot *b = boot_create(16);
    (void)state;

    make_kludge();
    assert_int_equal(boot_prepare(b, file, sizeof file), 0);
    boot_load(b);
    assert_int_equal(guest(b, 0x100020, 4), 0x1badb002);
    assert_int_equal(guest(b, 0x1001ff, 1), 0x77);
    assert_int_equal(guest(b, 0x100200, 1), 0);
    assert_int_equal(b->loader.kernel_end, 0x100800);
    assert_flat32(b->v, 0x100040);

    loader_free(&b->loader);
    store(file + 0x40 + 20, 0, 4); // load_end 0: to the end of the file
    store(file + 0x40 + 24, 0, 4); // no BSS
    assert_int_equal(boot_prepare(b, file, sizeof file), 0);
    assert_int_equal(b->loader.kernel_end, 0x100000 + sizeof file - 0x20);
    boot_destroy(b);
}

static void expect_refusal(const char *text, uint64_t size)
{
    struct boot *b = boot_create(16);

    assert_int_equal(boot_prepare(b, file, size), -22);
    assert_mentions(b, text);
    assert_null(strchr(b->error, '\n'));
    boot_destroy(b);
}

static void unknown_mandatory_features_are_refused(void **state)
{
    (void)state;
    make_elf32();
    put_header(file + 0x1000, 0x00000008);
    expect_refusal("0x8", sizeof file);
}

static void contradicting_addresses_are_refused(void **state)
{
    (void)state;
    make_kludge();
    store(file + 0x40 + 16, 0x100030, 4); // load address behind the header's
    expect_refusal("contradict", sizeof file);
    make_kludge();
    store(file + 0x40 + 12, 0x100100, 4); // more in front of the header than the file has
    expect_refusal("contradict", sizeof file);
    make_kludge();
    store(file + 0x40 + 20, 0x0fffff, 4);
    expect_refusal("contradict", sizeof file);
    make_kludge();
    store(file + 0x40 + 24, 0x100100, 4);
    expect_refusal("BSS", sizeof file);
    make_kludge();
    store(file + 0x40 + 20, 0x900000, 4);
    expect_refusal("BSS", sizeof file);
    store(file + 0x40 + 24, 0, 4);
    expect_refusal("truncated", sizeof file);
}

static void segments_outside_ram_or_file_are_refused(void **state)
{
    (void)state;
    make_elf32();
    store(file + 52 + 12, 0xfff000, 4);
    expect_refusal("give more --memory", sizeof file);
    make_elf32();
    store(file + 52 + 12, 0x1000, 4);
    expect_refusal("not free", sizeof file);
    make_elf32();
    store(file + 52 + 4, 0xfffffff0, 4);
    expect_refusal("truncated", sizeof file);
    make_elf32();
    store(file + 52 + 16, 0x6000, 4);
    expect_refusal("larger in the file", sizeof file);
    make_elf32();
    store(file + 28, 0xffffffff, 4);
    expect_refusal("program headers", sizeof file);
    make_elf32();
    store(file + 44, 0xffff, 2);
    expect_refusal("program headers", sizeof file);
    make_elf32();
    store(file + 18, 40, 2);
    expect_refusal("machine 40", sizeof file);
}

static void module_that_does_not_fit_is_refused(void **state)
{
    struct boot *b = boot_create(16);
    (void)state;

    make_elf32();
    b->initrds[0] = image_memory("big.img", NULL, 15 << 20);
    b->config.initrd_count = 1;
    assert_int_equal(boot_prepare(b, file, sizeof file), -22);
    assert_mentions(b, "big.img");
    b->initrds[0].size = UINT64_MAX;
    assert_int_equal(boot_prepare(b, file, sizeof file), -22);
    boot_destroy(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(elf_is_loaded_at_physical_addresses_with_bss_cleared),
        cmocka_unit_test(information_structure_has_map_command_line_and_name),
        cmocka_unit_test(modules_are_page_aligned_and_named),
        cmocka_unit_test(elf64_is_accepted),
        cmocka_unit_test(addresses_in_the_header_replace_elf),
        cmocka_unit_test(unknown_mandatory_features_are_refused),
        cmocka_unit_test(contradicting_addresses_are_refused),
        cmocka_unit_test(segments_outside_ram_or_file_are_refused),
        cmocka_unit_test(module_that_does_not_fit_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
