// The native side: runs code on the host's processor from a given state, in this process.
//
// Registers are loaded and stored by native_entry.S through a frame at a fixed low address. Code that runs to
// its end jumps out (64-bit: through a pointer; compatibility mode: by a far jump to a stub). Code that
// faults arrives in a signal handler on an alternate stack, which takes the state from the signal frame and
// continues in native_resume() without sigreturn: the signal is not masked (SA_NODEFER) and the kernel looks
// only at RSP to know which stack is in use. 16-bit segments come from the LDT.
#include "tests/diff/native_frame.h"
#include "tests/diff/side.h"
#include <asm/ldt.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

void native_enter(int compat);
void native_exit(void);
_Noreturn void native_resume(void);

#define USER_CS64  0x33
#define USER_CS32  0x23
#define USER_DS    0x2b
#define CODE16_SEL 0x07 // LDT entry 0, RPL 3
#define DATA16_SEL 0x0f // LDT entry 1
// FS and GS of 32- and 16-bit code: LDT entries 2 to 5
#define EXTRA_ENTRY(mode, gs) (2u + ((mode) == MODE16 ? 2u : 0u) + (gs))
#define EXTRA_SEL(mode, gs)   (EXTRA_ENTRY(mode, gs) << 3 | 7u)

#define INT3 0xcc

#define ALT_STACK_SIZE (256 * 1024)

struct native_fault {
    int32_t vector; // VECTOR_NONE while nothing was raised
    uint32_t error;
    uint64_t address, rip;
    uint32_t xsave_size;      // bytes of the signal frame's XSAVE area that matter
    uint64_t run, run_seen;   // number of the run, and what it was at the last tick
    bool armed;               // code under test is running: a signal is its exception
    struct sigaction old[32]; // handlers of the translator, which gets the signals that are not ours
};

struct native {
    struct xsave_layout layout;
    uint8_t *code; // writable view of the code region
    void *alt_stack;
    bool handlers; // ours are installed
    uint32_t used_at, used; // the code region's bytes that are not INT3
};

// The handler finds everything at fixed addresses: signal handlers take no argument of ours.
static struct native_fault *native_fault(void)
{
    return (struct native_fault *)(uintptr_t)(FRAME_BASE + FRAME_FAULT);
}
static uint64_t *frame_word(unsigned offset)
{
    return (uint64_t *)(uintptr_t)(FRAME_BASE + offset);
}

// FS may still be the code's: no stack protector before it is the C library's again.
__attribute__((no_stack_protector)) static void on_tick(int signal_number)
{
    uint64_t fs = 0;
    bool segments = *frame_word(FRAME_SEGMENTS);
    if (segments)
        __asm__ volatile("rdfsbase %0; wrfsbase %1" : "=&r"(fs) : "r"(*frame_word(FRAME_HOST_FS)));
    __asm__ volatile("pushfq; andl $~0x40400, (%%rsp); popfq" ::: "cc", "memory");
    struct native_fault *f = native_fault();
    if (f->armed && f->run == f->run_seen) {
        f->armed = false;
        f->vector = VECTOR_HANG;
        native_resume();
    }
    f->run_seen = f->run;
    if (segments)
        __asm__ volatile("wrfsbase %0" ::"r"(fs));
    (void)signal_number;
}

__attribute__((no_stack_protector)) static void on_signal(int signal_number, siginfo_t *info, void *context)
{
    if (*frame_word(FRAME_SEGMENTS))
        __asm__ volatile("wrfsbase %0" ::"r"(*frame_word(FRAME_HOST_FS)));
    __asm__ volatile("pushfq; andl $~0x40400, (%%rsp); popfq" ::
                         : "cc", "memory"); // AC and DF may be the code's
    struct native_fault *f = native_fault();
    if (!f->armed) {
        const struct sigaction *old = &f->old[signal_number & 31];
        if (old->sa_flags & SA_SIGINFO && old->sa_sigaction)
            old->sa_sigaction(signal_number, info, context);
        else
            signal(signal_number, SIG_DFL); // our own bug: fault again, for real
        return;
    }
    f->armed = false;
    const ucontext_t *u = context;
    const greg_t *g = u->uc_mcontext.gregs;
    static const uint8_t order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                      REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    for (unsigned i = 0; i < 16; i++)
        frame_word(FRAME_GPR_OUT)[i] = (uint64_t)g[order[i]];
    *frame_word(FRAME_FLAGS_OUT) = (uint64_t)g[REG_EFL];
    f->rip = (uint64_t)g[REG_RIP];
    f->vector = (int32_t)g[REG_TRAPNO];
    const uint32_t with_error = 1u << 8 | 1u << 10 | 1u << 11 | 1u << 12 | 1u << 13 | 1u << 14 | 1u << 17;
    f->error = f->vector < 32 && (with_error >> f->vector & 1) ? (uint32_t)g[REG_ERR] : 0;
    f->address = f->vector == 14 ? (uint64_t)g[REG_CR2] : 0;
    memcpy((void *)(uintptr_t)(FRAME_BASE + FRAME_X_OUT), u->uc_mcontext.fpregs, f->xsave_size);
    native_resume();
}

