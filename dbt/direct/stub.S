// What a worker executes outside guest code. It is copied to WORKER_BASE, so it refers to its data by number and to
// itself by displacement only, and it uses no stack: signals put frames onto the alternate stack, and what a frame
// holds is all there is to know. There is no sigreturn: what the kernel would restore, the owner puts into the state
// page, where XRSTOR, POP and IRETQ take it from.
//
// A kick may come at any instruction. Where it is found at tells what to do, by the ranges below; in each of them
// this is known:
//
//   H       RDX is the context of the frame that is being handled, nothing else counts, RSP is not above that frame
//   kicked  RSP is that frame's level; doing it again is harmless
//   S       the same, but `turn` is not TURN_STOPPED yet
//   W       the event has been reported; RSP is still its frame's level, for the owner reads it there; no register counts
//   A       `go` was seen; the frame and the image are still whole
//   B       the image is in the registers and RSP is in the state page
//
// A kick in H is forgotten: an event is about to be reported; the handler starts again with its own frame. One in W
// is forgotten too: when the owner lets the runner go on, `kick` in the command page is looked at. One in A or B is
// an event, with the state that was to be resumed. Frames do not pile up: H and W return to their frame's level, and
// with B the alternate stack is used from its top again. (Kicks that come faster than the kernel can put up a frame
// would; the owner sends one for each turn.)
//
// Guest code may jump anywhere here, with any registers. What it gains is an event of nonsense. It could hang us only
// in a loop that no kick ends, and there is none: H goes from frame to frame at ascending addresses; the wait for
// `go` is left for FUTEX_WAKE by a kick, so that the owner looks; and the mapper's system calls are signals to it.
#include "dbt/direct/stub.h"

#define FUTEX_WAIT 0
#define FUTEX_WAKE 1
#define SYS_FUTEX  202
#define AT(x)      (x - stub_begin)
#define STATE(x)   (STATE_PAGE + x)
#define COMMAND(x) (COMMAND_PAGE + x)

    .section .rodata
    .balign 64
    .globl stub_begin, stub_end, stub_runner, stub_mapper, stub_called
stub_begin:

// ---- H: every signal, with the context in RDX
handler:
    lea -8(%rdx), %rsp
    cmpl $KICK_SIGNAL, UC_INFO(%rdx)
    jne store
    mov UC_RIP(%rdx), %rax
    sub $PAGES_BASE, %rax
    cmp $AT(stub_runner), %rax
    jae store // in guest code
    cmp $AT(live), %eax
    jae in_live
    cmp $AT(resume), %eax
    jae to_kicked
    cmp $AT(to_wake), %eax
    ja to_wake
    je in_handler
    cmp $AT(stopped), %eax
    jae to_wake
    cmp $AT(stop), %eax
    jae to_stop
    cmp $AT(to_stop), %eax
    je in_handler
    cmp $AT(to_kicked), %eax
    ja to_kicked
in_handler:
    mov UC_RDX(%rdx), %rax
    cmp %rdx, %rax
    jbe store // no frame lies below one that came after it
    mov %rax, %rdx
    jmp handler

store:
    mov %rdx, STATE(ST_FRAME)
    rdfsbase %rax
    mov %rax, STATE(ST_FS_BASE)
    rdgsbase %rax
    mov %rax, STATE(ST_GS_BASE)
    mov %ds, %eax
    mov %eax, STATE(ST_DS)
    mov %es, %eax
    mov %eax, STATE(ST_ES)
    mov %fs, %eax
    mov %eax, STATE(ST_FS)
    mov %gs, %eax
    mov %eax, STATE(ST_GS)
    movl $WHY_SIGNAL, STATE(ST_WHY)
    jmp stop

in_live:
    mov %rdx, STATE(ST_FRAME)
    movl $WHY_KICKED_LATE, STATE(ST_WHY)
    jmp stop

to_kicked:
    mov UC_RSP(%rdx), %rsp
// ---- kicked
kicked:
    movl $WHY_KICKED, STATE(ST_WHY)
    jmp stop

to_stop: // H
    mov UC_RSP(%rdx), %rsp
