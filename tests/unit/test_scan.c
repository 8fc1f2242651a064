// Which pages may run raw: the scan against Zydis, at every ModRM and place, over random pages and over the code of
// programs that are here; and what it passes as faulting, against the processor.
//   test_scan FILE...   says instead which share of the files' pages passes
#include "dbt/direct/scan.h"
#include <elf.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include <Zydis/Zydis.h>

#define PAGE    SCAN_PAGE
#define LONGEST 15
#define COUNT(a) (sizeof a / sizeof a[0])

#define OWN_PROCESSOR \
    .same_xcr0 = true, .same_tsc = true, .no_sysenter = true, .clzero = true, .rdrand = true, .rdseed = true
#define SAME_SYSTEM .same_ldtr = true, .same_tr = true, .same_cr0 = true, .same_descriptors = true
#define SAME_AT_ALL SAME_SYSTEM, .no_umip = true
static const struct scan_rules strict;
static const struct scan_rules processor = {OWN_PROCESSOR};
static const struct scan_rules easy = {OWN_PROCESSOR, SAME_SYSTEM};
static const struct scan_rules rule_sets[] = {
    {.same_xcr0 = false}, {.same_xcr0 = true}, {.same_tsc = true}, {.no_sysenter = true, .clzero = true},
    {.rdrand = true}, {.rdseed = true}, {.same_ldtr = true, .same_cr0 = true}, {.same_tr = true}, {.same_descriptors = true},
    {.same_cr0 = true, .no_umip = true}, {OWN_PROCESSOR}, {SAME_SYSTEM}, {SAME_AT_ALL},
    {OWN_PROCESSOR, SAME_SYSTEM}, {OWN_PROCESSOR, SAME_AT_ALL},
};
static const char *const cause_name[SCAN_CAUSES] = {
    [SCAN_PASSES] = "pass", [SCAN_CPUID] = "cpuid", [SCAN_DESCRIPTOR] = "descriptor", [SCAN_XSTATE] = "xstate",
    [SCAN_TIME] = "time", [SCAN_INT80] = "int80", [SCAN_SYSENTER] = "sysenter", [SCAN_OTHER] = "other", [SCAN_EDGE] = "edge",
};

// ---- what Zydis says

struct meaning {
    ZydisMnemonic m;
    bool to_memory;
};

static enum scan_cause meaning_cause(struct meaning x, const struct scan_rules *r)
{
    bool stores = x.to_memory || r->no_umip;
    switch (x.m) {
    case ZYDIS_MNEMONIC_CPUID: return SCAN_CPUID;
    case ZYDIS_MNEMONIC_INT: return SCAN_INT80; // decode() leaves no other
    case ZYDIS_MNEMONIC_SGDT: case ZYDIS_MNEMONIC_SIDT: case ZYDIS_MNEMONIC_LSL: return SCAN_DESCRIPTOR;
    case ZYDIS_MNEMONIC_SLDT: return r->same_ldtr && stores ? SCAN_PASSES : SCAN_DESCRIPTOR;
    case ZYDIS_MNEMONIC_STR: return r->same_tr && stores ? SCAN_PASSES : SCAN_DESCRIPTOR;
    case ZYDIS_MNEMONIC_SMSW: return r->same_cr0 && stores ? SCAN_PASSES : SCAN_DESCRIPTOR;
    case ZYDIS_MNEMONIC_LAR: case ZYDIS_MNEMONIC_VERR:
    case ZYDIS_MNEMONIC_VERW: return r->same_descriptors ? SCAN_PASSES : SCAN_DESCRIPTOR;
    case ZYDIS_MNEMONIC_XGETBV: case ZYDIS_MNEMONIC_XSAVE: case ZYDIS_MNEMONIC_XSAVE64: case ZYDIS_MNEMONIC_XSAVEC:
    case ZYDIS_MNEMONIC_XSAVEC64: case ZYDIS_MNEMONIC_XSAVEOPT: case ZYDIS_MNEMONIC_XSAVEOPT64:
    case ZYDIS_MNEMONIC_XRSTOR: case ZYDIS_MNEMONIC_XRSTOR64: return r->same_xcr0 ? SCAN_PASSES : SCAN_XSTATE;
    case ZYDIS_MNEMONIC_RDTSC: return r->same_tsc ? SCAN_PASSES : SCAN_TIME;
    case ZYDIS_MNEMONIC_RDTSCP: case ZYDIS_MNEMONIC_RDPID: case ZYDIS_MNEMONIC_RDPMC:
    case ZYDIS_MNEMONIC_RDPRU: return SCAN_TIME;
    case ZYDIS_MNEMONIC_SYSENTER: return r->no_sysenter ? SCAN_PASSES : SCAN_SYSENTER;
    case ZYDIS_MNEMONIC_CLZERO: return r->clzero ? SCAN_PASSES : SCAN_OTHER;
    case ZYDIS_MNEMONIC_RDRAND: return r->rdrand ? SCAN_PASSES : SCAN_OTHER;
    case ZYDIS_MNEMONIC_RDSEED: return r->rdseed ? SCAN_PASSES : SCAN_OTHER;
    case ZYDIS_MNEMONIC_VMCALL: case ZYDIS_MNEMONIC_VMMCALL: case ZYDIS_MNEMONIC_VMFUNC: case ZYDIS_MNEMONIC_ENCLU:
    case ZYDIS_MNEMONIC_MONITOR: case ZYDIS_MNEMONIC_MWAIT: case ZYDIS_MNEMONIC_MONITORX: case ZYDIS_MNEMONIC_MWAITX:
    case ZYDIS_MNEMONIC_MCOMMIT: case ZYDIS_MNEMONIC_RDPKRU: case ZYDIS_MNEMONIC_WRPKRU: case ZYDIS_MNEMONIC_PTWRITE:
    case ZYDIS_MNEMONIC_TPAUSE: case ZYDIS_MNEMONIC_UMWAIT: case ZYDIS_MNEMONIC_UMONITOR:
    case ZYDIS_MNEMONIC_SENDUIPI: case ZYDIS_MNEMONIC_UIRET: case ZYDIS_MNEMONIC_TESTUI: case ZYDIS_MNEMONIC_CLUI:
    case ZYDIS_MNEMONIC_STUI: return SCAN_OTHER;
    default: return SCAN_PASSES;
    }
}

