#!/usr/bin/env bash
# A Debian trixie in a folder, with Swift 6: Debian 12 has none, and Swift's own downloads are for other systems.
#
#   tests/phone/swift_chroot.sh setup                make it (nothing to do where it is there)
#   tests/phone/swift_chroot.sh run COMMAND...       run a command in it, this repository mounted read-only at /repo
#
# Needs root. Mounts live in a mount namespace of their own, so nothing stays mounted. /proc must be there, or every Swift
# tool dies with "libswiftCore.so: cannot open shared object file" (the loader resolves $ORIGIN through it).
# Exit status 3: cannot be had on this machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
repo=$PWD
root=$repo/target/phone/swift

in_root() {
    # A process namespace too: what a command leaves running ends with it.
    unshare --mount --propagation private --pid --fork --kill-child bash -c '
        root=$1; repo=$2; shift 2
        mount -t proc proc "$root/proc"
        mount --rbind /dev "$root/dev"
        mkdir -p "$root/repo"
        mount --bind "$repo" "$root/repo"
        mount -o remount,bind,ro "$root/repo"
        exec chroot "$root" /usr/bin/env -i PATH=/usr/bin:/bin:/usr/sbin:/sbin HOME=/root LC_ALL=C.UTF-8 "$@"
    ' _ "$root" "$repo" "$@" 9>&-
}

skip() { printf 'swift_chroot.sh: %s\n' "$@" >&2; exit 3; }

setup() {
    [ ! -e "$root/.swift-ready" ] || return 0
    [ "$(id -u)" = 0 ] || skip "a chroot needs root"
    local mirror began=$SECONDS
    mirror=$(grep -hos 'https\?://[^ ]*/debian/\?\( \|$\)' /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list |
        head -1 | tr -d ' ') || true
    [ -n "$mirror" ] || skip "Swift comes from Debian; this machine's apt knows no Debian mirror"
    if ! command -v debootstrap >/dev/null; then
        apt-get -qq update
        apt-get install -y -qq --no-install-recommends debootstrap >/dev/null
    fi
    rm -rf "$root"
    mkdir -p "$root"
    debootstrap --variant=minbase trixie "$root" "$mirror" > "$root.log" 2>&1 || { tail "$root.log" >&2; exit 1; }
    rm -f "$root"/var/cache/apt/archives/*.deb
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    local file
    for file in /etc/apt/apt.conf.d/*proxy*; do
        if [ -e "$file" ]; then cp "$file" "$root/etc/apt/apt.conf.d/"; fi
    done
    in_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        swiftlang libc6-dev libstdc++-14-dev >> "$root.log" 2>&1 || { tail "$root.log" >&2; exit 1; }
    # What building and testing a package does not need: about 1 GB.
    local swift=$root/usr/libexec/swift
    rm -rf "$swift"/lib/swift_static "$swift"/lib/liblldb.so* "$swift"/lib/libsourcekitdInProc.so "$swift"/lib/libLTO.so* \
        "$swift"/bin/{lldb,lldb-server,lldb-dap,lldb-argdumper,repl_swift,clangd,sourcekit-lsp,docc,swift-format} \
        "$swift"/lib/swift/embedded "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    in_root swift --version
    touch "$root/.swift-ready"
    echo "Swift's chroot: $((SECONDS - began)) s"
}

mkdir -p "$root"
exec 9> "$root.lock"; flock 9                               # one setup and one run at a time
case ${1:-} in
    setup) setup ;;
    run) shift; in_root "$@" ;;
    *) sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
