"""What peft makes of adapter configurations: which modules get a LoRA, of which rank and scaling.

    python tests/peft/expected.py [CALORA_TEST_DATA] > tests/peft/expected.json

`llama`: configurations written here, attached by `get_peft_model` to a 12-layer Llama; rank and scaling are read from
the resulting layers. `real`: the configurations of other people in `$CALORA_TEST_DATA/adapters/configs` (by file name;
their content is not copied), asked through the functions that peft decides with, about modules as their models have
them. Versions: `tests/parity/requirements.txt`.
"""

import json
import logging
import sys
import warnings
from pathlib import Path

import peft
import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists
from peft.utils.other import get_pattern_key
from transformers import LlamaConfig, LlamaForCausalLM

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)

# Twelve layers: 1, 10 and 11 tell a suffix from a layer.
MODEL = dict(
    vocab_size=16,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=12,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=64,
    tie_word_embeddings=False,
)
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
QV = dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
EVERY = dict(r=4, lora_alpha=8, target_modules=ALL)

CASES = {
    "suffixes": QV,
    "defaults of r and alpha": dict(target_modules=["q_proj"]),
    "suffixes with dots": dict(r=2, target_modules=["self_attn.q_proj", "model.layers.1.mlp.up_proj", "1.mlp.gate_proj"]),
    "no part of a name": dict(r=2, target_modules=["proj", "q_proj", "attn.k_proj"]),
    "head": dict(r=2, target_modules=["lm_head", "k_proj"]),
    "all-linear": dict(r=2, target_modules="all-linear"),
    "ALL-Linear": dict(r=2, target_modules="ALL-Linear"),
    "layers list": dict(**QV, layers_to_transform=[0, 3, 11]),
    "layers number": dict(**QV, layers_to_transform=1),
    "layers empty": dict(**QV, layers_to_transform=[]),
    "whole path is in any layer": dict(
        r=4, target_modules=["model.layers.0.self_attn.q_proj", "v_proj"], layers_to_transform=[3]
    ),
    "layers_pattern": dict(**QV, layers_to_transform=[1], layers_pattern="layers"),
    "layers_pattern list": dict(**QV, layers_to_transform=[1, 2], layers_pattern=["blocks", "layers"]),
    "layers_pattern empty": dict(**QV, layers_to_transform=[5], layers_pattern=[]),
    "layers_pattern regex": dict(**QV, layers_to_transform=[5], layers_pattern="l[ab]yers"),
    "layers_pattern alternatives": dict(
        r=4, target_modules=["q_proj", "model.layers.2.self_attn.o_proj"], layers_to_transform=[5], layers_pattern="h|layers"
    ),
    "layers_pattern of another model": dict(
        r=4, target_modules=["q_proj", "model.layers.2.self_attn.o_proj"], layers_to_transform=[5], layers_pattern="h"
    ),
    "regex": dict(r=4, target_modules=r"model\.layers\.(1|2)\.(self_attn\.[qk]_proj|mlp\.up_proj)"),
    "regex must match the whole path": dict(r=4, target_modules=r"q_proj|model\.layers\.0\.mlp\.up_proj"),
    "regex with a flag": dict(r=4, target_modules=r"(?i).*Q_PROJ"),
    "regex with names": dict(r=4, target_modules=r".*\.(?P<layer>\d+)\.mlp\.(?P<which>up|down)_proj$"),
    "regex lazy": dict(
        r=4,
        target_modules=r"(?:.*?(?:language|text).*?(?:q_proj|k_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|up_proj)))",
    ),
    "regex look-ahead": dict(r=4, target_modules=r"^(?!.*mlp).*_proj"),
    "exclude list": dict(**EVERY, exclude_modules=["k_proj", "layers.1.mlp.down_proj", "model.layers.10.mlp.up_proj"]),
    "exclude regex": dict(**EVERY, exclude_modules=r".*\.(0|11)\..*|.*k_proj"),
    "exclude from regex": dict(r=4, target_modules=r".*_proj", exclude_modules=["o_proj"]),
    "exclude and layers": dict(**EVERY, exclude_modules=["q_proj"], layers_to_transform=[7]),
    "rank suffix": dict(**EVERY, rank_pattern={"v_proj": 2, "layers.1.self_attn.q_proj": 3, "1.self_attn.k_proj": 5}),
    "rank first key wins": dict(**QV, rank_pattern={"q_proj": 2, "model.layers.0.self_attn.q_proj": 6}),
    "rank longer key first": dict(**QV, rank_pattern={"model.layers.0.self_attn.q_proj": 6, "q_proj": 2}),
    "rank alternatives": dict(**EVERY, rank_pattern={"q_proj|v_proj": 2, r"layers\.\d\.mlp\.(gate|up)_proj": 3}),
    "rank anchored": dict(**EVERY, rank_pattern={"^model.layers.2.self_attn.o_proj": 3, "^o_proj": 7, "k_proj$": 2}),
    "rank of no part": dict(**EVERY, rank_pattern={"proj": 2, "self_attn": 3, "_proj": 5}),
    "rank everything": dict(**EVERY, rank_pattern={".*": 3}),
    "rank wildcard": dict(**EVERY, rank_pattern={"layers.1.+q_proj": 3}),
    "alpha": dict(**EVERY, alpha_pattern={"v_proj": 5, r".*\.down_proj": 20, "model.layers.1.self_attn.k_proj": 40}),
    "alpha fractions": dict(r=3, lora_alpha=2.5, target_modules=["q_proj"]),
    "alpha zero and negative": dict(r=2, lora_alpha=-4, target_modules=["q_proj", "k_proj"], alpha_pattern={"k_proj": 0}),
    "rank and alpha": dict(**EVERY, rank_pattern={"q_proj": 16}, alpha_pattern={"q_proj": 64, "k_proj": 1}),
    "rslora": dict(**QV, use_rslora=True),
    "rslora and patterns": dict(
        **EVERY, use_rslora=True, rank_pattern={"q_proj": 9, "up_proj": 1}, alpha_pattern={"q_proj": 12, "v_proj": 3}
    ),
    "fan_in_fan_out": dict(**QV, fan_in_fan_out=True),
    "gaussian": dict(**QV, init_lora_weights="gaussian"),
    "orthogonal": dict(**QV, init_lora_weights="orthogonal"),
    "mica": dict(**QV, init_lora_weights="mica"),
}

