// A whole machine around a fake engine: the engine's run() plays the guest by calling the exits a guest would
// cause.
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "bios/acpi.h"
#include "cpu/cpu.h"
#include "devices/machine.h"
#include "mmu/mem.h"

#define KERNEL_BASE 0x100000u

struct play {
    struct machine *m;
    void (*act)(struct play *p, struct vcpu *v); // one run() of the guest
    unsigned runs;
    enum engine_stop stop;
    char out[256];
    size_t out_count;
    unsigned crashes;
    char why[64];
};

static struct play *playing; // the engine's functions have no argument of the test's

static int fake_attach(struct vcpu *v)
{
    (void)v;
    return 0;
}

static enum engine_stop fake_run(struct vcpu *v)
{
    playing->runs++;
    playing->stop = ENGINE_REQUESTED;
    cpu_fpu_load(v);
    playing->act(playing, v);
    cpu_fpu_save(v);
    __atomic_and_fetch(&v->requests, ~REQ_EXIT, __ATOMIC_ACQ_REL);
    return playing->stop;
}

static void fake_kick(struct vcpu *v)
{
    (void)v;
}

static void fake_detach(struct vcpu *v)
{
    (void)v;
}

static const struct engine_ops fake_engine = {"fake", fake_attach, fake_run, fake_kick, fake_detach};

static void serial_out(void *opaque, const uint8_t *data, size_t n)
{
    struct play *p = opaque;
    for (size_t i = 0; i < n && p->out_count < sizeof p->out - 1; i++)
        p->out[p->out_count++] = (char)data[i];
}

static void on_crashed(void *opaque, struct vcpu *v, const char *why)
{
    struct play *p = opaque;
    (void)v;
    p->crashes++;
    snprintf(p->why, sizeof p->why, "%s", why);
}

// A multiboot kernel of one byte: HLT at 1 MiB.
static char kernel_path[] = "/tmp/gnomon-test-XXXXXX";

static int make_kernel(void **state)
{
    const uint32_t header[8] = {0x1badb002, 0x10000, -(0x1badb002u + 0x10000), KERNEL_BASE, KERNEL_BASE,
                                0,          0,       KERNEL_BASE + 32};
    int fd = mkstemp(kernel_path);
    (void)state;

    if (fd < 0 || write(fd, header, sizeof header) != sizeof header || write(fd, "\xf4", 1) != 1)
        return -1;
    close(fd);
    return 0;
}

static int remove_kernel(void **state)
{
    (void)state;
    return unlink(kernel_path);
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
    };
}

static void create(struct play *p, const struct machine_config *config)
{
    char error[MACHINE_ERROR_SIZE] = "";
    bool usage;

    playing = p;
    p->m = machine_create(config, error, sizeof error, &usage);
    assert_string_equal(error, "");
    assert_non_null(p->m);
}

static struct machine_outcome run(struct play *p)
{
    char error[MACHINE_ERROR_SIZE] = "";
    struct machine_outcome outcome = machine_run(p->m, error, sizeof error);
    assert_string_equal(error, "");
    return outcome;
}

static void out8(struct vcpu *v, uint16_t port, uint8_t value)
{
    v->exits.port_write(v->exits.opaque, port, 1, value);
}

static uint8_t in8(struct vcpu *v, uint16_t port)
{
    return (uint8_t)v->exits.port_read(v->exits.opaque, port, 1);
}

// ---- outcomes
static void act_power_off(struct play *p, struct vcpu *v)
{
    (void)p;
    v->exits.port_write(v->exits.opaque, 0x604, 2, 0x2000);
    assert_true(__atomic_load_n(&v->requests, __ATOMIC_ACQUIRE) & REQ_EXIT);
}

static void s5_powers_off(void **state)
{
    struct play p = {.act = act_power_off};
    struct machine_config config = config_for(&p);
    (void)state;

    create(&p, &config);
    assert_int_equal(run(&p).end, MACHINE_END_POWERED_OFF);
    assert_int_equal(p.runs, 1);
    machine_destroy(p.m);
}

