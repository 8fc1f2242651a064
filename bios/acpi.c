// ACPI 2.0 tables of the machine (ACPI Specification 6.4 chapter 5). The DSDT is compiled from acpi/dsdt.asl;
// the rest depends on the configuration and is put together here, in one block without an address: pointers
// hold offsets into the block until acpi_relocate() or the guest's firmware (following "etc/table-loader")
// makes them addresses.
#include "bios/acpi.h"
#include "devices/chips.h"
#include "dsdt_aml.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CAPACITY        0x8000u
#define HEADER_SIZE     36u
#define HEADER_CHECKSUM 9u

// The machine's fixed resources.
#define LAPIC_BASE         0xfee00000u
#define IOAPIC_BASE        0xfec00000u
#define HPET_BASE          0xfed00000u
#define PM_BASE            0x600u
#define SCI_IRQ            9u
#define APMC               0xb2u
#define ACPI_ENABLE_VALUE  0xf1u
#define ACPI_DISABLE_VALUE 0xf0u
#define RESET_PORT         0xcf9u
#define RESET_VALUE        0x06u

// FADT (5.2.9)
#define FADT_SIZE           244u // revision 3
#define FADT_WBINVD         (1u << 0)
#define FADT_PROC_C1        (1u << 2)
#define FADT_SLP_BUTTON     (1u << 5) // no fixed sleep button
#define FADT_RTC_NOT_FIXED  (1u << 6)
#define FADT_RESET_REG      (1u << 10)
#define IAPC_LEGACY_DEVICES 0x01u
#define IAPC_8042           0x02u
#define IAPC_NO_VGA         0x04u
#define LAT_C2_UNSUPPORTED  101u
#define LAT_C3_UNSUPPORTED  1001u

static void put(uint8_t *p, uint64_t value, unsigned size)
{
    for (unsigned n = 0; n < size; n++)
        p[n] = (uint8_t)(value >> 8 * n);
}

static uint64_t get(const uint8_t *p, unsigned size)
{
    uint64_t value = 0;

    for (unsigned n = 0; n < size; n++)
        value |= (uint64_t)p[n] << 8 * n;
    return value;
}

// ---- windows
#define PCI_HOLE_END 0xfebfffffull // below the I/O APIC

struct pci_window acpi_pci_window32(const struct acpi_config *config)
{
    return (struct pci_window){config->low_ram, PCI_HOLE_END};
}

// The upper half of what the processor can address, above RAM and at most 1 TiB of it.
struct pci_window acpi_pci_window64(const struct acpi_config *config)
{
    unsigned bits = config->phys_bits > 46 ? 46 : config->phys_bits;
    struct pci_window none = {1, 0};

    if (bits <= 36)
        return none;
    uint64_t end = 1ull << bits, size = end / 2 < 1ull << 40 ? end / 2 : 1ull << 40, base = end - size;
    if (base < config->high_ram)
        base = (config->high_ram + (1ull << 30) - 1) & ~((1ull << 30) - 1);
    return base < end ? (struct pci_window){base, end - 1} : none;
}

// ---- assembling
// Room for a table of `size` bytes at a multiple of `align`; the block has been made large enough for all of
// them.
static uint8_t *reserve(struct acpi_tables *t, uint32_t size, uint32_t align, uint32_t *offset)
{
    uint32_t at = (t->size + align - 1) & ~(align - 1);

    if (at > t->capacity || size > t->capacity - at)
        return NULL;
    *offset = at;
    t->size = at + size;
    return t->data + at;
}

static void fix_pointer(struct acpi_tables *t, uint32_t offset, unsigned size, uint32_t target)
{
    put(t->data + offset, target, size);
    t->pointer[t->pointer_count].offset = offset;
    t->pointer[t->pointer_count++].size = (uint8_t)size;
}

static void fix_checksum(struct acpi_tables *t, uint32_t start, uint32_t length)
{
    t->data[start + HEADER_CHECKSUM] = 0;
    t->checksum[t->checksum_count].offset = start + HEADER_CHECKSUM;
    t->checksum[t->checksum_count].start = start;
    t->checksum[t->checksum_count++].length = length;
}

static void header(uint8_t *p, const char *signature, uint32_t length, uint8_t revision)
{
    memcpy(p, signature, 4);
    put(p + 4, length, 4);
    p[8] = revision;
    memcpy(p + 10, "GNOMON", 6);
    memcpy(p + 16, "GNOMONPC", 8);
    put(p + 24, 1, 4);
    memcpy(p + 28, "GNMN", 4);
    put(p + 32, 1, 4);
}

