#!/usr/bin/env python3
"""A guest that idles at its shell costs next to nothing: processor time of all processes of the machine.

    idle.py GNOMON [SECONDS [KERNEL PARAMETER]...]      status 77: kernel or busybox were not fetched
"""
import os
import pty
import select
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
CACHE = os.environ.get("GNOMON_CACHE", os.path.join(HERE, "..", "..", ".cache"))
KERNEL = os.path.join(CACHE, "kernels/cloud-amd64/vmlinuz")
BUSYBOX = os.path.join(CACHE, "busybox-amd64")
LIMIT_S = 60
# Kernel parameters, and the part of a CPU that may be used: measured are 0.13 and 0.54 %.
MACHINES = [("", 0.01), ("acpi=off noapic nolapic", 0.02)]


class Machine:
    """gnomon on a pseudo-terminal, so that the process that watches the terminal counts too."""

    def __init__(self, gnomon, initramfs, append):
        self.master, slave = pty.openpty()
        self.text = b""
        self.process = subprocess.Popen(
            [gnomon, "run", "--kernel", KERNEL, "--initrd", initramfs, "--append", f"console=ttyS0 quiet panic=-1 {append}",
             "--memory", "256M", "--timeout", "600"], stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)

    def shows(self, text):
        deadline = time.monotonic() + LIMIT_S
        while text not in self.text:
            if time.monotonic() > deadline:
                sys.exit(f"not within {LIMIT_S} s: {text!r}; the terminal shows {self.text[-500:]!r}")
            if select.select([self.master], [], [], 0.1)[0]:
                self.text += os.read(self.master, 4096)

    def types(self, text):
        os.write(self.master, text)

    def processes(self):
        found = [self.process.pid]
        for pid in found:
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children") as f:
                    found += map(int, f.read().split())
        return found

    def seconds_used(self):
        """{process id and name: processor time}"""
        used = {}
        for pid in self.processes():
            with open(f"/proc/{pid}/stat") as f:
                before, after = f.read().rsplit(")", 1)
            fields = after.split()
            used[before.replace(" (", " ")] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return used

    def states(self):
        """What each process does, for somebody who looks into a failure."""
        found = []
        for pid in self.processes():
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/status") as status, open(f"/proc/{pid}/task/{task}/wchan") as wchan:
                    lines = dict(line.split(":\t", 1) for line in status.read().splitlines() if ":\t" in line)
                    found.append(f"{task} {lines['Name']}: {lines['State']}, {wchan.read()}")
        return "; ".join(found)

    def end(self):
        """Ctrl-A x, and the exit status; the terminal is read meanwhile, as terminals are."""
        deadline = time.monotonic() + LIMIT_S
        if self.process.poll() is None:
            self.types(b"\x01x")
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                what = self.states()
                self.process.kill()
                self.process.wait()
                sys.exit(f"no end within {LIMIT_S} s of Ctrl-A x: {what}; the terminal shows {self.text[-500:]!r}")
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self.master, 4096)
                except OSError:  # nobody has the other side open any more
                    pass
        os.close(self.master)
        return self.process.returncode


def share_used(gnomon, initramfs, append, seconds):
    machine = Machine(gnomon, initramfs, append)
    try:
        machine.shows(b"gnomon:/")
        machine.types(b"echo id''le; sleep 1000\r")
        machine.shows(b"idle\r")
        time.sleep(3)  # what the kernel puts off while it boots
        start, before = time.monotonic(), machine.seconds_used()
        time.sleep(seconds)
        passed, after = time.monotonic() - start, machine.seconds_used()
    finally:
        status = machine.end()
    if status != 8 or len(after) < 3 or before.keys() != after.keys():
        sys.exit(f"the machine ended with {status}; its processes were {before} and {after}")
    return {name: (after[name] - before[name]) / passed for name in after}


def main():
    gnomon, seconds = os.path.abspath(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 20
    if not os.path.exists(KERNEL) or not os.path.exists(BUSYBOX):
        print("not fetched: tests/guests/fetch cloud-amd64 busybox-amd64")
        sys.exit(77)
    machines = [(" ".join(sys.argv[3:]), MACHINES[0][1])] if len(sys.argv) > 3 else MACHINES
    failed = False
    with tempfile.TemporaryDirectory() as work:
        initramfs = os.path.join(work, "initramfs.cpio")
        subprocess.run([os.path.join(HERE, "initramfs.sh"), initramfs, BUSYBOX, os.path.join(HERE, "init-shell")], check=True)
        for append, bound in machines:
            parts = share_used(gnomon, initramfs, append, seconds)
            used = sum(parts.values())
            failed |= used > bound
            print(f"{'ok    ' if used <= bound else 'FAILED'} {used:.2%} of a CPU, at most {bound:.0%}  {append}", flush=True)
            for name, part in parts.items():
                print(f"         {part:.2%}  {name.split()[1]}")
    sys.exit(failed)


main()
