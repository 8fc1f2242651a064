// Blocks of pages that are mapped once more, at another guest address: programs and libraries of Linux lie elsewhere in each process. A
// block that is there for the same bytes in the same mode is copied, and what depends on where it lies is corrected: a tenth of what
// translating them costs (docs/decisions/021-rebase.md). The emitters note those fields (a_note() in dbt/asm.h).
//
// Only the distance between the two guest addresses matters, and it is a multiple of the page size: so which exits leave the page, and
// what liveness found behind them, is the same.
#include "dbt/internal.h"

#define LOWEST  (1ull << 33) // guest addresses there are translated in the long form, as are those 2 GiB around
#define HIGHEST ((1ull << 47) - (1ull << 33))

static bool moves(uint64_t rip) { return rip >= LOWEST && rip < HIGHEST; }

bool rebase_wants(const struct dbt *d, uint64_t rip, uint32_t key)
{
    return (key & (KEY_CODE_MASK | KEY_CPL_MASK)) == (KEY_CODE64 | KEY_CPL_MASK) && moves(rip) && !d->v->count.on &&
           !(key & (KEY_ONE | KEY_BOUNCE | KEY_AC | KEY_NOMERGE | KEY_USER));
}

static uint8_t context_number(const struct dbt *d) { return d->context ? (uint8_t)(d->context - d->contexts) : 0xff; }

void rebase_offer(struct translation *t, struct block *b)
{
    struct asm_buf *a = &t->a;
    b->relocs = NULL;
    if (!a->reloc || a->fixed || b->straddles || b->code_len > RELOC_REACH)
        return;
    b->relocs = arena_alloc(t->d, a->reloc_count * sizeof *b->relocs);
    if (!b->relocs)
        return; // it is not needed
    memcpy(b->relocs, a->reloc, a->reloc_count * sizeof *b->relocs);
    b->reloc_count = (uint16_t)a->reloc_count;
    b->context = context_number(t->d);
    *cache_place(t->d, b->gpa, b->key) = (uint32_t)(uint64_t)b;
}

// ---- the copy

struct copy {
    struct dbt *d;
    const struct block *from;
    struct block *to;
    uint8_t *code; // writable
    uint64_t delta; // of guest addresses
};

static void *copy_of(struct dbt *d, const void *data, size_t n)
{
    void *p = arena_alloc(d, n);
    return p ? memcpy(p, data, n) : NULL;
}

static bool copy_exits(struct copy *c)
{
    struct block *to = c->to;
    uint32_t moved = to->code - c->from->code;
    to->exits = copy_of(c->d, c->from->exits, to->exit_count * sizeof *to->exits);
    if (!to->exits)
        return false;
    for (unsigned i = 0; i < to->exit_count; i++) {
        struct exit *e = &to->exits[i];
        e->target += c->delta;
        e->to = e->incoming_next = e->incoming_prev = 0;
        e->logged = 0;
        e->block = (uint32_t)(uint64_t)to;
        e->cold += moved;
        if (e->kind == EXIT_FAR) {
            uint64_t *slot = cache_slot(c->d);
            if (!slot)
                return false;
            *slot = e->cold;
            e->site = (uint32_t)(uint64_t)slot;
        } else { // it may have been linked
            e->site += moved;
            int32_t rel = (int32_t)(e->cold - (e->site + 4));
            memcpy(c->code + (e->site - to->code), &rel, 4);
        }
    }
    return true;
}

// Where the copy finds what the original finds at this address outside of itself: there, but for its exits' slots.
static uint64_t counterpart(const struct copy *c, uint64_t address)
{
    for (unsigned i = 0; i < c->to->exit_count; i++)
        if (c->from->exits[i].kind == EXIT_FAR && c->from->exits[i].site == address)
            return c->to->exits[i].site;
    return address;
}

static uint32_t move_entry(const struct copy *c, uint32_t address)
{
    const struct tlb_set *set = &c->d->v->tlb->set[(c->to->key & KEY_TLB_MASK) >> KEY_TLB_SHIFT];
    const uint64_t *const table[] = {set->read_tag, set->write_tag, set->host_page, set->addend};
    for (unsigned i = 0; i < sizeof table / sizeof table[0]; i++) {
        uint64_t n = (address - (uint64_t)table[i]) / 8;
        if (address >= (uint64_t)table[i] && n < TLB_ENTRIES)
            return (uint32_t)(uint64_t)&table[i][(n + (c->delta >> PAGE_SHIFT)) & (TLB_ENTRIES - 1)];
    }
    __builtin_trap();
}

