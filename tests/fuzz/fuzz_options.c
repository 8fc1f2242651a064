// The command line and machine files. Input: what to parse (1 byte), then arguments that end in a zero byte, or the file.
// Whatever is refused is refused with a reason; nothing is opened.
#include "frontend/options.h"
#include "tests/fuzz/fuzz.h"

#define MAX_ARGUMENTS 64

static void check_line(const char *error)
{
    size_t n = strnlen(error, ERROR_SIZE);
    claim(n > 0 && n < ERROR_SIZE, "a refusal without a reason");
}

static void fuzz_arguments(struct run_options *o, struct cursor *c)
{
    char *argv[MAX_ARGUMENTS + 1] = {0}, error[ERROR_SIZE] = "";
    int argc = 0;
    while (c->left && argc < MAX_ARGUMENTS) {
        size_t n = strnlen((const char *)c->p, c->left), whole = n;
        const uint8_t *p = take_bytes(c, &whole);
        take(c, 1);
        char *text = strndup((const char *)p, n);
        claim(text, "out of memory");
        argv[argc++] = text;
    }
    // An argument that is neither option nor value names a machine file, which fuzz_file() is for: none can be opened.
    for (int i = 0; i < argc; i++)
        if (argv[i][0] != '-') {
            char *safe = NULL;
            if (asprintf(&safe, "/proc/self/nothing/%s", argv[i]) < 0)
                abort();
            // A value stays as it is: what comes after an option that wants one.
            const struct option_info *info = i && !strncmp(argv[i - 1], "--", 2) ? option_find(argv[i - 1] + 2, strlen(argv[i - 1] + 2)) : NULL;
            if (info && !info->optional) {
                free(safe);
                continue;
            }
            free(argv[i]);
            argv[i] = safe;
        }
    bool ok = run_options_parse(o, argc, argv, error);
    if (!ok)
        check_line(error);
    else if (!run_options_check(o, error))
        check_line(error);
    for (int i = 0; i < argc; i++)
        free(argv[i]);
}

static void fuzz_file(struct run_options *o, struct cursor *c, const char *directory)
{
    char error[ERROR_SIZE] = "";
    size_t n = c->left;
    const char *text = (const char *)take_bytes(c, &n);
    if (!machine_file_parse(o, text, n, "vm.ini", directory, error))
        check_line(error);
    else if (!run_options_check(o, error))
        check_line(error);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct cursor c = {data, size};
    struct run_options o;
    run_options_init(&o);
    switch (take(&c, 1) & 3) {
    case 0: fuzz_arguments(&o, &c); break;
    case 1: fuzz_file(&o, &c, "/a directory"); break;
    default: fuzz_file(&o, &c, NULL); break;
    }
    run_options_free(&o);
    return 0;
}
