"""Code that changes under the processor: stores into it, and pages mapped elsewhere (SDM 3A 8.1.3, 4.10.4, 11.6). The
processor must see a store to the very next instruction, on the same page, across pages and through another mapping."""
from machine import *

MODES_16 = 'real p16'
FLAT = 'p32 p32u pg pgu pae c32u l lu'
# Where QEMU's translator departs from the manuals: text of the name, modes, in what.
QEMU_DIFFERS = [
    ('REP STOS over itself', '', 'it reads the instruction again'),
    ('change of a page', '', 'it reads first'),
    ('NX is a reserved bit', '', 'it does not set P'),
    ('a reserved address bit', '', 'it does not set P'),
]

BOTH = MODES_16 + ' v86 ' + FLAT


def a(m):
    return 'rax' if m.code64 else 'eax'


def stores(t):
    """An immediate is changed and executed at once."""
    t.case('a store to the next instruction', BOTH, 'mov byte [A(.x) + 1], 0x55\n.x: mov al, 0\n',
           out={'ax': lambda v: v & 0xff == 0x55})
    t.case('a store to the next instruction, again and again', BOTH,
           'xor bx, bx\n mov cx, 300\n.loop: mov [A(.x) + 1], cl\n.x: mov al, 0\n movzx dx, al\n add bx, dx\n dec cx\n'
           ' jnz .loop',
           out={'ax': None, 'bx': lambda v: v & 0xffff == sum(i & 0xff for i in range(1, 301)) & 0xffff, 'cx': None,
                'dx': None}, fmask=0x3f7700)
    t.case('a store to an earlier instruction of the block', BOTH,
           'mov dl, 0\n.again: mov al, 1\n cmp dl, 0\n jne .end\n inc dl\n mov byte [A(.again) + 1], 0x66\n jmp .again',
           out={'ax': lambda v: v & 0xff == 0x66, 'dx': lambda v: v & 0xff == 1}, fmask=0x3f7700)
    t.case('an opcode becomes another', BOTH, 'mov byte [A(.x)], 0x90\n mov byte [A(.x) + 1], 0x90\n.x: ud2\n')
    t.case('an instruction becomes longer', FLAT, 'mov word [A(.x)], 0x9066\n.x: nop\n nop')
    t.case('a word store across the end of an instruction', BOTH,
           'mov word [A(.x) + 1], 0xb411\n.x: mov al, 0\n.y: mov bl, 0x22\n',
           out={'ax': lambda v: v & 0xffff == 0x2211})
    for size, insn in ((1, 'rep stosb'), (4, 'o32 rep stosd')):
        n = 8 // size
        t.case(f'REP STOS of {size} bytes over the code behind it', BOTH,
               f'{insn if size == 1 else "rep stosd"}\n.x: ud2\n ud2\n ud2\n ud2',
               regs=lambda m: {'cx': n, 'di': LAYOUT['SLOT'] + (2 if size == 1 or m.bits != 16 else 3),
                               'ax': 0x90909090},
               out=lambda m: {'cx': 0, 'di': LAYOUT['SLOT'] + (2 if size == 1 or m.bits != 16 else 3) + 8})
    t.case('a REP STOS over itself ends at the old count', FLAT, 'rep stosb\n nop\n nop',
           regs={'cx': 2, 'di': LAYOUT['SLOT'], 'ax': 0x90},
           out={'cx': 0, 'di': LAYOUT['SLOT'] + 2})
    t.case('ADD to memory changes the next instruction', BOTH, 'add byte [A(.x) + 1], 5\n.x: mov al, 0x10',
           out={'ax': lambda v: v & 0xff == 0x15}, fmask=0x3f7700)
    t.case('XCHG changes the next instruction', BOTH, 'xchg [A(.x) + 1], bl\n.x: mov al, 0x10', regs={'bx': 0x77},
           out={'ax': lambda v: v & 0xff == 0x77, 'bx': 0x10})
    t.case('a locked store changes the next instruction', FLAT, 'lock or byte [A(.x) + 1], 0x41\n.x: mov al, 0x10',
           out={'ax': lambda v: v & 0xff == 0x51}, fmask=0x3f7700)
    t.case('an x87 store changes the next instruction', 'p32 l',
           'fninit\n fild dword [M]\n fistp dword [A(.x) + 1]\n.x: mov ebx, 0', poke={'M': 'dd 0x12345'},
           out={'bx': 0x12345})
    # What is no instruction depends on more than its first byte: 0F 04 becomes IMUL by its second alone.
    t.case('what is no instruction becomes one behind a branch', BOTH,
           'mov cl, 3\n.go: cmp cl, 1\n jne .skip\n.x: db 0x0f, 0x04, 0xc0\n jmp .end\n'
           '.skip: dec cl\n cmp cl, 1\n jne .go\n mov byte [A(.x) + 1], 0xaf\n jmp .go', regs={'ax': 3, 'cx': 0}, out={'ax': 9, 'cx': 1}, fmask=0x3f7700)
    for where, pad in (('', 'jmp .x\n nop'), (' in two pages', 'jmp near .x\n times 0xfff - ($ - .insn) nop')):
        t.case('the handler of #UD makes an instruction' + where, 'p32 pae',
               f'{pad}\n.x: db 0x0f, 0x04, 0xc0\n mov word [IDT32 + 6 * 8], STUB32 + 6 * 8\n jmp .end\n.h: inc ecx\n mov byte [A(.x) + 1], 0xaf\n'
               ' cmp ecx, 3\n jb .r\n add dword [esp], 3\n.r: iretd', regs={'ax': 3, 'cx': 0}, out={'ax': 9, 'cx': 1},
               poke={'IDT32 + 6 * 8': 'dw A(.h), 8, 0x8e00, 0'}, fmask=0x3f7700)
    # A segment whose base and offsets add up to more than 4 GiB: linear addresses wrap around.
    t.case('code of a segment that wraps around changes itself', 'p32 pae',
           'mov ecx, 5\n jmp 0x3e0:A(.in) + 0x80000000\n.in: mov al, 0x11\n add ebx, eax\n mov [A(.in) + 1], cl\n'
           ' dec ecx\n jnz .in\n jmp 0x08:A(.out)\n.out: nop', regs={'ax': 0, 'bx': 0},
           poke={'GDT + 0x3e0': f'dq {descriptor(0x80000000, 0xfffff, 0x9b, 0xc):#x}'},
           out={'ax': 2, 'bx': 0x11 + 5 + 4 + 3 + 2, 'cx': 0}, fmask=0x3f7700)
    t.case('an instruction in two pages of a segment that wraps around', 'p32 pae c32',
           lambda m: f'mov ecx, 3\n jmp 0x3e0:A(.in) + 0x80000000\n.in: mov edx, cr3\n mov cr3, edx\n jmp near .x\n times 0xffe - ($ - .insn) nop\n'
           f'.x: mov eax, 0x11223344\n add ebx, eax\n dec ecx\n jnz near .in\n jmp {m.cs:#x}:A(.out)\n.out: nop',
           regs={'bx': 0}, poke={'GDT + 0x3e0': f'dq {descriptor(0x80000000, 0xfffff, 0x9b, 0xc):#x}'},
           out={'ax': 0x11223344, 'bx': 0x336699cc, 'cx': 0, 'dx': None}, fmask=0x3f7700)
    # across a page border: the slot has two pages
    t.case('a store into the second page of an instruction', BOTH,
           lambda m: 'jmp near .go\n times 0xff0 - ($ - .insn) db 0x90\n.go: mov bx, 3\n.again: nop\n'
                    ' times 0xffe - ($ - .insn) db 0x90\n'
           f'.x: mov eax, 0x11223344\n mov byte [A(.x) + {5 if m.bits == 16 else 4}], bl\n dec bx\n jnz .again',
           out={'ax': 0x02223344, 'bx': lambda v: v & 0xffff == 0}, fmask=0x3f7700)
    t.case('a store into the first page of an instruction', BOTH,
           lambda m: 'jmp near .go\n times 0xff0 - ($ - .insn) db 0x90\n.go: mov bx, 3\n.again: nop\n'
                    ' times 0xffe - ($ - .insn) db 0x90\n'
           f'.x: mov eax, 0x11223344\n mov byte [A(.x) + {2 if m.bits == 16 else 1}], bl\n dec bx\n jnz .again',
           out={'ax': 0x11223302, 'bx': lambda v: v & 0xffff == 0}, fmask=0x3f7700)
    t.case('data beside code',
           BOTH,
           'mov cx, 2000\n.again: inc word [A(.data)]\n dec cx\n jnz .again\n mov bx, [A(.data)]\n jmp .end\n'
           '.data: dw 7\n',
           out={'cx': lambda v: v & 0xffff == 0, 'bx': lambda v: v & 0xffff == 2007}, fmask=0x3f7700)
    t.case('code written, called and written again', 'p32 p32u c32u real',
           'xor bx, bx\n mov cx, 20\n mov word [M], 0xc383\n mov byte [M + 3], 0xc3\n.again: mov [M + 2], cl\n'
           ' call M - SLOT + .insn\n dec cx\n jnz .again',
           out={'bx': None, 'cx': lambda v: v & 0xffff == 0}, fmask=0x3f7700)


