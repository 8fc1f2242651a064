// Raw disk images with pread/pwrite, and the copy-on-write layer of snapshot=on: a sparse unlinked file of
// the disk's size, with one bit per 64 KiB cluster that has been written.
#include "devices/block.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define SECTOR  512u
#define CLUSTER 65536u

struct block {
    int fd;
    int overlay; // -1: no snapshot
    bool readonly;
    uint64_t size;    // bytes, rounded up to whole sectors
    uint8_t *written; // snapshot: one bit per cluster that the overlay holds
    uint8_t *scratch; // snapshot: one cluster
};

static void *fail(struct block *b, char *error, size_t error_size, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    if (error_size)
        vsnprintf(error, error_size, format, args);
    va_end(args);
    block_close(b);
    return NULL;
}

// ---- whole transfers. A file that ends early reads zero: the last sector may be incomplete.
static int pread_all(int fd, uint64_t offset, void *data, size_t n)
{
    uint8_t *p = data;

    while (n) {
        ssize_t got = pread(fd, p, n, offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0) {
            memset(p, 0, n);
            return 0;
        }
        p += got;
        offset += got;
        n -= got;
    }
    return 0;
}

static int pwrite_all(int fd, uint64_t offset, const void *data, size_t n)
{
    const uint8_t *p = data;

    while (n) {
        ssize_t put = pwrite(fd, p, n, offset);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return put < 0 ? -errno : -EIO;
        p += put;
        offset += put;
        n -= put;
    }
    return 0;
}

// ---- opening
// Open file description locks are refused by old kernels and some file systems; flock() is the next best.
static bool lock(int fd, bool exclusive)
{
    struct flock whole = {.l_type = exclusive ? F_WRLCK : F_RDLCK, .l_whence = SEEK_SET};

    if (fcntl(fd, F_OFD_SETLK, &whole) == 0)
        return true;
    if (errno == EAGAIN || errno == EACCES)
        return false;
    return flock(fd, (exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB) == 0 || errno != EWOULDBLOCK;
}

static int open_temporary(uint64_t size)
{
    const char *directory = getenv("TMPDIR");
    char path[4096];

    if (!directory || !*directory)
        directory = "/var/tmp";
    int fd = open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0) {
        int n = snprintf(path, sizeof path, "%s/gnomon-XXXXXX", directory);
        if (n < 0 || (size_t)n >= sizeof path)
            return -ENAMETOOLONG;
        fd = mkostemp(path, O_CLOEXEC);
        if (fd < 0)
            return -errno;
        unlink(path);
    }
    if (ftruncate(fd, size)) {
        int error = -errno;
        close(fd);
        return error;
    }
    return fd;
}

static int disk_size(int fd, uint64_t *size)
{
    struct stat st;

    if (fstat(fd, &st))
        return -errno;
    if (S_ISBLK(st.st_mode))
        return ioctl(fd, BLKGETSIZE64, size) ? -errno : 0;
    if (S_ISDIR(st.st_mode))
        return -EISDIR;
    if (!S_ISREG(st.st_mode))
        return -EINVAL;
    *size = st.st_size;
    return 0;
}

struct block *block_open(const char *path, bool readonly, bool snapshot, char *error, size_t error_size)
{
    struct block *b = calloc(1, sizeof *b);

