#include <stdio.h>

#include "frontend/commands.h"

// Names of files come from whoever types them: what would break the line, or drive a terminal, shows as a
// question mark.
void error_line(const char *text)
{
    flockfile(stderr);
    fputs("gnomon: ", stderr);
    for (const unsigned char *p = (const unsigned char *)text; *p; p++)
        putc(*p < 0x20 || *p == 0x7f ? '?' : *p, stderr);
    putc('\n', stderr);
    funlockfile(stderr);
}

void print_error_about(const char *what, const char *word, const char *advice)
{
    char text[512];
    snprintf(text, sizeof text, "%s: %.200s: %s", what, *word ? word : "''", advice);
    error_line(text);
}
