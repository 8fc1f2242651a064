// Random programs, in the guest and natively (built with -DNATIVE): functions that branch ahead over each
// other's flags, run through pushes and pops, call and return in every way, and lie across pages. What each
// leaves is printed; the two must print the same. In the guest the timer interrupts all the while.
#include "bare.h"

#ifndef FIRST
#define FIRST 1
#endif
#ifndef PROGRAMS
#define PROGRAMS 600
#endif
#define RUNS      24 // of each program, each going on with what the last left
#define FUNCTIONS 12
#define SPACE     0x4000000ul // where the guest has memory and a native process has none: code, data, stack
#define CODE      SPACE
#define CODE_SIZE 0x20000ul
#define DATA      (SPACE + 0x40000ul) // two places in the middle of two pages each
#define DATA2     (SPACE + 0x50fc0ul)
#define SLOTS     0x800 // from DATA: loop counters, targets; random accesses stay below
#define STACK     (SPACE + 0x70000ul)
#define FLAGS     0x8d5u

#ifdef __x86_64__
#define WORD 8
#define REGS 16
#else
#define WORD 4
#define REGS 8
#endif
enum { AX, CX, DX, BX, SP, BP, SI, DI, R12 = 12 };

struct state {
    unsigned long reg[REGS], flags, stack, entry, host_stack;
} state;
void enter(void);

// Loads the state, calls what `entry` says on the program's own stack, and stores the state.
#ifdef __x86_64__
__asm__(
    ".globl enter\nenter:\n"
    ".irp r, rbx, rbp, r12, r13, r14, r15\n push %\\r\n .endr\n"
    "mov %rsp, state+152\n mov state+136, %rsp\n push state+128\n popf\n"
    "mov state, %rax\n mov state+8, %rcx\n mov state+16, %rdx\n mov state+24, %rbx\n mov state+40, %rbp\n"
    "mov state+48, %rsi\n mov state+56, %rdi\n mov state+64, %r8\n mov state+72, %r9\n mov state+80, %r10\n"
    "mov state+88, %r11\n mov state+96, %r12\n mov state+104, %r13\n mov state+112, %r14\n mov state+120, "
    "%r15\n"
    "call *state+144\n"
    "mov %rax, state\n mov %rcx, state+8\n mov %rdx, state+16\n mov %rbx, state+24\n mov %rsp, state+32\n "
    "mov %rbp, state+40\n"
    "mov %rsi, state+48\n mov %rdi, state+56\n mov %r8, state+64\n mov %r9, state+72\n mov %r10, state+80\n"
    "mov %r11, state+88\n mov %r12, state+96\n mov %r13, state+104\n mov %r14, state+112\n mov %r15, "
    "state+120\n"
    "pushf\n pop state+128\n cld\n mov state+152, %rsp\n"
    ".irp r, r15, r14, r13, r12, rbp, rbx\n pop %\\r\n .endr\n ret\n");
#else
__asm__(".globl enter\nenter:\n push %ebx\n push %ebp\n push %esi\n push %edi\n"
        "mov %esp, state+44\n mov state+36, %esp\n pushl state+32\n popf\n"
        "mov state, %eax\n mov state+4, %ecx\n mov state+8, %edx\n mov state+12, %ebx\n mov state+20, %ebp\n"
        "mov state+24, %esi\n mov state+28, %edi\n"
        "call *state+40\n"
        "mov %eax, state\n mov %ecx, state+4\n mov %edx, state+8\n mov %ebx, state+12\n mov %esp, state+16\n "
        "mov %ebp, state+20\n"
        "mov %esi, state+24\n mov %edi, state+28\n pushf\n popl state+32\n cld\n mov state+44, %esp\n"
        "pop %edi\n pop %esi\n pop %ebp\n pop %ebx\n ret\n");
#endif

