// User code that does what programs seldom do, and what a monitor could get wrong: prints what it sees, which must be the same
// natively, and in a guest however its user code is executed. Each case runs in a process of its own, under handlers that print
// where and why a signal came.
//   odd [NAME...]
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define CODE  ((uint8_t *)0x20000000000)
#define DATA  ((uint8_t *)0x20000100000)
#define TIMES 40 // each case, so that it is executed by whoever executes hot code too

static sigjmp_buf back;
static volatile unsigned steps;
static bool stepping, quiet;

static void show(const char *what, const greg_t *r, int sig, const siginfo_t *info)
{
    uint64_t rip = (uint64_t)r[REG_RIP] - (uint64_t)CODE, address = (uint64_t)info->si_addr;
    if (quiet)
        return;
    printf("  %s: signal %d code %d trap %lld error %llx rip %s%lx", what, sig, info->si_code, (long long)r[REG_TRAPNO],
           (unsigned long long)r[REG_ERR], rip < 0x100000 ? "code+" : "", rip < 0x100000 ? rip : (uint64_t)r[REG_RIP]);
    if (sig == SIGSEGV || sig == SIGBUS)
        printf(" address %lx", address);
    printf(" rax %llx rcx %llx flags %llx\n", (unsigned long long)r[REG_RAX], (unsigned long long)r[REG_RCX],
           (unsigned long long)r[REG_EFL] & 0x24dd5);
}

static void on_signal(int sig, siginfo_t *info, void *context)
{
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    __asm__ volatile("pushf; andl $~0x40000, (%%rsp); popf" : : : "cc", "memory"); // AC
    if (stepping && sig == SIGTRAP) {
        if (++steps < 8)
            return;
        r[REG_EFL] &= ~0x100;
        stepping = false;
        return;
    }
    show("stopped", r, sig, info);
    siglongjmp(back, 1);
}

static void put(const void *code, size_t n)
{
    memset(CODE, 0x90, 8192);
    memcpy(CODE, code, n);
}

