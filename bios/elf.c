// ELF executables of both classes, as kernels use them: program headers with physical addresses, and the Xen
// note that names a PVH entry (System V gABI chapter 5; xen/include/public/elfnote.h).
#include "bios/boot_params.h"

#include <elf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MAX_NOTES_SIZE           0x10000u // bytes of a PT_NOTE looked at
#define MAX_HEADERS              256u
#define XEN_ELFNOTE_PHYS32_ENTRY 18u

struct program_header { // of either class
    uint32_t type;
    uint64_t offset, vaddr, paddr, file_size, memory_size, align;
};

bool elf_probe(const struct image *im)
{
    uint8_t ident[EI_NIDENT];

    return image_read(im, 0, ident, sizeof ident) && !memcmp(ident, ELFMAG, SELFMAG);
}

static int read_header(const struct image *im, struct elf_info *info, uint64_t *table, unsigned *count,
                       unsigned *entry_size, char *error, size_t error_size)
{
    uint8_t e[sizeof(Elf64_Ehdr)] = {0};
    size_t size = im->size < sizeof e ? (size_t)im->size : sizeof e;
    unsigned type, machine;

    if (!image_read(im, 0, e, size) || size < sizeof(Elf32_Ehdr))
        return loader_error(error, error_size, -EINVAL, "kernel: %s: truncated ELF header: fetch it again",
                            im->name);
    info->is64 = e[EI_CLASS] == ELFCLASS64;
    if (info->is64 && size < sizeof(Elf64_Ehdr))
        return loader_error(error, error_size, -EINVAL, "kernel: %s: truncated ELF header: fetch it again",
                            im->name);
    if (e[EI_DATA] != ELFDATA2LSB)
        return loader_error(error, error_size, -EINVAL, "kernel: %s: a big-endian ELF file, not x86",
                            im->name);
    type = get16(e + 16);
    machine = get16(e + 18);
    if (machine != EM_386 && machine != EM_X86_64)
        return loader_error(error, error_size, -EINVAL,
                            "kernel: %s: an ELF file for machine %u, not x86 (3 or 62)", im->name, machine);
    if (type != ET_EXEC && type != ET_DYN)
        return loader_error(error, error_size, -EINVAL,
                            "kernel: %s: an ELF file that is not executable: link it", im->name);
    info->entry = info->is64 ? get64(e + 24) : get32(e + 24);
    *table = info->is64 ? get64(e + 32) : get32(e + 28);
    *entry_size = get16(e + (info->is64 ? 54 : 42));
    *count = get16(e + (info->is64 ? 56 : 44));
    if (*count == 0 || *count > MAX_HEADERS ||
        *entry_size < (info->is64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr)))
        return loader_error(
            error, error_size, -EINVAL,
            "kernel: %s: an ELF file with %u program headers of %u bytes: at most %u, for an executable",
            im->name, *count, *entry_size, MAX_HEADERS);
    return 0;
}

static bool read_program_header(const struct image *im, bool is64, uint64_t offset, struct program_header *p)
{
    uint8_t h[sizeof(Elf64_Phdr)];

    if (!image_read(im, offset, h, is64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr)))
        return false;
    if (is64)
        *p = (struct program_header){get32(h),      get64(h + 8),  get64(h + 16), get64(h + 24),
                                     get64(h + 32), get64(h + 40), get64(h + 48)};
    else
        *p = (struct program_header){get32(h),      get32(h + 4),  get32(h + 8), get32(h + 12),
                                     get32(h + 16), get32(h + 20), get32(h + 28)};
    return true;
}

// Notes are a name size, a descriptor size and a type, then both, each padded to the segment's alignment.
static void scan_notes(const struct image *im, const struct program_header *p, struct elf_info *info)
{
    uint64_t pad = p->align == 8 ? 7 : 3;
    size_t size = p->file_size < MAX_NOTES_SIZE ? (size_t)p->file_size : MAX_NOTES_SIZE;
    uint8_t *notes = malloc(size + 1);

    if (!notes || !image_read(im, p->offset, notes, size))
        goto out;
    for (uint64_t at = 0; at + 12 <= size;) {
        uint64_t name_size = get32(notes + at), desc_size = get32(notes + at + 4);
        uint32_t type = get32(notes + at + 8);
        uint64_t desc = (at + 12 + name_size + pad) & ~pad;
        uint64_t next = (desc + desc_size + pad) & ~pad;

        if (desc > size || desc_size > size - desc)
            break;
        if (type == XEN_ELFNOTE_PHYS32_ENTRY && name_size == 4 && !memcmp(notes + at + 12, "Xen", 4) &&
            (desc_size == 4 || desc_size == 8)) {
            info->has_pvh = true;
            info->pvh_entry = desc_size == 8 ? get64(notes + desc) : get32(notes + desc);
        }
        at = next;
    }
out:
    free(notes);
}

int elf_prepare(const struct image *im, struct loader *l, struct elf_info *info, char *error,
                size_t error_size)
{
    uint64_t table = 0;
    unsigned count = 0, entry_size = 0;
    int result;

    memset(info, 0, sizeof *info);
    result = read_header(im, info, &table, &count, &entry_size, error, error_size);
    if (result)
        return result;
    info->entry_physical = info->entry;
    for (unsigned n = 0; n < count; n++) {
        struct program_header p;

        if (table > im->size || !read_program_header(im, info->is64, table + (uint64_t)n * entry_size, &p))
            return loader_error(
                error, error_size, -EINVAL,
                "kernel: %s: truncated: its program headers are not in the file: fetch it again", im->name);
        if (p.type == PT_NOTE)
            scan_notes(im, &p, info);
        if (p.type != PT_LOAD || !l)
            continue;
        if (p.memory_size < p.file_size)
            return loader_error(
                error, error_size, -EINVAL,
                "kernel: %s: segment %u is larger in the file than in memory: the file is damaged", im->name,
                n);
        result = loader_add_segment(l, p.offset, p.file_size, p.paddr, p.memory_size, error, error_size);
        if (result)
            return result;
        if (info->entry >= p.vaddr && info->entry - p.vaddr < p.memory_size)
            info->entry_physical = info->entry - p.vaddr + p.paddr;
    }
    if (l && l->segment_count == 0)
        return loader_error(error, error_size, -EINVAL, "kernel: %s: an ELF file with nothing to load",
                            im->name);
    return 0;
}