static void gas_io(uint8_t *p, uint16_t port, unsigned bits, unsigned access)
{
    p[0] = 1; // system I/O
    p[1] = (uint8_t)bits;
    p[3] = (uint8_t)access; // 1 byte, 2 word, 3 dword
    put(p + 4, port, 8);
}

static bool add_fadt(struct acpi_tables *t, uint32_t facs, uint32_t dsdt, uint32_t *offset)
{
    uint8_t *p = reserve(t, FADT_SIZE, 16, offset);

    if (!p)
        return false;
    header(p, "FACP", FADT_SIZE, 3);
    fix_pointer(t, *offset + 36, 4, facs);
    fix_pointer(t, *offset + 40, 4, dsdt);
    put(p + 46, SCI_IRQ, 2);
    put(p + 48, APMC, 4);
    p[52] = ACPI_ENABLE_VALUE;
    p[53] = ACPI_DISABLE_VALUE;
    put(p + 56, PM_BASE, 4);       // PM1a_EVT_BLK
    put(p + 64, PM_BASE + 4, 4);   // PM1a_CNT_BLK
    put(p + 76, PM_BASE + 8, 4);   // PM_TMR_BLK
    put(p + 80, PM_BASE + 0xc, 4); // GPE0_BLK
    p[88] = 4;
    p[89] = 2;
    p[91] = 4;
    p[92] = 4;
    put(p + 96, LAT_C2_UNSUPPORTED, 2);
    put(p + 98, LAT_C3_UNSUPPORTED, 2);
    p[108] = 0x32; // century register of the RTC
    put(p + 109, IAPC_LEGACY_DEVICES | IAPC_8042 | IAPC_NO_VGA, 2);
    put(p + 112, FADT_WBINVD | FADT_PROC_C1 | FADT_SLP_BUTTON | FADT_RTC_NOT_FIXED | FADT_RESET_REG, 4);
    gas_io(p + 116, RESET_PORT, 8, 1);
    p[128] = RESET_VALUE;
    fix_pointer(t, *offset + 140, 8, dsdt); // X_DSDT; X_FIRMWARE_CTRL stays 0, as the 32-bit field is there
    gas_io(p + 148, PM_BASE, 32, 2);
    gas_io(p + 172, PM_BASE + 4, 16, 2);
    gas_io(p + 208, PM_BASE + 8, 32, 3);
    gas_io(p + 220, PM_BASE + 0xc, 32, 1);
    fix_checksum(t, *offset, FADT_SIZE);
    return true;
}

// 5.2.12. ISA interrupt 0 is on input 2; those that PCI or the SCI may use are level-triggered, active high.
static bool add_madt(struct acpi_tables *t, const struct acpi_config *config, uint32_t *offset)
{
    static const uint8_t level_irqs[] = {5, 9, 10, 11};
    uint32_t size = HEADER_SIZE + 8 + config->cpus * 8 + 12 + 10 + sizeof level_irqs * 10 + 6;
    uint8_t *start = reserve(t, size, 16, offset), *p = start;

    if (!start)
        return false;
    header(p, "APIC", size, 1);
    p += HEADER_SIZE;
    put(p, LAPIC_BASE, 4);
    put(p + 4, 1, 4); // PCAT_COMPAT: there is an 8259 pair
    p += 8;
    for (unsigned n = 0; n < config->cpus; n++, p += 8) {
        const uint8_t local_apic[8] = {0, 8, (uint8_t)n, (uint8_t)n, 1};
        memcpy(p, local_apic, sizeof local_apic);
    }
    p[0] = 1; // I/O APIC
    p[1] = 12;
    p[2] = (uint8_t)config->cpus;
    put(p + 4, IOAPIC_BASE, 4);
    p += 12;
    const uint8_t timer[10] = {2, 10, 0, 0, 2}; // source 0 is GSI 2, polarity and trigger as the bus
    memcpy(p, timer, sizeof timer);
    p += 10;
    for (unsigned n = 0; n < sizeof level_irqs; n++, p += 10) {
        const uint8_t level[10] = {2, 10, 0, level_irqs[n], level_irqs[n], 0, 0, 0, 0x0d};
        memcpy(p, level, sizeof level);
    }
    const uint8_t nmi[6] = {4, 6, 0xff, 0, 0, 1}; // LINT1 of every processor
    memcpy(p, nmi, sizeof nmi);
    fix_checksum(t, *offset, size);
    return true;
}

