"""Checks of the documentation that need no Mac.

docs.py symbols GRAPH.json...      every public symbol has a comment, and every symbol link of Calora.md leads somewhere
docs.py snippets OUT.swift FILE... the Swift blocks of Markdown files as functions, to be type-checked

A block may use `modelFolder`, `adapterFolder`, `intentFolder`, `spamFolder`, `engine`, `adapter`, `intent`, `spam`, `session` and `prompt` without declaring them.
"""

import json
import pathlib
import re
import sys

# What the compiler writes itself, or what a protocol documents.
OWN = {"==(_:_:)", "hash(into:)", "!=(_:_:)", "hashValue"}


def symbols(files):
    problems, known = [], set()
    for file in files:
        for symbol in json.loads(pathlib.Path(file).read_text())["symbols"]:
            if symbol["accessLevel"] not in ("public", "open"):
                continue
            path = "/".join(symbol["pathComponents"])
            known.add(path)
            inherited = "::SYNTHESIZED::" in symbol["identifier"]["precise"]
            if not inherited and symbol["pathComponents"][-1] not in OWN and "docComment" not in symbol:
                problems.append(f"{path}: public, and no comment says what it is")
    page = (pathlib.Path(__file__).parent / "../Sources/Calora/Calora.docc/Calora.md").read_text()
    for link in re.findall(r"(?<!`)``([^`\n]+)``(?!`)", page):
        # A suffix tells overloads apart: `switchTo(_:cache:)-(TaskAdapter?)`.
        if link != "Calora" and re.sub(r"-[^/]*$", "", link) not in known:
            problems.append(f"Calora.md: ``{link}`` leads nowhere")
    print(f"{len(known)} public symbols")
    return problems


def snippets(out, files):
    text = ["import Calora", "import CaloraFoundationModels", "import Foundation", "import FoundationModels"]
    count = 0
    for file in files:
        for block in re.findall(r"^```swift\n(.*?)^```", pathlib.Path(file).read_text(), re.M | re.S):
            count += 1
            lines = [line for line in block.splitlines() if not line.startswith("import ")]
            text += [
                f"// {file}",
                f"func snippet{count}(modelFolder: URL, adapterFolder: URL, intentFolder: URL, spamFolder: URL,",
                "    engine: Calora.Engine, adapter: TaskAdapter, intent: TaskAdapter, spam: TaskAdapter, session: Calora.Session, prompt: String) async throws {",
                "    do {",
                *("        " + line for line in lines),
                "    }",
                "}",
            ]
    pathlib.Path(out).write_text("\n".join(text) + "\n")
    print(f"{count} Swift blocks")
    return [] if count else ["no Swift block was found"]


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    found = symbols(rest) if command == "symbols" else snippets(rest[0], rest[1:])
    print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    sys.exit(bool(found))
