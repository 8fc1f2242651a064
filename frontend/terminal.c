// Why a second process: a handler for fatal signals can't restore the terminal reliably here. The software
// engine owns SIGSEGV, SIGBUS, SIGILL and SIGFPE, a bug in translated code may leave no usable stack, and
// SIGKILL has no handler. The watching process runs none of that. When it is itself killed, the child gets
// SIGTERM and restores (terminal_leave).
//
// Stopping: in raw mode Ctrl-Z reaches the guest, but kill -TSTP and kill -STOP must leave a usable shell.
// The child stops, the watcher sees it, restores the terminal and stops itself; on SIGCONT it makes the
// terminal raw again and wakes the child.
#include "frontend/terminal.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "frontend/exit.h"

#define CTRL_A 0x01

const char terminal_keys_help[] = "\r\nCtrl-A x       end the machine\r\n"
                                  "Ctrl-A s       print statistics\r\n"
                                  "Ctrl-A Ctrl-A  send Ctrl-A to the guest\r\n"
                                  "Ctrl-A h       this list\r\n";

enum key_action key_filter_byte(struct key_filter *f, uint8_t byte)
{
    if (!f->after_ctrl_a) {
        f->after_ctrl_a = byte == CTRL_A;
        return byte == CTRL_A ? KEY_NOTHING : KEY_SEND;
    }
    f->after_ctrl_a = false;
    switch (byte) {
    case CTRL_A: return KEY_SEND;
    case 'x':
    case 'X': return KEY_QUIT;
    case 'h':
    case 'H':
    case '?': return KEY_HELP;
    case 's':
    case 'S': return KEY_STATS;
    default: return KEY_NOTHING;
    }
}

// There is one terminal per process, and no machine owns it: the one place with static state.
static struct termios saved;
static pid_t watcher; // in the child: the process that watches the terminal; 0: none

static void restore(void)
{
    // From a background process group this would stop us otherwise (POSIX 11.1.4).
    sigset_t ttou, before;
    sigemptyset(&ttou);
    sigaddset(&ttou, SIGTTOU);
    sigprocmask(SIG_BLOCK, &ttou, &before);
    tcsetattr(STDIN_FILENO, TCSADRAIN, &saved);
    sigprocmask(SIG_SETMASK, &before, NULL);
}

static void make_raw(void)
{
    struct termios raw = saved;
    raw.c_iflag &= ~(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON);
    raw.c_lflag &= ~(ECHO | ECHONL | ICANON | ISIG | IEXTEN);
    raw.c_cflag = (raw.c_cflag & ~(CSIZE | PARENB)) | CS8;
    raw.c_cc[VMIN] = 1;
    raw.c_cc[VTIME] = 0;
    // OPOST stays, so that our own lines and those of programs that share the terminal begin at the left.
    tcsetattr(STDIN_FILENO, TCSADRAIN, &raw);
}

static int status_of(int wait_status)
{
    if (WIFEXITED(wait_status))
        return WEXITSTATUS(wait_status);
    int sig = WTERMSIG(wait_status);
    if (sig == SIGKILL || sig == SIGTERM || sig == SIGINT || sig == SIGHUP || sig == SIGQUIT)
        return EXIT_KILLED;
    fprintf(stderr,
            "gnomon: crashed (%s): the machine's process: please report this with the command line used\n",
            strsignal(sig));
    return EXIT_HOST_ERROR;
}

static _Noreturn void watch(pid_t child, const sigset_t *signals)
{
    for (;;) {
        int sig = sigwaitinfo(signals, NULL);
        if (sig < 0)
            continue;
        if (sig == SIGTSTP) {
            kill(child, SIGSTOP);
        } else if (sig == SIGCONT) {
            make_raw();
            kill(child, SIGCONT);
        } else if (sig != SIGCHLD) {
            kill(child, sig);
        }
        int status;
        pid_t pid = waitpid(child, &status, WNOHANG | WUNTRACED);
        if (pid == child && WIFSTOPPED(status)) {
            restore();
            raise(SIGSTOP); // SIGCONT stays pending and is taken above
        } else if (pid == child || (pid < 0 && errno == ECHILD)) {
            restore();
            _exit(pid == child ? status_of(status) : EXIT_HOST_ERROR);
        }
    }
}

bool terminal_supervise(void)
{
    if (!isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, &saved) < 0)
        return true;
    sigset_t signals, before;
    sigemptyset(&signals);
    const int handled[] = {SIGCHLD, SIGCONT, SIGTSTP, SIGTERM, SIGINT, SIGHUP, SIGQUIT};
    for (size_t i = 0; i < sizeof handled / sizeof *handled; i++)
        sigaddset(&signals, handled[i]);
    sigprocmask(SIG_BLOCK, &signals, &before);
    pid_t parent = getpid();
    make_raw();
    fflush(NULL);
    pid_t child = fork();
    if (child < 0) {
        restore();
        sigprocmask(SIG_SETMASK, &before, NULL);
        return false;
    }
    if (child > 0)
        watch(child, &signals);
    watcher = parent;
    sigprocmask(SIG_SETMASK, &before, NULL);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
        raise(SIGTERM);
    return true;
}

void terminal_leave(void)
{
    if (watcher && getppid() != watcher)
        restore();
}