static uint32_t random;
static uint8_t *p;
static unsigned long function[FUNCTIONS];
static unsigned arguments[FUNCTIONS]; // words that its RET releases
static unsigned current, calls, pushed, nesting;
static bool in_loop, plain; // plain: no POPF, no code that changes
static unsigned long patches[16];
static unsigned patch_count;

static unsigned any(unsigned below)
{
    return mix(&random) % below;
}
static bool maybe(unsigned percent)
{
    return any(100) < percent;
}
static void byte(unsigned b)
{
    *p++ = (uint8_t)b;
}

static void number(unsigned long n, unsigned bytes)
{
    for (; bytes; bytes--, n >>= 8)
        byte(n & 0xff);
}

// Not RSP, nor what DATA and DATA2 are in.
static unsigned any_reg(void)
{
    for (;;) {
        unsigned r = any(REGS);
        if (r != SP && r != BX && r != R12)
            return r;
    }
}

static void rex(bool wide, unsigned reg, unsigned rm, bool force)
{
#ifdef __x86_64__
    unsigned b = (wide ? 8 : 0) | (reg & 8 ? 4 : 0) | (rm & 8 ? 1 : 0);
    if (b || force)
        byte(0x40 | b);
#else
    (void)wide, (void)reg, (void)rm, (void)force;
#endif
}

static bool any_width(void)
{
    return WORD == 8 && maybe(60);
}

static void op_reg(bool wide, unsigned opcode, unsigned reg, unsigned rm)
{
    rex(wide, reg, rm, false);
    if (opcode > 0xff)
        byte(opcode >> 8);
    byte(opcode);
    byte(0xc0 | (reg & 7) << 3 | (rm & 7));
}

static void op_mem_at(bool wide, unsigned opcode, unsigned reg, unsigned base, int disp)
{
    rex(wide, reg, base, false);
    if (opcode > 0xff)
        byte(opcode >> 8);
    byte(opcode);
    byte(0x80 | (reg & 7) << 3 | (base & 7));
    if ((base & 7) == SP)
        byte(0x24);
    number((unsigned long)(long)disp, 4);
}

// Somewhere in the data, or in what has been pushed.
static void op_mem(bool wide, unsigned opcode, unsigned reg)
{
    if (pushed && maybe(40))
        op_mem_at(wide, opcode, reg, SP, WORD * (int)any(pushed));
    else if (WORD == 8 && maybe(30))
        op_mem_at(wide, opcode, reg, R12, (int)any(240) - 120);
    else if (WORD == 8 && maybe(15)) { // RIP-relative
        unsigned long at = DATA + any(0x180);
        rex(wide, reg, 0, false);
        if (opcode > 0xff)
            byte(opcode >> 8);
        byte(opcode);
        byte(5 | (reg & 7) << 3);
        number(at - ((unsigned long)p + 4), 4);
    } else
        op_mem_at(wide, opcode, reg, BX, maybe(70) ? (int)any(100) - 50 : (int)any(0x300) - 0x180);
}

static void alu(void)
{
    unsigned op = any(8) << 3, r = any_reg();
    bool wide = any_width();
    switch (any(6)) {
    case 0: op_reg(wide, op | 1, any_reg(), r); break;
    case 1: op_reg(wide, op | 3, any_reg(), r); break;
    case 2: op_mem(wide, op | 3, r); break;
    case 3: op_mem(wide, op | 1, r); break;
    case 4:
        op_reg(wide, 0x83, op >> 3, r);
        byte(any(256));
        break;
    default:
        op_reg(wide, 0x81, op >> 3, r);
        number(mix(&random), 4);
        break;
    }
}

static int any_place(void)
{
    return (int)any(0x200) - 0x100;
}

