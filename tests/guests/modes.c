// Computes for a while in code that may run in any way, in a page of its own, and says what came out.
#include <stdio.h>
#include <sys/reboot.h>
#include <unistd.h>

__attribute__((always_inline)) static inline unsigned long step(unsigned long x)
{
    x ^= x << 13;
    x ^= x >> 7;
    return x ^ x << 17;
}

static unsigned long table[4096];

__attribute__((noinline, aligned(4096))) static unsigned long compute(unsigned rounds)
{
    unsigned long x = 88172645463325252ul, sum = 0;
    while (rounds--) {
        x = step(x);
        sum += table[x & 4095] ^= x;
    }
    __asm__ volatile("jmp 1f\n\t.skip 4096, 0xcc\n1:"); // nothing of others, which may not run raw, in this page
    return sum;
}

__attribute__((noinline, aligned(4096))) static void say(unsigned long sum)
{
    printf("MODES-END %lx\n", sum);
    fflush(stdout);
}

int main(void)
{
    say(compute(250000000));
    sync();
    reboot(RB_POWER_OFF); // it is the guest's init
    return 1;
}
