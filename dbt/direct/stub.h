// The pages of our own in a worker, as the stub (stub.S) and its owner (worker.c) know them. Numbers only:
// this is included by the assembler too.
#pragma once

#define PAGES_BASE     0x10000 // WORKER_BASE
#define TEXT_SIZE      0x1000
#define COMMAND_PAGE   0x11000 // written by the owner, read-only here
#define COMMAND_SIZE   0x2000
#define STATE_PAGE     0x13000
#define NEW_XSAVE      0x14000
#define NEW_XSAVE_SIZE 0x4000
// What is above is one piece of the memory shared with the owner, from COMMAND_PAGE on; this is the other.
// Nothing is mapped before and behind it.
#define ALT_STACK      0x20000
#define ALT_STACK_SIZE 0xe000

#define KICK_SIGNAL 10 // WORKER_KICK_SIGNAL

// The command page's header
#define CMD_SEQUENCE 0x00 // one more: there are commands
#define CMD_COUNT    0x04
#define CMD_THEN_RUN 0x08 // the runner goes on when they are done and none has failed
#define CMD_KICK     0x0c // the runner stops before it executes guest code
#define CMD_RAM_FD   0x10
#define CMD_SELECTOR 0x14 // of the kernel's system call dispatch: 0 lets all through, 1 what the stub does
#define CMD_FIRST    0x20
// A command
#define CMD_CALL   0x00 // number of the system call
#define CMD_PROT   0x04
#define CMD_FLAGS  0x08
#define CMD_LA     0x10
#define CMD_LENGTH 0x18
#define CMD_OFFSET 0x20
#define CMD_BYTES  0x28

// The state page. Two words to sleep on, so that nobody but the owner ever sleeps on `turn`: who clears it by
// dying wakes the owner for sure.
#define ST_TURN    0x00 // the owner sleeps here
#define ST_GO      0x04 // the runner sleeps here: 1 lets it go on
#define ST_WHY     0x08 // WHY_*
#define ST_ERROR   0x0c // of a command, or of the set-up: errno
#define ST_FRAME   0x10 // struct ucontext of the signal
#define ST_FS_BASE 0x18
#define ST_GS_BASE 0x20
#define ST_DS      0x28
#define ST_ES      0x2c
#define ST_FS      0x30
#define ST_GS      0x34
#define ST_MAPPER  0x38 // thread id, for the owner at the start
#define ST_XSTATE  0x40 // image to resume with
#define ST_XMASK   0x48
#define ST_REGS    0x80 // struct worker_regs to resume with, up to `ss`

#define TURN_DIED    0 // the kernel's doing
#define TURN_RUN     1
#define TURN_STOPPED 2
#define TURN_ASLEEP  3 // the same as TURN_RUN, and the owner sleeps

#define WHY_SIGNAL      1 // ST_FRAME says all
#define WHY_KICKED      2 // before anything was changed: state to resume with and image are as they were
#define WHY_KICKED_LATE 3 // the state to resume with is as it was; the image is that of ST_FRAME
#define WHY_NO_ROOM     4
#define WHY_READY       5 // the stub has been reached

// struct rt_sigframe of Linux for x86-64, relative to its struct ucontext; the return address is at -8
#define UC_GREGS 40
#define UC_RDX   (UC_GREGS + 8 * 12)
#define UC_RSP   (UC_GREGS + 8 * 15)
#define UC_RIP   (UC_GREGS + 8 * 16)
#define UC_INFO  304 // siginfo: si_signo first
#define UC_END   (UC_INFO + 128)
