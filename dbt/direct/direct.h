// Direct execution: 64-bit guest user code runs untranslated in a user worker (dbt/direct/worker.h) that has the guest's
// pages mapped as a shadow (mmu/shadow.h) says. What needs the monitor stops the worker: the run loop goes on from the state at
// that point with translated code, of one instruction or of as many as it takes to come back.
#pragma once
#include "cpu/cpu.h"
#include "dbt/direct/worker.h"

struct direct;

enum direct_result {
    DIRECT_CODE,       // what comes at RIP may not run untranslated
    DIRECT_STEP,       // the instruction at RIP is for translated code
    DIRECT_STOPPED,    // a request is due
    DIRECT_PAGE_FAULT, // the guest's own: raise it at RIP
    DIRECT_LOST,       // the worker is gone, and with it the state
    DIRECT_TRAPPED,    // a single-step trap came behind an instruction
};

enum direct_choice { DIRECT_CHOOSE /* by what was measured */, DIRECT_EVERYTHING };
enum direct_policy { DIRECT_POLICY_CHOOSE, DIRECT_POLICY_RAW, DIRECT_POLICY_USER };

struct direct_fault {
    uint64_t address;
    uint32_t error;
};

enum direct_cause { // why user code came back or was not let in
    DIRECT_CAUSE_CALL,   // a system call
    DIRECT_CAUSE_KICK,
    DIRECT_CAUSE_FAULT,  // a true page fault
    DIRECT_CAUSE_TRACED, // an access that only translated code can make
    DIRECT_CAUSE_CODE,   // code that may not run untranslated
    DIRECT_CAUSE_OTHER,  // another exception
    DIRECT_CAUSES
};

struct direct_counters {
    uint64_t handoffs, hidden_faults, refused_state, cause[DIRECT_CAUSES], scan_failed[16];
    uint64_t opened, lost, forgets, follows, looks, makes, chosen, left, became_translated;
};

// Makes the workers, which sleep. While the process has one thread; ram_fd stays the caller's. Null with *error, an -errno:
// the host can't do it.
struct direct *direct_create(struct vcpu *v, int ram_fd, unsigned workers, enum direct_choice choice, enum direct_policy policy,
                             int *error);
void direct_destroy(struct direct *d);
const struct workers *direct_workers(const struct direct *d);

// The worker for the state in v->s, or -1: translated code goes on. Guest vector registers may be live.
int direct_enter(struct direct *d);
// Runs user code from there on until something else is to be done; v->s is exact then. With the guest's vector registers saved in
// v->s.
enum direct_result direct_run(struct direct *d, int worker, struct direct_fault *fault);
// Behind direct_run(), when the guest's vector registers are live again: loads selectors that user code has loaded. May throw.
void direct_load_selectors(struct direct *d);
// Whether a system call of Linux may map memory in a place that its result tells: mmap, brk, mremap, shmat.
#define DIRECT_MAPPING_CALLS (1u << 9 | 1u << 12 | 1u << 25 | 1u << 30)
static inline bool direct_may_map(uint64_t number)
{
    return number < 32 && (DIRECT_MAPPING_CALLS >> number & 1);
}
// User code has executed SYSCALL for one of those.
void direct_calls(struct direct *d);
// An interrupt has been taken; user: from CPL 3. For the choice.
void direct_sample(struct direct *d, bool user);
// From the signal handler of the vCPU's thread, when a request was set: a worker that runs stops soon.
void direct_kick(struct direct *d);
void direct_emit(struct direct *d, void (*emit)(void *opaque, const char *name, uint64_t value), void *opaque);
