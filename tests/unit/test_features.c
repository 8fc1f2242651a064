// Instructions a processor model does not have: decoded and classified as the translator does for that model.
#include "dbt/internal.h"
#include "fake_host.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

struct bench {
    struct vcpu v;
    struct dbt d;
    struct translation t;
    struct cpu_model *model;
};

static struct bench *bench_create(const char *spec)
{
    struct bench *b = calloc(1, sizeof *b);
    struct fake_host f;
    char error[160] = "";
    fake_host_init(&f, false);
    assert_non_null(b);
    b->model = cpu_model_create_on(&f.host, spec, error, sizeof error);
    if (!b->model)
        fail_msg("%s", error);
    b->v.model = b->model;
    b->d.v = &b->v;
    b->d.tr = &b->t;
    b->t.d = &b->d;
    b->t.key = KEY_PE | KEY_OSFXSR | KEY_OSXSAVE | KEY_AVX | KEY_AVX512;
    classify_init(&b->t);
    features_init(&b->t, b->model);
    decoders_init(&b->t, b->model);
    return b;
}

static void bench_destroy(struct bench *b)
{
    cpu_model_destroy(b->model);
    free(b);
}

// Whether the bytes are #UD in 64-bit or 32-bit code; *m: what they are taken for.
static bool is_ud(struct bench *b, unsigned code_size, const char *bytes, unsigned n, ZydisMnemonic *m)
{
    struct ginsn *g = &b->t.insn[0];
    b->t.code_size = code_size;
    b->t.key = (b->t.key & ~KEY_CODE_MASK) | (code_size == 8 ? KEY_CODE64 : KEY_CODE32);
    ZydisDecoder *dec = &b->t.decoder[code_size == 8 ? 2 : 1];
    memset(g->bytes, 0, sizeof g->bytes);
    memcpy(g->bytes, bytes, n);
    assert_true(ZYAN_SUCCESS(decode_alone(dec, g, MAX_LENGTH)));
    classify(&b->t, g);
    if (m)
        *m = g->z->mnemonic;
    return g->cls == CLASS_SENSITIVE && g->sens == OP_UD;
}

struct sample {
    const char *name, *bytes;
    unsigned length;
};
#define SAMPLE(name, bytes) {name, bytes, sizeof bytes - 1}

static void expect(const char *spec, unsigned code_size, bool ud, const struct sample *s, unsigned n)
{
    struct bench *b = bench_create(spec);
    for (unsigned i = 0; i < n; i++)
        if (is_ud(b, code_size, s[i].bytes, s[i].length, NULL) != ud)
            fail_msg("%s on %s: %s", s[i].name, spec, ud ? "is there" : "raises #UD");
    bench_destroy(b);
}
#define COUNT(a) (sizeof a / sizeof a[0])

static const struct sample since_pentium[] = {
    SAMPLE("rdtsc", "\x0f\x31"), SAMPLE("rdmsr", "\x0f\x32"), SAMPLE("cmpxchg8b", "\x0f\xc7\x0b"),
    SAMPLE("paddb mm", "\x0f\xfc\xc1"),
};
static const struct sample since_pentium2[] = {
    SAMPLE("cmove", "\x0f\x44\xc1"), SAMPLE("fcmovb", "\xda\xc1"), SAMPLE("fcomi", "\xdb\xf1"), SAMPLE("nop [eax]", "\x0f\x1f\x00"),
    SAMPLE("sysenter", "\x0f\x34"), SAMPLE("fxsave", "\x0f\xae\x03"), SAMPLE("prefetcht0", "\x0f\x18\x08"),
};
static const struct sample since_v2[] = {
    SAMPLE("addps", "\x0f\x58\xc1"), SAMPLE("addpd", "\x66\x0f\x58\xc1"), SAMPLE("ldmxcsr", "\x0f\xae\x10"),
    SAMPLE("pmaxub mm", "\x0f\xde\xc1"), SAMPLE("pshufb mm", "\x0f\x38\x00\xc1"), SAMPLE("lddqu", "\xf2\x0f\xf0\x00"),
    SAMPLE("fisttp", "\xdf\x08"), SAMPLE("pmulld", "\x66\x0f\x38\x40\xc1"), SAMPLE("crc32", "\xf2\x0f\x38\xf0\xc1"),
    SAMPLE("popcnt", "\xf3\x0f\xb8\xc1"), SAMPLE("aesenc", "\x66\x0f\x38\xdc\xc1"), SAMPLE("clflush", "\x0f\xae\x38"),
    SAMPLE("mfence", "\x0f\xae\xf0"), SAMPLE("xsave", "\x0f\xae\x20"),
};
static const struct sample since_v3[] = {
    SAMPLE("vaddps", "\xc5\xf8\x58\xc1"), SAMPLE("vpaddd ymm", "\xc5\xf5\xfe\xc2"), SAMPLE("vfmadd", "\xc4\xe2\x71\x98\xc2"),
    SAMPLE("vcvtph2ps", "\xc4\xe2\x79\x13\xc1"), SAMPLE("andn", "\xc4\xe2\x70\xf2\xc2"), SAMPLE("bzhi", "\xc4\xe2\x70\xf5\xc2"),
    SAMPLE("movbe", "\x0f\x38\xf0\x03"),
};
static const struct sample since_v4[] = {
    SAMPLE("vaddps zmm", "\x62\xf1\x74\x48\x58\xc2"), SAMPLE("vaddps xmm evex", "\x62\xf1\x74\x08\x58\xc2"),
    SAMPLE("kmovw", "\xc5\xf8\x90\xc1"), SAMPLE("vpaddb zmm", "\x62\xf1\x75\x48\xfc\xc2"),
};

