#include "frontend/trace.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

int trace_open(struct trace *t, const struct run_options *o, char error[ERROR_SIZE])
{
    t->f = NULL;
    t->categories = o->trace;
    if (!o->trace)
        return 0;
    t->path = NULL;
    if (!o->trace_file) {
        t->f = stderr;
        return 0;
    }
    t->f = fopen(o->trace_file, "wxe");
    if (t->f)
        t->path = o->trace_file;
    else
        t->f = fopen(o->trace_file, "we");
    if (!t->f) {
        int e = errno;
        snprintf(error, ERROR_SIZE, "can't write the trace file (%s): %.200s: name a file you may write",
                 strerror(e), o->trace_file);
        return -e;
    }
    return 0;
}

void trace_close(struct trace *t, bool failed)
{
    if (t->f && t->f != stderr)
        fclose(t->f);
    if (t->f && t->path && failed)
        unlink(t->path);
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
