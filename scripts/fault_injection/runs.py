"""Real runs in processes of their own, and what must not depend on the faults they meet.

Every run is forked from a process that has imported JAX but not started it: a start then costs a
second. Runs are compared bit for bit in the fingerprint of the final parameters, the whole stream of
metrics and the sample ids of every step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from bigjax.data import pipeline
from bigjax.run.writers import read_metrics
from bigjax.verbs import launch

STEPS, BATCH, SAVE_EVERY = 60, 40, 10
TIMEOUT = 300  # seconds for one run, on a busy machine


def get_config() -> ConfigDict:
    """Digits into a small MLP with dropout, Adam and evaluations: a few seconds."""
    return ConfigDict(
        dict(
            train=dict(steps=STEPS, batch_size=BATCH),
            data=dict(
                source=dict(type="npz", directory=os.environ["FAULTS_DATA"]),
                splits=dict(train="train", test="test"),
                preprocess=(dict(type="normalize", scale=16.0),),
            ),
            model=dict(type="mlp", widths=(32,), outputs=10, dropout=0.1),
            task=dict(type="classification"),
            optimizer=dict(type="adam", learning_rate=1e-2),
            evaluate=dict(splits=("test",), every=20, batch_size=80),
            checkpoint=dict(every=SAVE_EVERY, keep=4, best="eval/test/accuracy"),
            log=dict(every=1, tensorboard=False),
        )
    )


def make_data(folder: Path) -> None:
    """scikit-learn's digits as two .npz files, float32, so that a NaN fits in."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images, labels = images.reshape(-1, 8, 8, 1).astype(np.float32), labels.astype(np.int32)
    for name, rows in (("train", slice(0, 1000)), ("test", slice(1000, 1400))):
        np.savez(folder / f"{name}.npz", image=images[rows], label=labels[rows])


# One run in a process of its own.


def start(
    workdir: Path, *arguments: str, tamper: Callable[[], None] = lambda: None, devices: int = 1
) -> int:
    """Forks a process that trains in `workdir`; returns its number. `tamper` runs in it first."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        workdir.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(f"{workdir}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, 1), os.dup2(handle, 2)
        count = f"--xla_force_host_platform_device_count={devices}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}"  # the last one holds
        os.environ["NPROC"] = "16"
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also under nohup, whose children ignore it
        if not any(argument.startswith("--processes") for argument in arguments):
            _record_samples(Path(f"{workdir}.samples"))
        tamper()
        sys.argv = ["faults", f"--workdir={workdir}", *arguments]
        code = launch.execute("scripts.faults", get_config, sys.argv[1:])
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def wait(child: int, timeout: float = TIMEOUT) -> int:
    """The exit code of a run; negative: the signal that killed it."""
    deadline = time.monotonic() + timeout
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError(f"process {child} ran for more than {timeout} s")
        time.sleep(0.005)


def _record_samples(path: Path) -> None:
    """Makes the run append one line per step that it takes from the pipeline: step and ids."""
    plain = pipeline.train_batches

    def recorded(source: Any, *, start_step: int, **options: Any) -> Iterator[Any]:
        with open(path, "a") as file:
            for step, batch in enumerate(
                plain(source, start_step=start_step, **options), start_step
            ):
                ids = np.asarray(batch["sample"]).tobytes() + np.asarray(batch["epoch"]).tobytes()
                file.write(f"{step + 1} {hashlib.sha256(ids).hexdigest()}\n")
                file.flush()
                yield batch

    pipeline.train_batches = recorded


def outcome(workdir: Path) -> dict[str, Any]:
    """What must not depend on interruptions: final parameters, every metric, every sample id."""
    samples, record = {}, Path(f"{workdir}.samples")
    for line in record.read_text().splitlines() if record.exists() else ():
        step, _, digest = line.partition(" ")
        if len(digest) == 64 and samples.setdefault(int(step), digest) != digest:
            samples[int(step)] = "differs between two starts"
    metrics: dict[int, dict[str, Any]] = {}
    for line in read_metrics(workdir / "metrics.jsonl"):
        metrics.setdefault(line["step"], {}).update(line)
    result = json.loads((workdir / "result.json").read_text())
    return {
        "fingerprint": result["fingerprint"],
        "result": result["metrics"],
        "metrics": metrics,
        "samples": {step: samples.get(step) for step in range(1, STEPS + 1)},
    }


def difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """What differs, as text of every digit: there, a NaN equals a NaN."""
    return ", ".join(key for key in expected if repr(found.get(key)) != repr(expected[key]))


def last_lines(workdir: Path) -> str:
    """The end of what a run printed."""
    return " | ".join(Path(f"{workdir}.log").read_text().splitlines()[-3:])


class Harness:
    """A folder with the data and a reference run, once prepared, and how the trials went."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.count, self.problems, self.seconds = 0, [], []

    def prepare(self) -> None:
        """Makes the data and the reference run, and compiles what all runs share."""
        folder = self.folder
        (folder / "data").mkdir(parents=True)
        make_data(folder / "data")
        os.environ["FAULTS_DATA"] = str(folder / "data")
        # JAX is imported, and would not look at the environment any more.
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        for name in ("compiling", "reference"):  # the second knows how long a start takes
            began = time.monotonic()
            code = wait(start(folder / name))
            assert code == 0, (folder / f"{name}.log").read_text()
            self.duration = time.monotonic() - began
        self.reference = outcome(folder / "reference")

    def fresh(self, name: str) -> Path:
        self.count += 1
        return self.folder / f"{name}{self.count}"

    def finish(self, workdir: Path, what: str, *arguments: str) -> bool:
        """Runs to the end and compares with the reference; notes what is not equal."""
        began = time.monotonic()
        code = wait(start(workdir, *arguments))
        self.seconds.append(time.monotonic() - began)
        if code != 0:
            return self.note(f"{what}: exit {code}: {last_lines(workdir)}")
        differs = difference(outcome(workdir), self.reference)
        if differs:
            return self.note(f"{what}: {differs} differ")
        shutil.rmtree(workdir)
        return True

    def note(self, problem: str) -> bool:
        self.problems.append(problem)
        print(f"  PROBLEM {problem}", file=sys.stderr, flush=True)
        return False


def at_batch(number: int, act: Callable[[], None]) -> Callable[[], None]:
    """Does something when the input comes to so many batches of this start."""

    def tamper() -> None:
        recorded = pipeline.train_batches

        def acting(*positional: Any, **options: Any) -> Iterator[Any]:
            for count, batch in enumerate(recorded(*positional, **options), 1):
                if count == number:
                    act()
                yield batch

        pipeline.train_batches = acting

    return tamper


def fail() -> None:
    raise RuntimeError("injected failure")


def hang_up() -> None:
    os.kill(os.getpid(), signal.SIGHUP)
