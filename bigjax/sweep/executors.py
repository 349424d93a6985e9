"""Where trials run: one small class a place; what they share, and `Local`, this machine, are here.

The jobs of a sweep are files in workers/START/waiting/. Each place starts commands, which are workers
(`bigjax.sweep.worker`): a worker takes a job by renaming its file to taken/, runs its trials, and renames
it to ended/. How a trial ended is read from its own folder. The file workers/START/open bids them go
on: without it they save and stop. So a worker runs on any machine that sees the sweep's folder.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bigjax.core.compilers import cores, for_children
from bigjax.core.errors import UserError
from bigjax.run.files import write_json
from bigjax.sweep.trials import Trial, status, why_failed

TICK = 0.1  # seconds between two looks into the sweep's folder

Job = Sequence[Trial]
"""Trials for one worker: one, or several that it runs all at once."""


class Event(NamedTuple):
    """Something that happened to a trial; `reason` says why it failed."""

    trial: str
    status: Literal["started", "done", "failed", "stopped", "pruned"]
    reason: str = ""


class Executor:
    """Runs jobs; a context manager that gives back what it holds. A place is its three last methods.

    Attributes:
      at_once: most workers at once; None: as many as there are jobs.
      jobs_each: jobs that a worker runs before it ends; None: it waits for more.
      said: what a sweep's manifest keeps of it.
    """

    at_once: int | None = None
    jobs_each: int | None = None
    said: Mapping[str, int | None] = {}

    def __init__(self) -> None:
        self.room: Path | None = None  # workers/START
        self._workers: dict[Hashable, int] = {}  # handle -> number
        self._able: set[int] = set()  # workers that have taken a job
        self._programs: dict[str, int] = {}  # fingerprint -> number
        self._jobs = self._started = 0

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.room:
            (self.room / "open").unlink(missing_ok=True)
            self.cancel(list(self._workers))
            if exception[0] is None:
                shutil.rmtree(self.room, ignore_errors=True)

    def run(
        self,
        jobs: Sequence[Job],
        workdir: Path,
        stop: Callable[[], bool],
        how: Mapping[str, Any] | None = None,
    ) -> Iterator[Event | None]:
        """Yields every trial's events, and None now and then, until all jobs have ended.

        Once `stop()` is true no job is begun, running trials save and end "stopped". `how` goes to
        `worker.run_job` with each job.
        """
        workdir, stopping = workdir.absolute(), False
        self._open(workdir)
        # File -> job that has not ended.
        left = {self._put(job, workdir, how or {}): job for job in jobs}
        begun: set[str] = set()
        while left:
            lost: list[tuple[Path, str | None]] = []  # (file, why its job ended without a word)
            if stop() and not stopping:
                stopping = True
                (self.room / "open").unlink()
                lost = [(path, None) for path in self._files("waiting")]
                self.cancel([handle for handle, n in self._workers.items() if n not in self._able])
            elif not stopping:
                self._start(min(self.at_once or len(left), len(left)) - len(self._workers))
            gone = self.ended(list(self._workers))  # asked before the last look into the folders
            for folder in ("taken", "ended"):
                for path in self._files(folder):
                    name, worker = path.stem, int(path.suffix[1:])
                    self._able.add(worker)
                    if name not in begun:
                        begun.add(name)
                        yield from (Event(trial.name, "started") for trial in left[name])
                    if folder == "ended":
                        lost.append((path, None))
            for handle, why in gone.items():
                number, why = self._workers.pop(handle), None if stopping else why
                held = [path for path in self._files("taken") if path.suffix == f".{number}"]
                if not held and number not in self._able:  # it cannot even start
                    held = self._files("waiting")[:1]
                lost += [(path, why) for path in held]
            for path, why in lost:
                if _removed(path):  # else a worker was faster, and takes it or has ended it
                    yield from _endings(left.pop(path.stem), workdir, why)
            yield None
            if left:
                time.sleep(TICK)

    def start(self, commands: Sequence[list[str]]) -> list[Hashable]:
        """Has the commands run; returns a handle for each."""
        raise NotImplementedError

    def ended(self, handles: Sequence[Any]) -> dict[Hashable, str]:
        """Those that run no more, and how they ended, as the reason of a trial that had not."""
        raise NotImplementedError

    def cancel(self, handles: Sequence[Any]) -> None:
        """Ends workers that do nothing, or have not begun."""
        raise NotImplementedError

    def _open(self, workdir: Path) -> None:
        if self.room is None:
            for path in workdir.glob("workers/*/open"):  # of a start that was killed
                path.unlink()
            self.room = workdir / "workers" / uuid.uuid4().hex[:8]
            for name in ("waiting", "taken", "ended"):
                (self.room / name).mkdir(parents=True)
            (self.room / "open").touch()

    def _put(self, job: Job, workdir: Path, how: Mapping[str, Any]) -> str:
        """Writes a job's file; its name says its turn, and which program its trials share."""
        program = job[0].config.program_fingerprint
        number = self._programs.setdefault(program, len(self._programs))
        name, self._jobs = f"{self._jobs:06d}-{number}", self._jobs + 1
        trials = [
            {
                "folder": str(trial.folder(workdir)),
                "config": trial.config.values,
                "trusted": sorted(trial.config.trusted),
            }
            for trial in job
        ]
        (self.room / name).write_text(json.dumps({"trials": trials, **how}))
        os.rename(self.room / name, self.room / "waiting" / name)
        return name

    def _files(self, folder: str) -> list[Path]:
        """The jobs that wait (NAME), are taken, or have ended (NAME.WORKER)."""
        return [self.room / folder / name for name in sorted(os.listdir(self.room / folder))]

    def _start(self, count: int) -> None:
        numbers = range(self._started, self._started + max(0, count))
        worker = [sys.executable, "-m", "bigjax.sweep.worker", str(self.room)]
        limits = [str(self.at_once or 1), str(self.jobs_each or 0)]
        commands = [[*worker, str(number), *limits] for number in numbers]
        if commands:
            self._workers |= dict(zip(self.start(commands), numbers, strict=True))
            self._started += len(commands)


