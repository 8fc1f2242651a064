// `gnomon diverge`: where two runs of one guest that should be the same part.
//
// Both sides are machines in processes of their own (frontend/diverge_side.c), deterministic, that run to the same counts of
// retired instructions and say what their state is there. Stretches grow while the states are equal. The one at whose end
// they are not is looked at again from its beginning, in a thirty-second of the steps, until it is one instruction long:
// machines can't go back, so both are started anew each time. What differs behind that instruction is printed.
//
// A stop may hide what is looked for: it empties the software TLB, so a stale entry is gone. Where the steps find nothing the
// stretch is bisected, with machines that run from their beginning to the one count without a stop.
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "frontend/commands.h"
#include "frontend/exit.h"
#include "frontend/options.h"

#define FIRST_STEP 100000u
#define MOST_STEP  64000000u
#define FINER      32u
#define MOST_BYTES 16u // of memory that are printed
#define MOST_LINES 24u // of events
#define MOST_TEXT  (1u << 30) // bytes of an answer

enum { A, B, SIDES };
static const char names[SIDES] = {'a', 'b'};

struct answer {
    char word[8]; // ready, state, end, text
    int status;
    uint64_t count;
    char *text; // g_free()
    size_t size;
};

struct side {
    char **argv; // of its process
    const char *gnomon;
    pid_t pid;
    FILE *to, *from;
};

struct diverge {
    struct side side[SIDES];
    char *options[SIDES]; // as given
    uint64_t from, until, every;
    bool ended; // both sides, with
    int end_status;
    int status; // of a side that failed
};

// ---- sides

// Closes its pipes, by which it ends if it has not, and waits for that. Returns its wait status, 0: there is none.
static int finish(struct side *s)
{
    int status = 0;
    if (s->to)
        fclose(s->to);
    if (s->from)
        fclose(s->from);
    s->to = s->from = NULL;
    if (s->pid > 0)
        while (waitpid(s->pid, &status, 0) < 0 && errno == EINTR)
            ;
    s->pid = 0;
    return status;
}

static void stop(struct side *s)
{
    if (s->pid > 0)
        kill(s->pid, SIGTERM); // it may be running
    finish(s);
}

// False: the side has ended. If it did so by itself it has said why.
static bool receive(struct diverge *d, unsigned n, struct answer *a)
{
    struct side *s = &d->side[n];
    *a = (struct answer){0};
    if (fscanf(s->from, "%7s %d %" SCNu64 " %zu", a->word, &a->status, &a->count, &a->size) == 4 && fgetc(s->from) == '\n' &&
        a->size <= MOST_TEXT) {
        a->text = g_malloc(a->size + 1);
        if (fread(a->text, 1, a->size, s->from) == a->size) {
            a->text[a->size] = 0;
            return true;
        }
        g_clear_pointer(&a->text, g_free);
    }
    int status = finish(s);
    d->status = WIFEXITED(status) && WEXITSTATUS(status) ? WEXITSTATUS(status) : EXIT_HOST_ERROR;
    if (!WIFEXITED(status) || !WEXITSTATUS(status))
        fprintf(stderr, "gnomon: side %c ended in the middle: diverge: run it alone with --deterministic\n", names[n]);
    return false;
}

static _Noreturn void become_side(struct diverge *d, unsigned n, int in, int out)
{
    if (dup2(in, 0) < 0 || dup2(out, 1) < 0) // all the others close by themselves
        _exit(EXIT_HOST_ERROR);
    if (n == A)
        unsetenv("GNOMON_PLANTED"); // it is the other that has a bug
    execv(d->side[n].gnomon, d->side[n].argv);
    print_error_about("can't run it", d->side[n].gnomon, strerror(errno));
    _exit(EXIT_HOST_ERROR);
}

