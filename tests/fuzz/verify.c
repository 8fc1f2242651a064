// A verifier of translated code, independent of what made it: host code is decoded from its first byte to its last, and each
// instruction must be one that cannot leave the guest's machine.
//
//  1. No instruction that enters the host kernel, reads or writes host state that is not the guest's (segment registers,
//     descriptor tables, control state, TSC, CPUID, IF, DF), or jumps far.
//  2. Memory is reached as policy `checked` says (dbt/operand.c): [T1 + T0] or [T1] after a check in the same instruction of
//     the guest that covers the operand's size, with the write tags if it is written; the tables of TLB and indirect branches
//     indexed by T1; the vCPU's and the translator's own fields by displacement; the return stack by CALL and RET alone.
//  3. Direct branches lead to the start of an instruction in this block, to a stub, or to the block the exit is linked to.
//  4. The map's host offsets are such starts, in order, and its guest offsets ascend within the guest's bytes.
#include "tests/fuzz/core.h"
#include "tests/fuzz/fuzz.h"

#define MAX_CODE (256u << 10)

struct verifier {
    const struct dbt *d;
    const struct block *b;
    uint8_t starts[MAX_CODE / 8]; // bit: an instruction begins here
    uint32_t targets[8192];       // offsets of branches within the block
    unsigned target_count;
    uint32_t at;       // offset being looked at
    // What the last check in this guest instruction covers.
    unsigned checked;  // bytes, 0: nothing
    bool may_write;
    const uint64_t *tag; // the tag table last compared with
    uint32_t compared;   // the immediate of its comparison
    uint32_t slow_info;
};

#define rule(condition, what)                                                                                          \
    claim(condition, "%s at +%#x of the block for rip %llx key %06x (%u guest bytes)", what, s->at,                    \
          (unsigned long long)s->b->rip, s->b->key, s->b->guest_len)

static bool within(uint64_t address, uint64_t size, const void *base, uint64_t length)
{
    return address >= (uint64_t)base && size <= length && address - (uint64_t)base <= length - size;
}

static bool own_field(const struct verifier *s, uint64_t address, uint64_t size)
{
    const struct dbt *d = s->d;
    return within(address, size, d->v, sizeof *d->v) || within(address, size, d, sizeof *d) ||
           within(address, size, d->slots, SLOT_COUNT * 8);
}

// Tables that translated code indexes by T1 * 8: which one, and how many entries. Null: none.
static const uint64_t *indexed_table(const struct verifier *s, uint64_t address)
{
    const struct tlb *tlb = s->d->v->tlb;
    for (unsigned k = 0; k < TLB_KINDS; k++) {
        const struct tlb_set *set = &tlb->set[k];
        if (address == (uint64_t)set->read_tag)
            return set->read_tag;
        if (address == (uint64_t)set->write_tag)
            return set->write_tag;
        if (address == (uint64_t)set->host_page)
            return set->host_page;
    }
    for (unsigned i = 0; i < CONTEXTS; i++) {
        if (address == (uint64_t)s->d->contexts[i].tag)
            return s->d->contexts[i].tag;
        if (address == (uint64_t)s->d->contexts[i].code)
            return s->d->contexts[i].code;
    }
    return NULL;
}

static bool is_tag(const struct verifier *s, const uint64_t *table, bool *write)
{
    for (unsigned k = 0; k < TLB_KINDS; k++) {
        *write = table == s->d->v->tlb->set[k].write_tag;
        if (*write || table == s->d->v->tlb->set[k].read_tag)
            return true;
    }
    return false;
}

