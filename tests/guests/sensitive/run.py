#!/usr/bin/env python3
"""Sensitive instructions in every mode, through real guest code, against what the manuals say.

    run.py [--gnomon PATH | --qemu] [--keep DIRECTORY] [--only TEXT] [--list] GROUP...

A group is one of the cases_*.py files beside this one: a function cases(t) that calls t.case(...) for each case. The
cases of a group are assembled into one firmware image, which runs them one after another in every mode and reports
what came of each (runtime.asm); this program compares. --qemu runs the same image under QEMU's translator, to check
the expectations; cases that say qemu='why' are left out there.
"""
import argparse
import importlib
import os
import struct
import subprocess
import sys
import tempfile

from machine import (BP, DB, DF, HAS_ERROR, LAYOUT, MODES, NAMES, NMI, OF, PF, UD, layout_inc, templates)

HERE = os.path.dirname(os.path.abspath(__file__))
GPRS = ['ax', 'cx', 'dx', 'bx', 'sp', 'bp', 'si', 'di'] + [f'r{i}' for i in range(8, 16)]
RF = 0x10000
IMAGE_SIZES = [0x20000, 0x40000, 0x80000, 0x100000, 0x200000, 0x400000]


class Case:
    """One case. Registers are named without size: ax … di, r8 … r15.

    code: instructions. What is before '|' prepares; the instruction in question starts there (.insn). Every case is
      ended by UD2 (.end), which counts as "no fault": the default outcome. A(label) is a label's address.
    regs, seg, flags, cr0, cr4, efer, tr, ldt: state at the start, on top of the mode's.
    poke: {address: assembly data} put into memory first, tables included. setup: code run first, ring 0, 32 bit.
    fault, err, rip, cr2: what is raised, and where (a label, an address or 'any'; .insn for a fault, .end for a trap).
    out: registers that change (a value, or None: anything). oseg, oflags, ocs, oss, ocr0, odr6 likewise.
    mem: {address: assembly data} that must be there at the end. steps: where single-step traps must be seen.
    hflags, hss, hsp: flags and stack on entry to the handler.
    qemu: why the case is left out under QEMU. stack=False: SS and SP are not looked at. fmask: the flags that are.
    known: why gnomon is known to differ. It must: a case that comes out right says so.
    """

    def __init__(self, group, name, mode, code, fault=None, err=0, rip=None, cr2=None, regs=None, out=None, seg=None,
                 oseg=None, flags=0, oflags=None, fmask=0x3f7fd7, cr0=0, cr0_clear=0, cr4=0, efer=0, cr3=None, tr=None,
                 ldt=None, poke=None, setup='', mem=None, steps=None, ocs=None, oss=None, ocr0=None,
                 ocr3=None, odr6=None, odr7=None, otr=None, hflags=None, hss=None, hsp=None, qemu=None, stack=True,
                 obases=None, known=None):
        self.group, self.name, self.mode, self.code = group, name, mode, code
        self.fault, self.err, self.cr2 = fault, err, cr2
        self.trap = fault in (DB, BP, OF, NMI) or (isinstance(fault, int) and fault >= 0x20)
        self.trap = self.trap and rip != '.insn'  # general detect is a fault
        self.rip = rip or ('.end' if fault is None or self.trap else '.insn')
        self.out, self.oseg, self.oflags, self.fmask = out or {}, oseg or {}, oflags, fmask
        self.flags = mode.flags | flags
        self.cr0, self.cr4, self.efer = (mode.cr0 | cr0) & ~cr0_clear, mode.cr4 | cr4, mode.efer | efer
        self.cr3 = mode.cr3 if cr3 is None else cr3
        self.tr, self.ldt = mode.tr if tr is None else tr, mode.ldt if ldt is None else ldt
        self.poke, self.setup, self.mem, self.steps = poke or {}, setup, mem or {}, steps
        self.ocs, self.oss, self.ocr0, self.ocr3 = ocs, oss, ocr0, ocr3
        self.odr6, self.odr7, self.otr, self.obases, self.known = odr6, odr7, otr, obases, known
        self.hflags, self.hss, self.hsp, self.qemu, self.stack = hflags, hss, hsp, qemu, stack
        self.seg = {'cs': mode.cs, 'ss': mode.ss, 'ds': mode.ds, 'es': mode.ds, 'fs': mode.ds, 'gs': mode.ds}
        self.seg.update(seg or {})
        self.regs = dict(zip(GPRS, [0x1111111122220000 + 0x111 * i for i in range(16)]))
        if mode.bits != 64:
            for r in list(self.regs):
                self.regs[r] &= 0xffffffff
        self.regs['sp'] = LAYOUT['STK']
        self.regs.update(regs or {})

    @property
    def title(self):
        return f'{self.group}: {self.name} [{self.mode}]'


