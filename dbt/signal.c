// Host signals of the vCPU's thread: faults of guest instructions, and kicks.
//
// A kick finds the thread in one of four places. In C or on the way into it: requests are looked at before translated
// code goes on, nothing to do. In the tail that loads the guest's registers: all state is still in memory, so the tail
// is abandoned for the service stub. At a boundary of guest instructions: the state is taken from the signal frame.
// Elsewhere: breakpoints at the next boundaries (dbt/plant.c). So no block needs a test.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>
#include "dbt/dbt.h"
#include "dbt/direct/direct.h"

#define ALT_SIZE (128 * 1024)

static _Thread_local struct dbt *current; // signal handlers have no argument of ours

static const int greg_of_host[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                     REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

static bool in_blocks(const struct dbt *d, uint64_t rip)
{
    return cache_contains(d, rip);
}

// `rest`: instructions that have been counted and come after this place.
static void take_state(struct dbt *d, const greg_t *r, uint64_t rip, bool parked, unsigned rest)
{
    struct cpu_state *s = &d->v->s;
    for (unsigned g = 0; g < 16; g++)
        if (host_of_guest[g] != HOMED)
            s->gpr[g] = (uint64_t)r[greg_of_host[host_of_guest[g]]];
    uint64_t flags = parked ? (d->parked >> 8 & 0xff) | (d->parked & 1 ? FL_OF : 0) : (uint64_t)r[REG_EFL];
    s->rflags = (s->rflags & ~(uint64_t)FL_ARITH) | (flags & FL_ARITH);
    s->rip = rip;
    d->v->count.left += rest;
    d->ras_sp = (uint64_t)r[REG_RSP];
}

// Makes the thread go to stub_service, now or at the next boundary of guest instructions.
static void leave_soon(struct dbt *d, greg_t *r)
{
    uint64_t at = (uint64_t)r[REG_RIP], rip;
    bool parked;
    unsigned rest;
    if (at >= d->tail_begin && at < d->tail_end) {
        plant_remove(d);
        r[REG_RIP] = (greg_t)d->stub_service;
    } else if (at >= d->returns_begin && at < d->returns_end) {
        plant_remove(d);
        if (!in_code(d->v, (uint64_t)r[REG_RBP]))
            return; // the lookup under way faults
        take_state(d, r, (uint64_t)r[REG_RBP], true, 0);
        d->ras_sp = d->ras_base;
        r[REG_RIP] = (greg_t)d->stub_service;
    } else if (in_blocks(d, at)) {
        plant_remove(d);
        struct block *b = cache_block_at(d, at);
        if (!b)
            return;
        if (plant_boundary(b, at, (uint64_t)r[REG_RBP], &rip, &parked, &rest)) {
            if (!in_code(d->v, rip))
                return; // it comes to C next
            take_state(d, r, rip, parked, rest);
            r[REG_RIP] = (greg_t)d->stub_service;
        } else {
            plant(d, b);
        }
    } else {
        uint64_t back = d->slow_ret;
        if (at == d->stub_slow[0][0] || at == d->stub_slow[0][1] || at == d->stub_seg)
            back = *(const uint64_t *)r[REG_RSP];
        else if (!d->in_slow && !(at >= d->slow_begin && at < d->slow_end))
            return; // C that looks at the requests, and may count on breakpoints planted for a worker (direct_turn())
        plant_remove(d);
        struct block *b = cache_block_at(d, back);
        if (b)
            plant(d, b);
    }
}

// The host's AC is set around instructions of blocks with KEY_AC, and stays so in a handler.
static void clear_ac(void)
{
    __asm__ volatile("pushfq; andl %0, (%%rsp); popfq" : : "i"(~FL_AC) : "cc", "memory");
}

static void on_kick(int sig, siginfo_t *info, void *context)
{
    clear_ac();
    (void)sig;
    struct dbt *d = current;
    if (!d)
        return;
    if (info->si_code == SI_TIMER || info->si_pid != d->pid)
        __atomic_or_fetch(&d->v->requests, REQ_TIMER, __ATOMIC_ACQ_REL);
    uint32_t q = __atomic_load_n(&d->v->requests, __ATOMIC_ACQUIRE);
    if (!q || (q == REQ_INTR && !d->v->s.iflag))
        return;
    d->n.kicks++;
    d->kicked = 1;
    if (!d->kicked_tsc)
        d->kicked_tsc = __builtin_ia32_rdtsc();
    if (d->direct)
        direct_kick(d->direct);
    leave_soon(d, ((ucontext_t *)context)->uc_mcontext.gregs);
}

static void die(struct dbt *d, int sig, const siginfo_t *info, const greg_t *r)
{
    char line[256];
    int n = snprintf(line, sizeof line, "gnomon: internal error: signal %d at %#llx, address %p, guest rip %#llx, block code %d\n",
                     sig, (unsigned long long)r[REG_RIP], info->si_addr, d ? (unsigned long long)d->v->s.rip : 0ull,
                     d ? in_blocks(d, (uint64_t)r[REG_RIP]) : 0);
    if (d && d->host.died)
        d->host.died(d->host.opaque, line);
    if (write(2, line, (size_t)n) < 0)
        _exit(4);
    signal(sig, SIG_DFL);
    raise(sig);
}

// A push onto the return stack, of a block or of a stub, that finds it full.
static bool is_ras_overflow(const struct dbt *d, const greg_t *r, uint64_t address)
{
    uint64_t at = (uint64_t)r[REG_RIP];
    return r[REG_TRAPNO] == EXC_PF && at >= d->rx && at < d->rx + d->cache_size &&
           address >= d->ras_base + 16 - RAS_SIZE - PAGE_SIZE && address < d->ras_base;
}

static void on_fault(int sig, siginfo_t *info, void *context)
{
    clear_ac();
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    struct dbt *d = current;
    if (d && sig == SIGTRAP && plant_is_at(d, (uint64_t)r[REG_RIP] - 1)) {
        r[REG_RIP]--;
        d->n.kick_traps++;
        leave_soon(d, r);
        return;
    }
    uint64_t at = (uint64_t)r[REG_RIP], rip, address = (uint64_t)info->si_addr;
    bool start;
    if (d && is_ras_overflow(d, r, address)) {
        r[REG_RSP] = (greg_t)d->ras_base; // all predictions are forgotten
        return;
    }
    struct block *b = d && in_blocks(d, at) ? cache_block_at(d, at) : NULL;
    if (!b || !cache_guest_rip(b, at, &rip, &start)) {
        die(d, sig, info, r);
        return;
    }
    switch (r[REG_TRAPNO]) {
    case EXC_DE:
    case EXC_UD:
    case EXC_MF:
    case EXC_XM:
    case EXC_AC:
    case EXC_GP: break;
    case EXC_PF:
        if (masked_fault(d, address))
            break;
        // fall through
    default: die(d, sig, info, r); return;
    }
    const struct map_entry *m = cache_map(b, at);
    take_state(d, r, rip, m->parked & 2, m->rest); // nothing of the run from this instruction on is done
    if (m->borrowed != NOT_BORROWED)
        d->v->s.gpr[m->borrowed & 15] = d->tmp;
    d->fault_vector = (unsigned)r[REG_TRAPNO];
    r[REG_RIP] = (greg_t)d->stub_fault;
    r[REG_EFL] &= ~FL_AC;
}

int signal_attach(struct dbt *d)
{
    void *alt = mmap(NULL, ALT_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const size_t stride = RAS_SIZE + PAGE_SIZE;
    d->ras = map_low(CONTEXTS * stride, -1, PROT_READ | PROT_WRITE);
    if (!d->ras || alt == MAP_FAILED)
        return -ENOMEM;
    for (unsigned i = 0; i < CONTEXTS; i++) {
        struct context *c = &d->contexts[i];
        mprotect(d->ras + i * stride, PAGE_SIZE, PROT_NONE);
        c->ras_base = c->ras_sp = (uint64_t)d->ras + (i + 1) * stride - 16;
        *(uint64_t *)c->ras_base = d->stub_ret_empty[i];
    }
    d->ras_sp = d->ras_base = d->contexts[0].ras_base;
    d->alt_stack = alt;
    stack_t st = {.ss_sp = alt, .ss_size = ALT_SIZE};
    if (sigaltstack(&st, NULL) < 0)
        return -errno;
    current = d;
    d->tid = (int)syscall(SYS_gettid);
    d->pid = (int)getpid();
    struct sigaction sa = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigfillset(&sa.sa_mask);
    sigdelset(&sa.sa_mask, SIGINT);
    const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    for (unsigned i = 0; i < sizeof faults / sizeof faults[0]; i++)
        sigaction(faults[i], &sa, NULL);
    sa.sa_sigaction = on_kick;
    sa.sa_flags |= SA_RESTART;
    sigaction(SIGRTMIN, &sa, NULL);
    return 0;
}

void signal_detach(struct dbt *d)
{
    stack_t st = {.ss_flags = SS_DISABLE};
    sigaltstack(&st, NULL);
    munmap(d->alt_stack, ALT_SIZE);
    munmap(d->ras, CONTEXTS * (RAS_SIZE + PAGE_SIZE));
    current = NULL;
}

void signal_kick(struct dbt *d)
{
    if (d->tid != (int)syscall(SYS_gettid))
        syscall(SYS_tgkill, getpid(), d->tid, SIGRTMIN);
}

void signal_self(const struct dbt *d)
{
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"((long)SYS_tgkill), "D"((long)d->pid), "S"((long)d->tid), "d"((long)SIGRTMIN)
                     : "rcx", "r11", "memory");
    (void)result;
}
