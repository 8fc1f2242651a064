"""Single step over each kind of instruction, interrupt shadows, NMI blocking, double and triple faults, the order of
events (SDM 3A chapter 6; 3B 17.3)."""
from machine import *

S = SELECTORS
TF, IF = 0x100, 0x200
STK = LAYOUT['STK']
ICR = 0xfee00300
# Where QEMU's translator departs from the manuals: text of the name, modes, in what.
QEMU_DIFFERS = [
    ('STI and CLI', '', 'STI holds the trap'),
    ('LSS does not hold', '', 'it does'),
    ('HLT under TF', '', 'it halts'),
    ('an NMI is taken with IF clear', '', 'it comes at the end of the block'),
]


def steps(t, name, modes, code, at, **expect):
    """TF is set at the start; the traps must be at these labels, each with DR6.BS."""
    expect.setdefault('flags', TF)
    t.case('single step: ' + name, modes, code, steps=at, **expect)


def single_step(t):
    everything = names(lambda m: m.name != 'v86i0')
    steps(t, 'plain instructions', ALL, 'nop\n.a: inc ax\n.b: mov [M], al\n', ['.a', '.b', '.end'], out={'ax': None},
          fmask=0x3f7700)
    steps(t, 'jumps', ALL, 'jmp short .b\n.a: nop\n.b: jmp near .c\n nop\n.c: test al, al\n.d: jnz .e\n.e: nop',
          ['.b', '.c', '.d', '.e', '.end'],
          fmask=0x3f7700)
    steps(t, 'a taken branch to itself ends', 'p32 l', 'mov ecx, 3\n.a: loop .a\n.b: nop',
          ['.a', '.a', '.a', '.b', '.end'], out={'cx': 0})
    steps(t, 'calls and returns', ALL, 'call .f\n.a: nop\n jmp .end\n.f: nop\n.g: ret',
          ['.f', '.g', '.a', 'A(.a) + 1', '.end'])
    steps(t, 'indirect jumps', 'p32 p32u pg c32u', 'jmp eax\n nop\n.b: nop', ['.b', '.end'],
          regs={'ax': LAYOUT['SLOT'] + 3})
    steps(t, 'REP STOS traps after each iteration', ALL, 'rep stosb\n.b: nop', ['.insn', '.insn', '.b', '.end'],
          regs={'cx': 3, 'di': LAYOUT['M'], 'ax': 0x77}, out={'cx': 0, 'di': LAYOUT['M'] + 3},
          mem={'M': 'db 0x77, 0x77, 0x77, 0'})
    steps(t, 'REP MOVS', 'real p32 l lu', 'rep movsb\n.b: nop', ['.insn', '.b', '.end'],
          regs={'cx': 2, 'di': LAYOUT['M'] + 8, 'si': LAYOUT['M']},
          out={'cx': 0, 'di': LAYOUT['M'] + 10, 'si': LAYOUT['M'] + 2}, poke={'M': 'dw 0x1234'},
          mem={'M + 8': 'dd 0x1234'})
    steps(t, 'REPE CMPS ends at a difference', 'p32 l', 'repe cmpsb\n.b: nop', ['.insn', '.b', '.end'],
          regs={'cx': 9, 'di': LAYOUT['M'] + 8, 'si': LAYOUT['M']}, poke={'M': 'dw 0x1234'}, fmask=0x3f7700,
          out={'cx': 7, 'di': LAYOUT['M'] + 10, 'si': LAYOUT['M'] + 2}, setup='mov word [M + 8], 0x2234')
    steps(t, 'REP of nothing', ALL, 'rep stosb\n.b: nop', ['.b', '.end'], regs={'cx': 0, 'di': LAYOUT['M']})
    steps(t, 'REP INS', 'real p32 l', 'rep insb\n.b: nop', ['.insn', '.b', '.end'],
          regs={'cx': 2, 'di': LAYOUT['M'], 'dx': 0x2e0},
          out={'cx': 0, 'di': LAYOUT['M'] + 2})
    steps(t, 'STI and CLI', RING0, 'sti\n.b: cli\n.c: nop', ['.b', '.c', '.end'])
    steps(t, 'MOV ss holds the trap for one instruction', 'real p16 p32 p32u pg c32u l lu',
          'mov ss, ax\n.a: nop\n.b: nop', ['.b', '.end'],
          regs=lambda m: {'ax': m.ss})
    steps(t, 'POP ss holds the trap for one instruction', 'real v86 p16 p32 p32u c32u', 'pop ss\n.a: nop\n.b: nop',
          ['.b', '.end'],
          poke=lambda m: {'STK': f'dd {m.ss}'}, out=lambda m: {'sp': STK + m.bits // 8})
    steps(t, 'LSS does not hold the trap', 'p32 p32u l', 'lss esp, [M]\n.a: nop\n', ['.a', '.end'],
          poke=lambda m: {'M': f'dd STK\n dw {m.ss}'})
    steps(t, 'MOV ss and then a fault', 'p32 l', 'mov ss, ax\n.a: mov fs, bx', [], rip='.a',
          regs={'ax': S['DATA0'], 'bx': S['BEYOND']}, fault=GP, err=0x400)
    steps(t, 'POPF that sets TF traps after the next instruction', names(lambda m: m.name != 'v86i0' and m.bits != 64),
          'popf\n.a: nop\n.b: nop', ['.b', '.end'],
          flags=0, poke={'STK': 'dd 0x102'}, oflags=lambda m: m.flags & ~0x3000 | TF | (0x3000 if m.v86 else 0),
          out=lambda m: {'sp': STK + m.bits // 8})
    steps(t, 'POPF that clears TF traps once more', names(lambda m: m.name != 'v86i0' and m.bits != 64),
          'popf\n.a: nop\n.b: nop', ['.a'],
          poke={'STK': 'dd 2'}, oflags=lambda m: m.flags & ~0x3000 | (0x3000 if m.v86 else 0),
          out=lambda m: {'sp': STK + m.bits // 8})
    steps(t, 'PUSHF shows TF', everything, 'pushf', ['.end'], out=lambda m: {'sp': STK - m.bits // 8},
          mem=lambda m: {f'STK - {m.bits // 8}': f'dw {m.flags & 0xffff | TF:#x}'})
    steps(t, 'IRET that sets TF traps after the next instruction', 'real p16 p32 p32u',
          lambda m: ('iret' if m.bits == 16 else 'iretd') + '\n.a: nop\n.b: nop', ['.b', '.end'],
          flags=0, poke=lambda m: {'STK': f'd{"w" if m.bits == 16 else "d"} A(.a), {m.cs}, 0x102'},
          oflags=lambda m: 0x102,
          out=lambda m: {'sp': STK + 3 * m.bits // 8})
    steps(t, 'INT clears TF and traps not', 'p32 p32u l lu real p16', 'int 0x30', [], fault=0x30)
    steps(t, 'SYSCALL with TF masked', 'l', 'syscall', [], efer=1,
          setup='mov ecx, 0xc0000082\n mov eax, GATE\n xor edx, edx\n wrmsr\n mov ecx, 0xc0000081\n'
          ' mov edx, 0x00180038\n wrmsr\n mov ecx, 0xc0000084\n mov eax, 0x100\n xor edx, edx\n wrmsr', rip='GATE',
          oflags=2, ocs=0x38, oss=0x40,
          out={'cx': LAYOUT['SLOT'] + 2, 'r11': 0x102})
    steps(t, 'MOV CR', RING0, lambda m: f'mov {"rax" if m.code64 else "eax"}, cr0\n.a: nop', ['.a', '.end'],
          out={'ax': None})
    steps(t, 'RDMSR and CPUID', RING0, 'rdmsr\n.a: nop', ['.a', '.end'], regs={'cx': 0xc0000080},
          out={'ax': None, 'dx': None})
    steps(t, 'CPUID', ALL, 'cpuid\n.a: nop', ['.a', '.end'], regs={'ax': 0},
          out={'ax': None, 'bx': None, 'cx': None, 'dx': None})
    steps(t, 'SGDT', ALL, 'sgdt [M]\n.a: nop', ['.a', '.end'])
    steps(t, 'OUT', RING0, 'out 0x80, al\n.a: nop', ['.a', '.end'])
    steps(t, 'far JMP', 'p32 c32', 'jmp CODE0:A(.a)\n nop\n.a: nop', ['.a', '.end'])
    steps(t, 'MOV fs', ALL, 'mov fs, ax\n.a: nop', ['.a', '.end'], regs=lambda m: {'ax': m.ds})
    steps(t, 'a fault traps not', 'p32 lu', 'nop\n.a: nop\n|mov fs, bx', ['.a', '.insn'], regs={'bx': S['BEYOND'] + 3},
          fault=GP, err=0x400)
    t.case('HLT under TF traps instead of halting', 'p32', 'hlt\n.a: nop', flags=TF, steps=['.a', '.end'])
    t.case('INT3 under TF', 'p32 lu', 'int3', flags=TF, steps=[], fault=BP)
    # the T bit of DR6 and traps with other causes are in cases_tasks and cases_control


ENABLE = 'mov dword [0xfee000f0], 0x1ff\n'  # the local APIC, by software
EOI = 'mov dword [0xfee000b0], 0\n'        # of an earlier case
# An interrupt from the processor to itself, pending as IF is clear: vector 50h. Made before the case begins.
PENDING = f'{ENABLE}{EOI} mov dword [{ICR:#x}], 0x44050\n'


def send_nmi(m):
    """From the processor to itself: its APIC ID is 0. The address is in BX."""
    r = 'rbx' if m.code64 else 'ebx'
    return f'mov dword [{r} + 0x10], 0\n mov dword [{r}], 0x400\n'


def interrupts(t):
    expect = {'setup': PENDING, 'fault': 0x50, 'rip': '.there', 'oflags': IF | 2}
    t.case('STI holds interrupts for one instruction', 'p16 p32 pg pae l c32', 'sti\n nop\n.there: nop', **expect)
    t.case('STI; CLI lets no interrupt in', 'p32 l', 'sti\n cli\n nop\n sti\n nop\n.there:', **expect)
    t.case('the shadow of STI ends with one instruction', 'p32 l', 'sti\n nop\n.there: cli', **expect)
    t.case('STI with IF set holds nothing more', 'p32', 'sti\n sti\n.there: nop', **expect)
    t.case('POPF lets an interrupt in at once', 'p32 pg', 'push 0x202\n popf\n.there: nop', **expect)
    t.case('IRET lets an interrupt in at once', 'p32', 'iretd\n.there: nop',
           poke={'STK': 'dd A(.there), CODE0, 0x202'}, out={'sp': STK + 12}, **expect)
    t.case('HLT after STI is left by the interrupt behind it', 'p32 l', 'sti\n hlt\n.there: nop', **expect)
    t.case('an interrupt in ring 3', 'p32u lu c32u', 'nop', flags=IF, fault=0x50, rip='SLOT', setup=PENDING)
    t.case('an interrupt in v8086 mode does not look at IOPL', 'v86i0', 'nop', flags=IF, fault=0x50, rip='SLOT',
           setup=PENDING)
    t.case('CR8 holds an interrupt back',
           'l',
           'mov ecx, 5\n mov cr8, rcx\n sti\n nop\n nop\n cli\n xor ecx, ecx\n mov cr8, rcx\n sti\n nop\n.there: nop',
           setup=PENDING, fault=0x50, rip='.there', oflags=IF | 0x46, out={'cx': 0})
    nmi = {'IDT32 + 2 * 8': 'dw A(.nmi), 8, 0x8e00, 0', 'IDT64 + 2 * 16': 'dw A(.nmi), 0x38, 0x8e00, 0\n dq 0'}
    t.case('an NMI is taken with IF clear', 'p32 pg l', lambda m: send_nmi(m) + '.there: nop', regs={'bx': ICR},
           setup=ENABLE + EOI,
           fault=NMI, rip='.there')
    for ret in ('an IRET that works', 'an IRET that faults'):
        # in the first NMI: a second, which must wait; what ends the wait; and the second's return address
        def code(m, ret=ret):
            iret = 'iretq' if m.code64 else 'iretd'
            sp, cx = ('rsp', 'rcx') if m.code64 else ('esp', 'ecx')
            works = ret.endswith('works')
            return (f'xor edx, edx\n {send_nmi(m)} .first: nop\n jmp .end\n.nmi: inc edx\n cmp edx, 2\n je .second\n'
                    f' {send_nmi(m)} mov eax, edx\n'
                    f' {"" if works else f"mov dword [{sp} + {8 if m.code64 else 4}], BEYOND"}\n.iret: {iret}\n'
                    f'.second: mov {cx}, [{sp}]\n')
        t.case(f'an NMI in an NMI waits for {ret}', 'p32 pg l', code, regs={'bx': ICR}, setup=ENABLE + EOI, fmask=0,
               poke=nmi,
               out={'dx': 2, 'ax': 1, 'cx': None, 'sp': None},
               **({} if ret.endswith('works') else {'qemu': 'the fault leaves them blocked'}))


def double_faults(t):
    for name, why, poke, regs, code in (
            ('#GP in #GP', 'contributory on contributory',
             {'IDT32 + 13 * 8 + 2': 'dw BEYOND', 'IDT64 + 13 * 16 + 2': 'dw BEYOND'}, {'bx': S['BEYOND']},
             '|mov fs, bx'),
            ('#NP in #DE', 'contributory on contributory', {'IDT32 + 5': 'db 0x0e', 'IDT64 + 5': 'db 0x0e'}, {'cx': 0},
             '|div cl'),
            ('#GP in #PF', 'contributory on a page fault',
             {'IDT32 + 14 * 8 + 2': 'dw BEYOND', 'IDT64 + 14 * 16 + 2': 'dw BEYOND', 'PT32 + 0x40': 'dd 0',
              'PT64 + 0x80': 'dd 0'},
             {'bx': 0x10000}, '|mov eax, [%s]')):
        paged = 'PF' in name
        t.case(f'{name}: {why} is a double fault', 'pg l' if paged else 'p32 pg pae l',
               lambda m, code=code: code.replace('%s', 'rbx' if m.code64 else 'ebx'), poke=lambda m,
               poke=poke: {**poke, 'TSS_DF + 28': f'dd {m.cr3:#x}'}, regs=regs, fault=DF, rip='.insn',
               cr2=0x10000 if paged else None)
    t.case('a benign exception that meets a fault is that fault', 'p32 l', '|ud2',
           poke={'IDT32 + 6 * 8 + 2': 'dw BEYOND', 'IDT64 + 6 * 16 + 2': 'dw BEYOND'},
           fault=GP, err=0x401, qemu='it sets no EXT')
    # the stack of ring 0 in a page that is not there: the page fault of the ring change cannot be delivered
    t.case('no stack for a page fault', 'pgu', '|mov eax, [0x10000]',
           poke={'PT32 + 0x40': 'dd 0', 'TSS32 + 4': 'dd 0x12000', 'PT32 + 0x44': 'dd 0', 'TSS_DF + 28': 'dd PD32'},
           fault=DF, rip='.insn', cr2=0x11ffc)
    t.case('no stack for a page fault', 'lu', '|mov eax, [0x10000]',
           poke={'PT64 + 0x80': 'dd 0', 'TSS64 + 4': 'dq 0x12000', 'PT64 + 0x88': 'dd 0'}, fault=DF, rip='.insn',
           cr2=lambda m: None)
    t.case('a page fault while delivering #GP is a page fault', 'pgu', '|hlt',
           poke={'TSS32 + 4': 'dd 0x12000', 'PT32 + 0x44': 'dd 0', 'IDT32 + 14 * 8': 'dw 0, TASK_DF, 0x8500, 0',
                 'TSS_DF + 28': 'dd PD32'},
           fault='task', err=2, mem={'TSS32 + 32': 'dd A(.insn), 0x10002'}, qemu='it saves no RF')


def triple_faults(t):
    t.case('no IDT', 'real p32 l pg', 'lidt [M]\n|ud2', fault='shutdown')
    t.case('no double fault handler', 'p32 l', '|ud2', poke={'IDT32 + 6 * 8 + 5': 'db 0', 'IDT64 + 6 * 16 + 5': 'db 0',
            'IDT32 + 8 * 8 + 5': 'db 0',
                                                             'IDT64 + 8 * 16 + 5': 'db 0',
            'IDT32 + 13 * 8 + 5': 'db 0', 'IDT64 + 13 * 16 + 5': 'db 0'}, fault='shutdown')


def cases(t):
    single_step(t)
    interrupts(t)
    double_faults(t)
    triple_faults(t)
