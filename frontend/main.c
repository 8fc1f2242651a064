#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/planted.h"
#include "frontend/commands.h"
#include "frontend/exit.h"
#include "frontend/help.h"
#include "frontend/options.h"

static int unknown(const char *what, const char *word, const char *suggestion, const char *advice)
{
    char text[64];
    snprintf(text, sizeof text, "did you mean %s?", suggestion ? suggestion : "");
    print_error_about(what, word, suggestion ? text : advice);
    return EXIT_USAGE;
}

static int help_command(int argc, char *const argv[])
{
    if (!argc || (argc == 1 && (!strcmp(argv[0], "help") || !strcmp(argv[0], "--help")))) {
        help_topics(stdout);
        return 0;
    }
    if (argc > 1) {
        print_error_about("unexpected word", argv[1], "gnomon help takes one topic");
        return EXIT_USAGE;
    }
    if (!help_topic(stdout, argv[0]))
        return unknown("no such topic", argv[0], help_suggest(argv[0]), "gnomon help lists them");
    return 0;
}

static int version_command(int argc, char *const argv[])
{
    if (argc) {
        print_error_about("unexpected word", argv[0], "gnomon --version takes none");
        return EXIT_USAGE;
    }
    puts("gnomon " GNOMON_VERSION);
    return 0;
}

static const struct {
    const char *name;
    int (*main)(int argc, char *const argv[]);
} commands[] = {
    {"run", run_command},           {"info", info_command},   {"help", help_command},
    {"diverge", diverge_command},   {"diverge-side", diverge_side_command},
    {"version", version_command},   {"--help", help_command}, {"-h", help_command},
    {"--version", version_command}, {"-V", version_command},
};

static int dispatch(int argc, char *const argv[])
{
    if (argc < 2) {
        help_short(stdout);
        return 0;
    }
    for (int i = 2; i < argc; i++) {
        bool topic = !strcmp(argv[1], "run") || !strcmp(argv[1], "info") || !strcmp(argv[1], "diverge");
        if (topic && (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h"))) {
            help_topic(stdout, argv[1]);
            return 0;
        }
    }
    const char *best = NULL;
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (!strcmp(argv[1], commands[i].name))
            return commands[i].main(argc - 2, argv + 2);
        best = closer_word(argv[1], strlen(argv[1]), best, commands[i].name);
    }
    return unknown("unknown command", argv[1], best, "the first word is run, info, diverge or help");
}

// The number of a standard file that is closed would go to the next one opened, a disk for instance, and so
// would what is printed. What takes its place here is open the wrong way round: using it fails as before.
static bool hold_standard_files(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF && open("/dev/null", fd ? O_RDONLY : O_WRONLY) != fd)
            return false;
    return true;
}

int main(int argc, char *argv[])
{
    if (!hold_standard_files())
        return EXIT_HOST_ERROR; // there may be nowhere to say so
#ifdef GNOMON_PLANTED
    if (!planted_choose())
        return unknown("unknown bug", getenv("GNOMON_PLANTED"), NULL, "set GNOMON_PLANTED to a name in cpu/planted.h");
#endif
    int status = dispatch(argc, argv);
    if (fflush(stdout) == EOF && status == 0) {
        error_line("can't write: standard output: free some space");
        status = EXIT_HOST_ERROR;
    }
    return status;
}
