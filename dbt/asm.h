// A byte emitter for the few host instructions the translator makes itself. Guest instructions are re-encoded in
// dbt/encode.c. Code is written through the writable mapping of the cache and runs from the executable one.
#pragma once
#include <stdint.h>
#include <string.h>

// Host registers by number.
enum host_reg { H_AX, H_CX, H_DX, H_BX, H_SP, H_BP, H_SI, H_DI, H_8, H_9, H_10, H_11, H_12, H_13, H_14, H_15 };

enum host_cond { CC_O, CC_NO, CC_B, CC_AE, CC_E, CC_NE, CC_BE, CC_A, CC_S, CC_NS, CC_P, CC_NP, CC_L, CC_GE, CC_LE, CC_G };

struct asm_buf {
    uint8_t *p;      // next byte, in the writable mapping
    uint8_t *end;    // nothing is written at or beyond; sets overflow instead
    intptr_t to_run; // executable address minus writable address
    int overflow;
};

static inline uint64_t asm_here(const struct asm_buf *a) { return (uint64_t)(a->p + a->to_run); }

static inline void a8(struct asm_buf *a, unsigned b)
{
    if (a->p + 1 > a->end) {
        a->overflow = 1;
        return;
    }
    *a->p++ = (uint8_t)b;
}
static inline void a_bytes(struct asm_buf *a, const void *data, unsigned n)
{
    uint8_t *p = a->p; // the bytes may alias a
    if (n > (uint64_t)(a->end - p)) {
        a->overflow = 1;
        return;
    }
    a->p = p + n;
    __builtin_memcpy(p, data, n);
}
static inline void a16(struct asm_buf *a, uint16_t v) { a_bytes(a, &v, 2); }
static inline void a32(struct asm_buf *a, uint32_t v) { a_bytes(a, &v, 4); }
static inline void a64(struct asm_buf *a, uint64_t v) { a_bytes(a, &v, 8); }

// REX prefix if needed (or forced), for operand size `size` (8 sets W).
static inline void a_rex(struct asm_buf *a, unsigned size, unsigned reg, unsigned index, unsigned base, int force)
{
    unsigned rex = (size == 8 ? 8 : 0) | (reg & 8 ? 4 : 0) | (index & 8 ? 2 : 0) | (base & 8 ? 1 : 0);
    if (rex || force)
        a8(a, 0x40 | rex);
}
static inline void a_modrm(struct asm_buf *a, unsigned mod, unsigned reg, unsigned rm)
{
    a8(a, mod << 6 | (reg & 7) << 3 | (rm & 7));
}
// ModRM (and SIB, displacement) for [base + index*scale + disp]; index -1 for none.
static inline void a_mem(struct asm_buf *a, unsigned reg, unsigned base, int index, unsigned scale, int32_t disp)
{
    unsigned mod = disp == 0 && (base & 7) != H_BP ? 0 : disp >= -128 && disp <= 127 ? 1 : 2;
    unsigned ss = scale == 8 ? 3 : scale == 4 ? 2 : scale == 2 ? 1 : 0;
    if (index >= 0 || (base & 7) == H_SP) {
        a_modrm(a, mod, reg, 4);
        a8(a, ss << 6 | (index >= 0 ? (unsigned)index & 7 : 4) << 3 | (base & 7));
    } else {
        a_modrm(a, mod, reg, base);
    }
    if (mod == 1)
        a8(a, (uint8_t)disp);
    else if (mod == 2)
        a32(a, (uint32_t)disp);
}
// ModRM for the absolute address `addr` as RIP-relative; `after` bytes of immediate follow.
static inline void a_abs(struct asm_buf *a, unsigned reg, uint64_t addr, unsigned after)
{
    a_modrm(a, 0, reg, 5);
    a32(a, (uint32_t)(addr - (asm_here(a) + 4 + after)));
}
// ModRM for [addr + index*8], addr below 2 GiB.
static inline void a_table(struct asm_buf *a, unsigned reg, uint64_t addr, unsigned index)
{
    a_modrm(a, 0, reg, 4);
    a8(a, 3u << 6 | (index & 7) << 3 | 5);
    a32(a, (uint32_t)addr);
}

// ModRM for [addr], addr below 2 GiB.
static inline void a_low(struct asm_buf *a, unsigned reg, uint64_t addr)
{
    a_modrm(a, 0, reg, 4);
    a8(a, 0x25);
    a32(a, (uint32_t)addr);
}

