#!/usr/bin/env bash
# Compiles the Kotlin library and its samples on a plain JVM and runs their tests against this machine's library.
#
#   tests/phone/kotlin.sh [MAVEN_ARGUMENT...]      e.g. -Dtest=CancelTest
#
# The same sources as in the Gradle project; what only Android has is compiled against its framework's classes, and not
# run. The bindings are generated from the very library that is tested.
# shellcheck source=common.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"
out=$work/kotlin
mkdir -p "$out"

need_packages javac=openjdk-17-jdk-headless mvn=maven python3=python3

host_library
say "bindings from $library"
fresh=$(mktemp -d); trap 'rm -rf "$fresh"' EXIT
bindgen generate "$library" --language kotlin --no-format --out-dir "$fresh"
# Left alone where nothing changed, so that it is not compiled again.
diff -rq "$fresh" "$out/generated" >/dev/null 2>&1 || { rm -rf "$out/generated"; mv "$fresh" "$out/generated"; }

python3 android/jvm/snippets.py "$out/generated-snippets/Snippets.kt" README.md android/README.md bindings/docs/pages/*.md

say "compiling and testing"
rm -rf "$out"/*/surefire-reports
status=0
# In batches and without progress: a log, not a screen. Maven asks the network only for what it has never fetched.
mvn -q -B -f android/jvm/pom.xml -Dwork="$out" -Dlibrary="$(dirname "$library")" -Dsurefire.failIfNoSpecifiedTests=false "$@" test || status=$?

reports=$(find "$out" -path '*/surefire-reports/*.txt' | sort)
# shellcheck disable=SC2086 # one word a file
[ -z "$reports" ] || grep -h '^Tests run' $reports | sed 's/ *<<<.*//'
[ $status = 0 ] || fail "Maven ended with status $status"
# shellcheck disable=SC2086 # one word a file
awk -F'[:,]' '/^Tests run/ { run += $2; failures += $4; errors += $6; skipped += $8 }
    END { printf "\nTests run: %d, Failures: %d, Errors: %d, Skipped: %d\n", run, failures, errors, skipped
          exit !(run > skipped && failures + errors == 0) }' ${reports:-/dev/null} ||
    fail "no test has run, or one has failed"
