"""A sweep from a script or a notebook: what `python -m bigjax.sweep` does, in one line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.config.signature import bind, parameters
from bigjax.config.values import plain, targets
from bigjax.core.errors import UserError, needed
from bigjax.sweep import drive, results
from bigjax.sweep.describe import How, Point, Sweep, over, product
from bigjax.sweep.executors import Local
from bigjax.verbs.notebook import by_name

SAID_OTHERWISE = ("experiment", "config")  # than by a flag


def sweep(
    config: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
    workdir: str | Path,
    grid: Mapping[str, Iterable[Any]] | None = None,
    **flags: Any,
) -> Any:
    """Trains every point of a grid, or of a search, in processes of this machine; prints the table.

        bigjax.sweep(get_config, "runs/rates", {"optimizer.learning_rate": [1e-3, 1e-2]}, seeds=3)
        space = {"optimizer.learning_rate": ("log", 1e-4, 1)}
        bigjax.sweep(get_config, "runs/drawn", search=bigjax.sweep.Search(space, trials=20))

    The folder holds what the command line leaves; the same call again runs what is missing.

    Args:
      config: an experiment's config, or its `get_config`; see `bigjax.train`.
      workdir: the sweep's folder.
      grid: config key -> its values; all combinations.
      **flags: those of the command line: attributes of `Sweep` (seeds, search, points, metric,
        baseline, ...), of `describe.How` (vectorize, prune, retry_failed), of `executors.Local`
        (workers, devices).

    Returns:
      sweep.csv as a pandas table: a row a trial, with its status, seed, point and metrics.

    Raises:
      UserError: the input is wrong; the message is the line that the command line prints.
    """
    pandas = needed("pandas", "a sweep's table needs")
    what, how, where = _given(flags)
    if grid is not None:
        if "points" in what:
            raise UserError("sweep: give grid or points, not both")
        what["points"] = product(*(_points(key, values) for key, values in grid.items()))
    folder, raw = Path(os.path.expanduser(workdir)), plain(by_name(config))
    if here := next((name for name in targets(raw) if name.startswith("__main__:")), None):
        name = here.partition(":")[2]
        raise UserError(f"config: a sweep runs in other processes: import {name} from a file")
    whole, place = Sweep(folder.name, config=raw, **what), Local(**where)
    found = drive.run(whole, folder, How(**how), lambda: place)
    print(results.text_table(found))
    return pandas.read_csv(folder / "sweep.csv")


def _given(flags: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The flags of `Sweep`, of `How` and of `Local`, each as its annotation asks for.

    Raises:
      UserError: an unknown flag, or a value that it does not take.
    """
    kinds = [parameters(kind) for kind in (Sweep, How, Local)]
    known = {n: p for kind in kinds for n, p in kind.items() if n not in SAID_OTHERWISE}
    found = bind("sweep", "a sweep", known, flags)
    return [{name: found[name] for name in kind if name in flags} for kind in kinds]


def _points(key: str, values: Iterable[Any]) -> list[Point]:
    """One point a value; what NumPy made becomes Python's own."""
    own = [value.item() if isinstance(value, np.generic) else value for value in values]
    return over(key.removeprefix("config."), own)
