// From "v3,+sha_ni,-avx2" and the host's processor to a struct cpu_model. Everything here runs once at start,
// so libc is allowed.
#include "cpu/model.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

const struct cpu_feature_info cpu_feature_table[CPU_FEATURE_COUNT] = {
#define X(id, name, leaf, subleaf, reg, bit, level, flags, needs)                                            \
    [CPU_##id] = {name, leaf, subleaf, CPUID_##reg, bit, LEVEL_##level, flags, CPU_##needs},
    CPU_FEATURES(X)
#undef X
};

#define XCR0_X87    0x001u
#define XCR0_SSE    0x002u
#define XCR0_AVX    0x004u
#define XCR0_AVX512 0x0e0u
#define XCR0_SERVED (XCR0_X87 | XCR0_SSE | XCR0_AVX | XCR0_AVX512)

static const struct {
    const char *name;
    enum cpu_level level;
    const char *title;
    uint32_t signature_intel, signature_amd; // 0: the host's
} base_models[] = {
    {"486", LEVEL_486, "486", 0x00000480, 0},              // DX4, family 4 model 8
    {"pentium", LEVEL_PENTIUM, "pentium", 0x00000543, 0},  // P55C, family 5 model 4
    {"pentium2", LEVEL_PENTIUM2, "pentium2", 0x00000652, 0}, // Deschutes, family 6 model 5
    // Family and model name a recent server part of each vendor: kernels pick work-arounds by them.
    {"v2", LEVEL_V2, "x86-64-v2", 0x000806f8, 0x00a10f11},
    {"v3", LEVEL_V3, "x86-64-v3", 0x000806f8, 0x00a10f11},
    {"v4", LEVEL_V4, "x86-64-v4", 0x000806f8, 0x00a10f11},
    {"host", LEVEL_HOST, "host", 0, 0},
};
#define BASE_MODELS (sizeof base_models / sizeof base_models[0])

// ---- the host

static struct cpuid_regs real_cpuid(void *opaque, uint32_t leaf, uint32_t subleaf)
{
    (void)opaque;
    struct cpuid_regs r;
    __asm__ volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "0"(leaf), "2"(subleaf));
    return r;
}

static uint64_t real_xcr0(void)
{
    if (!(real_cpuid(NULL, 1, 0).ecx & 1u << 27)) // OSXSAVE
        return 0;
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (uint64_t)hi << 32 | lo;
}

static uint32_t real_mxcsr_mask(void)
{
    _Alignas(16) uint8_t image[512];
    memset(image, 0, sizeof image);
    __asm__ volatile("fxsave64 %0" : "=m"(image));
    uint32_t mask;
    memcpy(&mask, image + 28, sizeof mask);
    return mask ? mask : 0xffbf; // SDM 1 11.6.6
}

static uint64_t raw_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_RAW, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

// A reading of both clocks, the closest of a few: (tsc, ns).
static void clock_pair(uint64_t *tsc, uint64_t *ns)
{
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < 16; i++) {
        uint64_t before = __builtin_ia32_rdtsc(), n = raw_ns(), after = __builtin_ia32_rdtsc();
        if (after - before < best) {
            best = after - before;
            *tsc = before + best / 2;
            *ns = n;
        }
    }
}

static uint32_t measure_tsc_khz(void)
{
    uint64_t tsc0 = 0, ns0 = 0, tsc1 = 0, ns1 = 0;
    clock_pair(&tsc0, &ns0);
    struct timespec wait = {.tv_nsec = 20000000};
    while (nanosleep(&wait, &wait))
        ;
    clock_pair(&tsc1, &ns1);
    return (uint32_t)((unsigned __int128)(tsc1 - tsc0) * 1000000 / (ns1 - ns0));
}

