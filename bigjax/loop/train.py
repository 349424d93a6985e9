"""The loop. Read `train` top to bottom: it is the whole truth about a run.

What is computed is in `steps.py`; what the parts are, in `program.py`; here they are called in turn.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bigjax.build.program import Program, build_program
from bigjax.build.weights import check_init, initial_state, load_teacher, teacher_config, with_hyper
from bigjax.config.resolve import Config
from bigjax.config.when import When
from bigjax.core import guard
from bigjax.core.errors import UserError
from bigjax.core.state import params_fingerprint
from bigjax.data import pipeline
from bigjax.loop import replay
from bigjax.loop.evaluate import evaluate_splits, logged_evaluation
from bigjax.mesh import distributed, sharding
from bigjax.plan import flops
from bigjax.report.page import write_report
from bigjax.run import clock as clocks
from bigjax.run import manifest, resume
from bigjax.run.checkpoint import Checkpoints, Origin
from bigjax.run.clock import Clock
from bigjax.run.files import write_json
from bigjax.run.lock import workdir_lock
from bigjax.run.writers import NoWriters, Writers, finalize

log = logging.getLogger("bigjax")

# Steps that may be dispatched ahead of the one whose result is awaited: enough to hide the host,
# few enough that simulated devices' collectives cannot starve each other.
IN_FLIGHT = 2


class Stopped(Exception):
    """The run was asked to stop and has saved its state."""


def train(
    config: Config,
    workdir: Path,
    *,
    stop: Callable[[], bool] = lambda: False,
    allow_changed: Sequence[str] = (),
) -> dict[str, Any]:
    """Trains a run in its folder, from where the folder's newest good checkpoint left it.

    With `config.check.policy` "rewind", a step of bad numbers starts it again from there, without
    that step's examples.

    Args:
      config: what to run.
      workdir: the run's folder; made if absent.
      stop: asked every step and evaluated batch; once true, the state is saved and `Stopped` raised.
      allow_changed: config keys, or "data", that may differ from the run's, see `bigjax.run.resume`.

    Returns:
      What `result.json` holds: step, metrics, fingerprint, seconds, and time (see `bigjax.run.clock`).

    Raises:
      UserError: the folder holds a run of another config or is in use, or the config cannot run here.
      CheckpointError: a save failed, or there are checkpoints and none is good.
      Stopped: see `stop`.
      BadNumbers: a loss or gradient that cannot be right (see `bigjax.core.guard`).
    """
    with workdir_lock(workdir):
        while True:
            try:
                return _train(config, workdir, stop, allow_changed)
            except guard.Rewind as bad:
                log.warning("%s; going back to the newest checkpoint, without its examples", bad)


def _train(
    config: Config, workdir: Path, stop: Callable[[], bool], allow_changed: Sequence[str]
) -> dict[str, Any]:
    clock = Clock(workdir)

    # Parts.
    leader = distributed.is_leader()  # the one process that writes files; all take part in the rest
    distributed.check_same("the config", config.fingerprint)
    config_changes = resume.check_config(config, workdir, allow_changed)
    settings, data = config.section("train"), config.section("data")
    sources = open_sources(config)
    check_init(config, workdir)
    total_steps = settings.total_steps(len(sources["train"]))
    program = build_program(config, sources["train"], teacher_config(config, workdir))
    rows = sharding.batch_sharding(program.mesh)
    evaluate_due = When(config.get("evaluate.every"), total_steps).due
    save_due = When(config.get("checkpoint.every"), total_steps).due
    log_due = When(config.get("log.every"), total_steps).due
    replay_due = When(config.get("check.replay_every") or "never", total_steps).due
    profile_due = When(config.get("log.profile"), total_steps).due

    # State: this run's newest good checkpoint, or other weights, or scratch.
    about = manifest.describe(config, program.mesh, sources)
    session = resume.begin(workdir, about, config_changes, allow_changed)
    origin = Origin(session.run, config.fingerprint, settings.batch_size, about["versions"])
    checkpoints = Checkpoints(workdir, config.section("checkpoint"), origin)
    start, state = checkpoints.restore_newest(program.state) or (0, None)
    if start == total_steps and (workdir / "result.json").exists():
        checkpoints.close()
        log.info("%s is finished (step %d)", workdir, total_steps)
        return json.loads((workdir / "result.json").read_text())
    if leader:
        resume.record(workdir, config, session, start)
    if state is None:
        state = initial_state(config, program, workdir)
    else:
        log.info("resumed at step %d of %d in %s", start, total_steps, workdir)
        resume.announce(session)
        if config_changes:
            state = with_hyper(state, config)
    frozen = load_teacher(config, program, workdir)
    describe_run(config, program, sources, total_steps, workdir)

    # Loop.
    writers = (Writers if leader else NoWriters)(
        workdir,
        tensorboard=config.get("log.tensorboard"),
        trackers=config.get("log.trackers"),
        progress=True,
        total_steps=total_steps,
    )
    writers.truncate_after(start)
    batches_after = functools.partial(
        pipeline.train_batches,
        sources["train"],
        batch_size=settings.batch_size,
        seed=config.seed,
        sharding=rows,
        workers=data.workers,
        leave_out=guard.left_out(workdir),
    )
    batches = batches_after(start_step=start)
    in_flight: deque[tuple[int, Any]] = deque()

    def settle(limit: int) -> None:
        """Waits until at most `limit` steps are in flight, and logs the finished ones that are due."""
        while len(in_flight) > limit:
            done, metrics = in_flight.popleft()
            with clock("step"):
                jax.block_until_ready(metrics["loss"])
            bad, halted = guard.flags(metrics)
            if log_due(done) or done == 1 or bad:
                values = finalize(metrics) | ({"bad": 1} if bad else {})
                writers.write(done, {f"train/{name}": value for name, value in values.items()})
            if halted:
                batch = next(batches_after(start_step=done - 1))
                found = program.diagnose(state, batch, frozen)
                check = config.section("check")
                raise guard.halt(workdir, check, done, guard.reason(values), found, batch)
            if bad:
                reason = guard.reason(values)
                log.warning("step %d: %s; its update was not applied", done, reason)

    stopping = False

    def asked() -> bool:
        """Whether to stop. Asked by all processes alike."""
        nonlocal stopping
        stopping = stopping or distributed.agree(stop())
        return stopping

    metrics: dict[str, Any] = {}
    batch = None  # of the last step
    clock.begin(start)
    with clock, writers, contextlib.closing(batches), contextlib.closing(checkpoints):
        if start and evaluate_due(start):  # a stop during this evaluation has saved before its end
            metrics = logged_evaluation(workdir, start)
            metrics = metrics or evaluate_splits(config, program, state, sources, asked)
            if asked() and not metrics:
                raise Stopped(f"stopped on request after step {start}, state saved in {workdir}")
            writers.write(start, metrics)
            checkpoints.save(start, state, metrics)
        for step in range(start + 1, total_steps + 1):
            with clock("input"):
                batch = next(batches)
            before = jax.tree.map(jnp.copy, state) if replay_due(step) else None
            if profile_due(step):
                settle(0)
                with jax.profiler.trace(str(workdir / "profile")):
                    state, step_metrics = program.train_step(state, batch, frozen)
                    jax.block_until_ready(step_metrics)
            else:
                with clock("step"):
                    state, step_metrics = program.train_step(state, batch, frozen)
            if before is not None:
                replay.check_again(step, program, before, batch, frozen, state)
            in_flight.append((step, step_metrics))
            settle(IN_FLIGHT)

            if evaluate_due(step):
                settle(0)
                with clock("evaluation"):
                    metrics = evaluate_splits(config, program, state, sources, asked)
                writers.write(step, metrics)
            checkpoints.check()
            stop_now = asked()  # once: a request that comes during the save waits for the next step
            if save_due(step) or stop_now:
                settle(0)
                with clock("checkpoint"):
                    checkpoints.save(step, state, metrics if evaluate_due(step) else {})
                clock.mark(step)
            clock.save()
            if stop_now and (step < total_steps or not metrics):
                raise Stopped(f"stopped on request after step {step}, state saved in {workdir}")
        settle(0)
        with clock("checkpoint"):
            checkpoints.wait()

    # Result.
    step_inputs = (state, batch, frozen)
    spent = clocks.summary(
        clock,
        steps=total_steps,
        batch_size=settings.batch_size,
        flops=flops.of_step(program.train_step, program.formula, *step_inputs),
        mesh=program.mesh,
    )
    result = {
        "step": total_steps,
        "metrics": metrics,
        "fingerprint": params_fingerprint(state.params),
        "seconds": round(spent["wall"], 3),
        "time": spent,
    }
    if leader:
        write_json(workdir / "result.json", result)
        write_report(workdir)
    return result


def open_sources(config: Config) -> dict[str, Any]:
    """The train split and every split that is evaluated."""
    data = config.section("data")
    names = dict.fromkeys(("train", *config.get("evaluate.splits")))
    sources = {name: data.source.open(data.splits[name]) for name in names}
    check_vocabulary(config, sources["train"])
    return sources


def check_vocabulary(config: Config, source: Any) -> None:
    """Refuses a tokenizer that is not the model's. Up to 255 rows more than tokens are padding."""
    tokens, rows = getattr(source, "vocab_size", None), config.values["model"].get("vocab")
    if tokens is not None and rows is not None and not tokens <= rows < tokens + 256:
        raise UserError(
            f"config.model.vocab: {rows}, but the tokenizer of the data has {tokens} tokens"
        )


def describe_run(
    config: Config, program: Program, sources: dict[str, Any], total_steps: int, workdir: Path
) -> None:
    """One line: what is about to run, on what."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(program.state.params))
    mesh = (
        " x ".join(f"{axis} {n}" for axis, n in program.mesh.shape.items() if n > 1) or "one device"
    )
    settings = config.section("train")
    per_device = sharding.check_batch(
        "config.train.batch_size", settings.batch_size, settings.accumulate, program.mesh
    )
    log.info(
        "%s: %s, %s parameters; %s examples; %d steps of %d (%d a device); %s %s",
        workdir,
        config.get("model.type"),
        f"{parameters:,}",
        f"{len(sources['train']):,}",
        total_steps,
        settings.batch_size,
        per_device,
        program.mesh.devices.flat[0].device_kind,
        mesh,
    )
