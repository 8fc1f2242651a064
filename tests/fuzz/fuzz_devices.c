// Every chip's registers as a hostile guest uses them: ports, MMIO, PCI configuration space, fw_cfg's DMA, guest memory, time.
// Input: operations of one byte and their arguments.
#include "tests/fuzz/board.h"
#include "tests/fuzz/fuzz.h"

#define OPERATIONS 400

static const uint16_t port_base[] = {0x20, 0x40, 0x60, 0x70, 0x80, 0xa0, 0x2f8, 0x3f8, 0x4d0, 0x510, 0x514, 0x600, 0xcf8, 0xcfc, 0xb2,
                                     0x90};
static const uint64_t mmio_base[] = {0xfec00000, 0xfed00000, 0xe0000000, 0xe0010000, 0xc0000, 0xfee00000, 0xa0000, 0xe0003000};

static struct board *board;

static void operation(struct board *b, struct cursor *c)
{
    unsigned op = (unsigned)take(c, 1), size = 1u << (op >> 4 & 3);
    switch (op & 15) {
    case 0: case 1: { // a port of a known chip
        unsigned where = (unsigned)take(c, 1);
        if (size > 4)
            size = 4;
        uint16_t port = (uint16_t)(port_base[where & 15] + (where >> 4));
        if (op & 1)
            bus_write(b->bus, port, size, (uint32_t)take(c, size));
        else
            bus_read(b->bus, port, size);
        break;
    }
    case 2: { // any port
        uint16_t port = (uint16_t)take(c, 2);
        if (size > 4)
            size = 4;
        if (op & 0x80)
            bus_write(b->bus, port, size, (uint32_t)take(c, size));
        else
            bus_read(b->bus, port, size);
        break;
    }
    case 3: case 4: { // MMIO of a known chip
        unsigned where = (unsigned)take(c, 2);
        uint64_t gpa = mmio_base[where & 7] + (where >> 3);
        if (op & 1)
            mem_mmio_write(&b->mem, gpa, size, take(c, size));
        else
            mem_mmio_read(&b->mem, gpa, size);
        break;
    }
    case 5: case 6: { // PCI configuration space
        unsigned where = (unsigned)take(c, 2);
        bus_write(b->bus, 0xcf8, 4, 0x80000000u | (where & 0xfffcu));
        if (size > 4)
            size = 4;
        uint16_t port = (uint16_t)(0xcfc + (where & 3));
        if (op & 1)
            bus_write(b->bus, port, size, (uint32_t)take(c, size));
        else
            bus_read(b->bus, port, size);
        break;
    }
    case 7: { // the disk where its driver puts it
        static const struct { uint8_t offset, size; uint32_t value; } set[] = {
            {0x10, 4, 0xe0000000}, {0x14, 4, 0xe0010000}, {4, 2, 7}};
        for (unsigned i = 0; i < 3; i++) {
            bus_write(b->bus, 0xcf8, 4, 0x80000000u | BOARD_DEVFN << 8 | set[i].offset);
            bus_write(b->bus, 0xcfc, set[i].size, set[i].value);
        }
        break;
    }
    case 8: { // guest memory
        uint64_t gpa = take(c, 3) & 0xffffff;
        size_t n = take(c, 1);
        const uint8_t *p = take_bytes(c, &n);
        mem_write(&b->mem, gpa, p, n);
        break;
    }
    case 9: { // a fw_cfg transfer: descriptor at 1000h
        uint64_t control = take(c, 4), length = take(c, 3) << (op >> 4), address = take(c, 4);
        uint8_t raw[16] = {(uint8_t)(control >> 24), (uint8_t)(control >> 16), (uint8_t)(control >> 8), (uint8_t)control,
                           (uint8_t)(length >> 24), (uint8_t)(length >> 16), (uint8_t)(length >> 8), (uint8_t)length, 0, 0, 0, 0,
                           (uint8_t)(address >> 24), (uint8_t)(address >> 16), (uint8_t)(address >> 8), (uint8_t)address};
        mem_write(&b->mem, 0x1000, raw, sizeof raw);
        bus_write(b->bus, 0x514, 4, 0);
        bus_write(b->bus, 0x518, 4, __builtin_bswap32(0x1000));
        break;
    }
    case 10: board_advance(b, take(c, 2) << (op >> 4 & 15) << 8, 2000); break;
    case 11: { // from the host
        size_t n = take(c, 1) & 63;
        const uint8_t *p = take_bytes(c, &n);
        if (op & 0x10)
            i8042_key(b->i8042, p, n);
        else
            uart_receive(b->uart[op >> 5 & 1], p, n);
        break;
    }
    case 12: pic_ack(b->pic); break;
    case 13: ioapic_eoi(b->ioapic, (uint8_t)take(c, 1)); break;
    case 14: piix4pm_power_button(b->pm); break;
    case 15:
        if (op == 0xff)
            board_reset(b);
        else
            pic_set_irq(b->pic, op >> 4, (int)(take(c, 1) & 1));
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct cursor c = {data, size};
    if (!board)
        board = board_create();
    board_reset(board);
    for (unsigned i = 0; i < OPERATIONS && c.left; i++)
        operation(board, &c);
    board_touch(board, false);
    return 0;
}
