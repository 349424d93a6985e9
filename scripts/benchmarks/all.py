"""Every benchmark that fits this machine, one after the other, into one table.

    .venv/bin/python -m scripts.benchmarks.all [--python=/tmp/peers/bin/python] [--out=FOLDER] [--only=NAME,...] [--rounds=N]

Leave the machine alone meanwhile. Each writes its JSON into FOLDER (default
`scripts/benchmarks/results`); the table, with hardware and versions, is printed and written there as `all.md`. What
this machine lacks is left out and named: an accelerator, PyTorch, the environment of the peers.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from scripts.benchmarks.measure import machine

NEEDS = {  # benchmark -> what it needs beside bigjax; those that write JSON
    "loop_overhead": (),
    "checks": (),
    "checkpoint": (),
    "distill": (),
    "tokenize": (),
    "axes": (),
    "input_rate": (),
    "load_memory": (),
    "peers": ("peers",),
    "finetune": ("torch",),
    "resnet": ("torch",),
    "gpt": ("torch",),
    "products": ("torch",),
    "generation": ("torch",),
    "gpt_mfu": ("an accelerator",),
}
ROUNDS = {"loop_overhead": "pairs", "checks": "pairs", "checkpoint": "pairs"}  # its option's name


def missing(needs: tuple[str, ...], python: str) -> list[str]:
    """What of these this machine has not."""
    import jax

    has = {
        "peers": Path(python).exists(),
        "torch": importlib.util.find_spec("torch") is not None,
        "an accelerator": jax.default_backend() != "cpu",
    }
    return [need for need in needs if not has[need]]


def medians(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """(name, "median (quartiles)") of every summary in a benchmark's JSON."""
    if isinstance(tree, dict) and "median" in tree:
        yield "/".join(path), f"{tree['median']} ({tree['quarter']} to {tree['three_quarters']})"
    elif isinstance(tree, dict):
        for name, below in tree.items():
            yield from medians(below, (*path, name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default="/tmp/peers/bin/python", help="that has the peers")
    parser.add_argument("--out", type=Path, default=Path("scripts/benchmarks/results"))
    parser.add_argument("--only", default=",".join(NEEDS), help="of these, with commas")
    parser.add_argument("--rounds", type=int, help="of each, in place of its own number")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := set(names) - set(NEEDS):
        parser.error(f"--only: {', '.join(unknown)} is none of {', '.join(NEEDS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    rows, left_out = [], []
    for name in names:
        if lacking := missing(NEEDS[name], options.python):
            left_out.append(f"{name}: no {', '.join(lacking)}")
            continue
        file = options.out / f"{name}.json"
        command = [sys.executable, "-m", f"scripts.benchmarks.{name}", f"--out={file}"]
        command += [f"--python={options.python}"] if "peers" in NEEDS[name] else []
        if options.rounds and name != "gpt_mfu":
            command.append(f"--{ROUNDS.get(name, 'rounds')}={options.rounds}")
        print(f"{name} ...", flush=True)
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
            left_out.append(f"{name}: failed")
            continue
        found = json.loads(file.read_text())
        rows += [f"| {name} | {what} | {value} |" for what, value in medians(found)]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "jaxlib", "flax"))
    about = ", ".join(f"{key} {value}" for key, value in machine().items())
    head = [
        f"{about}; {versions}.",
        "",
        "| benchmark | figure | median (quartiles) |",
        "|---|---|---|",
    ]
    text = "\n".join([*head, *rows, "", *(f"Left out: {line}" for line in left_out)]) + "\n"
    (options.out / "all.md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
