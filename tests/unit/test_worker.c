// User workers (dbt/direct/worker.h): what guest code sees, what its owner sees, and what hostile code can
// reach. The guest code is raw machine code in a page of "guest RAM" that the worker executes.
#include "dbt/direct/stub.h"
#include "dbt/direct/worker.h"
#include <cpuid.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#define RAM_SIZE   (4u << 20)
#define CODE_LA    0x400000ull
#define CODE_RAM   0x1000u
#define DATA_LA    0x7fff00000000ull
#define DATA_RAM   0x10000u
#define DATA_SIZE  0x10000u
#define PAGE       4096u
#define LONGEST_NS 6000000000u

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 };

#define FL_CF 1u
#define FL_TF 0x100u
#define FL_DF 0x400u
#define FL_OF 0x800u
#define FL_RF 0x10000u
#define FL_AC 0x40000u
#define FL_ID 0x200000u

#define CODE(name, text)                                                                                     \
    __asm__(".pushsection .rodata\n" #name ": " text "\n" #name "_end:\n.popsection\n");                     \
    extern const uint8_t name[], name##_end[]

static struct workers *w;
static uint8_t *ram;
static int ram_fd;

// ---- tools
static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void start_worker(void)
{
    assert_int_equal(workers_create(&w, 1, ram_fd, NULL, 0), 0);
    assert_true(worker_map(w, 0, CODE_LA, PAGE, CODE_RAM, PROT_READ | PROT_EXEC));
    assert_true(worker_map(w, 0, DATA_LA, DATA_SIZE, DATA_RAM, PROT_READ | PROT_WRITE));
    assert_int_equal(worker_sync(w, 0), 0);
}

static int set_up(void **state)
{
    (void)state;
    memset(ram, 0, RAM_SIZE);
    start_worker();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    struct itimerval off = {0};
    setitimer(ITIMER_REAL, &off, NULL);
    workers_destroy(w);
    w = NULL;
    return 0;
}

static void put_code(const void *code, size_t size)
{
    memset(ram + CODE_RAM, 0xcc, PAGE);
    memcpy(ram + CODE_RAM, code, size);
    worker_regs(w, 0)->rip = CODE_LA;
    worker_regs(w, 0)->rsp = DATA_LA + DATA_SIZE - 256;
}

#define PUT(name) put_code(name, (size_t)(name##_end - name))

static struct worker_event run(void)
{
    struct worker_event e;
    worker_resume(w, 0);
    while (!worker_wait(w, 0, &e))
        ;
    return e;
}

static void on_alarm(int signal)
{
    (void)signal;
    if (w)
        worker_kick(w, 0);
}

// As an owner does whose patience has an end: a signal of its own kicks the worker.
static struct worker_event run_for(unsigned us)
{
    struct itimerval t = {.it_value = {.tv_usec = us}}, off = {0};
    struct sigaction sa = {.sa_handler = on_alarm};
    struct worker_event e;

    sigaction(SIGALRM, &sa, NULL);
    setitimer(ITIMER_REAL, &t, NULL);
    e = run();
    setitimer(ITIMER_REAL, &off, NULL);
    return e;
}

static uint64_t flags_seen(void)
{
    return worker_regs(w, 0)->rflags & ~(uint64_t)FL_RF;
}

static void is_syscall(struct worker_event e, uint64_t rip)
{
    if (e.why != WORKER_SIGNAL || e.signal != SIGSYS || worker_regs(w, 0)->rip != rip)
        print_message("why %d signal %d code %d trap %x error %x at %lx: rip %lx rsp %lx rax %lx\n", e.why,
                      e.signal, e.code, e.trap, e.error, e.address, worker_regs(w, 0)->rip,
                      worker_regs(w, 0)->rsp, worker_regs(w, 0)->gpr[RAX]);
    assert_int_equal(e.why, WORKER_SIGNAL);
    assert_int_equal(e.signal, SIGSYS);
    assert_int_equal(e.trap, WORKER_TRAP_SYSCALL);
    assert_int_equal(worker_regs(w, 0)->rip, rip);
}

static uint64_t random64(void)
{
    static uint64_t x = 88172645463325252ull;
    x ^= x << 13, x ^= x >> 7;
    return x ^= x << 17;
}

// ---- registers
CODE(just_syscall, "syscall");

static uint64_t xcr0(void)
{
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static uint64_t vector_mask(void)
{
    return xcr0() & 0xe7;
}

static void component(unsigned i, uint32_t *offset, uint32_t *size)
{
    uint32_t ecx, edx;
    __cpuid_count(0xd, i, *size, *offset, ecx, edx);
}

static void random_image(uint8_t *image)
{
    uint32_t offset, size;

    memset(image, 0, 576);
    *(uint16_t *)image = 0x0f7f;       // precision and rounding of one's own, all masked
    *(uint16_t *)(image + 2) = 0x3800; // TOP 7
    image[4] = 0xff;
    *(uint32_t *)(image + 24) = 0x7fa0; // rounds to zero, PE set
    for (unsigned i = 0; i < 8; i++)
        for (unsigned j = 0; j < 10; j++)
            image[32 + 16 * i + j] = (uint8_t)random64();
    for (unsigned i = 160; i < 416; i++)
        image[i] = (uint8_t)random64();
    for (unsigned i = 2; i < 8; i++)
        if (vector_mask() >> i & 1) {
            component(i, &offset, &size);
            for (unsigned j = 0; j < size; j++)
                image[offset + j] = (uint8_t)random64();
        }
    *(uint64_t *)(image + 512) = vector_mask();
}

static void same_image(const uint8_t *a, const uint8_t *b)
{
    uint32_t offset, size;

    assert_memory_equal(a, b, 6);           // FCW, FSW, FTW
    assert_memory_equal(a + 24, b + 24, 4); // MXCSR
    for (unsigned i = 0; i < 8; i++)
        assert_memory_equal(a + 32 + 16 * i, b + 32 + 16 * i, 10);
    assert_memory_equal(a + 160, b + 160, 256);
    for (unsigned i = 2; i < 8; i++)
        if (vector_mask() >> i & 1) {
            component(i, &offset, &size);
            assert_memory_equal(a + offset, b + offset, size);
        }
}

static void guest_code_gets_all_registers_and_gives_them_back(void **state)
{
    (void)state;
    static uint8_t image[NEW_XSAVE_SIZE], back[NEW_XSAVE_SIZE];
    struct worker_regs *r = worker_regs(w, 0), before;
    size_t size;

    for (unsigned n = 0; n < 200; n++) {
        PUT(just_syscall);
        for (unsigned i = 0; i < 16; i++)
            if (i != RSP)
                r->gpr[i] = random64();
        r->rsp = random64() >> 17;
        if (r->rsp >= ALT_STACK && r->rsp < ALT_STACK + ALT_STACK_SIZE)
            r->rsp = 0;
        r->fs_base = random64() >> 17;
        r->gs_base = random64() >> 17;
        r->rflags = 0x202 | (random64() & (0x8d5 | FL_DF | FL_AC | FL_ID));
        if (n % 2) { // the old state, or one of ours
            random_image(image);
            memcpy(worker_new_xsave(w, 0, vector_mask()), image, sizeof image);
        } else {
            memcpy(image, worker_xsave(w, 0, &size), sizeof image);
        }
        before = *r;
        is_syscall(run(), CODE_LA + 2);
        memcpy(back, worker_xsave(w, 0, &size), sizeof back);
        if (n) // the first has not run yet, and so its image names no component
            same_image(image, back);
        before.rip += 2;
        before.gpr[RCX] = before.rip;
        before.gpr[R11] = before.rflags;
        before.gpr[RSP] = r->gpr[RSP];
        r->rflags = flags_seen();
        r->gpr[R11] &= ~(uint64_t)FL_RF;
        assert_memory_equal(r, &before, offsetof(struct worker_regs, ds));
        assert_int_equal(r->gpr[RSP], r->rsp);
    }
}

CODE(changes,
     "inc %rax; inc %rcx; inc %rdx; inc %rbx; inc %rbp; inc %rsi; inc %rdi; inc %r8; inc %r9; inc %r10\n"
     "inc %r11; inc %r12; inc %r13; inc %r14; inc %r15\n"
     "rdfsbase %r14; inc %r14; wrfsbase %r14; rdgsbase %r14; inc %r14; wrgsbase %r14\n"
     "paddd %xmm1, %xmm0; fld1; std; stc\n"
     "mov $0x2b, %r14d; mov %r14d, %es; ud2");

static void what_guest_code_changes_is_seen(void **state)
{
    (void)state;
    static uint8_t image[NEW_XSAVE_SIZE];
    struct worker_regs *r = worker_regs(w, 0);
    uint32_t sum[4];
    size_t size;

    PUT(changes);
    for (unsigned i = 0; i < 16; i++)
        r->gpr[i] = 0x1000 * i;
    r->fs_base = 0x1111;
    r->gs_base = 0x2222;
    r->rflags = 0x202;
    random_image(image);
    *(uint16_t *)(image + 2) = 0;
    image[4] = 0;
    memcpy(worker_new_xsave(w, 0, vector_mask()), image, sizeof image);
    struct worker_event e = run();
    assert_int_equal(e.signal, SIGILL);
    assert_int_equal(e.trap, 6);
    for (unsigned i = 0; i < 16; i++)
        if (i != RSP && i != R14)
            assert_int_equal(r->gpr[i], 0x1000 * i + 1);
    assert_int_equal(r->fs_base, 0x1112);
    assert_int_equal(r->gs_base, 0x2223);
    assert_int_equal(flags_seen() & (FL_DF | FL_CF), FL_DF | FL_CF);
    assert_int_equal(r->es, 0x2b);
    assert_int_equal(r->cs, 0x33);
    assert_int_equal(r->ss, 0x2b);
    const uint8_t *back = worker_xsave(w, 0, &size);
    assert_true(size >= 832);
    for (unsigned i = 0; i < 4; i++)
        sum[i] = ((uint32_t *)(image + 160))[i] + ((uint32_t *)(image + 176))[i];
    assert_memory_equal(back + 160, sum, 16);
    assert_int_equal(*(uint64_t *)(back + 32), 1ull << 63);
    assert_int_equal(*(uint16_t *)(back + 40), 0x3fff);
}

// ---- faults
CODE(load, "mov (%rsi), %rax; syscall");
CODE(store, "mov %rax, (%rsi); syscall");

static void a_page_fault_says_where_and_a_mapping_lets_it_go_on(void **state)
{
    (void)state;
    struct worker_regs *r = worker_regs(w, 0);

    PUT(store);
    r->gpr[RSI] = 0x123456789ab8;
    r->gpr[RAX] = 0x55aa;
    struct worker_event e = run();
    assert_int_equal(e.why, WORKER_SIGNAL);
    assert_int_equal(e.signal, SIGSEGV);
    assert_int_equal(e.code, 1);
    assert_int_equal(e.trap, 14);
    assert_int_equal(e.error, 6);
    assert_int_equal(e.address, 0x123456789ab8);
    assert_int_equal(r->rip, CODE_LA);
    assert_true(worker_map(w, 0, 0x123456789000, PAGE, 0x30000, PROT_READ));
    e = run();
    assert_int_equal(e.error, 7);
    assert_true(worker_protect(w, 0, 0x123456789000, PAGE, PROT_READ | PROT_WRITE));
    is_syscall(run(), CODE_LA + 5);
    assert_int_equal(*(uint64_t *)(ram + 0x30ab8), 0x55aa);
    assert_true(worker_unmap(w, 0, 0x123456789000, PAGE));
    r->rip = CODE_LA;
    e = run();
    assert_int_equal(e.error, 6);
    r->rip = 0x234560001000; // and an instruction fetch
    e = run();
    assert_int_equal(e.trap, 14);
    assert_int_equal(e.error, 0x14);
    assert_int_equal(e.address, 0x234560001000);
    assert_int_equal(r->rip, 0x234560001000);
}

CODE(v_divide, "nop; xor %ecx, %ecx; div %ecx");
CODE(v_ud, "nop; ud2");
CODE(v_int3, "nop; int3");
CODE(v_step, "pushf; orl $0x100, (%rsp); popf; nop; nop");
CODE(v_canonical, "mov $0x8000000000000000, %rax; mov (%rax), %al");
CODE(v_stack, "mov $0x8000000000000000, %rbp; mov (%rbp), %al");
CODE(v_hlt, "nop; hlt");
CODE(v_int21, "nop; int $0x21");
CODE(v_ac, "pushf; orl $0x40000, (%rsp); popf; mov %eax, 1(%rsp)");
CODE(v_int80, "mov $1, %eax; int $0x80");
CODE(v_vsyscall, "mov $0xffffffffff600000, %rcx; call *%rcx");
CODE(v_vsyscall_inside, "mov $0xffffffffff600001, %rcx; call *%rcx");
CODE(v_x32, "mov $0x40000009, %eax; syscall");
CODE(v_sysenter, "mov %rsp, %rbp; nop; sysenter");
CODE(v_mf, "fninit; fldcw 2(%rsp); fldz; fld1; fdiv %st(1), %st; fwait");
CODE(v_xm, "movl $0, 8(%rsp); ldmxcsr 8(%rsp); divss %xmm0, %xmm0");
CODE(v_nt, "pushf; orl $0x4000, (%rsp); popf; nop; ud2"); // IRETQ would fault with it
CODE(v_icebp, "nop; .byte 0xf1");

static void every_exception_is_an_event_at_its_instruction(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        const uint8_t *code, *end;
        int signal;
        uint32_t trap, error;
        uint64_t rip;
    } cases[] = {
#define CASE(name, ...) {#name, name, name##_end, __VA_ARGS__}
        CASE(v_divide, SIGFPE, 0, 0, CODE_LA + 3),
        CASE(v_ud, SIGILL, 6, 0, CODE_LA + 1),
        CASE(v_int3, SIGTRAP, 3, 0, CODE_LA + 2),
        CASE(v_nt, SIGILL, 6, 0, CODE_LA + 10),

        CASE(v_step, SIGTRAP, 1, 0, CODE_LA + 10),
        CASE(v_canonical, SIGSEGV, 13, 0, CODE_LA + 10),
        CASE(v_stack, SIGBUS, 12, 0, CODE_LA + 10),
        CASE(v_hlt, SIGSEGV, 13, 0, CODE_LA + 1),
        CASE(v_int21, SIGSEGV, 13, 0x21 * 8 + 2, CODE_LA + 1),
        CASE(v_ac, SIGBUS, 17, 0, CODE_LA + 9),
        CASE(v_mf, SIGFPE, 16, 0, CODE_LA + 12),
        CASE(v_xm, SIGFPE, 19, 0, CODE_LA + 13),
        CASE(v_int80, SIGSYS, WORKER_TRAP_INT80, 0, CODE_LA + 7),
        CASE(v_x32, SIGSYS, WORKER_TRAP_SYSCALL, 0, CODE_LA + 7),
        CASE(v_vsyscall, SIGSYS, WORKER_TRAP_SYSCALL, 0, 0xffffffffff600000),
        CASE(v_vsyscall_inside, SIGSEGV, 14, 0x14, 0xffffffffff600001),
        CASE(v_sysenter, SIGILL, 6, 0, CODE_LA + 4),
    };
    struct worker_regs *r = worker_regs(w, 0);

    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (unsigned times = 0; times < 3; times++) { // one leaves nothing that disturbs the next
            r->rflags = 0x202;
            put_code(cases[i].code, (size_t)(cases[i].end - cases[i].code));
            uint64_t rsp = r->rsp;
            *(uint32_t *)(ram + DATA_RAM + DATA_SIZE - 256) = 0x03730000; // for FLDCW: ZE not masked
            struct worker_event e = run_for(500000);
            assert_int_equal(e.why, WORKER_SIGNAL);
            // Intel's: a system call of 32-bit code, or none if its stack can't be read; then into the vDSO that isn't there
            if (cases[i].code == v_sysenter && (e.signal == SIGSYS || (e.signal == SIGSEGV && e.trap == 14 && e.error == 0x14)))
                continue;
            if (cases[i].code == v_vsyscall && e.signal == SIGSEGV) // a host without that page
                continue;
            if (e.signal != cases[i].signal || e.trap != cases[i].trap || r->rip != cases[i].rip ||
                (e.trap != 14 && e.error != cases[i].error))
                fail_msg("%s: signal %d code %d trap %x error %x rip %lx", cases[i].name, e.signal, e.code,
                         e.trap, e.error, r->rip);
            if (cases[i].code == v_vsyscall) {
                assert_int_equal(r->rsp, rsp - 8);
                assert_int_equal(*(uint64_t *)(ram + DATA_RAM + DATA_SIZE - 264), CODE_LA + 9);
            }
            if (cases[i].code == v_step)
                assert_true(r->rflags & FL_TF);
            // Its x87 state may have an exception pending, which is the next one's.
            memset(worker_new_xsave(w, 0, ~0ull), 0, 24);
            *(uint32_t *)(worker_new_xsave(w, 0, ~0ull) + 24) = 0x1f80;
        }
    }
}

