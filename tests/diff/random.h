// xoshiro256** (Blackman, Vigna): the generator behind every case. Equal seeds give equal cases on every
// machine.
#pragma once
#include <stdbool.h>
#include <stdint.h>

struct rng {
    uint64_t s[4];
};

static inline uint64_t rng_mix(uint64_t *x) // splitmix64
{
    uint64_t z = *x += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static inline struct rng rng_make(uint64_t seed, uint64_t stream)
{
    struct rng r;
    uint64_t x = seed ^ rng_mix(&stream);
    for (unsigned i = 0; i < 4; i++)
        r.s[i] = rng_mix(&x);
    return r;
}

static inline uint64_t rng_next(struct rng *r)
{
    uint64_t *s = r->s;
    uint64_t m = s[1] * 5, result = (m << 7 | m >> 57) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = s[3] << 45 | s[3] >> 19;
    return result;
}

static inline uint32_t rng_below(struct rng *r, uint32_t n) // [0, n)
{
    return (uint32_t)((rng_next(r) >> 32) * n >> 32);
}
static inline bool rng_percent(struct rng *r, uint32_t percent)
{
    return rng_below(r, 100) < percent;
}
