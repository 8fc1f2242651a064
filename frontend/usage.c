#include "frontend/usage.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int open_file(int pid, const char *name)
{
    char path[64];

    snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
    return pid ? open(path, O_RDONLY | O_CLOEXEC) : -1;
}

void usage_open(struct usage_files *u, int pid)
{
    u->stat_fd = open_file(pid, "stat");
    u->status_fd = open_file(pid, "status");
}

void usage_open_times(struct usage_files *u, int pid)
{
    u->stat_fd = open_file(pid, "stat");
    u->status_fd = -1;
}

static bool read_text(int fd, char *text, size_t size)
{
    ssize_t n = fd < 0 ? -1 : pread(fd, text, size - 1, 0);

    text[n > 0 ? n : 0] = 0;
    return n > 0;
}

void usage_add(const struct usage_files *u, uint64_t *user_ns, uint64_t *system_ns, uint64_t *peak_bytes)
{
    char text[4096], *at;
    unsigned long user, system, tick_ns = 1000000000ul / (unsigned long)sysconf(_SC_CLK_TCK);
    unsigned long long kib;

    if (read_text(u->stat_fd, text, sizeof text) && (at = strrchr(text, ')')) &&
        sscanf(at, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) == 2) {
        *user_ns += user * tick_ns;
        *system_ns += system * tick_ns;
    }
    if (read_text(u->status_fd, text, sizeof text) && (at = strstr(text, "\nVmHWM:")) &&
        sscanf(at, " VmHWM: %llu", &kib) == 1)
        *peak_bytes += kib << 10;
}

void usage_close(struct usage_files *u)
{
    if (u->stat_fd >= 0)
        close(u->stat_fd);
    if (u->status_fd >= 0)
        close(u->status_fd);
    u->stat_fd = u->status_fd = -1;
}
