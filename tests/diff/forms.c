// Enumerates instruction forms. See forms.h.
#include "tests/diff/forms.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void forms_decoder(ZydisDecoder *d, enum diff_mode mode)
{
    if (mode == MODE64)
        ZydisDecoderInit(d, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    else if (mode == MODE32)
        ZydisDecoderInit(d, ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_STACK_WIDTH_32);
    else
        ZydisDecoderInit(d, ZYDIS_MACHINE_MODE_LONG_COMPAT_16, ZYDIS_STACK_WIDTH_16);
    ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE); // reserved NOPs where MPX is off
}

// ---- what is not compared
// Sensitive (cpu/ gives them their meaning, tested elsewhere), not deterministic, or a call to another world.
static const uint16_t excluded[] = {
    ZYDIS_MNEMONIC_SGDT, ZYDIS_MNEMONIC_SIDT, ZYDIS_MNEMONIC_SLDT, ZYDIS_MNEMONIC_STR, ZYDIS_MNEMONIC_SMSW,
    ZYDIS_MNEMONIC_LAR, ZYDIS_MNEMONIC_LSL, ZYDIS_MNEMONIC_VERR, ZYDIS_MNEMONIC_VERW, ZYDIS_MNEMONIC_LDS,
    ZYDIS_MNEMONIC_LES, ZYDIS_MNEMONIC_LFS, ZYDIS_MNEMONIC_LGS, ZYDIS_MNEMONIC_LSS, ZYDIS_MNEMONIC_CLI,
    ZYDIS_MNEMONIC_STI, ZYDIS_MNEMONIC_STAC, ZYDIS_MNEMONIC_CLAC, ZYDIS_MNEMONIC_HLT, ZYDIS_MNEMONIC_IN,
    ZYDIS_MNEMONIC_OUT, ZYDIS_MNEMONIC_INSB, ZYDIS_MNEMONIC_INSW, ZYDIS_MNEMONIC_INSD, ZYDIS_MNEMONIC_OUTSB,
    ZYDIS_MNEMONIC_OUTSW, ZYDIS_MNEMONIC_OUTSD, ZYDIS_MNEMONIC_INT, ZYDIS_MNEMONIC_INT1, ZYDIS_MNEMONIC_IRET,
    ZYDIS_MNEMONIC_IRETD, ZYDIS_MNEMONIC_IRETQ, ZYDIS_MNEMONIC_SYSCALL, ZYDIS_MNEMONIC_SYSRET,
    ZYDIS_MNEMONIC_SYSENTER, ZYDIS_MNEMONIC_SYSEXIT, ZYDIS_MNEMONIC_SWAPGS, ZYDIS_MNEMONIC_RDFSBASE,
    ZYDIS_MNEMONIC_RDGSBASE, ZYDIS_MNEMONIC_WRFSBASE, ZYDIS_MNEMONIC_WRGSBASE, ZYDIS_MNEMONIC_CPUID,
    ZYDIS_MNEMONIC_RDTSC, ZYDIS_MNEMONIC_RDTSCP, ZYDIS_MNEMONIC_RDPMC, ZYDIS_MNEMONIC_RDPID,
    ZYDIS_MNEMONIC_RDPRU, ZYDIS_MNEMONIC_RDRAND, ZYDIS_MNEMONIC_RDSEED, ZYDIS_MNEMONIC_RDPKRU,
    ZYDIS_MNEMONIC_WRPKRU, ZYDIS_MNEMONIC_RDMSR, ZYDIS_MNEMONIC_WRMSR, ZYDIS_MNEMONIC_XGETBV,
    ZYDIS_MNEMONIC_XSETBV, ZYDIS_MNEMONIC_RSM, ZYDIS_MNEMONIC_XSAVE, ZYDIS_MNEMONIC_XSAVE64,
    ZYDIS_MNEMONIC_XSAVEC, ZYDIS_MNEMONIC_XSAVEC64, ZYDIS_MNEMONIC_XSAVEOPT, ZYDIS_MNEMONIC_XSAVEOPT64,
    ZYDIS_MNEMONIC_XSAVES, ZYDIS_MNEMONIC_XSAVES64, ZYDIS_MNEMONIC_XRSTOR, ZYDIS_MNEMONIC_XRSTOR64,
    ZYDIS_MNEMONIC_XRSTORS, ZYDIS_MNEMONIC_XRSTORS64, ZYDIS_MNEMONIC_MONITOR, ZYDIS_MNEMONIC_MWAIT,
    ZYDIS_MNEMONIC_MONITORX, ZYDIS_MNEMONIC_MWAITX, ZYDIS_MNEMONIC_UMONITOR, ZYDIS_MNEMONIC_UMWAIT,
    ZYDIS_MNEMONIC_TPAUSE, ZYDIS_MNEMONIC_MCOMMIT, ZYDIS_MNEMONIC_VMCALL, ZYDIS_MNEMONIC_VMMCALL,
    ZYDIS_MNEMONIC_VMFUNC, ZYDIS_MNEMONIC_TDCALL, ZYDIS_MNEMONIC_SEAMCALL, ZYDIS_MNEMONIC_SEAMOPS,
    ZYDIS_MNEMONIC_SEAMRET, ZYDIS_MNEMONIC_GETSEC, ZYDIS_MNEMONIC_ENCLU, ZYDIS_MNEMONIC_ENCLS,
    ZYDIS_MNEMONIC_ENCLV, ZYDIS_MNEMONIC_PCONFIG, ZYDIS_MNEMONIC_SKINIT, ZYDIS_MNEMONIC_STGI,
    ZYDIS_MNEMONIC_CLGI, ZYDIS_MNEMONIC_XBEGIN, ZYDIS_MNEMONIC_XEND, ZYDIS_MNEMONIC_XABORT,
    ZYDIS_MNEMONIC_XTEST, ZYDIS_MNEMONIC_XSUSLDTRK, ZYDIS_MNEMONIC_XRESLDTRK, ZYDIS_MNEMONIC_SENDUIPI,
    ZYDIS_MNEMONIC_UIRET, ZYDIS_MNEMONIC_CLUI, ZYDIS_MNEMONIC_STUI, ZYDIS_MNEMONIC_TESTUI,
    ZYDIS_MNEMONIC_PTWRITE, ZYDIS_MNEMONIC_HRESET, ZYDIS_MNEMONIC_ENQCMD, ZYDIS_MNEMONIC_ENQCMDS,
    ZYDIS_MNEMONIC_RDSSPD, ZYDIS_MNEMONIC_RDSSPQ, ZYDIS_MNEMONIC_INCSSPD, ZYDIS_MNEMONIC_INCSSPQ,
    ZYDIS_MNEMONIC_SAVEPREVSSP, ZYDIS_MNEMONIC_RSTORSSP, ZYDIS_MNEMONIC_CLRSSBSY, ZYDIS_MNEMONIC_SETSSBSY,
    ZYDIS_MNEMONIC_WRSSD, ZYDIS_MNEMONIC_WRSSQ, ZYDIS_MNEMONIC_LLWPCB, ZYDIS_MNEMONIC_SLWPCB,
    ZYDIS_MNEMONIC_LWPINS, ZYDIS_MNEMONIC_LWPVAL, ZYDIS_MNEMONIC_XSTORE, ZYDIS_MNEMONIC_MONTMUL,
    ZYDIS_MNEMONIC_XSHA1, ZYDIS_MNEMONIC_XSHA256, ZYDIS_MNEMONIC_UD0, ZYDIS_MNEMONIC_UD1, ZYDIS_MNEMONIC_UD2,
    ZYDIS_MNEMONIC_INVLPGB, ZYDIS_MNEMONIC_TLBSYNC, ZYDIS_MNEMONIC_LOADIWKEY, ZYDIS_MNEMONIC_PVALIDATE,
    ZYDIS_MNEMONIC_RMPADJUST, ZYDIS_MNEMONIC_RMPUPDATE, ZYDIS_MNEMONIC_PSMASH, ZYDIS_MNEMONIC_INVLPGA,
    ZYDIS_MNEMONIC_VMRUN, ZYDIS_MNEMONIC_VMLOAD, ZYDIS_MNEMONIC_VMSAVE, ZYDIS_MNEMONIC_VMREAD,
    ZYDIS_MNEMONIC_VMWRITE, ZYDIS_MNEMONIC_VMXOFF, ZYDIS_MNEMONIC_VMXON, ZYDIS_MNEMONIC_VMPTRLD,
    ZYDIS_MNEMONIC_VMPTRST, ZYDIS_MNEMONIC_VMCLEAR, ZYDIS_MNEMONIC_VMLAUNCH, ZYDIS_MNEMONIC_VMRESUME,
    ZYDIS_MNEMONIC_CLZERO, ZYDIS_MNEMONIC_LGDT, ZYDIS_MNEMONIC_LIDT, ZYDIS_MNEMONIC_LLDT, ZYDIS_MNEMONIC_LTR,
    ZYDIS_MNEMONIC_LMSW,
    // not offered by any model
    ZYDIS_MNEMONIC_MOVDIR64B, ZYDIS_MNEMONIC_LDTILECFG, ZYDIS_MNEMONIC_STTILECFG, ZYDIS_MNEMONIC_TILELOADD,
    ZYDIS_MNEMONIC_TILELOADDT1, ZYDIS_MNEMONIC_TILESTORED, ZYDIS_MNEMONIC_TILEZERO, ZYDIS_MNEMONIC_TILERELEASE,
    ZYDIS_MNEMONIC_TDPBF16PS, ZYDIS_MNEMONIC_TDPBSSD, ZYDIS_MNEMONIC_TDPBSUD, ZYDIS_MNEMONIC_TDPBUSD,
    ZYDIS_MNEMONIC_TDPBUUD,
};

