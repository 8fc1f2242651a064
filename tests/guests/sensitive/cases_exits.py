"""Conditional branches ahead, behind which a translated block goes on: flags that live on one side only, accesses that a branch
jumps over, targets in another page, and code that changes on either side (SDM 1 3.4.3, 3A 8.1.3, 4.7)."""
from itertools import product

from machine import *

FLAT = 'p32 l'
BOTH = 'real p32 l'
CF, PF_, AF, ZF, SF, OF_ = 1, 4, 0x10, 0x40, 0x80, 0x800
ARITH = 0x8d5
QEMU_DIFFERS = []


def sub_flags(a, b, bits=32):
    """The flags of CMP a, b."""
    mask, top = (1 << bits) - 1, 1 << bits - 1
    a, b = a & mask, b & mask
    r = a - b & mask
    return ((CF if a < b else 0) | (PF_ if bin(r & 0xff).count('1') % 2 == 0 else 0) | (AF if (a ^ b ^ r) & 0x10 else 0) |
            (ZF if not r else 0) | (SF if r & top else 0) | (OF_ if (a ^ b) & (a ^ r) & top else 0))


def add_flags(a, b, bits=32):
    """The flags of ADD a, b."""
    mask, top = (1 << bits) - 1, 1 << bits - 1
    a, b = a & mask, b & mask
    r = a + b & mask
    return ((CF if a + b > mask else 0) | (PF_ if bin(r & 0xff).count('1') % 2 == 0 else 0) |
            (AF if (a ^ b ^ r) & 0x10 else 0) | (ZF if not r else 0) | (SF if r & top else 0) |
            (OF_ if ~(a ^ b) & (a ^ r) & top else 0))


CONDITIONS = {
    'o': lambda f: f & OF_, 'c': lambda f: f & CF, 'z': lambda f: f & ZF, 'be': lambda f: f & (CF | ZF), 's': lambda f: f & SF,
    'p': lambda f: f & PF_, 'l': lambda f: bool(f & SF) != bool(f & OF_),
    'le': lambda f: f & ZF or bool(f & SF) != bool(f & OF_),
}
NEGATED = {'o': 'no', 'c': 'nc', 'z': 'nz', 'be': 'a', 's': 'ns', 'p': 'np', 'l': 'ge', 'le': 'g'}
PAIRS = [(5, 5), (5, 6), (6, 5), (0x80000000, 1), (0x7fffffff, 0x80000000), (0x13, 5), (3, 0x80000002), (0x100, 1)]


WAYS = ('by CF', 'by ZF', 'back')


def conditions():
    for cc, holds in CONDITIONS.items():
        yield cc, holds
        yield NEGATED[cc], lambda f, holds=holds: not holds(f)