static bool start(struct diverge *d, unsigned n)
{
    struct side *s = &d->side[n];
    int to[2] = {-1, -1}, from[2] = {-1, -1};
    pid_t pid = -1;
    stop(s);
    if (!pipe2(to, O_CLOEXEC) && !pipe2(from, O_CLOEXEC))
        pid = fork();
    if (!pid)
        become_side(d, n, to[0], from[1]);
    if (to[0] >= 0)
        close(to[0]);
    if (from[1] >= 0)
        close(from[1]);
    if (pid > 0) {
        s->pid = pid;
        s->to = fdopen(to[1], "w");
        s->from = fdopen(from[0], "r");
    }
    if (!s->to && to[1] >= 0)
        close(to[1]);
    if (!s->from && from[0] >= 0)
        close(from[0]);
    if (s->to && s->from) { // one after the other, or both would complain at once
        struct answer ready;
        bool good = receive(d, n, &ready);
        g_free(ready.text);
        return good;
    }
    stop(s);
    error_line("can't make a process: a side of the comparison: end some programs and try again");
    d->status = EXIT_HOST_ERROR;
    return false;
}

static void ask(struct side *s, const char *format, uint64_t number)
{
    fprintf(s->to, format, number);
    fflush(s->to);
}

static bool ask_text(struct diverge *d, unsigned n, const char *format, uint64_t number, char **text)
{
    struct answer a;
    ask(&d->side[n], format, number);
    if (!receive(d, n, &a))
        return false;
    *text = a.text;
    return true;
}

// Both to `count`. False: a side failed.
static bool go(struct diverge *d, uint64_t count, struct answer a[SIDES])
{
    for (unsigned n = 0; n < SIDES; n++) {
        g_clear_pointer(&a[n].text, g_free);
        ask(&d->side[n], "go %" PRIu64 "\n", count);
    }
    return receive(d, A, &a[A]) && receive(d, B, &a[B]);
}

static bool equal(const struct answer a[SIDES])
{
    return !strcmp(a[A].word, a[B].word) && a[A].status == a[B].status && a[A].count == a[B].count && a[A].size == a[B].size &&
           !memcmp(a[A].text, a[B].text, a[A].size);
}

// ---- what differs

static void print_lines(const struct answer a[SIDES])
{
    char **l[SIDES] = {g_strsplit(a[A].text, "\n", 0), g_strsplit(a[B].text, "\n", 0)};
    for (unsigned i = 0; l[A][i] && l[B][i]; i++)
        if (strcmp(l[A][i], l[B][i]))
            printf("  a: %s\n  b: %s\n", l[A][i], l[B][i]);
    g_strfreev(l[A]);
    g_strfreev(l[B]);
    if (!strcmp(a[A].word, a[B].word) && a[A].status == a[B].status)
        return;
    for (unsigned n = 0; n < SIDES; n++) {
        if (strcmp(a[n].word, "end"))
            printf("  %c: goes on\n", names[n]);
        else
            printf("  %c: has ended with status %d\n", names[n], a[n].status);
    }
}

static void print_bytes(uint64_t gpa, char *const page[SIDES], unsigned *left)
{
    for (unsigned i = 0; i < 4096 && *left; i++) {
        const char *p[SIDES];
        for (unsigned n = 0; n < SIDES; n++)
            p[n] = strlen(page[n]) == 8192 ? page[n] + 2 * i : "00";
        if (!strncmp(p[A], p[B], 2))
            continue;
        printf("  memory %010" PRIx64 "  a: %.2s  b: %.2s\n", gpa + i, p[A], p[B]);
        --*left;
    }
}

static bool print_page(struct diverge *d, uint64_t gpa, unsigned *left)
{
    char *page[SIDES] = {0};
    bool good = ask_text(d, A, "page %" PRIx64 "\n", gpa, &page[A]) && ask_text(d, B, "page %" PRIx64 "\n", gpa, &page[B]);
    if (good)
        print_bytes(gpa, page, left);
    g_free(page[A]);
    g_free(page[B]);
    return good;
}

