#!/bin/bash
# perf names translated code: records a boot of Debian's cloud kernel with --perf, and looks that its report has guest
# addresses in kernel and user mode, stubs, and hardly a sample of translated code without a name.
#   perf.sh GNOMON
# Status 77: no perf here, it may not record, or the kernel was not fetched.
set -u
gnomon=$(readlink -f "${1:?the gnomon program}")
. "$(dirname "$0")/../../tools/common.sh"
kernel=$cache/kernels/cloud-amd64/vmlinuz
busybox=$cache/busybox-amd64
[ -f "$kernel" ] && [ -x "$busybox" ] || { say "not fetched: tests/guests/fetch cloud-amd64 busybox-amd64"; exit 77; }
work=$(mktemp -d)
map=
trap 'rm -rf "$work" ${map:+"$map"}' EXIT
record=(perf record --quiet -e cpu-clock -F 997 -o "$work/data")
"${record[@]}" true >"$work/perf" 2>&1 || { say "perf can't record here"; exit 77; }
tests/guests/initramfs.sh "$work/initramfs.cpio.gz" "$busybox" tests/guests/init-test payload.sh=tests/guests/payload.sh ||
    die "can't make the initramfs: $work: see above"
timeout -k 5 150 "${record[@]}" "$gnomon" run --kernel "$kernel" --initrd "$work/initramfs.cpio.gz" --memory 512M --timeout 120 \
    --append "console=ttyS0 panic=-1 quiet gnomon.end=poweroff" --perf </dev/null >"$work/output" 2>"$work/errors"
status=$?
map=$(sed -n "s/^gnomon: perf's map is //p" "$work/errors")
[ $status = 0 ] && [ -f "$map" ] || { say "exit status $status, map '$map'"; tail -n 25 "$work/output" "$work/errors"; exit 1; }
perf report -i "$work/data" --stdio --force --sort dso,symbol -F overhead,dso,symbol >"$work/report" 2>"$work/errors"
awk '
    / guest_[0-9a-f]+_64_cpl0/ { kernel += $1 }
    / guest_[0-9a-f]+_64_cpl3/ { user += $1 }
    / gnomon_stub_/ { stubs += $1 }
    /\[JIT\]|\/dev\/zero/ && /0x[0-9a-f]+ *$/ { nameless += $1 }
    END {
        printf "%% of samples: kernel %.2f, user %.2f, stubs %.2f, without a name %.2f\n", kernel, user, stubs, nameless
        exit !(kernel > 5 && user > 5 && stubs > 0 && nameless < (kernel + user) / 100)
    }' "$work/report" || { say "the report does not name translated code"; head -n 40 "$work/report"; exit 1; }
