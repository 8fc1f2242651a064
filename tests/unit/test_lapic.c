// The local APIC as a kernel drives it, with a stepped clock.
#include "model_fixture.h"
#include "cpu/lapic.h"
#include "devices/chips.h"

#define EOI 0xb0
#define SVR 0xf0
#define ISR 0x100
#define TMR 0x180
#define IRR 0x200
#define ESR 0x280
#define ICR 0x300
#define LVT_TIMER 0x320
#define LVT_LINT0 0x350
#define LVT_ERROR 0x370
#define INITIAL 0x380
#define CURRENT 0x390
#define DIVIDE 0x3e0

static struct {
    uint64_t now, passes_ns; // what passes with every look at the clock
    struct timer_queue queue;
    uint32_t requests;
    unsigned eois;
    uint8_t eoi_vector;
    struct lapic *l;
} t;

static uint64_t now(void *opaque)
{
    (void)opaque;
    t.now += t.passes_ns;
    return t.now;
}

static void request(void *opaque, uint32_t bits)
{
    (void)opaque;
    t.requests |= bits;
}

static void eoi(void *opaque, uint8_t vector)
{
    (void)opaque;
    t.eois++;
    t.eoi_vector = vector;
}

static int setup(void **state)
{
    intel_setup(state);
    struct world *w = *state;
    memset(&t, 0, sizeof t);
    t.now = 1000;
    t.queue.now = now;
    t.l = lapic_create(w->v, &t.queue, request, eoi, NULL);
    assert_non_null(t.l);
    w->v->lapic = t.l;
    return 0;
}

static int teardown(void **state)
{
    lapic_destroy(t.l);
    return world_teardown(state);
}

static void step(uint64_t ns)
{
    t.now += ns;
    timer_run(&t.queue);
}

static uint32_t reg(unsigned offset) { return (uint32_t)lapic_mmio_read(t.l, offset, 4); }
static void set(unsigned offset, uint32_t value) { lapic_mmio_write(t.l, offset, 4, value); }
static void enable(void) { set(SVR, 0x1ff); }
static void post(uint8_t vector, bool level)
{
    struct apic_message m = {.vector = vector, .level_triggered = level, .destination = 0};
    assert_true(lapic_deliver(t.l, &m));
}

static void reset_values_are_those_of_the_manual(void **state)
{
    (void)state;
    assert_int_equal(reg(0x20), 0);
    assert_int_equal(reg(0x30), 0x50014);
    assert_int_equal(reg(0x80), 0);
    assert_int_equal(reg(0xd0), 0);
    assert_int_equal(reg(0xe0), 0xffffffff);
    assert_int_equal(reg(SVR), 0xff);
    assert_int_equal(reg(LVT_TIMER), 0x10000);
    assert_int_equal(reg(LVT_LINT0), 0x700); // virtual wire, as firmware leaves the boot CPU
    assert_int_equal(reg(LVT_ERROR), 0x10000);
    assert_int_equal(reg(INITIAL), 0);
    assert_true(lapic_accepts_pic(t.l));
    assert_int_equal(lapic_pending(t.l), -1);
}

static void interrupts_nest_by_priority_class(void **state)
{
    (void)state;
    enable();
    post(0x41, false);
    post(0x52, false);
    assert_int_equal(t.requests, REQ_INTR);
    assert_int_equal(lapic_pending(t.l), 0x52);
    assert_int_equal(lapic_ack(t.l), 0x52);
    assert_int_equal(lapic_pending(t.l), -1); // 0x41 is of a lower class
    post(0x5f, false);
    assert_int_equal(lapic_pending(t.l), -1); // same class
    post(0x61, false);
    assert_int_equal(lapic_ack(t.l), 0x61);
    assert_int_equal(reg(0xa0), 0x60);
    assert_int_equal(reg(ISR + 0x20), 1 << 18);
    assert_int_equal(reg(ISR + 0x30), 1 << 1);
    assert_int_equal(reg(IRR + 0x20), 1u << 31 | 1 << 1);
    set(EOI, 0);
    assert_int_equal(lapic_pending(t.l), -1);
    t.requests = 0;
    set(EOI, 0);
    assert_int_equal(t.requests, REQ_INTR);
    assert_int_equal(lapic_ack(t.l), 0x5f);
    set(EOI, 0);
    assert_int_equal(lapic_ack(t.l), 0x41);
    set(EOI, 0);
    assert_int_equal(t.eois, 0); // edge-triggered: no broadcast
}

