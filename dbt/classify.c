// Which instructions are innocuous (re-emitted), which move RIP or RSP, which are sensitive (C semantics in cpu/),
// and which don't exist for this guest.
#include "dbt/internal.h"

struct rule {
    uint16_t mnemonic;
    uint8_t cls, sens;
};

#define S(m, o) {ZYDIS_MNEMONIC_##m, CLASS_SENSITIVE, OP_##o}
#define C(m) {ZYDIS_MNEMONIC_##m, CLASS_CONTROL, 0}
#define N(m) {ZYDIS_MNEMONIC_##m, CLASS_NOTHING, 0}
#define T(m) {ZYDIS_MNEMONIC_##m, CLASS_STRING, 0}
#define G(m) {ZYDIS_MNEMONIC_##m, CLASS_GATHER, 0}
static const struct rule rules[] = {
    S(SGDT, SGDT), S(SIDT, SIDT), S(SLDT, SLDT), S(STR, STR), S(SMSW, SMSW), S(LMSW, LMSW), S(LGDT, LGDT), S(LIDT, LIDT),
    S(LLDT, LLDT), S(LTR, LTR), S(CLTS, CLTS), S(INVLPG, INVLPG), S(INVPCID, INVPCID), S(INVD, INVD), S(WBINVD, WBINVD),
    S(RDMSR, RDMSR), S(WRMSR, WRMSR), S(RDTSC, RDTSC), S(RDTSCP, RDTSCP), S(RDPMC, RDPMC), S(RDPID, RDPID),
    S(CPUID, CPUID), S(XSETBV, XSETBV), S(XGETBV, XGETBV), S(RDFSBASE, RDFSBASE), S(RDGSBASE, RDGSBASE),
    S(WRFSBASE, WRFSBASE), S(WRGSBASE, WRGSBASE), S(SWAPGS, SWAPGS),
    S(LDS, LOAD_FAR_PTR), S(LES, LOAD_FAR_PTR), S(LFS, LOAD_FAR_PTR), S(LGS, LOAD_FAR_PTR), S(LSS, LOAD_FAR_PTR),
    S(LAR, LAR), S(LSL, LSL), S(VERR, VERR), S(VERW, VERW), S(ARPL, ARPL),
    S(INT, INT), S(INT3, INT3), S(INT1, INT1), S(INTO, INTO), S(IRET, IRET), S(IRETD, IRET), S(IRETQ, IRET),
    S(SYSCALL, SYSCALL), S(SYSRET, SYSRET), S(SYSENTER, SYSENTER), S(SYSEXIT, SYSEXIT), S(RSM, RSM),
    S(VMCALL, VMCALL), S(VMMCALL, VMCALL),
    S(PUSHF, PUSHF), S(PUSHFD, PUSHF), S(PUSHFQ, PUSHF), S(POPF, POPF), S(POPFD, POPF), S(POPFQ, POPF),
    S(CLI, CLI), S(STI, STI), S(STAC, STAC), S(CLAC, CLAC), S(HLT, HLT), S(MONITOR, MONITOR), S(MWAIT, MWAIT),
    S(IN, IN), S(OUT, OUT), S(INSB, INS), S(INSW, INS), S(INSD, INS), S(OUTSB, OUTS), S(OUTSW, OUTS), S(OUTSD, OUTS),
    S(XSAVE, XSAVE), S(XSAVE64, XSAVE), S(XSAVEC, XSAVEC), S(XSAVEC64, XSAVEC), S(XSAVEOPT, XSAVEOPT),
    S(XSAVEOPT64, XSAVEOPT), S(XSAVES, XSAVES), S(XSAVES64, XSAVES), S(XRSTOR, XRSTOR), S(XRSTOR64, XRSTOR),
    S(XRSTORS, XRSTORS), S(XRSTORS64, XRSTORS), S(FXSAVE, FXSAVE), S(FXSAVE64, FXSAVE), S(FXRSTOR, FXRSTOR),
    S(FXRSTOR64, FXRSTOR), S(FNSTENV, FNSTENV), S(FLDENV, FLDENV), S(FNSAVE, FNSAVE), S(FRSTOR, FRSTOR),
    S(RDPKRU, RDPKRU), S(WRPKRU, WRPKRU),
    S(PUSHA, PUSHA), S(PUSHAD, PUSHA), S(POPA, POPA), S(POPAD, POPA), S(ENTER, ENTER), S(BOUND, BOUND), S(DAA, DAA),
    S(DAS, DAS), S(AAA, AAA), S(AAS, AAS), S(AAM, AAM), S(AAD, AAD),
    S(UD0, UD), S(UD1, UD), S(UD2, UD),
    // not offered
    S(VMLAUNCH, UD), S(VMRESUME, UD), S(VMXOFF, UD), S(VMXON, UD), S(VMPTRLD, UD), S(VMPTRST, UD), S(VMCLEAR, UD),
    S(VMREAD, UD), S(VMWRITE, UD), S(VMFUNC, UD), S(VMRUN, UD), S(VMLOAD, UD), S(VMSAVE, UD), S(STGI, UD), S(CLGI, UD),
    S(SKINIT, UD), S(INVEPT, UD), S(INVVPID, UD), S(INVLPGA, UD), S(GETSEC, UD), S(ENCLS, UD), S(ENCLU, UD), S(MONITORX, UD),
    S(MWAITX, UD), S(CLZERO, UD), S(XBEGIN, UD), S(XEND, UD), S(XABORT, UD), S(XTEST, UD), S(UMONITOR, UD), S(UMWAIT, UD),
    S(TPAUSE, UD), S(MOVDIR64B, UD), S(ENQCMD, UD), S(ENQCMDS, UD), S(PCONFIG, UD),
    S(RDPRU, UD), S(MCOMMIT, UD), S(INVLPGB, UD), S(TLBSYNC, UD), S(CLUI, UD), S(STUI, UD), S(TESTUI, UD), S(UIRET, UD),
    S(SENDUIPI, UD), S(PTWRITE, UD),
    G(VPGATHERDD), G(VPGATHERDQ), G(VPGATHERQD), G(VPGATHERQQ), G(VGATHERDPS), G(VGATHERDPD), G(VGATHERQPS), G(VGATHERQPD),
    G(VPSCATTERDD), G(VPSCATTERDQ), G(VPSCATTERQD), G(VPSCATTERQQ), G(VSCATTERDPS), G(VSCATTERDPD), G(VSCATTERQPS),
    G(VSCATTERQPD),

    C(JMP), C(CALL), C(RET), C(PUSH), C(POP), C(LEAVE), C(JCXZ), C(JECXZ), C(JRCXZ), C(LOOP), C(LOOPE), C(LOOPNE), C(LEA),
    C(XLAT), C(SALC), C(VZEROALL), C(VZEROUPPER), C(PAUSE), C(MASKMOVDQU), C(MASKMOVQ), C(VMASKMOVDQU),

    T(MOVSB), T(MOVSW), T(MOVSQ), T(STOSB), T(STOSW), T(STOSD), T(STOSQ), T(LODSB), T(LODSW), T(LODSD), T(LODSQ), T(SCASB),
    T(SCASW), T(SCASD), T(SCASQ), T(CMPSB), T(CMPSW), T(CMPSQ),

    N(NOP), N(ENDBR32), N(ENDBR64), N(PREFETCH), N(PREFETCHNTA), N(PREFETCHT0), N(PREFETCHT1), N(PREFETCHT2), N(PREFETCHW),
    N(PREFETCHWT1), N(CLFLUSH), N(CLFLUSHOPT), N(CLWB), N(CLDEMOTE), N(RDSSPD), N(RDSSPQ),
};
#undef S
#undef C
#undef N
#undef T
#undef G

