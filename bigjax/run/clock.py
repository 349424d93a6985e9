"""Where a run's wall time goes, over all of its starts: `time.json`, goodput, and speed.

What is measured is this process's time. Steps run ahead of the host, so "step" is the time in which
the host hands out steps and waits for their results; input, logging and the like cost something of
their own only where they last longer than the device's work. Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

import jax

from bigjax.run.files import read_json, write_atomic
from bigjax.run.text import rate

log = logging.getLogger("bigjax")

CATEGORIES = (
    "start_up",  # from the call of `train` to the first step: data, state, restore
    "compile",  # tracing and compiling, wherever it happens
    "input",  # waiting for the next batch
    "step",
    "evaluation",
    "checkpoint",  # the loop standing still for one
    "other",  # logs, checks, the loop itself
    "lost",  # what was done after the checkpoint that a restart or rewind went back to
)
SAVE_EVERY = 5.0  # seconds; a kill loses at most as much from the ledger
MARKS = 100  # checkpoints whose time is remembered

# Bounds a figure can be held against. FLOP/s of one chip (as JAX counts devices), dense bfloat16, by
# the start of `device_kind`. NVIDIA: data sheets of B200, H200 SXM, H100 SXM and PCIe, A100, without
# sparsity; TPU: the tables at cloud.google.com/tpu/docs (v2 and v3: a device is a core, half a chip).
PEAKS = (
    ("NVIDIA B200", 2250e12),
    ("NVIDIA H200", 989.5e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H100", 989.5e12),
    ("NVIDIA A100", 312e12),
    ("TPU v6", 918e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v4", 275e12),
    ("TPU v3", 61.5e12),
    ("TPU v2", 22.5e12),
)


class Clock:
    """Charges every moment to one category; `with clock("input"): ...`, which may nest.

    The parts add up to the wall time exactly, compiling being taken out of whatever it happened in.
    """

    def __init__(self, workdir: Path) -> None:
        self._path = workdir / "time.json"
        stored = _stored(self._path)
        self.starts = stored["starts"] + 1
        self._marks: dict[str, dict[str, float]] = stored["marks"]
        self._seconds = dict.fromkeys(CATEGORIES, 0.0)
        self._before = {name: stored["seconds"].get(name, 0.0) for name in CATEGORIES}
        self._parts = {name: _Part(self, name) for name in CATEGORIES}
        self._name, self._since = "start_up", time.perf_counter()
        self._stack: list[str] = []
        self._spans: list[tuple[float, float]] = []
        self._saved, self._thread = self._since, threading.get_ident()
        self._marked: tuple[int, float] | None = None  # step, and seconds in steps at its mark
        _watch_compilation(self)

    def __call__(self, name: str) -> _Part:
        """A context manager that charges its time to the category `name`."""
        return self._parts[name]

    def begin(self, step: int) -> None:
        """Start-up is over and step `step` is what the run goes on from: later work is lost."""
        known = [int(marked) for marked in self._marks if int(marked) <= step]
        kept = self._marks[str(max(known))] if known else {}
        lost = sum(self._before[name] - kept.get(name, 0.0) for name in CATEGORIES)
        self._before = {name: kept.get(name, 0.0) for name in CATEGORIES}
        self._before["lost"] += lost
        self._marks = {s: seconds for s, seconds in self._marks.items() if int(s) <= step}
        self._charge("other")

    def mark(self, step: int) -> None:
        """What was done so far is safe: a checkpoint of `step` is under way or there."""
        seconds = self._marks[str(step)] = self.seconds()
        self._marked = step, self._seconds["step"]
        for old in sorted(self._marks, key=int)[:-MARKS]:
            del self._marks[old]
        self._write(seconds)

    def __enter__(self) -> None:
        """Around the loop: `time.json` is whole when it is left, however it is left."""

    def __exit__(self, *exception: object) -> None:
        if self._marked and self._marked[1] == self._seconds["step"]:
            self.mark(self._marked[0])  # no step since: what came after the checkpoint is not lost
        else:
            self._write(self.seconds())

    def save(self) -> None:
        """Writes `time.json`, if the last time is long ago."""
        if time.perf_counter() - self._saved >= SAVE_EVERY:
            self._write(self.seconds())

    def _write(self, seconds: dict[str, float]) -> None:
        self._saved = time.perf_counter()
        if jax.process_index() == 0:
            stored = {"starts": self.starts, "seconds": seconds, "marks": self._marks}
            write_atomic(self._path, json.dumps(stored) + "\n")

    def seconds(self) -> dict[str, float]:
        """Seconds by category, over all starts of the run."""
        self._charge(self._name)
        return {name: self._before[name] + self._seconds[name] for name in CATEGORIES}

    def _charge(self, name: str) -> None:
        now = time.perf_counter()
        self._seconds[self._name] += now - self._since
        self._name, self._since = name, now

    def _compiled(self, seconds: float) -> None:
        """Moves a span that ends now to "compile", less the spans inside it, which came first."""
        if threading.get_ident() != self._thread:
            return
        start = time.perf_counter() - seconds
        while self._spans and self._spans[-1][0] >= start:
            seconds -= self._spans.pop()[1]
        self._spans.append((start, time.perf_counter() - start))
        self._seconds[self._name] -= seconds
        self._seconds["compile"] += seconds


def _stored(path: Path) -> dict[str, Any]:
    """What `time.json` says of earlier starts; where it is lost or damaged, that there were none."""
    found = read_json(path) or {"starts": 0, "seconds": {}, "marks": {}}
    try:
        parts = [found["seconds"], *found["marks"].values()]
        fine = all(isinstance(s, int | float) and s >= 0 for part in parts for s in part.values())
        if fine and type(found["starts"]) is int and all(map(str.isdecimal, found["marks"])):
            return found
    except (KeyError, AttributeError, TypeError):
        pass
    log.warning("%s is damaged: times are counted anew", path)
    return {"starts": 0, "seconds": {}, "marks": {}}


class _Part:
    """One category's context manager. Entering and leaving costs about a microsecond."""

    __slots__ = ("_clock", "_name")

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock, self._name = clock, name

    def __enter__(self) -> None:
        clock = self._clock
        clock._stack.append(clock._name)
        now = time.perf_counter()
        clock._seconds[clock._name] += now - clock._since
        clock._name, clock._since = self._name, now

    def __exit__(self, *exception: object) -> None:
        clock = self._clock
        now = time.perf_counter()
        clock._seconds[self._name] += now - clock._since
        clock._name, clock._since = clock._stack.pop(), now


