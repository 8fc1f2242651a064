// 16550A UART (National PC16550D datasheet). The far end takes a byte the moment it is written, so the
// transmitter is always empty; bytes from the host come in as fast as the guest makes room. OUT2 gates the
// interrupt, as on a PC.
#include "devices/chips.h"
#include <stdlib.h>

enum uart_register {
    UART_DATA, // RBR, THR; DLL when LCR.DLAB
    UART_IER,  // DLM when LCR.DLAB
    UART_IIR,  // FCR
    UART_LCR,
    UART_MCR,
    UART_LSR,
    UART_MSR,
    UART_SCR,
};
#define PORTS 8

#define IER_ERBFI 0x01
#define IER_ETBEI 0x02
#define IER_ELSI  0x04
#define IER_EDSSI 0x08

#define IIR_MODEM_STATUS 0x00
#define IIR_NONE         0x01
#define IIR_THRE         0x02
#define IIR_DATA         0x04
#define IIR_LINE_STATUS  0x06
#define IIR_TIMEOUT      0x0c
#define IIR_FIFOS        0xc0

#define FCR_ENABLE        0x01
#define FCR_RESET_RECEIVE 0x02
#define FCR_TRIGGER_SHIFT 6

#define LCR_WLS  0x03
#define LCR_STB  0x04
#define LCR_PEN  0x08
#define LCR_DLAB 0x80

#define MCR_DTR      0x01
#define MCR_RTS      0x02
#define MCR_OUT1     0x04
#define MCR_OUT2     0x08
#define MCR_LOOP     0x10
#define MCR_WRITABLE 0x1f

#define LSR_DR   0x01
#define LSR_OE   0x02
#define LSR_THRE 0x20
#define LSR_TEMT 0x40

#define MSR_DCTS 0x01
#define MSR_DDSR 0x02
#define MSR_TERI 0x04
#define MSR_DDCD 0x08
#define MSR_CTS  0x10
#define MSR_DSR  0x20
#define MSR_RI   0x40
#define MSR_DCD  0x80

#define FIFO_BYTES 16u
#define MAX_BAUD   115200u // 1.8432 MHz / 16
#define NS         1000000000u

struct uart {
    struct bus *bus;
    struct timer_queue *clock;
    struct timer timeout; // of characters in the FIFO
    struct irq_line irq;
    struct char_out out;
    uint16_t base;
    uint8_t dll, dlm, ier, lcr, mcr, msr, scr;
    bool fifo_enabled;
    uint8_t trigger; // bytes
    bool overrun;
    bool thre_pending; // the transmitter became empty and nobody was told
    bool timed_out;
    uint8_t fifo[FIFO_BYTES]; // ring; one byte of it without FIFOs
    uint32_t first, count;
};

// ---- interrupts

static bool loopback(const struct uart *u)
{
    return u->mcr & MCR_LOOP;
}

// Highest-priority source (table 5).
static uint8_t interrupt_id(const struct uart *u)
{
    if ((u->ier & IER_ELSI) && u->overrun)
        return IIR_LINE_STATUS;
    if ((u->ier & IER_ERBFI) && u->count && (!u->fifo_enabled || u->count >= u->trigger))
        return IIR_DATA;
    if ((u->ier & IER_ERBFI) && u->timed_out)
        return IIR_TIMEOUT;
    if ((u->ier & IER_ETBEI) && u->thre_pending)
        return IIR_THRE;
    if ((u->ier & IER_EDSSI) && (u->msr & 0x0f))
        return IIR_MODEM_STATUS;
    return IIR_NONE;
}

static void update(struct uart *u)
{
    irq_set(&u->irq, interrupt_id(u) != IIR_NONE && (u->mcr & MCR_OUT2));
}

// Four character times at the programmed rate and format, counted in half bits: a 5-bit character has 1.5
// stop bits.
static uint64_t timeout_ns(const struct uart *u)
{
    unsigned wls = u->lcr & LCR_WLS;
    unsigned half_bits = 2 * (1 + 5 + wls + ((u->lcr & LCR_PEN) != 0) + 1);
    unsigned divisor = u->dlm << 8 | u->dll;

    if (u->lcr & LCR_STB)
        half_bits += wls ? 2 : 1;
    return time_scale(4ull * half_bits * (divisor ? divisor : 1), NS, 2 * MAX_BAUD);
}

