// The translator of one vCPU: what its files share.
//
// Register budget of policy `checked` (docs/architecture.md has the table with reasons):
//   host RSP            our return stack (predictions of guest RETs), never the guest's
//   host RBP = T0       scratch: linear address, then offset in page
//   host RDI = T1       scratch: TLB index, then host page
//   guest RSP -> R12, RBP -> R13, RDI -> R14, R12 -> R11, R13 -> R15, R14 -> R9, R15 -> R10
//   guest R9, R10, R11 in memory (struct cpu_state)
//   everything else, flags, x87/SSE/AVX: the same register in the host
#pragma once
#include <setjmp.h>
#include <Zydis/Zydis.h>
#include "cpu/cpu.h"
#include "cpu/engine.h"
#include "dbt/asm.h"
#include "mmu/mem.h"
#include "mmu/mmu.h"

#define T0 H_BP
#define T1 H_DI
#define HOMED 0xff // guest register kept in memory
extern const uint8_t host_of_guest[16];

// ---- block keys
#define KEY_CODE16    0x00000000u
#define KEY_CODE32    0x00000001u
#define KEY_CODE64    0x00000002u
#define KEY_CODE_MASK 0x00000003u
#define KEY_STACK32   0x00000004u
#define KEY_CPL_SHIFT 3
#define KEY_CPL_MASK  0x00000018u
#define KEY_PE        0x00000020u
#define KEY_VM        0x00000040u
#define KEY_FLAT_DS   0x00000080u
#define KEY_FLAT_ES   0x00000100u
#define KEY_FLAT_SS   0x00000200u
#define KEY_FLAT_CS   0x00000400u
#define KEY_TLB_SHIFT 11
#define KEY_TLB_MASK  0x00001800u
#define KEY_TS        0x00002000u
#define KEY_EM        0x00004000u
#define KEY_MP        0x00008000u
#define KEY_OSFXSR    0x00010000u
#define KEY_OSXSAVE   0x00020000u
#define KEY_AVX       0x00040000u
#define KEY_AVX512    0x00080000u
#define KEY_ONE       0x00100000u // one instruction, every exit goes to the dispatcher (TF, interrupt shadow)
#define KEY_BOUNCE    0x00200000u // with KEY_ONE: memory operands go through a bounce buffer
#define KEY_AC        0x01000000u // with KEY_BOUNCE: alignment is checked (CPL 3, EFLAGS.AC, CR0.AM)
#define KEY_TSD       0x00800000u // CR4.TSD at CPL > 0: RDTSC faults
#define KEY_SMAP      0x02000000u
#define KEY_NOMERGE   0x00400000u // every access has its own check
#define KEY_USER      0x04000000u // policy `user`: memory operands as they are, for the worker of a space
#define KEY_SPACE_SHIFT 27        // with KEY_USER: the space's number
#define KEY_SPACE_MASK  0x78000000u

static inline unsigned key_bits(uint32_t key) // of the code: 16, 32, 64
{
    return (key & KEY_CODE_MASK) == KEY_CODE64 ? 64 : key & KEY_CODE32 ? 32 : 16;
}

struct block;

// The guest's state at the jump of an exit: its target comes next, with flags in the host or parked; or the branch
// itself does, because the jump is a condition's.
enum out_state { OUT_HOST, OUT_PARKED, OUT_BRANCH };

enum exit_kind { EXIT_NEAR /* same page: a patched rel32 */, EXIT_FAR /* other page: a slot, reset by TLB flushes */ };

// Blocks and what belongs to them lie below 2 GiB: they refer to each other by low pointers, 0 for null.
#define LOW(type, p) ((type *)(uint64_t)(p))

struct exit { // a direct exit of a block
    uint64_t target;                            // RIP
    uint32_t to;                                // low pointer to the linked block
    uint32_t incoming_next, incoming_prev;      // low pointers: the other exits linked to it, or waiting
    uint32_t block;                             // low pointer to its own block
    uint32_t cold;                              // run address of its unlinked code
    uint32_t site;                              // EXIT_NEAR: run address of the rel32; EXIT_FAR: address of the slot
    uint32_t out;                               // offset of the jump in the block's code
    uint8_t kind, at_out;                       // enum exit_kind, enum out_state
    uint8_t logged;                             // EXIT_FAR: it is in far_log; of user blocks: it waits for its block (cache.c)
    uint8_t tlb;                                // TLB kind of the block it leads to
};

