"""Makes cells: artifacts in the order of their needs, several cells at once, each result in a file of its own."""

import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

from cells import BASE_TEXT, ROWS, TASKS, Artifact, Cell, Plan


def chain(artifact: Artifact) -> list[Artifact]:
    """An artifact behind everything it needs, each once."""
    found = {}
    for need in artifact.needs:
        found.update({a.name: a for a in chain(need)})
    found[artifact.name] = artifact
    return list(found.values())


def settings(artifact: Artifact) -> list[str]:
    """The commands that decide a figure; without threads and folders of this machine."""
    return [" ".join(Path(word).name if word.startswith("/") else word for word in a.command) for a in chain(artifact)]


def write_json(path: Path, value: dict) -> None:
    """All of the file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    # One line for each entry: small, and a change of one figure is a change of one line.
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(entry)}" for key, entry in value.items())
    part.write_text("{\n" + lines + "\n}\n")
    part.replace(path)


def remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def file_bytes(path: Path) -> int:
    """Bytes of a model folder's weights."""
    return sum(f.stat().st_size for f in path.glob("*.safetensors"))


class Runner:
    """Runs cells. Resumable: what a file says was made by the same commands is not made again."""

    def __init__(self, calora: str, plan: Plan, work: Path, results: Path):
        self.calora, self.plan, self.work, self.results = calora, plan, work, results
        self.lock = threading.Lock()
        self.busy: set[str] = set()  # artifacts that some thread is making

    def path(self, name: str) -> Path:
        return self.work / name

    def result(self, cell: Cell) -> dict | None:
        """A cell's result, if there is one and it was made by today's settings."""
        try:
            found = json.loads((self.results / f"{cell.name}.json").read_text())
        except FileNotFoundError:
            return None
        return found if found["settings"] == settings(self.plan.evaluation(cell)) else None

    def made(self, artifact: Artifact) -> dict | None:
        """What the command of a finished artifact printed."""
        log = self.path(artifact.name + ".made.json")
        if not log.exists() or not self.path(artifact.name).exists():
            return None
        found = json.loads(log.read_text())
        return found["printed"] if found["settings"] == settings(artifact) else None

    def make(self, artifact: Artifact) -> dict:
        """Runs one command, unless that was done before."""
        done = self.made(artifact)
        if done is not None:
            return done
        out = self.path(artifact.name)
        for old in (out, Path(f"{out}.run"), Path(f"{out}.made.json")):
            remove(old)
        out.parent.mkdir(parents=True, exist_ok=True)
        words = {"text": str(self.text())} | {a.name: str(self.path(a.name)) for a in chain(artifact)}
        command = [words[w[1:-1]] if w.startswith("{") else w for w in artifact.command]
        start = time.time()
        done = subprocess.run([self.calora, *command], capture_output=True, text=True)
        if done.returncode:
            remove(out)
            raise RuntimeError(f"calora {' '.join(command)}: {done.stderr.strip()[-1000:]}")
        printed = json.loads(done.stdout) if "--json" in command else {}
        printed["wall_seconds"] = round(time.time() - start, 2)
        remove(Path(f"{out}.run"))
        write_json(Path(f"{out}.made.json"), {"settings": settings(artifact), "printed": printed})
        return printed

    def text(self) -> Path:
        """The beginnings of the base's training novels, one behind another."""
        path = self.work / "text.txt"
        with self.lock:
            if not path.exists():
                novels = sorted((self.plan.data / "text/eltec-eng/train").glob("*.txt"))
                part = BASE_TEXT // len(novels)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("\n\n".join(n.read_text()[:part] for n in novels))
        return path

    def run(self, cell: Cell) -> dict:
        """Makes one cell and writes its result."""
        evaluation = self.plan.evaluation(cell)
        printed = {a.name: self.make(a) for a in chain(evaluation)}
        adapters, task = self.plan.adapters(cell), TASKS[cell.task]
        scores = printed[evaluation.name]
        rows = [json.loads(line) for line in self.path(evaluation.name).read_text().splitlines()]
        model = self.path(f"models/{cell.scheme}") if ROWS[cell.row].compressed else Path(self.plan.base)
        trained = printed[adapters[-1].name]
        result = {
            "task": cell.task,
            "scheme": cell.scheme,
            "seed": cell.seed,
            "row": cell.row,
            "metric": task.metric,
            "value": scores[task.metric],
            "scores": {k: v for k, v in scores.items() if isinstance(v, (int, float)) and k != "wall_seconds"},
            "base_bytes": file_bytes(model),
            # As f16 whatever the file holds: LoRA folders are written in f32, task files in f16.
            "branch_bytes": sum(2 * printed[a.name]["trainable_parameters"] for a in adapters),
            "training": {
                "seconds": round(trained["seconds"], 1),
                "steps": trained["steps"],
                "train_loss": trained.get("train_loss"),
                "peak_memory": trained.get("peak_memory"),
            },
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread a cell",
            "settings": settings(evaluation),
            "rows": [row_score(row, task.metric) for row in rows],
        }
        write_json(self.results / f"{cell.name}.json", result)
        return result

    def run_all(self, cells: list[Cell], jobs: int) -> int:
        """Runs what is missing; returns how many cells failed."""
        waiting = [cell for cell in cells if self.result(cell) is None]
        print(f"{len(cells)} cells, {len(waiting)} to do", file=sys.stderr, flush=True)
        total, start, failed, done = len(waiting), time.time(), [], 0

        def take() -> tuple[Cell, set[str]] | None:
            """The first cell whose missing artifacts nobody else is making."""
            for cell in waiting:
                missing = {a.name for a in chain(self.plan.evaluation(cell)) if self.made(a) is None}
                if not missing & self.busy:
                    waiting.remove(cell)
                    self.busy |= missing
                    return cell, missing
            return None

        def work() -> None:
            nonlocal done
            while True:
                with self.lock:
                    taken = take()
                    if taken is None and not waiting:
                        return
                if taken is None:
                    time.sleep(0.5)
                    continue
                cell, missing = taken
                try:
                    result = self.run(cell)
                    say = f"{result['metric']} {result['value']:.4f}"
                except Exception as e:
                    failed.append(cell)
                    say = f"FAILED {e}"
                with self.lock:
                    self.busy -= missing
                    done += 1
                    left = (time.time() - start) / done * (total - done)
                print(f"[{done}/{total}, {left / 60:.0f} min left] {cell.name}: {say}", file=sys.stderr, flush=True)

        threads = [threading.Thread(target=work) for _ in range(jobs)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        return len(failed)


def row_score(row: dict, metric: str) -> float:
    """How one evaluation row went: 1 or 0, or its F1."""
    if metric == "token_f1":
        return round(row["f1"], 4)
    return int(row["right"] if metric == "accuracy" else row["exact"])