static ZydisDecoder decoder[2]; // 64-bit and compatibility mode

static struct meaning decode(unsigned mode, const uint8_t *p, size_t size)
{
    ZydisDecodedInstruction z;
    if (ZYAN_FAILED(ZydisDecoderDecodeInstruction(&decoder[mode], NULL, p, size, &z)))
        return (struct meaning){ZYDIS_MNEMONIC_INVALID, false};
    bool passes = z.mnemonic == ZYDIS_MNEMONIC_INT && z.raw.imm[0].value.u != 0x80;
    return (struct meaning){passes ? ZYDIS_MNEMONIC_INVALID : z.mnemonic, z.raw.modrm.mod != 3};
}

static enum scan_cause decoded_cause(const uint8_t *p, size_t size, const struct scan_rules *r)
{
    enum scan_cause cause = meaning_cause(decode(0, p, size), r);
    return cause ? cause : meaning_cause(decode(1, p, size), r);
}

static bool is_prefix(uint8_t b)
{
    static const uint8_t legacy[] = {0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65};
    return memchr(legacy, b, sizeof legacy) || (b & 0xf0) == 0x40;
}

// What the opcode at p can be: bare or with one mandatory prefix out of `with`, in either mode.
struct meanings {
    unsigned count;
    struct meaning m[8];
};

static struct meanings opcode_meanings(const uint8_t *p, const uint8_t *with, unsigned count)
{
    static const uint8_t mandatory[] = {0x66, 0xf2, 0xf3};
    struct meanings x = {0};
    uint8_t b[LONGEST];
    memcpy(b + 1, p, sizeof b - 1);
    for (unsigned mode = 0; mode < 2; mode++)
        x.m[x.count++] = decode(mode, b + 1, sizeof b - 1);
    for (unsigned i = 0; i < sizeof mandatory; i++) {
        b[0] = mandatory[i];
        for (unsigned mode = 0; mode < 2 && count && memchr(with, b[0], count); mode++)
            x.m[x.count++] = decode(mode, b, sizeof b);
    }
    return x;
}

static enum scan_cause meanings_cause(const struct meanings *x, const struct scan_rules *r)
{
    enum scan_cause cause = SCAN_PASSES;
    for (unsigned i = 0; i < x->count && !cause; i++)
        cause = meaning_cause(x->m[i], r);
    return cause;
}

static enum scan_cause opcode_cause(const uint8_t *p, const uint8_t *with, unsigned count, const struct scan_rules *r)
{
    struct meanings x = opcode_meanings(p, with, count);
    return meanings_cause(&x, r);
}

