// String instructions: the host's own, run a page at a time on host addresses (SDM vol. 2, REP; vol. 1, 7.3.9).
// Between pieces the registers are exact, so faults and interrupts find the instruction resumable.
#include "cpu/model.h"
#include "dbt/dbt.h"

enum { STR_MOVS = 0xa4, STR_CMPS = 0xa6, STR_STOS = 0xaa, STR_LODS = 0xac, STR_SCAS = 0xae };

static uint64_t size_mask(unsigned size) { return size == 8 ? ~0ull : (1ull << size * 8) - 1; }

static uint64_t *reg(struct vcpu *v, unsigned r) { return &v->s.gpr[r]; }

// Adds n to a counter or index register in the width of the address size.
static void advance(struct vcpu *v, unsigned r, unsigned width, uint64_t n)
{
    uint64_t *p = reg(v, r), m = size_mask(width);
    *p = width == 2 ? (*p & ~m) | ((*p + n) & m) : (*p + n) & m;
}

// Host address of an element that the TLB has whole, or null.
static uint8_t *cached(const struct vcpu *v, uint64_t la, unsigned size, bool write)
{
    const struct tlb_set *s = &v->tlb->set[mmu_tlb_kind(v)];
    unsigned i = la >> PAGE_SHIFT & (TLB_ENTRIES - 1);
    uint64_t off = la - (write ? s->write_tag : s->read_tag)[i];
    return off <= PAGE_SIZE - size ? (uint8_t *)(s->host_page[i] + off) : NULL;
}

static uint8_t *host_of(struct vcpu *v, uint64_t la, bool write)
{
    uint8_t *host = cached(v, la, 1, write);
    return host ? host : mmu_fill(v, la, (write ? ACC_WRITE : ACC_READ) | mmu_acc(v));
}

// RAM that is written to, but somebody wants to know of it: its host address, and in *gpa where that is; null: it is none.
static uint8_t *traced_host(struct vcpu *v, uint64_t la, uint64_t *gpa)
{
    struct walk w;
    uint32_t error;
    if (v->watch_data || !mmu_probe(v, la, ACC_WRITE | mmu_acc(v), &w, &error) || !w.writable)
        return NULL;
    struct mem_slot slot = mem_find(v->mem, w.gpa);
    *gpa = w.gpa;
    return slot.kind == MEM_RAM ? slot.host : NULL;
}

static uint64_t room(uint64_t la, unsigned size) { return (PAGE_SIZE - (la & (PAGE_SIZE - 1))) / size; }

#define REP_STRING(insn, dst, src, n) \
    __asm__ volatile("rep " insn : "+D"(dst), "+S"(src), "+c"(n) : : "memory")

static void host_movs(unsigned size, uint8_t *dst, uint8_t *src, uint64_t n)
{
    switch (size) {
    case 1: REP_STRING("movsb", dst, src, n); break;
    case 2: REP_STRING("movsw", dst, src, n); break;
    case 4: REP_STRING("movsl", dst, src, n); break;
    default: REP_STRING("movsq", dst, src, n); break;
    }
}

static void host_stos(unsigned size, uint8_t *dst, uint64_t value, uint64_t n)
{
    switch (size) {
    case 1: __asm__ volatile("rep stosb" : "+D"(dst), "+c"(n) : "a"(value) : "memory"); break;
    case 2: __asm__ volatile("rep stosw" : "+D"(dst), "+c"(n) : "a"(value) : "memory"); break;
    case 4: __asm__ volatile("rep stosl" : "+D"(dst), "+c"(n) : "a"(value) : "memory"); break;
    default: __asm__ volatile("rep stosq" : "+D"(dst), "+c"(n) : "a"(value) : "memory"); break;
    }
}

// Runs at most n (> 0) compares; returns how many were done and the flags after the last.
#define COMPARE(insn, n, flags, a, s, d) \
    __asm__ volatile(insn "; pushfq; popq %[f]" \
                     : [f] "=r"(flags), "+c"(n), "+S"(s), "+D"(d) : "a"(a) : "memory", "cc")

