// Files that output goes to: serial ports, the debug console, traces.
#pragma once
#include <stdbool.h>

// Opens the file for writing; *created: it was not there before. What is in it stays until output_empty(). Where
// nobody reads a FIFO the result is -ENXIO, rather than a wait that no signal would end; O_NONBLOCK stays set.
// Returns the descriptor or -errno.
int output_open(const char *path, bool *created);
// Empties it, once it is sure that the machine starts: a failed start costs nobody the output of the last run.
void output_empty(int fd);
// What the user can do about an error of output_open().
const char *output_advice(int error);
