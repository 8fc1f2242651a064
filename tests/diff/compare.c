// Compares and prints states. See compare.h.
#include "tests/diff/compare.h"
#include <inttypes.h>
#include <string.h>

#define FLAG_RF        0x10000u
#define FLAG_AC        0x40000u
#define FLAGS_COMPARED (0x8d5u | 0x400u | 0x4000u | FLAG_AC | 0x200000u) // arithmetic, DF, NT, AC, ID

static uint64_t undefined_flags(ZydisMnemonic m)
{
    switch (m) { // SDM 2: flags affected
    case ZYDIS_MNEMONIC_AAA:
    case ZYDIS_MNEMONIC_AAS: return 0x8c4; // OF SF ZF PF
    case ZYDIS_MNEMONIC_DAA:
    case ZYDIS_MNEMONIC_DAS: return 0x800; // OF
    case ZYDIS_MNEMONIC_AAM:
    case ZYDIS_MNEMONIC_AAD: return 0x811; // OF AF CF
    default: return 0;
    }
}

// How much of a many-part store is done when a later part faults is not architectural.
static bool stores_in_parts(ZydisMnemonic m)
{
    return m == ZYDIS_MNEMONIC_PUSHA || m == ZYDIS_MNEMONIC_PUSHAD || m == ZYDIS_MNEMONIC_ENTER;
}

// Which operand of CMPS faults first, when both do, differs between processors, and even between CMPSB and REPE CMPSB.
static bool reads_two_places(const struct diff_case *c, const struct form_table *forms)
{
    for (unsigned i = 0; i < c->count; i++)
        if (c->unit[i].form != FORM_NONE) {
            const struct form *f = &forms->form[c->unit[i].form];
            if (f->encoding == ENC_LEGACY && f->map == 0 && (f->opcode & 0xfe) == 0xa6)
                return true;
        }
    return false;
}

struct compare compare_for(const struct diff_case *c, const struct form_table *forms,
                           const struct diff_state *reference, bool instruction_pointers)
{
    ZydisMnemonic m = (ZydisMnemonic)forms->form[c->form].mnemonic;
    struct compare k = {.mode = c->mode,
                        .instruction_pointers = instruction_pointers,
                        .flags = FLAGS_COMPARED,
                        .memory = true,
                        .address = !reads_two_places(c, forms)};
    if (reference->vector != VECTOR_NONE && c->world != WORLD_REAL)
        k.flags |= FLAG_RF;
    if (c->ac)
        k.flags &= ~(uint64_t)FLAG_AC;
    if (c->count == 1) {
        k.flags &= ~undefined_flags(m);
        k.memory = reference->vector == VECTOR_NONE || !stores_in_parts(m);
    }
    return k;
}

static unsigned gpr_count(const struct compare *k)
{
    return k->mode == MODE64 ? 16 : 8;
}
static uint64_t gpr_mask(const struct compare *k)
{
    return k->mode == MODE64 ? ~0ull : 0xffffffff;
}

static bool fpu_control_equal(const struct compare *k, const struct diff_fpu *a, const struct diff_fpu *b)
{
    if (a->fcw != b->fcw || a->fsw != b->fsw || a->ftw != b->ftw || a->mxcsr != b->mxcsr)
        return false;
    // AMD's processors show the pointers while an exception is pending only.
    bool shown = k->instruction_pointers && (a->fip || a->fsw & 0x80);
    return !shown || (a->fop == b->fop && a->fip == b->fip && a->fdp == b->fdp);
}

bool states_equal(const struct compare *k, const struct diff_state *a, const struct diff_state *b)
{
    if (a->vector != b->vector || a->error != b->error || a->rip != b->rip)
        return false;
    if ((a->rflags ^ b->rflags) & k->flags || (k->address && a->address != b->address))
        return false;
    uint64_t mask = gpr_mask(k);
    for (unsigned i = 0; i < gpr_count(k); i++)
        if ((a->gpr[i] ^ b->gpr[i]) & mask)
            return false;
    const struct diff_fpu *x = &a->fpu, *y = &b->fpu;
    return fpu_control_equal(k, x, y) && !memcmp(x->st, y->st, sizeof x->st) &&
           !memcmp(x->k, y->k, sizeof x->k) && !memcmp(x->zmm, y->zmm, sizeof x->zmm) &&
           (!k->memory || !memcmp(a->mem, b->mem, MEM_SIZE));
}

