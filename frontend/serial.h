// Host ends of the serial ports and of the debug console: the terminal, a file, a Unix socket, a
// pseudo-terminal.
//
// Threads: serial_write() (through struct char_out) may be called from any thread; everything else by the
// thread that runs input (frontend/input.c) once that runs, before and after by the main thread. `lock`
// orders a writer against the input thread's replacing out_fd.
#pragma once
#include <poll.h>
#include <pthread.h>
#include <sys/types.h>

#include "devices/device.h"
#include "frontend/options.h"
#include "frontend/sweeper.h"

struct serial {
    enum char_kind kind;
    const char *name;     // as in serial_open()
    int in_fd, out_fd;    // -1: none
    int listen_fd;        // CHAR_UNIX
    pthread_mutex_t lock; // out_fd, stalled
    bool stalled; // the reader at the other end took nothing for a while: don't wait for it until it reads
                  // again
    bool lost;    // the user was told that bytes can't be written
    bool created; // CHAR_FILE: the file was not there before
    char *path;   // of the file or socket
    struct sweeper sweeper; // of the socket's file
    uint8_t pending[256]; // typed, but the guest's receiver had no room yet
    size_t pending_start, pending_end;
    int retry_ms; // until pending is offered again
};

// Opens a back end and says on standard error where a pseudo-terminal is. Returns 0 or -errno with a line in
// error; s is then closed. `name`: "COM1" or the like, for messages; it must outlive s.
int serial_open(struct serial *s, const struct char_option *option, const char *name, char error[ERROR_SIZE]);
// The machine is about to run: empties a file.
void serial_begin(struct serial *s);
// failed: the machine never ran, so a file made by serial_open() goes too.
void serial_close(struct serial *s, bool failed);
struct char_out serial_char_out(struct serial *s);

// ---- for the input thread
// The descriptor to wait on for input or a connection, -1: nothing to wait for.
int serial_poll_fd(const struct serial *s);
// After poll() said that fd is ready: accepts a connection or reads into pending. Returns the bytes read.
size_t serial_ready(struct serial *s);
