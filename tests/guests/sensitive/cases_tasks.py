"""Task switches by JMP, CALL, IRET, INT and exception (SDM 3A chapter 7)."""
from machine import *

S = SELECTORS
STK_B, NT = LAYOUT['STK_B'], 0x4000
TASK, B = S['TASK'], S['TASK_B']
# What the new task starts with, as its TSS says.
REGS_B = {'ax': 0xb0, 'cx': 0xb1, 'dx': 0xb2, 'bx': 0xb3, 'sp': STK_B, 'bp': 0xb5, 'si': 0xb6, 'di': 0xb7}
SEGS_B = {'es': S['DATA3'], 'ds': S['DATA0'], 'fs': S['DATA3'], 'gs': 0}
BUSY, FREE_ = 'db 0x8b', 'db 0x89'
OLD_TYPE, NEW_TYPE = 'GDT + 0x80 + 5', 'GDT + 0x88 + 5'

# Where QEMU's translator departs from the manuals: text of the name, modes, in what.
QEMU_DIFFERS = [
    ('an exception through a task gate', '', 'it saves no RF'),
    ('an exception without error code', '', 'it saves no RF'),
    ('the T bit traps', '', 'it does not look at it'),
    ('of the new task become accessed', '', 'they do not'),
    ('a TSS in the LDT', '', 'it raises #TS'),
    ('through a task gate to the LDT', '', 'it raises #TS'),
    ('a new task with', '', 'it saves another EIP and no RF'),
]


def entered(**changes):
    """What a case expects that ends in the new task, in ring 0 at GATE."""
    expect = {'rip': 'GATE', 'ocs': S['CODE0'], 'oss': S['DATA0'], 'out': dict(REGS_B), 'oseg': dict(SEGS_B),
              'oflags': 2, 'otr': B}
    expect.update(changes)
    return expect


def saved(m, flags=2):
    """The old task's TSS from EIP to GS, at the instruction after the switching one."""
    r = [0x22220000 + 0x111 * i for i in range(8)]
    r[4] = LAYOUT['STK']
    sel = (m.ds, m.cs, m.ss, m.ds, m.ds, m.ds)
    return ('dd A(.next), %#x, ' % flags + ', '.join(hex(x) for x in r) + ', ' + ', '.join(hex(x) for x in sel))