void classify_init(struct translation *t)
{
    for (unsigned i = 0; i < sizeof rules / sizeof rules[0]; i++)
        t->rule_of[rules[i].mnemonic] = (uint16_t)(i + 1);
}

static bool segment_operand(const struct ginsn *g, unsigned i)
{
    return g->op[i].type == ZYDIS_OPERAND_TYPE_REGISTER && ZydisRegisterGetClass(g->op[i].reg.value) == ZYDIS_REGCLASS_SEGMENT;
}

static unsigned segment_number(const struct ginsn *g, unsigned i)
{
    return (unsigned)(g->op[i].reg.value - ZYDIS_REGISTER_ES); // ES CS SS DS FS GS, as enum seg
}

static void sensitive(struct ginsn *g, unsigned op)
{
    g->cls = CLASS_SENSITIVE;
    g->sens = (uint8_t)op;
}

// #NM and #UD of x87 and vector instructions (SDM 3A 2.5, table 2-2 and 13-1); CR0.TS and friends are in the key.
static void check_fpu(struct translation *t, struct ginsn *g)
{
    uint32_t k = t->key;
    switch (g->z->meta.isa_ext) {
    case ZYDIS_ISA_EXT_X87:
        if (g->z->mnemonic == ZYDIS_MNEMONIC_FWAIT) {
            if ((k & (KEY_TS | KEY_MP)) == (KEY_TS | KEY_MP))
                sensitive(g, OP_NM);
        } else if (k & (KEY_TS | KEY_EM)) {
            sensitive(g, OP_NM);
        }
        return;
    case ZYDIS_ISA_EXT_MMX:
        if (k & KEY_EM)
            sensitive(g, OP_UD);
        else if (k & KEY_TS)
            sensitive(g, OP_NM);
        return;
    default: break;
    }
    bool vector = false;
    for (unsigned i = 0; i < g->z->operand_count; i++) {
        if (g->op[i].type != ZYDIS_OPERAND_TYPE_REGISTER)
            continue;
        switch (ZydisRegisterGetClass(g->op[i].reg.value)) {
        case ZYDIS_REGCLASS_MMX:
        case ZYDIS_REGCLASS_XMM:
        case ZYDIS_REGCLASS_YMM:
        case ZYDIS_REGCLASS_ZMM:
        case ZYDIS_REGCLASS_MASK: vector = true; break;
        default: break;
        }
    }
    switch (g->z->mnemonic) {
    case ZYDIS_MNEMONIC_LDMXCSR:
    case ZYDIS_MNEMONIC_STMXCSR:
    case ZYDIS_MNEMONIC_VLDMXCSR:
    case ZYDIS_MNEMONIC_VSTMXCSR:
    case ZYDIS_MNEMONIC_VZEROALL:
    case ZYDIS_MNEMONIC_VZEROUPPER: vector = true; break;
    default: break;
    }
    bool evex = g->z->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX;
    bool vex = g->z->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
    if (evex || (vex && g->z->meta.isa_ext == ZYDIS_ISA_EXT_AVX512VEX)) {
        if (!(k & KEY_AVX512) || !(k & KEY_OSXSAVE) || !(k & KEY_PE) || k & KEY_VM)
            sensitive(g, OP_UD);
        else if (k & KEY_TS)
            sensitive(g, OP_NM);
    } else if (vex) {
        if (!(k & KEY_PE) || k & KEY_VM || (vector && (!(k & KEY_AVX) || !(k & KEY_OSXSAVE))))
            sensitive(g, OP_UD);
        else if (vector && k & KEY_TS)
            sensitive(g, OP_NM);
    } else if (vector) {
        if (k & KEY_EM || !(k & KEY_OSFXSR))
            sensitive(g, OP_UD);
        else if (k & KEY_TS)
            sensitive(g, OP_NM);
    }
}

