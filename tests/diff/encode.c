// Makes random instances of forms: random bytes behind the form's opcode, decoded again to learn what they
// mean. The decoded operands say which registers must hold which addresses; those demands go into the initial
// state or into MOVs before the instruction.
#include "tests/diff/encode.h"
#include <string.h>

void encoder_init(struct encoder *e, const struct form_table *forms)
{
    *e = (struct encoder){.forms = forms, .mode = forms->mode, .keep = ANY_UNIT};
    forms_decoder(&e->decoder, e->mode);
}

uint64_t interesting_value(struct rng *r)
{
    uint64_t x = rng_next(r);
    switch (rng_below(r, 8)) {
    case 0: return x & 0xff;
    case 1: return (uint64_t)(int8_t)x;
    case 2: { // one bit, or one bit less one, or its negative
        uint64_t v = 1ull << (x & 63);
        return x & 0x40 ? v - 1 : x & 0x80 ? ~v + 1 : v;
    }
    case 3: { // edges of 8, 16, 32 and 64 bits
        static const uint64_t edge[] = {0,
                                        1,
                                        ~0ull,
                                        0x7f,
                                        0x80,
                                        0xff,
                                        0x7fff,
                                        0x8000,
                                        0xffff,
                                        0x7fffffff,
                                        0x80000000,
                                        0xffffffff,
                                        0x7fffffffffffffff,
                                        0x8000000000000000,
                                        0xffffffff00000000,
                                        0x100000000};
        return edge[x % (sizeof edge / sizeof *edge)];
    }
    case 4: return (uint32_t)x;
    default: return x;
    }
}

// ---- registers
static unsigned gpr_number(ZydisRegister reg) // 0..15, or 16: none
{
    if (reg >= ZYDIS_REGISTER_AL && reg <= ZYDIS_REGISTER_BL)
        return reg - ZYDIS_REGISTER_AL;
    if (reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH)
        return reg - ZYDIS_REGISTER_AH;
    if (reg >= ZYDIS_REGISTER_SPL && reg <= ZYDIS_REGISTER_R15B)
        return reg - ZYDIS_REGISTER_SPL + 4;
    if (reg >= ZYDIS_REGISTER_AX && reg <= ZYDIS_REGISTER_R15W)
        return reg - ZYDIS_REGISTER_AX;
    if (reg >= ZYDIS_REGISTER_EAX && reg <= ZYDIS_REGISTER_R15D)
        return reg - ZYDIS_REGISTER_EAX;
    if (reg >= ZYDIS_REGISTER_RAX && reg <= ZYDIS_REGISTER_R15)
        return reg - ZYDIS_REGISTER_RAX;
    return 16;
}

static bool is_ip(ZydisRegister reg)
{
    return reg == ZYDIS_REGISTER_RIP || reg == ZYDIS_REGISTER_EIP || reg == ZYDIS_REGISTER_IP;
}

static bool demand(struct instance *x, unsigned reg, uint64_t value, bool label)
{
    for (unsigned i = 0; i < x->demand_count; i++)
        if (x->demand[i].reg == reg)
            return x->demand[i].value == value && x->demand[i].label == label;
    if (x->demand_count == sizeof x->demand / sizeof *x->demand || reg > 15)
        return false;
    x->demand[x->demand_count++] = (struct demand){.reg = (uint8_t)reg, .value = value, .label = label};
    return true;
}

static const struct demand *demanded(const struct instance *x, unsigned reg)
{
    for (unsigned i = 0; i < x->demand_count; i++)
        if (x->demand[i].reg == reg)
            return &x->demand[i];
    return NULL;
}

// ---- addresses
// A linear address for an operand of `size` bytes that starts in, ends in or straddles whatever page makes
// sense.
static bool is_extra(ZydisRegister segment)
{
    return segment == ZYDIS_REGISTER_FS || segment == ZYDIS_REGISTER_GS;
}

static uint64_t segment_base(const struct encoder *e, ZydisRegister segment)
{
    return is_extra(segment) ? extra_segment(e->mode, segment == ZYDIS_REGISTER_GS).base : data_base(e->mode);
}

