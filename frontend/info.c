#include <cpuid.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "frontend/commands.h"
#include "frontend/exit.h"

// Names of files come from whoever types them: what would break the line, or drive a terminal, shows as a question mark.
void error_line(const char *text)
{
    flockfile(stderr);
    fputs("gnomon: ", stderr);
    for (const unsigned char *p = (const unsigned char *)text; *p; p++)
        putc(*p < 0x20 || *p == 0x7f ? '?' : *p, stderr);
    putc('\n', stderr);
    funlockfile(stderr);
}

void print_error_about(const char *what, const char *word, const char *advice)
{
    char text[512];
    snprintf(text, sizeof text, "%s: %.200s: %s", what, *word ? word : "''", advice);
    error_line(text);
}

static void print_brand(void)
{
    unsigned words[13] = {0}, top, b, c, d;
    char *text = (char *)words;
    __cpuid(0x80000000, top, b, c, d);
    if (top >= 0x80000004)
        for (unsigned leaf = 0; leaf < 3; leaf++)
            __cpuid(0x80000002 + leaf, words[4 * leaf], words[4 * leaf + 1], words[4 * leaf + 2],
                    words[4 * leaf + 3]);
    while (*text == ' ')
        text++;
    printf("processor         %s, %ld online\n", *text ? text : "unknown", sysconf(_SC_NPROCESSORS_ONLN));
}

// The microarchitecture level of the x86-64 psABI, 3.1.1.
static int level(void)
{
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("sse4.2") || !__builtin_cpu_supports("popcnt"))
        return 1;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("bmi") ||
        !__builtin_cpu_supports("bmi2") || !__builtin_cpu_supports("fma"))
        return 2;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512cd") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512vl"))
        return 3;
    return 4;
}

int info_command(int argc, char *const argv[])
{
    if (argc) {
        print_error_about("unexpected word", argv[0], "gnomon info takes none");
        return EXIT_USAGE;
    }
    unsigned a, b, c, d;
    struct sysinfo memory = {0};
    puts("gnomon            " GNOMON_VERSION);
    print_brand();
    printf("level             x86-64-v%d\n", level());
    __cpuid(1, a, b, c, d);
    printf("under a monitor   %s\n", c >> 31 ? "yes" : "no");
    if (!sysinfo(&memory))
        printf("memory            %llu MiB free\n",
               (unsigned long long)memory.freeram * memory.mem_unit >> 20);
    puts("software engine   yes: it needs no more than this");
    printf("hardware engine   not there yet (/dev/kvm %s)\n",
           access("/dev/kvm", R_OK | W_OK) ? "can't be used" : "is there");
    return 0;
}
