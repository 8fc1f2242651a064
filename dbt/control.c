// Near control transfer: the instructions that must see the guest's RIP. What they do to the stack is in dbt/stack.c.
//
// Direct exits are chained: within the guest page a rel32 is patched; to another page the jump goes through a slot,
// which every flush of the guest's TLB resets, so that a remapped page is noticed. Indirect branches look up the RIP
// in a table of the current mode, without touching flags. CALL leaves its prediction on the host's stack: the RET it
// belongs to ends in a host RET, and the landing checks that the guest really returns there.
//
// A branch out of the code segment, or to an address that is not canonical, faults itself and changes nothing. A direct
// one is known when it is translated (OP_BAD_BRANCH). For indirect ones the fast paths need no test, as neither the table
// nor a landing ever has such a target. JMP and RET tell run_indirect() who they are (struct branch); CALL, which stores,
// looks its target up before it pushes.
#include "cpu/model.h"
#include "dbt/internal.h"
// Whether a near branch to `rip` faults.
static bool out_of_code(const struct translation *t, uint64_t rip)
{
    if (t->code_size == 8)
        return (uint64_t)((int64_t)(rip << 16) >> 16) != rip;
    return !(t->key & KEY_FLAT_CS) && rip > t->b->cs_limit;
}

// Whether an indirect branch of this operand size can lead to where it faults.
static bool may_leave_code(const struct translation *t, unsigned size)
{
    return t->code_size == 8 ? size == 8 : !(t->key & KEY_FLAT_CS);
}

static bool one(const struct translation *t) { return t->key & KEY_ONE; }
static bool is_last(const struct translation *t, const struct ginsn *g) { return g == &t->insn[t->count - 1]; }

// Whether a branch to `rip` depends on more than the block's page: it leaves it, or may lead to an instruction that does.
static bool far(const struct translation *t, uint64_t rip)
{
    uint64_t la = code_linear(t, rip);
    return (la ^ code_linear(t, t->b->rip)) >> PAGE_SHIFT || (la & (PAGE_SIZE - 1)) > PAGE_SIZE - 15;
}

static struct exit *new_exit(struct translation *t, uint64_t rip)
{
    struct dbt *d = t->d;
    struct block *b = t->b;
    bool leaves = far(t, rip);
    if (b->exit_count == t->side_exits + 2 || t->a.overflow)
        return NULL;
    uint64_t *slot = leaves ? cache_slot(d) : NULL;
    if (leaves && !slot) {
        t->a.overflow = 1; // start again in the next region
        return NULL;
    }
    struct exit *e = &b->exits[b->exit_count];
    *e = (struct exit){.target = rip, .kind = leaves ? EXIT_FAR : EXIT_NEAR, .block = (uint32_t)(uint64_t)b,
                       .site = (uint32_t)(uint64_t)slot, .tlb = (b->key & KEY_TLB_MASK) >> KEY_TLB_SHIFT};
    b->exit_count++;
    t->a.fixed |= rip <= 0xffff; // a near branch with an operand size of 16 (AMD's) leads there from everywhere
    return e;
}

static uint32_t offset_here(const struct translation *t) { return (uint32_t)(asm_here(&t->a) - t->b->code); }

// From there to here a kick may leave: RIP is in T0.
static void indirect_since(struct translation *t, uint32_t begin)
{
    struct block *b = t->b;
    if (b->indirect_count < MAX_SPANS)
        b->indirect[b->indirect_count++] = (struct span){begin, offset_here(t)};
}

// Indirect exits, and those to the dispatcher, leave with live flags parked.
static void leave_parked(struct translation *t)
{
    if (t->flags == FLAGS_HOST)
        flags_park(t);
}

// For --stats. The host's flags are free.
static void count(struct translation *t, uint64_t counter)
{
    if (t->d->measured && !user(t))
        a_inc_abs(&t->a, counter);
}

static void leaves_at(const struct translation *t, struct exit *e, enum out_state state)
{
    e->out = offset_here(t);
    e->at_out = (uint8_t)state;
}

