"""The loop. Read `train`, then `run_steps`: they are the whole truth about a run.

What is computed is in `core.steps`; what the parts are, in `build`; here they are called in turn.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bigjax.build.assemble import Setup, assemble
from bigjax.build.kept import load_ahead
from bigjax.build.weights import contents, with_hyper
from bigjax.config.config import Config
from bigjax.config.when import When
from bigjax.core import compilers
from bigjax.core.state import TrainState, params_fingerprint
from bigjax.doctor.short import trusted
from bigjax.loop.bits import check_again
from bigjax.loop.evaluate import Metrics, is_due, logged_evaluation
from bigjax.loop.evaluators import check_evaluators
from bigjax.loop.record import Callback, Record, describe, is_over, result_of
from bigjax.mesh import distributed
from bigjax.run import ledger, manifest
from bigjax.run.clock import Clock
from bigjax.run.files import workdir_lock
from bigjax.run.public import public_all
from bigjax.run.result import read_result

log = logging.getLogger("bigjax")

# Steps that may be dispatched ahead of the one whose result is awaited: enough to hide the host. Not ahead of
# a long step on a CPU, where the host is the device: that costs (5 ms of 80). Beside a short one it hides
# what is most of the time (1.1 ms a step of the 784-128-64-10 MLP without, 0.7 with).
AHEAD = 2
LONG = 5e-3  # seconds


class Stopped(Exception):
    """The run was asked to stop and has saved its state."""


def train(
    config: Config,
    workdir: Path,
    *,
    stop: Callable[[], bool] = lambda: False,
    allow_changed: Sequence[str] = (),
    label: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Trains a run in its folder, from where the folder's newest good checkpoint left it.

    With `config.check.policy` "rewind", a step of bad numbers starts it again from there, without
    that step's examples.

    Args:
      config: what to run.
      workdir: the run's folder; made if absent.
      stop: asked every step and evaluated batch; once true, the state is saved and `Stopped` raised.
      allow_changed: config keys, or "data", that may differ from the run's, see `bigjax.run.manifest`.
      label: name, tags and notes of this start, kept in `manifest.json`.
      callbacks: called with (step, metrics, state) after every evaluation.

    Returns:
      What `result.json` holds: step, metrics, fingerprint, seconds, and time (see `bigjax.run.clock`).

    Raises:
      UserError: the folder holds a run of another config or is in use, or the config cannot run here.
      CheckpointError: a save failed, or there are checkpoints and none is good.
      Stopped: see `stop`.
      BadNumbers: a loss or gradient that cannot be right (see `bigjax.core.guard`).
    """
    compilers.make_room()  # many runs of one process may have left many programs
    with workdir_lock(workdir):
        while True:
            try:
                return _sitting(config, workdir, stop, allow_changed, label or {}, callbacks)
            except ledger.Rewind as bad:
                log.warning("%s; going back to the newest checkpoint, without its examples", bad)


def _sitting(
    config: Config,
    workdir: Path,
    stop: Callable[[], bool],
    allow_changed: Sequence[str],
    label: Mapping[str, Any],
    callbacks: Sequence[Callback],
) -> dict[str, Any]:
    """One start of a run, to its end."""
    clock = Clock(workdir)
    distributed.check_same("the config", config.fingerprint)
    changes = manifest.check_config(config, workdir, allow_changed)
    doctor = trusted()
    setup = assemble(config, workdir)  # from here on nobody sees a config
    check_evaluators(setup, workdir)
    about = manifest.describe(setup, setup.program.mesh, setup.sources) | {
        "doctor": doctor,
        **{key: public_all(key, value) for key, value in label.items()},
    }
    session = manifest.begin(workdir, about, changes, allow_changed)
    asked = Asked(stop)

    with Record(setup, workdir, session, asked, callbacks=callbacks) as record:
        # State: this run's newest good checkpoint, or other weights, or scratch.
        start, state = record.checkpoints.restore_newest(setup.program.state) or (0, None)
        result = read_result(workdir) if is_over(setup, workdir, start) else None
        if result is not None:
            length = next(k for k in ("steps", "epochs", "examples") if getattr(setup.train, k))
            log.info(
                "%s is finished (step %d); past its end: --config.train.%s=MORE --allow_changed=train.%s",
                *(workdir, start, length, length),
            )
            if not (workdir / "report.html").exists():  # killed between the two
                record.finish(result)
            return result
        load_ahead(setup.program, setup.sources["train"].features, setup.train.batch_size)
        if state is None:
            state, frozen = setup.start()
        else:
            log.info("resumed at step %d of %d in %s", start, setup.total_steps, workdir)
            manifest.announce(session)
            state = with_hyper(state, setup.hyper) if changes else state
            frozen = setup.frozen()
        log.info("%s", describe(setup, workdir))
        bound = contents(frozen) | (setup.cached.prints if setup.cached else {})
        if start:
            manifest.check_frozen(workdir, bound, allow_changed)
        record.begin(start, bound)
        result = _to_the_end(setup, record, start, state, frozen, clock, asked)
        record.finish(result)
        return result


