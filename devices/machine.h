// A whole PC: what a front end makes, runs and ends. devices/pc.h has the chips inside.
//
// Threads: machine_create(), machine_run(), machine_state() and machine_destroy() are called by one thread at
// a time; machine_run() makes its thread the vCPU's, and every chip runs on it. Other threads reach the
// machine only through the functions marked "any thread", which leave a note in its mailbox and wake the
// vCPU. machine_destroy() is called by the thread that ran the machine, once no other thread uses it.
#pragma once
#include <stdio.h>

#include "cpu/engine.h"
#include "devices/device.h"

#define MACHINE_SERIALS     2
#define MACHINE_MAX_DISKS   8
#define MACHINE_MAX_INITRDS 32
#define MACHINE_ERROR_SIZE  512

struct machine;

enum machine_end {
    MACHINE_END_POWERED_OFF,
    MACHINE_END_REBOOTED,   // the guest asked for a reset and reset_exits is set
    MACHINE_END_GUEST_EXIT, // value: the status the guest chose, (v << 1) | 1
    MACHINE_END_CRASHED,    // triple fault or pvpanic
    MACHINE_END_STOPPED,    // machine_stop(); value: its argument
    MACHINE_END_COUNTED,    // machine_stop_at()
    MACHINE_END_HOST_ERROR, // `error` of machine_run() says what
};

enum machine_direct { MACHINE_DIRECT_AUTO, MACHINE_DIRECT_OFF, MACHINE_DIRECT_ALWAYS };
enum machine_policy { MACHINE_POLICY_AUTO, MACHINE_POLICY_CHECKED, MACHINE_POLICY_USER, MACHINE_POLICY_RAW };
enum machine_on_crash { MACHINE_CRASH_EXIT, MACHINE_CRASH_RESET, MACHINE_CRASH_HALT };

struct machine_outcome {
    enum machine_end end;
    uint32_t value;
};

struct machine_disk {
    const char *path;
    bool readonly, snapshot;
};

// Strings and arrays need to live only until machine_create() returns; the files they name stay open after
// it.
struct machine_config {
    uint64_t memory_bytes; // multiple of 1 MiB
    const char *cpu;       // see cpu_model_create(); null: the default
    const char *kernel;    // path; null: none
    const char *const *initrds;
    unsigned initrd_count;
    const char *append; // kernel command line; null: empty
    const char *bios;   // path of a firmware image; null: none. Exactly one of this and kernel is given.
    const struct machine_disk *disks;
    unsigned disk_count;
    struct char_out serial[MACHINE_SERIALS]; // write == null: nobody listens
    struct char_out debugcon;                // ports E9h and 402h
    const struct engine_ops *engine;         // null: engine_software
    enum machine_on_crash on_crash;
    bool reset_exits; // a guest's reset ends machine_run() instead
    // Called on the vCPU's thread when the guest crashed, before on_crash is done; may be null. `why` is one
    // line.
    void (*crashed)(void *opaque, struct vcpu *v, const char *why);
    // --trace: a line of cpu/, and every port and MMIO access (write: value went out, else value came back);
    // may be null.
    void (*trace_cpu)(void *opaque, const char *what, uint64_t a, uint64_t b);
    void (*trace_io)(void *opaque, bool mmio, bool write, uint64_t address, unsigned size, uint64_t value);
    void *opaque; // of the hooks
    // The vCPU runs in a process of its own (devices/cell.h), with this sandbox: no files, few system calls. Then call
    // machine_start() before other threads exist, and run the machine on the same thread, which must outlive it; the
    // hooks above run in the caller's process as ever.
    bool cell, sandbox;
    enum machine_policy policy; // of that code
    enum machine_direct direct; // user code in processes of its own, untranslated; with a cell only
    bool trace_blocks, trace_exc, trace_mmu; // what the engine writes to trace_code: --trace code, exc, mmu
    FILE *trace_code; // the engine's trace goes here; null: nowhere. May be written by another thread until machine_destroy()
    // --perf: called once, before code is translated, with the process that will run it; returns where the machine writes
    // perf's map of that code, from another thread until machine_destroy(), or null with one line in `error`. May be null.
    FILE *(*perf_map)(void *opaque, int pid, char *error, size_t error_size);
    // The guest's course is its own: time is counted instructions, from `epoch_s` (seconds since 1970) on, and what is random
    // is fixed. Serial input and machine_power_button() come when they come, and are the only things that do.
    bool deterministic;
    uint64_t epoch_s;
    bool measure; // --stats: the engine measures (engine_software_measure())
    void (*in_cell)(void *opaque, struct machine *m); // for tests: called in the cell when its sandbox is closed
};

