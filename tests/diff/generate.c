// Makes cases: half of them one instruction straight from a random state, the others sequences with branches,
// loops, calls and flag consumers. In sequences what an instruction demands of registers is loaded by MOVs
// (which change no flag) just before it, so that no instruction can use an address that another one has
// spoilt.
#include "tests/diff/generate.h"
#include "tests/diff/values.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

int generator_init(struct generator *g, const struct form_table *forms, uint64_t seed)
{
    *g = (struct generator){.forms = forms, .seed = seed};
    g->pool = malloc(sizeof *g->pool);
    if (!g->pool)
        return -ENOMEM;
    struct rng r = rng_make(seed, 0x706f6f6c);
    for (unsigned i = 0; i < POOL_SIZE; i++) {
        values_fpu(&r, &g->pool->fpu[i]);
        values_memory(&r, g->pool->mem[i], MEM_SIZE);
    }
    values_memory(&r, g->pool->read_only, 4096);
    encoder_init(&g->encoder, forms);
    while (g->legacy_count < forms->offered_count &&
           forms->form[forms->offered[g->legacy_count]].encoding == ENC_LEGACY)
        g->legacy_count++;
    return 0;
}

void generator_free(struct generator *g)
{
    free(g->pool);
    g->pool = NULL;
}

// ---- states
static void make_state(struct generator *g, struct rng *r, struct diff_case *c)
{
    struct diff_state *s = &c->in;
    uint64_t x = rng_next(r);
    for (unsigned i = 0; i < 16; i++)
        s->gpr[i] = interesting_value(r);
    s->gpr[RSP_NUMBER] = STACK_LINEAR + 4096 - data_base(c->mode);
    s->rip = 0;
    s->vector = VECTOR_NONE;
    s->error = 0;
    s->address = 0;
    s->rflags = 0x202 | (x & 0x8d5);
    if ((x >> 16 & 15) == 0)
        s->rflags |= 0x400; // DF
    const struct diff_fpu *image = &g->pool->fpu[x >> 20 & (POOL_SIZE - 1)];
    unsigned turn = x >> 28 & 31;
    s->fpu = *image;
    memcpy(s->fpu.zmm, image->zmm[turn], (32 - turn) * 64);
    memcpy(s->fpu.zmm[32 - turn], image->zmm, turn * 64);
    for (unsigned i = 0; i < 2; i++) // something new in each case
        values_fill(r, s->fpu.zmm[rng_below(r, c->mode == MODE64 ? 32 : 8)], 64);
    s->fpu.k[rng_below(r, 8)] = rng_next(r);
    values_fpu_control(r, &s->fpu);
    memcpy(s->mem, g->pool->mem[x >> 33 & (POOL_SIZE - 1)], MEM_SIZE);
}

static void store(struct diff_state *s, uint32_t linear, const void *data, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        int at = mem_index(linear + i);
        if (at >= 0)
            s->mem[at] = ((const uint8_t *)data)[i];
    }
}

// Small multiples, so that gathers and scatters stay around their base.
static void make_indices(struct rng *r, uint8_t *zmm, unsigned bits)
{
    for (unsigned i = 0; i < 64; i += bits / 8) {
        int64_t v = (int64_t)rng_below(r, 128) - 64;
        memcpy(zmm + i, &v, bits / 8);
    }
}

// ---- units
static struct unit *add_unit(struct diff_case *c, const uint8_t *bytes, unsigned length)
{
    struct unit *u = &c->unit[c->count++];
    *u = (struct unit){.length = (uint8_t)length, .form = FORM_NONE};
    memcpy(u->bytes, bytes, length);
    return u;
}

static bool room_for(const struct diff_case *c, unsigned n)
{
    return c->count + n <= MAX_UNITS;
}

// MOV of a constant into a register: the full 64 bits in 64-bit mode, 32 elsewhere.
static struct unit *add_load(struct diff_case *c, unsigned reg, uint64_t value)
{
    uint8_t b[15];
    unsigned n = 0;
    if (c->mode != MODE64) {
        if (c->mode == MODE16)
            b[n++] = 0x66;
        b[n++] = (uint8_t)(0xb8 | (reg & 7));
        memcpy(b + n, &value, 4);
        return add_unit(c, b, n + 4);
    }
    if (value >> 32 == 0) {
        if (reg & 8)
            b[n++] = 0x41;
        b[n++] = (uint8_t)(0xb8 | (reg & 7));
        memcpy(b + n, &value, 4);
        return add_unit(c, b, n + 4);
    }
    b[n++] = (uint8_t)(0x48 | (reg >> 3));
    if ((int64_t)value == (int32_t)value) {
        b[n++] = 0xc7;
        b[n++] = (uint8_t)(0xc0 | (reg & 7));
        memcpy(b + n, &value, 4);
        return add_unit(c, b, n + 4);
    }
    b[n++] = (uint8_t)(0xb8 | (reg & 7));
    memcpy(b + n, &value, 8);
    return add_unit(c, b, n + 8);
}

