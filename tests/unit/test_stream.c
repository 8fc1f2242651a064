#include "device_fixture.h"
#include <errno.h>

struct fields {
    uint8_t a;
    uint16_t b;
    uint32_t c, limited;
    uint64_t d;
    bool e;
    uint8_t raw[5];
};

static unsigned transfer(struct stream *s, struct fields *f, unsigned version)
{
    unsigned stored = stream_section(s, "thing", version);
    stream_u8(s, &f->a);
    stream_u16(s, &f->b);
    stream_u32(s, &f->c);
    stream_u64(s, &f->d);
    stream_bool(s, &f->e);
    stream_bytes(s, f->raw, sizeof f->raw);
    stream_u32_max(s, &f->limited, 100);
    return stored;
}

static const struct fields sample = {0x12, 0x3456,         0x789abcde, 100, 0x0123456789abcdef,
                                     true, {1, 2, 3, 4, 5}};

static void saved_fields_load_again_and_nothing_is_left(void **state)
{
    struct fields f = sample, g = {0};
    struct stream s, l;
    (void)state;
    stream_init_save(&s);
    assert_int_equal(transfer(&s, &f, 3), 3);
    assert_int_equal(s.error, 0);
    stream_init_load(&l, s.data, s.size);
    assert_int_equal(transfer(&l, &g, 4), 3); // newer code reads the older section
    assert_int_equal(l.error, 0);
    assert_int_equal(l.position, l.size);
    assert_int_equal(g.a, 0x12);
    assert_int_equal(g.b, 0x3456);
    assert_int_equal(g.c, 0x789abcde);
    assert_true(g.d == 0x0123456789abcdef);
    assert_true(g.e);
    assert_memory_equal(g.raw, sample.raw, 5);
    assert_int_equal(g.limited, 100);
    stream_free(&l);
    stream_free(&s);
}

static void layout_is_little_endian_behind_name_and_version(void **state)
{
    static const uint8_t expected[] = {2, 'a', 'b', 7, 0, 0, 0, 0x34, 0x12};
    struct stream s;
    uint16_t v = 0x1234;
    (void)state;
    stream_init_save(&s);
    stream_section(&s, "ab", 7);
    stream_u16(&s, &v);
    assert_int_equal(s.size, sizeof expected);
    assert_memory_equal(s.data, expected, sizeof expected);
    stream_free(&s);
}

static void newer_version_and_other_name_are_refused(void **state)
{
    struct fields f = sample, g = {0};
    struct stream s, l;
    (void)state;
    stream_init_save(&s);
    transfer(&s, &f, 3);
    stream_init_load(&l, s.data, s.size);
    assert_int_equal(transfer(&l, &g, 2), 0);
    assert_int_equal(l.error, -EPROTO);
    assert_int_equal(g.a, 0);
    stream_init_load(&l, s.data, s.size);
    assert_int_equal(stream_section(&l, "thong", 3), 0);
    assert_int_equal(l.error, -EINVAL);
    stream_init_load(&l, s.data, s.size);
    assert_int_equal(stream_section(&l, "thing2", 3), 0);
    assert_int_equal(l.error, -EINVAL);
    stream_free(&s);
}

static void every_truncation_is_an_error_and_leaves_later_fields_alone(void **state)
{
    struct fields f = sample;
    struct stream s, l;
    (void)state;
    stream_init_save(&s);
    transfer(&s, &f, 3);
    for (size_t n = 0; n < s.size; n++) {
        struct fields g = {.limited = 7};
        stream_init_load(&l, s.data, n);
        transfer(&l, &g, 3);
        assert_true(l.error < 0);
        assert_int_equal(g.limited, 7);
    }
    stream_free(&s);
}

static void value_beyond_its_limit_fails_the_load(void **state)
{
    struct stream s, l;
    uint32_t v = 101, w = 5;
    uint8_t two = 2;
    bool b = false;
    (void)state;
    stream_init_save(&s);
    stream_u32(&s, &v);
    stream_u8(&s, &two);
    stream_init_load(&l, s.data, s.size);
    stream_u32_max(&l, &w, 100);
    assert_int_equal(l.error, -ERANGE);
    assert_int_equal(w, 5);
    stream_init_load(&l, s.data, s.size);
    stream_u32_max(&l, &w, 101);
    assert_int_equal(w, 101);
    stream_bool(&l, &b);
    assert_int_equal(l.error, -ERANGE);
    assert_false(b);
    stream_free(&s);
}

static void first_error_sticks(void **state)
{
    static const uint8_t data[] = {9};
    struct stream l;
    uint64_t v = 1;
    uint8_t b = 1;
    (void)state;
    stream_init_load(&l, data, sizeof data);
    stream_u64(&l, &v);
    assert_int_equal(l.error, -ENODATA);
    stream_u8(&l, &b); // would fit
    assert_int_equal(b, 1);
    assert_int_equal(v, 1);
}

static void large_save_grows(void **state)
{
    struct stream s;
    uint8_t block[1000];
    (void)state;
    memset(block, 0xa5, sizeof block);
    stream_init_save(&s);
    for (int i = 0; i < 100; i++)
        stream_bytes(&s, block, sizeof block);
    assert_int_equal(s.size, 100000);
    assert_int_equal(s.data[99999], 0xa5);
    stream_free(&s);
}

static void nothing(void *opaque, uint64_t now_ns)
{
    (void)opaque, (void)now_ns;
}

static void timer_keeps_its_deadline_or_its_absence(void **state)
{
    struct timer_queue q = {0};
    struct timer a, b;
    struct stream s, l;
    (void)state;
    timer_init(&a, &q, nothing, NULL);
    timer_init(&b, &q, nothing, NULL);
    timer_arm(&a, 12345);
    stream_init_save(&s);
    stream_timer(&s, &a);
    stream_timer(&s, &b);
    timer_cancel(&a);
    timer_arm(&b, 1);
    stream_init_load(&l, s.data, s.size);
    stream_timer(&l, &a);
    stream_timer(&l, &b);
    assert_int_equal(a.deadline_ns, 12345);
    assert_ptr_equal(q.head, &a);
    assert_null(a.next);
    stream_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(saved_fields_load_again_and_nothing_is_left),
        cmocka_unit_test(layout_is_little_endian_behind_name_and_version),
        cmocka_unit_test(newer_version_and_other_name_are_refused),
        cmocka_unit_test(every_truncation_is_an_error_and_leaves_later_fields_alone),
        cmocka_unit_test(value_beyond_its_limit_fails_the_load),
        cmocka_unit_test(first_error_sticks),
        cmocka_unit_test(large_save_grows),
        cmocka_unit_test(timer_keeps_its_deadline_or_its_absence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