#define NOT_BORROWED 0x1f
struct map_entry { // start of a guest instruction
    uint32_t host; // offset in the block's code
    uint16_t guest : 10; // offset in the block's guest bytes
    uint16_t string : 5; // policy `user`: distance of a string operation, while which guest RDI is in T1; 0: none
    uint16_t shadow : 1; // no interrupt may come before it: the one before was STI, or RSP is pending
    uint8_t parked : 2;  // where flags are parked: bit 0 at its start, bit 1 when its operation runs
    uint8_t borrowed : 5; // guest register whose value is in `tmp` when its operation runs, NOT_BORROWED: none
    uint8_t rest;       // counted: instructions of its run from this one on (count.c)
};

struct span { // host code during which the guest's RIP is in T0 and its flags are parked
    uint32_t begin, end; // offsets in the block's code
};

struct page_link {
    struct block *block;
    struct page_link *next;
};

struct range {
    uint64_t gpa : 48, len : 16;
};

struct block {
    uint64_t rip, gpa;
    uint32_t cs_base, key, cs_limit;
    uint32_t code, code_len; // run address, bytes
    uint32_t code_parked;    // the way in with flags parked
    uint16_t guest_len, insn_count;
    uint16_t map_count;
    uint8_t dead;
    uint8_t group_misses;
    uint8_t global;          // mapped global when translated
    uint8_t straddles;       // its one instruction lies in two pages
    uint32_t incoming;       // low pointer to the linked exits into this block
    struct map_entry *map;
    struct block *hash_next;
    struct exit *exits;
    uint8_t exit_count;
    uint8_t range_count;
    uint8_t indirect_count;
    struct span *indirect;   // indirect exits, and the landings of CALLs' predictions
    struct range *range;     // guest bytes the translation depends on: first its own, then what liveness peeked at
    struct reloc *relocs;    // null: it is not copied (rebase.c)
    uint16_t reloc_count;
    uint8_t context;         // number of the context it was made in; with `relocs`
};

struct vector_layout { // offsets in the XSAVE area
    uint32_t ymm, opmask, zmm_hi, hi16;
};

struct gather { // what a gather or scatter has beyond struct insn
    uint8_t data, index, mask; // vector registers; mask: opmask register if evex
    uint8_t element, index_size, vector; // bytes
    uint8_t evex, scatter;
};

// A sensitive (or string) instruction in a block: what its helper gets.
struct site {
    uint64_t rip;
    uint64_t count;
    uint8_t rest; // counted: instructions of its run from this one on
    struct insn in;
    struct gather gather;
};

struct masked { // the operand in the windows (dbt/masked.c)
    uint64_t la;
    uint8_t *data;   // in the first window
    unsigned len, split; // bytes; bytes before the second part
    bool write, ok[2];
    struct cpu_event event[2]; // of the parts that are not ok
};
struct branch { // an indirect near branch that has changed nothing but RIP and RSP
    uint64_t rip;
    uint32_t popped; // bytes it has added to RSP
};

// The same of policy `user`, in one number.
#define USER_BRANCH(rip, popped)  ((rip) | (uint64_t)(popped) << 47)
#define USER_BRANCH_RIP(n)    ((n) & ((1ull << 47) - 1))
#define USER_BRANCH_POPPED(n) ((n) >> 47)

#define MASKED_WINDOWS_SIZE (9 * PAGE_SIZE)

#define CONTEXTS 24 // modes with an indirect-branch table each
struct context {
    uint64_t cs_base;
    uint32_t key, cs_limit;
    uint64_t *tag;  // [65536] RIP; no RIP has the index of an empty entry's tag
    uint64_t *code; // [65536] run address
    uint64_t ras_base, ras_sp; // this mode's return stack; ras_sp while another mode runs
};
#define USER_TABLE (65536u * 16) // bytes of a context's table
#define USER_SPACES 16 // contexts of user spaces, by number, behind the others
#define RAS_SIZE 16384 // bytes of a return stack, above a guard page

