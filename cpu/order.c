// Which operand of CMPS the host reads first. No manual says; guests see it in the address of a page fault when both are not
// there. All of them read ES:rDI first on a Zen 3, all but REPE CMPSB on a Zen 4, where that one is fast; a hypervisor may hide
// the CPUID bit that says so (Fn8000_0021 EAX[11]). So both are tried.
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

#include "cpu/model.h"

// A signal handler has no argument of ours; nothing here lives longer than a call of cpu_host_compare_order().
static sigjmp_buf faulted;
static void *volatile fault_address;

static void on_fault(int sig, siginfo_t *info, void *context)
{
    (void)sig, (void)context;
    fault_address = info->si_addr;
    siglongjmp(faulted, 1);
}

// Whether the fault is at pages[0], the source, and not at the page behind it.
static bool reads_source_first(char *const volatile pages, bool repe)
{
    if (!sigsetjmp(faulted, 1)) {
        const char *source = pages, *destination = pages + 4096;
        unsigned long count = 1;
        if (repe)
            __asm__ volatile("repe cmpsb" : "+S"(source), "+D"(destination), "+c"(count) : : "cc", "memory");
        else
            __asm__ volatile("cmpsq" : "+S"(source), "+D"(destination) : : "cc", "memory");
    }
    return fault_address == pages;
}

void cpu_host_compare_order(struct cpu_host *host)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO}, before;
    char *p = mmap(NULL, 8192, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || sigaction(SIGSEGV, &action, &before))
        return;
    host->cmps_source_first = reads_source_first(p, false);
    host->cmpsb_source_first = reads_source_first(p, true);
    sigaction(SIGSEGV, &before, NULL);
    munmap(p, 8192);
}
