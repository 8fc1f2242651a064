// Instruction lengths: the translator's decoder (Zydis) against another one (Capstone 4) over random bytes in every mode. A
// wrong length is a wrong next instruction, so every difference is one of the exceptions below, each with its reason, or a
// failure. Where Zydis refuses and Capstone does not, processors raise #UD.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <Zydis/Zydis.h>
#include <capstone/capstone.h>

#define CASES 250000u

struct difference {
    unsigned bits;
    const uint8_t *bytes;
    bool accepted;             // by Zydis; z then says more
    ZydisDecodedInstruction z;
    ZydisDecodedOperand operand[ZYDIS_MAX_OPERAND_COUNT];
    const char *other;         // Capstone's mnemonic, null: it refused
};

struct prefixes {
    unsigned count; // legacy prefixes, REX and VEX or EVEX not counted
    bool size, rep, lock;
    unsigned opcode; // the first byte behind them
    unsigned second;
};

static struct prefixes prefixes_of(const struct difference *d)
{
    struct prefixes p = {0};
    const uint8_t *b = d->bytes;
    for (; p.count < 14; p.count++) {
        uint8_t c = b[p.count];
        if (c == 0x66)
            p.size = true;
        else if (c == 0xf2 || c == 0xf3)
            p.rep = true;
        else if (c == 0xf0)
            p.lock = true;
        else if (c != 0x67 && c != 0x26 && c != 0x2e && c != 0x36 && c != 0x3e && c != 0x64 && c != 0x65 &&
                 !(d->bits == 64 && (c & 0xf0) == 0x40))
            break;
    }
    p.opcode = b[p.count];
    p.second = b[p.count + 1];
    return p;
}

static bool mnemonic_in(const char *name, const char *const *list)
{
    for (; *list; list++)
        if (!strcmp(name, *list))
            return true;
    return false;
}

static bool segment_move(const struct difference *d)
{
    for (unsigned i = 0; i < d->z.operand_count; i++)
        if (d->operand[i].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            ZydisRegisterGetClass(d->operand[i].reg.value) == ZYDIS_REGCLASS_SEGMENT)
            return d->z.mnemonic == ZYDIS_MNEMONIC_MOV;
    return false;
}

// Zydis accepts, Capstone refuses.
static const char *why_unknown(const struct difference *d, const struct prefixes *p)
{
    static const char *const newer[] = {
        "clzero", "enclv", "encls", "enclu", "enqcmd", "enqcmds", "gf2p8affineinvqb", "gf2p8affineqb", "gf2p8mulb", "hreset",
        "invlpgb", "mcommit", "monitorx", "movdir64b", "movdiri", "mwaitx", "pconfig", "psmash", "ptwrite", "pvalidate",
        "rdpid", "rdpkru", "rdpru", "rmpadjust", "rmpupdate", "seamcall", "seamops", "seamret", "senduipi", "serialize", "tdcall",
        "tlbsync", "tpause", "uiret", "umonitor", "umwait", "vmgexit", "wbnoinvd", "wrpkru", "wrssd", "wrssq", "wrussd",
        "wrussq", "xresldtrk", "xsusldtrk", "clui", "stui", "testui", "loadiwkey", "encodekey128", "encodekey256",
        "aesenc128kl", "aesenc256kl", "aesdec128kl", "aesdec256kl", "aesencwide128kl", "aesencwide256kl", "aesdecwide128kl",
        "aesdecwide256kl", "rstorssp", "saveprevssp", "setssbsy", "clrssbsy", NULL};
    const char *name = ZydisMnemonicGetString(d->z.mnemonic);
    switch (d->z.encoding) {
    case ZYDIS_INSTRUCTION_ENCODING_EVEX: return "Capstone 4 knows a part of AVX-512";
    case ZYDIS_INSTRUCTION_ENCODING_MVEX: return "Capstone 4 knows no Xeon Phi coprocessor";
    case ZYDIS_INSTRUCTION_ENCODING_XOP: return "Capstone 4 knows a part of XOP";
    case ZYDIS_INSTRUCTION_ENCODING_VEX:
        switch (d->z.meta.isa_ext) {
        case ZYDIS_ISA_EXT_AVX512VEX: case ZYDIS_ISA_EXT_AVX_VNNI: case ZYDIS_ISA_EXT_GFNI: case ZYDIS_ISA_EXT_VAES:
        case ZYDIS_ISA_EXT_VPCLMULQDQ: case ZYDIS_ISA_EXT_AMX_TILE: case ZYDIS_ISA_EXT_AMX_INT8: case ZYDIS_ISA_EXT_AMX_BF16:
        case ZYDIS_ISA_EXT_KNC: case ZYDIS_ISA_EXT_KNCE: case ZYDIS_ISA_EXT_KNCV:
            return "newer than Capstone 4";
        default: break;
        }
        if (d->bits != 64)
            return "outside 64-bit code VEX.vvvv[3] is ignored (SDM vol. 2, 2.3.5.6); Capstone refuses it";
        return NULL;
    default: break;
    }
    if (mnemonic_in(name, newer))
        return "newer than Capstone 4";
    if (p->opcode == 0x0f && (p->second == 0x0d || (p->second >= 0x18 && p->second <= 0x1f)))
        return "reserved NOPs, of which Capstone knows some (SDM vol. 2, table A-3)";
    if (d->z.mnemonic == ZYDIS_MNEMONIC_UD0)
        return "UD0 has a ModRM byte (SDM vol. 2, UD); Capstone knows it without";
    if (p->opcode == 0x0f && p->second == 0xae)
        return "the fences ignore ModRM.rm; Capstone wants 0";
    if (segment_move(d))
        return "REX.R is ignored where reg is a segment register; Capstone refuses it";
    if (d->bits == 16 && p->opcode == 0x0f && (p->size || p->rep))
        return "Capstone does not take 66, F2 and F3 for a part of the opcode in 16-bit code";
    return NULL;
}

