// The software engine's run loop, and the C side of the stubs. Everything here runs with the guest's vector registers
// live, except between fpu_out() and fpu_in().
//
// Guest faults come here by cpu_throw(): the loop's setjmp returns, RIP is made exact, and cpu/ delivers the exception.
// Leaving the loop and restarting an instruction use the same way out.
#include "cpu/model.h"
#include "dbt/dbt.h"
#include "dbt/direct/direct.h"

uint64_t run_service(struct dbt *d);

static void fpu_out(struct dbt *d)
{
    cpu_fpu_save(d->v);
    d->fpu_saved = FPU_SAVED;
}

static void fpu_in(struct dbt *d)
{
    if (d->fpu_saved == FPU_VECTORS_SAVED)
        vectors_load(d);
    else
        cpu_fpu_load(d->v);
    d->fpu_saved = FPU_LIVE;
}

_Noreturn static void leave(struct dbt *d)
{
    __builtin_longjmp(d->v->throw_buf, 1);
}

static uint32_t requests(const struct vcpu *v) { return __atomic_load_n(&v->requests, __ATOMIC_ACQUIRE); }

static bool must_stop(const struct dbt *d) { return requests_due(d->v); }

// For crash reports: C is entered here anyway, so a ring of these costs translated code nothing.
static inline void note_step(struct dbt *d, enum engine_step_kind kind, uint64_t rip, unsigned detail)
{
    struct trail *t = &d->trail;
    unsigned at = t->at;
    t->step[at].rip = rip;
    t->step[at].key = d->key;
    t->step[at].detail = (uint16_t)detail;
    t->step[at].kind = (uint8_t)kind;
    t->at = at + 1 < ENGINE_STEPS ? at + 1 : 0;
}

static void note_exception(struct dbt *d)
{
    const struct cpu_event *e = &d->v->event;
    d->trail.step[d->trail.at].error = e->has_error ? e->error : 0;
    note_step(d, STEP_EXCEPTION, d->v->s.rip, e->vector);
}

// The instruction at hand has completed. While C works on it, it is not counted.
static inline void retire(struct vcpu *v) { v->count.left--; }

static bool limit_reached(const struct vcpu *v) { return __builtin_expect(v->count.on, 0) && v->count.left <= 0; }

// Block for the exact state in v->s.
static struct block *next_block(struct dbt *d)
{
    struct vcpu *v = d->v;
    if (v->mode_gen != d->key_gen)
        mode_update(d);
    uint32_t key = d->key | d->force;
    if (v->s.rflags & FL_TF || v->s.shadow & (SHADOW_STI | SHADOW_MOV_SS))
        key |= KEY_ONE;
    bool code64 = (key & KEY_CODE_MASK) == KEY_CODE64;
    uint64_t la = code64 ? v->s.rip : (uint32_t)(v->s.rip + v->s.seg[SEG_CS].base);
    if (__builtin_expect(v->watch_code, 0) && cpu_debug_fetch(v, la))
        key |= KEY_ONE; // and no way in from elsewhere: such blocks are not linked
    struct code_page page = mode_fetch(d, la);
    struct block *b = cache_find(d, v->s.rip, page.gpa, key);
    if (!b) {
        uint64_t begin = __builtin_ia32_rdtsc();
        vcpu_does(v, DOING_TRANSLATION);
        vectors_save(d);
        d->fpu_saved = FPU_VECTORS_SAVED;
        b = translate(d, key);
        fpu_in(d);
        vcpu_does(v, DOING_CORE);
        d->n.translate_cycles += __builtin_ia32_rdtsc() - begin;
    }
    return b;
}

