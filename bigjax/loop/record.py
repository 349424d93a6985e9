"""A run's folder while the run goes on: what is logged, evaluated and saved there."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from bigjax.build.assemble import Setup
from bigjax.config.when import When
from bigjax.core.errors import UserError, did_you_mean
from bigjax.core.state import TrainState, params_fingerprint
from bigjax.data import pipeline
from bigjax.loop.evaluate import Metrics, evaluate_due
from bigjax.mesh import distributed, sharding
from bigjax.plan import flops
from bigjax.report.page import LiveReport
from bigjax.run import clock as clocks
from bigjax.run import ledger, manifest, trackers
from bigjax.run.checkpoint import Checkpoints, Origin
from bigjax.run.clock import Clock
from bigjax.run.files import write_json
from bigjax.run.writers import NoWriters, Writers, finalize, read_metrics

log = logging.getLogger("bigjax")

Callback = Callable[[int, Metrics, TrainState], Any]


def train_batches(setup: Setup, workdir: Path, start: int) -> Iterator[Any]:
    """The batches of steps start + 1, ..., without the examples that the run leaves out."""
    return pipeline.train_batches(
        setup.sources["train"],
        batch_size=setup.train.batch_size,
        seed=setup.seed,
        sharding=sharding.batch_sharding(setup.program.mesh),
        workers=setup.workers,
        leave_out=ledger.left_out(workdir),
        order=setup.order,
        start_step=start,
    )


class Record:
    """What the loop keeps of one run, and the checks of its numbers.

    Args:
      setup: the run.
      workdir: its folder.
      session: this start of it (see `bigjax.run.manifest`).
      stop: whether the run should stop; asked during evaluations.
      progress: whether a person is shown how it goes.
      callbacks: called with (step, metrics, state) after every evaluation.

    Attributes:
      last_step: the last step that was logged or evaluated here; 0 before.
    """

    def __init__(
        self,
        setup: Setup,
        workdir: Path,
        session: manifest.Session,
        stop: Callable[[], bool] = lambda: False,
        progress: bool = True,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        trackers.check(setup.log.trackers)
        self._progress, self._callbacks = progress, callbacks
        self.last_step = 0
        self._scores: list[float] = []  # what `checkpoint.best` was in each evaluation
        self._report = LiveReport(workdir)
        self.setup, self.workdir, self._session, self._stop = setup, workdir, session, stop
        self.batches = functools.partial(train_batches, setup, workdir)
        origin = Origin(
            session.run, setup.fingerprint, setup.train.batch_size, session.about["versions"]
        )
        self.checkpoints = Checkpoints(workdir, setup.checkpoint, origin)
        self._leader = distributed.is_leader()
        self._log_due = When(setup.log.every, setup.total_steps).due
        self._save_due = When(setup.checkpoint.every, setup.total_steps).due
        self._writers: Writers | None = None

    def begin(self, start: int, frozen: Mapping[str, str]) -> None:
        """Opens the writers; what was logged after step `start` is forgotten.

        frozen: fingerprints of what is read and not trained, by name.
        """
        if self._leader:
            manifest.record(self.workdir, self.setup, self._session, start, frozen)
        self._writers = (Writers if self._leader else NoWriters)(
            self.workdir,
            tensorboard=self.setup.log.tensorboard,
            trackers=self.setup.log.trackers,
            progress=self._progress,
            total_steps=self.setup.total_steps,
        )
        self._writers.truncate_after(start)
        self._scores = logged_scores(self.setup, self.workdir, start)
        self._writers.__enter__()

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *exception: Any) -> None:
        try:
            self.checkpoints.close()
        finally:
            if self._writers:
                self._writers.__exit__(*exception)
                if self._leader:
                    self._report.__exit__(*exception)

    def log(self, step: int, found: dict[str, Any], state: TrainState, frozen: Any) -> None:
        """Writes a finished step's metrics if they are due.

        Raises:
          BadNumbers: the step's numbers are bad and the run is halted.
        """
        self.last_step = step
        bad, halted = ledger.flags(found)
        assert self._writers is not None
        due = self._log_due(step) or step == 1 or bool(bad)
        self._writers.step(step, found, due)
        if due:
            values = finalize(found) | ({"bad": 1} if bad else {})
            self.write(step, {f"train/{name}": value for name, value in values.items()})
        if halted:
            batch = next(self.batches(step - 1))
            counts = self.setup.program.diagnose(state, batch, frozen)
            reason = ledger.reason(values)
            raise ledger.halt(self.workdir, self.setup.check, step, reason, counts, batch)
        if bad:
            log.warning("step %d: %s; its update was not applied", step, ledger.reason(values))

    def write(self, step: int, metrics: Metrics) -> None:
        assert self._writers is not None
        self._writers.write(step, metrics)
        if self._leader and self._progress:
            self._report.refresh()

    def evaluate(self, step: int, state: TrainState, frozen: Any) -> Metrics:
        """Measures and logs what is due; {} if a stop came first."""
        found = evaluate_due(self.setup, state, frozen, step, self.workdir, self._stop)
        if found is None:
            return {}
        metrics = found[0] | self.setup.measure(step)
        self.write(step, metrics)
        self.last_step = step
        best = self.setup.checkpoint.best
        if best in metrics:
            self._scores.append(float(metrics[best]))
        elif best and any(name.rpartition("/")[0] == best.rpartition("/")[0] for name in metrics):
            near = did_you_mean(best, metrics)
            raise UserError(
                f"config.checkpoint.best: no metric {best!r}{near}; there are {', '.join(metrics)}"
            )
        for callback in self._callbacks:
            callback(step, metrics, state)
        return metrics

    def enough(self) -> bool:
        """Whether the run ends here: its best metric was not bettered for `checkpoint.patience`."""
        return is_enough(self.setup, self._scores)

    def best_step(self) -> int | None:
        """The step whose save the finished run is, where that is not just the newest."""
        return self.checkpoints.best_step() if self.setup.checkpoint.final == "best" else None

    def save_due(self, step: int) -> bool:
        return self._save_due(step)

    def save(self, step: int, state: TrainState, metrics: Metrics) -> None:
        """Starts an asynchronous save; the state may be donated once this returns."""
        if self._writers:
            self._writers.sync()  # what a checkpoint stands on is on the disk before it counts
            if self.setup.log.histograms:
                self._writers.histograms(step, jax.tree.map(distributed.whole, state.params))
        self.checkpoints.save(step, state, metrics)

    def check(self) -> None:
        """Raises the `CheckpointError` of a save that has failed since."""
        self.checkpoints.check()

    def finish(self, result: dict[str, Any]) -> None:
        """Writes `result.json` and the report."""
        if self._leader:
            write_json(self.workdir / "result.json", result)
            self._report.write()


def result_of(
    setup: Setup,
    state: TrainState,
    metrics: Metrics,
    clock: Clock,
    last: tuple[Any, Any] | None,
    ended: int,
) -> dict[str, Any]:
    """What `result.json` holds.

    last: the last step's batch and the frozen variables, to count FLOPs; None if none was run.
    ended: the step after which the run is over.
    """
    step = setup.program.train_step
    spent = clocks.summary(
        clock,
        steps=ended,
        batch_size=setup.train.batch_size,
        flops={} if last is None else flops.of_step(step, setup.program.formula, state, *last),
        mesh=setup.program.mesh,
    )
    return {
        "step": ended,
        "metrics": metrics | setup.measure(ended),
        "fingerprint": params_fingerprint(state.params),
        "seconds": round(spent["wall"], 3),
        "time": spent,
    }


def is_over(setup: Setup, workdir: Path, step: int) -> bool:
    """Whether a run that has come to this step goes no further."""
    return step == setup.total_steps or is_enough(setup, logged_scores(setup, workdir, step))


def logged_scores(setup: Setup, workdir: Path, step: int) -> list[float]:
    """What `checkpoint.best` was in each evaluation up to a step; read where it decides something."""
    best = setup.checkpoint.best
    lines = read_metrics(workdir / "metrics.jsonl") if setup.checkpoint.patience else []
    return [line[best] for line in lines if line["step"] <= step and best in line]


def is_enough(setup: Setup, scores: Sequence[float]) -> bool:
    """Whether so many evaluations in a row as `checkpoint.patience` says bettered nothing."""
    options = setup.checkpoint
    patience = options.patience
    return patience is not None and since_best(scores, options.best_mode) >= patience


def since_best(scores: Sequence[float], mode: str) -> int:
    """How many scores there are since the best one; NaN is never best, an equal one is not better."""
    best, since = None, 0
    for score in scores:
        ahead = best is None or (score > best if mode == "max" else score < best)
        best, since = (score, 0) if ahead and not math.isnan(score) else (best, since + 1)
    return since


def describe(setup: Setup, workdir: Path) -> str:
    """One line: what is about to run, on what."""
    program, train = setup.program, setup.train
    trained = sum(leaf.size for leaf in jax.tree.leaves(program.state.params))
    whole = sum(leaf.size for leaf in jax.tree.leaves(program.variables["params"]))
    parameters = f"{whole:,} parameters" + (f", {trained:,} trained" if trained != whole else "")
    mesh = " x ".join(f"{axis} {n}" for axis, n in program.mesh.shape.items() if n > 1)
    per_device = sharding.check_batch(
        "config.train.batch_size", train.batch_size, train.accumulate, program.mesh
    )
    return (
        f"{workdir}: {setup.values['model']['type']}, {parameters}; "
        f"{len(setup.sources['train']):,} examples; {setup.total_steps} steps of "
        f"{train.batch_size} ({per_device} a device); "
        f"{program.mesh.devices.flat[0].device_kind} {mesh or 'one device'}"
    )
