#!/usr/bin/env bash
# Builds the Swift package against this machine's library and runs its tests, in a chroot that has Swift.
#
#   tests/phone/swift.sh [FILTER]         only tests whose name matches
#
# The bindings are generated from the very library that is linked. Exit status 3: no Swift can be had on this machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
chroot=tests/phone/swift_chroot.sh
root=target/phone/swift

"$chroot" setup
cargo build -q -p calora-ffi
library=target/debug/libcalora_ffi.so
out=$(mktemp -d); trap 'rm -rf "$out"' EXIT
cargo run -q --profile tools -p calora-bindgen -- generate "$library" --language swift --out-dir "$out" 2>/dev/null ||
    cargo run -q --profile tools -p calora-bindgen -- generate "$library" --language swift --out-dir "$out"

# Files that are as they were keep their time, or everything above them is built again.
place() { cmp -s "$1" "$2" || { mkdir -p "$(dirname "$2")"; cp "$1" "$2"; }; }
place "$out/CaloraBindings.swift" ios/Sources/CaloraBindings/CaloraBindings.swift
place "$out/CaloraFFI.h" ios/Sources/CaloraFFI/CaloraFFI.h
place "$out/CaloraFFI.modulemap" ios/Sources/CaloraFFI/module.modulemap
place "$library" "$root/root/lib/libcalora_ffi.so"

# What nobody compiles here can at least be parsed.
"$chroot" run bash -c 'swiftc -frontend -parse /repo/ios/Samples/*/App/*.swift /repo/ios/Sources/Calora/Apple/*.swift'

flags=(--package-path /repo --scratch-path /root/build --jobs 2 -Xlinker -L/root/lib -Xlinker -rpath=/root/lib)
"$chroot" run swift build "${flags[@]}" --build-tests
# Not in parallel: some tests measure this process.
"$chroot" run swift test "${flags[@]}" --skip-build --no-parallel ${1:+--filter "$1"} 2>&1 | tee "$out/log"

ran=$(sed -n 's/.*Test run with \([0-9]*\) tests\{0,1\} .*passed.*/\1/p' "$out/log" | tail -1)
[ "${ran:-0}" -gt 0 ] || { echo "swift.sh: no test has run" >&2; exit 1; }
echo "swift.sh: $ran tests passed"
