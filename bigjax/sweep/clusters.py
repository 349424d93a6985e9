"""Executors that hand jobs to a scheduler: Ray, and SLURM through submitit.

A job is one task of the scheduler and runs on any machine that sees the sweep's folder: it appends
what happens to a file under workers/, which the sweep reads, and it stops when the file
workers/owner names another start of the sweep, or none.
"""

from __future__ import annotations

import getpass
import json
import os
import signal
import subprocess
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigjax.core.errors import UserError
from bigjax.run.files import write_atomic, write_json
from bigjax.sweep.executors import TICK, Event, Job
from bigjax.sweep.worker import run_job

LOOK = 1.0  # seconds between two looks of a task at workers/owner
ASK = 3.0  # seconds between two questions to SLURM's controller


def work(message: Mapping[str, Any], events: str, owner: str, start: str) -> None:
    """What a task does: the job, until it is done or `owner` no longer names `start`."""
    looked, goes_on = 0.0, True

    def stop() -> bool:
        nonlocal looked, goes_on
        if goes_on and time.monotonic() - looked > LOOK:
            looked, goes_on = time.monotonic(), Path(owner).read_text() == start
        return not goes_on

    for event in run_job(message, stop):
        with open(events, "a", encoding="utf-8") as file:
            file.write(json.dumps(vars(event)) + "\n")


class _Task:
    """A job at the scheduler, and what is known of its trials."""

    def __init__(self, job: Job, events: Path):
        self.job = job
        self.events = events
        self.handle: Any = None  # the scheduler's
        self.open = {trial.name for trial in job.trials}
        self.begun: set[str] = set()
        self._read = 0  # bytes

    def news(self) -> list[Event]:
        """What has happened since the last call."""
        if not self.events.exists():
            return []
        with open(self.events, "rb") as file:
            file.seek(self._read)
            lines = file.read().splitlines(keepends=True)
        found = []
        for line in lines:
            if not line.endswith(b"\n"):
                break  # its end is on the way
            self._read += len(line)
            event = Event(**json.loads(line))
            found.append(event)
            if event.status == "started":
                self.begun.add(event.trial)
            else:
                self.open.discard(event.trial)
        return found

    def lost(self, workdir: Path, reason: str | None) -> list[Event]:
        """Ends the open trials: "failed" for a reason, else "stopped"."""
        trials = [trial for trial in self.job.trials if trial.name in self.open]
        self.open = set()
        if reason is None:
            return [Event(trial.name, "stopped") for trial in trials]
        for trial in trials:
            write_json(trial.folder(workdir) / "failure.json", {"reason": reason})
        return [Event(trial.name, "failed", reason) for trial in trials]


class _Cluster:
    """The part that does not depend on the scheduler; subclasses submit, ask and cancel."""

    def __enter__(self) -> _Cluster:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def run(
        self, jobs: Sequence[Job], workdir: Path, stop: Callable[[], bool]
    ) -> Iterator[Event | None]:
        if not jobs:
            return
        workdir, start, stopping = workdir.absolute(), uuid.uuid4().hex[:8], False
        room, owner = workdir / "workers", workdir / "workers" / "owner"
        (room / start).mkdir(parents=True)
        write_atomic(owner, start)  # tasks of an earlier start that was killed save and stop
        tasks = [_Task(job, room / start / f"{i}.jsonl") for i, job in enumerate(jobs)]
        arguments = [
            (task.job.message(workdir), str(task.events), str(owner), start) for task in tasks
        ]
        try:
            for task, handle in zip(tasks, self.submit(arguments, room), strict=True):
                task.handle = handle
            while tasks:
                if stop() and not stopping:
                    stopping = True
                    write_atomic(owner, "")
                    waiting = [task for task in tasks if not task.begun]
                    self.cancel([task.handle for task in waiting])
                    for task in waiting:
                        yield from task.lost(workdir, None)
                ended = self.ended([task.handle for task in tasks])  # asked before the last news
                for task in tasks:
                    yield from task.news()
                    if task.open and task.handle in ended:
                        reason = None if stopping else ended[task.handle]
                        yield from task.lost(workdir, reason)
                tasks = [task for task in tasks if task.open]
                yield None
                time.sleep(TICK)
        finally:
            write_atomic(owner, "")
            self.cancel([task.handle for task in tasks if task.handle and not task.begun])

    def submit(self, arguments: Sequence[tuple], room: Path) -> list[Any]:
        """Has `work` called with each of the arguments; returns hashable handles."""
        raise NotImplementedError

    def ended(self, handles: Sequence[Any]) -> dict[Any, str]:
        """Those that run no more, and how they ended, for a trial that had not."""
        raise NotImplementedError

    def cancel(self, handles: Sequence[Any]) -> None:
        """Takes back what has not begun."""
        raise NotImplementedError


