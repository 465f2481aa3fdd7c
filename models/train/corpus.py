"""Makes the tokenizer and the pretraining corpus of the base model.

    CALORA_TEST_DATA=... python models/train/corpus.py OUT

Writes OUT/tokenizer.json (byte-level BPE of 4,096 pieces, digits apart; 0 pad, 1 bos, 2 eos, 3 user, 4 assistant,
5 system) and OUT/train.bin, OUT/val.bin (uint16 token ids; every document begins with BOS and ends with EOS).

Training text: the 30 training novels; the sentences of the training halves of the task sets, without their labels
(disfl-qa without its targets, banking77 without its last 1,000 rows, for which no other split is at hand); turns, so
that <|user|> and <|assistant|> mean something: seed instructions of self-instruct, and saying a sentence again.
Validation text: the beginnings of the 3 validation novels.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from common import BOS, EOS, data

SPECIAL = ["<|pad|>", "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|system|>"]
SETS = ("snips", "hwu64", "clinc150", "banking77", "sms-spam", "sentence-polarity", "disfl-qa")
DOCUMENT = 3000  # characters of a stretch of a novel, about


def novels(part: str) -> list[str]:
    """The novels of a part, in the order of their names."""
    return [path.read_text() for path in sorted((data() / "text/eltec-eng" / part).glob("*.txt"))]


def lines_of(path: str) -> list[dict]:
    """The rows of a task set."""
    return [json.loads(line) for line in (data() / "tasks" / path).read_text().splitlines()]


def sentences() -> list[str]:
    """Sentences of the training halves, without labels."""
    found = []
    for name in SETS:
        rows = lines_of(f"{name}/train.jsonl")
        if name == "banking77":
            rows = rows[:-1000]
        found += [(row.get("text") or row.get("input")).strip() for row in rows]
    return found


def train_tokenizer(books: list[str], spoken: list[str]) -> Tokenizer:
    """Byte-level BPE; the sentences count twice, as they do in the corpus."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    stretches = [book[i : i + 5000] for book in books for i in range(0, len(book), 5000)]
    tokenizer.train_from_iterator(stretches + spoken * 2, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", BOS)]
    )
    return tokenizer


def stretches_of(book: str) -> list[str]:
    """A novel as documents of whole paragraphs."""
    found, buffer = [], ""
    for paragraph in book.split("\n\n"):
        buffer += paragraph + "\n\n"
        if len(buffer) > DOCUMENT:
            found.append(buffer.strip())
            buffer = ""
    if buffer.strip():
        found.append(buffer.strip())
    return found


def turns_of(spoken: list[str], rng: random.Random) -> list[str]:
    """Documents of four questions and answers each."""
    turns = []
    for row in lines_of("self-instruct/seed_tasks.jsonl"):
        for instance in row.get("instances", []):
            given = "\n" + instance["input"].strip() if instance.get("input") else ""
            turns.append((row["instruction"].strip() + given, instance["output"].strip()))
    turns = turns * 10 + [("Say again: " + s, s) for s in rng.sample(spoken, 15000)]
    rng.shuffle(turns)
    written = [f"<|user|>{question}<|assistant|>{answer}<|eos|>" for question, answer in turns]
    return ["".join(written[i : i + 4]) for i in range(0, len(written), 4)]


def documents(books: list[str], spoken: list[str], rng: random.Random) -> list[str]:
    """Every document of the training corpus, shuffled."""
    found = [stretch for book in books for stretch in stretches_of(book)]
    for _ in range(2):
        order = spoken[:]
        rng.shuffle(order)
        found += ["\n".join(order[i : i + 12]) for i in range(0, len(order), 12)]
    found += turns_of(spoken, rng)
    rng.shuffle(found)
    return found


def write_ids(tokenizer: Tokenizer, texts: list[str], path: Path) -> None:
    """Token ids of all texts behind one another, EOS after each."""
    stream: list[int] = []
    for encoding in tokenizer.encode_batch(texts):
        stream += [*encoding.ids, EOS]
    np.array(stream, dtype=np.uint16).tofile(path)
    print(f"{path.name}: {len(stream)} tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    books, spoken, rng = novels("train"), sentences(), random.Random(0)
    tokenizer = train_tokenizer(books, spoken)
    tokenizer.save(str(out / "tokenizer.json"))
    write_ids(tokenizer, documents(books, spoken, rng), out / "train.bin")
    beginnings = [book[:200_000] for book in novels("valid")]
    pieces = [text[i : i + DOCUMENT] for text in beginnings for i in range(0, len(text), DOCUMENT)]
    write_ids(tokenizer, pieces, out / "val.bin")


if __name__ == "__main__":
    main()
