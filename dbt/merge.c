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

static enum change constant_change(const struct ginsn *g)
{
    const struct operand *o = g->op;
    if (g->z->operand_width != 64 || o[0].type != ZYDIS_OPERAND_TYPE_REGISTER || !gpr_is_64(o[0].reg.value))
        return CHANGE_ANY;
    switch (g->z->mnemonic) {
    case ZYDIS_MNEMONIC_INC: return CHANGE_ONE;
    case ZYDIS_MNEMONIC_DEC: return CHANGE_MINUS_ONE;
    case ZYDIS_MNEMONIC_ADD: return o[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? CHANGE_IMM : CHANGE_ANY;
    case ZYDIS_MNEMONIC_SUB: return o[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? CHANGE_MINUS_IMM : CHANGE_ANY;
    case ZYDIS_MNEMONIC_LEA:
        return o[1].mem.base == o[0].reg.value && o[1].mem.index == ZYDIS_REGISTER_NONE ? CHANGE_DISP : CHANGE_ANY;
    default: return CHANGE_ANY;
    }
}

static enum stack_use stack_use(const struct brief *z)
{
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_PUSH: return STACK_PUSH;
    case ZYDIS_MNEMONIC_POP: return STACK_POP;
    case ZYDIS_MNEMONIC_CALL: return STACK_CALL;
    case ZYDIS_MNEMONIC_RET: return STACK_RET;
    default: return STACK_NONE;
    }
}

void merge_prepare(const struct ginsn *g, struct brief *z)
{
    z->stack = (uint8_t)stack_use(z);
    z->change = (uint8_t)constant_change(g);
    z->explicit_mem = z->mem.exists && z->raw.modrm.offset && z->raw.modrm.mod != 3 && z->mnemonic != ZYDIS_MNEMONIC_LEA;
    z->groupable = z->explicit_mem && z->mem.index < 0 && z->mem.base >= 0 && z->address_width == 64 && z->mem.sreg < SEG_FS &&
                   z->mem.size && z->mem.size <= 64 && !may_be_masked(g);
}

struct found {
    int base;
    int64_t disp;
    unsigned size;
    bool write;
};

// The accesses of an instruction in the order they are emitted. Those that can't be in a group have base -1.
static unsigned accesses(const struct ginsn *g, struct found f[2])
{
    const struct brief *z = g->z;
    unsigned n = 0, slot = z->operand_width == 16 ? 2 : 8;
    struct found operand = {.base = -1};
    if (z->groupable && g->cls == CLASS_PLAIN)
        operand = (struct found){g->ea.base, g->ea.disp, g->ea_size, g->ea_write};
    switch (z->stack) {
    case STACK_NONE:
        if (z->explicit_mem)
            f[n++] = operand;
        break;
    case STACK_PUSH:
    case STACK_CALL:
        if (z->explicit_mem)
            f[n++] = operand;
        f[n++] = (struct found){RSP, -(int64_t)slot, slot, true};
        break;
    case STACK_POP:
        f[n++] = (struct found){RSP, 0, slot, false};
        if (z->explicit_mem)
            f[n++] = operand;
        break;
    default: f[n++] = (struct found){RSP, 0, slot, false}; break;
    }
    return n;
}

static void forget(struct tracked r[16], unsigned set)
{
    for (; set; set &= set - 1) {
        struct tracked *reg = &r[__builtin_ctz(set)];
        reg->version++;
        reg->offset = 0;
    }
}

static void track(struct tracked r[16], const struct ginsn *g)
{
    const struct brief *z = g->z;
    int64_t slot = z->operand_width == 16 ? 2 : 8;
    bool ours = g->cls == CLASS_PLAIN || g->cls == CLASS_CONTROL;
    if (z->meta.category == ZYDIS_CATEGORY_CALL) { // whatever was called may have changed all of them
        forget(r, 0xffff);
        return;
    }
    if (z->stack && g->cls == CLASS_CONTROL) {
        if (z->stack == STACK_POP) {
            r[RSP].offset += slot;
            if (g->op[0].type == ZYDIS_OPERAND_TYPE_REGISTER)
                forget(r, 1u << gpr_number(g->op[0].reg.value)); // RSP too
        } else {
            r[RSP].offset += z->stack == STACK_RET ? 8 : -slot;
        }
        return;
    }
    if (!z->gpr_written)
        return;
    struct tracked *reg = &r[__builtin_ctz(z->gpr_written)];
    switch (ours ? z->change : CHANGE_ANY) {
    case CHANGE_ONE: reg->offset++; break;
    case CHANGE_MINUS_ONE: reg->offset--; break;
    case CHANGE_IMM: reg->offset += (int64_t)g->imm; break;
    case CHANGE_MINUS_IMM: reg->offset -= (int64_t)g->imm; break;
    case CHANGE_DISP: reg->offset += g->disp; break;
    default: forget(r, z->gpr_written); break;
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
    memset(t->access_count, 0, t->count);
    for (unsigned i = 0; i < t->count && enabled; i++) {
        const struct ginsn *g = &t->insn[i];
        if (g->cls == CLASS_PLAIN || g->cls == CLASS_CONTROL) {
            struct found f[2];
            unsigned n = accesses(g, f);
            t->access_count[i] = (uint8_t)n;
            for (unsigned k = 0; k < n; k++) {
                if (f[k].base < 0)
                    t->access[i][k] = (struct merge_access){.group = -1};
                else
                    join(t, i, k, &f[k], r);
            }
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
