; The guest side of the sensitive-instruction tests: a monitor in flat 32-bit protected mode that walks a list of cases
; in ROM. For each it rebuilds every table, enters the case's mode with the case's registers, lets its few instructions
; run until something is raised (each case ends in UD2 at the latest), and sends what the handler found to port E9h.
; What is right is decided outside (run.py).
;
; Memory is one-to-one in every mode: all segments but those of a few cases have base 0, and paging is the identity
; unless a case changes an entry. The layout (layout.inc) is written by run.py, which also builds the tables.
%include "layout.inc"

        org RUNTIME
        bits 32
cases   dd 0                    ; filled in by run.py: linear address of the first case,
count   dd 0                    ; how many there are,
tables  dd 0                    ; the templates of what lies at TABLES

entry:                          ; at RUNTIME + 12, from the boot code
        mov ax, DATA0
        mov ss, ax
        mov ds, ax
        mov es, ax
        mov esp, MON_STACK
        cld
        call send_identity
        mov eax, [cases]
        mov [current], eax
next_case:
        cmp dword [count], 0
        je finished
        dec dword [count]
        call prepare
        jmp enter

finished:
        xor eax, eax
        out 0xf4, al
        hlt

; ---- output

send:                           ; esi: first byte, ecx: how many
        mov dx, 0xe9
        rep outsb
        ret

send_identity:
        mov edi, RESULT
        xor eax, eax
        cpuid
        mov [edi], ebx
        mov [edi+4], edx
        mov [edi+8], ecx
        mov eax, 1
        cpuid
        mov [edi+12], eax
        mov [edi+16], ecx
        mov [edi+20], edx
        mov eax, 7
        xor ecx, ecx
        cpuid
        mov [edi+24], ebx
        mov [edi+28], ecx
        mov [edi+32], edx
        mov eax, 0x80000001
        cpuid
        mov [edi+36], ecx
        mov [edi+40], edx
        mov eax, 0x80000021
        cpuid
        mov [edi+44], eax
        mov esi, edi
        mov ecx, 48
        jmp send

; ---- preparing a case

prepare:
        mov esi, [tables]
        mov edi, TABLES
        mov ecx, TABLES_SIZE / 4
        rep movsd
        xor edi, edi            ; the real-mode vectors follow the tables
        mov ecx, 1024 / 4
        rep movsd
        xor eax, eax
        mov edi, SCRATCH        ; and the stacks
        mov ecx, (MON_STACK - 0x100 - SCRATCH) / 4
        rep stosd
        mov edi, RESULT
        mov ecx, 512 / 4
        rep stosd
        mov edi, FREE
        mov ecx, 0x3000 / 4
        rep stosd
        mov eax, 0x0b0f0b0f     ; UD2
        mov edi, SLOT
        mov ecx, SLOT_SIZE / 4
        rep stosd
        mov esi, [current]
        mov edi, PARAM
        mov ecx, P_SIZE / 4
        rep movsd
        cmp byte [PARAM+P_PAGING], 0
        je .no_paging
        call page_tables
.no_paging:
        mov ebx, [current]
        mov esi, [PARAM+P_CODE]
        add esi, ebx
        mov edi, SLOT
        mov ecx, [PARAM+P_CODE_LEN]
        rep movsb
        mov esi, [PARAM+P_POKES]
        add esi, ebx
        mov edx, [PARAM+P_POKE_COUNT]
.poke:
        dec edx
        js .poked
        lodsd
        mov edi, eax
        lodsd
        mov ecx, eax
        rep movsb
        jmp .poke
.poked:
        lgdt [gdt_pointer]
        lidt [idt32_pointer]
        mov ax, MON_TASK        ; a 16-bit TSS left by a case would keep long mode out
        ltr ax
        xor eax, eax
        mov cr2, eax
        mov esi, [PARAM+P_SETUP]
        add esi, ebx
        mov edi, SETUP
        mov ecx, [PARAM+P_SETUP_LEN]
        jecxz .no_setup
        rep movsb
        mov byte [edi], 0xc3    ; RET
        mov eax, SETUP
        call eax
.no_setup:
        ret

page_tables:
        mov edi, PAGES          ; all of them start empty
        xor eax, eax
        mov ecx, 10 * 1024
        rep stosd
        mov dword [PD32], PT32 + 7
        mov edi, PD32 + 4
        mov eax, 0x400087
        mov ecx, 1023