static inline struct block *exit_block(const struct exit *e)
{
    return LOW(struct block, e->block);
}

static inline uint32_t exit_key(const struct exit *e) // of the block it leads to
{
    return (exit_block(e)->key & ~(KEY_TLB_MASK | KEY_NOMERGE)) | (uint32_t)e->tlb << KEY_TLB_SHIFT;
}

// The cache is filled region by region; the next one to be filled loses what it holds.
#define REGIONS 88u
#define REGION_CODE (1u << 19)
#define REGION_ARENA (1u << 19)
#define REGION_SLOTS 4096u
#define REGION_BLOCKS 4096u
struct region {
    uint64_t code_used;   // offset in the cache where its next block goes
    uint64_t arena_used;  // offset in the arena
    uint32_t slot_used;
    uint32_t block_count;
    uint32_t *blocks;     // [REGION_BLOCKS] low pointers in order of code address, dead ones too
};

struct trail { // the last ways into translated code through C (struct engine_step)
    struct {
        uint64_t rip;
        uint32_t key, error;
        uint16_t detail;
        uint8_t kind;
    } step[ENGINE_STEPS];
    uint32_t at; // of the oldest
};

#define MERGE_GROUPS 12
#define IB_LOG 65536
#define PLACE_MASK 0x3ffffu
#define SLOT_COUNT (REGIONS * REGION_SLOTS)
#define BOUNCE_SIZE 4096

#define MAX_INSNS 64 // of a block; fits a byte (struct map_entry, struct site)
_Static_assert(MAX_INSNS * 15 < 1 << 10 && sizeof(struct map_entry) == 8, "its fields are that wide, and there are many of them");
#define MAX_SIDE_EXITS 10 // conditional branches and calls that a block goes on behind
#define MAX_EXITS (MAX_SIDE_EXITS + 2)
#define MAX_RANGES (MAX_SIDE_EXITS + 3)
#define MAX_SPANS (2 * MAX_SIDE_EXITS + 2)
#define MAX_PLANTED (MAX_INSNS + MAX_EXITS + MAX_SPANS)
struct planted { // a breakpoint in translated code (plant.c)
    uint32_t at; // run address
    uint8_t byte; // that belongs there
};

#define ENTRY_COUNTERS 16 // a power of two
struct dbt_counters {
    uint64_t rebased, blocks, guest_insns, guest_bytes, host_bytes, translate_cycles;
    uint64_t chains, dispatches, sensitive, strings, gathers, slow_fills, bounces, kicks, kick_traps, evictions, invalidations;
    uint64_t eviction_cycles, eviction_cycles_max;
    uint64_t group_misses, ib_misses, ret_misses, ret_empty, far_resets, interrupts, exceptions;
    uint64_t steps, services, limits, segment_checks, faults;
    uint64_t indirects, returns, entered[ENTRY_COUNTERS]; // branches and blocks executed, while it is measured
    uint64_t op_count[OP_COUNT];
};

enum fpu_place { FPU_LIVE, FPU_SAVED, FPU_VECTORS_SAVED /* vectors.c */ };
enum vector_kind { VECTORS_XMM, VECTORS_YMM, VECTORS_ZMM_K16 /* no AVX512BW */, VECTORS_ZMM };

// Where the sampling signal of --stats found the thread (dbt/measure.c).
enum sample_place { SAMPLE_TRANSLATED, SAMPLE_HELPERS, SAMPLE_TRANSLATOR, SAMPLE_DEVICES, SAMPLE_ELSEWHERE, SAMPLE_PLACES };
struct samples {
    uint64_t count, user; // user: of these, at CPL 3
    uint64_t cpu_ns;      // of the thread, since the sample before each
};

enum dbt_event { EVENT_EXCEPTION, EVENT_INTERRUPT, EVENT_FLUSH_PAGE, EVENT_FLUSH_ALL, EVENT_CODE_WRITTEN };

