"""Loads and stores of segment registers, LAR LSL VERR VERW ARPL, and the limits and types of segments in use (SDM 2A,
2B; 3A 3.4.5, 5.3 to 5.7)."""
from machine import *

S = SELECTORS


def loading(t):
    LOADS = 'p16 p32 p32u p32r1 pg c32 c32u l lu'
    bad = (  # selector, why, what of DS ES FS GS; from ring 0 and from ring 3
        ('EXEC_ONLY', 'execute-only code', (GP, 0xd0), (GP, 0xd0)),
           ('DATA3_NP', 'absent data', (NP, 0xe0), (NP, 0xe0)),
        ('TASK', 'a TSS', (GP, 0x80), (GP, 0x80)), ('GATE3', 'a call gate', (GP, 0x180), (GP, 0x180)),
        ('BEYOND', 'a selector beyond the GDT', (GP, 0x400), (GP, 0x400)), ('DATA0', 'DPL 0', None, (GP, 0x10)),
        ('DATA1', 'DPL 1', None, (GP, 0x68)), ('L_DATA0', 'DPL 0 in the LDT', None, (GP, 0x1c)),
        ('CODE0', 'readable code of ring 0', None, (GP, 0x08)), ('CODE3', 'readable code of ring 3', None, None),
        ('CONFORMING', 'conforming code of ring 0', None, None), ('READ_ONLY', 'read-only data', None, None),
        ('DATA3', 'data', None, None), ('L_DATA3', 'data of the LDT', None, None))
    for name, why, inner, outer in bad:
        def outcome(m, inner=inner, outer=outer, name=name):
            if m.ring == 1 and name == 'DATA1':
                return None
            return outer if m.ring else inner
        for sreg in ('ds', 'es', 'fs', 'gs'):
            if sreg != 'fs' and name not in ('DATA3', 'DATA3_NP', 'DATA0'):
                continue
            t.case(f'MOV {sreg} with {why}', LOADS, f'mov {sreg}, bx', regs={'bx': S[name]},
                   fault=lambda m: (outcome(m) or (None, 0))[0], err=lambda m: (outcome(m) or (None, 0))[1],
                   oseg=lambda m: {} if outcome(m) else {sreg: S[name]})
        # the stack is aligned so that the operand size does not matter
        t.case(f'POP fs with {why}', LOADS, 'pop fs', poke={'STK': f'dq {S[name]}'},
               fault=lambda m: (outcome(m) or (None, 0))[0], err=lambda m: (outcome(m) or (None, 0))[1],
               oseg=lambda m: {} if outcome(m) else {'fs': S[name]},
               out=lambda m: {} if outcome(m) else {'sp': LAYOUT['STK'] + m.bits // 8})
        t.case(f'LFS with {why}', LOADS, 'lfs eax, [M]', poke={'M': f'dd 0x12345678\n dw {S[name]}'},
               fault=lambda m: (outcome(m) or (None, 0))[0], err=lambda m: (outcome(m) or (None, 0))[1],
               oseg=lambda m: {} if outcome(m) else {'fs': S[name]},
               out=lambda m: {} if outcome(m) else {'ax': 0x12345678})
    t.case('MOV fs with RPL 3 and DPL 0', 'p32 l', 'mov fs, bx', regs={'bx': 0x13}, fault=GP, err=0x10)
    t.case('MOV fs with RPL 3 and conforming DPL 0', 'p32 l', 'mov fs, bx', regs={'bx': 0xcb}, oseg={'fs': 0xcb})
    for null in (0, 3):
        t.case(f'MOV fs with null selector {null}', LOADS, 'mov fs, bx', regs={'bx': null}, oseg={'fs': null})
    t.case('use of a null selector', 'p16 p32 p32u c32u', 'mov fs, bx\n|mov eax, [fs:M]', regs={'bx': 0},
           oseg={'fs': 0},
           fault=GP, qemu=NO_LIMITS)
    t.case('use of a null selector in 64-bit code', 'l lu', 'mov fs, bx\n mov eax, [fs:M]', regs={'bx': 0},
           oseg={'fs': 0},
           poke={'M': 'dd 3'}, out={'ax': 3})
    t.case('MOV of a segment marks it accessed', 'p32 p32u l lu', 'mov fs, bx', regs={'bx': S['FRESH']},
           oseg={'fs': S['FRESH']}, mem={'GDT + 0x108 + 5': 'db 0xf3'})
    t.case('a selector that fails marks nothing', 'p32u lu', 'mov fs, bx', regs={'bx': 0x108}, fault=GP, err=0x108,
           poke={'GDT + 0x108 + 5': 'db 0x92'}, mem={'GDT + 0x108 + 5': 'db 0x92'})
    t.case('real and v8086 loads take any selector', UNPROTECTED, 'mov ax, 0x700\n mov fs, ax\n mov eax, [fs:0x10]',
           poke={'0x7010': 'dd 0x1234abcd'}, out={'ax': 0x1234abcd}, oseg={'fs': 0x700})
    for insn in ('mov cs, ax', 'db 0x8e, 0xf0', 'db 0x8e, 0xf8', 'db 0x8c, 0xf0', 'db 0x8c, 0xf8'):
        t.case(f'no such segment register: {insn}', ALL, insn if not insn.startswith('mov') else 'db 0x8e, 0xc8',
               fault=UD)

    # SS
    ss = (('DATA0', 'its own ring', None, GP), ('DATA3', 'ring 3', GP, None), ('READ_ONLY', 'read-only data', GP, GP),
          ('CODE0', 'code', GP, GP), ('TASK', 'a TSS', GP, GP), ('BEYOND', 'a selector beyond the GDT', GP, GP),
          ('DATA3_NP', 'absent data', GP, SS), ('DATA0_NP', 'absent data of ring 0', SS, GP),
          ('EXEC_ONLY', 'code', GP, GP))
    for name, why, inner, outer in ss:
        def result(m, inner=inner, outer=outer):
            return outer if m.ring else inner
        err = S[name] & ~3
        t.case(f'MOV ss with {why}', 'p32 p32u pg c32u l lu', 'mov ss, bx', regs={'bx': S[name]}, fault=result,
               err=err,
               oss=lambda m: None if result(m) else S[name])
        t.case(f'POP ss with {why}', 'p32 p32u c32u', 'pop ss', poke={'STK': f'dd {S[name]}'}, fault=result, err=err,
               oss=lambda m: None if result(m) else S[name],
               out=lambda m: {} if result(m) else {'sp': LAYOUT['STK'] + 4})
        t.case(f'LSS with {why}', 'p32 p32u c32u l lu', 'lss esp, [M]', poke={'M': f'dd STK - 16\n dw {S[name]}'},
               fault=result,
               err=err, oss=lambda m: None if result(m) else S[name],
               out=lambda m: {} if result(m) else {'sp': LAYOUT['STK'] - 16})
    t.case('MOV ss with a null selector', 'p16 p32 p32u c32 c32u lu', 'mov ss, bx', regs={'bx': 0}, fault=GP)
    t.case('MOV ss with a null selector in 64-bit ring 0', 'l', 'mov ss, bx', regs={'bx': 0}, oss=0)
    t.case('MOV ss with a null selector of another RPL', 'l', 'mov ss, bx', regs={'bx': 3}, fault=GP, err=0,
           qemu='it takes any RPL')
    t.case('MOV ss with another RPL', 'p32 l', 'mov ss, bx', regs={'bx': 0x13}, fault=GP, err=0x10)
    t.case('MOV ss with a smaller RPL', 'p32u lu', 'mov ss, bx', regs={'bx': 0x20}, fault=GP, err=0x20)


def storing(t):
    t.case('MOV r16,sreg leaves the rest', ALL, 'o16 mov ax, ds', regs={'ax': 0xaaaaaaaa},
           out=lambda m: {'ax': 0xaaaa0000 | m.ds})
    t.case('MOV r32,sreg clears the rest', ALL, 'mov eax, ds',
           regs={'ax': 0xaaaaaaaa}, out=lambda m: {'ax': m.ds})
    t.case('MOV m16,sreg', ALL, 'mov [M], ds', poke={'M': 'dd 0xffffffff'}, mem=lambda m: {'M': f'dw {m.ds}, 0xffff'})
    t.case('PUSH fs writes the selector', ALL, 'push fs', out=lambda m: {'sp': LAYOUT['STK'] - m.bits // 8},
           mem=lambda m: {f'STK - {m.bits // 8}': f'dw {m.ds}'})
    # at CPL 0 the way into the case has used the stack
    t.case('PUSH fs of 32 bits', 'p32 p32u c32u' if t.amd else 'p32u c32u', 'push fs', poke={'STK - 4': 'dd 0xaaaaaaaa'},
           out={'sp': LAYOUT['STK'] - 4},
           mem=lambda m: {'STK - 4': f'dd {m.ds:#x}' if t.amd else f'dd 0xaaaa0000 | {m.ds}'})
    t.case('PUSH fs of 16 bits', 'p32 p32u', 'o16 push fs', out={'sp': LAYOUT['STK'] - 2},
           mem=lambda m: {'STK - 2': f'dw {m.ds}'})
    t.case('POP fs of 32 bits in 16-bit code', 'p16 p16u real v86', 'o32 pop fs', poke={'STK': 'dd 0'},
           out={'sp': LAYOUT['STK'] + 4}, oseg={'fs': 0})
    t.case('PUSH and POP es ds are gone', 'l lu', 'db 0x06', fault=UD)
    t.case('POP ds is gone', 'l lu', 'db 0x1f', fault=UD)
    t.case('PUSH cs is gone', 'l lu', 'db 0x0e', fault=UD)
    t.case('POP ss is gone', 'l lu', 'db 0x17', fault=UD)
    t.case('LES is gone', 'l lu', 'db 0xc4, 0x05, 0, 0, 0, 0', fault=UD)
    for insn, modrm in (('LFS', 0xb4), ('LGS', 0xb5), ('LSS', 0xb2)):
        t.case(f'{insn} of a register', ALL, f'db 0x0f, {modrm}, 0xc0', fault=UD)
    t.case('LES', SEGMENTED, lambda m: 'les ax, [M]' if m.bits == 16 else 'les eax, [M]',
           poke=lambda m: {'M': f'd{"w" if m.bits == 16 else "d"} 0x1234\n dw {m.ds}'}, regs={'ax': 0},
           out={'ax': 0x1234})
    t.case('LDS and its operand in two pages', 'pgu paeu c32u', 'lds eax, [0x10ffd]',
           poke={'0x10ffd': 'dd 0x12345678\n dw DATA3'}, out={'ax': 0x12345678})


def looking(t):
    """The tables at LAR and LSL (SDM 2A) and at VERR (2D), for every descriptor of the GDT."""
    image = templates()
    gdt = image[LAYOUT['GDT'] - LAYOUT['TABLES']:][:0x400]
    ldt = image[LAYOUT['LDT'] - LAYOUT['TABLES']:][:0x100]

    def entry(selector, mode):
        table = ldt if selector & 4 else gdt
        raw = int.from_bytes(table[selector & 0xf8 | selector & 0xff00:][:8],
                             'little') if selector & ~7 < len(table) else None
        if raw is not None and not selector & 4 and selector & ~7 in (mode.tr & ~7, S['MON_TASK']):
            raw |= 2 << 40
        return raw

    def visible(selector, mode, types):
        raw = entry(selector, mode) if selector & ~3 else None
        if raw is None:
            return None
        kind, dpl = raw >> 40 & 0x1f, raw >> 45 & 3
        if not kind & 0x10 and kind not in types:
            return None
        if kind & 0x1c != 0x1c and (dpl < mode.ring or dpl < (selector & 3)):
            return None
        return raw

    def lar(selector, mode):
        raw = visible(selector, mode, {2, 9, 11, 12} if mode.long else {1, 2, 3, 4, 5, 9, 11, 12})
        return None if raw is None else raw >> 32 & 0xffff00

    def lar_out(selector, mode):
        rights = lar(selector, mode)
        if rights is None:
            return {}
        return {'ax': lambda v: v & ~0xf0000 == rights & ~0xf0000}  # where the limit's upper bits lie is undefined

    def long_types(selector, mode):
        raw = entry(selector, mode)
        if mode.long and raw is not None and raw >> 40 & 0x1f in (1, 3, 4, 5):
            return 'it takes types that long mode does not have'
        return None

    def lsl(selector, mode):
        raw = visible(selector, mode, {2, 9, 11} if mode.long else {1, 2, 3, 9, 11})
        if raw is None:
            return None
        limit = raw & 0xffff | raw >> 32 & 0xf0000
        return limit << 12 | 0xfff if raw >> 55 & 1 else limit

    def verr(selector, mode):
        raw = visible(selector, mode, ())
        return raw is not None and raw >> 40 & 0xa != 8

    def verw(selector, mode):
        raw = visible(selector, mode, ())
        return raw is not None and raw >> 40 & 0xa == 2

    def flags(mode, zf):
        return mode.flags | 0x40 if zf else mode.flags & ~0x40

    modes = 'p32 p32u p32r1 c32u l lu'
    for name, selector in list(S.items()) + [('null', 0), ('null 3', 3), ('CODE0 with RPL 3', 0x0b),
                                             ('CONFORMING with RPL 3', 0xcb)]:
        which = modes if name in ('DATA3', 'CODE0', 'TASK', 'GATE3', 'null') else 'p32u l'
        regs = {'bx': 0xabcd0000 | selector}
        t.case(f'LAR {name}', which, 'lar eax, ebx', regs=regs, out=lambda m: lar_out(selector, m),
               oflags=lambda m: flags(m, lar(selector, m) is not None), qemu=lambda m: long_types(selector, m))
        t.case(f'LSL {name}', which, 'lsl eax, ebx', regs=regs,
               out=lambda m: {} if lsl(selector, m) is None else {'ax': lsl(selector, m)},
               oflags=lambda m: flags(m, lsl(selector, m) is not None), qemu=lambda m: long_types(selector, m))
        t.case(f'VERR {name}', which, 'verr bx', regs=regs, oflags=lambda m: flags(m, verr(selector, m)))
        t.case(f'VERW {name}', which, 'verw bx', regs=regs, oflags=lambda m: flags(m, verw(selector, m)))
    t.case('LAR r16 has 8 bits of access rights', 'p32 p32u', 'o16 lar ax, bx',
           regs={'ax': 0xaaaaaaaa, 'bx': S['DATA3']},
           out={'ax': 0xaaaaf300}, oflags=lambda m: m.flags | 0x40)
    t.case('LSL r16 cuts the limit', 'p32 p32u', 'o16 lsl ax, bx', regs={'ax': 0xaaaaaaaa, 'bx': S['DATA3']},
           out={'ax': 0xaaaaffff}, oflags=lambda m: m.flags | 0x40)
    t.case('LAR from memory', 'p32 l', 'lar eax, [M]', poke={'M': 'dw DATA3'},
           out={'ax': lambda v: v & ~0xf0000 == 0xc0f300}, oflags=0x42)
    t.case('LSL of an upper half keeps the register', 'lu', 'lsl rax, ebx', regs={'bx': S['TASK']}, oflags=2)
    for insn in ('lar eax, ebx', 'lsl eax, ebx', 'verr bx', 'verw bx'):
        t.case(f'{insn} does not exist', UNPROTECTED, insn, fault=UD)
    t.case('ARPL does not exist', UNPROTECTED, 'arpl bx, ax', fault=UD)
    t.case('ARPL raises RPL', 'p16 p32 p32u c32u', 'arpl bx, ax', regs={'bx': 0x12340010, 'ax': 3},
           out={'bx': 0x12340013},
           oflags=lambda m: m.flags | 0x40)
    t.case('ARPL leaves RPL', 'p16 p32 p32u c32u', 'arpl bx, ax', regs={'bx': 0x12340012, 'ax': 1}, flags=0x40,
           oflags=lambda m: m.flags & ~0x40)
    t.case('ARPL in memory', 'p32 p32u', 'arpl [M], ax', poke={'M': 'dw 0x20'}, regs={'ax': 2}, mem={'M': 'dw 0x22'},
           oflags=lambda m: m.flags | 0x40)


def limits(t):
    """Innocuous instructions at the edges of segments."""
    modes = 'p32 p32u c32u'
    for size, reg in ((1, 'al'), (2, 'ax'), (4, 'eax')):
        last = 0x100 - size
        for insn, name in ((f'mov {reg}, [fs:X]', 'read'), (f'mov [fs:X], {reg}', 'write'),
                           (f'add [fs:X], {reg}', 'change'),
                           (f'test [fs:X], {reg}', 'test')):
            insn = insn.replace('X', 'ecx')
            t.case(f'{name} {size} at the limit', modes, insn, seg={'fs': S['SMALL']}, regs={'cx': last, 'ax': 0},
                   fmask=0x3f7700, oflags=lambda m: m.flags)
            t.case(f'{name} {size} past the limit', modes, insn, seg={'fs': S['SMALL']},
                   regs={'cx': last + 1, 'ax': 0}, fault=GP,
                   qemu=NO_LIMITS)
            t.case(f'{name} {size} far past the limit', modes, insn, seg={'fs': S['SMALL']},
                   regs={'cx': 0xfffffffc, 'ax': 0},
                   fault=GP, qemu=NO_LIMITS)
        for insn in (f'mov {reg}, [fs:ecx]', f'mov [fs:ecx], {reg}'):
            t.case(f'{insn} in an expand-down segment', modes, insn, seg={'fs': S['DOWN']},
                   regs={'cx': 0x8000, 'ax': 0})
            t.case(f'{insn} below an expand-down segment', modes, insn, seg={'fs': S['DOWN']}, regs={'cx': 0x7fff},
                   fault=GP,
                   qemu=NO_LIMITS)
            t.case(f'{insn} at the top of a 16-bit expand-down segment', modes, insn, seg={'fs': S['DOWN16']},
                   regs={'cx': 0x10000 - size, 'ax': 0})
            t.case(f'{insn} above a 16-bit expand-down segment', modes, insn, seg={'fs': S['DOWN16']},
                   regs={'cx': 0x10001 - size}, fault=GP, qemu=NO_LIMITS)
            t.case(f'{insn} below a 16-bit expand-down segment', modes, insn, seg={'fs': S['DOWN16']},
                   regs={'cx': 0x7fff}, fault=GP, qemu=NO_LIMITS)
    t.case('write to a read-only segment', modes, 'mov [fs:M], eax', seg={'fs': S['READ_ONLY']}, fault=GP,
           qemu=NO_LIMITS)
    t.case('read of a read-only segment', modes, 'mov eax, [fs:M]', seg={'fs': S['READ_ONLY']}, out={'ax': 0})
    t.case('write to code', modes, 'mov [cs:M], eax', fault=GP, qemu=NO_LIMITS)
    t.case('read of code', modes, 'mov eax, [cs:M]', poke={'M': 'dd 5'}, out={'ax': 5})
    t.case('read of execute-only code', 'p32u c32u', 'jmp EXEC_ONLY:A(.x)\n.x:\n|mov eax, [cs:M]', ocs=S['EXEC_ONLY'],
           fault=GP,
           qemu=NO_LIMITS)
    t.case('segment base is added', modes, 'mov eax, [fs:0x20]', seg={'fs': S['BASED']}, poke={'0x10020': 'dd 0x66'},
           out={'ax': 0x66})
    t.case('segment base is added to stores', modes, 'mov [fs:0x20], eax', seg={'fs': S['BASED']}, regs={'ax': 0x77},
           mem={'0x10020': 'dd 0x77'})
    t.case('limits do not count in 64-bit code', 'lu', 'mov eax, [fs:M + 0x200]', seg={'fs': S['READ_ONLY']},
           poke={'M + 0x200': 'dd 9'}, out={'ax': 9})
    # 16-bit addresses wrap, accesses across FFFFh fault
    t.case('word at FFFFh', 'real v86 p16 p16u', 'mov ax, [0xffff]', fault=GP, qemu=NO_LIMITS)
    t.case('word at SS:FFFFh', 'real v86 p16 p16u', 'mov ax, [ss:0xffff]', fault=SS, qemu=NO_LIMITS)
    t.case('dword past the limit with a 32-bit address', 'real v86 p16 p16u', 'mov eax, [dword 0x10000]', fault=GP,
           qemu=NO_LIMITS)
    t.case('effective addresses wrap at 64 KiB', 'real v86 p16 p16u', 'mov ax, [bx + 0x7000 + 0x10]',
           regs={'bx': 0xfffff},
           poke={'0x700f': 'dw 0x4321'}, out={'ax': 0x22224321})
    # the stack
    t.case('PUSH past the stack limit', 'p32u c32u', 'push eax', seg={'ss': S['SMALL']}, regs={'sp': 0x104}, fault=SS,
           qemu=NO_LIMITS)
    t.case('PUSH at the stack limit', 'p32u c32u', 'push eax', seg={'ss': S['SMALL']}, regs={'sp': 0x100, 'ax': 5},
           out={'sp': 0xfc},
           mem={'M + 0xfc': 'dd 5'})
    t.case('PUSH below an expand-down stack', 'p32u c32u', 'push eax', seg={'ss': S['DOWN']}, regs={'sp': 0x8002},
           fault=SS, qemu=NO_LIMITS)
    t.case('PUSH in an expand-down stack', 'p32u c32u', 'push eax', seg={'ss': S['DOWN']}, regs={'sp': 0x8004},
           out={'sp': 0x8000})
    t.case('CALL past the stack limit', 'p32u c32u', 'call .end', seg={'ss': S['SMALL']}, regs={'sp': 0x104}, fault=SS,
           qemu=NO_LIMITS)
    t.case('POP past the stack limit', 'p32u c32u', 'pop eax', seg={'ss': S['SMALL']}, regs={'sp': 0xfd}, fault=SS,
           qemu=NO_LIMITS)
    t.case('[ebp] past the stack limit', 'p32u c32u', 'mov eax, [ebp]', seg={'ss': S['SMALL']}, regs={'bp': 0xfd},
           fault=SS, qemu=NO_LIMITS)
    t.case('PUSHA past the stack limit pushes nothing', 'p32u', 'pusha', seg={'ss': S['SMALL']}, regs={'sp': 0x1c},
           fault=SS,
           qemu=NO_LIMITS, mem={'M': 'times 28 db 0'})
    t.case('PUSHA', SEGMENTED, 'pushad', out={'sp': LAYOUT['STK'] - 32},
           mem=lambda m: {'STK - 32': 'dd 0x22220777, 0x22220666, 0x22220555, STK,'
                          ' 0x22220333, 0x22220222, 0x22220111, 0x22220000'})
    t.case('ENTER with nesting', 'p32 p32u p16 c32u', 'enter 8, 1',
           out=lambda m: {'sp': LAYOUT['STK'] - 2 * m.bits // 8 - 8,
                          'bp': (LAYOUT['STK'] - m.bits // 8) | (0x22220000 if m.bits == 16 else 0)},
           mem=lambda m: {f'STK - {m.bits // 8}': 'dw 0x555' if m.bits == 16 else 'dd 0x22220555'})
    t.case('BOUND inside', SEGMENTED, 'bound eax, [M]', regs={'ax': 5},
           poke={'M': 'dd -5, 5'})
    t.case('BOUND outside', SEGMENTED, 'bound eax, [M]', regs={'ax': 6}, poke={'M': 'dd -5, 5'}, fault=BR)
    # falling and jumping out of a code segment
    t.case('a jump out of the code segment', 'p32', 'jmp CODE_SMALL:0x9ff0',
           poke={'0x9ff0': 'db 0xe9\n dd 0xa100 - 0x9ff5'}, fault=GP,
           rip='0x9ff0', ocs=S['CODE_SMALL'], qemu=NO_LIMITS)
    t.case('an instruction across the end of the code segment', 'p32', 'jmp CODE_SMALL:0x9ffe',
           poke={'0x9ffe': 'db 0x90, 0xb8, 1, 2, 3, 4'},
           fault=GP, rip='0x9fff', ocs=S['CODE_SMALL'], qemu=NO_LIMITS)
    t.case('falling off the end of the code segment', 'p32', 'jmp CODE_SMALL:0x9ffe',
           poke={'0x9ffe': 'db 0x90, 0x90, 0xb8, 1, 2, 3, 4'},
           fault=GP, rip='0xa000', ocs=S['CODE_SMALL'], qemu=NO_LIMITS)
    t.case('a 16-bit jump out of 64 KiB wraps', 'real v86 p16', 'db 0xe9\n dw 0xa800 - SLOT - 3',
           rip='0xa800')


def cases(t):
    loading(t)
    storing(t)
    looking(t)
    limits(t)
