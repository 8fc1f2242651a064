// Far CALL, JMP, RET, IRET, and the fast system calls.
#include "cpu_fixture.h"

static struct insn far_to(uint16_t selector, uint64_t offset)
{
    return (struct insn){.len = 7, .op_size = 4, .imm_sel = selector, .imm = offset};
}

static const struct insn plain = {.len = 1, .op_size = 4};
static const struct insn plain64 = {.len = 2, .op_size = 8};

static void put_stack(struct world *w, unsigned size, unsigned n, const uint64_t *value)
{
    for (unsigned i = 0; i < n; i++)
        poke(w, w->v->s.gpr[RSP] + i * size, value[i], size);
}

// ---- real and v8086 mode

static void real_mode_call_and_return(void **state)
{
    struct world *w = *state;
    struct insn in = {.len = 5, .op_size = 2, .imm_sel = 0x500, .imm = 0x1234},
                ret = {.len = 3, .op_size = 2, .imm = 6};
    enter_real(w);
    assert_int_equal(try_op(w->v, op_call_far, &in), -1);
    assert_int_equal(w->v->s.seg[SEG_CS].base, 0x5000);
    assert_int_equal(w->v->s.rip, 0x1234);
    assert_int_equal(peek(w, 0x1020 + 0x7fe, 2), 0x101);
    assert_int_equal(peek(w, 0x1020 + 0x7fc, 2), 0x25);
    assert_int_equal(try_op(w->v, op_ret_far, &ret), -1);
    assert_int_equal(w->v->s.seg[SEG_CS].sel, 0x101);
    assert_int_equal(w->v->s.rip, 0x25);
    assert_int_equal(w->v->s.gpr[RSP], 0x806);
    struct insn far = {.len = 8, .op_size = 4, .imm_sel = 0x500, .imm = 0x10000};
    assert_fault(try_op(w->v, op_jmp_far, &far), EXC_GP, 0);
}

static void first_jump_into_protected_mode(void **state)
{
    struct world *w = *state;
    struct insn in = {.len = 8, .op_size = 4, .imm_sel = CS32, .imm = CODE};
    enter_real(w);
    w->v->s.cr0 |= CR0_PE;
    assert_int_equal(try_op(w->v, op_jmp_far, &in), -1);
    assert_int_equal(w->v->s.seg[SEG_CS].limit, 0xffffffff);
    assert_true(w->v->s.seg[SEG_CS].attr & SEG_DB);
    assert_int_equal(w->v->s.cpl, 0);
}

// ---- direct transfers

static void direct_jump_checks_privilege(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    struct insn in = far_to(0, 0x10);
    assert_fault(try_op(w->v, op_jmp_far, &in), EXC_GP, 0);
    in = far_to(UCS32 & ~3, 0x10);
    assert_fault(try_op(w->v, op_jmp_far, &in), EXC_GP, UCS32 & ~3); // DPL != CPL
    in = far_to(CS32 | 1, 0x10);
    assert_fault(try_op(w->v, op_jmp_far, &in), EXC_GP, CS32); // RPL > CPL
    in = far_to(DS32, 0x10);
    assert_fault(try_op(w->v, op_jmp_far, &in), EXC_GP, DS32);
    in = far_to(CS16, 0x10000);
    assert_fault(try_op(w->v, op_jmp_far, &in), EXC_GP, 0); // limit
    put_descriptor(w, SPARE, 0, 0xfffff, (ATTR_CODE & ~SEG_P) | ATTR_FLAT);
    in = far_to(SPARE, 0x10);
    assert_fault(try_op(w->v, op_jmp_far, &in), EXC_NP, SPARE);
    enter_protected(w, 3);
    in = far_to(CONFORMING, 0x10);
    assert_int_equal(try_op(w->v, op_jmp_far, &in), -1);
    assert_int_equal(w->v->s.seg[SEG_CS].sel, CONFORMING | 3);
    assert_int_equal(w->v->s.cpl, 3);
}

