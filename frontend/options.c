#include "frontend/options.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_MEMORY_BYTES (512ull << 20)
#define MIN_MEMORY_BYTES     (1ull << 20)
#define MAX_MEMORY_BYTES     (1ull << 40) // what the memory map's 40-bit guest-physical addresses can name
#define MAX_TIMEOUT_SECONDS  1e9
#define DEFAULT_EPOCH        1735689600u  // 2025-01-01 00:00:00 UTC
#define MAX_EPOCH            4102444799u  // 2099-12-31 23:59:59 UTC

static bool fail(const struct option_context *c, const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    vsnprintf(c->error, ERROR_SIZE, format, ap);
    va_end(ap);
    return false;
}

static bool out_of_memory(const struct option_context *c)
{
    return fail(c, "out of memory: %s: end some programs and try again", c->where);
}

static bool set_string(const struct option_context *c, char **field, const char *value)
{
    char *copy = strdup(value);
    if (!copy)
        return out_of_memory(c);
    free(*field);
    *field = copy;
    return true;
}

// A path of `length` bytes; relative ones start at the machine file's directory.
static bool set_path(const struct option_context *c, char **field, const char *value, size_t length)
{
    if (!length)
        return fail(c, "no file name: %s: name a file", c->where);
    char *copy = NULL;
    int n;
    if (c->directory && value[0] != '/')
        n = asprintf(&copy, "%s/%.*s", c->directory, (int)length, value);
    else
        n = asprintf(&copy, "%.*s", (int)length, value);
    if (n < 0)
        return out_of_memory(c);
    free(*field);
    *field = copy;
    return true;
}

static bool set_switch(const struct option_context *c, bool *field, const char *value)
{
    if (!strcmp(value, "on"))
        *field = true;
    else if (!strcmp(value, "off"))
        *field = false;
    else
        return fail(c, "'%.64s' is neither on nor off: %s: write on or off", value, c->where);
    return true;
}

// The index of value in a null-terminated list of choices, or -1 with the error naming them all.
static int choose(const struct option_context *c, const char *value, const char *const *choices)
{
    for (int i = 0; choices[i]; i++)
        if (!strcmp(value, choices[i]))
            return i;
    char list[128] = "";
    for (int i = 0; choices[i]; i++) {
        strncat(list, i ? (choices[i + 1] ? ", " : " or ") : "", sizeof list - strlen(list) - 1);
        strncat(list, choices[i], sizeof list - strlen(list) - 1);
    }
    fail(c, "unknown value '%.64s': %s: use %s", value, c->where, list);
    return -1;
}

static bool set_kernel(const struct option_context *c, const char *value)
{
    return set_path(c, &c->run->kernel, value, strlen(value));
}

static bool set_initrd(const struct option_context *c, const char *value)
{
    struct run_options *o = c->run;
    if (o->initrd_count == MAX_INITRDS)
        return fail(c, "more than %d initrds: %s: join some with cat", MAX_INITRDS, c->where);
    if (!set_path(c, &o->initrds[o->initrd_count], value, strlen(value)))
        return false;
    o->initrd_count++;
    return true;
}

static void clear_initrds(struct run_options *o)
{
    while (o->initrd_count) {
        free(o->initrds[--o->initrd_count]);
        o->initrds[o->initrd_count] = NULL;
    }
}

static bool set_append(const struct option_context *c, const char *value)
{
    return set_string(c, &c->run->append, value);
}

static bool set_bios(const struct option_context *c, const char *value)
{
    return set_path(c, &c->run->bios, value, strlen(value));
}

static bool set_memory(const struct option_context *c, const char *value)
{
    char *end;
    errno = 0;
    unsigned long long n = strtoull(value, &end, 10);
    unsigned shift = 20; // a bare number counts mebibytes
    if (value[0] < '0' || value[0] > '9' || errno)
        return fail(c, "'%.64s' is no memory size: %s: write a number and K, M or G, such as 512M", value,
                    c->where);
    switch (*end) {
    case 'K':
    case 'k':
        shift = 10;
        end++;
        break;
    case 'M':
    case 'm':
        shift = 20;
        end++;
        break;
    case 'G':
    case 'g':
        shift = 30;
        end++;
        break;
    }
    if (*end)
        return fail(c, "'%.64s' is no memory size: %s: write a number and K, M or G, such as 512M", value,
                    c->where);
    if (n > MAX_MEMORY_BYTES >> shift || n << shift < MIN_MEMORY_BYTES)
        return fail(c, "%.64s of memory: %s: use between 1M and 1024G", value, c->where);
    if ((n << shift) % MIN_MEMORY_BYTES)
        return fail(c, "%.64s of memory: %s: use a multiple of 1M", value, c->where);
    c->run->memory_bytes = n << shift;
    return true;
}

