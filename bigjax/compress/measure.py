"""What a model costs and how good it is: a row of the table. Latencies are taken in turns."""

from __future__ import annotations

import dataclasses
import statistics
import time
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bigjax.compress.folder import on_disk
from bigjax.loop.evaluate import eval_batches, summarized
from bigjax.loop.open import Opened
from bigjax.mesh.sharding import batch_devices
from bigjax.plan import flops

PARTS = 20  # of a split, at least, whose numbers are drawn again for the intervals
DRAWS = 400
ROUNDS = 15  # of each latency


@dataclasses.dataclass(frozen=True)
class Cost:
    """A model's size and speed.

    parameters: numbers that are not zero. held: bytes in memory. disk: of the same, deflated.
    flops: of a forward pass, per example. latency: seconds of one example, the median.
    throughput: examples a second in batches of the run's evaluation.
    """

    parameters: int
    held: int
    disk: int
    flops: float
    latency: float
    throughput: float


def held_leaves(run: Opened) -> dict[str, np.ndarray]:
    """All numbers that the run's predictions need, as they are held."""
    tree = {"trained": run.state.ema or run.state.params, "frozen": run.frozen}
    return on_disk({**tree, "collections": run.state.collections})


def costs(runs: Mapping[str, Opened], split: str) -> dict[str, Cost]:
    """Name -> cost. Predictions of all runs are timed in turns, so that a busy machine is one for all."""
    ones, manys, calls = {}, {}, {}
    for name, run in runs.items():
        source = run.setup.sources[split]
        ones[name] = next(
            eval_batches(run.setup.program, source, batch_devices(run.setup.program.mesh.shape))
        )
        manys[name] = next(eval_batches(run.setup.program, source, run.setup.eval_batch_size))
        calls[name] = run.setup.program.predict_step
    times: dict[tuple[str, bool], list[float]] = {}
    for _ in range(ROUNDS + 1):  # the first compiles
        for name, run in runs.items():
            for many, batch in ((False, ones[name]), (True, manys[name])):
                start = time.perf_counter()
                jax.block_until_ready(calls[name](run.state, batch, run.frozen))
                times.setdefault((name, many), []).append(time.perf_counter() - start)
    found = {}
    for name, run in runs.items():
        leaves, many = held_leaves(run), manys[name]
        traced = calls[name].trace(run.state, many, run.frozen)
        rows = len(many["mask"])
        found[name] = Cost(
            parameters=sum(
                int(np.count_nonzero(x))
                for x in map(np.asarray, jax.tree.leaves(run.variables["params"]))
            ),
            held=sum(x.nbytes for x in leaves.values()),
            disk=sum(len(zlib.compress(x.tobytes(), 6)) for x in leaves.values()),
            flops=flops.of_jaxpr(traced.jaxpr.jaxpr) / rows,
            latency=statistics.median(times[name, False][1:]),
            throughput=rows / statistics.median(times[name, True][1:]),
        )
    return found


def metrics(run: Opened, split: str) -> dict[str, tuple[float, float, float]]:
    """Metric -> (value, low, high): the task's numbers of a split, with bootstrap intervals (0.95).

    What is drawn again are the split's parts, at least 20 where it has as many examples (Efron 1979;
    percentiles); always the same draws, so that two models are seen on the same parts.
    """
    setup, source = run.setup, run.setup.sources[split]
    least = batch_devices(run.setup.program.mesh.shape)
    size = min(setup.eval_batch_size, max(1, len(source) // PARTS // least) * least)
    parts = []
    for batch in eval_batches(setup.program, source, size):
        sums, rows = jax.device_get(setup.program.eval_step(run.state, batch, run.frozen))
        parts.append((jax.tree.map(lambda x: np.asarray(x, np.float64), sums), rows))
    whole = _summary(run, parts, source)
    rng = np.random.default_rng(0)
    draws = [
        _summary(run, [parts[i] for i in rng.integers(0, len(parts), len(parts))], source)
        for _ in range(DRAWS)
    ]
    return {
        name: (value, *np.nanpercentile([draw[name] for draw in draws], (2.5, 97.5)))
        for name, value in whole.items()
    }


def _summary(run: Opened, parts: list[Any], source: Any) -> dict[str, float]:
    """The task's single numbers over some parts of a split."""
    sums = jax.tree.map(lambda *xs: sum(xs), *[sums for sums, _ in parts])
    found = summarized(run.setup.program.task, sums, [rows for _, rows in parts], source)
    return {name: float(x) for name, x in found.items() if np.ndim(x) == 0}
