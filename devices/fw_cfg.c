// fw_cfg: how firmware reads configuration and tables from the machine (QEMU's docs/specs/fw_cfg): selector
// and data ports 510h-511h and the DMA interface at 514h-51Bh. Everything here is read-only for the guest.
#include "devices/chips.h"
#include "mmu/mem.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FW_CFG_SELECTOR 0x510u // 16 bits, write
#define FW_CFG_DATA     0x511u // 8 bits
#define FW_CFG_DMA_HIGH 0x514u // big-endian; reads "QEMU CFG"
#define FW_CFG_DMA_LOW  0x518u // writing it starts the operation

#define KEY_SIGNATURE  0x0000u
#define KEY_ID         0x0001u
#define KEY_FILE_DIR   0x0019u
#define KEY_FILE       0x0020u // files count up from here
#define KEY_WRITE      0x4000u // write channel: ignored
#define KEY_FILE_LAST  0x3fffu
#define ID_TRADITIONAL 1u
#define ID_DMA         2u

#define DMA_ERROR  0x01u
#define DMA_READ   0x02u
#define DMA_SKIP   0x04u
#define DMA_SELECT 0x08u
#define DMA_WRITE  0x10u

#define NAME_SIZE      56u
#define DIR_ENTRY_SIZE (8u + NAME_SIZE)

struct entry {
    uint16_t key;
    uint32_t size; // bytes
    uint8_t *data;
    char name[NAME_SIZE]; // files; else empty
};

struct fw_cfg {
    struct bus *bus;
    struct mem_map *mem;
    struct entry *entries;
    size_t count, capacity;
    uint16_t next_file;
    // State
    uint16_t selector;
    uint32_t offset; // in the selected item
    uint64_t dma_address;
};

static void put_be16(uint8_t *p, uint16_t v)
{
    v = __builtin_bswap16(v);
    memcpy(p, &v, sizeof v);
}

static void put_be32(uint8_t *p, uint32_t v)
{
    v = __builtin_bswap32(v);
    memcpy(p, &v, sizeof v);
}

static uint32_t get_be32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return __builtin_bswap32(v);
}

static void fw_cfg_reset(void *opaque)
{
    struct fw_cfg *f = opaque;

    f->selector = 0;
    f->offset = 0;
    f->dma_address = 0;
}

// ---- items
static struct entry *find(const struct fw_cfg *f, uint16_t key)
{
    for (size_t i = 0; i < f->count; i++)
        if (f->entries[i].key == key)
            return &f->entries[i];
    return NULL;
}

static const struct entry *selected(const struct fw_cfg *f)
{
    return find(f, f->selector & ~KEY_WRITE);
}

int fw_cfg_add(struct fw_cfg *f, uint16_t key, const void *data, size_t n)
{
    if (n > UINT32_MAX || (key & KEY_WRITE))
        return -EINVAL;
    uint8_t *copy = malloc(n ? n : 1);
    if (!copy)
        return -ENOMEM;
    if (n)
        memcpy(copy, data, n);

    struct entry *e = find(f, key);
    if (e) {
        free(e->data);
    } else {
        if (f->count == f->capacity) {
            size_t capacity = f->capacity ? 2 * f->capacity : 32;
            struct entry *entries = realloc(f->entries, capacity * sizeof *entries);
            if (!entries) {
                free(copy);
                return -ENOMEM;
            }
            f->entries = entries;
            f->capacity = capacity;
        }
        e = &f->entries[f->count++];
        memset(e, 0, sizeof *e);
        e->key = key;
    }
    e->data = copy;
    e->size = n;
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(struct entry *const *)a)->name, (*(struct entry *const *)b)->name);
}

// The directory: big-endian count, then per file size, selector, reserved and name, sorted by name.
static int build_directory(struct fw_cfg *f)
{
    size_t files = 0;
    struct entry **sorted = malloc((f->count + 1) * sizeof *sorted);
    if (!sorted)
        return -ENOMEM;
    for (size_t i = 0; i < f->count; i++)
        if (f->entries[i].name[0])
            sorted[files++] = &f->entries[i];
    qsort(sorted, files, sizeof *sorted, by_name);

    size_t size = 4 + files * DIR_ENTRY_SIZE;
    uint8_t *directory = calloc(1, size);
    int error = -ENOMEM;
    if (directory) {
        put_be32(directory, files);
        for (size_t i = 0; i < files; i++) {
            uint8_t *p = directory + 4 + i * DIR_ENTRY_SIZE;
            put_be32(p, sorted[i]->size);
            put_be16(p + 4, sorted[i]->key);
            memcpy(p + 8, sorted[i]->name, NAME_SIZE);
        }
        error = fw_cfg_add(f, KEY_FILE_DIR, directory, size);
    }
    free(directory);
    free(sorted);
    return error;
}

int fw_cfg_add_file(struct fw_cfg *f, const char *name, const void *data, size_t n)
{
    size_t length = strlen(name);
    uint16_t key = f->next_file;

    if (length == 0 || length >= NAME_SIZE)
        return -EINVAL;
    for (size_t i = 0; i < f->count; i++)
        if (strcmp(f->entries[i].name, name) == 0)
            key = f->entries[i].key; // replaced
    if (key > KEY_FILE_LAST)
        return -ENOSPC;
    int error = fw_cfg_add(f, key, data, n);
    if (error)
        return error;
    if (key == f->next_file)
        f->next_file++;
    memcpy(find(f, key)->name, name, length + 1);
    return build_directory(f);
}

