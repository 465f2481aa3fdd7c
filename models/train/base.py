"""Turns a checkpoint of pretrain.py into the shipped model: bfloat16 weights, tokenizer, chat template, plot.

    python models/train/base.py CHECKPOINT [--tokenizer tokenizer.json] [--val val.bin] [--out models/base]

CHECKPOINT is the --out folder of pretrain.py (config.json, model.safetensors, log.json). With --val it also
measures perplexity, before and after the cast. README.md of the model is written by hand, not by this script.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig, LlamaForCausalLM

from common import BASE, load_base, perplexity
from plot import loss_curve

# Turns as corpus.py writes them. The system turn stood in no corpus: it is there for adapters that learn one.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<|system|>' + message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('unknown role: ' + message['role']) }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def write_tokenizer(source: Path, out: Path) -> None:
    """tokenizer.json as it is, and the settings beside it."""
    shutil.copyfile(source, out / "tokenizer.json")
    settings = {
        "add_bos_token": True,  # as the post-processor in tokenizer.json does
        "add_eos_token": False,
        "additional_special_tokens": ["<|user|>", "<|assistant|>", "<|system|>"],
        "bos_token": "<|bos|>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|eos|>",
        "model_max_length": 512,
        "pad_token": "<|pad|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def validation_rows(path: Path) -> list[list[int]]:
    """128 stretches of 257 tokens from the start of val.bin."""
    ids = np.fromfile(path, dtype=np.uint16).astype(int)
    return ids[: 128 * 257].reshape(128, 257).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json of corpus.py (default: beside the checkpoint)")
    parser.add_argument("--val", type=Path, help="val.bin of corpus.py: measure perplexity on it")
    parser.add_argument("--out", type=Path, default=BASE)
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    model = LlamaForCausalLM.from_pretrained(a.checkpoint, dtype=torch.float32).eval()
    if a.val:
        print(f"perplexity of the float32 weights  {perplexity(model, validation_rows(a.val)):.3f}")
    model.config.dtype = torch.bfloat16
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.to(torch.bfloat16).save_pretrained(a.out)
    write_tokenizer(a.tokenizer or a.checkpoint.parent / "tokenizer.json", a.out)
    loss_curve(json.loads((a.checkpoint / "log.json").read_text()), a.out / "loss.svg")
    if a.val:
        print(f"perplexity of the bfloat16 weights {perplexity(load_base(a.out), validation_rows(a.val)):.3f}")


if __name__ == "__main__":
    main()