// Whether a finding is one: `cause`, from an entry on this page or for some neighbours. bytes: the page and 15 more.
static bool is_justified(const uint8_t *bytes, unsigned at, enum scan_cause cause, const struct scan_rules *r)
{
    static const uint8_t mandatory[] = {0x66, 0xf2, 0xf3};
    unsigned run = 0;
    while (run < at && run < LONGEST - 3 && is_prefix(bytes[at - run - 1]))
        run++;
    if (bytes[at] == 0xcd)
        return at == PAGE - 1 ? cause == SCAN_EDGE : cause == SCAN_INT80 && bytes[at + 1] == 0x80;
    if (bytes[at] != 0x0f)
        return false;
    if (cause != SCAN_EDGE)
        return opcode_cause(bytes + at, bytes + at - run, run, r) == cause;
    uint8_t b[LONGEST + 2] = {0x0f, bytes[at + 1], bytes[at + 2]};
    if (at == PAGE - 1)
        return true;
    bool before = run == at && run < LONGEST - 3;
    for (unsigned modrm = 0; modrm < 256; modrm++) {
        if (at == PAGE - 2)
            b[2] = (uint8_t)modrm;
        if (opcode_cause(b, before ? mandatory : bytes + at - run, before ? 3 : run, r))
            return at == PAGE - 2 || before;
    }
    return false;
}

static void fail_at(const char *what, const uint8_t *p, unsigned offset)
{
    char text[3 * 32 + 1];
    for (unsigned i = 0; i < 32; i++)
        sprintf(text + 3 * i, "%02x ", p[i]);
    fail_msg("%s at %u: %s", what, offset, text);
}

// ---- every opcode, ModRM and prefix

static const char *const prefix_sets[] = {
    "", "\x66", "\xf2", "\xf3", "\x48", "\x41", "\x66\x48", "\xf2\x4f", "\xf3\x48", "\x66\xf3", "\xf3\x66", "\x66\xf2",
    "\xf2\xf3", "\xf3\xf2", "\x48\xf3", "\x48\x66", "\x2e", "\xf3\x2e", "\x66\x67", "\x64\xf2", "\xf0", "\xf0\xf3",
    "\x66\xf0\x41", "\x66\x64", "\xf3\x65", "\xf2\x36\x2e", "\xf3\x3e\x67\x26\x4b",
    "\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66", "\xf3\x26\x26\x26\x26\x26\x26\x26\x26\x26\x26\x48",
};

struct book { // two pages and some bytes
    uint8_t bytes[2 * PAGE + 16];
};

static void book_clear(struct book *k)
{
    memset(k, 0x90, sizeof *k);
}

static void check_places(struct book *k, const uint8_t *insn, unsigned size, unsigned prefixes, const struct scan_rules *r)
{
    uint8_t *pages = k->bytes;
    for (unsigned n = 0; n < 12; n++) { // whole
        unsigned at = n < 8 ? 40 + 9 * n : n == 8 ? 0 : n == 9 ? 1 : PAGE - size - (n - 10);
        memcpy(pages + at, insn, size);
        if (scan_page(pages, r, NULL) == SCAN_PASSES)
            fail_at("passes", insn, at);
        memset(pages + at, 0x90, size);
    }
    for (unsigned first = 1; first < size; first++) { // on two pages, neither of which may be run if both are needed
        unsigned at = PAGE - first;
        memcpy(pages + at, insn, size);
        if (scan_page(pages, r, NULL) == SCAN_PASSES && first > prefixes)
            fail_at("passes, cut", insn, first);
        if (scan_page(pages, r, NULL) == SCAN_PASSES && scan_page(pages + PAGE, r, NULL) == SCAN_PASSES)
            fail_at("two pages pass", insn, first);
        memset(pages + at, 0x90, size);
    }
}

static void no_place_hides_a_sensitive_instruction(void **state)
{
    (void)state;
    static struct book k;
    unsigned seen = 0;
    book_clear(&k);
    for (unsigned n = 0; n < COUNT(prefix_sets) * 65536; n++) {
        const char *prefixes = prefix_sets[n >> 16];
        unsigned size = (unsigned)strlen(prefixes);
        uint8_t b[32] = {0};
        memcpy(b, prefixes, size);
        b[size] = 0x0f;
        b[size + 1] = (uint8_t)(n >> 8);
        b[size + 2] = (uint8_t)n;
        for (unsigned mode = 0; mode < 2; mode++) {
            ZydisDecodedInstruction z;
            if (ZYAN_FAILED(ZydisDecoderDecodeInstruction(&decoder[mode], NULL, b, LONGEST, &z)) ||
                !meaning_cause((struct meaning){z.mnemonic, z.raw.modrm.mod != 3}, &strict))
                continue;
            if (z.raw.modrm.offset == 0 && (uint8_t)n != 0 && z.length < size + 3)
                continue; // what follows is not part of it
            seen++;
            for (unsigned i = 0; i < COUNT(rule_sets); i++)
                if (meaning_cause((struct meaning){z.mnemonic, z.raw.modrm.mod != 3}, &rule_sets[i]))
                    check_places(&k, b, z.length, size, &rule_sets[i]);
        }
    }
    assert_in_range(seen, 10000, 1000000);
}

