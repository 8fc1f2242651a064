#!/usr/bin/env python3
"""A program that waits for its timer's ticks in a worker gets them, also when kicks come at the worst moments.

    ticks.py GNOMON      of a build with -Dplanted=true; status 77: the kernel was not fetched

The planted bug `kicks_between_turns` makes those moments frequent: they are rare enough that one run in a hundred meets one.
"""
import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
CACHE = os.environ.get("GNOMON_CACHE", os.path.join(HERE, "..", "..", ".cache"))
KERNEL = os.path.join(CACHE, "kernels/cloud-amd64/vmlinuz")


def main():
    gnomon = os.path.abspath(sys.argv[1])
    if not os.path.exists(KERNEL):
        print("not fetched: tests/guests/fetch cloud-amd64")
        sys.exit(77)
    failed = False
    with tempfile.TemporaryDirectory() as work:
        program, initramfs = os.path.join(work, "ticks"), os.path.join(work, "initramfs.cpio")
        subprocess.run(["gcc", "-std=gnu17", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-static", "-o", program,
                        os.path.join(HERE, "ticks.c")], check=True)
        subprocess.run([os.path.join(HERE, "initramfs.sh"), "--bare", initramfs, program], check=True)
        for policy in "user", "raw":
            for bug in "none", "kicks_between_turns":
                run = subprocess.run([gnomon, "run", "--kernel", KERNEL, "--initrd", initramfs, "--append",
                                      "console=ttyS0 quiet panic=-1", "--timeout", "60", "--direct", "always", "--policy", policy],
                                     stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=90,
                                     env=dict(os.environ, GNOMON_PLANTED=bug))
                good = "TICKS-END all came" in run.stdout and run.returncode == 0
                failed |= not good
                print("ok    " if good else "FAILED", policy, bug, flush=True)
                if not good:
                    print(run.stdout[-300:], run.stderr[-300:])
    sys.exit(failed)


main()
