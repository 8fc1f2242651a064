// The sandbox of the machine process: what it needs is allowed; what would get it something new ends it with
// a line.
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "frontend/exit.h"
#include "frontend/sandbox_machine.h"
#include "tests/unit/host.h"

#define SURVIVED 77
#define FAILED   78

struct inside { // what a process in the sandbox has
    pid_t cell;
    int file, timer, listener;
    FILE *stream;               // of the file
    struct sockaddr_un address; // of the listener
};

static pid_t make_cell(void)
{
    pid_t parent = getpid(), pid = fork();

    if (!pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        while (getppid() == parent)
            pause();
        _exit(0);
    }
    return pid;
}

static void prepare(struct inside *in)
{
    in->cell = make_cell();
    in->file = memfd_create("file", MFD_CLOEXEC);
    in->stream = fdopen(in->file, "w");
    in->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    in->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    in->address = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (bind(in->listener, (struct sockaddr *)&in->address, sizeof(sa_family_t)) ||
        listen(in->listener, 1)) // "autobind"
        _exit(FAILED);
    socklen_t size = sizeof in->address;
    getsockname(in->listener, (struct sockaddr *)&in->address, &size);
}

// Runs `act` in the sandbox, in a process of its own. Returns how it ended; `said` is what it had on standard
// error.
static int confined(void (*act)(struct inside *in), char said[512])
{
    FILE *errors = tmpfile();
    int status;
    pid_t pid = fork();

    if (!pid) {
        struct inside in;
        dup2(fileno(errors), STDERR_FILENO);
        prepare(&in);
        if (sandbox_machine(in.cell, NULL, 0))
            _exit(FAILED);
        act(&in);
        _exit(SURVIVED);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    rewind(errors);
    said[fread(said, 1, 511, errors)] = 0;
    fclose(errors);
    return status;
}

#ifdef __SANITIZE_ADDRESS__ // its run-time library makes other system calls than ours, also before _exit()
#define SKIP_SANITIZED() skip()
#define SIGNALS_ARE_FINE true
#else
#define SKIP_SANITIZED() (void)0
#define SIGNALS_ARE_FINE false
#endif

static bool ended_by_the_sandbox(int status)
{
    return (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_HOST_ERROR) ||
           (SIGNALS_ARE_FINE && WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
}

// ---- what would get it something new, or reach other processes
static void act_open(struct inside *in)
{
    (void)in;
    syscall(SYS_openat, AT_FDCWD, "/etc/passwd", O_RDONLY);
}

static void act_unlink(struct inside *in)
{
    (void)in;
    syscall(SYS_unlink, "/no/such/file");
}

static void act_stat(struct inside *in)
{
    char buffer[256];
    (void)in;
    syscall(SYS_newfstatat, AT_FDCWD, "/etc/passwd", buffer, 0);
}

static void act_execute(struct inside *in)
{
    (void)in;
    syscall(SYS_execve, "/bin/true", NULL, NULL);
}

static void act_fork(struct inside *in)
{
    (void)in;
    syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
}

static void act_socket(struct inside *in)
{
    (void)in;
    syscall(SYS_socket, AF_INET, SOCK_STREAM, 0);
}

static void act_connect(struct inside *in)
{
    syscall(SYS_connect, in->listener, &in->address, sizeof in->address);
}

static void act_send_to_an_address(struct inside *in)
{
    syscall(SYS_sendto, in->listener, "", 1, MSG_NOSIGNAL, &in->address, sizeof in->address);
}

static void act_kill(struct inside *in)
{
    (void)in;
    syscall(SYS_kill, getppid(), 0);
}

static void act_kill_a_thread(struct inside *in)
{
    (void)in;
    syscall(SYS_tgkill, getppid(), getppid(), 0);
}

static void act_trace(struct inside *in)
{
    syscall(SYS_ptrace, PTRACE_ATTACH, in->cell, 0, 0);
}

static void act_read_memory_of_another(struct inside *in)
{
    syscall(SYS_process_vm_readv, in->cell, NULL, 0, NULL, 0, 0);
}

static void act_move_another(struct inside *in)
{
    char set[128] = {1};
    (void)in;
    syscall(SYS_sched_setaffinity, getppid(), sizeof set, set);
}

static void act_executable(struct inside *in)
{
    (void)in;
    syscall(SYS_mmap, 0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void act_make_executable(struct inside *in)
{
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    (void)in;
    syscall(SYS_mprotect, page, 4096, PROT_READ | PROT_EXEC);
}

static void act_map_a_file(struct inside *in)
{
    syscall(SYS_mmap, 0, 4096, PROT_READ, MAP_SHARED, in->file, 0);
}

static void act_type_into_the_terminal(struct inside *in)
{
    syscall(SYS_ioctl, in->file, TIOCSTI, "x");
}

static void act_change_itself(struct inside *in)
{
    (void)in;
    syscall(SYS_prctl, PR_SET_DUMPABLE, 1, 0, 0, 0);
}

#define CALL(act, number)                                                                                    \
    {                                                                                                        \
#act, act, number                                                                                    \
    }

static void calls_that_get_it_more_end_it_with_a_line_that_names_them(void **state)
{
    static const struct {
        const char *name;
        void (*act)(struct inside *);
        int number;
    } calls[] = {
        CALL(act_open, SYS_openat),         CALL(act_unlink, SYS_unlink),
        CALL(act_stat, SYS_newfstatat),     CALL(act_execute, SYS_execve),
        CALL(act_fork, SYS_clone),          CALL(act_socket, SYS_socket),
        CALL(act_connect, SYS_connect),     CALL(act_send_to_an_address, SYS_sendto),
        CALL(act_kill, SYS_kill),           CALL(act_kill_a_thread, SYS_tgkill),
        CALL(act_trace, SYS_ptrace),        CALL(act_read_memory_of_another, SYS_process_vm_readv),
        CALL(act_executable, SYS_mmap),     CALL(act_make_executable, SYS_mprotect),
        CALL(act_map_a_file, SYS_mmap),     CALL(act_type_into_the_terminal, SYS_ioctl),
        CALL(act_change_itself, SYS_prctl), CALL(act_move_another, SYS_sched_setaffinity),
    };
    char said[512], words[64];
    (void)state;

    for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++) {
        int status = confined(calls[i].act, said);
        if (!ended_by_the_sandbox(status))
            fail_msg("%s: status %#x: %s", calls[i].name, (unsigned)status, said);
        snprintf(words, sizeof words, "gnomon: forbidden system call %d: ", calls[i].number);
        assert_memory_equal(said, words, strlen(words));
        assert_ptr_equal(strchr(said, '\n'), said + strlen(said) - 1);
    }
}

static void act_i386_call(struct inside *in)
{
    long result = 20; // getpid of the 32-bit interface; 20 is writev of the other
    (void)in;
    __asm__ volatile("int $0x80" : "+a"(result) : : "memory", "r8", "r9", "r10", "r11");
}

static void calls_of_the_32_bit_interface_kill_it(void **state)
{
    char said[512];
    (void)state;
    if (!host_has_i386_calls())
        skip();
    int status = confined(act_i386_call, said);

    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGSYS);
}

// ---- threads that were there before
static int go[2];

static void *open_later(void *opaque)
{
    char byte;
    (void)opaque;

    if (read(go[0], &byte, 1) == 1)
        syscall(SYS_openat, AT_FDCWD, "/etc/passwd", O_RDONLY);
    return NULL;
}

static void earlier_threads_are_confined_too(void **state)
{
    int status;
    pid_t pid = fork();
    (void)state;

    if (!pid) {
        pthread_t thread;
        dup2(open("/dev/null", O_WRONLY), STDERR_FILENO);
        if (pipe(go) || pthread_create(&thread, NULL, open_later, NULL) || sandbox_machine(getpid(), NULL, 0) ||
            write(go[1], "", 1) != 1)
            _exit(FAILED);
        pthread_join(thread, NULL);
        _exit(SURVIVED);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(ended_by_the_sandbox(status));
}

// ---- what it needs
static void need(bool ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "not allowed: %s\n", what);
    _exit(FAILED);
}

static void act_machine(struct inside *in)
{
    struct itimerspec soon = {.it_value.tv_nsec = 1};
    char data[512] = "data";
    uint64_t expirations;
    cpu_set_t set;

    need(fprintf(in->stream, "trace\n") == 6 && !fflush(in->stream), "stdio");
    need(pwrite(in->file, data, sizeof data, 0) == sizeof data &&
             pread(in->file, data, sizeof data, 0) == sizeof data && !fdatasync(in->file) &&
             !fallocate(in->file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096),
         "disks");
    need(!timerfd_settime(in->timer, 0, &soon, NULL) && read(in->timer, &expirations, 8) == 8, "timers");
    struct pollfd p = {.fd = in->listener, .events = POLLIN};
    need(poll(&p, 1, 0) == 0, "poll");
    need(accept4(in->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK) < 0, "accept");
    need(!isatty(in->file), "isatty");
    for (size_t size = 1000; size < 100 << 20; size *= 4) { // all ways of malloc
        char *memory = malloc(size);
        memory = memory ? realloc(memory, 2 * size) : NULL;
        need(memory != NULL, "memory");
        memset(memory, 1, 2 * size);
        free(memory);
    }
    need(!sched_getaffinity(0, sizeof set, &set) && !sched_setaffinity(in->cell, sizeof set, &set) &&
             !sched_setaffinity(0, sizeof set, &set),
         "affinity");
    need(!syscall(SYS_tgkill, in->cell, in->cell, 0) && !kill(in->cell, SIGKILL) &&
             waitpid(in->cell, NULL, 0) == in->cell,
         "the cell's end");
    need(!fclose(in->stream), "close");
}

static void what_devices_and_front_end_need_is_allowed(void **state)
{
    char said[512];
    (void)state;
    SKIP_SANITIZED();
    int status = confined(act_machine, said);

    assert_string_equal(said, "");
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), SURVIVED);
}

static void act_abort(struct inside *in)
{
    (void)in;
    abort();
}

static void abort_is_still_an_abort(void **state)
{
    char said[512];
    (void)state;
    SKIP_SANITIZED();
    int status = confined(act_abort, said);

    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGABRT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(calls_that_get_it_more_end_it_with_a_line_that_names_them),
        cmocka_unit_test(calls_of_the_32_bit_interface_kill_it),
        cmocka_unit_test(earlier_threads_are_confined_too),
        cmocka_unit_test(what_devices_and_front_end_need_is_allowed),
        cmocka_unit_test(abort_is_still_an_abort),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
