"""Parallel coordinates and curves with bands, as inline SVG. Pure: values in, markup out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from bigjax.report.charts import (
    BOTTOM,
    COLORS,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    short_count,
    ticks,
)
from bigjax.report.charts import legend as legend

AXIS_GAP = 170  # between two axes of the parallel coordinates
PLOT = 260  # their height
MARGIN = 40
LOG_RATIO = 20  # positive values that span more than this get a logarithmic axis


@dataclass(frozen=True)
class Axis:
    """One axis: numbers from low to high, or words in order.

    Attributes:
      words: the values as text, in order; None for numbers.
    """

    name: str
    words: tuple[str, ...] | None = None
    low: float = 0.0
    high: float = 1.0
    log: bool = False

    @classmethod
    def of(cls, name: str, values: Sequence[Any]) -> Axis:
        """The axis that shows these values."""
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        if not numbers or len(set(values)) == 1:
            return cls(name, tuple(dict.fromkeys(map(_text, sorted(values, key=_order)))))
        low, high = min(values), max(values)
        return cls(name, None, low, high, log=low > 0 and high / low > LOG_RATIO)

    def place(self, value: Any) -> float:
        """Where a value lies, from 0 (bottom) to 1 (top)."""
        if self.words is not None:
            count = len(self.words)
            return self.words.index(_text(value)) / (count - 1) if count > 1 else 0.5
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def marks(self) -> list[tuple[float, str]]:
        """(place, text) of what is written beside the axis."""
        if self.words is not None:
            return [(self.place(word), word) for word in self.words]
        shares = (0.0, 0.25, 0.5, 0.75, 1.0)
        if self.log:
            return [(s, f"{self.low * (self.high / self.low) ** s:.3g}") for s in shares]
        return [(s, f"{self.low + s * (self.high - self.low):.4g}") for s in shares]


def parallel_coordinates(
    axes: Sequence[Axis], lines: Sequence[Sequence[Any]], titles: Sequence[str]
) -> str:
    """Returns an SVG with a line for each row of values; the first rows, drawn last, are warmest.

    Args:
      axes: one a column.
      lines: rows of values, the best first.
      titles: shown when the pointer rests on a line.
    """
    width = AXIS_GAP * (len(axes) - 1) + 2 * MARGIN + 90
    height = PLOT + 2 * MARGIN
    parts = [
        f'<svg viewBox="0 0 {width} {height}" style="max-width:{1.2 * width:.0f}px" role="img">'
    ]

    def x_of(column: int) -> int:
        return MARGIN + 30 + column * AXIS_GAP

    def y_of(place: float) -> float:
        return round(MARGIN + (1 - place) * PLOT, 1)

    for rank in reversed(range(len(lines))):
        share = 1 - rank / max(1, len(lines) - 1)
        color = f"hsl({230 - 215 * share:.0f},75%,50%)"
        points = " ".join(
            f"{x_of(i)},{y_of(axis.place(value))}"
            for i, (axis, value) in enumerate(zip(axes, lines[rank], strict=True))
        )
        parts.append(
            f'<polyline points="{points}" stroke="{color}" stroke-opacity="{0.25 + 0.7 * share:.2f}">'
            f"<title>{escape(titles[rank])}</title></polyline>"
        )
    for i, axis in enumerate(axes):
        x = x_of(i)
        parts.append(
            f'<line class="grid" x1="{x}" x2="{x}" y1="{MARGIN}" y2="{MARGIN + PLOT}"/>'
            f'<text x="{x}" y="{MARGIN - 16}" text-anchor="middle">'
            f"{escape(axis.name.rpartition('.')[2])}</text>"
        )
        for place, text in axis.marks():
            parts.append(f'<text x="{x + 5}" y="{y_of(place) + 4}">{escape(text)}</text>')
    return "".join([*parts, "</svg>"])


def band_chart(series: Sequence[Sequence[tuple[float, float, float, float]]]) -> str:
    """Returns an SVG of the series of (step, mean, low, high): a line in a band each.

    Points that are not finite are left out.
    """
    series = [[p for p in points if all(map(math.isfinite, p))] for points in series]
    every = [point for points in series for point in points]
    if not every:
        return '<p class="note">no finite value</p>'
    last_step = max(point[0] for point in every) or 1
    values = ticks(min(point[2] for point in every), max(point[3] for point in every))

    def at(step: float, value: float) -> str:
        x = LEFT + step / last_step * (WIDTH - LEFT - RIGHT)
        share = (value - values[0]) / (values[-1] - values[0])
        return f"{x:.1f},{HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM):.1f}"

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for value in values:
        y = float(at(0, value).partition(",")[2])
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4}" text-anchor="end">{value:.6g}</text>')
    for step in ticks(0, last_step):
        if step <= last_step and step == int(step):
            x = at(step, values[0]).partition(",")[0]
            y = HEIGHT - BOTTOM + 16
            parts.append(f'<text x="{x}" y="{y}" text-anchor="middle">{short_count(step)}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">step</text>')
    for i, points in enumerate(series):
        color = COLORS[i % len(COLORS)]
        around = [at(p[0], p[3]) for p in points] + [at(p[0], p[2]) for p in reversed(points)]
        parts.append(f'<polygon points="{" ".join(around)}" fill="{color}" fill-opacity="0.13"/>')
        line = " ".join(at(p[0], p[1]) for p in points)
        parts.append(f'<polyline points="{line}" stroke="{color}"/>')
    return "".join([*parts, "</svg>"])


def _order(value: Any) -> tuple[bool, float, str]:
    """Words first, a missing value among them, then numbers by size."""
    is_number = isinstance(value, int | float)
    return is_number, value if is_number else 0.0, str(value)


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