// Extensions whose instructions are computation and nothing more. Those of any other that rules[] doesn't name raise #UD: a
// host that has them would let the guest into state that is not the guest's (tiles make the host's kernel send a signal).
static bool offered(ZydisISAExt extension)
{
    switch (extension) {
    case ZYDIS_ISA_EXT_BASE: case ZYDIS_ISA_EXT_LONGMODE: case ZYDIS_ISA_EXT_X87: case ZYDIS_ISA_EXT_MMX:
    case ZYDIS_ISA_EXT_SSE: case ZYDIS_ISA_EXT_SSE2: case ZYDIS_ISA_EXT_SSE3: case ZYDIS_ISA_EXT_SSSE3:
    case ZYDIS_ISA_EXT_SSE4: case ZYDIS_ISA_EXT_SSE4A: case ZYDIS_ISA_EXT_AES: case ZYDIS_ISA_EXT_PCLMULQDQ:
    case ZYDIS_ISA_EXT_SHA: case ZYDIS_ISA_EXT_GFNI: case ZYDIS_ISA_EXT_AVX: case ZYDIS_ISA_EXT_AVX2:
    case ZYDIS_ISA_EXT_AVX2GATHER: case ZYDIS_ISA_EXT_AVXAES: case ZYDIS_ISA_EXT_AVX_VNNI: case ZYDIS_ISA_EXT_VAES:
    case ZYDIS_ISA_EXT_VPCLMULQDQ: case ZYDIS_ISA_EXT_F16C: case ZYDIS_ISA_EXT_FMA: case ZYDIS_ISA_EXT_FMA4:
    case ZYDIS_ISA_EXT_AVX512EVEX: case ZYDIS_ISA_EXT_AVX512VEX: case ZYDIS_ISA_EXT_BMI1: case ZYDIS_ISA_EXT_BMI2:
    case ZYDIS_ISA_EXT_ADOX_ADCX: case ZYDIS_ISA_EXT_LZCNT: case ZYDIS_ISA_EXT_MOVBE: case ZYDIS_ISA_EXT_RDRAND:
    case ZYDIS_ISA_EXT_RDSEED: case ZYDIS_ISA_EXT_SERIALIZE: case ZYDIS_ISA_EXT_MOVDIR: return true;
    default: return false;
    }
}

