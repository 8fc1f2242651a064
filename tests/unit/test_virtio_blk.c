// virtio-blk driven as a driver would: capabilities found in configuration space, a ring in guest memory.
#include "device_fixture.h"
#include "devices/block.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#define DEVFN  (4 << 3)
#define BAR0   0xe0000000u
#define BAR1   0xe0010000u
#define COMMON BAR0
#define ISR    (BAR0 + 0x1000)
#define CONFIG (BAR0 + 0x2000)
#define NOTIFY (BAR0 + 0x3000)
#define IRQ    11

#define DESC         0x10000u
#define AVAIL        0x20000u
#define USED         0x30000u
#define HEADER       0x40000u
#define STATUS       0x41000u
#define BUFFER       0x100000u
#define RING         8u
#define DISK_SECTORS 512u

#define NEXT     1
#define WRITE    2
#define INDIRECT 4

struct board {
    struct fixture f;
    struct pci_bus *pci;
    struct piix3 *isa;
    struct block *disk;
    struct virtio_blk *blk;
    char path[64];
    uint16_t avail_idx;
    int msi_count;
    uint32_t msi_data;
};

static void msi(void *opaque, uint64_t address, uint32_t data)
{
    struct board *b = opaque;
    (void)address;
    b->msi_count++;
    b->msi_data = data;
}

static uint64_t rd(struct board *b, uint64_t gpa, unsigned size)
{
    return mem_mmio_read(&b->f.mem, gpa, size);
}

static void wr(struct board *b, uint64_t gpa, unsigned size, uint64_t value)
{
    mem_mmio_write(&b->f.mem, gpa, size, value);
}

static void make(struct board *b, bool readonly)
{
    struct irq_line isa[16];
    char error[256];

    fixture_init(&b->f);
    strcpy(b->path, "/tmp/gnomon-test-XXXXXX");
    int fd = mkstemp(b->path);
    for (unsigned n = 0; n < DISK_SECTORS; n++) {
        uint8_t sector[512];
        memset(sector, n, sizeof sector);
        assert_int_equal(write(fd, sector, 512), 512);
    }
    close(fd);
    for (int n = 0; n < 16; n++)
        isa[n] = fixture_line(&b->f, n);
    b->pci = pci_bus_create(b->f.bus, &b->f.mem, NULL, isa);
    pci_set_msi(b->pci, msi, b);
    b->isa = piix3_create(b->pci, b->f.bus, fixture_control(&b->f));
    b->disk = block_open(b->path, readonly, false, error, sizeof error);
    assert_non_null(b->disk);
    b->blk = virtio_blk_create(b->pci, DEVFN, &b->f.mem, b->disk);
    assert_non_null(b->blk);
    config_set(&b->f, 8, 0x60, 4, 0x0b0b0b0b);
    config_set(&b->f, DEVFN, 0x10, 4, BAR0);
    config_set(&b->f, DEVFN, 0x14, 4, BAR1);
    config_set(&b->f, DEVFN, 4, 2, 6);
}

static int setup(void **state)
{
    *state = calloc(1, sizeof(struct board));
    make(*state, false);
    return 0;
}

static int setup_readonly(void **state)
{
    *state = calloc(1, sizeof(struct board));
    make(*state, true);
    return 0;
}

static int teardown(void **state)
{
    struct board *b = *state;
    virtio_blk_device.destroy(b->blk);
    block_close(b->disk);
    piix3_device.destroy(b->isa);
    pci_bus_destroy(b->pci);
    unlink(b->path);
    fixture_done(&b->f);
    free(b);
    return 0;
}

// ---- a small driver
static uint64_t device_features(struct board *b)
{
    wr(b, COMMON, 4, 0);
    uint64_t low = rd(b, COMMON + 4, 4);
    wr(b, COMMON, 4, 1);
    return low | rd(b, COMMON + 4, 4) << 32;
}

static void negotiate(struct board *b, uint64_t features)
{
    wr(b, COMMON + 0x14, 1, 0);
    wr(b, COMMON + 0x14, 1, 3);
    wr(b, COMMON + 8, 4, 0);
    wr(b, COMMON + 0xc, 4, features);
    wr(b, COMMON + 8, 4, 1);
    wr(b, COMMON + 0xc, 4, features >> 32);
    wr(b, COMMON + 0x14, 1, 0xb);
}

