// Gathers and scatters touch as many pages as they have elements, so one check can't cover them: their elements are moved
// one by one between guest memory and the saved vector state (SDM vol. 2, VPGATHER*, VPSCATTER*). A fault leaves the
// elements done before it done, their mask elements (of those that were off, too) cleared and, with
// EVEX or on Intel's processors, what lies above the vector zeroed.
#include <cpuid.h>
#include "cpu/model.h"
#include "dbt/dbt.h"

enum { XSTATE_YMM = 2, XSTATE_OPMASK = 5, XSTATE_ZMM_HI = 6, XSTATE_HI16_ZMM = 7 };
#define XMM_OFFSET 160

static uint32_t component_offset(unsigned component)
{
    uint32_t eax, ebx, ecx, edx;
    __cpuid_count(0xd, component, eax, ebx, ecx, edx);
    return ebx <= XSAVE_AREA_SIZE - 1024 ? ebx : 0;
}

// Address of bytes [16*lane, 16*lane+16) of vector register r in the saved state.
static uint8_t *lane(struct vcpu *v, const struct vector_layout *l, unsigned r, unsigned lane)
{
    if (r >= 16)
        return v->s.xsave + l->hi16 + (r & 15) * 64 + lane * 16;
    if (lane == 0)
        return v->s.xsave + XMM_OFFSET + r * 16;
    if (lane == 1)
        return v->s.xsave + l->ymm + r * 16;
    return v->s.xsave + l->zmm_hi + r * 32 + (lane - 2) * 16;
}

static uint64_t get(struct vcpu *v, const struct vector_layout *l, unsigned r, unsigned i, unsigned size)
{
    uint8_t *p = lane(v, l, r & 31, i * size / 16) + i * size % 16;
    return size == 8 ? *(uint64_t *)p : *(uint32_t *)p;
}

static void set(struct vcpu *v, const struct vector_layout *l, unsigned r, unsigned i, unsigned size, uint64_t value)
{
    uint8_t *p = lane(v, l, r & 31, i * size / 16) + i * size % 16;
    if (size == 8)
        *(uint64_t *)p = value;
    else
        *(uint32_t *)p = (uint32_t)value;
}

void gather_layout(struct vector_layout *l)
{
    l->ymm = component_offset(XSTATE_YMM);
    l->opmask = component_offset(XSTATE_OPMASK);
    l->zmm_hi = component_offset(XSTATE_ZMM_HI);
    l->hi16 = component_offset(XSTATE_HI16_ZMM);
}

static bool wanted(struct vcpu *v, const struct vector_layout *l, const struct gather *g, unsigned i)
{
    if (!g->evex)
        return get(v, l, g->mask, i, g->element) >> (g->element * 8 - 1);
    return *(uint64_t *)(v->s.xsave + l->opmask + (g->mask & 7) * 8) >> i & 1;
}

static void done(struct vcpu *v, const struct vector_layout *l, const struct gather *g, unsigned i)
{
    if (!g->evex)
        set(v, l, g->mask, i, g->element, 0);
    else
        *(uint64_t *)(v->s.xsave + l->opmask + (g->mask & 7) * 8) &= ~(1ull << i);
}

// Lanes from `bytes` up are zeroed, as every VEX and EVEX destination's are.
static void zero_above(struct vcpu *v, const struct vector_layout *l, unsigned r, unsigned bytes)
{
    unsigned top = l->zmm_hi ? 64 : 32;
    for (unsigned i = bytes / 8; i < top / 8; i++)
        set(v, l, r, i, 8, 0);
}

// One element between memory and the saved state. May throw; the caller has the FPU state saved.
static void element(struct vcpu *v, const struct vector_layout *l, const struct insn *in, const struct gather *g, unsigned i)
{
    uint64_t x = get(v, l, g->index, i, g->index_size);
    int64_t index = g->index_size == 8 ? (int64_t)x : (int32_t)x;
    uint64_t base = in->base >= 0 && in->base < 16 ? v->s.gpr[in->base] : 0;
    uint64_t off = base + (uint64_t)index * in->scale + (uint64_t)in->disp;
    if (in->addr_size == 4)
        off = (uint32_t)off;
    uint64_t la = cpu_linear(v, in->sreg, off, g->element, g->scatter), value = 0;
    if (g->scatter) {
        value = get(v, l, g->data, i, g->element);
        mmu_write(v, la, &value, g->element, ACC_WRITE | mmu_acc(v));
    } else {
        mmu_read(v, la, &value, g->element, ACC_READ | mmu_acc(v));
        set(v, l, g->data, i, g->element, value);
        if (g->evex || !cpu_model_is_amd(v->model))
            zero_above(v, l, g->data, g->vector);
    }
}

// Intel's processors make whole elements of the mask's sign bits first, and zero what lies above it.
static void widen_mask(struct vcpu *v, const struct vector_layout *l, const struct gather *g)
{
    for (unsigned i = 0; i < g->vector / g->element; i++)
        set(v, l, g->mask, i, g->element, wanted(v, l, g, i) ? ~0ull : 0);
    zero_above(v, l, g->mask, g->vector);
}

void gather_execute(struct dbt *d, const struct insn *in, const struct gather *g)
{
    struct vcpu *v = d->v;
    const struct vector_layout *l = &d->layout;
    uint64_t *bv = (uint64_t *)(v->s.xsave + 512);
    unsigned count = g->vector / (g->element > g->index_size ? g->element : g->index_size);
    cpu_fpu_save(v); // an element that faults leaves through the run loop, which loads it again
    d->fpu_saved = FPU_SAVED;
    *bv |= 2 | 4 | (l->zmm_hi ? 0xe0 : 0);
    if (!g->evex && !cpu_model_is_amd(v->model))
        widen_mask(v, l, g);
    for (unsigned i = 0; i < count; i++) {
        if (wanted(v, l, g, i))
            element(v, l, in, g, i);
        done(v, l, g, i);
    }
    if (!g->evex)
        zero_above(v, l, g->mask, 0);
    else
        *(uint64_t *)(v->s.xsave + l->opmask + (g->mask & 7) * 8) = 0;
    if (!g->scatter)
        zero_above(v, l, g->data, count * g->element);
    cpu_fpu_load(v);
    d->fpu_saved = FPU_LIVE;
    v->s.rip += in->len;
}
