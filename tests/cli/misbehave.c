// Preloaded into gnomon: where it would accept a client of a serial socket, it makes a system call that its
// sandbox forbids.
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

int accept4(int fd, struct sockaddr *address, socklen_t *size, int flags)
{
    int made = (int)syscall(SYS_socket, AF_UNIX, SOCK_STREAM, 0);

    if (made >= 0) // nobody minds: be good
        close(made);
    return (int)syscall(SYS_accept4, fd, address, size, flags);
}

// With MISBEHAVE=fork there are no processes to be had, and everybody's end is not to be asked for.
pid_t fork(void)
{
    const char *how = getenv("MISBEHAVE");
    pid_t (*real)(void) = (pid_t (*)(void))dlsym(RTLD_NEXT, "fork");

    if (real && (!how || strcmp(how, "fork")))
        return real();
    errno = EAGAIN;
    return -1;
}

int kill(pid_t pid, int signal)
{
    if (pid == -1)
        _exit(99);
    return (int)syscall(SYS_kill, pid, signal);
}
