"""A run's steps executed again, in memory, and compared bit for bit with what was recorded.

Equality is promised on the same mesh, versions and flags; there, a difference means that the machine
computed wrongly once, or that the program is not deterministic. Writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bigjax.build.program import Program
from bigjax.build.weights import initial_state, load_teacher
from bigjax.config.resolve import Config
from bigjax.core.errors import RunFailed, UserError
from bigjax.data import pipeline
from bigjax.mesh import sharding
from bigjax.run.checkpoint import Checkpoints
from bigjax.run.ledger import flags, left_out
from bigjax.run.writers import finalize, read_metrics

UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}
CAUSES = (
    "the machine computed wrongly once, or the program is not deterministic there (on GPUs: "
    "XLA_FLAGS=--xla_gpu_deterministic_ops=true)"
)


class Different(RunFailed):
    """A step executed again gave something else."""


def replay(
    config: Config, program: Program, source: Any, workdir: Path, start: int, steps: int | None
) -> str:
    """Executes steps start + 1, ..., start + steps of a run again and compares.

    Compared are all training metrics in `metrics.jsonl`, as exact numbers, and the whole state with
    every checkpoint on the way.

    Args:
      source: the train split.
      workdir: the run's folder.
      start: step of the checkpoint to start from; 0 is the beginning of the run.
      steps: how many; None for all that are recorded.

    Returns:
      What was compared and found equal, in one line.

    Raises:
      Different: names the first step and metric or leaves that differ.
      UserError: there is no such checkpoint, or nothing to compare with.
    """
    recorded = recorded_metrics(workdir)
    checkpoints = Checkpoints(workdir, config.section("checkpoint"))
    saved = checkpoints.steps()
    if start and start not in saved:
        raise UserError(f"--from={start}: {workdir} has checkpoints of {saved}, and step 0")
    last = max([*recorded, *saved], default=0) if steps is None else start + steps
    expected = [step for step in (*recorded, *saved) if start < step <= last]
    if not expected:
        raise UserError(f"{workdir}: nothing is recorded of steps {start + 1} to {last}")
    if start:
        state = checkpoints.restore(program.state, start)
    else:
        state = initial_state(config, program, workdir)
    frozen = load_teacher(config, program, workdir)
    batches = pipeline.train_batches(
        source,
        batch_size=config.get("train.batch_size"),
        seed=config.seed,
        start_step=start,
        sharding=sharding.batch_sharding(program.mesh),
        workers=config.get("data.workers"),
        leave_out=left_out(workdir),
    )
    numbers = states = 0
    for step in range(start + 1, max(expected) + 1):
        state, metrics = program.train_step(state, next(batches), frozen)
        bad, halted = flags(metrics)
        values = finalize(metrics) | ({"bad": 1} if bad else {})
        numbers += compare_metrics(step, recorded.get(step, {}), values)
        if halted:
            break
        if step in saved:
            differ = differing(checkpoints.restore(program.state, step), state)
            if differ:
                raise Different(f"step {step}: {some(differ)} differ from the checkpoint")
            states += 1
    batches.close()
    checkpoints.close()
    return (
        f"equal: steps {start + 1} to {step}, {numbers} recorded numbers, {states} checkpoints"
        + (f"; step {step} halts, as recorded" if halted else "")
    )


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