static void call_pushes_before_it_commits(void **state)
{
    struct world *w = *state;
    struct insn in = far_to(CS16, 0x20);
    enter_protected(w, 0);
    w->v->s.seg[SEG_SS].limit = KSTACK - 5; // room for neither
    assert_fault(try_op(w->v, op_call_far, &in), EXC_SS, 0);
    w->v->s.seg[SEG_SS].limit = KSTACK - 5 + 4;
    w->v->s.gpr[RSP] = 4; // room for the first only: the second wraps
    assert_fault(try_op(w->v, op_call_far, &in), EXC_SS, 0);
    assert_int_equal(w->v->s.gpr[RSP], 4);
    assert_int_equal(w->v->s.seg[SEG_CS].sel, CS32);
    w->v->s.gpr[RSP] = KSTACK - 8;
    assert_int_equal(try_op(w->v, op_call_far, &in), -1);
    assert_int_equal(peek(w, KSTACK - 12, 4), CS32);
    assert_int_equal(peek(w, KSTACK - 16, 4), CODE + 7);
    assert_int_equal(w->v->s.rip, 0x20);
}

static void memory_operand_m16_64_is_intels(void **state)
{
    struct world *w = *state;
    struct insn in = {.len = 7,
                      .op_size = 8,
                      .addr_size = 8,
                      .is_mem = 1,
                      .sreg = SEG_DS,
                      .base = -1,
                      .index = -1,
                      .disp = 0x6000};
    enter_long(w, 0);
    poke(w, 0x6000, 0x1234567890 | (uint64_t)CS64 << 32, 8);
    poke(w, 0x6000, 0x7fff00000010, 8);
    poke(w, 0x6008, CS64, 2);
    assert_int_equal(try_op(w->v, op_jmp_far, &in), -1);
    assert_true(w->v->s.rip == 0x7fff00000010);
    enter_long(w, 0);
    w->model->amd = true;
    poke(w, 0x6000, 0x55, 4);
    poke(w, 0x6004, CS32, 2);
    assert_int_equal(try_op(w->v, op_jmp_far, &in), -1);
    assert_int_equal(w->v->s.rip, 0x55);
    assert_int_equal(w->v->s.seg[SEG_CS].sel, CS32);
}

static void non_canonical_target_faults(void **state)
{
    struct world *w = *state;
    struct insn in = {.len = 7,
                      .op_size = 8,
                      .addr_size = 8,
                      .is_mem = 1,
                      .sreg = SEG_DS,
                      .base = -1,
                      .index = -1,
                      .disp = 0x6000};
    enter_long(w, 0);
    poke(w, 0x6000, 0x800000000000, 8);
    poke(w, 0x6008, CS64, 2);
    assert_fault(try_op(w->v, op_jmp_far, &in), EXC_GP, 0);
    put_descriptor(w, SPARE, 0, 0xfffff, ATTR_CODE | SEG_L | SEG_DB);
    poke(w, 0x6000, 0x10, 8);
    poke(w, 0x6008, SPARE, 2);
    assert_fault(try_op(w->v, op_jmp_far, &in), EXC_GP, SPARE); // L and D
}

// ---- call gates

static void gate_to_an_inner_level_copies_parameters(void **state)
{
    struct world *w = *state;
    struct insn in = far_to(SPARE | 3, 0), ret = {.len = 3, .op_size = 4, .imm = 8};
    const uint64_t parameters[2] = {0x1111, 0x2222};
    enter_protected(w, 3);
    put_stack(w, 4, 2, parameters);
    poke(w, GDT + SPARE, make_gate(CS32, 0xb000, SYS_CALL, 3, 2), 8);
    poke(w, TSS + 4, KSTACK2, 4);
    poke(w, TSS + 8, DS32, 2);
    assert_int_equal(try_op(w->v, op_call_far, &in), -1);
    assert_int_equal(w->v->s.cpl, 0);
    assert_int_equal(w->v->s.rip, 0xb000);
    assert_int_equal(w->v->s.gpr[RSP], KSTACK2 - 24);
    const uint32_t frame[6] = {CODE + 7, UCS32, 0x1111, 0x2222, USTACK, UDS};
    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(peek(w, KSTACK2 - 24 + 4 * i, 4), frame[i]);

    set_segment(w, &w->v->s.seg[SEG_DS], DS32); // the outer level may not keep it
    assert_int_equal(try_op(w->v, op_ret_far, &ret), -1);
    assert_int_equal(w->v->s.cpl, 3);
    assert_int_equal(w->v->s.rip, CODE + 7);
    assert_int_equal(w->v->s.gpr[RSP], USTACK + 8);
    assert_int_equal(w->v->s.seg[SEG_SS].sel, UDS);
    assert_int_equal(w->v->s.seg[SEG_DS].sel, 0);
    assert_true(w->v->s.seg[SEG_DS].attr & SEG_UNUSABLE);
    assert_int_equal(w->v->s.seg[SEG_ES].sel, UDS);
}

