"""A run's steps executed again, in memory, and compared bit for bit with what was recorded.

Equality is promised on the same mesh, versions and flags; there, a difference means that the machine
computed wrongly once, or that the program is not deterministic. Writes nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bigjax.build.assemble import Setup
from bigjax.build.program import Program
from bigjax.core.errors import RunFailed, UserError
from bigjax.loop.record import train_batches
from bigjax.run import ledger
from bigjax.run.checkpoint import Checkpoints
from bigjax.run.writers import finalize, read_metrics

UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}
CAUSES = (
    "the machine computed wrongly once, or the program is not deterministic there (on GPUs: "
    "XLA_FLAGS=--xla_gpu_deterministic_ops=true)"
)


class Different(RunFailed):
    """A step executed again gave something else."""


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
    from bigjax.loop.train import run_steps  # which imports this file

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

    def check(self) -> None:
        pass

    def save_due(self, step: int) -> bool:
        return step in self.saved

    def save(self, step: int, state: Any, metrics: Any) -> None:
        if differ := differing(self.restored(step), state):
            raise Different(f"step {step}: {some(differ)} differ from the checkpoint")
        self.states += 1


class Idle:
    """A clock that measures nothing and writes nothing."""

    def __call__(self, name: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def mark(self, step: int) -> None:
        pass

    def save(self) -> None:
        pass


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


def differing(a: Any, b: Any) -> list[str]:
    """Paths of the leaves of two like trees that are not the same bits; compared on the device."""
    same = jax.device_get(_same(a, b))
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(same)
        if not leaf
    ]


@jax.jit
def _same(a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.all(_bits(x) == _bits(y)), a, b)


def _bits(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jax.lax.bitcast_convert_type(x, UNSIGNED[x.dtype.itemsize])
    return x


def some(leaves: list[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(leaves) - most} more leaves" if len(leaves) > most else ""
    return ", ".join(leaves[:most]) + more


def check_again(
    step: int, program: Program, before: Any, batch: Any, frozen: Any, after: Any
) -> None:
    """Executes one step of a run that is under way again, and compares the states on the device.

    Args:
      before, after: the state before the step (a copy: it is donated) and the one it gave.

    Raises:
      Different: they are not the same bits.
    """
    again, _ = program.train_step(before, batch, frozen)
    if differ := differing(after, again):
        raise Different(
            f"step {step}: executed twice, it gives two values of {some(differ)}: {CAUSES}"
        )
