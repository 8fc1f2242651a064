// What a cell may ask of the host's kernel. Anything else kills it (devices/sandbox.h). The code cache's
// executable mapping exists before; no mapping can be changed or removed after, so nothing that is writable
// ever becomes executable at the same address.
#include "devices/cell.h"
#include "devices/sandbox.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define POPULATE_WRITE 23u // MADV_POPULATE_WRITE, Linux 5.14

int cell_enter_sandbox(int timer_id, int trace_fd, const int *workers, unsigned threads)
{
    const struct sandbox_rule always[] = {
        {.call = SYS_futex}, // handing over to the machine process, sleeping in HLT
        {.call = SYS_rt_sigreturn},
        {.call = SYS_restart_syscall},
        {.call = SYS_clock_gettime}, // where the vDSO can't answer
        {.call = SYS_exit_group},
        // the one timer made before
        {SYS_timer_settime, {{SANDBOX_EQUAL, 0, (uint32_t)timer_id}}},
        // itself
        {SYS_tgkill, {{SANDBOX_EQUAL, 0, (uint32_t)getpid()}}},
        // faulting guest RAM in by chunks
        {SYS_madvise, {{SANDBOX_EQUAL, 2, POPULATE_WRITE}}},
        // memory of its own at an address of the kernel's choice
        {.call = SYS_brk},
        {SYS_mmap, {{SANDBOX_NONE_OF, 2, PROT_EXEC}, {SANDBOX_EQUAL, 3, MAP_PRIVATE | MAP_ANONYMOUS}}},
        // the trace's pipe, if there is one: no descriptor has the number UINT32_MAX
        {SYS_write, {{SANDBOX_EQUAL, 0, trace_fd < 0 ? UINT32_MAX : (uint32_t)trace_fd}}},
    };

    struct sandbox_rule rules[SANDBOX_MAX_RULES];
    size_t n = sizeof always / sizeof always[0];

    memcpy(rules, always, sizeof always);
    for (unsigned i = 0; i < threads; i += 2) // kicking and ending its workers
        rules[n++] = (struct sandbox_rule){SYS_tgkill, {{SANDBOX_EQUAL, 0, (uint32_t)workers[i]}}};
    if (threads)
        rules[n++] = (struct sandbox_rule){.call = SYS_sched_yield}; // until a worker sleeps
    return sandbox_filter(rules, n, SANDBOX_KILL, false);
}