class Table:
    """What cases(t) fills."""

    def __init__(self, group, vendor):
        self.group, self.vendor = group, vendor
        self.amd = vendor == 'AuthenticAMD'
        self.cases = []

    def case(self, name, modes, code, **expect):
        """Adds the case for each mode of a list of names; values may be functions of the mode."""
        for m in modes.split():
            mode = MODES[m]
            args = {k: v(mode) if callable(v) else v for k, v in expect.items()}
            self.cases.append(Case(self.group, name, mode, code(mode) if callable(code) else code, **args))


# ---- assembling

def assembly(cases):
    """Each record: header, pokes, dumps, code, setup; then, for us only, what memory must hold."""
    lines = ['%include "layout.inc"', 'default abs', 'org 0']
    for i, c in enumerate(cases):
        p = f'c{i}'
        def local(text, p=p):  # labels of the code, seen from elsewhere
            return text.replace('A(.', f'A({p}.')

        lines += [f'%define A(x) ((x) - {p} + SLOT)', 'bits 32', f'{p}_record:',
                  f'dd {p}_finish - {p}_record, A({p}.insn), A({p}.end), A({p}{c.rip})'
                  if c.rip.startswith('.') else
                  f'dd {p}_finish - {p}_record, A({p}.insn), A({p}.end), ' + local(c.rip.replace('any', '0')),
                  f'db {c.mode.kind}, {c.mode.paging}',
                  f'dw {1 if c.steps is not None else 0}',
                  f'dd {c.flags:#x}, {c.cr0:#x}, {c.cr4:#x}, {c.efer:#x}, {c.cr3:#x}',
                  'dw ' + ', '.join(hex(c.seg[s]) for s in ('cs', 'ss', 'ds', 'es', 'fs', 'gs')) +
                  f', {c.tr:#x}, {c.ldt:#x}',
                  f'dd {len(c.poke)}, {len(c.mem)}',
                  f'dd {p} - {p}_record, {p}_code_end - {p}, {p}_setup - {p}_record, {p}_setup_end - {p}_setup',
                  f'dd {p}_pokes - {p}_record, {p}_dumps - {p}_record, '
                  f'{p}_expected - {p}_record, {p}_steps - {p}_record',
                  'dq ' + ', '.join(hex(c.regs[r] & (1 << 64) - 1) for r in GPRS),
                  f'times 256 - ($ - {p}_record) db 0']
        before, bar, after = c.code.partition('|')
        lines += [f'bits {c.mode.bits}', f'{p}:', before]
        if bar:
            lines += ['.insn:', after]
        else:
            lines[-1:] = ['.insn:', before]
        lines += ['.end: ud2', f'{p}_code_end:', 'bits 32', f'{p}_setup:', c.setup, f'{p}_setup_end:', f'{p}_pokes:']

        for j, (at, data) in enumerate(c.poke.items()):
            lines += [f'dd {at}, {p}_poke{j}_end - {p}_poke{j}', f'{p}_poke{j}: {local(data)}', f'{p}_poke{j}_end:']
        lines += [f'{p}_dumps:']
        for j, at in enumerate(c.mem):
            lines += [f'dd {at}, {p}_mem{j}_end - {p}_mem{j}']
        lines += [f'{p}_expected:']
        for j, data in enumerate(c.mem.values()):
            lines += [f'{p}_mem{j}: {local(data)}', f'{p}_mem{j}_end:']
        lines += [f'{p}_steps:']
        for s in c.steps or []:
            lines += [f'dd A({p}{s})' if s.startswith('.') else f'dd {local(s)}']
        lines += [f'{p}_finish:']
    return '\n'.join(lines) + '\n'


