// Makes workers (worker.h): forks them, and turns each child into two threads that execute nothing but the
// stub.
#include "dbt/direct/worker_internal.h"

#include <cpuid.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define RSEQ_UNREGISTER     1
#define RSEQ_SIGNATURE      0x53053053u
#define RSEQ_LARGEST        1024u
#define SA_RESTORER_FLAG    0x04000000ul
#define SET_UP_STACK        16384u
#define POLL_NS             20000000
#define MXCSR_RESET         0x1f80u
#define XFEATURE_TILEDATA   0x40000u // AMX's: a process has it only if it asks, and no frame has room for it else

// What the kernel takes for struct sigaction.
struct kernel_sigaction {
    uint64_t handler, flags, restorer, mask;
};

struct child {
    uint8_t *shared;
    const struct workers *workers;
    unsigned number;
    int ram_fd;
    pid_t parent;
    struct sock_fprog runner, mapper;
};

static uint32_t *state32(uint8_t *shared, unsigned at)
{
    return (uint32_t *)(shared + (STATE_PAGE - COMMAND_PAGE) + at);
}

static uint32_t in_text(const uint8_t *label)
{
    return WORKER_BASE + (uint32_t)(label - stub_begin);
}

// ---- filters
#define LOAD(offset)   BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)(offset))
#define EQUAL(k, t, f) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (k), (t), (f))
#define ARGUMENT(n)    (offsetof(struct seccomp_data, args) + 8 * (n))
#define LOW(n)         LOAD(ARGUMENT(n))
#define HIGH(n)        LOAD(ARGUMENT(n) + 4)