def remaps(t):
    """FREE (10000h) and the page behind it hold MOV AL,1; RET and MOV AL,2; RET."""
    CODE = {'0x10000': 'db 0xb0, 1, 0xc3', '0x11000': 'db 0xb0, 2, 0xc3'}
    for modes, pt, step, sizes in (('pg', 'PT32', 4, 'dword'), ('pae l c32', 'PT64', 8, 'dword')):
        entry = f'[{pt} + 0x10 * {step}]'
        t.case('a called page is mapped elsewhere', modes,
               lambda m: f'mov {a(m)}, 0x10000\n call {a(m)}\n mov bl, al\n mov {sizes} {entry}, 0x11007\n'
                    f' invlpg [0x10000]\n'
               f' mov {a(m)}, 0x10000\n call {a(m)}\n mov bh, al', poke=CODE,
               out={'ax': None, 'bx': lambda v: v & 0xffff == 0x0201})
        t.case('a mapping changes behind a chain of jumps', modes,
               lambda m: f'mov ecx, 4\n xor ebx, ebx\n.again: call .f\n shl ebx, 8\n mov bl, al\n'
                    f' xor {sizes} {entry}, 0x10000 ^ 0x11000\n'
               f' invlpg [0x10000]\n dec ecx\n jnz .again\n jmp .end\n.f: db 0xe9\n'
               f' dd 0x10000 - SLOT - ($ + 4 - .insn)',
               poke=CODE, out={'ax': None, 'cx': 0, 'bx': 0x01020102}, fmask=0x3f7700)
        t.case('MOV CR3 changes a mapping behind a chain of jumps', modes,
               lambda m: f'mov ecx, 4\n xor ebx, ebx\n.again: call .f\n shl ebx, 8\n mov bl, al\n'
                    f' xor {sizes} {entry}, 0x10000 ^ 0x11000\n'
               f' mov {a(m)}, cr3\n mov cr3, {a(m)}\n dec ecx\n jnz .again\n jmp .end\n.f: db 0xe9\n'
               f' dd 0x10000 - SLOT - ($ + 4 - .insn)',
               poke=CODE, out={'ax': None, 'cx': 0, 'bx': 0x01020102}, fmask=0x3f7700)
        t.case('the page a RET goes back to is mapped elsewhere meanwhile', modes, lambda m:
               # 10000h: call .f; mov bl,1; ud2   11000h: the same with 2. .f swaps the pages under its caller
               f'db 0xe9\n dd 0x10000 - SLOT - ($ + 4 - .insn)\n.f: xor {sizes} {entry}, 0x10000 ^ 0x11000\n'
               f' invlpg [0x10000]\n ret',
               poke={'0x10000': 'db 0xe8\n dd A(.f) - 0x10005\n db 0xb3, 1\n ud2',
                     '0x11000': 'times 5 db 0x90\n db 0xb3, 2\n ud2'},
               rip='0x10007', out={'bx': lambda v: v & 0xff == 2}, fmask=0x3f7700)
        t.case('a page of code disappears',
               modes,
               lambda m: f'mov {a(m)}, 0x10000\n call {a(m)}\n mov {sizes} {entry}, 0\n invlpg [0x10000]\n'
                    f' mov {a(m)}, 0x10000\n call {a(m)}', poke=CODE,
               fault=PF, rip='0x10000', err=0, cr2=0x10000, out={'ax': None, 'sp': None})
        t.case('the second page of an instruction is mapped elsewhere', modes, lambda m:
               f'mov ecx, 2\n.again: call .f\n shl ebx, 8\n mov bl, al\n'
               f' xor {sizes} [{pt} + 0x11 * {step}], 0x11000 ^ 0x12000\n invlpg [0x11000]\n dec ecx\n jnz .again\n'
               f' jmp .end\n'
               '.f: db 0xe9\n dd 0x10fff - SLOT - ($ + 4 - .insn)',
               poke={'0x10fff': 'db 0xb0', '0x11000': 'db 1, 0xc3', '0x12000': 'db 2, 0xc3'}, regs={'bx': 0},
               out={'ax': None, 'cx': 0, 'bx': 0x0102}, fmask=0x3f7700)
        t.case('the second page of an instruction is not there', modes,
               'db 0xe9\n dd 0x10fff - SLOT - ($ + 4 - .insn)', fault=PF, rip='0x10fff', err=0, cr2=0x11000,
               poke={'0x10fff': 'db 0xb0', f'{pt} + 0x11 * {step}': 'dd 0'})
        # one physical page at two addresses
        alias = {f'{pt} + 0x20 * {step}': 'dd 0x10007'}
        t.case('code is changed through another mapping', modes,
               lambda m: f'mov edx, 3\n xor ebx, ebx\n.again: mov {a(m)}, 0x10000\n call {a(m)}\n shl ebx, 8\n'
                    f' mov bl, al\n'
               ' inc byte [0x20001]\n dec edx\n jnz .again', poke={**CODE, **alias},
               out={'ax': None, 'dx': 0, 'bx': 0x010203}, fmask=0x3f7700)
        t.case('the running page is changed through another mapping', modes,
               'mov byte [0x21000 + (A(.x) - SLOT) + 1], 0x55\n.x: mov al, 0',
               poke={f'{pt} + 0x21 * {step}': 'dd SLOT + 7'},
               out={'ax': lambda v: v & 0xff == 0x55})
        t.case('the same code at two addresses',
               modes,
               lambda m: f'mov {a(m)}, 0x20000\n call {a(m)}\n mov bl, al\n inc byte [0x10001]\n mov {a(m)}, 0x20000\n'
                    f' call {a(m)}\n mov bh, al\n'
               f' mov {a(m)}, 0x10000\n call {a(m)}\n mov dl, al', poke={**CODE, **alias},
               out={'ax': None, 'bx': lambda v: v & 0xffff == 0x0201, 'dx': lambda v: v & 0xff == 2}, fmask=0x3f7700)
        t.case('data is mapped elsewhere',
               modes, f'mov bl, [0x10001]\n mov {sizes} {entry}, 0x11007\n invlpg [0x10000]\n mov bh, [0x10001]',
               poke=CODE, out={'bx': lambda v: v & 0xffff == 0x0201})
        t.case('code and data of one address from one walk', modes,
               lambda m: f'mov {a(m)}, 0x10000\n call {a(m)}\n mov bl, [0x10001]\n add bl, al', poke=CODE,
               out={'ax': None, 'bx': lambda v: v & 0xff == 2}, fmask=0x3f7700)


