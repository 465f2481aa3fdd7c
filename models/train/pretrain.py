"""Pretrains the base model (Llama architecture) on the corpus of corpus.py; resumable, time-boxed.

    python models/train/pretrain.py --corpus DIR --out RUN_DIR --size small --minutes 60 [--final]

RUN_DIR gets config.json and model.safetensors (float32), state.pt (optimizers, position) and log.json (loss curve);
called again with the same RUN_DIR it goes on from there. The learning rate is flat after the warm-up; --final brings
it down to 2 % over the last --decay of this call. Matrices are trained by Muon, embeddings and norms by AdamW
(--adamw: everything by AdamW). Uses a CUDA GPU where torch sees one, and bfloat16 autocast where the processor has it.
Time-boxed runs depend on the machine's speed: the seed fixes initial weights and batches, not the number of steps.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {  # hidden, mlp, layers, heads, key/value heads
    "small": (256, 768, 6, 8, 4),  # 5.8 M parameters: two CPU cores, hours
    "base": (512, 1536, 8, 8, 4),  # 27.3 M parameters: a GPU, minutes
}
VOCAB, BOS, EOS, PAD = 4096, 1, 2, 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--corpus", type=Path, required=True, help="folder of train.bin and val.bin")
    add("--out", type=Path, required=True)
    add("--size", default="small", choices=SIZES)
    add("--minutes", type=float, required=True, help="length of this call")
    add("--batch", type=int, default=16, help="stretches in a step")
    add("--length", type=int, default=256, help="tokens of a stretch")
    add("--lr", type=float, default=2e-3, help="of AdamW")
    add("--muon-lr", type=float, default=0.02)
    add("--adamw", action="store_true", help="no Muon")
    add("--final", action="store_true", help="bring the learning rate down at the end of this call")
    add("--decay", type=float, default=1.0, help="the part of this call over which --final does so")
    add("--seed", type=int, default=0)
    add("--no-compile", action="store_true")
    add("--every", type=float, default=180, help="seconds between evaluations")
    return parser.parse_args()


def new_model(size: str) -> LlamaForCausalLM:
    hidden, mlp, layers, heads, kv_heads = SIZES[size]
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return LlamaForCausalLM(config)


def optimizers(model, a: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """AdamW for embeddings and norms, Muon for matrices."""
    named = list(model.named_parameters())
    matrices = [] if a.adamw else [p for name, p in named if p.dim() == 2 and "embed" not in name]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": 0.1 if a.adamw else 0.01},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    found = [torch.optim.AdamW(groups, lr=a.lr, betas=(0.9, 0.95), fused=True)]
    if matrices:
        found.append(torch.optim.Muon(matrices, lr=a.muon_lr, weight_decay=0.1, momentum=0.95, nesterov=True))
    return found


class Run:
    """A training run: model, optimizers, position, log, and the folder that keeps them."""

    def __init__(self, a: argparse.Namespace) -> None:
        self.a = a
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        cpu = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
        self.bfloat16 = self.device == "cuda" or "avx512_bf16" in cpu or "amx_bf16" in cpu
        torch.manual_seed(a.seed)
        state_path = a.out / "state.pt"
        resume = state_path.exists()
        model = LlamaForCausalLM.from_pretrained(a.out, dtype=torch.float32) if resume else new_model(a.size)
        self.model = model.to(self.device).train()
        self.optimizers = optimizers(self.model, a)
        self.step, self.tokens, self.spent, self.log = 0, 0, 0.0, []
        if resume:
            state = torch.load(state_path, map_location=self.device, weights_only=False)
            for optimizer, saved in zip(self.optimizers, state["opts"], strict=True):
                optimizer.load_state_dict(saved)
            self.step, self.tokens, self.spent = state["step"], state["tokens"], state["spent"]
            self.log = json.loads((a.out / "log.json").read_text())
        self.train_ids, self.val_ids = (np.fromfile(a.corpus / f"{x}.bin", dtype=np.uint16) for x in ("train", "val"))
        self.rng = np.random.default_rng(a.seed + self.step)
        self.train_loss = self.loss_of if a.no_compile else torch.compile(self.loss_of)
        self.start = time.time()

    def batch(self, source: np.ndarray, count: int, rng: np.random.Generator) -> torch.Tensor:
        """Stretches from random places; three in ten begin with BOS, which few places in the corpus do."""
        length = self.a.length
        at = rng.integers(0, len(source) - length - 1, count)
        x = np.stack([source[i : i + length + 1] for i in at]).astype(np.int64)
        x[rng.random(count) < 0.3, 0] = BOS
        return torch.from_numpy(x).to(self.device)

    def loss_of(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bfloat16):
            logits = self.model(x[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.float().reshape(-1, VOCAB), x[:, 1:].reshape(-1))

    def evaluate(self) -> float:
        """Mean loss over 256 stretches of the validation text, the same ones every time."""
        self.model.eval()
        rng = np.random.default_rng(1)
        with torch.no_grad():
            value = float(np.mean([self.loss_of(self.batch(self.val_ids, 16, rng)).item() for _ in range(16)]))
        self.model.train()
        return value

    def minutes(self) -> float:
        return (self.spent + time.time() - self.start) / 60

    def record(self, **values) -> None:
        """Adds a line to the log and saves everything; state.pt is replaced whole."""
        entry = {"step": self.step, "tokens": self.tokens, "minutes": round(self.minutes(), 1), **values}
        self.log.append(entry)
        self.model.save_pretrained(self.a.out)
        state = {
            "opts": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "tokens": self.tokens,
            "spent": self.minutes() * 60,
        }
        torch.save(state, self.a.out / "state.tmp")
        os.replace(self.a.out / "state.tmp", self.a.out / "state.pt")
        (self.a.out / "log.json").write_text(json.dumps(self.log, indent=0))
        print(entry, f"{self.tokens / (self.minutes() * 60):.0f} tokens/s overall", flush=True)

    def set_rates(self, done: float) -> float:
        """Learning rates when the part `done` of this call is over; returns AdamW's."""
        a = self.a
        scale = min(1.0, (self.step + 1) / 50)
        if a.final:
            scale *= min(1.0, max(0.02, (1 - done) / a.decay))
        for optimizer, peak in zip(self.optimizers, (a.lr, a.muon_lr)):
            for group in optimizer.param_groups:
                group["lr"] = peak * scale
        return a.lr * scale

    def train(self) -> None:
        a, last, rate = self.a, self.start, self.a.lr
        a.out.mkdir(parents=True, exist_ok=True)
        while (done := (time.time() - self.start) / (a.minutes * 60)) < 1:
            rate = self.set_rates(done)
            loss = self.train_loss(self.batch(self.train_ids, a.batch, self.rng))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.step += 1
            self.tokens += a.batch * a.length
            if time.time() - last > a.every:
                last = time.time()
                self.record(loss=round(loss.item(), 4), val=round(self.evaluate(), 4), lr=rate)
        value = self.evaluate()
        self.record(val=round(value, 4), lr=rate)
        print(f"validation loss {value:.4f}, perplexity {math.exp(value):.2f}, {self.tokens} tokens")


if __name__ == "__main__":
    Run(arguments()).train()
