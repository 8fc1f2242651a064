// The terminal gnomon runs on: raw while a guest's serial port is on it, and put back whatever happens.
#pragma once
#include <stdbool.h>
#include <stdint.h>

// What a typed byte means: Ctrl-A begins a command.
enum key_action { KEY_SEND, KEY_NOTHING, KEY_QUIT, KEY_HELP, KEY_STATS };
struct key_filter {
    bool after_ctrl_a;
};
// KEY_SEND: *byte goes to the guest (it is Ctrl-A for the second of two).
enum key_action key_filter_byte(struct key_filter *f, uint8_t byte);

extern const char terminal_keys_help[]; // lines end in \r\n, for a raw terminal

// Makes the terminal on standard input raw and leaves this process to watch over it: the caller goes on in a
// child process; the process the shell started waits for the child, puts the terminal back and exits with the
// child's status, also when the child crashes or is stopped. Does nothing (returns true) when standard input
// is no terminal. False: out of processes. Call before any thread exists.
bool terminal_supervise(void);
// In the child, at its end: puts the terminal back if the watching process is gone.
void terminal_leave(void);
