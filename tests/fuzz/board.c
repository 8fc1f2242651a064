#include "tests/fuzz/board.h"
#include "tests/fuzz/fuzz.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#define RAM_SIZE  (16u << 20)
#define DISK_SIZE (1u << 20)

static uint64_t board_now(void *opaque)
{
    return ((struct board *)opaque)->now_ns;
}

static void a20(void *opaque, int n, int level)
{
    struct board *b = opaque;
    (void)n;
    mem_set_a20(&b->mem, level);
}

// Interrupt lines as devices/pc_core.c joins them, as far as chips can tell.
static void isa_line(void *opaque, int irq, int level)
{
    struct board *b = opaque;
    if (b->pic)
        pic_set_irq(b->pic, irq, level);
    if (b->ioapic)
        ioapic_set_irq(b->ioapic, irq == 0 ? 2 : irq, level);
}

static void gsi_line(void *opaque, int gsi, int level)
{
    struct board *b = opaque;
    if (b->ioapic)
        ioapic_set_irq(b->ioapic, gsi, level);
}

static void no_line(void *opaque, int n, int level)
{
    (void)opaque, (void)n, (void)level;
}

static void deliver(void *opaque, const struct apic_message *m)
{
    (void)opaque, (void)m;
}

static void request(void *opaque, enum machine_request what, uint32_t value)
{
    (void)opaque, (void)value;
    claim(what <= MACHINE_INIT_CPU, "request %d", (int)what);
}

static void out(void *opaque, const uint8_t *data, size_t n)
{
    struct board *b = opaque;
    for (size_t i = 0; i < n; i++) // a sanitizer sees what is no data
        b->sum += data[i];
}

static void legacy(void *opaque, bool enabled)
{
    struct board *b = opaque;
    if (b->pit)
        pit_set_irq0_enabled(b->pit, !enabled);
    if (b->rtc)
        rtc_set_irq8_enabled(b->rtc, !enabled);
}

static void msi(void *opaque, uint64_t address, uint32_t data)
{
    struct board *b = opaque;
    struct apic_message m = apic_msi_message(address, data);
    deliver(b, &m);
}

static void add(struct board *b, const struct device_ops *ops, void *opaque)
{
    claim(opaque && b->device_count < BOARD_DEVICES, "no chip: %s", ops->name);
    b->devices[b->device_count++] = (struct device){ops, opaque};
}

static struct block *make_disk(void)
{
    char path[64], error[512] = "";
    int fd = memfd_create("disk", MFD_CLOEXEC);
    claim(fd >= 0 && !ftruncate(fd, DISK_SIZE), "no disk");
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    struct block *disk = block_open(path, false, false, error, sizeof error);
    claim(disk, "%s", error);
    close(fd);
    return disk;
}

struct board *board_create(void)
{
    struct board *b = calloc(1, sizeof *b);
    struct machine_control control = {request, b};
    struct irq_line isa[16], gsi[24];
    struct hpet_lines hpet = {.legacy = legacy, .opaque = b};
    static const uint8_t table[5000] = {1, 2, 3};

