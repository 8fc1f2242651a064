// A virtual CPU and what the rest of the core may ask of it. cpu/ owns the meaning of every sensitive instruction,
// of exceptions, interrupts, mode switches, CPUID and MSRs; it knows neither devices nor translation.
//
// Everything declared here runs while the guest's vector registers are live in the host's: cpu/ and mmu/ are compiled
// with -mgeneral-regs-only and call no libc function that might use vector registers (memcpy, memset, printf…).
// What needs libc or a device goes through struct vcpu_exits, whose implementation switches the FPU state.
#pragma once
#include "cpu/insn.h"
#include "cpu/state.h"

struct mem_map;
struct lapic;
struct tlb;
struct cpu_model;

// How a vCPU reaches the rest of its machine. Values only: no pointer crosses, so that the implementation can be a
// function call or a handoff to another process. Sizes are 1, 2, 4 (ports) or 1..8 (MMIO) bytes.
struct vcpu_exits {
    uint32_t (*port_read)(void *opaque, uint16_t port, unsigned size);
    void (*port_write)(void *opaque, uint16_t port, unsigned size, uint32_t value);
    uint64_t (*mmio_read)(void *opaque, uint64_t gpa, unsigned size);
    void (*mmio_write)(void *opaque, uint64_t gpa, unsigned size, uint64_t value);
    // Acknowledges the 8259 pair: returns the vector (INTA cycle).
    int (*pic_ack)(void *opaque);
    // FERR#: an x87 exception is to be reported by interrupt (cpu/x87.c), resp. is no longer pending. May be null.
    void (*ferr)(void *opaque, bool level);
    // Nanoseconds of CLOCK_MONOTONIC and CLOCK_REALTIME, for paravirtual clocks.
    uint64_t (*monotonic_ns)(void *opaque);
    uint64_t (*realtime_ns)(void *opaque);
    // A line for --trace cpu; never on a hot path.
    void (*trace)(void *opaque, const char *what, uint64_t a, uint64_t b);
    void *opaque;
};

// Told by mmu/ and cpu/ when what the translator has cached about the guest may have changed.
struct vcpu_listener {
    // The linear page holding `la` may map elsewhere now (INVLPG).
    void (*page_flushed)(void *opaque, uint64_t la);
    // All mappings may have changed; global ones too if `global`.
    void (*tlb_flushed)(void *opaque, bool global);
    // Guest RIP for an instruction pointer of the host's x87 unit that lies in translated code; any other is returned
    // as it is. *fop becomes the guest's opcode, which translated code may encode otherwise. May be null: such pointers
    // then show as 0.
    uint64_t (*fip_to_guest)(void *opaque, uint64_t fip, uint16_t *fop);
    // v->event is about to be delivered at v->s.rip: an interrupt from outside, or an exception or INT n. May be null. The
    // guest's vector registers are live.
    void (*delivering)(void *opaque, bool external);
    void *opaque;
};

// Requests to the vCPU from outside its instruction stream. Set with atomic OR, then kick the vCPU's thread.
#define REQ_INTR   0x01u // LAPIC or PIC has (or may have) an interrupt
#define REQ_NMI    0x02u
#define REQ_TIMER  0x04u // a timer of the vCPU's own chips is due
#define REQ_EXIT   0x08u // leave the run loop (pause, reset, quit)
#define REQ_INIT   0x10u
#define REQ_SHADOW 0x20u // internal: an interrupt shadow must end after one instruction

struct cpu_event { // the exception being thrown or delivered
    uint8_t vector;
    uint8_t has_error;
    uint8_t none; // nothing to deliver
    uint8_t soft; // INT n, INT3, INTO: DPL check, return address is the next instruction
    uint8_t breakpoint; // #DB of an instruction breakpoint: a fault
    uint32_t error;
    uint64_t cr2;
};