static void act_guest_exit(struct play *p, struct vcpu *v)
{
    (void)p;
    out8(v, 0xf4, 3);
    out8(v, 0xf4, 4); // too late
}

static void debug_exit_port_gives_the_first_status(void **state)
{
    struct play p = {.act = act_guest_exit};
    struct machine_config config = config_for(&p);
    (void)state;

    create(&p, &config);
    struct machine_outcome outcome = run(&p);
    assert_int_equal(outcome.end, MACHINE_END_GUEST_EXIT);
    assert_int_equal(outcome.value, 7);
    machine_destroy(p.m);
}

static void act_reset_then_exit(struct play *p, struct vcpu *v)
{
    assert_int_equal(v->s.rip, KERNEL_BASE + 32);
    assert_int_equal(v->s.gpr[RAX], 0x2badb002);
    if (p->runs == 2) {
        uint8_t byte;
        assert_true(mem_read(v->mem, KERNEL_BASE + 32, &byte, 1));
        assert_int_equal(byte, 0xf4); // reloaded
        out8(v, 0xf4, 0);
        return;
    }
    assert_true(mem_write(v->mem, KERNEL_BASE + 32, "\x90", 1));
    v->s.rip = 0x1234;
    out8(v, 0xcf9, 6);
}

static void reset_reloads_the_payload_and_goes_on(void **state)
{
    struct play p = {.act = act_reset_then_exit};
    struct machine_config config = config_for(&p);
    (void)state;

    create(&p, &config);
    assert_int_equal(run(&p).end, MACHINE_END_GUEST_EXIT);
    assert_int_equal(p.runs, 2);
    machine_destroy(p.m);
}

static void act_keyboard_reset(struct play *p, struct vcpu *v)
{
    (void)p;
    out8(v, 0x64, 0xfe);
}

static void reset_ends_the_run_when_asked_to(void **state)
{
    struct play p = {.act = act_keyboard_reset};
    struct machine_config config = config_for(&p);
    (void)state;

    config.reset_exits = true;
    create(&p, &config);
    assert_int_equal(run(&p).end, MACHINE_END_REBOOTED);
    machine_destroy(p.m);
}

static void act_triple_fault(struct play *p, struct vcpu *v)
{
    if (p->runs == 1)
        p->stop = ENGINE_SHUTDOWN;
    else
        out8(v, 0xf4, 0);
}

static void triple_fault_ends_or_resets_as_configured(void **state)
{
    struct play p = {.act = act_triple_fault};
    struct machine_config config = config_for(&p);
    (void)state;

    create(&p, &config);
    assert_int_equal(run(&p).end, MACHINE_END_CRASHED);
    assert_int_equal(p.crashes, 1);
    assert_string_equal(p.why, "triple fault");
    machine_destroy(p.m);

    p.runs = p.crashes = 0;
    config.on_crash = MACHINE_CRASH_RESET;
    create(&p, &config);
    assert_int_equal(run(&p).end, MACHINE_END_GUEST_EXIT);
    assert_int_equal(p.crashes, 1);
    assert_int_equal(p.runs, 2);
    machine_destroy(p.m);
}

static void act_panic(struct play *p, struct vcpu *v)
{
    (void)p;
    assert_int_equal(in8(v, 0x505) & 1, 1);
    out8(v, 0x505, 1);
}

static void *stop_thread(void *opaque)
{
    machine_stop(opaque, 8);
    return NULL;
}

static void crashed_machine_that_halts_waits_for_stop(void **state)
{
    struct play p = {.act = act_panic};
    struct machine_config config = config_for(&p);
    pthread_t thread;
    (void)state;

    config.on_crash = MACHINE_CRASH_HALT;
    create(&p, &config);
    assert_int_equal(pthread_create(&thread, NULL, stop_thread, p.m), 0);
    struct machine_outcome outcome = run(&p);
    pthread_join(thread, NULL);
    assert_int_equal(outcome.end, MACHINE_END_STOPPED);
    assert_int_equal(outcome.value, 8);
    machine_destroy(p.m);
}

