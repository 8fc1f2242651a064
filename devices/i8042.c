// 8042 keyboard controller (ports 60h and 64h) with an AT keyboard and an auxiliary port that nothing is
// plugged into; port 92h (system control port A). Sources: IBM PS/2 Technical Reference, "Keyboard/Auxiliary
// Device Controller"; PIIX3 datasheet 2.5.
//
// Bytes wait in three places and enter the output buffer, one at a time, in this order: the controller's own
// answers, the keyboard's bytes (unless its clock is held), the auxiliary port's. Each byte that enters is a
// new interrupt edge. A20 is one latch with two views: the last write, by output port or port 92h, counts and
// both read it back.
#include "devices/chips.h"

#include <stdlib.h>
#include <string.h>

#define KBC_DATA       0x60u
#define KBC_COMMAND    0x64u // write; read: status
#define SYSTEM_CONTROL 0x92u

// Status register
#define STATUS_OBF     0x01u
#define STATUS_SYS     0x04u
#define STATUS_CMD     0x08u // last write went to 64h
#define STATUS_KEYLOCK 0x10u // 1: not locked
#define STATUS_AUX     0x20u // the byte is the auxiliary port's
#define STATUS_TIMEOUT 0x40u

// Command byte
#define CCB_KBD_INT     0x01u
#define CCB_AUX_INT     0x02u
#define CCB_SYS         0x04u
#define CCB_KBD_DISABLE 0x10u
#define CCB_AUX_DISABLE 0x20u
#define CCB_TRANSLATE   0x40u
#define CCB_RESET       (CCB_KBD_INT | CCB_TRANSLATE)

// Output port
#define OUT_NO_RESET 0x01u
#define OUT_A20      0x02u
#define OUT_IRQ1     0x10u
#define OUT_IRQ12    0x20u
#define OUT_IDLE     0xc0u // keyboard clock and data lines

#define PORT92_RESET 0x01u
#define PORT92_A20   0x02u

#define KBD_ACK               0xfau
#define KBD_BAT_OK            0xaau
#define KBD_ECHO              0xeeu
#define KBD_RESEND            0xfeu
#define KBD_OVERRUN_2         0x00u // scan code sets 2 and 3; set 1: FFh
#define KBD_TYPEMATIC_DEFAULT 0x2bu

#define FIFO_SIZE  16u // a keyboard's buffer
#define REPLY_ROOM 8u  // for answers to commands behind a full buffer

struct fifo {
    uint8_t data[FIFO_SIZE + REPLY_ROOM];
    uint32_t count;
};

struct i8042 {
    struct irq_line irq1, irq12, a20_line;
    struct machine_control control;

    uint8_t ram[32];      // ram[0]: command byte
    uint8_t obuf, status; // status: OBF, CMD, AUX, TIMEOUT only
    uint8_t command;      // controller command waiting for its parameter, or 0
    bool a20;
    struct fifo replies, keys, aux;
    bool aux_timeout; // the auxiliary port's byte reports a timeout

    uint8_t kbd_command; // keyboard command waiting for its parameter, or 0
    uint8_t leds, typematic, scan_set, last_sent;
    bool scanning, released; // released: an F0h is being translated
};

// Scan code set 2 to set 1, the 8042's own table (PS/2 TR, "Scan code tables"): index: set 2 code.
// clang-format off
static const uint8_t set1_of_set2[0x85] = {
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59,
    0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b,
    0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d,
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f,
    0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61,
    0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76,
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f,
    0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54,
    0x80, 0x81, 0x82, 0x41, 0x54,
};
// clang-format on

// ---- queues and the output buffer
static bool fifo_put(struct fifo *f, uint8_t byte, unsigned limit)
{
    if (f->count >= limit)
        return false;
    f->data[f->count++] = byte;
    return true;
}

static uint8_t fifo_get(struct fifo *f)
{
    uint8_t byte = f->data[0];
    memmove(f->data, f->data + 1, --f->count);
    return byte;
}

static void update_irq(struct i8042 *k)
{
    bool full = k->status & STATUS_OBF, aux = k->status & STATUS_AUX;

    irq_set(&k->irq1, full && !aux && (k->ram[0] & CCB_KBD_INT));
    irq_set(&k->irq12, full && aux && (k->ram[0] & CCB_AUX_INT));
}

static void load_obuf(struct i8042 *k, uint8_t byte, uint8_t flags)
{
    k->obuf = byte;
    k->status = (k->status & ~(STATUS_AUX | STATUS_TIMEOUT)) | STATUS_OBF | flags;
}