static bool is_excluded(const ZydisDecodedInstruction *i, const ZydisDecodedOperand *ops, enum diff_mode mode)
{
    if (i->attributes & (ZYDIS_ATTRIB_IS_PRIVILEGED | ZYDIS_ATTRIB_HAS_XACQUIRE | ZYDIS_ATTRIB_HAS_XRELEASE))
        return true;
    for (unsigned n = 0; n < sizeof excluded / sizeof *excluded; n++)
        if (i->mnemonic == excluded[n])
            return true;
    if (i->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
        return true;
    for (unsigned n = 0; n < i->operand_count; n++) {
        if (ops[n].type != ZYDIS_OPERAND_TYPE_REGISTER ||
            ops[n].visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN)
            continue;
        ZydisRegisterClass c = ZydisRegisterGetClass(ops[n].reg.value);
        if (c == ZYDIS_REGCLASS_SEGMENT || c == ZYDIS_REGCLASS_CONTROL || c == ZYDIS_REGCLASS_DEBUG ||
            c == ZYDIS_REGCLASS_TEST)
            return true;
    }
    // A 16-bit near branch cuts RIP to 16 bits on some processors and is an ordinary branch on others (SDM
    // 2A, JMP).
    if (i->meta.branch_type != ZYDIS_BRANCH_TYPE_NONE && mode != MODE16 && i->operand_width == 16)
        return true;
    return i->meta.branch_type != ZYDIS_BRANCH_TYPE_NONE && mode == MODE64 &&
           (i->attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE);
}

// Emulated where the manual leaves flags undefined or a fault's partial stores open: alone in their cases, so
// that nothing in the case can see it.
static bool is_alone(ZydisMnemonic m)
{
    switch (m) {
    case ZYDIS_MNEMONIC_AAA:
    case ZYDIS_MNEMONIC_AAS:
    case ZYDIS_MNEMONIC_DAA:
    case ZYDIS_MNEMONIC_DAS:
    case ZYDIS_MNEMONIC_AAM:
    case ZYDIS_MNEMONIC_AAD:
    case ZYDIS_MNEMONIC_ENTER:
    case ZYDIS_MNEMONIC_PUSHA:
    case ZYDIS_MNEMONIC_PUSHAD:
    case ZYDIS_MNEMONIC_POPF: // must not set TF or AC
    case ZYDIS_MNEMONIC_POPFD:
    case ZYDIS_MNEMONIC_POPFQ:
    case ZYDIS_MNEMONIC_FLDENV: // must not unmask an exception that is pending
    case ZYDIS_MNEMONIC_FRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64:
    case ZYDIS_MNEMONIC_FNSTENV: // show where the last x87 instruction was
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64: return true;
    default: return false;
    }
}

// ---- keys
static uint64_t mix(uint64_t h, uint64_t v)
{
    h ^= v;
    return rng_mix(&h);
}

uint64_t form_key(const ZydisDecodedInstruction *i, const ZydisDecodedOperand *ops, uint8_t opcode)
{
    uint64_t h = 1;
    bool reg_used = false, opcode_reg = false;
    for (unsigned n = 0; n < i->operand_count; n++) {
        const ZydisDecodedOperand *o = &ops[n];
        reg_used |= o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG;
        opcode_reg |= o->encoding == ZYDIS_OPERAND_ENCODING_OPCODE;
        unsigned class = 0;
        if (o->type == ZYDIS_OPERAND_TYPE_REGISTER)
            class = (unsigned)ZydisRegisterGetClass(o->reg.value);
        if (o->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN && o->type == ZYDIS_OPERAND_TYPE_REGISTER)
            continue;
        h = mix(h, (uint64_t)o->type << 40 | (uint64_t)o->size << 16 | class << 4 | o->visibility);
    }
    h = mix(h, (uint64_t)i->mnemonic << 32 | (uint64_t)i->encoding << 24 | (uint64_t)i->opcode_map << 16 |
                   (opcode_reg ? opcode & 0xf8 : opcode));
    h = mix(h, (uint64_t)i->operand_width << 32 | i->avx.vector_length);
    bool modrm = i->attributes & ZYDIS_ATTRIB_HAS_MODRM;
    h = mix(h, modrm ? (i->raw.modrm.mod == 3 ? 2 : 1) | (reg_used ? 0 : (i->raw.modrm.reg + 1) << 4) : 0);
    h = mix(h, i->attributes & (ZYDIS_ATTRIB_HAS_LOCK | ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE |
                                ZYDIS_ATTRIB_HAS_REPNE));
    bool masked = i->avx.mask.mode > ZYDIS_MASK_MODE_DISABLED && i->avx.mask.reg != ZYDIS_REGISTER_K0;
    h = mix(h, (masked ? (uint64_t)i->avx.mask.mode + 1 : 0) << 8 |
                   (!i->avx.broadcast.is_static && i->avx.broadcast.mode != 0) << 4 |
                   (i->avx.rounding.mode != 0) << 1 | i->avx.has_sae);
    return h;
}

// ---- bytes
static unsigned emit_legacy(const struct form *f, enum diff_mode mode, const struct form_fields *x,
                            uint8_t *out)
{
    unsigned n = 0;
    if (mode == MODE64) {
        uint8_t rex =
            (uint8_t)(f->w << 3 | (x->reg >> 3 & 1) << 2 | (x->index >> 3 & 1) << 1 | (x->rm >> 3 & 1));
        if (rex || x->rex)
            out[n++] = 0x40 | rex;
    }
    if (f->map)
        out[n++] = 0x0f;
    if (f->map == 2)
        out[n++] = 0x38;
    if (f->map == 3)
        out[n++] = 0x3a;
    out[n++] = f->flags & FORM_OPCODE_REG ? (f->opcode & 0xf8) | (x->rm & 7) : f->opcode;
    return n;
}

static uint8_t form_pp(const struct form *f)
{
    return f->p66 ? 1 : f->rep == 0xf3 ? 2 : f->rep == 0xf2 ? 3 : 0;
}

static unsigned emit_vex(const struct form *f, const struct form_fields *x, uint8_t *out)
{
    uint8_t r = ~x->reg >> 3 & 1, xi = ~x->index >> 3 & 1, b = ~x->rm >> 3 & 1, v = ~x->vvvv & 15;
    if (f->map == 1 && !f->w && xi && b && x->rex) { // the two-byte form, where it can say the same
        out[0] = 0xc5;
        out[1] = (uint8_t)(r << 7 | v << 3 | (f->l & 1) << 2 | form_pp(f));
        out[2] = f->opcode;
        return 3;
    }
    out[0] = 0xc4;
    out[1] = (uint8_t)(r << 7 | xi << 6 | b << 5 | f->map);
    out[2] = (uint8_t)(f->w << 7 | v << 3 | (f->l & 1) << 2 | form_pp(f));
    out[3] = f->opcode;
    return 4;
}

static unsigned emit_evex(const struct form *f, const struct form_fields *x, uint8_t *out)
{
    uint8_t xbit = f->flags & FORM_MODRM_MEM ? x->index >> 3 & 1 : x->rm >> 4 & 1;
    uint8_t v2 = f->flags & FORM_VSIB ? x->index >> 4 & 1 : x->vvvv >> 4 & 1;
    out[0] = 0x62;
    out[1] = (uint8_t)((~x->reg >> 3 & 1) << 7 | (!xbit) << 6 | (~x->rm >> 3 & 1) << 5 |
                       (~x->reg >> 4 & 1) << 4 | f->map);
    out[2] = (uint8_t)(f->w << 7 | (~x->vvvv & 15) << 3 | 4 | form_pp(f));
    out[3] = (uint8_t)(f->z << 7 | x->l << 5 | f->b << 4 | (!v2) << 3 | x->aaa);
    out[4] = f->opcode;
    return 5;
}

unsigned form_emit(const struct form *f, enum diff_mode mode, const struct form_fields *x, uint8_t *out)
{
    unsigned n = 0;
    if (x->segment)
        out[n++] = x->segment;
    if (x->a67)
        out[n++] = 0x67;
    if (f->encoding == ENC_VEX)
        return n + emit_vex(f, x, out + n);
    if (f->encoding == ENC_EVEX)
        return n + emit_evex(f, x, out + n);
    if (f->lock)
        out[n++] = 0xf0;
    if (f->p66)
        out[n++] = 0x66;
    if (f->rep)
        out[n++] = f->rep;
    return n + emit_legacy(f, mode, x, out + n);
}

// ---- enumeration
struct enumeration {
    struct form_table *t;
    ZydisDecoder decoder;
    uint32_t *hash; // open addressing over keys: form index + 1
};
#define HASH_SIZE 65536u

static bool remember(struct enumeration *e, uint64_t key)
{
    uint32_t i = (uint32_t)key & (HASH_SIZE - 1);
    for (; e->hash[i]; i = (i + 1) & (HASH_SIZE - 1))
        if (e->t->form[e->hash[i] - 1].key == key)
            return false;
    if (e->t->count == FORMS_MAX)
        return false;
    e->hash[i] = e->t->count + 1;
    return true;
}

static void classify(struct form *f, const ZydisDecodedInstruction *i, const ZydisDecodedOperand *ops)
{
    bool reg_used = false, rm_used = false;
    for (unsigned n = 0; n < i->operand_count; n++) {
        const ZydisDecodedOperand *o = &ops[n];
        reg_used |= o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG;
        rm_used |= o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM;
        if (o->encoding == ZYDIS_OPERAND_ENCODING_OPCODE)
            f->flags |= FORM_OPCODE_REG;
        if (o->type != ZYDIS_OPERAND_TYPE_MEMORY || o->mem.type == ZYDIS_MEMOP_TYPE_AGEN)
            continue;
        f->flags |= FORM_MEMORY;
        f->mem_bits = o->size > f->mem_bits ? o->size : f->mem_bits;
        if (o->mem.type == ZYDIS_MEMOP_TYPE_VSIB)
            f->flags |= FORM_VSIB;
    }
    if (i->attributes & ZYDIS_ATTRIB_HAS_MODRM) {
        f->flags |= FORM_MODRM;
        if (!reg_used)
            f->flags |= FORM_FIXED_REG;
        if (i->raw.modrm.mod != 3)
            f->flags |= FORM_MODRM_MEM;
        else if (!rm_used)
            f->flags |= FORM_FIXED_RM;
    }
    if (i->meta.branch_type != ZYDIS_BRANCH_TYPE_NONE)
        f->flags |= FORM_BRANCH;
    if (is_alone(i->mnemonic))
        f->flags |= FORM_ALONE;
    f->width = i->avx.vector_length ? i->avx.vector_length : i->operand_width;
    f->mnemonic = (uint16_t)i->mnemonic;
}

static ZydisInstructionEncoding expected_encoding(const struct form *f)
{
    return f->encoding == ENC_EVEX  ? ZYDIS_INSTRUCTION_ENCODING_EVEX
           : f->encoding == ENC_VEX ? ZYDIS_INSTRUCTION_ENCODING_VEX
                                    : ZYDIS_INSTRUCTION_ENCODING_LEGACY;
}

enum try_result { TRY_NOTHING, TRY_NO_MODRM, TRY_FREE_REG, TRY_FREE_RM, TRY_FREE_BOTH, TRY_FIXED };

// Decodes one candidate; adds it when it is a new form.
static enum try_result try_form(struct enumeration *e, struct form *f, uint8_t modrm)
{
    uint8_t bytes[24] = {0};
    struct form_fields x = {.aaa = f->aaa, .l = f->l, .a67 = f->a67};
    if (f->encoding != ENC_LEGACY && (modrm & 0xc0) != 0xc0)
        f->flags = FORM_MODRM | FORM_MODRM_MEM;
    else
        f->flags = FORM_MODRM;
    unsigned n = form_emit(f, e->t->mode, &x, bytes);
    bytes[n] = modrm;
    bytes[n + 1] = 0x33; // SIB: [rbx + rsi]
    ZydisDecodedInstruction i;
    ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
    if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&e->decoder, bytes, 15, &i, ops)) ||
        i.encoding != expected_encoding(f)) {
        // vvvv may name a register that has to be there: EVEX and VEX with vvvv = 0 is tried, 1 is not
        // needed.
        return TRY_NOTHING;
    }
    struct form found = *f;
    found.flags = 0;
    found.modrm = modrm;
    classify(&found, &i, ops);
    if (!is_excluded(&i, ops, e->t->mode)) {
        found.key = form_key(&i, ops, f->opcode);
        if (remember(e, found.key))
            e->t->form[e->t->count++] = found;
    }
    if (!(found.flags & FORM_MODRM))
        return TRY_NO_MODRM;
    bool reg = !(found.flags & FORM_FIXED_REG),
         rm = (found.flags & FORM_MODRM_MEM) || !(found.flags & FORM_FIXED_RM);
    return reg && rm ? TRY_FREE_BOTH : reg ? TRY_FREE_REG : rm ? TRY_FREE_RM : TRY_FIXED;
}