static void tpr_holds_back_its_class_and_below(void **state)
{
    (void)state;
    enable();
    lapic_set_tpr(t.l, 0x40);
    post(0x4f, false);
    assert_int_equal(lapic_pending(t.l), -1);
    t.requests = 0;
    set(0x80, 0x3f);
    assert_int_equal(t.requests, REQ_INTR);
    assert_int_equal(lapic_pending(t.l), 0x4f);
    assert_int_equal(reg(0xa0), 0x3f);
    assert_int_equal(lapic_tpr(t.l), 0x3f);
}

static void eoi_of_a_level_vector_is_broadcast(void **state)
{
    (void)state;
    enable();
    post(0x33, true);
    assert_int_equal(reg(TMR + 0x10), 1 << 19);
    assert_int_equal(lapic_ack(t.l), 0x33);
    set(EOI, 0);
    assert_int_equal(t.eois, 1);
    assert_int_equal(t.eoi_vector, 0x33);
    post(0x33, false);
    assert_int_equal(reg(TMR + 0x10), 0);
}

static void software_disable_masks_and_delivers_nothing(void **state)
{
    (void)state;
    struct apic_message m = {.vector = 0x40};
    assert_false(lapic_deliver(t.l, &m));
    enable();
    set(LVT_TIMER, 0x40);
    assert_int_equal(reg(LVT_TIMER), 0x40);
    set(SVR, 0xff);
    assert_int_equal(reg(LVT_TIMER), 0x10040);
    set(LVT_TIMER, 0x41);
    assert_int_equal(reg(LVT_TIMER), 0x10041);
    m = (struct apic_message){.delivery_mode = 4};
    assert_true(lapic_deliver(t.l, &m)); // NMI passes
    assert_int_equal(t.requests, REQ_NMI);
}

static void logical_destinations_match_flat_and_cluster(void **state)
{
    (void)state;
    enable();
    set(0xd0, 0x04000000);
    struct apic_message m = {.vector = 0x40, .dest_logical = 1, .destination = 4};
    assert_true(lapic_deliver(t.l, &m));
    m.destination = 0xb;
    assert_false(lapic_deliver(t.l, &m));
    set(0xe0, 0x0fffffff); // cluster
    set(0xd0, 0x21000000);
    m.destination = 0x23;
    assert_true(lapic_deliver(t.l, &m));
    m.destination = 0x13;
    assert_false(lapic_deliver(t.l, &m));
    m.destination = 0xff;
    assert_true(lapic_deliver(t.l, &m));
    m = (struct apic_message){.vector = 0x40, .destination = 1};
    assert_false(lapic_deliver(t.l, &m));
}

static void ipis_reach_this_cpu_by_shorthand_and_destination(void **state)
{
    (void)state;
    enable();
    set(ICR, 0x40000 | 0x51); // self
    assert_int_equal(lapic_ack(t.l), 0x51);
    set(EOI, 0);
    set(ICR, 0xc0000 | 0x52); // all but self
    assert_int_equal(lapic_pending(t.l), -1);
    set(ICR + 0x10, 0);
    set(ICR, 0x53); // physical 0
    assert_int_equal(lapic_ack(t.l), 0x53);
    set(EOI, 0);
    set(ICR + 0x10, 0x01000000);
    set(ICR, 0x54);
    assert_int_equal(lapic_pending(t.l), -1);
    assert_int_equal(reg(ICR), 0x54); // delivery status idle
    t.requests = 0;
    set(ICR, 0x80000 | 0x400); // NMI to all
    assert_int_equal(t.requests, REQ_NMI);
    t.requests = 0;
    set(ICR, 0x88500); // INIT de-assert: nothing
    assert_int_equal(t.requests, 0);
}

