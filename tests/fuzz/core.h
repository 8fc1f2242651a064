// A vCPU of the software engine with 16 MiB of RAM, whose mode and code a fuzz target sets, and whose translations it looks
// at. Nothing here runs guest code, but a unit test may.
#pragma once
#include "cpu/cpu.h"
#include "dbt/dbt.h"
#include "mmu/mem.h"

#define CORE_RAM (16u << 20)

struct core {
    struct vcpu *v;
    struct mem_map mem;
    struct cpu_model *model;
};

// One for a process: translated code addresses the vCPU by absolute displacement. Ends the process on failure.
struct core *core_create(void);
// The same with the engine's handlers of faults left in place, for engine_software.run().
struct core *core_create_running(void);

// Aborts with a line saying where if the block's host code breaks a rule of its sandbox, or its map is inconsistent.
void core_verify_block(const struct dbt *d, const struct block *b);
// The same for the links between blocks and the lists by page.
void core_verify_cache(const struct dbt *d);