// A system call of the runner: the stub's own, FUTEX_WAIT on `go` or FUTEX_WAKE on `turn`. A timeout would
// let guest code leave the first at a time of its choice; it would get no further than the stub, but there is
// no use for it.
static unsigned short runner_filter(struct sock_filter *code)
{
    const struct sock_filter f[] = {
        LOAD(offsetof(struct seccomp_data, instruction_pointer)),
        EQUAL(in_text(stub_called), 0, 19),
        LOAD(offsetof(struct seccomp_data, instruction_pointer) + 4),
        EQUAL(0, 0, 17),
        LOAD(offsetof(struct seccomp_data, arch)),
        EQUAL(AUDIT_ARCH_X86_64, 0, 15),
        LOAD(offsetof(struct seccomp_data, nr)),
        EQUAL(SYS_futex, 0, 13),
        HIGH(0),
        EQUAL(0, 0, 11),
        LOW(3),
        EQUAL(0, 0, 9),
        HIGH(3),
        EQUAL(0, 0, 7),
        LOW(1),
        EQUAL(FUTEX_WAKE, 3, 0),
        EQUAL(FUTEX_WAIT, 0, 4),
        LOW(0),
        EQUAL(STATE_PAGE + ST_GO, 3, 2),
        LOW(0),
        EQUAL(STATE_PAGE + ST_TURN, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };

    memcpy(code, f, sizeof f);
    return sizeof f / sizeof f[0];
}

// Of the mapper: guest RAM at a fixed place, and the rest of what the stub does there.
static unsigned short mapper_filter(struct sock_filter *code, int ram_fd)
{
    const struct sock_filter f[] = {
        LOAD(offsetof(struct seccomp_data, arch)),
        EQUAL(AUDIT_ARCH_X86_64, 0, 10),
        LOAD(offsetof(struct seccomp_data, nr)),
        EQUAL(SYS_futex, 9, 0),
        EQUAL(SYS_munmap, 8, 0),
        EQUAL(SYS_mprotect, 7, 0),
        EQUAL(SYS_mmap, 0, 5),
        LOW(4),
        EQUAL((uint32_t)ram_fd, 0, 3),
        LOW(3),
        EQUAL(MAP_SHARED | MAP_FIXED, 2, 0),
        EQUAL(MAP_SHARED | MAP_FIXED | MAP_POPULATE, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };

    memcpy(code, f, sizeof f);
    return sizeof f / sizeof f[0];
}

// ---- the child
_Noreturn static void fail(uint8_t *shared, int error)
{
    *state32(shared, ST_ERROR) = (uint32_t)error;
    __atomic_store_n(state32(shared, ST_TURN), TURN_DIED, __ATOMIC_SEQ_CST);
    syscall(SYS_exit_group, 1);
    __builtin_trap();
}

static void check(uint8_t *shared, long result)
{
    if (result < 0)
        fail(shared, errno);
}

static void close_files(int ram_fd)
{
    struct rlimit limit = {0};

    if ((ram_fd == 0 || !syscall(SYS_close_range, 0, ram_fd - 1, 0)) &&
        !syscall(SYS_close_range, ram_fd + 1, ~0u, 0))
        return;
    getrlimit(RLIMIT_NOFILE, &limit); // Linux before 5.9
    for (int fd = 0; fd < (int)limit.rlim_cur; fd++)
        if (fd != ram_fd)
            close(fd);
}

// Neither thread has anything to do with glibc's any more, whose memory will be gone.
static int leave_glibc(void)
{
    syscall(SYS_set_robust_list, NULL, 24);
    const char *thread = __builtin_thread_pointer();
    extern const ptrdiff_t __rseq_offset __attribute__((weak));
    extern const unsigned __rseq_size __attribute__((weak));
    if (!&__rseq_offset || !__rseq_size)
        return 0;
    for (unsigned size = 32; size <= RSEQ_LARGEST; size += 4) // what glibc said it was is not written down
        if (!syscall(SYS_rseq, thread + __rseq_offset, size, RSEQ_UNREGISTER, RSEQ_SIGNATURE))
            return 0;
    errno = ENOSYS;
    return -1;
}

static void place_pages(uint8_t *shared)
{
    uint8_t *text = mmap((void *)WORKER_BASE, TEXT_SIZE, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

    check(shared, text == (void *)WORKER_BASE ? 0 : -1);
    memcpy(text, stub_begin, (size_t)(stub_end - stub_begin));
    check(shared, mprotect(text, TEXT_SIZE, PROT_READ | PROT_EXEC));
    // The two pieces leave their place for the one that they have in every worker.
    void *stack =
        mremap(shared + LOW_PIECE, ALT_STACK_SIZE, ALT_STACK_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, ALT_STACK);
    check(shared, stack == MAP_FAILED ? -1 : 0);
    void *low = mremap(shared, LOW_PIECE, LOW_PIECE, MREMAP_MAYMOVE | MREMAP_FIXED, COMMAND_PAGE);
    check(shared, low == MAP_FAILED ? -1 : 0);
    memset(stack, 0, ALT_STACK_SIZE); // a signal finds memory there: the next might come while the kernel gets it
    shared = low;
    check(shared, mprotect(shared, COMMAND_SIZE, PROT_READ));
}

static void place_windows(const struct child *c)
{
    for (unsigned i = 0; i < c->workers->window_count; i++) {
        const struct worker_window *w = &c->workers->window[i];
        void *at = (void *)(uintptr_t)w->at;
        if (w->memory && mremap((uint8_t *)w->memory + w->size * c->number, w->size, w->size,
                                MREMAP_MAYMOVE | MREMAP_FIXED, at) != at)
            check(c->shared, -1);
        check(c->shared, mprotect(at, w->size, w->prot));
    }
}

static void set_up_signals(uint8_t *shared, uint64_t *open)
{
    static const int events[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, KICK_SIGNAL};
    const struct kernel_sigaction ours = {.handler = WORKER_BASE,
                                          .flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESTORER_FLAG,
                                          .restorer = WORKER_BASE}, // never returned to
        none = {0};
    const stack_t stack = {.ss_sp = (void *)ALT_STACK, .ss_size = ALT_STACK_SIZE};

    *open = 0;
    for (int n = 1; n <= 64; n++)
        if (n != SIGKILL && n != SIGSTOP)
            check(shared, syscall(SYS_rt_sigaction, n, &none, NULL, 8));
    for (unsigned i = 0; i < sizeof events / sizeof events[0]; i++) {
        check(shared, syscall(SYS_rt_sigaction, events[i], &ours, NULL, 8));
        *open |= 1ull << (events[i] - 1);
    }
    check(shared, sigaltstack(&stack, NULL));
}

static int mapper_main(void *opaque)
{
    const struct child *c = opaque;
    void (*stub)(void) = (void (*)(void))(uintptr_t)in_text(stub_mapper);

    check(c->shared, syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &c->mapper));
    stub();
    return 0;
}

_Noreturn static void child_main(struct child c)
{
    const struct rlimit no_core = {0, 0};
    void (*stub)(void) = (void (*)(void))(uintptr_t)in_text(stub_runner);
    uint64_t open, closed = ~0ull;

    check(c.shared, prctl(PR_SET_PDEATHSIG, SIGKILL));
    if (getppid() != c.parent)
        _exit(1);
    prctl(PR_SET_NAME, "gnomon-worker");
    // So that the owner has the CPU as soon as it wakes for a timer: else one in a hundred waits for the end of the
    // runner's time slice, up to 3 ms. It costs nothing; where somebody has chosen another policy, it stays.
    if (sched_getscheduler(0) == SCHED_OTHER)
        sched_setscheduler(0, SCHED_BATCH, &(struct sched_param){0});
    setrlimit(RLIMIT_CORE, &no_core);
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &closed, NULL, 8);
    close_files(c.ram_fd);
    set_up_signals(c.shared, &open);
    check(c.shared, leave_glibc());
    check(c.shared, prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    place_windows(&c);
    place_pages(c.shared);
    c.shared = (uint8_t *)COMMAND_PAGE;
    // Who ends first clears `turn` and wakes the owner.
    uint32_t *turn = state32(c.shared, ST_TURN);
    syscall(SYS_set_tid_address, turn);
    uint8_t *stack = mmap(NULL, SET_UP_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(c.shared, stack == MAP_FAILED ? -1 : 0);
    check(c.shared, clone(mapper_main, stack + SET_UP_STACK,
                          CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM |
                              CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID,
                          &c, state32(c.shared, ST_MAPPER), NULL, turn));
    closed = ~open;
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &closed, NULL, 8);
    // The filter says all that is to be said. But it costs guest code's system calls more than this, and some
    // kernels take uprobe's calls by any filter. Linux 5.11; the owner switches it on by the byte when the
    // filter is in place.
    prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, (uintptr_t)in_text(stub_called), 1,
          (uintptr_t)(COMMAND_PAGE + CMD_SELECTOR));
    check(c.shared, syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &c.runner));
    stub();
    __builtin_unreachable();
}

