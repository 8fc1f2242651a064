// XSAVE and its relatives, FXSAVE, the x87 environment: on the host's own registers, as under the engine.
#include "cpu_fixture.h"
#include "cpu/model.h"

#define AREA 0x20000u
#define BIG  4096u

static int setup(void **state)
{
    char error[160] = "";
    world_setup(state);
    struct world *w = *state;
    cpu_model_destroy(w->model);
    w->model = cpu_model_create("host", error, sizeof error);
    if (!w->model)
        fail_msg("%s", error);
    w->v->model = w->model;
    if (!w->model->xcr0)
        skip();
    enter_long(w, 0);
    w->v->s.cr4 |= CR4_OSFXSR | CR4_OSXSAVE;
    w->v->s.xcr0 = w->model->xcr0;
    return 0;
}

static uint8_t *image(struct world *w) { return w->v->s.xsave; }

// Fills x87, SSE and, where there is AVX, AVX state with bytes that differ.
static void fill(struct world *w, uint8_t seed)
{
    uint8_t *x = image(w);
    memset(x, 0, XSAVE_AREA_SIZE);
    x[0] = 0x7f;
    x[1] = 3;
    x[4] = 0xff;
    for (unsigned r = 0; r < 8; r++)
        for (unsigned i = 0; i < 10; i++)
            x[32 + 16 * r + i] = (uint8_t)(seed + 16 * r + i);
    x[24] = 0x80;
    x[25] = 0x3f; // MXCSR 3F80h: round down
    for (unsigned i = 0; i < 256; i++)
        x[160 + i] = (uint8_t)(seed ^ (i * 7 + 1));
    uint64_t bv = 3;
    if (w->model->xcr0 & 4) {
        bv |= 4;
        for (unsigned i = 0; i < 256; i++)
            x[w->model->xsave[2].offset + i] = (uint8_t)(seed ^ (i * 5 + 3));
    }
    memcpy(x + 512, &bv, 8);
}

// Loads s.xsave into the host's registers, runs one instruction, saves them back. C code must not run in
// between.
static __attribute__((noinline)) int with_registers(struct vcpu *v, insn_fn *op, const struct insn *in)
{
    if (__builtin_setjmp(v->throw_buf)) {
        cpu_fpu_save(v);
        return v->event.vector;
    }
    cpu_fpu_load(v);
    op(v, in);
    cpu_fpu_save(v);
    return -1;
}

static int run_at(struct world *w, unsigned op, unsigned op_size, uint64_t address)
{
    struct insn in = {.op = (uint8_t)op,
                      .len = 3,
                      .op_size = (uint8_t)op_size,
                      .addr_size = cpu_code64(w->v) ? 8 : 4,
                      .is_mem = 1,
                      .sreg = SEG_DS,
                      .base = RBX,
                      .index = -1,
                      .scale = 1};
    w->v->s.gpr[RBX] = address;
    return with_registers(w->v, insn_table[op], &in);
}

static void set_mask(struct world *w, uint64_t mask)
{
    w->v->s.gpr[RAX] = (uint32_t)mask;
    w->v->s.gpr[RDX] = mask >> 32;
}

static void fill_memory(struct world *w, uint8_t byte)
{
    uint8_t block[BIG];
    memset(block, byte, sizeof block);
    assert_true(mem_write(&w->mem, AREA, block, sizeof block));
}

static void read_memory(struct world *w, uint8_t block[BIG])
{
    assert_true(mem_read(&w->mem, AREA, block, BIG));
}

static void assert_bytes(const uint8_t *p, uint8_t byte, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        if (p[i] != byte)
            fail_msg("byte %u is %02x, not %02x", i, p[i], byte);
}

static void save_and_load_are_inverse_and_leave_c_a_clean_unit(void **state)
{
    struct world *w = *state;
    static uint8_t before[XSAVE_AREA_SIZE];
    fill(w, 0x11);
    memcpy(before, image(w), sizeof before);
    cpu_fpu_load(w->v);
    cpu_fpu_save(w->v);
    uint16_t fcw;
    uint32_t mxcsr;
    __asm__ volatile("fnstcw %0\n\tstmxcsr %1" : "=m"(fcw), "=m"(mxcsr));
    assert_int_equal(fcw, 0x37f);
    assert_int_equal(mxcsr, 0x1f80);
    assert_memory_equal(image(w), before, 28);
    assert_memory_equal(image(w) + 32, before + 32, 384);
    assert_memory_equal(image(w) + 512, before + 512, 64);
    if (w->model->xcr0 & 4)
        assert_memory_equal(image(w) + w->model->xsave[2].offset, before + w->model->xsave[2].offset, 256);
}