static void errors_show_after_a_write_of_esr_and_interrupt_once(void **state)
{
    (void)state;
    enable();
    set(LVT_ERROR, 0xfe);
    set(ICR, 0x40000 | 3); // illegal vector
    assert_int_equal(lapic_pending(t.l), 0xfe);
    assert_int_equal(reg(ESR), 0);
    set(ESR, 0);
    assert_int_equal(reg(ESR), 0x20);
    set(ESR, 0);
    assert_int_equal(reg(ESR), 0);
    reg(0x3f0);
    set(ESR, 0);
    assert_int_equal(reg(ESR), 0x80);
    set(LVT_ERROR, 5); // an illegal vector here must not recurse
    set(LVT_TIMER, 5);
    set(DIVIDE, 0xb);
    set(INITIAL, 10);
    step(10);
    set(ESR, 0);
    assert_int_equal(reg(ESR), 0x40);
}

static void one_shot_timer_counts_at_1_ghz_over_the_divider(void **state)
{
    (void)state;
    enable();
    set(LVT_TIMER, 0x40);
    static const struct {
        uint32_t config, divisor;
    } dividers[] = {{0xb, 1}, {0, 2}, {1, 4}, {2, 8}, {3, 16}, {8, 32}, {9, 64}, {0xa, 128}};
    for (unsigned i = 0; i < 8; i++) {
        set(DIVIDE, dividers[i].config);
        set(INITIAL, 1000);
        assert_int_equal(reg(CURRENT), 1000);
        step(400 * dividers[i].divisor);
        assert_int_equal(reg(CURRENT), 600);
        step(600 * dividers[i].divisor - 1);
        assert_int_equal(lapic_pending(t.l), -1);
        assert_int_equal(reg(CURRENT), 1);
        step(1);
        assert_int_equal(lapic_ack(t.l), 0x40);
        assert_int_equal(reg(CURRENT), 0);
        set(EOI, 0);
    }
    assert_int_equal(t.queue.head == NULL, 1);
}

static void a_count_that_passes_while_it_is_set_still_interrupts(void **state)
{
    (void)state;
    enable();
    set(LVT_TIMER, 0x40);
    set(DIVIDE, 0xb);
    t.passes_ns = 5000; // the host had something else to do
    set(INITIAL, 1000);
    step(1);
    assert_int_equal(lapic_ack(t.l), 0x40);
    set(EOI, 0);
    t.passes_ns = 0;
    set(INITIAL, 7000);
    t.passes_ns = 900;
    set(DIVIDE, 0); // the rest lasts longer, then shorter
    set(DIVIDE, 0xb);
    step(20000);
    assert_int_equal(lapic_ack(t.l), 0x40);
}

static void periodic_timer_keeps_its_phase_and_owes_what_came_late(void **state)
{
    (void)state;
    enable();
    set(DIVIDE, 0xb);
    set(LVT_TIMER, 0x20040);
    set(INITIAL, 100000);
    uint64_t start = t.now;
    step(100000);
    assert_int_equal(lapic_ack(t.l), 0x40);
    set(EOI, 0);
    step(250000); // the host is late: two interrupts, the second a quarter of a period later
    assert_int_equal(lapic_ack(t.l), 0x40);
    set(EOI, 0);
    assert_int_equal(reg(CURRENT), 50000);
    assert_int_equal(lapic_pending(t.l), -1);
    assert_int_equal(t.queue.head->deadline_ns, start + 375000);
    step(25000);
    assert_int_equal(lapic_ack(t.l), 0x40);
    set(EOI, 0);
    assert_int_equal(reg(CURRENT), 25000);
    assert_int_equal(t.queue.head->deadline_ns, start + 400000);
    step(24999);
    assert_int_equal(lapic_pending(t.l), -1);
    step(1);
    assert_int_equal(lapic_pending(t.l), 0x40);
    set(INITIAL, 0); // stops
    assert_null(t.queue.head);
}

