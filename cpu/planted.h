// Bugs planted on purpose, one at a time, in a build made for that (-Dplanted=true): what looks for differences or defends
// against the guest must be seen to find resp. need them. Each has a name here and a PLANTED(name) where it does its harm;
// GNOMON_PLANTED in the environment chooses one. In any other build there are none.
#pragma once

#ifdef GNOMON_PLANTED
#include <stdbool.h>

// name: what it does
#define PLANTED_BUGS(X) \
    X(none)           /* nothing */ \
    X(kicks_between_turns) /* workers are kicked for nothing, and what is wanted of them comes between their turns */

enum planted_name {
#define X(name) PLANTED_##name,
    PLANTED_BUGS(X)
#undef X
};

extern enum planted_name planted_bug;

// Reads GNOMON_PLANTED. Returns false if it names no bug.
bool planted_choose(void);

#define PLANTED(name) __builtin_expect(planted_bug == PLANTED_##name, 0)
#else
#define PLANTED(name) 0
#endif
