// Work in which an interrupt finds every kind of instruction: word work_NAME(word seed). Each leaves in the result whatever
// a wrong register, flag or byte of memory would change. The same source is 64-bit and, with -m32, 32-bit code.
#ifdef __x86_64__
#define AX rax
#define CX rcx
#define DX rdx
#define BX rbx
#define SP rsp
#define BP rbp
#define SI rsi
#define DI rdi
#define W 8
#else
#define AX eax
#define CX ecx
#define DX edx
#define BX ebx
#define SP esp
#define BP ebp
#define SI esi
#define DI edi
#define W 4
#endif

    .bss
    .balign 4096
area: .skip 5 * 4096

    .text
    .macro work name
    .globl work_\name
    .balign 16
work_\name:
    push %BX
    push %BP
    push %SI
    push %DI
#ifdef __x86_64__
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rdi, %rax
#else
    mov 5 * W(%esp), %eax
#endif
    .endm

    .macro done
#ifdef __x86_64__
    pop %r15
    pop %r14
    pop %r13
    pop %r12
#endif
    pop %DI
    pop %SI
    pop %BP
    pop %BX
    ret
    .endm

    .macro step_random // eax
    imul $0x19660d, %eax, %eax
    add $0x3c6ef35f, %eax
    .endm

    .macro fill bytes // the area, from eax
    push %AX
    mov $area, %DI
    mov $\bytes, %ecx
    cld
    rep stosb
    pop %AX
    .endm

// Flags that live across loads, stores and the checks of their operands.
    work flags
    fill 64
    mov $1500, %ecx
    mov $area, %SI
    xor %edx, %edx
    xor %ebp, %ebp
1:  step_random
    cmp %edx, %eax
    mov (%SI), %ebx
    mov %eax, 8(%SI)
    jc 2f
    adcl $3, 16(%SI)
    mov 16(%SI), %edi
    sbb %edi, %edx
2:  mov 8(%SI), %ebx
    adc %ebx, %edx
    mov %edx, (%SI)
    rcl $1, %ebp
    test %ebx, %edx
    mov 16(%SI), %edi
    jp 3f
    inc %ebp
3:  js 4f
    xor %edi, %ebp
4:  setnz %bl
    seto %bh
    lahf
    movzx %ah, %edi
    add %edi, %ebp
    add %bl, %bh
    adc %bh, 24(%SI)
    mov 24(%SI), %eax
    rcr $3, %edx
    dec %ecx
    jnz 1b
    lea (%edx, %ebp), %eax
    done

// CALL, RET, PUSH and POP: Fibonacci numbers.
    work recursion
    and $1, %eax
    add $13, %eax
    call fib
    mov %edx, %eax
    done
fib: // edx = fib(eax)
    cmp $2, %eax
    mov %eax, %edx
    jb 1f
    push %AX
    dec %eax
    call fib
    pop %AX
    push %DX
    sub $2, %eax
    call fib
    pop %BX
    add %ebx, %edx
1:  ret

// Indirect calls and jumps through a table, by register and from memory.
    .section .rodata
    .balign W
leaves:
#ifdef __x86_64__
    .quad leaf0, leaf1, leaf2, leaf3
#else
    .long leaf0, leaf1, leaf2, leaf3
#endif
    .text
    work indirect
    mov $2000, %ecx
    xor %edx, %edx
1:  step_random
    mov %eax, %ebx
    shr $13, %ebx
    and $3, %ebx
    test $0x100000, %eax
    jz 2f
    call *leaves(, %BX, W)
    jmp 3f
2:  mov leaves(, %BX, W), %BX
    call *%BX
3:  add %edx, %eax
    dec %ecx
    jnz 1b
    done
leaf0: lea 5(%edx, %eax), %edx
    ret
leaf1: rol $7, %edx
    mov leaves + W * 2, %BX
    jmp *%BX
leaf2: xor %eax, %edx
    ret
leaf3: push %AX
    call leaf0
    pop %BX
    sub %ebx, %edx
    ret $0

// LOOP, LOOPNE and JCXZ in loops of their own.
    work loops
    xor %edx, %edx
    mov $60, %ebx
1:  step_random
    mov %eax, %ecx
    and $31, %ecx
