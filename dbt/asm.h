// A byte emitter for the few host instructions the translator makes itself. Guest instructions are re-encoded in
// dbt/encode.c. Code is written through the writable mapping of the cache and runs from the executable one.
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

// Host registers by number.
enum host_reg { H_AX, H_CX, H_DX, H_BX, H_SP, H_BP, H_SI, H_DI, H_8, H_9, H_10, H_11, H_12, H_13, H_14, H_15 };

enum host_cond { CC_O, CC_NO, CC_B, CC_AE, CC_E, CC_NE, CC_BE, CC_A, CC_S, CC_NS, CC_P, CC_NP, CC_L, CC_GE, CC_LE, CC_G };

// A field of emitted code that depends on where the code lies, or on the guest address it was translated at (dbt/rebase.c).
enum reloc_kind {
    RELOC_REL32,  // distance to a place, from the field's end
    RELOC_RIP64,  // a guest address
    RELOC_RIP32,  // its low half
    RELOC_TLB,    // address of a guest address's entry in a table of the TLB
    RELOC_INDEX,  // its number there
    RELOC_EXIT,   // pointer to one of the block's exits
    RELOC_BRANCH, // to a struct branch
    RELOC_SITE,   // to a struct site
};
struct reloc {
    uint16_t at : 13; // offset in the block's code
    uint16_t kind : 3;
};
#define RELOC_REACH (1u << 13)

struct asm_buf {
    uint8_t *p;      // next byte, in the writable mapping
    uint8_t *end;    // nothing is written at or beyond; sets overflow instead
    intptr_t to_run; // executable address minus writable address
    int overflow;
    uint8_t *begin;
    struct reloc *reloc; // [MAX_RELOCS]; null: nobody asks
    unsigned reloc_count;
    bool fixed; // the code is right at its guest address only
};
#define MAX_RELOCS 1024

static inline uint64_t asm_here(const struct asm_buf *a) { return (uint64_t)(a->p + a->to_run); }

// The field has just been written.
static inline void a_note(struct asm_buf *a, enum reloc_kind kind)
{
    if (!a->reloc)
        return;
    unsigned size = kind == RELOC_RIP64 ? 8 : 4;
    if (a->reloc_count == MAX_RELOCS)
        a->fixed = true;
    else
        a->reloc[a->reloc_count++] = (struct reloc){(uint16_t)((a->p - size - a->begin) & (RELOC_REACH - 1)), (uint16_t)kind};
}

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

// An instruction, or what is known of it, is put together in a register and stored at once: byte by byte, every store
// would wait for the one before it to have moved `p`.
static inline void a_put(struct asm_buf *a, uint64_t bytes, unsigned n) // the low n of them, at most 8
{
    uint8_t *p = a->p;
    if (a->end - p < 8) { // all 8 are stored
        a->overflow = 1;
        return;
    }
    memcpy(p, &bytes, 8);
    a->p = p + n;
}
// REX prefix for operand size `size` (8 sets W), 0: none is needed.
static inline unsigned rex_bits(unsigned size, unsigned reg, unsigned index, unsigned base)
{
    unsigned rex = (size == 8 ? 8 : 0) | (reg & 8) >> 1 | (index & 8) >> 2 | (base & 8) >> 3;
    return rex ? 0x40 | rex : 0;
}
static inline unsigned modrm_bits(unsigned mod, unsigned reg, unsigned rm) { return mod << 6 | (reg & 7) << 3 | (rm & 7); }
// An instruction of n bytes, at most 7, and its REX prefix if that is not 0.
static inline void a_op(struct asm_buf *a, unsigned rex, uint64_t bytes, unsigned n)
{
    if (rex)
        a_put(a, bytes << 8 | rex, n + 1);
    else
        a_put(a, bytes, n);
}
// An instruction of one opcode byte on `reg` and the absolute address `addr`, as RIP-relative; `after` bytes of immediate follow.
static inline void a_op_abs(struct asm_buf *a, unsigned rex, unsigned opcode, unsigned reg, uint64_t addr, unsigned after)
{
    uint32_t disp = (uint32_t)(addr - (asm_here(a) + 6 + (rex != 0) + after));
    a_op(a, rex, opcode | modrm_bits(0, reg, 5) << 8 | (uint64_t)disp << 16, 6);
    a_note(a, RELOC_REL32);
}