def nasm(source, directory, name):
    path = os.path.join(directory, name + '.asm')
    if source:
        with open(path, 'w') as f:
            f.write(source)
    else:
        path = os.path.join(HERE, name + '.asm')
    out = os.path.join(directory, name + '.bin')
    done = subprocess.run(['nasm', '-f', 'bin', '-O2', '-w-all', '-i', directory + '/', '-o', out, path],
                          capture_output=True, text=True)
    if done.returncode:
        sys.exit(f'{path}: nasm failed:\n{done.stderr[:1000]}')
    with open(out, 'rb') as f:
        return f.read()


def build(cases, directory):
    with open(os.path.join(directory, 'layout.inc'), 'w') as f:
        f.write(layout_inc())
    records = nasm(assembly(cases), directory, 'cases')
    runtime = bytearray(nasm(None, directory, 'runtime'))
    boot = nasm(None, directory, 'boot')
    tables = templates()
    need = len(records) + len(tables) + 0x10000
    size = next(s for s in IMAGE_SIZES if s >= need)
    base = (1 << 32) - size
    struct.pack_into('<3I', runtime, 0, base, len(cases), base + len(records))
    image = bytearray(b'\xf4' * size)
    image[:len(records)] = records
    image[len(records):len(records) + len(tables)] = tables
    image[-0x10000:-0x10000 + len(runtime)] = runtime
    image[-0x100:] = boot
    path = os.path.join(directory, 'image.bin')
    with open(path, 'wb') as f:
        f.write(image)
    return path, records


# ---- running

def run(args, image, directory):
    """Returns (exit status, what came out of port E9h, messages)."""
    out = os.path.join(directory, 'out.bin')
    if args.qemu:
        command = ['qemu-system-x86_64', '-accel', 'tcg', '-cpu', args.qemu_cpu, '-m', '64', '-bios', image,
                   '-display',
                   'none', '-nodefaults', '-no-reboot', '-debugcon', 'file:' + out, '-device', 'isa-debug-exit']
        command[-1] += ',iobase=0xf4,iosize=4'
    else:
        command = [args.gnomon, 'run', '--bios', image, '--memory', '64M', '--serial', 'none', '--debugcon',
                   'file:' + out, '--timeout', '100'] + args.option
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=150, stdin=subprocess.DEVNULL)
        status, text = done.returncode, done.stderr
    except subprocess.TimeoutExpired:
        status, text = None, 'timed out'
    try:
        with open(out, 'rb') as f:
            return status, f.read(), text
    except FileNotFoundError:
        return status, b'', text