def switches(t):
    end = '\n.next: ud2'
    for name, code, modes in (('JMP to a TSS', 'jmp TASK_B:0', 'p32 pg pae'),
                              ('JMP through a task gate', 'jmp GATE_B:0', 'p32 p32u'),
                              ('JMP through a task gate of ring 0', 'jmp GATE_B0:0', 'p32')):
        t.case(name + ' switches', modes, code + end, **entered(
            mem={OLD_TYPE: FREE_, NEW_TYPE: BUSY, 'TSS_B': 'dw 0'}, poke=lambda m: {'TSS_B + 28': f'dd {m.cr3:#x}'}))
        t.case(name + ' saves the old task', modes, code + end, **entered(
            mem=lambda m: {'TSS32 + 32': saved(m)}, poke=lambda m: {'TSS_B + 28': f'dd {m.cr3:#x}'}))
    for name, code, modes in (('CALL to a TSS', 'call TASK_B:0', 'p32 pg'),
                              ('CALL through a task gate', 'call GATE_B:0', 'p32 p32u'),
                              ('INT through a task gate', 'int 0x38', 'p32 p32u pgu v86')):
        t.case(name + ' nests', modes, code + end, **entered(
            oflags=2 | NT, mem={OLD_TYPE: BUSY, NEW_TYPE: BUSY, 'TSS_B': 'dw TASK'},
            poke=lambda m: {'TSS_B + 28': f'dd {m.cr3:#x}'}))
        t.case(name + ' saves the old task', modes, code + end, **entered(
            oflags=2 | NT, mem=lambda m: {'TSS32 + 32': saved(m, m.flags)},
            poke=lambda m: {'TSS_B + 28': f'dd {m.cr3:#x}'}))
    back = {'GATE': 'db 0xcf'}  # IRET in the new task
    for name, code, modes in (('CALL', 'call GATE_B:0', 'p32 p32u pg'), ('INT', 'int 0x38', 'p32 p32u')):
        t.case(f'IRET goes back from {name}', modes, code,
               poke=lambda m: {**back, 'TSS_B + 28': f'dd {m.cr3:#x}', 'TSS32 + 28': f'dd {m.cr3:#x}'},
               ocr0=lambda m: m.cr0 | 8,
               otr=TASK, mem={OLD_TYPE: BUSY, NEW_TYPE: FREE_, 'TSS_B + 32': 'dd GATE + 1, 2'})
    t.case('IRET goes back to v8086 mode', 'v86', 'int 0x38', poke=back, otr=TASK)
    t.case('an exception through a task gate pushes its error code', 'p32 p32u', '|mov fs, bx',
           regs={'bx': S['BEYOND']},
           poke={'IDT32 + 13 * 8': 'dw 0, TASK_B, 0x8500, 0'},
           **entered(oflags=2 | NT, out={**REGS_B, 'sp': STK_B - 4},
                     mem={'STK_B - 4': 'dd 0x400', 'TSS32 + 32': 'dd A(.insn), 0x10002'}))
    t.case('an exception without error code', 'p32', '|ud2',
           poke={'IDT32 + 6 * 8': 'dw 0, TASK_B, 0x8500, 0', 'GATE': 'int3'},
           fault=BP, **entered(rip='GATE + 1', oflags=2 | NT, mem={'TSS32 + 32': 'dd A(.insn), 0x10002'}))
    t.case('the new task may be in v8086 mode', 'p32', 'jmp TASK_B:0', poke={
        'TSS_B + 36': 'dd 0x23002', 'TSS_B + 72': 'dd 0x10, 0, 0, 0x20, 0x30, 0x40'}, **entered(
            ocs=0, oss=0, oflags=0x23002, oseg={'es': 0x10, 'ds': 0x20, 'fs': 0x30, 'gs': 0x40}))
    t.case('the new task may be in ring 3', 'p32', 'jmp TASK_B:0', poke={
        'TSS_B + 72': 'dd DATA3, CODE3, DATA3, DATA3, 0, 0'}, **entered(
            ocs=S['CODE3'], oss=S['DATA3'], oseg={'es': S['DATA3'], 'ds': S['DATA3'], 'fs': 0, 'gs': 0}))
    t.case('the new task has its LDT', 'p32', 'jmp TASK_B:0', ldt=0,
           poke={'TSS_B + 96': 'dd LOCAL', 'TSS_B + 88': 'dd L_DATA3'},
           **entered(oseg={**SEGS_B, 'fs': S['L_DATA3']}))
    t.case('the new task has its CR3', 'pg', 'jmp TASK_B:0',
           poke={'TSS_B + 28': 'dd 0x90000', '0x90000': 'dd PT32 + 7'},
           **entered(ocr3=0x90000))
    t.case('a switch sets TS', 'p32', 'jmp TASK_B:0', **entered(ocr0=0x19))
    t.case('a switch clears the local breakpoints', 'p32', 'mov dr7, eax\n|jmp TASK_B:0', regs={'ax': 0x4ff},
           **entered(odr7=0x4aa, out={**REGS_B}))
    t.case('the T bit traps in the new task', 'p32', 'jmp TASK_B:0', poke={'TSS_B + 100': 'dw 1'}, fault=DB,
           odr6=0xffff8ff0, **entered())
    t.case('a 16-bit TSS', 'p32', 'jmp TASK_16:0', **entered(otr=S['TASK_16'], mem={'GDT + 0x90 + 5': 'db 0x83'},
           poke={'TSS_16 + 38': 'dw DATA16_0'}, oss=S['DATA16_0'],
            out={k: lambda x, v=v: x & 0xffff == v for k, v in REGS_B.items() if k != 'sp'} | {'sp': STK_B},
           oseg={'es': S['DATA3'], 'ds': S['DATA0'], 'fs': 0, 'gs': 0}))
    t.case('from a 16-bit TSS', 'p32', 'jmp TASK_B:0\n.next: ud2', tr=S['TASK_16'], **entered(
        mem={'TSS_16 + 14': 'dw A(.next), 2, 0, 0x111, 0x222, 0x333, STK, 0x555, 0x666, 0x777, 0x10, 8, 0x10, 0x10'}))
    t.case('descriptors of the new task become accessed', 'p32', 'jmp TASK_B:0', poke={'TSS_B + 88': 'dd FRESH'},
        **entered(
        oseg={**SEGS_B, 'fs': S['FRESH']}, mem={'GDT + 0x108 + 5': 'db 0xf3'}))


