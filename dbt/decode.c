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

_Static_assert(sizeof(struct decoded) % 64 == 0, "forms are read by cache lines");

static unsigned mode_index(const struct translation *t) { return t->code_size == 8 ? 2 : t->code_size == 4 ? 1 : 0; }

void cannot_decode(struct translation *t, struct ginsn *g, unsigned op)
{
    struct decoding *own = g->own;
    memset(&own->z, 0, sizeof own->z);
    own->z.length = 1;
    own->z.machine_mode = t->decoder[mode_index(t)].machine_mode;
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
    const ZydisDecodedInstruction *z = g->z;
    g->disp = z->raw.disp.size ? (int64_t)number(g->bytes + z->raw.disp.offset, z->raw.disp.size, true) : 0;
    g->imm = z->raw.imm[0].size ? number(g->bytes + z->raw.imm[0].offset, z->raw.imm[0].size, z->raw.imm[0].is_signed) : 0;
}

// The numbers of what was just decoded: a displacement may be scaled (EVEX).
static void own_numbers(struct ginsn *g)
{
    g->disp = g->z->raw.disp.value;
    g->imm = g->z->raw.imm[0].value.u;
    for (unsigned i = 0; i < g->z->operand_count; i++)
        if (g->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY && g->op[i].mem.disp.has_displacement)
            g->disp = g->op[i].mem.disp.value;
}

// Keeps what was decoded, if constraint 2 holds. What the block at hand refers to stays.
static struct decoded *form_keep(struct translation *t, struct head head, const struct ginsn *g)
{
    const ZydisDecodedInstruction *z = g->z;
    struct decoded *f = form_at(t, head);
    bool immediate = false;
    if (z->raw.imm[1].size || z->encoding == ZYDIS_INSTRUCTION_ENCODING_3DNOW || z->encoding == ZYDIS_INSTRUCTION_ENCODING_XOP ||
        head_bytes(head) + z->raw.disp.size / 8 + z->raw.imm[0].size / 8 != z->length || z->operand_count > FORM_OPERANDS ||
        (f->head.high && f->block == t->block_number))
        return NULL;
    for (unsigned i = 0; i < z->operand_count; i++) {
        const ZydisDecodedOperand *o = &g->op[i];
        if (o->encoding == ZYDIS_OPERAND_ENCODING_IS4 || o->type == ZYDIS_OPERAND_TYPE_POINTER)
            return NULL;
        if (o->type == ZYDIS_OPERAND_TYPE_MEMORY && o->mem.disp.has_displacement && o->mem.disp.value != z->raw.disp.value)
            return NULL;
        // Without bytes of its own it is the one that D0 and D1 shift by.
        if (o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE && o->encoding != ZYDIS_OPERAND_ENCODING_NONE && z->raw.imm[0].size) {
            if (immediate || o->imm.value.u != z->raw.imm[0].value.u)
                return NULL;
            immediate = true;
        }
    }
    f->head = head;
    f->block = t->block_number;
    f->z = *z;
    memcpy(f->op, g->op, sizeof g->op[0] * z->operand_count);
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

// Most of a look-up is waiting for memory: this asks for the forms of all instructions whose length is quickly told at once.
void decode_ahead(struct translation *t, const uint8_t *p, unsigned len)
{
    struct peeked k;
    for (unsigned i = 0; i < 24 && len >= 16; i++) {
        uint8_t bytes[16];
        struct head head;
        memcpy(bytes, p, 16);
        if (!peek_quickly(t, bytes, 16, &k))
            break;
        if (make_head(t, bytes, MAX_LENGTH, &head)) {
            const uint8_t *f = (const uint8_t *)form_at(t, head);
            for (unsigned line = 0; line < sizeof(struct decoded); line += 64)
                __builtin_prefetch(f + line);
        }
        if (k.ends && bytes[0] != 0xe8 && (bytes[0] & 0xf0) != 0x70 && !(bytes[0] == 0x0f && (bytes[1] & 0xf0) == 0x80))
            break; // what may go on: CALL, Jcc
        p += k.length;
        len -= k.length;
    }
}

bool decode(struct translation *t, struct ginsn *g, const uint8_t *p, unsigned len, uint64_t rip)
{
    struct head head = {0};
    struct decoded *f = NULL;
    if (len > MAX_LENGTH) {
        len = MAX_LENGTH;
        memcpy(g->bytes, p, 16); // once: a device may be writing there
        g->bytes[15] = 0;
    } else {
        memcpy(g->bytes, p, len);
        memset(g->bytes + len, 0, sizeof g->bytes - len);
    }
    g->rip = rip;
    if (make_head(t, g->bytes, len, &head)) {
        f = form_at(t, head);
        if (f->head.low == head.low && f->head.high == head.high && f->z.length <= len) {
            f->block = t->block_number;
            g->z = &f->z;
            g->op = f->op;
            take_numbers(g);
            mem_find_operand(g);
            if (f->key == t->key) {
                g->cls = f->cls;
                g->sens = f->sens;
                return true;
            }
            goto classify;
        }
        f = NULL;
    }
    ZydisDecoderContext context;
    ZydisDecoder *decoder = &t->decoder[mode_index(t)];
    struct decoding *own = g->own;
    ZyanStatus status = ZydisDecoderDecodeInstruction(decoder, &context, g->bytes, len, &own->z);
    if (status == ZYDIS_STATUS_NO_MORE_DATA && len < MAX_LENGTH)
        return false;
    if (ZYAN_FAILED(status) || ZYAN_FAILED(ZydisDecoderDecodeOperands(decoder, &context, &own->z, own->op, own->z.operand_count))) {
        cannot_decode(t, g, status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG || status == ZYDIS_STATUS_NO_MORE_DATA ? OP_GP0 : OP_UD);
        return true;
    }
    g->z = &own->z;
    g->op = own->op;
    own_numbers(g);
    mem_find_operand(g);
    if (head_bytes(head))
        f = form_keep(t, head, g);
classify:
    classify(t, g);
    if (f) {
        f->key = t->key;
        f->cls = g->cls;
        f->sens = g->sens;
    }
    return true;
}
