// How a memory operand is reached: policy `checked`.
//
// An access of n bytes at offset `ea` of a segment becomes (flat 64-bit, flags dead):
//
//     lea   t0, [ea]
//     mov   t1d, t0d ; shr t1d, 12             index: bits 31:12
//     sub   t0, [tag + t1*8]                   offset in the page, if it is the right page
//     cmp   t0, 4096 - n ; ja cold             wrong page, or the access crosses its end
//     mov   t1, [host_page + t1*8]
//     op    [t1 + t0]
//
// Where guest flags are in the host's, LAHF/SETO into a spilled RAX surround the comparison. Nothing the guest can see has
// changed before `op`, so a miss can raise the guest's fault with the state before the instruction.
// In a bounce block the same place calls out for a buffer instead.
#include "dbt/internal.h"

const uint8_t host_of_guest[16] = {
    [RAX] = H_AX, [RCX] = H_CX, [RDX] = H_DX, [RBX] = H_BX, [RSP] = H_12, [RBP] = H_13, [RSI] = H_SI, [RDI] = H_14,
    [R8] = H_8, [R9] = HOMED, [R10] = HOMED, [R11] = HOMED, [R12] = H_11, [R13] = H_15, [R14] = H_9, [R15] = H_10,
};

void load_guest(struct translation *t, unsigned host, unsigned guest)
{
    if (host_reg(guest) == HOMED)
        a_load_abs(&t->a, 8, host, STATE(t, gpr[guest & 15]));
    else if (host_reg(guest) != host)
        a_mov_rr(&t->a, 8, host, host_reg(guest));
}

void store_guest(struct translation *t, unsigned guest, unsigned host)
{
    if (host_reg(guest) == HOMED)
        a_store_abs(&t->a, 8, STATE(t, gpr[guest & 15]), host);
    else if (host_reg(guest) != host)
        a_mov_rr(&t->a, 8, host_reg(guest), host);
}

unsigned guest_in(struct translation *t, unsigned guest, unsigned scratch)
{
    if (host_reg(guest) != HOMED)
        return host_reg(guest);
    load_guest(t, scratch, guest);
    return scratch;
}

bool mem_operand(const struct ginsn *g, struct ea *ea, unsigned *size, bool *read, bool *write)
{
    if (!g->has_ea)
        return false;
    *ea = g->ea;
    *size = g->ea_size;
    *read = g->ea_read;
    *write = g->ea_write;
    return true;
}

void mem_offset(struct translation *t, const struct ea *ea)
{
    struct asm_buf *a = &t->a;
    unsigned size = ea->addr_size == 8 ? 8 : 4;
    uint64_t mask = ea->addr_size == 8 ? ~0ull : ea->addr_size == 4 ? 0xffffffffull : 0xffffull;
    if (ea->base == EA_IN_T0)
        return;
    if (ea->base < 0 && ea->index < 0) {
        if (ea->relative)
            a_mov_rip(a, T0, (uint64_t)ea->disp & mask);
        else
            a_mov_imm(a, T0, (uint64_t)ea->disp & mask);
        return;
    }
    if (ea->base < 0) {
        unsigned x = guest_in(t, (unsigned)ea->index, T0);
        a_lea_index(a, size, T0, x, ea->scale, (int32_t)ea->disp);
    } else {
        unsigned b = guest_in(t, (unsigned)ea->base, T0);
        int x = ea->index < 0 ? -1 : (int)guest_in(t, (unsigned)ea->index, T1);
        if (x < 0 && ea->disp == 0)
            a_mov_rr(a, size, T0, b); // has no latency, other than LEA
        else
            a_lea(a, size, T0, b, x, ea->scale, (int32_t)ea->disp);
    }
    if (ea->addr_size == 2)
        a_movzx16(a, T0, T0);
}

static bool segment_flat(const struct translation *t, unsigned sreg)
{
    switch (sreg) {
    case SEG_CS: return t->code_size == 8; // writes fault, and reads of execute-only code: let cpu/ judge
    case SEG_DS: return t->code_size == 8 || t->key & KEY_FLAT_DS;
    case SEG_ES: return t->code_size == 8 || t->key & KEY_FLAT_ES;
    case SEG_SS: return t->code_size == 8 || t->key & KEY_FLAT_SS;
    default: return false;
    }
}

struct cold *cold_add(struct translation *t, unsigned kind, uint32_t info, bool write, uint8_t *from)
{
    if (t->cold_count == sizeof t->cold / sizeof t->cold[0]) {
        t->a.overflow = 1;
        return &t->cold[0];
    }
    struct cold *c = &t->cold[t->cold_count++];
    *c = (struct cold){.kind = (uint8_t)kind, .write = write, .info = info, .from = from};
    return c;
}

// The operand is in a range that was checked: [delta + base + disp].
static void mem_checked(struct translation *t, const struct merge_group *g, const struct ea *ea)
{
    struct asm_buf *a = &t->a;
    if (t->t1_group != g - t->group)
        a_load_abs(a, 8, T1, DBT(t, delta[g - t->group]));
    t->t1_group = (int)(g - t->group);
    t->based = true;
    t->based_on = guest_in(t, (unsigned)ea->base, T0);
    t->based_disp = (int32_t)ea->disp + (ea->base == RSP ? t->rsp_pending : 0);
}