#ifdef __x86_64__
    jrcxz 4f
#else
    jecxz 4f
#endif
2:  lea 1(%edx, %edx, 2), %edx
    loop 2b
    mov $40, %ecx
3:  add $0x11111111, %edx
    test $0x70, %dl
    loopne 3b
    lea (%edx, %ecx), %edx
4:  dec %ebx
    jnz 1b
    mov %edx, %eax
    done

// String instructions, forwards and backwards, across pages.
    work strings
    fill 8192
    mov $80, %ebx
    xor %edx, %edx
1:  step_random
    push %AX
    cld
    mov $area + 3900, %DI
    mov $50, %ecx
    rep stosl
    mov $area + 3901, %SI
    mov $area + 4090, %DI
    mov $150, %ecx
    rep movsb
    mov $area + 4090, %DI
    repne scasb
    std
    mov $area + 4200, %SI
    mov $area + 4203, %DI
    mov $30, %ecx
    rep movsw
    mov $area + 4239, %SI
    mov $area + 4180, %DI
    mov $20, %ecx
    repe cmpsb
    adc %ecx, %edx
    lodsb
    movzx %al, %eax
    add %eax, %edx
    cld
    lodsl
    xor %eax, %edx
    add %esi, %edx
    add %edi, %edx
    pop %AX
    dec %ebx
    jnz 1b
    mov %edx, %eax
    done

// Operands that lie in two pages: each runs in a block of its own.
    work crossing
    fill 8192
    mov $300, %ecx
    mov %SP, %BP
    mov $area + 4096, %SI
    xor %edx, %edx
1:  step_random
    cmp %edx, %eax
    mov %eax, -2(%SI)
    adc -2(%SI), %edx
    addl %edx, -1(%SI)
    mov -3(%SI), %ebx
    sbb %ebx, %edx
    lea 8192 + 1(%SI), %SP
    push %AX
    push %DX
    pop %BX
    adc %ebx, %edx
    pop %DI
    mov %BP, %SP
    xor %edi, %edx
    xchg %eax, -3(%SI)
    lock xaddl %edx, -1(%SI)
    dec %ecx
    jnz 1b
    mov %edx, %eax
    done

// Forward branches that blocks go on behind: steps of the 3x+1 problem, and a ladder of comparisons.
    work branches
    mov $120, %ecx
    xor %edx, %edx
1:  step_random
    mov %eax, %ebx
    shr $12, %ebx
    or $1, %ebx
2:  cmp $1, %ebx
    je 5f
    inc %edx
    test $1, %bl
    jz 3f
    lea 1(%ebx, %ebx, 2), %ebx
    cmp $0x100000, %ebx
    jb 4f
    rol $3, %edx
    cmp $0x1000000, %ebx
    jb 4f
    xor %ebx, %edx
    shr $8, %ebx
    or $1, %ebx
    jmp 4f
3:  shr $1, %ebx
    adc $0, %edx
4:  test $0xff, %dl
    jnz 2b
    mov %edx, area
    add area, %edx
    jmp 2b
5:  dec %ecx
    jnz 1b
    mov %edx, %eax
    done

// Flags that live from page to page, by jumps and by branches.
    work pages
    fill 64
    mov $1500, %ecx
    mov $area, %SI
    xor %edx, %edx
1:  step_random
    cmp %edx, %eax
    mov (%SI), %ebx
    jmp work_pages_there
work_pages_back:
    rcl $1, %edx
    mov %edx, (%SI)
    seto %bl
    movzx %bl, %ebx
    add %ebx, %edx
    mov 4(%SI), %edi
    js work_pages_negative
    adc $5, %edx
2:  dec %ecx
    jnz 1b
    mov %edx, %eax
    done
    .section .text.far, "ax"
    .balign 4096
work_pages_there:
    adc %eax, %edx
    mov %edx, 4(%SI)
    jmp work_pages_back
work_pages_negative:
    adc $9, %edx
    setp %bl
    add %bl, %dl
    jmp 2b
    .text

// RETs that no CALL has predicted, with flags that live across them.
    work returns
    mov $1500, %ecx
    xor %edx, %edx
1:  step_random
    cmp %edx, %eax
    push $2f
    ret