void emit_exit_to(struct translation *t, uint64_t rip)
{
    struct asm_buf *a = &t->a;
    struct dbt *d = t->d;
    enum flag_place flags = t->flags;
    rip &= t->rip_mask;
    t->ended = true;
    struct exit *e = one(t) ? NULL : new_exit(t, rip);
    if (!e) {
        leave_parked(t);
        a_mov_rip(a, T0, rip);
        a_jmp_to(a, t->committed ? d->stub_commit : d->stub_step);
    } else if (e->kind == EXIT_FAR) {
        leaves_at(t, e, t->flags == FLAGS_PARKED ? OUT_PARKED : OUT_HOST);
        a8(a, 0xff); // jmp [slot]
        a_abs(a, 4, e->site, 0);
        cold_add(t, COLD_EXIT, 0, false, NULL)->exit = e;
    } else {
        if (t->flags == FLAGS_PARKED)
            flags_unpark(t);
        leaves_at(t, e, OUT_HOST);
        uint8_t *site = a_jmp(a);
        e->site = (uint32_t)(uint64_t)(site + a->to_run);
        cold_add(t, COLD_EXIT, 0, false, site)->exit = e;
    }
    t->flags = flags;
}

// The same if the host's condition `cc` holds, else on to the next host instruction. Where no kick may come before the branch
// (behind STI), the exit's jump is one of its own, after the condition's.
static void emit_exit_if(struct translation *t, unsigned cc, uint64_t rip)
{
    struct asm_buf *a = &t->a;
    bool alone = one(t) || t->map[t->current].shadow || far(t, rip & t->rip_mask);
    struct exit *e = alone ? NULL : new_exit(t, rip & t->rip_mask);
    if (e) {
        leaves_at(t, e, OUT_BRANCH);
        uint8_t *site = a_jcc(a, cc);
        e->site = (uint32_t)(uint64_t)(site + a->to_run);
        cold_add(t, COLD_EXIT, 0, false, site)->exit = e;
        return;
    }
    uint8_t *over = a_jcc(a, cc ^ 1);
    emit_exit_to(t, rip);
    a_patch(a, over);
}

// The end of a branch that faults.
static void emit_bad_branch(struct translation *t, struct ginsn *g)
{
    g->sens = OP_BAD_BRANCH;
    emit_site(t, g);
}

// T0 = target of an indirect branch that has changed nothing yet: faults if it leads out of the code.
static void emit_check_target(struct translation *t, struct ginsn *g)
{
    struct asm_buf *a = &t->a;
    enum flag_place flags = t->flags;
    if (!may_leave_code(t, branch_size(t, g)))
        return;
    leave_parked(t);
    t->t1_group = -1;
    if (t->code_size == 8) {
        a_mov_rr(a, 8, T1, T0);
        a_bytes(a, "\x48\xc1\xe7\x10\x48\xc1\xff\x10", 8); // shl rdi, 16; sar rdi, 16
        a_rex(a, 8, T0, 0, T1, 0); // cmp t1, t0
        a8(a, 0x39);
        a_modrm(a, 3, T0, T1);
    } else {
        a8(a, 0x81); // cmp t0d, limit
        a_modrm(a, 3, 7, T0);
        a32(a, t->b->cs_limit);
    }
    uint8_t *fine = a_jcc(a, t->code_size == 8 ? CC_E : CC_BE);
    emit_bad_branch(t, g);
    t->ended = false;
    a_patch(a, fine);
    if (flags == FLAGS_HOST)
        flags_unpark(t);
}

// T1 = entry of the mode's table where a block at T0 would be; returns the jump taken where there is none.
static uint8_t *emit_lookup_in(struct translation *t, const struct context *c)
{
    struct asm_buf *a = &t->a;
    t->t1_group = -1;
    a_movzx16(a, T1, T0);
    a_rex(a, 8, T0, T1, 0, 0); // cmp t0, [tag + t1*8]
    a8(a, 0x3b);
    a_table(a, T0, (uint64_t)c->tag, T1);
    return a_jcc(a, CC_NE);
}

