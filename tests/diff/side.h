// One execution of a piece of code from a given state, on one of two sides: natively on the host's processor,
// or in the translator. The linear addresses are the same on both, so states can be compared bit by bit.
//
//  CODE_BASE   1 MiB of code, readable and executable, then nothing. 16-bit code segments are its last 64
//  KiB. ARENA_BASE  64 KiB of data: single pages that are writable, read-only or absent (see enum
//  arena_page). 16-bit data
//              and stack segments are exactly this arena, so an offset is `linear - ARENA_BASE` there.
//  FRAME_BASE  native side only: saved host state and the stubs that leave 16- and 32-bit code.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CODE_BASE   0x20000000u
#define CODE_SIZE   0x00100000u
#define CODE16_BASE (CODE_BASE + CODE_SIZE - 0x10000u)
#define ARENA_BASE  0x20200000u
#define ARENA_SIZE  0x00010000u
#define FRAME_BASE  0x20300000u

// Pages of the arena. What is not named is absent: an access there is a page fault on both sides.
enum arena_page { ARENA_DATA = 1, ARENA_READ_ONLY = 3, ARENA_STACK = 5 };
#define DATA_LINEAR      (ARENA_BASE + ARENA_DATA * 4096u) // two pages
#define READ_ONLY_LINEAR (ARENA_BASE + ARENA_READ_ONLY * 4096u)
#define STACK_LINEAR     (ARENA_BASE + ARENA_STACK * 4096u) // two pages
#define MEM_PAGES        4                                  // writable ones: data, then stack
#define MEM_SIZE         (MEM_PAGES * 4096u)

// Room for one piece of code and the few bytes each side appends to leave it.
#define MAX_CODE  1000u
#define EXIT_SLOT 16u
#define XSAVE_MAX 4096u

enum diff_mode { MODE64, MODE32, MODE16 };

// What the translated side's machine is in while it runs the code; the native side always is in long mode.
// REAL has no paging: only what natively ends without a page fault can be compared.
enum diff_world { WORLD_LONG, WORLD_PROTECTED /* PAE paging */, WORLD_V86, WORLD_REAL };

// FS and GS. Outside 64-bit mode FS is a small segment and GS an expand-down one, both of the mode's width.
#define FS_BASE64 0x0000700012345000ull
#define GS_BASE64 0xffff900000001230ull
struct diff_segment {
    uint64_t base;
    uint32_t limit; // bytes; expand-down: the offsets above it are valid
    bool expand_down;
};
static inline struct diff_segment extra_segment(enum diff_mode mode, bool gs)
{
    switch (mode) {
    case MODE64: return (struct diff_segment){.base = gs ? GS_BASE64 : FS_BASE64, .limit = ~0u};
    case MODE32:
        return gs ? (struct diff_segment){0, ARENA_BASE + 0x1fff, true}
                  : (struct diff_segment){ARENA_BASE, 0x5fff, false};
    default:
        return gs ? (struct diff_segment){ARENA_BASE, 0x17ff, true}
                  : (struct diff_segment){ARENA_BASE + 16, 0x202f, false};
    }
}

// x87, SSE, AVX and AVX-512 state, independent of where XSAVE puts it. Registers the host lacks stay zero.
struct diff_fpu {
    uint16_t fcw, fsw, fop;
    uint8_t ftw; // abridged: bit set = register in use
    uint8_t pad;
    uint32_t mxcsr;
    uint64_t fip, fdp;
    uint8_t st[8][16]; // relative to TOP; 10 bytes used
    uint64_t k[8];
    _Alignas(64) uint8_t zmm[32][64];
};

#define RSP_NUMBER 4

#define VECTOR_NONE (-1) // the code ran to its end
#define VECTOR_HANG (-2) // the native side gave up waiting for that

struct diff_state {
    uint64_t gpr[16];
    uint64_t rip; // offset in CS; meaningful when an exception was raised
    uint64_t rflags;
    int32_t vector;   // exception that ended the run, or VECTOR_NONE
    uint32_t error;   // its error code, 0 where the exception has none
    uint64_t address; // CR2 of a page fault, otherwise 0
    uint32_t spoilt, spoilt_size; // memory a real-mode exception was pushed onto: linear address, bytes
    struct diff_fpu fpu;
    uint8_t mem[MEM_SIZE];
};

struct diff_code {
    enum diff_mode mode;
    enum diff_world world;
    bool ac; // the translated side has EFLAGS.AC set, which means nothing with CR0.AM clear
    uint32_t linear; // of the first byte
    uint32_t length; // bytes; those beyond the end of the code region are not there
    uint8_t bytes[MAX_CODE];
};

// Where RIP counts from.
static inline uint32_t code_base(enum diff_mode mode)
{
    return mode == MODE16 ? CODE16_BASE : 0;
}
// Linear address of data offset 0.
static inline uint32_t data_base(enum diff_mode mode)
{
    return mode == MODE16 ? ARENA_BASE : 0;
}
// Index into diff_state.mem of a linear address, or -1.
static inline int mem_index(uint32_t linear)
{
    if (linear - DATA_LINEAR < 2 * 4096)
        return (int)(linear - DATA_LINEAR);
    if (linear - STACK_LINEAR < 2 * 4096)
        return (int)(linear - STACK_LINEAR) + 2 * 4096;
    return -1;
}

// ---- the two sides. Each is made once in a process and is not shared across fork().
// `read_only` is the content of the read-only page (4096 bytes). Creation returns null after a message to
// stderr.
struct native;
struct native *native_create(const uint8_t *read_only);
void native_destroy(struct native *n);
bool native_runs(enum diff_mode mode); // the host's kernel lets code run in that mode
bool native_has_segments(void); // FS and GS can be used
// As native_run(), in a process where nothing else is mapped in the low 4 GiB: a stray access of the code under test
// then faults instead of finding the translator's memory.
int native_run_alone(struct native *n, const struct diff_code *code, const struct diff_state *in,
                     struct diff_state *out);
// Runs `code` from `in`; fills `out`. Returns 0, or -errno when the state could not be entered.
int native_run(struct native *n, const struct diff_code *code, const struct diff_state *in,
               struct diff_state *out);

struct translated;
struct translated *translated_create(const uint8_t *read_only);
void translated_destroy(struct translated *t);
int translated_run(struct translated *t, const struct diff_code *code, const struct diff_state *in,
                   struct diff_state *out);
bool translated_available(void); // whether this build has a translator

// ---- XSAVE areas (fpu.c)
struct xsave_layout {
    uint64_t mask;                             // state components in use: XCR0 of the host without PKRU, AMX
    uint32_t size;                             // bytes, standard format
    uint32_t ymm, opmask, zmm_hi256, hi16_zmm; // offsets; 0: not there
};
struct xsave_layout xsave_layout_host(void);
void fpu_to_xsave(const struct xsave_layout *l, const struct diff_fpu *f, uint8_t *area);
// Components that XSTATE_BV marks as initial read as their initial values.
void fpu_from_xsave(const struct xsave_layout *l, const uint8_t *area, struct diff_fpu *f);
