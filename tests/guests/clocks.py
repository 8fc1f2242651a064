#!/usr/bin/env python3
"""The guest's clocks keep the host's time to 0.1 % while the guest is busy, whichever chip they are read from.

    clocks.py GNOMON [SECONDS]      status 77: kernel or busybox were not fetched

A line of the guest may come late, never early: of each second's lines the least delayed counts.
"""
import os
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
CACHE = os.environ.get("GNOMON_CACHE", os.path.join(HERE, "..", "..", ".cache"))
KERNEL = os.path.join(CACHE, "kernels/cloud-amd64/vmlinuz")
BUSYBOX = os.path.join(CACHE, "busybox-amd64")
MACHINES = [  # kernel parameters, clock sources
    ("", ["tsc", "kvm-clock", "hpet", "acpi_pm"]),
    # Here time is the count of ticks: none may be lost. From the local APIC's timer, then from the 8254.
    ("clocksource=jiffies highres=off nohz=off lapic=notscdeadline", ["jiffies"]),
    ("clocksource=jiffies highres=off nohz=off acpi=off noapic nolapic hpet=disable", ["jiffies"]),
]


def run(gnomon, work, append, clocks, seconds):
    """The marks of each clock: [(host time, guest time)...]."""
    line = f"console=ttyS0 panic=-1 gnomon.seconds={seconds} gnomon.clocks={','.join(clocks)} {append}"
    machine = subprocess.Popen(
        [gnomon, "run", "--kernel", KERNEL, "--initrd", os.path.join(work, "initramfs.cpio"), "--append", line,
         "--memory", "256M", "--timeout", str(60 + 3 * seconds * len(clocks))],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    marks = {name: [] for name in clocks}
    tail = []
    for text in machine.stdout:
        now = time.monotonic()
        words = text.decode(errors="replace").split()
        if len(words) == 3 and words[0] == "T" and words[1] in marks and words[2].isdigit():
            marks[words[1]].append((now, int(words[2]) / 1e9))
        else:
            tail = tail[-20:] + [text.decode(errors="replace").rstrip()]
    if machine.wait() != 85 or not any("CLOCKS-DONE" in t for t in tail):
        sys.exit("the machine did not end well; it printed:\n" + "\n".join(tail))
    for name in clocks:
        if not marks[name]:
            sys.exit(f"no marks of {name}; it printed:\n" + "\n".join(tail))
    return marks


def drift(marks):
    """Relative error of the guest's clock from the first to the last second of its marks."""
    def least(begin, end):
        return min(((h - g, g) for h, g in marks if begin <= g - marks[0][1] < end), key=lambda m: m[0])
    length = marks[-1][1] - marks[0][1]
    first, last = least(0, length / 4), least(length * 3 / 4, length)
    return (first[0] - last[0]) / (last[1] - first[1])


def main():
    gnomon, seconds = os.path.abspath(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 6
    if not os.path.exists(KERNEL) or not os.path.exists(BUSYBOX):
        print("not fetched: tests/guests/fetch cloud-amd64 busybox-amd64")
        sys.exit(77)
    failed = False
    with tempfile.TemporaryDirectory() as work:
        clock = os.path.join(work, "clock")
        subprocess.run(["gcc", "-O1", "-static", "-o", clock, os.path.join(HERE, "clock.c")], check=True)
        leave = os.path.join(work, "exit")
        subprocess.run(["gcc", "-nostdlib", "-static", "-no-pie", "-o", leave, os.path.join(HERE, "exit.S")], check=True)
        subprocess.run([os.path.join(HERE, "initramfs.sh"), os.path.join(work, "initramfs.cpio"), BUSYBOX,
                        os.path.join(HERE, "init-clocks"), f"clock={clock}", f"exit={leave}"], check=True)
        for append, clocks in MACHINES:
            if clocks == ["jiffies"] and seconds < 30:
                continue  # a tick on its way is 0.1 % of four seconds
            for name, marks in run(gnomon, work, append, clocks, seconds).items():
                error = drift(marks)
                good = abs(error) <= 0.001
                failed |= not good
                print(f"{'ok    ' if good else 'FAILED'} {name:10} {error * 1e6:+9.1f} ppm  {append}", flush=True)
    sys.exit(failed)


main()
