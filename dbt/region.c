// The memory of the translation cache: code in memory mapped twice (writable, executable), blocks and what belongs to
// them in an arena below 2 GiB, slots of exits to other pages.
//
// All three are divided into as many regions, which are filled one after the other. When the last is full the first comes
// again: its blocks, the oldest, are discarded, and everything else stays. So the guest waits for the discarding of a few
// thousand blocks at a time, a third of a millisecond, and hot code that went comes back at the cost of translating it once.
//
//  1. A link of a page's list lies in the arena of its block's region, and links are put at the end: those of the oldest region
//     come first in every list, and nothing else needs to be looked at to take them out.
//  2. Nothing may point into a region that is discarded: links between blocks, the tables of indirect branches, predictions of
//     RETs, planted breakpoints, and the x87 unit's instruction pointer, which becomes the guest's.
#include <sys/mman.h>
#include <unistd.h>
#include <errno.h>
#include "dbt/dbt.h"

#define CODE_SIZE  (REGIONS * REGION_CODE)
#define ARENA_SIZE (REGIONS * REGION_ARENA)
#define HASH_SIZE  (1u << 17)
#define LOW_BEGIN  0x68000000u
#define LOW_END    0x7f800000u
#define CHUNK      (128u << 10) // faulted in at once

static void *map_below_2g(size_t size, int fd, int prot, int how)
{
    // below 2 GiB, wherever the process has nothing yet
    // and where guest programs seldom have anything: the heap of one that is not position-independent lies within 1 GiB
    // behind it, and workers have some of this at the same addresses.
    for (uint64_t at = LOW_BEGIN; at + size < LOW_END; at += 0x100000) {
        void *p = mmap((void *)at, size, prot, MAP_FIXED_NOREPLACE | MAP_NORESERVE | how, fd, 0);
        if (p == (void *)at)
            return p;
        if (p != MAP_FAILED)
            munmap(p, size);
    }
    return NULL;
}

void *map_low(size_t size, int fd, int prot)
{
    return map_below_2g(size, fd, prot, fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED);
}

