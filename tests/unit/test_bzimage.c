// Linux bzImage loading: what the kernel finds in its zero page and registers, and every refusal.
#include "tests/unit/loader_fixture.h"

#define SETUP_SECTS 2
#define SETUP_SIZE  ((SETUP_SECTS + 1) * 512)
#define PAYLOAD     0x3000
#define FILE_SIZE   (SETUP_SIZE + PAYLOAD)

static uint8_t file[FILE_SIZE];

// A kernel of protocol 2.15, relocatable, 64-bit, wanting 16 MiB .. 16 MiB + 4 MiB.
static void make_kernel(void)
{
    memset(file, 0, sizeof file);
    file[0x1f1] = SETUP_SECTS;
    store(file + 0x1f4, PAYLOAD / 16, 4);
    store(file + 0x1fe, 0xaa55, 2);
    file[0x200] = 0xeb;
    file[0x201] = 0x6a; // the header ends at 26Ch
    memcpy(file + 0x202, "HdrS", 4);
    store(file + 0x206, 0x020f, 2);
    file[0x211] = 0x01;
    store(file + 0x214, 0x100000, 4);
    store(file + 0x22c, 0x7fffffff, 4);
    store(file + 0x230, 0x200000, 4);
    file[0x234] = 1;
    store(file + 0x236, 0x0001, 2);
    store(file + 0x238, 2047, 4);
    store(file + 0x258, 0x1000000, 8);
    store(file + 0x260, 0x400000, 4);
    for (unsigned n = 0; n < PAYLOAD; n++)
        file[SETUP_SIZE + n] = (uint8_t)(n * 7 + 1);
}

static void relocatable_kernel_is_loaded_at_pref_address(void **state)
{
    struct boot *b = boot_create(64);
    uint8_t loaded[PAYLOAD];
    (void)state;

    make_kernel();
    assert_int_equal(boot_prepare(b, file, sizeof file), 0);
    assert_int_equal(b->loader.protocol, BOOT_BZIMAGE64);
    boot_load(b);
    assert_true(mem_read(&b->mem, 0x1000000, loaded, PAYLOAD));
    assert_memory_equal(loaded, file + SETUP_SIZE, PAYLOAD);
    assert_int_equal(b->v->s.rip, 0x1000200);
    boot_destroy(b);
}

static void entry64_has_long_mode_and_identity_map(void **state)
{
    struct boot *b = boot_create(64);
    const struct cpu_state *s = &b->v->s;
    (void)state;

    make_kernel();
    assert_int_equal(boot_prepare(b, file, sizeof file), 0);
    boot_load(b);
    assert_int_equal(s->cr0 & (CR0_PE | CR0_PG), CR0_PE | CR0_PG);
    assert_int_equal(s->cr4, CR4_PAE);
    assert_int_equal(s->efer, EFER_LME | EFER_LMA);
    assert_int_equal(s->seg[SEG_CS].sel, 0x10);
    assert_int_equal(s->seg[SEG_DS].sel, 0x18);
    assert_int_equal(s->seg[SEG_CS].attr & (SEG_L | SEG_DB), SEG_L);
    assert_int_equal(s->iflag, 0);
    assert_int_equal(s->gpr[RSI], BOOT_PARAMS);
    // Address 3 GiB + 5 MiB through the tables.
    uint64_t la = 0xc0500000, pml4e = guest(b, s->cr3, 8);
    uint64_t pdpte = guest(b, (pml4e & ~0xfffull) + (la >> 30) * 8, 8);
    uint64_t pde = guest(b, (pdpte & ~0xfffull) + (la >> 21 & 511) * 8, 8);
    assert_int_equal(pml4e & 3, 3);
    assert_int_equal(pdpte & 3, 3);
    assert_int_equal(pde, 0xc0400000 | 0x83);
    // Descriptors that the selectors name.
    assert_int_equal(s->gdtr.limit, 31);
    assert_int_equal(guest(b, s->gdtr.base + 0x10, 8), 0x00af9b000000ffff);
    assert_int_equal(guest(b, s->gdtr.base + 0x18, 8), 0x00cf93000000ffff);
    boot_destroy(b);
}

