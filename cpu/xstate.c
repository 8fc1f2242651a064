// x87, SSE and AVX state as the guest sees it in memory: XSAVE and its relatives, FXSAVE, and the x87
// environment. SDM 1 chapter 13 (XSAVE), 10.5 (FXSAVE), 8.1.9-8.1.10 (environment).
//
// The guest's registers are the host's own, so saving them is the host's XSAVE into a bounce buffer, and
// restoring them the host's XRSTOR from one that was checked first. What has to be done by hand:
//  1. XCR0: the guest's is a subset of the host's; every mask is cut to it. The compacted format and the init
//     optimization are laid out here from a standard image, so they need nothing of the host.
//  2. Pointers: the x87 unit holds addresses of translated code and of host memory. FIP and FOP are mapped back by
//     the translator; FDP is shown with a FIP that the guest itself loaded, else only where the translator keeps
//     it (docs/decisions/007-x87-pointers.md).
//  3. Outside 64-bit code only registers 0-7 exist: registers 8-31 keep their values.
//  4. Every byte is checked before the first one is stored; a load that faults has changed no register.
//  5. In a deterministic run (struct vcpu_count) nothing of what the host does in between may show: which components are in
//     use is told from their contents, and AMD's pointers, which a switch of threads loses, are 0 while no exception is pending.
#include "cpu/internal.h"
#include "cpu/model.h"
#include "cpu/planted.h"
#include <stddef.h>

#define BIT_X87 0x001u
#define BIT_SSE 0x002u
#define BIT_AVX 0x004u
#define BITS_AVX512 0x0e0u
#define COMPACTED (1ull << 63)

// Offsets in the legacy region (table 10-2) and the header (13.4.2).
#define LEGACY_FSW   2
#define LEGACY_FOP   6
#define LEGACY_FIP   8
#define LEGACY_FDP   16
#define LEGACY_MXCSR 24
#define LEGACY_ST    32
#define LEGACY_XMM   160
#define LEGACY_END   416
#define HEADER       512
#define HEADER_END   576

#define FSW_ES 0x80u

// Offsets in the 32-bit protected-mode environment (figure 8-9).
#define ENV_FIP 12
#define ENV_FOP 18
#define ENV_FDP 20
#define ENV32   28

typedef uint8_t area_t[XSAVE_AREA_SIZE];

// ---- small copies, without libc and vector registers

static void copy(void *to, const void *from, uint64_t n)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

static void clear(void *to, uint64_t n)
{
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(0) : "memory");
}

typedef uint16_t __attribute__((may_alias, aligned(1))) any16;
typedef uint32_t __attribute__((may_alias, aligned(1))) any32;
typedef uint64_t __attribute__((may_alias, aligned(1))) any64;

static inline uint64_t get(const uint8_t *p, unsigned size)
{
    return size == 2 ? *(const any16 *)p : size == 4 ? *(const any32 *)p : *(const any64 *)p;
}

static inline void put(uint8_t *p, unsigned size, uint64_t value)
{
    switch (size) {
    case 2: *(any16 *)p = (uint16_t)value; break;
    case 4: *(any32 *)p = (uint32_t)value; break;
    default: *(any64 *)p = value; break;
    }
}

static bool is_zero(const uint8_t *p, unsigned n)
{
    uint8_t any = 0;
    for (unsigned i = 0; i < n; i++)
        any |= p[i];
    return !any;
}

// ---- the host's registers

static void host_xsave(void *area, uint64_t mask)
{
    __asm__ volatile("xsave64 (%0)"
                     :
                     : "r"(area), "a"((uint32_t)mask), "d"((uint32_t)(mask >> 32))
                     : "memory");
}

static void host_xrstor(const void *area, uint64_t mask)
{
    __asm__ volatile("xrstor64 (%0)"
                     :
                     : "r"(area), "a"((uint32_t)mask), "d"((uint32_t)(mask >> 32))
                     : "memory");
}

static void host_fxsave(void *area) { __asm__ volatile("fxsave64 (%0)" : : "r"(area) : "memory"); }
static void host_fxrstor(const void *area) { __asm__ volatile("fxrstor64 (%0)" : : "r"(area) : "memory"); }

static uint32_t host_mxcsr(void)
{
    uint32_t mxcsr;
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    return mxcsr;
}

// Saves the components in `mask` in the standard format, with a clean header. Bytes between them stay as they
// were.
static void live_save(const struct vcpu *v, uint8_t *area, uint64_t mask)
{
    clear(area, LEGACY_MXCSR); // AMD leaves the pointers alone where no exception is pending
    clear(area + HEADER, HEADER_END - HEADER);
    if (v->model->host_xcr0) {
        host_xsave(area, mask);
        return;
    }
    host_fxsave(area);
    area[HEADER] = BIT_X87 | BIT_SSE;
}

