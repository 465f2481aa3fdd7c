"""Int3 and int2 folders, unpacked here by their documented layout, against `calora logits` on the folders themselves.

    python tests/parity/check_mid_rise.py CALORA_BIN [--device cpu|gpu]

The layout is that of runtime/quant/mod.rs; this file shares no code with calora. transformers runs the dense weights.
Models: tests/golden/wide and models/base; with CALORA_TEST_DATA set also stories260k, whose widths are no whole blocks.
Folders in one scheme, with an int8 head, and mixed by a pattern. transformers must refuse each folder, not misread it.
Both sides compute in float32. Exits 1 if any NMSE is above 1e-9.
"""

import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from common import Table, arguments, calora, calora_logits, models, nmse, random_ids, torch_logits


def integers(words: np.ndarray, bits: int, cols: int) -> np.ndarray:
    """(R, K) stored integers from (R, words) u32, one weight after the other."""
    out = np.empty((words.shape[0], cols), np.int64)
    for k in range(cols):
        if bits == 3:
            block, place = divmod(k, 32)
            low = words[:, 3 * block + place // 16] >> (2 * (place % 16)) & 3
            bit = 8 * (place // 4 % 4) + 4 * (place // 16) + place % 4
            out[:, k] = low | (words[:, 3 * block + 2] >> bit & 1) << 2
        else:
            per = 32 // bits
            out[:, k] = words[:, k // per] >> (k % per * bits) & (2**bits - 1)
    return out


def weights_of(config: dict, module: str) -> dict:
    """The `weights` entry that a module is stored in: names before patterns before the class."""
    groups = config["quantization_config"]["config_groups"].values()
    ranks = (
        lambda target: target == module,
        lambda target: target.startswith("re:") and re.match(target[3:], module),
        lambda target: target == "Linear",
    )
    for matches in ranks:
        for group in groups:
            if any(matches(target) for target in group["targets"]):
                return group["weights"]
    raise KeyError(module)


def dense(folder: Path, out: Path) -> int:
    """Writes the folder with plain float32 weights; returns how many matrices were unpacked."""
    shutil.copytree(folder, out)
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    packed = [name.removesuffix(".weight_packed") for name in tensors if name.endswith(".weight_packed")]
    for module in packed:
        weights = weights_of(config, module)
        rows, cols = tensors.pop(f"{module}.weight_shape").tolist()
        words = tensors.pop(f"{module}.weight_packed").numpy().view(np.uint32).astype(np.int64)
        scales = tensors.pop(f"{module}.weight_scale").double().numpy()
        bits = weights["num_bits"]
        zero = (2**bits - 1) / 2 if weights.get("levels") == "mid-rise" else 2 ** (bits - 1)
        values = integers(words, bits, cols) - zero
        values = values * np.repeat(scales, cols // scales.shape[1], axis=1)
        assert values.shape == (rows, cols), module
        tensors[f"{module}.weight"] = torch.from_numpy(values).float()
    del config["quantization_config"]
    (out / "config.json").write_text(json.dumps(config))
    save_file({name: t.contiguous() for name, t in tensors.items()}, out / "model.safetensors", {"format": "pt"})
    return len(packed)


def mixed(binary: str, source: Path, out: Path) -> None:
    """Int4, but the gate and up projections int2 and the down projections int3, said by patterns."""
    parts = {"int2": "re:.*mlp\\.(gate|up)_proj$", "int3": "re:.*down_proj$", "int4": "Linear"}
    tensors, groups = {}, {}
    for scheme, target in parts.items():
        folder = out.with_name(scheme)
        calora(binary, "compress", source, folder, "--scheme", scheme)
        config = json.loads((folder / "config.json").read_text())
        for name, tensor in load_file(folder / "model.safetensors").items():
            module = name.rpartition(".")[0]
            if target == "Linear" or re.match(target[3:], module):
                tensors.setdefault(name, tensor)
        [group] = config["quantization_config"]["config_groups"].values()
        groups[scheme] = group | {"targets": [target]}
        if scheme == "int2":
            shutil.copytree(folder, out)
            extended = config
    extended["quantization_config"]["config_groups"] = groups
    (out / "config.json").write_text(json.dumps(extended))
    # Names of both layouts: only one of them belongs to a module.
    save_file(tensors, out / "model.safetensors", {"format": "pt"})


def refused(folder: Path) -> None:
    """transformers must not load what it would misread."""
    try:
        AutoModelForCausalLM.from_pretrained(folder)
    except Exception:
        return
    raise RuntimeError("transformers loads the folder, whose levels it does not know")


def compare(binary: str, source: Path, device: str, make) -> float:
    """Compresses one model and compares the two readers of the result."""
    with tempfile.TemporaryDirectory() as folder:
        out, plain = Path(folder) / "model", Path(folder) / "plain"
        make(out)
        refused(out)
        if dense(out, plain) == 0:
            raise RuntimeError("nothing was compressed")
        model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
        ids = random_ids(model.config.vocab_size)
        return nmse(calora_logits(binary, out, ids, device), torch_logits(model, ids))


def main() -> int:
    a = arguments(__doc__)
    sources = models()
    table = Table(1e-9)
    for source in sources:
        for scheme in ("int3", "int2"):
            for options in (["--group-size", "32"], ["--group-size", "128"], ["--head", "int8"]):
                def make(out):
                    calora(a.calora, "compress", source, out, "--scheme", scheme, *options)
                label = f"{source.name} {scheme} {' '.join(options)}"
                table.line(label, lambda: compare(a.calora, source, a.device, make))
    for source in sources[:2]:
        label = f"{source.name} int4, int3 and int2 mixed"
        table.line(label, lambda: compare(a.calora, source, a.device, lambda out: mixed(a.calora, source, out)))
    return 0 if table.good else 1


if __name__ == "__main__":
    sys.exit(main())
