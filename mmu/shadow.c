// Shadows of guest address spaces, method `traced` (shadow.h): spaces, fills, and what writes and traces take
// away.
//
// A fill is in this order, because each step relies on the one before:
//  1. The guest's tables are walked as the processor would for the access; that sets A and D and finds the
//  guest's own faults.
//  2. The tables on the path get TRACE_TABLE, each before its entry is read again: whoever writes it later,
//  tells us, and
//     whoever has written it before is seen (devices/cell.h has the same rule for code).
//  3. A page that is to be executed gets TRACE_RAW, before its bytes are looked at.
//  4. With all that traced, what the entries allow is mapped.
// Setting a trace bit takes write permission away, so steps 2 and 3 can change any space, this one included:
// where that was emptied (`generation`) the fill begins again.
#include "cpu/model.h"
#include "mmu/shadow_tree.h"
#include <sys/mman.h>

#define TRIES     4u
#define MAX_TURNS 8u
#define AGAIN     ((enum shadow_result)(SHADOW_REFUSED + 1))

// ---- what the guest's mode says

static bool four_levels(const struct vcpu *v)
{
    return (v->s.cr0 & CR0_PG) && (v->s.cr4 & CR4_PAE) && cpu_long(v);
}

static uint64_t reserved_bits(const struct vcpu *v)
{
    uint64_t bits = PTE_ADDR & -(1ull << (cpu_model_phys_bits(v->model) & 63));
    return v->s.efer & EFER_NXE ? bits : bits | PTE_XD;
}

// What is mapped was found in a mode with the same reserved bits.
static void follow_mode(struct shadow *s)
{
    uint64_t bits = reserved_bits(s->v);
    if (bits == s->reserved)
        return;
    s->reserved = bits;
    for (unsigned i = 0; i < s->policy.spaces; i++)
        shadow_empty(s, i);
}

// ---- executable pages

// One more turn than was allowed is remembered; it is halved each time a space is closed.
static unsigned turns_of(const struct shadow *s, const struct shadow_page *p)
{
    uint32_t age = (s->epoch - p->epoch) & ((1u << EPOCH_BITS) - 1);
    return age > 4 ? 0 : (unsigned)p->turns >> age;
}

static void lose_exec(struct shadow *s, uint64_t page)
{
    struct shadow_page *p = &s->page[page];
    unsigned turns = turns_of(s, p);
    p->turns = (turns <= MAX_TURNS ? turns + 1 : turns) & 15;
    p->epoch = s->epoch & ((1u << EPOCH_BITS) - 1);
    s->counters.exec_lost++;
    shadow_revoke(s, page);
}

// Makes a RAM page one that can be mapped executable: nothing has it writable then, and a write will be told.
static bool gain_exec(struct shadow *s, uint64_t page, uint64_t gpa)
{
    struct shadow_page *p = &s->page[page];
    if (p->executable)
        return true;
    if (p->refused || turns_of(s, p) > MAX_TURNS)
        return false;
    mem_trace_set(s->m, gpa, TRACE_RAW);
    if (!(mem_trace_bits(s->m, page) & TRACE_RAW) || !s->policy.may_execute)
        return false;
    if (s->policy.may_execute(s->policy.opaque, page))
        return true;
    p->refused = 1;
    return false;
}

static void forget_refusal(struct shadow *s, uint64_t page)
{
    if (!s->page[page].refused)
        return;
    s->page[page].refused = 0;
    mem_trace_forget(s->m, page, TRACE_RAW);
}

// ---- what the traces tell

static void on_written(void *opaque, uint64_t gpa, unsigned len)
{
    struct shadow *s = opaque;
    uint64_t page;
    if (!len || !shadow_ram_page(s->m, gpa, &page))
        return;
    if (s->page[page].executable)
        lose_exec(s, page);
    forget_refusal(s, page);
    if (s->page[page].uses) {
        uint64_t first = gpa % PAGE_SIZE, last = first + len - 1;
        s->counters.table_hits++;
        shadow_table_written(s, page, (unsigned)first / 8,
                             (unsigned)(last < PAGE_SIZE ? last : PAGE_SIZE - 1) / 8);
    }
    shadow_settle(s);
}

