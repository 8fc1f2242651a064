// The guest's arithmetic flags live in the host's, but the check before a memory access destroys those. So a block keeps
// track of where they are: dead (overwritten before anybody reads them), in the host, or parked in memory as LAHF and
// SETO give them (AH: SF ZF AF PF CF, AL: OF).
//
//  1. An instruction that neither reads nor writes flags, but accesses memory, parks live flags first; they stay parked
//     until one wants them back. So a run of accesses between a CMP and its Jcc costs one park and one return.
//  2. One that uses flags and memory at once (ADC, SETcc, INC with CF live) has them carried over its own check in AX.
//  3. A block is entered with flags in the host through `code`, with parked flags through `code_parked`, which is the
//     same address where the block needs none. Direct exits lead to whichever fits. Indirect ones, and those to the
//     dispatcher, park live flags and go by `code_parked`: so indirect branches and RETs may compare.
//
// Example: CMP; MOV RAX,[RSP]; MOV [RBX],RAX; JE. Parked before the first MOV, back before JE.
#include "dbt/internal.h"

// Puts an image of RFLAGS together.
static bool stores_flags(const struct ginsn *g)
{
    return g->cls == CLASS_INLINE && (g->sens == OP_PUSHF || g->sens == OP_SYSCALL);
}

uint32_t flags_read(const struct ginsn *g)
{
    if (g->cls == CLASS_SENSITIVE || g->cls == CLASS_STRING || g->cls == CLASS_GATHER || g->z->meta.category == ZYDIS_CATEGORY_STRINGOP)
        return FL_ARITH;
    if (stores_flags(g))
        return FL_ARITH;
    return g->z->flags.tested;
}

uint32_t flags_killed(const struct ginsn *g)
{
    const struct brief *z = g->z;
    if (g->cls == CLASS_SENSITIVE || g->cls == CLASS_STRING || g->cls == CLASS_GATHER)
        return 0;
    if (g->cls == CLASS_INLINE && g->sens == OP_SYSRET)
        return FL_ARITH;
    if (z->meta.category == ZYDIS_CATEGORY_STRINGOP) // may be repeated no times
        return 0;
    bool counted = z->raw.imm.size ? g->imm & (z->operand_width == 64 ? 63 : 31) : z->opcode == 0xd0 || z->opcode == 0xd1;
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_AND:
    case ZYDIS_MNEMONIC_OR:
    case ZYDIS_MNEMONIC_XOR:
    case ZYDIS_MNEMONIC_TEST: return FL_ARITH; // AF is undefined, but no processor keeps it
    case ZYDIS_MNEMONIC_SHL:
    case ZYDIS_MNEMONIC_SHR:
    case ZYDIS_MNEMONIC_SAR:
    case ZYDIS_MNEMONIC_SHLD:
    case ZYDIS_MNEMONIC_SHRD: return counted ? FL_ARITH : 0; // a count of zero changes nothing
    case ZYDIS_MNEMONIC_ROL:
    case ZYDIS_MNEMONIC_ROR:
    case ZYDIS_MNEMONIC_RCL:
    case ZYDIS_MNEMONIC_RCR: return counted ? FL_CF : 0;
    default: return z->flags.written & ~z->flags.undefined;
    }
}

static bool accesses_memory(const struct ginsn *g)
{
    struct ea ea;
    unsigned size;
    bool rd, wr;
    switch (g->z->mnemonic) {
    case ZYDIS_MNEMONIC_CALL:
    case ZYDIS_MNEMONIC_RET:
    case ZYDIS_MNEMONIC_PUSH:
    case ZYDIS_MNEMONIC_POP:
    case ZYDIS_MNEMONIC_LEAVE: return true;
    case ZYDIS_MNEMONIC_STAC: // these do arithmetic of ours
    case ZYDIS_MNEMONIC_CLAC:
    case ZYDIS_MNEMONIC_RDTSC: return true;
    default: return g->cls != CLASS_INLINE && mem_operand(g, &ea, &size, &rd, &wr);
    }
}

static bool writes_flags(const struct ginsn *g)
{
    return g->z->flags.written | g->z->flags.undefined;
}

void flags_park(struct translation *t)
{
    struct asm_buf *a = &t->a;
    a_mov_rr(a, 8, T1, H_AX);
    t->t1_group = -1;
    a8(a, 0x9f);                   // lahf
    a_bytes(a, "\x0f\x90\xc0", 3); // seto al
    a_store_abs(a, 4, DBT(t, parked), H_AX); // as wide as it is loaded, or the load would wait for the store
    a_mov_rr(a, 8, H_AX, T1);
    t->flags = FLAGS_PARKED;
}

void flags_unpark(struct translation *t)
{
    struct asm_buf *a = &t->a;
    a_mov_rr(a, 8, T1, H_AX);
    t->t1_group = -1;
    a_load_abs(a, 4, H_AX, DBT(t, parked));
    a_bytes(a, "\x04\x7f", 2); // add al, 127
    a8(a, 0x9e);               // sahf
    a_mov_rr(a, 8, H_AX, T1);
    t->flags = FLAGS_HOST;
}

void flags_before(struct translation *t, const struct ginsn *g)
{
    if (g->live == 0) {
        t->flags = FLAGS_DEAD;
        return;
    }
    bool leaves = g->cls == CLASS_SENSITIVE || g->cls == CLASS_STRING || g->cls == CLASS_GATHER;
    if (bounce(t) || leaves)
        return; // a bounce carries them itself, and a site parks what is in the host
    if (stores_flags(g)) {
        if (t->flags == FLAGS_HOST)
            flags_park(t);
    } else if (flags_read(g) || writes_flags(g)) {
        if (t->flags == FLAGS_PARKED)
            flags_unpark(t);
    } else if (t->flags == FLAGS_HOST && !user(t) && accesses_memory(g) && !merge_all_checked(t)) {
        flags_park(t);
    }
}

void flags_after(struct translation *t, const struct ginsn *g)
{
    if (g->live_after == 0)
        t->flags = FLAGS_DEAD;
    else if (writes_flags(g))
        t->flags = FLAGS_HOST;
}
