// What the boot loaders share: files, placement, the E820 map, and the choice of protocol.
#include "bios/loader.h"
#include "cpu/cpu.h"
#include "mmu/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MIB(bytes) ((unsigned long long)(((bytes) + 0xfffff) >> 20))

int loader_error(char *error, size_t error_size, int code, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(error, error_size, format, args);
    va_end(args);
    return code;
}

// ---- images
int image_open(struct image *im, const char *path, const char *what, char *error, size_t error_size)
{
    struct stat st;
    int result;

    memset(im, 0, sizeof *im);
    im->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // not to hang on a FIFO
    if (im->fd < 0) {
        result = -errno;
        return loader_error(error, error_size, result, "%s: %s: %s: %s", what, path, strerror(-result),
                            result == -EMFILE ? "raise the limit of open files (ulimit -n)"
                                              : "check its name and its mode");
    }
    if (fstat(im->fd, &st) < 0) {
        result = loader_error(error, error_size, -errno, "%s: %s: %s", what, path, strerror(errno));
        goto fail;
    }
    if (!S_ISREG(st.st_mode)) {
        result =
            loader_error(error, error_size, -EINVAL, "%s: %s: not a regular file: name a file", what, path);
        goto fail;
    }
    im->size = (uint64_t)st.st_size;
    // A long path keeps its end, which tells more.
    size_t length = strlen(path), room = sizeof im->name - 1;
    strcpy(im->name, length > room ? path + (length - room) : path);
    return 0;
fail:
    close(im->fd);
    im->fd = -1;
    return result;
}

void image_close(struct image *im)
{
    if (im->fd >= 0)
        close(im->fd);
    im->fd = -1;
    im->data = NULL;
    im->size = 0;
}

struct image image_memory(const char *name, const void *data, uint64_t size)
{
    struct image im = {.fd = -1, .data = data, .size = size};

    snprintf(im.name, sizeof im.name, "%s", name);
    return im;
}

bool image_read(const struct image *im, uint64_t offset, void *data, size_t n)
{
    uint8_t *to = data;

    if (offset > im->size || n > im->size - offset)
        return false;
    if (im->fd < 0) {
        if (n)
            memcpy(to, im->data + offset, n);
        return true;
    }
    while (n) {
        ssize_t got = pread(im->fd, to, n, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) // 0: it was cut since it was opened
            return false;
        to += got;
        offset += (uint64_t)got;
        n -= (size_t)got;
    }
    return true;
}

bool image_to_guest(const struct image *im, uint64_t offset, uint64_t n, struct mem_map *mem, uint64_t gpa)
{
    size_t chunk = 1 << 20;
    uint8_t *buffer = malloc(chunk);
    bool ok = buffer != NULL;

    while (ok && n) {
        size_t part = n < chunk ? (size_t)n : chunk;
        ok = image_read(im, offset, buffer, part) && mem_write(mem, gpa, buffer, part);
        offset += part;
        gpa += part;
        n -= part;
    }
    free(buffer);
    return ok;
}