def refused(t):
    """Faults before the switch: the old task's."""
    for name, code, modes, fault, err in (
            ('JMP to a TSS of ring 0', 'jmp TASK_B:0', 'p32u', GP, B),
        ('CALL to a TSS of ring 0', 'call TASK_B:0', 'p32u', GP, B),
            ('JMP to a TSS with a larger RPL', 'jmp TASK_B + 3:0', 'p32', GP, B),
        ('JMP to a busy TSS', 'jmp BUSY:0', 'p32', GP, S['BUSY']),
            ('CALL to the running task', 'call TASK:0', 'p32', GP, TASK),
        ('JMP to an absent TSS', 'jmp TASK_NP:0', 'p32', NP, S['TASK_NP']),
            ('JMP to a TSS that is too short', 'jmp TASK_SHORT:0', 'p32', TS, S['TASK_SHORT']),
            ('JMP to a TSS in the LDT', 'jmp L_TASK:0', 'p32', GP, S['L_TASK']),
            ('JMP through a task gate of ring 0', 'jmp GATE_B0:0', 'p32u', GP, S['GATE_B0']),
            ('JMP through an absent task gate', 'jmp GATE_B_NP:0', 'p32u', NP, S['GATE_B_NP'] & ~3),
            ('CALL through a gate to a busy TSS', 'call GATE_BUSY:0', 'p32u', GP, S['BUSY'])):
        t.case(name, modes, code, fault=fault, err=err, otr=TASK)
    for name, value, err in (('the LDT', 'L_TASK', S['L_TASK']), ('a GDT entry that is no TSS', 'DATA0', S['DATA0']),
                             ('nothing', 'BEYOND', S['BEYOND'])):
        t.case(f'JMP through a task gate to {name}', 'p32', 'jmp GATE_B:0',
               poke={f'GDT + {S["GATE_B"] & ~3} + 2': f'dw {value}'},
               fault=GP, err=err)
        t.case(f'INT through a task gate to {name}', 'p32', 'int 0x38', poke={'IDT32 + 0x38 * 8 + 2': f'dw {value}'},
               fault=GP, err=err)
    t.case('IRET with NT to a task that is not busy', 'p32', 'iretd', flags=NT, poke={'TSS32': 'dw TASK_B'}, fault=TS,
           err=B)
    t.case('IRET with NT to null', 'p32', 'iretd', flags=NT, poke={'TSS32': 'dw 0'}, fault=TS, err=0)
    t.case('IRET with NT to the LDT', 'p32', 'iretd', flags=NT, poke={'TSS32': 'dw L_TASK'}, fault=TS, err=S['L_TASK'])
    t.case('IRET with NT to data', 'p32', 'iretd', flags=NT, poke={'TSS32': 'dw DATA0'}, fault=TS, err=S['DATA0'])
    t.case('IRET with NT to an absent TSS', 'p32', 'iretd', flags=NT, poke={'TSS32': 'dw TASK_B', NEW_TYPE: 'db 0x0b'},
           fault=NP, err=B)
    t.case('IRET with NT and IOPL 0 in v8086 mode is no task return', 'v86', 'iret', flags=NT,
           poke={'STK': 'dw A(.end), 0, 2'}, out={'sp': LAYOUT['STK'] + 6}, oflags=0x23002)


def half_done(t):
    """Faults after the switch: the new task's, with its EIP (table 7-1). The handler needs no new stack in ring 0."""
    for name, poke, fault, err, changes in (
            ('CS null', {'TSS_B + 76': 'dd 0'}, TS, 0, None),
            ('CS data', {'TSS_B + 76': 'dd DATA0'}, TS, S['DATA0'], None),
            ('CS of another DPL', {'TSS_B + 76': 'dd CODE3 & ~3'}, TS, S['CODE3'] & ~3, None),
            ('CS absent', {'TSS_B + 76': 'dd CODE0_NP'}, NP, S['CODE0_NP'], None),
            ('CS nothing', {'TSS_B + 76': 'dd BEYOND'}, TS, S['BEYOND'], None),
            ('LDT that is none', {'TSS_B + 96': 'dd DATA0'}, TS, S['DATA0'], None),
            ('LDT absent', {'TSS_B + 96': 'dd LOCAL_NP'}, TS, S['LOCAL_NP'], None),
            ('DS system', {'TSS_B + 84': 'dd TASK'}, TS, TASK, None),
            ('DS absent', {'TSS_B + 84': 'dd DATA0_NP'}, NP, S['DATA0_NP'], None),
            ('ES execute-only', {'TSS_B + 72': 'dd EXEC_ONLY'}, TS, S['EXEC_ONLY'] & ~3, None),
            ('GS nothing', {'TSS_B + 92': 'dd BEYOND'}, TS, S['BEYOND'], None)):
        # seen through a task gate, which saves the new task's state in its TSS
        t.case('a new task with ' + name, 'p32', 'jmp TASK_B:0', fault='task',
               poke={**poke, f'IDT32 + {fault * 8}': 'dw 0, TASK_DF, 0x8500, 0'}, err=err,
               mem={'TSS_DF': 'dw TASK_B', 'TSS_B + 32': 'dd GATE, 0x10002, 0xb0'})
    for name, poke, fault, err in (
            ('SS null', {'TSS_B + 80': 'dd 0'}, TS, 0), ('SS of another RPL', {'TSS_B + 80': 'dd 0x13'}, TS, 0x10),
            ('SS code', {'TSS_B + 80': 'dd CODE0'}, TS, S['CODE0']),
        ('SS absent', {'TSS_B + 80': 'dd DATA0_NP'}, SS, S['DATA0_NP'])):
        t.case('a new task with ' + name, 'p32', 'jmp TASK_B:0', fault='task',
               poke={**poke, f'IDT32 + {fault * 8}': 'dw 0, TASK_DF, 0x8500, 0'}, err=err,
               mem={'TSS_DF': 'dw TASK_B', 'TSS_B + 32': 'dd GATE, 0x10002, 0xb0'})
    t.case('a new task with EIP beyond its limit', 'p32', 'jmp TASK_B:0', fault='task', err=0,
           poke={'TSS_B + 76': 'dd CODE_SMALL', 'TSS_B + 32': 'dd 0xa000',
                 'IDT32 + 13 * 8': 'dw 0, TASK_DF, 0x8500, 0'},
           mem={'TSS_DF': 'dw TASK_B', 'TSS_B + 32': 'dd 0xa000, 0x10002, 0xb0'})


def cases(t):
    switches(t)
    refused(t)
    half_done(t)
