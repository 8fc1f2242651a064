// The machine process's side of a cell's page, and the cell's life up to its sandbox (devices/cell.h).
#include "devices/cell.h"
#include "devices/pc.h"
#include "dbt/direct/worker.h"
#include "devices/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <malloc.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define SECOND_NS    1000000000u
#define BALANCE_NS   100000000u // how often we ask whether our CPU is somebody else's too
#define TRACE_BUFFER 65536u
// Lines of --perf come through the trace's pipe too; this byte begins them.
#define PERF_MARK    "\x1e"
#define PERF_LIMIT   (256u << 20) // bytes of the map; a guest can have code translated for ever

_Static_assert(CELL_WORKERS == MACHINE_WORKERS, "two names of one number");

struct cell {
    pid_t pid;
    int worker[CELL_WORKER_THREADS]; // thread ids of the user workers
    unsigned worker_threads;
    int worker_error;
    bool answering; // a call is in hand: the cell looks for itself when it has the answer
    bool call_waits; // machine_call(): its function runs when the cell's figures have come
    // The indices that are ours, which the cell could overwrite in the page.
    uint32_t event_head, range_head, out_tail[CELL_SERIALS];
    uint32_t in_head[CELL_SERIALS]; // under the mailbox's lock
    // The cell's end: `dead` (atomic) is set by a thread that waits for it. It stays a zombie until cell_destroy(), so
    // that nobody else gets its number.
    pthread_t reaper;
    bool has_reaper;
    uint32_t dead;
    int how; // si_code of waitid()
    int status;
    // --trace code, exc and mmu, and --perf
    pthread_t tracer;
    bool has_tracer;
    int trace_fd;
    FILE *trace, *perf; // null: not asked for
    bool in_line, in_perf; // where the tracer is: the line at hand is perf's
    size_t perf_bytes;
    // Where the two threads run.
    cpu_set_t allowed;
    bool pinned;
    int schedstat_fd, stat_fd; // of the cell, in /proc
    uint64_t balanced_ns, ran_ns, waited_ns;
    bool busy; // it ran lately
};

_Static_assert(sizeof(struct machine_counters) <= sizeof((struct cell_page *)0)->counters, "they fit");
_Static_assert(CELL_SERIALS == MACHINE_SERIALS, "a ring for each");

static long futex(uint32_t *word, int operation, uint32_t value, const struct timespec *until)
{
    return syscall(SYS_futex, word, operation, value, until, NULL, FUTEX_BITSET_MATCH_ANY);
}

int cell_pid(const struct machine *m)
{
    return m->cell ? m->cell->pid : 0;
}

unsigned cell_workers(const struct machine *m, const int **pids)
{
    *pids = m->cell ? m->cell->worker : NULL;
    return m->cell ? m->cell->worker_threads : 0;
}

int cell_worker_error(const struct machine *m)
{
    return m->cell ? m->cell->worker_error : 0;
}

// ---- any thread
void cell_ring(struct machine *m, uint32_t bell)
{
    __atomic_or_fetch(&m->page->bell, bell, __ATOMIC_SEQ_CST);
    futex(&m->page->bell, FUTEX_WAKE, 1, NULL);
}

void cell_kick(struct machine *m)
{
    if (!__atomic_exchange_n(&m->page->attention, 1, __ATOMIC_SEQ_CST))
        syscall(SYS_tgkill, m->cell->pid, m->cell->pid, SIGRTMIN);
}

// The mailbox's lock is held.
size_t cell_serial_input(struct machine *m, unsigned port, const uint8_t *data, size_t n)
{
    struct cell_in *in = &m->page->in[port];
    uint32_t *head = &m->cell->in_head[port];
    size_t taken = 0;

    while (taken < n && *head - __atomic_load_n(&in->tail, __ATOMIC_ACQUIRE) < CELL_IN_SIZE)
        in->data[(*head)++ % CELL_IN_SIZE] = data[taken++];
    __atomic_store_n(&in->head, *head, __ATOMIC_RELEASE);
    if (taken)
        cell_kick(m);
    return taken;
}

// ---- for the cell's chips, translator and memory map
static void tell(struct machine *m)
{
    if (!m->cell->answering)
        cell_kick(m);
}

void cell_request_stop(struct machine *m)
{
    __atomic_store_n(&m->page->stop, 1, __ATOMIC_RELEASE);
    tell(m);
}

static bool queue_event(struct machine *m, struct cell_event e)
{
    struct cell_page *p = m->page;
    uint32_t *head = &m->cell->event_head;

    if (*head - __atomic_load_n(&p->event_tail, __ATOMIC_ACQUIRE) >= CELL_EVENTS)
        return false;
    p->event[*head % CELL_EVENTS] = e;
    __atomic_store_n(&p->event_head, ++*head, __ATOMIC_RELEASE);
    return true;
}

