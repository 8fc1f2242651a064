#include "frontend/output.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

int output_open(const char *path, bool *created)
{
    const int flags = O_WRONLY | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
    int fd = open(path, flags | O_EXCL, 0666);

    *created = fd >= 0;
    if (fd < 0 && errno == EEXIST)
        fd = open(path, flags, 0666);
    return fd < 0 ? -errno : fd;
}

void output_empty(int fd)
{
    (void)!ftruncate(fd, 0); // fails where there is nothing to empty: devices, FIFOs
}

const char *output_advice(int error)
{
    return error == -ENXIO ? "start what reads it first" : "name a file you may write";
}