// With every vector, behind each of the prefixes, at every kind of place.
static void int_80h_fails_a_page_and_no_other_int_does(void **state)
{
    (void)state;
    static struct book k;
    for (unsigned n = 0; n < COUNT(prefix_sets) * 256; n++) {
        const char *prefixes = prefix_sets[n >> 8];
        unsigned size = (unsigned)strlen(prefixes), offset = 0;
        uint8_t b[32] = {0};
        memcpy(b, prefixes, size);
        b[size] = 0xcd;
        b[size + 1] = (uint8_t)n;
        if (b[size + 1] == 0x0f || b[size + 1] == 0xcd)
            continue;
        book_clear(&k);
        if (b[size + 1] == 0x80) {
            for (unsigned i = 0; i < COUNT(rule_sets); i++)
                check_places(&k, b, size + 2, size, &rule_sets[i]);
            book_clear(&k);
        }
        memcpy(k.bytes + 2000, b, size + 2);
        assert_int_equal(scan_page(k.bytes, &easy, &offset), b[size + 1] == 0x80 ? SCAN_INT80 : SCAN_PASSES);
        if (b[size + 1] == 0x80)
            assert_int_equal(offset, 2000 + size);
    }
}

// As exact as the manuals: in the middle of a page, nothing fails that does not decode to one of them.
static void nothing_else_fails_a_page(void **state)
{
    (void)state;
    static struct book k;
    book_clear(&k);
    for (unsigned n = 0; n < COUNT(prefix_sets) * 65536; n++) {
        const char *prefixes = prefix_sets[n >> 16];
        unsigned size = (unsigned)strlen(prefixes), offset = 0;
        uint8_t *at = k.bytes + 2000, *p = at + size;
        uint8_t second = (uint8_t)(n >> 8), modrm = (uint8_t)n;
        bool group = second == 0x00 || second == 0x01 || second == 0xae || second == 0xc7;
        if (second == 0x0f || modrm == 0x0f || (second == 0xcd && modrm == 0x80) || (size && !group && modrm % 16 != 1))
            continue;
        memcpy(at, prefixes, size);
        p[0] = 0x0f;
        p[1] = second;
        p[2] = modrm;
        struct meanings x = opcode_meanings(p, at, size);
        for (unsigned i = n >> 16 & 1; i < COUNT(rule_sets); i += 2) {
            enum scan_cause want = meanings_cause(&x, &rule_sets[i]), is = scan_page(k.bytes, &rule_sets[i], &offset);
            if (is != want || (is && offset != 2000 + size))
                fail_at(cause_name[is], at, offset);
        }
        memset(at, 0x90, size + 3);
    }
}

// ---- random pages

static uint64_t next_random(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return *s;
}

static uint8_t random_byte(uint64_t *s)
{
    static const uint8_t often[] = {0x0f, 0x0f, 0x0f, 0x0f, 0x66, 0xf2, 0xf3, 0x48, 0x41, 0x00, 0x01, 0xae,
                                    0xc7, 0xa2, 0x31, 0x02, 0xf0, 0xf8, 0x3e, 0x67, 0xc4, 0xc5, 0x62, 0x0e};
    uint64_t r = next_random(s) >> 20;
    return r & 1 ? often[(r >> 1) % sizeof often] : (uint8_t)(r >> 12);
}

// Entry points from..to of `bytes`: the first opcode that decodes to a sensitive instruction, or -1.
static int first_sensitive(const uint8_t *bytes, unsigned from, unsigned to, const struct scan_rules *r)
{
    int first = -1;
    for (unsigned s = from; s < to; s++) {
        if (!memchr(bytes + s, 0x0f, LONGEST) || !decoded_cause(bytes + s, LONGEST, r))
            continue;
        unsigned at = s;
        while (is_prefix(bytes[at]))
            at++;
        if (first < 0 || (int)at < first)
            first = (int)at;
    }
    return first;
}

static void an_instruction_without_0f_or_cd_is_none_of_them(void **state)
{
    (void)state;
    static const uint8_t starts[] = {0xc4, 0xc5, 0x62, 0x8f, 0xd5, 0xf3, 0xc6, 0xc7};
    uint64_t seed = 0x2545f4914f6cdd1d;
    for (unsigned i = 0; i < 500000; i++) {
        uint64_t start = seed;
        uint8_t b[32] = {0};
        for (unsigned n = 0; n < LONGEST; n++)
            b[n] = (uint8_t)(next_random(&seed) >> 20);
        if (i & 1)
            b[0] = starts[i >> 1 & 7];
        for (unsigned n = 0; n < LONGEST; n++)
            b[n] += b[n] == 0x0f || b[n] == 0xcd;
        if (decoded_cause(b, LONGEST, &strict)) {
            printf("seed %#lx\n", start);
            fail_at("sensitive", b, 0);
        }
    }
}

