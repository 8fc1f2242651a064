"""The machine a case runs in: where everything lies, the descriptor tables and TSSs, the modes.

The same facts go to the guest's runtime (layout.inc), into the tables it copies to memory before each case, and to the
cases themselves, as plain Python names and as symbols of their assembly.
"""
import struct

DE, DB, NMI, BP, OF, BR, UD, NM, DF, TS, NP, SS, GP, PF, AC = 0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 17
HAS_ERROR = {8, 10, 11, 12, 13, 14, 17}
NAMES = {0: '#DE', 1: '#DB', 2: 'NMI', 3: '#BP', 4: '#OF', 5: '#BR', 6: '#UD', 7: '#NM', 8: '#DF', 10: '#TS',
         11: '#NP',
         12: '#SS', 13: '#GP', 14: '#PF', 17: '#AC'}

LAYOUT = {
    'RUNTIME': 0x1000, 'RUNTIME_SIZE': 0x4000,
    'STUB32': 0x3000, 'STUB64': 0x3400, 'STUB16': 0x3800, 'STUB16G': 0x3c00, 'DF_ENTRY': 0x4000,
    # rebuilt from templates before each case
    'TABLES': 0x5000, 'TABLES_SIZE': 0x2000,
    'GDT': 0x5000, 'GDT_LIMIT': 0x3ff, 'LDT': 0x5400, 'IDT32': 0x5800, 'IDT32_LIMIT': 0x37f,
    'IDT64': 0x6000, 'IDT64_LIMIT': 0x6ff, 'TSS32': 0x6800, 'TSS_B': 0x6a00, 'TSS_16': 0x6b00, 'TSS_DF': 0x6c00,
    'TSS64': 0x6d00,
    # zeroed before each case: memory for operands, the case's stack, the stacks of TSS and IST
    'SCRATCH': 0x7000, 'M': 0x7000, 'STK': 0x8000, 'STK0': 0x8400, 'STK1': 0x8600, 'STK2': 0x8700, 'IST1': 0x8a00,
    'IST2': 0x8b00, 'STK_DF': 0x8c00, 'STK_B': 0x8d00, 'MON_STACK': 0x8f00,
    'SLOT': 0x9000, 'SLOT_SIZE': 0x2000, 'GATE': 0xa800, 'SETUP': 0xb000,
    'RESULT': 0xc000, 'PARAM': 0xc800,
    'FREE': 0x10000,  # three pages for cases, zeroed as well; from there to 7FFFFh is nothing of ours
    'PAGES': 0x80000, 'PD32': 0x80000, 'PT32': 0x81000, 'PDPT_PAE': 0x82000, 'PML4': 0x83000, 'PDS': 0x84000,
    'PDPT64': 0x88000, 'PT64': 0x89000,
    'KIND_REAL': 0, 'KIND_PROT': 1, 'KIND_LONG': 2,
    'FRAME_REAL': 0, 'FRAME32': 1, 'FRAME64': 2, 'FRAME_TASK': 3, 'FRAME16': 4, 'TRACE_MAX': 16,
    # a case's parameters
    'P_TOTAL': 0, 'P_KIND': 16, 'P_PAGING': 17, 'P_TRACE': 18, 'P_EFLAGS': 20, 'P_CR0': 24, 'P_CR4': 28, 'P_EFER': 32,
    'P_CR3': 36, 'P_CS': 40, 'P_SS': 42, 'P_DS': 44, 'P_ES': 46, 'P_FS': 48, 'P_GS': 50, 'P_TR': 52, 'P_LDT': 54,
    'P_POKE_COUNT': 56, 'P_DUMP_COUNT': 60, 'P_CODE': 64, 'P_CODE_LEN': 68, 'P_SETUP': 72, 'P_SETUP_LEN': 76,
    'P_POKES': 80, 'P_DUMPS': 84, 'P_GPR': 96, 'P_SIZE': 256,
}
for _name, _offset in {'KIND': 0, 'VECTOR': 1, 'FLAGS': 8, 'RSP': 16, 'SS': 24, 'CS': 26, 'DS': 28, 'ES': 30, 'FS': 32,
                       'GS': 34, 'TR': 36, 'LDT': 38, 'CR0': 40, 'CR2': 48, 'CR3': 56, 'CR4': 64, 'EFER': 72,
                       'DR6': 80, 'DR7': 88, 'BASES': 96, 'TRACE_COUNT': 120, 'GPR': 128, 'FRAME': 256,
                       'TRACE': 384}.items():
    LAYOUT['R_' + _name] = LAYOUT['RESULT'] + _offset

