// `gnomon run`: from options to a machine, and from its outcome to an exit status.
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "devices/machine.h"
#include "frontend/commands.h"
#include "frontend/configure.h"
#include "frontend/exit.h"
#include "frontend/figures.h"
#include "frontend/input.h"
#include "frontend/perf_map.h"
#include "frontend/sandbox_machine.h"
#include "frontend/terminal.h"
#include "frontend/trace.h"
#include "frontend/usage.h"

_Static_assert(MAX_SERIALS == MACHINE_SERIALS && MAX_DISKS <= MACHINE_MAX_DISKS &&
                   MAX_INITRDS <= MACHINE_MAX_INITRDS,
               "every machine the options describe can be made");

struct run {
    struct run_options options;
    struct serial serials[MAX_SERIALS], debugcon;
    struct trace trace;
    struct perf_map perf;
    struct input input;
    struct machine *machine;
    struct usage_files usage[1 + MACHINE_WORKERS]; // of the process that runs guest code and of its workers
    unsigned usage_count;
    uint64_t started_ns;
    atomic_bool ending; // machine_stop() was called
};

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void print_stats(struct run *r)
{
    struct figures figures = {r->machine, r->usage, r->usage_count, r->started_ns};
    stats_print(stderr, r->options.stats == STATS_JSON, figures_list, &figures);
}

// ---- hooks of the machine, on the vCPU's thread

static void on_crashed(void *opaque, struct vcpu *v, const char *why)
{
    struct run *r = opaque;
    (void)v;
    crash_print(stderr, r->machine, why);
}

static void on_trace_cpu(void *opaque, const char *what, uint64_t a, uint64_t b)
{
    struct run *r = opaque;
    trace_cpu(&r->trace, what, a, b);
}

static void on_trace_io(void *opaque, bool mmio, bool write, uint64_t address, unsigned size, uint64_t value)
{
    struct run *r = opaque;
    trace_io(&r->trace, mmio, write, address, size, value);
}

static FILE *on_perf_map(void *opaque, int pid, char *error, size_t error_size)
{
    struct run *r = opaque;
    return perf_map_open(&r->perf, PERF_DIRECTORY, pid, error, error_size) ? NULL : r->perf.f;
}

static void call_stats(void *opaque, struct machine *m)
{
    (void)m;
    print_stats(opaque);
}

// ---- events of the input thread

static size_t on_bytes(void *opaque, unsigned port, const uint8_t *data, size_t n)
{
    struct run *r = opaque;
    return machine_serial_input(r->machine, port, data, n);
}

static void on_end(void *opaque, int status)
{
    struct run *r = opaque;
    if (!atomic_exchange(&r->ending, true)) {
        machine_stop(r->machine, status);
        return;
    }
    // Asked again, or no answer for seconds: the vCPU's thread hangs, so end without it.
    for (unsigned i = 0; i < MAX_SERIALS; i++)
        if (r->serials[i].kind == CHAR_UNIX)
            serial_close(&r->serials[i], false);
    terminal_leave();
    _exit(status);
}

static void on_stats(void *opaque)
{
    struct run *r = opaque;
    machine_call(r->machine, call_stats, r);
}

// ---- life of a run

static bool uses_terminal(const struct run_options *o)
{
    if (!o->serial_count)
        return true;
    for (unsigned i = 0; i < o->serial_count; i++)
        if (o->serials[i].kind == CHAR_STDIO)
            return true;
    return false;
}

static int open_back_ends(struct run *r, char *error)
{
    static const char *const names[MAX_SERIALS] = {"COM1", "COM2"};
    struct run_options *o = &r->options;
    unsigned i = 0;
    int status = 0;
    if (!o->serial_count)
        o->serials[o->serial_count++].kind = CHAR_STDIO;
    for (; i < MAX_SERIALS && !status; i++)
        status = serial_open(&r->serials[i], &o->serials[i], names[i], error);
    if (!status)
        status = serial_open(&r->debugcon, &o->debugcon, "the debug console", error);
    if (status)
        for (unsigned j = 0; j + 1 < i; j++)
            serial_close(&r->serials[j], true);
    return status;
}

static void close_back_ends(struct run *r, bool failed)
{
    for (unsigned i = 0; i < MAX_SERIALS; i++)
        serial_close(&r->serials[i], failed);
    serial_close(&r->debugcon, failed);
}

static struct machine *create(struct run *r, char *error, bool *usage)
{
    const struct run_options *o = &r->options;
    struct machine_disk disks[MAX_DISKS];
    struct machine_config config;
    configure(&config, disks, o);
    config.crashed = on_crashed;
    config.trace_cpu = o->trace & LOG_CPU ? on_trace_cpu : NULL;
    config.trace_io = o->trace & LOG_IO ? on_trace_io : NULL;
    config.opaque = r;
    config.trace_blocks = o->trace & LOG_CODE;
    config.trace_exc = o->trace & LOG_EXC;
    config.trace_mmu = o->trace & LOG_MMU;
    config.measure = o->stats != STATS_OFF;
    config.perf_map = o->perf ? on_perf_map : NULL;
    config.trace_code = o->trace & (LOG_CODE | LOG_EXC | LOG_MMU) ? r->trace.f : NULL;
    for (unsigned i = 0; i < MAX_SERIALS; i++)
        if (r->serials[i].kind != CHAR_NONE)
            config.serial[i] = serial_char_out(&r->serials[i]);
    if (r->debugcon.kind != CHAR_NONE)
        config.debugcon = serial_char_out(&r->debugcon);
    return machine_create(&config, error, ERROR_SIZE, usage);
}