void cell_send_line(struct machine *m, enum cell_event_kind kind, int n, int level)
{
    if (n < 0 || n >= 32)
        return;
    uint32_t old = m->level[kind], new = level ? old | 1u << n : old & ~(1u << n);
    if (old == new)
        return;
    m->level[kind] = new;
    __atomic_store_n(&m->page->level[kind], new, __ATOMIC_RELAXED);
    if (!queue_event(m, (struct cell_event){.kind = kind, .n = (uint32_t)n, .level = level != 0}))
        __atomic_store_n(&m->page->lines_lost, 1, __ATOMIC_RELEASE);
    tell(m);
}

// The same message twice before the cell looks is one interrupt, as in the IRR. So only a guest with hundreds of
// different messages under way can fill the ring: it loses one.
void cell_send_msi(struct machine *m, uint64_t address, uint32_t data)
{
    const struct cell_page *p = m->page;
    uint32_t head = m->cell->event_head, waiting = head - __atomic_load_n(&p->event_tail, __ATOMIC_ACQUIRE);

    for (uint32_t i = 1; i <= waiting && i <= CELL_EVENTS; i++) {
        const struct cell_event *e = &p->event[(head - i) % CELL_EVENTS];
        if (e->kind == EVENT_MSI && e->address == address && e->data == data)
            return;
    }
    queue_event(m, (struct cell_event){.kind = EVENT_MSI, .address = address, .data = data});
    tell(m);
}

void cell_send_map(struct machine *m)
{
    struct cell_page *p = m->page;

    for (unsigned i = 0; i < m->mem.region_count; i++)
        p->base[i] = m->mem.region[i].base;
    memcpy(p->pam, m->mem.pam, sizeof p->pam);
    p->a20 = m->mem.a20_mask == ~0ull;
    __atomic_store_n(&p->map_generation, p->map_generation + 1, __ATOMIC_RELEASE);
}

// A device wrote to a page that the cell traces: the rule is in devices/cell.h.
static void traced_written(void *opaque, uint64_t gpa, unsigned len)
{
    struct machine *m = opaque;
    struct cell_page *p = m->page;
    uint32_t *head = &m->cell->range_head;

    if (*head - __atomic_load_n(&p->range_tail, __ATOMIC_ACQUIRE) >= CELL_RANGES) {
        __atomic_store_n(&p->ranges_lost, 1, __ATOMIC_RELEASE);
    } else {
        p->range[*head % CELL_RANGES].gpa = gpa;
        p->range[*head % CELL_RANGES].len = len;
        __atomic_store_n(&p->range_head, ++*head, __ATOMIC_RELEASE);
    }
    tell(m);
}

// ---- calls of the cell
static void drain_output(struct machine *m)
{
    for (unsigned n = 0; n < CELL_SERIALS; n++) {
        struct cell_out *o = &m->page->out[n];
        const struct char_out *to = &m->config.serial[n];
        uint32_t *tail = &m->cell->out_tail[n];
        uint32_t count = __atomic_load_n(&o->head, __ATOMIC_ACQUIRE) - *tail;

        if (count > CELL_OUT_SIZE) // nonsense
            count = CELL_OUT_SIZE;
        while (count) {
            uint32_t at = *tail % CELL_OUT_SIZE, run = CELL_OUT_SIZE - at < count ? CELL_OUT_SIZE - at : count;
            if (to->write)
                to->write(to->opaque, o->data + at, run);
            *tail += run;
            count -= run;
            __atomic_store_n(&o->tail, *tail, __ATOMIC_RELEASE);
        }
    }
}

static void copy_text(char *to, const char *from, size_t size)
{
    size_t n = 0;

    for (; n < size - 1; n++) {
        char c = ((const volatile char *)from)[n];
        if (!c)
            break;
        to[n] = c >= ' ' && c <= '~' ? c : '?';
    }
    to[n] = 0;
}

static void trace_io(struct machine *m, bool mmio, bool write, uint64_t address, unsigned size, uint64_t value)
{
    if (m->config.trace_io)
        m->config.trace_io(m->config.opaque, mmio, write, address, size, value);
}

static uint64_t port_access(struct machine *m, bool write, uint64_t address, unsigned size, uint64_t value)
{
    if (address > UINT16_MAX || (size != 1 && size != 2 && size != 4))
        return UINT64_MAX;
    if (write) {
        trace_io(m, false, true, address, size, value);
        bus_write(m->bus, (uint16_t)address, size, (uint32_t)value);
        return 0;
    }
    value = bus_read(m->bus, (uint16_t)address, size);
    trace_io(m, false, false, address, size, value);
    return value;
}

static uint64_t mmio_access(struct machine *m, bool write, uint64_t address, unsigned size, uint64_t value)
{
    if (size < 1 || size > 8)
        return UINT64_MAX;
    if (write) {
        trace_io(m, true, true, address, size, value);
        mem_mmio_write(&m->mem, address, size, value);
        return 0;
    }
    value = mem_mmio_read(&m->mem, address, size);
    trace_io(m, true, false, address, size, value);
    return value;
}

