// The benchmark guest: one static program that runs as init of a guest or on the host, and prints for each
// row
//   row NAME NANOSECONDS-PER-OPERATION
// An operation's count is raised until a row takes BENCH_MS milliseconds (environment; 200). BENCH_ROWS
// limits the rows to those named, joined by commas. Rows that compute check their result first: "wrong NAME".
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define PAGE  4096ul
#define CHUNK 65536ul

static volatile uint64_t sink; // keeps the compiler from dropping work

static void die(const char *what)
{
    printf("error %s: %s\n", what, strerror(errno));
    fflush(stdout);
    _exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void *map(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        die("mmap");
    return p;
}

// ---- the kernel's work

static void getppid_loop(uint64_t n)
{
    while (n--)
        sink += syscall(SYS_getppid);
}

static void fork_wait(uint64_t n)
{
    while (n--) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(0);
        if (pid < 0 || waitpid(pid, NULL, 0) != pid)
            die("fork");
    }
}

static void page_touch(uint64_t n)
{
    while (n) {
        size_t pages = n < 4096 ? n : 4096;
        char *p = map(pages * PAGE);
        madvise(p, pages * PAGE, MADV_NOHUGEPAGE);
        for (size_t i = 0; i < pages; i++)
            p[i * PAGE] = 1;
        munmap(p, pages * PAGE);
        n -= pages;
    }
}

static void pipe_ping_pong(uint64_t n)
{
    int there[2], back[2];
    char byte = 0;
    if (pipe(there) || pipe(back))
        die("pipe");
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (pid == 0) {
        close(there[1]);
        while (read(there[0], &byte, 1) == 1 && write(back[1], &byte, 1) == 1)
            ;
        _exit(0);
    }
    close(there[0]);
    while (n--)
        if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
            die("ping");
    close(there[1]);
    close(back[0]);
    close(back[1]);
    waitpid(pid, NULL, 0);
}

static int file = -1; // of CHUNK * 16 bytes, on tmpfs
static char *chunk;

static void make_file(void)
{
    if (file >= 0)
        return;
    file = memfd_create("bench", 0);
    chunk = map(CHUNK);
    memset(chunk, 0x5a, CHUNK);
    for (unsigned i = 0; i < 16; i++)
        if (pwrite(file, chunk, CHUNK, i * CHUNK) != (ssize_t)CHUNK)
            die("pwrite");
}

static void pwrite_64k(uint64_t n)
{
    make_file();
    while (n--)
        if (pwrite(file, chunk, CHUNK, n % 16 * CHUNK) != (ssize_t)CHUNK)
            die("pwrite");
}

static void pread_64k(uint64_t n)
{
    make_file();
    while (n--)
        if (pread(file, chunk, CHUNK, n % 16 * CHUNK) != (ssize_t)CHUNK)
            die("pread");
}

static void mprotect_page(uint64_t n)
{
    char *p = map(PAGE);
    while (n--) {
        p[0] = 1;
        if (mprotect(p, PAGE, PROT_READ) || mprotect(p, PAGE, PROT_READ | PROT_WRITE))
            die("mprotect");
    }
    munmap(p, PAGE);
}

static void vfork_exec(uint64_t n)
{
    char *argv[] = {"exit-now", NULL}, *env[] = {NULL};
    while (n--) {
        int status;
        pid_t pid = vfork();
        if (pid == 0) {
            execve("/proc/self/exe", argv, env);
            _exit(1);
        }
        if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
            die("exec");
    }
}

static void skip_division(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    (void)info;
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 2; // idivl %ecx is F7 F9
}

static void divide_by_zero(uint64_t n)
{
    struct sigaction action = {.sa_sigaction = skip_division, .sa_flags = SA_SIGINFO};
    sigaction(SIGFPE, &action, NULL);
    while (n--) {
        int a = 1, d = 0;
        __asm__ volatile(".byte 0xf7, 0xf9" : "+a"(a), "+d"(d) : "c"(0) : "cc");
        sink += a;
    }
}