static void on_traced(void *opaque, uint64_t gpa)
{
    struct shadow *s = opaque;
    uint64_t page;
    if (!shadow_ram_page(s->m, gpa, &page))
        return;
    uint8_t bits = mem_trace_bits(s->m, page);
    if (bits & (TRACE_TABLE | TRACE_RAW))
        mmu_drop_writable(s->v, gpa);
    if (!bits || !s->page[page].writable)
        return;
    shadow_revoke(s, page);
    shadow_settle(s);
}

static void on_changed(void *opaque)
{
    struct shadow *s = opaque;
    for (unsigned i = 0; i < s->policy.spaces; i++)
        shadow_empty(s, i);
}

// ---- create, destroy

struct shadow *shadow_create(struct vcpu *v, const struct shadow_policy *policy)
{
    int prot = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    struct shadow *s = mmap(NULL, sizeof *s, prot, flags, -1, 0);
    if (s == MAP_FAILED)
        return NULL;
    s->page_bytes = v->mem->ram_size / PAGE_SIZE * sizeof *s->page;
    s->page = mmap(NULL, s->page_bytes, prot, flags, -1, 0);
    if (s->page == MAP_FAILED) {
        munmap(s, sizeof *s);
        return NULL;
    }
    s->v = v;
    s->m = v->mem;
    s->policy = *policy;
    struct shadow_policy *p = &s->policy;
    p->spaces = p->spaces < 1 ? 1 : p->spaces > SHADOW_SPACES ? SHADOW_SPACES : p->spaces;
    p->prefill = p->prefill < 1 ? 1 : p->prefill > ENTRIES ? ENTRIES : p->prefill;
    p->prefill = 1u << (31 - __builtin_clz(p->prefill));
    if (p->max_mappings < 8) // a page in the midst of another mapping makes three of it
        p->max_mappings = 8;
    s->reserved = reserved_bits(v);
    s->nodes_free = NODES - 1;
    struct mem_trace_client client = {.written = on_written,
                                      .traced = on_traced,
                                      .opaque = s,
                                      .bit = TRACE_TABLE | TRACE_RAW,
                                      .hears = TRACE_CODE | TRACE_DIRTY,
                                      .changed = on_changed};
    if (mem_trace_register(s->m, client) < 0) {
        munmap(s->page, s->page_bytes);
        munmap(s, sizeof *s);
        return NULL;
    }
    return s;
}

void shadow_destroy(struct shadow *s)
{
    if (!s)
        return;
    for (unsigned i = 0; i < s->policy.spaces; i++)
        shadow_close(s, (int)i);
    for (uint64_t page = 0; page < s->page_bytes / sizeof *s->page; page++)
        forget_refusal(s, page);
    mem_trace_unregister(s->m, s);
    munmap(s->page, s->page_bytes);
    munmap(s, sizeof *s);
}

// ---- spaces

static const struct shadow_space *space_of(const struct shadow *s, int space)
{
    return (unsigned)space < s->policy.spaces && s->space[space].open ? &s->space[space] : NULL;
}

static int find(const struct shadow *s)
{
    if (!four_levels(s->v))
        return -1;
    for (unsigned i = 0; i < s->policy.spaces; i++)
        if (s->space[i].open && s->space[i].root == (s->v->s.cr3 & PTE_ADDR))
            return (int)i;
    return -1;
}

int shadow_find(const struct shadow *s)
{
    return s->reserved == reserved_bits(s->v) ? find(s) : -1;
}

int shadow_open(struct shadow *s, bool *fresh)
{
    follow_mode(s);
    *fresh = false;
    if (!four_levels(s->v))
        return -1;
    int number = find(s);
    if (number >= 0)
        return number;
    *fresh = true;
    number = 0;
    for (unsigned i = 0; i < s->policy.spaces && s->space[number].open; i++)
        if (!s->space[i].open || s->space[i].opened < s->space[number].opened)
            number = (int)i;
    shadow_close(s, number);
    struct shadow_space *sp = &s->space[number];
    sp->open = true;
    sp->root = s->v->s.cr3 & PTE_ADDR;
    sp->opened = ++s->time;
    return number;
}

void shadow_close(struct shadow *s, int space)
{
    if (!space_of(s, space))
        return;
    shadow_clear(s, (unsigned)space);
    s->space[space].open = false;
    s->epoch++;
}

// ---- fills

