// The cell: the sandboxed process that a vCPU and the chips beside it run in, and the memory it shares with the
// machine process.
//
// Who holds what. cell_start() forks: both processes then have a whole struct machine, and each is right about its
// own part only. The cell's are vCPU, TLB, translator, local APIC, I/O APIC, 8259 pair, 8254, HPET and the two UARTs
// (their far ends are rings to the machine process); everything else is the machine process's: files, sockets,
// terminal, all other chips, the clock of those chips. While the cell stands still (before machine_run(), after it,
// and between the runs inside it) the machine process holds a copy of the cell's part that is exact, and hands it
// over again when it lets the cell run: so resets, snapshots and crash reports know nothing of cells.
//
// The handoff. The cell asks by filling `call` and its operands, ringing `bell` and sleeping on `answer`: port and
// MMIO accesses, trace lines, "stopped". The machine process sleeps on `bell`. Both threads are pinned to one CPU,
// where the round trip takes 4 us; across CPUs it took 67.
//
// What the machine process has for the cell lies in rings and bitmaps here; the cell looks at them (cell_attend())
// after every answer, and after a signal that is sent when `attention` turns 1.
//
// Writes by devices to pages that the cell traces (code, page tables). No write may be missed, so the order is:
//   device:     1 store the bytes   2 full fence   3 read the page's trace byte; not 0: queue range, kick
//   translator: 1 set TRACE_CODE (atomic, a full fence)   2 read the bytes
// Whichever is first, either the device sees the bit or the translator sees the bytes. The queue is emptied before
// the cell goes on after a call, and within microseconds (the kick) of a write that no call of its own caused.
//
// In a deterministic run the cell alone knows the time. It says it with each call, and each answer says when the machine process
// wants to be called by a timer of its chips: so what comes from there comes at answers only.
//
// Neither process trusts a value here more than a packet: the machine process copies each operand once and checks
// it; an index the cell writes only says how much room there is.
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "cpu/engine.h"
#include "mmu/mem.h"

struct machine;
struct vcpu;

enum cell_call {
    CALL_NONE,
    CALL_PORT_READ,
    CALL_PORT_WRITE,
    CALL_MMIO_READ,
    CALL_MMIO_WRITE,
    CALL_FLUSH,       // a serial ring is full: empty it
    CALL_TRACE_CPU,   // text, address, value
    CALL_TRACE_PORT,  // an access that a chip beside the vCPU answered; `write` says which way
    CALL_TRACE_MMIO,
    CALL_TIMERS,      // deterministic: one of the machine process's timers is due
    CALL_READY,       // the sandbox is closed; answered by letting the guest run
    CALL_STOPPED,     // value: enum engine_stop; blob: the cell's part. Answered by letting the guest run
    CALL_FAILED,      // before CALL_READY. value: errno; size: enum cell_failure
};

enum cell_failure { CELL_NO_ENGINE, CELL_NO_TIMER, CELL_NO_SANDBOX };

#define BELL_CALL   1u
#define BELL_OUTPUT 2u // a serial ring has bytes
#define BELL_MAIL   4u // another thread of the machine process left a note
#define BELL_STATS  8u // figures[] are new

#define CELL_EVENTS   256u // powers of two
#define CELL_RANGES   256u
#define CELL_OUT_SIZE 8192u
#define CELL_IN_SIZE  4096u
#define CELL_BLOB     65536u
#define CELL_FIGURES  256u
#define CELL_TEXT     96u
#define CELL_SERIALS  2u
#define CELL_WORKERS  8u
#define CELL_WORKER_THREADS (2 * CELL_WORKERS)

enum cell_event_kind { EVENT_CHIP, EVENT_PCI_ISA, EVENT_PCI_GSI, EVENT_MSI };
struct cell_event {
    uint32_t kind, n, level, data;
    uint64_t address; // MSI
};

struct cell_out { // bytes out of a UART: the cell writes head, the machine process tail
    uint32_t head, tail;
    uint8_t data[CELL_OUT_SIZE];
};
struct cell_in { // bytes for a UART: the machine process writes head (under the mailbox's lock), the cell tail
    uint32_t head, tail;
    uint8_t data[CELL_IN_SIZE];
};

struct cell_figure {
    char name[48];
    uint64_t value;
};

struct cell_page {
    // ---- the cell asks
    _Alignas(64) uint32_t bell; // futex, BELL_*
    uint32_t call;              // enum cell_call
    uint32_t size, write;
    uint64_t address, value;
    uint64_t now_ns; // deterministic: the machine's clock
    uint32_t answer; // futex: 1 when the machine process has answered in `value`
    char text[CELL_TEXT];

