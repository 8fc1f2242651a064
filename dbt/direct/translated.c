// Translated user code in a worker (policy `user`, dbt/user.c), from its owner's side: registers are where translated code
// has them, and the worker stops at places of the code cache.
//
// The cache's text, the tables of indirect branches and the slots of far exits are the owner's, readable in every worker at
// the same addresses. Blocks belong to a space: their key has its number, so what they are linked to is right for that address
// space whoever else runs, and a flush of the guest's TLB is nothing to them. What makes links wrong is code that is mapped
// elsewhere: the shadow tells (shadow_code_lost()).
//
// Everything a worker hands back is user-controlled: which block it stopped in is found by the address, never by a value in a
// register, and the block must be one of its space.
#include "cpu/planted.h"
#include "dbt/dbt.h"
#include "dbt/direct/private.h"

#define USER_TOP   (1ull << 47)
#define MOST_AHEAD 48u

// What a worker has instead of the owner's vCPU and translator: the first page of each.
static struct cpu_state *state_of(const struct direct *x, int n)
{
    return (struct cpu_state *)(x->state_pages + (size_t)n * PAGE_SIZE);
}

static struct dbt *dbt_of(const struct direct *x, int n)
{
    return (struct dbt *)(x->dbt_pages + (size_t)n * PAGE_SIZE);
}

static struct dbt *engine(const struct direct *x) { return x->v->engine; }

static void forget(struct direct *x, int n)
{
    x->n.forgets++;
    cache_forget_space(engine(x), (unsigned)n);
}

// ---- state in and out

static void put(struct direct *x, int n, const struct block *b)
{
    const struct cpu_state *s = &x->v->s;
    struct cpu_state *us = state_of(x, n);
    struct dbt *ud = dbt_of(x, n);
    struct worker_regs *r = worker_regs(x->workers, (unsigned)n);
    for (unsigned g = 0; g < 16; g++) {
        if (host_of_guest[g] == HOMED)
            us->gpr[g] = s->gpr[g];
        else
            r->gpr[host_of_guest[g]] = s->gpr[g];
    }
    us->tsc_offset = s->tsc_offset;
    ud->parked = (uint32_t)(s->rflags & 0xff) << 8 | (s->rflags & FL_OF ? 1 : 0);
    ud->ras_base = x->ras_base;
    *(uint64_t *)(x->ras_pages + (size_t)(n + 1) * RAS_SIZE - 16) = engine(x)->user_ret_empty[n];
    r->rsp = x->ras_base;
    r->rip = b->code_parked;
    r->rflags = FL_ONE | FL_IF | (s->dflag ? FL_DF : 0);
    direct_put_rest(x, n);
}

// m: of the instruction that was stopped in the middle, or null.
static void take(struct direct *x, int n, uint64_t rip, bool parked, const struct map_entry *m)
{
    struct cpu_state *s = &x->v->s;
    const volatile struct cpu_state *us = state_of(x, n);
    const volatile struct dbt *ud = dbt_of(x, n);
    const struct worker_regs *r = worker_regs(x->workers, (unsigned)n);
    for (unsigned g = 0; g < 16; g++)
        s->gpr[g] = host_of_guest[g] == HOMED ? us->gpr[g] : r->gpr[host_of_guest[g]];
    if (m && m->borrowed != NOT_BORROWED)
        s->gpr[m->borrowed & 15] = ud->tmp;
    if (m && m->string)
        s->gpr[RDI] = r->gpr[T1];
    uint32_t ax = ud->parked;
    uint64_t flags = parked ? (ax >> 8 & 0xff) | (ax & 1 ? FL_OF : 0) : r->rflags;
    direct_take_rest(x, n, (flags & FL_ARITH) | (r->rflags & FL_DF));
    s->rip = rip;
}

// ---- code

// Whether code may be fetched at v->s.rip resp. `rip`.
static enum shadow_result fetch(struct direct *x, int n, uint64_t rip, uint32_t *error)
{
    return rip < USER_TOP ? shadow_fill(x->shadow, n, rip, ACC_EXEC | ACC_CODE, error) : SHADOW_REFUSED;
}

static uint32_t key_of(const struct direct *x, int n)
{
    return engine(x)->key | KEY_USER | (uint32_t)n << KEY_SPACE_SHIFT;
}

static bool is_whole(uint64_t rip) // no instruction there reaches the next page
{
    return (rip & (PAGE_SIZE - 1)) <= PAGE_SIZE - 15;
}

// The block for `rip` if there is one and it takes no more to find it; the worker's state stays where it is.
static struct block *known(struct direct *x, int n, uint64_t rip)
{
    struct dbt *d = engine(x);
    uint32_t error;
    if (fetch(x, n, rip, &error) != SHADOW_FILLED)
        return NULL;
    if (!is_whole(rip) && fetch(x, n, rip + 15, &error) != SHADOW_FILLED) // else nothing below throws
        return NULL;
    return cache_find(d, rip, mode_fetch(d, rip).gpa, key_of(x, n));
}

