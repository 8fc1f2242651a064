// Whether two runs ended alike, and how to show where they did not.
#pragma once
#include "tests/diff/generate.h"
#include <stdio.h>

struct compare {
    enum diff_mode mode;
    bool instruction_pointers; // compare x87 FOP, FIP and FDP too
    uint64_t flags;            // bits of RFLAGS that count
    bool memory;               // the writable pages count
    bool address;              // CR2 counts
};

// What counts for a case: everything, less the flags and memory the manual leaves undefined for the form it
// is about, where the translator does not run that very instruction.
struct compare compare_for(const struct diff_case *c, const struct form_table *forms,
                           const struct diff_state *reference, bool instruction_pointers);
bool states_equal(const struct compare *k, const struct diff_state *a, const struct diff_state *b);
// Prints the case (bytes, disassembly, initial registers) and both final states, side by side where they
// differ.
void print_failure(FILE *f, const struct compare *k, const struct diff_case *c, const struct diff_code *code,
                   const char *name_a, const struct diff_state *a, const char *name_b,
                   const struct diff_state *b);
// The same in one line: instructions, both ends, names of what differs.
void print_brief(FILE *f, const struct compare *k, const struct diff_case *c, const struct diff_code *code,
                 const struct diff_state *a, const struct diff_state *b);
