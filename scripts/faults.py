"""Breaks real runs on purpose and compares what comes of it with a run that nothing happened to.

Every run is a process of its own, forked from this one, which has imported JAX but not started it: a
start then costs a second. Runs are compared bit for bit in the fingerprint of the final parameters,
the whole stream of metrics and the sample ids of every step.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import numpy as np
from ml_collections import ConfigDict

from bigjax import checkpoint, config, launch, program, train
from bigjax.checkpoint import manager
from bigjax.data import pipeline
from bigjax.metrics import read_metrics, table

STEPS, BATCH, SAVE_EVERY = 60, 40, 10
TIMEOUT = 300  # seconds for one run, on a busy machine
CORRUPTIONS = ("bitflip", "truncate", "delete", "swap", "stale")
MESHES = (
    (1, {"data": 1}),
    (2, {"data": 2}),
    (4, {"data": 4}),
    (8, {"data": 8}),
    (4, {"data": 2, "fsdp": 2}),
    (8, {"data": 2, "fsdp": 4}),
)


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
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        os.environ["NPROC"] = "16"
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


class Harness:
    """A folder with the data, a reference run, and how the trials went."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.count, self.problems, self.seconds = 0, [], []
        (folder / "data").mkdir(parents=True)
        make_data(folder / "data")
        os.environ["FAULTS_DATA"] = str(folder / "data")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
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
            last = Path(f"{workdir}.log").read_text().splitlines()[-3:]
            return self.note(f"{what}: exit {code}: {' | '.join(last)}")
        differs = difference(outcome(workdir), self.reference)
        if differs:
            return self.note(f"{what}: {differs} differ")
        shutil.rmtree(workdir)
        return True

    def note(self, problem: str) -> bool:
        self.problems.append(problem)
        print(f"  PROBLEM {problem}", file=sys.stderr, flush=True)
        return False


# Processes that end. Each returns how many faults were followed by a good end.


def interruptions(harness: Harness, times: int, kind: str) -> tuple[int, int]:
    """Kills, asks to stop, or fails at random moments, up to five times a run, then finishes it."""
    good = done = 0
    while done < times:
        workdir, here, fine = harness.fresh(kind), 0, True
        for _ in range(min(5, times - done)):
            tamper = lambda: None  # noqa: E731
            if kind == "exception":
                tamper = _raising(harness.random.randint(1, STEPS))
            if kind == "save_kill":
                tamper = _dying(harness.random.randint(1, 3), harness.random.random() * 0.25)
            child = start(workdir, tamper=tamper)
            if kind in ("kill", "sigterm"):
                time.sleep(harness.random.uniform(0.2, harness.duration))
                os.kill(child, signal.SIGKILL if kind == "kill" else signal.SIGTERM)
            began = time.monotonic()
            code = wait(child)
            stopped_in = time.monotonic() - began
            if code == 0:
                break  # too late: nothing was interrupted
            here += 1
            expected = {"kill": (-9,), "save_kill": (-9,), "exception": (1,), "sigterm": (75, -15)}
            fine &= code in expected[kind] or harness.note(f"{workdir}: exit {code}")
            if kind == "sigterm":
                fine &= stopped_in < 30 or harness.note(f"{workdir}: {stopped_in:.0f} s to stop")
        if here:
            done += here
            good += here if harness.finish(workdir, f"{kind} {workdir.name}") and fine else 0
    return good, done


