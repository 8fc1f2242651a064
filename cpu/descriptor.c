// Segment and system descriptors in the GDT and LDT (SDM 3A 3.4.5, 3.5, 7.2.3; 16-byte forms 5.8.3.1).
#include "cpu/internal.h"

// Linear address of the entry, or false when [entry, entry + size) passes the limit of its table.
static bool locate(const struct vcpu *v, uint16_t selector, unsigned size, uint64_t *la)
{
    const struct cpu_state *s = &v->s;
    uint32_t offset = selector & 0xfff8, limit = s->gdtr.limit;
    uint64_t base = s->gdtr.base;
    if (selector & 4) {
        if (s->ldtr.attr & SEG_UNUSABLE)
            return false;
        base = s->ldtr.base;
        limit = s->ldtr.limit;
    }
    if (offset + size - 1 > limit)
        return false;
    *la = cpu_long(v) ? base + offset : (uint32_t)(base + offset);
    return is_canonical(*la);
}

bool descriptor_fetch(struct vcpu *v, uint16_t selector, struct descriptor *d)
{
    if (!locate(v, selector, 8, &d->la))
        return false;
    d->raw = system_read(v, d->la, 8);
    d->high = 0;
    return true;
}

bool descriptor_fetch_high(struct vcpu *v, uint16_t selector, struct descriptor *d)
{
    uint64_t la;
    if (!locate(v, selector, 16, &la))
        return false;
    d->high = system_read(v, la + 8, 8);
    return true;
}

void descriptor_set_accessed(struct vcpu *v, struct descriptor *d)
{
    if (d->raw & (1ull << 40))
        return;
    d->raw |= 1ull << 40;
    system_write(v, d->la + 5, 1, d->raw >> 40);
}

void descriptor_to_segment(const struct descriptor *d, uint16_t selector, bool sixteen_bytes,
                           struct segment *s)
{
    uint64_t raw = d->raw;
    s->sel = selector;
    s->pad[0] = s->pad[1] = s->pad[2] = 0;
    s->attr = (raw >> 40) & 0xf0ff;
    s->limit = (raw & 0xffff) | ((raw >> 32) & 0xf0000);
    if (s->attr & SEG_G)
        s->limit = s->limit << 12 | 0xfff;
    s->base = ((raw >> 16) & 0xffffff) | ((raw >> 32) & 0xff000000);
    if (sixteen_bytes)
        s->base |= d->high << 32;
}
