"""The loop. Read `train` top to bottom: it is the whole truth about a run.

What is computed is in `steps.py`; what the parts are, in `program.py`; here they are called in turn.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from bigjax import config as configs
from bigjax import distributed, guard, manifest, sharding
from bigjax.checkpoint import Checkpoints
from bigjax.config import Config
from bigjax.data import pipeline
from bigjax.errors import UserError
from bigjax.evaluate import evaluate_splits
from bigjax.files import write_json
from bigjax.metrics import NoWriters, Writers, finalize
from bigjax.program import Program, build_program, initial_state, load_teacher, teacher_config
from bigjax.report import write_report
from bigjax.state import params_fingerprint
from bigjax.when import When

log = logging.getLogger("bigjax")

# Steps that may be dispatched ahead of the one whose result is awaited: enough to hide the host,
# few enough that simulated devices' collectives cannot starve each other.
IN_FLIGHT = 2


class Stopped(Exception):
    """The run was asked to stop and has saved its state."""


def train(
    config: Config, workdir: Path, *, stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Trains a run in its folder, from where the folder's newest checkpoint left it.

    With `config.check.policy` "rewind", a step of bad numbers starts it again from there, without
    that step's examples.

    Args:
      config: what to run.
      workdir: the run's folder; made if absent.
      stop: asked every step; once true, the state is saved and `Stopped` is raised.

    Returns:
      What `result.json` holds: step, metrics, fingerprint, seconds.

    Raises:
      UserError: the folder holds a run of another config, or the config cannot run here.
      Stopped: see `stop`.
      BadNumbers: a loss or gradient that cannot be right (see `bigjax.guard`).
    """
    while True:
        try:
            return _train(config, workdir, stop)
        except guard.Rewind as bad:
            log.warning("%s; going back to the newest checkpoint, without its examples", bad)


def _train(config: Config, workdir: Path, stop: Callable[[], bool]) -> dict[str, Any]:
    started = time.perf_counter()

    # Parts.
    leader = distributed.is_leader()  # the one process that writes files; all take part in the rest
    distributed.check_same("the config", config.fingerprint)
    check_same_run(config, workdir)
    settings, data = config.section("train"), config.section("data")
    sources = open_sources(config)
    total_steps = settings.total_steps(len(sources["train"]))
    program = build_program(config, sources["train"], teacher_config(config, workdir))
    rows = sharding.batch_sharding(program.mesh)
    evaluate_due = When(config.get("evaluate.every"), total_steps).due
    save_due = When(config.get("checkpoint.every"), total_steps).due
    log_due = When(config.get("log.every"), total_steps).due
    profile_due = When(config.get("log.profile"), total_steps).due

    # State: this run's newest checkpoint, or other weights, or scratch.
    checkpoints = Checkpoints(workdir, config.section("checkpoint"))
    start = checkpoints.latest()
    if leader:
        write_json(workdir / "config.json", config.values)
        write_json(workdir / "manifest.json", manifest.describe(config, program.mesh, sources))
    if start is None:
        start, state = 0, initial_state(config, program, workdir)
    else:
        state = checkpoints.restore(program.state, start)
        log.info("resumed at step %d of %d in %s", start, total_steps, workdir)
    if start == total_steps and (workdir / "result.json").exists():
        checkpoints.close()
        log.info("%s is finished (step %d)", workdir, total_steps)
        return json.loads((workdir / "result.json").read_text())
    frozen = load_teacher(config, program, workdir)
    describe_run(config, program, sources, total_steps, workdir)

    # Loop.
    writers = (Writers if leader else NoWriters)(
        workdir, tensorboard=config.get("log.tensorboard"), progress=True, total_steps=total_steps
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
            jax.block_until_ready(metrics["loss"])
            bad, halted = guard.flags(metrics)
            if log_due(done) or done == 1 or bad:
                values = finalize(metrics) | ({"bad": 1} if bad else {})
                writers.write(done, {f"train/{name}": value for name, value in values.items()})
            if halted:
                batch = next(batches_after(start_step=done - 1))
                found = program.diagnose(state, batch, frozen)
                checkpoints.close()
                check = config.section("check")
                raise guard.halt(workdir, check, done, guard.reason(values), found, batch)
            if bad:
                reason = guard.reason(values)
                log.warning("step %d: %s; its update was not applied", done, reason)

    metrics: dict[str, Any] = {}
    with writers, contextlib.closing(batches):
        for step in range(start + 1, total_steps + 1):
            batch = next(batches)
            if profile_due(step):
                settle(0)
                with jax.profiler.trace(str(workdir / "profile")):
                    state, step_metrics = program.train_step(state, batch, frozen)
                    jax.block_until_ready(step_metrics)
            else:
                state, step_metrics = program.train_step(state, batch, frozen)
            in_flight.append((step, step_metrics))
            settle(IN_FLIGHT)

            if evaluate_due(step):
                settle(0)
                metrics = evaluate_splits(config, program, state, sources)
                writers.write(step, metrics)
            stopping = distributed.agree(stop())
            if save_due(step) or stopping:
                settle(0)
                checkpoints.save(step, state, metrics if evaluate_due(step) else {})
            if stopping and step < total_steps:
                checkpoints.close()
                raise Stopped(f"stopped on request after step {step}, state saved in {workdir}")
        settle(0)
    checkpoints.close()

    # Result.
    result = {
        "step": total_steps,
        "metrics": metrics,
        "fingerprint": params_fingerprint(state.params),
        "seconds": round(time.perf_counter() - started, 3),
    }
    if leader:
        write_json(workdir / "result.json", result)
        write_report(workdir)
    return result


def open_sources(config: Config) -> dict[str, Any]:
    """The train split and every split that is evaluated."""
    data = config.section("data")
    names = dict.fromkeys(("train", *config.get("evaluate.splits")))
    return {name: data.source.open(data.splits[name]) for name in names}


def check_same_run(config: Config, workdir: Path) -> None:
    """Refuses to go on with a run whose config differs in a key that changes what is computed."""
    path = workdir / "config.json"
    if not path.exists():
        return
    changed = configs.difference(configs.load(path), config, ignore=configs.FREE_ON_RESUME)
    if changed:
        raise UserError(
            f"{workdir} holds a run of another config; changed: {'; '.join(changed)}. "
            "Use the old values or another --workdir"
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
