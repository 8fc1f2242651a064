// The engine seam: what runs a vCPU. `software` translates (dbt/), `hardware` uses KVM. Nothing above asks which.
#pragma once
#include <stdio.h>
#include "cpu/cpu.h"

struct engine_stats;

enum engine_stop { ENGINE_REQUESTED /* REQ_EXIT was set */, ENGINE_SHUTDOWN /* triple fault */, ENGINE_HALTED_FOREVER, ENGINE_COUNTED /* count.stop_at */ };

struct engine_ops {
    const char *name;
    // Called on the thread that will run the vCPU. Returns 0 or -errno.
    int (*attach)(struct vcpu *v);
    // Runs guest code until asked to stop; v->s is exact on return.
    enum engine_stop (*run)(struct vcpu *v);
    // Makes run() look at v->requests soon. Callable from any thread or signal handler.
    // The software engine does it by SIGRTMIN; a POSIX timer that sends this signal (si_code SI_TIMER) to the thread sets
    // REQ_TIMER as well, and so does one from another process.
    void (*kick)(struct vcpu *v);
    void (*detach)(struct vcpu *v);
};

extern const struct engine_ops engine_software;

// Makes user workers for direct execution (dbt/direct/). On the vCPU's thread, while the process has no other, before the first
// run. ram_fd: guest RAM, which stays the caller's. always: whatever it costs; else for address spaces where it pays. Returns 0 or
// -errno: everything is translated `checked` then.
enum engine_policy { ENGINE_POLICY_AUTO, ENGINE_POLICY_RAW, ENGINE_POLICY_USER };
int engine_software_direct(struct vcpu *v, int ram_fd, unsigned workers, bool always, enum engine_policy policy);
struct workers;
const struct workers *engine_software_workers(const struct vcpu *v); // null: there are none

// What the software engine needs of its thread: called in the run loop, with the guest's FPU state saved.
struct engine_host {
    void (*idle)(void *opaque);       // HLT with nothing pending: sleep until a request is set
    void (*run_timers)(void *opaque); // answer REQ_TIMER
    // A fault of ours, one line that says where; does not return. Null: it goes to standard error.
    void (*died)(void *opaque, const char *line);
    void *opaque;
};
void engine_software_set_host(struct vcpu *v, struct engine_host host);
// Prints every block as it is translated, guest and host code side by side; null: stop.
void engine_software_trace_code(struct vcpu *v, FILE *out);
// Prints a line for each exception and interrupt delivered (exc), each flush of the guest's TLB and each write to a page with
// translated code (mmu; page faults too). Null: stop.
void engine_software_trace_events(struct vcpu *v, FILE *out, bool exc, bool mmu);
// Writes a line of perf's map for each stub now and for each block as it is translated, with `mark` (which must live as long)
// before it; null: stop. The lines are not flushed.
void engine_software_perf(struct vcpu *v, FILE *out, const char *mark);
// Measures where time goes and how often code goes on without C, for engine_software_stats(); costs a few per cent. On the
// vCPU's thread, before the first run. Returns 0 or -errno: the host gives no timer.
int engine_software_measure(struct vcpu *v);
// Calls emit() for each of the engine's counters.
void engine_software_stats(struct vcpu *v, void (*emit)(void *opaque, const char *name, uint64_t value), void *opaque);
// Where translated code was entered through C, for crash reports. A jump between blocks that are linked leaves no step.
enum engine_step_kind {
    STEP_NONE,
    STEP_BLOCK,     // looked up
    STEP_LINK,      // found or made for a direct exit that was not linked yet
    STEP_SENSITIVE, // `detail`: enum insn_op
    STEP_EXCEPTION, // `detail`: vector; `rip`: the instruction that raised it, or the one after an INT n
    STEP_INTERRUPT, // `detail`: vector; `rip`: its handler
    STEP_CALL,      // not a step: a CALL whose RET has not come, as the return stack predicts it
    STEP_KINDS
};
struct engine_step {
    uint64_t rip;
    uint32_t error; // STEP_EXCEPTION: its error code, 0 where it has none
    uint16_t detail;
    uint8_t kind, bits, cpl; // bits: of the code, 16, 32 or 64
};
#define ENGINE_STEPS 24 // kept
#define ENGINE_CALLS 8
#define ENGINE_TRAIL (ENGINE_STEPS + ENGINE_CALLS)
// The last steps, newest first, and then the innermost calls under way, innermost first. Returns how many.
unsigned engine_software_trail(struct vcpu *v, struct engine_step out[ENGINE_TRAIL]);
// Exceptions then show every arithmetic flag as it was, also those the program overwrites before it reads them, and x87
// images the last operand's address; costs speed (docs/decisions/002-dead-flags.md, 007-x87-pointers.md). Before the first
// run.
void engine_software_exact_flags(struct vcpu *v, bool exact);
// run() ends with ENGINE_COUNTED when so many guest instructions have retired since cpu_count_begin(), at once if they
// have: behind the last one, before interrupts and timers that are due then, so at a state that no other thing than the guest's
// own course decides. COUNT_NONE: it goes on. Only with counted instructions, which are chosen before the first run.
void engine_software_stop_at(struct vcpu *v, uint64_t count);
