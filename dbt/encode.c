// Re-encoding of innocuous instructions: the same opcode, with registers mapped to the host's and the memory operand
// replaced. There is no model of what an instruction does here, only of how it is encoded (SDM volume 2, chapter 2).
#include "cpu/model.h"
#include "dbt/internal.h"

static bool is_gpr(const struct operand *o)
{
    return o->type == ZYDIS_OPERAND_TYPE_REGISTER && gpr_is(o->reg.value);
}

static unsigned tail_offset(const struct ginsn *g)
{
    const struct brief *z = g->z;
    if (z->raw.modrm.offset)
        return z->raw.modrm.offset + 1u + (z->raw.sib_offset ? 1u : 0u) + z->raw.disp.size / 8u;
    return z->raw.imm.size ? z->raw.imm.offset : z->length;
}

static unsigned plain_index(const struct translation *t) { return t->plain.index < 0 ? 0 : (unsigned)t->plain.index; }
static unsigned plain_base(const struct translation *t) { return t->plain.base < 0 ? 0 : (unsigned)t->plain.base; }

// ModRM and what follows it.
static void emit_rm(struct translation *t, const struct ginsn *g, const struct enc *e, unsigned reg, unsigned rm)
{
    struct asm_buf *a = &t->a;
    unsigned tail = tail_offset(g), n = g->z->length - tail;
    switch (e->mem) {
    case ENC_NONE: a_put(a, modrm_bits(3, reg, rm), 1); break;
    case ENC_T1T0: a_put(a, modrm_bits(0, reg, 4) | (0 << 6 | (T0 & 7) << 3 | (T1 & 7)) << 8, 2); break; // [rdi + rbp]
    case ENC_BASED: // [rdi + base + disp32]
        a_put(a, modrm_bits(2, reg, 4) | ((t->based_on & 7) << 3 | (T1 & 7)) << 8 | (uint64_t)(uint32_t)t->based_disp << 16, 6);
        break;
    case ENC_T1: a_put(a, modrm_bits(0, reg, T1), 1); break;
    case ENC_PLAIN: plain_modrm(a, reg, &t->plain, g->z->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX); break;
    case ENC_ABS: a_abs(a, reg, e->abs, n); break;
    }
    if (!n)
        return;
    uint64_t rest; // at most 8 bytes
    memcpy(&rest, g->bytes + tail, 8);
    for (unsigned i = 0; i < g->z->operand_count && t->code_size != 8; i++)
        if (g->op[i].encoding == ZYDIS_OPERAND_ENCODING_IS4)
            rest &= ~(0x80ull << 8 * (n - 1)); // bit 7 of the register number is ignored outside 64-bit mode
    a_put(a, rest, n);
}

void legacy_lead(struct brief *z, const uint8_t *bytes)
{
    bool opsize = false, lock = false;
    unsigned mandatory = 0, rep = 0;
    for (unsigned i = 0; i < z->raw.prefix_count; i++) {
        uint8_t p = bytes[i];
        if (p == 0x66)
            opsize = true;
        else if (p == 0xf0)
            lock = true;
        else if (p == 0xf2 || p == 0xf3) {
            rep = p;
            if (z->raw.mandatory >> i & 1)
                mandatory = p;
        }
    }
    bool vector = false; // 66 selects the opcode there, not the operand size
    switch (z->meta.isa_ext) {
    case ZYDIS_ISA_EXT_BASE:
    case ZYDIS_ISA_EXT_MOVBE:
    case ZYDIS_ISA_EXT_LZCNT:
    case ZYDIS_ISA_EXT_BMI1:
    case ZYDIS_ISA_EXT_LONGMODE:
    case ZYDIS_ISA_EXT_RDRAND:
    case ZYDIS_ISA_EXT_RDSEED:
        break;
    default: vector = z->mnemonic != ZYDIS_MNEMONIC_CRC32 && z->mnemonic != ZYDIS_MNEMONIC_POPCNT; break;
    }
    uint8_t lead[4] = {0};
    unsigned n = 0;
    if (vector ? opsize : z->operand_width == 16)
        lead[n++] = 0x66;
    if (lock)
        lead[n++] = 0xf0;
    if (mandatory)
        lead[n++] = (uint8_t)mandatory;
    else if (rep && z->mnemonic == ZYDIS_MNEMONIC_PAUSE && (lock || rep == 0xf3))
        lead[n++] = (uint8_t)rep;
    memcpy(&z->lead, lead, sizeof lead);
    z->lead_size = (uint8_t)n;
}

