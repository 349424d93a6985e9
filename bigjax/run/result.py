"""`result.json`: what a finished run says of itself, read with care; it may have been damaged since."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from bigjax.run import clock
from bigjax.run.files import read_json

log = logging.getLogger("bigjax")


def read_result(workdir: Path) -> dict[str, Any] | None:
    """What `result.json` holds; None if it is not there or, with a warning, damaged.

    "NaN", "Infinity" and "-Infinity" among the metrics are the floats they stand for.
    Times that cannot be are left out: nothing depends on them.

    Raises:
      UserError: as `read_json`.
    """
    path = workdir / "result.json"
    found = read_json(path)
    if found is None:
        return None
    metrics = found.get("metrics")
    fine = type(found.get("step")) is int and isinstance(found.get("fingerprint"), str)
    seconds = found.get("seconds", 0)
    fine &= isinstance(seconds, int | float) and 0 <= seconds < math.inf
    if not (fine and isinstance(metrics, dict) and all(map(_is_measured, metrics.values()))):
        log.warning("%s is damaged and counts as lost (it is no run's result)", path)
        return None
    try:
        if "time" in found:
            clock.rows(found["time"]), clock.lines(found["time"])
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError):
        log.warning("%s: its times are damaged and left out", path)
        del found["time"]
    return found | {"metrics": {name: _numbers(value) for name, value in metrics.items()}}


def ended(folder: Path) -> str | None:
    """How a run, or the trial of a sweep, ended: "done", "failed" or "pruned"; None where it has not.

    One whose result is damaged has not: it is started again, and writes it anew.
    """
    if read_result(folder) is not None:
        return "done"
    words = {"failure.json": "failed", "pruned.json": "pruned"}
    return next((word for name, word in words.items() if (folder / name).exists()), None)


def _is_measured(value: Any) -> bool:
    """Whether this can be a metric as JSON holds it: a number, a list of numbers, a matrix."""
    if isinstance(value, list) and len({len(x) if isinstance(x, list) else -1 for x in value}) < 2:
        return all(map(_is_measured, value))
    return isinstance(value, int | float) or value in ("NaN", "Infinity", "-Infinity")


def _numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) else value