SELECTORS = {}
_gdt = bytearray(0x400)
_ldt = bytearray(0x100)


def descriptor(base, limit, access, flags):
    return (limit & 0xffff | (base & 0xffffff) << 16 | access << 40 | (limit >> 16 & 15) << 48 | flags << 52 |
            (base >> 24 & 0xff) << 56)


def gate(selector, offset, access, count=0):
    return offset & 0xffff | selector << 16 | count << 32 | access << 40 | (offset >> 16 & 0xffff) << 48


FLAT32, FLAT64, FLAT16 = (0xfffff, 0xc), (0xfffff, 0xa), (0xffff, 0)


def _put(name, selector, value, high=None):
    SELECTORS[name] = selector
    struct.pack_into('<Q', _gdt, selector & ~7, value)
    if high is not None:
        struct.pack_into('<Q', _gdt, (selector & ~7) + 8, high)


def _flat(name, selector, access, form):
    _put(name, selector, descriptor(0, form[0], access, form[1]))


_L = LAYOUT
# SYSENTER and SYSCALL order: CS, SS, user CS, user SS, 64-bit user CS.
_flat('CODE0', 0x08, 0x9b, FLAT32)
_flat('DATA0', 0x10, 0x93, FLAT32)
_flat('CODE3', 0x1b, 0xfb, FLAT32)
_flat('DATA3', 0x23, 0xf3, FLAT32)
_flat('CODE64_3', 0x2b, 0xfb, FLAT64)
_flat('DATA3B', 0x33, 0xf3, FLAT32)
_flat('CODE64_0', 0x38, 0x9b, FLAT64)
_flat('CODE16_0', 0x40, 0x9b, FLAT16)
_flat('DATA16_0', 0x48, 0x93, FLAT16)
_flat('CODE16_3', 0x53, 0xfb, FLAT16)
_flat('DATA16_3', 0x5b, 0xf3, FLAT16)
_flat('CODE1', 0x61, 0xbb, FLAT32)
_flat('DATA1', 0x69, 0xb3, FLAT32)
_flat('CODE2', 0x72, 0xdb, FLAT32)
_flat('DATA2', 0x7a, 0xd3, FLAT32)
TSS32_LIMIT, TSS64_LIMIT = 0x108, 0xe8
_put('TASK', 0x80, descriptor(_L['TSS32'], TSS32_LIMIT, 0x89, 0))
_put('TASK_B', 0x88, descriptor(_L['TSS_B'], 0x67, 0x89, 0))
_put('TASK_16', 0x90, descriptor(_L['TSS_16'], 0x2b, 0x81, 0))
_put('TASK_DF', 0x98, descriptor(_L['TSS_DF'], 0x67, 0x89, 0))
_put('LOCAL', 0xa0, descriptor(_L['LDT'], 0xff, 0x82, 0))
_put('TASK64', 0xa8, descriptor(_L['TSS64'], TSS64_LIMIT, 0x89, 0), 0)
_put('LOCAL64', 0xb8, descriptor(_L['LDT'], 0xff, 0x82, 0), 0)
# variants with something wrong or special
_flat('CONFORMING', 0xc8, 0x9f, FLAT32)
_flat('EXEC_ONLY', 0xd3, 0xf9, FLAT32)
_flat('CODE3_NP', 0xdb, 0x7b, FLAT32)
_flat('DATA3_NP', 0xe3, 0x73, FLAT32)
_flat('READ_ONLY', 0xeb, 0xf1, FLAT32)
_put('DOWN', 0xf3, descriptor(0, 0x7fff, 0xf7, 0x4))           # expand-down, valid above 7FFFh
_put('SMALL', 0xfb, descriptor(_L['M'], 0xff, 0xf3, 0x4))      # 256 bytes at M
_put('DOWN16', 0x103, descriptor(0, 0x7fff, 0xf7, 0))          # expand-down, 8000h to FFFFh
_flat('FRESH', 0x10b, 0xf2, FLAT32)                            # not accessed yet
_flat('CODE0_NP', 0x110, 0x1b, FLAT32)
_flat('DATA0_NP', 0x118, 0x13, FLAT32)
_put('CODE_SMALL', 0x120, descriptor(0, 0x9fff, 0x9b, 0x4))    # ends inside the room for a case's code
_flat('CODE64_D', 0x128, 0x9b, (0xfffff, 0xe))                 # L and D both set
_flat('CONFORMING3', 0x130, 0xff, FLAT32)
_put('BASED', 0x13b, descriptor(0x10000, 0xffff, 0xf3, 0x4))   # base 10000h
_flat('CONFORMING64', 0x140, 0x9f, FLAT64)
_flat('CODE64_NP', 0x148, 0x1b, FLAT64)
_put('BUSY', 0x150, descriptor(_L['TSS_B'], 0x67, 0x8b, 0))
_put('TASK_NP', 0x158, descriptor(_L['TSS_B'], 0x67, 0x09, 0))
_put('TASK_SHORT', 0x160, descriptor(_L['TSS_B'], 0x66, 0x89, 0))
_put('LOCAL_NP', 0x168, descriptor(_L['LDT'], 0xff, 0x02, 0))
_put('RESERVED', 0x170, descriptor(0, 0xffff, 0x88, 0))        # system type 8
# gates. A 16-byte one takes two entries.
CALL32, CALL16, TASK_GATE = 0x8c, 0x84, 0x85
_put('GATE3', 0x183, gate(0x08, _L['GATE'], CALL32 | 0x60))
_put('GATE3_2', 0x18b, gate(0x08, _L['GATE'], CALL32 | 0x60, 2))
_put('GATE0', 0x190, gate(0x08, _L['GATE'], CALL32))
_put('GATE3_NP', 0x19b, gate(0x08, _L['GATE'], 0x6c))
_put('GATE3_NULL', 0x1a3, gate(0, _L['GATE'], CALL32 | 0x60))
_put('GATE3_DATA', 0x1ab, gate(0x10, _L['GATE'], CALL32 | 0x60))
_put('GATE3_CONF', 0x1b3, gate(0xc8, _L['GATE'], CALL32 | 0x60))
_put('GATE3_16', 0x1bb, gate(0x08, _L['GATE'], CALL16 | 0x60))
_put('GATE3_CODE_NP', 0x1c3, gate(0x110, _L['GATE'], CALL32 | 0x60))
_put('GATE3_LIMIT', 0x1cb, gate(0x120, _L['GATE'], CALL32 | 0x60))
_put('GATE3_1', 0x1d3, gate(0x60, _L['GATE'], CALL32 | 0x60))
_put('GATE3_16_2', 0x1db, gate(0x08, _L['GATE'], CALL16 | 0x60, 2))
_put('GATE_B', 0x1e3, gate(0x88, 0, TASK_GATE | 0x60))
_put('GATE_B0', 0x1e8, gate(0x88, 0, TASK_GATE))
_put('GATE_BUSY', 0x1f3, gate(0x150, 0, TASK_GATE | 0x60))
_put('GATE_B_NP', 0x1fb, gate(0x88, 0, 0x65))
_put('GATE64', 0x203, gate(0x38, _L['GATE'], CALL32 | 0x60), 0)
_put('GATE64_0', 0x210, gate(0x38, _L['GATE'], CALL32), 0)
_put('GATE64_32', 0x223, gate(0x08, _L['GATE'], CALL32 | 0x60), 0)
_put('GATE64_FAR', 0x233, gate(0x38, _L['GATE'], CALL32 | 0x60), 0x00008000)
_put('GATE64_TYPE', 0x243, gate(0x38, _L['GATE'], CALL32 | 0x60), 1 << 40)
_put('GATE64_CONF', 0x253, gate(0x140, _L['GATE'], CALL32 | 0x60), 0)
_put('TASK64_FAR', 0x260, descriptor(_L['TSS64'], 0x67, 0x89, 0), 0x00008000)
_put('TASK64_TYPE', 0x270, descriptor(_L['TSS64'], 0x67, 0x89, 0), 1 << 40)
_put('MON_TASK', 0x280, descriptor(_L['TSS_B'], 0x67, 0x89, 0))  # the monitor's own, between cases
SELECTORS['BEYOND'] = 0x400
SELECTORS['LAST'] = 0x3f8  # fits by its 8 bytes, not by 16
struct.pack_into('<Q', _gdt, 0x3f8, descriptor(_L['TSS64'], 0x67, 0x89, 0))