class Result:
    """A decoded report of the guest."""

    def __init__(self, data):
        def at(name, form):
            return struct.unpack_from('<' + form, data, LAYOUT['R_' + name] - LAYOUT['RESULT'])[0]

        self.kind, self.vector, self.hflags = at('KIND', 'B'), at('VECTOR', 'B'), at('FLAGS', 'Q')
        self.hrsp, self.hss, self.hcs = at('RSP', 'Q'), at('SS', 'H'), at('CS', 'H')
        self.seg = {s: at(s.upper(), 'H') for s in ('ds', 'es', 'fs', 'gs')}
        self.tr, self.ldt = at('TR', 'H'), at('LDT', 'H')
        self.cr0, self.cr2, self.cr3, self.cr4 = (at('CR%d' % i, 'Q') for i in (0, 2, 3, 4))
        self.efer, self.dr6, self.dr7 = at('EFER', 'Q'), at('DR6', 'Q'), at('DR7', 'Q')
        self.gpr = dict(zip(GPRS, struct.unpack_from('<16Q', data, 128)))
        self.bases = struct.unpack_from('<3Q', data, 96)
        n = min(at('TRACE_COUNT', 'I'), LAYOUT['TRACE_MAX'])
        self.trace = [struct.unpack_from('<II', data, 384 + 8 * i) for i in range(n)]
        frame = data[256:384]
        self.error = None
        if self.kind == LAYOUT['FRAME_TASK']:
            self.error = self.hrsp
            f = struct.unpack_from('<26I', frame)
            self.rip, self.flags = f[8], f[9]
            self.gpr.update(zip(GPRS, f[10:18]))
            self.rsp = f[14]
            self.seg = {'es': f[18] & 0xffff, 'ds': f[21] & 0xffff, 'fs': f[22] & 0xffff, 'gs': f[23] & 0xffff}
            self.cs, self.ss = f[19] & 0xffff, f[20] & 0xffff
            return
        size, code = {LAYOUT['FRAME_REAL']: (2, 'H'), LAYOUT['FRAME16']: (2, 'H'), LAYOUT['FRAME32']: (4, 'I'),
                      LAYOUT['FRAME64']: (8, 'Q')}[self.kind]
        words = list(struct.unpack_from('<16' + code, frame))
        used = 3
        if self.kind != LAYOUT['FRAME_REAL'] and self.vector in HAS_ERROR:
            self.error = words.pop(0)
            used += 1
        self.rip, self.cs, self.flags = words[0], words[1] & 0xffff, words[2]
        v86 = self.kind == LAYOUT['FRAME32'] and self.flags & 0x20000
        if self.kind == LAYOUT['FRAME64'] or v86 or (self.kind != LAYOUT['FRAME_REAL'] and self.cs & 3 > self.hcs & 3):
            self.rsp, self.ss = words[3], words[4] & 0xffff
        else:
            self.rsp, self.ss = self.hrsp + used * size, self.hss
        if v86:
            self.seg = dict(zip(('es', 'ds', 'fs', 'gs'), (w & 0xffff for w in words[5:9])))


def check_memory(record, dumps, wrong):
    at = struct.unpack_from('<I', record, 88)[0]
    for address, got in dumps:
        expected = record[at:at + len(got)]
        if got != expected:
            wrong.append(f'memory at {address:#x} is {got.hex(" ")}, not {expected.hex(" ")}')
        at += len(got)


