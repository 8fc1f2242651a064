// The owner's side of its workers (worker.h), while the guest's vector registers are live in the host's.
// Whatever lies in the state page and on the alternate stack may be the guest's forgery: it is read once, and
// checked where it matters.
#include "dbt/direct/worker_internal.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/futex.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

#define COMMANDS      ((COMMAND_SIZE - CMD_FIRST) / CMD_BYTES)
#define XSAVE_LEAST   576u // legacy area and header
#define VSYSCALL_PAGE 0xffffffffff600000ull
#define PAGE_FAULT    14u
#define FETCH_BY_USER 0x14u
#define DOUBT_NS      20000000
#define YIELDS        64u // before we sleep
#define NAPS          500u
#define NAP_NS        1000000

_Static_assert(WORKER_BASE == PAGES_BASE && WORKER_KICK_SIGNAL == KICK_SIGNAL,
               "the assembler has its own names");
_Static_assert(offsetof(struct worker_regs, ss) == 8 * 22 && sizeof(struct worker_regs) == 8 * 24,
               "as the stub pops them");

// ---- system calls
static long futex(uint32_t *word, long operation, uint32_t value, const struct timespec *timeout,
                  uint32_t *second, uint32_t value3)
{
    long result;
    register const void *r10 __asm__("r10") = timeout;
    register uint32_t *r8 __asm__("r8") = second;
    register long r9 __asm__("r9") = value3;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"((long)SYS_futex), "D"(word), "S"(operation), "d"((long)value), "r"(r10), "r"(r8),
                       "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static long send(int pid, int tid, int signal)
{
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"((long)SYS_tgkill), "D"((long)pid), "S"((long)tid), "d"((long)signal)
                     : "rcx", "r11", "memory");
    return result;
}

static void yield(void)
{
    long result;

    __asm__ volatile("syscall" : "=a"(result) : "0"((long)SYS_sched_yield) : "rcx", "r11", "memory");
}

// ---- shared memory
static uint32_t *state32(const struct worker *k, unsigned at)
{
    return (uint32_t *)(k->shared + (STATE_PAGE - COMMAND_PAGE) + at);
}

static uint64_t *state64(const struct worker *k, unsigned at)
{
    return (uint64_t *)(k->shared + (STATE_PAGE - COMMAND_PAGE) + at);
}

static uint32_t *command32(const struct worker *k, unsigned at)
{
    return (uint32_t *)(k->shared + at);
}

// Where the owner sees an address of the alternate stack or of the new image; the caller has checked it.
static uint8_t *seen(const struct worker *k, uint32_t address)
{
    return k->shared + (address >= ALT_STACK ? LOW_PIECE + (address - ALT_STACK) : address - COMMAND_PAGE);
}

// ---- life and death
static bool is_gone(const struct worker *k)
{
    return send(k->pid, k->mapper, 0) == -ESRCH; // the mapper never ends alone
}

// The end of a thread is what the owner of a priority inheritance lock can't survive: we ask for a lock that
// the thread is said to hold, and the kernel answers when it is gone, without waitpid().
static void join(int tid)
{
    uint32_t word = (uint32_t)tid;

    while (futex(&word, FUTEX_LOCK_PI | FUTEX_PRIVATE_FLAG, 0, NULL, NULL, 0) == -EAGAIN)
        word = (uint32_t)tid;
}

void worker_kill(struct workers *w, unsigned n)
{
    struct worker *k = &w->worker[n];

    if (k->dead)
        return;
    send(k->pid, k->pid, SIGKILL);
    join(k->pid);
    join(k->mapper);
    k->dead = true;
}

unsigned workers_count(const struct workers *w)
{
    return w->count;
}

int worker_pid(const struct workers *w, unsigned n)
{
    return w->worker[n].pid;
}

int worker_mapper(const struct workers *w, unsigned n)
{
    return w->worker[n].mapper;
}

// ---- the state
struct worker_regs *worker_regs(struct workers *w, unsigned n)
{
    return &w->worker[n].regs;
}

const uint8_t *worker_xsave(struct workers *w, unsigned n, size_t *size)
{
    const struct worker *k = &w->worker[n];

    *size = k->xstate_size;
    return seen(k, k->xstate);
}

uint8_t *worker_new_xsave(struct workers *w, unsigned n, uint64_t mask)
{
    struct worker *k = &w->worker[n];
    uint8_t *image = seen(k, NEW_XSAVE);

    for (unsigned i = 512; i < XSAVE_LEAST; i += 8) // a header is ours: XRSTOR is particular about it
        *(volatile uint64_t *)(image + i) = 0;
    k->xstate = NEW_XSAVE;
    k->xstate_size = w->xsave_size;
    k->xmask = mask;
    return image;
}

