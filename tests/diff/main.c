// difftest: random instruction sequences on the host's processor and in the translator, from equal states.
#include "tests/diff/run.h"
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void usage(FILE *f)
{
    fprintf(
        f,
        "usage: difftest [options]\n"
        "  --mode 64|32|16     code segment (64)\n"
        "  --cases N           how many (100000)\n"
        "  --seed S            default: from the clock, printed\n"
        "  --case N            run one case of the seed, and print it if it fails\n"
        "  --filter MNEMONIC   only forms of one mnemonic\n"
        "  --native-only       native against native: checks the harness and that forms are deterministic\n"
        "  --fpu-pointers      compare x87 FOP, FIP and FDP too\n"
        "  --jobs N            worker processes (number of CPUs)\n"
        "  --max-failures N    stop after so many (20)\n"
        "  --brief             one line a failure\n"
        "  --coverage FILE     write the table of forms\n"
        "  --require PERCENT   fail when fewer of the forms are covered\n"
        "  --plant MNEMONIC    get it wrong on the second side: shows that the harness sees and shrinks it\n"
        "  --list              list the forms this host offers\n");
}

enum {
    OPT_MODE = 256,
    OPT_CASES,
    OPT_SEED,
    OPT_CASE,
    OPT_FILTER,
    OPT_NATIVE,
    OPT_POINTERS,
    OPT_JOBS,
    OPT_MAX,
    OPT_COVERAGE,
    OPT_REQUIRE,
    OPT_LIST,
    OPT_PLANT,
    OPT_BRIEF,
    OPT_HELP
};

static bool parse_number(const char *text, uint64_t *out)
{
    char *end;
    *out = strtoull(text, &end, 0);
    return *text && !*end;
}

static bool parse_mode(const char *text, enum diff_mode *mode)
{
    static const char *const names[] = {"64", "32", "16"};
    for (unsigned i = 0; i < 3; i++)
        if (!strcmp(text, names[i])) {
            *mode = (enum diff_mode)i;
            return true;
        }
    return false;
}

static bool parse_options(int argc, char **argv, struct diff_options *o, bool *list)
{
    static const struct option options[] = {
        {"mode", 1, 0, OPT_MODE},
        {"cases", 1, 0, OPT_CASES},
        {"seed", 1, 0, OPT_SEED},
        {"case", 1, 0, OPT_CASE},
        {"filter", 1, 0, OPT_FILTER},
        {"native-only", 0, 0, OPT_NATIVE},
        {"fpu-pointers", 0, 0, OPT_POINTERS},
        {"jobs", 1, 0, OPT_JOBS},
        {"max-failures", 1, 0, OPT_MAX},
        {"coverage", 1, 0, OPT_COVERAGE},
        {"require", 1, 0, OPT_REQUIRE},
        {"list", 0, 0, OPT_LIST},
        {"plant", 1, 0, OPT_PLANT},
        {"brief", 0, 0, OPT_BRIEF},
        {"help", 0, 0, OPT_HELP},
        {0},
    };
    uint64_t n = 0;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        bool ok = true;
        switch (c) {
        case OPT_MODE: ok = parse_mode(optarg, &o->mode); break;
        case OPT_CASES: ok = parse_number(optarg, &o->cases); break;
        case OPT_SEED: ok = parse_number(optarg, &o->seed); break;
        case OPT_CASE:
            ok = parse_number(optarg, &o->first);
            o->cases = 1;
            o->jobs = 1;
            break;
        case OPT_FILTER: o->filter = optarg; break;
        case OPT_NATIVE: o->native_only = true; break;
        case OPT_POINTERS: o->instruction_pointers = true; break;
        case OPT_JOBS:
            ok = parse_number(optarg, &n) && n >= 1 && n <= MAX_JOBS;
            o->jobs = (unsigned)n;
            break;
        case OPT_MAX:
            ok = parse_number(optarg, &n) && n >= 1 && n <= MAX_REPORTED;
            o->max_failures = (unsigned)n;
            break;
        case OPT_COVERAGE: o->coverage_file = optarg; break;
        case OPT_REQUIRE: o->require_percent = atof(optarg); break;
        case OPT_BRIEF: o->brief = true; break;
        case OPT_PLANT: o->plant = optarg; break;
        case OPT_LIST: *list = true; break;
        default: return false;
        }
        if (!ok) {
            fprintf(stderr, "difftest: %s is no value for this option\n", optarg);
            return false;
        }
    }
    return optind == argc;
}

static void list_forms(const struct form_table *t)
{
    for (uint32_t i = 0; i < t->offered_count; i++) {
        char name[128];
        form_name(&t->form[t->offered[i]], name, sizeof name);
        puts(name);
    }
}

int main(int argc, char **argv)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    struct diff_options o = {.cases = 100000,
                             .seed = (uint64_t)time(NULL),
                             .max_failures = 20,
                             .jobs = cpus < 1          ? 1
                                     : cpus > MAX_JOBS ? MAX_JOBS
                                                       : (unsigned)cpus};
    bool list = false;
    if (!parse_options(argc, argv, &o, &list)) {
        usage(stderr);
        return 64;
    }
    if (!o.native_only && !list && !translated_available()) {
        fprintf(stderr, "difftest: this build has no translator: only --native-only and --list work\n");
        return 77; // skipped, as meson understands it
    }
    if (!list && !native_runs(o.mode)) {
        fprintf(stderr, "difftest: this host's kernel runs no such code\n");
        return 77;
    }
    struct run_shared *sh = run_shared_create(&o);
    if (!sh) {
        fprintf(stderr, "difftest: out of memory\n");
        return 70;
    }
    run_probe(sh, &o);
    if (!sh->forms.offered_count) {
        fprintf(stderr, "difftest: no form %s\n", o.filter ? "of that mnemonic" : "runs here");
        return 64;
    }
    printf("%u forms found, %u offered by this host\n", sh->forms.count, sh->forms.offered_count);
    if (list) {
        list_forms(&sh->forms);
        return 0;
    }
    if (run_cases(sh, &o)) {
        fprintf(stderr, "difftest: no case ran\n");
        return 70;
    }
    double percent = coverage_write(&sh->forms, o.coverage_file);
    if (percent < o.require_percent)
        fprintf(stderr, "difftest: coverage %.2f %% is below the required %.2f %%\n", percent,
                o.require_percent);
    return sh->failures || percent < o.require_percent;
}
