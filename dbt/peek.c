// Flag liveness looks a few instructions past every direct exit. Decoding those in full was a sixth of the translator's
// time, and most are one of a few dozen one-byte opcodes whose length and flags are quickly told. What is not here, and
// all code of 16 and 32 bits, is left to the decoder; a test holds the two against each other.
#include "dbt/internal.h"

static uint32_t condition_reads(unsigned cc)
{
    static const uint16_t reads[8] = {FL_OF, FL_CF, FL_ZF, FL_CF | FL_ZF, FL_SF, FL_PF, FL_SF | FL_OF, FL_ZF | FL_SF | FL_OF};
    return reads[cc >> 1 & 7];
}

struct form { // what follows the opcode
    bool modrm;
    unsigned imm;
};

// ADD OR ADC SBB AND SUB XOR CMP
static void arithmetic(struct peeked *k, unsigned op)
{
    bool carry = (op & 7) == 2 || (op & 7) == 3;
    k->read = carry ? FL_CF : 0;
    k->killed = (op & 7) == 3 ? FL_ARITH & ~FL_AF : FL_ARITH; // the decoder's word on SBB
}

// `reg` is the ModRM byte's, of opcodes that have one.
static bool one_byte(struct peeked *k, struct form *f, unsigned op, unsigned reg, bool memory, bool wide)
{
    if (op < 0x40) {
        if ((op & 7) > 5)
            return false;
        arithmetic(k, op >> 3);
        *f = (struct form){(op & 7) < 4, (op & 7) == 4 ? 1 : (op & 7) == 5 ? 4 : 0};
        return true;
    }
    switch (op) {
    case 0x50 ... 0x5f: // PUSH, POP
    case 0x90:
    case 0xc9: return true; // LEAVE
    case 0x63: // MOVSXD
    case 0x88 ... 0x8b: f->modrm = true; return true; // MOV
    case 0x68: f->imm = 4; return true; // PUSH
    case 0x6a: f->imm = 1; return true;
    case 0x70 ... 0x7f:
        f->imm = 1;
        k->read = condition_reads(op);
        k->ends = true;
        return true;
    case 0x80:
    case 0x81:
    case 0x83:
        *f = (struct form){true, op == 0x81 ? 4 : 1};
        arithmetic(k, reg);
        return true;
    case 0x84:
    case 0x85: // TEST
        f->modrm = true;
        k->killed = FL_ARITH;
        return true;
    case 0x8d: f->modrm = true; return memory; // LEA
    case 0xa8:
    case 0xa9: // TEST
        f->imm = op == 0xa9 ? 4 : 1;
        k->killed = FL_ARITH;
        return true;
    case 0xb0 ... 0xb7: f->imm = 1; return true;
    case 0xb8 ... 0xbf: f->imm = wide ? 8 : 4; return true;
    case 0xc3:
        k->ends = true;
        return true;
    case 0xc6:
    case 0xc7: *f = (struct form){true, op == 0xc7 ? 4 : 1}; return reg == 0;
    case 0xe8: // CALL
    case 0xe9:
    case 0xeb: // JMP
        f->imm = op == 0xeb ? 1 : 4;
        k->ends = true;
        return true;
    case 0xf6:
    case 0xf7: // TEST, NOT, NEG
        *f = (struct form){true, reg ? 0 : op == 0xf7 ? 4 : 1};
        k->killed = reg == 2 ? 0 : FL_ARITH;
        return reg == 0 || reg == 2 || reg == 3;
    case 0xfe:
    case 0xff: // INC, DEC, CALL, JMP, PUSH
        f->modrm = true;
        k->killed = reg < 2 ? FL_ARITH & ~FL_CF : 0;
        k->ends = reg == 2 || reg == 4;
        return reg < 2 || (op == 0xff && (reg == 2 || reg == 4 || reg == 6));
    default: return false;
    }
}

static bool two_bytes(const struct translation *t, struct peeked *k, struct form *f, unsigned op)
{
    switch (op) {
    case 0x40 ... 0x4f: // CMOVcc
        f->modrm = true;
        k->read = condition_reads(op);
        return t->has_set[ZYDIS_ISA_SET_CMOV];
    case 0x80 ... 0x8f:
        f->imm = 4;
        k->read = condition_reads(op);
        k->ends = true;
        return true;
    case 0x90 ... 0x9f: // SETcc
        f->modrm = true;
        k->read = condition_reads(op);
        return true;
    case 0xb6:
    case 0xb7:
    case 0xbe:
    case 0xbf: f->modrm = true; return true; // MOVZX, MOVSX
    default: return false;
    }
}

bool peek_quickly(const struct translation *t, const uint8_t *p, unsigned room, struct peeked *k)
{
    unsigned at = 0;
    bool wide = false;
    if (t->code_size != 8 || room < 3) // three bytes: prefix, opcode, ModRM
        return false;
    if ((p[at] & 0xf0) == 0x40)
        wide = p[at++] & 8;
    unsigned op = p[at++];
    bool two = op == 0x0f;
    if (two)
        op = p[at++];
    if (room < at + 2)
        return false;
    unsigned modrm = p[at];
    struct form f = {0};
    *k = (struct peeked){0};
    if (!(two ? two_bytes(t, k, &f, op) : one_byte(k, &f, op, modrm >> 3 & 7, modrm < 0xc0, wide)))
        return false;
    if (f.modrm) {
        unsigned mod = modrm >> 6, rm = modrm & 7;
        at++;
        if (mod != 3 && rm == 4) {
            if (mod == 0 && (p[at] & 7) == 5)
                at += 4;
            at++;
        }
        at += mod == 1 ? 1 : mod == 2 || (mod == 0 && rm == 5) ? 4 : 0;
    }
    k->length = at + f.imm;
    return k->length <= room;
}