struct path {        // what the guest's tables say of an address
    uint64_t value;  // leaf entry
    uint64_t rights; // PTE_W where all entries above it have it
    bool xd;         // in any of them
    unsigned level;  // of the leaf entry
    unsigned node;   // of level 1
};

static bool can_map(const struct shadow *s, uint64_t la, uint64_t size)
{
    if (la >= USER_END - PAGE_SIZE || size > USER_END - PAGE_SIZE - la)
        return false;
    for (unsigned i = 0; i < 2; i++)
        if (la + size > s->policy.reserved[i].begin && la < s->policy.reserved[i].end)
            return false;
    return true;
}

// The node below `parent` for la, reached by the guest's entry `value`.
static unsigned child(struct shadow *s, unsigned space, unsigned parent, uint64_t la, uint64_t value,
                      uint64_t table, uint64_t gpa)
{
    unsigned node = (unsigned)s->entry[parent][level_index(la, s->node[parent].level)];
    if (node && (s->node[node].table != table || !shadow_agrees(&s->node[node], value))) {
        // Whoever wrote the entry is about to tell us, by way of another thread.
        shadow_drop_tree(s, node);
        node = 0;
    }
    if (!node)
        return shadow_new_node(s, space, parent, la, value, table, gpa);
    s->node[node].link = value; // of a large page: D may be set now
    return node;
}

// Follows the guest's tables and traces them. Whatever the result, p->node is the last node made, if that
// still exists.
static enum shadow_result trace_path(struct shadow *s, unsigned space, uint64_t la, struct path *p)
{
    struct shadow_space *sp = &s->space[space];
    uint32_t generation = sp->generation;
    uint64_t gpa = sp->root & s->m->a20_mask, table;
    *p = (struct path){.rights = PTE_W, .node = sp->root_node};
    if (!shadow_ram_page(s->m, gpa, &table))
        return SHADOW_REFUSED;
    if (!p->node)
        p->node = shadow_new_node(s, space, 0, la, 0, table, gpa);
    for (unsigned level = 4;; level--) {
        if (sp->generation != generation) {
            p->node = 0;
            return AGAIN;
        }
        p->value = shadow_guest_entry(s->m, table, level_index(la, level));
        p->level = level;
        if (!entry_usable(s, p->value))
            return AGAIN;
        if (level == 1 || (level < 4 && (p->value & PTE_PS)))
            break;
        p->rights &= p->value;
        p->xd |= p->value >> 63;
        gpa = p->value & PTE_ADDR & s->m->a20_mask;
        if (!shadow_ram_page(s->m, gpa, &table))
            return SHADOW_REFUSED;
        p->node = child(s, space, p->node, la, p->value, table, gpa);
    }
    for (unsigned level = p->level; level > 1; level--)
        p->node = child(s, space, p->node, la, p->value, NO_TABLE, 0);
    return SHADOW_FILLED;
}

// The guest's entry for page `index` of the path's level 1 node: its own, or the large page's as if it were
// one of many.
static uint64_t entry_at(const struct shadow *s, const struct path *p, unsigned index)
{
    const struct shadow_node *n = &s->node[p->node];
    if (p->level == 1)
        return shadow_guest_entry(s->m, n->table, index);
    uint64_t mask = (1ull << level_shift(p->level)) - 1;
    uint64_t frame = (p->value & PTE_ADDR & ~mask) | ((n->base + index * PAGE_SIZE) & mask);
    return (p->value & ~PTE_ADDR) | frame;
}

static bool may_write(const struct path *p, uint64_t value)
{
    return (p->rights & PTE_W) && (value & PTE_W) && (value & PTE_D);
}

static bool may_fetch(const struct path *p, uint64_t value)
{
    return !p->xd && !(value & PTE_XD);
}

// What may be mapped of a RAM page without taking anything from anybody.
static unsigned rights_at(const struct shadow *s, const struct path *p, uint64_t value, uint64_t page)
{
    unsigned rights = SHADOW_READ;
    if (may_write(p, value) && !mem_trace_bits(s->m, page))
        rights |= SHADOW_WRITE;
    if (may_fetch(p, value) && s->page[page].executable)
        rights |= SHADOW_EXEC;
    return rights;
}

