#!/usr/bin/env python3
"""Guests without a kernel, which look for what only interrupts at every place and much code bring out. Each checks itself.

    run.py [--bits 32] [--keep DIRECTORY] [--planted] kicks|evict|rewrite|random|coherence GNOMON      status 77: not on this host

The statistics of the run tell whether what is tested has happened at all. --planted (of a build with -Dplanted=true): the
guest must find each of the bugs it should know.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.append(os.path.join(HERE, "..", ".."))
import host  # noqa: E402
FLAGS = """-std=gnu17 -Wall -Wextra -Werror -O2 -ffreestanding -fno-pie -no-pie -fno-stack-protector -mno-red-zone
 -mgeneral-regs-only -fno-asynchronous-unwind-tables -fcf-protection=none -nostdlib -static
 -Wl,-Ttext-segment=0x200000,--build-id=none,-e,start32,-z,noexecstack""".split()
SOURCES = {
    "kicks": ["start.S", "bare.c", "works.S", "kicks.c"],
    "evict": ["start.S", "bare.c", "evict.c"],
    "rewrite": ["start.S", "bare.c", "rewrite.c"],
    "coherence": ["start.S", "bare.c", "coherence.c"],
    "random": ["start.S", "bare.c", "random.c"],
    "faults": ["start.S", "bare.c", "faults.c"], # for deterministic.py
    "parts": ["start.S", "bare.c", "parts.c"], # for diverge.py
}
EXIT_GOOD = 1   # (0 << 1) | 1
EXIT_WRONG = 3  # (1 << 1) | 1


def build(name, bits, work):
    path = os.path.join(work, f"{name}{bits}")
    subprocess.run(["gcc", f"-m{bits}", *FLAGS, "-o", path, *(os.path.join(HERE, s) for s in SOURCES[name])], check=True)
    if name == "random":  # the same for this host, without a machine
        subprocess.run(["gcc", f"-m{bits}", *FLAGS, "-DNATIVE", "-o", path + "-native", os.path.join(HERE, "random.c")], check=True)
    return path


def start(gnomon, guest, options, **environment):
    return subprocess.run([gnomon, "run", "--kernel", guest, "--memory", "128M", "--timeout", "60", "--stats=json", *options],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=dict(os.environ, **environment))


def run(gnomon, guest, *options):
    """The figures of a run that ended well."""
    done = start(gnomon, guest, options)
    if done.returncode != EXIT_GOOD:
        sys.exit(f"exit status {done.returncode}, not {EXIT_GOOD}; it printed:\n{done.stdout[-1000:]}{done.stderr[-1000:]}")
    figures = json.loads([line for line in done.stderr.splitlines() if line.startswith("{")][-1])
    figures["output"] = done.stdout.split("\n")
    if os.path.exists(guest + "-native"):
        figures["native"] = subprocess.run([guest + "-native"], capture_output=True, text=True, check=True).stdout.splitlines()
    return figures


def kicks(once):
    figures = once()
    yield "interrupts", figures["interrupts"] >= 16000, figures["interrupts"]
    # Each way out of translated code: at a boundary at once, and by a breakpoint at the next one.
    yield "kick_traps", 200 <= figures["kick_traps"] < figures["kicks"], figures["kick_traps"]
    # The median: a busy host delays some interrupts by milliseconds, but hardly ever takes the CPU away between a signal
    # and the handler it leads to.
    yield "time_kick_p50", 0 < figures["time_kick_p50"] <= 50000, figures["time_kick_p50"]


def evict(once):
    figures = once()
    yield "interrupts", figures["interrupts"] >= 500, figures["interrupts"]
    yield "host_bytes_emitted", figures["host_bytes_emitted"] >= 64 << 20, figures["host_bytes_emitted"]
    # Each step to the next of 88 regions counts, and each that held something once more. This is beyond the first time around.
    yield "cache_evictions", figures["cache_evictions"] >= 87 + 2 * 30, figures["cache_evictions"]
    # On a busy host some evictions of every run wait for the CPU, for as long as others have it: so the mean is held to what
    # an eviction takes (0.3 ms), and the longest only to what no scheduler does; of up to three runs the best counts.
    mean, longest = [], []
    for attempt in range(3):
        figures = figures if attempt == 0 else once()
        mean.append(figures["time_evictions"] // ((figures["cache_evictions"] - 87) // 2))
        longest.append(figures["time_eviction_max"])
        if mean[-1] <= 2000000 and longest[-1] <= 5000000:
            break
    yield "time_evictions, mean", 0 < min(mean) <= 2000000, min(mean)
    yield "time_eviction_max", 0 < min(longest) <= 100000000, min(longest)


def rewrite(once):
    figures = once()
    yield "interrupts", figures["interrupts"] >= 100, figures["interrupts"]
    # Some 58,000 blocks are rewritten; of the 600,000 stores beside code none may cost a block.
    yield "blocks_invalidated", 40000 <= figures["blocks_invalidated"] <= 80000, figures["blocks_invalidated"]


def random(once):
    figures = once()
    pairs = list(zip(figures["native"], (line.strip() for line in figures["output"])))
    wrong = [native.split()[0] for native, here in pairs if native != here]
    yield "programs as on the host", len(pairs) >= 400 and not wrong, f"{len(pairs)}, others {wrong[:9]}"
    yield "interrupts", figures["interrupts"] >= 1000, figures["interrupts"]


# How user code is run
MODES = {"checked": ["--direct", "off"], "user": ["--direct", "always", "--policy", "user"], "raw": ["--direct", "always", "--policy", "raw"]}


def modes_here():
    if host.has_workers():
        return MODES
    print("this host gives user code no processes of its own: all of it is translated with checks")
    return {"checked": MODES["checked"]}


def coherence(once):
    for mode, options in modes_here().items():
        figures = once(*options)
        for line in figures["output"]:
            if line.strip():
                what, value = line.strip().rsplit(" ", 1)
                least = {"faults": 12000, "successes": 12000}.get(what, 100)
                yield f"{mode}: {what}", int(value) >= least, value
        if mode != "checked":
            yield f"{mode}: direct_handoffs", figures["direct_handoffs"] >= 15000, figures["direct_handoffs"]
            yield f"{mode}: time_guest_{mode}", figures[f"time_guest_{mode}"] > 0, figures[f"time_guest_{mode}"]


PLANTED = {"coherence": {"accessed_bit": "no accessed bit", "dirty_bit": "no dirty bit", "error_code": "an error code",
                         "fault_address": "the address of a fault", "stale_tlb": "an access that no translation gives"}}


def planted(name, gnomon, guest):
    for bug, said in PLANTED[name].items():
        for mode, options in modes_here().items():
            done = start(gnomon, guest, options, GNOMON_PLANTED=bug)
            found = [line[7:] for line in done.stdout.splitlines() if line.startswith("wrong: ")]
            yield f"{mode}: {bug}", done.returncode == EXIT_WRONG and found == [said], found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bits", default="64", choices=["64", "32"])
    parser.add_argument("--keep", help="leave the guest there")
    parser.add_argument("--planted", action="store_true", help="with planted bugs")
    parser.add_argument("name", choices=SOURCES)
    parser.add_argument("gnomon")
    args = parser.parse_args()
    if args.name == "random" and args.bits == "32" and not host.has_32_bit_code():
        print("this host's kernel runs no 32-bit code: there is nothing to compare with")
        sys.exit(77)
    failed = False
    with tempfile.TemporaryDirectory() as work:
        guest = build(args.name, args.bits, args.keep or work)
        gnomon = os.path.abspath(args.gnomon)
        results = planted(args.name, gnomon, guest) if args.planted else globals()[args.name](lambda *options: run(gnomon, guest, *options))
        for what, good, value in results:
            failed |= not good
            print(f"{'ok    ' if good else 'FAILED'} {what} {value}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
