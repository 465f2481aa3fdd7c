"""What the table holds: settings, tasks, rows, and the commands of calora that make each cell.

A cell is one row of the table for one task, scheme and seed. It is a chain of artifacts (files that a command makes,
shared between cells) and one `calora eval` at the end. Everything that decides a figure stands in this file.
"""

from dataclasses import dataclass, field
from pathlib import Path

# --- settings -------------------------------------------------------------------------------------------------------

LORA_STEPS = 300  # of the original LoRA, and of one retrained "as long"
ADAPT_STEPS = 100  # of every adaptation
LORA_RANK, LORA_ALPHA = 8, 16
RECOVERY_RANK = 8
# A LoRA from scratch; one from scratch in the adaptation's few steps; what goes on from an existing one. Each is the best
# of three or more tried on hwu64 at int2 (README.md).
LORA_LR, SHORT_LR, ADAPT_LR = "4e-3", "8e-3", "2e-3"
BASE_STEPS, BASE_LR, BASE_TOKENS = 100, "2e-3", 64  # base recovery, on text rows of so many tokens
BASE_TEXT = 600_000  # characters of it, from novels of the base's own corpus
LAMBDA = "8"
BATCH = 16
EVAL_ROWS = 400  # drawn once, the same for every cell

GROUP = {"int2": 32, "int3": 32, "int4": 32}  # weights that share a scale
COMPRESS: list[str] = []  # further options of `calora compress`, e.g. a method

PAPER = ["--init", "zero", "--recovery", "gelu", "--distill", "hidden"]
BEST = ["--init", "residual", "--recovery", "linear", "--distill", "hidden"]
BEST_GELU = ["--init", "residual", "--recovery", "gelu", "--distill", "hidden"]


@dataclass(frozen=True)
class Task:
    """A data set: files under CALORA_TEST_DATA/tasks, how its rows are made, which figure is its measure."""

    train: str
    heldout: str
    metric: str
    prepare: tuple[str, ...] = ()
    lora_steps: int = LORA_STEPS
    adapt_steps: int = ADAPT_STEPS


TASKS = {  # in the order in which they are computed
    "snips": Task("snips/train.jsonl", "snips/validation.jsonl", "accuracy", ("--as", "choices"), 150, 50),
    "hwu64": Task("hwu64/train.jsonl", "hwu64/test.jsonl", "exact_match"),
    "sms-spam": Task("sms-spam/train.jsonl", "sms-spam/test.jsonl", "accuracy", ("--as", "choices"), 150, 50),
    "disfl-qa": Task("disfl-qa/train.jsonl", "disfl-qa/dev.jsonl", "token_f1", ("--skip-empty",)),
}
SCHEMES = ["int2", "int3", "int4"]

# --- rows -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One row of the table; `adapt` or `lora` are options of these commands, `plain` needs neither."""

    title: str
    ablation: bool = False
    compressed: bool = True
    lora: tuple[str, ...] | None = None  # `calora lora` with these
    goes_on: bool = False  # from the original LoRA, for the adaptation's steps
    steps: str = "lora"  # of a retrained one: lora | adapt
    rank: int = LORA_RANK
    adapt: tuple[str, ...] | None = None  # `calora adapt` with these
    base_recovery: bool = False
    original: bool = False  # the original LoRA is attached


def adapted(title: str, *options: str, ablation: bool = False) -> Row:
    return Row(title, adapt=options, ablation=ablation)