static void start(struct board *b, uint64_t features)
{
    static const uint8_t zeroes[0x1000];

    negotiate(b, features);
    assert_int_equal(rd(b, COMMON + 0x14, 1), 0xb);
    mem_write(&b->f.mem, DESC, zeroes, sizeof zeroes);
    mem_write(&b->f.mem, AVAIL, zeroes, sizeof zeroes);
    mem_write(&b->f.mem, USED, zeroes, sizeof zeroes);
    b->avail_idx = 0;
    wr(b, COMMON + 0x16, 2, 0);
    wr(b, COMMON + 0x18, 2, RING);
    wr(b, COMMON + 0x20, 8, DESC);
    wr(b, COMMON + 0x28, 4, AVAIL);
    wr(b, COMMON + 0x2c, 4, 0);
    wr(b, COMMON + 0x30, 8, USED);
    wr(b, COMMON + 0x1c, 2, 1);
    wr(b, COMMON + 0x14, 1, 0xf);
}

#define V1            (1ull << 32)
#define EVENT_IDX     (1ull << 29)
#define INDIRECT_DESC (1ull << 28)
#define FLUSH         (1ull << 9)
#define DISCARD       (1ull << 13)
#define WRITE_ZEROES  (1ull << 14)

static void desc_at(struct board *b, uint64_t table, unsigned i, uint64_t gpa, uint32_t length,
                    unsigned flags, unsigned next)
{
    uint8_t raw[16];
    memcpy(raw, &gpa, 8);
    memcpy(raw + 8, &length, 4);
    raw[12] = flags;
    raw[13] = flags >> 8;
    raw[14] = next;
    raw[15] = next >> 8;
    mem_write(&b->f.mem, table + 16 * i, raw, 16);
}

static void desc(struct board *b, unsigned i, uint64_t gpa, uint32_t length, unsigned flags, unsigned next)
{
    desc_at(b, DESC, i, gpa, length, flags, next);
}

static void header(struct board *b, uint32_t type, uint64_t sector)
{
    uint8_t raw[16] = {0};
    memcpy(raw, &type, 4);
    memcpy(raw + 8, &sector, 8);
    mem_write(&b->f.mem, HEADER, raw, 16);
    raw[0] = 0xff;
    mem_write(&b->f.mem, STATUS, raw, 1);
}

static void publish(struct board *b, uint16_t head)
{
    mem_write(&b->f.mem, AVAIL + 4 + 2 * (b->avail_idx % RING), &head, 2);
    b->avail_idx++;
    mem_write(&b->f.mem, AVAIL + 2, &b->avail_idx, 2);
}

static void kick(struct board *b, uint16_t head)
{
    publish(b, head);
    wr(b, NOTIFY, 2, 0);
}

static uint32_t peek(struct board *b, uint64_t gpa, unsigned size)
{
    uint32_t value = 0;
    mem_read(&b->f.mem, gpa, &value, size);
    return value;
}

static unsigned used_idx(struct board *b)
{
    return peek(b, USED + 2, 2);
}

// One request with a data buffer in three descriptors; returns the status byte.
static uint8_t request(struct board *b, uint32_t type, uint64_t sector, uint32_t length, bool in)
{
    unsigned before = used_idx(b);
    header(b, type, sector);
    desc(b, 0, HEADER, 16, NEXT, length ? 1 : 2);
    desc(b, 1, BUFFER, length, NEXT | (in ? WRITE : 0), 2);
    desc(b, 2, STATUS, 1, WRITE, 0);
    kick(b, 0);
    assert_int_equal(used_idx(b), (uint16_t)(before + 1));
    assert_int_equal(peek(b, USED + 4 + 8 * (before % RING), 4), 0);
    return peek(b, STATUS, 1);
}

static uint32_t used_length(struct board *b)
{
    return peek(b, USED + 8 + 8 * ((used_idx(b) - 1) % RING), 4);
}

static void expect_broken(struct board *b)
{
    assert_int_equal(rd(b, COMMON + 0x14, 1) & 0x40, 0x40);
    unsigned before = used_idx(b);
    wr(b, NOTIFY, 2, 0); // stays quiet until reset
    assert_int_equal(used_idx(b), before);
    start(b, V1); // and works after it
    assert_int_equal(request(b, 0, 1, 512, true), 0);
}