static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};

static bool map_fixed(uint32_t linear, size_t size, int prot)
{
    void *p = mmap((void *)(uintptr_t)linear, size, prot,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_POPULATE, -1, 0);
    return p == (void *)(uintptr_t)linear;
}

static bool map_code(struct native *n)
{
    int fd = memfd_create("difftest-code", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, CODE_SIZE) != 0)
        return false;
    n->code = mmap(NULL, CODE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    void *x = mmap((void *)(uintptr_t)CODE_BASE, CODE_SIZE, PROT_READ | PROT_EXEC,
                   MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_POPULATE, fd, 0);
    close(fd);
    if (n->code != MAP_FAILED)
        memset(n->code, INT3, CODE_SIZE);
    return n->code != MAP_FAILED && x == (void *)(uintptr_t)CODE_BASE;
}

static bool map_arena(const uint8_t *read_only)
{
    if (!map_fixed(ARENA_BASE, ARENA_SIZE, PROT_NONE))
        return false;
    int rw = PROT_READ | PROT_WRITE;
    if (mprotect((void *)(uintptr_t)DATA_LINEAR, 3 * 4096, rw) != 0 ||
        mprotect((void *)(uintptr_t)STACK_LINEAR, 2 * 4096, rw) != 0)
        return false;
    // Every page is touched: the first access of the code under test must find it present.
    memset((void *)(uintptr_t)DATA_LINEAR, 0, 2 * 4096);
    memset((void *)(uintptr_t)STACK_LINEAR, 0, 2 * 4096);
    memcpy((void *)(uintptr_t)READ_ONLY_LINEAR, read_only, 4096);
    return mprotect((void *)(uintptr_t)READ_ONLY_LINEAR, 4096, PROT_READ) == 0;
}

static bool make_segments16(void)
{
    struct user_desc code = {
        .entry_number = 0, .base_addr = CODE16_BASE, .limit = 0xffff, .contents = MODIFY_LDT_CONTENTS_CODE};
    struct user_desc data = {
        .entry_number = 1, .base_addr = ARENA_BASE, .limit = 0xffff, .contents = MODIFY_LDT_CONTENTS_DATA};
    return syscall(SYS_modify_ldt, 1, &code, sizeof code) == 0 &&
           syscall(SYS_modify_ldt, 1, &data, sizeof data) == 0;
}

static bool selector_is_valid(uint16_t selector)
{
    uint32_t rights = selector;
    bool valid;
    __asm__("lar %0, %0" : "+r"(rights), "=@ccz"(valid));
    return valid;
}

// Kernels that are guests themselves may have no descriptors for such code, even where modify_ldt() says that it made one.
bool native_runs(enum diff_mode mode)
{
    switch (mode) {
    case MODE32: return selector_is_valid(USER_CS32);
    case MODE16: return make_segments16() && selector_is_valid(CODE16_SEL);
    default: return true;
    }
}

#define HWCAP2_FSGSBASE_BIT 2

bool native_has_segments(void)
{
    return getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE_BIT;
}

static bool make_extra_segment(enum diff_mode mode, bool gs)
{
    struct diff_segment s = extra_segment(mode, gs);
    bool pages = s.limit > 0xfffff;
    struct user_desc d = {.entry_number = EXTRA_ENTRY(mode, gs),
                          .base_addr = (uint32_t)s.base,
                          .limit = pages ? s.limit >> 12 : s.limit,
                          .limit_in_pages = pages,
                          .seg_32bit = mode == MODE32,
                          .contents =
                              s.expand_down ? MODIFY_LDT_CONTENTS_STACK : MODIFY_LDT_CONTENTS_DATA};
    return syscall(SYS_modify_ldt, 1, &d, sizeof d) == 0;
}

static bool make_extra_segments(void)
{
    uint64_t base;
    if (!native_has_segments())
        return true;
    for (unsigned gs = 0; gs < 2; gs++)
        if (!make_extra_segment(MODE32, gs) || !make_extra_segment(MODE16, gs))
            return false;
    __asm__ volatile("rdfsbase %0" : "=r"(base));
    *frame_word(FRAME_HOST_FS) = base;
    *frame_word(FRAME_FS_BASE) = FS_BASE64;
    *frame_word(FRAME_GS_BASE) = GS_BASE64;
    *frame_word(FRAME_SEGMENTS) = 1;
    return true;
}

