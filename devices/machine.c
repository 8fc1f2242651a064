// A machine's life: made from a configuration, run on the caller's thread, reset, ended.
#include "devices/pc.h"
#include "bios/acpi.h"

#include <errno.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#define MIB (1ull << 20)
#define DETERMINISTIC_TSC_KHZ 1000000u // an instruction is a nanosecond

// ---- mailbox: any thread
// After a request was set: the vCPU's thread looks at it soon, whether it runs guest code or sleeps.
static void wake(struct machine *m, uint32_t requests)
{
    if (__atomic_load_n(&m->cell, __ATOMIC_ACQUIRE)) {
        cell_ring(m, BELL_MAIL);
        return;
    }
    __atomic_or_fetch(&m->v->requests, requests, __ATOMIC_ACQ_REL);
    syscall(SYS_futex, &m->v->requests, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    if (__atomic_load_n(&m->attached, __ATOMIC_ACQUIRE))
        m->config.engine->kick(m->v);
}

static void post(struct machine *m)
{
    __atomic_store_n(&m->mail.full, 1, __ATOMIC_RELEASE);
    wake(m, REQ_TIMER);
}

size_t machine_serial_input(struct machine *m, unsigned port, const uint8_t *data, size_t n)
{
    size_t taken = 0;

    if (port >= MACHINE_SERIALS)
        return n;
    struct pc_input *in = &m->mail.input[port];
    pthread_mutex_lock(&m->mail.lock);
    if (__atomic_load_n(&m->cell, __ATOMIC_ACQUIRE)) {
        taken = cell_serial_input(m, port, data, n);
        pthread_mutex_unlock(&m->mail.lock);
        return taken;
    }
    for (; taken < n && in->count < PC_INPUT_SIZE; taken++, in->count++)
        in->data[(in->head + in->count) % PC_INPUT_SIZE] = data[taken];
    pthread_mutex_unlock(&m->mail.lock);
    if (taken)
        post(m);
    return taken;
}

void machine_power_button(struct machine *m)
{
    pthread_mutex_lock(&m->mail.lock);
    m->mail.power_button = true;
    pthread_mutex_unlock(&m->mail.lock);
    post(m);
}

bool machine_call(struct machine *m, void (*fn)(void *opaque, struct machine *m), void *opaque)
{
    pthread_mutex_lock(&m->mail.lock);
    bool free = !m->mail.call;
    if (free) {
        m->mail.call = fn;
        m->mail.call_opaque = opaque;
    }
    pthread_mutex_unlock(&m->mail.lock);
    if (free)
        post(m);
    return free;
}

void machine_stop(struct machine *m, uint32_t value)
{
    __atomic_store_n(&m->stop_value, value, __ATOMIC_RELAXED);
    __atomic_store_n(&m->stop, 1, __ATOMIC_RELEASE);
    wake(m, REQ_EXIT);
}

// ---- the vCPU's thread
static void read_mail(struct machine *m)
{
    void (*call)(void *, struct machine *);
    void *call_opaque;
    bool power_button;

    if (!__atomic_exchange_n(&m->mail.full, 0, __ATOMIC_ACQ_REL))
        return;
    pthread_mutex_lock(&m->mail.lock);
    power_button = m->mail.power_button;
    call = m->mail.call;
    call_opaque = m->mail.call_opaque;
    m->mail.power_button = false;
    m->mail.call = NULL;
    pthread_mutex_unlock(&m->mail.lock);

    pc_drain_input(m);
    if (power_button)
        piix4pm_power_button(m->pm);
    if (call)
        call(call_opaque, m);
}

static void host_run_timers(void *opaque)
{
    struct machine *m = opaque;
    uint64_t start_ns = pc_monotonic_ns();

    m->counters.timer_runs++;
    read_mail(m);
    m->programmed_ns = NEVER;
    uint64_t next_ns = timer_run(&m->clock), device_ns = timer_run(&m->device_clock);
    pc_clock_rearm(m, next_ns < device_ns ? next_ns : device_ns);
    m->counters.device_ns += pc_monotonic_ns() - start_ns;
}

// Sleeps until there is a request besides REQ_INTR: with that one alone the CPU has refused to wake (IF is
// 0), and it is set on this thread only. A timer's signal sets REQ_TIMER; it and wake() change the word, so
// none is missed.
void pc_idle(struct machine *m)
{
    uint64_t start_ns = pc_monotonic_ns();
    uint32_t seen;

    m->counters.idles++;
    while (!((seen = __atomic_load_n(&m->v->requests, __ATOMIC_ACQUIRE)) & ~REQ_INTR))
        syscall(SYS_futex, &m->v->requests, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    m->counters.idle_ns += pc_monotonic_ns() - start_ns;
}

static void host_idle(void *opaque)
{
    pc_idle(opaque);
}

static bool stopped(struct machine *m)
{
    return __atomic_load_n(&m->stop, __ATOMIC_ACQUIRE);
}

// The guest is dead and stays to be looked at: only the host's notes are answered.
static void wait_for_stop(struct machine *m)
{
    while (!stopped(m)) {
        if (m->cell) {
            cell_wait(m);
            continue;
        }
        host_idle(m);
        uint32_t requests = __atomic_fetch_and(&m->v->requests, REQ_INTR | REQ_EXIT, __ATOMIC_ACQ_REL);
        if (requests & REQ_TIMER)
            read_mail(m); // the chips' timers rest
        if (requests & REQ_EXIT)
            __atomic_and_fetch(&m->v->requests, ~REQ_EXIT, __ATOMIC_ACQ_REL);
    }
}

void pc_trace_engine(struct machine *m, FILE *f)
{
    const struct machine_config *c = &m->config;

    if (c->trace_blocks)
        engine_software_trace_code(m->v, f);
    if (c->trace_exc || c->trace_mmu)
        engine_software_trace_events(m->v, f, c->trace_exc, c->trace_mmu);
}

// A POSIX timer that signals this thread; the engine's handler of the signal sets REQ_TIMER (cpu/engine.h). And the one that
// --stats samples by.
int pc_start_clock(struct machine *m)
{
    int result = m->config.measure && m->config.engine == &engine_software && !m->v->time.measured
                     ? engine_software_measure(m->v) : 0;
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN};
    sigset_t set;
    int id;

    if (result)
        return result;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    event.sigev_value.sival_ptr = m->v;
    if (syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &id) < 0)
        return -errno;
    m->host_timer = id;
    // Timers armed before there was a host timer.
    __atomic_or_fetch(&m->v->requests, REQ_TIMER, __ATOMIC_ACQ_REL);
    return 0;
}

