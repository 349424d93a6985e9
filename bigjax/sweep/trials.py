"""From a sweep to its trials: every config resolved and checked, every folder named. Runs nothing.

A trial's folder is named by what it computes (a hash of its config), so a sweep that is run again,
or extended, finds what is already there.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bigjax.config import resolve as configs
from bigjax.config.config import Config
from bigjax.config.values import canonical, plain
from bigjax.core.errors import UserError, did_you_mean
from bigjax.data.sources import open_splits
from bigjax.loop import stages
from bigjax.run.files import read_json
from bigjax.run.result import ended
from bigjax.sweep import choose
from bigjax.sweep.describe import Point, Sweep

FOLDER = "trials"
LONGEST_NAME = 120


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
      name: its folder under trials/, readable and unique.
      config: the run's.
      point: what sets it apart in the sweep.
      seed: its config.seed.
      needs: names of trials that must be finished first.
      in_table: False for a run that is only there because others need it.
    """

    name: str
    config: Config
    point: Point
    seed: int
    needs: tuple[str, ...] = ()
    in_table: bool = True

    def folder(self, workdir: Path) -> Path:
        return workdir / FOLDER / self.name


def load_module(name: str) -> Any:
    """The module of an experiment or a sweep.

    Raises:
      UserError: there is none.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise
        package = sys.modules.get(name.rpartition(".")[0])
        beside = pkgutil.iter_modules(package.__path__, f"{package.__name__}.") if package else ()
        near = did_you_mean(name, [module.name for module in beside])
        raise UserError(f"no experiment '{name}'{near or f' ({error})'}") from None


def load_experiment(sweep: Sweep) -> Any:
    """The raw config of a sweep's experiment.

    Raises:
      UserError: there is no such module, or it has no `get_config`.
    """
    if sweep.config is not None:
        return sweep.config
    found = load_module(sweep.experiment)
    if not hasattr(found, "get_config"):
        raise UserError(f"{sweep.experiment} has no get_config()")
    return found.get_config()


def complete(sweep: Sweep) -> Sweep:
    """The sweep with all said that it leaves to its experiment (see `bigjax.sweep.choose`).

    Raises:
      UserError: the config of its first point is wrong, or the metric says too little.
    """
    chosen, stages = _resolve(load_experiment(sweep), sweep, sweep.points[0])
    return choose.filled(sweep, stages, chosen)


def expand(sweep: Sweep, points: Sequence[Point] | None = None) -> list[Trial]:
    """The trials of a complete sweep, those that others need first; equal runs are one trial.

    Args:
      points: instead of the sweep's own.

    Raises:
      UserError: a config is wrong, a metric is not there, or a choice would be made on test data.
    """
    raw = load_experiment(sweep)
    trials: dict[str, Trial] = {}
    for point in sweep.points if points is None else points:
        try:
            chosen, resolved = _resolve(raw, sweep, point)
        except UserError as error:
            raise UserError(f"point {describe(point) or '(none)'}: {error}") from None
        choose.check(sweep, resolved[chosen])
        first = resolved[chosen].seed
        seeds = range(first, first + sweep.seeds) if isinstance(sweep.seeds, int) else sweep.seeds
        for seed in seeds:
            for trial in _runs(resolved, chosen, point, seed):
                known = trials.get(trial.name)
                if known is None or (trial.in_table and not known.in_table):
                    trials[trial.name] = trial
    return list(trials.values())


def check_data(sweep: Sweep, trials: Iterable[Trial]) -> None:
    """Opens every split that a trial will read, and checks that its schedule fits into its length.

    Raises:
      UserError: a data set or split is not there, a schedule does not fit, or what was held out of
        train is no fair sample.
    """
    lengths: dict[str, int] = {}
    for trial in trials:
        config = trial.config
        splits = dict.fromkeys(("train", *config.get("evaluate.splits")))
        key = canonical([config.get("data"), tuple(splits)])
        if key not in lengths:
            opened = open_splits(config.section("data"), splits)
            lengths[key] = len(opened["train"])
            if "validation" in opened:
                task = config.make("task")
                choose.check_held_out(sweep, task, opened["train"], opened["validation"])
        total_steps = config.section("train").total_steps(lengths[key])
        config.section("optimizer").schedule.check(total_steps)


def status(folder: Path) -> str:
    """What a trial's folder says: "done", "failed", "pruned" or "missing" (not, or not all, run)."""
    return ended(folder) or "missing"


def why_failed(folder: Path) -> str:
    """The reason, one line, of a trial that failed; "" of another."""
    return str((read_json(folder / "failure.json") or {}).get("reason", ""))


def describe(point: Mapping[str, Any]) -> str:
    """A point for people: "sgd", "learning_rate=0.001 temperature=2"."""
    return " ".join(f"{short}={text}" for short, text in _short(point))


def _resolve(raw: Any, sweep: Sweep, point: Point) -> tuple[str, dict[str, Config]]:
    """(which stage the point is of, stage -> config); an ordinary experiment is one stage ""."""
    point = dict(point)
    if not stages.is_pipeline(raw):
        if "stage" in point or sweep.stage:
            raise UserError(f"{sweep.experiment} is no pipeline: it has no stages")
        return "", {"": configs.resolve(raw, _texts({**sweep.overrides, **point}))}
    names = list(plain(raw)["stages"])
    chosen = point.pop("stage", sweep.stage or names[-1])
    if chosen not in names:
        raise UserError(f"no stage '{chosen}'{did_you_mean(str(chosen), names)}")
    own = {
        key if key.startswith("stages.") else f"stages.{chosen}.{key}": value
        for key, value in point.items()
    }
    resolved, _, _ = stages.resolve(raw, [*_texts(sweep.overrides), *_texts(own)])
    return chosen, resolved


def beside(config: Config) -> dict[str, str]:
    """The runs beside it that a run needs: config key -> path, "../NAME"."""
    return {path: other for path, other in config.references.items() if other.startswith("../")}


def _runs(resolved: Mapping[str, Config], chosen: str, point: Point, seed: int) -> list[Trial]:
    """The trial of stage `chosen` with this seed, after the trials that it needs."""
    config, needed = resolved[chosen].with_value("seed", seed), []
    for path, other in beside(config).items():
        stage = other.removeprefix("../")
        runs = _runs(resolved, stage, {"stage": stage}, seed)
        needed += [replace(trial, in_table=False) for trial in runs]
        config = config.with_value(path, f"../{runs[-1].name}")
    digest = hashlib.sha256(canonical(config.values).encode()).hexdigest()[:8]
    readable = ",".join(
        text if short == "stage" else f"{short}={text}"
        for short, text in [*_short(point), ("seed", str(seed))]
    )
    name = f"{re.sub(r'[^A-Za-z0-9_.,=+-]', '_', readable)[:LONGEST_NAME]}-{digest}"
    trial = Trial(name, config, point, seed, tuple(t.name for t in needed))
    return [*needed, trial]


def _texts(point: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value!r}" for key, value in point.items()]


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Key -> its last part, or the whole of it where two end alike."""
    keys = list(keys)
    last = [key.rpartition(".")[2] for key in keys]
    return {k: short if last.count(short) == 1 else k for k, short in zip(keys, last, strict=True)}


def _short(point: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(short, _text(point[key])) for key, short in short_names(point).items()]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