static void live_load(const struct vcpu *v, const uint8_t *area, uint64_t mask)
{
    if (v->model->host_xcr0)
        host_xrstor(area, mask);
    else
        host_fxrstor(area);
}

// The guest's instruction pointer and opcode for the host's. Returns 0 if there is none.
static uint64_t map_fip(const struct vcpu *v, uint64_t fip, uint16_t *fop)
{
    if (fip == v->x87_fip && fip)
        return fip;
    return v->listener.fip_to_guest ? v->listener.fip_to_guest(v->listener.opaque, fip, fop) : 0;
}

static uint64_t map_fdp(const struct vcpu *v, uint64_t fdp, bool ours)
{
    return ours && fdp && fdp != v->x87_fdp_loaded ? v->x87_fdp : fdp;
}

// Replaces the host's pointers in a legacy region by the guest's.
static void map_pointers(const struct vcpu *v, uint8_t *area)
{
    uint64_t fip = get(area + LEGACY_FIP, 8);
    if (!fip && !get(area + LEGACY_FDP, 8))
        return;
    uint16_t fop = (uint16_t)get(area + LEGACY_FOP, 2);
    uint64_t mapped = map_fip(v, fip, &fop);
    put(area + LEGACY_FIP, 8, mapped);
    put(area + LEGACY_FOP, 2, fop);
    put(area + LEGACY_FDP, 8, map_fdp(v, get(area + LEGACY_FDP, 8), mapped != fip));
}

// AMD's images have the pointers only while an exception is pending, and a load without one clears them. The guest's are
// kept across C code all the same: the environment has them, with 32 bits, which is all that can be seen of them then.
static void save_pointers(struct vcpu *v)
{
    uint8_t *area = v->s.xsave, env[ENV32];
    if (!v->model->amd || !(get(area + HEADER, 8) & BIT_X87) || get(area + LEGACY_FSW, 2) & FSW_ES || v->count.is_time)
        return;
    __asm__ volatile("fnstenv (%0)" : : "r"(env) : "memory"); // and masks exceptions: cpu_fpu_save() resets all anyway
    put(area + LEGACY_FOP, 2, get(env + ENV_FOP, 2) & 0x7ff);
    put(area + LEGACY_FIP, 8, get(env + ENV_FIP, 4));
    put(area + LEGACY_FDP, 8, get(env + ENV_FDP, 4));
}

static void load_pointers(const struct vcpu *v)
{
    const uint8_t *area = v->s.xsave;
    uint8_t env[ENV32];
    if (!v->model->amd || !(get(area + HEADER, 8) & BIT_X87) || get(area + LEGACY_FSW, 2) & FSW_ES || !get(area + LEGACY_FIP, 4) ||
        v->count.is_time)
        return;
    __asm__ volatile("fnstenv (%0)" : : "r"(env) : "memory");
    put(env + ENV_FOP, 2, get(area + LEGACY_FOP, 2) & 0x7ff);
    put(env + ENV_FIP, 4, get(area + LEGACY_FIP, 4));
    put(env + ENV_FDP, 4, get(area + LEGACY_FDP, 4));
    __asm__ volatile("fldenv (%0)" : : "r"(env) : "memory");
}

void cpu_fpu_save(struct vcpu *v)
{
    live_save(v, v->s.xsave, v->model->fpu_mask);
    save_pointers(v);
    map_pointers(v, v->s.xsave);
    static const uint32_t mxcsr = 0x1f80;
    __asm__ volatile("fninit\n\tldmxcsr %0" : : "m"(mxcsr));
    if (v->model->host_xcr0 & BIT_AVX) // dirty upper halves make SSE code slow
        __asm__ volatile("vzeroupper");
}

void cpu_fpu_load(struct vcpu *v)
{
    // The image may come from a state stream: what would fault is cut off.
    uint8_t *area = v->s.xsave;
    put(area + LEGACY_MXCSR, 4, get(area + LEGACY_MXCSR, 4) & v->model->mxcsr_mask);
    put(area + HEADER, 8, get(area + HEADER, 8) & v->model->fpu_mask);
    clear(area + HEADER + 8, HEADER_END - HEADER - 8);
    live_load(v, area, v->model->fpu_mask);
    load_pointers(v);
    if (v->x87_exact)
        v->x87_fdp = v->x87_fdp_loaded = get(area + LEGACY_FDP, 8);
}