static struct unit *add_label_load(struct diff_case *c, unsigned reg, unsigned target)
{
    struct unit *u = add_load(c, reg, 0);
    u->fix = FIX_LABEL;
    u->fix_size = 4;
    u->fix_offset = u->length - 4;
    u->target = (uint8_t)target;
    return u;
}

static struct unit *add_instance(struct diff_case *c, const struct instance *x)
{
    struct unit *u = add_unit(c, x->bytes, x->length);
    u->form = x->form;
    u->fix = x->fix;
    u->fix_offset = x->fix_offset;
    u->fix_size = x->fix_size;
    u->fix_linear = x->fix_linear;
    return u;
}

// Near branch to a unit: opcode (one byte, or two with 0F) and a displacement of the mode's full size.
static struct unit *add_branch(struct diff_case *c, const uint8_t *opcode, unsigned n, unsigned target)
{
    uint8_t b[15] = {0};
    unsigned size = c->mode == MODE16 ? 2 : 4;
    memcpy(b, opcode, n);
    struct unit *u = add_unit(c, b, n + size);
    u->fix = FIX_RELATIVE;
    u->fix_offset = (uint8_t)n;
    u->fix_size = (uint8_t)size;
    u->target = (uint8_t)target;
    return u;
}

// ---- one instruction
static bool make_single(struct generator *g, struct rng *r, struct diff_case *c)
{
    struct instance x;
    g->encoder.in_sequence = false;
    g->encoder.keep = ANY_UNIT;
    if (!encoder_instance(&g->encoder, r, c->form, &x))
        return false;
    c->crosses = x.crosses;
    struct unit *u = add_instance(c, &x);
    bool branch = g->forms->form[c->form].flags & FORM_BRANCH;
    if (branch) { // two loads behind it that a taken branch may skip
        add_load(c, 3, rng_next(r) & 0x7fffffff);
        add_load(c, 6, rng_next(r) & 0x7fffffff);
        u->target = (uint8_t)(1 + rng_below(r, 3));
    }
    for (unsigned i = 0; i < x.demand_count; i++) {
        if (x.demand[i].label) {
            c->label_reg = x.demand[i].reg;
            c->label_unit = u->target;
        } else {
            c->in.gpr[x.demand[i].reg] = x.demand[i].value;
        }
    }
    if (x.label_linear) {
        c->label_linear = x.label_linear;
        c->label_size = x.label_size;
        c->label_unit = u->target;
    }
    store(&c->in, x.patch_linear, x.patch, x.patch_size);
    if (x.index_vector >= 0)
        make_indices(r, c->in.fpu.zmm[x.index_vector], x.index_bits);
    if (!g->encoder.tame && !branch && x.length > 1 && rng_percent(r, 2)) {
        c->edge = true;
        c->edge_bytes = 1 + rng_below(r, x.length - 1u);
    }
    return true;
}

bool generator_probe(struct generator *g, struct rng *r, uint32_t form, struct diff_case *c)
{
    c->number = form;
    c->mode = g->forms->mode;
    c->world = WORLD_LONG;
    c->ac = false;
    g->encoder.segments = g->encoder.legacy_only = g->encoder.ac = false;
    c->form = form;
    c->count = 0;
    c->edge = c->crosses = false;
    c->label_reg = 0xff;
    c->label_linear = 0;
    c->linear = code_base(c->mode) ? CODE16_BASE : CODE_BASE;
    make_state(g, r, c);
    c->in.rflags &= ~0x400ull;
    c->in.fpu.mxcsr = 0x1f80;
    c->in.fpu.fcw = 0x37f;
    c->in.fpu.fsw = 0;
    g->encoder.tame = true;
    bool ok = make_single(g, r, c);
    g->encoder.tame = false;
    return ok;
}

// ---- sequences
static uint32_t pick_form(struct generator *g, struct rng *r)
{
    uint32_t n = g->forms->offered_count, legacy = g->legacy_count;
    if (legacy && rng_percent(r, 65))
        n = legacy;
    return g->forms->offered[rng_below(r, n)];
}

