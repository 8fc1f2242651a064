// The MSR policy, and the instructions that reach MSRs, counters and bases.
#include "model_fixture.h"

static struct {
    unsigned count;
    uint64_t msr, value;
} traced;

static void note(void *opaque, const char *what, uint64_t a, uint64_t b)
{
    (void)opaque, (void)what;
    traced.count++;
    traced.msr = a;
    traced.value = b;
}

static void unknown_msrs_fault_and_are_traced(void **state)
{
    struct world *w = *state;
    uint64_t value;
    traced.count = 0;
    w->v->exits.trace = note;
    assert_fault(try_rdmsr(w, 0x1234, &value), EXC_GP, 0);
    assert_int_equal(traced.count, 1);
    assert_int_equal(traced.msr, 0x1234);
    assert_fault(try_wrmsr(w, 0xc0011234, 7), EXC_GP, 0);
    assert_int_equal(traced.count, 2);
    assert_int_equal(traced.value, 7);
}

static void read_only_msrs_refuse_writes(void **state)
{
    struct world *w = *state;
    assert_int_equal(rdmsr(w, 0xfe), 0x508);
    assert_fault(try_wrmsr(w, 0xfe, 0x508), EXC_GP, 0);
    assert_int_equal(rdmsr(w, 0x3a), 1);
    assert_fault(try_wrmsr(w, 0x3a, 5), EXC_GP, 0);
}

static void msrs_of_the_other_vendor_are_unknown(void **state)
{
    struct world *w = *state;
    uint64_t value;
    assert_int_equal(try_rdmsr(w, 0xc0010015, &value), EXC_GP);
    assert_int_equal(rdmsr(w, 0x8b), 1ull << 32);
    use_model(w, "v3", true);
    assert_int_equal(rdmsr(w, 0xc0010015), 1 << 24);
    assert_int_equal(rdmsr(w, 0xc0011029), 2);
    assert_int_equal(rdmsr(w, 0xc0010010), 0);
    assert_int_equal(rdmsr(w, 0x8b), 0x0a10113e);
    assert_int_equal(try_rdmsr(w, 0x1a0, &value), EXC_GP);
}

static void efer_keeps_lma_and_refuses_lme_while_paging(void **state)
{
    struct world *w = *state;
    assert_int_equal(try_wrmsr(w, 0xc0000080, EFER_SCE | EFER_LME | EFER_NXE | EFER_LMA), -1);
    assert_int_equal(w->v->s.efer, EFER_SCE | EFER_LME | EFER_NXE);
    assert_fault(try_wrmsr(w, 0xc0000080, EFER_FFXSR), EXC_GP, 0);
    assert_fault(try_wrmsr(w, 0xc0000080, EFER_AUTOIBRS), EXC_GP, 0);
    w->v->s.cr0 |= CR0_PE | CR0_PG;
    w->v->s.efer |= EFER_LMA;
    assert_fault(try_wrmsr(w, 0xc0000080, EFER_SCE), EXC_GP, 0);
    assert_int_equal(try_wrmsr(w, 0xc0000080, EFER_LME), -1);
    assert_int_equal(w->v->s.efer, EFER_LME | EFER_LMA);
    use_model(w, "v3", true);
    assert_int_equal(try_wrmsr(w, 0xc0000080, EFER_LME | EFER_AUTOIBRS), -1);
}

static void efer_bumps_the_mode_only_when_the_mode_changes(void **state)
{
    struct world *w = *state;
    uint32_t gen = w->v->mode_gen;
    assert_int_equal(try_wrmsr(w, 0xc0000080, EFER_LME), -1);
    assert_int_equal(w->v->mode_gen, gen + 1);
    assert_int_equal(try_wrmsr(w, 0xc0000080, EFER_LME), -1);
    assert_int_equal(w->v->mode_gen, gen + 1);
}

static void address_msrs_must_be_canonical(void **state)
{
    struct world *w = *state;
    static const uint32_t msrs[] = {0x175, 0x176, 0xc0000082, 0xc0000083, 0xc0000100, 0xc0000101, 0xc0000102};
    for (unsigned i = 0; i < sizeof msrs / sizeof msrs[0]; i++) {
        assert_int_equal(try_wrmsr(w, msrs[i], 0xffff800000000000), -1);
        assert_int_equal(rdmsr(w, msrs[i]), 0xffff800000000000);
        assert_fault(try_wrmsr(w, msrs[i], 0x800000000000), EXC_GP, 0);
        assert_int_equal(rdmsr(w, msrs[i]), 0xffff800000000000);
    }
    assert_int_equal(w->v->s.seg[SEG_FS].base, 0xffff800000000000);
}

