// The page walker (SDM 3A 4.3-4.8): from a linear to a guest-physical address by the guest's own tables.
//
// What has to be exact, and in which order:
//  1. Entries are read from the root down. P=0 ends the walk with error bit P clear, whatever else the
//     entry holds and whatever upper entries forbid. A reserved bit in an entry with P=1 ends it with P and
//     RSVD.
//  2. Rights are looked at after the whole walk: U/S and R/W hold if they hold in every entry, XD if it is
//     set in any. So "not present" and "reserved" below come before "protection" above.
//  3. Error bits: W/R and U/S tell the access, not the entry. I/D is set for a fetch only if SMEP is on, or
//     PAE and EFER.NXE (4.7).
//  4. A is set in an entry that references a table once the walk goes through it, in the entry that maps
//     the page only if the access is allowed; D in the latter, for a write. Both by one locked
//     compare-exchange with the value that was looked at, as another CPU or a device may change the entry
//     meanwhile; if it did, the walk starts again.
//  5. Tables may lie anywhere: in ROM nothing is written back, in MMIO or in nothing an entry reads as all
//     ones.
//
// Example, 4-level, user write to a page whose PTE has R/W=0: A is set in PML4E, PDPTE and PDE; the PTE
// stays as it is; error = P | W/R | U/S = 7.
#include "cpu/model.h"
#include "cpu/planted.h"
#include "mmu/private.h"

#define PF_P    0x01u
#define PF_WR   0x02u
#define PF_US   0x04u
#define PF_RSVD 0x08u
#define PF_ID   0x10u

enum outcome { WALK_OK, WALK_FAULT, WALK_AGAIN };

struct entry { // a paging-structure entry in guest memory
    uint64_t value;
    uint64_t gpa;
    uint8_t *host; // null: not in RAM
};

struct request {
    uint64_t la;
    unsigned acc;
    bool set;        // set A and D
    bool supervisor; // a supervisor-mode access (4.6)
    uint32_t error;  // the error code's W/R, U/S and I/D
};

static inline struct entry read_entry(const struct vcpu *v, uint64_t gpa, unsigned size)
{
    const struct mem_map *m = v->mem;
    struct entry e = {.value = ~0ull, .gpa = gpa & m->a20_mask};
    const uint8_t *from = e.host = ram_quick(m, e.gpa);
    if (!from) {
        struct mem_slot slot = mem_find(m, e.gpa);
        if (slot.kind == MEM_RAM)
            e.host = slot.host;
        from = slot.kind == MEM_RAM || slot.kind == MEM_ROM ? slot.host : (const uint8_t *)&e.value;
    }
    if (size == 4)
        e.value = __atomic_load_n((const uint32_t *)from, __ATOMIC_RELAXED);
    else
        e.value = __atomic_load_n((const uint64_t *)from, __ATOMIC_RELAXED);
    return e;
}