static void encode_legacy(struct translation *t, const struct ginsn *g, const struct enc *e)
{
    struct asm_buf *a = &t->a;
    const struct brief *z = g->z;
    struct fields f = insn_fields(g);
    unsigned opcode = z->opcode ^ (e->flip ? 2 : 0);
    bool modrm = z->raw.modrm.offset;
    unsigned reg = e->reg >= 0 ? (unsigned)e->reg : f.reg;
    unsigned rm = e->rm >= 0 ? (unsigned)e->rm : f.rm;
    unsigned opreg = e->opreg >= 0 ? (unsigned)e->opreg : (opcode & 7u);
    bool short_incdec = z->machine_mode != ZYDIS_MACHINE_MODE_LONG_64 && z->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT &&
                        opcode >= 0x40 && opcode <= 0x4f;
    if (short_incdec) { // 40..4F are REX prefixes in the host
        modrm = true;
        reg = opcode >= 0x48;
        rm = opreg;
        opcode = 0xff;
    }
    if (z->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && opcode >= 0xa0 && opcode <= 0xa3) { // moffs: MOV with ModRM
        static const uint8_t with_modrm[4] = {0x8a, 0x8b, 0x88, 0x89};
        opcode = with_modrm[opcode - 0xa0];
        modrm = true;
        reg = 0;
    }
    if (opcode == 0x82 && z->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT)
        opcode = 0x80;
    unsigned rex = 0x40;
    if (z->machine_mode == ZYDIS_MACHINE_MODE_LONG_64 && f.rex && z->raw.rex_w)
        rex |= 8;
    if (modrm) {
        if (reg & 8)
            rex |= 4;
        if (e->mem == ENC_NONE && rm & 8)
            rex |= 1;
        if (e->mem == ENC_BASED && t->based_on & 8)
            rex |= 2;
        if (e->mem == ENC_PLAIN)
            rex |= (plain_index(t) >> 3) << 1 | plain_base(t) >> 3;
    } else if (e->opreg >= 0 && opreg & 8) {
        rex |= 1;
    }
    uint64_t bytes = z->lead; // prefixes, map and opcode: at most 7
    unsigned n = z->lead_size;
    if (rex != 0x40 || e->byte_low)
        bytes |= (uint64_t)rex << 8 * n++;
    if (z->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT)
        bytes |= 0x0full << 8 * n++;
    if (z->opcode_map == ZYDIS_OPCODE_MAP_0F38 || z->opcode_map == ZYDIS_OPCODE_MAP_0F3A)
        bytes |= (z->opcode_map == ZYDIS_OPCODE_MAP_0F38 ? 0x38ull : 0x3aull) << 8 * n++;
    if (!modrm && e->opreg >= 0)
        opcode = (opcode & ~7u) | (opreg & 7);
    bytes |= (uint64_t)opcode << 8 * n++;
    a_put(a, bytes, n);
    if (modrm) {
        emit_rm(t, g, e, reg & 7, rm & 7);
    } else if (z->length > tail_offset(g)) {
        memcpy(&bytes, g->bytes + tail_offset(g), 8);
        a_put(a, bytes, z->length - tail_offset(g));
    }
}