static uint64_t perform(struct machine *m, enum cell_call call, uint64_t address, unsigned size, uint64_t value)
{
    char text[CELL_TEXT];
    bool write = m->page->write;

    switch (call) {
    case CALL_PORT_READ: return port_access(m, false, address, size, 0);
    case CALL_PORT_WRITE: return port_access(m, true, address, size, value);
    case CALL_MMIO_READ: return mmio_access(m, false, address, size, 0);
    case CALL_MMIO_WRITE: return mmio_access(m, true, address, size, value);
    case CALL_TRACE_CPU:
        copy_text(text, m->page->text, sizeof text);
        if (m->config.trace_cpu)
            m->config.trace_cpu(m->config.opaque, text, address, value);
        return 0;
    case CALL_TRACE_PORT: trace_io(m, false, write, address, size & 15, value); return 0;
    case CALL_TRACE_MMIO: trace_io(m, true, write, address, size & 15, value); return 0;
    case CALL_TIMERS:
        m->counters.timer_runs++;
        timer_run(&m->device_clock);
        return 0;
    default: return 0; // CALL_FLUSH: done already
    }
}

static void give_answer(struct machine *m)
{
    m->page->due_ns = m->device_clock.head ? m->device_clock.head->deadline_ns : NEVER;
    __atomic_store_n(&m->page->answer, 1, __ATOMIC_RELEASE);
    futex(&m->page->answer, FUTEX_WAKE, 1, NULL);
}

static void answer_call(struct machine *m, enum cell_call call)
{
    const volatile struct cell_page *p = m->page; // each operand is read once
    uint64_t address = p->address, value = p->value, start_ns = pc_monotonic_ns();
    unsigned size = p->size;

    if (m->config.deterministic) { // never back, and never so far that a deadline beyond it can't be told
        uint64_t now_ns = p->now_ns;
        if (now_ns > m->told_ns && now_ns < 1ull << 62)
            m->told_ns = now_ns;
    }
    m->cell->answering = true;
    m->page->value = perform(m, call, address, size, value);
    m->page->pm_timer_port = piix4pm_timer_port(m->pm);
    m->cell->answering = false;
    m->counters.device_ns += pc_monotonic_ns() - start_ns;
    give_answer(m);
}

// ---- where the two threads run: one CPU, because a wake-up across CPUs costs 67 us. Which one is the scheduler's
// choice: when the cell has had to wait for its CPU, both are let go for a while and pinned again where the cell is.
static void pin(struct machine *m, const cpu_set_t *set)
{
    sched_setaffinity(m->cell->pid, sizeof *set, set);
    for (unsigned i = 0; i < m->cell->worker_threads; i++)
        sched_setaffinity(m->cell->worker[i], sizeof *set, set);
    sched_setaffinity(0, sizeof *set, set);
}

static void pin_to(struct machine *m, unsigned cpu)
{
    cpu_set_t one;

    if (cpu >= CPU_SETSIZE || !CPU_ISSET(cpu, &m->cell->allowed))
        return;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    pin(m, &one);
    m->cell->pinned = true;
}

static bool read_line(int fd, char *line, size_t size)
{
    ssize_t n = fd < 0 ? -1 : pread(fd, line, size - 1, 0);

    line[n > 0 ? n : 0] = 0;
    return n > 0;
}

// How long the cell has run and has waited for a CPU.
static void read_times(struct cell *c, uint64_t *ran_ns, uint64_t *waited_ns)
{
    char line[96];
    unsigned long long ran = c->ran_ns, waited = c->waited_ns;

    if (read_line(c->schedstat_fd, line, sizeof line))
        sscanf(line, "%llu %llu", &ran, &waited);
    *ran_ns = ran;
    *waited_ns = waited;
}

// The CPU the cell is on: the 39th field of /proc/PID/stat, the second of which ends with the last parenthesis.
static unsigned cpu_of(struct cell *c)
{
    char line[1024], *at;

    if (!read_line(c->stat_fd, line, sizeof line) || !(at = strrchr(line, ')')))
        return CPU_SETSIZE;
    for (unsigned field = 2; field < 39; field++)
        if (!(at = strchr(at + 1, ' ')))
            return CPU_SETSIZE;
    return (unsigned)strtoul(at, NULL, 10);
}

static void balance(struct machine *m, uint64_t now_ns)
{
    struct cell *c = m->cell;

    if (m->role != PC_MACHINE || now_ns - c->balanced_ns < BALANCE_NS)
        return;
    uint64_t ran, waited, past = now_ns - c->balanced_ns;
    read_times(c, &ran, &waited);
    bool crowded = waited - c->waited_ns > past / 4;
    c->busy = ran - c->ran_ns > past / 4;
    c->ran_ns = ran;
    c->waited_ns = waited;
    c->balanced_ns = now_ns;
    if (!c->pinned) {
        pin_to(m, cpu_of(c));
    } else if (crowded) {
        pin(m, &c->allowed);
        c->pinned = false;
    }
}

