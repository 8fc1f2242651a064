#!/bin/bash
# Boots Debian's cloud kernel in tests/guests/helpers.c, which see.
#   helpers.sh PROGRAM
# Status 77: the kernel was not fetched.
set -u
program=$(readlink -f "${1:?the program built from helpers.c}")
. "$(dirname "$0")/../../tools/common.sh"
kernel=$cache/kernels/cloud-amd64/vmlinuz
busybox=$cache/busybox-amd64
[ -f "$kernel" ] && [ -x "$busybox" ] || { say "not fetched: tests/guests/fetch cloud-amd64 busybox-amd64"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tests/guests/initramfs.sh "$work/initramfs.cpio.gz" "$busybox" tests/guests/init-test payload.sh=tests/guests/payload.sh ||
    die "can't make the initramfs: $work: see above"
"$program" "$kernel" "$work/initramfs.cpio.gz" docs/architecture.md 2>"$work/errors"
status=$?
[ $status = 0 ] || tail -n 25 "$work/errors" >&2
exit $status
