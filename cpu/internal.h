// What the files of cpu/ share and nobody else needs: descriptors, stacks other than the current one, the
// pieces of a far transfer, register helpers, and the prototypes of the instructions.
//
// The order every transfer keeps: read and check everything that can fault, mark descriptors accessed, and
// only then change struct cpu_state. So a throw always leaves the state of the instruction's start.
#pragma once
#include "cpu/cpu.h"
#include "cpu/model.h"
#include "mmu/mmu.h"

// Descriptor types with S = 0 (SDM 3A table 3-2).
enum system_type {
    SYS_TSS16_AVAIL = 1,
    SYS_LDT = 2,
    SYS_TSS16_BUSY = 3,
    SYS_CALL16 = 4,
    SYS_TASK_GATE = 5,
    SYS_INT16 = 6,
    SYS_TRAP16 = 7,
    SYS_TSS_AVAIL = 9,
    SYS_TSS_BUSY = 11,
    SYS_CALL = 12,
    SYS_INT = 14,
    SYS_TRAP = 15,
};

#define ERROR_EXT 1u // error code: the event was external to the program
#define ERROR_IDT 2u // error code: the index is one of the IDT
#define DR6_BD    0x2000u
#define DR6_BS    0x4000u
#define DR6_BT    0x8000u
#define DR7_GD    0x2000u

// ---- registers
static inline uint64_t size_mask(unsigned size)
{
    return size >= 8 ? ~0ull : (1ull << (size * 8)) - 1;
}

static inline uint64_t gpr_read(const struct vcpu *v, unsigned n, unsigned size)
{
    return v->s.gpr[n & 15] & size_mask(size);
}

// Writes 2, 4 or 8 bytes: 4 clear the upper half, 2 leave the rest alone.
static inline void gpr_write(struct vcpu *v, unsigned n, unsigned size, uint64_t value)
{
    uint64_t *r = &v->s.gpr[n & 15];
    *r = size == 2 ? (*r & ~0xffffull) | (value & 0xffff) : value & size_mask(size);
}

static inline bool is_canonical(uint64_t la)
{
    return (uint64_t)((int64_t)(la << 16) >> 16) == la;
}

static inline bool is_null(uint16_t selector)
{
    return !(selector & 0xfffc);
}

static inline bool seg_usable(const struct segment *s)
{
    return !(s->attr & SEG_UNUSABLE);
}

// Address of the next instruction. RIP wraps at 32 bits outside 64-bit code, never at 16: the limit catches
// that.
static inline uint64_t next_rip(const struct vcpu *v, const struct insn *in)
{
    uint64_t rip = v->s.rip + in->len;
    return cpu_code64(v) ? rip : (uint32_t)rip;
}

static inline void advance(struct vcpu *v, const struct insn *in)
{
    v->s.rip = next_rip(v, in);
}

// The r/m operand, register or memory, of 2, 4 or 8 bytes.
static inline uint64_t rm_read(struct vcpu *v, const struct insn *in, unsigned size)
{
    if (in->is_mem)
        return cpu_read(v, in->sreg, cpu_effective_address(v, in), size);
    return gpr_read(v, in->rm, size);
}

// Whether an explicit access at CPL 3 must be aligned (SDM 3A 6.15, #AC).
static inline bool alignment_checked(const struct vcpu *v)
{
    return v->s.cpl == 3 && (v->s.rflags & FL_AC) && (v->s.cr0 & CR0_AM);
}

static inline void raise_request(struct vcpu *v, uint32_t bits)
{
    __atomic_or_fetch(&v->requests, bits, __ATOMIC_RELEASE);
}

// Blocks events until the next instruction has completed.
static inline void set_shadow(struct vcpu *v, uint8_t shadow)
{
    v->s.shadow |= shadow;
    raise_request(v, REQ_SHADOW);
}

// ---- descriptors (cpu/descriptor.c)
struct descriptor {
    uint64_t raw;  // the 8 bytes
    uint64_t high; // the upper 8 of a 16-byte one, after descriptor_fetch_high()
    uint64_t la;   // linear address of the 8 bytes
};

