// --trace: where lines go, and the hooks of the machine that write them.
#pragma once
#include <stdio.h>

#include "devices/machine.h"
#include "frontend/options.h"

struct trace {
    FILE *f;             // null: nothing is traced
    const char *path;    // of the file, the options' own; null: standard error
    bool created;        // it was not there before
    unsigned categories; // LOG_*
};
// Returns 0 or -errno with a line in error.
int trace_open(struct trace *t, const struct run_options *o, char error[ERROR_SIZE]);
// The machine is about to run: empties the file.
void trace_begin(struct trace *t);
// failed: the machine never ran, so a file made by trace_open() goes too.
void trace_close(struct trace *t, bool failed);
void trace_cpu(struct trace *t, const char *what, uint64_t a, uint64_t b);
void trace_io(struct trace *t, bool mmio, bool write, uint64_t address, unsigned size, uint64_t value);

// What is printed when the guest crashed (frontend/crash.c): registers, control state, the code around RIP, the last blocks.
void crash_print(FILE *f, struct machine *m, const char *why);
void code_print(FILE *f, struct vcpu *v); // the part of it that is the code: some bytes before RIP, instructions from there on
// What --stop-at prints (frontend/state.c). The guest stands still.
void state_print(FILE *f, struct machine *m);
void state_print_cpu(FILE *f, struct machine *m); // the part of it that is the vCPU's
