#!/usr/bin/env python3
"""A program that waits for its timer's ticks in a worker gets them, also when kicks come at the worst moments.

    ticks.py GNOMON      of a build with -Dplanted=true; status 77: the kernel was not fetched

The planted bug `kicks_between_turns` makes those moments frequent; otherwise they are rare.
"""
import os
import sys
import tempfile

import single


def main():
    gnomon = os.path.abspath(sys.argv[1])
    single.need_kernel()
    failed = False
    with tempfile.TemporaryDirectory() as work:
        _, initramfs = single.build("ticks", work)
        for policy in "user", "raw":
            for bug in "none", "kicks_between_turns":
                run = single.run(gnomon, initramfs, "--direct", "always", "--policy", policy, limit_s=60,
                                 env=dict(os.environ, GNOMON_PLANTED=bug))
                good = "TICKS-END all came" in run.stdout and run.returncode == 0
                failed |= not good
                print("ok    " if good else "FAILED", policy, bug, flush=True)
                if not good:
                    print(run.stdout[-300:], run.stderr[-300:])
    sys.exit(failed)


main()
