// The state stream: what a machine's devices save and load.
//
// A section is a length byte, that many bytes of name, and a 32-bit version; its fields follow without tags,
// in the order the owner's state function visits them. Integers are little-endian. A stream to load may come
// from anywhere: it is checked like input from the network, and an owner must check what it uses as index,
// size or shift.
#include "devices/device.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define NAME_MAX_BYTES 255

void stream_init_save(struct stream *s)
{
    *s = (struct stream){.loading = false};
}

// The bytes stay the caller's and must outlive the stream.
void stream_init_load(struct stream *s, const void *data, size_t size)
{
    *s = (struct stream){.loading = true, .data = (uint8_t *)data, .size = size};
}

void stream_free(struct stream *s)
{
    if (!s->loading)
        free(s->data);
    *s = (struct stream){.loading = s->loading};
}

static void fail(struct stream *s, int error)
{
    if (!s->error)
        s->error = error;
}

static bool reserve(struct stream *s, size_t n)
{
    if (n <= s->capacity - s->size)
        return true;
    if (n > SIZE_MAX / 2 - s->size) {
        fail(s, -ENOMEM);
        return false;
    }
    size_t capacity = s->capacity ? s->capacity : 4096;
    while (capacity < s->size + n)
        capacity *= 2;
    uint8_t *data = realloc(s->data, capacity);
    if (!data) {
        fail(s, -ENOMEM);
        return false;
    }
    s->data = data;
    s->capacity = capacity;
    return true;
}

static bool put(struct stream *s, const void *p, size_t n)
{
    if (s->error || !reserve(s, n))
        return false;
    if (n)
        memcpy(s->data + s->size, p, n);
    s->size += n;
    s->position = s->size;
    return true;
}

static bool get(struct stream *s, void *p, size_t n)
{
    if (s->error)
        return false;
    if (n > s->size - s->position) {
        fail(s, -ENODATA);
        return false;
    }
    if (n)
        memcpy(p, s->data + s->position, n);
    s->position += n;
    return true;
}

static uint64_t transfer(struct stream *s, uint64_t value, unsigned bytes)
{
    uint8_t raw[8];
    uint64_t loaded = 0;

    for (unsigned i = 0; i < bytes; i++)
        raw[i] = (uint8_t)(value >> (8 * i));
    if (!s->loading) {
        put(s, raw, bytes);
        return value;
    }
    if (!get(s, raw, bytes))
        return value;
    for (unsigned i = 0; i < bytes; i++)
        loaded |= (uint64_t)raw[i] << (8 * i);
    return loaded;
}

// Returns 0 once the stream has failed.
unsigned stream_section(struct stream *s, const char *name, unsigned version)
{
    size_t length = strlen(name);
    uint8_t n = (uint8_t)length;
    char stored[NAME_MAX_BYTES];

    if (length > NAME_MAX_BYTES)
        fail(s, -EINVAL);
    stream_u8(s, &n);
    if (s->loading) {
        if (!get(s, stored, n))
            return 0;
        if (n != length || memcmp(stored, name, n))
            fail(s, -EINVAL);
    } else {
        put(s, name, n);
    }
    uint32_t stored_version = (uint32_t)transfer(s, version, 4);
    if (stored_version > version)
        fail(s, -EPROTO);
    return s->error ? 0 : stored_version;
}

void stream_u8(struct stream *s, uint8_t *p)
{
    *p = (uint8_t)transfer(s, *p, 1);
}

void stream_u16(struct stream *s, uint16_t *p)
{
    *p = (uint16_t)transfer(s, *p, 2);
}

void stream_u32(struct stream *s, uint32_t *p)
{
    *p = (uint32_t)transfer(s, *p, 4);
}

void stream_u64(struct stream *s, uint64_t *p)
{
    *p = transfer(s, *p, 8);
}

void stream_bool(struct stream *s, bool *p)
{
    uint64_t value = transfer(s, *p, 1);
    if (value > 1)
        fail(s, -ERANGE);
    else
        *p = value;
}

void stream_bytes(struct stream *s, void *p, size_t n)
{
    if (s->loading)
        get(s, p, n);
    else
        put(s, p, n);
}

void stream_u32_max(struct stream *s, uint32_t *p, uint32_t limit)
{
    uint32_t value = (uint32_t)transfer(s, *p, 4);
    if (s->loading && value > limit && !s->error)
        fail(s, -ERANGE);
    else
        *p = value;
}

void stream_timer(struct stream *s, struct timer *t)
{
    uint64_t deadline_ns = t->deadline_ns;
    stream_u64(s, &deadline_ns);
    if (s->loading && !s->error)
        timer_arm(t, deadline_ns);
}
