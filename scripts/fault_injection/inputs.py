"""Other meshes, bad numbers in the data, and configs that are wrong."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bigjax.config import resolve as config
from bigjax.data import pipeline
from scripts.fault_injection.runs import (
    BATCH,
    STEPS,
    Harness,
    at_batch,
    fail,
    get_config,
    outcome,
    start,
    wait,
)

MESHES = (
    (1, {"data": 1}),
    (2, {"data": 2}),
    (4, {"data": 4}),
    (8, {"data": 8}),
    (4, {"data": 2, "fsdp": 2}),
    (8, {"data": 2, "fsdp": 4}),
)


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
        wait(
            start(
                workdir, *_mesh_flags(a), devices=MESHES[a][0], tamper=at_batch(stop_at + 1, fail)
            )
        )
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


def bad_numbers(harness: Harness, times: int, kind: str) -> tuple[int, int]:
    """Poisons a step; it must be caught, rewound, and the run repeat itself bit for bit.

    One example is made NaN. For a spike ten are blown up: one alone may still be classified well, and
    then its loss is small.
    """
    good, factor = 0, "nan" if kind == "nan" else "-3e4"
    flags = ["--config.check.policy=rewind"]
    if kind == "spike":  # measured against the last 64 losses
        flags += ["--config.check.spike=20.0", "--config.train.steps=100"]
    for _ in range(times):
        step = harness.random.randint(*((5, STEPS) if kind == "nan" else (70, 100)))
        rows = harness.random.sample(range(BATCH), 1 if kind == "nan" else 10)
        ends = []
        for _again in range(2):
            workdir = harness.fresh(kind)
            began = time.monotonic()
            code = wait(start(workdir, *flags, tamper=_poisoning(step, rows, float(factor))))
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


def _poisoning(step: int, rows: list[int], factor: float) -> Callable[[], None]:
    """Multiplies some examples of a step, wherever in the run's starts it comes."""

    def tamper() -> None:
        recorded = pipeline.train_batches

        def poisoned(source: Any, *, start_step: int, **options: Any) -> Iterator[Any]:
            batches = recorded(source, start_step=start_step, **options)
            for number, batch in enumerate(batches, start_step + 1):
                if number == step:
                    image = np.array(batch["image"])
                    image[rows] *= np.float32(factor)
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