// Lets user code run in its worker. Returns when translated code is to go on at v->s.rip.
static void run_directly(struct dbt *d, int worker)
{
    struct vcpu *v = d->v;
    struct direct_fault fault;
    fpu_out(d);
    enum direct_result result = direct_run(d->direct, worker, &fault);
    fpu_in(d);
    direct_load_selectors(d->direct);
    switch (result) {
    case DIRECT_CODE:
    case DIRECT_LOST: break;
    case DIRECT_STEP: d->force = KEY_ONE; break;
    case DIRECT_PAGE_FAULT: cpu_throw_page_fault(v, fault.address, fault.error);
    case DIRECT_TRAPPED: cpu_debug_trap(v, true); break;
    case DIRECT_STOPPED:
        d->restart = 1;
        leave(d);
    }
}

static uint64_t find_code(struct dbt *d)
{
    struct vcpu *v = d->v;
    d->n.dispatches++;
    if (d->direct && v->s.cpl == 3 && !d->force && (v->s.cr3 != d->direct_none || d->direct_call)) {
        int worker = direct_enter(d->direct);
        if (worker >= 0)
            run_directly(d, worker);
    }
    if (v->mode_gen != d->key_gen)
        mode_update(d);
    note_step(d, STEP_BLOCK, v->s.rip, 0);
    if (!d->force && d->context &&
        !(v->s.rflags & FL_TF || v->s.shadow & (SHADOW_STI | SHADOW_MOV_SS))) {
        unsigned i = v->s.rip & 0xffff;
        if (d->context->tag[i] == v->s.rip)
            return d->context->code[i];
    }
    struct block *b = next_block(d);
    if (!(b->key & KEY_ONE) && in_code(v, v->s.rip)) // the code may have run out of its segment
        cache_ib_set(d, b);
    return b->code_parked;
}

// The limit comes before a fault of the next instruction's fetch.
static uint64_t next_code(struct dbt *d)
{
    return limit_reached(d->v) ? run_service(d) : find_code(d);
}

uint64_t run_chain(struct dbt *d, uint64_t arg)
{
    struct exit *e = (struct exit *)arg;
    d->n.chains++;
    d->v->s.rip = e->target;
    uint64_t evictions = d->n.evictions;
    if (must_stop(d) || limit_reached(d->v))
        return run_service(d);
    note_step(d, STEP_LINK, e->target, 0);
    struct block *b = next_block(d);
    if (d->n.evictions == evictions && !(b->key & KEY_ONE))
        cache_link(d, e, b);
    return b->code_parked;
}

// The fault is the branch's own.
_Noreturn static void branch_fault(struct dbt *d)
{
    struct vcpu *v = d->v;
    v->count.left++;
    const struct branch *b = (const struct branch *)d->branch;
    uint64_t mask = cpu_stack_mask(v), rsp = v->s.gpr[RSP];
    v->s.rip = b->rip;
    v->s.gpr[RSP] = (rsp & ~mask) | ((rsp - b->popped) & mask);
    cpu_throw_error(v, EXC_GP, 0);
}

uint64_t run_indirect(struct dbt *d, uint64_t rip)
{
    d->n.ib_misses++;
    if (!in_code(d->v, rip))
        branch_fault(d);
    d->v->s.rip = rip;
    return next_code(d);
}

// What an instruction that has completed leaves to be trapped: single step, and breakpoints it hit. MOV SS and POP SS
// put it off until the next one has completed (SDM 3A 6.8.3).
static inline void debug_traps(struct vcpu *v, bool tf)
{
    if (__builtin_expect(tf | v->debug_hits, 0) && !(v->s.shadow & SHADOW_MOV_SS))
        cpu_debug_trap(v, tf);
}

// One instruction has completed in a block of its own.
uint64_t run_step(struct dbt *d, uint64_t rip)
{
    struct vcpu *v = d->v;
    d->n.steps++;
    v->s.rip = rip;
    d->force = 0;
    if (__builtin_expect(v->ignne, 0))
        cpu_x87_ignored(v);
    v->s.shadow &= SHADOW_NMI;
    v->s.rflags &= ~(uint64_t)FL_RF;
    debug_traps(v, v->s.rflags & FL_TF);
    return next_code(d);
}