// Rule 1.
static bool forbidden(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *op)
{
    switch (z->meta.category) {
    case ZYDIS_CATEGORY_SYSTEM:
    case ZYDIS_CATEGORY_SYSCALL:
    case ZYDIS_CATEGORY_SYSRET:
    case ZYDIS_CATEGORY_INTERRUPT:
    case ZYDIS_CATEGORY_IO:
    case ZYDIS_CATEGORY_IOSTRINGOP:
    case ZYDIS_CATEGORY_STRINGOP:
    case ZYDIS_CATEGORY_SEGOP:
    case ZYDIS_CATEGORY_VTX:
    case ZYDIS_CATEGORY_XSAVE:
    case ZYDIS_CATEGORY_XSAVEOPT:
    case ZYDIS_CATEGORY_SGX:
    case ZYDIS_CATEGORY_PKU:
    case ZYDIS_CATEGORY_RDWRFSGS:
    case ZYDIS_CATEGORY_WAITPKG:
    case ZYDIS_CATEGORY_UINTR:
    case ZYDIS_CATEGORY_KEYLOCKER:
    case ZYDIS_CATEGORY_ENQCMD:
    case ZYDIS_CATEGORY_CET:
    case ZYDIS_CATEGORY_AMX_TILE:
    case ZYDIS_CATEGORY_HRESET:
    case ZYDIS_CATEGORY_TSX_LDTRK:
    case ZYDIS_CATEGORY_SERIALIZE:
    case ZYDIS_CATEGORY_CLZERO:
    case ZYDIS_CATEGORY_PADLOCK:
    case ZYDIS_CATEGORY_MPX:
    case ZYDIS_CATEGORY_PT:
    case ZYDIS_CATEGORY_KEYLOCKER_WIDE:
    case ZYDIS_CATEGORY_GATHER:
    case ZYDIS_CATEGORY_SCATTER:
    case ZYDIS_CATEGORY_PUSH: // the host's stack is not the guest's
    case ZYDIS_CATEGORY_POP: return true;
    default: break;
    }
    switch (z->meta.isa_ext) {
    case ZYDIS_ISA_EXT_AMX_BF16: case ZYDIS_ISA_EXT_AMX_INT8: case ZYDIS_ISA_EXT_AMX_TILE: case ZYDIS_ISA_EXT_SNP:
    case ZYDIS_ISA_EXT_TDX: case ZYDIS_ISA_EXT_SVM: case ZYDIS_ISA_EXT_SMX: case ZYDIS_ISA_EXT_MCOMMIT: return true;
    default: break;
    }
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_CLI: case ZYDIS_MNEMONIC_STI: case ZYDIS_MNEMONIC_CLD: case ZYDIS_MNEMONIC_STD:
    case ZYDIS_MNEMONIC_CLAC: case ZYDIS_MNEMONIC_STAC: case ZYDIS_MNEMONIC_PUSHF: case ZYDIS_MNEMONIC_PUSHFD:
    case ZYDIS_MNEMONIC_PUSHFQ: case ZYDIS_MNEMONIC_POPF: case ZYDIS_MNEMONIC_POPFD: case ZYDIS_MNEMONIC_POPFQ:
    case ZYDIS_MNEMONIC_CPUID: case ZYDIS_MNEMONIC_RDTSC: case ZYDIS_MNEMONIC_RDTSCP: case ZYDIS_MNEMONIC_RDPMC:
    case ZYDIS_MNEMONIC_RDPID: case ZYDIS_MNEMONIC_XGETBV: case ZYDIS_MNEMONIC_XSETBV: case ZYDIS_MNEMONIC_SGDT:
    case ZYDIS_MNEMONIC_SIDT: case ZYDIS_MNEMONIC_SLDT: case ZYDIS_MNEMONIC_STR: case ZYDIS_MNEMONIC_SMSW:
    case ZYDIS_MNEMONIC_LAR: case ZYDIS_MNEMONIC_LSL: case ZYDIS_MNEMONIC_VERR: case ZYDIS_MNEMONIC_VERW:
    case ZYDIS_MNEMONIC_FXSAVE: case ZYDIS_MNEMONIC_FXSAVE64: case ZYDIS_MNEMONIC_FXRSTOR: case ZYDIS_MNEMONIC_FXRSTOR64:
    case ZYDIS_MNEMONIC_FNSTENV: case ZYDIS_MNEMONIC_FLDENV: case ZYDIS_MNEMONIC_FNSAVE: case ZYDIS_MNEMONIC_FRSTOR:
    case ZYDIS_MNEMONIC_HLT: case ZYDIS_MNEMONIC_MONITOR: case ZYDIS_MNEMONIC_MWAIT: case ZYDIS_MNEMONIC_MONITORX:
    case ZYDIS_MNEMONIC_MWAITX: case ZYDIS_MNEMONIC_XBEGIN: case ZYDIS_MNEMONIC_ENTER: case ZYDIS_MNEMONIC_LEAVE:
    case ZYDIS_MNEMONIC_INT3: case ZYDIS_MNEMONIC_INT1: case ZYDIS_MNEMONIC_MOVDIR64B: case ZYDIS_MNEMONIC_RDPRU:
    case ZYDIS_MNEMONIC_VMCALL: case ZYDIS_MNEMONIC_VMMCALL: case ZYDIS_MNEMONIC_VMFUNC: return true;
    default: break;
    }
    if (z->attributes & (ZYDIS_ATTRIB_HAS_SEGMENT_FS | ZYDIS_ATTRIB_HAS_SEGMENT_GS))
        return true;
    for (unsigned i = 0; i < z->operand_count; i++)
        if (op[i].type == ZYDIS_OPERAND_TYPE_REGISTER) {
            ZydisRegisterClass c = ZydisRegisterGetClass(op[i].reg.value);
            if (c == ZYDIS_REGCLASS_SEGMENT || c == ZYDIS_REGCLASS_CONTROL || c == ZYDIS_REGCLASS_DEBUG ||
                c == ZYDIS_REGCLASS_TEST)
                return true;
        }
    return (z->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR);
}

