#include "tests/fuzz/core.h"
#include "cpu/model.h"
#include "tests/fuzz/fuzz.h"

#include <signal.h>
#include <sys/mman.h>

#define VCPU_BASE 0x10000000u
#define TLB_BASE  0x11000000u

// What the engine allocates hangs off memory that it maps itself, where the leak checker does not look.
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}

static uint32_t port_read(void *opaque, uint16_t port, unsigned size)
{
    (void)opaque, (void)port, (void)size;
    return ~0u;
}
static void port_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    (void)opaque, (void)port, (void)size, (void)value;
}
static uint64_t mmio_read(void *opaque, uint64_t gpa, unsigned size)
{
    (void)opaque, (void)gpa, (void)size;
    return ~0ull;
}
static void mmio_write(void *opaque, uint64_t gpa, unsigned size, uint64_t value)
{
    (void)opaque, (void)gpa, (void)size, (void)value;
}
static int pic_ack(void *opaque)
{
    (void)opaque;
    return 7;
}
static uint64_t no_time(void *opaque)
{
    (void)opaque;
    return 0;
}
static void no_trace(void *opaque, const char *what, uint64_t a, uint64_t b)
{
    (void)opaque, (void)what, (void)a, (void)b;
}

static void *map_at(uintptr_t at, size_t size)
{
    void *p = mmap((void *)at, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    claim(p == (void *)at, "no address for the vCPU");
    return p;
}

static struct core *create(bool runs)
{
    static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    struct sigaction before[sizeof signals / sizeof signals[0]];
    struct core *c = calloc(1, sizeof *c);
    char error[256] = "";

    claim(c && !mem_create(&c->mem, CORE_RAM), "no memory");
    c->v = map_at(VCPU_BASE, (sizeof *c->v + 4095) & ~4095ul);
    c->v->mem = &c->mem;
    c->v->tlb = tlb_create((void *)(uintptr_t)TLB_BASE);
    c->model = cpu_model_create("host", error, sizeof error);
    claim(c->v->tlb && c->model, "%s", error);
    c->v->model = c->model;
    c->v->exits = (struct vcpu_exits){.port_read = port_read, .port_write = port_write, .mmio_read = mmio_read,
                                      .mmio_write = mmio_write, .pic_ack = pic_ack, .monotonic_ns = no_time,
                                      .realtime_ns = no_time, .trace = no_trace, .opaque = c->v};
    cpu_reset(c->v);
    memcpy(c->v->s.xsave, &(uint16_t){0x037f}, 2); // our own C code runs with what is here loaded
    memcpy(c->v->s.xsave + 24, &(uint32_t){0x1f80}, 4);
    // The engine's handlers of faults would hide ours from the sanitizer and the fuzzer.
    for (unsigned i = 0; i < sizeof signals / sizeof signals[0]; i++)
        sigaction(signals[i], NULL, &before[i]);
    claim(!engine_software.attach(c->v), "the engine did not attach");
    for (unsigned i = 0; !runs && i < sizeof signals / sizeof signals[0]; i++)
        sigaction(signals[i], &before[i], NULL);
    return c;
}

struct core *core_create(void)
{
    return create(false);
}

struct core *core_create_running(void)
{
    return create(true);
}
