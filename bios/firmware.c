// A firmware image in place of ours: mapped where the processor's first instruction fetch looks for it.
#include "bios/loader.h"
#include "mmu/mem.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SIZE_MIN  0x10000u
#define SIZE_LAST 0x1000000u
#define LOW_SIZE  0x20000u // 82371SB 2.2.7: E0000h-FFFFFh is an alias of the image's end

int firmware_map(const struct image *im, struct mem_map *mem, char *error, size_t error_size)
{
    uint64_t size = im->size, low = size < LOW_SIZE ? size : LOW_SIZE;
    uint8_t *data;
    int result;

    if (size < SIZE_MIN || size > SIZE_LAST || size % 4096)
        return loader_error(
            error, error_size, -EINVAL,
            "bios: %s: %llu bytes: a firmware image has 64 KiB to 16 MiB, in multiples of 4 KiB", im->name,
            (unsigned long long)size);
    data = malloc(size);
    if (!data)
        return loader_error(error, error_size, -ENOMEM, "bios: %s: out of memory", im->name);
    if (!image_read(im, 0, data, size)) {
        result = loader_error(error, error_size, -EIO, "bios: %s: can't be read: is it changing?", im->name);
        goto out;
    }
    result = mem_add_rom(mem, (1ull << 32) - size, data, size, "firmware");
    if (result >= 0)
        result = mem_add_rom(mem, 0x100000 - low, data + (size - low), low, "firmware below 1 MiB");
    if (result < 0)
        loader_error(error, error_size, result, "bios: %s: can't be mapped: %s", im->name, strerror(-result));
    else
        result = 0;
out:
    free(data);
    return result;
}