static void zero_page_holds_header_map_and_pointers(void **state)
{
    struct boot *b = boot_create(64);
    (void)state;

    make_kernel();
    assert_int_equal(boot_prepare(b, file, sizeof file), 0);
    boot_load(b);
    assert_int_equal(guest(b, BOOT_PARAMS + 0x202, 4), 0x53726448);
    assert_int_equal(guest(b, BOOT_PARAMS + 0x206, 2), 0x20f);
    assert_int_equal(guest(b, BOOT_PARAMS + 0x210, 1), 0xff);
    assert_int_equal(guest(b, BOOT_PARAMS + 0x1ef, 1), 0);
    assert_int_equal(guest(b, BOOT_PARAMS + 0x26c, 8), 0); // nothing of the code behind the header
    assert_int_equal(guest(b, BOOT_PARAMS + 0x070, 8), BOOT_RSDP);
    assert_int_equal(guest(b, BOOT_PARAMS + 0x214, 4), 0x1000000);
    assert_int_equal(guest(b, BOOT_PARAMS + 0x228, 4), BOOT_CMDLINE);
    guest_string(b, BOOT_CMDLINE, "console=ttyS0");
    assert_int_equal(guest(b, BOOT_PARAMS + 0x218, 8), 0); // no initrd

    static const uint64_t map[][3] = {
        {0, 0x9fc00, 1},          {0x9fc00, 0x400, 2},     {0xf0000, 0x10000, 2},
        {0x100000, 0x3ef0000, 1}, {0x3ff0000, 0x10000, 3},
    };
    assert_int_equal(guest(b, BOOT_PARAMS + 0x1e8, 1), 5);
    for (unsigned n = 0; n < 5; n++) {
        assert_int_equal(guest(b, BOOT_PARAMS + 0x2d0 + n * 20, 8), map[n][0]);
        assert_int_equal(guest(b, BOOT_PARAMS + 0x2d0 + n * 20 + 8, 8), map[n][1]);
        assert_int_equal(guest(b, BOOT_PARAMS + 0x2d0 + n * 20 + 16, 4), map[n][2]);
    }
    // setup_data: one item, a seed of 32 bytes.
    assert_int_equal(guest(b, BOOT_PARAMS + 0x250, 8), BOOT_SETUP_DATA);
    assert_int_equal(guest(b, BOOT_SETUP_DATA, 8), 0);
    assert_int_equal(guest(b, BOOT_SETUP_DATA + 8, 4), 9);
    assert_int_equal(guest(b, BOOT_SETUP_DATA + 12, 4), 32);
    boot_destroy(b);
}

static void e820_shows_ram_above_4_gib(void **state)
{
    struct boot *b = boot_create(4096);
    (void)state;

    make_kernel();
    assert_int_equal(boot_prepare(b, file, sizeof file), 0);
    boot_load(b);
    assert_int_equal(guest(b, BOOT_PARAMS + 0x1e8, 1), 6);
    assert_int_equal(guest(b, BOOT_PARAMS + 0x2d0 + 5 * 20, 8), 1ull << 32);
    assert_int_equal(guest(b, BOOT_PARAMS + 0x2d0 + 5 * 20 + 8, 8), 1ull << 30);
    boot_destroy(b);
}

static void kernel32_is_entered_in_protected_mode(void **state)
{
    struct boot *b = boot_create(64);
    (void)state;

    make_kernel();
    store(file + 0x236, 0, 2);
    b->config.long_mode = false;
    assert_int_equal(boot_prepare(b, file, sizeof file), 0);
    assert_int_equal(b->loader.protocol, BOOT_BZIMAGE32);
    boot_load(b);
    assert_flat32(b->v, 0x1000000);
    assert_int_equal(b->v->s.seg[SEG_CS].sel, 0x10);
    assert_int_equal(b->v->s.seg[SEG_SS].sel, 0x18);
    assert_int_equal(b->v->s.gpr[RSI], BOOT_PARAMS);
    assert_int_equal(b->v->s.gpr[RBP], 0);
    assert_int_equal(b->v->s.gpr[RDI], 0);
    assert_int_equal(b->v->s.gpr[RBX], 0);
    boot_destroy(b);
}

