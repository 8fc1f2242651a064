// The fixed code at the start of the cache: ways in and out of translated code. Each way out stores the guest's
// registers and flags into the vCPU's state, switches from the return stack to C's, calls one function of run.c, and
// goes on at the address it returns.
#include "dbt/dbt.h"
#include <stddef.h>

struct gen {
    struct asm_buf a;
    struct dbt *d;
};

#define S(field) ((uint64_t)&g->d->v->s.field)
#define D(field) ((uint64_t)&g->d->field)

static void save_regs(struct gen *g)
{
    for (unsigned r = 0; r < 16; r++)
        if (host_of_guest[r] != HOMED)
            a_store_abs(&g->a, 8, S(gpr[r]), host_of_guest[r]);
}

static void load_regs(struct gen *g)
{
    for (unsigned r = 0; r < 16; r++)
        if (host_of_guest[r] != HOMED)
            a_load_abs(&g->a, 8, host_of_guest[r], S(gpr[r]));
}

static void save_flags(struct gen *g) // after save_regs
{
    struct asm_buf *a = &g->a;
    a_bytes(a, "\x9c\x58", 2); // pushfq; pop rax
    a_alu_imm(a, 4, 4, H_AX, (int32_t)FL_ARITH);
    a_load_abs(a, 4, H_CX, S(rflags));
    a_alu_imm(a, 4, 4, H_CX, (int32_t)~FL_ARITH);
    a_bytes(a, "\x09\xc8", 2); // or eax, ecx
    a_store_abs(a, 4, S(rflags), H_AX);
}

// Parked flags to and from the vCPU's; EAX and ECX are free.
static void save_parked(struct gen *g)
{
    struct asm_buf *a = &g->a;
    a_load_abs(a, 4, H_AX, D(parked));
    a_mov_rr(a, 4, H_CX, H_AX);
    a_bytes(a, "\xc1\xe9\x08", 3); // shr ecx, 8
    a_alu_imm(a, 4, 4, H_CX, FL_ARITH & 0xff);
    a_bytes(a, "\x83\xe0\x01", 3); // and eax, 1
    a_bytes(a, "\xc1\xe0\x0b", 3); // shl eax, 11
    a_bytes(a, "\x09\xc1", 2);     // or ecx, eax
    a_load_abs(a, 4, H_AX, S(rflags));
    a_alu_imm(a, 4, 4, H_AX, (int32_t)~FL_ARITH);
    a_bytes(a, "\x09\xc8", 2); // or eax, ecx
    a_store_abs(a, 4, S(rflags), H_AX);
}

static void load_parked(struct gen *g)
{
    struct asm_buf *a = &g->a;
    a_load_abs(a, 4, H_AX, S(rflags));
    a_mov_rr(a, 4, H_CX, H_AX);
    a_bytes(a, "\x88\xc4", 2);     // mov ah, al
    a_bytes(a, "\xc1\xe9\x0b", 3); // shr ecx, 11
    a_bytes(a, "\x83\xe1\x01", 3); // and ecx, 1
    a_bytes(a, "\x88\xc8", 2);     // mov al, cl
    a_store_abs(a, 4, D(parked), H_AX);
}

static void load_flags(struct gen *g) // before load_regs
{
    struct asm_buf *a = &g->a;
    a_load_abs(a, 4, H_AX, S(rflags));
    a_mov_rr(a, 4, H_CX, H_AX);
    a_bytes(a, "\x88\xc4", 2);     // mov ah, al
    a_bytes(a, "\xc1\xe9\x0b", 3); // shr ecx, 11
    a_bytes(a, "\x83\xe1\x01", 3); // and ecx, 1
    a_bytes(a, "\x88\xc8", 2);     // mov al, cl
    a_bytes(a, "\x04\x7f", 2);     // add al, 127: OF
    a8(a, 0x9e);                   // sahf: SF ZF AF PF CF
}

static void to_c_stack(struct gen *g)
{
    a_store_abs(&g->a, 8, D(ras_sp), H_SP);
    a_load_abs(&g->a, 8, H_SP, D(c_sp));
}

static void call_c(struct gen *g, void *fn) // arguments but the first are in place
{
    a_mov_imm(&g->a, H_DI, (uint64_t)g->d);
    a_mov_imm(&g->a, H_AX, (uint64_t)fn);
    a_bytes(&g->a, "\xff\xd0", 2); // call rax
}

// T0 is the argument of fn(d, arg).
static uint64_t leave_stub(struct gen *g, void *fn, uint64_t tail)
{
    uint64_t at = asm_here(&g->a);
    save_regs(g);
    save_parked(g);
    to_c_stack(g);
    a_mov_rr(&g->a, 8, H_SI, T0);
    call_c(g, fn);
    a_jmp_to(&g->a, tail);
    return at;
}

// The way out of a block with KEY_AC: C code has no use for alignment checks.
static void clear_ac(struct gen *g)
{
    a_bytes(&g->a, "\x9c\x81\x24\x24\xff\xff\xfb\xff\x9d", 9); // pushfq; and dword [rsp], ~AC; popfq
}

