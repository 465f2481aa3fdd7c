"""Writes what a training step has to give: losses and gradients of one batch, computed by PyTorch in float64.

    python tests/golden/train.py CALORA_BIN tests/golden/train      (the folder that is committed; half a minute)

Two fixtures, `untied` and `tied`. The base is a small random Llama; `compressed` is calora's own int4 of it, unpacked
by compressed-tensors; the LoRA is peft's; the recovery branch is a forward hook (`attach`). No line
of the trainer is used. Deterministic: the same bytes each time from the same program.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cases  # first: it keeps transformers off the network
import torch
from adapters import ALL, randomise_adapter
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

RANK, ALPHA, RECOVERY_RANK, RECOVERY_SCALE = 4, 8, 6, 1.0
# Widths that groups of 32 divide; the MLP width is no power of two.
COMMON = dict(cases.COMMON, vocab_size=200, intermediate_size=96, num_key_value_heads=2)
FIXTURES = {"untied": dict(hidden_size=64), "tied": dict(hidden_size=32, tie_word_embeddings=True)}
LENGTHS, PROMPTS = (11, 6, 17), (4, 1, 9)  # a token of a prompt is read, not counted
WEIGHTS = {"hidden": dict(ce=1.0, mse=0.5, kl=0.0), "logits": dict(ce=1.0, mse=0.0, kl=0.5)}


def write_base(folder: Path, name: str) -> None:
    """A random model in float32."""
    config = LlamaConfig(**{**COMMON, **FIXTURES[name]}, attn_implementation="sdpa")
    model = LlamaForCausalLM(config).eval()
    cases.randomise(model, cases.generator("train " + name))
    model.config.dtype = torch.float32
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def write_lora(folder: Path, base: Path, name: str) -> None:
    """A peft LoRA on all seven linears, both factors random."""
    config = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules=ALL)
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    model.peft_config["default"].base_model_name_or_path = "base"
    randomise_adapter(model, cases.generator("train lora " + name), half=False)
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_modules"] = ALL  # peft keeps a set, in an order that changes from run to run
    path.write_text(json.dumps(config, indent=2) + "\n")


def write_recovery(path: Path, base: Path, name: str) -> None:
    """D and U of every linear, `{module}.recovery_D` (rank, in) and `.recovery_U` (out, rank)."""
    model, rng, tensors = LlamaForCausalLM.from_pretrained(base), cases.generator("train recovery " + name), {}
    for module, linear in linears(model).items():
        rows, cols = linear.weight.shape
        tensors[f"{module}.recovery_D"] = torch.randn(RECOVERY_RANK, cols, generator=rng) / cols**0.5
        tensors[f"{module}.recovery_U"] = 0.3 * torch.randn(rows, RECOVERY_RANK, generator=rng) / RECOVERY_RANK**0.5
    cases.save(path, tensors, {"activation": "gelu", "scale": str(RECOVERY_SCALE)})


def write_student(path: Path, lora: Path, recovery: Path) -> None:
    """LoRA and recovery once more, as one task file of calora's, for readers of that."""
    tensors, scaling = {}, {}
    for key, value in load_file(lora / "adapter_model.safetensors").items():
        tensors[key] = value
        module = key.removeprefix("base_model.model.").rsplit(".lora_", 1)[0]
        scaling[module] = {"lora": ALPHA / RANK, "recovery": RECOVERY_SCALE}
    for key, value in load_file(recovery).items():
        tensors[f"base_model.model.{key}.weight"] = value
    metadata = {
        "calora.format": "task-adapter",
        "calora.version": "1",
        "calora.name": "student",
        "calora.base": "unbound",
        "calora.scaling": json.dumps(scaling, sort_keys=True),
        "calora.activation": "gelu",
    }
    cases.save(path, tensors, metadata)


def linears(model: torch.nn.Module) -> dict:
    """The seven linears of each layer by path."""
    return {n: m for n, m in model.named_modules() if n.rsplit(".", 1)[-1] in ALL}


def dequantized(folder: Path) -> LlamaForCausalLM:
    """The compressed model with its weights as float64, integer times scale.

    compressed-tensors unpacks; it would also multiply, but rounds the products to the scales' float16.
    """
    model = LlamaForCausalLM.from_pretrained(folder / "base", dtype=torch.float32).double()
    file = load_file(folder / "compressed" / "model.safetensors")
    for module, linear in linears(model).items():
        shape = torch.Size(file[f"{module}.weight_shape"].tolist())
        integers = unpack_from_int32(file[f"{module}.weight_packed"], 4, shape).double()
        scale = file[f"{module}.weight_scale"].double()
        weight = (integers.unflatten(1, (scale.shape[1], -1)) * scale[:, :, None]).flatten(1)
        error = cases.nmse(weight, linear.weight.data)
        assert 1e-4 < error < 2e-2, f"{module}: NMSE {error} is no 4-bit rounding"
        linear.weight.data = weight
    return model


