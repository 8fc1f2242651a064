// virtio-blk (virtio 1.2 section 5.2): one queue, requests served before the notification returns.
#include "devices/virtio.h"
#include "devices/block.h"
#include "devices/pci_private.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR      512u
#define BOUNCE_SIZE 131072u   // bytes moved at a time
#define HEADER_SIZE 16u       // type, reserved, sector
#define RANGE_SIZE  16u       // sector, num_sectors, flags
#define RANGE_MAX   16u       // ranges of one discard or write-zeroes request
#define DISCARD_MAX 0x400000u // sectors of a range
#define ZEROES_MAX  0x10000u  // fewer: these may have to be written
#define ID_SIZE     20u

// Feature bits, 5.2.3
#define F_SEG_MAX      2
#define F_RO           5
#define F_BLK_SIZE     6
#define F_FLUSH        9
#define F_DISCARD      13
#define F_WRITE_ZEROES 14

// Configuration space, 5.2.4
#define CONFIG_CAPACITY            0u
#define CONFIG_SEG_MAX             12u
#define CONFIG_BLK_SIZE            20u
#define CONFIG_MAX_DISCARD_SECTORS 36u
#define CONFIG_MAX_DISCARD_SEG     40u
#define CONFIG_DISCARD_ALIGNMENT   44u
#define CONFIG_MAX_ZEROES_SECTORS  48u
#define CONFIG_MAX_ZEROES_SEG      52u
#define CONFIG_ZEROES_MAY_UNMAP    56u
#define CONFIG_SIZE                60u

// Requests, 5.2.6
#define T_IN           0u
#define T_OUT          1u
#define T_FLUSH        4u
#define T_GET_ID       8u
#define T_DISCARD      11u
#define T_WRITE_ZEROES 13u
#define S_OK           0u
#define S_IOERR        1u
#define S_UNSUPP       2u
#define RANGE_UNMAP    1u

struct virtio_blk {
    struct virtio_device virtio;
    struct block *disk;
    uint8_t config[CONFIG_SIZE];
    char id[ID_SIZE + 1];
    uint8_t *bounce;
    struct virtio_chain chain;
};

// ---- requests. Each returns a status byte; `written` counts bytes put into the device-writable part.
static bool range_valid(const struct virtio_blk *d, uint64_t sector, uint64_t bytes)
{
    uint64_t sectors = block_size(d->disk) / SECTOR;

    return bytes % SECTOR == 0 && sector <= sectors && bytes / SECTOR <= sectors - sector;
}

static uint8_t transfer(struct virtio_blk *d, uint64_t sector, bool write, uint32_t *written)
{
    struct virtio_chain *c = &d->chain;
    uint64_t bytes = write ? c->out_size - HEADER_SIZE : c->in_size - 1;

    if (!range_valid(d, sector, bytes) || (write && block_readonly(d->disk)))
        return S_IOERR;
    for (uint64_t done = 0; done < bytes;) {
        size_t n = bytes - done < BOUNCE_SIZE ? bytes - done : BOUNCE_SIZE;
        uint64_t at = sector * SECTOR + done;

        if (!write && block_read(d->disk, at, d->bounce, n))
            return S_IOERR;
        if (write ? !virtio_read_out(&d->virtio, c, HEADER_SIZE + done, d->bounce, n)
                  : !virtio_write_in(&d->virtio, c, done, d->bounce, n)) {
            virtio_broken(&d->virtio); // the buffer is not memory
            return S_IOERR;
        }
        if (write && block_write(d->disk, at, d->bounce, n))
            return S_IOERR;
        done += n;
        if (!write)
            *written += n;
    }
    // A driver that did not take FLUSH counts on write-through (5.2.6.2).
    if (write && !virtio_has(&d->virtio, F_FLUSH) && block_flush(d->disk))
        return S_IOERR;
    return S_OK;
}

static uint8_t get_id(struct virtio_blk *d, uint32_t *written)
{
    uint64_t room = d->chain.in_size - 1;
    size_t n = room < ID_SIZE ? room : ID_SIZE;

    if (!virtio_write_in(&d->virtio, &d->chain, 0, d->id, n)) {
        virtio_broken(&d->virtio);
        return S_IOERR;
    }
    *written = n;
    return S_OK;
}

static uint8_t one_range(struct virtio_blk *d, const uint8_t *raw, bool zeroes)
{
    uint64_t sector = pci_get32(raw) | (uint64_t)pci_get32(raw + 4) << 32;
    uint32_t count = pci_get32(raw + 8), flags = pci_get32(raw + 12);

    if (flags & ~(zeroes ? RANGE_UNMAP : 0))
        return S_UNSUPP;
    if (count > (zeroes ? ZEROES_MAX : DISCARD_MAX) || !range_valid(d, sector, (uint64_t)count * SECTOR))
        return S_IOERR;
    uint64_t offset = sector * SECTOR, bytes = (uint64_t)count * SECTOR;
    int status = zeroes ? block_write_zeroes(d->disk, offset, bytes, flags & RANGE_UNMAP)
                        : block_discard(d->disk, offset, bytes);
    return status ? S_IOERR : S_OK;
}

