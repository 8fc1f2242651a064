// What another process of ours has used, from proc(5). The files are opened early: the machine process opens
// none while a machine runs.
#pragma once
#include <stdint.h>

struct usage_files {
    int stat_fd, status_fd; // -1: can't be read
};

void usage_open(struct usage_files *u, int pid); // pid 0: there is none
void usage_open_times(struct usage_files *u, int pid); // without memory
// Adds to the figures what is known.
void usage_add(const struct usage_files *u, uint64_t *user_ns, uint64_t *system_ns, uint64_t *peak_bytes);
void usage_close(struct usage_files *u);
