#include "frontend/trace.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "frontend/commands.h"
#include "frontend/output.h"

int trace_open(struct trace *t, const struct run_options *o, char error[ERROR_SIZE])
{
    t->f = NULL;
    t->path = NULL;
    t->categories = o->trace;
    if (!o->trace)
        return 0;
    if (!o->trace_file) {
        t->f = stderr;
        return 0;
    }
    bool created;
    int fd = output_open(o->trace_file, &created);
    if (fd >= 0) {
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK); // a slow reader is waited for
        t->f = fdopen(fd, "w");
        t->path = o->trace_file;
        t->created = created;
    }
    if (!t->f) {
        int e = fd < 0 ? -fd : ENOMEM;
        snprintf(error, ERROR_SIZE, "can't write the trace file (%s): %.200s: %s", strerror(e), o->trace_file,
                 output_advice(-e));
        return -e;
    }
    return 0;
}

void trace_begin(struct trace *t)
{
    if (t->path)
        output_empty(fileno(t->f));
}

void trace_close(struct trace *t, bool failed)
{
    bool lost = t->f && ferror(t->f);
    if (t->f && t->f != stderr && fclose(t->f))
        lost = true;
    if (t->f && t->path && t->created && failed)
        unlink(t->path);
    else if (lost && t->path)
        print_error_about("can't write all of the trace", t->path, "free some space and run it again");
    t->f = NULL;
}

void trace_cpu(struct trace *t, const char *what, uint64_t a, uint64_t b)
{
    if (t->f)
        fprintf(t->f, "cpu  %s %#" PRIx64 " %#" PRIx64 "\n", what, a, b);
}

void trace_io(struct trace *t, bool mmio, bool write, uint64_t address, unsigned size, uint64_t value)
{
    if (t->f)
        fprintf(t->f, "%s %s %0*" PRIx64 " size %u value %0*" PRIx64 "\n", mmio ? "mmio" : "port",
                write ? "write" : "read ", mmio ? 9 : 4, address, size, (int)(2 * (size < 8 ? size : 8)),
                value);
}