static uint64_t page_of(const char *line) { return line && *line ? strtoull(line, NULL, 16) : UINT64_MAX; }

// The pages of both sides are in order of address; one that is missing is zero.
static bool print_memory(struct diverge *d)
{
    char *text[SIDES] = {0}, **l[SIDES] = {0};
    unsigned at[SIDES] = {0}, left = MOST_BYTES;
    bool good = true;
    for (unsigned n = 0; n < SIDES && good; n++)
        good = ask_text(d, n, "pages\n", 0, &text[n]);
    for (unsigned n = 0; n < SIDES && good; n++)
        l[n] = g_strsplit(text[n], "\n", 0);
    while (good && left) {
        const char *a = l[A][at[A]], *b = l[B][at[B]];
        uint64_t pa = page_of(a), pb = page_of(b), page = pa < pb ? pa : pb;
        if (page == UINT64_MAX)
            break;
        if (pa != pb || strcmp(a, b))
            good = print_page(d, page, &left);
        at[A] += pa == page;
        at[B] += pb == page;
    }
    if (!left)
        printf("  and perhaps more of memory\n");
    for (unsigned n = 0; n < SIDES; n++) {
        g_strfreev(l[n]);
        g_free(text[n]);
    }
    return good;
}

static bool print_events(struct diverge *d)
{
    char *text[SIDES] = {0};
    bool good = ask_text(d, A, "events\n", 0, &text[A]) && ask_text(d, B, "events\n", 0, &text[B]);
    if (good && strcmp(text[A], text[B]))
        for (unsigned n = 0; n < SIDES; n++) {
            char **l = g_strsplit(text[n], "\n", 0);
            printf("  %c: %s\n", names[n], l[0] && *l[0] ? "these events" : "no event");
            for (unsigned i = 0; l[i] && *l[i] && i < MOST_LINES; i++)
                printf("       %s\n", l[i]);
            g_strfreev(l);
        }
    g_free(text[A]);
    g_free(text[B]);
    return good;
}

// They are equal at `count` and not one instruction later.
static bool report(struct diverge *d, uint64_t count)
{
    struct answer a[SIDES] = {0};
    char *code = NULL;
    bool good = start(d, A) && start(d, B) && go(d, count, a) && ask_text(d, A, "code\n", 0, &code);
    if (good && !equal(a)) {
        printf("The runs are not the same before their first instruction:\n%s", code);
    } else if (good) {
        printf("The runs part at instruction %" PRIu64 ":\n%s", count + 1, code);
        good = start(d, A) && start(d, B) && go(d, count + 1, a); // without a stop before
    }
    if (good) {
        printf("What differs:\n");
        print_lines(a);
        good = print_memory(d) && print_events(d);
    }
    g_free(code);
    g_free(a[A].text);
    g_free(a[B].text);
    return good;
}

// ---- the search

static void progress(const char *what, uint64_t from, uint64_t to)
{
    if (isatty(2))
        fprintf(stderr, "\r\033[K%s %" PRIu64 " to %" PRIu64, what, from, to);
}

static void progress_end(void)
{
    if (isatty(2))
        fputs("\r\033[K", stderr);
}

// From *at, where they are equal, until they differ: *at is then the last count where they were not seen to. Returns 0, or
// EXIT_DIFFERENT with the first count where they are not equal in *differ, or what a side that failed has for a status.
static int walk(struct diverge *d, uint64_t *at, uint64_t until, uint64_t step, bool grows, uint64_t *differ)
{
    struct answer a[SIDES] = {0};
    int status = 0;
    while (*at < until && !status) {
        uint64_t to = until - *at < step ? until : *at + step;
        progress(grows ? "equal so far, next" : "they part between", *at, grows ? to : until);
        if (!go(d, to, a)) {
            status = d->status;
        } else if (!equal(a)) {
            status = EXIT_DIFFERENT;
            *differ = to;
        } else if (!strcmp(a[A].word, "end")) {
            *at = a[A].count;
            d->ended = true;
            d->end_status = a[A].status;
            break;
        } else {
            *at = to;
            if (grows && step < d->every)
                step = 2 * step < d->every ? 2 * step : d->every;
        }
    }
    g_free(a[A].text);
    g_free(a[B].text);
    return status;
}

