// What a cell may ask of the host's kernel: a seccomp filter, made by hand so that it can be read whole.
//
//   futex                 handing over to the machine process, sleeping in HLT
//   timer_settime         of the one timer made before
//   rt_sigreturn, restart_syscall, exit_group, clock_gettime (where the vDSO can't answer)
//   madvise               MADV_POPULATE_WRITE only: faulting guest RAM in by chunks
//   tgkill                to itself
//   brk, mmap             private anonymous memory at an address of the kernel's choice, never executable
//   write                 to the trace's pipe, if there is one
// Anything else kills the process. The code cache's executable mapping exists before; no mapping can be changed or
// removed after, so nothing that is writable ever becomes executable at the same address.
#include "devices/cell.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define POPULATE_WRITE 23u // MADV_POPULATE_WRITE, Linux 5.14

#define LOAD(field)           BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define LOAD_ARG(n)           BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args) + 8 * (n))
#define LOAD_ARG_HIGH(n)      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args) + 8 * (n) + 4)
#define IF_EQUAL(k, yes, no)  BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (k), (yes), (no))
#define IF_BITS(k, yes, no)   BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, (k), (yes), (no))
#define ALLOW                 BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define KILL                  BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)
#define ALLOW_CALL(number)    IF_EQUAL(number, 0, 1), ALLOW
// The call with one 32-bit argument of this value. The accumulator holds the number before and after.
#define ALLOW_CALL_WITH(number, arg, value) \
    IF_EQUAL(number, 0, 4), LOAD_ARG(arg), IF_EQUAL(value, 0, 1), ALLOW, KILL

int sandbox_enter(int timer_id, int trace_fd)
{
    const struct sock_filter filter[] = {
        LOAD(arch),
        IF_EQUAL(AUDIT_ARCH_X86_64, 1, 0),
        KILL,
        LOAD(nr), // the x32 ABI's numbers have bit 30 set and equal none below
        ALLOW_CALL(SYS_futex),
        ALLOW_CALL(SYS_rt_sigreturn),
        ALLOW_CALL(SYS_restart_syscall),
        ALLOW_CALL(SYS_clock_gettime),
        ALLOW_CALL(SYS_exit_group),
        ALLOW_CALL(SYS_brk),
        ALLOW_CALL_WITH(SYS_timer_settime, 0, (uint32_t)timer_id),
        ALLOW_CALL_WITH(SYS_tgkill, 0, (uint32_t)getpid()),
        ALLOW_CALL_WITH(SYS_madvise, 2, POPULATE_WRITE),
        // no descriptor has the number UINT32_MAX
        ALLOW_CALL_WITH(SYS_write, 0, trace_fd < 0 ? UINT32_MAX : (uint32_t)trace_fd),
        IF_EQUAL(SYS_mmap, 1, 0),
        KILL,
        LOAD_ARG(2),
        IF_BITS(PROT_EXEC, 3, 0),
        LOAD_ARG(3),
        IF_EQUAL(MAP_PRIVATE | MAP_ANONYMOUS, 0, 1),
        ALLOW,
        KILL,
    };
    const struct sock_fprog program = {sizeof filter / sizeof filter[0], (struct sock_filter *)filter};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -errno;
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) < 0)
        return -errno;
    return 0;
}

static void close_span(unsigned first, unsigned last)
{
    if (first > last || syscall(SYS_close_range, first, last, 0) == 0)
        return;
    struct rlimit limit = {0}; // Linux before 5.9
    getrlimit(RLIMIT_NOFILE, &limit);
    for (unsigned fd = first; fd <= last && fd < limit.rlim_cur; fd++)
        close((int)fd);
}

void sandbox_drop_files(int keep, bool keep_stderr)
{
    extern char **environ;
    const struct rlimit none = {0, 0};

    close_span(0, 1);
    if (!keep_stderr && keep != 2)
        close_span(2, 2);
    if (keep >= 3) {
        close_span(3, (unsigned)keep - 1);
        close_span((unsigned)keep + 1, UINT32_MAX);
    } else {
        close_span(3, UINT32_MAX);
    }
    for (char **e = environ; e && *e; e++) // it may hold secrets of the user's
        memset(*e, 0, strlen(*e));
    environ = NULL;
    setrlimit(RLIMIT_CORE, &none);
}