// The guest has loaded an image.
static void set_pointers(struct vcpu *v, uint64_t fip, uint64_t fdp)
{
    v->x87_fip = fip;
    if (v->x87_exact)
        v->x87_fdp = v->x87_fdp_loaded = fdp;
}

// ---- the 32-bit form of the x87 pointers: FIP 31:0, FCS, FDP 31:0, FDS (table 10-2)

static void pointers_to_32(const struct vcpu *v, uint8_t *area)
{
    uint64_t fip = get(area + LEGACY_FIP, 8), fdp = get(area + LEGACY_FDP, 8);
    bool selectors = !cpu_model_has(v->model, CPU_FPU_CSDS);
    put(area + LEGACY_FIP, 4, fip);
    put(area + LEGACY_FIP + 4, 4, selectors && fip ? v->s.seg[SEG_CS].sel : 0);
    put(area + LEGACY_FDP, 4, fdp);
    put(area + LEGACY_FDP + 4, 4, selectors && fdp ? v->s.seg[SEG_DS].sel : 0);
}

static void pointers_from_32(uint8_t *area)
{
    put(area + LEGACY_FIP + 4, 4, 0);
    put(area + LEGACY_FDP + 4, 4, 0);
}

// ---- pieces of guest memory

struct piece {
    uint32_t offset, size; // in the guest's area
    uint32_t at;           // in the bounce buffer
};
struct pieces {
    struct piece p[16];
    unsigned count;
};

static void add_piece(struct pieces *list, uint32_t offset, uint32_t size, uint32_t at)
{
    if (!size)
        return;
    struct piece *last = list->count ? &list->p[list->count - 1] : NULL;
    if (last && last->offset + last->size == offset && last->at + last->size == at)
        last->size += size;
    else if (list->count < sizeof list->p / sizeof list->p[0])
        list->p[list->count++] = (struct piece){offset, size, at};
}

// What of a component exists outside 64-bit code, where there are registers 0-7 only (13.13).
static uint32_t visible_size(const struct vcpu *v, unsigned component)
{
    uint32_t size = v->model->xsave[component].size;
    if (cpu_code64(v))
        return size;
    switch (component) {
    case 1: return 128;
    case 2: return 128;
    case 6: return 256;
    case 7: return 0;
    default: return size;
    }
}

// Adds the pieces of the components in `set`. Component 0 without bytes 31:24, which belong to `mxcsr`.
static void add_components(const struct vcpu *v, struct pieces *list, uint64_t set, bool mxcsr,
                           uint64_t compacted)
{
    if (set & BIT_X87)
        add_piece(list, 0, LEGACY_MXCSR, 0);
    if (mxcsr)
        add_piece(list, LEGACY_MXCSR, 8, LEGACY_MXCSR);
    if (set & BIT_X87)
        add_piece(list, LEGACY_ST, LEGACY_XMM - LEGACY_ST, LEGACY_ST);
    if (set & BIT_SSE)
        add_piece(list, LEGACY_XMM, visible_size(v, 1), LEGACY_XMM);
    uint32_t next = HEADER_END;
    for (unsigned i = 2; i < XSAVE_COMPONENTS; i++) {
        const struct xsave_component *c = &v->model->xsave[i];
        uint32_t offset = c->offset;
        if (compacted) { // 13.4.3: in order, those in XCOMP_BV
            if (!(compacted >> i & 1))
                continue;
            offset = c->align64 ? (next + 63) & ~63u : next;
            next = offset + c->size;
        }
        if (set >> i & 1)
            add_piece(list, offset, visible_size(v, i), c->offset);
    }
}

static uint64_t piece_address(struct vcpu *v, const struct insn *in, uint64_t base, const struct piece *p,
                              bool write)
{
    return cpu_linear(v, in->sreg, (base + p->offset) & size_mask(in->addr_size), p->size, write);
}

static void check_pieces(struct vcpu *v, const struct insn *in, uint64_t base, const struct pieces *list)
{
    for (unsigned i = 0; i < list->count; i++)
        mmu_check(v, piece_address(v, in, base, &list->p[i], true), list->p[i].size, mmu_acc(v) | ACC_WRITE);
}

static void store_pieces(struct vcpu *v, const struct insn *in, uint64_t base, const struct pieces *list,
                         const uint8_t *area)
{
    for (unsigned i = 0; i < list->count; i++) {
        const struct piece *p = &list->p[i];
        mmu_write(v, piece_address(v, in, base, p, true), area + p->at, p->size, mmu_acc(v) | ACC_WRITE);
    }
}

static void load_pieces(struct vcpu *v, const struct insn *in, uint64_t base, const struct pieces *list,
                        uint8_t *area)
{
    for (unsigned i = 0; i < list->count; i++) {
        const struct piece *p = &list->p[i];
        mmu_read(v, piece_address(v, in, base, p, false), area + p->at, p->size, mmu_acc(v));
    }
}

