// PVH direct boot (docs/misc/pvh.pandoc and xen/include/public/arch-x86/hvm/start_info.h of Xen): an ELF file
// whose note XEN_ELFNOTE_PHYS32_ENTRY names a 32-bit entry; EBX points to struct hvm_start_info.
#include "bios/boot_params.h"
#include "cpu/cpu.h"
#include "mmu/mem.h"

#include <errno.h>
#include <string.h>

#define START_MAGIC     0x336ec578u
#define START_VERSION   1u
#define START_INFO_SIZE 56u
#define MODULE_SIZE     32u
#define MEMMAP_ENTRY    24u
#define INITRD_LIMIT32  0x38000000u // what a 32-bit kernel maps at start

bool pvh_probe(const struct image *im)
{
    struct elf_info info;
    char ignored[8];

    return elf_probe(im) && elf_prepare(im, NULL, &info, ignored, sizeof ignored) == 0 && info.has_pvh;
}

static bool in_segment(const struct loader *l, uint64_t gpa)
{
    for (unsigned n = 0; n < l->segment_count; n++)
        if (gpa >= l->segment[n].gpa && gpa - l->segment[n].gpa < l->segment[n].memory_size)
            return true;
    return false;
}

int pvh_prepare(struct loader *l, char *error, size_t error_size)
{
    const struct image *im = l->config.kernel;
    struct elf_info info;
    int result = elf_prepare(im, l, &info, error, error_size);

    if (result)
        return result;
    if (!in_segment(l, info.pvh_entry))
        return loader_error(error, error_size, -EINVAL,
                            "kernel: %s: its PVH entry %#llx is in none of its segments: the file is damaged",
                            im->name, (unsigned long long)info.pvh_entry);
    if (info.is64 && !l->config.long_mode)
        return loader_error(
            error, error_size, -EINVAL,
            "kernel: %s: a 64-bit kernel, and this CPU model is 32-bit: choose another --cpu or a "
            "32-bit kernel",
            im->name);
    if (l->kernel_end < 0x100000)
        l->kernel_end = 0x100000;
    l->protocol = BOOT_PVH;
    l->entry = info.pvh_entry;
    l->info_base = BOOT_PARAMS;
    // The protocol allows several modules, but Linux looks at the first only: all initrds are one.
    return loader_place_initrds(l, l->kernel_end, info.is64 ? 1ull << 32 : INITRD_LIMIT32, error, error_size);
}

bool pvh_load(const struct loader *l, struct mem_map *mem, struct vcpu *v)
{
    uint8_t info[START_INFO_SIZE + MODULE_SIZE + E820_MAX * MEMMAP_ENTRY] = {0};
    struct e820_entry map[E820_MAX];
    unsigned entries = loader_e820(l, mem, map);
    const unsigned module = START_INFO_SIZE, memmap = START_INFO_SIZE + MODULE_SIZE;

    put32(info, START_MAGIC);
    put32(info + 4, START_VERSION);
    if (l->initrd_size) {
        put32(info + 12, 1);
        put64(info + 16, l->info_base + module);
        put64(info + module, l->initrd_base);
        put64(info + module + 8, l->initrd_size);
    }
    put64(info + 24, BOOT_CMDLINE);
    put64(info + 32, BOOT_RSDP);
    put64(info + 40, l->info_base + memmap);
    put32(info + 48, entries);
    for (unsigned n = 0; n < entries; n++) {
        uint8_t *entry = info + memmap + n * MEMMAP_ENTRY;
        put64(entry, map[n].base);
        put64(entry + 8, map[n].size);
        put32(entry + 16, map[n].type);
    }
    if (!mem_write(mem, l->info_base, info, sizeof info) ||
        !mem_write(mem, BOOT_CMDLINE, l->cmdline, strlen(l->cmdline) + 1))
        return false;
    boot_state_flat32(v, l->entry, 0x10, 0x18);
    v->s.gpr[RBX] = l->info_base;
    return true;
}
