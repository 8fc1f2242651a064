// Machine files: an INI dialect with one section. A line is `name = value`, a comment or empty; the value is
// everything after the white space that follows the first '=', taken as it stands (no quotes, no escapes, so
// a kernel command line needs none), without trailing white space. A repeatable option is written once per
// value.
#include "frontend/options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FILE_BYTES  (1u << 20)
#define MAX_VALUE_BYTES 4096

static bool is_blank(char ch)
{
    return ch == ' ' || ch == '\t' || ch == '\r';
}

// One line [p, end) without white space at either end, under [machine].
static bool parse_setting(struct run_options *o, bool *seen, const char *p, const char *end,
                          const char *where, const char *directory, char *error)
{
    const char *equals = memchr(p, '=', end - p);
    const char *name_end = equals ? equals : end;
    while (name_end > p && is_blank(name_end[-1]))
        name_end--;
    size_t length = name_end - p;
    int shown = length < 64 ? (int)length : 64;
    const struct option_info *info = option_find(p, length);
    if (!info) {
        const char *suggestion = option_suggest(p, length);
        if (suggestion)
            snprintf(error, ERROR_SIZE, "unknown key '%.*s': %s: did you mean '%s'?", shown, p, where,
                     suggestion);
        else
            snprintf(error, ERROR_SIZE, "unknown key '%.*s': %s: see gnomon help machine-file", shown, p,
                     where);
        return false;
    }
    const char *value = equals ? equals + 1 : NULL;
    while (value && value < end && is_blank(*value))
        value++;
    if (!value && !info->optional) {
        snprintf(error, ERROR_SIZE, "no value: %s: write %s = %s", where, info->name, info->argument);
        return false;
    }
    if (seen[info - run_option_table] && !info->repeatable) {
        snprintf(error, ERROR_SIZE, "%s is set twice: %s: leave one out", info->name, where);
        return false;
    }
    seen[info - run_option_table] = true;
    size_t value_length = value ? (size_t)(end - value) : 0;
    if (value_length > MAX_VALUE_BYTES) {
        snprintf(error, ERROR_SIZE, "the value is longer than %u bytes: %s: shorten it", MAX_VALUE_BYTES,
                 where);
        return false;
    }
    char text[MAX_VALUE_BYTES + 1] = "on";
    if (value) {
        memcpy(text, value, value_length);
        text[value_length] = 0;
    }
    struct option_context c = {o, directory, error, where};
    return info->set(&c, text);
}

bool machine_file_parse(struct run_options *o, const char *text, size_t length, const char *name,
                        const char *directory, char error[ERROR_SIZE])
{
    bool *seen = calloc(run_option_count, sizeof *seen);
    bool in_machine = false, ok = false;
    unsigned line_number = 0;
    const char *p = text, *text_end = text + length;
    if (!seen) {
        snprintf(error, ERROR_SIZE, "out of memory: %.200s: end some programs and try again", name);
        return false;
    }
    while (p < text_end) {
        const char *newline = memchr(p, '\n', text_end - p);
        const char *end = newline ? newline : text_end, *next = newline ? newline + 1 : text_end;
        char where[256];
        snprintf(where, sizeof where, "%.200s:%u", name, ++line_number);
        while (p < end && is_blank(*p))
            p++;
        while (end > p && is_blank(end[-1]))
            end--;
        if (memchr(p, 0, end - p)) {
            snprintf(error, ERROR_SIZE, "this is no machine file: %s: a kernel goes behind --kernel", where);
            goto out;
        }
        if (p == end || *p == '#' || *p == ';') {
            p = next;
            continue;
        }
        if (*p == '[') {
            if (end - p != 9 || memcmp(p, "[machine]", 9)) {
                int shown = end - p < 64 ? (int)(end - p) : 64;
                snprintf(error, ERROR_SIZE, "unknown section '%.*s': %s: the one section is [machine]", shown,
                         p, where);
                goto out;
            }
            in_machine = true;
        } else if (!in_machine) {
            snprintf(error, ERROR_SIZE, "text before the section: %s: begin a machine file with [machine]",
                     where);
            goto out;
        } else if (!parse_setting(o, seen, p, end, where, directory, error)) {
            goto out;
        }
        p = next;
    }
    ok = true;
out:
    free(seen);
    return ok;
}

bool machine_file_load(struct run_options *o, const char *path, char error[ERROR_SIZE])
{
    bool ok = false;
    char *text = NULL, *directory = NULL;
    FILE *f = fopen(path, "re");
    if (!f) {
        snprintf(error, ERROR_SIZE, "can't read the machine file (%s): %.200s: check its name and its mode",
                 strerror(errno), path);
        return false;
    }
    const char *slash = strrchr(path, '/');
    directory = slash ? strndup(path, slash == path ? 1 : slash - path) : strdup(".");
    text = malloc(MAX_FILE_BYTES + 1);
    if (!text || !directory) {
        snprintf(error, ERROR_SIZE, "out of memory: %.200s: end some programs and try again", path);
        goto out;
    }
    size_t n = fread(text, 1, MAX_FILE_BYTES + 1, f);
    if (ferror(f)) {
        snprintf(error, ERROR_SIZE, "can't read the machine file (%s): %.200s: check its name and its mode",
                 strerror(errno), path);
        goto out;
    }
    if (n > MAX_FILE_BYTES) {
        snprintf(error, ERROR_SIZE, "longer than 1 MiB: %.200s: this is no machine file", path);
        goto out;
    }
    ok = machine_file_parse(o, text, n, path, directory, error);
out:
    free(text);
    free(directory);
    fclose(f);
    return ok;
}
