// Near control transfer and the stack: the instructions that must see the guest's RIP or RSP.
//
// Direct exits are chained: within the guest page a rel32 is patched; to another page the jump goes through a slot,
// which every flush of the guest's TLB resets, so that a remapped page is noticed. Indirect branches look up the RIP
// in a table of the current mode, without touching flags. CALL leaves its prediction on the host's stack: the RET it
// belongs to ends in a host RET, and the landing checks that the guest really returns there.
#include "dbt/internal.h"

static struct ea stack_ea(const struct translation *t, int64_t disp)
{
    unsigned size = t->code_size == 8 ? 8 : t->key & KEY_STACK32 ? 4 : 2;
    return (struct ea){.base = RSP, .index = -1, .scale = 1, .addr_size = size, .sreg = SEG_SS, .disp = disp};
}

// Guest RSP += n, in the width of the stack, flags untouched.
static void stack_adjust(struct translation *t, int32_t n)
{
    struct asm_buf *a = &t->a;
    if (t->code_size == 8) {
        a_lea(a, 8, H_12, H_12, -1, 1, n);
    } else if (t->key & KEY_STACK32) {
        a_lea(a, 4, H_12, H_12, -1, 1, n);
    } else {
        a_lea(a, 4, T1, H_12, -1, 1, n);
        a8(a, 0x66); // mov r12w, di
        a_mov_rr(a, 4, H_12, T1);
    }
}

// ModRM of the operand mem_begin() left: [t1 + base + disp] in a checked group, else [t1] (mem_settle()).
static void operand_modrm(struct translation *t, unsigned reg)
{
    if (t->based)
        a_mem(&t->a, reg, T1, (int)t->based_on, 1, t->based_disp);
    else
        a_modrm(&t->a, 0, reg, T1);
}

static unsigned operand_index(const struct translation *t) { return t->based ? t->based_on : 0; }

// Makes the operand addressable by operand_modrm() with T0 free.
static void mem_settle(struct translation *t)
{
    if (!t->based || t->based_on == T0)
        mem_combine(t);
}

static void store_sized(struct translation *t, unsigned size, unsigned src) // mov [operand], src
{
    struct asm_buf *a = &t->a;
    if (size == 2)
        a8(a, 0x66);
    a_rex(a, size, src, operand_index(t), T1, 0);
    a8(a, 0x89);
    operand_modrm(t, src);
}

static void load_sized(struct translation *t, unsigned size, unsigned dst) // dst = zero-extended [operand]
{
    struct asm_buf *a = &t->a;
    if (size == 2) {
        a_rex(a, 4, dst, operand_index(t), T1, 0);
        a_bytes(a, "\x0f\xb7", 2);
    } else {
        a_rex(a, size, dst, operand_index(t), T1, 0);
        a8(a, 0x8b);
    }
    operand_modrm(t, dst);
}

enum { PUSH_REG, PUSH_IMM, PUSH_TMP };

static void emit_push(struct translation *t, unsigned size, int kind, uint64_t value)
{
    struct asm_buf *a = &t->a;
    struct ea ea = stack_ea(t, -(int64_t)size);
    mem_begin(t, &ea, size, true, false);
    mem_settle(t);
    if (kind == PUSH_REG)
        store_sized(t, size, guest_in(t, (unsigned)value, T0));
    else if (kind == PUSH_IMM && (int64_t)value == (int32_t)value && size == 8) {
        a_rex(a, 8, 0, operand_index(t), T1, 0);
        a8(a, 0xc7);
        operand_modrm(t, 0);
        a32(a, (uint32_t)value);
    } else {
        if (kind == PUSH_IMM)
            a_mov_imm(a, T0, value);
        else
            a_load_abs(a, 8, T0, DBT(t, tmp));
        store_sized(t, size, T0);
    }
    stack_adjust(t, -(int32_t)size);
}

// dst = value popped (zero-extended); RSP is not changed yet.
static void emit_peek_stack(struct translation *t, unsigned size, unsigned dst)
{
    struct ea ea = stack_ea(t, 0);
    mem_begin(t, &ea, size, false, false);
    mem_settle(t);
    load_sized(t, size, dst);
}

static bool one(const struct translation *t) { return t->key & KEY_ONE; }

