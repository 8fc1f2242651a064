"""SGDT SIDT SLDT STR SMSW LMSW LGDT LIDT LLDT LTR (SDM 2A, 2B; UMIP: 3A 2.5)."""
from machine import *


RESTORE = '\n lgdt [M + 32]'
GDT_IMAGE = {'M + 32': 'dw GDT_LIMIT\n dq GDT'}


def gdt_image(mode):
    return 'dw GDT_LIMIT\n dq GDT\n db 0' if mode.code64 else 'dw GDT_LIMIT\n dd GDT\n db 0'


def stores(t):
    t.case('SGDT stores limit and base', ALL, 'sgdt [M]', mem=lambda m: {'M': gdt_image(m)})
    t.case('SIDT stores limit and base', ALL, 'sidt [M]', mem=lambda m: {
        'M': ('dw 0x3ff\n dd 0' if m.kind == 0 else f'dw IDT64_LIMIT\n {"dq" if m.code64 else "dd"} IDT64' if m.long
              else 'dw IDT32_LIMIT\n dd IDT32') + '\n db 0'})
    t.case('SGDT with the other operand size stores the same', 'real v86 p16 p32 c32u l', 'o16 sgdt [M]',
           mem=lambda m: {'M': gdt_image(m)})
    for insn in ('sgdt [M]', 'sidt [M]', 'smsw ax', 'smsw [M]'):
        t.case(f'UMIP keeps {insn} from applications', 'v86 v86i0 ' + OUTERP, insn, cr4=0x800, fault=GP,
               mem={'M': 'dd 0, 0'})
        t.case(f'UMIP leaves {insn} to ring 0', RING0P, insn, cr4=0x800, out={'ax': None})
    for insn in ('sldt ax', 'str ax', 'sldt [M]', 'str [M]'):
        t.case(f'UMIP keeps {insn} from applications', OUTERP, insn, cr4=0x800, fault=GP)
        t.case(f'{insn} does not exist', UNPROTECTED, insn, fault=UD)
        t.case(f'{insn} does not exist, UMIP or not', 'v86', insn, cr4=0x800, fault=UD,
               qemu='it looks at UMIP first')
    t.case('SLDT stores a word in memory', PROTECTED, 'sldt [M]',
           poke={'M': 'dd 0xffffffff'}, mem=lambda m: {'M': f'dw {m.ldt}, 0xffff'})
    t.case('STR stores a word in memory', PROTECTED, 'str [M]', poke={'M': 'dd 0xffffffff'},
           mem=lambda m: {'M': f'dw {m.tr}, 0xffff'})
    t.case('SLDT r16 leaves the rest of the register', PROTECTED, 'o16 sldt ax' , regs={'ax': 0xaaaaaaaa},
           out=lambda m: {'ax': 0xaaaa0000 | m.ldt})
    t.case('SLDT r32 clears the upper half', PROTECTED, 'sldt eax', regs={'ax': 0xaaaaaaaa},
           out=lambda m: {'ax': m.ldt})
    t.case('STR r32 clears the upper half', PROTECTED, 'str eax', regs={'ax': 0xaaaaaaaa}, out=lambda m: {'ax': m.tr})
    t.case('STR r64', 'l lu', 'str rax', out=lambda m: {'ax': m.tr})
    t.case('SLDT after a null LLDT', RING0P, 'xor bx, bx\n lldt bx\n sldt eax',
           out={'ax': 0, 'bx': lambda v: not v & 0xffff},
           oflags=0x46)
    t.case('SMSW stores a word in memory', ALL, 'smsw [M]', poke={'M': 'dd 0xffffffff'},
           mem=lambda m: {'M': f'dw {m.cr0 & 0xffff}, 0xffff'})
    t.case('SMSW r32 shows the whole of CR0', ALL, 'smsw eax', out=lambda m: {'ax': m.cr0})
    t.case('SMSW r16 leaves the rest', ALL, 'o16 smsw ax', regs={'ax': 0xaaaaaaaa},
           out=lambda m: {'ax': 0xaaaa0000 | m.cr0 & 0xffff})
    t.case('SMSW r64', 'l lu', 'smsw rax', out=lambda m: {'ax': m.cr0})
    # faults of the operand
    t.case('SGDT beyond the segment', 'real v86 p16 p16u c16u', 'sgdt [0xfffb]', fault=GP, qemu=NO_LIMITS)
    t.case('SGDT that just fits', 'p32u p32', 'sgdt [fs:0xfa]', seg={'fs': SELECTORS['SMALL']},
           mem={'M + 0xfa': 'dw GDT_LIMIT\n dd GDT'})
    t.case('SGDT that just does not', 'p32u p32 c32u', 'sgdt [fs:0xfb]', seg={'fs': SELECTORS['SMALL']}, fault=GP,
           qemu=NO_LIMITS)
    t.case('SGDT to a read-only segment', 'p32u p32 c32u', 'sgdt [fs:M]', seg={'fs': SELECTORS['READ_ONLY']}, fault=GP,
           qemu=NO_LIMITS)
    t.case('SMSW to code', 'p32u p32 c32u', 'smsw [cs:M]', fault=GP, qemu=NO_LIMITS)
    t.case('SIDT through a null selector', 'p32u p32 c32u', 'sidt [fs:M]', seg={'fs': 0}, fault=GP, qemu=NO_LIMITS)
    t.case('SGDT beyond the stack segment', 'real v86 p16 p16u', 'sgdt [ss:0xfffb]', fault=SS, qemu=NO_LIMITS)
    t.case('SGDT to a noncanonical address', 'l lu', 'sgdt [rbx]', regs={'bx': 0x800000000000}, fault=GP,
           qemu='it raises no fault for noncanonical addresses')
    t.case('SGDT to a noncanonical stack address', 'l lu', 'sgdt [rbp]', regs={'bp': 0x7ffffffffffa}, fault=SS,
           qemu='it raises no fault for noncanonical addresses')
    for m, pt in (('pgu', 'PT32 + 0x10 * 4'), ('paeu', 'PT64 + 0x10 * 8'), ('lu', 'PT64 + 0x10 * 8'),
                  ('c32u', 'PT64 + 0x10 * 8')):
        t.case('SGDT into a page that is not present', m, 'sgdt [0x10000]', poke={pt: 'dd 0'}, fault=PF, err=6,
               cr2=0x10000)
        t.case('SGDT into a read-only page', m, 'sgdt [0x10000]', poke={pt: 'dd 0x10005'}, fault=PF, err=7,
               cr2=0x10000)
        t.case('SGDT into a supervisor page', m, 'sgdt [0x10000]', poke={pt: 'dd 0x10003'}, fault=PF, err=7,
               cr2=0x10000)
        t.case('SGDT across into a page that is not present stores nothing', m, 'sgdt [0xfffc]', poke={pt: 'dd 0'},
               fault=PF, err=6, cr2=0x10000, mem={'0xfffc': 'dd 0'},
               qemu='it stores limit and base one after the other')


