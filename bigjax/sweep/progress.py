"""What a person sees while a sweep runs: a table that is redrawn, and a line for each failure.

Where the stream is no terminal, a line for each trial that ends.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

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
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._started = time.monotonic()
        self._drawn = 0.0
        self._lines = 0  # of the table now on the screen
        self._ended = 0
        self._running: dict[str, float] = {}
        if done := sum(state != "missing" for state in self._states.values()):
            self.line(f"{done} of {len(self._states)} trials have ended before")

    def note(self, event: Event) -> None:
        if event.status == "started":
            self._running[event.trial] = time.monotonic()
            return
        began = self._running.pop(event.trial, None)
        if event.status == "stopped":
            return
        self._states[event.trial] = event.status
        self._ended += 1
        if event.status == "failed":
            self.line(f"failed: {event.trial}: {event.reason}")
        if not self._is_terminal:
            took = f"  {duration(time.monotonic() - began)}" if began else ""
            self.line(f"{self._summary()}  {event.status} {event.trial}{took}")

    def show(self) -> None:
        """Redraws the table, if it is time."""
        if not self._is_terminal or time.monotonic() - self._drawn < REDRAW:
            return
        self._drawn = time.monotonic()
        rows = [self._summary()]
        for name, began in list(self._running.items())[:MOST_RUNNING]:
            last = _last_line(self._folders[name] / "metrics.jsonl")
            values = [f"{k.removeprefix('train/')} {v:.4g}" for k, v in last.items()]
            took = duration(self._drawn - began)
            rows.append("  ".join([f"  {took:>7}", name, *values]))
        if len(self._running) > MOST_RUNNING:
            rows.append(f"  and {len(self._running) - MOST_RUNNING} more")
        self._erase()
        width = shutil.get_terminal_size().columns - 1
        self._stream.write("".join(f"{row[:width]}\n" for row in rows))
        self._stream.flush()
        self._lines = len(rows)

    def line(self, text: str) -> None:
        """Writes a line that stays."""
        self._erase()
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Takes the table off the screen and leaves one line."""
        if self._is_terminal and self._ended:
            self.line(self._summary())

    def _summary(self) -> str:
        states = list(self._states.values())
        ended = sum(state != "missing" for state in states)
        parts = [f"{ended}/{len(states)} trials"]
        parts += [f"{states.count(w)} {w}" for w in ("failed", "pruned") if w in states]
        spent = time.monotonic() - self._started
        if self._ended and spent > 0:
            rate = self._ended / spent
            parts.append(f"{60 * rate:.3g} a minute")
            parts.append(f"{duration((len(states) - ended) / rate)} left")
        return "  ".join(parts)

    def _erase(self) -> None:
        if self._lines:
            self._stream.write(f"\x1b[{self._lines}A\x1b[J")
            self._lines = 0


def _last_line(path: Path) -> dict[str, float]:
    """ "step" and "train/loss" of the last line of a metrics.jsonl; {} without."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            last = json.loads(file.read().splitlines()[-1])
    except (OSError, IndexError, ValueError):
        return {}
    return {k: float(last[k]) for k in ("step", "train/loss") if k in last}
