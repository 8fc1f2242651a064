#include "device_fixture.h"
#include "devices/block.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

struct image {
    char path[64], error[256];
};

static void fill(const char *path, size_t size)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    for (size_t i = 0; i < size; i++) {
        uint8_t byte = i / 512 + 1;
        assert_int_equal(write(fd, &byte, 1), 1);
    }
    close(fd);
}

static int setup(void **state)
{
    struct image *i = calloc(1, sizeof *i);
    strcpy(i->path, "/tmp/gnomon-test-XXXXXX");
    int fd = mkstemp(i->path);
    assert_true(fd >= 0);
    close(fd);
    fill(i->path, 4096);
    *state = i;
    return 0;
}

static int teardown(void **state)
{
    struct image *i = *state;
    unlink(i->path);
    free(i);
    return 0;
}

static struct block *open_image(struct image *i, bool readonly, bool snapshot)
{
    struct block *b = block_open(i->path, readonly, snapshot, i->error, sizeof i->error);
    assert_non_null(b);
    return b;
}

static uint8_t file_byte(struct image *i, off_t at)
{
    uint8_t byte = 0xee;
    int fd = open(i->path, O_RDONLY);
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    close(fd);
    return byte;
}

static void reads_and_writes_reach_the_file(void **state)
{
    struct image *i = *state;
    struct block *b = open_image(i, false, false);
    uint8_t data[512];
    assert_int_equal(block_size(b), 4096);
    assert_false(block_readonly(b));
    assert_int_equal(block_read(b, 1024, data, 512), 0);
    assert_int_equal(data[0], 3);
    assert_int_equal(data[511], 3);
    memset(data, 0xa5, sizeof data);
    assert_int_equal(block_write(b, 512, data, 512), 0);
    assert_int_equal(block_flush(b), 0);
    block_close(b);
    assert_int_equal(file_byte(i, 511), 1);
    assert_int_equal(file_byte(i, 512), 0xa5);
    assert_int_equal(file_byte(i, 1023), 0xa5);
    assert_int_equal(file_byte(i, 1024), 3);
}

static void accesses_beyond_the_end_are_refused(void **state)
{
    struct image *i = *state;
    struct block *b = open_image(i, false, false);
    uint8_t data[1024] = {0};
    assert_int_equal(block_read(b, 3584, data, 512), 0);
    assert_int_equal(block_read(b, 3584, data, 1024), -EINVAL);
    assert_int_equal(block_read(b, UINT64_MAX, data, 512), -EINVAL);
    assert_int_equal(block_write(b, 4096, data, 1), -EINVAL);
    assert_int_equal(block_write_zeroes(b, 1, UINT64_MAX, true), -EINVAL);
    assert_int_equal(block_discard(b, 512, 4096), -EINVAL);
    assert_int_equal(block_read(b, 4096, data, 0), 0);
    block_close(b);
}

static void odd_size_is_padded_with_zeroes(void **state)
{
    struct image *i = *state;
    fill(i->path, 700);
    struct block *b = open_image(i, true, false);
    uint8_t data[512];
    assert_int_equal(block_size(b), 1024);
    assert_int_equal(block_read(b, 512, data, 512), 0);
    assert_int_equal(data[187], 2);
    assert_int_equal(data[188], 0);
    assert_int_equal(data[511], 0);
    block_close(b);
}

static void readonly_refuses_writes(void **state)
{
    struct image *i = *state;
    struct block *b = open_image(i, true, false);
    assert_true(block_readonly(b));
    assert_int_equal(block_write(b, 0, "x", 1), -EROFS);
    assert_int_equal(block_write_zeroes(b, 0, 512, false), -EROFS);
    assert_int_equal(block_discard(b, 0, 512), -EROFS);
    assert_int_equal(block_flush(b), 0);
    block_close(b);
}

static void write_zeroes_and_discard_stay_in_their_range(void **state)
{
    struct image *i = *state;
    struct block *b = open_image(i, false, false);
    assert_int_equal(block_write_zeroes(b, 512, 512, false), 0);
    assert_int_equal(block_write_zeroes(b, 1536, 512, true), 0);
    assert_int_equal(block_discard(b, 2560, 512), 0);
    block_close(b);
    assert_int_equal(file_byte(i, 511), 1);
    assert_int_equal(file_byte(i, 512), 0);
    assert_int_equal(file_byte(i, 1024), 3);
    assert_int_equal(file_byte(i, 1536), 0);
    assert_int_equal(file_byte(i, 2047), 0);
    assert_int_equal(file_byte(i, 2048), 5);
    assert_int_equal(file_byte(i, 3072), 7);
}

