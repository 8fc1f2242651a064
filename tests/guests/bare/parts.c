// Each thing that a planted bug (cpu/planted.h) gets wrong, once, but for accessed and dirty bits, which start.S comes to. For
// diverge.py. 64-bit.
#include "bare.h"

#define WINDOW 0x40000000ull // a page of the one-to-one mapping that is mapped anew here

static uint8_t area[2 * 4096] __attribute__((aligned(4096)));
static uint64_t table[512] __attribute__((aligned(4096)));
static unsigned long sum, result[32]; // what is found out stays
unsigned long error_code[8], *next_error = error_code;

void on_page_fault(void), on_call(void);
__asm__(".text\n"
        "on_page_fault: pushq %rax; pushq %rcx; movq next_error, %rcx; movq 16(%rsp), %rax; movq %rax, (%rcx); addq $8, next_error\n"
        "popq %rcx; popq %rax; addq $8, %rsp; movq %rbx, (%rsp); iretq\n"
        "on_call: iretq\n");

static struct gate {
    uint16_t low, selector, type, middle;
    uint32_t high, zero;
} gates[64];

static void set_gate(unsigned vector, void (*handler)(void))
{
    uintptr_t at = (uintptr_t)handler;
    gates[vector] = (struct gate){(uint16_t)at, 8, 0x8e00, (uint16_t)(at >> 16), (uint32_t)(at >> 32), 0};
}

// The 2 MiB at WINDOW by pages of 4 KiB; all of them lead to `area`.
static void map_window(void)
{
    uint64_t *pml4, *pdpt, *pd;
    __asm__ volatile("movq %%cr3, %0" : "=r"(pml4));
    pdpt = (uint64_t *)(pml4[0] & ~0xfffull);
    pd = (uint64_t *)(pdpt[WINDOW >> 30] & ~0xfffull);
    for (unsigned i = 0; i < 512; i++)
        table[i] = (uintptr_t)area | 3;
    pd[WINDOW >> 21 & 511] = (uintptr_t)table | 3;
    __asm__ volatile("movq %0, %%cr3" : : "r"(pml4) : "memory");
}

void payload(void)
{
    static uint8_t image[512] __attribute__((aligned(16)));
    struct __attribute__((packed)) {
        uint16_t limit;
        struct gate *base;
    } idtr = {sizeof gates - 1, gates};
    uint32_t selector = 8, value = 0;
    set_gate(14, on_page_fault);
    set_gate(0x30, on_call);
    __asm__ volatile("lidt %0" : : "m"(idtr));
    map_window();
    area[0] = 1, area[4096] = 2;
    __asm__ volatile("movzbl (%1), %0" : "=r"(value) : "r"(WINDOW + 3 * 4096) : "memory");
    table[3] = (uintptr_t)(area + 4096) | 0x63;
    __asm__ volatile("invlpg (%0)" : : "r"(WINDOW + 3 * 4096) : "memory");
    __asm__ volatile("lodsb" : "+a"(value) : "S"(WINDOW + 3 * 4096) : "memory");                 // stale_tlb
    sum += value;
    __asm__ volatile("leaq 1f(%%rip), %%rbx\n\trorl $1, (%0)\n1:" : : "r"(0x700000000ull) : "rbx", "memory", "cc"); // error_code
    __asm__ volatile("leaq 1f(%%rip), %%rbx\n\ttestl $1, (%0)\n1:" : : "r"(0x700000000ull) : "rbx", "memory", "cc"); // fault_address
    memset(area, 255, sizeof area);
    __asm__ volatile("sidt %0" : "=m"(area[4096 - 3]));                                          // memory_write
    __asm__ volatile("wrmsr" : : "c"(0xc0000102), "a"(0x1000), "d"(0));                           // msr
    __asm__ volatile("inb %w1, %b0" : "+a"(value) : "d"(0x402));                                  // port_value
    result[0] = value;
    __asm__ volatile("int $0x30\n\tnop\n\tnop");                                                  // return_address
    __asm__ volatile("lsll %1, %0" : "=a"(value) : "r"(selector) : "cc");                         // segment_limit
    result[1] = value;
    __asm__ volatile("larl %2, %0\n\tsetz %b1" : "=&r"(value), "+&r"(result[2]) : "r"(selector) : "cc"); // zero_flag
    __asm__ volatile("sgdt %0" : "=m"(area[100]));                                                // table_limit
    __asm__ volatile("rdtsc" : "=a"(value) : : "rdx");                                            // time_stamp
    sum += value;
    __asm__ volatile("fxsave %0\n\tfxrstor %0" : "+m"(image));                                    // vector_register
    __asm__ volatile("movq %0, %%dr1" : : "r"(0x1000ull));                                        // debug_register
    end(sum ? 0 : "nothing was summed");
}
