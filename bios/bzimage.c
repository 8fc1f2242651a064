// Linux bzImage: the real-mode setup code is skipped, its header read, the protected-mode part loaded and
// entered at its 64-bit entry, or at its 32-bit entry for 32-bit kernels and protocols before 2.12
// (boot.rst).
#include "bios/boot_params.h"
#include "cpu/cpu.h"

#include <errno.h>
#include <string.h>

#define BOOT_FLAG           0xaa55
#define MAGIC               0x53726448u // "HdrS"
#define VERSION_OLDEST      0x202       // the first with cmd_line_ptr
#define SECTOR              512u
#define LOAD_HIGH           0x100000u
#define INITRD_ADDR_MAX_OLD 0x37ffffffu // before protocol 2.03
#define CMDLINE_SIZE_OLD    255u        // before protocol 2.06
#define ENTRY64_OFFSET      0x200u

bool bzimage_probe(const struct image *im)
{
    uint8_t head[HDR_MAGIC + 4];

    // The boot flag alone is on every boot sector; kernels before 2.00, which have no magic, are not
    // recognised.
    return image_read(im, 0, head, sizeof head) && get16(head + HDR_BOOT_FLAG) == BOOT_FLAG &&
           get32(head + HDR_MAGIC) == MAGIC;
}

static int check_version(const struct loader *l, char *error, size_t error_size)
{
    const char *name = l->config.kernel->name;

    if (l->version < VERSION_OLDEST)
        return loader_error(
            error, error_size, -EINVAL,
            "kernel: %s: boot protocol %u.%02u is too old: 2.02 (Linux 2.4) is the oldest that works", name,
            l->version >> 8, l->version & 0xff);
    // Minor versions only add fields; a new major one may mean anything.
    if (l->version >= 0x300)
        return loader_error(
            error, error_size, -EINVAL,
            "kernel: %s: boot protocol %u.%02u is too new: this version of gnomon knows 2.xx: use a "
            "newer one",
            name, l->version >> 8, l->version & 0xff);
    if (!(l->setup[HDR_LOADFLAGS] & LOADED_HIGH))
        return loader_error(error, error_size, -EINVAL,
                            "kernel: %s: a zImage, which loads below 1 MiB: build a bzImage", name);
    return 0;
}

static int check_cmdline(const struct loader *l, char *error, size_t error_size)
{
    size_t limit = l->version >= 0x206 ? get32(l->setup + HDR_CMDLINE_SIZE) : CMDLINE_SIZE_OLD;

    if (limit > LOADER_CMDLINE_MAX)
        limit = LOADER_CMDLINE_MAX;
    if (strlen(l->cmdline) > limit)
        return loader_error(error, error_size, -EINVAL,
                            "append: %zu characters: this kernel takes %zu: shorten the command line",
                            strlen(l->cmdline), limit);
    return 0;
}

// Where the protected-mode part is loaded, and how much memory from there the kernel needs until it has its
// own map.
static int choose_address(const struct loader *l, uint64_t payload, uint64_t *address, uint64_t *need,
                          char *error, size_t error_size)
{
    const uint8_t *h = l->setup;
    bool relocatable = l->version >= 0x205 && h[HDR_RELOCATABLE];
    uint64_t align = relocatable ? get32(h + HDR_KERNEL_ALIGN) : 1;
    uint64_t runtime = LOAD_HIGH; // where it runs from, after moving itself there

    *address = LOAD_HIGH;
    *need = payload;
    if (align == 0 || (align & (align - 1)) || align > 1u << 30)
        return loader_error(
            error, error_size, -EINVAL,
            "kernel: %s: kernel_alignment %#llx is no power of two up to 1 GiB: the file is damaged",
            l->config.kernel->name, (unsigned long long)align);
    if (l->version >= 0x20a) {
        runtime = get64(h + HDR_PREF_ADDRESS);
        if (get32(h + HDR_INIT_SIZE) > *need)
            *need = get32(h + HDR_INIT_SIZE);
        if (runtime < LOAD_HIGH || runtime >= 1ull << 32)
            return loader_error(
                error, error_size, -EINVAL,
                "kernel: %s: pref_address %#llx is not between 1 MiB and 4 GiB: the file is damaged",
                l->config.kernel->name, (unsigned long long)runtime);
    }
    // A relocatable kernel runs at its load address rounded up to align, but never below pref_address; one
    // that is not moves itself from 1 MiB to pref_address.
    if (relocatable) {
        runtime = (runtime + align - 1) & ~(align - 1);
        if (runtime >= 1ull << 32)
            runtime = LOAD_HIGH;
        *address = runtime;
    }
    if (runtime >= l->acpi_base || *need > l->acpi_base - runtime)
        return loader_error(
            error, error_size, -EINVAL,
            "kernel: %s: needs %llu MiB of memory to start and has %llu below 4 GiB: give more --memory",
            l->config.kernel->name, (unsigned long long)((runtime + *need + 0x10ffff) >> 20),
            (unsigned long long)(l->low_ram >> 20));
    *need += runtime - *address;
    return 0;
}