static void check_page(struct book *k, unsigned from, unsigned to, const struct scan_rules *r, uint64_t seed)
{
    const uint8_t *page = k->bytes;
    unsigned offset = 0;
    enum scan_cause is = scan_page(page, r, &offset);
    int want = first_sensitive(page, from, to, r);
    if ((want >= 0 && want < (int)PAGE && is == SCAN_PASSES) || (is && want >= 0 && want < (int)offset)) {
        printf("seed %#lx\n", seed);
        fail_at("not seen", page + want, (unsigned)want);
    }
    if (is && !is_justified(page, offset, is, r)) {
        printf("seed %#lx\n", seed);
        fail_at(cause_name[is], page + offset, offset);
    }
}

static void random_pages_are_judged_as_zydis_decodes_them(void **state)
{
    (void)state;
    static struct book k;
    const char *given = getenv("SCAN_SEED");
    uint64_t seed = given ? strtoull(given, NULL, 0) : 0x9e3779b97f4a7c15;
    book_clear(&k);
    for (unsigned i = 0; i < 100000; i++) {
        uint64_t start = seed;
        unsigned size = 4 + next_random(&seed) % 24, where = next_random(&seed) % 4;
        unsigned at = where == 0 ? 0 : where == 1 ? PAGE - 1 - next_random(&seed) % size
                                                  : next_random(&seed) % (PAGE - size);
        uint8_t *p = k.bytes + at;
        for (unsigned n = 0; n < size; n++)
            p[n] = random_byte(&seed);
        const struct scan_rules *r = &rule_sets[next_random(&seed) % COUNT(rule_sets)];
        check_page(&k, at > LONGEST ? at - LONGEST : 0, at + size < PAGE ? at + size : PAGE, r, start);
        if (at + size > PAGE && scan_page(k.bytes, r, NULL) == SCAN_PASSES &&
            scan_page(k.bytes + PAGE, r, NULL) == SCAN_PASSES && first_sensitive(p, 0, size, r) >= 0) {
            printf("seed %#lx\n", start);
            fail_at("two pages pass", p, at);
        }
        memset(p, 0x90, size);
    }
}

// ---- the processor

static sigjmp_buf back;

static void on_signal(int sig, siginfo_t *info, void *context)
{
    (void)context;
    // A page fault is no answer.
    siglongjmp(back, sig == SIGSEGV && info->si_code != SI_KERNEL ? SIGBUS : sig);
}

struct bench {
    uint8_t *code, *data;
};

static void bench_init(struct bench *b)
{
    static const int signals[] = {SIGSEGV, SIGILL, SIGBUS, SIGTRAP, SIGFPE, SIGSYS};
    stack_t stack = {.ss_size = 65536};
    struct sigaction act = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    stack.ss_sp = malloc(stack.ss_size);
    b->code = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    b->data = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (b->code == MAP_FAILED || b->data == MAP_FAILED || !stack.ss_sp)
        _exit(3);
    sigaltstack(&stack, NULL);
    for (unsigned i = 0; i < COUNT(signals); i++)
        sigaction(signals[i], &act, NULL);
    alarm(60);
}

// SIGTRAP: the instruction has been executed. All registers but RSP point at memory. The caller's registers come back by
// siglongjmp().
static int execute(struct bench *b, const uint8_t *insn, unsigned size)
{
    uint8_t *p = b->code;
    uint64_t data = (uint64_t)b->data + PAGE;
    for (unsigned reg = 0; reg < 16; reg++) {
        if (reg == 4)
            continue;
        *p++ = reg < 8 ? 0x48 : 0x49;
        *p++ = (uint8_t)(0xb8 | (reg & 7));
        memcpy(p, &data, 8);
        p += 8;
    }
    memcpy(p, insn, size);
    memset(p + size, 0xcc, LONGEST);
    int sig = sigsetjmp(back, 1);
    if (sig)
        return sig;
    ((void (*)(void))(uintptr_t)b->code)();
    return 0;
}

static unsigned modrm_tail(uint8_t *p, uint8_t modrm) // SIB: RAX
{
    unsigned size = 0, mod = modrm >> 6, rm = modrm & 7;
    memset(p, 0, 5);
    if (mod == 3)
        return 0;
    if (rm == 4)
        p[size++] = 0x20;
    return size + (mod == 1 ? 1u : mod == 2 || rm == 5 ? 4u : 0);
}

