#include "cpu/planted.h"
#include "dbt/direct/private.h"

// What user code can change of the flags, and is taken over from a worker.
#define FL_TAKEN (FL_ARITH | FL_DF | FL_TF | FL_NT | FL_AC | FL_ID)

bool direct_may_execute(void *opaque, uint64_t ram_page)
{
    struct direct *d = opaque;
    unsigned offset;
    enum scan_cause cause = scan_page(d->v->mem->ram + ram_page * PAGE_SIZE, &d->rules, &offset);
    d->n.scan_failed[cause]++;
    return cause == SCAN_PASSES;
}

// ---- who may run there

static bool selectors_fit(const struct cpu_state *s)
{
    return s->seg[SEG_CS].sel == HOST_CS && s->seg[SEG_SS].sel == HOST_SS &&
           !(s->seg[SEG_DS].sel | s->seg[SEG_ES].sel | s->seg[SEG_FS].sel | s->seg[SEG_GS].sel);
}

// What user code finds by LAR, VERR and VERW: attributes of descriptors that it may see, 0 for the others (SDM 2A LAR).
static uint32_t seen_by_user(uint32_t high)
{
    unsigned type = high >> 8 & 15, dpl = high >> 13 & 3;
    bool segment = high & 0x1000;
    bool conforming = segment && (type & 0xc) == 0xc;
    bool known = segment || type == 2 || type == 9 || type == 11 || type == 12;
    return known && (conforming || dpl == 3) ? high & 0x00f0ff00 : 0;
}

static bool descriptors_fit(const struct direct *d)
{
    struct vcpu *v = d->v;
    struct walk w;
    uint32_t error;
    if (v->s.gdtr.limit != 8 * HOST_DESCRIPTORS - 1 || v->s.gdtr.base & (8 * HOST_DESCRIPTORS - 1) ||
        !mmu_probe(v, v->s.gdtr.base, ACC_READ | ACC_SYSTEM, &w, &error))
        return false;
    struct mem_slot slot = mem_find(v->mem, w.gpa);
    if (slot.kind != MEM_RAM)
        return false;
    const uint32_t *gdt = (const uint32_t *)slot.host;
    for (unsigned i = 1; i < HOST_DESCRIPTORS; i++)
        if (seen_by_user(gdt[2 * i + 1]) != d->lar[i])
            return false;
    return true;
}

// Whether user code in this state would see and do the same on the host's processor at CPL 3.
static bool is_eligible(const struct direct *d)
{
    const struct vcpu *v = d->v;
    const struct cpu_state *s = &v->s;
    const uint64_t cr4 = CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_FSGSBASE | CR4_PAE;
    return s->cpl == 3 && cpu_code64(v) && s->iflag && !s->shadow && s->rip < WORKER_TOP &&
           !(s->rflags & (FL_TF | FL_AC | FL_NT | FL_IOPL | FL_VM | FL_RF)) && !(s->cr0 & (CR0_TS | CR0_EM)) &&
           (s->cr4 & (cr4 | CR4_TSD)) == cr4 && (s->xcr0 & 7) == 7 && s->efer & EFER_SCE &&
           !v->watch_code && !v->watch_data && !v->ignne &&
           !v->x87_hidden && !v->x87_exact && !v->count.on && selectors_fit(s) && !s->ldtr.sel && s->tr.sel == HOST_TR &&
           (s->cr0 & 0xffff) == HOST_CR0 && !s->tsc_offset && descriptors_fit(d);
}

// ---- carrying out what the shadow says

static int protection(uint32_t rights)
{
    return (rights & SHADOW_READ ? 1 : 0) | (rights & SHADOW_WRITE ? 2 : 0) | (rights & SHADOW_EXEC ? 4 : 0); // PROT_*
}

bool direct_carry_out(struct direct *d, int n)
{
    unsigned count;
    const struct shadow_change *change = shadow_changes(d->shadow, n, &count);
    for (unsigned i = 0; i < count; i++) {
        const struct shadow_change *c = &change[i];
        for (;;) {
            bool queued;
            if (!c->rights) {
                uint64_t begin = c->la < WORKER_END ? WORKER_END : c->la, end = c->la + c->size;
                if (end > WORKER_TOP)
                    end = WORKER_TOP;
                queued = begin >= end || worker_unmap(d->workers, (unsigned)n, begin, end - begin);
            } else {
                queued = worker_map(d->workers, (unsigned)n, c->la, c->size, c->ram_offset, protection(c->rights));
            }
            if (queued)
                break;
            if (worker_sync(d->workers, (unsigned)n))
                return false;
        }
    }
    shadow_done(d->shadow, n);
    return true;
}

