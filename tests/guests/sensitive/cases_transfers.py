"""Far JMP, CALL and RET, call gates, INT through every kind of gate, IRET (SDM 2A, 2B; 3A 5.8, 6.12 to 6.14)."""
from machine import *

S = SELECTORS
STK, STK0, STK1 = LAYOUT['STK'], LAYOUT['STK0'], LAYOUT['STK1']
NT, IOPL, AC_, ID, IF, VIF, VIP = 0x4000, 0x3000, 0x40000, 0x200000, 0x200, 0x80000, 0x100000

# Where QEMU's translator departs from the manuals: text of the name, modes, in what.
QEMU_DIFFERS = [
    ('far to code with L and D', '', 'it takes them'),
    ('far to code marks it accessed', '', 'it does not'),
    ('CALL far to an offset beyond the limit', '', 'its error code is the selector'),
    ('JMP far to a gate to absent code', '', 'it raises #GP'),
    ('to a gate beyond the limit', '', 'it does not check'),
    ('gate to conforming code', 'p32u lu', 'it changes the ring, or keeps the RPL'),
    ('an absent inner SS', '', 'it raises #TS'),
    ('RET far beyond the limit', '', 'it does not check'),
    ('with an SS of absent data', '', 'it raises #NP'),
    ('INT through a gate of ring 0', 'c16u c32u lu', 'its error code has the index times 16'),
    ('INT through an absent gate', 'c16u c32 c32u l lu', 'its error code has the index times 16'),
    ('INT through no gate', 'c16u c32 c32u l lu', 'its error code has the index times 16'),
    ('beyond the IDT', 'c16u c32 c32u l lu', 'its error code has the index times 16'),
    ('INT through a gate beyond its code segment', '', 'it does not check'),
    ('INT1', '', 'it does not have it'),
    ('INT 1 looks at the DPL', 'c16u c32u lu', 'its error code has the index times 16'),
    ('INT3 looks at the DPL', 'lu', 'its error code has the index times 16'),
    ('fault in delivery has EXT', '', 'it sets no EXT'),
    ('a v8086 program goes to ring 0 only', '', 'it goes to ring 1'),
    ('IRET to compatibility mode with a null SS', '', 'it takes it'),
    ('IRET to code with L and D', '', 'it takes them'),
    ('IRET beyond the limit', '', 'it does not check'),
    ('IRET to v8086 mode from ring 3', '', 'it goes there'),
]

SHORT_TSS = 'mov word [GDT + 0x80], 0x10'  # room for the stack of ring 0 only


def word(m):
    return 'dw' if m.bits == 16 else 'dd'


def far(t, op, name, modes, selector, offset='A(.there)', fault=None, err=0, **expect):
    """JMP or CALL far through memory, to .there unless told otherwise."""
    expect.setdefault('rip', None if fault else '.there' if offset == 'A(.there)' else offset)
    expect.setdefault('poke', {})
    poke = expect.pop('poke')
    t.case(f'{op.upper()} far to {name}',
           modes, lambda m: f'{op} far {"word" if m.bits == 16 else "dword"} [M]\n.next: ud2\n.there: ud2',
           poke=lambda m: {**poke, 'M': f'{word(m)} {offset}\n dw {selector}'}, fault=fault, err=err, **expect)