SELECTORS['L_CODE3'] = 0x0f
struct.pack_into('<Q', _ldt, 0x08, descriptor(0, 0xfffff, 0xfb, 0xc))
SELECTORS['L_DATA3'] = 0x17
struct.pack_into('<Q', _ldt, 0x10, descriptor(0, 0xfffff, 0xf3, 0xc))
SELECTORS['L_DATA0'] = 0x1c
struct.pack_into('<Q', _ldt, 0x18, descriptor(0, 0xfffff, 0x93, 0xc))
SELECTORS['L_TASK'] = 0x24
struct.pack_into('<Q', _ldt, 0x20, descriptor(_L['TSS_B'], 0x67, 0x89, 0))

# Vectors 30h and up of the IDT: one per kind of gate.
SOFT = {
    'I_INT3': 0x30,      # interrupt gate, DPL 3
    'I_INT0': 0x31,      # interrupt gate, DPL 0
    'I_TRAP3': 0x32,     # trap gate, DPL 3
    'I_NP': 0x33,        # not present
    'I_TYPE': 0x34,      # no gate
    'I_NULL': 0x35,      # null code selector
    'I_DATA': 0x36,      # to a data segment
    'I_CODE_NP': 0x37,   # to a code segment that is not present
    'I_TASK': 0x38,      # task gate (64-bit: through an IST stack)
    'I_16': 0x39,        # 16-bit interrupt gate (64-bit: noncanonical target)
    'I_CONF': 0x3a,      # to conforming code
    'I_RING1': 0x3b,     # to ring 1
    'I_RING3': 0x3c,     # to ring 3
    'I_BEYOND': 0x3d,    # selector outside the GDT
    'I_LIMIT': 0x3e,     # target outside its code segment (64-bit: to a 32-bit segment)
    'I_NP0': 0x3f,       # not present, DPL 0: the DPL is looked at first
    'I_IRQ': 0x50,       # for interrupts
    'I_NONE': 0x70,      # outside the IDT
}