// What passes and does not fault, as it does for any program.
static bool is_harmless(ZydisMnemonic m)
{
    switch (m) {
    case ZYDIS_MNEMONIC_FXSAVE: case ZYDIS_MNEMONIC_FXSAVE64: case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64: case ZYDIS_MNEMONIC_LDMXCSR: case ZYDIS_MNEMONIC_STMXCSR:
    case ZYDIS_MNEMONIC_CLFLUSH: case ZYDIS_MNEMONIC_CLFLUSHOPT: case ZYDIS_MNEMONIC_CLWB: case ZYDIS_MNEMONIC_LFENCE:
    case ZYDIS_MNEMONIC_MFENCE: case ZYDIS_MNEMONIC_SFENCE: case ZYDIS_MNEMONIC_RDFSBASE:
    case ZYDIS_MNEMONIC_RDGSBASE: case ZYDIS_MNEMONIC_WRFSBASE: case ZYDIS_MNEMONIC_WRGSBASE:
    case ZYDIS_MNEMONIC_CMPXCHG8B: case ZYDIS_MNEMONIC_CMPXCHG16B: case ZYDIS_MNEMONIC_SERIALIZE:
    case ZYDIS_MNEMONIC_XSUSLDTRK: case ZYDIS_MNEMONIC_XRESLDTRK: // outside of a transaction
    case ZYDIS_MNEMONIC_XTEST: case ZYDIS_MNEMONIC_INCSSPD: case ZYDIS_MNEMONIC_INCSSPQ: return true;
    default: return false;
    }
}

static int fault_groups(void)
{
    static const uint8_t groups[] = {0x00, 0x01, 0xae, 0xc7};
    static const char *const prefixes[] = {"", "\x66", "\xf2", "\xf3", "\x48", "\xf3\x48"};
    static struct book k;
    struct bench b;
    unsigned faults = 0, bad = 0;
    bench_init(&b);
    book_clear(&k);
    if (execute(&b, (const uint8_t *)"\x0f\xae\xf0", 3) != SIGTRAP) // MFENCE
        return 3;
    for (unsigned n = 0; n < COUNT(prefixes) * COUNT(groups) * 256; n++) {
        const char *prefix = prefixes[n / 256 / COUNT(groups)];
        unsigned size = (unsigned)strlen(prefix);
        uint8_t insn[32] = {0}, *p = k.bytes + 2000;
        memcpy(insn, prefix, size);
        insn[size] = 0x0f;
        insn[size + 1] = groups[n / 256 % COUNT(groups)];
        insn[size + 2] = (uint8_t)n;
        unsigned length = size + 3 + modrm_tail(insn + size + 3, (uint8_t)n);
        memset(p, 0x90, 32);
        memcpy(p, insn, length);
        ZydisMnemonic m = decode(0, insn, LONGEST).m;
        if (scan_page(k.bytes, &strict, NULL) || is_harmless(m))
            continue;
        // Processors may take no notice of a prefix that has no meaning there.
        if (m == ZYDIS_MNEMONIC_INVALID && is_harmless(decode(0, insn + size, LONGEST).m))
            continue;
        int sig = execute(&b, insn, length);
        faults++;
        if (sig != SIGSEGV && sig != SIGILL && bad++ < 20) {
            printf("signal %d, %s:", sig, m ? ZydisMnemonicGetString(m) : "?");
            for (unsigned i = 0; i < length; i++)
                printf(" %02x", insn[i]);
            printf("\n");
        }
    }
    printf("%u instructions of groups 6, 7, 9 and 15 fault here\n", faults);
    fflush(stdout);
    return bad ? 1 : faults < 1000 ? 2 : 0;
}

