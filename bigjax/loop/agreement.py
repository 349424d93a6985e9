"""The evaluator of a student beside its teacher: how alike they are, how sure, and what each costs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.build.assemble import Setup
from bigjax.core.errors import UserError
from bigjax.core.losses import hide_masked
from bigjax.core.transforms import apply_transforms
from bigjax.loop.evaluate import eval_batches
from bigjax.loop.evaluators import BesideTeacher, Seen
from bigjax.mesh import distributed
from bigjax.plan.flops import COUNTED, figure, of_jaxpr
from bigjax.tasks import scores
from bigjax.tasks.base import Task

RESAMPLES = 1000  # of the bootstrap
INTERVAL = (2.5, 97.5)  # percentiles


@dataclasses.dataclass(frozen=True)
class Agreement(BesideTeacher):
    """Compares the run's model with a model that its method reads, on a split.

    Metrics: "agreement", how often both find the same class likeliest; "kl", KL(teacher || student) in nats
    per unit; accuracy and "ece" (`scores.calibration_error`) of both; "parameters_ratio", "flops_ratio" (of a
    forward pass), "latency_ratio": the student's over the teacher's. NAME_low and NAME_high are the ends
    of its interval at level 0.95 over other examples: percentiles of the bootstrap (Efron 1979), always with the
    same resamples of whole rows.

    timed: so often both are timed on one batch, in turn; 0: not at all, as no time is the same twice.
    """

    timed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.timed < 0:
            raise UserError(f"timed: {self.timed} must be 0 or more")

    def check(self, setup: Setup, folder: Path) -> None:
        super().check(setup, folder)
        if type(setup.program.task).distributions is Task.distributions:
            raise UserError(
                f"the outputs of the task {type(setup.program.task).__name__} are no distributions"
            )

    def evaluate(self, seen: Seen) -> dict[str, Any]:
        setup, program = seen.setup, seen.setup.program
        reference, frozen = setup.read_model(self.teacher)
        own = program.evaluation_variables(seen.state, seen.frozen)
        key = jax.random.key(0)

        def of(model: Any, task: Task, preprocess: Any) -> Callable[..., Any]:
            def forward(variables: Any, batch: Any) -> Any:
                batch = apply_transforms(preprocess, batch, key)
                return model.apply(variables, *task.inputs(batch), train=False)

            return forward

        student = of(program.model, program.task, program.preprocess)
        teacher = of(reference.model, reference.task, reference.preprocess)

        @jax.jit
        def sums(own: Any, frozen: Any, batch: Any) -> Any:
            ours, theirs = student(own, batch), teacher(frozen, batch)
            shown = apply_transforms(program.preprocess, batch, key)
            return sums_of_rows(program.task, theirs, ours, shown), batch["mask"]

        rows = []
        source = setup.sources[self.data]
        for batch in eval_batches(program, source, setup.eval_batch_size):
            found, mask = jax.tree.map(distributed.whole, sums(own, frozen, batch))
            rows.append(
                jax.tree.map(lambda x, real=mask > 0: np.asarray(x, np.float64)[real], found)
            )
        joined = jax.tree.map(lambda *parts: np.concatenate(parts), *rows)
        sizes = (sum(x.size for x in jax.tree.leaves(tree["params"])) for tree in (own, frozen))
        metrics = with_intervals(joined) | {"parameters_ratio": float(np.divide(*sizes))}
        both = ((student, own), (teacher, frozen))
        costs = figure(
            lambda: {COUNTED: [of_jaxpr(jax.make_jaxpr(f)(v, batch).jaxpr) for f, v in both]}
        )
        if costs:
            metrics["flops_ratio"] = float(np.divide(*costs[COUNTED]))
        return metrics | (latencies(both, batch, self.timed) if self.timed else {})


def sums_of_rows(task: Task, teacher: Any, student: Any, batch: Any) -> dict[str, Any]:
    """Sums over each row's units, float32 (B,), and bins of confidence (B, M). Pure.

    "count", "agreement", "kl", and of both models "correct" and the counts of `scores.calibration`.
    """
    (t, _), (s, mask) = (task.distributions(x, batch) for x in (teacher, student))
    labels, B, K = task.targets(student, batch), len(s), s.shape[-1]
    mask = jnp.broadcast_to(
        mask.reshape(mask.shape + (1,) * (s.ndim - 1 - mask.ndim)), s.shape[:-1]
    )
    t, s = (hide_masked(x, mask).reshape(B, -1, K) for x in (t, s))
    mask, labels = mask.reshape(B, -1).astype(jnp.float32), labels.reshape(B, -1)
    log_t, log_s = jax.nn.log_softmax(t), jax.nn.log_softmax(s)
    kl = jnp.sum(jnp.exp(log_t) * (log_t - log_s), axis=-1)
    alike = jnp.argmax(t, axis=-1) == jnp.argmax(s, axis=-1)
    found = {
        "count": jnp.sum(mask, axis=1),
        "agreement": jnp.sum(mask * alike, axis=1),
        "kl": jnp.sum(mask * kl, axis=1),
    }
    for name, log_p in (("teacher", log_t), ("student", log_s)):
        right = jnp.argmax(log_p, axis=-1) == labels
        found[f"{name}_correct"] = jnp.sum(mask * right, axis=1)
        confidence = jnp.exp(jnp.max(log_p, axis=-1))
        found[f"{name}_bins"] = jax.vmap(scores.calibration)(confidence, right, mask)
    return found


def with_intervals(rows: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of all rows (N, ...), each with the ends of its interval."""
    counts = np.random.default_rng(0).multinomial(
        len(rows["count"]), np.full(len(rows["count"]), 1 / len(rows["count"])), RESAMPLES
    )
    whole = metrics_of(jax.tree.map(lambda x: x.sum(0), rows))
    resampled = jax.tree.map(lambda x: counts @ x, rows)
    each = [metrics_of(jax.tree.map(lambda x, i=i: x[i], resampled)) for i in range(RESAMPLES)]
    found: dict[str, float] = {}
    for name, value in whole.items():
        low, high = np.percentile([one[name] for one in each], INTERVAL)
        found |= {name: value, f"{name}_low": float(low), f"{name}_high": float(high)}
    return found


