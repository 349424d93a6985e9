"""What a sweep costs: a 64-point digits sweep three ways, the overhead of a trial, and a large table.

    .venv/bin/python -m scripts.benchmarks.sweep              all of it
    .venv/bin/python -m scripts.benchmarks.sweep --processes=8

The sweep is `experiments.sweeps.digits_learning_rate`: 16 rates x 4 seeds of a 2x30 MLP. "Separate
processes" is each trial as `python -m experiments...` would run it, one process a trial and as many at
once as the sweep has workers; of the 64 only `--processes` are really run, and the rest is estimated.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SWEEP = "experiments.sweeps.digits_learning_rate"
ONE = """
import json, sys
from pathlib import Path
from bigjax.config import resolve as config
from bigjax.loop.train import train
train(config.resolve(json.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2]))
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int, default=8, help="real processes to measure")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--table", type=int, default=10_000, help="synthetic finished trials")
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        load_table(folder / "table", options.table)
        separate = separate_processes(folder / "separate", options.processes, options.workers)
        shared = run_sweep(folder / "shared", options.workers)
        vectorised = run_sweep(folder / "vectorised", options.workers, "--vectorize")
        print(f"64 separate processes  {separate:7.1f} s  (from {options.processes} real ones)")
        print(f"shared compilation     {shared:7.1f} s  {separate / shared:5.1f}x  (target 3x)")
        print(
            f"vectorised             {vectorised:7.1f} s  {separate / vectorised:5.1f}x  (target 10x)"
        )
        same = (folder / "shared/sweep.csv").read_text() == (
            folder / "vectorised/sweep.csv"
        ).read_text()
        print(f"shared and vectorised sweep.csv are {'equal' if same else 'DIFFERENT'}")
        overhead(folder / "shared")


def separate_processes(folder: Path, count: int, at_once: int) -> float:
    """Seconds that 64 processes would take, `at_once` at a time, from `count` real ones."""
    trials = sweep_trials()
    chosen = trials[:: len(trials) // count][:count]
    folder.mkdir(parents=True)

    def one(trial) -> None:
        path = folder / f"{trial.name}.json"
        path.write_text(json.dumps(trial.config.values))
        command = [sys.executable, "-c", ONE, str(path), str(folder / trial.name)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)

    started = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(one, chosen))
    return (time.perf_counter() - started) * len(trials) / count


def run_sweep(folder: Path, workers: int, *flags: str) -> float:
    """Seconds of the whole command, from its start to its table."""
    command = [sys.executable, "-m", "bigjax.sweep", SWEEP, f"--workdir={folder}"]
    started = time.perf_counter()
    subprocess.run(
        [*command, f"--workers={workers}", *flags],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return time.perf_counter() - started


def overhead(folder: Path) -> None:
    """Prints what the sweep itself, and its worker, spend on a trial that takes no time."""
    from bigjax.sweep import worker
    from bigjax.sweep.drive import Plan, run_trials
    from bigjax.sweep.executors import Executor

    class Nothing(Executor):
        """A worker in this process that ends every trial at once: what is left is the sweep's own work."""

        at_once, jobs_each = 1, 1_000_000

        def start(self, commands):
            worker.work(self.room, 0, 1, self.jobs_each, lambda: False)
            return [0]

        def ended(self, handles):
            return {}

        def cancel(self, handles):
            pass

    def finish(job, stop):
        for trial in job["trials"]:
            Path(trial["folder"], "result.json").write_text(
                '{"step": 1, "fingerprint": "", "metrics": {}}'
            )

    trials, empty = sweep_trials(), folder / "nothing"
    for trial in trials:
        trial.folder(empty).mkdir(parents=True)
    worker.run_job = finish
    started = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()), Nothing() as executor:
        run_trials(trials, Plan(executor, empty, lambda: False))
    each = (time.perf_counter() - started) / len(trials)
    print(
        f"scheduling a trial     {1000 * each:7.2f} ms  ({100 * each / 30:.3f} % of a 30 s trial)"
    )


def load_table(folder: Path, count: int) -> None:
    """Prints how long `count` finished trials take into sweep.csv, sweep.md and sweep.html."""
    from bigjax.sweep.drive import conclude
    from bigjax.sweep.trials import Trial

    config = sweep_trials()[0].config
    from bigjax.sweep.trials import complete

    sweep, key = complete(get_sweep()), "optimizer.learning_rate"
    trials = []
    for i in range(count):
        point = {key: 1e-3 * (1 + i // 5), "model.dropout": (i // 5) % 7 / 10}
        trials.append(Trial(f"t{i}", config, {**point}, i % 5))
        path = trials[-1].folder(folder)
        path.mkdir(parents=True)
        value = 0.9 + (i * 7919 % 1000) / 20000
        metrics = {"eval/validation/accuracy": value, "eval/test/accuracy": value - 0.05}
        metrics["eval/test/confusion_matrix"] = [[79.0] * 10] * 10
        result = {"step": 960, "metrics": metrics, "fingerprint": "0" * 64, "seconds": 1.0}
        (path / "result.json").write_text(json.dumps(result))
    started = time.perf_counter()
    conclude(dataclasses.replace(sweep, baseline={key: 1e-3}), trials, folder)
    print(
        f"{count} finished trials into the table: {time.perf_counter() - started:.1f} s (target 10)"
    )
    shutil.rmtree(folder)


def get_sweep():
    return importlib.import_module(SWEEP).get_sweep()


def sweep_trials():
    from bigjax.sweep.trials import complete, expand

    return expand(complete(get_sweep()))


if __name__ == "__main__":
    main()
