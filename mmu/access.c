// Linear accesses for C code. The common one, up to 8 bytes in a page the TLB has, is a compare and a load;
// the rest goes a page at a time, in two rounds: first every page is translated, so that a fault leaves
// nothing half done and no device touched; then bytes move.
#include "mmu/mem.h"
#include "mmu/private.h"
#include "cpu/planted.h"

struct place {     // where one page's part of an access is
    uint8_t *host; // null: through the guest-physical map
    uint64_t gpa;
};

static inline struct place place_of(struct vcpu *v, uint64_t la, unsigned acc)
{
    struct place p = {.host = tlb_lookup(v, la, acc)};
    if (!p.host)
        p.host = mmu_translate(v, la, acc, &p.gpa);
    return p;
}

// Throws the #PF, if there is one, of the lowest page of [la, la+n) that faults, before the walk of another
// page has set accessed or dirty bits. n bytes cross a page boundary.
static void check_pages(struct vcpu *v, uint64_t la, unsigned n, unsigned acc)
{
    struct walk w;
    uint32_t error;
    while (n) {
        uint64_t at = linear(v, la);
        if (!tlb_lookup(v, at, acc) && !mmu_probe(v, at, acc, &w, &error))
            place_of(v, at, acc); // throws, and sets A where a faulting walk does
        uint64_t part = n < page_left(la) ? n : page_left(la);
        la += part;
        n -= (unsigned)part;
    }
}

void mmu_check(struct vcpu *v, uint64_t la, unsigned n, unsigned acc)
{
    if (n > page_left(la))
        check_pages(v, la, n, acc);
    while (n) {
        place_of(v, linear(v, la), acc);
        uint64_t part = n < page_left(la) ? n : page_left(la);
        la += part;
        n -= (unsigned)part;
    }
}

// ---- what has no host address: MMIO, ROM writes, traced pages

static void read_slow(struct vcpu *v, uint64_t gpa, uint8_t *to, unsigned n)
{
    struct mem_slot slot = mem_find(v->mem, gpa);
    if (slot.kind == MEM_RAM || slot.kind == MEM_ROM) {
        copy_bytes(to, slot.host, n);
        return;
    }
    if (slot.kind == MEM_NONE) {
        fill_bytes(to, 0xff, n);
        return;
    }
    for (unsigned done = 0, size; done < n; done += size) {
        size = natural_size(gpa + done, n - done);
        uint64_t value = v->exits.mmio_read(v->exits.opaque, gpa + done, size);
        copy_bytes(to + done, &value, size);
    }
}

static void write_slow(struct vcpu *v, uint64_t gpa, const uint8_t *from, unsigned n)
{
    struct mem_map *m = v->mem;
    struct mem_slot slot = mem_find(m, gpa);
    uint8_t *host = slot.kind == MEM_RAM ? slot.host : slot.shadow;
    if (host) {
        copy_bytes(host, from, n);
        if (mem_trace_bits(m, slot.ram_page))
            mem_trace_written(m, gpa, n);
        return;
    }
    if (slot.kind != MEM_MMIO)
        return; // ROM, or nothing
    for (unsigned done = 0, size; done < n; done += size) {
        size = natural_size(gpa + done, n - done);
        uint64_t value = 0;
        copy_bytes(&value, from + done, size);
        v->exits.mmio_write(v->exits.opaque, gpa + done, size, value);
    }
}

// ---- read, write

static inline void read_place(struct vcpu *v, struct place p, uint8_t *to, unsigned n)
{
    if (p.host)
        copy_bytes(to, p.host, n);
    else
        read_slow(v, p.gpa, to, n);
}

static inline void write_place(struct vcpu *v, struct place p, const uint8_t *from, unsigned n)
{
    if (p.host)
        copy_bytes(p.host, from, n);
    else
        write_slow(v, p.gpa, from, n);
}

// Accesses that cross a page boundary.
static __attribute__((noinline)) void read_across(struct vcpu *v, uint64_t la, uint8_t *to, unsigned n,
                                                  unsigned acc)
{
    check_pages(v, la, n, acc);
    unsigned first = (unsigned)page_left(la);
    struct place p = place_of(v, linear(v, la), acc);
    while (n) {
        // One page ahead: with two pages, the usual case, both are translated before the first byte moves.
        struct place next = {0};
        if (n > first)
            next = place_of(v, linear(v, la + first), acc);
        read_place(v, p, to, first);
        la += first;
        to += first;
        n -= first;
        first = n < PAGE_SIZE ? n : (unsigned)PAGE_SIZE;
        p = next;
    }
}

static __attribute__((noinline)) void write_across(struct vcpu *v, uint64_t la, const uint8_t *from,
                                                   unsigned n, unsigned acc)
{
    check_pages(v, la, n, acc);
    unsigned first = (unsigned)page_left(la);
    struct place p = place_of(v, linear(v, la), acc);
    while (n) {
        struct place next = {0};
        if (n > first)
            next = place_of(v, linear(v, la + first), acc);
        write_place(v, p, from, first);
        la += first;
        from += first;
        n -= first;
        first = n < PAGE_SIZE ? n : (unsigned)PAGE_SIZE;
        p = next;
    }
}

void mmu_read(struct vcpu *v, uint64_t la, void *data, unsigned n, unsigned acc)
{
    la = linear(v, la);
    if (n > page_left(la))
        read_across(v, la, data, n, acc);
    else if (n)
        read_place(v, place_of(v, la, acc), data, n);
    if (__builtin_expect(v->watch_data, 0))
        v->debug_hits |= (uint8_t)cpu_watch_hits(v, la, n, false);
}

void mmu_write(struct vcpu *v, uint64_t la, const void *data, unsigned n, unsigned acc)
{
    n -= PLANTED(memory_write) && (la & (PAGE_SIZE - 1)) + n > PAGE_SIZE;
    la = linear(v, la);
    acc |= ACC_WRITE;
    if (n > page_left(la))
        write_across(v, la, data, n, acc);
    else if (n)
        write_place(v, place_of(v, la, acc), data, n);
    if (__builtin_expect(v->watch_data, 0))
        v->debug_hits |= (uint8_t)cpu_watch_hits(v, la, n, true);
}
