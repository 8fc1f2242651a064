#include "frontend/probe.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/perf_event.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "dbt/direct/worker.h"
#include "devices/sandbox.h"
#include "mmu/mem.h"

#define HUGE_BYTES     (2ull << 20)
#define POPULATE_WRITE 23 // MADV_POPULATE_WRITE, Linux 5.14
#define UFFD_USER_MODE 1  // UFFD_USER_MODE_ONLY, Linux 5.11
#define LOW_FIRST      0x24000000ul
#define LOW_END        0x7f000000ul
#define LOW_STEP       0x01000000ul

static int outcome(long result)
{
    return result < 0 ? errno : 0;
}

static void *nothing(void *opaque)
{
    return opaque;
}

static int try_process(void)
{
    pthread_t thread;
    int error = pthread_create(&thread, NULL, nothing, NULL);
    return error ? error : pthread_join(thread, NULL);
}

static int try_memory(uint64_t bytes)
{
    struct mem_map m;
    struct sysinfo host;
    if (!sysinfo(&host) && ((uint64_t)host.totalram + host.totalswap) * host.mem_unit < bytes)
        return ENOMEM; // no machine may have more than the host
    int result = mem_create(&m, bytes);
    if (result)
        return -result;
    void *own = mmap(NULL, PROBE_OWN_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return own == MAP_FAILED ? errno : 0;
}

static int try_code(void)
{
    size_t size = (size_t)sysconf(_SC_PAGESIZE);
    uint8_t *rw = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    void *low = MAP_FAILED;
    if (rw == MAP_FAILED)
        return errno;
    for (uintptr_t at = LOW_FIRST; at < LOW_END && low == MAP_FAILED; at += LOW_STEP)
        low = mmap((void *)at, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (low == MAP_FAILED || (uintptr_t)low >= LOW_END) // the flag is a hint before Linux 4.17
        return low == MAP_FAILED ? errno : EEXIST;
    // An old size of 0 makes a second mapping of the same memory (mremap(2)).
    if (mremap(rw, 0, size, MREMAP_MAYMOVE | MREMAP_FIXED, low) == MAP_FAILED)
        return errno;
    if (mprotect(low, size, PROT_READ | PROT_EXEC) < 0)
        return errno;
    *rw = 0xc3; // RET
    ((void (*)(void))low)();
    return 0;
}

static int try_timer(void)
{
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN};
    int id;
    event._sigev_un._tid = (int)syscall(SYS_gettid);
    return outcome(syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &id));
}

static int try_seccomp(void)
{
    const struct sandbox_rule rules[] = {
        {.call = SYS_seccomp}, {.call = SYS_prctl}, {.call = SYS_exit_group}};
    int result = sandbox_filter(rules, sizeof rules / sizeof rules[0], SANDBOX_TRAP, true);
    if (!result)
        result = sandbox_filter(rules, sizeof rules / sizeof rules[0], SANDBOX_KILL, false);
    return -result;
}

static int try_worker(void)
{
    struct workers *w;
    int fd = memfd_create("probe", MFD_CLOEXEC);
    if (fd < 0)
        return errno;
    int result = workers_create(&w, 1, fd, NULL, 0);
    if (!result)
        workers_destroy(w);
    return -result;
}

static int try_populate(void)
{
    void *p = mmap(NULL, HUGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? errno : outcome(madvise(p, HUGE_BYTES, POPULATE_WRITE));
}

static int try_huge(void)
{
    struct mem_map m;
    int result = mem_create(&m, HUGE_BYTES), kib = 0;
    char line[256];
    if (result)
        return -result;
    m.ram[0] = 1;
    FILE *f = fopen("/proc/self/smaps", "re");
    if (!f)
        return errno;
    while (!kib && fgets(line, sizeof line, f))
        sscanf(line, "ShmemPmdMapped: %d", &kib);
    fclose(f);
    return kib ? 0 : ENODATA;
}

static int try_pin(void)
{
    cpu_set_t set;
    int cpu = sched_getcpu();
    if (cpu < 0)
        return errno;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    return outcome(sched_setaffinity(0, sizeof set, &set));
}

static int try_pty(void)
{
    int fd = posix_openpt(O_RDWR | O_NOCTTY);
    return fd < 0 || grantpt(fd) < 0 || unlockpt(fd) < 0 ? errno : 0;
}

static int try_perf(uint32_t type, uint64_t config)
{
    struct perf_event_attr attr = {
        .type = type, .size = sizeof attr, .config = config, .sample_period = 1000000, .exclude_kernel = 1};
    return outcome(syscall(SYS_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC));
}

static int try_kvm(void)
{
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return errno;
    int version = ioctl(fd, KVM_GET_API_VERSION, 0);
    return version < 0 ? errno : version == KVM_API_VERSION ? 0 : EPROTO;
}

static int try_userfaultfd(void)
{
    if (syscall(SYS_userfaultfd, O_CLOEXEC) >= 0)
        return 0;
    return outcome(syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE));
}

static int try_modify_ldt(void)
{
    struct { // struct user_desc of <asm/ldt.h>: a data segment of one page
        uint32_t entry, base, limit, flags;
    } segment = {.limit = 0xfff, .flags = 1 << 0 | 1 << 6};
    return outcome(syscall(SYS_modify_ldt, 0x11, &segment, sizeof segment));
}

static int try_fsgsbase(void)
{
    // The instruction alone says nothing: some kernels that are guests leave it on, but do not keep the bases
    // (docs/decisions/022-segment-bases.md).
    return getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE_BIT ? 0 : ENOSYS;
}

static int try_now(enum probe what)
{
    switch (what) {
    case PROBE_PROCESS: return try_process();
    case PROBE_MEMORY: return try_memory(PROBE_GUEST_BYTES);
    case PROBE_LITTLE: return try_memory(PROBE_LITTLE_BYTES);
    case PROBE_CODE: return try_code();
    case PROBE_TIMER: return try_timer();
    case PROBE_SECCOMP: return try_seccomp();
    case PROBE_WORKER: return try_worker();
    case PROBE_POPULATE: return try_populate();
    case PROBE_HUGE: return try_huge();
    case PROBE_PIN: return try_pin();
    case PROBE_PTY: return try_pty();
    case PROBE_PERF_CLOCK: return try_perf(PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CPU_CLOCK);
    case PROBE_PERF_CYCLES: return try_perf(PERF_TYPE_HARDWARE, PERF_COUNT_HW_CPU_CYCLES);
    case PROBE_KVM: return try_kvm();
    case PROBE_PTRACE: return outcome(ptrace(PTRACE_TRACEME, 0, NULL, NULL));
    case PROBE_USERFAULTFD: return try_userfaultfd();
    case PROBE_MODIFY_LDT: return try_modify_ldt();
    case PROBE_FSGSBASE: return try_fsgsbase();
    case PROBE_PKEY: return outcome(syscall(SYS_pkey_alloc, 0, 0));
    case PROBE_USER_NAMESPACE: return outcome(unshare(CLONE_NEWUSER));
    }
    return ENOSYS;
}

int probe(enum probe what)
{
    int status;
    pid_t child = fork();
    if (child < 0)
        return PROBE_UNTRIED;
    if (!child) {
        const struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        signal(SIGXFSZ, SIG_IGN); // the limit of file sizes is that of a guest's memory too
        int error = try_now(what);
        _exit(error > 0 && error < 255 ? error : error ? EIO : 0);
    }
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return PROBE_UNTRIED;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}
