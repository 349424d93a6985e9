"""Where the lines, bands and axes of a chart lie. Pure: numbers in, coordinates out.

`templates/macros.html` draws them as inline SVG: no script, a few kilobytes each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

COLORS = ("#2563eb", "#ea580c", "#059669", "#7c3aed", "#dc2626", "#0891b2", "#ca8a04", "#4b5563")
WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 34  # margins around the plotted area
MOST_POINTS = 400  # a line; beyond it only each bucket's least and greatest value are drawn
MOST_DOTS = 20  # points of a line that are also marked one by one

AXIS_GAP = 170  # between two axes of the parallel coordinates
PLOT = 260  # their height
MARGIN = 40
LOG_RATIO = 20  # positive values that span more than this get a logarithmic axis
MARKED = (0.0, 0.25, 0.5, 0.75, 1.0)  # where numbers stand beside an axis

Points = Sequence[tuple[float, ...]]
"""(step, value), or (step, value, low, high) with a band; steps count from 0."""


@dataclass(frozen=True)
class Curve:
    """One series. Paths are SVG's "x,y x,y"; a value that is not finite leaves a gap.

    Attributes:
      dots: (x, y, what to say of the point).
    """

    name: str
    color: str
    lines: list[str]
    bands: list[str]
    dots: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Chart:
    """Axes and curves. Ticks are (coordinate, text)."""

    title: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    curves: list[Curve]


def chart(title: str, series: Mapping[str, Points]) -> Chart:
    """Lays out the named series; without a finite value it has no curves."""
    runs = {name: finite_runs(points) for name, points in series.items()}
    finite = [point for parts in runs.values() for run in parts for point in run]
    if not finite:
        return Chart(title, [], [], [])
    last_step = max(point[0] for point in finite) or 1
    low, high = min(min(p[1:]) for p in finite), max(max(p[1:]) for p in finite)
    values = ticks(low, high)

    def x_of(step: float) -> float:
        return round(LEFT + step / last_step * (WIDTH - LEFT - RIGHT), 1)

    def y_of(value: float) -> float:
        share = (value - values[0]) / (values[-1] - values[0])
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    def path(points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{x_of(step)},{y_of(value)}" for step, value in points)

    curves = []
    for i, (name, parts) in enumerate(runs.items()):
        thinned = [thin(part) for part in parts]
        bands = [
            path([(p[0], p[3]) for p in part] + [(p[0], p[2]) for p in reversed(part)])
            for part in thinned
            if len(part[0]) == 4
        ]
        dots = [
            (x_of(p[0]), y_of(p[1]), f"{p[0]:g}: {p[1]:.6g}")
            for part in thinned
            for p in part
            if len(part) <= MOST_DOTS
        ]
        lines = [path([p[:2] for p in part]) for part in thinned]
        curves.append(Curve(name, COLORS[i % len(COLORS)], lines, bands, dots))
    steps = [step for step in ticks(0, last_step) if step <= last_step and step == int(step)]
    x_ticks = [(x_of(step), short_count(step)) for step in steps]
    return Chart(title, x_ticks, [(y_of(value), f"{value:.6g}") for value in values], curves)


def ticks(low: float, high: float) -> list[float]:
    """Returns about five round numbers, 1, 2 or 5 times a power of ten apart, around low..high."""
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    return [i * step for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def finite_runs(points: Points) -> list[list[tuple[float, ...]]]:
    """Returns the unbroken stretches of points whose values are finite."""
    runs: list[list[tuple[float, ...]]] = [[]]
    for point in points:
        if all(map(math.isfinite, point)):
            runs[-1].append(tuple(point))
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


class Axis(NamedTuple):
    """One axis of parallel coordinates.

    place: where a value lies, from 0 (bottom) to 1 (top).
    marks: (place, text) of what is written beside it.
    """

    name: str
    place: Callable[[Any], float]
    marks: list[tuple[float, str]]

    @classmethod
    def of(cls, name: str, values: Sequence[Any]) -> Axis:
        """The axis that shows these values: numbers from least to largest, or words in order."""
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        low, high = (min(values), max(values)) if numbers else (0, 0)
        if low == high:
            words = list(dict.fromkeys(map(_text, sorted(values, key=_order))))
            places = {word: i / max(1, len(words) - 1) for i, word in enumerate(words)}
            places = places if len(words) > 1 else dict.fromkeys(words, 0.5)
            return cls(name, lambda v: places[_text(v)], [(p, w) for w, p in places.items()])
        if low > 0 and high / low > LOG_RATIO:
            ratio = high / low
            marks = [(share, f"{low * ratio**share:.3g}") for share in MARKED]
            return cls(name, lambda v: math.log(v / low) / math.log(ratio), marks)
        marks = [(share, f"{low + share * (high - low):.4g}") for share in MARKED]
        return cls(name, lambda v: (v - low) / (high - low), marks)


@dataclass(frozen=True)
class Coordinates:
    """Parallel coordinates: (x, name, ticks (y, text)) an axis, (path, color, opacity, title) a line."""

    width: int
    height: int
    axes: list[tuple[int, str, list[tuple[float, str]]]]
    lines: list[tuple[str, str, str, str]]


def parallel_coordinates(
    axes: Sequence[Axis], rows: Sequence[Sequence[Any]], titles: Sequence[str]
) -> Coordinates:
    """Lays out a line for each row of values; the first rows, drawn last, are warmest.

    Args:
      axes: one a column.
      rows: the best first.
      titles: shown when the pointer rests on a line.
    """

    def x_of(column: int) -> int:
        return MARGIN + 30 + column * AXIS_GAP

    def y_of(place: float) -> float:
        return round(MARGIN + (1 - place) * PLOT, 1)

    lines = []
    for rank in reversed(range(len(rows))):
        share = 1 - rank / max(1, len(rows) - 1)
        columns = enumerate(zip(axes, rows[rank], strict=True))
        path = " ".join(f"{x_of(i)},{y_of(axis.place(value))}" for i, (axis, value) in columns)
        color, opacity = f"hsl({230 - 215 * share:.0f},75%,50%)", f"{0.25 + 0.7 * share:.2f}"
        lines.append((path, color, opacity, titles[rank]))
    drawn = [
        (x_of(i), axis.name.rpartition(".")[2], [(y_of(p), text) for p, text in axis.marks])
        for i, axis in enumerate(axes)
    ]
    width = AXIS_GAP * (len(axes) - 1) + 2 * MARGIN + 90
    return Coordinates(width, PLOT + 2 * MARGIN, drawn, lines)


def _order(value: Any) -> tuple[bool, float, str]:
    """Words first, a missing value among them, then numbers by size."""
    is_number = isinstance(value, int | float)
    return is_number, value if is_number else 0.0, str(value)


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
