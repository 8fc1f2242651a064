#!/usr/bin/env python3
"""User code that does what programs seldom do (odd.c) prints the same natively and in a guest, however it is executed there.

    odd.py GNOMON      status 77: the kernel was not fetched
"""
import difflib
import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
CACHE = os.environ.get("GNOMON_CACHE", os.path.join(HERE, "..", "..", ".cache"))
KERNEL = os.path.join(CACHE, "kernels/cloud-amd64/vmlinuz")
MODES = [["--direct", "off"], [], ["--direct", "always"], ["--direct", "always", "--policy", "user"],
         ["--direct", "always", "--policy", "raw"]]


def lines_of(text):
    lines = text.replace("\r", "").splitlines()
    if "ODD-BEGIN" not in lines or "ODD-END" not in lines:
        sys.exit("it did not come to its end: ..." + text[-600:])
    return lines[lines.index("ODD-BEGIN"):lines.index("ODD-END")]


def main():
    gnomon = os.path.abspath(sys.argv[1])
    if not os.path.exists(KERNEL):
        print("not fetched: tests/guests/fetch cloud-amd64")
        sys.exit(77)
    failed = False
    with tempfile.TemporaryDirectory() as work:
        program, initramfs = os.path.join(work, "odd"), os.path.join(work, "initramfs.cpio")
        subprocess.run(["gcc", "-std=gnu17", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-static", "-o", program,
                        os.path.join(HERE, "odd.c")], check=True)
        subprocess.run([os.path.join(HERE, "initramfs.sh"), "--bare", initramfs, program], check=True)
        native = lines_of(subprocess.run([program], capture_output=True, text=True, timeout=100).stdout)
        for mode in MODES:
            run = subprocess.run([gnomon, "run", "--kernel", KERNEL, "--initrd", initramfs, "--append",
                                  "console=ttyS0 quiet panic=-1", "--timeout", "120", *mode],
                                 stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=150)
            differences = list(difflib.unified_diff(native, lines_of(run.stdout), "native", "guest", lineterm="", n=2))
            failed |= bool(differences) or run.returncode != 0
            print("FAILED" if differences or run.returncode else "ok    ", " ".join(mode) or "--direct auto", flush=True)
            print("\n".join(differences[:40]))
    sys.exit(failed)


main()