static uint64_t read_field(struct vcpu *v, const struct insn *in, uint64_t base, unsigned offset,
                           unsigned size)
{
    uint64_t value = 0;
    cpu_read_block(v, in->sreg, (base + offset) & size_mask(in->addr_size), &value, size);
    return value;
}

// ---- XSAVE, XSAVEOPT, XSAVEC

// Checks common to the family; returns the offset of the area.
static uint64_t xsave_operand(struct vcpu *v, const struct insn *in, enum cpu_feature feature)
{
    if (!in->is_mem || !(v->s.cr4 & CR4_OSXSAVE) || !cpu_model_has(v->model, feature))
        cpu_throw(v, EXC_UD);
    if (v->s.cr0 & CR0_TS)
        cpu_throw(v, EXC_NM);
    uint64_t base = cpu_effective_address(v, in);
    if (cpu_linear(v, in->sreg, base, 1, false) & 63)
        cpu_throw_error(v, EXC_GP, 0);
    return base;
}

static uint64_t requested(const struct vcpu *v)
{
    return v->s.xcr0 & v->model->fpu_mask & (v->s.gpr[RDX] << 32 | (uint32_t)v->s.gpr[RAX]);
}

// The bytes of components in their initial configuration, as 13.6 lists them.
static void fill_initial(const struct vcpu *v, uint8_t *area, uint64_t set)
{
    if (set & BIT_X87) {
        clear(area, LEGACY_MXCSR);
        clear(area + LEGACY_ST, LEGACY_XMM - LEGACY_ST);
        put(area, 2, 0x37f);
    }
    if (set & BIT_SSE)
        clear(area + LEGACY_XMM, LEGACY_END - LEGACY_XMM);
    for (unsigned i = 2; i < XSAVE_COMPONENTS; i++)
        if (set >> i & 1)
            clear(area + v->model->xsave[i].offset, v->model->xsave[i].size);
}

// Those of `set` that are not in their initial configuration. The host may say so of one that is.
static uint64_t not_initial(const struct vcpu *v, const uint8_t *area, uint64_t set)
{
    uint64_t used = 0;
    if (set & BIT_X87 &&
        (get(area, 2) != 0x37f || !is_zero(area + 2, LEGACY_MXCSR - 2) || !is_zero(area + LEGACY_ST, LEGACY_XMM - LEGACY_ST)))
        used |= BIT_X87;
    if (set & BIT_SSE && !is_zero(area + LEGACY_XMM, LEGACY_END - LEGACY_XMM))
        used |= BIT_SSE;
    for (unsigned i = 2; i < XSAVE_COMPONENTS; i++)
        if (set >> i & 1 && !is_zero(area + v->model->xsave[i].offset, v->model->xsave[i].size))
            used |= 1ull << i;
    return used;
}

// Saves the guest's components in `mask` and returns which are in use.
static uint64_t guest_image(struct vcpu *v, uint8_t *area, uint64_t mask, bool pointers64)
{
    live_save(v, area, mask);
    uint64_t in_use = get(area + HEADER, 8) & mask;
    fill_initial(v, area, mask & ~in_use);
    if (in_use & BIT_X87)
        map_pointers(v, area);
    if (v->count.is_time)
        in_use = not_initial(v, area, in_use);
    if (!pointers64)
        pointers_to_32(v, area);
    put(area + LEGACY_MXCSR, 4, host_mxcsr());
    put(area + LEGACY_MXCSR + 4, 4, v->model->mxcsr_mask);
    return in_use;
}

// `optimized`: components in their initial configuration are left out (13.9).
static void save_standard(struct vcpu *v, const struct insn *in, uint64_t base, bool optimized)
{
    _Alignas(64) area_t area;
    uint64_t mask = requested(v);
    uint64_t old = read_field(v, in, base, HEADER, 8);
    uint64_t in_use = guest_image(v, area, mask, in->op_size == 8);
    struct pieces list;
    list.count = 0; // not an initializer: some compilers make a call of memset() of it, which uses vector registers
    add_components(v, &list, optimized ? in_use : mask, mask & (BIT_SSE | BIT_AVX), 0);
    add_piece(&list, HEADER, 8, HEADER);
    put(area + HEADER, 8, (old & ~mask) | in_use);
    check_pieces(v, in, base, &list);
    store_pieces(v, in, base, &list, area);
    advance(v, in);
}

void op_xsave(struct vcpu *v, const struct insn *in)
{
    save_standard(v, in, xsave_operand(v, in, CPU_XSAVE), false);
}