// What only a worker can leave to the host: it runs at CPL 3, in the guest's address space, with the guest's FS and GS.
static bool is_plain_for_user(const struct ginsn *g)
{
    return g->cls == CLASS_STRING || (g->cls == CLASS_SENSITIVE && (g->sens == OP_RDFSBASE || g->sens == OP_RDGSBASE ||
                                                                     g->sens == OP_WRFSBASE || g->sens == OP_WRGSBASE));
}

void classify(struct translation *t, struct ginsn *g)
{
    const struct brief *z = g->z;
    g->cls = CLASS_PLAIN;
    g->sens = 0;
    if (z->meta.category == ZYDIS_CATEGORY_COND_BR && z->mnemonic != ZYDIS_MNEMONIC_XBEGIN)
        g->cls = CLASS_CONTROL;
    if (z->mnemonic <= ZYDIS_MNEMONIC_MAX_VALUE && t->rule_of[z->mnemonic]) {
        const struct rule *r = &rules[t->rule_of[z->mnemonic] - 1];
        g->cls = r->cls;
        g->sens = r->sens;
    }
    switch (z->mnemonic) {
    case ZYDIS_MNEMONIC_JMP:
    case ZYDIS_MNEMONIC_CALL:
    case ZYDIS_MNEMONIC_RET:
        if (z->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR)
            sensitive(g, z->mnemonic == ZYDIS_MNEMONIC_JMP    ? OP_JMP_FAR
                         : z->mnemonic == ZYDIS_MNEMONIC_CALL ? OP_CALL_FAR
                                                              : OP_RET_FAR);
        break;
    case ZYDIS_MNEMONIC_PUSH:
        if (segment_operand(g, 0))
            sensitive(g, OP_PUSH_SREG);
        break;
    case ZYDIS_MNEMONIC_POP:
        if (segment_operand(g, 0))
            sensitive(g, OP_POP_SREG);
        break;
    case ZYDIS_MNEMONIC_MOV:
        if (segment_operand(g, 0)) {
            sensitive(g, OP_MOV_TO_SREG);
        } else if (segment_operand(g, 1)) {
            sensitive(g, OP_MOV_FROM_SREG);
        } else if (z->opcode_map == ZYDIS_OPCODE_MAP_0F) {
            unsigned op = z->opcode == 0x20 ? OP_MOV_FROM_CR : z->opcode == 0x21 ? OP_MOV_FROM_DR
                        : z->opcode == 0x22 ? OP_MOV_TO_CR : z->opcode == 0x23 ? OP_MOV_TO_DR : OP_UD;
            sensitive(g, op);
        }
        break;
    case ZYDIS_MNEMONIC_MOVSD: // the string move and the SSE2 one share a name
    case ZYDIS_MNEMONIC_CMPSD:
        if (z->meta.category == ZYDIS_CATEGORY_STRINGOP)
            g->cls = CLASS_STRING;
        break;
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC:
        if (g->op[0].type == ZYDIS_OPERAND_TYPE_MEMORY && g->op[1].type == ZYDIS_OPERAND_TYPE_REGISTER)
            g->cls = CLASS_CONTROL;
        break;
    default: break;
    }
    if (g->cls == CLASS_PLAIN || g->cls == CLASS_GATHER || (g->cls == CLASS_CONTROL && z->meta.isa_ext != ZYDIS_ISA_EXT_BASE))
        check_fpu(t, g);
    if (g->cls == CLASS_PLAIN && (!offered((ZydisISAExt)z->meta.isa_ext) || z->encoding == ZYDIS_INSTRUCTION_ENCODING_XOP ||
                                  z->encoding == ZYDIS_INSTRUCTION_ENCODING_3DNOW ||
                                  z->encoding == ZYDIS_INSTRUCTION_ENCODING_MVEX))
        sensitive(g, OP_UD);
    if (!feature_offered(t, g))
        sensitive(g, OP_UD);
    if (g->cls == CLASS_SENSITIVE && can_inline(t, g))
        g->cls = CLASS_INLINE;
    if (user(t) && is_plain_for_user(g))
        g->cls = CLASS_PLAIN;
}

