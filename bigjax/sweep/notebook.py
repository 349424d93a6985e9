"""A sweep from a script or a notebook: what `python -m bigjax.sweep` does, in one line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.config.resolve import plain
from bigjax.config.signature import parameters
from bigjax.config.values import targets
from bigjax.core.errors import UserError, did_you_mean
from bigjax.sweep import __main__ as command
from bigjax.sweep import results
from bigjax.sweep.describe import Sweep, over, product
from bigjax.sweep.executors import Local
from bigjax.sweep.flags import How
from bigjax.sweep.trials import complete
from bigjax.verbs.notebook import by_name


def sweep(
    config: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
    workdir: str | Path,
    grid: Mapping[str, Iterable[Any]] | None = None,
    *,
    workers: int | None = None,
    devices: int = 1,
    vectorize: int | bool | None = None,
    prune: str | None = None,
    retry_failed: bool = False,
    **what: Any,
) -> Any:
    """Trains every point of a grid, or of a search, in processes of this machine; prints the table.

        bigjax.sweep(get_config, "runs/rates", {"optimizer.learning_rate": [1e-3, 1e-2]}, seeds=3)
        bigjax.sweep(get_config, "runs/drawn", search=Search({"optimizer.learning_rate": ("log", 1e-4, 1)}, 9))

    The folder holds what the command line leaves; the same call again runs what is missing.

    Args:
      config: an experiment's config, or its `get_config`; see `bigjax.train`.
      workdir: the sweep's folder.
      grid: config key -> its values; all combinations.
      workers, devices: as of `bigjax.sweep.executors.Local`.
      vectorize, prune, retry_failed: as of `bigjax.sweep.flags.How`.
      **what: attributes of `bigjax.sweep.Sweep`: seeds, search, points, metric, baseline, ...

    Returns:
      sweep.csv as a pandas table: a row a trial, with its status, seed, point and metrics.

    Raises:
      UserError: the input is wrong; the message is the line that the command line prints.
    """
    try:
        import pandas
    except ImportError:
        raise UserError("a sweep's table needs pandas: pip install pandas") from None
    known = [name for name in parameters(Sweep) if name not in ("experiment", "config")]
    if wrong := next((name for name in what if name not in known), None):
        raise UserError(f"sweep: no '{wrong}'{did_you_mean(wrong, known)}; {', '.join(known)}")
    if grid and "points" in what:
        raise UserError("sweep: give grid or points, not both")
    if grid:
        lists = [
            over(
                key.removeprefix("config."),
                [v.item() if isinstance(v, np.generic) else v for v in vs],
            )
            for key, vs in grid.items()
        ]
        what["points"] = product(*lists)
    folder, raw = Path(os.path.expanduser(workdir)), plain(by_name(config))
    if here := next((name for name in targets(raw) if name.startswith("__main__:")), None):
        name = here.partition(":")[2]
        raise UserError(f"config: a sweep runs in other processes: import {name} from a file")
    whole = complete(Sweep(folder.name, config=raw, **what))
    how = How(vectorize, retry_failed, prune)
    asked = {"workers": workers, "devices": devices}
    found = command.run(whole, how, Local(workers, devices), folder, asked, lambda: False)
    print(results.text_table(found))
    return pandas.read_csv(folder / "sweep.csv")
