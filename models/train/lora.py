"""Trains one task LoRA on models/base with peft and measures it on rows that it did not see.

    python models/train/lora.py --task NAME [--steps N] [--out DIR]

Writes DIR (models/adapters/NAME) as peft does, in float16, and training.json with settings, losses and figures.
Seeded; the figures are those of the saved float16 values. Settings for each task stand in SETTINGS below.
"""

import argparse
import hashlib
import json
import random
import sys
import time
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model

from common import ADAPTERS, BASE, load_base, load_tokenizer
from rows import TASKS, rows
from score import encode, pad, score

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LONGEST = 320  # tokens of a training row; longer ones are left out

# Steps, rows in a batch, peak learning rate.
SETTINGS = {
    "intent": dict(steps=600, batch=16, lr=3e-3),
    "novelist": dict(steps=300, batch=8, lr=2e-3),
    "clean-question": dict(steps=1500, batch=16, lr=3e-3),
    "spam": dict(steps=300, batch=16, lr=2e-3),
    "sentiment": dict(steps=800, batch=16, lr=2e-3),
    "playwright": dict(steps=250, batch=8, lr=3e-3),
}


def batches(pairs: list, size: int, rng: random.Random):
    """Endless batches; each holds rows of like length, so that little is padding."""
    while True:
        order = rng.sample(range(len(pairs)), len(pairs))
        found = []
        for i in range(0, len(order), size * 16):
            pool = sorted(order[i : i + size * 16], key=lambda n: len(pairs[n][0]) + len(pairs[n][1]))
            found += [pool[j : j + size] for j in range(0, len(pool), size)]
        rng.shuffle(found)
        for chosen in found:
            yield [pairs[n] for n in chosen]


def loss_of(model, batch: list) -> torch.Tensor:
    """Mean cross-entropy over the tokens of the answers."""
    ids, mask = pad([a + b for a, b in batch])
    wanted, _ = pad([[0] * (len(a) - 1) + [1] * len(b) for a, b in batch])
    logits = model(ids[:, :-1], attention_mask=mask[:, :-1]).logits
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (each * wanted.flatten()).sum() / wanted.sum()


def train(model, pairs: list, steps: int, batch: int, lr: float, seed: int) -> list:
    """AdamW, 20 steps of warm-up, cosine to zero. Returns [step, mean loss since the last entry]."""
    own = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(own, lr=lr, weight_decay=0.01, betas=(0.9, 0.99))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, 1.0, 20)
    source, log, recent, start = batches(pairs, batch, random.Random(seed)), [], [], time.time()
    model.train()
    for step in range(1, steps + 1):
        loss = loss_of(model, next(source))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(own, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        cosine.step()
        warm.step()
        recent.append(loss.item())
        if step % 25 == 0 or step == steps:
            log.append([step, round(sum(recent) / len(recent), 4)])
            recent = []
            left = (time.time() - start) / step * (steps - step)
            print(f"step {step} of {steps}, loss {log[-1][1]:.4f}, {left:.0f} s left", file=sys.stderr, flush=True)
    return log


def half_values(model) -> None:
    """Rounds the LoRA to what float16 will hold, so that what is measured is what is saved."""
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.half().float()


def save(model, out: Path) -> None:
    """The folder as peft writes it, tensors in float16."""
    own = [p for p in model.parameters() if p.requires_grad]
    for p in own:
        p.data = p.data.half()
    model.peft_config["default"].base_model_name_or_path = "models/base"
    readme = (out / "README.md").read_text() if (out / "README.md").exists() else None
    model.save_pretrained(out, save_embedding_layers=False)
    (out / "README.md").unlink(missing_ok=True)  # peft writes an empty card over ours
    if readme is not None:
        (out / "README.md").write_text(readme)
    config = json.loads((out / "adapter_config.json").read_text())
    config["target_modules"] = LINEARS  # peft keeps a set, in an order that changes from run to run
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    for p in own:
        p.data = p.data.float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--r", type=int, default=8)
    parser.add_argument("--alpha", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    settings = {**SETTINGS[a.task], **{k: v for k in ("steps", "lr") if (v := getattr(a, k))}}
    out = a.out or ADAPTERS / a.task
    out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(a.seed)
    tokenizer = load_tokenizer()
    config = LoraConfig(task_type="CAUSAL_LM", r=a.r, lora_alpha=a.alpha, target_modules=LINEARS)
    model = get_peft_model(load_base(), config)
    held_out = rows(a.task, "heldout", tokenizer)
    pairs = [encode(tokenizer, row) for row in rows(a.task, "train", tokenizer)]
    pairs = [pair for pair in pairs if len(pair[0]) + len(pair[1]) <= LONGEST]
    with model.disable_adapter():
        before = score(model, tokenizer, held_out)
    print(f"{len(pairs)} training rows; base on the held-out rows: {before}", file=sys.stderr, flush=True)
    start = time.time()
    losses = train(model, pairs, **settings, seed=a.seed)
    seconds = time.time() - start
    half_values(model)
    save(model, out)
    after = score(model, tokenizer, held_out)
    report = {
        "task": a.task,
        **settings,
        "r": a.r,
        "alpha": a.alpha,
        "seed": a.seed,
        "training_rows": len(pairs),
        "base_sha256": hashlib.sha256((BASE / "model.safetensors").read_bytes()).hexdigest(),
        "versions": {m.__name__: m.__version__.split("+")[0] for m in (torch, transformers, peft)},
        "seconds": round(seconds),
        "heldout_base": before,
        "heldout": after,
        "loss": losses,
    }
    (out / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({"base": before, "adapter": after, "seconds": round(seconds)}))


if __name__ == "__main__":
    main()
