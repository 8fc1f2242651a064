// Prints the time by the guest's CLOCK_MONOTONIC every 20 ms, with a child beside it that works: clock NAME SECONDS.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

// Computing, system calls, page faults and processes.
static void work(void)
{
    for (volatile unsigned i = 0;; i++) {
        for (volatile unsigned j = 0; j < 20000; j++)
            ;
        char *p = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (unsigned at = 0; p != MAP_FAILED && at < 1 << 20; at += 4096)
            p[at] = 1;
        munmap(p, 1 << 20);
        if (!fork())
            _exit(0);
        wait(NULL);
    }
}

int main(int argc, char **argv)
{
    long long begin = now(), length = argc > 2 ? atoll(argv[2]) * 1000000000 : 0;
    pid_t child = fork();
    if (!child)
        work();
    while (now() - begin < length) {
        struct timespec pause = {.tv_nsec = 20000000};
        printf("T %s %lld\n", argv[1], now());
        fflush(stdout);
        nanosleep(&pause, NULL);
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    return 0;
}
