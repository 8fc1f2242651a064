// An x87 exception that is pending when the next waiting instruction comes (SDM 1 8.7). With CR0.NE it is #MF. Without,
// the processor asserts FERR# and stands still before that instruction until an interrupt comes; the PC makes FERR# one
// (IRQ 13), whose handler takes it back and has IGNNE# asserted while it repairs the unit. What runs under IGNNE#
// ignores the exception.
//
// The exception itself is always raised by the host, whose own CR0.NE is set. So FERR# rises here with the waiting
// instruction, as for the errors that a Pentium defers, never before it. To ignore an exception its flag is taken out of
// the status word for the one instruction and put back behind it. Under IGNNE# every instruction is a block of its own
// (dbt/mode.c), so that the moment is seen at which no exception is pending and FERR# falls.
#include "cpu/internal.h"

#define FSW_FLAGS 0x7f // IE DE ZE OE UE PE SF
#define FSW_ES    0x80

static unsigned status(void)
{
    uint16_t fsw;
    __asm__ volatile("fnstsw %0" : "=a"(fsw));
    return fsw;
}

void cpu_x87_error(struct vcpu *v)
{
    if (v->s.cr0 & CR0_NE)
        cpu_throw(v, EXC_MF);
    if (v->ignne) {
        v->x87_hidden |= status() & FSW_FLAGS;
        __asm__ volatile("fnclex");
        return;
    }
    if (v->exits.ferr)
        v->exits.ferr(v->exits.opaque, true);
    v->s.activity = ACT_HALTED;
    cpu_leave(v);
}

void cpu_x87_unhide(struct vcpu *v)
{
    struct {
        uint32_t control, status, rest[5];
    } env;
    __asm__ volatile("fnstenv %0" : "=m"(env)); // masks all exceptions: the next one doesn't fault
    env.status |= v->x87_hidden;
    __asm__ volatile("fldenv %0" : : "m"(env));
    v->x87_hidden = 0;
}

void cpu_x87_ignored(struct vcpu *v)
{
    if (v->x87_hidden)
        cpu_x87_unhide(v);
    if (!(status() & FSW_ES) && v->exits.ferr)
        v->exits.ferr(v->exits.opaque, false);
}
