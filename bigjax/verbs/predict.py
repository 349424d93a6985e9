"""The verbs that use a finished run: evaluate and predict."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.core.errors import UserError
from bigjax.data import inputs
from bigjax.data.sources import Arrays
from bigjax.loop.open import Opened, open_run
from bigjax.mesh import distributed
from bigjax.run.text import metrics_table


def evaluate_verb(
    raw: Any, overrides: Sequence[str], options: argparse.Namespace, stop: Callable[[], bool]
) -> None:
    """Evaluates the newest checkpoint of the run in the folder: a split, or all that the run measures."""
    splits = None if options.split is None else (options.split,)
    run = open_run(options.workdir, overrides, splits=splits, raw=raw, trust=options.trust)
    for split in run.setup.evaluate.splits:
        values = run.evaluate(split)
        print(metrics_table({f"eval/{split}/{name}": value for name, value in values.items()}))
    if options.split is None and run.setup.evaluators:
        print(metrics_table(run.measure()))


def predict_verb(
    raw: Any, overrides: Sequence[str], options: argparse.Namespace, stop: Callable[[], bool]
) -> None:
    """Writes one JSON object a row of the input; bad rows are reported by number and left out."""
    if options.input is None:
        raise UserError("predict needs --input=FILE (.npz, .csv, .txt, or a folder of png/jpg)")
    run = open_run(options.workdir, overrides, splits=(), raw=raw, trust=options.trust)
    source = run.setup.sources["train"]
    rows = inputs.read(options.input, source, run.setup.program.task.input)
    for problem in rows.problems:
        print(f"{options.input}: {problem}", file=sys.stderr)
    if len(rows.source) == 0:
        raise UserError(f"{options.input}: no row can be predicted")
    present = presenter(run, source)
    with contextlib.ExitStack() as stack:
        to_file = options.output and distributed.is_leader()
        out = stack.enter_context(open(options.output, "w")) if to_file else sys.stdout
        numbers = iter(rows.numbers)
        for found in run.predictions(rows.source):
            for line in inputs.json_rows(present(found), source.class_names):
                out.write(json.dumps({"row": next(numbers), **line}) + "\n")


def presenter(run: Opened, source: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What turns an item of `Opened.predictions` into the columns that are printed."""
    task, corpus = run.setup.program.task, None
    if getattr(task, "corpus", None):
        lines = inputs.read_lines(Path(task.corpus), "config.task.corpus")
        parts = [p["predicted"] for p in run.predictions(Arrays(source.encode(lines)))]
        corpus = lines, {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    return lambda found: task.present(found["predicted"], found["batch"], source, corpus)