// ---- placement
int loader_add_segment(struct loader *l, uint64_t offset, uint64_t file_size, uint64_t gpa,
                       uint64_t memory_size, char *error, size_t error_size)
{
    const struct image *im = l->config.kernel;

    if (memory_size < file_size)
        memory_size = file_size;
    if (!memory_size)
        return 0;
    if (offset > im->size || file_size > im->size - offset)
        return loader_error(
            error, error_size, -EINVAL,
            "kernel: %s: truncated: it needs %llu bytes and has %llu: fetch it again", im->name,
            (unsigned long long)(offset <= UINT64_MAX - file_size ? offset + file_size : UINT64_MAX),
            (unsigned long long)im->size);
    // Above 1 MiB, or in the part of low memory that nothing of ours occupies.
    bool low = gpa > BOOT_CMDLINE + LOADER_CMDLINE_MAX && gpa < BOOT_EBDA && memory_size <= BOOT_EBDA - gpa;
    bool high = gpa >= 0x100000 && gpa < l->acpi_base && memory_size <= l->acpi_base - gpa;
    if (!low && !high) {
        if (gpa < 0x100000)
            return loader_error(
                error, error_size, -EINVAL,
                "kernel: %s: wants memory at %#llx, which is not free: link it at 1 MiB or above", im->name,
                (unsigned long long)gpa);
        return loader_error(
            error, error_size, -EINVAL,
            "kernel: %s: needs memory at %#llx-%#llx and there are %llu MiB below 4 GiB: give more "
            "--memory",
            im->name, (unsigned long long)gpa,
            (unsigned long long)(gpa + memory_size < gpa ? UINT64_MAX : gpa + memory_size),
            (unsigned long long)(l->low_ram >> 20));
    }
    if (l->segment_count == LOADER_MAX_SEGMENTS)
        return loader_error(error, error_size, -EINVAL,
                            "kernel: %s: more than %d segments: link it with fewer", im->name,
                            LOADER_MAX_SEGMENTS);
    l->segment[l->segment_count++] = (struct segment_load){offset, file_size, gpa, memory_size};
    if (high && gpa + memory_size > l->kernel_end)
        l->kernel_end = gpa + memory_size;
    return 0;
}

int loader_place_initrds(struct loader *l, uint64_t floor, uint64_t limit, char *error, size_t error_size)
{
    uint64_t total = 0;

    for (unsigned i = 0; i < l->config.initrd_count; i++) {
        uint64_t size = l->config.initrds[i].size;
        if (size > 1ull << 40)
            size = 1ull << 40; // enough not to fit, and no overflow
        total += (size + 3) & ~3ull;
    }
    l->initrd_size = total;
    l->initrd_base = 0;
    if (!total)
        return 0;
    if (limit > l->acpi_base)
        limit = l->acpi_base;
    if (floor > limit || total > limit - floor || ((limit - total) & ~0xfffull) < floor)
        return loader_error(
            error, error_size, -EINVAL,
            "initrd: %s%s: %llu MiB do not fit between the kernel's end at %llu MiB and %llu MiB: "
            "give more --memory or a smaller initrd",
            l->config.initrds[0].name, l->config.initrd_count > 1 ? " and others" : "", MIB(total),
            MIB(floor), MIB(limit));
    l->initrd_base = (limit - total) & ~0xfffull;
    return 0;
}

bool loader_copy_initrds(const struct loader *l, struct mem_map *mem)
{
    static const uint8_t zeros[4];
    uint64_t gpa = l->initrd_base;

    for (unsigned i = 0; i < l->config.initrd_count; i++) {
        const struct image *im = &l->config.initrds[i];
        unsigned padding = -im->size & 3;

        if (!image_to_guest(im, 0, im->size, mem, gpa) || !mem_write(mem, gpa + im->size, zeros, padding))
            return false;
        gpa += im->size + padding;
    }
    return true;
}

unsigned loader_e820(const struct loader *l, const struct mem_map *mem, struct e820_entry map[E820_MAX])
{
    uint64_t high = mem->ram_size - mem->low_size;
    unsigned n = 0;

    map[n++] = (struct e820_entry){0, BOOT_EBDA, E820_RAM};
    map[n++] = (struct e820_entry){BOOT_EBDA, 0xa0000 - BOOT_EBDA, E820_RESERVED};
    map[n++] = (struct e820_entry){BOOT_RSDP, 0x100000 - BOOT_RSDP, E820_RESERVED};
    map[n++] = (struct e820_entry){0x100000, l->acpi_base - 0x100000, E820_RAM};
    map[n++] = (struct e820_entry){l->acpi_base, l->low_ram - l->acpi_base, E820_ACPI};
    if (high)
        map[n++] = (struct e820_entry){1ull << 32, high, E820_RAM};
    return n;
}

// ---- registers
static struct segment flat_segment(uint16_t sel, uint32_t type)
{
    return (struct segment){.limit = UINT32_MAX, .attr = type | SEG_S | SEG_P | SEG_DB | SEG_G, .sel = sel};
}