static void try_opcode(struct enumeration *e, struct form *f)
{
    // Memory first (rm = 4: a SIB byte), then registers; /0 to /7 as far as they can differ.
    for (unsigned mod = 0; mod <= 3; mod += 3) {
        for (unsigned reg = 0; reg < 8; reg++) {
            enum try_result r = TRY_NOTHING;
            if (mod == 0) {
                r = try_form(e, f, (uint8_t)(reg << 3 | 4));
            } else {
                for (unsigned rm = 0; rm < 8; rm++) {
                    // Gathers want distinct registers, other VEX and EVEX forms take any rm.
                    r = try_form(e, f, (uint8_t)(0xc0 | reg << 3 | rm));
                    if (f->encoding != ENC_LEGACY || r == TRY_NO_MODRM || r == TRY_FREE_RM ||
                        r == TRY_FREE_BOTH)
                        break;
                }
            }
            if (r == TRY_NO_MODRM)
                return;
            if (r == TRY_FREE_BOTH || r == TRY_FREE_REG)
                break;
        }
    }
}

static bool legacy_prefix(enum diff_mode mode, unsigned opcode)
{
    switch (opcode) {
    case 0x0f:
    case 0x26:
    case 0x2e:
    case 0x36:
    case 0x3e:
    case 0x64:
    case 0x65:
    case 0x66:
    case 0x67:
    case 0xf0:
    case 0xf2:
    case 0xf3: return true;
    default: return mode == MODE64 && (opcode & 0xf0) == 0x40;
    }
}

