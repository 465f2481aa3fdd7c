#!/usr/bin/env bash
# Measures calora on a connected iPhone or iPad, and prints one JSON object: please send it.
#
#   ios/bench.sh DEVICE [BUNDLE_ID]       DEVICE as `xcrun devicectl list devices` names it
#
# Needs Xcode and the Minimal sample on the device, in a release build, with `base` and `spam` in its Documents folder
# (Finder puts them there). Screen on, charger off and a cool device give figures that can be compared.
set -euo pipefail
device=${1:?"say which device: xcrun devicectl list devices"}
app=${2:-dev.calora.Minimal}
command -v xcrun >/dev/null || { echo "xcrun is missing: it is part of Xcode, on a Mac" >&2; exit 1; }
# Waits for the app, whose last line is the result.
line=$(xcrun devicectl device process launch --console --terminate-existing --device "$device" "$app" --benchmark |
    grep -m1 '^{') || { echo "the app printed no result; open it once by hand and look" >&2; exit 1; }
printf '{"device": "%s", "result": %s}\n' "$device" "$line"