// What SYSCALL and SYSRET in 64-bit code do without C (dbt/syscall.c), as mode_update() finds it.
struct fast_syscall {
    struct segment kernel[2], user[2]; // CS and SS
    uint64_t star; // that those come from
    uint64_t keep; // flags that SYSCALL leaves as they are
    bool usable;
};

struct direct;

struct dbt { // mapped below 2 GiB: translated code addresses its fields
    struct vcpu *v;
    uint64_t spill_ax, spill_cx, tmp, target;
    uint64_t ras_sp, ras_base, c_sp, slow_ret, slow_la;
    uint32_t slow_info, flags;
    uint64_t branch;               // struct branch of the one that is looked up
    uint64_t call_rip;             // where an indirect CALL goes once it has pushed
    uint32_t parked; // guest flags as LAHF and SETO give them
    struct fast_syscall syscall;
    uint64_t delta[MERGE_GROUPS]; // merge.c: host minus guest address of each group
    int64_t limit_read[SEG_COUNT], limit_write[SEG_COUNT]; // of non-flat segments; -1: always ask cpu/
    _Alignas(64) uint8_t bounce[4][BOUNCE_SIZE];
    _Alignas(64) uint8_t vectors[32 * 64 + 8 * 8];
    enum vector_kind vector_kind;
    uint64_t bounce_la;
    uint32_t bounce_len, bounce_next;
    uint8_t *bounce_data;
    uint8_t *windows; // MASKED_WINDOWS_SIZE bytes
    struct masked masked;

    // stubs (run addresses)
    uint64_t stub_enter, stub_service, stub_chain, stub_chain_host, stub_sensitive, stub_string, stub_gather, stub_ib_miss, stub_step,
        stub_slow[2][2], stub_seg, stub_bounce, stub_commit, stub_ret_miss[CONTEXTS], stub_ret_empty[CONTEXTS], stub_ret_none, stub_fault, stub_limit, stub_limit_host;
    // Where blocks of policy `user` go with an indirect branch whose target is not in the table: T0 = RIP, T1 = USER_BRANCH().
    uint64_t user_ib_miss, user_ib_miss_at /* a word in memory that holds it */, user_end, user_ret_miss[USER_SPACES], user_ret_empty[USER_SPACES];
    uint64_t tail_begin, tail_end, stubs_begin, stubs_end;
    uint64_t slow_begin, slow_end;     // stubs that return into a block
    uint64_t returns_begin, returns_end; // stubs in which the guest's RIP is in T0

    // code cache: two mappings of the same memory
    uint8_t *rw;
    uint64_t rx;
    uint64_t cache_size, cache_stubs;
    // arena for blocks, sites, maps, links: low addresses, freed a region at a time
    uint8_t *arena;
    struct region regions[REGIONS];
    unsigned region;       // being filled
    uint64_t code_ready, arena_ready; // faulted in up to there
    struct block **hash;
    uint32_t hash_mask;
    struct page_link **pages;     // by RAM page; links of the region filled last come last
    struct page_link ***page_end; // by RAM page whose list is not empty: where its next link goes
    uint64_t page_count;

    uint64_t *slots;

    struct context contexts[CONTEXTS + USER_SPACES];
    unsigned context_count;
    struct context *context; // of the current mode; null: none left
    uint32_t key, key_gen;   // current mode, and the mode_gen it was computed for
    uint32_t force;          // KEY_ONE, KEY_BOUNCE or KEY_NOMERGE for the next block only

    // What a flush of the guest's TLB must undo, apart for non-global [0] and global [1] pages: linked far exits (never
    // more than there are slots), and entries of the indirect-branch tables as context << 16 | index.
    uint32_t *place; // low pointers to blocks that can be copied, by hash of gpa and key
    uint32_t *waiting; // low pointers to exits of user blocks that lead to none yet, by hash of where to
    struct exit **far_log[2];
    uint32_t far_count[2];
    uint32_t *ib_log[2];
    uint32_t ib_count[2];