static int fault_others(void)
{
    static const struct sample {
        const char *name, *bytes;
        unsigned length;
    } samples[] = {
#define SAMPLE(name, bytes) {name, bytes, sizeof bytes - 1}
        SAMPLE("clts", "\x0f\x06"), SAMPLE("sysret", "\x0f\x07"), SAMPLE("sysretq", "\x48\x0f\x07"),
        SAMPLE("invd", "\x0f\x08"), SAMPLE("wbinvd", "\x0f\x09"), SAMPLE("wbnoinvd", "\xf3\x0f\x09"),
        SAMPLE("mov rax, cr0", "\x0f\x20\xc0"), SAMPLE("mov rax, cr3", "\x0f\x20\xd8"),
        SAMPLE("mov rax, cr8", "\x44\x0f\x20\xc0"), SAMPLE("mov rax, dr7", "\x0f\x21\xf8"),
        SAMPLE("mov cr4, rax", "\x0f\x22\xe0"), SAMPLE("mov dr0, rax", "\x0f\x23\xc0"),
        SAMPLE("wrmsr", "\x0f\x30"), SAMPLE("rdmsr", "\x0f\x32"), SAMPLE("sysexit", "\x0f\x35"),
        SAMPLE("getsec", "\x0f\x37"), SAMPLE("rsm", "\x0f\xaa"), SAMPLE("vmread", "\x0f\x78\xc0"),
        SAMPLE("vmwrite", "\x0f\x79\xc0"), SAMPLE("invept", "\x66\x0f\x38\x80\x00"),
        SAMPLE("invvpid", "\x66\x0f\x38\x81\x00"), SAMPLE("invpcid", "\x66\x0f\x38\x82\x00"),
        SAMPLE("hlt", "\xf4"), SAMPLE("cli", "\xfa"), SAMPLE("sti", "\xfb"), SAMPLE("in al, imm", "\xe4\x80"),
        SAMPLE("in eax, imm", "\xe5\x80"), SAMPLE("out imm, al", "\xe6\x80"),
        SAMPLE("out imm, eax", "\xe7\x80"), SAMPLE("in al, dx", "\xec"), SAMPLE("in eax, dx", "\xed"),
        SAMPLE("out dx, al", "\xee"), SAMPLE("out dx, eax", "\xef"), SAMPLE("insb", "\x6c"),
        SAMPLE("insd", "\x6d"), SAMPLE("outsb", "\x6e"), SAMPLE("outsd", "\x6f"),
        SAMPLE("ud0", "\x0f\xff\xc0"), SAMPLE("ud1", "\x0f\xb9\xc0"), SAMPLE("ud2", "\x0f\x0b"),
        SAMPLE("hreset", "\xf3\x0f\x3a\xf0\xc0\x00"), SAMPLE("wrussd", "\x66\x0f\x38\xf5\x00"),
        SAMPLE("wrssd", "\x0f\x38\xf6\x00"), SAMPLE("setssbsy", "\xf3\x0f\x01\xe8"),
        SAMPLE("loadiwkey", "\xf3\x0f\x38\xdc\xc0"), SAMPLE("encodekey128", "\xf3\x0f\x38\xfa\xc0"),
#undef SAMPLE
    };
    static struct book k;
    struct bench b;
    unsigned bad = 0;
    bench_init(&b);
    book_clear(&k);
    for (unsigned i = 0; i < COUNT(samples); i++) {
        const struct sample *s = &samples[i];
        memcpy(k.bytes + 100, s->bytes, s->length);
        if (scan_page(k.bytes, &strict, NULL)) {
            printf("%s doesn't pass\n", s->name);
            bad++;
        }
        memset(k.bytes + 100, 0x90, s->length);
        int sig = execute(&b, (const uint8_t *)s->bytes, s->length);
        if (sig != SIGSEGV && sig != SIGILL) {
            printf("signal %d, %s\n", sig, s->name);
            bad++;
        }
    }
    unsigned a, vendor, c, d;
    __asm__("cpuid" : "=a"(a), "=b"(vendor), "=c"(c), "=d"(d) : "a"(0), "c"(0));
    if (vendor == 0x68747541 && execute(&b, (const uint8_t *)"\x0f\x34", 2) != SIGILL) { // "Auth"
        printf("sysenter\n");
        bad++;
    }
    fflush(stdout);
    return bad ? 1 : 0;
}

