// Instruction forms: what the coverage table counts and what cases are made from.
//
// A form is a mnemonic with an encoding, an operand size and a kind of operand (register or memory), and
// whatever else makes a different instruction of it: LOCK, REP, masking, zeroing, broadcast, rounding. Forms
// are found by brute force over the opcode maps, decoded by Zydis.
#pragma once
#include "tests/diff/random.h"
#include "tests/diff/side.h"
#include <Zydis/Zydis.h>

enum form_encoding { ENC_LEGACY, ENC_VEX, ENC_EVEX };

#define FORM_MEMORY     0x01u // has a memory operand (explicit or implied) that is accessed
#define FORM_BRANCH     0x02u // near jump, call or return
#define FORM_VSIB       0x04u // addresses come from a vector register: only as the first instruction of a case
#define FORM_ALONE      0x08u // only as the single instruction of a case
#define FORM_FIXED_REG  0x10u // ModRM.reg is part of the opcode
#define FORM_FIXED_RM   0x20u // ModRM.rm too
#define FORM_OPCODE_REG 0x40u // a register in the opcode's low three bits
#define FORM_MODRM      0x80u
#define FORM_MODRM_MEM  0x100u // … with mod != 3

#define FORMS_MAX 24576

struct form {
    uint64_t key;
    uint16_t mnemonic;                    // ZydisMnemonic
    uint16_t flags;                       // FORM_*
    uint16_t width;                       // operand width or vector length, bits
    uint16_t mem_bits;                    // size of the memory operand, 0: none
    uint8_t encoding, map, opcode, modrm; // modrm: the one it was found with
    uint8_t lock, rep, p66, a67, w, l, b, aaa, z;
    // Filled while running; in memory shared by all processes.
    uint8_t offered; // the host executes it
    uint8_t pad[2];
    uint32_t cases;   // compared with no difference, no exception
    uint32_t faulted; // the same, ended by an exception
    uint32_t crossed; // with an operand across a page boundary
    uint32_t failed;
};

struct form_table {
    enum diff_mode mode;
    uint32_t count;
    uint32_t offered_count;
    uint32_t offered[FORMS_MAX]; // indices
    struct form form[FORMS_MAX];
};

void forms_decoder(ZydisDecoder *d, enum diff_mode mode);
// Fills the table by enumeration.
void forms_enumerate(struct form_table *t, enum diff_mode mode);
// Key of a decoded instruction: equal for two instances of one form.
uint64_t form_key(const ZydisDecodedInstruction *i, const ZydisDecodedOperand *ops, uint8_t opcode);
// Writes the bytes of the form up to its opcode (register fields as given, 5 bits each); returns how many.
struct form_fields {
    uint8_t reg, rm, index, vvvv; // bits 3 (and 4) go to the prefix
    uint8_t rex;                  // legacy: emit REX although nothing asks for it
    uint8_t aaa, l;
    bool a67;
    uint8_t segment; // override prefix byte or 0
};
unsigned form_emit(const struct form *f, enum diff_mode mode, const struct form_fields *x, uint8_t *out);
// A name for tables and --list: "add r/m m32 lock".
void form_name(const struct form *f, char *out, size_t size);