static void enumerate_legacy(struct enumeration *e)
{
    static const uint8_t prefixes[6][2] = {{0, 0}, {1, 0}, {0, 0xf3}, {0, 0xf2}, {1, 0xf3}, {1, 0xf2}};
    for (unsigned lock = 0; lock < 2; lock++)
        for (unsigned p = 0; p < 6; p++)
            for (unsigned w = 0; w < (e->t->mode == MODE64 ? 2u : 1u); w++)
                for (unsigned map = 0; map < 4; map++)
                    for (unsigned opcode = 0; opcode < 256; opcode++) {
                        if (map == 0 && legacy_prefix(e->t->mode, opcode))
                            continue;
                        struct form f = {.encoding = ENC_LEGACY,
                                         .map = (uint8_t)map,
                                         .opcode = (uint8_t)opcode,
                                         .lock = (uint8_t)lock,
                                         .p66 = prefixes[p][0],
                                         .rep = prefixes[p][1],
                                         .w = (uint8_t)w};
                        try_opcode(e, &f);
                    }
}

static const uint8_t pp_p66[4] = {0, 1, 0, 0}, pp_rep[4] = {0, 0, 0xf3, 0xf2};

static void enumerate_vex(struct enumeration *e)
{
    for (unsigned map = 1; map < 4; map++)
        for (unsigned pp = 0; pp < 4; pp++)
            for (unsigned w = 0; w < 2; w++)
                for (unsigned l = 0; l < 2; l++)
                    for (unsigned opcode = 0; opcode < 256; opcode++) {
                        struct form f = {.encoding = ENC_VEX,
                                         .map = (uint8_t)map,
                                         .opcode = (uint8_t)opcode,
                                         .p66 = pp_p66[pp],
                                         .rep = pp_rep[pp],
                                         .w = (uint8_t)w,
                                         .l = (uint8_t)l,
                                         .a67 = e->t->mode == MODE16};
                        try_opcode(e, &f);
                    }
}