def liveness(t):
    """CMP, a load, Jcc: behind it and where it leads, the flags of CMP are left as they are, or another ADD sets them."""
    for cc, holds in conditions():
        pairs = {bool(holds(sub_flags(*p))): p for p in PAIRS}  # one that branches, one that does not
        for taken, (a, b) in pairs.items():
            for live in ('both sides', 'the side branched to', 'the side behind', 'no side'):
                at_target = live in ('both sides', 'the side branched to')
                behind = live in ('both sides', 'the side behind')
                keep, kill = 'mov edx, [M + 4]', 'mov edx, [M + 4]\n add edx, 0x7ffffff1'
                kept = at_target if taken else behind
                t.case(f'J{cc.upper()} {"taken" if taken else "not taken"}, flags live on {live}', FLAT,
                       f'cmp eax, ebx\n mov ecx, [M]\n j{cc} .t\n {keep if behind else kill}\n jmp .end\n'
                       f'.t: {keep if at_target else kill}\n mov esi, [M + 8]',
                       regs={'ax': a, 'bx': b}, poke={'M': 'dd 0x11, 0x1000000f, 0x33'}, fmask=0x3f7fd7,
                       out={'cx': 0x11, 'dx': 0x1000000f if kept else 0x90000000, **({'si': 0x33} if taken else {})},
                       oflags=lambda m, kept=kept, a=a, b=b: m.flags | 2 | (
                           sub_flags(a, b) if kept else add_flags(0x1000000f, 0x7ffffff1)))
    # What is between CMP and the branch sets the flags the branch looks at, and no others: only what comes after it needs those
    # of CMP, which the check of the load would spoil. 'behind' is before the block's first bytes where the branch goes back.
    for (a, b), taken, live, way in product(PAIRS, (0, 1), ('both sides', 'the side branched to', 'the side behind'), WAYS):
        at_target = live in ('both sides', 'the side branched to')
        behind = live in ('both sides', 'the side behind')
        keep, kill = 'mov edx, [M + 4]', 'mov edx, [M + 4]\n add edx, 0x7ffffff1'
        kept = at_target if taken else behind
        if way == 'by CF':
            change, branch = 'stc' if taken else 'clc', 'jc'
            flags = sub_flags(a, b) & ~CF | (CF if taken else 0)
        else:
            change, branch = 'inc edi', 'jz' if taken else 'jnz'
            flags = sub_flags(a, b) & CF | add_flags(0xffffffff, 1) & ~CF
        target = f'.t: {keep if at_target else kill}\n jmp .end\n'
        code = f'cmp eax, ebx\n mov ecx, [M]\n {change}\n {branch} .t\n {keep if behind else kill}\n jmp .end\n'
        t.case(f'{a:x} against {b:x}, a branch {"back " if way == "back" else ""}{"taken" if taken else "not taken"} '
               f'by {"CF" if way == "by CF" else "ZF"}, flags live on {live}', FLAT,
               f'jmp .go\n{target}.go: {code}' if way == 'back' else code + target,
               regs={'ax': a, 'bx': b, 'di': 0xffffffff}, poke={'M': 'dd 0x11, 0x1000000f'}, fmask=0x3f7fd7,
               out={'cx': 0x11, 'dx': 0x1000000f if kept else 0x90000000, **({} if way == 'by CF' else {'di': 0})},
               oflags=lambda m, flags=flags if kept else add_flags(0x1000000f, 0x7ffffff1): m.flags | 2 | flags)
    # One flag alone, through a chain of more branches than a block goes on behind.
    for n in range(9):
        t.case(f'a ladder left at rung {n}', BOTH,
               'cmp eax, 1000\n' + ''.join(f'cmp ax, {i}\n mov ecx, [M]\n je .t{i}\n' for i in range(8)) +
               'stc\n adc edx, 0\n jmp .end\n' +
               ''.join(f'.t{i}: adc edx, {0x10 * (i + 1)}\n mov ebx, [M + 4]\n adc edx, 0\n jmp .end\n' for i in range(8)),
               regs={'ax': n, 'dx': 7}, poke={'M': 'dd 1, 2'},
               out={'cx': 1, 'dx': 7 + 0x10 * (n + 1), 'bx': 2} if n < 8 else {'cx': 1, 'dx': 8}, fmask=0x3f7700)
    for carry in (0, 1):
        t.case(f'a carry of {carry} through branches not taken', BOTH,
               'mov edx, 5\n bt ebx, 0\n mov ecx, [M]\n jz .no\n inc esi\n jz .no\n mov [M + 4], ecx\n dec esi\n jz .no\n'
               ' adc edx, 0\n jmp .end\n.no: ud2',
               regs={'bx': carry, 'si': 0x666}, poke={'M': 'dd 9'}, mem={'M + 4': 'dd 9'},
               out={'cx': 9, 'dx': 5 + carry}, fmask=0x3f7700)
        t.case(f'a carry of {carry} into the branch taken last', BOTH,
               'mov edx, 5\n bt ebx, 0\n mov ecx, [M]\n jz .no\n inc esi\n jz .no\n mov [M + 4], ecx\n dec esi\n jnz .yes\n'
               '.no: ud2\n.yes: mov ecx, [M + 4]\n adc edx, 0',
               regs={'bx': carry, 'si': 0x666}, poke={'M': 'dd 9'}, mem={'M + 4': 'dd 9'}, out={'cx': 9, 'dx': 5 + carry}, fmask=0x3f7700)
    t.case('AH from flags on the side branched to', 'p32 real',
           'cmp al, 0x80\n mov ecx, [M]\n jno .t\n add edx, 1\n jmp .end\n.t: lahf', regs={'ax': 0x40 | 0x80}, poke={'M': 'dd 1'},
           out={'cx': 1, 'ax': lambda v: v & 0xffff == sub_flags(0xc0, 0x80, 8) << 8 & 0xd500 | 0x2c0}, fmask=0x3f7700)