// 8 and 16 bits, AH to DH, what uses registers that are not named, what leaves flags undefined.
static void rarer(void)
{
    static const uint8_t low[] = {AX, CX, DX, 4, 5, 6}; // and AH, CH, DH
    static const uint8_t wide_multiply[] = {4, 5};
    unsigned op = any(8) << 3, r = any_reg(), l = low[any(6)];
    bool wide = any_width();
    switch (any(24)) {
    case 0:
        byte(0x66);
        op_reg(false, op | 1, any_reg(), r);
        break;
    case 1:
        byte(0x66);
        op_mem(false, op | (maybe(50) ? 1 : 3), r);
        break;
    case 2: op_reg(false, op | 2, l, low[any(6)]); break;
    case 3: op_mem_at(false, op | (maybe(50) ? 0 : 2), l, BX, any_place()); break;
    case 4: {
        unsigned to = WORD == 8 ? any_reg() : AX, from = WORD == 8 ? r : CX;
        rex(false, from, to, true);
        byte(op);
        byte(0xc0 | (from & 7) << 3 | (to & 7));
        break;
    }
    case 5: op_mem(wide, 0x0fc1, r); break; // xadd
    case 6: op_mem(wide, 0x0fb1, r); break; // cmpxchg
    case 7:
        op_mem_at(wide, 0x0fba, 4 + any(4), BX, any_place());
        byte(any(64));
        break;
    case 8: op_reg(wide, 0xd3, (const uint8_t[]){0, 1, 4, 5, 7}[any(5)], r); break; // by CL
    case 9: op_mem(wide, 0xd1, (const uint8_t[]){0, 1, 2, 3, 4, 5, 7}[any(7)]); break;
    case 10: op_mem(wide, 0xf7, 2 + any(2)); break;
    case 11: op_mem(wide, (const uint16_t[]){0x0fbe, 0x0fbf, 0x0fb7}[any(3)], r); break;
    case 12:
        op_mem_at(wide, 0x83, op >> 3, BX, any_place());
        byte(any(256));
        break;
    case 13:
        op_reg(false, 0x81, 4, r); // and r, 7f: a bit offset
        number(0x7f, 4);
        op_mem_at(wide, (const uint16_t[]){0x0fa3, 0x0fab, 0x0fb3, 0x0fbb}[any(4)], r, BX, any_place());
        break;
    case 14: op_reg(wide, 0xf7, wide_multiply[any(2)], r); break;
    case 15:
        rex(wide, 0, 0, false);
        byte(0x98 | any(2));
        break;
    case 16: byte(0x9e); break; // sahf
    case 17:
        op_reg(wide, maybe(50) ? 0x0fa4 : 0x0fac, r, any_reg());
        byte(1 + any(31));
        break;
    case 18: op_mem(wide, 0x0fbc | any(2), r); break; // bsf, bsr
    case 19:
        if (r == DX || r == AX)
            r = CX;
        op_reg(false, 0x31, DX, DX);
        op_reg(wide, 0x83, 1, r); // or r, 1
        byte(1);
        op_reg(wide, 0xf7, 6, r); // div
        break;
    case 20: op_mem(wide, 0x87, r); break;
    case 21:
        op_mem_at(wide, 0x69, r, BX, any_place()); // imul r, m, n
        number(mix(&random), 4);
        break;
    case 22: op_mem(wide, 0x85, r); break;
    default: // mov r, n: what some other function may change
        rex(false, 0, r, false);
        byte(0xb8 | (r & 7));
        if (patch_count < sizeof patches / sizeof patches[0])
            patches[patch_count++] = (unsigned long)p;
        number(mix(&random), 4);
        break;
    }
}

// mov byte [somewhere in the code], n
static void patch_code(void)
{
    if (plain || !patch_count)
        return;
    unsigned long at = patches[any(patch_count)] + any(4);
    byte(0xc6);
    if (WORD == 8) {
        byte(4);
        byte(0x25);
    } else
        byte(5);
    number(at, 4);
    byte(any(256));
}

