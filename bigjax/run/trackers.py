"""Weights & Biases and MLflow, for `config.log.trackers`: both write into the run's folder, offline.

Optional packages, each behind the same two functions. What they hold is a copy: metrics.jsonl is
the record. Each start of a run is a tracker's run of its own, so no step is rewritten.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bigjax.config.resolve import flatten
from bigjax.core.errors import UserError, did_you_mean, to_install


class Tracker(NamedTuple):
    """Attributes: log(step, scalars); close()."""

    log: Callable[[int, Mapping[str, float]], None]
    close: Callable[[], None]


def open_tracker(name: str, workdir: Path) -> Tracker:
    """Starts a run of tracker `name`, with the values of the folder's config.json."""
    path = workdir / "config.json"
    values = flatten(json.loads(path.read_text())) if path.exists() else {}
    return TRACKERS[name](workdir, values)


def check(names: Sequence[str]) -> None:
    """Raises `UserError` for a tracker that there is not, or whose package is not installed.

    Touches no file: to be called before the run's folder is made.
    """
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"config.log.trackers: no '{name}'{did_you_mean(name, TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"config.log.trackers: '{name}' needs {to_install(name)}")


def _wandb(workdir: Path, values: Mapping[str, Any]) -> Tracker:
    """Weights & Biases, in WORKDIR/wandb; `wandb sync WORKDIR/wandb/offline-*` uploads it."""
    import wandb

    run = wandb.init(
        mode="offline",
        dir=str(workdir),
        project="bigjax",
        name=workdir.absolute().name,
        config=dict(values),
        settings=wandb.Settings(silent=True, console="off"),
    )
    return Tracker(lambda step, scalars: run.log(dict(scalars), step=step), run.finish)


def _mlflow(workdir: Path, values: Mapping[str, Any]) -> Tracker:
    """MLflow, in WORKDIR/mlflow; `mlflow ui --backend-store-uri WORKDIR/mlflow` shows it."""
    # MLflow 3 would rather have a database, and opens a folder only when told that one is meant.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient((workdir.absolute() / "mlflow").as_uri())
    found = client.get_experiment_by_name("bigjax")
    experiment = found.experiment_id if found else client.create_experiment("bigjax")
    run = client.create_run(experiment, run_name=workdir.absolute().name).info.run_id
    client.log_batch(run, params=[Param(key, str(value)) for key, value in values.items()])

    def log(step: int, scalars: Mapping[str, float]) -> None:
        client.log_batch(run, [Metric(k, v, 0, step) for k, v in scalars.items()])

    return Tracker(log, lambda: client.set_terminated(run))


TRACKERS = {"wandb": _wandb, "mlflow": _mlflow}
