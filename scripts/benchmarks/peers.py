"""Samples a second of the 784-4096-4096-10 MLP (batch 64, SGD) against PyTorch and Keras.

    python3 -m venv /tmp/peers
    /tmp/peers/bin/pip install -r scripts/benchmarks/requirements-peers.txt
    .venv/bin/python -m scripts.benchmarks.peers --python=/tmp/peers/bin/python [--rounds=7]

Every contestant is a process of its own that trains some steps when told to, and the rounds go round
in turn, so that all see the same machine. bigjax runs its whole loop (reading, transforms, logging), once
with its guard and once with `check.policy="off"`; PyTorch and Keras are fed from arrays that lie ready in memory. The
figure is the median over rounds of (bigjax's samples a second / the peer's); targets: 1.15 over PyTorch, over
Keras 0.95 with the guard and 1.0 without. `bigjax_over.bigjax_off` is what the guard costs.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from scripts.benchmarks.measure import answer, compare, in_turn

BATCH, INPUTS, CLASSES, RATE, WARM_UP = 64, 784, 10, 0.01, 5
OURS = {"bigjax": "stop", "bigjax_off": "off"}  # contestant -> `check.policy`
CONTESTANTS = (*OURS, "torch_eager", "torch_compile", "keras_jax")


def examples(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Ready images (steps * BATCH, 784) float32 and labels (steps * BATCH,) int64."""
    generator = np.random.default_rng(0)
    images = generator.random((steps * BATCH, INPUTS), np.float32)
    return images, generator.integers(0, CLASSES, steps * BATCH)


def bigjax_round(steps: int, width: int, policy: str) -> Callable[[], float]:
    import tempfile

    from scripts.benchmarks.loop_overhead import config_of, loop_seconds

    folder = tempfile.mkdtemp()
    total = steps + WARM_UP + 1
    shape = dict(widths=(width,) * 2, inputs=INPUTS, batch=BATCH, steps=total)
    config = config_of(Path(folder), **shape, policy=policy)
    return lambda: loop_seconds(config, total)[0] * steps


def torch_round(steps: int, width: int, compiled: bool) -> Callable[[], float]:
    import torch

    layers = []
    for inputs, outputs in itertools.pairwise((INPUTS, width, width, CLASSES)):
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    loss_of = torch.compile(model) if compiled else model
    images, labels = (torch.from_numpy(values) for values in examples(steps))

    def run() -> float:
        started = time.perf_counter()
        for step in range(steps):
            rows = slice(step * BATCH, (step + 1) * BATCH)
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(loss_of(images[rows]), labels[rows])
            loss.backward()
            optimizer.step()
        loss.item()
        return time.perf_counter() - started

    return run


def keras_round(steps: int, width: int) -> Callable[[], float]:
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    hidden = [keras.layers.Dense(width, "relu") for _ in range(2)]
    model = keras.Sequential([keras.Input((INPUTS,)), *hidden, keras.layers.Dense(CLASSES)])
    model.compile(
        keras.optimizers.SGD(RATE), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    images, labels = examples(steps)

    def run() -> float:
        started = time.perf_counter()
        model.fit(images, labels, batch_size=BATCH, epochs=1, shuffle=False, verbose=0)
        return time.perf_counter() - started

    return run


def work(name: str, steps: int, width: int) -> None:
    """A contestant's process."""
    answer(
        {
            **{
                ours: lambda p=policy: bigjax_round(steps, width, p)
                for ours, policy in OURS.items()
            },
            "torch_eager": lambda: torch_round(steps, width, compiled=False),
            "torch_compile": lambda: torch_round(steps, width, compiled=True),
            "keras_jax": lambda: keras_round(steps, width),
        }[name]()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default="/tmp/peers/bin/python", help="that has the peers")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="a round")
    parser.add_argument("--width", type=int, default=4096, help="of both hidden layers")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.steps, options.width)
        return

    commands = {}
    for name in CONTESTANTS:
        python = sys.executable if name in OURS else options.python
        command = [python, "-m", "scripts.benchmarks.peers", f"--steps={options.steps}"]
        commands[name] = [*command, f"--work={name}", f"--width={options.width}"]
    seconds, peaks = in_turn(commands, options.rounds)

    compare(seconds, peaks, options.steps * BATCH, options.out, ours=tuple(OURS))


if __name__ == "__main__":
    main()