static bool set_cpus(const struct option_context *c, const char *value)
{
    char *end;
    errno = 0;
    unsigned long n = strtoul(value, &end, 10);
    if (value[0] < '0' || value[0] > '9' || *end || errno || n < 1 || n > 255)
        return fail(c, "'%.64s' is no number of CPUs: %s: use 1", value, c->where);
    c->run->cpus = n;
    return true;
}

static bool set_cpu(const struct option_context *c, const char *value)
{
    if (!*value)
        return fail(c, "no CPU model: %s: use default, host, v2, v3, v4, pentium2, pentium or 486", c->where);
    return set_string(c, &c->run->cpu, value);
}

static bool set_disk(const struct option_context *c, const char *value)
{
    struct run_options *o = c->run;
    if (o->disk_count == MAX_DISKS)
        return fail(c, "more than %d disks: %s: leave some out", MAX_DISKS, c->where);
    struct disk_option d = {0};
    // Suboptions are taken off the end, so a file name may hold commas.
    size_t length = strlen(value);
    for (;;) {
        const char *comma = memrchr(value, ',', length);
        if (!comma)
            break;
        size_t tail = value + length - comma - 1;
        const char *word = comma + 1;
        bool *field = NULL;
        if (tail >= 9 && !memcmp(word, "snapshot=", 9))
            field = &d.snapshot;
        else if (tail >= 9 && !memcmp(word, "readonly=", 9))
            field = &d.readonly;
        if (!field)
            break;
        char on[16];
        snprintf(on, sizeof on, "%.*s", (int)(tail - 9), word + 9);
        if (!set_switch(c, field, on))
            return false;
        length = comma - value;
    }
    if (!set_path(c, &d.path, value, length))
        return false;
    o->disks[o->disk_count++] = d;
    return true;
}

static void clear_disks(struct run_options *o)
{
    while (o->disk_count)
        free(o->disks[--o->disk_count].path);
    memset(o->disks, 0, sizeof o->disks);
}

static bool parse_char(const struct option_context *c, struct char_option *out, const char *value,
                       bool in_and_out)
{
    struct char_option ch = {0};
    if (!strcmp(value, "stdio")) {
        ch.kind = CHAR_STDIO;
    } else if (!strcmp(value, "none")) {
        ch.kind = CHAR_NONE;
    } else if (!strncmp(value, "file:", 5)) {
        ch.kind = CHAR_FILE;
        if (!set_path(c, &ch.path, value + 5, strlen(value + 5)))
            return false;
    } else if (in_and_out && !strcmp(value, "pty")) {
        ch.kind = CHAR_PTY;
    } else if (in_and_out && !strncmp(value, "unix:", 5)) {
        ch.kind = CHAR_UNIX;
        if (!set_path(c, &ch.path, value + 5, strlen(value + 5)))
            return false;
    } else {
        return fail(c, "unknown value '%.64s': %s: use %s", value, c->where,
                    in_and_out ? "stdio, file:PATH, unix:PATH, pty or none" : "stdio, file:PATH or none");
    }
    free(out->path);
    *out = ch;
    return true;
}

static bool set_serial(const struct option_context *c, const char *value)
{
    struct run_options *o = c->run;
    if (o->serial_count == MAX_SERIALS)
        return fail(c, "more than %d serial ports: %s: the machine has COM1 and COM2", MAX_SERIALS, c->where);
    if (!parse_char(c, &o->serials[o->serial_count], value, true))
        return false;
    o->serial_count++;
    return true;
}

static void clear_serials(struct run_options *o)
{
    while (o->serial_count)
        free(o->serials[--o->serial_count].path);
    memset(o->serials, 0, sizeof o->serials);
}

static bool set_debugcon(const struct option_context *c, const char *value)
{
    return parse_char(c, &c->run->debugcon, value, false);
}

static bool set_display(const struct option_context *c, const char *value)
{
    static const char *const choices[] = {"none", NULL};
    return choose(c, value, choices) >= 0;
}

static bool set_engine(const struct option_context *c, const char *value)
{
    static const char *const choices[] = {"auto", "software", "hardware", NULL};
    int i = choose(c, value, choices);
    if (i >= 0)
        c->run->engine = i;
    return i >= 0;
}

static bool set_direct(const struct option_context *c, const char *value)
{
    static const char *const choices[] = {"auto", "off", "always", NULL};
    int i = choose(c, value, choices);
    if (i >= 0)
        c->run->direct = i;
    return i >= 0;
}

