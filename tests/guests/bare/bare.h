// What guests without a kernel share: output on COM1, the end through the debug-exit port, and a timer that
// interrupts at intervals that vary. start.S makes the machine; the guest has payload().
#pragma once
#include <stdbool.h>
#include <stdint.h>

void payload(void);

// ---- bare.c
void put(const char *s);
void put_number(unsigned long n);
_Noreturn void end(const char *wrong); // null: all is well
void *memset(void *to, int value, unsigned long n);
void *memcpy(void *to, const void *from, unsigned long n);

// Interrupts every `from_us` to `to_us` microseconds, as soon as IF is set.
void timer_start(unsigned from_us, unsigned to_us);
extern volatile unsigned long ticks; // interrupts until now

// Two counts that differ only while interrupts are off: the handler looks at them.
extern volatile uint32_t guarded[2];

static inline void outb(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}
static inline void outl(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}
static inline void irq_off(void)
{
    __asm__ volatile("cli" : : : "memory");
}
static inline void irq_on(void)
{
    __asm__ volatile("sti" : : : "memory");
}

static inline uint8_t inb(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint32_t mix(uint32_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}
