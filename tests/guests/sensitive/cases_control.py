"""Control and debug registers, MSRs, TLB invalidation and the rest that only ring 0 may do (SDM 2A to 2D; 3A 2.5,
17.2)."""
from machine import *

LOOSE = 'it does not check'
CR4_TSD, CR4_DE, CR4_PSE, CR4_PAE, CR4_PCE, CR4_OSXSAVE, CR4_FSGSBASE, CR4_PCIDE = (
    4, 8, 0x10, 0x20, 0x100, 1 << 18, 1 << 16, 1 << 17)


def ring_first(mode):
    return 'it looks at the ring first' if mode.ring else None


def control_registers(t):
    for insn in ('mov eax, cr0', 'mov cr0, eax', 'mov eax, cr2', 'mov cr2, eax', 'mov eax, cr3', 'mov cr3, eax',
                 'mov eax, cr4', 'mov cr4, eax', 'clts'):
        def code(m, insn=insn):
            return insn.replace('eax', 'rax') if m.code64 else insn
        t.case(f'{insn} is for ring 0', OUTER, code, fault=GP)
    for n in (1, 5, 6, 7):
        t.case(f'CR{n} does not exist', ALL, f'db 0x0f, 0x20, {0xc0 + 8 * n}', fault=UD, qemu=ring_first)
        t.case(f'CR{n} does not exist for writing', ALL, f'db 0x0f, 0x22, {0xc0 + 8 * n}', fault=UD, qemu=ring_first)
    t.case('CR8 is for ring 0', 'lu', 'mov rax, cr8', fault=GP)
    t.case('CR8 is for ring 0', 'lu', 'mov cr8, rax', fault=GP)
    t.case('CR9 does not exist', 'l lu', 'db 0x44, 0x0f, 0x20, 0xc8', fault=UD, qemu=ring_first)
    t.case('CR8 holds four bits', 'l', 'mov cr8, rbx\n mov rax, cr8\n xor ecx, ecx\n mov cr8, rcx', regs={'bx': 0xf},
           out={'ax': 0xf, 'cx': 0}, oflags=0x46)
    t.case('CR8 bits above', 'l', 'mov cr8, rbx', regs={'bx': 0x10}, fault=GP, qemu=LOOSE)
    t.case('MOV r32,CR0', names(lambda m: m.ring == 0 and not m.code64), 'mov eax, cr0', out=lambda m: {'ax': m.cr0})
    t.case('MOV r64,CR0', 'l', 'mov rax, cr0', out=lambda m: {'ax': m.cr0})
    t.case('MOV r32,CR4', names(lambda m: m.ring == 0 and not m.code64), 'mov eax, cr4', out=lambda m: {'ax': m.cr4})
    t.case('MOV r,CR3', 'pg pae c32', 'mov eax, cr3', out=lambda m: {'ax': m.cr3})
    t.case('MOV r,CR3', 'l', 'mov rax, cr3', out=lambda m: {'ax': m.cr3})
    t.case('MOV CR looks at no mod field', 'p32 pg', 'db 0x0f, 0x20, 0x00', out=lambda m: {'ax': m.cr0})
    t.case('MOV CR looks at no operand size', 'p32 p16 real', 'db 0x66\n mov eax, cr0', out=lambda m: {'ax': m.cr0})
    t.case('MOV CR2', RING0, lambda m: 'mov cr2, rbx\n mov rax, cr2' if m.code64 else 'mov cr2, ebx\n mov eax, cr2',
           out=lambda m: {'ax': 0x1111111122220333 if m.code64 else 0x22220333})
    # CR0
    t.case('PG without PE', 'real', 'mov cr0, ebx', regs={'bx': 0x80000010}, fault=GP, qemu=LOOSE)
    t.case('PG without PE', 'p32', 'mov cr0, ebx', regs={'bx': 0x80000010}, fault=GP, qemu=LOOSE)
    t.case('NW without CD', RING0, lambda m: 'mov cr0, rbx' if m.code64 else 'mov cr0, ebx',
           regs=lambda m: {'bx': m.cr0 | 0x20000000}, fault=GP, qemu=LOOSE)
    t.case('NW with CD', 'p32 pg l', lambda m: 'mov cr0, rbx' if m.code64 else 'mov cr0, ebx',
           regs=lambda m: {'bx': m.cr0 | 0x60000000}, ocr0=lambda m: m.cr0 | 0x60000000)
    t.case('CR0 above 32 bits', 'l', 'mov cr0, rbx', regs={'bx': 0x180010011}, fault=GP, qemu=LOOSE)
    t.case('CR0.ET stays set', 'p32', 'mov cr0, ebx', regs={'bx': 1}, ocr0=0x11)
    t.case('leaving paging from 64-bit code', 'l', 'mov cr0, rbx', regs={'bx': 0x11}, fault=GP, qemu=LOOSE)
    t.case('leaving paging from compatibility mode', 'c32', 'mov eax, cr0\n and eax, 0x7fffffff\n mov cr0, eax\n'
           ' lidt [M]\n', poke={'M': 'dw IDT32_LIMIT\n dd IDT32'}, out={'ax': None}, fmask=0x3f7740, ocr0=0x10011)
    t.case('entering long mode without PAE', 'p32', 'mov cr0, ebx', efer=0x100, regs={'bx': 0x80000011}, fault=GP,
           qemu=LOOSE)
    t.case('CLTS', RING0P, 'clts', cr0=8, ocr0=lambda m: m.cr0)
    # CR4
    t.case('CR4 reserved bit', RING0, lambda m: 'mov cr4, rbx' if m.code64 else 'mov cr4, ebx',
           regs=lambda m: {'bx': m.cr4 | 0x80000000}, fault=GP, qemu=LOOSE)
    t.case('CR4 above 32 bits', 'l', 'mov cr4, rbx', regs={'bx': 0x100000020}, fault=GP, qemu=LOOSE)
    t.case('clearing PAE in long mode', 'l c32', lambda m: 'mov cr4, rbx' if m.code64 else 'mov cr4, ebx',
           regs={'bx': 0}, fault=GP, qemu=LOOSE)
    t.case('PCIDE outside long mode', 'p32 pae', 'mov cr4, ebx', regs=lambda m: {'bx': m.cr4 | CR4_PCIDE}, fault=GP,
           qemu=LOOSE)
    t.case('PCIDE with a PCID in CR3', 'l', 'mov cr4, rbx', regs=lambda m: {'bx': m.cr4 | CR4_PCIDE},
           cr3=LAYOUT['PML4'] + 8, fault=GP, qemu=LOOSE)
    # CR3
    t.case('CR3 reserved bits', 'l', 'mov cr3, rbx', regs={'bx': 1 << 62}, fault=GP, qemu=LOOSE)
    t.case('CR3 bit 63 without PCIDE', 'l', 'mov cr3, rbx', regs={'bx': (1 << 63) + LAYOUT['PML4']}, fault=GP,
           qemu=LOOSE)
    t.case('a PDPTE with reserved bits', 'pae', 'mov cr3, ebx', regs={'bx': LAYOUT['PDPT_PAE']},
           setup='or dword [PDPT_PAE + 8], 2', cr3=LAYOUT['PDPT_PAE'] + 0x40,
           poke={'PDPT_PAE + 0x40': 'dq PDS + 1, PDS + 0x1001, PDS + 0x2001, PDS + 0x3001'}, fault=GP, qemu=LOOSE,
           ocr3=LAYOUT['PDPT_PAE'] + 0x40)
    t.case('PDPTEs are read at MOV CR3, not later', 'pae', 'mov dword [PDPT_PAE], 0\n mov eax, [FREE]',
           poke={'FREE': 'dd 77'},
           out={'ax': 77}, qemu='it walks from memory')