static void pat_accepts_the_six_memory_types(void **state)
{
    struct world *w = *state;
    assert_int_equal(try_wrmsr(w, 0x277, 0x0001040506070600), -1);
    assert_int_equal(rdmsr(w, 0x277), 0x0001040506070600);
    assert_int_equal(try_wrmsr(w, 0x277, 2), EXC_GP);
    assert_int_equal(try_wrmsr(w, 0x277, 3ull << 56), EXC_GP);
    assert_int_equal(try_wrmsr(w, 0x277, 8), EXC_GP);
}

static void mtrrs_check_types_and_addresses(void **state)
{
    struct world *w = *state;
    assert_int_equal(try_wrmsr(w, 0x2ff, 0xc06), -1);
    assert_int_equal(rdmsr(w, 0x2ff), 0xc06);
    assert_int_equal(try_wrmsr(w, 0x2ff, 0xc02), EXC_GP);
    assert_int_equal(try_wrmsr(w, 0x2ff, 0x106), EXC_GP);
    assert_int_equal(try_wrmsr(w, 0x200, 0x3fffc0000006), -1); // 46 bits
    assert_int_equal(try_wrmsr(w, 0x200, 0x400000000006), EXC_GP);
    assert_int_equal(try_wrmsr(w, 0x201, 0x3fffc0000800), -1);
    assert_int_equal(try_wrmsr(w, 0x201, 0x3fffc0000400), EXC_GP);
    assert_int_equal(try_wrmsr(w, 0x20f, 0x800), -1);
    assert_int_equal(try_wrmsr(w, 0x210, 0), EXC_GP);
    static const uint32_t fixed[] = {0x250, 0x258, 0x259, 0x268, 0x26f};
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(try_wrmsr(w, fixed[i], 0x0606060606060600 + i % 2), -1);
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(rdmsr(w, fixed[i]), 0x0606060606060600 + i % 2);
    assert_int_equal(try_wrmsr(w, 0x250, 7), EXC_GP);
}

static void tsc_adjust_and_tsc_move_together(void **state)
{
    struct world *w = *state;
    uint64_t before = cpu_tsc(w->v);
    assert_int_equal(try_wrmsr(w, 0x3b, 1ull << 40), -1);
    assert_int_equal(w->v->s.tsc_offset, 1ull << 40);
    assert_true(cpu_tsc(w->v) - before >= 1ull << 40);
    uint64_t offset = w->v->s.tsc_offset;
    assert_int_equal(try_wrmsr(w, 0x10, 0), -1);
    assert_true(cpu_tsc(w->v) < 1ull << 36);
    assert_int_equal(rdmsr(w, 0x3b) - (1ull << 40), w->v->s.tsc_offset - offset);
}

static void machine_check_banks_hold_nothing(void **state)
{
    struct world *w = *state;
    assert_int_equal(rdmsr(w, 0x179), 4);
    assert_int_equal(rdmsr(w, 0x400), ~0ull);
    assert_int_equal(try_wrmsr(w, 0x400, ~0ull), -1);
    assert_int_equal(rdmsr(w, 0x401), 0);
    assert_int_equal(try_wrmsr(w, 0x40d, 0), -1);
    assert_int_equal(try_wrmsr(w, 0x401, 1), EXC_GP);
    assert_int_equal(try_wrmsr(w, 0x410, 0), EXC_GP);
}

static void speculation_controls_are_kept_and_pred_cmd_is_write_only(void **state)
{
    struct world *w = *state;
    uint64_t value;
    for (unsigned amd = 0; amd < 2; amd++) {
        use_model(w, "v3", amd);
        assert_int_equal(try_wrmsr(w, 0x48, 1), -1);
        assert_int_equal(rdmsr(w, 0x48), 1);
        assert_int_equal(try_wrmsr(w, 0x48, 8), EXC_GP);
        assert_int_equal(try_wrmsr(w, 0x49, 1), -1);
        assert_int_equal(try_wrmsr(w, 0x49, 2), EXC_GP);
        assert_int_equal(try_rdmsr(w, 0x49, &value), EXC_GP);
        assert_int_equal(rdmsr(w, 0x10a) & 0x1ff, 0x17b);
    }
    use_model(w, "pentium2", false);
    assert_int_equal(try_wrmsr(w, 0x48, 1), EXC_GP);
}

