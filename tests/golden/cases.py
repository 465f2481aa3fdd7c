"""The small random Llama models: one entry per feature that the engine has to get right.

Every case differs from `plain` by what its name says, and nothing is left at a value that would hide a mistake:
see `randomise` for how the weights are drawn and `make.py` for the check that each feature moves the logits.
"""

import json
import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

COMMON = dict(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=112,  # not a multiple of 32
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)

# With head_dim 16 the wavelengths are 2 pi theta^(i/8) = 6, 32, 168, 860, ... positions: below original/high = 16
# they are kept, above original/low = 64 divided by the factor, between them blended. All three happen.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

# name -> (what differs from COMMON, type of the stored weights, number of files)
CASES = {
    "plain": (dict(rms_norm_eps=1e-3), "float32", 3),
    "gqa": (
        dict(
            num_key_value_heads=2,
            num_hidden_layers=3,
            vocab_size=128,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        ),
        "float32",
        1,
    ),
    "llama3": (dict(num_key_value_heads=2, rope_parameters=LLAMA3_ROPE), "bfloat16", 1),
    "old_keys": (dict(num_key_value_heads=2, rope_parameters=LLAMA3_ROPE), "bfloat16", 1),
    "biases": (dict(num_key_value_heads=2, attention_bias=True, mlp_bias=True), "bfloat16", 1),
    "tied": (dict(tie_word_embeddings=True, vocab_size=160), "float16", 1),
    "head_dim": (dict(head_dim=24, num_key_value_heads=1), "float16", 1),
    "wide": (
        dict(
            hidden_size=256,
            intermediate_size=128,
            num_attention_heads=8,
            num_key_value_heads=2,
            num_hidden_layers=2,
        ),
        "bfloat16",
        1,
    ),
}

TOKENS = 24


def generator(name: str) -> torch.Generator:
    """A generator whose seed is the name, so that adding a case changes no other."""
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def build(name: str) -> LlamaForCausalLM:
    """The model of a case, in float32, holding exactly the values that its files will hold."""
    changes, dtype, _ = CASES[name]
    # old_keys differs from llama3 in the spelling of its config alone.
    seed = "llama3" if name == "old_keys" else name
    config = LlamaConfig(**{**COMMON, **changes}, attn_implementation="sdpa")
    model = LlamaForCausalLM(config).eval()
    randomise(model, generator(seed))
    # Parameters alone: model.to() would round the rotary frequencies too, which are in no file.
    for p in model.parameters():
        p.data = p.data.to(getattr(torch, dtype)).float()
    return model


@torch.no_grad()
def randomise(model: torch.nn.Module, rng: torch.Generator) -> None:
    """Weights at 1.2 / sqrt(fan in), norms spread around 1, biases of 0.5: a mistake anywhere reaches the logits."""
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=rng)
        if name.endswith(".bias"):
            p.copy_(0.5 * noise)
        elif p.dim() == 1:
            p.copy_(1.0 + 0.3 * noise)
        else:
            p.copy_(noise * (1.2 / p.shape[1] ** 0.5))


def ids_of(name: str) -> torch.Tensor:
    """Random token ids of a case, (1, TOKENS)."""
    seed = "llama3" if name == "old_keys" else name
    vocab = {**COMMON, **CASES[name][0]}["vocab_size"]
    return torch.randint(3, vocab, (1, TOKENS), generator=generator(seed + " ids"))


@torch.no_grad()
def logits_of(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Logits (tokens, vocab) with float64 parameters; transformers keeps the norm and the rotary table in float32."""
    return model.double()(ids).logits[0]


def nmse(got: torch.Tensor, want: torch.Tensor) -> float:
    """Squared error over the squared size of what is wanted."""
    got, want = got.double(), want.double()
    return float(((got - want) ** 2).sum() / (want**2).sum())


def save(path: Path, tensors: dict, metadata: dict) -> None:
    """Writes a safetensors file whose header has its keys in order: save_file's own order changes from run to run."""
    save_file(tensors, path, metadata=metadata)
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])