uint64_t run_commit(struct dbt *d, uint64_t rip)
{
    struct vcpu *v = d->v;
    v->count.left++;
    if (d->slow_info & SLOW_MASKED)
        masked_commit(d);
    else
        mmu_write(v, d->bounce_la, d->bounce_data, d->bounce_len, ACC_WRITE | mmu_acc(v));
    retire(v);
    return run_step(d, rip);
}

static bool keeps_no_trap(unsigned op)
{
    return op == OP_INT || op == OP_INT3 || op == OP_INT1 || op == OP_INTO || op == OP_SYSCALL || op == OP_SYSENTER;
}

// REP INS and OUTS that requests, traps or breakpoints have interrupted.
static bool goes_on(const struct vcpu *v, const struct site *s)
{
    return (s->in.op == OP_INS || s->in.op == OP_OUTS) && v->s.rip == s->rip;
}

uint64_t run_sensitive(struct dbt *d, uint64_t arg)
{
    struct site *s = (struct site *)arg;
    struct vcpu *v = d->v;
    d->n.sensitive++;
    d->n.op_count[s->in.op]++;
    s->count++;
    v->s.rip = s->rip;
    note_step(d, STEP_SENSITIVE, s->rip, s->in.op);
    if (s->in.op == OP_SYSCALL && d->direct && direct_may_map(v->s.gpr[RAX]))
        direct_calls(d->direct);
    d->force = 0;
    bool tf = v->s.rflags & FL_TF;
    uint8_t shadow = v->s.shadow;
    v->count.left += s->rest;
    insn_table[s->in.op](v, &s->in);
    if (!goes_on(v, s))
        retire(v);
    if (__builtin_expect(v->ignne, 0))
        cpu_x87_ignored(v);
    if (__builtin_expect(shadow & (SHADOW_STI | SHADOW_MOV_SS), 0))
        v->s.shadow &= (uint8_t)~(shadow & (SHADOW_STI | SHADOW_MOV_SS)); // it covered this instruction only
    if (!v->watch_code || s->in.op != OP_IRET) // else it is for the instruction returned to
        v->s.rflags &= ~(uint64_t)FL_RF;
    debug_traps(v, tf && !keeps_no_trap(s->in.op));
    if (__builtin_expect(v->s.activity != ACT_RUNNING, 0))
        return run_service(d);
    return next_code(d);
}

uint64_t run_string(struct dbt *d, uint64_t arg)
{
    struct site *s = (struct site *)arg;
    struct vcpu *v = d->v;
    d->n.strings++;
    s->count++;
    v->s.rip = s->rip;
    v->count.left += s->rest;
    string_execute(v, &s->in);
    if (v->s.rip != s->rip) {
        retire(v);
        return run_step(d, v->s.rip);
    }
    debug_traps(v, v->s.rflags & FL_TF); // between two iterations
    return next_code(d);
}

uint64_t run_gather(struct dbt *d, uint64_t arg)
{
    struct site *s = (struct site *)arg;
    d->n.gathers++;
    d->v->s.rip = s->rip;
    d->v->count.left += s->rest;
    gather_execute(d, &s->in, &s->gather);
    retire(d->v);
    return run_step(d, d->v->s.rip);
}

// The guest's flags, and RAX when the code before the access had put the flags into AX.
static void recover_flags(struct dbt *d)
{
    struct vcpu *v = d->v;
    uint32_t ax = d->parked;
    if (d->slow_info & SLOW_FLAGS) {
        ax = d->flags;
        v->s.gpr[RAX] = d->spill_ax;
    } else if (!(d->slow_info & SLOW_PARKED)) {
        return;
    }
    v->s.rflags = (v->s.rflags & ~(uint64_t)FL_ARITH) | (ax >> 8 & FL_ARITH & 0xff) | (ax & 1 ? FL_OF : 0);
}

static uint8_t *bounce_read(struct dbt *d, uint64_t la, unsigned size)
{
    uint8_t *p = d->bounce[3] + (la & 63);
    mmu_read(d->v, la, p, size, mmu_acc(d->v));
    return p;
}

