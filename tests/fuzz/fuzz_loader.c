// Files to boot: bzImage, multiboot, PVH ELF and firmware images, with initrds. What is accepted must load.
//
// Input: settings (1 byte), length of each of two initrds (1, times 512), then the kernel or firmware file; the initrds are
// its last bytes again. A first byte of 0xf? takes a valid bzImage or multiboot header and applies the rest as patches.
#include "bios/loader.h"
#include "cpu/cpu.h"
#include "mmu/mem.h"
#include "tests/fuzz/fuzz.h"

#define FILE_MAX 65536u

#define SET_LONG     0x01u
#define SET_FIRMWARE 0x02u
#define SET_SMALL    0x04u // 4 MiB of memory
#define SET_CMDLINE  0x08u
#define SET_PATCH    0xf0u // a template: bits 0 and 1 choose it

static void put(uint8_t *p, uint64_t value, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        p[i] = (uint8_t)(value >> 8 * i);
}

// Linux Documentation/arch/x86/boot.rst
static size_t make_bzimage(uint8_t *file)
{
    file[0x1f1] = 3;
    put(file + 0x1fe, 0xaa55, 2);
    put(file + 0x200, 0x66eb, 2);
    memcpy(file + 0x202, "HdrS", 4);
    put(file + 0x206, 0x20f, 2);
    file[0x211] = 1;                       // loadflags: LOADED_HIGH
    put(file + 0x214, 0x100000, 4);        // code32_start
    put(file + 0x22c, 0x7fffffff, 4);      // initrd_addr_max
    put(file + 0x230, 0x200000, 4);        // kernel_alignment
    file[0x234] = 1;                       // relocatable_kernel
    put(file + 0x236, 3, 2);               // xloadflags
    put(file + 0x238, 2047, 4);            // cmdline_size
    put(file + 0x258, 0x1000000, 8);       // pref_address
    put(file + 0x260, 0x400000, 4);        // init_size
    return 0x1000;
}

// multiboot 1, section 3.1; with the load addresses in the header, and an ELF header that has a PVH note
static size_t make_elf(uint8_t *file, bool pvh)
{
    memcpy(file, "\177ELF\2\1\1", 7);
    put(file + 16, 2, 2);
    put(file + 18, 62, 2);
    put(file + 20, 1, 4);
    put(file + 24, 0x100000, 8);
    put(file + 32, 64, 8);
    put(file + 52, 64, 2);
    put(file + 54, 56, 2);
    put(file + 56, 2, 2);
    put(file + 64, 1, 4); // PT_LOAD
    put(file + 68, 7, 4);
    put(file + 72, 0x200, 8);
    put(file + 80, 0x100000, 8);
    put(file + 88, 0x100000, 8);
    put(file + 96, 0x800, 8);
    put(file + 104, 0x1800, 8);
    put(file + 112, 0x1000, 8);
    put(file + 120, 4, 4); // PT_NOTE
    put(file + 128, 0x180, 8);
    put(file + 152, 24, 8);
    put(file + 160, 24, 8);
    put(file + 168, 4, 8);
    if (pvh) {
        put(file + 0x180, 4, 4);
        put(file + 0x184, 8, 4);
        put(file + 0x188, 18, 4); // XEN_ELFNOTE_PHYS32_ENTRY
        memcpy(file + 0x18c, "Xen", 4);
        put(file + 0x190, 0x100000, 8);
    } else {
        put(file + 0x200, 0x1badb002, 4);
        put(file + 0x204, 3, 4);
        put(file + 0x208, -(0x1badb002u + 3), 4);
    }
    return 0x1000;
}

static size_t make_multiboot(uint8_t *file)
{
    put(file, 0x1badb002, 4);
    put(file + 4, 0x10003, 4);
    put(file + 8, -(0x1badb002u + 0x10003), 4);
    put(file + 12, 0x100000, 4); // header_addr
    put(file + 16, 0x100000, 4);
    put(file + 20, 0x101000, 4);
    put(file + 24, 0x102000, 4);
    put(file + 28, 0x100020, 4);
    return 0x1000;
}