// ---- printing
static const char *const gpr_names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                          "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

static void print_code(FILE *f, const struct diff_case *c, const struct diff_code *code, bool brief)
{
    ZydisDecoder d;
    ZydisFormatter formatter;
    forms_decoder(&d, c->mode);
    ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL);
    uint32_t at = 0, base = code->linear - code_base(c->mode);
    for (unsigned u = 0; u < c->count; at += c->unit[u++].length) {
        ZydisDecodedInstruction i;
        ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
        char text[160] = "?", hex[48] = "";
        for (unsigned b = 0; b < c->unit[u].length; b++)
            snprintf(hex + 3 * b, sizeof hex - 3 * b, "%02x ", code->bytes[at + b]);
        if (ZYAN_SUCCESS(ZydisDecoderDecodeFull(&d, code->bytes + at, c->unit[u].length, &i, ops)))
            ZydisFormatterFormatInstruction(&formatter, &i, ops, i.operand_count_visible, text, sizeof text,
                                            base + at, NULL);
        if (brief)
            fprintf(f, "%s%s[%s]", u ? "; " : "", text, hex);
        else
            fprintf(f, "  %08x  %-45s %s\n", base + at, hex, text);
    }
}

static void print_hex(FILE *f, const uint8_t *p, unsigned n) // most significant byte first
{
    while (n--)
        fprintf(f, "%02x%s", p[n], n && n % 8 == 0 ? "_" : "");
}

static void line64(FILE *f, const char *name, uint64_t in, uint64_t a, uint64_t b, bool force)
{
    if (force || a != b)
        fprintf(f, "  %-7s %016" PRIx64 "  %016" PRIx64 "  %016" PRIx64 "%s\n", name, in, a, b,
                a != b ? "  <<" : "");
}

static void lines_wide(FILE *f, const char *name, unsigned i, const uint8_t *in, const uint8_t *a,
                       const uint8_t *b, unsigned n)
{
    if (!memcmp(a, b, n))
        return;
    const uint8_t *const rows[3] = {in, a, b};
    static const char *const labels[3] = {"before", "a", "b"};
    for (unsigned r = 0; r < 3; r++) {
        fprintf(f, "  %s%u %-6s ", name, i, labels[r]);
        print_hex(f, rows[r], n);
        fprintf(f, "\n");
    }
}

static uint32_t mem_linear(unsigned index)
{
    return index < 2 * 4096 ? DATA_LINEAR + index : STACK_LINEAR + index - 2 * 4096;
}

static void print_memory(FILE *f, const struct diff_state *in, const struct diff_state *a,
                         const struct diff_state *b)
{
    unsigned lines = 0;
    for (unsigned i = 0; i < MEM_SIZE && lines < 12; i += 16) {
        if (!memcmp(a->mem + i, b->mem + i, 16))
            continue;
        fprintf(f, "  [%08x] ", mem_linear(i));
        const uint8_t *const rows[3] = {in->mem, a->mem, b->mem};
        for (unsigned r = 0; r < 3; r++) {
            for (unsigned k = 0; k < 16; k++)
                fprintf(f, "%02x", rows[r][i + k]);
            fprintf(f, r < 2 ? "  " : "\n");
        }
        lines++;
    }
}

static void print_end(FILE *f, const char *name, const struct diff_state *s)
{
    if (s->vector == VECTOR_NONE)
        fprintf(f, "  %-10s ran to the end\n", name);
    else
        fprintf(f, "  %-10s exception %d error %x address %" PRIx64 " at rip %" PRIx64 "\n", name, s->vector,
                s->error, s->address, s->rip);
}