static uint8_t *emit_lookup(struct translation *t)
{
    return emit_lookup_in(t, t->d->context);
}

void emit_enter(struct translation *t, const struct context *to)
{
    struct asm_buf *a = &t->a;
    uint32_t begin = offset_here(t);
    t->ended = true;
    uint8_t *miss = emit_lookup_in(t, to);
    a8(a, 0xff); // jmp [code + t1*8]
    a_table(a, 4, (uint64_t)to->code, T1);
    indirect_since(t, begin);
    a_patch(a, miss);
    a_mov_imm(a, T1, 0); // it can't lead out of the code
    a_jmp_to(a, t->d->stub_ib_miss);
}

// T1 = which branch the stubs that look up have run_indirect() look up for.
static void emit_branch_id(struct translation *t, const struct ginsn *g, uint32_t popped)
{
    if (user(t)) { // a number, since user code can write what it likes there
        a_mov_imm(&t->a, T1, USER_BRANCH(g->rip, popped));
        return;
    }
    struct branch *b = may_leave_code(t, branch_size(t, g)) ? arena_alloc(t->d, sizeof *b) : NULL;
    if (!b) {
        t->a.overflow |= may_leave_code(t, branch_size(t, g));
        return;
    }
    *b = (struct branch){.rip = g->rip, .popped = popped};
    a_mov_own(&t->a, T1, b, RELOC_BRANCH);
}

// Where an indirect branch goes that the tables don't know, and a RET that was not predicted.
static uint64_t ib_miss(const struct translation *t)
{
    return user(t) ? t->d->user_ib_miss : t->d->stub_ib_miss;
}

static uint64_t ret_miss(const struct translation *t)
{
    const struct dbt *d = t->d;
    if (user(t))
        return d->user_ret_miss[(t->key & KEY_SPACE_MASK) >> KEY_SPACE_SHIFT];
    return d->context ? d->stub_ret_miss[d->context - d->contexts] : d->stub_ib_miss;
}

// T0 = RIP; flags are parked, and nothing but RSP has changed.
static void emit_jump_indirect(struct translation *t, struct ginsn *g)
{
    struct asm_buf *a = &t->a;
    struct dbt *d = t->d;
    t->ended = true;
    if (one(t)) {
        a_jmp_to(a, t->committed ? d->stub_commit : d->stub_step);
        return;
    }
    count(t, DBT(t, n.indirects));
    if (d->context) { // if (tag[rip & 0xffff] == rip) goto *code[...]
        uint32_t begin = offset_here(t);
        uint8_t *miss = emit_lookup(t);
        a8(a, 0xff);
        a_table(a, 4, (uint64_t)d->context->code, T1);
        indirect_since(t, begin);
        a_patch(a, miss);
    }
    emit_branch_id(t, g, 0);
    a_jmp_to(a, ib_miss(t));
}

// Where the host RET comes that a guest RET ends in, behind the host CALL of a guest CALL: T0 is the RIP the guest popped,
// flags are parked. The block goes on here, or ends.
static void emit_landing(struct translation *t, struct ginsn *g)
{
    struct asm_buf *a = &t->a;
    uint64_t next = (g->rip + g->z->length) & t->rip_mask;
    uint32_t begin = offset_here(t);
    if ((int64_t)next == (int32_t)next) {
        a_rex(a, 8, 0, 0, T0, 0); // cmp t0, next
        a8(a, 0x81);
        a_modrm(a, 3, 7, T0);
        a32(a, (uint32_t)next);
        a->fixed = true;
    } else { // T1 must stay: cmp t0, [rip + distance to the constant]
        a_rex(a, 8, T0, 0, 0, 0);
        a8(a, 0x3b);
        a_modrm(a, 0, T0, 5);
        a32(a, 0);
        cold_add(t, COLD_NUMBER, 0, false, a->p - 4)->la = next;
    }
    a_jcc_to(a, CC_NE, ret_miss(t));
    indirect_since(t, begin);
    t->t1_group = -1;
    if (is_last(t, g)) {
        t->flags = peek_live(t, next) ? FLAGS_PARKED : FLAGS_DEAD;
        emit_exit_to(t, next);
    } else {
        t->flags = FLAGS_PARKED;
        t->ended = false;
    }
}

