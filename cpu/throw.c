// Guest faults are control flow: this is the one place that raises them. The engine's run loop (or
// cpu_deliver(), for faults of the delivery itself) has filled v->throw_buf.
#include "cpu/internal.h"

_Noreturn __attribute__((noinline)) static void leave(struct vcpu *v)
{
    __builtin_longjmp(v->throw_buf, 1);
}

_Noreturn void cpu_throw(struct vcpu *v, unsigned vector)
{
    v->event = (struct cpu_event){.vector = vector};
    leave(v);
}

_Noreturn void cpu_leave(struct vcpu *v)
{
    v->event = (struct cpu_event){.none = 1};
    leave(v);
}

_Noreturn void cpu_throw_error(struct vcpu *v, unsigned vector, uint32_t error)
{
    v->event = (struct cpu_event){.vector = vector, .has_error = 1, .error = error};
    leave(v);
}

_Noreturn void cpu_throw_page_fault(struct vcpu *v, uint64_t la, uint32_t error)
{
    v->event = (struct cpu_event){.vector = EXC_PF, .has_error = 1, .error = error, .cr2 = la};
    leave(v);
}

_Noreturn void cpu_throw_breakpoint(struct vcpu *v)
{
    v->event = (struct cpu_event){.vector = EXC_DB, .breakpoint = 1};
    leave(v);
}