static void a_loaded_image_cannot_fault_the_host(void **state)
{
    struct world *w = *state;
    memset(image(w), 0xff, XSAVE_AREA_SIZE);
    cpu_fpu_load(w->v);
    cpu_fpu_save(w->v);
    uint32_t mxcsr;
    memcpy(&mxcsr, image(w) + 24, 4);
    assert_int_equal(mxcsr, w->model->mxcsr_mask);
}

static void xsave_writes_what_is_asked_for_and_nothing_else(void **state)
{
    struct world *w = *state;
    uint8_t m[BIG];
    fill(w, 0x22);
    fill_memory(w, 0xaa);
    poke(w, AREA + 512, 1ull << 63 | 2, 8);
    set_mask(w, 1);
    assert_int_equal(run_at(w, OP_XSAVE, 8, AREA), -1);
    read_memory(w, m);
    assert_int_equal(m[0] | m[1] << 8, 0x37f);
    assert_bytes(m + 24, 0xaa, 8); // MXCSR belongs to SSE and AVX
    assert_memory_equal(m + 32, image(w) + 32, 128);
    assert_bytes(m + 160, 0xaa, 352);
    assert_int_equal(peek(w, AREA + 512, 8), 1ull << 63 | 3);
    assert_bytes(m + 520, 0xaa, BIG - 520);
    assert_int_equal(w->v->s.rip, CODE + 3);

    fill_memory(w, 0xaa);
    poke(w, AREA + 512, 0, 8);
    set_mask(w, ~0ull);
    assert_int_equal(run_at(w, OP_XSAVE, 8, AREA), -1);
    read_memory(w, m);
    assert_int_equal(peek(w, AREA + 24, 4), 0x3f80);
    assert_int_equal(peek(w, AREA + 28, 4), w->model->mxcsr_mask);
    assert_memory_equal(m + 160, image(w) + 160, 256);
    assert_bytes(m + 416, 0xaa, 96);
    assert_bytes(m + 520, 0xaa, 56);
    if (w->model->xcr0 & 4)
        assert_memory_equal(m + w->model->xsave[2].offset, image(w) + w->model->xsave[2].offset, 256);
    uint32_t end = cpu_model_xsave_size(w->model, w->model->xcr0, false);
    assert_bytes(m + end, 0xaa, BIG - end);
}

static void xsave_is_cut_to_xcr0(void **state)
{
    struct world *w = *state;
    uint8_t m[BIG];
    fill(w, 0x23);
    fill_memory(w, 0xaa);
    poke(w, AREA + 512, 0, 8);
    w->v->s.xcr0 = 3;
    set_mask(w, ~0ull);
    assert_int_equal(run_at(w, OP_XSAVE, 8, AREA), -1);
    read_memory(w, m);
    assert_int_equal(peek(w, AREA + 512, 8), 3);
    assert_bytes(m + 576, 0xaa, BIG - 576);
}

static void xsave_faults_in_the_manuals_order(void **state)
{
    struct world *w = *state;
    set_mask(w, 3);
    w->v->s.cr0 |= CR0_TS;
    w->v->s.cr4 &= ~(uint64_t)CR4_OSXSAVE;
    assert_int_equal(run_at(w, OP_XSAVE, 8, AREA + 16), EXC_UD);
    w->v->s.cr4 |= CR4_OSXSAVE;
    assert_int_equal(run_at(w, OP_XSAVE, 8, AREA + 16), EXC_NM);
    w->v->s.cr0 &= ~(uint64_t)CR0_TS;
    assert_fault(run_at(w, OP_XSAVE, 8, AREA + 16), EXC_GP, 0);
    assert_fault(run_at(w, OP_XRSTOR, 8, AREA + 16), EXC_GP, 0);
    assert_fault(run_at(w, OP_XSAVE, 8, 1ull << 47), EXC_GP, 0);
    assert_int_equal(run_at(w, OP_XSAVE, 8, UNMAPPED), EXC_PF);
    assert_int_equal(w->v->event.cr2, UNMAPPED + 512);
    assert_int_equal(w->v->s.rip, CODE);
}