// ---- ports
static void select_item(struct fw_cfg *f, uint16_t key)
{
    f->selector = key;
    f->offset = 0;
}

static uint32_t data_read(void *opaque, uint16_t port, unsigned size)
{
    struct fw_cfg *f = opaque;
    const struct entry *e = selected(f);

    if (port != FW_CFG_DATA || size != 1)
        return 0xffffffffu >> (32 - 8 * size);
    if (!e || f->offset >= e->size)
        return 0;
    return e->data[f->offset++];
}

static void data_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    if (port == FW_CFG_SELECTOR && size == 2)
        select_item(opaque, value);
}

static void skip(struct fw_cfg *f, uint32_t n)
{
    f->offset = n > UINT32_MAX - f->offset ? UINT32_MAX : f->offset + n;
}

// Copies from the selected item to guest memory; what lies beyond its end reads zero. The length is the
// guest's: the loop ends with the first piece that is not RAM.
static bool copy_out(struct fw_cfg *f, uint64_t gpa, uint32_t length)
{
    static const uint8_t zeroes[4096];
    const struct entry *e = selected(f);
    uint32_t done = 0;

    if (length && gpa > UINT64_MAX - length)
        return false;
    if (e && f->offset < e->size) {
        done = e->size - f->offset < length ? e->size - f->offset : length;
        if (!mem_write(f->mem, gpa, e->data + f->offset, done))
            return false;
    }
    while (done < length) {
        uint32_t n = length - done < sizeof zeroes ? length - done : sizeof zeroes;
        if (!mem_write(f->mem, gpa + done, zeroes, n))
            return false;
        done += n;
    }
    skip(f, length);
    return true;
}

static void dma_run(struct fw_cfg *f)
{
    uint64_t descriptor = f->dma_address;
    uint8_t raw[16], status[4];
    uint32_t result = 0;

    f->dma_address = 0;
    if (!mem_read(f->mem, descriptor, raw, sizeof raw)) {
        put_be32(status, DMA_ERROR);
        mem_write(f->mem, descriptor, status, sizeof status);
        return;
    }
    uint32_t control = get_be32(raw), length = get_be32(raw + 4);
    uint64_t address = (uint64_t)get_be32(raw + 8) << 32 | get_be32(raw + 12);

    if (control & DMA_SELECT)
        select_item(f, control >> 16);
    if (control & DMA_READ) {
        if (!copy_out(f, address, length))
            result = DMA_ERROR;
    } else if (control & DMA_WRITE) {
        result = DMA_ERROR; // no item is writable
    } else if (control & DMA_SKIP) {
        skip(f, length);
    }
    put_be32(status, result);
    mem_write(f->mem, descriptor, status, sizeof status);
}

static uint32_t dma_read(void *opaque, uint16_t port, unsigned size)
{
    static const uint8_t signature[] = "QEMU CFG";
    unsigned offset = port - FW_CFG_DMA_HIGH;
    uint32_t value = 0;
    (void)opaque;

    for (unsigned i = 0; i < size; i++)
        value |= (uint32_t)(offset + i < 8 ? signature[offset + i] : 0xff) << 8 * i;
    return value;
}

static void dma_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    struct fw_cfg *f = opaque;

    if (size != 4)
        return;
    if (port == FW_CFG_DMA_HIGH) {
        f->dma_address = (uint64_t)__builtin_bswap32(value) << 32;
    } else if (port == FW_CFG_DMA_LOW) {
        f->dma_address |= __builtin_bswap32(value);
        dma_run(f);
    }
}

static void fw_cfg_state(void *opaque, struct stream *s)
{
    struct fw_cfg *f = opaque;

    stream_section(s, "fw_cfg", 1);
    stream_u16(s, &f->selector);
    stream_u32(s, &f->offset); // compared with the item's size at each use
    stream_u64(s, &f->dma_address);
}

static void fw_cfg_destroy(void *opaque)
{
    struct fw_cfg *f = opaque;

    for (size_t i = 0; i < f->count; i++)
        free(f->entries[i].data);
    free(f->entries);
    free(f);
}

static const struct port_ops data_ports = {data_read, data_write, 2};
static const struct port_ops dma_ports = {dma_read, dma_write, 4};
const struct device_ops fw_cfg_device = {"fw_cfg", fw_cfg_reset, fw_cfg_state, fw_cfg_destroy};

struct fw_cfg *fw_cfg_create(struct bus *bus, struct mem_map *mem)
{
    static const uint8_t id[4] = {ID_TRADITIONAL | ID_DMA};
    struct fw_cfg *f = calloc(1, sizeof *f);

    if (!f)
        return NULL;
    f->bus = bus;
    f->mem = mem;
    f->next_file = KEY_FILE;
    if (fw_cfg_add(f, KEY_SIGNATURE, "QEMU", 4) || fw_cfg_add(f, KEY_ID, id, sizeof id) ||
        build_directory(f) || bus_claim(bus, FW_CFG_SELECTOR, 2, &data_ports, f))
        goto fail;
    if (bus_claim(bus, FW_CFG_DMA_HIGH, 8, &dma_ports, f)) {
        bus_release(bus, FW_CFG_SELECTOR, 2);
        goto fail;
    }
    return f;
fail:
    fw_cfg_destroy(f);
    return NULL;
}
