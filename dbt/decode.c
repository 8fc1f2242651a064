// Decoding. Zydis knows every encoding, but takes several hundred cycles for an instruction, and most instructions differ
// from an earlier one only in displacement and immediate. So what Zydis and classify() said is kept by an instruction's
// head: its bytes up to there. What is met again is referred to where it is kept, and the numbers are taken from its bytes.
//
//  1. The head must be told without decoding. head_length() does so for the opcodes compilers use; for all others,
//     and EVEX (whose displacement is scaled), it returns 0 and Zydis decodes.
//  2. Nothing but the numbers may depend on the bytes behind the head: not so for registers in immediates (IS4), opcodes
//     there (3DNow!), and instructions with two immediates, which are not kept.
//  3. What classify() says depends on the mode: it is kept with the key it was asked for.
// A test decodes random bytes both ways and compares every field.
#include "dbt/internal.h"

#define HEAD_MAX 14

_Static_assert(sizeof(struct decoded) == 3 * 64, "forms are read by cache lines");

static unsigned mode_index(const struct translation *t) { return t->code_size == 8 ? 2 : t->code_size == 4 ? 1 : 0; }

void cannot_decode(struct translation *t, struct ginsn *g, unsigned op)
{
    struct decoding *own = g->own;
    memset(&own->z, 0, sizeof own->z);
    own->z.length = 1;
    own->z.machine_mode = (uint8_t)t->decoder[mode_index(t)].machine_mode;
    own->z.operand_width = 32;
    own->z.address_width = 32;
    g->z = &own->z;
    g->op = own->op;
    g->cls = CLASS_SENSITIVE;
    g->sens = (uint8_t)op;
    g->has_ea = false;
}

static unsigned head_bytes(struct head h) { return h.high >> 48 & 15; }

static bool in_set(const uint32_t set[8], unsigned op) { return set[op >> 5] >> (op & 31) & 1; }

// Bytes before displacement and immediate, or 0: not told here. Looks at p[0..15].
static unsigned head_length(const uint8_t *p, unsigned code_size)
{
    // one-byte opcodes with ModRM: 00-03 08-0B … 38-3B, 63, 69, 6B, 80 81 83-8B 8D, C0 C1 C6 C7, D0-D3, D8-DF, F6 F7 FE FF
    static const uint32_t modrm1[8] = {0x0f0f0f0f, 0x0f0f0f0f, 0x00000000, 0x00000a08, 0x00002ffb, 0x00000000, 0xff0f00c3, 0xc0c00000};
    // and without: 04 05 … 3C 3D, 50-5F, 68 6A, 70-7F, 90-99 9B-9F, A4-AF, B0-BF, C2 C3 C9 CC, E0-E3, E8 E9 EB, F4 F5 F8-FD
    static const uint32_t plain1[8] = {0x30303030, 0x30303030, 0xffff0000, 0xffff0500, 0xfbff0000, 0xfffffff0, 0x0000120c, 0x3f300b0f};
    // 0F xx with ModRM: 02 03 0D, 10-17, 1F, 28-2F, 40-4F, 50-7E but 71-73 and 77, 90-9F, A3 AB AF, B0 B1 B3 B6 B7 BB-BF, C0 C1, D0-FE
    static const uint32_t modrm2[8] = {0x80ff200c, 0x0000ff00, 0xffffffff, 0x7f71ffff, 0xffff0000, 0xf8cb8808, 0xffff0003, 0x7fffffff};
    // 0F xx without: 05 06 07 08 0B 30-35 80-8F A2 C8-CF
    static const uint32_t plain2[8] = {0x000009e0, 0x003f0000, 0x00000000, 0x00000000, 0x0000ffff, 0x00000004, 0x0000ff00, 0x00000000};
    unsigned i = 0;
    bool modrm;
    while (p[i] == 0x66 || p[i] == 0xf2 || p[i] == 0xf3 || p[i] == 0xf0 || p[i] == 0x64 || p[i] == 0x65 || p[i] == 0x2e ||
           p[i] == 0x36 || p[i] == 0x3e || p[i] == 0x26)
        if (++i == 4)
            return 0;
    if (code_size == 8 && (p[i] & 0xf0) == 0x40)
        i++;
    unsigned op = p[i++];
    if (op == 0x0f) {
        op = p[i++];
        if (op == 0x38) {
            i++;
            modrm = true;
        } else {
            modrm = in_set(modrm2, op);
            if (!modrm && !in_set(plain2, op))
                return 0;
        }
    } else if (op == 0xc5 && code_size == 8) {
        i += 2;
        modrm = p[i - 1] != 0x77;
    } else if (op == 0xc4 && code_size == 8) {
        i += 3;
        modrm = p[i - 1] != 0x77;
    } else {
        modrm = in_set(modrm1, op);
        if (!modrm && !in_set(plain1, op))
            return 0;
    }
    if (modrm) {
        unsigned m = p[i++];
        if (m < 0xc0 && (m & 7) == 4 && code_size != 2)
            i++;
    }
    return i > HEAD_MAX ? 0 : i;
}

