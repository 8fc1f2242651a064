// The guest's vector registers while the translator proper runs. Zydis and libc may use all of them, but nothing in there
// computes with floating point: so x87, MXCSR and XCR0's other parts stay live, and plain stores do. XSAVE and XRSTOR,
// which cpu_fpu_save() uses, took 1,200 cycles a block where these take 150.
#include "cpu/model.h"
#include "dbt/dbt.h"

#define ALL16(op) op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9) op(10) op(11) op(12) op(13) op(14) op(15)
#define HIGH16(op) \
    op(16) op(17) op(18) op(19) op(20) op(21) op(22) op(23) op(24) op(25) op(26) op(27) op(28) op(29) op(30) op(31)
#define MASKS(op) op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7)

#define SAVE_ZMM(n) "vmovdqa64 %%zmm" #n ", 64*" #n "(%0)\n\t"
#define LOAD_ZMM(n) "vmovdqa64 64*" #n "(%0), %%zmm" #n "\n\t"
#define SAVE_YMM(n) "vmovdqa %%ymm" #n ", 64*" #n "(%0)\n\t"
#define LOAD_YMM(n) "vmovdqa 64*" #n "(%0), %%ymm" #n "\n\t"
#define SAVE_XMM(n) "movdqa %%xmm" #n ", 64*" #n "(%0)\n\t"
#define LOAD_XMM(n) "movdqa 64*" #n "(%0), %%xmm" #n "\n\t"
#define SAVE_K(n) "kmovq %%k" #n ", 2048+8*" #n "(%0)\n\t"
#define LOAD_K(n) "kmovq 2048+8*" #n "(%0), %%k" #n "\n\t"
#define SAVE_K16(n) "kmovw %%k" #n ", 2048+8*" #n "(%0)\n\t"
#define LOAD_K16(n) "kmovw 2048+8*" #n "(%0), %%k" #n "\n\t"

void vectors_save(struct dbt *d)
{
    uint8_t *at = d->vectors;
    switch (d->vector_kind) {
    case VECTORS_ZMM:
        __asm__ volatile(ALL16(SAVE_ZMM) HIGH16(SAVE_ZMM) MASKS(SAVE_K) "vzeroupper" : : "r"(at) : "memory");
        break;
    case VECTORS_ZMM_K16:
        __asm__ volatile(ALL16(SAVE_ZMM) HIGH16(SAVE_ZMM) MASKS(SAVE_K16) "vzeroupper" : : "r"(at) : "memory");
        break;
    case VECTORS_YMM: __asm__ volatile(ALL16(SAVE_YMM) "vzeroupper" : : "r"(at) : "memory"); break;
    default: __asm__ volatile(ALL16(SAVE_XMM) "" : : "r"(at) : "memory"); break;
    }
}

void vectors_load(struct dbt *d)
{
    const uint8_t *at = d->vectors;
    switch (d->vector_kind) {
    case VECTORS_ZMM: __asm__ volatile(ALL16(LOAD_ZMM) HIGH16(LOAD_ZMM) MASKS(LOAD_K) "" : : "r"(at) : "memory"); break;
    case VECTORS_ZMM_K16: __asm__ volatile(ALL16(LOAD_ZMM) HIGH16(LOAD_ZMM) MASKS(LOAD_K16) "" : : "r"(at) : "memory"); break;
    case VECTORS_YMM: __asm__ volatile(ALL16(LOAD_YMM) "" : : "r"(at) : "memory"); break;
    default: __asm__ volatile(ALL16(LOAD_XMM) "" : : "r"(at) : "memory"); break;
    }
}