def pairs(harness: Harness, times: int, kind: str) -> tuple[int, int]:
    """As save_kill, for runs of two processes: both are killed while they save."""

    def run(workdir: Path, tamper: Callable[[], None] = lambda: None) -> list[int]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        flags = ("--config.mesh.fsdp=2", '--config.sharding.rules=((".*", "fsdp"),)')
        join = (f"--coordinator={address}", "--processes=2", *flags)
        children = [start(workdir, *join, f"--process_id={i}", tamper=tamper) for i in range(2)]
        first = wait(children[0])
        if first == -9:
            os.kill(children[1], signal.SIGKILL)
        return [first, wait(children[1])]

    whole, good, done = harness.fresh(kind), 0, 0
    assert run(whole) == [0, 0], Path(f"{whole}.log").read_text()
    expected = outcome(whole)
    while done < times:
        workdir, here = harness.fresh(kind), 0
        for _ in range(min(3, times - done)):
            tamper = _dying(harness.random.randint(1, 2), harness.random.random() * 0.4)
            here += run(workdir, tamper)[0] == -9
        began = time.monotonic()
        codes = run(workdir)
        harness.seconds.append(time.monotonic() - began)
        differs = difference(outcome(workdir), expected) if codes == [0, 0] else f"exits {codes}"
        if differs:
            harness.note(f"{workdir.name}: {differs}")
        done, good = done + here, good + (0 if differs else here)
    return good, done


def _raising(step: int) -> Callable[[], None]:
    """A failure of the input after so many batches of this start."""

    def tamper() -> None:
        recorded = pipeline.train_batches

        def failing(*positional: Any, **options: Any) -> Iterator[Any]:
            for number, batch in enumerate(recorded(*positional, **options), 1):
                if number == step:
                    raise RuntimeError("injected failure")
                yield batch

        pipeline.train_batches = failing

    return tamper


def _dying(number: int, seconds: float) -> Callable[[], None]:
    """SIGKILL so long after the `number`-th save of this start has begun."""

    def tamper() -> None:
        saved, calls = manager.Checkpoints.save, []

        def save(self: Any, *positional: Any, **options: Any) -> None:
            calls.append(None)
            if len(calls) == number:
                program = f"sleep {seconds}; kill -9 {os.getpid()}"
                subprocess.Popen(["sh", "-c", program])
            saved(self, *positional, **options)
            if len(calls) == number:
                time.sleep(seconds / 2)  # so that the kill finds the save, not the steps after it
                self.wait()

        manager.Checkpoints.save = save

    return tamper


# Checkpoints that rot.


def corruptions(harness: Harness, times: int, kind: str) -> tuple[int, int]:
    """Damages the newest checkpoint; it must be set aside and the one before it used."""
    source, resolved = harness.folder / "reference", config.resolve(get_config())
    steps = sorted(int(p.name) for p in (source / "checkpoints").iterdir() if p.name.isdigit())
    options = resolved.section("checkpoint")
    abstract = program.build_program(resolved, train.open_sources(resolved)["train"]).state
    origin = checkpoint.Origin(run=json.loads((source / "manifest.json").read_text())["run"])
    reader = checkpoint.Checkpoints(source, options)
    pristine = {step: jax.device_get(reader.restore(abstract, step)) for step in steps}
    reader.close()
    detected = 0
    for trial in range(times):
        workdir = harness.fresh(kind)
        shutil.copytree(source / "checkpoints", workdir / "checkpoints")
        what = damage(kind, workdir / "checkpoints", steps, trial, harness.random)
        began = time.monotonic()
        checkpoints = checkpoint.Checkpoints(workdir, options, origin)
        step, state = checkpoints.restore_newest(abstract)
        checkpoints.close()
        harness.seconds.append(time.monotonic() - began)
        equal = jax.tree.all(jax.tree.map(np.array_equal, jax.device_get(state), pristine[step]))
        aside = list((workdir / "checkpoints" / "bad").glob(f"{steps[-1]}-*/why.txt"))
        if step != steps[-1] and equal and aside:
            detected += 1
            shutil.rmtree(workdir)
        else:
            harness.note(f"{what}: step {step}, equal {equal}, set aside {bool(aside)}")
    return detected, times


