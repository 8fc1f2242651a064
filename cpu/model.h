// What processor the guest is shown: one feature table, a level (486 … x86-64-v4, host), and what follows
// from both: CPUID leaves, the bits that can be set in CR4, EFER and XCR0, address widths, the rate of the
// TSC. A model is made once at start and is read-only afterwards.
#pragma once
#include "cpu/cpu.h"
#include <stddef.h>

// Levels in rising order. A feature is offered from its level upwards.
enum cpu_level { LEVEL_486, LEVEL_PENTIUM, LEVEL_PENTIUM2, LEVEL_V2, LEVEL_V3, LEVEL_V4, LEVEL_HOST };

enum cpuid_register { CPUID_EAX, CPUID_EBX, CPUID_ECX, CPUID_EDX };

// Who serves a feature, and who is shown it.
#define FEAT_NATIVE   0x00u // the host's processor executes it: it must have it
#define FEAT_SOFT     0x01u // served by cpu/ and mmu/: the host need not have it
#define FEAT_REQUIRED 0x02u // the level means it: an error when the host lacks it
#define FEAT_INTEL    0x04u // shown by Intel models only
#define FEAT_AMD      0x08u // shown by AMD models only
#define FEAT_RN       (FEAT_REQUIRED | FEAT_NATIVE)