void print_failure(FILE *f, const struct compare *k, const struct diff_case *c, const struct diff_code *code,
                   const char *name_a, const struct diff_state *a, const char *name_b,
                   const struct diff_state *b)
{
    print_code(f, c, code, false);
    print_end(f, name_a, a);
    print_end(f, name_b, b);
    fprintf(f, "  %-7s %-16s  %-16s  %-16s\n", "", "before", name_a, name_b);
    for (unsigned i = 0; i < gpr_count(k); i++) {
        uint64_t m = gpr_mask(k);
        line64(f, gpr_names[i], c->in.gpr[i] & m, a->gpr[i] & m, b->gpr[i] & m, true);
    }
    line64(f, "rflags", c->in.rflags & k->flags, a->rflags & k->flags, b->rflags & k->flags, true);
    const struct diff_fpu *i = &c->in.fpu, *x = &a->fpu, *y = &b->fpu;
    line64(f, "mxcsr", i->mxcsr, x->mxcsr, y->mxcsr, i->mxcsr != 0x1f80);
    line64(f, "fcw", i->fcw, x->fcw, y->fcw, i->fcw != 0x37f);
    line64(f, "fsw", i->fsw, x->fsw, y->fsw, i->fsw != 0);
    line64(f, "ftw", i->ftw, x->ftw, y->ftw, false);
    if (k->instruction_pointers) {
        line64(f, "fop", i->fop, x->fop, y->fop, false);
        line64(f, "fip", i->fip, x->fip, y->fip, false);
        line64(f, "fdp", i->fdp, x->fdp, y->fdp, false);
    }
    for (unsigned n = 0; n < 8; n++)
        lines_wide(f, "st", n, i->st[n], x->st[n], y->st[n], 10);
    for (unsigned n = 0; n < 8; n++)
        lines_wide(f, "k", n, (const uint8_t *)&i->k[n], (const uint8_t *)&x->k[n], (const uint8_t *)&y->k[n],
                   8);
    for (unsigned n = 0; n < 32; n++)
        lines_wide(f, "zmm", n, i->zmm[n], x->zmm[n], y->zmm[n], 64);
    if (k->memory)
        print_memory(f, &c->in, a, b);
}

static void brief_end(FILE *f, const struct diff_state *s)
{
    if (s->vector == VECTOR_NONE)
        fprintf(f, " end");
    else
        fprintf(f, " #%d(%x)@%llx", s->vector, s->error, (unsigned long long)s->rip);
}

void print_brief(FILE *f, const struct compare *k, const struct diff_case *c, const struct diff_code *code,
                 const struct diff_state *a, const struct diff_state *b)
{
    print_code(f, c, code, true);
    fprintf(f, " |");
    brief_end(f, a);
    fprintf(f, " |");
    brief_end(f, b);
    fprintf(f, " |");
    if (a->address != b->address)
        fprintf(f, " cr2");
    for (unsigned i = 0; i < gpr_count(k); i++)
        if ((a->gpr[i] ^ b->gpr[i]) & gpr_mask(k))
            fprintf(f, " %s", gpr_names[i]);
    if ((a->rflags ^ b->rflags) & k->flags)
        fprintf(f, " flags:%llx", (unsigned long long)((a->rflags ^ b->rflags) & k->flags));
    if (!fpu_control_equal(k, &a->fpu, &b->fpu))
        fprintf(f, " fpu-control");
    if (memcmp(a->fpu.st, b->fpu.st, sizeof a->fpu.st))
        fprintf(f, " st");
    if (memcmp(a->fpu.k, b->fpu.k, sizeof a->fpu.k))
        fprintf(f, " k");
    if (memcmp(a->fpu.zmm, b->fpu.zmm, sizeof a->fpu.zmm))
        fprintf(f, " zmm");
    if (k->memory && memcmp(a->mem, b->mem, MEM_SIZE))
        fprintf(f, " memory");
    fprintf(f, "\n");
}
