"""For each case, the logits of a model that gets one feature of it wrong, to prove that the golden would tell."""

import copy
from collections.abc import Iterator

import torch
from transformers import LlamaForCausalLM

from cases import CASES, build, ids_of, logits_of


def changed(name: str, **settings) -> torch.Tensor:
    """Logits with other settings and the same weights."""
    model = build(name)
    config = copy.deepcopy(model.config)
    for key, value in settings.items():
        setattr(config, key, value)
    other = LlamaForCausalLM(config).eval()
    other.load_state_dict(model.state_dict(), strict=False)
    return logits_of(other, ids_of(name))


def mangled(name: str, part: str, change) -> torch.Tensor:
    """Logits with `change` done to every parameter whose name contains `part`."""
    model = build(name)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if part in key:
                p.copy_(change(p))
    return logits_of(model, ids_of(name))


def drop_features(name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """(feature, logits without it) for what is special about a case."""
    config = build(name).config
    if name in ("plain", "gqa"):
        yield "the norms' weights", mangled(name, "norm.weight", torch.ones_like)
        yield "positions", changed(name, rope_parameters={"rope_type": "default", "rope_theta": 1e30})
    if config.rms_norm_eps != 1e-5:
        yield "its rms_norm_eps", changed(name, rms_norm_eps=1e-5)
    if config.rope_parameters["rope_theta"] != 10000.0:
        yield "its rope_theta", changed(name, rope_parameters={**config.rope_parameters, "rope_theta": 10000.0})
    if config.rope_parameters["rope_type"] == "llama3":
        rope = config.rope_parameters
        yield "rope scaling", changed(name, rope_parameters={"rope_type": "default", "rope_theta": rope["rope_theta"]})
        for key, value in (("factor", 32.0), ("low_freq_factor", 2.0), ("high_freq_factor", 8.0)):
            yield f"its {key}", changed(name, rope_parameters={**rope, key: value})
        other = {**rope, "original_max_position_embeddings": 128}
        yield "its original_max_position_embeddings", changed(name, rope_parameters=other)
    if "num_key_value_heads" in CASES[name][0] and config.num_key_value_heads > 1:
        # Heads in another order, as if query head i read key/value head i mod groups.
        d, kv = config.head_dim, config.num_key_value_heads
        flip = lambda p: p.view(kv, d, *p.shape[1:]).flip(0).reshape(p.shape)
        yield "the order of key/value heads", mangled(name, "k_proj", flip)
    if config.attention_bias:
        for part in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
            # A key bias adds the same score at every position before rotation, but not after it.
            yield f"the bias of {part}", mangled(name, f"{part}.bias", torch.zeros_like)
