// Groups, mandatory prefixes and privileges are those of the SDM vol. 2 (appendix A of vol. 2D has the opcode maps) and of
// the APM vol. 3. What is not named here faults at CPL 3, or does what it would do in the guest.
#include "dbt/direct/scan.h"
#include <stddef.h>

typedef uint64_t __attribute__((may_alias, aligned(1))) any64;

// What follows 0F.
enum second {
    PLAIN,
    CPUID,
    LAR,
    LSL,
    TSC,
    PMC,
    SYSENTER,
    GROUP6,
    GROUP7,
    GROUP9,
    GROUP15,
};

static const uint8_t second[256] = {
    [0x00] = GROUP6, [0x01] = GROUP7,   [0x02] = LAR,   [0x03] = LSL,     [0x31] = TSC,
    [0x33] = PMC,    [0x34] = SYSENTER, [0xa2] = CPUID, [0xae] = GROUP15, [0xc7] = GROUP9,
};

enum prefix {
    PREFIX_66 = 1,
    PREFIX_F2 = 2,
    PREFIX_F3 = 4,
    PREFIX_UNSEEN = 8, // any, on the page before
};

#define LONGEST      15 // bytes of an instruction
#define LEAST_OPCODE 3  // of them behind the prefixes: 0F, the second byte, ModRM

static bool is_memory(uint8_t modrm)
{
    return modrm < 0xc0;
}

// Those that may stand in front of the opcode. Which of 66, F2 and F3 counts depends on their order, and which REX on
// where it stands; here each does.
static unsigned prefixes(const uint8_t *page, unsigned at)
{
    unsigned found = 0;
    for (unsigned n = 1; n <= LONGEST - LEAST_OPCODE; n++) {
        if (n > at)
            return found | PREFIX_UNSEEN;
        uint8_t b = page[at - n];
        switch (b) {
        case 0x66: found |= PREFIX_66; break;
        case 0xf2: found |= PREFIX_F2; break;
        case 0xf3: found |= PREFIX_F3; break;
        case 0x26: case 0x2e: case 0x36: case 0x3e: case 0x64: case 0x65: case 0x67: case 0xf0: break;
        default:
            if ((b & 0xf0) != 0x40)
                return found;
        }
    }
    return found;
}

// An instruction of its own only behind one of the prefixes in `any`.
static enum scan_cause behind(const uint8_t *page, unsigned at, unsigned any, enum scan_cause cause)
{
    unsigned p = prefixes(page, at);
    return p & any ? cause : p & PREFIX_UNSEEN ? SCAN_EDGE : SCAN_PASSES;
}

static enum scan_cause group6(const struct scan_rules *rules, uint8_t modrm)
{
    bool same, stores = is_memory(modrm) || rules->no_umip;
    switch (modrm >> 3 & 7) {
    case 0: same = stores && rules->same_ldtr; break;      // SLDT
    case 1: same = stores && rules->same_tr; break;        // STR
    case 4: case 5: same = rules->same_descriptors; break; // VERR VERW
    default: return SCAN_PASSES;                           // LLDT LTR: #GP; LKGS
    }
    return same ? SCAN_PASSES : SCAN_DESCRIPTOR;
}

static enum scan_cause group7(const uint8_t *page, unsigned at, const struct scan_rules *rules, uint8_t modrm)
{
    unsigned reg = modrm >> 3 & 7;
    if (reg == 4) // SMSW
        return rules->same_cr0 && (is_memory(modrm) || rules->no_umip) ? SCAN_PASSES : SCAN_DESCRIPTOR;
    if (is_memory(modrm))
        return reg < 2 ? SCAN_DESCRIPTOR : SCAN_PASSES; // SGDT SIDT
    switch (modrm) {
    case 0xc1: case 0xd9: // VMCALL VMMCALL (VMGEXIT): a hypervisor of the host answers
    case 0xd4: case 0xd7: // VMFUNC ENCLU
    case 0xc8: case 0xc9: // MONITOR MWAIT: some processors can be told to permit them at CPL 3
    case 0xee: case 0xef: // RDPKRU WRPKRU; CLUI STUI
    case 0xfa: case 0xfb: // MONITORX MWAITX; MCOMMIT
        return SCAN_OTHER;
    case 0xec: case 0xed: return behind(page, at, PREFIX_F3, SCAN_OTHER); // UIRET TESTUI
    case 0xfc: return rules->clzero ? SCAN_PASSES : SCAN_OTHER;
    case 0xd0: return rules->same_xcr0 ? SCAN_PASSES : SCAN_XSTATE; // XGETBV
    case 0xf9: case 0xfd: return SCAN_TIME;                         // RDTSCP RDPRU
    default: return SCAN_PASSES; // LGDT LIDT LMSW INVLPG SWAPGS, VMX's and SVM's: #UD or #GP
    }
}

