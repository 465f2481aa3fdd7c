"""Labelled rows for the router: which kind of request a text is, and so which task it is for.

    python models/train/router.py train|heldout OUT.jsonl

`command` (snips), `message` (sms-spam), `question` (disfl-qa), `review` (sentence-polarity), as many of each; training rows
from training files, held-out rows from held-out files.
"""

import argparse
import json
import random
from pathlib import Path

from common import data

SOURCES = {  # (train, held out)
    "command": ("snips/train.jsonl", "snips/validation.jsonl"),
    "message": ("sms-spam/train.jsonl", "sms-spam/test.jsonl"),
    "question": ("disfl-qa/train.jsonl", "disfl-qa/dev.jsonl"),
    "review": ("sentence-polarity/train.jsonl", "sentence-polarity/validation.jsonl"),
}
EACH = {"train": 4000, "heldout": 300}


def rows(split: str) -> list[dict]:
    """Shuffled rows, seeded."""
    chance, found = random.Random(0), []
    for label, files in SOURCES.items():
        lines = (data() / "tasks" / files[split == "heldout"]).read_text().splitlines()
        texts = [(row.get("text") or row["input"]).strip() for row in map(json.loads, lines)]
        texts = [text for text in texts if text and "<|" not in text]  # a special token would end the turn
        found += [{"text": text, "label": label} for text in chance.sample(texts, EACH[split])]
    chance.shuffle(found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", choices=list(EACH))
    parser.add_argument("out", type=Path)
    a = parser.parse_args()
    found = rows(a.split)
    a.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found))
    print(f"{len(found)} rows")


if __name__ == "__main__":
    main()
