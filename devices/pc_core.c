// What of the PC runs beside the vCPU, with the guest's vector registers live in the host's: the wires
// between the interrupt controllers, the clock, and the exits. An access to a chip that is itself compiled
// for that costs a call; for any other the exit puts the guest's registers away first.
#include "devices/pc.h"
#include "cpu/planted.h"

#include <sys/syscall.h>

#define PAGE 0xfffull

// ---- wires. ISA interrupt n reaches 8259 input n and I/O APIC input n, except that interrupt 0 is on
// input 2.
void pc_raise(struct machine *m, uint32_t requests)
{
    if (m->role == PC_MACHINE) { // a request of the guest's to the machine as a whole
        cell_request_stop(m);
        return;
    }
    __atomic_or_fetch(&m->v->requests, requests, __ATOMIC_RELEASE);
}

static void drive_gsi(struct machine *m, int gsi, unsigned from, int level)
{
    if (gsi < 0 || gsi >= 24)
        return;
    m->gsi[gsi] = (uint8_t)(level ? m->gsi[gsi] | from : m->gsi[gsi] & ~from);
    ioapic_set_irq(m->ioapic, gsi, m->gsi[gsi] != 0);
}

static void drive_pic(struct machine *m, int irq, unsigned from, int level)
{
    if (irq < 0 || irq >= 16 || irq == 2)
        return;
    m->isa[irq] = (uint8_t)(level ? m->isa[irq] | from : m->isa[irq] & ~from);
    pic_set_irq(m->pic, irq, m->isa[irq] != 0);
}

static void drive_isa(struct machine *m, int irq, unsigned from, int level)
{
    drive_pic(m, irq, from, level);
    if (irq != 2)
        drive_gsi(m, irq == 0 ? 2 : irq, from, level);
}

void pc_isa_line(void *opaque, int irq, int level)
{
    struct machine *m = opaque;

    if (m->role == PC_MACHINE) {
        cell_send_line(m, EVENT_CHIP, irq, level);
        return;
    }
    if (irq == 8) { // the HPET takes it over in legacy replacement mode (IA-PC HPET 2.3.5)
        m->rtc_level = level;
        level = level && !m->hpet_legacy;
    }
    drive_isa(m, irq, FROM_CHIP, level);
}

void pc_pci_isa_line(void *opaque, int irq, int level)
{
    struct machine *m = opaque;

    if (m->role == PC_MACHINE)
        cell_send_line(m, EVENT_PCI_ISA, irq, level);
    else
        drive_pic(m, irq, FROM_PCI, level);
}

void pc_pci_gsi_line(void *opaque, int gsi, int level)
{
    struct machine *m = opaque;

    if (m->role == PC_MACHINE)
        cell_send_line(m, EVENT_PCI_GSI, gsi, level);
    else
        drive_gsi(m, gsi, FROM_PCI, level);
}

void pc_hpet_line(void *opaque, int gsi, int level)
{
    struct machine *m = opaque;

    if (m->hpet_legacy && (gsi == 2 || gsi == 8))
        drive_isa(m, gsi == 2 ? 0 : 8, FROM_HPET, level);
    else
        drive_gsi(m, gsi, FROM_HPET, level);
}

void pc_hpet_legacy(void *opaque, bool enabled)
{
    struct machine *m = opaque;

    if (m->hpet_legacy && !enabled) {
        drive_isa(m, 0, FROM_HPET, 0);
        drive_isa(m, 8, FROM_HPET, 0);
    }
    m->hpet_legacy = enabled;
    pit_set_irq0_enabled(m->pit, !enabled);
    drive_isa(m, 8, FROM_CHIP, m->rtc_level && !enabled);
}

void pc_intr_line(void *opaque, int n, int level)
{
    struct machine *m = opaque;
    (void)n;

    m->v->pic_intr = level;
    if (m->v->lapic)
        lapic_set_lint0(m->v->lapic, level);
    if (level)
        pc_raise(m, REQ_INTR);
}

void pc_ignne_line(void *opaque, int n, int level)
{
    struct machine *m = opaque;
    (void)n;

    if (m->v->ignne == (level != 0))
        return;
    m->v->ignne = level;
    m->v->mode_gen++;
}

void pc_apic_deliver(void *opaque, const struct apic_message *message)
{
    struct machine *m = opaque;

    if (m->v->lapic)
        lapic_deliver(m->v->lapic, message);
}

void pc_apic_eoi(void *opaque, uint8_t vector)
{
    struct machine *m = opaque;
    ioapic_eoi(m->ioapic, vector);
}

void pc_apic_request(void *opaque, uint32_t bits)
{
    pc_raise(opaque, bits);
}

void pc_msi(void *opaque, uint64_t address, uint32_t data)
{
    struct machine *m = opaque;

    if ((address >> 20) != 0xfee)
        return;
    if (m->role == PC_MACHINE) {
        cell_send_msi(m, address, data);
        return;
    }
    struct apic_message message = apic_msi_message(address, data);
    pc_apic_deliver(opaque, &message);
}