// REX prefix if needed (or forced).
static inline void a_rex(struct asm_buf *a, unsigned size, unsigned reg, unsigned index, unsigned base, int force)
{
    unsigned rex = rex_bits(size, reg, index, base);
    if (rex || force)
        a8(a, 0x40 | rex);
}
static inline void a_modrm(struct asm_buf *a, unsigned mod, unsigned reg, unsigned rm)
{
    a8(a, modrm_bits(mod, reg, rm));
}
static inline unsigned scale_bits(unsigned scale) { return scale == 8 ? 3u << 6 : scale == 4 ? 2u << 6 : scale == 2 ? 1u << 6 : 0; }
// ModRM (and SIB, displacement) for [base + index*scale + disp]; index -1 for none. *n: bytes, at most 6.
static inline uint64_t mem_bits(unsigned *n, unsigned reg, unsigned base, int index, unsigned scale, int32_t disp)
{
    unsigned mod = disp == 0 && (base & 7) != H_BP ? 0 : disp >= -128 && disp <= 127 ? 1 : 2;
    bool sib = index >= 0 || (base & 7) == H_SP;
    uint64_t bits = modrm_bits(mod, reg, sib ? 4 : base);
    if (sib)
        bits |= (scale_bits(scale) | (index >= 0 ? (unsigned)index & 7 : 4) << 3 | (base & 7)) << 8;
    *n = 1u + sib;
    bits |= (uint64_t)(uint32_t)disp << 8 * *n;
    *n += mod == 1 ? 1 : mod == 2 ? 4 : 0;
    return bits;
}
static inline void a_mem(struct asm_buf *a, unsigned reg, unsigned base, int index, unsigned scale, int32_t disp)
{
    unsigned n;
    uint64_t bits = mem_bits(&n, reg, base, index, scale, disp);
    a_put(a, bits, n);
}
// ModRM for the absolute address `addr` as RIP-relative; `after` bytes of immediate follow.
static inline void a_abs(struct asm_buf *a, unsigned reg, uint64_t addr, unsigned after)
{
    a_put(a, modrm_bits(0, reg, 5) | (uint64_t)(uint32_t)(addr - (asm_here(a) + 5 + after)) << 8, 5);
    a_note(a, RELOC_REL32);
}
// ModRM for [addr + index*8], addr below 2 GiB.
static inline void a_table(struct asm_buf *a, unsigned reg, uint64_t addr, unsigned index)
{
    a_put(a, modrm_bits(0, reg, 4) | (3u << 6 | (index & 7) << 3 | 5) << 8 | (addr & 0xffffffff) << 16, 6);
}
// ModRM for [addr], addr below 2 GiB.
static inline void a_low(struct asm_buf *a, unsigned reg, uint64_t addr)
{
    a_put(a, modrm_bits(0, reg, 4) | 0x25 << 8 | (addr & 0xffffffff) << 16, 6);
}

