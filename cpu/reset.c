// The state after RESET (SDM 3A 9.1.1, table 9-1).
#include "cpu/internal.h"
#include "cpu/lapic.h"

#define PAT_RESET       0x0007040600070406ull // SDM 3A 11.12.4
#define APIC_BASE_RESET 0xfee00900ull         // enabled, bootstrap processor

static void clear(void *at, unsigned long n)
{
    asm volatile("rep stosb" : "+D"(at), "+c"(n) : "a"(0) : "memory");
}

static void reset_segments(struct cpu_state *s)
{
    for (unsigned i = 0; i < SEG_COUNT; i++)
        s->seg[i] = (struct segment){.limit = 0xffff, .attr = SEG_P | SEG_S | SEG_TYPE_W | SEG_TYPE_A};
    s->seg[SEG_CS].sel = 0xf000;
    s->seg[SEG_CS].base = 0xffff0000;
    s->ldtr = (struct segment){.limit = 0xffff, .attr = SEG_P | SYS_LDT};
    s->tr = (struct segment){.limit = 0xffff, .attr = SEG_P | SYS_TSS_BUSY};
    s->gdtr = (struct dtable){.limit = 0xffff};
    s->idtr = (struct dtable){.limit = 0xffff};
}

static void reset_fpu(struct cpu_state *s)
{
    clear(s->xsave, sizeof s->xsave);
    s->xsave[0] = 0x40;  // FCW 0040h
    s->xsave[4] = 0xff;  // FTW 5555h: every register holds zero
    s->xsave[24] = 0x80; // MXCSR 1F80h
    s->xsave[25] = 0x1f;
    s->xsave[512] = 3; // XSTATE_BV: the two components above are not in their initial configuration
    s->xcr0 = 1;
}

void cpu_reset(struct vcpu *v)
{
    struct cpu_state *s = &v->s;
    uint64_t tsc_offset = s->tsc_offset;
    clear(s, sizeof *s);
    s->tsc_offset = tsc_offset;
    s->rip = 0xfff0;
    s->rflags = FL_ONE;
    s->cr0 = CR0_CD | CR0_NW | CR0_ET;
    s->dr[6] = 0xffff0ff0;
    s->dr[7] = 0x400;
    v->watch_code = v->watch_data = v->watch_io = v->debug_hits = 0;
    s->apic_base = v->id ? APIC_BASE_RESET & ~0x100ull : APIC_BASE_RESET;
    s->pat = PAT_RESET;
    s->misc_enable = 1; // fast strings
    reset_segments(s);
    reset_fpu(s);
    if (v->model)
        s->gpr[RDX] = cpu_cpuid(v, 1, 0).eax;
    if (v->lapic)
        lapic_reset(v->lapic);
    v->mode_gen++;
}
