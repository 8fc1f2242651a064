#!/usr/bin/env python3
"""Debian's SeaBIOS to its boot menu, on the serial port and on debug port 402h; then a disk's boot sector, by INT 13h.

    seabios.py GNOMON [IMAGE...]      status 77: no SeaBIOS is installed
"""
import os
import subprocess
import sys
import tempfile

IMAGES = ["/usr/share/seabios/bios-256k.bin", "/usr/share/seabios/bios.bin"]
# mov dl preserved; int 13h function 2 reads sector 2 to 8000h; its first byte goes to the debug-exit port.
BOOT = bytes.fromhex(
    "31c0 8ec0 bb0080 b80102 b90200 b600 cd13 7206 a00080 e6f4 f4 b001 e6f4 f4")


def fail(image, text, seen):
    sys.exit(f"{image}: {text}; it printed:\n{seen.decode(errors='replace')[-2000:]}")


def until(machine, image, seen, text):
    while text not in seen:
        byte = machine.stdout.read(1)
        if not byte:
            fail(image, f"never printed {text.decode()!r}", bytes(seen))
        seen += byte


def boot(gnomon, image, work):
    disk = os.path.join(work, "disk")
    log = os.path.join(work, "log")
    with open(disk, "wb") as f:
        f.write(BOOT.ljust(510, b"\0") + b"\x55\xaa" + bytes([42]) + bytes(1023 * 1024))
    machine = subprocess.Popen(
        [gnomon, "run", "--bios", image, "--disk", disk, "--debugcon", f"file:{log}", "--timeout", "60"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)
    seen = bytearray()
    until(machine, image, seen, b"Press ESC for boot menu")
    machine.stdin.write(b"\x1b")
    until(machine, image, seen, b"Select boot device:")
    until(machine, image, seen, b"1. ")
    until(machine, image, seen, b"\n")
    machine.stdin.write(b"1")
    seen += machine.stdout.read()
    status = machine.wait()
    with open(log, "rb") as f:
        text = f.read()
    if b"SeaBIOS (version" not in text or b"Select boot device:" not in text:
        fail(image, "debug port 402h shows no boot menu", text)
    if status != 85:  # (42 << 1) | 1
        fail(image, f"the boot sector ended with status {status}, not 85", bytes(seen) + text)


def main():
    gnomon, images = os.path.abspath(sys.argv[1]), sys.argv[2:] or [i for i in IMAGES if os.path.exists(i)]
    if not images:
        print("no SeaBIOS: install the package seabios")
        sys.exit(77)
    for image in images:
        with tempfile.TemporaryDirectory() as work:
            boot(gnomon, image, work)
            print(f"{image}: boot menu and boot sector")


main()
