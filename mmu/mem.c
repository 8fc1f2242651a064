// The guest-physical address space: regions stacked over RAM, flattened into a sorted view.
//
// Regions are few and change when firmware or an operating system programs a BAR or a PAM register;
// look-ups happen four times in every page walk. So a change rebuilds the whole view, and a look-up is two
// comparisons for RAM and a binary search for the rest. Callers change the map only while no vCPU of the
// machine runs.
#include "mmu/mem.h"
#include "mmu/private.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define GIB        (1ull << 30)
#define LOW_MAX    (3 * GIB)
#define HIGH_BASE  (4 * GIB)
#define CHUNK      (2ull << 20)
#define PAM_BASE   0xC0000ull
#define PAM_END    0x100000ull
#define PAM_PIECE  0x4000ull
#define PAM_PIECES ((PAM_END - PAM_BASE) / PAM_PIECE)
#define VIEW_MAX   (MEM_MAX_REGIONS * 3)
#define UNMAPPED   UINT64_MAX

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

// ---- the view

static void sort(uint64_t *a, unsigned n)
{
    for (unsigned i = 1; i < n; i++) {
        uint64_t x = a[i];
        unsigned j = i;
        for (; j && a[j - 1] > x; j--)
            a[j] = a[j - 1];
        a[j] = x;
    }
}

static const struct mem_region *topmost(const struct mem_map *m, uint64_t gpa)
{
    for (unsigned i = m->region_count; i-- > 0;)
        if (m->region[i].base != UNMAPPED && gpa - m->region[i].base < m->region[i].size)
            return &m->region[i];
    return NULL;
}

// What [base, base+size), which no boundary cuts, is. Returns whether it is anything.
static bool piece_at(const struct mem_map *m, uint64_t base, uint64_t size, struct mem_region *piece)
{
    const struct mem_region *top = topmost(m, base);
    bool in_pam = base >= PAM_BASE && base < PAM_END;
    uint8_t pam = in_pam ? m->pam[(base - PAM_BASE) / PAM_PIECE] : 0;
    bool ram_below = top && top->kind == MEM_RAM;
    uint8_t *ram = in_pam ? m->ram + base : NULL;

    *piece = (struct mem_region){.base = base, .size = size, .kind = MEM_NONE};
    if (pam & MEM_PAM_READ) {
        piece->host = ram;
        piece->kind = pam & MEM_PAM_WRITE ? MEM_RAM : MEM_ROM;
        piece->ram_offset = base;
        piece->name = "pam";
        return true; // origin 0 is the RAM below 4 GiB
    }
    if (!top || (pam && ram_below)) {
        piece->origin = UINT32_MAX;
    } else {
        uint64_t offset = base - top->base;
        *piece = *top;
        piece->base = base;
        piece->size = size;
        piece->host = top->host ? top->host + offset : NULL;
        piece->ram_offset = top->ram_offset + offset;
        piece->origin = (uint32_t)(top - m->region);
    }
    if (pam & MEM_PAM_WRITE)
        piece->shadow = ram;
    return piece->kind != MEM_NONE || piece->shadow;
}

static bool continues(const struct mem_region *a, const struct mem_region *b)
{
    return a->base + a->size == b->base && a->kind == b->kind && a->origin == b->origin &&
           (a->host ? a->host + a->size : NULL) == b->host &&
           (a->shadow ? a->shadow + a->size : NULL) == b->shadow;
}

static void rebuild(struct mem_map *m)
{
    uint64_t edge[MEM_MAX_REGIONS * 2 + PAM_PIECES + 1];
    unsigned edges = 0;
    for (unsigned i = 0; i < m->region_count; i++) {
        if (m->region[i].base == UNMAPPED)
            continue;
        edge[edges++] = m->region[i].base;
        edge[edges++] = m->region[i].base + m->region[i].size;
    }
    for (uint64_t gpa = PAM_BASE; gpa <= PAM_END; gpa += PAM_PIECE)
        edge[edges++] = gpa;
    sort(edge, edges);

    m->view_count = 0;
    for (unsigned i = 0; i + 1 < edges; i++) {
        struct mem_region piece;
        if (edge[i] == edge[i + 1] || !piece_at(m, edge[i], edge[i + 1] - edge[i], &piece))
            continue;
        struct mem_region *last = m->view_count ? &m->view[m->view_count - 1] : NULL;
        if (last && continues(last, &piece))
            last->size += piece.size;
        else if (m->view_count < VIEW_MAX - 1) // always: 64 regions make 127 pieces, PAM cuts 17 times
            m->view[m->view_count++] = piece;
    }

    // The entry behind the last is empty: it stands for "no second piece of RAM".
    unsigned none = m->view_count;
    m->view[none] = (struct mem_region){0};
    unsigned *big = m->ram_view;
    big[0] = big[1] = none;
    for (unsigned i = 0; i < m->view_count; i++) {
        if (m->view[i].kind != MEM_RAM)
            continue;
        if (big[0] == none || m->view[i].size > m->view[big[0]].size) {
            big[1] = big[0];
            big[0] = i;
        } else if (big[1] == none || m->view[i].size > m->view[big[1]].size) {
            big[1] = i;
        }
    }
    mem_tell_changed(m);
}

