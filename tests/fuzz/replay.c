// Runs a fuzz target over files and the files of directories, without a fuzzer: every input that once found a bug.
//   replay_NAME PATH...
#include "tests/fuzz/fuzz.h"

#include <dirent.h>
#include <errno.h>
#include <sys/stat.h>

static unsigned ran;

static void run_file(const char *path)
{
    FILE *f = fopen(path, "rb");
    uint8_t *data = malloc(1 << 20);
    if (!f || !data) {
        fprintf(stderr, "replay: %s: %s\n", path, strerror(errno));
        exit(1);
    }
    size_t n = fread(data, 1, 1 << 20, f);
    fclose(f);
    uint8_t *exact = malloc(n ? n : 1); // so that a sanitizer sees reads beyond the end
    if (!exact)
        exit(1);
    memcpy(exact, data, n);
    free(data);
    fprintf(stderr, "%s\n", path); // the last line names the input that crashed
    LLVMFuzzerTestOneInput(exact, n);
    free(exact);
    ran++;
}

static void run_path(const char *path)
{
    struct stat st;
    if (stat(path, &st) || !S_ISDIR(st.st_mode)) {
        run_file(path);
        return;
    }
    struct dirent **names;
    int n = scandir(path, &names, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        char file[4096];
        snprintf(file, sizeof file, "%s/%s", path, names[i]->d_name);
        if (names[i]->d_name[0] != '.')
            run_file(file);
        free(names[i]);
    }
    if (n >= 0)
        free(names);
}

int main(int argc, char *argv[])
{
    // Two inputs that every target must stand.
    LLVMFuzzerTestOneInput((const uint8_t *)"", 0);
    static const uint8_t ones[64] = {[0 ... 63] = 0xff};
    LLVMFuzzerTestOneInput(ones, sizeof ones);
    for (int i = 1; i < argc; i++)
        run_path(argv[i]);
    printf("%u inputs\n", ran + 2);
    return 0;
}
