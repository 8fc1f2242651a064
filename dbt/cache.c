// The translation cache: code in one memfd mapped twice (writable, executable), blocks and their parts in an arena
// below 2 GiB, a hash by RIP, lists by guest page for invalidation, and the links between blocks.
//
// Eviction is all or nothing: when code or arena run out everything is dropped and the guest's hot code comes back at
// the cost of translating it once more. Dropping touches only tables, never code.
#include <sys/mman.h>
#include <unistd.h>
#include <errno.h>
#include "dbt/dbt.h"

#define CODE_SIZE  (64u << 20)
#define ARENA_SIZE (96u << 20)
#define HASH_SIZE  (1u << 17)
#define MAX_BLOCKS (1u << 20)

void *map_low(size_t size, int fd, int prot)
{
    // below 2 GiB, wherever the process has nothing yet
    for (uint64_t at = 0x24000000; at + size < 0x7f000000; at += 0x1000000) {
        int flags = MAP_FIXED_NOREPLACE | MAP_NORESERVE | (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED);
        void *p = mmap((void *)at, size, prot, flags, fd, 0);
        if (p == (void *)at)
            return p;
        if (p != MAP_FAILED)
            munmap(p, size);
    }
    return NULL;
}

static void *map_any(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

int cache_create(struct dbt *d)
{
    int fd = memfd_create("gnomon-code", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, CODE_SIZE) < 0)
        return -errno;
    d->cache_size = CODE_SIZE;
    d->rw = mmap(NULL, CODE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    d->rx = (uint64_t)map_low(CODE_SIZE, fd, PROT_READ | PROT_EXEC);
    close(fd);
    d->arena = map_low(ARENA_SIZE, -1, PROT_READ | PROT_WRITE);
    if (d->arena)
        madvise(d->arena, ARENA_SIZE, MADV_HUGEPAGE); // touched from end to end: one page fault instead of 512
    d->arena_size = ARENA_SIZE;
    d->slots = map_low(SLOT_COUNT * 8, -1, PROT_READ | PROT_WRITE);
    d->blocks = map_any(MAX_BLOCKS * sizeof d->blocks[0]);
    d->block_max = MAX_BLOCKS;
    d->hash = map_any(HASH_SIZE * sizeof d->hash[0]);
    d->hash_mask = HASH_SIZE - 1;
    for (unsigned g = 0; g < 2; g++) {
        d->far_log[g] = map_any(SLOT_COUNT * sizeof d->far_log[g][0]);
        d->ib_log[g] = map_any(IB_LOG * sizeof d->ib_log[g][0]);
        if (!d->far_log[g] || !d->ib_log[g])
            return -ENOMEM;
    }
    d->page_count = d->v->mem->ram_size >> PAGE_SHIFT;
    d->pages = map_any(d->page_count * sizeof d->pages[0]);
    for (unsigned i = 0; i < CONTEXTS; i++) {
        struct context *c = &d->contexts[i];
        c->tag = map_low(65536 * 16, -1, PROT_READ | PROT_WRITE);
        if (!c->tag)
            return -ENOMEM;
        c->code = c->tag + 65536;
        c->tag[0] = 1; // an entry that no RIP with these low bits matches
    }
    if (d->rw == MAP_FAILED || !d->rx || !d->arena || !d->slots || !d->blocks || !d->hash || !d->pages)
        return -ENOMEM;
    return 0;
}

void cache_destroy(struct dbt *d)
{
    munmap(d->rw, d->cache_size);
    munmap((void *)d->rx, d->cache_size);
    for (unsigned g = 0; g < 2; g++) {
        munmap(d->far_log[g], SLOT_COUNT * sizeof d->far_log[g][0]);
        munmap(d->ib_log[g], IB_LOG * sizeof d->ib_log[g][0]);
    }
    munmap(d->arena, d->arena_size);
    munmap(d->slots, SLOT_COUNT * 8);
    munmap(d->blocks, MAX_BLOCKS * sizeof d->blocks[0]);
    munmap(d->hash, HASH_SIZE * sizeof d->hash[0]);
    munmap(d->pages, d->page_count * sizeof d->pages[0]);
    for (unsigned i = 0; i < CONTEXTS; i++)
        munmap(d->contexts[i].tag, 65536 * 16);
}

void *arena_alloc(struct dbt *d, size_t n)
{
    n = (n + 15) & ~15ull;
    if (n > d->arena_size - d->arena_used)
        return NULL;
    void *p = d->arena + d->arena_used;
    d->arena_used += n;
    return p;
}

static uint32_t hash_of(const struct dbt *d, uint64_t rip, uint32_t key)
{
    uint64_t h = (rip ^ (uint64_t)key << 32) * 0x9e3779b97f4a7c15ull;
    return (uint32_t)(h >> 40) & d->hash_mask;
}

static void ib_clear(struct dbt *d, unsigned global)
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
    struct exit **p = &e->to->incoming;
    while (*p && *p != e)
        p = &(*p)->incoming_next;
    if (*p)
        *p = e->incoming_next;
    e->to = NULL;
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
        ib_clear(d, g);
    }
    ras_reset(d);
}

