// Write tracing: one byte of TRACE_* bits a page of RAM, clients that own bits, and the dirty log.
//
// A page with any bit set has no write tag in any TLB, so every store to it comes by mmu_write() or
// mem_write(), which end up in mem_trace_written(). Setting a bit therefore has two halves: the bit, then
// `traced` of the bit's client, and of those that hear of it, which take cached write permission away from
// all vCPUs (mmu_drop_writable()) and shadows. Bits are changed atomically: devices and vCPUs may be
// different threads; the list of clients is fixed before the first vCPU runs.
#include "mmu/mem.h"
#include "mmu/private.h"
#include <errno.h>

int mem_trace_register(struct mem_map *m, struct mem_trace_client client)
{
    if (m->client_count == sizeof m->clients / sizeof m->clients[0])
        return -ENOSPC;
    m->clients[m->client_count++] = client;
    return 0;
}

void mem_trace_unregister(struct mem_map *m, const void *opaque)
{
    unsigned left = 0;
    for (unsigned i = 0; i < m->client_count; i++)
        if (m->clients[i].opaque != opaque)
            m->clients[left++] = m->clients[i];
    m->client_count = left;
}

void mem_tell_changed(struct mem_map *m)
{
    if (m->changed)
        m->changed(m->changed_opaque);
    for (unsigned i = 0; i < m->client_count; i++)
        if (m->clients[i].changed)
            m->clients[i].changed(m->clients[i].opaque);
}

static void tell_traced(struct mem_map *m, uint64_t gpa, uint8_t bits)
{
    for (unsigned i = 0; i < m->client_count; i++)
        if (((m->clients[i].bit | m->clients[i].hears) & bits) && m->clients[i].traced)
            m->clients[i].traced(m->clients[i].opaque, gpa);
}

void mem_trace_set(struct mem_map *m, uint64_t gpa, uint8_t bit)
{
    struct mem_slot slot = mem_find(m, gpa);
    if (slot.kind != MEM_RAM)
        return;
    if (mem_trace_bits(m, slot.ram_page) & bit)
        return;
    uint8_t old = __atomic_fetch_or(&m->trace[slot.ram_page], bit, __ATOMIC_SEQ_CST);
    if (~old & bit)
        tell_traced(m, gpa, (uint8_t)(~old & bit));
}

void mem_trace_clear(struct mem_map *m, uint64_t gpa, uint8_t bit)
{
    struct mem_slot slot = mem_find(m, gpa);
    if (slot.kind != MEM_RAM)
        return;
    uint8_t old = __atomic_fetch_and(&m->trace[slot.ram_page], (uint8_t)~bit, __ATOMIC_SEQ_CST);
    if (old & bit)
        tell_traced(m, gpa, (uint8_t)(old & bit));
}

void mem_trace_forget(struct mem_map *m, uint64_t ram_page, uint8_t bit)
{
    __atomic_fetch_and(&m->trace[ram_page], (uint8_t)~bit, __ATOMIC_SEQ_CST);
}

void mem_trace_written(struct mem_map *m, uint64_t gpa, unsigned len)
{
    struct mem_slot slot = mem_find(m, gpa);
    if (slot.kind != MEM_RAM && !slot.shadow)
        return;
    uint8_t bits = mem_trace_bits(m, slot.ram_page); // clients may change the byte
    if (!bits)
        return;
    if (bits & TRACE_DIRTY)
        mem_dirty_mark(m, slot.ram_page);
    for (unsigned i = 0; i < m->client_count; i++)
        if ((m->clients[i].bit & bits) && m->clients[i].written)
            m->clients[i].written(m->clients[i].opaque, gpa, len);
}

// ---- dirty logging: a page carries TRACE_DIRTY until it is written

void mem_dirty_mark(struct mem_map *m, uint64_t ram_page)
{
    __atomic_fetch_and(&m->trace[ram_page], (uint8_t)~TRACE_DIRTY, __ATOMIC_SEQ_CST);
}

void mem_dirty_start(struct mem_map *m)
{
    for (uint64_t page = 0; page < m->ram_size / PAGE_SIZE; page++)
        __atomic_fetch_or(&m->trace[page], TRACE_DIRTY, __ATOMIC_RELAXED);
    m->dirty_logging = true;
    mem_tell_changed(m);
}

void mem_dirty_stop(struct mem_map *m)
{
    m->dirty_logging = false;
    for (uint64_t page = 0; page < m->ram_size / PAGE_SIZE; page++)
        mem_dirty_mark(m, page);
}

uint64_t mem_dirty_collect(struct mem_map *m, uint64_t *bitmap)
{
    if (!m->dirty_logging)
        return 0;
    uint64_t count = 0;
    for (uint64_t page = 0; page < m->ram_size / PAGE_SIZE; page++) {
        if (__atomic_fetch_or(&m->trace[page], TRACE_DIRTY, __ATOMIC_RELAXED) & TRACE_DIRTY)
            continue;
        bitmap[page / 64] |= 1ull << page % 64;
        count++;
    }
    if (count)
        mem_tell_changed(m);
    return count;
}