static int status_of(const struct machine_outcome *outcome, const char *error)
{
    switch (outcome->end) {
    case MACHINE_END_POWERED_OFF: return EXIT_POWERED_OFF;
    case MACHINE_END_REBOOTED: return EXIT_REBOOTED;
    case MACHINE_END_GUEST_EXIT: return outcome->value & 0xff;
    case MACHINE_END_CRASHED: return EXIT_GUEST_CRASHED;
    case MACHINE_END_STOPPED: return outcome->value;
    case MACHINE_END_COUNTED: return EXIT_COUNTED;
    case MACHINE_END_HOST_ERROR: break;
    }
    error_line(error);
    return EXIT_HOST_ERROR;
}

// failed: nothing ran, so nothing is kept.
static void close_perf_map(struct run *r, bool failed)
{
    char rest[80] = "";
    unsigned long dropped;
    if (!r->perf.f)
        return;
    int result = perf_map_close(&r->perf, &dropped);
    if (failed) {
        unlink(r->perf.path);
        return;
    }
    if (dropped)
        snprintf(rest, sizeof rest, " (without %lu names of code that made room for other code)", dropped);
    if (result)
        fprintf(stderr, "gnomon: perf's map is not complete (%s): %s: make room there\n", strerror(-result),
                r->perf.path);
    else
        fprintf(stderr, "gnomon: perf's map is %s%s\n", r->perf.path, rest);
}

static int run_machine(struct run *r, char *error)
{
    const struct input_events events = {on_bytes, on_end, on_stats, r};
    bool usage = false;
    if (open_back_ends(r, error)) {
        error_line(error);
        return EXIT_HOST_ERROR;
    }
    int status = EXIT_HOST_ERROR;
    bool failed = true; // nothing ran
    if (trace_open(&r->trace, &r->options, error)) {
        error_line(error);
        goto close;
    }
    r->machine = create(r, error, &usage);
    if (!r->machine) {
        error_line(error);
        status = usage ? EXIT_USAGE : EXIT_HOST_ERROR;
        goto close;
    }
    machine_stop_at(r->machine, r->options.stop_at);
    if (machine_start(r->machine, error, ERROR_SIZE)) { // before there are threads
        error_line(error);
        goto destroy;
    }
    const int *workers;
    unsigned worker_threads = machine_workers(r->machine, &workers);
    if (machine_worker_error(r->machine))
        fprintf(stderr,
                "gnomon: this host gives user code no processes of its own (%s): direct execution: it is translated "
                "instead, which takes longer; --direct off does so without this line\n",
                strerror(-machine_worker_error(r->machine)));
    usage_open(&r->usage[r->usage_count++], machine_cell_pid(r->machine));
    int e = input_start(&r->input, r->serials, r->options.timeout_ns, &events);
    if (e) {
        fprintf(stderr, "gnomon: can't start a thread (%s): input: end some programs and try again\n",
                strerror(-e));
        goto destroy;
    }
    for (unsigned i = 0; i < MAX_SERIALS; i++)
        serial_begin(&r->serials[i]);
    serial_begin(&r->debugcon);
    trace_begin(&r->trace);
    // Last, since a machine does without.
    for (unsigned i = 0; i < worker_threads && r->usage_count <= MACHINE_WORKERS; i += 2)
        usage_open_times(&r->usage[r->usage_count++], workers[i]);
    // From here on nothing is opened, made or removed: the end of the run only closes.
    e = r->options.sandbox ? sandbox_machine(machine_cell_pid(r->machine), workers, worker_threads) : 0;
    if (e) {
        fprintf(stderr,
                "gnomon: this host's kernel gives no seccomp filter (%s): sandbox: use one that does, or give --sandbox "
                "off\n",
                strerror(-e));
        input_stop(&r->input);
        goto destroy;
    }
    failed = false;
    r->started_ns = clock_ns(CLOCK_MONOTONIC);
    struct machine_outcome outcome = machine_run(r->machine, error, ERROR_SIZE);
    input_stop(&r->input);
    if (outcome.end == MACHINE_END_COUNTED)
        state_print(stderr, r->machine);
    status = status_of(&outcome, error);
    if (r->options.stats != STATS_OFF)
        print_stats(r);
destroy:
    while (r->usage_count)
        usage_close(&r->usage[--r->usage_count]);
    machine_destroy(r->machine);
    close_perf_map(r, failed);
close:
    trace_close(&r->trace, failed);
    close_back_ends(r, failed);
    return status;
}

int run_command(int argc, char *const argv[])
{
    char error[ERROR_SIZE] = "";
    static const struct run empty; // a struct run is some kilobytes of zeros
    struct run r = empty;
    int status = EXIT_USAGE;
    run_options_init(&r.options);
    if (!run_options_parse(&r.options, argc, argv, error) || !run_options_check(&r.options, error)) {
        error_line(error);
    } else {
        if (uses_terminal(&r.options) && !terminal_supervise()) {
            error_line("can't make a process: the terminal's watcher: end some programs and try again");
            status = EXIT_HOST_ERROR;
        } else {
            input_block_signals();
            status = run_machine(&r, error);
            terminal_leave();
        }
    }
    run_options_free(&r.options);
    return status;
}