def direct(t):
    zero, user = 'p32 pg c32', 'p32u c32u'
    both = ('jmp', 'call')
    for op in both:
        def pushed(cs, op=op, size=4):
            return {} if op == 'jmp' else {f'STK - {2 * size}': f'{ {2: "dw", 4: "dd"}[size]} A(.next), {cs}'}
        def sp(size=4, op=op):
            return {'sp': STK - (2 * size if op == 'call' else 0)}
        far(t, op, 'code of ring 0', zero, S['CODE0'], ocs=S['CODE0'], mem=pushed(S['CODE0']), out=sp())
        far(t, op, 'code of ring 3', user, S['CODE3'], ocs=S['CODE3'], mem=pushed(S['CODE3']), out=sp())
        far(t, op, 'code of the LDT', user, S['L_CODE3'], ocs=S['L_CODE3'], mem=pushed(S['CODE3']), out=sp())
        far(t, op, 'execute-only code', user, S['EXEC_ONLY'], ocs=S['EXEC_ONLY'], out=sp())
        far(t, op, 'another size of code', 'p32', S['CODE16_0'], ocs=S['CODE16_0'], out=sp())
        far(t, op, 'a smaller RPL', user, S['CODE3'] & ~3, ocs=S['CODE3'], out=sp())
        far(t, op, 'conforming code', zero, S['CONFORMING'], ocs=S['CONFORMING'], out=sp())
        far(t, op, 'conforming code of an inner ring', user, S['CONFORMING'], ocs=S['CONFORMING'] | 3,
            mem=pushed(S['CODE3']), out=sp())
        far(t, op, 'conforming code with any RPL', zero, S['CONFORMING'] | 3, ocs=S['CONFORMING'], out=sp())
        far(t, op, 'conforming code of an outer ring', zero, S['CONFORMING3'], fault=GP, err=S['CONFORMING3'])
        far(t, op, 'a larger RPL', zero, S['CODE0'] | 3, fault=GP, err=S['CODE0'])
        far(t, op, 'code of an outer ring', zero + ' l', S['CODE3'], fault=GP, err=S['CODE3'] & ~3)
        far(t, op, 'code of an inner ring', user + ' lu', S['CODE0'], fault=GP, err=S['CODE0'])
        far(t, op, 'data', zero + ' l', S['DATA0'], fault=GP, err=S['DATA0'])
        far(t, op, 'null', zero + ' ' + user + ' l lu', 3, fault=GP, err=0)
        far(t, op, 'nothing', zero + ' l lu', S['BEYOND'], fault=GP, err=S['BEYOND'])
        far(t, op, 'an LDT', 'p32 l', S['LOCAL'], fault=GP, err=S['LOCAL'])
        far(t, op, 'a reserved type', 'p32 l', S['RESERVED'], fault=GP, err=S['RESERVED'])
        far(t, op, 'absent code', zero, S['CODE0_NP'], fault=NP, err=S['CODE0_NP'])
        far(t, op, 'absent code', 'l c32', S['CODE64_NP'], fault=NP, err=S['CODE64_NP'])
        far(t, op, 'an offset beyond the limit', 'p32 c32', S['CODE_SMALL'], offset='0xa000', fault=GP, err=0)
        far(t, op, 'code with L and D', 'c32 l', S['CODE64_D'], fault=GP, err=S['CODE64_D'])
        far(t, op, '64-bit code from compatibility mode', 'c32u', S['CODE64_3'], ocs=S['CODE64_3'], out=sp(),
            mem=pushed(S['CODE3']))
        far(t, op, 'compatibility mode from 64-bit code', 'lu', S['CODE3'], ocs=S['CODE3'], out=sp(),
            mem=pushed(S['CODE64_3']))
        far(t, op, '64-bit code', 'l', S['CODE64_0'], ocs=S['CODE64_0'], out=sp(), mem=pushed(S['CODE64_0']))
        far(t, op, 'another segment', 'p16', S['CODE16_0'], ocs=S['CODE16_0'], out=sp(2),
            mem=pushed(S['CODE16_0'], size=2))
        t.case(f'{op.upper()} far with an immediate', 'p32', f'{op} CODE0:A(.there)\n.next: ud2\n.there: ud2',
               rip='.there',
               out=sp(), mem=pushed(S['CODE0']))
        t.case(f'{op.upper()} far with an immediate', 'real v86',
               f'{op} 0x900:A(.there) - 0x9000\n.next: ud2\n.there: ud2',
               rip='A(.there) - 0x9000', ocs=0x900, out=sp(2), mem=pushed(0, size=2))
        t.case(f'{op.upper()} far with an immediate is gone', 'l lu',
               'db ' + {'jmp': '0xea', 'call': '0x9a'}[op] + ', 0, 0, 0, 0, 8, 0',
               fault=UD)
        t.case(f'{op.upper()} far through a register', ALL, 'db 0xff, ' + {'jmp': '0xe8', 'call': '0xd8'}[op],
               fault=UD)
        far(t, op, 'code marks it accessed', 'p32', S['CODE0'], poke={'GDT + 8 + 5': 'db 0x9a'}, ocs=S['CODE0'],
            out=sp(),
            mem={'GDT + 8 + 5': 'db 0x9b'})
    t.case('CALL far with no room on the stack', 'p32u', 'call CODE3:A(.end)', seg={'ss': S['SMALL']},
           regs={'sp': 0x106}, fault=SS,
           qemu=NO_LIMITS)
    t.case('CALL far with a 16-bit operand', 'p32', 'o16 call far [M]\n.next: ud2\n.there: ud2',
           poke={'M': 'dw A(.there), CODE0'},
           rip='.there', out={'sp': STK - 4}, mem={'STK - 4': 'dw A(.next), CODE0'})


