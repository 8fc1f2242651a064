#!/usr/bin/env python3
"""Deterministic runs are the same to the last register, and stop exactly where they are asked to.

    deterministic.py GNOMON COUNTS counts|shapes|arrivals|boot

counts    the guest tests/guests/bare/faults.c finds that what is counted is what the manual says
shapes    that guest's state at every count of two stretches, however the engine divides the code (tests/guests/counts.c)
arrivals  the instructions that its timer's interrupts come to, in 20 runs, in some of them on a busy host
boot      Debian's cloud kernel at random counts: two runs of the command, and those of counts.c
"""
import os
import random
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(HERE, "bare"))
import run as bare  # noqa: E402

EXIT_STOPPED = 14
SHAPES = ["normal", "single", "small", "evict", "kicked", "cell"]
FIRST = (1, 5000)
LATER = (20030000, 20035000)  # faults, strings, steps and interrupts; the clocks are calibrated until then
failures = 0


def check(what, good, detail=""):
    global failures
    failures += not good
    print(f"{'ok    ' if good else 'FAILED'} {what} {detail}".rstrip(), flush=True)


def output(command, status, **more):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=250, **more)
    if done.returncode != status:
        sys.exit(f"exit status {done.returncode}, not {status}, of {command}: {done.stderr[-1000:]}")
    return done


class Load:
    """Others who want the CPUs."""
    def __init__(self, wanted):
        self.count = 2 * (os.cpu_count() or 1) if wanted else 0

    def __enter__(self):
        self.processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(self.count)]

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()


def first_difference(a, b):
    for x, y in zip(a, b):
        if x != y:
            return f"{x!r} and {y!r}"
    return f"{len(a)} and {len(b)} lines"


def test_counts(gnomon, _, work):
    guest = bare.build("faults", 64, work)
    done = output([gnomon, "run", "--kernel", guest, "--memory", "128M", "--timeout", "100", "--deterministic"], bare.EXIT_GOOD)
    check("instructions are counted as the manual says", done.stdout, done.stdout.decode().strip())


def test_shapes(_, counts, work):
    guest = bare.build("faults", 64, work)

    def lines(shape, step):
        stretches = [f"{first}-{last}/{step}" for first, last in (FIRST, LATER)]
        return [line for line in output([counts, shape, guest, "-", "", *stretches], 0).stdout.decode().splitlines() if line[0].isdigit()]
    # With each instruction stopped at and a block of its own, it is the processor that executes one instruction.
    every = lines("single", 1)
    check("the states differ", len(set(every)) == len(every) == FIRST[1] + LATER[1] - LATER[0] + 1, len(every))
    known = set(every)
    for shape in SHAPES:
        for step in (1, 2, 7, 97):
            some = lines(shape, step)
            wrong = [line for line in some if line not in known]
            check(f"{shape}, each {step}", some and not wrong, wrong[0] if wrong else f"{len(some)} states")


def test_arrivals(gnomon, _, work):
    guest = bare.build("faults", 64, work)
    trace = os.path.join(work, "trace")
    seen = []
    for n in range(20):
        with Load(n % 4 == 3):
            done = output([gnomon, "run", "--kernel", guest, "--memory", "128M", "--timeout", "200", "--deterministic", "--trace",
                           f"exc,file={trace}", *(["--cell", "off", "--sandbox", "off"] if n % 5 == 4 else [])], bare.EXIT_GOOD)
        with open(trace) as f:
            seen.append([line for line in f.read().splitlines() if "interrupt" in line] + [done.stdout])
    check("there are interrupts", len(seen[0]) > 200, len(seen[0]))
    check("they come to different instructions", len(set(seen[0])) > 60, len(set(seen[0])))
    for n in range(1, 20):
        check(f"run {n} is as the first", seen[n] == seen[0], "" if seen[n] == seen[0] else first_difference(seen[0], seen[n]))


def test_boot(gnomon, counts, work):
    cache = os.environ.get("GNOMON_CACHE", os.path.join(TOP, ".cache"))
    kernel, busybox = os.path.join(cache, "kernels/cloud-amd64/vmlinuz"), os.path.join(cache, "busybox-amd64")
    if not os.path.exists(kernel) or not os.path.exists(busybox):
        print("not fetched: tests/guests/fetch cloud-amd64 busybox-amd64")
        sys.exit(77)
    initrd, append = os.path.join(work, "initramfs.cpio.gz"), "console=ttyS0 panic=-1"
    subprocess.run([os.path.join(HERE, "initramfs.sh"), initrd, busybox, "tests/guests/init-test",
                    "payload.sh=tests/guests/payload.sh"], check=True, cwd=TOP)
    disk = os.path.join(work, "disk")
    with open(disk, "wb") as f:
        f.write(bytes(random.Random(1).randrange(256) for _ in range(1 << 16)) * 16)

    # From the decompressor to the first program: a boot is 1.3 thousand million instructions up to there.
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    at = sorted([rng.randrange(1, 20000000), *(rng.randrange(20000000, 200000000) for _ in range(3)), rng.randrange(1300000000, 1800000000)])
    print(f"seed {seed}: counts {at}", flush=True)

    def command(count, *more):
        done = output([gnomon, "run", "--kernel", kernel, "--initrd", initrd, "--append", append, "--memory", "256M", "--disk",
                       f"{disk},snapshot=on", "--timeout", "200", "--deterministic=1000000000", "--stop-at", str(count), *more], EXIT_STOPPED)
        return done.stdout, done.stderr.decode(errors="replace").splitlines()
    for count in at:
        first = command(count)
        check(f"{count} is where it stops", f"instructions     {count}" in first[1], [x for x in first[1] if x.startswith("rip ")])
        for load, more in ((False, []), (True, []), (False, ["--cell", "off", "--sandbox", "off"])):
            with Load(load):
                again = command(count, *more)
            same = again == first
            check(f"{count} again{', on a busy host' if load else ''} {' '.join(more)}".rstrip(), same, "" if same else first_difference(first[1], again[1]))
    shapes = {shape: output([counts, shape, kernel, initrd, append, *map(str, at)], 0).stdout for shape in SHAPES if shape != "single"}
    for shape, text in shapes.items():
        same = text == shapes["normal"]
        check(f"{shape}, {len(at)} counts", same, "" if same else first_difference(shapes["normal"].decode().splitlines(), text.decode().splitlines()))


def main():
    gnomon, counts, part = sys.argv[1:]
    gnomon, counts = os.path.abspath(gnomon), os.path.abspath(counts)
    with tempfile.TemporaryDirectory() as work:
        {"counts": test_counts, "shapes": test_shapes, "arrivals": test_arrivals, "boot": test_boot}[part](gnomon, counts, work)
    sys.exit(failures > 0)


main()
