"""Seconds that `import bigjax` and all that an experiment imports take, each in a fresh process.

    .venv/bin/python -m scripts.benchmarks.import_time [--runs=7] [--out=FILE]

Target: at most 1.5 s. Wall time rises with the machine's load; processor time hardly does.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from scripts.benchmarks.measure import machine, summaries, tell

CODE = """
import time
started = time.perf_counter(), time.process_time()
import {module}
print(time.perf_counter() - started[0], time.process_time() - started[1])
"""


def seconds(module: str) -> tuple[float, float]:
    """(wall, processor) seconds of importing `module`."""
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(module=module)], capture_output=True, check=True
    )
    wall, processor = done.stdout.split()
    return float(wall), float(processor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = {"machine": machine()}
    for module in ("bigjax", "bigjax.verbs.launch", "jax, flax, optax"):
        result[module] = summaries([seconds(module) for _ in range(options.runs)])
    tell(result, options.out)


if __name__ == "__main__":
    main()
