"""Numbers of a run: (sum, weight) pairs, and the writers that show and keep the finished values.

The pair helpers are pure. `Writers` belongs to process 0 alone and takes host values only, so that
writing never waits for a device; `step` alone takes pairs as they come.

What is kept in metrics.jsonl: every `train/NAME` is the exact number of that one step, which replay
compares bit for bit; `train_mean/loss` is the mean over all steps since the line before, which is
what the screen and the curves show.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np

from bigjax.run import pictures
from bigjax.run.files import plain, read_json, read_json_lines, write_atomic
from bigjax.run.screen import Bar, Screen, progress, screen, wrap
from bigjax.run.tensorboard import TensorBoard
from bigjax.run.trackers import Tracker, check, open_tracker

log = logging.getLogger("bigjax")

Pair = tuple[jax.Array, jax.Array]
"""A sum and the weight to divide it by, once, at the end."""

MOST_PENDING = 100  # pairs that a MeanSince holds before it fetches them
MOST_MARKS = 100  # checkpoints whose open window is remembered


def finalize(pairs: Mapping[str, Pair]) -> dict[str, float | list]:
    """Fetches the pairs in one transfer and divides them in float64; NaN where nothing was weighed."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            name: (np.asarray(total, np.float64) / np.asarray(weight, np.float64)).tolist()
            for name, (total, weight) in jax.device_get(dict(pairs)).items()
        }


