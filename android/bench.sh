#!/usr/bin/env bash
# Measures calora on the Android phone that adb sees, and prints one JSON object: please send it.
#
#   android/bench.sh [MODEL_FOLDER] [ADAPTER]      by default models/base and models/adapters/spam
#
# Needs adb and the minimal sample on the phone (`./gradlew :samples:minimal:installRelease`; a debug build measures the same
# library). Screen on, charger off and a cool phone give figures that can be compared.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
model=${1:-$root/models/base}
adapter=${2:-$root/models/adapters/spam}
app=dev.calora.minimal
files=/sdcard/Android/data/$app/files/bench
command -v adb >/dev/null || { echo "adb is missing: it is part of the Android SDK's platform tools" >&2; exit 1; }
[ -d "$model" ] && [ -e "$adapter" ] || { echo "$model or $adapter is missing" >&2; exit 1; }

adb shell rm -rf "$files"
adb shell mkdir -p "$files"
adb push -q "$model" "$files/model" >&2
adb push -q "$adapter" "$files/adapter" >&2
adb logcat -c
adb shell am force-stop $app
adb shell am start -W -n $app/.MainActivity --ez benchmark true >/dev/null
for _ in $(seq 600); do
    line=$(adb logcat -d -v raw -s calora-bench:I | grep -m1 '^{' || true)
    if [ -n "$line" ]; then
        # What the phone is, beside what it did.
        printf '{"phone": "%s", "android": "%s", "result": %s}\n' "$(adb shell getprop ro.product.model | tr -d '\r')" \
            "$(adb shell getprop ro.build.version.release | tr -d '\r')" "$line"
        exit 0
    fi
    failed=$(adb logcat -d -v raw -s calora-bench:E | grep -m1 . || true)
    [ -z "$failed" ] || { echo "the phone says: $failed" >&2; exit 1; }
    sleep 1
done
echo "no result within ten minutes" >&2
exit 1
