// Between worker_create.c and worker.c.
#pragma once
#include "dbt/direct/stub.h"
#include "dbt/direct/worker.h"

// Sizes of the two pieces of shared memory a worker has; the owner sees them one behind the other.
#define LOW_PIECE     (NEW_XSAVE + NEW_XSAVE_SIZE - COMMAND_PAGE)
#define WORKER_SHARED (LOW_PIECE + ALT_STACK_SIZE)

struct worker {
    uint8_t *shared;
    int pid, mapper; // thread ids; the leader stays a zombie until workers_destroy(), so nobody else gets its
                     // number
    bool dead;       // for good
    uint32_t running; // atomic: between worker_resume() and the event
    bool doubt;       // it was not asleep when it was resumed: its death may go unnoticed
    struct worker_regs regs;
    uint32_t xstate; // address in the worker of the image to resume with
    uint32_t xstate_size;
    uint64_t xmask;
    uint32_t queued; // commands
};

struct workers {
    unsigned count;
    uint64_t xsave_mask; // of the host's user state
    uint32_t xsave_size; // of that, standard format
    uint8_t *shared;
    size_t shared_size;
    struct worker_window window[WORKER_WINDOWS];
    unsigned window_count;
    struct worker worker[WORKERS_MAX];
};

extern const uint8_t stub_begin[], stub_end[], stub_runner[], stub_mapper[], stub_called[];