class MeanSince:
    """The mean of a number over the steps since the last `clear`, of their (sum, weight) pairs.

    Adding a pair does not wait for it: it is fetched when the mean is asked for, or when many are
    pending. Sums are taken in float64 in the order of the steps, so the mean is a pure function of
    the pairs.
    """

    def __init__(self) -> None:
        self._total = self._weight = 0.0
        self._pending: list[Pair] = []

    def add(self, pair: Pair) -> None:
        self._pending.append(pair)
        if len(self._pending) >= MOST_PENDING:
            self.sums()

    def sums(self) -> tuple[float, float]:
        """Sum and weight since the last `clear`, from which `resume` goes on."""
        for total, weight in self._pending:
            self._total += float(total)
            self._weight += float(weight)
        self._pending = []
        return self._total, self._weight

    def mean(self) -> float:
        """NaN where nothing was weighed."""
        total, weight = self.sums()
        return total / weight if weight else float("nan")

    def clear(self) -> None:
        self.resume((0.0, 0.0))

    def resume(self, sums: Sequence[float]) -> None:
        self._total, self._weight = sums
        self._pending = []


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
        self._workdir = Path(workdir)
        self._workdir.mkdir(parents=True, exist_ok=True)
        self._path = self._workdir / "metrics.jsonl"
        self._marks_path = self._workdir / "train_mean.json"
        self._marks: dict[str, Sequence[float]] = {}  # step of a save -> the window open then
        self._screen = (Screen(stream) if stream else screen()) if progress else None
        self._total_steps = total_steps
        self._bar: Bar | None = None
        self._loss, self._step = MeanSince(), 0
        self._use_tensorboard, self._tensorboard = tensorboard, None
        self._purge_step = None
        self._file = None
        self._written: set[tuple[int, str]] = set()
        self._evaluated: dict[str, float] = {}  # the last evaluation's scalars

    def truncate_after(self, step: int) -> None:
        """Forgets every line after `step`, and a last line cut short, as a run resumed there needs."""
        lines = [line for line in read_metrics(self._path) if line["step"] <= step]
        write_atomic(self._path, "".join(_json_line(line) for line in lines))
        self._written = {(step, name) for line in lines if line["step"] == step for name in line}
        self._purge_step = step + 1
        self._step = step
        marks = read_json(self._marks_path) or {}
        try:
            marks = {
                int(at): [float(total), float(weight)] for at, (total, weight) in marks.items()
            }
        except (TypeError, ValueError, OverflowError) as error:
            log.warning("%s is damaged and counts as lost (%s)", self._marks_path, error)
            marks = {}
        self._marks = {str(at): sums for at, sums in marks.items() if at <= step}
        self._loss.resume(self._marks.get(str(step), (0.0, 0.0)))
        for of_name in pictures.saved(self._workdir).values():
            for at, path in of_name.items():
                if at > step:
                    path.unlink()

    def step(self, step: int, pairs: Mapping[str, Pair], written: bool = False) -> None:
        """Notes a finished step, in order, whether it is logged or not: moves the bar.

        Its loss counts in the mean that the next line of training metrics has. Waits for nothing
        that is still being computed, unless the bar is redrawn. written: its metrics are written next,
        with all that the bar says.
        """
        self._step = step
        self._loss.add(pairs["loss"])
        if (bar := self._moved(step)) and not written:
            bar.advance(0, **{"mean loss": self._loss.mean})

    def write(self, step: int, metrics: Mapping[str, float | list]) -> None:
        """Writes `metrics` of `step`: numbers, or (nested) lists, which TensorBoard leaves out."""
        metrics = {k: v for k, v in metrics.items() if (step, k) not in self._written}
        if not metrics:
            return
        if any(name.startswith("train/") for name in metrics) and self._loss.sums() != (0.0, 0.0):
            metrics["train_mean/loss"] = self._loss.mean()
            self._loss.clear()
        self._written = {key for key in self._written if key[0] == step}
        self._written |= {(step, name) for name in metrics}
        if self._file is None:
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
        self._file.write(_json_line({"step": int(step), **metrics}))
        self._file.flush()
        scalars = {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0}
        evaluated = {name: x for name, x in scalars.items() if name.startswith("eval/")}
        self._evaluated = evaluated or self._evaluated
        if self._use_tensorboard:
            self._open_tensorboard().scalars(step, scalars)
            for name, files in pictures.saved(self._workdir).items() if evaluated else ():
                if step in files:
                    self._tensorboard.picture(step, name, files[step])
        for name, tracker in self._trackers.items():
            tracker = tracker or open_tracker(name, self._workdir)
            self._trackers[name] = tracker
            tracker.log(step, scalars)
        self._show(step, scalars)

    def histograms(self, step: int, params: Any) -> None:
        """Adds a histogram of each leaf of a tree of host arrays to TensorBoard."""
        if self._use_tensorboard:
            leaves = jax.tree_util.tree_leaves_with_path(params)
            arrays = {
                jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf, np.float32)
                for path, leaf in leaves
            }
            self._open_tensorboard().histograms(step, arrays)

    def sync(self) -> None:
        """Puts all that was written on the disk. To be called before the last step is saved."""
        sums = self._loss.sums()
        if sums != (0.0, 0.0):
            kept = {**self._marks, str(self._step): sums}
            newest = sorted(kept, key=int)[-MOST_MARKS:]
            self._marks = {at: kept[at] for at in newest}
            write_atomic(self._marks_path, json.dumps(plain(self._marks)) + "\n")
        if self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Ends the bar and writes out what TensorBoard still holds."""
        if self._bar:
            self._bar.__exit__()
        if self._tensorboard:
            self._tensorboard.close()
        for name, tracker in self._trackers.items():
            if tracker:
                tracker.close()
                self._trackers[name] = None
        if self._file:
            self._file.close()
        self._bar = self._tensorboard = self._file = None

    def __enter__(self) -> Writers:
        self._moved(self._step)  # shows the bar while the first step compiles
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        if kind is None and self._tensorboard and self._evaluated:
            self._tensorboard.hyperparameters(self._evaluated)
        self.close()

    def _open_tensorboard(self) -> TensorBoard:
        self._tensorboard = self._tensorboard or TensorBoard(self._workdir, self._purge_step)
        return self._tensorboard

    def _moved(self, step: int) -> Bar | None:
        """The bar, at this step; None if nothing is shown."""
        if self._screen and not self._bar:
            total, on = self._total_steps, self._screen
            self._bar = progress("step", total, done=step, stays=True, on=on).__enter__()
        if self._bar:
            self._bar.done = step
        return self._bar

    def _show(self, step: int, scalars: Mapping[str, float]) -> None:
        """Training metrics go into the bar, in a file on a line; others always on a line."""
        bar = self._moved(step)
        if bar is None:
            return
        training = {k[6:]: x for k, x in scalars.items() if k.startswith("train/")}
        other = {k: x for k, x in scalars.items() if not k.startswith(("train/", "train_mean/"))}
        if training:
            loss = {"loss": training.pop("loss")} if "loss" in training else {}
            if "train_mean/loss" in scalars:
                loss = {"mean loss": scalars["train_mean/loss"]}
            bar.values = loss | training
            if self._screen.redraws:
                bar.advance(0)
            else:
                bar.say()
        if other:
            fields = [f"step {step}/{self._total_steps}"]
            fields += [f"{name} {value:.4g}" for name, value in other.items()]
            width = self._screen.columns if self._screen.is_terminal else 10**9
            self._screen.say(wrap(fields, width))


class NoWriters(Writers):
    """What every process but the first of a run has: writes nothing."""

    def truncate_after(self, step: int) -> None:
        pass

    def step(self, step: int, pairs: Mapping[str, Pair], written: bool = False) -> None:
        pass

    def write(self, step: int, metrics: Mapping[str, float | list]) -> None:
        pass

    def histograms(self, step: int, params: Any) -> None:
        pass

    def sync(self) -> None:
        pass


def read_metrics(path: str | Path) -> list[dict]:
    """Returns the lines of a metrics.jsonl in order; [] without a file.

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
        if strange := [k for k, v in values.items() if not isinstance(v, int | float | list)]:
            problems.append(f"of step {line.get('step')}: {strange[0]} is no number; left out")
        elif type(values.get("step")) is int:
            found.append(values)
        else:
            problems.append("a line without its step; left out")
    for problem in problems:
        log.warning("%s: %s", path, problem)
    return found


def _json_line(line: Mapping[str, object]) -> str:
    return json.dumps(plain(dict(line))) + "\n"
