#!/usr/bin/env bash
# Builds the book of bindings/docs; a page that is not in its table of contents, or a link that leads nowhere, fails.
# Its Kotlin and Swift are compiled by kotlin.sh and swift.sh.
# shellcheck source=common.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"
venv=$work/docs
if ! cmp -s bindings/docs/requirements.txt "$venv/requirements.txt"; then
    python3 -m venv "$venv" 2>/dev/null || { need_packages /nowhere=python3-venv; python3 -m venv "$venv"; }
    "$venv/bin/python" -m pip install -q --disable-pip-version-check -r bindings/docs/requirements.txt
    cp bindings/docs/requirements.txt "$venv/requirements.txt"
fi
"$venv/bin/mkdocs" build --strict --clean -f bindings/docs/mkdocs.yml
echo "docs.sh: $(find target/book -name '*.html' | wc -l) pages in target/book"
