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

// What is kept for a head, with the numbers of this instruction.
static void with_numbers(struct decoding *d, const struct ginsn *g)
{
    d->z = *g->z;
    memcpy(d->op, g->op, sizeof d->op[0] * g->z->operand_count);
    if (g->z == &g->own->z)
        return;
    if (d->z.raw.disp.size)
        d->z.raw.disp.value = g->disp;
    if (d->z.raw.imm[0].size)
        d->z.raw.imm[0].value.u = g->imm;
    for (unsigned i = 0; i < d->z.operand_count; i++)
        if (d->op[i].type == ZYDIS_OPERAND_TYPE_MEMORY && d->op[i].mem.disp.has_displacement)
            d->op[i].mem.disp.value = g->disp;
        else if (d->op[i].type == ZYDIS_OPERAND_TYPE_IMMEDIATE && d->op[i].encoding != ZYDIS_OPERAND_ENCODING_NONE && d->z.raw.imm[0].size)
            d->op[i].imm.value.u = g->imm;
}

static void compare(struct bench *b, const uint8_t *p, unsigned len)
{
    struct ginsn *g = &b->t.insn[0], *h = &b->t.insn[1];
    b->t.block_number++;
    bool there = decode(&b->t, g, p, len, 0x1000);
    h->rip = 0x1000;
    ZyanStatus status = decode_alone(&b->t.decoder[b->t.code_size == 8 ? 2 : b->t.code_size == 4], h, p, len);
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
    struct decoding whole;
    with_numbers(&whole, g);
    if (memcmp(&whole.z, h->z, sizeof whole.z))
        fail_at("instruction", p, len);
    for (unsigned i = 0; i < h->z->operand_count; i++)
        if (!same_operand(&whole.op[i], &h->op[i]))
            fail_at("operand", p, len);
    if (g->has_ea != h->has_ea || (g->has_ea && (g->ea.disp != h->ea.disp || g->ea_size != h->ea_size)))
        fail_at("memory operand", p, len);
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
    b->t.block_number = 1;
    assert_true(decode(&b->t, g, first, sizeof first, 0));
    b->t.decoder[2] = (ZydisDecoder){0}; // and does without the decoder
    assert_true(decode(&b->t, g, second, sizeof second, 0));
    assert_int_equal(g->disp, -2);
    assert_int_equal((int64_t)g->imm, INT32_MIN);
    assert_int_equal(g->ea.disp, -2);
    bench_destroy(b);
}

static void a_form_that_the_block_refers_to_is_not_replaced(void **state)
{
    (void)state;
    struct bench *b = bench_create(8);
    b->t.block_number = 1;
    struct ginsn *g = &b->t.insn[0], *h = &b->t.insn[1];
    unsigned shared = 0;
    for (unsigned i = 0; i < 1024; i++) { // among so many, some want the same place
        uint8_t q[15] = {0x0f};
        q[1] = 0x40 | (i & 15);
        q[2] = 0xc0 | (i >> 4 & 63);
        b->t.block_number++;
        assert_true(decode(&b->t, g, q, 15, 0));
        ZydisDecodedInstruction z = *g->z;
        for (unsigned k = 0; k < 64; k++) {
            uint8_t r[15] = {0x48, 0x01, 0xc0};
            r[0] = 0x48 | (k & 7);
            r[1] = (uint8_t)(k & 0x38);
            r[2] = 0xc0 | (i & 63);
            if (decode(&b->t, h, r, 15, 0))
                shared += h->z == &h->own->z;
            assert_memory_equal(g->z, &z, sizeof z);
        }
    }
    assert_true(shared > 0);
    bench_destroy(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decoding_64_bit_code_by_heads_changes_nothing),
        cmocka_unit_test(decoding_32_bit_code_by_heads_changes_nothing),
        cmocka_unit_test(decoding_16_bit_code_by_heads_changes_nothing),
        cmocka_unit_test(a_known_head_takes_its_numbers_from_the_bytes),
        cmocka_unit_test(a_form_that_the_block_refers_to_is_not_replaced),
    };
    return cmocka_run_group_tests_name("decode", tests, NULL, NULL);
}
