"""Reward curves: bars in the terminal while it goes on, an SVG for the documents."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 640, 280
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 34, 40
BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 32) -> str:
    """The values as bars of eight heights, at most `width` of them, each the mean of its share."""
    if not values:
        return ""
    size = min(width, len(values))
    cuts = [len(values) * number // size for number in range(size + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join(BARS[round((mean - low) / span * (len(BARS) - 1))] for mean in means)


def reward_svg(title: str, x_label: str, points: Sequence[tuple[float, float, float]]) -> str:
    """A line of means in a band of one standard deviation either side.

    Args:
        title: Above it.
        x_label: Below it.
        points: (x, mean, deviation), x rising; at least one.

    Returns:
        An SVG document, readable on light and dark grounds.
    """
    xs = [x for x, _, _ in points]
    lows, highs = [mean - std for _, mean, std in points], [mean + std for _, mean, std in points]
    low, high = min(lows), max(highs)
    margin = (high - low) * 0.05 or 1.0
    low, high = low - margin, high + margin
    first, span = xs[0], (xs[-1] - xs[0]) or 1.0

    def at(x: float, y: float) -> str:
        across = LEFT + (x - first) / span * (WIDTH - LEFT - RIGHT)
        down = TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return f"{across:.1f},{down:.1f}"

    band = [at(x, y) for x, y in zip(xs, highs, strict=True)]
    band += [at(x, y) for x, y in zip(reversed(xs), reversed(lows), strict=True)]
    line = " ".join(at(x, mean) for x, mean, _ in points)
    grid = []
    for number in range(5):
        y = low + (high - low) * (number + 0.5) / 5
        left, down = at(first, y).split(",")
        grid.append(f'<path d="M{left} {down}H{WIDTH - RIGHT}" stroke="#8884"/>')
        grid.append(f'<text x="{LEFT - 8}" y="{float(down) + 4:.1f}" text-anchor="end">{y:.3g}</text>')
    ends = [
        f'<text x="{LEFT}" y="{HEIGHT - 22}">{xs[0]:g}</text>',
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 22}" text-anchor="end">{xs[-1]:g}</text>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>',
    ]
    body = [
        f'<text x="{LEFT}" y="20" font-size="14" font-weight="600">{escape(title)}</text>',
        *grid,
        *ends,
        f'<polygon points="{" ".join(band)}" fill="#e0813b" fill-opacity="0.25"/>',
        f'<polyline points="{line}" fill="none" stroke="#e0813b" stroke-width="2"/>',
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="sans-serif" font-size="12" fill="#888">\n<title>{escape(title)}</title>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def write_svg(file: Path, svg: str) -> None:
    """Write, making the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(svg, encoding="utf-8")
