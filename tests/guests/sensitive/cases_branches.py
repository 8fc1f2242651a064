"""Near branches out of the code segment or to noncanonical addresses, which fault themselves and change nothing, and those
with an operand size of 16 bits in 64-bit code (SDM 2A CALL, JMP, Jcc, LOOP; 2B RET). What is not in the manuals, or differs
between the makers, is as seen natively on Zen 3."""
from machine import *

S = SELECTORS
STK, M, SLOT = LAYOUT['STK'], LAYOUT['M'], LAYOUT['SLOT']
TF = 0x100
HOLE, OTHER_HOLE = 0x800000000000, 0x123456789abcdef0
UNTOUCHED = 'dq 0x5555555555555555'


def below(m):
    """The memory below the stack pointer, where the handler has a stack of its own."""
    return {'STK - 8': UNTOUCHED} if m.name == 'lu' else {}


# Where QEMU's translator departs from the manuals: text of the name, modes, in what.
QEMU_DIFFERS = [
    ('out of the code', '', 'it has no limits'),
    ('to the end of the code', '', 'it has no limits'),
    ('a CALL at the very end', '', 'it has no limits'),
    ('the hole', '', 'it faults at the target'),
    ('of 16 bits', '', 'it ignores 66'),
]


def faulting(t, name, modes, code, **expect):
    """At full speed and in single steps."""
    poke = {'STK - 8': UNTOUCHED, **expect.pop('poke', {})}
    expect = {'fault': GP, **expect, 'poke': poke, 'mem': below}
    t.case(name, modes, code, **expect)
    t.case(name + ' (single step)', modes, code, **{**expect, 'flags': expect.get('flags', 0) | TF, 'steps': []})


def noncanonical(t):
    modes = 'l lu'
    for target in (HOLE, OTHER_HOLE, 0xffff7fffffffffff):
        at = f' the hole at {target:#x}'
        faulting(t, 'JMP into' + at, modes, 'jmp rax', regs={'ax': target})
        faulting(t, 'JMP through memory into' + at, modes, 'jmp [M]', poke={'M': f'dq {target:#x}'})
        faulting(t, 'CALL into' + at, modes, 'call rax', regs={'ax': target})
        faulting(t, 'CALL of r12 into' + at, modes, 'call r12', regs={'r12': target})
        faulting(t, 'CALL through memory into' + at, modes, 'call [M]', poke={'M': f'dq {target:#x}'})
        faulting(t, 'CALL through the stack into' + at, modes, 'call [rsp]', poke={'STK': f'dq {target:#x}'})
        faulting(t, 'RET into' + at, modes, 'ret', poke={'STK': f'dq {target:#x}'})
        faulting(t, 'RET that releases into' + at, modes, 'ret 24', poke={'STK': f'dq {target:#x}'})
        t.case('a RET with a prediction into' + at, modes, f'call .f\n.f: mov rbx, {target:#x}\n mov [rsp], rbx\n.x: ret',
               rip='.x', fault=GP, out={'bx': target, 'sp': STK - 8})
        t.case('an indirect CALL that has led elsewhere into' + at, modes,
               f'mov ecx, 3\n mov rbx, {target:#x}\n mov edx, A(.f)\n.l: dec ecx\n cmovz rdx, rbx\n.x: call rdx\n jmp .l\n'
               '.f: ret', rip='.x', fault=GP, out={'cx': 0, 'bx': target, 'dx': target}, fmask=0x3f7700)
    t.case('CALL into the hole with a stack there',
           'lu', 'call rax', regs={'ax': HOLE, 'sp': HOLE + 16}, fault=SS if t.amd else GP)
    flags = {'flags': 0x8d5}
    t.case('JMP into the hole keeps the flags', modes, 'jmp rax', regs={'ax': HOLE}, fault=GP, **flags)
    t.case('RET into the hole keeps the flags', modes, 'ret', poke={'STK': f'dq {HOLE}'}, fault=GP, **flags)
    t.case('CALL into the hole keeps the flags', modes, 'call rax', regs={'ax': HOLE}, fault=GP, **flags)