static void encode_vex(struct translation *t, const struct ginsn *g, const struct enc *e)
{
    struct asm_buf *a = &t->a;
    const uint8_t *p = g->bytes + g->z->raw.vex_offset;
    struct fields f = insn_fields(g);
    unsigned reg = e->reg >= 0 ? (unsigned)e->reg : f.reg;
    unsigned rm = e->rm >= 0 ? (unsigned)e->rm : f.rm;
    unsigned map = p[0] == 0xc4 ? p[1] & 31 : 1, last = p[0] == 0xc4 ? p[2] : p[1] & 0x7f;
    if (g->z->machine_mode != ZYDIS_MACHINE_MODE_LONG_64)
        last |= 0x40; // vvvv[3] is ignored there
    if (e->vreg >= 0)
        last = (last & ~0x78u) | (~(unsigned)e->vreg & 15) << 3;
    unsigned b = e->mem == ENC_NONE && rm & 8 ? 1 : 0, r = reg >> 3 & 1;
    unsigned x = e->mem == ENC_BASED && t->based_on & 8 ? 1 : 0;
    if (e->mem == ENC_PLAIN) {
        x = plain_index(t) >> 3;
        b = plain_base(t) >> 3;
    }
    if (!b && !x && map == 1 && !(last & 0x80))
        a_put(a, 0xc5 | ((r ? 0 : 0x80) | (last & 0x7f)) << 8 | g->z->opcode << 16, 3);
    else
        a_put(a, 0xc4 | ((r ? 0 : 0x80) | (x ? 0 : 0x40) | (b ? 0 : 0x20) | map) << 8 | last << 16 | (uint64_t)g->z->opcode << 24, 4);
    if (g->z->raw.modrm.offset)
        emit_rm(t, g, e, reg & 7, rm & 7);
}

static void encode_evex(struct translation *t, const struct ginsn *g, const struct enc *e)
{
    struct asm_buf *a = &t->a;
    const uint8_t *p = g->bytes + g->z->raw.evex_offset;
    bool m64 = g->z->machine_mode == ZYDIS_MACHINE_MODE_LONG_64;
    unsigned p0 = p[1], p1 = p[2], p2 = p[3], reg = g->z->raw.modrm.reg, rm = g->z->raw.modrm.rm;
    if (!m64) { // only eight registers: the extension bits are ignored or must be one
        p0 |= 0xf0;
        p1 |= 0x40;
        p2 |= 0x08;
    }
    if (e->reg >= 0) {
        p0 = (p0 & ~0x90u) | 0x10 | (e->reg & 8 ? 0 : 0x80);
        reg = (unsigned)e->reg & 7;
    }
    if (e->mem != ENC_NONE) {
        p0 |= 0x60; // X and B: neither base nor index is extended
        if ((e->mem == ENC_BASED && t->based_on & 8) || (e->mem == ENC_PLAIN && plain_index(t) & 8))
            p0 &= ~0x40u;
        if (e->mem == ENC_PLAIN && plain_base(t) & 8)
            p0 &= ~0x20u;
    } else if (e->rm >= 0) {
        p0 = (p0 & ~0x60u) | 0x40 | (e->rm & 8 ? 0 : 0x20);
        rm = (unsigned)e->rm & 7;
    }
    if (e->vreg >= 0)
        p1 = (p1 & ~0x78u) | (~(unsigned)e->vreg & 15) << 3;
    a_put(a, 0x62 | p0 << 8 | p1 << 16 | (uint64_t)p2 << 24 | (uint64_t)g->z->opcode << 32, 5);
    emit_rm(t, g, e, reg, rm);
}

void encode(struct translation *t, const struct ginsn *g, const struct enc *e)
{
    if (e->mem == ENC_PLAIN)
        plain_prefixes(&t->a, &t->plain);
    switch (g->z->encoding) {
    case ZYDIS_INSTRUCTION_ENCODING_VEX: encode_vex(t, g, e); break;
    case ZYDIS_INSTRUCTION_ENCODING_EVEX: encode_evex(t, g, e); break;
    default: encode_legacy(t, g, e); break;
    }
}

