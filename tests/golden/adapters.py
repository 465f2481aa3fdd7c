"""PEFT adapters on the golden models: one for each way that PEFT can say what it touches and how strongly.

Both factors are random and non-zero (PEFT itself starts with B = 0, which would hide everything).
"""

import json
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM

from cases import build, generator, logits_of

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = ATTENTION + ["gate_proj", "up_proj", "down_proj"]

# (case, adapter) -> arguments of LoraConfig
ADAPTERS = {
    ("gqa", "lora"): dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    ("gqa", "all"): dict(r=8, lora_alpha=16, target_modules=ALL),
    ("gqa", "rank_pattern"): dict(
        r=4,
        lora_alpha=8,
        target_modules=ALL,
        # A bare suffix, a path, a regular expression, and one anchored at the start of the path.
        rank_pattern={
            "v_proj": 2,
            "layers.0.self_attn.q_proj": 12,
            r"layers\.[12]\.mlp\.(gate|up)_proj": 6,
            r"^model\.layers\.2\.self_attn\.o_proj": 3,
        },
        alpha_pattern={
            "model.layers.1.self_attn.k_proj": 40,
            r".*\.down_proj": 20,
            "v_proj": 5,
        },
    ),
    ("gqa", "rslora"): dict(r=8, lora_alpha=4, use_rslora=True, target_modules=ATTENTION),
    ("gqa", "layers"): dict(
        r=4, lora_alpha=8, target_modules=ALL, layers_to_transform=[0, 2], layers_pattern="layers"
    ),
    ("gqa", "regex"): dict(
        r=4, lora_alpha=8, target_modules=r"model\.layers\.(1|2)\.(self_attn\.[qk]_proj|mlp\.up_proj)"
    ),
    ("gqa", "exclude"): dict(
        r=4, lora_alpha=8, target_modules=ALL, exclude_modules=["k_proj", "layers.1.mlp.down_proj"]
    ),
    ("gqa", "f16"): dict(r=8, lora_alpha=16, target_modules=["k_proj", "gate_proj"]),
    ("gqa", "lm_head"): dict(r=4, lora_alpha=8, target_modules=["q_proj", "lm_head"]),
    ("gqa", "fan_in_fan_out"): dict(r=4, lora_alpha=8, target_modules=["o_proj", "down_proj"]),
    ("llama3", "all"): dict(r=8, lora_alpha=16, target_modules=ALL),
    ("biases", "lora"): dict(r=4, lora_alpha=8, target_modules=ALL),
    ("tied", "lora"): dict(r=4, lora_alpha=8, target_modules=ALL),
    ("head_dim", "lora"): dict(r=4, lora_alpha=8, target_modules=ALL),
    ("wide", "all"): dict(r=4, lora_alpha=8, target_modules=ALL),
    # What an engine without these features has to refuse by name.
    ("gqa", "dora"): dict(r=4, lora_alpha=8, use_dora=True, target_modules=["q_proj", "v_proj"]),
    ("gqa", "modules_to_save"): dict(
        r=4, lora_alpha=8, target_modules=["q_proj"], modules_to_save=["lm_head"]
    ),
    ("gqa", "lora_bias"): dict(r=4, lora_alpha=8, lora_bias=True, target_modules=["q_proj"]),
    ("biases", "bias_all"): dict(r=4, lora_alpha=8, bias="all", target_modules=["q_proj"]),
    ("biases", "bias_lora_only"): dict(r=4, lora_alpha=8, bias="lora_only", target_modules=["q_proj"]),
}
HALF = {"f16", "all"}  # saved as float16, as most published adapters are


@torch.no_grad()
def randomise_adapter(model: torch.nn.Module, rng: torch.Generator, half: bool) -> None:
    """Random values for every trainable parameter, large enough that the logits move."""
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        noise = torch.randn(p.shape, generator=rng)
        if "lora_A" in name:
            value = noise / p.shape[1] ** 0.5
        elif "lora_B" in name:
            value = 0.3 * noise / max(1, p.shape[-1]) ** 0.5
        elif "magnitude" in name:
            value = p * (1.0 + 0.3 * noise)
        elif p.dim() == 1:
            value = p + 0.3 * noise
        else:
            value = noise * (1.2 / p.shape[1] ** 0.5)
        p.copy_(value.half().float() if half else value)


def write(out: Path, case: str, name: str, ids: torch.Tensor) -> torch.Tensor:
    """Writes one adapter folder and returns its logits."""
    config = LoraConfig(task_type="CAUSAL_LM", **ADAPTERS[case, name])
    model = get_peft_model(build(case), config)
    model.peft_config["default"].base_model_name_or_path = case
    randomise_adapter(model, generator(f"{case}/{name}"), name in HALF)
    folder = out / case / "adapters" / name
    shutil.rmtree(folder, ignore_errors=True)
    if name in HALF:
        model = model.half()
    # save_embedding_layers=False: "auto" asks the network about the base model's vocabulary.
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    text = json.loads(path.read_text())
    for key, value in text.items():  # PEFT keeps these as sets, in an order that changes from run to run
        if isinstance(value, list) and key.endswith("_modules"):
            text[key] = sorted(value)
    if name == "fan_in_fan_out":
        # PEFT sets it back to false for nn.Linear, with a warning; files in the wild have it true.
        text["fan_in_fan_out"] = True
    path.write_text(json.dumps(text, indent=2) + "\n")
    # Base and adapter read again from the files: the golden is what PEFT makes of them.
    base = LlamaForCausalLM.from_pretrained(out / case, dtype=torch.float32)
    return logits_of(PeftModel.from_pretrained(base, folder).eval(), ids)