void direct_give_up(struct direct *d, int n)
{
    worker_kill(d->workers, (unsigned)n);
    d->broken[n] = true;
    d->n.lost++;
    shadow_close(d->shadow, n);
}

// ---- state out and in

static void copy(uint8_t *to, const uint8_t *from, size_t n)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

void direct_put_rest(struct direct *d, int n)
{
    const struct cpu_state *s = &d->v->s;
    struct worker_regs *r = worker_regs(d->workers, (unsigned)n);
    r->cs = HOST_CS;
    r->ss = HOST_SS;
    r->fs_base = s->seg[SEG_FS].base;
    r->gs_base = s->seg[SEG_GS].base;
    copy(worker_new_xsave(d->workers, (unsigned)n, d->xsave_mask), s->xsave, d->xsave_size);
}

static void put_state(struct direct *d, int n)
{
    const struct cpu_state *s = &d->v->s;
    struct worker_regs *r = worker_regs(d->workers, (unsigned)n);
    for (unsigned g = 0; g < 16; g++)
        r->gpr[g] = s->gpr[g];
    r->rsp = s->gpr[RSP];
    r->rip = s->rip;
    r->rflags = (s->rflags & (FL_ARITH | FL_ID)) | FL_ONE | FL_IF | (s->dflag ? FL_DF : 0);
    direct_put_rest(d, n);
}

static uint64_t canonical(uint64_t la)
{
    return (uint64_t)((int64_t)(la << 16) >> 16);
}

void direct_take_rest(struct direct *d, int n, uint64_t flags)
{
    struct vcpu *v = d->v;
    struct cpu_state *s = &v->s;
    const struct worker_regs *r = worker_regs(d->workers, (unsigned)n);
    size_t size;
    const uint8_t *xsave = worker_xsave(d->workers, (unsigned)n, &size);
    cpu_set_rflags(v, (cpu_rflags(v) & ~(uint64_t)FL_TAKEN) | (flags & FL_TAKEN));
    d->loaded = r->cs != HOST_CS || r->ss != HOST_SS || (r->ds | r->es | r->fs | r->gs);
    d->selectors = *r;
    s->seg[SEG_FS].base = canonical(r->fs_base);
    s->seg[SEG_GS].base = canonical(r->gs_base);
    copy(s->xsave, xsave, size < d->xsave_size ? size : d->xsave_size);
}

static void take_state(struct direct *d, int n)
{
    struct cpu_state *s = &d->v->s;
    const struct worker_regs *r = worker_regs(d->workers, (unsigned)n);
    for (unsigned g = 0; g < 16; g++)
        s->gpr[g] = r->gpr[g];
    s->gpr[RSP] = r->rsp;
    s->rip = canonical(r->rip);
    direct_take_rest(d, n, r->rflags);
}

// ---- events

static bool guest_byte_is(struct direct *d, uint64_t la, uint8_t value)
{
    struct walk w;
    uint32_t error;
    if (!mmu_probe(d->v, la, ACC_READ | ACC_USER, &w, &error))
        return false;
    struct mem_slot slot = mem_find(d->v->mem, w.gpa);
    return slot.kind == MEM_RAM && *slot.host == value;
}

// Where the instruction that stopped the worker begins: traps are reported behind it.
static uint64_t begin_of(struct direct *d, const struct worker_event *e, uint64_t rip)
{
    switch (e->signal) {
    case 31: return rip < WORKER_TOP ? rip - 2 : rip; // SIGSYS: SYSCALL, INT 80h; or a call of the vsyscall page
    case 5:                  // SIGTRAP
        if (e->trap == EXC_BP)
            return guest_byte_is(d, rip - 1, 0xcc) ? rip - 1 : rip - 2; // or CD 03
        return rip - 1; // INT1
    case 11: return e->trap == EXC_OF ? rip - 2 : rip; // SIGSEGV: CD 04
    default: return rip;
    }
}