static uint64_t pick_address(struct encoder *e, struct rng *r, unsigned size, bool branch_memory,
                             ZydisRegister segment, struct instance *x)
{
    uint32_t data = DATA_LINEAR + rng_below(r, 8192 - (size < 4096 ? size : 4096));
    unsigned align = size && !(size & (size - 1)) ? size : 16;
    if (align > 64)
        align = 64;
    if (e->tame || branch_memory)
        return (DATA_LINEAR + 1024 + rng_below(r, 5120)) & ~(uint64_t)(align - 1);
    unsigned kind = rng_below(r, e->in_sequence ? 400 : 100);
    uint32_t inside = size > 1 ? 1 + rng_below(r, size - 1) : 0; // how much of it lies before the boundary
    if (kind < 5 || (e->in_sequence && kind >= 380)) {
        x->crosses = size > 1;
        return DATA_LINEAR + 4096 - inside; // across two writable pages
    }
    if (kind < 8)
        return READ_ONLY_LINEAR + (rng_below(r, 4096 - (size < 2048 ? size : 2048)) & ~(align - 1));
    if (kind < 10) {
        x->crosses = size > 1;
        return READ_ONLY_LINEAR + 4096 - inside; // read-only, then absent
    }
    if (kind < 12) {
        x->crosses = size > 1;
        return READ_ONLY_LINEAR - inside; // writable, then read-only
    }
    if (kind < 15) {
        x->crosses = size > 1;
        return DATA_LINEAR - inside; // absent, then writable
    }
    if (is_extra(segment) && e->mode != MODE64 && kind >= 90) { // over the segment's end
        struct diff_segment s = extra_segment(e->mode, segment == ZYDIS_REGISTER_GS);
        return s.base + s.limit + 1 - inside;
    }
    if (kind < 17)
        return ARENA_BASE + 4 * 4096 + (rng_below(r, 4096 - 64) & ~(align - 1)); // absent
    if (kind < 19 && e->mode == MODE64)
        return 0x8000000000000000ull | (rng_next(r) >> 3 & ~0xfull); // not canonical
    return rng_percent(r, 60) ? data & ~(align - 1) : data;
}

static uint64_t address_mask(unsigned bits)
{
    return bits >= 64 ? ~0ull : (1ull << bits) - 1;
}

// Junk above an address narrower than a register: must be ignored.
static uint64_t with_junk(const struct encoder *e, struct rng *r, uint64_t value, unsigned bits)
{
    if (bits == 64)
        return value;
    uint64_t junk = rng_percent(r, 50) ? rng_next(r) : 0;
    if (e->mode != MODE64)
        junk &= 0xffffffff;
    return (value & address_mask(bits)) | (junk & ~address_mask(bits));
}

// Arranges for an explicit or implied memory operand to be at linear address `target`.
static bool place_operand(struct encoder *e, struct rng *r, const ZydisDecodedInstruction *i,
                          const ZydisDecodedOperand *o, uint64_t target, struct instance *x)
{
    unsigned bits = i->address_width;
    uint64_t base_linear = segment_base(e, o->mem.segment);
    uint64_t mask = address_mask(bits), offset = (target - base_linear) & mask;
    if (bits < 64 && (target - base_linear) >> bits && e->mode == MODE64)
        return false; // an address size that can't name it
    if (o->mem.base == ZYDIS_REGISTER_NONE && o->mem.index == ZYDIS_REGISTER_NONE) {
        x->fix = FIX_NONE; // an absolute displacement
        if (i->raw.disp.size < 64 && e->mode == MODE64 && offset >> 31)
            return false;
        memcpy(x->bytes + i->raw.disp.offset, &offset, i->raw.disp.size / 8);
        return i->raw.disp.size != 0;
    }
    if (is_ip(o->mem.base)) {
        if (target >> 31 || is_extra(o->mem.segment))
            return false;
        x->fix = FIX_RIP;
        x->fix_offset = i->raw.disp.offset;
        x->fix_size = 4;
        x->fix_linear = (uint32_t)target;
        return true;
    }
    unsigned base = gpr_number(o->mem.base), index = gpr_number(o->mem.index);
    // Zydis 4.0.0 takes REX.B for a base in mod 0, base 5, which has none, when the address size is 32 bits.
    if (i->attributes & ZYDIS_ATTRIB_HAS_SIB && i->raw.modrm.mod == 0 && (i->raw.sib.base & 7) == 5)
        base = 16;
    uint64_t disp = (uint64_t)o->mem.disp.value, scaled = 0;
    if (o->mem.type == ZYDIS_MEMOP_TYPE_VSIB) {
        if (base > 15)
            return false;
    } else if (i->mnemonic == ZYDIS_MNEMONIC_XLAT) {
        // [rBX + AL]: AL is whatever it is; the target moves by up to 255 bytes.
        return demand(x, base, with_junk(e, r, offset, bits), false);
    } else if (index < 16) {
        const struct demand *d = demanded(x, index);
        uint64_t value = d                    ? d->value
                         : rng_percent(r, 70) ? (uint64_t)(int64_t)(int8_t)rng_next(r)
                                              : rng_next(r);
        if (base > 15)
            value = (uint64_t)(int64_t)(int8_t)value; // the displacement makes up for it
        if (index == base || !demand(x, index, e->mode == MODE64 ? value : (uint32_t)value, false))
            return false;
        scaled = value * (o->mem.scale ? o->mem.scale : 1);
    }
    if (base > 15) { // [index*scale + disp32]
        uint64_t want = offset - scaled;
        if (i->raw.disp.size < 32 || (e->mode == MODE64 && bits == 64 && (int64_t)want != (int32_t)want))
            return false;
        memcpy(x->bytes + i->raw.disp.offset, &want, 4);
        return true;
    }
    return demand(x, base, with_junk(e, r, offset - scaled - disp, bits), false);
}