static void gate_checks(void **state)
{
    struct world *w = *state;
    struct insn in = far_to(SPARE | 3, 0);
    enter_protected(w, 3);
    poke(w, TSS + 4, KSTACK2, 4);
    poke(w, GDT + SPARE, make_gate(CS32, 0xb000, SYS_CALL, 2, 0), 8);
    assert_fault(try_op(w->v, op_call_far, &in), EXC_GP, SPARE); // gate DPL
    poke(w, GDT + SPARE, make_gate(CS32, 0xb000, SYS_CALL, 3, 0) & ~(1ull << 47), 8);
    assert_fault(try_op(w->v, op_call_far, &in), EXC_NP, SPARE);
    poke(w, GDT + SPARE, make_gate(0, 0xb000, SYS_CALL, 3, 0), 8);
    assert_fault(try_op(w->v, op_call_far, &in), EXC_GP, 0);
    poke(w, GDT + SPARE, make_gate(CS32, 0xb000, SYS_CALL, 3, 0), 8);
    assert_fault(try_op(w->v, op_jmp_far, &in), EXC_GP, CS32); // JMP can't gain privilege
    poke(w, TSS + 8, 0, 2);
    assert_fault(try_op(w->v, op_call_far, &in), EXC_TS, 0);
    poke(w, TSS + 8, READONLY, 2);
    assert_fault(try_op(w->v, op_call_far, &in), EXC_TS, READONLY);
    poke(w, TSS + 8, ABSENT, 2);
    assert_fault(try_op(w->v, op_call_far, &in), EXC_SS, ABSENT);
    w->v->s.tr.limit = 8;
    assert_fault(try_op(w->v, op_call_far, &in), EXC_TS, TSS_SEL);
    assert_int_equal(w->v->s.cpl, 3);
    assert_int_equal(w->v->s.gpr[RSP], USTACK);
}

static void gate_in_long_mode_takes_16_bytes(void **state)
{
    struct world *w = *state;
    struct insn in = {.len = 7,
                      .op_size = 4,
                      .addr_size = 8,
                      .is_mem = 1,
                      .sreg = SEG_DS,
                      .base = -1,
                      .index = -1,
                      .disp = 0x6000};
    enter_long(w, 3);
    poke(w, 0x6004, SPARE | 3, 2);
    poke(w, GDT + SPARE, make_gate(CS64, 0x1000, SYS_CALL, 3, 0), 8);
    poke(w, GDT + SPARE + 8, 0xffff8000, 8);
    poke(w, TSS + 4, KSTACK2, 8);
    assert_int_equal(try_op(w->v, op_call_far, &in), -1);
    assert_true(w->v->s.rip == 0xffff800000001000);
    assert_int_equal(w->v->s.gpr[RSP], KSTACK2 - 32);
    assert_int_equal(w->v->s.seg[SEG_SS].sel, 0);
    const uint64_t frame[4] = {CODE + 7, UCS64, USTACK, UDS};
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(peek(w, KSTACK2 - 32 + 8 * i, 8), frame[i]);
    enter_long(w, 3);
    poke(w, GDT + SPARE + 12, 0x0c00, 4);
    assert_fault(try_op(w->v, op_call_far, &in), EXC_GP, SPARE); // type of the upper half
}

// ---- IRET

static void iret_keeps_what_cpl_may_not_change(void **state)
{
    struct world *w = *state;
    const uint64_t frame[3] = {0x1000, UCS32, 0x3f7fd7 & ~(uint64_t)FL_VM & ~(uint64_t)FL_NT};
    enter_protected(w, 3);
    put_stack(w, 4, 3, frame);
    assert_int_equal(try_op(w->v, op_iret, &plain), -1);
    assert_int_equal(cpu_rflags(w->v), FL_ONE | FL_ARITH | FL_TF | FL_DF | FL_RF | FL_AC | FL_ID);
    assert_int_equal(w->v->s.gpr[RSP], USTACK + 12);
    enter_protected(w, 0);
    cpu_set_rflags(w->v, 0);
    const uint64_t kernel[3] = {0x1000, CS32, frame[2]};
    put_stack(w, 4, 3, kernel);
    assert_int_equal(try_op(w->v, op_iret, &plain), -1);
    assert_int_equal(cpu_rflags(w->v), frame[2]);
}

