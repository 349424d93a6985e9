"""Which figures of the experiments' docstrings still hold: their commands are run again (scripts/verify).

A figure's twin stands in experiments/figures.toml; for each experiment

    command   what follows `python -m`; it is given a --workdir of its own
    minutes   it takes on `hardware`
    elsewhere what its first line says beside: counted, or measured by another experiment
    figures   a table each:
        said        as the docstring says it
        of          a metric of result.json, its mean over the runs found
        runs        their folders below the workdir, a glob; default: the workdir
        seeds       of these runs; default: [0]
        scale       what the metric is multiplied by; default: 1
        value, spread, tolerance    the mean, the standard deviation (n - 1) of several runs, and by how much
                    either may differ; on the machine where it was measured nothing differs
        prints      instead of all these but `said`: a text that the command prints
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigjax.config.flags import read_options
from bigjax.core.errors import UserError, did_you_mean
from bigjax.run.text import table

ROOT = Path(__file__).parent.parent
TWINS = ROOT / "experiments" / "figures.toml"
HOLDS, DIFFERS, NOT_RUN = "holds", "DIFFERS", "not run"
EXPERIMENT = ("command", "minutes", "hardware", "figures")
FIGURE = ("said", "of", "runs", "seeds", "scale", "value", "spread", "tolerance", "prints")
NUMBER = re.compile(r"\d+\.\d+|\d+(?= %)")


def twins() -> dict[str, dict[str, Any]]:
    """Experiment -> what experiments/figures.toml says of it."""
    return tomllib.loads(TWINS.read_text())


def docstring(name: str) -> str:
    """That of an experiment, in one line; nothing is imported."""
    path = ROOT / "experiments" / Path(*name.split(".")).with_suffix(".py")
    return " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())


def problems(name: str, twin: Mapping[str, Any]) -> Iterator[str]:
    """What does not agree between an experiment's docstring and its twin."""
    text = docstring(name)
    for key in set(EXPERIMENT) ^ set(twin) - {"elsewhere"}:
        yield f"{name}: the key {key} is missing, or unknown"
    for figure in twin["figures"]:
        said = figure["said"]
        if unknown := set(figure) - set(FIGURE):
            yield f"{name}: {said}: unknown {', '.join(unknown)}"
        if said not in text:
            yield f"{name}: the docstring does not say '{said}'"
        numbers = {float(word) for word in re.findall(r"\d+(?:\.\d+)?", said)}
        for key in ("value", "spread"):
            if key in figure and figure[key] not in numbers:
                yield f"{name}: '{said}' does not say the {key} {figure[key]}"
        if "prints" not in figure and not {"of", "value", "tolerance"} <= set(figure):
            yield f"{name}: {said}: of, value, tolerance, or prints"


def unsaid(name: str, twin: Mapping[str, Any] | None) -> list[str]:
    """The numbers of an experiment's first line that no figure of its twin has."""
    first = docstring(name).partition(" scripts/")[0]
    first = re.sub(r"\([^()]*(minute|second|\d s\b)[^()]*\)", "", first)  # the time it takes
    twin = twin or {"figures": []}
    said = " ".join([*(f["said"] for f in twin["figures"]), *twin.get("elsewhere", [])])
    return [number for number in NUMBER.findall(first) if number not in said]


def measured(figure: Mapping[str, Any], workdir: Path) -> tuple[float, float]:
    """(mean, standard deviation) of a figure over the finished runs; the deviation of one run is NaN.

    Raises:
      UserError: the runs are not those that the figure is of.
    """
    folders = [path.parent for path in workdir.glob(f"{figure.get('runs', '.')}/result.json")]
    seeds = sorted(json.loads((folder / "config.json").read_text())["seed"] for folder in folders)
    if seeds != figure.get("seeds", [0]):
        raise UserError(f"there are results of the seeds {seeds}, not {figure.get('seeds', [0])}")
    results = [json.loads((folder / "result.json").read_text())["metrics"] for folder in folders]
    values = [float(result[figure["of"]]) * figure.get("scale", 1) for result in results]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def verdict(figure: Mapping[str, Any], workdir: Path, printed: str) -> tuple[str, str]:
    """(what is now, whether the figure holds) after its command was run."""
    if "prints" in figure:
        return ("printed", HOLDS) if figure["prints"] in printed else ("not printed", DIFFERS)
    mean, deviation = measured(figure, workdir)
    pairs = [(mean, figure["value"])]
    pairs += [(deviation, figure["spread"])] if "spread" in figure else []
    close = all(abs(now - then) <= figure["tolerance"] for now, then in pairs)
    return " +- ".join(f"{now:.4g}" for now, _ in pairs), HOLDS if close else DIFFERS


def verify(name: str, twin: Mapping[str, Any], keep: Path | None = None) -> list[dict[str, str]]:
    """Runs an experiment's command, in a folder of `keep` or one that goes; a row for each figure.

    Raises:
      UserError: there is a run already: its figures would be old ones.
    """
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        workdir = (keep or Path(folder)) / name
        if workdir.exists():
            raise UserError(f"--keep={keep}: {workdir} is there already")
        words = [sys.executable, "-m", *shlex.split(twin["command"]), f"--workdir={workdir}"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        rows = []
        for figure in twin["figures"]:
            row = {"experiment": name, "said": figure["said"]}
            if done.returncode:
                why = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
                rows.append({**row, "now": why, "": NOT_RUN})
                continue
            now, word = verdict(figure, workdir, done.stdout)
            rows.append({**row, "now": now, "": word})
    return rows


def main(arguments: Sequence[str]) -> int:
    """Runs what is asked for and prints the table; 1 if a figure does not hold, or could not be run."""
    parser = argparse.ArgumentParser(prog="scripts/verify", exit_on_error=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments; default: the quick")
    parser.add_argument("--keep", type=Path, help="a folder for the runs; default: not kept")
    parser.add_argument("--under", type=float, default=3, help="minutes, where no name is given")
    try:
        options, known = read_options(parser, arguments), twins()
        for name in options.names:
            if name not in known:
                raise UserError(f"{name}: no figure to verify{did_you_mean(name, known)}")
        quick = sorted(known, key=lambda name: known[name]["minutes"])
        names = options.names or [n for n in quick if known[n]["minutes"] <= options.under]
        rows = []
        for name in names:
            start, about = time.monotonic(), known[name]["minutes"]
            print(f"{name}: {about:g} minutes", end="", file=sys.stderr, flush=True)
            rows += verify(name, known[name], options.keep)
            print(f", {(time.monotonic() - start) / 60:.1f} here", file=sys.stderr)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(rows, ["experiment", "said", "now", ""]))
    left = [name for name in known if name not in names]
    if left and not options.names:
        print(f"\nlonger, so not run: {', '.join(left)}")
    return 0 if all(row[""] == HOLDS for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