// Maps a neighbour of the page that was asked for.
static void prefill(struct shadow *s, const struct path *p, unsigned index, unsigned acc)
{
    uint64_t value = entry_at(s, p, index), page, gpa = value & PTE_ADDR & s->m->a20_mask;
    struct shadow_node *n = &s->node[p->node];
    if (!entry_usable(s, value) || !can_map(s, n->base + index * PAGE_SIZE, PAGE_SIZE) ||
        !shadow_ram_page(s->m, gpa, &page))
        return;
    unsigned rights = rights_at(s, p, value, page);
    if ((acc & ACC_EXEC) && rights == SHADOW_READ && may_fetch(p, value) && !s->page[page].writable &&
        gain_exec(s, page, gpa))
        rights |= SHADOW_EXEC;
    uint64_t old = s->entry[p->node][index];
    if (old >> PAGE_SHIFT == page && !(rights & ~old & ENTRY_RIGHTS))
        return;
    shadow_put(s, p->node, index, 1, page, rights);
    s->counters.prefilled++;
}

// Whether the 2 MiB around a page of a large one can be mapped as one piece with these rights.
static bool is_uniform(const struct shadow *s, const struct path *p, uint64_t page, unsigned index,
                       unsigned rights)
{
    const struct shadow_node *n = &s->node[p->node];
    uint64_t gpa = entry_at(s, p, 0) & PTE_ADDR, first;
    if (p->level == 1 || (rights & SHADOW_EXEC) || !can_map(s, n->base, ENTRIES * PAGE_SIZE) || page < index)
        return false;
    if ((gpa & s->m->a20_mask) != gpa ||
        ((gpa + ENTRIES * PAGE_SIZE - 1) & s->m->a20_mask) != gpa + ENTRIES * PAGE_SIZE - 1)
        return false;
    if (!(rights & SHADOW_WRITE) && may_write(p, p->value))
        return false; // this page is traced; others may be writable
    if (!shadow_ram_page(s->m, gpa, &first) || first != page - index ||
        mem_find(s->m, gpa).left < ENTRIES * PAGE_SIZE)
        return false;
    uint8_t in_the_way = rights & SHADOW_WRITE ? 0xff : TRACE_RAW;
    for (unsigned i = 0; i < ENTRIES; i++)
        if (mem_trace_bits(s->m, first + i) & in_the_way)
            return false;
    return true;
}

// Maps the page that was asked for and what else the occasion allows.
static bool map_around(struct shadow *s, struct shadow_space *sp, const struct path *p, uint64_t la,
                       uint64_t page, unsigned rights, unsigned acc)
{
    unsigned index = level_index(la, 1);
    if (sp->count + 1 > CHANGES || sp->mappings + 2 > s->policy.max_mappings)
        return false;
    if (is_uniform(s, p, page, index, rights)) {
        shadow_put(s, p->node, 0, ENTRIES, page - index, rights);
        s->counters.prefilled += ENTRIES - 1;
        return true;
    }
    unsigned window = s->policy.prefill;
    if (sp->count + window > CHANGES || sp->mappings + 2 * window > s->policy.max_mappings)
        window = 1;
    unsigned first = index & ~(window - 1);
    for (unsigned i = first; i < first + window; i++)
        if (i == index)
            shadow_put(s, p->node, index, 1, page, rights);
        else
            prefill(s, p, i, acc);
    return true;
}

// Gets the page ready for the access and maps it.
static enum shadow_result grant(struct shadow *s, struct shadow_space *sp, const struct path *p, uint64_t la,
                                uint64_t page, uint64_t gpa, unsigned acc)
{
    uint32_t generation = sp->generation;
    struct shadow_page *sh = &s->page[page];
    if (((acc & ACC_WRITE) && !may_write(p, p->value)) || ((acc & ACC_EXEC) && !may_fetch(p, p->value)))
        return AGAIN;
    if (acc & ACC_WRITE) {
        uint8_t bits = mem_trace_bits(s->m, page);
        if (bits & ~(TRACE_DIRTY | TRACE_RAW))
            return SHADOW_REFUSED;
        if (sh->executable)
            lose_exec(s, page);
        forget_refusal(s, page);
        if (mem_trace_bits(s->m, page) & ~TRACE_DIRTY)
            return SHADOW_REFUSED;
        if (bits & TRACE_DIRTY)
            mem_dirty_mark(s->m, page);
    } else if ((acc & (ACC_EXEC | ACC_CODE)) == ACC_EXEC && !gain_exec(s, page, gpa)) {
        return SHADOW_REFUSED;
    }
    shadow_settle(s);
    enum shadow_result result = AGAIN;
    if (sp->generation == generation) {
        unsigned rights = rights_at(s, p, p->value, page) | ((acc & (ACC_EXEC | ACC_CODE)) == ACC_EXEC ? SHADOW_EXEC : 0);
        if (map_around(s, sp, p, la, page, rights, acc & ACC_CODE ? ACC_READ : acc)) {
            result = SHADOW_FILLED;
            if (acc & ACC_CODE)
                s->entry[p->node][level_index(la, 1)] |= ENTRY_CODE;
        }
        else
            shadow_empty(s, (unsigned)(sp - s->space));
    }
    if ((acc & (ACC_EXEC | ACC_CODE)) == ACC_EXEC && !sh->executable && !sh->refused)
        mem_trace_forget(s->m, page, TRACE_RAW);
    return result;
}