// With blocks of other pages that are there: the worker needs not stop to find them.
static void link_to_others(struct direct *x, int n, struct block *b)
{
    struct dbt *d = engine(x);
    for (unsigned i = 0; i < b->exit_count; i++) {
        struct exit *e = &b->exits[i];
        struct walk w;
        uint32_t error;
        if (e->to || e->kind != EXIT_FAR || e->target >= USER_TOP || !is_whole(e->target) || !mmu_probe(x->v, e->target, ACC_EXEC | ACC_USER, &w, &error))
            continue;
        struct block *to = cache_find(d, e->target, w.gpa, exit_key(e));
        if (to && fetch(x, n, e->target, &error) == SHADOW_FILLED)
            cache_link(d, e, to);
    }
}

static struct block *translate_for(struct direct *x, int n)
{
    struct dbt *d = engine(x);
    uint32_t key = key_of(x, n);
    struct context *before = d->context;
    uint64_t begin = __builtin_ia32_rdtsc();
    x->n.makes++;
    vcpu_does(x->v, DOING_TRANSLATION);
    d->context = user_context(d, key);
    d->context->key = key;
    struct block *b = translate(d, key);
    if (!d->context->tag[b->rip & 0xffff] && !b->straddles)
        cache_ib_set(d, b);
    d->context = before;
    cache_link_around(d, b);
    link_to_others(x, n, b);
    vcpu_does(x->v, DOING_CORE);
    d->n.translate_cycles += __builtin_ia32_rdtsc() - begin;
    return b;
}

// Whether somebody wants the vCPU: breakpoints that were planted for that are in a block that may be left now.
static bool is_asked(const struct direct *x)
{
    return __atomic_load_n(&x->v->requests, __ATOMIC_ACQUIRE);
}

// What translated code for the owner has executed already will be executed here too, if the block goes there: it is made at
// once, and the worker needs not stop for it. Returns how many may still be made.
static unsigned make_ahead(struct direct *x, int n, const struct block *b, unsigned room)
{
    struct dbt *d = engine(x);
    struct vcpu *v = x->v;
    uint64_t rip = v->s.rip;
    unsigned exits = b->exit_count;
    struct block *made[MAX_EXITS];
    unsigned count = 0;
    for (unsigned i = 0; i < exits && room && !is_asked(x); i++) {
        uint64_t to = b->exits[i].target;
        struct walk w;
        uint32_t error;
        if (b->exits[i].to || to >= USER_TOP || !is_whole(to) || !mmu_probe(v, to, ACC_EXEC | ACC_USER, &w, &error) ||
            !cache_find(d, to, w.gpa, d->key) || cache_find(d, to, w.gpa, key_of(x, n)) || fetch(x, n, to, &error) != SHADOW_FILLED)
            continue;
        v->s.rip = to;
        made[count++] = translate_for(x, n);
        v->s.rip = rip;
        room--;
    }
    for (unsigned i = 0; i < count && room; i++)
        room = make_ahead(x, n, made[i], room);
    return room;
}

// The block for v->s.rip, where the state is. May throw the fetch's fault.
static struct block *make(struct direct *x, int n)
{
    struct dbt *d = engine(x);
    uint64_t rip = x->v->s.rip;
    uint32_t error;
    if (!is_whole(rip))
        fetch(x, n, rip + 15, &error); // so that the shadow knows of it
    struct block *b = cache_find(d, rip, mode_fetch(d, rip).gpa, key_of(x, n));
    if (b)
        return b;
    b = translate_for(x, n);
    make_ahead(x, n, b, MOST_AHEAD);
    return b;
}

static void note_target(struct direct *x, int n, struct block *b)
{
    struct dbt *d = engine(x);
    struct context *before = d->context;
    d->context = user_context(d, key_of(x, n));
    d->context->key = b->key;
    cache_ib_set(d, b);
    d->context = before;
}

// ---- events

enum next { GO_ON, MAKE, LEAVE };

struct stop { // where a worker stopped
    struct block *block;
    struct exit *exit; // in its out-of-line code
    const struct map_entry *map;
};

static bool find_stop(struct direct *x, int n, uint64_t at, struct stop *s)
{
    struct dbt *d = engine(x);
    *s = (struct stop){.block = cache_block_at(d, at)};
    struct block *b = s->block;
    if (!b || (b->key & (KEY_USER | KEY_SPACE_MASK)) != (KEY_USER | (uint32_t)n << KEY_SPACE_SHIFT))
        return false;
    for (unsigned i = 0; i < b->exit_count; i++)
        if (b->exits[i].cold == at)
            s->exit = &b->exits[i];
    s->map = cache_map(b, at);
    return s->exit || s->map;
}