// What the vCPU's thread does; with --stats, for how long. Its own thread only.
enum vcpu_doing { DOING_NOTHING /* not in the engine's run loop */, DOING_CORE, DOING_TRANSLATION, DOING_DEVICES, DOING_IDLE, DOING_RAW /* a worker has guest code in hand */, DOING_USER /* a worker has what was translated for it */, DOING_KINDS };
struct vcpu_time {
    bool measured;
    uint8_t doing;
    uint64_t since, tsc[DOING_KINDS];
};

// Guest instructions that have retired, as a processor's counter has them: an instruction counts when it completes, a repeated
// one once, one that faults not at all, nor does the delivery of an exception or interrupt. At each boundary of instructions
// and in C code the count is exact; translated code takes a run of instructions from `left` before it executes them.
#define COUNT_NONE UINT64_MAX
#define COUNT_MAX_LEFT (1ull << 30) // translated code takes the upper half of `left` for its sign
struct vcpu_count {
    int64_t left;        // instructions until `limit`, where translated code comes to C
    uint64_t limit;      // the smaller of `due` and `stop_at`, or on the way there
    uint64_t due;        // a timer of the machine is; COUNT_NONE: none
    uint64_t stop_at;    // run() ends; COUNT_NONE: never
    uint64_t skipped_ns; // halted, with `is_time`
    bool on;             // instructions are counted
    bool is_time;        // a retired instruction is a nanosecond, and nothing else but halting takes time
};

struct vcpu {
    struct cpu_state s; // must be first: translated code addresses it by offset
    _Alignas(64) uint32_t requests; // REQ_*, atomic
    uint32_t mode_gen;  // bumped whenever anything the translator keys blocks by may have changed (segments, CR0/4, CPL…)
    uint32_t id;        // APIC id
    struct mem_map *mem;
    struct tlb *tlb;
    struct lapic *lapic; // null: no local APIC
    const struct cpu_model *model; // CPUID and MSR policy
    struct vcpu_exits exits;
    struct vcpu_listener listener;
    struct cpu_event event;
    void *throw_buf[5]; // __builtin_setjmp buffer of the engine's run loop: where cpu_throw() goes
    bool pic_intr;      // level of the 8259's INTR pin
    bool ignne;         // level of IGNNE#; bumps mode_gen
    uint8_t x87_hidden; // flags of pending x87 exceptions that the instruction being executed ignores (cpu/x87.c)
    // Breakpoints by number, as cpu_debug_update() found them: armed on code, on data, on ports; and those hit by the
    // instruction being executed, which become a trap when it has completed.
    uint8_t watch_code, watch_data, watch_io, debug_hits;
    uint64_t x87_fip; // x87 instruction pointer that the guest loaded last: may look like one of translated code
    // With x87_exact, the guest's x87 data pointer as far as translated code and loads have set it; else 0.
    bool x87_exact;
    uint64_t x87_fdp;
    uint64_t x87_fdp_loaded; // the same of loads alone: it may be there still, where only errors change it (CPUID.7.0:EBX[6])
    void *engine;       // private to the engine
    struct vcpu_count count;
    struct vcpu_time time;
};

// ---- state
void cpu_reset(struct vcpu *v);                 // SDM 3A 9.1.1, table 9-1; TSC keeps running
uint64_t cpu_rflags(const struct vcpu *v);      // with IF, DF and bit 1
void cpu_set_rflags(struct vcpu *v, uint64_t value); // no privilege checks; bumps mode_gen when TF, VM or AC change
// CS and SS as SYSCALL resp. SYSRET load them in 64-bit code, for this value of STAR.
void cpu_syscall_segments(uint64_t star, struct segment kernel[2], struct segment user[2]);
static inline bool cpu_protected(const struct vcpu *v) { return v->s.cr0 & CR0_PE; }
static inline bool cpu_long(const struct vcpu *v) { return v->s.efer & EFER_LMA; }
static inline bool cpu_v86(const struct vcpu *v) { return v->s.rflags & FL_VM; }
static inline bool cpu_code64(const struct vcpu *v)
{
    return (v->s.efer & EFER_LMA) && (v->s.seg[SEG_CS].attr & SEG_L);
}
static inline unsigned cpu_iopl(const struct vcpu *v) { return (v->s.rflags >> 12) & 3; }

