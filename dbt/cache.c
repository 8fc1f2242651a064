// Finding, linking and discarding blocks: a hash by RIP, lists by guest page, and the links between blocks. The memory they
// lie in is dbt/region.c's.
#include <errno.h>
#include "dbt/dbt.h"

static uint32_t mixed(uint64_t address, uint32_t key)
{
    return (uint32_t)((address ^ (uint64_t)key << 32) * 0x9e3779b97f4a7c15ull >> 40);
}

static uint32_t hash_of(const struct dbt *d, uint64_t rip, uint32_t key)
{
    return mixed(rip, key) & d->hash_mask;
}

void cache_ib_clear(struct dbt *d, bool global)
{
    uint32_t n = d->ib_count[global];
    if (n < IB_LOG) {
        for (uint32_t i = 0; i < n; i++)
            d->contexts[d->ib_log[global][i] >> 16].tag[d->ib_log[global][i] & 0xffff] = (d->ib_log[global][i] & 0xffff) == 0;
    } else {
        for (unsigned c = 0; c < d->context_count; c++) {
            for (unsigned i = 0; i < 65536; i++)
                d->contexts[c].tag[i] = 0;
            d->contexts[c].tag[0] = 1;
        }
    }
    d->ib_count[global] = 0;
}

// ---- exits of user blocks, which wait for the block that they lead to: each stop in a worker costs microseconds

static uint32_t *waiting_for(struct dbt *d, uint64_t rip, uint32_t key)
{
    return &d->waiting[hash_of(d, rip, key)];
}

static void wait_for_block(struct dbt *d, struct exit *e)
{
    uint32_t *first = waiting_for(d, e->target, exit_key(e));
    e->logged = 1;
    e->incoming_prev = 0;
    e->incoming_next = *first;
    if (*first)
        LOW(struct exit, *first)->incoming_prev = (uint32_t)(uint64_t)e;
    *first = (uint32_t)(uint64_t)e;
}

static void wait_no_more(struct dbt *d, struct exit *e)
{
    if (!(exit_block(e)->key & KEY_USER) || !e->logged)
        return;
    if (e->incoming_next)
        LOW(struct exit, e->incoming_next)->incoming_prev = e->incoming_prev;
    if (e->incoming_prev)
        LOW(struct exit, e->incoming_prev)->incoming_next = e->incoming_next;
    else
        *waiting_for(d, e->target, exit_key(e)) = e->incoming_next;
    e->logged = 0;
    e->incoming_next = e->incoming_prev = 0;
}

// A block that lies in one page.
static struct block *find_within(struct dbt *d, uint64_t rip, uint64_t gpa, uint32_t key)
{
    struct block *b = d->hash[hash_of(d, rip, key)];
    while (b && (b->rip != rip || b->gpa != gpa || b->key != key || b->straddles))
        b = b->hash_next;
    return b;
}

void cache_link_around(struct dbt *d, struct block *b)
{
    if (b->dead || b->straddles)
        return;
    for (uint32_t next = *waiting_for(d, b->rip, b->key); next;) {
        struct exit *e = LOW(struct exit, next);
        next = e->incoming_next;
        if (e->target == b->rip && exit_key(e) == b->key)
            cache_link(d, e, b);
    }
    for (unsigned i = 0; i < b->exit_count; i++) {
        struct exit *e = &b->exits[i];
        if (e->to || e->logged)
            continue;
        struct block *to = e->kind == EXIT_FAR ? NULL : find_within(d, e->target, (b->gpa & ~(uint64_t)(PAGE_SIZE - 1)) | (e->target & (PAGE_SIZE - 1)), exit_key(e));
        if (to)
            cache_link(d, e, to);
        if (!e->to)
            wait_for_block(d, e);
    }
}

static void unlink_exit(struct dbt *d, struct exit *e)
{
    if (!e->to)
        return;
    if (e->kind == EXIT_FAR) {
        *(uint64_t *)(uint64_t)e->site = e->cold;
    } else {
        int32_t rel = (int32_t)(e->cold - (e->site + 4));
        __builtin_memcpy(d->rw + (e->site - d->rx), &rel, 4);
    }
    if (e->incoming_next)
        LOW(struct exit, e->incoming_next)->incoming_prev = e->incoming_prev;
    if (e->incoming_prev)
        LOW(struct exit, e->incoming_prev)->incoming_next = e->incoming_next;
    else
        LOW(struct block, e->to)->incoming = e->incoming_next;
    e->to = e->incoming_next = e->incoming_prev = 0;
    if (exit_block(e)->key & KEY_USER && !exit_block(e)->dead)
        wait_for_block(d, e);
}