def gates(t):
    def frame(*values):
        return 'dd ' + ', '.join(str(v) for v in values)
    for op in ('jmp', 'call'):
        call = op == 'call'
        sp = {'sp': STK - 8} if call else {}
        far(t, op, 'a gate', 'p32', S['GATE3'], rip='GATE', out=sp,
            mem={'STK - 8': frame('A(.next)', 8)} if call else {})
        far(t, op, 'a gate of ring 0', 'p32', S['GATE0'], rip='GATE', out=sp)
        far(t, op, 'a gate of ring 0 with RPL 3', 'p32', S['GATE0'] | 3, fault=GP, err=S['GATE0'])
        far(t, op, 'a gate of ring 0', 'p32u', S['GATE0'], fault=GP, err=S['GATE0'])
        far(t, op, 'an absent gate', 'p32 p32u', S['GATE3_NP'], fault=NP, err=S['GATE3_NP'] & ~3)
        far(t, op, 'a gate to null', 'p32 p32u', S['GATE3_NULL'], fault=GP, err=0)
        far(t, op, 'a gate to data', 'p32 p32u', S['GATE3_DATA'], fault=GP, err=S['DATA0'])
        far(t, op, 'a gate to absent code', 'p32', S['GATE3_CODE_NP'], fault=NP, err=S['CODE0_NP'])
        far(t, op, 'a gate beyond the limit', 'p32', S['GATE3_LIMIT'], fault=GP, err=0)
        far(t, op, 'a gate to conforming code', 'p32u', S['GATE3_CONF'], rip='GATE', ocs=S['CONFORMING'] | 3, out=sp)
        far(t, op, 'a 64-bit gate', 'l', S['GATE64'], rip='GATE', out={'sp': STK - 16} if call else {},
            mem={'STK - 16': 'dq A(.next), CODE64_0'} if call else {})
        far(t, op, 'a 64-bit gate to conforming code', 'lu', S['GATE64_CONF'], rip='GATE', ocs=S['CONFORMING64'] | 3,
            out={'sp': STK - 16} if call else {})
        far(t, op, 'a gate of ring 0', 'lu c32u', S['GATE64_0'], fault=GP, err=S['GATE64_0'])
        far(t, op, 'a 64-bit gate to 32-bit code', 'l lu c32u', S['GATE64_32'], fault=GP, err=S['CODE0'])
        far(t, op, 'a 64-bit gate with a noncanonical target', 'l lu' if call else 'l', S['GATE64_FAR'], fault=GP,
            err=0, qemu='it does not check')
        far(t, op, 'a 64-bit gate whose upper half has a type', 'l lu', S['GATE64_TYPE'], fault=GP,
            err=S['GATE64_TYPE'] & ~3)
        far(t, op, 'a 16-bit gate in long mode', 'l', S['GATE3_16'], fault=GP, err=S['GATE3_16'] & ~3)
        far(t, op, 'a task gate in long mode', 'l', S['GATE_B'], fault=GP, err=S['GATE_B'] & ~3)
        far(t, op, 'a TSS in long mode', 'l', S['TASK64'], fault=GP, err=S['TASK64'])
        # a gate's upper half beyond the table
        far(t, op, 'a 64-bit gate cut by the table', 'l', S['LAST'], poke={'GDT + 0x3f8 + 5': 'db 0x8c'}, fault=GP,
            err=S['LAST'])
    far(t, 'jmp', 'a gate to an inner ring', 'p32u', S['GATE3'], fault=GP, err=S['CODE0'])
    far(t, 'jmp', 'a gate to an inner ring', 'lu', S['GATE64'], fault=GP, err=S['CODE64_0'])
    far(t, 'call', 'a gate to ring 0', 'p32u pgu', S['GATE3'], rip='GATE', ocs=S['CODE0'], oss=S['DATA0'],
        out={'sp': STK0 - 16},
        mem={'STK0 - 16': frame('A(.next)', S['CODE3'], STK, S['DATA3'])})
    far(t, 'call', 'a gate to ring 0 with two parameters', 'p32u', S['GATE3_2'], rip='GATE', ocs=S['CODE0'],
        oss=S['DATA0'],
        out={'sp': STK0 - 24}, poke={'STK': 'dd 0x11, 0x22'},
        mem={'STK0 - 24': frame('A(.next)', S['CODE3'], 0x11, 0x22, STK, S['DATA3'])})
    far(t, 'call', 'a 16-bit gate to ring 0', 'p32u', S['GATE3_16'], rip='GATE', ocs=S['CODE0'], oss=S['DATA0'],
        out={'sp': STK0 - 8},
        mem={'STK0 - 8': f'dw A(.next), CODE3, STK, DATA3'})
    far(t, 'call', 'a 16-bit gate to ring 0 with two parameters', 'p32u', S['GATE3_16_2'], rip='GATE', ocs=S['CODE0'],
        oss=S['DATA0'],
        out={'sp': STK0 - 12}, poke={'STK': 'dw 0x11, 0x22'},
        mem={'STK0 - 12': f'dw A(.next), CODE3, 0x11, 0x22, STK, DATA3'})
    far(t, 'call', 'a gate to ring 1', 'p32u', S['GATE3_1'], rip='GATE', ocs=S['CODE1'], oss=S['DATA1'],
        out={'sp': STK1 - 16},
        oseg={}, mem={'STK1 - 16': frame('A(.next)', S['CODE3'], STK, S['DATA3'])})
    # ring 1, as the fault itself needs the stack of ring 0
    for why, poke, fault, err in (
            ('a null inner SS', {'TSS32 + 16': 'dw 1'}, TS, 0),
            ('an inner SS of another RPL', {'TSS32 + 16': 'dw 0x68'}, TS, 0x68),
            ('an inner SS of another DPL', {'TSS32 + 16': 'dw 0x79'}, TS, 0x78),
            ('an inner SS that is code', {'TSS32 + 16': 'dw CODE1'}, TS, 0x60),
            ('an inner SS that is nothing', {'TSS32 + 16': 'dw BEYOND + 1'}, TS, S['BEYOND']),
            ('an absent inner SS', {'GDT + 0x68 + 5': 'db 0x33'}, SS, 0x68),
            ('a TSS too short', {}, TS, S['TASK'])):
        far(t, 'call', 'a gate with ' + why, 'p32u', S['GATE3_1'], poke=poke, fault=fault, err=err,
            setup='' if poke else SHORT_TSS)
    far(t, 'call', 'a gate to ring 0', 'lu', S['GATE64'], rip='GATE', ocs=S['CODE64_0'], oss=0, out={'sp': STK0 - 32},
        mem={'STK0 - 32': f'dq A(.next), CODE64_3, STK, DATA3'})
    far(t, 'call', 'a gate to ring 0', 'c32u', S['GATE64'], rip='GATE', ocs=S['CODE64_0'], oss=0,
        out={'sp': STK0 - 32},
        mem={'STK0 - 32': f'dq A(.next), CODE3, STK, DATA3'})