// Reads the GDT or LDT entry of a selector; false if it lies outside its table. Null is entry 0: callers look
// first.
bool descriptor_fetch(struct vcpu *v, uint16_t selector, struct descriptor *d);
// Reads the upper half of a 16-byte system descriptor of long mode; false if that lies outside the table.
bool descriptor_fetch_high(struct vcpu *v, uint16_t selector, struct descriptor *d);
// Sets the accessed bit of a code or data descriptor in memory and in *d.
void descriptor_set_accessed(struct vcpu *v, struct descriptor *d);
// Fills the hidden part. System descriptors of long mode take their upper base from d->high.
void descriptor_to_segment(const struct descriptor *d, uint16_t selector, bool sixteen_bytes,
                           struct segment *s);

static inline unsigned descriptor_type(const struct descriptor *d)
{
    return (d->raw >> 40) & 0x1f;
} // with S
static inline unsigned descriptor_dpl(const struct descriptor *d)
{
    return (d->raw >> 45) & 3;
}
static inline bool descriptor_present(const struct descriptor *d)
{
    return (d->raw >> 47) & 1;
}
static inline bool descriptor_is_code(const struct descriptor *d)
{
    return (descriptor_type(d) & 0x18) == 0x18;
}
static inline bool descriptor_is_conforming(const struct descriptor *d)
{
    return (descriptor_type(d) & 0x1c) == 0x1c;
}
static inline bool descriptor_is_writable_data(const struct descriptor *d)
{
    return (descriptor_type(d) & 0x1a) == 0x12;
}
static inline bool descriptor_l(const struct descriptor *d)
{
    return (d->raw >> 53) & 1;
}
static inline bool descriptor_db(const struct descriptor *d)
{
    return (d->raw >> 54) & 1;
}

static inline uint64_t system_read(struct vcpu *v, uint64_t la, unsigned size)
{
    uint64_t value = 0;
    mmu_read(v, la, &value, size, ACC_READ | ACC_SYSTEM);
    return value;
}

static inline void system_write(struct vcpu *v, uint64_t la, unsigned size, uint64_t value)
{
    mmu_write(v, la, &value, size, ACC_WRITE | ACC_SYSTEM);
}

// ---- segments (cpu/segment.c)
// Makes a data segment register null: the base is cleared or kept as the vendor does.
void segment_set_null(struct vcpu *v, struct segment *s, uint16_t selector);
// The hidden part that v8086 mode gives to a selector.
void segment_set_v86(struct segment *s, uint16_t selector);
// The hidden part of a load in real mode: limit and D/B stay.
void segment_set_real(struct segment *s, uint16_t selector);
// The flat segments of SYSCALL, SYSENTER and their returns; attr is complete.
void segment_set_flat(struct segment *s, uint16_t selector, uint32_t attr);
// The null SS of 64-bit code below CPL 3.
void segment_set_null_ss(struct segment *s, uint16_t selector, unsigned cpl);
// After a return to an outer level: data segments the new level may not use become null (SDM 2A, RET).
void segments_drop_inner(struct vcpu *v);
// Checks of SS for a return or a load at `cpl`: #GP(sel), #SS(sel) when not present. Marks it accessed.
void segment_check_ss(struct vcpu *v, uint16_t selector, unsigned cpl, struct segment *out);

// ---- stacks (cpu/operand.c)
// A stack being built or taken apart before it becomes (or without being) the current one.
struct stack {
    struct segment ss;
    uint64_t rsp;
    uint64_t mask;  // of the stack pointer
    uint32_t error; // of #SS
    unsigned acc;   // ACC_USER or 0
    bool flat64;
};
void stack_current(const struct vcpu *v, struct stack *st);
void stack_new(struct stack *st, const struct segment *ss, uint64_t rsp, unsigned cpl, uint32_t error,
               bool flat64);