// An exit that leads nowhere yet.
static enum next follow(struct direct *x, int n, struct exit *e, enum direct_result *result)
{
    struct dbt *d = engine(x);
    bool parked = e->at_out == OUT_PARKED;
    x->n.follows++;
    if (PLANTED(kicks_between_turns)) // one came behind the last boundary before the exit
        plant(d, exit_block(e));
    plant_remove(d); // what a kick for nothing left: else the next turns would count as ending soon (direct_turn())
    if (is_asked(x)) {
        take(x, n, e->target, parked, NULL);
        *result = DIRECT_STOPPED;
        return LEAVE;
    }
    struct block *to = known(x, n, e->target);
    if (!to) {
        take(x, n, e->target, parked, NULL);
        x->pending = e;
        x->pending_evictions = d->n.evictions;
        return MAKE;
    }
    worker_regs(x->workers, (unsigned)n)->rip = parked ? to->code_parked : to->code;
    cache_link(d, e, to);
    return GO_ON;
}

// An indirect branch that the table does not know.
static enum next look_up(struct direct *x, int n, enum direct_result *result)
{
    struct dbt *d = engine(x);
    struct worker_regs *r = worker_regs(x->workers, (unsigned)n);
    uint64_t target = r->gpr[T0], branch = r->gpr[T1];
    x->n.looks++;
    plant_remove(d); // as there
    if ((uint64_t)((int64_t)(target << 16) >> 16) != target) { // the branch itself faults, and has changed nothing
        take(x, n, USER_BRANCH_RIP(branch), true, NULL);
        x->v->s.gpr[RSP] -= USER_BRANCH_POPPED(branch);
        *result = DIRECT_STEP;
        return LEAVE;
    }
    if (is_asked(x)) {
        take(x, n, target, true, NULL);
        *result = DIRECT_STOPPED;
        return LEAVE;
    }
    struct block *to = known(x, n, target);
    if (!to) {
        take(x, n, target, true, NULL);
        return MAKE;
    }
    note_target(x, n, to);
    r->rip = to->code_parked;
    return GO_ON;
}

static bool in_stubs(const struct direct *x, uint64_t at)
{
    const struct dbt *d = engine(x);
    return at >= d->user_ib_miss && at < d->user_end;
}

// A kick, or a breakpoint planted for one.
static enum next kicked(struct direct *x, int n, enum direct_result *result)
{
    struct dbt *d = engine(x);
    struct worker_regs *r = worker_regs(x->workers, (unsigned)n);
    struct stop s;
    uint64_t rip;
    unsigned rest;
    bool parked;
    plant_remove(d);
    r->rflags &= ~(uint64_t)FL_TF;
    *result = DIRECT_STOPPED;
    if (in_stubs(x, r->rip)) {
        r->rflags |= FL_TF; // a few instructions more
        return GO_ON;
    }
    if (!find_stop(x, n, r->rip, &s)) {
        *result = DIRECT_LOST;
        return LEAVE;
    }
    if (s.exit) {
        take(x, n, s.exit->target, s.exit->at_out == OUT_PARKED, NULL);
        return LEAVE;
    }
    if (plant_boundary(s.block, r->rip, r->gpr[T0], &rip, &parked, &rest)) {
        take(x, n, rip, parked, NULL);
        return LEAVE;
    }
    if (s.map->string && r->rip == s.block->code + s.map->host + s.map->string) { // in the midst of it, or before it
        take(x, n, s.block->rip + s.map->guest, s.map->parked & 2, s.map);
        return LEAVE;
    }
    plant(d, s.block);
    return GO_ON;
}

static enum next memory_fault(struct direct *x, int n, const struct worker_event *e, const struct stop *s,
                              struct direct_fault *fault, enum direct_result *result)
{
    struct worker_regs *r = worker_regs(x->workers, (unsigned)n);
    if (e->address < x->ras_base && e->address >= x->ras_base + 16 - RAS_SIZE - PAGE_SIZE) {
        r->rsp = x->ras_base; // all predictions are forgotten
        return GO_ON;
    }
    *result = DIRECT_STEP;
    if (e->address < USER_TOP && !(e->error & 16)) {
        fault->address = e->address;
        switch (shadow_fill(x->shadow, n, e->address, e->error & 2 ? ACC_WRITE : ACC_READ, &fault->error)) {
        case SHADOW_FILLED:
            x->n.hidden_faults++;
            return GO_ON;
        case SHADOW_FAULT:
            *result = DIRECT_PAGE_FAULT;
            x->n.cause[DIRECT_CAUSE_FAULT]++;
            break;
        default:
            x->n.cause[DIRECT_CAUSE_TRACED]++;
            if (direct_is_own(e->address))
                direct_exclude(x);
            break;
        }
    }
    take(x, n, s->block->rip + s->map->guest, s->map->parked & 2, s->map);
    if (*result == DIRECT_PAGE_FAULT)
        direct_note_fault(x, n, e->address, e->error & 2 ? ACC_WRITE : ACC_READ);
    return LEAVE;
}

