#!/usr/bin/env bash
# Shows without Xcode that the iOS library builds and links, imports only what it is meant to, and stays small.
#
#   tests/phone/ios.sh
#
# The linker is Rust's own, against text stubs made from ios_symbols.txt (lines "LIBRARY _symbol", LIBRARY being System,
# objc or a framework): the link fails by name on an import that the list lacks. What ships is the static library; Xcode
# links it into the app.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
target=aarch64-apple-ios
symbols=$here/ios_symbols.txt
min_ios=16.0                                                 # platforms of Package.swift

need_packages cc=build-essential llvm-objdump=llvm jq=jq
rust_targets "$target" aarch64-apple-ios-sim

say "release library for $target"
began=$SECONDS
build "$target" staticlib
archive=$work/build/$target/phone/libcalora_ffi.a
echo "built in $((SECONDS - began)) s"

say "a link as an app's, iOS $min_ios"
stubs=$work/stubs-ios
rm -rf "$stubs"; mkdir -p "$stubs"
for library in $(cut -d' ' -f1 "$symbols" | sort -u); do
    case $library in
        System) name=/usr/lib/libSystem.B.dylib ;;
        objc) name=/usr/lib/libobjc.A.dylib ;;
        *) name=/System/Library/Frameworks/$library.framework/$library ;;
    esac
    {
        printf '%s\n' '--- !tapi-tbd' 'tbd-version: 4' 'targets: [ arm64-ios ]' "install-name: '$name'" 'exports:' \
            '  - targets: [ arm64-ios ]'
        echo "    symbols: [ $(awk -v l="$library" '$1 == l { print "\x27" $2 "\x27" }' "$symbols" | paste -sd,) ]"
        echo '...'
    } > "$stubs/$library.tbd"
done
dylib=$work/libcalora_ffi.dylib
link() { # link OUT [FLAG...]
    "$(lld)" -flavor darwin -arch arm64 -platform_version ios $min_ios $min_ios -dylib -undefined error --error-limit=0 \
        -dead_strip -dead_strip_dylibs -all_load "$archive" "$stubs"/*.tbd "${@:2}" -o "$1" > "$work/link.log" 2>&1 ||
        { cat "$work/link.log" >&2; explain_undefined "$work/link.log"; fail "the link failed"; }
}
link "$dylib"

say "what is in it"
# Every symbol that the archive shows to an app's linker could clash with one of the app's own.
exports=$(llvm-nm --extern-only --defined-only --just-symbol-name "$dylib")
# Rust's own two and a class of wgpu's cannot be hidden in an archive.
foreign=$(grep -vE '^_(uniffi_|ffi_|UNIFFI_META_|rust_eh_personality$|_RNv.*3std9panicking11EMPTY_PANIC$|__[A-Z_]+_RawWindowMetalLayer$)' \
    <<< "$exports" || true)
[ -z "$foreign" ] || fail "shows more than uniffi's functions:" $foreign
grep -q '^_uniffi_calora_ffi_fn_' <<< "$exports" || fail "exports none of uniffi's functions: was the right crate built?"
libraries=$(llvm-objdump --macho --dylibs-used "$dylib" | sed -n 's/^\t\([^ ]*\) (.*/\1/p' | sed 's|.*/||' | grep -v '^libcalora' |
    sort | paste -sd' ')
expected=$(cut -d' ' -f1 "$symbols" | sort -u | sed 's/^System$/libSystem.B.dylib/; s/^objc$/libobjc.A.dylib/' | sort | paste -sd' ')
[ "$libraries" = "$expected" ] || fail "links \"$libraries\", expected \"$expected\""
llvm-objdump --macho --private-headers "$dylib" | grep -A4 LC_BUILD_VERSION | grep -q "minos $min_ios" ||
    fail "is not for iOS $min_ios"
imports=$(llvm-nm --undefined-only --just-symbol-name "$dylib" | sort -u)
unlisted=$(comm -23 <(echo "$imports") <(cut -d' ' -f2 "$symbols" | sort))
[ -z "$unlisted" ] || fail "imports what ios_symbols.txt does not list:" $unlisted
echo "$(wc -l <<< "$exports") visible symbols, uniffi's and six that cannot be hidden; $(wc -l <<< "$imports") imports, all listed; $libraries"
unused=$(comm -13 <(echo "$imports") <(cut -d' ' -f2 "$symbols" | sort) | paste -sd' ')
[ -z "$unused" ] || echo "listed, but no longer imported: $unused"
# What it adds to an app: only what the bindings call, and no names.
link "$work/stripped.dylib" -exported_symbol '_uniffi_*' -exported_symbol '_ffi_*' -S -x
check_size ios-arm64 "$work/stripped.dylib"

say "check for aarch64-apple-ios-sim"
cargo_phone check --target aarch64-apple-ios-sim
