// Multiboot 0.6.96 (version 1): ELF kernels of both classes and images described by the header itself (a.out
// kludge). The information structure, command line, module list and memory map go behind the last module, as
// GRUB puts them.
#include "bios/boot_params.h"
#include "cpu/cpu.h"
#include "mmu/mem.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define HEADER_SEARCH 8192u
#define HEADER_MAGIC  0x1badb002u
#define LOADER_MAGIC  0x2badb002u
// Header flags (3.1.2). Bits 0..15 must be understood, others may be ignored.
#define FLAG_PAGE_ALIGN  0x00000001u
#define FLAG_MEMORY_INFO 0x00000002u
#define FLAG_VIDEO_MODE  0x00000004u
#define FLAG_MUST_KNOW   0x0000ffffu
#define FLAG_ADDRESSES   0x00010000u

// Information structure (3.3).
#define INFO_SIZE    120u
#define INFO_MEMORY  0x001u
#define INFO_CMDLINE 0x004u
#define INFO_MODULES 0x008u
#define INFO_MMAP    0x040u
#define INFO_LOADER  0x200u
#define LOADER_NAME  "gnomon"
#define MMAP_ENTRY   24u
#define MODULE_ENTRY 16u

struct multiboot_header {
    uint32_t position; // in the file
    uint32_t flags;
    uint32_t header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr;
};

static bool find_header(const struct image *im, struct multiboot_header *h)
{
    size_t size = im->size < HEADER_SEARCH ? (size_t)im->size : HEADER_SEARCH;
    uint8_t *head = malloc(HEADER_SEARCH);
    bool found = false;

    if (!head || !image_read(im, 0, head, size))
        goto out;
    for (size_t at = 0; at + 12 <= size && !found; at += 4) {
        const uint8_t *p = head + at;
        uint32_t flags = get32(p + 4);
        if (get32(p) != HEADER_MAGIC || HEADER_MAGIC + flags + get32(p + 8) != 0)
            continue;
        if ((flags & FLAG_ADDRESSES) && at + 32 > size)
            continue;
        *h = (struct multiboot_header){.position = (uint32_t)at, .flags = flags};
        if (flags & FLAG_ADDRESSES) {
            h->header_addr = get32(p + 12);
            h->load_addr = get32(p + 16);
            h->load_end_addr = get32(p + 20);
            h->bss_end_addr = get32(p + 24);
            h->entry_addr = get32(p + 28);
        }
        found = true;
    }
out:
    free(head);
    return found;
}

bool multiboot_probe(const struct image *im)
{
    struct multiboot_header h;
    return find_header(im, &h);
}

// 3.1.3: the header tells where in memory the file goes.
static int prepare_addresses(struct loader *l, const struct multiboot_header *h, char *error,
                             size_t error_size)
{
    const struct image *im = l->config.kernel;
    uint32_t before = h->header_addr - h->load_addr; // file bytes that are loaded in front of the header
    uint64_t file_size, memory_size;

    if (h->header_addr < h->load_addr || before > h->position ||
        (h->load_end_addr && h->load_end_addr < h->load_addr))
        return loader_error(error, error_size, -EINVAL,
                            "kernel: %s: the load addresses of its multiboot header contradict each other",
                            im->name);
    uint64_t offset = h->position - before;
    file_size = h->load_end_addr ? h->load_end_addr - h->load_addr : im->size - offset;
    memory_size = file_size;
    if (h->bss_end_addr) {
        if (h->bss_end_addr < h->load_addr || h->bss_end_addr - h->load_addr < file_size)
            return loader_error(error, error_size, -EINVAL,
                                "kernel: %s: the BSS of its multiboot header ends before its data", im->name);
        memory_size = h->bss_end_addr - h->load_addr;
    }
    l->entry = h->entry_addr;
    return loader_add_segment(l, offset, file_size, h->load_addr, memory_size, error, error_size);
}

// What follows the kernel, with `at` starting at the information structure.
static uint64_t info_size(const struct loader *l)
{
    uint64_t size = INFO_SIZE + sizeof LOADER_NAME + E820_MAX * MMAP_ENTRY + 8;

    size += strlen(l->config.kernel->name) + 1 + strlen(l->cmdline) + 1;
    for (unsigned n = 0; n < l->config.initrd_count; n++)
        size += MODULE_ENTRY + strlen(l->config.initrds[n].name) + 1;
    return size;
}

static int place_modules(struct loader *l, char *error, size_t error_size)
{
    uint64_t at = (l->kernel_end + 0xfff) & ~0xfffull;

    for (unsigned n = 0; n < l->config.initrd_count; n++) {
        const struct image *im = &l->config.initrds[n];
        if (at >= l->acpi_base || im->size > l->acpi_base - at)
            return loader_error(error, error_size, -EINVAL,
                                "initrd: %s: %llu MiB do not fit above %llu MiB: give more --memory",
                                im->name, (unsigned long long)((im->size + 0xfffff) >> 20),
                                (unsigned long long)(at >> 20));
        l->module_base[n] = at;
        at = (at + im->size + 0xfff) & ~0xfffull;
    }
    l->info_base = at;
    l->info_size = info_size(l);
    if (at >= l->acpi_base || l->info_size > l->acpi_base - at)
        return loader_error(error, error_size, -EINVAL,
                            "kernel: %s: no memory is left for the boot information: give more --memory",
                            l->config.kernel->name);
    return 0;
}

