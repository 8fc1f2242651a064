// virtio 1.2 over PCI: the modern transport (4.1) and split virtqueues (2.7).
//
// BAR 0 holds the four structures, each in a page of its own; BAR 1 the MSI-X table. Notifications carry the
// queue number in their offset (notify_off_multiplier 4), and are answered before the write returns.
#include "devices/virtio.h"
#include "devices/pci_private.h"

#include <errno.h>
#include <string.h>

// BAR 0
#define COMMON_OFFSET     0x0000u
#define COMMON_SIZE       0x40u
#define ISR_OFFSET        0x1000u
#define CONFIG_OFFSET     0x2000u
#define NOTIFY_OFFSET     0x3000u
#define REGION_SIZE       0x1000u
#define BAR_SIZE          0x4000u
#define NOTIFY_MULTIPLIER 4u

// Capabilities, 4.1.4
#define CAP_COMMON 1u
#define CAP_NOTIFY 2u
#define CAP_ISR    3u
#define CAP_DEVICE 4u
#define CAP_PCI    5u

// struct virtio_pci_common_cfg, 4.1.4.3
#define DEVICE_FEATURE_SELECT 0x00u
#define DEVICE_FEATURE        0x04u
#define DRIVER_FEATURE_SELECT 0x08u
#define DRIVER_FEATURE        0x0cu
#define CONFIG_MSIX_VECTOR    0x10u
#define NUM_QUEUES            0x12u
#define DEVICE_STATUS         0x14u
#define CONFIG_GENERATION     0x15u
#define QUEUE_SELECT          0x16u
#define QUEUE_SIZE            0x18u
#define QUEUE_MSIX_VECTOR     0x1au
#define QUEUE_ENABLE          0x1cu
#define QUEUE_NOTIFY_OFF      0x1eu
#define QUEUE_DESC            0x20u
#define QUEUE_DRIVER          0x28u
#define QUEUE_DEVICE          0x30u

#define STATUS_DRIVER_OK   0x04u
#define STATUS_FEATURES_OK 0x08u
#define STATUS_NEEDS_RESET 0x40u

#define NO_VECTOR  0xffffu
#define ISR_QUEUE  1u
#define ISR_CONFIG 2u

#define DESC_NEXT          1u
#define DESC_WRITE         2u
#define DESC_INDIRECT      4u
#define DESC_SIZE          16u
#define AVAIL_NO_INTERRUPT 1u

// ---- interrupts
static void interrupt(struct virtio_device *v, uint16_t vector, uint8_t isr)
{
    if (pci_msix_enabled(v->pci)) {
        if (vector != NO_VECTOR)
            pci_msix_notify(v->pci, vector);
        return;
    }
    v->isr |= isr;
    pci_set_irq(v->pci, 1);
}

void virtio_broken(struct virtio_device *v)
{
    bool running = v->status & STATUS_DRIVER_OK;

    if (v->status & STATUS_NEEDS_RESET)
        return;
    v->status |= STATUS_NEEDS_RESET;
    if (running)
        interrupt(v, v->msix_config, ISR_CONFIG);
}

bool virtio_running(const struct virtio_device *v)
{
    return (v->status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET)) == STATUS_DRIVER_OK;
}

bool virtio_has(const struct virtio_device *v, unsigned feature)
{
    return v->driver_features >> feature & 1;
}

// ---- rings. All three areas lie below 2^64 with every index below the queue size, checked when a queue is
// enabled.
static bool read16(struct virtio_device *v, uint64_t gpa, uint16_t *value)
{
    uint8_t raw[2];

    if (!mem_read(v->mem, gpa, raw, sizeof raw)) {
        virtio_broken(v);
        return false;
    }
    *value = pci_get16(raw);
    return true;
}

static bool write16(struct virtio_device *v, uint64_t gpa, uint16_t value)
{
    uint8_t raw[2] = {value, value >> 8};

    if (!mem_write(v->mem, gpa, raw, sizeof raw)) {
        virtio_broken(v);
        return false;
    }
    return true;
}

struct descriptor {
    uint64_t gpa;
    uint32_t length;
    uint16_t flags, next;
};

static bool read_descriptor(struct virtio_device *v, uint64_t gpa, struct descriptor *d)
{
    uint8_t raw[DESC_SIZE];

    if (!mem_read(v->mem, gpa, raw, sizeof raw))
        return false;
    d->gpa = pci_get32(raw) | (uint64_t)pci_get32(raw + 4) << 32;
    d->length = pci_get32(raw + 8);
    d->flags = pci_get16(raw + 12);
    d->next = pci_get16(raw + 14);
    return true;
}