static void xsave_that_faults_has_stored_nothing(void **state)
{
    struct world *w = *state;
    uint8_t m[BIG];
    if (!(w->model->xcr0 & 4))
        skip();
    fill(w, 0x24);
    fill_memory(w, 0xaa);
    enter_protected(w, 0);
    w->v->s.efer = 0;
    w->v->s.cr0 &= ~(uint64_t)CR0_PG;
    w->v->s.seg[SEG_DS].limit = AREA + 600;
    set_mask(w, 7);
    assert_fault(run_at(w, OP_XSAVE, 4, AREA), EXC_GP, 0);
    read_memory(w, m);
    assert_bytes(m, 0xaa, BIG);
}

static void xsavec_packs_components_that_are_in_use(void **state)
{
    struct world *w = *state;
    uint8_t m[BIG];
    if (!(w->model->xcr0 & 4))
        skip();
    fill(w, 0x33);
    fill_memory(w, 0xaa);
    set_mask(w, 5);
    assert_int_equal(run_at(w, OP_XSAVEC, 8, AREA), -1);
    read_memory(w, m);
    assert_int_equal(peek(w, AREA + 512, 8), 5);
    assert_int_equal(peek(w, AREA + 520, 8), 1ull << 63 | 5);
    assert_bytes(m + 528, 0xaa, 48);
    assert_bytes(m + 24, 0xaa, 8);
    assert_bytes(m + 160, 0xaa, 352);
    assert_memory_equal(m + 576, image(w) + w->model->xsave[2].offset, 256);
    assert_bytes(m + 832, 0xaa, BIG - 832);

    // Initial state is left out, but MXCSR that is not 1F80h makes SSE count as used.
    memset(image(w), 0, XSAVE_AREA_SIZE);
    image(w)[24] = 0x80;
    image(w)[25] = 0x5f;
    fill_memory(w, 0xaa);
    set_mask(w, 7);
    assert_int_equal(run_at(w, OP_XSAVEC, 8, AREA), -1);
    read_memory(w, m);
    assert_int_equal(peek(w, AREA + 512, 8), 2);
    assert_int_equal(peek(w, AREA + 520, 8), 1ull << 63 | 7);
    assert_bytes(m, 0xaa, 24);
    assert_int_equal(peek(w, AREA + 24, 4), 0x5f80);
    assert_bytes(m + 160, 0, 256);
    assert_bytes(m + 576, 0xaa, 256);
}

static void xsaveopt_leaves_out_initial_components(void **state)
{
    struct world *w = *state;
    uint8_t m[BIG];
    fill(w, 0x44);
    image(w)[512] &= 0xfe; // x87 initial
    fill_memory(w, 0xaa);
    poke(w, AREA + 512, 1, 8);
    set_mask(w, 3);
    assert_int_equal(run_at(w, OP_XSAVEOPT, 8, AREA), -1);
    read_memory(w, m);
    assert_int_equal(peek(w, AREA + 512, 8), 2);
    assert_bytes(m, 0xaa, 24);
    assert_bytes(m + 32, 0xaa, 128);
    assert_memory_equal(m + 160, image(w) + 160, 256);
}

static void xrstor_loads_present_and_initializes_missing_components(void **state)
{
    struct world *w = *state;
    static uint8_t saved[XSAVE_AREA_SIZE];
    fill(w, 0x55);
    fill_memory(w, 0);
    set_mask(w, 7);
    assert_int_equal(run_at(w, OP_XSAVE, 8, AREA), -1);
    memcpy(saved, image(w), sizeof saved);
    fill(w, 0x99);
    poke(w, AREA + 512, peek(w, AREA + 512, 8) & ~2ull, 8); // SSE missing
    assert_int_equal(run_at(w, OP_XRSTOR, 8, AREA), -1);
    assert_memory_equal(image(w) + 32, saved + 32, 128);
    uint64_t bv;
    memcpy(&bv, image(w) + 512, 8);
    assert_int_equal(bv & 2, 0);
    uint32_t mxcsr;
    memcpy(&mxcsr, image(w) + 24, 4);
    assert_int_equal(mxcsr, 0x3f80); // comes from memory all the same
    if (w->model->xcr0 & 4)
        assert_memory_equal(image(w) + w->model->xsave[2].offset, saved + w->model->xsave[2].offset, 256);
}

