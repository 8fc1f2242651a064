// One check for several accesses. Most memory operands of a block lie a few bytes around the same register: a frame, a
// structure. Accesses off one register whose value is unchanged, or changed by known constants (PUSH, POP, ADD RSP,8),
// form a group. Its first access checks the group's whole range, for writing if any of them writes, and keeps
//     delta = host address - guest address
// so that every later one is  mov t1, [delta] ; op [t1 + base + disp],  without a check and without touching flags.
//
//  1. The range must lie in one page that needs no further work (present, for writes: writable and dirty, RAM, not
//     traced). Where it does not, nothing is assumed: the block runs once in a form without groups (KEY_NOMERGE), and
//     one that keeps missing is translated again without them.
//  2. Nothing in a block can change a mapping and go on: whatever can (a flush, a device, an exception) leaves it.
//  3. Faults stay exact: the check of the group never raises one itself.
#include "dbt/internal.h"

#define MAX_SPAN 256

struct tracked { // what is known of a guest register
    unsigned version;
    int64_t offset; // since that version began
};

static bool constant_change(const struct ginsn *g, unsigned *reg, int64_t *change)
{
    const struct operand *o = g->op;
    if (g->cls != CLASS_PLAIN && g->cls != CLASS_CONTROL)
        return false;
    if (g->z->operand_width != 64 || o[0].type != ZYDIS_OPERAND_TYPE_REGISTER ||
        !gpr_is_64(o[0].reg.value))
        return false;
    *reg = gpr_number(o[0].reg.value);
    switch (g->z->mnemonic) {
    case ZYDIS_MNEMONIC_INC: *change = 1; return true;
    case ZYDIS_MNEMONIC_DEC: *change = -1; return true;
    case ZYDIS_MNEMONIC_ADD:
    case ZYDIS_MNEMONIC_SUB:
        if (o[1].type != ZYDIS_OPERAND_TYPE_IMMEDIATE)
            return false;
        *change = g->z->mnemonic == ZYDIS_MNEMONIC_ADD ? (int64_t)g->imm : -(int64_t)g->imm;
        return true;
    case ZYDIS_MNEMONIC_LEA:
        if (o[1].mem.base != o[0].reg.value || o[1].mem.index != ZYDIS_REGISTER_NONE)
            return false;
        *change = o[1].mem.has_displacement ? g->disp : 0;
        return true;
    default: return false;
    }
}

// Bytes an instruction of the stack group adds to RSP, if that is all it does to it.
static bool stack_change(const struct ginsn *g, int64_t *change)
{
    int64_t size = g->z->operand_width == 16 ? 2 : 8;
    switch (g->z->mnemonic) {
    case ZYDIS_MNEMONIC_PUSH: *change = -size; return g->cls == CLASS_CONTROL;
    case ZYDIS_MNEMONIC_POP:
        *change = size;
        return g->cls == CLASS_CONTROL && !(g->op[0].type == ZYDIS_OPERAND_TYPE_REGISTER && g->op[0].reg.value == ZYDIS_REGISTER_RSP);
    case ZYDIS_MNEMONIC_CALL: *change = -8; return g->cls == CLASS_CONTROL;
    case ZYDIS_MNEMONIC_RET: *change = 8; return g->cls == CLASS_CONTROL;
    default: return false;
    }
}

struct found {
    int base;
    int64_t disp;
    unsigned size;
    bool write;
};

// The accesses of an instruction in the order they are emitted. Those that can't be in a group have base -1.
static unsigned accesses(const struct translation *t, const struct ginsn *g, struct found f[2])
{
    struct ea ea;
    unsigned size, n = 0;
    bool rd, wr, stack = g->z->mnemonic == ZYDIS_MNEMONIC_PUSH || g->z->mnemonic == ZYDIS_MNEMONIC_POP ||
                         g->z->mnemonic == ZYDIS_MNEMONIC_CALL || g->z->mnemonic == ZYDIS_MNEMONIC_RET;
    unsigned slot = g->z->operand_width == 16 ? 2 : 8;
    if (g->cls != CLASS_PLAIN && g->cls != CLASS_CONTROL)
        return 0;
    bool explicit_mem = g->z->raw.modrm.offset && g->z->raw.modrm.mod != 3 && g->z->mnemonic != ZYDIS_MNEMONIC_LEA &&
                        mem_operand(g, &ea, &size, &rd, &wr);
    struct found operand = {.base = -1};
    if (explicit_mem && ea.index < 0 && ea.base >= 0 && ea.addr_size == 8 && ea.sreg < SEG_FS && size && size <= 64 &&
        !may_be_masked(g) && g->cls == CLASS_PLAIN)
        operand = (struct found){ea.base, ea.disp, size, wr};
    if (!stack) {
        if (explicit_mem)
            f[n++] = operand;
        return n;
    }
    switch (g->z->mnemonic) {
    case ZYDIS_MNEMONIC_PUSH:
    case ZYDIS_MNEMONIC_CALL:
        if (explicit_mem)
            f[n++] = operand;
        f[n++] = (struct found){RSP, -(int64_t)slot, slot, true};
        break;
    case ZYDIS_MNEMONIC_POP:
        f[n++] = (struct found){RSP, 0, slot, false};
        if (explicit_mem)
            f[n++] = operand;
        break;
    default: f[n++] = (struct found){RSP, 0, slot, false}; break;
    }
    (void)t;
    return n;
}

