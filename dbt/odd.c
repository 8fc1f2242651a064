// Instructions that are neither re-encoded as they stand nor branches: operands that depend on more than their address,
// registers the host needs for itself, and encodings that 64-bit code has not.
#include "dbt/internal.h"

static void emit_bit_offset(struct translation *t, struct ginsn *g)
{
    // BT/BTS/BTR/BTC [mem], reg: the bit offset also selects the operand-sized unit it is in (SDM vol. 2, BT)
    struct asm_buf *a = &t->a;
    struct ea ea;
    unsigned size, width = g->z->operand_width / 8u, reg = insn_fields(g).reg;
    bool rd, wr;
    mem_operand(g, &ea, &size, &rd, &wr);
    unsigned log = width == 8 ? 6 : width == 4 ? 5 : 4;
    // tmp = unit index; flags must survive the arithmetic: SARX by a count in RCX would do, MOVSX and LEA can't shift
    a_store_abs(a, 8, DBT(t, spill_ax), H_AX);
    if (host_reg(reg) == H_AX)
        a_mov_rr(a, 8, T0, H_AX);
    else
        load_guest(t, T0, reg);
    a8(a, 0x9f);
    a_bytes(a, "\x0f\x90\xc0", 3);
    if (width == 2) { // movsx ebp, bp
        a_bytes(a, "\x48\x0f\xbf\xed", 4);
    } else if (width == 4) { // movsxd rbp, ebp
        a_bytes(a, "\x48\x63\xed", 3);
    }
    a_store_abs(a, 8, DBT(t, tmp), T0);
    a_rex(a, 8, 0, 0, T0, 0); // sar rbp, log
    a8(a, 0xc1);
    a_modrm(a, 3, 7, T0);
    a8(a, log);
    a_rex(a, 8, 0, 0, T0, 0); // shl rbp, log2(width)
    a8(a, 0xc1);
    a_modrm(a, 3, 4, T0);
    a8(a, width == 8 ? 3 : width == 4 ? 2 : 1);
    a_store_abs(a, 8, DBT(t, target), T0);
    a_load_abs(a, 4, T0, DBT(t, tmp)); // tmp = bit in the unit
    a_alu_imm(a, 4, 4, T0, (int32_t)width * 8 - 1);
    a_store_abs(a, 8, DBT(t, tmp), T0);
    a_bytes(a, "\x04\x7f", 2);
    a8(a, 0x9e);
    a_load_abs(a, 8, H_AX, DBT(t, spill_ax));
    // the address: [ea] + target, reached through a scratch base in memory
    mem_offset(t, &ea);
    a_load_abs(a, 8, T1, DBT(t, target));
    a_lea(a, ea.addr_size == 8 ? 8 : 4, T0, T0, T1, 1, 0);
    if (ea.addr_size == 2)
        a_movzx16(a, T0, T0);
    struct ea fixed = {.base = EA_IN_T0, .index = -1, .scale = 1, .addr_size = ea.addr_size, .sreg = ea.sreg};
    mem_begin(t, &fixed, width, wr, wr);
    mem_combine(t);
    a_load_abs(a, 8, T0, DBT(t, tmp));
    struct enc e = {.reg = T0, .rm = -1, .vreg = -1, .opreg = -1, .mem = ENC_T1};
    encode(t, g, &e);
}

void emit_nothing(struct translation *t, struct ginsn *g)
{
    // Hints and cache control: CLFLUSH and relatives still fault like a one-byte read.
    struct ea ea;
    unsigned size;
    bool rd, wr;
    switch (g->z->mnemonic) {
    case ZYDIS_MNEMONIC_CLFLUSH:
    case ZYDIS_MNEMONIC_CLFLUSHOPT:
    case ZYDIS_MNEMONIC_CLWB:
        if (user(t)) {
            struct enc e = {.reg = -1, .rm = -1, .vreg = -1, .opreg = -1, .mem = ENC_PLAIN};
            if (mem_operand(g, &ea, &size, &rd, &wr)) {
                mem_begin(t, &ea, 1, false, false);
                encode(t, g, &e);
            }
            break;
        }
        if (mem_operand(g, &ea, &size, &rd, &wr))
            mem_begin(t, &ea, 1, false, false);
        break;
    default: break;
    }
}

