// One random instance of a form: its bytes and what must hold before it runs for its operands to be where it
// wants them.
#pragma once
#include "tests/diff/forms.h"

#define ANY_UNIT 0xff

enum fix_kind {
    FIX_NONE,
    FIX_RELATIVE, // a branch displacement to a unit of the case
    FIX_RIP,      // a displacement from RIP to a linear address
    FIX_LABEL,    // an absolute offset of a unit in the code segment
};

struct demand { // a general register's value
    uint8_t reg;
    bool label; // the offset of the instruction's branch target instead of `value`
    uint64_t value;
};

struct instance {
    uint8_t bytes[15];
    uint8_t length;
    uint32_t form; // index in the table
    uint8_t fix;   // enum fix_kind
    uint8_t fix_offset, fix_size;
    uint32_t fix_linear; // FIX_RIP
    unsigned demand_count;
    struct demand demand[6];
    // Memory that should hold the branch target (indirect branches, RET), 0: none.
    uint32_t label_linear;
    uint8_t label_size;
    // A value in memory that makes a rare path likely (CMPXCHG succeeds, LDMXCSR is accepted), where alone.
    uint32_t patch_linear;
    uint8_t patch_size; // bytes, 0: none
    uint64_t patch[2];
    int16_t index_vector; // VSIB: the register holding indices, or -1
    uint8_t index_bits;
    uint16_t writes; // general registers written
    bool stack;      // changes RSP
    bool crosses;    // an operand crosses a page boundary
};

struct encoder {
    const struct form_table *forms;
    ZydisDecoder decoder;
    enum diff_mode mode;
    bool tame; // operands in plain writable memory, aligned: for probing
    bool in_sequence;
    bool segments;    // FS and GS may be used
    bool ac;          // AC is set on one side: nothing that stores or loads the flags
    bool legacy_only; // for real and v8086 mode: nothing they have not
    uint8_t keep; // a register that must not be written (loop counter), or ANY_UNIT
};

// Whether real and v8086 mode have the form and give it the meaning it has in a 16-bit segment.
bool form_is_legacy(const struct form *f);
void encoder_init(struct encoder *e, const struct form_table *forms);
// Makes an instance of form `index`. Returns false when none was found that fits.
bool encoder_instance(struct encoder *e, struct rng *r, uint32_t index, struct instance *out);
// A register value that finds bugs: small, at a boundary, or random.
uint64_t interesting_value(struct rng *r);
