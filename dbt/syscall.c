// SYSCALL and SYSRET between user and kernel of a 64-bit guest, without C (SDM 2B). Each does what its function in
// cpu/syscall.c does, and goes there in all cases but the usual one: that they are on, that SYSCALL clears the flags that
// decide about how code runs, that SYSRET goes to the user half and sets none of those flags.
#include "dbt/direct/direct.h"
#include "dbt/internal.h"

#define UNUSUAL_FLAGS (FL_TF | FL_RF | FL_VM | FL_AC) // with these SYSRET is not the usual one

struct slow_cases { // jumps to the function
    uint8_t *from[8];
    unsigned count;
};

static void slow_if(struct translation *t, struct slow_cases *s, unsigned cc)
{
    s->from[s->count++] = a_jcc(&t->a, cc);
}

static void emit_slow_cases(struct translation *t, struct ginsn *g, const struct slow_cases *s)
{
    for (unsigned i = 0; i < s->count; i++)
        a_patch(&t->a, s->from[i]);
    emit_site(t, g);
}

static void compare_byte(struct translation *t, uint64_t at, uint8_t value)
{
    a8(&t->a, 0x80);
    a_abs(&t->a, 7, at, 1);
    a8(&t->a, value);
}

// Key of the mode on the other side.
static uint32_t other_key(const struct translation *t, bool user)
{
    uint32_t key = t->key & ~(KEY_TLB_MASK | KEY_NOMERGE | KEY_CPL_MASK | KEY_TSD);
    if (user)
        return key | 3u << KEY_CPL_SHIFT | TLB_USER << KEY_TLB_SHIFT;
    return key | (uint32_t)(t->key & KEY_SMAP ? TLB_KERNEL : TLB_KERNEL_AC) << KEY_TLB_SHIFT;
}

static bool is_usual_mode(const struct translation *t)
{
    return t->code_size == 8 && !t->d->v->count.on && t->d->context;
}

bool can_inline_syscall(const struct translation *t)
{
    return is_usual_mode(t) && (t->key & KEY_CPL_MASK) == 3u << KEY_CPL_SHIFT && !(t->key & KEY_TSD);
}

bool can_inline_sysret(const struct translation *t, const struct ginsn *g)
{
    return is_usual_mode(t) && g->z->operand_width == 64;
}

static void load_segments(struct translation *t, const struct segment *from)
{
    for (unsigned i = 0; i < 2 * sizeof *from; i += 8) {
        a_load_abs(&t->a, 8, T1, (uint64_t)from + i);
        a_store_abs(&t->a, 8, STATE(t, seg[SEG_CS]) + i, T1);
    }
}

static void change_level(struct translation *t, uint32_t key, const struct context *to)
{
    bool user = (key & KEY_CPL_MASK) != 0;
    load_segments(t, user ? t->d->syscall.user : t->d->syscall.kernel);
    a_store_imm8_abs(&t->a, STATE(t, cpl), user ? 3 : 0);
    emit_switch_mode(t, key, to);
}

// Calls of the guest's kernel that direct_calls() is to see.
static void watch_calls(struct translation *t, struct slow_cases *slow)
{
    struct asm_buf *a = &t->a;
    a_alu_imm(a, 8, 7, H_AX, 32); // cmp rax, 32
    uint8_t *other = a_jcc(a, CC_AE);
    a_mov_imm(a, T0, DIRECT_MAPPING_CALLS);
    a_bytes(a, "\x0f\xa3\xc5", 3); // bt ebp, eax
    slow_if(t, slow, CC_B);
    a_patch(a, other);
}

