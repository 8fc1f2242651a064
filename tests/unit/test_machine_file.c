#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "frontend/options.h"

static char error[ERROR_SIZE];

static bool parse(struct run_options *o, const char *text)
{
    memset(error, 0, sizeof error);
    run_options_init(o);
    return machine_file_parse(o, text, strlen(text), "vm.ini", "/d", error);
}

static void assert_refused(const char *text, const char *line)
{
    struct run_options o;
    assert_false(parse(&o, text));
    assert_string_equal(error, line);
    run_options_free(&o);
}

static void values_are_taken_as_they_stand(void **state)
{
    (void)state;
    struct run_options o;
    assert_true(parse(&o, "# mine\n; too\n\n [machine]\r\nkernel=vmlinuz\n  append =  a=\"b c\"; \\s #x "
                          "\t\r\nmemory = 1G\nperf\n"));
    assert_string_equal(o.kernel, "/d/vmlinuz");
    assert_string_equal(o.append, "a=\"b c\"; \\s #x");
    assert_int_equal(o.memory_bytes, 1u << 30);
    assert_true(o.perf);
    run_options_free(&o);
}

static void an_empty_file_sets_nothing(void **state)
{
    (void)state;
    struct run_options o;
    assert_true(parse(&o, ""));
    assert_null(o.kernel);
    run_options_free(&o);
    assert_true(parse(&o, "[machine]"));
    run_options_free(&o);
}

static void an_empty_value_is_a_value(void **state)
{
    (void)state;
    struct run_options o;
    assert_true(parse(&o, "[machine]\nappend =\n"));
    assert_string_equal(o.append, "");
    run_options_free(&o);
    assert_refused("[machine]\nkernel =\n", "no file name: vm.ini:2: name a file");
}

static void relative_paths_start_at_the_files_directory(void **state)
{
    (void)state;
    struct run_options o;
    assert_true(parse(
        &o, "[machine]\ninitrd = a\ninitrd = /b\ndisk = c,readonly=on\nserial = file:log\nserial = unix:/s\n"
            "trace = io,file=t\n"));
    assert_int_equal(o.initrd_count, 2);
    assert_string_equal(o.initrds[0], "/d/a");
    assert_string_equal(o.initrds[1], "/b");
    assert_string_equal(o.disks[0].path, "/d/c");
    assert_string_equal(o.serials[0].path, "/d/log");
    assert_string_equal(o.serials[1].path, "/s");
    assert_string_equal(o.trace_file, "/d/t");
    run_options_free(&o);
}

static void errors_name_the_line(void **state)
{
    (void)state;
    assert_refused("[machine]\nmemroy = 1G\n", "unknown key 'memroy': vm.ini:2: did you mean 'memory'?");
    assert_refused("[machine]\n\nzzzzzzzzz = 1\n",
                   "unknown key 'zzzzzzzzz': vm.ini:3: see gnomon help machine-file");
    assert_refused("[machine]\n= 1\n", "unknown key '': vm.ini:2: see gnomon help machine-file");
    assert_refused("[machine]\nkernel\n", "no value: vm.ini:2: write kernel = FILE");
    assert_refused("[machine]\nmemory = 1G\nmemory = 2G\n", "memory is set twice: vm.ini:3: leave one out");
    assert_refused("[other]\n", "unknown section '[other]': vm.ini:1: the one section is [machine]");
    assert_refused("kernel = x\n", "text before the section: vm.ini:1: begin a machine file with [machine]");
    assert_refused("[machine]\nmemory = 3 apples\n",
                   "'3 apples' is no memory size: vm.ini:2: write a number and K, M or G, such as 512M");
}

static void a_binary_file_is_refused(void **state)
{
    (void)state;
    struct run_options o;
    static const char text[] = "[machine]\nkernel = a\0b\n";
    run_options_init(&o);
    assert_false(machine_file_parse(&o, text, sizeof text - 1, "vm.ini", "/d", error));
    assert_string_equal(error, "this is no machine file: vm.ini:2: a kernel goes behind --kernel");
    run_options_free(&o);
}

static void an_overlong_value_is_refused(void **state)
{
    (void)state;
    char text[6000];
    memset(text, 'a', sizeof text);
    memcpy(text, "[machine]\nappend = ", 19);
    text[sizeof text - 1] = 0;
    assert_refused(text, "the value is longer than 4096 bytes: vm.ini:2: shorten it");
    text[19 + 4096] = 0;
    struct run_options o;
    assert_true(parse(&o, text));
    assert_int_equal(strlen(o.append), 4096);
    run_options_free(&o);
}

// Random bytes, and random lines made of words the parser knows: any outcome but a wild access.
static void noise_does_no_harm(void **state)
{
    (void)state;
    static const char *const words[] = {"[machine]",
                                        "kernel",
                                        "memory",
                                        "=",
                                        "\n",
                                        " ",
                                        "serial",
                                        "disk",
                                        "unix:",
                                        ",snapshot=",
                                        "on",
                                        "trace",
                                        "io,file=",
                                        "\r",
                                        "#",
                                        ",",
                                        "9999999999999999999G",
                                        "perf",
                                        "stdio"};
    uint32_t seed = 1;
    for (int round = 0; round < 20000; round++) {
        char text[256];
        size_t n = 0;
        while (n < sizeof text - 32) {
            seed = seed * 1664525 + 1013904223;
            if (round % 2) {
                text[n++] = (char)(seed >> 24);
            } else {
                const char *word = words[(seed >> 16) % (sizeof words / sizeof *words)];
                memcpy(text + n, word, strlen(word));
                n += strlen(word);
            }
        }
        char *exact = malloc(n); // so that a sanitizer sees a read past the end
        memcpy(exact, text, n);
        struct run_options o;
        run_options_init(&o);
        machine_file_parse(&o, exact, n, "vm.ini", NULL, error);
        run_options_free(&o);
        free(exact);
    }
}

static void the_command_line_goes_first(void **state)
{
    (void)state;
    char path[] = "/tmp/gnomon-test-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    static const char text[] = "[machine]\nkernel = k\ninitrd = a\ninitrd = b\nmemory = 1G\nstats = json\n";
    assert_int_equal(write(fd, text, sizeof text - 1), sizeof text - 1);
    close(fd);
    struct run_options o;
    char *argv[] = {"--memory", "2G", path, "--initrd", "c", "--initrd", "d"};
    run_options_init(&o);
    assert_true(run_options_parse(&o, 7, argv, error));
    unlink(path);
    assert_string_equal(o.kernel, "/tmp/k");
    assert_int_equal(o.memory_bytes, 2ull << 30);
    assert_int_equal(o.initrd_count, 2);
    assert_string_equal(o.initrds[0], "c"); // relative to the working directory
    assert_string_equal(o.initrds[1], "d");
    assert_int_equal(o.stats, STATS_JSON);
    run_options_free(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_are_taken_as_they_stand),
        cmocka_unit_test(an_empty_file_sets_nothing),
        cmocka_unit_test(an_empty_value_is_a_value),
        cmocka_unit_test(relative_paths_start_at_the_files_directory),
        cmocka_unit_test(errors_name_the_line),
        cmocka_unit_test(a_binary_file_is_refused),
        cmocka_unit_test(an_overlong_value_is_refused),
        cmocka_unit_test(noise_does_no_harm),
        cmocka_unit_test(the_command_line_goes_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