struct gpr_use { // one register operand
    unsigned guest, size;
    int *field;
    bool read, write, high;
    bool maybe; // written only under a condition
};

// Which explicit operands are general registers, and the field that encodes each.
static unsigned gpr_uses(const struct ginsn *g, struct enc *e, struct gpr_use use[4])
{
    struct fields f = insn_fields(g);
    unsigned n = 0;
    for (unsigned i = 0; i < g->z->operand_count && n < 4; i++) {
        const struct operand *o = &g->op[i];
        if (!is_gpr(o) || o->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN)
            continue;
        struct gpr_use u = {.size = o->size / 8u,
                            .read = o->actions & ZYDIS_OPERAND_ACTION_MASK_READ,
                            .write = o->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE,
                            .maybe = o->actions & ZYDIS_OPERAND_ACTION_CONDWRITE};
        switch (o->encoding) {
        case ZYDIS_OPERAND_ENCODING_MODRM_REG: u.field = &e->reg, u.guest = f.reg; break;
        case ZYDIS_OPERAND_ENCODING_MODRM_RM: u.field = &e->rm, u.guest = f.rm; break;
        case ZYDIS_OPERAND_ENCODING_OPCODE: u.field = &e->opreg, u.guest = f.opreg; break;
        case ZYDIS_OPERAND_ENCODING_NDSNDD: u.field = &e->vreg, u.guest = f.vreg; break;
        default: continue; // implicit: AX, CX, DX, BX are themselves in the host
        }
        if (u.size == 1 && g->z->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && !f.rex && u.guest >= 4) {
            u.high = true; // AH CH DH BH
        }
        use[n++] = u;
    }
    return n;
}

// Instructions whose r/m source may simply be the memory home of the register: same operation with a memory operand.
static bool rm_may_be_memory(const struct ginsn *g)
{
    const struct brief *z = g->z;
    if (z->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY || !z->raw.modrm.offset || z->operand_width < 32)
        return false;
    if (z->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT)
        return (z->opcode < 0x40 && (z->opcode & 7) == 3) || z->opcode == 0x8b || z->opcode == 0x63 ||
               z->opcode == 0x39 || z->opcode == 0x85 || z->opcode == 0x69 || z->opcode == 0x6b;
    if (z->opcode_map == ZYDIS_OPCODE_MAP_0F)
        return (z->opcode & 0xf0) == 0x40 || z->opcode == 0xaf;
    return false;
}

static uint8_t guest_of_host(unsigned host)
{
    uint8_t guest = 0;
    while (host_of_guest[guest] != host)
        guest++;
    return guest;
}

// Those of 64 bits whose r/m destination may be it.
static bool rm_may_be_written_in_memory(const struct ginsn *g)
{
    const struct brief *z = g->z;
    if (z->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY || !z->raw.modrm.offset || z->operand_width != 64 ||
        z->opcode_map != ZYDIS_OPCODE_MAP_DEFAULT)
        return false;
    switch (z->opcode) {
    case 0x81: case 0x83: case 0x89: case 0xc7: case 0xd1: return true;
    case 0xc1: case 0xd3: return z->raw.modrm.reg >= 4; // rotations by more than 1: some processors leave another OF then
    case 0xf7: return z->raw.modrm.reg == 2 || z->raw.modrm.reg == 3;
    case 0xff: return z->raw.modrm.reg < 2;
    default: return z->opcode < 0x40 && (z->opcode & 7) == 1;
    }
}

// OP r/m, r that can as well be OP r, r/m.
static bool has_other_direction(const struct ginsn *g)
{
    const struct brief *z = g->z;
    return z->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && z->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && z->operand_width >= 32 &&
           z->raw.modrm.offset && z->raw.modrm.mod == 3 && ((z->opcode < 0x40 && (z->opcode & 7) == 1) || z->opcode == 0x89);
}