// A byte from the keyboard passes the translator, which swallows F0h and marks the code that follows it.
static bool translate(struct i8042 *k, uint8_t *byte)
{
    if (!(k->ram[0] & CCB_TRANSLATE))
        return true;
    if (*byte == 0xf0) {
        k->released = true;
        return false;
    }
    if (*byte < sizeof set1_of_set2)
        *byte = set1_of_set2[*byte];
    if (k->released)
        *byte |= 0x80;
    k->released = false;
    return true;
}

static void next_byte(struct i8042 *k)
{
    while (!(k->status & STATUS_OBF)) {
        if (k->replies.count) {
            load_obuf(k, fifo_get(&k->replies), 0);
        } else if (k->keys.count && !(k->ram[0] & CCB_KBD_DISABLE)) {
            uint8_t byte = fifo_get(&k->keys);
            k->last_sent = byte;
            if (translate(k, &byte))
                load_obuf(k, byte, 0);
        } else if (k->aux.count) { // answers to D3h and D4h come even while the port is disabled
            load_obuf(k, fifo_get(&k->aux), STATUS_AUX | (k->aux_timeout ? STATUS_TIMEOUT : 0));
        } else {
            break;
        }
    }
    update_irq(k);
}

static void reply(struct i8042 *k, uint8_t byte)
{
    fifo_put(&k->replies, byte, FIFO_SIZE);
    next_byte(k);
}

// ---- A20 and reset
static void set_a20(struct i8042 *k, bool enabled)
{
    k->a20 = enabled;
    irq_set(&k->a20_line, enabled);
}

static void request_reset(struct i8042 *k)
{
    if (k->control.request)
        k->control.request(k->control.opaque, MACHINE_RESET, 0);
}

static uint8_t output_port(const struct i8042 *k)
{
    bool full = k->status & STATUS_OBF, aux = k->status & STATUS_AUX;

    return OUT_NO_RESET | OUT_IDLE | (k->a20 ? OUT_A20 : 0) | (full && !aux ? OUT_IRQ1 : 0) |
           (full && aux ? OUT_IRQ12 : 0);
}

// ---- the keyboard
static void kbd_defaults(struct i8042 *k)
{
    k->typematic = KBD_TYPEMATIC_DEFAULT;
    k->scan_set = 2;
    k->keys.count = 0;
    k->released = false;
}

static void kbd_send(struct i8042 *k, uint8_t byte)
{
    fifo_put(&k->keys, byte, sizeof k->keys.data);
}

static void kbd_parameter(struct i8042 *k, uint8_t command, uint8_t byte)
{
    switch (command) {
    case 0xed: k->leds = byte & 7; break;
    case 0xf3: k->typematic = byte & 0x7f; break;
    case 0xf0:
        if (byte > 2) { // set 3 is not there
            kbd_send(k, KBD_RESEND);
            return;
        }
        kbd_send(k, KBD_ACK);
        if (byte == 0)
            kbd_send(k, k->scan_set);
        else
            k->scan_set = byte;
        return;
    default: break; // FBh-FDh: a key's set 3 type
    }
    kbd_send(k, KBD_ACK);
}

static void kbd_command(struct i8042 *k, uint8_t byte)
{
    uint8_t pending = k->kbd_command;

    k->kbd_command = 0;
    if (pending && byte < 0x80) {
        kbd_parameter(k, pending, byte);
        return;
    }
    // A command in place of a parameter starts over.
    switch (byte) {
    case 0xed:
    case 0xf0:
    case 0xf3:
    case 0xfb:
    case 0xfc:
    case 0xfd:
        kbd_send(k, KBD_ACK);
        k->kbd_command = byte;
        break;
    case 0xee: kbd_send(k, KBD_ECHO); break;
    case 0xf2:
        kbd_send(k, KBD_ACK);
        kbd_send(k, 0xab);
        kbd_send(k, 0x83);
        break;
    case 0xf4:
        k->keys.count = 0;
        k->scanning = true;
        kbd_send(k, KBD_ACK);
        break;
    case 0xf5:
    case 0xf6:
        kbd_defaults(k);
        k->scanning = byte == 0xf6 ? k->scanning : false;
        kbd_send(k, KBD_ACK);
        break;
    case 0xf7:
    case 0xf8:
    case 0xf9:
    case 0xfa: kbd_send(k, KBD_ACK); break;
    case 0xfe: kbd_send(k, k->last_sent); break;
    case 0xff:
        kbd_defaults(k);
        k->leds = 0;
        k->scanning = true;
        kbd_send(k, KBD_ACK);
        kbd_send(k, KBD_BAT_OK);
        break;
    default: kbd_send(k, KBD_RESEND); break;
    }
}

