#!/usr/bin/env bash
# Shows without an NDK that the Android library builds and links, imports only what Android has, and stays small.
#
#   tests/phone/android.sh
#
# The linker is Rust's own, against stubs of Android's libraries made from android_symbols.txt (lines "LIBRARY SYMBOL
# FIRST_API"): the link fails by name on an import that the list lacks. What ships is linked by the NDK.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
target=aarch64-linux-android
symbols=$here/android_symbols.txt
min_api=28                                                   # minSdk of android/

need_packages cc=build-essential readelf=binutils jq=jq
rust_targets "$target" x86_64-linux-android

say "stubs of Android's libraries, API $min_api"
stubs=$work/stubs
rm -rf "$stubs"; mkdir -p "$stubs"
object() { # object LIBRARY: LIBRARY.o, which defines each of its symbols as an empty function
    {
        echo '#![no_std]'
        awk -v l="$1" -v api=$min_api '$1 == l && $3 <= api {
            printf "core::arch::global_asm!(\".globl %s\\n.type %s,%%function\\n%s: .size %s,4\\n.4byte 0\");\n", $2, $2, $2, $2 }' \
            "$symbols"
    } > "$stubs/$1.rs"
    rustc --edition 2024 --target "$target" --crate-type lib --crate-name "stub_$1" -Cpanic=abort -Ccodegen-units=1 \
        --emit "obj=$stubs/$1.o" "$stubs/$1.rs"
}
for library in c m dl log android; do
    object $library
    "$(lld)" -flavor gnu -shared -z max-page-size=16384 -soname lib$library.so -o "$stubs/lib$library.so" "$stubs/$library.o"
done
# The NDK's unwinder is linked in, not imported; for a check its names will do.
object unwind
echo "INPUT($stubs/unwind.o)" > "$stubs/libunwind.a"

say "release library for $target"
began=$SECONDS
export CARGO_TARGET_AARCH64_LINUX_ANDROID_LINKER; CARGO_TARGET_AARCH64_LINUX_ANDROID_LINKER=$(lld)
# Packed relocations take half a megabyte less; Android reads both kinds from API 28 on.
build "$target" cdylib -Clinker-flavor=ld.lld -Cstrip=symbols "-Clink-arg=-L$stubs" -Clink-arg=-zmax-page-size=16384 \
    -Clink-arg=--no-undefined -Clink-arg=--error-limit=0 -Clink-arg=-soname=libcalora_ffi.so \
    -Clink-arg=--pack-dyn-relocs=android+relr -Clink-arg=--use-android-relr-tags
so=$work/build/$target/phone/libcalora_ffi.so
echo "built in $((SECONDS - began)) s"

say "what is in it"
dynamic=$(readelf -dW "$so")
entries() { sed -n "s/.*($1).*\[\(.*\)\]/\1/p" <<< "$dynamic" | sort | paste -sd' '; }
[ "$(entries SONAME)" = libcalora_ffi.so ] || fail "SONAME is \"$(entries SONAME)\", expected libcalora_ffi.so"
needed="libandroid.so libc.so libdl.so liblog.so libm.so"
[ "$(entries NEEDED)" = "$needed" ] || fail "needs \"$(entries NEEDED)\", expected \"$needed\""

# Devices with pages of 16 KB load nothing aligned to less.
small=$(readelf -lW "$so" | awk '$1 == "LOAD" && $NF != "0x4000" { print $NF }' | sort -u | paste -sd' ')
[ -z "$small" ] || fail "LOAD segments aligned to $small, expected 0x4000 (16 KB)"

names=$(readelf --dyn-syms -W "$so" | awk '$7 ~ /^([0-9]+|UND)$/ && $5 != "LOCAL" && $8 != "" { sub(/@.*/, "", $8); print $7, $8 }')
exports=$(awk '$1 != "UND" { print $2 }' <<< "$names")
foreign=$(grep -vE '^(uniffi_|ffi_|UNIFFI_META_)' <<< "$exports" || true)
[ -z "$foreign" ] || fail "exports more than uniffi's functions:" $foreign
grep -q '^uniffi_calora_ffi_fn_' <<< "$exports" || fail "exports none of uniffi's functions: was the right crate built?"
imports=$(awk '$1 == "UND" { print $2 }' <<< "$names" | sort)
# The linker has looked for strong ones; weak ones may be missing when it links, and then must not be newer either.
unlisted=$(comm -23 <(echo "$imports") <(awk -v api=$min_api '$3 <= api { print $2 }' "$symbols" | sort))
[ -z "$unlisted" ] || fail "imports what android_symbols.txt does not list up to API $min_api:" $unlisted
echo "$(wc -l <<< "$exports") exports, all uniffi's; $(wc -l <<< "$imports") imports, all of API $min_api or older"
unused=$(comm -13 <(echo "$imports") <(awk '$1 != "unwind" { print $2 }' "$symbols" | sort) | paste -sd' ')
[ -z "$unused" ] || echo "listed, but no longer imported: $unused"
check_size android-arm64 "$so"

say "check for x86_64-linux-android (emulators)"
cargo_phone check --target x86_64-linux-android