// ---- clock
static uint64_t clock_ns(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t); // the vDSO's: no vector registers
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t pc_monotonic_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

uint64_t pc_clock_now(void *opaque)
{
    struct machine *m = opaque;

    if (m->config.deterministic)
        return m->role == PC_MACHINE ? m->told_ns : cpu_counted_ns(m->v);
    return pc_monotonic_ns() - m->clock_base_ns;
}

static long system_call4(long number, long a, long b, const void *c, long d)
{
    long result;
    register long r10 __asm__("r10") = d;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
                     : "rcx", "r11", "memory");
    return result;
}

static uint64_t first_deadline(const struct machine *m)
{
    uint64_t first_ns = m->clock.head ? m->clock.head->deadline_ns : NEVER;

    if (m->role == PC_CELL)
        return m->due_ns < first_ns ? m->due_ns : first_ns;
    return m->device_clock.head && m->device_clock.head->deadline_ns < first_ns ? m->device_clock.head->deadline_ns : first_ns;
}

void pc_count_limit(struct machine *m)
{
    uint64_t first_ns = first_deadline(m), skipped_ns = m->v->count.skipped_ns;

    m->v->count.due = first_ns == NEVER ? COUNT_NONE : first_ns > skipped_ns ? first_ns - skipped_ns : 0;
    cpu_count_set_limit(m->v);
}

void pc_clock_rearm(void *opaque, uint64_t deadline_ns)
{
    struct machine *m = opaque;

    if (m->config.deterministic) {
        if (m->role != PC_MACHINE && m->v) // else the cell is told with the answer
            pc_count_limit(m);
        return;
    }
    if (deadline_ns >= m->programmed_ns)
        return;
    m->programmed_ns = deadline_ns;
    if (m->host_timer < 0)
        return;
    // A deadline of this century, whatever the guest wrote; zero would disarm.
    uint64_t limit = 3000000000ull * 1000000000u,
             at = deadline_ns < limit ? deadline_ns + m->clock_base_ns : limit;
    struct itimerspec spec = {
        .it_value = {.tv_sec = (time_t)(at / 1000000000u), .tv_nsec = (long)(at % 1000000000u)}};

    m->counters.timer_rearms++;
    system_call4(SYS_timer_settime, m->host_timer, TIMER_ABSTIME, &spec, 0);
}

// ---- exits
struct passage {      // through which an access leaves translated code
    uint64_t started; // TSC
};

static struct passage leave(struct machine *m)
{
    cpu_fpu_save(m->v);
    return (struct passage){__builtin_ia32_rdtsc()};
}

static void come_back(struct machine *m, struct passage p)
{
    uint64_t cycles = __builtin_ia32_rdtsc() - p.started;

    m->counters.device_ns += (uint64_t)((unsigned __int128)cycles * m->model->host_ns_per_tsc_q32 >> 32);
    cpu_fpu_load(m->v);
}

// Ports whose whole path, bus included, uses general registers only: 8259 pair, ELCR, 8254 with port 61h, F0h.
static bool core_port(const struct machine *m, unsigned port, unsigned size)
{
    unsigned last = port + size - 1;

    if (m->config.trace_io)
        return false;
    switch (port & ~1u) {
    case 0x20:
    case 0xa0:
    case 0x4d0: return (last & ~1u) == (port & ~1u);
    case 0x40:
    case 0x42: return last <= 0x43;
    case 0x60: return port == 0x61 && size == 1;
    case 0xf0: return port == 0xf0 && size == 1;
    default: return false;
    }
}

static bool core_mmio(const struct machine *m, uint64_t gpa)
{
    uint64_t page = gpa & ~PAGE;
    return !m->config.trace_io && (page == LAPIC_BASE || page == IOAPIC_BASE || page == HPET_BASE);
}

static bool uart_port(unsigned port)
{
    return (port & ~7u) == COM1_BASE || (port & ~7u) == COM2_BASE;
}

static uint32_t port_read(struct machine *m, uint16_t port, unsigned size)
{
    if (m->role == PC_CELL)
        return cell_port_read(m, port, size);
    if (core_port(m, port, size)) {
        m->counters.core_ports++;
        return bus_read(m->bus, port, size);
    }
    struct passage p = leave(m);
    m->counters.port_exits++;
    uint32_t value = bus_read(m->bus, port, size);
    if (uart_port(port)) // a byte taken makes room for one that waits
        pc_drain_input(m);
    if (m->config.trace_io)
        m->config.trace_io(m->config.opaque, false, false, port, size, value);
    come_back(m, p);
    return value;
}

static void port_write(struct machine *m, uint16_t port, unsigned size, uint32_t value)
{
    if (m->role == PC_CELL) {
        cell_port_write(m, port, size, value);
        return;
    }
    if (core_port(m, port, size)) {
        m->counters.core_ports++;
        bus_write(m->bus, port, size, value);
        return;
    }
    struct passage p = leave(m);
    m->counters.port_exits++;
    if (m->config.trace_io)
        m->config.trace_io(m->config.opaque, false, true, port, size, value);
    bus_write(m->bus, port, size, value);
    if (uart_port(port)) // FIFO enabled, loopback left
        pc_drain_input(m);
    come_back(m, p);
}

