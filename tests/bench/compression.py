"""Perplexity against bits per weight: calora's methods beside compressed-tensors' rounding and llama.cpp's block formats.

    CALORA_TEST_DATA=... python tests/bench/compression.py CALORA_BIN OUT [--models base,...] [--bits 8,4,3,2] [--groups 32,64,128]
                                                           [--eval-rows N] [--calibration-rows N] [--ggml LIBGGML_BASE]

Writes OUT/points.json and one OUT/MODEL.svg a model. A point that is there is not measured again, so a run may be
stopped and continued. The kept points of base are of `--eval-rows 40 --calibration-rows 24`, the others of the defaults.
Everything is evaluated by `calora eval` on the CPU with float32 activations; what other software rounds is written back
as a float32 folder first. Needs the requirements of tests/parity, and gguf for llama.cpp's formats. The gguf package
reads K-quants and cannot write them: with --ggml, llama.cpp's own library does, out of a pinned package:

    npm install --ignore-scripts @node-llama-cpp/linux-x64@3.22.1    # bins/linux-x64/libggml-base.so, llama.cpp v0.5.0

Bits count what a linear stores: weights, scales, zero points. Embeddings and norms stay as they are for everybody.
Text: base on novels that it was not trained on, calibrated on novels that it was; the stories models on
tinystories-mini.txt, calibrated on text that they sample themselves.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import gguf
import numpy
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("rtn", "gptq")
K_QUANTS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
COLOURS = {"rtn": "#c9a26b", "gptq": "#1c8a4b", "compressed-tensors": "#b03a2e", "llama.cpp": "#7a4fa3"}


def call(*args: object) -> dict:
    """Runs calora with --json."""
    done = subprocess.run([str(a) for a in args] + ["--json"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout)


def model_folder(name: str) -> Path:
    """Where a model is."""
    return ROOT / "models/base" if name == "base" else Path(os.environ["CALORA_TEST_DATA"]) / "models" / name


def write_rows(path: Path, texts: list[str]) -> Path:
    """One row a text."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def novels(split: str, count: int) -> list[str]:
    """Stretches of about 250 tokens, evenly over all novels of a split, never the first pages."""
    books = [p.read_text() for p in sorted((Path(os.environ["CALORA_TEST_DATA"]) / "text/eltec-eng" / split).glob("*.txt"))]
    texts = []
    for i in range(count):
        book = books[i % len(books)]
        start = int(len(book) * (0.05 + 0.9 * i / count))
        texts.append(book[start : start + 1000])
    return texts


def samples(folder: Path, count: int) -> list[str]:
    """Texts that the model samples itself, from nothing."""
    torch.manual_seed(0)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
    start = torch.full((count, 1), model.config.bos_token_id)
    ids = model.generate(start, do_sample=True, max_new_tokens=250, min_new_tokens=250, top_k=0)
    return tokenizer.batch_decode(ids[:, 1:], skip_special_tokens=True)


def texts(name: str, out: Path, eval_rows: int, calibration_rows: int) -> tuple[Path, Path]:
    """Evaluation and calibration rows of a model."""
    evaluation, calibration = out / f"{name}-eval.jsonl", out / f"{name}-calibration.jsonl"
    if not calibration.exists():
        if name == "base":
            write_rows(evaluation, novels("valid", eval_rows))
            write_rows(calibration, novels("train", calibration_rows))
        else:
            stories = (Path(os.environ["CALORA_TEST_DATA"]) / "text/tinystories-mini.txt").read_text().split("<|endoftext|>")
            write_rows(evaluation, [s.strip() for s in stories if s.strip()])
            write_rows(calibration, samples(model_folder(name), calibration_rows))
    return evaluation, calibration


def rewritten(source: Path, out: Path, change) -> float:
    """A float32 copy whose layers' linears went through `change`, which returns weights and their bits; mean bits."""
    out.mkdir()
    for path in source.iterdir():
        if path.is_file() and path.suffix in (".json", ".jinja") and path.name != "model.safetensors.index.json":
            (out / path.name).write_bytes(path.read_bytes())
    tensors, bits, count = load_file(source / "model.safetensors"), 0.0, 0
    for key, value in tensors.items():
        tensors[key] = value.float()
        if ".layers." in key and value.ndim == 2:
            tensors[key], width = change(value.float())
            bits, count = bits + width * value.numel(), count + value.numel()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return bits / count


