"""Where trials run. An executor takes jobs and tells, as it happens, how their trials begin and end.

`Local` runs them in processes of this machine. Another executor (a cluster) is a class with the same
two methods; what a job does is in `bigjax.sweep.worker`, whoever starts it.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from bigjax.core.compilers import for_children
from bigjax.run.files import write_json
from bigjax.sweep.trials import Trial

TICK = 0.5  # seconds after which `run` yields None if nothing happens


@dataclass(frozen=True)
class Pruning:
    """Early stopping: optuna's rule, over the values of one metric (see `bigjax.sweep.pruning`)."""

    rule: Literal["median", "halving"]
    metric: str
    mode: Literal["max", "min"]
    journal: str  # path of optuna's journal file


@dataclass(frozen=True)
class Job:
    """Trials for one process to run one after another, or, vectorised, all at once."""

    trials: tuple[Trial, ...]
    vectorize: bool = False
    pruning: Pruning | None = None

    @property
    def program(self) -> str:
        """Jobs of one program share its compilation within a process."""
        return self.trials[0].config.program_fingerprint

    def message(self, workdir: Path) -> dict[str, Any]:
        """The job as plain JSON, all that a worker needs."""
        return {
            "trials": [
                {
                    "name": t.name,
                    "folder": str(t.folder(workdir)),
                    "config": t.config.values,
                    "trusted": sorted(t.config.trusted),
                }
                for t in self.trials
            ],
            "vectorize": self.vectorize,
            "pruning": self.pruning and asdict(self.pruning),
        }


@dataclass(frozen=True)
class Event:
    """Something that happened to a trial; `reason` says why it failed."""

    trial: str
    status: Literal["started", "done", "failed", "stopped", "pruned"]
    reason: str = ""


class Executor(Protocol):
    """Runs jobs; a context manager that gives back what it holds."""

    def run(
        self, jobs: Sequence[Job], workdir: Path, stop: Callable[[], bool]
    ) -> Iterator[Event | None]:
        """Yields every trial's events, and None now and then, until all jobs have ended.

        Once `stop()` is true no job is begun, running trials save and end "stopped".
        """
        ...

    def __enter__(self) -> Executor: ...

    def __exit__(self, *exception: object) -> None: ...