void cache_flush(struct dbt *d)
{
    d->n.flushes++;
    plant_remove(d);
    for (uint32_t i = 0; i < d->block_count; i++) {
        struct block *b = d->blocks[i];
        for (unsigned r = 0; r < b->range_count; r++) {
            struct mem_slot s = mem_find(d->v->mem, b->range[r].gpa);
            if (s.kind != MEM_RAM || !d->pages[s.ram_page])
                continue;
            d->pages[s.ram_page] = NULL;
            mem_trace_clear(d->v->mem, b->range[r].gpa, TRACE_CODE);
        }
    }
    for (uint32_t i = 0; i <= d->hash_mask; i++)
        d->hash[i] = NULL;
    for (unsigned g = 0; g < 2; g++) {
        ib_clear(d, g);
        d->far_count[g] = 0;
    }
    ras_reset(d);
    d->block_count = 0;
    d->cache_used = d->cache_stubs;
    d->arena_used = 0;
    d->slot_used = 0;
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
            if ((mode_fetch(d, la).gpa & ~(PAGE_SIZE - 1)) != (b->range[1].gpa & ~(PAGE_SIZE - 1)))
                continue;
        }
        return b;
    }
    return NULL;
}

int cache_insert(struct dbt *d, struct block *b)
{
    if (d->block_count == d->block_max)
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
        if (!l)
            return -ENOSPC;
        l->block = b;
        l->next = d->pages[s.ram_page];
        d->pages[s.ram_page] = l;
        mem_trace_set(d->v->mem, b->range[r].gpa, TRACE_CODE);
    }
    struct block **h = &d->hash[hash_of(d, b->rip, b->key)];
    b->hash_next = *h;
    *h = b;
    d->blocks[d->block_count++] = b;
    return 0;
}

static void kill_block(struct dbt *d, struct block *b)
{
    b->dead = 1;
    d->n.invalidations++;
    for (struct block **p = &d->hash[hash_of(d, b->rip, b->key)]; *p; p = &(*p)->hash_next)
        if (*p == b) {
            *p = b->hash_next;
            break;
        }
    while (b->incoming)
        unlink_exit(d, b->incoming);
    for (unsigned i = 0; i < b->exit_count; i++)
        unlink_exit(d, &b->exits[i]);
    for (unsigned c = 0; c < d->context_count; c++) {
        unsigned i = b->rip & 0xffff;
        if (d->contexts[c].code[i] == b->code_parked)
            d->contexts[c].tag[i] = i == 0;
    }
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
            kill_block(d, b);
            killed = true;
            *p = (*p)->next;
        } else {
            p = &(*p)->next;
        }
    }
    if (!d->pages[s.ram_page])
        mem_trace_clear(d->v->mem, gpa, TRACE_CODE);
    if (killed)
        ras_reset(d); // host return addresses may lead into what was discarded
}

void cache_unmerge(struct dbt *d, struct block *b)
{
    d->unmerged[unmerged_slot(b->rip)] = b->rip;
    if (!b->dead)
        kill_block(d, b);
    ras_reset(d);
}

struct block *cache_block_at(struct dbt *d, uint64_t at)
{
    uint32_t lo = 0, hi = d->block_count;
    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;
        if (d->blocks[mid]->code <= at)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (!lo)
        return NULL;
    struct block *b = d->blocks[lo - 1];
    return at < (uint64_t)b->code + b->code_len ? b : NULL;
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

bool cache_guest_rip_cold(struct block *b, uint64_t return_address, uint64_t *rip)
{
    // what follows the call is the jump back, to just behind the check
    int32_t rel;
    __builtin_memcpy(&rel, (const void *)(return_address + 1), 4);
    bool start;
    return cache_guest_rip(b, return_address + 5 + (uint64_t)(int64_t)rel - 1, rip, &start);
}

void cache_link(struct dbt *d, struct exit *e, struct block *to)
{
    if (e->to || e->from->dead || to->dead || (to->straddles && e->kind == EXIT_NEAR) || to->key != e->key)
        return;
    if (e->kind == EXIT_FAR) {
        if (!e->logged) {
            unsigned g = e->from->global && to->global;
            d->far_log[g][d->far_count[g]++] = e;
            e->logged = 1;
        }
        *(uint64_t *)(uint64_t)e->site = to->code_parked;
    } else {
        if ((e->from->gpa ^ to->gpa) >> PAGE_SHIFT)
            return;
        int32_t rel = (int32_t)(to->code - (e->site + 4));
        __builtin_memcpy(d->rw + (e->site - d->rx), &rel, 4);
    }
    e->to = to;
    e->incoming_next = to->incoming;
    to->incoming = e;
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
    if (d->ib_count[g] < IB_LOG)
        d->ib_log[g][d->ib_count[g]++] = (uint32_t)(c - d->contexts) << 16 | i;
}