def _to_the_end(
    setup: Setup,
    record: Record,
    start: int,
    state: TrainState,
    frozen: Any,
    clock: Clock,
    asked: Callable[[], bool],
) -> dict[str, Any]:
    """The steps after `start` and what `result.json` holds; raises `Stopped`."""
    workdir, metrics = record.workdir, {}
    clock.begin(start)
    with clock:
        if start and is_due(setup, start):  # a stop during this evaluation saved before its end
            metrics = logged_evaluation(workdir, start)
            metrics = metrics or record.evaluate(start, state, frozen)
            if asked() and not metrics:
                raise _stopped(start, workdir)
            record.save(start, state, metrics)
        last = start if record.enough() else setup.total_steps
        span = range(start + 1, last + 1)
        state, measured, batch = run_steps(setup, record, state, frozen, span, clock, asked)
        with clock("checkpoint"):
            record.checkpoints.wait()
    last_step = None if batch is None else (batch, frozen)
    step = record.last_step or start
    result = result_of(setup, state, measured or metrics, clock, last_step, step)
    if best := record.best_step():
        state = record.checkpoints.restore(setup.program.state, best)
        result |= {
            "best_step": best,
            "metrics": logged_evaluation(workdir, best),
            "fingerprint": params_fingerprint(state.params),
        }
    return result


def run_steps(
    setup: Setup,
    keeper: Any,
    state: TrainState,
    frozen: Any,
    span: range,
    clock: Clock,
    asked: Callable[[], bool] = lambda: False,
) -> tuple[TrainState, Metrics, Any]:
    """The loop over the steps of `span`.

    Args:
      keeper: what becomes of the numbers: a `Record` of the run, a comparison with one
        (`bigjax.loop.replay`), or the records of many (`bigjax.loop.together`).
      state, frozen: before the first of these steps.
      asked: whether to stop; once true, the state is saved and `Stopped` raised.

    Returns:
      (state after the last step, what the last evaluation measured, the last batch).
    """
    program, workdir = setup.program, keeper.workdir
    replay_due = When(setup.check.replay_every or "never", setup.total_steps).due
    profile_due = When(setup.log.profile, setup.total_steps).due
    on_cpu = program.mesh.devices.flat[0].platform == "cpu"
    # The clocks of several processes would not agree, nor then the order of their programs.
    together = jax.process_count() > 1
    last = time.perf_counter()
    in_flight: deque[tuple[int, Any]] = deque()
    metrics: Metrics = {}
    batch = None

    def settle(limit: int) -> None:
        """Waits until at most `limit` steps are in flight, and logs the finished ones."""
        while len(in_flight) > limit:
            done, found = in_flight.popleft()
            with clock("step"):
                jax.block_until_ready(found["loss"])
            keeper.log(done, found, state, frozen)

    with contextlib.closing(keeper.batches(span.start - 1)) as batches:
        for step in span:
            with clock("input"):
                batch = next(batches)
            before = jax.tree.map(jnp.copy, state) if replay_due(step) else None
            profiled = contextlib.nullcontext()
            if profile_due(step):
                settle(0)
                profiled = jax.profiler.trace(str(workdir / "profile"))
            with profiled, clock("step"):
                state, found = program.train_step(state, batch, frozen)
                if profile_due(step):
                    jax.block_until_ready(found)
            if before is not None:
                check_again(step, program, before, batch, frozen, state)
            in_flight.append((step, found))
            took, last = time.perf_counter() - last, time.perf_counter()
            settle(0 if on_cpu and (together or took > LONG) else AHEAD)

            evaluated = is_due(setup, step)
            if evaluated:
                settle(0)
                with clock("evaluation"):
                    metrics = keeper.evaluate(step, state, frozen)
            enough = evaluated and keeper.enough()
            keeper.check()
            stop_now = asked()  # once: a request that comes during the save waits for the next step
            if keeper.save_due(step) or stop_now or enough:
                settle(0)
                with clock("checkpoint"):
                    keeper.save(step, state, metrics if evaluated else {})
                clock.mark(step)
            clock.save()
            if stop_now and (step < setup.total_steps or not metrics):
                raise _stopped(step, workdir)
            if enough:
                break
        settle(0)
    return state, metrics, batch


class Asked:
    """Whether to stop. Asked by all processes alike; once true, it stays so."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        self._stop, self._stopping = stop, False

    def __call__(self) -> bool:
        self._stopping = self._stopping or distributed.agree(self._stop())
        return self._stopping


def _stopped(step: int, workdir: Path) -> Stopped:
    return Stopped(f"stopped on request after step {step}, state saved in {workdir}")