static bool add_segment(struct virtio_chain *c, const struct descriptor *d)
{
    bool write = d->flags & DESC_WRITE;

    if (d->length == 0 || d->gpa > UINT64_MAX - d->length)
        return false;
    if (!write && c->in_size) // readable ones come first (2.7.4.2.1)
        return false;
    c->segment[c->count++] = (struct virtio_segment){d->gpa, d->length};
    if (write) {
        c->in_size += d->length;
    } else {
        c->out_size += d->length;
        c->out_count = c->count;
    }
    return true;
}

// Walks the chain from `head` in a table of `size` descriptors. At most VIRTIO_QUEUE_SIZE segments, and at
// most as many steps as the table has entries: a loop ends there.
static bool walk(struct virtio_device *v, const struct virtio_queue *q, uint16_t head, struct virtio_chain *c)
{
    uint64_t table = q->desc;
    uint32_t size = q->size;
    bool indirect = false;
    struct descriptor d;

    c->head = head;
    c->count = c->out_count = 0;
    c->out_size = c->in_size = 0;
    uint16_t index = head;
    for (uint32_t steps = 0; steps < size; steps++) {
        if (index >= size || !read_descriptor(v, table + (uint64_t)index * DESC_SIZE, &d))
            return false;
        if (d.flags & DESC_INDIRECT) {
            // One level, alone or at the end of a chain of the table proper (2.7.5.3.1).
            if (indirect || !virtio_has(v, VIRTIO_F_INDIRECT_DESC) || (d.flags & DESC_NEXT) ||
                d.length == 0 || d.length % DESC_SIZE || d.length / DESC_SIZE > 65536 ||
                d.gpa > UINT64_MAX - d.length)
                return false;
            indirect = true;
            table = d.gpa;
            size = d.length / DESC_SIZE;
            index = 0;
            steps = UINT32_MAX; // becomes 0
            continue;
        }
        if (c->count == VIRTIO_QUEUE_SIZE || !add_segment(c, &d))
            return false;
        if (!(d.flags & DESC_NEXT))
            return true;
        index = d.next;
    }
    return false;
}

bool virtio_pop(struct virtio_device *v, unsigned queue, struct virtio_chain *c)
{
    struct virtio_queue *q = &v->queue[queue];
    uint16_t avail_idx, head;

    if (!virtio_running(v) || !q->enabled || !read16(v, q->avail + 2, &avail_idx))
        return false;
    uint16_t waiting = avail_idx - q->last_avail;
    if (waiting == 0)
        return false;
    if (waiting > q->size)
        goto broken;
    __atomic_thread_fence(__ATOMIC_ACQUIRE); // the entry is valid only once the index says so
    if (!read16(v, q->avail + 4 + 2ull * (q->last_avail & (q->size - 1)), &head))
        return false;
    if (!walk(v, q, head, c))
        goto broken;
    q->last_avail++;
    return true;
broken:
    virtio_broken(v);
    return false;
}

void virtio_push(struct virtio_device *v, unsigned queue, const struct virtio_chain *c, uint32_t written)
{
    struct virtio_queue *q = &v->queue[queue];
    uint8_t element[8];

    if (!virtio_running(v) || !q->enabled)
        return;
    pci_put(element, c->head, 4);
    pci_put(element + 4, written, 4);
    if (!mem_write(v->mem, q->used + 4 + 8ull * (q->used_idx & (q->size - 1)), element, sizeof element)) {
        virtio_broken(v);
        return;
    }
    __atomic_thread_fence(__ATOMIC_RELEASE);
    q->used_idx++;
    write16(v, q->used + 2, q->used_idx);
}

void virtio_signal(struct virtio_device *v, unsigned queue)
{
    struct virtio_queue *q = &v->queue[queue];
    uint16_t old = q->signalled, wanted;

    if (!virtio_running(v) || !q->enabled || q->used_idx == old)
        return;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (virtio_has(v, VIRTIO_F_EVENT_IDX)) {
        if (!read16(v, q->avail + 4 + 2ull * q->size, &wanted)) // used_event
            return;
        q->signalled = q->used_idx;
        if ((uint16_t)(q->used_idx - wanted - 1) >= (uint16_t)(q->used_idx - old))
            return;
    } else {
        if (!read16(v, q->avail, &wanted)) // flags
            return;
        q->signalled = q->used_idx;
        if (wanted & AVAIL_NO_INTERRUPT)
            return;
    }
    interrupt(v, q->vector, ISR_QUEUE);
}