// ---- serving
static void read_mail(struct machine *m)
{
    pthread_mutex_lock(&m->mail.lock);
    bool power_button = m->mail.power_button;
    bool call = m->mail.call != NULL;
    m->mail.power_button = false;
    pthread_mutex_unlock(&m->mail.lock);
    if (power_button)
        piix4pm_power_button(m->pm);
    if (call && !m->cell->call_waits) { // figures first, they are the usual reason of a call
        m->cell->call_waits = true;
        __atomic_store_n(&m->page->stats_wanted, 1, __ATOMIC_RELEASE);
        __atomic_store_n(&m->page->attention, 0, __ATOMIC_SEQ_CST);
        cell_kick(m);
    }
}

static void run_call(struct machine *m)
{
    pthread_mutex_lock(&m->mail.lock);
    void (*call)(void *, struct machine *) = m->mail.call;
    void *opaque = m->mail.call_opaque;
    m->mail.call = NULL;
    pthread_mutex_unlock(&m->mail.lock);
    m->cell->call_waits = false;
    if (call)
        call(opaque, m);
}

static void sleep_until_bell(struct machine *m, uint64_t now_ns)
{
    // A cell gone mad can wipe the bell: look once a second. While the guest works, see whether its CPU is its own.
    uint64_t until_ns = now_ns + (m->role == PC_MACHINE && m->cell->busy ? BALANCE_NS : SECOND_NS);
    const struct timer *head = m->device_clock.head;

    if (m->role == PC_MACHINE && !m->config.deterministic && head && head->deadline_ns < until_ns - m->clock_base_ns)
        until_ns = head->deadline_ns + m->clock_base_ns;
    struct timespec until = {(time_t)(until_ns / SECOND_NS), (long)(until_ns % SECOND_NS)};
    futex(&m->page->bell, FUTEX_WAIT_BITSET, 0, &until);
}

static void run_timers(struct machine *m)
{
    uint64_t start_ns;

    if (m->config.deterministic || !m->device_clock.head || m->device_clock.head->deadline_ns > pc_clock_now(m))
        return;
    start_ns = pc_monotonic_ns();
    m->counters.timer_runs++;
    m->programmed_ns = NEVER;
    timer_run(&m->device_clock);
    m->counters.device_ns += pc_monotonic_ns() - start_ns;
}

// Answers the cell until it says something that only its caller can answer; CALL_NONE: it is dead.
static enum cell_call serve(struct machine *m)
{
    struct cell_page *p = m->page;

    for (;;) {
        uint32_t bell = __atomic_exchange_n(&p->bell, 0, __ATOMIC_SEQ_CST);
        drain_output(m);
        if (bell & BELL_CALL) {
            uint32_t call = __atomic_exchange_n(&p->call, CALL_NONE, __ATOMIC_ACQ_REL);
            if (call >= CALL_READY && call <= CALL_FAILED)
                return (enum cell_call)call;
            if (call != CALL_NONE)
                answer_call(m, (enum cell_call)call);
        }
        if (__atomic_load_n(&m->cell->dead, __ATOMIC_ACQUIRE))
            return CALL_NONE;
        if (m->role == PC_MACHINE) {
            run_timers(m);
            if (bell & BELL_STATS && m->cell->call_waits)
                run_call(m);
            if (__atomic_exchange_n(&m->mail.full, 0, __ATOMIC_ACQ_REL))
                read_mail(m);
            if (__atomic_load_n(&m->stop, __ATOMIC_ACQUIRE) && !p->stop)
                cell_request_stop(m);
        }
        uint64_t now_ns = pc_monotonic_ns();
        balance(m, now_ns);
        if (!__atomic_load_n(&p->bell, __ATOMIC_ACQUIRE))
            sleep_until_bell(m, now_ns);
    }
}

void cell_wait(struct machine *m)
{
    uint32_t bell = __atomic_exchange_n(&m->page->bell, 0, __ATOMIC_SEQ_CST);

    drain_output(m);
    if (__atomic_exchange_n(&m->mail.full, 0, __ATOMIC_ACQ_REL)) {
        pthread_mutex_lock(&m->mail.lock);
        m->mail.power_button = false; // nobody is there to press it for
        pthread_mutex_unlock(&m->mail.lock);
        run_call(m); // the figures came when the cell stopped
    }
    if (!bell && !__atomic_load_n(&m->stop, __ATOMIC_ACQUIRE))
        sleep_until_bell(m, pc_monotonic_ns());
}

