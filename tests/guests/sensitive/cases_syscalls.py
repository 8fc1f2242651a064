"""SYSCALL SYSRET SYSENTER SYSEXIT (SDM 2B; APM 3 for what AMD does in legacy and compatibility mode)."""
from machine import *

S = SELECTORS
SCE, LME = 1, 0x100
IF, DF_, TF, IOPL, ALLF = 0x200, 0x400, 0x100, 0x3000, 0x244cd5


# Where QEMU's translator departs from the manuals: text of the name, modes, in what.
QEMU_DIFFERS = [
    ('SYSRET without SCE', 'real', 'it looks at PE first'),
    ('SYSCALL', 'l lu', 'it clears the arithmetic flags'),
    ('SYSRET to 64-bit code', '', 'it loads VM'),
    ('SYSEXIT with a null CS', '', 'it takes selector 3'),
]


def wrmsr(msr, low, high=0):
    return f'mov ecx, {msr:#x}\n mov eax, {low}\n mov edx, {high}\n wrmsr\n'


SYSCALL_MSRS = (wrmsr(0xc0000081, 'GATE + 0x100', '0x00180038') + wrmsr(0xc0000082, 'GATE') + wrmsr(0xc0000083,
        'GATE + 0x80') +
                wrmsr(0xc0000084, '0x44700'))
LINUX_MSRS = SYSCALL_MSRS + wrmsr(0xc0000084, '0x257fd5') # as Linux has it: what translated code does without C
SYSENTER_MSRS = wrmsr(0x174, 'CODE0') + wrmsr(0x175, 'STK0') + wrmsr(0x176, 'GATE')



def syscalls(t):
    t.case('SYSCALL without SCE', ALL, 'syscall', fault=UD)
    t.case('SYSRET without SCE', ALL, 'sysret', fault=UD)
    long64 = 'l lu'
    t.case('SYSCALL', long64, 'syscall', efer=SCE, setup=SYSCALL_MSRS, flags=IF | 0x40000 | 0x4000 | 0xcd5, rip='GATE',
           ocs=0x38, oss=0x40,
           out=lambda m: {'cx': LAYOUT['SLOT'] + 2, 'r11': 0x44ed7}, oflags=0x8d7 | 0)
    t.case('SYSCALL leaves RSP', 'lu', 'syscall', efer=SCE, setup=SYSCALL_MSRS, rip='GATE', ocs=0x38, oss=0x40,
           out={'cx': LAYOUT['SLOT'] + 2, 'r11': 2, 'sp': LAYOUT['STK']})
    for flags in (0x8d5, 0x201, 0x400, IF | 0x4000 | DF_ | 0x200894, IF | 0x40044):
        t.case(f'SYSCALL that clears flags, with {flags:#x}', 'lu', 'syscall', efer=SCE, setup=LINUX_MSRS, flags=flags, rip='GATE', ocs=0x38,
               oss=0x40, out={'cx': LAYOUT['SLOT'] + 2, 'r11': flags | 2, 'sp': LAYOUT['STK']}, oflags=2)
    t.case('SYSCALL with other segments than the last', 'lu', 'syscall', efer=SCE,
           setup=LINUX_MSRS + wrmsr(0xc0000081, 0, '0x00180008'), rip='GATE', ocs=8, oss=0x10, out={'cx': LAYOUT['SLOT'] + 2, 'r11': 2}, oflags=2)
    if t.amd:
        t.case('SYSCALL in compatibility mode', 'c32u', 'syscall', efer=SCE, setup=SYSCALL_MSRS, flags=IF,
               rip='GATE + 0x80', ocs=0x38, oss=0x40,
               out={'cx': LAYOUT['SLOT'] + 2}, oflags=2)
        t.case('SYSCALL in protected mode', 'p32 p32u', 'syscall', efer=SCE, setup=SYSCALL_MSRS, flags=IF | 0x4cd5,
               rip='GATE + 0x100',
               ocs=0x38, oss=0x40, out={'cx': LAYOUT['SLOT'] + 2}, oflags=0x4cd7,
               poke={'GDT + 0x38': f'dq {descriptor(0, 0xfffff, 0x9b, 0xc):#x}'})
    else:
        t.case('SYSCALL outside 64-bit code', SEGMENTED, 'syscall', efer=SCE, fault=UD)
        t.case('SYSRET outside 64-bit code', SEGMENTED, 'sysret', efer=SCE, fault=UD)
    t.case('SYSCALL in real and v8086 mode', UNPROTECTED, 'syscall', efer=lambda m: 0, fault=UD)
    t.case('SYSRET to 64-bit code', 'l', 'o64 sysret\n.there: ud2', efer=SCE, setup=SYSCALL_MSRS,
           regs={'cx': LAYOUT['SLOT'] + 3, 'r11': 0x3fffff & ~TF & ~0x4000}, rip='.there', ocs=S['CODE64_3'],
           oss=S['DATA3'],
           oflags=0x3fbed7 & ~0x30000 | IF | 0x180000, fmask=0x3f7fd7 & ~0x180000)
    for flags in (0, 1, 0x800, IF | 0x8d5, DF_ | 0x44, IF | DF_ | 0x3000 | 0x204090, IF | 0x40000):
        t.case(f'SYSRET to 64-bit code, Linux\' way, with {flags:#x}', 'l', 'o64 sysret\n.there: ud2', efer=SCE, setup=LINUX_MSRS,
               regs={'cx': LAYOUT['SLOT'] + 3, 'r11': flags}, rip='.there', ocs=S['CODE64_3'], oss=S['DATA3'],
               oflags=flags | 2, fmask=0x3f7fd7)
    t.case('SYSRET to compatibility mode', 'l c32' if t.amd else 'l', 'sysret\n.there: ud2', efer=SCE, setup=SYSCALL_MSRS,
           regs=lambda m: {'cx': LAYOUT['SLOT'] + 2, 'r11': 0x202}, rip='.there', ocs=S['CODE3'], oss=S['DATA3'],
           oflags=lambda m: 0x202 if m.code64 else None, fmask=lambda m: 0x3f7fd7 if m.code64 else 0)
    if t.amd:
        t.case('SYSRET in protected mode', 'p32', 'sysret\n.there: ud2', efer=SCE, setup=SYSCALL_MSRS,
               regs={'cx': LAYOUT['SLOT'] + 2},
               rip='.there', ocs=S['CODE3'], oss=S['DATA3'], oflags=0x202)
    t.case('SYSRET is for ring 0', 'lu', 'o64 sysret', efer=SCE, fault=GP)
    if not t.amd:  # AMD's faults after the return, in ring 3
        t.case('SYSRET to a noncanonical address', 'l', 'o64 sysret', efer=SCE, setup=SYSCALL_MSRS,
               regs={'cx': 0x800000000000}, fault=GP)