2:  adc %eax, %edx
    push $3f
    js 4f
    ret
3:  rcl $1, %edx
    dec %ecx
    jnz 1b
    mov %edx, %eax
    done
4:  setc %bl
    ret

// A long chain in the vector registers alone.
    work vectors
    fill 8192
    movl $0x1f80, area
    ldmxcsr area
    movd %eax, %xmm0
    pshufd $0, %xmm0, %xmm0
    .irp n, 1, 2, 3, 4, 5, 6, 7
    pcmpeqd %xmm\n, %xmm\n
    psrld $\n, %xmm\n
    paddd %xmm0, %xmm\n
    .endr
    cvtsi2sd %eax, %xmm7
    mov $400, %ecx
1:  paddd %xmm1, %xmm0
    pxor %xmm2, %xmm1
    pshufd $0x39, %xmm2, %xmm2
    paddd %xmm0, %xmm2
    movdqa %xmm2, %xmm3
    pslld $5, %xmm3
    pxor %xmm3, %xmm4
    paddw %xmm4, %xmm5
    psubd %xmm5, %xmm6
    movdqu %xmm6, area + 8
    movdqu area + 9, %xmm3
    paddd %xmm3, %xmm1
    sqrtsd %xmm7, %xmm7
    mulsd %xmm7, %xmm7
    dec %ecx
    jnz 1b
    cmpl $0, has_avx
    je 3f
    vpbroadcastd %xmm0, %ymm0
    vinserti128 $1, %xmm1, %ymm2, %ymm2
    mov $400, %ecx
2:  vpaddd %ymm0, %ymm2, %ymm2
    vpermq $0x93, %ymm2, %ymm3
    vpxor %ymm3, %ymm0, %ymm0
    vpmuludq %ymm0, %ymm2, %ymm4
    vpaddd %ymm4, %ymm5, %ymm5
    vmovdqu %ymm5, area + 64
    dec %ecx
    jnz 2b
    vextracti128 $1, %ymm5, %xmm4
    vpxor %xmm4, %xmm5, %xmm5
    vpxor %xmm5, %xmm0, %xmm0
    vzeroupper
3:  pxor %xmm1, %xmm0
    pxor %xmm6, %xmm0
    paddd %xmm7, %xmm0
    pshufd $0x4e, %xmm0, %xmm1
    paddd %xmm1, %xmm0
    movd %xmm0, %eax
    stmxcsr area
    add area, %eax
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7
    pxor %xmm\n, %xmm\n
    .endr
    done

// The x87 stack over many blocks, its control word, and what it raises.
    work x87
    fninit
    or $1, %eax
    and $0xffffff, %eax
    mov %eax, area
    movl $0x27f, area + 4 // double precision
    fldcw area + 4
    fildl area
    fld1
    fldpi
    mov $300, %ecx
1:  fadd %st(1)
    fmul %st(2)
    fsqrt
    fld %st(0)
    fxch %st(2)
    fsubp
    fabs
    fcomi %st(1)
    jb 2f
    fxch %st(1)
2:  filds area
    faddp
    dec %ecx
    jnz 1b
    fstpl area
    fstpl area + 8
    fistpl area + 16
    fnstsw %ax
    movzx %ax, %eax
    fnstcw area + 20
    add area, %eax
    add area + 4, %eax
    xor area + 8, %eax
    add area + 12, %eax
    add area + 16, %eax
    add area + 20, %ax
    fninit
    done

// Instructions whose meaning is in C, and what the processor would ask of a kernel.
    work sensitive
    fill 8192
    mov $250, %ecx
    xor %edx, %edx
1:  step_random
    cmp %edx, %eax
#ifdef __x86_64__
    pushfq
    mov (%rsp), %rbx
    popfq
#else
    pushfl
    mov (%esp), %ebx
    popfl
#endif
    adc %eax, %edx
    and $0x8d5, %ebx
    add %ebx, %edx
    mov %cr0, %BX
    lea (%edx, %ebx), %edx
    test %eax, %eax
    mov %ds, %ebx
    js 2f
    xor %ebx, %edx
