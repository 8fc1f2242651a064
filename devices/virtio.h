// A virtio 1.2 device over PCI (modern interface only, virtio 1.2 section 4.1) with split virtqueues.
//
// The transport owns negotiation, queues and interrupts; a device type supplies features, configuration space
// and what to do when a queue is notified. Rings are the guest's: every index, address and length in them is
// checked, and the first inconsistency stops the device with DEVICE_NEEDS_RESET (2.1.2).
#pragma once
#include "devices/chips.h"

#define VIRTIO_QUEUE_MAX 8u // queues of a device
#define VIRTIO_QUEUE_SIZE                                                                                    \
    256u // entries offered per queue, and the most segments a chain may have (2.7.5.3.1)

#define VIRTIO_F_INDIRECT_DESC 28
#define VIRTIO_F_EVENT_IDX     29
#define VIRTIO_F_VERSION_1     32

struct virtio_ops {
    void (*notify)(void *opaque, unsigned queue); // the driver made buffers available
    void (*reset)(void *opaque);                  // the driver reset the device; may be null
    void (*config_written)(void *opaque, unsigned offset, unsigned size); // may be null
};

struct virtio_queue {
    bool enabled;
    uint16_t size, vector;
    uint64_t desc, avail, used; // guest-physical
    uint16_t last_avail, used_idx;
    uint16_t signalled; // used_idx at the last interrupt decision
};

struct virtio_info {
    uint16_t device_id; // 5.: 2 block
    uint8_t subclass, class_code;
    const char *name;
    unsigned queues;
    uint64_t features; // of the device type; the transport adds its own
    uint8_t *config;   // device configuration space, little-endian
    unsigned config_size;
    uint64_t config_writable; // one bit per byte (of the first 64) that the driver may write
};

struct virtio_device {
    struct pci_device *pci;
    struct mem_map *mem;
    struct virtio_info info;
    const struct virtio_ops *ops;
    void *opaque;

    uint64_t features, driver_features;
    uint32_t device_feature_select, driver_feature_select;
    uint16_t msix_config, queue_select;
    uint8_t status, isr, generation;
    uint8_t cfg_cap; // offset of the PCI configuration access capability
    struct virtio_queue queue[VIRTIO_QUEUE_MAX];
};

struct virtio_segment {
    uint64_t gpa;
    uint32_t length; // bytes, > 0
};

// One request: descriptors the device reads, then descriptors it writes (2.7.4.2).
struct virtio_chain {
    uint16_t head;
    unsigned out_count, count;  // segments [0, out_count) are read, [out_count, count) written
    uint64_t out_size, in_size; // bytes
    struct virtio_segment segment[VIRTIO_QUEUE_SIZE];
};

bool virtio_init(struct virtio_device *v, struct pci_bus *b, unsigned devfn, struct mem_map *mem,
                 const struct virtio_info *info, const struct virtio_ops *ops, void *opaque);
void virtio_reset(struct virtio_device *v); // power-on; does not call ops->reset
void virtio_state(struct virtio_device *v, struct stream *s);
bool virtio_running(const struct virtio_device *v);               // DRIVER_OK and not broken
bool virtio_has(const struct virtio_device *v, unsigned feature); // negotiated
void virtio_broken(struct virtio_device *v);                      // DEVICE_NEEDS_RESET

// Takes the next available chain. False: none (or the device just broke).
bool virtio_pop(struct virtio_device *v, unsigned queue, struct virtio_chain *c);
// Returns a chain, `written` bytes of its device-writable part having been filled.
void virtio_push(struct virtio_device *v, unsigned queue, const struct virtio_chain *c, uint32_t written);
// Interrupts the driver if it wants to know of what was pushed since the last call.
void virtio_signal(struct virtio_device *v, unsigned queue);
// After virtio_pop() found nothing: asks for a notification; true if something came in meanwhile.
bool virtio_rearm(struct virtio_device *v, unsigned queue);

// Copy n bytes at `offset` of the device-readable (out) or device-writable (in) part. False: not all of it is
// there or in RAM.
bool virtio_read_out(struct virtio_device *v, const struct virtio_chain *c, uint64_t offset, void *data,
                     size_t n);
bool virtio_write_in(struct virtio_device *v, const struct virtio_chain *c, uint64_t offset, const void *data,
                     size_t n);