CODE(nops, "nop; nop; nop; syscall");

static void a_trap_flag_of_the_state_traps_after_one_instruction(void **state)
{
    (void)state;
    struct worker_regs *r = worker_regs(w, 0);

    PUT(nops);
    r->rflags = 0x202 | FL_TF;
    for (unsigned i = 1; i <= 3; i++) {
        struct worker_event e = run();
        assert_int_equal(e.signal, SIGTRAP);
        assert_int_equal(e.trap, 1);
        assert_int_equal(r->rip, CODE_LA + i);
        assert_int_equal(flags_seen(), 0x202 | FL_TF);
    }
}

// ---- kicks
CODE(spin, "1: jmp 1b");
// Each round leaves the registers in agreement but for the step under way; the vector registers too.
CODE(count, "1: inc %rax; inc %rcx; inc %rdx; inc %rbx; inc %rbp; inc %rsi; inc %rdi; inc %r8; inc %r9; inc "
            "%r10; inc %r11\n"
            "inc %r12; inc %r13; inc %r14; inc %r15; paddq %xmm1, %xmm0; paddq %xmm1, %xmm15; jmp 1b");

static void a_spinning_loop_stops_when_kicked(void **state)
{
    (void)state;
    PUT(spin);
    uint64_t start = now_ns();
    struct worker_event e = run_for(10000);
    assert_int_equal(e.why, WORKER_KICKED);
    assert_int_equal(worker_regs(w, 0)->rip, CODE_LA);
    assert_true(now_ns() - start < 2000000000u);
    assert_true(worker_is_parked(w, 0));
    worker_kick(w, 0); // while it is stopped: it does not get far
    assert_int_equal(run().why, WORKER_KICKED);
    assert_int_equal(worker_regs(w, 0)->rip, CODE_LA);
}

