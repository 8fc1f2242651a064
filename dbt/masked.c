// Operands of which an instruction may leave parts alone: EVEX memory operands with an opmask, VMASKMOV and relatives,
// expand loads and compress stores. Lanes that are off must neither fault nor be stored, so an access that is not
// wholly inside one ordinary page can't be checked as a whole.
//
// Which lanes are on, and what an instruction does about those that are off, is not modelled: the host's processor
// knows. The instruction runs in a block of its own (KEY_BOUNCE) on a window of host pages that repeats what the
// guest's page tables and segments say about the operand:
//
//     page    0       1       2       3   |   4       5       6       7   |   8
//           none    data    data    none  | none    data    data    none  | none
//
// An operand is one or two parts, split where a guest page (or the segment) ends. It is placed so that the split falls
// on the boundary between two pages of the right kinds: data where the guest may access the part, none where it would
// fault. A host fault in the window is the guest's fault on that part, CR2 included.
//
// Stores run twice, onto a window of zeros (pages 1-2) and one of ones (pages 5-6): bytes equal afterwards were
// stored, and those alone are written to the guest's memory. Example: VMOVDQU8 [rdi]{k1}, zmm0 with 16 bytes left in
// a present page and an absent one behind it: split = 16, placed at page 3 - 16. With k1 = ffffh both runs finish and
// 16 bytes are committed; with bit 16 set the first run faults at the start of page 3, CR2 = rdi + 16.
#include "dbt/dbt.h"

#define AREA (4 * PAGE_SIZE)

struct access {
    unsigned sreg, size;
    bool write;
    uint64_t offset, la, host;
};

static void access_check(struct vcpu *v, struct access *a) // segment and pages
{
    a->la = cpu_linear(v, a->sreg, a->offset, a->size, a->write);
    mmu_check(v, a->la, a->size, (a->write ? ACC_WRITE : ACC_READ) | mmu_acc(v));
}

static void access_linear(struct vcpu *v, struct access *a) // segment
{
    a->la = cpu_linear(v, a->sreg, a->offset, a->size, a->write);
}

static void access_fill(struct vcpu *v, struct access *a) // one page, into the TLB
{
    a->host = (uint64_t)mmu_fill(v, a->la, (a->write ? ACC_WRITE : ACC_READ) | mmu_acc(v));
}

// Does what may throw. Returns whether it did not; if it did, the exception is in v->event.
static __attribute__((noinline)) bool attempt(struct vcpu *v, void (*f)(struct vcpu *, struct access *), struct access *a)
{
    struct vcpu *volatile keep = v;
    void *saved[5];
    volatile bool ok = true;
    for (unsigned i = 0; i < 5; i++)
        saved[i] = v->throw_buf[i];
    if (__builtin_setjmp(v->throw_buf))
        ok = false;
    else
        f(v, a);
    for (unsigned i = 0; i < 5; i++)
        keep->throw_buf[i] = saved[i];
    return ok;
}

bool masked_linear(struct dbt *d, unsigned sreg, uint64_t offset, unsigned size, bool write, uint64_t *la)
{
    struct access a = {.sreg = sreg, .size = size, .write = write, .offset = offset};
    bool ok = attempt(d->v, access_linear, &a);
    *la = a.la;
    return ok;
}

uint64_t masked_fill(struct dbt *d, uint64_t la, bool write)
{
    struct access a = {.write = write, .la = la};
    return attempt(d->v, access_fill, &a) ? a.host : 0;
}

static bool part_ok(struct dbt *d, unsigned part, unsigned sreg, uint64_t offset, unsigned n)
{
    struct access a = {.sreg = sreg, .size = n, .write = d->masked.write, .offset = offset};
    bool ok = attempt(d->v, access_check, &a);
    if (!ok)
        d->masked.event[part] = d->v->event;
    return ok;
}

static uint64_t wrap(const struct vcpu *v, uint64_t la) { return cpu_code64(v) ? la : (uint32_t)la; }

