// The tree of what a space has mapped, its guest tables, and the list of changes (shadow_tree.h).
#include "mmu/shadow_tree.h"

// What must stay the same in an entry for what hangs below it to stay: of one that references a table, D is
// ignored; G is reserved there on AMD's processors. Bits of the address, and PAT, are reserved in entries of
// large pages.
#define LINK_BITS (PTE_P | PTE_W | PTE_U | PTE_A | PTE_PS | PTE_G | PTE_ADDR | PTE_XD)
#define LEAF_BITS (PTE_P | PTE_W | PTE_U | PTE_A | PTE_PS | PTE_ADDR | PTE_XD)

bool shadow_agrees(const struct shadow_node *node, uint64_t value)
{
    uint64_t changed = node->link ^ value;
    if (node->table != NO_TABLE)
        return !(changed & LINK_BITS);
    return !(changed & LEAF_BITS) && !(changed & node->link & PTE_D);
}

// ---- changes

// Whether [from, to) of a level 1 node maps nothing.
static bool nothing_between(const struct shadow *s, unsigned node, unsigned from, unsigned to)
{
    while (from < to && !s->entry[node][from])
        from++;
    return from == to;
}

static void push(struct shadow *s, struct shadow_space *sp, struct shadow_change c)
{
    struct shadow_change *last = sp->count ? &sp->change[sp->count - 1] : NULL;
    if (last && last->rights == c.rights && last->la + last->size == c.la &&
        (!c.rights || last->ram_offset + last->size == c.ram_offset)) {
        last->size += c.size;
        return;
    }
    if (last && last->la == c.la && last->size == c.size) {
        *last = c;
        return;
    }
    if (sp->count == CHANGES) {
        sp->flood = true;
        return;
    }
    sp->change[sp->count++] = c;
    if (c.rights)
        s->counters.mappings++;
    else
        s->counters.unmappings++;
}

// Unmaps pages of a level 1 node, which are empty now. Holes cost nothing, another change does.
static void push_unmap(struct shadow *s, unsigned node, unsigned index, unsigned count)
{
    struct shadow_node *n = &s->node[node];
    struct shadow_space *sp = &s->space[n->space];
    uint64_t la = n->base + index * PAGE_SIZE, end = la + count * PAGE_SIZE;
    if (sp->count) {
        struct shadow_change *last = &sp->change[sp->count - 1];
        uint64_t last_end = last->la + last->size;
        if (!last->rights && last_end >= n->base && last_end <= la &&
            nothing_between(s, node, (unsigned)((last_end - n->base) / PAGE_SIZE), index))
            la = last_end;
    }
    push(s, sp, (struct shadow_change){.la = la, .size = end - la});
}

// ---- entries

static void release(struct shadow *s, uint64_t entry)
{
    if (!(entry & (SHADOW_WRITE | SHADOW_EXEC)))
        return;
    uint64_t number = entry >> PAGE_SHIFT;
    struct shadow_page *p = &s->page[number];
    if (--p->refs)
        return;
    if (p->executable)
        mem_trace_forget(s->m, number, TRACE_RAW);
    p->writable = p->executable = 0;
}

static void acquire(struct shadow *s, unsigned space, uint64_t la, uint64_t entry)
{
    if (!(entry & (SHADOW_WRITE | SHADOW_EXEC)))
        return;
    struct shadow_page *p = &s->page[entry >> PAGE_SHIFT];
    p->refs++;
    p->hint = la >> PAGE_SHIFT;
    if (entry & SHADOW_WRITE)
        p->writable |= (uint16_t)(1u << space);
    else
        p->executable |= (uint16_t)(1u << space);
}

// Sets one entry, without its change; value has no ENTRY_START. Returns whether something is different.
static bool set_entry(struct shadow *s, unsigned node, unsigned index, uint64_t value)
{
    struct shadow_node *n = &s->node[node];
    struct shadow_space *sp = &s->space[n->space];
    uint64_t *e = &s->entry[node][index];
    uint64_t old = *e;
    if (old & ENTRY_CODE && value && !((old ^ value) >> PAGE_SHIFT))
        value |= ENTRY_CODE;
    else if (old & ENTRY_CODE)
        sp->code_lost = true;
    if ((old & ~ENTRY_START) == value)
        return false;
    acquire(s, n->space, n->base + index * PAGE_SIZE, value);
    if (value) {
        uint64_t before = index ? e[-1] & ~(ENTRY_START | ENTRY_CODE) : 0;
        if (!before || before + PAGE_SIZE != (value & ~ENTRY_CODE))
            value |= ENTRY_START;
    }
    *e = value;
    n->count = (uint16_t)(n->count + !old * 1u - !value * 1u);
    if (old) {
        if (((old ^ value) >> PAGE_SHIFT) || (old & ~value & ENTRY_RIGHTS))
            sp->takes = true;
        if (index + 1 < ENTRIES && e[1] && !(e[1] & ENTRY_START)) {
            e[1] |= ENTRY_START;
            sp->mappings++;
        }
        if (old & ENTRY_START)
            sp->mappings--;
        release(s, old);
    }
    if (value & ENTRY_START)
        sp->mappings++;
    return true;
}

