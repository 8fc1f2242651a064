// The quick look of liveness (dbt/peek.c) against the decoder: what it claims to know is what decoding and classifying say.
#include "translation_fixture.h"

#define CASES 400000u

static bool leaves_block(const struct ginsn *g)
{
    if (g->cls != CLASS_CONTROL)
        return g->cls != CLASS_PLAIN && g->cls != CLASS_NOTHING;
    return g->z->meta.category == ZYDIS_CATEGORY_COND_BR || g->z->meta.category == ZYDIS_CATEGORY_UNCOND_BR ||
           g->z->meta.category == ZYDIS_CATEGORY_CALL || g->z->meta.category == ZYDIS_CATEGORY_RET;
}

static void fail_at(const char *what, const uint8_t *p, const struct ginsn *g, const struct peeked *k)
{
    fail_msg("%s of %02x %02x %02x %02x %02x %02x: length %u, read %x, killed %x; the decoder: length %u, read %x, killed %x", what, p[0],
             p[1], p[2], p[3], p[4], p[5], k->length, k->read, k->killed, g->z->length, flags_read(g), flags_killed(g));
}

static void compare(struct bench *b, const uint8_t p[15], unsigned *known)
{
    struct ginsn *g = &b->t.insn[0];
    struct peeked k;
    if (!peek_quickly(&b->t, p, 15, &k))
        return;
    ++*known;
    if (ZYAN_FAILED(decode_bytes(&b->t.decoder[2], g, p, 15)))
        fail_at("not an instruction", p, g, &k);
    classify(&b->t, g);
    if (k.length != g->z->length)
        fail_at("length", p, g, &k);
    if (k.read != flags_read(g) || k.killed != flags_killed(g))
        fail_at("flags", p, g, &k);
    if (k.ends != leaves_block(g))
        fail_at("end of block", p, g, &k);
}

static void peek_agrees_with_the_decoder_on_random_bytes(void **state)
{
    (void)state;
    struct bench *b = bench_create(8);
    uint64_t seed = 0x2545f4914f6cdd1d;
    unsigned known = 0;
    for (unsigned i = 0; i < CASES; i++) {
        uint8_t p[16];
        for (unsigned k = 0; k < 16; k += 8) {
            uint64_t r = next_random(&seed);
            memcpy(p + k, &r, 8);
        }
        if (i & 1) // every other one with REX
            p[0] = (uint8_t)(0x40 | (p[0] & 15));
        if ((i & 6) == 6)
            p[i & 1] = 0x0f;
        compare(b, p, &known);
    }
    assert_in_range(known, CASES / 4, CASES);
    bench_destroy(b);
}

static void peek_never_looks_beyond_the_room(void **state)
{
    (void)state;
    struct bench *b = bench_create(8);
    static const uint8_t code[] = {0x48, 0x81, 0x84, 0x24, 1, 0, 0, 0, 2, 0, 0, 0}; // add qword [rsp + 1], 2
    struct peeked k;
    for (unsigned room = 0; room <= sizeof code; room++) {
        uint8_t *exact = malloc(room ? room : 1); // the sanitizer sees what is read behind it
        memcpy(exact, code, room);
        assert_int_equal(peek_quickly(&b->t, exact, room, &k), room == sizeof code);
        free(exact);
    }
    assert_int_equal(k.length, sizeof code);
    bench_destroy(b);
}

static void peek_leaves_32_bit_code_to_the_decoder(void **state)
{
    (void)state;
    struct bench *b = bench_create(4);
    static const uint8_t code[15] = {0x41, 0x39, 0xd8}; // INC ECX there, not a prefix
    struct peeked k;
    assert_false(peek_quickly(&b->t, code, sizeof code, &k));
    bench_destroy(b);
}

static void flags_behind_an_exit_are_dead_if_overwritten_but_not_in_exact_runs(void **state)
{
    (void)state;
    struct bench *b = bench_create(8);
    static const uint8_t code[64] = {0x8b, 0x07, 0x31, 0xc0, 0xc3}; // mov eax, [rdi]; xor eax, eax; ret
    struct window w = {.la = 0x1000, .gpa = 0x1000, .p = code, .len = sizeof code};
    struct block block = {.rip = 0x1000, .range = b->t.range};
    b->t.b = &block;
    b->t.window = &w;
    assert_int_equal(peek_live(&b->t, 0x1000), 0);
    b->d.exact_flags = true;
    assert_int_equal(peek_live(&b->t, 0x1000), FL_ARITH);
    bench_destroy(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(peek_agrees_with_the_decoder_on_random_bytes),
        cmocka_unit_test(peek_never_looks_beyond_the_room),
        cmocka_unit_test(peek_leaves_32_bit_code_to_the_decoder),
        cmocka_unit_test(flags_behind_an_exit_are_dead_if_overwritten_but_not_in_exact_runs),
    };
    return cmocka_run_group_tests_name("peek", tests, NULL, NULL);
}
