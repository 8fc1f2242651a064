// Constructors of every chip, and the inputs each one has. All return null when out of memory.
// Ports are claimed on the bus by the constructor; interrupt lines and clocks are injected.
#pragma once
#include "devices/device.h"

struct mem_map;

// 8259A pair (Intel 8259A datasheet; PIIX: ELCR at 4D0h). intr: the INTR pin to the CPU.
struct pic;
struct pic *pic_create(struct bus *bus, struct irq_line intr);
void pic_set_irq(struct pic *p, int irq, int level); // 0..15
int pic_ack(struct pic *p);                          // INTA: vector (spurious IRQ7/IRQ15 included)
bool pic_intr(const struct pic *p);
extern const struct device_ops pic_device;

// 8254 at 40h-43h and port 61h (gate and output of channel 2, refresh toggle). Input clock 1,193,182 Hz.
struct pit;
struct pit *pit_create(struct bus *bus, struct timer_queue *clock, struct irq_line irq0);
void pit_set_irq0_enabled(struct pit *p, bool enabled); // HPET legacy replacement takes IRQ 0
extern const struct device_ops pit_device;

// Port F0h and what it stands for: x87 errors as interrupt 13 (SDM 1 8.7.2). ignne: the processor's pin.
struct ferr;
struct ferr *ferr_create(struct bus *bus, struct irq_line irq13, struct irq_line ignne);
void ferr_set(struct ferr *f, bool level); // the processor's FERR#
extern const struct device_ops ferr_device;

// MC146818 RTC at 70h-71h with 128 bytes of CMOS (and 72h-73h: upper bank). Interrupt: IRQ 8.
struct rtc;
struct rtc *rtc_create(struct bus *bus, struct timer_queue *clock, struct irq_line irq8, uint64_t start_unix_ns);
void rtc_set_cmos(struct rtc *r, unsigned index, uint8_t value); // memory sizes, boot order for firmware
void rtc_set_irq8_enabled(struct rtc *r, bool enabled); // HPET legacy replacement takes IRQ 8
extern const struct device_ops rtc_device;

// 16550A. base 3F8h / 2F8h.
struct uart;
struct uart *uart_create(struct bus *bus, struct timer_queue *clock, uint16_t base, struct irq_line irq, struct char_out out);
// Bytes from the host. Returns how many were taken; the rest is to be offered again when `uart_room` says so.
size_t uart_receive(struct uart *u, const uint8_t *data, size_t n);
size_t uart_room(const struct uart *u);
extern const struct device_ops uart_device;

// 8042 at 60h/64h with an AT keyboard (and an auxiliary port that answers "no mouse"); reset and A20 lines; port 92h.
struct i8042;
struct i8042 *i8042_create(struct bus *bus, struct timer_queue *clock, struct irq_line irq1, struct irq_line irq12,
                           struct irq_line a20, struct machine_control control);
void i8042_key(struct i8042 *k, const uint8_t *scancodes_set2, size_t n);
extern const struct device_ops i8042_device;

// HPET, IA-PC HPET 1.0a: 3 comparators at FED00000h, 100 MHz; legacy replacement.
struct hpet;
struct hpet_lines {
    // I/O APIC inputs 20-23. Under legacy replacement comparator 0 drives gsi[2] and comparator 1 gsi[8]: these two
    // are to be wired as the PIT's IRQ 0 and the RTC's IRQ 8 are, to the 8259 pair too; nothing else here drives them.
    struct irq_line gsi[24];
    void (*legacy)(void *opaque, bool enabled);    // legacy replacement switched
    void *opaque;
};
struct hpet *hpet_create(struct mem_map *mem, struct timer_queue *clock, struct hpet_lines lines);
extern const struct device_ops hpet_device;

// 82093AA I/O APIC at FEC00000h, 24 inputs. deliver: an APIC message (to the local APICs).
struct apic_message {
    uint8_t vector, delivery_mode; // SDM 3A 11.6.1: 0 fixed, 1 lowest, 2 SMI, 4 NMI, 5 INIT, 7 ExtINT
    uint8_t dest_logical, level_triggered;
    uint32_t destination;
};
struct apic_bus {
    void (*deliver)(void *opaque, const struct apic_message *m);
    void *opaque;
};
struct ioapic;
struct ioapic *ioapic_create(struct mem_map *mem, struct apic_bus apics);
void ioapic_set_irq(struct ioapic *i, int gsi, int level);
void ioapic_eoi(struct ioapic *i, uint8_t vector); // broadcast of a local APIC
extern const struct device_ops ioapic_device;
// An MSI write (address FEExxxxxh) as an APIC message (SDM 3A 11.11).
struct apic_message apic_msi_message(uint64_t address, uint32_t data);

