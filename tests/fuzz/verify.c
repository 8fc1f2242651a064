// A verifier of translated code, independent of what made it: host code is decoded from its first byte to its last, and each
// instruction must be one that cannot leave the guest's machine.
//
//  1. No instruction that enters the host kernel, reads or writes host state that is not the guest's (segment registers,
//     descriptor tables, control state, CPUID, IF, DF; the TSC without the guest's offset), or jumps far.
//  2. Memory is reached as policy `checked` says (dbt/operand.c, dbt/merge.c): an operand must lie in a range that a check
//     has covered, with the write tags if it is written. To know where it lies, values are followed through the host's
//     registers and the engine's fields as symbol + constant: what is not understood is a new symbol, of which nothing is
//     checked. Besides there are the tables of TLB and indirect branches, indexed by T1, the vCPU's and the translator's own
//     fields by displacement, and the return stack for CALL and RET alone. MOVS and STOS are one access of as many elements as
//     were compared with what is left of the page, upwards.
//  3. Direct branches lead to the start of an instruction in this block, to a stub, or to the block the exit is linked to.
//  4. The map's host offsets are such starts, in order, and its guest offsets ascend within the guest's bytes.
#include "tests/fuzz/core.h"
#include "tests/fuzz/fuzz.h"

#define MAX_CODE (256u << 10)

enum kind {
    PLAIN, // symbol + offset
    REST,  // symbol + offset less the tag it is being compared with: offset in the page
    PAGE,  // host address of the page that belongs to a REST
    HOST,  // host address of symbol + offset
    DELTA, // host address less guest address, for every address in its range
    MINUS, // a checked REST, negated
    LEFT,  // elements of 1 << shift bytes from symbol + offset to the page's end
};

struct value {
    enum kind kind;
    uint32_t symbol;
    int64_t offset;
    int64_t first, end; // of what was checked, relative to the symbol; REST, HOST, DELTA
    bool may_write;
    bool constant; // a number of the translator's
    uint8_t shift;
};

struct fit { // that many elements of 1 << shift bytes at symbol + offset are within the page: one, or RCX
    uint32_t symbol;
    int64_t offset;
    uint8_t shift;
    bool counted;
};

struct field { // a value kept in one of the engine's fields
    uint64_t address;
    struct value value;
};