static void other(void)
{
    if (maybe(35)) {
        rarer();
        return;
    }
    static const uint8_t shifts[] = {0, 1, 2, 3, 4, 5, 7};
    unsigned r = any_reg();
    bool wide = any_width();
    switch (any(22)) {
    case 0:
    case 1: op_mem(wide, 0x8b, r); break;
    case 2:
    case 3: op_mem(wide, 0x89, r); break;
    case 4: op_reg(wide, 0x89, any_reg(), r); break;
    case 5: op_mem(wide, 0x0fb6, r); break;                    // movzx
    case 6: op_reg(false, 0x0f90 | any(16), 0, any(3)); break; // setcc al, cl, dl
    case 7: op_mem(false, 0x0f90 | any(16), 0); break;
    case 8: op_reg(wide, 0x0f40 | any(16), r, any_reg()); break;
    case 9: op_mem(wide, 0x0f40 | any(16), r); break;
    case 10: op_reg(wide, 0xff, any(2), r); break; // inc, dec
    case 11: op_mem(wide, 0xff, any(2)); break;
    case 12: op_reg(wide, 0xd1, shifts[any(7)], r); break;
    case 13:
        op_reg(wide, 0xc1, shifts[any(7)], r);
        byte(1 + any(31));
        break;
    case 14: op_reg(wide, 0xf7, 2 + any(2), r); break; // not, neg
    case 15: op_reg(wide, 0x0faf, r, any_reg()); break;
    case 16:
        op_reg(wide, 0x0fba, 4 + any(4), r); // bt, bts, btr, btc
        byte(any(32));
        break;
    case 17: op_reg(wide, 0x85, r, any_reg()); break;
    case 18: byte((const uint8_t[]){0xf8, 0xf9, 0xf5}[any(3)]); break; // clc, stc, cmc
    case 19: byte(0x9f); break;                                        // lahf
    case 20: op_reg(wide, 0x87, r, any_reg()); break;                  // xchg
    default:                                                           // lea
        rex(wide, r, BX, false);
        byte(0x8d);
        byte(0x84 | (r & 7) << 3);
        byte(any(4) << 6 | (const uint8_t[]){AX, CX, DX, BP, SI, DI}[any(6)] << 3 | BX);
        number(mix(&random), 4);
        break;
    }
}

static void units(unsigned n);

static void push_one(void)
{
    unsigned r = any_reg();
    switch (any(8)) {
    case 0:
        byte(0x6a);
        byte(any(256));
        break;
    case 1:
        byte(0x68);
        number(mix(&random), 4);
        break;
    case 2: op_mem(false, 0xff, 6); break;
    default:
        rex(false, 0, r, false);
        byte(0x50 | (r & 7));
        break;
    }
    pushed++;
}

static void pop_one(void)
{
    unsigned r = any_reg();
    pushed--;
    if (maybe(10)) { // POP [mem]
        unsigned was = pushed;
        pushed = 0;
        op_mem(false, 0x8f, 0);
        pushed = was;
        return;
    }
    rex(false, 0, r, false);
    byte(0x58 | (r & 7));
}

static void run_of_pushes(void)
{
    unsigned n = 1 + any(7), was = pushed;
    for (unsigned i = 0; i < n; i++)
        push_one();
    units(any(4));
    while (pushed > was)
        if (maybe(15) && pushed < was + n)
            push_one();
        else if (maybe(8)) {
            op_reg(WORD == 8, 0x83, 0, SP); // add sp, n
            byte(WORD * (pushed - was));
            pushed = was;
        } else
            pop_one();
}

static void branch_ahead(void)
{
    unsigned cc = any(16);
    uint8_t *from;
    bool near = maybe(60);
    if (!near && maybe(20))
        cc = 0x70 + any(4); // LOOPNE, LOOPE, LOOP, JCXZ
    if (near) {
        byte(0x0f);
        byte(0x80 | cc);
        number(0, 4);
    } else {
        byte(0x70 + cc);
        byte(0);
    }
    from = p;
    unsigned was = calls, patches_before = patch_count;
    units(near ? 1 + any(6) : 1);
    if (!near && p - from > 127) { // too long after all
        p = from;
        calls = was;
        patch_count = patches_before;
        byte(0xf5);
    }
    if (near) {
        uint8_t *to = p;
        p = from - 4;
        number((unsigned long)(to - from), 4);
        p = to;
    } else
        from[-1] = (uint8_t)(p - from);
}

