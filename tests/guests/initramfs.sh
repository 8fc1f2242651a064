#!/bin/bash
# Makes an initial RAM disk of busybox, an init and more files. Needs no root: device nodes are written into the archive.
#   initramfs.sh OUT.cpio.gz BUSYBOX INIT [FILE-IN-GUEST=HOST-FILE]...
#   initramfs.sh --bare OUT.cpio.gz INIT [FILE-IN-GUEST=HOST-FILE]...    without busybox
# A name that ends in .cpio is not compressed.
set -eu
bare=
[ "${1-}" = --bare ] && { bare=1; shift; }
out=${1:?the archive to make}
shift
busybox=
[ -n "$bare" ] || { busybox=${1:?a static busybox}; shift; }
init=${1:?a program for /init}
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# One entry of the newc format (cpio(5)): a character device.
node() # INODE NAME MODE MAJOR MINOR
{
    local size=$((${#2} + 1))
    printf '070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X' \
        "$1" "$3" 0 0 1 0 0 0 0 "$4" "$5" "$size" 0
    printf '%s\0' "$2"
    head -c $(((4 - (110 + size) % 4) % 4)) /dev/zero
}

mkdir -p "$work"/root/{bin,dev,etc,proc,sys,tmp,root,mnt}
cp "$init" "$work/root/init"
chmod 755 "$work/root/init"
if [ -z "$bare" ]; then
    cp "$busybox" "$work/root/bin/busybox"
    chmod 755 "$work/root/bin/busybox"
    # The applets' names are in the file too, for an i386 busybox where 32-bit programs are switched off.
    applets=$("$busybox" --list 2>/dev/null || tr '\0' '\n' <"$busybox" | grep -aE '^[a-z0-9_.\[]{1,20}$')
    for name in $applets; do
        [ "$name" = busybox ] || ln -sf busybox "$work/root/bin/$name"
    done
fi
for pair in "$@"; do
    mkdir -p "$work/root/$(dirname "${pair%%=*}")"
    cp -p "${pair#*=}" "$work/root/${pair%%=*}"
done
find "$work/root" -exec touch -h -d @0 {} +
{
    (cd "$work/root" && find . | LC_ALL=C sort | cpio --quiet --reproducible -o -H newc -R 0:0)
    # A second archive behind the first: Linux unpacks both. cpio pads the first to 512 bytes.
    node 1 dev/console $((8#20600)) 5 1
    node 2 dev/null $((8#20666)) 1 3
    printf '070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08XTRAILER!!!\0\0\0\0' 0 0 0 0 1 0 0 0 0 0 0 11 0
} >"$work/cpio"
mkdir -p "$(dirname "$out")"
case $out in
*.cpio) cp "$work/cpio" "$out.new" ;;
*) gzip -n1 <"$work/cpio" >"$out.new" ;;
esac
mv "$out.new" "$out"
