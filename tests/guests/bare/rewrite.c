// Code that changes while it runs, as the processor must see it at once: stores ahead of RIP in the running
// block, into the next page's block, into an instruction that lies in two pages, and behind a branch that is
// not taken; code a device writes (fw_cfg's DMA); and data beside code, whose writes must not cost the code.
// The timer interrupts all the while.
#include "bare.h"

#define FW_CFG_DMA    0x514
#define DMA_READ      2u
#define DMA_SELECT    8u
#define KEY_SIGNATURE 0u // "QEMU"
#define KEY_ID        1u // 3 or so: features, little-endian

static uint8_t page[4 * 4096] __attribute__((aligned(4096)));

static void word(uint8_t *at, uint32_t value)
{
    __builtin_memcpy(at, &value, 4);
}

static uint8_t *code(uint8_t *at, const char *bytes, unsigned n)
{
    memcpy(at, bytes, n);
    return at + n;
}

// Calls `at` with EAX = value and DI = where it is to store.
static uint32_t call(const uint8_t *at, uint32_t value, uint8_t *where)
{
    __asm__ volatile("call *%1" : "+a"(value) : "r"(at), "D"(where) : "memory", "cc", "ecx", "edx");
    return value;
}

#define CODE(at, bytes) code(at, bytes, sizeof bytes - 1)

// mov [di], eax; nop; mov eax, imm; ret: the store changes the immediate of an instruction further on.
static void ahead(void)
{
    for (unsigned gap = 0; gap < 12; gap++) {
        uint8_t *start = page + gap * 64, *p = CODE(start, "\x89\x07");
        for (unsigned i = 0; i < gap; i++)
            p = CODE(p, "\x90");
        uint8_t *immediate = p + 1;
        CODE(p, "\xb8\0\0\0\0\xc3");
        for (uint32_t i = 1; i < 200; i++)
            if (call(start, i * 0x01010101, immediate) != i * 0x01010101)
                end("a store ahead of RIP");
    }
}

// The same behind a branch: test al, 1; mov [di], eax; jnz over a RET; mov eax, imm; ret
static void behind_branches(void)
{
    uint8_t *start = page + 1024, *p = CODE(start, "\x31\xd2\xa8\x01\x89\x07\x75\x03\x83\xc2\x01\xb8");
    uint8_t *immediate = p;
    CODE(p, "\0\0\0\0\x01\xd0\xc3"); // add eax, edx: 1 where AL was even
    for (uint32_t i = 0; i < 2000; i++)
        if (call(start, i * 3, immediate) != i * 3 + !(i * 3 & 1))
            end("a store behind a branch");
    // the store itself lies behind one: test al, 1; jnz to the immediate; mov [di], eax; mov eax, imm; ret
    start = page + 1280;
    p = CODE(start, "\xa8\x01\x75\x02\x89\x07\xb8");
    immediate = p;
    CODE(p, "\0\0\0\0\xc3");
    uint32_t last = 0;
    for (uint32_t i = 0; i < 2000; i++) {
        uint32_t value = i * i * 7 + i / 3;
        last = value & 1 ? last : value;
        if (call(start, value, immediate) != last)
            end("a store behind a branch ahead");
    }
}

// Stores that begin before a block and end in it, and that begin in it and end behind it.
static void over_the_ends(void)
{
    uint8_t *start = page + 1536;
    CODE(start, "\xb8\0\0\0\0\xc3");
    for (uint32_t i = 0; i < 1000; i++) {
        call(start, 0, page);
        word(start - 2, 0xb89090 | i << 24); // two bytes of nothing, MOV, the immediate's first byte
        if (call(start, 0, page) != (i & 0xff))
            end("a store that begins before code");
        word(start + 4, (i & 0x7f) | 0xc300); // the immediate's last byte, RET, two bytes of nothing
        if (call(start, 0, page) != ((i & 0xff) | (i & 0x7f) << 24))
            end("a store that ends behind code");
        start[4] = 0;
    }
}

// A jump to the next page, whose block the store changes first; both pages' code runs before, linked.
static void next_page(void)
{
    uint8_t *start = page + 4096 - 7, *target = page + 4096;
    uint8_t *p = CODE(start, "\x89\x07\xe9");
    word(p, (uint32_t)(target - (p + 4)));
    CODE(target, "\xb8\0\0\0\0\xc3");
    for (uint32_t i = 1; i < 2000; i++)
        if (call(start, i * 77, target + 1) != i * 77)
            end("a store into the next page");
}

// mov eax, imm with every split between two pages; the store before it changes all of the immediate, in both.
static void in_two_pages(void)
{
    for (unsigned head = 1; head < 5; head++) {
        uint8_t *insn = page + 2 * 4096 - head;
        CODE(CODE(insn - 2, "\x89\x07"), "\xb8\0\0\0\0\xc3");
        for (uint32_t i = 1; i < 300; i++)
            if (call(insn - 2, i * 0x1030507, insn + 1) != i * 0x1030507)
                end("a store into an instruction in two pages");
        for (uint32_t i = 1; i < 300; i++) { // from elsewhere, a byte in each page
            insn[1] = (uint8_t)i;
            insn[4] = (uint8_t)(i >> 1);
            uint32_t want;
            __builtin_memcpy(&want, insn + 1, 4);
            if (call(insn, 0, page) != want)
                end("a byte of an instruction in two pages");
        }
    }
}

// A device writes the immediate of mov eax, imm; ret. Then the processor does.
static void by_device(void)
{
    static struct __attribute__((packed)) {
        uint32_t control, length;
        uint64_t address;
    } request __attribute__((aligned(16)));
    uint8_t *start = page + 3 * 4096;
    CODE(start, "\xb8\0\0\0\0\xc3");
    for (uint32_t i = 0; i < 300; i++) {
        uint32_t key = i & 1 ? KEY_SIGNATURE : KEY_ID, got;
        request.control = __builtin_bswap32(key << 16 | DMA_SELECT | DMA_READ);
        request.length = __builtin_bswap32(4);
        request.address = __builtin_bswap64((uintptr_t)start + 1);
        outl(FW_CFG_DMA, 0);
        outl(FW_CFG_DMA + 4, __builtin_bswap32((uint32_t)(uintptr_t)&request));
        while (*(volatile uint32_t *)&request.control)
            ;
        got = call(start, 0, page);
        if (key == KEY_SIGNATURE ? got != 0x554d4551 : got == 0x554d4551 || !got)
            end("code a device has written");
        word(start + 1, i);
        if (call(start, 0, page) != i)
            end("code written after a device's");
    }
}

// A loop whose counter and data lie beside it in its page.
static void data_beside(void)
{
    uint8_t *start = page + 3 * 4096 + 256;
    uint32_t *data = (uint32_t *)(page + 3 * 4096 + 512);
    data[0] = data[1] = 0;
    // 1: inc dword [di]; add [di + 4], eax; dec eax; jnz 1b; mov eax, [di + 4]; ret
    CODE(start, "\xff\x07\x01\x47\x04\xff\xc8\x75\xf7\x8b\x47\x04\xc3");
    for (unsigned i = 1; i <= 10; i++)
        if (call(start, 10000, (uint8_t *)data) != i * 50005000u || data[0] != i * 10000)
            end("data beside code");
}

void payload(void)
{
    timer_start(100, 300);
    irq_on();
    for (unsigned round = 0; round < 3; round++) {
        ahead();
        behind_branches();
        over_the_ends();
        next_page();
        in_two_pages();
        by_device();
        data_beside();
    }
    end(0);
}
