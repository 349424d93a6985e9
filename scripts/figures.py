"""Which figures that the project states still hold: their commands are run again (scripts/verify).

A figure's twin stands in experiments/figures.toml, by experiment, where a docstring states it, and in
scripts/benchmarks/figures.toml, by file, where a README or a docstring of the library does. For each

    command   what follows `python -m`; an experiment's is given a --workdir of its own
    minutes   it takes on `hardware`, all commands together
    elsewhere text -> why it has no twin here: a setting, a target, published, the twin of another experiment
    figures   a table each:
        said        as the docstring or README says it
        command     its own, where it is not the one above
        of          a metric of result.json, its mean over the runs found ("NAME.3": of class 3); or "seconds",
                    "processor_seconds" of the command
        step        of metrics.jsonl at this step, instead
        runs        their folders below the workdir, a glob; default: the workdir
        seeds       of these runs; default: [0]
        scale       what the metric is multiplied by; default: 1
        value, spread, tolerance    the mean, the standard deviation (n - 1) of several runs, and by how much
                    either may differ; on the machine where it was measured nothing differs
        at_most     instead of value and tolerance
        prints      instead of `of`: a text that the command prints, its numbers within the tolerance (default 0);
                    a * is any word
        results, keys   instead of a command: a benchmark's file under scripts/benchmarks/results, and where in it
                    the numbers of `said` stand, rounded as they are said
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import math
import re
import resource
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
RESULTS = ROOT / "scripts" / "benchmarks" / "results"
EXPERIMENTS = ROOT / "experiments" / "figures.toml"
OTHERS = ROOT / "scripts" / "benchmarks" / "figures.toml"
HOLDS, DIFFERS, NOT_RUN = "holds", "DIFFERS", "not run"
KEYS = {"command", "minutes", "hardware", "elsewhere", "figures"}
FIGURE = {"said", "command", "of", "step", "runs", "seeds", "scale", "value", "spread", "tolerance",
          "at_most", "prints", "results", "keys"}  # fmt: skip
WHAT = (
    {"of", "value", "tolerance"},
    {"of", "at_most"},
    {"prints"},
    {"results", "keys"},
)  # one of these

COUNT = r"\d[\d,]*(?:\.\d+)?"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")  # as a table prints it
# What an experiment states beside counts and settings: fractions, percentages.
FRACTION = re.compile(r"(?<![\w.])\d[\d,]*\.\d+(?![\w.])|\d+(?= %)")
# What other texts measure: numbers with a unit.
WORD = "half an?|two|three|four|five|ten|twice|about an?|under an?"
UNIT = "%|ms|us|s|min|minutes?|seconds?|hours?|[kMGT]i?B|times|as fast|as long|as much"
MEASURED = re.compile(rf"(?:\b{COUNT}|\b(?:{WORD})) (?:{UNIT})(?![\w/])")
TIME = re.compile(rf"({COUNT})(?: to ({COUNT}))? (minutes?|seconds?|s)\b")


def twins(path: Path = EXPERIMENTS) -> dict[str, dict[str, Any]]:
    """Experiment, or file, -> what a table of twins says of it."""
    return tomllib.loads(path.read_text())


def docstring(name: str) -> str:
    """That of an experiment, in one line; nothing is imported."""
    path = ROOT / "experiments" / Path(*name.split(".")).with_suffix(".py")
    return " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())


def stated(name: str) -> str:
    """What a file says to people, in one line: a README, all docstrings of a Python file."""
    text = (ROOT / name).read_text()
    if name.endswith(".py"):
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
        text = "\n".join(ast.get_docstring(node) or "" for node in nodes)
    return " ".join(text.split())


def problems(name: str, twin: Mapping[str, Any], text: str) -> Iterator[str]:
    """What does not agree between what is stated in a text and its twin."""
    for key in set(twin) - KEYS:
        yield f"{name}: the key {key} is unknown"
    for said in twin.get("elsewhere", {}):
        if said not in text:
            yield f"{name}: it is not said there: '{said}'"
    for figure in twin["figures"]:
        said = figure["said"]
        if unknown := set(figure) - FIGURE:
            yield f"{name}: {said}: unknown {', '.join(unknown)}"
        if said not in text:
            yield f"{name}: it is not said there: '{said}'"
        numbers = {float(word) for word in NUMBER.findall(said.replace(",", ""))}
        for key in {"value", "spread", "at_most"} & set(figure):
            scale = 60 if figure["of"] == "seconds" and "minutes" in said else 1
            if figure[key] / scale not in numbers:
                yield f"{name}: '{said}' does not say the {key} {figure[key]}"
        if sum(what <= set(figure) for what in WHAT) != 1:
            yield f"{name}: {said}: of and value and tolerance, or at_most, or prints, or results"
        if "results" not in figure and not twin.get("command", figure.get("command")):
            yield f"{name}: {said}: by which command?"


def unsaid(name: str, twin: Mapping[str, Any] | None, text: str) -> list[str]:
    """The measured numbers of a text that are neither in a figure of its twin, nor one rounded, nor `elsewhere`."""
    twin = twin or {"figures": []}
    patterns = [FRACTION] if not name.endswith((".py", ".md")) else [MEASURED]
    if name == "scripts/benchmarks/README.md":
        patterns.append(FRACTION)
    elif patterns == [FRACTION]:
        text = TIME.sub("", text)  # which `minutes` of the twin has
    said = [*(f["said"] for f in twin["figures"]), *twin.get("elsewhere", {})]
    for known in sorted(said, key=len, reverse=True):
        text = text.replace(known, " ; ")
    left = [match[0] for pattern in patterns for match in pattern.finditer(text)]
    values = [figure["value"] for figure in twin["figures"] if "value" in figure]
    return [n for n in left if not any(f"{v:.{len(n.partition('.')[2])}f}" == n for v in values)]


def measured(figure: Mapping[str, Any], workdir: Path) -> tuple[float, float]:
    """(mean, standard deviation) of a figure over the finished runs; the deviation of one run is NaN.

    Raises:
      UserError: the runs are not those that the figure is of.
    """
    folders = [path.parent for path in workdir.glob(f"{figure.get('runs', '.')}/result.json")]
    seeds = sorted(json.loads((folder / "config.json").read_text())["seed"] for folder in folders)
    if seeds != figure.get("seeds", [0]):
        raise UserError(f"there are results of the seeds {seeds}, not {figure.get('seeds', [0])}")
    values = [_metric(figure, folder) * figure.get("scale", 1) for folder in folders]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def _metric(figure: Mapping[str, Any], folder: Path) -> float:
    if "step" not in figure:
        name, _, index = figure["of"].partition(".")
        value = json.loads((folder / "result.json").read_text())["metrics"][name]
        return float(value[int(index)] if index else value)
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    found = [line[figure["of"]] for line in lines
             if line["step"] == figure["step"] and figure["of"] in line]  # fmt: skip
    if not found:
        raise UserError(f"no {figure['of']} was logged at step {figure['step']}")
    return float(found[-1])


def printed(figure: Mapping[str, Any], text: str) -> tuple[str, str]:
    """(what was printed, whether it holds): the figure's words somewhere, with numbers near its own."""
    wanted = " ".join(figure["prints"].split())
    escaped = [re.escape(part) for part in NUMBER.split(wanted)]
    between = [part.replace(r"\ ", r"\s+").replace(r"\*", r"\S+?") for part in escaped]
    values = [float(number) for number in NUMBER.findall(wanted)]
    tolerance, nearest = figure.get("tolerance", 0), "not printed"
    for match in re.finditer(f"({NUMBER.pattern})".join(between), text):
        nearest = " ".join(match[0].split())
        pairs = zip(values, map(float, match.groups()), strict=True)
        if all(abs(now - then) <= tolerance + 1e-12 for then, now in pairs):
            return nearest, HOLDS
    return nearest, DIFFERS