static void xrstor_reads_the_compacted_format(void **state)
{
    struct world *w = *state;
    static uint8_t saved[XSAVE_AREA_SIZE];
    fill(w, 0x66);
    memcpy(saved, image(w), sizeof saved);
    fill_memory(w, 0);
    set_mask(w, ~0ull);
    assert_int_equal(run_at(w, OP_XSAVEC, 8, AREA), -1);
    fill(w, 0x12);
    assert_int_equal(run_at(w, OP_XRSTOR, 8, AREA), -1);
    assert_memory_equal(image(w), saved, 28);
    assert_memory_equal(image(w) + 32, saved + 32, 384);
    if (w->model->xcr0 & 4)
        assert_memory_equal(image(w) + w->model->xsave[2].offset, saved + w->model->xsave[2].offset, 256);
    // Without SSE in it, MXCSR takes its initial value.
    poke(w, AREA + 512, peek(w, AREA + 512, 8) & ~2ull, 8);
    assert_int_equal(run_at(w, OP_XRSTOR, 8, AREA), -1);
    uint32_t mxcsr;
    memcpy(&mxcsr, image(w) + 24, 4);
    assert_int_equal(mxcsr, 0x1f80);
}

static void xrstor_refuses_bad_headers_and_mxcsr(void **state)
{
    struct world *w = *state;
    static uint8_t saved[XSAVE_AREA_SIZE];
    fill(w, 0x77);
    memcpy(saved, image(w), sizeof saved);
    fill_memory(w, 0);
    set_mask(w, ~0ull);
    assert_int_equal(run_at(w, OP_XSAVE, 8, AREA), -1);
    uint64_t bv = peek(w, AREA + 512, 8);
    const struct {
        uint64_t at, value;
    } bad[] = {{512, bv | 1ull << 9},  {520, 1},          {528, 1},
               {512, bv | 1ull << 63}, {520, 1ull << 63}, {520, 1ull << 63 | 0x1007}};
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        uint64_t old = peek(w, AREA + bad[i].at, 8);
        poke(w, AREA + bad[i].at, bad[i].value, 8);
        assert_fault(run_at(w, OP_XRSTOR, 8, AREA), EXC_GP, 0);
        poke(w, AREA + bad[i].at, old, 8);
    }
    poke(w, AREA + 536, 1, 8); // bytes 63:24 are free in the standard format
    assert_int_equal(run_at(w, OP_XRSTOR, 8, AREA), -1);
    poke(w, AREA + 24, 0x80001f80, 4);
    assert_fault(run_at(w, OP_XRSTOR, 8, AREA), EXC_GP, 0);
#ifndef __SANITIZE_ADDRESS__ // its longjmp() uses vector registers
    assert_memory_equal(image(w) + 32, saved + 32, 384);
#endif
}

static void outside_64_bit_code_registers_8_to_15_stay(void **state)
{
    struct world *w = *state;
    static uint8_t saved[XSAVE_AREA_SIZE];
    uint8_t m[BIG];
    uint32_t avx = w->model->xsave[2].offset;
    bool has_avx = w->model->xcr0 & 4;
    enter_protected(w, 0);
    w->v->s.efer = 0;
    w->v->s.cr0 &= ~(uint64_t)CR0_PG;
    fill(w, 0x88);
    memcpy(saved, image(w), sizeof saved);
    fill_memory(w, 0xaa);
    poke(w, AREA + 512, 0, 8);
    set_mask(w, 7);
    assert_int_equal(run_at(w, OP_XSAVE, 4, AREA), -1);
    read_memory(w, m);
    assert_memory_equal(m + 160, saved + 160, 128);
    assert_bytes(m + 288, 0xaa, 128);
    if (has_avx) {
        assert_memory_equal(m + avx, saved + avx, 128);
        assert_bytes(m + avx + 128, 0xaa, 128);
    }
    poke(w, AREA + 520, 0, 8);
    poke(w, AREA + 528, 0, 8);
    fill(w, 0x21);
    memcpy(saved, image(w), sizeof saved);
    assert_int_equal(run_at(w, OP_XRSTOR, 4, AREA), -1);
    assert_memory_equal(image(w) + 160, m + 160, 128);
    assert_memory_equal(image(w) + 288, saved + 288, 128);
    if (has_avx) {
        assert_memory_equal(image(w) + avx, m + avx, 128);
        assert_memory_equal(image(w) + avx + 128, saved + avx + 128, 128);
    }
    poke(w, AREA + 512, 0, 8); // initialize: 0-7 only
    assert_int_equal(run_at(w, OP_XRSTOR, 4, AREA), -1);
    assert_bytes(image(w) + 160, 0, 128);
    assert_memory_equal(image(w) + 288, saved + 288, 128);
}