static void emit_ret(struct translation *t, struct ginsn *g)
{
    struct asm_buf *a = &t->a;
    unsigned size = branch_size(t, g);
    int32_t extra = g->z->raw.imm.size ? (int32_t)(g->imm & 0xffff) : 0;
    emit_peek_stack(t, size, T0);
    if (one(t))
        emit_check_target(t, g);
    rsp_change(t, (int32_t)size + extra);
    leave_parked(t);
    if (one(t)) {
        emit_jump_indirect(t, g);
        return;
    }
    count(t, DBT(t, n.returns));
    emit_branch_id(t, g, size + (uint32_t)extra);
    uint32_t begin = offset_here(t);
    a8(a, 0xc3);
    indirect_since(t, begin);
    t->ended = true;
}

static void emit_branch_to(struct translation *t, struct ginsn *g, uint64_t target)
{
    if (out_of_code(t, target))
        emit_bad_branch(t, g);
    else
        emit_exit_to(t, target);
}

static void emit_jcc(struct translation *t, struct ginsn *g, uint64_t target)
{
    unsigned cc = g->z->opcode & 15u;
    if (out_of_code(t, target)) {
        uint8_t *over = a_jcc(&t->a, cc ^ 1);
        emit_bad_branch(t, g);
        a_patch(&t->a, over);
    } else {
        emit_exit_if(t, cc, target);
    }
    if (is_last(t, g))
        emit_exit_to(t, g->rip + g->z->length);
    else
        t->ended = false; // the block goes on behind it
}

// LOOPcc and JCXZ: counter in CX, ECX or RCX by address size; no flag is written.
static void emit_loop(struct translation *t, struct ginsn *g, uint64_t target)
{
    struct asm_buf *a = &t->a;
    unsigned size = g->z->address_width / 8;
    bool jcxz = g->z->opcode == 0xe3, bad = out_of_code(t, target) && !jcxz;
    if (bad) // the counter of one that faults stays as it was
        a_store_abs(a, 8, DBT(t, tmp), H_CX);
    if (!jcxz) {
        if (size == 2) {
            a_lea(a, 4, T0, H_CX, -1, 1, -1);
            a8(a, 0x66);
            a_mov_rr(a, 4, H_CX, T0);
        } else {
            a_lea(a, size, H_CX, H_CX, -1, 1, -1);
        }
    }
    uint8_t *other = NULL;
    if (g->z->opcode == 0xe0) // LOOPNE: leave if ZF
        other = a_jcc(a, CC_E);
    else if (g->z->opcode == 0xe1)
        other = a_jcc(a, CC_NE);
    a_mov_rr(a, 8, T1, H_CX);
    if (size == 2)
        a_movzx16(a, H_CX, H_CX);
    else if (size == 4)
        a_mov_rr(a, 4, H_CX, H_CX);
    a_bytes(a, "\xe3\x08", 2); // jrcxz zero
    a_mov_rr(a, 8, H_CX, T1);  // 3 bytes
    uint8_t *nonzero = a_jmp(a); // 5 bytes
    a_mov_rr(a, 8, H_CX, T1);
    if (other)
        a_patch(a, other);
    uint64_t fall = g->rip + g->z->length;
    if (jcxz)
        emit_branch_to(t, g, target);
    else
        emit_exit_to(t, fall);
    a_patch(a, nonzero);
    if (bad)
        a_load_abs(a, 8, H_CX, DBT(t, tmp));
    if (jcxz)
        emit_exit_to(t, fall);
    else
        emit_branch_to(t, g, target);
}

