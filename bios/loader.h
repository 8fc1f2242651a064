// Boot loaders for direct kernel boot, and firmware images. They stand where firmware and a boot loader stand
// on a PC: they put payload and tables into guest memory and set the vCPU's registers as the boot protocol
// says.
//
// Files are as hostile as guests: every offset and size in them is checked against the file and the guest's
// memory. Every failure is one line in `error`: what, where, what to do.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "bios/acpi.h"

struct mem_map;
struct vcpu;

#define LOADER_MAX_INITRDS 32
#define LOADER_CMDLINE_MAX 0xffffu

// A file read on demand, at every reset anew; or bytes in memory (fd < 0).
struct image {
    int fd;
    const uint8_t *data;
    uint64_t size; // bytes
    char name[256];
};

enum boot_protocol { BOOT_NONE, BOOT_BZIMAGE32, BOOT_BZIMAGE64, BOOT_MULTIBOOT, BOOT_PVH };

// What the loaders were asked for; the images stay the caller's.
struct loader_config {
    const struct image *kernel;
    const struct image *initrds;
    unsigned initrd_count;
    const char *cmdline;
    bool long_mode; // the CPU model has it
    bool fixed_seed; // what a kernel is given to begin its random numbers with is always the same
    struct acpi_config acpi;
};

// A piece of a file that goes to guest-physical [gpa, gpa + memory_size), zero-padded.
struct segment_load {
    uint64_t offset, file_size, gpa, memory_size; // bytes
};
#define LOADER_MAX_SEGMENTS 64

// The plan made by loader_prepare(): all checks are done, loader_load() only copies.
struct loader {
    struct loader_config config;
    char *cmdline; // owned
    enum boot_protocol protocol;
    struct segment_load segment[LOADER_MAX_SEGMENTS];
    unsigned segment_count;
    uint64_t entry;                    // guest-physical
    uint64_t kernel_end;               // first free byte above the kernel, its BSS included
    uint64_t low_ram, acpi_base;       // end of RAM below 4 GiB; of what the kernel may use of it
    uint64_t initrd_base, initrd_size; // bzImage, PVH: all initrds, each padded to 4 bytes; multiboot: unused
    uint64_t module_base[LOADER_MAX_INITRDS]; // multiboot
    uint64_t info_base;                       // multiboot, PVH: the information structure
    uint64_t info_size;
    uint8_t setup[0x290]; // bzImage: the first bytes of the file, header included
    uint16_t version;     // bzImage: boot protocol
    uint32_t multiboot_flags;
};

// ---- images (bios/loader.c)
// Opens a regular file. Returns 0, or -errno with a line in `error`.
int image_open(struct image *im, const char *path, const char *what, char *error, size_t error_size);
void image_close(struct image *im);
struct image image_memory(const char *name, const void *data, uint64_t size);
// Reads exactly n bytes; false if they lie outside the file or it can't be read.
bool image_read(const struct image *im, uint64_t offset, void *data, size_t n);
bool image_to_guest(const struct image *im, uint64_t offset, uint64_t n, struct mem_map *mem, uint64_t gpa);

// ---- direct boot
// Recognises the kernel, checks it and places everything. Returns 0, or -errno (-EINVAL: what was asked for
// can't be; -EIO: the file can't be read).
int loader_prepare(struct loader *l, const struct loader_config *config, struct mem_map *mem, char *error,
                   size_t error_size);
// Writes payload, tables and boot information into memory and sets v->s. The CPU must be at reset. Can be
// repeated.
int loader_load(const struct loader *l, struct mem_map *mem, struct vcpu *v, char *error, size_t error_size);
void loader_free(struct loader *l);

// ---- firmware (bios/firmware.c)
// Maps an image of 64 KiB to 16 MiB (a multiple of 4 KiB) as ROM that ends at 4 GiB, and its last 128 KiB as
// ROM that ends at 1 MiB. Once for a machine. Returns 0 or -errno with a line in `error`.
int firmware_map(const struct image *im, struct mem_map *mem, char *error, size_t error_size);

// ---- one per protocol: *_probe looks at the first bytes, *_prepare plans, *_load finishes what segments
// don't say
bool bzimage_probe(const struct image *im);
int bzimage_prepare(struct loader *l, char *error, size_t error_size);
bool bzimage_load(const struct loader *l, struct mem_map *mem, struct vcpu *v);
bool multiboot_probe(const struct image *im);
int multiboot_prepare(struct loader *l, char *error, size_t error_size);
bool multiboot_load(const struct loader *l, struct mem_map *mem, struct vcpu *v);
bool pvh_probe(const struct image *im);
int pvh_prepare(struct loader *l, char *error, size_t error_size);
bool pvh_load(const struct loader *l, struct mem_map *mem, struct vcpu *v);

// ---- shared by the loaders
int loader_error(char *error, size_t error_size, int code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
// Adds a segment after checking it against file and RAM.
int loader_add_segment(struct loader *l, uint64_t offset, uint64_t file_size, uint64_t gpa,
                       uint64_t memory_size, char *error, size_t error_size);
// Places the concatenated initrds as high as possible, ending below `limit` and starting above `floor`.
int loader_place_initrds(struct loader *l, uint64_t floor, uint64_t limit, char *error, size_t error_size);
bool loader_copy_initrds(const struct loader *l, struct mem_map *mem);

struct e820_entry {
    uint64_t base, size;
    uint32_t type;
} __attribute__((packed));
#define E820_RAM      1
#define E820_RESERVED 2
#define E820_ACPI     3
#define E820_MAX      16
// What BIOS call E820h would say under direct boot. Returns the number of entries.
unsigned loader_e820(const struct loader *l, const struct mem_map *mem, struct e820_entry map[E820_MAX]);

// Flat protected mode without paging, interrupts off: the state multiboot and PVH and Linux's 32-bit entry
// share.
void boot_state_flat32(struct vcpu *v, uint64_t entry, uint16_t cs, uint16_t ds);

// ---- ELF (bios/elf.c)
struct elf_info {
    bool is64;
    uint64_t entry;          // e_entry
    uint64_t entry_physical; // through the segment that holds it
    bool has_pvh;
    uint64_t pvh_entry;
};
bool elf_probe(const struct image *im);
// Checks headers and adds every PT_LOAD to l (null: only looks for notes).
int elf_prepare(const struct image *im, struct loader *l, struct elf_info *info, char *error,
                size_t error_size);

// ---- memory below 1 MiB under direct boot
#define BOOT_GDT        0x500u
#define BOOT_SETUP_DATA 0x6000u
#define BOOT_PARAMS     0x7000u
#define BOOT_PAGES      0x9000u // PML4, PDPT, four page directories
#define BOOT_CMDLINE    0x20000u
#define BOOT_EBDA       0x9fc00u
#define BOOT_RSDP       0xf0000u
#define BOOT_MPFP       0xf0040u // MP floating pointer
#define BOOT_PIR        0xf0400u // $PIR table
#define BOOT_MPTABLE    0xf1000u
