// The thread that waits for the host: typed bytes and socket clients, signals to end, the time limit.
#pragma once
#include "frontend/serial.h"
#include "frontend/terminal.h"

// Called on the input thread.
struct input_events {
    // Bytes for COM1 (port 0) or COM2 (1). Returns how many the UART took; the rest is offered again.
    size_t (*bytes)(void *opaque, unsigned port, const uint8_t *data, size_t n);
    // The machine shall end with this status (EXIT_KILLED or EXIT_TIMED_OUT). A second call means that it did
    // not, or that the user insists.
    void (*end)(void *opaque, int status);
    void (*stats)(void *opaque); // Ctrl-A s
    void *opaque;
};

struct input {
    struct serial *serials; // MAX_SERIALS, not owned
    struct input_events events;
    struct key_filter keys;
    bool keys_enabled; // standard input is a terminal
    int end_status;    // what the machine was asked to end with; 0: not yet
    time_t end_asked;
    int signal_fd, timer_fd, stop_fd;
    pthread_t thread;
    bool running;
};

// Blocks the signals that end a machine in the calling thread and those it creates later. Call before any
// thread exists.
void input_block_signals(void);
// Returns 0 or -errno. timeout_ns 0: no limit.
int input_start(struct input *in, struct serial *serials, uint64_t timeout_ns,
                const struct input_events *events);
void input_stop(struct input *in);
