// A machine whose vCPU runs in a process of its own: what crosses, what is refused, and who survives whom. The
// engine is a fake one that plays the guest in the cell, except where a test needs translated code.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "devices/cell.h"
#include "devices/pc.h"
#include "tests/unit/host.h"

#define KERNEL_BASE 0x100000u
#define ENTRY       (KERNEL_BASE + 32)

struct seen { // what the cell's side saw: it can't assert
    uint64_t value[8];
    uint32_t runs;
};

struct play {
    struct machine *m;
    struct seen *seen; // shared with the cell
    void (*act)(struct play *p, struct vcpu *v);
    enum engine_stop stop;
    char out[16384];
    size_t out_count;
    unsigned crashes;
    uint64_t crash_rip;
    unsigned accesses; // traced
    char traced[64];
};

static struct play *playing;

static void ignore(int signal)
{
    (void)signal;
}

static int fake_attach(struct vcpu *v)
{
    (void)v;
    signal(SIGRTMIN, ignore);
    return 0;
}

static enum engine_stop fake_run(struct vcpu *v)
{
    playing->seen->runs++;
    playing->stop = ENGINE_REQUESTED;
    cpu_fpu_load(v);
    playing->act(playing, v);
    cpu_fpu_save(v);
    return playing->stop;
}

static void fake_kick(struct vcpu *v)
{
    (void)v;
}

static const struct engine_ops fake_engine = {"fake", fake_attach, fake_run, fake_kick, fake_kick};

static void serial_out(void *opaque, const uint8_t *data, size_t n)
{
    struct play *p = opaque;
    for (size_t i = 0; i < n && p->out_count < sizeof p->out - 1; i++)
        p->out[p->out_count++] = (char)data[i];
}

static void on_crashed(void *opaque, struct vcpu *v, const char *why)
{
    struct play *p = opaque;
    (void)why;
    p->crashes++;
    p->crash_rip = v->s.rip;
}

static char kernel_path[] = "/tmp/gnomon-test-XXXXXX";

static void make_kernel(const void *code, size_t size)
{
    const uint32_t end = ENTRY + (uint32_t)size;
    const uint32_t header[8] = {0x1badb002, 0x10000, -(0x1badb002u + 0x10000), KERNEL_BASE, KERNEL_BASE,
                                end,        end,     ENTRY};
    int fd = open(kernel_path, O_WRONLY | O_TRUNC);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, header, sizeof header), sizeof header);
    assert_int_equal(write(fd, code, size), size);
    close(fd);
}