.pd32:  stosd
        add eax, 0x400000
        loop .pd32
        mov edi, PT32
        mov eax, 7
        mov ecx, 1024
.pt32:  stosd
        add eax, 0x1000
        loop .pt32
        mov edi, PDPT_PAE
        mov eax, PDS + 1
        mov ecx, 4
.pdpt:  mov [edi], eax
        lea edx, [eax + 6]
        mov [edi + PDPT64 - PDPT_PAE], edx
        add edi, 8
        add eax, 0x1000
        loop .pdpt
        mov edi, PDS
        mov eax, 0x87
        mov ecx, 2048
.pds:   mov [edi], eax
        add edi, 8
        add eax, 0x200000
        loop .pds
        mov dword [PDS], PT64 + 7
        mov edi, PT64
        mov eax, 7
        mov ecx, 512
.pt64:  mov [edi], eax
        add edi, 8
        add eax, 0x1000
        loop .pt64
        mov dword [PML4], PDPT64 + 7
        mov dword [PML4 + 511 * 8], PDPT64 + 7 ; the same again at FFFFFF8000000000h
        ret

; ---- entering a mode

enter:
        cmp byte [PARAM+P_KIND], KIND_REAL
        je enter_real
        mov eax, [PARAM+P_CR4]
        mov cr4, eax
        mov eax, [PARAM+P_EFER]
        test eax, eax
        jz .no_efer
        mov ecx, 0xc0000080
        xor edx, edx
        wrmsr
.no_efer:
        mov eax, [PARAM+P_CR3]
        mov cr3, eax
        mov eax, [PARAM+P_CR0]
        mov cr0, eax
        cmp byte [PARAM+P_KIND], KIND_LONG
        je enter_long
        ltr [PARAM+P_TR]
        lldt [PARAM+P_LDT]
        test dword [PARAM+P_EFLAGS], 0x20000
        jz .not_v86
        movzx eax, word [PARAM+P_GS]
        push eax
        movzx eax, word [PARAM+P_FS]
        push eax
        movzx eax, word [PARAM+P_DS]
        push eax
        movzx eax, word [PARAM+P_ES]
        push eax
        jmp .outer
.not_v86:
        mov es, [PARAM+P_ES]
        mov fs, [PARAM+P_FS]
        mov gs, [PARAM+P_GS]
        test byte [PARAM+P_CS], 3
        jz .inner
.outer:
        movzx eax, word [PARAM+P_SS]
        push eax
        push dword [PARAM+P_GPR+4*8]
        jmp .frame
.inner:
        mov ss, [PARAM+P_SS]
        mov esp, [PARAM+P_GPR+4*8]
.frame:
        push dword [PARAM+P_EFLAGS]
        movzx eax, word [PARAM+P_CS]
        push eax
        push dword SLOT
        test dword [PARAM+P_EFLAGS], 0x20000
        jnz .gprs
        mov ds, [PARAM+P_DS]
.gprs:
        mov eax, [cs:PARAM+P_GPR+0*8]
        mov ecx, [cs:PARAM+P_GPR+1*8]
        mov edx, [cs:PARAM+P_GPR+2*8]
        mov ebx, [cs:PARAM+P_GPR+3*8]
        mov ebp, [cs:PARAM+P_GPR+5*8]
        mov esi, [cs:PARAM+P_GPR+6*8]
        mov edi, [cs:PARAM+P_GPR+7*8]
        iretd

enter_real:
        lidt [ivt_pointer]
        mov eax, [PARAM+P_CR4]
        mov cr4, eax
        jmp CODE16_0:.code16
        bits 16
.code16:
        mov ax, DATA16_0
        mov ds, ax
        mov es, ax
        mov fs, ax
        mov gs, ax
        mov ss, ax
        mov eax, [PARAM+P_CR0]
        mov cr0, eax
        jmp 0:.real
.real:
        xor ax, ax
        mov ds, ax
        mov es, [PARAM+P_ES]
        mov fs, [PARAM+P_FS]
        mov gs, [PARAM+P_GS]
        mov ss, [PARAM+P_SS]
        mov esp, [PARAM+P_GPR+4*8]
        push word [PARAM+P_EFLAGS]
        push word [PARAM+P_CS]
        push word SLOT
        mov eax, [PARAM+P_GPR+0*8]
        mov ecx, [PARAM+P_GPR+1*8]
        mov edx, [PARAM+P_GPR+2*8]
        mov ebx, [PARAM+P_GPR+3*8]
        mov ebp, [PARAM+P_GPR+5*8]
        mov esi, [PARAM+P_GPR+6*8]
        mov edi, [PARAM+P_GPR+7*8]
        mov ds, [PARAM+P_DS]
        iret

        bits 32
