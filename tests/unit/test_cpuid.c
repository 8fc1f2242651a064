// CPU models: what each level offers, and what CPUID shows of it.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include "fake_host.h"

static struct cpu_model *make(struct fake_host *f, const char *spec)
{
    char error[160] = "";
    struct cpu_model *m = cpu_model_create_on(&f->host, spec, error, sizeof error);
    if (!m)
        fail_msg("%s", error);
    return m;
}

static void refused(struct fake_host *f, const char *spec, const char *message)
{
    char error[160] = "";
    assert_null(cpu_model_create_on(&f->host, spec, error, sizeof error));
    assert_string_equal(error, message);
}

static struct vcpu *vcpu_of(const struct cpu_model *m)
{
    static _Alignas(64) struct vcpu v;
    memset(&v, 0, sizeof v);
    v.model = m;
    v.s.xcr0 = 1;
    v.s.apic_base = 0xfee00900;
    v.lapic = (struct lapic *)&v; // only its being there matters
    return &v;
}

static void default_is_v3_where_the_host_allows_it(void **state)
{
    (void)state;
    struct fake_host f;
    fake_host_init(&f, false);
    struct cpu_model *m = make(&f, NULL);
    assert_string_equal(m->name, "x86-64-v3");
    assert_int_equal(m->xcr0, 7);
    cpu_model_destroy(m);
    fake_host_lacks(&f, CPU_MOVBE);
    m = make(&f, "default");
    assert_string_equal(m->name, "x86-64-v2");
    assert_false(cpu_model_has(m, CPU_AVX));
    assert_int_equal(m->xcr0, 3);
    cpu_model_destroy(m);
}

static void avx_counts_only_if_the_hosts_kernel_enabled_it(void **state)
{
    (void)state;
    struct fake_host f;
    fake_host_init(&f, false);
    f.host.xcr0 = 3;
    struct cpu_model *m = make(&f, "host");
    assert_false(cpu_model_has(m, CPU_AVX));
    assert_false(cpu_model_has(m, CPU_VAES));
    assert_true(cpu_model_has(m, CPU_BMI2));
    cpu_model_destroy(m);
}

static void bad_specs_are_refused_in_one_line(void **state)
{
    (void)state;
    struct fake_host f;
    fake_host_init(&f, false);
    fake_host_lacks(&f, CPU_AVX512DQ);
    fake_host_lacks(&f, CPU_SHA_NI);
    refused(&f, "v4", "--cpu v4: this host's processor lacks 'avx512dq'; use --cpu default");
    refused(&f, "v5", "--cpu: unknown processor 'v5'; use one of default host v2 v3 v4 pentium2 pentium 486");
    refused(&f, "v3,+sha_ni", "--cpu: this host's processor lacks 'sha_ni'; leave out +sha_ni");
    refused(&f, "v3,vmx",
            "--cpu: 'vmx' is no feature; write +name or -name with a flag name of /proc/cpuinfo");
    refused(&f, "v3,+", "--cpu: '+' is no feature; write +name or -name with a flag name of /proc/cpuinfo");
    refused(&f, "v2,-fpu", "--cpu: 'fpu' can't be removed; every model has one");
    refused(&f, "v2,+autoibrs", "--cpu: 'autoibrs' exists on AMD processors only; leave it out");
}

static void removing_a_feature_removes_what_needs_it(void **state)
{
    (void)state;
    struct fake_host f;
    fake_host_init(&f, false);
    struct cpu_model *m = make(&f, "v3,-avx");
    assert_false(cpu_model_has(m, CPU_AVX2));
    assert_false(cpu_model_has(m, CPU_FMA));
    assert_false(cpu_model_has(m, CPU_VPCLMULQDQ));
    assert_true(cpu_model_has(m, CPU_BMI1));
    assert_int_equal(m->xcr0, 3);
    cpu_model_destroy(m);
}

static void adding_a_feature_adds_what_it_needs(void **state)
{
    (void)state;
    struct fake_host f;
    fake_host_init(&f, false);
    struct cpu_model *m = make(&f, "v2,+avx512bw");
    assert_true(cpu_model_has(m, CPU_AVX512F));
    assert_true(cpu_model_has(m, CPU_AVX2));
    assert_false(cpu_model_has(m, CPU_BMI1));
    assert_int_equal(m->xcr0, 0xe7);
    cpu_model_destroy(m);
}

