"""The table as a picture: a panel for each task and scheme, a line for each row, a dot for each seed."""

from html import escape

from cells import ROWS

LEFT, WIDTH, LINE, TOP = 400, 260, 15, 40  # pixels
COLOURS = {"best": "#c0392b", "paper": "#d98880", "untouched": "#7f8c8d", "lora-longer": "#1f618d", "lora": "#5499c7"}


def panel(report, task: str, scheme: str, x0: int, y0: int, names: bool) -> str:
    """One task and scheme."""
    rows = [row for row in ROWS if report.values(task, scheme, row)]
    values = [v for row in rows for v in report.values(task, scheme, row)]
    low, high = min(values), max(values)
    margin = max(0.02, 0.06 * (high - low))
    low, high = max(0.0, low - margin), min(1.0, high + margin)
    place = lambda v: x0 + WIDTH * (v - low) / (high - low)
    bottom = y0 + LINE * len(ROWS)
    out = [f'<text x="{x0}" y="{y0 - 18}" font-weight="bold">{escape(task)}, {scheme}</text>']
    for step in range(5):
        v = low + (high - low) * step / 4
        out.append(f'<line x1="{place(v):.1f}" x2="{place(v):.1f}" y1="{y0 - 6}" y2="{bottom}" stroke="#e5e7e9"/>')
        out.append(f'<text x="{place(v):.1f}" y="{bottom + 12}" text-anchor="middle" fill="#616a6b">{100 * v:.0f}</text>')
    for index, row in enumerate(ROWS):
        y, colour = y0 + LINE * index + LINE / 2, COLOURS.get(row, "#34495e")
        if names:
            style = ' font-style="italic"' if ROWS[row].ablation else ""
            out.append(f'<text x="{x0 - 10}" y="{y + 4}" text-anchor="end"{style}>{escape(ROWS[row].title)}</text>')
        found = report.values(task, scheme, row)
        for v in found:
            out.append(f'<circle cx="{place(v):.1f}" cy="{y}" r="2.5" fill="{colour}" fill-opacity="0.5"/>')
        if found:
            m = place(sum(found) / len(found))
            out.append(f'<line x1="{m:.1f}" x2="{m:.1f}" y1="{y - 5}" y2="{y + 5}" stroke="{colour}" stroke-width="2"/>')
    return "\n".join(out)


def plot(report) -> str:
    """The whole picture."""
    height = LINE * len(ROWS) + 60
    size = LEFT + len(report.schemes) * (WIDTH + 40) + 20, TOP + len(report.tasks) * height
    parts = []
    for i, task in enumerate(report.tasks):
        for j, scheme in enumerate(report.schemes):
            if report.values(task, scheme, "untouched"):
                parts.append(panel(report, task, scheme, LEFT + j * (WIDTH + 40), TOP + i * height, j == 0))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" font-family="sans-serif" font-size="11">'
    return "\n".join([head, f'<rect width="{size[0]}" height="{size[1]}" fill="white"/>', *parts, "</svg>"]) + "\n"
