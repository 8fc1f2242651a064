// Shadows of the user halves of guest address spaces: which guest pages a process of the host may have mapped at the
// guest's own addresses, and with which rights, so that its processor walks the host's tables and finds what a walk of
// the guest's would have found.
//
// One `space` is the user half (linear addresses 0 to 2^47) of one guest address space, named by the guest-physical address
// of its root table; 4-level paging only. The shadow decides what may be mapped and notices when it may not any longer;
// the owner (dbt/direct/) carries that out before guest code runs there again.
//
// Method `traced`: the guest tables that a mapping was found through carry TRACE_TABLE. Every write to them, by whomever,
// drops what hangs below the entries written; so a space is coherent with its tables at all times, which is stricter
// than a TLB, and flushes need do nothing.
//
// What is mapped:
//   readable    where the guest's tables let user code read (A is set in them)
//   writable    where they let it write (D is set), and nobody traces the RAM page (TRACE_* is 0)
//   executable  where they let it fetch, may_execute() agrees, and the RAM page is writable in no space. Such a page carries
//               TRACE_RAW: a write to it, by whomever, takes the permission away before the writer goes on.
// Where code is fetched to be translated (ACC_CODE) the page is mapped readable only, and shadow_code_lost() tells when what was
// fetched may be elsewhere now.
// A page that is both written and executed alternates; after some turns it is no longer executable. That is forgotten by and
// by, as spaces are closed.
//
// When the guest-physical map changes, or dirty logging begins or collects, all spaces are emptied.
#pragma once
#include "cpu/cpu.h"
#include "mmu/mem.h"
#include "mmu/mmu.h"

#define SHADOW_SPACES 16
#define SHADOW_READ  1u
#define SHADOW_WRITE 2u
#define SHADOW_EXEC  4u

struct shadow;

enum shadow_result {
    SHADOW_FILLED,  // the access will succeed once the changes are carried out
    SHADOW_FAULT,   // the guest's own page fault
    SHADOW_REFUSED, // the access is to be made by translated code: MMIO, ROM, a traced page, not to be executed here
};

// A change to a space's mappings. Those of one space are carried out in order. One that unmaps may cover what was not mapped,
// the owner's own pages too: those stay.
struct shadow_change {
    uint64_t la, size;   // bytes, whole pages
    uint64_t ram_offset; // of a mapping, in guest RAM's file
    uint32_t rights;     // SHADOW_*; 0: unmap
};

struct shadow_policy {
    // Whether the bytes of a RAM page (by number) may be executed untranslated. Asked again after every write to it.
    bool (*may_execute)(void *opaque, uint64_t ram_page);
    void *opaque;
    struct {
        uint64_t begin, end;
    } reserved[2]; // linear addresses that can't be mapped: the owner's own
    unsigned spaces;  // 1..SHADOW_SPACES
    unsigned prefill; // pages around a fault to look at: a power of two up to 512, 1: none
    uint64_t max_mappings; // the host's mappings of one space, about; more: it is emptied. At least 8
};

struct shadow_counters {
    uint64_t fills, refused, faults; // by result
    uint64_t prefilled;              // pages mapped besides those asked for
    uint64_t mappings, unmappings;   // changes
    uint64_t table_hits;             // writes to traced tables, those of our own walks included
    uint64_t dropped;                // pages that were mapped and are not
    uint64_t exec_lost;              // executable pages written
    uint64_t tables;                 // pages traced as tables now
};

// v's MMU state says how tables are read. Null: no memory. The trace clients for TRACE_TABLE and TRACE_RAW are registered.
struct shadow *shadow_create(struct vcpu *v, const struct shadow_policy *policy);
void shadow_destroy(struct shadow *s);

// ---- from here on: no libc, no vector registers, no system calls (but mem_prefault()'s)
// The space of the guest's current CR3, or -1.
int shadow_find(const struct shadow *s);
// The same; makes one where there is none, if the guest uses 4-level paging. Where all numbers are in use, the space that was
// opened longest ago is closed and its number taken. Returns the number, or -1; *fresh: it was made, and begins with nothing
// mapped, so the owner empties the process of that number first. Only numbers below `spaces` of the policy are used.
int shadow_open(struct shadow *s, bool *fresh);
void shadow_close(struct shadow *s, int space); // forgets it, its changes and what it traced
// User code faulted at la, or is about to; the space is that of the current CR3. acc: ACC_READ, ACC_WRITE, ACC_EXEC or
// ACC_EXEC | ACC_CODE.
// *error: of SHADOW_FAULT, the #PF error code.
enum shadow_result shadow_fill(struct shadow *s, int space, uint64_t la, unsigned acc, uint32_t *error);
// What is mapped there now, SHADOW_* (0: nothing), for tests and figures.
unsigned shadow_rights(const struct shadow *s, int space, uint64_t la, uint64_t *ram_offset);
// Changes since the last shadow_done(), in order. Neighbours that agree are one change. Too many of them become a single one
// that unmaps everything, and the space begins anew.
const struct shadow_change *shadow_changes(const struct shadow *s, int space, unsigned *count);
void shadow_done(struct shadow *s, int space);
// Whether any of them takes something away: those must be carried out before the guest can rely on them, unless no
// user code of the space runs.
bool shadow_takes(const struct shadow *s, int space);
// Whether an address that code was fetched from for translation has since been unmapped or mapped elsewhere. Tells once.
bool shadow_code_lost(struct shadow *s, int space);
const struct shadow_counters *shadow_counters(const struct shadow *s);