def _idt32():
    t = bytearray(0x400)
    code0 = SELECTORS['CODE0']

    def put(vector, value):
        struct.pack_into('<Q', t, vector * 8, value)

    for v in range(0x70):
        put(v, gate(code0, _L['STUB32'] + 8 * v, 0xee if v in (3, 4) else 0x8e))
    put(8, gate(SELECTORS['TASK_DF'], 0, TASK_GATE))

    def soft(name, selector, access, stub='STUB32'):
        put(SOFT[name], gate(selector, _L[stub] + 8 * SOFT[name], access))

    soft('I_INT3', code0, 0xee)
    soft('I_INT0', code0, 0x8e)
    soft('I_TRAP3', code0, 0xef)
    soft('I_NP', code0, 0x6e)
    soft('I_NP0', code0, 0x0e)
    soft('I_TYPE', code0, 0xec)
    soft('I_NULL', 0, 0xee)
    soft('I_DATA', SELECTORS['DATA0'], 0xee)
    soft('I_CODE_NP', SELECTORS['CODE0_NP'], 0xee)
    soft('I_TASK', SELECTORS['TASK_B'], 0xe5)
    soft('I_16', code0, 0xe6, 'STUB16G')
    soft('I_CONF', SELECTORS['CONFORMING'], 0xee)
    soft('I_RING1', SELECTORS['CODE1'] & ~3, 0xee)
    soft('I_RING3', SELECTORS['CODE3'], 0xee)
    soft('I_BEYOND', SELECTORS['BEYOND'], 0xee)
    soft('I_LIMIT', SELECTORS['CODE_SMALL'], 0xee)
    struct.pack_into('<Q', t, SOFT['I_LIMIT'] * 8, gate(SELECTORS['CODE_SMALL'], 0xa000, 0xee))
    return t