static uint64_t host_compare(unsigned op, unsigned size, unsigned rep, uint64_t value, const uint8_t *src, const uint8_t *dst,
                             uint64_t n, uint64_t *flags)
{
    uint64_t left = n, f = 0;
    bool eq = rep != 0xf2;
    if (op == STR_CMPS) {
        switch (size * 2 + eq) {
        case 3: COMPARE("repe cmpsb", left, f, value, src, dst); break;
        case 2: COMPARE("repne cmpsb", left, f, value, src, dst); break;
        case 5: COMPARE("repe cmpsw", left, f, value, src, dst); break;
        case 4: COMPARE("repne cmpsw", left, f, value, src, dst); break;
        case 9: COMPARE("repe cmpsl", left, f, value, src, dst); break;
        case 8: COMPARE("repne cmpsl", left, f, value, src, dst); break;
        case 17: COMPARE("repe cmpsq", left, f, value, src, dst); break;
        default: COMPARE("repne cmpsq", left, f, value, src, dst); break;
        }
    } else {
        switch (size * 2 + eq) {
        case 3: COMPARE("repe scasb", left, f, value, src, dst); break;
        case 2: COMPARE("repne scasb", left, f, value, src, dst); break;
        case 5: COMPARE("repe scasw", left, f, value, src, dst); break;
        case 4: COMPARE("repne scasw", left, f, value, src, dst); break;
        case 9: COMPARE("repe scasl", left, f, value, src, dst); break;
        case 8: COMPARE("repne scasl", left, f, value, src, dst); break;
        case 17: COMPARE("repe scasq", left, f, value, src, dst); break;
        default: COMPARE("repne scasq", left, f, value, src, dst); break;
        }
    }
    *flags = f;
    return n - left;
}

static void set_arith(struct vcpu *v, uint64_t f)
{
    v->s.rflags = (v->s.rflags & ~(uint64_t)FL_ARITH) | (f & FL_ARITH);
}

static bool alignment_checked(const struct vcpu *v) { return v->s.cpl == 3 && v->s.rflags & FL_AC && v->s.cr0 & CR0_AM; }

// Linear address of an element that can be accessed: all that its segment and its pages have to say is said.
static uint64_t checked(struct vcpu *v, unsigned sreg, uint64_t offset, unsigned size, bool write)
{
    uint64_t la = cpu_linear(v, sreg, offset, size, write);
    if (alignment_checked(v) && la & (size - 1))
        cpu_throw_error(v, EXC_AC, 0);
    mmu_check(v, la, size, (write ? ACC_WRITE : ACC_READ) | mmu_acc(v));
    return la;
}