// Adds an instruction with the loads it demands. `branches`: a forward branch may come out; its unit is
// returned in *branch for the caller to aim.
static bool add_any(struct generator *g, struct rng *r, struct diff_case *c, uint32_t form, bool branches,
                    int *branch)
{
    struct instance x;
    *branch = -1;
    uint16_t flags = g->forms->form[form].flags;
    if (flags & (FORM_ALONE | FORM_VSIB) || (flags & FORM_BRANCH && !branches))
        return false;
    g->encoder.in_sequence = true;
    if (!encoder_instance(&g->encoder, r, form, &x) || !room_for(c, x.demand_count + 1))
        return false;
    int label_load = -1;
    for (unsigned i = 0; i < x.demand_count; i++) {
        if (x.demand[i].label) {
            label_load = (int)c->count;
            add_label_load(c, x.demand[i].reg, 0);
        } else {
            add_load(c, x.demand[i].reg, x.demand[i].value);
        }
    }
    add_instance(c, &x);
    if (flags & FORM_BRANCH)
        *branch = label_load >= 0 ? label_load : (int)c->count - 1;
    return true;
}

static void add_plain(struct generator *g, struct rng *r, struct diff_case *c, unsigned n)
{
    int branch;
    for (unsigned i = 0; i < n; i++)
        for (unsigned tries = 0; tries < 8; tries++)
            if (add_any(g, r, c, pick_form(g, r), false, &branch))
                break;
}

static void add_loop(struct generator *g, struct rng *r, struct diff_case *c)
{
    if (!room_for(c, 30))
        return;
    unsigned counter = rng_percent(r, 50) ? 1 : (unsigned)(rng_next(r) & (c->mode == MODE64 ? 15 : 7));
    if (counter == RSP_NUMBER)
        counter = 3;
    add_load(c, counter, 1 + rng_below(r, 5));
    unsigned top = c->count;
    g->encoder.keep = (uint8_t)counter;
    add_plain(g, r, c, 1 + rng_below(r, 3));
    g->encoder.keep = ANY_UNIT;
    if (counter == 1 && rng_percent(r, 50)) {
        uint8_t loop[2] = {(uint8_t)(0xe0 + rng_below(r, 3)), 0}; // LOOPNE, LOOPE, LOOP
        struct unit *u = add_unit(c, loop, 2);
        u->fix = FIX_RELATIVE;
        u->fix_offset = u->fix_size = 1;
        u->target = (uint8_t)top;
        return;
    }
    uint8_t dec[3] = {(uint8_t)(0x48 | counter >> 3), 0xff, (uint8_t)(0xc8 | (counter & 7))};
    add_unit(c, c->mode == MODE64 ? dec : dec + 1, c->mode == MODE64 ? 3 : 2);
    add_branch(c, (const uint8_t[]){0x0f, 0x85}, 2, top); // JNZ
}

static void add_call(struct generator *g, struct rng *r, struct diff_case *c)
{
    if (!room_for(c, 30))
        return;
    add_load(c, RSP_NUMBER, STACK_LINEAR + 2048 + (rng_below(r, 4096) & ~7u) - data_base(c->mode));
    unsigned call = c->count;
    add_branch(c, (const uint8_t[]){0xe8}, 1, 0);
    unsigned jump = c->count;
    add_branch(c, (const uint8_t[]){0xe9}, 1, 0);
    c->unit[call].target = (uint8_t)c->count;
    g->encoder.keep = RSP_NUMBER;
    add_plain(g, r, c, 1 + rng_below(r, 2));
    g->encoder.keep = ANY_UNIT;
    add_unit(c, (const uint8_t[]){0xc3}, 1);
    c->unit[jump].target = (uint8_t)c->count;
}

static void add_step(struct generator *g, struct rng *r, struct diff_case *c, uint32_t form)
{
    int branch;
    if (!add_any(g, r, c, form, true, &branch))
        return;
    if (branch < 0)
        return;
    add_plain(g, r, c, rng_below(r, 3));
    c->unit[branch].target = (uint8_t)c->count;
}

static void make_sequence(struct generator *g, struct rng *r, struct diff_case *c)
{
    unsigned n = 2 + rng_below(r, 11), mine = rng_below(r, n);
    for (unsigned i = 0; i < n && room_for(c, 12); i++) {
        unsigned kind = rng_below(r, 100);
        if (i == mine)
            add_step(g, r, c, c->form);
        else if (kind < 6)
            add_loop(g, r, c);
        else if (kind < 10)
            add_call(g, r, c);
        else
            add_step(g, r, c, pick_form(g, r));
    }
}