def _idt64():
    t = bytearray(0x800)
    code0 = SELECTORS['CODE64_0']

    def put(vector, value, high=0):
        struct.pack_into('<QQ', t, vector * 16, value, high)

    for v in range(0x70):
        put(v, gate(code0, _L['STUB64'] + 8 * v, 0xee if v in (3, 4) else 0x8e, 1 if v == 8 else 0))

    def soft(name, selector, access, ist=0, high=0):
        put(SOFT[name], gate(selector, _L['STUB64'] + 8 * SOFT[name], access, ist), high)

    soft('I_INT3', code0, 0xee)
    soft('I_INT0', code0, 0x8e)
    soft('I_TRAP3', code0, 0xef)
    soft('I_NP', code0, 0x6e)
    soft('I_NP0', code0, 0x0e)
    soft('I_TYPE', code0, 0xe6)
    soft('I_NULL', 0, 0xee)
    soft('I_DATA', SELECTORS['DATA0'], 0xee)
    soft('I_CODE_NP', SELECTORS['CODE64_NP'], 0xee)
    soft('I_TASK', code0, 0xee, ist=2)
    soft('I_16', code0, 0xee, high=0x8000)
    soft('I_CONF', SELECTORS['CONFORMING64'], 0xee)
    soft('I_RING1', SELECTORS['CODE1'] & ~3, 0xee)
    soft('I_RING3', SELECTORS['CODE64_3'], 0xee)
    soft('I_BEYOND', SELECTORS['BEYOND'], 0xee)
    soft('I_LIMIT', SELECTORS['CODE0'], 0xee)
    return t