def returns(t):
    def ret(name, modes, selector, extra='', code='retf', fault=None, err=0, **expect):
        expect.setdefault('rip', None if fault else '.there')
        expect.setdefault('poke', {})
        poke = expect.pop('poke')
        t.case('RET far ' + name, modes, code + '\n.there: ud2',
               poke=lambda m: {**poke, 'STK': f'{word(m)} A(.there), {selector}{extra}'}, fault=fault, err=err,
               **expect)

    outer = ', STK - 0x100, DATA3'
    null = {'ds': 0, 'es': 0, 'fs': 0, 'gs': 0}
    ret('to the same ring', 'p32 c32', S['CODE0'], out={'sp': STK + 8})
    ret('to the same ring', 'p32u c32u', S['CODE3'], out={'sp': STK + 8})
    ret('to the same ring, releasing', 'p32', S['CODE0'], code='retf 0x10', out={'sp': STK + 0x18})
    ret('to ring 3', 'p32 pg', S['CODE3'], outer, ocs=S['CODE3'], oss=S['DATA3'], out={'sp': STK - 0x100}, oseg=null)
    ret('to ring 3, releasing', 'p32', S['CODE3'], ', 0, 0, STK - 0x100, DATA3', code='retf 8', ocs=S['CODE3'],
        oss=S['DATA3'],
        out={'sp': STK - 0x100 + 8}, oseg=null)
    ret('to ring 3 keeps outer and conforming segments', 'p32', S['CODE3'], outer, ocs=S['CODE3'], oss=S['DATA3'],
        out={'sp': STK - 0x100}, seg={'ds': S['DATA3'], 'es': S['CONFORMING'], 'fs': S['DATA1'], 'gs': S['CODE3']},
        oseg={'ds': S['DATA3'], 'es': S['CONFORMING'], 'fs': 0, 'gs': S['CODE3']})
    ret('to ring 1', 'p32', S['CODE1'], ', STK - 0x100, DATA1', ocs=S['CODE1'], oss=S['DATA1'],
        out={'sp': STK - 0x100}, oseg=null)
    ret('to an inner ring', 'p32u', S['CODE0'], fault=GP, err=S['CODE0'])
    ret('to null', 'p32 p32u l', 0, fault=GP, err=0)
    ret('to data', 'p32', S['DATA0'], fault=GP, err=S['DATA0'])
    ret('to nothing', 'p32', S['BEYOND'], fault=GP, err=S['BEYOND'])
    ret('to an RPL above DPL', 'p32', S['CODE0'] | 3, outer, fault=GP, err=S['CODE0'])
    ret('to conforming code of an inner ring', 'p32', S['CONFORMING'] | 3, outer, ocs=S['CONFORMING'] | 3,
        oss=S['DATA3'],
        out={'sp': STK - 0x100}, oseg=null)
    ret('to conforming code with RPL below DPL', 'p32', S['CONFORMING3'], fault=GP, err=S['CONFORMING3'])
    ret('to absent code', 'p32', S['CODE0_NP'], fault=NP, err=S['CODE0_NP'])
    ret('to absent code of ring 3', 'p32', S['CODE3_NP'], outer, fault=NP, err=S['CODE3_NP'] & ~3)
    ret('beyond the limit', 'p32', S['CODE_SMALL'], fault=GP, err=0, poke={}, code='mov dword [STK], 0xa000\n|retf')
    for name, sel, fault, err in (('null', 3, GP, 0), ('another RPL', 0x20, GP, 0x20), ('DPL 0', 0x13, GP, 0x10),
                                  ('code', S['CODE3'], GP, 0x18),
                                  ('read-only data', S['READ_ONLY'], GP, 0xe8), ('nothing', 0x403, GP, 0x400),
                                  ('absent data', S['DATA3_NP'], SS, 0xe0)):
        ret(f'to ring 3 with an SS of {name}', 'p32', S['CODE3'], f', STK, {sel}', fault=fault, err=err)
    t.case('RET far in 64-bit code to ring 3', 'l', 'o64 retf\n.there: ud2',
           poke={'STK': 'dq A(.there), CODE64_3, STK - 0x100, DATA3'}, rip='.there',
           ocs=S['CODE64_3'], oss=S['DATA3'], out={'sp': STK - 0x100}, oseg=null)
    t.case('RET far in 64-bit code to compatibility mode', 'lu', 'o64 retf\n.there: ud2',
           poke={'STK': 'dq A(.there), CODE3'}, rip='.there',
           ocs=S['CODE3'], out={'sp': STK + 16})
    t.case('RET far in 64-bit code to a noncanonical address', 'l', 'o64 retf',
           poke={'STK': 'dq 0x800000000000, CODE64_0'}, fault=GP, qemu='it does not check')
    t.case('RET far in real and v8086 mode', 'real v86', 'retf 2\n', poke={'STK': 'dw A(.end) - 0x9000, 0x900'},
           rip='A(.end) - 0x9000', ocs=0x900,
           out={'sp': STK + 6})
    t.case('RET far needs the whole frame', 'p32u', 'retf', seg={'ss': S['SMALL']}, regs={'sp': 0xfa},
           poke={'M + 0xfa': 'dd A(.end)\n dw CODE3'},
           fault=SS, qemu=NO_LIMITS)


