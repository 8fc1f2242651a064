// Offsets in the native side's frame at FRAME_BASE, shared by native.c and native_entry.S.
#pragma once
#define FRAME_HOST_RSP  0
#define FRAME_EXIT      8  // address of native_exit, for the stubs and for 64-bit code
#define FRAME_RIP       16 // 64-bit entry
#define FRAME_FAR       24 // m16:32 entry of compatibility-mode code
#define FRAME_FLAGS_IN  32
#define FRAME_FLAGS_OUT 40
#define FRAME_DATA_SEL  48 // selector for DS, ES and SS in compatibility mode
#define FRAME_XMASK     56
#define FRAME_GPR_IN    64
#define FRAME_GPR_OUT   192
#define FRAME_FS_SEL    320
#define FRAME_GS_SEL    328
#define FRAME_FS_BASE   336 // of 64-bit code
#define FRAME_GS_BASE   344
#define FRAME_HOST_FS   352
#define FRAME_SEGMENTS  360 // not 0: FS and GS are switched
#define FRAME_STUB      512 // code: jmp [FRAME_EXIT]
#define FRAME_X_IN      4096
#define FRAME_X_OUT     8192
#define FRAME_FAULT     12288 // struct native_fault
#define FRAME_SIZE      20480