static bool set_policy(const struct option_context *c, const char *value)
{
    static const char *const choices[] = {"auto", "checked", "user", "raw", NULL};
    int i = choose(c, value, choices);
    if (i >= 0)
        c->run->policy = i;
    return i >= 0;
}

static bool set_stats(const struct option_context *c, const char *value)
{
    static const char *const choices[] = {"off", "on", "json", NULL};
    int i = choose(c, value, choices);
    if (i >= 0)
        c->run->stats = i;
    return i >= 0;
}

static bool set_trace(const struct option_context *c, const char *value)
{
    static const char *const choices[] = {"code", "exc", "mmu", "io", "cpu", "all", NULL};
    unsigned categories = 0;
    while (*value) {
        size_t n = strcspn(value, ",");
        if (n >= 5 && !memcmp(value, "file=", 5)) {
            // The rest is the file's name, commas and all.
            if (!set_path(c, &c->run->trace_file, value + 5, strlen(value + 5)))
                return false;
            break;
        }
        char word[32];
        snprintf(word, sizeof word, "%.*s", (int)(n < sizeof word ? n : sizeof word - 1), value);
        int i = choose(c, word, choices);
        if (i < 0)
            return false;
        categories |= choices[i + 1] ? 1u << i : LOG_ALL;
        value += n + (value[n] == ',');
    }
    if (!categories)
        return fail(c, "nothing to trace: %s: name code, exc, mmu, io, cpu or all", c->where);
    c->run->trace = categories;
    return true;
}

static bool set_on_crash(const struct option_context *c, const char *value)
{
    static const char *const choices[] = {"exit", "reset", "halt", NULL};
    int i = choose(c, value, choices);
    if (i >= 0)
        c->run->on_crash = i;
    return i >= 0;
}

static bool set_on_reboot(const struct option_context *c, const char *value)
{
    static const char *const choices[] = {"reset", "exit", NULL};
    int i = choose(c, value, choices);
    if (i >= 0)
        c->run->on_reboot = i;
    return i >= 0;
}

static bool set_timeout(const struct option_context *c, const char *value)
{
    char *end;
    double seconds = value[0] >= '0' && value[0] <= '9' ? strtod(value, &end) : (end = (char *)value, 0.0);
    if (end == value || *end || !(seconds > 0 && seconds <= MAX_TIMEOUT_SECONDS))
        return fail(c, "'%.64s' is no time: %s: write seconds, such as 60", value, c->where);
    uint64_t ns = (uint64_t)(seconds * 1e9);
    c->run->timeout_ns = ns ? ns : 1;
    return true;
}

static bool set_sandbox(const struct option_context *c, const char *value)
{
    return set_switch(c, &c->run->sandbox, value);
}

static bool set_cell(const struct option_context *c, const char *value)
{
    return set_switch(c, &c->run->cell, value);
}

static bool set_perf(const struct option_context *c, const char *value)
{
    return set_switch(c, &c->run->perf, value);
}

// A decimal number up to `limit`.
static bool parse_number(const char *value, uint64_t limit, uint64_t *number)
{
    char *end;
    errno = 0;
    unsigned long long n = strtoull(value, &end, 10);
    if (value[0] < '0' || value[0] > '9' || *end || errno || n > limit)
        return false;
    *number = n;
    return true;
}

static bool set_deterministic(const struct option_context *c, const char *value)
{
    struct run_options *o = c->run;
    o->epoch_s = DEFAULT_EPOCH;
    if (value[0] < '0' || value[0] > '9')
        return set_switch(c, &o->deterministic, value);
    if (!parse_number(value, MAX_EPOCH, &o->epoch_s))
        return fail(c, "'%.64s' is no date: %s: write seconds since 1970, on or off", value, c->where);
    o->deterministic = true;
    return true;
}

static bool set_stop_at(const struct option_context *c, const char *value)
{
    if (!parse_number(value, 1ull << 62, &c->run->stop_at))
        return fail(c, "'%.64s' is no number of instructions: %s: write one, such as 1000000", value, c->where);
    return true;
}

