"""x87 exceptions: #MF with CR0.NE, else FERR#, interrupt 13, port F0h and IGNNE# (SDM 1 8.7; D.2.1.3, D.3)."""
from machine import *

STK, M = LAYOUT['STK'], LAYOUT['M']
IF, NE, MF = 0x200, 0x20, 16
MODES = 'real p16 p32 pg c32 l'
IRQ13 = 0x5d
# Where QEMU's translator departs from the manuals: text of the name, modes, in what.
QEMU_DIFFERS = [
    ('NE,', '', 'only FWAIT raises exceptions, before the time'),
    ('NE#', '', 'it interrupts before the time'),
    ('the interrupt clears the error', '', 'it interrupts before the time'),
]

PIC = ''.join(f' mov al, {value}\n out {port}, al\n' for port, value in (
    (0x20, 0x11), (0x21, 0x50), (0x21, 4), (0x21, 1), (0xa0, 0x11), (0xa1, 0x58), (0xa1, 2), (0xa1, 1)))
# The unit as new, no interrupt latched, the 8259 pair lets IRQ 13 through, and the local APIC the 8259 pair.
SETUP = ('fninit\n out 0xf0, al\n' + PIC + ' mov al, 0xfb\n out 0x21, al\n mov al, 0xdf\n out 0xa1, al\n'
         ' mov dword [0xfee000f0], 0x1ff\n mov dword [0xfee00350], 0x700\n')
ERROR = 'fldcw [M]\n fld1\n fldz\n fdivp\n'  # a division by zero, which is not masked
CONTROL = {'M': 'dw 0x37b'}
PENDING = 0xb084  # B, TOP 6, ES, ZE


def case(t, name, modes, code, poke=None, **expect):
    expect.setdefault('out', {'ax': None})
    t.case(name, modes, code, poke=lambda m: {**CONTROL, **((poke(m) if callable(poke) else poke) or {})}, setup=SETUP, **expect)


def gates(m, label):
    """The handler of IRQ 13, in the case's code."""
    if m.long:
        return {f'IDT64 + {IRQ13} * 16': f'dw A({label}), CODE64_0, 0x8e00, 0\n dq 0'}
    return {f'IDT32 + {IRQ13} * 8': f'dw A({label}), CODE0, 0x8e00, 0'}


def cases(t):
    for name, insn in (('FWAIT', 'fwait'), ('FLD', 'fld1'), ('FLD of memory', 'fld dword [M + 16]'), ('EMMS', 'emms'),
                       ('FLDENV', 'fldenv [M + 16]'), ('FRSTOR', 'frstor [M + 16]'), ('a store to a page of the APIC', None)):
        modes = MODES
        if not insn:
            insn, modes = 'fst dword [0xfee00080]', 'p32'
        case(t, f'with NE, {name} raises #MF', modes, ERROR + '.w: ' + insn, cr0=NE, fault=MF, rip='.w')
        case(t, f'without NE, {name} waits for IRQ 13', modes, ERROR + '.w: ' + insn, flags=IF, fault=IRQ13, rip='.w')
    case(t, 'instructions that don\'t wait', MODES, ERROR + 'fnstsw [M + 8]\n fnstcw [M + 10]\n fnclex\n fwait', flags=IF,
         mem={'M + 8': f'dw {PENDING:#x}, 0x37b'})
    case(t, 'a masked exception is none', MODES, 'fld1\n fldz\n fdivp\n fwait', flags=IF)
    # the handler ends the error, then the instruction is done
    case(t, 'the interrupt clears the error', 'p32 l', lambda m: ERROR + '.w: fld1\n fnstsw [M + 8]\n jmp .end\n'
         '.h: fnclex\n out 0xf0, al\n inc ecx\n mov al, 0x20\n out 0xa0, al\n out 0x20, al\n ' +
         ('iretq' if m.long else 'iretd'), flags=IF, poke=lambda m: gates(m, '.h'), regs={'cx': 0}, out={'ax': None, 'cx': 1},
         mem={'M + 8': 'dw 0x2800'}, fmask=0x3f7700)
    # IGNNE#: waiting instructions are executed, and the flags are still there
    ignoring = ('.h: out 0xf0, al\n fwait\n fnstsw [M + 8]\n fld1\n fst dword [M + 16]\n fnstsw [M + 10]\n fstcw [M + 12]\n'
                ' fldcw [M + 2]\n fnstsw [M + 14]\n fclex\n inc ecx\n mov al, 0x20\n out 0xa0, al\n out 0x20, al\n ')
    case(t, 'IGNNE# lets waiting instructions pass', 'p32 l', lambda m: ERROR + '.w: fwait\n fnstsw [M + 20]\n jmp .end\n' + ignoring +
         ('iretq' if m.long else 'iretd'), flags=IF, poke=lambda m: {**gates(m, '.h'), 'M + 2': 'dw 0x37b'}, regs={'cx': 0},
         out={'ax': None, 'cx': 1}, fmask=0x3f7700,
         mem={'M + 8': f'dw {PENDING:#x}, 0xa884, 0x37b, 0xa884\n dd 0x3f800000\n dw 0x2800'})
    case(t, 'IGNNE# falls with the error: the next one interrupts again', 'p32 l', lambda m: ERROR + 'fwait\n fdivp\n fwait\n'
         ' jmp .end\n.h: out 0xf0, al\n fclex\n inc ecx\n mov al, 0x20\n out 0xa0, al\n out 0x20, al\n ' +
         ('iretq' if m.long else 'iretd'), flags=IF, poke=lambda m: gates(m, '.h'), regs={'cx': 0}, out={'ax': None, 'cx': 2},
         fmask=0x3f7700)
    # pointers in the environment. Intel's: FOP is that of the last error, and there are no selectors any more.
    opcode = lambda n: n if t.amd else 0
    for name, between in (('', ''), (' across other code', ' jmp .n\n nop\n .n:'), (' across a chip\'s access', ' in al, 0x21\n')):
        case(t, 'FNSTENV shows FIP and FOP' + name, 'p32 l', '.w: fld dword [M + 16]\n' + between + 'fnstenv [M + 32]\n.e:',
             mem=lambda m: {'M + 44': f'dd A(.w)\n dw {m.cs if t.amd else 0}' if not m.long else 'dd A(.w)',
                            'M + 50': f'dw {opcode(0x104 if m.code64 else 0x105)}'})
    case(t, 'control instructions leave FIP and FOP', 'p32 l', '.w: fldz\n fldcw [M]\n fnstsw ax\n fnclex\n fnstenv [M + 32]',
         mem={'M + 44': 'dd A(.w)', 'M + 50': f'dw {opcode(0x1ee)}'})
    case(t, 'FNSTENV shows the FOP of an error', 'p32 l', ERROR + 'fnstenv [M + 32]', mem={'M + 50': 'dw 0x6f9'})
    case(t, 'FNINIT clears FIP and FOP', 'p32 l', 'fldz\n fninit\n fnstenv [M + 32]', mem={'M + 44': 'dd 0', 'M + 50': 'dw 0'})
    case(t, 'a write to port F0h without an error asserts no IGNNE#', 'p32 l', 'out 0xf0, al\n' + ERROR + '.w: fwait', flags=IF,
         fault=IRQ13, rip='.w')