static void fxsave_and_fxrstor_keep_their_bounds(void **state)
{
    struct world *w = *state;
    static uint8_t saved[XSAVE_AREA_SIZE];
    uint8_t m[BIG];
    fill(w, 0x31);
    memcpy(saved, image(w), sizeof saved);
    fill_memory(w, 0xaa);
    assert_int_equal(run_at(w, OP_FXSAVE, 8, AREA + 16), -1);
    read_memory(w, m);
    assert_bytes(m, 0xaa, 16);
    assert_memory_equal(m + 16 + 32, saved + 32, 384);
    assert_bytes(m + 16 + 416, 0xaa, BIG - 432);
    fill(w, 0x32);
    assert_int_equal(run_at(w, OP_FXRSTOR, 8, AREA + 16), -1);
    assert_memory_equal(image(w) + 32, saved + 32, 384);
    poke(w, AREA + 16 + 24, 0xffffffff, 4);
    assert_fault(run_at(w, OP_FXRSTOR, 8, AREA + 16), EXC_GP, 0);
    assert_fault(run_at(w, OP_FXSAVE, 8, AREA + 8), EXC_GP, 0);
    w->v->s.cr0 |= CR0_EM | CR0_TS;
    assert_int_equal(run_at(w, OP_FXSAVE, 8, AREA), EXC_UD);
    w->v->s.cr0 &= ~(uint64_t)CR0_EM;
    assert_int_equal(run_at(w, OP_FXSAVE, 8, AREA), EXC_NM);
}

static void xsetbv_accepts_what_the_model_offers(void **state)
{
    struct world *w = *state;
    struct insn in = {.op = OP_XSETBV, .len = 3};
    w->v->s.gpr[RCX] = 0;
    static const uint64_t bad[] = {0, 2, 5, 1ull << 8 | 3, 0x20 | 7, 1ull << 62 | 3};
    for (unsigned i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        set_mask(w, bad[i]);
        assert_fault(try_op(w->v, insn_table[OP_XSETBV], &in), EXC_GP, 0);
    }
    set_mask(w, 3);
    uint32_t gen = w->v->mode_gen;
    assert_int_equal(try_op(w->v, insn_table[OP_XSETBV], &in), -1);
    assert_int_equal(w->v->s.xcr0, 3);
    assert_int_equal(w->v->mode_gen, gen + 1);
    w->v->s.gpr[RCX] = 1;
    assert_fault(try_op(w->v, insn_table[OP_XSETBV], &in), EXC_GP, 0);
    w->v->s.gpr[RCX] = 0;
    w->v->s.cpl = 3;
    assert_fault(try_op(w->v, insn_table[OP_XSETBV], &in), EXC_GP, 0);
    in.op = OP_XGETBV;
    assert_int_equal(try_op(w->v, insn_table[OP_XGETBV], &in), -1);
    assert_int_equal(w->v->s.gpr[RAX], 3);
    w->v->s.gpr[RCX] = 2;
    assert_fault(try_op(w->v, insn_table[OP_XGETBV], &in), EXC_GP, 0);
    w->v->s.cr4 &= ~(uint64_t)CR4_OSXSAVE;
    assert_int_equal(try_op(w->v, insn_table[OP_XGETBV], &in), EXC_UD);
}

// ---- pointers and the environment. An unmasked pending exception (FCW bit 0 clear, FSW.IE and ES) makes AMD
// processors show the pointers.

#define CACHE 0x7f0000001000ull

static uint64_t map_fip(void *opaque, uint64_t fip, uint16_t *fop)
{
    (void)opaque;
    if (fip < CACHE || fip >= CACHE + 4096)
        return fip;
    *fop = 0x1d9;
    return 0xffffffff81234567;
}