static void act_stop(struct play *p, struct vcpu *v)
{
    (void)v;
    machine_stop(p->m, 10);
}

static void stop_gives_its_value_and_the_run_can_go_on(void **state)
{
    struct play p = {.act = act_stop};
    struct machine_config config = config_for(&p);
    (void)state;

    create(&p, &config);
    struct machine_outcome outcome = run(&p);
    assert_int_equal(outcome.end, MACHINE_END_STOPPED);
    assert_int_equal(outcome.value, 10);
    p.act = act_power_off;
    assert_int_equal(run(&p).end, MACHINE_END_POWERED_OFF);
    machine_destroy(p.m);
}

// ---- wires
static void act_serial(struct play *p, struct vcpu *v)
{
    (void)p;
    for (const char *s = "hello"; *s; s++)
        out8(v, 0x3f8, (uint8_t)*s);
    assert_int_equal(in8(v, 0x2fd) & 0x60, 0x60);
    // Input left by the host arrives with the next look at the UART.
    assert_int_equal(in8(v, 0x3fd) & 1, 0);
    assert_int_equal(machine_serial_input(p->m, 0, (const uint8_t *)"ab", 2), 2);
    out8(v, 0x3fb, 0x03);
    assert_int_equal(in8(v, 0x3fd) & 1, 1);
    assert_int_equal(in8(v, 0x3f8), 'a');
    assert_int_equal(in8(v, 0x3f8), 'b');
    assert_int_equal(in8(v, 0x3fd) & 1, 0);
    out8(v, 0xf4, 0);
}

static void serial_ports_talk_to_the_host(void **state)
{
    struct play p = {.act = act_serial};
    struct machine_config config = config_for(&p);
    (void)state;

    create(&p, &config);
    assert_int_equal(run(&p).end, MACHINE_END_GUEST_EXIT);
    assert_string_equal(p.out, "hello");
    machine_destroy(p.m);
}

static void act_serial_irq(struct play *p, struct vcpu *v)
{
    // 8259A: ICW1-4, vectors 20h/28h, only IRQ 4 open.
    static const uint8_t init[][2] = {{0x20, 0x11}, {0x21, 0x20}, {0x21, 0x04}, {0x21, 0x01}, {0x21, 0xef},
                                      {0xa0, 0x11}, {0xa1, 0x28}, {0xa1, 0x02}, {0xa1, 0x01}, {0xa1, 0xff}};
    (void)p;

    for (unsigned n = 0; n < sizeof init / sizeof init[0]; n++)
        out8(v, init[n][0], init[n][1]);
    __atomic_and_fetch(&v->requests, ~REQ_INTR, __ATOMIC_ACQ_REL);
    assert_false(v->pic_intr);
    out8(v, 0x3fc, 0x08); // OUT2
    out8(v, 0x3f9, 0x02); // THRE interrupt
    assert_true(v->pic_intr);
    assert_true(__atomic_load_n(&v->requests, __ATOMIC_ACQUIRE) & REQ_INTR);
    assert_int_equal(v->exits.pic_ack(v->exits.opaque), 0x24);
    assert_false(v->pic_intr);
    out8(v, 0xf4, 0);
}

static void uart_interrupt_reaches_the_8259_and_the_cpu(void **state)
{
    struct play p = {.act = act_serial_irq};
    struct machine_config config = config_for(&p);
    (void)state;

    create(&p, &config);
    assert_int_equal(run(&p).end, MACHINE_END_GUEST_EXIT);
    machine_destroy(p.m);
}

