// Bugs planted on purpose, one at a time, in a build made for that (-Dplanted=true): what looks for differences or defends
// against the guest must be seen to find resp. need them. Each has a name here and a PLANTED(name) where it does its harm;
// GNOMON_PLANTED in the environment chooses one. In any other build there are none.
#pragma once

#ifdef GNOMON_PLANTED
#include <stdbool.h>

// name: what it does
#define PLANTED_BUGS(X) \
    X(none)            /* nothing */                                                        \
    X(accessed_bit)    /* a walk that reads leaves the entry's accessed bit alone */        \
    X(debug_register)  /* MOV to a debug register changes bit 2 */                          \
    X(dirty_bit)       /* a write leaves the dirty bit alone */                             \
    X(error_code)      /* a page fault by a write is reported as one by a read */           \
    X(fault_address)   /* CR2 is one byte off */                                            \
    X(memory_write)    /* a store across pages loses its last byte */                       \
    X(msr)             /* WRMSR changes bit 4 of KERNEL_GS_BASE */                          \
    X(port_value)      /* IN from port 402h changes bit 0 */                                \
    X(return_address)  /* INT n pushes an address one byte off */                           \
    X(segment_limit)   /* LSL is one byte off */                                            \
    X(stale_tlb)       /* INVLPG does nothing */                                            \
    X(table_limit)     /* SGDT and SIDT are one byte off */                                 \
    X(time_stamp)      /* RDTSC is one cycle off */                                         \
    X(vector_register) /* FXRSTOR changes a bit of XMM7 */                                  \
    X(zero_flag)       /* LAR has it the wrong way round */                                 \
    X(kicks_between_turns) /* workers are kicked for nothing, and what is wanted of them comes between their turns */

enum planted_name {
#define X(name) PLANTED_##name,
    PLANTED_BUGS(X)
#undef X
};

extern enum planted_name planted_bug;

// Reads GNOMON_PLANTED. Returns false if it names no bug.
bool planted_choose(void);

#define PLANTED(name) __builtin_expect(planted_bug == PLANTED_##name, 0)
#else
#define PLANTED(name) 0
#endif