    if (!b)
        return fail(b, error, error_size, "disk %s: out of memory: end some programs", path);
    b->overlay = -1;
    b->readonly = readonly;
    bool writer = !readonly && !snapshot;
    // O_NONBLOCK: a FIFO must not hang the start; it means nothing for files.
    b->fd = open(path, (writer ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK);
    if (b->fd < 0) {
        const char *advice = writer && (errno == EACCES || errno == EROFS || errno == EPERM)
                                 ? "try snapshot=on or readonly=on, or change its mode"
                             : errno == EISDIR ? "name a raw image"
                                               : "check its name and its mode";
        return fail(b, error, error_size, "disk %s: cannot open: %s: %s", path, strerror(errno), advice);
    }
    int status = disk_size(b->fd, &b->size);
    if (status == -EINVAL)
        return fail(b, error, error_size, "disk %s: neither a file nor a block device: name a raw image", path);
    if (status)
        return fail(b, error, error_size, "disk %s: %s: name a raw image", path, strerror(-status));
    if (b->size == 0)
        return fail(b, error, error_size, "disk %s: is empty: give it a size first (truncate -s 4G)", path);
    if (b->size > INT64_MAX - CLUSTER)
        return fail(b, error, error_size, "disk %s: too large: use one of less than 8 EiB", path);
    b->size = (b->size + SECTOR - 1) / SECTOR * SECTOR;
    if (!lock(b->fd, writer))
        return fail(b, error, error_size, "disk %s: in use by another machine%s", path,
                    writer ? ": stop it, or use snapshot=on on both" : " that writes to it: stop it first");
    if (snapshot) {
        b->overlay = open_temporary(b->size);
        if (b->overlay < 0) {
            status = b->overlay;
            return fail(b, error, error_size,
                        "disk %s: snapshot: cannot make a temporary file: %s: set TMPDIR", path,
                        strerror(-status));
        }
        b->written = calloc(1, b->size / CLUSTER / 8 + 1);
        b->scratch = malloc(CLUSTER);
        if (!b->written || !b->scratch)
            return fail(b, error, error_size, "disk %s: out of memory: end some programs", path);
    }
    return b;
}

void block_close(struct block *b)
{
    if (!b)
        return;
    if (b->fd >= 0)
        close(b->fd);
    if (b->overlay >= 0)
        close(b->overlay);
    free(b->written);
    free(b->scratch);
    free(b);
}

uint64_t block_size(const struct block *b)
{
    return b->size;
}

bool block_readonly(const struct block *b)
{
    return b->readonly;
}

static bool inside(const struct block *b, uint64_t offset, uint64_t n)
{
    return n <= b->size && offset <= b->size - n;
}

// ---- snapshot: cluster by cluster
static bool is_written(const struct block *b, uint64_t cluster)
{
    return b->written[cluster / 8] >> cluster % 8 & 1;
}

static size_t in_cluster(uint64_t offset, uint64_t n) // bytes of [offset, offset+n) in offset's cluster
{
    uint64_t left = CLUSTER - offset % CLUSTER;
    return n < left ? n : left;
}

// Makes the overlay hold the cluster, with its present contents unless all of it is about to be overwritten.
static int claim_cluster(struct block *b, uint64_t cluster, bool whole)
{
    uint64_t start = cluster * CLUSTER;
    int status = 0;

    if (is_written(b, cluster))
        return 0;
    if (!whole) {
        size_t n = in_cluster(start, b->size - start);
        status = pread_all(b->fd, start, b->scratch, n);
        if (!status)
            status = pwrite_all(b->overlay, start, b->scratch, n);
    }
    return status;
}

static int overlay_read(struct block *b, uint64_t offset, uint8_t *data, size_t n)
{
    while (n) {
        size_t piece = in_cluster(offset, n);
        bool own = is_written(b, offset / CLUSTER);

        while (piece < n && is_written(b, (offset + piece) / CLUSTER) == own) // one transfer for a run
            piece += in_cluster(offset + piece, n - piece);
        int status = pread_all(own ? b->overlay : b->fd, offset, data, piece);
        if (status)
            return status;
        data += piece;
        offset += piece;
        n -= piece;
    }
    return 0;
}

static int overlay_write(struct block *b, uint64_t offset, const uint8_t *data, size_t n) // data null: zeroes
{
    while (n) {
        size_t piece = in_cluster(offset, n);
        uint64_t cluster = offset / CLUSTER;
        int status = claim_cluster(b, cluster, piece == CLUSTER);

        if (!data)
            memset(b->scratch, 0, piece);
        if (!status)
            status = pwrite_all(b->overlay, offset, data ? data : b->scratch, piece);
        if (status)
            return status;
        b->written[cluster / 8] |= 1u << cluster % 8;
        data = data ? data + piece : NULL;
        offset += piece;
        n -= piece;
    }
    return 0;
}

// ---- operations
int block_read(struct block *b, uint64_t offset, void *data, size_t n)
{
    if (!inside(b, offset, n))
        return -EINVAL;
    return b->overlay >= 0 ? overlay_read(b, offset, data, n) : pread_all(b->fd, offset, data, n);
}

int block_write(struct block *b, uint64_t offset, const void *data, size_t n)
{
    if (b->readonly)
        return -EROFS;
    if (!inside(b, offset, n))
        return -EINVAL;
    return b->overlay >= 0 ? overlay_write(b, offset, data, n) : pwrite_all(b->fd, offset, data, n);
}

int block_write_zeroes(struct block *b, uint64_t offset, uint64_t n, bool unmap)
{
    static const uint8_t zeroes[CLUSTER];

    if (b->readonly)
        return -EROFS;
    if (!inside(b, offset, n))
        return -EINVAL;
    if (b->overlay >= 0)
        return overlay_write(b, offset, NULL, n);
    if (n == 0)
        return 0;
    int mode = unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
    if (fallocate(b->fd, mode | FALLOC_FL_KEEP_SIZE, offset, n) == 0)
        return 0;
    while (n) {
        size_t piece = in_cluster(offset, n);
        int status = pwrite_all(b->fd, offset, zeroes, piece);
        if (status)
            return status;
        offset += piece;
        n -= piece;
    }
    return 0;
}

int block_discard(struct block *b, uint64_t offset, uint64_t n)
{
    if (b->readonly)
        return -EROFS;
    if (!inside(b, offset, n))
        return -EINVAL;
    // A snapshot keeps its clusters: dropping one would show the base's old contents again, which is allowed
    // but odd.
    if (b->overlay < 0 && n)
        (void)!fallocate(b->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, n);
    return 0;
}

int block_flush(struct block *b)
{
    if (b->readonly || b->overlay >= 0) // nothing of a snapshot outlives the machine
        return 0;
    while (fdatasync(b->fd))
        if (errno != EINTR)
            return -errno;
    return 0;
}