unsigned branch_size(const struct translation *t, const struct ginsn *g)
{
    if (t->code_size != 8)
        return g->z->operand_width / 8u;
    // Intel's processors ignore 66 in 64-bit code, AMD's don't (SDM 2A JMP, APM 3 "near branches in 64-bit mode").
    bool small = g->z->has_operandsize && !g->z->raw.rex_w && cpu_model_is_amd(t->d->v->model);
    return small ? 2 : 8;
}

bool call_returns(const struct translation *t, const struct ginsn *g)
{
    bool indirect = g->z->opcode == 0xff;
    return !out_of_code(t, (g->rip + g->z->length) & t->rip_mask) && (indirect ? t->d->context != NULL : !out_of_code(t, branch_target(t, g)));
}

uint64_t branch_target(const struct translation *t, const struct ginsn *g)
{
    uint64_t target = g->rip + g->z->length + (uint64_t)(int64_t)g->imm;
    if (branch_size(t, g) == 2)
        target &= 0xffff;
    return target & t->rip_mask;
}

// T0 = target of JMP/CALL r/m
static void emit_load_target(struct translation *t, struct ginsn *g)
{
    struct asm_buf *a = &t->a;
    struct ea ea;
    unsigned found, size = branch_size(t, g);
    bool rd, wr;
    if (mem_operand(g, &ea, &found, &rd, &wr) && g->z->raw.modrm.mod != 3) {
        mem_begin(t, &ea, size, false, false);
        mem_combine(t);
        load_sized(t, size, T0);
        return;
    }
    unsigned r = insn_fields(g).rm;
    load_guest(t, T0, r);
    if (size == 2)
        a_movzx16(a, T0, T0);
    else if (t->code_size != 8)
        a_mov_rr(a, 4, T0, T0);
}

static void emit_call(struct translation *t, struct ginsn *g, uint64_t target)
{
    struct asm_buf *a = &t->a;
    uint64_t next = (g->rip + g->z->length) & t->rip_mask;
    if (out_of_code(t, target)) {
        emit_bad_branch(t, g);
        return;
    }
    emit_push(t, branch_size(t, g), PUSH_RIP, next);
    if (one(t) || out_of_code(t, next)) { // a return to there faults
        emit_exit_to(t, target);
        return;
    }
    struct exit *e = new_exit(t, target);
    if (!e) {
        a->overflow = 1;
        return;
    }
    uint8_t *site = NULL;
    if (e->kind == EXIT_FAR) {
        leaves_at(t, e, t->flags == FLAGS_PARKED ? OUT_PARKED : OUT_HOST);
        a8(a, 0xff); // call [slot]
        a_abs(a, 2, e->site, 0);
    } else {
        if (t->flags == FLAGS_PARKED)
            flags_unpark(t);
        leaves_at(t, e, OUT_HOST);
        a8(a, 0xe8);
        a32(a, 0);
        site = a->p - 4;
        e->site = (uint32_t)(uint64_t)(site + a->to_run);
    }
    cold_add(t, COLD_EXIT, 0, false, site)->exit = e;
    emit_landing(t, g);
}

// T0 = target. It is looked up once, before the push: nothing can discard what was found until the worker stops. Where
// nothing is found, and the branch itself does not fault, the call leads to the stub that stops (COLD_CALL).
static void emit_user_call(struct translation *t, struct ginsn *g, uint64_t next)
{
    struct asm_buf *a = &t->a;
    bool short_imm = (int64_t)next == (int32_t)next && branch_size(t, g) == 8;
    leave_parked(t);
    struct cold *c = cold_add(t, COLD_CALL, t->current, false, emit_lookup(t));
    c->back = a->p;
    if (!short_imm) // the push takes T0, but leaves T1 alone
        a_store_abs(a, 8, DBT(t, call_rip), T0);
    emit_push(t, branch_size(t, g), PUSH_RIP, next);
    if (!short_imm)
        a_load_abs(a, 8, T0, DBT(t, call_rip));
    uint32_t begin = offset_here(t);
    a8(a, 0xff); // call [code + t1*8]
    a_table(a, 2, (uint64_t)t->d->context->code, T1);
    indirect_since(t, begin);
    emit_landing(t, g);
}

