"""Labelled rows for the router: which kind of request a text is, and so which task it is for.

    python models/train/router.py train|heldout OUT.jsonl
    python models/train/router.py routes models/adapters/router/routes.json

`command` (snips), `message` (sms-spam), `question` (disfl-qa), `review` (sentence-polarity), as many of each; training rows
from training files, held-out rows from held-out files. `routes` writes what `calora::router` reads: the tasks, their
labels, and examples of each: 32 training rows, and some of our own.
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
TASK = {"command": "intent", "message": "spam", "question": "clean-question", "review": "sentiment"}
EXAMPLES = 32
UNFIT = ("horny", "naked", "hitman", "naughty", "sex")  # for a file that people read
OWN = {  # the data sets' commands are of a few moulds; people's are not
    "command": [
        "put on something calm for the evening",
        "wake me up with some loud rock",
        "find us a place with good pizza for six people tonight",
        "is it going to rain on saturday",
        "what films are on near me tonight",
        "turn on my running playlist",
        "I would give this book four stars",
        "let me hear that new song by the band from Leeds",
    ],
    "message": [
        "Sorry I'm stuck in traffic, start without me",
        "URGENT! You have been chosen for a free phone. Text WIN to 80082 now",
        "Happy birthday, see you at the party tonight!",
        "Can you pick up the kids at four? Thx",
    ],
    "question": [
        "Who wrote the, sorry, who painted the picture of the sea?",
        "When did the war no wait the siege begin?",
    ],
    "review": ["a long and boring film with nothing to say .", "the best comedy of the year , sharp and kind ."],
}


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


def routes() -> list[dict]:
    """Tasks with their labels and examples."""
    train = rows("train")
    fit = [row for row in train if len(row["text"]) < 120 and not any(w in row["text"].lower() for w in UNFIT)]
    texts = {label: [row["text"] for row in fit if row["label"] == label] for label in TASK}
    return [{"name": TASK[label], "answer": label, "examples": texts[label][:EXAMPLES] + OWN[label]} for label in TASK]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", choices=[*EACH, "routes"])
    parser.add_argument("out", type=Path)
    a = parser.parse_args()
    if a.split == "routes":
        a.out.write_text(json.dumps(routes(), ensure_ascii=False, indent=1) + "\n")
        return
    found = rows(a.split)
    a.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found))
    print(f"{len(found)} rows")


if __name__ == "__main__":
    main()
