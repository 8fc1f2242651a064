// The 65,536 I/O ports of a machine. A port costs two bytes: the number of the claim it belongs to.
#include "devices/device.h"
#include <errno.h>
#include <stdlib.h>

#define PORTS  65536u
#define CLAIMS 256u // owners (ops, opaque); a base address register that moves gives its slot back

struct claim {
    const struct port_ops *ops;
    void *opaque;
    unsigned ports; // how many point here; 0: free
};

struct bus {
    uint16_t owner[PORTS]; // index into claim[], 0: nobody
    struct claim claim[CLAIMS];
};

static bool in_range(uint16_t port, unsigned count)
{
    return count <= PORTS - port;
}

int bus_claim(struct bus *b, uint16_t port, unsigned count, const struct port_ops *ops, void *opaque)
{
    unsigned slot = 0;

    if (!in_range(port, count))
        return -EINVAL;
    for (unsigned i = 0; i < count; i++)
        if (b->owner[port + i])
            return -EBUSY;
    for (unsigned i = 1; i < CLAIMS; i++) {
        struct claim *c = &b->claim[i];
        if (c->ports && c->ops == ops && c->opaque == opaque) {
            slot = i;
            break;
        }
        if (!c->ports && !slot)
            slot = i;
    }
    if (!slot)
        return -EBUSY;
    b->claim[slot].ops = ops;
    b->claim[slot].opaque = opaque;
    b->claim[slot].ports += count;
    for (unsigned i = 0; i < count; i++)
        b->owner[port + i] = (uint16_t)slot;
    return 0;
}

void bus_release(struct bus *b, uint16_t port, unsigned count)
{
    for (unsigned i = 0; i < count && port + i < PORTS; i++) {
        unsigned slot = b->owner[port + i];
        if (slot)
            b->claim[slot].ports--;
        b->owner[port + i] = 0;
    }
}

// The widest piece of an access at `port` that one handler takes in one call: 1 when the ports have different
// owners.
static unsigned piece(const struct bus *b, unsigned port, unsigned left)
{
    const struct port_ops *ops = b->claim[b->owner[port]].ops;
    unsigned n = ops && ops->max_size ? ops->max_size : 1;

    while (n > left)
        n >>= 1;
    for (unsigned i = 1; i < n; i++)
        if (port + i >= PORTS || b->owner[port + i] != b->owner[port])
            return 1;
    return n;
}

static uint32_t mask_of(unsigned size)
{
    return size >= 4 ? UINT32_MAX : (1u << (8 * size)) - 1;
}

// Ports past FFFFh, reached by a wide access near the end, are nobody's.
uint32_t bus_read(struct bus *b, uint16_t port, unsigned size)
{
    uint32_t value = 0;
    unsigned n;

    for (unsigned i = 0; i < size && i < 4; i += n) {
        uint32_t part = UINT32_MAX;
        unsigned at = port + i;
        n = 1;
        if (at < PORTS && b->owner[at]) {
            const struct claim *c = &b->claim[b->owner[at]];
            n = piece(b, at, size - i);
            if (c->ops->read)
                part = c->ops->read(c->opaque, (uint16_t)at, n);
        }
        value |= (part & mask_of(n)) << (8 * i);
    }
    return value;
}

void bus_write(struct bus *b, uint16_t port, unsigned size, uint32_t value)
{
    unsigned n;

    for (unsigned i = 0; i < size && i < 4; i += n) {
        unsigned at = port + i;
        n = 1;
        if (at < PORTS && b->owner[at]) {
            const struct claim *c = &b->claim[b->owner[at]];
            n = piece(b, at, size - i);
            if (c->ops->write)
                c->ops->write(c->opaque, (uint16_t)at, n, (value >> (8 * i)) & mask_of(n));
        }
    }
}

struct bus *bus_create(void)
{
    return calloc(1, sizeof(struct bus));
}

void bus_destroy(struct bus *b)
{
    free(b);
}
