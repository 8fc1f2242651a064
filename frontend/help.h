// Texts of `gnomon help`.
#pragma once
#include <stdbool.h>
#include <stdio.h>

void help_short(FILE *f);                    // gnomon without arguments
bool help_topic(FILE *f, const char *topic); // false: no such topic
const char *help_suggest(const char *topic); // the topic most like a mistyped one, or null
void help_topics(FILE *f);