static void track(struct tracked r[16], const struct ginsn *g)
{
    unsigned reg;
    int64_t change;
    if (g->z->meta.category == ZYDIS_CATEGORY_CALL) { // whatever was called may have changed all of them
        for (unsigned i = 0; i < 16; i++)
            r[i] = (struct tracked){r[i].version + 1, 0};
        return;
    }
    if (stack_change(g, &change)) {
        r[RSP].offset += change;
        if (g->z->mnemonic != ZYDIS_MNEMONIC_POP)
            return;
        if (g->op[0].type == ZYDIS_OPERAND_TYPE_REGISTER) {
            reg = gpr_number(g->op[0].reg.value);
            r[reg].version++;
            r[reg].offset = 0;
        }
        return;
    }
    if (constant_change(g, &reg, &change)) {
        r[reg].offset += change;
        return;
    }
    for (unsigned set = g->z->gpr_written; set; set &= set - 1) {
        reg = (unsigned)__builtin_ctz(set);
        r[reg].version++;
        r[reg].offset = 0;
    }
}

static void join(struct translation *t, unsigned i, unsigned n, const struct found *f, const struct tracked *r)
{
    struct merge_access *x = &t->access[i][n];
    *x = (struct merge_access){.group = -1, .offset = r[f->base].offset};
    int64_t lo = x->offset + f->disp, hi = lo + f->size;
    if (lo < -0x40000000 || hi > 0x40000000)
        return;
    for (unsigned k = 0; k < t->group_count; k++) {
        struct merge_group *g = &t->group[k];
        if (g->base != f->base || g->version != r[f->base].version)
            continue;
        int64_t min = lo < g->min ? lo : g->min, max = hi > g->max ? hi : g->max;
        if (max - min > MAX_SPAN)
            continue;
        g->min = min;
        g->max = max;
        g->write |= f->write;
        g->count++;
        x->group = (int8_t)k;
        return;
    }
    if (t->group_count == MERGE_GROUPS)
        return;
    t->group[t->group_count] = (struct merge_group){.base = f->base, .version = r[f->base].version, .min = lo, .max = hi,
                                                    .write = f->write, .count = 1};
    x->group = (int8_t)t->group_count++;
}

void merge_plan(struct translation *t, bool enabled)
{
    struct tracked r[16] = {0};
    t->group_count = 0;
    for (unsigned i = 0; i < t->count; i++) {
        struct found f[2];
        const struct ginsn *g = &t->insn[i];
        t->access_count[i] = 0;
        if (!enabled)
            continue;
        unsigned n = accesses(t, g, f);
        t->access_count[i] = (uint8_t)n;
        for (unsigned k = 0; k < n; k++) {
            if (f[k].base < 0)
                t->access[i][k] = (struct merge_access){.group = -1};
            else
                join(t, i, k, &f[k], r);
        }
        track(r, g);
    }
}

// The group of the access that mem_begin() is about to emit, or null.
struct merge_group *merge_next(struct translation *t, const struct ea *ea, unsigned size, int64_t *offset)
{
    unsigned i = t->current, n = t->nth++;
    if (n >= t->access_count[i] || t->access[i][n].group < 0)
        return NULL;
    const struct merge_access *x = &t->access[i][n];
    struct merge_group *g = &t->group[x->group];
    int64_t lo = x->offset + ea->disp;
    if (g->count < 2 || ea->base != g->base || ea->index >= 0 || ea->addr_size != 8 || lo < g->min || lo + size > g->max)
        return NULL;
    *offset = x->offset;
    return g;
}

// Whether the current instruction's accesses all lie in ranges that have been checked.
bool merge_all_checked(const struct translation *t)
{
    unsigned i = t->current;
    if (!t->access_count[i])
        return false;
    for (unsigned n = 0; n < t->access_count[i]; n++) {
        int k = t->access[i][n].group;
        if (k < 0 || !t->group[k].checked)
            return false;
    }
    return true;
}
