"""A run's steps executed again, in memory, and compared bit for bit with what was recorded.

Equality is promised on the same mesh, versions and flags; there, a difference means that the machine
computed wrongly once, or that the program is not deterministic. Writes nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigjax.build.assemble import Setup
from bigjax.core.errors import UserError
from bigjax.loop.bits import Different, differing, some
from bigjax.loop.record import train_batches
from bigjax.loop.train import run_steps
from bigjax.run import ledger
from bigjax.run.checkpoint import Checkpoints
from bigjax.run.clock import Idle
from bigjax.run.writers import finalize, read_metrics


def replay(setup: Setup, workdir: Path, start: int, steps: int | None) -> str:
    """Executes steps start + 1, ..., start + steps of a run again, through the one loop, and compares.

    Compared are all training metrics in `metrics.jsonl`, as exact numbers, and the whole state with
    every checkpoint on the way.

    Args:
      workdir: the run's folder.
      start: step of the checkpoint to start from; 0 is the beginning of the run.
      steps: how many; None for all that are recorded.

    Returns:
      What was compared and found equal, in one line.

    Raises:
      Different: names the first step and metric or leaves that differ.
      UserError: there is no such checkpoint, or nothing to compare with.
    """
    with Comparison(setup, workdir) as comparison:
        saved = comparison.saved
        if start and start not in saved:
            raise UserError(f"--from={start}: {workdir} has checkpoints of {saved}, and step 0")
        known = (*comparison.recorded, *saved)
        last = max(known, default=0) if steps is None else start + steps
        expected = [step for step in known if start < step <= last]
        if not expected:
            raise UserError(f"{workdir}: nothing is recorded of steps {start + 1} to {last}")
        if start:
            state, frozen = comparison.restored(start), setup.frozen()
        else:
            state, frozen = setup.start()
        end = max(expected)
        try:
            run_steps(
                comparison.setup, comparison, state, frozen, range(start + 1, end + 1), Idle()
            )
        except Halted as halted:
            end = halted.step
    asked = "" if steps is None or end >= last else f" (of {steps} asked for)"
    return (
        f"equal: steps {start + 1} to {end}{asked}, {comparison.numbers} recorded numbers, "
        f"{comparison.states} checkpoints; compared are logged steps and checkpoints alone "
        f"(config.log.every is {setup.log.every})"
        + (f"; step {end} halts, as recorded" if comparison.halted else "")
    )


class Halted(Exception):
    """The run halts at this step, as it did when it was recorded."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


class Comparison:
    """What the loop keeps when a run is replayed: nothing; each number is held against the record."""

    def __init__(self, setup: Setup, workdir: Path) -> None:
        never = dataclasses.replace(setup.log, profile="never")
        once = dataclasses.replace(setup.check, replay_every=None)
        self.setup = dataclasses.replace(setup, log=never, check=once)
        self.workdir = workdir
        self.batches = functools.partial(train_batches, setup, workdir)
        self.recorded = recorded_metrics(workdir)
        self._checkpoints = Checkpoints(workdir, setup.checkpoint)
        self.saved = self._checkpoints.steps()
        self.numbers = self.states = 0
        self.halted = False

    def __enter__(self) -> Comparison:
        return self

    def __exit__(self, *exception: object) -> None:
        self._checkpoints.close()

    def restored(self, step: int) -> Any:
        return self._checkpoints.restore(self.setup.program.state, step)

    def log(self, step: int, found: dict[str, Any], state: Any, frozen: Any) -> None:
        bad, halted = ledger.flags(found)
        values = finalize(found) | ({"bad": 1} if bad else {})
        self.numbers += compare_metrics(step, self.recorded.get(step, {}), values)
        if halted:
            self.halted = True
            raise Halted(step)

    def evaluate(self, step: int, state: Any, frozen: Any) -> dict[str, Any]:
        return {}

    def enough(self) -> bool:
        return False

    def check(self) -> None:
        pass

    def save_due(self, step: int) -> bool:
        return step in self.saved

    def save(self, step: int, state: Any, metrics: Any) -> None:
        if differ := differing(self.restored(step), state):
            raise Different(f"step {step}: {some(differ)} differ from the checkpoint")
        self.states += 1


def recorded_metrics(workdir: Path) -> dict[int, dict[str, float]]:
    """step -> its training metrics, without "train/", as `metrics.jsonl` has them."""
    found: dict[int, dict[str, float]] = {}
    for line in read_metrics(workdir / "metrics.jsonl"):
        values = {
            name.removeprefix("train/"): value
            for name, value in line.items()
            if name.startswith("train/")
        }
        if values:
            found.setdefault(line["step"], {}).update(values)
    return found


def compare_metrics(step: int, recorded: Mapping[str, float], values: Mapping[str, Any]) -> int:
    """How many numbers were compared, all of them the same.

    Raises:
      Different: the first that is not.
    """
    for name, then in recorded.items():
        now = values.get(name)
        if not (now == then or (now is not None and math.isnan(now) and math.isnan(then))):
            raise Different(f"step {step}: train/{name} was {then!r} and is now {now!r}")
    return len(recorded)
