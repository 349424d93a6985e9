"""Numbers of a run: (sum, weight) pairs, and the writers that show and keep the finished values.

The pair helpers are pure. `Writers` belongs to process 0 alone and takes host values only, so that
writing never waits for a device. Text tables for people are here too.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

import jax
import numpy as np

from bigjax.run.files import plain, read_json_lines, write_atomic
from bigjax.run.trackers import Tracker, check, open_tracker

log = logging.getLogger("bigjax")

Pair = tuple[jax.Array, jax.Array]
"""A sum and the weight to divide it by, once, at the end."""

RATE_WINDOW = 10  # writes that the shown steps per second are averaged over


def finalize(pairs: Mapping[str, Pair]) -> dict[str, float | list]:
    """Fetches the pairs in one transfer and divides them in float64; NaN where nothing was weighed."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            name: (np.asarray(total, np.float64) / np.asarray(weight, np.float64)).tolist()
            for name, (total, weight) in jax.device_get(dict(pairs)).items()
        }


class Writers:
    """Writes each step's metrics to metrics.jsonl, to TensorBoard, to trackers and to the terminal.

    metrics.jsonl holds one JSON object a line, `step` first, then flat metric names; numbers that
    JSON lacks are strings (see `files.plain`). Every line is flushed, so a killed run keeps it. No
    (step, name) is ever written twice: a resumed run first calls `truncate_after`, and a value that
    the restored step already has is left as it is.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        tensorboard: bool,
        progress: bool,
        total_steps: int,
        trackers: Sequence[str] = (),
        stream: TextIO | None = None,
    ):
        """`stream` is where the progress goes: standard error unless given.

        Raises:
          UserError: one of `trackers` (see `bigjax.run.trackers`) is unknown or not installed.
        """
        check(trackers)
        self._trackers: dict[str, Tracker | None] = dict.fromkeys(trackers)  # opened when written
        self._path = Path(workdir) / "metrics.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._progress = Progress(total_steps, stream or sys.stderr) if progress else None
        self._tensorboard = self._path.parent / "tensorboard" if tensorboard else None
        self._summary = None
        self._purge_step = None
        self._file = None
        self._written: set[tuple[int, str]] = set()

    def truncate_after(self, step: int) -> None:
        """Forgets every line after `step`, and a last line cut short, as a run resumed there needs."""
        lines = [line for line in read_metrics(self._path) if line["step"] <= step]
        write_atomic(self._path, "".join(_json_line(line) for line in lines))
        self._written = {(step, name) for line in lines if line["step"] == step for name in line}
        self._purge_step = step + 1

    def write(self, step: int, metrics: Mapping[str, float | list]) -> None:
        """Writes `metrics` of `step`: numbers, or (nested) lists, which TensorBoard leaves out."""
        metrics = {k: v for k, v in metrics.items() if (step, k) not in self._written}
        if not metrics:
            return
        self._written = {key for key in self._written if key[0] == step}
        self._written |= {(step, name) for name in metrics}
        if self._file is None:
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
        self._file.write(_json_line({"step": int(step), **metrics}))
        self._file.flush()
        scalars = {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0}
        if self._tensorboard:
            summary = self._open_summary()
            for name, value in scalars.items():
                summary.add_scalar(name, value, step)
        for name, tracker in self._trackers.items():
            tracker = tracker or open_tracker(name, self._path.parent)
            self._trackers[name] = tracker
            tracker.log(step, scalars)
        if self._progress:
            self._progress.show(step, scalars)

    def close(self) -> None:
        """Ends the progress line and writes out what TensorBoard still holds."""
        if self._progress:
            self._progress.end_line()
        if self._summary:
            self._summary.close()
        for name, tracker in self._trackers.items():
            if tracker:
                tracker.close()
                self._trackers[name] = None
        if self._file:
            self._file.close()
        self._summary = self._file = None

    def __enter__(self) -> Writers:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open_summary(self):
        if self._summary is None:
            with _hidden("torch"):  # which tensorboardX imports where it is installed: seconds
                from tensorboardX import SummaryWriter  # 0.3 s

            # The suffix keeps two starts within one second from sharing, and emptying, one file.
            self._summary = SummaryWriter(
                str(self._tensorboard),
                purge_step=self._purge_step,
                flush_secs=10,
                filename_suffix=f".{os.getpid()}.{time.monotonic_ns()}",
            )
        return self._summary


class NoWriters(Writers):
    """What every process but the first of a run has: writes nothing."""

    def truncate_after(self, step: int) -> None:
        pass

    def write(self, step: int, metrics: Mapping[str, float | list]) -> None:
        pass


class Progress:
    """Shows training metrics on a line that is rewritten, other metrics on lines that stay.

    Where the stream is no terminal every write is a plain line.
    """

    def __init__(self, total_steps: int, stream: TextIO):
        self._total = total_steps
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._history: deque[tuple[int, float]] = deque(maxlen=RATE_WINDOW + 1)
        self._width = 0  # of the rewritten line now on the screen

    def show(self, step: int, scalars: Mapping[str, float]) -> None:
        """Shows `scalars` of `step`; the rate counts from the first call, so without compilation."""
        training = {k[6:]: v for k, v in scalars.items() if k.startswith("train/")}
        other = {k: v for k, v in scalars.items() if not k.startswith("train/")}
        if training:
            self._history.append((step, time.perf_counter()))
            parts = [f"step {step}/{self._total}", *self._rate(), *_name_values(training)]
            self._put("  ".join(parts), stays=not self._is_terminal)
        if other:
            self._put("  ".join([f"step {step}/{self._total}", *_name_values(other)]), stays=True)

    def end_line(self) -> None:
        """Leaves the rewritten line standing and goes to the next one."""
        if self._width:
            self._stream.write("\n")
            self._width = 0

    def _rate(self) -> list[str]:
        (first_step, first), (step, now) = self._history[0], self._history[-1]
        if step <= first_step or now <= first:
            return []
        rate = (step - first_step) / (now - first)
        return [f"{rate:.3g} steps/s", f"{duration((self._total - step) / rate)} left"]

    def _put(self, text: str, *, stays: bool) -> None:
        if self._is_terminal:
            text = text[: shutil.get_terminal_size().columns - 1]
        padding = " " * (self._width - len(text))
        self._stream.write("\r" * bool(self._width) + text + padding + "\n" * stays)
        self._stream.flush()
        self._width = 0 if stays else len(text)


def read_metrics(path: str | Path) -> list[dict]:
    """Returns the lines of a metrics.jsonl in order; [] without a file, and without a torn last line.

    "NaN", "Infinity" and "-Infinity" are returned as the floats they stand for. Of what is damaged a
    warning tells.
    """
    lines, problems = read_json_lines(Path(path))
    found = []
    for line in lines:
        try:
            values = {k: float(v) if isinstance(v, str) else v for k, v in line.items()}
        except ValueError as error:
            problems.append(f"of step {line.get('step')}: {error}; left out")
            continue
        if type(values.get("step")) is int:
            found.append(values)
        else:
            problems.append("a line without its step; left out")
    for problem in problems:
        log.warning("%s: %s", path, problem)
    return found


def _json_line(line: Mapping[str, object]) -> str:
    return json.dumps(plain(dict(line))) + "\n"


def _name_values(scalars: Mapping[str, float]) -> list[str]:
    loss_first = sorted(scalars, key=lambda name: name != "loss")
    return [f"{name} {scalars[name]:.4g}" for name in loss_first]


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


@contextlib.contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Within, an import of the module fails, unless it is imported already."""
    imported = module in sys.modules
    if not imported:
        sys.modules[module] = None
    try:
        yield
    finally:
        if not imported:
            del sys.modules[module]


def table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> str:
    """Returns aligned text: a header, a rule, a line per row; words to the left, numbers right.

    `columns` are the keys of `rows` to show, in order; a list of numbers (one per seed) is shown as
    mean ± standard deviation, a missing key as an empty cell.
    """
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