// A host register the instruction does not use, to be borrowed. At most one is, of an instruction with three operands.
static unsigned free_host(const struct ginsn *g, const struct enc *e, unsigned taken)
{
    static const uint8_t candidates[] = {H_8, H_9, H_10, H_11, H_SI, H_BX};
    for (unsigned i = 0; i < sizeof candidates; i++) {
        int c = candidates[i];
        if (c != e->reg && c != e->rm && c != e->vreg && c != e->opreg && !(taken >> c & 1) &&
            !(c == H_BX && g->z->operand_count > g->z->operand_count_visible))
            return (unsigned)c;
    }
    return H_8;
}

// Vector operands that must be aligned to their size: legacy SSE with 16 bytes, and the aligned and non-temporal moves.
static bool needs_alignment(const struct translation *t, const struct ginsn *g, unsigned size)
{
    if (size < 16)
        return false;
    switch (g->z->mnemonic) {
    case ZYDIS_MNEMONIC_SHA1MSG1: case ZYDIS_MNEMONIC_SHA1MSG2: case ZYDIS_MNEMONIC_SHA1NEXTE:
    case ZYDIS_MNEMONIC_SHA1RNDS4: case ZYDIS_MNEMONIC_SHA256MSG1: case ZYDIS_MNEMONIC_SHA256MSG2:
    case ZYDIS_MNEMONIC_SHA256RNDS2: return !t->sha_unaligned;
    case ZYDIS_MNEMONIC_MOVUPS: case ZYDIS_MNEMONIC_MOVUPD: case ZYDIS_MNEMONIC_MOVDQU: case ZYDIS_MNEMONIC_LDDQU:
    case ZYDIS_MNEMONIC_PCMPESTRI: case ZYDIS_MNEMONIC_PCMPESTRM: case ZYDIS_MNEMONIC_PCMPISTRI:
    case ZYDIS_MNEMONIC_PCMPISTRM: return false;
    case ZYDIS_MNEMONIC_VMOVAPS: case ZYDIS_MNEMONIC_VMOVAPD: case ZYDIS_MNEMONIC_VMOVDQA: case ZYDIS_MNEMONIC_VMOVDQA32:
    case ZYDIS_MNEMONIC_VMOVDQA64: case ZYDIS_MNEMONIC_VMOVNTPS: case ZYDIS_MNEMONIC_VMOVNTPD:
    case ZYDIS_MNEMONIC_VMOVNTDQ: case ZYDIS_MNEMONIC_VMOVNTDQA: case ZYDIS_MNEMONIC_CMPXCHG16B: return true;
    default: break;
    }
    return g->z->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && size == 16 && g->z->meta.isa_ext != ZYDIS_ISA_EXT_BASE;
}

// Instructions that may leave parts of their memory operand alone.
static bool is_masked(const struct ginsn *g)
{
    switch (g->z->mnemonic) {
    case ZYDIS_MNEMONIC_VMASKMOVPS:
    case ZYDIS_MNEMONIC_VMASKMOVPD:
    case ZYDIS_MNEMONIC_VPMASKMOVD:
    case ZYDIS_MNEMONIC_VPMASKMOVQ: return true;
    default:
        return g->z->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX && g->z->avx.mask_mode > ZYDIS_MASK_MODE_DISABLED &&
               g->z->avx.mask_reg != ZYDIS_REGISTER_K0;
    }
}

// x87 and MMX instructions first raise the exception that is pending, except those that look at it.
static bool waits_for_x87(const struct ginsn *g)
{
    switch (g->z->mnemonic) {
    case ZYDIS_MNEMONIC_FNSTCW:
    case ZYDIS_MNEMONIC_FNSTSW: return false;
    case ZYDIS_MNEMONIC_FISTTP: return true;
    default: break;
    }
    for (unsigned i = 0; i < g->z->operand_count; i++)
        if (g->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER && g->op[i].reg.value >= ZYDIS_REGISTER_MM0 && g->op[i].reg.value <= ZYDIS_REGISTER_MM7)
            return true;
    return g->z->meta.isa_ext == ZYDIS_ISA_EXT_X87;
}

