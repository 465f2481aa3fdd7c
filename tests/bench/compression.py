"""Perplexity against bits per weight: calora's methods beside compressed-tensors' rounding and llama.cpp's block formats.

    CALORA_TEST_DATA=... python tests/bench/compression.py CALORA_BIN OUT [--models base,...] [--bits 8,4,3,2] [--groups 32,64,128]
                                                           [--eval-rows N] [--calibration-rows N]

Writes OUT/points.json and one OUT/MODEL.svg a model. A point that is there is not measured again, so a run may be
stopped and continued. Everything is evaluated by `calora eval` on the CPU with float32 activations; what other software
rounds is written back as a float32 folder first. Needs requirements of tests/parity, and gguf for llama.cpp's formats.

Bits count what a linear stores: weights, scales, zero points. Embeddings and norms stay as they are for everybody.
Text: base on novels that it was not trained on, calibrated on novels that it was; the stories models on
tinystories-mini.txt, calibrated on text that they sample themselves.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("rtn", "gptq")
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


def llama_cpp(weight: torch.Tensor, kind: str) -> tuple[torch.Tensor, float]:
    """A llama.cpp block format by the gguf package; widths that no block divides stay float16, as llama.cpp keeps them."""
    import gguf

    if weight.shape[1] % 32:
        return weight.half().float(), 16.0
    kind = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = gguf.quants.quantize(weight.numpy(), kind)
    return torch.from_numpy(gguf.quants.dequantize(data, kind).copy()), 8 * size / block


def measure(binary: Path, source: Path, key: str, evaluation: Path, calibration: Path) -> dict:
    """One point: bits per weight of the linears, and the perplexity."""
    method, *rest = key.split()
    with tempfile.TemporaryDirectory() as temp:
        out = Path(temp) / "model"
        if method == "none":
            out, bits = source, 32.0
        elif method == "llama.cpp":
            bits = rewritten(source, out, lambda w: llama_cpp(w, rest[0]))
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
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    store = a.out / "points.json"
    points = json.loads(store.read_text()) if store.exists() else {}
    keys = ["none", "llama.cpp Q8_0", "llama.cpp Q4_0"]
    for bits in a.bits.split(","):
        for group in a.groups.split(","):
            keys += [f"{method} int{bits} g{group}" for method in METHODS]
            # Its library rounds to any number of bits, its formats hold four and eight.
            keys += [f"compressed-tensors int{bits} g{group}"] if bits in "48" else []
    for name in a.models.split(","):
        evaluation, calibration = texts(name, a.out, a.eval_rows, a.calibration_rows)
        mine = points.setdefault(name, {})
        for key in (key for key in keys if key not in mine):
            mine[key] = measure(a.calora, model_folder(name), key, evaluation, calibration)
            store.write_text(json.dumps(points, indent=1) + "\n")
            print(f"{name:18} {key:30} {mine[key]['bits']:6.3f} bits  perplexity {mine[key]['perplexity']:.3f}", flush=True)
        plot(name, mine, a.out / f"{name}.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