// The timeout runs from the last byte in or out.
static void restart_timeout(struct uart *u)
{
    u->timed_out = false;
    if (u->fifo_enabled && u->count)
        timer_arm(&u->timeout, timer_now(u->clock) + timeout_ns(u));
    else
        timer_cancel(&u->timeout);
}

static void expired(void *opaque, uint64_t now_ns)
{
    struct uart *u = opaque;
    (void)now_ns;
    u->timed_out = u->fifo_enabled && u->count;
    update(u);
}

// ---- receiver

static unsigned fifo_size(const struct uart *u)
{
    return u->fifo_enabled ? FIFO_BYTES : 1;
}

static void receive(struct uart *u, uint8_t byte)
{
    if (u->count < fifo_size(u)) {
        u->fifo[(u->first + u->count) % FIFO_BYTES] = byte;
        u->count++;
    } else { // FIFO: the new byte is lost; RBR: the old one is
        u->overrun = true;
        if (!u->fifo_enabled)
            u->fifo[u->first] = byte;
    }
    restart_timeout(u);
}

static uint8_t read_rbr(struct uart *u)
{
    uint8_t byte = u->fifo[u->first];

    if (u->count) {
        u->count--;
        if (u->fifo_enabled || u->count)
            u->first = (u->first + 1) % FIFO_BYTES;
        restart_timeout(u);
    }
    return byte;
}

static void clear_receiver(struct uart *u)
{
    u->first = u->count = 0;
    restart_timeout(u);
}

// In loopback the receiver is cut off from the line.
size_t uart_room(const struct uart *u)
{
    return loopback(u) ? 0 : fifo_size(u) - u->count;
}

size_t uart_receive(struct uart *u, const uint8_t *data, size_t n)
{
    size_t room = uart_room(u);

    if (n > room)
        n = room;
    for (size_t i = 0; i < n; i++)
        receive(u, data[i]);
    update(u);
    return n;
}

// ---- transmitter, modem

// The interrupt drops with the write and rises again when the byte is gone, at once: an edge for the 8259A.
static void write_thr(struct uart *u, uint8_t byte)
{
    u->thre_pending = false;
    update(u);
    if (loopback(u))
        receive(u, byte & (uint8_t)(0xff >> (3 - (u->lcr & LCR_WLS))));
    else if (u->out.write)
        u->out.write(u->out.opaque, &byte, 1);
    u->thre_pending = true;
}

// The levels of the modem inputs: a peer that is always there, or our own outputs.
static uint8_t modem_inputs(const struct uart *u)
{
    if (!loopback(u))
        return MSR_DCD | MSR_DSR | MSR_CTS;
    return (u->mcr & MCR_RTS ? MSR_CTS : 0) | (u->mcr & MCR_DTR ? MSR_DSR : 0) |
           (u->mcr & MCR_OUT1 ? MSR_RI : 0) | (u->mcr & MCR_OUT2 ? MSR_DCD : 0);
}

static void update_modem(struct uart *u)
{
    uint8_t inputs = modem_inputs(u), changed = (inputs ^ u->msr) & 0xf0;

    u->msr = inputs | (u->msr & 0x0f);
    if (changed & MSR_CTS)
        u->msr |= MSR_DCTS;
    if (changed & MSR_DSR)
        u->msr |= MSR_DDSR;
    if ((changed & MSR_RI) && !(inputs & MSR_RI))
        u->msr |= MSR_TERI;
    if (changed & MSR_DCD)
        u->msr |= MSR_DDCD;
}

// ---- registers

static void write_fcr(struct uart *u, uint8_t value)
{
    static const uint8_t triggers[4] = {1, 4, 8, 14};
    bool enable = value & FCR_ENABLE;

    if (enable != u->fifo_enabled) {
        u->fifo_enabled = enable;
        clear_receiver(u);
    }
    if (!enable) // the other bits are not programmed then
        return;
    if (value & FCR_RESET_RECEIVE)
        clear_receiver(u);
    u->trigger = triggers[(value >> FCR_TRIGGER_SHIFT) & 3];
}

static void write_ier(struct uart *u, uint8_t value)
{
    if ((value & IER_ETBEI) && !(u->ier & IER_ETBEI))
        u->thre_pending = true; // the transmitter is empty
    u->ier = value & (IER_ERBFI | IER_ETBEI | IER_ELSI | IER_EDSSI);
}

