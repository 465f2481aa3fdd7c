"""Writes the golden models, adapters, task files and logits.

    python make.py OUT          (OUT = tests/golden to renew what is committed; about a minute)

Deterministic: every case draws from a generator seeded by its own name. Versions: requirements of tests/parity.
Logits are computed with float64 parameters from exactly the values in the files, and stored as float32.
Before it ends it checks that every feature matters: dropping it must move the logits by NMSE >= 1e-4,
attaching an adapter or task file by NMSE >= 1e-2. A golden that could not tell would be no test.
"""

import argparse
import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here comes from the network
import torch
from transformers import LlamaForCausalLM
from transformers.utils import logging

import adapters
import cases
import recovery
from checks import drop_features

COMMAND = "python tests/golden/make.py tests/golden"


def golden(path: Path, ids: torch.Tensor, logits: torch.Tensor) -> None:
    """Token ids and the logits that they give, (tokens, vocab)."""
    metadata = {"magic": "calora-golden", "version": "1", "command": COMMAND}
    cases.save(path, {"ids": ids[0].contiguous(), "logits": logits.float().contiguous()}, metadata)


def write_case(out: Path, name: str) -> torch.Tensor:
    """Writes config and weights of a case, and its golden from what transformers reads back."""
    _, dtype, files = cases.CASES[name]
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    model = cases.build(name)
    if name == "head_dim":
        assert model.config.head_dim * model.config.num_attention_heads != model.config.hidden_size
    size = sum(p.numel() * 4 for p in model.parameters())
    model.config.dtype = getattr(torch, dtype)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=size if files == 1 else size // files + 8192)
    (folder / "generation_config.json").unlink(missing_ok=True)
    found = len(list(folder.glob("model*.safetensors")))
    assert found == files, f"{name}: {found} weight files, {files} wanted"
    if name == "old_keys":
        old_spelling(folder / "config.json")
    logits = cases.logits_of(LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), cases.ids_of(name))
    golden(folder / "golden.safetensors", cases.ids_of(name), logits)
    return logits


def old_spelling(path: Path) -> None:
    """Rewrites a config as transformers 4 did: rope_theta and rope_scaling at the top, torch_dtype."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.45.0"
    del config["head_dim"]  # older configs leave it to hidden_size / num_attention_heads
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def report(label: str, value: float, least: float) -> bool:
    """Prints one line of the table of effects; false if the effect is too small."""
    print(f"{label:44} NMSE {value:.1e}" + ("" if value >= least else f"   below {least:.0e}"))
    return value >= least


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    torch.set_num_threads(1)  # the order of a sum depends on the number of threads
    logging.disable_progress_bar()
    good, plain = True, {}
    for name in cases.CASES:
        plain[name] = write_case(out, name)
        for feature, logits in drop_features(name):
            good &= report(f"{name}: without {feature}", cases.nmse(logits, plain[name]), 1e-4)
    assert cases.nmse(plain["old_keys"], plain["llama3"]) < 1e-20, "two spellings, one model"
    for case, name in adapters.ADAPTERS:
        ids = cases.ids_of(case)
        logits = adapters.write(out, case, name, ids)
        golden(out / case / f"golden_{name}.safetensors", ids, logits)
        good &= report(f"{case}: with adapter {name}", cases.nmse(logits, plain[case]), 1e-2)
    for name in recovery.VARIANTS:
        ids = cases.ids_of("gqa")
        logits = recovery.write(out, "gqa", name, ids)
        golden(out / "gqa" / "recovery" / f"golden_{name}.safetensors", ids, logits)
        good &= report(f"gqa: with task file {name}", cases.nmse(logits, plain["gqa"]), 1e-2)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