// x87 instructions with a memory operand, except control instructions (SDM 1 8.1.8).
static bool sets_data_pointer(const struct ginsn *g)
{
    switch (g->z->mnemonic) {
    case ZYDIS_MNEMONIC_FNSTCW:
    case ZYDIS_MNEMONIC_FNSTSW:
    case ZYDIS_MNEMONIC_FLDCW: return false;
    default: return g->z->mnemonic == ZYDIS_MNEMONIC_FISTTP || g->z->meta.isa_ext == ZYDIS_ISA_EXT_X87;
    }
}

bool may_be_masked(const struct ginsn *g) { return is_masked(g); }

static uint32_t operand_rules(const struct translation *t, const struct ginsn *g, unsigned size)
{
    if (is_masked(g))
        return SLOW_MASKED;
    bool clears_top = g->z->mem.write && uses_mmx(g) && !cpu_model_is_amd(t->d->v->model);
    return (needs_alignment(t, g, size) ? SLOW_ALIGNED : 0) | (waits_for_x87(g) ? SLOW_X87 : 0) | (clears_top ? SLOW_TOP : 0);
}

// The second run of a masked store, on the other window.
void emit_masked_again(struct translation *t, const struct ginsn *g, const struct enc *e)
{
    a_lea(&t->a, 8, T1, T1, -1, 1, MASKED_STORE_AGAIN);
    encode(t, g, e);
}

