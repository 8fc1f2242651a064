// --stats: where the time goes, and how often translated code goes on without C.
//
// Time. What the vCPU's thread does (enum vcpu_doing) changes only where something costly begins or ends: a translation, an
// access to a chip, a timer, sleep. There the TSC is read, so these times are exact (vcpu_does()). Translated code and the
// helpers it calls change places too often for that, a million times a second: a timer's signal looks 181 times a second
// which of them is at work, and the rest of the time is divided in that proportion. The same samples divide the thread's
// processor time, all of it. The timer is made and started before the sandbox closes; then it is out of the cell's reach.
// Its period has no simple ratio to usual ticks (1, 4 and 10 ms), so that it does not run in step with the guest's.
//
// Rates. Blocks count how often they are entered, and indirect branches and returns how often they are executed, in
// instructions that are emitted only while this is on. The rest are the misses, which C counts anyway.
#include <errno.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>
#include "cpu/model.h"
#include "dbt/dbt.h"

#define SAMPLE_SIGNAL (SIGRTMIN + 1)
#define PERIOD_NS     5527000

static uint64_t thread_cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static enum sample_place place(const struct dbt *d, uint64_t rip)
{
    switch (d->v->time.doing) {
    case DOING_CORE:
        return rip >= d->rx + d->cache_stubs && rip < d->rx + d->cache_size ? SAMPLE_TRANSLATED
                                                                            : SAMPLE_HELPERS;
    case DOING_TRANSLATION: return SAMPLE_TRANSLATOR;
    case DOING_DEVICES: return SAMPLE_DEVICES;
    default: return SAMPLE_ELSEWHERE;
    }
}

static void on_sample(int sig, siginfo_t *info, void *context)
{
    (void)sig;
    __asm__ volatile("pushfq; andl %0, (%%rsp); popfq"
                     :
                     : "i"(~FL_AC)
                     : "cc", "memory"); // as in dbt/signal.c
    if (info->si_code != SI_TIMER)
        return;
    struct dbt *d = info->si_value.sival_ptr;
    struct samples *s = &d->samples[place(d, (uint64_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP])];
    uint64_t now = thread_cpu_ns();
    s->count++;
    s->user += d->v->s.cpl == 3;
    s->cpu_ns += now - d->sampled_cpu_ns;
    d->sampled_cpu_ns = now;
}

int engine_software_measure(struct vcpu *v)
{
    struct dbt *d = v->engine;
    struct sigaction sa = {.sa_sigaction = on_sample, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
    struct sigevent event = {
        .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SAMPLE_SIGNAL, .sigev_value.sival_ptr = d};
    const struct itimerspec period = {{0, PERIOD_NS}, {0, PERIOD_NS}};
    sigset_t set;

    sigfillset(&sa.sa_mask);
    sigaction(SAMPLE_SIGNAL, &sa, NULL);
    event._sigev_un._tid = d->tid;
    if (syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &d->sample_timer) < 0)
        return -errno;
    d->measured = v->time.measured = true;
    v->time.since = __builtin_ia32_rdtsc();
    d->sampled_cpu_ns = thread_cpu_ns();
    sigemptyset(&set);
    sigaddset(&set, SAMPLE_SIGNAL);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    if (syscall(SYS_timer_settime, d->sample_timer, 0, &period, NULL) < 0)
        return -errno;
    return 0;
}

void measure_end(struct dbt *d)
{
    if (!d->measured)
        return;
    syscall(SYS_timer_delete, d->sample_timer);
    signal(SAMPLE_SIGNAL, SIG_IGN);
    d->measured = d->v->time.measured = false;
}

static uint64_t part(uint64_t whole, uint64_t of, uint64_t all)
{
    return all ? (uint64_t)((unsigned __int128)whole * of / all) : whole;
}

// Entries that came neither from C nor through the table of indirect branches came through a link.
static uint64_t chained(const struct dbt_counters *n, uint64_t entered, uint64_t lookups)
{
    uint64_t others = n->dispatches + n->chains + lookups - n->ib_misses;
    return entered > others ? entered - others : 0;
}

void measure_emit(struct dbt *d, void (*emit)(void *opaque, const char *name, uint64_t value), void *opaque)
{
    const struct dbt_counters *n = &d->n;
    const struct samples *s = d->samples;
    struct vcpu_time *t = &d->v->time;
    uint64_t all = 0, cpu = thread_cpu_ns(), sampled = 0, core, entered = 0,
             lookups = n->indirects + n->ret_misses + n->ret_empty;

    if (!d->measured)
        return;
    vcpu_does(d->v, (enum vcpu_doing)t->doing); // up to now
    for (unsigned i = 0; i < SAMPLE_PLACES; i++) {
        all += s[i].count;
        sampled += s[i].cpu_ns;
    }
    core = s[SAMPLE_TRANSLATED].count + s[SAMPLE_HELPERS].count;
    for (unsigned i = 0; i < ENTRY_COUNTERS; i++)
        entered += n->entered[i];
    uint64_t q32 = d->v->model->host_ns_per_tsc_q32,
             core_ns = (uint64_t)((unsigned __int128)t->tsc[DOING_CORE] * q32 >> 32);
    uint64_t translated_ns = part(core_ns, s[SAMPLE_TRANSLATED].count, core);
    uint64_t checked_ns = core ? part(core_ns, s[SAMPLE_TRANSLATED].user + s[SAMPLE_HELPERS].user, core) : 0,
             raw_ns = (uint64_t)((unsigned __int128)t->tsc[DOING_RAW] * q32 >> 32),
             user_ns = (uint64_t)((unsigned __int128)t->tsc[DOING_USER] * q32 >> 32);
    const struct {
        const char *name;
        uint64_t value;
    } rows[] = {
        {"time_direct", raw_ns + user_ns},
        {"time_guest_raw", raw_ns},
        {"time_guest_user", user_ns},
        {"time_guest_checked", checked_ns},
        {"time_guest_kernel", core_ns - checked_ns},
        {"time_translated", translated_ns},
        {"time_helpers", core_ns - translated_ns},
        {"time_devices", (uint64_t)((unsigned __int128)t->tsc[DOING_DEVICES] * q32 >> 32)},
        {"time_idle", (uint64_t)((unsigned __int128)t->tsc[DOING_IDLE] * q32 >> 32)},
        {"time_cpu_translated", part(cpu, s[SAMPLE_TRANSLATED].cpu_ns, sampled)},
        {"time_cpu_helpers", sampled ? part(cpu, s[SAMPLE_HELPERS].cpu_ns, sampled) : 0},
        {"time_cpu_translator", sampled ? part(cpu, s[SAMPLE_TRANSLATOR].cpu_ns, sampled) : 0},
        {"time_cpu_devices", sampled ? part(cpu, s[SAMPLE_DEVICES].cpu_ns, sampled) : 0},
        {"samples", all},
        {"blocks_entered", entered},
        {"chained_jumps", chained(n, entered, lookups)},
        {"indirect_lookups", lookups},
        {"returns", n->returns},
    };
    for (unsigned i = 0; i < sizeof rows / sizeof rows[0]; i++)
        emit(opaque, rows[i].name, rows[i].value);
}