// ---- handing the cell's part over
static int push(struct machine *m)
{
    struct stream s;
    int result = 0;

    stream_init_save(&s);
    pc_core_stream(m, &s);
    result = s.error;
    if (!result && s.size > CELL_BLOB)
        result = -ENOSPC;
    if (!result) {
        memcpy(m->page->blob, s.data, s.size);
        m->page->blob_size = (uint32_t)s.size;
    }
    stream_free(&s);
    return result;
}

static int pull(struct machine *m)
{
    uint32_t size = *(volatile uint32_t *)&m->page->blob_size;
    uint8_t *copy = size <= CELL_BLOB ? malloc(size ? size : 1) : NULL;
    struct stream s;

    if (!copy)
        return size <= CELL_BLOB ? -ENOMEM : -EPROTO;
    memcpy(copy, m->page->blob, size);
    stream_init_load(&s, copy, size);
    pc_core_stream(m, &s);
    free(copy);
    return s.error;
}

// What our chips said after the cell looked for the last time: it goes to the interrupt controllers we have now.
static void take_back_events(struct machine *m)
{
    struct cell_page *p = m->page;
    uint32_t head = m->cell->event_head, tail = *(volatile uint32_t *)&p->event_tail;

    for (; head - tail - 1 < CELL_EVENTS; tail++) {
        struct cell_event e = p->event[tail % CELL_EVENTS];
        switch (e.kind) {
        case EVENT_CHIP: pc_isa_line(m, (int)e.n, (int)e.level); break;
        case EVENT_PCI_ISA: pc_pci_isa_line(m, (int)e.n, (int)e.level); break;
        case EVENT_PCI_GSI: pc_pci_gsi_line(m, (int)e.n, (int)e.level); break;
        default: pc_msi(m, e.address, e.data); break;
        }
    }
    p->event_tail = head;
    p->lines_lost = 0;
}

// Levels that our chips drive, as they stand in the copy: resets and snapshots change it without us.
static void learn_levels(struct machine *m)
{
    memset(m->level, 0, sizeof m->level);
    for (unsigned n = 0; n < 16; n++) {
        m->level[EVENT_CHIP] |= (m->isa[n] & FROM_CHIP ? 1u : 0) << n;
        m->level[EVENT_PCI_ISA] |= (m->isa[n] & FROM_PCI ? 1u : 0) << n;
    }
    if (m->rtc_level)
        m->level[EVENT_CHIP] |= 1u << 8;
    for (unsigned n = 0; n < 24; n++)
        m->level[EVENT_PCI_GSI] |= (m->gsi[n] & FROM_PCI ? 1u : 0) << n;
    memcpy(m->page->level, m->level, sizeof m->level);
}

static void say_how_it_died(struct machine *m, char *error, size_t error_size)
{
    const struct cell *c = m->cell;
    char note[sizeof m->page->note];

    copy_text(note, m->page->note, sizeof note);
    if (c->how == CLD_EXITED && note[0])
        snprintf(error, error_size, "the guest's process failed: %s: please report it", note);
    else if (c->how == CLD_EXITED)
        snprintf(error, error_size, "the guest's process ended by itself, status %d: please report it", c->status);
    else if (c->status == SIGSYS)
        snprintf(error, error_size,
                 "the guest's process made a system call that its sandbox forbids and was killed: please report it");
    else
        snprintf(error, error_size, "the guest's process was killed by signal %d (%s): run the machine again",
                 c->status, strsignal(c->status));
}

int cell_run(struct machine *m, char *error, size_t error_size)
{
    struct cell_page *p = m->page;
    struct cell *c = m->cell;
    int result = push(m);

    if (result)
        goto fail;
    learn_levels(m);
    p->stop = 0;
    p->stop_at = m->stop_at;
    m->told_ns = pc_clock_now(m); // while this is no PC_MACHINE: the vCPU's
    p->pm_timer_port = piix4pm_timer_port(m->pm);
    c->balanced_ns = pc_monotonic_ns();
    read_times(c, &c->ran_ns, &c->waited_ns);
    c->busy = true;
    pin_to(m, (unsigned)sched_getcpu());
    m->role = PC_MACHINE;
    give_answer(m);
    enum cell_call call = serve(m);
    m->role = PC_ALONE;
    sched_setaffinity(0, sizeof c->allowed, &c->allowed);
    c->pinned = false;
    if (call != CALL_STOPPED) {
        if (call == CALL_NONE)
            say_how_it_died(m, error, error_size);
        else
            snprintf(error, error_size, "the guest's process talks nonsense: please report it");
        return -1;
    }
    uint64_t why = *(volatile uint64_t *)&p->value;
    result = pull(m);
    if (result)
        goto fail;
    take_back_events(m);
    return why == ENGINE_SHUTDOWN || why == ENGINE_HALTED_FOREVER || why == ENGINE_COUNTED ? (int)why : ENGINE_REQUESTED;
fail:
    snprintf(error, error_size, "the state of the guest's process can't be handed over: %s: please report it",
             strerror(-result));
    return -1;
}