// ---- commands
struct command {
    uint32_t call, prot, flags, unused;
    uint64_t la, length, offset;
};

_Static_assert(sizeof(struct command) == CMD_BYTES, "as the stub reads it");

static bool queue(struct worker *k, struct command c)
{
    struct command *first = (struct command *)(k->shared + CMD_FIRST);

    if (c.la < WORKER_END || c.length > WORKER_TOP || c.la > WORKER_TOP - c.length)
        c = (struct command){.call = SYS_munmap, .la = 1}; // EINVAL
    else if (k->queued) { // what goes on where the last ends becomes one with it
        struct command *last = &first[k->queued - 1];
        if (last->call == c.call && last->prot == c.prot && last->la + last->length == c.la &&
            (c.call != SYS_mmap || last->offset + last->length == c.offset)) {
            last->length += c.length;
            return true;
        }
    }
    if (k->queued == COMMANDS)
        return false;
    first[k->queued++] = c;
    return true;
}

bool worker_map(struct workers *w, unsigned n, uint64_t la, uint64_t size, uint64_t ram_offset, int prot)
{
    return queue(&w->worker[n], (struct command){.call = SYS_mmap,
                                                 .prot = (uint32_t)prot,
                                                 .flags = MAP_SHARED | MAP_FIXED | MAP_POPULATE,
                                                 .la = la,
                                                 .length = size,
                                                 .offset = ram_offset});
}

// All but the windows.
bool worker_unmap(struct workers *w, unsigned n, uint64_t la, uint64_t size)
{
    const struct command c = {.call = SYS_munmap, .la = la, .length = size};
    uint64_t end = la + size;

    for (unsigned i = 0; i < w->window_count && end > la; i++) {
        const struct worker_window *hole = &w->window[i];
        if (hole->at + hole->size <= la || hole->at >= end)
            continue;
        if (hole->at > la &&
            !queue(&w->worker[n], (struct command){.call = SYS_munmap, .la = la, .length = hole->at - la}))
            return false;
        la = hole->at + hole->size;
        if (la >= end)
            return true;
    }
    return queue(&w->worker[n],
                 la == c.la ? c : (struct command){.call = SYS_munmap, .la = la, .length = end - la});
}

bool worker_protect(struct workers *w, unsigned n, uint64_t la, uint64_t size, int prot)
{
    return queue(&w->worker[n],
                 (struct command){.call = SYS_mprotect, .prot = (uint32_t)prot, .la = la, .length = size});
}

bool worker_has_commands(const struct workers *w, unsigned n)
{
    return w->worker[n].queued != 0;
}

// Lets the mapper work; `turn` is TURN_RUN.
static void flush(struct worker *k, bool then_run)
{
    *command32(k, CMD_COUNT) = k->queued;
    *command32(k, CMD_THEN_RUN) = then_run;
    k->queued = 0;
    __atomic_store_n(command32(k, CMD_SEQUENCE), *command32(k, CMD_SEQUENCE) + 1, __ATOMIC_SEQ_CST);
    futex(command32(k, CMD_SEQUENCE), FUTEX_WAKE, 1, NULL, NULL, 0);
}