// Whether a branch to `rip` depends on more than the block's page: it leaves it, or may lead to an instruction that does.
static bool far(const struct translation *t, uint64_t rip)
{
    uint64_t la = rip + t->b->cs_base;
    return (la ^ (t->b->rip + t->b->cs_base)) >> PAGE_SHIFT || (la & (PAGE_SIZE - 1)) > PAGE_SIZE - 15;
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
    return e;
}

static uint32_t offset_here(const struct translation *t) { return (uint32_t)(asm_here(&t->a) - t->b->code); }

// From there to here a kick may leave: RIP is in T0.
static void indirect_since(struct translation *t, uint32_t begin)
{
    struct block *b = t->b;
    if (b->indirect_count < sizeof b->indirect / sizeof b->indirect[0])
        b->indirect[b->indirect_count++] = (struct span){begin, offset_here(t)};
}

// Exits other than to the same page leave with live flags parked.
static void leave_parked(struct translation *t)
{
    if (t->flags == FLAGS_HOST)
        flags_park(t);
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
        a_mov_imm(a, T0, rip);
        a_jmp_to(a, t->committed ? d->stub_commit : d->stub_step);
    } else if (e->kind == EXIT_FAR) {
        leave_parked(t);
        leaves_at(t, e, OUT_PARKED);
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

void emit_exit_indirect(struct translation *t)
{
    struct asm_buf *a = &t->a;
    struct dbt *d = t->d;
    enum flag_place flags = t->flags;
    t->ended = true;
    leave_parked(t);
    if (one(t)) {
        a_jmp_to(a, t->committed ? d->stub_commit : d->stub_step);
    } else if (!d->context) {
        a_jmp_to(a, d->stub_ib_miss);
    } else { // if (tag[rip & 0xffff] == rip) goto *code[...]
        uint32_t begin = offset_here(t);
        a_movzx16(a, T1, T0);
        a_rex(a, 8, T0, T1, 0, 0);
        a8(a, 0x3b);
        a_table(a, T0, (uint64_t)d->context->tag, T1);
        a_jcc_to(a, CC_NE, d->stub_ib_miss);
        a8(a, 0xff);
        a_table(a, 4, (uint64_t)d->context->code, T1);
        indirect_since(t, begin);
    }
    t->flags = flags;
}

static void emit_call_tail(struct translation *t, struct ginsn *g, bool indirect, uint64_t target)
{
    struct asm_buf *a = &t->a;
    struct dbt *d = t->d;
    uint64_t next = (g->rip + g->z.length) & t->rip_mask;
    enum flag_place flags = t->flags;
    if (one(t)) {
        if (indirect)
            emit_exit_indirect(t);
        else
            emit_exit_to(t, target);
        return;
    }
    // call over the landing: the host return address pushed is the landing's
    uint8_t *go = a->p + 1;
    a8(a, 0xe8);
    a32(a, 0);
    // landing: T0 is the RIP the guest's RET popped, flags are parked
    uint32_t landing = offset_here(t);
    if ((int64_t)next == (int32_t)next) {
        a_rex(a, 8, 0, 0, T0, 0);
        a8(a, 0x81);
        a_modrm(a, 3, 7, T0);
        a32(a, (uint32_t)next);
    } else {
        a_mov_imm(a, T1, next);
        a_rex(a, 8, T1, 0, T0, 0);
        a8(a, 0x39);
        a_modrm(a, 3, T1, T0);
    }
    a_jcc_to(a, CC_NE, d->context ? d->stub_ret_miss[d->context - d->contexts] : d->stub_ib_miss);
    indirect_since(t, landing);
    t->flags = peek_live(t, next) ? FLAGS_PARKED : FLAGS_DEAD;
    emit_exit_to(t, next);
    t->flags = flags;
    a_patch(a, go);
    if (indirect)
        emit_exit_indirect(t);
    else
        emit_exit_to(t, target);
}

static void emit_ret(struct translation *t, struct ginsn *g)
{
    struct asm_buf *a = &t->a;
    unsigned size = g->z.operand_width / 8;
    if (t->code_size == 8)
        size = 8;
    int32_t extra = g->z.raw.imm[0].size ? (int32_t)(g->z.raw.imm[0].value.u & 0xffff) : 0;
    emit_peek_stack(t, size, T0);
    stack_adjust(t, (int32_t)size + extra);
    if (one(t)) {
        emit_exit_indirect(t);
        return;
    }
    leave_parked(t);
    uint32_t begin = offset_here(t);
    a8(a, 0xc3);
    indirect_since(t, begin);
    t->ended = true;
}

static void emit_jcc(struct translation *t, struct ginsn *g, uint64_t target)
{
    emit_exit_if(t, g->z.opcode & 15u, target);
    if (g == &t->insn[t->count - 1])
        emit_exit_to(t, g->rip + g->z.length);
    else
        t->ended = false; // the block goes on behind it
}

// LOOPcc and JCXZ: counter in CX, ECX or RCX by address size; no flag is written.
static void emit_loop(struct translation *t, struct ginsn *g, uint64_t target)
{
    struct asm_buf *a = &t->a;
    unsigned size = g->z.address_width / 8;
    bool jcxz = g->z.opcode == 0xe3;
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
    if (g->z.opcode == 0xe0) // LOOPNE: leave if ZF
        other = a_jcc(a, CC_E);
    else if (g->z.opcode == 0xe1)
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
    uint64_t fall = g->rip + g->z.length;
    emit_exit_to(t, jcxz ? target : fall);
    a_patch(a, nonzero);
    emit_exit_to(t, jcxz ? fall : target);
}

uint64_t branch_target(const struct translation *t, const struct ginsn *g)
{
    uint64_t target = g->rip + g->z.length + (uint64_t)g->z.raw.imm[0].value.s;
    if (t->code_size != 8 && g->z.operand_width == 16)
        target &= 0xffff;
    return target & t->rip_mask;
}

// T0 = target of JMP/CALL r/m
static void emit_load_target(struct translation *t, struct ginsn *g)
{
    struct asm_buf *a = &t->a;
    struct ea ea;
    unsigned size;
    bool rd, wr;
    if (mem_operand(g, &ea, &size, &rd, &wr) && g->z.raw.modrm.mod != 3) {
        mem_begin(t, &ea, size, false, false);
        mem_combine(t);
        load_sized(t, size, T0);
        return;
    }
    unsigned r = insn_fields(g).rm;
    load_guest(t, T0, r);
    if (g->z.operand_width == 16)
        a_movzx16(a, T0, T0);
    else if (t->code_size != 8)
        a_mov_rr(a, 4, T0, T0);
}

static void emit_call(struct translation *t, struct ginsn *g)
{
    struct asm_buf *a = &t->a;
    unsigned size = t->code_size == 8 ? 8 : g->z.operand_width / 8u;
    uint64_t next = (g->rip + g->z.length) & t->rip_mask;
    bool indirect = g->z.opcode == 0xff;
    if (indirect) {
        emit_load_target(t, g);
        a_store_abs(a, 8, DBT(t, tmp), T0);
    }
    emit_push(t, size, PUSH_IMM, next);
    if (indirect)
        a_load_abs(a, 8, T0, DBT(t, tmp));
    emit_call_tail(t, g, indirect, indirect ? 0 : branch_target(t, g));
}

static void emit_push_insn(struct translation *t, struct ginsn *g)
{
    struct asm_buf *a = &t->a;
    unsigned size = g->z.operand_width / 8u;
    if (t->code_size == 8 && size == 4)
        size = 8;
    struct ea ea;
    unsigned msize;
    if (g->op[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        uint64_t v = g->z.raw.imm[0].is_signed ? (uint64_t)g->z.raw.imm[0].value.s : g->z.raw.imm[0].value.u;
        if (g->z.raw.imm[0].size == 32)
            v = (uint64_t)(int32_t)g->z.raw.imm[0].value.u;
        emit_push(t, size, PUSH_IMM, size == 8 ? v : size == 4 ? (uint32_t)v : (uint16_t)v);
    } else if (g->op[0].type == ZYDIS_OPERAND_TYPE_REGISTER) {
        unsigned r = g->z.opcode == 0xff ? insn_fields(g).rm : insn_fields(g).opreg;
        emit_push(t, size, PUSH_REG, r);
    } else {
        bool rd, wr;
        mem_operand(g, &ea, &msize, &rd, &wr);
        mem_begin(t, &ea, size, false, false);
        mem_combine(t);
        load_sized(t, size, T0);
        a_store_abs(a, 8, DBT(t, tmp), T0);
        emit_push(t, size, PUSH_TMP, 0);
    }
}

// mov of `size` bytes from T0 into a guest register, upper parts as x86 keeps or clears them
static void assign_sized(struct translation *t, unsigned size, unsigned guest)
{
    struct asm_buf *a = &t->a;
    unsigned h = host_reg(guest);
    if (h == HOMED) {
        if (size == 2)
            a8(a, 0x66);
        a_store_abs(a, size == 2 ? 4 : 8, STATE(t, gpr[guest]), T0); // T0 is zero-extended
        return;
    }
    if (size == 2)
        a8(a, 0x66);
    a_mov_rr(a, size == 2 ? 4 : size, h, T0);
}

static void emit_pop_insn(struct translation *t, struct ginsn *g)
{
    struct asm_buf *a = &t->a;
    unsigned size = g->z.operand_width / 8u;
    if (t->code_size == 8 && size == 4)
        size = 8;
    bool to_register = g->op[0].type == ZYDIS_OPERAND_TYPE_REGISTER;
    unsigned r = g->z.opcode == 0x8f ? insn_fields(g).rm : insn_fields(g).opreg;
    if (to_register && size == 8 && host_reg(r) != HOMED && r != RSP) {
        emit_peek_stack(t, size, host_reg(r));
        stack_adjust(t, (int32_t)size);
        return;
    }
    emit_peek_stack(t, size, T0);
    if (to_register) {
        stack_adjust(t, (int32_t)size); // uses T1 only
        assign_sized(t, size, r);       // POP RSP: the popped value wins
        return;
    }
    a_store_abs(a, 8, DBT(t, tmp), T0);
    struct ea ea;
    unsigned msize;
    bool rd, wr;
    mem_operand(g, &ea, &msize, &rd, &wr);
    if (ea.base == RSP) // the address uses RSP after the pop
        ea.disp += size;
    mem_begin(t, &ea, size, true, false);
    mem_combine(t);
    a_load_abs(a, 8, T0, DBT(t, tmp));
    store_sized(t, size, T0);
    stack_adjust(t, (int32_t)size);
}

static void emit_leave(struct translation *t, struct ginsn *g)
{
    struct asm_buf *a = &t->a;
    unsigned size = g->z.operand_width / 8u;
    if (t->code_size == 8 && size == 4)
        size = 8;
    struct ea ea = stack_ea(t, 0);
    ea.base = RBP;
    mem_begin(t, &ea, size, false, false);
    mem_combine(t);
    load_sized(t, size, T0);
    // RSP = RBP (in the stack's width) + size, then RBP = popped
    unsigned width = ea.addr_size;
    if (width == 2) {
        a_lea(a, 4, T1, H_13, -1, 1, (int32_t)size);
        a8(a, 0x66);
        a_mov_rr(a, 4, H_12, T1);
    } else {
        a_lea(a, width, H_12, H_13, -1, 1, (int32_t)size);
    }
    assign_sized(t, size, RBP);
}

static void emit_bit_offset(struct translation *t, struct ginsn *g)
{
    // BT/BTS/BTR/BTC [mem], reg: the bit offset also selects the operand-sized unit it is in (SDM vol. 2, BT)
    struct asm_buf *a = &t->a;
    struct ea ea;
    unsigned size, width = g->z.operand_width / 8u, reg = insn_fields(g).reg;
    bool rd, wr;
    mem_operand(g, &ea, &size, &rd, &wr);
    unsigned log = width == 8 ? 6 : width == 4 ? 5 : 4;
    // tmp = unit index; flags must survive the arithmetic: SARX by a count in RCX would do, MOVSX and LEA can't shift
    a_store_abs(a, 8, DBT(t, spill_ax), H_AX);
    if (host_reg(reg) == H_AX)
        a_mov_rr(a, 8, T0, H_AX);
    else
        load_guest(t, T0, reg);
    a8(a, 0x9f);
    a_bytes(a, "\x0f\x90\xc0", 3);
    if (width == 2) { // movsx ebp, bp
        a_bytes(a, "\x48\x0f\xbf\xed", 4);
    } else if (width == 4) { // movsxd rbp, ebp
        a_bytes(a, "\x48\x63\xed", 3);
    }
    a_store_abs(a, 8, DBT(t, tmp), T0);
    a_rex(a, 8, 0, 0, T0, 0); // sar rbp, log
    a8(a, 0xc1);
    a_modrm(a, 3, 7, T0);
    a8(a, log);
    a_rex(a, 8, 0, 0, T0, 0); // shl rbp, log2(width)
    a8(a, 0xc1);
    a_modrm(a, 3, 4, T0);
    a8(a, width == 8 ? 3 : width == 4 ? 2 : 1);
    a_store_abs(a, 8, DBT(t, target), T0);
    a_load_abs(a, 4, T0, DBT(t, tmp)); // tmp = bit in the unit
    a_alu_imm(a, 4, 4, T0, (int32_t)width * 8 - 1);
    a_store_abs(a, 8, DBT(t, tmp), T0);
    a_bytes(a, "\x04\x7f", 2);
    a8(a, 0x9e);
    a_load_abs(a, 8, H_AX, DBT(t, spill_ax));
    // the address: [ea] + target, reached through a scratch base in memory
    mem_offset(t, &ea);
    a_load_abs(a, 8, T1, DBT(t, target));
    a_lea(a, ea.addr_size == 8 ? 8 : 4, T0, T0, T1, 1, 0);
    if (ea.addr_size == 2)
        a_movzx16(a, T0, T0);
    struct ea fixed = {.base = EA_IN_T0, .index = -1, .scale = 1, .addr_size = ea.addr_size, .sreg = ea.sreg};
    mem_begin(t, &fixed, width, wr, wr);
    mem_combine(t);
    a_load_abs(a, 8, T0, DBT(t, tmp));
    struct enc e = {.reg = T0, .rm = -1, .vreg = -1, .opreg = -1, .mem = ENC_T1};
    encode(t, g, &e);
}

void emit_nothing(struct translation *t, struct ginsn *g)
{
    // Hints and cache control: CLFLUSH and relatives still fault like a one-byte read.
    struct ea ea;
    unsigned size;
    bool rd, wr;
    switch (g->z.mnemonic) {
    case ZYDIS_MNEMONIC_CLFLUSH:
    case ZYDIS_MNEMONIC_CLFLUSHOPT:
    case ZYDIS_MNEMONIC_CLWB:
        if (mem_operand(g, &ea, &size, &rd, &wr))
            mem_begin(t, &ea, 1, false, false);
        break;
    default: break;
    }
}

void emit_control(struct translation *t, struct ginsn *g)
{
    struct asm_buf *a = &t->a;
    if (g->z.meta.category == ZYDIS_CATEGORY_COND_BR && (g->z.opcode & 0xf0) != 0xe0) {
        emit_jcc(t, g, branch_target(t, g));
        return;
    }
    switch (g->z.mnemonic) {
    case ZYDIS_MNEMONIC_JMP:
        if (g->z.opcode == 0xff) {
            emit_load_target(t, g);
            emit_exit_indirect(t);
        } else {
            emit_exit_to(t, branch_target(t, g));
        }
        break;
    case ZYDIS_MNEMONIC_CALL: emit_call(t, g); break;
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
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC: emit_bit_offset(t, g); break;
    case ZYDIS_MNEMONIC_LEA: {
        struct ea ea = {.base = -1, .index = -1, .scale = 1, .addr_size = g->z.address_width / 8u};
        const ZydisDecodedOperandMem *m = &g->op[1].mem;
        if (m->disp.has_displacement)
            ea.disp = m->disp.value;
        if (m->base == ZYDIS_REGISTER_RIP || m->base == ZYDIS_REGISTER_EIP)
            ea.disp += (int64_t)(g->rip + g->z.length);
        else if (m->base != ZYDIS_REGISTER_NONE)
            ea.base = ZydisRegisterGetId(m->base) & 15;
        if (m->index != ZYDIS_REGISTER_NONE)
            ea.index = ZydisRegisterGetId(m->index) & 15;
        ea.scale = m->scale ? m->scale : 1;
        unsigned r = insn_fields(g).reg, size = g->z.operand_width / 8u, h = host_reg(r);
        if (ea.addr_size == 8 && h != HOMED && size >= 4 && (ea.base >= 0 || ea.index >= 0) &&
            (ea.base < 0 || host_reg((unsigned)ea.base) != HOMED) && (ea.index < 0 || host_reg((unsigned)ea.index) != HOMED)) {
            if (ea.base < 0)
                a_lea_index(a, size, h, host_reg((unsigned)ea.index), ea.scale, (int32_t)ea.disp);
            else
                a_lea(a, size, h, host_reg((unsigned)ea.base), ea.index < 0 ? -1 : (int)host_reg((unsigned)ea.index),
                      ea.scale, (int32_t)ea.disp);
            break;
        }
        if (ea.base < 0 && ea.index < 0 && h != HOMED && size >= 4) {
            uint64_t value = (uint64_t)ea.disp & (ea.addr_size == 8 ? ~0ull : ea.addr_size == 4 ? 0xffffffffull : 0xffffull);
            a_mov_imm(a, h, size == 4 ? (uint32_t)value : value);
            break;
        }
        mem_offset(t, &ea);
        if (size == 4)
            a_mov_rr(a, 4, T0, T0);
        assign_sized(t, size, r);
        break;
    }
    case ZYDIS_MNEMONIC_PAUSE: a_bytes(a, g->bytes, g->z.length); break; // with REX.B it is XCHG R8
    case ZYDIS_MNEMONIC_SALC: // AL = CF ? FFh : 0, flags kept
        a_bytes(a, "\x0f\x92\xc0", 3); // setc al
        a_bytes(a, "\x0f\xb6\xe8", 3); // movzx ebp, al
        a_lea(a, 4, T0, T0, -1, 1, -1);
        a_bytes(a, "\xf7\xd5", 2);     // not ebp
        a_bytes(a, "\x40\x88\xe8", 3); // mov al, bpl
        break;
    case ZYDIS_MNEMONIC_VZEROALL:
    case ZYDIS_MNEMONIC_VZEROUPPER:
        if (t->code_size == 8) {
            a_bytes(a, g->bytes, g->z.length);
            break;
        }
        for (unsigned r = 0; r < 8; r++) { // registers 8-15 stay as they are outside 64-bit mode
            a_bytes(a, "\xc5", 1);
            if (g->z.mnemonic == ZYDIS_MNEMONIC_VZEROALL) { // vpxor xmm, xmm, xmm
                a8(a, 0x80 | (~r & 15) << 3 | 1);
                a8(a, 0xef);
            } else { // vmovdqa xmm, xmm
                a8(a, 0xf9);
                a8(a, 0x6f);
            }
            a_modrm(a, 3, r, r);
        }
        break;
    case ZYDIS_MNEMONIC_XLAT: {
        struct ea ea = {.base = EA_IN_T0, .index = -1, .scale = 1, .addr_size = g->z.address_width / 8u, .sreg = SEG_DS};
        unsigned size;
        bool rd, wr;
        struct ea found;
        if (mem_operand(g, &found, &size, &rd, &wr))
            ea.sreg = found.sreg;
        a_bytes(a, "\x0f\xb6\xe8", 3); // movzx ebp, al
        a_lea(a, ea.addr_size == 8 ? 8 : 4, T0, T0, H_BX, 1, 0);
        if (ea.addr_size == 2)
            a_movzx16(a, T0, T0);
        mem_begin(t, &ea, 1, false, false);
        mem_combine(t);
        a_bytes(a, "\x8a\x07", 2); // mov al, [rdi]
        break;
    }
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_VMASKMOVDQU: {
        struct ea ea = {.base = RDI, .index = -1, .scale = 1, .addr_size = g->z.address_width / 8u, .sreg = SEG_DS};
        unsigned size;
        bool rd, wr;
        struct ea found;
        if (mem_operand(g, &found, &size, &rd, &wr))
            ea.sreg = found.sreg;
        t->operand = SLOW_MASKED;
        mem_begin(t, &ea, g->z.mnemonic == ZYDIS_MNEMONIC_MASKMOVQ ? 8 : 16, true, false);
        t->operand = 0;
        mem_combine(t); // the host's RDI is T1
        struct enc e = {.reg = -1, .rm = -1, .vreg = -1, .opreg = -1};
        encode(t, g, &e);
        if (bounce(t))
            emit_masked_again(t, g, &e);
        break;
    }
    default: break;
    }
}