def beyond(t):
    """CODE_SMALL ends at 9FFFh, inside the room for a case's code."""
    small = {'seg': {'cs': S['CODE_SMALL']}}
    def case(name, code, **expect):
        faulting(t, name, 'p32', code, **small, **expect)

    out, last = 0xa000, 0x9fff
    case('JMP out of the code', 'jmp eax', regs={'ax': out})
    case('JMP far out of the code', 'jmp eax', regs={'ax': 0xfffffff0})
    case('JMP through memory out of the code', 'jmp [M]', poke={'M': f'dd {out}'})
    case('CALL out of the code', 'call eax', regs={'ax': out})
    case('CALL through memory out of the code', 'call [M]', poke={'M': f'dd {out}'})
    case('RET out of the code', 'ret', poke={'STK': f'dd {out}'})
    case('RET that releases out of the code', 'ret 12', poke={'STK': f'dd {out}'})
    case('direct JMP out of the code', f'db 0xe9\n dd {out} - SLOT - 5')
    case('direct CALL out of the code', f'db 0xe8\n dd {out} - SLOT - 5')
    case('Jcc out of the code', f'db 0x0f, 0x84\n dd {out} - SLOT - 6', flags=0x40)
    t.case('Jcc out of the code that is not taken', 'p32', f'db 0x0f, 0x85\n dd {out} - SLOT - 6', flags=0x40, **small)
    at = 0x9fc0
    for name, code, regs in (('JMP short', 'db 0xeb, 0x40', {}), ('JE short', 'db 0x74, 0x40', {}),
                             ('LOOP', 'db 0xe2, 0x40', {'cx': 0x12345678}), ('LOOPW', 'db 0x67, 0xe2, 0x40', {'cx': 0x12345678}),
                             ('LOOPE', 'db 0xe1, 0x40', {'cx': 0x12345678}), ('JECXZ', 'db 0xe3, 0x40', {'cx': 0})):
        for flags in (0, TF):
            t.case(f'{name} out of the code' + (' (single step)' if flags else ''), 'p32', f'mov ebx, {at}\n jmp ebx', regs=regs,
                   poke={f'{at}': code}, flags=0x40 | flags, fault=GP, rip=f'{at}', out={'bx': at}, **small,
                   **({'steps': ['.insn + 5', f'{at}']} if flags else {}))
    for name, code, regs in (('LOOP', 'db 0xe2, 0x40', {'cx': 1}), ('JECXZ', 'db 0xe3, 0x40', {'cx': 1})):
        t.case(f'{name} out of the code that is not taken', 'p32', f'mov ebx, {at}\n jmp ebx',
               regs=regs, poke={f'{at}': code + '\n ud2'}, rip=f'{at} + 2',
               out={'bx': at, 'cx': 0 if name == 'LOOP' else 1}, **small)
    # a branch to the last byte is good; what lies there is not whole
    t.case('JMP to the end of the code', 'p32', 'jmp eax', regs={'ax': last}, poke={f'{last}': 'db 0xb8'}, fault=GP,
           rip=f'{last}', **small)
    t.case('a CALL at the very end of the code returns out of it', 'p32', 'mov ebx, 0x9ffb\n jmp ebx\n.f: ret',
           poke={'0x9ffb': 'db 0xe8\n dd A(.f) - 0xa000'}, fault=GP, rip='.f', out={'bx': 0x9ffb, 'sp': STK - 4},
           mem={'STK - 4': 'dd 0xa000'}, **small)
    t.case('a CALL out of the code and a stack that can\'t be written', 'p32u', 'call eax', regs={'ax': out, 'sp': 2},
           poke={'GDT + CODE_SMALL + 5': 'db 0xfb'}, seg={'cs': S['CODE_SMALL'] | 3, 'ss': S['SMALL']}, fault=SS if t.amd else GP)
    # real mode and 16-bit code: an operand of 32 bits
    sixteen = 'real v86 p16'
    for name, code, expect in (('JMP', 'o32 jmp eax', {'regs': {'ax': 0x10000}}),
                               ('CALL', 'o32 call eax', {'regs': {'ax': 0x12345}}),
                               ('RET', 'o32 ret', {'poke': {'STK': 'dd 0x10000'}}),
                               ('RET that releases', 'o32 ret 6', {'poke': {'STK': 'dd 0x10000'}}),
                               ('direct JMP', 'db 0x66, 0xe9\n dd 0x10000', {}),
                               ('direct CALL', 'db 0x66, 0xe8\n dd 0x10000', {})):
        faulting(t, name + ' out of the code', sixteen, code, **expect)