static bool map_frame(struct native *n)
{
    _Static_assert(FRAME_BASE == 0x20300000u, "native_entry.S has the same constant");
    if (!map_fixed(FRAME_BASE, FRAME_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC))
        return false;
    *frame_word(FRAME_EXIT) = (uint64_t)(uintptr_t)native_exit;
    *frame_word(FRAME_XMASK) = n->layout.mask;
    uint32_t pointer = FRAME_BASE + FRAME_EXIT;
    uint8_t *stub = (uint8_t *)(uintptr_t)(FRAME_BASE + FRAME_STUB);
    memcpy(stub, "\xff\x24\x25", 3); // jmp qword ptr [abs32]
    memcpy(stub + 3, &pointer, 4);
    return true;
}

static bool install_handlers(struct native *n)
{
    n->alt_stack = mmap(NULL, ALT_STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (n->alt_stack == MAP_FAILED)
        return false;
    stack_t s = {.ss_sp = n->alt_stack, .ss_size = ALT_STACK_SIZE};
    if (sigaltstack(&s, NULL) != 0)
        return false;
    for (unsigned i = 0; i < sizeof signals / sizeof *signals; i++) {
        struct sigaction a = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
        if (sigaction(signals[i], &a, &native_fault()->old[signals[i] & 31]) != 0)
            return false;
    }
    n->handlers = true;
    // A case that does not end is found by its time.
    struct sigaction tick = {.sa_handler = on_tick, .sa_flags = SA_ONSTACK | SA_NODEFER};
    struct itimerval second = {{1, 0}, {1, 0}};
    return sigaction(SIGVTALRM, &tick, NULL) == 0 && setitimer(ITIMER_VIRTUAL, &second, NULL) == 0;
}

static uint32_t write_exit(enum diff_mode mode, uint8_t *slot)
{
    uint32_t pointer = FRAME_BASE + FRAME_EXIT, stub = FRAME_BASE + FRAME_STUB;
    uint32_t n = 0;
    if (mode == MODE64) {
        memcpy(slot, "\xff\x24\x25", 3); // jmp qword ptr [abs32]
        memcpy(slot + 3, &pointer, 4);
        return 7;
    }
    if (mode == MODE16)
        slot[n++] = 0x66;
    slot[n++] = 0xea; // jmp ptr16:32
    memcpy(slot + n, &stub, 4);
    slot[n + 4] = USER_CS64;
    slot[n + 5] = 0;
    return n + 6;
}

static void write_code(struct native *n, const struct diff_code *code)
{
    uint32_t at = code->linear - CODE_BASE, room = CODE_SIZE - at;
    uint8_t image[MAX_CODE + EXIT_SLOT];
    memcpy(image, code->bytes, code->length);
    uint32_t size = code->length + write_exit(code->mode, image + code->length);
    memset(n->code + n->used_at, INT3, n->used); // nothing of the last case is to be found by a stray branch
    n->used_at = at;
    n->used = size < room ? size : room;
    memcpy(n->code + at, image, n->used);
}

int native_run(struct native *n, const struct diff_code *code, const struct diff_state *in,
               struct diff_state *out)
{
    if (code->length > MAX_CODE || code->linear - CODE_BASE >= CODE_SIZE)
        return -EINVAL;
    write_code(n, code);
    memcpy((void *)(uintptr_t)DATA_LINEAR, in->mem, 2 * 4096);
    memcpy((void *)(uintptr_t)STACK_LINEAR, in->mem + 2 * 4096, 2 * 4096);
    fpu_to_xsave(&n->layout, &in->fpu, (uint8_t *)(uintptr_t)(FRAME_BASE + FRAME_X_IN));
    memcpy(frame_word(FRAME_GPR_IN), in->gpr, sizeof in->gpr);
    *frame_word(FRAME_FLAGS_IN) = (in->rflags & ~0x7300ull) | 0x202;

    uint32_t offset = code->linear - code_base(code->mode);
    uint16_t selector = code->mode == MODE16 ? CODE16_SEL : USER_CS32;
    *frame_word(FRAME_RIP) = offset;
    memcpy(frame_word(FRAME_FAR), &offset, 4);
    memcpy((uint8_t *)frame_word(FRAME_FAR) + 4, &selector, 2);
    *frame_word(FRAME_FS_SEL) = EXTRA_SEL(code->mode, 0);
    *frame_word(FRAME_GS_SEL) = EXTRA_SEL(code->mode, 1);
    *frame_word(FRAME_DATA_SEL) = code->mode == MODE16 ? DATA16_SEL : USER_DS;

    struct native_fault *f = native_fault();
    f->run++;
    f->vector = VECTOR_NONE;
    f->error = 0;
    f->address = f->rip = 0;
    f->xsave_size = n->layout.size;
    f->armed = true;
    native_enter(code->mode != MODE64);
    f->armed = false;
    if (n->layout.ymm)
        __asm__ volatile("vzeroupper");

    memcpy(out->gpr, frame_word(FRAME_GPR_OUT), sizeof out->gpr);
    out->rflags = *frame_word(FRAME_FLAGS_OUT);
    out->vector = f->vector;
    out->error = f->error;
    out->address = f->address;
    out->rip = f->vector == VECTOR_NONE ? 0 : f->rip;
    out->spoilt_size = 0;
    fpu_from_xsave(&n->layout, (const uint8_t *)(uintptr_t)(FRAME_BASE + FRAME_X_OUT), &out->fpu);
    memcpy(out->mem, (const void *)(uintptr_t)DATA_LINEAR, 2 * 4096);
    memcpy(out->mem + 2 * 4096, (const void *)(uintptr_t)STACK_LINEAR, 2 * 4096);
    return 0;
}

// Unmaps what is below 4 GiB and not ours, by the list the kernel keeps.
static void unmap_strangers(void)
{
    static char list[1 << 16];
    size_t n = 0;
    FILE *f = fopen("/proc/self/maps", "r");
    if (f) {
        n = fread(list, 1, sizeof list - 1, f);
        fclose(f);
    }
    list[n] = 0;
    for (char *line = list; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
        unsigned long from, to;
        if (sscanf(line, "%lx-%lx", &from, &to) != 2 || from >> 32)
            break; // sorted
        bool ours = (from >= CODE_BASE && from < CODE_BASE + CODE_SIZE) ||
                    (from >= ARENA_BASE && from < ARENA_BASE + ARENA_SIZE) ||
                    (from >= FRAME_BASE && from < FRAME_BASE + FRAME_SIZE);
        if (!ours)
            munmap((void *)from, to - from);
    }
}

struct alone {
    int error;
    struct diff_state out;
};

int native_run_alone(struct native *n, const struct diff_code *code, const struct diff_state *in,
                     struct diff_state *out)
{
    struct alone *shared =
        mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        return -ENOMEM;
    shared->error = -EIO;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        alarm(10);
        unmap_strangers();
        shared->error = native_run(n, code, in, &shared->out);
        _exit(0);
    }
    while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        continue;
    int error = pid > 0 ? shared->error : -EAGAIN;
    *out = shared->out;
    munmap(shared, sizeof *shared);
    return error;
}