def damage(kind: str, folder: Path, steps: list[int], trial: int, chance: random.Random) -> str:
    """Damages the newest checkpoint in `folder`, file after file over the trials; says how."""
    newest = folder / str(steps[-1])
    files = sorted(p for p in newest.rglob("*") if p.is_file())
    path = files[trial % len(files)]
    name, content = path.relative_to(newest), path.read_bytes()
    if kind == "bitflip":
        position, bit = chance.randrange(len(content)), chance.randrange(8)
        flipped = bytearray(content)
        flipped[position] ^= 1 << bit
        path.write_bytes(flipped)
        return f"bit {bit} of byte {position} of {name}"
    if kind == "truncate":
        length = chance.randrange(len(content))
        path.write_bytes(content[:length])
        return f"{name} cut to {length} bytes"
    if kind == "delete":
        path.unlink()
        return f"{name} deleted"
    other = folder / str(chance.choice(steps[:-1]))
    if kind == "swap":
        if trial % 5 == 0:  # the whole checkpoint
            shutil.rmtree(newest), shutil.copytree(other, newest)
            return f"checkpoint {other.name} in the place of {newest.name}"
        theirs = other / name
        if not theirs.exists() or theirs.read_bytes() == content:  # data files have random names
            path = chance.choice([p for p in files if p.parent.name == "d"])
            content = path.read_bytes()  # a file that is the same in both steps would be no fault
            theirs = chance.choice(
                [p for p in sorted(other.rglob("d/*")) if p.read_bytes() != content]
            )
        path.write_bytes(theirs.read_bytes())
        return f"{theirs.relative_to(folder)} in the place of {path.relative_to(folder)}"
    if trial % 2:  # stale: an old manifest on new files, or an old state under a new manifest
        shutil.copy(other / "manifest.json", newest / "manifest.json")
        return f"manifest of {other.name} on {newest.name}"
    shutil.rmtree(newest / "default"), shutil.copytree(other / "default", newest / "default")
    return f"files of {other.name} under the manifest of {newest.name}"


# The machine and the mesh.


def disk_full(harness: Harness, times: int, kind: str) -> tuple[int, int]:
    """Fills the disk under the checkpoints before a random save; needs root, to mount a small one."""
    good = 0
    for _ in range(times):
        workdir, number = harness.fresh(kind), harness.random.randint(2, STEPS // SAVE_EVERY)
        disk = workdir / "checkpoints"
        disk.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=True)
        try:
            code = wait(start(workdir, tamper=_filling(disk, number)))
            last = Path(f"{workdir}.log").read_text().splitlines()[-1]
            said = "was not saved" in last and "space" in last.lower()
            fine = (code == 1 and said) or harness.note(f"{kind}: exit {code}: {last}")
            newest = max(int(p.parent.name) for p in disk.glob("*/manifest.json"))
            if newest != (number - 1) * SAVE_EVERY:
                fine = harness.note(f"{kind}: the newest is of step {newest}, save {number} failed")
            (disk / "filler").unlink()
            began = time.monotonic()
            code = wait(start(workdir))
            harness.seconds.append(time.monotonic() - began)
            if code != 0 or difference(outcome(workdir), harness.reference):
                fine = harness.note(f"{kind}: exit {code}, or another end")
            good += bool(fine)
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    return good, times


def _filling(disk: Path, number: int) -> Callable[[], None]:
    def tamper() -> None:
        saved, calls = manager.Checkpoints.save, []

        def save(self: Any, *positional: Any, **options: Any) -> None:
            calls.append(None)
            if len(calls) == number:
                self.wait()
                with contextlib.suppress(OSError), open(disk / "filler", "wb", 0) as file:
                    while True:
                        file.write(bytes(512))
            saved(self, *positional, **options)

        manager.Checkpoints.save = save

    return tamper


