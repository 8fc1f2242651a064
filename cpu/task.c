// Hardware tasks (SDM 3A chapter 7): stacks taken from the TSS, and task switches.
//
// A switch has a point of no return. Up to it the state is that of the old task and every fault is the old
// task's. After it, registers and selectors are the new task's, hidden parts are not loaded yet (unusable),
// and faults are #TS, #NP, #SS or #GP in the new task (3A 7.3, table 7-1), with its CS:EIP as return address.
#include "cpu/internal.h"

#define TSS16_LIMIT  0x2bu
#define TSS32_LIMIT  0x67u
#define TSS_BUSY_BIT (1ull << 41)
#define DR7_LOCAL    0x155u // L0-L3 and LE

// Registers in a TSS, the same list for both forms.
struct task_image {
    uint32_t cr3, eip, eflags, gpr[8];
    uint16_t sel[SEG_COUNT], ldt;
    bool trap;
};

static _Noreturn void ts(struct vcpu *v, uint16_t selector, uint32_t ext)
{
    cpu_throw_error(v, EXC_TS, (selector & 0xfffc) | ext);
}

// ---- stacks of inner levels

void task_inner_stack(struct vcpu *v, unsigned dpl, uint32_t ext, struct stack *st)
{
    const struct segment *tr = &v->s.tr;
    struct descriptor d;
    struct segment ss;
    bool is32 = task_is_32(v);
    unsigned width = is32 ? 4 : 2, offset = dpl * 2 * width + width;
    if (offset + width + 1 > tr->limit)
        ts(v, tr->sel, ext);
    uint32_t la = tr->base + offset;
    uint64_t rsp = system_read(v, la, width);
    uint16_t selector = system_read(v, la + width, 2);
    uint32_t error = (selector & 0xfffc) | ext;
    if (is_null(selector) || !descriptor_fetch(v, selector, &d))
        ts(v, selector, ext);
    if ((selector & 3u) != dpl || descriptor_dpl(&d) != dpl || !descriptor_is_writable_data(&d))
        ts(v, selector, ext);
    if (!descriptor_present(&d))
        cpu_throw_error(v, EXC_SS, error);
    descriptor_set_accessed(v, &d);
    descriptor_to_segment(&d, selector, false, &ss);
    stack_new(st, &ss, rsp, dpl, error, false);
}

uint64_t task_stack64(struct vcpu *v, unsigned offset, uint32_t ext)
{
    const struct segment *tr = &v->s.tr;
    if (offset + 7 > tr->limit)
        ts(v, tr->sel, ext);
    uint64_t rsp = system_read(v, tr->base + offset, 8);
    if (!is_canonical(rsp))
        cpu_throw_error(v, EXC_SS, ext);
    return rsp;
}

// ---- images

static void save_task32(struct vcpu *v, uint32_t base, uint64_t flags, uint32_t eip)
{
    uint32_t registers[10] = {eip, flags};
    for (unsigned i = 0; i < 8; i++)
        registers[2 + i] = v->s.gpr[i];
    mmu_write(v, base + 0x20, registers, sizeof registers, ACC_WRITE | ACC_SYSTEM);
    for (unsigned i = 0; i < SEG_COUNT; i++)
        system_write(v, (uint32_t)(base + 0x48 + 4 * i), 2, v->s.seg[i].sel);
}

static void save_task16(struct vcpu *v, uint32_t base, uint64_t flags, uint32_t eip)
{
    uint16_t registers[14] = {eip, flags};
    for (unsigned i = 0; i < 8; i++)
        registers[2 + i] = v->s.gpr[i];
    for (unsigned i = SEG_ES; i <= SEG_DS; i++)
        registers[10 + i] = v->s.seg[i].sel;
    mmu_write(v, base + 0x0e, registers, sizeof registers, ACC_WRITE | ACC_SYSTEM);
}

static void load_task32(struct vcpu *v, uint32_t base, struct task_image *t)
{
    uint32_t word[26];
    mmu_read(v, base, word, sizeof word, ACC_READ | ACC_SYSTEM);
    t->cr3 = word[7];
    t->eip = word[8];
    t->eflags = word[9];
    for (unsigned i = 0; i < 8; i++)
        t->gpr[i] = word[10 + i];
    for (unsigned i = 0; i < SEG_COUNT; i++)
        t->sel[i] = word[18 + i];
    t->ldt = word[24];
    t->trap = word[25] & 1;
}

static void load_task16(struct vcpu *v, uint32_t base, struct task_image *t)
{
    uint16_t word[22];
    mmu_read(v, base, word, sizeof word, ACC_READ | ACC_SYSTEM);
    t->cr3 = 0;
    t->eip = word[7];
    t->eflags = word[8];
    for (unsigned i = 0; i < 8; i++)
        t->gpr[i] = 0xffff0000 | word[9 + i];
    for (unsigned i = SEG_ES; i <= SEG_DS; i++)
        t->sel[i] = word[17 + i];
    t->sel[SEG_FS] = t->sel[SEG_GS] = 0;
    t->ldt = word[21];
    t->trap = false;
}