// X(id, name in /proc/cpuinfo, leaf, subleaf, register, bit, level, flags, id of the feature it needs)
// (FPU needs nothing; the rest chain to it.) SDM 2A CPUID, APM 3 appendix E.
#define CPU_FEATURES(X)                                                                                      \
    X(FPU, "fpu", 1, 0, EDX, 0, 486, FEAT_RN, FPU)                                                           \
    X(VME, "vme", 1, 0, EDX, 1, 486, FEAT_SOFT, FPU)                                                         \
    X(DE, "de", 1, 0, EDX, 2, PENTIUM, FEAT_SOFT, FPU)                                                       \
    X(PSE, "pse", 1, 0, EDX, 3, 486, FEAT_SOFT, FPU)                                                         \
    X(TSC, "tsc", 1, 0, EDX, 4, PENTIUM, FEAT_SOFT, FPU)                                                     \
    X(MSR, "msr", 1, 0, EDX, 5, PENTIUM, FEAT_SOFT, FPU)                                                     \
    X(PAE, "pae", 1, 0, EDX, 6, PENTIUM2, FEAT_SOFT, FPU)                                                    \
    X(MCE, "mce", 1, 0, EDX, 7, PENTIUM, FEAT_SOFT, FPU)                                                     \
    X(CX8, "cx8", 1, 0, EDX, 8, PENTIUM, FEAT_RN, FPU)                                                       \
    X(APIC, "apic", 1, 0, EDX, 9, PENTIUM, FEAT_SOFT, MSR)                                                   \
    X(SEP, "sep", 1, 0, EDX, 11, PENTIUM2, FEAT_SOFT, MSR)                                                   \
    X(MTRR, "mtrr", 1, 0, EDX, 12, PENTIUM2, FEAT_SOFT, MSR)                                                 \
    X(PGE, "pge", 1, 0, EDX, 13, PENTIUM2, FEAT_SOFT, FPU)                                                   \
    X(MCA, "mca", 1, 0, EDX, 14, PENTIUM2, FEAT_SOFT, MCE)                                                   \
    X(CMOV, "cmov", 1, 0, EDX, 15, PENTIUM2, FEAT_RN, FPU)                                                   \
    X(PAT, "pat", 1, 0, EDX, 16, PENTIUM2, FEAT_SOFT, MSR)                                                   \
    X(PSE36, "pse36", 1, 0, EDX, 17, PENTIUM2, FEAT_SOFT, PSE)                                               \
    X(CLFLUSH, "clflush", 1, 0, EDX, 19, V2, FEAT_RN, FPU)                                                   \
    X(MMX, "mmx", 1, 0, EDX, 23, PENTIUM, FEAT_RN, FPU)                                                      \
    X(FXSR, "fxsr", 1, 0, EDX, 24, PENTIUM2, FEAT_RN, FPU)                                                   \
    X(SSE, "sse", 1, 0, EDX, 25, V2, FEAT_RN, FXSR)                                                          \
    X(SSE2, "sse2", 1, 0, EDX, 26, V2, FEAT_RN, SSE)                                                         \
    X(SSE3, "pni", 1, 0, ECX, 0, V2, FEAT_RN, SSE2)                                                          \
    X(PCLMULQDQ, "pclmulqdq", 1, 0, ECX, 1, V2, FEAT_NATIVE, SSE2)                                           \
    X(SSSE3, "ssse3", 1, 0, ECX, 9, V2, FEAT_RN, SSE3)                                                       \
    X(FMA, "fma", 1, 0, ECX, 12, V3, FEAT_RN, AVX)                                                           \
    X(CX16, "cx16", 1, 0, ECX, 13, V2, FEAT_RN, LM)                                                          \
    X(PCID, "pcid", 1, 0, ECX, 17, V2, FEAT_SOFT, LM)                                                        \
    X(SSE4_1, "sse4_1", 1, 0, ECX, 19, V2, FEAT_RN, SSSE3)                                                   \
    X(SSE4_2, "sse4_2", 1, 0, ECX, 20, V2, FEAT_RN, SSE4_1)                                                  \
    X(X2APIC, "x2apic", 1, 0, ECX, 21, V2, FEAT_SOFT, APIC)                                                  \
    X(MOVBE, "movbe", 1, 0, ECX, 22, V3, FEAT_RN, FPU)                                                       \
    X(POPCNT, "popcnt", 1, 0, ECX, 23, V2, FEAT_RN, FPU)                                                     \
    X(TSC_DEADLINE, "tsc_deadline_timer", 1, 0, ECX, 24, V2, FEAT_SOFT, APIC)                                \
    X(AES, "aes", 1, 0, ECX, 25, V2, FEAT_NATIVE, SSE2)                                                      \
    X(XSAVE, "xsave", 1, 0, ECX, 26, V2, FEAT_NATIVE, FXSR)                                                  \
    X(AVX, "avx", 1, 0, ECX, 28, V3, FEAT_RN, XSAVE)                                                         \
    X(F16C, "f16c", 1, 0, ECX, 29, V3, FEAT_RN, AVX)                                                         \
    X(RDRAND, "rdrand", 1, 0, ECX, 30, V2, FEAT_NATIVE, FPU)                                                 \
    X(HYPERVISOR, "hypervisor", 1, 0, ECX, 31, V2, FEAT_SOFT, FPU)                                           \
    X(ARAT, "arat", 6, 0, EAX, 2, V2, FEAT_SOFT, APIC)                                                       \
    X(FSGSBASE, "fsgsbase", 7, 0, EBX, 0, V2, FEAT_SOFT, LM)                                                 \
    X(TSC_ADJUST, "tsc_adjust", 7, 0, EBX, 1, V2, FEAT_SOFT, TSC)                                            \
    X(BMI1, "bmi1", 7, 0, EBX, 3, V3, FEAT_RN, FPU)                                                          \
    X(AVX2, "avx2", 7, 0, EBX, 5, V3, FEAT_RN, AVX)                                                          \
    X(FDP_EXCPTN_ONLY, "fdp_excptn_only", 7, 0, EBX, 6, V2, FEAT_NATIVE, FPU)                                \
    X(SMEP, "smep", 7, 0, EBX, 7, V2, FEAT_SOFT, FPU)                                                        \
    X(BMI2, "bmi2", 7, 0, EBX, 8, V3, FEAT_RN, FPU)                                                          \
    X(ERMS, "erms", 7, 0, EBX, 9, V2, FEAT_NATIVE, FPU)                                                      \
    X(INVPCID, "invpcid", 7, 0, EBX, 10, V2, FEAT_SOFT, FPU)                                                 \
    X(FPU_CSDS, "zero_fcs_fds", 7, 0, EBX, 13, V2, FEAT_NATIVE, FPU)                                         \
    X(AVX512F, "avx512f", 7, 0, EBX, 16, V4, FEAT_RN, AVX2)                                                  \
    X(AVX512DQ, "avx512dq", 7, 0, EBX, 17, V4, FEAT_RN, AVX512F)                                             \
    X(RDSEED, "rdseed", 7, 0, EBX, 18, V2, FEAT_NATIVE, FPU)                                                 \
    X(ADX, "adx", 7, 0, EBX, 19, V2, FEAT_NATIVE, FPU)                                                       \
    X(SMAP, "smap", 7, 0, EBX, 20, V2, FEAT_SOFT, FPU)                                                       \
    X(AVX512IFMA, "avx512ifma", 7, 0, EBX, 21, HOST, FEAT_NATIVE, AVX512F)                                   \
    X(CLFLUSHOPT, "clflushopt", 7, 0, EBX, 23, V2, FEAT_NATIVE, CLFLUSH)                                     \
    X(CLWB, "clwb", 7, 0, EBX, 24, V2, FEAT_NATIVE, CLFLUSH)                                                 \
    X(AVX512CD, "avx512cd", 7, 0, EBX, 28, V4, FEAT_RN, AVX512F)                                             \
    X(SHA_NI, "sha_ni", 7, 0, EBX, 29, V2, FEAT_NATIVE, SSE2)                                                \
    X(AVX512BW, "avx512bw", 7, 0, EBX, 30, V4, FEAT_RN, AVX512F)                                             \
    X(AVX512VL, "avx512vl", 7, 0, EBX, 31, V4, FEAT_RN, AVX512F)                                             \
    X(AVX512VBMI, "avx512vbmi", 7, 0, ECX, 1, HOST, FEAT_NATIVE, AVX512BW)                                   \
    X(UMIP, "umip", 7, 0, ECX, 2, V2, FEAT_SOFT, FPU)                                                        \
    X(AVX512_VBMI2, "avx512_vbmi2", 7, 0, ECX, 6, HOST, FEAT_NATIVE, AVX512BW)                               \
    X(GFNI, "gfni", 7, 0, ECX, 8, V2, FEAT_NATIVE, SSE2)                                                     \
    X(VAES, "vaes", 7, 0, ECX, 9, V3, FEAT_NATIVE, AVX)                                                      \
    X(VPCLMULQDQ, "vpclmulqdq", 7, 0, ECX, 10, V3, FEAT_NATIVE, AVX)                                         \
    X(AVX512_VNNI, "avx512_vnni", 7, 0, ECX, 11, HOST, FEAT_NATIVE, AVX512F)                                 \
    X(AVX512_BITALG, "avx512_bitalg", 7, 0, ECX, 12, HOST, FEAT_NATIVE, AVX512BW)                            \
    X(AVX512_VPOPCNTDQ, "avx512_vpopcntdq", 7, 0, ECX, 14, HOST, FEAT_NATIVE, AVX512F)                       \
    X(RDPID, "rdpid", 7, 0, ECX, 22, V2, FEAT_SOFT, FPU)                                                     \
    X(MOVDIRI, "movdiri", 7, 0, ECX, 27, HOST, FEAT_NATIVE, FPU)                                             \
    X(FSRM, "fsrm", 7, 0, EDX, 4, V2, FEAT_NATIVE, ERMS)                                                     \
    X(AVX512_VP2INTERSECT, "avx512_vp2intersect", 7, 0, EDX, 8, HOST, FEAT_NATIVE, AVX512F)                  \
    X(SERIALIZE, "serialize", 7, 0, EDX, 14, HOST, FEAT_NATIVE, FPU)                                         \
    X(AVX512_FP16, "avx512_fp16", 7, 0, EDX, 23, HOST, FEAT_NATIVE, AVX512BW)                                \
    X(SPEC_CTRL, "spec_ctrl", 7, 0, EDX, 26, V2, FEAT_SOFT | FEAT_INTEL, MSR)                                \
    X(ARCH_CAPABILITIES, "arch_capabilities", 7, 0, EDX, 29, V2, FEAT_SOFT, MSR)                             \
    X(AVX_VNNI, "avx_vnni", 7, 1, EAX, 4, HOST, FEAT_NATIVE, AVX2)                                           \
    X(AVX512_BF16, "avx512_bf16", 7, 1, EAX, 5, HOST, FEAT_NATIVE, AVX512BW)                                 \
    X(FZRM, "fzrm", 7, 1, EAX, 10, V2, FEAT_NATIVE, ERMS)                                                    \
    X(FSRS, "fsrs", 7, 1, EAX, 11, V2, FEAT_NATIVE, ERMS)                                                    \
    X(FSRC, "fsrc", 7, 1, EAX, 12, V2, FEAT_NATIVE, ERMS)                                                    \
    X(XSAVEOPT, "xsaveopt", 0xd, 1, EAX, 0, V2, FEAT_SOFT, XSAVE)                                            \
    X(XSAVEC, "xsavec", 0xd, 1, EAX, 1, V2, FEAT_SOFT, XSAVE)                                                \
    X(XGETBV1, "xgetbv1", 0xd, 1, EAX, 2, V2, FEAT_SOFT, XSAVE)                                              \
    X(LAHF_LM, "lahf_lm", 0x80000001, 0, ECX, 0, V2, FEAT_RN, LM)                                            \
    X(ABM, "abm", 0x80000001, 0, ECX, 5, V3, FEAT_RN, FPU)                                                   \
    X(SSE4A, "sse4a", 0x80000001, 0, ECX, 6, V2, FEAT_NATIVE, SSE3)                                          \
    X(MISALIGNSSE, "misalignsse", 0x80000001, 0, ECX, 7, V2, FEAT_NATIVE, SSE)                               \
    X(3DNOWPREFETCH, "3dnowprefetch", 0x80000001, 0, ECX, 8, V2, FEAT_NATIVE, FPU)                           \
    X(SYSCALL, "syscall", 0x80000001, 0, EDX, 11, V2, FEAT_SOFT, LM)                                         \
    X(NX, "nx", 0x80000001, 0, EDX, 20, V2, FEAT_SOFT, PAE)                                                  \
    X(MMXEXT, "mmxext", 0x80000001, 0, EDX, 22, V2, FEAT_NATIVE, MMX)                                        \
    X(PDPE1GB, "pdpe1gb", 0x80000001, 0, EDX, 26, V2, FEAT_SOFT, LM)                                         \
    X(RDTSCP, "rdtscp", 0x80000001, 0, EDX, 27, V2, FEAT_SOFT, TSC)                                          \
    X(LM, "lm", 0x80000001, 0, EDX, 29, V2, FEAT_RN, PAE)                                                    \
    X(NONSTOP_TSC, "nonstop_tsc", 0x80000007, 0, EDX, 8, V2, FEAT_SOFT, TSC)                                 \
    X(XSAVEERPTR, "xsaveerptr", 0x80000008, 0, EBX, 2, V2, FEAT_NATIVE | FEAT_AMD, XSAVE)                    \
    X(AMD_IBPB, "ibpb", 0x80000008, 0, EBX, 12, V2, FEAT_SOFT | FEAT_AMD, MSR)                               \
    X(AMD_IBRS, "ibrs", 0x80000008, 0, EBX, 14, V2, FEAT_SOFT | FEAT_AMD, MSR)                               \
    X(AMD_SSB_NO, "amd_ssb_no", 0x80000008, 0, EBX, 26, V2, FEAT_SOFT | FEAT_AMD, MSR)                       \
    X(BTC_NO, "btc_no", 0x80000008, 0, EBX, 29, V2, FEAT_SOFT | FEAT_AMD, MSR)                               \
    X(LFENCE_RDTSC, "lfence_rdtsc", 0x80000021, 0, EAX, 2, V2, FEAT_NATIVE | FEAT_AMD, SSE2)                 \
    X(NULL_SEL_CLR_BASE, "null_sel_clr_base", 0x80000021, 0, EAX, 6, V2, FEAT_SOFT | FEAT_AMD, LM)           \
    X(AUTOIBRS, "autoibrs", 0x80000021, 0, EAX, 8, V2, FEAT_SOFT | FEAT_AMD, MSR)                            \
    X(SRSO_NO, "srso_no", 0x80000021, 0, EAX, 29, V2, FEAT_SOFT | FEAT_AMD, MSR)                             \
    X(TSA_SQ_NO, "tsa_sq_no", 0x80000021, 0, ECX, 1, V2, FEAT_SOFT | FEAT_AMD, MSR)                          \
    X(TSA_L1_NO, "tsa_l1_no", 0x80000021, 0, ECX, 2, V2, FEAT_SOFT | FEAT_AMD, MSR)

