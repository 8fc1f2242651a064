// The engine seam: what runs a vCPU. `software` translates (dbt/), `hardware` uses KVM. Nothing above asks which.
#pragma once
#include <stdio.h>
#include "cpu/cpu.h"

struct engine_stats;

enum engine_stop { ENGINE_REQUESTED /* REQ_EXIT was set */, ENGINE_SHUTDOWN /* triple fault */, ENGINE_HALTED_FOREVER };

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
// Calls emit() for each of the engine's counters.
void engine_software_stats(struct vcpu *v, void (*emit)(void *opaque, const char *name, uint64_t value), void *opaque);
// Exceptions then show every arithmetic flag as it was, also those the program overwrites before it reads them, and x87
// images the last operand's address; costs speed (docs/decisions/002-dead-flags.md, 007-x87-pointers.md). Before the first
// run.
void engine_software_exact_flags(struct vcpu *v, bool exact);
// Counts the guest instructions executed, by blocks entered, as guest_instructions_executed; costs speed. Before the first
// run, or before any block was made.
void engine_software_count_executed(struct vcpu *v, bool count);
