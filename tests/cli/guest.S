// A multiboot kernel of a few instructions for tests of the command line. It does what the first word of its command line
// begins with: l loops, h halts, x exits by port 0xF4 with 42, t triple-faults, c does so inside two calls, i exits after 10000
// indirect calls, r resets through
// CF9h, e echoes COM1, and prints "up" on COM1 first.
    .set flags, 0x3
    .section .text.head, "ax"
    .align 4
    .long 0x1badb002, flags, -(0x1badb002 + flags)
    .globl _start
_start:
    mov $message, %esi
    mov $0x3f8, %dx
    mov $message_end - message, %ecx
    rep outsb
    mov 16(%ebx), %esi          // multiboot information: cmdline
    // The first word may be the kernel's path: the command is behind the last blank.
    mov %esi, %edi
1:  lodsb
    cmp $' ', %al
    jne 2f
    mov %esi, %edi
2:  test %al, %al
    jnz 1b
    mov (%edi), %al
    cmp $'x', %al
    je exit
    cmp $'t', %al
    je triple
    cmp $'c', %al
    je deep
    cmp $'i', %al
    je calls
    cmp $'r', %al
    je reset
    cmp $'e', %al
    je echo
    cmp $'h', %al
    je halt
loop:
    jmp loop
halt:
    cli
    hlt
    jmp halt
exit:
    mov $42, %al
    out %al, $0xf4
    jmp loop
calls:
    mov $0x300000, %esp
    mov $10000, %ecx
    mov $function, %eax
1:  call *%eax
    dec %ecx
    jnz 1b
    jmp exit
function:
    ret
deep:
    mov $0x300000, %esp         // a page without code
    call outer
outer:
    call inner
inner:
triple:
    lidt none
    ud2
reset:
    mov $0xcf9, %dx
    mov $6, %al
    out %al, %dx
    jmp loop
echo:
    mov $0x3fd, %dx
1:  in %dx, %al
    test $1, %al
    jz 1b
    mov $0x3f8, %dx
    in %dx, %al
    out %al, %dx
    jmp echo
message:
    .ascii "up\r\n"
message_end:
    .align 4
none:
    .long 0, 0
    .section .note.GNU-stack, "", @progbits