def mesh(harness: Harness, times: int, kind: str) -> tuple[int, int]:
    """Stops on one mesh, goes on on another, and compares with staying on the first."""
    good, stop_at = 0, 30
    pairs = [(a, b) for a in range(6) for b in range(6) if a != b]
    staying: dict[int, dict[str, Any]] = {}
    for trial in range(times):
        a, b = pairs[trial * 7 % len(pairs)]
        if a not in staying:
            workdir = harness.fresh(kind)
            assert wait(start(workdir, *_mesh_flags(a), devices=MESHES[a][0])) == 0
            staying[a] = outcome(workdir)
        workdir = harness.fresh(kind)
        wait(start(workdir, *_mesh_flags(a), devices=MESHES[a][0], tamper=_raising(stop_at + 1)))
        began = time.monotonic()
        code = wait(start(workdir, *_mesh_flags(b), devices=MESHES[b][0]))
        harness.seconds.append(time.monotonic() - began)
        if code != 0:
            harness.note(f"mesh {MESHES[a]} -> {MESHES[b]}: exit {code}")
            continue
        found, expected = outcome(workdir), staying[a]
        resumed = json.loads((workdir / "manifest.json").read_text())["resumes"][-1]
        first, last = resumed["step"] + 1, resumed["step"] + 20
        off = {
            step: abs(found["metrics"][step]["train/loss"] / expected["metrics"][step]["train/loss"]
                      - 1) for step in (first, last)
        }  # fmt: skip
        problem = [
            *(["sample ids"] if found["samples"] != expected["samples"] else []),
            *([f"first loss {off[first]:.1e}"] if off[first] > 1e-6 else []),
            *([f"step 20 {off[last]:.1e}"] if off[last] > 1e-5 else []),
            *(["contract"] if "instead of" not in resumed["contract"] else []),
        ]
        if problem:
            harness.note(f"mesh {MESHES[a]} -> {MESHES[b]}: {', '.join(problem)}")
        good += not problem
    return good, times


def _mesh_flags(index: int) -> list[str]:
    axes = [f"--config.mesh.{axis}={size}" for axis, size in MESHES[index][1].items()]
    rules = ['--config.sharding.rules=((".*", "fsdp"),)'] if "fsdp" in MESHES[index][1] else []
    return axes + rules


# Numbers and configs.


def bad_numbers(harness: Harness, times: int, kind: str) -> tuple[int, int]:
    """Poisons one example; its step must be caught, rewound, and end as a run that never saw it."""
    good, factor = 0, "nan" if kind == "nan" else "-3e4"
    flags = ["--config.check.policy=rewind"]
    if kind == "spike":  # measured against the last 64 losses
        flags += ["--config.check.spike=20.0", "--config.train.steps=100"]
    for _ in range(times):
        step = harness.random.randint(*((5, STEPS) if kind == "nan" else (70, 100)))
        row = harness.random.randrange(BATCH)
        ends = []
        for _again in range(2):
            workdir = harness.fresh(kind)
            began = time.monotonic()
            code = wait(start(workdir, *flags, tamper=_poisoning(step, row, float(factor))))
            harness.seconds.append(time.monotonic() - began)
            ledger = workdir / "skipped.jsonl"
            caught = [json.loads(x)["step"] for x in ledger.read_text().splitlines()] if (
                ledger.exists()) else []  # fmt: skip
            ends.append((code, caught, outcome(workdir) if code == 0 else None))
        if repr(ends[0]) == repr(ends[1]) and ends[0][:2] == (0, [step]):
            good += 1
        else:
            harness.note(
                f"{kind} at step {step}: exit and ledger {[e[:2] for e in ends]}, or the two ends differ"
            )
    return good, times


def _poisoning(step: int, row: int, factor: float) -> Callable[[], None]:
    """Multiplies one example of a step, wherever in the run's starts it comes."""

    def tamper() -> None:
        recorded = pipeline.train_batches

        def poisoned(source: Any, *, start_step: int, **options: Any) -> Iterator[Any]:
            batches = recorded(source, start_step=start_step, **options)
            for number, batch in enumerate(batches, start_step + 1):
                if number == step:
                    image = np.array(batch["image"])
                    image[row] *= np.float32(factor)
                    batch = {**batch, "image": jax.device_put(image, batch["image"].sharding)}
                yield batch

        pipeline.train_batches = poisoned

    return tamper