// ---- transport
static void capabilities_lead_to_every_structure(void **state)
{
    struct board *b = *state;
    unsigned seen = 0, cap = config_get(&b->f, DEVFN, 0x34, 1);
    assert_int_equal(config_get(&b->f, DEVFN, 0, 4), 0x10421af4);
    assert_int_equal(config_get(&b->f, DEVFN, 8, 4), 0x01000001);
    for (; cap; cap = config_get(&b->f, DEVFN, cap + 1, 1)) {
        if (config_get(&b->f, DEVFN, cap, 1) != 9)
            continue;
        unsigned type = config_get(&b->f, DEVFN, cap + 3, 1);
        seen |= 1u << type;
        if (type == 1)
            assert_int_equal(config_get(&b->f, DEVFN, cap + 8, 4), 0);
        if (type == 2) {
            assert_int_equal(config_get(&b->f, DEVFN, cap + 2, 1), 20);
            assert_int_equal(config_get(&b->f, DEVFN, cap + 8, 4), 0x3000);
            assert_int_equal(config_get(&b->f, DEVFN, cap + 16, 4), 4);
        }
        if (type == 4)
            assert_int_equal(config_get(&b->f, DEVFN, cap + 12, 4), 60);
    }
    assert_int_equal(seen, 0x3e);
}

static void configuration_space_describes_the_disk(void **state)
{
    struct board *b = *state;
    assert_int_equal(rd(b, CONFIG, 8), DISK_SECTORS);
    assert_int_equal(rd(b, CONFIG + 12, 4), 254);
    assert_int_equal(rd(b, CONFIG + 20, 4), 512);
    wr(b, CONFIG, 4, 0);
    assert_int_equal(rd(b, CONFIG, 4), DISK_SECTORS);
    assert_int_equal(rd(b, CONFIG + 60, 4), 0);
    assert_int_equal(rd(b, CONFIG + 0xffc, 4), 0);
}

static void features_must_be_a_subset_with_version_1(void **state)
{
    struct board *b = *state;
    assert_int_equal(device_features(b),
                     V1 | EVENT_IDX | INDIRECT_DESC | FLUSH | DISCARD | WRITE_ZEROES | 1 << 2 | 1 << 6);
    negotiate(b, FLUSH);
    assert_int_equal(rd(b, COMMON + 0x14, 1), 3);
    negotiate(b, V1 | 1);
    assert_int_equal(rd(b, COMMON + 0x14, 1), 3);
    wr(b, COMMON + 0x14, 1, 0xf); // DRIVER_OK without FEATURES_OK
    assert_int_equal(rd(b, COMMON + 0x14, 1), 3);
    negotiate(b, V1 | FLUSH);
    assert_int_equal(rd(b, COMMON + 0x14, 1), 0xb);
    wr(b, COMMON + 0xc, 4, 0); // settled
    assert_int_equal(rd(b, COMMON + 0xc, 4), 1);
    wr(b, COMMON + 0x14, 1, 0);
    assert_int_equal(rd(b, COMMON + 0x14, 1), 0);
}

static void common_fields_read_in_parts_and_guard_their_values(void **state)
{
    struct board *b = *state;
    assert_int_equal(rd(b, COMMON + 0x12, 2), 1);
    assert_int_equal(rd(b, COMMON + 0x18, 2), 256);
    wr(b, COMMON + 0x18, 2, 3);
    wr(b, COMMON + 0x18, 2, 512);
    wr(b, COMMON + 0x18, 2, 0);
    assert_int_equal(rd(b, COMMON + 0x18, 2), 256);
    wr(b, COMMON + 0x20, 8, 0x123456789abcdef0);
    assert_int_equal(rd(b, COMMON + 0x20, 4), 0x9abcdef0);
    assert_int_equal(rd(b, COMMON + 0x24, 4), 0x12345678);
    wr(b, COMMON + 0x1a, 2, 2); // no such vector
    assert_int_equal(rd(b, COMMON + 0x1a, 2), 0xffff);
    wr(b, COMMON + 0x1a, 2, 1);
    assert_int_equal(rd(b, COMMON + 0x1a, 2), 1);
    wr(b, COMMON + 0x16, 2, 0xffff); // no such queue
    assert_int_equal(rd(b, COMMON + 0x18, 2), 0);
    wr(b, COMMON + 0x1c, 2, 1);
    assert_int_equal(rd(b, COMMON + 0x1c, 2), 0);
    assert_int_equal(rd(b, COMMON + 0x3ff8, 8), 0);
    wr(b, NOTIFY + 0xffc, 4, 0xffffffff);
}

