// --perf: the file that perf looks names of translated code up in.
#pragma once
#include <stddef.h>
#include <stdio.h>

#define PERF_DIRECTORY     "/tmp" // where perf looks
#define PERF_MAP_PATH_SIZE 256

struct perf_map {
    FILE *f; // null: none is written
    char path[PERF_MAP_PATH_SIZE];
};
// Makes the file of process `pid` in `directory`, in place of one that a process before it
// with this number left to the same user. Any other thing of that name stays and is an error. Returns 0 or -errno with
// one line in `error`.
int perf_map_open(struct perf_map *map, const char *directory, int pid, char *error, size_t error_size);
// Once nothing is written any more: leaves one name for each address, and closes. Places in the translation cache are used
// again when it is full; perf would take any of the names that an address has had, so only the last stays. *dropped: how
// many names had to go. Returns 0 or -errno: the map is not complete.
int perf_map_close(struct perf_map *map, unsigned long *dropped);
