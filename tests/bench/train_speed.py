"""A LoRA step of `calora lora` against PyTorch + peft: time and peak memory in one run, alternating.

    python tests/bench/train_speed.py CALORA_BIN [--rounds 3] [--steps 12] [--device cpu] [--json FILE]

CALORA_BIN is built with --features train, or train-gpu for --device gpu (PyTorch then computes on CUDA). Both train rank 8 on all seven linears in float32 with AdamW and clipping, on
the same batches of 16 windows of 64 tokens, each in a process of its own. Models: models/base (5.8 M parameters) and a
random one of 32 M. Times are medians over steps, the first two left out, then over rounds. CPU seconds (user and
system, of all threads) say more than wall time on a machine that does other work. Peak memory is the whole process;
PyTorch's libraries are part of it, so what the process holds after loading the model's code, before the model, is
given beside it.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is local
ROOT = Path(__file__).resolve().parent.parent.parent
BATCH, TOKENS, RANK, ALPHA, LR, SKIP = 16, 64, 8, 16, 1e-3, 2
TEXT = ROOT / "ARCHITECTURE.md"  # any text will do: what is learnt does not matter


def torch_worker(model: Path, rows: Path, steps: int, threads: int, device: str) -> None:
    """PyTorch + peft in this process; prints one JSON object."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

    torch.set_num_threads(threads)
    libraries = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    net = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    linears = [f"{m}_proj" for m in ("q", "k", "v", "o", "gate", "up", "down")]
    net = get_peft_model(net, LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules=linears)).train()
    net = net.to("cuda" if device == "gpu" else "cpu")
    own = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(own, lr=LR, weight_decay=0.0)
    text = json.loads(rows.read_text().splitlines()[0])["text"]
    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    windows = [[1, *ids[i : i + TOKENS]] for i in range(0, len(ids) - TOKENS + 1, TOKENS)]
    wall, cpu = [], []
    for step in range(steps):
        batch = torch.tensor([windows[(step * BATCH + n) % len(windows)] for n in range(BATCH)], device=net.device)
        start, used = time.perf_counter(), time.process_time()
        logits = net(input_ids=batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(own, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # waits for a GPU
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {"step": statistics.median(wall[SKIP:]), "cpu": statistics.median(cpu[SKIP:]), "memory": memory}
    print(json.dumps({**found, "libraries": libraries, "parameters": sum(p.numel() for p in own)}))


def random_model(folder: Path) -> None:
    """A random Llama of 32 M parameters with the shipped tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=10,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "models/base" / name, folder)


def calora(binary: str, model: Path, rows: Path, steps: int, threads: int, device: str) -> dict:
    """One `calora lora`; CPU seconds a step are of a long run less a short one, as loading is in both."""
    used, found = [], {}
    for count in (SKIP, steps):
        with tempfile.TemporaryDirectory() as folder:
            command = [binary, "lora", model, "--data", rows, "--out", f"{folder}/lora", "--steps", count]
            command += ["--rank", RANK, "--alpha", ALPHA, "--lr", LR, "--batch", BATCH, "--max-length", TOKENS + 1]
            command += ["--warmup", 0, "--checkpoint-every", 0, "--device", device, "--threads", threads, "--json"]
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            if done.returncode:
                sys.exit(done.stderr)
            used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            found = json.loads(done.stdout)
    cpu = (used[1] - used[0]) / (steps - SKIP)
    out = {"step": found["step_seconds"], "cpu": cpu, "memory": found["peak_memory"]}
    return {**out, "parameters": found["trainable_parameters"]}


def torch_run(model: Path, rows: Path, steps: int, threads: int, device: str) -> dict:
    command = [sys.executable, __file__, "--worker", model, rows, steps, threads, device]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def median(runs: list[dict]) -> dict:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        model, rows, steps, threads, device = sys.argv[2:]
        torch_worker(Path(model), Path(rows), int(steps), int(threads), device)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("calora")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=lambda t: [int(n) for n in t.split(",")], default=[1, 2])
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    results = []
    print("| model | threads | calora s/step | PyTorch s/step | speed | CPU-s: calora | PyTorch | speed | MB: calora | PyTorch (libraries) |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        large, rows = Path(folder) / "random-32m", Path(folder) / "rows.jsonl"
        random_model(large)
        rows.write_text(json.dumps({"text": TEXT.read_text() * 2}) + "\n")
        for model, name in ((ROOT / "models/base", "base, 5.8 M"), (large, "random, 32 M")):
            for threads in a.threads:
                ours, theirs = [], []
                for _ in range(a.rounds):
                    ours.append(calora(a.calora, model, rows, a.steps, threads, a.device))
                    theirs.append(torch_run(model, rows, a.steps, threads, a.device))
                c, t = median(ours), median(theirs)
                assert c["parameters"] == t["parameters"], "not the same LoRA"
                results.append({"model": name, "threads": threads, "calora": c, "torch": t, "runs": [ours, theirs]})
                print(
                    f"| {name} | {threads} | {c['step']:.3f} | {t['step']:.3f} | {t['step'] / c['step']:.2f} x"
                    f" | {c['cpu']:.3f} | {t['cpu']:.3f} | {t['cpu'] / c['cpu']:.2f} x"
                    f" | {c['memory'] / 1e6:.0f} | {t['memory'] / 1e6:.0f} ({t['libraries'] / 1e6:.0f}) |",
                    flush=True,
                )
    print(f"\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; speed = PyTorch's time over calora's")
    if a.json:
        a.json.write_text(json.dumps({"load": os.getloadavg(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