void op_xsaveopt(struct vcpu *v, const struct insn *in)
{
    save_standard(v, in, xsave_operand(v, in, CPU_XSAVEOPT), true);
}

void op_xsavec(struct vcpu *v, const struct insn *in)
{
    _Alignas(64) area_t area;
    uint64_t base = xsave_operand(v, in, CPU_XSAVEC), mask = requested(v);
    uint64_t in_use = guest_image(v, area, mask, in->op_size == 8);
    if (mask & BIT_SSE && get(area + LEGACY_MXCSR, 4) != 0x1f80) // 13.10: MXCSR is part of this component
        in_use |= BIT_SSE;
    struct pieces list;
    list.count = 0;
    add_components(v, &list, in_use, in_use & BIT_SSE, COMPACTED | mask);
    add_piece(&list, HEADER, 16, HEADER);
    put(area + HEADER, 8, in_use);
    put(area + HEADER + 8, 8, COMPACTED | mask);
    check_pieces(v, in, base, &list);
    store_pieces(v, in, base, &list, area);
    advance(v, in);
}

void op_xsaves(struct vcpu *v, const struct insn *in) // not offered: there is no supervisor state
{
    (void)in;
    cpu_throw(v, EXC_UD);
}

// ---- XRSTOR (13.8)

struct restore {
    uint64_t mask;      // RFBM
    uint64_t present;   // components loaded from memory, the other ones of mask are initialized
    uint64_t compacted; // XCOMP_BV or 0
    bool mxcsr;         // comes from memory
};

static struct restore check_header(struct vcpu *v, const struct insn *in, uint64_t base)
{
    uint8_t header[64];
    cpu_read_block(v, in->sreg, (base + HEADER) & size_mask(in->addr_size), header, sizeof header);
    uint64_t xstate_bv = get(header, 8), xcomp_bv = get(header + 8, 8);
    bool valid;
    if (xcomp_bv & COMPACTED)
        valid = cpu_model_has(v->model, CPU_XSAVEC) && !(xcomp_bv & ~COMPACTED & ~v->s.xcr0) &&
                !(xstate_bv & ~xcomp_bv) && is_zero(header + 16, 48);
    else
        valid = !(xstate_bv & ~v->s.xcr0) && is_zero(header + 8, 16);
    if (!valid || xstate_bv & COMPACTED)
        cpu_throw_error(v, EXC_GP, 0);
    struct restore r = {.mask = requested(v), .compacted = xcomp_bv & COMPACTED ? xcomp_bv : 0};
    r.present = r.mask & xstate_bv;
    r.mxcsr = r.compacted ? r.present & BIT_SSE : r.mask & (BIT_SSE | BIT_AVX);
    return r;
}

static void check_mxcsr(struct vcpu *v, uint64_t mxcsr)
{
    if (mxcsr & ~(uint64_t)v->model->mxcsr_mask & 0xffffffff)
        cpu_throw_error(v, EXC_GP, 0);
}

// Outside 64-bit code: the initial value for registers 0-7 of a component, the current one for the rest.
// Returns whether the rest is more than zeros, so that the component can't be marked as initial.
static bool keep_hidden(const struct vcpu *v, uint8_t *area, unsigned component)
{
    const struct xsave_component *c = &v->model->xsave[component];
    uint32_t visible = visible_size(v, component);
    clear(area + c->offset, visible);
    return !is_zero(area + c->offset + visible, c->size - visible);
}

void op_xrstor(struct vcpu *v, const struct insn *in)
{
    _Alignas(64) area_t area;
    uint64_t base = xsave_operand(v, in, CPU_XSAVE);
    struct restore r = check_header(v, in, base);
    uint64_t image = r.present; // components the host loads from `area`
    if (!cpu_code64(v)) {
        live_save(v, area, r.mask);
        fill_initial(v, area, r.mask & ~get(area + HEADER, 8));
        for (unsigned i = 1; i < XSAVE_COMPONENTS; i++)
            if (r.mask >> i & 1 && visible_size(v, i) < v->model->xsave[i].size && keep_hidden(v, area, i))
                image |= 1ull << i;
    }
    put(area + LEGACY_MXCSR, 4, host_mxcsr());
    if (r.compacted && r.mask & BIT_SSE && !(r.present & BIT_SSE))
        put(area + LEGACY_MXCSR, 4, 0x1f80);
    struct pieces list;
    list.count = 0;
    add_components(v, &list, r.present, false, r.compacted);
    load_pieces(v, in, base, &list, area);
    if (r.mxcsr)
        put(area + LEGACY_MXCSR, 4, read_field(v, in, base, LEGACY_MXCSR, 4));
    check_mxcsr(v, get(area + LEGACY_MXCSR, 4));
    if (in->op_size != 8)
        pointers_from_32(area);
    clear(area + HEADER, HEADER_END - HEADER);
    put(area + HEADER, 8, image);
    live_load(v, area, r.mask);
    if (r.present & BIT_X87)
        set_pointers(v, get(area + LEGACY_FIP, 8), get(area + LEGACY_FDP, 8));
    advance(v, in);
}