// ---- segments of the new task

static void task_ldt(struct vcpu *v, uint16_t selector, uint32_t ext)
{
    struct descriptor d;
    if (is_null(selector))
        return;
    if ((selector & 4) || !descriptor_fetch(v, selector, &d) || descriptor_type(&d) != SYS_LDT ||
        !descriptor_present(&d))
        ts(v, selector, ext);
    descriptor_to_segment(&d, selector, false, &v->s.ldtr);
}

static void task_code(struct vcpu *v, uint16_t selector, uint32_t ext)
{
    struct descriptor d;
    if (is_null(selector) || !descriptor_fetch(v, selector, &d) || !descriptor_is_code(&d))
        ts(v, selector, ext);
    unsigned dpl = descriptor_dpl(&d), rpl = selector & 3;
    if (descriptor_is_conforming(&d) ? dpl > rpl : dpl != rpl)
        ts(v, selector, ext);
    if (!descriptor_present(&d))
        cpu_throw_error(v, EXC_NP, (selector & 0xfffc) | ext);
    descriptor_set_accessed(v, &d);
    descriptor_to_segment(&d, selector, false, &v->s.seg[SEG_CS]);
}

static void task_stack(struct vcpu *v, uint16_t selector, uint32_t ext)
{
    struct descriptor d;
    unsigned cpl = v->s.cpl;
    if (is_null(selector) || !descriptor_fetch(v, selector, &d))
        ts(v, selector, ext);
    if (!descriptor_is_writable_data(&d) || descriptor_dpl(&d) != cpl || (selector & 3u) != cpl)
        ts(v, selector, ext);
    if (!descriptor_present(&d))
        cpu_throw_error(v, EXC_SS, (selector & 0xfffc) | ext);
    descriptor_set_accessed(v, &d);
    descriptor_to_segment(&d, selector, false, &v->s.seg[SEG_SS]);
}

static void task_data(struct vcpu *v, unsigned sreg, uint16_t selector, uint32_t ext)
{
    struct descriptor d;
    unsigned cpl = v->s.cpl;
    if (is_null(selector))
        return;
    if (!descriptor_fetch(v, selector, &d))
        ts(v, selector, ext);
    unsigned type = descriptor_type(&d), dpl = descriptor_dpl(&d);
    bool readable = (type & SEG_S) && (type & (SEG_TYPE_CODE | SEG_TYPE_W)) != SEG_TYPE_CODE;
    if (!readable || (!descriptor_is_conforming(&d) && (dpl < cpl || dpl < (selector & 3u))))
        ts(v, selector, ext);
    if (!descriptor_present(&d))
        cpu_throw_error(v, EXC_NP, (selector & 0xfffc) | ext);
    descriptor_set_accessed(v, &d);
    descriptor_to_segment(&d, selector, false, &v->s.seg[sreg]);
}

static void load_hidden(struct vcpu *v, const struct task_image *t, uint32_t ext)
{
    task_ldt(v, t->ldt, ext);
    if (cpu_v86(v)) {
        for (unsigned i = 0; i < SEG_COUNT; i++)
            segment_set_v86(&v->s.seg[i], t->sel[i]);
        return;
    }
    task_code(v, t->sel[SEG_CS], ext);
    task_stack(v, t->sel[SEG_SS], ext);
    task_data(v, SEG_ES, t->sel[SEG_ES], ext);
    task_data(v, SEG_DS, t->sel[SEG_DS], ext);
    task_data(v, SEG_FS, t->sel[SEG_FS], ext);
    task_data(v, SEG_GS, t->sel[SEG_GS], ext);
}

// ---- the switch

static void set_busy(struct vcpu *v, uint64_t la, bool busy)
{
    uint64_t raw = system_read(v, la, 8);
    raw = busy ? raw | TSS_BUSY_BIT : raw & ~TSS_BUSY_BIT;
    system_write(v, la + 5, 1, raw >> 40);
}

// Past the point of no return: registers, selectors, and hidden parts that fault until they are loaded.
static void commit_task(struct vcpu *v, const struct segment *tss, const struct task_image *t, uint64_t flags)
{
    struct cpu_state *s = &v->s;
    s->tr = *tss;
    s->tr.attr |= SEG_TYPE_W; // the busy bit
    s->cr0 |= CR0_TS;
    s->dr[7] &= ~(uint64_t)DR7_LOCAL;
    cpu_debug_update(v);
    s->rip = t->eip;
    cpu_set_rflags(v, flags);
    for (unsigned i = 0; i < 8; i++)
        s->gpr[i] = t->gpr[i];
    s->cpl = flags & FL_VM ? 3 : t->sel[SEG_CS] & 3;
    for (unsigned i = 0; i < SEG_COUNT; i++)
        s->seg[i] = (struct segment){.sel = t->sel[i], .attr = SEG_UNUSABLE};
    s->seg[SEG_SS].attr |= (uint32_t)s->cpl << SEG_DPL_SHIFT;
    s->ldtr = (struct segment){.sel = t->ldt, .attr = SEG_UNUSABLE};
    v->mode_gen++;
}