static enum scan_cause group9(const uint8_t *page, unsigned at, const struct scan_rules *rules, uint8_t modrm)
{
    unsigned reg = modrm >> 3 & 7;
    if (is_memory(modrm)) // XSAVEC; XSAVES and XRSTORS raise #GP
        return reg == 4 && !rules->same_xcr0 ? SCAN_XSTATE : SCAN_PASSES;
    if (reg == 6) // F3: SENDUIPI
        return rules->rdrand ? behind(page, at, PREFIX_F3, SCAN_OTHER) : SCAN_OTHER;
    if (reg == 7) // F3: RDPID
        return rules->rdseed ? behind(page, at, PREFIX_F3, SCAN_TIME) : SCAN_OTHER;
    return SCAN_PASSES;
}

static enum scan_cause group15(const uint8_t *page, unsigned at, const struct scan_rules *rules, uint8_t modrm)
{
    unsigned reg = modrm >> 3 & 7;
    if (is_memory(modrm) && reg >= 4 && reg <= 6 && !rules->same_xcr0) // XSAVE XRSTOR XSAVEOPT; 66: CLWB
        return SCAN_XSTATE;
    if (reg == 4) // F3: PTWRITE
        return behind(page, at, PREFIX_F3, SCAN_OTHER);
    if (reg == 6 && !is_memory(modrm)) // MFENCE; TPAUSE UMWAIT UMONITOR
        return behind(page, at, PREFIX_66 | PREFIX_F2 | PREFIX_F3, SCAN_OTHER);
    return SCAN_PASSES;
}

// ModRM is on the next page: any.
static enum scan_cause cut(const uint8_t *page, unsigned at, const struct scan_rules *rules)
{
    unsigned any = 0;
    switch (second[page[at + 1]]) {
    case GROUP6:
        if (rules->same_ldtr && rules->same_tr && rules->no_umip && rules->same_descriptors)
            return SCAN_PASSES;
        break;
    case GROUP9:
        if (rules->same_xcr0 && rules->rdrand && rules->rdseed)
            any = PREFIX_F3;
        break;
    case GROUP15:
        if (rules->same_xcr0)
            any = PREFIX_66 | PREFIX_F2 | PREFIX_F3;
        break;
    default: break;
    }
    return any ? behind(page, at, any, SCAN_EDGE) : SCAN_EDGE;
}

// page[at] is 0F.
static enum scan_cause opcode(const uint8_t *page, unsigned at, const struct scan_rules *rules)
{
    if (at + 1 == SCAN_PAGE)
        return SCAN_EDGE;
    unsigned what = second[page[at + 1]];
    switch (what) {
    case PLAIN: return SCAN_PASSES;
    case CPUID: return SCAN_CPUID;
    case LAR: return rules->same_descriptors ? SCAN_PASSES : SCAN_DESCRIPTOR;
    case LSL: return SCAN_DESCRIPTOR;
    case TSC: return rules->same_tsc ? SCAN_PASSES : SCAN_TIME;
    case PMC: return SCAN_TIME;
    case SYSENTER: return rules->no_sysenter ? SCAN_PASSES : SCAN_SYSENTER;
    default: break;
    }
    if (at + 2 == SCAN_PAGE)
        return cut(page, at, rules);
    uint8_t modrm = page[at + 2];
    switch (what) {
    case GROUP6: return group6(rules, modrm);
    case GROUP7: return group7(page, at, rules, modrm);
    case GROUP9: return group9(page, at, rules, modrm);
    default: return group15(page, at, rules, modrm);
    }
}

// page[at] is CD: INT with its vector.
static enum scan_cause interrupt(const uint8_t *page, unsigned at)
{
    return at + 1 == SCAN_PAGE ? SCAN_EDGE : page[at + 1] == 0x80 ? SCAN_INT80 : SCAN_PASSES;
}

enum scan_cause scan_page(const uint8_t page[SCAN_PAGE], const struct scan_rules *rules, unsigned *offset)
{
    const uint64_t ones = 0x0101010101010101, tops = ones << 7;
    for (unsigned base = 0; base < SCAN_PAGE; base += 8) {
        // Bytes that are 0F resp. CD become zero; `found` has the top bit of every zero byte, and of some above one.
        uint64_t bytes = *(const any64 *)(page + base), w = bytes ^ ones * 0x0f, i = bytes ^ ones * 0xcd;
        for (uint64_t found = (((w - ones) & ~w) | ((i - ones) & ~i)) & tops; found; found &= found - 1) {
            unsigned at = base + (unsigned)__builtin_ctzll(found) / 8;
            enum scan_cause cause = page[at] == 0x0f ? opcode(page, at, rules) : page[at] == 0xcd ? interrupt(page, at) : SCAN_PASSES;
            if (cause != SCAN_PASSES) {
                if (offset)
                    *offset = at;
                return cause;
            }
        }
    }
    return SCAN_PASSES;
}