static void agree(uint64_t xmm0, uint64_t xmm15)
{
    static const unsigned order[] = {RAX, RCX, RDX, RBX, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15};
    const struct worker_regs *r = worker_regs(w, 0);
    const unsigned n = sizeof order / sizeof order[0];
    uint64_t value[sizeof order / sizeof order[0] + 2];
    unsigned steps = 0;

    for (unsigned i = 0; i < n; i++)
        value[i] = r->gpr[order[i]];
    value[n] = xmm0;
    value[n + 1] = xmm15;
    for (unsigned i = 1; i < n + 2; i++)
        if (value[i] != value[i - 1]) {
            assert_int_equal(value[i] + 1, value[i - 1]);
            steps++;
        }
    assert_true(steps <= 1);
    assert_in_range(r->rip, CODE_LA, CODE_LA + (uint64_t)(count_end - count));
}

static void start_counting(void)
{
    uint8_t *image;

    PUT(count);
    for (unsigned i = 0; i < 16; i++)
        worker_regs(w, 0)->gpr[i] = 0;
    image = worker_new_xsave(w, 0, 3);
    memset(image, 0, 576);
    *(uint32_t *)(image + 24) = 0x1f80;
    *(uint64_t *)(image + 176) = 1;
    *(uint64_t *)(image + 512) = 3;
}

static void check_count(void)
{
    size_t size;
    const uint8_t *image = worker_xsave(w, 0, &size);

    agree(*(uint64_t *)(image + 160), *(uint64_t *)(image + 160 + 16 * 15));
}

static void busy(unsigned rounds)
{
    for (volatile unsigned i = 0; i < rounds; i++)
        ;
}

