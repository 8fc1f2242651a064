#include "cpu/planted.h"

#ifdef GNOMON_PLANTED
#include <stdlib.h>
#include <string.h>

enum planted_name planted_bug;

bool planted_choose(void)
{
    static const char *const names[] = {
#define X(name) #name,
        PLANTED_BUGS(X)
#undef X
    };
    const char *wanted = getenv("GNOMON_PLANTED");
    if (!wanted || !*wanted)
        return true;
    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++)
        if (!strcmp(wanted, names[i])) {
            planted_bug = (enum planted_name)i;
            return true;
        }
    return false;
}
#endif