static void misaligned_queue_is_refused(void **state)
{
    struct board *b = *state;
    negotiate(b, V1);
    wr(b, COMMON + 0x20, 8, DESC + 8);
    wr(b, COMMON + 0x1c, 2, 1);
    assert_int_equal(rd(b, COMMON + 0x1c, 2), 0);
    expect_broken(b);
    wr(b, COMMON + 0x14, 1, 0);
    negotiate(b, V1);
    wr(b, COMMON + 0x30, 8, UINT64_MAX - 3); // the used ring would wrap
    wr(b, COMMON + 0x1c, 2, 1);
    expect_broken(b);
}

static void configuration_access_capability_reads_and_writes_the_bar(void **state)
{
    struct board *b = *state;
    unsigned cap = config_get(&b->f, DEVFN, 0x34, 1);
    while (config_get(&b->f, DEVFN, cap, 1) != 9 || config_get(&b->f, DEVFN, cap + 3, 1) != 5)
        cap = config_get(&b->f, DEVFN, cap + 1, 1);
    config_set(&b->f, DEVFN, cap + 4, 1, 0);
    config_set(&b->f, DEVFN, cap + 8, 4, 0x2000);
    config_set(&b->f, DEVFN, cap + 12, 4, 4);
    assert_int_equal(config_get(&b->f, DEVFN, cap + 16, 4), DISK_SECTORS);
    config_set(&b->f, DEVFN, cap + 8, 4, 0x14);
    config_set(&b->f, DEVFN, cap + 12, 4, 1);
    config_set(&b->f, DEVFN, cap + 16, 1, 3);
    assert_int_equal(rd(b, COMMON + 0x14, 1), 3);
    assert_int_equal(config_get(&b->f, DEVFN, cap + 16, 1), 3);
    // Hostile values reach nothing.
    static const uint32_t bad[][3] = {{0, 0x3ffe, 4}, {0, 0xfffffffc, 4}, {0, 0x2000, 0xffffffff},
                                      {0, 0x2000, 3}, {0, 0x2001, 2},     {1, 0, 4},
                                      {255, 0, 4}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        config_set(&b->f, DEVFN, cap + 4, 1, bad[i][0]);
        config_set(&b->f, DEVFN, cap + 8, 4, bad[i][1]);
        config_set(&b->f, DEVFN, cap + 12, 4, bad[i][2]);
        config_set(&b->f, DEVFN, cap + 16, 4, 0);
        config_get(&b->f, DEVFN, cap + 16, 4);
    }
    assert_int_equal(rd(b, COMMON + 0x14, 1), 3);
}

// ---- requests
static void read_and_write_move_sectors(void **state)
{
    struct board *b = *state;
    static uint8_t data[300 * 512];
    start(b, V1);
    assert_int_equal(request(b, 0, 7, 1024, true), 0);
    assert_int_equal(used_length(b), 1025);
    mem_read(&b->f.mem, BUFFER, data, 1024);
    assert_int_equal(data[0], 7);
    assert_int_equal(data[1023], 8);
    memset(data, 0xa5, sizeof data);
    mem_write(&b->f.mem, BUFFER, data, sizeof data);
    assert_int_equal(request(b, 1, 100, sizeof data, false), 0); // longer than one piece
    assert_int_equal(used_length(b), 1);
    assert_int_equal(block_read(b->disk, 99 * 512, data, sizeof data), 0);
    assert_int_equal(data[511], 99);
    assert_int_equal(data[512], 0xa5);
    assert_int_equal(request(b, 0, 399, 1024, true), 0);
    mem_read(&b->f.mem, BUFFER, data, 1024);
    assert_int_equal(data[0], 0xa5);
    assert_int_equal(data[512], 400 & 0xff);
}

