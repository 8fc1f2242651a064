// Runs a guest deterministically, stops it at counts of instructions and prints its state there. How the engine divides the
// guest's code, what it forgets and who disturbs it must not show, so the output is the same for each SHAPE:
//   normal   as ever
//   single   each instruction is a block that leads to C
//   small    blocks of up to three instructions
//   evict    a translation cache of two regions, which is emptied at each stop besides
//   kicked   another thread interrupts the vCPU all the time
//   cell     as ever, with the vCPU in a process of its own
//   counts SHAPE KERNEL INITRD|- APPEND COUNT|FIRST-LAST[/STEP]...
// Of a range, each stop is one line; where nothing stops the engine for STEP instructions, it runs code as ever.
#include "devices/machine.h"
#include "frontend/trace.h"
#include "tests/fuzz/core.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static atomic_bool done;

static void nothing(void *opaque, struct machine *m)
{
    (void)opaque, (void)m;
}

static void *kick(void *opaque)
{
    while (!done) {
        machine_call(opaque, nothing, NULL);
        usleep(100);
    }
    return NULL;
}

static void put(void *opaque, const uint8_t *data, size_t n)
{
    if (fwrite(data, 1, n, opaque) != n)
        exit(1);
}

static void run_to(struct machine *m, uint64_t count)
{
    char error[MACHINE_ERROR_SIZE] = "";
    machine_stop_at(m, count);
    struct machine_outcome outcome = machine_run(m, error, sizeof error);
    if (outcome.end != MACHINE_END_COUNTED || machine_count(m) != count) {
        fprintf(stderr, "counts: at %" PRIu64 " instead of %" PRIu64 ", outcome %d: %s\n", machine_count(m), count, (int)outcome.end, error);
        exit(1);
    }
}

static void print_line(struct machine *m)
{
    static char *text;
    static size_t size;
    static FILE *f;
    uint64_t hash = 1;
    if (!f && !(f = open_memstream(&text, &size)))
        exit(1);
    rewind(f);
    state_print_cpu(f, m);
    fflush(f);
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ (uint8_t)text[i]) * 0x100000001b3ull;
    const struct cpu_state *s = &machine_vcpu(m)->s;
    printf("%" PRIu64 " %04x:%" PRIx64 " %016" PRIx64 "\n", machine_count(m), s->seg[SEG_CS].sel, s->rip, hash);
}

int main(int argc, char *argv[])
{
    char error[MACHINE_ERROR_SIZE] = "";
    if (argc < 6) {
        fprintf(stderr, "usage: counts SHAPE KERNEL INITRD|- APPEND COUNT|FIRST-LAST[/STEP]...\n");
        return 2;
    }
    const char *shape = argv[1], *initrd = argv[3];
    struct machine_config config = {
        .memory_bytes = 256u << 20,
        .kernel = argv[2],
        .initrds = &initrd,
        .initrd_count = strcmp(initrd, "-") != 0,
        .append = argv[4],
        .deterministic = true,
        .epoch_s = 1000000000,
        .serial[0] = {put, stderr},
        .reset_exits = true,
        .cell = !strcmp(shape, "cell"),
        .sandbox = !strcmp(shape, "cell"),
    };
    struct machine *m = machine_create(&config, error, sizeof error, NULL);
    if (!m) {
        fprintf(stderr, "counts: %s\n", error);
        return 1;
    }
    run_to(m, 0);
    static struct dbt none; // in a cell
    struct dbt *d = config.cell ? &none : machine_vcpu(m)->engine;
    bool evict = !strcmp(shape, "evict");
    pthread_t kicker;
    bool kicked = !strcmp(shape, "kicked") && !pthread_create(&kicker, NULL, kick, m);
    if (evict)
        d->region_count = 2;
    d->single = !strcmp(shape, "single");
    if (!strcmp(shape, "small"))
        d->max_insns = 3;
    d->key_gen--; // the mode's key is worked out anew
    for (int i = 5; i < argc; i++) {
        char *end;
        uint64_t first = strtoull(argv[i], &end, 10), last = *end == '-' ? strtoull(end + 1, &end, 10) : first;
        uint64_t step = *end == '/' ? strtoull(end + 1, NULL, 10) : 1;
        for (uint64_t n = first; n <= last && step; n += step) {
            run_to(m, n);
            if (evict && d->fpu_saved)
                cache_flush(d);
            if (first != last)
                print_line(m);
        }
        state_print(stdout, m);
    }
    fprintf(stderr, "\ncounts: %" PRIu64 " blocks, %" PRIu64 " evictions, %" PRIu64 " kicks, %" PRIu64 " kick traps\n", d->n.blocks,
            d->n.evictions, d->n.kicks, d->n.kick_traps);
    done = true;
    if (kicked)
        pthread_join(kicker, NULL);
    machine_destroy(m);
    return 0;
}