struct mem_slot mem_find(const struct mem_map *m, uint64_t gpa)
{
    unsigned low = 0, high = m->view_count; // the first piece that ends above gpa
    while (low < high) {
        unsigned mid = (low + high) / 2;
        if (m->view[mid].base + (m->view[mid].size - 1) < gpa)
            low = mid + 1;
        else
            high = mid;
    }
    const struct mem_region *piece = &m->view[low];
    if (low == m->view_count || piece->base > gpa) {
        uint64_t end = low == m->view_count ? 0 : piece->base;
        uint64_t left = end - gpa; // to 2^64 where nothing follows
        return (struct mem_slot){.kind = MEM_NONE, .left = left ? left : UINT64_MAX};
    }
    uint64_t offset = gpa - piece->base;
    struct mem_slot slot = {
        .kind = piece->kind,
        .host = piece->host ? piece->host + offset : NULL,
        .left = piece->size - offset,
        .region = piece->origin < m->region_count ? &m->region[piece->origin] : NULL,
        .shadow = piece->shadow ? piece->shadow + offset : NULL,
    };
    if (slot.kind == MEM_RAM)
        slot.ram_page = ram_page_of(m, slot.host);
    else if (slot.shadow)
        slot.ram_page = ram_page_of(m, slot.shadow);
    return slot;
}

// ---- create, destroy