enter_long:
        jmp CODE64_0:.code64
        bits 64
        default abs
.code64:
        lidt [idt64_pointer]
        ltr [PARAM+P_TR]
        lldt [PARAM+P_LDT]
        mov es, [PARAM+P_ES]
        mov fs, [PARAM+P_FS]
        mov gs, [PARAM+P_GS]
        mov ds, [PARAM+P_DS]
        movzx eax, word [PARAM+P_SS]
        push rax
        push qword [PARAM+P_GPR+4*8]
        mov eax, [PARAM+P_EFLAGS]
        push rax
        movzx eax, word [PARAM+P_CS]
        push rax
        push qword SLOT
        mov rax, [PARAM+P_GPR+0*8]
        mov rcx, [PARAM+P_GPR+1*8]
        mov rdx, [PARAM+P_GPR+2*8]
        mov rbx, [PARAM+P_GPR+3*8]
        mov rbp, [PARAM+P_GPR+5*8]
        mov rsi, [PARAM+P_GPR+6*8]
        mov rdi, [PARAM+P_GPR+7*8]
        mov r8, [PARAM+P_GPR+8*8]
        mov r9, [PARAM+P_GPR+9*8]
        mov r10, [PARAM+P_GPR+10*8]
        mov r11, [PARAM+P_GPR+11*8]
        mov r12, [PARAM+P_GPR+12*8]
        mov r13, [PARAM+P_GPR+13*8]
        mov r14, [PARAM+P_GPR+14*8]
        mov r15, [PARAM+P_GPR+15*8]
        iretq

; ---- handlers: each stub pushes its vector

; Steps being recorded: #DB appends RIP and DR6 to the list and lets the program go on.
        bits 32
common32:
        pushfd
        push eax
        push ds
        mov eax, DATA0
        mov ds, ax
        mov eax, ss             ; a 16-bit stack uses SP, whatever is above it in ESP
        lar eax, eax
        bt eax, 22
        mov eax, esp
        jc .big
        movzx eax, ax
.big:   cmp dword [eax + 12], 1
        jne .stop
        cmp byte [PARAM+P_TRACE], 0
        je .stop
        cmp dword [R_TRACE_COUNT], TRACE_MAX
        jae .stop
        push edx
        mov edx, [eax + 16]
        mov eax, [R_TRACE_COUNT]
        inc dword [R_TRACE_COUNT]
        mov [R_TRACE + eax * 8], edx
        mov edx, dr6
        mov [R_TRACE + eax * 8 + 4], edx
        mov edx, 0xffff0ff0
        mov dr6, edx
        pop edx
        pop ds
        pop eax
        add esp, 8
        iretd
.stop:
        add eax, 16
        mov [R_RSP], eax
        mov byte [R_KIND], FRAME32
        mov [R_GPR+1*8], ecx
        mov [R_GPR+2*8], edx
        mov [R_GPR+3*8], ebx
        mov [R_GPR+5*8], ebp
        mov [R_GPR+6*8], esi
        mov [R_GPR+7*8], edi
        pop ecx
        mov [R_DS], cx
        pop dword [R_GPR+0*8]
        pop dword [R_FLAGS]
        pop eax
        mov [R_VECTOR], al
        mov [R_SS], ss
store_rest:                     ; in 32-bit protected mode, whichever task; DS is flat
        mov [R_CS], cs
        mov [R_ES], es
        mov [R_FS], fs
        mov [R_GS], gs
        str [R_TR]
        sldt [R_LDT]
        mov ax, DATA0
        mov ss, ax
        mov esp, MON_STACK
store_control:
        mov eax, cr0
        mov [R_CR0], eax
        mov eax, cr2
        mov [R_CR2], eax
        mov eax, cr3
        mov [R_CR3], eax
        mov eax, cr4
        mov [R_CR4], eax
        mov eax, dr6
        mov [R_DR6], eax
        mov eax, dr7
        mov [R_DR7], eax
        mov ecx, 0xc0000080
        rdmsr
        mov [R_EFER], eax
