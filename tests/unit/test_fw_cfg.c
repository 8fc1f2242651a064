#include "device_fixture.h"

struct board {
    struct fixture f;
    struct fw_cfg *fw;
};

static int setup(void **state)
{
    struct board *b = calloc(1, sizeof *b);
    fixture_init(&b->f);
    b->fw = fw_cfg_create(b->f.bus, &b->f.mem);
    assert_non_null(b->fw);
    *state = b;
    return 0;
}

static int teardown(void **state)
{
    struct board *b = *state;
    fw_cfg_device.destroy(b->fw);
    fixture_done(&b->f);
    free(b);
    return 0;
}

static void select_key(struct board *b, uint16_t key)
{
    bus_write(b->f.bus, 0x510, 2, key);
}

static void expect_bytes(struct board *b, const void *data, size_t n)
{
    for (size_t i = 0; i < n; i++)
        assert_int_equal(bus_read(b->f.bus, 0x511, 1), ((const uint8_t *)data)[i]);
}

static uint32_t be32(struct board *b)
{
    uint32_t v = 0;
    for (int i = 0; i < 4; i++)
        v = v << 8 | bus_read(b->f.bus, 0x511, 1);
    return v;
}

#define DESCRIPTOR 0x1000u
// Runs a DMA operation as firmware does and returns the control word afterwards.
static uint32_t dma(struct board *b, uint32_t control, uint32_t length, uint64_t address)
{
    uint8_t raw[16];
    for (int i = 0; i < 4; i++) {
        raw[i] = control >> (24 - 8 * i);
        raw[4 + i] = length >> (24 - 8 * i);
    }
    for (int i = 0; i < 8; i++)
        raw[8 + i] = address >> (56 - 8 * i);
    mem_write(&b->f.mem, DESCRIPTOR, raw, sizeof raw);
    bus_write(b->f.bus, 0x514, 4, 0);
    bus_write(b->f.bus, 0x518, 4, __builtin_bswap32(DESCRIPTOR));
    mem_read(&b->f.mem, DESCRIPTOR, raw, 4);
    return (uint32_t)raw[0] << 24 | raw[1] << 16 | raw[2] << 8 | raw[3];
}

static void signature_and_id_read_as_qemus(void **state)
{
    struct board *b = *state;
    select_key(b, 0);
    expect_bytes(b, "QEMU\0\0", 6);
    select_key(b, 1);
    expect_bytes(b, "\3\0\0\0\0", 5);
    assert_int_equal(bus_read(b->f.bus, 0x514, 4), 0x554d4551);
    assert_int_equal(bus_read(b->f.bus, 0x518, 4), 0x47464320);
    assert_int_equal(bus_read(b->f.bus, 0x515, 1), 'E');
}

static void missing_item_reads_zero_and_writes_are_dropped(void **state)
{
    struct board *b = *state;
    select_key(b, 0x1234);
    expect_bytes(b, "\0\0", 2);
    select_key(b, 0);
    bus_write(b->f.bus, 0x511, 1, 0xff);
    expect_bytes(b, "QEMU", 4);
}

static void directory_is_sorted_and_keys_stay(void **state)
{
    struct board *b = *state;
    assert_int_equal(fw_cfg_add_file(b->fw, "etc/zebra", "zz", 2), 0);
    assert_int_equal(fw_cfg_add_file(b->fw, "bootorder", "abc", 3), 0);
    assert_int_equal(fw_cfg_add_file(b->fw, "etc/acpi", "", 0), 0);
    select_key(b, 0x19);
    assert_int_equal(be32(b), 3);
    static const struct {
        uint32_t size, key;
        const char *name;
    } want[] = {
        {3, 0x21, "bootorder"},
        {0, 0x22, "etc/acpi"},
        {2, 0x20, "etc/zebra"},
    };
    for (int i = 0; i < 3; i++) {
        char name[56] = {0};
        strcpy(name, want[i].name);
        assert_int_equal(be32(b), want[i].size);
        assert_int_equal(be32(b), want[i].key << 16);
        expect_bytes(b, name, sizeof name);
    }
    select_key(b, 0x21);
    expect_bytes(b, "abc\0", 4);
    assert_int_equal(fw_cfg_add_file(b->fw, "bootorder", "new!", 4), 0); // replaces
    select_key(b, 0x4021);                                               // write bit: same item
    expect_bytes(b, "new!\0", 5);
}