static enum direct_result page_fault(struct direct *d, int n, const struct worker_event *e, struct direct_fault *fault, bool *again)
{
    unsigned acc = e->error & 16 ? ACC_EXEC : e->error & 2 ? ACC_WRITE : ACC_READ;
    *again = false;
    if (e->address >= 1ull << 47)
        return DIRECT_STEP;
    fault->address = e->address;
    switch (shadow_fill(d->shadow, n, e->address, acc, &fault->error)) {
    case SHADOW_FILLED:
        d->n.hidden_faults++;
        *again = true;
        return DIRECT_STEP;
    case SHADOW_FAULT: d->n.cause[DIRECT_CAUSE_FAULT]++; return DIRECT_PAGE_FAULT;
    default:
        d->n.cause[acc == ACC_EXEC ? DIRECT_CAUSE_CODE : DIRECT_CAUSE_TRACED]++;
        if (direct_is_own(e->address))
            direct_exclude(d);
        if (acc == ACC_EXEC)
            direct_refused(d);
        return acc == ACC_EXEC ? DIRECT_CODE : DIRECT_STEP;
    }
}

static enum direct_result answer(struct direct *d, int n, const struct worker_event *e, struct direct_fault *fault, bool *again)
{
    struct vcpu *v = d->v;
    *again = false;
    if (e->why == WORKER_SIGNAL && e->signal == 11 && e->trap == EXC_PF) {
        // The registers stay where they are while the fault is the shadow's own.
        enum direct_result result = page_fault(d, n, e, fault, again);
        if (!*again)
            take_state(d, n);
        if (result == DIRECT_PAGE_FAULT)
            direct_note_fault(d, n, e->address, e->error & 16 ? ACC_EXEC : e->error & 2 ? ACC_WRITE : ACC_READ);
        return result;
    }
    take_state(d, n);
    if (e->why == WORKER_KICKED) {
        d->n.cause[DIRECT_CAUSE_KICK]++;
        return DIRECT_STOPPED;
    }
    if (e->signal == 5 && e->trap == EXC_DB && v->s.rflags & FL_TF) {
        d->n.cause[DIRECT_CAUSE_OTHER]++;
        return DIRECT_TRAPPED;
    }
    v->s.rip = begin_of(d, e, v->s.rip);
    d->n.cause[e->signal == 31 ? DIRECT_CAUSE_CALL : DIRECT_CAUSE_OTHER]++;
    return DIRECT_STEP;
}

static bool requests_due(const struct vcpu *v)
{
    return __atomic_load_n(&v->requests, __ATOMIC_ACQUIRE); // interrupts are on
}

int direct_enter(struct direct *d)
{
    struct vcpu *v = d->v;
    bool fresh;
    uint32_t error;

    if (!direct_chosen(d))
        return -1;
    if (!is_eligible(d)) {
        d->n.refused_state++;
        return -1;
    }
    int n = shadow_open(d->shadow, &fresh);
    if (n < 0 || d->broken[n])
        return -1;
    if (fresh) {
        d->n.opened++;
        d->translated[n] = d->policy == DIRECT_POLICY_USER;
        d->faulted[n].rip = 0;
        if (!worker_is_parked(d->workers, (unsigned)n) ||
            !worker_unmap(d->workers, (unsigned)n, WORKER_END, WORKER_TOP - WORKER_END)) {
            direct_give_up(d, n);
            return -1;
        }
    }
    if (d->policy == DIRECT_POLICY_CHOOSE)
        d->translated[n] = d->now && d->now->translated;
    if (d->translated[n] || shadow_fill(d->shadow, n, v->s.rip, ACC_EXEC, &error) == SHADOW_FILLED)
        return n;
    d->n.cause[DIRECT_CAUSE_CODE]++; // or the guest's own fault: translated code raises it
    direct_refused(d);
    return -1;
}

// Guest code has made its worker unusable, and its state went with it. What a processor would do there is a fault on the stack.
static enum direct_result lost(struct direct *d, int n, struct direct_fault *fault)
{
    direct_give_up(d, n);
    fault->address = d->v->s.gpr[RSP];
    fault->error = 6; // a user write to a page that is not there
    return DIRECT_PAGE_FAULT;
}

static void wait_cycles(uint64_t cycles)
{
    for (uint64_t begin = __builtin_ia32_rdtsc(); __builtin_ia32_rdtsc() - begin < cycles;)
        ;
}