def _removed(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _endings(job: Job, workdir: Path, lost: str | None) -> Iterator[Event]:
    """How each trial of a job ended, by its folder; an open one failed if its worker was `lost`."""
    for trial in job:
        folder = trial.folder(workdir)
        if lost and status(folder) == "missing":
            write_json(folder / "failure.json", {"reason": lost})
        state = status(folder)
        yield Event(trial.name, "stopped" if state == "missing" else state, why_failed(folder))


class Local(Executor):
    """Worker processes on this machine, each with devices of its own: accelerators, else cores.

    Args:
      workers: at once; default: as devices or cores allow.
      devices: accelerators (or cores) for each worker.
    """

    def __init__(self, workers: int | None = None, devices: int = 1):
        super().__init__()
        at_least_one(workers=workers, devices=devices)
        self.said = {"workers": workers, "devices": devices}
        self._accelerators, self._cores = accelerators(), cores()
        there = len(self._accelerators) or len(self._cores)
        self.at_once, self._devices = workers or max(1, there // devices), devices
        self._slots: dict[subprocess.Popen, int] = {}  # running ones -> which share of the devices

    def start(self, commands: Sequence[list[str]]) -> list[Hashable]:
        return [self._process(command) for command in commands]

    def ended(self, handles: Sequence[Any]) -> dict[Hashable, str]:
        found = {}
        for process in handles:
            if (code := process.poll()) is not None:
                how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                log = self._log(self._slots.pop(process))
                found[process] = f"the worker process ended with {how} (see {log})"
        return found

    def cancel(self, handles: Sequence[Any]) -> None:
        for process in handles:
            process.terminate()
        for process in handles:
            process.wait()

    def _process(self, command: list[str]) -> subprocess.Popen:
        slot = next(i for i in range(self.at_once) if i not in self._slots.values())
        variables, mine = self._share(slot)
        # A script's own folder is on its path, not on its workers'; the config may name what lies there.
        path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with open(self._log(slot), "a") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**for_children(os.environ), **path, **variables},
                start_new_session=True,  # a Ctrl-C in the terminal is for the sweep to pass on
            )
        if mine and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, mine)
        self._slots[process] = slot
        return process

    def _log(self, slot: int) -> Path:
        return self.room.parent / f"{slot}.log"

    def _share(self, slot: int) -> tuple[dict[str, str], list[int]]:
        """(environment variables, cores) that give a worker devices of its own."""
        mine = range(slot * self._devices, (slot + 1) * self._devices)
        if self._accelerators:
            chosen = [self._accelerators[i % len(self._accelerators)] for i in mine]
            return {"CUDA_VISIBLE_DEVICES": ",".join(chosen)}, []
        return {}, [self._cores[i % len(self._cores)] for i in mine] if self.at_once > 1 else []


def accelerators() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them. Touches none."""
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    return [str(i) for i, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def at_least_one(**flags: int | None) -> None:
    for name, value in flags.items():
        if value is not None and value < 1:
            raise UserError(f"--{name}={value}: at least 1")
