#include "frontend/stats.h"

#include <inttypes.h>
#include <string.h>

struct stats_sink {
    FILE *f;
    bool json;
    unsigned printed;
    const char *title; // of a group of which nothing is printed yet
};

static void put_json_string(FILE *f, const char *text)
{
    putc('"', f);
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        if (*p == '"' || *p == '\\')
            fprintf(f, "\\%c", *p);
        else if (*p < 0x20)
            fprintf(f, "\\u%04x", *p);
        else
            putc(*p, f);
    }
    putc('"', f);
}

static void put_json(struct stats_sink *sink, const struct stat_value *s)
{
    if (sink->printed)
        fputs(", ", sink->f);
    put_json_string(sink->f, s->name);
    fputs(": ", sink->f);
    switch (s->kind) {
    case STAT_COUNT:
    case STAT_BYTES:
    case STAT_NS:
    case STAT_NS_SHARE: fprintf(sink->f, "%" PRIu64, s->count); break;
    case STAT_RATIO:
    case STAT_REAL: fprintf(sink->f, "%.6f", s->real); break;
    case STAT_TEXT: put_json_string(sink->f, s->text); break;
    }
}

static void put_text(struct stats_sink *sink, const struct stat_value *s)
{
    if (sink->title)
        fprintf(sink->f, "%s%s\n", sink->printed ? "\n" : "", sink->title);
    sink->title = NULL;
    fprintf(sink->f, "  %-36s ", s->name);
    switch (s->kind) {
    case STAT_COUNT: fprintf(sink->f, "%16" PRIu64 "\n", s->count); break;
    case STAT_BYTES: fprintf(sink->f, "%16" PRIu64 " bytes\n", s->count); break;
    case STAT_NS: fprintf(sink->f, "%16.6f s\n", (double)s->count / 1e9); break;
    case STAT_NS_SHARE: fprintf(sink->f, "%16.6f s %8.2f %%\n", (double)s->count / 1e9, s->real * 100); break;
    case STAT_RATIO: fprintf(sink->f, "%16.2f %%\n", s->real * 100); break;
    case STAT_REAL: fprintf(sink->f, "%16.3f\n", s->real); break;
    case STAT_TEXT: fprintf(sink->f, "%16s\n", s->text); break;
    }
}

void stats_put(struct stats_sink *sink, const struct stat_value *s)
{
    if (sink->json)
        put_json(sink, s);
    else
        put_text(sink, s);
    sink->printed++;
}

void stats_group(struct stats_sink *sink, const char *title)
{
    sink->title = title;
}

void stats_share(struct stats_sink *sink, const char *name, uint64_t ns, uint64_t whole_ns)
{
    char share[64];
    double part = whole_ns ? (double)ns / (double)whole_ns : 0;
    stats_put(sink, &(struct stat_value){.name = name, .kind = sink->json ? STAT_NS : STAT_NS_SHARE, .count = ns, .real = part});
    snprintf(share, sizeof share, "share_%s", !strncmp(name, "time_", 5) ? name + 5 : name);
    if (sink->json)
        stats_put(sink, &(struct stat_value){.name = share, .kind = STAT_RATIO, .real = part});
}

void stats_count(struct stats_sink *sink, const char *name, uint64_t count)
{
    stats_put(sink, &(struct stat_value){.name = name, .kind = STAT_COUNT, .count = count});
}

void stats_bytes(struct stats_sink *sink, const char *name, uint64_t bytes)
{
    stats_put(sink, &(struct stat_value){.name = name, .kind = STAT_BYTES, .count = bytes});
}

void stats_ns(struct stats_sink *sink, const char *name, uint64_t ns)
{
    stats_put(sink, &(struct stat_value){.name = name, .kind = STAT_NS, .count = ns});
}

void stats_ratio(struct stats_sink *sink, const char *name, uint64_t part, uint64_t whole)
{
    stats_put(sink, &(struct stat_value){
                        .name = name, .kind = STAT_RATIO, .real = whole ? (double)part / (double)whole : 0});
}

void stats_real(struct stats_sink *sink, const char *name, double value)
{
    stats_put(sink, &(struct stat_value){.name = name, .kind = STAT_REAL, .real = value});
}

void stats_text(struct stats_sink *sink, const char *name, const char *text)
{
    stats_put(sink, &(struct stat_value){.name = name, .kind = STAT_TEXT, .text = text});
}

void stats_print(FILE *f, bool json, stats_source *source, void *opaque)
{
    struct stats_sink sink = {f, json, 0, NULL};
    if (json)
        putc('{', f);
    source(opaque, &sink);
    if (json)
        fputs("}\n", f);
    fflush(f);
}