static uint64_t monotonic(void *opaque)
{
    (void)opaque;
    return 5000000123;
}

static uint64_t realtime(void *opaque)
{
    (void)opaque;
    return 1700000005000000124;
}

static void kvmclock_pages_follow_the_version_protocol(void **state)
{
    struct world *w = *state;
    w->v->exits.monotonic_ns = monotonic;
    w->v->exits.realtime_ns = realtime;
    poke(w, 0x5000, 6, 4);
    uint64_t before = cpu_tsc(w->v);
    assert_int_equal(try_wrmsr(w, 0x4b564d01, 0x5001), -1);
    assert_int_equal(rdmsr(w, 0x4b564d01), 0x5001);
    assert_int_equal(peek(w, 0x5000, 4), 8);
    assert_true(peek(w, 0x5008, 8) >= before && peek(w, 0x5008, 8) <= cpu_tsc(w->v));
    assert_int_equal(peek(w, 0x5010, 8), 5000000123);
    assert_int_equal(peek(w, 0x5018, 4), 0xcccccccc); // 0.4 ns = 0.8 / 2
    assert_int_equal(peek(w, 0x501c, 1), 0xff);
    assert_int_equal(peek(w, 0x501d, 1), 1);
    assert_int_equal(try_wrmsr(w, 0x10, 0), -1); // the page follows the TSC
    assert_int_equal(peek(w, 0x5000, 4), 10);
    assert_true(peek(w, 0x5008, 8) < 1ull << 36);
    assert_int_equal(try_wrmsr(w, 0x4b564d00, 0x6000), -1);
    assert_int_equal(peek(w, 0x6000, 4), 2);
    assert_int_equal(peek(w, 0x6004, 4), 1700000000);
    assert_int_equal(peek(w, 0x6008, 4), 1);
    assert_int_equal(try_wrmsr(w, 0x4b564d01, 0xfffffffffffff001), -1); // nowhere: nothing happens
}

static void rdmsr_and_wrmsr_use_edx_eax_at_cpl_0_only(void **state)
{
    struct world *w = *state;
    uint64_t *r = w->v->s.gpr;
    enter_long(w, 0);
    r[RCX] = 0xabc00000000000ull | 0xc0000082;
    r[RAX] = 0xdeadbeef80000000;
    r[RDX] = 0xdeadbeefffffffff;
    assert_int_equal(run(w, (struct insn){.op = OP_WRMSR}), -1);
    assert_int_equal(w->v->s.lstar, 0xffffffff80000000);
    assert_int_equal(w->v->s.rip, CODE + 2);
    r[RAX] = r[RDX] = ~0ull;
    assert_int_equal(run(w, (struct insn){.op = OP_RDMSR}), -1);
    assert_int_equal(r[RAX], 0x80000000);
    assert_int_equal(r[RDX], 0xffffffff);
    enter_long(w, 3);
    assert_fault(run(w, (struct insn){.op = OP_RDMSR}), EXC_GP, 0);
    assert_fault(run(w, (struct insn){.op = OP_WRMSR}), EXC_GP, 0);
}

static void rdtsc_obeys_tsd(void **state)
{
    struct world *w = *state;
    enter_long(w, 3);
    w->v->s.tsc_aux = 0x12345;
    w->v->s.tsc_offset = 0x100000000000000;
    assert_int_equal(run(w, (struct insn){.op = OP_RDTSCP}), -1);
    assert_int_equal(w->v->s.gpr[RCX], 0x12345);
    assert_int_equal(w->v->s.gpr[RDX] >> 24, 1);
    w->v->s.cr4 |= CR4_TSD;
    assert_fault(run(w, (struct insn){.op = OP_RDTSCP}), EXC_GP, 0);
    assert_fault(run(w, (struct insn){.op = OP_RDTSC}), EXC_GP, 0);
    w->v->s.cpl = 0;
    assert_int_equal(run(w, (struct insn){.op = OP_RDTSC}), -1);
    assert_int_equal(run(w, (struct insn){.op = OP_RDPID, .rm = RBX}), -1);
    assert_int_equal(w->v->s.gpr[RBX], 0x12345);
}