static void old_kernel_is_loaded_at_1_mib_without_new_fields(void **state)
{
    struct boot *b = boot_create(64);
    (void)state;

    make_kernel();
    store(file + 0x206, 0x203, 2);
    store(file + 0x22c, 0x1ffffff, 4);
    boot_initrd(b, "initrd", "abcd", 4);
    assert_int_equal(boot_prepare(b, file, sizeof file), 0);
    assert_int_equal(b->loader.protocol, BOOT_BZIMAGE32);
    assert_int_equal(b->loader.entry, 0x100000);
    assert_int_equal(b->loader.initrd_base, 0x1fff000); // ends below initrd_addr_max
    boot_load(b);
    assert_int_equal(guest(b, BOOT_PARAMS + 0x250, 8), 0);
    boot_destroy(b);
}

static void initrds_are_concatenated_at_multiples_of_4(void **state)
{
    struct boot *b = boot_create(64);
    (void)state;

    make_kernel();
    boot_initrd(b, "first", "abcde", 5);
    boot_initrd(b, "empty", "", 0);
    boot_initrd(b, "second", "fgh", 3);
    assert_int_equal(boot_prepare(b, file, sizeof file), 0);
    boot_load(b);
    uint64_t base = guest(b, BOOT_PARAMS + 0x218, 4);
    assert_int_equal(base, 0x3fef000); // as high as possible below the ACPI tables
    assert_int_equal(guest(b, BOOT_PARAMS + 0x21c, 4), 12);
    uint8_t data[12];
    assert_true(mem_read(&b->mem, base, data, 12));
    assert_memory_equal(data, "abcde\0\0\0fgh\0", 12);
    boot_destroy(b);
}

static void initrd_stays_below_3_gib_of_low_ram(void **state)
{
    struct boot *b = boot_create(4096);
    (void)state;

    make_kernel();
    store(file + 0x22c, 0xffffffff, 4);
    boot_initrd(b, "initrd", "abcd", 4);
    assert_int_equal(boot_prepare(b, file, sizeof file), 0);
    assert_true(b->loader.initrd_base + 4 <= b->mem.low_size - ACPI_AREA_SIZE);
    assert_int_equal(b->loader.initrd_base, b->mem.low_size - ACPI_AREA_SIZE - 0x1000);
    boot_destroy(b);
}

static void initrd_that_does_not_fit_is_refused(void **state)
{
    struct boot *b = boot_create(32);
    (void)state;

    make_kernel();
    b->initrds[0] = image_memory("big.img", NULL, 13 << 20); // 16 + 4 MiB are the kernel's
    b->config.initrd_count = 1;
    assert_int_equal(boot_prepare(b, file, sizeof file), -22);
    assert_mentions(b, "big.img");
    assert_mentions(b, "do not fit");
    b->initrds[0].size = UINT64_MAX;
    b->initrds[1] = image_memory("bigger.img", NULL, UINT64_MAX - 1);
    b->config.initrd_count = 2;
    assert_int_equal(boot_prepare(b, file, sizeof file), -22);
    boot_destroy(b);
}

static void expect_refusal(const char *text, uint64_t size)
{
    struct boot *b = boot_create(64);

    assert_int_equal(boot_prepare(b, file, size), -22);
    assert_mentions(b, text);
    assert_null(strchr(b->error, '\n'));
    boot_destroy(b);
}

static void protocols_too_old_and_too_new_are_refused(void **state)
{
    (void)state;
    make_kernel();
    store(file + 0x206, 0x0201, 2);
    expect_refusal("2.01 is too old", sizeof file);
    store(file + 0x206, 0x0300, 2);
    expect_refusal("3.00 is too new", sizeof file);
    make_kernel();
    file[0x211] = 0;
    expect_refusal("zImage", sizeof file);
}