struct native *native_create(const uint8_t *read_only)
{
    struct native *n = calloc(1, sizeof *n);
    if (!n)
        return NULL;
    n->layout = xsave_layout_host();
    if (n->layout.size > XSAVE_MAX || !map_code(n) || !map_arena(read_only) || !map_frame(n) ||
        !install_handlers(n)) {
        fprintf(stderr, "difftest: cannot set up the native side: %s\n", strerror(errno));
        native_destroy(n);
        return NULL;
    }
    if (!make_segments16() || !make_extra_segments())
        fprintf(stderr, "difftest: no modify_ldt here: 16-bit mode will not work\n");
    return n;
}

void native_destroy(struct native *n)
{
    if (!n)
        return;
    if (n->handlers) {
        setitimer(ITIMER_VIRTUAL, &(struct itimerval){0}, NULL);
        signal(SIGVTALRM, SIG_IGN);
    }
    for (unsigned i = 0; n->handlers && i < sizeof signals / sizeof *signals; i++)
        sigaction(signals[i], &native_fault()->old[signals[i] & 31], NULL);
    munmap((void *)(uintptr_t)CODE_BASE, CODE_SIZE);
    munmap((void *)(uintptr_t)ARENA_BASE, ARENA_SIZE);
    munmap((void *)(uintptr_t)FRAME_BASE, FRAME_SIZE);
    if (n->code && n->code != MAP_FAILED)
        munmap(n->code, CODE_SIZE);
    if (n->alt_stack && n->alt_stack != MAP_FAILED) {
        stack_t off = {.ss_flags = SS_DISABLE};
        sigaltstack(&off, NULL);
        munmap(n->alt_stack, ALT_STACK_SIZE);
    }
    free(n);
}
