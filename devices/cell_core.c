// The cell's side of its page (devices/cell.h), with the guest's vector registers live in the host's. Accesses to
// chips of the machine process become calls; what that process has for the chips here is taken from the rings.
#include "devices/cell.h"
#include "devices/pc.h"

#include <linux/futex.h>
#include <sys/syscall.h>

#define FLUSH_NS 1000000u // a serial byte waits no longer for others

static long futex(uint32_t *word, long operation, uint32_t value)
{
    long result;
    register long r10 __asm__("r10") = 0;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"((long)SYS_futex), "D"(word), "S"(operation), "d"((long)value), "r"(r10)
                     : "rcx", "r11", "memory");
    return result;
}

static void ring_bell(struct cell_page *p, uint32_t bell)
{
    __atomic_or_fetch(&p->bell, bell, __ATOMIC_SEQ_CST);
    futex(&p->bell, FUTEX_WAKE, 1);
}

// ---- calls
uint64_t cell_ask(struct machine *m, enum cell_call call, uint64_t address, unsigned size, uint64_t value)
{
    struct cell_page *p = m->page;

    p->address = address;
    p->size = size;
    p->value = value;
    if (m->config.deterministic)
        p->now_ns = pc_clock_now(m);
    __atomic_store_n(&p->call, call, __ATOMIC_RELEASE);
    ring_bell(p, BELL_CALL);
    while (!__atomic_load_n(&p->answer, __ATOMIC_ACQUIRE))
        futex(&p->answer, FUTEX_WAIT, 0);
    __atomic_store_n(&p->answer, 0, __ATOMIC_RELAXED);
    value = p->value;
    if (call < CALL_READY) // the others are answered by new state, which comes first
        cell_attend(m);
    if (call < CALL_READY && m->config.deterministic) {
        m->due_ns = p->due_ns;
        pc_count_limit(m);
    }
    return value;
}

static void set_text(struct cell_page *p, const char *text)
{
    unsigned n = 0;

    for (; text[n] && n < CELL_TEXT - 1; n++)
        p->text[n] = text[n];
    p->text[n] = 0;
}

void cell_trace(struct machine *m, const char *what, uint64_t a, uint64_t b)
{
    set_text(m->page, what);
    cell_ask(m, CALL_TRACE_CPU, a, 0, b);
}

static void trace_access(struct machine *m, enum cell_call call, bool write, uint64_t address, unsigned size,
                         uint64_t value)
{
    if (!m->config.trace_io)
        return;
    m->page->write = write;
    cell_ask(m, call, address, size, value);
}

// ---- ports
static bool local_port(unsigned port)
{
    switch (port & ~1u) {
    case 0x20:
    case 0xa0:
    case 0x4d0:
    case 0x40:
    case 0x42: return true;
    case 0x60: return port == 0x61;
    case 0xf0: return port == 0xf0;
    default: return (port & ~7u) == COM1_BASE || (port & ~7u) == COM2_BASE;
    }
}

static bool uart_port(unsigned port)
{
    return (port & ~7u) == COM1_BASE || (port & ~7u) == COM2_BASE;
}

// How many bytes from the first on have their chip in the same process as it: all, or 1 where an access touches both.
static unsigned same_side(unsigned port, unsigned size)
{
    for (unsigned i = 1; i < size; i++)
        if (local_port(port + i) != local_port(port))
            return 1;
    return size;
}

static uint32_t read_piece(struct machine *m, unsigned port, unsigned size)
{
    if (!local_port(port)) {
        m->counters.port_exits++;
        return (uint32_t)cell_ask(m, CALL_PORT_READ, port, size, 0);
    }
    m->counters.core_ports++;
    uint32_t value = bus_read(m->bus, (uint16_t)port, size);
    if (uart_port(port)) // a byte taken makes room for one that waits
        cell_drain_input(m);
    trace_access(m, CALL_TRACE_PORT, false, port, size, value);
    return value;
}

static void write_piece(struct machine *m, unsigned port, unsigned size, uint32_t value)
{
    if (!local_port(port)) {
        m->counters.port_exits++;
        cell_ask(m, CALL_PORT_WRITE, port, size, value);
        return;
    }
    m->counters.core_ports++;
    trace_access(m, CALL_TRACE_PORT, true, port, size, value);
    bus_write(m->bus, (uint16_t)port, size, value);
    if (uart_port(port)) // FIFO enabled, loopback left
        cell_drain_input(m);
}