2:  push %DX
    push %AX
    push %CX
    mov %eax, %edi
    rdtsc
    xor %eax, %eax
    cpuid
    add %ebx, %edi
    pop %CX
    pop %AX
    pop %DX
    add %edi, %edx
    mov %eax, %edi
    and $0x3fff, %edi
    cmp %eax, %edx
    btcl %edi, area
    sbb $0, %edx
    bt %edi, area + 1
    adc $0, %edx
    dec %ecx
    jnz 1b
    mov %edx, %eax
    done

// Interrupts go off and on: never one in between, and never one before the instruction behind STI is done.
    .macro shadowed insn:vararg // changes ebp, no flag
    mov guarded, %ebp
    mov %ebp, guarded + 4
    sti
9:  .pushsection shadows, "a"
    .long 9b
    .popsection
    \insn
    .endm

    .macro closed // a stretch without interrupts, as long as it takes for one to be waiting
    cli
    incl guarded
    push %DX
    mov %edx, area + 4094
    add area + 4093, %edx
    pop %DX
    .endm

    work windows
    fill 8192
    mov $60, %ecx
    xor %edx, %edx
1:  step_random
    closed
    shadowed nop
    closed
    shadowed mov %edx, area
    closed
    shadowed add area, %edx
    closed
    shadowed mov %edx, area + 4095
    closed
    shadowed push %DX
    pop %DX
    closed
    test $0x10000, %eax
    shadowed jz 2f
    add $3, %edx
2:  closed
    test $0x20000, %eax
    shadowed jnz work_windows_far
work_windows_back:
    closed
    cmp %edx, %eax
    shadowed jc 3f
3:  adc $1, %edx
    closed
    shadowed jmp 4f
4:  closed
    shadowed call 6f
    closed
    mov $5f, %BX
    shadowed jmp *%BX
5:  closed
    mov $area, %SI
    shadowed lodsb
    closed
    mov %ecx, %edi
    shadowed loop 7f
7:  mov %edi, %ecx
    closed
    mov %eax, %edi
    shadowed pushf
    popf
    closed
    shadowed mov %cr0, %BX
    closed
    shadowed cli
    sti
    nop
    closed
    shadowed rdtsc
    movzx %cl, %edx
    mov %edi, %eax
    closed
    shadowed hlt
    dec %ecx
    jnz 1b
    mov %edx, %eax
    done
6:  closed
    shadowed ret
    .section .text.far, "ax"
work_windows_far:
    inc %edx
    jmp work_windows_back
    .text

// The same in loops of little else, so that interrupts come just then. First with nothing that takes long.
    work doors
    mov $2000, %ecx
1:  add $0x3c6ef35f, %eax
    cli
    incl guarded
    shadowed lea 3(%eax, %ecx), %eax
    cli
    incl guarded
    test $0x20000, %eax
    shadowed jnz 2f
    add $7, %eax
2:  dec %ecx
    jnz 1b
    done

// Then with an instruction behind STI that is begun twice, for its operand lies in two pages.
    work gates
    mov $300, %ecx
1:  step_random
    cli
    incl guarded
    shadowed mov %eax, area + 4094
    add area + 4093, %eax
    dec %ecx
    jnz 1b
    done

// One interrupt is on its way; what is interrupted comes once, and then nothing that leaves translated code by itself: if the
// interrupt is lost, this waits for ever.
    .macro wait_random // up to some 200 us
    step_random
    mov %eax, %ecx
    shr $14, %ecx
8:  dec %ecx
    jns 8b
    .endm

    .macro wait_tick // that comes after the value in ebp
8:  cmp %ebp, ticks
    je 8b
    .endm

    work waits
    mov $3, %edi
1:  mov ticks, %ebp
    cli
    wait_random
    sti
    nop
    wait_tick
    mov ticks, %ebp
    pushf
    cli
    wait_random
    popf
    wait_tick
    mov $area + 4094, %SI
    .rept 4
    mov ticks, %ebp
    wait_random
    mov (%SI), %edx // in two pages: read by C in the middle of a block
    wait_tick
    mov ticks, %ebp
    wait_random
    mov %cr3, %DX
    mov %DX, %cr3
    mov (%SP), %edx // in no TLB
    wait_tick
    .endr
    dec %edi
    jnz 1b
    done

    .section .note.GNU-stack, "", @progbits
