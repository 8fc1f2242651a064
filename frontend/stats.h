// Prints named figures as text or as one line of JSON. Who has figures lists them through a callback; nothing
// here knows what they mean.
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum stat_kind {
    STAT_COUNT,
    STAT_BYTES,
    STAT_NS,    // nanoseconds; text shows seconds
    STAT_NS_SHARE, // the same, and `real` of a whole
    STAT_RATIO, // of a whole; text shows per cent
    STAT_REAL,
    STAT_TEXT,
};
struct stat_value {
    const char *name; // "blocks_translated"
    enum stat_kind kind;
    uint64_t count;   // STAT_COUNT, STAT_BYTES, STAT_NS, STAT_NS_SHARE
    double real;      // STAT_RATIO, STAT_REAL, STAT_NS_SHARE
    const char *text; // STAT_TEXT
};

struct stats_sink;
// What follows belongs together. Text begins it with this heading, if anything follows; JSON is flat.
void stats_group(struct stats_sink *sink, const char *title);
// A time "time_x" that is part of another: text shows its per cent beside it, JSON has them as "share_x".
void stats_share(struct stats_sink *sink, const char *name, uint64_t ns, uint64_t whole_ns);
void stats_put(struct stats_sink *sink, const struct stat_value *s);
void stats_count(struct stats_sink *sink, const char *name, uint64_t count);
void stats_bytes(struct stats_sink *sink, const char *name, uint64_t bytes);
void stats_ns(struct stats_sink *sink, const char *name, uint64_t ns);
// part / whole; 0 when whole is 0.
void stats_ratio(struct stats_sink *sink, const char *name, uint64_t part, uint64_t whole);
void stats_real(struct stats_sink *sink, const char *name, double value);
void stats_text(struct stats_sink *sink, const char *name, const char *text);

typedef void stats_source(void *opaque, struct stats_sink *sink);
void stats_print(FILE *f, bool json, stats_source *source, void *opaque);
