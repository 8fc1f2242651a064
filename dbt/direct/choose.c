// Which address spaces run in a worker: those whose user code computes for long enough between exits.
//
// An exit from a worker costs two handoffs, some 8 us with the pages that go with it, one from code that is translated `checked`
// next to nothing; against that, `checked` code takes one and a half times as long. So a worker pays from about 40 us between
// exits on. Between the bounds nothing changes (hysteresis), and an address space that has had to leave its worker must do
// better for longer before it gets one again.
//
//  - Translated: each interrupt that comes while user code runs is a sample. It speaks for a worker if user code has entered the
//    kernel seldom since the last sample. Short-lived processes never have enough of them.
//  - In a worker: after EXITS exits, the time spent there per exit is looked at.
//  - A page of code that may not run untranslated sends its callers to translated code and back. When that happens often, or
//    samples find the program computing there, the worker is left; a program that goes on computing has all its code translated
//    for it (policy `user`), once it has run for longer than that will take.
#include "cpu/model.h"
#include "dbt/dbt.h"
#include "dbt/direct/private.h"

#define OPEN_NS      70000u // per exit, at least: a sample speaks for a worker
#define CLOSE_NS     30000u // at most: the worker is left
#define EXITS        64u
#define MIXED_NS     100000u // between two times that code is refused, at most: that is too often
#define BLOCK_NS     15000u  // what it takes to have a block translated once more
#define FIRST_POINTS 3u
#define MOST_POINTS  64u
#define MOST_OUTSIDE 3u

static uint64_t to_ns(const struct direct *d, uint64_t cycles)
{
    return (uint64_t)((unsigned __int128)cycles * d->v->model->host_ns_per_tsc_q32 >> 32);
}

// System calls and exceptions so far.
static uint64_t kernel_entries(const struct direct *d)
{
    const struct dbt *t = d->v->engine;
    return t->n.op_count[OP_SYSCALL] + t->n.op_count[OP_SYSENTER] + t->n.op_count[OP_INT] + t->n.exceptions;
}

static void follow_root(struct direct *d)
{
    uint64_t root = d->v->s.cr3 & 0x000ffffffffff000ull;
    if (d->now && root == d->root)
        return;
    const struct dbt *t = d->v->engine;
    if (d->now)
        d->now->blocks += t->n.blocks - d->blocks_before;
    d->blocks_before = t->n.blocks;
    d->root = root;
    d->now = &d->measure[(root >> 12) * 0x9e3779b97f4a7c15ull >> 56];
    if (d->now->root != root)
        *d->now = (struct measure){.root = root, .needed = FIRST_POINTS};
    d->sampled_tsc = 0; // what came before was another's
}

// ---- address spaces that a worker can't hold: they map what it keeps for itself, its stub or the translated code
//
// Most accesses there would fault in the worker, but not those to pages that it really has. So the guest's system calls that map
// memory are watched, by Linux' numbers: where memory lies is in what they return.

enum { CALL_NONE = 0, CALL_MMAP = 9, CALL_BRK = 12, CALL_MREMAP = 25 };

static struct dbt *engine(struct direct *d) { return d->v->engine; }

void direct_calls(struct direct *d)
{
    d->call = (uint32_t)d->v->s.gpr[RAX];
    engine(d)->direct_call = true;
}

void direct_exclude(struct direct *d)
{
    follow_root(d);
    d->now->excluded = true;
    d->now->direct = false;
}

static bool is_own(uint64_t begin, uint64_t size)
{
    uint64_t end = begin + size < begin ? UINT64_MAX : begin + size;
    return (begin < WORKER_END && end > WORKER_BASE) || (begin < OWN_LOW_END && end > OWN_LOW_BEGIN);
}

bool direct_is_own(uint64_t la)
{
    return is_own(la, 1);
}

// User code comes back from one of those calls.
static void look_at_result(struct direct *d)
{
    const uint64_t *gpr = d->v->s.gpr;
    uint64_t at = gpr[RAX], size = d->call == CALL_MMAP ? gpr[RSI] : d->call == CALL_MREMAP ? gpr[RDX] : PAGE_SIZE;
    if (d->call == CALL_BRK && at >= OWN_LOW_BEGIN && at < 1ull << 32)
        direct_exclude(d); // it grows through
    else if (at < 1ull << 47 && is_own(at, size))
        direct_exclude(d);
    d->call = CALL_NONE;
    engine(d)->direct_call = false;
}

