"""What the loop of bigjax costs beside a bare one: the same jitted step, fed by hand.

    .venv/bin/python -m scripts.benchmarks.loop_overhead [--pairs=7] [--out=FILE]

Prints three figures, each a median over interleaved pairs with its quartiles:
ratio: time a step in `bigjax.loop.train` over time a step in the bare loop, 784-4096-4096-10, batch 64
    (target: at most 1.01 where a step takes 50 ms or more);
added: microseconds a step that `bigjax.loop.train` adds for a model of 150 parameter leaves that computes
    next to nothing (target: at most 200);
input_share: of the large model's time in its loop, what went into waiting for batches (target: at most 0.01).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from bigjax.build import program as programs
from bigjax.config import resolve as configs
from bigjax.loop import train
from bigjax.mesh import sharding
from scripts.benchmarks.measure import machine, summary, tell

WARM_UP = 5


def config_of(
    folder: Path, widths: tuple[int, ...], inputs: int, batch: int, steps: int, policy: str = "stop"
):
    """A run on random examples that logs as often as an experiment does and evaluates nothing."""
    generator = np.random.default_rng(0)
    np.savez(
        folder / "train.npz",
        image=generator.integers(0, 256, (4096, inputs)).astype(np.uint8),
        label=generator.integers(0, 10, 4096),
    )
    return configs.resolve(
        dict(
            train=dict(steps=steps, batch_size=batch),
            data=dict(
                source=dict(type="npz", directory=str(folder)),
                splits=dict(train="train"),
                preprocess=(dict(type="normalize", scale=255.0),),
            ),
            model=dict(type="mlp", widths=widths, outputs=10),
            task=dict(type="classification"),
            optimizer=dict(type="sgd", learning_rate=0.01),
            checkpoint=dict(every="never"),
            check=dict(policy=policy),
        )
    )


def loop_seconds(config, steps: int) -> tuple[float, float]:
    """Of `bigjax.loop.train`: seconds a step after the warm-up; share of the time that waited for batches."""
    times = []

    def clock() -> bool:  # the loop asks once a step whether to stop
        times.append(time.perf_counter())
        return False

    with tempfile.TemporaryDirectory() as folder:
        train.train(config, Path(folder) / "run", stop=clock)
        went = json.loads((Path(folder) / "run" / "time.json").read_text())["seconds"]
    assert len(times) == steps
    waited = went["input"] / (went["input"] + went["step"] + went["other"])
    return (times[-1] - times[WARM_UP]) / (steps - 1 - WARM_UP), waited


def bare_seconds(config, steps: int) -> float:
    """Seconds a step in a loop that only feeds the next batch to the step, on the same program."""
    source = config.section("data").source.open("train")
    built = programs.build_program(config, source)
    state, _ = built.init(programs.key_data(0), programs.traced_hyper(config))
    size, rows = config.get("train.batch_size"), sharding.batch_sharding(built.mesh)
    ids = np.arange(size, dtype=np.int32)
    extra = dict(mask=np.ones(size, np.float32), sample=ids, epoch=np.zeros_like(ids))
    in_flight, ahead = [], 0 if jax.default_backend() == "cpu" else train.AHEAD
    for step in range(steps):
        if step == WARM_UP + 1:
            started = time.perf_counter()
        batch = source.read((step * size + ids) % len(source))
        state, metrics = built.train_step(state, jax.device_put({**batch, **extra}, rows), {})
        in_flight.append(metrics["loss"])
        jax.block_until_ready(in_flight[max(0, step - ahead)])
    return (time.perf_counter() - started) / (steps - 1 - WARM_UP)


def pairs(count: int, **shape) -> tuple[list[float], list[float], list[float]]:
    """Seconds a step of the loop and of the bare loop, in turn, and the loop's share of waiting; the first
    of each thrown away."""
    loop, bare, waiting = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(Path(folder), **shape)
        for _ in range(count + 1):
            seconds, waited = loop_seconds(config, shape["steps"])
            loop.append(seconds)
            waiting.append(waited)
            bare.append(bare_seconds(config, shape["steps"]))
    return loop[1:], bare[1:], waiting[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40, help="of the large model")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    large = dict(widths=(4096, 4096), inputs=784, batch=64, steps=options.steps)
    loop, bare, waiting = pairs(options.pairs, **large)
    ratios = [a / b for a, b in zip(loop, bare, strict=True)]
    leaves = dict(widths=(4,) * 74, inputs=4, batch=8, steps=400)
    small_loop, small_bare, _ = pairs(options.pairs, **leaves)
    added = [(a - b) * 1e6 for a, b in zip(small_loop, small_bare, strict=True)]
    result = {
        "machine": machine(),
        "bare_ms": summary([1e3 * seconds for seconds in bare]),
        "ratio": summary(ratios),
        "bare_150_leaves_us": summary([1e6 * seconds for seconds in small_bare]),
        "added_150_leaves_us": summary(added),
        "input_share": summary(waiting),
    }
    tell(result, options.out)


if __name__ == "__main__":
    main()