// SDM 2A CPUID 15h (TSC = crystal * EBX / EAX), hypervisors' timing leaf 40000010h, else measured.
static uint32_t real_tsc_khz(void)
{
    uint32_t max = real_cpuid(NULL, 0, 0).eax;
    if (max >= 0x15) {
        struct cpuid_regs r = real_cpuid(NULL, 0x15, 0);
        if (r.eax && r.ebx && r.ecx)
            return (uint32_t)((uint64_t)r.ecx * r.ebx / r.eax / 1000);
    }
    if (real_cpuid(NULL, 1, 0).ecx & 1u << 31 && real_cpuid(NULL, 0x40000000, 0).eax >= 0x40000010 &&
        real_cpuid(NULL, 0x40000000, 0).eax < 0x40010000) {
        uint32_t khz = real_cpuid(NULL, 0x40000010, 0).eax;
        if (khz >= 100000 && khz < 20000000)
            return khz;
    }
    return measure_tsc_khz();
}

static bool host_has(const struct cpu_host *host, enum cpu_feature f)
{
    const struct cpu_feature_info *i = &cpu_feature_table[f];
    if (i->flags & FEAT_SOFT)
        return true;
    if (host->cpuid(host->opaque, i->leaf & 0x80000000, 0).eax < i->leaf)
        return false;
    if (i->leaf == 7 && i->subleaf > host->cpuid(host->opaque, 7, 0).eax)
        return false;
    struct cpuid_regs r = host->cpuid(host->opaque, i->leaf, i->subleaf);
    const uint32_t regs[4] = {r.eax, r.ebx, r.ecx, r.edx};
    if (!(regs[i->reg] >> i->bit & 1))
        return false;
    // What the host's kernel did not enable does not exist.
    switch (f) {
    case CPU_XSAVE: return (host->xcr0 & 3) == 3;
    case CPU_AVX: return host->xcr0 & XCR0_AVX;
    case CPU_AVX512F: return (host->xcr0 & XCR0_AVX512) == XCR0_AVX512;
    default: return true;
    }
}

// ---- features

static void feature_set(struct cpu_model *m, enum cpu_feature f, bool on)
{
    uint64_t bit = 1ull << (f % 64);
    m->features[f / 64] = on ? m->features[f / 64] | bit : m->features[f / 64] & ~bit;
}

static bool vendor_shows(const struct cpu_model *m, enum cpu_feature f)
{
    unsigned flags = cpu_feature_table[f].flags;
    return !(flags & (m->amd ? FEAT_INTEL : FEAT_AMD));
}

static void add_with_needs(struct cpu_model *m, enum cpu_feature f)
{
    while (!cpu_model_has(m, f)) {
        feature_set(m, f, true);
        f = cpu_feature_table[f].needs;
    }
}

// Drops what needs something that is not there.
static void drop_orphans(struct cpu_model *m)
{
    for (bool changed = true; changed;) {
        changed = false;
        for (unsigned f = 0; f < CPU_FEATURE_COUNT; f++)
            if (cpu_model_has(m, f) && !cpu_model_has(m, cpu_feature_table[f].needs)) {
                feature_set(m, f, false);
                changed = true;
            }
    }
}

// The first feature the level means and the host lacks, or CPU_FEATURE_COUNT.
static unsigned missing_feature(const struct cpu_host *host, enum cpu_level level)
{
    for (unsigned f = 0; f < CPU_FEATURE_COUNT; f++) {
        const struct cpu_feature_info *i = &cpu_feature_table[f];
        if (level != LEVEL_HOST && i->level <= level && i->flags & FEAT_REQUIRED && !host_has(host, f))
            return f;
    }
    // AVX needs XSAVE, which psABI does not count as a feature of v2.
    if (level >= LEVEL_V3 && level != LEVEL_HOST && !host_has(host, CPU_XSAVE))
        return CPU_XSAVE;
    return CPU_FEATURE_COUNT;
}

static void level_features(struct cpu_model *m, const struct cpu_host *host)
{
    for (unsigned f = 0; f < CPU_FEATURE_COUNT; f++)
        if (cpu_feature_table[f].level <= m->level && vendor_shows(m, f) && host_has(host, f))
            feature_set(m, f, true);
    drop_orphans(m);
}

static int find_feature(const char *name, size_t n)
{
    for (unsigned f = 0; f < CPU_FEATURE_COUNT; f++)
        if (strlen(cpu_feature_table[f].name) == n && !memcmp(cpu_feature_table[f].name, name, n))
            return (int)f;
    return -1;
}