// ---- S
stop:
    movl $0, STATE(ST_GO)
    mov $TURN_STOPPED, %eax
    xchg %eax, STATE(ST_TURN)
// ---- W
stopped:
    cmp $TURN_RUN, %eax
    jne wake
    cmpl $0, COMMAND(CMD_KICK)
    je wait // it isn't asleep, or guest code says so; but a kick always wakes it
wake:
    mov $STATE(ST_TURN), %edi
    mov $FUTEX_WAKE, %esi
    mov $1, %edx
    jmp call
wait:
    cmpl $0, STATE(ST_GO)
    jne resume
    mov $STATE(ST_GO), %edi
    xor %esi, %esi // FUTEX_WAIT
    xor %edx, %edx
call:
    xor %r10d, %r10d
    mov $SYS_FUTEX, %eax
    syscall
stub_called: // the seccomp filter knows this address
    jmp wait

to_wake: // H
    mov UC_RSP(%rdx), %rsp
    jmp wake // W

// ---- A
resume:
    cmpl $0, COMMAND(CMD_KICK)
    jne kicked
    push $2 // NT would make IRETQ fault; guest code can set it
    popf
    mov STATE(ST_XSTATE), %rcx
    mov STATE(ST_XMASK), %eax
    mov STATE(ST_XMASK + 4), %edx
    xrstor64 (%rcx)
    mov $STATE(ST_REGS), %esp
// ---- B
live:
    pop %rax
    wrfsbase %rax
    pop %rax
    wrgsbase %rax
    pop %rax
    pop %rcx
    pop %rdx
    pop %rbx
    lea 8(%rsp), %rsp
    pop %rbp
    pop %rsi
    pop %rdi
    pop %r8
    pop %r9
    pop %r10
    pop %r11
    pop %r12
    pop %r13
    pop %r14
    pop %r15
    iretq

// ---- where the runner comes in; nobody kicks yet
stub_runner:
    mov $(ALT_STACK + ALT_STACK_SIZE), %esp
    movl $WHY_READY, STATE(ST_WHY)
    jmp stop

// ---- the mapper: EBX sequence number of the last commands, R12 how many are left, R13 the next, EBP first error
stub_mapper:
    xor %ebx, %ebx
next_commands:
    mov COMMAND(CMD_SEQUENCE), %edx
    cmp %ebx, %edx
    jne commands
    mov $COMMAND(CMD_SEQUENCE), %edi
    xor %esi, %esi // FUTEX_WAIT
    xor %r10d, %r10d
    mov $SYS_FUTEX, %eax
    syscall
    jmp next_commands
commands:
    mov %edx, %ebx
    mov COMMAND(CMD_COUNT), %r12d
    mov $COMMAND(CMD_FIRST), %r13d
    xor %ebp, %ebp
next_command:
    sub $1, %r12d
    jc commands_done
    mov CMD_LA(%r13), %rdi
    mov CMD_LENGTH(%r13), %rsi
    mov CMD_PROT(%r13), %edx
    mov CMD_FLAGS(%r13), %r10d
    mov COMMAND(CMD_RAM_FD), %r8d
    mov CMD_OFFSET(%r13), %r9
    mov CMD_CALL(%r13), %eax
    add $CMD_BYTES, %r13
    syscall
    test %rax, %rax
    jns next_command
    test %ebp, %ebp
    jnz next_command // the first error counts, and an unmapping behind it must be done all the same
    mov %eax, %ebp
    jmp next_command
commands_done:
    neg %ebp
    mov %ebp, STATE(ST_ERROR)
    jnz no_room
    cmpl $0, COMMAND(CMD_THEN_RUN)
    je hand_back
    movl $1, STATE(ST_GO)
    mov $STATE(ST_GO), %edi
    jmp wake_one
no_room:
    movl $WHY_NO_ROOM, STATE(ST_WHY)
hand_back:
    movl $TURN_STOPPED, STATE(ST_TURN)
    mov $STATE(ST_TURN), %edi
wake_one:
    mov $FUTEX_WAKE, %esi
    mov $1, %edx
    mov $SYS_FUTEX, %eax
    syscall
    jmp next_commands
stub_end:
    .size stub_begin, . - stub_begin

    .section .note.GNU-stack, "", @progbits
