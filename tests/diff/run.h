// Runs cases on both sides in worker processes. A case that kills its process costs one worker, not the run.
#pragma once
#include "tests/diff/compare.h"

struct diff_options {
    enum diff_mode mode;
    uint64_t cases, seed;
    uint64_t first;     // --case: only this one (cases = 1)
    const char *filter; // mnemonic, or null
    bool native_only;   // both sides native: a check of the harness and of determinism
    bool instruction_pointers;
    unsigned jobs, max_failures;
    const char *coverage_file; // or null
    bool brief;                // one line a failure
    const char *plant; // mnemonic the second side gets wrong on purpose: a check of this harness; or null
    double require_percent; // 0: no requirement
};

#define MAX_JOBS     64
#define MAX_REPORTED 256

enum phase { PHASE_NONE, PHASE_GENERATE, PHASE_NATIVE, PHASE_OTHER };

struct worker_slot { // written by the worker, read by the parent
    volatile uint64_t number;
    volatile uint32_t phase;
    volatile uint64_t done, skipped;
};

struct run_shared { // one mapping shared by all processes
    struct form_table forms;
    struct worker_slot worker[MAX_JOBS];
    volatile uint64_t probe_at;
    uint32_t failures;
    uint64_t failed_case[MAX_REPORTED];
};

// Two sides made in this process.
struct sides {
    struct native *native;
    struct translated *translated; // null: native against native
    struct generator generator;
};
int sides_create(struct sides *s, const struct run_shared *sh, const struct diff_options *o); // 0 or -errno
void sides_destroy(struct sides *s);
// Runs a linked case on both; returns whether they agree.
bool sides_agree(struct sides *s, const struct diff_options *o, struct diff_case *c, struct diff_code *code,
                 struct diff_state *a, struct diff_state *b, volatile uint32_t *phase);

struct run_shared *
run_shared_create(const struct diff_options *o); // enumerates forms; null when out of memory
void run_probe(struct run_shared *sh, const struct diff_options *o); // fills forms.offered
int run_cases(struct run_shared *sh, const struct diff_options *o);  // 0, or -errno
// Makes a failing case as small as it gets and prints it. (shrink.c)
// Returns false, having printed nothing, when it does not fail on fresh sides.
bool shrink_and_print(struct sides *s, const struct diff_options *o, const struct form_table *forms,
                      struct diff_case *c);
// Writes the table; returns the percentage of offered forms covered. (coverage.c)
double coverage_write(const struct form_table *t, const char *file);
