// What the machine process may ask of the host's kernel while a machine runs. It holds all it will ever need:
// so it opens, connects to and executes nothing, and no other process than its cell is in its reach. Files
// that are to go when it ends are the sweeper's (frontend/sweeper.h), what the terminal needs when it dies is
// the watcher's (frontend/terminal.c).
#include "frontend/sandbox_machine.h"

#include <asm/ioctls.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "devices/sandbox.h"
#include "frontend/exit.h"
#include "frontend/terminal.h"

#define PRIVATE_MEMORY (MAP_PRIVATE | MAP_ANONYMOUS)

// Runs on whatever thread made the call, whatever that held: no lock is taken here.
static void forbidden(int number, siginfo_t *info, void *context)
{
    char line[160];

    (void)number, (void)context;
    snprintf(line, sizeof line,
             "gnomon: forbidden system call %d: the sandbox of the machine's process: please report this "
             "with the command line used\n",
             info->si_syscall);
    (void)!write(STDERR_FILENO, line, strlen(line));
    terminal_leave();
    _exit(EXIT_HOST_ERROR);
}

int sandbox_machine(int cell, const int *workers, unsigned worker_count)
{
    const uint32_t self = (uint32_t)getpid(), child = (uint32_t)cell;
    const struct sandbox_rule always[] = {
        // ---- handing over to the cell and back, waking and steering it, its end
        {.call = SYS_futex},
        {SYS_tgkill, {{SANDBOX_EQUAL, 0, child}}},
        {SYS_kill, {{SANDBOX_EQUAL, 0, child}}},
        {SYS_sched_setaffinity, {{SANDBOX_EQUAL, 0, child}}},
        {SYS_sched_setaffinity, {{SANDBOX_EQUAL, 0, 0}}},
        {.call = SYS_wait4},
        {.call = SYS_waitid},
        // ---- what is open: disks, images, serial ports, traces, the cell's figures in /proc
        {.call = SYS_read},
        {.call = SYS_write},
        {.call = SYS_pread64},
        {.call = SYS_pwrite64},
        {.call = SYS_fdatasync},
        {.call = SYS_fallocate},
        {.call = SYS_lseek},
        {.call = SYS_ftruncate}, // perf's map, when names had to go
        {.call = SYS_close},
        {.call = SYS_fstat},
        {SYS_newfstatat, {{SANDBOX_EQUAL, 3, AT_EMPTY_PATH}}}, // fstat() of some C libraries
        {.call = SYS_poll},
        {.call = SYS_accept4},
        {SYS_sendto, {{SANDBOX_EQUAL, 4, 0}, {SANDBOX_EQUAL, 5, 0}}}, // to whom it is connected
        {.call = SYS_timerfd_settime},
        {SYS_ioctl, {{SANDBOX_EQUAL, 1, TCGETS}}},  // is it a terminal?
        {SYS_ioctl, {{SANDBOX_EQUAL, 1, TCSETSW}}}, // terminal_leave()
        // ---- memory, never executable
        {.call = SYS_brk},
        {SYS_mmap, {{SANDBOX_NONE_OF, 2, PROT_EXEC}, {SANDBOX_EQUAL, 3, PRIVATE_MEMORY}}},
        {SYS_mmap, {{SANDBOX_NONE_OF, 2, PROT_EXEC}, {SANDBOX_EQUAL, 3, PRIVATE_MEMORY | MAP_NORESERVE}}},
        {SYS_mprotect, {{SANDBOX_NONE_OF, 2, PROT_EXEC}}},
        {.call = SYS_mremap},
        {.call = SYS_munmap},
        {.call = SYS_madvise},
        // ---- itself
        {.call = SYS_clock_gettime}, // where the vDSO can't answer
        {.call = SYS_getcpu},
        {.call = SYS_getpid},
        {.call = SYS_gettid},
        {.call = SYS_getppid},
        {.call = SYS_getrusage},
        {.call = SYS_sysinfo},           // qsort() of some C libraries
        {.call = SYS_sched_getaffinity}, // malloc() of some, to count processors
        {.call = SYS_getrandom},         // malloc()
        {.call = SYS_rt_sigprocmask},
        {.call = SYS_rt_sigaction},               // abort()
        {SYS_tgkill, {{SANDBOX_EQUAL, 0, self}}}, // the same
        {.call = SYS_rt_sigreturn},
        {.call = SYS_restart_syscall},
        {.call = SYS_set_robust_list}, // a thread's first calls: it may not have come to them yet
        {.call = SYS_rseq},
        {.call = SYS_exit},
        {.call = SYS_exit_group},
    };
    struct sigaction action = {.sa_sigaction = forbidden, .sa_flags = SA_SIGINFO};

    sigfillset(&action.sa_mask);
    if (sigaction(SIGSYS, &action, NULL) < 0)
        return -errno;
    struct sandbox_rule rules[SANDBOX_MAX_RULES];
    size_t n = sizeof always / sizeof always[0];
    memcpy(rules, always, sizeof always);
    for (unsigned i = 0; i < worker_count && n < SANDBOX_MAX_RULES; i++)
        rules[n++] = (struct sandbox_rule){SYS_sched_setaffinity, {{SANDBOX_EQUAL, 0, (uint32_t)workers[i]}}};
    return sandbox_filter(rules, n, SANDBOX_TRAP, true);
}