static void periods_the_guest_keeps_waiting_merge(void **state)
{
    (void)state;
    enable();
    set(DIVIDE, 0xb);
    set(LVT_TIMER, 0x20040);
    set(INITIAL, 100000);
    for (unsigned i = 0; i < 5; i++)
        step(100000);
    assert_int_equal(lapic_ack(t.l), 0x40);
    set(EOI, 0);
    step(99999);
    assert_int_equal(lapic_pending(t.l), -1);
    step(1);
    assert_int_equal(lapic_pending(t.l), 0x40);
}

static void masked_timer_counts_without_interrupting(void **state)
{
    (void)state;
    enable();
    set(DIVIDE, 0xb);
    set(LVT_TIMER, 0x10040);
    set(INITIAL, 100);
    step(50);
    assert_int_equal(reg(CURRENT), 50);
    step(50);
    assert_int_equal(lapic_pending(t.l), -1);
    assert_int_equal(reg(CURRENT), 0);
}

static void changing_the_divider_keeps_the_count(void **state)
{
    (void)state;
    enable();
    set(LVT_TIMER, 0x40);
    set(DIVIDE, 0xb);
    set(INITIAL, 1000);
    step(400);
    set(DIVIDE, 0); // by 2
    assert_int_equal(reg(CURRENT), 600);
    step(1199);
    assert_int_equal(lapic_pending(t.l), -1);
    step(1);
    assert_int_equal(lapic_pending(t.l), 0x40);
}

static void tsc_deadline_fires_when_the_tsc_is_there(void **state)
{
    struct world *w = *state;
    uint64_t value;
    enable();
    assert_true(lapic_msr_write(t.l, 0x6e0, cpu_tsc(w->v) + 1000)); // ignored in one-shot mode
    assert_true(lapic_msr_read(t.l, 0x6e0, &value));
    assert_int_equal(value, 0);
    set(LVT_TIMER, 0x40040);
    uint64_t deadline = cpu_tsc(w->v) + 1000ull * 2500000000; // 1000 s
    assert_true(lapic_msr_write(t.l, 0x6e0, deadline));
    assert_true(lapic_msr_read(t.l, 0x6e0, &value));
    assert_int_equal(value, deadline);
    assert_in_range(t.queue.head->deadline_ns, t.now + 999900000000, t.now + 1000000001000);
    set(INITIAL, 100); // ignored
    assert_int_equal(reg(CURRENT), 0);
    step(500000000000);
    assert_int_equal(lapic_pending(t.l), -1);
    step(500000001000); // the clock is there, the TSC is not: no early interrupt
    assert_int_equal(lapic_pending(t.l), -1);
    assert_non_null(t.queue.head);
    w->v->s.tsc_offset += 1000ull * 2500000000;
    step(1000000000000);
    assert_int_equal(lapic_ack(t.l), 0x40);
    assert_true(lapic_msr_read(t.l, 0x6e0, &value));
    assert_int_equal(value, 0);
    assert_null(t.queue.head);
    assert_true(lapic_msr_write(t.l, 0x6e0, 1)); // in the past: at once
    step(0);
    set(EOI, 0);
    assert_int_equal(lapic_pending(t.l), 0x40);
    assert_true(lapic_msr_write(t.l, 0x6e0, ~0ull >> 1)); // centuries ahead: no overflow
    step(1000);
    assert_int_equal(lapic_msr_write(t.l, 0x6e0, 0), 1);
    assert_null(t.queue.head);
}

static void writing_the_tsc_moves_the_armed_deadline(void **state)
{
    struct world *w = *state;
    enable();
    set(LVT_TIMER, 0x40040);
    uint64_t tsc = cpu_tsc(w->v);
    assert_true(lapic_msr_write(t.l, 0x6e0, tsc + 2500000000000));
    assert_int_equal(try_wrmsr(w, 0x3b, 1250000000000), -1);
    assert_in_range(t.queue.head->deadline_ns, t.now + 499900000000, t.now + 500000001000);
}

