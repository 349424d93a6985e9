"""How long one waits: for a run's first step, at the first start and the second; for a config; for the list of experiments.

    .venv/bin/python -m scripts.benchmarks.starts [--rounds=5] [--experiment=sentiment_bert] [--out=FILE]

first_step: seconds from the start of `python -m experiments.NAME` until its first step's loss lies in `metrics.jsonl`, with an
empty folder of compiled programs and then, same command, with what the first start left there; `second_over_first` is
pair by pair (target: at most 0.4). `config` (target: at most 1.5 s) and `list` (1 s) are whole processes. Each has
processor seconds beside it, which other work on the machine hardly moves. The experiment's data must be there (its docstring).
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.benchmarks.measure import machine, summaries, summary, tell

PATIENCE = 3600.0


def whole(command: list[str]) -> tuple[float, float]:
    """(wall, processor) seconds of a process that ends by itself."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def to_first_step(experiment: str, compiled: Path) -> tuple[float, float]:
    """(wall, processor) seconds until a new run has logged step 1; it is ended then."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        command = [sys.executable, "-m", f"experiments.{experiment}", f"--workdir={workdir}"]
        command.append("--config.log.every=1")
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "BIGJAX_COMPILED": str(compiled)},
        )
        try:
            metrics = workdir / "metrics.jsonl"
            while not (metrics.exists() and b"train/loss" in metrics.read_bytes()):
                if process.poll() is not None or time.perf_counter() - started > PATIENCE:
                    raise SystemExit(f"no first step: {' '.join(command)}")
                time.sleep(0.02)
            wall = time.perf_counter() - started
            ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        finally:
            process.kill()
            process.wait()
    return wall, sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--experiment", default="sentiment_bert")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    # Else Python compiles all sources at each start.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    first, second, config, listed = [], [], [], []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as compiled:
            first.append(to_first_step(options.experiment, Path(compiled)))
            second.append(to_first_step(options.experiment, Path(compiled)))
        config.append(whole([sys.executable, "-m", f"experiments.{options.experiment}", "config"]))
        listed.append(whole([sys.executable, "-m", "experiments"]))
    result = {
        "machine": machine(),
        "experiment": options.experiment,
        "first_step": {"first": summaries(first), "second": summaries(second)},
        "second_over_first": {
            clock: summary([b[i] / a[i] for a, b in zip(first, second, strict=True)])
            for i, clock in enumerate(("wall", "processor"))
        },
        "config": summaries(config),
        "list": summaries(listed),
    }
    tell(result, options.out)


if __name__ == "__main__":
    main()
