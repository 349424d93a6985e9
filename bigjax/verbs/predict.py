"""The verbs that use a finished run: evaluate and predict."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigjax.config.flags import expanded
from bigjax.core.errors import UserError, did_you_mean
from bigjax.loop.open import Opened, open_run
from bigjax.mesh import distributed
from bigjax.run.screen import progress
from bigjax.run.text import metrics_table


def asked_run(
    raw: Any,
    overrides: Sequence[str],
    options: argparse.Namespace,
    splits: tuple[str, ...] | None = (),
) -> Opened:
    """The run in the folder that the command line names, with these splits (None: all it evaluates)."""
    return open_run(
        options.workdir,
        overrides,
        splits=splits,
        raw=raw,
        trust=options.trust,
        untrained=options.untrained,
    )


def evaluate_verb(
    raw: Any, overrides: Sequence[str], options: argparse.Namespace, stop: Callable[[], bool]
) -> None:
    """Evaluates the newest checkpoint of the run in the folder: a split, or all that the run measures."""
    splits = None if options.split is None else (options.split,)
    run = asked_run(raw, overrides, options, splits)
    if not run.setup.evaluate.splits and not run.setup.evaluators:
        raise UserError("evaluate needs --split=NAME: config.evaluate.splits is empty")
    for split in run.setup.evaluate.splits:
        values = run.evaluate(split)
        print(metrics_table({f"eval/{split}/{name}": value for name, value in values.items()}))
    if options.split is None and run.setup.evaluators:
        print(metrics_table(run.measure()))


def predict_verb(
    raw: Any, overrides: Sequence[str], options: argparse.Namespace, stop: Callable[[], bool]
) -> None:
    """Writes one JSON object a row of the input; bad rows are reported by number and left out.

    With --adapter=NAME, once or several times, the run's base, held once, answers under each of these.
    """
    check_paths(options.input, options.output)
    folders = {name: adapter_folder(options.workdir, name) for name in options.adapter}
    run = asked_run(raw, overrides, options)
    models = {name: run.switched(folder) for name, folder in folders.items()}
    write_answers(models or {None: run}, options.input, options.output)


def adapter_folder(workdir: Path, name: str) -> Path:
    """The run whose adapters a name means: one beside `workdir`, or a folder's path.

    Raises:
      UserError: there is no such run; the nearest beside is named.
    """
    beside = workdir.absolute().parent
    for folder in (beside / name, expanded(name)):
        if (folder / "config.json").is_file():
            return folder
    known = sorted(p.parent.name for p in beside.glob("*/config.json"))
    raise UserError(
        f"--adapter={name}: no run of that name beside {workdir}, and no such folder"
        f"{did_you_mean(name, known)}"
    )


def check_paths(file: Path | None, output: Path | None) -> None:
    """Raises UserError where there is nothing to read, or no folder to write into."""
    if file is None:
        raise UserError(
            "predict needs --input=FILE: a table, arrays, texts, or pictures or a folder of them"
        )
    if output and not output.absolute().parent.is_dir():
        raise UserError(f"--output={output}: there is no folder {output.parent}")


def write_answers(models: Mapping[str | None, Any], file: Path, output: Path | None) -> None:
    """Writes one JSON object a row of a user's file; bad rows are reported by number and left out.

    models: the adapter's name, which then stands in each line, or None -> an `Opened` or an `Exported`;
      all read alike. output: a file; None: the terminal.
    """
    rows = next(iter(models.values())).read(file)
    for problem in rows.problems:
        print(f"{file}: {problem}", file=sys.stderr)
    if len(rows.source) == 0:
        raise UserError(f"{file}: no row can be predicted")
    with contextlib.ExitStack() as stack:
        to_file = output and distributed.is_leader()
        out = stack.enter_context(open(output, "w")) if to_file else sys.stdout
        bar = progress("predicting", len(models) * len(rows.source), unit="rows")
        if to_file:  # else the rows themselves show how far it is
            stack.enter_context(bar)
        for name, model in models.items():
            said = {} if name is None else {"adapter": name}
            for number, line in zip(rows.numbers, model.answers(rows.source), strict=True):
                out.write(json.dumps({"row": number, **said, **line}) + "\n")
                bar.advance()