// Bytes of the operand before the place where its fate may change.
static unsigned split_of(const struct vcpu *v, unsigned sreg, uint64_t offset, uint64_t la, unsigned size)
{
    const struct segment *s = &v->s.seg[sreg];
    uint64_t page = PAGE_SIZE - (la & (PAGE_SIZE - 1));
    if (!cpu_code64(v) && offset <= s->limit && s->limit - offset < size - 1)
        return (unsigned)(s->limit - offset) + 1;
    return page < size ? (unsigned)page : size;
}

static void fill(uint8_t *p, unsigned n, uint8_t value)
{
    for (unsigned i = 0; i < n; i++)
        *(volatile uint8_t *)(p + i) = value;
}

bool masked_place(struct dbt *d, uint64_t offset)
{
    struct vcpu *v = d->v;
    struct masked *m = &d->masked;
    unsigned size = SLOW_SIZE(d->slow_info), sreg = d->slow_info >> SLOW_SEG_SHIFT & 7;
    if (size == 0 || size > 64 || sreg >= SEG_COUNT)
        cpu_throw_error(v, EXC_GP, 0);
    m->write = d->slow_info & SLOW_WRITE;
    m->len = size;
    m->la = wrap(v, offset + (cpu_code64(v) && sreg < SEG_FS ? 0 : v->s.seg[sreg].base));
    m->split = split_of(v, sreg, offset, m->la, size);
    m->ok[0] = part_ok(d, 0, sreg, offset, m->split);
    bool two = m->split < size;
    m->ok[1] = two && part_ok(d, 1, sreg, offset + m->split, size - m->split);
    if (two) {
        unsigned boundary = m->ok[0] ? (m->ok[1] ? 2 : 3) : (m->ok[1] ? 1 : 4);
        m->data = d->windows + boundary * PAGE_SIZE - m->split;
    } else {
        m->data = d->windows + (m->ok[0] ? PAGE_SIZE : 0) + (m->la & (PAGE_SIZE - 1));
    }
    return m->ok[0] && (!two || m->ok[1]);
}

uint64_t masked_open(struct dbt *d, uint64_t offset)
{
    struct vcpu *v = d->v;
    struct masked *m = &d->masked;
    masked_place(d, offset);
    unsigned size = m->len;
    for (unsigned part = 0; part < 2; part++) {
        unsigned from = part ? m->split : 0, n = part ? size - m->split : m->split;
        if (!m->ok[part])
            continue;
        if (m->write) {
            fill(m->data + from, n, 0);
            fill(m->data + AREA + from, n, 0xff);
        } else {
            mmu_read(v, wrap(v, m->la + from), m->data + from, n, mmu_acc(v));
        }
    }
    return (uint64_t)m->data;
}

bool masked_fault(struct dbt *d, uint64_t address)
{
    struct masked *m = &d->masked;
    uint64_t at = address - (uint64_t)m->data;
    if (address - (uint64_t)d->windows >= MASKED_WINDOWS_SIZE || at >= m->len)
        return false;
    unsigned part = at >= m->split;
    if (m->ok[part])
        return false;
    struct cpu_event *e = &d->v->event;
    *e = m->event[part];
    if (e->vector == EXC_PF)
        e->cr2 = wrap(d->v, m->la + at);
    return true;
}

void masked_commit(struct dbt *d)
{
    struct vcpu *v = d->v;
    struct masked *m = &d->masked;
    for (unsigned i = 0; i < m->len;) {
        unsigned end = i < m->split ? m->split : m->len, n = 0;
        if (!m->ok[i >= m->split]) {
            i = end;
            continue;
        }
        while (i + n < end && m->data[i + n] == m->data[AREA + i + n])
            n++;
        if (n)
            mmu_write(v, wrap(v, m->la + i), m->data + i, n, ACC_WRITE | mmu_acc(v));
        i += n ? n : 1;
    }
}