static void iret_to_v86(void **state)
{
    struct world *w = *state;
    const uint64_t frame[9] = {0x1234, 0x200, FL_VM | FL_IF | FL_IOPL | FL_ONE, 0x777, 0x300, 0x400, 0x500,
                               0x600,  0x700};
    enter_protected(w, 0);
    put_stack(w, 4, 9, frame);
    assert_int_equal(try_op(w->v, op_iret, &plain), -1);
    assert_true(cpu_v86(w->v));
    assert_int_equal(w->v->s.cpl, 3);
    assert_int_equal(w->v->s.rip, 0x1234);
    assert_int_equal(w->v->s.gpr[RSP], 0x777);
    assert_int_equal(w->v->s.seg[SEG_CS].base, 0x2000);
    assert_int_equal(w->v->s.seg[SEG_SS].base, 0x3000);
    assert_int_equal(w->v->s.seg[SEG_ES].base, 0x4000);
    assert_int_equal(w->v->s.seg[SEG_DS].base, 0x5000);
    assert_int_equal(w->v->s.seg[SEG_FS].base, 0x6000);
    assert_int_equal(w->v->s.seg[SEG_GS].base, 0x7000);
    assert_int_equal(w->v->s.seg[SEG_GS].attr, 0xf3);
}

static void iret_in_v86_needs_iopl_3_or_vme(void **state)
{
    struct world *w = *state;
    struct insn in = {.len = 1, .op_size = 2};
    const uint64_t frame[3] = {0x40, 0x300, FL_IF | FL_CF};
    enter_v86(w, 0);
    w->v->s.gpr[RSP] = 0x7f0;
    for (unsigned i = 0; i < 3; i++)
        poke(w, 0x1020 + 0x7f0 + 2 * i, frame[i], 2);
    w->v->s.shadow = SHADOW_NMI;
    assert_fault(try_op(w->v, op_iret, &in), EXC_GP, 0);
    assert_int_equal(w->v->s.shadow, 0); // unblocked all the same
    w->v->s.cr4 |= CR4_VME;
    assert_int_equal(try_op(w->v, op_iret, &in), -1);
    assert_int_equal(cpu_rflags(w->v), FL_VM | FL_VIF | FL_CF | FL_ONE);
    assert_int_equal(w->v->s.seg[SEG_CS].base, 0x3000);
    assert_int_equal(w->v->s.gpr[RSP], 0x7f6);
}

static void iretq_to_user_and_its_checks(void **state)
{
    struct world *w = *state;
    uint64_t frame[5] = {0x7fff0000, UCS64, FL_IF | FL_ONE, 0x7ffffffff000, UDS};
    enter_long(w, 0);
    w->v->s.seg[SEG_GS].base = 0x123456789;
    w->v->s.seg[SEG_GS].sel = 2;
    w->v->s.seg[SEG_GS].attr = SEG_UNUSABLE;
    put_stack(w, 8, 5, frame);
    poke(w, KSTACK + 8, CS32 | 3, 8);
    assert_fault(try_op(w->v, op_iret, &plain64), EXC_GP, CS32); // DPL != RPL
    poke(w, KSTACK + 8, UCS64, 8);
    poke(w, KSTACK + 32, 3, 8);
    assert_fault(try_op(w->v, op_iret, &plain64), EXC_GP, 0); // null SS at CPL 3
    poke(w, KSTACK + 32, DS32, 8);
    assert_fault(try_op(w->v, op_iret, &plain64), EXC_GP, DS32);
    poke(w, KSTACK + 32, UDS, 8);
    poke(w, KSTACK, 0x800000000000, 8);
    assert_fault(try_op(w->v, op_iret, &plain64), EXC_GP, 0);
    assert_int_equal(w->v->s.gpr[RSP], KSTACK);
    poke(w, KSTACK, 0x7fff0000, 8);
    w->v->s.rflags |= FL_NT;
    assert_fault(try_op(w->v, op_iret, &plain64), EXC_GP, 0);
    w->v->s.rflags &= ~(uint64_t)FL_NT;
    assert_int_equal(try_op(w->v, op_iret, &plain64), -1);
    assert_int_equal(w->v->s.cpl, 3);
    assert_int_equal(w->v->s.rip, 0x7fff0000);
    assert_true(w->v->s.gpr[RSP] == 0x7ffffffff000);
    assert_int_equal(w->v->s.iflag, 1);
    assert_int_equal(w->v->s.seg[SEG_GS].sel, 0); // a null selector becomes zero, its base stays
    assert_int_equal(w->v->s.seg[SEG_GS].base, 0x123456789);
}