static void any_framing_of_a_request_works(void **state)
{
    struct board *b = *state;
    uint8_t data[512];
    start(b, V1);
    header(b, 0, 9);
    desc(b, 0, HEADER, 7, NEXT, 5);
    desc(b, 5, HEADER + 7, 9, NEXT, 1);
    desc(b, 1, BUFFER, 100, NEXT | WRITE, 3);
    desc(b, 3, BUFFER + 0x1000, 413, WRITE, 0); // data and status in one
    kick(b, 0);
    assert_int_equal(used_idx(b), 1);
    mem_read(&b->f.mem, BUFFER + 0x1000, data, 413);
    assert_int_equal(data[0], 9);
    assert_int_equal(data[411], 9);
    assert_int_equal(data[412], 0); // OK
}

static void beyond_the_end_is_an_io_error(void **state)
{
    struct board *b = *state;
    start(b, V1);
    assert_int_equal(request(b, 0, DISK_SECTORS - 1, 512, true), 0);
    assert_int_equal(request(b, 0, DISK_SECTORS - 1, 1024, true), 1);
    assert_int_equal(request(b, 0, DISK_SECTORS, 512, true), 1);
    assert_int_equal(request(b, 1, UINT64_MAX, 512, false), 1);
    assert_int_equal(request(b, 1, 1ull << 55, 512, false), 1);
    assert_int_equal(request(b, 0, 0, 100, true), 1); // not whole sectors
    assert_int_equal(request(b, 99, 0, 512, true), 2);
}

static void flush_and_id_answer(void **state)
{
    struct board *b = *state;
    char id[21] = {0};
    start(b, V1 | FLUSH);
    assert_int_equal(request(b, 4, 0, 0, false), 0);
    assert_int_equal(request(b, 8, 0, 20, true), 0);
    assert_int_equal(used_length(b), 21);
    mem_read(&b->f.mem, BUFFER, id, 20);
    assert_string_equal(id, "gnomon-04.0");
}

static void ranges_zero_and_discard(void **state)
{
    struct board *b = *state;
    struct {
        uint64_t sector;
        uint32_t count, flags;
    } r[2] = {{10, 2, 0}, {20, 1, 1}};
    uint8_t data[512];
    start(b, V1 | DISCARD | WRITE_ZEROES);
    mem_write(&b->f.mem, BUFFER, r, sizeof r);
    assert_int_equal(request(b, 13, 0, 32, false), 0);
    block_read(b->disk, 11 * 512, data, 512);
    assert_int_equal(data[511], 0);
    block_read(b->disk, 12 * 512, data, 512);
    assert_int_equal(data[0], 12);
    block_read(b->disk, 20 * 512, data, 512);
    assert_int_equal(data[0], 0);
    assert_int_equal(request(b, 11, 0, 32, false), 2); // unmap means nothing for discard
    r[1].flags = 0;
    mem_write(&b->f.mem, BUFFER, r, sizeof r);
    assert_int_equal(request(b, 11, 0, 32, false), 0);
    r[0].sector = DISK_SECTORS - 1;
    mem_write(&b->f.mem, BUFFER, r, sizeof r);
    assert_int_equal(request(b, 13, 0, 16, false), 1);
    assert_int_equal(request(b, 13, 0, 17, false), 1);
    assert_int_equal(request(b, 13, 0, 16 * 17, false), 1); // more ranges than allowed
    start(b, V1);
    assert_int_equal(request(b, 13, 0, 16, false), 2); // not negotiated
}

static void readonly_disk_offers_and_does_no_writes(void **state)
{
    struct board *b = *state;
    assert_int_equal(device_features(b) & (1 << 5 | DISCARD | WRITE_ZEROES), 1 << 5);
    start(b, V1);
    assert_int_equal(request(b, 1, 0, 512, false), 1);
    assert_int_equal(request(b, 0, 3, 512, true), 0);
    assert_int_equal(peek(b, BUFFER, 1), 3);
}

