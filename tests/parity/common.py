"""What the checks share: running calora, comparing logits, printing a table."""

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is local
os.environ.setdefault("TQDM_DISABLE", "1")  # before the libraries are loaded: a table, not progress bars

import torch
from safetensors.torch import load_file
from transformers.utils import logging

logging.disable_progress_bar()
ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT = 1e-8


def arguments(about: str) -> argparse.Namespace:
    """What the checks take: the program, and the device it computes on."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("calora")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def models() -> list[Path]:
    """The model folders that are compressed and read back."""
    found = [ROOT / "tests/golden/wide", ROOT / "models/base"]
    if os.environ.get("CALORA_TEST_DATA"):
        found.append(Path(os.environ["CALORA_TEST_DATA"]) / "models/stories260k")
    else:
        print("CALORA_TEST_DATA is not set: stories260k is left out")
    return found


def calora(binary: str, *arguments) -> None:
    """Runs one command of calora; a failure raises with what it said."""
    done = subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"calora {' '.join(map(str, arguments))}: {done.stderr.strip()}")


def calora_logits(binary: str, model: Path, ids: list[int], device: str, *arguments) -> torch.Tensor:
    """Logits (tokens, vocab) as `calora logits` writes them."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logits.safetensors"
        listed = ",".join(map(str, ids))
        calora(binary, "logits", model, *arguments, "--ids", listed, "--out", out, "--device", device)
        return load_file(out)["logits"]


@torch.inference_mode()
def torch_logits(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """Logits (tokens, vocab) of a transformers model."""
    return model.eval()(torch.tensor([ids])).logits[0].float()


def random_ids(vocab: int, count: int = 48) -> list[int]:
    """The same ids every time."""
    rng = torch.Generator().manual_seed(7)
    return torch.randint(0, vocab, (count,), generator=rng).tolist()


def nmse(got: torch.Tensor, want: torch.Tensor) -> float:
    """Squared error over the squared size of what is wanted; infinite where the shapes differ."""
    if got.shape != want.shape:
        return float("inf")
    got, want = got.double(), want.double()
    value = float(((got - want) ** 2).sum() / (want**2).sum())
    return value if value == value else float("inf")


class Table:
    """Prints a line for each comparison and remembers whether all were good."""

    def __init__(self, limit: float = LIMIT) -> None:
        self.good, self.limit = True, limit
        print(f"{'case':40} {'NMSE':>9}  (limit {limit:.0e})")

    def line(self, label: str, compare) -> None:
        """`compare` gives an NMSE; an error in it is a failed line, not the end of the run."""
        try:
            value = compare()
            good, text = value <= self.limit, f"{value:9.1e}"
        except Exception as e:
            good, text = False, f"    error  {e}"
        self.good &= good
        print(f"{label:40} {text}{'' if good else '  FAILED'}", flush=True)