def configs(harness: Harness, times: int, kind: str) -> tuple[int, int]:
    """Breaks the config; it must be refused with exit code 2 before a device is touched."""
    paths = list(config.flatten(config.resolve(get_config()).values))
    chance, good = harness.random, 0
    broken = [
        lambda: f"{_typo(chance.choice(paths), chance)}=1",
        lambda: f"{chance.choice(('train.steps', 'train.batch_size', 'log.every'))}=many",
        lambda: (
            f"{chance.choice(('train.steps', 'train.batch_size', 'checkpoint.keep'))}=-"
            f"{chance.randrange(9)}"
        ),
        lambda: (
            f"{chance.choice(('model', 'task', 'optimizer', 'data.source'))}.type="
            f"{_typo('softmax', chance)}"
        ),
        lambda: f"{chance.choice(('model', 'task'))}=None",
        lambda: f"train.accumulate={chance.choice((3, 7, 9, 11))}",
        lambda: f"evaluate.splits=('{_typo('test', chance)}',)",
        lambda: f"seed={chance.choice(('-1', '1.5', 'x', 'None'))}",
        lambda: f"mesh.{chance.choice(('data', 'fsdp'))}={chance.choice((0, -2, 1.5))}",
        lambda: f"checkpoint.every={chance.choice(('-1', '0', '1.5', 'sometimes'))}",
    ]
    for trial in range(times):
        override = broken[trial % len(broken)]()
        workdir, began = harness.fresh(kind), time.monotonic()
        touched = _spy_on_devices(workdir)
        code = wait(start(workdir, f"--config.{override}", tamper=touched))
        harness.seconds.append(time.monotonic() - began)
        lines = Path(f"{workdir}.log").read_text()
        if code == 2 and "Traceback" not in lines and not Path(f"{workdir}.touched").exists():
            good += 1
        else:
            harness.note(f"--config.{override}: exit {code}: {lines.strip().splitlines()[-1:]}")
    return good, times


def _typo(word: str, chance: random.Random) -> str:
    place = chance.randrange(len(word))
    return word[:place] + chance.choice("qxz") + word[place:]


def _spy_on_devices(workdir: Path) -> Callable[[], None]:
    def tamper() -> None:
        from jax._src import xla_bridge

        plain = xla_bridge.backends

        def spied() -> Any:
            Path(f"{workdir}.touched").touch()
            return plain()

        xla_bridge.backends = spied

    return tamper


KINDS: dict[str, Callable[[Harness, int, str], tuple[int, int]]] = {
    **dict.fromkeys(("kill", "sigterm", "exception", "save_kill"), interruptions),
    "save_kill_pair": pairs,
    **dict.fromkeys(CORRUPTIONS, corruptions),
    "disk_full": disk_full,
    "mesh": mesh,
    **dict.fromkeys(("nan", "spike"), bad_numbers),
    "config": configs,
}


def run(kinds: list[str], times: int, seed: int) -> list[dict[str, Any]]:
    """The rows of the table: for each kind how often it was tried and how often all was well."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        harness = Harness(Path(folder), seed)
        return [_forked(harness, kind, times, seed) for kind in kinds]


def _forked(harness: Harness, kind: str, times: int, seed: int) -> dict[str, Any]:
    """One row, from a process of its own, which may start JAX."""
    result = harness.folder / "row.json"
    child = os.fork()
    if child == 0:
        try:
            harness.random = random.Random(f"{kind} {seed}")
            began = time.monotonic()
            good, done = KINDS[kind](harness, times, kind)
            row = {
                "kind": kind,
                "times": done,
                "good": good,
                "silent or wrong": done - good,
                "median seconds": statistics.median(harness.seconds),
                "minutes": (time.monotonic() - began) / 60,
            }
            result.write_text(json.dumps(row))
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise SystemExit(f"the trials of {kind} could not be run")
    return json.loads(result.read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", default=",".join(KINDS), help=f"one or more of {','.join(KINDS)}")
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    kinds = options.kind.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        parser.error(f"no such kind: {', '.join(unknown)}")
    logging.getLogger("bigjax").setLevel(logging.CRITICAL)  # each run logs into a file of its own
    rows = run(kinds, options.times, options.seed)
    print(table(rows, list(rows[0])))
    return 0 if all(row["good"] == row["times"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
