// A request without a signal: what a chip asks for while it answers a read is seen at the next instruction, although the
// block that the read belongs to, and those it is linked to, test nothing.
#include "cpu/engine.h"
#include "tests/fuzz/core.h"

#include <setjmp.h>
#include <stdarg.h>
#include <unistd.h>
#include <cmocka.h>

#define CODE_GPA   0x200000u
#define CHIP_GPA   0xc0000000u
#define WARM_READS 100u
#define LONG       0xffffffffu

static struct core *core;
static unsigned reads;

static uint64_t chip_read(void *opaque, uint64_t gpa, unsigned size)
{
    struct vcpu *v = opaque;
    (void)gpa, (void)size;
    if (++reads < WARM_READS)
        return 3;
    __atomic_or_fetch(&v->requests, REQ_EXIT, __ATOMIC_ACQ_REL);
    return LONG;
}

static const struct mmio_ops chip; // never called: accesses are the machine's, by struct vcpu_exits

static void a_request_of_an_answer_is_seen_at_once(void **state)
{
    (void)state;
    static const uint8_t code[] = {
        0x8b, 0x0d, 0x00, 0x00, 0x00, 0xc0, // mov ecx, [chip]
        0x49,                               // dec ecx
        0x75, 0xfd,                         // jnz to it
        0xeb, 0xf5,                         // jmp to the read
    };
    struct vcpu *v = core->v;
    struct cpu_state *s = &v->s;
    mem_write(&core->mem, CODE_GPA, code, sizeof code);
    s->rflags = FL_ONE;
    s->cr0 = CR0_ET | CR0_NE | CR0_PE;
    s->cpl = 0;
    for (unsigned i = 0; i < SEG_COUNT; i++)
        s->seg[i] = (struct segment){.limit = 0xffffffff,
                                     .attr = SEG_S | SEG_P | SEG_TYPE_W | SEG_TYPE_A | SEG_DB |
                                             (i == SEG_CS ? SEG_TYPE_CODE : 0),
                                     .sel = 8};
    v->mode_gen++;
    s->rip = CODE_GPA;
    v->exits.mmio_read = chip_read;
    assert_true(mem_add_mmio(&core->mem, CHIP_GPA, PAGE_SIZE, &chip, NULL, "chip") >= 0);
    alarm(60);
    assert_int_equal(engine_software.run(v), ENGINE_REQUESTED);
    assert_int_equal(reads, WARM_READS);
    assert_int_equal(s->rip, CODE_GPA + 6);
    assert_int_equal(s->gpr[RCX], LONG);
}

static int create(void **state)
{
    (void)state;
    core = core_create_running();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_of_an_answer_is_seen_at_once),
    };
    return cmocka_run_group_tests(tests, create, NULL);
}