// On two CPUs kicks hit every place in the stub and in guest code, when the waits before them reach as far as a wake-up takes:
// `longest` (rounds of busy()) is doubled until some do. On one, they come where the scheduler lets us, and after it was asked
// to let the worker go first.
static void kick_at_random(unsigned kicks, unsigned longest, bool one_cpu)
{
    uint64_t limit =
        now_ns() + LONGEST_NS; // a machine that does other things too does them at each of our waits
    struct worker_event e;
    unsigned done = 0, in_guest = 0, hits = 0; // kicks that found guest code running, of all and of the last 256
    uint64_t rounds = 0;

    start_counting();
    for (unsigned i = 0; i < kicks && now_ns() < limit; i++, done++) {
        worker_resume(w, 0);
        if (i % 3) // or at once
            busy((unsigned)(random64() % longest));
        if (one_cpu && i % 6 == 1)
            sched_yield();
        worker_kick(w, 0);
        if (i % 7 == 0)
            worker_kick(w, 0);
        if (i % 5 == 0) // another's, that the owner knows nothing of
            syscall(SYS_tgkill, worker_pid(w, 0), worker_pid(w, 0), WORKER_KICK_SIGNAL);
        while (!worker_wait(w, 0, &e))
            ;
        assert_int_equal(e.why, WORKER_KICKED);
        check_count();
        hits += worker_regs(w, 0)->gpr[RAX] != rounds;
        rounds = worker_regs(w, 0)->gpr[RAX];
        if (i % 256 == 255) {
            if (!hits && longest < 1u << 20)
                longest *= 2;
            in_guest += hits;
            hits = 0;
        }
        if (i % 11 == 0)
            worker_kick(w, 0);
        if (i % 13 == 0)
            syscall(SYS_tgkill, worker_pid(w, 0), worker_pid(w, 0), WORKER_KICK_SIGNAL);
        if (i % 4 == 0)
            assert_true(worker_is_parked(w, 0));
        if (i % 17 == 0) { // the state as it is, but from our image
            static uint8_t image[NEW_XSAVE_SIZE];
            size_t size;
            memcpy(image, worker_xsave(w, 0, &size), 576);
            assert_true(size <= sizeof image);
            image[512] |= 3;
            memcpy(worker_new_xsave(w, 0, 3), image, 576);
            memset(worker_new_xsave(w, 0, 3) + 512, 0, 64);
            worker_new_xsave(w, 0, 3)[512] = image[512] & 3;
        }
    }
    in_guest += hits;
    print_message("%u kicks, %u of them in guest code\n", done, in_guest);
    assert_true(in_guest > 0);
    assert_true(in_guest < done);
}

static void pin(int pid, int cpu, const cpu_set_t *all)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    sched_setaffinity(pid, sizeof one, cpu < 0 ? all : &one);
}

static void pin_all(int ours, int runner)
{
    static cpu_set_t all;
    if (!CPU_COUNT(&all))
        sched_getaffinity(0, sizeof all, &all);
    pin(0, ours, &all);
    pin(worker_pid(w, 0), runner, &all);
    pin(worker_mapper(w, 0), runner, &all);
}

static void no_kick_is_lost_and_none_changes_a_register(void **state)
{
    (void)state;
    pin_all(0, 1);
    kick_at_random(50000, 60000, false);
    pin_all(0, 0);
    kick_at_random(50000, 200, true);
    pin_all(-1, -1);
}

static volatile unsigned storm_kicks;

static void on_storm(int signal)
{
    (void)signal;
    storm_kicks++;
    worker_kick(w, 0);
}

// As the owner's timer does: a kick from a signal handler, at any of the owner's own instructions.
static void kicks_from_a_signal_handler_are_not_lost(void **state)
{
    (void)state;
    struct sigaction sa = {.sa_handler = on_storm, .sa_flags = SA_RESTART};
    struct itimerval t = {{0, 100}, {0, 100}};
    uint64_t limit = now_ns() + LONGEST_NS;

    start_counting();
    sigaction(SIGALRM, &sa, NULL);
    setitimer(ITIMER_REAL, &t, NULL);
    for (unsigned i = 0; i < 5000 && now_ns() < limit; i++) {
        assert_int_equal(run().why, WORKER_KICKED); // would never end otherwise
        check_count();
    }
    assert_true(storm_kicks > 100);
}

CODE(syscalls, "1: inc %r15; mov %r15, %rax; syscall; jmp 1b");

CODE(syscalls_count,
     "inc %rdx; inc %rbx; inc %rbp; inc %rsi; inc %rdi; inc %r8; inc %r9; inc %r10; inc %r12; inc %r13\n"
     "inc %r14; inc %r15; paddq %xmm1, %xmm0; syscall");

static void a_kick_does_not_swallow_an_event(void **state)
{
    (void)state;
    struct sigaction sa = {.sa_handler = on_storm};
    struct itimerval t = {{0, 50}, {0, 50}};
    struct worker_regs *r = worker_regs(w, 0);
    unsigned kicked = 0;
    uint64_t seen = 0, limit = now_ns() + LONGEST_NS;

    PUT(syscalls);
    r->gpr[R15] = 0;
    sigaction(SIGALRM, &sa, NULL);
    setitimer(ITIMER_REAL, &t, NULL);
    while (seen < 100000 && now_ns() < limit) {
        struct worker_event e = run();
        if (e.why == WORKER_KICKED) {
            kicked++;
            continue;
        }
        is_syscall(e, CODE_LA + 8);
        seen++;
        assert_int_equal(r->gpr[R15], seen);
        assert_int_equal(r->gpr[RAX], seen);
    }
    assert_true(kicked > 0);
}

// Another process kicks without end, so that kicks come at every place in the stub. Each event of the guest's
// own is seen once and in order all the same, and in between nothing is changed.
static void kicks_in_the_stub_change_nothing(void **state)
{
    (void)state;
    struct worker_regs *r = worker_regs(w, 0);
    uint64_t seen = 0, limit;
    unsigned kicked = 0;
    size_t size;

    pin_all(0, 0);
    pid_t owner = getpid(), storm = fork();
    if (!storm) {
        pin(0, 1, NULL);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        while (getppid() == owner) {
            syscall(SYS_tgkill, worker_pid(w, 0), worker_pid(w, 0), WORKER_KICK_SIGNAL);
            busy(100000 +
                 (unsigned)(random64() % 100000)); // on a virtual CPU, an interrupt may take that long
        }
        _exit(0);
    }
    PUT(syscalls_count);
    for (unsigned i = 0; i < 16; i++)
        r->gpr[i] = 0;
    uint8_t *image = worker_new_xsave(w, 0, 3);
    memset(image, 0, 576);
    *(uint32_t *)(image + 24) = 0x1f80;
    *(uint64_t *)(image + 176) = 1;
    *(uint64_t *)(image + 512) = 3;
    r->fs_base = 0x1234567;
    for (limit = now_ns() + 3000000000u; now_ns() < limit;) {
        struct worker_event e = run();
        assert_int_equal(r->fs_base, 0x1234567);
        assert_int_equal(r->rsp, DATA_LA + DATA_SIZE - 256);
        if (e.why == WORKER_KICKED) {
            kicked++;
            continue;
        }
        is_syscall(e, CODE_LA + (uint64_t)(syscalls_count_end - syscalls_count));
        seen++;
        const uint64_t *xmm = (const uint64_t *)(worker_xsave(w, 0, &size) + 160);
        assert_int_equal(xmm[0], seen);
        for (unsigned i = 0; i < 16; i++)
            if (i != RAX && i != RCX && i != R11 && i != RSP)
                assert_int_equal(r->gpr[i], seen);
        assert_true(worker_is_parked(w, 0));
        r->rip = CODE_LA;
    }
    kill(storm, SIGKILL);
    waitpid(storm, NULL, 0);
    pin_all(-1, -1);
    assert_true(seen > 0);
    print_message("%u kicks, %lu system calls\n", kicked, seen);
}