// One "+name" or "-name". Returns false with *error written.
static bool apply_feature(struct cpu_model *m, const struct cpu_host *host, const char *item, size_t n,
                          char *error, size_t error_size)
{
    int f = n > 1 && (item[0] == '+' || item[0] == '-') ? find_feature(item + 1, n - 1) : -1;
    if (f < 0) {
        snprintf(error, error_size,
                 "--cpu: '%.*s' is no feature; write +name or -name with a flag name of /proc/cpuinfo",
                 (int)(n > 64 ? 64 : n), item);
        return false;
    }
    const char *name = cpu_feature_table[f].name;
    if (item[0] == '-') {
        if (f == CPU_FPU) {
            snprintf(error, error_size, "--cpu: 'fpu' can't be removed; every model has one");
            return false;
        }
        feature_set(m, (enum cpu_feature)f, false);
        drop_orphans(m);
        return true;
    }
    if (!vendor_shows(m, (enum cpu_feature)f)) {
        snprintf(error, error_size, "--cpu: '%s' exists on %s processors only; leave it out", name,
                 m->amd ? "Intel" : "AMD");
        return false;
    }
    for (enum cpu_feature g = (enum cpu_feature)f;; g = cpu_feature_table[g].needs) {
        if (!host_has(host, g)) {
            snprintf(error, error_size, "--cpu: this host's processor lacks '%s'; leave out +%s",
                     cpu_feature_table[g].name, name);
            return false;
        }
        if (cpu_feature_table[g].needs == g)
            break;
    }
    add_with_needs(m, (enum cpu_feature)f);
    return true;
}

// ---- what follows from the features

static void derive_masks(struct cpu_model *m)
{
    static const struct {
        enum cpu_feature feature;
        uint32_t bits;
    } cr4[] = {
        {CPU_VME, CR4_VME | CR4_PVI}, {CPU_TSC, CR4_TSD},           {CPU_DE, CR4_DE},
        {CPU_PSE, CR4_PSE},           {CPU_PAE, CR4_PAE},           {CPU_MCE, CR4_MCE},
        {CPU_PGE, CR4_PGE},           {CPU_MMX, CR4_PCE},           {CPU_FXSR, CR4_OSFXSR},
        {CPU_SSE, CR4_OSXMMEXCPT},    {CPU_UMIP, CR4_UMIP},         {CPU_FSGSBASE, CR4_FSGSBASE},
        {CPU_PCID, CR4_PCIDE},        {CPU_XSAVE, CR4_OSXSAVE},     {CPU_SMEP, CR4_SMEP},
        {CPU_SMAP, CR4_SMAP},
    };
    for (size_t i = 0; i < sizeof cr4 / sizeof cr4[0]; i++)
        if (cpu_model_has(m, cr4[i].feature))
            m->cr4_mask |= cr4[i].bits;
    if (cpu_model_has(m, CPU_SYSCALL))
        m->efer_mask |= EFER_SCE;
    if (cpu_model_has(m, CPU_LM))
        m->efer_mask |= EFER_LME;
    if (cpu_model_has(m, CPU_NX))
        m->efer_mask |= EFER_NXE;
    if (cpu_model_has(m, CPU_AUTOIBRS))
        m->efer_mask |= EFER_AUTOIBRS;
    if (cpu_model_has(m, CPU_XSAVE))
        m->xcr0 = XCR0_X87 | XCR0_SSE | (cpu_model_has(m, CPU_AVX) ? XCR0_AVX : 0) |
                  (cpu_model_has(m, CPU_AVX512F) ? XCR0_AVX512 : 0);
}

