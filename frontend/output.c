#include "frontend/output.h"

#include <errno.h>
#include <fcntl.h>

int output_open(const char *path, bool *created)
{
    const int flags = O_WRONLY | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
    int fd = open(path, flags | O_EXCL, 0666);

    *created = fd >= 0;
    if (fd < 0 && errno == EEXIST)
        fd = open(path, flags | O_TRUNC, 0666);
    return fd < 0 ? -errno : fd;
}

const char *output_advice(int error)
{
    return error == -ENXIO ? "start what reads it first" : "name a file you may write";
}