// ---- computing

__attribute__((noinline)) static uint64_t count_primes(uint64_t limit)
{
    uint64_t count = 0;
    for (uint64_t i = 2; i < limit; i++) {
        bool prime = true;
        for (uint64_t d = 2; d * d <= i; d++) {
            if (i % d == 0) {
                prime = false;
                break;
            }
        }
        count += prime;
    }
    return count;
}

static bool primes_right(void)
{
    return count_primes(10000) == 1229;
}
static void primes_1(uint64_t n)
{
    while (n--)
        sink += count_primes(10000);
}

// The same in two processes at once.
static void primes_2(uint64_t n)
{
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    primes_1(n);
    if (pid == 0)
        _exit(0);
    waitpid(pid, NULL, 0);
}

__attribute__((noinline)) static uint64_t factorial(uint64_t n)
{
    uint64_t f = 1;
    for (uint64_t i = 2; i <= n; i++)
        f *= i;
    return f;
}
static bool factorial_right(void)
{
    return factorial(20) == 2432902008176640000ull && factorial(66) == 0;
}
static void factorial_64(uint64_t n)
{
    while (n--)
        sink += factorial(20 + (n & 1));
}

#define SORT_COUNT 16384
static int *unsorted, *sorted;

__attribute__((noinline)) static void quicksort(int *a, long low, long high)
{
    while (low < high) {
        int pivot = a[(low + high) / 2];
        long i = low, j = high;
        while (i <= j) {
            while (a[i] < pivot)
                i++;
            while (a[j] > pivot)
                j--;
            if (i <= j) {
                int t = a[i];
                a[i++] = a[j];
                a[j--] = t;
            }
        }
        if (j - low < high - i) {
            quicksort(a, low, j);
            low = i;
        } else {
            quicksort(a, i, high);
            high = j;
        }
    }
}

static void sort_once(void)
{
    if (!unsorted) {
        uint32_t seed = 1;
        unsorted = map(SORT_COUNT * sizeof(int));
        sorted = map(SORT_COUNT * sizeof(int));
        for (int i = 0; i < SORT_COUNT; i++)
            unsorted[i] = (int)(seed = seed * 1664525 + 1013904223);
    }
    memcpy(sorted, unsorted, SORT_COUNT * sizeof(int));
    quicksort(sorted, 0, SORT_COUNT - 1);
}
static bool sort_right(void)
{
    sort_once();
    for (int i = 1; i < SORT_COUNT; i++)
        if (sorted[i - 1] > sorted[i])
            return false;
    return true;
}
static void quicksort_16k(uint64_t n)
{
    while (n--)
        sort_once();
}

__attribute__((noinline)) static uint64_t fib(uint64_t n)
{
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}
static bool fib_right(void)
{
    return fib(24) == 46368;
}
static void fib_24(uint64_t n)
{
    while (n--)
        sink += fib(24);
}

#define DIM 96
static double ma[DIM][DIM], mb[DIM][DIM], mc[DIM][DIM];

__attribute__((noinline)) static void multiply(void)
{
    for (int i = 0; i < DIM; i++) {
        for (int j = 0; j < DIM; j++) {
            double sum = 0;
            for (int k = 0; k < DIM; k++)
                sum += ma[i][k] * mb[k][j];
            mc[i][j] = sum;
        }
    }
}
static bool matmul_right(void)
{
    for (int i = 0; i < DIM; i++) {
        for (int j = 0; j < DIM; j++) {
            ma[i][j] = i + 1;
            mb[i][j] = j - 3;
        }
    }
    multiply();
    return mc[2][5] == 3.0 * 2.0 * DIM && mc[DIM - 1][0] == -3.0 * DIM * DIM;
}
static void matmul_96(uint64_t n)
{
    while (n--)
        multiply();
    sink += (uint64_t)mc[1][1];
}

