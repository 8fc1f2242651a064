"""PUSHF POPF CLI STI in every mode, with IOPL, VME and PVI (SDM 2A, 2B; 3B 20.3, 20.4), and INT in v8086 mode."""
from machine import *

CF, PF_, AF, ZF, SF, TF, IF, DF_, OF_, NT, AC_, VIF, VIP, ID = (
    1, 4, 0x10, 0x40, 0x80, 0x100, 0x200, 0x400, 0x800, 0x4000, 0x40000, 0x80000, 0x100000, 0x200000)
IOPL = 0x3000
ARITH = CF | PF_ | AF | ZF | SF | OF_
VME, PVI = 1, 2

# QEMU knows the two bits in CR4 but not what they enable, and VIF and VIP stick there.
NO_VME = 'it has no VME for this'


def image(mode, flags):
    """What PUSHF shows of the mode's flags and these."""
    return f'd{ {16: "w", 32: "d", 64: "q"}[mode.bits]} {(mode.flags | flags) & ~VM & ((1 << mode.bits) - 1):#x}'


def push(t):
    for flags in (0, ARITH | DF_, NT, IF):
        t.case(f'PUSHF shows {flags:#x}', names(lambda m: m.name != 'v86i0'), 'pushf', flags=flags,
               out=lambda m: {'sp': LAYOUT['STK'] - m.bits // 8},
               mem=lambda m: {f'STK - {m.bits // 8}': image(m, flags)})
    t.case('PUSHFD does not show VM', 'v86', 'pushfd', flags=ID, out={'sp': LAYOUT['STK'] - 4},
           mem={'STK - 4': f'dd {IOPL | 2 | ID:#x}'})
    t.case('PUSHFD shows AC ID', 'real p16 p32', 'pushfd\n pop eax\n or eax, 0x240000\n push eax\n popfd\n pushfd',
           out={'ax': None, 'sp': LAYOUT['STK'] - 4},
           mem={'STK - 4': 'dd 0x240002'}, fmask=0x7700)
    t.case('PUSHF with IOPL 0', 'v86i0', 'pushf', fault=GP)
    t.case('POPF with IOPL 0', 'v86i0', 'popf', fault=GP)
    t.case('PUSHFD with IOPL 0 and VME', 'v86i0', 'pushfd', cr4=VME, fault=GP)
    t.case('POPFD with IOPL 0 and VME', 'v86i0', 'popfd', cr4=VME, fault=GP)
    for vif in (0, VIF):
        t.case(f'PUSHF with VME shows VIF as IF and IOPL as 3, VIF {vif:#x}', 'v86i0', 'pushf', qemu=NO_VME, cr4=VME,
               flags=vif | CF,
               out={'sp': LAYOUT['STK'] - 2}, mem={'STK - 2': f'dw {IOPL | 3 | (IF if vif else 0):#x}'})
        t.case(f'PUSHF with VME and IF, VIF {vif:#x}', 'v86i0', 'pushf', qemu=NO_VME, cr4=VME, flags=vif | IF,
               out={'sp': LAYOUT['STK'] - 2}, mem={'STK - 2': f'dw {IOPL | 2 | (IF if vif else 0):#x}'})


def pop(t):
    everything = ARITH | IF | DF_ | NT | IOPL | AC_ | VIF | VIP | ID | VM | 0x10000

    def result(m, old, image, iopl, size):
        mask = ARITH | DF_ | NT
        if size > 2:
            mask |= AC_ | ID
        if m.ring == 0:
            mask |= IOPL | IF
        elif m.ring <= iopl or m.v86:
            mask |= IF
        return (old & ~mask) | (image & mask)

    for image, old in ((everything, 0), (0, ARITH | DF_ | NT | IF), (IF, 0), (IOPL, 0), (AC_ | ID, 0)):
        for iopl in (0, 1, 3):
            def which(m):
                return m.name != 'v86i0' and m.name not in ('pg', 'pgu', 'paeu') and not (m.v86 and iopl != 3)
            for size in (2, 4):
                def code(m, size=size):
                    return ('popf' if m.code64 or size * 8 == m.bits else 'popfd' if size == 4
                            else 'o16 popf') + '\n cld'
                t.case(f'POPF of {image:#x} with {old:#x}, IOPL {iopl}, {size} bytes',
                       names(lambda m: which(m) and not (m.code64 and size == 2)),
                       code, flags=lambda m: old | iopl << 12, poke={'STK': f'dq {image:#x}'},
                       out=lambda m: {'sp': LAYOUT['STK'] + (8 if m.code64 else size)},
                       oflags=lambda m: result(m, m.flags | old | iopl << 12, image, iopl, size) & ~DF_ | 2,
                       qemu='it loads VIF' if image & VIF else None)
    t.case('POPF leaves VIP and VIF', 'p32u', 'popfd', flags=VIF | VIP, poke={'STK': 'dd 2'}, oflags=VIF | VIP | 2,
           out={'sp': LAYOUT['STK'] + 4}, qemu=NO_VME)
    # VME
    t.case('POPF with VME sets VIF', 'v86i0', 'popf', cr4=VME, poke={'STK': f'dw {IF | CF:#x}'},
           oflags=VM | VIF | CF | 2,
           out={'sp': LAYOUT['STK'] + 2}, qemu=NO_VME)
    t.case('POPF with VME clears VIF', 'v86i0', 'popf', cr4=VME, flags=VIF | IF, poke={'STK': 'dw 0x2'},
           oflags=VM | IF | 2,
           out={'sp': LAYOUT['STK'] + 2}, qemu=NO_VME)
    t.case('POPF with VME leaves IOPL', 'v86i0', 'popf', cr4=VME, poke={'STK': f'dw {IOPL:#x}'}, oflags=VM | 2,
           out={'sp': LAYOUT['STK'] + 2}, qemu=NO_VME)
    t.case('POPF with VME of IF with VIP', 'v86i0', 'popf', cr4=VME, flags=VIP, poke={'STK': f'dw {IF:#x}'}, fault=GP,
           qemu=NO_VME)
    t.case('POPF with VME of TF', 'v86i0', 'popf', cr4=VME, poke={'STK': f'dw {TF:#x}'}, fault=GP)
    t.case('IRET with VME', 'v86i0', 'iret', cr4=VME, poke={'STK': f'dw A(.end), 0, {IF | CF:#x}'},
           oflags=VM | VIF | CF | 2,
           out={'sp': LAYOUT['STK'] + 6}, qemu=NO_VME)
    t.case('IRET with VME of IF with VIP', 'v86i0', 'iret', cr4=VME, flags=VIP,
           poke={'STK': f'dw A(.end), 0, {IF:#x}'}, fault=GP, qemu=NO_VME)
    t.case('IRET with IOPL 0', 'v86i0', 'iret', poke={'STK': 'dw A(.end), 0, 2'}, fault=GP)
    t.case('IRETD with VME', 'v86i0', 'iretd', cr4=VME, poke={'STK': 'dd A(.end), 0, 2'}, fault=GP, qemu=NO_VME)


def interrupt_flag(t):
    for insn, start, end in (('cli', IF, 0), ('sti', 0, IF)):
        t.case(f'{insn} in ring 0', RING0, insn, flags=start, oflags=lambda m: m.flags | end)
        t.case(f'{insn} with IOPL 0', OUTERP + ' v86i0', insn, flags=start, fault=GP)
        t.case(f'{insn} with IOPL below CPL', 'p32u c32u lu', insn, flags=start | 0x2000, fault=GP)
        t.case(f'{insn} with IOPL 3', OUTERP + ' v86', insn, flags=start | IOPL, oflags=lambda m: m.flags | IOPL | end)
        t.case(f'{insn} with IOPL equal to CPL', 'p32r1', insn, flags=start | 0x1000, oflags=0x1002 | end)
        t.case(f'{insn} with PVI', 'p32u p16u pgu', insn, cr4=PVI, flags=VIF if start else 0,
               oflags=lambda m: m.flags | (VIF if end else 0), qemu=NO_VME)
        t.case(f'{insn} with PVI in ring 1', 'p32r1', insn, cr4=PVI, fault=GP)
        t.case(f'{insn} with VME', 'v86i0', insn, cr4=VME, flags=VIF if start else 0,
               oflags=VM | 2 | (VIF if end else 0), qemu=NO_VME)
        t.case(f'{insn} with PVI, not VME', 'v86i0', insn, cr4=PVI, fault=GP)
        t.case(f'{insn} with VME, not PVI', 'p32u', insn, cr4=VME, fault=GP)
    t.case('STI with VME and VIP', 'v86i0', 'sti', cr4=VME, flags=VIP, fault=GP, qemu=NO_VME)
    t.case('STI with PVI and VIP', 'p32u', 'sti', cr4=PVI, flags=VIP, fault=GP, qemu=NO_VME)
    t.case('CLI with VME and VIP', 'v86i0', 'cli', cr4=VME, flags=VIP | VIF, oflags=VM | VIP | 2, qemu=NO_VME)
    t.case('STI is undone by CLI at once', 'p32 l', 'sti\n cli')


def v86_interrupts(t):
    """Table 20-2: INT n goes to the monitor or, with VME and a clear bit in the bitmap, to the 8086 program."""
    t.case('INT n with IOPL 0', 'v86i0', 'int 0x30', fault=GP)
    t.case('INT n with IOPL 3', 'v86', 'int 0x30', fault=0x30)
    t.case('INT n with IOPL 3 and a DPL 0 gate', 'v86', 'int 0x31', fault=GP, err=0x31 * 8 + 2)
    t.case('INT3 does not look at IOPL', 'v86 v86i0', 'int3', fault=BP)
    t.case('INTO does not look at IOPL', 'v86 v86i0', 'into', flags=OF_, fault=OF)
    t.case('INT 3 of two bytes looks at IOPL', 'v86i0', 'db 0xcd, 3', fault=GP)
    t.case('INT n with VME, bit set, IOPL 0', 'v86i0', 'int 0x30', cr4=VME, fault=GP)
    t.case('INT n with VME, bit set, IOPL 3', 'v86', 'int 0x30', cr4=VME, fault=0x30)
    bit = {'TSS32 + 0x68 + 0x30 / 8': 'db 0xfe', '0x30 * 4': 'dw A(.handler), 0'}
    body = 'int 0x30\n.next: ud2\n.handler: ud2'
    t.case('INT n with VME, bit clear, IOPL 0', 'v86i0', body, cr4=VME, poke=bit, flags=VIF | CF, rip='.handler',
           oflags=VM | CF | 2, out={'sp': LAYOUT['STK'] - 6},
           mem={'STK - 6': f'dw A(.next), 0, {IOPL | IF | CF | 2:#x}'}, qemu=NO_VME)
    t.case('INT n with VME, bit clear, IOPL 0, IF stays', 'v86i0', body, cr4=VME, poke=bit, flags=IF, rip='.handler',
           oflags=VM | IF | 2, out={'sp': LAYOUT['STK'] - 6}, mem={'STK - 6': f'dw A(.next), 0, {IOPL | 2:#x}'},
           qemu=NO_VME)
    t.case('INT n with VME, bit clear, IOPL 3', 'v86', body, cr4=VME, poke=bit, flags=IF, rip='.handler',
           oflags=VM | IOPL | 2, out={'sp': LAYOUT['STK'] - 6}, mem={'STK - 6': f'dw A(.next), 0, {IOPL | IF | 2:#x}'},
           qemu=NO_VME)
    t.case('exceptions are not redirected', 'v86 v86i0', 'ud2', cr4=VME,
           poke={'TSS32 + 0x68': 'dd 0', '6 * 4': 'dw A(.end), 0'}, fault=UD)


def cases(t):
    push(t)
    pop(t)
    interrupt_flag(t)
    v86_interrupts(t)