void emit_odd(struct translation *t, struct ginsn *g)
{
    struct asm_buf *a = &t->a;
    switch (g->z->mnemonic) {
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC: emit_bit_offset(t, g); break;
    case ZYDIS_MNEMONIC_LEA: {
        struct ea ea = {.base = -1, .index = -1, .scale = 1, .addr_size = g->z->address_width / 8u};
        const struct operand *o = &g->op[1];
        if (o->mem.has_displacement)
            ea.disp = g->disp;
        if (o->mem.base == ZYDIS_REGISTER_RIP || o->mem.base == ZYDIS_REGISTER_EIP)
            ea.disp += (int64_t)(g->rip + g->z->length), ea.relative = true;
        else if (o->mem.base != ZYDIS_REGISTER_NONE)
            ea.base = (int)gpr_number(o->mem.base);
        if (o->mem.index != ZYDIS_REGISTER_NONE)
            ea.index = (int)gpr_number(o->mem.index);
        ea.scale = o->mem.scale ? o->mem.scale : 1;
        unsigned r = insn_fields(g).reg, size = g->z->operand_width / 8u, h = host_reg(r);
        a->fixed |= ea.relative && ea.addr_size != 8;
        if (ea.addr_size == 8 && h != HOMED && size >= 4 && (ea.base >= 0 || ea.index >= 0) &&
            (ea.base < 0 || host_reg((unsigned)ea.base) != HOMED) && (ea.index < 0 || host_reg((unsigned)ea.index) != HOMED)) {
            if (ea.base < 0)
                a_lea_index(a, size, h, host_reg((unsigned)ea.index), ea.scale, (int32_t)ea.disp);
            else
                a_lea(a, size, h, host_reg((unsigned)ea.base), ea.index < 0 ? -1 : (int)host_reg((unsigned)ea.index),
                      ea.scale, (int32_t)ea.disp);
            break;
        }
        if (ea.base < 0 && ea.index < 0 && h != HOMED && size >= 4) {
            uint64_t value = (uint64_t)ea.disp & (ea.addr_size == 8 ? ~0ull : ea.addr_size == 4 ? 0xffffffffull : 0xffffull);
            if (ea.relative && size == 8) {
                a_mov_rip(a, h, value);
                break;
            }
            a_mov_imm(a, h, size == 4 ? (uint32_t)value : value);
            if (ea.relative)
                a_note(a, RELOC_RIP32);
            break;
        }
        mem_offset(t, &ea);
        if (size == 4)
            a_mov_rr(a, 4, T0, T0);
        assign_sized(t, size, r);
        break;
    }
    case ZYDIS_MNEMONIC_PAUSE: a_bytes(a, g->bytes, g->z->length); break; // with REX.B it is XCHG R8
    case ZYDIS_MNEMONIC_SALC: // AL = CF ? FFh : 0, flags kept
        a_bytes(a, "\x0f\x92\xc0", 3); // setc al
        a_bytes(a, "\x0f\xb6\xe8", 3); // movzx ebp, al
        a_lea(a, 4, T0, T0, -1, 1, -1);
        a_bytes(a, "\xf7\xd5", 2);     // not ebp
        a_bytes(a, "\x40\x88\xe8", 3); // mov al, bpl
        break;
    case ZYDIS_MNEMONIC_VZEROALL:
    case ZYDIS_MNEMONIC_VZEROUPPER:
        if (t->code_size == 8) {
            a_bytes(a, g->bytes, g->z->length);
            break;
        }
        for (unsigned r = 0; r < 8; r++) { // registers 8-15 stay as they are outside 64-bit mode
            a_bytes(a, "\xc5", 1);
            if (g->z->mnemonic == ZYDIS_MNEMONIC_VZEROALL) { // vpxor xmm, xmm, xmm
                a8(a, 0x80 | (~r & 15) << 3 | 1);
                a8(a, 0xef);
            } else { // vmovdqa xmm, xmm
                a8(a, 0xf9);
                a8(a, 0x6f);
            }
            a_modrm(a, 3, r, r);
        }
        break;
    case ZYDIS_MNEMONIC_XLAT: {
        struct ea ea = {.base = EA_IN_T0, .index = -1, .scale = 1, .addr_size = g->z->address_width / 8u, .sreg = SEG_DS};
        unsigned size;
        bool rd, wr;
        struct ea found;
        if (mem_operand(g, &found, &size, &rd, &wr))
            ea.sreg = found.sreg;
        a_bytes(a, "\x0f\xb6\xe8", 3); // movzx ebp, al
        a_lea(a, ea.addr_size == 8 ? 8 : 4, T0, T0, H_BX, 1, 0);
        if (ea.addr_size == 2)
            a_movzx16(a, T0, T0);
        mem_begin(t, &ea, 1, false, false);
        mem_combine(t);
        a_bytes(a, "\x8a\x07", 2); // mov al, [rdi]
        break;
    }
    case ZYDIS_MNEMONIC_MASKMOVDQU:
    case ZYDIS_MNEMONIC_MASKMOVQ:
    case ZYDIS_MNEMONIC_VMASKMOVDQU: {
        struct ea ea = {.base = RDI, .index = -1, .scale = 1, .addr_size = g->z->address_width / 8u, .sreg = SEG_DS};
        unsigned size;
        bool rd, wr;
        struct ea found;
        if (mem_operand(g, &found, &size, &rd, &wr))
            ea.sreg = found.sreg;
        t->operand = SLOW_MASKED;
        mem_begin(t, &ea, g->z->mnemonic == ZYDIS_MNEMONIC_MASKMOVQ ? 8 : 16, true, false);
        t->operand = 0;
        mem_combine(t); // the host's RDI is T1
        struct enc e = {.reg = -1, .rm = -1, .vreg = -1, .opreg = -1};
        encode(t, g, &e);
        if (bounce(t))
            emit_masked_again(t, g, &e);
        break;
    }
    default: break;
    }
}
