// IN OUT INS OUTS: permissions, widths, repetition.
#include "model_fixture.h"

static struct {
    unsigned reads, writes;
    uint16_t port;
    unsigned size;
    uint32_t value[16], next;
    struct vcpu *interrupt_after_1;
} io;

static uint32_t port_read(void *opaque, uint16_t port, unsigned size)
{
    (void)opaque;
    io.reads++;
    io.port = port;
    io.size = size;
    return io.next += 0x01010101;
}

static void port_write(void *opaque, uint16_t port, unsigned size, uint32_t value)
{
    (void)opaque;
    io.value[io.writes++ % 16] = value;
    io.port = port;
    io.size = size;
    if (io.interrupt_after_1)
        raise_request(io.interrupt_after_1, REQ_INTR);
}

static int setup(void **state)
{
    intel_setup(state);
    struct world *w = *state;
    memset(&io, 0, sizeof io);
    w->v->exits.port_read = port_read;
    w->v->exits.port_write = port_write;
    poke(w, TSS + 0x66, 0x68, 2); // the bitmap follows the TSS
    w->v->s.tr.limit = 0x68 + 0x100;
    return 0;
}

static struct insn in_dx(unsigned op, unsigned size)
{
    return (struct insn){.op = (uint8_t)op, .op_size = (uint8_t)size, .reg = 1};
}

static void accumulator_keeps_what_the_width_leaves_alone(void **state)
{
    struct world *w = *state;
    uint64_t *r = w->v->s.gpr;
    enter_long(w, 0);
    r[RDX] = 0xffffffffffff03f8;
    r[RAX] = 0x1122334455667788;
    assert_int_equal(run(w, in_dx(OP_IN, 1)), -1);
    assert_int_equal(r[RAX], 0x1122334455667701);
    assert_int_equal(io.port, 0x3f8);
    assert_int_equal(run(w, in_dx(OP_IN, 2)), -1);
    assert_int_equal(r[RAX], 0x1122334455660202);
    assert_int_equal(run(w, in_dx(OP_IN, 8)), -1); // REX.W does not widen
    assert_int_equal(r[RAX], 0x03030303);
    assert_int_equal(io.size, 4);
    assert_int_equal(run(w, (struct insn){.op = OP_OUT, .op_size = 2, .imm = 0x80}), -1);
    assert_int_equal(io.port, 0x80);
    assert_int_equal(io.value[0], 0x0303);
}

static void iopl_and_the_bitmap_guard_ports(void **state)
{
    struct world *w = *state;
    enter_protected(w, 3);
    w->v->s.gpr[RDX] = 0x13;
    assert_int_equal(run(w, in_dx(OP_IN, 4)), -1); // bits 13h-16h, across a byte, all zero
    poke(w, TSS + 0x68 + 2, 1 << 6, 1);            // port 16h
    assert_fault(run(w, in_dx(OP_IN, 4)), EXC_GP, 0);
    assert_int_equal(run(w, in_dx(OP_IN, 2)), -1);
    w->v->s.rflags |= 3 << 12;
    assert_int_equal(run(w, in_dx(OP_IN, 4)), -1);
    w->v->s.rflags &= ~FL_IOPL;
    w->v->s.gpr[RDX] = 0x7f8; // its second byte lies at the limit
    assert_int_equal(run(w, in_dx(OP_IN, 1)), -1);
    w->v->s.gpr[RDX] = 0x800;
    assert_fault(run(w, in_dx(OP_IN, 1)), EXC_GP, 0);
    w->v->s.gpr[RDX] = 0x20;
    w->v->s.tr.attr = SEG_P | SYS_TSS16_BUSY;
    assert_fault(run(w, in_dx(OP_OUT, 1)), EXC_GP, 0);
    assert_int_equal(io.writes, 0);
    enter_v86(w, 3);
    assert_fault(run(w, in_dx(OP_IN, 1)), EXC_GP, 0); // v8086 mode: always the bitmap
    w->v->s.tr.attr = SEG_P | SYS_TSS_BUSY;
    assert_int_equal(run(w, in_dx(OP_IN, 1)), -1);
}

static struct insn string_op(unsigned op, unsigned size, unsigned rep)
{
    return (struct insn){
        .op = (uint8_t)op, .op_size = (uint8_t)size, .addr_size = 4, .rep = (uint8_t)rep, .sreg = SEG_DS};
}

