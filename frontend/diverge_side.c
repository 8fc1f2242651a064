// One side of `gnomon diverge`: a machine that does what it is told on standard input, a line each, and answers on standard
// output, "ready" first of all. An answer is a line "WORD STATUS COUNT LENGTH" and LENGTH bytes of text.
//   go N      runs to N retired instructions: "state 0 N", or "end STATUS N" where the guest ended before; the text is the
//             state (frontend/state.c), with a digest of the events since the beginning
//   events    the events since the last stop before: "text", a line each
//   code      the code at RIP
//   pages     "GPA DIGEST" of every page of memory that is not zero
//   page GPA  its bytes, in hexadecimal
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "frontend/commands.h"
#include "frontend/configure.h"
#include "frontend/exit.h"
#include "frontend/input.h"
#include "frontend/sandbox_machine.h"
#include "frontend/trace.h"
#include "mmu/mem.h"

#define PAGE        4096u
#define EVENTS_KEPT (64u << 10)

struct side {
    struct machine *machine;
    struct trace trace; // events
    uint64_t events;    // digest of all
    char kept[EVENTS_KEPT];
    size_t kept_size;
    FILE *answers;
};

static ssize_t keep_events(void *cookie, const char *text, size_t n)
{
    struct side *s = cookie;
    for (size_t i = 0; i < n; i++)
        s->events = (s->events ^ (uint8_t)text[i]) * 0x100000001b3ull;
    size_t some = n < EVENTS_KEPT - s->kept_size ? n : EVENTS_KEPT - s->kept_size;
    memcpy(s->kept + s->kept_size, text, some);
    s->kept_size += some;
    return (ssize_t)n;
}

static void on_trace_cpu(void *opaque, const char *what, uint64_t a, uint64_t b)
{
    struct side *s = opaque;
    trace_cpu(&s->trace, what, a, b);
}

static void on_trace_io(void *opaque, bool mmio, bool write, uint64_t address, unsigned size, uint64_t value)
{
    struct side *s = opaque;
    trace_io(&s->trace, mmio, write, address, size, value);
}

static void on_crashed(void *opaque, struct vcpu *v, const char *why)
{
    struct side *s = opaque;
    (void)v;
    fprintf(s->trace.f, "the guest crashed: %s\n", why);
}

static void answer(struct side *s, const char *word, int status, const char *text, size_t size)
{
    fprintf(s->answers, "%s %d %" PRIu64 " %zu\n", word, status, machine_count(s->machine), size);
    fwrite(text, 1, size, s->answers);
    fflush(s->answers);
}

static bool go(struct side *s, uint64_t count)
{
    char error[ERROR_SIZE] = "", *text = NULL;
    size_t size = 0;
    s->kept_size = 0;
    machine_stop_at(s->machine, count);
    struct machine_outcome outcome = machine_run(s->machine, error, sizeof error);
    if (outcome.end == MACHINE_END_HOST_ERROR) {
        error_line(error);
        return false;
    }
    FILE *f = open_memstream(&text, &size);
    if (!f) {
        error_line("out of memory: the state: end some programs and try again");
        return false;
    }
    fflush(s->trace.f);
    state_print(f, s->machine);
    fprintf(f, "%-16s %016" PRIx64 "\n", "digest_events", s->events);
    fclose(f);
    int status = outcome.end == MACHINE_END_POWERED_OFF ? EXIT_POWERED_OFF
                 : outcome.end == MACHINE_END_REBOOTED  ? EXIT_REBOOTED
                 : outcome.end == MACHINE_END_CRASHED   ? EXIT_GUEST_CRASHED
                                                        : outcome.value & 0xff;
    if (outcome.end == MACHINE_END_COUNTED)
        answer(s, "state", 0, text, size);
    else
        answer(s, "end", status, text, size);
    free(text);
    return true;
}