void boot_state_flat32(struct vcpu *v, uint64_t entry, uint16_t cs, uint16_t ds)
{
    struct cpu_state *s = &v->s;
    const uint64_t gdt[4] = {0, 0x00cf9b000000ffff, 0x00cf9b000000ffff, 0x00cf93000000ffff};

    // Selectors 08h and 10h are code, 18h data: serves every protocol here.
    mem_write(v->mem, BOOT_GDT, gdt, sizeof gdt);
    s->gdtr = (struct dtable){.base = BOOT_GDT, .limit = sizeof gdt - 1};
    s->idtr = (struct dtable){0};
    for (unsigned n = 0; n < SEG_COUNT; n++)
        s->seg[n] = flat_segment(ds, SEG_TYPE_W | SEG_TYPE_A);
    s->seg[SEG_CS] = flat_segment(cs, SEG_TYPE_CODE | SEG_TYPE_W | SEG_TYPE_A);
    s->tr = (struct segment){.limit = 0x67, .attr = 0xb | SEG_P};
    s->cr0 = CR0_PE | CR0_ET;
    s->cr3 = 0;
    s->cr4 = 0;
    s->efer = 0;
    s->cpl = 0;
    s->rip = entry;
    s->iflag = 0;
    s->dflag = 0;
    s->rflags = FL_ONE;
    for (unsigned n = 0; n < 16; n++)
        s->gpr[n] = 0;
    v->mode_gen++;
}

// ---- choosing a protocol
static int not_a_kernel(const struct image *im, char *error, size_t error_size)
{
    uint8_t head[8] = {0};
    const char *advice = "give a Linux bzImage, a multiboot kernel or an ELF with a PVH entry";

    if (im->size == 0)
        return loader_error(error, error_size, -EINVAL, "kernel: %s: empty file: %s", im->name, advice);
    image_read(im, 0, head, im->size < sizeof head ? (size_t)im->size : sizeof head);
    if (head[0] == 0x1f && head[1] == 0x8b)
        return loader_error(error, error_size, -EINVAL, "kernel: %s: compressed with gzip: unpack it first",
                            im->name);
    if (elf_probe(im))
        return loader_error(
            error, error_size, -EINVAL,
            "kernel: %s: an ELF file with neither multiboot header nor PVH entry: for Linux give its "
            "bzImage (arch/x86/boot/bzImage) or build it with CONFIG_PVH",
            im->name);
    return loader_error(error, error_size, -EINVAL, "kernel: %s: no kernel that can be booted: %s", im->name,
                        advice);
}

int loader_prepare(struct loader *l, const struct loader_config *config, struct mem_map *mem, char *error,
                   size_t error_size)
{
    const char *cmdline = config->cmdline ? config->cmdline : "";
    const struct image *im = config->kernel;

    memset(l, 0, sizeof *l);
    l->config = *config;
    l->low_ram = mem->low_size;
    if (config->initrd_count > LOADER_MAX_INITRDS)
        return loader_error(error, error_size, -EINVAL, "initrd: %u given: at most %d can be",
                            config->initrd_count, LOADER_MAX_INITRDS);
    if (mem->low_size < 2 << 20)
        return loader_error(error, error_size, -EINVAL,
                            "memory: %llu MiB: a kernel needs 2 MiB at least: give more "
                            "--memory",
                            (unsigned long long)(mem->low_size >> 20));
    if (strlen(cmdline) > LOADER_CMDLINE_MAX)
        return loader_error(error, error_size, -EINVAL, "append: %zu characters: at most %u fit: shorten it",
                            strlen(cmdline), LOADER_CMDLINE_MAX);
    l->acpi_base = mem->low_size - ACPI_AREA_SIZE;
    l->cmdline = strdup(cmdline);
    if (!l->cmdline)
        return loader_error(error, error_size, -ENOMEM, "kernel: out of memory");

    int result;
    if (bzimage_probe(im))
        result = bzimage_prepare(l, error, error_size);
    else if (multiboot_probe(im)) // before PVH: a kernel that has both documents multiboot as its main entry
        result = multiboot_prepare(l, error, error_size);
    else if (pvh_probe(im))
        result = pvh_prepare(l, error, error_size);
    else
        result = not_a_kernel(im, error, error_size);
    if (result)
        loader_free(l);
    return result;
}

