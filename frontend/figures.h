// --stats: what is known about a run, grouped and with the shares and rates that its counters give.
#pragma once
#include "devices/machine.h"
#include "frontend/stats.h"
#include "frontend/usage.h"

struct figures {
    struct machine *machine;
    const struct usage_files *usage; // of the process that runs guest code, then of its workers
    unsigned usage_count;
    uint64_t started_ns; // CLOCK_MONOTONIC
};
void figures_list(void *opaque, struct stats_sink *sink); // a stats_source; opaque: struct figures