class Local:
    """Worker processes on this machine, each of which runs many trials.

    A worker has devices of its own: accelerators where there are any, else a share of the cores.
    Workers outlive a call of `run`, so that later jobs find their programs compiled.

    Args:
      workers: processes; default as many as the devices (or cores) allow, and never more than jobs.
      devices: accelerators (or cores) for each.
    """

    def __init__(self, workers: int | None = None, devices: int = 1):
        self._accelerators = accelerators()
        self._cores = sorted(os.sched_getaffinity(0))
        there = len(self._accelerators) or len(self._cores)
        self._limit = workers or max(1, there // devices)
        self._devices = devices
        self._workers: list[_Worker] = []
        self._inbox: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers:
            worker.end()

    def run(
        self, jobs: Sequence[Job], workdir: Path, stop: Callable[[], bool]
    ) -> Iterator[Event | None]:
        waiting, stopping = list(jobs), False
        while waiting or any(worker.job for worker in self._workers):
            if stop() and not stopping:
                waiting, stopping = [], True
                for worker in self._workers:
                    worker.ask_to_stop()
            for worker in self._idle(len(waiting), workdir):
                job = worker.choose(waiting, [w.programs for w in self._workers if w is not worker])
                waiting.remove(job)
                worker.start(job, workdir)
            try:
                worker, message = self._inbox.get(timeout=TICK)
            except queue.Empty:
                yield None
                continue
            if message is None:
                rest, events = worker.died(workdir, stopping)
                self._workers.remove(worker)
                waiting += [] if stopping else rest
                yield from events
            elif message["status"] == "idle":
                worker.job = None
            else:
                yield worker.note(Event(**message))

    def _idle(self, wanted: int, workdir: Path) -> list[_Worker]:
        idle = [worker for worker in self._workers if worker.job is None]
        taken = {worker.number for worker in self._workers}
        for number in range(self._limit):
            if number not in taken and len(idle) < wanted:
                worker = _Worker(number, self._place(number), workdir, self._inbox)
                self._workers.append(worker)
                idle.append(worker)
        return idle[:wanted]

    def _place(self, number: int) -> tuple[dict[str, str], list[int] | None]:
        """(environment variables, cores) that give worker `number` devices of its own."""
        mine = range(number * self._devices, (number + 1) * self._devices)
        if self._accelerators:
            there = len(self._accelerators)
            chosen = [self._accelerators[i % there] for i in mine]
            return {"CUDA_VISIBLE_DEVICES": ",".join(chosen)}, None
        return {}, [self._cores[i % len(self._cores)] for i in mine] if self._limit > 1 else None


class _Worker:
    """One process of `bigjax.sweep.worker`, and what it is doing."""

    def __init__(self, number: int, place: Any, workdir: Path, inbox: queue.Queue):
        self.number = number
        self.job: Job | None = None
        self.programs: set[str] = set()
        self._open: list[str] = []  # trials of the job that have not ended
        self._current: list[str] = []  # those that have begun
        self._log = workdir / "workers" / f"{number}.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        variables, cores = place
        with open(self._log, "a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bigjax.sweep.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**for_children(os.environ), **variables},
                start_new_session=True,  # a Ctrl-C in the terminal is for the sweep to pass on
                text=True,
            )
        if cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self._process.pid, cores)
        threading.Thread(target=self._listen, args=(inbox,), daemon=True).start()

    def choose(self, waiting: list[Job], others: list[set[str]]) -> Job:
        """A job whose program is compiled here; else one that nobody has; else the first."""
        for job in waiting:
            if job.program in self.programs:
                return job
        return next(
            (job for job in waiting if not any(job.program in known for known in others)),
            waiting[0],
        )

    def start(self, job: Job, workdir: Path) -> None:
        self.job = job
        self.programs.add(job.program)
        self._open = [trial.name for trial in job.trials]
        self._current = []
        self._send(job.message(workdir))

    def note(self, event: Event) -> Event:
        if event.status == "started":
            self._current.append(event.trial)
        else:
            self._open.remove(event.trial)
        return event

    def ask_to_stop(self) -> None:
        if self.job:
            self._process.send_signal(signal.SIGTERM)

    def died(self, workdir: Path, stopping: bool) -> tuple[list[Job], list[Event]]:
        """What is left to run of the job, and how the trials that ran when it died ended."""
        code = self._process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        reason = f"the worker process ended with {how} (see {self._log})"
        if self.job is None:
            return [], []
        ended = [t for t in self.job.trials if t.name in self._open and t.name in self._current]
        rest = [t for t in self.job.trials if t.name in self._open and t.name not in self._current]
        if stopping:
            return [], [Event(trial.name, "stopped") for trial in ended]
        for trial in ended:
            write_json(trial.folder(workdir) / "failure.json", {"reason": reason})
        if not ended and code:  # it cannot even start
            return [], [Event(trial.name, "failed", reason) for trial in rest]
        left = [Job(tuple(rest), self.job.vectorize, self.job.pruning)] if rest else []
        return left, [Event(trial.name, "failed", reason) for trial in ended]

    def end(self) -> None:
        """Lets an idle process go, and ends a busy one."""
        if self.job:
            self._process.kill()
        self._process.stdin.close()
        self._process.wait()

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died: the listener says so

    def _listen(self, inbox: queue.Queue) -> None:
        for line in self._process.stdout:
            inbox.put((self, json.loads(line)))
        inbox.put((self, None))


def accelerators() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them. Touches none."""
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    return [str(i) for i, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]
