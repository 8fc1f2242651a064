// Every chip of the PC on one board with a stepped clock, for fuzz targets that drive them.
#pragma once
#include "devices/block.h"
#include "devices/chips.h"
#include "mmu/mem.h"

#define BOARD_DEVICES 20
#define BOARD_DEVFN   (3u << 3) // the disk

struct board {
    struct bus *bus;
    struct mem_map mem;
    struct timer_queue clock;
    uint64_t now_ns;
    uint32_t sum; // of the bytes put out
    struct pic *pic;
    struct pit *pit;
    struct rtc *rtc;
    struct uart *uart[2];
    struct i8042 *i8042;
    struct hpet *hpet;
    struct ioapic *ioapic;
    struct pci_bus *pci;
    struct piix4pm *pm;
    struct fw_cfg *fw_cfg;
    struct block *disk;
    struct device devices[BOARD_DEVICES];
    unsigned device_count;
};

struct board *board_create(void); // ends the process on failure
void board_destroy(struct board *b);
void board_reset(struct board *b);
// Moves the clock, running timers at their own times. At most `limit` of them: guests may arm them close.
void board_advance(struct board *b, uint64_t ns, unsigned limit);
// Reads every port and every chip's registers once, writing what was read back if `write`.
void board_touch(struct board *b, bool write);