bool direct_chosen(struct direct *d)
{
    if (d->call != CALL_NONE)
        look_at_result(d);
    follow_root(d);
    bool chosen = !d->now->excluded && (d->now->direct || d->choice == DIRECT_EVERYTHING);
    engine(d)->direct_none = chosen ? ~0ull : d->v->s.cr3;
    return chosen;
}

// Whether the program has run for longer than it takes to translate its code for the worker: then it will go on for so long, as
// a rule.
static bool is_worth_translating(const struct direct *d, const struct measure *m)
{
    const struct dbt *t = d->v->engine;
    return m->user_ns >= (m->blocks + t->n.blocks - d->blocks_before) * BLOCK_NS;
}

static void enter(struct direct *d, struct measure *m)
{
    m->translated = m->mixed;
    m->direct = true;
    engine(d)->direct_none = ~0ull;
    m->points = 0;
    m->cycles = m->exits = m->refused = 0;
    m->outside = 0;
    d->n.chosen++;
    d->n.became_translated += m->translated;
}

static void leave(struct direct *d, struct measure *m)
{
    m->direct = false;
    m->points = 0;
    d->n.left++;
}

// Untranslated it comes too often, or for too long, to code that may not run so.
static void found_mixed(struct direct *d, struct measure *m)
{
    m->mixed = true;
    m->outside = 0;
    if (d->choice == DIRECT_EVERYTHING) {
        m->translated = true;
        d->n.became_translated++;
        return;
    }
    leave(d, m);
    if (is_worth_translating(d, m))
        enter(d, m);
}

// A sample of code that has a worker, and may run there untranslated only.
static void sample_inside(struct direct *d, struct measure *m, bool outside)
{
    if (!outside)
        m->outside -= m->outside > 0;
    else if (++m->outside == MOST_OUTSIDE)
        found_mixed(d, m);
}

static void sample_outside(struct direct *d, struct measure *m, bool computes)
{
    if (!computes) {
        m->points -= m->points > 0;
        return;
    }
    if (m->points < MOST_POINTS)
        m->points++;
    if (m->points >= m->needed && (!m->mixed || is_worth_translating(d, m)))
        enter(d, m);
}

void direct_sample(struct direct *d, bool user)
{
    follow_root(d);
    uint64_t now = __builtin_ia32_rdtsc(), calls = kernel_entries(d);
    uint64_t passed = now - d->sampled_tsc, entries = calls - d->sampled_calls, cycles = d->cycles - d->sampled_cycles;
    bool first = !d->sampled_tsc;
    d->sampled_tsc = now;
    d->sampled_calls = calls;
    d->sampled_cycles = d->cycles;
    struct measure *m = d->now;
    if (m->excluded || first)
        return;
    bool computes = user && to_ns(d, passed) >= (entries + 1) * OPEN_NS;
    if (computes && passed > cycles)
        m->user_ns += to_ns(d, passed - cycles);
    if (d->choice != DIRECT_EVERYTHING && !m->direct)
        sample_outside(d, m, computes);
    else if (d->policy == DIRECT_POLICY_CHOOSE && !m->translated)
        sample_inside(d, m, computes && cycles < passed / 2);
}

void direct_left(struct direct *d, uint64_t cycles, bool exit)
{
    struct measure *m = d->now;
    d->cycles += cycles;
    if (d->choice == DIRECT_EVERYTHING || !m)
        return;
    m->cycles += cycles;
    m->user_ns += to_ns(d, cycles);
    m->exits += exit;
    if (m->exits < EXITS)
        return;
    if (to_ns(d, m->cycles) < (uint64_t)EXITS * CLOSE_NS) {
        leave(d, m);
        m->needed = m->needed < MOST_POINTS / 2 ? (uint8_t)(2 * m->needed) : MOST_POINTS;
    } else if (m->needed > FIRST_POINTS) {
        m->needed--; // it does better
    }
    m->cycles = m->exits = 0;
}

void direct_refused(struct direct *d)
{
    struct measure *m = d->now;
    if (d->policy != DIRECT_POLICY_CHOOSE || !m)
        return;
    uint64_t now = __builtin_ia32_rdtsc();
    if (!m->refused++)
        m->refused_tsc = now;
    if (m->refused < EXITS)
        return;
    m->refused = 0;
    if (to_ns(d, now - m->refused_tsc) < (uint64_t)EXITS * MIXED_NS)
        found_mixed(d, m);
}
