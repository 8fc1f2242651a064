// The file that perf looks names of translated code up in: how it is made, and that an address has one name.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "frontend/perf_map.h"

static char directory[] = "/tmp/gnomon-perf-XXXXXX";
static char error[512];

static int set_up(void **state)
{
    (void)state;
    return mkdtemp(directory) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    return rmdir(directory);
}

static void put(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static const char *get(const char *path)
{
    static char text[4096];
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    fclose(f);
    return text;
}

// What is left of `lines`.
static const char *settled(const char *lines, unsigned long dropped_wanted)
{
    struct perf_map map;
    unsigned long dropped = 99;

    assert_int_equal(perf_map_open(&map, directory, 7, error, sizeof error), 0);
    fputs(lines, map.f);
    assert_int_equal(perf_map_close(&map, &dropped), 0);
    assert_int_equal(dropped, dropped_wanted);
    const char *text = get(map.path);
    unlink(map.path);
    return text;
}

static void map_is_named_after_the_process_and_only_its_user_may_read_it(void **state)
{
    struct perf_map map;
    struct stat s;
    unsigned long dropped;
    char want[300];
    (void)state;

    assert_int_equal(perf_map_open(&map, directory, 1234, error, sizeof error), 0);
    snprintf(want, sizeof want, "%s/perf-1234.map", directory);
    assert_string_equal(map.path, want);
    assert_int_equal(stat(map.path, &s), 0);
    assert_int_equal(s.st_mode & 07777, 0600);
    assert_int_equal(perf_map_close(&map, &dropped), 0);
    unlink(map.path);
}

static void what_an_earlier_process_of_that_number_left_is_replaced(void **state)
{
    struct perf_map map;
    unsigned long dropped;
    char old[300], kept[300];
    (void)state;

    snprintf(old, sizeof old, "%s/perf-7.map", directory);
    snprintf(kept, sizeof kept, "%s/kept", directory);
    put(kept, "old\n");
    assert_int_equal(link(kept, old), 0); // a second name: the file itself must not be written
    assert_int_equal(perf_map_open(&map, directory, 7, error, sizeof error), 0);
    fputs("1000 10 new\n", map.f);
    assert_int_equal(perf_map_close(&map, &dropped), 0);
    assert_string_equal(get(old), "1000 10 new\n");
    assert_string_equal(get(kept), "old\n");
    unlink(old);
    unlink(kept);
}

static void a_symbolic_link_is_not_followed_and_stays(void **state)
{
    struct perf_map map;
    struct stat s;
    char name[300], target[300];
    (void)state;

    snprintf(name, sizeof name, "%s/perf-7.map", directory);
    snprintf(target, sizeof target, "%s/target", directory);
    assert_int_equal(symlink(target, name), 0);
    assert_int_equal(perf_map_open(&map, directory, 7, error, sizeof error), -EEXIST);
    assert_null(map.f);
    assert_non_null(strstr(error, name));
    assert_null(strchr(error, '\n'));
    assert_int_equal(stat(target, &s), -1);
    assert_int_equal(lstat(name, &s), 0);
    unlink(name);
}

static void a_directory_that_is_not_there_is_one_line(void **state)
{
    struct perf_map map;
    (void)state;

    assert_int_equal(perf_map_open(&map, "/no/such/directory", 7, error, sizeof error), -ENOENT);
    assert_string_equal(error, "can't write perf's map (No such file or directory): /no/such/directory/perf-7.map: leave --perf out");
}

static void lines_that_do_not_overlap_stay(void **state)
{
    static const char lines[] = "100 20 stub\n200 10 a\n210 10 b\n220 10 c\n";
    (void)state;
    assert_string_equal(settled(lines, 0), lines);
}

static void code_that_was_overwritten_has_its_last_name_only(void **state)
{
    (void)state;
    // e reaches into what c has; the stubs lie below all blocks
    assert_string_equal(settled("100 20 stub\n200 10 a\n210 10 b\n220 20 c\n240 10 far\n"
                                "200 8 d\n208 20 e\n",
                                3),
                        "100 20 stub\n240 10 far\n200 8 d\n208 20 e\n");
}

static void what_was_overwritten_twice_stays_overwritten(void **state)
{
    (void)state;
    assert_string_equal(settled("200 40 a\n240 40 b\n280 40 c\n"
                                "200 60 d\n"
                                "200 10 e\n",
                                3),
                        "280 40 c\n200 10 e\n");
}

static void code_in_a_gap_of_later_code_keeps_its_name(void **state)
{
    (void)state;
    assert_string_equal(settled("200 10 a\n210 10 b\n220 10 c\n"
                                "200 10 d\n220 10 e\n",
                                2),
                        "210 10 b\n200 10 d\n220 10 e\n");
}

static void a_line_cut_off_goes_when_the_rest_is_written_again(void **state)
{
    (void)state;
    assert_string_equal(settled("200 10 a\n200 10 b\n210 1", 1), "200 10 b\n");
}

static void addresses_of_no_code_cache_are_refused(void **state)
{
    struct perf_map map;
    unsigned long dropped;
    (void)state;

    assert_int_equal(perf_map_open(&map, directory, 7, error, sizeof error), 0);
    fputs("200 10 a\n200 10 b\nfffffff000000000 10 c\n1000 7000000000000000 d\n", map.f);
    assert_int_equal(perf_map_close(&map, &dropped), -ERANGE);
    unlink(map.path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(map_is_named_after_the_process_and_only_its_user_may_read_it),
        cmocka_unit_test(what_an_earlier_process_of_that_number_left_is_replaced),
        cmocka_unit_test(a_symbolic_link_is_not_followed_and_stays),
        cmocka_unit_test(a_directory_that_is_not_there_is_one_line),
        cmocka_unit_test(lines_that_do_not_overlap_stay),
        cmocka_unit_test(code_that_was_overwritten_has_its_last_name_only),
        cmocka_unit_test(what_was_overwritten_twice_stays_overwritten),
        cmocka_unit_test(code_in_a_gap_of_later_code_keeps_its_name),
        cmocka_unit_test(a_line_cut_off_goes_when_the_rest_is_written_again),
        cmocka_unit_test(addresses_of_no_code_cache_are_refused),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