static uint32_t port_read(void *opaque, uint16_t port, unsigned size)
{
    struct uart *u = opaque;
    bool dlab = u->lcr & LCR_DLAB;
    uint8_t value = 0;
    (void)size;

    switch ((port - u->base) & 7) {
    case UART_DATA: value = dlab ? u->dll : read_rbr(u); break;
    case UART_IER: value = dlab ? u->dlm : u->ier; break;
    case UART_IIR:
        value = interrupt_id(u);
        if (value == IIR_THRE)
            u->thre_pending = false;
        if (u->fifo_enabled)
            value |= IIR_FIFOS;
        break;
    case UART_LCR: value = u->lcr; break;
    case UART_MCR: value = u->mcr; break;
    case UART_LSR:
        value = LSR_THRE | LSR_TEMT | (u->count ? LSR_DR : 0) | (u->overrun ? LSR_OE : 0);
        u->overrun = false;
        break;
    case UART_MSR:
        value = u->msr;
        u->msr &= 0xf0;
        break;
    case UART_SCR: value = u->scr; break;
    }
    update(u);
    return value;
}

static void port_write(void *opaque, uint16_t port, unsigned size, uint32_t value32)
{
    struct uart *u = opaque;
    uint8_t value = (uint8_t)value32;
    bool dlab = u->lcr & LCR_DLAB;
    (void)size;

    switch ((port - u->base) & 7) {
    case UART_DATA:
        if (dlab)
            u->dll = value;
        else
            write_thr(u, value);
        break;
    case UART_IER:
        if (dlab)
            u->dlm = value;
        else
            write_ier(u, value);
        break;
    case UART_IIR: write_fcr(u, value); break;
    case UART_LCR: u->lcr = value; break;
    case UART_MCR:
        u->mcr = value & MCR_WRITABLE;
        update_modem(u);
        break;
    case UART_SCR: u->scr = value; break;
    default: break; // LSR and MSR: factory test
    }
    update(u);
}

// Table 4: divisor, RBR and SCR are not affected.
static void reset(void *opaque)
{
    struct uart *u = opaque;

    u->ier = u->lcr = u->mcr = 0;
    u->fifo_enabled = false;
    u->trigger = 1;
    u->overrun = false;
    u->thre_pending = false;
    u->msr = modem_inputs(u);
    clear_receiver(u);
    update(u);
}

static void state(void *opaque, struct stream *s)
{
    struct uart *u = opaque;
    uint8_t *bytes[] = {&u->dll, &u->dlm, &u->ier, &u->lcr, &u->mcr, &u->msr, &u->scr, &u->trigger};

    stream_section(s, "uart", 1);
    for (unsigned i = 0; i < sizeof bytes / sizeof bytes[0]; i++)
        stream_u8(s, bytes[i]);
    stream_bool(s, &u->fifo_enabled);
    stream_bool(s, &u->overrun);
    stream_bool(s, &u->thre_pending);
    stream_bool(s, &u->timed_out);
    stream_bytes(s, u->fifo, sizeof u->fifo);
    stream_u32_max(s, &u->first, FIFO_BYTES - 1);
    stream_u32_max(s, &u->count, FIFO_BYTES);
    stream_timer(s, &u->timeout);
    if (!s->loading)
        return;
    u->ier &= 0x0f;
    u->mcr &= MCR_WRITABLE;
    if (u->count > fifo_size(u))
        u->count = fifo_size(u);
    update(u);
}

static void destroy(void *opaque)
{
    struct uart *u = opaque;
    timer_cancel(&u->timeout);
    bus_release(u->bus, u->base, PORTS);
    free(u);
}

static const struct port_ops ports = {.read = port_read, .write = port_write};
const struct device_ops uart_device = {.name = "uart", .reset = reset, .state = state, .destroy = destroy};

struct uart *uart_create(struct bus *bus, struct timer_queue *clock, uint16_t base, struct irq_line irq,
                         struct char_out out)
{
    struct uart *u = calloc(1, sizeof *u);

    if (!u)
        return NULL;
    u->bus = bus;
    u->clock = clock;
    u->base = base;
    u->irq = irq;
    u->out = out;
    timer_init(&u->timeout, clock, expired, u);
    reset(u);
    if (bus_claim(bus, base, PORTS, &ports, u)) {
        free(u);
        return NULL;
    }
    return u;
}
