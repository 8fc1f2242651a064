// Breakpoints of the debug registers (SDM 3B 17.2, 17.3.1).
//
// Code that runs without breakpoints must not pay for them. So nothing is compared at an access or a fetch: while
// breakpoints are armed, the pages they lie in are kept out of the software TLB, which brings each access there to
// mmu_read() and mmu_write() (they record what was hit), and the translator runs code of such pages an instruction at a
// time and asks before each. Data and I/O breakpoints are traps: the engine raises what was recorded when the
// instruction has completed. Instruction breakpoints are faults, passed over once with RF set.
#include "cpu/internal.h"
#include "mmu/mmu.h"

enum { BREAK_CODE, BREAK_WRITE, BREAK_IO, BREAK_ACCESS }; // R/Wn

static unsigned condition(const struct vcpu *v, unsigned n) { return v->s.dr[7] >> (16 + 4 * n) & 3; }

static unsigned length(const struct vcpu *v, unsigned n)
{
    static const uint8_t bytes[4] = {1, 2, 8, 4};
    return bytes[v->s.dr[7] >> (18 + 4 * n) & 3];
}

// The address is taken aligned to the length (17.2.5), outside IA-32e mode of 32 bits.
static uint64_t address(const struct vcpu *v, unsigned n)
{
    uint64_t la = v->s.dr[n] & -(uint64_t)length(v, n);
    return cpu_long(v) ? la : (uint32_t)la;
}

void cpu_debug_update(struct vcpu *v)
{
    v->watch_code = v->watch_data = v->watch_io = 0;
    for (unsigned n = 0; n < 4; n++) {
        if (!(v->s.dr[7] >> (2 * n) & 3))
            continue;
        switch (condition(v, n)) {
        case BREAK_CODE: v->watch_code |= 1u << n; break;
        case BREAK_IO: v->watch_io |= v->s.cr4 & CR4_DE ? 1u << n : 0; continue;
        default: v->watch_data |= 1u << n; break;
        }
        mmu_flush_page(v, address(v, n));
    }
}

static bool in_page(const struct vcpu *v, unsigned set, uint64_t la)
{
    for (unsigned n = 0; n < 4; n++)
        if (set >> n & 1 && !((address(v, n) ^ la) >> PAGE_SHIFT))
            return true;
    return false;
}

bool cpu_watches_page(const struct vcpu *v, uint64_t la) { return in_page(v, v->watch_data, la); }

unsigned cpu_watch_hits(const struct vcpu *v, uint64_t la, unsigned size, bool write)
{
    unsigned hits = 0;
    for (unsigned n = 0; n < 4; n++) {
        uint64_t at = address(v, n);
        if (v->watch_data >> n & 1 && size && (write || condition(v, n) == BREAK_ACCESS) &&
            (la - at < length(v, n) || at - la < size))
            hits |= 1u << n;
    }
    return hits;
}

void cpu_watch_port(struct vcpu *v, uint16_t port, unsigned size)
{
    for (unsigned n = 0; n < 4; n++) {
        uint64_t at = address(v, n);
        if (v->watch_io >> n & 1 && (port - at < length(v, n) || at - port < size))
            v->debug_hits |= (uint8_t)(1u << n);
    }
}

bool cpu_debug_fetch(struct vcpu *v, uint64_t la)
{
    bool rf = v->s.rflags & FL_RF;
    if (!in_page(v, v->watch_code, la)) {
        v->s.rflags &= ~(uint64_t)FL_RF; // no breakpoint is there to be passed over
        return false;
    }
    unsigned hits = 0;
    for (unsigned n = 0; n < 4; n++)
        if (v->watch_code >> n & 1 && address(v, n) == la)
            hits |= 1u << n;
    if (hits && !rf) {
        v->s.dr[6] |= hits;
        cpu_throw_breakpoint(v);
    }
    return true;
}

void cpu_debug_trap(struct vcpu *v, bool step)
{
    v->s.dr[6] |= v->debug_hits | (step ? DR6_BS : 0);
    v->debug_hits = 0;
    v->event = (struct cpu_event){.vector = EXC_DB};
    cpu_deliver(v);
}