static void stop_clock(struct machine *m)
{
    if (m->host_timer >= 0)
        syscall(SYS_timer_delete, m->host_timer);
    m->host_timer = -1;
    m->programmed_ns = NEVER;
}

// ---- making
// Not that of whoever named the file.
static bool hosts_fault(int result)
{
    return result == -ENOMEM || result == -EIO || result == -EMFILE || result == -ENFILE;
}

static int open_payload(struct machine *m, char *error, size_t error_size, bool *usage)
{
    const struct machine_config *c = &m->config;
    int result = 0;

    *usage = true;
    if (!c->kernel == !c->bios) {
        snprintf(error, error_size,
                 c->kernel ? "kernel and bios are both given: choose one"
                           : "nothing to boot: give --kernel FILE or --bios FILE");
        return -EINVAL;
    }
    if (c->bios) {
        struct image im;
        result = image_open(&im, c->bios, "bios", error, error_size);
        if (result)
            return result;
        result = firmware_map(&im, &m->mem, error, error_size);
        image_close(&im);
        return result;
    }
    result = image_open(&m->kernel, c->kernel, "kernel", error, error_size);
    for (unsigned n = 0; !result && n < c->initrd_count; n++) {
        result = image_open(&m->initrds[n], c->initrds[n], "initrd", error, error_size);
        if (!result)
            m->loader_config.initrd_count++;
    }
    if (result) {
        *usage = !hosts_fault(result);
        return result;
    }
    m->loader_config.kernel = &m->kernel;
    m->loader_config.initrds = m->initrds;
    m->loader_config.cmdline = c->append;
    m->loader_config.long_mode = cpu_model_has(m->model, CPU_LM);
    m->loader_config.acpi = m->acpi;
    m->loader_config.fixed_seed = c->deterministic;
    result = loader_prepare(&m->loader, &m->loader_config, &m->mem, error, error_size);
    *usage = !hosts_fault(result);
    return result;
}