void direct_turn(struct direct *d, int n, enum vcpu_doing what, bool stops_soon, struct worker_event *e)
{
    d->n.handoffs++;
    vcpu_does(d->v, what);
    if (PLANTED(kicks_between_turns) && stops_soon)
        wait_cycles(5000000);
    __atomic_store_n(&d->running, n, __ATOMIC_SEQ_CST);
    worker_resume(d->workers, (unsigned)n);
    if (PLANTED(kicks_between_turns) && !stops_soon && d->n.handoffs % 16 == 0) {
        wait_cycles(d->n.handoffs % 61 * 500);
        worker_kick(d->workers, (unsigned)n);
    }
    if (!stops_soon && requests_due(d->v))
        worker_kick(d->workers, (unsigned)n);
    while (!worker_wait(d->workers, (unsigned)n, e))
        ;
    __atomic_store_n(&d->running, -1, __ATOMIC_SEQ_CST);
    vcpu_does(d->v, DOING_CORE);
}

static enum direct_result raw_run(struct direct *d, int n, struct direct_fault *fault)
{
    struct worker_event e;
    bool again = false;
    enum direct_result result;

    put_state(d, n);
    do {
        if (!direct_carry_out(d, n))
            e.why = WORKER_NO_ROOM;
        else
            direct_turn(d, n, DOING_RAW, false, &e);
        if (e.why == WORKER_NO_ROOM) { // it has not run on: the state is where it was
            if (again)
                take_state(d, n);
            direct_give_up(d, n);
            return DIRECT_CODE;
        }
        if (e.why == WORKER_DIED)
            return DIRECT_LOST;
        result = answer(d, n, &e, fault, &again);
    } while (again);
    return result;
}

void direct_note_fault(struct direct *d, int n, uint64_t address, unsigned acc)
{
    d->faulted[n].rip = d->v->s.rip;
    d->faulted[n].address = address;
    d->faulted[n].acc = acc;
}

// The guest has come back to an instruction that faulted: what it accesses first is known, and one stop is spared.
static void expect_access(struct direct *d, int n)
{
    uint32_t error;
    if (d->faulted[n].rip == d->v->s.rip)
        shadow_fill(d->shadow, n, d->faulted[n].address, d->faulted[n].acc, &error);
    d->faulted[n].rip = 0;
}

enum direct_result direct_run(struct direct *d, int n, struct direct_fault *fault)
{
    expect_access(d, n);
    uint64_t begin = __builtin_ia32_rdtsc();
    enum direct_result result = d->translated[n] ? translated_run(d, n, fault) : raw_run(d, n, fault);
    begin = __builtin_ia32_rdtsc() - begin;
    // An interrupt would have come anyway, and code that may not run there has its own count.
    direct_left(d, begin, result != DIRECT_STOPPED && result != DIRECT_CODE);
    return result == DIRECT_LOST ? lost(d, n, fault) : result;
}

// What the host has behind the selectors that user code can load is what the guest has (is_eligible()), but for bases of FS and GS,
// which come from the worker.
void direct_load_selectors(struct direct *d)
{
    struct vcpu *v = d->v;
    struct cpu_state *s = &v->s;
    const struct worker_regs *r = &d->selectors;
    if (!d->loaded)
        return;
    d->loaded = false;
    if (r->cs == HOST_COMPAT_CS && s->seg[SEG_CS].sel != r->cs) {
        s->seg[SEG_CS].sel = r->cs;
        s->seg[SEG_CS].limit = 0xffffffff;
        s->seg[SEG_CS].attr = (s->seg[SEG_CS].attr & ~SEG_L) | SEG_DB | SEG_G;
        v->mode_gen++;
    }
    const uint16_t sel[SEG_COUNT] = {[SEG_ES] = r->es, [SEG_SS] = r->ss, [SEG_DS] = r->ds, [SEG_FS] = r->fs, [SEG_GS] = r->gs};
    static const uint8_t order[] = {SEG_SS, SEG_DS, SEG_ES, SEG_FS, SEG_GS};
    for (unsigned i = 0; i < sizeof order; i++) {
        unsigned n = order[i];
        uint64_t base = s->seg[n].base;
        if (sel[n] == s->seg[n].sel)
            continue;
        cpu_load_segment(v, n, sel[n]);
        if (n == SEG_FS || n == SEG_GS)
            s->seg[n].base = base;
    }
}

void direct_kick(struct direct *d)
{
    int n = __atomic_load_n(&d->running, __ATOMIC_SEQ_CST);
    if (n >= 0)
        worker_kick(d->workers, (unsigned)n);
}

const struct workers *direct_workers(const struct direct *d)
{
    return d->workers;
}