// Capstone accepts, Zydis refuses: #UD on a processor.
static const char *why_refused(const struct difference *d, const struct prefixes *p)
{
    static const char *const padlock[] = {"xcryptecb", "xcryptcbc", "xcryptctr", "xcryptcfb", "xcryptofb", "montmul", "xsha1",
                                          "xsha256", "xstore", "femms", "pcommit", NULL};
    if (mnemonic_in(d->other, padlock))
        return "an instruction of one maker's processors, or never made";
    if (p->opcode == 0xc4 || p->opcode == 0xc5 || p->opcode == 0x62 || p->opcode == 0x8f)
        return "Capstone does not check vvvv, L, aaa and the registers of gathers (SDM vol. 2, 2.4 and 2.7)";
    if (p->lock)
        return "LOCK on an instruction that can't have it (SDM vol. 2, LOCK); Capstone does not check";
    if (p->opcode == 0x0f && (p->size || p->rep))
        return "a prefix that belongs to the opcode selects an instruction that is not; Capstone ignores it";
    if (p->opcode == 0x0f && p->second >= 0x20 && p->second <= 0x23)
        return "a control or debug register that is not; Capstone makes one up";
    if (p->opcode == 0x8e)
        return "a segment register that is not, or CS; Capstone makes one up";
    if (d->bits != 64 && !strcmp(d->other, "swapgs"))
        return "SWAPGS is for 64-bit code only (SDM vol. 2, SWAPGS)";
    return NULL;
}

static const char *why_longer(const struct difference *d, const struct prefixes *p)
{
    switch (d->z.mnemonic) {
    case ZYDIS_MNEMONIC_UD0: case ZYDIS_MNEMONIC_UD1: return "UD0 and UD1 have a ModRM byte (SDM vol. 2, UD); not for Capstone";
    case ZYDIS_MNEMONIC_EXTRQ:
    case ZYDIS_MNEMONIC_INSERTQ:
        if (d->bits == 16)
            return "Capstone does not take 66, F2 and F3 for a part of the opcode in 16-bit code";
        break;
    default: break;
    }
    if (d->bits == 64 && p->size && d->z.meta.branch_type == ZYDIS_BRANCH_TYPE_NEAR)
        return "66 on a near branch of 64-bit code: Intel ignores it (SDM vol. 2, JMP), AMD and Capstone make it 16 bits";
    if (d->z.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && d->z.avx.has_sae)
        return "Capstone looks for a displacement where EVEX.b means rounding and ModRM.mod is ignored";
    return NULL;
}