void fill_insn(const struct translation *t, const struct ginsn *g, struct insn *in)
{
    const struct brief *z = g->z;
    struct fields f = insn_fields(g);
    *in = (struct insn){.op = g->sens, .len = z->length, .op_size = (uint8_t)(z->operand_width / 8),
                        .addr_size = (uint8_t)(z->address_width / 8), .reg = (uint8_t)f.reg, .rm = (uint8_t)f.rm,
                        .rex = f.rex, .base = -1, .index = -1, .scale = 1, .sreg = SEG_DS};
    if (z->raw.modrm.offset == 0)
        in->reg = in->rm = (uint8_t)f.opreg;
    struct ea ea;
    unsigned size;
    bool rd, wr;
    if (mem_operand(g, &ea, &size, &rd, &wr)) {
        in->is_mem = z->raw.modrm.offset && z->raw.modrm.mod != 3;
        in->sreg = (uint8_t)ea.sreg;
        in->base = (int8_t)ea.base;
        in->index = (int8_t)ea.index;
        in->scale = (uint8_t)ea.scale;
        in->disp = ea.disp;
    } else if (z->raw.modrm.offset && z->raw.modrm.mod != 3) { // INVLPG: an address without an access
        for (unsigned i = 0; i < z->operand_count; i++) {
            const struct operand *o = &g->op[i];
            if (o->type != ZYDIS_OPERAND_TYPE_MEMORY)
                continue;
            in->is_mem = 1;
            in->disp = o->mem.has_displacement ? g->disp : 0;
            if (o->mem.base == ZYDIS_REGISTER_RIP || o->mem.base == ZYDIS_REGISTER_EIP)
                in->disp += (int64_t)(g->rip + z->length);
            else if (o->mem.base != ZYDIS_REGISTER_NONE)
                in->base = (int8_t)(ZydisRegisterGetId(o->mem.base) & 15);
            if (o->mem.index != ZYDIS_REGISTER_NONE)
                in->index = (int8_t)(ZydisRegisterGetId(o->mem.index) & 15);
            in->scale = o->mem.scale ? o->mem.scale : 1;
            if (o->mem.segment >= ZYDIS_REGISTER_ES && o->mem.segment <= ZYDIS_REGISTER_GS)
                in->sreg = (uint8_t)(o->mem.segment - ZYDIS_REGISTER_ES);
        }
    }
    for (unsigned i = 0; i < z->raw.prefix_count; i++) {
        uint8_t p = g->bytes[i];
        if (p == 0xf2 || p == 0xf3)
            in->rep = p;
        else if (p == 0xf0)
            in->lock = 1;
        else if (g->cls == CLASS_STRING || in->op == OP_OUTS)
            in->sreg = p == 0x26   ? SEG_ES
                       : p == 0x2e ? SEG_CS
                       : p == 0x36 ? SEG_SS
                       : p == 0x3e ? SEG_DS
                       : p == 0x64 ? SEG_FS
                       : p == 0x65 ? SEG_GS
                                   : in->sreg;
    }
    if ((g->cls == CLASS_STRING || in->op == OP_OUTS) && z->machine_mode == ZYDIS_MACHINE_MODE_LONG_64 && in->sreg < SEG_FS)
        in->sreg = SEG_DS;
    if (z->raw.imm.size)
        in->imm = g->imm;
    switch (in->op) {
    case OP_MOV_FROM_SREG: in->reg = (uint8_t)segment_number(g, 1); break;
    case OP_MOV_TO_SREG:
    case OP_PUSH_SREG:
    case OP_POP_SREG: in->reg = (uint8_t)segment_number(g, 0); break;
    case OP_LOAD_FAR_PTR:
        // which segment register is loaded goes into `imm`, as `reg` is the general register
        in->imm = z->mnemonic == ZYDIS_MNEMONIC_LDS   ? SEG_DS
                  : z->mnemonic == ZYDIS_MNEMONIC_LES ? SEG_ES
                  : z->mnemonic == ZYDIS_MNEMONIC_LFS ? SEG_FS
                  : z->mnemonic == ZYDIS_MNEMONIC_LGS ? SEG_GS
                                                      : SEG_SS;
        break;
    case OP_CALL_FAR:
    case OP_JMP_FAR:
        if (g->op[0].type == ZYDIS_OPERAND_TYPE_POINTER) {
            in->imm_sel = g->op[0].ptr.segment;
            in->imm = g->op[0].ptr.offset;
        }
        break;
    case OP_BAD_BRANCH: in->imm = z->mnemonic == ZYDIS_MNEMONIC_CALL ? branch_size(t, g) : 0; break;
    case OP_ENTER: in->imm = (g->imm & 0xffff) | (uint64_t)g->bytes[z->length - 1] << 16; break;
    case OP_INT: in->imm &= 0xff; break;
    case OP_AAM:
    case OP_AAD: in->imm &= 0xff; break;
    case OP_IN:
    case OP_OUT: {
        in->is_mem = 0;
        in->reg = z->raw.imm.size ? 0 : 1; // 1: the port is in DX
        in->imm &= 0xff;
        in->op_size = z->opcode & 1 ? (z->operand_width == 16 ? 2 : 4) : 1;
        break;
    }
    case OP_INS:
    case OP_OUTS: in->op_size = z->opcode & 1 ? (z->operand_width == 16 ? 2 : 4) : 1; break;
    default: break;
    }
    if (g->cls == CLASS_STRING) {
        in->op_size = z->opcode & 1 ? in->op_size : 1;
        in->imm = z->opcode & 0xfe; // A4 MOVS, A6 CMPS, AA STOS, AC LODS, AE SCAS
    }
}

