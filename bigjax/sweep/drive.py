"""Runs a sweep, `run`: what is missing, on an executor, with a live table; then the results."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bigjax.loop.train import Stopped
from bigjax.run.files import workdir_lock
from bigjax.sweep import page, record, results, search
from bigjax.sweep.describe import How, Sweep
from bigjax.sweep.executors import Executor, Job, Local
from bigjax.sweep.progress import Progress
from bigjax.sweep.results import Results
from bigjax.sweep.trials import Trial, check_data, complete, expand, status


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where and how trials are run: nothing here changes a number.

    Attributes:
      pruning: the arguments of `search.Watch` but the folder, or None.
    """

    executor: Executor
    workdir: Path
    stop: Callable[[], bool]
    vectorize: int | None = None
    retry_failed: bool = False
    pruning: dict[str, Any] | None = None


def run(
    sweep: Sweep,
    workdir: Path,
    how: How = How(),  # noqa: B008 (frozen)
    executor: Callable[[], Executor] = Local,
    stop: Callable[[], bool] = lambda: False,
) -> Results:
    """Checks every trial, runs what is missing and writes the manifest, the table and the page.

    Args:
      workdir: the sweep's folder; trials that have ended there are not run again.
      executor: makes what they are run on.
      stop: once true, running trials save, and `Stopped` is raised.

    Raises:
      UserError: a config is wrong, data or a package is missing; nothing was run.
      Stopped: the same call goes on.
    """
    sweep, trials = complete(sweep), []
    if sweep.search is None:
        trials = expand(sweep)
        check_data(sweep, trials)
    else:
        search.check_search(sweep)
    pruning = None
    if how.prune:
        search.import_optuna()
        journal = str(workdir.absolute() / "pruning.journal")
        pruning = dict(rule=how.prune, metric=sweep.metric, mode=sweep.mode, journal=journal)
    with workdir_lock(workdir), executor() as place:
        start = record.new_start({**place.said, "vectorize": how.vectorize})
        plan = Plan(place, workdir, stop, how.vectorize, how.retry_failed, pruning)
        found = None
        try:
            if sweep.search is None:
                run_trials(trials, plan)
            else:
                once = iter([plan])  # what failed before is run again, but not with every batch
                later = dataclasses.replace(plan, retry_failed=False)
                trials = search.run_search(
                    sweep, workdir, lambda drawn: run_trials(drawn, next(once, later))
                )
        finally:
            if trials:  # an interrupted search tells none
                record.record(sweep, trials, workdir, start)
                found = conclude(sweep, trials, workdir)
    return found


def run_trials(trials: Sequence[Trial], plan: Plan) -> None:
    """Runs the trials that have not ended yet, those that others need first.

    Raises:
      Stopped: `plan.stop()` came true; what had begun is saved.
    """
    if plan.retry_failed:
        for trial in trials:
            (trial.folder(plan.workdir) / "failure.json").unlink(missing_ok=True)
    states = {trial.name: status(trial.folder(plan.workdir)) for trial in trials}
    how = {"vectorize": bool(plan.vectorize), "pruning": plan.pruning}

    def ready() -> list[Trial]:
        missing = [trial for trial in trials if states[trial.name] == "missing"]
        return [t for t in missing if all(states.get(n, "done") == "done" for n in t.needs)]

    with contextlib.closing(Progress(trials, states, plan.workdir, sys.stderr)) as progress:
        while wave := ready():
            for event in plan.executor.run(jobs(wave, plan), plan.workdir, plan.stop, how):
                if event is not None:
                    if event.status not in ("started", "stopped"):
                        states[event.trial] = event.status
                    progress.note(event)
                progress.show()
            if plan.stop():
                left = sum(state == "missing" for state in states.values())
                raise Stopped(f"stopped on request, {left} of {len(trials)} trials left")
        for trial in trials:
            if states[trial.name] == "missing":
                failed = [name for name in trial.needs if states.get(name) != "done"]
                progress.line(f"not run: {trial.name} needs {', '.join(failed)}")


def jobs(trials: Sequence[Trial], plan: Plan) -> list[Job]:
    """The trials as jobs: each alone, or those that can run together, together."""
    if not plan.vectorize:
        return [(trial,) for trial in trials]
    from bigjax.loop.together import group_key

    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(group_key(trial.config), []).append(trial)
    parts = []
    for group in groups.values():
        count = math.ceil(len(group) / plan.vectorize)
        size = math.ceil(len(group) / count)
        parts += [tuple(group[i : i + size]) for i in range(0, len(group), size)]
    return parts


def conclude(sweep: Sweep, trials: Sequence[Trial], workdir: Path) -> Results:
    """Reads what is there and writes sweep.csv, sweep.md and sweep.html."""
    found = results.load(sweep, trials, workdir)
    results.write_csv(found, workdir / "sweep.csv")
    results.write_markdown(found, workdir / "sweep.md")
    page.write(found, workdir)
    return found
