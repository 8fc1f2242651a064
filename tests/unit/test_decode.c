// Decoding with remembered heads (dbt/decode.c) against the decoder alone: every field of what comes out is equal.
#include "translation_fixture.h"

#define CASES 300000u
#define AGAIN 6 // times a head comes back with other bytes behind it

static void fail_at(const char *what, const uint8_t *p, unsigned n)
{
    char text[64] = "";
    for (unsigned i = 0; i < n; i++)
        sprintf(text + strlen(text), " %02x", p[i]);
    fail_msg("%s:%s", what, text);
}

static bool same_operand(const ZydisDecodedOperand *a, const ZydisDecodedOperand *b)
{
    if (a->type != b->type || a->encoding != b->encoding || a->size != b->size || a->visibility != b->visibility ||
        a->actions != b->actions || a->element_type != b->element_type || a->element_size != b->element_size)
        return false;
    switch (a->type) {
    case ZYDIS_OPERAND_TYPE_REGISTER: return a->reg.value == b->reg.value;
    case ZYDIS_OPERAND_TYPE_MEMORY:
        return a->mem.type == b->mem.type && a->mem.segment == b->mem.segment && a->mem.base == b->mem.base &&
               a->mem.index == b->mem.index && a->mem.scale == b->mem.scale &&
               a->mem.disp.has_displacement == b->mem.disp.has_displacement &&
               (!a->mem.disp.has_displacement || a->mem.disp.value == b->mem.disp.value);
    case ZYDIS_OPERAND_TYPE_POINTER: return a->ptr.segment == b->ptr.segment && a->ptr.offset == b->ptr.offset;
    case ZYDIS_OPERAND_TYPE_IMMEDIATE:
        return a->imm.is_signed == b->imm.is_signed && a->imm.is_relative == b->imm.is_relative && a->imm.value.u == b->imm.value.u;
    default: return true;
    }
}

static void compare(struct bench *b, const uint8_t *p, unsigned len)
{
    struct ginsn *g = &b->t.insn[0], *h = &b->t.insn[1];
    bool there = decode(&b->t, g, p, len, 0x1000);
    memset(&h->z, 0, sizeof h->z);
    memset(h->bytes, 0, sizeof h->bytes);
    memcpy(h->bytes, p, len);
    h->rip = 0x1000;
    ZydisDecoder *decoder = &b->t.decoder[b->t.code_size == 8 ? 2 : b->t.code_size == 4];
    ZyanStatus status = ZydisDecoderDecodeFull(decoder, p, len, &h->z, h->op);
    if (status == ZYDIS_STATUS_NO_MORE_DATA && len < MAX_LENGTH) {
        if (there)
            fail_at("decoded from too few bytes", p, len);
        return;
    }
    if (!there)
        fail_at("more bytes are asked for", p, len);
    if (ZYAN_FAILED(status)) {
        if (g->cls != CLASS_SENSITIVE || (g->sens != OP_UD && g->sens != OP_GP0))
            fail_at("an instruction where there is none", p, len);
        return;
    }
    classify(&b->t, h);
    size_t prefixes = offsetof(ZydisDecodedInstruction, raw.prefixes), behind = offsetof(ZydisDecodedInstruction, raw.encoding2);
    if (memcmp(&g->z, &h->z, prefixes) || memcmp((char *)&g->z + behind, (char *)&h->z + behind, sizeof g->z - behind) ||
        memcmp(g->z.raw.prefixes, h->z.raw.prefixes, sizeof g->z.raw.prefixes[0] * g->z.raw.prefix_count))
        fail_at("instruction", p, len);
    for (unsigned i = 0; i < h->z.operand_count; i++)
        if (!same_operand(&g->op[i], &h->op[i]))
            fail_at("operand", p, len);
    if (g->cls != h->cls || (g->cls != CLASS_PLAIN && g->sens != h->sens))
        fail_at("class", p, len);
}

static void random_bytes(uint64_t *seed, uint8_t p[16])
{
    for (unsigned k = 0; k < 16; k += 8) {
        uint64_t r = next_random(seed);
        memcpy(p + k, &r, 8);
    }
}

static void compare_at_random(unsigned code_size)
{
    static const uint8_t starts[] = {0x66, 0xf2, 0xf3, 0x48, 0x0f, 0xc5, 0xc4, 0xf0};
    struct bench *b = bench_create(code_size);
    uint64_t seed = 0x2545f4914f6cdd1d + code_size;
    for (unsigned i = 0; i < CASES / AGAIN; i++) {
        uint8_t p[16], q[16];
        random_bytes(&seed, p);
        if (i & 1)
            p[0] = starts[i >> 1 & 7];
        if ((i & 6) == 6)
            p[1] = 0x0f;
        compare(b, p, 15);
        unsigned same = 1 + next_random(&seed) % 6;
        for (unsigned n = 1; n < AGAIN; n++) {
            random_bytes(&seed, q);
            memcpy(q, p, same + n);
            b->t.key ^= n == 3 ? KEY_TS : n == 4 ? KEY_AVX : 0; // what an instruction is depends on the mode
            compare(b, q, n == 5 ? (unsigned)(1 + next_random(&seed) % 15) : 15);
        }
        b->t.key |= KEY_AVX;
        b->t.key &= ~KEY_TS;
    }
    unsigned kept = 0;
    for (unsigned i = 0; i < 1u << FORM_BITS; i++)
        kept += b->t.form[i].head.high != 0;
    assert_in_range(kept, 1000, 1u << FORM_BITS);
    bench_destroy(b);
}

static void decoding_64_bit_code_by_heads_changes_nothing(void **state)
{
    (void)state;
    compare_at_random(8);
}

static void decoding_32_bit_code_by_heads_changes_nothing(void **state)
{
    (void)state;
    compare_at_random(4);
}

static void decoding_16_bit_code_by_heads_changes_nothing(void **state)
{
    (void)state;
    compare_at_random(2);
}

static void a_known_head_takes_its_numbers_from_the_bytes(void **state)
{
    (void)state;
    struct bench *b = bench_create(8);
    static const uint8_t first[] = {0x48, 0x81, 0x84, 0x24, 1, 0, 0, 0, 2, 0, 0, 0}, // add qword [rsp + 1], 2
                         second[] = {0x48, 0x81, 0x84, 0x24, 0xfe, 0xff, 0xff, 0xff, 0, 0, 0, 0x80};
    struct ginsn *g = &b->t.insn[0];
    assert_true(decode(&b->t, g, first, sizeof first, 0));
    b->t.decoder[2] = (ZydisDecoder){0}; // and does without the decoder
    assert_true(decode(&b->t, g, second, sizeof second, 0));
    assert_int_equal(g->op[0].mem.disp.value, -2);
    assert_int_equal(g->op[1].imm.value.s, INT32_MIN);
    bench_destroy(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decoding_64_bit_code_by_heads_changes_nothing),
        cmocka_unit_test(decoding_32_bit_code_by_heads_changes_nothing),
        cmocka_unit_test(decoding_16_bit_code_by_heads_changes_nothing),
        cmocka_unit_test(a_known_head_takes_its_numbers_from_the_bytes),
    };
    return cmocka_run_group_tests_name("decode", tests, NULL, NULL);
}