static void x2apic_is_entered_from_xapic_and_left_by_disabling(void **state)
{
    struct world *w = *state;
    uint64_t value;
    assert_int_equal(try_rdmsr(w, 0x802, &value), EXC_GP); // not yet
    assert_int_equal(rdmsr(w, 0x1b), 0xfee00900);
    assert_int_equal(try_wrmsr(w, 0x1b, 0xfee00500), EXC_GP); // EXTD without EN
    assert_int_equal(try_wrmsr(w, 0x1b, 0xfee00901), EXC_GP); // reserved
    assert_int_equal(try_wrmsr(w, 0x1b, 0xfee00d00), -1);
    assert_int_equal(rdmsr(w, 0x802), 0);
    assert_int_equal(rdmsr(w, 0x80d), 1);
    assert_int_equal(reg(SVR), 0xffffffff); // the page is gone
    assert_int_equal(try_wrmsr(w, 0x1b, 0xfee00900), EXC_GP);
    assert_int_equal(try_wrmsr(w, 0x1b, 0xfee00100), -1);
    assert_int_equal(try_rdmsr(w, 0x802, &value), EXC_GP);
    assert_int_equal(try_wrmsr(w, 0x1b, 0xfee00d00), EXC_GP); // disabled to x2APIC
    assert_int_equal(try_wrmsr(w, 0x1b, 0xfee00900), -1);
    assert_int_equal(reg(SVR), 0xff);
}

static void x2apic_registers_fault_on_what_is_reserved(void **state)
{
    struct world *w = *state;
    uint64_t value;
    assert_int_equal(try_wrmsr(w, 0x1b, 0xfee00d00), -1);
    assert_int_equal(try_wrmsr(w, 0x80f, 0x1ff), -1);
    assert_int_equal(try_wrmsr(w, 0x80f, 0x11ff), EXC_GP);
    assert_int_equal(try_wrmsr(w, 0x80b, 1), EXC_GP);
    assert_int_equal(try_rdmsr(w, 0x80b, &value), EXC_GP);
    assert_int_equal(try_wrmsr(w, 0x802, 0), EXC_GP);
    assert_int_equal(try_rdmsr(w, 0x80e, &value), EXC_GP); // no DFR
    assert_int_equal(try_rdmsr(w, 0x831, &value), EXC_GP); // no ICR2
    assert_int_equal(try_rdmsr(w, 0x83f, &value), EXC_GP);
    assert_int_equal(try_wrmsr(w, 0x83f, 0x100), EXC_GP);
    assert_int_equal(try_wrmsr(w, 0x832, 0x80000040), EXC_GP);
    assert_int_equal(try_wrmsr(w, 0x83f, 0x77), -1); // self IPI
    assert_int_equal(lapic_ack(t.l), 0x77);
    assert_int_equal(try_wrmsr(w, 0x80b, 0), -1);
    assert_int_equal(try_wrmsr(w, 0x830, 0x78), -1); // destination 0
    assert_int_equal(rdmsr(w, 0x830), 0x78);
    assert_int_equal(lapic_ack(t.l), 0x78);
    assert_int_equal(try_wrmsr(w, 0x830, 1ull << 32 | 0x79), -1); // another CPU
    assert_int_equal(rdmsr(w, 0x823), 0);
    assert_int_equal(try_wrmsr(w, 0x830, 0x1000), EXC_GP);
    assert_int_equal(try_wrmsr(w, 0x838, 1ull << 32), EXC_GP);
}

static void lint0_brings_the_8259_or_a_vector(void **state)
{
    (void)state;
    enable();
    set(LVT_LINT0, 0x700);
    lapic_set_lint0(t.l, 1);
    assert_int_equal(t.requests, REQ_INTR);
    assert_true(lapic_accepts_pic(t.l));
    assert_int_equal(lapic_pending(t.l), -1);
    lapic_set_lint0(t.l, 0);
    set(LVT_LINT0, 0x10700);
    assert_false(lapic_accepts_pic(t.l));
    set(LVT_LINT0, 0x44); // fixed, edge
    lapic_set_lint0(t.l, 1);
    lapic_set_lint0(t.l, 1);
    assert_int_equal(lapic_ack(t.l), 0x44);
    assert_int_equal(lapic_pending(t.l), -1);
    t.requests = 0;
    lapic_set_lint0(t.l, 0);
    set(LVT_LINT0, 0x400);
    lapic_set_lint0(t.l, 1);
    assert_int_equal(t.requests, REQ_NMI);
}