static enum next answer(struct direct *x, int n, const struct worker_event *e, struct direct_fault *fault,
                        enum direct_result *result)
{
    struct dbt *d = engine(x);
    struct worker_regs *r = worker_regs(x->workers, (unsigned)n);
    struct stop s;
    bool trap = e->why == WORKER_SIGNAL && e->signal == 5;
    if (e->why == WORKER_KICKED || (trap && e->trap == EXC_DB)) {
        if (e->why == WORKER_KICKED)
            x->n.cause[DIRECT_CAUSE_KICK]++;
        return kicked(x, n, result);
    }
    bool stop = trap && e->trap == EXC_BP;
    r->rip -= stop;
    if (stop && plant_is_at(d, r->rip))
        return kicked(x, n, result);
    if (stop && r->rip == d->user_ib_miss)
        return look_up(x, n, result);
    *result = DIRECT_LOST;
    if (!find_stop(x, n, r->rip, &s))
        return LEAVE;
    if (s.exit)
        return stop ? follow(x, n, s.exit, result) : LEAVE;
    if (e->trap == EXC_PF)
        return memory_fault(x, n, e, &s, fault, result);
    // A site, or an exception of the instruction's own: translated code of the owner's does it.
    x->n.cause[stop ? DIRECT_CAUSE_CALL : DIRECT_CAUSE_OTHER]++;
    take(x, n, s.block->rip + s.map->guest, s.map->parked & 2, s.map);
    *result = DIRECT_STEP;
    return LEAVE;
}

// Before the runner goes on: what was discarded since it stopped must not be where it comes back to.
static bool prepare(struct direct *x, int n)
{
    struct dbt *d = engine(x);
    if (!direct_carry_out(x, n))
        return false;
    if (shadow_code_lost(x->shadow, n))
        forget(x, n);
    if (x->generation[n] != d->code_generation) {
        worker_regs(x->workers, (unsigned)n)->rsp = x->ras_base;
        x->generation[n] = d->code_generation;
    }
    return true;
}

// The runner has not gone on: the state is where it was.
static bool rescue(struct direct *x, int n)
{
    const struct worker_regs *r = worker_regs(x->workers, (unsigned)n);
    struct stop s;
    if (in_stubs(x, r->rip))
        take(x, n, r->gpr[T0], true, NULL);
    else if (!find_stop(x, n, r->rip, &s))
        return false;
    else if (s.exit)
        take(x, n, s.exit->target, s.exit->at_out == OUT_PARKED, NULL);
    else
        take(x, n, s.block->rip + s.map->guest, s.map->parked & 2, s.map);
    return true;
}

enum direct_result translated_run(struct direct *x, int n, struct direct_fault *fault)
{
    struct dbt *d = engine(x);
    enum direct_result result = DIRECT_STOPPED;
    enum next next = MAKE;
    struct worker_event e;
    x->pending = NULL;
    do {
        if (next == MAKE) {
            if (x->v->mode_gen != d->key_gen)
                mode_update(d);
            if (shadow_code_lost(x->shadow, n))
                forget(x, n);
            switch (fetch(x, n, x->v->s.rip, &fault->error)) {
            case SHADOW_FILLED: break;
            case SHADOW_FAULT: fault->address = x->v->s.rip; return DIRECT_PAGE_FAULT;
            default: return DIRECT_CODE;
            }
            struct exit *e = x->pending;
            x->pending = NULL; // make() may throw
            struct block *b = make(x, n);
            if (!e || x->pending_evictions != d->n.evictions)
                note_target(x, n, b);
            else
                cache_link(d, e, b);
            put(x, n, b);
        }
        if (!prepare(x, n))
            e.why = WORKER_NO_ROOM;
        else
            direct_turn(x, n, DOING_USER, d->planted_count || worker_regs(x->workers, (unsigned)n)->rflags & FL_TF, &e);
        if (e.why == WORKER_NO_ROOM) {
            result = next == MAKE || rescue(x, n) ? DIRECT_CODE : DIRECT_LOST;
            next = LEAVE;
            direct_give_up(x, n);
        } else if (e.why == WORKER_DIED) {
            result = DIRECT_LOST;
            next = LEAVE;
        } else {
            next = answer(x, n, &e, fault, &result);
        }
    } while (next != LEAVE);
    plant_remove(d);
    return result;
}