ROWS = {  # in the order in which they are computed
    "lora": Row("LoRA on the uncompressed model", compressed=False, original=True),
    "lora-longer": Row("the same, trained for the adaptation's steps more", compressed=False, lora=(), goes_on=True),
    "untouched": Row("that LoRA untouched on the compressed model", original=True),
    "best": adapted("CA-LoRA, best form", *BEST),
    "paper": adapted("CA-LoRA as in the paper", *PAPER),
    "retrained-steps": Row("LoRA retrained on the compressed model, equal steps", lora=(), steps="adapt"),
    "retrained-full": Row("LoRA retrained on the compressed model, full steps", lora=()),
    "retrained-wide": Row(
        "LoRA retrained on the compressed model, full steps, equal parameters", lora=(), rank=LORA_RANK + RECOVERY_RANK
    ),
    "base-recovery": Row("base recovery and the untouched LoRA", original=True, base_recovery=True),
    "train-free": adapted("training-free only (best form's start)", *BEST, "--train-free", ablation=True),
    "inherit": adapted("inherit only", "--no-recover", "--no-distill", ablation=True),
    "inherit-distill": adapted("inherit + distillation", "--no-recover", "--distill", "hidden", ablation=True),
    "inherit-recovery": adapted("inherit + recovery (paper)", *PAPER, "--no-distill", ablation=True),
    "no-inherit": adapted("paper without inheritance", *PAPER, "--no-inherit", ablation=True),
    "paper-linear": adapted(
        "paper, linear for GELU", "--init", "zero", "--recovery", "linear", "--distill", "hidden", ablation=True
    ),
    "best-gelu": adapted("best form, GELU for linear", *BEST_GELU, ablation=True),
}
BASELINE, TOP = "untouched", "lora-longer"  # the ends of the gap
CONTROLS = ["untouched", "retrained-steps", "retrained-full", "retrained-wide", "base-recovery", "inherit", "paper"]


@dataclass(frozen=True)
class Cell:
    """One figure. `scheme` is "none" on the uncompressed model, where all schemes share it."""

    task: str
    scheme: str
    seed: int
    row: str

    @property
    def name(self) -> str:
        return f"{self.task}-{self.scheme}-{self.seed}-{self.row}"


def cells(tasks: list[str], schemes: list[str], seeds: list[int], rows: list[str]) -> list[Cell]:
    """All cells, the most telling first: int2 and int3 before int4, the rows before the ablations, seed by seed."""
    found = {}
    for task in tasks:
        for scheme in schemes:
            for seed in seeds:
                for row in rows:
                    compressed = ROWS[row].compressed
                    cell = Cell(task, scheme if compressed else "none", seed, row)
                    late = scheme == "int4"
                    order = (late, ROWS[row].ablation, seed, list(TASKS).index(task), SCHEMES.index(scheme))
                    key = (*order, list(ROWS).index(row))
                    found[cell] = min(found.get(cell, key), key)
    return sorted(found, key=found.get)


# --- commands -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Artifact:
    """A file or folder under the work folder, made by one command; `{name}` in it stands for another artifact's path."""

    name: str
    command: tuple[str, ...]
    needs: tuple["Artifact", ...] = field(default=(), repr=False)


def training(seed: int, data: str, steps: int, lr: str) -> tuple[str, ...]:
    """Options that all training shares."""
    fixed = ("--batch", str(BATCH), "--checkpoint-every", "0", "--device", "cpu", "--threads", "1", "--json")
    return ("--data", data, "--steps", str(steps), "--lr", lr, "--seed", str(seed), *fixed)


