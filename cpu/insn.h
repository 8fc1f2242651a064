// One decoded sensitive instruction, as the semantics in cpu/ take it: operands by architectural number, nothing of
// the decoder that made it. The translator fills it once per site; it is read-only afterwards.
#pragma once
#include <stdbool.h>
#include <stdint.h>

struct vcpu;

// Every instruction with C semantics. The order is that of the table in cpu/ops.c.
enum insn_op {
    OP_NONE,
    // system registers and tables
    OP_SGDT, OP_SIDT, OP_SLDT, OP_STR, OP_SMSW, OP_LMSW, OP_LGDT, OP_LIDT, OP_LLDT, OP_LTR,
    OP_MOV_FROM_CR, OP_MOV_TO_CR, OP_MOV_FROM_DR, OP_MOV_TO_DR, OP_CLTS,
    OP_INVLPG, OP_INVPCID, OP_INVD, OP_WBINVD,
    OP_RDMSR, OP_WRMSR, OP_RDTSC, OP_RDTSCP, OP_RDPMC, OP_RDPID, OP_CPUID, OP_XSETBV, OP_XGETBV,
    OP_RDFSBASE, OP_RDGSBASE, OP_WRFSBASE, OP_WRGSBASE, OP_SWAPGS,
    // segments: MOV/PUSH/POP Sreg (in->reg), LDS LES LFS LGS LSS (in->imm), LAR LSL VERR VERW ARPL
    OP_MOV_FROM_SREG, OP_MOV_TO_SREG, OP_PUSH_SREG, OP_POP_SREG, OP_LOAD_FAR_PTR, OP_LAR, OP_LSL, OP_VERR, OP_VERW, OP_ARPL,
    // control transfer
    OP_CALL_FAR, OP_JMP_FAR, OP_RET_FAR, OP_INT, OP_INT3, OP_INT1, OP_INTO, OP_IRET,
    OP_SYSCALL, OP_SYSRET, OP_SYSENTER, OP_SYSEXIT, OP_RSM, OP_VMCALL,
    // flags and waiting
    OP_PUSHF, OP_POPF, OP_CLI, OP_STI, OP_STAC, OP_CLAC, OP_HLT, OP_MONITOR, OP_MWAIT, OP_PAUSE,
    // port I/O (string forms with in->rep)
    OP_IN, OP_OUT, OP_INS, OP_OUTS,
    // XSAVE family and the forms that show an instruction pointer
    OP_XSAVE, OP_XSAVEC, OP_XSAVEOPT, OP_XSAVES, OP_XRSTOR, OP_XRSTORS, OP_FXSAVE, OP_FXRSTOR,
    OP_FNSTENV, OP_FLDENV, OP_FNSAVE, OP_FRSTOR, OP_RDPKRU, OP_WRPKRU,
    // instructions gone in 64-bit mode, or with an awkward stack, that have no short native sequence
    OP_PUSHA, OP_POPA, OP_ENTER, OP_BOUND, OP_DAA, OP_DAS, OP_AAA, OP_AAS, OP_AAM, OP_AAD,
    // raise #UD / #NM / #GP(0): decode outcomes that are faults
    OP_UD, OP_NM, OP_GP0, OP_BAD_BRANCH,
    OP_COUNT
};

struct insn {
    uint8_t op;        // enum insn_op
    uint8_t len;       // bytes, 1..15
    uint8_t op_size;   // effective operand size in bytes: 1, 2, 4, 8
    uint8_t addr_size; // effective address size in bytes: 2, 4, 8
    uint8_t is_mem;    // the r/m operand is memory
    uint8_t rm;        // r/m register number (0..15) when !is_mem
    uint8_t reg;       // reg-field register number: general, segment (enum seg), control or debug register;
                       // OP_IN, OP_OUT: 1 when the port is in DX, 0 when it is `imm`
    uint8_t rex;       // a REX prefix was there (8-bit registers 4..7 are SPL BPL SIL DIL)
    uint8_t sreg;      // effective segment of the memory operand (enum seg), default and overrides applied
    int8_t base;       // base register number, -1 none, 16 = RIP (of the next instruction)
    int8_t index;      // index register number, -1 none
    uint8_t scale;     // 1, 2, 4, 8
    uint8_t rep;       // 0, 0xf3 (REP/REPE), 0xf2 (REPNE)
    uint8_t lock;
    uint16_t imm_sel;  // selector of a direct far pointer
    int64_t disp;      // sign-extended displacement
    uint64_t imm;      // immediate (sign- or zero-extended as the instruction says), port number, far offset, vector;
                       // OP_ENTER: bits 15:0 frame size, 23:16 nesting level; OP_LOAD_FAR_PTR: the segment
                       // register to load (enum seg; in->reg is the offset's register, in->sreg where memory is);
                       // OP_BAD_BRANCH: bytes that it pushes
};

// Executes the instruction. On entry v->s is the exact state before it, rip at its first byte; on return rip is at the
// next instruction. Guest faults don't return: they leave by cpu_throw() with the state unchanged.
typedef void insn_fn(struct vcpu *v, const struct insn *in);

extern insn_fn *const insn_table[OP_COUNT];
extern const char *const insn_names[OP_COUNT];
