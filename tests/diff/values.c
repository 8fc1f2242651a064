// Initial states: values that find bugs in integer, floating-point and vector code.
#include "tests/diff/values.h"
#include <string.h>

static uint32_t float32(struct rng *r)
{
    static const uint32_t special[] = {0,          0x80000000, 0x3f800000, 0xbf800000, 0x7f800000,
                                       0xff800000, 0x7fc00000, 0xffc00001, 0x7f800001, 0x7fa00000,
                                       1,          0x807fffff, 0x00800000, 0x7f7fffff, 0x4f000000,
                                       0xcf000000, 0x4effffff, 0x5f000000, 0x3f000000, 0x4b000001};
    uint32_t x = (uint32_t)rng_next(r);
    if (rng_percent(r, 35))
        return special[x % (sizeof special / sizeof *special)];
    return (x & 0x807fffff) | (127 - 24 + rng_below(r, 56)) << 23;
}

static uint64_t float64(struct rng *r)
{
    static const uint64_t special[] = {0,
                                       1ull << 63,
                                       0x3ff0000000000000,
                                       0xbff0000000000000,
                                       0x7ff0000000000000,
                                       0xfff0000000000000,
                                       0x7ff8000000000000,
                                       0xfff8000000000001,
                                       0x7ff0000000000001,
                                       1,
                                       0x800fffffffffffff,
                                       0x0010000000000000,
                                       0x7fefffffffffffff,
                                       0x41e0000000000000,
                                       0xc1e0000000000000,
                                       0x43e0000000000000,
                                       0xc3e0000000000000,
                                       0x3fe0000000000000,
                                       0x4330000000000001,
                                       0x47f0000000000000,
                                       0x3800000000000000};
    uint64_t x = rng_next(r);
    if (rng_percent(r, 35))
        return special[x % (sizeof special / sizeof *special)];
    return (x & 0x800fffffffffffff) | (uint64_t)(1023 - 60 + rng_below(r, 130)) << 52;
}

void values_fill(struct rng *r, uint8_t *p, unsigned n)
{
    unsigned kind = rng_below(r, 8);
    for (unsigned i = 0; i < n; i += 8) {
        uint64_t v = 0;
        switch (kind) {
        case 0:
        case 1: v = (uint64_t)float32(r) << 32 | float32(r); break;
        case 2:
        case 3: v = float64(r); break;
        case 4: // small doublewords: indices, counts
            v = (rng_next(r) & 0x3f0000003f) * (rng_percent(r, 80) ? 1 : 0x101);
            break;
        case 5: v = rng_percent(r, 50) ? 0 : ~0ull; break;
        case 6: // bytes at their edges
            for (unsigned b = 0; b < 64; b += 8) {
                static const uint8_t edge[] = {0, 1, 0x7f, 0x80, 0x81, 0xff, 0x20, 0x61};
                v |= (uint64_t)edge[rng_below(r, 8)] << b;
            }
            break;
        default: v = rng_next(r);
        }
        memcpy(p + i, &v, n - i < 8 ? n - i : 8);
    }
}

// An 80-bit x87 value, or what MMX leaves there.
static void float80(struct rng *r, uint8_t *p)
{
    uint64_t significand = rng_next(r) | 1ull << 63;
    uint16_t sign = (uint16_t)(rng_next(r) & 0x8000), exponent = (uint16_t)(16383 - 70 + rng_below(r, 140));
    switch (rng_below(r, 16)) {
    case 0: significand = 0, exponent = 0; break;
    case 1:
        significand = 1ull << 63, exponent = 0x7fff; // infinity
        break;
    case 2:
        significand |= 1ull << 62, exponent = 0x7fff; // quiet NaN
        break;
    case 3:
        significand = (significand & ~(1ull << 62)) | 1, exponent = 0x7fff; // signalling NaN
        break;
    case 4:
        significand &= ~(1ull << 63), exponent = 0; // denormal
        break;
    case 5:
        exponent = 0; // pseudo-denormal
        break;
    case 6:
        significand &= ~(1ull << 63); // unnormal: unsupported
        break;
    case 7:
        exponent = 0x7fff, sign = 0x8000; // MMX
        break;
    case 8:
        significand = (rng_next(r) & 0xff) << 56 | 1ull << 63,
        exponent = (uint16_t)(16383 + rng_below(r, 64));
        break;
    case 9:
        exponent = (uint16_t)(rng_percent(r, 50) ? 1 + rng_below(r, 80) : 0x7ffe - rng_below(r, 80));
        break;
    case 10:
        significand = 1ull << 63, exponent = 16383; // one
        break;
    default: break;
    }
    exponent |= sign;
    memcpy(p, &significand, 8);
    memcpy(p + 8, &exponent, 2);
}

#define X87_FLAGS 0x3f
#define X87_SF    0x40
#define X87_ES_B  0x8080

void values_fpu_control(struct rng *r, struct diff_fpu *f)
{
    uint64_t x = rng_next(r);
    f->mxcsr = 0x1f80;
    if (rng_percent(r, 40))
        f->mxcsr |= x & 0xe07f; // rounding, FTZ, DAZ, flags
    if (rng_percent(r, 8))
        f->mxcsr &= ~(uint32_t)(x >> 16 & 0x1f80);
    x = rng_next(r);
    f->fcw = 0x37f;
    if (rng_percent(r, 40))
        f->fcw = (uint16_t)(0x7f | (x & 0xf00));
    if (rng_percent(r, 8))
        f->fcw &= (uint16_t) ~(x >> 16 & X87_FLAGS);
    f->fsw = (uint16_t)(x >> 32 & 0x7f00); // C0-C3, TOP; bit 15 follows ES
    f->fsw &= 0x7f00;
    if (rng_percent(r, 30))
        f->fsw |= (uint16_t)(x >> 48 & (X87_FLAGS | X87_SF));
    // ES is the OR of the unmasked flags: most of the time none may be pending, or every instruction is an
    // #MF.
    unsigned unmasked = f->fsw & ~f->fcw & X87_FLAGS;
    if (unmasked && rng_percent(r, 90))
        f->fsw &= (uint16_t)~unmasked;
    else if (unmasked)
        f->fsw |= X87_ES_B;
    static const uint8_t tags[] = {0, 0xff, 0xff, 0xff};
    f->ftw = rng_percent(r, 60) ? tags[rng_below(r, 4)] : (uint8_t)(x >> 56);
}

void values_fpu(struct rng *r, struct diff_fpu *f)
{
    memset(f, 0, sizeof *f);
    for (unsigned i = 0; i < 32; i++)
        values_fill(r, f->zmm[i], 64);
    for (unsigned i = 0; i < 8; i++) {
        float80(r, f->st[i]);
        f->k[i] = rng_percent(r, 30) ? ~0ull : rng_next(r);
    }
    values_fpu_control(r, f);
}

void values_memory(struct rng *r, uint8_t *p, unsigned n)
{
    for (unsigned i = 0; i + 64 <= n; i += 64)
        values_fill(r, p + i, 64);
    for (unsigned i = 0; i + 10 <= n; i += 16 * (1 + rng_below(r, 16)))
        float80(r, p + i);
}
