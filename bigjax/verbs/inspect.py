"""The verbs that look and change nothing: config, sharding, checkpoints, replay."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

from bigjax.build.assemble import assemble
from bigjax.build.classes import Words
from bigjax.build.program import build_program
from bigjax.build.references import read_models
from bigjax.config import resolve as configs
from bigjax.config.config import Config
from bigjax.config.values import TRUST_ALL, flatten
from bigjax.core.errors import RunFailed, UserError
from bigjax.loop import stages
from bigjax.loop.open import load_run
from bigjax.loop.replay import replay
from bigjax.plan import sharding_report
from bigjax.plan.shapes import train_split
from bigjax.run.checkpoint import CheckpointError, Checkpoints
from bigjax.run.text import table


def config_verb(
    raw: Any, overrides: Sequence[str], options: argparse.Namespace, stop: Callable[[], bool]
) -> None:
    """Prints every final value and where it came from."""
    if not stages.is_pipeline(raw):
        config = configs.resolve(raw, overrides)
        print(f"{show(config)}\nfingerprint {config.fingerprint}")
        return
    found, seeds, _ = stages.resolve(raw, overrides)
    for name, config in of_stage(found, options).items():
        print(f"# stage {name}, {seeds} seeds\n{show(config)}")
        print(f"fingerprint {config.fingerprint}\n")


def doctor_verb(
    raw: Any, overrides: Sequence[str], options: argparse.Namespace, stop: Callable[[], bool]
) -> None:
    """Whether this machine can be trusted (see `bigjax.doctor`); the disk is the run's."""
    from bigjax.doctor.__main__ import examine

    folder = next(path for path in options.workdir.absolute().parents if path.is_dir())
    if examine(folder, as_json=options.json):
        raise RunFailed("something is wrong with this machine: see the lines above")


def show(config: Config) -> str:
    """Every final value with where it came from, one a line."""
    rows = [
        (path, repr(value), config.origins[path]) for path, value in flatten(config.values).items()
    ]
    key_width = max(len(row[0]) for row in rows)
    value_width = min(60, max(len(row[1]) for row in rows))
    return "\n".join(f"{k:<{key_width}}  {v:<{value_width}}  {origin}" for k, v, origin in rows)


def sharding_verb(
    raw: Any, overrides: Sequence[str], options: argparse.Namespace, stop: Callable[[], bool]
) -> None:
    """Prints what lies where and what a step sends, for every stage; trains nothing."""
    found = resolved(raw, overrides, options)
    reports = {}
    for name, config in of_stage(found, options).items():
        source, there = train_split(config)
        others, words = references(config, found, options)
        program = build_program(config, source, others, words=words)
        batch_size = config.get("train.batch_size")
        reports[name] = sharding_report.report(program, source.features, batch_size)
    if options.json:
        print(json.dumps(reports.get("", reports), indent=2))
        return
    for name, report in reports.items():
        print(f"# stage {name}\n" * bool(name) + sharding_report.text(report) + "\n")
    if not there:
        print("the data is not here: shapes are those that the config says")


def resolved(raw: Any, overrides: Sequence[str], options: argparse.Namespace) -> dict[str, Config]:
    """Stage -> its config; of a single run, "" -> it."""
    if stages.is_pipeline(raw):
        return stages.resolve(raw, overrides, options.trust)[0]
    return {"": configs.resolve(raw, overrides, [TRUST_ALL] * options.trust)}


def of_stage(found: dict[str, Config], options: argparse.Namespace) -> dict[str, Config]:
    """The stages that are asked for."""
    return {n: config for n, config in found.items() if options.stage in (None, n)}


def references(
    config: Config, stage_configs: dict[str, Config], options: argparse.Namespace
) -> tuple[dict[str, Config], dict[str, Words]]:
    """(configs of the models that the method names, what is known of their outputs), by field.

    Stages need not have run; nothing is known of the outputs of one that has not.
    """
    models = read_models(config, options.workdir, stage_configs)
    others = {name: model.config for name, model in models.items()}
    return others, {name: model.words for name, model in models.items()}


def checkpoints_verb(
    raw: Any, overrides: Sequence[str], options: argparse.Namespace, stop: Callable[[], bool]
) -> None:
    """Lists the checkpoints of every run in the folder, and whether they can be trusted.

    Raises:
      UserError: there is no run.
      CheckpointError: a run has checkpoints and none of them is good.
    """
    runs = sorted(p.parent for p in options.workdir.glob("**/config.json"))
    if not runs:
        raise UserError(f"{options.workdir} holds no run; train first")
    lost = []
    for run in runs:
        checkpoints = Checkpoints(run)
        rows = checkpoints.listing(options.verify)
        checkpoints.close()
        print(f"{run}\n{table(rows, ['step', 'MiB', 'age', 'metric', 'state'])}\n")
        if rows and all(row["state"].startswith("BAD") for row in rows):
            lost.append(str(run))
    if lost:
        raise CheckpointError(f"no good checkpoint in {', '.join(lost)}")


def replay_verb(
    raw: Any, overrides: Sequence[str], options: argparse.Namespace, stop: Callable[[], bool]
) -> None:
    """Executes steps of the run in the folder again and compares with what was recorded."""
    start, steps = options.start, options.steps
    if start is None or start < 0 or (steps is not None and steps < 1):
        raise UserError("replay needs --from=STEP (a checkpoint's, or 0), and --steps of 1 or more")
    config = load_run(options.workdir, overrides, raw, options.trust)
    setup = assemble(config, options.workdir)
    print(replay(setup, options.workdir, start, steps))