    // ---- the machine process tells
    _Alignas(64) uint32_t attention; // 1: a kick is on its way
    uint32_t stop;                   // leave the run loop
    uint32_t stats_wanted;
    uint32_t event_head, event_tail; // tail is the cell's
    uint32_t range_head, range_tail;
    uint32_t lines_lost, ranges_lost; // the ring was full: look at levels resp. at all pages
    uint32_t level[3];                // of EVENT_CHIP, EVENT_PCI_ISA, EVENT_PCI_GSI; with lines_lost
    struct cell_event event[CELL_EVENTS];
    struct {
        uint64_t gpa, len;
    } range[CELL_RANGES];
    // The guest-physical map. It changes only while the cell waits for an answer; the cell follows when the
    // generation differs from what it has.
    uint32_t map_generation;
    uint32_t a20;
    uint64_t base[MEM_MAX_REGIONS];
    uint8_t pam[16];
    uint32_t pm_timer_port; // 0: none
    uint64_t due_ns;        // deterministic: the first timer of the machine process's; NEVER: none
    uint64_t stop_at;       // machine_stop_at()

    // ---- rings, figures, state
    struct cell_out out[CELL_SERIALS];
    struct cell_in in[CELL_SERIALS];
    char note[192];        // last words
    uint64_t counters[16]; // the uint64_t of struct machine_counters, as they stand there
    uint32_t figure_count;
    struct cell_figure figure[CELL_FIGURES];
    uint32_t step_count; // of the engine's trail
    struct engine_step step[ENGINE_TRAIL];
    int worker_error;        // with CALL_READY: -errno, why there are none
    uint32_t worker_threads; // with CALL_READY
    int worker[CELL_WORKER_THREADS]; // thread ids: of each worker the first is its process id
    uint32_t blob_size;
    uint8_t blob[CELL_BLOB];
};

// ---- devices/cell.c: the machine process's side, and the life of the cell's
// Forks the cell and waits until its sandbox is closed. Call it before other threads exist, on the thread that will
// run the machine and lives as long as it: the cell dies with that thread. 0, or -errno with one line in `error`.
int cell_start(struct machine *m, char *error, size_t error_size);
void cell_destroy(struct machine *m);
// Lets the guest run until it stops; the machine's copy of the cell's part is exact on return. Returns an
// enum engine_stop, or -1 with one line in `error`: the cell is dead.
int cell_run(struct machine *m, char *error, size_t error_size);
// Sleeps until another thread leaves a note; the cell stands still.
void cell_wait(struct machine *m);
// Any thread, also signal handlers.
void cell_ring(struct machine *m, uint32_t bell);
void cell_kick(struct machine *m);
size_t cell_serial_input(struct machine *m, unsigned port, const uint8_t *data, size_t n);
// The machine process's chips, while the guest runs: for the cell's interrupt controllers.
void cell_send_line(struct machine *m, enum cell_event_kind kind, int n, int level);
void cell_send_msi(struct machine *m, uint64_t address, uint32_t data);
void cell_send_map(struct machine *m);
void cell_request_stop(struct machine *m);
int cell_pid(const struct machine *m); // 0: none
unsigned cell_workers(const struct machine *m, const int **pids); // thread ids of the user workers; their number
int cell_worker_error(const struct machine *m);

// ---- devices/cell_core.c: the cell's side, with the guest's vector registers live
uint32_t cell_port_read(struct machine *m, uint16_t port, unsigned size);
void cell_port_write(struct machine *m, uint16_t port, unsigned size, uint32_t value);
uint64_t cell_mmio_read(struct machine *m, uint64_t gpa, unsigned size);
void cell_mmio_write(struct machine *m, uint64_t gpa, unsigned size, uint64_t value);
void cell_trace(struct machine *m, const char *what, uint64_t a, uint64_t b);
void cell_serial_write(struct machine *m, unsigned port, const uint8_t *data, size_t n);
void cell_flush(void *opaque, uint64_t now_ns); // the flush timer
void cell_before_idle(struct machine *m);
void cell_attend(struct machine *m); // looks at what the machine process has for us
void cell_drain_input(struct machine *m);
uint64_t cell_ask(struct machine *m, enum cell_call call, uint64_t address, unsigned size, uint64_t value);
extern const struct mmio_ops cell_mmio_ops; // of every region whose chip is the machine process's

// ---- devices/sandbox_cell.c
// Gives up privileges and everything but the system calls a cell needs. timer_id: of timer_create(); trace_fd: a pipe
// that may be written, or -1; workers: its workers' threads; every other
// one is a process it may kick. Returns 0 or -errno.
int cell_enter_sandbox(int timer_id, int trace_fd, const int *workers, unsigned threads);
