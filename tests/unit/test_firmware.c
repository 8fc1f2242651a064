// Firmware images: where they appear, that they are ROM, which sizes are refused.
#include "tests/unit/loader_fixture.h"

static uint8_t *make_image(size_t size)
{
    uint8_t *image = malloc(size);

    assert_non_null(image);
    for (size_t n = 0; n < size; n++)
        image[n] = (uint8_t)(n >> 8 ^ n);
    memcpy(image + size - 16, "\xea\x5b\xe0\x00\xf0", 5); // JMP F000:E05B at the reset vector
    return image;
}

static int map(struct boot *b, uint8_t *data, uint64_t size)
{
    struct image im = image_memory("bios.bin", data, size);
    return firmware_map(&im, &b->mem, b->error, sizeof b->error);
}

static void image_ends_at_4_gib_and_its_last_128_kib_at_1_mib(void **state)
{
    struct boot *b = boot_create(16);
    uint8_t *image = make_image(256 << 10);
    (void)state;

    assert_int_equal(map(b, image, 256 << 10), 0);
    assert_int_equal(guest(b, 0xfffffff0, 4), 0x00e05bea);
    assert_int_equal(guest(b, 0xffff0, 4), 0x00e05bea);
    assert_int_equal(guest(b, 0xfffc0000, 4), *(uint32_t *)image);
    assert_int_equal(guest(b, 0xe0000, 4), *(uint32_t *)(image + (128 << 10)));
    assert_int_equal(mem_find(&b->mem, 0xe0000).kind, MEM_ROM);
    assert_int_equal(mem_find(&b->mem, 0xdffff).kind, MEM_RAM);
    assert_int_equal(mem_find(&b->mem, 0xfffbffff).kind, MEM_NONE);
    free(image);
    boot_destroy(b);
}

static void image_can_not_be_written(void **state)
{
    struct boot *b = boot_create(16);
    uint8_t *image = make_image(256 << 10);
    (void)state;

    assert_int_equal(map(b, image, 256 << 10), 0);
    mem_write(&b->mem, 0xffff0, "\0\0\0\0", 4);
    mem_write(&b->mem, 0xfffffff0, "\0\0\0\0", 4);
    assert_int_equal(guest(b, 0xffff0, 4), 0x00e05bea);
    assert_int_equal(guest(b, 0xfffffff0, 4), 0x00e05bea);
    free(image);
    boot_destroy(b);
}

static void small_image_is_mapped_whole_below_1_mib(void **state)
{
    struct boot *b = boot_create(16);
    uint8_t *image = make_image(64 << 10);
    (void)state;

    assert_int_equal(map(b, image, 64 << 10), 0);
    assert_int_equal(mem_find(&b->mem, 0xf0000).kind, MEM_ROM);
    assert_int_equal(mem_find(&b->mem, 0xeffff).kind, MEM_RAM);
    assert_int_equal(guest(b, 0xf0000, 4), *(uint32_t *)image);
    free(image);
    boot_destroy(b);
}

static void writes_reach_ram_under_the_image_when_pam_says_so(void **state)
{
    struct boot *b = boot_create(16);
    uint8_t *image = make_image(128 << 10);
    (void)state;

    assert_int_equal(map(b, image, 128 << 10), 0);
    mem_set_pam(&b->mem, 0xf0000, 0x10000, false, true); // shadowing: read ROM, write RAM
    mem_write(&b->mem, 0xffff0, "\x11\x22\x33\x44", 4);
    assert_int_equal(guest(b, 0xffff0, 4), 0x00e05bea);
    mem_set_pam(&b->mem, 0xf0000, 0x10000, true, false);
    assert_int_equal(guest(b, 0xffff0, 4), 0x44332211);
    free(image);
    boot_destroy(b);
}

static void sizes_no_firmware_has_are_refused(void **state)
{
    struct boot *b = boot_create(16);
    uint8_t *image = make_image(128 << 10);
    static const uint64_t sizes[] = {0,         4096, (64 << 10) - 4096, (64 << 10) + 1, (16 << 20) + 4096,
                                     UINT64_MAX};
    (void)state;

    for (unsigned n = 0; n < sizeof sizes / sizeof sizes[0]; n++) {
        assert_int_equal(map(b, image, sizes[n]), -22);
        assert_mentions(b, "bios.bin");
        assert_mentions(b, "64 KiB to 16 MiB");
    }
    free(image);
    boot_destroy(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(image_ends_at_4_gib_and_its_last_128_kib_at_1_mib),
        cmocka_unit_test(image_can_not_be_written),
        cmocka_unit_test(small_image_is_mapped_whole_below_1_mib),
        cmocka_unit_test(writes_reach_ram_under_the_image_when_pam_says_so),
        cmocka_unit_test(sizes_no_firmware_has_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
