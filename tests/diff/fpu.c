// XSAVE areas in the standard format to and from struct diff_fpu (SDM 1 13.4).
#include "tests/diff/side.h"
#include <cpuid.h>
#include <string.h>

enum {
    XSTATE_X87 = 1,
    XSTATE_SSE = 2,
    XSTATE_AVX = 4,
    XSTATE_OPMASK = 0x20,
    XSTATE_ZMM_HI256 = 0x40,
    XSTATE_HI16 = 0x80
};
enum {
    XSAVE_FCW = 0,
    XSAVE_FSW = 2,
    XSAVE_FTW = 4,
    XSAVE_FOP = 6,
    XSAVE_FIP = 8,
    XSAVE_FDP = 16,
    XSAVE_MXCSR = 24,
    XSAVE_MXCSR_MASK = 28,
    XSAVE_ST = 32,
    XSAVE_XMM = 160,
    XSAVE_BV = 512,
    XSAVE_HEADER_END = 576
};

static uint32_t component_offset(unsigned component)
{
    uint32_t eax, ebx, ecx, edx;
    __cpuid_count(0xd, component, eax, ebx, ecx, edx);
    return ebx;
}

struct xsave_layout xsave_layout_host(void)
{
    struct xsave_layout l = {.mask = XSTATE_X87 | XSTATE_SSE, .size = XSAVE_HEADER_END};
    uint32_t eax, ebx, ecx, edx;
    __cpuid(1, eax, ebx, ecx, edx);
    if (!(ecx & bit_OSXSAVE))
        return l;
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    const uint32_t avx512 = XSTATE_OPMASK | XSTATE_ZMM_HI256 | XSTATE_HI16;
    if (lo & XSTATE_AVX) {
        l.mask |= XSTATE_AVX;
        l.ymm = component_offset(2);
        l.size = l.ymm + 256;
    }
    if ((lo & avx512) == avx512) {
        l.mask |= avx512;
        l.opmask = component_offset(5);
        l.zmm_hi256 = component_offset(6);
        l.hi16_zmm = component_offset(7);
        l.size = l.hi16_zmm + 1024;
    }
    return l;
}

void fpu_to_xsave(const struct xsave_layout *l, const struct diff_fpu *f, uint8_t *area)
{
    memset(area, 0, XSAVE_ST);
    memset(area + XSAVE_XMM + 256, 0, XSAVE_HEADER_END - XSAVE_XMM - 256);
    memcpy(area + XSAVE_FCW, &f->fcw, 2);
    memcpy(area + XSAVE_FSW, &f->fsw, 2);
    area[XSAVE_FTW] = f->ftw;
    memcpy(area + XSAVE_FOP, &f->fop, 2);
    memcpy(area + XSAVE_FIP, &f->fip, 8);
    memcpy(area + XSAVE_FDP, &f->fdp, 8);
    memcpy(area + XSAVE_MXCSR, &f->mxcsr, 4);
    memset(area + XSAVE_MXCSR_MASK, 0, 4);
    memcpy(area + XSAVE_ST, f->st, 128);
    memcpy(area + XSAVE_BV, &l->mask, 8);
    for (unsigned i = 0; i < 16; i++) {
        memcpy(area + XSAVE_XMM + 16 * i, f->zmm[i], 16);
        if (l->ymm)
            memcpy(area + l->ymm + 16 * i, f->zmm[i] + 16, 16);
        if (l->zmm_hi256)
            memcpy(area + l->zmm_hi256 + 32 * i, f->zmm[i] + 32, 32);
    }
    if (l->opmask)
        memcpy(area + l->opmask, f->k, 64);
    if (l->hi16_zmm)
        memcpy(area + l->hi16_zmm, f->zmm[16], 1024);
}

void fpu_from_xsave(const struct xsave_layout *l, const uint8_t *area, struct diff_fpu *f)
{
    uint64_t bv;
    memcpy(&bv, area + XSAVE_BV, 8);
    memset(f, 0, sizeof *f);
    f->fcw = 0x37f;
    if (bv & XSTATE_X87) {
        memcpy(&f->fcw, area + XSAVE_FCW, 2);
        memcpy(&f->fsw, area + XSAVE_FSW, 2);
        f->ftw = area[XSAVE_FTW];
        memcpy(&f->fop, area + XSAVE_FOP, 2);
        f->fop &= 0x7ff;
        memcpy(&f->fip, area + XSAVE_FIP, 8);
        memcpy(&f->fdp, area + XSAVE_FDP, 8);
        for (unsigned i = 0; i < 8; i++)
            memcpy(f->st[i], area + XSAVE_ST + 16 * i, 10);
    }
    // XSAVE stores MXCSR whenever SSE or AVX is asked for, whatever XSTATE_BV says (SDM 1 13.5.2).
    memcpy(&f->mxcsr, area + XSAVE_MXCSR, 4);
    for (unsigned i = 0; i < 16; i++) {
        if (bv & XSTATE_SSE)
            memcpy(f->zmm[i], area + XSAVE_XMM + 16 * i, 16);
        if (l->ymm && (bv & XSTATE_AVX))
            memcpy(f->zmm[i] + 16, area + l->ymm + 16 * i, 16);
        if (l->zmm_hi256 && (bv & XSTATE_ZMM_HI256))
            memcpy(f->zmm[i] + 32, area + l->zmm_hi256 + 32 * i, 32);
    }
    if (l->opmask && (bv & XSTATE_OPMASK))
        memcpy(f->k, area + l->opmask, 64);
    if (l->hi16_zmm && (bv & XSTATE_HI16))
        memcpy(f->zmm[16], area + l->hi16_zmm, 1024);
}