// IA-PC HPET 1.0a, 3.2.4: three comparators, 64-bit counter, legacy replacement.
static bool add_hpet(struct acpi_tables *t, uint32_t *offset)
{
    uint8_t *p = reserve(t, 56, 16, offset);

    if (!p)
        return false;
    header(p, "HPET", 56, 1);
    put(p + 36, 0x8086a201, 4);
    p[41] = 64; // address structure: memory
    put(p + 44, HPET_BASE, 8);
    put(p + 53, 128, 2); // fewest ticks of a periodic timer that loses none
    fix_checksum(t, *offset, 56);
    return true;
}

// Sets an integer of the DSDT that the ASL declares with a placeholder of 32 bits: NameOp, name, DWordPrefix,
// value (20.2.5.1, 20.2.3).
static bool set_aml_name(uint8_t *aml, size_t size, const char *name, uint64_t value)
{
    for (size_t at = HEADER_SIZE; at + 10 <= size; at++) {
        if (aml[at] == 0x08 && !memcmp(aml + at + 1, name, 4) && aml[at + 5] == 0x0c) {
            put(aml + at + 6, value, 4);
            return true;
        }
    }
    return false;
}

static bool add_dsdt(struct acpi_tables *t, const struct acpi_config *config, uint32_t *offset)
{
    struct pci_window w32 = acpi_pci_window32(config), w64 = acpi_pci_window64(config);
    uint8_t *p = reserve(t, sizeof dsdt_aml, 16, offset);

    if (!p)
        return false;
    memcpy(p, dsdt_aml, sizeof dsdt_aml);
    fix_checksum(t, *offset, sizeof dsdt_aml);
    uint64_t size64 = w64.limit + 1 - w64.base; // both ends are multiples of 1 GiB
    return set_aml_name(p, sizeof dsdt_aml, "P32B", w32.base) &&
           set_aml_name(p, sizeof dsdt_aml, "P32E", w32.limit) &&
           set_aml_name(p, sizeof dsdt_aml, "P64B", size64 ? w64.base >> 20 : 0) &&
           set_aml_name(p, sizeof dsdt_aml, "P64N", size64 >> 20);
}

static bool add_root(struct acpi_tables *t, const char *signature, unsigned pointer_size,
                     const uint32_t *tables, unsigned count, uint32_t *offset)
{
    uint32_t size = HEADER_SIZE + count * pointer_size;
    uint8_t *p = reserve(t, size, 16, offset);

    if (!p)
        return false;
    header(p, signature, size, 1);
    for (unsigned n = 0; n < count; n++)
        fix_pointer(t, *offset + HEADER_SIZE + n * pointer_size, pointer_size, tables[n]);
    fix_checksum(t, *offset, size);
    return true;
}

int acpi_build(struct acpi_tables *t, const struct acpi_config *config)
{
    uint32_t facs, dsdt, tables[3];
    unsigned count = 0;
    uint8_t *p;

    memset(t, 0, sizeof *t);
    t->capacity = CAPACITY + sizeof dsdt_aml + config->cpus * 8;
    t->data = calloc(1, t->capacity);
    if (!t->data)
        return -ENOMEM;

    p = reserve(t, 64, 64, &facs); // 5.2.10
    memcpy(p, "FACS", 4);
    put(p + 4, 64, 4);
    p[32] = 1; // version
    if (!add_dsdt(t, config, &dsdt) || !add_fadt(t, facs, dsdt, &tables[count++]) ||
        (config->apic && !add_madt(t, config, &tables[count++])) || !add_hpet(t, &tables[count++]) ||
        !add_root(t, "RSDT", 4, tables, count, &t->rsdt) || !add_root(t, "XSDT", 8, tables, count, &t->xsdt))
        goto fail;

    memcpy(t->rsdp, "RSD PTR ", 8); // 5.2.5.3
    memcpy(t->rsdp + 9, "GNOMON", 6);
    t->rsdp[15] = 2;
    put(t->rsdp + 16, t->rsdt, 4);
    put(t->rsdp + 20, sizeof t->rsdp, 4);
    put(t->rsdp + 24, t->xsdt, 8);
    return 0;
fail:
    acpi_free(t);
    return -ENOMEM;
}

void acpi_free(struct acpi_tables *t)
{
    free(t->data);
    t->data = NULL;
    t->size = 0;
}

