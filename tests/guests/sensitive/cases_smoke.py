from machine import *
def cases(t):
    t.case('nop', ' '.join(MODES), 'nop')
    t.case('gp', 'p16u p32u pgu paeu c16u c32u lu v86i0 p32r1', 'hlt', fault=GP)
    t.case('smsw', 'real p32 l', 'smsw [M]', mem={'M': 'dw 0x10'})
    t.case('bp', ' '.join(m for m in MODES if m != 'v86i0'), 'int3', fault=BP)
    t.case('tf', ' '.join(MODES), 'nop\n.a: nop\n', flags=0x100, steps=['.a','.end'])
    t.case('triple', 'p32 l real', 'lidt [M]\n|int3', fault='shutdown')