// ---- the cell itself, up to the sandbox and in its outer loop: FPU state is put away, libc may be used
static void publish_figure(void *opaque, const char *name, uint64_t value)
{
    struct cell_page *p = opaque;
    uint32_t n = p->figure_count;

    if (n == CELL_FIGURES)
        return;
    strncpy(p->figure[n].name, name, sizeof p->figure[n].name - 1);
    p->figure[n].value = value;
    p->figure_count = n + 1;
}

static void publish(struct machine *m)
{
    m->page->figure_count = 0;
    memcpy(m->page->counters, &m->counters, sizeof m->counters);
    if (m->config.engine != &engine_software)
        return;
    engine_software_stats(m->v, publish_figure, m->page);
    m->page->step_count = engine_software_trail(m->v, m->page->step);
}

static void cell_run_timers(void *opaque)
{
    struct machine *m = opaque;
    uint64_t start_ns = pc_monotonic_ns();

    m->counters.timer_runs++;
    cell_attend(m);
    m->programmed_ns = NEVER;
    uint64_t next_ns = timer_run(&m->clock);
    if (m->config.deterministic && m->due_ns <= pc_clock_now(m))
        cell_ask(m, CALL_TIMERS, 0, 0, 0);
    pc_clock_rearm(m, next_ns);
    m->counters.device_ns += pc_monotonic_ns() - start_ns;
    if (__atomic_exchange_n(&m->page->stats_wanted, 0, __ATOMIC_ACQ_REL)) {
        publish(m);
        cell_ring(m, BELL_STATS);
    }
}

static void cell_idle(void *opaque)
{
    struct machine *m = opaque;

    cell_before_idle(m);
    pc_idle(m);
}

static void cell_died(void *opaque, const char *line)
{
    struct machine *m = opaque;

    strncpy(m->page->note, line, sizeof m->page->note - 1);
    _exit(4);
}

static void set_up_signals(void)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS};
    sigset_t set;

    sigfillset(&set);
    sigdelset(&set, SIGRTMIN);
    for (unsigned i = 0; i < sizeof faults / sizeof faults[0]; i++) {
        signal(faults[i], SIG_DFL);
        sigdelset(&set, faults[i]);
    }
    sigprocmask(SIG_SETMASK, &set, NULL);
}

static void set_up_regions(struct machine *m)
{
    for (unsigned i = 0; i < m->mem.region_count; i++) {
        struct mem_region *r = &m->mem.region[i];
        if (r->kind != MEM_MMIO || r->base == LAPIC_BASE || r->base == IOAPIC_BASE || r->base == HPET_BASE)
            continue;
        m->cell_region[i] = (struct cell_region){m, i};
        r->ops = &cell_mmio_ops;
        r->opaque = &m->cell_region[i];
    }
}

_Noreturn static void fail(struct machine *m, enum cell_failure what, int result)
{
    m->page->size = what;
    m->page->value = (uint64_t)-result;
    __atomic_store_n(&m->page->call, CALL_FAILED, __ATOMIC_RELEASE);
    cell_ring(m, BELL_CALL);
    _exit(4);
}

static int nothing_in_order(const void *a, const void *b)
{
    (void)a, (void)b;
    return 0;
}

static void set_up_trace(struct machine *m, int fd)
{
    FILE *f = fdopen(fd, "w");
    char large[2048] = {0};

    if (!f)
        return;
    // The disassembler sorts a table when it is first used, and glibc's qsort() calls sysinfo() the first time
    // it sorts more than 1 KiB: let that be now.
    qsort(large, sizeof large / 8, 8, nothing_in_order);
    setvbuf(f, malloc(TRACE_BUFFER), _IOFBF, TRACE_BUFFER); // or it would ask fstat() how large
    pc_trace_engine(m, f);
    if (m->config.perf_map) {
        engine_software_perf(m->v, f, PERF_MARK);
        m->perf_out = f;
    }
}

// What the host does not allow is done without: all guest code is translated `checked` then.
static void set_up_workers(struct machine *m)
{
    static const enum engine_policy policy[] = {[MACHINE_POLICY_AUTO] = ENGINE_POLICY_AUTO, [MACHINE_POLICY_USER] = ENGINE_POLICY_USER,
                                                [MACHINE_POLICY_RAW] = ENGINE_POLICY_RAW};
    const struct machine_config *c = &m->config;
    struct cell_page *page = m->page;

    if (c->direct == MACHINE_DIRECT_OFF || c->policy == MACHINE_POLICY_CHECKED || c->deterministic || c->engine != &engine_software)
        return;
    page->worker_error = engine_software_direct(m->v, m->mem.ram_fd, CELL_WORKERS, c->direct == MACHINE_DIRECT_ALWAYS, policy[c->policy]);
    if (page->worker_error)
        return;
    const struct workers *w = engine_software_workers(m->v);
    for (unsigned i = 0; i < workers_count(w); i++) {
        page->worker[page->worker_threads++] = worker_pid(w, i);
        page->worker[page->worker_threads++] = worker_mapper(w, i);
    }
}