void op_xrstors(struct vcpu *v, const struct insn *in)
{
    (void)in;
    cpu_throw(v, EXC_UD);
}

// ---- XCR0

void op_xgetbv(struct vcpu *v, const struct insn *in)
{
    if (!(v->s.cr4 & CR4_OSXSAVE))
        cpu_throw(v, EXC_UD);
    uint64_t value = v->s.xcr0;
    uint32_t index = (uint32_t)v->s.gpr[RCX];
    if (index > 1 || (index == 1 && !cpu_model_has(v->model, CPU_XGETBV1)))
        cpu_throw_error(v, EXC_GP, 0);
    if (index == 1) { // XCR0 & XINUSE
        if (v->count.is_time) {
            _Alignas(64) area_t area;
            live_save(v, area, v->model->fpu_mask);
            value &= not_initial(v, area, get(area + HEADER, 8));
        } else if (v->model->host_xgetbv1) {
            uint32_t lo, hi;
            __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(1));
            value &= (uint64_t)hi << 32 | lo;
        } else {
            _Alignas(64) area_t area;
            live_save(v, area, v->model->fpu_mask);
            value &= get(area + HEADER, 8);
        }
    }
    v->s.gpr[RAX] = (uint32_t)value;
    v->s.gpr[RDX] = value >> 32;
    advance(v, in);
}

void op_xsetbv(struct vcpu *v, const struct insn *in)
{
    if (!(v->s.cr4 & CR4_OSXSAVE))
        cpu_throw(v, EXC_UD);
    uint64_t value = v->s.gpr[RDX] << 32 | (uint32_t)v->s.gpr[RAX];
    bool valid = v->s.cpl == 0 && (uint32_t)v->s.gpr[RCX] == 0 && value & BIT_X87 &&
                 !(value & ~cpu_model_xcr0(v->model));
    if (value & BIT_AVX && !(value & BIT_SSE)) // 13.3
        valid = false;
    if (value & BITS_AVX512 && (value & (BITS_AVX512 | BIT_AVX)) != (BITS_AVX512 | BIT_AVX))
        valid = false;
    if (!valid)
        cpu_throw_error(v, EXC_GP, 0);
    if (v->s.xcr0 != value) {
        v->s.xcr0 = value;
        v->mode_gen++;
    }
    advance(v, in);
}

// ---- FXSAVE, FXRSTOR

// Where processors look before they go through an image from its start: this decides which fault there is, and CR2.
static void touch_byte(struct vcpu *v, const struct insn *in, uint64_t at, bool write)
{
    mmu_check(v, cpu_linear(v, in->sreg, at, 1, write), 1, mmu_acc(v) | (write ? ACC_WRITE : ACC_READ));
}

static uint64_t fxsave_operand(struct vcpu *v, const struct insn *in, bool write)
{
    if (!in->is_mem || v->s.cr0 & CR0_EM || !cpu_model_has(v->model, CPU_FXSR))
        cpu_throw(v, EXC_UD);
    if (v->s.cr0 & CR0_TS)
        cpu_throw(v, EXC_NM);
    uint64_t base = cpu_effective_address(v, in);
    uint64_t la = cpu_linear(v, in->sreg, base, 512, write);
    if (la & 15)
        cpu_throw_error(v, alignment_checked(v) && la & 3 ? EXC_AC : EXC_GP, 0); // as a Zen 4 does
    touch_byte(v, in, base + 511, write);
    mmu_check(v, la, 512, mmu_acc(v) | (write ? ACC_WRITE : ACC_READ));
    return base;
}

// Bytes with a meaning: up to XMM15, or XMM7 outside 64-bit code. The processor leaves the rest alone.
static unsigned fxsave_size(const struct vcpu *v) { return cpu_code64(v) ? LEGACY_END : LEGACY_XMM + 128; }

void op_fxsave(struct vcpu *v, const struct insn *in)
{
    _Alignas(16) uint8_t area[512];
    uint64_t base = fxsave_operand(v, in, true);
    clear(area, LEGACY_MXCSR);
    host_fxsave(area);
    map_pointers(v, area);
    if (in->op_size != 8)
        pointers_to_32(v, area);
    cpu_write_block(v, in->sreg, base, area, fxsave_size(v));
    advance(v, in);
}

