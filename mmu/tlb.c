// The software TLB: what translated code compares with, and who takes entries out of it again.
//
// Problem: look-ups happen at every guest memory access, fills at about one in a thousand, flushes at every
// CR3 load. The arrays are large so that look-ups hit (64 Ki entries a kind, 4.5 MiB); clearing them at a
// flush would cost hundreds of microseconds. So:
//  1. A flush follows a log of what was filled. An entry stands in a log once, however often it is refilled
//     (`logged`); what a CR3 load leaves alone has a log of its own. A log that is full makes the next
//     flush clear all.
//  2. Clearing all visits only runs of 512 entries that were filled since the last time (`touched`).
//  3. Tracing a page must find the write tags of all its aliases: `writer` remembers by host page number
//     the few entries that have one; more (WRITER_MANY) cost a search through the logs.
//  4. INVLPG drops a whole large page, of which any number of 4 KiB pieces may be here: `large` remembers,
//     hashed, the large pages that entries came from. A hit costs a search through the 512 or 1,024 entries
//     that can be meant, and for 1 GiB, or if code was fetched from the page (the translator keeps code
//     mappings itself), a full flush.
//
// Invariants: an entry with a valid tag stands in `log` if it is not global, in one of the logs if it is,
// unless that log overflowed. An entry with a valid write tag is among what `writer` says for its host page,
// or that says WRITER_MANY. Tags of one entry always come from the same walk.
//
// A TLB belongs to the thread that runs its vCPU; nobody else touches it.
#include "mmu/mem.h"
#include "mmu/private.h"
#include <sys/mman.h>

#define RUN         512u // entries of a 2 MiB large page
#define OVERFLOWED  (TLB_LOG + 1)
#define WRITER_MANY UINT32_MAX

enum tlb_large { LARGE_LOCAL, LARGE_GLOBAL, LARGE_CODE };

static const uint8_t large_shift[] = {21, 22, 30};
#define LARGE_SHIFTS (sizeof large_shift)

// ---- create, destroy