static bool own_stack(const ZydisDecodedInstruction *z)
{
    return z->mnemonic == ZYDIS_MNEMONIC_CALL || z->mnemonic == ZYDIS_MNEMONIC_RET;
}

// Rule 2.
static void check_memory(struct verifier *s, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *o)
{
    const ZydisDecodedOperandMem *m = &o->mem;
    uint64_t size = o->size / 8u;
    int64_t disp = m->disp.has_displacement ? m->disp.value : 0;
    bool writes = o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;

    if (m->type == ZYDIS_MEMOP_TYPE_AGEN) // LEA and multi-byte NOP
        return;
    rule(z->address_width == 64, "a 32-bit address");
    if (m->base == ZYDIS_REGISTER_RIP) {
        uint64_t address = s->b->code + s->at + z->length + (uint64_t)disp;
        rule(size && own_field(s, address, size), "a RIP-relative operand outside the engine's fields");
        if (z->mnemonic == ZYDIS_MNEMONIC_MOV && writes && address == (uint64_t)&s->d->slow_info)
            s->slow_info = (uint32_t)z->raw.imm[0].value.u;
        return;
    }
    if (m->base == ZYDIS_REGISTER_NONE && m->index == ZYDIS_REGISTER_RDI) {
        const uint64_t *table = indexed_table(s, (uint64_t)disp);
        bool write_tag;
        rule(table && m->scale == 8 && size == 8 && !writes, "an indexed operand outside the engine's tables");
        if (z->mnemonic == ZYDIS_MNEMONIC_SUB && is_tag(s, table, &write_tag)) {
            s->tag = table;
            s->checked = 0;
        }
        return;
    }
    if (m->base == ZYDIS_REGISTER_RSP) {
        rule(own_stack(z) && o->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN, "an operand on the return stack");
        return;
    }
    rule(m->base == ZYDIS_REGISTER_RDI && disp == 0 &&
             (m->index == ZYDIS_REGISTER_NONE || (m->index == ZYDIS_REGISTER_RBP && m->scale == 1)),
         "an operand that is not [T1 + T0]");
    rule(size > 0, "an operand of unknown size");
    rule(size <= s->checked, "an operand larger than what was checked");
    rule(!writes || s->may_write, "a write that was checked for reading");
}