// ---- commands
static void commands_are_done_in_order_and_neighbours_become_one(void **state)
{
    (void)state;
    struct worker_regs *r = worker_regs(w, 0);

    assert_false(worker_has_commands(w, 0));
    *(uint64_t *)(ram + 0x80000) = 111;
    *(uint64_t *)(ram + 0x81000) = 222;
    for (unsigned i = 0; i < 1000; i++) // far more than the queue holds
        if (!worker_map(w, 0, 0x100000000 + i * PAGE, PAGE, 0x80000 + i * PAGE % 0x100000, PROT_READ)) {
            assert_int_equal(worker_sync(w, 0), 0);
            assert_true(
                worker_map(w, 0, 0x100000000 + i * PAGE, PAGE, 0x80000 + i * PAGE % 0x100000, PROT_READ));
        }
    assert_true(worker_has_commands(w, 0));
    PUT(load);
    r->gpr[RSI] = 0x100001000;
    is_syscall(run(), CODE_LA + 5);
    assert_false(worker_has_commands(w, 0));
    unsigned n = 0;
    while (worker_map(w, 0, 0x100000000 + n * 2 * PAGE, PAGE, 0x81000, PROT_READ))
        n++;
    assert_in_range(n, 100, 1000);
    assert_int_equal(worker_sync(w, 0), 0);
    r->rip = CODE_LA;
    r->gpr[RSI] = 0x100000000;
    is_syscall(run(), CODE_LA + 5);
    worker_unmap(w, 0, 0x100000000, PAGE);
    worker_map(w, 0, 0x100000000, PAGE, 0x80000, PROT_READ);
    worker_unmap(w, 0, 0x100001000, 1000 * PAGE);
    r->rip = CODE_LA;
    is_syscall(run(), CODE_LA + 5);
    r->rip = CODE_LA;
    r->gpr[RSI] = 0x100001000;
    assert_int_equal(run().trap, 14);
}

static void a_command_that_fails_is_reported_and_those_behind_it_are_done(void **state)
{
    (void)state;
    struct worker_regs *r = worker_regs(w, 0);

    worker_map(w, 0, 0x100000123, PAGE, 0, PROT_READ);
    assert_int_equal(worker_sync(w, 0), -EINVAL);
    static const uint64_t bad[] = {0, 0x1000, WORKER_BASE, WORKER_END - PAGE, WORKER_TOP, ~0ull << 12};
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        worker_map(w, 0, bad[i], PAGE, 0, PROT_READ);
        assert_int_equal(worker_sync(w, 0), -EINVAL);
        worker_unmap(w, 0, bad[i], PAGE);
        assert_int_equal(worker_sync(w, 0), -EINVAL);
        worker_protect(w, 0, bad[i], PAGE, 7);
        assert_int_equal(worker_sync(w, 0), -EINVAL);
    }
    worker_protect(w, 0, 0x100000000, PAGE, PROT_READ);
    worker_map(w, 0, 0x100000000, PAGE, 0x5000, PROT_READ);
    PUT(load);
    r->gpr[RSI] = 0x100000000;
    struct worker_event e = run();
    assert_int_equal(e.why, WORKER_NO_ROOM);
    assert_int_equal(e.error, ENOMEM);
    assert_int_equal(r->rip, CODE_LA);
    is_syscall(run(), CODE_LA + 5);
}

static void kicks_while_the_mapper_works_are_not_lost(void **state)
{
    (void)state;
    struct worker_event e;
    uint64_t limit = now_ns() + LONGEST_NS;

    start_counting();
    for (unsigned i = 0; i < 5000 && now_ns() < limit; i++) {
        worker_map(w, 0, 0x100000000 + (i & 1) * PAGE, PAGE, 0x80000, PROT_READ);
        worker_map(w, 0, 0x200000000, PAGE, 0x80000, PROT_READ);
        worker_resume(w, 0);
        busy((unsigned)(random64() % 3000));
        worker_kick(w, 0);
        while (!worker_wait(w, 0, &e))
            ;
        assert_int_equal(e.why, WORKER_KICKED);
        check_count();
    }
}

// ---- the end
static void a_killed_worker_has_no_thread_left(void **state)
{
    (void)state;
    char path[64];
    struct worker_event e;

    PUT(spin);
    worker_resume(w, 0);
    busy(100000);
    worker_kill(w, 0);
    siginfo_t info = {0};
    assert_int_equal(waitid(P_PID, (id_t)worker_pid(w, 0), &info, WEXITED | WNOWAIT | WNOHANG | __WALL), 0);
    snprintf(path, sizeof path, "/proc/%d/task/%d/stat", worker_pid(w, 0), worker_mapper(w, 0));
    while (!info.si_pid) // what is left is to be noticed by its parent
        assert_int_equal(waitid(P_PID, (id_t)worker_pid(w, 0), &info, WEXITED | WNOWAIT | __WALL), 0);
    assert_int_not_equal(access(path, F_OK), 0);
    assert_false(worker_is_parked(w, 0));
    assert_true(worker_wait(w, 0, &e));
    assert_int_equal(e.why, WORKER_DIED);
    assert_int_equal(run().why, WORKER_DIED);
    worker_map(w, 0, 0x100000000, PAGE, 0, PROT_READ);
    assert_int_equal(worker_sync(w, 0), -ESRCH);
    assert_int_equal(run().why, WORKER_DIED);
    worker_kick(w, 0);
    worker_kill(w, 0);
}

static void who_dies_wakes_its_owner(void **state)
{
    (void)state;
    struct worker_event e;

    for (unsigned i = 0; i < 60; i++) {
        PUT(spin);
        if (i % 3 == 0) // asleep
            kill(worker_pid(w, 0), SIGKILL);
        worker_resume(w, 0);
        busy((unsigned)(random64() % 100000));
        if (i % 3)
            kill(worker_pid(w, 0), SIGKILL);
        if (i % 3 == 1)
            busy((unsigned)(random64() % 100000));
        while (!worker_wait(w, 0, &e))
            ;
        assert_int_equal(e.why, WORKER_DIED);
        workers_destroy(w);
        start_worker();
    }
}

static void a_worker_ends_with_its_owner(void **state)
{
    (void)state;
    int fds[2];
    char c;

    assert_int_equal(pipe(fds), 0);
    pid_t owner = fork();
    if (!owner) {
        struct workers *mine;
        int pids[3];
        if (workers_create(&mine, 3, ram_fd, NULL, 0))
            _exit(1);
        for (unsigned i = 0; i < 3; i++)
            pids[i] = worker_pid(mine, i);
        (void)!write(fds[1], pids, sizeof pids);
        for (;;)
            pause();
    }
    int pids[3];
    assert_int_equal(read(fds[0], pids, sizeof pids), sizeof pids);
    close(fds[1]);
    kill(owner, SIGKILL);
    waitpid(owner, NULL, 0);
    assert_int_equal(read(fds[0], &c, 1), 0); // nobody has its other end: a worker has no file but RAM
    close(fds[0]);
    uint64_t limit = now_ns() + 10000000000u;
    for (unsigned i = 0; i < 3; i++)
        while (!kill(pids[i], 0) && now_ns() < limit) {
            char path[64], line[256] = {0};
            snprintf(path, sizeof path, "/proc/%d/stat", pids[i]);
            FILE *f = fopen(path, "r");
            if (!f || !fgets(line, sizeof line, f) || strstr(line, ") Z")) {
                if (f)
                    fclose(f);
                break;
            }
            fclose(f);
            sched_yield();
        }
    assert_true(now_ns() < limit);
}

