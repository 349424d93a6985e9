"""What a person sees while something runs: lines that stay, and below them a bar that is redrawn.

    with progress("tokenizing", len(files), unit="files") as bar:
        for file in files:
            ...
            bar.advance()

A bar is redrawn by time, however often it advances: on a terminal and in a notebook in its place;
in a file, if it lasts, as a line now and then. Of bars within bars the innermost is shown. Lines are
made of whole fields, so that no number is ever cut. Knows nothing of runs.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import textwrap
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, TextIO

from bigjax.run.text import amount, duration, rate

log = logging.getLogger("bigjax")

REDRAW = 0.2  # seconds between two looks of a bar
FILE_EVERY = 30.0  # seconds between two lines of a bar in a file
RATE_OVER = 50  # looks, so 10 seconds or more, that a rate is averaged over
BAR_SHARE = 6  # of the columns that a drawn bar takes, one in so many


class Screen:
    """A stream, and the live lines that are now at its end. Safe to use from several threads.

    Attributes:
      redraws: whether what was written can be overwritten; False for a file.
      bars: those that are under way, the innermost last.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.is_terminal = stream.isatty()
        self.redraws = self.is_terminal or type(stream).__module__.startswith("ipykernel")
        self.bars: list[Bar] = []
        self._live: list[int] = []  # the live lines' widths
        self._lock = threading.RLock()

    @property
    def columns(self) -> int:
        """The columns that a live line may fill: one less than there are, or the cursor wraps."""
        try:
            if "COLUMNS" not in os.environ:
                return os.get_terminal_size(self.stream.fileno()).columns - 1
        except (OSError, ValueError):  # no terminal
            pass
        return shutil.get_terminal_size().columns - 1

    def show(self, lines: Sequence[str]) -> None:
        """Puts these live lines in the place of those before; more than one only on a terminal."""
        with self._lock:
            self._over("\n".join(lines))
            self._live = [len(line) for line in lines]

    def say(self, text: str) -> None:
        """Writes a line that stays, above the live ones, which come back at their next redraw."""
        with self._lock:
            self._over(text + "\n")
            self._live = []

    def clear(self) -> None:
        """Takes the live lines away."""
        with self._lock:
            if self._live:
                self._over("")
                self.stream.write("\r")
                self._live = []

    def leave(self) -> None:
        """Lets the live lines stand."""
        with self._lock:
            if self._live:
                self.stream.write("\n")
                self.stream.flush()
                self._live = []

    def _over(self, text: str) -> None:
        """Writes text over the live lines. Notebooks know "\\r" and no other control."""
        if len(self._live) > 1:
            self.stream.write(f"\x1b[{len(self._live) - 1}A\r\x1b[J{text}")
        else:
            first, newline, rest = text.partition("\n")
            width = self._live[0] if self._live else 0
            self.stream.write("\r" * bool(self._live) + first.ljust(width) + newline + rest)
        self.stream.flush()


