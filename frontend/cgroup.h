// What the control groups that this process is in leave to it, in version 1 and 2 of them (cgroups(7)).
#pragma once
#include <stdint.h>

struct cgroup_limits {
    double cpus;           // of the quota; 0: no quota
    uint64_t memory_bytes; // what may still be used; UINT64_MAX: no limit
};
// `list` is /proc/self/cgroup, `root` where the hierarchies are mounted: /sys/fs/cgroup. The tightest group on the way to
// the root counts. A file that can't be read sets no limit.
struct cgroup_limits cgroup_limits(const char *list, const char *root);