def accesses(t):
    """FREE (10000h) is three pages. The middle one is made absent or read-only."""
    for m, user in (('l', 0), ('lu', 4)):
        absent = {'PT64 + 0x11 * 8': 'dq 0', '0x10ff0': 'dd 1, 2, 3, 4'}
        load = 'mov eax, [rbx]\n test ecx, ecx\n jnz .skip\n.x: mov edx, [rbx + 16]\n mov esi, 5\n.skip: mov edi, [rbx + 4]'
        t.case('a load in an absent page is jumped over', m, load, regs={'bx': 0x10ff4, 'cx': 1}, poke=absent,
               out={'ax': 2, 'di': 3}, fmask=0x3f7700)
        t.case('a load in an absent page behind a branch', m, load, regs={'bx': 0x10ff4, 'cx': 0}, poke=absent,
               fault=PF, err=user, rip='.x', cr2=0x11004, out={'ax': 2}, fmask=0x3f7700)
        t.case('a load in an absent page of its own is jumped over', m,
               'mov eax, [rbx]\n test ecx, ecx\n jnz .skip\n.x: mov edx, [rsi]\n.skip: mov edi, [rbx + 4]',
               regs={'bx': 0x10ff4, 'cx': 1, 'si': 0x11000}, poke=absent, out={'ax': 2, 'di': 3}, fmask=0x3f7700)
        store = 'mov eax, [rbx]\n test ecx, ecx\n jnz .skip\n.x: mov [rbx + 16], eax\n mov esi, 5\n.skip: mov edi, [rbx + 4]'
        t.case('a store in an absent page is jumped over', m, store, regs={'bx': 0x10ff4, 'cx': 1}, poke=absent,
               out={'ax': 2, 'di': 3}, fmask=0x3f7700)
        t.case('a store in an absent page behind a branch', m, store, regs={'bx': 0x10ff4, 'cx': 0}, poke=absent,
               fault=PF, err=user | 2, rip='.x', cr2=0x11004, out={'ax': 2}, fmask=0x3f7700)
        t.case('all of it behind a branch is absent', m,
               'test ecx, ecx\n jnz .skip\n.x: mov eax, [rbx + 8]\n add [rbx], eax\n.skip: inc esi',
               regs={'bx': 0x11000, 'cx': 0}, poke=absent, fault=PF, err=user, rip='.x', cr2=0x11008, fmask=0x3f7700)
        read_only = {'PT64 + 0x11 * 8': f'dq 0x11001 + {user}', '0x11000': 'dd 1, 2, 3, 4, 5, 6'}
        store = 'mov eax, [rbx]\n test ecx, ecx\n jnz .skip\n.x: mov [rbx + 8], eax\n mov esi, 5\n.skip: mov edi, [rbx + 4]'
        t.case('a store to a read-only page is jumped over', m, store, regs={'bx': 0x11000, 'cx': 1}, poke=read_only,
               out={'ax': 1, 'di': 2}, mem={'0x11008': 'dd 3'}, fmask=0x3f7700)
        t.case('a store to a read-only page behind a branch', m, store, regs={'bx': 0x11000, 'cx': 0}, poke=read_only,
               fault=PF, err=user | 3, rip='.x', cr2=0x11008, out={'ax': 1}, mem={'0x11008': 'dd 3'}, fmask=0x3f7700)
        clean = {'PT64 + 0x11 * 8': f'dq 0x11003 + {user}', '0x11000': 'dd 1, 2, 3, 4, 5, 6'}
        t.case('a store that is jumped over sets no D', m, store, regs={'bx': 0x11000, 'cx': 1}, poke=clean,
               out={'ax': 1, 'di': 2}, mem={'PT64 + 0x11 * 8': f'dq 0x11023 + {user}'}, fmask=0x3f7700)
        t.case('a store behind a branch sets D', m, store, regs={'bx': 0x11000, 'cx': 0}, poke=clean,
               out={'ax': 1, 'di': 2, 'si': 5}, mem={'PT64 + 0x11 * 8': f'dq 0x11063 + {user}', '0x11008': 'dd 1'}, fmask=0x3f7700)
        untouched = {'PT64 + 0x11 * 8': f'dq 0x11003 + {user}'}
        t.case('a load that is jumped over sets no A', m,
               'mov eax, [rbx]\n test ecx, ecx\n jnz .skip\n mov edx, [rbx + 16]\n.skip: mov edi, [rbx + 4]',
               regs={'bx': 0x10ff4, 'cx': 1}, poke={**untouched, '0x10ff0': 'dd 1, 2, 3, 4'}, out={'ax': 2, 'di': 3},
               mem={'PT64 + 0x11 * 8': f'dq 0x11003 + {user}'}, fmask=0x3f7700)
        push = 'push rax\n test ecx, ecx\n jnz .skip\n push rbx\n.x: push rcx\n.skip: mov esi, 5'
        t.case('a push into an absent page is jumped over', m, push, regs={'sp': 0x12010, 'cx': 1, 'ax': 7},
               poke=absent, out={'sp': 0x12008, 'si': 5}, mem={'0x12008': 'dq 7'}, fmask=0x3f7700) if user else None
        t.case('a push into an absent page behind a branch', m, push, regs={'sp': 0x12010, 'cx': 0, 'ax': 7, 'bx': 8},
               poke=absent, fault=PF, err=user | 2, rip='.x', cr2=0x11ff8, out={'sp': 0x12000},
               mem={'0x12000': 'dq 8, 7'}, fmask=0x3f7700) if user else None
        t.case('a noncanonical access is jumped over', m,
               'mov eax, [rbx]\n test ecx, ecx\n jnz .skip\n mov edx, [rsi]\n mov edx, [rsi + 8]\n.skip: mov edi, [rbx + 4]',
               regs={'bx': 0x10ff4, 'cx': 1, 'si': 0x800000000000}, poke={'0x10ff0': 'dd 1, 2, 3, 4'}, out={'ax': 2, 'di': 3},
               fmask=0x3f7700)
    # what is behind a branch divides by zero, or is nothing at all
    for cx, expect in ((1, {'out': {'ax': 7}}), (0, {'fault': DE, 'rip': '.x', 'out': {'ax': 7}})):
        t.case(f'a division by zero {"is jumped over" if cx else "behind a branch"}', BOTH,
               'mov eax, [M]\n test ecx, ecx\n jnz .end\n.x: div ebx', regs={'cx': cx, 'bx': 0}, poke={'M': 'dd 7'}, fmask=0x3f7700,
               **expect)
        t.case(f'what is no instruction {"is jumped over" if cx else "behind a branch"}', BOTH,
               'mov eax, [M]\n test ecx, ecx\n jnz .end\n.x: db 0x0f, 0xff, 0xff, 0xff', regs={'cx': cx}, poke={'M': 'dd 7'},
               fmask=0x3f7700, **{**expect, **({'fault': UD} if not cx else {})})


