"""The table of CA-LoRA's claims: runs what is missing, prints what there is.

    python models/experiments/table.py run --calora target/release/calora --data FOLDER [--jobs 2]
    python models/experiments/table.py show [--json FILE] [--plot FILE.svg]

`run` can be stopped and started again at any time: each cell is one file in results/, made once. What it computes, and
with which settings, stands in cells.py. Only Python's standard library is used; `calora` must be built with --features
train. Both take --tasks, --schemes, --seeds and --rows, lists separated by commas.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from cells import ROWS, SCHEMES, TASKS, Plan, cells
from plot import plot
from report import Report
from runner import Runner

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def chosen(names: list[str]):
    """A list separated by commas, of these names."""

    def parse(text: str) -> list[str]:
        found = text.split(",")
        for name in found:
            if name not in names:
                raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(names)}")
        return found

    return parse


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "list", "show"])
    parser.add_argument("--calora", default=str(ROOT / "target/release/calora"))
    parser.add_argument("--base", type=Path, default=ROOT / "models/base")
    parser.add_argument("--data", type=Path, default=os.environ.get("CALORA_TEST_DATA"), help="holds tasks/ and text/")
    parser.add_argument("--work", type=Path, default=ROOT / "out/table", help="models, adapters, rows")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--jobs", type=int, default=2, help="cells at once, one thread each")
    parser.add_argument("--tasks", type=chosen(list(TASKS)), default=list(TASKS))
    parser.add_argument("--schemes", type=chosen(SCHEMES), default=SCHEMES)
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2])
    parser.add_argument("--rows", type=chosen(list(ROWS)), default=list(ROWS))
    parser.add_argument("--json", type=Path, help="the table as JSON")
    parser.add_argument("--plot", type=Path, help="the table as SVG")
    a = parser.parse_args()
    wanted = cells(a.tasks, a.schemes, a.seeds, a.rows)
    if a.what == "list":
        print("\n".join(cell.name for cell in wanted))
        return 0
    plan = Plan(a.base.resolve(), Path(a.data or "/").resolve())
    runner = Runner(a.calora, plan, a.work.resolve(), a.results)
    if a.what == "run":
        if not (plan.data / "tasks").is_dir():
            sys.exit("--data (or CALORA_TEST_DATA) must name the folder that holds tasks/ and text/")
        return 1 if runner.run_all(wanted, a.jobs) else 0
    report = Report(wanted, runner.result)
    stale = [c.name for c in wanted if c not in report.found and (a.results / f"{c.name}.json").exists()]
    if stale:
        print(f"made by other settings and left out: {', '.join(stale)}", file=sys.stderr)
    print(report.markdown())
    if a.json:
        a.json.write_text(json.dumps(report.data(), indent=1) + "\n")
    if a.plot:
        a.plot.write_text(plot(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
