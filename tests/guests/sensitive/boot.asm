; The last bytes of the image: from the reset vector to the runtime, which is copied to memory first.
%include "layout.inc"
        org 0xff00
        bits 16
start:
        cli
        o32 lgdt [cs:pointer]
        mov eax, 0x11
        mov cr0, eax
        jmp dword 8:0xffff0000 + flat
        bits 32
flat:
        mov eax, 16
        mov ds, ax
        mov es, ax
        mov ss, ax
        cld
        mov esi, 0xffff0000
        mov edi, RUNTIME
        mov ecx, RUNTIME_SIZE / 4
        rep movsd
        mov eax, RUNTIME + 12
        jmp eax
        align 8
gdt:    dq 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
pointer:
        dw $ - gdt - 1
        dd 0xffff0000 + gdt
        times 0xf0 - ($ - $$) db 0
        bits 16
        jmp start
        times 0x100 - ($ - $$) db 0
