// The guest-physical address space of one machine: RAM (a memfd), ROM, MMIO, holes; and the one write-tracing
// mechanism. Devices access guest memory only through mem_read()/mem_write(), which check every address.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum mem_kind { MEM_NONE, MEM_RAM, MEM_ROM, MEM_MMIO };

struct mmio_ops {
    uint64_t (*read)(void *opaque, uint64_t offset, unsigned size); // size 1, 2, 4 or 8
    void (*write)(void *opaque, uint64_t offset, unsigned size, uint64_t value);
};

struct mem_region {
    uint64_t base, size; // bytes, page-aligned
    enum mem_kind kind;
    uint8_t *host;       // RAM, ROM: host address of the first byte
    uint64_t ram_offset; // RAM: offset of the first byte in the memfd
    const struct mmio_ops *ops;
    void *opaque;
    const char *name;
    // In the flat view only; what owns a piece and where it differs from its owner.
    uint8_t *shadow;     // null, or where writes go although reads don't: PAM's write-only mode (82441FX 3.2.17)
    uint32_t origin;     // index into region[]
};

// Why a RAM page's writes are traced. One byte per RAM page.
#define TRACE_CODE  0x01u // translated code was made from it
#define TRACE_DIRTY 0x02u // dirty logging: not written since the log was started
#define TRACE_TABLE 0x04u // guest page table behind a live shadow
#define TRACE_RAW   0x08u // executed untranslated: its bytes were looked at and must not change unseen
#define MEM_MAX_REGIONS 64

struct mem_trace_client {
    // A write to a page carrying this client's bit. Called after the bytes changed.
    void (*written)(void *opaque, uint64_t gpa, unsigned len);
    // The client's bit, or one it hears of, was set or cleared on this page: cached write permission must go.
    void (*traced)(void *opaque, uint64_t gpa);
    void *opaque;
    uint8_t bit;
    uint8_t hears; // bits of others that `traced` is called for too
    // May be null. The view has changed, or bits of many pages were set without a call of `traced`.
    void (*changed)(void *opaque);
};

struct mem_map {
    struct mem_region region[MEM_MAX_REGIONS]; // later regions win where two overlap
    unsigned region_count;
    // Flat view, rebuilt on every change: sorted, disjoint.
    struct mem_region view[MEM_MAX_REGIONS * 3];
    unsigned view_count;
    uint8_t *ram;        // host mapping of all guest RAM
    uint64_t ram_size;   // bytes
    int ram_fd;          // memfd
    uint8_t *trace;      // one byte per RAM page (by ram_offset >> 12): TRACE_*
    uint64_t low_size;   // bytes of RAM below 4 GiB
    uint64_t a20_mask;   // ~0 or ~(1<<20)
    struct mem_trace_client clients[8];
    unsigned client_count;
    void (*changed)(void *opaque); // told when the view changes: TLBs must be flushed
    void *changed_opaque;
    uint8_t pam[16];     // per 16 KiB of [0xC0000, 0x100000): 0 as the regions say, else MEM_PAM_*
    unsigned ram_view[2]; // the two largest RAM pieces of the view, looked at first
    uint64_t *populated; // one bit per 2 MiB of RAM: faulted in as a whole
    bool dirty_logging;
};

#define MEM_PAM_SET   0x80u
#define MEM_PAM_READ  0x01u // reads come from RAM
#define MEM_PAM_WRITE 0x02u // writes go to RAM

struct mem_slot { // what one guest-physical address is
    enum mem_kind kind;
    uint8_t *host;       // RAM, ROM: host address of that byte
    uint64_t ram_page;   // RAM (or shadow): index into trace[]
    uint64_t left;       // bytes from there on that are the same piece of the view; NONE: up to the next piece
    const struct mem_region *region; // the region as it was added; null: none
    uint8_t *shadow;     // null, or where a write goes although a read does not (kind is not RAM then)
};