struct tlb *tlb_create(void *at)
{
    uintptr_t address = (uintptr_t)at;
    if (address % PAGE_SIZE || (at && address + sizeof(struct tlb) > 1ull << 31))
        return NULL;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (at ? MAP_FIXED_NOREPLACE : 0);
    struct tlb *t = mmap(at, sizeof *t, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (t == MAP_FAILED)
        return NULL;
    if (at && (void *)t != at) { // a kernel that doesn't know MAP_FIXED_NOREPLACE took it for a hint
        munmap(t, sizeof *t);
        return NULL;
    }
    for (unsigned kind = 0; kind < TLB_KINDS; kind++) {
        struct tlb_set *set = &t->set[kind];
        set->read_tag[0] = set->write_tag[0] = tlb_invalid_tag(0); // the others' invalid tag is what mmap gives: 0
    }
    return t;
}

void tlb_destroy(struct tlb *t)
{
    if (t)
        munmap(t, sizeof *t);
}

// ---- single entries

static inline void invalidate(struct tlb_set *set, unsigned i)
{
    set->read_tag[i] = set->write_tag[i] = tlb_invalid_tag(i);
}

static inline unsigned writer_slot(uint64_t host_page)
{
    return host_page >> PAGE_SHIFT & (TLB_ENTRIES - 1);
}

static inline bool has_writer(const struct tlb *t, uint32_t entry)
{
    unsigned i = entry & (TLB_ENTRIES - 1);
    return t->set[entry >> TLB_BITS].write_tag[i] != tlb_invalid_tag(i);
}

static inline uint64_t host_page_of(const struct tlb *t, uint32_t entry)
{
    return t->set[entry >> TLB_BITS].host_page[entry & (TLB_ENTRIES - 1)];
}

// Entry `entry` is getting a write tag for host_page.
static inline void note_writer(struct tlb *t, uint32_t entry, uint64_t host_page)
{
    unsigned slot = writer_slot(host_page);
    uint32_t *writer = t->writer[slot], *unused = NULL;
    if (writer[0] == WRITER_MANY)
        return;
    for (unsigned k = 0; k < TLB_WRITERS; k++) {
        if (writer[k] == entry + 1)
            return;
        if (!writer[k] || !has_writer(t, writer[k] - 1) || writer_slot(host_page_of(t, writer[k] - 1)) != slot)
            unused = &writer[k];
    }
    if (unused)
        *unused = entry + 1;
    else
        writer[0] = WRITER_MANY;
}

static inline void log_entry(struct tlb *t, uint32_t entry, bool global)
{
    uint64_t *word = &t->logged[global][0][0] + entry / 64;
    uint64_t bit = 1ull << entry % 64;
    if (*word & bit)
        return;
    uint32_t *count = global ? &t->global_log_count : &t->log_count;
    uint32_t *log = global ? t->global_log : t->log;
    if (*count >= TLB_LOG) {
        *count = OVERFLOWED;
        return;
    }
    log[(*count)++] = entry;
    *word |= bit;
}

// ---- large pages

static inline uint64_t large_bit(uint64_t la, unsigned shift, unsigned *word)
{
    unsigned hash = ((la >> shift) + shift) * 0x9e3779b97f4a7c15ull >> 52;
    *word = hash / 64;
    return 1ull << hash % 64;
}

static void note_large(struct tlb *t, enum tlb_large set, uint64_t la, uint64_t page_size)
{
    unsigned word, shift = (unsigned)__builtin_ctzll(page_size);
    uint64_t bit = large_bit(la, shift, &word);
    t->large[set][word] |= bit;
    t->large_sizes[set] |= 1u << shift;
}

static bool maybe_large(const struct tlb *t, enum tlb_large set, uint64_t la, unsigned shift)
{
    unsigned word;
    uint64_t bit = large_bit(la, shift, &word);
    return (t->large_sizes[set] >> shift & 1) && (t->large[set][word] & bit);
}

static void forget_large(struct tlb *t, enum tlb_large set)
{
    if (!t->large_sizes[set])
        return;
    t->large_sizes[set] = 0;
    for (unsigned i = 0; i < 64; i++)
        t->large[set][i] = 0;
}

// ---- fill

// Entries of one linear page, in every kind.
static void drop_page(struct tlb *t, uint64_t la)
{
    uint64_t page = la & -PAGE_SIZE;
    unsigned i = la >> PAGE_SHIFT & (TLB_ENTRIES - 1);
    for (unsigned kind = 0; kind < TLB_KINDS; kind++)
        if (t->set[kind].read_tag[i] == page) // no entry has a write tag alone
            invalidate(&t->set[kind], i);
}

static void insert(struct vcpu *v, uint64_t la, unsigned acc, const struct walk *w, uint8_t *host, bool write)
{
    struct tlb *t = v->tlb;
    unsigned kind = tlb_kind_of(v, acc);
    unsigned i = la >> PAGE_SHIFT & (TLB_ENTRIES - 1);
    struct tlb_set *set = &t->set[kind];
    uint32_t entry = kind << TLB_BITS | i;
    uint64_t host_page = (uint64_t)host & -PAGE_SIZE;

    if (write)
        note_writer(t, entry, host_page);
    log_entry(t, entry, w->global);
    t->touched[kind][i / RUN / 64] |= 1ull << i / RUN % 64;
    if (w->page_size > PAGE_SIZE)
        note_large(t, w->global ? LARGE_GLOBAL : LARGE_LOCAL, la, w->page_size);
    set->read_tag[i] = la & -PAGE_SIZE;
    set->write_tag[i] = write ? la & -PAGE_SIZE : tlb_invalid_tag(i);
    set->host_page[i] = host_page;
    set->addend[i] = host_page - (la & -PAGE_SIZE);
    t->fills++;
}

uint8_t *mmu_translate(struct vcpu *v, uint64_t la, unsigned acc, uint64_t *gpa)
{
    struct walk w;
    uint32_t error;
    struct tlb *t = v->tlb;
    struct mem_map *m = v->mem;
    la = linear(v, la);
    if (t)
        t->walks++;
    if (!mmu_walk(v, la, acc, &w, &error)) {
        if (t)
            drop_page(t, la); // a page fault invalidates what is cached for the address (SDM 3A 4.10.4.1)
        cpu_throw_page_fault(v, la, error);
    }
    *gpa = w.gpa;
    if (t && (acc & ACC_EXEC) && w.page_size > PAGE_SIZE)
        note_large(t, LARGE_CODE, la, w.page_size);
    uint8_t *host = ram_quick(m, w.gpa);
    bool write = host;
    if (!host) {
        struct mem_slot slot = mem_find(m, w.gpa);
        if (slot.kind != MEM_RAM && slot.kind != MEM_ROM)
            return NULL;
        host = slot.host;
        write = slot.kind == MEM_RAM;
    }
    if (write) {
        uint64_t page = ram_page_of(m, host);
        mem_prefault(m, page);
        if ((acc & ACC_WRITE) && mem_trace_bits(m, page) == TRACE_DIRTY)
            mem_dirty_mark(m, page); // nobody else wants to see the bytes
        write = w.writable && !mem_trace_bits(m, page);
    }
    if (acc & ACC_EXEC)
        return host;
    if (__builtin_expect(v->watch_data, 0) && cpu_watches_page(v, la))
        return NULL;
    if (t)
        insert(v, la, acc, &w, host, write);
    return (acc & ACC_WRITE) && !write ? NULL : host;
}

void *mmu_fill(struct vcpu *v, uint64_t la, unsigned acc)
{
    uint64_t gpa;
    return mmu_translate(v, la, acc, &gpa);
}

uint64_t mmu_fetch_gpa(struct vcpu *v, uint64_t la)
{
    uint64_t gpa;
    mmu_translate(v, la, ACC_EXEC | mmu_acc(v), &gpa);
    return gpa;
}

// ---- flushes

static void empty_log(struct tlb *t, bool global)
{
    uint32_t *count = global ? &t->global_log_count : &t->log_count;
    const uint32_t *log = global ? t->global_log : t->log;
    uint32_t n = *count < TLB_LOG ? *count : TLB_LOG;
    for (uint32_t k = 0; k < n; k++)
        (&t->logged[global][0][0])[log[k] / 64] = 0; // all of a word's entries are being forgotten
    *count = 0;
}

static void clear_everything(struct tlb *t)
{
    for (unsigned kind = 0; kind < TLB_KINDS; kind++) {
        for (unsigned run = 0; run < TLB_ENTRIES / RUN; run++) {
            if (!(t->touched[kind][run / 64] >> run % 64 & 1))
                continue;
            for (unsigned i = run * RUN; i < (run + 1) * RUN; i++)
                invalidate(&t->set[kind], i);
        }
        for (unsigned word = 0; word < TLB_ENTRIES / RUN / 64; word++)
            t->touched[kind][word] = 0;
    }
    empty_log(t, false);
    empty_log(t, true);
    forget_large(t, LARGE_LOCAL);
    forget_large(t, LARGE_GLOBAL);
}

static void flush_log(struct tlb *t, bool global)
{
    uint32_t count = global ? t->global_log_count : t->log_count;
    const uint32_t *log = global ? t->global_log : t->log;
    for (uint32_t k = 0; k < count; k++)
        invalidate(&t->set[log[k] >> TLB_BITS], log[k] & (TLB_ENTRIES - 1));
    empty_log(t, global);
    forget_large(t, global ? LARGE_GLOBAL : LARGE_LOCAL);
}

void mmu_flush_all(struct vcpu *v, bool global)
{
    struct tlb *t = v->tlb;
    if (t) {
        t->flushes++;
        if (t->log_count > TLB_LOG || (global && t->global_log_count > TLB_LOG)) {
            clear_everything(t);
        } else {
            flush_log(t, false);
            if (global)
                flush_log(t, true);
        }
        if (global)
            forget_large(t, LARGE_CODE);
    }
    if (v->listener.tlb_flushed)
        v->listener.tlb_flushed(v->listener.opaque, global);
}

// Every entry inside the page of 1 << shift bytes around la.
static void drop_large(struct tlb *t, uint64_t la, unsigned shift)
{
    unsigned first = (la & -(1ull << shift)) >> PAGE_SHIFT & (TLB_ENTRIES - 1);
    unsigned count = 1u << (shift - PAGE_SHIFT);
    for (unsigned kind = 0; kind < TLB_KINDS; kind++) {
        struct tlb_set *set = &t->set[kind];
        for (unsigned i = first; i < first + count; i++)
            if (!((set->read_tag[i] ^ la) >> shift))
                invalidate(set, i);
    }
}

void mmu_flush_page(struct vcpu *v, uint64_t la)
{
    struct tlb *t = v->tlb;
    bool code = !t; // without a TLB nothing was remembered
    la = linear(v, la);
    if (t) {
        t->page_flushes++;
        drop_page(t, la);
        for (unsigned k = 0; k < LARGE_SHIFTS; k++) {
            unsigned shift = large_shift[k];
            code |= maybe_large(t, LARGE_CODE, la, shift);
            if (!maybe_large(t, LARGE_LOCAL, la, shift) && !maybe_large(t, LARGE_GLOBAL, la, shift))
                continue;
            if (shift == 30)
                clear_everything(t);
            else
                drop_large(t, la, shift);
        }
    }
    if (!code && v->listener.page_flushed) {
        v->listener.page_flushed(v->listener.opaque, la);
    } else if (code && v->listener.tlb_flushed) {
        if (t)
            forget_large(t, LARGE_CODE);
        v->listener.tlb_flushed(v->listener.opaque, true);
    }
}

// ---- tracing

struct search { // for write tags of one slot of `writer`
    uint64_t host_page;
    uint32_t others, other;
};

static void drop_writer(struct tlb *t, struct search *s, uint32_t entry)
{
    if (!has_writer(t, entry))
        return;
    unsigned i = entry & (TLB_ENTRIES - 1);
    uint64_t host_page = host_page_of(t, entry);
    if (host_page == s->host_page) {
        t->set[entry >> TLB_BITS].write_tag[i] = tlb_invalid_tag(i);
    } else if (writer_slot(host_page) == writer_slot(s->host_page)) {
        s->others++;
        s->other = entry;
    }
}

static void search_writers(struct tlb *t, struct search *s)
{
    if (t->log_count <= TLB_LOG && t->global_log_count <= TLB_LOG) {
        for (uint32_t k = 0; k < t->log_count; k++)
            drop_writer(t, s, t->log[k]);
        for (uint32_t k = 0; k < t->global_log_count; k++)
            drop_writer(t, s, t->global_log[k]);
        return;
    }
    for (uint32_t run = 0; run < TLB_KINDS * TLB_ENTRIES / RUN; run++)
        if ((&t->touched[0][0])[run / 64] >> run % 64 & 1)
            for (uint32_t entry = run * RUN; entry < (run + 1) * RUN; entry++)
                drop_writer(t, s, entry);
}

void mmu_drop_writable(struct vcpu *v, uint64_t gpa)
{
    struct tlb *t = v->tlb;
    struct mem_slot slot = mem_find(v->mem, gpa);
    if (!t || slot.kind != MEM_RAM)
        return;
    struct search s = {.host_page = (uint64_t)slot.host & -PAGE_SIZE};
    uint32_t *writer = t->writer[writer_slot(s.host_page)];
    if (writer[0] != WRITER_MANY) {
        for (unsigned k = 0; k < TLB_WRITERS; k++)
            if (writer[k])
                drop_writer(t, &s, writer[k] - 1);
        return;
    }
    search_writers(t, &s);
    for (unsigned k = 0; k < TLB_WRITERS; k++)
        writer[k] = 0;
    writer[0] = !s.others ? 0 : s.others == 1 ? s.other + 1 : WRITER_MANY;
}