// Index width and element width are in the name: VPGATHERdQ, VGATHERqPS.
static void fill_gather(const struct ginsn *g, struct insn *in, struct gather *x)
{
    const struct operand *mem = NULL, *data = NULL, *mask = NULL;
    for (unsigned i = 0; i < g->z->operand_count; i++) {
        const struct operand *o = &g->op[i];
        if (o->type == ZYDIS_OPERAND_TYPE_MEMORY)
            mem = o;
        else if (o->type == ZYDIS_OPERAND_TYPE_REGISTER && o->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG)
            data = o;
        else if (o->type == ZYDIS_OPERAND_TYPE_REGISTER && (o->encoding == ZYDIS_OPERAND_ENCODING_MASK ||
                                                            o->encoding == ZYDIS_OPERAND_ENCODING_NDSNDD))
            mask = o;
    }
    if (!mem || !data || !mask)
        return;
    x->evex = g->z->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX;
    x->scatter = (g->z->opcode & 0xf0) == 0xa0;
    unsigned prefix = x->evex ? g->z->raw.evex_offset : g->z->raw.vex_offset;
    x->element = g->bytes[prefix + 2] & 0x80 ? 8 : 4; // VEX.W and EVEX.W are both bit 7 of that byte
    x->index_size = g->z->opcode & 1 ? 8 : 4;
    x->vector = (uint8_t)(g->z->avx.vector_length / 8);
    x->data = (uint8_t)ZydisRegisterGetId(data->reg.value);
    x->mask = (uint8_t)ZydisRegisterGetId(mask->reg.value);
    x->index = (uint8_t)ZydisRegisterGetId(mem->mem.index);
    in->index = -1;
}

void emit_site(struct translation *t, struct ginsn *g)
{
    struct asm_buf *a = &t->a;
    if (user(t)) { // its owner has translated code do it
        a8(a, 0xcc); // int3
        t->ended = true;
        return;
    }
    struct site *s = arena_alloc(t->d, sizeof *s);
    if (!s) {
        a->overflow = 1;
        return;
    }
    s->rip = g->rip;
    s->count = 0;
    s->rest = t->rest[g - t->insn];
    fill_insn(t, g, &s->in);
    if (g->cls == CLASS_GATHER)
        fill_gather(g, &s->in, &s->gather);
    enum flag_place flags = t->flags;
    if (flags == FLAGS_HOST)
        flags_park(t);
    t->flags = flags;
    a->fixed |= g->z->mem.rip_relative;
    a_mov_own(a, T0, s, RELOC_SITE);
    a_jmp_to(a, g->cls == CLASS_STRING   ? t->d->stub_string
                : g->cls == CLASS_GATHER ? t->d->stub_gather
                                         : t->d->stub_sensitive);
    t->ended = true;
}
