// The way from the PVH entry (32-bit protected mode, no paging) to payload(), in long mode with 4 GiB mapped one to one.
    .section .note.pvh, "a", @note
    .long 4, 4, 18 // XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long start32

    .bss
    .balign 4096
pml4: .skip 4096
pdpt: .skip 4096
    .globl pd
pd:   .skip 4 * 4096
    .skip 16384
stack_top:

    .data
    .balign 8
gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdtr:
    .word . - gdt - 1
    .quad gdt

    .text
    .code32
    .globl start32
start32:
    cli
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
    lgdt gdtr
    ljmp $8, $start64
    .code64
start64:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $stack_top, %esp
    call payload
1:  hlt
    jmp 1b

    // The timer's interrupt: the time, as early as it can be taken.
    .globl on_timer
on_timer:
    pushq %rax
    pushq %rdx
    rdtsc
    shlq $32, %rdx
    orq %rdx, %rax
    movq %rax, fired_at
    movl $0xfee000b0, %edx
    movl $0, (%rdx) // EOI
    popq %rdx
    popq %rax
    iretq

    .globl on_spurious
on_spurious:
    iretq

    .section .note.GNU-stack, "", @progbits