const struct option_info run_option_table[] = {
    {"kernel", "FILE", "boot this kernel: bzImage, multiboot or PVH ELF", false, false, NULL, set_kernel},
    {"initrd", "FILE", "load an initial RAM disk, or a multiboot module (repeatable)", false, true,
     clear_initrds, set_initrd},
    {"append", "TEXT", "the kernel's command line", false, false, NULL, set_append},
    {"bios", "FILE", "boot this firmware image", false, false, NULL, set_bios},
    {"memory", "SIZE[K|M|G]", "guest memory, in MiB without a letter (512M)", false, false, NULL, set_memory},
    {"cpus", "N", "number of virtual CPUs (1)", false, false, NULL, set_cpus},
    {"cpu", "MODEL[,+F][,-F]", "the processor the guest sees: gnomon help cpu", false,
     false, NULL, set_cpu},
    {"disk", "FILE[,snapshot=on][,readonly=on]", "a raw disk image as a virtio disk (repeatable)", false,
     true, clear_disks, set_disk},
    {"serial", "stdio|file:PATH|unix:PATH|pty|none", "where COM1, then COM2, go (stdio, none)", false, true,
     clear_serials, set_serial},
    {"debugcon", "stdio|file:PATH|none", "where the debug console at port 0xE9 goes (none)", false, false,
     NULL, set_debugcon},
    {"display", "none", "no display", false, false, NULL, set_display},
    {"engine", "auto|software|hardware", "what executes guest code (auto)", false, false, NULL, set_engine},
    {"direct", "auto|off|always", "give 64-bit user code processes of its own (auto)", false, false, NULL, set_direct},
    {"policy", "auto|checked|user|raw", "how it is translated for them, or not (auto)", false, false, NULL, set_policy},
    {"stats", "on|json|off", "print statistics at the end", true, false, NULL, set_stats},
    {"trace", "CATEGORIES[,file=PATH]", "log code,exc,mmu,io,cpu or all to a file (stderr)", false, false,
     NULL, set_trace},
    {"on-crash", "exit|reset|halt", "what follows a triple fault or a guest panic (exit)", false, false, NULL,
     set_on_crash},
    {"on-reboot", "reset|exit", "what follows a reset by the guest (reset)", false, false, NULL,
     set_on_reboot},
    {"timeout", "SECONDS", "end the machine after this time", false, false, NULL, set_timeout},
    {"sandbox", "on|off", "confine the processes of the machine (on)", false, false, NULL, set_sandbox},
    {"cell", "on|off", "a process of its own for guest code (on)", false, false, NULL,
     set_cell},
    {"perf", "on|off", "name translated code for perf, in /tmp/perf-PID.map", true, false, NULL, set_perf},
    {"deterministic", "on|off|SECONDS", "time is instructions: each run is the same", true, false, NULL, set_deterministic},
    {"stop-at", "COUNT", "print the state behind this many instructions and end", false, false, NULL, set_stop_at},
};
const size_t run_option_count = sizeof run_option_table / sizeof *run_option_table;

void run_options_init(struct run_options *o)
{
    memset(o, 0, sizeof *o);
    o->memory_bytes = DEFAULT_MEMORY_BYTES;
    o->cpus = 1;
    o->sandbox = o->cell = true;
    o->epoch_s = DEFAULT_EPOCH;
    o->stop_at = UINT64_MAX;
}

void run_options_free(struct run_options *o)
{
    clear_initrds(o);
    clear_disks(o);
    clear_serials(o);
    free(o->kernel);
    free(o->append);
    free(o->bios);
    free(o->cpu);
    free(o->debugcon.path);
    free(o->trace_file);
    memset(o, 0, sizeof *o);
}

const struct option_info *option_find(const char *name, size_t length)
{
    for (size_t i = 0; i < run_option_count; i++)
        if (strlen(run_option_table[i].name) == length && !memcmp(run_option_table[i].name, name, length))
            return &run_option_table[i];
    return NULL;
}

// Levenshtein distance of two words of at most 31 bytes.
static unsigned distance(const char *a, size_t na, const char *b, size_t nb)
{
    unsigned row[32];
    for (size_t j = 0; j <= nb; j++)
        row[j] = j;
    for (size_t i = 1; i <= na; i++) {
        unsigned diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= nb; j++) {
            unsigned change = diagonal + (a[i - 1] != b[j - 1]);
            unsigned best = row[j] + 1 < row[j - 1] + 1 ? row[j] + 1 : row[j - 1] + 1;
            diagonal = row[j];
            row[j] = change < best ? change : best;
        }
    }
    return row[nb];
}

const char *closer_word(const char *word, size_t length, const char *best, const char *candidate)
{
    size_t size = strlen(candidate);
    if (length > 31 || size > 31)
        return best;
    unsigned limit = best ? distance(word, length, best, strlen(best)) : 3, d = distance(word, length, candidate, size);
    return d < limit && d < size ? candidate : best;
}

