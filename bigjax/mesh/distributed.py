"""Many processes as one run: joining them, one voice, one end. Costs nothing on a single process.

`jax.distributed` is the engine. A watching thread ends this process when another one fails or dies,
so that no process of a run waits for ever. Touches no config, no array and, before `initialize`, no
device.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src.distributed import global_state  # no public name leads to its key-value store
from jax.experimental import multihost_utils

from bigjax.core.errors import UserError

log = logging.getLogger("bigjax")

HEARTBEAT = 15  # seconds without a sign of life after which a process counts as dead
WATCH_PERIOD = 2.0  # seconds
END_TIMEOUT = 600  # seconds that a process which is done waits for the others

_FAILURE, _SEEN, _END, _SAME = "bigjax/failure", "bigjax/seen", "bigjax/end", "bigjax/same"
_NONE = "none: all went well"
_ended = threading.Event()
_stop_told, _stop_agreed = threading.Event(), threading.Event()
_comparisons, _questions = itertools.count(), itertools.count()
_ending = threading.Event()
_watcher: threading.Thread | None = None


def initialize(
    coordinator: str | None = None, processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the processes of this run, if it has more than one. Before any device is touched.

    With no argument, only where a cluster of several processes is found, so that a run on a laptop
    or in a cluster's interactive shell never waits.

    Args:
      coordinator: "HOST:PORT" where process 0 listens; None: as JAX's own detectors find it.
      processes: how many there are; 1 forbids joining others.
      process_id: which one this is, from 0.

    Raises:
      UserError: the arguments make no sense, or do not say what no detector finds.
    """
    global _watcher
    given = {"coordinator": coordinator, "processes": processes, "process_id": process_id}
    cluster = detected_cluster()
    if processes == 1 or (cluster is None and set(given.values()) == {None}):
        return
    _check_flags(given, cluster)
    if process_id == 0 and coordinator is not None:
        _check_port(coordinator)
    # A death is then told to the watcher, instead of ending everybody without a clear word.
    jax.config.update("jax_enable_recoverability", True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator, processes, process_id, heartbeat_timeout_seconds=HEARTBEAT
        )
    except ValueError as error:
        raise UserError(
            f"{cluster} was detected but not understood ({error}); "
            "give --coordinator=HOST:PORT --processes=N --process_id=I, or --processes=1"
        ) from None
    _exit_on_abort()
    _watcher = threading.Thread(target=_watch, name="watch the other processes", daemon=True)
    _watcher.start()


def detected_cluster() -> str | None:
    """The name of the cluster that started this process as one of several, or None.

    JAX's detectors take any SLURM step for a cluster, an interactive shell included; here a step
    counts if it has several tasks and no terminal.
    """
    env = os.environ
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PTY_PORT" not in env:
        return "SLURM"
    if int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return "Open MPI"
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        return "Kubernetes"
    # JAX sets the first where it finds TPU chips and libtpu. A process told to use the CPU is alone.
    if env.get("TPU_ML_PLATFORM") == "JAX" and env.get("JAX_PLATFORMS", "tpu").startswith("tpu"):
        return "Cloud TPU"
    return None


def simulate_devices(count: int) -> None:
    """Makes this process see `count` CPU devices. Before any device is touched.

    Raises:
      UserError: less than one.
    """
    if count < 1:
        raise UserError(f"--simulate_devices: {count} must be at least 1")
    name = "--xla_force_host_platform_device_count"
    others = [f for f in os.environ.get("XLA_FLAGS", "").split() if not f.startswith(name)]
    os.environ["XLA_FLAGS"] = " ".join([*others, f"{name}={count}"])
    # The devices' collectives wait for each other: each needs a thread of its own.
    os.environ.setdefault("NPROC", str(2 * count))
    jax.config.update("jax_platforms", "cpu")


def is_joined() -> bool:
    """Whether this process is one of several of a run."""
    return global_state.client is not None


