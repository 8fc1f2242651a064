#include <capstone/capstone.h>
#include <inttypes.h>

#include "cpu/insn.h"
#include "frontend/trace.h"
#include "mmu/mem.h"
#include "mmu/mmu.h"

#define CODE_BEFORE 16
#define CODE_BYTES  64

static const char *const gpr_names[16] = {"RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI",
                                          "R8 ", "R9 ", "R10", "R11", "R12", "R13", "R14", "R15"};
static const char *const seg_names[SEG_COUNT] = {"ES", "CS", "SS", "DS", "FS", "GS"};

// Guest memory at a linear address, by page, without a trace in the guest. Returns how many bytes could be
// read.
static size_t peek(struct vcpu *v, uint64_t la, uint8_t *data, size_t n)
{
    size_t done = 0;
    while (done < n) {
        struct walk w;
        uint32_t error;
        size_t chunk = 4096 - ((la + done) & 4095);
        if (chunk > n - done)
            chunk = n - done;
        if (!mmu_probe(v, la + done, ACC_SYSTEM, &w, &error) || !mem_read(v->mem, w.gpa, data + done, chunk))
            break;
        done += chunk;
    }
    return done;
}

static void print_segment(FILE *f, const char *name, const struct segment *s)
{
    fprintf(f, "%-4s %04x base %016" PRIx64 " limit %08x attr %05x\n", name, s->sel, s->base, s->limit,
            s->attr);
}

void code_print(FILE *f, struct vcpu *v)
{
    uint8_t code[CODE_BYTES];
    uint64_t la = v->s.seg[SEG_CS].base + v->s.rip;
    bool long_code = cpu_code64(v);
    if (!long_code)
        la = (uint32_t)la;
    uint8_t before[CODE_BEFORE];
    size_t n = peek(v, la - CODE_BEFORE, before, CODE_BEFORE);
    if (n == CODE_BEFORE) {
        fputs("before RIP  ", f);
        for (size_t i = 0; i < n; i++)
            fprintf(f, " %02x", before[i]);
        putc('\n', f);
    }
    n = peek(v, la, code, sizeof code);
    if (!n) {
        fputs("code at RIP is not mapped\n", f);
        return;
    }
    cs_mode mode = long_code ? CS_MODE_64 : v->s.seg[SEG_CS].attr & SEG_DB ? CS_MODE_32 : CS_MODE_16;
    csh handle;
    cs_insn *insn;
    if (cs_open(CS_ARCH_X86, mode, &handle) != CS_ERR_OK)
        return;
    cs_option(handle, CS_OPT_SKIPDATA, CS_OPT_ON);
    size_t count = cs_disasm(handle, code, n, v->s.rip, 8, &insn);
    for (size_t i = 0; i < count; i++)
        fprintf(f, "%s %016" PRIx64 "  %-8s %s\n", i ? "  " : "=>", insn[i].address, insn[i].mnemonic,
                insn[i].op_str);
    if (count)
        cs_free(insn, count);
    cs_close(&handle);
}

static void print_stack(FILE *f, struct vcpu *v)
{
    uint64_t words[8];
    uint64_t la = cpu_code64(v) ? v->s.gpr[RSP]
                                : (uint32_t)(v->s.seg[SEG_SS].base + (v->s.gpr[RSP] & cpu_stack_mask(v)));
    size_t n = peek(v, la, (uint8_t *)words, sizeof words) / 8;
    fputs("stack       ", f);
    for (size_t i = 0; i < n; i++)
        fprintf(f, " %016" PRIx64 "%s", words[i], i == 3 ? "\n            " : "");
    fputs(n ? "\n" : " is not mapped\n", f);
}

static bool looks_same(const struct engine_step *a, const struct engine_step *b)
{
    bool blocks = (a->kind == STEP_BLOCK || a->kind == STEP_LINK) && (b->kind == STEP_BLOCK || b->kind == STEP_LINK);
    return a->rip == b->rip && a->bits == b->bits && a->cpl == b->cpl &&
           (blocks || (a->kind == b->kind && a->detail == b->detail));
}

// How the machine came here, as far as C saw it.
static void print_trail(FILE *f, const struct engine_step *step, unsigned n)
{
    static const char *const kinds[STEP_KINDS] = {"", "block", "block", "", "exception ", "interrupt ", "call"};
    if (n && step[0].kind != STEP_CALL)
        fputs("last blocks, newest first (jumps between linked blocks leave no trace)\n", f);
    for (unsigned i = 0; i < n; i++) {
        const struct engine_step *s = &step[i];
        unsigned times = 1;
        if (s->kind == STEP_CALL && (!i || step[i - 1].kind != STEP_CALL))
            fputs("calls under way, innermost first (as the return stack has them)\n", f);
        while (s->kind != STEP_CALL && i + 1 < n && looks_same(s, &step[i + 1]))
            i++, times++;
        fprintf(f, "   %016" PRIx64 "  %2u-bit CPL %u  %s", s->rip, s->bits, s->cpl,
                s->kind == STEP_SENSITIVE ? insn_names[s->detail] : kinds[s->kind]);
        if (s->kind == STEP_EXCEPTION || s->kind == STEP_INTERRUPT)
            fprintf(f, "%u", s->detail);
        if (times > 1)
            fprintf(f, ", %u times", times);
        putc('\n', f);
    }
}

static void print_last_exception(FILE *f, const struct engine_step *step, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        if (step[i].kind == STEP_EXCEPTION) {
            fprintf(f, "last exception %u error %#x at %016" PRIx64 "\n", step[i].detail, step[i].error, step[i].rip);
            return;
        }
}

void crash_print(FILE *f, struct machine *m, const char *why)
{
    struct vcpu *v = machine_vcpu(m);
    const struct cpu_state *s = &v->s;
    fprintf(f, "\ngnomon: the guest crashed: %s\n", why);
    for (int i = 0; i < 16; i++)
        fprintf(f, "%s %016" PRIx64 "%s", gpr_names[i], s->gpr[i], i % 4 == 3 ? "\n" : "  ");
    fprintf(f, "RIP %016" PRIx64 "  RFLAGS %08" PRIx64 "  CPL %u\n", s->rip, cpu_rflags(v), s->cpl);
    fprintf(f,
            "CR0 %08" PRIx64 " CR2 %016" PRIx64 " CR3 %016" PRIx64 " CR4 %08" PRIx64 " EFER %08" PRIx64 "\n",
            s->cr0, s->cr2, s->cr3, s->cr4, s->efer);
    for (int i = 0; i < SEG_COUNT; i++)
        print_segment(f, seg_names[i], &s->seg[i]);
    print_segment(f, "LDTR", &s->ldtr);
    print_segment(f, "TR", &s->tr);
    fprintf(f, "GDTR base %016" PRIx64 " limit %04x  IDTR base %016" PRIx64 " limit %04x\n", s->gdtr.base,
            s->gdtr.limit, s->idtr.base, s->idtr.limit);
    struct engine_step trail[ENGINE_TRAIL];
    unsigned steps = machine_trail(m, trail);
    print_last_exception(f, trail, steps);
    code_print(f, v);
    print_stack(f, v);
    print_trail(f, trail, steps);
    fflush(f);
}