static void a_worker_holds_nothing_but_its_own_pages_and_ram(void **state)
{
    (void)state;
    char path[64], line[512], list[4096] = {0};
    unsigned files = 0;

    snprintf(path, sizeof path, "/proc/%d/maps", worker_pid(w, 0));
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        char *dash = strchr(line, ' ');
        strncat(list, line, (size_t)(dash - line) + 5);
        strcat(list, "\n");
    }
    fclose(f);
    assert_string_equal(list,
                        "00010000-00011000 r-xp\n00011000-00013000 r--s\n00013000-00018000 rw-s\n"
                        "00020000-0002e000 rw-s\n00400000-00401000 r-xs\n7fff00000000-7fff00010000 rw-s\n"
                        "ffffffffff600000-ffffffffff601000 --xp\n");
    for (int fd = 0; fd < 256; fd++) {
        snprintf(path, sizeof path, "/proc/%d/fd/%d", worker_pid(w, 0), fd);
        files += !access(path, F_OK) || readlink(path, line, sizeof line) > 0;
    }
    assert_int_equal(files, 1);
}

// It says that it was kicked, wakes nobody, and runs on.
CODE(claims, "movl $2, 0x13008; movl $2, 0x13000; 1: jmp 1b");

static void on_nothing(int signal)
{
    (void)signal;
}

// An owner that is woken now and then, but does not kick.
static void wake_often(bool on)
{
    struct itimerval t = {{0, on ? 5000 : 0}, {0, on ? 5000 : 0}};
    struct sigaction sa = {.sa_handler = on_nothing};

    sigaction(SIGALRM, &sa, NULL);
    setitimer(ITIMER_REAL, &t, NULL);
}

// As in the cell's sandbox: futex(), sched_yield(), and tgkill() to the worker's process; rt_sigreturn() for
// its signals.
static int in_a_sandbox(void)
{
    struct worker_event e;
    start_worker();
    const struct sock_filter f[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigreturn, 6, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_futex, 5, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_sched_yield, 4, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_tgkill, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)worker_pid(w, 0), 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    wake_often(true);
    const struct sock_fprog program = {sizeof f / sizeof f[0], (struct sock_filter *)f};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
        return 1;
    PUT(just_syscall);
    if (run().signal != SIGSYS)
        return 2;
    worker_map(w, 0, 0x100000000, PAGE, 0x80000, PROT_READ);
    if (worker_sync(w, 0))
        return 3;
    PUT(spin);
    worker_resume(w, 0);
    worker_kick(w, 0);
    while (!worker_wait(w, 0, &e))
        ;
    if (e.why != WORKER_KICKED || !worker_is_parked(w, 0))
        return 4;
    PUT(claims);
    if (run().why != WORKER_KICKED || worker_is_parked(w, 0))
        return 5;
    worker_kill(w, 0);
    return run().why == WORKER_DIED ? 0 : 6;
}

static void its_owner_needs_three_system_calls(void **state)
{
    (void)state;
    int status;
    pid_t owner = fork();

    if (!owner)
        _exit(in_a_sandbox());
    assert_int_equal(waitpid(owner, &status, 0), owner);
    assert_int_equal(status, 0);
}

// ---- hostile code
CODE(jump_rbx, "jmp *%rbx");

extern const uint8_t stub_begin[], stub_end[], stub_called[];

static uint64_t stub_at(const uint8_t *label)
{
    return WORKER_BASE + (uint64_t)(label - stub_begin);
}

// Whatever has happened, the owner can tell whether the worker is parked, or it is dead; a new one is made
// then.
static void still_in_hand(struct worker_event e)
{
    if (e.why != WORKER_DIED && worker_is_parked(w, 0)) {
        worker_map(w, 0, 0x300000000, PAGE, 0x90000, PROT_READ); // the mapper is whole
        if (worker_sync(w, 0) == 0)
            return;
    }
    worker_kill(w, 0);
    workers_destroy(w);
    start_worker();
}

static void the_stubs_system_call_does_nothing_else(void **state)
{
    (void)state;
    static const int calls[] = {SYS_mmap,
                                SYS_mprotect,
                                SYS_munmap,
                                SYS_rt_sigreturn,
                                SYS_exit,
                                SYS_exit_group,
                                SYS_kill,
                                SYS_tgkill,
                                SYS_read,
                                SYS_write,
                                SYS_open,
                                SYS_clone,
                                SYS_execve,
                                SYS_futex,
                                SYS_sched_yield,
                                SYS_rt_sigprocmask,
                                SYS_rt_sigaction,
                                SYS_sigaltstack,
                                SYS_arch_prctl,
                                SYS_set_tid_address,
                                SYS_seccomp,
                                SYS_ptrace,
                                SYS_mremap,
                                SYS_brk,
                                0x40000000 | SYS_mmap,
                                0x40000000 | SYS_futex,
                                -1,
                                449,
                                454,
                                455};
    struct worker_regs *r = worker_regs(w, 0);

    for (unsigned i = 0; i < sizeof calls / sizeof calls[0]; i++) {
        PUT(jump_rbx);
        r->gpr[RBX] = stub_at(stub_called) - 2;
        r->gpr[RAX] = (uint64_t)(int64_t)calls[i];
        r->gpr[RDI] = calls[i] == SYS_futex ? STATE_PAGE + ST_WHY : 0;
        r->gpr[RSI] = calls[i] == SYS_kill || calls[i] == SYS_tgkill ? 9 : 0;
        r->gpr[RDX] = r->gpr[R10] = 0;
        is_syscall(run_for(500000), stub_at(stub_called));
        assert_int_equal((int)r->gpr[RAX], calls[i]);
        assert_true(worker_is_parked(w, 0));
    }
}