static void indirect_tables_work(void **state)
{
    struct board *b = *state;
    start(b, V1 | INDIRECT_DESC);
    header(b, 0, 5);
    desc_at(b, 0x50000, 0, HEADER, 16, NEXT, 2);
    desc_at(b, 0x50000, 2, BUFFER, 512, NEXT | WRITE, 1);
    desc_at(b, 0x50000, 1, STATUS, 1, WRITE, 0);
    desc(b, 6, 0x50000, 48, INDIRECT, 0);
    kick(b, 6);
    assert_int_equal(used_idx(b), 1);
    assert_int_equal(peek(b, USED + 4, 4), 6);
    assert_int_equal(peek(b, STATUS, 1), 0);
    assert_int_equal(peek(b, BUFFER, 1), 5);
}

// ---- interrupts
static void intx_is_level_until_isr_is_read(void **state)
{
    struct board *b = *state;
    start(b, V1);
    request(b, 0, 0, 512, true);
    assert_int_equal(b->f.level[IRQ], 1);
    assert_int_equal(rd(b, ISR, 1), 1);
    assert_int_equal(b->f.level[IRQ], 0);
    assert_int_equal(rd(b, ISR, 1), 0);
    uint16_t no_interrupt = 1;
    mem_write(&b->f.mem, AVAIL, &no_interrupt, 2);
    request(b, 0, 0, 512, true);
    assert_int_equal(b->f.level[IRQ], 0);
}

static void msix_replaces_intx(void **state)
{
    struct board *b = *state;
    unsigned cap = config_get(&b->f, DEVFN, 0x34, 1);
    config_set(&b->f, DEVFN, cap + 2, 2, 0x8000);
    wr(b, BAR1 + 0x10, 4, 0xfee00000);
    wr(b, BAR1 + 0x18, 4, 0x51);
    wr(b, BAR1 + 0x1c, 4, 0);
    start(b, V1);
    wr(b, COMMON + 0x1a, 2, 1);
    request(b, 0, 0, 512, true);
    assert_int_equal(b->msi_count, 1);
    assert_int_equal(b->msi_data, 0x51);
    assert_int_equal(b->f.level[IRQ], 0);
    assert_int_equal(rd(b, ISR, 1), 0);
}

static void event_index_suppresses_interrupts_and_asks_for_kicks(void **state)
{
    struct board *b = *state;
    uint16_t wanted = 1; // interrupt when used_idx passes 1
    start(b, V1 | EVENT_IDX);
    mem_write(&b->f.mem, AVAIL + 4 + 2 * RING, &wanted, 2);
    request(b, 0, 0, 512, true);
    assert_int_equal(b->f.level[IRQ], 0);
    assert_int_equal(peek(b, USED + 4 + 8 * RING, 2), 1); // avail_event
    request(b, 0, 0, 512, true);
    assert_int_equal(b->f.level[IRQ], 1);
    assert_int_equal(peek(b, USED + 4 + 8 * RING, 2), 2);
}

static void one_kick_serves_all_and_indices_wrap(void **state)
{
    struct board *b = *state;
    start(b, V1);
    header(b, 0, 3);
    desc(b, 0, HEADER, 16, NEXT, 1);
    desc(b, 1, BUFFER, 512, NEXT | WRITE, 2);
    desc(b, 2, STATUS, 1, WRITE, 0);
    for (unsigned round = 0; round < 65536 / RING + 1; round++) {
        for (unsigned n = 0; n < RING - 1; n++)
            publish(b, 0);
        kick(b, 0);
    }
    assert_int_equal(used_idx(b), RING);
    assert_int_equal(rd(b, COMMON + 0x14, 1), 0xf);
}

static void buffers_available_before_driver_ok_are_served_then(void **state)
{
    struct board *b = *state;
    start(b, V1);
    request(b, 0, 0, 512, true);
    wr(b, COMMON + 0x14, 1, 0);
    negotiate(b, V1);
    static const uint8_t zeroes[64];
    mem_write(&b->f.mem, AVAIL, zeroes, sizeof zeroes);
    mem_write(&b->f.mem, USED, zeroes, sizeof zeroes);
    b->avail_idx = 0;
    wr(b, COMMON + 0x18, 2, RING);
    wr(b, COMMON + 0x20, 8, DESC);
    wr(b, COMMON + 0x28, 8, AVAIL);
    wr(b, COMMON + 0x30, 8, USED);
    wr(b, COMMON + 0x1c, 2, 1);
    publish(b, 0);
    wr(b, NOTIFY, 2, 0);
    assert_int_equal(used_idx(b), 0);
    wr(b, COMMON + 0x14, 1, 0xf);
    assert_int_equal(used_idx(b), 1);
}