static bool start_at(struct diverge *d, uint64_t count, bool *same)
{
    struct answer a[SIDES] = {0};
    bool good = start(d, A) && start(d, B) && go(d, count, a);
    *same = good && equal(a);
    g_free(a[A].text);
    g_free(a[B].text);
    return good;
}

// They are equal at *at and not at *differ, and are so again each time. Narrows that down to one instruction. Returns 0 or what
// a side that failed has for a status.
static int bisect(struct diverge *d, uint64_t *at, uint64_t *differ)
{
    while (*differ - *at > 1) {
        uint64_t middle = *at + (*differ - *at) / 2;
        bool same;
        progress("they part between", *at, *differ);
        if (!start_at(d, middle, &same))
            return d->status;
        *(same ? at : differ) = middle;
    }
    return 0;
}

// The same by steps. EXIT_DIFFERENT: done; 0: nothing differs when there are stops between.
static int narrow(struct diverge *d, uint64_t *at, uint64_t *differ)
{
    int status = EXIT_DIFFERENT;
    while (status == EXIT_DIFFERENT && *differ - *at > 1) {
        uint64_t step = (*differ - *at + FINER - 1) / FINER, end = *differ;
        bool same;
        if (!start_at(d, *at, &same))
            return d->status;
        if (!same)
            return 0;
        status = walk(d, at, end, step, false, differ);
    }
    return status;
}

static int compare(struct diverge *d)
{
    uint64_t at = d->from, differ = 0;
    bool same;
    if (!start_at(d, at, &same))
        return d->status;
    int status = EXIT_DIFFERENT;
    if (same)
        status = walk(d, &at, d->until, d->every < FIRST_STEP ? d->every : FIRST_STEP, true, &differ);
    else // already there
        at = 0, differ = d->from;
    if (status == EXIT_DIFFERENT) {
        uint64_t begin = at, end = differ;
        status = narrow(d, &at, &differ);
        if (!status) {
            at = begin;
            differ = end;
            status = bisect(d, &at, &differ);
            status = status ? status : EXIT_DIFFERENT;
        }
    }
    progress_end();
    if (status == EXIT_DIFFERENT)
        return report(d, at) ? status : d->status;
    if (!status && d->ended)
        printf("No difference in %" PRIu64 " instructions, with which both guests end with status %d.\n", at - d->from, d->end_status);
    else if (!status)
        printf("No difference in %" PRIu64 " instructions.\n", at - d->from);
    return status;
}

// ---- the command line

static bool number(const char *option, const char *text, uint64_t *value)
{
    char *end;
    errno = 0;
    *value = text ? strtoull(text, &end, 10) : 0;
    if (text && *text >= '0' && *text <= '9' && !*end && !errno)
        return true;
    print_error_about("not a count of instructions", option, "give a number of them");
    return false;
}

