"""Line charts as inline SVG: no library, no script, a few kilobytes each.

Pure: points in, markup out. Used by the report pages alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

COLORS = ("#2563eb", "#ea580c", "#059669", "#7c3aed", "#dc2626", "#0891b2", "#ca8a04", "#4b5563")
WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 34  # margins around the plotted area
MOST_POINTS = 400  # a line; beyond it only each bucket's least and greatest value are drawn
MOST_DOTS = 20  # points of a line that are also marked one by one

Points = Sequence[tuple[float, float]]


def line_chart(series: Mapping[str, Points]) -> str:
    """Returns an SVG of the named series of (step, value) points, steps counted from 0.

    A value that is not finite leaves a gap in its line.
    """
    finite = [point for points in series.values() for point in points if math.isfinite(point[1])]
    if not finite:
        return '<p class="note">no finite value</p>'
    last_step = max(step for step, _ in finite) or 1
    values = ticks(min(value for _, value in finite), max(value for _, value in finite))

    def x_of(step: float) -> float:
        return round(LEFT + step / last_step * (WIDTH - LEFT - RIGHT), 1)

    def y_of(value: float) -> float:
        height = (value - values[0]) / (values[-1] - values[0])
        return round(HEIGHT - BOTTOM - height * (HEIGHT - TOP - BOTTOM), 1)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for value in values:
        y = y_of(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4}" text-anchor="end">{value:.6g}</text>')
    for step in ticks(0, last_step):
        if step <= last_step and step == int(step):
            x, y = x_of(step), HEIGHT - BOTTOM + 16
            parts.append(f'<text x="{x}" y="{y}" text-anchor="middle">{short_count(step)}</text>')
    x, y = WIDTH - RIGHT, HEIGHT - 3
    parts.append(f'<text x="{x}" y="{y}" text-anchor="end">step</text>')
    for points, color in zip(series.values(), _colors(len(series)), strict=True):
        for run in finite_runs(points):
            drawn = thin(run)
            path = " ".join(f"{x_of(step)},{y_of(value)}" for step, value in drawn)
            parts.append(f'<polyline points="{path}" stroke="{color}"/>')
            if len(drawn) <= MOST_DOTS:
                parts += [
                    f'<circle cx="{x_of(step)}" cy="{y_of(value)}" r="3" fill="{color}">'
                    f"<title>{step:g}: {value:.6g}</title></circle>"
                    for step, value in drawn
                ]
    return "".join([*parts, "</svg>"])


def legend(names: Sequence[str]) -> str:
    """Returns the names with the colours that `line_chart` gives series of this order."""
    return "".join(
        f'<span class="key"><i style="background:{color}"></i>{escape(name)}</span>'
        for name, color in zip(names, _colors(len(names)), strict=True)
    )


def ticks(low: float, high: float) -> list[float]:
    """Returns about five round numbers, 1, 2 or 5 times a power of ten apart, around low..high."""
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    return [i * step for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def finite_runs(points: Points) -> list[list[tuple[float, float]]]:
    """Returns the unbroken stretches of points whose value is finite."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def thin(points: Points) -> Points:
    """Returns at most MOST_POINTS of the points, every spike among them."""
    if len(points) <= MOST_POINTS:
        return points
    size = math.ceil(len(points) / (MOST_POINTS // 2))
    kept = []
    for start in range(0, len(points), size):
        bucket = points[start : start + size]
        kept += sorted({min(bucket, key=lambda p: p[1]), max(bucket, key=lambda p: p[1])})
    return kept


def short_count(number: float) -> str:
    """Returns a count as an axis shows it: 500, 20k, 1.5M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size and number >= 1e4:
            return f"{number / size:g}{suffix}"
    return f"{number:g}"


def _colors(count: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(count)]