static uint8_t ranges(struct virtio_blk *d, bool zeroes)
{
    uint8_t raw[RANGE_MAX * RANGE_SIZE];
    uint64_t bytes = d->chain.out_size - HEADER_SIZE;

    if (!virtio_has(&d->virtio, zeroes ? F_WRITE_ZEROES : F_DISCARD))
        return S_UNSUPP;
    if (bytes == 0 || bytes % RANGE_SIZE || bytes > sizeof raw)
        return S_IOERR;
    if (!virtio_read_out(&d->virtio, &d->chain, HEADER_SIZE, raw, bytes)) {
        virtio_broken(&d->virtio);
        return S_IOERR;
    }
    for (uint64_t at = 0; at < bytes; at += RANGE_SIZE) {
        uint8_t status = one_range(d, raw + at, zeroes);
        if (status)
            return status;
    }
    if (zeroes && !virtio_has(&d->virtio, F_FLUSH) && block_flush(d->disk))
        return S_IOERR;
    return S_OK;
}

static void serve(struct virtio_blk *d)
{
    struct virtio_chain *c = &d->chain;
    uint8_t header[HEADER_SIZE], status;
    uint32_t written = 0;

    // A request needs room for its header and for the status byte, which is the last of the writable part.
    if (c->in_size == 0 || c->in_size > UINT32_MAX ||
        !virtio_read_out(&d->virtio, c, 0, header, sizeof header)) {
        virtio_broken(&d->virtio);
        return;
    }
    uint64_t sector = pci_get32(header + 8) | (uint64_t)pci_get32(header + 12) << 32;
    switch (pci_get32(header)) {
    case T_IN: status = transfer(d, sector, false, &written); break;
    case T_OUT: status = transfer(d, sector, true, &written); break;
    case T_FLUSH: status = block_flush(d->disk) ? S_IOERR : S_OK; break;
    case T_GET_ID: status = get_id(d, &written); break;
    case T_DISCARD: status = ranges(d, false); break;
    case T_WRITE_ZEROES: status = ranges(d, true); break;
    default: status = S_UNSUPP; break;
    }
    if (!virtio_write_in(&d->virtio, c, c->in_size - 1, &status, 1))
        virtio_broken(&d->virtio);
    virtio_push(&d->virtio, 0, c, written + 1);
}

static void notify(void *opaque, unsigned queue)
{
    struct virtio_blk *d = opaque;

    do {
        while (virtio_pop(&d->virtio, queue, &d->chain))
            serve(d);
    } while (virtio_rearm(&d->virtio, queue));
    virtio_signal(&d->virtio, queue);
}

// ---- device
static void virtio_blk_reset(void *opaque)
{
    struct virtio_blk *d = opaque;
    virtio_reset(&d->virtio);
}

static void virtio_blk_state(void *opaque, struct stream *s)
{
    struct virtio_blk *d = opaque;
    uint64_t size = block_size(d->disk);

    stream_section(s, "virtio_blk", 1);
    stream_u64(s, &size);
    if (s->loading && !s->error && size != block_size(d->disk))
        s->error = -EPROTO; // another disk
    virtio_state(&d->virtio, s);
}

static void virtio_blk_destroy(void *opaque)
{
    struct virtio_blk *d = opaque;

    free(d->bounce);
    free(d);
}

static const struct virtio_ops blk_ops = {.notify = notify};
const struct device_ops virtio_blk_device = {"virtio_blk", virtio_blk_reset, virtio_blk_state,
                                             virtio_blk_destroy};

static void fill_config(struct virtio_blk *d)
{
    pci_put(d->config + CONFIG_CAPACITY, block_size(d->disk) / SECTOR, 8);
    pci_put(d->config + CONFIG_SEG_MAX, VIRTIO_QUEUE_SIZE - 2, 4); // header and status take two
    pci_put(d->config + CONFIG_BLK_SIZE, SECTOR, 4);
    if (block_readonly(d->disk))
        return;
    pci_put(d->config + CONFIG_MAX_DISCARD_SECTORS, DISCARD_MAX, 4);
    pci_put(d->config + CONFIG_MAX_DISCARD_SEG, RANGE_MAX, 4);
    pci_put(d->config + CONFIG_DISCARD_ALIGNMENT, 8, 4);
    pci_put(d->config + CONFIG_MAX_ZEROES_SECTORS, ZEROES_MAX, 4);
    pci_put(d->config + CONFIG_MAX_ZEROES_SEG, RANGE_MAX, 4);
    d->config[CONFIG_ZEROES_MAY_UNMAP] = 1;
}

struct virtio_blk *virtio_blk_create(struct pci_bus *b, unsigned devfn, struct mem_map *mem,
                                     struct block *disk)
{
    struct virtio_blk *d = calloc(1, sizeof *d);

    if (!d)
        return NULL;
    d->disk = disk;
    d->bounce = malloc(BOUNCE_SIZE);
    snprintf(d->id, sizeof d->id, "gnomon-%02x.%x", devfn >> 3 & 0x1f, devfn & 7);
    fill_config(d);
    struct virtio_info info = {
        .device_id = 2,
        .subclass = 0x00,
        .class_code = 0x01,
        .name = "virtio-blk",
        .queues = 1,
        .features = 1ull << F_SEG_MAX | 1ull << F_BLK_SIZE | 1ull << F_FLUSH |
                    (block_readonly(disk) ? 1ull << F_RO : 1ull << F_DISCARD | 1ull << F_WRITE_ZEROES),
        .config = d->config,
        .config_size = CONFIG_SIZE,
    };
    if (!d->bounce || !virtio_init(&d->virtio, b, devfn, mem, &info, &blk_ops, d)) {
        virtio_blk_destroy(d);
        return NULL;
    }
    return d;
}
