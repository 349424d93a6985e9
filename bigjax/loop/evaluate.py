"""Evaluation: the task's metrics over every example of a split, each counted once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bigjax.build.program import Program
from bigjax.config.resolve import Config
from bigjax.core.state import TrainState
from bigjax.data import pipeline
from bigjax.mesh import sharding
from bigjax.run.writers import read_metrics

# Batches dispatched before the first one's statistics are fetched.
IN_FLIGHT = 2


def evaluate_splits(
    config: Config,
    program: Program,
    state: TrainState,
    sources: dict[str, Any],
    stop: Callable[[], bool],
) -> dict[str, Any]:
    """The metrics of every split in `config.evaluate.splits`, named "eval/SPLIT/METRIC".

    `stop` is asked before every batch; once true, nothing is returned: {}.
    """
    metrics = {}
    for split in config.get("evaluate.splits"):
        values = evaluate(config, program, state, sources[split], stop)
        if values is None:
            return {}
        metrics.update({f"eval/{split}/{name}": value for name, value in values.items()})
    return metrics


def logged_evaluation(workdir: Path, step: int) -> dict[str, Any]:
    """What `evaluate_splits` gave at a step, as the run's `metrics.jsonl` has it; {} without."""
    lines = [line for line in read_metrics(workdir / "metrics.jsonl") if line["step"] == step]
    return {name: x for line in lines for name, x in line.items() if name.startswith("eval/")}


def evaluate(
    config: Config,
    program: Program,
    state: TrainState,
    source: Any,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """The task's metrics over a source; None once `stop` says so.

    Sums are added up in float64, on the host.
    """
    totals: Any = None
    collected: list[dict[str, np.ndarray]] = []
    in_flight: deque[Any] = deque()

    def settle(limit: int) -> None:
        nonlocal totals
        while len(in_flight) > limit:
            statistics, rows = jax.device_get(in_flight.popleft())
            statistics = jax.tree.map(lambda x: np.asarray(x, np.float64), statistics)
            totals = statistics if totals is None else jax.tree.map(np.add, totals, statistics)
            collected.append(
                {name: x[rows["mask"] > 0] for name, x in rows.items() if name != "mask"}
            )

    for batch in eval_batches(config, program, source):
        if stop():
            return None
        in_flight.append(program.eval_step(state, batch))
        settle(IN_FLIGHT)
    settle(0)
    joined = {name: np.concatenate([rows[name] for rows in collected]) for name in collected[0]}
    if getattr(program.task, "decodes", False):  # generated tokens are judged as text
        joined = program.task.present(joined, source)
    return program.task.summarize(totals, joined)


def eval_batches(config: Config, program: Program, source: Any) -> Iterator[dict[str, jax.Array]]:
    """The batches of a source in order, the last one padded."""
    size = config.get("evaluate.batch_size") or config.get("train.batch_size")
    sharding.check_batch("config.evaluate.batch_size", size, 1, program.mesh)
    return pipeline.eval_batches(
        source, batch_size=size, sharding=sharding.batch_sharding(program.mesh)
    )
