#!/usr/bin/env python3
"""A program that computes is run as it is said to be: at least nine tenths of the guest's user time are spent that way.

    modes.py GNOMON      status 77: the kernel was not fetched
"""
import json
import os
import sys
import tempfile

import single
import host

MODES = {  # options: where the time must go
    "--direct off": "checked",
    "--policy checked": "checked",
    "--direct always --policy user": "user",
    "--direct always --policy raw": "raw",
    "--direct auto": "raw",  # which the choice must come to
}
LEAST = 0.9


def main():
    gnomon = os.path.abspath(sys.argv[1])
    single.need_kernel()
    failed = False
    with tempfile.TemporaryDirectory() as work:
        _, initramfs = single.build("modes", work)
        ends = set()
        workers = host.has_workers()
        if not workers:
            print("this host gives user code no processes of its own: all of it is to be translated with checks")
        for options, mode in MODES.items():
            if not workers:
                mode = "checked"
            run = single.run(gnomon, initramfs, "--stats=json", *options.split())
            ends |= {line for line in run.stdout.replace("\r", "").splitlines() if line.startswith("MODES-END")} or {run.stdout[-200:]}
            figures = json.loads([line for line in run.stderr.splitlines() if line.startswith("{")][-1])
            times = {name: figures[f"time_guest_{name}"] for name in ("raw", "user", "checked")}
            share = times[mode] / sum(times.values())
            good = run.returncode == 0 and share >= LEAST
            failed |= not good
            print("ok    " if good else "FAILED", options, f"{100 * share:.1f} % {mode} of {sum(times.values()) / 1e9:.2f} s", flush=True)
        if len(ends) != 1:
            print("FAILED they do not all print the same:", ends)
            failed = True
    sys.exit(failed)


main()
