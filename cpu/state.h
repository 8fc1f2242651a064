// Architectural state of one virtual CPU: what the SDM calls the machine state, and nothing about any engine.
//
// Conventions that hold everywhere:
//  - rflags holds every flag except IF and DF, which live in their own bytes (iflag, dflag) so that translated code
//    can write them without touching the host's flags. Use cpu_rflags()/cpu_set_rflags() (cpu/cpu.h) for the whole.
//  - a segment is its selector and its hidden part. `attr` has the layout of VMCS access rights (SDM 3C 25.4.1):
//    bits 3:0 type, 4 S, 6:5 DPL, 7 P, 12 AVL, 13 L, 14 D/B, 15 G, 16 unusable.
//  - `limit` is in bytes, granularity already applied.
#pragma once
#include <stdbool.h>
#include <stdint.h>

enum gpr { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 };
enum seg { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS, SEG_COUNT };

#define SEG_TYPE_MASK  0xfu
#define SEG_TYPE_A     0x1u // accessed
#define SEG_TYPE_W     0x2u // data: writable; code: readable (R)
#define SEG_TYPE_E     0x4u // data: expand-down; code: conforming (C)
#define SEG_TYPE_CODE  0x8u
#define SEG_S          0x10u
#define SEG_DPL_SHIFT  5
#define SEG_DPL(attr)  (((attr) >> SEG_DPL_SHIFT) & 3u)
#define SEG_P          0x80u
#define SEG_AVL        0x1000u
#define SEG_L          0x2000u
#define SEG_DB         0x4000u
#define SEG_G          0x8000u
#define SEG_UNUSABLE   0x10000u

struct segment {
    uint64_t base;
    uint32_t limit; // bytes
    uint32_t attr;
    uint16_t sel;
    uint16_t pad[3];
};

struct dtable {
    uint64_t base;
    uint32_t limit; // bytes, 16 bits used
    uint32_t pad;
};

#define FL_CF   0x00000001u
#define FL_ONE  0x00000002u
#define FL_PF   0x00000004u
#define FL_AF   0x00000010u
#define FL_ZF   0x00000040u
#define FL_SF   0x00000080u
#define FL_TF   0x00000100u
#define FL_IF   0x00000200u
#define FL_DF   0x00000400u
#define FL_OF   0x00000800u
#define FL_IOPL 0x00003000u
#define FL_NT   0x00004000u
#define FL_RF   0x00010000u
#define FL_VM   0x00020000u
#define FL_AC   0x00040000u
#define FL_VIF  0x00080000u
#define FL_VIP  0x00100000u
#define FL_ID   0x00200000u
#define FL_DEFINED 0x003f7fd5u // every flag there is, without bit 1
#define FL_ARITH (FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF | FL_OF)

#define CR0_PE 0x00000001u
#define CR0_MP 0x00000002u
#define CR0_EM 0x00000004u
#define CR0_TS 0x00000008u
#define CR0_ET 0x00000010u
#define CR0_NE 0x00000020u
#define CR0_WP 0x00010000u
#define CR0_AM 0x00040000u
#define CR0_NW 0x20000000u
#define CR0_CD 0x40000000u
#define CR0_PG 0x80000000u

#define CR4_VME        (1u << 0)
#define CR4_PVI        (1u << 1)
#define CR4_TSD        (1u << 2)
#define CR4_DE         (1u << 3)
#define CR4_PSE        (1u << 4)
#define CR4_PAE        (1u << 5)
#define CR4_MCE        (1u << 6)
#define CR4_PGE        (1u << 7)
#define CR4_PCE        (1u << 8)
#define CR4_OSFXSR     (1u << 9)
#define CR4_OSXMMEXCPT (1u << 10)
#define CR4_UMIP       (1u << 11)
#define CR4_FSGSBASE   (1u << 16)
#define CR4_PCIDE      (1u << 17)
#define CR4_OSXSAVE    (1u << 18)
#define CR4_SMEP       (1u << 20)
#define CR4_SMAP       (1u << 21)
#define CR4_PKE        (1u << 22)

#define EFER_SCE  (1u << 0)
#define EFER_LME  (1u << 8)
#define EFER_LMA  (1u << 10)
#define EFER_NXE  (1u << 11)
#define EFER_FFXSR (1u << 14)
#define EFER_AUTOIBRS (1u << 21)

enum vector {
    EXC_DE = 0, EXC_DB = 1, EXC_NMI = 2, EXC_BP = 3, EXC_OF = 4, EXC_BR = 5, EXC_UD = 6, EXC_NM = 7, EXC_DF = 8,
    EXC_TS = 10, EXC_NP = 11, EXC_SS = 12, EXC_GP = 13, EXC_PF = 14, EXC_MF = 16, EXC_AC = 17, EXC_MC = 18, EXC_XM = 19,
};

// Blocking of events until the next instruction completes (SDM 3A 6.8.3).
#define SHADOW_STI    1u
#define SHADOW_MOV_SS 2u
#define SHADOW_NMI    4u // NMIs blocked until IRET

enum activity { ACT_RUNNING, ACT_HALTED, ACT_SHUTDOWN };

#define XSAVE_AREA_SIZE 4096

struct cpu_state {
    uint64_t gpr[16];
    uint64_t rip;    // offset in CS
    uint64_t rflags; // without IF and DF
    uint8_t iflag;   // 0 or 1
    uint8_t dflag;   // 0 or 1
    uint8_t cpl;     // current privilege level, always SS.DPL resp. 0 in real and 3 in v8086 mode
    uint8_t shadow;  // SHADOW_*
    uint32_t activity;

    struct segment seg[SEG_COUNT];
    struct segment ldtr, tr;
    struct dtable gdtr, idtr;

    uint64_t cr0, cr2, cr3, cr4;
    uint64_t dr[8]; // 4 and 5 unused
    uint64_t xcr0;
    uint64_t efer, star, lstar, cstar, sfmask, kernel_gs_base, tsc_aux;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
    uint64_t apic_base, pat, misc_enable, spec_ctrl;
    uint64_t mtrr_def_type, mtrr_fix[11], mtrr_var[16];
    uint64_t tsc_offset; // guest TSC = cpu_tsc_source() + tsc_offset
    uint64_t kvmclock_system, kvmclock_wall;
    uint64_t tsc_adjust; // IA32_TSC_ADJUST: what the guest has added to its TSC
    uint64_t mcg_status;
    uint64_t pdpte[4]; // PAE paging: loaded by MOV CR3 (SDM 3A 4.4.1)

    // x87, SSE, AVX…: the standard (non-compacted) XSAVE format. While guest code runs it is in the host's registers.
    _Alignas(64) uint8_t xsave[XSAVE_AREA_SIZE];
};