// After a flush of the guest's TLB: jumps to other pages must look again where they lead.
void cache_forget_far(struct dbt *d, bool global)
{
    for (unsigned g = 0; g <= (unsigned)global; g++) {
        for (uint32_t i = 0; i < d->far_count[g]; i++) {
            d->far_log[g][i]->logged = 0;
            unlink_exit(d, d->far_log[g][i]);
        }
        d->n.far_resets += d->far_count[g];
        d->far_count[g] = 0;
        cache_ib_clear(d, g);
    }
    ras_reset(d);
}

void cache_forget_space(struct dbt *d, unsigned space)
{
    struct context *c = &d->contexts[CONTEXTS + space];
    for (unsigned i = 0; i < 65536; i++)
        if (c->tag[i])
            c->tag[i] = 0;
    c->tag[0] = 1;
    for (unsigned r = 0; r < REGIONS; r++)
        for (uint32_t n = 0; n < d->regions[r].block_count; n++) {
            struct block *b = LOW(struct block, d->regions[r].blocks[n]);
            if (b->dead || !(b->key & KEY_USER) || (b->key & KEY_SPACE_MASK) >> KEY_SPACE_SHIFT != space)
                continue;
            for (unsigned i = 0; i < b->exit_count; i++)
                if (b->exits[i].kind == EXIT_FAR)
                    unlink_exit(d, &b->exits[i]);
        }
    d->code_generation++;
}

uint32_t *cache_place(struct dbt *d, uint64_t gpa, uint32_t key)
{
    return &d->place[mixed(gpa, key) & PLACE_MASK];
}

struct block *cache_find(struct dbt *d, uint64_t rip, uint64_t gpa, uint32_t key)
{
    const struct vcpu *v = d->v;
    bool code64 = (key & KEY_CODE_MASK) == KEY_CODE64;
    for (struct block *b = d->hash[hash_of(d, rip, key)]; b; b = b->hash_next) {
        if (b->rip != rip || b->gpa != gpa || b->key != key)
            continue;
        if (!code64 && (b->cs_base != v->s.seg[SEG_CS].base || b->cs_limit != v->s.seg[SEG_CS].limit))
            continue;
        if (b->straddles) { // the second page decides too
            uint64_t la = b->rip + b->cs_base + b->range[0].len;
            if ((mode_fetch(d, code64 ? la : (uint32_t)la).gpa & ~(PAGE_SIZE - 1)) != (b->range[1].gpa & ~(PAGE_SIZE - 1)))
                continue;
        }
        return b;
    }
    return NULL;
}

int cache_insert(struct dbt *d, struct block *b)
{
    if (cache_block_add(d, b) < 0)
        return -ENOSPC;
    for (unsigned r = 0; r < b->range_count; r++) {
        struct mem_slot s = mem_find(d->v->mem, b->range[r].gpa);
        if (s.kind != MEM_RAM || s.ram_page >= d->page_count || !b->range[r].len)
            continue;
        bool there = false;
        for (unsigned q = 0; q < r; q++)
            there |= (b->range[q].gpa ^ b->range[r].gpa) >> PAGE_SHIFT == 0;
        if (there)
            continue;
        struct page_link *l = arena_alloc(d, sizeof *l);
        if (!l) {
            b->dead = 1; // some pages' lists have it: it goes with its region
            return -ENOSPC;
        }
        *l = (struct page_link){.block = b};
        *(d->pages[s.ram_page] ? d->page_end[s.ram_page] : &d->pages[s.ram_page]) = l;
        d->page_end[s.ram_page] = &l->next;
        mem_trace_set(d->v->mem, b->range[r].gpa, TRACE_CODE);
    }
    struct block **h = &d->hash[hash_of(d, b->rip, b->key)];
    b->hash_next = *h;
    *h = b;
    return 0;
}

void cache_kill(struct dbt *d, struct block *b)
{
    b->dead = 1;
    for (struct block **p = &d->hash[hash_of(d, b->rip, b->key)]; *p; p = &(*p)->hash_next)
        if (*p == b) {
            *p = b->hash_next;
            break;
        }
    while (b->incoming)
        unlink_exit(d, LOW(struct exit, b->incoming));
    for (unsigned i = 0; i < b->exit_count; i++) {
        unlink_exit(d, &b->exits[i]);
        wait_no_more(d, &b->exits[i]);
    }
    uint32_t *place = cache_place(d, b->gpa, b->key);
    if (*place == (uint32_t)(uint64_t)b)
        *place = 0;
    d->code_generation++;
    unsigned i = b->rip & 0xffff;
    if (b->key & KEY_USER) {
        struct context *c = user_context(d, b->key);
        if (c->code[i] == b->code_parked)
            c->tag[i] = i == 0;
        return;
    }
    for (unsigned c = 0; c < d->context_count; c++)
        if (d->contexts[c].key == b->key && d->contexts[c].code[i] == b->code_parked)
            d->contexts[c].tag[i] = i == 0;
}

