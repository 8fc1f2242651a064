// The way from the PVH entry (32-bit protected mode, no paging) to payload(): in long mode with 4 GiB mapped one to one, or,
// built with -m32, in flat 32-bit protected mode without paging. SSE is on, AVX too where there is one. Then the timer's
// interrupt, which saves, spoils and restores every register there is.
    .section .note.pvh, "a", @note
    .long 4, 4, 18 // XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long start32

    .bss
    .balign 4096
#ifdef __x86_64__
pml4: .skip 4096
pdpt: .skip 4096
pd:   .skip 4 * 4096
#endif
    .skip 65536
stack_top:

    .data
    .balign 8
gdt:
#ifdef __x86_64__
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
#else
    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
#endif
gdtr:
    .word . - gdt - 1
    .long gdt, 0
    .globl has_avx
has_avx: .long 0
spoilt_mxcsr: .long 0x7fbf // round to zero, exceptions masked, all flags but one

    .text
    .code32
    .globl start32
start32:
    cli
    lgdt gdtr
#ifdef __x86_64__
    movl $pdpt + 3, pml4
    movl $pd + 3, pdpt
    movl $pd + 0x1003, pdpt + 8
    movl $pd + 0x2003, pdpt + 16
    movl $pd + 0x3003, pdpt + 24
    xorl %ecx, %ecx
1:  movl %ecx, %eax
    shll $21, %eax
    orl $0x83, %eax // present, writable, 2 MiB
    movl %eax, pd(, %ecx, 8)
    incl %ecx
    cmpl $2048, %ecx
    jb 1b
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0x6a0, %eax // PAE, PGE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax // EFER.LME
    wrmsr
    movl $0x80010033, %eax // PG, WP, NE, ET, MP, PE
    movl %eax, %cr0
    ljmp $8, $loaded
    .code64
#else
    movl $0x600, %eax // OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $0x10033, %eax // WP, NE, ET, MP, PE
    movl %eax, %cr0
    ljmp $8, $loaded
#endif
loaded:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $stack_top, %esp
    movl $1, %eax
    cpuid
    notl %ecx
    testl $0x14000000, %ecx // AVX, XSAVE
    jnz 1f
#ifdef __x86_64__
    movq %cr4, %rax
    orl $0x40000, %eax // OSXSAVE
    movq %rax, %cr4
#else
    movl %cr4, %eax
    orl $0x40000, %eax
    movl %eax, %cr4
#endif
    xorl %ecx, %ecx
    xorl %edx, %edx
    movl $7, %eax // x87, SSE, AVX
    xsetbv
    movl $1, has_avx
1:  fninit
    call payload
1:  cli
    hlt
    jmp 1b

    .globl on_timer
#ifdef __x86_64__
    on_timer:
    .irp r, rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
    pushq %\r
    .endr
    movq %rsp, %rbp
    subq $1536, %rsp
    andq $-64, %rsp
    fxsave64 (%rsp)
    cmpl $0, has_avx
    je 1f
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovdqu %ymm\n, 512 + \n * 32(%rsp)
    .endr
1:  cld
    movq %rbp, %rdi
    call tick
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    pcmpeqd %xmm\n, %xmm\n
    .endr
#else
on_timer:
    pushal
    movl %esp, %ebp
    subl $1536, %esp
    andl $-64, %esp
    fxsave (%esp)
    cmpl $0, has_avx
    je 1f
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7
    vmovdqu %ymm\n, 512 + \n * 32(%esp)
    .endr
1:  cld
    subl $12, %esp
    pushl %ebp
    call tick
    addl $16, %esp
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7
    pcmpeqd %xmm\n, %xmm\n
    .endr
#endif
    // Nothing of the interrupted program is left where it was.
    ldmxcsr spoilt_mxcsr
    fninit
    fldpi
    fldl2t
    fldz
    fdivp
    cmpl $0, has_avx
    je 1f
    vzeroall
1:  movl $-1, %eax
    addl %eax, %eax
    std
#ifdef __x86_64__
    .irp r, rax, rcx, rdx, rbx, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
    movq %rsp, %\r
    .endr
    fxrstor64 (%rsp)
    cmpl $0, has_avx
    je 1f
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovdqu 512 + \n * 32(%rsp), %ymm\n
    .endr
1:  movq %rbp, %rsp
    .irp r, r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax
    popq %\r
    .endr
    iretq
#else
    fxrstor (%esp)
    cmpl $0, has_avx
    je 1f
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7
    vmovdqu 512 + \n * 32(%esp), %ymm\n
    .endr
1:  movl %ebp, %esp
    popal
    iretl
#endif

    .globl on_exception
on_exception: // of any kind: there should be none
    cli
    jmp exception

    .globl on_spurious
on_spurious:
#ifdef __x86_64__
    iretq
#else
    iretl
#endif

    .section .note.GNU-stack, "", @progbits
