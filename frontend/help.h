// Texts of `gnomon help`.
#pragma once
#include <stdbool.h>
#include <stdio.h>

void help_short(FILE *f);                    // gnomon without arguments
bool help_topic(FILE *f, const char *topic); // false: no such topic
void help_topics(FILE *f);
