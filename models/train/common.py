"""What the scripts of this folder share: where things are, the base model, its tokenizer."""

import os
import sys
from pathlib import Path

MODELS = Path(__file__).resolve().parent.parent
BASE = MODELS / "base"
ADAPTERS = MODELS / "adapters"
BOS, EOS = 1, 2  # of our tokenizer, also in base/config.json

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is local


def data() -> Path:
    """The folder with the task sets and novels, named by CALORA_TEST_DATA."""
    folder = Path(os.environ.get("CALORA_TEST_DATA", ""))
    if not (folder / "tasks").is_dir():
        sys.exit("set CALORA_TEST_DATA to the folder that holds tasks/ and text/ (see models/train/README.md)")
    return folder


def load_base(folder: Path = BASE):
    """The base model in float32 (its bfloat16 values, exactly)."""
    import torch
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def load_tokenizer(folder: Path = BASE):
    """The tokenizer with its chat template."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def windows(ids: list[int], length: int) -> list[list[int]]:
    """Cuts ids into whole windows of `length`, each behind a BOS of its own."""
    return [[BOS, *ids[i : i + length]] for i in range(0, len(ids) - length + 1, length)]


def perplexity(model, rows: list[list[int]]) -> float:
    """exp of the mean loss over every token of the rows but the first; rows of one length."""
    import math

    import torch

    total = count = 0
    with torch.inference_mode():
        for i in range(0, len(rows), 16):
            x = torch.tensor(rows[i : i + 16])
            logits = model(x[:, :-1]).logits.flatten(0, 1)
            total += torch.nn.functional.cross_entropy(logits, x[:, 1:].flatten(), reduction="sum").item()
            count += x[:, 1:].numel()
    return math.exp(total / count)
