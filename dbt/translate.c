// The translator's driver: fetch and decode a basic block, find which flags are live where, emit, register.
//
// A block ends at a control transfer, a sensitive instruction, the page's end, or MAX_INSNS. An instruction that
// crosses a page boundary is a block of its own, reached like one in another page, because two mappings decide about it.
// Liveness looks a few instructions past direct exits within the page; the bytes it looked at belong to the block's
// ranges, so that a write to them discards the block.
#include "dbt/internal.h"

#define PEEK_INSNS 6

static bool ends_block(const struct translation *t, const struct ginsn *g)
{
    if (g->cls == CLASS_INLINE && (g->sens == OP_STAC || g->sens == OP_CLAC || g->sens == OP_SYSCALL || g->sens == OP_SYSRET))
        return true; // what follows runs in another mode
    if (t->key & KEY_ONE || g->cls == CLASS_SENSITIVE || g->cls == CLASS_STRING || g->cls == CLASS_GATHER)
        return true;
    if (g->cls != CLASS_CONTROL)
        return false;
    switch (g->z->meta.category) {
    case ZYDIS_CATEGORY_COND_BR:
    case ZYDIS_CATEGORY_UNCOND_BR:
    case ZYDIS_CATEGORY_CALL:
    case ZYDIS_CATEGORY_RET: return true;
    default: return false;
    }
}

bool is_conditional(const struct ginsn *g) { return g->cls == CLASS_CONTROL && g->z->meta.category == ZYDIS_CATEGORY_COND_BR; }

bool is_call(const struct ginsn *g) { return g->cls == CLASS_CONTROL && g->z->meta.category == ZYDIS_CATEGORY_CALL; }

// A conditional branch ahead is an exit on the side: the block goes on behind it. What jumps back is mostly taken. Calls
// come back, as a rule.
static bool goes_on_behind(const struct translation *t, const struct ginsn *g)
{
    if (t->side_exits == MAX_SIDE_EXITS || t->key & KEY_ONE)
        return false;
    return is_conditional(g) ? (g->z->opcode & 0xf0) != 0xe0 && (int64_t)g->imm > 0 : is_call(g) && call_returns(t, g);
}

uint32_t peek_live(struct translation *t, uint64_t rip)
{
    const struct window *w = t->window;
    struct block *b = t->b;
    uint64_t off = code_linear(t, rip) - w->la;
    uint32_t unknown = FL_ARITH, live = 0;
    if (off >= w->len || b->range_count == MAX_RANGES || t->key & KEY_ONE || t->d->exact_flags)
        return FL_ARITH;
    uint64_t start = off;
    for (unsigned i = 0; i < PEEK_INSNS && unknown; i++) {
        struct peeked k;
        if (off >= w->len)
            break;
        if (!peek_quickly(t, w->p + off, w->len - (unsigned)off, &k)) {
            t->ahead_count = 0;
            if (!decode(t, &t->peek, w->p + off, w->len - (unsigned)off, rip))
                break;
            k = (struct peeked){t->peek.z->length, flags_read(&t->peek), flags_killed(&t->peek), ends_block(t, &t->peek)};
        }
        live |= k.read & unknown;
        unknown &= ~k.killed & ~live;
        off += k.length;
        rip += k.length;
        if (k.ends)
            break;
    }
    b->range[b->range_count++] = (struct range){w->gpa + start, (uint32_t)(off - start)};
    return live | unknown;
}

static uint32_t live_at_end(struct translation *t)
{
    struct ginsn *g = &t->insn[t->count - 1];
    uint64_t next = (g->rip + g->z->length) & t->rip_mask;
    if (g->cls == CLASS_CONTROL && g->z->opcode != 0xff) {
        switch (g->z->meta.category) {
        case ZYDIS_CATEGORY_COND_BR: {
            uint32_t l = peek_live(t, next);
            return l == FL_ARITH ? l : l | peek_live(t, branch_target(t, g));
        }
        case ZYDIS_CATEGORY_UNCOND_BR:
        case ZYDIS_CATEGORY_CALL: return peek_live(t, branch_target(t, g));
        case ZYDIS_CATEGORY_RET: return FL_ARITH;
        default: break;
        }
    }
    if (ends_block(t, g))
        return FL_ARITH;
    return peek_live(t, next);
}

