// virtio-blk with a hostile driver and hostile rings. Input: negotiation and queue registers, then descriptors, rings and
// notifications.
#include "tests/fuzz/board.h"
#include "tests/fuzz/fuzz.h"

#define BAR    0xe0000000u
#define CONFIG (BAR + 0x2000)
#define NOTIFY (BAR + 0x3000)
#define DESC   0x10000u
#define AVAIL  0x20000u
#define USED   0x30000u
#define OTHER  0x40000u // indirect tables, headers, data
#define OPERATIONS 256

static struct board *board;

static void wr(uint64_t gpa, unsigned size, uint64_t value)
{
    mem_mmio_write(&board->mem, gpa, size, value);
}

static void config(unsigned offset, unsigned size, uint32_t value)
{
    bus_write(board->bus, 0xcf8, 4, 0x80000000u | BOARD_DEVFN << 8 | offset);
    bus_write(board->bus, 0xcfc, size, value);
}

static void put16(uint64_t gpa, uint64_t value)
{
    uint8_t raw[2] = {(uint8_t)value, (uint8_t)(value >> 8)};
    mem_write(&board->mem, gpa, raw, sizeof raw);
}

static void start(struct cursor *c)
{
    uint64_t features = take(c, 4);
    unsigned size = (unsigned)take(c, 1), odd = (unsigned)take(c, 1);
    static const uint8_t zeroes[0x40000];

    mem_write(&board->mem, DESC, zeroes, sizeof zeroes);
    config(0x10, 4, BAR);
    config(0x14, 4, BAR + 0x10000);
    config(4, 2, 6);
    wr(BAR + 0x14, 1, 0);
    wr(BAR + 0x14, 1, 3);
    wr(BAR + 8, 4, 0);
    wr(BAR + 0xc, 4, features & 0x7fffffff & (odd & 8 ? 0xffffffff : 0x30006e54)); // mostly of those on offer
    wr(BAR + 8, 4, 1);
    wr(BAR + 0xc, 4, 1);
    wr(BAR + 0x14, 1, 0xb);
    wr(BAR + 0x16, 2, 0);
    wr(BAR + 0x18, 2, odd & 1 ? size : 1u << size % 9);
    wr(BAR + 0x20, 8, odd & 2 ? take(c, 8) : DESC);
    wr(BAR + 0x28, 8, odd & 4 ? take(c, 8) : AVAIL);
    wr(BAR + 0x30, 8, odd & 16 ? take(c, 8) : USED);
    wr(BAR + 0x1c, 2, 1);
    wr(BAR + 0x14, 1, 0xf);
}

static void descriptor(uint64_t table, struct cursor *c)
{
    uint8_t raw[16] = {0};
    unsigned index = (unsigned)take(c, 1), form = (unsigned)take(c, 1);
    uint64_t gpa = form & 0x40 ? take(c, 8) : OTHER + (take(c, 2) << 2), length = form & 0x80 ? take(c, 4) : take(c, 2);
    for (unsigned i = 0; i < 8; i++)
        raw[i] = (uint8_t)(gpa >> 8 * i);
    for (unsigned i = 0; i < 4; i++)
        raw[8 + i] = (uint8_t)(length >> 8 * i);
    raw[12] = form & 7;
    raw[14] = (uint8_t)take(c, 1);
    mem_write(&board->mem, table + 16 * index, raw, sizeof raw);
}

static void header(struct cursor *c)
{
    uint8_t raw[16] = {0};
    unsigned where = (unsigned)take(c, 1);
    raw[0] = (uint8_t)(take(c, 1) & 15);
    for (unsigned i = 0; i < 4; i++)
        raw[8 + i] = (uint8_t)take(c, 1);
    if (where & 0x80)
        memset(raw + 12, 0xff, 4);
    mem_write(&board->mem, OTHER + ((where & 0x7f) << 4), raw, sizeof raw);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct cursor c = {data, size};
    unsigned available = 0;
    if (!board)
        board = board_create();
    board_reset(board);
    start(&c);
    for (unsigned i = 0; i < OPERATIONS && c.left; i++) {
        switch (take(&c, 1) & 7) {
        case 0: descriptor(DESC, &c); break;
        case 1: descriptor(OTHER, &c); break;
        case 2: header(&c); break;
        case 3: // offer a chain
            put16(AVAIL + 4 + 2 * (available % 256), take(&c, 1));
            put16(AVAIL + 2, ++available);
            wr(NOTIFY, 2, 0);
            break;
        case 4: put16((take(&c, 1) & 1 ? USED : AVAIL) + take(&c, 2) % 0x900, take(&c, 2)); break; // any field of a ring
        case 5: wr(NOTIFY + 4 * take(&c, 1), 2, take(&c, 2)); break;
        case 6: { // any register
            unsigned where = (unsigned)take(&c, 2), width = 1u << (where >> 14);
            wr(BAR + (where & 0x3fff), width, take(&c, width));
            break;
        }
        case 7: start(&c); available = 0; break;
        }
    }
    return 0;
}