void op_fxrstor(struct vcpu *v, const struct insn *in)
{
    _Alignas(16) uint8_t area[512], image[512];
    uint64_t base = fxsave_operand(v, in, false);
    unsigned size = fxsave_size(v);
    cpu_read_block(v, in->sreg, base, image, size);
    check_mxcsr(v, get(image + LEGACY_MXCSR, 4));
    if (in->op_size != 8)
        pointers_from_32(image);
    host_fxsave(area); // for the registers that stay
    copy(area, image, size);
    area[LEGACY_XMM + 7 * 16 + 3] ^= PLANTED(vector_register) ? 1 : 0;
    host_fxrstor(area);
    set_pointers(v, get(area + LEGACY_FIP, 8), get(area + LEGACY_FDP, 8));
    advance(v, in);
}

// ---- x87 environment: 14 or 28 bytes, with four layouts of the pointers (figures 8-9 to 8-12)

#define ENV16 14
#define STACK_BYTES 80 // ST0-ST7

static void require_x87(struct vcpu *v, const struct insn *in)
{
    if (!in->is_mem)
        cpu_throw(v, EXC_UD);
    if (v->s.cr0 & (CR0_EM | CR0_TS))
        cpu_throw(v, EXC_NM);
}

static bool real_layout(const struct vcpu *v) { return !cpu_protected(v) || cpu_v86(v); }
static unsigned env_size(const struct insn *in) { return in->op_size == 2 ? ENV16 : ENV32; }

struct x87_pointers {
    uint64_t fip, fdp;
    uint32_t fop, fcs, fds;
};

// From the live registers. `env` is the host's own 32-bit environment image.
static struct x87_pointers read_pointers(const struct vcpu *v, uint8_t legacy[512], const uint8_t *env)
{
    struct x87_pointers p = {0};
    uint64_t raw = get(legacy + LEGACY_FIP, 8);
    p.fop = (uint32_t)get(env + ENV_FOP, 2) & 0x7ff;
    if (!raw && v->count.is_time) {
        p.fop = 0;
    } else if (!raw && get(env + ENV_FIP, 4)) {
        // AMD shows the pointers in FXSAVE only while an exception is pending; the environment has them
        // always, with 32 bits.
        uint16_t fop = (uint16_t)p.fop;
        raw = get(env + ENV_FIP, 4);
        p.fip = map_fip(v, raw, &fop);
        p.fop = fop;
        p.fdp = get(env + ENV_FDP, 4);
        p.fdp = map_fdp(v, p.fdp, p.fip != raw);
    } else {
        map_pointers(v, legacy);
        p.fip = get(legacy + LEGACY_FIP, 8);
        p.fdp = get(legacy + LEGACY_FDP, 8);
        if (raw)
            p.fop = (uint32_t)get(legacy + LEGACY_FOP, 2) & 0x7ff;
    }
    if (real_layout(v) && p.fip != raw)
        p.fip += v->s.seg[SEG_CS].base; // linear there
    if (!cpu_model_has(v->model, CPU_FPU_CSDS)) {
        p.fcs = p.fip ? v->s.seg[SEG_CS].sel : 0;
        p.fds = p.fdp ? v->s.seg[SEG_DS].sel : 0;
    }
    return p;
}

// Turns the host's 28-byte environment into the layout of the mode; `out` may hold ENV32 bytes.
static void encode_env(const struct vcpu *v, const struct insn *in, const uint8_t *env, struct x87_pointers p,
                       uint8_t *out)
{
    bool real = real_layout(v);
    if (in->op_size == 2) {
        for (unsigned i = 0; i < 3; i++) // control, status, tag
            put(out + 2 * i, 2, get(env + 4 * i, 2));
        put(out + 6, 2, p.fip);
        put(out + 8, 2, real ? (p.fip >> 16 & 0xf) << 12 | p.fop : p.fcs);
        put(out + 10, 2, p.fdp);
        put(out + 12, 2, real ? (p.fdp >> 16 & 0xf) << 12 : p.fds);
        return;
    }
    copy(out, env, 12);
    put(out + 12, 4, real ? p.fip & 0xffff : p.fip);
    put(out + 16, 4, real ? (p.fip >> 16 & 0xffff) << 12 | p.fop : p.fop << 16 | p.fcs);
    put(out + 20, 4, real ? p.fdp & 0xffff : p.fdp);
    put(out + 24, 4, real ? (p.fdp >> 16 & 0xffff) << 12 : 0xffff0000u | p.fds);
}