static void check_canonical(struct vcpu *v, uint64_t la, unsigned size, unsigned sreg)
{
    uint64_t end = la + size - 1;
    if (cpu_code64(v) && ((uint64_t)((int64_t)(la << 16) >> 16) != la || (uint64_t)((int64_t)(end << 16) >> 16) != end))
        cpu_throw_error(v, sreg == SEG_SS ? EXC_SS : EXC_GP, 0);
}

// Runs the instruction once more, through a bounce buffer.
_Noreturn static void run_bounced(struct dbt *d)
{
    d->restart = 1;
    d->force = KEY_ONE | KEY_BOUNCE;
    leave(d);
}

static uint64_t masked_slow(struct dbt *d, uint64_t la, unsigned size, bool write)
{
    uint64_t host = 0;
    if ((la & (PAGE_SIZE - 1)) + size <= PAGE_SIZE && (!cpu_code64(d->v) || (uint64_t)((int64_t)(la << 16) >> 16) == la))
        host = masked_fill(d, la, write);
    if (!host)
        run_bounced(d);
    return host;
}

static void check_x87(struct dbt *d)
{
    uint16_t fsw;
    if (!(d->slow_info & SLOW_X87))
        return;
    __asm__ volatile("fnstsw %0" : "=a"(fsw));
    if (fsw & 0x80) // ES
        cpu_x87_error(d->v);
    if (d->slow_info & SLOW_TOP) {
        uint8_t env[28];
        __asm__ volatile("fnstenv (%0)" : : "r"(env) : "memory");
        env[5] &= (uint8_t)~0x38;
        __asm__ volatile("fldenv (%0)" : : "r"(env) : "memory");
    }
}

// The range of a group of accesses: its delta if it is usable as a whole, or the block runs without groups.
static uint64_t check_group(struct dbt *d, uint64_t la, unsigned size, bool write)
{
    struct vcpu *v = d->v;
    struct walk w;
    uint32_t error;
    unsigned acc = (write ? ACC_WRITE : ACC_READ) | mmu_acc(v);
    if ((la & (PAGE_SIZE - 1)) + size <= PAGE_SIZE && !must_stop(d) && mmu_probe(v, la, acc, &w, &error) && (!write || w.writable)) {
        uint64_t host = (uint64_t)mmu_fill(v, la, acc);
        if (host)
            return host - la;
    }
    struct block *b = cache_block_at(d, d->slow_ret);
    d->n.group_misses++;
    if (b && ++b->group_misses == 16)
        cache_unmerge(d, b);
    d->restart = 1;
    d->force = KEY_NOMERGE;
    leave(d);
}

// Whether reading there may. A device may look at the count, and request an interrupt at once: so an instruction that asks one
// runs alone, in deterministic runs.
static bool asks_device(struct vcpu *v, uint64_t la, unsigned size)
{
    unsigned acc = ACC_READ | mmu_acc(v);
    uint64_t last = la + size - 1;
    mmu_check(v, la, size, acc);
    return !mmu_fill(v, la, acc) || !mmu_fill(v, cpu_code64(v) ? last : (uint32_t)last, acc);
}

uint64_t run_slow(struct dbt *d, uint64_t offset, uint64_t index)
{
    struct vcpu *v = d->v;
    uint32_t info = d->slow_info;
    bool write = info & SLOW_WRITE;
    struct tlb_set *set = &v->tlb->set[mmu_tlb_kind(v)];
    uint64_t la = offset + (write ? set->write_tag : set->read_tag)[index & (TLB_ENTRIES - 1)];
    unsigned size = SLOW_SIZE(info);
    d->n.slow_fills++;
    recover_flags(d);
    if (must_stop(d)) {
        d->restart = 1;
        leave(d);
    }
    if (info & SLOW_MASKED)
        return masked_slow(d, la, size, write);
    check_x87(d);
    if (info & SLOW_ALIGNED && la & (size - 1))
        cpu_throw_error(v, EXC_GP, 0);
    if (info & SLOW_GROUP)
        return check_group(d, la, size, write);
    check_canonical(v, la, size, info >> SLOW_SEG_SHIFT & 7);
    uint64_t host = 0;
    if ((la & (PAGE_SIZE - 1)) + size <= PAGE_SIZE)
        host = (uint64_t)mmu_fill(v, la, (write ? ACC_WRITE : ACC_READ) | mmu_acc(v));
    if (!host) {
        if (write || (v->count.is_time && asks_device(v, la, size)) || (v->watch_data && cpu_watch_hits(v, la, size, false)))
            run_bounced(d);
        host = (uint64_t)bounce_read(d, la, size);
    }
    if (must_stop(d)) // since the look above: what answered the read asked for it, and sent no signal
        signal_self(d);
    return host;
}