def _io_bitmap():
    """Ports 0 to 3FFh: 80h, 2E0h-2E7h, 3FFh and the exits' are allowed."""
    bits = bytearray(b'\xff' * 129)
    for port in [0x80, 0x3ff] + list(range(0x2e0, 0x2e8)):
        bits[port // 8] &= ~(1 << port % 8)
    return bits


def _tss32(size, **fields):
    t = bytearray(size)
    at = {'link': 0, 'esp0': 4, 'ss0': 8, 'esp1': 12, 'ss1': 16, 'esp2': 20, 'ss2': 24, 'cr3': 28, 'eip': 32,
          'eflags': 36, 'eax': 40, 'ecx': 44, 'edx': 48, 'ebx': 52, 'esp': 56, 'ebp': 60, 'esi': 64, 'edi': 68,
          'es': 72, 'cs': 76, 'ss': 80, 'ds': 84, 'fs': 88, 'gs': 92, 'ldt': 96, 'trap': 100, 'iomap': 102}
    for name, value in fields.items():
        struct.pack_into('<H' if name in ('trap', 'iomap') else '<I', t, at[name], value)
    return t


def templates():
    t = bytearray(LAYOUT['TABLES_SIZE'])
    s = SELECTORS

    def put(name, data):
        at = LAYOUT[name] - LAYOUT['TABLES']
        t[at:at + len(data)] = data

    put('GDT', _gdt)
    put('LDT', _ldt)
    put('IDT32', _idt32())
    put('IDT64', _idt64())
    # interrupt redirection (all to the protected-mode handler) and the I/O bitmap behind the TSS
    put('TSS32', _tss32(0x68, esp0=_L['STK0'], ss0=s['DATA0'], esp1=_L['STK1'], ss1=s['DATA1'], esp2=_L['STK2'],
                        ss2=s['DATA2'], iomap=0x88) + b'\xff' * 32 + _io_bitmap())
    put('TSS_B', _tss32(0x68, esp0=_L['STK0'], ss0=s['DATA0'], eip=_L['GATE'], eflags=2, eax=0xb0, ecx=0xb1, edx=0xb2,
                        ebx=0xb3, esp=_L['STK_B'], ebp=0xb5, esi=0xb6, edi=0xb7, es=s['DATA3'], cs=s['CODE0'],
                        ss=s['DATA0'], ds=s['DATA0'], fs=s['DATA3'], gs=0, iomap=0x68))
    put('TSS_DF', _tss32(0x68, eip=_L['DF_ENTRY'], eflags=2, esp=_L['STK_DF'], es=s['DATA0'], cs=s['CODE0'],
                         ss=s['DATA0'], ds=s['DATA0'], iomap=0x68))
    put('TSS_16', struct.pack('<22H', 0, _L['STK0'], s['DATA0'], 0, 0, 0, 0, _L['GATE'], 2, 0xb0, 0xb1, 0xb2, 0xb3,
                              _L['STK_B'], 0xb5, 0xb6, 0xb7, s['DATA3'], s['CODE0'], s['DATA0'], s['DATA0'], 0))
    put('TSS64', struct.pack('<I3QQ7QQHH', 0, _L['STK0'], _L['STK1'], _L['STK2'], 0, _L['IST1'], _L['IST2'],
                             0, 0, 0, 0, 0, 0, 0, 0x68) + _io_bitmap())
    ivt = b''.join(struct.pack('<HH', LAYOUT['STUB16'] + 8 * (v & 0x7f), 0) for v in range(256))
    return bytes(t) + ivt


def layout_inc():
    return ''.join(f'{n} equ {v:#x}\n' for n, v in list(LAYOUT.items()) + list(SELECTORS.items()) + list(SOFT.items()))


VM, IOPL3 = 0x20000, 0x3000


class Mode:
    def __init__(self, name, kind, bits, cs, ss, ring, paging=0, flags=2, ds=None):
        self.name, self.kind, self.bits, self.cs, self.ss, self.ring = name, kind, bits, cs, ss, ring
        self.ds = ss if ds is None else ds
        self.paging, self.flags = paging, flags
        self.cr0 = {0: 0x10, 1: 0x11, 2: 0x11}[kind] | (0x80010000 if paging else 0)
        self.cr4 = {0: 0, 1: 0x10, 2: 0x20, 3: 0x20}[paging]  # PSE, PAE
        self.efer = 0x100 if kind == 2 else 0
        self.cr3 = {0: 0, 1: LAYOUT['PD32'], 2: LAYOUT['PDPT_PAE'], 3: LAYOUT['PML4']}[paging]
        self.tr = SELECTORS['TASK64' if kind == 2 else 'TASK']
        self.ldt = 0 if kind == 0 else SELECTORS['LOCAL64' if kind == 2 else 'LOCAL']
        self.v86 = bool(flags & VM)
        self.long = kind == 2
        self.code64 = bits == 64
        self.protected = kind != 0 and not self.v86
        self.user = ring == 3
        self.legacy = not self.long

    def __repr__(self):
        return self.name


_s = SELECTORS
MODES = {m.name: m for m in [
    Mode('real', 0, 16, 0, 0, 0),
    Mode('v86', 1, 16, 0, 0, 3, flags=VM | IOPL3 | 2),
    Mode('v86i0', 1, 16, 0, 0, 3, flags=VM | 2),
    Mode('p16', 1, 16, _s['CODE16_0'], _s['DATA16_0'], 0),
    Mode('p16u', 1, 16, _s['CODE16_3'], _s['DATA16_3'], 3),
    Mode('p32', 1, 32, _s['CODE0'], _s['DATA0'], 0),
    Mode('p32u', 1, 32, _s['CODE3'], _s['DATA3'], 3),
    Mode('p32r1', 1, 32, _s['CODE1'], _s['DATA1'], 1),
    Mode('pg', 1, 32, _s['CODE0'], _s['DATA0'], 0, paging=1),
    Mode('pgu', 1, 32, _s['CODE3'], _s['DATA3'], 3, paging=1),
    Mode('pae', 1, 32, _s['CODE0'], _s['DATA0'], 0, paging=2),
    Mode('paeu', 1, 32, _s['CODE3'], _s['DATA3'], 3, paging=2),
    Mode('c16u', 2, 16, _s['CODE16_3'], _s['DATA16_3'], 3, paging=3),
    Mode('c32', 2, 32, _s['CODE0'], _s['DATA0'], 0, paging=3),
    Mode('c32u', 2, 32, _s['CODE3'], _s['DATA3'], 3, paging=3),
    Mode('l', 2, 64, _s['CODE64_0'], _s['DATA0'], 0, paging=3),
    Mode('lu', 2, 64, _s['CODE64_3'], _s['DATA3'], 3, paging=3),
]}


def names(condition):
    return ' '.join(m.name for m in MODES.values() if condition(m))


ALL = names(lambda m: True)
PROTECTED = names(lambda m: m.protected)
UNPROTECTED = 'real v86 v86i0'
RING0 = names(lambda m: m.ring == 0)
RING0P = names(lambda m: m.ring == 0 and m.protected)
OUTER = names(lambda m: m.ring != 0)
OUTERP = names(lambda m: m.ring != 0 and m.protected)
SEGMENTED = names(lambda m: m.bits != 64)
PAGED = names(lambda m: m.paging)

# Where QEMU's translator departs from the manuals, as cases name it.
NO_LIMITS = 'it checks no segment limits or types on data accesses'
