// Enters and leaves code under test on the host's processor. Everything is reached by absolute addresses, because no
// register is free on either edge.
#include "tests/diff/native_frame.h"
#define FRAME 0x20300000 /* FRAME_BASE in side.h; native.c asserts that they agree */

    .intel_syntax noprefix
    .text

// void native_enter(int compat): loads the state in the frame and jumps to the code. Returns when it has ended.
    .globl native_enter
    .type native_enter, @function
native_enter:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov qword ptr [FRAME + FRAME_HOST_RSP], rsp
    mov ecx, edi
    mov eax, dword ptr [FRAME + FRAME_XMASK]
    mov edx, dword ptr [FRAME + FRAME_XMASK + 4]
    xrstor64 [FRAME + FRAME_X_IN]
    test ecx, ecx
    jnz 1f
    cmp qword ptr [FRAME + FRAME_SEGMENTS], 0
    je 2f
    mov rax, qword ptr [FRAME + FRAME_FS_BASE]
    wrfsbase rax
    mov rax, qword ptr [FRAME + FRAME_GS_BASE]
    wrgsbase rax
2:  push qword ptr [FRAME + FRAME_FLAGS_IN]
    popfq
    call load_registers_but_rsp
    mov rsp, qword ptr [FRAME + FRAME_GPR_IN + 4 * 8]
    jmp qword ptr [FRAME + FRAME_RIP]
1:  mov ds, word ptr [FRAME + FRAME_DATA_SEL]
    mov es, word ptr [FRAME + FRAME_DATA_SEL]
    cmp qword ptr [FRAME + FRAME_SEGMENTS], 0
    je 3f
    mov fs, word ptr [FRAME + FRAME_FS_SEL]
    mov gs, word ptr [FRAME + FRAME_GS_SEL]
3:  push qword ptr [FRAME + FRAME_FLAGS_IN]
    popfq
    call load_registers_but_rsp
    mov ss, word ptr [FRAME + FRAME_DATA_SEL]
    mov rsp, qword ptr [FRAME + FRAME_GPR_IN + 4 * 8]
    jmp fword ptr [FRAME + FRAME_FAR]
    .size native_enter, . - native_enter

load_registers_but_rsp:
    mov rax, qword ptr [FRAME + FRAME_GPR_IN + 0 * 8]
    mov rcx, qword ptr [FRAME + FRAME_GPR_IN + 1 * 8]
    mov rdx, qword ptr [FRAME + FRAME_GPR_IN + 2 * 8]
    mov rbx, qword ptr [FRAME + FRAME_GPR_IN + 3 * 8]
    mov rbp, qword ptr [FRAME + FRAME_GPR_IN + 5 * 8]
    mov rsi, qword ptr [FRAME + FRAME_GPR_IN + 6 * 8]
    mov rdi, qword ptr [FRAME + FRAME_GPR_IN + 7 * 8]
    mov r8, qword ptr [FRAME + FRAME_GPR_IN + 8 * 8]
    mov r9, qword ptr [FRAME + FRAME_GPR_IN + 9 * 8]
    mov r10, qword ptr [FRAME + FRAME_GPR_IN + 10 * 8]
    mov r11, qword ptr [FRAME + FRAME_GPR_IN + 11 * 8]
    mov r12, qword ptr [FRAME + FRAME_GPR_IN + 12 * 8]
    mov r13, qword ptr [FRAME + FRAME_GPR_IN + 13 * 8]
    mov r14, qword ptr [FRAME + FRAME_GPR_IN + 14 * 8]
    mov r15, qword ptr [FRAME + FRAME_GPR_IN + 15 * 8]
    ret

// The end of the code under test, in 64-bit mode whatever mode it ran in.
    .globl native_exit
    .type native_exit, @function
native_exit:
    mov qword ptr [FRAME + FRAME_GPR_OUT + 0 * 8], rax
    mov qword ptr [FRAME + FRAME_GPR_OUT + 1 * 8], rcx
    mov qword ptr [FRAME + FRAME_GPR_OUT + 2 * 8], rdx
    mov qword ptr [FRAME + FRAME_GPR_OUT + 3 * 8], rbx
    mov qword ptr [FRAME + FRAME_GPR_OUT + 4 * 8], rsp
    mov qword ptr [FRAME + FRAME_GPR_OUT + 5 * 8], rbp
    mov qword ptr [FRAME + FRAME_GPR_OUT + 6 * 8], rsi
    mov qword ptr [FRAME + FRAME_GPR_OUT + 7 * 8], rdi
    mov qword ptr [FRAME + FRAME_GPR_OUT + 8 * 8], r8
    mov qword ptr [FRAME + FRAME_GPR_OUT + 9 * 8], r9
    mov qword ptr [FRAME + FRAME_GPR_OUT + 10 * 8], r10
    mov qword ptr [FRAME + FRAME_GPR_OUT + 11 * 8], r11
    mov qword ptr [FRAME + FRAME_GPR_OUT + 12 * 8], r12
    mov qword ptr [FRAME + FRAME_GPR_OUT + 13 * 8], r13
    mov qword ptr [FRAME + FRAME_GPR_OUT + 14 * 8], r14
    mov qword ptr [FRAME + FRAME_GPR_OUT + 15 * 8], r15
    mov rsp, qword ptr [FRAME + FRAME_HOST_RSP]
    mov eax, 0x2b // the 64-bit user data selector of Linux
    mov ss, eax
    pushfq
    pop qword ptr [FRAME + FRAME_FLAGS_OUT]
    push 0x202
    popfq
    mov eax, dword ptr [FRAME + FRAME_XMASK]
    mov edx, dword ptr [FRAME + FRAME_XMASK + 4]
    xsave64 [FRAME + FRAME_X_OUT]
    // Falls into native_resume.
// void native_resume(void): back to native_enter's caller from anywhere (a signal handler, above all).
    .globl native_resume
    .type native_resume, @function
native_resume:
    mov rsp, qword ptr [FRAME + FRAME_HOST_RSP]
    push 0x202
    popfq
    fninit
    push 0x1f80
    ldmxcsr [rsp]
    pop rax
    xor eax, eax
    mov ds, eax
    mov es, eax
    cmp qword ptr [FRAME + FRAME_SEGMENTS], 0
    je 4f
    mov fs, eax
    mov gs, eax
    wrgsbase rax
    mov rax, qword ptr [FRAME + FRAME_HOST_FS]
    wrfsbase rax
4:
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
    .size native_resume, . - native_resume
    .section .note.GNU-stack, "", @progbits
