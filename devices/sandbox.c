// Makes a seccomp filter of a list of rules: for each rule a comparison of the call's number, then of
// arguments, then "allow". The kernel remembers which numbers are allowed whatever their arguments
// (Linux 5.11), so the length of a list costs the frequent calls nothing.
#include "devices/sandbox.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CONDITIONS        (sizeof((struct sandbox_rule *)0)->condition / sizeof(struct sandbox_condition))
#define RULE_SIZE         (3 + 2 * CONDITIONS) // instructions at most
#define PROLOGUE          3
#define LOAD(offset)      ((struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (offset)))
#define JUMP(op, k, t, f) ((struct sock_filter)BPF_JUMP(BPF_JMP | (op) | BPF_K, (k), (t), (f)))
#define RETURN(verdict)   ((struct sock_filter)BPF_STMT(BPF_RET | BPF_K, (verdict)))

struct program {
    struct sock_filter code[PROLOGUE + SANDBOX_MAX_RULES * RULE_SIZE + 1];
    unsigned short size;
};

static void put(struct program *p, struct sock_filter instruction)
{
    p->code[p->size++] = instruction;
}

static void put_rule(struct program *p, const struct sandbox_rule *rule)
{
    uint8_t left = 1; // instructions from the next on to the rule's end

    for (size_t i = 0; i < CONDITIONS; i++)
        left += rule->condition[i].test != SANDBOX_ANY ? 2 : 0;
    put(p, LOAD(offsetof(struct seccomp_data, nr)));
    put(p, JUMP(BPF_JEQ, rule->call, 0, left));
    for (size_t i = 0; i < CONDITIONS; i++) {
        const struct sandbox_condition *c = &rule->condition[i];
        if (c->test == SANDBOX_ANY)
            continue;
        left -= 2;
        put(p, LOAD((uint32_t)offsetof(struct seccomp_data, args) +
                    8 * c->argument)); // little-endian: the low half
        put(p,
            c->test == SANDBOX_EQUAL ? JUMP(BPF_JEQ, c->value, 0, left) : JUMP(BPF_JSET, c->value, left, 0));
    }
    put(p, RETURN(SECCOMP_RET_ALLOW));
}

int sandbox_filter(const struct sandbox_rule *rules, size_t count, enum sandbox_verdict verdict,
                   bool all_threads)
{
    struct program p = {.size = 0};

    if (count > SANDBOX_MAX_RULES)
        return -E2BIG;
    put(&p, LOAD(offsetof(struct seccomp_data, arch)));
    put(&p, JUMP(BPF_JEQ, AUDIT_ARCH_X86_64, 1, 0));
    put(&p, RETURN(SECCOMP_RET_KILL_PROCESS));
    for (size_t i = 0; i < count; i++) // the x32 ABI's numbers have bit 30 set and equal none of ours
        put_rule(&p, &rules[i]);
    put(&p, RETURN(verdict == SANDBOX_TRAP ? SECCOMP_RET_TRAP : SECCOMP_RET_KILL_PROCESS));

    const struct sock_fprog program = {p.size, p.code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -errno;
    long result =
        syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, all_threads ? SECCOMP_FILTER_FLAG_TSYNC : 0, &program);
    if (result < 0)
        return -errno;
    return result ? -EBUSY : 0; // the number of a thread that has a filter of its own
}

static void close_span(unsigned first, unsigned last)
{
    if (first > last || syscall(SYS_close_range, first, last, 0) == 0)
        return;
    struct rlimit limit = {0}; // Linux before 5.9
    getrlimit(RLIMIT_NOFILE, &limit);
    for (unsigned fd = first; fd <= last && fd < limit.rlim_cur; fd++)
        close((int)fd);
}

void sandbox_drop_files(int keep, bool keep_stderr)
{
    extern char **environ;
    const struct rlimit none = {0, 0};

    close_span(0, 1);
    if (!keep_stderr && keep != 2)
        close_span(2, 2);
    if (keep >= 3) {
        close_span(3, (unsigned)keep - 1);
        close_span((unsigned)keep + 1, UINT32_MAX);
    } else {
        close_span(3, UINT32_MAX);
    }
    for (char **e = environ; e && *e; e++) // it may hold secrets of the user's
        memset(*e, 0, strlen(*e));
    environ = NULL;
    setrlimit(RLIMIT_CORE, &none);
}