def compressed_tensors(weight: torch.Tensor, bits: int, group: int) -> tuple[torch.Tensor, float]:
    """compressed-tensors' min/max scale and rounding, symmetric; a row a scale where the group does not divide it."""
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    rows, cols = weight.shape
    whole = cols % group != 0
    size = cols if whole else group
    grouped = weight.reshape(rows, cols // size, size)
    strategy = {"strategy": "channel"} if whole else {"strategy": "group", "group_size": group}
    args = QuantizationArgs(num_bits=bits, symmetric=True, **strategy)
    scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
    return fake_quantize(weight, scale, zero, args), bits + 16 / size


class Ggml:
    """llama.cpp's own quantizer, out of its shared library."""

    def __init__(self, path: Path):
        self.library = ctypes.CDLL(str(path))
        size, place = ctypes.c_int64, ctypes.c_void_p
        self.library.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.library.ggml_quantize_chunk.argtypes = [ctypes.c_int, place, place, size, size, size, place]

    def quantize(self, weight: torch.Tensor, kind: str) -> numpy.ndarray:
        """Blocks of a matrix, a row after the other, without an importance matrix."""
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        values, (rows, cols) = weight.contiguous(), weight.shape
        data = numpy.zeros((rows, cols // block * size), numpy.uint8)
        written = self.library.ggml_quantize_chunk(
            int(gguf.GGMLQuantizationType[kind]), values.data_ptr(), data.ctypes.data, 0, rows, cols, None)
        assert written == data.nbytes, f"{kind}: {written} bytes written, {data.nbytes} expected"
        return data

    def check(self, weight: torch.Tensor) -> None:
        """That we call it rightly: what gguf writes too has the same bytes, and both read K-quants to the same numbers."""
        for kind in ("Q4_0", "Q8_0"):
            theirs = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType[kind])
            assert numpy.array_equal(self.quantize(weight, kind), theirs), f"{kind}: not the bytes of the gguf package"
        for kind in K_QUANTS if weight.shape[1] % 256 == 0 else ():
            data, read = self.quantize(weight, kind), numpy.zeros(weight.shape, numpy.float32)
            decode = getattr(self.library, f"dequantize_row_{kind[:2].lower()}_K")
            decode(ctypes.c_void_p(data.ctypes.data), ctypes.c_void_p(read.ctypes.data), ctypes.c_int64(read.size))
            theirs = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
            assert numpy.array_equal(read, theirs), f"{kind}: the gguf package reads other numbers"


def linears(folder: Path) -> list[torch.Tensor]:
    """The layers' linears in float32."""
    tensors = load_file(folder / "model.safetensors")
    return [value.float() for key, value in tensors.items() if ".layers." in key and value.ndim == 2]


def llama_cpp(weight: torch.Tensor, kind: str, ggml: Ggml | None) -> tuple[torch.Tensor, float]:
    """A llama.cpp block format, the same for every linear; widths that its block does not divide stay float16.

    So llama.cpp keeps widths that no block divides. For one that 32 divides and a K-quant's 256 does not, it falls back to
    other formats (Q2_K and Q3_K to IQ4_NL, Q4_K to Q5_0, Q5_K to Q5_1, Q6_K to Q8_0), which would be no K-quant's point.
    """
    form = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[form]
    if weight.shape[1] % block:
        return weight.half().float(), 16.0
    data = ggml.quantize(weight, kind) if kind in K_QUANTS else gguf.quants.quantize(weight.numpy(), form)
    return torch.from_numpy(gguf.quants.dequantize(data, form).copy()), 8 * size / block


def measure(binary: Path, source: Path, key: str, evaluation: Path, calibration: Path, ggml: Ggml | None) -> dict:
    """One point: bits per weight of the linears, and the perplexity."""
    method, *rest = key.split()
    with tempfile.TemporaryDirectory() as temp:
        out = Path(temp) / "model"
        if method == "none":
            out, bits = source, 32.0
        elif method == "llama.cpp":
            bits = rewritten(source, out, lambda w: llama_cpp(w, rest[0], ggml))
        elif method == "compressed-tensors":
            bits = rewritten(source, out, lambda w: compressed_tensors(w, int(rest[0][3:]), int(rest[1][1:])))
        else:
            text = ["--calibration", calibration] if method == "gptq" else []
            done = call(binary, "compress", source, out, "--scheme", rest[0], "--group-size", rest[1][1:], "--method", method, *text)
            bits = done["bits_per_weight"]
        found = call(binary, "eval", out, "--data", evaluation, "--device", "cpu", "--activations", "f32")
    return {"bits": bits, "perplexity": found["perplexity"], "tokens": found["tokens"]}


def plot(name: str, points: dict, out: Path) -> None:
    """Perplexity relative to the uncompressed model, in percent on a root scale, over bits per weight."""
    width, height, left, bottom, top, right = 720, 400, 60, 44, 16, 170
    full = points["none"]["perplexity"]
    rows = [(k.split()[0], k, p["bits"], 100 * (p["perplexity"] / full - 1)) for k, p in points.items() if k != "none"]
    rows = [row for row in rows if row[2] < 12]
    most = max(1.0, max(row[3] for row in rows))
    at = lambda bits, loss: (round(left + (width - left - right) * (bits - 2) / 7.2, 1),
                             round(top + (height - top - bottom) * (1 - (max(loss, 0) / most) ** 0.25), 1))
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
             f'<rect width="{width}" height="{height}" fill="#ffffff"/>']
    for tick in (t for t in (0, 0.1, 1, 5, 20, 50, 100, 300, 1000, 3000) if t <= most):
        _, y = at(2, tick)
        parts.append(f'<path d="M{left} {y}H{width - right}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end" fill="#444">+{tick:g} %</text>')
    for bits in range(2, 10):
        x, y = at(bits, 0)
        parts.append(f'<text x="{x}" y="{y + 18}" text-anchor="middle" fill="#444">{bits}</text>')
    parts.append(f'<text x="{(left + width - right) / 2}" y="{height - 8}" text-anchor="middle" fill="#444">bits per weight of the linears ({name}; perplexity {full:.2f} uncompressed)</text>')
    for n, (method, colour) in enumerate(COLOURS.items()):
        y = top + 16 + 18 * n
        parts.append(f'<circle cx="{width - right + 16}" cy="{y - 4}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{width - right + 26}" y="{y}" fill="#444">{method}</text>')
        for _, key, bits, loss in (row for row in rows if row[0] == method):
            x, y = at(bits, loss)
            if method == "llama.cpp":
                parts.append(f'<text x="{x + 5}" y="{y - 5}" font-size="10" fill="{colour}">{key.split()[1]}</text>')
            parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}" fill-opacity="0.8"><title>{key}: {loss:+.2f} %</title></circle>')
    out.write_text("\n".join([*parts, "</svg>"]) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("calora", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", default="stories260k,tinystories-656k,base")
    parser.add_argument("--bits", default="8,4,3,2")
    parser.add_argument("--groups", default="32,64,128")
    parser.add_argument("--eval-rows", type=int, default=100)
    parser.add_argument("--calibration-rows", type=int, default=48)
    parser.add_argument("--ggml", type=Path, help="llama.cpp's libggml-base.so; without it K-quants are left out")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    store = a.out / "points.json"
    points = json.loads(store.read_text()) if store.exists() else {}
    ggml = Ggml(a.ggml) if a.ggml else None
    keys = ["none", "llama.cpp Q8_0", "llama.cpp Q4_0"]
    for bits in a.bits.split(","):
        for group in a.groups.split(","):
            keys += [f"{method} int{bits} g{group}" for method in METHODS]
            # Its library rounds to any number of bits, its formats hold four and eight.
            keys += [f"compressed-tensors int{bits} g{group}"] if bits in "48" else []
    for name in a.models.split(","):
        evaluation, calibration = texts(name, a.out, a.eval_rows, a.calibration_rows)
        mine, weights = points.setdefault(name, {}), linears(model_folder(name)) if ggml else []
        for weight in (w for w in weights if w.shape[1] % 32 == 0):
            ggml.check(weight)
        # Where 256 divides no width all linears would stay float16: nothing to measure.
        more = [f"llama.cpp {kind}" for kind in K_QUANTS] if any(w.shape[1] % 256 == 0 for w in weights) else []
        for key in (key for key in keys[:3] + more + keys[3:] if key not in mine):
            mine[key] = measure(a.calora, model_folder(name), key, evaluation, calibration, ggml)
            store.write_text(json.dumps(points, indent=1) + "\n")
            print(f"{name:18} {key:30} {mine[key]['bits']:6.3f} bits  perplexity {mine[key]['perplexity']:.3f}", flush=True)
        plot(name, mine, a.out / f"{name}.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
