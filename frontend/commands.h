// The subcommands of gnomon, each with the arguments after its name. They return the exit status.
#pragma once

int run_command(int argc, char *const argv[]);
int info_command(int argc, char *const argv[]);
int diverge_command(int argc, char *const argv[]);
int diverge_side_command(int argc, char *const argv[]); // what diverge_command() runs, and nobody else
// One line on standard error: "gnomon: " and the text.
void error_line(const char *text);
// The same as "WHAT: WORD: ADVICE", for a word somebody typed.
void print_error_about(const char *what, const char *word, const char *advice);