// A deterministic one has no random instructions, and a TSC of 1 GHz.
static struct cpu_model *create_model(const struct machine_config *c, char *error, size_t error_size)
{
    const char *cpu = c->cpu && *c->cpu ? c->cpu : "default";
    char *spec = NULL;
    struct cpu_model *model = NULL;

    if (!c->deterministic)
        return cpu_model_create(c->cpu, error, error_size);
    if (asprintf(&spec, "%s,-rdrand,-rdseed", cpu) < 0) {
        snprintf(error, error_size, "--cpu: out of memory");
        return NULL;
    }
    model = cpu_model_create_at(DETERMINISTIC_TSC_KHZ, spec, error, error_size);
    free(spec);
    return model;
}

static int create_memory(struct machine *m, char *error, size_t error_size, bool *usage)
{
    uint64_t bytes = m->config.memory_bytes;
    unsigned phys_bits = cpu_model_phys_bits(m->model);
    struct sysinfo host;

    if (bytes < MIB || bytes % MIB || bytes >> (phys_bits < 63 ? phys_bits : 63)) {
        *usage = true;
        snprintf(error, error_size,
                 "memory: %llu bytes: give a multiple of 1 MiB that the CPU model can address (%u "
                 "bits)",
                 (unsigned long long)bytes, phys_bits);
        return -EINVAL;
    }
    if (!sysinfo(&host) && bytes > ((uint64_t)host.totalram + host.totalswap) * host.mem_unit) {
        snprintf(error, error_size,
                 "memory: %llu MiB: this host has %llu MiB: give the machine less with --memory",
                 (unsigned long long)(bytes / MIB),
                 (unsigned long long)(((uint64_t)host.totalram + host.totalswap) * host.mem_unit / MIB));
        return -ENOMEM;
    }
    int result = mem_create(&m->mem, bytes);
    if (result) {
        snprintf(error, error_size,
                 "memory: %llu MiB: the host can't provide them (%s): give less with --memory",
                 (unsigned long long)(bytes / MIB), strerror(-result));
        return result;
    }
    m->mem_made = true;
    m->acpi = (struct acpi_config){
        .cpus = 1,
        .apic = cpu_model_has(m->model, CPU_APIC),
        .low_ram = m->mem.low_size,
        .high_ram = (1ull << 32) + (m->mem.ram_size - m->mem.low_size),
        .phys_bits = phys_bits,
    };
    return 0;
}

struct machine *machine_create(const struct machine_config *config, char *error, size_t error_size,
                               bool *usage)
{
    bool ignored;
    struct machine *m = calloc(1, sizeof *m);

    if (!usage)
        usage = &ignored;
    *usage = false;
    if (!m) {
        snprintf(error, error_size, "memory: the host has too little left for a machine: end some programs");
        return NULL;
    }
    m->config = *config;
    m->kernel.fd = -1;
    m->host_timer = -1;
    pthread_mutex_init(&m->mail.lock, NULL);
    if (!m->config.engine)
        m->config.engine = &engine_software;
    if (config->disk_count > MACHINE_MAX_DISKS || config->initrd_count > MACHINE_MAX_INITRDS) {
        *usage = true;
        snprintf(error, error_size, "more than %d disks or %d initrds: give fewer", MACHINE_MAX_DISKS,
                 MACHINE_MAX_INITRDS);
        goto fail;
    }
    m->model = create_model(config, error, error_size);
    if (!m->model) {
        *usage = true;
        goto fail;
    }
    if (create_memory(m, error, error_size, usage) || pc_create(m, error, error_size, usage) ||
        open_payload(m, error, error_size, usage) || machine_reset(m, error, error_size))
        goto fail;
    *usage = false;
    m->config.kernel = m->config.bios = m->config.append = NULL; // the caller's
    m->config.initrds = NULL;
    m->config.disks = NULL;
    m->loader_config.cmdline = NULL;
    return m;
fail:
    machine_destroy(m);
    return NULL;
}

