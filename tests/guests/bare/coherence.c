// Page tables that change in every way the manual allows, and what accesses then do (SDM vol. 3, 4.10). A
// window of four PDEs, each a large page or one of four page tables that they share, is changed at random: by
// plain, locked, partial and string stores, to the tables themselves or through pages that map them, from
// kernel and user mode. Flushes come now and then. Each access is held against a model of what the processor
// may have kept since: it must do what some translation of that time says, and what the tables say now if
// nothing older can be left. Pages hold code, which runs.
#include "bare.h"

#define P  1ul
#define W  2ul
#define U  4ul
#define A  0x20ul
#define D  0x40ul
#define PS 0x80ul
#define NX (1ul << 63)

#define WINDOW  0x8000000000ul // of what changes; behind it two PDEs that stay
#define ALIAS   (WINDOW + 4 * LARGE)
#define FIXED   (WINDOW + 5 * LARGE) // user code and stack
#define LARGE   0x200000ul
#define FRAMES  0x4000000ul // two large pages
#define TAG     0x7a00000000ul
#define ADDRESS 0x000ffffffffff000ul
#define STEPS   60000
#define PDES    4
#define TABLES  4
#define PLACES  8
#define KEPT    12

enum { READ, WRITE, EXECUTE, USER = 3 };

struct translation { // of a page
    uint64_t frame;
    bool w, u, nx;
};

static uint64_t pdpt[512] __attribute__((aligned(4096))), pd[512] __attribute__((aligned(4096)));
static uint64_t table[TABLES][512] __attribute__((aligned(4096)));
static uint64_t alias[512] __attribute__((aligned(4096))), fixed[512] __attribute__((aligned(4096)));
static uint8_t user[3][4096] __attribute__((aligned(4096))), kernel_stack[8192] __attribute__((aligned(16)));
static const unsigned place[PLACES] = {0, 1, 7, 64, 200, 256, 510, 511};

// What may be kept: the PDEs since the paging-structure caches were flushed, and the translations of each
// page.
static uint64_t old_pde[PDES][KEPT];
static unsigned old_pdes[PDES];
static struct translation kept[PDES][PLACES][KEPT];
static unsigned kept_count[PDES][PLACES];
static bool changed[PDES][PLACES]; // one of its entries, since it was flushed: accessed and dirty bits may be
                                   // kept too
static unsigned long bits_seen;
static unsigned long step, faults, successes, older;
static uint32_t seed = 0x2545f491;

extern uint8_t user_code[], on_page_fault[], on_back[], user_code_end[];
uint64_t go(unsigned kind, uint64_t la, uint64_t value);
uint64_t saved_rsp, fault_error, fault_address;
extern uint64_t user_rip; // of the copy of user_code to be used

// go(): one access; RAX as it was left there, and fault_error -1 if there was no fault.
__asm__(".text\n"
        ".globl go\n"
        "go: pushq %rbx; pushq %rbp; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
        "    movq %rsp, saved_rsp; movq $-1, fault_error; xorl %eax, %eax\n"
        "    cmpl $3, %edi; jae 4f; cmpl $1, %edi; je 1f; ja 2f\n"
        "    movq (%rsi), %rax; jmp back\n"
        "1:  movq %rdx, (%rsi); jmp back\n"
        "2:  call *%rsi; jmp back\n"
        "4:  pushq $0x2b; pushq user_rsp; pushq $0x202; pushq $0x33\n"
        "    leal -3(%rdi), %ecx; shll $4, %ecx; addq user_rip, %rcx; pushq %rcx; movq %rsi, %rdi; iretq\n"
        "on_page_fault: popq fault_error; movq %cr2, %rcx; movq %rcx, fault_address; jmp back\n"
        "on_back:\n"
        "back: movq saved_rsp, %rsp; popq %r15; popq %r14; popq %r13; popq %r12; popq %rbp; popq %rbx; ret\n"
        ".balign 16\n"
        "user_code: movq (%rdi), %rax; int $0x81; .balign 16\n"
        "    movq %rdx, (%rdi); int $0x81; .balign 16\n"
        "    call *%rdi; int $0x81; .balign 16\n"
        "user_code_end:\n"
        ".data\n.balign 8\nuser_rip: .quad 0\nuser_rsp: .quad 0x8000a03000\n.text\n");

static uint32_t any(uint32_t n)
{
    return mix(&seed) % n;
}

static uint64_t address(unsigned i, unsigned j)
{
    return WINDOW + i * LARGE + place[j] * 4096ul;
}