void stack_push(struct vcpu *v, struct stack *st, unsigned size, uint64_t value);
uint64_t stack_read(struct vcpu *v, const struct stack *st, uint64_t offset,
                    unsigned size); // at rsp + offset
// Linear address of [offset, offset+size) of any segment; throws `vector` with `error`.
uint64_t segment_linear(struct vcpu *v, const struct segment *s, uint64_t offset, unsigned size, bool write,
                        unsigned vector, uint32_t error);

static inline uint64_t stack_merge(uint64_t old, uint64_t value, uint64_t mask)
{
    return mask == 0xffff ? (old & ~0xffffull) | (value & 0xffff) : value & mask;
}

// ---- transfers (cpu/transfer.c)
// Throws #GP(0 or ext) unless `rip` lies in the code segment (or is canonical in 64-bit code). Returns it
// truncated.
uint64_t code_check_rip(struct vcpu *v, const struct segment *cs, uint64_t rip, uint32_t ext);
// Makes the segment current; the caller has checked everything.
static inline void code_commit(struct vcpu *v, const struct segment *cs, uint64_t rip, unsigned cpl)
{
    v->s.seg[SEG_CS] = *cs;
    v->s.rip = rip;
    v->s.cpl = cpl;
    v->mode_gen++;
}

// ---- events (cpu/event.c)
enum event_kind {
    EVENT_EXTERNAL, // interrupt, NMI
    EVENT_FAULT,    // exception
    EVENT_INT1,     // like an exception, by an instruction
    EVENT_SOFT,     // INT n, INT3, INTO: gate DPL is checked, error codes without EXT
};
// Delivers through the IDT of the current mode. Throws what goes wrong, with the state unchanged unless a
// task switch had committed. `rip` is the return address.
void event_enter(struct vcpu *v, unsigned vector, enum event_kind kind, bool has_error, uint32_t error,
                 uint64_t rip);

// ---- tasks (cpu/task.c)
enum task_cause { TASK_JMP, TASK_CALL, TASK_IRET, TASK_EVENT };
// Switches to the task whose TSS descriptor was fetched. Type, DPL and presence have been checked; limit and
// the rest are checked here. `rip` goes to the old TSS, rf sets RF there.
void task_switch(struct vcpu *v, uint16_t selector, const struct descriptor *d, enum task_cause cause,
                 uint64_t rip, bool rf, uint32_t ext, bool has_error, uint32_t error);
// Checks the TSS selector of a task gate and switches (event or far transfer).
void task_gate(struct vcpu *v, const struct descriptor *gate, enum task_cause cause, uint64_t rip, bool rf,
               uint32_t ext, bool has_error, uint32_t error);
// IRET with NT set.
void task_return(struct vcpu *v, uint64_t rip);
// SS:ESP of an inner level from the current 16- or 32-bit TSS, checked; throws #TS or #SS.
void task_inner_stack(struct vcpu *v, unsigned dpl, uint32_t ext, struct stack *st);
// A stack pointer of the 64-bit TSS: offset 4 + 8*DPL or 28h.. for the IST; throws #TS, #SS when not
// canonical.
uint64_t task_stack64(struct vcpu *v, unsigned offset, uint32_t ext);
static inline bool task_is_32(const struct vcpu *v)
{
    return v->s.tr.attr & 8;
}

// ---- instructions of segment.c, transfer.c, event.c, syscall.c, flags.c, legacy.c
insn_fn op_mov_from_sreg, op_mov_to_sreg, op_push_sreg, op_pop_sreg, op_load_far_ptr, op_lar, op_lsl, op_verr,
    op_verw, op_arpl, op_call_far, op_jmp_far, op_ret_far, op_int, op_int3, op_int1, op_into, op_iret,
    op_syscall, op_sysret, op_sysenter, op_sysexit, op_pushf, op_popf, op_cli, op_sti, op_stac, op_clac,
    op_hlt, op_pusha, op_popa, op_enter, op_bound, op_daa, op_das, op_aaa, op_aas, op_aam, op_aad;