// Makes a map with `ram_size` bytes of RAM (multiple of 1 MiB, >= 1 MiB): [0, low), hole below 4 GiB from 3 GiB (or
// ram_size) up, the rest from 4 GiB. The hole 0xA0000-0xFFFFF is RAM until PAM/VGA regions cover it.
// Returns 0 or -errno.
int mem_create(struct mem_map *m, uint64_t ram_size);
void mem_destroy(struct mem_map *m);
// Adds a region; a later one covers earlier ones. Returns its index or -errno.
// Bases and sizes are multiples of 4096; base UINT64_MAX adds it unmapped. ROM is padded with ones to a full page.
int mem_add_rom(struct mem_map *m, uint64_t base, const void *data, uint64_t size, const char *name);
int mem_add_mmio(struct mem_map *m, uint64_t base, uint64_t size, const struct mmio_ops *ops, void *opaque, const char *name);
void mem_move(struct mem_map *m, int index, uint64_t base); // BAR moved; base == UINT64_MAX: unmapped
// PAM (82441FX 3.2.17): a 16 or 64 KiB piece of [0xC0000, 0x100000). read: RAM instead of ROM; write: writes to RAM.
// Until the first call for a piece the regions decide alone (RAM where nothing covers it). Where neither bit is set
// reads see the regions on top of RAM, or nothing. Clients that trace code are told of the pages as if written.
void mem_set_pam(struct mem_map *m, uint64_t base, uint64_t size, bool read_ram, bool write_ram);
void mem_set_a20(struct mem_map *m, bool enabled);

struct mem_slot mem_find(const struct mem_map *m, uint64_t gpa); // A20 is applied by the walker, not here

// Guest-physical accesses by devices and loaders: RAM and ROM only (ROM writes and MMIO are ignored, reads of nothing
// give all ones). Any length. Writes to traced pages tell the clients. Return whether all bytes were RAM (or ROM reads).
bool mem_read(struct mem_map *m, uint64_t gpa, void *data, size_t n);
bool mem_write(struct mem_map *m, uint64_t gpa, const void *data, size_t n);
uint64_t mem_mmio_read(struct mem_map *m, uint64_t gpa, unsigned size);
void mem_mmio_write(struct mem_map *m, uint64_t gpa, unsigned size, uint64_t value);

// ---- tracing
int mem_trace_register(struct mem_map *m, struct mem_trace_client client);
void mem_trace_unregister(struct mem_map *m, const void *opaque); // the clients with this opaque
static inline uint8_t mem_trace_bits(const struct mem_map *m, uint64_t ram_page) { return m->trace[ram_page]; }
void mem_trace_set(struct mem_map *m, uint64_t gpa, uint8_t bit);   // the page of gpa, RAM only
void mem_trace_clear(struct mem_map *m, uint64_t gpa, uint8_t bit);
// The same by page, wherever (and whether) the view has it now, and telling nobody.
void mem_trace_forget(struct mem_map *m, uint64_t ram_page, uint8_t bit);
// A write of [gpa, gpa+len) within one page has been done by somebody: tell the clients.
void mem_trace_written(struct mem_map *m, uint64_t gpa, unsigned len);

// ---- dirty logging (TRACE_DIRTY). Start and collect flush all TLBs (changed()): call them with the vCPUs stopped.
void mem_dirty_start(struct mem_map *m);
void mem_dirty_stop(struct mem_map *m);
// ORs a one into `bitmap` (bit n of word n / 64: RAM page n; ram_size / 4096 bits) for each page written since the
// start or the last collect, and logs these pages anew. Returns their number; 0 when not logging.
uint64_t mem_dirty_collect(struct mem_map *m, uint64_t *bitmap);
// The page is written without mem_trace_written() being called for each write from now on.
void mem_dirty_mark(struct mem_map *m, uint64_t ram_page);

// Faults in the 2 MiB of RAM around a page at its first touch: in bulk 0.16 us a page instead of 3.3 us one by one.
void mem_populate(struct mem_map *m, uint64_t chunk);
// Faults in writable memory of ours, whole pages; on Linux before 5.14 nothing happens.
void mem_fault_in(void *at, uint64_t size);
static inline void mem_prefault(struct mem_map *m, uint64_t ram_page)
{
    uint64_t chunk = ram_page >> 9;
    if (!(__atomic_load_n(&m->populated[chunk / 64], __ATOMIC_RELAXED) >> chunk % 64 & 1))
        mem_populate(m, chunk);
}