void machine_destroy(struct machine *m)
{
    if (!m)
        return;
    if (m->attached) {
        __atomic_store_n(&m->attached, false, __ATOMIC_RELEASE);
        m->config.engine->detach(m->v);
    }
    cell_destroy(m);
    stop_clock(m);
    pc_destroy(m);
    loader_free(&m->loader);
    image_close(&m->kernel);
    for (unsigned n = 0; n < m->loader_config.initrd_count; n++)
        image_close(&m->initrds[n]);
    if (m->mem_made)
        mem_destroy(&m->mem);
    cpu_model_destroy(m->model);
    pthread_mutex_destroy(&m->mail.lock);
    free(m);
}

int machine_reset(struct machine *m, char *error, size_t error_size)
{
    int result = 0;

    m->requested = false;
    pc_reset(m);
    if (m->loader.protocol != BOOT_NONE) {
        pci_setup(m->bus, &m->acpi);
        result = loader_load(&m->loader, &m->mem, m->v, error, error_size);
    }
    mmu_flush_all(m->v, true);
    return result;
}

// ---- running
// INIT as port 92h and CF9h give it: the CPU starts anew, memory, chips, MSRs and FPU stay (SDM 3A table
// 9-1).
static void init_cpu(struct machine *m)
{
    struct cpu_state *s = &m->v->s, old = *s;

    cpu_reset(m->v);
    s->cr0 |= old.cr0 & (CR0_CD | CR0_NW);
    s->xcr0 = old.xcr0;
    s->star = old.star;
    s->lstar = old.lstar;
    s->cstar = old.cstar;
    s->sfmask = old.sfmask;
    s->kernel_gs_base = old.kernel_gs_base;
    s->tsc_aux = old.tsc_aux;
    s->sysenter_cs = old.sysenter_cs;
    s->sysenter_esp = old.sysenter_esp;
    s->sysenter_eip = old.sysenter_eip;
    s->pat = old.pat;
    s->misc_enable = old.misc_enable;
    s->mtrr_def_type = old.mtrr_def_type;
    memcpy(s->mtrr_fix, old.mtrr_fix, sizeof s->mtrr_fix);
    memcpy(s->mtrr_var, old.mtrr_var, sizeof s->mtrr_var);
    memcpy(s->xsave, old.xsave, sizeof s->xsave);
    mmu_flush_all(m->v, true);
}

// What comes after the engine stopped: true when the run is over.
static bool crashed(struct machine *m, const char *why, struct machine_outcome *outcome, char *error,
                    size_t error_size)
{
    if (m->config.crashed)
        m->config.crashed(m->config.opaque, m->v, why);
    switch (m->config.on_crash) {
    case MACHINE_CRASH_EXIT: *outcome = (struct machine_outcome){MACHINE_END_CRASHED, 0}; return true;
    case MACHINE_CRASH_HALT: wait_for_stop(m); return false; // the caller finds it stopped
    case MACHINE_CRASH_RESET: break;
    }
    if (machine_reset(m, error, error_size)) {
        *outcome = (struct machine_outcome){MACHINE_END_HOST_ERROR, 0};
        return true;
    }
    return false;
}

static bool answer_request(struct machine *m, struct machine_outcome *outcome, char *error, size_t error_size)
{
    m->requested = false;
    switch (m->request) {
    case MACHINE_POWER_OFF: *outcome = (struct machine_outcome){MACHINE_END_POWERED_OFF, 0}; return true;
    case MACHINE_GUEST_EXIT:
        *outcome = (struct machine_outcome){MACHINE_END_GUEST_EXIT, m->request_value};
        return true;
    case MACHINE_GUEST_CRASHED: return crashed(m, "the guest reported a panic", outcome, error, error_size);
    case MACHINE_INIT_CPU:
        if (m->loader.protocol == BOOT_NONE) {
            init_cpu(m);
            return false;
        }
        break; // no firmware is there to go on from the reset vector: as a reset
    case MACHINE_RESET: break;
    }
    if (m->config.reset_exits) {
        *outcome = (struct machine_outcome){MACHINE_END_REBOOTED, 0};
        return true;
    }
    if (machine_reset(m, error, error_size)) {
        *outcome = (struct machine_outcome){MACHINE_END_HOST_ERROR, 0};
        return true;
    }
    return false;
}

