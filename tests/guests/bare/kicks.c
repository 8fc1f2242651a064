// Interrupts at every place where an interrupt can come: works.S's work is done with interrupts off, then
// again and again while the timer interrupts every 50 to 150 microseconds and its handler spoils all
// registers. Every result must be the same.
#include "bare.h"

#define INTERRUPTS 1000 // during each kind of work
#define SEEDS      3
#define WAITING    4 // the last kinds of work wait for interrupts

#define WORKS(X)                                                                                             \
    X(flags)                                                                                                 \
    X(recursion) X(indirect) X(loops) X(strings) X(crossing) X(branches) X(pages) X(returns) X(vectors)      \
        X(x87) X(sensitive) X(windows) X(doors) X(gates) X(waits)
#define DECLARE(name) unsigned long work_##name(unsigned long seed);
#define ROW(name)     {#name, work_##name},
WORKS(DECLARE)
static const struct work {
    const char *name;
    unsigned long (*run)(unsigned long seed);
} works[] = {WORKS(ROW)};

#define COUNT (sizeof works / sizeof works[0])

void payload(void)
{
    unsigned long want[COUNT][SEEDS];
    for (unsigned i = 0; i < COUNT; i++)
        for (unsigned seed = 0; seed < SEEDS && i + WAITING < COUNT; seed++)
            want[i][seed] = works[i].run(seed * 0x1234567);
    timer_start(50, 150);
    irq_on();
    for (unsigned i = 0; i < COUNT; i++) {
        const struct work *w = &works[i];
        unsigned long until = ticks + INTERRUPTS;
        for (unsigned seed = 0; seed < SEEDS && i + WAITING >= COUNT; seed++)
            want[i][seed] = w->run(seed * 0x1234567);
        while ((long)(ticks - until) < 0)
            for (unsigned seed = 0; seed < SEEDS; seed++)
                if (w->run(seed * 0x1234567) != want[i][seed])
                    end(w->name);
        put(w->name);
        put("\n");
    }
    end(0);
}
