# Shared by the scripts beside it: where things lie, and how they speak. Sourced, not run.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
work=$root/target/phone
mkdir -p "$work"

say() { printf '\n== %s\n' "$*"; }
fail() { printf '%s: FAILED: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# Sets `library` to this machine's library; ./test has built one already and names it.
host_library() {
    library=${CALORA_LIBRARY:-}
    [ -z "$library" ] || { [ -e "$library" ] || fail "CALORA_LIBRARY: there is no $library"; return 0; }
    say "library for this machine"
    cargo build -j2 --locked -p calora-ffi
    library=$root/target/debug/libcalora_ffi.so
    [ -e "$library" ] || library=$root/target/debug/libcalora_ffi.dylib
}

# bindgen ARGUMENT...: the generator of the bindings; ./test has built one from what its tests were built of.
bindgen() {
    if [ -n "${CALORA_BINDGEN:-}" ]; then "$CALORA_BINDGEN" "$@"; return; fi
    cargo run -q -j2 --locked --profile tools -p calora-bindgen -- "$@"
}

# need_packages COMMAND_OR_FILE=DEBIAN_PACKAGE...: installs what is missing.
need_packages() {
    local pair missing=()
    for pair in "$@"; do
        [ -e "${pair%%=*}" ] || command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || fail "install ${missing[*]} (Debian's names)"
    say "installing ${missing[*]}"
    as_root apt-get update -q >/dev/null
    as_root apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
}

# rust_targets TARGET...: puts a toolchain with these targets first in PATH; ends the script, loudly and as a success,
# where the targets cannot be had.
rust_targets() {
    local status=0
    "$here/rust_targets.sh" "$@" || status=$?
    if [ $status = 3 ]; then
        echo
        echo "SKIPPED: $(basename "$0"): no standard library of Rust $(rustc --version | cut -d' ' -f2) for $* in Debian;" \
            "pin a version that is listed above in rust-toolchain.toml"
        exit 0
    fi
    [ $status = 0 ] || exit "$status"
    PATH=$work/rust/tc/bin:$PATH
}

# The linker that comes with Rust; it writes ELF and Mach-O alike.
lld() { echo "$work/rust/tc/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin/rust-lld"; }

# build TARGET CRATE_TYPE [RUSTC_FLAG...]: the bindings as they are shipped; what the linker misses is named.
build() {
    local target=$1 type=$2 log=$work/$1.log; shift 2
    cargo_phone rustc --crate-type "$type" --target "$target" -- "$@" 2>&1 | tee "$log" | grep -v '^ *Compiling' >&2 ||
        [ "${PIPESTATUS[0]}" = 0 ] || { explain_undefined "$log"; fail "the $type for $target does not build"; }
}

# cargo_phone COMMAND...: on the bindings, in the profile in which apps get them. Nothing may need a C compiler for the
# phone: `false` compiles nothing.
cargo_phone() {
    TARGET_CC=false TARGET_CXX=false TARGET_AR=false CARGO_TARGET_DIR=$work/build \
        cargo "$1" -j2 --locked --manifest-path "$root/Cargo.toml" --profile phone -p calora-ffi --lib "${@:2}"
}

# explain_undefined LOG: names the imports that the list does not have.
explain_undefined() {
    local names
    names=$(sed -n 's/.*undefined symbol: *//p' "$1" | sort -u)
    [ -n "$names" ] || return 0
    # shellcheck disable=SC2086 # one word a symbol
    fail "imports what $symbols does not list:" $names
}

# check_size NAME FILE: against sizes.json.
check_size() {
    local bytes budget most
    bytes=$(stat -c %s "$2")
    budget=$(jq -r --arg n "$1" '.budget[$n] // 0' "$here/sizes.json")
    most=$(jq -r .most "$here/sizes.json")
    awk -v n="$1" -v b="$bytes" -v g="$budget" 'BEGIN {
        printf "\n| library | bytes | MB | of its budget |\n| --- | --- | --- | --- |\n"
        printf "| %s | %d | %.2f | %s |\n", n, b, b / 1e6, g ? sprintf("%.1f %%", 100 * b / g) : "none"
        printf "{\"library\": \"%s\", \"bytes\": %d, \"budget\": %d}\n", n, b, g }'
    [ "$budget" != 0 ] || fail "sizes.json has no budget for $1: record $bytes"
    [ "$bytes" -le "$most" ] || fail "$1 has $bytes bytes; it may have $most, whatever its budget"
    [ $((bytes * 100)) -le $((budget * 105)) ] ||
        fail "$1 has $bytes bytes, more than 5 % over its budget of $budget; README.md here says how to raise it"
}
