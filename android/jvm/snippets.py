"""The Kotlin blocks of Markdown files as functions, to be compiled.

    snippets.py OUT.kt FILE.md...

A block may use `models`, `engine`, `session`, `intent`, `spam` and `prompt` without declaring them.
"""

import pathlib
import re
import sys

HEAD = """@file:Suppress("UNUSED_PARAMETER", "UNUSED_VARIABLE", "NAME_SHADOWING")

package dev.calora.snippets

import dev.calora.*
import java.io.File
"""
PARAMETERS = "models: File, engine: Engine, session: Session, intent: TaskAdapter, spam: TaskAdapter, prompt: String"

out, *files = sys.argv[1:]
text, count = [HEAD], 0
for file in files:
    for block in re.findall(r"^```kotlin\n(.*?)^```", pathlib.Path(file).read_text(), re.M | re.S):
        count += 1
        body = "".join(f"    {line}\n" for line in block.splitlines() if not line.startswith("import "))
        text.append(f"// {file}\nsuspend fun snippet{count}({PARAMETERS}) {{\n{body}}}\n")
if not count:
    sys.exit("no Kotlin block was found")
pathlib.Path(out).parent.mkdir(parents=True, exist_ok=True)
pathlib.Path(out).write_text("\n".join(text))
print(f"{count} Kotlin blocks")
