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

Points = Sequence[tuple[float, float]]


def line_chart(series: Mapping[str, Points], x_label: str = "step") -> str:
    """Returns an SVG of the named series; points that are not finite leave a gap in their line."""
    finite = [p for points in series.values() for p in points if math.isfinite(p[1])]
    if not finite:
        return '<p class="note">no finite value</p>'
    x_ticks = ticks(min(x for x, _ in finite), max(x for x, _ in finite), 5, whole=True)
    y_ticks = ticks(min(y for _, y in finite), max(y for _, y in finite), 5)
    x_low, x_high = min(x for x, _ in finite), max(x for x, _ in finite)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def at(x: float, y: float) -> str:
        across = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        up = (y - y_low) / (y_high - y_low)
        return (
            f"{LEFT + across * (WIDTH - LEFT - RIGHT):.1f},"
            f"{HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM):.1f}"
        )

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for y in y_ticks:
        y_pixel = at(x_low, y).split(",")[1]
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_pixel}" y2="{y_pixel}"/>'
        )
        parts.append(f'<text x="{LEFT - 7}" y="{y_pixel}" dy="4" text-anchor="end">{y:.6g}</text>')
    for x in x_ticks:
        if x_low <= x <= x_high:
            x_pixel = at(x, y_low).split(",")[0]
            parts.append(
                f'<text x="{x_pixel}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{si(x)}</text>'
            )
    parts.append(
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{escape(x_label)}</text>'
    )
    for (_, points), color in zip(series.items(), _colors(len(series)), strict=True):
        for run in finite_runs(points):
            drawn = thin(run)
            if len(drawn) > 1:
                path = " ".join(at(x, y) for x, y in drawn)
                parts.append(f'<polyline points="{path}" stroke="{color}"/>')
            if len(drawn) <= 20:
                for x, y in drawn:
                    cx, cy = at(x, y).split(",")
                    title = f"<title>{x:g}: {y:.6g}</title>"
                    parts.append(
                        f'<circle cx="{cx}" cy="{cy}" r="3" fill="{color}">{title}</circle>'
                    )
    return "".join([*parts, "</svg>"])


def legend(names: Sequence[str]) -> str:
    """Returns the names with the colours that `line_chart` gives series of this order."""
    return "".join(
        f'<span class="key"><i style="background:{color}"></i>{escape(name)}</span>'
        for name, color in zip(names, _colors(len(names)), strict=True)
    )


def ticks(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    """Returns about `count` round numbers, 1, 2 or 5 times a power of ten apart, around low..high."""
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    step = max(step, 1) if whole else step
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


def si(number: float) -> str:
    """Returns a step count as an axis shows it: 500, 20k, 1.5M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= size:
            return f"{number / (1e3 if suffix == 'k' else size):g}{suffix}"
    return f"{number:g}"


def _colors(count: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(count)]