def debug_registers(t):
    for insn in ('mov eax, dr0', 'mov dr0, eax', 'mov eax, dr6', 'mov dr7, eax'):
        def code(m, insn=insn):
            return insn.replace('eax', 'rax') if m.code64 else insn
        t.case(f'{insn} is for ring 0', OUTER, code, fault=GP)
    def wide(m, text):
        return text.replace('eax', 'rax').replace('ebx', 'rbx') if m.code64 else text
    for n in (0, 1, 2, 3):
        t.case(f'DR{n} holds an address', RING0, lambda m: wide(m, f'mov dr{n}, ebx\n mov eax, dr{n}'),
               out=lambda m: {'ax': 0x1111111122220333 if m.code64 else 0x22220333})
    t.case('DR6 has fixed bits', RING0, lambda m: wide(m, 'mov dr6, ebx\n mov eax, dr6'), regs={'bx': 0xffffffff},
           out={'ax': lambda v: v & 0xffff7fff == 0xffff6fff}, qemu='it keeps all bits')
    t.case('DR6 of zero', RING0, lambda m: wide(m, 'mov dr6, ebx\n mov eax, dr6'), regs={'bx': 0},
           out={'ax': 0xffff0ff0})
    t.case('DR7 of zero', RING0, lambda m: wide(m, 'mov dr7, ebx\n mov eax, dr7'), regs={'bx': 0}, out={'ax': 0x400})
    t.case('DR7 has fixed bits', RING0, lambda m: wide(m, 'mov dr7, ebx\n mov eax, dr7\n mov ebx, 0\n mov dr7, ebx'),
           regs={'bx': 0xd000}, out={'ax': 0x400, 'bx': 0}, qemu='it keeps all bits')
    t.case('DR4 is DR6 without DE', RING0, lambda m: wide(m, 'db 0x0f, 0x21, 0xe0'), out={'ax': 0xffff0ff0})
    t.case('DR5 is DR7 without DE', RING0, lambda m: wide(m, 'db 0x0f, 0x21, 0xe8'), out={'ax': 0x400})
    t.case('DR4 with DE', RING0, 'db 0x0f, 0x21, 0xe0', cr4=CR4_DE, fault=UD)
    t.case('DR5 with DE', RING0, 'db 0x0f, 0x23, 0xe8', cr4=CR4_DE, fault=UD)
    t.case('DR8 does not exist', 'l lu', 'db 0x44, 0x0f, 0x21, 0xc0', fault=UD, qemu=ring_first)
    t.case('DR6 above 32 bits', 'l', 'mov dr6, rbx', regs={'bx': 1 << 32}, fault=GP, qemu=LOOSE)
    t.case('DR7 above 32 bits', 'l', 'mov dr7, rbx', regs={'bx': 1 << 63}, fault=GP, qemu=LOOSE)
    for insn in ('mov eax, dr0', 'mov dr3, eax', 'mov eax, dr7', 'mov dr6, eax'):
        t.case(f'general detect before {insn}', RING0, lambda m: wide(m, 'mov dr7, ebx\n|' + insn),
               regs={'bx': 0x2000},
               fault=DB, rip='.insn', odr6=0xffff2ff0, odr7=0x400, qemu='it has no general detect')