def interrupts(t):
    user32 = 'p32u pgu paeu p16u'

    def soft(name, modes, symbol, fault=None, err=0, **expect):
        vector = SOFT[symbol]
        t.case('INT through ' + name, modes, f'int {vector:#x}', fault=vector if fault is None else fault,
               err=vector * 8 + 2 if err == 'idt' else err, **expect)

    soft('an interrupt gate', user32, 'I_INT3', flags=IF, hflags=2, hss=S['DATA0'], hsp=STK0 - 20)
    soft('a trap gate', user32, 'I_TRAP3', flags=IF, hflags=IF | 2, hss=S['DATA0'], hsp=STK0 - 20)
    soft('an interrupt gate clears NT', user32, 'I_INT3', flags=NT | IF, hflags=2)
    soft('a trap gate keeps AC and IOPL', 'p32u lu', 'I_TRAP3', flags=AC_ | IOPL, hflags=AC_ | IOPL | 2)
    soft('an interrupt gate', 'p32 pg pae p16', 'I_INT3', flags=IF, hflags=2, hsp=STK - 12)
    soft('an interrupt gate', 'lu c32u c16u', 'I_INT3', flags=IF, hflags=2, hss=0, hsp=STK0 - 40)
    soft('an interrupt gate', 'l c32', 'I_INT3', flags=IF, hflags=2, hss=S['DATA0'], hsp=STK - 40)
    soft('an interrupt gate aligns the stack', 'l', 'I_INT3', regs={'sp': STK - 7}, hsp=(STK - 7 & ~15) - 40)
    soft('a gate with an IST stack', 'l lu', 'I_TASK', hsp=LAYOUT['IST2'] - 40)
    soft('a gate of ring 0', OUTERP, 'I_INT0', fault=GP, err='idt')
    soft('a gate of ring 0', RING0P, 'I_INT0')
    soft('an absent gate', PROTECTED, 'I_NP', fault=NP, err='idt')
    soft('an absent gate of ring 0', OUTERP, 'I_NP0', fault=GP, err='idt')
    soft('no gate', PROTECTED, 'I_TYPE', fault=GP, err='idt')
    soft('a gate to null', PROTECTED, 'I_NULL', fault=GP, err=0)
    soft('a gate to data', PROTECTED, 'I_DATA', fault=GP, err=S['DATA0'])
    soft('a gate to nothing', PROTECTED, 'I_BEYOND', fault=GP, err=S['BEYOND'])
    soft('a gate to absent code', names(lambda m: m.protected and not m.long), 'I_CODE_NP', fault=NP,
         err=S['CODE0_NP'])
    soft('a gate to absent code', names(lambda m: m.long), 'I_CODE_NP', fault=NP, err=S['CODE64_NP'])
    soft('a gate to an outer ring', 'p32 p16 pg', 'I_RING3', fault=GP, err=S['CODE3'] & ~3)
    soft('a gate to an outer ring', 'l c32', 'I_RING3', fault=GP, err=S['CODE64_3'] & ~3)
    soft('a gate to conforming code', 'p32', 'I_CONF')
    soft('a gate beyond its code segment', 'p32 p32u', 'I_LIMIT', fault=GP, err=0)
    soft('a gate to 32-bit code', 'l lu c32u', 'I_LIMIT', fault=GP, err=S['CODE0'])
    soft('a gate to a noncanonical address', 'l lu', 'I_16', fault=GP, err=0, qemu='it does not check')
    soft('nothing: beyond the IDT', PROTECTED, 'I_NONE', fault=GP, err='idt')
    soft('a 16-bit gate', 'p32u', 'I_16', out={}, flags=IF, hss=S['DATA0'], hsp=STK0 - 10)
    soft('a 16-bit gate', 'p32', 'I_16', flags=IF, hsp=STK - 6)
    soft('a gate to ring 1', 'p32u', 'I_RING1', fault=UD, rip='GATE', ocs=S['CODE1'], oss=S['DATA1'],
         poke={'IDT32 + I_RING1 * 8': 'dw GATE, 0x60, 0xee00, 0'}, out={'sp': STK1 - 20},
         mem={'STK1 - 20': 'dd A(.end), CODE3, 2, STK, DATA3'})
    soft('the real-mode table', 'real', 'I_INT3', flags=IF | 0x40000, hflags=2)
    t.case('INT beyond the real-mode table', 'real', 'lidt [M]\n|int 0x30', poke={'M': 'dw 0xbf\n dd 0'}, fault=GP)
    t.case('INT3', names(lambda m: m.name != 'v86i0'), 'int3', fault=BP)
    t.case('INT 3 of two bytes', names(lambda m: m.name != 'v86i0'), 'db 0xcd, 3', fault=BP)
    t.case('INT1', names(lambda m: m.name != 'v86i0'), 'int1', fault=DB)
    t.case('INT1 does not look at the DPL', OUTERP, 'int1', fault=DB)
    t.case('INT 1 looks at the DPL', OUTERP, 'db 0xcd, 1', fault=GP, err=1 * 8 + 2)
    t.case('INTO without OF', SEGMENTED, 'into')
    t.case('INTO with OF', names(lambda m: m.bits != 64), 'into', flags=0x800, fault=OF)
    t.case('INTO is gone', 'l lu', 'db 0xce', fault=UD)
    t.case('INT3 looks at the DPL',
           'p32u lu', 'int3', setup='and byte [IDT32 + 3 * 8 + 5], 0x9f\n and byte [IDT64 + 3 * 16 + 5], 0x9f',
           fault=GP, err=3 * 8 + 2)
    t.case('an exception does not look at the DPL', OUTERP, 'ud2', fault=UD)
    t.case('an error code of a fault in delivery has EXT', 'p32 l', 'ud2', fault=NP, err=6 * 8 + 3,
           poke={'IDT32 + 6 * 8 + 5': 'db 0x0e', 'IDT64 + 6 * 16 + 5': 'db 0x0e'})
    t.case('a v8086 program goes to ring 0 only', 'v86', 'int 0x3b', fault=GP, err=0x60)


