// Faults of every kind in the middle of code, repeated string instructions, single steps and a timer, for ever in new order:
// a course in which every count of instructions has a state of its own. The exception handler goes on where RBX says. 64-bit.
// In a deterministic run the TSC is the count, which must be what the manual says (SDM 3B, INST_RETIRED): the guest ends with a
// word on what was counted otherwise, and needs such a run.
#include "bare.h"

#define HPET  ((volatile uint64_t *)0xfed000f0)
#define LAPIC ((volatile uint32_t *)0xfee00390)
#define HOLE  0x700000000ull // beyond what start.S maps

void on_fault(void), on_fault_with_error(void), on_trap(void), on_soft(void);
__asm__(".text\n"
        "on_fault_with_error: addq $8, %rsp\n"
        "on_fault: incq faults; movq %rbx, (%rsp); iretq\n"
        "on_trap: incq traps; iretq\n"
        "on_soft: incq softs; iretq\n");
#define HANDLER 3 // instructions of on_fault
volatile unsigned long faults, traps, softs;

// Before the instruction that faults, and behind it.
#define FAULT(code) "leaq 9f(%%rip), %%rbx\n\t" code "\n9:\n\t"

struct idt { // as the processor has it
    uint16_t limit;
    struct {
        uint16_t low, selector, type, middle;
        uint32_t high, zero;
    } *gate;
} __attribute__((packed));

static uint8_t from[3 * 4096], to[3 * 4096];
static uint8_t image[4096] __attribute__((aligned(64)));
static unsigned long sum;

static void set_gate(struct idt *idt, unsigned vector, void (*handler)(void))
{
    uintptr_t at = (uintptr_t)handler;
    idt->gate[vector].low = (uint16_t)at;
    idt->gate[vector].middle = (uint16_t)(at >> 16);
    idt->gate[vector].high = (uint32_t)(at >> 32);
}

