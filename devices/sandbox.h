// Seccomp filters as lists of what a process may ask of the host's kernel, so that each list can be read
// whole: devices/sandbox_cell.c has the cell's, frontend/sandbox_machine.c that of the machine process.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// A condition on one argument. The low 32 bits are compared: use it for arguments that the kernel takes as
// int, or where the upper half can't make a difference.
struct sandbox_condition {
    enum { SANDBOX_ANY, SANDBOX_EQUAL, SANDBOX_NONE_OF } test; // NONE_OF: no bit of `value` is set
    uint32_t argument;                                         // 0..5
    uint32_t value;
};

// Allows a call whose arguments meet all conditions. A call may have several rules.
struct sandbox_rule {
    uint32_t call; // SYS_*
    struct sandbox_condition condition[2];
};

#define SANDBOX_MAX_RULES 96

enum sandbox_verdict {
    SANDBOX_KILL, // the process dies of SIGSYS
    SANDBOX_TRAP, // the call is not made and SIGSYS is sent; a handler can say which it was
};

// Gives up privileges that an exec could bring, and every system call that no rule allows; calls of another
// ABI than x86-64's kill the process. all_threads: also in the threads there are already. Returns 0 or
// -errno; -ENOSYS or -EINVAL: the host's kernel has no such filter.
int sandbox_filter(const struct sandbox_rule *rules, size_t count, enum sandbox_verdict verdict,
                   bool all_threads);

// Closes every descriptor but `keep` (-1: none) and forgets the environment.
void sandbox_drop_files(int keep, bool keep_stderr);
