"""The results as a table: mean and spread, bytes, gap closed, paired bootstrap."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean, stdev

from cells import BASELINE, CONTROLS, ROWS, SCHEMES, TASKS, TOP, Cell

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
        top, low = self.seeds(task, scheme, TOP), self.seeds(task, scheme, BASELINE)
        both = sorted(top.keys() & low.keys())
        if not both:
            return None
        tops, lows = ([side[s]["value"] for s in both] for side in (top, low))
        spread = max(stdev(tops), stdev(lows)) if len(both) > 1 else None
        size = mean(tops) - mean(lows)
        if spread is None:
            # One seed: whether the rows themselves tell the two ends apart.
            apart = self.against(task, scheme, TOP, BASELINE)
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

    def against(self, task: str, scheme: str, row: str, other: str, wider: str | None = None) -> dict | None:
        """Paired bootstrap over the evaluation rows of `row` less `other` (of the scheme `wider`, if it is given); a row's
        score is its mean over seeds."""
        key = (task, scheme, row, other, wider or scheme)
        if key not in self._intervals:
            self._intervals[key] = self._against(*key)
        return self._intervals[key]

    def _against(self, task: str, scheme: str, row: str, other: str, wider: str) -> dict | None:
        a, b = self.seeds(task, scheme, row), self.seeds(task, wider, other)
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
                tests = {o: self.against(task, scheme, CLAIM, o) for o in [*CONTROLS, TOP] if o != CLAIM}
                found.append(
                    {
                        "task": task,
                        "metric": TASKS[task].metric,
                        "scheme": scheme,
                        "gap": self.gap(task, scheme),
                        "rows": entries,
                        "best_less": {o: t for o, t in tests.items() if t},
                        "equal_bytes": self.equal_bytes(task, scheme),
                        "claims": [claim.__dict__ for claim in self.claims(task, scheme)],
                    }
                )
        return found

    def markdown(self) -> str:
        """Everything, for people: what fails, what holds where, then each task at each scheme."""
        parts = [self.summary()]
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
            parts += ["", *(f"- {claim.text}: {claim.answer}" for claim in self.claims(task, scheme))]
            parts.append("")
        return "\n".join(parts)

    def _line(self, block: dict, e: dict) -> str:
        points = f"{100 * e['mean']:.1f}" + (f" ± {100 * e['spread']:.1f}" if e["spread"] is not None else "")
        closed = "" if e["gap_closed"] is None else f"{100 * e['gap_closed']:.0f} %"
        if closed and e["gap_closed_spread"] is not None:
            closed += f" ± {100 * e['gap_closed_spread']:.0f}"
        test = block["best_less"].get(e["row"])
        test = interval(test) if test else ""
        title = f"*{e['title']}*" if e["ablation"] else e["title"]
        base, branches = e["base_bytes"] / 1e6, e["branch_bytes"] / 1e6
        size = f"{base:.2f} + {branches:.2f} = {base + branches:.2f}"
        return f"| {title} | {points} | {closed} | {size} | {len(e['seeds'])} | {test} |"

    def equal_bytes(self, task: str, scheme: str) -> list[dict]:
        """CA-LoRA less a plain LoRA on the next wider base, which takes about as many bytes in all."""
        place = SCHEMES.index(scheme) + 1
        wider, own, found = SCHEMES[place] if place < len(SCHEMES) else None, self.entry(task, scheme, CLAIM), []
        for row in WIDER if wider else ():
            other, test = self.entry(task, wider, row), self.against(task, scheme, CLAIM, row, wider)
            if own and other and test:
                found.append({"scheme": wider, "row": row, "bytes": other["bytes"], "own_bytes": own["bytes"], **test})
        return found

    def claims(self, task: str, scheme: str) -> list["Claim"]:
        """What the paper's method should do, and whether it does; only where the seeds allow an answer."""
        found, own = [], self.entry(task, scheme, CLAIM)
        top, gap = self.entry(task, scheme, TOP), self.gap(task, scheme)
        if not own or not top or not gap or gap["spread"] is None:
            return found
        spread = max(own["spread"] or 0.0, top["spread"] or 0.0)
        short = top["mean"] - own["mean"]
        answer = "yes" if short <= spread else f"NO, short by {100 * short:.1f}"
        text = f"reaches the longer-trained LoRA on the uncompressed model within the spread ({100 * spread:.1f})"
        found.append(Claim("reaches the top", text, answer))
        for other, short_name in BEATEN.items():
            if test := self.against(task, scheme, CLAIM, other):
                found.append(Claim(f"beats {short_name}", f"beats: {ROWS[other].title}", verdict(test)))
        for e in self.equal_bytes(task, scheme):
            text = f"at {e['own_bytes'] / 1e6:.2f} MB in all beats: {ROWS[e['row']].title}, at {e['scheme']} with {e['bytes'] / 1e6:.2f} MB"
            found.append(Claim(f"beats {WIDER[e['row']]}", text, f"{verdict(e)} {interval(e)}"))
        if own["gap_closed"] is not None and not gap["noise"]:
            answer = f"{'yes' if own['gap_closed'] >= 0.9 else 'NO'}, {100 * own['gap_closed']:.0f} %"
            found.append(Claim(CLOSES, "closes at least 90 % of the gap", answer))
        return found

    def summary(self) -> str:
        """Every claim in every cell of tasks and schemes; what does not hold comes first."""
        places = [(t, s) for t in self.tasks for s in self.schemes if self.claims(t, s)]
        beaten = [f"beats {name}" for name in (*BEATEN.values(), *WIDER.values())]
        names = ["reaches the top", *beaten, CLOSES]
        lines, table = [], ["| | compression costs | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
        by_name: dict[str, dict[str, list[str]]] = {name: {} for name in names}
        for task, scheme in places:
            answers = {claim.name: claim.answer for claim in self.claims(task, scheme)}
            gap = self.gap(task, scheme)
            noise = " (noise)" if gap["noise"] else ""
            cells = [answers.get(name, "").replace("not distinguishable", "?") for name in names]
            table.append(f"| {task}, {scheme} | {100 * gap['gap']:.1f}{noise} | " + " | ".join(cells) + " |")
            for name, answer in answers.items():
                kind = "yes" if answer.startswith("yes") else "open" if answer.startswith(UNDECIDED) else "no"
                by_name[name].setdefault(kind, []).append(f"{task} {scheme}")
        for name in names:
            answered = sum(len(found) for found in by_name[name].values())
            for kind, verb in (("no", "**does not hold**"), ("open", "cannot be told from chance")):
                if found := by_name[name].get(kind):
                    lines.append(f"- *{name}* {verb} in {len(found)} of {answered}: {', '.join(found)}.")
                explained = f"?: {UNDECIDED}. Differences in points with their 95 %."
        return "\n".join(["## The claims", "", *(lines or ["Every claim holds."]), "", *table, "", explained, ""])


@dataclass(frozen=True)
class Claim:
    """Something that the method should do: its name in the summary, itself, whether it does."""

    name: str
    text: str
    answer: str


UNDECIDED = "not distinguishable"
CLOSES = "closes 90 % of the gap"
# The controls that it should beat, and what the summary calls them.
BEATEN = {"retrained-steps": "equal steps", "retrained-full": "full steps", "retrained-wide": "equal parameters"}
# The same on the next wider base, which takes about as many bytes in all.
WIDER = {BASELINE: "equal bytes, untouched", "retrained-full": "equal bytes, full steps"}


def verdict(test: dict) -> str:
    """Whether chance alone could make this difference."""
    return "yes" if test["low"] > 0 else "NO, it is worse" if test["high"] < 0 else UNDECIDED


def interval(test: dict) -> str:
    """A difference in points, with its 95 %."""
    return f"{100 * test['difference']:+.1f} [{100 * test['low']:+.1f}, {100 * test['high']:+.1f}]"


METRICS = {"accuracy": "accuracy", "exact_match": "exact answers", "token_f1": "word F1"}