static bool libm_right(void)
{
    volatile double two = 2, half = 0.5;
    return sqrt(two) == 1.4142135623730951 && fabs(sin(half) - 0.479425538604203) < 1e-15 &&
           fabs(exp(half) - 1.6487212707001282) < 1e-15;
}
static void libm(uint64_t n)
{
    double x = 0.1, sum = 0;
    while (n--) {
        sum += sin(x) + sqrt(x) + exp(-x);
        x = x < 30 ? x + 0.01 : 0.1;
    }
    sink += (uint64_t)sum;
}

static void memcpy_16m(uint64_t n)
{
    static char *from, *to;
    size_t size = 16ul << 20;
    if (!from) {
        from = map(size);
        to = map(size);
        memset(from, 1, size);
        memset(to, 2, size);
    }
    while (n--)
        memcpy(to, from, size);
    sink += to[n & 0xff];
}

#define CHASE_COUNT (4ul << 20 >> 6) // 4 MiB of cache lines
struct line {
    struct line *next;
    char pad[56];
};
static struct line *lines;

static struct line *chase(struct line *p, uint64_t n)
{
    while (n--)
        p = p->next;
    return p;
}
static bool chase_right(void)
{
    // Sattolo's algorithm: one cycle through all lines.
    uint32_t *order = map(CHASE_COUNT * sizeof *order), seed = 7;
    lines = map(CHASE_COUNT * sizeof *lines);
    for (uint32_t i = 0; i < CHASE_COUNT; i++)
        order[i] = i;
    for (uint32_t i = CHASE_COUNT - 1; i; i--) {
        seed = seed * 1664525 + 1013904223;
        uint32_t j = (uint32_t)((uint64_t)seed * i >> 32), t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
    for (uint32_t i = 0; i < CHASE_COUNT; i++)
        lines[i].next = &lines[order[i]];
    return chase(lines, CHASE_COUNT) == lines;
}
static void pointer_chase(uint64_t n)
{
    sink += (uint64_t)chase(lines, n);
}

// clang-format off
#define FUNCTION(i) \
    __attribute__((noinline)) static uint64_t function_##i(uint64_t x) { return x * (2 * i + 3) + i; }
FUNCTION(0) FUNCTION(1) FUNCTION(2) FUNCTION(3) FUNCTION(4) FUNCTION(5) FUNCTION(6) FUNCTION(7)
// clang-format on
static uint64_t (*volatile functions[8])(uint64_t) = {function_0, function_1, function_2, function_3,
                                                      function_4, function_5, function_6, function_7};
static void indirect_calls(uint64_t n)
{
    uint64_t x = 1;
    while (n--)
        x = functions[x >> 7 & 7](x);
    sink += x;
}

static bool snprintf_right(void)
{
    char text[64];
    return snprintf(text, sizeof text, "%d %s %.3f %lx", -42, "gnomon", 3.14159, 0xfedcba9876543210ul) ==
               33 &&
           !strcmp(text, "-42 gnomon 3.142 fedcba9876543210");
}
static void snprintf_line(uint64_t n)
{
    char text[64];
    while (n--)
        sink +=
            snprintf(text, sizeof text, "%d %s %.3f %lx", (int)n, "gnomon", (double)n / 7, (unsigned long)n);
}

static const struct row {
    const char *name;
    void (*run)(uint64_t n);
    bool (*right)(void); // prepares and checks; null: nothing to check
} rows[] = {
    {"getppid", getppid_loop, NULL},          {"fork_wait", fork_wait, NULL},
    {"page_touch", page_touch, NULL},         {"pipe_ping_pong", pipe_ping_pong, NULL},
    {"pwrite_64k", pwrite_64k, NULL},         {"pread_64k", pread_64k, NULL},
    {"mprotect", mprotect_page, NULL},        {"vfork_exec", vfork_exec, NULL},
    {"divide_by_zero", divide_by_zero, NULL}, {"primes_1", primes_1, primes_right},
    {"primes_2", primes_2, primes_right},     {"factorial", factorial_64, factorial_right},
    {"quicksort", quicksort_16k, sort_right}, {"fib", fib_24, fib_right},
    {"matmul", matmul_96, matmul_right},      {"libm", libm, libm_right},
    {"memcpy_16m", memcpy_16m, NULL},         {"pointer_chase", pointer_chase, chase_right},
    {"indirect_calls", indirect_calls, NULL}, {"snprintf", snprintf_line, snprintf_right},
};

// ---- how late a timer's signal is for a thread that computes: what an interrupt of a guest can't be faster than

#define SHOTS 1000
static volatile uint64_t signal_at;

static void on_timer_signal(int sig)
{
    (void)sig;
    signal_at = now_ns();
}

static int ascending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void timer_signals(void)
{
    static uint64_t late[SHOTS];
    struct sigaction action = {.sa_handler = on_timer_signal};
    timer_t timer;
    sigaction(SIGUSR1, &action, NULL);
    if (timer_create(CLOCK_MONOTONIC, &(struct sigevent){.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1}, &timer) < 0)
        return;
    for (unsigned i = 0; i < SHOTS; i++) {
        uint64_t due = now_ns() + 200000 + 20000 * (i % 37);
        struct itimerspec at = {.it_value = {(time_t)(due / 1000000000), (long)(due % 1000000000)}};
        signal_at = 0;
        timer_settime(timer, TIMER_ABSTIME, &at, NULL);
        while (!signal_at)
            ;
        late[i] = signal_at - due;
    }
    timer_delete(timer);
    qsort(late, SHOTS, sizeof late[0], ascending);
    printf("row irq_signal_p50 %llu\n", (unsigned long long)late[SHOTS / 2]);
    printf("row irq_signal_p99 %llu\n", (unsigned long long)late[SHOTS * 99 / 100]);
}

// Whether `name` is one of the comma-joined words.
static bool named(const char *words, const char *name)
{
    size_t length = strlen(name);
    for (const char *p = words; p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL)
        if (!strncmp(p, name, length) && (p[length] == ',' || !p[length]))
            return true;
    return false;
}

static double measure(const struct row *row, uint64_t target_ns)
{
    uint64_t n = 1;
    row->run(1);
    for (;;) {
        uint64_t start = now_ns();
        row->run(n);
        uint64_t elapsed = now_ns() - start;
        if (elapsed >= target_ns)
            return (double)elapsed / (double)n;
        // Aim a quarter above the target, but grow tenfold at most: a first sample can be far off.
        uint64_t next =
            elapsed ? (uint64_t)((double)n * 1.25 * (double)target_ns / (double)elapsed) + 1 : n * 10;
        n = next > n * 10 ? n * 10 : next > n ? next : n + 1;
    }
}

int main(int argc, char *argv[])
{
    (void)argc;
    if (!strcmp(argv[0], "exit-now"))
        return 0;
    bool init = getpid() == 1;
    if (init) {
        mkdir("/proc", 0755);
        mount("proc", "/proc", "proc", 0, NULL);
        mount("tmpfs", "/tmp", "tmpfs", 0, NULL);
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("bench begins");
    const char *only = getenv("BENCH_ROWS"), *ms = getenv("BENCH_MS");
    uint64_t target_ns = (ms ? strtoull(ms, NULL, 10) : 200) * 1000000;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (only && !named(only, rows[i].name))
            continue;
        if (rows[i].right && !rows[i].right())
            printf("wrong %s\n", rows[i].name);
        else
            printf("row %s %.3f\n", rows[i].name, measure(&rows[i], target_ns));
    }
    if (!only || named(only, "irq_signal"))
        timer_signals();
    puts("bench ends");
    if (init) {
        sync();
        reboot(RB_POWER_OFF);
        for (;;)
            pause();
    }
    return 0;
}
