"""Numbers and tables as text for people. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

# Last parts of the names of metrics that are shares: they cannot leave 0..1. A name may go on after
# them: "f1_macro", "accuracy_top".
SHARES = ("accuracy", "precision", "recall", "f1", "top", "ece", "auc", "roc_auc", "label_accuracy")


def duration(seconds: float) -> str:
    """Returns `seconds` for people: "8s", "3m05s", "2h03m", "4d02h"."""
    seconds = round(seconds)
    for size, big, part, small in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if seconds >= size:
            return f"{seconds // size}{big}{seconds % size // part:02d}{small}"
    return f"{seconds}s"


def amount(count: float) -> str:
    """Returns a number of bytes for people: "512 B", "3.4 MB", powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def rate(per_second: float) -> str:
    """Returns a rate in 3 digits, and whole from 100 on: "0.25", "34.6", "1,430"."""
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


def interval(low: float, high: float, metric: str = "") -> str:
    """Returns "[low, high]" in 4 digits, within 0..1 where the metric is a share; "" for NaN."""
    if math.isnan(low) or math.isnan(high):
        return ""
    low, high = clip(low, metric), clip(high, metric)
    return f"[{low:.4g}, {high:.4g}]"


def clip(value: float, metric: str) -> float:
    """Returns the value, brought into 0..1 where `metric` ("eval/test/accuracy") is a share."""
    name = metric.rpartition("/")[2]
    is_share = any(name == share or name.startswith(f"{share}_") for share in SHARES)
    return min(1.0, max(0.0, value)) if is_share and not math.isnan(value) else value


def cell(value: object) -> str:
    """Returns a table cell: a float in 4 digits, a list of numbers as mean ± standard deviation.

    The deviation (n - 1) has 2 digits and the mean as many decimals as it.
    """
    if isinstance(value, (list, tuple)):
        spread = float(np.std(value, ddof=1)) if len(value) > 1 else 0.0
        if not (spread > 0 and math.isfinite(spread)):
            return cell(float(np.mean(value)))
        decimals = max(0, 1 - math.floor(math.log10(spread)))
        return f"{np.mean(value):.{decimals}f} ± {spread:.{decimals}f}"
    return f"{value:.4g}" if isinstance(value, (float, np.floating)) else str(value)


def columns_of(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Returns the keys of a table's rows, each where it first comes."""
    return list(dict.fromkeys(column for row in rows for column in row))


def table(rows: Sequence[Mapping[str, object]], columns: Sequence[str] | None = None) -> str:
    """Returns aligned text: a header, a rule, a line per row; words to the left, numbers right.

    `columns` are the keys of `rows` to show, in order, by default all; a list of numbers (one per
    seed) is shown as mean ± standard deviation, a missing key as an empty cell.
    """
    columns = columns_of(rows) if columns is None else columns
    cells = [[cell(row.get(column, "")) for column in columns] for row in rows]
    words = [any(isinstance(row.get(column), str) for row in rows) for column in columns]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    lines = [columns, ["-" * width for width in widths], *cells]
    return "\n".join(
        "  ".join(
            text.ljust(width) if is_word else text.rjust(width)
            for text, width, is_word in zip(line, widths, words, strict=True)
        ).rstrip()
        for line in lines
    )


def metrics_table(metrics: Mapping[str, object]) -> str:
    """Returns the scalar metrics as a table; lists (per class, confusion) are in the report."""
    rows = [{"metric": k, "value": v} for k, v in metrics.items() if not isinstance(v, list)]
    if not rows:
        return "nothing is evaluated: config.evaluate.splits is empty"
    return table(rows, ["metric", "value"])