static void act_look_around(struct play *p, struct vcpu *v)
{
    (void)p;
    // I/O APIC and local APIC version, HPET vendor, host bridge, CMOS memory size, unclaimed port.
    v->exits.mmio_write(v->exits.opaque, 0xfec00000, 4, 1);
    assert_int_equal(v->exits.mmio_read(v->exits.opaque, 0xfec00010, 4) & 0xff00ff, 0x170011);
    assert_int_equal(v->exits.mmio_read(v->exits.opaque, 0xfee00030, 4) & 0xf0, 0x10);
    assert_int_equal(v->exits.mmio_read(v->exits.opaque, 0xfed00000, 4) >> 16, 0x8086);
    v->exits.port_write(v->exits.opaque, 0xcf8, 4, 0x80000000);
    assert_int_equal(v->exits.port_read(v->exits.opaque, 0xcfc, 4), 0x12378086);
    out8(v, 0x70, 0x31);
    assert_int_equal(in8(v, 0x71), (15 << 10) >> 8);
    assert_int_equal(in8(v, 0x80), 0xff);
    assert_int_equal(in8(v, 0x402), 0xe9);
    assert_int_equal(v->exits.mmio_read(v->exits.opaque, 0xa0000, 4), 0xffffffff);
    out8(v, 0xf4, 0);
}

static void chips_are_where_a_pc_has_them(void **state)
{
    struct play p = {.act = act_look_around};
    struct machine_config config = config_for(&p);
    (void)state;

    create(&p, &config);
    assert_int_equal(run(&p).end, MACHINE_END_GUEST_EXIT);
    machine_destroy(p.m);
}

static void two_machines_exist_side_by_side(void **state)
{
    struct play a = {.act = act_guest_exit}, b = {.act = act_power_off};
    struct machine_config config_a = config_for(&a), config_b = config_for(&b);
    (void)state;

    create(&a, &config_a);
    create(&b, &config_b);
    assert_ptr_not_equal(machine_vcpu(a.m), machine_vcpu(b.m));
    assert_true((uintptr_t)machine_vcpu(b.m) < 1ull << 31);
    assert_true((uintptr_t)machine_vcpu(b.m)->tlb < 1ull << 31);
    playing = &a;
    assert_int_equal(run(&a).end, MACHINE_END_GUEST_EXIT);
    playing = &b;
    assert_int_equal(run(&b).end, MACHINE_END_POWERED_OFF);
    machine_destroy(a.m);
    machine_destroy(b.m);
}

// ---- state
static void act_program_chips(struct play *p, struct vcpu *v)
{
    (void)p;
    out8(v, 0x3ff, 0x5a);
    out8(v, 0x21, 0x77);
    out8(v, 0x70, 0x50);
    out8(v, 0x71, 0x99);
    v->s.gpr[R9] = 0x123456789abcdef0;
    out8(v, 0xf4, 0);
}

static void act_check_chips(struct play *p, struct vcpu *v)
{
    (void)p;
    assert_int_equal(in8(v, 0x3ff), 0x5a);
    assert_int_equal(in8(v, 0x21), 0x77);
    out8(v, 0x70, 0x50);
    assert_int_equal(in8(v, 0x71), 0x99);
    assert_int_equal(v->s.gpr[R9], 0x123456789abcdef0);
    out8(v, 0xf4, 0);
}

static void state_moves_from_one_machine_to_another(void **state)
{
    struct play a = {.act = act_program_chips}, b = {.act = act_check_chips};
    struct machine_config config_a = config_for(&a), config_b = config_for(&b);
    struct stream save, load, again;
    (void)state;

    create(&a, &config_a);
    run(&a);
    uint64_t tsc = cpu_tsc(machine_vcpu(a.m));
    stream_init_save(&save);
    machine_state(a.m, &save);
    assert_int_equal(save.error, 0);
    machine_destroy(a.m);

    create(&b, &config_b);
    stream_init_load(&load, save.data, save.size);
    machine_state(b.m, &load);
    assert_int_equal(load.error, 0);
    assert_int_equal(load.position, save.size);
    assert_true(cpu_tsc(machine_vcpu(b.m)) - tsc < 1ull << 40); // goes on, not back
    stream_init_save(&again);
    machine_state(b.m, &again);
    assert_int_equal(again.size, save.size);
    assert_int_equal(run(&b).end, MACHINE_END_GUEST_EXIT);
    machine_destroy(b.m);
    stream_free(&save);
    stream_free(&again);
}