static void iretq_at_the_same_level_takes_a_null_ss(void **state)
{
    struct world *w = *state;
    const uint64_t frame[5] = {0x1000, CS64, FL_ONE, KSTACK2, 0};
    enter_long(w, 0);
    put_stack(w, 8, 5, frame);
    assert_int_equal(try_op(w->v, op_iret, &plain64), -1);
    assert_int_equal(w->v->s.gpr[RSP], KSTACK2);
    assert_int_equal(w->v->s.seg[SEG_SS].sel, 0);
    assert_true(w->v->s.seg[SEG_SS].attr & SEG_UNUSABLE);
}

static void iretq_to_a_16_bit_stack_keeps_upper_rsp(void **state)
{
    struct world *w = *state;
    const uint64_t frame[5] = {0x1000, UCS32, FL_ONE, 0x12345678, SPARE | 3};
    enter_long(w, 0);
    put_descriptor(w, SPARE, 0, 0xffff, ATTR_DATA | ATTR_USER);
    put_stack(w, 8, 5, frame);
    w->v->s.gpr[RSP] = KSTACK;
    assert_int_equal(try_op(w->v, op_iret, &plain64), -1);
    assert_int_equal(w->v->s.gpr[RSP], (KSTACK & ~0xffffu) | 0x5678);
    assert_false(cpu_code64(w->v));
}

static void iret_frame_that_faults_changes_nothing(void **state)
{
    struct world *w = *state;
    enter_long(w, 0);
    w->v->s.gpr[RSP] = UNMAPPED - 16;
    assert_int_equal(try_op(w->v, op_iret, &plain64), EXC_PF);
    assert_int_equal(w->v->event.cr2, UNMAPPED);
    assert_int_equal(w->v->s.gpr[RSP], UNMAPPED - 16);
    w->v->s.gpr[RSP] = 0x800000000000;
    assert_fault(try_op(w->v, op_iret, &plain64), EXC_SS, 0);
}

// ---- fast system calls

static void syscall_and_sysret_in_long_mode(void **state)
{
    struct world *w = *state;
    struct cpu_state *s = &w->v->s;
    const struct insn in = {.len = 2, .op_size = 4}, out = {.len = 3, .op_size = 8};
    enter_long(w, 3);
    s->star = (uint64_t)0x23 << 48 | (uint64_t)0x10 << 32;
    s->lstar = 0xffffffff81000000;
    s->sfmask = FL_IF | FL_TF | FL_DF;
    cpu_set_rflags(w->v, FL_IF | FL_DF | FL_CF);
    assert_int_equal(try_op(w->v, op_syscall, &in), -1);
    assert_true(s->rip == 0xffffffff81000000);
    assert_int_equal(s->gpr[RCX], CODE + 2);
    assert_int_equal(s->gpr[R11], FL_IF | FL_DF | FL_CF | FL_ONE);
    assert_int_equal(cpu_rflags(w->v), FL_CF | FL_ONE);
    assert_int_equal(s->seg[SEG_CS].sel, 0x10);
    assert_int_equal(s->seg[SEG_SS].sel, 0x18);
    assert_int_equal(s->seg[SEG_CS].attr, 0xa09b);
    assert_int_equal(s->cpl, 0);
    assert_int_equal(s->gpr[RSP], USTACK);
    s->gpr[RCX] = 0x800000000000;
    assert_fault(try_op(w->v, op_sysret, &out), EXC_GP, 0);
    s->gpr[RCX] = 0x1234;
    s->gpr[R11] = ~0ull;
    assert_int_equal(try_op(w->v, op_sysret, &out), -1);
    assert_int_equal(s->rip, 0x1234);
    assert_int_equal(cpu_rflags(w->v), 0x3c7fd7);
    assert_int_equal(s->seg[SEG_CS].sel, 0x33);
    assert_int_equal(s->seg[SEG_SS].sel, 0x2b);
    assert_int_equal(s->seg[SEG_CS].attr, 0xa0fb);
    assert_int_equal(s->cpl, 3);
    assert_fault(try_op(w->v, op_sysret, &out), EXC_GP, 0); // CPL 3
    s->efer &= ~EFER_SCE;
    assert_int_equal(try_op(w->v, op_syscall, &in), EXC_UD);
}