static void second_writer_is_refused_with_one_line(void **state)
{
    struct image *i = *state;
    struct block *b = open_image(i, false, false);
    char want[256];
    assert_null(block_open(i->path, false, false, i->error, sizeof i->error));
    snprintf(want, sizeof want, "disk %s: in use by another machine: stop it, or use snapshot=on on both",
             i->path);
    assert_string_equal(i->error, want);
    assert_null(block_open(i->path, true, false, i->error, sizeof i->error));
    block_close(b);
    struct block *r = open_image(i, true, false), *s = open_image(i, false, true); // readers share
    assert_null(block_open(i->path, false, false, i->error, sizeof i->error));
    block_close(r);
    block_close(s);
    block_close(open_image(i, false, false));
}

static void bad_paths_say_why(void **state)
{
    struct image *i = *state;
    assert_null(block_open("/nonexistent/disk", false, false, i->error, sizeof i->error));
    assert_string_equal(i->error, "disk /nonexistent/disk: cannot open: No such file or directory: check its name and its mode");
    assert_null(block_open("/tmp", true, false, i->error, sizeof i->error));
    assert_string_equal(i->error, "disk /tmp: Is a directory: name a raw image");
    assert_null(block_open("/dev/null", true, false, i->error, sizeof i->error));
    assert_string_equal(i->error, "disk /dev/null: neither a file nor a block device: name a raw image");
    fill(i->path, 0);
    assert_null(block_open(i->path, true, false, i->error, sizeof i->error));
    assert_non_null(strstr(i->error, "is empty"));
}

static void snapshot_keeps_writes_off_the_file(void **state)
{
    struct image *i = *state;
    assert_int_equal(truncate(i->path, 65536 * 3 + 512), 0);
    struct block *b = open_image(i, false, true);
    static uint8_t data[65536 * 2];
    assert_false(block_readonly(b));

    memset(data, 0xcc, sizeof data);
    assert_int_equal(block_write(b, 512, data, 512), 0); // part of a cluster: the rest is copied
    assert_int_equal(block_read(b, 0, data, 2048), 0);
    assert_int_equal(data[511], 1);
    assert_int_equal(data[512], 0xcc);
    assert_int_equal(data[1023], 0xcc);
    assert_int_equal(data[1024], 3);

    memset(data, 0xdd, sizeof data);
    assert_int_equal(block_write(b, 65536 + 512, data, 65536 * 2),
                     0); // across three clusters, to the last sector
    memset(data, 0, sizeof data);
    assert_int_equal(block_read(b, 65536, data, 65536 * 2), 0);
    assert_int_equal(data[511], 0);
    assert_int_equal(data[512], 0xdd);
    assert_int_equal(data[65536 * 2 - 1], 0xdd);
    assert_int_equal(block_read(b, 65536 * 3, data, 512), 0);
    assert_int_equal(data[511], 0xdd);

    assert_int_equal(block_write_zeroes(b, 1024, 512, true), 0);
    assert_int_equal(block_read(b, 1024, data, 1024), 0);
    assert_int_equal(data[0], 0);
    assert_int_equal(data[512], 4);
    assert_int_equal(block_discard(b, 0, 512), 0);
    assert_int_equal(block_flush(b), 0);
    block_close(b);
    assert_int_equal(file_byte(i, 512), 2);
    assert_int_equal(file_byte(i, 1024), 3);
    assert_int_equal(file_byte(i, 65536 + 512), 0);
}

static void snapshot_works_on_a_file_one_may_not_write(void **state)
{
    struct image *i = *state;
    chmod(i->path, 0400);
    struct block *b = open_image(i, false, true);
    assert_int_equal(block_write(b, 0, "hello", 5), 0);
    block_close(b);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        T(reads_and_writes_reach_the_file),
        T(accesses_beyond_the_end_are_refused),
        T(odd_size_is_padded_with_zeroes),
        T(readonly_refuses_writes),
        T(write_zeroes_and_discard_stay_in_their_range),
        T(second_writer_is_refused_with_one_line),
        T(bad_paths_say_why),
        T(snapshot_keeps_writes_off_the_file),
        T(snapshot_works_on_a_file_one_may_not_write),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