static bool zero_guest(struct mem_map *mem, uint64_t gpa, uint64_t n)
{
    static const uint8_t zeros[4096];

    while (n) {
        size_t part = n < sizeof zeros ? (size_t)n : sizeof zeros;
        if (!mem_write(mem, gpa, zeros, part))
            return false;
        gpa += part;
        n -= part;
    }
    return true;
}

// The BIOS data area as far as operating systems read it: EBDA segment and size of conventional memory.
static bool write_bios_data(struct mem_map *mem)
{
    const uint16_t ebda = BOOT_EBDA >> 4, base_kib = BOOT_EBDA >> 10, com[2] = {0x3f8, 0x2f8};
    const uint8_t ebda_kib = (0xa0000 - BOOT_EBDA) >> 10;

    return mem_write(mem, 0x400, com, sizeof com) && mem_write(mem, 0x40e, &ebda, 2) &&
           mem_write(mem, 0x413, &base_kib, 2) && mem_write(mem, BOOT_EBDA, &ebda_kib, 1);
}

static int write_tables(const struct loader *l, struct mem_map *mem)
{
    struct acpi_tables tables;
    int result = acpi_build(&tables, &l->config.acpi);

    if (result)
        return result;
    if (tables.size > ACPI_AREA_SIZE) {
        result = -E2BIG;
    } else {
        acpi_relocate(&tables, l->acpi_base);
        if (!mem_write(mem, l->acpi_base, tables.data, tables.size) ||
            !mem_write(mem, BOOT_RSDP, tables.rsdp, sizeof tables.rsdp) ||
            (l->config.acpi.apic && !mptable_write(mem, &l->config.acpi, BOOT_MPFP, BOOT_MPTABLE)) ||
            !pirtable_write(mem, BOOT_PIR))
            result = -EFAULT;
    }
    acpi_free(&tables);
    return result;
}

int loader_load(const struct loader *l, struct mem_map *mem, struct vcpu *v, char *error, size_t error_size)
{
    const struct image *im = l->config.kernel;

    for (unsigned n = 0; n < l->segment_count; n++) {
        const struct segment_load *s = &l->segment[n];
        if (!image_to_guest(im, s->offset, s->file_size, mem, s->gpa) ||
            !zero_guest(mem, s->gpa + s->file_size, s->memory_size - s->file_size))
            return loader_error(error, error_size, -EIO, "kernel: %s: can't be read: is it changing?",
                                im->name);
    }
    // Multiboot modules are separate pieces and go in with its information structure.
    if (l->protocol != BOOT_MULTIBOOT && !loader_copy_initrds(l, mem))
        return loader_error(error, error_size, -EIO, "initrd: %s: can't be read: is it changing?",
                            l->config.initrds[0].name);
    if (!write_bios_data(mem) || write_tables(l, mem))
        return loader_error(error, error_size, -EIO, "kernel: %s: the firmware tables can't be written",
                            im->name);

    bool ok = false;
    switch (l->protocol) {
    case BOOT_BZIMAGE32:
    case BOOT_BZIMAGE64: ok = bzimage_load(l, mem, v); break;
    case BOOT_MULTIBOOT: ok = multiboot_load(l, mem, v); break;
    case BOOT_PVH: ok = pvh_load(l, mem, v); break;
    case BOOT_NONE: break;
    }
    if (!ok)
        return loader_error(error, error_size, -EIO, "kernel: %s: its boot information can't be written",
                            im->name);
    return 0;
}

void loader_free(struct loader *l)
{
    free(l->cmdline);
    l->cmdline = NULL;
    l->protocol = BOOT_NONE;
}
