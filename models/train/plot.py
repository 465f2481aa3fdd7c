"""The loss curve of a run as an SVG, without a plotting library: text that diffs, and readable on dark and light."""

from pathlib import Path

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 320, 52, 44, 16, 16
COLOURS = {"loss": "#c9a26b", "val": "#2f6fb0"}
NAMES = {"loss": "one training batch", "val": "validation"}


def loss_curve(log: list[dict], out: Path) -> None:
    """Draws `loss` and `val` of a log of pretrain.py over millions of tokens."""
    x_most = max(row["tokens"] for row in log)
    values = [row[key] for row in log for key in COLOURS if key in row]
    low, high = int(min(values) * 2) / 2, int(max(values) * 2 + 1) / 2

    def at(tokens: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * tokens / x_most
        y = TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)
        return round(x, 1), round(y, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for half in range(int(low * 2), int(high * 2) + 1):
        _, y = at(0, half / 2)
        parts.append(f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end" fill="#444">{half / 2:.1f}</text>')
    for millions in range(0, int(x_most / 1e6) + 1, 5):
        x, y = at(millions * 1e6, low)
        parts.append(f'<text x="{x}" y="{y + 18}" text-anchor="middle" fill="#444">{millions}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle" fill="#444">million tokens</text>')
    for n, (key, colour) in enumerate(COLOURS.items()):
        points = " ".join("{},{}".format(*at(row["tokens"], row[key])) for row in log if key in row)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = TOP + 16 + 18 * n
        parts.append(f'<path d="M{WIDTH - 190} {y - 4}h24" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{WIDTH - 160}" y="{y}" fill="#444">{NAMES[key]} (nats)</text>')
    out.write_text("\n".join([*parts, "</svg>"]) + "\n")