// ---- layout
static uint32_t case_length(const struct diff_case *c)
{
    uint32_t n = 0;
    for (unsigned i = 0; i < c->count; i++)
        n += c->unit[i].length;
    return n;
}

bool case_link(struct diff_case *c, struct diff_code *code)
{
    uint32_t at[MAX_UNITS + 1], n = 0;
    for (unsigned i = 0; i < c->count; i++) {
        at[i] = n;
        n += c->unit[i].length;
    }
    at[c->count] = n;
    if (n > MAX_CODE)
        return false;
    code->mode = c->mode;
    code->world = c->world;
    code->ac = c->ac;
    code->length = n;
    code->linear =
        c->edge ? CODE_BASE + CODE_SIZE - (n - c->unit[c->count - 1].length + c->edge_bytes) : c->linear;
    uint32_t base = code->linear - code_base(c->mode);
    for (unsigned i = 0; i < c->count; i++) {
        const struct unit *u = &c->unit[i];
        memcpy(code->bytes + at[i], u->bytes, u->length);
        if (u->fix == FIX_NONE)
            continue;
        uint32_t next = at[i] + u->length, target = at[u->target <= c->count ? u->target : c->count];
        int64_t v = u->fix == FIX_RELATIVE ? (int64_t)target - next
                    : u->fix == FIX_RIP    ? (int64_t)u->fix_linear - (code->linear + next)
                                           : (int64_t)base + target;
        if (u->fix == FIX_RELATIVE && u->fix_size == 1 && v != (int8_t)v)
            return false;
        memcpy(code->bytes + at[i] + u->fix_offset, &v, u->fix_size);
    }
    uint64_t label = base + at[c->label_unit <= c->count ? c->label_unit : c->count];
    if (c->label_reg != 0xff)
        c->in.gpr[c->label_reg] = label;
    if (c->label_linear)
        store(&c->in, c->label_linear, &label, c->label_size);
    return true;
}

// Stretches of cases stay in one world, as going from one to another costs the translated side its TLB.
static void pick_world(struct generator *g, uint64_t number, struct diff_case *c)
{
    unsigned turn = number >> 11 & 7;
    c->world = WORLD_LONG;
    c->ac = false;
    if (c->mode == MODE32 && turn >= 4)
        c->world = WORLD_PROTECTED;
    if (c->mode == MODE16 && turn >= 2)
        c->world = turn < 4 ? WORLD_PROTECTED : turn < 6 ? WORLD_V86 : WORLD_REAL;
    bool old = c->world == WORLD_V86 || c->world == WORLD_REAL;
    if (old && !form_is_legacy(&g->forms->form[c->form])) {
        c->world = WORLD_PROTECTED;
        old = false;
    }
    g->encoder.legacy_only = old;
    g->encoder.segments = !old && native_has_segments();
    g->encoder.ac = c->ac = c->world == WORLD_LONG && turn == 1;
    if (turn == 3 && c->world != WORLD_REAL && number % 5 == 0) {
        c->in.rflags |= 0x40000; // AC: alignment is checked on both sides
        g->encoder.segments = false;
    }
}

bool generator_case(struct generator *g, uint64_t number, struct diff_case *c)
{
    struct rng r = rng_make(g->seed, number);
    if (!g->forms->offered_count)
        return false;
    struct diff_code code;
    for (unsigned tries = 0; tries < 4; tries++) {
        c->number = number;
        c->mode = g->forms->mode;
        c->form = g->forms->offered[number % g->forms->offered_count];
        c->count = 0;
        c->edge = c->crosses = false;
        c->label_reg = 0xff;
        c->label_linear = 0;
        c->label_unit = 0;
        make_state(g, &r, c);
        pick_world(g, number, c);
        bool single = rng_percent(&r, 60) || (g->forms->form[c->form].flags & (FORM_ALONE | FORM_VSIB));
        if (single && !make_single(g, &r, c))
            continue;
        if (!single)
            make_sequence(g, &r, c);
        uint32_t low = c->mode == MODE16 ? CODE16_BASE : CODE_BASE;
        uint32_t space = CODE_BASE + CODE_SIZE - low - MAX_CODE - EXIT_SLOT;
        c->linear = low + (uint32_t)(number * 1056 + rng_below(&r, 256)) % space;
        if (c->count && case_length(c) <= MAX_CODE && case_link(c, &code))
            return true;
    }
    return false;
}