static bool correct(const struct copy *c, const struct reloc *r)
{
    uint8_t *field = c->code + r->at;
    uint32_t value, end = c->from->code + r->at + 4;
    memcpy(&value, field, 4);
    switch ((enum reloc_kind)r->kind) {
    case RELOC_REL32: {
        uint32_t target = end + value; // or up to four bytes before: what follows is an immediate
        if (target - c->from->code < c->from->code_len)
            return true;
        value += (uint32_t)counterpart(c, target) - target - (c->to->code - c->from->code);
        break;
    }
    case RELOC_RIP64: {
        uint64_t rip;
        memcpy(&rip, field, 8);
        rip += c->delta;
        memcpy(field, &rip, 8);
        return true;
    }
    case RELOC_RIP32: value += (uint32_t)c->delta; break;
    case RELOC_TLB: value = move_entry(c, value); break;
    case RELOC_INDEX: value = (value + (uint32_t)(c->delta >> PAGE_SHIFT)) & (TLB_ENTRIES - 1); break;
    case RELOC_EXIT: value += (uint32_t)(uint64_t)c->to->exits - (uint32_t)(uint64_t)c->from->exits; break;
    case RELOC_BRANCH: {
        struct branch *b = copy_of(c->d, LOW(struct branch, value), sizeof *b);
        if (!b)
            return false;
        b->rip += c->delta;
        value = (uint32_t)(uint64_t)b;
        break;
    }
    case RELOC_SITE: {
        struct site *s = copy_of(c->d, LOW(struct site, value), sizeof *s);
        if (!s)
            return false;
        s->rip += c->delta;
        s->count = 0;
        value = (uint32_t)(uint64_t)s;
        break;
    }
    }
    memcpy(field, &value, 4);
    return true;
}

static bool copy_block(struct copy *c)
{
    struct dbt *d = c->d;
    const struct block *from = c->from;
    struct block *to = c->to;
    size_t room;
    c->code = cache_code(d, &room);
    if (room < from->code_len)
        return false;
    to->code = (uint32_t)((uint64_t)(c->code - d->rw) + d->rx);
    to->code_parked += to->code - from->code;
    memcpy(c->code, d->rw + (from->code - d->rx), from->code_len);
    to->map = copy_of(d, from->map, from->map_count * sizeof *to->map);
    to->range = copy_of(d, from->range, from->range_count * sizeof *to->range);
    to->indirect = copy_of(d, from->indirect, from->indirect_count * sizeof *to->indirect);
    to->relocs = copy_of(d, from->relocs, from->reloc_count * sizeof *to->relocs);
    if (!to->map || !to->range || !to->indirect || !to->relocs || !copy_exits(c))
        return false;
    for (unsigned i = 0; i < to->reloc_count; i++)
        if (!correct(c, &to->relocs[i]))
            return false;
    cache_code_used(d, to->code_len);
    return true;
}

struct block *rebase(struct dbt *d, uint64_t gpa, bool global, uint32_t key)
{
    uint64_t rip = d->v->s.rip;
    struct block *from = LOW(struct block, *cache_place(d, gpa, key));
    if (!from || from->dead || from->gpa != gpa || from->key != key || !moves(from->rip) || (from->rip ^ rip) & (PAGE_SIZE - 1) ||
        from->rip == rip || from->context != context_number(d))
        return NULL;
    plant_remove(d); // the original is copied as it was made
    struct block *b = arena_alloc(d, sizeof *b);
    if (!b)
        return NULL;
    *b = *from;
    b->rip = rip;
    b->global = global;
    b->dead = b->group_misses = 0;
    b->incoming = 0;
    b->hash_next = NULL;
    struct copy c = {.d = d, .from = from, .to = b, .delta = rip - from->rip};
    if (!copy_block(&c) || cache_insert(d, b))
        return NULL;
    *cache_place(d, gpa, key) = (uint32_t)(uint64_t)b; // the oldest go first
    return b;
}
