"""Every benchmark that fits this machine, one after the other, into one table.

    .venv/bin/python -m scripts.benchmarks.all [--python=/tmp/peers/bin/python] [--out=FOLDER] [--only=NAME,...] [--short]

Leave the machine alone meanwhile. Each writes its JSON into FOLDER (default
`scripts/benchmarks/results`); the table, with hardware and versions, is printed, and written there as `all.md` after each
of them. What this machine lacks is left out and named: an accelerator, PyTorch, the environment of the peers; so is
one that failed, with the last line it said. --short: smallest settings, to see that each runs (no figures; needs --out).
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from scripts.benchmarks.measure import machine


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One that writes JSON: its smallest settings, and what it needs beside bigjax."""

    short: str
    needs: tuple[str, ...] = ()


RESULTS = Path("scripts/benchmarks/results")
BENCHMARKS = {
    "import_time": Benchmark("--runs=1"),
    "starts": Benchmark("--rounds=1 --experiment=digits_rnn"),
    "loop_overhead": Benchmark("--pairs=1 --steps=8"),
    "checks": Benchmark("--pairs=1 --steps=2"),
    "checkpoint": Benchmark("--pairs=1"),
    "distill": Benchmark("--rounds=1 --steps=2"),
    "tokenize": Benchmark("--rounds=1"),
    "axes": Benchmark("--only=data"),
    "input_rate": Benchmark("--seconds=1"),
    "load_memory": Benchmark("--layers=1"),
    "plan_memory": Benchmark("'MLP, Adam'"),
    "peers": Benchmark("--rounds=1 --steps=2 --width=128", ("peers",)),
    "finetune": Benchmark("--rounds=1 --batch=2 --length=16", ("torch",)),
    "resnet": Benchmark("--rounds=1 --batch=2 --side=64", ("torch",)),
    "gpt": Benchmark("--rounds=1 --batch=1 --length=32", ("torch",)),
    "products": Benchmark("--rounds=1", ("torch",)),
    "generation": Benchmark("--rounds=1", ("torch",)),
    "gpt_mfu": Benchmark("--models=124m --steps=2", ("an accelerator",)),
}


def missing(needs: tuple[str, ...], python: str) -> list[str]:
    """What of these this machine has not."""
    import jax

    has = {
        "peers": Path(python).exists(),
        "torch": importlib.util.find_spec("torch") is not None,
        "an accelerator": jax.default_backend() != "cpu",
    }
    return [need for need in needs if not has[need]]


def figures(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """(name, value) of a benchmark's JSON: a summary is "median (quartiles)", other numbers as they are."""
    if isinstance(tree, dict) and "median" in tree:
        yield "/".join(path), f"{tree['median']} ({tree['quarter']} to {tree['three_quarters']})"
    elif isinstance(tree, dict | list):
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for name, below in pairs:
            if name != "machine":
                yield from figures(below, (*path, str(name)))
    elif isinstance(tree, int | float):
        yield "/".join(path), f"{tree:g}"


def rows_of(name: str, settings: list[str], out: Path) -> list[str]:
    """The table's rows of one benchmark, which is run; RuntimeError in its own words."""
    file = out / f"{name}.json"
    before = file.stat().st_mtime_ns if file.exists() else None
    command = [sys.executable, "-m", f"scripts.benchmarks.{name}", *settings, f"--out={file}"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said = (done.stderr.strip().splitlines() or ["said nothing"])[-1]
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {said}")
    if not file.exists() or file.stat().st_mtime_ns == before:
        raise RuntimeError(f"wrote no {file}: {said}")
    found = figures(json.loads(file.read_text()))
    return [f"| {name} | {what} | {value} |" for what, value in found]


def table(rows: list[str], left_out: list[str]) -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "jaxlib", "flax"))
    about = ", ".join(f"{key} {value}" for key, value in machine().items())
    head = ["| benchmark | figure | median (quartiles) |", "|---|---|---|"]
    absent = [f"Left out: {line}" for line in left_out]
    return "\n".join([f"{about}; {versions}.", "", *head, *rows, "", *absent]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default="/tmp/peers/bin/python", help="that has the peers")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only", default=",".join(BENCHMARKS), help="of these, with commas")
    parser.add_argument("--short", action="store_true", help="smallest settings, no figures")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := set(names) - set(BENCHMARKS):
        parser.error(f"--only: {', '.join(unknown)} is none of {', '.join(BENCHMARKS)}")
    if options.short and options.out.resolve() == RESULTS.resolve():
        parser.error("--short: its numbers are no figures; name another folder with --out")
    options.out.mkdir(parents=True, exist_ok=True)
    rows, left_out = [], []
    for name in names:
        benchmark = BENCHMARKS[name]
        settings = shlex.split(benchmark.short) if options.short else []
        settings += [f"--python={options.python}"] if "peers" in benchmark.needs else []
        if lacking := missing(benchmark.needs, options.python):
            left_out.append(f"{name}: lacks {', '.join(lacking)}")
        else:
            print(f"{name} ...", end=" ", flush=True)
            started = time.perf_counter()
            try:
                rows += rows_of(name, settings, options.out)
            except (RuntimeError, ValueError) as error:  # the others' rows are not lost
                left_out.append(f"{name}: {error}")
            print(f"{time.perf_counter() - started:.0f} s", flush=True)
        (options.out / "all.md").write_text(table(rows, left_out))
    print(table(rows, left_out), end="")


if __name__ == "__main__":
    main()
