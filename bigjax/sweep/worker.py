"""Runs trials: each an ordinary run, started, resumed and stopped like any other.

`python -m bigjax.sweep.worker ROOM NUMBER WORKERS JOBS` is what every executor starts: it takes jobs from
the folder ROOM (see `bigjax.sweep.executors`) and leaves what came of them in the trials' own folders.
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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigjax.config import resolve as configs
from bigjax.core import compilers
from bigjax.core.errors import UserError, said
from bigjax.loop.train import Stopped, train
from bigjax.run.files import workdir_lock, write_json

log = logging.getLogger("bigjax")

LOOK = 0.2  # seconds between two looks at the room's file `open`
IDLE = 0.05  # seconds between two looks for a job
PATIENCE = 60.0  # seconds to wait for another process to leave a trial's folder


def work(room: Path, number: int, workers: int, most: int, stop: Callable[[], bool]) -> None:
    """Takes jobs and runs them, until `stop()`.

    Args:
      number: of this worker, among `workers` that run at once.
      most: jobs to run, and to leave before if none waits; 0: any number, and to wait for more.
    """
    waiting: list[str] = []
    done = 0
    while not stop():
        name = _take(room, number, workers, waiting)
        if name:
            run_job(json.loads((room / "taken" / name).read_text()), stop)
            os.rename(room / "taken" / name, room / "ended" / name)
            done += 1
        if most and (done == most or not name):
            return
        if not name:
            time.sleep(IDLE)


def _take(room: Path, number: int, workers: int, waiting: list[str]) -> str | None:
    """Takes a job, of this worker's share of the programs while there are any; None if none waits.

    A worker that stays with its programs compiles few. `waiting` is what the last look found.
    """

    def turn(name: str) -> tuple[bool, int, str]:
        program = int(name.partition("-")[2])
        return program % workers != number % workers, program, name

    for look in (False, True):
        if look:
            waiting[:] = sorted(os.listdir(room / "waiting"), key=turn, reverse=True)
        while waiting:
            name = waiting.pop()
            with contextlib.suppress(FileNotFoundError):  # another was faster
                os.rename(room / "waiting" / name, room / "taken" / f"{name}.{number}")
                return f"{name}.{number}"
    return None


def run_job(job: Mapping[str, Any], stop: Callable[[], bool]) -> None:
    """Runs the trials of a job.

    Args:
      job: "trials", each its folder, config and what that may import; "vectorize": run them all at
        once; "pruning": the arguments of `search.Watch`, or None.
      stop: asked every step; once true, the running trial saves and the others are not begun.
    """
    trials = job["trials"]
    for trial in trials:
        _wait_until_free(Path(trial["folder"]), stop)
    if job.get("vectorize"):
        _run_together(trials, stop)
        return
    for trial in trials:
        if not stop():
            _run_alone(trial, stop, job.get("pruning"))


def _run_alone(
    trial: Mapping[str, Any], stop: Callable[[], bool], pruning: Mapping[str, str] | None
) -> None:
    folder, watch = Path(trial["folder"]), None
    try:
        config = configs.resolve(trial["config"], trusted=trial["trusted"])
        if pruning:
            from bigjax.sweep.search import Watch

            watch = Watch(folder=folder, **pruning)
        train(
            config,
            folder,
            stop=lambda: stop() or bool(watch and watch.pruned),
            callbacks=[watch] if watch else [],
        )
    except Stopped:
        if watch and watch.pruned:
            write_json(folder / "pruned.json", watch.pruned)
    except Exception as error:  # whatever it is, the other trials go on
        fail(folder, error)
    finally:
        if watch:
            watch.close()


def _run_together(trials: Sequence[Mapping[str, Any]], stop: Callable[[], bool]) -> None:
    from bigjax.loop.together import train_together

    folders = [Path(trial["folder"]) for trial in trials]
    try:
        resolved = [configs.resolve(trial["config"], trusted=trial["trusted"]) for trial in trials]
        with contextlib.ExitStack() as locks:
            for folder in folders:
                locks.enter_context(workdir_lock(folder))
            _, failures = train_together(resolved, folders, stop=stop)
    except Stopped:
        return
    except Exception as error:
        failures = dict.fromkeys(range(len(trials)), error)
    for number, error in failures.items():
        fail(folders[number], error)


def fail(folder: Path, error: BaseException) -> None:
    """Writes failure.json: the reason, one line, and the traceback."""
    trace = "".join(traceback.format_exception(error))
    write_json(folder / "failure.json", {"reason": said(error), "traceback": trace})


def _wait_until_free(folder: Path, stop: Callable[[], bool]) -> None:
    """Waits for whoever still writes the folder: workers outlive a killed sweep by a step."""
    deadline = time.monotonic() + PATIENCE
    while not stop() and time.monotonic() < deadline:
        try:
            with workdir_lock(folder):
                return
        except UserError:
            time.sleep(0.1)


class Closed:
    """Whether a worker is to stop: its room is closed, SIGTERM has come, or its parent has died."""

    def __init__(self, room: Path):
        self._path, self._parent = room / "open", os.getppid()
        self._looked, self._closed = 0.0, False

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self._closed and now - self._looked > LOOK:
            self._looked, self._closed = now, os.getppid() != self._parent
            try:  # not `exists`, which a network file system answers from its memory
                open(self._path).close()
            except FileNotFoundError:
                self._closed = True
        return self._closed

    def close(self, number: int, frame: Any) -> None:
        self._closed = True


def main(room: str, *numbers: str) -> None:
    compilers.keep_compiled()
    closed = Closed(Path(room))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, closed.close)
    log.addHandler(logging.StreamHandler(sys.stderr))
    log.setLevel(logging.INFO)
    work(Path(room), *map(int, numbers), closed)


if __name__ == "__main__":
    main(*sys.argv[1:])