uint32_t cell_port_read(struct machine *m, uint16_t port, unsigned size)
{
    uint32_t value = 0;

    if (port && port == m->page->pm_timer_port && size == 4) { // it is nothing but the time
        m->counters.core_ports++;
        value = piix4pm_timer_value(pc_clock_now(m));
        trace_access(m, CALL_TRACE_PORT, false, port, size, value);
        return value;
    }
    if (same_side(port, size) == size)
        return read_piece(m, port, size);
    for (unsigned i = 0; i < size; i++)
        value |= (port + i <= UINT16_MAX ? read_piece(m, port + i, 1) & 0xff : 0xff) << 8 * i;
    return value;
}

void cell_port_write(struct machine *m, uint16_t port, unsigned size, uint32_t value)
{
    if (same_side(port, size) == size) {
        write_piece(m, port, size, value);
        return;
    }
    for (unsigned i = 0; i < size; i++)
        if (port + i <= UINT16_MAX)
            write_piece(m, port + i, 1, value >> 8 * i & 0xff);
}

// ---- MMIO
static uint64_t region_read(void *opaque, uint64_t offset, unsigned size)
{
    struct cell_region *r = opaque;

    r->m->counters.mmio_exits++;
    return cell_ask(r->m, CALL_MMIO_READ, r->m->mem.region[r->index].base + offset, size, 0);
}

static void region_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct cell_region *r = opaque;

    r->m->counters.mmio_exits++;
    cell_ask(r->m, CALL_MMIO_WRITE, r->m->mem.region[r->index].base + offset, size, value);
}

const struct mmio_ops cell_mmio_ops = {region_read, region_write};

static bool local_mmio(const struct machine *m, uint64_t gpa)
{
    const struct mem_region *r = mem_find(&m->mem, gpa).region;
    return r && r->ops && r->ops != &cell_mmio_ops;
}

uint64_t cell_mmio_read(struct machine *m, uint64_t gpa, unsigned size)
{
    uint64_t value = mem_mmio_read(&m->mem, gpa, size);

    if (local_mmio(m, gpa)) {
        m->counters.core_mmio++;
        trace_access(m, CALL_TRACE_MMIO, false, gpa, size, value);
    }
    return value;
}

void cell_mmio_write(struct machine *m, uint64_t gpa, unsigned size, uint64_t value)
{
    if (local_mmio(m, gpa)) {
        m->counters.core_mmio++;
        trace_access(m, CALL_TRACE_MMIO, true, gpa, size, value);
    }
    mem_mmio_write(&m->mem, gpa, size, value);
}

// ---- serial
static uint32_t unread(const struct cell_out *o)
{
    return o->head - __atomic_load_n(&o->tail, __ATOMIC_ACQUIRE);
}

// The machine process is woken when the ring is half full, when the guest sleeps, or by a timer: a handoff for each
// byte of a boot's messages would cost more than all its other calls.
void cell_serial_write(struct machine *m, unsigned port, const uint8_t *data, size_t n)
{
    struct cell_out *o = &m->page->out[port];

    for (size_t i = 0; i < n; i++) {
        while (unread(o) >= CELL_OUT_SIZE)
            cell_ask(m, CALL_FLUSH, 0, 0, 0);
        o->data[o->head % CELL_OUT_SIZE] = data[i];
        __atomic_store_n(&o->head, o->head + 1, __ATOMIC_RELEASE);
    }
    if (unread(o) == CELL_OUT_SIZE / 2)
        ring_bell(m->page, BELL_OUTPUT);
    else if (m->flush.deadline_ns == NEVER)
        timer_arm(&m->flush, pc_clock_now(m) + FLUSH_NS);
}

void cell_flush(void *opaque, uint64_t now_ns)
{
    struct machine *m = opaque;
    (void)now_ns;

    for (unsigned n = 0; n < CELL_SERIALS; n++)
        if (unread(&m->page->out[n])) {
            ring_bell(m->page, BELL_OUTPUT);
            return;
        }
}

void cell_before_idle(struct machine *m)
{
    if (m->flush.deadline_ns == NEVER)
        return;
    timer_cancel(&m->flush);
    cell_flush(m, 0);
}

void cell_drain_input(struct machine *m)
{
    for (unsigned n = 0; n < CELL_SERIALS; n++) {
        struct cell_in *in = &m->page->in[n];
        uint32_t head = __atomic_load_n(&in->head, __ATOMIC_ACQUIRE);
        while (in->tail != head) {
            uint32_t at = in->tail % CELL_IN_SIZE, run = CELL_IN_SIZE - at;
            if (run > head - in->tail)
                run = head - in->tail;
            size_t taken = uart_receive(m->uart[n], in->data + at, run);
            if (!taken)
                break;
            __atomic_store_n(&in->tail, in->tail + (uint32_t)taken, __ATOMIC_RELEASE);
        }
    }
}