static void cut_or_damaged_state_is_refused(void **state)
{
    struct play p = {.act = act_power_off};
    struct machine_config config = config_for(&p);
    struct stream save, load;
    (void)state;

    create(&p, &config);
    stream_init_save(&save);
    machine_state(p.m, &save);
    stream_init_load(&load, save.data, save.size / 2);
    machine_state(p.m, &load);
    assert_int_not_equal(load.error, 0);
    assert_int_equal(machine_reset(p.m, (char[64]){0}, 64), 0);
    memset(save.data, 0xff, save.size);
    stream_init_load(&load, save.data, save.size);
    machine_state(p.m, &load);
    assert_int_not_equal(load.error, 0);
    assert_int_equal(machine_reset(p.m, (char[64]){0}, 64), 0);
    assert_int_equal(run(&p).end, MACHINE_END_POWERED_OFF);
    machine_destroy(p.m);
    stream_free(&save);
}

// ---- refusals
static void expect_refusal(const struct machine_config *config, const char *text, bool is_usage)
{
    char error[MACHINE_ERROR_SIZE] = "";
    bool usage = !is_usage;

    assert_null(machine_create(config, error, sizeof error, &usage));
    assert_non_null(strstr(error, text));
    assert_null(strchr(error, '\n'));
    assert_int_equal(usage, is_usage);
}

static void what_can_not_be_made_is_one_line(void **state)
{
    struct play p = {0};
    struct machine_config config = config_for(&p);
    static const struct machine_disk disk = {"/nonexistent/disk", false, false};
    static const char *const initrds[] = {"/nonexistent/initrd"};
    (void)state;

    config.kernel = NULL;
    expect_refusal(&config, "nothing to boot", true);
    config.kernel = "/nonexistent/kernel";
    expect_refusal(&config, "/nonexistent/kernel", true);
    config = config_for(&p);
    config.bios = "/nonexistent/bios";
    expect_refusal(&config, "both", true);
    config.kernel = NULL;
    expect_refusal(&config, "/nonexistent/bios", true);
    config.bios = "/dev/zero";
    expect_refusal(&config, "not a regular file", true);
    config = config_for(&p);
    config.memory_bytes = 12345;
    expect_refusal(&config, "memory", true);
    config.memory_bytes = 1ull << 45;
    config.cpu = "host";
    expect_refusal(&config, "this host has", false);
    config = config_for(&p);
    config.cpu = "z80";
    expect_refusal(&config, "z80", true);
    config = config_for(&p);
    config.disks = &disk;
    config.disk_count = 1;
    expect_refusal(&config, "/nonexistent/disk", true);
    config = config_for(&p);
    config.initrds = initrds;
    config.initrd_count = 1;
    expect_refusal(&config, "/nonexistent/initrd", true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(s5_powers_off),
        cmocka_unit_test(debug_exit_port_gives_the_first_status),
        cmocka_unit_test(reset_reloads_the_payload_and_goes_on),
        cmocka_unit_test(reset_ends_the_run_when_asked_to),
        cmocka_unit_test(triple_fault_ends_or_resets_as_configured),
        cmocka_unit_test(crashed_machine_that_halts_waits_for_stop),
        cmocka_unit_test(stop_gives_its_value_and_the_run_can_go_on),
        cmocka_unit_test(serial_ports_talk_to_the_host),
        cmocka_unit_test(uart_interrupt_reaches_the_8259_and_the_cpu),
        cmocka_unit_test(chips_are_where_a_pc_has_them),
        cmocka_unit_test(two_machines_exist_side_by_side),
        cmocka_unit_test(state_moves_from_one_machine_to_another),
        cmocka_unit_test(cut_or_damaged_state_is_refused),
        cmocka_unit_test(what_can_not_be_made_is_one_line),
    };
    // A deadline's signal means nothing to the fake engine.
    signal(SIGRTMIN, SIG_IGN);
    return cmocka_run_group_tests(tests, make_kernel, remove_kernel);
}