static void derive_xsave(struct cpu_model *m, const struct cpu_host *host)
{
    m->mxcsr_mask = host->mxcsr_mask;
    m->host_xcr0 = host->xcr0;
    // The guest's x87 and SSE state is saved whatever it is told of XSAVE.
    m->fpu_mask = (m->xcr0 | XCR0_X87 | XCR0_SSE) & host->xcr0 & XCR0_SERVED;
    m->xsave[0] = (struct xsave_component){0, 160, false};
    m->xsave[1] = (struct xsave_component){160, 256, false};
    for (unsigned i = 2; i < XSAVE_COMPONENTS; i++) {
        if (!(m->fpu_mask >> i & 1))
            continue;
        struct cpuid_regs r = host->cpuid(host->opaque, 0xd, i);
        if (r.eax == 0 || r.ebx < 576 || r.ebx > XSAVE_AREA_SIZE || r.eax > XSAVE_AREA_SIZE - r.ebx) {
            m->xcr0 &=
                ~(uint64_t)(i == 2 ? XCR0_AVX | XCR0_AVX512 : XCR0_AVX512); // can't be on real hardware
            m->fpu_mask &= m->xcr0 | 3;
            continue;
        }
        m->xsave[i] = (struct xsave_component){(uint16_t)r.ebx, (uint16_t)r.eax, r.ecx & 2};
    }
    m->host_xgetbv1 = host->xcr0 && host->cpuid(host->opaque, 0, 0).eax >= 0xd &&
                      host->cpuid(host->opaque, 0xd, 1).eax & 4;
}

static void derive_clocks(struct cpu_model *m, uint32_t tsc_khz)
{
    m->tsc_khz = tsc_khz ? tsc_khz : 1000000;
    m->ns_per_tsc_q32 = m->host_ns_per_tsc_q32 = ((1000000ull << 32) + m->tsc_khz - 1) / m->tsc_khz;
    // mul in [2^31, 2^32): ns = ((tsc << shift) * mul) >> 32.
    unsigned __int128 ratio = ((unsigned __int128)1000000 << 64) / m->tsc_khz; // 64.64
    int shift = 0;
    while (ratio >> 64) {
        ratio >>= 1;
        shift++;
    }
    while (!(ratio >> 63)) {
        ratio <<= 1;
        shift--;
    }
    m->pvclock_mul = (uint32_t)(ratio >> 32);
    m->pvclock_shift = (int8_t)shift;
}

static void derive_widths(struct cpu_model *m, const struct cpu_host *host)
{
    m->virt_bits = cpu_model_has(m, CPU_LM) ? 48 : 32;
    if (!cpu_model_has(m, CPU_LM)) {
        m->phys_bits = cpu_model_has(m, CPU_PAE) || cpu_model_has(m, CPU_PSE36) ? 36 : 32;
        return;
    }
    m->phys_bits = 36;
    if (host->cpuid(host->opaque, 0x80000000, 0).eax >= 0x80000008)
        m->phys_bits = host->cpuid(host->opaque, 0x80000008, 0).eax & 0xff;
    if (m->phys_bits < 36)
        m->phys_bits = 36;
    if (m->phys_bits > 52)
        m->phys_bits = 52;
}

// ---- create, destroy

static bool word_is(const char *word, size_t n, const char *name)
{
    return strlen(name) == n && !memcmp(word, name, n);
}

static int find_base(const struct cpu_host *host, const char *word, size_t n, char *error, size_t error_size)
{
    bool by_default = word_is(word, n, "default");
    if (by_default) {
        word = missing_feature(host, LEVEL_V3) == CPU_FEATURE_COUNT ? "v3" : "v2";
        n = 2;
    }
    for (size_t i = 0; i < BASE_MODELS; i++) {
        if (!word_is(word, n, base_models[i].name))
            continue;
        unsigned f = missing_feature(host, base_models[i].level);
        if (f == CPU_FEATURE_COUNT)
            return (int)i;
        snprintf(error, error_size, "--cpu %s: this host's processor lacks '%s'; use --cpu %s",
                 base_models[i].name, cpu_feature_table[f].name,
                 base_models[i].level > LEVEL_V2 ? "default" : "host");
        return -1;
    }
    snprintf(error, error_size,
             "--cpu: unknown processor '%.*s'; use one of default host v2 v3 v4 pentium2 pentium 486",
             (int)(n > 64 ? 64 : n), word);
    return -1;
}

static void set_vendor(struct cpu_model *m, const struct cpu_host *host, size_t base)
{
    struct cpuid_regs r = host->cpuid(host->opaque, 0, 0);
    memcpy(m->vendor, &r.ebx, 4);
    memcpy(m->vendor + 4, &r.edx, 4);
    memcpy(m->vendor + 8, &r.ecx, 4);
    // The models of the nineties are Intel's own: their family numbers mean other chips elsewhere.
    if (m->level < LEVEL_V2)
        memcpy(m->vendor, "GenuineIntel", 12);
    m->amd = !memcmp(m->vendor, "AuthenticAMD", 12) || !memcmp(m->vendor, "HygonGenuine", 12);
    m->signature = m->amd ? base_models[base].signature_amd : base_models[base].signature_intel;
    if (!m->signature)
        m->signature = host->cpuid(host->opaque, 1, 0).eax & 0x0fff3fff;
}

