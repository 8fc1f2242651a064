// A process that removes a file when this one has ended, however it ended: the machine process itself can't
// once it is in its sandbox (frontend/sandbox_machine.c), and a killed one never could.
#pragma once
#include <stdbool.h>
#include <sys/types.h>

struct sweeper {
    pid_t pid;   // 0: none
    int life_fd; // it sweeps when nobody holds this pipe any more
};

// The file at `path` goes if it is still the one that is there now. Call it before other threads exist.
// Returns 0 or -errno.
int sweeper_start(struct sweeper *s, const char *path);
// Returns when the file is gone. Does nothing where there is no sweeper.
void sweeper_sweep(struct sweeper *s);
