// Linux's zero page and the registers of its two entries (Documentation/arch/x86/boot.rst, zero-page.rst).
#include "bios/boot_params.h"
#include "cpu/cpu.h"
#include "mmu/mem.h"

#include <string.h>
#include <sys/random.h>

// struct boot_params
#define BP_ACPI_RSDP_ADDR 0x070 // from protocol 2.14
#define BP_EXT_RAMDISK    0x0c0 // upper halves: everything of ours is below 4 GiB
#define BP_ALT_MEM_K      0x1e0
#define BP_E820_ENTRIES   0x1e8
#define BP_SENTINEL       0x1ef
#define BP_E820_TABLE     0x2d0

#define TYPE_OF_LOADER_UNDEFINED 0xff
#define VID_MODE_NORMAL          0xffff

// struct setup_data (boot.rst, "setup_data"): next, type, length, data
#define SETUP_RNG_SEED 9
#define RNG_SEED_SIZE  32

// A kernel mixes this into its random number generator at once; without it early users wait for entropy that
// a machine without disks and keys is slow to give. Kernels that don't know the type pass over it.
static bool write_setup_data(const struct loader *l, struct mem_map *mem)
{
    struct {
        uint64_t next;
        uint32_t type, length;
        uint8_t seed[RNG_SEED_SIZE];
    } data = {.type = SETUP_RNG_SEED, .length = RNG_SEED_SIZE};

    if (!l->config.fixed_seed && getrandom(data.seed, sizeof data.seed, 0) != sizeof data.seed)
        data.length = 0;
    return mem_write(mem, BOOT_SETUP_DATA, &data, sizeof data);
}

bool boot_params_write(const struct loader *l, struct mem_map *mem)
{
    uint8_t page[4096] = {0};
    struct e820_entry map[E820_MAX];
    unsigned entries = loader_e820(l, mem, map);
    size_t header_end = HDR_JUMP + 1 + 1 + l->setup[HDR_JUMP + 1]; // the jump at 200h skips the header

    if (header_end > sizeof l->setup)
        header_end = sizeof l->setup;
    memcpy(page + HDR_SETUP_SECTS, l->setup + HDR_SETUP_SECTS, header_end - HDR_SETUP_SECTS);

    put32(page + BP_ALT_MEM_K, (uint32_t)((l->acpi_base - 0x100000) >> 10));
    page[BP_E820_ENTRIES] = (uint8_t)entries;
    memcpy(page + BP_E820_TABLE, map, entries * sizeof map[0]);
    page[BP_SENTINEL] = 0; // the fields below were set by a loader that knows them

    put16(page + HDR_VID_MODE, VID_MODE_NORMAL);
    page[HDR_TYPE_OF_LOADER] = TYPE_OF_LOADER_UNDEFINED;
    put32(page + HDR_CODE32_START, (uint32_t)l->segment[0].gpa);
    put32(page + HDR_RAMDISK_IMAGE, (uint32_t)l->initrd_base);
    put32(page + HDR_RAMDISK_SIZE, (uint32_t)l->initrd_size);
    put32(page + HDR_CMD_LINE_PTR, BOOT_CMDLINE);
    if (l->version >= 0x209) {
        if (!write_setup_data(l, mem))
            return false;
        put64(page + HDR_SETUP_DATA, BOOT_SETUP_DATA);
    }
    put64(page + BP_ACPI_RSDP_ADDR, BOOT_RSDP);
    put32(page + BP_EXT_RAMDISK, 0);
    return mem_write(mem, BOOT_CMDLINE, l->cmdline, strlen(l->cmdline) + 1) &&
           mem_write(mem, BOOT_PARAMS, page, sizeof page);
}

// boot.rst, "32-bit boot protocol": selectors __BOOT_CS (10h) and __BOOT_DS (18h), ESI the zero page, EBP EDI
// EBX 0.
void boot_state_linux32(struct vcpu *v, uint64_t entry)
{
    boot_state_flat32(v, entry, 0x10, 0x18);
    v->s.gpr[RSI] = BOOT_PARAMS;
}

#define PTE_P  1u
#define PTE_RW 2u
#define PTE_PS 0x80u

// Identity mapping of the first 4 GiB with 2 MiB pages.
static bool write_page_tables(struct mem_map *mem)
{
    uint64_t table[512] = {BOOT_PAGES + 0x1000 + (PTE_P | PTE_RW)};

    if (!mem_write(mem, BOOT_PAGES, table, sizeof table))
        return false;
    for (unsigned n = 0; n < 4; n++)
        table[n] = BOOT_PAGES + 0x2000 + n * 0x1000 + (PTE_P | PTE_RW);
    if (!mem_write(mem, BOOT_PAGES + 0x1000, table, sizeof table))
        return false;
    for (unsigned n = 0; n < 4; n++) {
        for (unsigned i = 0; i < 512; i++)
            table[i] = (uint64_t)(n * 512 + i) << 21 | (PTE_P | PTE_RW | PTE_PS);
        if (!mem_write(mem, BOOT_PAGES + 0x2000 + n * 0x1000, table, sizeof table))
            return false;
    }
    return true;
}

// boot.rst, "64-bit boot protocol": long mode, identity-mapped, RSI the zero page.
bool boot_state_linux64(struct vcpu *v, uint64_t entry)
{
    struct cpu_state *s = &v->s;
    const uint64_t gdt[4] = {0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff};

    if (!write_page_tables(v->mem))
        return false;
    boot_state_linux32(v, entry);
    mem_write(v->mem, BOOT_GDT, gdt, sizeof gdt);
    s->seg[SEG_CS].attr = (s->seg[SEG_CS].attr & ~SEG_DB) | SEG_L;
    s->cr0 = CR0_PE | CR0_ET | CR0_PG;
    s->cr3 = BOOT_PAGES;
    s->cr4 = CR4_PAE;
    s->efer = EFER_LME | EFER_LMA;
    v->mode_gen++;
    return true;
}
