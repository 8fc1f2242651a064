// Breakpoints at the boundaries of guest instructions (dbt/plant.c): every way out of a block passes one, at
// each the guest's state is known, and taking them away leaves the code as it was. Nothing translated is run.
#include "tests/fuzz/core.h"
#include "tests/fuzz/fuzz.h"
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#define CODE_GPA 0x200000u
#define PML4_GPA 0x1000u
#define PDPT_GPA 0x2000u
#define PD_GPA   0x3000u

static struct core *core; // there can be one in a process

static void put64(uint64_t gpa, uint64_t value)
{
    memcpy(core->mem.ram + gpa, &value, 8);
}

static void set_mode(bool long_mode)
{
    struct vcpu *v = core->v;
    struct cpu_state *s = &v->s;
    uint32_t attr = SEG_S | SEG_P | SEG_TYPE_W | SEG_TYPE_A | (long_mode ? 0 : SEG_DB);
    put64(PML4_GPA, PDPT_GPA | 3);
    put64(PDPT_GPA, PD_GPA | 3);
    for (unsigned i = 0; i < CORE_RAM >> 21; i++)
        put64(PD_GPA + 8 * i, (uint64_t)i << 21 | 0x83); // 2 MiB pages
    s->rflags = FL_ONE;
    s->cr0 = CR0_ET | CR0_NE | CR0_PE | (long_mode ? CR0_PG : 0);
    s->cr3 = PML4_GPA;
    s->cr4 = CR4_PAE | CR4_OSFXSR;
    s->efer = long_mode ? EFER_LME | EFER_LMA : 0;
    s->cpl = 0;
    for (unsigned i = 0; i < SEG_COUNT; i++)
        s->seg[i] =
            (struct segment){.limit = 0xffffffff,
                             .attr = attr | (i == SEG_CS ? SEG_TYPE_CODE | (long_mode ? SEG_L : 0) : 0),
                             .sel = 8};
    v->mode_gen++;
    mmu_flush_all(v, true);
}

static struct block *make(const char *code, unsigned size, unsigned at)
{
    struct dbt *d = core->v->engine;
    uint64_t rip = CODE_GPA + at;
    mem_write(&core->mem, rip, code, size);
    mode_update(d);
    d->v->s.rip = rip;
    return translate(d, d->key);
}

static bool planted(const struct dbt *d, uint32_t at)
{
    return plant_is_at(d, at);
}

static bool in_span(const struct block *b, uint32_t offset)
{
    for (unsigned i = 0; i < b->indirect_count; i++)
        if (offset > b->indirect[i].begin && offset < b->indirect[i].end)
            return true;
    return false;
}

static bool inside(const struct block *b, uint64_t target)
{
    return target >= b->code && target < (uint64_t)b->code + b->code_len;
}

// Decodes the block as it is without breakpoints. What goes out of it must be a boundary itself, lie behind
// one in an indirect exit, or go to a stub.
static void ways_out_pass_a_boundary(const struct dbt *d, const struct block *b, const uint8_t *copy)
{
    ZydisDecoder decoder;
    ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    for (uint32_t off = 0; off < b->code_len;) {
        ZydisDecodedInstruction z;
        ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
        assert_true(ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, copy + off, b->code_len - off, &z, op)));
        uint32_t here = off;
        off += z.length;
        bool branch = z.meta.category == ZYDIS_CATEGORY_COND_BR ||
                      z.meta.category == ZYDIS_CATEGORY_UNCOND_BR || z.meta.category == ZYDIS_CATEGORY_CALL ||
                      z.meta.category == ZYDIS_CATEGORY_RET;
        if (!branch || planted(d, b->code + here) || in_span(b, here))
            continue;
        assert_int_equal(op[0].type, ZYDIS_OPERAND_TYPE_IMMEDIATE); // no indirect one
        uint64_t target = b->code + off + op[0].imm.value.u;
        assert_true(inside(b, target) || (target >= d->stubs_begin && target < d->stubs_end));
    }
}

static void check(const char *code, unsigned size, unsigned at, unsigned indirect)
{
    struct dbt *d = core->v->engine;
    struct block *b = make(code, size, at);
    uint8_t *rw = d->rw + (b->code - d->rx), *copy = malloc(b->code_len);
    memcpy(copy, rw, b->code_len);
    assert_int_equal(b->indirect_count, indirect);
    plant(d, b);
    for (unsigned i = 0; i < b->map_count; i++)
        assert_int_equal(planted(d, b->code + b->map[i].host), !b->map[i].shadow);
    for (unsigned i = 0; i < d->planted_count; i++) {
        uint64_t rip = 1;
        bool parked;
        unsigned rest;
        assert_int_equal(d->rw[d->planted[i].at - d->rx], 0xcc);
        assert_true(plant_boundary(b, d->planted[i].at, CODE_GPA, &rip,
                                   &parked, &rest)); // else its trap would come for ever
        assert_true(rip >= CODE_GPA && rip < CODE_GPA + 3 * PAGE_SIZE);
    }
    ways_out_pass_a_boundary(d, b, copy);
    plant(d, b); // again: what is there is not taken for code
    plant_remove(d);
    assert_int_equal(d->planted_count, 0);
    assert_memory_equal(rw, copy, b->code_len);
    // Of places that are none: the middle of instructions.
    for (uint32_t off = 0; off < b->code_len; off++) {
        uint64_t rip;
        unsigned rest;
        bool parked, known = in_span(b, off);
        for (unsigned i = 0; i < b->map_count; i++)
            known |= b->map[i].host == off && !b->map[i].shadow;
        for (unsigned i = 0; i < b->exit_count; i++)
            known |= b->exits[i].out == off;
        for (unsigned i = 0; i < b->indirect_count; i++)
            known |= b->indirect[i].begin == off;
        assert_int_equal(plant_boundary(b, b->code + off, CODE_GPA, &rip, &parked, &rest), known);
    }
    free(copy);
}

