// A translation without a machine around it: what decoding and classifying need, for a v3 processor.
#pragma once
#include "dbt/internal.h"
#include "fake_host.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

struct bench {
    struct vcpu v;
    struct dbt d;
    struct translation t;
    struct cpu_model *model;
};

static inline struct bench *bench_create(unsigned code_size)
{
    struct bench *b = calloc(1, sizeof *b);
    struct fake_host f;
    char error[160] = "";
    fake_host_init(&f, false);
    assert_non_null(b);
    b->model = cpu_model_create_on(&f.host, "v3", error, sizeof error);
    if (!b->model)
        fail_msg("%s", error);
    b->v.model = b->model;
    b->d.v = &b->v;
    b->t.d = &b->d;
    b->t.code_size = code_size;
    b->t.key = KEY_PE | KEY_OSFXSR | KEY_OSXSAVE | KEY_AVX | (code_size == 8 ? KEY_CODE64 : KEY_CODE32);
    classify_init(&b->t);
    features_init(&b->t, b->model);
    decoders_init(&b->t, b->model);
    return b;
}

static inline void bench_destroy(struct bench *b)
{
    cpu_model_destroy(b->model);
    free(b);
}

static inline uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

// Decodes p[0..len-1] with Zydis alone, as decode() does for what it has not met.
static inline ZyanStatus decode_bytes(const ZydisDecoder *decoder, struct ginsn *g, const uint8_t *p, unsigned len)
{
    memset(g->bytes, 0, sizeof g->bytes);
    memcpy(g->bytes, p, len);
    return decode_alone(decoder, g, len);
}
