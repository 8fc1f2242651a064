// A host processor made of a table, for tests of the CPU model: everything the feature table knows, minus
// what a test takes away.
#pragma once
#include "cpu/model.h"
#include <string.h>

struct fake_host {
    struct cpu_host host;
    bool amd;
    uint64_t missing[(CPU_FEATURE_COUNT + 63) / 64]; // bits of enum cpu_feature
};

static inline void fake_host_lacks(struct fake_host *f, enum cpu_feature feature)
{
    f->missing[feature / 64] |= 1ull << (feature % 64);
}

static struct cpuid_regs fake_cpuid(void *opaque, uint32_t leaf, uint32_t subleaf)
{
    struct fake_host *f = opaque;
    uint32_t regs[4] = {0};
    const char *vendor = f->amd ? "AuthenticAMD" : "GenuineIntel";
    for (unsigned i = 0; i < CPU_FEATURE_COUNT; i++) {
        const struct cpu_feature_info *t = &cpu_feature_table[i];
        if (t->leaf == leaf && t->subleaf == subleaf && !(f->missing[i / 64] >> (i % 64) & 1))
            regs[t->reg] |= 1u << t->bit;
    }
    switch (leaf) {
    case 0:
        regs[0] = 0x16;
        memcpy(&regs[1], vendor, 4);
        memcpy(&regs[3], vendor + 4, 4);
        memcpy(&regs[2], vendor + 8, 4);
        break;
    case 1: regs[0] = 0x00050657; break;
    case 4:
        if (subleaf == 0)
            regs[0] = 0x1c004121, regs[1] = 0x01c0003f, regs[2] = 0x3f;
        break;
    case 7:
        if (subleaf == 0)
            regs[0] = 1;
        break;
    case 0xd: // the layout of Skylake server
        if (subleaf == 2)
            regs[0] = 256, regs[1] = 576;
        if (subleaf == 5)
            regs[0] = 64, regs[1] = 1088;
        if (subleaf == 6)
            regs[0] = 512, regs[1] = 1152;
        if (subleaf == 7)
            regs[0] = 1024, regs[1] = 1664, regs[2] = 2;
        break;
    case 0x80000000: regs[0] = 0x80000021; break;
    case 0x80000006: regs[2] = 0x01006040; break;
    case 0x80000008: regs[0] = 0x302e; break; // 46 bits physical, 48 linear
    }
    return (struct cpuid_regs){regs[0], regs[1], regs[2], regs[3]};
}

static inline void fake_host_init(struct fake_host *f, bool amd)
{
    memset(f, 0, sizeof *f);
    f->amd = amd;
    f->host = (struct cpu_host){
        .cpuid = fake_cpuid, .opaque = f, .xcr0 = 0xe7, .tsc_khz = 2500000, .mxcsr_mask = 0xffff};
}