_Noreturn static void cell_main(struct machine *m, pid_t parent, int trace_fd)
{
    struct stream s;
    int result;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(4);
    prctl(PR_SET_NAME, "gnomon-cell");
    mallopt(M_MMAP_MAX, 0); // memory by brk() only
    mallopt(M_TRIM_THRESHOLD, -1);
    m->role = PC_CELL;
    m->cell = NULL;
    m->counters = (struct machine_counters){0};
    timer_init(&m->flush, &m->clock, cell_flush, m);
    set_up_signals();
    set_up_regions(m);
    m->mem.client_count = 0;
    m->programmed_ns = NEVER;
    result = m->config.engine->attach(m->v);
    if (result)
        fail(m, CELL_NO_ENGINE, result);
    if (m->config.engine == &engine_software) {
        engine_software_set_host(m->v, (struct engine_host){cell_idle, cell_run_timers, cell_died, m});
        if (trace_fd >= 0)
            set_up_trace(m, trace_fd);
    }
    result = pc_start_clock(m);
    if (result)
        fail(m, CELL_NO_TIMER, result);
    set_up_workers(m);
    sandbox_drop_files(trace_fd, !m->config.sandbox);
    close(m->mem.ram_fd);
    m->mem.ram_fd = -1;
    result = m->config.sandbox ? cell_enter_sandbox(m->host_timer, trace_fd, m->page->worker, m->page->worker_threads) : 0;
    if (result)
        fail(m, CELL_NO_SANDBOX, result);
    if (m->config.in_cell)
        m->config.in_cell(m->config.opaque, m);

    cell_ask(m, CALL_READY, 0, 0, 0);
    for (;;) {
        stream_init_load(&s, m->page->blob, m->page->blob_size);
        pc_core_stream(m, &s);
        if (s.error)
            cell_died(m, "it can't read the state it was given");
        m->map_seen--; // follow the map even where nothing has changed since
        cell_attend(m);
        pc_raise(m, REQ_TIMER);
        if (m->config.deterministic) {
            m->due_ns = m->page->due_ns;
            m->v->count.stop_at = m->page->stop_at;
            pc_count_limit(m);
        }
        enum engine_stop why = m->config.engine->run(m->v);
        __atomic_and_fetch(&m->v->requests, ~(uint32_t)REQ_EXIT, __ATOMIC_ACQ_REL);
        cell_attend(m);
        __atomic_and_fetch(&m->v->requests, ~(uint32_t)REQ_EXIT, __ATOMIC_ACQ_REL);
        publish(m);
        if (m->perf_out)
            fflush(m->perf_out);
        s = (struct stream){.data = m->page->blob, .capacity = CELL_BLOB}; // never too small: it does not grow
        pc_core_stream(m, &s);
        m->page->blob_size = (uint32_t)s.size;
        cell_ask(m, CALL_STOPPED, 0, 0, why);
    }
}

// ---- life
static void *reap(void *opaque)
{
    struct machine *m = opaque;
    siginfo_t info = {0};

    while (waitid(P_PID, (id_t)m->cell->pid, &info, WEXITED | WNOWAIT) < 0 && errno == EINTR)
        ;
    m->cell->how = info.si_code;
    m->cell->status = info.si_status;
    __atomic_store_n(&m->cell->dead, 1, __ATOMIC_RELEASE);
    cell_ring(m, BELL_MAIL);
    return NULL;
}

// What perf will show to the user: characters of our lines only, whoever wrote them.
static void put_perf(struct cell *c, char *p, size_t n)
{
    if (!c->perf || n > PERF_LIMIT - c->perf_bytes)
        return;
    for (size_t i = 0; i < n; i++)
        if (!(p[i] >= '0' && p[i] <= '9') && !(p[i] >= 'a' && p[i] <= 'z') && p[i] != ' ' && p[i] != '\n')
            p[i] = '_';
    c->perf_bytes += n;
    fwrite(p, 1, n, c->perf);
}

static void copy_lines(struct cell *c, char *p, char *end)
{
    while (p < end) {
        if (!c->in_line)
            c->in_perf = *p == PERF_MARK[0];
        char *next = memchr(p, '\n', (size_t)(end - p));
        next = next ? next + 1 : end;
        if (c->in_perf)
            put_perf(c, c->in_line ? p : p + 1, (size_t)(next - (c->in_line ? p : p + 1)));
        else if (c->trace)
            fwrite(p, 1, (size_t)(next - p), c->trace);
        c->in_line = next[-1] != '\n';
        p = next;
    }
}