static uint64_t step_stub(struct gen *g, void *fn, uint64_t tail)
{
    uint64_t at = asm_here(&g->a);
    clear_ac(g);
    leave_stub(g, fn, tail);
    return at;
}

static void count(struct gen *g, uint64_t counter) // flags are parked
{
    a_rex(&g->a, 8, 0, 0, 0, 0);
    a8(&g->a, 0xff); // inc qword [counter]
    a_abs(&g->a, 0, counter, 0);
}

static void pop_return(struct gen *g)
{
    a8(&g->a, 0x8f); // pop [slow_ret]
    a_abs(&g->a, 0, D(slow_ret), 0);
}

static void jump_return(struct gen *g)
{
    a8(&g->a, 0xff); // jmp [slow_ret]
    a_abs(&g->a, 4, D(slow_ret), 0);
}

static uint64_t slow_stub(struct gen *g, bool flags)
{
    struct asm_buf *a = &g->a;
    uint64_t at = asm_here(a);
    pop_return(g);
    a_store_imm32_abs(a, 4, D(in_slow), 1);
    save_regs(g);
    if (flags)
        a_store_abs(a, 4, D(flags), H_AX);
    to_c_stack(g);
    a_mov_rr(a, 8, H_DX, T1);
    a_mov_rr(a, 8, H_SI, T0);
    call_c(g, run_slow);
    a_store_abs(a, 8, D(target), H_AX);
    if (flags)
        load_flags(g);
    load_regs(g);
    a_load_abs(a, 8, H_SP, D(ras_sp));
    a_load_abs(a, 8, T1, D(target));
    a_mov_imm(a, T0, 0);
    a_store_imm32_abs(a, 4, D(in_slow), 0);
    jump_return(g);
    return at;
}

static uint64_t stop(struct gen *g) // the worker's owner goes on
{
    uint64_t at = asm_here(&g->a);
    a8(&g->a, 0xcc); // int3: of all traps the host takes least time for it
    return at;
}

static void user_stubs(struct gen *g)
{
    struct asm_buf *a = &g->a;
    struct dbt *d = g->d;
    d->user_ib_miss = stop(g);
    for (unsigned c = 0; c < USER_SPACES; c++) { // as for the other contexts
        d->user_ret_miss[c] = asm_here(a);
        a_load_abs(a, 8, H_SP, D(ras_base));
        uint8_t *look = a_jmp(a);
        d->user_ret_empty[c] = asm_here(a);
        a_lea(a, 8, H_SP, H_SP, -1, 1, -8);
        a_patch(a, look);
        a_store_abs(a, 8, D(tmp), T1);
        a_movzx16(a, T1, T0);
        a_rex(a, 8, T0, T1, 0, 0);
        a8(a, 0x3b);
        a_table(a, T0, (uint64_t)d->contexts[CONTEXTS + c].tag, T1);
        uint8_t *miss = a_jcc(a, CC_NE);
        a8(a, 0xff);
        a_table(a, 4, (uint64_t)d->contexts[CONTEXTS + c].code, T1);
        a_patch(a, miss);
        a_load_abs(a, 8, T1, D(tmp));
        a_jmp_to(a, d->user_ib_miss);
    }
    d->user_end = asm_here(a);
    while (asm_here(a) % 8)
        a8(a, 0xcc);
    d->user_ib_miss_at = asm_here(a);
    a64(a, d->user_ib_miss);
}

