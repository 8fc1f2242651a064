#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/exit.h"
#include "frontend/help.h"
#include "frontend/options.h"
#include "frontend/stats.h"
#include "frontend/terminal.h"

static char error[ERROR_SIZE];

#define ARGS(...)                                                                                            \
    (sizeof((char *[]){__VA_ARGS__}) / sizeof(char *)), (char *[])                                           \
    {                                                                                                        \
        __VA_ARGS__                                                                                          \
    }

static bool parse(struct run_options *o, size_t argc, char **argv)
{
    memset(error, 0, sizeof error);
    run_options_init(o);
    return run_options_parse(o, (int)argc, argv, error);
}

static void assert_refused(size_t argc, char **argv, const char *line)
{
    struct run_options o;
    assert_false(parse(&o, argc, argv));
    assert_string_equal(error, line);
    run_options_free(&o);
}

static void every_option_reaches_its_field(void **state)
{
    (void)state;
    struct run_options o;
    assert_true(parse(&o, ARGS("--kernel", "k", "--initrd=a", "--initrd", "b", "--append", "x=1 y",
                               "--memory", "1G", "--cpus", "1", "--cpu", "v2,+avx", "--disk",
                               "d.img,snapshot=on,readonly=on", "--serial", "stdio", "--serial",
                               "unix:/tmp/s", "--debugcon", "file:dbg", "--display", "none", "--engine",
                               "software", "--stats=json", "--trace", "exc,io,file=a,b", "--on-crash", "halt",
                               "--on-reboot", "exit", "--timeout", "1.5", "--sandbox", "off", "--cell=off", "--perf=on",
                               "--deterministic", "--stop-at", "5")));
    assert_string_equal(o.kernel, "k");
    assert_int_equal(o.initrd_count, 2);
    assert_string_equal(o.initrds[0], "a");
    assert_string_equal(o.initrds[1], "b");
    assert_string_equal(o.append, "x=1 y");
    assert_int_equal(o.memory_bytes, 1u << 30);
    assert_int_equal(o.cpus, 1);
    assert_string_equal(o.cpu, "v2,+avx");
    assert_int_equal(o.disk_count, 1);
    assert_string_equal(o.disks[0].path, "d.img");
    assert_true(o.disks[0].snapshot);
    assert_true(o.disks[0].readonly);
    assert_int_equal(o.serial_count, 2);
    assert_int_equal(o.serials[0].kind, CHAR_STDIO);
    assert_int_equal(o.serials[1].kind, CHAR_UNIX);
    assert_string_equal(o.serials[1].path, "/tmp/s");
    assert_int_equal(o.debugcon.kind, CHAR_FILE);
    assert_string_equal(o.debugcon.path, "dbg");
    assert_int_equal(o.engine, ENGINE_SOFTWARE);
    assert_int_equal(o.stats, STATS_JSON);
    assert_int_equal(o.trace, LOG_EXC | LOG_IO);
    assert_string_equal(o.trace_file, "a,b");
    assert_int_equal(o.on_crash, ON_CRASH_HALT);
    assert_int_equal(o.on_reboot, ON_REBOOT_EXIT);
    assert_int_equal(o.timeout_ns, 1500000000);
    assert_false(o.sandbox);
    assert_false(o.cell);
    assert_true(o.perf);
    assert_true(o.deterministic);
    assert_int_equal(o.epoch_s, 1735689600);
    assert_int_equal(o.stop_at, 5);
    run_options_free(&o);
}

static void defaults_are_half_a_gibibyte_and_one_cpu(void **state)
{
    (void)state;
    struct run_options o;
    assert_true(parse(&o, 0, NULL));
    assert_int_equal(o.memory_bytes, 512u << 20);
    assert_int_equal(o.cpus, 1);
    assert_int_equal(o.engine, ENGINE_AUTO);
    assert_int_equal(o.on_crash, ON_CRASH_EXIT);
    assert_int_equal(o.on_reboot, ON_REBOOT_RESET);
    assert_int_equal(o.serial_count, 0);
    run_options_free(&o);
}