def small_operands(t):
    """66 in 64-bit code: AMD cuts RIP to 16 bits and pushes two bytes, Intel ignores it."""
    if not t.amd:
        t.case('66 of 16 bits is ignored', 'l lu', 'db 0x66\n call .f\n.f: ud2', rip='.f', out={'sp': STK - 8})
        return
    modes = 'l lu'
    low = {'STK - 8': UNTOUCHED}
    pushed = {'STK - 8': 'db 0x55, 0x55, 0x55, 0x55, 0x55, 0x55\n dw A(.next)'}
    def case(name, code, mem=None, **expect):
        expect.setdefault('poke', low)
        for single, flags, steps in (('', 0, None), (' (single step)', TF, ['.there'])):
            t.case(name + ' of 16 bits' + single, modes, code, rip='.there',
                   mem=lambda m: (mem or low) if m.name == 'lu' else {},
                   **{**expect, 'flags': expect.get('flags', 0) | flags, 'steps': steps})

    junk = 0x1234567887650000
    there = '\n.next: nop\n nop\n.there: ud2'
    case('JMP rel16', 'db 0x66, 0xe9\n dw .there - .next' + there)
    case('JMP rel8', 'db 0x66, 0xeb, .there - .next' + there)
    case('CALL rel16', 'db 0x66, 0xe8\n dw .there - .next' + there, out={'sp': STK - 2}, mem=pushed)
    case('JE rel8', 'db 0x66, 0x74, .there - .next' + there, flags=0x40)
    case('JE rel16', 'db 0x66, 0x0f, 0x84\n dw .there - .next' + there, flags=0x40)
    case('JMP reg', 'db 0x66, 0xff, 0xe0\n.next: nop\n nop\n.there: ud2', regs={'ax': junk | SLOT + 5})
    case('JMP mem', 'db 0x66\n jmp [M]\n.next: nop\n.there: ud2',
         poke={**low, 'M': 'dw A(.there)\n dw 0x4444, 0x5555'})
    case('CALL reg', 'db 0x66, 0xff, 0xd0\n.next: nop\n nop\n.there: ud2', regs={'ax': junk | SLOT + 5}, out={'sp': STK - 2},
         mem=pushed)
    case('CALL mem', 'db 0x66\n call [M]\n.next: nop\n.there: ud2', out={'sp': STK - 2}, mem=pushed,
         poke={**low, 'M': 'dw A(.there)\n dw 0x4444, 0x5555'})
    case('RET', 'db 0x66, 0xc3' + there, poke={**low, 'STK': 'dw A(.there), 0x4444, 0x5555'}, out={'sp': STK + 2})
    case('RET that releases', 'db 0x66, 0xc2, 6, 0' + there, poke={**low, 'STK': 'dw A(.there), 0x4444, 0x5555'},
         out={'sp': STK + 8})
    case('LOOP', 'db 0x66, 0xe2, .there - .next' + there, regs={'cx': 0x100000000}, out={'cx': 0xffffffff})
    case('JRCXZ', 'db 0x66, 0xe3, .there - .next' + there, regs={'cx': 0})
    # from above 64 KiB to below
    for name, code, size in (('JMP rel16', '0x66, 0xe9', 2), ('JE rel16', '0x66, 0x0f, 0x84', 2),
                             ('JMP rel8', '0x66, 0xeb', 1)):
        here = 0x18ff0
        length = code.count(',') + 1 + size
        t.case(name + ' of 16 bits cuts RIP', modes, f'mov ebx, {here:#x}\n jmp rbx\n times 0x{0x20:x} nop\n.there: ud2' if size == 2 else
               f'mov ebx, {here:#x}\n jmp rbx\n.there: ud2', flags=0x40,
               poke={f'{here:#x}': f'db {code}\n d{"w" if size == 2 else "b"} (A(.there) - {(here + length) & 0xffff:#x})'
                     + (' & 0xffff' if size == 2 else '')},
               rip='.there', out={'bx': here})
    t.case('JNE of 16 bits that is not taken leaves RIP', modes, 'mov ebx, 0x10000\n jmp rbx', flags=0x40,
           poke={'0x10000': 'db 0x66, 0x75, 0x10\n ud2'}, rip='0x10003', out={'bx': 0x10000})
    t.case('CALL of 16 bits from above', modes, 'mov ebx, 0x10000\n jmp rbx\n.there: ud2', rip='.there',
           poke={'0x10000': 'db 0x66, 0xe8\n dw A(.there) - 4', **low}, out={'bx': 0x10000, 'sp': STK - 2},
           mem=lambda m: {'STK - 2': 'dw 4'} if m.name == 'lu' else {})
    # REX.W wins
    t.case('66 and REX.W are a CALL of 64 bits', modes, 'db 0x66, 0x48, 0xe8\n dd 0\n.there: ud2', rip='.there',
           out={'sp': STK - 8}, mem={'STK - 8': 'dq A(.there)'})
    t.case('66 and REX.W are a RET of 64 bits', modes, 'db 0x66, 0x48, 0xc3\n.there: ud2', rip='.there',
           poke={'STK': 'dq A(.there)'}, out={'sp': STK + 8})


def deep(t):
    """More calls under way than the translator keeps predictions of, and at each depth an instruction that runs alone."""
    t.case('deep recursion with an instruction behind MOV SS', 'p32 l',
           'mov ecx, 5000\n call .f\n jmp .end\n.f: mov ss, eax\n inc ebx\n dec ecx\n jz .r\n call .f\n.r: ret',
           regs=lambda m: {'ax': m.ss, 'bx': 0, 'sp': 0x40000}, out={'bx': 5000, 'cx': 0}, fmask=0x3f7700)
    # Every value of CS is a mode of its own, with a table of branches and predictions of its own.
    t.case('the same code in sixty segments, three times', 'real v86',
           'mov dx, 3\n.again: mov cx, 60\n.l: mov ax, cx\n push ax\n shl ax, 4\n mov bx, A(.n)\n sub bx, ax\n push bx\n retf\n'
           '.n: call .f\n dec cx\n jnz .l\n dec dx\n jnz .again\n jmp 0:A(.out)\n.f: inc si\n ret\n.out: nop',
           regs={'si': 0, 'cx': 0, 'dx': 0}, out={'si': 180, 'ax': None, 'bx': None}, fmask=0x3f7700)


def cases(t):
    noncanonical(t)
    beyond(t)
    small_operands(t)
    deep(t)
