"""IN OUT INS OUTS with IOPL and the permission bitmap (SDM 1 18.5; 2A, 2B). Ports 2E0h-2E7h are allowed by the
bitmap of the TSS and belong to nobody, so they read all ones; 2E8h is not allowed."""
from machine import *


def forms(port, write):
    """(name, instruction, size) of the plain forms."""
    if write:
        return [('OUT dx,al', 'out dx, al', 1), ('OUT dx,ax', 'out dx, ax', 2), ('OUT dx,eax', 'out dx, eax', 4)]
    return [('IN al,dx', 'in al, dx', 1), ('IN ax,dx', 'in ax, dx', 2), ('IN eax,dx', 'in eax, dx', 4)]


def result(size, ax):
    mask = (1 << size * 8) - 1
    return ax & ~mask | mask if size < 4 else mask


def plain(t):
    t_bits = names(lambda m: m.kind != 0 and (m.v86 or m.ring))  # where the bitmap counts with IOPL 0
    free = RING0
    for write in (False, True):
        for name, code, size in forms(0x2e0, write):
            out = (lambda m, size=size: {} if write else {'ax': result(size,
                    0x1111111122220000 if m.code64 else 0x22220000)})
            t.case(f'{name} in ring 0', free, code, regs={'dx': 0x2e8}, out=out)
            t.case(f'{name} with IOPL 3', names(lambda m: m.ring and not m.v86), code, regs={'dx': 0x2e8},
                   flags=0x3000,
                   out=out)
            t.case(f'{name} with IOPL below CPL', 'p32u lu', code, regs={'dx': 0x2e8}, flags=0x2000, fault=GP)
            t.case(f'{name} allowed by the bitmap', t_bits, code, regs={'dx': 0x2e8 - size}, out=out)
            t.case(f'{name} not allowed by the bitmap', t_bits, code, regs={'dx': 0x2e8}, fault=GP)
            if size > 1:
                t.case(f'{name} with its last port not allowed', t_bits, code, regs={'dx': 0x2e8 - size + 1}, fault=GP)
            t.case(f'{name} beyond the bitmap', t_bits, code, regs={'dx': 0xffff}, fault=GP)
            t.case(f'{name} with an 8086 IOPL of 3 still needs the bitmap', 'v86', code, regs={'dx': 0x2e8}, fault=GP)
            t.case(f'{name} without a bitmap', 'p32u v86', code, regs={'dx': 0x2e0}, poke={'TSS32 + 102': 'dw 0x109'},
                   fault=GP)
            t.case(f'{name} without a bitmap', 'lu c32u', code, regs={'dx': 0x2e0},
                   poke={'TSS64 + 102': f'dw {TSS64_LIMIT + 1}'}, fault=GP)
    # the byte behind the last one must be within the limit too: the last port
    t.case('the bitmap needs a byte behind', 'p32u v86', 'in al, dx', regs={'dx': 0x3ff}, out={'ax': None})
    t.case('the bitmap without the byte behind', 'p32u v86', 'in al, dx', regs={'dx': 0x3ff},
           setup='dec word [GDT + 0x80]', fault=GP)
    t.case('IN with an immediate port', RING0, 'in al, 0xf0', out={'ax': None})
    t.case('OUT with an immediate port', RING0, 'out 0x80, al')
    t.case('IN with an immediate port', 'p32u lu v86', 'in al, 0x60', fault=GP)
    t.case('OUT with an immediate port', 'p32u lu v86', 'out 0x80, al')
    t.case('REX.W does not widen a port access', 'l', 'db 0x48, 0xed', regs={'dx': 0x2e0}, out={'ax': 0xffffffff})