class Ray(_Cluster):
    """One Ray task for each job, on a cluster that runs or on one of this machine's cores.

    Args:
      address: of a cluster, as `ray.init` takes it; None starts one here.
      cpus: reserved for each job.
      gpus: reserved for each job; Ray shows it no others.

    Raises:
      UserError: ray is not installed, there is no such cluster, or no room for one job here.
    """

    def __init__(self, address: str | None = None, cpus: int = 1, gpus: int = 0):
        try:
            import ray
        except ImportError:
            raise UserError("--executor=ray needs ray: pip install 'bigjax[ray]'") from None
        self._ray = ray
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        here = dict(num_cpus=len(os.sched_getaffinity(0)), include_dashboard=False)
        here = here if address is None else {}  # a running cluster knows what it has
        handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            with warnings.catch_warnings():  # JAX's, of forks: ray's replace themselves at once
                warnings.filterwarnings("ignore", r"os\.fork\(\)", RuntimeWarning)
                ray.init(address or "local", log_to_driver=False, **here)
        except (ConnectionError, ValueError) as error:
            hint = "if it asks for a token, set RAY_AUTH_MODE=token"
            raise UserError(f"--ray_address={address}: {error} ({hint})") from None
        for number, handler in handlers.items():  # a stop is the sweep's to handle
            signal.signal(number, handler)
        there = ray.cluster_resources()
        for name, wanted in (("CPU", cpus), ("GPU", gpus)):
            if address is None and wanted > there.get(name, 0):
                ray.shutdown()
                raise UserError(f"a trial asks for {wanted} {name}, there are {there.get(name, 0)}")
        self._task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(work)

    def __exit__(self, *exception: object) -> None:
        self._ray.shutdown()

    def submit(self, arguments: Sequence[tuple], room: Path) -> list[Any]:
        return [self._task.remote(*each) for each in arguments]

    def ended(self, handles: Sequence[Any]) -> dict[Any, str]:
        ready, _ = self._ray.wait(list(handles), num_returns=len(handles), timeout=0)
        return {handle: self._reason(handle) for handle in ready}

    def cancel(self, handles: Sequence[Any]) -> None:
        for handle in handles:
            self._ray.cancel(handle, force=True)

    def _reason(self, handle: Any) -> str:
        try:
            self._ray.get(handle)
        except self._ray.exceptions.RayError as error:
            text = " ".join(str(error).split())
            return f"its Ray task was lost: {type(error).__name__}: {text[:300]}"
        return "its Ray task ended without a word"


class Slurm(_Cluster):
    """One job array, an element for each job. The folder of the sweep must be seen by all nodes.

    Args:
      partition: SLURM's default one unless given.
      time: limit for a job, in minutes or as SLURM writes it ("2:00:00"); the partition's default.
      cpus: for each job.
      gpus: for each job.
      at_once: most jobs that run together.

    Raises:
      UserError: submitit or SLURM is not installed, or SLURM does not take the array.
    """

    def __init__(
        self,
        partition: str | None = None,
        time: str | None = None,
        cpus: int = 1,
        gpus: int = 0,
        at_once: int | None = None,
    ):
        try:
            import submitit
        except ImportError:
            raise UserError(
                "--executor=slurm needs submitit: pip install 'bigjax[slurm]'"
            ) from None
        self._submitit = submitit
        self._settings = {"job_name": "bigjax-sweep", "cpus_per_task": cpus, "time": time}
        self._settings |= {"partition": partition} if partition else {}
        self._settings |= {"gpus_per_node": gpus} if gpus else {}
        self._at_once = at_once
        self._asked, self._queue = 0.0, set()
        self._room = Path()

    def submit(self, arguments: Sequence[tuple], room: Path) -> list[Any]:
        self._room = room / "slurm"
        try:
            executor = self._submitit.SlurmExecutor(self._room)
            executor.update_parameters(
                **self._settings, array_parallelism=self._at_once or len(arguments)
            )
            jobs = executor.map_array(work, *zip(*arguments, strict=True))
        except (RuntimeError, self._submitit.core.utils.FailedJobError) as error:
            raise UserError(f"--executor=slurm: {' '.join(str(error).split())}") from None
        self._asked, self._queue = time.monotonic(), {job.job_id for job in jobs}
        return [job.job_id for job in jobs]

    def ended(self, handles: Sequence[Any]) -> dict[Any, str]:
        if time.monotonic() - self._asked > ASK:
            self._asked = time.monotonic()
            # Not `sacct`, which needs an accounting database that not every cluster has.
            asked = subprocess.run(
                ["squeue", "-h", "-r", "-o", "%i", "-u", getpass.getuser()],
                capture_output=True,
                text=True,
            )
            if asked.returncode == 0:  # else the controller is away: ask again
                self._queue = set(asked.stdout.split())
        log = f"{self._room}/{{}}_0_log.err"
        return {
            handle: f"its SLURM job {handle} is gone (see {log.format(handle)})"
            for handle in handles
            if handle not in self._queue
        }

    def cancel(self, handles: Sequence[Any]) -> None:
        if handles:
            subprocess.run(["scancel", *handles], check=False)