// PCI: configuration mechanism 1 (CF8h/CFCh), 82441FX host bridge with PAM, PIIX3 ISA bridge and PIIX4 power
// management (PM timer, SCI on IRQ 9, S5, 0xB2 APM), reset control CF9h.
struct pci_bus;
struct pci_device;
struct pci_device_info {
    uint16_t vendor, device, subsystem_vendor, subsystem;
    uint8_t revision, prog_if, subclass, class_code, header_type, interrupt_pin;
    const char *name;
};
struct pci_bar {
    uint64_t size;    // bytes, power of two; 0: none
    bool io, bits64, prefetch;
    const struct port_ops *port;     // io; the port as the guest named it
    const struct mmio_ops *mmio;     // memory; offset within the BAR
};
// INTx drives isa[n] and gsi[n] alike, n as PIIX3 routes it; either array may be null (isa[] often reaches both).
struct pci_bus *pci_bus_create(struct bus *ports, struct mem_map *mem, struct irq_line gsi[24], struct irq_line isa[16]);
void pci_bus_destroy(struct pci_bus *p);
// Adds a function at device:function. Takes copies of info and bars. The handlers get `opaque`.
struct pci_device *pci_add(struct pci_bus *b, unsigned devfn, const struct pci_device_info *info, const struct pci_bar bars[6], void *opaque);
uint8_t *pci_config(struct pci_device *d);                    // 256 bytes
void pci_config_writable(struct pci_device *d, unsigned offset, uint32_t mask, unsigned size);
unsigned pci_add_capability(struct pci_device *d, uint8_t id, unsigned size); // offset
void pci_set_irq(struct pci_device *d, int level);            // INTx
// Called after the guest wrote the configuration space (offset, size).
void pci_on_config_write(struct pci_device *d, void (*fn)(void *opaque, unsigned offset, unsigned size));
// MSI/MSI-X messages of devices go here.
void pci_set_msi(struct pci_bus *b, void (*send)(void *opaque, uint64_t address, uint32_t data), void *opaque);
void pci_msi(struct pci_device *d, uint64_t address, uint32_t data);
bool pci_msix_add(struct pci_device *d, unsigned bar, unsigned vectors); // table and PBA in that BAR (which must be free)
bool pci_msix_enabled(const struct pci_device *d);
void pci_msix_notify(struct pci_device *d, unsigned vector);
extern const struct device_ops pci_bus_device;

struct i440fx;
struct i440fx *i440fx_create(struct pci_bus *b, struct mem_map *mem);  // 00:00.0, PAM
struct piix3;
struct piix3 *piix3_create(struct pci_bus *b, struct bus *ports, struct machine_control control); // 00:01.0, PIRQ routing, CF9h
struct piix4pm;
struct piix4pm *piix4pm_create(struct pci_bus *b, struct bus *ports, struct timer_queue *clock, struct irq_line sci,
                               struct machine_control control); // 00:01.3, PM base 600h enabled at reset
void piix4pm_power_button(struct piix4pm *p);
uint16_t piix4pm_timer_port(const struct piix4pm *p); // where the PM timer is now; 0: nowhere
// What it shows at this time of the machine's clock (ACPI 4.8.3.3: 24 bits at 3.579545 MHz).
static inline uint32_t piix4pm_timer_value(uint64_t now_ns)
{
    return (uint32_t)time_scale(now_ns, 3579545, 1000000000) & 0xffffff;
}
extern const struct device_ops i440fx_device, piix3_device, piix4pm_device;

// fw_cfg: selector 510h, data 511h, DMA 514h. Files are copied.
struct fw_cfg;
struct fw_cfg *fw_cfg_create(struct bus *bus, struct mem_map *mem);
int fw_cfg_add(struct fw_cfg *f, uint16_t key, const void *data, size_t n);
int fw_cfg_add_file(struct fw_cfg *f, const char *name, const void *data, size_t n);
extern const struct device_ops fw_cfg_device;

// Debug console E9h; debug exit F4h (status (v<<1)|1); pvpanic 505h.
struct debug_ports;
struct debug_ports *debug_ports_create(struct bus *bus, struct char_out out, struct machine_control control);
extern const struct device_ops debug_ports_device;

// virtio 1.2 over PCI (modern), MSI-X. The disk stays the caller's, who closes it after the device is destroyed.
struct virtio_blk;
struct block; // devices/block.h
struct virtio_blk *virtio_blk_create(struct pci_bus *b, unsigned devfn, struct mem_map *mem, struct block *disk);
extern const struct device_ops virtio_blk_device;