enum cpu_feature {
#define X(id, name, leaf, subleaf, reg, bit, level, flags, needs) CPU_##id,
    CPU_FEATURES(X)
#undef X
    CPU_FEATURE_COUNT
};

struct cpu_feature_info {
    const char *name;
    uint32_t leaf, subleaf;
    uint8_t reg;   // enum cpuid_register
    uint8_t bit;
    uint8_t level; // enum cpu_level: the lowest that has it
    uint8_t flags; // FEAT_*
    uint8_t needs; // enum cpu_feature; itself: nothing
};
extern const struct cpu_feature_info cpu_feature_table[CPU_FEATURE_COUNT];

struct cpuid_entry {
    uint32_t leaf, subleaf;
    bool indexed; // the subleaf matters
    struct cpuid_regs r;
};
#define CPUID_MAX_ENTRIES 64

// A component of the XSAVE area (CPUID leaf 0Dh); offsets are those of the standard format, the host's own.
#define XSAVE_COMPONENTS 10
struct xsave_component {
    uint16_t offset, size; // bytes; size 0: not offered
    bool align64;          // in the compacted format
};

// The processor we run on, injected so that tests can bring their own.
struct cpu_host {
    struct cpuid_regs (*cpuid)(void *opaque, uint32_t leaf, uint32_t subleaf);
    void *opaque;
    uint64_t xcr0;        // what the host's kernel enabled; 0: no XSAVE
    uint32_t tsc_khz;
    uint32_t mxcsr_mask;
    bool cmps_source_first, cmpsb_source_first; // which operand CMPS resp. REPE CMPSB read first
};