static void liveness(struct translation *t)
{
    uint32_t live = live_at_end(t);
    if (t->key & KEY_ONE)
        live = FL_ARITH;
    for (unsigned i = t->count; i-- > 0;) {
        struct ginsn *g = &t->insn[i];
        bool inner = i + 1 < t->count;
        if (inner && live != FL_ARITH && is_conditional(g))
            live |= peek_live(t, branch_target(t, g));
        g->live_after = live;
        if (inner && is_call(g)) // what is live behind it comes from what was called
            live = g->z->opcode == 0xe8 ? peek_live(t, branch_target(t, g)) : FL_ARITH;
        live = t->d->exact_flags ? FL_ARITH : (live & ~flags_killed(g)) | flags_read(g);
        g->live = live;
    }
}

static void emit_insn(struct translation *t, struct ginsn *g)
{
    switch (g->cls) {
    case CLASS_PLAIN:
        if (user(t) && g->z->meta.category == ZYDIS_CATEGORY_STRINGOP)
            emit_user_string(t, g);
        else if (user(t) && (g->z->mnemonic == ZYDIS_MNEMONIC_CLD || g->z->mnemonic == ZYDIS_MNEMONIC_STD))
            a8(&t->a, g->z->mnemonic == ZYDIS_MNEMONIC_STD ? 0xfd : 0xfc);
        else if (g->z->mnemonic == ZYDIS_MNEMONIC_CLD || g->z->mnemonic == ZYDIS_MNEMONIC_STD)
            a_store_imm8_abs(&t->a, STATE(t, dflag), g->z->mnemonic == ZYDIS_MNEMONIC_STD);
        else
            emit_plain(t, g);
        break;
    case CLASS_CONTROL: emit_control(t, g); break;
    case CLASS_NOTHING: emit_nothing(t, g); break;
    case CLASS_INLINE: emit_inline(t, g, g == &t->insn[t->count - 1]); break;
    case CLASS_STRING: emit_string(t, g); break;
    default: emit_site(t, g); break;
    }
}

static bool is_unmerged(const struct dbt *d, uint64_t rip)
{
    unsigned slot = unmerged_slot(rip);
    return d->unmerged_any[slot / 64] >> slot % 64 & 1 && d->unmerged[slot] == rip;
}

// For --stats. Neighbouring blocks have different counters: blocks take few cycles, so one counter's additions would wait
// for each other.
static void count_entry(struct translation *t)
{
    struct asm_buf *a = &t->a;
    uint64_t counter = DBT(t, n.entered[t->b->code >> 4 & (ENTRY_COUNTERS - 1)]);
    if (t->flags == FLAGS_DEAD) {
        a_inc_abs(a, counter);
        return;
    }
    a_load_abs(a, 8, T0, counter);
    a_lea(a, 8, T0, T0, -1, 1, 1);
    a_store_abs(a, 8, counter, T0);
}

static void *keep(struct dbt *d, const void *data, size_t n) // in the arena; null: it is full
{
    void *p = arena_alloc(d, n);
    return p ? memcpy(p, data, n) : NULL;
}

