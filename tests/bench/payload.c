// The kernel-mode half of the benchmark: an ELF file entered by PVH, with no kernel under it. Prints, as
// bench.c does,
//   row NAME NANOSECONDS-PER-OPERATION
// on COM1, for what a kernel does often and only a kernel may do. The time comes from the TSC, whose rate is measured
// against the PIT, so that every monitor is timed by the same clock. Ends through the debug-exit port with value 0.
//
// irq_latency_p50 and _p99 are from the time an APIC timer shot is due to the first RDTSC of its handler, while the CPU
// runs a chain of blocks that never leaves by itself: the host's timer and signal are in it.
#include <stdbool.h>
#include <stdint.h>

#define COM1      0x3f8
#define LAPIC     0xfee00000u
#define PIT_HZ    1193182
#define SHOTS     1000
#define ROW_TICKS 200 // milliseconds a row

extern char on_timer[], on_spurious[];
void payload(void);
volatile uint64_t fired_at;

static struct { uint64_t low, high; } idt[256];
static uint64_t ticks_per_ms;
static uint64_t table[512] __attribute__((aligned(4096)));
static uint8_t frame[2][4096] __attribute__((aligned(4096)));
extern uint64_t pd[]; // page directories of the first 4 GiB

static void outb(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }

static uint8_t inb(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static uint64_t tsc(void)
{
    uint32_t low, high;
    __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
}

static volatile uint32_t *lapic(unsigned reg) { return (volatile uint32_t *)(uintptr_t)(LAPIC + reg); }

// ---- output

static void put(const char *s)
{
    for (; *s; s++) {
        while (!(inb(COM1 + 5) & 0x20))
            ;
        outb(COM1, (uint8_t)*s);
    }
}

static void put_number(uint64_t n)
{
    char digits[24], *p = digits + sizeof digits - 1;
    *p = 0;
    do
        *--p = (char)('0' + n % 10);
    while (n /= 10);
    put(p);
}

static void put_row(const char *name, uint64_t picoseconds)
{
    char fraction[5] = {'.', (char)('0' + picoseconds / 100 % 10), (char)('0' + picoseconds / 10 % 10),
                        (char)('0' + picoseconds % 10), 0};
    put("row ");
    put(name);
    put(" ");
    put_number(picoseconds / 1000);
    put(fraction);
    put("\n");
}

static void end(const char *wrong)
{
    if (wrong) {
        put("wrong ");
        put(wrong);
        put("\n");
    } else {
        put("bench ends\n");
    }
    outb(0xf4, wrong != 0);
    for (;;)
        __asm__ volatile("cli; hlt");
}

// ---- rows

static uint8_t mask_seen;

static void in_21h(uint64_t n)
{
    while (n--)
        mask_seen |= (uint8_t)~inb(0x21);
}

static void mov_cr8(uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        __asm__ volatile("mov %0, %%cr8" : : "r"(i & 7));
    __asm__ volatile("mov %0, %%cr8" : : "r"(0ull));
}

__attribute__((noinline)) static uint64_t callee(uint64_t x)
{
    __asm__ volatile("" : "+r"(x));
    return x + 1;
}

static void call_ret(uint64_t n)
{
    uint64_t x = 0;
    for (uint64_t i = 0; i < n; i++)
        x = callee(x);
    if (x != n)
        end("call_ret");
}

// Points one page at another frame and reads through it.
static void pte_invlpg(uint64_t n)
{
    volatile uint8_t *page = (volatile uint8_t *)0x80000000ull;
    for (uint64_t i = 0; i < n; i++) {
        *(volatile uint64_t *)&table[0] = (uintptr_t)frame[i & 1] | 3;
        __asm__ volatile("invlpg %0" : : "m"(*page) : "memory");
        if (*page != (i & 1) + 1)
            end("pte_invlpg");
    }
}

static void row(const char *name, void (*run)(uint64_t n))
{
    uint64_t n = 1, took;
    for (;;) {
        uint64_t start = tsc();
        run(n);
        took = tsc() - start;
        if (took >= ROW_TICKS * ticks_per_ms)
            break;
        n = took < ticks_per_ms ? n * 16 : n * (ROW_TICKS * ticks_per_ms) / took * 5 / 4 + 1;
    }
    // took / ticks_per_ms milliseconds are 1e9 times as many picoseconds; in two steps, to fit
    put_row(name, took * 1000000 / n * 1000 / ticks_per_ms);
}

// ---- time

// Ticks of the TSC and of the APIC's timer in 50 ms of PIT channel 2.
static uint64_t calibrate(uint32_t *apic)
{
    const unsigned count = PIT_HZ / 20;
    outb(0x61, (uint8_t)((inb(0x61) & ~3) | 1)); // gate on, speaker off
    outb(0x43, 0xb0);                            // channel 2, mode 0
    outb(0x42, count & 0xff);
    outb(0x42, count >> 8);
    *lapic(0x380) = 0xffffffff;
    uint64_t start = tsc();
    while (!(inb(0x61) & 0x20))
        ;
    uint64_t took = tsc() - start;
    *apic = 0xffffffff - *lapic(0x390);
    return took;
}

static void gate(unsigned vector, const char *handler)
{
    uint64_t at = (uintptr_t)handler;
    idt[vector].low = (at & 0xffff) | 8ull << 16 | 0x8eull << 40 | (at >> 16 & 0xffff) << 48;
    idt[vector].high = at >> 32;
}

static void interrupts_on(void)
{
    struct __attribute__((packed)) { uint16_t limit; uint64_t base; } idtr = {sizeof idt - 1, (uintptr_t)idt};
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    gate(0x40, on_timer);
    gate(0xff, on_spurious);
    __asm__ volatile("lidt %0" : : "m"(idtr));
    *lapic(0xf0) = 0x1ff;  // enabled, spurious vector
    *lapic(0x3e0) = 0xb;   // divide by 1
    *lapic(0x320) = 0x40;  // one shot
}

static void irq_latency(uint64_t tsc_in_50ms, uint64_t apic_in_50ms)
{
    static uint64_t late[SHOTS];
    for (unsigned i = 0; i < SHOTS; i++) {
        uint64_t wait = apic_in_50ms / 250 + apic_in_50ms / 50000 * (i % 37); // 200 µs and up
        fired_at = 0;
        uint64_t armed = tsc();
        *lapic(0x380) = (uint32_t)wait;
        __asm__ volatile("sti" : : : "memory");
        for (volatile uint64_t *at = &fired_at; !*at;)
            callee(i);
        __asm__ volatile("cli" : : : "memory");
        uint64_t due = armed + wait * tsc_in_50ms / apic_in_50ms;
        uint64_t x = fired_at > due ? fired_at - due : 0;
        unsigned j = i;
        for (; j && late[j - 1] > x; j--)
            late[j] = late[j - 1];
        late[j] = x;
    }
    put_row("irq_latency_p50", late[SHOTS / 2] * 1000000000 / ticks_per_ms);
    put_row("irq_latency_p99", late[SHOTS * 99 / 100] * 1000000000 / ticks_per_ms);
}

void payload(void)
{
    uint32_t apic;
    put("bench begins\n");
    interrupts_on();
    calibrate(&apic); // warms up
    uint64_t ticks = calibrate(&apic);
    ticks_per_ms = ticks / 50;
    frame[0][0] = 1;
    frame[1][0] = 2;
    pd[1024] = (uintptr_t)table | 3; // 2 GiB: 4 KiB pages
    table[0] = (uintptr_t)frame[0] | 3;
    __asm__ volatile("mov %%cr3, %%rax; mov %%rax, %%cr3" : : : "rax", "memory");
    row("in_21h", in_21h);
    row("mov_cr8", mov_cr8);
    row("call_ret", call_ret);
    row("pte_invlpg", pte_invlpg);
    if (mask_seen)
        end("in_21h");
    irq_latency(ticks, apic);
    end(0);
}