static void changes_alone_apply_to_the_default(void **state)
{
    (void)state;
    struct fake_host f;
    fake_host_init(&f, false);
    struct cpu_model *m = make(&f, "-aes");
    assert_string_equal(m->name, "x86-64-v3");
    assert_false(cpu_model_has(m, CPU_AES));
    cpu_model_destroy(m);
}

static void leaf_1_follows_osxsave_and_the_apic(void **state)
{
    (void)state;
    struct fake_host f;
    fake_host_init(&f, false);
    struct cpu_model *m = make(&f, "v3");
    struct vcpu *v = vcpu_of(m);
    v->id = 3;
    struct cpuid_regs r = cpu_cpuid(v, 1, 0);
    assert_int_equal(r.eax, 0x000806f8);
    assert_int_equal(r.ebx, 0x03010800);
    assert_int_equal(r.ecx & (1u << 26 | 1u << 27), 1u << 26);
    assert_int_equal(r.edx & 1u << 9, 1u << 9);
    v->s.cr4 = CR4_OSXSAVE;
    v->s.apic_base = 0;
    r = cpu_cpuid(v, 1, 0);
    assert_int_equal(r.ecx & (1u << 26 | 1u << 27), 3u << 26);
    assert_int_equal(r.edx & 1u << 9, 0);
    cpu_model_destroy(m);
}

static void what_is_not_served_is_not_shown(void **state)
{
    (void)state;
    static const char *const specs[] = {"v2", "v3", "v4", "host"};
    for (unsigned amd = 0; amd < 2; amd++)
        for (unsigned i = 0; i < 4; i++) {
            struct fake_host f;
            fake_host_init(&f, amd);
            struct cpu_model *m = make(&f, specs[i]);
            struct vcpu *v = vcpu_of(m);
            // MONITOR, VMX, SMX; HTT, DS, ACPI
            assert_int_equal(cpu_cpuid(v, 1, 0).ecx & (1u << 3 | 1u << 5 | 1u << 6), 0);
            assert_int_equal(cpu_cpuid(v, 1, 0).edx & (1u << 28 | 1u << 21 | 1u << 22), 0);
            struct cpuid_regs r = cpu_cpuid(v, 7, 0);
            assert_int_equal(r.ebx & (1u << 4 | 1u << 11 | 1u << 14), 0);          // HLE, RTM, MPX
            assert_int_equal(r.ecx & (1u << 3 | 1u << 4 | 1u << 7 | 1u << 16), 0); // PKU, OSPKE, CET, LA57
            assert_int_equal(r.edx & (1u << 20 | 1u << 24 | 1u << 25), 0);         // CET IBT, AMX
            assert_int_equal(cpu_cpuid(v, 0xa, 0).eax, 0);                         // performance monitoring
            assert_int_equal(cpu_cpuid(v, 0xd, 1).eax & 8, 0);                     // XSAVES
            r = cpu_cpuid(v, 0x80000001, 0);
            assert_int_equal(r.ecx & (1u << 2 | 1u << 22), 0); // SVM, TOPOEXT
            cpu_model_destroy(m);
        }
}

static void leaf_d_gives_the_sizes_of_the_current_xcr0(void **state)
{
    (void)state;
    struct fake_host f;
    fake_host_init(&f, false);
    struct cpu_model *m = make(&f, "v4");
    struct vcpu *v = vcpu_of(m);
    struct cpuid_regs r = cpu_cpuid(v, 0xd, 0);
    assert_int_equal(r.eax, 0xe7);
    assert_int_equal(r.ebx, 576);
    assert_int_equal(r.ecx, 2688);
    assert_int_equal(r.edx, 0);
    v->s.xcr0 = 7;
    assert_int_equal(cpu_cpuid(v, 0xd, 0).ebx, 832);
    assert_int_equal(cpu_cpuid(v, 0xd, 1).ebx, 832);
    v->s.xcr0 = 0xe7;
    assert_int_equal(cpu_cpuid(v, 0xd, 0).ebx, 2688);
    // 576 + 256 + 64 + 512, aligned to 64, + 1024
    assert_int_equal(cpu_cpuid(v, 0xd, 1).ebx, 2432);
    assert_int_equal(cpu_cpuid(v, 0xd, 1).eax, 7);
    r = cpu_cpuid(v, 0xd, 7);
    assert_int_equal(r.eax, 1024);
    assert_int_equal(r.ebx, 1664);
    assert_int_equal(r.ecx, 2);
    assert_int_equal(cpu_cpuid(v, 0xd, 3).eax, 0);
    cpu_model_destroy(m);
}