// TSC cycles from one RDTSC to the next with `code` between them, which may use all registers that are named.
#define CYCLES(code)                                                                                                        \
    ({                                                                                                                      \
        uint32_t from_, to_;                                                                                                \
        __asm__ volatile("rdtsc\n\tmovl %%eax, %%r8d\n\t" code "rdtsc\n\tmovl %%eax, %1\n\tmovl %%r8d, %0"                  \
                         : "=&r"(from_), "=&r"(to_)                                                                         \
                         :                                                                                                  \
                         : "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "memory", "cc");                                 \
        to_ - from_ - 2;                                                                                                    \
    })

static void count(const char *what, uint32_t got, uint32_t want)
{
    if (got == want)
        return;
    put("counted "), put_number(got), put(" instead of "), put_number(want), put("\n");
    end(what);
}

// With interrupts off.
static void counts(void)
{
    count("nothing", CYCLES(""), 0);
    count("plain instructions", CYCLES("nop\n\taddl $1, %%eax\n\tpushq %%rax\n\tpopq %%rax\n\t"), 4);
    count("a branch taken", CYCLES("cmpl %%eax, %%eax\n\tje 1f\n\tnop\n\tnop\n\t1: "), 2);
    count("a branch not taken", CYCLES("cmpl %%eax, %%eax\n\tjne 1f\n\tnop\n\tnop\n\t1: "), 4);
    count("a loop", CYCLES("movl $1000, %%ecx\n\t1: nop\n\tdecl %%ecx\n\tjnz 1b\n\t"), 3001);
    count("LOOP", CYCLES("movl $100, %%ecx\n\t1: loop 1b\n\t"), 101);
    count("call and return", CYCLES("jmp 2f\n\t1: nop\n\tret\n\t2: call 1b\n\tleaq 1b(%%rip), %%rcx\n\tcall *%%rcx\n\t"), 8);
    count("a repeated instruction", CYCLES("leaq to(%%rip), %%rdi\n\tmovl $5000, %%ecx\n\trep stosb\n\t"), 3);
    count("a repeated instruction without a repetition", CYCLES("leaq to(%%rip), %%rdi\n\txorl %%ecx, %%ecx\n\trep stosb\n\t"), 3);
    count("a compare that ends early",
          CYCLES("leaq to(%%rip), %%rdi\n\tleaq from(%%rip), %%rsi\n\tmovl $100, %%ecx\n\trepe cmpsb\n\t"), 4);
    count("a page fault", CYCLES("movl $0x70000000, %%esi\n\tshlq $8, %%rsi\n\t" FAULT("addq $5, (%%rsi)") "nop\n\t"), 4 + 1 + HANDLER);
    count("an invalid instruction", CYCLES("nop\n\t" FAULT("ud2") "nop\n\t"), 3 + HANDLER);
    count("INT n", CYCLES("int $0x30\n\t"), 1 + 2);
    count("CPUID", CYCLES("xorl %%eax, %%eax\n\tcpuid\n\t"), 2);
    count("port access", CYCLES("movl $0x402, %%edx\n\tinb %%dx, %%al\n\t"), 2);
    count("repeated output", CYCLES("leaq from(%%rip), %%rsi\n\tmovl $0x402, %%edx\n\tmovl $9, %%ecx\n\trep outsb\n\t"), 4);
    count("an access of a device", CYCLES("movl $0xfed000f0, %%esi\n\tmovq (%%rsi), %%rcx\n\taddl (%%rsi), %%ecx\n\t"), 3);
    count("an access across pages", CYCLES("leaq from+4095(%%rip), %%rsi\n\tandq $-4096, %%rsi\n\tmovq -3(%%rsi), %%rcx\n\tmovq %%rcx, -3(%%rsi)\n\t"), 4);
}

static void faulting(uint64_t n)
{
    uint64_t hole = HOLE + n * 8, twice = 2;
    __asm__ volatile("addq %1, %0\n\t" FAULT("movq (%2), %%rcx") "adcq $5, %0\n\t" FAULT("movq %%rcx, (%2)")
                     "pushq %0\n\tpushq %1\n\t" FAULT("pushq (%2)") "popq %1\n\tpopq %0\n\t"
                     FAULT("addq %1, (%2)") "rolq $3, %0\n\t" FAULT("ud2") "xorl %%edx, %%edx\n\txorl %%ecx, %%ecx\n\t"
                     "movl %k1, %%eax\n\tcmpq $7, %%rax\n\tjb 1f\n\t" FAULT("divl %%ecx") "1: incq %0\n\t"
                     FAULT("call *(%2)") FAULT("jmp *(%2)") "addq $1, %0\n\tint3\n\tint $0x30\n\tadcq $0, %0\n\t"
                     "movq $0x1234567812345678, %%rcx\n\t" FAULT("jmp *%%rcx")
                     FAULT("movdqa 1(%3), %%xmm3") "testq $1, %1\n\tjz 2f\n\t" FAULT("movups %%xmm3, (%2)") "2: subq %1, %0\n\t"
                     FAULT("rdmsr") FAULT("lock incl (%2)") "addq $3, %0\n"
                     : "+r"(sum), "+r"(twice) : "r"(hole), "r"(image) : "rax", "rbx", "rcx", "rdx", "memory", "cc");
}

static void strings(uint64_t n)
{
    void *s = from + 4096 - n % 97, *d = to + 4096 - n % 61;
    uint64_t count = n % 300;
    __asm__ volatile("rep movsb" : "+S"(s), "+D"(d), "+c"(count) : : "memory");
    s = from + 4096 - n % 97, d = to + 4096 - n % 61, count = n % 300 + 1;
    __asm__ volatile("repe cmpsb" : "+S"(s), "+D"(d), "+c"(count) : : "memory", "cc");
    sum += count;
    d = from + 8192 - n % 90, count = n % 40;
    __asm__ volatile("rep stosq" : "+D"(d), "+c"(count) : "a"(n) : "memory");
    d = to, count = 200;
    __asm__ volatile("repne scasb" : "+D"(d), "+c"(count) : "a"(n & 3) : "memory", "cc");
    sum += count;
    s = from, count = n % 7;
    __asm__ volatile("rep lodsq" : "+S"(s), "+c"(count), "+a"(sum) : : "memory");
    s = (void *)"string\n", count = 7;
    __asm__ volatile("rep outsb" : "+S"(s), "+c"(count) : "d"(0x402) : "memory");
    s = from, d = (void *)HOLE, count = 5;
    __asm__ volatile(FAULT("rep movsb") : "+S"(s), "+D"(d), "+c"(count) : : "rbx", "memory");
    s = from, d = (void *)(0x100000000ull - 20), count = 60; // into the hole after some
    __asm__ volatile(FAULT("rep stosb") : "+D"(d), "+c"(count) : "a"(n) : "rbx", "memory");
    sum += count;
}

static void single_steps(uint64_t n)
{
    __asm__ volatile("pushfq\n\torq $0x100, (%%rsp)\n\tpopfq\n\taddq %1, %0\n\tpushq %0\n\tpopq %1\n\tmovl $3, %%ecx\n\t"
                     "leaq %2, %%rdi\n\trep stosb\n\t1: decl %%eax\n\tjnz 1b\n\tpushfq\n\tandq $~0x100, (%%rsp)\n\tpopfq"
                     : "+r"(sum), "+r"(n), "=m"(*to) : "a"(3) : "rcx", "rdi", "memory", "cc");
}

static void clocks(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    sum += low + *HPET + *LAPIC;
    __asm__ volatile("addq (%1), %0\n\tadcq %2, %0" : "+r"(sum) : "r"(HPET), "m"(sum) : "cc");
}

static void crossing(uint64_t n)
{
    *(volatile uint64_t *)(from + 4096 - n % 9) += n;
    sum += *(volatile uint32_t *)(to + 8192 - n % 5);
    __asm__ volatile("movdqu %1, %%xmm2\n\tmovq %%xmm2, %0" : "=r"(n) : "m"(from[8192 - 7]));
    sum ^= n;
}

static void images(uint64_t n)
{
    double x = (double)0;
    __asm__ volatile("fldpi\n\tfldl %0\n\tfaddp\n\tfstpl %0" : "+m"(x));
    __asm__ volatile("fnstenv %0" : "=m"(image));
    sum = sum * 31 + ((uint32_t *)image)[n % 7];
    __asm__ volatile("xorl %%edx, %%edx\n\tmovl $7, %%eax\n\txsave %0" : "+m"(image) : : "rax", "rdx");
    sum += *(uint64_t *)(image + 512);
}

static uint8_t code[64] __attribute__((aligned(64)));

static void changing(uint64_t n)
{
    static const uint8_t text[] = {0xb8, 0, 0, 0, 0, 0x83, 0xc0, 5, 0xc3}; // mov eax, n; add eax, 5; ret
    for (unsigned i = 0; i < sizeof text; i++)
        ((volatile uint8_t *)code)[i] = text[i];
    *(volatile uint32_t *)(code + 1) = (uint32_t)n;
    sum += ((uint32_t (*)(void))(uintptr_t)code)();
}

static void waiting(void)
{
    __asm__ volatile("cli\n\tnop\n\tsti\n\thlt\n\tcli\n\tsti\n\tnop" : : : "memory");
}

void payload(void)
{
    struct idt idt;
    uint32_t state = 12345;
    timer_start(2, 7);
    __asm__ volatile("sidt %0" : "=m"(idt));
    for (unsigned vector = 0; vector < 32; vector++)
        set_gate(&idt, vector, vector == 1 ? on_trap : vector == 3 ? on_soft : vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 ? on_fault_with_error : on_fault);
    idt.gate[0x30] = idt.gate[0];
    set_gate(&idt, 0x30, on_soft);
    for (unsigned i = 0; i < sizeof from; i++)
        from[i] = (uint8_t)mix(&state);
    irq_off();
    *(volatile uint32_t *)0xfee00380 = 0;
    counts();
    *(volatile uint32_t *)0xfee00380 = 10000;
    irq_on();
    for (unsigned i = 0; i < 12000; i++) {
        uint32_t n = mix(&state) & 0xffff;
        switch (n % 8) {
        case 0: faulting(n >> 3); break;
        case 1: strings(n >> 3); break;
        case 2: single_steps(n >> 3); break;
        case 3: clocks(); break;
        case 4: crossing(n >> 3); break;
        case 5: images(n >> 3); break;
        case 6: changing(n >> 3); break;
        default:
            if (n % 64 == 7) // most interrupts come elsewhere
                waiting();
            break;
        }
    }
    put_number(sum), put(" "), put_number(faults), put(" "), put_number(traps), put(" "), put_number(softs), put(" "), put_number(ticks), put("\n");
    end(0);
}