uint64_t run_segment(struct dbt *d, uint64_t offset)
{
    struct vcpu *v = d->v;
    d->n.segment_checks++;
    uint64_t ax = v->s.gpr[RAX];
    recover_flags(d);
    unsigned seg = d->slow_info >> SLOW_SEG_SHIFT & 7, size = SLOW_SIZE(d->slow_info);
    bool write = d->slow_info & SLOW_WRITE;
    uint64_t la;
    if (!(d->slow_info & SLOW_MASKED)) {
        check_x87(d);
        la = cpu_linear(v, seg, offset, size, write);
    } else if (!masked_linear(d, seg, offset, size, write, &la)) {
        run_bounced(d);
    }
    v->s.gpr[RAX] = ax;
    return la;
}

static uint64_t bounce(struct dbt *d, uint64_t offset)
{
    struct vcpu *v = d->v;
    uint32_t info = d->slow_info;
    unsigned size = SLOW_SIZE(info);
    bool write = info & SLOW_WRITE;
    d->n.bounces++;
    if (info & SLOW_MASKED)
        return masked_open(d, offset);
    check_x87(d);
    uint64_t la = cpu_linear(v, info >> SLOW_SEG_SHIFT & 7, offset, size, write);
    if (info & SLOW_ALIGNED && la & (size - 1))
        cpu_throw_error(v, EXC_GP, 0);
    if (size > BOUNCE_SIZE - 64)
        cpu_throw_error(v, EXC_GP, 0);
    if (d->key & KEY_AC && size > 1 && size <= 64 && !masked_place(d, offset)) {
        d->bounce_len = 0; // it will fault there, for its alignment or for its page: the host knows what comes first
        return (uint64_t)d->masked.data;
    }
    if (!write)
        return (uint64_t)bounce_read(d, la, size);
    uint8_t *p = d->bounce[0] + (la & 63);
    mmu_check(v, la, size, ACC_WRITE | mmu_acc(v));
    if (info & SLOW_READ_TOO)
        mmu_read(v, la, p, size, mmu_acc(v));
    d->bounce_la = la;
    d->bounce_len = size;
    d->bounce_data = p;
    return (uint64_t)p;
}

uint64_t run_bounce(struct dbt *d, uint64_t offset)
{
    d->v->count.left++;
    uint64_t host = bounce(d, offset);
    d->v->count.left--;
    return host;
}

_Noreturn void run_fault(struct dbt *d)
{
    unsigned vector = d->fault_vector;
    d->n.faults++;
    if (vector == EXC_GP || vector == EXC_AC)
        cpu_throw_error(d->v, vector, 0);
    if (vector == EXC_PF) // masked_fault() has made the event
        leave(d);
    if (vector == EXC_MF) { // and if it is to be ignored, once more
        cpu_x87_error(d->v);
        d->restart = 1;
        leave(d);
    }
    cpu_throw(d->v, vector);
}