collect:                        ; the result is complete but for the frame and the dumps; paging may be on
        mov ax, DATA0
        mov es, ax
        mov ds, ax
        mov ss, ax
        mov esp, MON_STACK
        push dword 2            ; real mode leaves NT as it was
        popfd
        mov eax, 0x11
        mov cr0, eax
        lgdt [gdt_pointer]
        lidt [idt32_pointer]
        xor eax, eax
        lldt ax
        mov fs, ax
        mov gs, ax
        mov cr4, eax
        mov cr3, eax
        mov dr7, eax
        mov eax, 0xffff0ff0
        mov dr6, eax
        cmp dword [R_EFER], 0
        je .no_efer
        mov ecx, 0xc0000080
        xor eax, eax
        xor edx, edx
        wrmsr
.no_efer:
        cld
        cmp byte [R_KIND], FRAME_TASK
        je .framed
        mov esi, [R_RSP]
        mov edi, R_FRAME
        mov ecx, 128 / 4
        rep movsd
.framed:
        mov esi, RESULT
        mov ecx, 512
        call send
        mov ebx, [current]
        mov ebp, [PARAM+P_DUMPS]
        add ebp, ebx
        mov edi, [PARAM+P_DUMP_COUNT]
.dump:
        dec edi
        js .dumped
        mov esi, [ebp]
        mov ecx, [ebp + 4]
        add ebp, 8
        call send
        jmp .dump
.dumped:
        add ebx, [PARAM+P_TOTAL]
        mov [current], ebx
        jmp next_case

double_fault_task:              ; the interrupted state is in the old TSS
        mov byte [R_KIND], FRAME_TASK
        mov byte [R_VECTOR], 8
        mov ax, DATA0
        mov ds, ax
        mov es, ax
        pop dword [R_RSP]       ; the error code
        cld
        mov esi, TSS32
        mov edi, R_FRAME
        mov ecx, 104 / 4
        rep movsd
        jmp store_rest

common16g:                      ; through a 16-bit gate: the frame has words; the stub pushed a dword
        push eax
        push ds
        mov ax, DATA0
        mov ds, ax
        mov byte [R_KIND], FRAME16
        pushfd
        pop dword [R_FLAGS]
        mov [R_GPR+1*8], ecx
        mov [R_GPR+2*8], edx
        mov [R_GPR+3*8], ebx
        mov [R_GPR+5*8], ebp
        mov [R_GPR+6*8], esi
        mov [R_GPR+7*8], edi
        pop ecx
        mov [R_DS], cx
        pop dword [R_GPR+0*8]
        pop eax
        mov [R_VECTOR], al
        movzx eax, sp
        mov [R_SS], ss
        mov [R_RSP], eax
        jmp store_rest

        bits 16
common16:
        pushfd
        push eax
        push ds
        xor ax, ax
        mov ds, ax
        mov [R_GPR+5*8], ebp
        mov bp, sp
        cmp word [bp + 10], 1
        jne .stop
        cmp byte [PARAM+P_TRACE], 0
        je .stop
        mov ax, [R_TRACE_COUNT]
        cmp ax, TRACE_MAX
        jae .stop
        push ebx
        mov bx, ax
        shl bx, 3
        inc word [R_TRACE_COUNT]
        mov ax, [bp + 12]
        mov [R_TRACE + bx], ax
        mov eax, dr6
        mov [R_TRACE + bx + 4], eax
        mov eax, 0xffff0ff0
        mov dr6, eax
        pop ebx
        mov ebp, [R_GPR+5*8]
        pop ds
        pop eax
        add sp, 6
        iret
.stop:
        mov byte [R_KIND], FRAME_REAL
        mov [R_GPR+1*8], ecx
        mov [R_GPR+2*8], edx
        mov [R_GPR+3*8], ebx
        mov [R_GPR+6*8], esi
        mov [R_GPR+7*8], edi
        pop cx
        mov [R_DS], cx
        pop dword [R_GPR+0*8]
        pop dword [R_FLAGS]
        pop ax
        mov [R_VECTOR], al
        movzx eax, sp
        mov cx, ss
        movzx ecx, cx
        mov [R_SS], cx
        shl ecx, 4
        add eax, ecx
        mov [R_RSP], eax
        mov [R_CS], cs
        mov [R_ES], es
        mov [R_FS], fs
        mov [R_GS], gs
        mov eax, cr0
        mov [R_CR0], eax
        or al, 1
        mov ebx, eax
        mov eax, cr4
        mov [R_CR4], eax
        mov eax, cr2
        mov [R_CR2], eax
        mov eax, cr3
        mov [R_CR3], eax
        mov eax, dr6
        mov [R_DR6], eax
        mov eax, dr7
        mov [R_DR7], eax
        o32 lgdt [gdt_pointer]
        mov cr0, ebx
        jmp dword CODE0:collect

        bits 64