static int attach(struct machine *m, char *error, size_t error_size)
{
    if (m->attached)
        return 0;
    FILE *perf = NULL;
    if (m->config.perf_map && !(perf = m->config.perf_map(m->config.opaque, (int)getpid(), error, error_size)))
        return -EIO;
    int result = m->config.engine->attach(m->v);
    if (result) {
        snprintf(error, error_size, "engine: %s can't start: %s", m->config.engine->name, strerror(-result));
        return result;
    }
    if (m->config.engine == &engine_software)
        engine_software_set_host(m->v, (struct engine_host){host_idle, host_run_timers, NULL, m});
    if (m->config.engine == &engine_software && m->config.trace_code)
        pc_trace_engine(m, m->config.trace_code);
    if (m->config.engine == &engine_software && perf)
        engine_software_perf(m->v, perf, "");
    __atomic_store_n(&m->attached, true, __ATOMIC_RELEASE);
    return 0;
}

int machine_start(struct machine *m, char *error, size_t error_size)
{
    return m->config.cell && !m->cell ? cell_start(m, error, error_size) : 0;
}

static int prepare_run(struct machine *m, char *error, size_t error_size)
{
    if (m->config.cell)
        return machine_start(m, error, error_size);
    int result = attach(m, error, error_size);
    if (result)
        return result;
    if (m->config.deterministic) {
        m->v->count.stop_at = m->stop_at;
        pc_count_limit(m);
    }
    result = pc_start_clock(m);
    if (result)
        snprintf(error, error_size,
                 "clock: the host gives no timer: %s: raise the limit of pending signals (ulimit -i)",
                 strerror(-result));
    return result;
}

void machine_stop_at(struct machine *m, uint64_t count)
{
    m->stop_at = count;
}

uint64_t machine_count(const struct machine *m)
{
    return cpu_count(m->v);
}

struct machine_outcome machine_run(struct machine *m, char *error, size_t error_size)
{
    struct machine_outcome outcome = {MACHINE_END_HOST_ERROR, 0};

    if (prepare_run(m, error, error_size))
        return outcome;
    for (;;) {
        if (stopped(m)) {
            __atomic_store_n(&m->stop, 0, __ATOMIC_RELEASE);
            outcome = (struct machine_outcome){MACHINE_END_STOPPED,
                                               __atomic_load_n(&m->stop_value, __ATOMIC_RELAXED)};
            break;
        }
        if (m->requested) {
            if (answer_request(m, &outcome, error, error_size))
                break;
            continue;
        }
        int why = m->cell ? cell_run(m, error, error_size) : (int)m->config.engine->run(m->v);
        if (why < 0)
            break;
        if (why == ENGINE_SHUTDOWN && crashed(m, "triple fault", &outcome, error, error_size))
            break;
        if (why == ENGINE_COUNTED) {
            outcome = (struct machine_outcome){MACHINE_END_COUNTED, 0};
            break;
        }
        if (why == ENGINE_HALTED_FOREVER)
            wait_for_stop(m);
    }
    stop_clock(m);
    return outcome;
}

// ---- state
// What C code uses as an index or hands to XRSTOR.
static void make_safe(const struct cpu_model *model, struct cpu_state *state)
{
    uint64_t *header = (uint64_t *)(state->xsave + 512), mxcsr_mask = model->mxcsr_mask;
    uint32_t mxcsr;

    state->cpl &= 3;
    state->iflag &= 1;
    state->dflag &= 1;
    state->shadow &= SHADOW_STI | SHADOW_MOV_SS | SHADOW_NMI;
    if (state->activity > ACT_SHUTDOWN)
        state->activity = ACT_SHUTDOWN;
    state->cr4 &= model->cr4_mask;
    state->efer &= model->efer_mask | EFER_LMA;
    state->xcr0 = (state->xcr0 & model->xcr0) | 1;
    header[0] &= model->fpu_mask;
    memset(header + 1, 0, 56);
    memcpy(&mxcsr, state->xsave + 24, 4);
    mxcsr &= (uint32_t)mxcsr_mask;
    memcpy(state->xsave + 24, &mxcsr, 4);
}