bool virtio_rearm(struct virtio_device *v, unsigned queue)
{
    struct virtio_queue *q = &v->queue[queue];
    uint16_t avail_idx;

    if (!virtio_running(v) || !q->enabled)
        return false;
    if (virtio_has(v, VIRTIO_F_EVENT_IDX) &&
        !write16(v, q->used + 4 + 8ull * q->size, q->last_avail)) // avail_event
        return false;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return read16(v, q->avail + 2, &avail_idx) && avail_idx != q->last_avail;
}

// Applies mem_read/mem_write to n bytes at `offset` of segments [first, last).
static bool copy(struct virtio_device *v, const struct virtio_chain *c, unsigned first, unsigned last,
                 uint64_t offset, uint8_t *data, size_t n, bool write)
{
    for (unsigned i = first; i < last && n; i++) {
        const struct virtio_segment *s = &c->segment[i];

        if (offset >= s->length) {
            offset -= s->length;
            continue;
        }
        size_t piece = s->length - offset < n ? s->length - offset : n;
        if (!(write ? mem_write(v->mem, s->gpa + offset, data, piece)
                    : mem_read(v->mem, s->gpa + offset, data, piece)))
            return false;
        data += piece;
        n -= piece;
        offset = 0;
    }
    return n == 0;
}

bool virtio_read_out(struct virtio_device *v, const struct virtio_chain *c, uint64_t offset, void *data,
                     size_t n)
{
    return copy(v, c, 0, c->out_count, offset, data, n, false);
}

bool virtio_write_in(struct virtio_device *v, const struct virtio_chain *c, uint64_t offset, const void *data,
                     size_t n)
{
    return copy(v, c, c->out_count, c->count, offset, (uint8_t *)data, n, true);
}

// ---- reset and status
static void reset_queue(struct virtio_queue *q)
{
    *q = (struct virtio_queue){.size = VIRTIO_QUEUE_SIZE, .vector = NO_VECTOR};
}

void virtio_reset(struct virtio_device *v)
{
    v->driver_features = 0;
    v->device_feature_select = v->driver_feature_select = 0;
    v->msix_config = NO_VECTOR;
    v->queue_select = 0;
    v->status = v->isr = 0;
    for (unsigned n = 0; n < VIRTIO_QUEUE_MAX; n++)
        reset_queue(&v->queue[n]);
    pci_set_irq(v->pci, 0);
}

static void status_write(struct virtio_device *v, uint8_t value)
{
    if (value == 0) {
        virtio_reset(v);
        if (v->ops->reset)
            v->ops->reset(v->opaque);
        return;
    }
    uint8_t set = value & ~v->status & ~STATUS_NEEDS_RESET;
    // Features are settled once (3.1.1 step 5): refused unless a subset of the offer with VERSION_1 (6.1).
    if ((set & STATUS_FEATURES_OK) &&
        ((v->driver_features & ~v->features) || !virtio_has(v, VIRTIO_F_VERSION_1)))
        set &= ~STATUS_FEATURES_OK;
    if ((set & STATUS_DRIVER_OK) && !((v->status | set) & STATUS_FEATURES_OK))
        set &= ~STATUS_DRIVER_OK;
    v->status |= set; // the driver never clears a bit (2.1.1)
    if (!(set & STATUS_DRIVER_OK))
        return;
    for (unsigned n = 0; n < v->info.queues; n++) // buffers may have been made available before DRIVER_OK
        if (v->queue[n].enabled)
            v->ops->notify(v->opaque, n);
}

static bool queue_valid(const struct virtio_queue *q)
{
    // Sizes of 2.7: descriptors 16n, available 6+2n, used 6+8n.
    uint64_t n = q->size;

    return q->desc % 16 == 0 && q->avail % 2 == 0 && q->used % 4 == 0 && q->desc <= UINT64_MAX - 16 * n &&
           q->avail <= UINT64_MAX - 6 - 2 * n && q->used <= UINT64_MAX - 6 - 8 * n;
}

static uint16_t valid_vector(const struct virtio_device *v, uint32_t vector)
{
    return vector < v->info.queues + 1 ? vector
                                       : NO_VECTOR; // one per queue and one for changes of configuration
}