#define SNIPPET(name, text)                                                                                       \
    extern const uint8_t name[], name##_end[];                                                                    \
    __asm__(".pushsection .rodata\n" #name ": " text "\n" #name "_end: .popsection")

static uint64_t call(uint64_t rdi)
{
    uint64_t rax = 0x1111, rcx = 0x2222;
    __asm__ volatile("sub $256, %%rsp; cmp %%eax, %%eax; call *%%rdx; add $256, %%rsp"
                     : "+a"(rax), "+c"(rcx), "+D"(rdi)
                     : "d"(CODE)
                     : "rbx", "rsi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "cc", "memory");
    return rax;
}

static void run_snippet(const uint8_t *code, const uint8_t *end)
{
    put(code, (size_t)(end - code));
    for (volatile unsigned i = 0; i < TIMES; i++) {
        quiet = i && i < TIMES - 1;
        if (!sigsetjmp(back, 1)) {
            uint64_t rax = call((uint64_t)DATA);
            if (!quiet)
                printf("  returned %lx\n", rax);
        }
    }
    quiet = false;
}

SNIPPET(s_int3, "nop; int3; ret");
SNIPPET(s_int_3, "nop; .byte 0xcd, 3; ret");
SNIPPET(s_int_4, "nop; .byte 0xcd, 4; ret");
SNIPPET(s_int_20, "int $0x20; ret");
SNIPPET(s_int_80, "mov $20, %eax; int $0x80; test %eax, %eax; setg %al; movzx %al, %eax; ret");
SNIPPET(s_ud2, "ud2; ret");
SNIPPET(s_hlt, "hlt; ret");
SNIPPET(s_cli, "cli; ret");
SNIPPET(s_in, "in $0x21, %al; ret");
SNIPPET(s_cr, "mov %cr0, %rax; ret");
SNIPPET(s_msr, "rdmsr; ret");
SNIPPET(s_lgdt, "lgdt (%rdi); ret");
SNIPPET(s_divide, "xor %ecx, %ecx; div %ecx; ret");
SNIPPET(s_noncanonical, "mov $0x8000000000000000, %rcx; mov (%rcx), %eax; ret");
SNIPPET(s_noncanonical_jump, "mov $0x8000000000000000, %rcx; jmp *%rcx");
SNIPPET(s_noncanonical_ret, "mov $0x8000000000000000, %rcx; push %rcx; ret");
SNIPPET(s_null, "xor %ecx, %ecx; movb $1, (%rcx); ret");
SNIPPET(s_kernel, "mov $0xffffffff81000000, %rcx; mov (%rcx), %eax; ret");
SNIPPET(s_no_execute, "lea 0x100000(%rip), %rcx; jmp *%rdi");
SNIPPET(s_misaligned_sse, "movaps 1(%rdi), %xmm0; ret");
SNIPPET(s_ac, "pushf; orl $0x40000, (%rsp); popf; mov 1(%rdi), %eax; pushf; andl $~0x40000, (%rsp); popf; ret");
SNIPPET(s_nt, "pushf; orl $0x4000, (%rsp); popf; mov $39, %eax; syscall; pushf; pop %rax; andl $~0x4000, %eax; push %rax; popf; "
              "mov $1, %eax; ret");
SNIPPET(s_df, "std; mov %rdi, %rsi; lea 64(%rdi), %rdi; mov $8, %ecx; rep movsb; cld; mov %rdi, %rax; sub %rsi, %rax; ret");
SNIPPET(s_pushf, "stc; pushf; pop %rax; ret");
SNIPPET(s_selectors, "mov %cs, %eax; shl $16, %eax; mov %ss, %ecx; or %ecx, %eax; mov %ds, %ecx; shl $8, %ecx; or %ecx, %eax; ret");
SNIPPET(s_load_ds, "mov $0x2b, %ecx; mov %ecx, %ds; mov $39, %eax; syscall; mov %ds, %eax; xor %ecx, %ecx; mov %ecx, %ds; ret");
SNIPPET(s_bad_ds, "mov $0x1000, %ecx; mov %ecx, %ds; ret");
SNIPPET(s_lar, "mov $0x2b, %ecx; lar %ecx, %eax; ret");
SNIPPET(s_verr, "mov $0x10, %ecx; verr %cx; setz %al; movzx %al, %eax; ret");
SNIPPET(s_sldt, "movw $0x1234, (%rdi); sldt (%rdi); movzwl (%rdi), %eax; ret");
SNIPPET(s_str, "movw $0x1234, (%rdi); str (%rdi); movzwl (%rdi), %eax; ret");
SNIPPET(s_smsw, "movw $0x1234, (%rdi); smsw (%rdi); movzwl (%rdi), %eax; ret");
SNIPPET(s_cpuid_in_the_middle, "mov $3, %eax; jmp 1f+1; 1: mov $0x90c3a20f, %eax; ret"); // leaf 3: zeros
SNIPPET(s_fs, "rdfsbase %r8; mov $0x123456789, %rcx; wrfsbase %rcx; mov $39, %eax; syscall; rdfsbase %rax; wrfsbase %r8; ret");
SNIPPET(s_gs, "mov %rdi, %rcx; wrgsbase %rcx; movq $77, 8(%rdi); mov %gs:8, %rax; ret");
SNIPPET(s_addr32, "mov $0xffffffff00000000, %rcx; or %rdi, %rcx; xor %eax, %eax; lea (%ecx), %eax; ret");
SNIPPET(s_high_bytes, "mov $0x1234, %ebx; mov %bh, 5(%rdi); mov 5(%rdi), %ah; movzx %ah, %eax; ret");
SNIPPET(s_r9_r10_r11, "mov $1, %r9d; mov $2, %r10d; mov $4, %r11d; lea (%r9,%r10,2), %rax; add %r11, %rax; mov %rax, (%rdi); "
                      "mov %rdi, %r10; xor %r9d, %r9d; add (%r10,%r9,8), %rax; ret");
SNIPPET(s_x87, "fninit; fld1; fldpi; fyl2x; fistpll (%rdi); mov (%rdi), %rax; ret");
SNIPPET(s_mf, "fninit; movw $0x37b, (%rdi); fldcw (%rdi); fldz; fld1; fdiv %st(1), %st; fwait; ret");
SNIPPET(s_xm, "movl $0, (%rdi); ldmxcsr (%rdi); divss %xmm0, %xmm0; ret");
SNIPPET(s_rep_fault, "lea 0xff8(%rdi), %rsi; mov $0x100000, %ecx; rep stosb; ret");
SNIPPET(s_cross_page_code, ".fill 4091, 1, 0x90; mov $0x12345678, %eax; ret");
SNIPPET(s_far_to_32, "sub $16, %rsp; movl $0x30000000, (%rsp); movl $0x23, 4(%rsp); ljmp *(%rsp)");
SNIPPET(s_rsp_nowhere, "mov %rsp, %rbx; mov $0x5000, %esp; push %rax; mov %rbx, %rsp; ret");
SNIPPET(s_stub, "mov $0x10000, %ecx; jmp *%rcx");

#define S(name) {#name, s_##name, s_##name##_end, NULL}
struct test {
    const char *name;
    const uint8_t *code, *end;
    void (*run)(void);
};

static void step(void)
{
    stepping = true;
    steps = 0;
    __asm__ volatile("pushf; orl $0x100, (%%rsp); popf; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop" : : : "cc", "memory");
    printf("  %u steps\n", steps);
}

// Code that writes its own bytes: a constant on the page it runs on, and one on a page mapped twice.
static void self_modifying(void)
{
    static const uint8_t code[] = {0xb8, 0, 0, 0, 0, 0xc3}; // mov $0, %eax; ret
    uint64_t sum = 0;
    put(code, sizeof code);
    for (uint32_t i = 0; i < 3000; i++) {
        memcpy(CODE + 1, &i, 4);
        sum = sum * 31 + call(0);
    }
    printf("  sum %lx\n", sum);
    uint8_t *alias = mremap(CODE, 0, 8192, MREMAP_MAYMOVE);
    for (uint32_t i = 0; i < 300; i++) {
        memcpy(alias + 1, &i, 4);
        sum = sum * 31 + call(0);
    }
    printf("  sum %lx\n", sum);
}

static void protections(void)
{
    uint8_t *p = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    volatile unsigned faults = 0;
    for (volatile unsigned i = 0; i < 200; i++) {
        p[4096] = (uint8_t)i;
        mprotect(p, 16384, i & 1 ? PROT_READ : PROT_NONE);
        if (!sigsetjmp(back, 1)) {
            quiet = true;
            ((volatile uint8_t *)p)[4096] = 1;
        } else {
            faults = faults + 1;
        }
        mprotect(p, 16384, PROT_READ | PROT_WRITE);
        if (i % 50 == 0) {
            munmap(p + 4096, 4096);
            if (!sigsetjmp(back, 1))
                ((volatile uint8_t *)p)[4096] = 1;
            else
                faults = faults + 1;
            mmap(p + 4096, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        }
    }
    quiet = false;
    printf("  %u faults\n", faults);
}

// Memory everywhere, where a monitor may have something of its own too.
static void everywhere(void)
{
    static const uint64_t places[] = {0x10000, 0x13000, 0x20000, 0x400000000, 0x10000000, 0x5f000000, 0x60000000, 0x68100000,
                                      0x6b000000, 0x7f000000, 0xc000000000, 0x7ff000000000};
    for (unsigned i = 0; i < sizeof places / sizeof places[0]; i++) {
        uint64_t *p = mmap((void *)places[i], 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        if (p == MAP_FAILED) {
            printf("  %lx: errno %d\n", places[i], errno);
            continue;
        }
        uint64_t sum = 0, zeros = 0;
        for (unsigned k = 0; k < 8192; k++)
            zeros |= p[k];
        for (unsigned round = 0; round < 200; round++)
            for (unsigned k = 0; k < 8192; k++)
                p[k] += k * 7 + round;
        for (unsigned k = 0; k < 8192; k++)
            sum = sum * 31 + p[k];
        printf("  %lx: before %lx sum %lx\n", places[i], zeros, sum);
        munmap(p, 65536);
    }
}

static void forks(void)
{
    volatile uint64_t x = 1;
    for (unsigned i = 0; i < 12; i++) {
        int status = 0;
        pid_t pid = fork();
        for (unsigned k = 0; k < 300000; k++)
            x = x * 6364136223846793005ull + (pid ? 1442695040888963407ull : 3);
        if (!pid)
            _exit((int)(x >> 33 & 0x7f));
        waitpid(pid, &status, 0);
        x += (unsigned)status;
    }
    printf("  %lx\n", x);
}

static volatile sig_atomic_t alarms;
static void on_alarm(int sig)
{
    (void)sig;
    alarms++;
}

// Vector, x87 and general registers while signals come.
static void registers_and_alarms(void)
{
    struct sigaction action = {.sa_handler = on_alarm};
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM};
    struct itimerspec often = {{0, 700000}, {0, 700000}};
    sigaction(SIGALRM, &action, NULL);
    timer_create(CLOCK_MONOTONIC, &event, &timer);
    timer_settime(timer, 0, &often, NULL);
    uint64_t bad = 0;
    for (unsigned i = 0; i < 400000 || alarms < 300; i++) {
        uint64_t a = i * 0x9e3779b97f4a7c15ull, b = ~a, out[4] = {0}, r[4];
        __asm__ volatile("movq %4, %%xmm7; movq %5, %%xmm12; vinserti128 $1, %%xmm7, %%ymm12, %%ymm3; mov %4, %%r9; mov %5, %%r10; mov %4, %%r11\n"
                         "mov $20, %%ecx; 1: lea (%%r9,%%r10), %%r8; dec %%ecx; jnz 1b\n"
                         "vextracti128 $1, %%ymm3, %%xmm5; movq %%xmm5, %0; movq %%xmm12, %1; mov %%r11, %2; mov %%r8, %3"
                         : "=m"(out[0]), "=m"(out[1]), "=m"(out[2]), "=m"(out[3])
                         : "r"(a), "r"(b)
                         : "rcx", "r8", "r9", "r10", "r11", "xmm3", "xmm5", "xmm7", "xmm12", "cc");
        r[0] = a, r[1] = b, r[2] = a, r[3] = a + b;
        bad += memcmp(out, r, sizeof r) != 0;
    }
    timer_delete(timer);
    printf("  %lu bad\n", bad);
}

static const struct test tests[] = {
    S(int3), S(int_3), S(int_4), S(int_20), S(int_80), S(ud2), S(hlt), S(cli), S(in), S(cr), S(msr), S(lgdt), S(divide), S(noncanonical),
    S(noncanonical_jump), S(noncanonical_ret), S(null), S(kernel), S(no_execute), S(misaligned_sse), S(ac), S(nt), S(df), S(pushf),
    S(selectors), S(load_ds), S(bad_ds), S(lar), S(verr), S(sldt), S(str), S(smsw), S(cpuid_in_the_middle), S(fs), S(gs), S(addr32),
    S(high_bytes), S(r9_r10_r11), S(x87), S(mf), S(xm), S(rep_fault), S(cross_page_code), S(far_to_32), S(rsp_nowhere), S(stub),
    {"step", NULL, NULL, step}, {"self_modifying", NULL, NULL, self_modifying}, {"protections", NULL, NULL, protections},
    {"everywhere", NULL, NULL, everywhere}, {"forks", NULL, NULL, forks}, {"registers_and_alarms", NULL, NULL, registers_and_alarms},
};

static void compute(void) // for as long as it takes to be noticed
{
    struct timespec a, b;
    volatile uint64_t x = 1;
    clock_gettime(CLOCK_MONOTONIC, &a);
    do {
        for (unsigned k = 0; k < 100000; k++)
            x = x * 6364136223846793005ull + 1;
        clock_gettime(CLOCK_MONOTONIC, &b);
    } while ((b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000 < 60);
}

static void run(const struct test *t)
{
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536};
    sigaltstack(&stack, NULL);
    const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS};
    for (unsigned i = 0; i < sizeof signals / sizeof signals[0]; i++)
        sigaction(signals[i], &action, NULL);
    mmap(CODE, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    mmap(DATA, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    uint8_t *low = mmap((void *)0x30000000, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    static const uint8_t code32[] = {0x40, 0x0f, 0x0b}; // inc %eax, which is a prefix in 64-bit code; ud2
    memcpy(low, code32, sizeof code32);
    compute();
    if (t->run)
        t->run();
    else
        run_snippet(t->code, t->end);
}

int main(int argc, char *argv[])
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("ODD-BEGIN");
    for (unsigned i = 0; i < sizeof tests / sizeof tests[0]; i++) {
        bool wanted = argc < 2;
        for (int k = 1; k < argc; k++)
            wanted |= !strcmp(argv[k], tests[i].name);
        if (!wanted)
            continue;
        printf("%s\n", tests[i].name);
        fflush(stdout);
        pid_t pid = fork();
        if (!pid) {
            run(&tests[i]);
            exit(0);
        }
        int status;
        waitpid(pid, &status, 0);
        if (status)
            printf("  status %x\n", status);
    }
    puts("ODD-END");
    if (getpid() == 1) {
        fflush(stdout);
        syscall(SYS_reboot, 0xfee1dead, 0x28121969, 0x4321fedc, 0);
    }
    return 0;
}