def check(case, record, result, dumps, exact):
    """Everything in which a result differs from what the case says."""
    wrong = []
    insn, end, rip = struct.unpack_from('<3I', record, 4)
    vector = UD if case.fault is None else case.fault

    def same(what, got, expected, form='{:#x}'):
        if got != expected:
            wrong.append(f'{what} is {form.format(got)}, not {form.format(expected)}')

    if case.fault == 'task':  # only the error code and memory are looked at
        if result.kind != LAYOUT['FRAME_TASK']:
            wrong.append(f'got {NAMES.get(result.vector)} in no task of its own')
            return wrong
        same('the error code', result.error, case.err)
        check_memory(record, dumps, wrong)
        return wrong
    if result.vector != vector:
        where = ('the instruction' if result.rip == insn else 'the end' if result.rip == end else
                 f'{result.rip:#x} (the instruction is at {insn:#x})')
        error = '' if result.error is None else f'({result.error:#x})'
        name = NAMES.get(result.vector, f'vector {result.vector:#x}')
        if result.vector == PF:
            error += f' for {result.cr2:#x}'
        wrong.append(f'got {name}{error} at {where}, not '
                     f'{"the end" if case.fault is None else NAMES.get(vector, f"vector {vector:#x}")}')
        return wrong
    if case.rip != 'any':
        same('the return address', result.rip, rip)
    if result.error is not None:
        same('the error code', result.error, case.err or 0)
    if case.cr2 is not None:
        same('CR2', result.cr2, case.cr2)
    wide = case.mode.bits == 64 or result.kind == LAYOUT['FRAME64']
    for i, r in enumerate(GPRS):
        if r == 'sp' or (i >= 8 and case.mode.bits != 64):
            continue
        expected = case.out.get(r, case.regs[r])
        if expected is None:
            continue
        mask = (1 << 64) - 1 if wide else 0xffffffff
        if callable(expected):
            if not expected(result.gpr[r] & mask):
                wrong.append(f'{r} is {result.gpr[r] & mask:#x}')
        else:
            same(r, result.gpr[r] & mask, expected & mask)
    if case.stack:
        expected = case.out.get('sp', case.regs['sp'])
        if expected is not None:
            same('sp', result.rsp, expected)
    flags = case.flags if case.oflags is None else case.oflags
    mask = case.fmask & ~RF if case.mode.kind else case.fmask & 0x7fd5
    if result.kind == LAYOUT['FRAME16']:
        mask &= 0xffff
    same('the flags', result.flags & mask, flags & mask)
    if exact and result.kind in (LAYOUT['FRAME32'], LAYOUT['FRAME64'], LAYOUT['FRAME_TASK']):
        fault = not case.trap and not (vector == DF)
        if vector != DF:
            same('RF of the flags pushed', result.flags & RF, RF if fault else 0)
    if case.ocs != 'any':
        same('CS', result.cs, case.seg['cs'] if case.ocs is None else case.ocs)
    if case.stack:
        same('SS', result.ss, case.seg['ss'] if case.oss is None else case.oss)
    for s in ('ds', 'es', 'fs', 'gs'):
        expected = case.oseg.get(s, case.seg[s])
        if expected is not None:
            same(s.upper(), result.seg[s], expected)
    for what, got, expected in (('CR0', result.cr0, case.ocr0), ('CR3', result.cr3, case.ocr3),
                                ('DR6', result.dr6 & 0xffffffff, case.odr6), ('DR7', result.dr7, case.odr7),
                                ('TR', result.tr, case.otr),
                                ('flags of the handler', result.hflags & 0x3f7fd7, case.hflags),
                                ('SS of the handler', result.hss, case.hss),
                                ('SP of the handler', result.hrsp, case.hsp)):
        if expected is not None:
            same(what, got, expected)
    if case.obases is not None:
        for what, got, expected in zip(('FS base', 'GS base', 'KernelGSbase'), result.bases, case.obases):
            if expected is not None:
                same(what, got, expected)
    check_memory(record, dumps, wrong)
    steps_at = struct.unpack_from('<I', record, 92)[0]
    if case.steps is not None:
        expected = list(struct.unpack_from(f'<{len(case.steps)}I', record, steps_at))
        got = [t[0] for t in result.trace]
        if got != expected:
            wrong.append('single-step traps at ' + (' '.join(hex(x) for x in got) or 'nowhere') + ', not ' +
                         (' '.join(hex(x) for x in expected) or 'anywhere'))
        if any(t[1] & 0xe00f != 0x4000 for t in result.trace):
            wrong.append('DR6 of the traps: ' + ' '.join(hex(t[1]) for t in result.trace))
    return wrong


def compare(cases, records, data, exact):
    """Returns (number of cases reported, list of failures)."""
    failures, at, done = [], 48, 0
    record_at = 0
    for c in cases:
        total = struct.unpack_from('<I', records, record_at)[0]
        record = records[record_at:record_at + total]
        record_at += total
        n, dumps_at = struct.unpack_from('<I', record, 60)[0], struct.unpack_from('<I', record, 84)[0]
        sizes = [struct.unpack_from('<II', record, dumps_at + 8 * i) for i in range(n)]
        need = 512 + sum(s for _, s in sizes)
        if len(data) < at + need:
            break
        result = Result(data[at:at + 512])
        p, dumps = at + 512, []
        for address, size in sizes:
            dumps.append((address, data[p:p + size]))
            p += size
        at += need
        done += 1
        wrong = check(c, record, result, dumps, exact)
        if exact and c.known:
            wrong = [] if wrong else [f'it comes out right, but is said not to: {c.known}']
        if wrong:
            failures.append(f'{c.title}: ' + '; '.join(wrong[:4]) + ('; …' if len(wrong) > 4 else ''))
    return done, failures


