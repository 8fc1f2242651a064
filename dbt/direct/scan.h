// Whether a page of guest user code may run raw: untranslated, by the host's processor at CPL 3.
//
// Most of what a VMM must not let a guest do faults at CPL 3 and is an event then, and a seccomp filter makes one of
// system calls. What remains are instructions that answer, from the host: CPUID, SGDT, RDTSC and so on. A page passes
// if none of them can begin in it, at whatever byte guest code enters: a jump into the middle of an instruction is
// valid too. All of them but INT 80h have an opcode of 0F and one more byte, most a ModRM behind it, so looking at every 0F
// and every CD is enough.
//
// Code crosses pages. An instruction whose opcode is cut by the page's end, or whose meaning hangs on a prefix that may
// lie in front of its start, fails the page (SCAN_EDGE) if it could be one of those: the neighbour of today is not the
// one of tomorrow. So each page is judged alone, and any two that pass may be neighbours. That holds in compatibility
// mode too, where RETF and IRET can lead.
//
// What the scan leaves to the caller:
// - The page's bytes don't change unnoticed between scan and run.
// - What far branches, moves to segment registers and POPF have done is looked at when the guest stops; selectors and flags
//   that guest code can read are the guest's own.
// - An instruction set that the guest's processor model lacks and the host has is computation that should have raised
//   #UD; the scan looks only for those with a rule below. The same goes for what CR0 and CR4 forbid (AVX, FSGSBASE).
// - The host is an Intel or AMD processor (VIA's PadLock isn't looked for) without LWP, and APX is off (XCR0[19]): with it,
//   the prefix REX2 (D5) takes the place of 0F. Shadow stacks, Key Locker and SMX are off, as Linux has them unless a
//   process asks.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#define SCAN_PAGE 4096u

enum scan_cause {
    SCAN_PASSES,
    SCAN_CPUID,
    SCAN_DESCRIPTOR, // SGDT SIDT SLDT STR SMSW (the host may emulate UMIP), LAR LSL VERR VERW
    SCAN_XSTATE,     // XGETBV, XSAVE and its kin
    SCAN_TIME,       // RDTSC RDTSCP RDPID RDPMC RDPRU
    SCAN_INT80,      // Linux takes it for a system call of 32 bits, and leaves as many of RAX before seccomp makes an event of it
    SCAN_SYSENTER,   // no event for seccomp: it lands in the vDSO of the host
    SCAN_OTHER,
    SCAN_EDGE,       // depends on the page before or behind
    SCAN_CAUSES,
};

// True: the instructions may pass. All false is the strictest.
struct scan_rules {
    bool same_xcr0;   // XCR0 is the host's, and so is what CPUID leaf 0Dh says: XGETBV, XSAVE and its kin
    bool same_tsc;    // the guest's time-stamp counter is the host's, and CR4.TSD is clear: RDTSC (alone)
    bool no_sysenter; // SYSENTER raises #UD here: AMD's processors in long mode
    // Values that user code of both systems finds alike, as a rule: 64-bit Linux on Linux.
    bool same_ldtr;   // SLDT to memory (0 without an LDT)
    bool same_tr;     // STR to memory (40h)
    bool same_cr0;    // SMSW to memory (33h)
    bool no_umip;     // CR4.UMIP is clear on the host: the same three to registers too (all of CR0 is alike then). Where it
                      // is set, Linux emulates them for user code, and leaves bits 63:32 of a register as they were
    // The descriptors with DPL 3, or conforming, at the same selectors but for base and limit: VERR, VERW, LAR. Not LSL:
    // Linux keeps the number of the CPU in a limit.
    bool same_descriptors;
    bool clzero;      // the guest has CLZERO, or the host has not
    bool rdrand;      // the same for RDRAND
    bool rdseed;      // and RDSEED
};

// Makes no call and uses general registers only. *offset (it may be null): where the opcode of the first finding is.
enum scan_cause scan_page(const uint8_t page[SCAN_PAGE], const struct scan_rules *rules, unsigned *offset);