// From the signal to the interrupt's handler, a few loads before its first instruction.
static void count_kick(struct dbt *d, bool interrupted)
{
    if (interrupted) {
        uint64_t cycles = __builtin_ia32_rdtsc() - d->kicked_tsc;
        uint64_t us = (uint64_t)((unsigned __int128)cycles * d->v->model->host_ns_per_tsc_q32 >> 32) / 1000;
        d->kick_us[us < 63 ? us : 63]++;
        if (cycles > d->kick_cycles_max)
            d->kick_cycles_max = cycles;
    }
    d->kicked_tsc = 0;
}

// Of a halted CPU, to which time is nothing but instructions: it comes to the next timer at once. Returns whether there is one.
static bool skip_time(struct vcpu *v)
{
    struct vcpu_count *c = &v->count;
    uint64_t now = cpu_count(v);
    if (!c->is_time || c->due == COUNT_NONE)
        return false;
    if (c->due > now)
        c->skipped_ns += c->due - now;
    c->due = now;
    cpu_count_set_limit(v);
    return true;
}

uint64_t run_limit(struct dbt *d, uint64_t rip)
{
    d->n.limits++;
    d->v->s.rip = rip;
    if (limit_reached(d->v) || must_stop(d))
        return run_service(d);
    d->force |= KEY_ONE;
    return next_block(d)->code_parked;
}

uint64_t run_service(struct dbt *d)
{
    bool interrupted = false;
    struct vcpu *v = d->v;
    d->n.services++;
    plant_remove(d);
    d->kicked = 0; // before the look: the stub sees a kick that comes after it
    for (;;) {
        uint32_t r = requests(v);
        if (limit_reached(v))
            cpu_count_set_limit(v);
        if (limit_reached(v)) {
            if (cpu_count(v) >= v->count.stop_at) {
                d->stop = ENGINE_COUNTED + 1;
                leave(d);
            }
            r |= REQ_TIMER;
        }
        if (r & REQ_EXIT) {
            __atomic_and_fetch(&v->requests, ~REQ_EXIT, __ATOMIC_ACQ_REL);
            d->stop = ENGINE_REQUESTED + 1;
            leave(d);
        }
        if (r & (REQ_SHADOW | REQ_TIMER))
            __atomic_and_fetch(&v->requests, ~(REQ_SHADOW | REQ_TIMER), __ATOMIC_ACQ_REL);
        if (r & REQ_TIMER) {
            vcpu_does(v, DOING_DEVICES);
            fpu_out(d);
            d->host.run_timers(d->host.opaque);
            fpu_in(d);
            vcpu_does(v, DOING_CORE);
        }
        if (r & REQ_INIT) {
            __atomic_and_fetch(&v->requests, ~REQ_INIT, __ATOMIC_ACQ_REL);
            cpu_reset(v);
        }
        bool user = v->s.cpl == 3;
        if (cpu_take_pending(v)) {
            if (d->direct)
                direct_sample(d->direct, user);
            d->n.interrupts++;
            interrupted = true;
            note_step(d, STEP_INTERRUPT, v->s.rip, v->event.vector);
            d->force = 0;
            debug_traps(v, false); // breakpoints on the handler's stack
        }
        if (v->s.activity == ACT_SHUTDOWN) {
            d->stop = ENGINE_SHUTDOWN + 1;
            leave(d);
        }
        if (requests(v) & (REQ_EXIT | REQ_TIMER | REQ_INIT))
            continue; // a chip's timer or another process asked meanwhile
        if (v->s.activity == ACT_RUNNING)
            break;
        if (requests_due(v) || skip_time(v))
            continue;
        vcpu_does(v, DOING_IDLE);
        fpu_out(d);
        d->host.idle(d->host.opaque);
        fpu_in(d);
        vcpu_does(v, DOING_CORE);
        d->kicked_tsc = 0;
    }
    uint64_t code = find_code(d);
    if (d->kicked_tsc)
        count_kick(d, interrupted);
    return code;
}

static void find_slow_rip(struct dbt *d)
{
    struct block *b = cache_block_at(d, d->slow_ret);
    const struct map_entry *m = b ? cache_map_cold(b, d->slow_ret) : NULL;
    d->in_slow = 0;
    if (!m)
        return;
    d->v->s.rip = b->rip + m->guest;
    d->v->count.left += m->rest;
    if (d->restart && m->shadow)
        d->v->s.shadow |= SHADOW_STI; // it has not been done yet
}