static int set_up(void **state)
{
    struct play *p = calloc(1, sizeof *p);
    int fd = mkstemp(kernel_path);

    if (!p || fd < 0)
        return -1;
    close(fd);
    make_kernel("\xf4", 1);
    p->seen = mmap(NULL, sizeof *p->seen, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    playing = *state = p;
    return 0;
}

static int tear_down(void **state)
{
    struct play *p = *state;

    machine_destroy(p->m);
    munmap(p->seen, sizeof *p->seen);
    unlink(kernel_path);
    strcpy(kernel_path, "/tmp/gnomon-test-XXXXXX");
    free(p);
    return 0;
}

static struct machine_config config_for(struct play *p)
{
    return (struct machine_config){
        .memory_bytes = 16 << 20,
        .kernel = kernel_path,
        .serial = {{serial_out, p}},
        .engine = &fake_engine,
        .crashed = on_crashed,
        .opaque = p,
        .cell = true,
        .sandbox = true,
    };
}

static void create(struct play *p, const struct machine_config *config)
{
    char error[MACHINE_ERROR_SIZE] = "";

    p->m = machine_create(config, error, sizeof error, NULL);
    assert_string_equal(error, "");
    assert_non_null(p->m);
}

static struct machine_outcome run(struct play *p, void (*act)(struct play *p, struct vcpu *v))
{
    char error[MACHINE_ERROR_SIZE] = "";

    if (!p->m) {
        struct machine_config config = config_for(p);
        p->act = act;
        create(p, &config);
    }
    struct machine_outcome outcome = machine_run(p->m, error, sizeof error);
    assert_string_equal(error, "");
    return outcome;
}

// The run must end with a host error and this in its line; the machine process is there to say so.
static void run_fails(struct play *p, void (*act)(struct play *p, struct vcpu *v), const char *words)
{
    char error[MACHINE_ERROR_SIZE] = "";
    struct machine_config config = config_for(p);

    p->act = act;
    create(p, &config);
    assert_int_equal(machine_run(p->m, error, sizeof error).end, MACHINE_END_HOST_ERROR);
    assert_non_null(strstr(error, words));
    assert_null(strchr(error, '\n'));
}

static void out8(struct vcpu *v, uint16_t port, uint8_t value)
{
    v->exits.port_write(v->exits.opaque, port, 1, value);
}

static uint8_t in8(struct vcpu *v, uint16_t port)
{
    return (uint8_t)v->exits.port_read(v->exits.opaque, port, 1);
}

static void power_off(struct vcpu *v)
{
    v->exits.port_write(v->exits.opaque, 0x604, 2, 0x2000);
}

// ---- what crosses
static volatile uint64_t private_word;

static void act_chips(struct play *p, struct vcpu *v)
{
    uint64_t *seen = p->seen->value;

    private_word = 1; // of this process
    seen[0] = private_word;
    out8(v, 0x70, 0x15); // CMOS, in the machine process: 640 KiB
    seen[1] = in8(v, 0x71);
    out8(v, 0x21, 0xa5); // 8259, here
    seen[2] = in8(v, 0x21);
    seen[3] = v->exits.port_read(v->exits.opaque, 0x20, 4); // touches ports of both
    v->exits.port_write(v->exits.opaque, 0xcf8, 4, 0x80000000);
    seen[4] = v->exits.port_read(v->exits.opaque, 0xcfc, 4); // 82441FX
    seen[5] = v->exits.mmio_read(v->exits.opaque, 0xfed00000, 4);
    v->s.gpr[RBX] = 0x123456789;
    power_off(v);
    seen[6] = __atomic_load_n(&v->requests, __ATOMIC_ACQUIRE) & REQ_EXIT;
}

static void accesses_reach_chips_on_both_sides(void **state)
{
    struct play *p = *state;
    const uint64_t *seen = p->seen->value;

    assert_int_equal(run(p, act_chips).end, MACHINE_END_POWERED_OFF);
    assert_int_equal(seen[0], 1);
    assert_int_equal(private_word, 0);
    assert_int_equal(seen[1], 640 & 0xff);
    assert_int_equal(seen[2], 0xa5);
    assert_int_equal(seen[3] >> 16, 0xffff);
    assert_int_equal(seen[4], 0x12378086);
    assert_int_equal(seen[5], 0x8086a201);
    assert_int_equal(seen[6], REQ_EXIT);
    assert_true(machine_vcpu(p->m)->s.gpr[RBX] == 0x123456789);
    assert_int_equal(pic_ack(p->m->pic) & 7, 7); // the cell's 8259 has come over: nothing pending
    assert_true(machine_counters(p->m)->port_exits >= 4);
    assert_true(machine_counters(p->m)->core_mmio == 1);
}

static void act_interrupt(struct play *p, struct vcpu *v)
{
    static const uint8_t icw[] = {0x11, 0x30, 0x04, 0x01};

    for (unsigned i = 0; i < 4; i++)
        out8(v, i ? 0x21 : 0x20, icw[i]);
    out8(v, 0x64, 0x60); // command byte: interrupts of the keyboard
    out8(v, 0x60, 0x01);
    out8(v, 0x64, 0xd2); // as if typed
    out8(v, 0x60, 0x1c);
    out8(v, 0x20, 0x0a); // IRR
    for (unsigned i = 0; i < 100000 && !(p->seen->value[0] = in8(v, 0x20) & 2); i++)
        in8(v, 0x64);
    in8(v, 0x60);
    p->seen->value[1] = in8(v, 0x20);
    power_off(v);
}

static void an_interrupt_line_of_a_chip_outside_reaches_the_8259_inside(void **state)
{
    struct play *p = *state;

    run(p, act_interrupt);
    assert_int_equal(p->seen->value[0], 2);
}

static void act_pm_timer(struct play *p, struct vcpu *v)
{
    uint64_t *seen = p->seen->value;

    seen[0] = v->exits.port_read(v->exits.opaque, 0x608, 4);
    seen[1] = v->exits.port_read(v->exits.opaque, 0x608, 2) | v->exits.port_read(v->exits.opaque, 0x60a, 2) << 16;
    seen[2] = v->exits.port_read(v->exits.opaque, 0x608, 4);
    seen[3] = p->m->counters.core_ports;
    v->exits.port_write(v->exits.opaque, 0xcf8, 4, 0x80000b40);
    v->exits.port_write(v->exits.opaque, 0xcfc, 4, 0x701); // PMBASE
    seen[4] = v->exits.port_read(v->exits.opaque, 0x608, 4);
    seen[5] = v->exits.port_read(v->exits.opaque, 0x708, 4);
    seen[6] = p->m->counters.core_ports;
    v->exits.port_write(v->exits.opaque, 0x704, 2, 0x2000);
}

static void the_pm_timer_is_read_inside_wherever_it_is_and_agrees_with_outside(void **state)
{
    struct play *p = *state;
    const uint64_t *seen = p->seen->value;

    run(p, act_pm_timer);
    assert_true(seen[0] <= seen[1] && seen[1] <= seen[2]);
    assert_int_equal(seen[3], 2);
    assert_int_equal(seen[4], 0xffffffff);
    assert_true(seen[5] >= seen[2] && seen[5] < 0x1000000);
    assert_int_equal(seen[6], 3);
}

static void act_print(struct play *p, struct vcpu *v)
{
    (void)p;
    for (unsigned i = 0; i < 12000; i++) // more than the ring holds
        out8(v, 0x3f8, (uint8_t)('a' + i % 23));
    power_off(v);
}

static void serial_output_comes_whole_and_in_order(void **state)
{
    struct play *p = *state;

    run(p, act_print);
    assert_int_equal(p->out_count, 12000);
    for (unsigned i = 0; i < 12000; i++)
        assert_int_equal(p->out[i], 'a' + i % 23);
}

static void act_read_line(struct play *p, struct vcpu *v)
{
    for (unsigned i = 0; i < 5; i++) {
        for (unsigned n = 0; n < 100000 && !(in8(v, 0x3fd) & 1); n++)
            in8(v, 0x71);
        p->seen->value[i] = in8(v, 0x3f8);
    }
    power_off(v);
}

static void serial_input_comes_whole_and_in_order(void **state)
{
    struct play *p = *state;
    struct machine_config config = config_for(p);

    p->act = act_read_line;
    create(p, &config);
    assert_int_equal(machine_start(p->m, (char[256]){0}, 256), 0);
    assert_int_equal(machine_serial_input(p->m, 0, (const uint8_t *)"hello", 5), 5);
    run(p, NULL);
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(p->seen->value[i], "hello"[i]);
}

static void act_reset(struct play *p, struct vcpu *v)
{
    p->seen->value[p->seen->runs] = v->s.rip;
    if (p->seen->runs == 2) {
        p->seen->value[3] = v->s.gpr[RAX];
        power_off(v);
        return;
    }
    mem_write(v->mem, ENTRY, "\x90", 1);
    v->s.rip = 0x1234;
    v->s.gpr[RAX] = 0;
    out8(v, 0xcf9, 6);
}

static void reset_starts_the_cell_anew_with_the_payload(void **state)
{
    struct play *p = *state;
    uint8_t byte;

    assert_int_equal(run(p, act_reset).end, MACHINE_END_POWERED_OFF);
    assert_int_equal(p->seen->runs, 2);
    assert_int_equal(p->seen->value[1], ENTRY);
    assert_int_equal(p->seen->value[2], ENTRY);
    assert_int_equal(p->seen->value[3], 0x2badb002);
    assert_true(mem_read(machine_memory(p->m), ENTRY, &byte, 1));
    assert_int_equal(byte, 0xf4);
}

static void act_shutdown(struct play *p, struct vcpu *v)
{
    v->s.rip = 0xabcd;
    p->stop = ENGINE_SHUTDOWN;
}

static void a_crash_report_sees_the_cells_state(void **state)
{
    struct play *p = *state;

    assert_int_equal(run(p, act_shutdown).end, MACHINE_END_CRASHED);
    assert_int_equal(p->crashes, 1);
    assert_int_equal(p->crash_rip, 0xabcd);
}

static void act_count_down(struct play *p, struct vcpu *v)
{
    if (p->seen->runs == 1) {
        out8(v, 0x43, 0x34); // counter 0, mode 2
        out8(v, 0x40, 0x34);
        out8(v, 0x40, 0x12);
        out8(v, 0x3ff, 0x5a); // scratch register of the UART
    } else {
        out8(v, 0x43, 0xe2); // its status
        p->seen->value[0] = in8(v, 0x40) & 0x3f;
        p->seen->value[1] = in8(v, 0x3ff);
        p->seen->value[2] = v->s.gpr[R9];
    }
    v->s.gpr[R9] = 99;
    out8(v, 0xf4, 1);
}

static void a_saved_state_holds_the_cells_chips_and_loads_into_another_cell(void **state)
{
    struct play *p = *state;
    struct stream save, load;
    struct machine_config config = config_for(p);

    assert_int_equal(run(p, act_count_down).end, MACHINE_END_GUEST_EXIT);
    stream_init_save(&save);
    machine_state(p->m, &save);
    assert_int_equal(save.error, 0);
    machine_destroy(p->m);
    p->m = NULL;

    create(p, &config);
    stream_init_load(&load, save.data, save.size);
    machine_state(p->m, &load);
    assert_int_equal(load.error, 0);
    run(p, NULL);
    assert_int_equal(p->seen->value[0], 0x34);
    assert_int_equal(p->seen->value[1], 0x5a);
    assert_int_equal(p->seen->value[2], 99);
    stream_free(&save);
}

static void act_wait_for_stop(struct play *p, struct vcpu *v)
{
    (void)p;
    while (!(__atomic_load_n(&v->requests, __ATOMIC_ACQUIRE) & REQ_EXIT))
        in8(v, 0x71);
}

static void *stop_it(void *opaque)
{
    struct play *p = opaque;
    while (!__atomic_load_n(&p->seen->runs, __ATOMIC_ACQUIRE))
        sched_yield();
    machine_stop(p->m, 77);
    return NULL;
}

static void another_thread_stops_the_run(void **state)
{
    struct play *p = *state;
    struct machine_config config = config_for(p);
    pthread_t thread;

    p->act = act_wait_for_stop;
    create(p, &config);
    assert_int_equal(machine_start(p->m, (char[256]){0}, 256), 0);
    pthread_create(&thread, NULL, stop_it, p);
    struct machine_outcome outcome = run(p, NULL);
    pthread_join(thread, NULL);
    assert_int_equal(outcome.end, MACHINE_END_STOPPED);
    assert_int_equal(outcome.value, 77);
}

static void on_trace_io(void *opaque, bool mmio, bool write, uint64_t address, unsigned size, uint64_t value)
{
    struct play *p = opaque;
    (void)value, (void)size;
    if (!mmio && write && (address == 0x21 || address == 0x70))
        p->accesses++;
}

static void on_trace_cpu(void *opaque, const char *what, uint64_t a, uint64_t b)
{
    struct play *p = opaque;
    snprintf(p->traced, sizeof p->traced, "%s %d %d", what, (int)a, (int)b);
}

static void act_traced(struct play *p, struct vcpu *v)
{
    (void)p;
    out8(v, 0x21, 0xff);
    out8(v, 0x70, 0x0f);
    v->exits.trace(v->exits.opaque, "nonsense\n", 4, 5);
    power_off(v);
}

static void traces_come_from_both_sides_and_are_printable(void **state)
{
    struct play *p = *state;
    struct machine_config config = config_for(p);

    config.trace_io = on_trace_io;
    config.trace_cpu = on_trace_cpu;
    p->act = act_traced;
    create(p, &config);
    run(p, NULL);
    assert_int_equal(p->accesses, 2);
    assert_string_equal(p->traced, "nonsense? 4 5");
}

static void act_pam(struct play *p, struct vcpu *v)
{
    uint64_t *seen = p->seen->value;

    seen[0] = mem_find(v->mem, 0xf0000).kind;
    v->exits.port_write(v->exits.opaque, 0xcf8, 4, 0x80000058);
    v->exits.port_write(v->exits.opaque, 0xcfd, 1, 0x10); // PAM0: read RAM at F0000h, write nowhere
    seen[1] = mem_find(v->mem, 0xf0000).kind;
    out8(v, 0x92, 0); // A20 off
    seen[2] = v->mem->a20_mask;
    power_off(v);
}

static void the_cells_memory_map_follows_the_chipset(void **state)
{
    struct play *p = *state;

    run(p, act_pam);
    assert_int_equal(p->seen->value[0], MEM_RAM);
    assert_int_equal(p->seen->value[1], MEM_ROM);
    assert_true(p->seen->value[2] == ~(1ull << 20));
}

// ---- the sandbox
static unsigned open_files(int pid)
{
    char path[64];
    unsigned n = 0;

    snprintf(path, sizeof path, "/proc/%d/fd", pid);
    DIR *d = opendir(path);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static void the_cell_has_no_open_files_and_no_environment(void **state)
{
    struct play *p = *state;
    struct machine_config config = config_for(p);
    char path[64], status[4096] = "", environment[4096];

    create(p, &config);
    assert_int_equal(machine_start(p->m, (char[256]){0}, 256), 0);
    assert_int_equal(open_files(machine_cell_pid(p->m)), 0);
    snprintf(path, sizeof path, "/proc/%d/status", machine_cell_pid(p->m));
    FILE *f = fopen(path, "r");
    assert_true(fread(status, 1, sizeof status - 1, f) > 0);
    fclose(f);
    assert_non_null(strstr(status, "NoNewPrivs:\t1"));
    assert_non_null(strstr(status, "Seccomp:\t2"));
    snprintf(path, sizeof path, "/proc/%d/environ", machine_cell_pid(p->m));
    f = fopen(path, "r");
    size_t n = fread(environment, 1, sizeof environment, f);
    fclose(f);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(environment[i], 0);
}

static void act_open(struct play *p, struct vcpu *v)
{
    (void)v;
    p->seen->value[0] = 1;
    p->seen->value[0] = 2 + (uint64_t)syscall(SYS_openat, AT_FDCWD, "/etc/passwd", O_RDONLY);
}

static void act_socket(struct play *p, struct vcpu *v)
{
    (void)v;
    p->seen->value[0] = 1;
    p->seen->value[0] = 2 + (uint64_t)syscall(SYS_socket, AF_INET, SOCK_STREAM, 0);
}

static void act_executable(struct play *p, struct vcpu *v)
{
    (void)v;
    p->seen->value[0] = 1;
    p->seen->value[0] =
        (uint64_t)mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void act_protect(struct play *p, struct vcpu *v)
{
    p->seen->value[0] = 1;
    p->seen->value[0] = 2 + (uint64_t)mprotect(v->mem->ram, 4096, PROT_READ | PROT_EXEC);
}

static void act_kill(struct play *p, struct vcpu *v)
{
    (void)v;
    p->seen->value[0] = 1;
    p->seen->value[0] = 2 + (uint64_t)syscall(SYS_tgkill, getppid(), getppid(), 0);
}

static void act_i386_call(struct play *p, struct vcpu *v)
{
    long result = 20; // getpid of the 32-bit interface; 20 is writev of the other
    (void)v;
    p->seen->value[0] = 1;
    __asm__ volatile("int $0x80" : "+a"(result) : : "memory", "r8", "r9", "r10", "r11");
    p->seen->value[0] = 2;
}

static void forbidden_system_calls_kill_the_cell_and_the_machine_says_so(void **state)
{
    struct play *p = *state;
    static void (*const acts[])(struct play *, struct vcpu *) = {act_open, act_socket,  act_executable,
                                                                 act_protect, act_kill, act_i386_call};

    for (unsigned i = 0; i < sizeof acts / sizeof acts[0]; i++) {
        if (acts[i] == act_i386_call && !host_has_i386_calls())
            continue;
        run_fails(p, acts[i], "system call that its sandbox forbids");
        assert_int_equal(p->seen->value[0], 1);
        machine_destroy(p->m);
        p->m = NULL;
    }
}

// A host whose kernel knows no seccomp(2).
static void forget_seccomp(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_seccomp, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog program = {4, filter};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static void without_seccomp_it_starts_only_with_the_sandbox_off(void **state)
{
    struct play *p = *state;
    struct machine_config config = config_for(p);
    int status;
    pid_t child = fork();

    if (!child) {
        char error[MACHINE_ERROR_SIZE] = "";
        forget_seccomp();
        p->m = machine_create(&config, error, sizeof error, NULL);
        if (!p->m || !machine_start(p->m, error, sizeof error) || !strstr(error, "give --sandbox off"))
            _exit(1);
        machine_destroy(p->m);
        config.sandbox = false;
        p->act = act_pam;
        p->m = machine_create(&config, error, sizeof error, NULL);
        _exit(p->m && machine_run(p->m, error, sizeof error).end == MACHINE_END_POWERED_OFF ? 0 : 2);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void act_allowed(struct play *p, struct vcpu *v)
{
    uint8_t *more = malloc(300000); // by brk(), or private anonymous memory

    p->seen->value[0] = more != NULL;
    if (more)
        memset(more, 1, 300000);
    mem_prefault(v->mem, 3000);
    p->seen->value[1] = v->exits.monotonic_ns(v->exits.opaque) != 0;
    free(more);
    power_off(v);
}

static void what_the_core_needs_is_allowed(void **state)
{
    struct play *p = *state;

    assert_int_equal(run(p, act_allowed).end, MACHINE_END_POWERED_OFF);
    assert_int_equal(p->seen->value[0], 1);
    assert_int_equal(p->seen->value[1], 1);
}

// ---- who survives whom
static void act_segfault(struct play *p, struct vcpu *v)
{
    (void)p, (void)v;
    uint64_t nowhere = 8;
    __asm__ volatile("movl $1, (%0)" : : "r"(nowhere) : "memory");
}

static void the_machine_survives_a_crash_of_the_cell(void **state)
{
    struct play *p = *state;
    char error[MACHINE_ERROR_SIZE] = "";

    run_fails(p, act_segfault, "signal 11");
    assert_int_equal(machine_run(p->m, error, sizeof error).end, MACHINE_END_HOST_ERROR); // and does not hang
    machine_stop(p->m, 1);
    machine_power_button(p->m);
}

static void a_destroyed_machine_leaves_no_process(void **state)
{
    struct play *p = *state;

    run(p, act_chips);
    int pid = machine_cell_pid(p->m);
    assert_int_equal(kill(pid, 0), 0);
    machine_destroy(p->m);
    p->m = NULL;
    assert_int_equal(kill(pid, 0), -1);
}

static void act_nonsense(struct play *p, struct vcpu *v)
{
    struct machine *m = p->m;
    struct cell_page *page = m->page;

    for (unsigned call = 0; call < 40; call++)
        if (call < CALL_READY || call > CALL_FAILED)
            for (unsigned size = 0; size < 20; size += 3)
                if (call)
                    cell_ask(m, (enum cell_call)call, 0x7fffffffffffffffull * (call & 1) + 0x10000 - size, size, size);
    cell_ask(m, CALL_PORT_READ, 1 << 20, 1, 0);
    cell_ask(m, CALL_PORT_READ, 0xffff, 4, 0);
    cell_ask(m, CALL_MMIO_WRITE, UINT64_MAX - 2, 8, 0);
    memset(page->text, 'x', sizeof page->text); // no end
    cell_ask(m, CALL_TRACE_CPU, 0, 0, 0);
    page->out[0].head += 1u << 30;
    cell_ask(m, CALL_FLUSH, 0, 0, 0);
    page->event_tail -= 300; // then interrupts
    page->range_tail -= 300;
    out8(v, 0x64, 0x60);
    out8(v, 0x60, 0x01);
    out8(v, 0x64, 0xd2);
    out8(v, 0x60, 0x1c);
    page->bell = UINT32_MAX;
    page->in[0].tail = 99;
    power_off(v);
}

static void nonsense_in_the_page_harms_the_guest_only(void **state)
{
    struct play *p = *state;

    assert_int_equal(run(p, act_nonsense).end, MACHINE_END_POWERED_OFF);
    assert_int_equal(machine_serial_input(p->m, 0, (const uint8_t *)"x", 1) <= 1, 1);
}

// ---- devices that write to code
// Calls a function that gives 1, lets fw_cfg's DMA write "QEMU" over the function's operand, calls it again.
__asm__(".section .rodata\n"
        ".code32\n"
        "dma_guest:\n"
        "   mov $0x8000, %esp\n"
        "   mov $100, %ecx\n"
        "1: call dma_victim\n"
        "   cmp $1, %eax\n"
        "   jne 2f\n"
        "   loop 1b\n"
        "   mov $0x514, %dx\n"
        "   xor %eax, %eax\n"
        "   out %eax, %dx\n"
        "   mov $0x518, %dx\n"
        "   mov $0x100020 + dma_descriptor - dma_guest, %eax\n"
        "   bswap %eax\n"
        "   out %eax, %dx\n"
        "   call dma_victim\n"
        "   cmp $0x554d4551, %eax\n"
        "   jne 2f\n"
        "   mov $0x21, %al\n"
        "   out %al, $0xf4\n"
        "2: mov $0x11, %al\n"
        "   out %al, $0xf4\n"
        "   hlt\n"
        "dma_descriptor:\n"
        "   .byte 0, 0, 0, 0x0a, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0x10\n"
        "   .byte (0x20 + dma_victim - dma_guest + 1) / 256\n"
        "   .byte (0x20 + dma_victim - dma_guest + 1) & 255\n"
        "dma_victim:\n"
        "   mov $1, %eax\n"
        "   ret\n"
        "dma_guest_end:\n"
        ".code64\n"
        ".previous\n");
extern const char dma_guest[], dma_guest_end[];

static void a_device_that_writes_over_translated_code_is_seen(void **state)
{
    struct play *p = *state;
    struct machine_config config = config_for(p);

    make_kernel(dma_guest, (size_t)(dma_guest_end - dma_guest));
    config.engine = &engine_software;
#ifdef __SANITIZE_ADDRESS__
    config.sandbox = false; // its run-time library makes other system calls than ours
#endif
    create(p, &config);
    struct machine_outcome outcome = run(p, NULL);
    assert_int_equal(outcome.end, MACHINE_END_GUEST_EXIT);
    assert_int_equal(outcome.value, 0x21 << 1 | 1);
}

static void translated_code_is_traced_through_a_pipe(void **state)
{
    struct play *p = *state;
    struct machine_config config = config_for(p);
    char text[4096] = "";
    FILE *f = tmpfile();

    make_kernel(dma_guest, (size_t)(dma_guest_end - dma_guest));
    config.engine = &engine_software;
    config.trace_code = f;
    config.trace_blocks = true;
#ifdef __SANITIZE_ADDRESS__
    config.sandbox = false;
#endif
    create(p, &config);
    assert_int_equal(run(p, NULL).end, MACHINE_END_GUEST_EXIT);
    machine_destroy(p->m); // the last of it has come
    p->m = NULL;
    rewind(f);
    assert_true(fread(text, 1, sizeof text - 1, f) > 0);
    fclose(f);
    assert_non_null(strstr(text, "block rip 100020"));
    assert_non_null(strstr(text, "guest 000000100020  mov      esp, 0x8000"));
}

static FILE *perf_file;
static int perf_pid;

static FILE *on_perf_map(void *opaque, int pid, char *error, size_t error_size)
{
    (void)opaque, (void)error, (void)error_size;
    perf_pid = pid;
    return perf_file;
}

static void names_of_translated_code_come_through_the_trace_pipe_apart_from_the_trace(void **state)
{
    struct play *p = *state;
    struct machine_config config = config_for(p);
    char trace[4096] = "", map[4096] = "";
    FILE *f = tmpfile();

    perf_file = tmpfile();
    make_kernel(dma_guest, (size_t)(dma_guest_end - dma_guest));
    config.engine = &engine_software;
    config.trace_code = f;
    config.trace_blocks = true;
    config.perf_map = on_perf_map;
#ifdef __SANITIZE_ADDRESS__
    config.sandbox = false;
#endif
    create(p, &config);
    assert_int_equal(run(p, NULL).end, MACHINE_END_GUEST_EXIT);
    assert_int_equal(perf_pid, cell_pid(p->m));
    machine_destroy(p->m);
    p->m = NULL;
    rewind(f);
    rewind(perf_file);
    assert_true(fread(trace, 1, sizeof trace - 1, f) > 0);
    assert_true(fread(map, 1, sizeof map - 1, perf_file) > 0);
    fclose(f);
    fclose(perf_file);
    assert_non_null(strstr(trace, "block rip 100020"));
    assert_null(strstr(trace, "guest_"));
    assert_null(strchr(trace, 0x1e));
    assert_non_null(strstr(map, " guest_100020_32_cpl0\n"));
    assert_non_null(strstr(map, " gnomon_stub_chain\n"));
    for (const char *line = map; *line; line = strchr(line, '\n') + 1) {
        unsigned long start, size;
        char name[64];
        assert_int_equal(sscanf(line, "%lx %lx %63s\n", &start, &size, name), 3);
        assert_true(start >= 0x1000 && size && start + size < 1ul << 31);
        assert_true(!strncmp(name, "guest_", 6) || !strncmp(name, "gnomon_stub_", 12));
    }
}

static FILE *refuse_perf_map(void *opaque, int pid, char *error, size_t error_size)
{
    (void)opaque, (void)pid;
    snprintf(error, error_size, "no map today");
    return NULL;
}

static void a_map_that_cannot_be_made_ends_the_start(void **state)
{
    struct play *p = *state;
    struct machine_config config = config_for(p);
    char error[MACHINE_ERROR_SIZE] = "";

    config.engine = &engine_software;
    config.perf_map = refuse_perf_map;
    create(p, &config);
    assert_true(machine_start(p->m, error, sizeof error) < 0);
    assert_string_equal(error, "no map today");
}

struct told {
    uint64_t *seen;
};

static void code_written(void *opaque, uint64_t gpa, unsigned len)
{
    struct told *t = opaque;
    t->seen[0]++;
    t->seen[1] = gpa;
    t->seen[2] = len;
}

static void dma(struct vcpu *v, uint32_t address, uint32_t length)
{
    uint32_t descriptor[4] = {__builtin_bswap32(0x0a), __builtin_bswap32(length), 0, __builtin_bswap32(address)};

    mem_write(v->mem, 0x5000, descriptor, sizeof descriptor);
    v->exits.port_write(v->exits.opaque, 0x514, 4, 0);
    v->exits.port_write(v->exits.opaque, 0x518, 4, __builtin_bswap32(0x5000));
}

static void act_dma(struct play *p, struct vcpu *v)
{
    struct told told = {p->seen->value};

    mem_trace_register(v->mem, (struct mem_trace_client){.written = code_written, .opaque = &told, .bit = TRACE_CODE});
    dma(v, 0x7123, 4); // nobody looks at that page
    p->seen->value[3] = p->seen->value[0];
    mem_trace_set(v->mem, 0x7000, TRACE_CODE);
    dma(v, 0x7123, 4);
    p->seen->value[4] = p->seen->value[0];
    // more ranges than the queue holds, 2 MiB from 4 MiB on: what is lost is told by page
    for (uint32_t page = 0x400000; page < 0x600000; page += PAGE_SIZE)
        mem_trace_set(v->mem, page, TRACE_CODE);
    p->seen->value[0] = 0;
    dma(v, 0x400000, 0x200000);
    mem_trace_unregister(v->mem, &told);
    p->seen->value[5] = p->seen->value[0];
    power_off(v);
}

static void writes_to_traced_pages_are_told_before_the_cell_goes_on(void **state)
{
    struct play *p = *state;
    const uint64_t *seen = p->seen->value;

    run(p, act_dma);
    assert_int_equal(seen[3], 0);
    assert_int_equal(seen[4], 1);
    assert_true(seen[5] >= 512); // each of the pages
}

#define test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        test(accesses_reach_chips_on_both_sides),
        test(an_interrupt_line_of_a_chip_outside_reaches_the_8259_inside),
        test(the_pm_timer_is_read_inside_wherever_it_is_and_agrees_with_outside),
        test(serial_output_comes_whole_and_in_order),
        test(serial_input_comes_whole_and_in_order),
        test(reset_starts_the_cell_anew_with_the_payload),
        test(a_crash_report_sees_the_cells_state),
        test(a_saved_state_holds_the_cells_chips_and_loads_into_another_cell),
        test(another_thread_stops_the_run),
        test(traces_come_from_both_sides_and_are_printable),
        test(the_cells_memory_map_follows_the_chipset),
        test(the_cell_has_no_open_files_and_no_environment),
        test(forbidden_system_calls_kill_the_cell_and_the_machine_says_so),
        test(without_seccomp_it_starts_only_with_the_sandbox_off),
        test(what_the_core_needs_is_allowed),
        test(the_machine_survives_a_crash_of_the_cell),
        test(a_destroyed_machine_leaves_no_process),
        test(nonsense_in_the_page_harms_the_guest_only),
        test(a_device_that_writes_over_translated_code_is_seen),
        test(translated_code_is_traced_through_a_pipe),
        test(names_of_translated_code_come_through_the_trace_pipe_apart_from_the_trace),
        test(a_map_that_cannot_be_made_ends_the_start),
        test(writes_to_traced_pages_are_told_before_the_cell_goes_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