def batch(name: str) -> tuple[list[list[int]], list[list[bool]]]:
    """Ids of three sequences, and whether the token at each place is predicted and counted."""
    rng = cases.generator("train ids " + name)
    ids = [torch.randint(3, COMMON["vocab_size"], (n,), generator=rng).tolist() for n in LENGTHS]
    return ids, [[t >= p for t in range(n)] for n, p in zip(LENGTHS, PROMPTS)]


def with_lora(model: torch.nn.Module, folder: Path, trainable: bool) -> PeftModel:
    """peft's model in float64."""
    return PeftModel.from_pretrained(model, folder, is_trainable=trainable).eval().double()


def attach(model: PeftModel, path: Path) -> dict:
    """Adds s U gelu(D x) to the output of every linear; the parameters by name."""
    own = {k: v.double().requires_grad_() for k, v in load_file(path).items()}
    modules = dict(model.base_model.model.named_modules())
    for module in {key.rsplit(".", 1)[0] for key in own}:
        down, up = own[f"{module}.recovery_D"], own[f"{module}.recovery_U"]

        def hook(_module, inputs, y, down=down, up=up):
            return y + RECOVERY_SCALE * torch.nn.functional.gelu(inputs[0] @ down.T) @ up.T

        modules[module].register_forward_hook(hook)
    return own


def states(model: PeftModel, ids: list[list[int]]) -> tuple[list, list]:
    """Last hidden states (after the last norm) and logits of all tokens but each sequence's last, which is only predicted."""
    hidden, logits = [], []
    for sequence in ids:
        out = model.base_model.model.model(torch.tensor([sequence[:-1]])).last_hidden_state[0]
        hidden.append(out)
        logits.append(model.base_model.model.lm_head(out))
    return hidden, logits


def terms(student: tuple, teacher: tuple, ids: list, counted: list) -> dict:
    """The three terms of the loss."""
    rows = lambda parts: torch.cat([p[torch.tensor(c[1:])] for p, c in zip(parts, counted)])
    want = torch.cat([torch.tensor(i[1:])[torch.tensor(c[1:])] for i, c in zip(ids, counted)])
    h, t = torch.cat(student[0]), torch.cat(teacher[0])
    student_log, teacher_log = rows(student[1]).log_softmax(-1), rows(teacher[1]).log_softmax(-1)
    return {
        "ce": torch.nn.functional.nll_loss(student_log, want),
        "mse": ((h - t) ** 2).mean() / (t**2).mean(),
        "kl": (teacher_log.exp() * (teacher_log - student_log)).sum(-1).mean(),
    }


def write_expected(folder: Path, name: str) -> dict:
    """Losses and gradients from what the files hold."""
    ids, counted = batch(name)
    base = LlamaForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    with torch.no_grad():
        teacher = states(with_lora(base, folder / "lora", trainable=False), ids)
    model = with_lora(dequantized(folder), folder / "lora", trainable=True)
    own = attach(model, folder / "recovery.safetensors")
    for key, p in model.named_parameters():
        if p.requires_grad:
            key = key.removeprefix("base_model.model.").removesuffix(".default.weight")
            own[key] = p
    found = terms(states(model, ids), teacher, ids, counted)
    tensors = {}
    for variant, weights in WEIGHTS.items():
        total = sum(weights[k] * found[k] for k in found)
        for key, g in zip(own, torch.autograd.grad(total, list(own.values()), retain_graph=True)):
            assert g.abs().max() > 0, f"{key}: no gradient"
            tensors[f"{variant}.{key}"] = g.float().contiguous()
    tensors["teacher_hidden"] = torch.cat(teacher[0]).float()
    cases.save(folder / "expected.safetensors", tensors, {"magic": "calora-train-golden", "version": "1"})
    losses = {k: v.item() for k, v in found.items()}
    totals = {v: sum(w[k] * losses[k] for k in losses) for v, w in WEIGHTS.items()}
    settings = dict(lora_rank=RANK, lora_alpha=ALPHA, recovery_rank=RECOVERY_RANK, recovery_scale=RECOVERY_SCALE)
    text = {"ids": ids, "counted": counted, **settings, "weights": WEIGHTS, "losses": losses, "totals": totals}
    lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in text.items())
    (folder / "expected.json").write_text("{\n" + lines + "\n}\n")
    return losses


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("calora")
    parser.add_argument("out", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(1)  # the order of a sum depends on the number of threads
    logging.disable_progress_bar()
    for name in FIXTURES:
        folder = a.out / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_base(folder / "base", name)
        write_lora(folder / "lora", folder / "base", name)
        write_recovery(folder / "recovery.safetensors", folder / "base", name)
        write_student(folder / "student.safetensors", folder / "lora", folder / "recovery.safetensors")
        command = [a.calora, "compress", folder / "base", folder / "compressed", "--scheme", "int4", "--group-size", "32"]
        subprocess.run([*map(str, command), "--json"], check=True, stdout=subprocess.DEVNULL)
        losses = write_expected(folder, name)
        for cache in folder.rglob(".calora-id.json"):
            cache.unlink()
        # A golden in which a term is nothing beside the others could not tell whether it is there.
        assert min(losses.values()) > 1e-2, losses
        print(name, losses)
    return 0


if __name__ == "__main__":
    sys.exit(main())
