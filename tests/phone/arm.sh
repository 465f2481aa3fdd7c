#!/usr/bin/env bash
# Shows on a desktop machine that the Arm CPU kernels are right: the engine's own tests of the CPU device, built for Arm
# Linux and run under qemu, once on a processor with dot products (sdot) and once on one without.
#
#   tests/phone/arm.sh
#
# qemu shows that results are right; it says nothing about speed.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
target=aarch64-unknown-linux-gnu

need_packages aarch64-linux-gnu-gcc=gcc-aarch64-linux-gnu /usr/aarch64-linux-gnu/include/stdlib.h=libc6-dev-arm64-cross \
    qemu-aarch64-static=qemu-user-static
rust_targets "$target"

# The CPU device and what it stands on, without the GPU and the tokenizer: arrows point down only, so these modules
# compile alone, in a fraction of the time. Dependencies are the workspace's own, versions those of its lock.
crate=$work/arm
mkdir -p "$crate/src"
{
    printf '[package]\nname = "calora"\nversion = "0.0.0"\nedition = "2024"\nautotests = false\n'
    printf '[workspace]\n[[test]]\nname = "cpu_device"\npath = "%s/tests/cpu_device.rs"\n' "$root"
    awk '/^\[/ { on = $0 == "[dependencies]" } on && !/^(wgpu|tokenizers|minijinja|minijinja-contrib|pollster) /' \
        "$root/Cargo.toml"
    # As the workspace's profile, but of the dependencies only the one that every weight goes through is optimised.
    printf '[profile.dev]\nopt-level = 2\ndebug = false\n'
    printf '[profile.dev.package."*"]\nopt-level = 0\n[profile.dev.package.half]\nopt-level = 2\n'
} > "$crate/Cargo.toml"
for module in adapter arch cpu device error memory quant weights; do
    file=$root/runtime/$module.rs
    [ -e "$file" ] || file=$root/runtime/$module/mod.rs
    printf '#[path = "%s"]\npub mod %s;\n' "$file" "$module"
done > "$work/lib.rs"
echo 'pub use error::{Error, Result};' >> "$work/lib.rs"
cmp -s "$work/lib.rs" "$crate/src/lib.rs" || mv "$work/lib.rs" "$crate/src/lib.rs"
cp "$root/Cargo.lock" "$crate/Cargo.lock"                    # cargo drops what this crate does not use

say "building the CPU device's tests for $target"
cd "$crate"
export CARGO_TARGET_DIR=$work/build CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
cargo test -j2 --target "$target" --no-run --message-format=json-render-diagnostics --lib --test cpu_device > "$work/arm.json"
unit=$(jq -r 'select(.executable and .target.name == "calora").executable' "$work/arm.json")
device=$(jq -r 'select(.executable and .target.name == "cpu_device").executable' "$work/arm.json")

cd "$root"                                                  # as cargo test would
emulate() { qemu-aarch64-static -L /usr/aarch64-linux-gnu -cpu "$@"; }

# Which kernels ran is read from qemu's own list of the code that it translated, not from what the program says.
path_of() {
    rm -f "$work/arm.trace"
    emulate "$1" -d in_asm -D "$work/arm.trace" "$device" -q int8_sums_have_the_same_bits >/dev/null ||
        fail "the int8 kernels disagree on qemu's $1"
    local sdot=no portable=no
    grep -q '^IN: .*3dot4neon.*int' "$work/arm.trace" && sdot=yes
    grep -q '^IN: .*3dot8portable.*int' "$work/arm.trace" && portable=yes
    rm -f "$work/arm.trace"
    echo "sdot $sdot, portable $portable"
}
expect_path() {
    local found; found=$(path_of "$1")
    [ "$found" = "$2" ] || fail "on qemu's $1 the int8 kernels that ran were \"$found\", expected \"$2\""
    say "qemu's $1: int8 kernels $found"
}

expect_path max "sdot yes, portable yes"                    # the test runs both and compares them bit by bit
emulate max "$unit" -q
emulate max "$device" -q
expect_path cortex-a53 "sdot no, portable yes"
emulate cortex-a53 "$unit" -q
# The formula test costs most, and has just run on these very kernels: portable ones do not ask for the processor.
emulate cortex-a53 "$device" -q --skip every_linear_is_its_formula
