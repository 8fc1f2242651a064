// What the host allows, found out by trying. Each try has a process of its own, so that neither a filter that kills nor
// what a try leaves behind reaches the caller.
#pragma once
#include <stdint.h>

enum probe {
    PROBE_PROCESS,  // a process and a thread
    PROBE_MEMORY,   // the memory of a guest, `PROBE_GUEST_BYTES`, as a machine makes it, and room for our own
    PROBE_LITTLE,   // the same with `PROBE_LITTLE_BYTES`
    PROBE_CODE,     // memory below 2 GiB that is written at one address and executed at another
    PROBE_TIMER,    // a timer whose signal goes to one thread
    PROBE_SECCOMP,  // both filters of the sandbox
    PROBE_WORKER,   // a process for user code, with its filters
    PROBE_POPULATE, // faulting in many pages at once
    PROBE_HUGE,     // a large page for a guest's memory; ENODATA: it got small ones
    PROBE_PIN,      // staying on one CPU
    PROBE_PTY,
    PROBE_PERF_CLOCK,  // perf_event_open(2): samples by time
    PROBE_PERF_CYCLES, // by the processor's counter
    PROBE_KVM,         // opening /dev/kvm and asking its version
    PROBE_PTRACE,
    PROBE_USERFAULTFD,
    PROBE_MODIFY_LDT,
    PROBE_FSGSBASE,
    PROBE_PKEY,
    PROBE_USER_NAMESPACE,
};
#define PROBE_GUEST_BYTES  (512ull << 20) // the default of --memory
#define PROBE_LITTLE_BYTES (16ull << 20)
#define PROBE_OWN_BYTES    (280ull << 20) // address space that a machine's process reserves beyond its guest's memory

// 0: allowed. An errno: refused with that. Negative: a signal of that number ended the try. PROBE_UNTRIED: there could be
// no process for it.
#define PROBE_UNTRIED 1000
int probe(enum probe what);
