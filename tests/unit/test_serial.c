#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "frontend/exit.h"
#include "frontend/input.h"

static char directory[64], path[128], error[ERROR_SIZE];

static int make_directory(void **state)
{
    (void)state;
    strcpy(directory, "/tmp/gnomon-test-XXXXXX");
    assert_non_null(mkdtemp(directory));
    snprintf(path, sizeof path, "%s/port", directory);
    return 0;
}

static int remove_directory(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(directory);
}

static int open_port(struct serial *s, enum char_kind kind)
{
    struct char_option option = {kind, path};
    return serial_open(s, &option, "COM1", error);
}

static void put(struct serial *s, const char *text)
{
    struct char_out out = serial_char_out(s);
    out.write(out.opaque, (const uint8_t *)text, strlen(text));
}

static int connect_to(const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, name);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

static void file_takes_every_byte_and_starts_empty(void **state)
{
    (void)state;
    struct serial s;
    char text[32] = "";
    for (int round = 0; round < 2; round++) {
        assert_int_equal(open_port(&s, CHAR_FILE), 0);
        serial_begin(&s);
        put(&s, round ? "two" : "the first round");
        serial_close(&s, false);
        int fd = open(path, O_RDONLY);
        assert_int_equal(read(fd, text, sizeof text), round ? 3 : 15);
        close(fd);
    }
    assert_memory_equal(text, "two", 3);
}

static void file_of_a_failed_start_goes_if_it_was_new(void **state)
{
    (void)state;
    struct serial s;
    assert_int_equal(open_port(&s, CHAR_FILE), 0);
    serial_close(&s, true);
    assert_int_equal(access(path, F_OK), -1);
    close(open(path, O_CREAT | O_WRONLY, 0600));
    assert_int_equal(open_port(&s, CHAR_FILE), 0);
    serial_close(&s, true);
    assert_int_equal(access(path, F_OK), 0);
}

static void unwritable_file_is_one_line(void **state)
{
    (void)state;
    struct serial s;
    struct char_option option = {CHAR_FILE, "/no/such/file"};
    assert_true(serial_open(&s, &option, "COM1", error) < 0);
    assert_string_equal(
        error,
        "can't write the serial file (No such file or directory): /no/such/file: name a file you may write");
}

static void socket_carries_both_ways_and_takes_a_new_client(void **state)
{
    (void)state;
    struct serial s;
    char text[16];
    assert_int_equal(open_port(&s, CHAR_UNIX), 0);
    put(&s, "nobody hears this");
    for (int round = 0; round < 2; round++) {
        int client = connect_to(path);
        assert_int_equal(serial_ready(&s), 0); // accepts
        put(&s, "out");
        assert_int_equal(read(client, text, sizeof text), 3);
        assert_memory_equal(text, "out", 3);
        assert_int_equal(write(client, "in", 2), 2);
        assert_int_equal(serial_ready(&s), 2);
        assert_memory_equal(s.pending, "in", 2);
        assert_int_equal(serial_poll_fd(&s), -1); // not before the guest took it
        s.pending_start = s.pending_end;
        close(client);
        put(&s, "lost");
        assert_int_equal(serial_ready(&s), 0);
        assert_int_equal(serial_poll_fd(&s), s.listen_fd);
    }
    serial_close(&s, false);
    assert_int_equal(access(path, F_OK), -1);
}

static void second_machine_on_a_socket_is_refused(void **state)
{
    (void)state;
    struct serial first, second;
    char line[ERROR_SIZE];
    assert_int_equal(open_port(&first, CHAR_UNIX), 0);
    assert_true(open_port(&second, CHAR_UNIX) < 0);
    snprintf(
        line, sizeof line,
        "another machine listens there (Address already in use): %s: name another socket or end that machine",
        path);
    assert_string_equal(error, line);
    assert_int_equal(access(path, F_OK), 0); // the first one's socket stays
    int client = connect_to(path);
    close(client);
    serial_close(&first, false);
}

static void socket_of_a_killed_machine_is_taken_over(void **state)
{
    (void)state;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, path);
    int dead = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(dead, (struct sockaddr *)&address, sizeof address), 0);
    close(dead);
    struct serial s;
    assert_int_equal(open_port(&s, CHAR_UNIX), 0);
    close(connect_to(path));
    serial_close(&s, false);
}

static void a_file_in_the_sockets_place_is_left_alone(void **state)
{
    (void)state;
    struct serial s;
    close(open(path, O_CREAT | O_WRONLY, 0600));
    assert_true(open_port(&s, CHAR_UNIX) < 0);
    assert_int_equal(access(path, F_OK), 0);
}

static void a_reader_that_stalls_costs_one_wait(void **state)
{
    (void)state;
    struct serial s;
    static char block[65536];
    memset(block, 'x', sizeof block - 1);
    assert_int_equal(open_port(&s, CHAR_UNIX), 0);
    int client = connect_to(path);
    serial_ready(&s);
    for (int i = 0; i < 100; i++)
        put(&s, block);
    assert_true(s.stalled);
    close(client);
    serial_close(&s, false);
}

