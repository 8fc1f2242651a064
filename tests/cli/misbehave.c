// Preloaded into gnomon: where it would accept a client of a serial socket, it makes a system call that its
// sandbox forbids.
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
