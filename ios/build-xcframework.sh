#!/usr/bin/env bash
# Builds CaloraFFI.xcframework (iPhone, simulator, Mac) and the Swift bindings that belong to it. Only on a Mac with Xcode.
#
#   ios/build-xcframework.sh
#
# Result in ios/build: CaloraFFI.xcframework, CaloraFFI.xcframework.zip; its checksum is printed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[ "$(uname -s)" = Darwin ] || { echo "build-xcframework.sh: needs macOS with Xcode" >&2; exit 3; }
command -v xcodebuild lipo >/dev/null || { echo "build-xcframework.sh: needs Xcode's command line tools" >&2; exit 3; }

# As in Package.swift.
export IPHONEOS_DEPLOYMENT_TARGET=16.0
export MACOSX_DEPLOYMENT_TARGET=13.0
device=aarch64-apple-ios
simulator="aarch64-apple-ios-sim x86_64-apple-ios"
mac="aarch64-apple-darwin x86_64-apple-darwin"
profile=phone
name=libcalora_ffi.a
out=ios/build

missing=
for target in $device $simulator $mac; do
    rustup target list --installed | grep -qx "$target" || missing+=" $target"
done
[ -z "$missing" ] || { echo "build-xcframework.sh: rustup target add$missing" >&2; exit 3; }

rm -rf "$out"
mkdir -p "$out/simulator" "$out/mac" "$out/device"
for target in $device $simulator $mac; do
    # A staticlib only: a dylib inside an app would have to be signed and embedded.
    cargo rustc --profile "$profile" -p calora-ffi --lib --crate-type staticlib --target "$target"
done
cp "target/$device/$profile/$name" "$out/device/$name"
join() { lipo -create -output "$out/$1/$name" "${@:2}"; }
files() { local target; for target in "$@"; do echo "target/$target/$profile/$name"; done; }
# shellcheck disable=SC2046,SC2086 # words are what is wanted
join simulator $(files $simulator)
# shellcheck disable=SC2046,SC2086
join mac $(files $mac)
for slice in device simulator mac; do
    strip -S -x "$out/$slice/$name"                          # debug information would make hundreds of megabytes
done

# Bindings from the very library that is packed. Headers in a folder of their own: two frameworks that both put a
# module.modulemap directly into Headers/ collide in Xcode.
generated=$out/generated
cargo run -q --profile tools -p calora-bindgen -- generate "target/aarch64-apple-darwin/$profile/$name" \
    --language swift --out-dir "$generated"
mkdir -p ios/Sources/CaloraBindings "$out/Headers/CaloraFFI"
cp "$generated/CaloraBindings.swift" ios/Sources/CaloraBindings/
cp "$generated/CaloraFFI.h" "$out/Headers/CaloraFFI/"
cp "$generated/CaloraFFI.modulemap" "$out/Headers/CaloraFFI/module.modulemap"

arguments=()
for slice in device simulator mac; do
    arguments+=(-library "$out/$slice/$name" -headers "$out/Headers")
done
xcodebuild -create-xcframework "${arguments[@]}" -output "$out/CaloraFFI.xcframework"
(cd "$out" && ditto -c -k --sequesterRsrc --keepParent CaloraFFI.xcframework CaloraFFI.xcframework.zip)
rm -rf "$out/device" "$out/simulator" "$out/mac" "$out/Headers" "$generated"

echo "checksum: $(swift package compute-checksum "$out/CaloraFFI.xcframework.zip")"