// One piece of up to `count` elements; returns how many were done. *stop: a compare ended the repetition, *flags: what it left.
static uint64_t piece(struct vcpu *v, const struct insn *in, uint64_t count, bool *stop, uint64_t *flags)
{
    unsigned op = (unsigned)in->imm, size = in->op_size, width = in->addr_size;
    bool uses_src = op == STR_MOVS || op == STR_CMPS || op == STR_LODS;
    bool uses_dst = op != STR_LODS, writes = op == STR_MOVS || op == STR_STOS;
    uint64_t m = size_mask(width), si = *reg(v, RSI) & m, di = *reg(v, RDI) & m;
    uint64_t src = 0, dst = 0;
    bool down = v->s.dflag;
    uint8_t *hs = NULL, *hd = NULL;
    if (cpu_code64(v) && !alignment_checked(v)) { // what the TLB has needs no more checks
        src = si + (in->sreg >= SEG_FS ? v->s.seg[in->sreg].base : 0);
        dst = di;
        hs = uses_src ? cached(v, src, size, false) : NULL;
        hd = uses_dst ? cached(v, dst, size, writes) : NULL;
    }
    bool known = (hs || !uses_src) && (hd || !uses_dst);
    // whose fault comes first
    bool repe_cmpsb = size == 1 && in->rep == 0xf3;
    bool dst_first = op == STR_CMPS && !(repe_cmpsb ? v->model->cmpsb_source_first : v->model->cmps_source_first);
    if (!known && uses_dst && dst_first)
        dst = checked(v, SEG_ES, di, size, writes);
    if (!known && uses_src)
        src = checked(v, in->sreg, si, size, false);
    if (!known && uses_dst && !dst_first)
        dst = checked(v, SEG_ES, di, size, writes);
    // How many elements stay in the pages at hand, within flat segments and without wrapping the index register?
    uint64_t n = down ? 1 : count;
    if (!cpu_code64(v) && n > 1) {
        uint64_t far = n > PAGE_SIZE ? PAGE_SIZE : n;
        const struct segment *s = &v->s.seg[in->sreg], *e = &v->s.seg[SEG_ES];
        bool plain = !((s->attr | e->attr) & SEG_UNUSABLE);
        if (plain && cpu_protected(v) && !cpu_v86(v))
            plain = !((uses_src && !(s->attr & SEG_TYPE_CODE) && s->attr & SEG_TYPE_E) ||
                      (uses_dst && !(e->attr & SEG_TYPE_CODE) && e->attr & SEG_TYPE_E));
        uint64_t span = far * size;
        if (!plain || (uses_src && (si + span - 1 > m || si + span - 1 > s->limit)) ||
            (uses_dst && (di + span - 1 > m || di + span - 1 > e->limit)))
            n = 1;
    }
    if (n > 1 && uses_src && room(src, size) < n)
        n = room(src, size);
    if (n > 1 && uses_dst && room(dst, size) < n)
        n = room(dst, size);
    uint64_t told_gpa = 0;
    bool tell = false;
    if (n == 0 || (uses_src && (src & (PAGE_SIZE - 1)) + size > PAGE_SIZE) || (uses_dst && (dst & (PAGE_SIZE - 1)) + size > PAGE_SIZE)) {
        n = 1;
        hs = hd = NULL;
    } else if (!known) {
        hs = uses_src ? host_of(v, src, false) : NULL;
        hd = uses_dst ? host_of(v, dst, writes) : NULL;
        tell = uses_dst && writes && !hd && (!uses_src || hs) && (hd = traced_host(v, dst, &told_gpa));
    }
    uint64_t element[2] = {0, 0};
    if ((uses_src && !hs) || (uses_dst && !hd)) { // crossing or MMIO: one element through a buffer
        n = 1;
        if (uses_src) {
            mmu_read(v, src, &element[0], size, mmu_acc(v));
            hs = (uint8_t *)&element[0];
        }
        if (op == STR_MOVS || op == STR_STOS) {
            mmu_write(v, dst, op == STR_MOVS ? &element[0] : reg(v, RAX), size, ACC_WRITE | mmu_acc(v));
            goto done;
        }
        if (uses_dst) {
            mmu_read(v, dst, &element[1], size, mmu_acc(v));
            hd = (uint8_t *)&element[1];
        }
    }
    switch (op) {
    case STR_MOVS:
    case STR_STOS:
        if (op == STR_MOVS)
            host_movs(size, hd, hs, n);
        else
            host_stos(size, hd, *reg(v, RAX), n);
        if (tell)
            mem_trace_written(v->mem, told_gpa, (unsigned)(n * size));
        break;
    case STR_LODS: {
        uint64_t value = 0;
        uint8_t *last = hs + (n - 1) * size;
        for (unsigned i = 0; i < size; i++)
            value |= (uint64_t)last[i] << 8 * i;
        uint64_t keep = size == 8 || size == 4 ? 0 : *reg(v, RAX) & ~size_mask(size);
        *reg(v, RAX) = keep | value;
        break;
    }
    default: {
        n = host_compare(op, size, in->rep, *reg(v, RAX), hs, hd, n, flags);
        *stop = in->rep == 0xf2 ? *flags & FL_ZF : !(*flags & FL_ZF);
        break;
    }
    }
done:;
    uint64_t step = n * size;
    if (down)
        step = -step;
    if (uses_src)
        advance(v, RSI, width, step);
    if (uses_dst)
        advance(v, RDI, width, step);
    return n;
}

// Intel's processors, repeating with 32-bit addresses in 64-bit code, write RCX before the first iteration, and what addresses
// operands of MOVS and STOS.
static void cut_registers(struct vcpu *v, const struct insn *in)
{
    advance(v, RCX, 4, 0);
    if (in->imm == STR_MOVS || in->imm == STR_STOS)
        advance(v, RDI, 4, 0);
    if (in->imm == STR_MOVS)
        advance(v, RSI, 4, 0);
}

void string_execute(struct vcpu *v, const struct insn *in)
{
    bool stop = false, more = false, amd = cpu_model_is_amd(v->model);
    uint64_t flags = v->s.rflags;
    if (!in->rep) {
        piece(v, in, 1, &stop, &flags);
        set_arith(v, flags);
        v->s.rip += in->len;
        return;
    }
    if (!amd && in->addr_size == 4)
        cut_registers(v, in);
    uint64_t m = size_mask(in->addr_size);
    while (!stop && !more && *reg(v, RCX) & m) {
        bool step = v->s.rflags & FL_TF; // traps after each iteration (SDM 2B, REP)
        uint64_t n = piece(v, in, step ? 1 : *reg(v, RCX) & m, &stop, &flags);
        if (amd) // a fault in a later one finds the flags of the last; Intel's: those from before the instruction (SDM 2B)
            set_arith(v, flags);
        advance(v, RCX, in->addr_size, -n);
        // A breakpoint traps after the iteration that hit it; interrupts are taken between pieces. RIP stays at the instruction.
        more = !stop && *reg(v, RCX) & m && (step || v->debug_hits || requests_due(v));
    }
    set_arith(v, flags);
    if (!more)
        v->s.rip += in->len;
}