// The host's key events, whole scan codes of set 2. When a code does not fit, the overrun mark replaces it,
// once.
void i8042_key(struct i8042 *k, const uint8_t *scancodes_set2, size_t n)
{
    bool set1 = k->scan_set == 1, released = false;
    uint8_t overrun = set1 ? 0xff : KBD_OVERRUN_2;

    if (!k->scanning || n == 0)
        return;
    if (k->keys.count >= FIFO_SIZE || n > FIFO_SIZE - 1 - k->keys.count) {
        if (!k->keys.count || k->keys.data[k->keys.count - 1] != overrun)
            fifo_put(&k->keys, overrun, FIFO_SIZE);
        n = 0;
    }
    for (size_t i = 0; i < n; i++) {
        uint8_t byte = scancodes_set2[i];

        if (set1 && byte == 0xf0) {
            released = true;
            continue;
        }
        if (set1) {
            byte = (byte < sizeof set1_of_set2 ? set1_of_set2[byte] : byte) | (released ? 0x80 : 0);
            released = false;
        }
        fifo_put(&k->keys, byte, FIFO_SIZE);
    }
    next_byte(k);
}

// ---- the controller
static void aux_answer(struct i8042 *k, uint8_t byte, bool timeout)
{
    k->aux.count = 0;
    fifo_put(&k->aux, byte, FIFO_SIZE);
    k->aux_timeout = timeout;
    next_byte(k);
}

static void controller_command(struct i8042 *k, uint8_t command)
{
    k->command = 0;
    if (command >= 0x20 && command <= 0x3f) {
        reply(k, k->ram[command - 0x20]);
        return;
    }
    if (command >= 0xf0) { // pulse output lines: bit 0 low is the reset line
        if (!(command & 1))
            request_reset(k);
        return;
    }
    switch (command) {
    case 0xa4: reply(k, 0xf1); break; // no password installed
    case 0xa7: k->ram[0] |= CCB_AUX_DISABLE; break;
    case 0xa8: k->ram[0] &= ~CCB_AUX_DISABLE; break;
    case 0xa9: reply(k, 0x00); break; // auxiliary interface test passed
    case 0xaa:                        // self test
        k->replies.count = k->keys.count = k->aux.count = 0;
        k->status &= ~(STATUS_OBF | STATUS_AUX | STATUS_TIMEOUT);
        k->ram[0] |= CCB_SYS;
        reply(k, 0x55);
        break;
    case 0xab: reply(k, 0x00); break; // keyboard interface test passed
    case 0xad: k->ram[0] |= CCB_KBD_DISABLE; break;
    case 0xae: k->ram[0] &= ~CCB_KBD_DISABLE; break;
    case 0xc0: reply(k, 0x80); break; // input port: keyboard not inhibited
    case 0xd0: reply(k, output_port(k)); break;
    case 0xd1:
    case 0xd2:
    case 0xd3:
    case 0xd4: k->command = command; break;
    case 0xdd: set_a20(k, false); break;
    case 0xdf: set_a20(k, true); break;
    case 0xe0: reply(k, 0x00); break; // test inputs
    default:
        if (command >= 0x60 && command <= 0x7f)
            k->command = command;
        break;
    }
    next_byte(k);
}

static void data_write(struct i8042 *k, uint8_t byte)
{
    uint8_t command = k->command;

    k->command = 0;
    switch (command) {
    case 0: // for the keyboard, which sending to enables
        k->ram[0] &= ~CCB_KBD_DISABLE;
        kbd_command(k, byte);
        break;
    case 0xd1:
        set_a20(k, byte & OUT_A20);
        if (!(byte & OUT_NO_RESET))
            request_reset(k);
        break;
    case 0xd2: fifo_put(&k->replies, byte, FIFO_SIZE); break; // as if from the keyboard, untranslated
    case 0xd3: aux_answer(k, byte, false); break;
    case 0xd4: aux_answer(k, KBD_RESEND, true); break; // nobody there: the transmission times out
    default: k->ram[command & 0x1f] = byte; break;     // 60h-7Fh
    }
    next_byte(k);
}

