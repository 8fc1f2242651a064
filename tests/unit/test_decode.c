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

static void expect_equal(const char *what, uint64_t ours, uint64_t zydis, const uint8_t *p, unsigned len)
{
    char text[100];
    if (ours == zydis)
        return;
    snprintf(text, sizeof text, "%s: %#llx, Zydis: %#llx", what, (unsigned long long)ours, (unsigned long long)zydis);
    fail_at(text, p, len);
}

// The numbers and what is kept of an instruction are what Zydis says.
static void compare_with_zydis(const ZydisDecoder *decoder, const struct ginsn *g, const uint8_t *p, unsigned len)
{
    ZydisDecodedInstruction z;
    ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
    assert_true(ZYAN_SUCCESS(ZydisDecoderDecodeFull(decoder, p, len, &z, op)));
    if (z.mnemonic == ZYDIS_MNEMONIC_MOVSXD && z.operand_width == 16 && !decoder->decoder_mode[ZYDIS_DECODER_MODE_AMD_BRANCHES]) {
        z.mnemonic = ZYDIS_MNEMONIC_MOV; // Intel's reads 16 bits
        op[1].size = 16;
    }
    expect_equal("mnemonic", g->z->mnemonic, z.mnemonic, p, len);
    expect_equal("length", g->z->length, z.length, p, len);
    expect_equal("operand width", g->z->operand_width, z.operand_width, p, len);
    expect_equal("address width", g->z->address_width, z.address_width, p, len);
    expect_equal("instruction set", g->z->meta.isa_set, z.meta.isa_set, p, len);
    expect_equal("operands", g->z->operand_count, z.operand_count, p, len);
    uint16_t written = 0;
    for (unsigned i = 0; i < z.operand_count; i++) {
        const struct operand *o = &g->op[i];
        expect_equal("operand type", o->type, op[i].type, p, len);
        expect_equal("operand size", o->size, op[i].size, p, len);
        expect_equal("operand actions", o->actions, op[i].actions, p, len);
        switch (op[i].type) {
        case ZYDIS_OPERAND_TYPE_REGISTER:
            expect_equal("register", o->reg.value, op[i].reg.value, p, len);
            if (op[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE && op[i].reg.value >= ZYDIS_REGISTER_AX && op[i].reg.value <= ZYDIS_REGISTER_R15)
                written |= (uint16_t)(1 << ZydisRegisterGetId(op[i].reg.value));
            else if (op[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE && gpr_is(op[i].reg.value))
                written |= (uint16_t)(1 << ZydisRegisterGetId(ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, op[i].reg.value)));
            break;
        case ZYDIS_OPERAND_TYPE_MEMORY:
            expect_equal("base", o->mem.base, op[i].mem.base, p, len);
            expect_equal("index", o->mem.index, op[i].mem.index, p, len);
            expect_equal("segment", o->mem.segment, op[i].mem.segment, p, len);
            if (op[i].mem.disp.has_displacement)
                expect_equal("displacement", (uint64_t)g->disp, (uint64_t)op[i].mem.disp.value, p, len);
            break;
        case ZYDIS_OPERAND_TYPE_POINTER: expect_equal("pointer", o->ptr.offset, op[i].ptr.offset, p, len); break;
        default: break;
        }
    }
    if (z.raw.imm[0].size)
        expect_equal("immediate", g->imm, z.raw.imm[0].value.u, p, len);
    expect_equal("registers written", g->z->gpr_written, written, p, len);
}

static void compare(struct bench *b, const uint8_t *p, unsigned len)
{
    struct ginsn *g = &b->t.insn[0], *h = &b->t.insn[1];
    b->t.block_number++;
    bool there = decode(&b->t, g, p, len, 0x1000);
    h->rip = 0x1000;
    const ZydisDecoder *decoder = &b->t.decoder[b->t.code_size == 8 ? 2 : b->t.code_size == 4];
    ZyanStatus status = decode_bytes(decoder, h, p, len);
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
    if (memcmp(g->z, h->z, sizeof *g->z))
        fail_at("instruction", p, len);
    if (memcmp(g->op, h->op, sizeof g->op[0] * h->z->operand_count))
        fail_at("operand", p, len);
    if (g->disp != h->disp || g->imm != h->imm)
        fail_at("numbers", p, len);
    compare_with_zydis(decoder, g, p, len);
    if (g->has_ea != h->has_ea || (g->has_ea && (memcmp(&g->ea, &h->ea, sizeof g->ea) || g->ea_size != h->ea_size)))
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
        struct brief z = *g->z;
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
