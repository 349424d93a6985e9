"""What distillation adds to a step: online over its two parts alone, cached over plain training.

    .venv/bin/python -m scripts.benchmarks.distill [--rounds=15] [--steps=10] [--out=FILE]
    .venv/bin/python -m scripts.benchmarks.distill --memory

Student 784-512-512-10, teacher 784-2048-2048-10, batch 256, Adam, on one device. Plain step, the teacher's
forward pass, online step and cached step take turns, `--steps` each; ratios are medians over the rounds, of
wall time and of the processor time of this process, which a busy machine disturbs less. "plain again" is the
plain step once more: what the method itself gives.

--memory: the bytes of that teacher on the fullest of 8 simulated devices (`mesh.fsdp`), over its bytes / 8; no time is taken.
"""

from __future__ import annotations

import argparse
import collections
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from bigjax.build.parts import key_data, traced_hyper
from bigjax.build.program import build_program
from bigjax.config import resolve as configs
from bigjax.config.config import Config
from bigjax.data.sources import Arrays
from scripts.benchmarks.measure import machine, summary

BATCH, CLASSES = 256, 10
RNG = np.random.default_rng(0)
COLUMNS = {
    "image": RNG.normal(size=(BATCH, 28, 28, 1)).astype(np.float32),
    "label": RNG.integers(0, CLASSES, BATCH).astype(np.int32),
}
OUTPUTS = {"teacher/outputs": RNG.normal(size=(BATCH, CLASSES)).astype(np.float32)}
DISTILL = dict(method=dict(type="distill", teacher="../teacher", alpha=0.9))
RATIOS = {
    "online": lambda s: s["online"] / (s["teacher"] + s["plain"]),
    "cached": lambda s: s["cached"] / s["plain"],
    "plain again": lambda s: s["plain again"] / s["plain"],
}


def config_of(width: int, **changes: Any) -> Config:
    values = dict(
        train=dict(steps=1, batch_size=BATCH),
        data=dict(source=dict(type="tfds", name="digits"), splits=dict(train="train")),
        model=dict(type="mlp", widths=(width, width), outputs=CLASSES),
        task=dict(type="classification"),
        optimizer=dict(type="adam", learning_rate=1e-4),
        mesh=dict(data=1),
    )
    return configs.resolve(ConfigDict({**values, **changes}))


def stepping(columns: dict[str, np.ndarray], **changes: Any) -> Callable[[int], None]:
    """`run(steps)` of a student's training step on a batch of these columns."""
    config, teacher = config_of(512, **changes), config_of(2048)
    references = {"teacher": teacher} if "method" in changes else {}
    program = build_program(config, Arrays(columns), references)
    ids = np.zeros(BATCH, np.int32)
    batch = dict(columns, mask=np.ones(BATCH, np.float32), sample=ids, epoch=ids)
    batch, (state, _) = jax.device_put(batch), program.init(key_data(0), traced_hyper(config))
    frozen = {
        name: jax.tree.map(lambda leaf: jax.numpy.full(leaf.shape, 0.01, leaf.dtype), abstract)
        for name, abstract in program.frozen.items()
    }

    def run(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, metrics = program.train_step(state, batch, frozen)
            jax.block_until_ready(metrics["loss"])

    return run


def teacher_alone() -> Callable[[int], None]:
    program = build_program(config_of(2048), Arrays(COLUMNS))
    state, _ = program.init(key_data(0), traced_hyper(config_of(2048)))
    forward = jax.jit(lambda p, x: program.model.apply({"params": p}, x, train=False))
    image = jax.device_put(COLUMNS["image"])

    def run(steps: int) -> None:
        for _ in range(steps):
            jax.block_until_ready(forward(state.params, image))

    return run


def share_of_memory() -> float:
    """Bytes of the teacher on the device that holds most, over its bytes / devices."""
    student = config_of(512, mesh=dict(fsdp=8), **DISTILL)
    program = build_program(student, Arrays(COLUMNS), {"teacher": config_of(2048)})
    held = collections.Counter()
    leaves = jax.tree.leaves(program.frozen["teacher"])
    for leaf in leaves:
        placed = jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)
        for shard in placed.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return max(held.values()) / (sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, help="write the ratios there, as JSON")
    parser.add_argument("--memory", action="store_true", help="of a sharded teacher")
    options = parser.parse_args()
    if options.memory:
        jax.config.update("jax_num_cpu_devices", 8)
        print(f"sharded teacher: {share_of_memory():.3f} of its share")
        return
    plain = stepping(COLUMNS)
    contestants = {
        "plain": plain,
        "teacher": teacher_alone(),
        "online": stepping(COLUMNS, **DISTILL),
        "cached": stepping({**COLUMNS, **OUTPUTS}, **DISTILL),
        "plain again": plain,
    }
    for run in contestants.values():
        run(3)
    seconds: dict[str, dict[str, list[float]]] = {"wall": {}, "processor": {}}
    for number in range(options.rounds):
        names = list(contestants) if number % 2 else list(reversed(contestants))
        for name in names:
            began = time.perf_counter(), time.process_time()
            contestants[name](options.steps)
            ended = time.perf_counter(), time.process_time()
            for clock, first, last in zip(seconds, began, ended, strict=True):
                seconds[clock].setdefault(name, []).append((last - first) / options.steps)
    arrays = {clock: {n: np.array(x) for n, x in one.items()} for clock, one in seconds.items()}
    result = {
        name: {clock: summary(ratio(one)) for clock, one in arrays.items()}
        for name, ratio in RATIOS.items()
    }
    text = json.dumps({"machine": machine(), **result}, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
