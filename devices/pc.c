// The PC: which chips there are, how they are wired, and what firmware finds in CMOS and fw_cfg.
#include "devices/pc.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SEABIOS_DEBUG_PORT 0x402u

// fw_cfg keys (QEMU, docs/specs/fw_cfg)
#define FW_CFG_RAM_SIZE      0x03
#define FW_CFG_NOGRAPHIC     0x04
#define FW_CFG_NB_CPUS       0x05
#define FW_CFG_BOOT_MENU     0x0e
#define FW_CFG_MAX_CPUS      0x0f
#define FW_CFG_IRQ0_OVERRIDE 0x8002

static int out_of_memory(char *error, size_t error_size)
{
    snprintf(error, error_size,
             "memory: the host has too little left for the machine's chips: end some programs");
    return -ENOMEM;
}

// ---- small things that are no chip
static uint32_t debug_port_read(void *opaque, uint16_t port, unsigned size)
{
    (void)opaque, (void)port, (void)size;
    return 0xe9; // SeaBIOS looks for it before it writes here
}

static void debug_port_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    struct machine *m = opaque;
    uint8_t byte = (uint8_t)value;
    (void)port, (void)size;

    if (m->config.debugcon.write)
        m->config.debugcon.write(m->config.debugcon.opaque, &byte, 1);
}

static const struct port_ops debug_port = {debug_port_read, debug_port_write, 1};

static uint64_t no_vga_read(void *opaque, uint64_t offset, unsigned size)
{
    (void)opaque, (void)offset, (void)size;
    return UINT64_MAX;
}

static void no_vga_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    (void)opaque, (void)offset, (void)size, (void)value;
}

static const struct mmio_ops no_vga = {no_vga_read, no_vga_write};

static void a20_line(void *opaque, int n, int level)
{
    struct machine *m = opaque;
    (void)n;
    mem_set_a20(&m->mem, level);
}

static void memory_changed(void *opaque)
{
    struct machine *m = opaque;
    if (m->v)
        mmu_flush_all(m->v, true);
    if (m->cell)
        cell_send_map(m);
}

// The first request counts: what a guest does after it asked to be switched off is of no interest.
static void control_request(void *opaque, enum machine_request what, uint32_t value)
{
    struct machine *m = opaque;

    if (m->requested)
        return;
    m->requested = true;
    m->request = what;
    m->request_value = value;
    pc_raise(m, REQ_EXIT);
}

// ---- host input
void pc_drain_input(struct machine *m)
{
    uint32_t waiting = 0;

    if (m->cell) // the bytes wait in the page
        return;

    for (unsigned port = 0; port < MACHINE_SERIALS; port++)
        waiting |= __atomic_load_n(&m->mail.input[port].count, __ATOMIC_RELAXED);
    if (!waiting) // the usual case; a byte that comes just now has its own REQ_TIMER
        return;
    pthread_mutex_lock(&m->mail.lock);
    for (unsigned port = 0; port < MACHINE_SERIALS; port++) {
        struct pc_input *in = &m->mail.input[port];
        while (in->count) {
            uint32_t run = PC_INPUT_SIZE - in->head < in->count ? PC_INPUT_SIZE - in->head : in->count;
            size_t taken = uart_receive(m->uart[port], in->data + in->head, run);
            if (!taken)
                break;
            in->head = (in->head + (uint32_t)taken) % PC_INPUT_SIZE;
            in->count -= (uint32_t)taken;
        }
    }
    pthread_mutex_unlock(&m->mail.lock);
}

