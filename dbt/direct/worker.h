// User workers: processes that hold the user half of one guest address space each, at its own addresses, and
// execute guest user code there untranslated ("direct execution").
//
// A worker is nothing but user-level guest state. Its address space holds the pages its owner told it to map
// and, at WORKER_BASE, a few pages of our own: the stub's text, a page of commands that only the owner
// writes, the state page, and an alternate stack for signals. Guest code in it may do what it likes: every
// system call but the stub's own is a signal, and whatever it writes into the state page or onto the
// alternate stack is read back as user-controlled data.
//
// Two threads share that address space. The runner executes guest code and, in the stub, waits on a futex;
// the mapper executes mmap(), munmap() and mprotect() as the command page says. The owner (the cell) hands
// over by `turn`:
//   WORKER_RUN: the worker's turn. WORKER_STOPPED: the owner's.
//
// What the owner sees is not proof that the runner stands still: guest code can write `turn` itself.
// worker_is_parked() is the proof; nothing that must not be seen by guest user code may reach pages that a
// worker has mapped without it.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Of AT_HWCAP2, as <asm/hwcap2.h> says it to the kernel: workers need it (docs/decisions/022-segment-bases.md).
#define HWCAP2_FSGSBASE_BIT 2u

// Our own pages in a worker: from BASE, the least that many Linux systems let a process map, to before END.
#define WORKER_BASE 0x10000u
#define WORKER_END  0x30000u
#define WORKER_TOP  0x7ffffffff000ull // behind the last byte a worker can map

#define WORKERS_MAX    16
#define WORKER_WINDOWS 12

// SIGUSR1: unlike a real-time signal, it can't fail for want of queue space and does not pile up.
#define WORKER_KICK_SIGNAL 10

// What a SIGSYS is of, in struct worker_event's `trap`.
#define WORKER_TRAP_SYSCALL 0x100u // SYSCALL, or a call of the vsyscall page: then RIP is there
#define WORKER_TRAP_INT80   0x80u

enum worker_why {
    WORKER_DIED,    // there is no such process any more (or it says so, which comes to the same)
    WORKER_SIGNAL,  // guest code was stopped by a signal: struct worker_event says which
    WORKER_KICKED,  // worker_kick(); the state is where guest code was stopped
    WORKER_NO_ROOM, // a command failed: error in the event; the runner has not run since
};

struct worker_event {
    enum worker_why why;
    int signal, code; // SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS; si_code
    uint32_t trap;    // the host's exception vector; SIGSYS: WORKER_TRAP_*
    uint32_t error;   // its error code: whether the page is present (bit 0) is the host's view. NO_ROOM: errno
    uint64_t address; // CR2 of a page fault (trap 14)
};

// Registers as both sides see them. In the order the stub pops them, the frame of IRETQ last. To resume, CS must
// be 33h, SS 2Bh and RIP canonical: else the event is a fault of IRETQ, with RIP in the stub.
struct worker_regs {
    uint64_t fs_base, gs_base;
    uint64_t gpr[16]; // in the order of enum gpr (cpu/state.h); [4], RSP, is ignored: `rsp` counts
    uint64_t rip, cs, rflags, rsp, ss;
    uint16_t ds, es, fs, gs; // selectors as they were when the worker stopped; not loaded
};

// Memory of the owner's that workers have at the owner's own address: translated code and what it uses. It stays mapped there
// whatever is unmapped.
struct worker_window {
    uint64_t at, size; // whole pages above WORKER_END, in ascending order
    int prot;          // PROT_*
    void *memory;      // shared memory, `size` bytes for each worker, that is there instead of the owner's; null: the
                       // owner's, which must be shared
};

struct workers; // of one cell

// Forks `count` (1..WORKERS_MAX) workers, which sleep. ram_fd: guest RAM; it stays the caller's. Call it while the
// process has one thread, which stays theirs: they end with it. Returns 0 or -errno, -ENOSYS without FSGSBASE; what
// works without (no seccomp filter, say) is not tried. windows: at most WORKER_WINDOWS, or none.
int workers_create(struct workers **out, unsigned count, int ram_fd, const struct worker_window *windows,
                   unsigned window_count);
void workers_destroy(struct workers *w); // ends them
unsigned workers_count(const struct workers *w);
// Process id, which is the runner's thread id: for a sandbox's list. It stays taken until workers_destroy().
int worker_pid(const struct workers *w, unsigned n);
// The mapper's thread id: is_parked(), kill() and wait() ask for it (signal 0), and who chooses CPUs needs it too.
int worker_mapper(const struct workers *w, unsigned n);

// ---- the rest makes no system call but futex(), sched_yield() and tgkill(worker_pid(), ...), allocates nothing, and
// leaves vector registers alone

// State to resume with, and after worker_wait() the state at the event. The owner's own copy.
struct worker_regs *worker_regs(struct workers *w, unsigned n);
// The guest's x87 and vector state at the event, an XSAVE image of the standard format in memory that the worker
// can write: copy it before looking at it. *size: bytes there are. After WORKER_KICKED it may be the image to
// resume with that was given, with the components of its mask only.
const uint8_t *worker_xsave(struct workers *w, unsigned n, size_t *size);
// Where to put the state to resume with, 64-byte aligned; its size as XSAVE's with this mask, its header zero:
// XSTATE_BV is to be set; MXCSR counts whatever it says. Components outside the mask become initial. Without a call
// of this since the last event, the runner goes on with the state of that event.
uint8_t *worker_new_xsave(struct workers *w, unsigned n, uint64_t mask);

// Queues a command for the mapper, while the worker is stopped. prot: PROT_*. False: the queue is full;
// worker_sync() empties it. What reaches outside [WORKER_END, WORKER_TOP) is a command that fails with EINVAL.
// Where one goes on where the last ended, they become one.
bool worker_map(struct workers *w, unsigned n, uint64_t la, uint64_t size, uint64_t ram_offset, int prot);
bool worker_unmap(struct workers *w, unsigned n, uint64_t la, uint64_t size);
bool worker_protect(struct workers *w, unsigned n, uint64_t la, uint64_t size, int prot);
bool worker_has_commands(const struct workers *w, unsigned n);
// Executes queued commands and returns when they are done, the runner still stopped. Returns 0, -errno of the first
// that failed (those behind it are done all the same), or -ESRCH: the worker is dead, or has been killed because it
// was not parked, for then nothing the mapper says could be believed.
int worker_sync(struct workers *w, unsigned n);

// Executes queued commands (a worker that is not parked is killed then), then lets the runner go on.
void worker_resume(struct workers *w, unsigned n);
// Waits for it. False: interrupted by a signal to the caller (its handler has run); call again. A handler that wants
// the worker to stop must call worker_kick(): it may run before we sleep, and with SA_RESTART we sleep on.
bool worker_wait(struct workers *w, unsigned n, struct worker_event *e);
// Makes a running worker stop soon. Any time, also in vain, also in a signal handler; never lost: a worker that is
// stopped then stops at once when it is resumed, though there may be one WORKER_KICKED too many.
void worker_kick(struct workers *w, unsigned n);
// Whether the runner sleeps in the host's kernel, waiting for worker_resume(). Gives a runner that is on its way
// there a moment. False: it is dead, broken or hostile, and worker_kill() is all that helps.
bool worker_is_parked(struct workers *w, unsigned n);
void worker_kill(struct workers *w, unsigned n); // for good; returns when it has no thread left
