"""Every shipped adapter, and LoRAs that calora trained itself, on the shipped base: peft against `calora logits`.

    python tests/parity/check_adapters.py CALORA_BIN [--device cpu|gpu]

Both sides widen the bfloat16 weights to float32. Exits 1 if any NMSE is above 1e-8.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from common import ROOT, Table, arguments, calora_logits, nmse, random_ids, torch_logits

BASE = ROOT / "models/base"


def main() -> int:
    a = arguments(__doc__)
    load = lambda: AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    base = load()
    ids = random_ids(base.config.vocab_size)
    plain = torch_logits(base, ids)

    def compare(folder) -> float:
        want = torch_logits(PeftModel.from_pretrained(load(), folder), ids)
        if nmse(want, plain) < 1e-4:
            raise RuntimeError("the adapter moves nothing, so that the check would say nothing")
        return nmse(calora_logits(a.calora, BASE, ids, a.device, "--adapter", folder), want)

    table = Table()
    table.line("base", lambda: nmse(calora_logits(a.calora, BASE, ids, a.device), plain))
    folders = sorted(p.parent for p in (ROOT / "models/adapters").glob("*/adapter_config.json"))
    if not folders:
        sys.exit("models/adapters holds no adapter")
    for folder in folders:
        table.line(folder.name, lambda: compare(folder))
    with tempfile.TemporaryDirectory() as work:
        for name, folder in trained(a.calora, Path(work)):
            table.line(name, lambda: compare(folder))
    return 0 if table.good else 1


def trained(calora: str, work: Path):
    """A LoRA by `calora lora`, and one that `calora adapt` folded from a LoRA and linear recovery; a few steps each."""
    rows = work / "rows.jsonl"
    lines = [{"prompt": f"<|user|>{word}<|assistant|>", "completion": word[::-1]} for word in "abc dog red sun".split()]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--data", rows, "--steps", "4", "--batch", "4", "--device", "cpu"]

    def run(*command):
        subprocess.run([calora, *map(str, command)], check=True, capture_output=True)

    run("lora", BASE, "--out", work / "lora", *options)
    yield "calora lora", work / "lora"
    run("compress", BASE, work / "int3", "--scheme", "int3")
    adapt = ["adapt", BASE, work / "int3", "--lora", work / "lora", "--recovery", "linear", "--fold"]
    run(*adapt, "--out", work / "folded", *options)
    yield "calora adapt --fold", work / "folded"


if __name__ == "__main__":
    sys.exit(main())
