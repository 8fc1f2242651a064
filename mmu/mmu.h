// Guest-virtual memory: the page walker, the software TLB that translated code reads, and linear accesses for C code.
//
// The TLB is three direct-mapped sets, one per kind of access, each four parallel arrays indexed by bits 31:12 of the
// linear address. Translated code does, for an access of n bytes at `la`:
//     i = (uint32_t)la >> 12;  off = la - tag[i];  if (off > 4096 - n) miss;  host = host_page[i] + off
// so that one comparison checks the page and the page crossing. An entry of `write_tag` exists only where a store needs
// no further work: page present and writable for this kind of access, D set, RAM, not traced.
#pragma once
#include "cpu/cpu.h"

#define TLB_BITS 20 // a 32-bit shift makes the index
#define TLB_ENTRIES (1u << TLB_BITS)
#define PAGE_SHIFT 12
#define PAGE_SIZE 4096ull

enum tlb_kind {
    TLB_USER,      // CPL 3
    TLB_KERNEL,    // CPL 0-2 where SMAP forbids user pages (CR4.SMAP=1, EFLAGS.AC=0)
    TLB_KERNEL_AC, // CPL 0-2 without that restriction
    TLB_KINDS
};

struct tlb_set {
    uint64_t read_tag[TLB_ENTRIES];  // linear page base, or tlb_invalid_tag()
    uint64_t write_tag[TLB_ENTRIES];
    uint64_t host_page[TLB_ENTRIES]; // host address of the page's first byte
    uint64_t addend[TLB_ENTRIES];    // host less linear address
};

#define TLB_LOG 4096
#define TLB_WRITERS 4
struct tlb {
    struct tlb_set set[TLB_KINDS];
    // Filled non-global entries since the last flush, kind << TLB_BITS | index; full: flush clears everything.
    uint32_t log_count;
    uint32_t log[TLB_LOG];
    uint32_t global_log_count;
    uint32_t global_log[TLB_LOG];
    uint64_t fills, flushes, page_flushes, walks; // counters
    // The rest is for tlb.c alone.
    uint64_t logged[2][TLB_KINDS][TLB_ENTRIES / 64]; // which entries stand in log resp. global_log
    uint64_t touched[TLB_KINDS][TLB_ENTRIES / 512 / 64]; // runs of 512 entries filled since everything was cleared
    uint32_t writer[TLB_ENTRIES][TLB_WRITERS]; // by host page number: the entries with a write tag for it, for mmu_drop_writable()
    // Large pages cached in pieces, for INVLPG: a hashed set for each of enum tlb_large (tlb.c), and which page sizes
    // stand in it.
    uint64_t large[3][64];
    uint32_t large_sizes[3];
};

// A tag that no address with this index can come within 4096 bytes of.
static inline uint64_t tlb_invalid_tag(unsigned index) { return index ? 0 : 0x80000000; }

#define ACC_READ   0u
#define ACC_WRITE  1u
#define ACC_EXEC   2u
#define ACC_USER   4u // as CPL 3
#define ACC_CODE   16u // for shadow_fill(), with ACC_EXEC: to be translated, not executed
#define ACC_SYSTEM 8u // implicit supervisor access (descriptor tables, TSS): CPL ignored, SMAP applies even with AC=1

struct tlb *tlb_create(void *at); // maps a TLB at the given address (page aligned, below 2 GiB) or returns null
void tlb_destroy(struct tlb *t);

// The kind and access bits of an explicit data access in the current state.
static inline enum tlb_kind mmu_tlb_kind(const struct vcpu *v)
{
    if (v->s.cpl == 3)
        return TLB_USER;
    return (v->s.cr4 & CR4_SMAP) && !(v->s.rflags & FL_AC) ? TLB_KERNEL : TLB_KERNEL_AC;
}
static inline unsigned mmu_acc(const struct vcpu *v) { return v->s.cpl == 3 ? ACC_USER : 0; }

struct walk {         // result of a page walk
    uint64_t gpa;     // guest-physical address of the byte
    uint64_t page_size; // 4096, 2 MiB, 4 MiB, 1 GiB
    bool writable;    // a write with the same access bits is allowed now (and D is set)
    bool global;
    bool user;
};
// Walks the guest's tables for one byte, sets A (and D for writes) as the SDM says; on failure returns false with the
// #PF error code in *error. Never throws. Does not touch the TLB. (SDM 3A 4.3-4.7)
bool mmu_walk(struct vcpu *v, uint64_t la, unsigned acc, struct walk *w, uint32_t *error);
// The same without setting A/D bits, for debuggers and disassembly.
bool mmu_probe(struct vcpu *v, uint64_t la, unsigned acc, struct walk *w, uint32_t *error);

// Called on a TLB miss for an explicit access of the current mode. Fills the entry and returns the host address of
// `la`, or null when the page needs care on each access (MMIO, ROM write, traced write). Throws #PF.
void *mmu_fill(struct vcpu *v, uint64_t la, unsigned acc);

// Linear accesses for C code: any length, page crossings, MMIO, traces. All bytes of a write are checked before the
// first is stored. Throw #PF.
void mmu_read(struct vcpu *v, uint64_t la, void *data, unsigned n, unsigned acc);
void mmu_write(struct vcpu *v, uint64_t la, const void *data, unsigned n, unsigned acc);
// Checks without accessing, as if for [la, la+n).
void mmu_check(struct vcpu *v, uint64_t la, unsigned n, unsigned acc);
// Guest-physical address to fetch code from; throws #PF (I/D bit set as the mode says).
uint64_t mmu_fetch_gpa(struct vcpu *v, uint64_t la);

void mmu_flush_page(struct vcpu *v, uint64_t la);   // INVLPG: also drops global entries of the page
void mmu_flush_all(struct vcpu *v, bool global);    // CR3 loads (global=false), CR0/CR4/A20 changes (true)
// Write entries of this guest-physical page must go: it is traced from now on.
void mmu_drop_writable(struct vcpu *v, uint64_t gpa);