def metrics_of(sums: Mapping[str, Any]) -> dict[str, float]:
    """Means and calibration errors of one set of rows, from their sums."""
    means = {"agreement": "agreement", "kl": "kl"}
    means |= {f"{name}_accuracy": f"{name}_correct" for name in ("teacher", "student")}
    found = {name: float(sums[key] / sums["count"]) for name, key in means.items()}
    for name in ("teacher", "student"):
        found[f"{name}_ece"] = scores.calibration_error(sums[f"{name}_bins"])
    return found


def latencies(both: Any, batch: Any, times: int) -> dict[str, float]:
    """Median seconds of a forward pass of (student, teacher) on a batch, and of their ratios."""
    functions = [(jax.jit(function), variables) for function, variables in both]
    seconds = np.zeros((times + 1, 2))
    for turn in range(times + 1):  # the first compiles
        for column, (function, variables) in enumerate(functions):
            began = time.perf_counter()
            jax.block_until_ready(function(variables, batch))
            seconds[turn, column] = time.perf_counter() - began
    ratios = seconds[1:, 0] / seconds[1:, 1]
    chosen = np.random.default_rng(0).integers(0, times, (RESAMPLES, times))
    low, high = np.percentile(np.median(ratios[chosen], axis=1), INTERVAL)
    student, teacher = np.median(seconds[1:], axis=0)
    return {
        "student_latency": float(student),
        "teacher_latency": float(teacher),
        "latency_ratio": float(np.median(ratios)),
        "latency_ratio_low": float(low),
        "latency_ratio_high": float(high),
    }
