"""Guests of Debian's cloud kernel with one static program of ours as init: what odd.py, ticks.py and modes.py share."""
import os
import subprocess
import sys

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

HERE = os.path.dirname(os.path.abspath(__file__))
CACHE = os.environ.get("GNOMON_CACHE", os.path.join(HERE, "..", "..", ".cache"))
KERNEL = os.path.join(CACHE, "kernels/cloud-amd64/vmlinuz")


def need_kernel():
    if not os.path.exists(KERNEL):
        print("not fetched: tests/guests/fetch cloud-amd64")
        sys.exit(77)


def build(name, work):
    """NAME.c as a program and as the init of an archive. Returns both paths."""
    program, initramfs = os.path.join(work, name), os.path.join(work, "initramfs.cpio")
    subprocess.run(["gcc", "-std=gnu17", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-static", "-o", program,
                    os.path.join(HERE, name + ".c")], check=True)
    subprocess.run([os.path.join(HERE, "initramfs.sh"), "--bare", initramfs, program], check=True)
    return program, initramfs


def run(gnomon, initramfs, *options, limit_s=120, **more):
    return subprocess.run([gnomon, "run", "--kernel", KERNEL, "--initrd", initramfs, "--append", "console=ttyS0 quiet panic=-1",
                           "--timeout", str(limit_s), *options],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=limit_s + 30, **more)