static void linux_finds_kvm_and_then_us(void **state)
{
    (void)state;
    struct fake_host f;
    fake_host_init(&f, true);
    struct cpu_model *m = make(&f, "v3");
    struct vcpu *v = vcpu_of(m);
    struct cpuid_regs r = cpu_cpuid(v, 0x40000000, 0);
    assert_memory_equal(&r.ebx, "KVMKVMKVM\0\0\0", 12);
    assert_int_equal(r.eax, 0x40000010);
    r = cpu_cpuid(v, 0x40000001, 0);
    assert_int_equal(r.eax, 0x0100000a);
    r = cpu_cpuid(v, 0x40000010, 0);
    assert_int_equal(r.eax, 2500000);
    assert_int_equal(r.ebx, 1000000);
    r = cpu_cpuid(v, 0x40000100, 0);
    assert_memory_equal(&r.ebx, "gnomon\0\0\0\0\0\0", 12);
    assert_int_equal(cpu_cpuid(v, 0x40000200, 0).ebx, 0);
    char brand[48];
    for (uint32_t i = 0; i < 3; i++) {
        r = cpu_cpuid(v, 0x80000002 + i, 0);
        memcpy(brand + 16 * i, &r, 16);
    }
    assert_string_equal(brand, "gnomon virtual CPU (x86-64-v3)");
    cpu_model_destroy(m);
}

static void leaves_out_of_range_answer_as_the_vendor_does(void **state)
{
    (void)state;
    struct fake_host f;
    fake_host_init(&f, false);
    struct cpu_model *m = make(&f, "v3");
    struct vcpu *v = vcpu_of(m);
    assert_int_equal(cpu_cpuid(v, 0, 0).eax, 0x15);
    assert_int_equal(cpu_cpuid(v, 0x15, 0).ebx, 2500000);
    assert_int_equal(cpu_cpuid(v, 0x1234, 0).ebx, 2500000);
    assert_int_equal(cpu_cpuid(v, 0x80000009, 0).ebx, 2500000);
    cpu_model_destroy(m);
    fake_host_init(&f, true);
    m = make(&f, "v3");
    v = vcpu_of(m);
    assert_int_equal(cpu_cpuid(v, 0, 0).eax, 0xd);
    assert_int_equal(cpu_cpuid(v, 0x1234, 0).ebx, 0);
    assert_int_equal(cpu_cpuid(v, 0x80000000, 0).eax, 0x80000021);
    cpu_model_destroy(m);
}

static void intel_shows_syscall_to_64_bit_code_only(void **state)
{
    (void)state;
    struct fake_host f;
    fake_host_init(&f, false);
    struct cpu_model *m = make(&f, "v2");
    struct vcpu *v = vcpu_of(m);
    assert_int_equal(cpu_cpuid(v, 0x80000001, 0).edx & 1u << 11, 0);
    v->s.efer = EFER_LMA;
    v->s.seg[SEG_CS].attr = SEG_L;
    assert_int_equal(cpu_cpuid(v, 0x80000001, 0).edx & 1u << 11, 1u << 11);
    cpu_model_destroy(m);
}

static void amd_repeats_leaf_1_in_80000001(void **state)
{
    (void)state;
    struct fake_host f;
    fake_host_init(&f, true);
    struct cpu_model *m = make(&f, "v2");
    struct vcpu *v = vcpu_of(m);
    uint32_t edx = cpu_cpuid(v, 0x80000001, 0).edx;
    assert_int_equal(edx & 0x0183f3ff, cpu_cpuid(v, 1, 0).edx & 0x0183f3ff);
    v->s.apic_base = 0;
    assert_int_equal(cpu_cpuid(v, 0x80000001, 0).edx, edx & ~(1u << 9));
    cpu_model_destroy(m);
}