static inline void a_mov_rr(struct asm_buf *a, unsigned size, unsigned dst, unsigned src)
{
    a_op(a, rex_bits(size, src, 0, dst), 0x89 | modrm_bits(3, src, dst) << 8, 2);
}
static inline void a_load_abs(struct asm_buf *a, unsigned size, unsigned dst, uint64_t addr)
{
    a_op_abs(a, rex_bits(size, dst, 0, 0), 0x8b, dst, addr, 0);
}
static inline void a_store_abs(struct asm_buf *a, unsigned size, uint64_t addr, unsigned src)
{
    a_op_abs(a, rex_bits(size, src, 0, 0), 0x89, src, addr, 0);
}
static inline void a_store_imm8_abs(struct asm_buf *a, uint64_t addr, uint8_t imm)
{
    a_op_abs(a, 0, 0xc6, 0, addr, 1);
    a8(a, imm);
}
static inline void a_store_imm32_abs(struct asm_buf *a, unsigned size, uint64_t addr, uint32_t imm)
{
    a_op_abs(a, rex_bits(size, 0, 0, 0), 0xc7, 0, addr, 4);
    a32(a, imm);
}
static inline void a_inc_abs(struct asm_buf *a, uint64_t addr) // inc qword [addr]: changes flags
{
    a_op_abs(a, 0x48, 0xff, 0, addr, 0);
}
// An instruction of one opcode byte on `reg` and [addr + index*8], addr below 2 GiB.
static inline void a_op_table(struct asm_buf *a, unsigned opcode, unsigned reg, uint64_t addr, unsigned index)
{
    a_op(a, rex_bits(8, reg, index, 0), opcode | modrm_bits(0, reg, 4) << 8 | (3u << 6 | (index & 7) << 3 | 5) << 16 | (addr & 0xffffffff) << 24, 7);
}
static inline void a_load_table(struct asm_buf *a, unsigned dst, uint64_t addr, unsigned index)
{
    a_op_table(a, 0x8b, dst, addr, index);
}
static inline void a_lea(struct asm_buf *a, unsigned size, unsigned dst, unsigned base, int index, unsigned scale, int32_t disp)
{
    unsigned n;
    uint64_t mem = mem_bits(&n, dst, base, index, scale, disp);
    a_op(a, rex_bits(size, dst, index >= 0 ? (unsigned)index : 0, base), 0x8d | mem << 8, 1 + n);
}
// LEA without a base: [index*scale + disp32].
static inline void a_lea_index(struct asm_buf *a, unsigned size, unsigned dst, unsigned index, unsigned scale, int32_t disp)
{
    unsigned sib = scale_bits(scale) | (index & 7) << 3 | 5;
    a_op(a, rex_bits(size, dst, index, 0), 0x8d | modrm_bits(0, dst, 4) << 8 | sib << 16 | (uint64_t)(uint32_t)disp << 24, 7);
}
// Shortest MOV of a constant to the whole register; flags untouched.
static inline void a_mov_imm(struct asm_buf *a, unsigned dst, uint64_t imm)
{
    if (imm <= UINT32_MAX) {
        a_op(a, rex_bits(4, 0, 0, dst), 0xb8 | (dst & 7) | imm << 8, 5);
    } else if ((int64_t)imm == (int32_t)imm) {
        a_op(a, rex_bits(8, 0, 0, dst), 0xc7 | modrm_bits(3, 0, dst) << 8 | imm << 16, 6);
    } else {
        a_op(a, rex_bits(8, 0, 0, dst), 0xb8 | (dst & 7), 1);
        a64(a, imm);
    }
}
// The same of a guest address that moves with the code.
static inline void a_mov_rip(struct asm_buf *a, unsigned dst, uint64_t rip)
{
    a_mov_imm(a, dst, rip);
    a_note(a, RELOC_RIP64);
    a->fixed |= rip <= UINT32_MAX || (int64_t)rip == (int32_t)rip;
}
// The same of a pointer to something of the block's own.
static inline void a_mov_own(struct asm_buf *a, unsigned dst, const void *low, enum reloc_kind kind)
{
    a_mov_imm(a, dst, (uint64_t)low);
    a_note(a, kind);
}
// op: 0 ADD 1 OR 4 AND 5 SUB 7 CMP, register with immediate
static inline void a_alu_imm(struct asm_buf *a, unsigned size, unsigned op, unsigned reg, int32_t imm)
{
    bool is_short = imm >= -128 && imm <= 127;
    a_op(a, rex_bits(size, 0, 0, reg), (is_short ? 0x83 : 0x81) | modrm_bits(3, op, reg) << 8 | (uint64_t)(uint32_t)imm << 16, is_short ? 3 : 6);
}
static inline void a_movzx16(struct asm_buf *a, unsigned dst, unsigned src)
{
    a_op(a, rex_bits(4, dst, 0, src), 0xb70f | modrm_bits(3, dst, src) << 16, 3);
}
// Jumps return the address of their rel32, to be given to a_patch().
static inline uint8_t *a_jmp(struct asm_buf *a)
{
    a_put(a, 0xe9, 5);
    return a->p - 4;
}
static inline uint8_t *a_jcc(struct asm_buf *a, unsigned cc)
{
    a_put(a, 0x800f | cc << 8, 6);
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
    a_put(a, 0xe9 | (uint64_t)(uint32_t)(target - (asm_here(a) + 5)) << 8, 5);
    a_note(a, RELOC_REL32);
}
static inline void a_call_to(struct asm_buf *a, uint64_t target)
{
    a_put(a, 0xe8 | (uint64_t)(uint32_t)(target - (asm_here(a) + 5)) << 8, 5);
    a_note(a, RELOC_REL32);
}
static inline void a_jcc_to(struct asm_buf *a, unsigned cc, uint64_t target)
{
    a_put(a, 0x800f | cc << 8 | (uint64_t)(uint32_t)(target - (asm_here(a) + 6)) << 16, 6);
    a_note(a, RELOC_REL32);
}
