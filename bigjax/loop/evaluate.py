"""Evaluation: the task's metrics over every example of a split, each counted once."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bigjax.build.assemble import Setup
from bigjax.build.program import Program
from bigjax.config.when import When
from bigjax.core.errors import UserError
from bigjax.core.state import TrainState
from bigjax.data import pipeline
from bigjax.loop.evaluators import Evaluator, Seen
from bigjax.mesh import sharding
from bigjax.run.screen import progress
from bigjax.run.writers import read_metrics
from bigjax.tasks.base import Task

# Batches dispatched before the first one's statistics are fetched.
IN_FLIGHT = 2

Metrics = dict[str, Any]

when = functools.lru_cache(typed=True)(When)  # asked at every step: one for each rhythm


def is_due(setup: Setup, step: int) -> bool:
    """Whether anything is evaluated after this step."""
    return splits_due(setup, step) or any(
        when(one.every, setup.total_steps).due(step) for one in setup.evaluators.values()
    )


def splits_due(setup: Setup, step: int) -> bool:
    """Whether the task's own metrics of `evaluate.splits` are."""
    return when(setup.evaluate.every, setup.total_steps).due(step)


def evaluate_due(
    setup: Setup,
    state: TrainState,
    frozen: Any,
    step: int,
    folder: Path,
    stop: Callable[[], bool] = lambda: False,
) -> list[Metrics] | None:
    """All that is due after a step, named "eval/SPLIT/METRIC"; of each run that is trained.

    `stop` is asked before every batch; once true, nothing is returned: None.
    """
    found: list[Metrics] = [{} for _ in range(setup.program.trials or 1)]
    if splits_due(setup, step):
        values = evaluate_splits(setup, state, frozen, stop)
        if values is None:
            return None
        found = values
    for name, evaluator in setup.evaluators.items():
        if not when(evaluator.every, setup.total_steps).due(step):
            continue
        seen = Seen(setup, state, frozen, step, folder, name)
        for own, values in zip(found, evaluator.evaluate_all(seen), strict=True):
            own.update({f"eval/{name}/{metric}": value for metric, value in values.items()})
    return found


def evaluate_splits(
    setup: Setup,
    state: TrainState,
    frozen: Any,
    stop: Callable[[], bool] = lambda: False,
) -> list[Metrics] | None:
    """The metrics of every split in `evaluate.splits`; None once `stop` says so."""
    found: list[Metrics] = [{} for _ in range(setup.program.trials or 1)]
    for split in setup.evaluate.splits:
        values = evaluate(setup, state, frozen, setup.sources[split], stop)
        if values is None:
            return None
        for own, metrics in zip(found, values, strict=True):
            own.update({f"eval/{split}/{name}": value for name, value in metrics.items()})
    return found


def logged_evaluation(workdir: Path, step: int) -> Metrics:
    """What an evaluation gave at a step, as the run's `metrics.jsonl` has it; {} without."""
    lines = [line for line in read_metrics(workdir / "metrics.jsonl") if line["step"] == step]
    return {name: x for line in lines for name, x in line.items() if name.startswith("eval/")}


def evaluate(
    setup: Setup,
    state: TrainState,
    frozen: Any,
    source: Any,
    stop: Callable[[], bool] = lambda: False,
) -> list[Metrics] | None:
    """The task's metrics over a source, of each run that is trained; None once `stop` says so.

    Sums are added up in float64, on the host.
    """
    program, task = setup.program, setup.program.task
    totals: Any = None
    collected: list[dict[str, np.ndarray]] = []
    in_flight: deque[Any] = deque()

    def settle(limit: int) -> None:
        nonlocal totals
        while len(in_flight) > limit:
            statistics, rows = jax.device_get(in_flight.popleft())
            statistics = jax.tree.map(lambda x: np.asarray(x, np.float64), statistics)
            totals = statistics if totals is None else jax.tree.map(np.add, totals, statistics)
            collected.append(rows)

    size = setup.eval_batch_size
    with progress("evaluation", math.ceil(len(source) / size), unit="batches") as bar:
        for batch in eval_batches(program, source, size):
            if stop():
                return None
            in_flight.append(program.eval_step(state, batch, frozen))
            settle(IN_FLIGHT)
            bar.advance()
        settle(0)
    return [summarized(task, *own, source) for own in of_each(program, (totals, collected))]


def summarized(
    task: Task, sums: Any, collected: Sequence[dict[str, np.ndarray]], source: Any
) -> Metrics:
    """The task's metrics, from sums over some batches and what was collected of each."""
    real = [{n: x[rows["mask"] > 0] for n, x in rows.items() if n != "mask"} for rows in collected]
    joined = {name: np.concatenate([rows[name] for rows in real]) for name in real[0]}
    if task.decodes:  # generated tokens are judged as text
        joined = task.present(joined, {}, source)
    return task.summarize(sums, joined)


def of_each(program: Program, tree: Any) -> list[Any]:
    """A tree of host arrays as one tree for each run that the program trains."""
    if program.trials is None:
        return [tree]
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(program.trials)]


def eval_batches(program: Program, source: Any, size: int) -> Iterator[dict[str, jax.Array]]:
    """The batches of a source in order, the last one padded."""
    sharding.check_batch("config.evaluate.batch_size", size, 1, program.mesh)
    return pipeline.eval_batches(
        source, batch_size=size, sharding=sharding.batch_sharding(program.mesh)
    )


@dataclasses.dataclass(frozen=True)
class Statistics(Evaluator):
    """The task's own metrics over another split."""

    def __post_init__(self) -> None:
        if self.data is None:
            raise UserError("data: name the split, one of config.data.splits")

    def evaluate_all(self, seen: Seen) -> list[Metrics]:
        return evaluate(seen.setup, seen.state, seen.frozen, seen.setup.sources[self.data])