// ---- hostile rings
static void chain_loop_breaks_the_device(void **state)
{
    struct board *b = *state;
    start(b, V1);
    header(b, 0, 0);
    desc(b, 0, HEADER, 16, NEXT, 1);
    desc(b, 1, HEADER, 16, NEXT, 0);
    kick(b, 0);
    assert_int_equal(used_idx(b), 0);
    assert_int_equal(rd(b, ISR, 1), 2); // a configuration change interrupt tells the driver
    expect_broken(b);
}

static void head_or_next_out_of_range_breaks_the_device(void **state)
{
    struct board *b = *state;
    start(b, V1);
    kick(b, RING);
    expect_broken(b);
    start(b, V1);
    desc(b, 0, HEADER, 16, NEXT, 0xffff);
    kick(b, 0);
    expect_broken(b);
}

static void available_index_too_far_ahead_breaks_the_device(void **state)
{
    struct board *b = *state;
    start(b, V1);
    b->avail_idx = RING;
    kick(b, 0);
    expect_broken(b);
}

static void zero_length_descriptor_breaks_the_device(void **state)
{
    struct board *b = *state;
    start(b, V1);
    desc(b, 0, HEADER, 16, NEXT, 1);
    desc(b, 1, BUFFER, 0, WRITE, 0);
    kick(b, 0);
    expect_broken(b);
}

static void readable_after_writable_breaks_the_device(void **state)
{
    struct board *b = *state;
    start(b, V1);
    desc(b, 0, STATUS, 1, NEXT | WRITE, 1);
    desc(b, 1, HEADER, 16, 0, 0);
    kick(b, 0);
    expect_broken(b);
}

static void wrapping_or_unbacked_buffers_break_the_device(void **state)
{
    struct board *b = *state;
    static const uint64_t bad[] = {UINT64_MAX - 100, 0xe8000000, FIXTURE_RAM - 100, BAR0};
    for (unsigned i = 0; i < 4; i++) {
        start(b, V1);
        header(b, i & 1, 0);
        desc(b, 0, HEADER, 16, NEXT, 1);
        desc(b, 1, bad[i], 512, NEXT | (i & 1 ? 0 : WRITE), 2);
        desc(b, 2, STATUS, 1, WRITE, 0);
        kick(b, 0);
        expect_broken(b);
    }
}

static void request_without_header_or_status_breaks_the_device(void **state)
{
    struct board *b = *state;
    start(b, V1);
    desc(b, 0, HEADER, 15, NEXT, 1);
    desc(b, 1, STATUS, 1, WRITE, 0);
    kick(b, 0);
    expect_broken(b);
    start(b, V1);
    desc(b, 0, HEADER, 16, 0, 0);
    kick(b, 0);
    expect_broken(b);
}

static void bad_indirect_tables_break_the_device(void **state)
{
    struct board *b = *state;
    static const struct {
        uint64_t gpa;
        uint32_t length;
        unsigned flags;
    } bad[] = {
        {0x50000, 17, INDIRECT},       {0x50000, 0, INDIRECT},          {0x50000, 48, INDIRECT | NEXT},
        {0xe8000000, 48, INDIRECT},    {UINT64_MAX - 16, 48, INDIRECT}, {0x50000, 0xfffffff0, INDIRECT},
        {0x60000, 48, INDIRECT},       // holds another indirect descriptor
        {0x70000, 16 * 300, INDIRECT}, // more segments than a chain may have
    };
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        start(b, V1 | INDIRECT_DESC);
        header(b, 0, 0);
        desc_at(b, 0x60000, 0, 0x50000, 48, INDIRECT, 0);
        for (unsigned n = 0; n < 300; n++)
            desc_at(b, 0x70000, n, HEADER, 16, NEXT, n + 1);
        desc(b, 0, bad[i].gpa, bad[i].length, bad[i].flags, 1);
        kick(b, 0);
        expect_broken(b);
    }
    start(b, V1); // not negotiated
    desc(b, 0, 0x50000, 48, INDIRECT, 0);
    kick(b, 0);
    expect_broken(b);
}