class Idle:
    """A clock that measures nothing and writes nothing."""

    def __call__(self, name: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def mark(self, step: int) -> None:
        pass

    def save(self) -> None:
        pass


_watching: list[Clock] = []


def _watch_compilation(clock: Clock) -> None:
    """Has JAX's own timing of compilation reported to `clock`, and to no earlier one."""

    def report(event: str, seconds: float, **_: Any) -> None:
        if event.startswith(("/jax/core/compile/", "/bigjax/compile/")):
            _watching[0]._compiled(seconds)

    if not _watching:
        jax.monitoring.register_event_duration_secs_listener(report)
    _watching[:] = [clock]


def peak_flops(device_kind: str) -> float | None:
    """The device's peak, FLOP/s in bfloat16; None where it is not known."""
    return next((peak for name, peak in PEAKS if device_kind.startswith(name)), None)


def summary(
    clock: Clock,
    *,
    steps: int,
    batch_size: int,
    flops: dict[str, float],
    mesh: Any,
) -> dict[str, Any]:
    """What `result.json` holds under "time".

    Goodput is the share of the wall time, over all starts, that is spent in steps that were kept.
    Speed is that of the loop: steps over the time in step, input and other. MFU (model FLOPs
    utilization: Chowdhery et al. 2022, "PaLM", appendix B) is the FLOPs of a step times that speed
    over the devices' peak.

    Args:
      steps: updates in the kept run so far.
      batch_size: examples a step.
      flops: FLOPs of one step by convention (see `bigjax.plan.flops`).
      mesh: what the steps ran on.
    """
    seconds = clock.seconds()
    wall = sum(seconds.values())
    loop = seconds["step"] + seconds["input"] + seconds["other"]
    found = {
        "wall": wall,
        "goodput": seconds["step"] / wall,
        "starts": clock.starts,
        "seconds": seconds,
    }
    peak = peak_flops(mesh.devices.flat[0].device_kind)
    return found | speed(steps / loop if loop else 0.0, batch_size, flops, peak, mesh.size)


def speed(
    steps_per_second: float,
    batch_size: int,
    flops: dict[str, float],
    peak: float | None,
    devices: int,
) -> dict[str, Any]:
    """Throughput, FLOP/s and MFU; or, where a figure is above the peak, an error and no figure."""
    rates = {name: count * steps_per_second for name, count in flops.items()}
    if peak is not None and max(rates.values(), default=0.0) > peak * devices:
        name, rate = max(rates.items(), key=lambda item: item[1])
        return {
            "measurement_error": f"{rate:.3g} FLOP/s ({name}) on {devices} devices of at most "
            f"{peak:.3g} each: the time or the FLOPs are measured wrong"
        }
    found: dict[str, Any] = {
        "steps_per_second": steps_per_second,
        "examples_per_second": steps_per_second * batch_size,
        "flops_per_step": flops,
    }
    if peak is not None:
        found["mfu"] = {name: rate / (peak * devices) for name, rate in rates.items()}
    return found


def rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The summary as a table for people: a row a part, with seconds and share."""
    parts = [
        {"time": name.replace("_", " "), "seconds": value, "share": f"{value / found['wall']:.1%}"}
        for name, value in found["seconds"].items()
        if value
    ]
    return [*parts, {"time": "wall", "seconds": found["wall"], "share": "100.0%"}]


def lines(found: dict[str, Any]) -> list[str]:
    """The summary's other figures, one a line."""
    starts = f" over {found['starts']} starts" if found["starts"] > 1 else ""
    said = [f"goodput {found['goodput']:.1%}{starts}"]
    if "measurement_error" in found:
        return [*said, f"error in measurement: {found['measurement_error']}"]
    said.append(
        f"{rate(found['steps_per_second'])} steps/s, {rate(found['examples_per_second'])} examples/s "
        "over the whole run's step, input and other"
    )
    said.append("(the bar's rate is of its last seconds)")
    for name, share in found.get("mfu", {}).items():
        said.append(f"MFU {share:.1%} ({name})")
    return said
