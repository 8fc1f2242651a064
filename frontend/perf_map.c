#include "frontend/perf_map.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_SPAN (1ull << 30)

static int create(const char *path)
{
    return open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
}

static bool left_by_us(const char *path)
{
    struct stat s;
    return !lstat(path, &s) && S_ISREG(s.st_mode) && s.st_uid == geteuid();
}

int perf_map_open(struct perf_map *map, const char *directory, int pid, char *error, size_t error_size)
{
    int result;

    snprintf(map->path, sizeof map->path, "%s/perf-%d.map", directory, pid);
    int fd = create(map->path);
    if (fd < 0 && errno == EEXIST && left_by_us(map->path) && !unlink(map->path))
        fd = create(map->path);
    result = fd < 0 ? -errno : 0;
    map->f = fd < 0 ? NULL : fdopen(fd, "w+");
    if (map->f)
        return 0;
    if (fd >= 0) {
        result = -errno;
        close(fd);
        unlink(map->path);
    }
    snprintf(error, error_size, "can't write perf's map (%s): %s: %s", strerror(-result), map->path,
             result == -EEXIST ? "remove what is there" : "leave --perf out");
    return result;
}

struct line {
    char *text, *end;  // with its newline
    uint64_t from, to; // addresses
};

// The lines of `text`; *count of them. Null: no memory.
static struct line *split(char *text, size_t size, size_t *count)
{
    size_t room = 0, n = 0;

    for (size_t i = 0; i < size; i++)
        room += text[i] == '\n';
    struct line *lines = calloc(room ? room : 1, sizeof *lines);
    for (char *p = text, *end = text + size, *next; lines && p < end; p = next) {
        next = memchr(p, '\n', (size_t)(end - p));
        if (!next++)
            break; // cut off
        char *after;
        uint64_t from = strtoull(p, &after, 16), length = strtoull(after, NULL, 16);
        if (after > p && from + length > from)
            lines[n++] = (struct line){p, next, from, from + length};
    }
    *count = n;
    return lines;
}

// Drops lines whose addresses a later line has taken. One bit an address, from the lowest on: code caches are small.
// Returns how many are dropped, or -1: no memory, or addresses of no cache of ours.
static long drop_overwritten(struct line *line, size_t count)
{
    uint64_t low = UINT64_MAX, high = 0;
    long dropped = 0;

    for (size_t i = 0; i < count; i++) {
        low = line[i].from < low ? line[i].from : low;
        high = line[i].to > high ? line[i].to : high;
    }
    if (!count)
        return 0;
    errno = ERANGE;
    uint8_t *taken = high - low <= MAX_SPAN ? calloc((high - low) / 8 + 1, 1) : NULL;
    if (!taken)
        return -1;
    for (size_t i = count; i-- > 0;) {
        bool overwritten = false;
        for (uint64_t at = line[i].from - low; at < line[i].to - low; at++) {
            overwritten |= taken[at / 8] >> at % 8 & 1;
            taken[at / 8] |= (uint8_t)(1u << at % 8);
        }
        if (overwritten) {
            line[i].text = NULL;
            dropped++;
        }
    }
    free(taken);
    return dropped;
}

static int settle(FILE *f, unsigned long *dropped)
{
    struct stat s;
    char *text = NULL;
    struct line *lines = NULL;
    size_t count;
    int result = 0;

    if (fflush(f) || fstat(fileno(f), &s))
        return -errno;
    text = malloc((size_t)s.st_size + 1);
    if (!text || pread(fileno(f), text, (size_t)s.st_size, 0) != s.st_size)
        goto fail;
    text[s.st_size] = 0; // strtoull() ends somewhere
    lines = split(text, (size_t)s.st_size, &count);
    if (!lines)
        goto fail;
    long n = drop_overwritten(lines, count);
    if (n < 0)
        goto fail;
    *dropped = (unsigned long)n;
    if (!n)
        goto done;
    rewind(f);
    for (size_t i = 0; i < count; i++)
        if (lines[i].text)
            fwrite(lines[i].text, 1, (size_t)(lines[i].end - lines[i].text), f);
    if (!fflush(f) && !ftruncate(fileno(f), ftell(f)))
        goto done;
fail:
    result = errno ? -errno : -EIO;
done:
    free(lines);
    free(text);
    return result;
}

int perf_map_close(struct perf_map *map, unsigned long *dropped)
{
    *dropped = 0;
    if (!map->f)
        return 0;
    int result = ferror(map->f) ? -EIO : settle(map->f, dropped);
    if (fclose(map->f) && !result)
        result = -errno;
    map->f = NULL;
    return result;
}