// ---- what the machine process has for us
static void follow_map(struct machine *m)
{
    struct cell_page *p = m->page;

    if (p->map_generation == m->map_seen)
        return;
    m->map_seen = p->map_generation;
    for (unsigned i = 0; i < m->mem.region_count; i++)
        mem_move(&m->mem, (int)i, p->base[i]);
    for (unsigned i = 0; i < 16; i++)
        if (p->pam[i] & MEM_PAM_SET)
            mem_set_pam(&m->mem, 0xc0000 + 0x4000ull * i, 0x4000, p->pam[i] & MEM_PAM_READ,
                        p->pam[i] & MEM_PAM_WRITE);
    mem_set_a20(&m->mem, p->a20);
    mmu_flush_all(m->v, true);
}

static void traced_written(struct machine *m, uint64_t gpa, uint64_t len)
{
    mem_trace_written(&m->mem, gpa, (unsigned)len);
}

static void follow_writes(struct machine *m)
{
    struct cell_page *p = m->page;
    uint32_t head = __atomic_load_n(&p->range_head, __ATOMIC_ACQUIRE);

    while (p->range_tail != head) {
        uint32_t at = p->range_tail % CELL_RANGES;
        traced_written(m, p->range[at].gpa, p->range[at].len);
        __atomic_store_n(&p->range_tail, p->range_tail + 1, __ATOMIC_RELEASE);
    }
    if (!__atomic_load_n(&p->ranges_lost, __ATOMIC_RELAXED) ||
        !__atomic_exchange_n(&p->ranges_lost, 0, __ATOMIC_ACQ_REL))
        return;
    for (uint64_t page = 0; page < m->mem.ram_size / PAGE_SIZE; page++) {
        uint64_t at = page * PAGE_SIZE;
        if (mem_trace_bits(&m->mem, page))
            traced_written(m, at < m->mem.low_size ? at : (1ull << 32) + at - m->mem.low_size, PAGE_SIZE);
    }
}

static void follow_levels(struct machine *m)
{
    const uint32_t *level = m->page->level;
    static const uint8_t chips[] = {1, 8, 9, 12}; // keyboard, clock, ACPI, mouse

    for (unsigned i = 0; i < sizeof chips; i++)
        pc_isa_line(m, chips[i], level[EVENT_CHIP] >> chips[i] & 1);
    for (int n = 0; n < 16; n++)
        pc_pci_isa_line(m, n, level[EVENT_PCI_ISA] >> n & 1);
    for (int n = 0; n < 24; n++)
        pc_pci_gsi_line(m, n, level[EVENT_PCI_GSI] >> n & 1);
}

static void follow_events(struct machine *m)
{
    struct cell_page *p = m->page;
    uint32_t head = __atomic_load_n(&p->event_head, __ATOMIC_ACQUIRE);

    while (p->event_tail != head) {
        const struct cell_event *e = &p->event[p->event_tail % CELL_EVENTS];
        switch (e->kind) {
        case EVENT_CHIP: pc_isa_line(m, (int)e->n, (int)e->level); break;
        case EVENT_PCI_ISA: pc_pci_isa_line(m, (int)e->n, (int)e->level); break;
        case EVENT_PCI_GSI: pc_pci_gsi_line(m, (int)e->n, (int)e->level); break;
        default: pc_msi(m, e->address, e->data); break;
        }
        __atomic_store_n(&p->event_tail, p->event_tail + 1, __ATOMIC_RELEASE);
    }
    if (__atomic_load_n(&p->lines_lost, __ATOMIC_RELAXED) &&
        __atomic_exchange_n(&p->lines_lost, 0, __ATOMIC_ACQ_REL))
        follow_levels(m);
}

void cell_attend(struct machine *m)
{
    struct cell_page *p = m->page;

    __atomic_store_n(&p->attention, 0, __ATOMIC_SEQ_CST); // before the look: what comes after it has its own kick
    follow_map(m);
    follow_writes(m);
    follow_events(m);
    cell_drain_input(m);
    if (__atomic_load_n(&p->stop, __ATOMIC_ACQUIRE))
        pc_raise(m, REQ_EXIT);
}