// ---- BAR 0
static uint64_t common_register(const struct virtio_device *v, unsigned offset, unsigned *width)
{
    const struct virtio_queue *q = v->queue_select < v->info.queues ? &v->queue[v->queue_select] : NULL;

    *width = 2;
    switch (offset) {
    case CONFIG_MSIX_VECTOR: return v->msix_config;
    case NUM_QUEUES: return v->info.queues;
    case QUEUE_SELECT: return v->queue_select;
    case QUEUE_SIZE: return q ? q->size : 0;
    case QUEUE_MSIX_VECTOR: return q ? q->vector : NO_VECTOR;
    case QUEUE_ENABLE: return q && q->enabled;
    case QUEUE_NOTIFY_OFF: return q ? v->queue_select : 0;
    default: break;
    }
    *width = 1;
    switch (offset) {
    case DEVICE_STATUS: return v->status;
    case CONFIG_GENERATION: return v->generation;
    default: break;
    }
    *width = 4;
    switch (offset) {
    case DEVICE_FEATURE_SELECT: return v->device_feature_select;
    case DEVICE_FEATURE:
        return v->device_feature_select < 2 ? (uint32_t)(v->features >> 32 * v->device_feature_select) : 0;
    case DRIVER_FEATURE_SELECT: return v->driver_feature_select;
    case DRIVER_FEATURE:
        return v->driver_feature_select < 2 ? (uint32_t)(v->driver_features >> 32 * v->driver_feature_select)
                                            : 0;
    default: break;
    }
    *width = 8;
    switch (offset) {
    case QUEUE_DESC: return q ? q->desc : 0;
    case QUEUE_DRIVER: return q ? q->avail : 0;
    case QUEUE_DEVICE: return q ? q->used : 0;
    default: break;
    }
    *width = 0;
    return 0;
}

// Any access that lies within one field; a 64-bit field also by halves (4.1.3.1).
static uint64_t common_read(const struct virtio_device *v, unsigned offset, unsigned size)
{
    for (unsigned back = 0; back < 8 && back <= offset; back++) {
        unsigned width;
        uint64_t value = common_register(v, offset - back, &width);
        if (width > back)
            return back + size <= 8 ? value >> 8 * back : 0;
    }
    return 0;
}

static void set_half(uint64_t *field, unsigned high, uint64_t value, unsigned size)
{
    if (size == 8 && !high)
        *field = value;
    else if (size == 4)
        *field = high ? (*field & 0xffffffffu) | value << 32 : (*field & ~0xffffffffull) | (uint32_t)value;
}

static void queue_write(struct virtio_device *v, unsigned offset, unsigned size, uint64_t value)
{
    struct virtio_queue *q = v->queue_select < v->info.queues ? &v->queue[v->queue_select] : NULL;

    if (!q)
        return;
    if (offset == QUEUE_MSIX_VECTOR && size == 2) {
        q->vector = valid_vector(v, value);
        return;
    }
    if (q->enabled)
        return; // an enabled queue does not move (4.1.4.3.2)
    switch (offset) {
    case QUEUE_SIZE:
        if (size == 2 && value && value <= VIRTIO_QUEUE_SIZE && !(value & (value - 1)))
            q->size = value;
        break;
    case QUEUE_ENABLE:
        if (size != 2 || value != 1 || (v->status & STATUS_NEEDS_RESET))
            break;
        if (queue_valid(q))
            q->enabled = true;
        else
            virtio_broken(v);
        break;
    case QUEUE_DESC:
    case QUEUE_DESC + 4: set_half(&q->desc, offset & 4, value, size); break;
    case QUEUE_DRIVER:
    case QUEUE_DRIVER + 4: set_half(&q->avail, offset & 4, value, size); break;
    case QUEUE_DEVICE:
    case QUEUE_DEVICE + 4: set_half(&q->used, offset & 4, value, size); break;
    default: break;
    }
}