static uint64_t number(const uint8_t *p, unsigned bits, bool is_signed)
{
    switch (bits) {
    case 8: return is_signed ? (uint64_t)(int8_t)p[0] : p[0];
    case 16: {
        uint16_t n;
        memcpy(&n, p, 2);
        return is_signed ? (uint64_t)(int16_t)n : n;
    }
    case 32: {
        uint32_t n;
        memcpy(&n, p, 4);
        return is_signed ? (uint64_t)(int32_t)n : n;
    }
    default: {
        uint64_t n;
        memcpy(&n, p, 8);
        return n;
    }
    }
}

static struct decoded *form_at(struct translation *t, struct head h)
{
    return &t->form[(h.low ^ (h.high << 7 | h.high >> 57)) * 0x9e3779b97f4a7c15ull >> (64 - FORM_BITS)];
}

// The numbers, from the bytes.
static void take_numbers(struct ginsn *g)
{
    const struct brief *z = g->z;
    g->disp = z->raw.disp.size ? (int64_t)number(g->bytes + z->raw.disp.offset, z->raw.disp.size, true) : 0;
    g->imm = z->raw.imm.size ? number(g->bytes + z->raw.imm.offset, z->raw.imm.size, z->raw.imm.is_signed) : 0;
}

// The memory operand, once the numbers are there.
static void take_operand(struct ginsn *g)
{
    const struct brief *z = g->z;
    g->has_ea = z->mem.exists;
    if (!g->has_ea)
        return;
    g->ea = (struct ea){.base = z->mem.base, .index = z->mem.index, .scale = z->mem.scale, .addr_size = z->address_width / 8,
                        .sreg = z->mem.sreg, .disp = z->mem.has_displacement ? g->disp : 0};
    if (z->mem.rip_relative)
        g->ea.disp += (int64_t)(g->rip + z->length), g->ea.relative = true;
    g->ea_size = z->mem.size;
    g->ea_read = z->mem.read;
    g->ea_write = z->mem.write;
}

static struct fields find_fields(const ZydisDecodedInstruction *z, const uint8_t *bytes)
{
    bool rex = false;
    unsigned r = 0, b = 0, v = 0;
    switch (z->encoding) {
    case ZYDIS_INSTRUCTION_ENCODING_LEGACY:
        rex = z->attributes & ZYDIS_ATTRIB_HAS_REX;
        r = rex ? z->raw.rex.R : 0;
        b = rex ? z->raw.rex.B : 0;
        break;
    case ZYDIS_INSTRUCTION_ENCODING_VEX: {
        const uint8_t *p = bytes + z->raw.vex.offset;
        r = !(p[1] & 0x80);
        b = p[0] == 0xc4 ? !(p[1] & 0x20) : 0;
        v = (p[0] == 0xc4 ? ~p[2] >> 3 : ~p[1] >> 3) & 15;
        break;
    }
    case ZYDIS_INSTRUCTION_ENCODING_EVEX: {
        const uint8_t *p = bytes + z->raw.evex.offset;
        r = !(p[1] & 0x80);
        b = !(p[1] & 0x20);
        v = (~p[2] >> 3) & 15;
        break;
    }
    default: break;
    }
    if (z->machine_mode != ZYDIS_MACHINE_MODE_LONG_64) {
        r = b = 0;
        v &= 7;
    }
    return (struct fields){.reg = (uint8_t)(z->raw.modrm.reg | r << 3), .rm = (uint8_t)(z->raw.modrm.rm | b << 3),
                           .opreg = (uint8_t)((z->opcode & 7u) | b << 3), .vreg = (uint8_t)v, .rex = rex};
}

static int8_t reg_number(unsigned r)
{
    return (int8_t)(gpr_is(r) ? gpr_number(r) : (unsigned)ZydisRegisterGetId((ZydisRegister)r) & 15);
}

