// What the host's kernel has, for tests that use it.
#pragma once
#include <stdbool.h>
#include <sys/wait.h>
#include <unistd.h>

// System calls by INT 80h; kernels that run no 32-bit code answer them with #GP.
static inline bool host_has_i386_calls(void)
{
    int status;
    pid_t child = fork();
    if (!child) {
        long result = 20; // getpid
        __asm__ volatile("int $0x80" : "+a"(result) : : "memory", "r8", "r9", "r10", "r11");
        _exit(result != getpid());
    }
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && !WEXITSTATUS(status);
}