static void in_child(int (*f)(void))
{
    fflush(stdout);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(f());
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static void what_passes_in_the_groups_faults_or_is_harmless(void **state)
{
    (void)state;
    in_child(fault_groups);
}

static void privileged_instructions_pass_and_fault(void **state)
{
    (void)state;
    in_child(fault_others);
}

// ---- programs

struct text { // the pages of a file's code, and 16 bytes
    uint8_t *bytes;
    unsigned pages;
};

static bool text_add(struct text *t, FILE *f, const Elf64_Phdr *p)
{
    size_t start = p->p_offset & ~(size_t)(PAGE - 1), size = p->p_offset + p->p_filesz - start;
    unsigned pages = (unsigned)((size + PAGE - 1) / PAGE);
    uint8_t *bytes = realloc(t->bytes, (size_t)(t->pages + pages + 1) * PAGE);
    if (!bytes)
        return false;
    t->bytes = bytes;
    bytes += (size_t)t->pages * PAGE;
    memset(bytes, 0, (size_t)(pages + 1) * PAGE);
    if (fseek(f, (long)start, SEEK_SET) || fread(bytes, size, 1, f) != 1)
        return false;
    t->pages += pages;
    return true;
}

static bool text_load(struct text *t, const char *path)
{
    FILE *f = fopen(path, "rb");
    Elf64_Ehdr e;
    *t = (struct text){0};
    if (!f)
        return false;
    bool ok = fread(&e, sizeof e, 1, f) == 1 && !memcmp(e.e_ident, ELFMAG, SELFMAG) && e.e_ident[EI_CLASS] == ELFCLASS64;
    for (unsigned i = 0; ok && i < e.e_phnum; i++) {
        Elf64_Phdr p;
        ok = !fseek(f, (long)(e.e_phoff + i * sizeof p), SEEK_SET) && fread(&p, sizeof p, 1, f) == 1 &&
             (p.p_type != PT_LOAD || !(p.p_flags & PF_X) || text_add(t, f, &p));
    }
    fclose(f);
    return ok && t->pages;
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void text_report(const struct text *t, const char *name, const struct scan_rules *r, const char *rules)
{
    unsigned count[SCAN_CAUSES] = {0};
    for (unsigned i = 0; i < t->pages; i++)
        count[scan_page(t->bytes + (size_t)i * PAGE, r, NULL)]++;
    printf("%-12.12s %-9s %6u pages:", name, rules, t->pages);
    for (unsigned c = 0; c < SCAN_CAUSES; c++)
        printf("  %s %.1f %%", cause_name[c], 100.0 * count[c] / t->pages);
    printf("\n");
}

static void text_time(const struct text *t, const char *name, const struct scan_rules *r)
{
    uint64_t best = UINT64_MAX;
    for (unsigned pass = 0; pass < 5; pass++) {
        uint64_t start = now_ns();
        for (unsigned i = 0; i < t->pages; i++)
            scan_page(t->bytes + (size_t)i * PAGE, r, NULL);
        uint64_t ns = now_ns() - start;
        best = ns < best ? ns : best;
    }
    printf("%-12.12s %lu ns a page\n", name, best / t->pages);
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static void report(const char *path)
{
    struct text t;
    if (text_load(&t, path)) {
        text_report(&t, base_name(path), &strict, "strict");
        text_report(&t, base_name(path), &processor, "processor");
        text_report(&t, base_name(path), &easy, "system");
        text_time(&t, base_name(path), &easy);
    }
    free(t.bytes);
}

static void code_of_programs_is_judged_as_zydis_decodes_it(void **state)
{
    (void)state;
    static const char *const files[] = {"/bin/bash", "/lib/x86_64-linux-gnu/libc.so.6", "/usr/bin/python3.11",
                                        "/usr/lib/gcc/x86_64-linux-gnu/12/cc1", "/proc/self/exe"};
    for (unsigned i = 0; i < COUNT(files); i++) {
        struct text t;
        if (!text_load(&t, files[i])) {
            free(t.bytes);
            continue;
        }
        text_report(&t, base_name(files[i]), &strict, "strict");
        unsigned step = t.pages / 1000 + 1; // decoding at every offset takes 0.3 ms a page
        for (unsigned n = 0; n < t.pages; n++) {
            const struct scan_rules *r = n & 1 ? &strict : &easy;
            const uint8_t *page = t.bytes + (size_t)n * PAGE;
            unsigned offset = 0;
            enum scan_cause is = scan_page(page, r, &offset);
            if (is && !is_justified(page, offset, is, r))
                fail_at(cause_name[is], page + offset, offset);
            if (n % step)
                continue;
            int want = first_sensitive(page, 0, PAGE, r);
            if (want >= 0 && want < (int)PAGE && (!is || want < (int)offset))
                fail_at("not seen", page + want, (unsigned)want);
        }
        free(t.bytes);
    }
}

int main(int argc, char **argv)
{
    ZydisDecoderInit(&decoder[0], ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    ZydisDecoderInit(&decoder[1], ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_STACK_WIDTH_32);
    if (argc > 1) {
        for (int i = 1; i < argc; i++)
            report(argv[i]);
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_place_hides_a_sensitive_instruction),
        cmocka_unit_test(int_80h_fails_a_page_and_no_other_int_does),
        cmocka_unit_test(nothing_else_fails_a_page),
        cmocka_unit_test(an_instruction_without_0f_or_cd_is_none_of_them),
        cmocka_unit_test(random_pages_are_judged_as_zydis_decodes_them),
        cmocka_unit_test(what_passes_in_the_groups_faults_or_is_harmless),
        cmocka_unit_test(privileged_instructions_pass_and_fault),
        cmocka_unit_test(code_of_programs_is_judged_as_zydis_decodes_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
