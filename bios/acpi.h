// The tables a PC's firmware leaves for operating systems: ACPI 2.0, MultiProcessor 1.4, PCI interrupt
// routing ($PIR).
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct mem_map;
struct fw_cfg;

// IRQs that PIRQA..PIRQD are routed to by our set-up code (and by SeaBIOS).
#define PIRQ_IRQ(pirq) ((pirq)&1 ? 11 : 10)

struct acpi_config {
    unsigned cpus;      // local APIC ids 0..cpus-1
    bool apic;          // there are local and I/O APICs
    uint64_t low_ram;   // end of RAM below 4 GiB: the PCI window starts there
    uint64_t high_ram;  // end of RAM above 4 GiB (4 GiB if there is none)
    unsigned phys_bits; // MAXPHYADDR of the CPU model
};

#define ACPI_MAX_FIXUPS 32
// All tables but the RSDP in one block, not yet at an address: pointers hold offsets, checksums are zero.
struct acpi_tables {
    uint8_t *data;           // owned
    uint32_t size, capacity; // bytes
    uint32_t rsdt, xsdt;     // offsets
    struct {
        uint32_t offset;
        uint8_t size;
    } pointer[ACPI_MAX_FIXUPS];
    unsigned pointer_count;
    struct {
        uint32_t offset, start, length;
    } checksum[ACPI_MAX_FIXUPS];
    unsigned checksum_count;
    uint8_t rsdp[36]; // pointers hold offsets into data
};

// Size of the area for the tables at the top of low RAM under direct boot.
#define ACPI_AREA_SIZE 0x10000u

// Returns 0 or -ENOMEM.
int acpi_build(struct acpi_tables *t, const struct acpi_config *config);
void acpi_free(struct acpi_tables *t);
// Fixes pointers and checksums up for a block that will be at `base`.
void acpi_relocate(struct acpi_tables *t, uint64_t base);
// "etc/acpi/tables", "etc/acpi/rsdp" and "etc/table-loader" for firmware. t must not be relocated. 0 or
// -errno.
int acpi_export(const struct acpi_tables *t, struct fw_cfg *f);

// The PCI windows as _CRS shows them; limit is inclusive. The 64-bit one is empty (limit < base) for CPUs
// that can't reach it.
struct pci_window {
    uint64_t base, limit;
};
struct pci_window acpi_pci_window32(const struct acpi_config *config);
struct pci_window acpi_pci_window64(const struct acpi_config *config);

// MultiProcessor Specification 1.4 tables: floating pointer (16 bytes) at fp_gpa, configuration table at
// table_gpa.
bool mptable_write(struct mem_map *mem, const struct acpi_config *config, uint64_t fp_gpa,
                   uint64_t table_gpa);
// $PIR table for kernels without ACPI and I/O APIC.
bool pirtable_write(struct mem_map *mem, uint64_t gpa);

// What firmware does to PCI before it boots: BARs, interrupt lines, PIRQ routing, PAM (all RAM).
struct bus;
void pci_setup(struct bus *ports, const struct acpi_config *config);