struct cpu_model {
    char name[64];        // "x86-64-v3", "host", "pentium2"…
    enum cpu_level level;
    bool amd;             // AMD's reading of the manual where the two differ
    char vendor[12];      // not terminated
    uint32_t signature;   // leaf 1 EAX
    uint64_t features[(CPU_FEATURE_COUNT + 63) / 64];
    uint64_t xcr0;        // settable bits; 0: no XSAVE
    uint64_t cr4_mask, efer_mask; // settable bits
    unsigned phys_bits, virt_bits;
    uint32_t tsc_khz;
    uint64_t ns_per_tsc_q32;   // nanoseconds per TSC cycle, 32.32 fixed point, rounded up
    uint64_t host_ns_per_tsc_q32; // the same of the host's TSC, for measurements
    uint32_t pvclock_mul;      // ns = ((tsc << shift) * mul) >> 32, shift may be negative
    int8_t pvclock_shift;
    uint32_t mxcsr_mask;
    uint64_t host_xcr0;        // 0: the host has no XSAVE
    uint64_t fpu_mask;         // components saved for the guest (XSAVE mask), a subset of host_xcr0
    bool host_xgetbv1;
    bool cmps_source_first, cmpsb_source_first; // CMPS resp. REPE CMPSB read DS:rSI before ES:rDI, as the host does
    struct xsave_component xsave[XSAVE_COMPONENTS];
    uint32_t max_basic, max_extended;
    unsigned entry_count;
    struct cpuid_entry entry[CPUID_MAX_ENTRIES];
};