static void rings_outside_ram_break_the_device(void **state)
{
    struct board *b = *state;
    for (unsigned field = 0x20; field <= 0x30; field += 8) {
        negotiate(b, V1);
        wr(b, COMMON + 0x18, 2, RING);
        wr(b, COMMON + 0x20, 8, field == 0x20 ? 0xe8000000 : DESC);
        wr(b, COMMON + 0x28, 8, field == 0x28 ? 0xe8000000 : AVAIL);
        wr(b, COMMON + 0x30, 8, field == 0x30 ? 0xe8000000 : USED);
        wr(b, COMMON + 0x1c, 2, 1);
        static const uint8_t zeroes[64];
        mem_write(&b->f.mem, AVAIL, zeroes, sizeof zeroes);
        b->avail_idx = 0;
        wr(b, COMMON + 0x14, 1, 0xf);
        header(b, 0, 0);
        desc(b, 0, HEADER, 16, NEXT, 1);
        desc(b, 1, BUFFER, 512, NEXT | WRITE, 2);
        desc(b, 2, STATUS, 1, WRITE, 0);
        kick(b, 0);
        expect_broken(b);
    }
}

// ---- state
static void state_carries_a_running_queue_over(void **state)
{
    struct board *b = *state;
    struct stream s, l;
    start(b, V1 | EVENT_IDX);
    request(b, 0, 0, 512, true);
    stream_init_save(&s);
    pci_bus_device.state(b->pci, &s);
    virtio_blk_device.state(b->blk, &s);
    assert_int_equal(s.error, 0);
    pci_bus_device.reset(b->pci);
    virtio_blk_device.reset(b->blk);
    stream_init_load(&l, s.data, s.size);
    pci_bus_device.state(b->pci, &l);
    virtio_blk_device.state(b->blk, &l);
    assert_int_equal(l.error, 0);
    assert_int_equal(rd(b, COMMON + 0x14, 1), 0xf);
    assert_int_equal(request(b, 0, 3, 512, true), 0);
    assert_int_equal(peek(b, BUFFER, 1), 3);

    for (size_t i = 0; i < s.size; i++) {
        for (int bit = 0; bit < 8; bit++) {
            s.data[i] ^= 1u << bit;
            stream_init_load(&l, s.data, s.size);
            pci_bus_device.state(b->pci, &l);
            virtio_blk_device.state(b->blk, &l);
            s.data[i] ^= 1u << bit;
            config_set(&b->f, DEVFN, 0x10, 4, BAR0);
            config_set(&b->f, DEVFN, 4, 2, 6);
            wr(b, NOTIFY, 2, 0);
        }
    }
    start(b, V1);
    assert_int_equal(request(b, 0, 3, 512, true), 0);
    stream_free(&s);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(capabilities_lead_to_every_structure),
        T(configuration_space_describes_the_disk),
        T(features_must_be_a_subset_with_version_1),
        T(common_fields_read_in_parts_and_guard_their_values),
        T(misaligned_queue_is_refused),
        T(configuration_access_capability_reads_and_writes_the_bar),
        T(read_and_write_move_sectors),
        T(any_framing_of_a_request_works),
        T(beyond_the_end_is_an_io_error),
        T(flush_and_id_answer),
        T(ranges_zero_and_discard),
        cmocka_unit_test_setup_teardown(readonly_disk_offers_and_does_no_writes, setup_readonly, teardown),
        T(indirect_tables_work),
        T(intx_is_level_until_isr_is_read),
        T(msix_replaces_intx),
        T(event_index_suppresses_interrupts_and_asks_for_kicks),
        T(one_kick_serves_all_and_indices_wrap),
        T(buffers_available_before_driver_ok_are_served_then),
        T(chain_loop_breaks_the_device),
        T(head_or_next_out_of_range_breaks_the_device),
        T(available_index_too_far_ahead_breaks_the_device),
        T(zero_length_descriptor_breaks_the_device),
        T(readable_after_writable_breaks_the_device),
        T(wrapping_or_unbacked_buffers_break_the_device),
        T(request_without_header_or_status_breaks_the_device),
        T(bad_indirect_tables_break_the_device),
        T(rings_outside_ram_break_the_device),
        T(state_carries_a_running_queue_over),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
