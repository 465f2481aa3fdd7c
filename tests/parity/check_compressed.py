"""What calora compresses, read back by transformers with compressed-tensors, against `calora logits` on the same files.

    python tests/parity/check_compressed.py CALORA_BIN [--device cpu|gpu]

Models: tests/golden/wide and models/base; with CALORA_TEST_DATA set also stories260k, whose widths no group divides.
Each scheme and group size, and what gptq writes; both sides compute in float32. Exits 1 if any NMSE is above 1e-8.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from common import ROOT, Table, arguments, calora, calora_logits, models, nmse, random_ids, torch_logits


def compare(binary: str, source: Path, scheme: str, group: int, device: str, method: str = "rtn") -> float:
    """Compresses one model and compares the two readers of the result."""
    with tempfile.TemporaryDirectory() as folder:
        out, rows = Path(folder) / "model", Path(folder) / "rows.jsonl"
        texts = [(ROOT / name).read_text() for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")]
        rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        options = ("--calibration", rows, "--calibration-tokens", 4096) if method == "gptq" else ()
        calora(binary, "compress", source, out, "--scheme", scheme, "--group-size", group, "--method", method, *options)
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        ids = random_ids(model.config.vocab_size)
        want = torch_logits(model, ids)
        # The check would pass on a file that was not compressed at all.
        original = torch_logits(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), ids)
        if nmse(want, original) < 1e-12:
            raise RuntimeError("the compressed model equals the original: nothing was compressed")
        return nmse(calora_logits(binary, out, ids, device), want)


def main() -> int:
    a = arguments(__doc__)
    sources = models()
    table = Table()
    for source in sources:
        for scheme in ("int4", "int8"):
            for group in (32, 64, 128):
                label = f"{source.name} {scheme} group {group}"
                table.line(label, lambda: compare(a.calora, source, scheme, group, a.device))
        if (source / "tokenizer.json").exists():
            table.line(f"{source.name} int4 group 32 gptq", lambda: compare(a.calora, source, "int4", 32, a.device, "gptq"))
    return 0 if table.good else 1


if __name__ == "__main__":
    sys.exit(main())