static enum engine_stop software_run(struct vcpu *v)
{
    struct dbt *volatile keep = v->engine;
    struct dbt *d = keep;
    d->stop = 0;
    vcpu_does(v, DOING_CORE);
    fpu_in(d);
    if (__builtin_setjmp(v->throw_buf)) {
        d = keep;
        struct vcpu *w = d->v;
        vcpu_does(w, DOING_CORE);
        if (d->fpu_saved)
            fpu_in(d);
        if (d->in_slow)
            find_slow_rip(d);
        if (!d->stop && !d->restart) {
            d->n.exceptions++;
            note_exception(d);
            d->force = 0;
            w->debug_hits = 0; // the instruction did not complete
            cpu_deliver(w);
            debug_traps(w, false);
        }
        d->restart = 0;
    }
    if (!d->stop) {
        uint64_t code = run_service(d);
        ((void (*)(uint64_t))d->stub_enter)(code);
        __builtin_unreachable();
    }
    if (d->v->x87_hidden)
        cpu_x87_unhide(d->v);
    fpu_out(d);
    vcpu_does(d->v, DOING_NOTHING);
    return (enum engine_stop)(d->stop - 1);
}

static void software_kick(struct vcpu *v)
{
    struct dbt *d = v->engine;
    if (d)
        signal_kick(d);
}

void engine_software_set_host(struct vcpu *v, struct engine_host host)
{
    struct dbt *d = v->engine;
    d->host = host;
}

static void trace(struct dbt *d, enum dbt_event event, uint64_t a, uint64_t b)
{
    bool saved = d->fpu_saved;
    if (!saved)
        fpu_out(d);
    d->trace_event(d, event, a, b);
    if (!saved)
        fpu_in(d);
}

void run_delivering(void *opaque, bool external)
{
    struct dbt *d = opaque;
    trace(d, external ? EVENT_INTERRUPT : EVENT_EXCEPTION, d->v->event.vector, d->v->s.rip);
}

static void on_page_flushed(void *opaque, uint64_t la)
{
    struct dbt *d = opaque;
    if (__builtin_expect(d->trace_mmu, 0))
        trace(d, EVENT_FLUSH_PAGE, la, 0);
    uint64_t page = la >> PAGE_SHIFT;
    unsigned bit = code_page_bit(page);
    bool global = d->code_pages[1][bit >> 6] >> (bit & 63) & 1;
    if (!global && !(d->code_pages[0][bit >> 6] >> (bit & 63) & 1))
        return;
    if (d->code_tlb[page & 255].page == page)
        d->code_tlb[page & 255].kind = 0;
    cache_forget_far(d, global);
}

static void on_tlb_flushed(void *opaque, bool global)
{
    struct dbt *d = opaque;
    if (__builtin_expect(d->trace_mmu, 0))
        trace(d, EVENT_FLUSH_ALL, global, 0);
    for (unsigned g = 0; g <= (unsigned)global; g++)
        for (unsigned i = 0; i < 1024; i++)
            d->code_pages[g][i] = 0;
    for (unsigned i = 0; i < 256; i++)
        if (global || !d->code_tlb[i].global)
            d->code_tlb[i].kind = 0;
    cache_forget_far(d, global);
}

static void on_code_written(void *opaque, uint64_t gpa, unsigned len)
{
    struct dbt *d = opaque;
    if (__builtin_expect(d->trace_mmu, 0))
        trace(d, EVENT_CODE_WRITTEN, gpa, len);
    cache_invalidate(d, gpa, len);
}

static void on_code_traced(void *opaque, uint64_t gpa)
{
    struct dbt *d = opaque;
    mmu_drop_writable(d->v, gpa);
}

