// SYSCALL SYSRET SYSENTER SYSEXIT (SDM 2B; APM 3 for AMD's legacy and compatibility forms). They load fixed
// segments and look at no descriptor.
#include "cpu/internal.h"

_Static_assert(SEG_SS == SEG_CS + 1, "the two are loaded together");

#define ATTR_FLAT   (SEG_G | SEG_P | SEG_S)
#define ATTR_CODE   (ATTR_FLAT | SEG_TYPE_CODE | SEG_TYPE_W | SEG_TYPE_A)
#define ATTR_CODE32 (ATTR_CODE | SEG_DB)
#define ATTR_CODE64 (ATTR_CODE | SEG_L)
#define ATTR_STACK  (ATTR_FLAT | SEG_DB | SEG_TYPE_W | SEG_TYPE_A)
#define ATTR_DPL3   (3u << SEG_DPL_SHIFT)

static void gp0(struct vcpu *v)
{
    cpu_throw_error(v, EXC_GP, 0);
}

// SYSCALL and SYSRET exist outside 64-bit code on AMD only.
static void need_syscall(struct vcpu *v)
{
    if (!(v->s.efer & EFER_SCE) || !cpu_protected(v) || (!cpu_code64(v) && !cpu_model_is_amd(v->model)))
        cpu_throw(v, EXC_UD);
}

static void load_kernel(struct segment cs_ss[2], uint64_t star, uint32_t code)
{
    segment_set_flat(&cs_ss[0], star >> 32 & 0xfffc, code);
    segment_set_flat(&cs_ss[1], (star >> 32) + 8, ATTR_STACK);
}

static void load_user(struct segment cs_ss[2], uint64_t star, bool to64)
{
    uint16_t base = star >> 48;
    segment_set_flat(&cs_ss[0], (to64 ? base + 16 : base) | 3, (to64 ? ATTR_CODE64 : ATTR_CODE32) | ATTR_DPL3);
    segment_set_flat(&cs_ss[1], (base + 8) | 3, ATTR_STACK | ATTR_DPL3);
}

void cpu_syscall_segments(uint64_t star, struct segment kernel[2], struct segment user[2])
{
    load_kernel(kernel, star, ATTR_CODE64);
    load_user(user, star, true);
}

void op_syscall(struct vcpu *v, const struct insn *in)
{
    struct cpu_state *s = &v->s;
    need_syscall(v);
    uint64_t flags = cpu_rflags(v), rip = next_rip(v, in);
    bool from64 = cpu_code64(v);
    s->gpr[RCX] = rip;
    if (cpu_long(v)) {
        s->gpr[R11] = flags & ~(uint64_t)FL_RF;
        s->rip = from64 ? s->lstar : s->cstar;
        cpu_set_rflags(v, flags & ~(s->sfmask | FL_RF));
    } else {
        s->rip = (uint32_t)s->star;
        cpu_set_rflags(v, flags & ~(uint64_t)(FL_IF | FL_RF | FL_VM));
    }
    load_kernel(&s->seg[SEG_CS], s->star, cpu_long(v) ? ATTR_CODE64 : ATTR_CODE32);
    s->cpl = 0;
    v->mode_gen++;
}

void op_sysret(struct vcpu *v, const struct insn *in)
{
    struct cpu_state *s = &v->s;
    need_syscall(v);
    if (s->cpl != 0)
        gp0(v);
    bool to64 = in->op_size == 8;
    if (to64 && !is_canonical(s->gpr[RCX]))
        gp0(v);
    s->rip = to64 ? s->gpr[RCX] : (uint32_t)s->gpr[RCX];
    if (cpu_long(v))
        cpu_set_rflags(v, s->gpr[R11] & ~(uint64_t)(FL_RF | FL_VM));
    else
        s->iflag = 1;
    load_user(&s->seg[SEG_CS], s->star, to64);
    s->cpl = 3;
    v->mode_gen++;
}

// On AMD neither exists in long mode (APM 3 SYSENTER).
static void need_sysenter(struct vcpu *v)
{
    if (!cpu_model_has(v->model, CPU_SEP) || (cpu_long(v) && cpu_model_is_amd(v->model)))
        cpu_throw(v, EXC_UD);
    if (!cpu_protected(v) || is_null(v->s.sysenter_cs))
        gp0(v);
}

void op_sysenter(struct vcpu *v, const struct insn *in)
{
    struct cpu_state *s = &v->s;
    (void)in;
    need_sysenter(v);
    uint16_t cs = s->sysenter_cs & 0xfffc;
    bool to64 = cpu_long(v);
    cpu_set_rflags(v, cpu_rflags(v) & ~(uint64_t)(FL_VM | FL_IF | FL_RF));
    s->gpr[RSP] = to64 ? s->sysenter_esp : (uint32_t)s->sysenter_esp;
    s->rip = to64 ? s->sysenter_eip : (uint32_t)s->sysenter_eip;
    segment_set_flat(&s->seg[SEG_CS], cs, to64 ? ATTR_CODE64 : ATTR_CODE32);
    segment_set_flat(&s->seg[SEG_SS], cs + 8, ATTR_STACK);
    s->cpl = 0;
    v->mode_gen++;
}

void op_sysexit(struct vcpu *v, const struct insn *in)
{
    struct cpu_state *s = &v->s;
    need_sysenter(v);
    if (s->cpl != 0)
        gp0(v);
    bool to64 = in->op_size == 8;
    uint64_t rip = s->gpr[RDX], rsp = s->gpr[RCX];
    if (to64 && (!is_canonical(rip) || !is_canonical(rsp)))
        gp0(v);
    uint16_t cs = (s->sysenter_cs + (to64 ? 32 : 16)) | 3;
    s->rip = to64 ? rip : (uint32_t)rip;
    s->gpr[RSP] = to64 ? rsp : (uint32_t)rsp;
    segment_set_flat(&s->seg[SEG_CS], cs, (to64 ? ATTR_CODE64 : ATTR_CODE32) | ATTR_DPL3);
    segment_set_flat(&s->seg[SEG_SS], cs + 8, ATTR_STACK | ATTR_DPL3);
    s->cpl = 3;
    v->mode_gen++;
}
