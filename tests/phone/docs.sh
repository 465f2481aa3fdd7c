#!/usr/bin/env bash
# Builds the book of bindings/docs; a page that is not in its table of contents, or a link that leads nowhere, fails. So do
# links between files in every other Markdown file of the repository.
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

python3 - <<'PYTHON'
import pathlib, re, subprocess, sys

dead = []
for name in subprocess.check_output(["git", "ls-files", "*.md"], text=True).split():
    page = pathlib.Path(name)
    # Code may hold brackets and parentheses that are no link.
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in link and not (page.parent / link).exists():
            dead.append(f"{name}: {link} leads nowhere")
sys.exit("\n".join(dead) or 0)
PYTHON
echo "docs.sh: $(find target/book -name '*.html' | wc -l) pages in target/book"