class Bar:
    """How far something is. Made by `progress`.

    Attributes:
      done, total: what is counted; total None if it is not known.
      values: shown at the end, name -> number, or a function that gives it when it is drawn.
    """

    def __init__(
        self, screen: Screen, name: str, total: int | None, unit: str, done: int, stays: bool
    ):
        self.done, self.total, self.values = done, total, {}
        self._screen, self._name, self._unit, self._stays = screen, name, unit, stays
        self._began = self._said = time.monotonic()
        self._next = 0.0  # when to look at the clock's hands again
        self._marks: deque[tuple[float, int]] = deque(maxlen=RATE_OVER)  # (time, done)

    def __enter__(self) -> Bar:
        self._screen.bars.append(self)
        self._draw()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._stays:
            self._draw()
            self._screen.leave()
        else:
            self._screen.clear()
        self._screen.bars.remove(self)
        spent = time.monotonic() - self._began
        for outer in self._screen.bars:  # whose rate is that of its own work
            outer._marks = deque(((t + spent, n) for t, n in outer._marks), RATE_OVER)
        if self._screen.bars:
            self._screen.bars[-1]._draw()

    def start(self) -> None:
        """Lets the rate count from here; else from the first `advance`, as a first step compiles."""
        self._marks.append((time.monotonic(), self.done))

    def advance(self, count: int = 1, **values: Any) -> None:
        """Counts, and shows it if it is time; costs less than a microsecond otherwise."""
        self.done += count
        if values:
            self.values.update(values)
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + REDRAW
        self._marks.append((now, self.done))
        if self._screen.redraws:
            self._draw()
        elif now - self._said >= FILE_EVERY and self._is_shown():
            self.say()

    def say(self) -> None:
        """Writes where it is as a line that stays, all fields of it."""
        self._said = time.monotonic()
        self._marks.append((self._said, self.done))
        self._screen.say("  ".join(self.fields()))

    def line(self, width: int) -> str:
        """The fields that fit into a width; a drawn bar goes before values but the first."""
        fields = self.fields()
        needed = fields[: len(fields) - len(self.values) + 1] if self.values else fields
        size = width // BAR_SHARE
        if self.total and len("  ".join(needed)) + 2 + size <= width:
            full = (size - 2) * min(self.done, self.total) // self.total
            fields.insert(1, f"[{'=' * full}{' ' * (size - 2 - full)}]")
        return fit(fields, width)

    def fields(self) -> list[str]:
        """The most important first: where, the first value, time left, rate, other values."""
        size = amount if self._unit == "bytes" else str
        head = [f"{self._name} {size(self.done)}" + f"/{size(self.total)}" * bool(self.total)]
        values = [
            f"{name} {value() if callable(value) else value:.4g}"
            for name, value in self.values.items()
        ]
        return [*head, *values[:1], *self._pace(), *values[1:]]

    def _pace(self) -> list[str]:
        """Time left and rate, as far as they are known."""
        (first, before), (now, done) = (self._marks or [(0, 0)])[0], (self._marks or [(0, 0)])[-1]
        if done <= before or now <= first:
            return []
        pace = (done - before) / (now - first)
        if self._unit == "bytes":
            shown = f"{amount(pace)}/s now"
        elif pace >= 1:
            shown = f"{rate(pace)} {self._unit}/s now"
        else:
            shown = f"{rate(60 * pace)} {self._unit}/min now"
        if not self.total:
            return [shown, duration(now - self._began)]
        rest = self.total - self.done
        return [f"{duration(rest / pace)} left", shown] if rest > 0 else [shown]

    def _is_shown(self) -> bool:
        """The innermost one is, where the program may speak (not in all processes of a run)."""
        return self._screen.bars[-1:] == [self] and log.level <= logging.INFO

    def _draw(self) -> None:
        if self._screen.redraws and self._is_shown():
            self._screen.show([self.line(self._screen.columns)])


def progress(
    name: str,
    total: int | None = None,
    *,
    unit: str = "steps",
    done: int = 0,
    stays: bool = False,
    on: Screen | None = None,
) -> Bar:
    """Returns a bar to be used as a context manager, drawn on standard error.

    Args:
      name: what is going on, as the line's first word.
      total: how much there is to do; None if that is not known.
      unit: of what, in the plural; "bytes" are shown as kB, MB, GB.
      done: of it, before now.
      stays: whether its last look is left standing at the end.
      on: another screen.
    """
    return Bar(on or screen(), name, total, unit, done, stays)


def fit(fields: Sequence[str], width: int) -> str:
    """Returns the fields that fit into one line, from the first on."""
    text = ""
    for field in fields:
        longer = f"{text}  {field}" if text else field
        if len(longer) > width:
            break
        text = longer
    return text


def wrap(fields: Sequence[str], width: int) -> str:
    """Returns all fields, in as many lines as it takes; the later ones are indented."""
    lines = [fields[0]]
    for field in fields[1:]:
        if len(lines[-1]) + 2 + len(field) <= width:
            lines[-1] += f"  {field}"
        else:
            lines.append(f"  {field}")
    return "\n".join(lines)


class LogLines(logging.Handler):
    """Says log records on the screen, so that they do not run into a bar; on a terminal in whole words."""

    def emit(self, record: logging.LogRecord) -> None:
        on, text = screen(), self.format(record)
        if on.is_terminal:
            fill = textwrap.TextWrapper(
                on.columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
            ).fill
            text = "\n".join(map(fill, text.split("\n")))
        on.say(text)


_screen: Screen | None = None


def screen() -> Screen:
    """The one of standard error as it is now."""
    global _screen
    if _screen is None or _screen.stream is not sys.stderr:
        _screen = Screen(sys.stderr)
    return _screen