static void syscall_outside_64_bit_code_is_amds(void **state)
{
    struct world *w = *state;
    struct cpu_state *s = &w->v->s;
    enter_long(w, 3);
    set_segment(w, &s->seg[SEG_CS], UCS32);
    s->cstar = 0xffffffff82000000;
    s->star = (uint64_t)0x10 << 32;
    assert_int_equal(try_op(w->v, op_syscall, &plain), EXC_UD);
    w->model->amd = true;
    assert_int_equal(try_op(w->v, op_syscall, &plain), -1);
    assert_true(s->rip == 0xffffffff82000000);
    enter_protected(w, 3);
    s->efer = EFER_SCE;
    s->cr0 &= ~CR0_PG;
    s->star = (uint64_t)0x10 << 32 | 0x5000;
    assert_int_equal(try_op(w->v, op_syscall, &plain), -1);
    assert_int_equal(s->rip, 0x5000);
    assert_int_equal(s->seg[SEG_CS].attr, 0xc09b);
}

static void sysenter_and_sysexit(void **state)
{
    struct world *w = *state;
    struct cpu_state *s = &w->v->s;
    w->model->features[CPU_SEP / 64] |= 1ull << (CPU_SEP % 64);
    enter_protected(w, 3);
    assert_fault(try_op(w->v, op_sysenter, &plain), EXC_GP, 0); // SYSENTER_CS is null
    s->sysenter_cs = 0x60;
    s->sysenter_esp = KSTACK;
    s->sysenter_eip = 0xb000;
    s->iflag = 1;
    assert_int_equal(try_op(w->v, op_sysenter, &plain), -1);
    assert_int_equal(s->rip, 0xb000);
    assert_int_equal(s->gpr[RSP], KSTACK);
    assert_int_equal(s->seg[SEG_CS].sel, 0x60);
    assert_int_equal(s->seg[SEG_SS].sel, 0x68);
    assert_int_equal(s->seg[SEG_CS].attr, 0xc09b);
    assert_int_equal(s->iflag, 0);
    s->gpr[RDX] = 0x1000;
    s->gpr[RCX] = USTACK;
    assert_int_equal(try_op(w->v, op_sysexit, &plain), -1);
    assert_int_equal(s->seg[SEG_CS].sel, 0x73);
    assert_int_equal(s->seg[SEG_SS].sel, 0x7b);
    assert_int_equal(s->rip, 0x1000);
    assert_int_equal(s->gpr[RSP], USTACK);
    assert_int_equal(s->cpl, 3);
    assert_fault(try_op(w->v, op_sysexit, &plain), EXC_GP, 0);
    enter_long(w, 3);
    w->model->amd = true;
    assert_int_equal(try_op(w->v, op_sysenter, &plain), EXC_UD);
    w->model->amd = false;
    assert_int_equal(try_op(w->v, op_sysenter, &plain), -1);
    assert_int_equal(s->seg[SEG_CS].attr, 0xa09b);
    assert_int_equal(try_op(w->v, op_sysexit, &plain64), -1);
    assert_int_equal(s->seg[SEG_CS].sel, 0x83);
    assert_int_equal(s->seg[SEG_SS].sel, 0x8b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(real_mode_call_and_return),
        TEST(first_jump_into_protected_mode),
        TEST(direct_jump_checks_privilege),
        TEST(call_pushes_before_it_commits),
        TEST(memory_operand_m16_64_is_intels),
        TEST(non_canonical_target_faults),
        TEST(gate_to_an_inner_level_copies_parameters),
        TEST(gate_checks),
        TEST(gate_in_long_mode_takes_16_bytes),
        TEST(iret_keeps_what_cpl_may_not_change),
        TEST(iret_to_v86),
        TEST(iret_in_v86_needs_iopl_3_or_vme),
        TEST(iretq_to_user_and_its_checks),
        TEST(iretq_at_the_same_level_takes_a_null_ss),
        TEST(iretq_to_a_16_bit_stack_keeps_upper_rsp),
        TEST(iret_frame_that_faults_changes_nothing),
        TEST(syscall_and_sysret_in_long_mode),
        TEST(syscall_outside_64_bit_code_is_amds),
        TEST(sysenter_and_sysexit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