static void loop(void)
{
    if (in_loop) {
        alu();
        return;
    }
    in_loop = true;
    op_mem_at(false, 0xc7, 0, BX, SLOTS);
    number(1 + any(12), 4);
    uint8_t *again = p;
    units(1 + any(5));
    op_mem_at(false, 0xff, 1, BX, SLOTS);
    byte(0x0f);
    byte(0x85);
    number((unsigned long)(again - (p + 4)), 4);
    in_loop = false;
}

static void call_one(void)
{
    if (in_loop || calls == 2 || current + 1 >= FUNCTIONS) {
        other();
        return;
    }
    calls++;
    unsigned f = current + 1 + any(FUNCTIONS - 1 - current);
    unsigned r = any_reg();
    for (unsigned i = 0; i < arguments[f]; i++)
        push_one();
    pushed -= arguments[f];
    switch (any(4)) {
    case 0: // call r
        rex(false, 0, r, false);
        byte(0xb8 | (r & 7));
        number(function[f], 4);
        op_reg(false, 0xff, 2, r);
        break;
    case 1: // call [m]
        op_mem_at(WORD == 8, 0xc7, 0, BX, SLOTS + 16);
        number(function[f], 4);
        op_mem_at(false, 0xff, 2, BX, SLOTS + 16);
        break;
    default:
        byte(0xe8);
        number(function[f] - ((unsigned long)p + 4), 4);
        break;
    }
}

static void look_at_flags(void)
{
    unsigned r = any_reg();
    byte(0x9c); // pushf
    if (!plain && maybe(30)) {
        rex(WORD == 8, 0, SP, WORD == 8);
        byte(0x81);
        byte(0x24);
        byte(0x24);
        number(FLAGS, 4); // and [sp], flags
        rex(WORD == 8, 0, SP, WORD == 8);
        byte(0x81);
        byte(0x0c);
        byte(0x24);
        number(0x202, 4); // or [sp], IF
        byte(0x9d);       // popf
        return;
    }
    rex(false, 0, r, false);
    byte(0x58 | (r & 7));
    op_reg(false, 0x81, 4, r);
    number(FLAGS, 4);
    op_mem(false, 0x01, r);
}

static void units(unsigned n)
{
    if (nesting > 3)
        n = n > 1 ? 1 : n;
    nesting++;
    for (unsigned i = 0; i < n; i++) {
        unsigned kind = any(100);
        if (kind < 38 || nesting > 5)
            alu();
        else if (kind < 66)
            other();
        else if (kind < 80)
            branch_ahead();
        else if (kind < 89)
            run_of_pushes();
        else if (kind < 94)
            call_one();
        else if (kind < 97)
            look_at_flags();
        else if (kind < 98)
            patch_code();
        else
            loop();
    }
    nesting--;
}

static void make_function(void)
{
    calls = 0;
    pushed = 0;
    units(6 + any(24));
    unsigned f = current + 1 + any(FUNCTIONS);
    if (f < FUNCTIONS && !arguments[f] && !arguments[current] && calls < 2 &&
        maybe(50)) { // a jump instead of a call
        if (maybe(50)) {
            byte(0xe9);
            number(function[f] - ((unsigned long)p + 4), 4);
        } else { // mov r, n; jmp r
            unsigned r = any_reg();
            rex(false, 0, r, false);
            byte(0xb8 | (r & 7));
            number(function[f], 4);
            op_reg(false, 0xff, 4, r);
        }
    } else if (arguments[current]) {
        byte(0xc2);
        number(arguments[current] * WORD, 2);
    } else
        byte(0xc3);
}