def strings(t):
    users = 'v86 v86i0 p16u p32u pgu c32u lu'
    for suffix, size in (('b', 1), ('w', 2), ('d', 4)):
        di = {'di': LAYOUT['M'] + 0x10, 'dx': 0x2e0, 'cx': 3}
        t.case(f'INS{suffix}', RING0 + ' ' + users, f'ins{suffix}', regs=di, out={'di': LAYOUT['M'] + 0x10 + size},
               mem={'M + 8': 'dq 0', 'M + 0x10': f'times {size} db 0xff', f'M + 0x10 + {size}': 'dd 0'})
        t.case(f'INS{suffix} downwards', RING0, f'ins{suffix}', regs=di, flags=0x400,
               out={'di': LAYOUT['M'] + 0x10 - size})
        t.case(f'REP INS{suffix}', RING0 + ' ' + users, f'rep ins{suffix}', regs=di,
               out={'di': LAYOUT['M'] + 0x10 + 3 * size, 'cx': 0},
               mem={'M + 0x10': f'times {3 * size} db 0xff', f'M + 0x10 + {3 * size}': 'dd 0'})
        t.case(f'REP INS{suffix} of nothing', RING0 + ' ' + users, f'rep ins{suffix}', regs={**di, 'cx': 0})
        t.case(f'INS{suffix} not allowed', users, f'ins{suffix}', regs={**di, 'dx': 0x2e8}, fault=GP,
               mem={'M + 0x10': 'dd 0'})
        si = {'si': LAYOUT['M'] + 0x10, 'dx': 0x2e0, 'cx': 3}
        t.case(f'OUTS{suffix}', RING0 + ' ' + users, f'outs{suffix}', regs=si, out={'si': LAYOUT['M'] + 0x10 + size})
        t.case(f'REP OUTS{suffix}', RING0 + ' ' + users, f'rep outs{suffix}', regs=si,
               out={'si': LAYOUT['M'] + 0x10 + 3 * size, 'cx': 0})
        t.case(f'OUTS{suffix} not allowed', users, f'outs{suffix}', regs={**si, 'dx': 0x2e8}, fault=GP)
        t.case(f'INS{suffix} past the limit', 'p32u p32', f'ins{suffix}', seg={'es': SELECTORS['SMALL']},
               regs={**di, 'di': 0x101 - size},
               fault=GP, qemu=NO_LIMITS)
        t.case(f'INS{suffix} to a read-only segment', 'p32u', f'ins{suffix}', seg={'es': SELECTORS['READ_ONLY']},
               regs=di, fault=GP,
               qemu=NO_LIMITS)
        t.case(f'OUTS{suffix} through an override past the limit', 'p32u', f'fs outs{suffix}',
               seg={'fs': SELECTORS['SMALL']},
               regs={**si, 'si': 0x101 - size}, fault=GP, qemu=NO_LIMITS)
        t.case(f'OUTS{suffix} through SS past the limit', 'p32u', f'ss outs{suffix}', seg={'ss': SELECTORS['SMALL']},
               stack=False,
               regs={**si, 'si': 0x101 - size, 'sp': 0x80}, fault=SS, qemu=NO_LIMITS)
    t.case('INS leaves what 16-bit addressing does not reach', 'p32u', 'a16 insb',
           regs={'di': 0x12347010, 'dx': 0x2e0}, out={'di': 0x12347011})
    t.case('REP INS counts in CX with 16-bit addressing', 'p32u', 'a16 rep insb',
           regs={'di': 0x12347010, 'dx': 0x2e0, 'cx': 0x12340002},
           out={'di': 0x12347012, 'cx': 0x12340000})
    t.case('INS of 32-bit addressing clears the upper halves', 'lu', 'a32 rep insb',
           regs={'di': 0x1234567800007010, 'dx': 0x2e0, 'cx': 0x1234567800000002},
           out={'di': 0x7012, 'cx': 0})
    for m, pt in (('pgu', 'PT32 + 0x11 * 4'), ('lu', 'PT64 + 0x11 * 8')):
        t.case('REP INS stops at a page that is not present', m, 'rep insb',
               regs={'di': 0x10ffe, 'dx': 0x2e0, 'cx': 5}, poke={pt: 'dd 0'},
               fault=PF, err=6, cr2=0x11000, out={'di': 0x11000, 'cx': 3})
        t.case('REP OUTS stops at a page that is not present', m, 'rep outsb',
               regs={'si': 0x10ffe, 'dx': 0x2e0, 'cx': 5}, poke={pt: 'dd 0'},
               fault=PF, err=4, cr2=0x11000, out={'si': 0x11000, 'cx': 3})
        t.case('INS does not touch the port before the page fault', m, 'insd', regs={'di': 0x10ffe, 'dx': 0x2e0},
               poke={pt: 'dd 0'},
               fault=PF, err=6, cr2=0x11000)


def cases(t):
    plain(t)
    strings(t)