    claim(b && !mem_create(&b->mem, RAM_SIZE), "no memory");
    b->bus = bus_create();
    claim(b->bus, "no bus");
    b->clock = (struct timer_queue){.now = board_now, .opaque = b};
    for (int n = 0; n < 16; n++)
        isa[n] = (struct irq_line){isa_line, b, n};
    for (int n = 0; n < 24; n++)
        gsi[n] = hpet.gsi[n] = (struct irq_line){gsi_line, b, n};
    add(b, &ioapic_device, b->ioapic = ioapic_create(&b->mem, (struct apic_bus){deliver, b}));
    add(b, &pic_device, b->pic = pic_create(b->bus, (struct irq_line){no_line, b, 0}));
    add(b, &pit_device, b->pit = pit_create(b->bus, &b->clock, isa[0]));
    add(b, &rtc_device, b->rtc = rtc_create(b->bus, &b->clock, isa[8], 1700000000000000000u));
    for (unsigned n = 0; n < 2; n++)
        add(b, &uart_device,
            b->uart[n] = uart_create(b->bus, &b->clock, n ? 0x2f8 : 0x3f8, isa[n ? 3 : 4], (struct char_out){out, b}));
    add(b, &i8042_device,
        b->i8042 = i8042_create(b->bus, &b->clock, isa[1], isa[12], (struct irq_line){a20, b, 0}, control));
    add(b, &hpet_device, b->hpet = hpet_create(&b->mem, &b->clock, hpet));
    add(b, &debug_ports_device, debug_ports_create(b->bus, (struct char_out){out, b}, control));
    add(b, &pci_bus_device, b->pci = pci_bus_create(b->bus, &b->mem, gsi, isa));
    pci_set_msi(b->pci, msi, b);
    add(b, &i440fx_device, i440fx_create(b->pci, &b->mem));
    add(b, &piix3_device, piix3_create(b->pci, b->bus, control));
    add(b, &piix4pm_device, b->pm = piix4pm_create(b->pci, b->bus, &b->clock, isa[9], control));
    b->disk = make_disk();
    add(b, &virtio_blk_device, virtio_blk_create(b->pci, BOARD_DEVFN, &b->mem, b->disk));
    add(b, &ferr_device, ferr_create(b->bus, isa[13], (struct irq_line){no_line, b, 0}));
    add(b, &fw_cfg_device, b->fw_cfg = fw_cfg_create(b->bus, &b->mem));
    claim(!fw_cfg_add_file(b->fw_cfg, "etc/table", table, sizeof table), "no file");
    board_reset(b);
    return b;
}

void board_destroy(struct board *b)
{
    while (b->device_count) {
        struct device *d = &b->devices[--b->device_count];
        d->ops->destroy(d->opaque);
    }
    block_close(b->disk);
    mem_destroy(&b->mem);
    bus_destroy(b->bus);
    free(b);
}

void board_reset(struct board *b)
{
    for (unsigned n = 0; n < b->device_count; n++)
        b->devices[n].ops->reset(b->devices[n].opaque);
    mem_set_a20(&b->mem, true);
}

void board_advance(struct board *b, uint64_t ns, unsigned limit)
{
    uint64_t end = b->now_ns > UINT64_MAX / 2 - ns ? UINT64_MAX / 2 : b->now_ns + ns;
    while (b->clock.head && b->clock.head->deadline_ns <= end && limit--) {
        if (b->clock.head->deadline_ns > b->now_ns)
            b->now_ns = b->clock.head->deadline_ns;
        timer_run(&b->clock);
    }
    if (b->now_ns < end)
        b->now_ns = end;
}

void board_touch(struct board *b, bool write)
{
    static const uint64_t windows[] = {0xfec00000, 0xfed00000};
    static const struct { uint16_t first, last; } ports[] = {
        {0x20, 0x21}, {0x40, 0x43}, {0x60, 0x64}, {0x70, 0x73}, {0x92, 0x92}, {0xa0, 0xa1}, {0x2f8, 0x2ff}, {0x3f8, 0x3ff},
        {0x4d0, 0x4d1}, {0x510, 0x511}, {0x600, 0x63f}, {0xcf8, 0xcff},
    };
    for (unsigned i = 0; i < sizeof ports / sizeof ports[0]; i++)
        for (uint16_t port = ports[i].first; port <= ports[i].last; port++) {
            uint32_t value = bus_read(b->bus, port, 1);
            if (write)
                bus_write(b->bus, port, 1, value);
        }
    for (unsigned i = 0; i < sizeof windows / sizeof windows[0]; i++)
        for (unsigned offset = 0; offset < 0x400; offset += 4) {
            uint64_t value = mem_mmio_read(&b->mem, windows[i] + offset, 4);
            if (write)
                mem_mmio_write(&b->mem, windows[i] + offset, 4, value);
        }
}
