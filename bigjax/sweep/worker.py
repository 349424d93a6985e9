"""Runs trials: each an ordinary run, started, resumed and stopped like any other.

As a process (`python -m bigjax.sweep.worker`) it reads jobs from standard input, one JSON object a
line, and writes what happens to standard output; `run_job` is the same for anyone who calls it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bigjax.config import resolve as configs
from bigjax.core.errors import RunFailed, UserError
from bigjax.loop.train import Stopped, train
from bigjax.run.files import workdir_lock, write_json
from bigjax.sweep.executors import Event, Pruning

log = logging.getLogger("bigjax")

PATIENCE = 60.0  # seconds to wait for another process to leave a trial's folder


def run_job(job: Mapping[str, Any], stop: Callable[[], bool]) -> Iterator[Event]:
    """Runs the trials of a job and yields what happens to each.

    Args:
      job: what `executors.Job.message` returns.
      stop: asked every step; once true, the running trial saves and the others are not begun.
    """
    trials = job["trials"]
    for trial in trials:
        _wait_until_free(Path(trial["folder"]), stop)
    if job["vectorize"]:
        from bigjax.loop.together import train_together

        yield from (Event(trial["name"], "started") for trial in trials)
        yield from _together(train_together, trials, stop)
        return
    pruning = job["pruning"] and Pruning(**job["pruning"])
    for trial in trials:
        if stop():
            yield Event(trial["name"], "stopped")
            continue
        yield Event(trial["name"], "started")
        yield _alone(trial, stop, pruning)


def _wait_until_free(folder: Path, stop: Callable[[], bool]) -> None:
    """Waits for whoever still writes the folder: workers outlive a killed sweep by a step."""
    deadline = time.monotonic() + PATIENCE
    while not stop() and time.monotonic() < deadline:
        try:
            with workdir_lock(folder):
                return
        except UserError:
            time.sleep(0.1)


def fail(folder: Path, error: BaseException) -> str:
    """Writes failure.json; returns the reason, one line."""
    text = str(error).strip().partition("\n")[0]
    expected = isinstance(error, UserError | RunFailed)
    reason = text if expected and text else f"{type(error).__name__}: {text}"
    trace = "".join(traceback.format_exception(error))
    write_json(folder / "failure.json", {"reason": reason, "traceback": trace})
    return reason


def _alone(trial: Mapping[str, Any], stop: Callable[[], bool], pruning: Pruning | None) -> Event:
    name, folder = trial["name"], Path(trial["folder"])
    watch = None
    try:
        config = configs.resolve(trial["config"], trusted=trial["trusted"])
        if pruning:
            from bigjax.sweep.pruning import Watch

            watch = Watch(pruning, folder)
        train(config, folder, stop=lambda: stop() or bool(watch and watch.is_pruned()))
    except Stopped:
        if not (watch and watch.pruned):
            return Event(name, "stopped")
        write_json(folder / "pruned.json", watch.pruned)
        return Event(name, "pruned")
    except Exception as error:  # whatever it is, the other trials go on
        return Event(name, "failed", fail(folder, error))
    finally:
        if watch:
            watch.close()
    return Event(name, "done")


def _together(train_together, trials, stop) -> Iterator[Event]:
    folders = [Path(trial["folder"]) for trial in trials]
    try:
        resolved = [configs.resolve(trial["config"], trusted=trial["trusted"]) for trial in trials]
        with contextlib.ExitStack() as locks:
            for folder in folders:
                locks.enter_context(workdir_lock(folder))
            _, failures = train_together(resolved, folders, stop=stop)
    except Stopped:
        yield from (Event(trial["name"], "stopped") for trial in trials)
        return
    except Exception as error:
        failures = dict.fromkeys(range(len(trials)), error)
    for number, trial in enumerate(trials):
        if number in failures:
            yield Event(trial["name"], "failed", fail(folders[number], failures[number]))
        else:
            yield Event(trial["name"], "done")


def main() -> None:
    """Serves jobs until standard input ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints goes to the log
    asked, parent = [], os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    log.addHandler(logging.StreamHandler(sys.stderr))
    log.setLevel(logging.INFO)

    def say(message: Mapping[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    for line in sys.stdin:
        # A sweep that was killed outright leaves its workers to another parent: they stop too.
        for event in run_job(json.loads(line), lambda: bool(asked) or os.getppid() != parent):
            say(vars(event))
        say({"status": "idle"})


if __name__ == "__main__":
    main()