static const char *exception(const struct difference *d)
{
    struct prefixes p = prefixes_of(d);
    return !d->other ? why_unknown(d, &p) : !d->accepted ? why_refused(d, &p) : why_longer(d, &p);
}

static uint64_t random64(uint64_t *state) // xorshift64*
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1dull;
}

// Random bytes alone are mostly one-byte opcodes: a half gets prefixes and the longer maps.
static void make_case(uint64_t *state, uint8_t bytes[16])
{
    static const uint8_t heads[16][3] = {{0}, {0}, {0}, {0}, {0}, {0}, {0}, {0x0f}, {0x0f}, {0x66, 0x0f}, {0xf3, 0x0f},
                                         {0xf2, 0x0f}, {0x0f, 0x38}, {0x66, 0x0f, 0x3a}, {0xc4}, {0x62}};
    for (unsigned i = 0; i < 16; i += 8) {
        uint64_t word = random64(state);
        memcpy(bytes + i, &word, 8);
    }
    const uint8_t *head = heads[random64(state) >> 60];
    for (unsigned i = 0; i < 3 && head[i]; i++)
        bytes[i] = head[i];
}

static void compare(unsigned bits)
{
    static const ZydisDecoderMode off[] = {ZYDIS_DECODER_MODE_MPX, ZYDIS_DECODER_MODE_CET, ZYDIS_DECODER_MODE_CLDEMOTE};
    uint64_t state = 88172645463325252ull + bits;
    unsigned failures = 0, agreed = 0;
    ZydisDecoder zydis;
    csh capstone;

    if (bits == 64)
        ZydisDecoderInit(&zydis, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    else if (bits == 32)
        ZydisDecoderInit(&zydis, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
    else
        ZydisDecoderInit(&zydis, ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
    for (unsigned i = 0; i < sizeof off / sizeof off[0]; i++) // as dbt/create.c has it
        ZydisDecoderEnableMode(&zydis, off[i], ZYAN_FALSE);
    assert_int_equal(cs_open(CS_ARCH_X86, bits == 64 ? CS_MODE_64 : bits == 32 ? CS_MODE_32 : CS_MODE_16, &capstone), CS_ERR_OK);
    cs_insn *insn = cs_malloc(capstone);
    assert_non_null(insn);
    for (unsigned i = 0; i < CASES; i++) {
        uint8_t bytes[16];
        make_case(&state, bytes);
        struct difference d = {.bits = bits, .bytes = bytes};
        d.accepted = ZYAN_SUCCESS(ZydisDecoderDecodeFull(&zydis, bytes, 15, &d.z, d.operand));
        const uint8_t *p = bytes;
        size_t left = 15;
        uint64_t address = 0;
        d.other = cs_disasm_iter(capstone, &p, &left, &address, insn) ? insn->mnemonic : NULL;
        unsigned length = d.accepted ? d.z.length : 0, other = d.other ? insn->size : 0;
        if (length == other) {
            agreed += length != 0;
            continue;
        }
        if (exception(&d))
            continue;
        failures++;
        fprintf(stderr, "%u-bit: Zydis %u (%s), Capstone %u (%s):", bits, length,
                d.accepted ? ZydisMnemonicGetString(d.z.mnemonic) : "refused", other, d.other ? d.other : "refused");
        for (unsigned k = 0; k < 15; k++)
            fprintf(stderr, " %02x", bytes[k]);
        fputc('\n', stderr);
    }
    cs_free(insn, 1);
    cs_close(&capstone);
    assert_int_equal(failures, 0);
    assert_true(agreed > CASES / 2);
}

static void lengths_agree_in_16_bit_code(void **state)
{
    (void)state;
    compare(16);
}

static void lengths_agree_in_32_bit_code(void **state)
{
    (void)state;
    compare(32);
}

static void lengths_agree_in_64_bit_code(void **state)
{
    (void)state;
    compare(64);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lengths_agree_in_16_bit_code),
        cmocka_unit_test(lengths_agree_in_32_bit_code),
        cmocka_unit_test(lengths_agree_in_64_bit_code),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