int multiboot_prepare(struct loader *l, char *error, size_t error_size)
{
    const struct image *im = l->config.kernel;
    struct multiboot_header h;
    int result;

    if (!find_header(im, &h))
        return loader_error(error, error_size, -EIO, "kernel: %s: can't be read", im->name);
    uint32_t unknown = h.flags & FLAG_MUST_KNOW & ~(FLAG_PAGE_ALIGN | FLAG_MEMORY_INFO | FLAG_VIDEO_MODE);
    if (unknown)
        return loader_error(
            error, error_size, -EINVAL,
            "kernel: %s: its multiboot header demands features %#x, which multiboot 0.6.96 does not "
            "define: it is too new",
            im->name, unknown);
    if (h.flags & FLAG_ADDRESSES) {
        result = prepare_addresses(l, &h, error, error_size);
    } else if (elf_probe(im)) {
        struct elf_info info;
        result = elf_prepare(im, l, &info, error, error_size);
        l->entry = info.entry_physical;
    } else {
        result = loader_error(
            error, error_size, -EINVAL,
            "kernel: %s: a multiboot kernel that is no ELF file and gives no load addresses", im->name);
    }
    if (result)
        return result;
    if (l->entry >= 1ull << 32)
        return loader_error(error, error_size, -EINVAL, "kernel: %s: its entry %#llx is above 4 GiB",
                            im->name, (unsigned long long)l->entry);
    if (l->kernel_end < 0x100000)
        l->kernel_end = 0x100000;
    l->protocol = BOOT_MULTIBOOT;
    l->multiboot_flags = h.flags;
    return place_modules(l, error, error_size);
}

struct writer { // appends to the information block
    uint8_t *data;
    uint64_t base;
    size_t used;
};

static uint32_t append(struct writer *w, const void *data, size_t n)
{
    uint32_t gpa = (uint32_t)(w->base + w->used);

    memcpy(w->data + w->used, data, n);
    w->used += n;
    return gpa;
}

static uint32_t append_string(struct writer *w, const char *s)
{
    return append(w, s, strlen(s) + 1);
}

// Entries carry their size, not counting that field itself (3.3).
static uint32_t append_mmap(struct writer *w, const struct loader *l, const struct mem_map *mem,
                            uint32_t *length)
{
    struct e820_entry map[E820_MAX];
    unsigned entries = loader_e820(l, mem, map);
    uint32_t gpa = (uint32_t)(w->base + w->used);

    for (unsigned n = 0; n < entries; n++) {
        uint8_t entry[MMAP_ENTRY];
        put32(entry, MMAP_ENTRY - 4);
        put64(entry + 4, map[n].base);
        put64(entry + 12, map[n].size);
        put32(entry + 20, map[n].type);
        append(w, entry, sizeof entry);
    }
    *length = entries * MMAP_ENTRY;
    return gpa;
}

static uint32_t append_modules(struct writer *w, const struct loader *l)
{
    uint8_t list[LOADER_MAX_INITRDS * MODULE_ENTRY] = {0};

    for (unsigned n = 0; n < l->config.initrd_count; n++) {
        uint8_t *entry = list + n * MODULE_ENTRY;
        put32(entry, (uint32_t)l->module_base[n]);
        put32(entry + 4, (uint32_t)(l->module_base[n] + l->config.initrds[n].size));
        put32(entry + 8, append_string(w, l->config.initrds[n].name));
    }
    w->used = (w->used + 3) & ~(size_t)3;
    return append(w, list, l->config.initrd_count * MODULE_ENTRY);
}

bool multiboot_load(const struct loader *l, struct mem_map *mem, struct vcpu *v)
{
    struct writer w = {calloc(1, l->info_size), l->info_base, INFO_SIZE};
    uint32_t flags = INFO_MEMORY | INFO_CMDLINE | INFO_MMAP | INFO_LOADER, length;
    bool ok = w.data != NULL;

    for (unsigned n = 0; ok && n < l->config.initrd_count; n++)
        ok = image_to_guest(&l->config.initrds[n], 0, l->config.initrds[n].size, mem, l->module_base[n]);
    if (!ok)
        goto out;
    put32(w.data + 4, BOOT_EBDA >> 10);                             // mem_lower, KiB
    put32(w.data + 8, (uint32_t)((l->acpi_base - 0x100000) >> 10)); // mem_upper
    put32(w.data + 48, append_mmap(&w, l, mem, &length));
    put32(w.data + 44, length);
    if (l->config.initrd_count) {
        flags |= INFO_MODULES;
        put32(w.data + 20, l->config.initrd_count);
        put32(w.data + 24, append_modules(&w, l));
    }
    put32(w.data + 64, append_string(&w, LOADER_NAME));
    // The command line starts with the kernel's name, as every loader's does.
    put32(w.data + 16, append(&w, l->config.kernel->name, strlen(l->config.kernel->name)));
    if (l->cmdline[0])
        append(&w, " ", 1);
    append_string(&w, l->cmdline);
    put32(w.data, flags);
    ok = mem_write(mem, l->info_base, w.data, w.used);
    boot_state_flat32(v, l->entry, 0x10, 0x18);
    v->s.gpr[RAX] = LOADER_MAGIC;
    v->s.gpr[RBX] = l->info_base;
out:
    free(w.data);
    return ok;
}
