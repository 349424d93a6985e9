"""Many small trials at once: the same pure train step, mapped over a stack of training states.

Trials differ in their traced scalars, random keys, data order and teachers' weights alone. Each one
leaves an ordinary run folder; only intermediate checkpoints are not written. Nothing is saved on the
way: trials that are stopped start anew.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.build.program import Program, build_program
from bigjax.build.weights import initial_state, load_teacher, teacher_config
from bigjax.config import resolve as configs
from bigjax.config.resolve import TRACED, Config
from bigjax.config.when import When
from bigjax.core.errors import UserError
from bigjax.core.state import params_fingerprint
from bigjax.data.order import sample_ids
from bigjax.loop.evaluate import eval_batches
from bigjax.loop.train import Stopped, open_sources
from bigjax.report.page import write_report
from bigjax.run import ledger, manifest
from bigjax.run.checkpoint import Checkpoints, Origin
from bigjax.run.files import write_json
from bigjax.run.writers import Writers

ORDER_BLOCK = 64  # steps whose sample ids are computed together
IN_FLIGHT = 2  # steps dispatched ahead of the one whose metrics are awaited
Lines = list[tuple[int, dict[str, Any]]]  # (step, metrics), as metrics.jsonl will hold them


def group_key(config: Config) -> str:
    """Trials of one key can run together."""
    flat = configs.flatten(config.values)
    apart = (*TRACED, "distill.teacher", "init.source")
    return configs.canonical({key: value for key, value in flat.items() if key not in apart})


def train_together(
    trials: Sequence[Config], folders: Sequence[Path], *, stop: Callable[[], bool]
) -> tuple[list[dict[str, Any]], dict[int, Exception]]:
    """Trains runs of one `group_key` at once and writes each one's folder.

    Args:
      trials: N configs.
      folders: N run folders.
      stop: asked every step; once true, `Stopped` is raised and nothing is kept.

    Returns:
      (what each one's `result.json` holds, the trials that failed: position -> why). A failed
      trial's folder has no result.

    Raises:
      UserError: the trials cannot run together.
    """
    started, first = time.perf_counter(), trials[0]
    if len({group_key(config) for config in trials}) > 1:
        raise UserError("these trials differ in more than traced scalars: run them one by one")
    if first.get("check.policy") == "rewind" or first.get("check.replay_every"):
        raise UserError("--vectorize: config.check can neither rewind nor replay; run one by one")
    sources = open_sources(first)
    settings, source = first.section("train"), sources["train"]
    total_steps = settings.total_steps(len(source))
    program = build_program(first, source, teacher_config(first, folders[0]))
    states = _stack(
        [initial_state(config, program, f) for config, f in zip(trials, folders, strict=True)]
    )
    frozen, teacher_of = _teachers(trials, folders, program)
    seeds = list(dict.fromkeys(config.seed for config in trials))
    seed_of = jnp.asarray([seeds.index(config.seed) for config in trials])

    train_step = _mapped_train_step(program.train_step)
    evaluate_due = When(first.get("evaluate.every"), total_steps).due
    log_due = When(first.get("log.every"), total_steps).due
    lines: list[Lines] = [[] for _ in trials]
    failures: dict[int, Exception] = {}
    in_flight: deque[tuple[int, Any]] = deque()
    unchecked = np.zeros(len(trials), bool), None

    def settle(limit: int) -> None:
        while len(in_flight) > limit:
            step, metrics = in_flight.popleft()
            bad, halted = jax.device_get([metrics.pop(k, unchecked)[0] for k in ("bad", "halted")])
            due = log_due(step) or step == 1
            if not (due or bad.any()):
                continue
            values = {
                f"train/{name}": np.asarray(total, np.float64) / np.asarray(weight, np.float64)
                for name, (total, weight) in jax.device_get(metrics).items()
            }
            for i in range(len(trials)):
                if i not in failures and (due or bad[i]):
                    own = {name: value[i].tolist() for name, value in values.items()}
                    lines[i].append((step, own | ({"train/bad": 1} if bad[i] else {})))
                    if halted[i]:
                        short = {name.removeprefix("train/"): v for name, v in own.items()}
                        failures[i] = ledger.BadNumbers(step, ledger.reason(short))

    final: list[dict[str, Any]] = [{} for _ in trials]
    batches_of_steps = _batches(source, seeds, settings.batch_size, total_steps)
    for step, batches in enumerate(batches_of_steps, start=1):
        states, metrics = train_step(states, seed_of, teacher_of, batches, frozen)
        in_flight.append((step, metrics))
        settle(IN_FLIGHT)
        if evaluate_due(step):
            settle(0)
            final = _evaluate(first, program, states, sources, len(trials))
            for i, values in enumerate(final):
                lines[i].append((step, values))
        if stop():
            raise Stopped(f"stopped on request after step {step}")
    settle(0)
    seconds = (time.perf_counter() - started) / len(trials)

    about = manifest.describe(first, program.mesh, sources)
    host, results = jax.device_get(states), []
    for i, (config, folder) in enumerate(zip(trials, folders, strict=True)):
        state = jax.tree.map(lambda x, i=i: x[i], host)
        result = {
            "step": total_steps,
            "metrics": final[i],
            "fingerprint": params_fingerprint(state.params),
            "seconds": round(seconds, 3),
            "together": len(trials),
        }
        results.append(result)
        _write(folder, config, about, lines[i], None if i in failures else result, state)
    return results, failures


def mapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of the first argument's leading axis, the other arguments shared. Pure.

    Through `jax.vmap`, whose numbers differ from single calls by rounding. On CPUs one after another
    within the program instead: as fast there, and bit for bit the same numbers.
    """
    if jax.default_backend() == "cpu":
        return lambda stack, *shared: jax.lax.map(lambda own: function(own, *shared), stack)
    return lambda stack, *shared: jax.vmap(lambda own: function(own, *shared))(stack)


@functools.cache
def _mapped_train_step(train_step: Callable[..., Any]) -> Callable[..., Any]:
    """The jitted step of a stack of states; later groups of as many trials find it compiled."""

    def one(own: tuple[Any, jax.Array, jax.Array], batches: Any, frozen: Any):
        state, seed, teacher = own
        batch, taught = jax.tree.map(lambda x: x[seed], batches), None
        if frozen is not None:
            taught = jax.tree.map(lambda x: x[teacher], frozen)
        return train_step(state, batch, taught)

    def step(states: Any, seeds: jax.Array, teachers: jax.Array, batches: Any, frozen: Any):
        return mapped(one)((states, seeds, teachers), batches, frozen)

    return jax.jit(step, donate_argnums=0)


@functools.cache
def _mapped_eval_step(eval_step: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(mapped(eval_step))


def _write(
    folder: Path,
    config: Config,
    about: dict[str, Any],
    lines: Lines,
    result: dict[str, Any] | None,
    state: Any,
) -> None:
    """Writes a run's folder; without a result, of one that failed."""
    about = {**about, "seed": config.seed, "config_fingerprint": config.fingerprint}
    session = manifest.begin(folder, about, [])
    manifest.record(folder, config, session, 0)
    with Writers(
        folder,
        tensorboard=config.get("log.tensorboard"),
        trackers=config.get("log.trackers"),
        progress=False,
        total_steps=0,
    ) as writers:
        writers.truncate_after(0)
        for step, values in lines:
            writers.write(step, values)
    if result is None:
        return
    if config.get("checkpoint.every") != "never":
        size, versions = config.get("train.batch_size"), about["versions"]
        origin = Origin(session.run, config.fingerprint, size, versions)
        checkpoints = Checkpoints(folder, config.section("checkpoint"), origin)
        checkpoints.save(result["step"], jax.tree.map(jnp.asarray, state), result["metrics"])
        checkpoints.close()
    write_json(folder / "result.json", result)
    write_report(folder)


def _stack(trees: Sequence[Any]) -> Any:
    """Trees of arrays as one tree with a new leading axis, put together on the host."""
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *jax.device_get(list(trees)))


def _teachers(
    trials: Sequence[Config], folders: Sequence[Path], program: Program
) -> tuple[Any, jax.Array]:
    """(the distinct teachers' variables, stacked, or None; which one each trial has (N,))."""
    if program.teacher is None:
        return None, jnp.zeros(len(trials), jnp.int32)
    paths = [config.get("distill.teacher") for config in trials]
    distinct = list(dict.fromkeys(paths))
    loaded = [
        load_teacher(trials[paths.index(path)], program, folders[paths.index(path)])
        for path in distinct
    ]
    return _stack(loaded), jnp.asarray([distinct.index(path) for path in paths])


def _batches(source: Any, seeds: Sequence[int], size: int, steps: int) -> Iterator[dict]:
    """The batches of every step, one a seed: arrays (seeds, B, ...)."""
    for start in range(0, steps, ORDER_BLOCK):
        block = np.arange(start, min(start + ORDER_BLOCK, steps))[:, None] * size + np.arange(size)
        orders = [sample_ids(seed, block, len(source)) for seed in seeds]
        ids, epochs = (np.stack(x, axis=1) for x in zip(*orders, strict=True))
        for step_ids, step_epochs in zip(ids, epochs, strict=True):
            rows = source.read(step_ids.ravel())
            yield {
                **{name: x.reshape(*step_ids.shape, *x.shape[1:]) for name, x in rows.items()},
                "mask": np.ones(step_ids.shape, np.float32),
                "sample": step_ids.astype(np.int32),
                "epoch": step_epochs.astype(np.int32),
            }


def _evaluate(
    config: Config, program: Program, states: Any, sources: dict[str, Any], count: int
) -> list[dict[str, Any]]:
    """The metrics of every evaluated split, for each of the stacked states."""
    found: list[dict[str, Any]] = [{} for _ in range(count)]
    eval_step = _mapped_eval_step(program.eval_step)
    for split in config.get("evaluate.splits"):
        totals, rows = None, []
        for batch in eval_batches(config, program, sources[split]):
            statistics, collected = jax.device_get(eval_step(states, batch))
            statistics = jax.tree.map(lambda x: np.asarray(x, np.float64), statistics)
            totals = statistics if totals is None else jax.tree.map(np.add, totals, statistics)
            rows.append(collected)
        for i in range(count):
            own = {
                name: np.concatenate([r[name][i][r["mask"][i] > 0] for r in rows])
                for name in rows[0]
                if name != "mask"
            }
            values = program.task.summarize(jax.tree.map(lambda x, i=i: x[i], totals), own)
            found[i] |= {f"eval/{split}/{name}": value for name, value in values.items()}
    return found