static void track_checks(struct verifier *s, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *op)
{
    bool write_tag;
    if (z->mnemonic == ZYDIS_MNEMONIC_CMP && s->tag && op[0].type == ZYDIS_OPERAND_TYPE_REGISTER &&
        op[0].reg.value == ZYDIS_REGISTER_RBP && z->raw.imm[0].size) {
        uint64_t limit = z->raw.imm[0].value.u;
        rule(limit <= PAGE_SIZE, "a check beyond the page");
        s->compared = (uint32_t)limit;
        return;
    }
    // The branch of the check: JA, taken to the cold part.
    if (z->mnemonic == ZYDIS_MNEMONIC_JNBE && s->tag && s->compared <= PAGE_SIZE) {
        rule(is_tag(s, s->tag, &write_tag), "a comparison with no tag");
        s->checked = (unsigned)PAGE_SIZE - s->compared;
        s->may_write = write_tag;
        s->tag = NULL;
    }
}

static bool stub(const struct dbt *d, uint64_t target)
{
    return target >= d->stubs_begin && target < d->stubs_end;
}

// Rule 3.
static void check_branch(struct verifier *s, const ZydisDecodedInstruction *z)
{
    uint64_t next = s->b->code + s->at + z->length, target = next + (uint64_t)z->raw.imm[0].value.s;

    if (!z->raw.imm[0].is_relative)
        return; // RET, or through a table that check_memory() has seen
    if (stub(s->d, target)) {
        if (z->mnemonic == ZYDIS_MNEMONIC_CALL && target == s->d->stub_bounce) {
            s->checked = SLOW_SIZE(s->slow_info);
            s->may_write = s->slow_info & SLOW_WRITE;
        }
        return;
    }
    if (target >= s->b->code && target < (uint64_t)s->b->code + s->b->code_len) {
        rule(s->target_count < sizeof s->targets / sizeof s->targets[0], "more branches than a block can have");
        s->targets[s->target_count++] = (uint32_t)(target - s->b->code);
        return;
    }
    for (unsigned i = 0; i < s->b->exit_count; i++) {
        const struct exit *e = &s->b->exits[i];
        if (e->kind == EXIT_NEAR && e->to && e->to->code == target && e->site + 4 == next)
            return;
    }
    rule(false, "a branch out of the block");
}

static bool starts(const struct verifier *s, uint32_t offset)
{
    return s->starts[offset / 8] >> offset % 8 & 1;
}

static void check_map(struct verifier *s) // rule 4
{
    const struct block *b = s->b;
    rule(b->map_count == b->insn_count && b->map_count >= 1 && b->map_count <= 64, "the number of map entries");
    for (unsigned i = 0; i < b->map_count; i++) {
        const struct map_entry *m = &b->map[i];
        s->at = m->host;
        rule(m->host < b->code_len && starts(s, m->host), "a map entry inside an instruction");
        rule(m->guest < b->guest_len, "a map entry behind the guest's code");
        rule(i ? m->guest > m[-1].guest && m->host >= m[-1].host : m->guest == 0 && m->host == 0, "the order of map entries");
        rule(!i || m->guest - m[-1].guest <= 15, "a guest instruction longer than 15 bytes");
    }
    rule(b->guest_len - b->map[b->map_count - 1].guest <= 15, "a last guest instruction longer than 15 bytes");
}

static void check_exits(struct verifier *s)
{
    const struct block *b = s->b;
    rule(b->exit_count <= 2, "the number of exits");
    rule(b->code_parked - b->code < b->code_len && starts(s, b->code_parked - b->code), "the way in for parked flags");
    for (unsigned i = 0; i < b->exit_count; i++) {
        const struct exit *e = &b->exits[i];
        rule(e->from == b && e->cold - b->code < b->code_len && starts(s, e->cold - b->code), "an exit's cold part");
        if (e->kind == EXIT_NEAR)
            rule(e->site - b->code <= b->code_len - 4, "an exit's patch site");
        else
            rule(within(e->site, 8, s->d->slots, SLOT_COUNT * 8) && e->site % 8 == 0, "an exit's slot");
        if (e->kind == EXIT_FAR)
            claim(*(uint64_t *)(uint64_t)e->site == (e->to ? e->to->code_parked : e->cold), "a slot leads to %llx, its exit to %x",
                  (unsigned long long)*(uint64_t *)(uint64_t)e->site, e->to ? e->to->code_parked : e->cold);
    }
}

