"""The verbs of an experiment: train, evaluate, predict, config. Each is one function from options.

A new verb is one function here and one line in `VERBS`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bigjax.build.program import Program, build_program
from bigjax.build.weights import check_init, initial_state, teacher_config
from bigjax.config import resolve as configs
from bigjax.config.resolve import Config
from bigjax.core.errors import UserError, did_you_mean
from bigjax.data import inputs
from bigjax.data.sources import Arrays
from bigjax.loop import stages
from bigjax.loop.evaluate import eval_batches, evaluate
from bigjax.loop.replay import replay
from bigjax.loop.train import open_sources, train
from bigjax.mesh import distributed
from bigjax.plan import sharding_report
from bigjax.pretrained.export import export_folder
from bigjax.pretrained.families import family_of_type
from bigjax.run import clock
from bigjax.run.checkpoint import CheckpointError, Checkpoints
from bigjax.run.text import metrics_table, table

log = logging.getLogger("bigjax")


def train_verb(
    raw: Any, overrides: Sequence[str], options: argparse.Namespace, stop: Callable[[], bool]
) -> None:
    """Trains, or goes on with, the run in the folder; ends in a table."""
    if stages.is_pipeline(raw):
        allowed = options.allow_changed
        print(stages.train_pipeline(raw, overrides, options.workdir, stop, allowed))
        return
    config = configs.resolve(raw, overrides)
    result = train(config, options.workdir, stop=stop, allow_changed=options.allow_changed)
    print(metrics_table(result["metrics"]))
    if "time" in result:
        print("\n" + table(clock.rows(result["time"]), ["time", "seconds", "share"]))
        print("\n".join(clock.lines(result["time"])))
    print(f"report: {options.workdir / 'report.html'}")


def evaluate_verb(
    raw: Any, overrides: Sequence[str], options: argparse.Namespace, stop: Callable[[], bool]
) -> None:
    """Evaluates the newest checkpoint of the run in the folder."""
    config, program, state, sources = open_run(options.workdir, overrides, options.split, raw)
    for split in config.get("evaluate.splits"):
        values = evaluate(config, program, state, sources[split])
        print(metrics_table({f"eval/{split}/{name}": value for name, value in values.items()}))


def predict_verb(
    raw: Any, overrides: Sequence[str], options: argparse.Namespace, stop: Callable[[], bool]
) -> None:
    """Writes one JSON object a row of the input; bad rows are reported by number and left out."""
    if options.input is None:
        raise UserError("predict needs --input=FILE (.npz, .csv, .txt, or a folder of png/jpg)")
    config, program, state, sources = open_run(options.workdir, overrides, None, raw)
    train_source = sources["train"]
    rows = inputs.read(options.input, train_source, program.task.input)
    for problem in rows.problems:
        print(f"{options.input}: {problem}", file=sys.stderr)
    if len(rows.source) == 0:
        raise UserError(f"{options.input}: no row can be predicted")
    present = _presenter(config, program, state, train_source)
    with contextlib.ExitStack() as stack:
        to_file = options.output and distributed.is_leader()
        out = stack.enter_context(open(options.output, "w")) if to_file else sys.stdout
        numbers = iter(rows.numbers)
        for columns in predictions(config, program, state, rows.source):
            for line in inputs.json_rows(present(columns), train_source.class_names):
                out.write(json.dumps({"row": next(numbers), **line}) + "\n")


def predictions(
    config: Config, program: Program, state: Any, source: Any
) -> Iterator[dict[str, dict[str, np.ndarray]]]:
    """For each batch of a source, without padding: {"batch": what was read, "predicted": ...}."""
    for batch in eval_batches(config, program, source):
        found = {"batch": batch, "predicted": program.predict_step(state, batch)}
        found = jax.tree.map(distributed.whole, found)
        real = found["batch"]["mask"] > 0
        yield jax.tree.map(lambda column, real=real: column[real], found)


def _presenter(config: Config, program: Program, state: Any, source: Any) -> Callable[..., Any]:
    """What turns an item of `predictions` into the columns that are printed."""
    task = program.task
    if not hasattr(task, "present"):
        return lambda found: found["predicted"]
    options = {}
    if getattr(task, "corpus", None):
        lines = inputs.read_lines(Path(task.corpus), "config.task.corpus")
        corpus = Arrays(source.encode(lines))
        parts = [found["predicted"] for found in predictions(config, program, state, corpus)]
        options["corpus"] = (
            lines,
            {name: np.concatenate([p[name] for p in parts]) for name in parts[0]},
        )
    return lambda found: task.present({**found["batch"], **found["predicted"]}, source, **options)


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
        checkpoints = Checkpoints(run, configs.load(run / "config.json").section("checkpoint"))
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
    config = load_run(options.workdir, overrides)
    source = open_sources(config)["train"]
    program = build_program(config, source, teacher_config(config, options.workdir))
    print(replay(config, program, source, options.workdir, start, steps))


def export_verb(
    raw: Any, overrides: Sequence[str], options: argparse.Namespace, stop: Callable[[], bool]
) -> None:
    """Writes the run's newest weights as a folder that `transformers` loads."""
    if options.format != "safetensors":
        raise UserError(f"--format={options.format}: export writes safetensors")
    config, program, state, sources = open_run(options.workdir, overrides, None, raw)
    init, model = config.section("init"), config.get("model")
    family = options.family or (init and init.family)
    family = family or family_of_type(model["type"], "config.model.type")
    tokenizer = getattr(sources["train"], "tokenizer", None)
    folder = options.output or options.workdir / "export"
    variables = jax.tree.map(distributed.whole, program.evaluation_variables(state))
    if distributed.is_leader():
        export_folder(variables, model, family, folder, tokenizer)
        print(f"{folder}: {family}, {sum(x.size for x in jax.tree.leaves(variables)):,} numbers")