static void truncated_files_are_refused(void **state)
{
    (void)state;
    make_kernel();
    expect_refusal("truncated", sizeof file - 1);
    expect_refusal("truncated", SETUP_SIZE);
    expect_refusal("truncated", 0x206); // magic, but no more
    expect_refusal("no kernel", 0x200);
    expect_refusal("empty file", 0);
}

static void damaged_header_fields_are_refused(void **state)
{
    (void)state;
    make_kernel();
    store(file + 0x230, 3, 4);
    expect_refusal("kernel_alignment", sizeof file);
    store(file + 0x230, 0, 4);
    expect_refusal("kernel_alignment", sizeof file);
    make_kernel();
    store(file + 0x258, UINT64_MAX, 8);
    expect_refusal("pref_address", sizeof file);
    make_kernel();
    store(file + 0x260, 0xffffffff, 4);
    expect_refusal("give more --memory", sizeof file);
}

static void command_line_longer_than_the_kernel_takes_is_refused(void **state)
{
    struct boot *b = boot_create(64);
    char line[2049];
    (void)state;

    make_kernel();
    memset(line, 'x', sizeof line);
    line[2048] = 0;
    b->config.cmdline = line;
    assert_int_equal(boot_prepare(b, file, sizeof file), -22);
    assert_mentions(b, "this kernel takes 2047");
    line[2047] = 0;
    assert_int_equal(boot_prepare(b, file, sizeof file), 0);
    loader_free(&b->loader);
    store(file + 0x206, 0x205, 2); // no cmdline_size yet
    line[256] = 0;
    assert_int_equal(boot_prepare(b, file, sizeof file), -22);
    assert_mentions(b, "takes 255");
    boot_destroy(b);
}

static void kernel64_needs_a_64_bit_cpu(void **state)
{
    struct boot *b = boot_create(64);
    (void)state;

    make_kernel();
    b->config.long_mode = false;
    assert_int_equal(boot_prepare(b, file, sizeof file), -22);
    assert_mentions(b, "64-bit kernel");
    boot_destroy(b);
}

static void loading_twice_gives_the_same_memory(void **state)
{
    struct boot *b = boot_create(64);
    uint8_t first[512], second[512];
    (void)state;

    make_kernel();
    assert_int_equal(boot_prepare(b, file, sizeof file), 0);
    boot_load(b);
    assert_true(mem_read(&b->mem, BOOT_PARAMS + 0x200, first, sizeof first));
    assert_true(mem_write(&b->mem, 0x1000000, "dirty", 5));
    boot_load(b);
    assert_true(mem_read(&b->mem, BOOT_PARAMS + 0x200, second, sizeof second));
    assert_memory_equal(first, second, sizeof first);
    assert_int_equal(guest(b, 0x1000000, 1), 1);
    boot_destroy(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(relocatable_kernel_is_loaded_at_pref_address),
        cmocka_unit_test(entry64_has_long_mode_and_identity_map),
        cmocka_unit_test(zero_page_holds_header_map_and_pointers),
        cmocka_unit_test(e820_shows_ram_above_4_gib),
        cmocka_unit_test(kernel32_is_entered_in_protected_mode),
        cmocka_unit_test(old_kernel_is_loaded_at_1_mib_without_new_fields),
        cmocka_unit_test(initrds_are_concatenated_at_multiples_of_4),
        cmocka_unit_test(initrd_stays_below_3_gib_of_low_ram),
        cmocka_unit_test(initrd_that_does_not_fit_is_refused),
        cmocka_unit_test(protocols_too_old_and_too_new_are_refused),
        cmocka_unit_test(truncated_files_are_refused),
        cmocka_unit_test(damaged_header_fields_are_refused),
        cmocka_unit_test(command_line_longer_than_the_kernel_takes_is_refused),
        cmocka_unit_test(kernel64_needs_a_64_bit_cpu),
        cmocka_unit_test(loading_twice_gives_the_same_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