static void rep_outs_writes_each_element_in_order(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    poke(w, 0x6000, 0x0807060504030201, 8);
    w->v->s.gpr[RSI] = 0xdead00006000;
    w->v->s.gpr[RCX] = 0xdead00000004;
    w->v->s.gpr[RDX] = 0xe9;
    assert_int_equal(run(w, string_op(OP_OUTS, 2, 0xf3)), -1);
    assert_int_equal(io.writes, 4);
    assert_int_equal(io.value[3], 0x0807);
    assert_int_equal(w->v->s.gpr[RSI], 0x6008);
    assert_int_equal(w->v->s.gpr[RCX], 0);
    assert_int_equal(w->v->s.rip, CODE + 2);
    w->v->s.dflag = 1;
    w->v->s.gpr[RSI] = 0x6007;
    w->v->s.gpr[RCX] = 2;
    assert_int_equal(run(w, string_op(OP_OUTS, 1, 0xf3)), -1);
    assert_int_equal(io.value[4], 8);
    assert_int_equal(io.value[5], 7);
    assert_int_equal(w->v->s.gpr[RSI], 0x6005);
}

static void sixteen_bit_addressing_wraps_and_keeps_upper_halves(void **state)
{
    struct world *w = *state;
    enter_real(w);
    w->v->s.gpr[RDI] = 0x1122ffff;
    w->v->s.gpr[RCX] = 0x33440002;
    w->v->s.gpr[RDX] = 0x60;
    struct insn in = string_op(OP_INS, 1, 0xf3);
    in.addr_size = 2;
    assert_int_equal(run(w, in), -1);
    assert_int_equal(w->v->s.gpr[RDI], 0x11220001);
    assert_int_equal(w->v->s.gpr[RCX], 0x33440000);
    assert_int_equal(peek(w, 0x1000 + 0xffff, 1), 1);
    assert_int_equal(peek(w, 0x1000, 1), 2);
}

static void repetition_yields_to_requests_and_resumes(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    io.interrupt_after_1 = w->v;
    w->v->s.gpr[RSI] = 0x6000;
    w->v->s.gpr[RCX] = 3;
    for (unsigned left = 2; left; left--) {
        assert_int_equal(run(w, string_op(OP_OUTS, 1, 0xf3)), -1);
        assert_int_equal(w->v->s.gpr[RCX], left);
        assert_int_equal(w->v->s.rip, CODE);
    }
    assert_int_equal(run(w, string_op(OP_OUTS, 1, 0xf3)), -1);
    assert_int_equal(w->v->s.rip, CODE + 2);
    assert_int_equal(io.writes, 3);
    w->v->requests = 0;
    io.interrupt_after_1 = NULL;
    w->v->s.rflags |= FL_TF; // single step: one iteration each
    w->v->s.rip = CODE;
    w->v->s.gpr[RCX] = 2;
    assert_int_equal(run(w, string_op(OP_OUTS, 1, 0xf3)), -1);
    assert_int_equal(w->v->s.rip, CODE);
    assert_int_equal(run(w, string_op(OP_OUTS, 1, 0xf3)), -1);
    assert_int_equal(w->v->s.rip, CODE + 2);
}

static void rep_with_zero_count_touches_no_port(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    w->v->s.gpr[RCX] = 0xffffffff00000000;
    w->v->s.gpr[RDI] = 0xf0000000;
    assert_int_equal(run(w, string_op(OP_INS, 4, 0xf3)), -1);
    assert_int_equal(io.reads, 0);
    assert_int_equal(w->v->s.rip, CODE + 2);
}

static void ins_faults_before_it_reads_the_port(void **state)
{
    struct world *w = *state;
    enter_protected(w, 0);
    w->v->s.seg[SEG_ES].limit = 0x6001;
    w->v->s.gpr[RDI] = 0x6000;
    w->v->s.gpr[RCX] = 2;
    assert_fault(run(w, string_op(OP_INS, 2, 0xf3)), EXC_GP, 0);
    assert_int_equal(io.reads, 1); // the first element fitted
    assert_int_equal(w->v->s.gpr[RCX], 1);
    assert_int_equal(w->v->s.gpr[RDI], 0x6002);
    assert_int_equal(w->v->s.rip, CODE);
    enter_long(w, 0);
    struct insn in = string_op(OP_INS, 4, 0);
    in.addr_size = 8;
    w->v->s.gpr[RDI] = UNMAPPED - 2;
    assert_int_equal(run(w, in), EXC_PF);
    assert_int_equal(w->v->event.cr2, UNMAPPED);
    assert_int_equal(io.reads, 1);
}

#define IO_TEST(name) cmocka_unit_test_setup_teardown(name, setup, world_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IO_TEST(accumulator_keeps_what_the_width_leaves_alone),
        IO_TEST(iopl_and_the_bitmap_guard_ports),
        IO_TEST(rep_outs_writes_each_element_in_order),
        IO_TEST(sixteen_bit_addressing_wraps_and_keeps_upper_halves),
        IO_TEST(repetition_yields_to_requests_and_resumes),
        IO_TEST(rep_with_zero_count_touches_no_port),
        IO_TEST(ins_faults_before_it_reads_the_port),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