def recorded(figure: Mapping[str, Any]) -> tuple[str, str]:
    """(what a benchmark's file holds, whether that is what is said)."""
    result = json.loads((RESULTS / figure["results"]).read_text())
    words = [word.replace(",", "") for word in re.findall(COUNT, figure["said"])]
    now = []
    for key in figure["keys"]:
        value = result
        for part in key.split("."):
            value = value[int(part) if isinstance(value, list) else part]
        now.append(value)
    rounded = [
        f"{value:.{len(word.partition('.')[2])}f}" for value, word in zip(now, words, strict=False)
    ]
    return " ".join(map(str, now)), HOLDS if rounded == words else DIFFERS


@dataclasses.dataclass(frozen=True)
class Done:
    """A command that was run."""

    code: int
    out: str
    error: str
    times: Mapping[str, float]  # "seconds", "processor_seconds"


def run(command: str, workdir: Path) -> Done:
    """Runs what follows `python -m`; a run or a sweep in the folder."""
    words = [sys.executable, "-m", *shlex.split(command)]
    words += (
        [f"--workdir={workdir}"] if words[2].startswith(("experiments.", "bigjax.sweep")) else []
    )
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    times = {"seconds": seconds, "processor_seconds": processor}
    return Done(done.returncode, done.stdout, done.stderr, times)