int stubs_create(struct dbt *d)
{
    struct gen gen = {.a = {.p = d->rw, .end = d->rw + 65536, .to_run = (intptr_t)(d->rx - (uint64_t)d->rw)}, .d = d};
    struct gen *g = &gen;
    struct asm_buf *a = &g->a;
    d->stubs_begin = asm_here(a);

    // enter(code): from C, once per run; leaves only by a throw
    d->stub_enter = asm_here(a);
    a_store_abs(a, 8, D(target), H_DI);
    a_alu_imm(a, 8, 5, H_SP, 256);
    a_alu_imm(a, 8, 4, H_SP, -64);
    a_store_abs(a, 8, D(c_sp), H_SP);
    uint8_t *to_check = a_jmp(a);

    // tail: RAX = where to go on; requests are looked at first
    uint64_t tail = asm_here(a);
    a_store_abs(a, 8, D(target), H_AX);
    a_patch(a, to_check);
    d->tail_begin = asm_here(a);
    a_load_abs(a, 4, H_CX, (uint64_t)&d->v->requests);
    a_bytes(a, "\x85\xc9", 2); // test ecx, ecx
    uint8_t *quiet = a_jcc(a, CC_E);
    a_alu_imm(a, 4, 7, H_CX, REQ_INTR); // only that, and IF is 0: no hurry
    uint8_t *due = a_jcc(a, CC_NE);
    a8(a, 0x80); // cmp byte [iflag], 0
    a_abs(a, 7, S(iflag), 1);
    a8(a, 0);
    uint8_t *masked = a_jcc(a, CC_E);
    a_patch(a, due);
    d->stub_service = asm_here(a);
    a_load_abs(a, 8, H_SP, D(c_sp));
    call_c(g, run_service);
    a_store_abs(a, 8, D(target), H_AX);
    a8(a, 0x83); // cmp dword [kicked], 0: a signal while run_service() ran, after it had looked
    a_abs(a, 7, D(kicked), 1);
    a8(a, 0);
    a_jcc_to(a, CC_NE, d->stub_service);
    a_patch(a, quiet);
    a_patch(a, masked);
    load_parked(g);
    load_regs(g);
    a_load_abs(a, 8, H_SP, D(ras_sp));
    a8(a, 0xff); // jmp [target]
    a_abs(a, 4, D(target), 0);
    d->tail_end = asm_here(a);

    d->stub_chain_host = asm_here(a); // the same with flags in the host
    a_mov_rr(a, 8, T1, H_AX);
    a8(a, 0x9f);                   // lahf
    a_bytes(a, "\x0f\x90\xc0", 3); // seto al
    a_store_abs(a, 4, D(parked), H_AX);
    a_mov_rr(a, 8, H_AX, T1);
    d->stub_chain = leave_stub(g, run_chain, tail);
    d->stub_limit_host = asm_here(a);
    a_mov_rr(a, 8, T1, H_AX);
    a8(a, 0x9f);                   // lahf
    a_bytes(a, "\x0f\x90\xc0", 3); // seto al
    a_store_abs(a, 4, D(parked), H_AX);
    a_mov_rr(a, 8, H_AX, T1);
    d->stub_limit = leave_stub(g, run_limit, tail);
    d->stub_sensitive = leave_stub(g, run_sensitive, tail);
    d->stub_string = leave_stub(g, run_string, tail);
    d->stub_gather = leave_stub(g, run_gather, tail);
    d->stub_ib_miss = asm_here(a);
    a_store_abs(a, 4, D(branch), T1);
    uint64_t look_up = leave_stub(g, run_indirect, tail);
    d->stub_step = step_stub(g, run_step, tail);
    d->stub_commit = step_stub(g, run_commit, tail);

    // A RET whose landing is not where the guest returns to: forget the predictions, look the target up. And the
    // bottom of the return stack: a RET nobody predicted.
    d->stub_ret_none = d->returns_begin = asm_here(a);
    a_lea(a, 8, H_SP, H_SP, -1, 1, -8);
    a_jmp_to(a, d->stub_ib_miss);
    for (unsigned c = 0; c < CONTEXTS; c++) {
        d->stub_ret_miss[c] = asm_here(a);
        count(g, D(n.ret_misses));
        a_load_abs(a, 8, H_SP, D(ras_base));
        uint8_t *look = a_jmp(a);
        d->stub_ret_empty[c] = asm_here(a);
        count(g, D(n.ret_empty));
        a_lea(a, 8, H_SP, H_SP, -1, 1, -8);
        a_patch(a, look);
        a_store_abs(a, 4, D(branch), T1);
        a_movzx16(a, T1, T0);
        a_rex(a, 8, T0, T1, 0, 0);
        a8(a, 0x3b);
        a_table(a, T0, (uint64_t)d->contexts[c].tag, T1);
        a_jcc_to(a, CC_NE, look_up);
        a8(a, 0xff);
        a_table(a, 4, (uint64_t)d->contexts[c].code, T1);
    }

    d->returns_end = asm_here(a);

    d->slow_begin = asm_here(a);
    for (unsigned f = 0; f < 2; f++)
        d->stub_slow[0][f] = d->stub_slow[1][f] = slow_stub(g, f);

    d->stub_seg = asm_here(a);
    pop_return(g);
    a_store_imm32_abs(a, 4, D(in_slow), 1);
    save_regs(g);
    a_store_abs(a, 4, D(flags), H_AX);
    to_c_stack(g);
    a_mov_rr(a, 8, H_SI, T0);
    call_c(g, run_segment);
    a_store_abs(a, 8, D(target), H_AX);
    load_regs(g);
    a_load_abs(a, 8, H_SP, D(ras_sp));
    a_load_abs(a, 8, T0, D(target));
    a_store_imm32_abs(a, 4, D(in_slow), 0);
    jump_return(g);
    d->slow_end = asm_here(a);

    d->stub_bounce = asm_here(a);
    pop_return(g);
    clear_ac(g);
    save_regs(g);
    save_flags(g);
    to_c_stack(g);
    a_mov_rr(a, 8, H_SI, T0);
    call_c(g, run_bounce);
    a_store_abs(a, 8, D(target), H_AX);
    load_flags(g);
    load_regs(g);
    a_load_abs(a, 8, H_SP, D(ras_sp));
    a_load_abs(a, 8, T1, D(target));
    a_mov_imm(a, T0, 0);
    jump_return(g);

    user_stubs(g);

    // a host fault in translated code that is the guest's: state was stored by the signal handler
    d->stub_fault = asm_here(a);
    a_load_abs(a, 8, H_SP, D(c_sp));
    call_c(g, run_fault);

    d->stubs_end = asm_here(a);
    d->cache_stubs = d->regions[0].code_used = (uint64_t)(a->p - d->rw + 63) & ~63ull;
    return a->overflow ? -1 : 0;
}