static void cpu_state_stream(struct machine *m, struct stream *s)
{
    struct cpu_state *state = calloc(1, sizeof *state);
    uint64_t tsc = cpu_tsc(m->v);
    uint32_t requests = __atomic_load_n(&m->v->requests, __ATOMIC_ACQUIRE) & (REQ_NMI | REQ_INTR);

    if (!state) {
        if (!s->error)
            s->error = -ENOMEM;
        return;
    }
    *state = m->v->s;
    stream_section(s, "cpu", 1);
    stream_bytes(s, state, sizeof *state);
    stream_u64(s, &tsc);
    stream_u32(s, &requests);
    if (s->loading && !s->error) {
        make_safe(m->model, state);
        m->v->s = *state;
        m->v->s.tsc_offset = tsc - cpu_tsc_source(m->v);
        __atomic_store_n(&m->v->requests, (requests & (REQ_NMI | REQ_INTR)) | REQ_TIMER, __ATOMIC_RELEASE);
        m->v->mode_gen++;
    }
    free(state);
}

static void wires_stream(struct machine *m, struct stream *s)
{
    stream_bytes(s, m->isa, sizeof m->isa);
    stream_bytes(s, m->gsi, sizeof m->gsi);
    stream_bool(s, &m->hpet_legacy);
    stream_bool(s, &m->rtc_level);
    stream_bool(s, &m->v->pic_intr);
}

static bool beside_vcpu(const struct device_ops *ops)
{
    return ops == &ioapic_device || ops == &pic_device || ops == &pit_device || ops == &hpet_device ||
           ops == &uart_device || ops == &ferr_device;
}

static void count_stream(struct vcpu *v, struct stream *s)
{
    uint64_t count = cpu_count(v);

    stream_u64(s, &count);
    stream_u64(s, &v->count.skipped_ns);
    if (s->loading) {
        v->count.limit = count;
        v->count.left = 0;
        cpu_count_set_limit(v);
    }
}

// The wires come before the chips, some of which drive their lines again when they are loaded: the level is then no
// news. They come again at the end, for what these chips changed after all. Runs in the cell too: no allocation.
void pc_core_stream(struct machine *m, struct stream *s)
{
    uint32_t requests = __atomic_load_n(&m->v->requests, __ATOMIC_ACQUIRE) & (REQ_NMI | REQ_INTR | REQ_INIT);

    stream_section(s, "core", 1);
    stream_u64(s, &m->clock_base_ns);
    count_stream(m->v, s);
    wires_stream(m, s);
    for (unsigned n = 0; n < m->device_count; n++)
        if (beside_vcpu(m->devices[n].ops))
            m->devices[n].ops->state(m->devices[n].opaque, s);
    if (m->v->lapic)
        lapic_state(m->v->lapic, s);
    wires_stream(m, s);
    stream_bytes(s, &m->v->s, sizeof m->v->s);
    stream_u32(s, &requests);
    if (!s->loading)
        return;
    make_safe(m->model, &m->v->s);
    requests = (requests & (REQ_NMI | REQ_INIT)) | REQ_INTR | REQ_TIMER;
    __atomic_store_n(&m->v->requests, requests, __ATOMIC_RELEASE);
    m->v->mode_gen++;
    mmu_flush_all(m->v, true);
}

