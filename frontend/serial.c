#include "frontend/serial.h"
#include "frontend/commands.h"
#include "frontend/output.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

#define STALL_MS 1000 // how long a write waits for a slow reader of a socket or pseudo-terminal

static int fail(int error_number, char *error, const char *what, const char *where, const char *hint)
{
    snprintf(error, ERROR_SIZE, "%s (%s): %.200s: %s", what, strerror(error_number), where, hint);
    return -error_number;
}

static int open_file(struct serial *s, const char *path, char *error)
{
    int fd = output_open(path, &s->created);
    if (fd < 0)
        return fail(-fd, error, "can't write the serial file", path, output_advice(fd));
    s->out_fd = fd;
    return 0;
}

// Whether something accepts connections at the address.
static bool socket_answers(const struct sockaddr_un *address)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return true;
    bool answers = !connect(fd, (const struct sockaddr *)address, sizeof *address) || errno == EAGAIN;
    close(fd);
    return answers;
}

static bool is_socket(const char *path)
{
    struct stat st;
    return !lstat(path, &st) && S_ISSOCK(st.st_mode);
}

static int open_socket(struct serial *s, const char *path, char *error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        return fail(ENAMETOOLONG, error, "the socket's path is too long", path,
                    "use one of at most 107 bytes");
    memcpy(address.sun_path, path, strlen(path) + 1);
    s->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s->listen_fd < 0)
        return fail(errno, error, "can't make a socket", path, "close some programs");
    int status = bind(s->listen_fd, (struct sockaddr *)&address, sizeof address);
    if (status < 0 && errno == EADDRINUSE) {
        if (!is_socket(path))
            return fail(EEXIST, error, "can't make the serial socket", path, "name a path that is free");
        if (socket_answers(&address))
            return fail(EADDRINUSE, error, "another machine listens there", path,
                        "name another socket or end that machine");
        unlink(path); // left by a machine that was killed
        status = bind(s->listen_fd, (struct sockaddr *)&address, sizeof address);
    }
    if (status < 0)
        return fail(errno, error, "can't make the serial socket", path,
                    "name a path in a directory you may write");
    status = sweeper_start(&s->sweeper, path);
    if (status) {
        unlink(path);
        return fail(-status, error, "can't make a process that removes the serial socket", path, "end some programs");
    }
    if (listen(s->listen_fd, 1) < 0)
        return fail(errno, error, "can't listen on the serial socket", path, "name another path");
    return 0;
}

static int open_pty(struct serial *s, const char *name, char *error)
{
    struct termios raw;
    s->out_fd = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (s->out_fd < 0 || grantpt(s->out_fd) < 0 || unlockpt(s->out_fd) < 0)
        return fail(errno, error, "can't make a pseudo-terminal", name, "mount /dev/pts or use unix:PATH");
    const char *path = ptsname(s->out_fd);
    // Held open by us, the slave keeps its settings while nobody is there and the master never reads EIO.
    s->listen_fd = path ? open(path, O_RDWR | O_NOCTTY | O_CLOEXEC) : -1;
    if (s->listen_fd < 0)
        return fail(errno, error, "can't open the pseudo-terminal", name, "mount /dev/pts or use unix:PATH");
    if (!tcgetattr(s->listen_fd, &raw)) {
        cfmakeraw(&raw);
        tcsetattr(s->listen_fd, TCSANOW, &raw);
    }
    s->in_fd = s->out_fd;
    fprintf(stderr, "gnomon: %s is %s\n", name, path);
    return 0;
}

int serial_open(struct serial *s, const struct char_option *option, const char *name, char error[ERROR_SIZE])
{
    int status = 0;
    memset(s, 0, sizeof *s);
    s->kind = option->kind;
    s->name = name;
    s->in_fd = s->out_fd = s->listen_fd = -1;
    pthread_mutex_init(&s->lock, NULL);
    if (option->path && !(s->path = strdup(option->path))) {
        status = fail(ENOMEM, error, "out of memory", name, "end some programs and try again");
    } else {
        switch (option->kind) {
        case CHAR_NONE: break;
        case CHAR_STDIO:
            s->in_fd = STDIN_FILENO;
            s->out_fd = STDOUT_FILENO;
            break;
        case CHAR_FILE: status = open_file(s, s->path, error); break;
        case CHAR_UNIX: status = open_socket(s, s->path, error); break;
        case CHAR_PTY: status = open_pty(s, name, error); break;
        }
    }
    if (status)
        serial_close(s, true);
    return status;
}