static void make_program(void)
{
    p = (uint8_t *)(CODE + any(4096));
    patch_count = 0;
    memset((void *)CODE, 0xcc, CODE_SIZE);
    for (current = FUNCTIONS; current-- > 0;) { // what is called is made first
        arguments[current] = current && maybe(30) ? 1 + any(3) : 0;
        function[current] = (unsigned long)p;
        make_function();
        p += maybe(60) ? any(64) : any(3000);
    }
}

static uint32_t hash(uint32_t h, const void *at, unsigned n)
{
    for (const uint8_t *b = at; n; n--, b++)
        h = (h ^ *b) * 16777619u;
    return h;
}

static void begin_program(unsigned seed)
{
    random = seed * 2654435761u;
    for (unsigned i = 0; i < 0x1000 / 4; i++) {
        ((volatile uint32_t *)(DATA - 0x800))[i] = mix(&random);
        ((volatile uint32_t *)(DATA2 - 0x800))[i] = mix(&random);
    }
    make_program();
    state.flags = 0;
    for (unsigned i = 0; i < REGS; i++)
        state.reg[i] = (unsigned long)mix(&random) << (WORD == 8 ? 21 : 0) ^ mix(&random);
}

static void begin_run(void)
{
    state.reg[BX] = DATA;
    if (WORD == 8)
        state.reg[R12 % REGS] = DATA2;
    state.stack = STACK + WORD * any(40);
    state.flags = (state.flags & FLAGS) | 0x202;
    state.entry = function[0];
}

static uint32_t hash_state(uint32_t h)
{
    state.flags &= FLAGS;
    h = hash(h, state.reg, sizeof state.reg);
    h = hash(h, &state.flags, sizeof state.flags);
    h = hash(h, (void *)(DATA - 0x800), 0x1000);
    return hash(h, (void *)(DATA2 - 0x800), 0x1000);
}

static uint32_t hashes[PROGRAMS];

// Prints what the programs leave, or finds it the same again.
static void run_programs(bool again)
{
    for (unsigned seed = FIRST; seed < FIRST + PROGRAMS; seed++) {
        uint32_t h = 2166136261u;
        begin_program(seed);
        for (unsigned run = 0; run < RUNS; run++) {
            begin_run();
            enter();
            h = hash_state(h);
        }
        if (again) {
            if (h != hashes[seed - FIRST])
                end("a program in other segments");
            continue;
        }
        hashes[seed - FIRST] = h;
        put_number(seed);
        put(" ");
        put_number(h);
        put("\n");
    }
}

#ifdef NATIVE
static long call_kernel(long number, long a, long b, long c, long d, long e)
{
    long result;
#ifdef __x86_64__
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = 0;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "memory", "rcx", "r11");
#else
    __asm__ volatile("int $0x80"
                     : "=a"(result)
                     : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e)
                     : "memory");
#endif
    return result;
}

#define CALL_WRITE (WORD == 8 ? 1 : 4)
#define CALL_EXIT  (WORD == 8 ? 60 : 1)

void put(const char *s)
{
    unsigned n = 0;
    while (s[n])
        n++;
    call_kernel(CALL_WRITE, 1, (long)s, n, 0, 0);
}

void put_number(unsigned long n)
{
    char digits[24], *d = digits + sizeof digits - 1;
    *d = 0;
    do
        *--d = (char)('0' + n % 10);
    while (n /= 10);
    put(d);
}

void *memset(void *to, int value, unsigned long n)
{
    void *at = to;
    __asm__ volatile("rep stosb" : "+D"(at), "+c"(n) : "a"(value) : "memory");
    return to;
}

void start32(void)
{
#ifdef __x86_64__
    call_kernel(9, SPACE, 0x80000, 7, 0x32, -1); // mmap(), fixed, private, anonymous
#else
    long arguments_of_mmap[6] = {SPACE, 0x80000, 7, 0x32, -1, 0};
    call_kernel(90, (long)arguments_of_mmap, 0, 0, 0, 0);
#endif
    run_programs(false);
    call_kernel(CALL_EXIT, 0, 0, 0, 0, 0);
}
#else