static inline void a_mov_rr(struct asm_buf *a, unsigned size, unsigned dst, unsigned src)
{
    a_rex(a, size, src, 0, dst, 0);
    a8(a, 0x89);
    a_modrm(a, 3, src, dst);
}
static inline void a_load_abs(struct asm_buf *a, unsigned size, unsigned dst, uint64_t addr)
{
    a_rex(a, size, dst, 0, 0, 0);
    a8(a, 0x8b);
    a_abs(a, dst, addr, 0);
}
static inline void a_store_abs(struct asm_buf *a, unsigned size, uint64_t addr, unsigned src)
{
    a_rex(a, size, src, 0, 0, 0);
    a8(a, 0x89);
    a_abs(a, src, addr, 0);
}
static inline void a_store_imm8_abs(struct asm_buf *a, uint64_t addr, uint8_t imm)
{
    a8(a, 0xc6);
    a_abs(a, 0, addr, 1);
    a8(a, imm);
}
static inline void a_store_imm32_abs(struct asm_buf *a, unsigned size, uint64_t addr, uint32_t imm)
{
    a_rex(a, size, 0, 0, 0, 0);
    a8(a, 0xc7);
    a_abs(a, 0, addr, 4);
    a32(a, imm);
}
static inline void a_inc_abs(struct asm_buf *a, uint64_t addr) // inc qword [addr]: changes flags
{
    a_bytes(a, "\x48\xff", 2);
    a_abs(a, 0, addr, 0);
}
static inline void a_load_table(struct asm_buf *a, unsigned dst, uint64_t addr, unsigned index)
{
    a_rex(a, 8, dst, index, 0, 0);
    a8(a, 0x8b);
    a_table(a, dst, addr, index);
}
static inline void a_lea(struct asm_buf *a, unsigned size, unsigned dst, unsigned base, int index, unsigned scale, int32_t disp)
{
    a_rex(a, size, dst, index >= 0 ? (unsigned)index : 0, base, 0);
    a8(a, 0x8d);
    a_mem(a, dst, base, index, scale, disp);
}
// LEA without a base: [index*scale + disp32].
static inline void a_lea_index(struct asm_buf *a, unsigned size, unsigned dst, unsigned index, unsigned scale, int32_t disp)
{
    unsigned ss = scale == 8 ? 3 : scale == 4 ? 2 : scale == 2 ? 1 : 0;
    a_rex(a, size, dst, index, 0, 0);
    a8(a, 0x8d);
    a_modrm(a, 0, dst, 4);
    a8(a, ss << 6 | (index & 7) << 3 | 5);
    a32(a, (uint32_t)disp);
}
// Shortest MOV of a constant to the whole register; flags untouched.
static inline void a_mov_imm(struct asm_buf *a, unsigned dst, uint64_t imm)
{
    if (imm <= UINT32_MAX) {
        a_rex(a, 4, 0, 0, dst, 0);
        a8(a, 0xb8 | (dst & 7));
        a32(a, (uint32_t)imm);
    } else if ((int64_t)imm == (int32_t)imm) {
        a_rex(a, 8, 0, 0, dst, 0);
        a8(a, 0xc7);
        a_modrm(a, 3, 0, dst);
        a32(a, (uint32_t)imm);
    } else {
        a_rex(a, 8, 0, 0, dst, 0);
        a8(a, 0xb8 | (dst & 7));
        a64(a, imm);
    }
}
// op: 0 ADD 1 OR 4 AND 5 SUB 7 CMP, register with immediate
static inline void a_alu_imm(struct asm_buf *a, unsigned size, unsigned op, unsigned reg, int32_t imm)
{
    a_rex(a, size, 0, 0, reg, 0);
    a8(a, imm >= -128 && imm <= 127 ? 0x83 : 0x81);
    a_modrm(a, 3, op, reg);
    if (imm >= -128 && imm <= 127)
        a8(a, (uint8_t)imm);
    else
        a32(a, (uint32_t)imm);
}
static inline void a_movzx16(struct asm_buf *a, unsigned dst, unsigned src)
{
    a_rex(a, 4, dst, 0, src, 0);
    a8(a, 0x0f);
    a8(a, 0xb7);
    a_modrm(a, 3, dst, src);
}
// Jumps return the address of their rel32, to be given to a_patch().
static inline uint8_t *a_jmp(struct asm_buf *a)
{
    a8(a, 0xe9);
    a32(a, 0);
    return a->p - 4;
}
static inline uint8_t *a_jcc(struct asm_buf *a, unsigned cc)
{
    a8(a, 0x0f);
    a8(a, 0x80 | cc);
    a32(a, 0);
    return a->p - 4;
}
static inline void a_patch(struct asm_buf *a, uint8_t *rel32)
{
    if (a->overflow)
        return;
    int32_t d = (int32_t)(a->p - (rel32 + 4));
    memcpy(rel32, &d, 4);
}
static inline void a_jmp_to(struct asm_buf *a, uint64_t target)
{
    a8(a, 0xe9);
    a32(a, (uint32_t)(target - (asm_here(a) + 4)));
}
static inline void a_call_to(struct asm_buf *a, uint64_t target)
{
    a8(a, 0xe8);
    a32(a, (uint32_t)(target - (asm_here(a) + 4)));
}
static inline void a_jcc_to(struct asm_buf *a, unsigned cc, uint64_t target)
{
    a8(a, 0x0f);
    a8(a, 0x80 | cc);
    a32(a, (uint32_t)(target - (asm_here(a) + 4)));
}