// ---- what particular instructions need
static uint64_t stack_pointer(struct encoder *e, struct rng *r)
{
    uint32_t at = STACK_LINEAR + 2048 + (rng_below(r, 3072) & ~7u);
    unsigned kind = e->tame ? 99 : rng_below(r, e->in_sequence ? 400 : 100);
    if (kind < 4)
        at = STACK_LINEAR + rng_below(r, 12); // pushes cross into nothing
    else if (kind < 8)
        at = STACK_LINEAR + 8192 - rng_below(r, 12); // pops do
    else if (kind < 12)
        at = STACK_LINEAR + 4096 + rng_below(r, 16) - 8;
    else if (kind < 20)
        at += rng_below(r, 8);
    else if (kind < 22 && e->mode == MODE64)
        return 0x8000000000000000ull | (rng_next(r) >> 3 & ~7ull);
    return at - data_base(e->mode);
}

static bool is_bit_test(ZydisMnemonic m)
{
    return m == ZYDIS_MNEMONIC_BT || m == ZYDIS_MNEMONIC_BTS || m == ZYDIS_MNEMONIC_BTR ||
           m == ZYDIS_MNEMONIC_BTC;
}

static bool is_division(ZydisMnemonic m)
{
    return m == ZYDIS_MNEMONIC_DIV || m == ZYDIS_MNEMONIC_IDIV;
}

static bool is_popf(ZydisMnemonic m)
{
    return m == ZYDIS_MNEMONIC_POPF || m == ZYDIS_MNEMONIC_POPFD || m == ZYDIS_MNEMONIC_POPFQ;
}

static bool uses_stack(const ZydisDecodedOperand *o)
{
    unsigned base = gpr_number(o->mem.base);
    return o->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN && base == 4;
}