static int emit_block(struct translation *t)
{
    struct dbt *d = t->d;
    struct block *b = t->b;
    size_t room;
    uint8_t *code = cache_code(d, &room);
    t->a = (struct asm_buf){.p = code, .end = code + room, .to_run = (intptr_t)(d->rx - (uint64_t)d->rw), .begin = code,
                            .reloc = rebase_wants(d, b->rip, t->key) ? t->reloc : NULL};
    t->cold_count = 0;
    merge_plan(t, t->code_size == 8 && !(t->key & (KEY_ONE | KEY_BOUNCE | KEY_NOMERGE | KEY_USER)) && !is_unmerged(d, b->rip));
    t->committed = t->ended = false;
    t->rsp_pending = 0;
    t->flags = t->insn[0].live ? FLAGS_HOST : FLAGS_DEAD;
    b->exits = t->exit;
    count_plan(t);
    uint8_t *start = t->a.p;
    b->code = (uint32_t)asm_here(&t->a);
    if (t->key & KEY_NOMERGE)
        a_store_imm32_abs(&t->a, 4, DBT(t, force), 0); // it was asked for this once
    if (d->measured && !user(t))
        count_entry(t);
    for (unsigned i = 0; i < t->count; i++) {
        struct ginsn *g = &t->insn[i];
        bool shadow = i && t->insn[i - 1].cls == CLASS_INLINE && t->insn[i - 1].sens == OP_STI;
        struct map_entry *m = &t->map[i];
        *m = (struct map_entry){.host = i ? (uint32_t)(t->a.p - start) : 0, .guest = (uint16_t)(g->rip - b->rip), .shadow = shadow || t->rsp_pending, .borrowed = NOT_BORROWED,
                                .parked = t->flags == FLAGS_PARKED, .rest = t->rest[i]};
        t->current = i;
        t->nth = 0;
        bool keeps_t1 = i && (t->insn[i - 1].cls == CLASS_PLAIN || t->insn[i - 1].z->mnemonic == ZYDIS_MNEMONIC_PUSH ||
                              t->insn[i - 1].z->mnemonic == ZYDIS_MNEMONIC_POP || is_conditional(&t->insn[i - 1]));
        if (!keeps_t1)
            t->t1_group = -1;
        if (t->rest[i] && (!i || t->rest[i - 1] == 1))
            count_run(t);
        flags_before(t, g);
        m->parked |= t->flags == FLAGS_PARKED ? 2 : 0;
        emit_insn(t, g);
        flags_after(t, g);
        if (t->a.overflow)
            return -1;
    }
    if (!t->ended) {
        struct ginsn *last = &t->insn[t->count - 1];
        emit_exit_to(t, last->rip + last->z->length);
    }
    b->exits = keep(d, t->exit, sizeof *b->exits * b->exit_count);
    if (!b->exits)
        return -1;
    mem_cold(t);
    b->code_parked = b->code;
    if (t->insn[0].live) {
        b->code_parked = (uint32_t)asm_here(&t->a);
        flags_unpark(t);
        a_jmp_to(&t->a, b->code);
    }
    if (t->a.overflow)
        return -1;
    b->code_len = (uint32_t)(t->a.p - start);
    b->map_count = b->insn_count = (uint16_t)t->count;
    b->map = keep(d, t->map, sizeof b->map[0] * t->count);
    b->range = keep(d, t->range, sizeof b->range[0] * b->range_count);
    b->indirect = keep(d, t->indirect, sizeof b->indirect[0] * b->indirect_count);
    if (!b->map || !b->range || !b->indirect)
        return -1;
    cache_code_used(d, b->code_len);
    return 0;
}

static void made(struct dbt *d, struct block *b)
{
    d->n.blocks++;
    d->n.guest_insns += b->insn_count;
    d->n.guest_bytes += b->guest_len;
    d->n.host_bytes += b->code_len;
    if (d->trace_block)
        d->trace_block(d->trace_opaque, d, b);
}

static void open_window(struct dbt *d, struct window *w, uint64_t la)
{
    struct code_page page = mode_fetch(d, la);
    struct mem_slot slot = mem_find(d->v->mem, page.gpa);
    w->la = la & ~(PAGE_SIZE - 1);
    w->gpa = page.gpa & ~(PAGE_SIZE - 1);
    w->len = PAGE_SIZE;
    w->p = slot.kind == MEM_RAM || slot.kind == MEM_ROM ? slot.host - (page.gpa & (PAGE_SIZE - 1)) : NULL;
}

// Before its bytes are read: a device that writes them meanwhile then sees the trace (mem_write()).
static void trace_window(struct dbt *d, const struct window *w)
{
    if (w->p)
        mem_trace_set(d->v->mem, w->gpa, TRACE_CODE);
}

// The instruction does not end within the code segment.
static void beyond_limit(struct translation *t, struct ginsn *g)
{
    cannot_decode(t, g, OP_GP0);
}

// Bytes that an instruction depends on. What is none may become one by any that it could have.
static unsigned decided_by(const struct ginsn *g)
{
    return g->z->mnemonic == ZYDIS_MNEMONIC_INVALID ? MAX_LENGTH : g->z->length;
}