    // Pages code was fetched from since the last flush, non-global [0] and global [1], as a hashed set of bits: a flush
    // of any other page concerns data only.
    uint64_t code_pages[2][1024];
    uint8_t context_of[256]; // by hash of key: 1 + index of the context found there last
    // code TLB: fetch translations
    struct { uint64_t page, gpa_page; uint8_t kind, global; } code_tlb[256];

    struct vector_layout layout;
    struct engine_host host;
    uint64_t unmerged[4096]; // RIPs of blocks whose groups keep missing, hashed
    uint64_t unmerged_any[64]; // bit: there is one in that place
    int stop; // enum engine_stop + 1 when the run loop must end
    uint32_t kicked; // a signal set a request since run_service() began
    uint32_t in_slow; // in C called from within an instruction: RIP must be found from slow_ret if something is thrown
    int restart;     // thrown to leave an instruction that is to be run again, not for a fault
    enum fpu_place fpu_saved;
    unsigned fault_vector;
    // For tests: how code is divided must not show.
    unsigned region_count; // used of REGIONS
    unsigned max_insns;    // of a block
    bool single;           // KEY_ONE everywhere
    bool exact_flags; // faults see every flag, at the price of saving flags that are dead otherwise
    uint8_t *ras; // the contexts' return stacks
    void *alt_stack;
    int tid, pid;
    struct planted planted[MAX_PLANTED];
    unsigned planted_count;
    uint64_t kicked_tsc; // host TSC when a kick came that has not left translated code yet, else 0
    uint32_t kick_us[64]; // interrupts by microseconds from kick to handler, the last for 63 and more
    uint64_t kick_cycles_max;
    struct dbt_counters n;
    struct trail trail;
    bool measured; // translated code counts, and the timer samples
    int sample_timer;
    uint64_t sampled_cpu_ns;
    struct samples samples[SAMPLE_PLACES];
    struct translation *tr; // translator's work space
    uint32_t code_generation; // bumped when blocks are discarded: workers' predictions of RETs are stale
    // What user code without a worker pays for there being some: CR3 when it was found to have none, and whether a system call
    // is under way that may map memory.
    uint64_t direct_none;
    bool direct_call;
    struct direct *direct;  // user workers; null: all code is translated
    void (*trace_block)(void *opaque, struct dbt *d, const struct block *b);
    void *trace_opaque;
    // --trace exc and mmu: called with the guest's FPU state saved; null when off. a, b: as trace.c prints them.
    void (*trace_event)(struct dbt *d, enum dbt_event event, uint64_t a, uint64_t b);
    FILE *trace_file; // of trace_event()
    bool trace_exc, trace_mmu;
    FILE *perf_file; // --perf; null when off
    const char *perf_mark; // begins its lines
};