#ifdef __x86_64__
// Page faults at any access: pages of data and stack are absent, read-only or not accessed yet. The handler
// makes them what is needed, and notes the state it finds. The same program in single steps must leave the
// same notes.
#define FAULTING_RUNS 4
#ifndef FAULTING
#define FAULTING 300
#endif

struct fault {
    uint64_t reg[15], error, ip, cs, flags, sp, ss;
};

static uint64_t table[512] __attribute__((aligned(4096)));
static uint64_t gdt[5];
static struct __attribute__((packed)) {
    uint32_t zero;
    uint64_t rsp[3], zero2, ist[7];
    uint8_t rest[12];
} tss;
static uint8_t ist[3][16384] __attribute__((aligned(64)));
static unsigned faults, total;
static struct note {
    struct fault f;
    uint64_t address;
} notes[2][4096];
unsigned long steps;
static unsigned which;

extern char on_page_fault[], on_step[];
void page_fault(const struct fault *f, uint64_t address);
__asm__(
    ".globl on_page_fault, on_step\non_page_fault:\n"
    ".irp r, rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15\n push %\\r\n .endr\n"
    "mov %rsp, %rdi\n mov %cr2, %rsi\n cld\n call page_fault\n"
    ".irp r, r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax\n pop %\\r\n .endr\n"
    "add $8, %rsp\n iretq\n"
    "on_step: incq steps\n iretq\n");

static void flush(void)
{
    __asm__ volatile("mov %%cr3, %%rax; mov %%rax, %%cr3" : : : "rax", "memory");
}

void page_fault(const struct fault *f, uint64_t address)
{
    uint64_t page = (address - SPACE) >> 12;
    if (page >= 0x80)
        end("a page fault somewhere else");
    if (faults < 4096) {
        notes[which][faults].f = *f;
        notes[which][faults].address = address;
        if (f->ip < SPACE) // enter(), with registers of ours
            memset(notes[which][faults].f.reg, 0, sizeof f->reg);
        notes[which][faults].f.flags &=
            ~0x100ul & ~(unsigned long)FLAGS; // those that nobody reads any more are not exact
    }
    faults++, total++;
    table[page] = (table[page] & ~0xfffull) | 1 | (f->error & 2);
    if (f->error & 1)
        __asm__ volatile("invlpg (%0)" : : "r"(address) : "memory");
}

static void set_ist(unsigned vector, const char *handler, unsigned n)
{
    struct __attribute__((packed)) {
        uint16_t limit;
        uint64_t base;
    } idtr;
    __asm__ volatile("sidt %0" : "=m"(idtr));
    uint32_t *gate = (uint32_t *)(idtr.base + vector * 16);
    uint64_t at = (uint64_t)handler;
    if (handler) {
        gate[0] = (uint32_t)(at & 0xffff) | 8u << 16;
        gate[1] = (uint32_t)(at & 0xffff0000) | 0x8e00;
    }
    gate[1] |= n;
}

static void prepare_faults(void)
{
    uint64_t *level, at = (uint64_t)&tss;
    __asm__ volatile("mov %%cr3, %0" : "=r"(level));
    level = (uint64_t *)(*level & ~0xfffull);
    level = (uint64_t *)(*level & ~0xfffull);
    for (unsigned i = 0; i < 512; i++)
        table[i] = (SPACE + i * 4096) | 0x63;
    level[SPACE >> 21] = (uint64_t)table | 0x63;
    flush();
    for (unsigned i = 0; i < 3; i++)
        tss.ist[i] = (uint64_t)(ist[i] + sizeof ist[i]);
    gdt[1] = 0x00af9b000000ffff;
    gdt[2] = 0x00cf93000000ffff;
    gdt[3] = (sizeof tss - 1) | (at & 0xffffff) << 16 | 0x89ull << 40 | (at >> 24 & 0xff) << 56;
    struct __attribute__((packed)) {
        uint16_t limit;
        uint64_t base;
    } gdtr = {sizeof gdt - 1, (uint64_t)gdt};
    __asm__ volatile("lgdt %0; ltr %w1" : : "m"(gdtr), "r"(24));
    set_ist(14, on_page_fault, 1);
    set_ist(1, on_step, 2);
    set_ist(0x40, 0, 3);
}