def far_targets(t):
    """The target lies in the slot's second page, or in a page whose mapping changes."""
    for bx in (4, 5, 6):
        t.case(f'a branch to the next page: 5 against {bx}', BOTH,
               'mov eax, 5\n cmp eax, ebx\n mov ecx, [M]\n jc .far\n mov edx, 1\n jz .farther\n mov edx, [M + 4]\n jmp .end\n'
               ' times 0x1010 - ($ - .insn) db 0xf4\n.far: adc edx, 0\n.farther: sbb esi, 0\n jmp .end',
               regs={'bx': bx, 'dx': 100, 'si': 50}, poke={'M': 'dd 8, 9'},
               out={'ax': 5, 'cx': 8, 'dx': 101 if bx > 5 else 1 if bx == 5 else 9, 'si': 50}, fmask=0x3f7700)
        t.case(f'a branch to an instruction in both pages: 5 against {bx}', BOTH,
               'mov eax, 5\n cmp eax, ebx\n mov ecx, [M]\n jc near .x\n mov edx, [M + 4]\n jmp near .end\n'
               ' times 0xffe - ($ - .insn) db 0xf4\n.x: mov edx, 0x11223344\n adc edx, 0',
               regs={'bx': bx, 'dx': 100}, poke={'M': 'dd 8, 9'},
               out={'ax': 5, 'cx': 8, 'dx': 0x11223345 if bx > 5 else 9}, fmask=0x3f7700)
    CODE = {'0x10000': 'db 0xb0, 1, 0xc3', '0x11000': 'db 0xb0, 2, 0xc3'}  # mov al, n; ret
    for modes, pt, step, sizes in (('pg', 'PT32', 4, 'dword'), ('pae l', 'PT64', 8, 'dword')):
        entry = f'[{pt} + 0x10 * {step}]'
        t.case('the page a branch leads to is mapped elsewhere', modes,
               f'mov ecx, 6\n xor ebx, ebx\n.again: call .f\n shl ebx, 4\n or bl, al\n'
               f' xor {sizes} {entry}, 0x10000 ^ 0x11000\n invlpg [0x10000]\n dec ecx\n jnz .again\n jmp .end\n'
               '.f: mov al, 7\n cmp ecx, 3\n db 0x0f, 0x83\n dd 0x10000 - SLOT - ($ + 4 - .insn)\n cmp ecx, 2\n je .ret\n mov al, 9\n'
               '.ret: ret',
               poke=CODE, out={'ax': None, 'cx': 0, 'bx': 0x121279}, fmask=0x3f7700)


