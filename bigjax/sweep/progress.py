"""What a person sees while a sweep runs: a bar, the running trials below it, a line for each failure.

Where the stream is no terminal, a line for each trial that ends.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from bigjax.run.screen import Screen, fit, progress
from bigjax.run.text import duration
from bigjax.sweep.executors import Event
from bigjax.sweep.trials import Trial

REDRAW = 0.5  # seconds
MOST_RUNNING = 8  # trials that have a line of their own
TAIL = 4096  # bytes of metrics.jsonl that are enough for its last line


class Progress:
    """The live table.

    Args:
      trials: all of the sweep.
      states: trial name -> its status when the sweep starts.
    """

    def __init__(
        self, trials: Sequence[Trial], states: Mapping[str, str], workdir: Path, stream: TextIO
    ):
        self._folders = {trial.name: trial.folder(workdir) for trial in trials}
        self._states = dict(states)
        self._screen = Screen(stream)
        ended = sum(state != "missing" for state in self._states.values())
        self._bar = progress("trials", len(trials), unit="trials", done=ended, on=self._screen)
        self._bar.start()  # every trial compiles, and several may end at once
        self._drawn = 0.0
        self._running: dict[str, float] = {}
        if ended:
            self.line(f"{ended} of {len(self._states)} trials have ended before")

    def note(self, event: Event) -> None:
        if event.status == "started":
            self._running[event.trial] = time.monotonic()
            return
        began = self._running.pop(event.trial, None)
        if event.status == "stopped":
            return
        self._states[event.trial] = event.status
        states = list(self._states.values())
        counts = {word: states.count(word) for word in ("failed", "pruned") if word in states}
        self._bar.advance(1, **counts)
        if event.status == "failed":
            self.line(f"failed: {event.trial}: {event.reason}")
        if not self._screen.is_terminal:
            took = f"  {duration(time.monotonic() - began)}" if began else ""
            self.line(f"{'  '.join(self._bar.fields())}  {event.status} {event.trial}{took}")

    def show(self) -> None:
        """Redraws the table, if it is time."""
        if not self._screen.is_terminal or time.monotonic() - self._drawn < REDRAW:
            return
        self._drawn = time.monotonic()
        width = self._screen.columns
        lines = [self._bar.line(width)]
        for name, began in list(self._running.items())[:MOST_RUNNING]:
            last = _last_line(self._folders[name] / "metrics.jsonl")
            values = [f"{k.rpartition('/')[2]} {v:.4g}" for k, v in last.items()]
            fields = [f"  {duration(self._drawn - began):>7}", name, *values]
            if len("  ".join(fields)) > width:
                fields[1] = f"…{name[-8:]}"  # the hash that its folder's name ends in
            lines.append(fit(fields, width))
        if len(self._running) > MOST_RUNNING:
            lines.append(f"  and {len(self._running) - MOST_RUNNING} more")
        self._screen.show(lines)

    def line(self, text: str) -> None:
        """Writes a line that stays."""
        self._screen.say(text)

    def close(self) -> None:
        """Leaves one line of the table."""
        if self._screen.is_terminal:
            self._screen.say(fit(self._bar.fields(), self._screen.columns))


def _last_line(path: Path) -> dict[str, float]:
    """ "step" and the loss of the last line of training metrics in a metrics.jsonl; {} without."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            last = json.loads(file.read().splitlines()[-1])
    except (OSError, IndexError, ValueError):
        return {}
    loss = "train_mean/loss" if "train_mean/loss" in last else "train/loss"
    return {k: float(last[k]) for k in ("step", loss) if k in last}
