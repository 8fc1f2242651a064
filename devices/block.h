// A disk image: a raw file (or block device), read and written at byte offsets.
//
// A writer holds an exclusive lock on the file and a reader a shared one, so two machines can't both change
// it. With `snapshot` the file is only read; what is written lives in an unlinked temporary file and is gone
// at close.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct block;

// Opens `path`. On failure returns null with one line in `error`.
struct block *block_open(const char *path, bool readonly, bool snapshot, char *error, size_t error_size);
void block_close(struct block *b); // null is fine

uint64_t block_size(
    const struct block *b); // bytes, a multiple of 512: the last sector of an odd file reads zero-padded
bool block_readonly(const struct block *b);
// [offset, offset+n) must lie inside the disk: otherwise -EINVAL. Return 0 or -errno; -EROFS for a read-only
// disk.
int block_read(struct block *b, uint64_t offset, void *data, size_t n);
int block_write(struct block *b, uint64_t offset, const void *data, size_t n);
int block_write_zeroes(struct block *b, uint64_t offset, uint64_t n,
                       bool unmap); // unmap: space may be given back
int block_discard(struct block *b, uint64_t offset,
                  uint64_t n);    // a hint: contents afterwards are unspecified
int block_flush(struct block *b); // what was written is on stable storage after this