// The whole range of a group has been checked; T1 is its delta.
static void mem_keep_delta(struct translation *t, struct merge_group *g, const struct ea *ea)
{
    a_store_abs(&t->a, 8, DBT(t, delta[g - t->group]), T1);
    g->checked = true;
    t->t1_group = (int)(g - t->group);
    t->based = true;
    t->based_on = guest_in(t, (unsigned)ea->base, T0);
    t->based_disp = (int32_t)ea->disp;
}

static void flags_from_ax(struct translation *t) // and AX from where mem_begin() put it
{
    struct asm_buf *a = &t->a;
    a_put(a, 0x9e7f04, 3); // add al, 127; sahf
    a_load_abs(a, 8, H_AX, DBT(t, spill_ax));
}

static uint64_t ea_constant(const struct ea *ea)
{
    return (uint64_t)ea->disp & (ea->addr_size == 8 ? ~0ull : ea->addr_size == 4 ? 0xffffffffull : 0xffffull);
}

// An address known now, RIP-relative or absolute, of an access within a page.
static bool is_constant(const struct ea *ea, unsigned size)
{
    return ea->base == -1 && ea->index < 0 && (ea_constant(ea) & (PAGE_SIZE - 1)) + size <= PAGE_SIZE;
}

// Its place in the TLB is known too:  cmp [tag + i*8], page ; jne cold ; mov t1, [host_page + i*8] ; mov t0, offset
static void mem_constant(struct translation *t, uint64_t la, uint32_t info, bool write, bool relative)
{
    struct asm_buf *a = &t->a;
    const struct tlb_set *set = &t->d->v->tlb->set[(t->key & KEY_TLB_MASK) >> KEY_TLB_SHIFT];
    unsigned i = la >> PAGE_SHIFT & (TLB_ENTRIES - 1);
    uint64_t page = la & -PAGE_SIZE, tag = (uint64_t)&(write ? set->write_tag : set->read_tag)[i];
    if ((int64_t)page == (int32_t)page) {
        a_rex(a, 8, 0, 0, 0, 0);
        a8(a, 0x81);
        a_low(a, 7, tag);
        a32(a, (uint32_t)page);
        a->fixed |= relative;
    } else {
        if (relative)
            a_mov_rip(a, T0, page);
        else
            a_mov_imm(a, T0, page);
        a_rex(a, 8, T0, 0, 0, 0);
        a8(a, 0x39);
        a_low(a, T0, tag);
        if (relative)
            a_note(a, RELOC_TLB);
    }
    struct cold *c = cold_add(t, COLD_CONSTANT, info, write, a_jcc(a, CC_NE));
    c->la = la;
    c->relative = relative;
    if (info & SLOW_FLAGS)
        flags_from_ax(t);
    a_rex(a, 8, T1, 0, 0, 0);
    a8(a, 0x8b);
    a_low(a, T1, (uint64_t)&set->host_page[i]);
    if (relative)
        a_note(a, RELOC_TLB);
    a_mov_imm(a, T0, la & (PAGE_SIZE - 1));
    c->back = a->p;
}