int bzimage_prepare(struct loader *l, char *error, size_t error_size)
{
    const struct image *im = l->config.kernel;
    uint64_t head = im->size < sizeof l->setup ? im->size : sizeof l->setup;
    uint64_t address, need;
    int result;

    if (im->size < 2 * SECTOR)
        return loader_error(error, error_size, -EINVAL, "kernel: %s: truncated: %llu bytes: fetch it again",
                            im->name, (unsigned long long)im->size);
    if (!image_read(im, 0, l->setup, (size_t)head))
        return loader_error(error, error_size, -EIO, "kernel: %s: can't be read", im->name);
    l->version = get16(l->setup + HDR_VERSION);
    result = check_version(l, error, error_size);
    if (!result)
        result = check_cmdline(l, error, error_size);
    if (result)
        return result;

    unsigned setup_sects = l->setup[HDR_SETUP_SECTS] ? l->setup[HDR_SETUP_SECTS] : 4;
    uint64_t setup_size = (setup_sects + 1) * SECTOR;
    // syssize counts paragraphs; its upper half is meaningful from 2.04 on.
    uint64_t wanted =
        16ull * (l->version >= 0x204 ? get32(l->setup + HDR_SYSSIZE) : get16(l->setup + HDR_SYSSIZE));
    if (im->size <= setup_size || im->size - setup_size < wanted)
        return loader_error(error, error_size, -EINVAL,
                            "kernel: %s: truncated: %llu bytes of %llu are there: fetch it again", im->name,
                            (unsigned long long)im->size, (unsigned long long)(setup_size + wanted));
    uint64_t payload = im->size - setup_size;

    bool kernel64 = l->version >= 0x20c && (get16(l->setup + HDR_XLOADFLAGS) & XLF_KERNEL_64);
    if (kernel64 && !l->config.long_mode)
        return loader_error(
            error, error_size, -EINVAL,
            "kernel: %s: a 64-bit kernel, and this CPU model is 32-bit: choose another --cpu or a "
            "32-bit kernel",
            im->name);
    result = choose_address(l, payload, &address, &need, error, error_size);
    if (result)
        return result;
    if (kernel64 && payload < ENTRY64_OFFSET + 1)
        return loader_error(error, error_size, -EINVAL,
                            "kernel: %s: truncated: it has no 64-bit entry: fetch it again", im->name);
    // Only the file's bytes are written: the rest of `need` is the kernel's business.
    result = loader_add_segment(l, setup_size, payload, address, payload, error, error_size);
    if (result)
        return result;
    l->kernel_end = address + need;
    l->protocol = kernel64 ? BOOT_BZIMAGE64 : BOOT_BZIMAGE32;
    l->entry = address + (kernel64 ? ENTRY64_OFFSET : 0);

    uint64_t limit = l->version >= 0x203 ? get32(l->setup + HDR_INITRD_ADDR_MAX) : INITRD_ADDR_MAX_OLD;
    return loader_place_initrds(l, l->kernel_end, limit + 1, error, error_size);
}

bool bzimage_load(const struct loader *l, struct mem_map *mem, struct vcpu *v)
{
    if (!boot_params_write(l, mem))
        return false;
    if (l->protocol == BOOT_BZIMAGE64)
        return boot_state_linux64(v, l->entry);
    boot_state_linux32(v, l->entry);
    return true;
}