static void the_stubs_futex_call_takes_its_own_arguments_only(void **state)
{
    (void)state;
    static const struct {
        uint64_t word, op, timeout;
        bool allowed;
    } cases[] = {
        {STATE_PAGE + ST_GO, 0, 0, true},
        {STATE_PAGE + ST_TURN, 1, 0, true},
        {STATE_PAGE + ST_TURN, 0, 0, false},
        {STATE_PAGE + ST_GO, 1, 0, false},
        {STATE_PAGE + ST_GO, 0, DATA_LA, false},
        {STATE_PAGE + ST_GO, 0, 1ull << 32, false},
        {1ull << 32 | (STATE_PAGE + ST_GO), 0, 0, false},
        {1ull << 32 | (STATE_PAGE + ST_TURN), 1, 0, false},
        {COMMAND_PAGE + CMD_SEQUENCE, 0, 0, false},
        {COMMAND_PAGE + CMD_SEQUENCE, 1, 0, false},
        {STATE_PAGE + ST_GO, 2, 0, false},
        {STATE_PAGE + ST_GO, 3, 0, false},
        {STATE_PAGE + ST_GO, 4, 0, false},
        {STATE_PAGE + ST_TURN, 5, 0, false},
        {STATE_PAGE + ST_GO, 6, 0, false},
        {STATE_PAGE + ST_GO, 9, 0, false},
        {STATE_PAGE + ST_GO, 128, 0, false},
        {STATE_PAGE + ST_TURN, 129, 0, false},
        {STATE_PAGE + ST_TURN, 257, 0, false},
    };
    struct worker_regs *r = worker_regs(w, 0);

    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        PUT(jump_rbx);
        r->gpr[RBX] = stub_at(stub_called) - 2;
        r->gpr[RAX] = SYS_futex;
        r->gpr[RDI] = cases[i].word;
        r->gpr[RSI] = cases[i].op;
        r->gpr[R10] = cases[i].timeout;
        r->gpr[RDX] = cases[i].op == 0; // sleeps though it is its turn
        struct worker_event e = run_for(2000);
        if (!cases[i].allowed)
            is_syscall(e, stub_at(stub_called));
        else
            assert_int_equal(e.why, WORKER_KICKED);
        still_in_hand(e);
        r = worker_regs(w, 0);
    }
}

// What the stub may do, from elsewhere.
static void guest_code_has_no_futex_of_its_own(void **state)
{
    (void)state;
    struct worker_regs *r = worker_regs(w, 0);

    for (unsigned op = 0; op < 2; op++) {
        PUT(just_syscall);
        r->gpr[RAX] = SYS_futex;
        r->gpr[RDI] = STATE_PAGE + (op ? ST_TURN : ST_GO);
        r->gpr[RSI] = op;
        r->gpr[RDX] = 1;
        r->gpr[R10] = 0;
        is_syscall(run_for(100000), CODE_LA + 2);
    }
}

static void any_place_in_the_stub_can_be_jumped_to(void **state)
{
    (void)state;
    unsigned size = (unsigned)(stub_end - stub_begin), died = 0;

    for (unsigned at = 0; at < size; at++)
        for (unsigned how = 0; how < 4; how++) {
            struct worker_regs *r = worker_regs(w, 0);
            PUT(jump_rbx);
            for (unsigned i = 0; i < 16; i++)
                r->gpr[i] = how == 0   ? random64()
                            : how == 1 ? DATA_LA + 0x1000
                            : how == 2 ? STATE_PAGE + ST_REGS
                                       : ALT_STACK + ALT_STACK_SIZE - 0x1400;
            if (how == 1) { // a frame that is found in the handler and belongs to itself
                *(uint32_t *)(ram + DATA_RAM + 0x1000 + UC_INFO) = KICK_SIGNAL;
                *(uint64_t *)(ram + DATA_RAM + 0x1000 + UC_RIP) = WORKER_BASE;
                *(uint64_t *)(ram + DATA_RAM + 0x1000 + UC_RDX) = DATA_LA + 0x1000;
            }
            r->gpr[RBX] = WORKER_BASE + at;
            r->rsp = r->gpr[RSP];
            struct worker_event e = run_for(2000);
            died += e.why == WORKER_DIED;
            still_in_hand(e);
        }
    assert_true(died < 4 * size);
}

// RBX what to write, RDI where, RCX how many bytes, then at RBP.
CODE(overwrite, "mov %rbx, %rax; cld; rep stosq; jmp *%rbp");
CODE(overwrite_fault, "mov %rbx, %rax; cld; rep stosq; ud2");
CODE(overwrite_spin, "mov %rbx, %rax; cld; rep stosq; 1: jmp 1b");

static void its_state_and_stack_may_be_overwritten(void **state)
{
    (void)state;
    static const struct {
        uint64_t at, size;
    } areas[] = {
        {STATE_PAGE, PAGE}, {NEW_XSAVE, NEW_XSAVE_SIZE}, {ALT_STACK, ALT_STACK_SIZE}, {STATE_PAGE + 16, 112}};
    static const uint64_t values[] = {0,
                                      ~0ull,
                                      0x0000000100000001,
                                      0x0000000200000002,
                                      0x0000000000000002,
                                      0x0000000100000002,
                                      0x8000000000000000,
                                      ALT_STACK,
                                      ALT_STACK + 64,
                                      ALT_STACK + ALT_STACK_SIZE,
                                      ALT_STACK + ALT_STACK_SIZE - 64,
                                      DATA_LA,
                                      STATE_PAGE};

    for (unsigned a = 0; a < sizeof areas / sizeof areas[0]; a++)
        for (unsigned v = 0; v < sizeof values / sizeof values[0]; v++)
            for (unsigned how = 0; how < 5; how++) {
                struct worker_regs *r = worker_regs(w, 0);
                if (how < 2)
                    PUT(overwrite_fault);
                else if (how == 2)
                    PUT(overwrite_spin);
                else
                    PUT(overwrite);
                r->gpr[RBX] = values[v];
                r->gpr[RDI] = areas[a].at;
                r->gpr[RCX] = areas[a].size / 8;
                r->gpr[RBP] = how == 3 ? stub_at(stub_called) : WORKER_BASE;
                r->gpr[RDX] = ALT_STACK + ALT_STACK_SIZE - 0x1000;
                if (how == 1)
                    r->rsp = ALT_STACK + 0x4000 + v * 8;
                struct worker_event e = run_for(2000);
                if (e.why == WORKER_SIGNAL) {
                    size_t size;
                    static uint8_t copy[NEW_XSAVE_SIZE];
                    const uint8_t *image = worker_xsave(w, 0, &size);
                    assert_true(size <= sizeof copy);
                    memcpy(copy, image, size); // all of it can be read
                }
                if (how == 2 && e.why != WORKER_DIED)
                    e = run_for(2000); // and goes on, if it likes
                still_in_hand(e);
            }
}

static void a_claim_to_be_stopped_is_no_proof(void **state)
{
    (void)state;

    PUT(claims);
    wake_often(true);
    assert_int_equal(run().why, WORKER_KICKED);
    wake_often(false);
    uint64_t start = now_ns();
    assert_false(worker_is_parked(w, 0));
    assert_true(now_ns() - start < 10000000000u);
    assert_true(worker_map(w, 0, 0x100000000, PAGE, 0, PROT_READ));
    assert_int_equal(worker_sync(w, 0), -ESRCH);
    assert_int_equal(run().why, WORKER_DIED);
}

static void an_owner_that_believes_a_claim_gets_the_next_event(void **state)
{
    (void)state;
    PUT(claims);
    wake_often(true);
    assert_int_equal(run().why, WORKER_KICKED);
    wake_often(false);
    struct worker_event e = run_for(20000);
    assert_true(e.why == WORKER_KICKED || e.why == WORKER_DIED);
    still_in_hand(e);
}

// When the owner sleeps, it says that it was kicked, and sleeps in the stub's call.
CODE(sleeps,
     "1: cmpl $3, 0x13000; jne 1b; movl $2, 0x13008; movl $0, 0x13004; movl $2, 0x13000; mov $0x13004, %edi\n"
     "xor %esi, %esi; xor %edx, %edx; xor %r10d, %r10d; mov $202, %eax; jmp *%rbx");