void mem_begin(struct translation *t, const struct ea *operand, unsigned size, bool write, bool read_too)
{
    struct asm_buf *a = &t->a;
    bool live = t->flags == FLAGS_HOST;
    t->is_plain = false;
    if (user(t)) {
        mem_plain(t, operand);
        return;
    }
    const struct ea *ea = operand;
    struct ea range;
    int64_t offset;
    struct merge_group *group = merge_next(t, ea, size, &offset);
    t->based = false;
    if (group && group->checked) {
        mem_checked(t, group, ea);
        return;
    }
    t->t1_group = -1;
    if (group) {
        range = *ea;
        range.disp = group->min - offset;
        ea = &range;
        size = (unsigned)(group->max - group->min);
        write = group->write;
    }
    uint32_t info = (uint32_t)size | (write ? SLOW_WRITE : 0) | (live ? SLOW_FLAGS : 0) | (t->flags == FLAGS_PARKED ? SLOW_PARKED : 0) | ea->sreg << SLOW_SEG_SHIFT |
                    (read_too ? SLOW_READ_TOO : 0) | (group ? SLOW_GROUP : t->operand);
    if (bounce(t)) {
        mem_offset(t, ea);
        a_store_imm32_abs(a, 4, DBT(t, slow_info), info);
        a_call_to(a, t->d->stub_bounce);
        if (t->key & KEY_AC)
            a_bytes(a, "\x9c\x81\x0c\x24\x00\x00\x04\x00\x9d", 9); // pushfq; or dword [rsp], AC; popfq
        if (write)
            t->committed = true;
        return;
    }
    bool flat = segment_flat(t, ea->sreg), constant = flat && is_constant(ea, size);
    if (!constant)
        mem_offset(t, ea);
    if (live) {
        a_store_abs(a, 8, DBT(t, spill_ax), H_AX);
        a_put(a, 0xc0900f9f, 4); // lahf; seto al
    }
    if (constant) {
        mem_constant(t, ea_constant(ea), info, write, ea->relative);
        return;
    }
    struct cold *seg_cold = NULL;
    if (!flat && t->code_size == 8) {
        a_load_abs(a, 8, T1, STATE(t, seg[ea->sreg].base));
        a_lea(a, 8, T0, T0, T1, 1, 0);
    } else if (!flat) {
        a_lea(a, 8, T1, T0, -1, 1, (int32_t)size - 1);
        a_rex(a, 8, T1, 0, 0, 0); // cmp t1, [limit]
        a8(a, 0x3b);
        a_abs(a, T1, write ? DBT(t, limit_write[ea->sreg]) : DBT(t, limit_read[ea->sreg]), 0);
        seg_cold = cold_add(t, COLD_SEGMENT, info, write, a_jcc(a, CC_G));
        a_load_abs(a, 8, T1, STATE(t, seg[ea->sreg].base));
        a_lea(a, 4, T0, T0, T1, 1, 0);
        seg_cold->back = a->p;
    }
    const struct tlb_set *set = &t->d->v->tlb->set[(t->key & KEY_TLB_MASK) >> KEY_TLB_SHIFT];
    a_mov_rr(a, 4, T1, T0);
    a_put(a, 0x0cefc1, 3); // shr edi, 12
    a_op_table(a, 0x2b, T0, (uint64_t)(write ? set->write_tag : set->read_tag), T1); // sub t0, [tag + t1*8]
    a_op(a, rex_bits(8, 0, 0, T0), 0x81 | modrm_bits(3, 7, T0) << 8 | (uint64_t)(4096 - size) << 16, 6); // cmp t0, 4096 - size
    struct cold *c = cold_add(t, COLD_SLOW, info, write, a_jcc(a, CC_A));
    if (live)
        flags_from_ax(t);
    a_load_table(a, T1, (uint64_t)(group ? set->addend : set->host_page), T1);
    c->back = a->p;
    if (group)
        mem_keep_delta(t, group, operand);
}

void mem_combine(struct translation *t)
{
    if (t->is_plain) {
        plain_combine(t);
        return;
    }
    if (t->based)
        a_lea(&t->a, 8, T1, T1, (int)t->based_on, 1, t->based_disp);
    else
        a_lea(&t->a, 8, T1, T1, T0, 1, 0);
    t->based = false;
    t->t1_group = -1;
}

void mem_cold(struct translation *t)
{
    struct asm_buf *a = &t->a;
    for (unsigned i = 0; i < t->cold_count; i++) {
        struct cold *c = &t->cold[i];
        if (c->kind == COLD_NUMBER) { // as part of an instruction that nothing leads to
            a_rex(a, 8, 0, 0, T1, 0);
            a8(a, 0xb8 | T1);
            a_patch(a, c->from);
            a64(a, c->la);
            a_note(a, RELOC_RIP64);
            continue;
        }
        if (c->from)
            a_patch(a, c->from);
        if (c->kind == COLD_LIMIT) {
            count_cold(t, c);
            continue;
        }
        if (c->kind == COLD_CHECK || c->kind == COLD_LOOKUP || c->kind == COLD_CALL) {
            emit_cold_branch(t, c);
            continue;
        }
        if (c->kind == COLD_EXIT) {
            struct exit *e = &t->b->exits[c->exit - t->exit];
            e->cold = (uint32_t)asm_here(a);
            if (e->kind == EXIT_FAR)
                *(uint64_t *)(uint64_t)e->site = e->cold;
            if (user(t)) {
                a8(a, 0xcc); // int3: the owner knows the exit by its place
                continue;
            }
            a_mov_own(a, T0, e, RELOC_EXIT);
            a_jmp_to(a, e->at_out == OUT_PARKED ? t->d->stub_chain : t->d->stub_chain_host);
            continue;
        }
        if (c->kind == COLD_CONSTANT) { // what the check of a computed address leaves in T0 and T1
            const struct tlb_set *set = &t->d->v->tlb->set[(t->key & KEY_TLB_MASK) >> KEY_TLB_SHIFT];
            a_mov_imm(a, T1, c->la >> PAGE_SHIFT & (TLB_ENTRIES - 1));
            if (c->relative)
                a_note(a, RELOC_INDEX);
            if (c->relative)
                a_mov_rip(a, T0, c->la);
            else
                a_mov_imm(a, T0, c->la);
            a_op_table(a, 0x2b, T0, (uint64_t)(c->write ? set->write_tag : set->read_tag), T1);
        }
        a_store_imm32_abs(a, 4, DBT(t, slow_info), c->info);
        a_call_to(a, c->kind == COLD_SEGMENT ? t->d->stub_seg
                                             : t->d->stub_slow[c->write][c->info & SLOW_FLAGS ? 1 : 0]);
        a_jmp_to(a, (uint64_t)(c->back + a->to_run));
    }
}