static void find_memory_operand(struct brief *z, const struct operand *op, bool no_base)
{
    static const uint8_t seg[] = {SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS};
    for (unsigned i = 0; i < z->operand_count; i++) {
        const struct operand *o = &op[i];
        if (o->type != ZYDIS_OPERAND_TYPE_MEMORY || o->mem.type == ZYDIS_MEMOP_TYPE_AGEN)
            continue;
        z->mem.exists = true;
        z->mem.base = z->mem.index = -1;
        z->mem.scale = o->mem.scale ? o->mem.scale : 1;
        z->mem.has_displacement = o->mem.has_displacement;
        if (no_base)
            z->mem.has_displacement = true;
        else if (o->mem.base == ZYDIS_REGISTER_RIP || o->mem.base == ZYDIS_REGISTER_EIP)
            z->mem.rip_relative = true;
        else if (o->mem.base != ZYDIS_REGISTER_NONE)
            z->mem.base = reg_number(o->mem.base);
        if (o->mem.index != ZYDIS_REGISTER_NONE)
            z->mem.index = reg_number(o->mem.index);
        unsigned s = (unsigned)(o->mem.segment - ZYDIS_REGISTER_ES);
        z->mem.sreg = s < 6 ? seg[s] : SEG_DS;
        z->mem.size = o->size / 8;
        z->mem.read = o->actions & ZYDIS_OPERAND_ACTION_MASK_READ;
        z->mem.write = o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
        return;
    }
}

static struct operand abridged_operand(const ZydisDecodedOperand *o)
{
    struct operand b = {.type = (uint8_t)o->type, .encoding = (uint8_t)o->encoding, .visibility = (uint8_t)o->visibility,
                        .actions = o->actions, .size = o->size};
    switch (o->type) {
    case ZYDIS_OPERAND_TYPE_REGISTER: b.reg.value = (uint16_t)o->reg.value; break;
    case ZYDIS_OPERAND_TYPE_MEMORY:
        b.mem.type = (uint8_t)o->mem.type;
        b.mem.scale = o->mem.scale;
        b.mem.segment = (uint16_t)o->mem.segment;
        b.mem.base = (uint16_t)o->mem.base;
        b.mem.index = (uint16_t)o->mem.index;
        b.mem.has_displacement = o->mem.disp.has_displacement;
        break;
    case ZYDIS_OPERAND_TYPE_POINTER:
        b.ptr.segment = o->ptr.segment;
        b.ptr.offset = o->ptr.offset;
        break;
    default: break;
    }
    return b;
}

static void abridge(struct decoding *d, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *op, const uint8_t *bytes)
{
    memset(d, 0, sizeof *d);
    d->z = (struct brief){
        .mnemonic = (uint16_t)z->mnemonic, .length = z->length, .opcode = z->opcode, .opcode_map = (uint8_t)z->opcode_map,
        .encoding = (uint8_t)z->encoding, .machine_mode = (uint8_t)z->machine_mode, .operand_width = z->operand_width,
        .address_width = z->address_width, .operand_count = z->operand_count, .operand_count_visible = z->operand_count_visible,
        .has_operandsize = z->attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE,
        .meta = {(uint8_t)z->meta.category, (uint8_t)z->meta.isa_ext, (uint8_t)z->meta.branch_type, (uint16_t)z->meta.isa_set},
        .avx = {z->avx.vector_length, (uint16_t)z->avx.mask.reg, (uint8_t)z->avx.mask.mode},
        .raw = {.prefix_count = z->raw.prefix_count, .rex_w = z->raw.rex.W, .sib_offset = z->raw.sib.offset,
                .vex_offset = z->raw.vex.offset, .evex_offset = z->raw.evex.offset,
                .modrm = {z->raw.modrm.mod, z->raw.modrm.reg, z->raw.modrm.rm, z->raw.modrm.offset},
                .disp = {z->raw.disp.size, z->raw.disp.offset},
                .imm = {z->raw.imm[0].size, z->raw.imm[0].offset, z->raw.imm[0].is_signed}},
        .fields = find_fields(z, bytes),
    };
    const ZydisAccessedFlags *f = z->cpu_flags;
    if (f) {
        d->z.flags.tested = f->tested & FL_ARITH;
        d->z.flags.written = (f->modified | f->set_0 | f->set_1) & FL_ARITH;
        d->z.flags.undefined = f->undefined & FL_ARITH;
    }
    for (unsigned i = 0; i < z->raw.prefix_count; i++)
        if (z->raw.prefixes[i].type == ZYDIS_PREFIX_TYPE_MANDATORY)
            d->z.raw.mandatory |= (uint16_t)(1 << i);
    for (unsigned i = 0; i < z->operand_count; i++) {
        struct operand *o = &d->op[i];
        *o = abridged_operand(&op[i]);
        if (o->type == ZYDIS_OPERAND_TYPE_REGISTER && o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE && gpr_is(o->reg.value))
            d->z.gpr_written |= (uint16_t)(1 << gpr_number(o->reg.value));
    }
    // No base, whatever REX.B and the address size say: SDM vol. 2, table 2-3.
    find_memory_operand(&d->z, d->op, z->raw.sib.offset && z->raw.modrm.mod == 0 && z->raw.sib.base == 5);
    if (d->z.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY)
        legacy_lead(&d->z, bytes);
}

