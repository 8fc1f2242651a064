// Shrinks a failing case: first the shortest failing beginning, then the native state after as many
// instructions as possible becomes the initial state, so that what is left is usually one instruction; then
// the state is made plain.
#include "tests/diff/run.h"
#include <stdlib.h>
#include <string.h>

struct shrink {
    struct sides *sides;
    const struct diff_options *options;
    struct diff_code code;
    struct diff_state a, b;
};

static bool still_fails(struct shrink *k, struct diff_case *c)
{
    volatile uint32_t phase;
    return case_link(c, &k->code) && !sides_agree(k->sides, k->options, c, &k->code, &k->a, &k->b, &phase);
}

static bool cut_tail(struct shrink *k, struct diff_case *c, struct diff_case *t)
{
    for (unsigned n = 1; n < c->count; n++) {
        *t = *c;
        t->count = n;
        t->edge = false;
        t->linear = k->code.linear;
        if (still_fails(k, t)) {
            *c = *t;
            return true;
        }
    }
    return false;
}

// The case from unit `from` on, starting in the state the host is in there.
static bool cut_head(struct shrink *k, struct diff_case *c, struct diff_case *t, unsigned from,
                     uint32_t linear)
{
    for (unsigned i = from; i < c->count; i++) {
        const struct unit *u = &c->unit[i];
        if ((u->fix == FIX_RELATIVE || u->fix == FIX_LABEL) && u->target < from)
            return false;
    }
    *t = *c;
    t->count = from;
    t->edge = false;
    t->linear = linear;
    struct diff_state *after = &k->a;
    if (!case_link(t, &k->code) || native_run(k->sides->native, &k->code, &t->in, after) ||
        after->vector != VECTOR_NONE)
        return false;
    t->in = *after;
    t->in.rip = 0;
    t->label_reg = 0xff;
    t->label_linear = 0;
    t->linear = linear + k->code.length;
    t->count = c->count - from;
    for (unsigned i = 0; i < t->count; i++) {
        t->unit[i] = c->unit[from + i];
        if (t->unit[i].fix == FIX_RELATIVE || t->unit[i].fix == FIX_LABEL)
            t->unit[i].target -= (uint8_t)from;
    }
    if (!still_fails(k, t))
        return false;
    *c = *t;
    return true;
}

static uint32_t address_registers(const struct diff_case *c)
{
    ZydisDecoder d;
    forms_decoder(&d, c->mode);
    uint32_t used = 1u << RSP_NUMBER;
    for (unsigned u = 0; u < c->count; u++) {
        ZydisDecodedInstruction i;
        ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
        if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&d, c->unit[u].bytes, c->unit[u].length, &i, ops)))
            return ~0u;
        if (i.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE) ||
            i.meta.branch_type)
            return ~0u;
        for (unsigned n = 0; n < i.operand_count; n++)
            if (ops[n].type == ZYDIS_OPERAND_TYPE_MEMORY)
                return ~0u; // a bit offset or an index may be in any register
    }
    return used;
}

static void simplify_state(struct shrink *k, struct diff_case *c, struct diff_case *t)
{
    uint32_t used = address_registers(c);
    for (unsigned i = 0; i < 16; i++) {
        if (used >> i & 1)
            continue;
        *t = *c;
        t->in.gpr[i] = 0;
        if (still_fails(k, t))
            *c = *t;
    }
    *t = *c;
    t->in.rflags = 0x202;
    if (still_fails(k, t))
        *c = *t;
    *t = *c;
    memset(&t->in.fpu, 0, sizeof t->in.fpu);
    t->in.fpu.fcw = 0x37f;
    t->in.fpu.mxcsr = 0x1f80;
    if (still_fails(k, t))
        *c = *t;
}

bool shrink_and_print(struct sides *s, const struct diff_options *o, const struct form_table *forms,
                      struct diff_case *c)
{
    struct shrink *k = calloc(1, sizeof *k);
    struct diff_case *t = malloc(sizeof *t);
    bool failed = false;
    if (!k || !t)
        goto out;
    k->sides = s;
    k->options = o;
    if (!still_fails(k, c))
        goto out;
    failed = true;
    unsigned before = c->count;
    cut_tail(k, c, t);
    case_link(c, &k->code);
    if (c->edge) {
        c->linear = k->code.linear;
        c->edge = false;
    }
    uint32_t linear = c->linear;
    for (unsigned from = c->count; from-- > 1;)
        if (cut_head(k, c, t, from, linear))
            break;
    simplify_state(k, c, t);
    if (!still_fails(k, c) && !o->brief)
        printf("  (fails now and then only)\n");
    if (!o->brief)
        printf("  shrunk from %u to %u instructions\n", before, c->count);
    struct compare cmp = compare_for(c, forms, &k->a, o->instruction_pointers);
    if (o->brief)
        print_brief(stdout, &cmp, c, &k->code, &k->a, &k->b);
    else
        print_failure(stdout, &cmp, c, &k->code, "native", &k->a, s->translated ? "translated" : "again",
                      &k->b);
    fflush(stdout);
out:
    free(k);
    free(t);
    return failed;
}