// ---- cache.c
int cache_create(struct dbt *d);
void *map_low(size_t size, int fd, int prot); // below 2 GiB, or null
void cache_destroy(struct dbt *d);
void cache_flush(struct dbt *d);
void cache_advance(struct dbt *d); // the region at hand is full: evicts the oldest one
void *arena_alloc(struct dbt *d, size_t n); // 8-byte aligned, null when the region is full
uint8_t *cache_code(struct dbt *d, size_t *room); // where the next block goes, in the writable mapping
void cache_code_used(struct dbt *d, size_t n);
uint64_t *cache_slot(struct dbt *d); // null when the region is full
struct block *cache_block(const struct dbt *d, uint32_t n); // the n-th there is, dead ones too, or null
static inline bool cache_contains(const struct dbt *d, uint64_t run_address)
{
    return run_address >= d->rx + d->cache_stubs && run_address < d->rx + d->cache_size;
}
int cache_block_add(struct dbt *d, struct block *b); // 0 or -ENOSPC: the region is full
void cache_kill(struct dbt *d, struct block *b); // nothing leads to it any more; its pages' lists still have it
void cache_ib_clear(struct dbt *d, bool global);
uint32_t *cache_place(struct dbt *d, uint64_t gpa, uint32_t key); // where the block to be copied is noted
struct block *cache_find(struct dbt *d, uint64_t rip, uint64_t gpa, uint32_t key);
int cache_insert(struct dbt *d, struct block *b);
void cache_invalidate(struct dbt *d, uint64_t gpa, unsigned len);
struct block *cache_block_at(struct dbt *d, uint64_t run_address);
// Guest RIP of the instruction a run address belongs to; *start: it is at the first host byte of it.
bool cache_guest_rip(struct block *b, uint64_t run_address, uint64_t *rip, bool *start);
const struct map_entry *cache_map(const struct block *b, uint64_t run_address); // null: before the first instruction
// The same from the return address of a call in the block's out-of-line code.
const struct map_entry *cache_map_cold(const struct block *b, uint64_t return_address);
void cache_link(struct dbt *d, struct exit *e, struct block *to);
// A new block of policy `user`, whose code may be fetched: with what waits for it, and with what there is on its page.
void cache_link_around(struct dbt *d, struct block *b);
void cache_ib_set(struct dbt *d, struct block *b);
void cache_forget_far(struct dbt *d, bool global);
void cache_forget_space(struct dbt *d, unsigned space); // the same for blocks of a user space, whose flushes are its own
static inline unsigned unmerged_slot(uint64_t rip) { return (unsigned)(rip * 0x9e3779b97f4a7c15ull >> 52); }
void cache_unmerge(struct dbt *d, struct block *b); // translate it without groups from now on
static inline void ras_reset(struct dbt *d) // forgets all predictions
{
    for (unsigned i = 0; i < d->context_count; i++)
        d->contexts[i].ras_sp = d->contexts[i].ras_base;
    d->ras_sp = d->ras_base;
}

static inline struct context *user_context(struct dbt *d, uint32_t key)
{
    return &d->contexts[CONTEXTS + ((key & KEY_SPACE_MASK) >> KEY_SPACE_SHIFT)];
}

// ---- mode.c
void mode_update(struct dbt *d);
struct context *mode_context(struct dbt *d, uint32_t key); // null: none left
struct code_page { uint64_t gpa; bool global; };
struct code_page mode_fetch(struct dbt *d, uint64_t la); // throws #PF

static inline unsigned code_page_bit(uint64_t page) { return (unsigned)(page ^ page >> 16 ^ page >> 32) & 0xffff; }

// Whether a near branch may lead there (SDM 2A, JMP).
static inline bool in_code(const struct vcpu *v, uint64_t rip)
{
    return cpu_code64(v) ? (uint64_t)((int64_t)(rip << 16) >> 16) == rip : rip <= v->s.seg[SEG_CS].limit;
}

// ---- vectors.c
void vectors_save(struct dbt *d);
void vectors_load(struct dbt *d);

// ---- stubs.c
int stubs_create(struct dbt *d);

// ---- translate.c: makes the block at the current RIP and mode; throws for a fetch fault. Never null (evicts if full).
struct block *translate(struct dbt *d, uint32_t key);

// ---- run.c: entry points of the stubs. Each leaves v->s exact and returns the run address of the code for v->s.rip.
uint64_t run_chain(struct dbt *d, uint64_t exit);
uint64_t run_sensitive(struct dbt *d, uint64_t site);
uint64_t run_string(struct dbt *d, uint64_t site);
uint64_t run_gather(struct dbt *d, uint64_t site);
uint64_t run_indirect(struct dbt *d, uint64_t rip);
uint64_t run_step(struct dbt *d, uint64_t rip);
uint64_t run_commit(struct dbt *d, uint64_t rip);
uint64_t run_service(struct dbt *d);
uint64_t run_limit(struct dbt *d, uint64_t rip); // what comes next would go beyond the count's limit
void run_delivering(void *opaque, bool external); // listener's `delivering`, while events are traced
_Noreturn void run_fault(struct dbt *d);       // throws d->fault_vector
uint64_t run_slow(struct dbt *d, uint64_t offset, uint64_t index); // host address of the operand
uint64_t run_segment(struct dbt *d, uint64_t offset); // linear address
uint64_t run_bounce(struct dbt *d, uint64_t offset);  // host address of the bounce buffer

