// How a kick leaves translated code. Blocks test nothing, and a chain of linked blocks may never come to C by itself. So
// the signal handler finds out where the thread is:
//
//  1. At a boundary of guest instructions the state is taken from the signal frame. Boundaries are the host addresses at
//     which guest instructions begin, the jumps of a block's direct exits (the target comes next), and indirect exits,
//     where the guest's RIP is in T0.
//  2. Inside a guest instruction it plants a breakpoint (INT3) at every boundary of the block: one of them is next,
//     whatever the instruction does, for blocks have no other ways out than their exits and calls of C. C looks at the
//     requests before it goes on, but for what returns into the middle of an instruction: there the breakpoints are
//     planted in the block it returns to.
//
// The first breakpoint hit takes all of them away. Until then they stay, which does no harm: run_service() removes them
// too. Only translate() writes code elsewhere than into rel32s, and only behind the last block: so a flush of the cache
// must remove them first.
#include "dbt/dbt.h"

bool plant_boundary(struct block *b, uint64_t at, uint64_t t0, uint64_t *rip, bool *parked, unsigned *rest)
{
    uint32_t off = (uint32_t)(at - b->code);
    *rest = 0;
    for (unsigned i = 0; i < b->indirect_count; i++)
        if (off >= b->indirect[i].begin && off < b->indirect[i].end) {
            *rip = t0;
            *parked = true;
            return true;
        }
    for (unsigned i = 0; i < b->exit_count; i++) {
        const struct exit *e = &b->exits[i];
        if (e->out != off)
            continue;
        *rip = e->target;
        if (e->at_out == OUT_BRANCH) {
            *rip = b->rip + cache_map(b, at)->guest;
            *rest = cache_map(b, at)->rest;
        }
        *parked = e->at_out == OUT_PARKED;
        return true;
    }
    const struct map_entry *m = cache_map(b, at);
    if (!m || m->host != off || m->shadow)
        return false;
    *rip = b->rip + m->guest;
    *parked = m->parked & 1;
    if (m > b->map && m[-1].rest > 1) // else its run begins here, and is not counted yet
        *rest = m->rest;
    return true;
}

static void plant_at(struct dbt *d, uint32_t at)
{
    uint8_t *p = d->rw + (at - d->rx);
    if (*p == 0xcc || d->planted_count == MAX_PLANTED) // planted, or where code of a worker stops by itself
        return;
    d->planted[d->planted_count++] = (struct planted){at, *p};
    *p = 0xcc;
}

void plant(struct dbt *d, const struct block *b)
{
    for (unsigned i = 0; i < b->map_count; i++)
        if (!b->map[i].shadow)
            plant_at(d, b->code + b->map[i].host);
    for (unsigned i = 0; i < b->exit_count; i++)
        plant_at(d, b->code + b->exits[i].out);
    for (unsigned i = 0; i < b->indirect_count; i++)
        plant_at(d, b->code + b->indirect[i].begin);
}

void plant_remove(struct dbt *d)
{
    while (d->planted_count) {
        const struct planted *p = &d->planted[--d->planted_count];
        d->rw[p->at - d->rx] = p->byte;
    }
}

bool plant_is_at(const struct dbt *d, uint64_t at)
{
    for (unsigned i = 0; i < d->planted_count; i++)
        if (d->planted[i].at == at)
            return true;
    return false;
}
