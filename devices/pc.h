// Inside a machine: what pc_core.c (beside the vCPU), pc.c (assembly) and machine.c (its life) share.
#pragma once
#include <pthread.h>
#include <time.h>

#include "bios/loader.h"
#include "cpu/lapic.h"
#include "cpu/model.h"
#include "devices/block.h"
#include "devices/cell.h"
#include "devices/chips.h"
#include "devices/machine.h"
#include "mmu/mem.h"
#include "mmu/mmu.h"

#define PC_MAX_DEVICES 32
#define PC_FIRST_SLOT  3u // of disks; 0 host bridge, 1 PIIX3, 2 for a display
#define PC_INPUT_SIZE  4096u
#define NEVER          UINT64_MAX
#define LAPIC_BASE     0xfee00000ull
#define IOAPIC_BASE    0xfec00000ull
#define HPET_BASE      0xfed00000ull
#define COM1_BASE      0x3f8u
#define COM2_BASE      0x2f8u

// Who drives an interrupt input: it is up while any of them holds it up.
#define FROM_CHIP 1u
#define FROM_PCI  2u
#define FROM_HPET 4u

// Bytes from the host that the UART had no room for yet.
struct pc_input {
    uint8_t data[PC_INPUT_SIZE];
    uint32_t head, count;
};

// Notes of other threads for the vCPU's thread. `lock` is held for copying only; no other lock is taken under
// it.
struct mailbox {
    pthread_mutex_t lock;
    struct pc_input input[MACHINE_SERIALS];
    bool power_button;
    void (*call)(void *opaque, struct machine *m);
    void *call_opaque;
    uint32_t full; // atomic: there is something for the vCPU's thread
};

// Which process this is. Alone: vCPU and all chips in one, every exit a function call. The other two each have a
// whole struct machine and are right about their part of it: devices/cell.h.
enum pc_role { PC_ALONE, PC_MACHINE, PC_CELL };

struct cell_region { // what the cell knows of an MMIO region of the machine process
    struct machine *m;
    unsigned index;
};

struct pc_serial { // where a UART's bytes go
    struct machine *m;
    unsigned port;
};

struct machine {
    enum pc_role role;
    struct cell *cell;      // the machine process's; null: none. Atomic: other threads ring its bell
    struct cell_page *page; // shared by the two
    struct machine_config config; // its strings and arrays are gone after machine_create(): see below
    struct mem_map mem;
    struct vcpu *v;
    struct cpu_model *model;
    bool mem_made, attached;

    // Chips; freed through devices[].
    struct bus *bus;
    struct pic *pic;
    struct pit *pit;
    struct ferr *ferr;
    struct rtc *rtc;
    struct uart *uart[MACHINE_SERIALS];
    struct i8042 *i8042;
    struct hpet *hpet;
    struct ioapic *ioapic;
    struct pci_bus *pci;
    struct piix4pm *pm;
    struct fw_cfg *fw_cfg;
    struct device devices[PC_MAX_DEVICES];
    unsigned device_count;
    struct block *disks[MACHINE_MAX_DISKS];
    unsigned disk_count;

    // Interrupt inputs: FROM_* that hold them up.
    uint8_t isa[16], gsi[24];
    bool hpet_legacy, rtc_level;

    // Time: the machine's clock is CLOCK_MONOTONIC less clock_base_ns. One host timer serves the earliest
    // deadline; it is moved only to become earlier, so a deadline that moves away costs nothing, and wakes us
    // once for nothing.
    struct timer_queue clock;        // of the chips beside the vCPU
    struct timer_queue device_clock; // of the others
    uint64_t clock_base_ns;
    // Deterministic: the time is the vCPU's count, and a deadline the count's limit. The machine process has it from the cell.
    uint64_t told_ns; // in the machine process
    uint64_t due_ns;  // in the cell: the first timer of the machine process's; NEVER: none
    uint64_t stop_at;
    int host_timer;         // of timer_create(); -1: none
    uint64_t programmed_ns; // what the host timer is set to, in the machine's time; NEVER: not

    // Payload.
    struct acpi_config acpi;
    struct image kernel, initrds[MACHINE_MAX_INITRDS];
    struct loader loader; // protocol BOOT_NONE: firmware runs
    struct loader_config loader_config;

    // What a chip asked of the machine, answered by machine_run() after REQ_EXIT.
    bool requested;
    enum machine_request request;
    uint32_t request_value;
    uint32_t stop, stop_value; // machine_stop(); stop is atomic

    struct mailbox mail;
    struct machine_counters counters;

    // In the machine process: levels its chips drive (enum cell_event_kind), and all counters added up.
    uint32_t level[3];
    struct machine_counters total;
    // In the cell.
    struct pc_serial serial[MACHINE_SERIALS];
    struct cell_region cell_region[MEM_MAX_REGIONS];
    struct timer flush;  // of serial bytes not announced yet
    uint32_t map_seen;   // generation
    FILE *perf_out;      // where the engine's lines for perf wait; null: none
};

// ---- pc_core.c: compiled for live vector registers
void pc_raise(struct machine *m, uint32_t requests); // on the vCPU's thread
void pc_isa_line(void *opaque, int irq, int level);  // a chip's ISA interrupt: 8259 and I/O APIC
void pc_pci_isa_line(void *opaque, int irq, int level);
void pc_pci_gsi_line(void *opaque, int gsi, int level);
void pc_hpet_line(void *opaque, int gsi, int level);
void pc_hpet_legacy(void *opaque, bool enabled);
void pc_intr_line(void *opaque, int n, int level);
void pc_ignne_line(void *opaque, int n, int level);
void pc_apic_deliver(void *opaque, const struct apic_message *m);
void pc_apic_eoi(void *opaque, uint8_t vector);
void pc_serial_write(void *opaque, const uint8_t *data, size_t n);
void pc_apic_request(void *opaque, uint32_t bits);
void pc_msi(void *opaque, uint64_t address, uint32_t data);
uint64_t pc_monotonic_ns(void);
uint64_t pc_clock_now(void *opaque);
void pc_clock_rearm(void *opaque, uint64_t deadline_ns);
void pc_count_limit(struct machine *m); // deterministic: to the first timer
extern const struct mmio_ops pc_lapic_ops;
struct vcpu_exits pc_exits(struct machine *m);

// ---- pc.c
int pc_create(struct machine *m, char *error, size_t error_size, bool *usage);
void pc_destroy(struct machine *m);
void pc_reset(struct machine *m); // chips and CPU; not the payload
void pc_drain_input(struct machine *m);
void pc_idle(struct machine *m);        // on the vCPU's thread: sleeps until there is a request
void pc_trace_engine(struct machine *m, FILE *f); // what the configuration asks for goes to f
int pc_start_clock(struct machine *m); // timers that signal this thread: 0 or -errno
// Saves or loads what belongs to the cell; same code on both sides, so the layout is nobody else's business.
void pc_core_stream(struct machine *m, struct stream *s);