static uint64_t mmio_read(struct machine *m, uint64_t gpa, unsigned size)
{
    if (m->role == PC_CELL)
        return cell_mmio_read(m, gpa, size);
    if (core_mmio(m, gpa)) {
        m->counters.core_mmio++;
        return mem_mmio_read(&m->mem, gpa, size);
    }
    struct passage p = leave(m);
    m->counters.mmio_exits++;
    uint64_t value = mem_mmio_read(&m->mem, gpa, size);
    if (m->config.trace_io)
        m->config.trace_io(m->config.opaque, true, false, gpa, size, value);
    come_back(m, p);
    return value;
}

static void mmio_write(struct machine *m, uint64_t gpa, unsigned size, uint64_t value)
{
    if (m->role == PC_CELL) {
        cell_mmio_write(m, gpa, size, value);
        return;
    }
    if (core_mmio(m, gpa)) {
        m->counters.core_mmio++;
        mem_mmio_write(&m->mem, gpa, size, value);
        return;
    }
    struct passage p = leave(m);
    m->counters.mmio_exits++;
    if (m->config.trace_io)
        m->config.trace_io(m->config.opaque, true, true, gpa, size, value);
    mem_mmio_write(&m->mem, gpa, size, value);
    come_back(m, p);
}

static uint32_t exit_port_read(void *opaque, uint16_t port, unsigned size)
{
    struct machine *m = opaque;
    enum vcpu_doing before = vcpu_does(m->v, DOING_DEVICES);
    uint32_t value = port_read(m, port, size) ^ (PLANTED(port_value) && port == 0x402);

    vcpu_does(m->v, before);
    return value;
}

static void exit_port_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    struct machine *m = opaque;
    enum vcpu_doing before = vcpu_does(m->v, DOING_DEVICES);

    port_write(m, port, size, value);
    vcpu_does(m->v, before);
}

static uint64_t exit_mmio_read(void *opaque, uint64_t gpa, unsigned size)
{
    struct machine *m = opaque;
    enum vcpu_doing before = vcpu_does(m->v, DOING_DEVICES);
    uint64_t value = mmio_read(m, gpa, size);

    vcpu_does(m->v, before);
    return value;
}

static void exit_mmio_write(void *opaque, uint64_t gpa, unsigned size, uint64_t value)
{
    struct machine *m = opaque;
    enum vcpu_doing before = vcpu_does(m->v, DOING_DEVICES);

    mmio_write(m, gpa, size, value);
    vcpu_does(m->v, before);
}

static int exit_pic_ack(void *opaque)
{
    struct machine *m = opaque;
    return pic_ack(m->pic);
}

static void exit_ferr(void *opaque, bool level)
{
    struct machine *m = opaque;
    ferr_set(m->ferr, level);
}

static uint64_t exit_monotonic_ns(void *opaque)
{
    struct machine *m = opaque;
    return m->config.deterministic ? pc_clock_now(m) : pc_monotonic_ns();
}

static uint64_t exit_realtime_ns(void *opaque)
{
    struct machine *m = opaque;
    return m->config.deterministic ? m->config.epoch_s * 1000000000u + pc_clock_now(m) : clock_ns(CLOCK_REALTIME);
}

static void exit_trace(void *opaque, const char *what, uint64_t a, uint64_t b)
{
    struct machine *m = opaque;

    if (!m->config.trace_cpu)
        return;
    if (m->role == PC_CELL) {
        cell_trace(m, what, a, b);
        return;
    }
    struct passage p = leave(m);
    m->config.trace_cpu(m->config.opaque, what, a, b);
    come_back(m, p);
}

struct vcpu_exits pc_exits(struct machine *m)
{
    return (struct vcpu_exits){
        .port_read = exit_port_read,
        .port_write = exit_port_write,
        .mmio_read = exit_mmio_read,
        .mmio_write = exit_mmio_write,
        .pic_ack = exit_pic_ack,
        .ferr = exit_ferr,
        .monotonic_ns = exit_monotonic_ns,
        .realtime_ns = exit_realtime_ns,
        .trace = exit_trace,
        .opaque = m,
    };
}

void pc_serial_write(void *opaque, const uint8_t *data, size_t n)
{
    struct pc_serial *serial = opaque;
    const struct char_out *out = &serial->m->config.serial[serial->port];

    if (!out->write)
        return;
    if (serial->m->role == PC_CELL)
        cell_serial_write(serial->m, serial->port, data, n);
    else
        out->write(out->opaque, data, n);
}

static uint64_t lapic_page_read(void *opaque, uint64_t offset, unsigned size)
{
    struct machine *m = opaque;
    return lapic_mmio_read(m->v->lapic, offset, size);
}

static void lapic_page_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct machine *m = opaque;
    lapic_mmio_write(m->v->lapic, offset, size, value);
}

const struct mmio_ops pc_lapic_ops = {lapic_page_read, lapic_page_write};