#define CHECK(code, at, indirect) check(code, sizeof code - 1, at, indirect)

static void every_way_out_of_a_block_passes_a_boundary(void **state)
{
    (void)state;
    for (unsigned long_mode = 0; long_mode < 2; long_mode++) {
        unsigned at = long_mode ? 0x800 : 0;
        set_mode(long_mode);
        CHECK("\x01\xd8\x89\x07\xeb\x10", at, 0); // add; mov [di]; jmp
        CHECK("\x39\xd8\x8b\x07\x74\x10\x83\xd2\x01\x72\x20\x89\x07\x73\xf0", at + 0x40,
              0);                                              // two side exits, and one back
        CHECK("\x39\xd8\x8b\x07\xe8\x10\0\0\0", at + 0x80, 1); // call
        CHECK("\x39\xd8\x8b\x07\xe8\0\x10\0\0", at + 0xc0, 1); // call of another page
        CHECK("\x39\xd8\x0f\x82\0\x10\0\0\x8b\x07\xe9\0\x10\0\0", at + 0x100, 0); // jc, jmp to another page
        CHECK("\x39\xd8\x8b\x07\xff\xd0", at + 0x140, 2);                         // call ax
        CHECK("\x39\xd8\xff\x27", at + 0x180, 1);                                 // jmp [di]
        CHECK("\x39\xd8\x50\x58\xc3", at + 0x1c0, 1);                             // push, pop, ret
        CHECK("\x39\xd8\x8b\x07\xe2\x10", at + 0x200, 0);                         // loop
        CHECK("\x39\xd8\x8b\x07\xe0\xf0", at + 0x240, 0);                         // loopne back
        CHECK("\x39\xd8\xe3\x10", at + 0x280, 0);                                 // jcxz
        CHECK("\xfb\x8b\x07\xeb\x10", at + 0x2c0, 0);                             // sti; mov; jmp
        CHECK("\xfb\x74\x10\x8b\x07\xeb\x10", at + 0x300, 0);                     // sti; jz; mov; jmp
        CHECK("\xfb\x74\xf0", at + 0x340, 0);                                     // sti; jz back
        CHECK("\xfb\x0f\x84\0\x10\0\0\xeb\x10", at + 0x380, 0);                   // sti; jz to another page
        CHECK("\xfb\xe2\x10", at + 0x3c0, 0);                                     // sti; loop
        CHECK("\xfb\xc3", at + 0x400, 1);                                         // sti; ret
        CHECK("\xfb\xe8\x10\0\0\0", at + 0x440, 1);                               // sti; call
        CHECK("\xfa\x0f\x31\x89\x07\x0f\xa2", at + 0x480, 0);                     // cli; rdtsc; mov; cpuid
        CHECK("\x89\x07\xf3\xa4", at + 0x4c0, 0);                                 // mov; rep movsb
    }
}

static void nothing_comes_between_sti_and_the_next_instruction(void **state)
{
    (void)state;
    struct dbt *d = core->v->engine;
    uint64_t rip;
    bool parked;
    unsigned rest;
    set_mode(true);
    static const struct {
        char bytes[8];
    } next[] = {
        {"\x8b\x07\xeb\x10"}, {"\x74\x10\x8b\x07\xeb\x10"},
        {"\x74\xf0"},         {"\x0f\x84\0\x10\0\0"},
        {"\xe2\x10"},         {"\xeb\x10"},
        {"\xe8\x10\0\0\0"},   {"\xc3"},
        {"\xff\xd0"},         {"\x50\xeb\x10"},
    };
    for (unsigned i = 0; i < sizeof next / sizeof next[0]; i++) {
        char code[16] = {(char)0xfb};
        memcpy(code + 1, next[i].bytes, sizeof next[i].bytes);
        struct block *b = make(code, sizeof code, 0xc00 + i * 32);
        for (uint32_t off = 0; off < b->code_len; off++)
            if (plant_boundary(b, b->code + off, CODE_GPA, &rip, &parked, &rest))
                assert_int_not_equal(rip, b->rip + 1);
        cache_flush(d);
    }
}

static int create(void **state)
{
    (void)state;
    core = core_create();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_way_out_of_a_block_passes_a_boundary),
        cmocka_unit_test(nothing_comes_between_sti_and_the_next_instruction),
    };
    return cmocka_run_group_tests(tests, create, NULL);
}
