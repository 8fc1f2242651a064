// What the fuzz targets share: a cursor over the input, and claims that must hold whatever the input is.
//
// A target is one file fuzz_NAME.c with LLVMFuzzerTestOneInput(). libFuzzer drives it in a build with -Dfuzz=true; in every
// build replay.c runs it over corpus/NAME/, where the input of each bug found stays.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define claim(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: does not hold: %s: ", __FILE__, __LINE__, #condition);                             \
            fprintf(stderr, __VA_ARGS__);                                                                              \
            fputc('\n', stderr);                                                                                       \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

// Reads past the end give zero, so that every input means something.
struct cursor {
    const uint8_t *p;
    size_t left;
};

static inline uint64_t take(struct cursor *c, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes && c->left; i++, c->left--)
        value |= (uint64_t)*c->p++ << 8 * i;
    return value;
}

// Up to n bytes, as many as are there; *n becomes their number.
static inline const uint8_t *take_bytes(struct cursor *c, size_t *n)
{
    const uint8_t *p = c->p;
    if (*n > c->left)
        *n = c->left;
    c->p += *n;
    c->left -= *n;
    return p;
}