static void overlong_names_are_refused(void **state)
{
    struct board *b = *state;
    char name[57];
    memset(name, 'a', 56);
    name[56] = 0;
    assert_int_not_equal(fw_cfg_add_file(b->fw, name, "", 0), 0);
    name[55] = 0;
    assert_int_equal(fw_cfg_add_file(b->fw, name, "", 0), 0);
}

static void dma_select_and_read_zero_fills_past_the_end(void **state)
{
    struct board *b = *state;
    uint8_t got[8];
    memset(got, 0xee, sizeof got);
    fw_cfg_add_file(b->fw, "f", "hello", 5);
    mem_write(&b->f.mem, 0x2000, got, 8);
    assert_int_equal(dma(b, 0x0020000a, 7, 0x2000), 0);
    mem_read(&b->f.mem, 0x2000, got, 8);
    assert_memory_equal(got, "hello\0\0\xee", 8);
}

static void dma_reads_continue_and_skip(void **state)
{
    struct board *b = *state;
    uint8_t got[4];
    fw_cfg_add_file(b->fw, "f", "0123456789", 10);
    assert_int_equal(dma(b, 0x00200008, 0, 0), 0); // select
    assert_int_equal(dma(b, 2, 2, 0x2000), 0);
    assert_int_equal(dma(b, 4, 3, 0), 0); // skip
    assert_int_equal(dma(b, 2, 4, 0x2000), 0);
    mem_read(&b->f.mem, 0x2000, got, 4);
    assert_memory_equal(got, "5678", 4);
    expect_bytes(b, "9\0", 2);
}

static void dma_write_is_an_error(void **state)
{
    struct board *b = *state;
    assert_int_equal(dma(b, 0x00000018, 4, 0x2000), 1);
    select_key(b, 0);
    expect_bytes(b, "QEMU", 4);
}

static void dma_to_what_is_not_ram_is_an_error(void **state)
{
    struct board *b = *state;
    assert_int_equal(dma(b, 0x0000000a, 4, 0xe0000000), 1);
    assert_int_equal(dma(b, 0x0000000a, 0xffffffff, FIXTURE_RAM - 8), 1); // runs off the end of RAM
    assert_int_equal(dma(b, 0x0000000a, 4, UINT64_MAX - 1), 1);           // wraps
    assert_int_equal(dma(b, 0x0000000a, 0, UINT64_MAX), 0);
    assert_int_equal(dma(b, 4, 0xffffffff, 0), 0); // skips saturate
    assert_int_equal(dma(b, 4, 0xffffffff, 0), 0);
    expect_bytes(b, "\0", 1);
}

static void dma_descriptor_outside_ram_is_survived(void **state)
{
    struct board *b = *state;
    bus_write(b->f.bus, 0x514, 4, 0xffffffff);
    bus_write(b->f.bus, 0x518, 4, 0xffffffff);
    bus_write(b->f.bus, 0x514, 4, 0);
    bus_write(b->f.bus, 0x518, 4, __builtin_bswap32(0xe0000000));
    select_key(b, 0);
    expect_bytes(b, "QEMU", 4);
}

static void state_keeps_selector_and_offset(void **state)
{
    struct board *b = *state;
    struct stream s, l;
    select_key(b, 0);
    expect_bytes(b, "QE", 2);
    stream_init_save(&s);
    fw_cfg_device.state(b->fw, &s);
    fw_cfg_device.reset(b->fw);
    stream_init_load(&l, s.data, s.size);
    fw_cfg_device.state(b->fw, &l);
    assert_int_equal(l.error, 0);
    expect_bytes(b, "MU", 2);
    stream_free(&s);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(signature_and_id_read_as_qemus),
        T(missing_item_reads_zero_and_writes_are_dropped),
        T(directory_is_sorted_and_keys_stay),
        T(overlong_names_are_refused),
        T(dma_select_and_read_zero_fills_past_the_end),
        T(dma_reads_continue_and_skip),
        T(dma_write_is_an_error),
        T(dma_to_what_is_not_ram_is_an_error),
        T(dma_descriptor_outside_ram_is_survived),
        T(state_keeps_selector_and_offset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
