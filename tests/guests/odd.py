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

MODES = [["--direct", "off"], [], ["--direct", "always"], ["--direct", "always", "--policy", "user"],
         ["--direct", "always", "--policy", "raw"]]


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
        for mode in MODES:
            run = single.run(gnomon, initramfs, *mode)
            differences = list(difflib.unified_diff(native, lines_of(run.stdout), "native", "guest", lineterm="", n=2))
            failed |= bool(differences) or run.returncode != 0
            print("FAILED" if differences or run.returncode else "ok    ", " ".join(mode) or "--direct auto", flush=True)
            print("\n".join(differences[:40]))
    sys.exit(failed)


main()