_Noreturn static void wrong(const char *what, unsigned kind, uint64_t la)
{
    put("step ");
    put_number(step);
    put(", kind ");
    put_number(kind);
    put(", page ");
    put_number((la - WINDOW) / 4096);
    put(", error ");
    put_number(fault_error);
    put("\n");
    end(what);
}

// ---- the model
static bool walk(uint64_t pde, unsigned index, struct translation *t)
{
    uint64_t pte = U | W | P;
    if (!(pde & P))
        return false;
    if (pde & PS) {
        t->frame = (pde & ADDRESS & -LARGE) + index * 4096ul;
    } else {
        pte = ((volatile uint64_t *)(pde & ADDRESS))[index];
        if (!(pte & P))
            return false;
        t->frame = pte & ADDRESS;
    }
    t->w = pde & pte & W;
    t->u = pde & pte & U;
    t->nx = (pde | pte) & NX;
    return true;
}

static void keep(unsigned i, unsigned j, const struct translation *t)
{
    struct translation *k = kept[i][j];
    for (unsigned n = 0; n < kept_count[i][j]; n++)
        if (k[n].frame == t->frame && k[n].w == t->w && k[n].u == t->u && k[n].nx == t->nx)
            return;
    k[kept_count[i][j]++] = *t;
}

static void flush_all(void);

// The tables are as they may be looked at from now on.
static void note(void)
{
    struct translation t;
    bool full = false;
    for (unsigned i = 0; i < PDES; i++) {
        uint64_t pde = ((volatile uint64_t *)pd)[i] & ~(A | D);
        bool is_new = true;
        for (unsigned n = 0; n < old_pdes[i]; n++)
            is_new &= old_pde[i][n] != pde;
        if (is_new)
            old_pde[i][old_pdes[i]++] = pde;
        full |= old_pdes[i] == KEPT;
        for (unsigned j = 0; j < PLACES; j++)
            for (unsigned n = 0; n < old_pdes[i]; n++) {
                if (walk(old_pde[i][n], place[j], &t))
                    keep(i, j, &t);
                if (kept_count[i][j] >= KEPT - 1) {
                    full = true;
                    break;
                }
            }
    }
    if (full)
        flush_all();
}

static void forget_pdes(void)
{
    for (unsigned i = 0; i < PDES; i++)
        old_pdes[i] = 0;
}

static void flush_all(void)
{
    __asm__ volatile("mov %%cr3, %%rax; mov %%rax, %%cr3" : : : "rax", "memory");
    forget_pdes();
    for (unsigned i = 0; i < PDES; i++)
        for (unsigned j = 0; j < PLACES; j++)
            kept_count[i][j] = 0, changed[i][j] = false;
    note();
}

static void flush_page(unsigned i, unsigned j)
{
    __asm__ volatile("invlpg (%0)" : : "r"(address(i, j)) : "memory");
    forget_pdes(); // of every address
    kept_count[i][j] = 0;
    changed[i][j] = false;
    note();
}

// ---- changes
// Where the tables, and the PD, are mapped for good.
static uint64_t in_alias(const uint64_t *entry)
{
    uint64_t at = (uintptr_t)entry;
    uint64_t page = at - (uintptr_t)table < sizeof table ? (at - (uintptr_t)table) / 4096 : TABLES;
    return ALIAS + page * 4096 + at % 4096;
}

static void change(uint64_t *entry, uint64_t value)
{
    for (unsigned i = 0; i < PDES; i++)
        for (unsigned j = 0; j < PLACES; j++)
            changed[i][j] |= entry == &pd[i] ||
                             (!(entry >= pd && entry < pd + 512) && (uintptr_t)entry % 4096 / 8 == place[j]);
    volatile uint32_t *half = (volatile uint32_t *)entry;
    uint64_t *to = entry, count = 1;
    switch (any(8)) {
    case 0: __asm__ volatile("lock xchg %0, %1" : "+r"(value), "+m"(*entry)); break;
    case 1: // the half with P last, or first
        half[0] = 0;
        note();
        half[1] = (uint32_t)(value >> 32);
        half[0] = (uint32_t)value;
        break;
    case 2: __asm__ volatile("rep stosq" : "+D"(to), "+c"(count) : "a"(value) : "memory"); break;
    case 3: *(volatile uint64_t *)in_alias(entry) = value; break;
    case 4: go(WRITE + USER, in_alias(entry), value); break;
    case 5:
        half[0] = 0;
        note();
        for (unsigned i = 8; i-- > 1;)
            ((volatile uint8_t *)entry)[i] = (uint8_t)(value >> 8 * i);
        *(volatile uint8_t *)entry = 0;
        for (unsigned i = 1; i < 8; i++)
            ((volatile uint8_t *)entry)[i] = (uint8_t)(value >> 8 * i);
        *(volatile uint8_t *)entry = (uint8_t)value;
        break;
    default: *(volatile uint64_t *)entry = value; break;
    }
    note();
}

