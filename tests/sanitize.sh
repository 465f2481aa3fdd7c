#!/usr/bin/env bash
# Runs tests that reach calora's unsafe corners (mapped files, SIMD kernels) under a tool that sees wrong accesses. Not part
# of ./test: an own build of the engine takes long.
#
#   tests/sanitize.sh valgrind   on the tests that ./test built: leaks and wrong accesses. Valgrind knows no AVX-512, so
#                                that it sees the AVX2 kernels
#   tests/sanitize.sh address    with AddressSanitizer and LeakSanitizer, in a build of its own (20 minutes on two cores)
#   tests/sanitize.sh thread     with ThreadSanitizer; rebuilds the standard library too, which needs its sources
#                                (rustup component add rust-src)
#
# CALORA_SOAK_OPERATIONS says how much of the soak is run (valgrind: 100, else 1000), CALORA_SANITIZE_TARGET where the builds
# go. Miri is no choice here: the engine maps files and its dependencies call into C.
set -euo pipefail
cd "$(dirname "$0")/.."
export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/tmp}
tool=${1:-valgrind}
host=$(rustc -vV | sed -n 's/^host: //p')
# The GPU's driver is not ours to judge; what it does to memory is left out.
run=(weights adapters_load library cpu_device router soak)
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
address | thread)
    target=${CALORA_SANITIZE_TARGET:-target/$tool}
    # The option is for nightly compilers; the stable one has it and the runtimes, too.
    export RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=$tool -Cforce-frame-pointers=yes" CARGO_TARGET_DIR=$target
    export CALORA_SOAK_OPERATIONS=${CALORA_SOAK_OPERATIONS:-1000}
    std=()
    if [ "$tool" = thread ]; then
        [ -d "$(rustc --print sysroot)/lib/rustlib/src/rust/library" ] || fail "rustup component add rust-src"
        std=(-Zbuild-std)
    fi
    cargo test -p calora --locked --target "$host" "${std[@]}" "${run[@]/#/--test=}" -- "${skip[@]}"
    ;;
*) fail "valgrind, address or thread" ;;
esac
echo "sanitize.sh: $tool found nothing"
