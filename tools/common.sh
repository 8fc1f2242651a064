# Shell functions that ./try, ./check and the scripts under tests/ share. Source it; it changes to the top of the tree.
# shellcheck shell=bash

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 4
cd "$top" || exit 4
cache=${GNOMON_CACHE:-$top/.cache} # downloads, images and logs

say()
{
    printf '%s: %s\n' "${0##*/}" "$*" >&2
}

die()
{
    say "$@"
    exit 4
}

make_cache()
{
    mkdir -p "$cache" 2>/dev/null
    [ -w "$cache" ] || die "can't write: $cache: set GNOMON_CACHE to a directory you may write"
}

# What the build needs beyond a minimal Debian 12.
build_packages=(gcc libc6-dev meson ninja-build pkg-config libzydis-dev libcapstone-dev libglib2.0-dev acpica-tools
    libcmocka-dev)
# What the test images need.
image_packages=(cpio gzip python3 ca-certificates nasm)
# What ./check's guests need beyond that: a Debian root file system, SeaBIOS.
guest_packages=(mmdebstrap e2fsprogs util-linux xz-utils seabios)

as_root()
{
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

# install_packages NAME...: installs those that are missing.
install_packages()
{
    local missing=() name
    for name in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || missing+=("$name")
    done
    [ ${#missing[@]} = 0 ] && return
    command -v apt-get >/dev/null || die "packages are missing: ${missing[*]}: install them (this is no Debian)"
    [ "$(id -u)" = 0 ] || command -v sudo >/dev/null ||
        die "packages are missing: ${missing[*]}: run as root or install sudo"
    say "installing ${missing[*]}"
    as_root true || die "packages are missing: ${missing[*]}: run as root or get leave to use sudo"
    as_root apt-get -q update >"$cache/install.log" 2>&1 ||
        die "apt-get update failed: $cache/install.log: check the network and the package sources"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install "${missing[@]}" \
        >>"$cache/install.log" 2>&1 ||
        die "can't install ${missing[*]}: $cache/install.log: see its last lines"
}

# build DIRECTORY [MESON OPTION]...: configures if that was not done, and builds.
build()
{
    local dir=$1 log
    shift
    log=$cache/build-${dir##*/}.log
    if [ ! -f "$dir/build.ninja" ]; then
        meson setup "$dir" "$top" "$@" >"$log" 2>&1 || return 1
    fi
    ninja -C "$dir" >>"$log" 2>&1
}
