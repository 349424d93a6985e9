"""Many small runs at once: the one loop over a stack of training states.

Runs differ in their traced scalars, random keys, data order and frozen variables alone. Each one leaves
an ordinary run folder; only intermediate checkpoints are not written. Nothing is saved on the way: runs
that are stopped start anew.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.build.assemble import Setup, assemble, open_sources
from bigjax.build.references import named_models
from bigjax.build.together import stack, together
from bigjax.build.weights import contents
from bigjax.config.config import Config
from bigjax.config.values import canonical, flatten
from bigjax.config.when import When
from bigjax.core.adapt import BASE
from bigjax.core.errors import UserError
from bigjax.core.order import stream_of
from bigjax.core.settings import Teacher
from bigjax.core.state import params_fingerprint
from bigjax.data.pipeline import read_unmasked
from bigjax.loop.evaluate import Metrics, evaluate_due
from bigjax.loop.evaluators import check_evaluators
from bigjax.loop.record import Record
from bigjax.loop.train import Stopped, run_steps
from bigjax.run import ledger, manifest
from bigjax.run.clock import Idle

ORDER_BLOCK = 64  # steps whose sample ids are computed together


def group_key(config: Config) -> str:
    """Runs of one key can train together."""
    apart = ("seed", *config.traced, *config.references)
    flat = flatten(config.values)
    return canonical({key: value for key, value in flat.items() if key not in apart})


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
    if first.get("checkpoint.patience") or first.get("checkpoint.final") == "best":
        raise UserError("--vectorize: each run of these would end on its own: run them one by one")
    sources = open_sources(first)
    setups = [
        assemble(config, folder, sources=sources)
        for config, folder in zip(trials, folders, strict=True)
    ]
    if setups[0].cached:
        raise UserError(
            "--vectorize: config.method.cache holds one teacher's outputs; run one by one"
        )
    batch = Together(setups, folders[0])
    check_evaluators(batch.setup, folders[0])
    states, frozen = batch.start([named_models(config) for config in trials])
    steps = range(1, batch.setup.total_steps + 1)
    states, metrics, _ = run_steps(batch.setup, batch, states, frozen, steps, Idle(), stop)

    seconds = (time.perf_counter() - started) / len(trials)
    about = manifest.describe(setups[0], batch.setup.program.mesh, sources)
    host, results = jax.device_get(states), []
    final = metrics or [{} for _ in trials]
    for i, (setup, folder) in enumerate(zip(setups, folders, strict=True)):
        state = jax.tree.map(lambda x, i=i: x[i], host)
        result = {
            "step": setup.total_steps,
            "metrics": final[i] | setup.measure(setup.total_steps),
            "fingerprint": params_fingerprint(state.params),
            "seconds": round(seconds, 3),
            "together": len(trials),
        }
        results.append(result)
        kept = None if i in batch.failures else result
        _write(setup, folder, about, batch.lines[i], kept, state, batch.frozen[i])
    return results, batch.failures


class Together:
    """What the loop keeps of many runs: lines in memory until all are done.

    lines: for each run (step, metrics), as its metrics.jsonl will hold them.
    failures: position -> why the run was halted.
    frozen: for each run the fingerprints of what it reads and does not train, by name.
    """

    def __init__(self, setups: Sequence[Setup], workdir: Path) -> None:
        self.setups, self.workdir = setups, workdir
        self.setup = setup = _of_all(setups)
        self.lines: list[list[tuple[int, Metrics]]] = [[] for _ in setups]
        self.failures: dict[int, Exception] = {}
        self.frozen: list[dict[str, str]] = []
        self._log_due = When(setup.log.every, setup.total_steps).due
        self._of_seed = {one.seed: one for one in setups}  # one run for each distinct seed
        self._losses = np.zeros((2, len(setups)))  # sums and weights since the last line

    def start(self, references: Sequence[dict[str, Teacher]]) -> tuple[Any, Any]:
        """(the stacked states before step 1, the stacked frozen variables and which is whose).

        references: of each run, field of its method -> the model that it names.
        """
        begun = [one.initial() for one in self.setups]
        self.frozen = [contents({BASE: base} if base else {}) for _, base in begun]
        which, trees = {}, {}
        for name in self.setup.program.frozen:
            if name == BASE:
                which[name] = jnp.arange(len(begun))
                trees[name] = stack([base for _, base in begun])
                continue
            named = [str(found[name]) for found in references]
            distinct = list(dict.fromkeys(named))
            readers = [self.setups[named.index(folder)] for folder in distinct]
            which[name] = jnp.asarray([distinct.index(folder) for folder in named])
            read = [reader.read_frozen()[name] for reader in readers]
            trees[name] = stack(read)
            prints = [contents({name: tree}) for tree in read]
            for own, folder in zip(self.frozen, named, strict=True):
                own |= prints[distinct.index(folder)]
        return stack([state for state, _ in begun]), (which, trees)

    def batches(self, start: int) -> Iterator[tuple[jax.Array, dict]]:
        """(which seed each run has, the batches of a step, one a seed: arrays (seeds, B, ...))."""
        setup, source = self.setup, self.setup.sources["train"]
        size, total = setup.train.batch_size, setup.total_steps
        seeds = list(self._of_seed)
        seed_of = jnp.asarray([seeds.index(one.seed) for one in self.setups])
        for first in range(start, total, ORDER_BLOCK):
            steps = np.arange(first, min(first + ORDER_BLOCK, total))
            orders = [_rows(one, source, steps, size) for one in self._of_seed.values()]
            blocks = (np.stack(x, axis=1) for x in zip(*orders, strict=True))
            for ids, epochs, mask in zip(*blocks, strict=True):
                rows = read_unmasked(source, ids.ravel(), mask.ravel(), epochs.ravel())
                yield (
                    seed_of,
                    {
                        **{name: x.reshape(*ids.shape, *x.shape[1:]) for name, x in rows.items()},
                        "mask": mask,
                        "sample": ids.astype(np.int32),
                        "epoch": epochs.astype(np.int32),
                    },
                )

    def log(self, step: int, found: dict[str, Any], state: Any, frozen: Any) -> None:
        unchecked = np.zeros(len(self.lines), bool), None
        bad, halted = jax.device_get([found.pop(k, unchecked)[0] for k in ("bad", "halted")])
        self._losses += np.asarray(jax.device_get(found["loss"]), np.float64)
        due = self._log_due(step) or step == 1
        if not (due or np.any(bad)):
            return
        with np.errstate(divide="ignore", invalid="ignore"):  # NaN where nothing was weighed
            values = {
                f"train/{name}": np.asarray(total, np.float64) / np.asarray(weight, np.float64)
                for name, (total, weight) in jax.device_get(found).items()
            }
        for i, lines in enumerate(self.lines):
            if i not in self.failures and (due or bad[i]):
                own = {name: value[i].tolist() for name, value in values.items()}
                if self._losses[1, i]:
                    own["train_mean/loss"] = float(self._losses[0, i] / self._losses[1, i])
                    self._losses[:, i] = 0.0
                lines.append((step, own | ({"train/bad": 1} if bad[i] else {})))
                if halted[i]:
                    short = {name.removeprefix("train/"): v for name, v in own.items()}
                    self.failures[i] = ledger.BadNumbers(step, ledger.reason(short))

    def evaluate(self, step: int, state: Any, frozen: Any) -> list[Metrics]:
        found = evaluate_due(self.setup, state, frozen, step, self.workdir)
        assert found is not None
        for lines, metrics, setup in zip(self.lines, found, self.setups, strict=True):
            metrics |= setup.measure(step)
            lines.append((step, metrics))
        return found

    def enough(self) -> bool:
        return False

    def check(self) -> None:
        pass

    def save_due(self, step: int) -> bool:
        return False

    def save(self, step: int, state: Any, metrics: Any) -> None:
        raise Stopped(f"stopped on request after step {step}")


def _of_all(setups: Sequence[Setup]) -> Setup:
    """The first run's setup, its program that of all of them."""
    return dataclasses.replace(setups[0], program=together(setups[0].program, len(setups)))


def _rows(setup: Setup, source: Any, steps: np.ndarray, size: int) -> tuple:
    """ids, epochs, mask (S, B) of some steps of a run."""
    if setup.order is not None:
        return setup.order(steps)
    positions = steps[:, None] * size + np.arange(size)
    ids, epochs = stream_of(source)(setup.seed, positions)
    return ids, epochs, np.ones(ids.shape, np.float32)


def _write(
    setup: Setup,
    folder: Path,
    about: dict[str, Any],
    lines: Sequence[tuple[int, Metrics]],
    result: dict[str, Any] | None,
    state: Any,
    frozen: dict[str, str],
) -> None:
    """Writes a run's folder; without a result, of one that failed."""
    about = {**about, "seed": setup.seed, "config_fingerprint": setup.fingerprint}
    session = manifest.begin(folder, about, [])
    with Record(setup, folder, session, progress=False) as record:
        record.begin(0, frozen)
        for step, values in lines:
            record.write(step, values)
        if result is None:
            return
        if setup.checkpoint.every != "never":
            record.save(result["step"], jax.tree.map(jnp.asarray, state), result["metrics"])
            record.checkpoints.wait()
        record.finish(result)