static void set_pointers(struct world *w, uint64_t fip, uint64_t fdp)
{
    fill(w, 0);
    image(w)[0] = 0x7e;
    image(w)[2] = 0x81;
    image(w)[3] = 0x80;
    image(w)[6] = 0x23;
    image(w)[7] = 0x05;
    memcpy(image(w) + 8, &fip, 8);
    memcpy(image(w) + 16, &fdp, 8);
}

static void host_pointers_never_reach_the_guest(void **state)
{
    struct world *w = *state;
    fill_memory(w, 0);
    set_mask(w, 1);
    set_pointers(w, CACHE + 5, 0x7fff12345678);
    assert_int_equal(run_at(w, OP_XSAVE, 8, AREA), -1);
    assert_int_equal(peek(w, AREA + 8, 8), 0); // nobody maps them
    assert_int_equal(peek(w, AREA + 16, 8), 0);
    w->v->listener.fip_to_guest = map_fip;
    set_pointers(w, CACHE + 5, 0x7fff12345678);
    assert_int_equal(run_at(w, OP_XSAVE, 8, AREA), -1);
    assert_int_equal(peek(w, AREA + 6, 2), 0x1d9);
    assert_int_equal(peek(w, AREA + 8, 8), 0xffffffff81234567);
    assert_int_equal(peek(w, AREA + 16, 8), 0);
    set_pointers(w, CACHE + 5, 0x7fff12345678);
    assert_int_equal(run_at(w, OP_FXSAVE, 4, AREA), -1);
    assert_int_equal(peek(w, AREA + 8, 4), 0x81234567);
    assert_int_equal(peek(w, AREA + 16, 8), 0);
    set_pointers(w, 0x401000, 0x7fff12345678); // the guest's own, from an earlier restore
    assert_int_equal(run_at(w, OP_FXSAVE, 8, AREA), -1);
    assert_int_equal(peek(w, AREA + 6, 2), 0x523);
    assert_int_equal(peek(w, AREA + 8, 8), 0x401000);
    assert_int_equal(peek(w, AREA + 16, 8), 0x7fff12345678);
}

static void fnstenv_masks_exceptions_and_has_four_layouts(void **state)
{
    struct world *w = *state;
    uint8_t m[BIG];
    w->v->listener.fip_to_guest = map_fip;
    fill_memory(w, 0xaa);
    set_pointers(w, 0x12345, 0x6789a);
    assert_int_equal(run_at(w, OP_FNSTENV, 4, AREA), -1);
    assert_int_equal(peek(w, AREA, 4), 0xffff037e);
    assert_int_equal(peek(w, AREA + 4, 4), 0xffff8081);
    assert_int_equal(peek(w, AREA + 12, 4), 0x12345);
    assert_int_equal(peek(w, AREA + 16, 4) >> 16, 0x523);
    assert_int_equal(peek(w, AREA + 20, 4), 0x6789a);
    read_memory(w, m);
    assert_bytes(m + 28, 0xaa, 100);
    assert_int_equal(image(w)[0], 0x7f);

    fill_memory(w, 0xaa);
    set_pointers(w, 0x12345, 0x6789a);
    assert_int_equal(run_at(w, OP_FNSTENV, 2, AREA), -1);
    assert_int_equal(peek(w, AREA, 2), 0x37e);
    assert_int_equal(peek(w, AREA + 2, 2), 0x8081);
    assert_int_equal(peek(w, AREA + 6, 2), 0x2345);
    assert_int_equal(peek(w, AREA + 10, 2), 0x789a);
    read_memory(w, m);
    assert_bytes(m + 14, 0xaa, 100);

    enter_real(w);
    w->v->s.cr0 = CR0_ET;
    w->v->s.efer = 0;
    w->v->s.seg[SEG_DS].limit = 0xffffffff;
    w->v->s.seg[SEG_DS].base = 0;
    fill_memory(w, 0xaa);
    set_pointers(w, 0x12345, 0x6789a);
    assert_int_equal(run_at(w, OP_FNSTENV, 2, AREA), -1);
    assert_int_equal(peek(w, AREA + 6, 2), 0x2345);
    assert_int_equal(peek(w, AREA + 8, 2), 0x1523);
    assert_int_equal(peek(w, AREA + 10, 2), 0x789a);
    assert_int_equal(peek(w, AREA + 12, 2), 0x6000);
    set_pointers(w, 0x12345, 0x6789a);
    assert_int_equal(run_at(w, OP_FNSTENV, 4, AREA), -1);
    assert_int_equal(peek(w, AREA + 12, 4), 0x2345);
    assert_int_equal(peek(w, AREA + 16, 4), 0x1523);
    assert_int_equal(peek(w, AREA + 20, 4), 0x789a);
    assert_int_equal(peek(w, AREA + 24, 4), 0x6000);
}