static uint64_t some_flags(void)
{
    uint32_t bits = mix(&seed);
    return (bits & 7 ? P : 0) | (bits & 8 ? W : 0) | (bits & 0x30 ? U : 0) | (bits & 0x40 ? A : 0) |
           (bits & 0x80 ? D : 0) | ((bits & 0x300) == 0 ? NX : 0);
}

static void change_pte(void)
{
    uint64_t *entry = &table[any(TABLES)][place[any(PLACES)]];
    uint32_t how = any(4);
    uint64_t frame = FRAMES + any(2) * LARGE + place[any(PLACES)] * 4096ul;
    if (how == 0) // only what is allowed
        frame = *entry & ADDRESS ? *entry & ADDRESS : frame;
    change(entry, frame | some_flags());
}

static void change_pde(void)
{
    uint32_t how = any(4);
    uint64_t to = how ? (uintptr_t)table[any(TABLES)] : (FRAMES + any(2) * LARGE) | PS;
    uint64_t flags = some_flags();
    if (any(2)) // mostly the PTEs decide
        flags = P | W | U;
    change(&pd[any(PDES)], to | (to & PS ? flags : flags & ~D));
}

// ---- accesses
static bool allows(const struct translation *t, unsigned kind)
{
    unsigned what = kind % USER;
    return (kind < USER || t->u) && (what != WRITE || t->w) && (what != EXECUTE || !t->nx);
}

static void access(void)
{
    unsigned i = any(PDES), j = any(PLACES), kind = any(6), what = kind % USER;
    uint64_t la = address(i, j),
             at = la + (what == WRITE     ? 8
                        : what == EXECUTE ? 16
                                          : 0),
             value = step << 8 | kind;
    struct translation now;
    bool present = walk(pd[i], place[j], &now), may_miss = !present, good = false;
    bool certain = !changed[i][j];
    uint64_t *pte = pd[i] & P && !(pd[i] & PS) ? (uint64_t *)(pd[i] & ADDRESS) + place[j] : &pd[i];
    uint64_t before = *(volatile uint64_t *)pte;
    for (unsigned n = 0; n < old_pdes[i]; n++) {
        struct translation t;
        may_miss |= !walk(old_pde[i][n], place[j], &t);
    }
    user_rip = FIXED + (any(8) ? 0 : 4096);
    uint64_t got = go(kind, at, value);
    if (fault_error != ~0ul) {
        faults++;
        uint64_t should = (what == WRITE ? 2u : 0) | (kind >= USER ? 4u : 0) | (what == EXECUTE ? 16u : 0);
        if (fault_address != at)
            wrong("the address of a fault", kind, la);
        if ((fault_error & ~1ul) != should)
            wrong("an error code", kind, la);
        if (!(fault_error & 1))
            good = may_miss;
        for (unsigned n = 0; n < kept_count[i][j] && fault_error & 1; n++)
            good |= !allows(&kept[i][j][n], kind);
        if (!good)
            wrong("a fault that no translation gives", kind, la);
        return;
    }
    successes++;
    for (unsigned n = 0; n < kept_count[i][j] && !good; n++) {
        const struct translation *t = &kept[i][j][n];
        if (!allows(t, kind))
            continue;
        good = what == READ    ? got == (TAG | t->frame)
               : what == WRITE ? ((volatile uint64_t *)t->frame)[1] == value
                               : got == t->frame;
        older += good && !(present && now.frame == t->frame);
    }
    if (!good)
        wrong("an access that no translation gives", kind, la);
    uint64_t after = *(volatile uint64_t *)pte;
    bits_seen += certain && !(before & A);
    if (certain && (!(after & A) || !(pd[i] & A)))
        wrong("no accessed bit", kind, la);
    if (certain && what == WRITE && !(after & D))
        wrong("no dirty bit", kind, la);
    if (what != WRITE && after & D && !(before & D))
        wrong("a dirty bit of a read", kind, la);
}

// ---- the machine
static struct __attribute__((packed)) {
    uint32_t reserved;
    uint64_t rsp0, rsp[2], reserved1, ist[7], reserved2;
    uint16_t reserved3, io_base;
} tss;
// As Linux has it: only user code whose selectors mean the same on the host can run there directly.
static uint64_t gdt[16] __attribute__((aligned(128))), idt[256][2];