static size_t make_file(uint8_t *file, unsigned set, struct cursor *c)
{
    size_t n = 0;
    if ((set & SET_PATCH) != SET_PATCH) {
        n = c->left < FILE_MAX ? c->left : FILE_MAX;
        memcpy(file, take_bytes(c, &n), n);
        return n;
    }
    switch (take(c, 1) & 3) {
    case 0: n = make_bzimage(file); break;
    case 1: n = make_elf(file, true); break;
    case 2: n = make_elf(file, false); break;
    case 3: n = make_multiboot(file); break;
    }
    while (c->left) {
        unsigned at = (unsigned)take(c, 2), width = 1u << (at >> 13 & 3);
        if ((at & 0x1fff) >= 0x1ff8) { // shorten the file
            n = (size_t)take(c, 2) % (n + 1);
            continue;
        }
        put(file + (at & 0x1fff) % 0x400, take(c, width), width);
    }
    return n;
}

static void fuzz_firmware(const struct image *im, struct mem_map *mem)
{
    char error[512] = "";
    int result = firmware_map(im, mem, error, sizeof error);
    claim(!result == !error[0], "firmware: %d with \"%s\"", result, error);
    uint8_t last[16];
    if (!result) {
        claim(mem_read(mem, 0xfffffff0u, last, sizeof last), "firmware: the reset vector reads nothing");
        claim(mem_read(mem, 0xffff0u, last, sizeof last), "firmware: nothing below 1 MiB");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct cursor c = {data, size};
    unsigned set = (unsigned)take(&c, 1);
    size_t initrd_size[2] = {512 * take(&c, 1), 512 * take(&c, 1)};
    uint8_t *file = calloc(1, FILE_MAX + 8);
    struct vcpu *v = aligned_alloc(64, sizeof *v);
    struct mem_map *mem = calloc(1, sizeof *mem);
    struct loader *l = calloc(1, sizeof *l);
    char error[512] = "";

    claim(file && v && mem && l, "out of memory");
    memset(v, 0, sizeof *v);
    claim(!mem_create(mem, set & SET_SMALL ? 4u << 20 : 24u << 20), "no guest memory");
    v->mem = mem;
    size_t n = make_file(file, set, &c);
    uint8_t *exact = malloc(n ? n : 1); // so that a sanitizer sees reads beyond the end
    claim(exact, "out of memory");
    memcpy(exact, file, n);
    struct image kernel = image_memory("kernel", exact, n), initrds[2];
    struct loader_config config = {
        .kernel = &kernel,
        .initrds = initrds,
        .cmdline = set & SET_CMDLINE ? "console=ttyS0 quiet" : NULL,
        .long_mode = set & SET_LONG,
        .acpi = {.cpus = 1, .apic = true, .low_ram = mem->low_size, .high_ram = 1ull << 32, .phys_bits = 46},
    };
    for (unsigned i = 0; i < 2; i++)
        if (initrd_size[i] && initrd_size[i] <= FILE_MAX)
            initrds[config.initrd_count++] = image_memory("initrd", file + FILE_MAX - initrd_size[i], initrd_size[i]);
    if (set & SET_FIRMWARE && (set & SET_PATCH) != SET_PATCH) {
        // Sizes it accepts are beyond what a fuzzer makes: the file, repeated.
        size_t pages = set & SET_SMALL ? n : (n % 64 + 1) * 4096;
        uint8_t *image = calloc(1, pages ? pages : 1);
        claim(image, "out of memory");
        for (size_t i = 0; n && i < pages; i++)
            image[i] = exact[i % n];
        struct image im = image_memory("bios", image, pages);
        fuzz_firmware(&im, mem);
        free(image);
    } else {
        int result = loader_prepare(l, &config, mem, error, sizeof error);
        claim(result || !error[0], "prepared with \"%s\"", error);
        claim(!result || (error[0] && !strchr(error, '\n')), "%d with \"%s\"", result, error);
        if (!result)
            claim(!loader_load(l, mem, v, error, sizeof error), "what was prepared does not load: %s", error);
    }
    loader_free(l);
    mem_destroy(mem);
    free(l);
    free(mem);
    free(v);
    free(exact);
    free(file);
    return 0;
}
