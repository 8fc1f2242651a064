// Every instruction with C semantics, by enum insn_op. An entry left out would be null: the table is checked
// by a test.
#include "cpu/internal.h"

// X(upper, lower) in the order of the enum, OP_NONE excepted.
#define OPS(X)                                                                                               \
    X(SGDT, sgdt) X(SIDT, sidt) X(SLDT, sldt) X(STR, str) X(SMSW, smsw) X(LMSW, lmsw) X(LGDT, lgdt)          \
    X(LIDT, lidt) X(LLDT, lldt) X(LTR, ltr) X(MOV_FROM_CR, mov_from_cr) X(MOV_TO_CR, mov_to_cr)              \
    X(MOV_FROM_DR, mov_from_dr) X(MOV_TO_DR, mov_to_dr) X(CLTS, clts) X(INVLPG, invlpg)                      \
    X(INVPCID, invpcid) X(INVD, invd) X(WBINVD, wbinvd) X(RDMSR, rdmsr) X(WRMSR, wrmsr) X(RDTSC, rdtsc)      \
    X(RDTSCP, rdtscp) X(RDPMC, rdpmc) X(RDPID, rdpid) X(CPUID, cpuid) X(XSETBV, xsetbv) X(XGETBV, xgetbv)    \
    X(RDFSBASE, rdfsbase) X(RDGSBASE, rdgsbase) X(WRFSBASE, wrfsbase) X(WRGSBASE, wrgsbase)                  \
    X(SWAPGS, swapgs) X(MOV_FROM_SREG, mov_from_sreg) X(MOV_TO_SREG, mov_to_sreg) X(PUSH_SREG, push_sreg)    \
    X(POP_SREG, pop_sreg) X(LOAD_FAR_PTR, load_far_ptr) X(LAR, lar) X(LSL, lsl) X(VERR, verr)                \
    X(VERW, verw) X(ARPL, arpl) X(CALL_FAR, call_far) X(JMP_FAR, jmp_far) X(RET_FAR, ret_far) X(INT, int)    \
    X(INT3, int3) X(INT1, int1) X(INTO, into) X(IRET, iret) X(SYSCALL, syscall) X(SYSRET, sysret)            \
    X(SYSENTER, sysenter) X(SYSEXIT, sysexit) X(RSM, rsm) X(VMCALL, vmcall) X(PUSHF, pushf) X(POPF, popf)    \
    X(CLI, cli) X(STI, sti) X(STAC, stac) X(CLAC, clac) X(HLT, hlt) X(MONITOR, monitor) X(MWAIT, mwait)      \
    X(PAUSE, pause) X(IN, in) X(OUT, out) X(INS, ins) X(OUTS, outs) X(XSAVE, xsave) X(XSAVEC, xsavec)        \
    X(XSAVEOPT, xsaveopt) X(XSAVES, xsaves) X(XRSTOR, xrstor) X(XRSTORS, xrstors) X(FXSAVE, fxsave)          \
    X(FXRSTOR, fxrstor) X(FNSTENV, fnstenv) X(FLDENV, fldenv) X(FNSAVE, fnsave) X(FRSTOR, frstor)            \
    X(RDPKRU, rdpkru) X(WRPKRU, wrpkru) X(PUSHA, pusha) X(POPA, popa) X(ENTER, enter) X(BOUND, bound)        \
    X(DAA, daa) X(DAS, das) X(AAA, aaa) X(AAS, aas) X(AAM, aam) X(AAD, aad) X(UD, ud) X(NM, nm) X(GP0, gp0) \
    X(BAD_BRANCH, bad_branch)

#define X(upper, lower) insn_fn op_##lower;
OPS(X)
#undef X

insn_fn *const insn_table[OP_COUNT] = {
    [OP_NONE] = op_ud,
#define X(upper, lower) [OP_##upper] = op_##lower,
    OPS(X)
#undef X
};

const char *const insn_names[OP_COUNT] = {
    [OP_NONE] = "none",
#define X(upper, lower) [OP_##upper] = #lower,
    OPS(X)
#undef X
};