static void memory_sizes_are_exact(void **state)
{
    (void)state;
    static const struct {
        char *text;
        uint64_t bytes; // 0: refused
    } cases[] = {
        {"64", 64ull << 20},
        {"64M", 64ull << 20},
        {"64m", 64ull << 20},
        {"2048K", 2ull << 20},
        {"4G", 4ull << 30},
        {"1024G", 1ull << 40},
        {"1025G", 0},
        {"1M", 1ull << 20},
        {"1023K", 0},
        {"1025K", 0},
        {"0", 0},
        {"", 0},
        {"-1", 0},
        {"+1", 0},
        {" 1", 0},
        {"1MB", 0},
        {"0x10M", 0},
        {"18446744073709551616", 0},
        {"99999999999999G", 0},
        {"M", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct run_options o;
        bool ok = parse(&o, ARGS("--memory", cases[i].text));
        assert_int_equal(ok, cases[i].bytes != 0);
        if (ok)
            assert_int_equal(o.memory_bytes, cases[i].bytes);
        run_options_free(&o);
    }
}

static void errors_say_what_where_and_what_to_do(void **state)
{
    (void)state;
    assert_refused(ARGS("--memroy", "1G"), "unknown option: --memroy: did you mean --memory?");
    assert_refused(ARGS("--zzzzzzzz"), "unknown option: --zzzzzzzz: see gnomon help run");
    assert_refused(ARGS("-m", "1G"), "unknown option: -m: options begin with --, see gnomon help run");
    assert_refused(ARGS("--kernel"), "no value: --kernel: write --kernel FILE");
    assert_refused(ARGS("--kernel", ""), "no file name: --kernel: name a file");
    assert_refused(ARGS("--memory", "lots"),
                   "'lots' is no memory size: --memory: write a number and K, M or G, such as 512M");
    assert_refused(ARGS("--cpus", "0"), "'0' is no number of CPUs: --cpus: use 1");
    assert_refused(ARGS("--on-crash", "pray"), "unknown value 'pray': --on-crash: use exit, reset or halt");
    assert_refused(ARGS("--serial", "tcp:1"),
                   "unknown value 'tcp:1': --serial: use stdio, file:PATH, unix:PATH, pty or none");
    assert_refused(ARGS("--serial", "none", "--serial", "none", "--serial", "none"),
                   "more than 2 serial ports: --serial: the machine has COM1 and COM2");
    assert_refused(ARGS("--trace", "nonsense"),
                   "unknown value 'nonsense': --trace: use code, exc, mmu, io, cpu or all");
    assert_refused(ARGS("--trace", "file=x"),
                   "nothing to trace: --trace: name code, exc, mmu, io, cpu or all");
    assert_refused(ARGS("--timeout", "0"), "'0' is no time: --timeout: write seconds, such as 60");
    assert_refused(ARGS("--timeout", "nan"), "'nan' is no time: --timeout: write seconds, such as 60");
    assert_refused(ARGS("--perf=maybe"), "'maybe' is neither on nor off: --perf: write on or off");
    assert_refused(ARGS("--deterministic=maybe"), "'maybe' is neither on nor off: --deterministic: write on or off");
    assert_refused(ARGS("--deterministic=4102444800"),
                   "'4102444800' is no date: --deterministic: write seconds since 1970, on or off");
    assert_refused(ARGS("--stop-at", "-1"),
                   "'-1' is no number of instructions: --stop-at: write one, such as 1000000");
    assert_refused(ARGS("--disk", "d,snapshot=yes"), "'yes' is neither on nor off: --disk: write on or off");
    assert_refused(
        ARGS("/no/such.ini"),
        "can't read the machine file (No such file or directory): /no/such.ini: check its name and its mode");
    assert_refused(ARGS("a.ini", "b.ini"), "a second machine file: b.ini: name one");
}

static void errors_of_any_length_fit(void **state)
{
    (void)state;
    char *argument = malloc(70000);
    memset(argument, 'a', 69999);
    argument[69999] = 0;
    memcpy(argument, "--", 2);
    struct run_options o;
    assert_false(parse(&o, ARGS(argument)));
    assert_true(strlen(error) < ERROR_SIZE - 1);
    run_options_free(&o);
    argument[0] = 'x';
    for (size_t i = 0; i < run_option_count; i++) {
        char name[64];
        snprintf(name, sizeof name, "--%s", run_option_table[i].name);
        parse(&o, ARGS(name, argument)); // whatever it says, it ends and fits
        assert_true(strlen(error) < ERROR_SIZE);
        run_options_free(&o);
    }
    free(argument);
}

static void disk_names_may_hold_commas(void **state)
{
    (void)state;
    struct run_options o;
    assert_true(parse(&o, ARGS("--disk", "a,b,snapshot=off,readonly=on", "--disk", "c,x=y")));
    assert_string_equal(o.disks[0].path, "a,b");
    assert_false(o.disks[0].snapshot);
    assert_true(o.disks[0].readonly);
    assert_string_equal(o.disks[1].path, "c,x=y");
    run_options_free(&o);
}

static void a_repeatable_option_has_a_limit(void **state)
{
    (void)state;
    char *argv[2 * (MAX_INITRDS + 1)];
    for (size_t i = 0; i < MAX_INITRDS + 1; i++) {
        argv[2 * i] = "--initrd";
        argv[2 * i + 1] = "f";
    }
    struct run_options o;
    assert_true(parse(&o, 2 * MAX_INITRDS, argv));
    assert_int_equal(o.initrd_count, MAX_INITRDS);
    run_options_free(&o);
    assert_refused(2 * (MAX_INITRDS + 1), argv, "more than 32 initrds: --initrd: join some with cat");
}

static void senseless_combinations_are_refused(void **state)
{
    (void)state;
    static const struct {
        char *argv[6];
        int argc;
        const char *line;
    } cases[] = {
        {{0}, 0, "nothing to boot: gnomon run: add --kernel FILE or --bios FILE"},
        {{"--bios", "b", "--initrd", "i"}, 4, "no kernel for it: --initrd: add --kernel FILE"},
        {{"--bios", "b", "--append", "i"}, 4, "no kernel for it: --append: add --kernel FILE"},
        {{"--kernel", "k", "--cpus", "2"}, 4, "more than one CPU is not there yet: --cpus: use --cpus 1"},
        {{"--kernel", "k", "--engine", "hardware"},
         4,
         "the hardware engine is not there yet: --engine: use --engine software"},
        {{"--kernel", "k", "--serial", "stdio", "--serial", "stdio"},
         6,
         "two ports on one terminal: --serial: send one elsewhere, such as --serial none"},
        {{"--kernel", "k", "--cell", "off"},
         4,
         "no sandbox without a process of its own: --cell off: add --sandbox off"},
        {{"--kernel", "k", "--cell=off", "--sandbox=off"}, 4, NULL},
        {{"--kernel", "k", "--stop-at=1"}, 3, "instructions are not counted: --stop-at: add --deterministic"},
        {{"--kernel", "k", "--stop-at=1", "--deterministic"}, 4, NULL},
        {{"--kernel", "k"}, 2, NULL},
        {{"--bios", "k", "--serial", "none", "--serial", "stdio"}, 6, NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct run_options o;
        assert_true(parse(&o, cases[i].argc, (char **)cases[i].argv));
        assert_int_equal(run_options_check(&o, error), cases[i].line == NULL);
        if (cases[i].line)
            assert_string_equal(error, cases[i].line);
        run_options_free(&o);
    }
}

// ---- the table against what is written about it

static char *slurp(const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", SOURCE_DIR, name);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    char *text = calloc(1, 1 << 20);
    assert_true(fread(text, 1, (1 << 20) - 1, f) > 0);
    fclose(f);
    return text;
}

// The name as groff wants it: "on\-crash".
static void escape(char *out, const char *name)
{
    for (; *name; name++) {
        if (*name == '-')
            *out++ = '\\';
        *out++ = *name;
    }
    *out = 0;
}

static void the_man_page_has_every_option_and_no_other(void **state)
{
    (void)state;
    char *text = slurp("docs/gnomon.1"), *others = strstr(text, "\n.SH INFO");
    size_t found = 0;
    assert_non_null(others);
    *others = 0;
    for (size_t i = 0; i < run_option_count; i++) {
        char name[64], entry[128];
        escape(name, run_option_table[i].name);
        snprintf(entry, sizeof entry, ".TP\n.BI \\-\\-%s \"", name);
        assert_non_null(strstr(text, entry));
    }
    for (const char *p = text; (p = strstr(p, ".TP\n.BI \\-\\-")); p++)
        found++;
    assert_int_equal(found, run_option_count);
    free(text);
}

static void the_completion_has_every_option(void **state)
{
    (void)state;
    char *text = slurp("frontend/completion.bash");
    char *list = strstr(text, "options='");
    assert_non_null(list);
    *strchr(list + 9, '\'') = ' ';
    for (size_t i = 0; i < run_option_count; i++) {
        char word[64];
        snprintf(word, sizeof word, "--%s ", run_option_table[i].name);
        char *at = strstr(list, word);
        if (!at) { // last on its line
            word[strlen(word) - 1] = '\n';
            at = strstr(list, word);
        }
        assert_non_null(at);
    }
    free(text);
}

static void help_fits_the_terminal_and_names_every_option(void **state)
{
    (void)state;
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    assert_true(help_topic(f, "run"));
    fclose(f);
    for (size_t i = 0; i < run_option_count; i++) {
        char word[64];
        snprintf(word, sizeof word, "  --%s", run_option_table[i].name);
        assert_non_null(strstr(text, word));
        assert_non_null(strstr(text, run_option_table[i].help));
    }
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        assert_true(strlen(line) <= 110);
    free(text);
    assert_false(help_topic(stdout, "no such topic"));
}

static void exit_statuses_are_even_and_documented(void **state)
{
    (void)state;
    static const int statuses[] = {EXIT_POWERED_OFF, EXIT_USAGE,     EXIT_HOST_ERROR, EXIT_GUEST_CRASHED,
                                   EXIT_KILLED,      EXIT_TIMED_OUT, EXIT_REBOOTED};
    char *man = slurp("docs/gnomon.1"), *help = NULL;
    size_t size;
    FILE *f = open_memstream(&help, &size);
    assert_true(help_topic(f, "exit"));
    fclose(f);
    for (size_t i = 0; i < sizeof statuses / sizeof *statuses; i++) {
        char entry[32];
        assert_int_equal(statuses[i] % 2, 0);
        snprintf(entry, sizeof entry, ".TP\n.B %d\n", statuses[i]);
        assert_non_null(strstr(man, entry));
        snprintf(entry, sizeof entry, "\n  %2d  ", statuses[i]);
        assert_non_null(strstr(help, entry));
    }
    free(man);
    free(help);
}

// ---- keys and figures

static void ctrl_a_begins_a_command(void **state)
{
    (void)state;
    struct key_filter f = {0};
    assert_int_equal(key_filter_byte(&f, 'x'), KEY_SEND);
    assert_int_equal(key_filter_byte(&f, 3), KEY_SEND); // Ctrl-C is the guest's
    assert_int_equal(key_filter_byte(&f, 1), KEY_NOTHING);
    assert_int_equal(key_filter_byte(&f, 'x'), KEY_QUIT);
    assert_int_equal(key_filter_byte(&f, 1), KEY_NOTHING);
    assert_int_equal(key_filter_byte(&f, 1), KEY_SEND);
    assert_int_equal(key_filter_byte(&f, 'x'), KEY_SEND);
    assert_int_equal(key_filter_byte(&f, 1), KEY_NOTHING);
    assert_int_equal(key_filter_byte(&f, 'h'), KEY_HELP);
    assert_int_equal(key_filter_byte(&f, 1), KEY_NOTHING);
    assert_int_equal(key_filter_byte(&f, 's'), KEY_STATS);
    assert_int_equal(key_filter_byte(&f, 1), KEY_NOTHING);
    assert_int_equal(key_filter_byte(&f, 'q'), KEY_NOTHING);
    assert_int_equal(key_filter_byte(&f, 'q'), KEY_SEND);
}

static void list_figures(void *opaque, struct stats_sink *sink)
{
    (void)opaque;
    stats_count(sink, "blocks", 12345678901234);
    stats_ns(sink, "wall", 1500000000);
    stats_ratio(sink, "hits", 1, 4);
    stats_ratio(sink, "nothing", 1, 0);
    stats_text(sink, "engine", "a\"b\\c\n");
}

static void figures_print_as_text_and_json(void **state)
{
    (void)state;
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    stats_print(f, true, list_figures, NULL);
    fclose(f);
    assert_string_equal(text, "{\"blocks\": 12345678901234, \"wall\": 1500000000, \"hits\": 0.250000, "
                              "\"nothing\": 0.000000, \"engine\": \"a\\\"b\\\\c\\u000a\"}\n");
    free(text);
    f = open_memstream(&text, &size);
    stats_print(f, false, list_figures, NULL);
    fclose(f);
    assert_non_null(strstr(text, "blocks                                 12345678901234\n"));
    assert_non_null(strstr(text, "wall                                         1.500000 s\n"));
    assert_non_null(strstr(text, "hits                                            25.00 %\n"));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_option_reaches_its_field),
        cmocka_unit_test(defaults_are_half_a_gibibyte_and_one_cpu),
        cmocka_unit_test(memory_sizes_are_exact),
        cmocka_unit_test(errors_say_what_where_and_what_to_do),
        cmocka_unit_test(errors_of_any_length_fit),
        cmocka_unit_test(disk_names_may_hold_commas),
        cmocka_unit_test(a_repeatable_option_has_a_limit),
        cmocka_unit_test(senseless_combinations_are_refused),
        cmocka_unit_test(the_man_page_has_every_option_and_no_other),
        cmocka_unit_test(the_completion_has_every_option),
        cmocka_unit_test(help_fits_the_terminal_and_names_every_option),
        cmocka_unit_test(exit_statuses_are_even_and_documented),
        cmocka_unit_test(ctrl_a_begins_a_command),
        cmocka_unit_test(figures_print_as_text_and_json),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