def is_leader() -> bool:
    """Whether this is process 0: the one that writes files and talks."""
    return global_state.process_id == 0


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Inside, only process 0 prints and logs; warnings are told by all."""
    if is_leader():
        yield
        return
    log.setLevel(logging.WARNING)
    with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence):
        yield


def agree(asked: bool) -> bool:
    """Whether all processes stop now, because one of them was asked to.

    Every process calls this once a step. JAX learns of SIGTERM by itself, and lets all processes
    agree in the background on a step that none has passed: until then this is False. On one process
    it is just `asked`.
    """
    if not is_joined():
        return asked
    if asked and not _stop_told.is_set():
        _stop_told.set()
        os.kill(os.getpid(), signal.SIGTERM)
    if multihost_utils.reached_preemption_sync_point(next(_questions)):
        _stop_agreed.set()
    return _stop_agreed.is_set()


def whole(array: jax.Array) -> np.ndarray:
    """All values of an array that lies over the devices of all processes, on each of them."""
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def check_same(what: str, value: str) -> None:
    """Refuses to go on where another process has another value.

    Raises:
      UserError: this process differs from process 0.
    """
    if not is_joined():
        return
    key = f"{_SAME}/{next(_comparisons)}"
    if is_leader():
        global_state.client.key_value_set(key, value)
    if global_state.client.blocking_key_value_get(key, END_TIMEOUT * 1000) != value:
        raise UserError(f"{what} is not the same as on process 0; start all processes alike")


def end() -> None:
    """Leaves the run once every process is done; the last call of a process that goes well."""
    if not is_joined():
        return
    client = global_state.client
    client.wait_at_barrier(_END, END_TIMEOUT * 1000)
    _ended.set()
    if is_leader():  # with it goes the service, so it leaves last
        client.key_value_set(_FAILURE, _NONE)
        _watcher.join()
        everybody = list(range(global_state.num_processes))
        while len(client.get_live_nodes(everybody)) > 1:
            time.sleep(0.05)
    jax.distributed.shutdown()


def end_all(code: int, message: str, error: BaseException | None = None) -> NoReturn:
    """Ends every process of the run with this exit code and, on the others, this message.

    Does not return, and runs no clean-up: the other processes may be anywhere.

    Args:
      code: exit code.
      message: one line.
      error: what was raised here. One from inside XLA may only mean that another process died, so
        the watcher is given the time to find that out first.
    """
    if isinstance(error, jax.errors.JaxRuntimeError):
        _watcher.join(HEARTBEAT + 4 * WATCH_PERIOD)
    if error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
    _ending.set()
    failure = {"process": global_state.process_id, "code": code, "message": message}
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was first
        global_state.client.key_value_set(_FAILURE, json.dumps(failure))
    _watcher.join(HEARTBEAT)
    _exit(code)


def _watch() -> None:
    """Ends this process when another one posts a failure, dies, or comes back as a new one."""
    client, everybody = global_state.client, list(range(global_state.num_processes))
    first: dict[int, int] | None = None  # process -> the number of its incarnation
    while not _ended.is_set():
        try:
            failure = client.blocking_key_value_get(_FAILURE, int(WATCH_PERIOD * 1000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                break
        else:
            if failure == _NONE:
                return
            _obey(json.loads(failure))
        try:
            alive = client.get_live_nodes(everybody)
        except jax.errors.JaxRuntimeError:
            break
        first = first or alive
        dead = [i for i in everybody if alive.get(i) is None or alive[i] != first.get(i)]
        if dead and not _ended.is_set():
            _obey({"process": dead[0], "code": 1, "message": "died"})
    if not _ended.is_set():
        _obey({"process": 0, "code": 1, "message": "died"})


def _obey(failure: dict) -> NoReturn:
    """Says which process failed and why, and ends this one with the same exit code."""
    mine, count, client = global_state.process_id, global_state.num_processes, global_state.client
    if not _ending.is_set():  # else this process has said its own
        _say(f"process {failure['process']} of {count}: {failure['message']}")
    # Process 0 leaves last: with it goes the store that holds the message.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        if mine != 0:
            client.key_value_set(f"{_SEEN}/{mine}", "")
        else:
            deadline = time.monotonic() + 2 * WATCH_PERIOD
            for other in range(1, count):
                left = max(1, int(1000 * (deadline - time.monotonic())))
                client.blocking_key_value_get(f"{_SEEN}/{other}", left)
    _exit(failure["code"])


def _exit_on_abort() -> None:
    """Makes an abort inside XLA exit code 1: that is how JAX ends where process 0 is gone."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, _HANDLER), ctypes.c_void_p
    libc.signal(signal.SIGABRT, _aborted)


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)


@_HANDLER
def _aborted(number: int) -> None:
    # Not signal.signal: Python would run its handler later, in the main thread, and there is no later.
    reason = "XLA aborted" if is_leader() else f"process 0 of {global_state.num_processes}: died"
    _say(f"{reason}; see the lines above")
    _exit(1)


def _say(message: str) -> None:
    print(f"error: {message}; process {global_state.process_id} ends", file=sys.stderr)


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _check_port(coordinator: str) -> None:
    """Looks whether process 0 can listen there; JAX would crash the process where it cannot.

    Raises:
      UserError: the port is taken, or the address is none of this machine.
    """
    host, _, port = coordinator.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", int(port)))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--coordinator={coordinator}: process 0 cannot listen on port {port} ({reason}); "
            "give all processes another port"
        ) from None


def _check_flags(given: dict[str, Any], cluster: str | None) -> None:
    coordinator, processes, process_id = given.values()
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if missing and cluster is None:
        raise UserError(f"no cluster is detected here, so give {' and '.join(missing)} too")
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(f"--coordinator={coordinator}: must be HOST:PORT")
    if processes is not None and processes < 1:
        raise UserError(f"--processes={processes}: must be at least 1")
    if process_id is not None and not 0 <= process_id < (processes or process_id + 1):
        raise UserError(f"--process_id={process_id}: must lie in 0..{processes - 1}")