// Nobody has woken the owner: its own signal, and the kick that it sends, do.
static void who_sleeps_without_a_word_is_found_by_a_kick(void **state)
{
    (void)state;
    struct sigaction sa = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    struct itimerval t = {.it_value = {.tv_usec = 50000}};

    PUT(sleeps);
    worker_regs(w, 0)->gpr[RBX] = stub_at(stub_called) - 2;
    sigaction(SIGALRM, &sa, NULL);
    setitimer(ITIMER_REAL, &t, NULL);
    struct worker_event e = run();
    assert_int_equal(e.why, WORKER_KICKED);
    still_in_hand(e);
}

static void a_stack_pointer_in_the_alternate_stack_ends_in_an_event_or_death(void **state)
{
    (void)state;
    for (uint64_t rsp = ALT_STACK - 64; rsp < ALT_STACK + ALT_STACK_SIZE + 128; rsp += 328) {
        struct worker_regs *r = worker_regs(w, 0);
        PUT(v_ud);
        r->rsp = rsp;
        struct worker_event e = run_for(500000);
        if (e.why != WORKER_DIED) {
            assert_int_equal(e.signal, SIGILL);
            assert_int_equal(r->rsp, rsp);
            assert_int_equal(r->rip, CODE_LA + 1);
        }
        still_in_hand(e);
    }
}

static void the_command_page_and_the_text_are_read_only(void **state)
{
    (void)state;
    struct worker_regs *r = worker_regs(w, 0);
    static const uint64_t places[] = {COMMAND_PAGE, COMMAND_PAGE + CMD_FIRST, COMMAND_PAGE + COMMAND_SIZE - 8,
                                      WORKER_BASE, WORKER_BASE + TEXT_SIZE - 8};

    for (unsigned i = 0; i < sizeof places / sizeof places[0]; i++) {
        PUT(store);
        r->gpr[RSI] = places[i];
        struct worker_event e = run();
        assert_int_equal(e.signal, SIGSEGV);
        assert_int_equal(e.trap, 14);
        assert_int_equal(e.error | 1, 7); // present or not is the host's affair
        assert_int_equal(e.address, places[i]);
    }
}

// ---- times
static int by_value(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

static void print_times(const char *name, uint64_t *times, size_t n)
{
    qsort(times, n, sizeof *times, by_value);
    print_message("%s: %lu ns, one in ten below %lu\n", name, times[n / 2], times[n / 10]);
}

static void measure(const char *name, bool parked)
{
    enum { N = 5000 };
    static uint64_t times[N];
    unsigned asleep = 0;

    for (unsigned i = 0; i < N; i++) {
        worker_regs(w, 0)->rip = CODE_LA;
        uint64_t start = now_ns();
        run();
        if (parked)
            asleep += worker_is_parked(w, 0);
        times[i] = now_ns() - start;
    }
    print_times(name, times, N);
    if (parked)
        assert_int_equal(asleep, N);
}

static void measure_maps(const char *name, unsigned pages)
{
    enum { N = 5000 };
    static uint64_t times[N];
    struct worker_regs *r = worker_regs(w, 0);
    uint64_t la = 0x500000000;

    for (unsigned i = 0; i < N; i++) {
        r->rip = CODE_LA;
        r->gpr[RSI] = la;
        uint64_t start = now_ns();
        struct worker_event e = run(); // faults
        if (e.trap != 14 || !worker_is_parked(w, 0))
            fail_msg("no fault");
        for (unsigned p = 0; p < pages; p++)
            worker_map(w, 0, la + p * PAGE, PAGE, 0x90000 + p * PAGE, PROT_READ | PROT_WRITE);
        run(); // maps and goes on to the system call
        times[i] = now_ns() - start;
        la += pages * PAGE;
    }
    print_times(name, times, N);
    assert_true(worker_unmap(w, 0, 0x500000000, la - 0x500000000));
    assert_int_equal(worker_sync(w, 0), 0);
}

static void times(void **state)
{
    (void)state;
    PUT(just_syscall);
    pin_all(0, 0);
    measure("one CPU, system call and back", false);
    measure("one CPU, system call and back, with proof", true);
    PUT(load);
    measure_maps("one CPU, fault, map a page, system call", 1);
    measure_maps("one CPU, fault, map 16 pages, system call", 16);
    PUT(just_syscall);
    pin_all(0, 1);
    measure("two CPUs, system call and back", false);
    measure("two CPUs, system call and back, with proof", true);
    pin_all(-1, -1);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(guest_code_gets_all_registers_and_gives_them_back),
        TEST(what_guest_code_changes_is_seen),
        TEST(a_page_fault_says_where_and_a_mapping_lets_it_go_on),
        TEST(every_exception_is_an_event_at_its_instruction),
        TEST(a_trap_flag_of_the_state_traps_after_one_instruction),
        TEST(a_spinning_loop_stops_when_kicked),
        TEST(no_kick_is_lost_and_none_changes_a_register),
        TEST(kicks_from_a_signal_handler_are_not_lost),
        TEST(a_kick_does_not_swallow_an_event),
        TEST(kicks_in_the_stub_change_nothing),
        TEST(commands_are_done_in_order_and_neighbours_become_one),
        TEST(a_command_that_fails_is_reported_and_those_behind_it_are_done),
        TEST(kicks_while_the_mapper_works_are_not_lost),
        TEST(a_killed_worker_has_no_thread_left),
        TEST(who_dies_wakes_its_owner),
        TEST(a_worker_ends_with_its_owner),
        TEST(a_worker_holds_nothing_but_its_own_pages_and_ram),
        TEST(its_owner_needs_three_system_calls),
        TEST(the_stubs_system_call_does_nothing_else),
        TEST(the_stubs_futex_call_takes_its_own_arguments_only),
        TEST(guest_code_has_no_futex_of_its_own),
        TEST(any_place_in_the_stub_can_be_jumped_to),
        TEST(its_state_and_stack_may_be_overwritten),
        TEST(a_claim_to_be_stopped_is_no_proof),
        TEST(an_owner_that_believes_a_claim_gets_the_next_event),
        TEST(who_sleeps_without_a_word_is_found_by_a_kick),
        TEST(a_stack_pointer_in_the_alternate_stack_ends_in_an_event_or_death),
        TEST(the_command_page_and_the_text_are_read_only),
        TEST(times),
    };

    ram_fd = memfd_create("ram", MFD_CLOEXEC);
    if (ram_fd < 0 || ftruncate(ram_fd, RAM_SIZE) < 0)
        return 1;
    ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, ram_fd, 0);
    struct workers *probe;
    if (ram == MAP_FAILED)
        return 1;
    if (!(getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE_BIT)) {
        printf("this host's kernel keeps no segment bases that programs load\n");
        return 77;
    }
    int error = workers_create(&probe, 1, ram_fd, NULL, 0);
    if (error) {
        printf("no workers here: %s\n", strerror(-error));
        return 1;
    }
    workers_destroy(probe);
    if (getenv("WORKER_TEST"))
        cmocka_set_test_filter(getenv("WORKER_TEST"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