static void a_486_lacks_all_that_came_later(void **state)
{
    (void)state;
    expect("486", 4, true, since_pentium, COUNT(since_pentium));
    expect("486", 4, true, since_pentium2, COUNT(since_pentium2));
    expect("486", 4, true, since_v2, COUNT(since_v2));
    expect("486", 4, true, since_v3, COUNT(since_v3));
}

static void a_486_has_its_own(void **state)
{
    (void)state;
    static const struct sample own[] = {SAMPLE("bswap", "\x0f\xc8"), SAMPLE("cmpxchg", "\x0f\xb1\x0b"), SAMPLE("xadd", "\x0f\xc1\x0b"),
                                        SAMPLE("fsin", "\xd9\xfe"), SAMPLE("bt", "\x0f\xa3\xc1"), SAMPLE("nop", "\x90")};
    expect("486", 4, false, own, COUNT(own));
}

static void each_model_has_what_it_names(void **state)
{
    (void)state;
    expect("pentium", 4, false, since_pentium, COUNT(since_pentium));
    expect("pentium", 4, true, since_pentium2, COUNT(since_pentium2));
    expect("pentium2", 4, false, since_pentium2, COUNT(since_pentium2));
    expect("pentium2", 4, true, since_v2, COUNT(since_v2));
    expect("v2", 8, false, since_v2, COUNT(since_v2));
    expect("v2", 8, true, since_v3, COUNT(since_v3));
    expect("v3", 8, false, since_v3, COUNT(since_v3));
    expect("v3", 8, true, since_v4, COUNT(since_v4));
    expect("v4", 8, false, since_v4, COUNT(since_v4));
}

static void a_feature_taken_away_takes_its_instructions(void **state)
{
    (void)state;
    static const struct sample bmi2[] = {SAMPLE("bzhi", "\xc4\xe2\x70\xf5\xc2")};
    static const struct sample bmi1[] = {SAMPLE("andn", "\xc4\xe2\x70\xf2\xc2")};
    expect("v3,-bmi2", 8, true, bmi2, 1);
    expect("v3,-bmi2", 8, false, bmi1, 1);
    static const struct sample vl[] = {SAMPLE("vaddps xmm evex", "\x62\xf1\x74\x08\x58\xc2")};
    static const struct sample f[] = {SAMPLE("vaddps zmm", "\x62\xf1\x74\x48\x58\xc2")};
    expect("v4,-avx512vl", 8, true, vl, 1);
    expect("v4,-avx512vl", 8, false, f, 1);
}

static void tzcnt_and_lzcnt_are_bit_scans_on_old_models(void **state)
{
    (void)state;
    ZydisMnemonic m;
    struct bench *b = bench_create("v2");
    assert_false(is_ud(b, 8, "\xf3\x0f\xbc\xc1", 4, &m));
    assert_int_equal(m, ZYDIS_MNEMONIC_BSF);
    assert_false(is_ud(b, 8, "\xf3\x0f\xbd\xc1", 4, &m));
    assert_int_equal(m, ZYDIS_MNEMONIC_BSR);
    bench_destroy(b);
    b = bench_create("v3");
    assert_false(is_ud(b, 8, "\xf3\x0f\xbc\xc1", 4, &m));
    assert_int_equal(m, ZYDIS_MNEMONIC_TZCNT);
    bench_destroy(b);
}

static void hints_of_later_processors_are_nops(void **state)
{
    (void)state;
    static const struct sample hints[] = {SAMPLE("endbr64", "\xf3\x0f\x1e\xfa"), SAMPLE("rdsspq", "\xf3\x48\x0f\x1e\xc9"),
                                          SAMPLE("bndmov", "\x66\x0f\x1a\xc1"), SAMPLE("pause", "\xf3\x90")};
    expect("v2", 8, false, hints, COUNT(hints));
}

static void what_no_model_has_is_undefined(void **state)
{
    (void)state;
    static const struct sample never[] = {
        SAMPLE("xbegin", "\xc7\xf8\0\0\0\0"), SAMPLE("tpause", "\x66\x0f\xae\xf1"), SAMPLE("movdir64b", "\x66\x0f\x38\xf8\x03"),
        SAMPLE("aesenc128kl", "\xf3\x0f\x38\xdc\x03"), SAMPLE("ptwrite", "\xf3\x0f\xae\x23"), SAMPLE("vfmaddps (fma4)", "\xc4\xe3\xf9\x68\xc1\x20"),
        SAMPLE("wrssd", "\x0f\x38\xf6\x03"), SAMPLE("enqcmd", "\xf2\x0f\x38\xf8\x03"),
    };
    expect("host", 8, true, never, COUNT(never));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_486_lacks_all_that_came_later),
        cmocka_unit_test(a_486_has_its_own),
        cmocka_unit_test(each_model_has_what_it_names),
        cmocka_unit_test(a_feature_taken_away_takes_its_instructions),
        cmocka_unit_test(tzcnt_and_lzcnt_are_bit_scans_on_old_models),
        cmocka_unit_test(hints_of_later_processors_are_nops),
        cmocka_unit_test(what_no_model_has_is_undefined),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
