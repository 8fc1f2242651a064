// What the files of mmu/ share: copies that leave vector registers and libc alone, the quick way to RAM,
// and the step from a linear address to a host address.
#pragma once
#include "mmu/mem.h"
#include "mmu/mmu.h"

// Bits of paging-structure entries (SDM 3A 4.5).
#define PTE_P    (1ull << 0)
#define PTE_W    (1ull << 1)
#define PTE_U    (1ull << 2)
#define PTE_A    (1ull << 5)
#define PTE_D    (1ull << 6)
#define PTE_PS   (1ull << 7)
#define PTE_G    (1ull << 8)
#define PTE_XD   (1ull << 63)
#define PTE_ADDR 0x000ffffffffff000ull

typedef uint16_t __attribute__((may_alias, aligned(1))) any16;
typedef uint32_t __attribute__((may_alias, aligned(1))) any32;
typedef uint64_t __attribute__((may_alias, aligned(1))) any64;

// Copies n bytes; 1, 2, 4 and 8 in one access each way, as an index read by another CPU must be.
static inline void copy_bytes(void *to, const void *from, size_t n)
{
    switch (n) {
    case 1: *(uint8_t *)to = *(const uint8_t *)from; return;
    case 2: *(any16 *)to = *(const any16 *)from; return;
    case 4: *(any32 *)to = *(const any32 *)from; return;
    case 8: *(any64 *)to = *(const any64 *)from; return;
    }
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

static inline void fill_bytes(void *to, uint8_t byte, size_t n)
{
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(byte) : "memory");
}

// The view or many trace bytes have changed: all that was cached must go.
void mem_tell_changed(struct mem_map *m);

// Host address of a byte of RAM in one of the two largest pieces of the view, or null: ask mem_find().
static inline uint8_t *ram_quick(const struct mem_map *m, uint64_t gpa)
{
    const struct mem_region *r = &m->view[m->ram_view[0]];
    if (gpa - r->base < r->size)
        return r->host + (gpa - r->base);
    r = &m->view[m->ram_view[1]];
    return gpa - r->base < r->size ? r->host + (gpa - r->base) : NULL;
}

static inline uint64_t ram_page_of(const struct mem_map *m, const uint8_t *host)
{
    return (uint64_t)(host - m->ram) >> PAGE_SHIFT;
}

// Largest naturally aligned power of two that fits n bytes from `address` on, at most 8.
static inline unsigned natural_size(uint64_t address, uint64_t n)
{
    unsigned size = 8;
    while ((address & (size - 1)) || size > n)
        size >>= 1;
    return size;
}

// Bytes from `address` to the end of its page.
static inline uint64_t page_left(uint64_t address)
{
    return PAGE_SIZE - (address & (PAGE_SIZE - 1));
}

// Which kind of TLB entry answers an access: SDM 3A 4.6.1. An implicit supervisor access is one SMAP always
// applies to.
static inline enum tlb_kind tlb_kind_of(const struct vcpu *v, unsigned acc)
{
    if ((acc & (ACC_USER | ACC_SYSTEM)) == ACC_USER)
        return TLB_USER;
    bool smap = (v->s.cr4 & CR4_SMAP) && ((acc & ACC_SYSTEM) || !(v->s.rflags & FL_AC));
    return smap ? TLB_KERNEL : TLB_KERNEL_AC;
}

// A linear address as the bus sees it: outside IA-32e mode 32 bits (SDM 3A 3.3).
static inline uint64_t linear(const struct vcpu *v, uint64_t la)
{
    return cpu_long(v) ? la : (uint32_t)la;
}

// Host address of `la` for this access if the TLB has it, good to the end of the page; else null.
static inline uint8_t *tlb_lookup(const struct vcpu *v, uint64_t la, unsigned acc)
{
    const struct tlb *t = v->tlb;
    if (!t || (acc & ACC_EXEC))
        return NULL;
    const struct tlb_set *set = &t->set[tlb_kind_of(v, acc)];
    unsigned i = la >> PAGE_SHIFT & (TLB_ENTRIES - 1);
    uint64_t tag = acc & ACC_WRITE ? set->write_tag[i] : set->read_tag[i];
    uint64_t off = la - tag;
    return off < PAGE_SIZE ? (uint8_t *)set->host_page[i] + off : NULL;
}

// Walks for `la`, fills the TLB, throws #PF. Returns the host address, or null where each access needs
// care; *gpa is the guest-physical address either way.
uint8_t *mmu_translate(struct vcpu *v, uint64_t la, unsigned acc, uint64_t *gpa);