def iret(t):
    def case(name, modes, frame, code=None, fault=None, err=0, **expect):
        expect.setdefault('rip', None if fault else '.there')
        def text(m):
            return (code or {16: 'iret', 32: 'iretd', 64: 'iretq'}[m.bits]) + '\n.there: ud2'
        poke = expect.pop('poke', {})
        t.case('IRET ' + name, modes, text, poke=lambda m: {**poke,
                                                            'STK': f'd{ {16: "w", 32: "d", 64: "q"}[m.bits]} {frame}'},
               fault=fault, err=err, **expect)

    null = {'ds': 0, 'es': 0, 'fs': 0, 'gs': 0}
    ALLF = 0x3f7fd5 & ~0x20100
    case('in the same ring', 'p32 pg pae', f'A(.there), CODE0, {ALLF & ~NT:#x}', out={'sp': STK + 12},
         oflags=ALLF & ~NT | 2, qemu='it has no VIF')
    case('in the same ring of 16 bits', 'p16', f'A(.there), CODE16_0, {ALLF & 0xffff & ~NT:#x}', out={'sp': STK + 6},
         oflags=ALLF & 0xffff & ~NT | 2)
    case('in ring 3 with IOPL 0', 'p32u pgu', f'A(.there), CODE3, {ALLF & ~NT:#x}', out={'sp': STK + 12},
         oflags=ALLF & ~(NT | IF | IOPL | VIF | VIP) | 2, qemu='it loads VIF')
    case('in ring 3 with IOPL 3', 'p32u', f'A(.there), CODE3, {(ALLF & ~NT & ~IOPL):#x}', flags=IOPL,
         out={'sp': STK + 12},
         oflags=ALLF & ~(NT | VIF | VIP) | 2, qemu='it loads VIF')
    case('to ring 3', 'p32 pg', 'A(.there), CODE3, 0x3202, STK - 0x100, DATA3', ocs=S['CODE3'], oss=S['DATA3'],
         oflags=0x3202,
         out={'sp': STK - 0x100}, oseg=null)
    case('to ring 3', 'l', 'A(.there), CODE64_3, 0x3202, STK - 0x100, DATA3', ocs=S['CODE64_3'], oss=S['DATA3'],
         oflags=0x3202,
         out={'sp': STK - 0x100}, oseg=null)
    case('to compatibility mode', 'l', 'A(.there), CODE3, 0x3202, STK - 0x100, DATA3', ocs=S['CODE3'], oss=S['DATA3'],
         oflags=0x3202,
         out={'sp': STK - 0x100}, oseg=null)
    case('in 64-bit code pops SS and RSP', 'l', 'A(.there), CODE64_0, 2, STK - 0x100, DATA0', out={'sp': STK - 0x100})
    case('in 64-bit code to a null SS', 'l', 'A(.there), CODE64_0, 2, STK - 0x100, 0', out={'sp': STK - 0x100}, oss=0)
    case('to ring 3 with a null SS', 'l', 'A(.there), CODE64_3, 2, STK - 0x100, 3', fault=GP, err=0)
    case('to 64-bit ring 3 with an SS of DPL 0', 'l', 'A(.there), CODE64_3, 2, STK - 0x100, 0x13', fault=GP, err=0x10)
    case('to compatibility mode with a null SS', 'l', 'A(.there), CODE0, 2, STK - 0x100, 0', fault=GP, err=0)
    case('to a noncanonical address', 'l', '0x800000000000, CODE64_0, 2, STK - 0x100, DATA0', fault=GP, err=0,
         qemu='it does not check')
    case('to a noncanonical address of ring 3', 'l', '0x800000000000, CODE64_3, 2, STK - 0x100, DATA3', fault=GP,
         err=0, qemu='it does not check')
    case('to code with L and D', 'l', 'A(.there), CODE64_D, 2, STK - 0x100, DATA0', fault=GP, err=S['CODE64_D'])
    case('with NT in long mode', 'l lu', 'A(.there), CODE64_0, 2, STK - 0x100, DATA0', flags=NT, fault=GP, err=0)
    case('to an inner ring', 'p32u', 'A(.there), CODE0, 2', fault=GP, err=S['CODE0'])
    case('to null', 'p32 l', 'A(.there), 0, 2, 0, 0', fault=GP, err=0)
    case('to data', 'p32 l', 'A(.there), DATA0, 2, 0, 0', fault=GP, err=S['DATA0'])
    case('to nothing', 'p32 l', 'A(.there), BEYOND, 2, 0, 0', fault=GP, err=S['BEYOND'])
    case('to an RPL above DPL', 'p32 l', 'A(.there), CODE64_0 + 3, 2, 0, 0', fault=GP, err=S['CODE64_0'])
    case('to absent code', 'p32', 'A(.there), CODE0_NP, 2', fault=NP, err=S['CODE0_NP'])
    case('to absent code', 'l', 'A(.there), CODE64_NP, 2, STK, DATA0', fault=NP, err=S['CODE64_NP'])
    case('beyond the limit', 'p32', '0xa000, CODE_SMALL, 2', fault=GP, err=0)
    case('with a frame that does not fit', 'p32u', 'A(.there), CODE3, 2', seg={'ss': S['SMALL']}, regs={'sp': 0xf5},
         fault=SS, qemu=NO_LIMITS)
    for name, sel, fault, err in (('null', 3, GP, 0), ('another RPL', 0x20, GP, 0x20), ('DPL 0', 0x13, GP, 0x10),
                                  ('read-only data', S['READ_ONLY'], GP, 0xe8),
                                  ('absent data', S['DATA3_NP'], SS, 0xe0)):
        case(f'to ring 3 with an SS of {name}', 'p32', f'A(.there), CODE3, 2, STK, {sel}', fault=fault, err=err)
    # to v8086 mode
    vm = 0x20000
    case('to v8086 mode',
         'p32 pg', f'A(.there), 0, {vm | IOPL | IF | 2:#x}, STK - 0x100, 0x10, 0x20, 0x30, 0x40, 0x50', ocs=0,
         oss=0x10,
         oflags=vm | IOPL | IF | 2, out={'sp': STK - 0x100}, oseg={'es': 0x20, 'ds': 0x30, 'fs': 0x40, 'gs': 0x50})
    case('to v8086 mode with CS:IP beyond 64 KiB', 'p32', f'0x10000, 0, {vm | 2:#x}, STK, 0, 0, 0, 0, 0', fault=GP,
         err=0, qemu='it cuts EIP')
    case('to v8086 mode from ring 3 is none', 'p32u', f'A(.there), CODE3, {vm | 2:#x}, STK, 0, 0, 0, 0, 0',
         out={'sp': STK + 12}, oflags=2)
    case('to v8086 mode needs 32 bits', 'p32', 'A(.there), CODE0, 2', out={'sp': STK + 12})
    case('in long mode takes no VM', 'l', f'A(.there), CODE64_0, {vm | 2:#x}, STK, DATA0', oflags=2)
    case('in real mode', 'real', f'A(.there), 0, {0x7ed7 :#x}', out={'sp': STK + 6}, oflags=0x7ed7)
    case('in v8086 mode leaves IOPL', 'v86', f'A(.there), 0, {0x4ed7 :#x}', out={'sp': STK + 6}, oflags=vm | 0x7ed7)
    t.case('IRETD in real mode', 'real', 'iretd', poke={'STK': 'dd A(.end), 0, 0x247ed7'}, out={'sp': STK + 12},
           oflags=0x247ed7, rip='.end')


def cases(t):
    direct(t)
    gates(t)
    returns(t)
    interrupts(t)
    iret(t)