static void *copy_trace(void *opaque)
{
    struct cell *c = opaque;
    char buffer[4096];
    ssize_t n;

    while ((n = read(c->trace_fd, buffer, sizeof buffer)) > 0 || (n < 0 && errno == EINTR))
        if (n > 0)
            copy_lines(c, buffer, buffer + n);
    return NULL;
}

static int start_threads(struct machine *m)
{
    struct cell *c = m->cell;
    sigset_t all, old;
    int result;

    sigfillset(&all);
    sigdelset(&all, SIGSYS); // whatever the sandbox has to say
    pthread_sigmask(SIG_SETMASK, &all, &old);
    result = pthread_create(&c->reaper, NULL, reap, m);
    c->has_reaper = !result;
    if (!result && c->trace_fd >= 0) {
        result = pthread_create(&c->tracer, NULL, copy_trace, c);
        c->has_tracer = !result;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return -result;
}

static void say_why_not(struct machine *m, char *error, size_t error_size)
{
    const char *reason = strerror((int)(m->page->value & 0xfff));

    switch (m->page->size) {
    case CELL_NO_SANDBOX:
        snprintf(error, error_size,
                 "sandbox: this host's kernel gives no seccomp filter (%s): use one that does, or give "
                 "--sandbox off",
                 reason);
        break;
    case CELL_NO_TIMER:
        snprintf(error, error_size,
                 "clock: the host gives no timer: %s: raise the limit of pending signals (ulimit -i)", reason);
        break;
    default: snprintf(error, error_size, "engine: %s can't start: %s", m->config.engine->name, reason); break;
    }
}

int cell_start(struct machine *m, char *error, size_t error_size)
{
    struct mem_trace_client client = {.written = traced_written, .opaque = m, .bit = TRACE_CODE | TRACE_TABLE | TRACE_RAW};
    int pipe_fds[2] = {-1, -1}, result;
    pid_t parent = getpid();
    struct cell *c = calloc(1, sizeof *c);

    m->page = mmap(NULL, sizeof *m->page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (!c || m->page == MAP_FAILED) {
        m->page = NULL;
        free(c);
        snprintf(error, error_size, "memory: the host has too little left for the guest's process: end some programs");
        return -ENOMEM;
    }
    c->trace_fd = c->schedstat_fd = c->stat_fd = -1;
    sched_getaffinity(0, sizeof c->allowed, &c->allowed);
    if ((m->config.trace_code || m->config.perf_map) && !pipe2(pipe_fds, O_CLOEXEC)) {
        c->trace_fd = pipe_fds[0];
        c->trace = m->config.trace_code;
    }
    cell_send_map(m);
    fflush(NULL);
    c->pid = fork();
    if (c->pid == 0)
        cell_main(m, parent, pipe_fds[1]);
    result = c->pid < 0 ? -errno : 0;
    if (pipe_fds[1] >= 0)
        close(pipe_fds[1]);
    __atomic_store_n(&m->cell, c, __ATOMIC_RELEASE);
    if (!result && m->config.perf_map && !(c->perf = m->config.perf_map(m->config.opaque, (int)c->pid, error, error_size)))
        return -EIO;
    if (!result)
        result = start_threads(m);
    if (!result)
        result = mem_trace_register(&m->mem, client);
    if (result) {
        snprintf(error, error_size, "can't make a process or thread (%s): the guest's process: end some programs",
                 strerror(-result));
        return result;
    }
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/schedstat", (int)c->pid);
    c->schedstat_fd = open(path, O_RDONLY | O_CLOEXEC);
    snprintf(path, sizeof path, "/proc/%d/stat", (int)c->pid);
    c->stat_fd = open(path, O_RDONLY | O_CLOEXEC);
    switch (serve(m)) {
    case CALL_READY:
        // No guest code has run yet: these are what it says.
        c->worker_threads = m->page->worker_threads < CELL_WORKER_THREADS ? m->page->worker_threads : CELL_WORKER_THREADS;
        memcpy(c->worker, m->page->worker, sizeof c->worker);
        c->worker_error = m->page->worker_error;
        return 0;
    case CALL_FAILED: say_why_not(m, error, error_size); break;
    default: say_how_it_died(m, error, error_size); break;
    }
    return -ECHILD;
}

void cell_destroy(struct machine *m)
{
    struct cell *c = m->cell;

    if (!c)
        return;
    if (c->pid > 0) {
        kill(c->pid, SIGKILL);
        if (c->has_reaper)
            pthread_join(c->reaper, NULL);
        waitpid(c->pid, NULL, 0);
    }
    if (c->has_tracer)
        pthread_join(c->tracer, NULL);
    if (c->trace_fd >= 0)
        close(c->trace_fd);
    if (c->schedstat_fd >= 0)
        close(c->schedstat_fd);
    if (c->stat_fd >= 0)
        close(c->stat_fd);
    m->cell = NULL;
    munmap(m->page, sizeof *m->page);
    m->page = NULL;
    free(c);
}