// The other way: to the 28-byte protected-mode image that the host loads, without selectors.
static void decode_env(const struct vcpu *v, const struct insn *in, const uint8_t *from, uint8_t *env)
{
    bool real = real_layout(v);
    uint64_t fip, fdp, fop;
    clear(env, ENV32);
    unsigned word = in->op_size == 2 ? 2 : 4;
    for (unsigned i = 0; i < 3; i++)
        put(env + 4 * i, 2, get(from + word * i, 2));
    if (in->op_size == 2) {
        fip = get(from + 6, 2) | (real ? get(from + 8, 2) >> 12 << 16 : 0);
        fdp = get(from + 10, 2) | (real ? get(from + 12, 2) >> 12 << 16 : 0);
        fop = real ? get(from + 8, 2) & 0x7ff : 0;
    } else {
        fip = real ? get(from + 12, 2) | (get(from + 16, 4) >> 12 & 0xffff) << 16 : get(from + 12, 4);
        fdp = real ? get(from + 20, 2) | (get(from + 24, 4) >> 12 & 0xffff) << 16 : get(from + 20, 4);
        fop = real ? get(from + 16, 4) & 0x7ff : get(from + 18, 2) & 0x7ff;
    }
    put(env + 12, 4, fip);
    put(env + 18, 2, fop);
    put(env + 20, 4, fdp);
}

// The first word of the environment and the last byte of all come first.
static void touch_ends(struct vcpu *v, const struct insn *in, uint64_t base, unsigned size, bool write)
{
    unsigned word = in->op_size == 2 ? 2 : 4;
    if (alignment_checked(v) && cpu_linear(v, in->sreg, base, word, write) & (word - 1))
        cpu_throw_error(v, EXC_AC, 0);
    mmu_check(v, cpu_linear(v, in->sreg, base, word, write), word, mmu_acc(v) | (write ? ACC_WRITE : ACC_READ));
    touch_byte(v, in, base + size - 1, write);
}

static void store_env(struct vcpu *v, const struct insn *in, bool with_registers)
{
    require_x87(v, in);
    _Alignas(16) uint8_t legacy[512];
    uint8_t image[ENV32 + STACK_BYTES], out[ENV32 + STACK_BYTES];
    uint64_t base = cpu_effective_address(v, in);
    unsigned env = env_size(in), size = env + (with_registers ? STACK_BYTES : 0);
    touch_ends(v, in, base, size, true);
    // The host's instruction masks exceptions or resets the unit, so nothing may fault after it.
    mmu_check(v, cpu_linear(v, in->sreg, base, size, true), size, mmu_acc(v) | ACC_WRITE);
    clear(legacy, LEGACY_MXCSR);
    host_fxsave(legacy);
    if (with_registers)
        __asm__ volatile("fnsave (%0)" : : "r"(image) : "memory");
    else
        __asm__ volatile("fnstenv (%0)" : : "r"(image) : "memory");
    encode_env(v, in, image, read_pointers(v, legacy, image), out);
    if (with_registers)
        copy(out + env, image + ENV32, STACK_BYTES);
    cpu_write_block(v, in->sreg, base, out, size);
    advance(v, in);
}

static void load_env(struct vcpu *v, const struct insn *in, bool with_registers)
{
    require_x87(v, in);
    uint16_t fsw;
    __asm__ volatile("fnstsw %0" : "=m"(fsw));
    if (fsw & FSW_ES) // these wait for pending exceptions first
        cpu_x87_error(v);
    uint8_t image[ENV32 + STACK_BYTES], from[ENV32 + STACK_BYTES];
    unsigned env = env_size(in), size = env + (with_registers ? STACK_BYTES : 0);
    touch_ends(v, in, cpu_effective_address(v, in), size, false);
    cpu_read_block(v, in->sreg, cpu_effective_address(v, in), from, size);
    decode_env(v, in, from, image);
    if (with_registers) {
        copy(image + ENV32, from + env, STACK_BYTES);
        __asm__ volatile("frstor (%0)" : : "r"(image) : "memory");
    } else {
        __asm__ volatile("fldenv (%0)" : : "r"(image) : "memory");
    }
    set_pointers(v, get(image + ENV_FIP, 4), get(image + ENV_FDP, 4));
    v->x87_hidden = 0; // the status word is another
    advance(v, in);
}

void op_fnstenv(struct vcpu *v, const struct insn *in) { store_env(v, in, false); }
void op_fnsave(struct vcpu *v, const struct insn *in) { store_env(v, in, true); }
void op_fldenv(struct vcpu *v, const struct insn *in) { load_env(v, in, false); }
void op_frstor(struct vcpu *v, const struct insn *in) { load_env(v, in, true); }