def permissions(t):
    """The page-fault error code of each kind of access (SDM 3A 4.7), at 10000h."""
    for m, pt, step in (('pg', 'PT32', 4), ('pgu', 'PT32', 4), ('pae', 'PT64', 8), ('paeu', 'PT64', 8),
                        ('l', 'PT64', 8), ('lu', 'PT64', 8), ('c32u', 'PT64', 8)):
        user = 4 if MODES[m].user else 0
        wp = 0x10000
        for entry, bits in (('absent', 0), ('supervisor, read-only', 1), ('supervisor', 3), ('user, read-only', 5),
                            ('user', 7)):
            read_ok = bits & 1 and (not user or bits & 4)
            write_ok = read_ok and bits & 2
            present = bits & 1
            poke = {f'{pt} + 0x10 * {step}': f'dd 0x10000 + {bits}', '0x10000': 'dd 0x77'}
            t.case(f'read of a page: {entry}', m, 'mov eax, [0x10000]', poke=poke, fault=None if read_ok else PF,
                   err=user | present, cr2=None if read_ok else 0x10000,
                   out={'ax': 0x77} if read_ok else {})
            t.case(f'write to a page: {entry}', m, 'mov [0x10000], eax', poke=poke, fault=None if write_ok else PF,
                   err=user | present | 2, cr2=None if write_ok else 0x10000)
            t.case(f'change of a page: {entry}', m, 'add [0x10000], eax', poke=poke, fault=None if write_ok else PF,
                   err=user | present | 2, cr2=None if write_ok else 0x10000,
                   fmask=0x3f7700)
            if not user:
                t.case(f'write to a page without WP: {entry}', m, 'mov [0x10000], eax', poke=poke, cr0_clear=wp,
                       fault=None if present else PF, err=2,
                       cr2=None if present else 0x10000)
            t.case(f'fetch from a page: {entry}', m, 'db 0xe9\n dd 0x10000 - SLOT - 5',
                   poke={**poke, '0x10000': 'ud2'}, rip='0x10000', fault=None if read_ok else PF,
                   err=user | present, cr2=None if read_ok else 0x10000)
        t.case('a read sets A, a write sets D', m, 'mov eax, [0x10000]\n mov [0x11000], eax', out={'ax': 0},
               mem={f'{pt} + 0x10 * {step}': 'dd 0x10027', f'{pt} + 0x11 * {step}': 'dd 0x11067'})
        t.case('a write across two pages of which the second is absent stores nothing', m, 'mov [0x10ffe], eax',
               regs={'ax': 0x11223344}, poke={f'{pt} + 0x11 * {step}': 'dd 0'},
               fault=PF, err=user | 2, cr2=0x11000, mem={'0x10ffe': 'dw 0'})
        t.case('a write across two pages of which the first is absent stores nothing', m, 'mov [0x10ffe], eax',
               regs={'ax': 0x11223344}, poke={f'{pt} + 0x10 * {step}': 'dd 0'},
               fault=PF, err=user | 2, cr2=0x10ffe, mem={'0x11000': 'dw 0'})
        if step == 8:
            nx = {f'{pt} + 0x10 * 8': 'dq 0x8000000000010007', '0x10000': 'ud2'}
            t.case('fetch from a page with NX', m, 'db 0xe9\n dd 0x10000 - SLOT - 5', efer=0x800, poke=nx,
                   rip='0x10000', fault=PF, err=user | 0x11, cr2=0x10000)
            t.case('read of a page with NX', m, 'mov ax, [0x10000]', efer=0x800, poke=nx, out={'ax': None})
            t.case('NX is a reserved bit without NXE', m, 'mov ax, [0x10000]', poke=nx, fault=PF, err=user | 9,
                   cr2=0x10000)
            t.case('an absent page tells nothing of NX without NXE or SMEP', m, 'db 0xe9\n dd 0x10000 - SLOT - 5',
                   poke={f'{pt} + 0x10 * 8': 'dq 0'}, rip='0x10000', fault=PF,
                   err=user, cr2=0x10000)
            t.case('a reserved address bit', m, 'mov ax, [0x10000]',
                   poke={f'{pt} + 0x10 * 8': 'dq 0x0008000000010007'}, fault=PF, err=user | 9, cr2=0x10000)
        if not user:
            # supervisor pages for everything the monitor and the case touch
            quiet = {pt: f'd{"d" if step == 4 else "q"} ' + ', '.join(f'{i * 0x1000 + 3:#x}' for i in range(16))}
            t.case('SMEP: fetch from a user page', m, 'db 0xe9\n dd 0x10000 - SLOT - 5', cr4=1 << 20,
                   poke={**quiet, '0x10000': 'ud2'}, rip='0x10000', fault=PF, err=0x11, cr2=0x10000)
            t.case('SMAP: read of a user page', m, 'mov eax, [0x10000]', cr4=1 << 21, poke=quiet, fault=PF, err=1,
                   cr2=0x10000)
            t.case('SMAP: write to a user page', m, 'mov [0x10000], eax', cr4=1 << 21, poke=quiet, fault=PF, err=3,
                   cr2=0x10000)
            t.case('SMAP: STAC opens, CLAC closes', m, 'stac\n mov eax, [0x10000]\n clac\n|mov eax, [0x10000]',
                   cr4=1 << 21, poke=quiet, fault=PF, err=1, cr2=0x10000, out={'ax': 0})
            t.case('SMAP: a fetch is none of its business', m, 'db 0xe9\n dd 0x10000 - SLOT - 5', cr4=1 << 21,
                   poke={**quiet, '0x10000': 'ud2'}, rip='0x10000')
    t.case('a noncanonical address', 'l lu', 'mov eax, [rbx]', regs={'bx': 0x800000000000}, fault=GP,
           qemu='it checks no canonical addresses')
    t.case('a noncanonical stack', 'l lu', 'mov eax, [rbp]', regs={'bp': 0x800000000000}, fault=SS,
           qemu='it checks no canonical addresses')
    t.case('a noncanonical push', 'lu', 'push rax', regs={'sp': 0x800000000008 + 8}, fault=SS,
           qemu='it checks no canonical addresses')
    t.case('an access into the noncanonical hole', 'l', 'mov eax, [rbx]', regs={'bx': 0x7ffffffffffe}, fault=GP,
           qemu='it checks no canonical addresses')
    hole = {'regs': {'ax': 0x800000000000}, 'fault': GP, 'qemu': 'it faults at the target'}
    t.case('a jump to a noncanonical address faults itself', 'l lu', 'jmp rax', **hole)
    t.case('a call of a noncanonical address faults itself', 'l lu', 'call rax', **hole)
    t.case('a return to a noncanonical address faults itself', 'l lu', 'ret', poke={'STK': 'dq 0x800000000000'},
           **hole)
    t.case('a noncanonical branch target is #GP and no page fault', 'l lu', 'jmp rax', regs={'ax': 0x800000000000}, fault=GP,
           rip='any', qemu='it raises a page fault')
    t.case('the upper half', 'l lu', 'mov eax, [rbx]', regs={'bx': 0xffffff8000007000}, poke={'M': 'dd 0x99'},
           out={'ax': 0x99})


