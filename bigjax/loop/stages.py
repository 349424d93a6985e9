"""Experiments made of several runs: stages in order, over several seeds, and the table they end in.

A pipeline is a config with `stages` (name -> ordinary config), `seeds` and `table`. The run of stage
S with seed number i lies in `WORKDIR/seed<i>/S`: an ordinary run, which resumes by itself. A stage
names an earlier one by "../NAME", as a teacher or for initial weights.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bigjax.build.references import read_models
from bigjax.config import resolve as configs
from bigjax.config.config import Config
from bigjax.config.values import TRUST_ALL, plain
from bigjax.core.errors import UserError, did_you_mean
from bigjax.loop.train import train
from bigjax.mesh import distributed
from bigjax.report.page import write_pipeline_report
from bigjax.run.files import write_json
from bigjax.run.text import table

log = logging.getLogger("bigjax")

KEYS = ("stages", "seeds", "table")


def pipeline(stages: Mapping[str, Any], *, seeds: int = 1, table: Sequence[str] = ()) -> Any:
    """The config of a pipeline: stages in the order given.

    Args:
      stages: name -> config of an ordinary run.
      seeds: how often the whole pipeline runs, each time with another seed.
      table: metrics such as "eval/test/accuracy" that the final table compares.
    """
    in_order = ConfigDict(dict(stages), sort_keys=False)
    return ConfigDict({"stages": in_order, "seeds": seeds, "table": tuple(table)})


def is_pipeline(raw: Mapping[str, Any]) -> bool:
    return "stages" in raw


def resolve(
    raw: Mapping[str, Any], overrides: Sequence[str], trust: bool = False
) -> tuple[dict[str, Config], int, tuple]:
    """The checked configs of all stages, the number of seeds, and the metrics of the final table.

    An override of `stages.NAME.KEY` is for one stage, one of `seeds` for the pipeline, and any other
    KEY for every stage.

    Raises:
      UserError: as `config.resolve`; a stage that names no earlier stage.
    """
    values = plain(raw)
    for key in values:
        if key not in KEYS:
            raise UserError(
                f"config.{key}: a pipeline has {', '.join(KEYS)}{did_you_mean(key, KEYS)}"
            )
    seeds, per_stage = _split(values, overrides)
    stages = {
        name: configs.resolve(values["stages"][name], texts) for name, texts in per_stage.items()
    }
    _check_references(stages)
    # A stage reads the folders of others: what any of them names, the user has named.
    named = frozenset([TRUST_ALL] * trust).union(*(s.trusted for s in stages.values()))
    stages = {name: dataclasses.replace(stage, trusted=named) for name, stage in stages.items()}
    return stages, seeds, tuple(values.get("table", ()))


def one_stage(
    raw: Mapping[str, Any], overrides: Sequence[str], stage: str
) -> tuple[Any, list[str], Path]:
    """(raw config, its overrides, folder below the pipeline's) of one stage's run.

    stage: "NAME", of seed 0, or "seed2/NAME".

    Raises:
      UserError: there is no such stage; or the config is no pipeline.
    """
    if not is_pipeline(raw):
        raise UserError(f"--stage={stage}: this experiment is one run, not a pipeline")
    values = plain(raw)
    seeds, per_stage = _split(values, overrides)
    seed, _, name = stage.rpartition("/")
    if name not in per_stage:
        near = did_you_mean(name, per_stage)
        raise UserError(f"--stage={stage}: no such stage{near}; stages: {', '.join(per_stage)}")
    known = [f"seed{i}" for i in range(seeds)]
    if seed and seed not in known:
        raise UserError(f"--stage={stage}: the seeds are seed0 to {known[-1]}")
    return values["stages"][name], per_stage[name], Path(seed or "seed0", name)


def _split(values: Mapping[str, Any], overrides: Sequence[str]) -> tuple[int, dict[str, list[str]]]:
    """The number of seeds, and the overrides of each stage."""
    seeds = values.get("seeds", 1)
    per_stage: dict[str, list[str]] = {name: [] for name in values["stages"]}
    for text in overrides:
        path, _, value = text.partition("=")
        if path == "seeds":
            seeds = int(value) if value.isdecimal() and len(value) < 6 else 0
            continue
        chosen = list(per_stage)
        if path.startswith("stages."):
            name, _, rest = path.removeprefix("stages.").partition(".")
            if name not in per_stage:
                raise UserError(
                    f"--config.{path}: no stage '{name}'{did_you_mean(name, per_stage)}"
                )
            chosen, text = [name], f"{rest}={value}"
        for name in chosen:
            per_stage[name].append(text)
    if not isinstance(seeds, int) or seeds < 1:
        raise UserError("config.seeds: must be a whole number of at least 1")
    return seeds, per_stage


def train_pipeline(
    raw: Mapping[str, Any],
    overrides: Sequence[str],
    workdir: Path,
    stop: Callable[[], bool],
    allow_changed: Sequence[str] = (),
    trust: bool = False,
    label: Mapping[str, Any] | None = None,
) -> str:
    """Runs every stage with every seed and returns the final table as text."""
    stages, seeds, columns = resolve(raw, overrides, trust)
    for name, stage in stages.items():  # a teacher that cannot be, before the first stage trains
        read_models(stage, workdir / "seed0" / name, stages)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in stages}
    folders = {f"seed{i}/{name}": (i, name) for i in range(seeds) for name in stages}
    for folder, (index, name) in folders.items():
        seeded = stages[name].with_value("seed", stages[name].seed + index)
        place = workdir / folder
        result = train(seeded, place, stop=stop, allow_changed=allow_changed, label=label)
        results[name].append(result["metrics"])
        rows = _rows(results, columns)
        if distributed.is_leader():  # after each stage, so that a long pipeline can be watched
            runs = {folder: folder for folder in folders}
            write_pipeline_report(workdir, workdir.name, rows, runs)
    if distributed.is_leader():
        write_json(workdir / "result.json", {"stages": results})
    names = ["stage", *(column.split("/")[-1] for column in columns)]
    plural = "s" if seeds > 1 else ""
    return f"{table(rows, names)}\n({seeds} seed{plural}; ± is the standard deviation)\nreport: {workdir / 'report.html'}"


def _rows(
    results: Mapping[str, Sequence[dict[str, Any]]], columns: Sequence[str]
) -> list[dict[str, Any]]:
    """A row a stage: of each column's metric the numbers of all seeds so far."""
    return [
        {
            "stage": name.replace("_", " "),
            **{
                column.split("/")[-1]: [metrics[column] for metrics in runs]
                for column in columns
                if runs and all(column in metrics for metrics in runs)  # stages may differ in task
            },
        }
        for name, runs in results.items()
    ]


def _check_references(stages: Mapping[str, Config]) -> None:
    earlier: list[str] = []
    for name, stage in stages.items():
        for path, other in stage.references.items():
            if other.startswith("../") and other.removeprefix("../") not in earlier:
                raise UserError(
                    f"config.stages.{name}.{path}: '{other}' names no earlier stage; "
                    f"earlier: {', '.join(earlier) or 'none'}"
                )
        earlier.append(name)
