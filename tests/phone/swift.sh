#!/usr/bin/env bash
# Builds the Swift package against this machine's library and runs its tests, in a chroot that has Swift.
#
#   tests/phone/swift.sh [FILTER]         only tests whose name matches
#
# The bindings are generated from the very library that is linked. Exit status 3: no Swift can be had on this machine.
# shellcheck source=common.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"
chroot=tests/phone/swift_chroot.sh
image=$work/swift

"$chroot" setup
host_library
out=$(mktemp -d); trap 'rm -rf "$out"' EXIT
bindgen generate "$library" --language swift --out-dir "$out" |
    grep -v swift-format || true                             # it would format what nobody reads
[ -s "$out/CaloraBindings.swift" ] || { echo "swift.sh: no bindings were written" >&2; exit 1; }

# Files that are as they were keep their time, or everything above them is built again.
place() { cmp -s "$1" "$2" || { mkdir -p "$(dirname "$2")"; cp "$1" "$2"; }; }
place "$out/CaloraBindings.swift" ios/Sources/CaloraBindings/CaloraBindings.swift
place "$out/CaloraFFI.h" ios/Sources/CaloraFFI/CaloraFFI.h
place "$out/CaloraFFI.modulemap" ios/Sources/CaloraFFI/module.modulemap
place "$library" "$image/root/lib/libcalora_ffi.so"

# What nobody compiles here can at least be parsed.
"$chroot" run bash -c 'swiftc -frontend -parse -parse-as-library /repo/ios/Samples/*/App/*.swift \
    /repo/ios/Samples/Assistant/Logic/AppleTransport.swift /repo/ios/Sources/Calora/Apple/*.swift'

flags=(--package-path /repo --scratch-path /root/build --jobs 2 -Xlinker -L/root/lib -Xlinker -rpath=/root/lib)
"$chroot" run swift build "${flags[@]}" --build-tests
# Not in parallel: some tests measure this process. A call that never returns must end too.
"$chroot" run timeout 900 swift test "${flags[@]}" --skip-build --no-parallel ${1:+--filter "$1"} 2>&1 | tee "$out/log"

ran=$(sed -n 's/.*Test run with \([0-9]*\) tests\{0,1\} .*passed.*/\1/p' "$out/log" | tail -1)
skipped=$(grep -c 'Test .* skipped\.$' "$out/log" || true)
[ "$((${ran:-0} - skipped))" -gt 0 ] || { echo "swift.sh: no test has run" >&2; exit 1; }

# The documentation: every public symbol has a comment, and what READMEs show compiles.
mkdir -p "$image/root/docs"
rm -f "$image"/root/docs/*
triple=$("$chroot" run swiftc -print-target-info | sed -n 's/.*"unversionedTriple": "\(.*\)".*/\1/p')
for module in Calora CaloraFoundationModels; do
    "$chroot" run /usr/libexec/swift/bin/swift-symbolgraph-extract -module-name "$module" -target "$triple" \
        -I /root/build/debug/Modules -I /repo/ios/Sources/CaloraFFI -minimum-access-level public \
        -skip-inherited-docs -output-dir /root/docs
done
python3 ios/Tests/docs.py symbols "$image"/root/docs/{Calora,CaloraFoundationModels}.symbols.json
mapfile -t pages < <(find README.md ios bindings/docs -name '*.md' -not -path 'ios/build/*' 2>/dev/null | sort)
python3 ios/Tests/docs.py snippets "$image/root/docs/snippets.swift" "${pages[@]}"
"$chroot" run swiftc -typecheck -swift-version 6 -parse-as-library -I /root/build/debug/Modules \
    -I /repo/ios/Sources/CaloraFFI /root/docs/snippets.swift

echo "swift.sh: $((ran - skipped)) tests passed, $skipped skipped"
