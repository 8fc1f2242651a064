// Instructions that the guest's processor model does not have raise #UD, whatever the host could do: a guest probes by
// trying (SDM vol. 2, "CPUID Feature Flag" column). Zydis names the instruction set of each encoding; the table says
// which features of the model stand for it. Sets that are not in the table are never offered.
#include "cpu/model.h"
#include "dbt/internal.h"

#define MAX_NEEDS 3

struct need { // all of these features
    uint16_t set;
    uint8_t count;
    uint8_t feature[MAX_NEEDS];
};

#define ALWAYS(set) {ZYDIS_ISA_SET_##set, 0, {0}}
#define NEED1(set, a) {ZYDIS_ISA_SET_##set, 1, {CPU_##a}}
#define NEED2(set, a, b) {ZYDIS_ISA_SET_##set, 2, {CPU_##a, CPU_##b}}
#define NEED3(set, a, b, c) {ZYDIS_ISA_SET_##set, 3, {CPU_##a, CPU_##b, CPU_##c}}
#define VECTORS(set, a) \
    NEED2(set##_128, a, AVX512VL), NEED2(set##_256, a, AVX512VL), NEED1(set##_512, a)
#define VECTORS2(set, a) \
    NEED3(set##_128, a, AVX512F, AVX512VL), NEED3(set##_256, a, AVX512F, AVX512VL), NEED2(set##_512, a, AVX512F)

static const struct need needs[] = {
    ALWAYS(I86), ALWAYS(I186), ALWAYS(I286REAL), ALWAYS(I286PROTECTED), ALWAYS(I386), ALWAYS(I486), ALWAYS(I486REAL),
    ALWAYS(PAUSE), ALWAYS(PREFETCH_NOP), ALWAYS(PREFETCHWT1), ALWAYS(REQUIRED_BITS), ALWAYS(CLDEMOTE),
    NEED1(LONGMODE, LM), ALWAYS(LAHF), NEED1(X87, FPU), ALWAYS(PENTIUMREAL),
    // The hints began as NOPs of the P6; CMOV tells that family.
    NEED1(PPRO, CMOV), NEED1(FAT_NOP, CMOV), NEED1(SSE_PREFETCH, CMOV), NEED1(RDPMC, MMX), NEED1(CMOV, CMOV),
    NEED2(FCMOV, CMOV, FPU), NEED1(PENTIUMMMX, MMX), NEED1(FXSAVE, FXSR), NEED2(FXSAVE64, FXSR, LM),
    NEED1(CMPXCHG16B, CX16), NEED1(CLFSH, CLFLUSH), NEED1(CLFLUSHOPT, CLFLUSHOPT), NEED1(CLWB, CLWB),
    NEED1(SSE, SSE), NEED1(SSEMXCSR, SSE), NEED1(SSE2, SSE2), NEED1(SSE2MMX, SSE2), NEED1(SSE3, SSE3),
    NEED2(SSE3X87, SSE3, FPU), NEED1(SSSE3, SSSE3), NEED2(SSSE3MMX, SSSE3, MMX), NEED1(SSE4, SSE4_1),
    NEED1(SSE42, SSE4_2), NEED1(SSE4A, SSE4A), NEED1(AES, AES), NEED1(PCLMULQDQ, PCLMULQDQ), NEED1(SHA, SHA_NI),
    NEED1(GFNI, GFNI), NEED1(POPCNT, POPCNT), NEED1(LZCNT, ABM), NEED1(BMI1, BMI1), NEED1(BMI2, BMI2),
    NEED1(ADOX_ADCX, ADX), NEED1(MOVBE, MOVBE), NEED1(RDRAND, RDRAND), NEED1(RDSEED, RDSEED), NEED1(SERIALIZE, SERIALIZE),
    NEED1(AVX, AVX), NEED1(AVX2, AVX2), NEED1(AVX2GATHER, AVX2), NEED2(AVXAES, AVX, AES), NEED2(AVX_GFNI, AVX, GFNI),
    NEED1(AVX_VNNI, AVX_VNNI), NEED1(F16C, F16C), NEED1(FMA, FMA), NEED1(VAES, VAES), NEED1(VPCLMULQDQ, VPCLMULQDQ),
    VECTORS(AVX512F, AVX512F), NEED1(AVX512F_128N, AVX512F), NEED1(AVX512F_SCALAR, AVX512F), NEED1(AVX512F_KOP, AVX512F),
    VECTORS(AVX512BW, AVX512BW), NEED1(AVX512BW_128N, AVX512BW), NEED1(AVX512BW_KOP, AVX512BW),
    VECTORS(AVX512DQ, AVX512DQ), NEED1(AVX512DQ_128N, AVX512DQ), NEED1(AVX512DQ_SCALAR, AVX512DQ),
    NEED1(AVX512DQ_KOP, AVX512DQ), VECTORS(AVX512CD, AVX512CD), VECTORS(AVX512_IFMA, AVX512IFMA),
    VECTORS(AVX512_VBMI, AVX512VBMI), VECTORS(AVX512_VBMI2, AVX512_VBMI2), VECTORS(AVX512_VNNI, AVX512_VNNI),
    VECTORS(AVX512_BITALG, AVX512_BITALG), VECTORS(AVX512_VPOPCNTDQ, AVX512_VPOPCNTDQ),
    VECTORS(AVX512_BF16, AVX512_BF16), VECTORS(AVX512_VP2INTERSECT, AVX512_VP2INTERSECT),
    VECTORS(AVX512_FP16, AVX512_FP16), NEED1(AVX512_FP16_128N, AVX512_FP16), NEED1(AVX512_FP16_SCALAR, AVX512_FP16),
    VECTORS2(AVX512_GFNI, GFNI), VECTORS2(AVX512_VAES, VAES), VECTORS2(AVX512_VPCLMULQDQ, VPCLMULQDQ),
    // served by cpu/
    NEED1(RDTSCP, RDTSCP), NEED1(RDPID, RDPID), NEED1(RDWRFSGS, FSGSBASE), NEED1(INVPCID, INVPCID), NEED1(SMAP, SMAP),
    NEED1(XSAVE, XSAVE), NEED1(XSAVEOPT, XSAVEOPT), NEED1(XSAVEC, XSAVEC), ALWAYS(XSAVES), ALWAYS(PKU), ALWAYS(MONITOR),
    ALWAYS(VTX), ALWAYS(SVM), // VMCALL and VMMCALL
};

void decoders_init(struct translation *t, const struct cpu_model *m)
{
    for (unsigned i = 0; i < MAX_INSNS; i++)
        t->insn[i].own = &t->decoding[i];
    t->peek.own = &t->decoding[MAX_INSNS];
    ZydisDecoderInit(&t->decoder[0], ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
    ZydisDecoderInit(&t->decoder[1], ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
    ZydisDecoderInit(&t->decoder[2], ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    for (unsigned i = 0; i < 3; i++) { // encodings that are reserved NOPs for a processor without these
        static const ZydisDecoderMode off[] = {ZYDIS_DECODER_MODE_MPX, ZYDIS_DECODER_MODE_CET, ZYDIS_DECODER_MODE_CLDEMOTE};
        for (unsigned k = 0; k < sizeof off / sizeof off[0]; k++)
            ZydisDecoderEnableMode(&t->decoder[i], off[k], ZYAN_FALSE);
        // AMD's branches heed 66 in 64-bit code: a displacement of 16 bits.
        ZydisDecoderEnableMode(&t->decoder[i], ZYDIS_DECODER_MODE_AMD_BRANCHES, cpu_model_is_amd(m));
        // Without these a processor takes F3 0F BC and BD for BSF and BSR.
        ZydisDecoderEnableMode(&t->decoder[i], ZYDIS_DECODER_MODE_TZCNT, cpu_model_has(m, CPU_BMI1));
        ZydisDecoderEnableMode(&t->decoder[i], ZYDIS_DECODER_MODE_LZCNT, cpu_model_has(m, CPU_ABM));
    }
}

void features_init(struct translation *t, const struct cpu_model *m)
{
    for (unsigned i = 0; i < sizeof needs / sizeof needs[0]; i++) {
        bool all = true;
        for (unsigned k = 0; k < needs[i].count; k++)
            all &= cpu_model_has(m, needs[i].feature[k]);
        t->has_set[needs[i].set] = all;
    }
}

bool uses_mmx(const struct ginsn *g)
{
    for (unsigned i = 0; i < g->z->operand_count; i++)
        if (g->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(g->op[i].reg.value) == ZYDIS_REGCLASS_MMX)
            return true;
    return false;
}

enum verdict { HAS_NOT, HAS, BY_SET };

// Where the set is too coarse.
static enum verdict has_mnemonic(const struct translation *t, const struct ginsn *g, const struct cpu_model *m)
{
    switch (g->z->mnemonic) {
    case ZYDIS_MNEMONIC_RDTSC: return cpu_model_has(m, CPU_TSC);
    case ZYDIS_MNEMONIC_RDMSR:
    case ZYDIS_MNEMONIC_WRMSR: return cpu_model_has(m, CPU_MSR);
    case ZYDIS_MNEMONIC_CMPXCHG8B: return cpu_model_has(m, CPU_CX8);
    case ZYDIS_MNEMONIC_SYSENTER:
    case ZYDIS_MNEMONIC_SYSEXIT: return cpu_model_has(m, CPU_SEP);
    case ZYDIS_MNEMONIC_SYSCALL:
    case ZYDIS_MNEMONIC_SYSRET: return cpu_model_has(m, CPU_SYSCALL);
    case ZYDIS_MNEMONIC_UD0:
    case ZYDIS_MNEMONIC_UD1:
    case ZYDIS_MNEMONIC_UD2: return HAS;
    case ZYDIS_MNEMONIC_MOVDIRI: return cpu_model_has(m, CPU_MOVDIRI);
    case ZYDIS_MNEMONIC_LAHF:
    case ZYDIS_MNEMONIC_SAHF: return t->code_size != 8 || cpu_model_has(m, CPU_LAHF_LM);
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_MOVNTQ:
    case ZYDIS_MNEMONIC_PAVGB:
    case ZYDIS_MNEMONIC_PAVGW:
    case ZYDIS_MNEMONIC_PEXTRW:
    case ZYDIS_MNEMONIC_PINSRW:
    case ZYDIS_MNEMONIC_PMAXSW:
    case ZYDIS_MNEMONIC_PMAXUB:
    case ZYDIS_MNEMONIC_PMINSW:
    case ZYDIS_MNEMONIC_PMINUB:
    case ZYDIS_MNEMONIC_PMOVMSKB:
    case ZYDIS_MNEMONIC_PMULHUW:
    case ZYDIS_MNEMONIC_PSADBW:
    case ZYDIS_MNEMONIC_PSHUFW: // came with SSE, or with AMD's extensions of MMX before it
        if (!uses_mmx(g))
            return BY_SET;
        return cpu_model_has(m, CPU_MMX) && (cpu_model_has(m, CPU_SSE) || cpu_model_has(m, CPU_MMXEXT));
    default: return BY_SET;
    }
}

bool feature_offered(const struct translation *t, const struct ginsn *g)
{
    enum verdict v = has_mnemonic(t, g, t->d->v->model);
    if (v != BY_SET)
        return v == HAS;
    return g->z->meta.isa_set <= ZYDIS_ISA_SET_MAX_VALUE && t->has_set[g->z->meta.isa_set];
}