void emit_syscall(struct translation *t, struct ginsn *g)
{
    struct asm_buf *a = &t->a;
    struct dbt *d = t->d;
    struct slow_cases slow = {.count = 0};
    uint32_t key = other_key(t, false);
    struct context *to = mode_context(d, key);
    if (!to) {
        emit_site(t, g);
        return;
    }
    compare_byte(t, DBT(t, syscall.usable), 0);
    slow_if(t, &slow, CC_E);
    if (d->direct)
        watch_calls(t, &slow);
    emit_flags_image(t);
    store_guest(t, R11, T0);
    a_mov_rip(a, host_reg(RCX), g->rip + g->z->length);
    a_load_abs(a, 8, T0, STATE(t, rflags));
    a_rex(a, 8, T0, 0, 0, 0); // and t0, [keep]
    a8(a, 0x23);
    a_abs(a, T0, DBT(t, syscall.keep), 0);
    a_store_abs(a, 8, STATE(t, rflags), T0);
    a_store_imm8_abs(a, STATE(t, iflag), 0);
    a_store_imm8_abs(a, STATE(t, dflag), 0);
    a_store_imm32_abs(a, 4, DBT(t, parked), 0);
    a_inc_abs(a, DBT(t, n.op_count[OP_SYSCALL]));
    change_level(t, key, to);
    a_load_abs(a, 8, T0, STATE(t, lstar));
    emit_enter(t, to);
    emit_slow_cases(t, g, &slow);
}

// RFLAGS = T0
static void set_flags(struct translation *t)
{
    struct asm_buf *a = &t->a;
    const struct { uint64_t to; uint8_t bit; } bytes[] = {{STATE(t, iflag), 9}, {STATE(t, dflag), 10}};
    a_mov_rr(a, 4, T1, T0);
    a_alu_imm(a, 4, 4, T1, FL_DEFINED & ~(FL_IF | FL_DF)); // and
    a_alu_imm(a, 4, 1, T1, FL_ONE);                        // or
    a_store_abs(a, 8, STATE(t, rflags), T1);
    for (unsigned i = 0; i < sizeof bytes / sizeof bytes[0]; i++) {
        a_bytes(a, "\x0f\xba\xe5", 3); // bt ebp, bit
        a8(a, bytes[i].bit);
        a_bytes(a, "\x0f\x92", 2); // setc
        a_abs(a, 0, bytes[i].to, 0);
    }
    a_bytes(a, "\x40\x0f\xb6\xfd\xc1\xe7\x08", 7); // movzx edi, bpl; shl edi, 8
    a_bytes(a, "\x0f\xba\xe5\x0b\x83\xd7\x00", 7); // bt ebp, 11; adc edi, 0
    a_store_abs(a, 4, DBT(t, parked), T1);
}

void emit_sysret(struct translation *t, struct ginsn *g)
{
    struct asm_buf *a = &t->a;
    struct dbt *d = t->d;
    struct slow_cases slow = {.count = 0};
    uint32_t key = other_key(t, true);
    struct context *to = mode_context(d, key);
    if (!to) {
        emit_site(t, g);
        return;
    }
    t->t1_group = -1;
    compare_byte(t, DBT(t, syscall.usable), 0);
    slow_if(t, &slow, CC_E);
    a8(a, 0x83); // cmp dword [requests], 0: one may wait for IF
    a_abs(a, 7, (uint64_t)&d->v->requests, 1);
    a8(a, 0);
    slow_if(t, &slow, CC_NE);
    if (d->direct) { // whether there is, or should be, a worker
        a_load_abs(a, 8, T1, STATE(t, cr3));
        a_rex(a, 8, T1, 0, 0, 0); // cmp t1, [direct_none]
        a8(a, 0x3b);
        a_abs(a, T1, DBT(t, direct_none), 0);
        slow_if(t, &slow, CC_NE);
        compare_byte(t, DBT(t, direct_call), 0);
        slow_if(t, &slow, CC_NE);
    }
    load_guest(t, T0, R11);
    a_bytes(a, "\xf7\xc5", 2); // test ebp, flags
    a32(a, UNUSUAL_FLAGS);
    slow_if(t, &slow, CC_NE);
    a_mov_rr(a, 8, T1, host_reg(RCX));
    a_bytes(a, "\x48\xc1\xef\x2f", 4); // shr rdi, 47
    slow_if(t, &slow, CC_NE);
    set_flags(t);
    change_level(t, key, to);
    a_mov_rr(a, 8, T0, host_reg(RCX));
    emit_enter(t, to);
    emit_slow_cases(t, g, &slow);
}