// ---- faults: the only way to raise one (cpu/throw.c)
_Noreturn void cpu_throw(struct vcpu *v, unsigned vector);                     // no error code
_Noreturn void cpu_throw_error(struct vcpu *v, unsigned vector, uint32_t error);
_Noreturn void cpu_throw_page_fault(struct vcpu *v, uint64_t la, uint32_t error);
_Noreturn void cpu_throw_breakpoint(struct vcpu *v); // #DB of an instruction breakpoint
// Leaves an instruction that is to be run again: the same way, but cpu_deliver() has nothing to deliver then.
_Noreturn void cpu_leave(struct vcpu *v);

// ---- events (cpu/event.c). All of them may throw; the engine's loop then delivers what was thrown.
// Delivers v->event through the IDT in every mode. Contributory faults become #DF, a fault during #DF sets
// s.activity = ACT_SHUTDOWN (triple fault). Never throws itself.
void cpu_deliver(struct vcpu *v);
// Hardware interrupt `vector` (never throws; a fault in delivery becomes that exception).
void cpu_interrupt(struct vcpu *v, unsigned vector);
void cpu_nmi(struct vcpu *v);
// Whether an interrupt could be taken at this instruction boundary (IF, shadows).
bool cpu_interruptible(const struct vcpu *v);
// Takes the highest pending event if it can be taken now: NMI, LAPIC vector, PIC (ExtINT). Returns whether one was
// delivered. Wakes a halted CPU. Clears requests it has answered.
bool cpu_take_pending(struct vcpu *v);
// The trap after an instruction that hit data or I/O breakpoints or (`step`) ran with TF set.
void cpu_debug_trap(struct vcpu *v, bool step);

// ---- breakpoints (cpu/debug.c)
// Works out which are armed. After every change of DR0-DR3, DR7 and CR4.DE.
void cpu_debug_update(struct vcpu *v);
// Whether a data breakpoint lies in the page of `la`: then the TLB must not hold it.
bool cpu_watches_page(const struct vcpu *v, uint64_t la);
// The data breakpoints that an access to [la, la + size) hits. The caller adds them to v->debug_hits when it is made.
unsigned cpu_watch_hits(const struct vcpu *v, uint64_t la, unsigned size, bool write);
void cpu_watch_port(struct vcpu *v, uint16_t port, unsigned size); // the same for a port; adds them
// Before the instruction at `la` while v->watch_code is not 0: throws #DB for a breakpoint there unless RF is set.
// Returns whether code of this page must be asked about instruction by instruction.
bool cpu_debug_fetch(struct vcpu *v, uint64_t la);

// ---- segments and memory operands (cpu/segment.c, cpu/operand.c)
// Linear address of [sreg:offset, size bytes], with limit, type and canonical checks of the current mode; throws
// #GP(0)/#SS(0). `write` checks writability.
uint64_t cpu_linear(struct vcpu *v, unsigned sreg, uint64_t offset, unsigned size, bool write);
// Offset of the memory operand, truncated to the address size.
uint64_t cpu_effective_address(const struct vcpu *v, const struct insn *in);
// Reads/writes through a segment at the current privilege.
uint64_t cpu_read(struct vcpu *v, unsigned sreg, uint64_t offset, unsigned size);
void cpu_write(struct vcpu *v, unsigned sreg, uint64_t offset, unsigned size, uint64_t value);
// Checks that every byte can be written before anything is stored; then stores n bytes from host memory.
void cpu_write_block(struct vcpu *v, unsigned sreg, uint64_t offset, const void *data, unsigned n);
void cpu_read_block(struct vcpu *v, unsigned sreg, uint64_t offset, void *data, unsigned n);
// Stack of the current mode (SS.B, 64-bit): address mask of RSP.
uint64_t cpu_stack_mask(const struct vcpu *v);
void cpu_push(struct vcpu *v, unsigned size, uint64_t value);
uint64_t cpu_pop(struct vcpu *v, unsigned size);
// Loads a segment register other than CS as MOV Sreg does (all modes, all checks, accessed bit).
void cpu_load_segment(struct vcpu *v, unsigned sreg, uint16_t selector);