struct verifier {
    const struct dbt *d;
    const struct block *b;
    uint8_t starts[MAX_CODE / 8]; // bit: an instruction begins here
    uint32_t targets[8192];       // offsets of branches within the block
    unsigned target_count;
    uint32_t at;       // offset being looked at
    struct value reg[16];
    struct field field[64];
    unsigned field_count;
    uint32_t symbols;
    const uint64_t *tag; // the tag table last compared with
    uint32_t compared;   // the immediate of its comparison
    uint32_t slow_info;
    uint64_t constant_compared, constant_tag; // entry of a tag table that a constant was compared with, and found equal to
    uint32_t constant_symbol;
    bool constant_write;
    struct fit comparing;                                // what holds if the branch behind the comparison is not taken; symbol 0: nothing
    struct fit fit[4];
    unsigned fit_count;
    bool compares_direction, upwards; // the guest's DF; it is known to be clear
    unsigned owed_offset; // instructions left in which the guest's offset must be added to the host's TSC
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
        if (address == (uint64_t)set->addend)
            return set->addend;
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

// The table of the TLB that an address is an entry of.
static const uint64_t *entry_of(const struct verifier *s, uint64_t address, unsigned *index)
{
    for (unsigned k = 0; k < TLB_KINDS; k++) {
        const struct tlb_set *set = &s->d->v->tlb->set[k];
        const uint64_t *tables[] = {set->read_tag, set->write_tag, set->host_page};
        for (unsigned i = 0; i < 3; i++)
            if (within(address, 8, tables[i], sizeof set->read_tag)) {
                if (index)
                    *index = (unsigned)((address - (uint64_t)tables[i]) / 8);
                return tables[i];
            }
    }
    return NULL;
}

static bool is_string(const ZydisDecodedInstruction *z) { return z->meta.category == ZYDIS_CATEGORY_STRINGOP; }

// Rule 1.
static bool forbidden(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *op)
{
    if (z->mnemonic == ZYDIS_MNEMONIC_RDTSC)
        return false;
    switch (z->meta.category) {
    case ZYDIS_CATEGORY_SYSTEM:
    case ZYDIS_CATEGORY_SYSCALL:
    case ZYDIS_CATEGORY_SYSRET:
    case ZYDIS_CATEGORY_INTERRUPT:
    case ZYDIS_CATEGORY_IO:
    case ZYDIS_CATEGORY_IOSTRINGOP:
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
    case ZYDIS_MNEMONIC_CPUID: case ZYDIS_MNEMONIC_RDTSCP: case ZYDIS_MNEMONIC_RDPMC:
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
    if (is_string(z) && z->opcode != 0xa4 && z->opcode != 0xa5 && z->opcode != 0xaa && z->opcode != 0xab) // MOVS, STOS
        return true;
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

// ---- rule 2
static struct value fresh(struct verifier *s)
{
    return (struct value){.kind = PLAIN, .symbol = ++s->symbols};
}

static struct value *gpr(struct verifier *s, ZydisRegister r)
{
    return ZydisRegisterGetClass(r) == ZYDIS_REGCLASS_GPR64 ? &s->reg[ZydisRegisterGetId(r) & 15] : NULL;
}

static struct value *find_field(struct verifier *s, uint64_t address)
{
    for (unsigned i = 0; i < s->field_count; i++)
        if (s->field[i].address == address)
            return &s->field[i].value;
    return NULL;
}

static void forget_fields(struct verifier *s, uint64_t address, uint64_t size)
{
    for (unsigned i = s->field_count; i-- > 0;)
        if (s->field[i].address < address + size && address < s->field[i].address + 8)
            s->field[i] = s->field[--s->field_count];
}

static uint64_t rip_address(const struct verifier *s, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *o)
{
    return s->b->code + s->at + z->length + (uint64_t)o->mem.disp.value;
}

static void check_range(struct verifier *s, const struct value *v, int64_t first, uint64_t size, bool writes)
{
    rule(first >= v->first && first + (int64_t)size <= v->end, "an operand outside what was checked");
    rule(!writes || v->may_write, "a write that was checked for reading");
}

static void check_guest_memory(struct verifier *s, const ZydisDecodedOperand *o)
{
    const ZydisDecodedOperandMem *m = &o->mem;
    const struct value *base = gpr(s, m->base), *index = m->index == ZYDIS_REGISTER_NONE ? NULL : gpr(s, m->index);
    int64_t disp = m->disp.has_displacement ? m->disp.value : 0;
    uint64_t size = o->size / 8u;
    bool writes = o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;

    rule(size > 0, "an operand of unknown size");
    rule(base && m->base == ZYDIS_REGISTER_RDI && (!index || m->scale == 1), "an operand not based on T1");
    if (base->kind == HOST && !index) {
        check_range(s, base, base->offset + disp, size, writes);
    } else if (base->kind == PAGE && index && index->kind == REST && index->symbol == base->symbol) {
        check_range(s, index, index->offset + disp, size, writes);
    } else {
        rule(base->kind == DELTA && index && index->kind == PLAIN && index->symbol == base->symbol, "an operand that was not checked");
        check_range(s, base, index->offset + disp, size, writes);
    }
}

static void check_elements(struct verifier *s, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *o)
{
    const struct value *v = gpr(s, o->mem.base);
    bool repeats = z->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE), fits = false;

    rule(z->address_width == 64, "a 32-bit address");
    rule(s->upwards, "a string instruction in an unknown direction");
    rule(v && v->kind == HOST, "elements at an address that was not checked");
    rule(v->may_write || !(o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE), "a write that was checked for reading");
    rule(v->offset == v->first && v->end > v->first, "elements outside what was checked");
    for (unsigned i = 0; i < s->fit_count; i++) {
        const struct fit *f = &s->fit[i];
        fits |= f->symbol == v->symbol && f->offset == v->offset && 8u << f->shift == o->size && f->counted == repeats;
    }
    rule(fits, "more elements than are left in the page");
}

static void check_memory(struct verifier *s, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *o)
{
    const ZydisDecodedOperandMem *m = &o->mem;
    uint64_t size = o->size / 8u;
    bool writes = o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;

    if (m->type == ZYDIS_MEMOP_TYPE_AGEN) // LEA and multi-byte NOP
        return;
    if (is_string(z)) {
        check_elements(s, z, o);
        return;
    }
    rule(z->address_width == 64, "a 32-bit address");
    if (m->base == ZYDIS_REGISTER_RIP) {
        uint64_t address = rip_address(s, z, o);
        bool constant = !writes && within(address, size, (const void *)(uint64_t)s->b->code, s->b->code_len);
        rule(size && (constant || own_field(s, address, size)), "a RIP-relative operand outside the engine's fields");
        if (address == (uint64_t)&s->d->v->s.tsc_offset)
            s->owed_offset = 0;
        if (z->mnemonic == ZYDIS_MNEMONIC_MOV && writes && address == (uint64_t)&s->d->slow_info)
            s->slow_info = (uint32_t)z->raw.imm[0].value.u;
    } else if (m->base == ZYDIS_REGISTER_NONE && m->index == ZYDIS_REGISTER_NONE && size == 8 && !writes) {
        rule(entry_of(s, (uint64_t)m->disp.value, NULL), "an absolute operand outside the engine's tables");
    } else if (m->base == ZYDIS_REGISTER_NONE && m->index == ZYDIS_REGISTER_RDI) {
        rule(indexed_table(s, (uint64_t)m->disp.value) && m->scale == 8 && size == 8 && !writes,
             "an indexed operand outside the engine's tables");
    } else if (m->base == ZYDIS_REGISTER_RSP) {
        rule(own_stack(z) && o->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN, "an operand on the return stack");
    } else {
        check_guest_memory(s, o);
    }
}

// The value of base + index + disp, where one is known.
static struct value sum(struct verifier *s, const struct value *base, const struct value *index, int64_t disp)
{
    struct value v;
    if (base && !index && (base->kind == PLAIN || base->kind == HOST)) {
        v = *base;
        v.offset += disp;
        return v;
    }
    if (base && index && base->kind == PAGE && index->kind == REST && index->symbol == base->symbol && !disp) {
        v = *index;
        v.kind = HOST;
        return v;
    }
    if (base && index && base->kind == DELTA && index->kind == PLAIN && index->symbol == base->symbol) {
        v = *base;
        v.kind = HOST;
        v.offset = index->offset + disp;
        return v;
    }
    return fresh(s);
}

// What a 64-bit register gets, for the instructions that are followed.
static bool follow(struct verifier *s, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *op, struct value *out)
{
    struct value *to = op[0].type == ZYDIS_OPERAND_TYPE_REGISTER ? gpr(s, op[0].reg.value) : NULL, *from;
    const ZydisDecodedOperandMem *m = &op[1].mem;
    bool write_tag;

    if (!to)
        return false;
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_MOV:
        if (op[1].type == ZYDIS_OPERAND_TYPE_REGISTER && gpr(s, op[1].reg.value)) {
            *out = *gpr(s, op[1].reg.value);
            return true;
        }
        if (op[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
            *out = fresh(s);
            out->constant = true;
            return true;
        }
        if (op[1].type != ZYDIS_OPERAND_TYPE_MEMORY)
            return false;
        if (m->base == ZYDIS_REGISTER_RIP) {
            uint64_t address = rip_address(s, z, &op[1]);
            from = find_field(s, address);
            if (!from && s->field_count < sizeof s->field / sizeof s->field[0]) {
                s->field[s->field_count] = (struct field){address, fresh(s)};
                from = &s->field[s->field_count++].value;
            }
            if (from)
                *out = *from;
            return from;
        }
        if (m->base == ZYDIS_REGISTER_NONE && m->index == ZYDIS_REGISTER_NONE) {
            unsigned tag_index, page_index;
            const uint64_t *tag = entry_of(s, s->constant_tag, &tag_index), *page = entry_of(s, (uint64_t)m->disp.value, &page_index);
            for (unsigned k = 0; k < TLB_KINDS; k++) {
                const struct tlb_set *set = &s->d->v->tlb->set[k];
                if (page == set->host_page && tag_index == page_index && (tag == set->read_tag || tag == set->write_tag)) {
                    *out = fresh(s);
                    out->kind = PAGE;
                    s->constant_symbol = out->symbol;
                    s->constant_write = tag == set->write_tag;
                    return true;
                }
            }
            return false;
        }
        if (m->base == ZYDIS_REGISTER_NONE) {
            const uint64_t *table = indexed_table(s, (uint64_t)m->disp.value);
            for (unsigned k = 0; k < TLB_KINDS; k++)
                if (table == s->d->v->tlb->set[k].host_page && s->reg[T0].kind == REST) {
                    *out = (struct value){.kind = PAGE, .symbol = s->reg[T0].symbol};
                    return true;
                } else if (table == s->d->v->tlb->set[k].addend && s->reg[T0].kind == REST) {
                    *out = s->reg[T0];
                    out->kind = DELTA;
                    return true;
                }
        }
        return false;
    case ZYDIS_MNEMONIC_LEA:
        if (m->scale > 1 || (m->base != ZYDIS_REGISTER_NONE && !gpr(s, m->base)) || z->address_width != 64)
            return false;
        *out = sum(s, gpr(s, m->base), m->index == ZYDIS_REGISTER_NONE ? NULL : gpr(s, m->index),
                   m->disp.has_displacement ? m->disp.value : 0);
        return true;
    case ZYDIS_MNEMONIC_INC:
    case ZYDIS_MNEMONIC_DEC:
        if (to->kind != PLAIN)
            return false;
        *out = *to;
        out->offset += z->mnemonic == ZYDIS_MNEMONIC_INC ? 1 : -1;
        return true;
    case ZYDIS_MNEMONIC_NEG:
        if (to->kind != REST || to->end <= to->first || to->offset != to->first)
            return false;
        *out = *to;
        out->kind = MINUS;
        return true;
    case ZYDIS_MNEMONIC_SHR:
        if (to->kind != LEFT || to->shift || op[1].type != ZYDIS_OPERAND_TYPE_IMMEDIATE || op[1].imm.value.u > 3)
            return false;
        *out = *to;
        out->shift = (uint8_t)op[1].imm.value.u;
        return true;
    case ZYDIS_MNEMONIC_ADD:
    case ZYDIS_MNEMONIC_SUB:
        if (z->mnemonic == ZYDIS_MNEMONIC_ADD && op[1].type == ZYDIS_OPERAND_TYPE_REGISTER && gpr(s, op[1].reg.value) && to->kind == PAGE) {
            *out = sum(s, to, gpr(s, op[1].reg.value), 0);
            return true;
        }
        if (z->mnemonic == ZYDIS_MNEMONIC_ADD && op[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE && to->kind == MINUS &&
            op[1].imm.value.s == PAGE_SIZE) {
            *out = *to;
            out->kind = LEFT;
            out->shift = 0;
            return true;
        }
        if (op[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE && to->kind == PLAIN) {
            *out = *to;
            out->offset += z->mnemonic == ZYDIS_MNEMONIC_ADD ? op[1].imm.value.s : -op[1].imm.value.s;
            return true;
        }
        if (z->mnemonic == ZYDIS_MNEMONIC_SUB && op[1].type == ZYDIS_OPERAND_TYPE_MEMORY && m->index == ZYDIS_REGISTER_RDI &&
            op[0].reg.value == ZYDIS_REGISTER_RBP && (to->kind == PLAIN || (to->kind == REST && to->constant))) {
            const uint64_t *table = indexed_table(s, (uint64_t)m->disp.value);
            if (!table || !is_tag(s, table, &write_tag))
                return false;
            s->tag = table;
            *out = to->kind == REST ? fresh(s) : *to; // taken for an offset in a page, which it was not
            out->kind = REST;
            out->first = out->end = 0; // nothing is checked yet
            return true;
        }
        return false;
    default: return false;
    }
}

// Comparisons of RCX with what is left of a page, of what is left with 0, and of the guest's DF with 0: what follows where the
// branch right behind them, to the instruction done otherwise, is not taken.
static void track_elements(struct verifier *s, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *op)
{
    struct fit behind = s->comparing;
    bool direction = s->compares_direction;
    const struct value *left = &s->reg[T0];

    s->comparing.symbol = 0;
    s->compares_direction = false;
    for (unsigned i = 0; i < z->operand_count; i++) // another RCX
        if (op[i].type == ZYDIS_OPERAND_TYPE_REGISTER && op[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE &&
            ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, op[i].reg.value) == ZYDIS_REGISTER_RCX)
            s->fit_count = 0;
    if (z->mnemonic == ZYDIS_MNEMONIC_MOV && op[0].type == ZYDIS_OPERAND_TYPE_MEMORY && op[0].mem.base == ZYDIS_REGISTER_RIP &&
        rip_address(s, z, &op[0]) == (uint64_t)&s->d->v->s.dflag)
        s->upwards = false;
    if (z->mnemonic == ZYDIS_MNEMONIC_CMP && op[0].type == ZYDIS_OPERAND_TYPE_REGISTER && op[0].reg.value == ZYDIS_REGISTER_RCX &&
        op[1].type == ZYDIS_OPERAND_TYPE_REGISTER && op[1].reg.value == ZYDIS_REGISTER_RBP && left->kind == LEFT)
        s->comparing = (struct fit){left->symbol, left->offset, left->shift, true};
    else if (z->mnemonic == ZYDIS_MNEMONIC_TEST && op[0].type == ZYDIS_OPERAND_TYPE_REGISTER && op[0].reg.value == ZYDIS_REGISTER_RBP &&
             op[1].type == ZYDIS_OPERAND_TYPE_REGISTER && op[1].reg.value == ZYDIS_REGISTER_RBP && left->kind == LEFT)
        s->comparing = (struct fit){left->symbol, left->offset, left->shift, false};
    else if (z->mnemonic == ZYDIS_MNEMONIC_CMP && op[0].type == ZYDIS_OPERAND_TYPE_MEMORY && op[0].size == 8 &&
             op[0].mem.base == ZYDIS_REGISTER_RIP && rip_address(s, z, &op[0]) == (uint64_t)&s->d->v->s.dflag &&
             op[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE && op[1].imm.value.u == 0)
        s->compares_direction = true;
    else if (z->mnemonic == (behind.counted ? ZYDIS_MNEMONIC_JNBE : ZYDIS_MNEMONIC_JZ) && behind.symbol &&
             s->fit_count < sizeof s->fit / sizeof s->fit[0])
        s->fit[s->fit_count++] = behind;
    else if (z->mnemonic == ZYDIS_MNEMONIC_JNZ && direction)
        s->upwards = true;
}

static void track_check(struct verifier *s, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *op)
{
    struct value *rest = &s->reg[T0];
    if (z->mnemonic == ZYDIS_MNEMONIC_CMP && op[0].type == ZYDIS_OPERAND_TYPE_MEMORY && op[0].mem.base == ZYDIS_REGISTER_NONE &&
        op[0].mem.index == ZYDIS_REGISTER_NONE) {
        const struct value *against = op[1].type == ZYDIS_OPERAND_TYPE_REGISTER ? gpr(s, op[1].reg.value) : NULL;
        s->constant_compared = op[1].type == ZYDIS_OPERAND_TYPE_REGISTER && !(against && against->constant) ? 0 : (uint64_t)op[0].mem.disp.value;
    } else if (z->mnemonic == ZYDIS_MNEMONIC_JNZ && s->constant_compared) { // taken to the cold part
        s->constant_tag = s->constant_compared;
        s->constant_compared = 0;
        return;
    }
    if (z->mnemonic == ZYDIS_MNEMONIC_CMP && s->tag && op[0].type == ZYDIS_OPERAND_TYPE_REGISTER &&
        op[0].reg.value == ZYDIS_REGISTER_RBP && z->raw.imm[0].size) {
        rule(z->raw.imm[0].value.u <= PAGE_SIZE, "a check beyond the page");
        s->compared = (uint32_t)z->raw.imm[0].value.u;
    } else if (z->mnemonic == ZYDIS_MNEMONIC_JNBE && s->tag && rest->kind == REST) { // taken to the cold part
        is_tag(s, s->tag, &rest->may_write);
        rest->first = rest->offset;
        rest->end = rest->offset + (int64_t)(PAGE_SIZE - s->compared);
        s->tag = NULL;
    }
}

// What the instruction leaves in registers and fields.
static void track(struct verifier *s, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *op)
{
    struct value v;
    bool known = follow(s, z, op, &v), store = z->mnemonic == ZYDIS_MNEMONIC_MOV && op[0].type == ZYDIS_OPERAND_TYPE_MEMORY &&
                                              op[0].mem.base == ZYDIS_REGISTER_RIP && op[0].size == 64 &&
                                              op[1].type == ZYDIS_OPERAND_TYPE_REGISTER;
    for (unsigned i = 0; i < z->operand_count; i++) {
        const ZydisDecodedOperand *o = &op[i];
        if (!(o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
            continue;
        if (o->type == ZYDIS_OPERAND_TYPE_MEMORY && o->mem.base == ZYDIS_REGISTER_RIP) {
            struct value *field = find_field(s, rip_address(s, z, o));
            if (field && field->kind == PLAIN && o->size == 64 && op[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE &&
                (z->mnemonic == ZYDIS_MNEMONIC_ADD || z->mnemonic == ZYDIS_MNEMONIC_SUB))
                field->offset += z->mnemonic == ZYDIS_MNEMONIC_ADD ? op[1].imm.value.s : -op[1].imm.value.s;
            else
                forget_fields(s, rip_address(s, z, o), o->size / 8u);
        } else if (o->type == ZYDIS_OPERAND_TYPE_REGISTER && (i || !known)) {
            ZydisRegister whole = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, o->reg.value);
            if (!gpr(s, whole))
                continue;
            *gpr(s, whole) = fresh(s);
            gpr(s, whole)->constant = z->mnemonic == ZYDIS_MNEMONIC_MOV && o->size == 32 && op[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
        }
    }
    if (known)
        *gpr(s, op[0].reg.value) = v;
    if (store && gpr(s, op[1].reg.value) && s->field_count < sizeof s->field / sizeof s->field[0])
        s->field[s->field_count++] = (struct field){rip_address(s, z, &op[0]), *gpr(s, op[1].reg.value)};
    track_check(s, z, op);
    track_elements(s, z, op);
    // An offset in the page of a constant address follows the page.
    if (z->mnemonic == ZYDIS_MNEMONIC_MOV && op[0].type == ZYDIS_OPERAND_TYPE_REGISTER && op[0].reg.value == ZYDIS_REGISTER_EBP &&
        op[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE && s->reg[T1].kind == PAGE && s->reg[T1].symbol == s->constant_symbol)
        s->reg[T0] = (struct value){.kind = REST, .symbol = s->constant_symbol, .offset = (int64_t)op[1].imm.value.u,
                                    .end = PAGE_SIZE, .may_write = s->constant_write, .constant = true};
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
            struct value rest = fresh(s);
            rest.kind = REST;
            rest.end = SLOW_SIZE(s->slow_info);
            rest.may_write = s->slow_info & SLOW_WRITE;
            s->reg[T0] = rest;
            s->reg[T1] = (struct value){.kind = PAGE, .symbol = rest.symbol};
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
        if (e->kind == EXIT_NEAR && e->to && LOW(struct block, e->to)->code == target && e->site + 4 == next)
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
    rule(b->exit_count <= MAX_EXITS, "the number of exits");
    rule(b->code_parked - b->code < b->code_len && starts(s, b->code_parked - b->code), "the way in for parked flags");
    for (unsigned i = 0; i < b->exit_count; i++) {
        const struct exit *e = &b->exits[i];
        rule(exit_block(e) == b && e->cold - b->code < b->code_len && starts(s, e->cold - b->code), "an exit's cold part");
        if (e->kind == EXIT_NEAR)
            rule(e->site - b->code <= b->code_len - 4, "an exit's patch site");
        else
            rule(within(e->site, 8, s->d->slots, SLOT_COUNT * 8) && e->site % 8 == 0, "an exit's slot");
        if (e->kind != EXIT_FAR)
            continue;
        const struct block *to = LOW(struct block, e->to);
        uint64_t leads_to = *(uint64_t *)(uint64_t)e->site, should = !to ? e->cold : e->at_out == OUT_PARKED ? to->code_parked : to->code;
        claim(leads_to == should, "a slot leads to %llx, its exit to %llx", (unsigned long long)leads_to, (unsigned long long)should);
    }
}

static void check_ranges(struct verifier *s)
{
    const struct block *b = s->b;
    rule(b->range_count >= 1 && b->range_count <= MAX_RANGES, "the number of ranges");
    for (unsigned i = 0; i < b->range_count; i++)
        rule((b->range[i].gpa & (PAGE_SIZE - 1)) + b->range[i].len <= PAGE_SIZE, "a range across pages");
    uint64_t own = b->range[0].len + (b->straddles ? b->range[1].len : 0);
    rule(own >= b->guest_len, "the length of the block's own range");
}

static void forget_all(struct verifier *s)
{
    for (unsigned i = 0; i < 16; i++)
        s->reg[i] = fresh(s);
    s->field_count = 0;
    s->constant_compared = s->constant_tag = 0;
    s->tag = NULL;
    s->fit_count = 0;
    s->upwards = false;
}

void core_verify_block(const struct dbt *d, const struct block *b)
{
    static struct verifier v; // too large for the stack
    struct verifier *s = &v;
    ZydisDecoder decoder;

    memset(s, 0, sizeof *s);
    s->d = d;
    s->b = b;
    for (unsigned i = 0; i < 16; i++)
        s->reg[i] = fresh(s);
    ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    rule(b->code >= d->rx + d->cache_stubs && (uint64_t)b->code + b->code_len <= d->rx + d->cache_size && b->code_len <= MAX_CODE,
         "code outside the cache");
    while (s->at < b->code_len) {
        ZydisDecodedInstruction z;
        ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
        const uint8_t *p = (const uint8_t *)(uint64_t)b->code + s->at;
        rule(ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, p, b->code_len - s->at, &z, op)),
             "an undecodable instruction");
        s->starts[s->at / 8] |= (uint8_t)(1u << s->at % 8);
        rule(!forbidden(&z, op), ZydisMnemonicGetString(z.mnemonic));
        for (unsigned i = 0; i < z.operand_count; i++)
            if (op[i].type == ZYDIS_OPERAND_TYPE_MEMORY)
                check_memory(s, &z, &op[i]);
        track(s, &z, op);
        if (s->owed_offset)
            rule(--s->owed_offset, "the host's TSC as it is");
        if (z.mnemonic == ZYDIS_MNEMONIC_RDTSC)
            s->owed_offset = 8;
        if (z.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE)
            check_branch(s, &z);
        if (z.mnemonic == ZYDIS_MNEMONIC_CALL && !stub(d, b->code + s->at + z.length + (uint64_t)z.raw.imm[0].value.s))
            forget_all(s); // it comes back from other blocks
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
    const struct block *b, *before = NULL;
    for (uint32_t i = 0; (b = cache_block(d, i)); before = b, i++) {
        claim(!before || before->code < b->code, "block %u is not behind its predecessor", i);
        claim(cache_block_at((struct dbt *)d, b->code) == b, "block %u is not found by its code", i);
        if (b->dead) {
            claim(!b->incoming, "something still leads to a dead block, rip %llx", (unsigned long long)b->rip);
            for (unsigned e = 0; e < b->exit_count; e++)
                claim(!b->exits[e].to, "a dead block still leads somewhere, rip %llx", (unsigned long long)b->rip);
            continue;
        }
        for (const struct exit *e = LOW(struct exit, b->incoming); e; e = LOW(struct exit, e->incoming_next))
            claim(LOW(struct block, e->to) == b && !exit_block(e)->dead, "a link to rip %llx that is not", (unsigned long long)b->rip);
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