static void emit_call_indirect(struct translation *t, struct ginsn *g)
{
    struct asm_buf *a = &t->a;
    uint64_t next = (g->rip + g->z->length) & t->rip_mask;
    bool predicted = !one(t) && t->d->context && !out_of_code(t, next);
    emit_load_target(t, g);
    if (user(t) && predicted) {
        emit_user_call(t, g, next);
        return;
    }
    if (one(t)) {
        emit_check_target(t, g);
    } else if (may_leave_code(t, branch_size(t, g))) { // what has a block is in the code
        leave_parked(t);
        struct cold *c = cold_add(t, COLD_CHECK, t->current, false, t->d->context ? emit_lookup(t) : a_jmp(a));
        c->back = a->p;
    }
    a_store_abs(a, 8, DBT(t, call_rip), T0);
    emit_push(t, branch_size(t, g), PUSH_RIP, next);
    leave_parked(t);
    a_load_abs(a, 8, T0, DBT(t, call_rip));
    if (!predicted) {
        emit_jump_indirect(t, g);
        return;
    }
    count(t, DBT(t, n.indirects));
    uint32_t begin = offset_here(t);
    cold_add(t, COLD_LOOKUP, t->current, false, emit_lookup(t));
    a8(a, 0xff); // call [code + t1*8]
    a_table(a, 2, (uint64_t)t->d->context->code, T1);
    indirect_since(t, begin);
    emit_landing(t, g);
}

void emit_cold_branch(struct translation *t, const struct cold *c)
{
    struct ginsn *g = &t->insn[c->info];
    t->flags = FLAGS_PARKED;
    a_patch(&t->a, c->from);
    if (c->kind == COLD_CHECK) {
        emit_check_target(t, g);
        a_jmp_to(&t->a, (uint64_t)(c->back + t->a.to_run));
    } else if (c->kind == COLD_CALL) {
        emit_check_target(t, g);
        a_mov_imm(&t->a, T1, (uint64_t)((int64_t)(t->d->user_ib_miss_at - (uint64_t)t->d->context->code) / 8));
        a_jmp_to(&t->a, (uint64_t)(c->back + t->a.to_run));
    } else { // without a prediction
        emit_branch_id(t, g, 0);
        a_jmp_to(&t->a, ib_miss(t));
    }
}

void emit_control(struct translation *t, struct ginsn *g)
{
    if (g->z->meta.category == ZYDIS_CATEGORY_COND_BR && (g->z->opcode & 0xf0) != 0xe0) {
        emit_jcc(t, g, branch_target(t, g));
        return;
    }
    switch (g->z->mnemonic) {
    case ZYDIS_MNEMONIC_JMP:
        if (g->z->opcode == 0xff) {
            emit_load_target(t, g);
            if (one(t))
                emit_check_target(t, g);
            leave_parked(t);
            emit_jump_indirect(t, g);
        } else {
            emit_branch_to(t, g, branch_target(t, g));
        }
        break;
    case ZYDIS_MNEMONIC_CALL:
        if (g->z->opcode == 0xff)
            emit_call_indirect(t, g);
        else
            emit_call(t, g, branch_target(t, g));
        break;
    case ZYDIS_MNEMONIC_RET: emit_ret(t, g); break;
    case ZYDIS_MNEMONIC_PUSH: emit_push_insn(t, g); break;
    case ZYDIS_MNEMONIC_POP: emit_pop_insn(t, g); break;
    case ZYDIS_MNEMONIC_LEAVE: emit_leave(t, g); break;
    case ZYDIS_MNEMONIC_JCXZ:
    case ZYDIS_MNEMONIC_JECXZ:
    case ZYDIS_MNEMONIC_JRCXZ:
    case ZYDIS_MNEMONIC_LOOP:
    case ZYDIS_MNEMONIC_LOOPE:
    case ZYDIS_MNEMONIC_LOOPNE: emit_loop(t, g, branch_target(t, g)); break;
    default: emit_odd(t, g); break;
    }
}