def alignment(t):
    AC_BIT, AM = 0x40000, 0x40000
    users = 'p32u pgu c32u lu'
    # The arithmetic flags of ADD are dead and may be anything in the frame: docs/decisions/002-dead-flags.md.
    for insn in ('mov eax, [M + 1]', 'mov [M + 2], eax', 'add ax, [M + 1]', 'mov ax, [M + 1]'):
        t.case(f'#AC: {insn}', users, insn, cr0=AM, flags=AC_BIT, fault=AC, fmask=0x3f7700, qemu='it has no #AC')
        t.case(f'no #AC without AM: {insn}', users, insn, flags=AC_BIT, out={'ax': None}, fmask=0x3f7700)
        t.case(f'no #AC without AC: {insn}', users, insn, cr0=AM, out={'ax': None}, fmask=0x3f7700)
    t.case('no #AC in ring 0', 'p32 l', 'mov eax, [M + 1]', cr0=AM, flags=AC_BIT, out={'ax': 0})
    t.case('no #AC for bytes', users, 'mov al, [M + 1]', cr0=AM, flags=AC_BIT, out={'ax': None})
    t.case('#AC of a stack access', users, lambda m: 'pop rax' if m.code64 else 'pop eax',
           regs={'sp': LAYOUT['STK'] - 0x11}, cr0=AM, flags=AC_BIT,
           fault=AC, qemu='it has no #AC')
    t.case('SGDT is not checked as a word', 'p32u', 'sgdt [M + 2]', cr0=AM, flags=AC_BIT)


def cases(t):
    stores(t)
    remaps(t)
    permissions(t)
    alignment(t)