void machine_state(struct machine *m, struct stream *s)
{
    uint64_t now_ns = pc_clock_now(m);
    uint8_t pic_intr = m->v->pic_intr;

    stream_section(s, "machine", 1);
    stream_u64(s, &now_ns);
    if (s->loading && !s->error) {
        m->clock_base_ns = pc_monotonic_ns() - now_ns;
        m->v->count.skipped_ns = now_ns - cpu_count(m->v); // wraps
    }
    cpu_state_stream(m, s);
    if (m->v->lapic)
        lapic_state(m->v->lapic, s);
    for (unsigned n = 0; n < m->device_count; n++)
        m->devices[n].ops->state(m->devices[n].opaque, s);
    // The wires, after the chips: some drive their lines again when they are loaded.
    stream_section(s, "wires", 1);
    stream_bytes(s, m->isa, sizeof m->isa);
    stream_bytes(s, m->gsi, sizeof m->gsi);
    stream_bool(s, &m->hpet_legacy);
    stream_bool(s, &m->rtc_level);
    stream_u8(s, &pic_intr);
    if (s->loading) {
        m->v->pic_intr = pic_intr != 0;
        __atomic_or_fetch(&m->v->requests, REQ_INTR, __ATOMIC_RELEASE);
        mmu_flush_all(m->v, true);
        if (m->v->s.kvmclock_system & 1)
            cpu_kvmclock_update(m->v);
    }
}

static void core_chips_stream(struct machine *m, struct stream *s)
{
    for (unsigned n = 0; n < m->device_count; n++)
        if (beside_vcpu(m->devices[n].ops))
            m->devices[n].ops->state(m->devices[n].opaque, s);
    if (m->v->lapic)
        lapic_state(m->v->lapic, s);
}

// What chips note of the past for later brings a load up to date, so there is one first, as there is when a cell stops.
void machine_chips_state(struct machine *m, struct stream *s)
{
    struct stream first, again;

    stream_init_save(&first);
    core_chips_stream(m, &first);
    stream_init_load(&again, first.data, first.size);
    core_chips_stream(m, &again);
    stream_free(&first);
    if (m->v->lapic)
        lapic_state(m->v->lapic, s);
    for (unsigned n = 0; n < m->device_count; n++)
        m->devices[n].ops->state(m->devices[n].opaque, s);
    wires_stream(m, s);
}

// ---- looking inside
struct vcpu *machine_vcpu(struct machine *m)
{
    return m->v;
}

struct mem_map *machine_memory(struct machine *m)
{
    return &m->mem;
}

struct bus *machine_ports(struct machine *m)
{
    return m->bus;
}

const struct machine_counters *machine_counters(struct machine *m)
{
    uint64_t *total = (uint64_t *)&m->total;

    m->total = m->counters;
    if (m->page)
        for (size_t n = 0; n < sizeof m->total / sizeof *total; n++)
            total[n] += m->page->counters[n];
    return &m->total;
}

void machine_engine_stats(struct machine *m, void (*emit)(void *opaque, const char *name, uint64_t value),
                          void *opaque)
{
    if (!m->page) {
        if (m->config.engine == &engine_software && m->v->engine)
            engine_software_stats(m->v, emit, opaque);
        return;
    }
    uint32_t count = *(volatile uint32_t *)&m->page->figure_count;
    for (uint32_t n = 0; n < count && n < CELL_FIGURES; n++) {
        struct cell_figure f = m->page->figure[n];
        for (size_t i = 0; i < sizeof f.name; i++) // names of ours, if nobody broke out
            if (f.name[i] && (f.name[i] < '0' || f.name[i] > 'z'))
                f.name[i] = '?';
        f.name[sizeof f.name - 1] = 0;
        emit(opaque, f.name, f.value);
    }
}

unsigned machine_trail(struct machine *m, struct engine_step out[ENGINE_TRAIL])
{
    unsigned n = 0;

    if (!m->page)
        return m->config.engine == &engine_software && m->v->engine ? engine_software_trail(m->v, out) : 0;
    uint32_t count = *(volatile uint32_t *)&m->page->step_count;
    for (uint32_t i = 0; i < count && i < ENGINE_TRAIL; i++) {
        struct engine_step s = *(volatile struct engine_step *)&m->page->step[i];
        if (s.kind > STEP_NONE && s.kind < STEP_KINDS && (s.kind != STEP_SENSITIVE || s.detail < OP_COUNT))
            out[n++] = s;
    }
    return n;
}

int machine_cell_pid(const struct machine *m)
{
    return cell_pid(m);
}

unsigned machine_workers(const struct machine *m, const int **pids)
{
    return cell_workers(m, pids);
}

int machine_worker_error(const struct machine *m)
{
    return cell_worker_error(m);
}
