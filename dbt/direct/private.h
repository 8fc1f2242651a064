// What the two files of direct execution share: direct_create.c runs once, direct.c while the guest's vector registers may be live.
#pragma once
#include "dbt/direct/direct.h"
#include "dbt/direct/scan.h"
#include "mmu/shadow.h"

// Selectors that 64-bit user code has on this host, and must have in the guest: they are what it sees when it reads them.
#define HOST_CS 0x33u
#define HOST_SS 0x2bu
#define HOST_COMPAT_CS 0x23u
#define HOST_TR 0x40u    // what STR says
#define HOST_CR0 0x0033u // what SMSW says
#define OWN_LOW_BEGIN 0x5f000000u // what is ours below 2 GiB, and a little before it
#define OWN_LOW_END   0x80000000u
#define HOST_DESCRIPTORS 16u // in the GDT of Linux

// What is known of an address space (choose.c).
#define MEASURES 256u
struct measure {
    uint64_t root;
    uint64_t user_ns;  // of user code, about
    uint64_t blocks;   // translated while it was current, about
    uint64_t cycles;   // in its worker since `exits` began
    uint64_t refused_tsc; // when `refused` began
    uint32_t exits;
    uint32_t refused;  // times that it came to code that may not run untranslated
    uint8_t points;    // samples that spoke for a worker, less those that did not
    uint8_t needed;    // points that open a worker: more each time it was left
    uint8_t outside;   // samples that found it computing outside its worker, less those that did not
    bool excluded;     // it maps addresses that a worker has for itself
    bool direct;
    bool mixed;        // untranslated it leaves its worker too often
    bool translated;   // so its code is translated for the worker
};

struct exit;

struct direct {
    struct vcpu *v;
    enum direct_choice choice;
    enum direct_policy policy;
    struct measure measure[MEASURES]; // by hash of the root table's address
    struct measure *now;              // of the address space that is current, as of `root`
    uint64_t root;
    uint64_t sampled_tsc, sampled_calls, sampled_cycles, blocks_before;
    uint64_t cycles; // in workers
    uint32_t call; // number of the system call that the guest is in, when it may map memory
    struct workers *workers;
    struct shadow *shadow;
    struct scan_rules rules;
    int running; // the worker that has guest code in hand, -1: none; the signal handler reads it
    bool broken[WORKERS_MAX];
    uint32_t lar[HOST_DESCRIPTORS]; // what user code here finds by LAR, by number of the descriptor; 0: nothing
    struct { // the guest's own page fault that stopped a worker last: its instruction comes again
        uint64_t rip, address;
        unsigned acc;
    } faulted[WORKERS_MAX];
    uint64_t xsave_mask; // of the host: what the guest lacks is set to its initial state
    uint32_t xsave_size; // of the guest's image in struct cpu_state
    // Workers with translated code (translated.c): pages of theirs, one or more for each, as the owner sees them.
    uint8_t *state_pages, *dbt_pages, *ras_pages;
    uint64_t ras_base;       // in every worker
    uint32_t generation[WORKERS_MAX]; // of the translator, when the worker ran last
    struct exit *pending;       // to be linked to the block that is being made
    uint64_t pending_evictions; // as long as nothing has been discarded since
    bool translated[WORKERS_MAX]; // the space's code is
    bool loaded; // user code has loaded selectors
    struct worker_regs selectors;
    struct direct_counters n;
};

// ---- choose.c
void direct_refused(struct direct *d); // it came to code that may not run untranslated
bool direct_is_own(uint64_t la); // a worker keeps the address for itself
void direct_exclude(struct direct *d); // the current address space uses what a worker keeps for itself
bool direct_chosen(struct direct *d); // whether the current address space has a worker
// It was in it for so long; exit: and had to leave for something that `checked` code does at less cost.
void direct_left(struct direct *d, uint64_t cycles, bool exit);

// ---- translated.c
enum direct_result translated_run(struct direct *x, int n, struct direct_fault *fault);

// ---- direct.c, for both
bool direct_carry_out(struct direct *d, int n);                       // what the shadow says; false: there is no room
// Lets the worker run until it stops; stops_soon: whatever is requested.
void direct_turn(struct direct *d, int n, enum vcpu_doing what, bool stops_soon, struct worker_event *e);
void direct_give_up(struct direct *d, int n);                         // of a worker that is of no more use
void direct_put_rest(struct direct *d, int n);                        // bases, selectors, vector state
void direct_take_rest(struct direct *d, int n, uint64_t flags);       // the same, and flags
void direct_note_fault(struct direct *d, int n, uint64_t address, unsigned acc); // the state has been taken
bool direct_may_execute(void *opaque, uint64_t ram_page);