static void old_models_are_intels_of_their_time(void **state)
{
    (void)state;
    struct fake_host f;
    fake_host_init(&f, true);
    struct cpu_model *m = make(&f, "pentium2");
    struct vcpu *v = vcpu_of(m);
    assert_false(cpu_model_is_amd(m));
    struct cpuid_regs r = cpu_cpuid(v, 0, 0);
    assert_int_equal(r.eax, 2);
    assert_memory_equal(&r.ebx, "Genu", 4);
    r = cpu_cpuid(v, 1, 0);
    assert_int_equal(r.eax, 0x652);
    assert_int_equal(r.ecx, 0);
    assert_int_equal(r.edx, 0x0183fbff);
    assert_int_equal(m->efer_mask, 0);
    assert_int_equal(m->phys_bits, 36);
    assert_int_equal(m->xcr0, 0);
    assert_int_equal(m->fpu_mask, 3);
    assert_int_equal(m->cr4_mask & ~(CR4_VME | CR4_PVI | CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE |
                                     CR4_PGE | CR4_PCE | CR4_OSFXSR),
                     0);
    cpu_model_destroy(m);
    m = make(&f, "486");
    v = vcpu_of(m);
    assert_int_equal(cpu_cpuid(v, 0, 0).eax, 1);
    assert_int_equal(cpu_cpuid(v, 1, 0).edx, 0xb);
    assert_int_equal(m->phys_bits, 32);
    cpu_model_destroy(m);
}

static void clock_factors_turn_tsc_into_nanoseconds(void **state)
{
    (void)state;
    static const uint32_t khz[] = {2500000, 1000000, 999999, 3999999, 100000, 2596130};
    for (unsigned i = 0; i < sizeof khz / sizeof khz[0]; i++) {
        struct fake_host f;
        fake_host_init(&f, false);
        f.host.tsc_khz = khz[i];
        struct cpu_model *m = make(&f, "v2");
        uint64_t second = (uint64_t)khz[i] * 1000;
        uint64_t scaled = m->pvclock_shift < 0 ? second >> -m->pvclock_shift : second << m->pvclock_shift;
        uint64_t ns = (uint64_t)((unsigned __int128)scaled * m->pvclock_mul >> 32);
        assert_in_range(ns, 999999998, 1000000002);
        assert_in_range((uint64_t)((unsigned __int128)second * m->ns_per_tsc_q32 >> 32), 1000000000,
                        1000000001);
        assert_true(m->pvclock_mul >> 31);
        cpu_model_destroy(m);
    }
}

static void the_real_host_has_a_default_model(void **state)
{
    (void)state;
    char error[160] = "";
    struct cpu_model *m = cpu_model_create(NULL, error, sizeof error);
    assert_non_null(m);
    assert_true(m->tsc_khz > 100000);
    assert_true(m->entry_count < CPUID_MAX_ENTRIES);
    assert_int_equal(m->fpu_mask & ~m->host_xcr0, 0);
    cpu_model_destroy(m);
    m = cpu_model_create("host", error, sizeof error);
    assert_non_null(m);
    assert_true(m->entry_count < CPUID_MAX_ENTRIES);
    cpu_model_destroy(m);
}

static void every_sensitive_instruction_has_semantics_and_a_name(void **state)
{
    (void)state;
    for (unsigned i = 0; i < OP_COUNT; i++) {
        assert_non_null(insn_table[i]);
        assert_non_null(insn_names[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(default_is_v3_where_the_host_allows_it),
        cmocka_unit_test(avx_counts_only_if_the_hosts_kernel_enabled_it),
        cmocka_unit_test(bad_specs_are_refused_in_one_line),
        cmocka_unit_test(removing_a_feature_removes_what_needs_it),
        cmocka_unit_test(adding_a_feature_adds_what_it_needs),
        cmocka_unit_test(changes_alone_apply_to_the_default),
        cmocka_unit_test(leaf_1_follows_osxsave_and_the_apic),
        cmocka_unit_test(what_is_not_served_is_not_shown),
        cmocka_unit_test(leaf_d_gives_the_sizes_of_the_current_xcr0),
        cmocka_unit_test(linux_finds_kvm_and_then_us),
        cmocka_unit_test(leaves_out_of_range_answer_as_the_vendor_does),
        cmocka_unit_test(intel_shows_syscall_to_64_bit_code_only),
        cmocka_unit_test(amd_repeats_leaf_1_in_80000001),
        cmocka_unit_test(old_models_are_intels_of_their_time),
        cmocka_unit_test(clock_factors_turn_tsc_into_nanoseconds),
        cmocka_unit_test(the_real_host_has_a_default_model),
        cmocka_unit_test(every_sensitive_instruction_has_semantics_and_a_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
