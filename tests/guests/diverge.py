#!/usr/bin/env python3
"""gnomon diverge finds each planted bug at the instruction that has it, within a minute, and nothing where there is none.

    diverge.py GNOMON      of a build with -Dplanted=true
"""
import os
import re
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "bare"))
import run as bare  # noqa: E402

# bug: the instruction at which the runs must part, what must be said to differ
BUGS = {
    "accessed_bit": ("ljmp", "memory"),  # the first walk, which fetches it
    "debug_register": ("mov dr1,", "dr1"),
    "dirty_bit": ("mov dword ptr", "memory"),  # the first store with paging on
    "error_code": ("ror dword ptr", "memory"),
    "fault_address": ("ror dword ptr", "cr2"),
    "memory_write": ("sidt", "memory"),
    "msr": ("wrmsr", "kernel_gs_base"),
    "port_value": ("in al, dx", "rax"),
    "return_address": ("int 0x30", "memory"),
    "segment_limit": ("lsl eax", "rax"),
    "stale_tlb": ("lodsb al, byte ptr", "rax"),
    "table_limit": ("sidt", "memory"),
    "time_stamp": ("rdtsc", "rax"),
    "vector_register": ("fxrstor", "digest_fpu"),
    "zero_flag": ("lar", "rflags"),
}
DIFFERENT = 16


def main():
    gnomon = os.path.abspath(sys.argv[1])
    failed = False
    with tempfile.TemporaryDirectory() as work:
        guest = bare.build("parts", 64, work)
        for bug, (instruction, differs) in {"none": (None, None), **BUGS}.items():
            begin = time.monotonic()
            run = subprocess.run([gnomon, "diverge", "--kernel", guest, "--memory", "128M"], stdin=subprocess.DEVNULL,
                                 capture_output=True, text=True, errors="replace", timeout=120, env=dict(os.environ, GNOMON_PLANTED=bug))
            took = time.monotonic() - begin
            at = re.search(r"^=> \S+ +(.*\S)", run.stdout, re.M)
            found = re.sub(" +", " ", at.group(1)) if at else ""
            if bug == "none":
                good = run.returncode == 0 and "both guests end with status 1." in run.stdout
            else:
                good = run.returncode == DIFFERENT and differs in run.stdout.split("What differs")[-1]
                good = good and found.startswith(instruction)
            good = good and took < 60
            failed |= not good
            print("ok    " if good else "FAILED", bug, f"({found})", f"{took:.1f} s", flush=True)
            if not good:
                print(run.stdout[-1500:], run.stderr[-500:])
    sys.exit(failed)


main()