// Registers whose value steers an access, other than by the address itself.
static bool special_demands(struct encoder *e, struct rng *r, const ZydisDecodedInstruction *i,
                            const ZydisDecodedOperand *ops, struct instance *x)
{
    bool memory = i->attributes & ZYDIS_ATTRIB_HAS_MODRM && i->raw.modrm.mod != 3;
    if (is_bit_test(i->mnemonic) && memory && ops[1].type == ZYDIS_OPERAND_TYPE_REGISTER) {
        // The register is a signed bit offset from the operand (SDM 2A, BT).
        int range = e->tame ? 64 : 4096;
        int64_t bit = (int64_t)rng_below(r, 2 * (uint32_t)range) - range;
        uint64_t value = (uint64_t)bit;
        if (i->operand_width < 64)
            value = with_junk(e, r, value, i->operand_width);
        if (!demand(x, gpr_number(ops[1].reg.value), value, false))
            return false;
    }
    if (i->attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)) {
        uint32_t count = e->tame || rng_percent(r, 80) ? rng_below(r, 24) : rng_below(r, 1500);
        if (!demand(x, 1, with_junk(e, r, count, i->address_width), false))
            return false;
    }
    if (i->meta.branch_type != ZYDIS_BRANCH_TYPE_NONE && i->mnemonic >= ZYDIS_MNEMONIC_LOOP &&
        i->mnemonic <= ZYDIS_MNEMONIC_LOOPNE)
        return demand(x, 1, with_junk(e, r, rng_below(r, 3), i->address_width), false);
    if (is_division(i->mnemonic) && i->operand_width > 8 && rng_percent(r, 75)) {
        uint64_t high = rng_below(r, 3) ? 0 : rng_below(r, 4);
        if (!demanded(x, 2) && !demand(x, 2, high, false))
            return false;
    }
    if (i->mnemonic == ZYDIS_MNEMONIC_ENTER) {
        uint16_t size = (uint16_t)(rng_percent(r, 90) ? rng_below(r, 256) : rng_next(r));
        memcpy(x->bytes + i->raw.imm[0].offset, &size, 2);
        x->bytes[i->raw.imm[1].offset] = (uint8_t)(rng_percent(r, 70) ? rng_below(r, 4) : rng_next(r));
        return demand(x, 5,
                      with_junk(e, r, STACK_LINEAR + 4096 + (rng_below(r, 2048) & ~7u) - data_base(e->mode),
                                i->stack_width),
                      false);
    }
    return true;
}

// The branch target of an indirect or relative near branch.
static bool branch_demands(const ZydisDecodedInstruction *i, const ZydisDecodedOperand *ops,
                           struct instance *x)
{
    if (i->meta.branch_type == ZYDIS_BRANCH_TYPE_NONE)
        return true;
    if (i->raw.imm[0].is_relative) {
        x->fix = FIX_RELATIVE;
        x->fix_offset = i->raw.imm[0].offset;
        x->fix_size = i->raw.imm[0].size / 8;
        return true;
    }
    if (i->mnemonic == ZYDIS_MNEMONIC_RET)
        return x->label_linear != 0;
    if (ops[0].type == ZYDIS_OPERAND_TYPE_REGISTER)
        return demand(x, gpr_number(ops[0].reg.value), 0, true);
    return x->label_linear != 0;
}

static void value_patches(const struct encoder *e, struct rng *r, const ZydisDecodedInstruction *i,
                          uint32_t linear, struct instance *x)
{
    bool wide = i->mnemonic == ZYDIS_MNEMONIC_CMPXCHG8B || i->mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B;
    if (i->mnemonic == ZYDIS_MNEMONIC_LDMXCSR || i->mnemonic == ZYDIS_MNEMONIC_VLDMXCSR) {
        x->patch_size = rng_percent(r, 80) ? 4 : 0; // reserved bits fault
        x->patch[0] = rng_next(r) & 0xffff;
    } else if ((wide || i->mnemonic == ZYDIS_MNEMONIC_CMPXCHG) && rng_percent(r, 50) && !e->in_sequence) {
        uint64_t low = interesting_value(r), high = interesting_value(r);
        if (!demand(x, 0, low, false) || (wide && !demand(x, 2, high, false)))
            return;
        x->patch[0] = low;
        x->patch[1] = high;
        x->patch_size = wide ? 16 : i->operand_width / 8;
        if (i->mnemonic == ZYDIS_MNEMONIC_CMPXCHG8B) {
            x->patch[0] = (uint32_t)low | high << 32;
            x->patch_size = 8;
        }
    }
    x->patch_linear = linear;
}

// Gathers and scatters name the width of their indices in their mnemonic only: VPGATHERDQ has doublewords.
static uint8_t vsib_index_bits(ZydisMnemonic m)
{
    const char *name = ZydisMnemonicGetString(m);
    return strstr(name, "erd") || strstr(name, "pf0d") || strstr(name, "pf1d") ? 32 : 64;
}

