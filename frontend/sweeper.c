#include "frontend/sweeper.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "devices/sandbox.h"

// Signals that end a machine reach its whole process group: they are no reason for the sweeper to go first.
_Noreturn static void sweep(const char *path, int life_fd, const struct stat *file)
{
    sigset_t all;
    struct stat now;
    char byte;

    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    prctl(PR_SET_NAME, "gnomon-sweeper");
    sandbox_drop_files(life_fd, false);
    while (read(life_fd, &byte, 1) < 0 && errno == EINTR)
        ;
    if (!lstat(path, &now) && now.st_dev == file->st_dev && now.st_ino == file->st_ino)
        unlink(path);
    _exit(0);
}

int sweeper_start(struct sweeper *s, const char *path)
{
    int pipe_fds[2];
    struct stat file;

    *s = (struct sweeper){0, -1};
    if (lstat(path, &file) < 0 || pipe2(pipe_fds, O_CLOEXEC) < 0)
        return -errno;
    pid_t pid = fork();
    if (!pid) {
        close(pipe_fds[1]);
        sweep(path, pipe_fds[0], &file);
    }
    int error = errno;
    close(pipe_fds[0]);
    if (pid < 0) {
        close(pipe_fds[1]);
        return -error;
    }
    *s = (struct sweeper){pid, pipe_fds[1]};
    return 0;
}

void sweeper_sweep(struct sweeper *s)
{
    if (!s->pid)
        return;
    close(s->life_fd);
    while (waitpid(s->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    *s = (struct sweeper){0, -1};
}