static void push_error(struct vcpu *v, unsigned size, uint32_t ext, uint32_t error)
{
    struct stack st;
    stack_current(v, &st);
    st.error = ext;
    stack_push(v, &st, size, error);
    v->s.gpr[RSP] = st.rsp;
}

void task_switch(struct vcpu *v, uint16_t selector, const struct descriptor *d, enum task_cause cause,
                 uint64_t rip, bool rf, uint32_t ext, bool has_error, uint32_t error)
{
    struct task_image image;
    struct segment tss;
    bool is32 = descriptor_type(d) & 8, was32 = task_is_32(v);
    uint32_t old_base = v->s.tr.base, old_limit = was32 ? TSS32_LIMIT : TSS16_LIMIT;
    uint64_t old_la = (uint32_t)(v->s.gdtr.base + (v->s.tr.sel & 0xfff8));
    uint64_t old_flags = cpu_rflags(v) | (rf ? FL_RF : 0);
    bool leave = cause == TASK_JMP || cause == TASK_IRET, nested = cause == TASK_CALL || cause == TASK_EVENT;

    descriptor_to_segment(d, selector & 0xfffc, false, &tss);
    if (tss.limit < (is32 ? TSS32_LIMIT : TSS16_LIMIT))
        ts(v, selector, ext);
    if (v->s.tr.limit < old_limit)
        ts(v, v->s.tr.sel, ext);
    mmu_check(v, tss.base, is32 ? 104 : 44, ACC_READ | ACC_SYSTEM);
    mmu_check(v, old_base + (was32 ? 0x20 : 0x0e), was32 ? 0x40 : 0x1c, ACC_WRITE | ACC_SYSTEM);
    if (nested)
        mmu_check(v, tss.base, 2, ACC_WRITE | ACC_SYSTEM);
    if (leave)
        mmu_check(v, old_la, 8, ACC_WRITE | ACC_SYSTEM);
    if (cause != TASK_IRET)
        mmu_check(v, d->la, 8, ACC_WRITE | ACC_SYSTEM);

    if (leave)
        set_busy(v, old_la, false);
    if (cause == TASK_IRET)
        old_flags &= ~(uint64_t)FL_NT;
    if (was32)
        save_task32(v, old_base, old_flags, rip);
    else
        save_task16(v, old_base, old_flags, rip);
    if (is32)
        load_task32(v, tss.base, &image);
    else
        load_task16(v, tss.base, &image);
    if (nested)
        system_write(v, tss.base, 2, v->s.tr.sel);
    if (cause != TASK_IRET)
        set_busy(v, d->la, true);

    commit_task(v, &tss, &image, nested ? image.eflags | FL_NT : image.eflags);
    if (is32 && (v->s.cr0 & CR0_PG) && image.cr3 != v->s.cr3)
        cpu_set_cr3(v, image.cr3);
    load_hidden(v, &image, ext);
    v->mode_gen++;
    if (has_error)
        push_error(v, is32 ? 4 : 2, ext, error);
    code_check_rip(v, &v->s.seg[SEG_CS], v->s.rip, ext);
    if (image.trap) {
        v->s.dr[6] |= DR6_BT;
        cpu_throw(v, EXC_DB);
    }
}

void task_gate(struct vcpu *v, const struct descriptor *gate, enum task_cause cause, uint64_t rip, bool rf,
               uint32_t ext, bool has_error, uint32_t error)
{
    struct descriptor d;
    uint16_t selector = gate->raw >> 16;
    uint32_t code = (selector & 0xfffc) | ext;
    if (is_null(selector) || (selector & 4) || !descriptor_fetch(v, selector, &d))
        cpu_throw_error(v, EXC_GP, code);
    if (descriptor_type(&d) != SYS_TSS_AVAIL && descriptor_type(&d) != SYS_TSS16_AVAIL)
        cpu_throw_error(v, EXC_GP, code);
    if (!descriptor_present(&d))
        cpu_throw_error(v, EXC_NP, code);
    task_switch(v, selector, &d, cause, rip, rf, ext, has_error, error);
}

void task_return(struct vcpu *v, uint64_t rip)
{
    struct descriptor d;
    uint16_t selector = system_read(v, (uint32_t)v->s.tr.base, 2);
    if (is_null(selector) || (selector & 4) || !descriptor_fetch(v, selector, &d))
        ts(v, selector, 0);
    if (descriptor_type(&d) != SYS_TSS_BUSY && descriptor_type(&d) != SYS_TSS16_BUSY)
        ts(v, selector, 0);
    if (!descriptor_present(&d))
        cpu_throw_error(v, EXC_NP, selector & 0xfffc);
    task_switch(v, selector, &d, TASK_IRET, rip, false, 0, false, 0);
}
