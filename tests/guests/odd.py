#!/usr/bin/env python3
"""User code that does what programs seldom do (odd.c) prints the same natively and in a guest, however it is executed there.

    odd.py GNOMON      status 77: the kernel was not fetched
"""
import difflib
import os
import subprocess
import sys
import tempfile

import single
import host

MODES = [["--direct", "off"], [], ["--direct", "always"], ["--direct", "always", "--policy", "user"],
         ["--direct", "always", "--policy", "raw"]]
# What needs a kernel that runs 32-bit code
NEED_32_BITS = {"int_80", "far_to_32"}


def parts_of(lines):
    """{name of a case: what it printed}"""
    parts = {}
    for line in lines[1:]:
        if line.startswith(" "):
            parts[name].append(line)
        else:
            name = line
            parts[name] = []
    return parts


def without(names, lines):
    return [line for name, part in parts_of(lines).items() if name not in names for line in [name, *part]]


def lines_of(text):
    lines = text.replace("\r", "").splitlines()
    if "ODD-BEGIN" not in lines or "ODD-END" not in lines:
        sys.exit("it did not come to its end: ..." + text[-600:])
    return lines[lines.index("ODD-BEGIN"):lines.index("ODD-END")]


def main():
    gnomon = os.path.abspath(sys.argv[1])
    single.need_kernel()
    failed = False
    with tempfile.TemporaryDirectory() as work:
        program, initramfs = single.build("odd", work)
        native = lines_of(subprocess.run([program], capture_output=True, text=True, timeout=100).stdout)
        left_out = set() if host.has_32_bit_code() else NEED_32_BITS
        if left_out:
            print("this host's kernel runs no 32-bit code: not compared are", *sorted(left_out))
        native = without(left_out, native)
        for mode in MODES:
            run = single.run(gnomon, initramfs, *mode)
            differences = list(difflib.unified_diff(native, without(left_out, lines_of(run.stdout)), "native", "guest", lineterm="", n=2))
            failed |= bool(differences) or run.returncode != 0
            print("FAILED" if differences or run.returncode else "ok    ", " ".join(mode) or "--direct auto", flush=True)
            print("\n".join(differences[:40]))
    sys.exit(failed)


main()