static bool overlaps(const struct block *b, uint64_t gpa, unsigned len)
{
    for (unsigned r = 0; r < b->range_count; r++)
        if (b->range[r].gpa < gpa + len && gpa < b->range[r].gpa + b->range[r].len)
            return true;
    return false;
}

void cache_invalidate(struct dbt *d, uint64_t gpa, unsigned len)
{
    struct mem_slot s = mem_find(d->v->mem, gpa);
    if (s.kind != MEM_RAM || s.ram_page >= d->page_count)
        return;
    bool killed = false;
    struct page_link **p = &d->pages[s.ram_page];
    while (*p) {
        struct block *b = (*p)->block;
        if (b->dead) {
            *p = (*p)->next;
        } else if (overlaps(b, gpa, len)) {
            cache_kill(d, b);
            d->n.invalidations++;
            killed = true;
            *p = (*p)->next;
        } else {
            p = &(*p)->next;
        }
    }
    d->page_end[s.ram_page] = p;
    if (!d->pages[s.ram_page] && !killed) // the code written here may come back: the next write tells
        mem_trace_clear(d->v->mem, gpa, TRACE_CODE);
    if (killed)
        ras_reset(d); // host return addresses may lead into what was discarded
}

void cache_unmerge(struct dbt *d, struct block *b)
{
    unsigned slot = unmerged_slot(b->rip);
    d->unmerged[slot] = b->rip;
    d->unmerged_any[slot / 64] |= 1ull << slot % 64;
    if (!b->dead)
        cache_kill(d, b);
    ras_reset(d);
}

const struct map_entry *cache_map(const struct block *b, uint64_t at)
{
    uint32_t off = (uint32_t)(at - b->code);
    for (unsigned i = b->map_count; i-- > 0;)
        if (b->map[i].host <= off)
            return &b->map[i];
    return NULL;
}

bool cache_guest_rip(struct block *b, uint64_t at, uint64_t *rip, bool *start)
{
    const struct map_entry *m = cache_map(b, at);
    if (!m)
        return false;
    *rip = b->rip + m->guest;
    *start = m->host == (uint32_t)(at - b->code) && !m->shadow;
    return true;
}

const struct map_entry *cache_map_cold(const struct block *b, uint64_t return_address)
{
    // what follows the call is the jump back, to just behind the check
    int32_t rel;
    __builtin_memcpy(&rel, (const void *)(return_address + 1), 4);
    return cache_map(b, return_address + 5 + (uint64_t)(int64_t)rel - 1);
}

void cache_link(struct dbt *d, struct exit *e, struct block *to)
{
    struct block *from = exit_block(e);
    if (e->to || from->dead || to->dead || (to->straddles && e->kind == EXIT_NEAR) || to->key != exit_key(e))
        return;
    if (e->kind == EXIT_FAR) {
        if (!e->logged && !(from->key & KEY_USER)) {
            unsigned g = from->global && to->global;
            d->far_log[g][d->far_count[g]++] = e;
            e->logged = 1;
        }
        *(uint64_t *)(uint64_t)e->site = e->at_out == OUT_PARKED ? to->code_parked : to->code;
    } else {
        if ((from->gpa ^ to->gpa) >> PAGE_SHIFT)
            return;
        int32_t rel = (int32_t)(to->code - (e->site + 4));
        __builtin_memcpy(d->rw + (e->site - d->rx), &rel, 4);
    }
    wait_no_more(d, e);
    e->to = (uint32_t)(uint64_t)to;
    e->incoming_next = to->incoming;
    e->incoming_prev = 0;
    if (to->incoming)
        LOW(struct exit, to->incoming)->incoming_prev = (uint32_t)(uint64_t)e;
    to->incoming = (uint32_t)(uint64_t)e;
}

void cache_ib_set(struct dbt *d, struct block *b)
{
    struct context *c = d->context;
    if (!c || b->key != c->key)
        return;
    unsigned i = b->rip & 0xffff, g = b->global;
    if (c->tag[i] == b->rip && c->code[i] == b->code_parked)
        return;
    c->tag[i] = b->rip;
    c->code[i] = b->code_parked;
    if (!(b->key & KEY_USER) && d->ib_count[g] < IB_LOG)
        d->ib_log[g][d->ib_count[g]++] = (uint32_t)(c - d->contexts) << 16 | i;
}