// Whether constraint 2 holds.
static bool may_be_kept(const ZydisDecodedInstruction *z, const ZydisDecodedOperand *op, unsigned head)
{
    bool immediate = false;
    if (z->raw.imm[1].size || z->encoding == ZYDIS_INSTRUCTION_ENCODING_3DNOW || z->encoding == ZYDIS_INSTRUCTION_ENCODING_XOP ||
        head + z->raw.disp.size / 8 + z->raw.imm[0].size / 8 != z->length || z->operand_count > FORM_OPERANDS)
        return false;
    for (unsigned i = 0; i < z->operand_count; i++) {
        const ZydisDecodedOperand *o = &op[i];
        if (o->encoding == ZYDIS_OPERAND_ENCODING_IS4 || o->type == ZYDIS_OPERAND_TYPE_POINTER)
            return false;
        if (o->type == ZYDIS_OPERAND_TYPE_MEMORY && o->mem.disp.has_displacement && o->mem.disp.value != z->raw.disp.value)
            return false;
        // Without bytes of its own it is the one that D0 and D1 shift by.
        if (o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && o->encoding != ZYDIS_OPERAND_ENCODING_NONE && z->raw.imm[0].size) {
            if (immediate || o->imm.value.u != z->raw.imm[0].value.u)
                return false;
            immediate = true;
        }
    }
    return true;
}

// Keeps what was decoded. What the block at hand refers to stays: null.
static struct decoded *form_keep(struct translation *t, struct head head, const struct decoding *d)
{
    struct decoded *f = form_at(t, head);
    if (f->head.high && f->block == t->block_number)
        return NULL;
    f->head = head;
    f->block = t->block_number;
    f->z = d->z;
    memcpy(f->op, d->op, sizeof f->op);
    return f;
}

static bool make_head(const struct translation *t, const uint8_t bytes[16], unsigned len, struct head *head)
{
    unsigned n = head_length(bytes, t->code_size);
    if (!n || n > len)
        return false;
    memcpy(head, bytes, sizeof *head); // masked as words: bytes stored one by one could not be loaded as such at once
    head->low &= n < 8 ? (1ull << 8 * n) - 1 : ~0ull;
    head->high &= n > 8 ? (1ull << 8 * (n - 8)) - 1 : 0;
    head->high |= (uint64_t)n << 48 | (uint64_t)(1 + mode_index(t)) << 56;
    return true;
}

static void become_mov16(struct decoding *d)
{
    d->z.mnemonic = ZYDIS_MNEMONIC_MOV;
    d->z.opcode = 0x8b;
    d->z.mem.size = 2;
    d->op[1].size = 16;
}

static bool is_amds(const ZydisDecoder *decoder) { return decoder->decoder_mode[ZYDIS_DECODER_MODE_AMD_BRANCHES]; }

