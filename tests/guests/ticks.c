// Waits for the ticks of an interval timer: user code that never leaves by itself, so that every tick must be seen to by the
// monitor. A tick that is lost is waited for without end.
#include <signal.h>
#include <stdio.h>
#include <sys/reboot.h>
#include <sys/time.h>
#include <unistd.h>

static volatile sig_atomic_t ticks;

static void on_tick(int sig)
{
    (void)sig;
    ticks++;
}

static unsigned long count(unsigned long n) { return n * 3 + 1; }

int main(void)
{
    struct itimerval each = {.it_interval = {.tv_usec = 1000}, .it_value = {.tv_usec = 1000}};
    unsigned long (*volatile call)(unsigned long) = count; // a branch that no exit is chained for
    unsigned long n = 0;
    signal(SIGALRM, on_tick);
    setitimer(ITIMER_REAL, &each, NULL);
    for (int i = 1; i <= 1000; i++)
        while (ticks < i)
            n = i & 1 ? n + 1 : call(n);
    printf("TICKS-END %s\n", n ? "all came" : "nobody waited");
    fflush(stdout);
    sync();
    reboot(RB_POWER_OFF); // it is the guest's init
    return 1;
}
