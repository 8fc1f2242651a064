#include "frontend/cgroup.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATH_SIZE 4096

// The first line of a file of a group.
static bool read_line(char *line, size_t size, const char *directory, const char *name)
{
    char path[PATH_SIZE + 64];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    bool ok = fgets(line, (int)size, f);
    fclose(f);
    return ok;
}

static bool read_number(uint64_t *value, const char *directory, const char *name)
{
    char line[64];
    return read_line(line, sizeof line, directory, name) && sscanf(line, "%" SCNu64, value) == 1;
}

// What the host's kernel takes back from files before it refuses memory.
static uint64_t reclaimable(const char *directory, const char *key)
{
    char path[PATH_SIZE + 64], name[64];
    uint64_t value, found = 0;
    snprintf(path, sizeof path, "%s/memory.stat", directory);
    FILE *f = fopen(path, "re");
    if (!f)
        return 0;
    while (fscanf(f, "%63s %" SCNu64, name, &value) == 2)
        if (!strcmp(name, key))
            found = value;
    fclose(f);
    return found;
}

static void limit_cpus(struct cgroup_limits *l, const char *directory)
{
    char line[64], quota[32];
    double period, cpus = 0;
    uint64_t quota_us, period_us;
    if (read_line(line, sizeof line, directory, "cpu.max") && sscanf(line, "%31s %lf", quota, &period) == 2 &&
        period > 0)
        cpus = atof(quota) / period; // "max" is 0
    else if (read_number(&quota_us, directory, "cpu.cfs_quota_us") && (int64_t)quota_us > 0 &&
             read_number(&period_us, directory, "cpu.cfs_period_us") && period_us)
        cpus = (double)quota_us / (double)period_us;
    if (cpus > 0 && (l->cpus == 0 || cpus < l->cpus))
        l->cpus = cpus;
}

static void limit_memory(struct cgroup_limits *l, const char *directory)
{
    uint64_t max, used, files;
    if (read_number(&max, directory, "memory.max") && read_number(&used, directory, "memory.current"))
        files = reclaimable(directory, "inactive_file");
    else if (read_number(&max, directory, "memory.limit_in_bytes") &&
             read_number(&used, directory, "memory.usage_in_bytes"))
        files = reclaimable(directory, "total_inactive_file");
    else
        return;
    if (max >= 1ull << 62) // how version 1 writes "no limit"
        return;
    used = used > files ? used - files : 0;
    uint64_t left = max > used ? max - used : 0;
    if (left < l->memory_bytes)
        l->memory_bytes = left;
}

// From a group to the root. In a container the path may be one of outside, of which only the root is there.
static void walk_up(struct cgroup_limits *l, const char *root, const char *mount, const char *group,
                    void (*limit)(struct cgroup_limits *, const char *))
{
    char directory[PATH_SIZE];
    int base = snprintf(directory, sizeof directory, "%s%s%s", root, *mount ? "/" : "", mount);
    if (base < 0 || (size_t)base + strlen(group) >= sizeof directory)
        return;
    strcpy(directory + base, group);
    for (;;) {
        limit(l, directory);
        char *slash = strrchr(directory + base, '/');
        if (!slash)
            return;
        *slash = 0;
    }
}

static bool lists(const char *controllers, const char *name)
{
    size_t n = strlen(name);
    for (const char *p = controllers; *p; p += strcspn(p, ","), p += *p == ',')
        if (strcspn(p, ",") == n && !memcmp(p, name, n))
            return true;
    return false;
}

struct cgroup_limits cgroup_limits(const char *list, const char *root)
{
    struct cgroup_limits l = {.memory_bytes = UINT64_MAX};
    char line[PATH_SIZE];
    FILE *f = fopen(list, "re");
    while (f && fgets(line, sizeof line, f)) { // "4:cpu,cpuacct:/a/group"; version 2: "0::/a/group"
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group)
            continue;
        *controllers++ = *group++ = 0;
        if (!*controllers) {
            walk_up(&l, root, "", group, limit_cpus);
            walk_up(&l, root, "", group, limit_memory);
        } else if (lists(controllers, "cpu")) {
            walk_up(&l, root, "cpu", group, limit_cpus);
        } else if (lists(controllers, "memory")) {
            walk_up(&l, root, "memory", group, limit_memory);
        }
    }
    if (f)
        fclose(f);
    return l;
}