def changes(t):
    """Code behind a branch and where it leads changes just before, or comes to read other flags."""
    for taken in (0, 1):
        t.case(f'a store behind a branch {"that is taken" if taken else "not taken"} changes the next instruction', BOTH,
               'test ecx, ecx\n jnz .x\n mov byte [A(.x) + 1], 0x55\n.x: mov al, 0x11', regs={'cx': taken},
               out={'ax': lambda v, taken=taken: v & 0xff == (0x11 if taken else 0x55)}, fmask=0x3f7700)
        t.case(f'a store before a branch {"taken" if taken else "not taken"} changes both sides', BOTH,
               'test ecx, ecx\n mov byte [A(.x) + 1], 0x55\n mov byte [A(.y) + 1], 0x66\n jnz .y\n.x: mov al, 0x11\n jmp .end\n'
               '.y: mov al, 0x22', regs={'cx': taken},
               out={'ax': lambda v, taken=taken: v & 0xff == (0x66 if taken else 0x55)}, fmask=0x3f7700)
    # ADD edx, 1 becomes ADC edx, 1: the translation of the CMP before had taken its carry for dead, and what checks the load
    # leaves one.
    for name, way, target in (('the side branched to', 'inc edi\n jnz .t\n add edx, 0x100\n jmp .end\n', '.t'), ('the side behind', 'inc edi\n jz .no\n', '.x'),
                              ('what a jump leads to', 'jmp .t\n times 40 nop\n', '.t'),
                              ('what a branch back goes on to', 'inc edi\n jz .back\n', '.x')):
        t.case(f'{name} comes to read a flag', FLAT,
               f'mov ecx, 2\n mov edx, 0\n jmp .go\n.back: add edx, 0x100\n jmp .end\n.go: cmp eax, ebx\n mov esi, [M]\n {way}'
               f'{target}: add edx, 1\n dec ecx\n jz .end\n mov byte [A({target}) + 1], 0xd2\n jmp .go\n.no: add edx, 0x100',
               regs={'ax': 2, 'bx': 1, 'di': 5}, out={'cx': 0, 'dx': 2, 'si': 0, 'di': 5 if way.startswith('jmp') else 7},
               fmask=0x3f7700)
    for carry in ('stc', 'clc'):
        t.case(f'what a call returns to comes to read a flag: {carry}', FLAT,
               'xor edx, edx\n call .f\n.x: add edx, 1\n jmp .end\n'
               f'.f: mov byte [A(.x) + 1], 0xd2\n mov esi, [M]\n {carry}\n ret',
               out={'dx': 2 if carry == 'stc' else 1, 'si': 0}, fmask=0x3f7700)
    t.case('the target of a branch becomes another', FLAT,
           'mov ecx, 2\n xor edx, edx\n jmp .go\n.go: test ecx, ecx\n.x: jnz .a\n ud2\n.a: add edx, 1\n jmp .next\n.b: add edx, 0x10\n'
           '.next: dec ecx\n jz .end\n mov byte [A(.x) + 1], .b - .x - 2\n jmp .go',
           out={'cx': 0, 'dx': 0x11}, fmask=0x3f7700)


def cases(t):
    liveness(t)
    accesses(t)
    far_targets(t)
    changes(t)
