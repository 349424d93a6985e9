"""The runs below a folder as a table: state, step, metric, size, age. Reads files, changes none.

python -m experiments runs DIR --sort=metric
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigjax.config.flags import read_options
from bigjax.core.errors import UserError, did_you_mean
from bigjax.core.settings import Train
from bigjax.run.files import read_json
from bigjax.run.result import ended, read_result
from bigjax.run.text import amount, duration, table
from bigjax.run.writers import read_metrics

COLUMNS = ("run", "state", "step", "metric", "value", "size", "age")
LOCKS = "/proc/locks"  # Linux; elsewhere no run is known to be at work
# What a run is judged by where its config does not say: the first of these that it has.
MAIN = ("accuracy", "f1_macro", "bleu", "r2", "perplexity", "loss")


def find(folder: Path) -> list[dict[str, Any]]:
    """Returns a row a run: every folder at or below `folder` that holds a config.json.

    run (path below `folder`), state ("done", "running", "failed", "pruned" or "stopped"), step (last
    known), steps (of the whole run, or None), metric and value (what is judged by, or None), size
    (bytes), age (seconds since a file changed).
    """
    folders = [path.parent for path in sorted(folder.rglob("config.json"))]
    return [
        _row(path, str(path.relative_to(folder)))
        for path in folders
        if "checkpoints" not in path.parts
        and not any(path.glob("model*.safetensors"))  # what was exported, or published
    ]


def text(rows: Sequence[Mapping[str, Any]], sort: str = "run") -> str:
    """Returns the rows as a table, by a column, "-COLUMN" from its end; runs without it come last.

    Raises:
      UserError: no such column.
    """
    column, backward = sort.removeprefix("-"), sort.startswith("-")
    column = {"metric": "value"}.get(column, column)  # sorted by its values
    if column not in COLUMNS:
        near = did_you_mean(column, COLUMNS)
        raise UserError(f"--sort={sort}: no such column{near}; there are {', '.join(COLUMNS)}")
    known = [row for row in rows if row[column] is not None]
    ordered = sorted(known, key=lambda row: row[column], reverse=backward)
    ordered += [row for row in rows if row[column] is None]
    shown = [
        {
            **row,
            "step": f"{row['step']}/{row['steps'] or '?'}",
            "metric": row["metric"] or "",
            "value": "" if row["value"] is None else row["value"],
            "size": amount(row["size"]),
            "age": duration(row["age"]),
        }
        for row in ordered
    ]
    return table(shown, COLUMNS)


def main(arguments: Sequence[str]) -> int:
    """Prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments runs", exit_on_error=False)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs"))
    parser.add_argument(
        "--sort", default="run", metavar="COLUMN", help=f"{', '.join(COLUMNS)}, or -COLUMN"
    )
    try:
        options = read_options(parser, arguments)
        if not options.folder.is_dir():
            raise UserError(f"{options.folder}: no such folder")
        rows = find(options.folder)
        if not rows:
            raise UserError(f"{options.folder} holds no run")
        print(text(rows, options.sort))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _row(folder: Path, name: str) -> dict[str, Any]:
    config, manifest = (read_json(folder / f"{name}.json") for name in ("config", "manifest"))
    result = read_result(folder) or {}
    lines = read_metrics(folder / "metrics.jsonl")
    checkpoints = [int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdecimal()]
    evaluated = {k: v for x in lines for k, v in x.items() if k.startswith("eval/")}
    metric = _main_metric(config, result.get("metrics") or evaluated)
    value = (result.get("metrics") or evaluated).get(metric)
    value = None if value is None or isinstance(value, list) else float(value)
    step = max([line["step"] for line in lines] + checkpoints, default=0)
    sizes, times = zip(*_files(folder), strict=True)
    return {
        "run": name,
        "state": _state(folder, step),
        "step": step,
        "steps": result.get("step") or _total_steps(config, manifest),
        "metric": metric,
        "value": value,
        "size": sum(sizes),
        "age": max(0.0, time.time() - max(times)),
    }


def _state(folder: Path, step: int) -> str:
    state = ended(folder)
    if state != "done" and _is_locked(folder / ".lock"):
        return "running"
    if state:
        return state
    halted = _at(read_json(folder / "bad_step.json"), "step")  # where a run that rewinds goes on
    return "failed" if isinstance(halted, int) and halted >= step else "stopped"


def _is_locked(path: Path) -> bool:
    """Whether a process of this machine writes the run. Asks the kernel: a lock of our own, however
    short, could turn away a run that starts just then."""
    if not (path.exists() and os.path.exists(LOCKS)):
        return False
    inode = f":{path.stat().st_ino} "
    with open(LOCKS) as locks:
        return any("FLOCK" in line and inode in line for line in locks)


def _main_metric(config: Any, metrics: Mapping[str, Any]) -> str | None:
    """`config.checkpoint.best`, or the best known of the last split that is evaluated."""
    best = _at(config, "checkpoint", "best")
    if isinstance(best, str) and best in metrics:
        return best
    for name in MAIN:
        found = [key for key in metrics if key.rpartition("/")[2] == name]
        if found:
            return found[-1]
    return None


def _total_steps(config: Any, manifest: Any) -> int | None:
    examples = _at(manifest, "data", "train", "examples")
    with contextlib.suppress(TypeError, ValueError, ArithmeticError, UserError):
        # of another version, or damaged
        settings = Train(**_at(config, "train"))
        return settings.steps or settings.total_steps(examples)
    return None


def _at(node: Any, *keys: str) -> Any:
    """A value in what JSON says; None where that is not what it should be."""
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _files(folder: Path) -> Iterator[tuple[int, float]]:
    """(size, time of the last change) of every file below."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a run at work replaces files
                about = os.stat(os.path.join(parent, name))
                yield about.st_size, about.st_mtime