// ---- the input thread

struct seen {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    char text[64];
    size_t length, room; // room: bytes a call takes
    int ended, stats;
};

static size_t on_bytes(void *opaque, unsigned port, const uint8_t *data, size_t n)
{
    struct seen *seen = opaque;
    assert_int_equal(port, 1);
    pthread_mutex_lock(&seen->lock);
    n = n < seen->room ? n : seen->room;
    memcpy(seen->text + seen->length, data, n);
    seen->length += n;
    pthread_cond_signal(&seen->changed);
    pthread_mutex_unlock(&seen->lock);
    return n;
}

static void on_end(void *opaque, int status)
{
    struct seen *seen = opaque;
    pthread_mutex_lock(&seen->lock);
    seen->ended = status;
    pthread_cond_signal(&seen->changed);
    pthread_mutex_unlock(&seen->lock);
}

static void on_stats(void *opaque)
{
    ((struct seen *)opaque)->stats++;
}

static void input_arrives_in_order_in_pieces_the_guest_takes(void **state)
{
    (void)state;
    struct serial serials[MAX_SERIALS];
    struct char_option none = {CHAR_NONE, NULL};
    struct seen seen = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER, .room = 3};
    struct input_events events = {on_bytes, on_end, on_stats, &seen};
    struct input in;
    assert_int_equal(serial_open(&serials[0], &none, "COM1", error), 0);
    assert_int_equal(open_port(&serials[1], CHAR_UNIX), 0);
    assert_int_equal(input_start(&in, serials, 0, &events), 0);
    int client = connect_to(path);
    assert_int_equal(write(client, "0123456789\001x", 12), 12); // no keys: this is no terminal
    pthread_mutex_lock(&seen.lock);
    while (seen.length < 12)
        pthread_cond_wait(&seen.changed, &seen.lock);
    assert_memory_equal(seen.text, "0123456789\001x", 12);
    assert_int_equal(seen.ended, 0);
    pthread_mutex_unlock(&seen.lock);
    input_stop(&in);
    close(client);
    serial_close(&serials[1], false);
    serial_close(&serials[0], false);
}

static void end_arrives(uint64_t timeout_ns, int sig, int status)
{
    struct serial serials[MAX_SERIALS];
    struct char_option none = {CHAR_NONE, NULL};
    struct seen seen = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    struct input_events events = {on_bytes, on_end, on_stats, &seen};
    struct input in;
    for (unsigned i = 0; i < MAX_SERIALS; i++)
        assert_int_equal(serial_open(&serials[i], &none, "COM", error), 0);
    input_block_signals();
    assert_int_equal(input_start(&in, serials, timeout_ns, &events), 0);
    if (sig)
        kill(getpid(), sig);
    pthread_mutex_lock(&seen.lock);
    while (!seen.ended)
        pthread_cond_wait(&seen.changed, &seen.lock);
    assert_int_equal(seen.ended, status);
    pthread_mutex_unlock(&seen.lock);
    input_stop(&in);
    for (unsigned i = 0; i < MAX_SERIALS; i++)
        serial_close(&serials[i], false);
}

static void sigterm_ends_the_machine_as_killed(void **state)
{
    (void)state;
    end_arrives(0, SIGTERM, EXIT_KILLED);
}

static void time_limit_ends_the_machine_as_timed_out(void **state)
{
    (void)state;
    end_arrives(1000000, 0, EXIT_TIMED_OUT);
}

static void a_file_at_its_size_limit_loses_bytes_and_kills_nobody(void **state)
{
    struct serial s;
    int status;
    pid_t pid = fork();
    (void)state;
    if (!pid) {
        const struct rlimit limit = {2, 2};
        input_block_signals();
        if (dup2(open("/dev/null", O_WRONLY), STDERR_FILENO) < 0 || open_port(&s, CHAR_FILE) ||
            setrlimit(RLIMIT_FSIZE, &limit))
            _exit(1);
        put(&s, "abc");
        _exit(s.lost ? 0 : 2);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, make_directory, remove_directory)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(file_takes_every_byte_and_starts_empty),
        TEST(file_of_a_failed_start_goes_if_it_was_new),
        TEST(unwritable_file_is_one_line),
        TEST(socket_carries_both_ways_and_takes_a_new_client),
        TEST(second_machine_on_a_socket_is_refused),
        TEST(socket_of_a_killed_machine_is_taken_over),
        TEST(a_file_in_the_sockets_place_is_left_alone),
        TEST(a_reader_that_stalls_costs_one_wait),
        TEST(input_arrives_in_order_in_pieces_the_guest_takes),
        TEST(sigterm_ends_the_machine_as_killed),
        TEST(time_limit_ends_the_machine_as_timed_out),
        TEST(a_file_at_its_size_limit_loses_bytes_and_kills_nobody),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
