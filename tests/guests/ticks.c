// Waits for the ticks of an interval timer: user code that never leaves by itself, so that every tick must be seen to by the
// monitor. A tick that is lost is waited for without end. Half of the waits come straight from code that was never executed
// before, with flags alive where its blocks begin.
#include <signal.h>
#include <stdio.h>
#include <sys/reboot.h>
#include <sys/time.h>
#include <unistd.h>

volatile sig_atomic_t ticks;

static void on_tick(int sig)
{
    (void)sig;
    ticks++;
}

#define FRESH 500
void fresh(void); // FRESH pieces of 64 bytes
volatile int wanted;
__asm__(".text\n.balign 64\n"
        "fresh: .rept 500\n"
        "cmpq %rdi, %rsi; jmp 1f; .skip 16, 0xcc; 1: sbbq %rax, %rax; jmp wait_for_wanted; .balign 64, 0xcc\n"
        ".endr\n"
        "wait_for_wanted: movl wanted(%rip), %ecx; cmpl %ecx, ticks(%rip); jl wait_for_wanted; ret\n");

static unsigned long count(unsigned long n) { return n * 3 + 1; }

int main(void)
{
    struct itimerval each = {.it_interval = {.tv_usec = 1000}, .it_value = {.tv_usec = 1000}};
    unsigned long (*volatile call)(unsigned long) = count; // a branch that no exit is chained for
    unsigned long n = 0;
    signal(SIGALRM, on_tick);
    setitimer(ITIMER_REAL, &each, NULL);
    for (int i = 1; i <= 500; i++)
        while (ticks < i)
            n = i & 1 ? n + 1 : call(n);
    wanted = 0;
    ((void (*)(void))((char *)fresh + 64 * (FRESH - 1)))(); // the wait is known
    for (int i = 0; i < FRESH - 1; i++) {
        wanted = ticks + 2;
        ((void (*)(void))((char *)fresh + 64 * i))();
    }
    printf("TICKS-END %s\n", n ? "all came" : "nobody waited");
    fflush(stdout);
    sync();
    reboot(RB_POWER_OFF); // it is the guest's init
    return 1;
}