// Makes a model from "default|host|v2|v3|v4|pentium2|pentium|486[,+feature,-feature…]"; null is "default":
// x86-64-v3 where the host allows it, else v2. On failure returns null and writes one line for the user. Uses
// libc and sleeps up to 20 ms to measure the TSC: start-up only.
struct cpu_model *cpu_model_create(const char *spec, char *error, size_t error_size);
// The same for a TSC of this frequency.
struct cpu_model *cpu_model_create_at(uint32_t tsc_khz, const char *spec, char *error, size_t error_size);
struct cpu_model *cpu_model_create_on(const struct cpu_host *host, const char *spec, char *error,
                                      size_t error_size);
// Tries what host->cmps_source_first and cmpsb_source_first are (cpu/order.c). While the process has one thread.
void cpu_host_compare_order(struct cpu_host *host);
void cpu_model_destroy(struct cpu_model *m);
// Fills entry[] from the rest of the model (cpu/cpuid.c).
void cpu_model_build_cpuid(struct cpu_model *m, const struct cpu_host *host);

static inline bool cpu_model_has(const struct cpu_model *m, enum cpu_feature f)
{
    return m->features[f / 64] >> (f % 64) & 1;
}
bool cpu_model_is_amd(const struct cpu_model *m);
unsigned cpu_model_phys_bits(const struct cpu_model *m); // MAXPHYADDR
uint64_t cpu_model_xcr0(const struct cpu_model *m);
uint64_t cpu_model_cr4_mask(const struct cpu_model *m);
uint64_t cpu_model_efer_mask(const struct cpu_model *m);
uint32_t cpu_model_tsc_khz(const struct cpu_model *m);

// Bytes of the XSAVE area for these components in the standard or the compacted format (SDM 1 13.4.3).
uint32_t cpu_model_xsave_size(const struct cpu_model *m, uint64_t components, bool compacted);