common64:
        pushfq
        push rax
        cmp dword [rsp + 16], 1
        jne .stop
        cmp byte [PARAM+P_TRACE], 0
        je .stop
        cmp dword [R_TRACE_COUNT], TRACE_MAX
        jae .stop
        push rdx
        mov eax, [R_TRACE_COUNT]
        inc dword [R_TRACE_COUNT]
        mov edx, [rsp + 32]
        mov [R_TRACE + rax * 8], edx
        mov rdx, dr6
        mov [R_TRACE + rax * 8 + 4], edx
        mov edx, 0xffff0ff0
        mov dr6, rdx
        pop rdx
        pop rax
        add rsp, 16
        iretq
.stop:
        mov byte [R_KIND], FRAME64
        mov [R_GPR+1*8], rcx
        mov [R_GPR+2*8], rdx
        mov [R_GPR+3*8], rbx
        mov [R_GPR+5*8], rbp
        mov [R_GPR+6*8], rsi
        mov [R_GPR+7*8], rdi
        mov [R_GPR+8*8], r8
        mov [R_GPR+9*8], r9
        mov [R_GPR+10*8], r10
        mov [R_GPR+11*8], r11
        mov [R_GPR+12*8], r12
        mov [R_GPR+13*8], r13
        mov [R_GPR+14*8], r14
        mov [R_GPR+15*8], r15
        pop qword [R_GPR+0*8]
        pop qword [R_FLAGS]
        pop rax
        mov [R_VECTOR], al
        mov [R_RSP], rsp
        mov [R_CS], cs
        mov [R_SS], ss
        mov [R_DS], ds
        mov [R_ES], es
        mov [R_FS], fs
        mov [R_GS], gs
        str [R_TR]
        sldt [R_LDT]
        mov rax, cr0
        mov [R_CR0], rax
        mov rax, cr2
        mov [R_CR2], rax
        mov rax, cr3
        mov [R_CR3], rax
        mov rax, cr4
        mov [R_CR4], rax
        mov rax, dr6
        mov [R_DR6], rax
        mov rax, dr7
        mov [R_DR7], rax
        mov ecx, 0xc0000080
        rdmsr
        mov [R_EFER], eax
        mov edi, R_BASES
        mov ecx, 0xc0000100
.base:  rdmsr
        mov [rdi], eax
        mov [rdi + 4], edx
        add edi, 8
        inc ecx
        cmp ecx, 0xc0000102
        jbe .base
        xor eax, eax            ; bases as the others left them
        xor edx, edx
        mov ecx, 0xc0000102
        wrmsr
        jmp far dword [to_collect]

        bits 32
to_collect:
        dd collect
        dw CODE0

        align 8
gdt_pointer:
        dw GDT_LIMIT
        dd GDT
        align 8
idt32_pointer:
        dw IDT32_LIMIT
        dd IDT32
        align 8
idt64_pointer:
        dw IDT64_LIMIT
        dq IDT64
        align 8
ivt_pointer:
        dw 0x3ff
        dd 0
current dd 0

        times STUB32 - RUNTIME - ($ - $$) db 0xcc
%assign i 0
%rep 128
        push byte i
        jmp near common32
        align 8
%assign i i + 1
%endrep
        times STUB64 - RUNTIME - ($ - $$) db 0xcc
        bits 64
%assign i 0
%rep 128
        push i
        jmp near common64
        align 8
%assign i i + 1
%endrep
        times STUB16 - RUNTIME - ($ - $$) db 0xcc
        bits 16
%assign i 0
%rep 128
        push byte i
        jmp near common16
        align 8
%assign i i + 1
%endrep
        times STUB16G - RUNTIME - ($ - $$) db 0xcc
        bits 32
%assign i 0
%rep 128
        push byte i
        jmp near common16g
        align 8
%assign i i + 1
%endrep
        times DF_ENTRY - RUNTIME - ($ - $$) db 0xcc
        jmp double_fault_task
        times RUNTIME_SIZE - ($ - $$) db 0xcc