static void fs_and_gs_bases_move_without_a_mode_change(void **state)
{
    struct world *w = *state;
    enter_long(w, 3);
    w->v->s.gpr[RAX] = 0xffff800011223344;
    assert_int_equal(run(w, (struct insn){.op = OP_WRFSBASE, .rm = RAX, .op_size = 8}), EXC_UD);
    w->v->s.cr4 |= CR4_FSGSBASE;
    uint32_t gen = w->v->mode_gen;
    assert_int_equal(run(w, (struct insn){.op = OP_WRFSBASE, .rm = RAX, .op_size = 8}), -1);
    assert_int_equal(w->v->s.seg[SEG_FS].base, 0xffff800011223344);
    assert_int_equal(run(w, (struct insn){.op = OP_WRGSBASE, .rm = RAX, .op_size = 4}), -1);
    assert_int_equal(w->v->s.seg[SEG_GS].base, 0x11223344);
    assert_int_equal(run(w, (struct insn){.op = OP_RDFSBASE, .rm = RBX, .op_size = 4}), -1);
    assert_int_equal(w->v->s.gpr[RBX], 0x11223344);
    w->v->s.gpr[RAX] = 1ull << 47;
    assert_fault(run(w, (struct insn){.op = OP_WRGSBASE, .rm = RAX, .op_size = 8}), EXC_GP, 0);
    assert_fault(run(w, (struct insn){.op = OP_SWAPGS}), EXC_GP, 0);
    w->v->s.cpl = 0;
    w->v->s.kernel_gs_base = 0xffffffff12345678;
    assert_int_equal(run(w, (struct insn){.op = OP_SWAPGS}), -1);
    assert_int_equal(w->v->s.seg[SEG_GS].base, 0xffffffff12345678);
    assert_int_equal(w->v->s.kernel_gs_base, 0x11223344);
    assert_int_equal(w->v->mode_gen, gen);
    enter_protected(w, 0);
    w->v->s.efer = 0;
    assert_int_equal(run(w, (struct insn){.op = OP_RDFSBASE, .rm = RBX, .op_size = 4}), EXC_UD);
}

static void hypercalls_answer_enosys_under_kvms_name_only(void **state)
{
    struct world *w = *state;
    enter_long(w, 0);
    assert_int_equal(run(w, (struct insn){.op = OP_VMCALL}), -1);
    assert_int_equal(w->v->s.gpr[RAX], (uint64_t)-1000);
    enter_long(w, 3);
    assert_int_equal(run(w, (struct insn){.op = OP_VMCALL}), -1);
    assert_int_equal(w->v->s.gpr[RAX], (uint64_t)-1);
    use_model(w, "v3,-hypervisor", false);
    assert_int_equal(run(w, (struct insn){.op = OP_VMCALL}), EXC_UD);
}

static void what_is_not_offered_is_undefined(void **state)
{
    struct world *w = *state;
    static const uint8_t ops[] = {OP_MONITOR, OP_MWAIT,  OP_RSM,     OP_RDPKRU,
                                  OP_WRPKRU,  OP_XSAVES, OP_XRSTORS, OP_UD};
    enter_long(w, 0);
    for (unsigned i = 0; i < sizeof ops; i++)
        assert_int_equal(run(w, (struct insn){.op = ops[i], .is_mem = 1}), EXC_UD);
    assert_int_equal(run(w, (struct insn){.op = OP_NM}), EXC_NM);
    assert_fault(run(w, (struct insn){.op = OP_GP0}), EXC_GP, 0);
    assert_int_equal(w->v->s.rip, CODE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        INTEL_TEST(unknown_msrs_fault_and_are_traced),
        INTEL_TEST(read_only_msrs_refuse_writes),
        INTEL_TEST(msrs_of_the_other_vendor_are_unknown),
        INTEL_TEST(efer_keeps_lma_and_refuses_lme_while_paging),
        INTEL_TEST(efer_bumps_the_mode_only_when_the_mode_changes),
        INTEL_TEST(address_msrs_must_be_canonical),
        INTEL_TEST(pat_accepts_the_six_memory_types),
        INTEL_TEST(mtrrs_check_types_and_addresses),
        INTEL_TEST(tsc_adjust_and_tsc_move_together),
        INTEL_TEST(machine_check_banks_hold_nothing),
        INTEL_TEST(speculation_controls_are_kept_and_pred_cmd_is_write_only),
        INTEL_TEST(kvmclock_pages_follow_the_version_protocol),
        INTEL_TEST(rdmsr_and_wrmsr_use_edx_eax_at_cpl_0_only),
        INTEL_TEST(rdtsc_obeys_tsd),
        INTEL_TEST(fs_and_gs_bases_move_without_a_mode_change),
        INTEL_TEST(hypercalls_answer_enosys_under_kvms_name_only),
        INTEL_TEST(what_is_not_offered_is_undefined),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