static uint32_t kbc_read(void *opaque, uint16_t port, unsigned size)
{
    struct i8042 *k = opaque;
    (void)size;

    if (port == KBC_COMMAND)
        return k->status | STATUS_KEYLOCK | (k->ram[0] & CCB_SYS ? STATUS_SYS : 0);
    uint8_t byte = k->obuf;
    if (k->status & STATUS_OBF) {
        k->status &= ~(STATUS_OBF | STATUS_AUX | STATUS_TIMEOUT);
        update_irq(k); // the line falls, so that the next byte is an edge
        next_byte(k);
    }
    return byte;
}

static void kbc_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    struct i8042 *k = opaque;
    (void)size;

    if (port == KBC_COMMAND) {
        k->status |= STATUS_CMD;
        controller_command(k, value);
    } else {
        k->status &= ~STATUS_CMD;
        data_write(k, value);
    }
}

static uint32_t port92_read(void *opaque, uint16_t port, unsigned size)
{
    struct i8042 *k = opaque;
    (void)port, (void)size;
    return k->a20 ? PORT92_A20 : 0;
}

static void port92_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    struct i8042 *k = opaque;
    (void)port, (void)size;

    set_a20(k, value & PORT92_A20);
    if (value & PORT92_RESET) // the reset that follows clears the bit: each write of 1 is a rising edge
        request_reset(k);
}

static void i8042_reset(void *opaque)
{
    struct i8042 *k = opaque;

    memset(k->ram, 0, sizeof k->ram);
    k->ram[0] = CCB_RESET;
    k->obuf = k->status = k->command = 0;
    k->replies.count = k->aux.count = 0;
    k->aux_timeout = false;
    k->kbd_command = k->leds = k->last_sent = 0;
    kbd_defaults(k);
    k->scanning = true;
    set_a20(k, true); // the output port's pins come up high
    update_irq(k);
}

static void fifo_state(struct fifo *f, struct stream *s)
{
    stream_u32_max(s, &f->count, sizeof f->data);
    stream_bytes(s, f->data, sizeof f->data);
}

static void i8042_state(void *opaque, struct stream *s)
{
    struct i8042 *k = opaque;

    stream_section(s, "i8042", 1);
    stream_bytes(s, k->ram, sizeof k->ram);
    stream_u8(s, &k->obuf);
    stream_u8(s, &k->status);
    stream_u8(s, &k->command);
    stream_bool(s, &k->a20);
    fifo_state(&k->replies, s);
    fifo_state(&k->keys, s);
    fifo_state(&k->aux, s);
    stream_bool(s, &k->aux_timeout);
    stream_u8(s, &k->kbd_command);
    stream_u8(s, &k->leds);
    stream_u8(s, &k->typematic);
    stream_u8(s, &k->scan_set);
    stream_u8(s, &k->last_sent);
    stream_bool(s, &k->scanning);
    stream_bool(s, &k->released);
    if (s->loading) {
        k->status &= STATUS_OBF | STATUS_CMD | STATUS_AUX | STATUS_TIMEOUT;
        if (k->scan_set != 1)
            k->scan_set = 2;
        set_a20(k, k->a20);
        update_irq(k);
    }
}

static void i8042_destroy(void *opaque)
{
    free(opaque);
}

static const struct port_ops kbc_ports = {kbc_read, kbc_write, 1};
static const struct port_ops port92_ports = {port92_read, port92_write, 1};
const struct device_ops i8042_device = {"i8042", i8042_reset, i8042_state, i8042_destroy};

struct i8042 *i8042_create(struct bus *bus, struct timer_queue *clock, struct irq_line irq1,
                           struct irq_line irq12, struct irq_line a20, struct machine_control control)
{
    struct i8042 *k = calloc(1, sizeof *k);

    (void)clock; // everything answers at once; typematic repeat is the host's
    if (!k)
        return NULL;
    k->irq1 = irq1;
    k->irq12 = irq12;
    k->a20_line = a20;
    k->control = control;
    if (bus_claim(bus, KBC_DATA, 1, &kbc_ports, k))
        goto fail;
    if (bus_claim(bus, KBC_COMMAND, 1, &kbc_ports, k))
        goto fail_command;
    if (bus_claim(bus, SYSTEM_CONTROL, 1, &port92_ports, k))
        goto fail_port92;
    i8042_reset(k);
    return k;
fail_port92:
    bus_release(bus, KBC_COMMAND, 1);
fail_command:
    bus_release(bus, KBC_DATA, 1);
fail:
    free(k);
    return NULL;
}