static void gate(unsigned vector, const uint8_t *handler, unsigned dpl)
{
    uint64_t at = (uintptr_t)handler;
    idt[vector][0] = (at & 0xffff) | 0x10u << 16 | (0x8e00ul | dpl << 13) << 32 | (at >> 16 & 0xffff) << 48;
    idt[vector][1] = at >> 32;
}

static void set_up(void)
{
    extern uint8_t on_exception[];
    struct __attribute__((packed)) {
        uint16_t limit;
        uint64_t base;
    } gdtr = {sizeof gdt - 1, (uintptr_t)gdt}, idtr = {sizeof idt - 1, (uintptr_t)idt};
    uint64_t at = (uintptr_t)&tss, pml4;
    gdt[1] = 0x00cf9b000000ffff;
    gdt[2] = 0x00af9b000000ffff;
    gdt[3] = 0x00cf93000000ffff;
    gdt[4] = 0x00cffb000000ffff;
    gdt[5] = 0x00cff3000000ffff; // selector 0x2b
    gdt[6] = 0x00affb000000ffff; // 0x33
    gdt[15] = 0x0040f50000000000;
    gdt[8] = (sizeof tss - 1) | (at & 0xffffff) << 16 | 0x89ul << 40 | (at >> 24 & 0xff) << 56;
    gdt[9] = at >> 32;
    tss.rsp0 = (uintptr_t)kernel_stack + sizeof kernel_stack;
    tss.io_base = sizeof tss;
    for (unsigned vector = 0; vector < 32; vector++)
        gate(vector, on_exception, 0);
    gate(14, on_page_fault, 0);
    gate(0x80, on_back, 3);
    gate(0x81, on_back, 3);
    __asm__ volatile("lgdt %0; lidt %1; ltr %w2" : : "m"(gdtr), "m"(idtr), "r"(0x40));
    __asm__ volatile("mov %w0, %%ds; mov %w0, %%es; mov %w0, %%fs; mov %w0, %%gs" : : "r"(0));
    __asm__ volatile("mov %%cr4, %%rax; or $0x10000, %%eax; mov %%rax, %%cr4" : : : "rax"); // FSGSBASE
    __asm__ volatile("rdmsr; or $0x801, %%eax; wrmsr" : : "c"(0xc0000080) : "eax", "edx");  // NXE, SCE
    for (uint64_t frame = FRAMES; frame < FRAMES + 2 * LARGE; frame += 4096) {
        uint64_t *word = (uint64_t *)frame;
        word[0] = TAG | frame;
        word[2] = 0xc300000000b8ul | frame << 8; // mov eax, frame; ret
    }
    for (unsigned i = 0; i < 3; i++) { // two copies of the code and a stack
        fixed[i] = (uintptr_t)user[i] | P | W | U;
        if (i < 2)
            memcpy(user[i], user_code, (unsigned long)(user_code_end - user_code));
    }
    // The second comes back by INT 80h, which Linux would take for a system call.
    for (unsigned i = 1; i < 4096; i++)
        if (user[1][i] == 0x81 && user[1][i - 1] == 0xcd)
            user[1][i] = 0x80;
    for (unsigned i = 0; i < TABLES; i++)
        alias[i] = (uintptr_t)table[i] | P | W | U;
    alias[TABLES] = (uintptr_t)pd | P | W | U;
    pd[4] = (uintptr_t)alias | P | W | U;
    pd[5] = (uintptr_t)fixed | P | W | U;
    pdpt[0] = (uintptr_t)pd | P | W | U;
    __asm__ volatile("mov %%cr3, %0" : "=r"(pml4));
    ((volatile uint64_t *)pml4)[1] = (uintptr_t)pdpt | P | W | U;
    flush_all();
}

void payload(void)
{
    set_up();
    outb(0x21, 0xff); // user code runs with IF set
    outb(0xa1, 0xff);
    user_rip = FIXED;
    for (step = 1; step <= STEPS; step++) {
        switch (any(16)) {
        case 0: change_pde(); break;
        case 1:
        case 2:
        case 3: change_pte(); break;
        case 4: flush_page(any(PDES), any(PLACES)); break;
        case 5: any(4) ? flush_page(any(PDES), any(PLACES)) : flush_all(); break;
        default: access(); break;
        }
    }
    put("faults ");
    put_number(faults);
    put("\nsuccesses ");
    put_number(successes);
    put("\nby older translations ");
    put_number(older);
    put("\naccessed bits set ");
    put_number(bits_seen);
    put("\n");
    end(0);
}