static bool is_prefix(const struct block *b, uint8_t byte)
{
    switch (byte) {
    case 0x26: case 0x2e: case 0x36: case 0x3e: case 0x64: case 0x65: case 0x66: case 0x67: case 0xf0: case 0xf2: case 0xf3:
        return true;
    default: return (b->key & KEY_CODE_MASK) == KEY_CODE64 && (byte & 0xf0) == 0x40;
    }
}

// FOP (SDM 1 8.1.9) of the instruction at this offset of the block, from the guest's memory: as long as the block lives,
// its bytes are there. Of others *fop stays as it is.
static void guest_opcode(const struct dbt *d, const struct block *b, uint32_t offset, uint16_t *fop)
{
    uint8_t byte[2] = {0};
    for (unsigned i = 0; i < 15; i++, offset++) {
        const struct range *r = &b->range[0];
        uint32_t at = offset;
        if (b->straddles && at >= r->len) {
            at -= r->len;
            r++;
        }
        struct mem_slot slot = mem_find(d->v->mem, r->gpa + at);
        if (slot.kind != MEM_RAM && slot.kind != MEM_ROM)
            return;
        byte[0] = byte[1];
        byte[1] = *slot.host;
        if ((byte[0] & 0xf8) == 0xd8) {
            *fop = (uint16_t)((byte[0] & 7) << 8 | byte[1]);
            return;
        }
        if ((byte[1] & 0xf8) != 0xd8 && !is_prefix(b, byte[1]))
            return;
    }
}

// Whether FOP is that of the host's instruction at `fip`.
static bool host_opcode_is(const struct block *b, uint64_t fip, uint16_t fop)
{
    const uint8_t *p = (const uint8_t *)fip;
    uint64_t left = b->code + (uint64_t)b->code_len - fip;
    for (unsigned i = 0; i < 8 && i + 1 < left; i++)
        if ((p[i] & 0xf8) == 0xd8)
            return ((p[i] & 7) << 8 | p[i + 1]) == fop;
    return false;
}

// x87 images hold the address of the last x87 instruction: one of ours, or one the guest loaded itself.
// Intel's processors leave FOP where it is unless the instruction raises an unmasked exception: then it is not that at `fip`.
static uint64_t on_fip(void *opaque, uint64_t fip, uint16_t *fop)
{
    struct dbt *d = opaque;
    uint64_t rip;
    bool start;
    if (!cache_contains(d, fip))
        return fip;
    struct block *b = cache_block_at(d, fip);
    if (!b || !cache_guest_rip(b, fip, &rip, &start))
        return 0; // gone
    if (host_opcode_is(b, fip, *fop))
        guest_opcode(d, b, (uint32_t)(rip - b->rip), fop);
    return rip;
}

static int software_attach(struct vcpu *v)
{
    static const struct dbt_hooks hooks = {on_page_flushed, on_tlb_flushed, on_code_written, on_code_traced, on_fip};
    return dbt_create(v, &hooks);
}

static void software_detach(struct vcpu *v)
{
    dbt_destroy(v);
}

int engine_software_direct(struct vcpu *v, int ram_fd, unsigned workers, bool always, enum engine_policy policy)
{
    struct dbt *d = v->engine;
    int error = 0;
    static const enum direct_policy of[] = {
        [ENGINE_POLICY_AUTO] = DIRECT_POLICY_CHOOSE, [ENGINE_POLICY_RAW] = DIRECT_POLICY_RAW, [ENGINE_POLICY_USER] = DIRECT_POLICY_USER};
    d->direct = direct_create(v, ram_fd, workers, always ? DIRECT_EVERYTHING : DIRECT_CHOOSE, of[policy], &error);
    return error;
}

const struct workers *engine_software_workers(const struct vcpu *v)
{
    const struct dbt *d = v->engine;
    return d && d->direct ? direct_workers(d->direct) : NULL;
}

const struct engine_ops engine_software = {
    .name = "software",
    .attach = software_attach,
    .run = software_run,
    .kick = software_kick,
    .detach = software_detach,
};