static bool place_operands(struct encoder *e, struct rng *r, const ZydisDecodedInstruction *i,
                           const ZydisDecodedOperand *ops, struct instance *x)
{
    bool branch = i->meta.branch_type != ZYDIS_BRANCH_TYPE_NONE;
    for (unsigned n = 0; n < i->operand_count; n++) {
        const ZydisDecodedOperand *o = &ops[n];
        if (o->type != ZYDIS_OPERAND_TYPE_MEMORY || o->mem.type == ZYDIS_MEMOP_TYPE_AGEN)
            continue;
        if (o->mem.segment == ZYDIS_REGISTER_CS)
            return false; // reads the code, which differs where the two sides leave it
        if (uses_stack(o)) {
            x->stack = true;
            uint64_t sp = stack_pointer(e, r);
            // LEAVE takes the stack pointer from rBP.
            unsigned reg = i->mnemonic == ZYDIS_MNEMONIC_LEAVE ? 5 : 4;
            if (i->mnemonic == ZYDIS_MNEMONIC_RET) {
                sp = STACK_LINEAR + 1024 + (rng_below(r, 4096) & ~7u) - data_base(e->mode);
                x->label_linear = (uint32_t)sp + data_base(e->mode);
                x->label_size = i->operand_width / 8;
            }
            if (is_popf(i->mnemonic)) {
                x->patch_linear = (uint32_t)sp + data_base(e->mode);
                x->patch_size = i->operand_width / 8;
                x->patch[0] = rng_next(r) & ~0x40100ull; // no AC, no TF
            }
            if (!demand(x, reg, with_junk(e, r, sp, i->stack_width), false))
                return false;
            continue;
        }
        unsigned size = o->size / 8;
        if (o->mem.type == ZYDIS_MEMOP_TYPE_VSIB) {
            if (e->in_sequence)
                return false;
            x->index_vector = (int16_t)((ZydisRegisterGetId(o->mem.index)) & 31);
            x->index_bits = vsib_index_bits(i->mnemonic);
        }
        bool target = branch && ops[0].type == ZYDIS_OPERAND_TYPE_MEMORY && n == 0;
        uint64_t at = pick_address(e, r, size ? size : 1, target, o->mem.segment, x);
        if (!place_operand(e, r, i, o, at, x))
            return false;
        if (target) {
            x->label_linear = (uint32_t)at;
            x->label_size = i->operand_width / 8;
        }
        value_patches(e, r, i, (uint32_t)at, x);
    }
    return true;
}

static void note_writes(const ZydisDecodedInstruction *i, const ZydisDecodedOperand *ops, struct instance *x)
{
    for (unsigned n = 0; n < i->operand_count; n++)
        if (ops[n].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            (ops[n].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)) {
            unsigned reg = gpr_number(ops[n].reg.value);
            if (reg < 16)
                x->writes |= (uint16_t)(1u << reg);
        }
}

// ---- instances
static void random_bytes(struct rng *r, uint8_t *p, unsigned n)
{
    for (unsigned i = 0; i < n; i += 8) {
        uint64_t v = rng_next(r);
        memcpy(p + i, &v, n - i < 8 ? n - i : 8);
    }
}

static void random_fields(const struct encoder *e, struct rng *r, const struct form *f, struct form_fields *x)
{
    unsigned registers = e->mode != MODE64 ? 8 : f->encoding == ENC_EVEX ? 32 : 16;
    uint64_t v = rng_next(r);
    unsigned bases = registers > 16 ? 16 : registers;
    x->reg = (uint8_t)((v & 255) % registers);
    x->rm = (uint8_t)((v >> 8 & 255) % (f->flags & FORM_MODRM_MEM ? bases : registers));
    x->index = (uint8_t)((v >> 16 & 255) % (f->flags & FORM_VSIB ? registers : bases));
    x->vvvv = v >> 32 & 1 ? (uint8_t)((v >> 24 & 255) % registers) : 0;
    x->rex = v >> 33 & 1;
    x->aaa = f->aaa ? (uint8_t)(1 + (v >> 40 & 255) % 7) : 0;
    x->l = f->l;
    if (f->b && !(f->flags & FORM_MODRM_MEM))
        x->l = v >> 34 & 3; // a rounding mode, any of which is the same form
    x->a67 = f->a67;
    bool memory = f->flags & FORM_MEMORY || f->flags & FORM_MODRM_MEM;
    if (memory && !e->tame && !f->a67 && (e->mode != MODE32 ? rng_percent(r, 10) : rng_percent(r, 1)))
        x->a67 = true;
    static const uint8_t overrides[3] = {0x26, 0x36, 0x3e};
    if (memory && rng_percent(r, 5))
        x->segment = overrides[rng_below(r, 3)];
    if (memory && e->segments && !e->tame && rng_percent(r, 4))
        x->segment = rng_percent(r, 50) ? 0x64 : 0x65;
}