// Counters of the exits, for --stats.
struct machine_counters {
    uint64_t port_exits, mmio_exits; // exits that switched the FPU state
    uint64_t core_ports, core_mmio;  // accesses of chips that run beside the vCPU
    uint64_t timer_runs, timer_rearms, idles;
    uint64_t device_ns, idle_ns; // time in exits, timers (device_ns) and asleep (idle_ns)
};

// Makes a machine ready to run: chips at reset, payload loaded. On failure returns null with one line in
// `error`, no newline; *usage (if not null) says whether what was asked for is at fault rather than the host.
struct machine *machine_create(const struct machine_config *config, char *error, size_t error_size,
                               bool *usage);
void machine_destroy(struct machine *m); // null is fine
// Makes the vCPU's process if the configuration wants one; machine_run() does it if nobody has. Returns 0, or -errno
// with one line in `error`.
int machine_start(struct machine *m, char *error, size_t error_size);
// Runs until an outcome; can be called again after MACHINE_END_REBOOTED or MACHINE_END_STOPPED to go on.
struct machine_outcome machine_run(struct machine *m, char *error, size_t error_size);
// With `deterministic`: machine_run() ends with MACHINE_END_COUNTED when this many guest instructions have retired since
// the machine was made; UINT64_MAX: it does not. Not while machine_run() is under way; it can be called again to go on.
void machine_stop_at(struct machine *m, uint64_t count);
uint64_t machine_count(const struct machine *m); // guest instructions that have, after machine_run()
// Everything as after power-on: chips, CPU, payload. Not while machine_run() is under way. Returns 0 or
// -errno.
int machine_reset(struct machine *m, char *error, size_t error_size);
// Saves or loads CPU, chips and clock (guest RAM is the caller's); not while machine_run() is under way.
void machine_state(struct machine *m, struct stream *s);
void machine_chips_state(struct machine *m, struct stream *s); // of the chips alone, to be compared

struct vcpu *machine_vcpu(struct machine *m);
struct mem_map *machine_memory(struct machine *m);
struct bus *machine_ports(struct machine *m);
const struct machine_counters *machine_counters(struct machine *m);
// Calls emit() for each of the engine's counters. Inside machine_call() and after machine_run().
void machine_engine_stats(struct machine *m, void (*emit)(void *opaque, const char *name, uint64_t value),
                          void *opaque);
// The engine's trail, as engine_software_trail() gives it. While the guest stands still.
unsigned machine_trail(struct machine *m, struct engine_step out[ENGINE_TRAIL]);
int machine_cell_pid(const struct machine *m); // process of the vCPU; 0: this one
#define MACHINE_WORKERS 8
// Threads of guest user code, two for each process that has some: the first is its process id. Returns their number.
unsigned machine_workers(const struct machine *m, const int **pids);
// Why there are none although the configuration asks for them: -errno, else 0.
int machine_worker_error(const struct machine *m);

// ---- any thread
// Bytes typed at COM1 (port 0) or COM2 (1). Returns how many were taken; offer the rest again later.
size_t machine_serial_input(struct machine *m, unsigned port, const uint8_t *data, size_t n);
// Ends machine_run() soon with MACHINE_END_STOPPED and this value. Also safe in a signal handler.
void machine_stop(struct machine *m, uint32_t value);
void machine_power_button(struct machine *m);
// Calls fn on the vCPU's thread between two instructions, or while it sleeps (--stats on a key). One at a
// time: returns false if an earlier one is still waiting.
bool machine_call(struct machine *m, void (*fn)(void *opaque, struct machine *m), void *opaque);