# Paths as the models behind the real configurations have them.
LLAMA_LIKE = [
    f"model.layers.{i}.{m}"
    for i in (0, 1, 15, 16, 41, 42)
    for m in [*(f"self_attn.{x}_proj" for x in "qkvo"), "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
]
OTHERS = [
    "lm_head",
    "model.layers.3.linear_attn.in_proj_qkv",
    "model.layers.3.linear_attn.in_proj_z",
    "model.layers.3.linear_attn.out_proj",
    "model.layers.3.self_attn.qkv_proj",
    "gpt_neox.layers.3.attention.query_key_value",
    "transformer.h.3.attn.c_attn",
    "distilbert.transformer.layer.3.attention.q_lin",
]


def attached(arguments: dict) -> dict:
    """Module path -> [rank, scaling] after attaching to the Llama."""
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(**MODEL)), LoraConfig(task_type="CAUSAL_LM", **arguments))
    layers = {n: m for n, m in model.base_model.model.named_modules() if isinstance(m, LoraLayer)}
    return {n: [m.r["default"], m.scaling["default"]] for n, m in layers.items()}


def asked(config: PeftConfig, modules: list[str]) -> dict:
    """The same from the functions that decide, without a model."""
    out = {}
    for path in modules:
        found = check_target_module_exists(config, path)
        if not found or isinstance(found, _ExcludedModule):
            continue
        r = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), path), config.r)
        alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), path), config.lora_alpha)
        out[path] = [r, alpha / (r**0.5 if config.use_rslora else r)]
    return out


def main() -> None:
    torch.manual_seed(0)
    out = {"peft": peft.__version__, "model": {**MODEL, "model_type": "llama", "rms_norm_eps": 1e-6, "hidden_act": "silu"}}
    out["llama"] = [
        {"name": name, "config": {"peft_type": "LORA", **arguments}, "modules": attached(arguments)}
        for name, arguments in CASES.items()
    ]
    data = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data")
    out["candidates"] = LLAMA_LIKE + OTHERS
    out["real"] = {}
    for path in sorted((data / "adapters" / "configs").glob("*.json")):
        folder = Path("/tmp/peft-expected")
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_bytes(path.read_bytes())
        out["real"][path.stem] = asked(PeftConfig.from_pretrained(str(folder)), out["candidates"])
    # A line an entry: readable in a diff.
    print("{")
    print(f' "peft": {json.dumps(out["peft"])},\n "model": {json.dumps(out["model"])},')
    print(' "llama": [\n' + ",\n".join("  " + json.dumps(c) for c in out["llama"]) + "\n ],")
    print(f' "candidates": {json.dumps(out["candidates"])},')
    print(' "real": {\n' + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in out["real"].items()) + "\n }\n}")


main()