def sysenter(t):
    t.case('SYSENTER with a null CS', 'p32 p32u p16 p16u pg v86 v86i0', 'sysenter', fault=GP)
    t.case('SYSENTER in real mode', 'real', 'sysenter', setup=SYSENTER_MSRS, fault=GP)
    t.case('SYSENTER', 'p32u p16u pgu', 'sysenter', setup=SYSENTER_MSRS, flags=IF | IOPL | 0xcd5, rip='GATE',
           ocs=S['CODE0'], oss=S['DATA0'],
           out={'sp': LAYOUT['STK0']}, oflags=IOPL | 0xcd7)
    t.case('SYSENTER from v8086 mode', 'v86 v86i0', 'sysenter', setup=SYSENTER_MSRS, flags=IF, rip='GATE',
           ocs=S['CODE0'], oss=S['DATA0'],
           out={'sp': LAYOUT['STK0']}, oflags=lambda m: m.flags & ~0x20000, oseg={'ds': 0})
    t.case('SYSENTER from ring 0', 'p32', 'sysenter', setup=SYSENTER_MSRS, rip='GATE', out={'sp': LAYOUT['STK0']})
    t.case('SYSEXIT is for ring 0', 'p32u p16u', 'sysexit', setup=SYSENTER_MSRS, fault=GP)
    t.case('SYSEXIT in real mode', 'real', 'sysexit', setup=SYSENTER_MSRS, fault=GP)
    t.case('SYSEXIT with a null CS', 'p32', 'sysexit', setup=wrmsr(0x174, 3), fault=GP)
    t.case('SYSEXIT', 'p32 pg', 'sysexit\n.there: ud2', setup=SYSENTER_MSRS,
           regs={'dx': LAYOUT['SLOT'] + 2, 'cx': LAYOUT['STK'] - 0x40},
           rip='.there', ocs=S['CODE3'], oss=S['DATA3'], out={'sp': LAYOUT['STK'] - 0x40})
    if t.amd:
        t.case('SYSENTER in long mode', 'l lu c32 c32u', 'sysenter', setup=SYSENTER_MSRS, fault=UD,
               qemu='it looks at the vendor')
        t.case('SYSEXIT in long mode', 'l lu c32 c32u', 'sysexit', setup=SYSENTER_MSRS, fault=UD,
               qemu='it looks at the vendor')
    else:
        t.case('SYSENTER in long mode', 'lu c32u', 'sysenter', setup=SYSENTER_MSRS + wrmsr(0x174, 'CODE64_0'),
               rip='GATE', ocs=S['CODE64_0'],
               oss=S['CODE64_0'] + 8, out={'sp': LAYOUT['STK0']})
        t.case('SYSEXIT to 64-bit code', 'l', 'o64 sysexit\n.there: ud2', setup=SYSENTER_MSRS,
               regs={'dx': LAYOUT['SLOT'] + 3, 'cx': LAYOUT['STK'] - 0x40}, rip='.there', ocs=S['CODE64_3'],
               oss=S['DATA3B'],
               out={'sp': LAYOUT['STK'] - 0x40})
        t.case('SYSEXIT to a noncanonical address', 'l', 'o64 sysexit', setup=SYSENTER_MSRS,
               regs={'dx': 0x800000000000, 'cx': 0}, fault=GP)


def cases(t):
    syscalls(t)
    sysenter(t)
