// Cases: a few instructions and the state they start from, all determined by (seed, mode, number).
#pragma once
#include "tests/diff/encode.h"

#define MAX_UNITS 64
#define POOL_SIZE 32

struct unit { // one instruction of a case
    uint8_t bytes[15];
    uint8_t length;
    uint8_t fix, fix_offset, fix_size; // as in struct instance
    uint8_t target;      // FIX_RELATIVE, FIX_LABEL: the unit meant; the count of units means the end
    uint32_t fix_linear; // FIX_RIP
    uint32_t form;       // index in the table, or FORM_NONE for glue
};
#define FORM_NONE UINT32_MAX

struct diff_case {
    uint64_t number;
    enum diff_mode mode;
    enum diff_world world;
    bool ac; // as in struct diff_code
    uint32_t form; // the one this case is counted for
    bool crosses;  // its operand crosses a page
    bool edge;     // the last instruction runs into the page behind the code
    uint32_t edge_bytes;
    uint32_t linear; // of the first byte, where not at the edge
    unsigned count;
    struct unit unit[MAX_UNITS];
    // Where the initial state holds the offset of a unit.
    uint8_t label_reg, label_unit; // label_reg 0xff: none
    uint32_t label_linear;         // 0: none
    uint8_t label_size;
    struct diff_state in;
};

struct pool { // ingredients of initial states
    struct diff_fpu fpu[POOL_SIZE];
    uint8_t mem[POOL_SIZE][MEM_SIZE];
    uint8_t read_only[4096];
};

struct generator {
    const struct form_table *forms;
    struct encoder encoder;
    struct pool *pool;
    uint64_t seed;
    uint32_t legacy_count; // forms in offered[] that are not VEX or EVEX come first
};

int generator_init(struct generator *g, const struct form_table *forms, uint64_t seed); // 0 or -errno
void generator_free(struct generator *g);
// Makes case `number`. Returns false when no case could be made of it (the caller counts it as skipped).
bool generator_case(struct generator *g, uint64_t number, struct diff_case *c);
// A single plain instance of a form, to see whether the host has it.
bool generator_probe(struct generator *g, struct rng *r, uint32_t form, struct diff_case *c);
// Lays the units out and resolves labels, also in c->in. Returns false when a branch can't reach.
bool case_link(struct diff_case *c, struct diff_code *code);