static void a_disabled_apic_is_a_wire_from_the_8259(void **state)
{
    struct world *w = *state;
    enable();
    set(LVT_LINT0, 0x10000);
    assert_false(lapic_accepts_pic(t.l));
    assert_int_equal(try_wrmsr(w, 0x1b, 0xfee00100), -1);
    assert_true(lapic_accepts_pic(t.l));
    struct apic_message m = {.vector = 0x40};
    assert_false(lapic_deliver(t.l, &m));
}

static void narrow_and_unaligned_accesses_do_nothing_harmful(void **state)
{
    (void)state;
    enable();
    assert_int_equal(lapic_mmio_read(t.l, 0x31, 1), 0x00);
    assert_int_equal(lapic_mmio_read(t.l, 0x32, 1), 0x05);
    assert_int_equal(lapic_mmio_read(t.l, 0x34, 4), 0);
    lapic_mmio_write(t.l, 0x80, 1, 0x55);
    lapic_mmio_write(t.l, 0x84, 4, 0x55);
    assert_int_equal(reg(0x80), 0);
    assert_int_equal(lapic_mmio_read(t.l, 0xffffffffffffff30, 4), 0); // any offset is safe
    lapic_mmio_write(t.l, 0xfffffffffffffff0, 4, 1);
}

static void state_survives_a_stream(void **state)
{
    (void)state;
    struct stream s;
    enable();
    set(DIVIDE, 0xb);
    set(LVT_TIMER, 0x20040);
    set(INITIAL, 100000);
    post(0x33, true);
    step(30000);
    stream_init_save(&s);
    lapic_state(t.l, &s);
    assert_int_equal(s.error, 0);
    lapic_reset(t.l);
    assert_null(t.queue.head);
    struct stream in;
    stream_init_load(&in, s.data, s.size);
    lapic_state(t.l, &in);
    assert_int_equal(in.error, 0);
    assert_int_equal(reg(CURRENT), 70000);
    assert_int_equal(lapic_ack(t.l), 0x33);
    assert_int_equal(t.queue.head->deadline_ns, t.now + 70000);
    stream_free(&s);
}

#define LAPIC_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        LAPIC_TEST(reset_values_are_those_of_the_manual),
        LAPIC_TEST(interrupts_nest_by_priority_class),
        LAPIC_TEST(tpr_holds_back_its_class_and_below),
        LAPIC_TEST(eoi_of_a_level_vector_is_broadcast),
        LAPIC_TEST(software_disable_masks_and_delivers_nothing),
        LAPIC_TEST(logical_destinations_match_flat_and_cluster),
        LAPIC_TEST(ipis_reach_this_cpu_by_shorthand_and_destination),
        LAPIC_TEST(errors_show_after_a_write_of_esr_and_interrupt_once),
        LAPIC_TEST(one_shot_timer_counts_at_1_ghz_over_the_divider),
        LAPIC_TEST(a_count_that_passes_while_it_is_set_still_interrupts),
        LAPIC_TEST(periodic_timer_keeps_its_phase_and_owes_what_came_late),
        LAPIC_TEST(periods_the_guest_keeps_waiting_merge),
        LAPIC_TEST(masked_timer_counts_without_interrupting),
        LAPIC_TEST(changing_the_divider_keeps_the_count),
        LAPIC_TEST(tsc_deadline_fires_when_the_tsc_is_there),
        LAPIC_TEST(writing_the_tsc_moves_the_armed_deadline),
        LAPIC_TEST(x2apic_is_entered_from_xapic_and_left_by_disabling),
        LAPIC_TEST(x2apic_registers_fault_on_what_is_reserved),
        LAPIC_TEST(lint0_brings_the_8259_or_a_vector),
        LAPIC_TEST(a_disabled_apic_is_a_wire_from_the_8259),
        LAPIC_TEST(narrow_and_unaligned_accesses_do_nothing_harmful),
        LAPIC_TEST(state_survives_a_stream),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