// ---- control registers, MSRs, CPUID
void cpu_set_cr0(struct vcpu *v, uint64_t value); // with all checks; throws #GP
void cpu_set_cr3(struct vcpu *v, uint64_t value);
void cpu_set_cr4(struct vcpu *v, uint64_t value);
uint64_t cpu_rdmsr(struct vcpu *v, uint32_t msr); // throws #GP for an unknown one
void cpu_wrmsr(struct vcpu *v, uint32_t msr, uint64_t value);
struct cpuid_regs { uint32_t eax, ebx, ecx, edx; };
struct cpuid_regs cpu_cpuid(struct vcpu *v, uint32_t leaf, uint32_t subleaf);
// Writes the guest's kvmclock page again, after its TSC or the host's clock has jumped (cpu/msr.c).
void cpu_kvmclock_update(struct vcpu *v);

// ---- x87, SSE, AVX state (cpu/xstate.c)
// Moves the guest's registers from the host's into s.xsave (standard format, everything the model may use), and sets
// the host's x87 and SSE control to what C code expects. Between save and load any C code may run.
void cpu_fpu_save(struct vcpu *v);
void cpu_fpu_load(struct vcpu *v);

// Returns what it did before.
static inline enum vcpu_doing vcpu_does(struct vcpu *v, enum vcpu_doing what)
{
    struct vcpu_time *t = &v->time;
    if (__builtin_expect(!t->measured, 1))
        return DOING_NOTHING;
    uint64_t now = __builtin_ia32_rdtsc();
    enum vcpu_doing was = (enum vcpu_doing)t->doing;
    t->tsc[was] += now - t->since;
    t->since = now;
    t->doing = (uint8_t)what;
    return was;
}

// ---- x87 exceptions (cpu/x87.c); all with the guest's registers live
// A waiting instruction finds an unmasked exception pending. Returns if it is to be executed all the same, once.
void cpu_x87_error(struct vcpu *v);
void cpu_x87_unhide(struct vcpu *v);  // puts x87_hidden back
void cpu_x87_ignored(struct vcpu *v); // behind each instruction while v->ignne

// ---- counted instructions
static inline uint64_t cpu_count(const struct vcpu *v)
{
    return v->count.limit - (uint64_t)v->count.left;
}

// After a change of `due` or `stop_at`.
static inline void cpu_count_set_limit(struct vcpu *v)
{
    struct vcpu_count *c = &v->count;
    uint64_t now = cpu_count(v), limit = c->due < c->stop_at ? c->due : c->stop_at;
    if (limit < now)
        limit = now;
    if (limit - now > COUNT_MAX_LEFT)
        limit = now + COUNT_MAX_LEFT;
    c->limit = limit;
    c->left = (int64_t)(limit - now);
}

// Before anything is executed.
static inline void cpu_count_begin(struct vcpu *v, bool is_time)
{
    v->count = (struct vcpu_count){.due = COUNT_NONE, .stop_at = COUNT_NONE, .on = true, .is_time = is_time};
    cpu_count_set_limit(v);
}

// Nanoseconds since the beginning, with `is_time`.
static inline uint64_t cpu_counted_ns(const struct vcpu *v)
{
    return cpu_count(v) + v->count.skipped_ns;
}

static inline uint64_t cpu_tsc_source(const struct vcpu *v) // guest TSC = this + tsc_offset
{
    return __builtin_expect(v->count.is_time, 0) ? cpu_counted_ns(v) : __builtin_ia32_rdtsc();
}

static inline uint64_t cpu_tsc(const struct vcpu *v)
{
    return cpu_tsc_source(v) + v->s.tsc_offset;
}