static void common_write(struct virtio_device *v, unsigned offset, unsigned size, uint64_t value)
{
    switch (offset) {
    case DEVICE_FEATURE_SELECT:
        if (size == 4)
            v->device_feature_select = value;
        break;
    case DRIVER_FEATURE_SELECT:
        if (size == 4)
            v->driver_feature_select = value;
        break;
    case DRIVER_FEATURE:
        if (size == 4 && v->driver_feature_select < 2 && !(v->status & STATUS_FEATURES_OK)) {
            unsigned shift = 32 * v->driver_feature_select;
            v->driver_features = (v->driver_features & ~(0xffffffffull << shift)) | (value & 0xffffffffu)
                                                                                        << shift;
        } else if (size == 4 && v->driver_feature_select >= 2 && (uint32_t)value) {
            virtio_broken(v); // bits that do not exist
        }
        break;
    case CONFIG_MSIX_VECTOR:
        if (size == 2)
            v->msix_config = valid_vector(v, value);
        break;
    case DEVICE_STATUS:
        if (size == 1)
            status_write(v, value);
        break;
    case QUEUE_SELECT:
        if (size == 2)
            v->queue_select = value;
        break;
    default: queue_write(v, offset, size, value); break;
    }
}

static uint64_t config_read(const struct virtio_device *v, unsigned offset, unsigned size)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < size; i++)
        if (offset + i < v->info.config_size)
            value |= (uint64_t)v->info.config[offset + i] << 8 * i;
    return value;
}

static void config_write(struct virtio_device *v, unsigned offset, unsigned size, uint64_t value)
{
    for (unsigned i = 0; i < size; i++)
        if (offset + i < v->info.config_size && offset + i < 64 &&
            (v->info.config_writable >> (offset + i) & 1))
            v->info.config[offset + i] = value >> 8 * i;
    if (v->ops->config_written)
        v->ops->config_written(v->opaque, offset, size);
}

static uint64_t isr_read(struct virtio_device *v)
{
    uint8_t isr = v->isr;

    v->isr = 0;
    pci_set_irq(v->pci, 0);
    return isr;
}

static uint64_t bar_read(void *opaque, uint64_t offset, unsigned size)
{
    struct virtio_device *v = opaque;
    unsigned within = offset & (REGION_SIZE - 1);

    switch (offset & ~(REGION_SIZE - 1ull)) {
    case COMMON_OFFSET: return common_read(v, within, size);
    case ISR_OFFSET: return within == 0 ? isr_read(v) : 0;
    case CONFIG_OFFSET: return config_read(v, within, size);
    default: return 0;
    }
}

static void bar_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct virtio_device *v = opaque;
    unsigned within = offset & (REGION_SIZE - 1), queue = within / NOTIFY_MULTIPLIER;

    switch (offset & ~(REGION_SIZE - 1ull)) {
    case COMMON_OFFSET: common_write(v, within, size, value); break;
    case CONFIG_OFFSET: config_write(v, within, size, value); break;
    case NOTIFY_OFFSET:
        if (queue < v->info.queues && v->queue[queue].enabled && virtio_running(v))
            v->ops->notify(v->opaque, queue);
        break;
    default: break;
    }
}

// ---- the PCI configuration access capability (4.1.4.9): BAR accesses through configuration space, for
// firmware
static bool cfg_access(struct virtio_device *v, unsigned offset, unsigned size, uint32_t *bar_offset,
                       unsigned *length)
{
    const uint8_t *cap = pci_config(v->pci) + v->cfg_cap;
    uint32_t n = pci_get32(cap + 12);

    *bar_offset = pci_get32(cap + 8);
    *length = n;
    return offset < v->cfg_cap + 20u && offset + size > v->cfg_cap + 16u && size <= 4 && cap[4] == 0 &&
           (n == 1 || n == 2 || n == 4) && *bar_offset % n == 0 && *bar_offset <= BAR_SIZE - n;
}

static void pci_config_read(void *opaque, unsigned offset, unsigned size)
{
    struct virtio_device *v = opaque;
    uint32_t bar_offset;
    unsigned length;

    if (cfg_access(v, offset, size, &bar_offset, &length))
        pci_put(pci_config(v->pci) + v->cfg_cap + 16, bar_read(v, bar_offset, length), length);
}

static void pci_config_written(void *opaque, unsigned offset, unsigned size)
{
    struct virtio_device *v = opaque;
    uint32_t bar_offset, value = pci_get32(pci_config(v->pci) + v->cfg_cap + 16);
    unsigned length;

    if (cfg_access(v, offset, size, &bar_offset, &length))
        bar_write(v, bar_offset, length, length == 4 ? value : value & ((1u << 8 * length) - 1));
}

