#!/bin/bash
# Boots one Debian kernel to user space, compares what busybox prints there with what it prints on the host, and checks the
# exit status.
#   boot.sh [--monitor PROGRAM|qemu] [--append TEXT] [--end poweroff|reboot|exit] [--timeout SECONDS] [--keep]
#           [--sees KIB]
#           KERNEL [GNOMON OPTION]...
# KERNEL: cloud-amd64, amd64, 686-pae or 686, as tests/guests/fetch names them. Status 77: it was not fetched.
set -u
caller=$PWD
. "$(dirname "$0")/../../tools/common.sh"
monitor=$top/build/frontend/gnomon append= end=poweroff sees=0 limit=${GNOMON_BOOT_TIMEOUT:-120} keep=
while [ $# -gt 0 ]; do
    case $1 in
    --monitor) monitor=$2; shift 2 ;;
    --append) append=$2; shift 2 ;;
    --end) end=$2; shift 2 ;;
    --timeout) limit=$2; shift 2 ;;
    --keep) keep=1; shift ;;
    --sees) sees=$2; shift 2 ;;
    *) break ;;
    esac
done
[ $# -gt 0 ] || { say "name a kernel: cloud-amd64, amd64, 686-pae or 686"; exit 2; }
flavour=$1
shift
case $flavour in
cloud-amd64|amd64) arch=amd64 bits=64 qemu=qemu-system-x86_64 ;;
686-pae|686) arch=i386 bits=32 qemu=qemu-system-i386 ;;
*) say "unknown kernel: $flavour: use cloud-amd64, amd64, 686-pae or 686"; exit 2 ;;
esac
case $monitor in qemu|/*) ;; *) monitor=$caller/$monitor ;; esac
kernel=$cache/kernels/$flavour/vmlinuz
busybox=$cache/busybox-$arch
[ -f "$kernel" ] && [ -x "$busybox" ] || { say "not fetched: tests/guests/fetch $flavour busybox-$arch"; exit 77; }

work=$(mktemp -d)
trap '[ -n "$keep" ] && say "kept $work" || rm -rf "$work"' EXIT
gcc -m$bits -nostdlib -static -no-pie -o "$work/exit" tests/guests/exit.S || die "can't build tests/guests/exit.S: gcc: see above"
tests/guests/initramfs.sh "$work/initramfs.cpio.gz" "$busybox" tests/guests/init-test payload.sh=tests/guests/payload.sh \
    exit="$work/exit" ||
    die "can't make the initramfs: $work: see above"
# busybox's own digest is part of the payload, so the host runs the same file.
mkdir "$work/host"
if ! "$busybox" true 2>/dev/null; then
    say "this host can't run $busybox: 32-bit programs are switched off"
    exit 77
fi
PATH=/bin:/usr/bin timeout 60 "$busybox" sh tests/guests/payload.sh "$busybox" "$work/host" >"$work/expected" ||
    die "the payload fails on the host: $work/expected: look there"

line="console=ttyS0 panic=-1 gnomon.end=$end $append"
if [ "$monitor" = qemu ]; then
    timeout -k 5 "$limit" "$qemu" -accel tcg -cpu max -m 512 -nodefaults -display none -no-reboot -serial stdio \
        -device isa-debug-exit,iobase=0xf4,iosize=1 -kernel "$kernel" -initrd "$work/initramfs.cpio.gz" -append "$line" \
        </dev/null >"$work/output" 2>"$work/errors"
else
    timeout -k 5 "$((limit + 10))" "$monitor" run --kernel "$kernel" --initrd "$work/initramfs.cpio.gz" --append "$line" \
        --memory 512M --timeout "$limit" --on-reboot exit "$@" </dev/null >"$work/output" 2>"$work/errors"
fi
status=$?

want=0
case $end in
exit) want=85 ;; # (42 << 1) | 1
reboot) [ "$monitor" = qemu ] || want=12 ;;
esac
tr -d '\r' <"$work/output" >"$work/lines"
sed '1,/^PAYLOAD-BEGIN$/d; /^PAYLOAD-END$/,$d' "$work/lines" >"$work/got"
failed=
[ $status = $want ] || failed="exit status $status instead of $want"
grep -q '^BOOTED ' "$work/lines" || failed="no user space"
cmp -s "$work/expected" "$work/got" || failed=${failed:-"busybox printed something else than on the host"}
memory=$(sed -n 's/^MEMORY //p' "$work/lines")
[ "${memory:-0}" -ge "$sees" ] || failed=${failed:-"sees $memory KiB of memory instead of $sees"}
if [ -n "$failed" ]; then
    say "$flavour: $failed; the last lines:"
    tail -n 25 "$work/lines"
    tail -n 25 "$work/errors"
    [ -s "$work/got" ] && diff "$work/expected" "$work/got" | head -n 20
    exit 1
fi
grep -E '^(BOOTED|MODEL|CLOCK) ' "$work/lines"
cat "$work/errors" >&2