// argv of a side's process: the common options and its own.
static bool make_argv(struct side *s, GPtrArray *common, const char *own)
{
    GPtrArray *all = g_ptr_array_new();
    char **words = NULL;
    GError *error = NULL;
    struct run_options o;
    char line[ERROR_SIZE] = "";
    bool good = true;
    if (own && *own && !g_shell_parse_argv(own, NULL, &words, &error)) {
        print_error_about("can't be split into words", own, error->message);
        g_error_free(error);
        g_ptr_array_free(all, TRUE);
        return false;
    }
    g_ptr_array_add(all, g_strdup("gnomon"));
    g_ptr_array_add(all, g_strdup("diverge-side"));
    for (unsigned i = 0; i < common->len; i++)
        g_ptr_array_add(all, g_strdup(common->pdata[i]));
    for (unsigned i = 0; words && words[i]; i++)
        g_ptr_array_add(all, g_strdup(words[i]));
    g_strfreev(words);
    run_options_init(&o);
    if (!run_options_parse(&o, (int)all->len - 2, (char **)all->pdata + 2, line)) {
        good = false;
    } else {
        bool serial = o.debugcon.kind != CHAR_NONE, written = false;
        for (unsigned i = 0; i < o.serial_count; i++)
            serial |= o.serials[i].kind != CHAR_NONE;
        for (unsigned i = 0; i < o.disk_count; i++)
            written |= !o.disks[i].snapshot && !o.disks[i].readonly;
        if (!o.deterministic) {
            g_ptr_array_add(all, g_strdup("--deterministic"));
            o.deterministic = true;
        }
        if (serial || o.trace || o.stats || o.perf) {
            snprintf(line, sizeof line, "not with diverge: --serial, --debugcon, --trace, --stats, --perf: leave it out; events are compared without");
            good = false;
        } else if (written) { // by both, and anew by each that is started
            snprintf(line, sizeof line, "both machines would write to it: --disk: add ,snapshot=on");
            good = false;
        } else if (o.timeout_ns || o.stop_at != UINT64_MAX) {
            snprintf(line, sizeof line, "not with diverge: --timeout, --stop-at: use --until COUNT");
            good = false;
        } else {
            good = run_options_check(&o, line);
        }
    }
    run_options_free(&o);
    if (!good)
        error_line(line);
    g_ptr_array_add(all, NULL);
    s->argv = (char **)g_ptr_array_free(all, FALSE);
    return good;
}

static bool parse(struct diverge *d, int argc, char *const argv[], GPtrArray *common)
{
    for (int i = 0; i < argc; i++) {
        const char *next = argv[i + 1];
        if (!strcmp(argv[i], "--from") || !strcmp(argv[i], "--until") || !strcmp(argv[i], "--every")) {
            if (!number(argv[i], next, argv[i][2] == 'f' ? &d->from : argv[i][2] == 'u' ? &d->until : &d->every))
                return false;
        } else if (!strcmp(argv[i], "--a") || !strcmp(argv[i], "--b")) {
            if (!next) {
                print_error_about("no options", argv[i], "give them in quotes");
                return false;
            }
            d->options[argv[i][2] == 'b'] = argv[i + 1];
        } else if (!strcmp(argv[i], "--gnomon-a") || !strcmp(argv[i], "--gnomon-b")) {
            if (!next || access(next, X_OK)) {
                print_error_about("no program", next ? next : argv[i], "name a gnomon");
                return false;
            }
            d->side[argv[i][9] == 'b'].gnomon = next;
        } else {
            g_ptr_array_add(common, argv[i]);
            continue;
        }
        i++;
    }
    if (d->from < d->until && d->every)
        return true;
    error_line(d->every ? "nothing to compare: --until: give more instructions than --from" : "no step: --every: give at least 1");
    return false;
}

int diverge_command(int argc, char *const argv[])
{
    struct diverge d = {.side = {{.gnomon = "/proc/self/exe"}, {.gnomon = "/proc/self/exe"}}, .until = UINT64_MAX, .every = MOST_STEP};
    GPtrArray *common = g_ptr_array_new();
    int status = EXIT_USAGE;
    signal(SIGPIPE, SIG_IGN);
    if (parse(&d, argc, argv, common) && make_argv(&d.side[A], common, d.options[A]) && make_argv(&d.side[B], common, d.options[B]))
        status = compare(&d);
    for (unsigned n = 0; n < SIDES; n++) {
        stop(&d.side[n]);
        g_strfreev(d.side[n].argv);
    }
    g_ptr_array_free(common, TRUE);
    return status;
}