// ---- state
static void queue_state(struct virtio_device *v, struct virtio_queue *q, struct stream *s)
{
    stream_bool(s, &q->enabled);
    stream_u16(s, &q->size);
    stream_u16(s, &q->vector);
    stream_u64(s, &q->desc);
    stream_u64(s, &q->avail);
    stream_u64(s, &q->used);
    stream_u16(s, &q->last_avail);
    stream_u16(s, &q->used_idx);
    stream_u16(s, &q->signalled);
    if (!s->loading)
        return;
    q->vector = valid_vector(v, q->vector);
    if (!q->size || q->size > VIRTIO_QUEUE_SIZE || (q->size & (q->size - 1)) ||
        (q->enabled && !queue_valid(q))) {
        reset_queue(q);
        if (!s->error)
            s->error = -EPROTO;
    }
}

void virtio_state(struct virtio_device *v, struct stream *s)
{
    stream_u64(s, &v->driver_features);
    stream_u32(s, &v->device_feature_select);
    stream_u32(s, &v->driver_feature_select);
    stream_u16(s, &v->msix_config);
    stream_u16(s, &v->queue_select);
    stream_u8(s, &v->status);
    stream_u8(s, &v->isr);
    stream_u8(s, &v->generation);
    for (unsigned n = 0; n < v->info.queues; n++)
        queue_state(v, &v->queue[n], s);
    if (s->loading) {
        v->msix_config = valid_vector(v, v->msix_config);
        if ((v->status & STATUS_FEATURES_OK) && (v->driver_features & ~v->features)) {
            virtio_reset(v);
            if (!s->error)
                s->error = -EPROTO; // saved with features that this device does not have
        }
    }
}

// ---- creation
static unsigned add_capability(struct virtio_device *v, uint8_t type, uint32_t offset, uint32_t length,
                               unsigned extra)
{
    unsigned cap = pci_add_capability(v->pci, PCI_CAP_VENDOR, 16 + extra);

    if (cap) {
        uint8_t *p = pci_config(v->pci) + cap;
        p[2] = 16 + extra;
        p[3] = type;
        pci_put(p + 8, offset, 4);
        pci_put(p + 12, length, 4);
    }
    return cap;
}

bool virtio_init(struct virtio_device *v, struct pci_bus *b, unsigned devfn, struct mem_map *mem,
                 const struct virtio_info *info, const struct virtio_ops *ops, void *opaque)
{
    static const struct mmio_ops mmio = {bar_read, bar_write};
    const struct pci_bar bars[6] = {{.size = BAR_SIZE, .mmio = &mmio}};
    // 4.1.2: device ID 1040h + type, revision >= 1.
    const struct pci_device_info pci = {
        .vendor = 0x1af4,
        .device = 0x1040 + info->device_id,
        .subsystem_vendor = 0x1af4,
        .subsystem = 0x1100,
        .revision = 1,
        .subclass = info->subclass,
        .class_code = info->class_code,
        .interrupt_pin = 1,
        .name = info->name,
    };

    if (info->queues > VIRTIO_QUEUE_MAX)
        return false;
    v->mem = mem;
    v->info = *info;
    v->ops = ops;
    v->opaque = opaque;
    v->features = info->features | 1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_F_EVENT_IDX |
                  1ull << VIRTIO_F_INDIRECT_DESC;
    v->pci = pci_add(b, devfn, &pci, bars, v);
    if (!v->pci || !pci_msix_add(v->pci, 1, info->queues + 1))
        return false;

    unsigned notify = add_capability(v, CAP_NOTIFY, NOTIFY_OFFSET, info->queues * NOTIFY_MULTIPLIER, 4);
    if (!notify || !add_capability(v, CAP_COMMON, COMMON_OFFSET, COMMON_SIZE, 0) ||
        !add_capability(v, CAP_ISR, ISR_OFFSET, 1, 0) ||
        !add_capability(v, CAP_DEVICE, CONFIG_OFFSET, info->config_size, 0))
        return false;
    pci_put(pci_config(v->pci) + notify + 16, NOTIFY_MULTIPLIER, 4);

    unsigned cfg = add_capability(v, CAP_PCI, 0, 0, 4);
    if (!cfg)
        return false;
    v->cfg_cap = cfg;
    pci_config_writable(v->pci, cfg + 4, 0xff, 1);        // bar
    pci_config_writable(v->pci, cfg + 8, 0xffffffff, 4);  // offset
    pci_config_writable(v->pci, cfg + 12, 0xffffffff, 4); // length
    pci_config_writable(v->pci, cfg + 16, 0xffffffff, 4); // pci_cfg_data
    pci_on_config_read(v->pci, pci_config_read);
    pci_on_config_write(v->pci, pci_config_written);
    virtio_reset(v);
    return true;
}
