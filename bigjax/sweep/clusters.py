"""Executors that hand each job's command to a scheduler: Ray, and SLURM through submitit."""

from __future__ import annotations

import getpass
import os
import signal
import subprocess
import time
import warnings
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from bigjax.core.compilers import cores, for_children
from bigjax.core.errors import UserError, needed
from bigjax.sweep.executors import Executor, at_least_one

ASK = 3.0  # seconds between two questions to SLURM's controller


class Ray(Executor):
    """A Ray task for each job, on a cluster that runs or on one of this machine's cores.

    Args:
      ray_address: a running cluster; default: one on this machine.
      cpus_per_trial: reserved for each job.
      gpus_per_trial: reserved for each job; Ray shows it no others.

    Raises:
      UserError: ray is not installed, there is no such cluster, or no room for one job here.
    """

    jobs_each = 1

    def __init__(
        self, ray_address: str | None = None, cpus_per_trial: int = 1, gpus_per_trial: int = 0
    ):
        super().__init__()
        at_least_one(cpus_per_trial=cpus_per_trial)
        self._ray = ray = needed("ray", "--executor=ray needs")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        here = {} if ray_address else {"num_cpus": len(cores()), "include_dashboard": False}
        handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            with warnings.catch_warnings():  # JAX's, of forks: ray's replace themselves at once
                warnings.filterwarnings("ignore", r"os\.fork\(\)", RuntimeWarning)
                ray.init(ray_address or "local", log_to_driver=False, **here)
        except (ConnectionError, ValueError) as error:
            hint = "if it asks for a token, set RAY_AUTH_MODE=token"
            raise UserError(f"--ray_address={ray_address}: {error} ({hint})") from None
        for number, handler in handlers.items():  # a stop is the sweep's to handle
            signal.signal(number, handler)
        there = ray.cluster_resources()
        for name, wanted in (("CPU", cpus_per_trial), ("GPU", gpus_per_trial)):
            if ray_address is None and wanted > there.get(name, 0):
                ray.shutdown()
                raise UserError(f"a trial asks for {wanted} {name}, there are {there.get(name, 0)}")
        limits = dict(num_cpus=cpus_per_trial, num_gpus=gpus_per_trial, max_retries=0)
        self._task = ray.remote(**limits)(run_command)

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self._ray.shutdown()

    def start(self, commands: Sequence[list[str]]) -> list[Hashable]:
        return [self._task.remote(command, os.getcwd()) for command in commands]

    def ended(self, handles: Sequence[Any]) -> dict[Hashable, str]:
        if not handles:
            return {}
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
            return f"its Ray task was lost: {type(error).__name__}: {text[-300:]}"
        return "its Ray task ended without a word"


class Slurm(Executor):
    """Job arrays, an element for each job. The folder of the sweep must be seen by all nodes.

    Args:
      slurm_partition: default: SLURM's.
      slurm_time: limit for a job, minutes or HH:MM:SS; default: the partition's.
      cpus_per_trial: for each job.
      gpus_per_trial: for each job.
      workers: most jobs that run together.

    Raises:
      UserError: submitit or SLURM is not installed, or SLURM does not take the array.
    """

    jobs_each = 1

    def __init__(
        self,
        slurm_partition: str | None = None,
        slurm_time: str | None = None,
        cpus_per_trial: int = 1,
        gpus_per_trial: int = 0,
        workers: int | None = None,
    ):
        super().__init__()
        at_least_one(cpus_per_trial=cpus_per_trial, workers=workers)
        self._submitit = needed("submitit", "--executor=slurm needs")
        settings = {"job_name": "bigjax-sweep", "cpus_per_task": cpus_per_trial, "time": slurm_time}
        settings |= {"partition": slurm_partition} if slurm_partition else {}
        self._settings = settings | ({"gpus_per_node": gpus_per_trial} if gpus_per_trial else {})
        self._together = workers
        self._asked, self._queue = 0.0, set()

    def start(self, commands: Sequence[list[str]]) -> list[Hashable]:
        try:
            executor = self._submitit.SlurmExecutor(self._logs)
            together = self._together or len(commands)
            executor.update_parameters(**self._settings, array_parallelism=together)
            jobs = executor.map_array(run_command, commands, [os.getcwd()] * len(commands))
        except (RuntimeError, self._submitit.core.utils.FailedJobError) as error:
            raise UserError(f"--executor=slurm: {' '.join(str(error).split())}") from None
        self._asked = time.monotonic()
        self._queue |= {job.job_id for job in jobs}
        return [job.job_id for job in jobs]

    def ended(self, handles: Sequence[Any]) -> dict[Hashable, str]:
        if time.monotonic() - self._asked > ASK:
            self._asked = time.monotonic()
            # Not `sacct`, which needs an accounting database that not every cluster has.
            command = ["squeue", "-h", "-r", "-o", "%i", "-u", getpass.getuser()]
            asked = subprocess.run(command, capture_output=True, text=True)
            if asked.returncode == 0:  # else the controller is away: ask again
                self._queue = set(asked.stdout.split())
        gone = [handle for handle in handles if handle not in self._queue]
        return {n: f"its SLURM job {n} is gone (see {self._logs}/{n}_0_log.err)" for n in gone}

    def cancel(self, handles: Sequence[Any]) -> None:
        if handles:
            subprocess.run(["scancel", *handles], check=False)

    @property
    def _logs(self) -> Path:
        return self.room.parent / "slurm"


def run_command(command: list[str], folder: str) -> None:
    """What a scheduler's task does."""
    subprocess.run(command, cwd=folder, env=for_children(os.environ), check=True)
