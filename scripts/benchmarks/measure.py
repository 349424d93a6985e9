"""What the benchmarks share: contestants in turn, a summary of noisy figures, what machine it was."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np


def summary(values: Sequence[float]) -> dict[str, float | int]:
    """Median and quartiles, rounded to four digits."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    rounded = (float(f"{value:.4g}") for value in (middle, low, high))
    return {
        **dict(zip(("median", "quarter", "three_quarters"), rounded, strict=True)),
        "runs": len(values),
    }


def machine() -> dict[str, str | int | float]:
    """Where this ran, and how busy the machine was."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }


def in_turn(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each round of each contestant; all of them see the same machine.

    Each command is a process that ends in `answer`. The first round is thrown away: the others may
    still be warming up.
    """
    processes = {
        name: subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for name, command in commands.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds + 1):
        for name, process in processes.items():
            process.stdin.write("go\n")
            process.stdin.flush()
            seconds[name].append(float(process.stdout.readline()))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return {name: values[1:] for name, values in seconds.items()}


def compare(
    seconds: Mapping[str, Sequence[float]], samples: int, out: Path | None, **about: object
) -> None:
    """Prints, and writes to `out`, samples/s of each contestant and of bigjax over the others.

    Args:
      seconds: what `in_turn` gave.
      samples: in a round.
      about: what else the result should say.
    """
    result = {
        "machine": machine(),
        **about,
        "samples_per_second": {
            name: summary([samples / taken for taken in values]) for name, values in seconds.items()
        },
        "bigjax_over": {
            name: summary([b / a for a, b in zip(seconds["bigjax"], values, strict=True)])
            for name, values in seconds.items()
            if name != "bigjax"
        },
    }
    text = json.dumps(result, indent=2)
    print(text)
    if out:
        out.write_text(text + "\n")


def answer(run: Callable[[], float]) -> None:
    """A contestant's process: warms up, then answers every line of its input with a round's seconds."""
    run()
    out = os.fdopen(os.dup(1), "w")
    for _ in sys.stdin:
        print(run(), file=out, flush=True)