def loads(t):
    for insn in ('lgdt [M]', 'lidt [M]', 'lmsw ax', 'lmsw [M]'):
        t.case(f'{insn} is for ring 0', OUTER, insn, fault=GP)
    for insn in ('lldt ax', 'ltr ax', 'lldt [M]', 'ltr [M]'):
        t.case(f'{insn} is for ring 0', OUTERP, insn, fault=GP)
        t.case(f'{insn} does not exist', UNPROTECTED, insn, fault=UD)
    t.case('LGDT takes all of the base', 'p32 pg pae c32', 'lgdt [M]\n sgdt [M + 16]' + RESTORE,
           poke={'M': 'dw 0x123\n dd 0xfedcba98', **GDT_IMAGE}, mem={'M + 16': 'dw 0x123\n dd 0xfedcba98'})
    t.case('LGDT takes ten bytes', 'l', 'lgdt [M]\n sgdt [M + 16]' + RESTORE,
           poke={'M': 'dw 0x123\n dq 0xffff8000fedcba98', **GDT_IMAGE},
           mem={'M + 16': 'dw 0x123\n dq 0xffff8000fedcba98'})
    t.case('LGDT takes 24 bits of base with a 16-bit operand', 'p16 real', 'lgdt [M]\n sgdt [M + 16]' + RESTORE,
           poke={'M': 'dw 0x123\n dd 0xfedcba98', **GDT_IMAGE}, mem={'M + 16': 'dw 0x123\n dd 0x00dcba98'})
    t.case('LGDT takes 24 bits of base with a 16-bit operand', 'p32 c32', 'o16 lgdt [M]\n sgdt [M + 16]' + RESTORE,
           poke={'M': 'dw 0x123\n dd 0xfedcba98', **GDT_IMAGE}, mem={'M + 16': 'dw 0x123\n dd 0x00dcba98'})
    t.case('LGDT does not look at the operand size', 'l', 'o16 lgdt [M]\n sgdt [M + 16]' + RESTORE,
           poke={'M': 'dw 0x123\n dq 0xffff8000fedcba98', **GDT_IMAGE},
           mem={'M + 16': 'dw 0x123\n dq 0xffff8000fedcba98'},
           qemu='it takes 24 bits')
    t.case('LGDT of a noncanonical base', 'l', 'lgdt [M]', poke={'M': 'dw 0x123\n dq 0x800000000000'}, fault=GP,
           qemu='it takes any base')
    t.case('LIDT of a noncanonical base', 'l', 'lidt [M]', poke={'M': 'dw 0x123\n dq 0x800000000000'}, fault=GP,
           qemu='it takes any base')
    t.case('LGDT through a null selector', 'p32', 'lgdt [fs:M]', seg={'fs': 0}, fault=GP, qemu=NO_LIMITS)
    t.case('LIDT beyond the segment', 'p32', 'lidt [fs:0xfb]', seg={'fs': SELECTORS['SMALL']}, fault=GP,
           qemu=NO_LIMITS)
    for m, pt in (('pg', 'PT32 + 0x10 * 4'), ('pae', 'PT64 + 0x10 * 8'), ('l', 'PT64 + 0x10 * 8')):
        t.case('LIDT from a page that is not present', m, 'lidt [0x10000]', poke={pt: 'dd 0'}, fault=PF, err=0,
               cr2=0x10000)

    # LMSW: MP, EM and TS follow the operand; PE can only be set.
    t.case('LMSW sets MP EM TS', RING0P, 'lmsw bx', regs={'bx': 0xffff}, ocr0=lambda m: m.cr0 | 0xe)
    t.case('LMSW clears MP EM TS and not PE', RING0P, 'lmsw bx', regs={'bx': 0}, cr0=0xe, ocr0=lambda m: m.cr0)
    t.case('LMSW from memory', RING0P, 'lmsw [M]', poke={'M': 'dw 8'}, ocr0=lambda m: m.cr0 | 8)
    t.case('LMSW in real mode', 'real', 'lmsw bx', regs={'bx': 0xfff6}, ocr0=0x16)
    t.case('LMSW sets PE', 'real', 'mov bx, 1\n lmsw bx\n smsw eax\n and al, 0xfe\n mov cr0, eax',
           out={'ax': 0x10, 'bx': None},
           fmask=0x3f7740)

    # LLDT
    for sel, what, fault, err in (
            ('DATA0', 'a data segment', GP, 0x10), ('TASK', 'a TSS', GP, 0x80), ('BEYOND', 'nothing', GP, 0x400),
            ('L_DATA3', 'an LDT entry', GP, 0x14)):
        t.case(f'LLDT of {what}', RING0P, f'lldt bx', regs={'bx': SELECTORS[sel]}, fault=fault, err=err)
    t.case('LLDT of an LDT that is not present', 'p16 p32 pg pae', 'lldt bx', regs={'bx': SELECTORS['LOCAL_NP']},
           fault=NP, err=0x168)
    t.case('LLDT of an LDT that is not present', 'c32 l', 'lldt bx', regs={'bx': SELECTORS['LOCAL64']}, fault=NP,
           err=0xb8,
           setup='and byte [GDT + 0xb8 + 5], 0x7f', ldt=0)
    t.case('LLDT whose upper half has a type', 'c32 l', 'lldt bx', regs={'bx': SELECTORS['LOCAL64']}, fault=GP,
           err=0xb8,
           setup='mov byte [GDT + 0xb8 + 13], 2', ldt=0, qemu='it does not look')
    t.case('LLDT with a noncanonical base', 'c32 l', 'lldt bx', regs={'bx': SELECTORS['LOCAL64']}, fault=GP, err=0xb8,
           setup='mov dword [GDT + 0xb8 + 8], 0x8000', ldt=0, qemu='it does not look')
    t.case('LLDT whose upper half is beyond the table', 'c32 l', 'lldt bx', regs={'bx': SELECTORS['LAST']},
           poke={'GDT + 0x3f8 + 5': 'db 0x82'}, fault=GP, err=0x3f8)
    t.case('LLDT from memory', 'p32 l', 'lldt [M]\n sldt eax', poke={'M': 'dw 0'}, out={'ax': 0})
    # LTR
    t.case('LTR of null', RING0P, 'ltr bx', regs={'bx': 3}, fault=GP, err=0, qemu='it loads null')
    for sel, what, fault, err in (
            ('DATA0', 'a data segment', GP, 0x10), ('LOCAL', 'an LDT', GP, 0xa0), ('BEYOND', 'nothing', GP, 0x400),
            ('L_TASK', 'an LDT entry', GP, 0x24), ('BUSY', 'a busy TSS', GP, 0x150)):
        t.case(f'LTR of {what}', RING0P, f'ltr bx', regs={'bx': SELECTORS[sel]}, fault=fault, err=err)
    t.case('LTR of a TSS that is not present', RING0P, 'ltr bx', regs={'bx': SELECTORS['TASK_NP']}, fault=NP,
           err=0x158)
    t.case('LTR makes the TSS busy', 'p16 p32 pg pae', 'ltr bx', regs={'bx': SELECTORS['TASK_B'] | 3},
           otr=SELECTORS['TASK_B'] | 3, mem={'GDT + 0x88 + 5': 'db 0x8b'})
    t.case('LTR of a 16-bit TSS', 'p32', 'ltr bx', regs={'bx': SELECTORS['TASK_16']}, otr=SELECTORS['TASK_16'],
           mem={'GDT + 0x90 + 5': 'db 0x83'}, stack=True)
    t.case('LTR of a 16-bit TSS', 'c32 l', 'ltr bx', regs={'bx': SELECTORS['TASK_16']}, fault=GP, err=0x90)
    t.case('LTR makes the TSS busy', 'c32 l', 'ltr bx', regs={'bx': SELECTORS['TASK64']},
           poke={'GDT + 0x260': f'dq {descriptor(LAYOUT["TSS64"], 0x67, 0x89, 0):#x}, 0'}, tr=0x260,
           otr=SELECTORS['TASK64'], mem={'GDT + 0xa8 + 5': 'db 0x8b'})
    t.case('LTR with a noncanonical base', 'c32 l', 'ltr bx', regs={'bx': SELECTORS['TASK64_FAR']}, fault=GP,
           err=0x260,
           qemu='it does not look')
    t.case('LTR whose upper half has a type', 'c32 l', 'ltr bx', regs={'bx': SELECTORS['TASK64_TYPE']}, fault=GP,
           err=0x270,
           qemu='it does not look')
    t.case('LTR whose upper half is beyond the table', 'c32 l', 'ltr bx', regs={'bx': SELECTORS['LAST']}, fault=GP,
           err=0x3f8)
    t.case('LTR from memory', 'p32', 'ltr [M]', poke={'M': 'dw TASK_B'}, otr=SELECTORS['TASK_B'])


def cases(t):
    stores(t)
    loads(t)