def verdict(figure: Mapping[str, Any], workdir: Path, done: Done) -> tuple[str, str]:
    """(what is now, whether the figure holds) after its command was run."""
    if done.code:
        why = (done.error.strip() or f"exit code {done.code}").splitlines()[-1]
        return why, NOT_RUN
    if "prints" in figure:
        return printed(figure, done.out)
    if figure["of"] in done.times:
        mean, deviation = done.times[figure["of"]], math.nan
    else:
        mean, deviation = measured(figure, workdir)
    if "at_most" in figure:
        return f"{mean:.4g}", HOLDS if mean <= figure["at_most"] else DIFFERS
    pairs = [(mean, figure["value"])]
    pairs += [(deviation, figure["spread"])] if "spread" in figure else []
    close = all(abs(now - then) <= figure["tolerance"] for now, then in pairs)
    return " +- ".join(f"{now:.4g}" for now, _ in pairs), HOLDS if close else DIFFERS


def verify(name: str, twin: Mapping[str, Any], keep: Path | None = None) -> list[dict[str, str]]:
    """Runs a twin's commands, in a folder of `keep` or one that goes; a row for each figure.

    Raises:
      UserError: there is a run already: its figures would be old ones.
    """
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        place = (keep or Path(folder)) / name.replace("/", "-")
        if place.exists():
            raise UserError(f"--keep={keep}: {place} is there already")
        done: dict[str, tuple[Path, Done]] = {}
        rows = []
        for figure in twin["figures"]:
            if "results" in figure:
                now, word = recorded(figure)
            else:
                command = figure.get("command", twin.get("command"))
                if command not in done:
                    workdir = place / str(len(done))
                    done[command] = workdir, run(command, workdir)
                now, word = verdict(figure, *done[command])
            rows.append({"of": name, "said": figure["said"], "now": now, "": word})
    return rows


def main(arguments: Sequence[str]) -> int:
    """Runs what is asked for and prints the table; 1 if a figure does not hold, or could not be run."""
    parser = argparse.ArgumentParser(prog="scripts/verify", exit_on_error=False)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="experiments, files; default: the quick experiments",
    )
    parser.add_argument("--keep", type=Path, help="a folder for the runs; default: not kept")
    parser.add_argument("--under", type=float, default=3, help="minutes, where no name is given")
    try:
        options, experiments = read_options(parser, arguments), twins()
        known = {**experiments, **twins(OTHERS)}
        for name in options.names:
            if name not in known:
                raise UserError(f"{name}: no figure to verify{did_you_mean(name, known)}")
        quick = sorted(experiments, key=lambda name: known[name]["minutes"])
        names = options.names or [n for n in quick if known[n]["minutes"] <= options.under]
        rows = []
        for name in names:
            start, about = time.monotonic(), known[name].get("minutes", 0)
            print(f"{name}: {about:g} minutes", end="", file=sys.stderr, flush=True)
            rows += verify(name, known[name], options.keep)
            print(f", {(time.monotonic() - start) / 60:.1f} here", file=sys.stderr)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(rows, ["of", "said", "now", ""]))
    left = [name for name in experiments if name not in names]
    if left and not options.names:
        print(f"\nlonger, so not run: {', '.join(left)}")
    return 0 if all(row[""] == HOLDS for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