def config_verb(
    raw: Any, overrides: Sequence[str], options: argparse.Namespace, stop: Callable[[], bool]
) -> None:
    """Prints every final value and where it came from."""
    if not stages.is_pipeline(raw):
        config = configs.resolve(raw, overrides)
        print(f"{configs.show(config)}\nfingerprint {config.fingerprint}")
        return
    found, seeds, _ = stages.resolve(raw, overrides)
    for name, config in found.items():
        print(f"# stage {name}, {seeds} seeds\n{configs.show(config)}")
        print(f"fingerprint {config.fingerprint}\n")


def sharding_verb(
    raw: Any, overrides: Sequence[str], options: argparse.Namespace, stop: Callable[[], bool]
) -> None:
    """Prints what lies where and what a step sends, for every stage; trains nothing."""
    if stages.is_pipeline(raw):
        found, _, _ = stages.resolve(raw, overrides)
    else:
        found = {"": configs.resolve(raw, overrides)}
    reports = {}
    for name, config in found.items():
        stage = config.values["distill"] and config.get("distill.teacher").removeprefix("../")
        teacher = found.get(stage) or teacher_config(config, options.workdir)
        source = open_sources(config)["train"]
        program = build_program(config, source, teacher)
        batch_size = config.get("train.batch_size")
        reports[name] = sharding_report.report(program, source.features, batch_size)
    if options.json:
        print(json.dumps(reports.get("", reports), indent=2))
        return
    for name, report in reports.items():
        print(f"# stage {name}\n" * bool(name) + sharding_report.text(report) + "\n")


VERBS = {
    "train": train_verb,
    "evaluate": evaluate_verb,
    "predict": predict_verb,
    "replay": replay_verb,
    "checkpoints": checkpoints_verb,
    "sharding": sharding_verb,
    "export": export_verb,
    "config": config_verb,
}


def load_run(workdir: Path, overrides: Sequence[str]) -> Config:
    """The config of the run in the folder.

    Raises:
      UserError: the folder holds no run; the runs below it are named.
    """
    path = workdir / "config.json"
    if not path.exists():
        runs = sorted(str(p.parent) for p in workdir.glob("*/*/config.json"))
        hint = (
            f"; give one of its runs as --workdir: {', '.join(runs)}" if runs else "; train first"
        )
        raise UserError(f"{workdir} holds no run{hint}")
    return configs.load(path, overrides)


def open_run(
    workdir: Path, overrides: Sequence[str], split: str | None, raw: Any = None
) -> tuple[Config, Program, Any, dict[str, Any]]:
    """A trained run: its config, program, newest state, and its sources: train and those evaluated.

    Where there is none, but `raw`, an experiment's config, starts from a published checkpoint, the
    state has that one's weights.

    Raises:
      UserError: the folder holds no run, or no such split.
    """
    untrained = not (workdir / "config.json").exists() and configs.starts_published(raw or {})
    config = configs.resolve(raw, overrides) if untrained else load_run(workdir, overrides)
    if split is not None:
        splits = config.get("data.splits")
        if split not in splits:
            raise UserError(
                f"--split={split}: no such split{did_you_mean(split, splits)}; "
                f"config.data.splits has {', '.join(splits)}"
            )
        config = config.with_value("evaluate.splits", (split,))
    sources = open_sources(config)
    if untrained:
        check_init(config, workdir)
    program = build_program(config, sources["train"], teacher_config(config, workdir))
    if untrained:
        source = config.get("init.source")
        log.info("%s holds no run: these are the weights of %s", workdir, source)
        state = initial_state(config, program, workdir)
    else:
        state = _newest_state(config, program, workdir)
    return config, program, state, sources


def _newest_state(config: Config, program: Program, workdir: Path) -> Any:
    checkpoints = Checkpoints(workdir, config.section("checkpoint"))
    restored = checkpoints.restore_newest(program.state)
    checkpoints.close()
    if restored is None:
        raise UserError(f"{workdir}: holds no checkpoint yet")
    return restored[1]