static void fnsave_resets_and_frstor_brings_back(void **state)
{
    struct world *w = *state;
    static uint8_t saved[XSAVE_AREA_SIZE];
    uint8_t m[BIG];
    for (unsigned size = 2; size <= 4; size += 2) {
        fill(w, 0x41);
        memcpy(saved, image(w), sizeof saved);
        fill_memory(w, 0xaa);
        assert_int_equal(run_at(w, OP_FNSAVE, size, AREA), -1);
        read_memory(w, m);
        unsigned env = size == 2 ? 14 : 28;
        for (unsigned r = 0; r < 8; r++)
            assert_memory_equal(m + env + 10 * r, saved + 32 + 16 * r, 10);
        assert_bytes(m + env + 80, 0xaa, 100);
        assert_int_equal(image(w)[0] | image(w)[1] << 8, 0x37f);
        assert_int_equal(image(w)[4], 0); // all empty
        assert_int_equal(run_at(w, OP_FRSTOR, size, AREA), -1);
        assert_int_equal(image(w)[4], 0xff);
        assert_memory_equal(image(w) + 32, saved + 32, 128);
    }
    poke(w, AREA, 0x27f, 2);
    assert_int_equal(run_at(w, OP_FLDENV, 4, AREA), -1);
    assert_int_equal(image(w)[1], 2);
    set_pointers(w, 0, 0);
    w->v->s.cr0 |= CR0_NE;
    assert_int_equal(run_at(w, OP_FLDENV, 4, AREA), EXC_MF);
    w->v->s.cr0 |= CR0_TS;
    assert_int_equal(run_at(w, OP_FLDENV, 4, AREA), EXC_NM);
}

static void fnstenv_that_faults_has_masked_nothing(void **state)
{
    struct world *w = *state;
    fill(w, 0x51);
    image(w)[0] = 0x40;
    assert_int_equal(run_at(w, OP_FNSTENV, 4, UNMAPPED - 8), EXC_PF);
    assert_int_equal(image(w)[0], 0x40);
    assert_int_equal(run_at(w, OP_FNSAVE, 4, UNMAPPED - 100), EXC_PF);
    assert_int_equal(image(w)[0], 0x40);
    assert_int_equal(image(w)[4], 0xff);
}

#define XSTATE_TEST(name) cmocka_unit_test_setup_teardown(name, setup, world_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        XSTATE_TEST(save_and_load_are_inverse_and_leave_c_a_clean_unit),
        XSTATE_TEST(a_loaded_image_cannot_fault_the_host),
        XSTATE_TEST(xsave_writes_what_is_asked_for_and_nothing_else),
        XSTATE_TEST(xsave_is_cut_to_xcr0),
        XSTATE_TEST(xsave_faults_in_the_manuals_order),
        XSTATE_TEST(xsave_that_faults_has_stored_nothing),
        XSTATE_TEST(xsavec_packs_components_that_are_in_use),
        XSTATE_TEST(xsaveopt_leaves_out_initial_components),
        XSTATE_TEST(xrstor_loads_present_and_initializes_missing_components),
        XSTATE_TEST(xrstor_reads_the_compacted_format),
        XSTATE_TEST(xrstor_refuses_bad_headers_and_mxcsr),
        XSTATE_TEST(outside_64_bit_code_registers_8_to_15_stay),
        XSTATE_TEST(fxsave_and_fxrstor_keep_their_bounds),
        XSTATE_TEST(xsetbv_accepts_what_the_model_offers),
        XSTATE_TEST(host_pointers_never_reach_the_guest),
        XSTATE_TEST(fnstenv_masks_exceptions_and_has_four_layouts),
        XSTATE_TEST(fnsave_resets_and_frstor_brings_back),
        XSTATE_TEST(fnstenv_that_faults_has_masked_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