static void *map_shared(uint64_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

// Maps the memfd on a 2 MiB boundary, so that the host may use large pages.
static uint8_t *map_ram(int fd, uint64_t size)
{
    uint64_t span = size + CHUNK;
    uint8_t *area = mmap(NULL, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED)
        return NULL;
    uint8_t *at = (uint8_t *)(((uintptr_t)area + CHUNK - 1) & ~(uintptr_t)(CHUNK - 1));
    if (at > area)
        munmap(area, (size_t)(at - area));
    if (area + span > at + size)
        munmap(at + size, (size_t)(area + span - (at + size)));
    int flags = MAP_SHARED | MAP_NORESERVE | MAP_FIXED;
    if (mmap(at, size, PROT_READ | PROT_WRITE, flags, fd, 0) == MAP_FAILED) {
        int error = errno;
        munmap(at, size);
        errno = error;
        return NULL;
    }
    madvise(at, size, MADV_HUGEPAGE); // only a hint: hosts without it work the same
    return at;
}

static uint64_t populated_bytes(const struct mem_map *m)
{
    uint64_t chunks = (m->ram_size + CHUNK - 1) / CHUNK;
    return (chunks + 63) / 64 * 8;
}

int mem_create(struct mem_map *m, uint64_t ram_size)
{
    memset(m, 0, sizeof *m);
    m->ram_fd = -1;
    if (!ram_size || ram_size % (1 << 20) || ram_size > 1ull << 46)
        return -EINVAL;
    m->ram_size = ram_size;
    m->low_size = ram_size < LOW_MAX ? ram_size : LOW_MAX;
    m->a20_mask = ~0ull;

    int error;
    m->ram_fd = memfd_create("gnomon-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (m->ram_fd < 0 || ftruncate(m->ram_fd, (off_t)ram_size) < 0) {
        error = -errno;
        goto fail;
    }
    // Whoever holds the descriptor must not be able to make the others' mappings raise SIGBUS.
    fcntl(m->ram_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    m->ram = map_ram(m->ram_fd, ram_size);
    m->trace = m->ram ? map_shared(ram_size / PAGE_SIZE) : NULL;
    m->populated = m->trace ? map_shared(populated_bytes(m)) : NULL;
    if (!m->populated) {
        error = -errno;
        goto fail;
    }

    m->region[m->region_count++] =
        (struct mem_region){.base = 0, .size = m->low_size, .kind = MEM_RAM, .host = m->ram, .name = "ram"};
    if (ram_size > m->low_size)
        m->region[m->region_count++] = (struct mem_region){.base = HIGH_BASE,
                                                           .size = ram_size - m->low_size,
                                                           .kind = MEM_RAM,
                                                           .host = m->ram + m->low_size,
                                                           .ram_offset = m->low_size,
                                                           .name = "ram-high"};
    rebuild(m);
    return 0;
fail:
    mem_destroy(m);
    return error;
}

void mem_destroy(struct mem_map *m)
{
    for (unsigned i = 0; i < m->region_count; i++)
        if (m->region[i].kind == MEM_ROM)
            munmap(m->region[i].host, m->region[i].size);
    if (m->populated)
        munmap(m->populated, populated_bytes(m));
    if (m->trace)
        munmap(m->trace, m->ram_size / PAGE_SIZE);
    if (m->ram)
        munmap(m->ram, m->ram_size);
    if (m->ram_fd >= 0)
        close(m->ram_fd);
    memset(m, 0, sizeof *m);
    m->ram_fd = -1;
}

// ---- regions

// A base a region of this size can have: aligned, and ending at or below 2^64 - 4096.
static bool base_fits(uint64_t base, uint64_t size)
{
    return !(base % PAGE_SIZE) && base <= -PAGE_SIZE - size;
}

static int add_region(struct mem_map *m, const struct mem_region *r)
{
    if (!r->size || r->size % PAGE_SIZE || r->size > 1ull << 63 ||
        (r->base != UNMAPPED && !base_fits(r->base, r->size)))
        return -EINVAL;
    if (m->region_count == MEM_MAX_REGIONS)
        return -ENOSPC;
    unsigned index = m->region_count++;
    m->region[index] = *r;
    if (r->base != UNMAPPED)
        rebuild(m);
    return (int)index;
}

int mem_add_rom(struct mem_map *m, uint64_t base, const void *data, uint64_t size, const char *name)
{
    if (!size || size > 4 * GIB)
        return -EINVAL;
    uint64_t span = (size + PAGE_SIZE - 1) & -PAGE_SIZE;
    uint8_t *host = map_shared(span);
    if (!host)
        return -errno;
    copy_bytes(host, data, size);
    fill_bytes(host + size, 0xff, span - size);
    mprotect(host, span, PROT_READ);
    struct mem_region r = {.base = base, .size = span, .kind = MEM_ROM, .host = host, .name = name};
    int index = add_region(m, &r);
    if (index < 0)
        munmap(host, span);
    return index;
}

int mem_add_mmio(struct mem_map *m, uint64_t base, uint64_t size, const struct mmio_ops *ops, void *opaque,
                 const char *name)
{
    struct mem_region r = {
        .base = base, .size = size, .kind = MEM_MMIO, .ops = ops, .opaque = opaque, .name = name};
    return add_region(m, &r);
}

void mem_move(struct mem_map *m, int index, uint64_t base)
{
    if (index < 0 || (unsigned)index >= m->region_count)
        return;
    struct mem_region *r = &m->region[index];
    if (!base_fits(base, r->size)) // a BAR decodes what the guest wrote: nothing may come of nonsense
        base = UNMAPPED;
    if (r->base == base)
        return;
    r->base = base;
    rebuild(m);
}

void mem_set_pam(struct mem_map *m, uint64_t base, uint64_t size, bool read_ram, bool write_ram)
{
    if (base % PAM_PIECE || size % PAM_PIECE || base < PAM_BASE || base > PAM_END || size > PAM_END - base)
        return;
    uint8_t value = MEM_PAM_SET | (read_ram ? MEM_PAM_READ : 0) | (write_ram ? MEM_PAM_WRITE : 0);
    bool changed = false;
    for (uint64_t gpa = base; gpa < base + size; gpa += PAM_PIECE) {
        uint8_t *pam = &m->pam[(gpa - PAM_BASE) / PAM_PIECE];
        changed |= *pam != value;
        *pam = value;
    }
    if (!changed)
        return;
    rebuild(m);
    // Other bytes are at these addresses now: for who made code from them that is a write.
    for (unsigned i = 0; i < m->client_count; i++)
        if ((m->clients[i].bit & TRACE_CODE) && m->clients[i].written)
            for (uint64_t gpa = base; gpa < base + size; gpa += PAGE_SIZE)
                m->clients[i].written(m->clients[i].opaque, gpa, PAGE_SIZE);
}

void mem_set_a20(struct mem_map *m, bool enabled)
{
    uint64_t mask = enabled ? ~0ull : ~(1ull << 20);
    if (m->a20_mask == mask)
        return;
    m->a20_mask = mask;
    mem_tell_changed(m);
}

void mem_populate(struct mem_map *m, uint64_t chunk)
{
    uint64_t start = chunk * CHUNK;
    if (start >= m->ram_size)
        return;
    uint64_t size = m->ram_size - start < CHUNK ? m->ram_size - start : CHUNK;
    __atomic_fetch_or(&m->populated[chunk / 64], 1ull << chunk % 64, __ATOMIC_RELAXED);
    mem_fault_in(m->ram + start, size);
}

void mem_fault_in(void *at, uint64_t size)
{
    // Not through libc: errno is reached by the FS base, which may be the guest's. A failure costs time only.
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"((long)SYS_madvise), "D"(at), "S"(size), "d"((long)MADV_POPULATE_WRITE)
                     : "rcx", "r11", "memory");
    (void)result;
}

// ---- accesses

bool mem_read(struct mem_map *m, uint64_t gpa, void *data, size_t n)
{
    uint8_t *to = data;
    bool whole = true;
    while (n) {
        struct mem_slot slot = mem_find(m, gpa);
        size_t part = n < slot.left ? n : slot.left;
        if (slot.kind == MEM_RAM || slot.kind == MEM_ROM) {
            copy_bytes(to, slot.host, part);
        } else {
            fill_bytes(to, 0xff, part);
            whole = false;
        }
        to += part;
        n -= part;
        gpa += part;
        if (!gpa) { // nothing comes after the last address
            fill_bytes(to, 0xff, n);
            return whole && !n;
        }
    }
    return whole;
}

bool mem_write(struct mem_map *m, uint64_t gpa, const void *data, size_t n)
{
    const uint8_t *from = data;
    bool whole = true;
    while (n) {
        struct mem_slot slot = mem_find(m, gpa);
        uint8_t *host = slot.kind == MEM_RAM ? slot.host : slot.shadow;
        uint64_t left = slot.left;
        if (host && left > page_left(gpa))
            left = page_left(gpa); // trace bits are by page
        size_t part = n < left ? n : left;
        if (host) {
            mem_prefault(m, slot.ram_page);
            copy_bytes(host, from, part);
            // Store the bytes, then look at the trace byte; who traces a page sets its byte, then reads the bytes
            // (mem_trace_set() is a fence). So one of the two sees the other, also from different processes.
            __atomic_thread_fence(__ATOMIC_SEQ_CST);
            if (mem_trace_bits(m, slot.ram_page))
                mem_trace_written(m, gpa, (unsigned)part);
        } else {
            whole = false;
        }
        from += part;
        n -= part;
        gpa += part;
        if (!gpa)
            return whole && !n;
    }
    return whole;
}

static uint64_t ones(unsigned size)
{
    return size < 8 ? (1ull << size * 8) - 1 : ~0ull;
}

uint64_t mem_mmio_read(struct mem_map *m, uint64_t gpa, unsigned size)
{
    if (size - 1 > 7)
        return ~0ull;
    uint64_t value = 0;
    for (unsigned done = 0, part; done < size; done += part) {
        part = natural_size(gpa + done, size - done);
        struct mem_slot slot = mem_find(m, gpa + done);
        uint64_t piece = ones(part);
        if (slot.kind == MEM_RAM || slot.kind == MEM_ROM)
            copy_bytes(&piece, slot.host, part);
        else if (slot.kind == MEM_MMIO && slot.region->ops->read)
            piece = slot.region->ops->read(slot.region->opaque, gpa + done - slot.region->base, part);
        value |= (piece & ones(part)) << done * 8;
    }
    return value;
}

void mem_mmio_write(struct mem_map *m, uint64_t gpa, unsigned size, uint64_t value)
{
    if (size - 1 > 7)
        return;
    for (unsigned done = 0, part; done < size; done += part) {
        part = natural_size(gpa + done, size - done);
        struct mem_slot slot = mem_find(m, gpa + done);
        uint64_t piece = value >> done * 8 & ones(part);
        if (slot.kind == MEM_RAM || slot.shadow)
            mem_write(m, gpa + done, &piece, part);
        else if (slot.kind == MEM_MMIO && slot.region->ops->write)
            slot.region->ops->write(slot.region->opaque, gpa + done - slot.region->base, part, piece);
    }
}