// Decodes g->bytes into g->own. *keep, unless null: whether that may be kept, for a head of so many bytes.
static ZyanStatus decode_fully(const ZydisDecoder *decoder, struct ginsn *g, unsigned len, unsigned head, bool *keep)
{
    ZydisDecoderContext context;
    ZydisDecodedInstruction z;
    ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
    ZyanStatus status = ZydisDecoderDecodeInstruction(decoder, &context, g->bytes, len, &z);
    if (ZYAN_SUCCESS(status))
        status = ZydisDecoderDecodeOperands(decoder, &context, &z, op, z.operand_count);
    if (ZYAN_FAILED(status))
        return status;
    abridge(g->own, &z, op, g->bytes);
    if (z.mnemonic == ZYDIS_MNEMONIC_MOVSXD && z.operand_width == 16 && !is_amds(decoder))
        become_mov16(g->own); // AMD's read 32 bits (SDM 2B, APM 3 MOVSXD)
    g->z = &g->own->z;
    g->op = g->own->op;
    g->disp = z.raw.disp.value;
    g->imm = z.raw.imm[0].value.u;
    for (unsigned i = 0; i < z.operand_count; i++)
        if (op[i].type == ZYDIS_OPERAND_TYPE_MEMORY && op[i].mem.disp.has_displacement)
            g->disp = op[i].mem.disp.value; // scaled (EVEX)
    take_operand(g);
    merge_prepare(g, &g->own->z);
    if (keep)
        *keep = head && may_be_kept(&z, op, head);
    return status;
}

ZyanStatus decode_alone(const ZydisDecoder *decoder, struct ginsn *g, unsigned len)
{
    return decode_fully(decoder, g, len, 0, NULL);
}

// Most of a look-up is waiting for memory: this asks for the forms of all instructions whose length is quickly told at once.
// What is read here is what will be decoded: a device may be writing there.
void decode_ahead(struct translation *t, const uint8_t *p, unsigned len)
{
    struct peeked k;
    unsigned n = 0;
    t->ahead_at = t->ahead_count = 0;
    for (; n < AHEAD && len > MAX_LENGTH; n++) {
        struct ahead *i = &t->ahead[n];
        i->p = p;
        memcpy(i->bytes, p, 16);
        i->bytes[15] = 0;
        if (make_head(t, i->bytes, MAX_LENGTH, &i->head))
            __builtin_prefetch(form_at(t, i->head));
        else
            i->head.high = 0;
        if (!peek_quickly(t, i->bytes, MAX_LENGTH, &k)) {
            n++;
            break;
        }
        if (k.ends && p[0] != 0xe8 && (p[0] & 0xf0) != 0x70 && !(p[0] == 0x0f && (p[1] & 0xf0) == 0x80)) {
            n++;
            break; // what may go on: CALL, Jcc
        }
        p += k.length;
        len -= k.length;
    }
    t->ahead_count = n;
}

bool decode(struct translation *t, struct ginsn *g, const uint8_t *p, unsigned len, uint64_t rip)
{
    struct head head = {0};
    struct decoded *f = NULL;
    const struct ahead *ahead = &t->ahead[t->ahead_at];
    bool has_head;
    if (t->ahead_at < t->ahead_count && ahead->p == p && len > MAX_LENGTH) {
        t->ahead_at++;
        len = MAX_LENGTH;
        memcpy(g->bytes, ahead->bytes, 16);
        head = ahead->head;
        has_head = head.high;
    } else {
        t->ahead_count = 0;
        if (len > MAX_LENGTH) {
            len = MAX_LENGTH;
            memcpy(g->bytes, p, 16); // once
            g->bytes[15] = 0;
        } else {
            memcpy(g->bytes, p, len);
            memset(g->bytes + len, 0, 16 - len);
        }
        has_head = make_head(t, g->bytes, len, &head);
    }
    g->rip = rip;
    if (has_head) {
        f = form_at(t, head);
        if (f->head.low == head.low && f->head.high == head.high && f->z.length <= len) {
            __builtin_prefetch((const uint8_t *)f + 64);
            __builtin_prefetch((const uint8_t *)f + 128);
            f->block = t->block_number;
            g->z = &f->z;
            g->op = f->op;
            take_numbers(g);
            take_operand(g);
            if (f->key == t->key) {
                g->cls = f->cls;
                g->sens = f->sens;
                return true;
            }
            goto classify;
        }
        f = NULL;
    }
    bool keep;
    ZyanStatus status = decode_fully(&t->decoder[mode_index(t)], g, len, head_bytes(head), &keep);
    if (status == ZYDIS_STATUS_NO_MORE_DATA && len < MAX_LENGTH)
        return false;
    if (ZYAN_FAILED(status)) {
        cannot_decode(t, g, status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG || status == ZYDIS_STATUS_NO_MORE_DATA ? OP_GP0 : OP_UD);
        return true;
    }
    if (keep)
        f = form_keep(t, head, g->own);
classify:
    classify(t, g);
    if (f) {
        f->key = t->key;
        f->cls = g->cls;
        f->sens = g->sens;
    }
    return true;
}