def msrs(t):
    for insn in ('rdmsr', 'wrmsr'):
        t.case(f'{insn.upper()} is for ring 0', OUTER, insn, regs={'cx': 0x10}, fault=GP)
        t.case(f'{insn.upper()} of an unknown MSR', RING0, insn, regs={'cx': 0x12345678}, fault=GP,
               qemu='it ignores them')
    t.case('WRMSR and RDMSR keep 64 bits', 'real p16 p32 l', 'wrmsr\n xor eax, eax\n xor edx, edx\n rdmsr',
           regs={'cx': 0xc0000102, 'ax': 0x89abcdef, 'dx': 0x1234}, oflags=0x46, out={'ax': 0x89abcdef, 'dx': 0x1234})
    t.case('RDMSR clears the upper halves', 'l', 'rdmsr', regs={'cx': 0xc0000080, 'ax': ~0, 'dx': ~0},
           out={'ax': 0x500, 'dx': 0})
    for name, msr in (('LSTAR', 0xc0000082), ('CSTAR', 0xc0000083), ('FS_BASE', 0xc0000100), ('GS_BASE', 0xc0000101),
                      ('KERNEL_GS_BASE', 0xc0000102)):
        t.case(f'WRMSR of a noncanonical {name}', 'p32 l', 'wrmsr', regs={'cx': msr, 'ax': 0, 'dx': 0x8000}, fault=GP,
               qemu=LOOSE)
    t.case('EFER reserved bits', 'p32 l', 'wrmsr', regs={'cx': 0xc0000080, 'ax': 0x80000000, 'dx': 0}, fault=GP,
           qemu=LOOSE)
    t.case('EFER.LME changes only without paging', 'l c32', 'wrmsr', regs={'cx': 0xc0000080, 'ax': 0, 'dx': 0},
           fault=GP, qemu=LOOSE)
    t.case('EFER.LME changes only without paging', 'pg pae', 'wrmsr', regs={'cx': 0xc0000080, 'ax': 0x100, 'dx': 0},
           fault=GP, qemu=LOOSE)
    t.case('PAT with a reserved type', 'p32 l', 'wrmsr', regs={'cx': 0x277, 'ax': 2, 'dx': 0}, fault=GP, qemu=LOOSE)
    t.case('APIC_BASE with reserved bits', 'p32 l', 'wrmsr', regs={'cx': 0x1b, 'ax': 0xfee00901, 'dx': 0}, fault=GP,
           qemu=LOOSE)
    # time and counters
    for insn in ('rdtsc', 'rdtscp'):
        out = {'ax': None, 'dx': None, 'cx': None}
        t.case(f'{insn.upper()} everywhere', ALL, insn, out=out)
        t.case(f'{insn.upper()} with TSD', OUTER, insn, cr4=CR4_TSD, fault=GP)
        t.case(f'{insn.upper()} with TSD in ring 0', RING0, insn, cr4=CR4_TSD, out=out)
    t.case('RDPMC without PCE', OUTER, 'rdpmc', regs={'cx': 0}, fault=GP)
    t.case('RDPMC of a counter that is none', 'p32 l', 'rdpmc', regs={'cx': 0x1234}, fault=GP, qemu='it has no RDPMC')
    t.case('CPUID everywhere', ALL, 'cpuid', regs={'ax': 0, 'cx': 0},
           out={'ax': lambda v: v and not v >> 32, 'bx': lambda v: not v >> 32, 'cx': None, 'dx': None})


