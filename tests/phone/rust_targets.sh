#!/usr/bin/env bash
# Gives this repository's Rust version the targets named, where rustup cannot fetch them: std is built from Debian's
# rust-src of exactly that version.
#
#   tests/phone/rust_targets.sh TARGET...
#
# Afterwards `PATH=target/phone/rust/tc/bin:$PATH cargo build --target TARGET` works like any other build: no nightly
# flag and no RUSTC_BOOTSTRAP, which would make the build scripts of dependencies believe they are on nightly.
# Does again only what is missing. Exit status 3: cannot be had on this machine, with what to do about it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."                                            # rust-toolchain.toml rules from here on
dir=$PWD/target/phone/rust
tc=$dir/tc
mkdir -p "$dir"
exec 9> "$dir/lock"; flock 9                                # the platforms' scripts may run side by side

version=$(rustc --version | cut -d' ' -f2)
sysroot=$(rustc --print sysroot)

has() { compgen -G "$1/lib/rustlib/$2/lib/libstd-*.rlib" >/dev/null; }
all_in() { local t; for t in "${@:2}"; do has "$1" "$t" || return 1; done; }

# A toolchain that rustup could give the targets (a developer's own machine) is used as it is.
if all_in "$sysroot" "$@"; then
    { [ ! -e "$tc" ] || [ -L "$tc" ]; } && ln -sfn "$sysroot" "$tc"
    [ ! -L "$tc" ] || exit 0
fi

targets=$*
skip() {
    {
        printf 'rust_targets.sh: %s\n' "$@"
        echo "rust_targets.sh: either pin channel = \"VERSION\" in rust-toolchain.toml to one that Debian has, or run"
        echo "rust_targets.sh:     rustup target add $targets"
    } >&2
    exit 3
}

if [ -L "$tc" ] || [ "$(cat "$dir/version" 2>/dev/null)" != "$version" ]; then
    rm -rf "$dir/library" "$dir/apt" "$dir/version"
    [ -L "$tc" ] && rm "$tc"
    rm -rf "$tc"
    # rust-src, through an apt state of our own: the system's sources and lists stay as they are.
    key=/usr/share/keyrings/debian-archive-keyring.gpg
    mirror=$(grep -hos 'https\?://[^ ]*/debian/\?\( \|$\)' /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list \
        | head -1 | tr -d ' ') || true
    { [ -n "$mirror" ] && [ -e "$key" ]; } || skip "std of these targets comes from Debian; this machine's apt knows no Debian mirror"
    a=$dir/apt
    mkdir -p "$a"/lists/partial "$a"/cache/archives/partial "$a"/state
    : > "$a/status"
    for suite in trixie trixie-backports sid; do
        echo "deb [signed-by=$key] $mirror $suite main"
    done > "$a/sources.list"
    apt=(-o "Dir::Etc::sourcelist=$a/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State=$a/state"
        -o "Dir::State::lists=$a/lists" -o "Dir::State::status=$a/status" -o "Dir::Cache=$a/cache"
        -o APT::Sandbox::User=root -o Acquire::Languages=none)
    apt-get "${apt[@]}" -qq --error-on=any update
    offered=$(apt-cache "${apt[@]}" madison rust-src | awk '{ print $3 }' | sort -uV)
    # Debian's 1.95.0+dfsg1-2 is our 1.95.0. No other will do: std and compiler are one program.
    package=$(awk -v v="$version" '{ split($1, part, "+") } part[1] == v { print; exit }' <<< "$offered")
    [ -n "$package" ] || skip "Debian has no rust-src $version (the version in rust-toolchain.toml). It has:" $offered
    (cd "$dir" && apt-get "${apt[@]}" -qq download "rust-src=$package")
    dpkg-deb --fsys-tarfile "$dir"/rust-src_*.deb |
        tar -x -C "$dir" --strip-components=4 --wildcards --no-wildcards-match-slash './usr/src/rustc-*/library'
    rm -rf "$dir"/rust-src_*.deb "$a"
    # A copy of the toolchain, by hard links where it can: rustc finds its sysroot from its real path.
    mkdir -p "$tc"
    cp -al "$sysroot/bin" "$sysroot/lib" "$tc/" 2>/dev/null ||
        { rm -rf "$tc"; mkdir -p "$tc"; cp -a "$sysroot/bin" "$sysroot/lib" "$tc/"; }
    mkdir -p "$tc/lib/rustlib/src/rust"
    ln -sfn "$dir/library" "$tc/lib/rustlib/src/rust/library"
    echo "$version" > "$dir/version"
fi

# An empty crate: building it builds std, whose files are then copied to where rustc looks for them.
w=$(mktemp -d); trap 'rm -rf "$w"' EXIT
mkdir "$w/src"; : > "$w/src/lib.rs"
cat > "$w/Cargo.toml" <<'TOML'
[package]
name = "stdseed"
edition = "2024"
[profile.release]
codegen-units = 4
[workspace]
TOML
# panic_abort must itself be compiled to abort, or nothing with panic = "abort" links.
cat > "$w/wrap" <<'SH'
#!/bin/sh
case " $* " in *" --crate-name panic_abort "*) set -- "$@" -Cpanic=abort ;; esac
exec "$@"
SH
chmod +x "$w/wrap"
for target in "$@"; do
    lib=$tc/lib/rustlib/$target/lib
    if has "$tc" "$target"; then continue; fi
    crates=core,alloc,std,panic_abort,panic_unwind,proc_macro
    case $target in *-gnu) crates+=,test ;; esac             # only those run tests
    began=$SECONDS
    (
        cd "$w"
        unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET CARGO_BUILD_RUSTFLAGS
        # Bitcode, so that fat LTO reaches into std.
        RUSTC=$tc/bin/rustc RUSTC_WRAPPER=$w/wrap RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$w/target RUSTFLAGS=-Cembed-bitcode=yes \
            "$tc/bin/cargo" build -q -j2 --release --target "$target" "-Zbuild-std=$crates"
    )
    rm -rf "$lib.new"; mkdir -p "$lib.new"
    find "$w/target/$target/release/deps" -name 'lib*.rlib' ! -name 'libstdseed*' -exec cp {} "$lib.new/" \;
    rm -rf "$lib"; mv "$lib.new" "$lib"                       # whole or not at all
    echo "std for $target: $((SECONDS - began)) s"
    rm -rf "$w/target"
done
