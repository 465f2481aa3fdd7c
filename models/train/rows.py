"""Turns the task sets into calora's rows.

    python models/train/rows.py TASK train|heldout OUT.jsonl

A row is one of

    {"prompt": str, "completion": str}                generate after the prompt
    {"prompt": str, "choices": [str], "label": int}   the choice of highest likelihood (sum over its tokens) wins
    {"text": str}                                     plain text, for perplexity

The convention, for whoever reads them (`calora eval`, lora.py):

* A prompt is rendered through the model's chat template, special tokens spelled out: `<|user|>sentence<|assistant|>`.
  The leading BOS is NOT written: the reader puts it there once, because tokenizer_config.json says `add_bos_token`.
* Special tokens in prompts are recognised. Sentences of the task sets hold none (checked here).
* Completions and choices are tokenised on their own, without BOS. They follow a special token, so that the ids are
  those of the joined string, and no space is put between.
* Completions and choices hold no EOS. Training puts one behind them and generation stops at it; choices are scored
  without it.
* A text row gets BOS like a prompt. Texts here are cut so that BOS and text are at most 257 tokens.
"""

import argparse
import json
from pathlib import Path

from common import data, load_tokenizer

CHOICES = {"spam": ["ham", "spam"], "sentiment": ["negative", "positive"]}
NOVELS = {"novelist": "text/eltec-eng/valid/ENG18740_Ouida.txt", "playwright": "text/tinyshakespeare.txt"}
FILES = {  # (train, held out)
    "intent": ("tasks/snips/train.jsonl", "tasks/snips/validation.jsonl"),
    "clean-question": ("tasks/disfl-qa/train.jsonl", "tasks/disfl-qa/dev.jsonl"),
    "spam": ("tasks/sms-spam/train.jsonl", "tasks/sms-spam/test.jsonl"),
    "sentiment": ("tasks/sentence-polarity/train.jsonl", "tasks/sentence-polarity/validation.jsonl"),
}
TASKS = [*FILES, *NOVELS]
HELD_OUT = 0.15  # the last part of a novel
TEXT_TOKENS = 256


def render(tokenizer, user: str) -> str:
    """A prompt of one user turn, without the BOS that the reader adds."""
    if "<|" in user:
        raise ValueError(f"a special token in a sentence: {user!r}")
    text = tokenizer.apply_chat_template([{"role": "user", "content": user}], add_generation_prompt=True, tokenize=False)
    return text.removeprefix(tokenizer.bos_token)


def rows(task: str, split: str, tokenizer) -> list[dict]:
    """Rows of a task; split is "train" or "heldout"."""
    if task in NOVELS:
        return text_rows((data() / NOVELS[task]).read_text(), split, tokenizer)
    path = data() / FILES[task][0 if split == "train" else 1]
    return [task_row(task, json.loads(line), tokenizer) for line in path.read_text().splitlines()]


def task_row(task: str, row: dict, tokenizer) -> dict:
    """One line of a task set as a row."""
    prompt = render(tokenizer, (row.get("text") or row["input"]).strip())
    if task in CHOICES:
        return {"prompt": prompt, "choices": CHOICES[task], "label": CHOICES[task].index(row["label"])}
    return {"prompt": prompt, "completion": (row.get("intent") or row["target"]).strip()}


def text_rows(text: str, split: str, tokenizer) -> list[dict]:
    """Stretches of TEXT_TOKENS tokens, behind one another, from one part of a book."""
    cut = text.index("\n\n", int(len(text) * (1 - HELD_OUT)))  # at a paragraph
    text = text[:cut] if split == "train" else text[cut:]
    ids = tokenizer(text.strip(), add_special_tokens=False).input_ids
    pieces = [ids[i : i + TEXT_TOKENS] for i in range(0, len(ids) - TEXT_TOKENS + 1, TEXT_TOKENS)]
    return [{"text": tokenizer.decode(piece)} for piece in pieces]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("split", choices=["train", "heldout"])
    parser.add_argument("out", type=Path)
    a = parser.parse_args()
    found = rows(a.task, a.split, load_tokenizer())
    a.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found))
    print(f"{len(found)} rows")


if __name__ == "__main__":
    main()