// ---- turns
// The worker's turn, unless the kernel has cleared the word because a thread of it has ended.
static bool take_turn(struct worker *k)
{
    uint32_t stopped = TURN_STOPPED;

    return !k->dead && __atomic_compare_exchange_n(state32(k, ST_TURN), &stopped, TURN_RUN, false,
                                                   __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

// Sleeps while it is the worker's turn. 0, -EINTR, or -ESRCH.
static int wait_turn(struct worker *k)
{
    const struct timespec pause = {.tv_nsec = DOUBT_NS};

    for (;;) {
        if (k->dead)
            return -ESRCH;
        uint32_t turn = __atomic_load_n(state32(k, ST_TURN), __ATOMIC_SEQ_CST);
        if (turn == TURN_STOPPED)
            return 0;
        if (turn != TURN_RUN && turn != TURN_ASLEEP)
            return -ESRCH;
        if (turn == TURN_RUN && !__atomic_compare_exchange_n(state32(k, ST_TURN), &turn, TURN_ASLEEP, false,
                                                             __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            continue;
        long result = futex(state32(k, ST_TURN), FUTEX_WAIT, TURN_ASLEEP, k->doubt ? &pause : NULL, NULL, 0);
        if (result == -ETIMEDOUT && is_gone(k))
            return -ESRCH;
        if (result == -EINTR)
            return -EINTR;
    }
}

int worker_sync(struct workers *w, unsigned n)
{
    struct worker *k = &w->worker[n];
    int result;

    if (!k->queued)
        return k->dead ? -ESRCH : 0;
    if (!worker_is_parked(w, n) || !take_turn(k)) { // a runner that runs could forge the mapper's answer
        worker_kill(w, n);
        return -ESRCH;
    }
    flush(k, false);
    k->doubt = true;
    while ((result = wait_turn(k)) == -EINTR)
        ;
    if (result) {
        worker_kill(w, n);
        return -ESRCH;
    }
    return -(int)*(volatile uint32_t *)state32(k, ST_ERROR);
}

void worker_resume(struct workers *w, unsigned n)
{
    struct worker *k = &w->worker[n];
    bool commands = k->queued != 0;
    const uint64_t *regs = (const uint64_t *)&k->regs;

    if (commands && !worker_is_parked(w, n))
        worker_kill(w, n);
    __atomic_store_n(&k->running, 1,
                     __ATOMIC_SEQ_CST); // before `go`: who kicks from here on sends a signal too
    for (unsigned i = 0; i <= offsetof(struct worker_regs, ss) / 8; i++)
        state64(k, ST_REGS)[i] = regs[i];
    *state64(k, ST_XSTATE) = k->xstate;
    *state64(k, ST_XMASK) = k->xmask & w->xsave_mask;
    *state32(k, ST_WHY) = 0;
    if (!take_turn(k))
        return; // worker_wait() says so
    if (commands) {
        k->doubt = true;
        flush(k, true);
        return;
    }
    __atomic_store_n(state32(k, ST_GO), 1, __ATOMIC_SEQ_CST);
    k->doubt = futex(state32(k, ST_GO), FUTEX_WAKE, 1, NULL, NULL, 0) != 1;
}

// A frame or image on the alternate stack.
static bool on_stack(uint64_t address, uint64_t size, uint64_t alignment)
{
    return address >= ALT_STACK && address <= ALT_STACK + ALT_STACK_SIZE - size && address % alignment == 0;
}

static uint64_t get64(const uint8_t *p)
{
    return *(const volatile uint64_t *)p;
}

static uint32_t get32(const uint8_t *p)
{
    return *(const volatile uint32_t *)p;
}

static bool take_image(struct workers *w, struct worker *k, uint64_t frame)
{
    uint64_t image;

    if (!on_stack(frame, UC_END, 8))
        return false;
    image = get64(seen(k, (uint32_t)frame) + UC_GREGS + 8 * 23);
    if (!on_stack(image, XSAVE_LEAST, 64))
        return false;
    k->xstate = (uint32_t)image;
    k->xstate_size = ALT_STACK + ALT_STACK_SIZE - k->xstate;
    if (k->xstate_size > w->xsave_size)
        k->xstate_size = w->xsave_size;
    k->xmask = UINT64_MAX;
    return true;
}

static void take_signal(struct worker *k, uint64_t frame, struct worker_event *e)
{
    // where struct worker_regs has the registers of the kernel's order: R8 to R15, RDI, RSI, RBP, RBX, RDX,
    // RAX, RCX
    static const uint8_t place[] = {8, 9, 10, 11, 12, 13, 14, 15, 7, 6, 5, 3, 2, 0, 1};
    const uint8_t *uc = seen(k, (uint32_t)frame), *info = uc + UC_INFO, *gregs = uc + UC_GREGS;
    struct worker_regs *r = &k->regs;

    for (unsigned i = 0; i < sizeof place; i++)
        r->gpr[place[i]] = get64(gregs + 8 * i);
    r->rsp = r->gpr[4] = get64(gregs + 8 * 15);
    r->rip = get64(gregs + 8 * 16);
    r->rflags = get64(gregs + 8 * 17);
    uint64_t selectors = get64(gregs + 8 * 18);
    r->cs = selectors & 0xffff;
    r->ss = selectors >> 48;
    r->fs_base = *(volatile uint64_t *)state64(k, ST_FS_BASE);
    r->gs_base = *(volatile uint64_t *)state64(k, ST_GS_BASE);
    r->ds = (uint16_t) * (volatile uint32_t *)state32(k, ST_DS);
    r->es = (uint16_t) * (volatile uint32_t *)state32(k, ST_ES);
    r->fs = (uint16_t) * (volatile uint32_t *)state32(k, ST_FS);
    r->gs = (uint16_t) * (volatile uint32_t *)state32(k, ST_GS);
    e->signal = (int)get32(info);
    e->code = (int)get32(info + 8);
    if (e->signal == KICK_SIGNAL) {
        e->why = WORKER_KICKED;
        return;
    }
    e->why = WORKER_SIGNAL;
    if (e->signal == SIGSYS) {
        uint64_t call = get64(info + 16);
        e->trap = get32(info + 28) == AUDIT_ARCH_I386 ? WORKER_TRAP_INT80 : WORKER_TRAP_SYSCALL;
        if (call >= VSYSCALL_PAGE) { // the kernel has done a RET there
            r->rip = call;
            r->rsp = r->gpr[4] = r->rsp - 8;
        }
    } else if (r->rip >= VSYSCALL_PAGE) { // the kernel says nothing about a call of anything else there
        e->trap = PAGE_FAULT;
        e->error = FETCH_BY_USER;
        e->address = r->rip;
    } else if (e->code > 0) { // of a fault, not sent
        e->error = (uint32_t)get64(gregs + 8 * 19);
        e->trap = (uint32_t)get64(gregs + 8 * 20);
        if (e->trap == PAGE_FAULT)
            e->address = get64(gregs + 8 * 22);
    }
}

bool worker_wait(struct workers *w, unsigned n, struct worker_event *e)
{
    struct worker *k = &w->worker[n];
    int result = wait_turn(k);
    uint64_t frame;
    bool good = !result;

    if (result == -EINTR)
        return false;
    *e = (struct worker_event){.why = WORKER_KICKED};
    switch (good ? *(volatile uint32_t *)state32(k, ST_WHY) : 0) {
    case WHY_KICKED: break;
    case WHY_KICKED_LATE:
        frame = *(volatile uint64_t *)state64(k, ST_FRAME);
        good = take_image(w, k, frame);
        break;
    case WHY_SIGNAL:
        frame = *(volatile uint64_t *)state64(k, ST_FRAME);
        good = take_image(w, k, frame);
        if (good)
            take_signal(k, frame, e);
        break;
    case WHY_NO_ROOM:
        e->why = WORKER_NO_ROOM;
        e->error = *(volatile uint32_t *)state32(k, ST_ERROR);
        break;
    default: good = false;
    }
    if (!good) {
        worker_kill(w, n);
        *e = (struct worker_event){.why = WORKER_DIED};
    }
    __atomic_store_n(&k->running, 0, __ATOMIC_SEQ_CST);
    // A kick from here on is for the next turn. One that came before was for this one, which is over.
    __atomic_store_n(command32(k, CMD_KICK), 0, __ATOMIC_SEQ_CST);
    return true;
}

// A worker whose turn it isn't finds the word when it is resumed; one that runs needs the signal. Once is
// enough until the next event, so there are never more signals under way than the alternate stack has room
// for. The caller may be a signal handler of the owner's thread.
void worker_kick(struct workers *w, unsigned n)
{
    struct worker *k = &w->worker[n];

    if (!__atomic_exchange_n(command32(k, CMD_KICK), 1, __ATOMIC_SEQ_CST) && !k->dead &&
        __atomic_load_n(&k->running, __ATOMIC_SEQ_CST))
        send(k->pid, k->pid, KICK_SIGNAL);
}

// The runner can sleep on `go` in one place, the stub's only system call, and nobody else can: guest RAM is
// another file, and guest code that jumps to that instruction comes out of it into the stub too, with no
// register that counts (its filter demands no timeout and this address). From there, and from the kicks that
// may interrupt it, every way leads back to sleep while `go` is 0, and only we and the mapper at our command
// can make it 1 while the runner sleeps. So the question is whether the kernel has somebody in its queue for
// this word while the word is 0. FUTEX_CMP_REQUEUE answers that: it compares the word and moves one sleeper,
// from this queue to the same, under the queue's lock.
static bool sleeps(const struct worker *k)
{
    uint32_t *go = state32(k, ST_GO);
    const struct timespec *one = (const void *)1; // how many to move

    return futex(go, FUTEX_CMP_REQUEUE, 0, one, go, 0) > 0;
}

bool worker_is_parked(struct workers *w, unsigned n)
{
    const struct timespec nap = {.tv_nsec = NAP_NS};
    const struct worker *k = &w->worker[n];
    uint32_t word = 0;

    if (k->dead)
        return false;
    if (sleeps(k))
        return true;
    for (unsigned i = 0; i < YIELDS; i++) { // it has woken us, and lost its CPU before it slept itself
        yield();
        if (sleeps(k))
            return true;
    }
    for (unsigned i = 0; i < NAPS && !is_gone(k); i++) {
        futex(&word, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 0, &nap, NULL, 0);
        if (sleeps(k))
            return true;
    }
    return false;
}
