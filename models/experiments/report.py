"""The results as a table: mean and spread, bytes, gap closed, paired bootstrap."""

import random
from collections.abc import Callable
from statistics import mean, stdev

from cells import BASELINE, CONTROLS, ROWS, SCHEMES, TASKS, Cell

RESAMPLES = 2000
CLAIM = "best"


class Report:
    """What there is of the wanted cells; `result` gives a cell's, or None."""

    def __init__(self, wanted: list[Cell], result: Callable[[Cell], dict | None]):
        self.found: dict[Cell, dict] = {cell: r for cell in wanted if (r := result(cell))}
        self.schemes = [s for s in SCHEMES if any(c.scheme == s for c in self.found)]
        self.tasks = [t for t in TASKS if any(c.task == t for c in self.found)]
        self._intervals: dict = {}

    def seeds(self, task: str, scheme: str, row: str) -> dict[int, dict]:
        """Results by seed."""
        scheme = scheme if ROWS[row].compressed else "none"
        return {c.seed: r for c, r in self.found.items() if (c.task, c.scheme, c.row) == (task, scheme, row)}

    def values(self, task: str, scheme: str, row: str) -> list[float]:
        return [r["value"] for r in self.seeds(task, scheme, row).values()]

    def gap(self, task: str, scheme: str) -> dict | None:
        """What compression costs: the longer-trained LoRA on the uncompressed model less the untouched one."""
        top, low = self.seeds(task, scheme, "lora-longer"), self.seeds(task, scheme, BASELINE)
        both = sorted(top.keys() & low.keys())
        if not both:
            return None
        tops, lows = ([side[s]["value"] for s in both] for side in (top, low))
        spread = max(stdev(tops), stdev(lows)) if len(both) > 1 else None
        size = mean(tops) - mean(lows)
        if spread is None:
            # One seed: whether the rows themselves tell the two ends apart.
            apart = self.against(task, scheme, "lora-longer", BASELINE)
            return {"seeds": both, "gap": size, "spread": None, "noise": apart is None or apart["low"] <= 0}
        return {"seeds": both, "gap": size, "spread": spread, "noise": size < 3 * spread}

    def closed(self, task: str, scheme: str, row: str) -> tuple[float, float | None] | None:
        """Share of the gap that a row closes, and its spread over seeds (of the row's own part)."""
        gap, own = self.gap(task, scheme), self.seeds(task, scheme, row)
        if gap is None or gap["noise"]:
            return None  # a share of nothing
        both = [s for s in gap["seeds"] if s in own]
        if not both:
            return None
        low = self.seeds(task, scheme, BASELINE)
        shares = [(own[s]["value"] - low[s]["value"]) / gap["gap"] for s in both]
        return mean(shares), stdev(shares) if len(shares) > 1 else None

    def against(self, task: str, scheme: str, row: str, other: str) -> dict | None:
        """Paired bootstrap over the evaluation rows of `row` less `other`; a row's score is its mean over seeds."""
        key = (task, scheme, row, other)
        if key not in self._intervals:
            self._intervals[key] = self._against(*key)
        return self._intervals[key]

    def _against(self, task: str, scheme: str, row: str, other: str) -> dict | None:
        a, b = self.seeds(task, scheme, row), self.seeds(task, scheme, other)
        both = sorted(a.keys() & b.keys())
        if not both:
            return None
        differences = [
            mean(x - y for x, y in zip(*pair))
            for pair in zip(zip(*(a[s]["rows"] for s in both)), zip(*(b[s]["rows"] for s in both)))
        ]
        rng, n = random.Random(0), len(differences)
        means = sorted(sum(rng.choices(differences, k=n)) / n for _ in range(RESAMPLES))
        low, high = means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1]
        # How often chance alone would put the difference on the other side.
        p = sum(m <= 0 for m in means) / RESAMPLES
        return {"difference": mean(differences), "low": low, "high": high, "p": p, "seeds": both, "rows": n}

    def entry(self, task: str, scheme: str, row: str) -> dict | None:
        """One line of the table."""
        found = self.seeds(task, scheme, row)
        if not found:
            return None
        values, any_result = [r["value"] for r in found.values()], next(iter(found.values()))
        closed = self.closed(task, scheme, row) if ROWS[row].compressed else None
        return {
            "row": row,
            "title": ROWS[row].title,
            "ablation": ROWS[row].ablation,
            "seeds": sorted(found),
            "mean": mean(values),
            "spread": stdev(values) if len(values) > 1 else None,
            "base_bytes": any_result["base_bytes"],
            "branch_bytes": any_result["branch_bytes"],
            "bytes": any_result["base_bytes"] + any_result["branch_bytes"],
            "parameters": any_result["branch_bytes"] // 2,
            "gap_closed": closed[0] if closed else None,
            "gap_closed_spread": closed[1] if closed else None,
        }

    def data(self) -> list[dict]:
        """Everything, for programs."""
        found = []
        for task in self.tasks:
            for scheme in self.schemes:
                entries = [e for row in ROWS if (e := self.entry(task, scheme, row))]
                tests = {o: self.against(task, scheme, CLAIM, o) for o in [*CONTROLS, "lora-longer"] if o != CLAIM}
                found.append(
                    {
                        "task": task,
                        "metric": TASKS[task].metric,
                        "scheme": scheme,
                        "gap": self.gap(task, scheme),
                        "rows": entries,
                        "best_less": {o: t for o, t in tests.items() if t},
                        "claims": self.claims(task, scheme),
                    }
                )
        return found

    def markdown(self) -> str:
        """Everything, for people."""
        parts = []
        for block in self.data():
            task, scheme, gap = block["task"], block["scheme"], block["gap"]
            if not any(ROWS[e["row"]].compressed for e in block["rows"]):
                continue
            parts.append(f"### {task}, {scheme} ({METRICS[block['metric']]})\n")
            if gap:
                spread = "one seed, spread unknown" if gap["spread"] is None else f"spread over seeds {100 * gap['spread']:.1f}"
                why = "the rows do not tell the ends apart" if gap["spread"] is None else "within 3 x the spread"
                verdict = f" - {why}: noise" if gap["noise"] else ""
                parts.append(f"Compression costs {100 * gap['gap']:.1f} points; {spread}{verdict}.\n")
            parts.append("| row | points | gap closed | MB: base + branches = all | seeds | best less this (95 %) |")
            parts.append("|---|---|---|---|---|---|")
            parts += [self._line(block, entry) for entry in block["rows"]]
            parts += ["", *(f"- {claim}" for claim in self.claims(task, scheme))]
            parts.append("")
        return "\n".join(parts)

    def _line(self, block: dict, e: dict) -> str:
        points = f"{100 * e['mean']:.1f}" + (f" ± {100 * e['spread']:.1f}" if e["spread"] is not None else "")
        closed = "" if e["gap_closed"] is None else f"{100 * e['gap_closed']:.0f} %"
        if closed and e["gap_closed_spread"] is not None:
            closed += f" ± {100 * e['gap_closed_spread']:.0f}"
        test = block["best_less"].get(e["row"])
        test = f"{100 * test['difference']:+.1f} [{100 * test['low']:+.1f}, {100 * test['high']:+.1f}]" if test else ""
        title = f"*{e['title']}*" if e["ablation"] else e["title"]
        base, branches = e["base_bytes"] / 1e6, e["branch_bytes"] / 1e6
        size = f"{base:.2f} + {branches:.2f} = {base + branches:.2f}"
        return f"| {title} | {points} | {closed} | {size} | {len(e['seeds'])} | {test} |"

    def claims(self, task: str, scheme: str) -> list[str]:
        """What the paper's method should do, and whether it does; only where the seeds allow an answer."""
        found, own = [], self.entry(task, scheme, CLAIM)
        top, gap = self.entry(task, scheme, "lora-longer"), self.gap(task, scheme)
        if not own or not top or not gap or gap["spread"] is None:
            return found
        spread = max(own["spread"] or 0.0, top["spread"] or 0.0)
        short = top["mean"] - own["mean"]
        say = "yes" if short <= spread else f"NO, short by {100 * short:.1f}"
        found.append(f"reaches the longer-trained LoRA on the uncompressed model within the spread ({100 * spread:.1f}): {say}")
        for other in ("retrained-steps", "retrained-full", "retrained-wide"):
            if test := self.against(task, scheme, CLAIM, other):
                say = "yes" if test["low"] > 0 else "NO, it is worse" if test["high"] < 0 else "not distinguishable"
                found.append(f"beats: {ROWS[other].title}: {say}")
        if own["gap_closed"] is not None and not gap["noise"]:
            say = "yes" if own["gap_closed"] >= 0.9 else "NO"
            found.append(f"closes at least 90 % of the gap: {say}, {100 * own['gap_closed']:.0f} %")
        return found


METRICS = {"accuracy": "accuracy", "exact_match": "exact answers", "token_f1": "word F1"}