void emit_plain(struct translation *t, struct ginsn *g)
{
    struct asm_buf *a = &t->a;
    struct enc e = {.reg = -1, .rm = -1, .vreg = -1, .opreg = -1};
    struct gpr_use use[4];
    unsigned n = gpr_uses(g, &e, use);
    struct ea ea;
    unsigned size;
    bool rd, wr, mem = mem_operand(g, &ea, &size, &rd, &wr), high = false, twice = false;

    for (unsigned i = 0; i < n; i++)
        high |= use[i].high;
    if (mem) {
        // An x87 store that raises an unmasked exception stores nothing.
        bool keeps = wr && (rd || g->z->meta.isa_ext == ZYDIS_ISA_EXT_X87 || g->z->mnemonic == ZYDIS_MNEMONIC_FISTTP);
        t->operand = operand_rules(t, g, size);
        mem_begin(t, &ea, size, wr, keeps);
        twice = bounce(t) && wr && t->operand & SLOW_MASKED;
        t->operand = 0;
        e.mem = t->is_plain ? ENC_PLAIN : t->based ? ENC_BASED : ENC_T1T0;
        if (high && (t->is_plain ? (plain_index(t) | plain_base(t)) & 8 : t->based && t->based_on >= 8)) { // AH..BH and REX exclude each other
            mem_combine(t);
            e.mem = ENC_T1;
        }
    }
    // Registers without a host register of their own, or one that can't be encoded beside AH..BH, get a scratch.
    uint8_t scratch_guest[3], scratch_host[3];
    bool scratch_write[3] = {0}, scratch_read[3] = {0}, borrowed[3] = {0};
    unsigned scratches = 0;
    for (unsigned i = 0; i < n; i++) {
        struct gpr_use *u = &use[i];
        if (u->high) {
            *u->field = (int)u->guest;
            continue;
        }
        unsigned h = host_reg(u->guest);
        bool needs = h == HOMED || (high && u->size > 1 && h >= 8);
        if (!needs) {
            *u->field = (int)h;
            continue;
        }
        if (h == HOMED && u->field == &e.rm && !mem && (u->write ? rm_may_be_written_in_memory(g) : rm_may_be_memory(g))) {
            e.mem = ENC_ABS;
            e.abs = STATE(t, gpr[u->guest]);
            continue;
        }
        if (h == HOMED && u->field == &e.reg && !u->write && has_other_direction(g) && host_reg(insn_fields(g).rm) != HOMED) {
            e.flip = true;
            e.mem = ENC_ABS;
            e.abs = STATE(t, gpr[u->guest]);
            continue;
        }
        unsigned s;
        for (s = 0; s < scratches && scratch_guest[s] != u->guest; s++)
            ;
        if (s == scratches) {
            scratches++;
            scratch_guest[s] = (uint8_t)u->guest;
            scratch_host[s] = 0xff;
        }
        scratch_write[s] |= u->write;
        scratch_read[s] |= u->read || u->size < 4 || u->maybe || g->z->mnemonic == ZYDIS_MNEMONIC_BSF ||
                           g->z->mnemonic == ZYDIS_MNEMONIC_BSR; // a source of zero leaves the destination alone
        *u->field = -2 - (int)s;
    }
    if (e.flip) {
        e.reg = e.rm;
        e.rm = -1;
    }
    unsigned taken = 0;
    if (scratches) {
        bool t0_used = t->is_plain && (t->plain.base == T0 || t->plain.index == T0);
        bool t1_used = t->is_plain && t->plain.base == T1;
        if (mem && (e.mem == ENC_PLAIN ? t0_used && (t1_used || scratches > 1) : !(e.mem == ENC_BASED && t->based_on != T0) && e.mem != ENC_T1)) {
            mem_combine(t);
            e.mem = ENC_T1;
        }
        unsigned next = 0, have = mem ? 1 : 2;
        uint8_t order[2] = {T0, T1};
        if (e.mem == ENC_PLAIN) {
            have = !t0_used + !t1_used;
            order[0] = t0_used ? T1 : T0;
            order[1] = T1;
        }
        for (unsigned i = 0; i < n; i++) // fixed registers first, so that borrowing knows them
            if (*use[i].field >= 0)
                taken |= 1u << *use[i].field;
        if (e.mem == ENC_BASED)
            taken |= 1u << t->based_on;
        if (e.mem == ENC_PLAIN)
            taken |= 1u << plain_index(t) | 1u << plain_base(t);
        for (unsigned s = 0; s < scratches; s++) {
            if (next < have) {
                scratch_host[s] = order[next++];
            } else {
                scratch_host[s] = (uint8_t)free_host(g, &e, taken);
                borrowed[s] = true;
                t->map[t->current].borrowed = guest_of_host(scratch_host[s]);
                a_store_abs(a, 8, DBT(t, tmp), scratch_host[s]);
            }
            taken |= 1u << scratch_host[s];
            if (scratch_host[s] == T1)
                t->t1_group = -1;
            if (scratch_read[s])
                load_guest(t, scratch_host[s], scratch_guest[s]);
        }
        for (unsigned i = 0; i < n; i++)
            if (*use[i].field <= -2)
                *use[i].field = scratch_host[-2 - *use[i].field];
    }
    for (unsigned i = 0; i < n; i++)
        if (use[i].size == 1 && !use[i].high && *use[i].field >= 4 && *use[i].field < 8)
            e.byte_low = true;
    encode(t, g, &e);
    if (twice)
        emit_masked_again(t, g, &e);
    if (mem && t->d->exact_flags && sets_data_pointer(g)) { // not before: it may fault
        mem_offset(t, &ea);
        t->t1_group = -1;
        a_store_abs(a, 8, (uint64_t)&t->d->v->x87_fdp, T0);
    }
    for (unsigned s = 0; s < scratches; s++) {
        if (scratch_write[s])
            store_guest(t, scratch_guest[s], scratch_host[s]);
        if (borrowed[s])
            a_load_abs(a, 8, scratch_host[s], DBT(t, tmp));
    }
}