static enum shadow_result try_fill(struct shadow *s, unsigned space, uint64_t la, unsigned acc,
                                   uint32_t *error)
{
    struct shadow_space *sp = &s->space[space];
    struct walk w;
    struct path p;
    uint64_t page;
    if (!mmu_walk(s->v, la, acc | ACC_USER, &w, error))
        return SHADOW_FAULT;
    if (!shadow_ram_page(s->m, w.gpa, &page))
        return SHADOW_REFUSED;
    mem_prefault(s->m, page);
    shadow_reserve(s, space, 4);
    uint32_t generation = sp->generation;
    enum shadow_result result = trace_path(s, space, la, &p);
    if (result == SHADOW_FILLED) {
        uint64_t now = entry_at(s, &p, level_index(la, 1)) & PTE_ADDR & s->m->a20_mask;
        result = now == (w.gpa & -PAGE_SIZE) ? grant(s, sp, &p, la, page, w.gpa, acc) : AGAIN;
    }
    if (sp->generation == generation)
        shadow_prune(s, p.node);
    shadow_settle(s);
    return result;
}

enum shadow_result shadow_fill(struct shadow *s, int space, uint64_t la, unsigned acc, uint32_t *error)
{
    enum shadow_result result = SHADOW_REFUSED;
    follow_mode(s);
    if (space_of(s, space) && find(s) == space && can_map(s, la & -PAGE_SIZE, PAGE_SIZE)) {
        unsigned tries = 0;
        do {
            result = try_fill(s, (unsigned)space, la, acc & (ACC_WRITE | ACC_EXEC | ACC_CODE), error);
        } while (result == AGAIN && ++tries < TRIES);
    }
    if (result == AGAIN)
        result = SHADOW_REFUSED;
    if (result == SHADOW_FILLED)
        s->counters.fills++;
    else if (result == SHADOW_FAULT)
        s->counters.faults++;
    else
        s->counters.refused++;
    return result;
}

// ---- what there is to know

unsigned shadow_rights(const struct shadow *s, int space, uint64_t la, uint64_t *ram_offset)
{
    unsigned node = space_of(s, space) ? shadow_leaf(s, (unsigned)space, la) : 0;
    uint64_t e = node ? s->entry[node][level_index(la, 1)] : 0;
    if (e && ram_offset)
        *ram_offset = e & -PAGE_SIZE;
    return e & ENTRY_RIGHTS;
}

const struct shadow_change *shadow_changes(const struct shadow *s, int space, unsigned *count)
{
    const struct shadow_space *sp = space_of(s, space);
    *count = sp ? sp->count : 0;
    return sp ? sp->change : NULL;
}

bool shadow_code_lost(struct shadow *s, int space)
{
    if (!space_of(s, space))
        return true;
    bool lost = s->space[space].code_lost;
    s->space[space].code_lost = false;
    return lost;
}

void shadow_done(struct shadow *s, int space)
{
    if (!space_of(s, space))
        return;
    s->space[space].count = 0;
    s->space[space].takes = false;
}

bool shadow_takes(const struct shadow *s, int space)
{
    const struct shadow_space *sp = space_of(s, space);
    return sp && sp->takes;
}

const struct shadow_counters *shadow_counters(const struct shadow *s)
{
    return &s->counters;
}