static uint8_t checksum(const uint8_t *p, size_t n)
{
    uint8_t sum = 0;

    while (n--)
        sum += *p++;
    return (uint8_t)-sum;
}

void acpi_relocate(struct acpi_tables *t, uint64_t base)
{
    for (unsigned n = 0; n < t->pointer_count; n++) {
        uint8_t *p = t->data + t->pointer[n].offset;
        put(p, get(p, t->pointer[n].size) + base, t->pointer[n].size);
    }
    for (unsigned n = 0; n < t->checksum_count; n++)
        t->data[t->checksum[n].offset] = checksum(t->data + t->checksum[n].start, t->checksum[n].length);
    put(t->rsdp + 16, t->rsdt + base, 4);
    put(t->rsdp + 24, t->xsdt + base, 8);
    t->rsdp[8] = checksum(t->rsdp, 20);
    t->rsdp[32] = checksum(t->rsdp, sizeof t->rsdp);
}

// ---- for firmware: a script of fixed-size commands (QEMU, docs/specs and hw/acpi/bios-linker-loader)
#define COMMAND_SIZE     128u
#define FILE_NAME        56u
#define CMD_ALLOCATE     1u // file, align, zone
#define CMD_ADD_POINTER  2u // file to patch, file pointed to, offset, size
#define CMD_ADD_CHECKSUM 3u // file, offset of the byte, start, length
#define ZONE_HIGH        1u
#define ZONE_FSEG        2u
#define TABLES_FILE      "etc/acpi/tables"
#define RSDP_FILE        "etc/acpi/rsdp"

static uint8_t *command(uint8_t *p, uint32_t what, const char *file)
{
    put(p, what, 4);
    memcpy(p + 4, file, strlen(file));
    return p + 4 + FILE_NAME;
}

static uint8_t *allocate_command(uint8_t *p, const char *file, uint32_t align, uint8_t zone)
{
    uint8_t *args = command(p, CMD_ALLOCATE, file);

    put(args, align, 4);
    args[4] = zone;
    return p + COMMAND_SIZE;
}

static uint8_t *pointer_command(uint8_t *p, const char *file, uint32_t offset, uint8_t size)
{
    uint8_t *args = command(p, CMD_ADD_POINTER, file);

    memcpy(args, TABLES_FILE, sizeof TABLES_FILE);
    put(args + FILE_NAME, offset, 4);
    args[FILE_NAME + 4] = size;
    return p + COMMAND_SIZE;
}

static uint8_t *checksum_command(uint8_t *p, const char *file, uint32_t offset, uint32_t start,
                                 uint32_t length)
{
    uint8_t *args = command(p, CMD_ADD_CHECKSUM, file);

    put(args, offset, 4);
    put(args + 4, start, 4);
    put(args + 8, length, 4);
    return p + COMMAND_SIZE;
}

int acpi_export(const struct acpi_tables *t, struct fw_cfg *f)
{
    unsigned count = 2 + t->pointer_count + 2 + t->checksum_count + 2;
    uint8_t *script = calloc(count, COMMAND_SIZE), *p = script;
    int result;

    if (!script)
        return -ENOMEM;
    p = allocate_command(p, TABLES_FILE, 64, ZONE_HIGH);
    p = allocate_command(p, RSDP_FILE, 16, ZONE_FSEG);
    for (unsigned n = 0; n < t->pointer_count; n++)
        p = pointer_command(p, TABLES_FILE, t->pointer[n].offset, t->pointer[n].size);
    for (unsigned n = 0; n < t->checksum_count; n++)
        p = checksum_command(p, TABLES_FILE, t->checksum[n].offset, t->checksum[n].start,
                             t->checksum[n].length);
    p = pointer_command(p, RSDP_FILE, 16, 4);
    p = pointer_command(p, RSDP_FILE, 24, 8);
    p = checksum_command(p, RSDP_FILE, 8, 0, 20);
    checksum_command(p, RSDP_FILE, 32, 0, sizeof t->rsdp);

    result = fw_cfg_add_file(f, TABLES_FILE, t->data, t->size);
    if (!result)
        result = fw_cfg_add_file(f, RSDP_FILE, t->rsdp, sizeof t->rsdp);
    if (!result)
        result = fw_cfg_add_file(f, "etc/table-loader", script, (size_t)count * COMMAND_SIZE);
    free(script);
    return result;
}