// ---- the owner
// Waits for the runner to reach the stub. 0 or -errno.
static int wait_ready(struct worker *k)
{
    const struct timespec pause = {.tv_nsec = POLL_NS};
    uint32_t *turn = state32(k->shared, ST_TURN);

    while (__atomic_load_n(turn, __ATOMIC_SEQ_CST) == TURN_ASLEEP) {
        siginfo_t info = {0};
        syscall(SYS_futex, turn, FUTEX_WAIT, TURN_ASLEEP, &pause, NULL, 0);
        if (waitid(P_PID, (id_t)k->pid, &info, WEXITED | WNOHANG | WNOWAIT | __WALL) < 0 || info.si_pid)
            break;
    }
    if (__atomic_load_n(turn, __ATOMIC_SEQ_CST) == TURN_STOPPED && *state32(k->shared, ST_WHY) == WHY_READY)
        return 0;
    return *state32(k->shared, ST_ERROR) ? -(int)*state32(k->shared, ST_ERROR) : -ECHILD;
}

static int start(struct workers *w, unsigned n, struct child c)
{
    struct worker *k = &w->worker[n];
    int result;

    c.workers = w;
    c.number = n;
    c.shared = k->shared = w->shared + (size_t)n * WORKER_SHARED;
    *state32(k->shared, ST_TURN) = TURN_ASLEEP; // we are going to: the stub wakes nobody else
    *(uint32_t *)(k->shared + CMD_RAM_FD) = (uint32_t)c.ram_fd;
    // No signal to us when it ends: where SIGCHLD is ignored, the kernel would give its number to somebody
    // else.
    long pid = syscall(SYS_clone, 0, NULL, NULL, NULL, NULL);
    if (pid == 0)
        child_main(c);
    if (pid < 0)
        return -errno;
    k->pid = (int)pid;
    w->count = n + 1;
    result = wait_ready(k);
    if (result)
        return result;
    k->mapper = (int)*state32(k->shared, ST_MAPPER);
    k->shared[CMD_SELECTOR] = SYSCALL_DISPATCH_FILTER_BLOCK;
    // What fork() has given it, the owner's memory, and the vDSO.
    worker_unmap(w, n, WORKER_END, WORKER_TOP - WORKER_END);
    result = worker_sync(w, n);
    if (result)
        return *state32(k->shared, ST_ERROR) ? -(int)*state32(k->shared, ST_ERROR) : result;
    // What it would go on with if nobody gave it anything: all its vector state as the kernel gives it to a
    // program.
    *(uint32_t *)(worker_new_xsave(w, n, ~0ull) + 24) = MXCSR_RESET;
    k->regs = (struct worker_regs){.cs = 0x33, .ss = 0x2b, .rflags = 0x202};
    return 0;
}

