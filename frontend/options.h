// The options of `gnomon run`: one table holds each option's name (--name on the command line, name = value
// in a machine file), the form of its argument and its help line. Help, the machine file, and the tests that
// hold the man page and the completion to it all read this table.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ERROR_SIZE  512 // bytes of an error line: "WHAT: WHERE: what to do"
#define MAX_INITRDS 32
#define MAX_DISKS   8
#define MAX_SERIALS 2

enum char_kind { CHAR_NONE, CHAR_STDIO, CHAR_FILE, CHAR_UNIX, CHAR_PTY };
struct char_option {
    enum char_kind kind;
    char *path; // CHAR_FILE, CHAR_UNIX
};
struct disk_option {
    char *path;
    bool snapshot; // writes are lost when the machine ends
    bool readonly;
};

enum engine_choice { ENGINE_AUTO, ENGINE_SOFTWARE, ENGINE_HARDWARE };
enum direct_option { DIRECT_AUTO, DIRECT_OFF, DIRECT_ALWAYS };
enum policy { POLICY_AUTO, POLICY_CHECKED, POLICY_USER, POLICY_RAW };
enum on_crash { ON_CRASH_EXIT, ON_CRASH_RESET, ON_CRASH_HALT };
enum on_reboot { ON_REBOOT_RESET, ON_REBOOT_EXIT };
enum stats_format { STATS_OFF, STATS_TEXT, STATS_JSON };

// Categories of --trace.
#define LOG_CODE 0x01u // guest and translated code side by side
#define LOG_EXC  0x02u // exceptions and interrupts delivered
#define LOG_MMU  0x04u // page faults, flushes, invalidations
#define LOG_IO   0x08u // ports and MMIO
#define LOG_CPU  0x10u // unknown MSRs, mode switches
#define LOG_ALL  0x1fu

// Every pointer is owned by the structure; run_options_free() frees them.
struct run_options {
    char *kernel, *append, *bios, *cpu;
    char *initrds[MAX_INITRDS];
    unsigned initrd_count;
    struct disk_option disks[MAX_DISKS];
    unsigned disk_count;
    struct char_option serials[MAX_SERIALS]; // COM1, COM2
    unsigned serial_count;                   // 0: none was named; COM1 is then the terminal
    struct char_option debugcon;
    uint64_t memory_bytes;
    unsigned cpus;
    enum engine_choice engine;
    enum stats_format stats;
    unsigned trace; // TRACE_*
    char *trace_file;
    enum direct_option direct;
    enum policy policy;
    enum on_crash on_crash;
    enum on_reboot on_reboot;
    uint64_t timeout_ns; // 0: none
    bool sandbox, cell; // a process of its own for guest code, and its filter of system calls
    bool perf;
    bool deterministic;
    uint64_t epoch_s; // where its date begins, in seconds since 1970
    uint64_t stop_at; // guest instructions; UINT64_MAX: none
};

struct option_context {
    struct run_options *run;
    const char *directory; // relative paths start here; null: the working directory
    char *error;           // ERROR_SIZE bytes
    const char *where;     // for messages: "--memory" or "vm.ini:3"
};

struct option_info {
    const char *name;
    const char *argument;                 // as help shows it: "SIZE[K|M|G]"
    const char *help;                     // one line, no full stop
    bool optional;                        // --name alone means --name=on
    bool repeatable;                      // a later one adds instead of replacing
    void (*clear)(struct run_options *o); // repeatable: forget what was given so far
    bool (*set)(const struct option_context *c, const char *value); // false: c->error is filled
};

extern const struct option_info run_option_table[];
extern const size_t run_option_count;

void run_options_init(struct run_options *o);
void run_options_free(struct run_options *o);
const struct option_info *option_find(const char *name, size_t length);
// Which of `best` (null: none yet) and `candidate` a mistyped word is more like; null when it is like neither.
const char *closer_word(const char *word, size_t length, const char *best, const char *candidate);
// The name in the table most like a mistyped one, or null.
const char *option_suggest(const char *name, size_t length);
// Arguments after `run`. What the command line says goes before what the machine file says; a repeatable
// option on the command line replaces the machine file's whole list. False: a usage error, one line without
// newline in error.
bool run_options_parse(struct run_options *o, int argc, char *const argv[], char error[ERROR_SIZE]);
// Whether the options make sense together.
bool run_options_check(const struct run_options *o, char error[ERROR_SIZE]);

// ---- machine files (frontend/machine_file.c)
// Sets options from the text of a machine file: lines `name = value` under [machine], comments after # or ;
// at the start of a line. Paths in it are relative to `directory`. `name` is for messages.
bool machine_file_parse(struct run_options *o, const char *text, size_t length, const char *name,
                        const char *directory, char error[ERROR_SIZE]);
bool machine_file_load(struct run_options *o, const char *path, char error[ERROR_SIZE]);