// What workers of user spaces read.
static void *map_low_shared(size_t size)
{
    return map_below_2g(size, -1, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
}

static void *map_any(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static uint64_t code_begin(const struct dbt *d, unsigned region)
{
    return region ? (uint64_t)region * REGION_CODE : d->cache_stubs;
}

static void region_reset(struct dbt *d, unsigned i)
{
    struct region *r = &d->regions[i];
    r->code_used = code_begin(d, i);
    r->arena_used = (uint64_t)i * REGION_ARENA;
    r->slot_used = i * REGION_SLOTS;
    r->block_count = 0;
}

// One memory, mapped to be written and again, below 2 GiB, to be executed. It is anonymous and not of memfd_create(),
// because perf asks its map file (dbt/perf.c) about addresses in anonymous memory only.
static int map_code(struct dbt *d)
{
    void *rw = mmap(NULL, CODE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    void *low = map_low(CODE_SIZE, -1, PROT_NONE);
    if (rw == MAP_FAILED || !low)
        return -ENOMEM;
    d->cache_size = CODE_SIZE;
    d->rw = rw;
    d->rx = (uint64_t)low;
    // an old size of 0 leaves the mapping where it is and makes another (mremap(2))
    if (mremap(rw, 0, CODE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, low) == MAP_FAILED ||
        mprotect(low, CODE_SIZE, PROT_READ | PROT_EXEC) < 0)
        return -errno;
    return 0;
}

int cache_create(struct dbt *d)
{
    int result = map_code(d);
    if (result)
        return result;
    d->arena = map_low(ARENA_SIZE, -1, PROT_READ | PROT_WRITE);
    d->slots = map_low_shared(SLOT_COUNT * 8);
    uint32_t *blocks = map_any(REGIONS * REGION_BLOCKS * sizeof *blocks);
    d->hash = map_any(HASH_SIZE * sizeof d->hash[0]);
    d->hash_mask = HASH_SIZE - 1;
    d->place = map_any((PLACE_MASK + 1) * sizeof d->place[0]);
    d->waiting = map_any(HASH_SIZE * sizeof d->waiting[0]);
    for (unsigned g = 0; g < 2; g++) {
        d->far_log[g] = map_any(SLOT_COUNT * sizeof d->far_log[g][0]);
        d->ib_log[g] = map_any(IB_LOG * sizeof d->ib_log[g][0]);
        if (!d->far_log[g] || !d->ib_log[g])
            return -ENOMEM;
    }
    d->page_count = d->v->mem->ram_size >> PAGE_SHIFT;
    d->pages = map_any(d->page_count * sizeof d->pages[0]);
    d->page_end = map_any(d->page_count * sizeof d->page_end[0]);
    for (unsigned i = 0; i < CONTEXTS; i++) {
        struct context *c = &d->contexts[i];
        c->tag = map_low(65536 * 16, -1, PROT_READ | PROT_WRITE);
        if (!c->tag)
            return -ENOMEM;
        c->code = c->tag + 65536;
        c->tag[0] = 1; // an entry that no RIP with these low bits matches
    }
    uint64_t *tags = map_low_shared(USER_SPACES * USER_TABLE);
    for (unsigned i = 0; i < USER_SPACES && tags; i++) {
        struct context *c = &d->contexts[CONTEXTS + i];
        c->tag = tags + i * USER_TABLE / 8;
        c->code = c->tag + 65536;
    }
    if (!tags || !d->arena || !d->slots || !blocks || !d->hash || !d->waiting || !d->place || !d->pages || !d->page_end)
        return -ENOMEM;
    for (unsigned i = 0; i < REGIONS; i++) {
        d->regions[i].blocks = blocks + i * REGION_BLOCKS;
        region_reset(d, i);
    }
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
    munmap(d->arena, ARENA_SIZE);
    munmap(d->slots, SLOT_COUNT * 8);
    munmap(d->regions[0].blocks, REGIONS * REGION_BLOCKS * sizeof d->regions[0].blocks[0]);
    munmap(d->hash, HASH_SIZE * sizeof d->hash[0]);
    munmap(d->place, (PLACE_MASK + 1) * sizeof d->place[0]);
    munmap(d->waiting, HASH_SIZE * sizeof d->waiting[0]);
    munmap(d->pages, d->page_count * sizeof d->pages[0]);
    munmap(d->page_end, d->page_count * sizeof d->page_end[0]);
    for (unsigned i = 0; i < CONTEXTS; i++)
        munmap(d->contexts[i].tag, 65536 * 16);
    munmap(d->contexts[CONTEXTS].tag, USER_SPACES * USER_TABLE);
}

// ---- the region being filled

// One by one a page costs 3.3 us at its first touch, in bulk 0.2.
static void fault_in(uint8_t *memory, uint64_t size, uint64_t begin, uint64_t *ready, uint64_t need)
{
    if (*ready < begin)
        *ready = begin & ~(uint64_t)(CHUNK - 1);
    while (*ready < need && *ready < size) {
        uint64_t n = size - *ready < CHUNK ? size - *ready : CHUNK;
        mem_fault_in(memory + *ready, n);
        *ready += n;
    }
}

void *arena_alloc(struct dbt *d, size_t n)
{
    struct region *r = &d->regions[d->region];
    uint64_t begin = (uint64_t)d->region * REGION_ARENA;
    n = (n + 7) & ~7ull;
    if (n > begin + REGION_ARENA - r->arena_used)
        return NULL;
    void *p = d->arena + r->arena_used;
    r->arena_used += n;
    if (r->arena_used > d->arena_ready)
        fault_in(d->arena, ARENA_SIZE, begin, &d->arena_ready, r->arena_used);
    return p;
}

uint8_t *cache_code(struct dbt *d, size_t *room)
{
    const struct region *r = &d->regions[d->region];
    *room = (uint64_t)(d->region + 1) * REGION_CODE - r->code_used;
    if (r->code_used + CHUNK / 4 > d->code_ready)
        fault_in(d->rw, CODE_SIZE, (uint64_t)d->region * REGION_CODE, &d->code_ready, r->code_used + CHUNK / 4);
    return d->rw + r->code_used;
}

void cache_code_used(struct dbt *d, size_t n)
{
    d->regions[d->region].code_used += (n + 15) & ~15ull;
}

uint64_t *cache_slot(struct dbt *d)
{
    struct region *r = &d->regions[d->region];
    return r->slot_used < (d->region + 1) * REGION_SLOTS ? &d->slots[r->slot_used++] : NULL;
}

int cache_block_add(struct dbt *d, struct block *b)
{
    struct region *r = &d->regions[d->region];
    if (r->block_count == REGION_BLOCKS)
        return -ENOSPC;
    r->blocks[r->block_count++] = (uint32_t)(uint64_t)b;
    return 0;
}

// ---- finding blocks by place

struct block *cache_block(const struct dbt *d, uint32_t n)
{
    for (unsigned i = 0; i < REGIONS; i++) {
        const struct region *r = &d->regions[i];
        if (n < r->block_count)
            return LOW(struct block, r->blocks[n]);
        n -= r->block_count;
    }
    return NULL;
}

struct block *cache_block_at(struct dbt *d, uint64_t at)
{
    if (!cache_contains(d, at))
        return NULL;
    const struct region *r = &d->regions[(at - d->rx) / REGION_CODE];
    uint32_t lo = 0, hi = r->block_count;
    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;
        if (LOW(struct block, r->blocks[mid])->code <= at)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (!lo)
        return NULL;
    struct block *b = LOW(struct block, r->blocks[lo - 1]);
    return at < (uint64_t)b->code + b->code_len ? b : NULL;
}

// ---- eviction

static bool in_arena(const struct dbt *d, unsigned region, const void *p)
{
    return (uint64_t)((const uint8_t *)p - d->arena) / REGION_ARENA == region;
}

static void forget_page(struct dbt *d, unsigned region, uint64_t gpa)
{
    struct mem_slot s = mem_find(d->v->mem, gpa);
    if (s.kind != MEM_RAM || s.ram_page >= d->page_count)
        return;
    struct page_link **p = &d->pages[s.ram_page];
    if (!*p)
        return;
    while (*p && in_arena(d, region, *p)) // constraint 1
        *p = (*p)->next;
    if (!*p)
        mem_trace_clear(d->v->mem, gpa, TRACE_CODE);
}

static void forget_far_exits(struct dbt *d, unsigned region)
{
    for (unsigned g = 0; g < 2; g++) {
        uint32_t kept = 0;
        for (uint32_t i = 0; i < d->far_count[g]; i++)
            if (!in_arena(d, region, d->far_log[g][i]))
                d->far_log[g][kept++] = d->far_log[g][i];
        d->far_count[g] = kept;
    }
}

static void evict(struct dbt *d, unsigned region)
{
    d->code_generation++;
    struct region *r = &d->regions[region];
    uint64_t begin = __builtin_ia32_rdtsc();
    d->n.evictions++;
    plant_remove(d);
    for (uint32_t i = 0; i < r->block_count; i++) {
        struct block *b = LOW(struct block, r->blocks[i]);
        if (!b->dead)
            cache_kill(d, b);
        for (unsigned n = 0; n < b->range_count; n++)
            forget_page(d, region, b->range[n].gpa);
    }
    forget_far_exits(d, region);
    ras_reset(d);
    if (d->fpu_saved != FPU_SAVED) { // saving makes the pointer the guest's
        cpu_fpu_save(d->v);
        cpu_fpu_load(d->v);
    }
    region_reset(d, region);
    uint64_t cycles = __builtin_ia32_rdtsc() - begin;
    d->n.eviction_cycles += cycles;
    if (cycles > d->n.eviction_cycles_max)
        d->n.eviction_cycles_max = cycles;
}

void cache_advance(struct dbt *d)
{
    unsigned next = (d->region + 1) % d->region_count;
    d->n.evictions++; // whatever was made of a block that did not fit is lost
    if (d->regions[next].block_count)
        evict(d, next);
    else
        region_reset(d, next);
    d->region = next;
}

void cache_flush(struct dbt *d)
{
    for (unsigned i = 1; i <= REGIONS; i++) // the oldest first
        evict(d, (d->region + i) % REGIONS);
    cache_ib_clear(d, false);
    cache_ib_clear(d, true);
    d->region = 0;
}
