// What the files of the shadow share: the tree of what is mapped, the guest tables behind it, the changes.
//
// Each space has a radix tree of four levels, like the guest's own. A node stands for one guest table as it was reached
// at one place (space, level, linear base): so it is at once the record of that use. Nodes of the lowest level say which RAM
// page is mapped with which rights, 4 KiB by 4 KiB; below a large page of the guest's there are nodes without a table.
//
//     root (level 4) -> level 3 -> level 2 -> level 1: entry[i] = RAM page << 12 | ENTRY_START | SHADOW_*
//     every node with a table hangs in the list page[table].uses, and that page carries TRACE_TABLE
//
// Invariants, between any two calls of shadow.h:
//  - A node below the root has `link`, the value of the guest's entry that led to it, and a fresh read of that entry agrees.
//  - No node is empty: what maps nothing traces nothing.
//  - page[p].refs is the number of mappings of p with SHADOW_WRITE or SHADOW_EXEC; they are all of one kind. With writable ones
//    p has no trace bit; with executable ones it has TRACE_RAW, and also while may_execute() is known to say no.
//  - A list of changes that overflowed, or mappings beyond the policy's, are seen by nobody: shadow_settle() empties the
//    space.
#pragma once
#include "mmu/private.h"
#include "mmu/shadow.h"

#define NODES      16384u // 64 MiB, reserved only; number 0 is none
#define ENTRIES    512u
#define CHANGES    512u
#define NO_TABLE   UINT64_MAX
#define USER_END   (1ull << 47)
#define EPOCH_BITS 8

#define ENTRY_RIGHTS 0x007ull
#define ENTRY_CODE   0x010ull // code was fetched through it
#define ENTRY_START  0x008ull // the page before is not part of the same mapping of the host's

struct shadow_page {              // by RAM page
    uint16_t writable, executable; // the spaces that have such mappings: never both
    uint32_t refs;                 // how many there are
    uint64_t hint  : 35;           // linear page of the one made last
    uint64_t turns : 4;            // how often a write took SHADOW_EXEC away, as of `epoch`
    uint64_t epoch : EPOCH_BITS;
    uint64_t refused : 1;         // may_execute() said no; TRACE_RAW tells when its bytes change
    uint64_t uses  : 16;           // first node whose table this is
};

struct shadow_node {
    uint64_t base;     // linear
    uint64_t link;     // guest entry by which it was reached; root: 0
    uint64_t table;    // RAM page of the guest's table, or NO_TABLE
    uint16_t next, prev; // with the same table; next also links free nodes
    uint16_t parent, index;
    uint16_t count;    // entries that are not 0
    uint8_t space, level; // level 4 to 1; 0: free
};

struct shadow_space {
    bool open, takes;
    bool code_lost;
    bool flood;          // changes were lost
    uint16_t root_node;  // 0: nothing is mapped
    uint32_t generation; // bumped when it was emptied
    uint32_t count;      // of changes
    uint64_t root;       // CR3 bits 51:12
    uint64_t opened;     // when
    uint64_t mappings;   // that the host has, about
    struct shadow_change change[CHANGES];
};

struct shadow {
    struct vcpu *v;
    struct mem_map *m;
    struct shadow_policy policy;
    uint64_t reserved; // bits that are reserved in every entry, in the guest's present mode
    uint64_t time;     // of opens
    uint32_t epoch;    // closes
    uint32_t nodes_used, nodes_free;
    uint16_t free; // list
    struct shadow_counters counters;
    struct shadow_space space[SHADOW_SPACES];
    uint64_t page_bytes;
    struct shadow_page *page;
    struct shadow_node node[NODES];
    uint64_t entry[NODES][ENTRIES];
};

static inline bool shadow_ram_page(const struct mem_map *m, uint64_t gpa, uint64_t *page)
{
    const uint8_t *host = ram_quick(m, gpa);
    if (!host) {
        struct mem_slot slot = mem_find(m, gpa);
        if (slot.kind != MEM_RAM)
            return false;
        host = slot.host;
    }
    *page = ram_page_of(m, host);
    return true;
}

static inline uint64_t shadow_guest_entry(const struct mem_map *m, uint64_t table, unsigned index)
{
    return __atomic_load_n((const uint64_t *)(m->ram + (table << PAGE_SHIFT)) + index, __ATOMIC_RELAXED);
}

static inline unsigned level_shift(unsigned level) { return PAGE_SHIFT + 9 * (level - 1); }
static inline unsigned level_index(uint64_t la, unsigned level) { return la >> level_shift(level) & (ENTRIES - 1); }

// Whether a guest's entry lets user code go on there (or read the page), as the processor would have left it behind an access.
static inline bool entry_usable(const struct shadow *s, uint64_t value)
{
    return (value & (PTE_P | PTE_U | PTE_A)) == (PTE_P | PTE_U | PTE_A) && !(value & s->reserved);
}

// ---- mmu/shadow_tree.c
// Makes a node; there must be one (shadow_reserve()). gpa: of its table, if it has one. May empty the space: see generation.
unsigned shadow_new_node(struct shadow *s, unsigned space, unsigned parent, uint64_t la, uint64_t link, uint64_t table,
                         uint64_t gpa);
// Sees to it that `count` nodes are free.
void shadow_reserve(struct shadow *s, unsigned space, unsigned count);
// Whether the guest's entry still is what node was reached by.
bool shadow_agrees(const struct shadow_node *node, uint64_t value);
void shadow_prune(struct shadow *s, unsigned node);     // frees it and those above it that are empty
void shadow_drop_tree(struct shadow *s, unsigned node); // with a change; the parent may be empty then
// Forgets all that is mapped in a space, with a change.
void shadow_empty(struct shadow *s, unsigned space);
// Forgets it without.
void shadow_clear(struct shadow *s, unsigned space);
void shadow_settle(struct shadow *s);
// `count` entries of a level 1 node, to map RAM pages from `page` on; rights 0 unmaps. One change, if any.
void shadow_put(struct shadow *s, unsigned node, unsigned index, unsigned count, uint64_t page, unsigned rights);
// The level 1 node for la, or 0.
unsigned shadow_leaf(const struct shadow *s, unsigned space, uint64_t la);
// Makes all mappings of a RAM page that are writable or executable readable only.
void shadow_revoke(struct shadow *s, uint64_t page);
// Entries first to last of the guest table in this RAM page may have changed.
void shadow_table_written(struct shadow *s, uint64_t page, unsigned first, unsigned last);