static void print_pages(FILE *f, struct machine *m)
{
    struct mem_map *mem = machine_memory(m);
    uint8_t page[PAGE];
    off_t at = 0;
    while ((at = lseek(mem->ram_fd, at, SEEK_DATA)) >= 0 && (uint64_t)at < mem->ram_size) {
        at &= -(off_t)PAGE;
        if (pread(mem->ram_fd, page, PAGE, at) != PAGE)
            break;
        uint64_t hash = 0xcbf29ce484222325ull, any = 0;
        for (unsigned i = 0; i < PAGE; i += 8) {
            uint64_t word;
            memcpy(&word, page + i, 8);
            any |= word;
            hash = (hash ^ word) * 0x9e3779b97f4a7c15ull;
            hash ^= hash >> 32;
        }
        if (any)
            fprintf(f, "%016" PRIx64 " %016" PRIx64 "\n", (uint64_t)at, hash);
        at += PAGE;
    }
}

// By place in RAM, as print_pages() has them.
static void print_page(FILE *f, struct machine *m, uint64_t at)
{
    struct mem_map *mem = machine_memory(m);
    uint8_t page[PAGE] = {0};
    if (at >= mem->ram_size || pread(mem->ram_fd, page, PAGE, (off_t)at) != PAGE)
        return;
    for (unsigned i = 0; i < PAGE; i++)
        fprintf(f, "%02x", page[i]);
}

static bool tell(struct side *s, const char *line)
{
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    if (!f)
        return false;
    if (!strcmp(line, "events\n"))
        fwrite(s->kept, 1, s->kept_size, f);
    else if (!strcmp(line, "code\n"))
        code_print(f, machine_vcpu(s->machine));
    else if (!strcmp(line, "pages\n"))
        print_pages(f, s->machine);
    else if (!strncmp(line, "page ", 5))
        print_page(f, s->machine, strtoull(line + 5, NULL, 16));
    fclose(f);
    answer(s, "text", 0, text, size);
    free(text);
    return true;
}

static int serve(struct side *s)
{
    char line[64];
    answer(s, "ready", 0, "", 0);
    while (fgets(line, sizeof line, stdin)) {
        bool good = strncmp(line, "go ", 3) ? tell(s, line) : go(s, strtoull(line + 3, NULL, 10));
        if (!good)
            return EXIT_HOST_ERROR;
    }
    return 0;
}

static int run_side(struct side *s, const struct run_options *o)
{
    char error[ERROR_SIZE] = "";
    struct machine_disk disks[MAX_DISKS];
    struct machine_config config;
    bool usage = false;
    const cookie_io_functions_t events = {.write = keep_events};
    const int *workers;
    s->trace.f = fopencookie(s, "w", events);
    s->trace.categories = LOG_IO | LOG_CPU;
    s->answers = stdout;
    if (!s->trace.f)
        return EXIT_HOST_ERROR;
    configure(&config, disks, o);
    config.crashed = on_crashed;
    config.trace_cpu = on_trace_cpu;
    config.trace_io = on_trace_io;
    config.reset_exits = true;
    config.opaque = s;
    s->machine = machine_create(&config, error, sizeof error, &usage);
    if (!s->machine) {
        error_line(error);
        return usage ? EXIT_USAGE : EXIT_HOST_ERROR;
    }
    int status = EXIT_HOST_ERROR;
    if (machine_start(s->machine, error, sizeof error)) {
        error_line(error);
    } else {
        unsigned n = machine_workers(s->machine, &workers);
        if (o->sandbox && sandbox_machine(machine_cell_pid(s->machine), workers, n))
            error_line("this host's kernel gives no seccomp filter: sandbox: give --sandbox off");
        else
            status = serve(s);
    }
    machine_destroy(s->machine);
    return status;
}

int diverge_side_command(int argc, char *const argv[])
{
    static struct side side; // some kilobytes
    char error[ERROR_SIZE] = "";
    struct run_options o;
    int status = EXIT_USAGE;
    run_options_init(&o);
    if (!run_options_parse(&o, argc, argv, error) || !run_options_check(&o, error))
        error_line(error);
    else
        status = run_side(&side, &o);
    run_options_free(&o);
    return status;
}