void shadow_put(struct shadow *s, unsigned node, unsigned index, unsigned count, uint64_t page,
                unsigned rights)
{
    bool changed = false;
    for (unsigned i = 0; i < count; i++)
        changed |= set_entry(s, node, index + i, rights ? (page + i) << PAGE_SHIFT | rights : 0);
    if (!changed)
        return;
    if (!rights) {
        s->counters.dropped += count;
        push_unmap(s, node, index, count);
        return;
    }
    struct shadow_node *n = &s->node[node];
    push(s, &s->space[n->space],
         (struct shadow_change){n->base + index * PAGE_SIZE, count * PAGE_SIZE, page << PAGE_SHIFT, rights});
}

unsigned shadow_leaf(const struct shadow *s, unsigned space, uint64_t la)
{
    unsigned node = la < USER_END ? s->space[space].root_node : 0;
    for (unsigned level = 4; node && level > 1; level--)
        node = (unsigned)s->entry[node][level_index(la, level)];
    return node;
}

// ---- nodes

unsigned shadow_new_node(struct shadow *s, unsigned space, unsigned parent, uint64_t la, uint64_t link,
                         uint64_t table, uint64_t gpa)
{
    unsigned node = s->free;
    if (node)
        s->free = s->node[node].next;
    else
        node = ++s->nodes_used;
    s->nodes_free--;
    struct shadow_node *n = &s->node[node];
    unsigned level = parent ? s->node[parent].level - 1u : 4;
    *n = (struct shadow_node){.base = la & -(1ull << level_shift(level + 1)),
                              .link = link,
                              .table = table,
                              .parent = (uint16_t)parent,
                              .space = (uint8_t)space,
                              .level = (uint8_t)level};
    if (parent) {
        n->index = (uint16_t)level_index(la, level + 1);
        s->entry[parent][n->index] = node;
        s->node[parent].count++;
    } else {
        s->space[space].root_node = (uint16_t)node;
    }
    if (table == NO_TABLE)
        return node;
    struct shadow_page *p = &s->page[table];
    n->next = (uint16_t)p->uses;
    if (n->next)
        s->node[n->next].prev = (uint16_t)node;
    else
        s->counters.tables++;
    p->uses = node;
    mem_trace_set(s->m, gpa, TRACE_TABLE);
    return node;
}

// Of a node without entries. The parent may be empty then.
static void free_node(struct shadow *s, unsigned node)
{
    struct shadow_node *n = &s->node[node];
    if (n->parent) {
        s->entry[n->parent][n->index] = 0;
        s->node[n->parent].count--;
    } else {
        s->space[n->space].root_node = 0;
    }
    if (n->table != NO_TABLE) {
        if (n->next)
            s->node[n->next].prev = n->prev;
        if (n->prev)
            s->node[n->prev].next = n->next;
        else
            s->page[n->table].uses = n->next;
        if (!s->page[n->table].uses) {
            s->counters.tables--;
            mem_trace_forget(s->m, n->table, TRACE_TABLE);
        }
    }
    n->level = 0;
    n->next = s->free;
    s->free = (uint16_t)node;
    s->nodes_free++;
}

void shadow_prune(struct shadow *s, unsigned node)
{
    while (node && !s->node[node].count) {
        unsigned parent = s->node[node].parent;
        free_node(s, node);
        node = parent;
    }
}

struct span { // what was mapped in a subtree
    uint64_t begin, end, pages;
};

static void drop_below(struct shadow *s, unsigned node, struct span *span)
{
    struct shadow_node *n = &s->node[node];
    for (unsigned i = 0; n->count; i++) {
        if (!s->entry[node][i])
            continue;
        if (n->level > 1) {
            drop_below(s, (unsigned)s->entry[node][i], span);
            continue;
        }
        uint64_t la = n->base + i * PAGE_SIZE;
        if (!span->pages++)
            span->begin = la;
        span->end = la + PAGE_SIZE;
        set_entry(s, node, i, 0);
    }
    free_node(s, node);
}