static void decode_block(struct translation *t, struct window *w)
{
    struct dbt *d = t->d;
    struct block *b = t->b;
    static const uint8_t ones[16] = {255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255};
    uint64_t rip = b->rip;
    t->count = t->side_exits = 0;
    t->block_number++;
    t->ahead_count = 0;
    b->range = t->range;
    b->indirect = t->indirect;
    if (w->p && t->code_size == 8 && !(t->key & KEY_ONE))
        decode_ahead(t, w->p + (rip - w->la), w->len - (unsigned)(rip - w->la));
    while (t->count < d->max_insns) {
        uint64_t off = code_linear(t, rip) - w->la;
        struct ginsn *g = &t->insn[t->count];
        if (off >= w->len)
            break;
        // bytes up to the segment's limit: beyond it #GP(0), which comes before the page faults of bytes further on
        uint64_t allowed = MAX_LENGTH;
        if (t->code_size != 8 && !(t->key & KEY_FLAT_CS))
            allowed = rip > b->cs_limit ? 0 : b->cs_limit - rip + 1;
        unsigned room = w->len - (unsigned)off, seen = allowed < room ? (unsigned)allowed : room;
        if (!w->p) { // code in nothing or in a device: all ones
            decode(t, g, ones, 16, rip);
        } else if (!decode(t, g, w->p + off, seen, rip)) {
            if (t->count)
                break;
            if (allowed <= room) {
                beyond_limit(t, g);
                t->count = 1;
                break;
            }
            // crosses into the next page: translate it alone
            unsigned head = w->len - (unsigned)off;
            uint64_t behind = t->code_size == 8 ? w->la + PAGE_SIZE : (uint32_t)(w->la + PAGE_SIZE);
            struct window next;
            memcpy(w->joined, w->p + off, head);
            open_window(d, &next, behind); // a fault here is the instruction's own
            trace_window(d, &next);
            memcpy(w->joined + head, next.p ? next.p : ones, 15 - head < 16 ? 15 - head : 15);
            if (!decode(t, g, w->joined, allowed < MAX_LENGTH ? (unsigned)allowed : MAX_LENGTH, rip))
                beyond_limit(t, g);
            t->count = 1;
            b->range[0] = (struct range){w->gpa + off, head};
            b->range[1] = (struct range){next.gpa, decided_by(g) > head ? decided_by(g) - head : 0};
            b->range_count = 2;
            b->straddles = 1;
            b->global = b->global && mode_fetch(d, behind).global;
            b->guest_len = g->z->length;
            return;
        }
        t->count++;
        rip = (rip + g->z->length) & t->rip_mask;
        if (goes_on_behind(t, g))
            t->side_exits++;
        else if (ends_block(t, g))
            break;
    }
    uint32_t len = 0;
    for (unsigned i = 0; i < t->count; i++)
        len += t->insn[i].z->length;
    b->guest_len = (uint16_t)len;
    uint64_t off = code_linear(t, b->rip) - w->la;
    const struct ginsn *last = &t->insn[t->count - 1];
    len += decided_by(last) - last->z->length;
    b->range[0] = (struct range){w->gpa + off, len < w->len - off ? len : w->len - off};
    b->range_count = 1;
}

struct block *translate(struct dbt *d, uint32_t key)
{
    struct vcpu *v = d->v;
    struct translation *t = d->tr;
    struct window w;
    uint64_t cs_base = (key & KEY_CODE_MASK) == KEY_CODE64 ? 0 : v->s.seg[SEG_CS].base;
    open_window(d, &w, (key & KEY_CODE_MASK) == KEY_CODE64 ? v->s.rip : (uint32_t)(v->s.rip + cs_base));
    if (w.p && rebase_wants(d, v->s.rip, key) && !is_unmerged(d, v->s.rip)) {
        struct block *b = rebase(d, w.gpa | (v->s.rip & (PAGE_SIZE - 1)), mode_fetch(d, w.la).global, key);
        if (b) {
            d->n.rebased++;
            made(d, b);
            return b;
        }
    }
    for (int attempt = 0; attempt < 3; attempt++) {
        struct block *b = arena_alloc(d, sizeof *b);
        if (b) {
            struct code_page page = mode_fetch(d, w.la);
            *b = (struct block){.rip = v->s.rip, .key = key, .cs_base = (uint32_t)cs_base, .cs_limit = v->s.seg[SEG_CS].limit,
                                .global = page.global};
            b->gpa = w.gpa | ((v->s.rip + cs_base) & (PAGE_SIZE - 1));
            t->d = d;
            t->b = b;
            t->key = key;
            t->code_size = (key & KEY_CODE_MASK) == KEY_CODE64 ? 8 : key & KEY_CODE32 ? 4 : 2;
            t->rip_mask = t->code_size == 8 ? ~0ull : 0xffffffffull;
            t->window = &w;
            trace_window(d, &w);
            decode_block(t, &w);
            if (t->count)
                liveness(t);
            if (t->count && emit_block(t) == 0 && cache_insert(d, b) == 0) {
                rebase_offer(t, b);
                made(d, b);
                return b;
            }
        }
        cache_advance(d);
    }
    __builtin_trap(); // a block always fits an empty region
}
