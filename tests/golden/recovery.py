"""Task files with recovery branches, and logits of a plain PyTorch implementation of them.

No code is shared with the engine, and none with PEFT: a forward hook on each nn.Linear adds

    y += s_l * B (A x)  +  s_r * U act(D x)          act = GELU with erf, or none ("linear")

The file: one safetensors file; names `base_model.model.<path>.{lora_A,lora_B,recovery_D,recovery_U}.weight`, shapes
(rank, in) for A and D, (out, rank) for B and U; f16, f32, or i8 with `<name>_scale`, an f32 for each row.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from cases import build, generator, logits_of, save

LINEARS = [f"self_attn.{m}_proj" for m in "qkvo"] + [f"mlp.{m}_proj" for m in ("gate", "up", "down")]
LAYERS = range(3)
EVERYWHERE = [f"model.layers.{i}.{m}" for i in LAYERS for m in LINEARS]


def rank_varied(path: str) -> int:
    """A different rank for every module of a layer and for every layer: 2, 3, ... 10."""
    return 2 + LINEARS.index(path.split(".", 3)[3]) + int(path.split(".")[2])


# name -> rank of LoRA and of recovery for a module path (0: none), activation, stored type
VARIANTS = {
    "recovery": (lambda p: 0, lambda p: 8, "gelu", "f16"),
    "lora_recovery": (lambda p: 4, lambda p: 8, "gelu", "f16"),
    "mixed": (
        lambda p: 4 if p.endswith(("q_proj", "v_proj")) else 0,
        lambda p: 6 if p.endswith(("o_proj", "up_proj", "down_proj", "v_proj")) else 0,
        "gelu",
        "f32",
    ),
    "linear": (lambda p: 4, lambda p: 8, "linear", "f16"),
    "ranks": (lambda p: 0, rank_varied, "gelu", "f16"),
    "int8": (lambda p: 4, lambda p: 8, "gelu", "i8"),
}


def factors(name: str, shapes: dict) -> tuple[dict, dict]:
    """Random factors (path -> kind -> tensor) and scalings (path -> kind -> number) of a variant."""
    lora, recovery, _, _ = VARIANTS[name]
    rng = generator("recovery " + name)
    tensors, scaling = {}, {}
    for n, path in enumerate([*EVERYWHERE, "lm_head"]):
        rows, cols = shapes[path]
        # The head too, in one variant.
        r, rr = (lora(path), recovery(path)) if path != "lm_head" else ((0, 4) if name == "mixed" else (0, 0))
        own, scales = {}, {}
        for rank, down, up, key in ((r, "lora_A", "lora_B", "lora"), (rr, "recovery_D", "recovery_U", "recovery")):
            if rank:
                # Scales that differ from module to module and from 1: taking another module's, or none, shows.
                scales[key] = round(0.5 + 0.125 * ((3 * n + len(key)) % 9), 6)
                own[down] = torch.randn(rank, cols, generator=rng) / cols**0.5
                own[up] = 0.4 * torch.randn(rows, rank, generator=rng) / rank**0.5
        if own:
            tensors[path], scaling[path] = own, scales
    return tensors, scaling


def stored(path: str, kind: str, value: torch.Tensor, dtype: str) -> dict:
    """A factor as it stands in the file."""
    key = f"base_model.model.{path}.{kind}.weight"
    if dtype != "i8":
        return {key: value.to({"f16": torch.float16, "f32": torch.float32}[dtype]).contiguous()}
    scale = value.abs().amax(1) / 127
    return {key: (value / scale[:, None]).round().to(torch.int8), key + "_scale": scale}


def read_back(path: str, kinds: list[str], file: dict) -> dict:
    """The factors of one module from a file, in float64: the golden is computed from what the file holds."""
    out = {}
    for kind in kinds:
        key = f"base_model.model.{path}.{kind}.weight"
        value = file[key].double()
        if key + "_scale" in file:
            value = value * file[key + "_scale"].double()[:, None]
        out[kind] = value
    return out


def attach(model: torch.nn.Module, file: dict, scaling: dict, activation: str) -> None:
    """Adds both branches to the linears named in `scaling`."""
    act = torch.nn.GELU(approximate="none") if activation == "gelu" else torch.nn.Identity()
    modules = dict(model.named_modules())
    for path, scales in scaling.items():
        kinds = (["lora_A", "lora_B"] if "lora" in scales else []) + (
            ["recovery_D", "recovery_U"] if "recovery" in scales else []
        )
        w = read_back(path, kinds, file)

        def hook(_module, inputs, y, w=w, scales=scales):
            x = inputs[0]
            if "lora" in scales:
                y = y + scales["lora"] * ((x @ w["lora_A"].T) @ w["lora_B"].T)
            if "recovery" in scales:
                y = y + scales["recovery"] * (act(x @ w["recovery_D"].T) @ w["recovery_U"].T)
            return y

        modules[path].register_forward_hook(hook)


def write(out: Path, case: str, name: str, ids: torch.Tensor) -> torch.Tensor:
    """Writes one task file and returns its logits."""
    _, _, activation, dtype = VARIANTS[name]
    model = build(case)
    shapes = {n: tuple(m.weight.shape) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    tensors, scaling = factors(name, shapes)
    file = {}
    for path, own in tensors.items():
        for kind, value in own.items():
            file.update(stored(path, kind, value, dtype))
    metadata = {
        "calora.format": "task-adapter",
        "calora.version": "1",
        "calora.name": name,
        "calora.base": "unbound",  # shapes are checked, the base's id is not
        "calora.scaling": json.dumps(scaling, sort_keys=True),
        "calora.activation": activation,
    }
    target = out / case / "recovery" / f"{name}.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    save(target, file, metadata)
    attach(model.double(), load_file(target), scaling, activation)
    return logits_of(model, ids)
