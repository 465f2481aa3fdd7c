#!/usr/bin/env bash
# Runs tests that reach calora's unsafe corners (mapped files, SIMD kernels) under a tool that sees wrong accesses. Not part
# of ./test: an own build of the engine takes long.
#
#   tests/sanitize.sh valgrind   on the tests that ./test built: leaks and wrong accesses. Valgrind knows no AVX-512, so
#                                that it sees the AVX2 kernels
#   tests/sanitize.sh address    with AddressSanitizer and LeakSanitizer, which watch calora's own code, and every allocation:
#                                what ./test built of its dependencies stays (3 minutes on two cores)
#   tests/sanitize.sh thread     with ThreadSanitizer, which must watch the standard library and all dependencies too: a build of
#                                its own (15 minutes), from Debian's rust-web-src where rustup has no rust-src
#
# CALORA_SOAK_OPERATIONS says how much of the soak is run (valgrind: 100, else 1000), CALORA_SANITIZE_TARGET where ThreadSanitizer's
# build goes. Miri is no choice here: the engine maps files and its dependencies call into C.
set -euo pipefail
cd "$(dirname "$0")/.."
export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/tmp}
tool=${1:-valgrind}
host=$(rustc -vV | sed -n 's/^host: //p')
# The GPU's driver is not ours to judge; what it does to memory is left out.
run=(weights adapters_load library cpu_device router soak)
more=(hostile_adapters trim together)
skip=(--skip gpu)

fail() { echo "sanitize.sh: $*" >&2; exit 1; }

case $tool in
valgrind)
    command -v valgrind >/dev/null || fail "valgrind is missing (Debian's package has this name)"
    export CALORA_SOAK_OPERATIONS=${CALORA_SOAK_OPERATIONS:-100} CALORA_SOAK_STUCK_SECONDS=3000
    cargo test --workspace --features calora-models/train --locked --no-run --message-format=json |
        python3 -c '
import json, sys
wanted = set(sys.argv[1:])
for line in sys.stdin:
    built = json.loads(line) if line.startswith("{") else {}
    if built.get("executable") and built["target"]["name"] in wanted and "test" in built["target"]["kind"]:
        print(built["executable"])' "${run[@]}" |
        while read -r test; do
            echo "== $test"
            # Threads that were started once and wait for ever hold what is "possibly" lost.
            # Threads take turns under valgrind, and idle ones spin: without fairness the others starve.
            valgrind -q --fair-sched=yes --error-exitcode=99 --leak-check=full --show-leak-kinds=definite \
                --errors-for-leak-kinds=definite "$test" "${skip[@]}" --test-threads=1 </dev/null
        done
    ;;
address)
    # The option is for nightly compilers; the stable one has it and the runtimes, too. Only packages of this workspace get it.
    wrapper=$(mktemp)
    trap 'rm -f "$wrapper"' EXIT
    printf '#!/bin/sh\nRUSTC_BOOTSTRAP=1 exec "$@" %s\n' \
        "-Zsanitizer=address -Cforce-frame-pointers=yes -Cunsafe-allow-abi-mismatch=sanitizer" >"$wrapper"
    chmod +x "$wrapper"
    export RUSTC_WORKSPACE_WRAPPER=$wrapper CALORA_SOAK_OPERATIONS=${CALORA_SOAK_OPERATIONS:-1000}
    # Tests ask for more memory than there is.
    export ASAN_OPTIONS=allocator_may_return_null=1
    run+=("${more[@]}")
    cargo test --workspace --features calora-models/train --locked "${run[@]/#/--test=}" -- "${skip[@]}"
    ;;
thread)
    tools=target/tools/thread
    export CARGO_TARGET_DIR=${CALORA_SANITIZE_TARGET:-target/thread} CALORA_SOAK_OPERATIONS=${CALORA_SOAK_OPERATIONS:-1000}
    export RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=thread -Cforce-frame-pointers=yes"
    cargo=cargo
    if [ ! -d "$(rustc --print sysroot)/lib/rustlib/src/rust/library" ]; then
        runtime=$(rustc --print sysroot)/lib/rustlib/$host/lib/librustc-stable_rt.tsan.a
        cargo=$PWD/$tools/usr/bin/cargo
        if [ ! -x "$cargo" ]; then
            command -v apt-get >/dev/null || fail "rustup component add rust-src"
            mkdir -p "$tools/packages"
            packages=$(apt-get install -y --print-uris --no-install-recommends rustc-web cargo-web rust-web-src |
                sed -n "s/^'.* \([a-z0-9.+-]*\)_[^ ]*\.deb .*/\1/p")
            # shellcheck disable=SC2086 # a list of names
            (cd "$tools/packages" && apt-get download $packages && for file in *.deb; do dpkg -x "$file" ..; done)
        fi
        # Debian's compiler comes without the runtime, whose interface does not change.
        cp "$runtime" "$tools/usr/lib/rustlib/$host/lib/"
        export RUSTC=$PWD/$tools/usr/bin/rustc LD_LIBRARY_PATH=$PWD/$tools/usr/lib/x86_64-linux-gnu
    fi
    run+=("${more[@]}")
    "$cargo" test -Zbuild-std --target "$host" -p calora --locked "${run[@]/#/--test=}" -- "${skip[@]}"
    ;;
*) fail "valgrind, address or thread" ;;
esac
echo "sanitize.sh: $tool found nothing"