static void enumerate_evex(struct enumeration *e)
{
    for (unsigned map = 1; map < 7; map++) {
        if (map == 4)
            continue;
        for (unsigned pp = 0; pp < 4; pp++)
            for (unsigned variant = 0; variant < 2 * 4 * 2 * 3; variant++)
                for (unsigned opcode = 0; opcode < 256; opcode++) {
                    unsigned w = variant & 1, l = variant >> 1 & 3, b = variant >> 3 & 1,
                             masking = variant >> 4;
                    struct form f = {.encoding = ENC_EVEX,
                                     .map = (uint8_t)map,
                                     .opcode = (uint8_t)opcode,
                                     .p66 = pp_p66[pp],
                                     .rep = pp_rep[pp],
                                     .w = (uint8_t)w,
                                     .l = (uint8_t)l,
                                     .b = (uint8_t)b,
                                     .aaa = masking ? 1 : 0,
                                     .z = masking == 2,
                                     .a67 = e->t->mode == MODE16};
                    try_opcode(e, &f);
                }
    }
}

void forms_enumerate(struct form_table *t, enum diff_mode mode)
{
    struct enumeration e = {.t = t, .hash = calloc(HASH_SIZE, sizeof(uint32_t))};
    t->mode = mode;
    t->count = 0;
    if (!e.hash)
        return;
    forms_decoder(&e.decoder, mode);
    enumerate_legacy(&e);
    enumerate_vex(&e);
    enumerate_evex(&e);
    free(e.hash);
}

void form_name(const struct form *f, char *out, size_t size)
{
    static const char *const encodings[] = {"", " vex", " evex"};
    int n = snprintf(out, size, "%s%s %u%s", ZydisMnemonicGetString((ZydisMnemonic)f->mnemonic),
                     encodings[f->encoding], f->width, f->flags & FORM_MEMORY ? " mem" : " reg");
    if (n < 0 || (size_t)n >= size)
        return;
    snprintf(out + n, size - (size_t)n, "%s%s%s%s%s op=%u:%02x/%u", f->lock ? " lock" : "",
             f->encoding == ENC_LEGACY && f->map == 0 && f->rep ? (f->rep == 0xf3 ? " rep" : " repne") : "",
             f->encoding == ENC_EVEX && f->aaa ? " k" : "", f->z ? " z" : "",
             f->b ? (f->flags & FORM_MODRM_MEM ? " bcst" : " er") : "", f->map, f->opcode,
             f->flags & FORM_FIXED_REG ? f->modrm >> 3 & 7 : 8);
}
