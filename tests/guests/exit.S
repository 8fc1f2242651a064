// A program of a few bytes: writes 42 to the debug-exit port 0xF4. (Debian's cloud kernel has no /dev/port.)
    .globl _start
_start:
#ifdef __x86_64__
    mov $173, %eax      // ioperm(0xf4, 1, 1)
    mov $0xf4, %edi
    mov $1, %esi
    mov $1, %edx
    syscall
#else
    mov $101, %eax
    mov $0xf4, %ebx
    mov $1, %ecx
    mov $1, %edx
    int $0x80
#endif
    mov $42, %al
    out %al, $0xf4
1:  jmp 1b
    .section .note.GNU-stack, "", @progbits