static uint32_t faulting_run(const struct state *from, const uint64_t *pages, bool step)
{
    irq_off();
    state = *from;
    state.flags |= step ? 0x100 : 0;
    for (unsigned i = 0x3f; i < 0x80; i++)
        table[i] = pages[i];
    flush();
    faults = 0;
    which = step;
    enter();
    __asm__ volatile("pushfq; andl $~0x100, (%%rsp); popfq" : : : "memory", "cc");
    uint64_t used[0x80];
    for (unsigned i = 0x3f; i < 0x80; i++) {
        used[i] = table[i];
        table[i] |= 0x63;
    }
    flush();
    return hash(hash_state(2166136261u), used + 0x3f, sizeof used - 0x3f * 8);
}

static void run_faulting(void)
{
    static uint8_t kept[2][0x1000];
    prepare_faults();
    plain = true;
    for (unsigned seed = FIRST; seed < FIRST + FAULTING; seed++) {
        begin_program(seed);
        for (unsigned run = 0; run < FAULTING_RUNS; run++) {
            static const uint16_t kinds[] = {0, 1, 3, 0x63};
            uint64_t pages[0x80];
            for (unsigned i = 0x3f; i < 0x80; i++)
                pages[i] = (SPACE + i * 4096) | kinds[any(4)];
            begin_run();
            struct state from = state;
            memcpy(kept[0], (void *)(DATA - 0x800), 0x1000);
            memcpy(kept[1], (void *)(DATA2 - 0x800), 0x1000);
            uint32_t fast = faulting_run(&from, pages, false);
            unsigned n = faults;
            struct state after = state;
            memcpy((void *)(DATA - 0x800), kept[0], 0x1000);
            memcpy((void *)(DATA2 - 0x800), kept[1], 0x1000);
            uint32_t slow = faulting_run(&from, pages, true);
            unsigned at = 0;
            while (at < n && at < faults &&
                   hash(0, &notes[0][at], sizeof notes[0][0]) == hash(0, &notes[1][at], sizeof notes[0][0]))
                at++;
            if (at == n && n == faults && fast == slow)
                continue;
            put("program ");
            put_number(seed);
            put(" run ");
            put_number(run);
            put(" faults ");
            put_number(n);
            put(" ");
            put_number(faults);
            put(" differs ");
            put_number(at);
            for (unsigned k = 0; k < 2; k++)
                for (unsigned i = 0; i < sizeof notes[0][0] / 8; i++) {
                    put(i ? " " : "\n");
                    put_number(((uint64_t *)&notes[k][at])[i]);
                }
            put("\n");
            for (unsigned i = 0; i < REGS; i++)
                if (after.reg[i] != state.reg[i])
                    put_number(i), put(" ");
            end("a program with page faults");
        }
    }
    if (total < FAULTING || steps < total)
        end("no page faults, or no steps");
}
#else
// Segments that end before 4 GiB, so that every access and every branch is checked against their limits.
static void other_segments(void)
{
    static const uint64_t gdt[3] = {0, 0x00cf9b000000eeff, 0x00cf93000000eeff};
    static const struct __attribute__((packed)) {
        uint16_t limit;
        const void *base;
    } gdtr = {sizeof gdt - 1, gdt};
    __asm__ volatile("lgdt %0; ljmp $8, $1f; 1: mov %1, %%ds; mov %1, %%es; mov %1, %%ss"
                     :
                     : "m"(gdtr), "r"(16));
}
#endif

void payload(void)
{
    timer_start(50, 150);
    irq_on();
    run_programs(false);
#ifdef __x86_64__
    run_faulting();
#else
    other_segments();
    run_programs(true);
#endif
    end(0);
}
#endif