const char *option_suggest(const char *name, size_t length)
{
    const char *best = NULL;
    for (size_t i = 0; i < run_option_count; i++)
        best = closer_word(name, length, best, run_option_table[i].name);
    return best;
}

struct given { // one option on the command line
    const struct option_info *info;
    const char *value;
};

// Reads argv into `given` without setting anything. Returns the number of options, or -1 with the error.
static int collect(struct given *given, const char **machine_file, int argc, char *const argv[], char *error)
{
    int count = 0;
    for (int i = 0; i < argc; i++) {
        const char *arg = argv[i];
        if (!arg[0]) {
            snprintf(error, ERROR_SIZE, "an empty word: gnomon run: leave it out, or name a machine file");
            return -1;
        }
        if (arg[0] != '-' || !arg[1]) {
            if (*machine_file) {
                snprintf(error, ERROR_SIZE, "a second machine file: %.200s: name one", arg);
                return -1;
            }
            *machine_file = arg;
            continue;
        }
        if (arg[1] != '-') {
            snprintf(error, ERROR_SIZE, "unknown option: %.64s: options begin with --, see gnomon help run",
                     arg);
            return -1;
        }
        const char *name = arg + 2;
        size_t length = strcspn(name, "=");
        const struct option_info *info = option_find(name, length);
        if (!info) {
            const char *suggestion = option_suggest(name, length);
            int shown = length < 64 ? (int)length : 64;
            if (suggestion)
                snprintf(error, ERROR_SIZE, "unknown option: --%.*s: did you mean --%s?", shown, name,
                         suggestion);
            else
                snprintf(error, ERROR_SIZE, "unknown option: --%.*s: see gnomon help run", shown, name);
            return -1;
        }
        const char *value = name[length] == '=' ? name + length + 1 : NULL;
        if (!value && info->optional)
            value = "on";
        if (!value && ++i < argc)
            value = argv[i];
        if (!value) {
            snprintf(error, ERROR_SIZE, "no value: --%s: write --%s %s", info->name, info->name,
                     info->argument);
            return -1;
        }
        given[count].info = info;
        given[count++].value = value;
    }
    return count;
}

bool run_options_parse(struct run_options *o, int argc, char *const argv[], char error[ERROR_SIZE])
{
    struct given *given = calloc(argc > 0 ? argc : 1, sizeof *given);
    const char *machine_file = NULL;
    bool cleared[sizeof run_option_table / sizeof *run_option_table] = {0};
    bool ok = false;
    if (!given) {
        snprintf(error, ERROR_SIZE, "out of memory: command line: end some programs and try again");
        return false;
    }
    int count = collect(given, &machine_file, argc, argv, error);
    if (count < 0 || (machine_file && !machine_file_load(o, machine_file, error)))
        goto out;
    for (int i = 0; i < count; i++) {
        const struct option_info *info = given[i].info;
        size_t index = info - run_option_table;
        if (info->clear && !cleared[index])
            info->clear(o);
        cleared[index] = true;
        char where[64];
        snprintf(where, sizeof where, "--%s", info->name);
        struct option_context c = {o, NULL, error, where};
        if (!info->set(&c, given[i].value))
            goto out;
    }
    ok = true;
out:
    free(given);
    return ok;
}

bool run_options_check(const struct run_options *o, char error[ERROR_SIZE])
{
    const char *line = NULL;
    if (!o->kernel && !o->bios)
        line = "nothing to boot: gnomon run: add --kernel FILE or --bios FILE";
    else if (!o->kernel && o->initrd_count)
        line = "no kernel for it: --initrd: add --kernel FILE";
    else if (!o->kernel && o->append)
        line = "no kernel for it: --append: add --kernel FILE";
    else if (o->cpus > 1)
        line = "more than one CPU is not there yet: --cpus: use --cpus 1";
    else if (o->engine == ENGINE_HARDWARE)
        line = "the hardware engine is not there yet: --engine: use --engine software";
    else if (o->direct == DIRECT_ALWAYS && o->policy == POLICY_CHECKED)
        line = "no processes for code with this policy: --direct always: leave one of it and --policy checked out";
    else if (o->sandbox && !o->cell)
        line = "no sandbox without a process of its own: --cell off: add --sandbox off";
    else if (o->stop_at != UINT64_MAX && !o->deterministic)
        line = "instructions are not counted: --stop-at: add --deterministic";
    else if (o->serial_count == 2 && o->serials[0].kind == CHAR_STDIO && o->serials[1].kind == CHAR_STDIO)
        line = "two ports on one terminal: --serial: send one elsewhere, such as --serial none";
    if (line)
        snprintf(error, ERROR_SIZE, "%s", line);
    return !line;
}