class Plan:
    """Artifacts and evaluations for one base model and one data folder."""

    def __init__(self, base: Path, data: Path):
        self.base, self.data = str(base), data

    def rows(self, task: str, heldout: bool) -> Artifact:
        t = TASKS[task]
        source = self.data / "tasks" / (t.heldout if heldout else t.train)
        name = f"rows/{task}-{'heldout' if heldout else 'train'}.jsonl"
        limit = ("--limit", str(EVAL_ROWS)) if heldout else ()
        return Artifact(name, ("prepare", self.base, "--data", str(source), *t.prepare, *limit, "--out", f"{{{name}}}"))

    def text(self) -> Artifact:
        """General text for base recovery; `{text}` is written by the runner from novels."""
        name = "rows/text.jsonl"
        return Artifact(name, ("prepare", self.base, "--data", "{text}", "--tokens", str(BASE_TOKENS), "--out", f"{{{name}}}"))

    def model(self, scheme: str) -> Artifact:
        name = f"models/{scheme}"
        options = ("--scheme", scheme, "--group-size", str(GROUP[scheme]), *COMPRESS)
        return Artifact(name, ("compress", self.base, f"{{{name}}}", *options, "--json"))

    def lora(self, task: str, seed: int) -> Artifact:
        """The original LoRA."""
        return self._lora(f"loras/{task}-{seed}", self.base, task, seed, TASKS[task].lora_steps, LORA_RANK, ())

    def _lora(self, name, model, task, seed, steps, rank, needs, init=None) -> Artifact:
        rows = self.rows(task, heldout=False)
        alpha = LORA_ALPHA * rank // LORA_RANK  # the same scaling at every rank
        start = ("--init", f"{{{init.name}}}") if init else ("--rank", str(rank), "--alpha", str(alpha))
        command = ("lora", model, "--out", f"{{{name}}}", *start)
        lr = ADAPT_LR if init else LORA_LR if steps == TASKS[task].lora_steps else SHORT_LR
        command += training(seed, f"{{{rows.name}}}", steps, lr)
        return Artifact(name, command, (rows, *needs, *((init,) if init else ())))

    def base_recovery(self, scheme: str, seed: int) -> Artifact:
        name, rows, model = f"base/{scheme}-{seed}.safetensors", self.text(), self.model(scheme)
        command = ("adapt", self.base, f"{{{model.name}}}", "--out", f"{{{name}}}", *BEST)
        command += ("--recovery-rank", str(RECOVERY_RANK), "--lambda", LAMBDA)
        command += training(seed, f"{{{rows.name}}}", BASE_STEPS, BASE_LR)
        return Artifact(name, command, (rows, model))

    def adapters(self, cell: Cell) -> list[Artifact]:
        """What is attached in a cell; the last one is the cell's own."""
        row, task = ROWS[cell.row], TASKS[cell.task]
        own = f"adapters/{cell.name}"
        model = self.model(cell.scheme) if row.compressed else None
        path = f"{{{model.name}}}" if model else self.base
        needs = (model,) if model else ()
        if row.lora is not None:
            init = self.lora(cell.task, cell.seed) if row.goes_on else None
            steps = task.adapt_steps if row.goes_on or row.steps == "adapt" else task.lora_steps
            return [self._lora(own, path, cell.task, cell.seed, steps, row.rank, needs, init)]
        if row.adapt is not None:
            lora, rows = self.lora(cell.task, cell.seed), self.rows(cell.task, heldout=False)
            own += ".safetensors"
            command = ("adapt", self.base, path, "--lora", f"{{{lora.name}}}", "--out", f"{{{own}}}", *row.adapt)
            command += ("--recovery-rank", str(RECOVERY_RANK)) if "--no-recover" not in row.adapt else ()
            command += ("--lambda", LAMBDA)
            lr = SHORT_LR if "--no-inherit" in row.adapt else ADAPT_LR
            command += training(cell.seed, f"{{{rows.name}}}", task.adapt_steps, lr)
            return [Artifact(own, command, (lora, rows, *needs))]
        found = [self.base_recovery(cell.scheme, cell.seed)] if row.base_recovery else []
        return found + [self.lora(cell.task, cell.seed)]

    def evaluation(self, cell: Cell) -> Artifact:
        """The `calora eval` of a cell; its artifact is the file of rows."""
        adapters, rows = self.adapters(cell), self.rows(cell.task, heldout=True)
        model = self.model(cell.scheme) if ROWS[cell.row].compressed else None
        name = f"evaluated/{cell.name}.jsonl"
        command = ("eval", f"{{{model.name}}}" if model else self.base)
        for adapter in adapters:
            command += ("--adapter", f"{{{adapter.name}}}")
        command += ("--data", f"{{{rows.name}}}", "--rows-out", f"{{{name}}}")
        command += ("--device", "cpu", "--activations", "f32", "--threads", "1", "--json")
        return Artifact(name, command, (rows, *adapters, *((model,) if model else ())))