struct cpu_model *cpu_model_create_on(const struct cpu_host *host, const char *spec, char *error,
                                      size_t error_size)
{
    const char *p = spec && *spec ? spec : "default";
    size_t n = strcspn(p, ",");
    const char *word = p;
    if (*p == '+' || *p == '-') { // only changes: of the default
        word = "default";
        n = 7;
    } else {
        p += n;
        if (*p == ',')
            p++;
    }
    int base = find_base(host, word, n, error, error_size);
    if (base < 0)
        return NULL;
    struct cpu_model *m = calloc(1, sizeof *m);
    if (!m) {
        snprintf(error, error_size, "--cpu: out of memory");
        return NULL;
    }
    m->level = base_models[base].level;
    snprintf(m->name, sizeof m->name, "%s", base_models[base].title);
    set_vendor(m, host, (size_t)base);
    level_features(m, host);
    while (*p) {
        n = strcspn(p, ",");
        if (!apply_feature(m, host, p, n, error, error_size)) {
            free(m);
            return NULL;
        }
        p += n;
        if (*p == ',')
            p++;
    }
    derive_masks(m);
    derive_xsave(m, host);
    m->cmps_source_first = host->cmps_source_first;
    m->cmpsb_source_first = host->cmpsb_source_first;
    derive_clocks(m, host->tsc_khz);
    derive_widths(m, host);
    cpu_model_build_cpuid(m, host);
    return m;
}

struct cpu_model *cpu_model_create_at(uint32_t tsc_khz, const char *spec, char *error, size_t error_size)
{
    struct cpu_host host = {.cpuid = real_cpuid, .xcr0 = real_xcr0(), .tsc_khz = tsc_khz,
                            .mxcsr_mask = real_mxcsr_mask()};
    cpu_host_compare_order(&host);
    struct cpu_model *m = cpu_model_create_on(&host, spec, error, error_size);
    uint32_t host_khz = m ? real_tsc_khz() : 0;
    if (host_khz)
        m->host_ns_per_tsc_q32 = ((1000000ull << 32) + host_khz - 1) / host_khz;
    return m;
}

struct cpu_model *cpu_model_create(const char *spec, char *error, size_t error_size)
{
    struct cpu_host host = {.cpuid = real_cpuid, .xcr0 = real_xcr0(), .tsc_khz = real_tsc_khz(),
                            .mxcsr_mask = real_mxcsr_mask()};
    cpu_host_compare_order(&host);
    return cpu_model_create_on(&host, spec, error, error_size);
}

void cpu_model_destroy(struct cpu_model *m) { free(m); }

// ---- questions

bool cpu_model_is_amd(const struct cpu_model *m) { return m->amd; }
unsigned cpu_model_phys_bits(const struct cpu_model *m) { return m->phys_bits; }
uint64_t cpu_model_xcr0(const struct cpu_model *m) { return m->xcr0; }
uint64_t cpu_model_cr4_mask(const struct cpu_model *m) { return m->cr4_mask; }
uint64_t cpu_model_efer_mask(const struct cpu_model *m) { return m->efer_mask; }
uint32_t cpu_model_tsc_khz(const struct cpu_model *m) { return m->tsc_khz; }

uint32_t cpu_model_xsave_size(const struct cpu_model *m, uint64_t components, bool compacted)
{
    uint32_t size = 576; // legacy region and header
    for (unsigned i = 2; i < XSAVE_COMPONENTS; i++) {
        const struct xsave_component *c = &m->xsave[i];
        if (!(components >> i & 1) || !c->size)
            continue;
        if (compacted)
            size = (c->align64 ? (size + 63) & ~63u : size) + c->size;
        else if (size < (uint32_t)c->offset + c->size)
            size = (uint32_t)c->offset + c->size;
    }
    return size;
}