// slow_info
#define SLOW_SIZE(i)  ((i) & 0x3fffu)
#define SLOW_WRITE    0x4000u
#define SLOW_FLAGS    0x8000u // guest flags are in AX, guest RAX in spill_ax
#define SLOW_SEG_SHIFT 16
#define SLOW_READ_TOO 0x80000u // read-modify-write
#define SLOW_PARKED   0x10000000u // guest flags are parked
#define SLOW_GROUP    0x20000000u // the check of a group: raises nothing
#define SLOW_ALIGNED  0x100000u // #GP(0) if not aligned to its size
#define SLOW_MASKED   0x200000u // parts of the operand may not be accessed at all: dbt/masked.c
#define SLOW_X87      0x400000u // a pending x87 exception comes before faults of the operand
#define SLOW_TOP      0x800000u // and TOP becomes 0 before them: Intel's stores from MMX registers

// Whether a request can be answered at this instruction boundary.
static inline bool requests_due(const struct vcpu *v)
{
    uint32_t r = __atomic_load_n(&v->requests, __ATOMIC_ACQUIRE);
    if (r & REQ_NMI && v->s.shadow & SHADOW_NMI)
        r &= ~REQ_NMI;
    if (r & REQ_INTR && !cpu_interruptible(v))
        r &= ~REQ_INTR;
    return r;
}

// ---- string.c
void string_execute(struct vcpu *v, const struct insn *in);

// ---- gather.c
void gather_layout(struct vector_layout *l);
void gather_execute(struct dbt *d, const struct insn *in, const struct gather *g);

// ---- masked.c
#define MASKED_STORE_AGAIN (4 * PAGE_SIZE) // from the first run's operand to the second's
// Places the operand slow_info tells about in the windows. Returns whether all of it can be accessed.
bool masked_place(struct dbt *d, uint64_t offset);
uint64_t masked_open(struct dbt *d, uint64_t offset); // places and fills; returns where the operand is there
// Whether a host fault at this address is the operand's. Then v->event is the guest's exception.
bool masked_fault(struct dbt *d, uint64_t address);
void masked_commit(struct dbt *d); // after both runs of a store
// As mmu_fill(), 0 where that would throw or return null.
uint64_t masked_fill(struct dbt *d, uint64_t la, bool write);
// As cpu_linear(), false where that would throw.
bool masked_linear(struct dbt *d, unsigned sreg, uint64_t offset, unsigned size, bool write, uint64_t *la);

// ---- plant.c: breakpoints at the boundaries of guest instructions in a block
// What the guest's state is at a run address in the block, if that is a boundary. *parked: where its flags are. *rest: how
// many instructions behind it have been counted.
bool plant_boundary(struct block *b, uint64_t at, uint64_t t0, uint64_t *rip, bool *parked, unsigned *rest);
void plant(struct dbt *d, const struct block *b);
void plant_remove(struct dbt *d);
bool plant_is_at(const struct dbt *d, uint64_t at);

// ---- signal.c
int signal_attach(struct dbt *d);
void signal_detach(struct dbt *d);
void signal_kick(struct dbt *d); // any thread
void signal_self(const struct dbt *d); // the same from C within an instruction, with the guest's vector registers live

// ---- trace.c, perf.c
void trace_choose_hook(struct dbt *d); // trace_block is set only where somebody wants blocks
void perf_print_block(struct dbt *d, const struct block *b);

// ---- measure.c
void measure_emit(struct dbt *d, void (*emit)(void *opaque, const char *name, uint64_t value), void *opaque);
void measure_end(struct dbt *d);

// ---- create.c
struct dbt_hooks {
    void (*page_flushed)(void *opaque, uint64_t la);
    void (*tlb_flushed)(void *opaque, bool global);
    void (*code_written)(void *opaque, uint64_t gpa, unsigned len);
    void (*code_traced)(void *opaque, uint64_t gpa);
    uint64_t (*fip_to_guest)(void *opaque, uint64_t fip, uint16_t *fop);
};
int dbt_create(struct vcpu *v, const struct dbt_hooks *hooks); // 0 or -errno
void dbt_destroy(struct vcpu *v);