void serial_begin(struct serial *s)
{
    if (s->kind == CHAR_FILE)
        output_empty(s->out_fd);
}

void serial_close(struct serial *s, bool failed)
{
    sweeper_sweep(&s->sweeper);
    if (s->kind == CHAR_FILE && s->created && failed)
        unlink(s->path);
    if (s->kind != CHAR_STDIO) {
        if (s->in_fd >= 0 && s->in_fd != s->out_fd)
            close(s->in_fd);
        if (s->out_fd >= 0)
            close(s->out_fd);
    }
    if (s->listen_fd >= 0)
        close(s->listen_fd);
    s->in_fd = s->out_fd = s->listen_fd = -1;
    free(s->path);
    s->path = NULL;
    s->created = false;
    s->kind = CHAR_NONE;
    pthread_mutex_destroy(&s->lock);
}

// Waits until fd takes more. False: it doesn't, and the bytes are dropped as a UART without a cable drops
// them.
static bool wait_for_reader(struct serial *s)
{
    struct pollfd p = {.fd = s->out_fd, .events = POLLOUT};
    // A terminal or pipe of the user's is waited for: flow control by whoever reads gnomon's output.
    int timeout_ms = s->kind == CHAR_STDIO || s->kind == CHAR_FILE ? -1 : s->stalled ? 0 : STALL_MS;
    int n;
    do {
        n = poll(&p, 1, timeout_ms);
    } while (n < 0 && errno == EINTR);
    s->stalled = n <= 0;
    return n > 0 && (p.revents & POLLOUT);
}

// Output that somebody keeps must not get lost in silence. (A client of a socket comes and goes as it likes.)
static void say_it_is_lost(struct serial *s, int error)
{
    char line[ERROR_SIZE];
    if (s->lost || (s->kind != CHAR_STDIO && s->kind != CHAR_FILE))
        return;
    s->lost = true;
    snprintf(line, sizeof line, "can't write what %s prints (%s): %.200s: it is lost; free some space or name another file",
             s->name, strerror(error), s->path ? s->path : "standard output");
    error_line(line);
}

static void serial_write(void *opaque, const uint8_t *data, size_t n)
{
    struct serial *s = opaque;
    pthread_mutex_lock(&s->lock);
    while (n && s->out_fd >= 0) {
        ssize_t done = s->kind == CHAR_UNIX ? send(s->out_fd, data, n, MSG_NOSIGNAL | MSG_DONTWAIT)
                                            : write(s->out_fd, data, n);
        if (done > 0) {
            s->stalled = false;
            data += done;
            n -= done;
        } else if (done < 0 && errno == EINTR) {
            continue;
        } else if (done < 0 && errno != EAGAIN) {
            say_it_is_lost(s, errno);
            break;
        } else if (!wait_for_reader(s)) {
            break;
        }
    }
    pthread_mutex_unlock(&s->lock);
}

struct char_out serial_char_out(struct serial *s)
{
    return (struct char_out){serial_write, s};
}

int serial_poll_fd(const struct serial *s)
{
    if (s->pending_start != s->pending_end)
        return -1;
    if (s->in_fd >= 0)
        return s->in_fd;
    return s->kind == CHAR_UNIX ? s->listen_fd : -1;
}

static void set_connection(struct serial *s, int fd)
{
    pthread_mutex_lock(&s->lock);
    int old = s->out_fd;
    s->in_fd = s->out_fd = fd;
    s->stalled = false;
    pthread_mutex_unlock(&s->lock);
    if (old >= 0)
        close(old);
}

size_t serial_ready(struct serial *s)
{
    if (s->in_fd < 0) {
        int fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0)
            set_connection(s, fd);
        return 0;
    }
    ssize_t n = read(s->in_fd, s->pending, sizeof s->pending);
    s->pending_start = 0;
    s->pending_end = n > 0 ? n : 0;
    if (n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR)))
        return s->pending_end;
    // End of file, or the client left.
    if (s->kind == CHAR_UNIX)
        set_connection(s, -1);
    else
        s->in_fd = -1;
    return 0;
}