void shadow_drop_tree(struct shadow *s, unsigned node)
{
    struct shadow_space *sp = &s->space[s->node[node].space];
    struct span span = {0};
    drop_below(s, node, &span);
    s->counters.dropped += span.pages;
    if (span.pages)
        push(s, sp, (struct shadow_change){.la = span.begin, .size = span.end - span.begin});
}

void shadow_clear(struct shadow *s, unsigned space)
{
    struct shadow_space *sp = &s->space[space];
    struct span span = {0};
    if (sp->root_node)
        drop_below(s, sp->root_node, &span);
    s->counters.dropped += span.pages;
    sp->mappings = 0;
    sp->generation++;
    sp->count = 0;
    sp->takes = sp->flood = false;
}

void shadow_empty(struct shadow *s, unsigned space)
{
    struct shadow_space *sp = &s->space[space];
    if (!sp->open || (!sp->root_node && !sp->count))
        return;
    shadow_clear(s, space);
    sp->takes = sp->code_lost = true;
    push(s, sp, (struct shadow_change){.size = USER_END});
}

void shadow_settle(struct shadow *s)
{
    for (unsigned i = 0; i < s->policy.spaces; i++)
        if (s->space[i].flood || s->space[i].mappings > s->policy.max_mappings)
            shadow_empty(s, i);
}

void shadow_reserve(struct shadow *s, unsigned space, unsigned count)
{
    while (s->nodes_free < count) {
        unsigned oldest = space;
        for (unsigned i = 0; i < s->policy.spaces; i++)
            if (i != space && s->space[i].root_node &&
                (oldest == space || s->space[i].opened < s->space[oldest].opened))
                oldest = i;
        shadow_empty(s, oldest);
    }
}

// ---- what takes rights away

static bool lower(struct shadow *s, unsigned node, unsigned index, uint64_t page)
{
    uint64_t e = s->entry[node][index];
    if (e >> PAGE_SHIFT != page || !(e & (SHADOW_WRITE | SHADOW_EXEC)))
        return false;
    shadow_put(s, node, index, 1, page, SHADOW_READ);
    return true;
}

void shadow_revoke(struct shadow *s, uint64_t page)
{
    struct shadow_page *p = &s->page[page];
    unsigned spaces = p->writable | p->executable;
    uint64_t la = (uint64_t)p->hint << PAGE_SHIFT;
    for (unsigned left = spaces; left; left &= left - 1) {
        unsigned node = shadow_leaf(s, (unsigned)__builtin_ctz(left), la);
        if (node)
            lower(s, node, level_index(la, 1), page);
    }
    for (unsigned node = 1; p->refs && node <= s->nodes_used; node++)
        if (s->node[node].level == 1 && (spaces >> s->node[node].space & 1))
            for (unsigned i = 0; p->refs && i < ENTRIES; i++)
                if ((s->entry[node][i] ^ page << PAGE_SHIFT) < PAGE_SIZE)
                    lower(s, node, i, page);
}

// Whether the guest's last-level entry still allows what is mapped.
static bool allows(const struct shadow *s, uint64_t value, uint64_t entry)
{
    uint64_t page;
    if (!entry_usable(s, value) || !shadow_ram_page(s->m, value & PTE_ADDR & s->m->a20_mask, &page) ||
        page != entry >> PAGE_SHIFT)
        return false;
    if ((entry & SHADOW_WRITE) && (value & (PTE_W | PTE_D)) != (PTE_W | PTE_D))
        return false;
    return !(entry & (SHADOW_EXEC | ENTRY_CODE)) || !(value & PTE_XD);
}

void shadow_table_written(struct shadow *s, uint64_t page, unsigned first, unsigned last)
{
    for (unsigned node = (unsigned)s->page[page].uses, next; node; node = next) {
        struct shadow_node *n = &s->node[node];
        for (unsigned i = first; i <= last; i++) {
            uint64_t e = s->entry[node][i];
            if (!e)
                continue;
            uint64_t value = shadow_guest_entry(s->m, page, i);
            if (n->level > 1 && !shadow_agrees(&s->node[e], value))
                shadow_drop_tree(s, (unsigned)e);
            else if (n->level == 1 && !allows(s, value, e))
                shadow_put(s, node, i, 1, 0, 0);
        }
        next = n->next;
        shadow_prune(s, node);
        if (next && !s->node[next].level) // it was above this one
            next = (unsigned)s->page[page].uses;
    }
}