// ---- the vCPU
static void *map_low(uintptr_t first, uintptr_t end, uintptr_t step, size_t size)
{
    for (uintptr_t at = first; at < end; at += step) {
        void *p = mmap((void *)at, size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        if (p == (void *)at)
            return p;
        if (p != MAP_FAILED)
            munmap(p, size);
    }
    return NULL;
}

// Translated code reaches both by absolute displacement: below 2 GiB.
static int create_vcpu(struct machine *m, char *error, size_t error_size)
{
    m->v = map_low(0x60000000, 0x68000000, 0x100000, sizeof *m->v);
    if (!m->v)
        goto fail;
    for (uintptr_t at = 0x20000000; at < 0x60000000 && !m->v->tlb; at += 0x1000000)
        m->v->tlb = tlb_create((void *)at);
    if (!m->v->tlb)
        goto fail;
    m->v->mem = &m->mem;
    m->v->model = m->model;
    m->v->exits = pc_exits(m);
    if (m->config.deterministic) {
        cpu_count_begin(m->v, true);
        m->v->s.tsc_offset = -cpu_tsc_source(m->v); // counts from power-on
    } else {
        m->v->s.tsc_offset = 0; // the host's: user code can then read it by itself
    }
    return 0;
fail:
    snprintf(error, error_size,
             "memory: no addresses are free below 2 GiB for a CPU: run fewer machines in a process");
    return -ENOMEM;
}

// ---- chips
static bool add_device(struct machine *m, const struct device_ops *ops, void *opaque)
{
    if (!opaque || m->device_count == PC_MAX_DEVICES)
        return false;
    m->devices[m->device_count++] = (struct device){ops, opaque};
    return true;
}

static struct irq_line isa_line(struct machine *m, int irq)
{
    return (struct irq_line){pc_isa_line, m, irq};
}

static bool create_interrupt_chips(struct machine *m)
{
    m->ioapic = ioapic_create(&m->mem, (struct apic_bus){pc_apic_deliver, m});
    if (!add_device(m, &ioapic_device, m->ioapic))
        return false;
    if (m->acpi.apic) {
        m->v->lapic = lapic_create(m->v, &m->clock, pc_apic_request, pc_apic_eoi, m);
        if (!m->v->lapic || mem_add_mmio(&m->mem, LAPIC_BASE, 0x1000, &pc_lapic_ops, m, "local APIC") < 0)
            return false;
    }
    m->pic = pic_create(m->bus, (struct irq_line){pc_intr_line, m, 0});
    if (!add_device(m, &pic_device, m->pic))
        return false;
    m->ferr = ferr_create(m->bus, isa_line(m, 13), (struct irq_line){pc_ignne_line, m, 0});
    return add_device(m, &ferr_device, m->ferr);
}

static bool create_isa_chips(struct machine *m)
{
    struct machine_control control = {control_request, m};
    struct hpet_lines hpet_lines = {.legacy = pc_hpet_legacy, .opaque = m};
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    if (m->config.deterministic)
        now = (struct timespec){.tv_sec = (time_t)m->config.epoch_s};
    m->pit = pit_create(m->bus, &m->clock, isa_line(m, 0));
    if (!add_device(m, &pit_device, m->pit))
        return false;
    m->rtc = rtc_create(m->bus, &m->device_clock, isa_line(m, 8),
                        (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec);
    if (!add_device(m, &rtc_device, m->rtc))
        return false;
    for (unsigned n = 0; n < MACHINE_SERIALS; n++) {
        m->serial[n] = (struct pc_serial){m, n};
        m->uart[n] = uart_create(m->bus, &m->clock, n ? COM2_BASE : COM1_BASE, isa_line(m, n ? 3 : 4),
                                 (struct char_out){pc_serial_write, &m->serial[n]});
        if (!add_device(m, &uart_device, m->uart[n]))
            return false;
    }
    m->i8042 = i8042_create(m->bus, &m->device_clock, isa_line(m, 1), isa_line(m, 12),
                            (struct irq_line){a20_line, m, 0}, control);
    if (!add_device(m, &i8042_device, m->i8042))
        return false;
    for (int n = 0; n < 24; n++)
        hpet_lines.gsi[n] = (struct irq_line){pc_hpet_line, m, n};
    m->hpet = hpet_create(&m->mem, &m->clock, hpet_lines);
    if (!add_device(m, &hpet_device, m->hpet))
        return false;
    if (!add_device(m, &debug_ports_device, debug_ports_create(m->bus, m->config.debugcon, control)))
        return false;
    return bus_claim(m->bus, SEABIOS_DEBUG_PORT, 1, &debug_port, m) == 0;
}

static bool create_pci_chips(struct machine *m)
{
    struct machine_control control = {control_request, m};
    struct irq_line gsi[24], isa[16];

    for (int n = 0; n < 24; n++)
        gsi[n] = (struct irq_line){pc_pci_gsi_line, m, n};
    for (int n = 0; n < 16; n++)
        isa[n] = (struct irq_line){pc_pci_isa_line, m, n};
    m->pci = pci_bus_create(m->bus, &m->mem, gsi, isa);
    if (!add_device(m, &pci_bus_device, m->pci))
        return false;
    pci_set_msi(m->pci, pc_msi, m);
    m->pm = NULL;
    if (!add_device(m, &i440fx_device, i440fx_create(m->pci, &m->mem)) ||
        !add_device(m, &piix3_device, piix3_create(m->pci, m->bus, control)))
        return false;
    m->pm = piix4pm_create(m->pci, m->bus, &m->device_clock, isa_line(m, 9), control);
    return add_device(m, &piix4pm_device, m->pm);
}

static int create_disks(struct machine *m, char *error, size_t error_size, bool *usage)
{
    for (unsigned n = 0; n < m->config.disk_count; n++) {
        const struct machine_disk *d = &m->config.disks[n];
        struct block *b = block_open(d->path, d->readonly, d->snapshot, error, error_size);
        if (!b) {
            *usage = true;
            return -EINVAL;
        }
        m->disks[m->disk_count++] = b;
        if (!add_device(m, &virtio_blk_device,
                        virtio_blk_create(m->pci, (PC_FIRST_SLOT + n) << 3, &m->mem, b)))
            return out_of_memory(error, error_size);
    }
    return 0;
}

// ---- what firmware reads
static void set_cmos(struct machine *m)
{
    uint64_t low = m->mem.low_size, high = m->mem.ram_size - low;
    uint64_t above_1m = (low - 0x100000) >> 10, above_16m = low > 0x1000000 ? (low - 0x1000000) >> 16 : 0;

    rtc_set_cmos(m->rtc, 0x14, 0x02); // equipment: FPU, no floppies, no display
    rtc_set_cmos(m->rtc, 0x15, 640 & 0xff);
    rtc_set_cmos(m->rtc, 0x16, 640 >> 8);
    if (above_1m > 0xffff)
        above_1m = 0xffff;
    if (above_16m > 0xffff)
        above_16m = 0xffff;
    for (unsigned n = 0; n < 2; n++) {
        rtc_set_cmos(m->rtc, 0x17 + n, (uint8_t)(above_1m >> 8 * n)); // KiB above 1 MiB
        rtc_set_cmos(m->rtc, 0x30 + n, (uint8_t)(above_1m >> 8 * n));
        rtc_set_cmos(m->rtc, 0x34 + n, (uint8_t)(above_16m >> 8 * n)); // 64 KiB units above 16 MiB
    }
    for (unsigned n = 0; n < 3; n++)
        rtc_set_cmos(m->rtc, 0x5b + n, (uint8_t)(high >> (16 + 8 * n))); // 64 KiB units above 4 GiB
    rtc_set_cmos(m->rtc, 0x38, 0x00);
    rtc_set_cmos(m->rtc, 0x3d, 0x02); // boot the first disk
    rtc_set_cmos(m->rtc, 0x5f, 0);    // CPUs but the first
}

static int add_e820(struct machine *m)
{
    struct e820_entry map[2] = {{0, m->mem.low_size, E820_RAM},
                                {1ull << 32, m->mem.ram_size - m->mem.low_size, E820_RAM}};
    return fw_cfg_add_file(m->fw_cfg, "etc/e820", map, map[1].size ? sizeof map : sizeof map[0]);
}

static int add_boot_order(struct machine *m)
{
    char order[MACHINE_MAX_DISKS * 40] = "";
    size_t used = 0;

    for (unsigned n = 0; n < m->disk_count; n++)
        used += (size_t)snprintf(order + used, sizeof order - used, "%s/pci@i0cf8/scsi@%x/disk@0,0",
                                 n ? "\n" : "", PC_FIRST_SLOT + n);
    return m->disk_count ? fw_cfg_add_file(m->fw_cfg, "bootorder", order, used + 1) : 0;
}

static int set_fw_cfg(struct machine *m)
{
    const uint64_t ram = m->mem.ram_size, serial_console = COM1_BASE;
    const uint16_t one = 1;
    const uint8_t irq0_override = 1;
    struct acpi_tables tables;
    int result = acpi_build(&tables, &m->acpi);

    if (result)
        return result;
    if (fw_cfg_add(m->fw_cfg, FW_CFG_RAM_SIZE, &ram, sizeof ram) ||
        fw_cfg_add(m->fw_cfg, FW_CFG_NOGRAPHIC, &one, sizeof one) ||
        fw_cfg_add(m->fw_cfg, FW_CFG_NB_CPUS, &one, sizeof one) ||
        fw_cfg_add(m->fw_cfg, FW_CFG_MAX_CPUS, &one, sizeof one) ||
        fw_cfg_add(m->fw_cfg, FW_CFG_BOOT_MENU, &one, sizeof one) ||
        fw_cfg_add(m->fw_cfg, FW_CFG_IRQ0_OVERRIDE, &irq0_override, sizeof irq0_override) ||
        // SeaBIOS shows its screen on COM1 when it is told where that is.
        fw_cfg_add_file(m->fw_cfg, "etc/sercon-port", &serial_console, sizeof serial_console) ||
        add_e820(m) || add_boot_order(m) || acpi_export(&tables, m->fw_cfg))
        result = -ENOMEM;
    acpi_free(&tables);
    return result;
}

// ---- life
int pc_create(struct machine *m, char *error, size_t error_size, bool *usage)
{
    int result;

    m->clock = (struct timer_queue){.now = pc_clock_now, .rearm = pc_clock_rearm, .opaque = m};
    m->device_clock = m->clock;
    m->clock_base_ns = pc_monotonic_ns();
    m->host_timer = -1;
    m->programmed_ns = m->due_ns = m->stop_at = NEVER;
    m->mem.changed = memory_changed;
    m->mem.changed_opaque = m;

    result = create_vcpu(m, error, error_size);
    if (result)
        return result;
    m->bus = bus_create();
    if (!m->bus || mem_add_mmio(&m->mem, 0xa0000, 0x20000, &no_vga, NULL, "VGA hole") < 0 ||
        !create_interrupt_chips(m) || !create_isa_chips(m) || !create_pci_chips(m))
        return out_of_memory(error, error_size);
    result = create_disks(m, error, error_size, usage);
    if (result)
        return result;
    m->fw_cfg = fw_cfg_create(m->bus, &m->mem);
    if (!add_device(m, &fw_cfg_device, m->fw_cfg) || set_fw_cfg(m))
        return out_of_memory(error, error_size);
    set_cmos(m);
    return 0;
}

void pc_destroy(struct machine *m)
{
    while (m->device_count) { // the reverse order: what is on a bus before the bus
        struct device *d = &m->devices[--m->device_count];
        if (d->ops->destroy)
            d->ops->destroy(d->opaque);
    }
    while (m->disk_count)
        block_close(m->disks[--m->disk_count]);
    if (m->v) {
        if (m->v->lapic)
            lapic_destroy(m->v->lapic);
        if (m->v->tlb)
            tlb_destroy(m->v->tlb);
        munmap(m->v, sizeof *m->v);
        m->v = NULL;
    }
    if (m->bus)
        bus_destroy(m->bus);
    m->bus = NULL;
}

void pc_reset(struct machine *m)
{
    for (unsigned n = 0; n < m->device_count; n++)
        if (m->devices[n].ops->reset)
            m->devices[n].ops->reset(m->devices[n].opaque);
    mem_set_a20(&m->mem, true); // the first fetch is at FFFFFFF0h
    cpu_reset(m->v);            // and the local APIC
    __atomic_and_fetch(&m->v->requests, REQ_EXIT | REQ_TIMER, __ATOMIC_ACQ_REL);
    mmu_flush_all(m->v, true);
}