def host_vendor():
    """The vendor string a guest will see: the host's."""
    with open('/proc/cpuinfo') as f:
        for line in f:
            if line.startswith('vendor_id'):
                return line.split(':')[1].strip()
    return ''


def run_cases(args, cases, directory):
    image, records = build(cases, directory)
    status, data, text = run(args, image, directory)
    done, failures = compare(cases, records, data, not args.qemu)
    if done < len(cases):
        failures.append(f'{cases[done].title}: never reported (exit status {status}) {text.strip()[:args.text]}')
    elif status != 1:
        failures.append(f'the machine ended with status {status} instead of 1: {text.strip()}')
    return failures


def run_group(args, group, directory):
    vendor = args.vendor
    module = importlib.import_module('cases_' + group)
    t = Table(group, vendor)
    module.cases(t)
    for text, modes, why in getattr(module, 'QEMU_DIFFERS', []):
        hits = [c for c in t.cases if text in c.name and (not modes or c.mode.name in modes.split())]
        if not hits:
            sys.exit(f'{group}: QEMU_DIFFERS names no case: {text}')
        for c in hits:
            c.qemu = why
    cases = [c for c in t.cases if args.only in c.title and not (args.qemu and c.qemu)]
    if args.list:
        print('\n'.join(c.title for c in cases))
        return True
    triple = [c for c in cases if c.fault == 'shutdown']
    cases = [c for c in cases if c.fault != 'shutdown']
    failures = run_cases(args, cases, directory) if cases else []
    for c in triple:  # each ends its machine
        c.fault = None
        image, _ = build([c], directory)
        status, data, text = run(args, image, directory)
        if len(data) > 48 or status != (0 if args.qemu else args.crash_status):
            failures.append(f'{c.title}: no shutdown (exit status {status}) {text.strip()}')
    for f in failures[:args.limit]:
        print('FAIL', f)
    if len(failures) > args.limit:
        print(f'... and {len(failures) - args.limit} more')
    known = 0 if args.qemu else len([c for c in cases if c.known])
    print(f'{group}: {len(cases) + len(triple)} cases, {len(failures)} differences' +
          (f', {known} known ones' if known else ''))
    return not failures


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--gnomon', default='gnomon')
    parser.add_argument('--option', action='append', default=[], help='a further argument for gnomon run')
    parser.add_argument('--qemu', action='store_true')
    parser.add_argument('--qemu-cpu', default='max')
    parser.add_argument('--vendor', default=None)
    parser.add_argument('--keep', help='leave image and output there')
    parser.add_argument('--only', default='', help='cases whose title holds this text')
    parser.add_argument('--limit', type=int, default=60)
    parser.add_argument('--text', type=int, default=200, help='how much of the messages to show')
    parser.add_argument('--crash-status', type=int, default=6)
    parser.add_argument('--list', action='store_true')
    parser.add_argument('group', nargs='+')
    args = parser.parse_args()
    if not args.vendor:
        args.vendor = 'AuthenticAMD' if args.qemu else host_vendor()
    good = True
    for group in args.group:
        if args.keep:
            os.makedirs(args.keep, exist_ok=True)
            good &= run_group(args, group, args.keep)
        else:
            with tempfile.TemporaryDirectory() as directory:
                good &= run_group(args, group, directory)
    sys.exit(0 if good else 1)


if __name__ == '__main__':
    main()
