#include "bare.h"

#define COM1   0x3f8
#define LAPIC  0xfee00000u
#define PIT_HZ 1193182

struct frame { // what start.S has pushed on what the processor has
#ifdef __x86_64__
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax, ip, cs, flags;
#else
    uint32_t edi, esi, ebp, esp, ebx, edx, ecx, eax, ip, cs, flags;
#endif
};

extern char on_timer[], on_spurious[], on_exception[];
extern const uint32_t __start_shadows[] __attribute__((weak)), __stop_shadows[] __attribute__((weak));
void tick(const struct frame *f);
_Noreturn void exception(void);

volatile unsigned long ticks;
volatile uint32_t guarded[2];

static struct {
    uint32_t word[sizeof(long) / 2];
} idt[256];
static uint32_t apic_per_ms, from_apic, span_apic, random = 1;

static volatile uint32_t *lapic(unsigned reg)
{
    return (volatile uint32_t *)(uintptr_t)(LAPIC + reg);
}

void put(const char *s)
{
    for (; *s; s++) {
        while (!(inb(COM1 + 5) & 0x20))
            ;
        outb(COM1, (uint8_t)*s);
    }
}

void put_number(unsigned long n)
{
    char digits[24], *p = digits + sizeof digits - 1;
    *p = 0;
    do
        *--p = (char)('0' + n % 10);
    while (n /= 10);
    put(p);
}

_Noreturn void end(const char *wrong)
{
    irq_off();
    if (wrong) {
        put("wrong: ");
        put(wrong);
        put("\n");
    }
    outb(0xf4, wrong != 0);
    for (;;)
        __asm__ volatile("cli; hlt");
}

void *memset(void *to, int value, unsigned long n)
{
    void *p = to;
    __asm__ volatile("rep stosb" : "+D"(p), "+c"(n) : "a"(value) : "memory");
    return to;
}

void *memcpy(void *to, const void *from, unsigned long n)
{
    void *p = to;
    __asm__ volatile("rep movsb" : "+D"(p), "+S"(from), "+c"(n) : : "memory");
    return to;
}

_Noreturn void exception(void)
{
    end("an exception");
}

// The timer's interrupt. What it may not interrupt, it tells.
void tick(const struct frame *f)
{
    ticks++;
    if (!(f->flags & 0x200))
        end("an interrupt with IF clear");
    if (guarded[0] != guarded[1])
        end("an interrupt between CLI and STI");
    for (const uint32_t *s = __start_shadows; s < __stop_shadows; s++)
        if (f->ip == *s) {
            put("at ");
            put_number(f->ip);
            put("\n");
            end("an interrupt in the shadow of STI");
        }
#ifdef __x86_64__
    if (!(ticks & 15)) // now and then everything known of pages is lost
        __asm__ volatile("mov %%cr3, %%rax; mov %%rax, %%cr3" : : : "rax", "memory");
#endif
    *lapic(0xb0) = 0; // EOI
    *lapic(0x380) = from_apic + mix(&random) % span_apic;
}

static void gate(unsigned vector, const char *handler)
{
    uintptr_t at = (uintptr_t)handler;
    idt[vector].word[0] = (uint32_t)(at & 0xffff) | 8u << 16;
    idt[vector].word[1] = (uint32_t)(at & 0xffff0000) | 0x8e00;
#ifdef __x86_64__
    idt[vector].word[2] = (uint32_t)(at >> 32);
#endif
}

// Ticks of the APIC's timer in 10 ms of PIT channel 2.
static uint32_t calibrate(void)
{
    const unsigned count = PIT_HZ / 100;
    outb(0x61, (uint8_t)((inb(0x61) & ~3) | 1)); // gate on, speaker off
    outb(0x43, 0xb0);                            // channel 2, mode 0
    outb(0x42, count & 0xff);
    outb(0x42, count >> 8);
    *lapic(0x380) = 0xffffffff;
    while (!(inb(0x61) & 0x20))
        ;
    return 0xffffffff - *lapic(0x390);
}

void timer_start(unsigned from_us, unsigned to_us)
{
    struct __attribute__((packed)) {
        uint16_t limit;
        uintptr_t base;
    } idtr = {sizeof idt - 1, (uintptr_t)idt};
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    for (unsigned vector = 0; vector < 32; vector++)
        gate(vector, on_exception);
    gate(0x40, on_timer);
    gate(0xff, on_spurious);
    __asm__ volatile("lidt %0" : : "m"(idtr));
    *lapic(0xf0) = 0x1ff;    // enabled, spurious vector
    *lapic(0x3e0) = 0xb;     // divide by 1
    *lapic(0x320) = 0x10040; // masked
    calibrate();             // warms up
    apic_per_ms = calibrate() / 10;
    from_apic = apic_per_ms * from_us / 1000;
    span_apic = apic_per_ms * (to_us - from_us) / 1000 + 1;
    *lapic(0x320) = 0x40; // one shot
    *lapic(0x380) = from_apic;
}
