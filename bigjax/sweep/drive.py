"""Runs a sweep: what is missing, wave by wave, on an executor, with a live table; then the results."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bigjax.loop.train import Stopped
from bigjax.run.files import write_json
from bigjax.sweep import page, results
from bigjax.sweep.describe import Sweep
from bigjax.sweep.executors import Executor, Job, Pruning
from bigjax.sweep.progress import Progress
from bigjax.sweep.results import Results
from bigjax.sweep.trials import Trial, status, waves

log = logging.getLogger("bigjax")


@dataclass(frozen=True)
class Plan:
    """How trials are run: nothing here changes a number.

    Attributes:
      vectorize: most trials that run together, or None to run each alone.
      retry_failed: run again what failed.
      pruning: early stopping, or None.
    """

    executor: Executor
    workdir: Path
    stop: Callable[[], bool]
    vectorize: int | None = None
    retry_failed: bool = False
    pruning: Pruning | None = None


def run_trials(trials: Sequence[Trial], plan: Plan) -> None:
    """Runs the trials that have not ended yet, those that others need first.

    Raises:
      Stopped: `plan.stop()` came true; what had begun is saved.
    """
    states = {trial.name: status(trial.folder(plan.workdir)) for trial in trials}
    if plan.retry_failed:
        for trial in trials:
            if states[trial.name] == "failed":
                (trial.folder(plan.workdir) / "failure.json").unlink()
                states[trial.name] = "missing"
    progress = Progress(trials, states, plan.workdir, sys.stderr)
    for wave in waves(trials):
        missing = [trial for trial in wave if states[trial.name] == "missing"]
        ready = [t for t in missing if all(states.get(n, "done") == "done" for n in t.needs)]
        for trial in missing:
            if trial not in ready:
                failed = [name for name in trial.needs if states.get(name) != "done"]
                progress.line(f"not run: {trial.name} needs {', '.join(failed)}")
        for event in plan.executor.run(jobs(ready, plan), plan.workdir, plan.stop):
            if event is not None:
                if event.status == "started":
                    _record_start(plan, event.trial)
                elif event.status != "stopped":
                    states[event.trial] = event.status
                progress.note(event)
            progress.show()
        if plan.stop():
            progress.close()
            left = sum(state == "missing" for state in states.values())
            raise Stopped(f"stopped on request, {left} of {len(trials)} trials left")
    progress.close()


def jobs(trials: Sequence[Trial], plan: Plan) -> list[Job]:
    """The trials as jobs: each alone, or those that can run together, together."""
    if not plan.vectorize:
        return [Job((trial,), pruning=plan.pruning) for trial in trials]
    from bigjax.loop.together import group_key

    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(group_key(trial.config), []).append(trial)
    parts = []
    for group in groups.values():
        count = math.ceil(len(group) / plan.vectorize)
        size = math.ceil(len(group) / count)
        parts += [tuple(group[i : i + size]) for i in range(0, len(group), size)]
    return [Job(part, vectorize=True) for part in parts]


def conclude(sweep: Sweep, trials: Sequence[Trial], workdir: Path) -> Results:
    """Reads what is there and writes sweep.csv, sweep.md and sweep.html."""
    found = results.load(sweep, trials, workdir)
    results.write_csv(found, workdir / "sweep.csv")
    results.write_markdown(found, workdir / "sweep.md")
    page.write(found, workdir)
    return found


def write_description(sweep: Sweep, trials: Iterable[Trial], workdir: Path) -> None:
    """Writes sweep.json: the sweep, and every trial's folder, point, seed and needs."""
    rows = [
        {"name": t.name, "point": t.point, "seed": t.seed, "needs": t.needs, "in_table": t.in_table}
        for t in trials
    ]
    write_json(workdir / "sweep.json", {"sweep": asdict(sweep), "trials": rows})


def _record_start(plan: Plan, name: str) -> None:
    """Appends to starts.jsonl: the order in which trials began, over all starts of the sweep."""
    line = {"trial": name, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    with open(plan.workdir / "starts.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def start_order(workdir: Path) -> list[str]:
    """The trials' names in the order in which they began, over all starts of the sweep."""
    path = workdir / "starts.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["trial"] for line in lines]