def extended_state(t):
    t.case('XSETBV without OSXSAVE', ALL, 'xsetbv', regs={'cx': 0, 'ax': 3, 'dx': 0}, fault=UD, qemu=ring_first)
    t.case('XGETBV without OSXSAVE', ALL, 'xgetbv', regs={'cx': 0}, fault=UD)
    t.case('XSETBV is for ring 0', OUTER, 'xsetbv', cr4=CR4_OSXSAVE, regs={'cx': 0, 'ax': 3, 'dx': 0}, fault=GP)
    t.case('XSETBV', RING0, 'xsetbv\n xor eax, eax\n xgetbv\n', cr4=CR4_OSXSAVE, regs={'cx': 0, 'ax': 3, 'dx': 0},
           oflags=0x46,
           out={'ax': 3})
    t.case('XSETBV without x87', RING0P, 'xsetbv', cr4=CR4_OSXSAVE, regs={'cx': 0, 'ax': 2, 'dx': 0}, fault=GP)
    t.case('XSETBV with AVX but not SSE', RING0P, 'xsetbv', cr4=CR4_OSXSAVE, regs={'cx': 0, 'ax': 5, 'dx': 0},
           fault=GP)
    t.case('XSETBV of a reserved bit', RING0P, 'xsetbv', cr4=CR4_OSXSAVE, regs={'cx': 0, 'ax': 3, 'dx': 0x80000000},
           fault=GP)
    t.case('XSETBV of another XCR', RING0P, 'xsetbv', cr4=CR4_OSXSAVE, regs={'cx': 1, 'ax': 3, 'dx': 0}, fault=GP)
    t.case('XGETBV of another XCR', ALL, 'xgetbv', cr4=CR4_OSXSAVE, regs={'cx': 7}, fault=GP)
    t.case('XGETBV everywhere', ALL, 'xgetbv', cr4=CR4_OSXSAVE, regs={'cx': 0}, out={'ax': lambda v: v & 1, 'dx': 0})


def invalidation(t):
    for insn in ('invlpg [M]', 'invd', 'wbinvd', 'hlt'):
        t.case(f'{insn} is for ring 0', OUTER, insn, fault=GP)
    for insn in ('invlpg [M]', 'wbinvd'):
        t.case(insn, RING0, insn)
    t.case('INVLPG of a register', SEGMENTED, 'db 0x0f, 0x01, 0xf8', fault=UD)
    t.case('INVLPG of a register', ALL, 'db 0x0f, 0x01, 0xff', fault=UD)
    t.case('INVLPG of a noncanonical address', 'l', 'invlpg [rbx]', regs={'bx': 0x800000000000})
    t.case('INVLPG through a null selector', 'p32 pg', 'invlpg [fs:M]', seg={'fs': 0})
    t.case('INVPCID is for ring 0', OUTER.replace('v86i0', '').replace('v86', ''),
           lambda m: f'invpcid {"rax" if m.code64 else "eax"}, [M]', fault=GP, qemu='it has no INVPCID')
    wide = (lambda m: f'invpcid {"rax" if m.code64 else "eax"}, [M]')
    t.case('INVPCID of an unknown type', 'l pg p32', wide, regs={'ax': 4}, fault=GP, qemu='it has no INVPCID')
    t.case('INVPCID with reserved bits', 'l pg', wide, regs={'ax': 1}, poke={'M': 'dq 0x1000, 0'}, fault=GP,
           qemu='it has no INVPCID')
    t.case('INVPCID of a PCID without PCIDE', 'l pg', wide, regs={'ax': 1}, poke={'M': 'dq 5, 0'}, fault=GP,
           qemu='it has no INVPCID')
    t.case('INVPCID of a noncanonical address', 'l', wide, regs={'ax': 0}, poke={'M': 'dq 0, 0x800000000000'},
           fault=GP, qemu='it has no INVPCID')
    for i in range(4):
        t.case(f'INVPCID type {i}', 'l pg', wide, regs={'ax': i}, qemu='it has no INVPCID')
    t.case('INVPCID of a register', 'l p32', 'db 0x66, 0x0f, 0x38, 0x82, 0xc0', fault=UD)


