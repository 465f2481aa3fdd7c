"""Second moments of linears' inputs and the best low-rank correction, by transformers and numpy in float64.

    python models/tests/golden/moments.py       renews moments.safetensors beside it

Moments: tests/golden/gqa on the ids of its golden, as two sequences, seen by forward hooks. The residual is what
rounding the last down projection to a coarse grid leaves; `best` holds the least weighted energy that rank 1, 4 and 16
leave, by a dense eigendecomposition, and `best_plain` the same without weights.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import LlamaForCausalLM

HERE = Path(__file__).resolve().parent
MODEL = HERE.parents[2] / "tests/golden/gqa"
SPLIT = 20
RANKS = (1, 4, 16)
# Of the linears that share an input, one.
LAYERS, DISTINCT = ("model.layers.0.", "model.layers.2."), ("q_proj", "o_proj", "gate_proj", "down_proj")


def main() -> None:
    model = LlamaForCausalLM.from_pretrained(MODEL, dtype=torch.float64).eval()
    sums: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if name.startswith(LAYERS) and name.endswith(DISTINCT):
            def hook(module, inputs, output, name=name):
                x = inputs[0].reshape(-1, inputs[0].shape[-1])
                sums[name] = sums.get(name, 0) + x.T @ x
            module.register_forward_hook(hook)
    ids = torch.tensor(load_file(MODEL / "golden.safetensors")["ids"].astype(np.int64))
    with torch.no_grad():
        for part in (ids[:SPLIT], ids[SPLIT:]):
            model(part[None])
    tensors = {name: value.numpy().astype(np.float32) for name, value in sums.items()}

    path = "model.layers.2.mlp.down_proj"
    weight = model.get_submodule(path).weight.detach().numpy()
    residual = (weight - np.round(weight / 0.1) * 0.1).astype(np.float32)
    tensors["residual"] = residual
    e = residual.astype(np.float64)
    for name, c in (("best", sums[path].numpy()), ("best_plain", np.eye(e.shape[1]))):
        values = np.linalg.eigvalsh(e @ c @ e.T)[::-1]
        tensors[name] = np.array([values.sum()] + [values[rank:].sum() for rank in RANKS], np.float32)
    save_file(tensors, HERE / "moments.safetensors")


if __name__ == "__main__":
    main()
