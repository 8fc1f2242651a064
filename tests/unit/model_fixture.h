// The world of cpu_fixture.h with a CPU model of a made-up host, and instructions run by name.
#pragma once
#include "cpu_fixture.h"
#include "fake_host.h"

static inline void use_model(struct world *w, const char *spec, bool amd)
{
    struct fake_host f;
    char error[160] = "";
    fake_host_init(&f, amd);
    cpu_model_destroy(w->model);
    w->model = cpu_model_create_on(&f.host, spec, error, sizeof error);
    if (!w->model)
        fail_msg("%s", error);
    w->v->model = w->model;
}

static int intel_setup(void **state)
{
    world_setup(state);
    use_model(*state, "v3", false);
    return 0;
}

// -1 or the vector. The instruction is two bytes long.
static __attribute__((unused)) int run(struct world *w, struct insn in)
{
    in.len = in.len ? in.len : 2;
    return try_op(w->v, insn_table[in.op], &in);
}

static __attribute__((noinline, unused)) int try_rdmsr(struct world *w, uint32_t msr, uint64_t *value)
{
    if (__builtin_setjmp(w->v->throw_buf))
        return w->v->event.vector;
    *value = cpu_rdmsr(w->v, msr);
    return -1;
}

static __attribute__((noinline, unused)) int try_wrmsr(struct world *w, uint32_t msr, uint64_t value)
{
    if (__builtin_setjmp(w->v->throw_buf))
        return w->v->event.vector;
    cpu_wrmsr(w->v, msr, value);
    return -1;
}

static inline uint64_t rdmsr(struct world *w, uint32_t msr)
{
    uint64_t value = 0;
    assert_int_equal(try_rdmsr(w, msr, &value), -1);
    return value;
}

#define INTEL_TEST(name) cmocka_unit_test_setup_teardown(name, intel_setup, world_teardown)