// The components of XCR0 that a worker has.
static uint64_t xsave_mask(void)
{
    uint32_t low, high;

    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((uint64_t)high << 32 | low) & ~(uint64_t)XFEATURE_TILEDATA;
}

static uint32_t xsave_size(uint64_t mask)
{
    uint32_t size = 512 + 64, eax, ebx, ecx, edx;

    for (unsigned i = 2; i < 63; i++)
        if (mask >> i & 1 && __get_cpuid_count(0xd, i, &eax, &ebx, &ecx, &edx) && ebx + eax > size)
            size = ebx + eax;
    return size;
}

int workers_create(struct workers **out, unsigned count, int ram_fd, const struct worker_window *windows,
                   unsigned window_count)
{
    struct sock_filter runner[32], mapper[32];
    struct child c = {.ram_fd = ram_fd, .parent = getpid()};
    struct workers *w;
    int result = 0;

    *out = NULL;
    if (!count || count > WORKERS_MAX || ram_fd < 0 || window_count > WORKER_WINDOWS)
        return -EINVAL;
    if (!(getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE_BIT))
        return -ENOSYS;
    w = calloc(1, sizeof *w);
    if (!w)
        return -ENOMEM;
    w->window_count = window_count;
    if (window_count)
        memcpy(w->window, windows, window_count * sizeof *windows);
    w->xsave_mask = xsave_mask();
    w->xsave_size = xsave_size(w->xsave_mask);
    w->shared_size = (size_t)count * WORKER_SHARED;
    w->shared = mmap(NULL, w->shared_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (w->shared == MAP_FAILED) {
        free(w);
        return -ENOMEM;
    }
    // Four frames: an event, two kicks upon it, and one to spare.
    if (w->xsave_size > NEW_XSAVE_SIZE || getauxval(AT_MINSIGSTKSZ) * 4 > ALT_STACK_SIZE)
        result = -ENOSYS;
    c.runner = (struct sock_fprog){runner_filter(runner), runner};
    c.mapper = (struct sock_fprog){mapper_filter(mapper, ram_fd), mapper};
    for (unsigned n = 0; n < count && !result; n++)
        result = start(w, n, c);
    if (result) {
        workers_destroy(w);
        return result;
    }
    *out = w;
    return 0;
}

void workers_destroy(struct workers *w)
{
    if (!w)
        return;
    for (unsigned n = 0; n < w->count; n++) {
        kill(w->worker[n].pid, SIGKILL);
        while (waitpid(w->worker[n].pid, NULL, __WALL) < 0 && errno == EINTR)
            ;
    }
    munmap(w->shared, w->shared_size);
    free(w);
}