def bases(t):
    for insn in ('rdfsbase', 'rdgsbase', 'wrfsbase', 'wrgsbase'):
        modrm = {'rdfsbase': 0xc3, 'rdgsbase': 0xcb, 'wrfsbase': 0xd3, 'wrgsbase': 0xdb}[insn]
        t.case(f'{insn.upper()} without FSGSBASE', 'l lu', f'{insn} rbx', fault=UD)
        t.case(f'{insn.upper()} outside 64-bit code', SEGMENTED, f'db 0xf3, 0x0f, 0xae, {modrm}', cr4=CR4_FSGSBASE,
               fault=UD)
    for s, i in (('fs', 0), ('gs', 1)):
        def expect(value, i=i):
            return [value if j == i else None for j in range(3)]
        t.case(f'WR{s.upper()}BASE and RD{s.upper()}BASE', 'l lu', f'wr{s}base rbx\n rd{s}base rax', cr4=CR4_FSGSBASE,
               regs={'bx': 0xffff812345678000}, out={'ax': 0xffff812345678000}, obases=expect(0xffff812345678000))
        t.case(f'WR{s.upper()}BASE of 32 bits', 'l lu', f'wr{s}base ebx\n rd{s}base eax', cr4=CR4_FSGSBASE,
               regs={'bx': ~0}, out={'ax': 0xffffffff}, obases=expect(0xffffffff))
        t.case(f'WR{s.upper()}BASE of a noncanonical address', 'l lu', f'wr{s}base rbx', cr4=CR4_FSGSBASE,
               regs={'bx': 0x800000000000}, fault=GP, qemu=LOOSE)
        t.case(f'{s.upper()} base is used', 'l lu', f'wr{s}base rbx\n mov eax, [{s}:M]', cr4=CR4_FSGSBASE,
               regs={'bx': 0x1000}, poke={'M + 0x1000': 'dd 0x55'}, out={'ax': 0x55})
    t.case('SWAPGS is for ring 0', 'lu', 'swapgs', fault=GP)
    t.case('SWAPGS outside 64-bit code', SEGMENTED, 'db 0x0f, 0x01, 0xf8', fault=UD)
    t.case('SWAPGS', 'l', 'wrmsr\n|swapgs', regs={'cx': 0xc0000102, 'ax': 0x1000, 'dx': 0}, obases=[0, 0x1000, 0])


def various(t):
    for insn, code in (('STAC', 'db 0x0f, 0x01, 0xcb'), ('CLAC', 'db 0x0f, 0x01, 0xca')):
        t.case(f'{insn} is for ring 0', OUTER, code, fault=UD)
    t.case('STAC', RING0, 'db 0x0f, 0x01, 0xcb', oflags=lambda m: m.flags | 0x40000)
    t.case('CLAC', RING0P, 'db 0x0f, 0x01, 0xca', flags=0x40000, oflags=2)
    t.case('RSM outside SMM', ALL, 'rsm', fault=UD)
    t.case('MONITOR is not offered', ALL, 'monitor', regs={'cx': 0}, fault=UD, qemu='it offers it')
    t.case('MWAIT is not offered', ALL, 'mwait', regs={'cx': 0}, fault=UD, qemu='it offers it')
    t.case('UD2', ALL, 'ud2', fault=UD)
    t.case('UD1', ALL, 'ud1 eax, eax', fault=UD)
    t.case('LOCK on a register', ALL, 'db 0xf0, 0x01, 0xc0', fault=UD)
    t.case('LOCK on MOV', ALL, 'db 0xf0\n mov [M], al', fault=UD, qemu=LOOSE)
    t.case('LOCK on CLI', 'p32 l', 'db 0xf0\n cli', fault=UD, qemu=LOOSE)


def cases(t):
    control_registers(t)
    debug_registers(t)
    msrs(t)
    extended_state(t)
    invalidation(t)
    bases(t)
    various(t)