static void check_ranges(struct verifier *s)
{
    const struct block *b = s->b;
    rule(b->range_count >= 1 && b->range_count <= 4, "the number of ranges");
    for (unsigned i = 0; i < b->range_count; i++)
        rule((b->range[i].gpa & (PAGE_SIZE - 1)) + b->range[i].len <= PAGE_SIZE, "a range across pages");
    uint64_t own = b->range[0].len + (b->straddles ? b->range[1].len : 0);
    rule(own == b->guest_len, "the length of the block's own range");
}

void core_verify_block(const struct dbt *d, const struct block *b)
{
    static struct verifier v; // too large for the stack
    struct verifier *s = &v;
    ZydisDecoder decoder;
    unsigned next_map = 0;

    memset(s, 0, sizeof *s);
    s->d = d;
    s->b = b;
    ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    rule(b->code >= d->rx + d->cache_stubs && (uint64_t)b->code + b->code_len <= d->rx + d->cache_size && b->code_len <= MAX_CODE,
         "code outside the cache");
    while (s->at < b->code_len) {
        ZydisDecodedInstruction z;
        ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
        const uint8_t *p = (const uint8_t *)(uint64_t)b->code + s->at;
        if (next_map < b->map_count && b->map[next_map].host == s->at) {
            next_map++;
            s->checked = 0;
            s->tag = NULL;
        }
        rule(ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, p, b->code_len - s->at, &z, op)),
             "an undecodable instruction");
        s->starts[s->at / 8] |= (uint8_t)(1u << s->at % 8);
        rule(!forbidden(&z, op), ZydisMnemonicGetString(z.mnemonic));
        track_checks(s, &z, op);
        for (unsigned i = 0; i < z.operand_count; i++)
            if (op[i].type == ZYDIS_OPERAND_TYPE_MEMORY)
                check_memory(s, &z, &op[i]);
        if (z.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE)
            check_branch(s, &z);
        s->at += z.length;
    }
    for (unsigned i = 0; i < s->target_count; i++) {
        s->at = s->targets[i];
        rule(starts(s, s->at), "a branch into an instruction");
    }
    check_map(s);
    check_exits(s);
    check_ranges(s);
}

void core_verify_cache(const struct dbt *d)
{
    for (uint32_t i = 0; i < d->block_count; i++) {
        const struct block *b = d->blocks[i];
        claim(!i || d->blocks[i - 1]->code < b->code, "block %u is not behind its predecessor", i);
        if (b->dead) {
            claim(!b->incoming, "something still leads to a dead block, rip %llx", (unsigned long long)b->rip);
            for (unsigned e = 0; e < b->exit_count; e++)
                claim(!b->exits[e].to, "a dead block still leads somewhere, rip %llx", (unsigned long long)b->rip);
            continue;
        }
        for (const struct exit *e = b->incoming; e; e = e->incoming_next)
            claim(e->to == b && !e->from->dead, "a link to rip %llx that is not", (unsigned long long)b->rip);
        for (unsigned n = 0; n < b->range_count; n++) {
            struct mem_slot slot = mem_find(d->v->mem, b->range[n].gpa);
            if (slot.kind != MEM_RAM || !b->range[n].len)
                continue;
            const struct page_link *l = d->pages[slot.ram_page];
            while (l && l->block != b)
                l = l->next;
            claim(l, "a live block is not on the list of its page, rip %llx", (unsigned long long)b->rip);
            claim(mem_trace_bits(d->v->mem, slot.ram_page) & TRACE_CODE, "a page with code is not traced, rip %llx",
                  (unsigned long long)b->rip);
        }
    }
}
