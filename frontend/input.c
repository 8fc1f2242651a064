#include "frontend/input.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "frontend/exit.h"

#define END_GRACE_S 5 // from asking the machine to end until the process ends without it
#define INSIST_S    2
#define RETRY_MS    2 // until a full receiver is offered bytes again: 16 at 115,200 baud take 1.4 ms
#define STUCK_MS    256 // when it takes none, twice as long each time up to this

static void ending_signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGHUP);
    sigaddset(set, SIGQUIT);
}

void input_block_signals(void)
{
    sigset_t set;
    ending_signals(&set);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN); // the write says EPIPE
    signal(SIGXFSZ, SIG_IGN); // beyond the user's limit of a file's size: EFBIG
}

// The first call asks the machine to end and gives it END_GRACE_S; one later than INSIST_S asks again, which
// ends the process. (A signal to a process group arrives twice, once from the terminal's watcher.)
static void end_machine(struct input *in, int status)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (!in->end_status) {
        struct itimerspec grace = {.it_value.tv_sec = END_GRACE_S};
        in->end_status = status;
        in->end_asked = now.tv_sec;
        timerfd_settime(in->timer_fd, 0, &grace, NULL);
    } else if (now.tv_sec - in->end_asked < INSIST_S) {
        return;
    }
    in->events.end(in->events.opaque, in->end_status);
}

// Whether a typed byte is for the guest. Obeys it where it completes a Ctrl-A command.
static bool is_for_guest(struct input *in, uint8_t byte)
{
    switch (key_filter_byte(&in->keys, byte)) {
    case KEY_SEND: return true;
    case KEY_NOTHING: break;
    case KEY_QUIT: end_machine(in, EXIT_KILLED); break;
    case KEY_HELP:
        if (write(STDERR_FILENO, terminal_keys_help, strlen(terminal_keys_help)) < 0)
            break;
        break;
    case KEY_STATS: in->events.stats(in->events.opaque); break;
    }
    return false;
}

static void filter_keys(struct input *in, struct serial *s)
{
    size_t kept = 0;
    for (size_t i = 0; i < s->pending_end; i++)
        if (is_for_guest(in, s->pending[i]))
            s->pending[kept++] = s->pending[i];
    s->pending_end = kept;
}

static bool has_keys(const struct input *in, const struct serial *s)
{
    return s->kind == CHAR_STDIO && in->keys_enabled;
}

// A guest that takes no more bytes must not keep the user from ending it: its terminal is read on, for commands only.
static bool is_stuck(const struct input *in, const struct serial *s)
{
    return has_keys(in, s) && s->pending_start != s->pending_end && s->retry_ms == STUCK_MS;
}

static void read_commands(struct input *in, struct serial *s)
{
    uint8_t typed[256];
    ssize_t n = read(s->in_fd, typed, sizeof typed);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        s->in_fd = -1;
    for (ssize_t i = 0; i < n; i++)
        is_for_guest(in, typed[i]);
}

static void offer(struct input *in, unsigned port)
{
    struct serial *s = &in->serials[port];
    if (s->pending_start == s->pending_end)
        return;
    size_t n = s->pending_end - s->pending_start;
    size_t taken = in->events.bytes(in->events.opaque, port, s->pending + s->pending_start, n);
    s->pending_start += taken < n ? taken : n;
    s->retry_ms = taken ? RETRY_MS : s->retry_ms < STUCK_MS ? 2 * s->retry_ms : STUCK_MS;
    if (s->pending_start == s->pending_end)
        s->pending_start = s->pending_end = 0;
}

static void *input_main(void *opaque)
{
    struct input *in = opaque;
    for (;;) {
        struct pollfd fds[3 + MAX_SERIALS] = {
            {.fd = in->stop_fd, .events = POLLIN},
            {.fd = in->signal_fd, .events = POLLIN},
            {.fd = in->timer_fd, .events = POLLIN},
        };
        int timeout_ms = -1;
        for (unsigned i = 0; i < MAX_SERIALS; i++) {
            struct serial *s = &in->serials[i];
            fds[3 + i] = (struct pollfd){.fd = is_stuck(in, s) ? s->in_fd : serial_poll_fd(s), .events = POLLIN};
            if (s->pending_start != s->pending_end && (timeout_ms < 0 || s->retry_ms < timeout_ms))
                timeout_ms = s->retry_ms;
        }
        if (poll(fds, 3 + MAX_SERIALS, timeout_ms) < 0 && errno != EINTR)
            return NULL;
        if (fds[0].revents)
            return NULL;
        if (fds[1].revents & POLLIN) {
            struct signalfd_siginfo info;
            if (read(in->signal_fd, &info, sizeof info) == sizeof info)
                end_machine(in, EXIT_KILLED);
        }
        if (fds[2].revents & POLLIN) {
            uint64_t expirations;
            if (read(in->timer_fd, &expirations, sizeof expirations) > 0)
                end_machine(in, EXIT_TIMED_OUT);
        }
        for (unsigned i = 0; i < MAX_SERIALS; i++) {
            struct serial *s = &in->serials[i];
            if (fds[3 + i].fd >= 0 && fds[3 + i].revents) {
                if (is_stuck(in, s))
                    read_commands(in, s);
                else if (serial_ready(s) && has_keys(in, s))
                    filter_keys(in, s);
            }
            offer(in, i);
        }
    }
}

static void close_fds(struct input *in)
{
    if (in->signal_fd >= 0)
        close(in->signal_fd);
    if (in->timer_fd >= 0)
        close(in->timer_fd);
    if (in->stop_fd >= 0)
        close(in->stop_fd);
    in->signal_fd = in->timer_fd = in->stop_fd = -1;
}

int input_start(struct input *in, struct serial *serials, uint64_t timeout_ns,
                const struct input_events *events)
{
    sigset_t set;
    int status = 0;
    memset(in, 0, sizeof *in);
    in->serials = serials;
    for (unsigned i = 0; i < MAX_SERIALS; i++)
        in->serials[i].retry_ms = RETRY_MS;
    in->events = *events;
    in->keys_enabled = isatty(STDIN_FILENO);
    ending_signals(&set);
    in->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    in->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    in->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (in->signal_fd < 0 || in->timer_fd < 0 || in->stop_fd < 0) {
        status = -errno;
        goto fail;
    }
    struct itimerspec limit = {
        .it_value = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000}};
    if (timerfd_settime(in->timer_fd, 0, &limit, NULL) < 0) {
        status = -errno;
        goto fail;
    }
    status = -pthread_create(&in->thread, NULL, input_main, in);
    if (status)
        goto fail;
    in->running = true;
    return 0;
fail:
    close_fds(in);
    return status;
}

void input_stop(struct input *in)
{
    if (!in->running)
        return;
    uint64_t one = 1;
    if (write(in->stop_fd, &one, sizeof one) == sizeof one)
        pthread_join(in->thread, NULL);
    in->running = false;
    close_fds(in);
}