// Sets bits of an entry. Returns false if somebody else changed it meanwhile.
static bool set_bits(struct vcpu *v, struct entry *e, unsigned size, uint64_t bits)
{
    uint64_t old = e->value;
    e->value |= bits;
    if (old == e->value || !e->host)
        return true;
    bool done;
    if (size == 4) {
        uint32_t expected = (uint32_t)old;
        done = __atomic_compare_exchange_n((uint32_t *)e->host, &expected, (uint32_t)e->value, false,
                                           __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
    } else {
        done = __atomic_compare_exchange_n((uint64_t *)e->host, &old, e->value, false, __ATOMIC_SEQ_CST,
                                           __ATOMIC_RELAXED);
    }
    if (done && mem_trace_bits(v->mem, ram_page_of(v->mem, e->host)))
        mem_trace_written(v->mem, e->gpa, size);
    return done;
}

// Whether the rights gathered on the way down allow the access (4.6.1).
static bool allowed(const struct vcpu *v, const struct request *q, uint64_t rights, bool xd)
{
    if ((q->acc & ACC_EXEC) && xd)
        return false;
    if (!q->supervisor)
        return (rights & PTE_U) && (!(q->acc & ACC_WRITE) || (rights & PTE_W));
    if (rights & PTE_U) {
        if (q->acc & ACC_EXEC)
            return !(v->s.cr4 & CR4_SMEP);
        if ((v->s.cr4 & CR4_SMAP) && ((q->acc & ACC_SYSTEM) || !(v->s.rflags & FL_AC)))
            return false;
    }
    return !(q->acc & ACC_WRITE) || (rights & PTE_W) || !(v->s.cr0 & CR0_WP);
}

// The end of a walk: `leaf` maps the page at `base`.
static inline enum outcome finish(struct vcpu *v, const struct request *q, struct entry *leaf, unsigned size,
                                  uint64_t rights, bool xd, uint64_t base, unsigned shift, struct walk *w,
                                  uint32_t *error)
{
    if (!allowed(v, q, rights, xd)) {
        *error = q->error | PF_P;
        return WALK_FAULT;
    }
    uint64_t bits = (PLANTED(accessed_bit) ? 0 : PTE_A) | (q->acc & ACC_WRITE && !PLANTED(dirty_bit) ? PTE_D : 0);
    if (q->set && !set_bits(v, leaf, size, bits))
        return WALK_AGAIN;
    bool may_write = (rights & PTE_W) || (q->supervisor && !(v->s.cr0 & CR0_WP));
    w->page_size = 1ull << shift;
    w->gpa = (base | (q->la & (w->page_size - 1))) & v->mem->a20_mask;
    w->writable = may_write && (leaf->value & PTE_D || PLANTED(dirty_bit));
    w->global = (leaf->value & PTE_G) && (v->s.cr4 & CR4_PGE);
    w->user = rights & PTE_U;
    return WALK_OK;
}

// Reserved bits of a 32-bit PDE that maps 4 MiB: 21:13, or 21:(M-19) where PSE-36 gives it physical bits
// 39:32 (4.3, table 4-4).
static inline uint64_t pse_reserved(const struct vcpu *v)
{
    unsigned bits = cpu_model_has(v->model, CPU_PSE36) ? cpu_model_phys_bits(v->model) : 32;
    bits = bits < 32 ? 32 : bits > 40 ? 40 : bits;
    return (1u << 22) - (1u << (bits - 19));
}

// 32-bit paging (4.3).
static inline enum outcome walk_32(struct vcpu *v, const struct request *q, struct walk *w, uint32_t *error)
{
    struct entry pde = read_entry(v, (v->s.cr3 & 0xfffff000u) | (q->la >> 22 & 0x3ff) << 2, 4);
    if (!(pde.value & PTE_P)) {
        *error = q->error;
        return WALK_FAULT;
    }
    if ((pde.value & PTE_PS) && (v->s.cr4 & CR4_PSE)) {
        if (pde.value & pse_reserved(v)) {
            *error = q->error | PF_P | PF_RSVD;
            return WALK_FAULT;
        }
        uint64_t base = (pde.value & 0xffc00000u) | (pde.value >> 13 & 0xff) << 32;
        return finish(v, q, &pde, 4, pde.value, false, base, 22, w, error);
    }
    if (q->set && !set_bits(v, &pde, 4, PTE_A))
        return WALK_AGAIN;
    struct entry pte = read_entry(v, (pde.value & 0xfffff000u) | (q->la >> 12 & 0x3ff) << 2, 4);
    if (!(pte.value & PTE_P)) {
        *error = q->error;
        return WALK_FAULT;
    }
    return finish(v, q, &pte, 4, pde.value & pte.value, false, pte.value & 0xfffff000u, 12, w, error);
}

// What one level of 4-level or PAE paging reserves beyond the others: address bits below the page's size
// (bit 12 is PAT); PS where no page of the size exists; on AMD's processors G in upper entries (APM 2
// 5.3.3).
static inline uint64_t level_reserved(const struct vcpu *v, unsigned shift, bool leaf)
{
    if (shift <= 21)
        return leaf && shift == 21 ? (1ull << 21) - (1ull << 13) : 0;
    uint64_t upper = v->model->amd ? PTE_G : 0;
    if (shift == 39)
        return PTE_PS | upper;
    if (!leaf)
        return upper;
    return ((1ull << 30) - (1ull << 13)) | (cpu_model_has(v->model, CPU_PDPE1GB) ? 0 : PTE_PS);
}

// PAE paging from its page directory on (4.4) and 4-level paging (4.5): the same entries, but for bits
// 62:52, which PAE paging reserves, and for the bits that EFER.NXE and the level reserve.
static inline enum outcome walk_long(struct vcpu *v, const struct request *q, uint64_t table, unsigned shift,
                                     uint64_t reserved, struct walk *w, uint32_t *error)
{
    uint64_t rights = PTE_U | PTE_W;
    bool xd = false;
    for (;; shift -= 9) {
        struct entry e = read_entry(v, table | (q->la >> shift & 0x1ff) << 3, 8);
        if (!(e.value & PTE_P)) {
            *error = q->error;
            return WALK_FAULT;
        }
        bool leaf = shift == 12 || ((e.value & PTE_PS) && shift < 39);
        if (e.value & (reserved | level_reserved(v, shift, leaf))) {
            *error = q->error | PF_P | PF_RSVD;
            return WALK_FAULT;
        }
        rights &= e.value;
        xd |= e.value >> 63;
        if (leaf) {
            uint64_t base = e.value & PTE_ADDR & -(1ull << shift);
            return finish(v, q, &e, 8, rights, xd, base, shift, w, error);
        }
        if (q->set && !set_bits(v, &e, 8, PTE_A))
            return WALK_AGAIN;
        table = e.value & PTE_ADDR;
    }
}

static inline enum outcome walk_once(struct vcpu *v, const struct request *q, struct walk *w, uint32_t *error)
{
    if (!(v->s.cr4 & CR4_PAE))
        return walk_32(v, q, w, error);

    uint64_t reserved = PTE_ADDR & -(1ull << (cpu_model_phys_bits(v->model) & 63));
    if (!(v->s.efer & EFER_NXE))
        reserved |= PTE_XD;
    if (cpu_long(v))
        return walk_long(v, q, v->s.cr3 & PTE_ADDR, 39, reserved, w, error);

    uint64_t pdpte = v->s.pdpte[q->la >> 30 & 3];
    if (!(pdpte & PTE_P)) {
        *error = q->error;
        return WALK_FAULT;
    }
    return walk_long(v, q, pdpte & PTE_ADDR, 21, reserved | 0x7ff0000000000000ull, w, error);
}

static inline bool walk(struct vcpu *v, uint64_t la, unsigned acc, bool set, struct walk *w, uint32_t *error)
{
    la = linear(v, la);
    if (!(v->s.cr0 & CR0_PG)) {
        *w = (struct walk){
            .gpa = la & v->mem->a20_mask, .page_size = PAGE_SIZE, .writable = true, .user = true};
        return true;
    }
    struct request q = {.la = la, .acc = acc, .set = set};
    q.supervisor = (acc & (ACC_USER | ACC_SYSTEM)) != ACC_USER;
    q.error = (acc & ACC_WRITE && !PLANTED(error_code) ? PF_WR : 0) | (q.supervisor ? 0 : PF_US);
    bool has_xd = (v->s.cr4 & CR4_PAE) && (v->s.efer & EFER_NXE);
    if ((acc & ACC_EXEC) && (has_xd || (v->s.cr4 & CR4_SMEP)))
        q.error |= PF_ID;
    enum outcome outcome;
    do {
        outcome = walk_once(v, &q, w, error);
    } while (outcome == WALK_AGAIN);
    return outcome == WALK_OK;
}

bool mmu_walk(struct vcpu *v, uint64_t la, unsigned acc, struct walk *w, uint32_t *error)
{
    return walk(v, la, acc, true, w, error);
}

bool mmu_probe(struct vcpu *v, uint64_t la, unsigned acc, struct walk *w, uint32_t *error)
{
    return walk(v, la, acc, false, w, error);
}