static bool shows_flags(ZydisMnemonic m)
{
    return is_popf(m) || m == ZYDIS_MNEMONIC_PUSHF || m == ZYDIS_MNEMONIC_PUSHFD || m == ZYDIS_MNEMONIC_PUSHFQ;
}

bool form_is_legacy(const struct form *f)
{
    switch ((ZydisMnemonic)f->mnemonic) {
    case ZYDIS_MNEMONIC_ARPL: // #UD
    case ZYDIS_MNEMONIC_PUSHF: // show IOPL
    case ZYDIS_MNEMONIC_PUSHFD:
    case ZYDIS_MNEMONIC_POPF:
    case ZYDIS_MNEMONIC_POPFD:
    case ZYDIS_MNEMONIC_FNSTENV: // have another layout there
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_FLDENV:
    case ZYDIS_MNEMONIC_FRSTOR: return false;
    default: return f->encoding == ENC_LEGACY;
    }
}

static bool attempt(struct encoder *e, struct rng *r, uint32_t index, struct instance *x)
{
    const struct form *f = &e->forms->form[index];
    struct form_fields fields = {0};
    if ((e->legacy_only && !form_is_legacy(f)) || (e->ac && shows_flags((ZydisMnemonic)f->mnemonic)))
        return false;
    random_fields(e, r, f, &fields);
    if (f->flags & FORM_FIXED_REG)
        fields.reg = (fields.reg & ~7) | (f->modrm >> 3 & 7);
    if (f->flags & FORM_FIXED_RM)
        fields.rm = (fields.rm & ~7) | (f->modrm & 7);

    uint8_t bytes[40];
    unsigned n = form_emit(f, e->mode, &fields, bytes);
    random_bytes(r, bytes + n, 16);
    if (f->flags & FORM_MODRM) {
        unsigned mod = f->flags & FORM_MODRM_MEM ? rng_below(r, 3) : 3;
        unsigned rm = fields.rm & 7;
        bool sib = mod != 3 && rng_percent(r, f->flags & FORM_VSIB ? 100 : 30);
        if (sib)
            rm = 4;
        bytes[n] = (uint8_t)(mod << 6 | (fields.reg & 7) << 3 | rm);
        if (mod != 3 && rm == 4 && !(e->mode == MODE16 && !fields.a67)) // SIB
            bytes[n + 1] = (uint8_t)((bytes[n + 1] & 0xc0) | (fields.index & 7) << 3 | (bytes[n + 1] & 7));
    }
    ZydisDecodedInstruction i;
    ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
    if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&e->decoder, bytes, 15, &i, ops)) ||
        form_key(&i, ops, f->opcode) != f->key)
        return false;
    // Zen 4 forgets what CALL, PUSH and POP have just added to RSP when an EVEX instruction reads it.
    for (unsigned k = 0; f->encoding == ENC_EVEX && e->in_sequence && k < i.operand_count; k++)
        if (ops[k].type == ZYDIS_OPERAND_TYPE_REGISTER && gpr_number(ops[k].reg.value) == RSP_NUMBER)
            return false;
    *x = (struct instance){.form = index, .length = i.length, .index_vector = -1};
    memcpy(x->bytes, bytes, i.length);
    note_writes(&i, ops, x);
    if (e->keep != ANY_UNIT && (x->writes >> e->keep & 1))
        return false;
    if (!special_demands(e, r, &i, ops, x) || !place_operands(e, r, &i, ops, x) ||
        !branch_demands(&i, ops, x))
        return false;
    if (e->in_sequence && x->label_linear)
        return false;
    if (e->keep != ANY_UNIT && demanded(x, e->keep))
        return false;
    for (unsigned k = 0; e->mode != MODE64 && k < x->demand_count; k++)
        x->demand[k].value = (uint32_t)x->demand[k].value;
    return true;
}

bool encoder_instance(struct encoder *e, struct rng *r, uint32_t index, struct instance *out)
{
    for (unsigned tries = 0; tries < 64; tries++)
        if (attempt(e, r, index, out))
            return true;
    return false;
}
