"""Samples a second of a ResNet-18 training step on the CPU, against PyTorch, eager and compiled.

    .venv/bin/python -m scripts.benchmarks.resnet [--rounds=7] [--size=224 --batch=16] [--out=FILE]

SGD with momentum, float32, BatchNorm in training, ready batches in memory. Every contestant is a
process of its own that trains some steps when told to, and the rounds go round in turn, so that all
see the same machine. Needs torch (requirements-test.txt). The figure is the median over rounds of
(bigjax's samples a second / the peer's); target: at least 1.0.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from scripts.benchmarks.measure import answer, compare, in_turn

CLASSES, RATE, MOMENTUM, LAYERS, WIDTH = 1000, 0.01, 0.9, (2, 2, 2, 2), 64


def examples(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Images (steps * batch, size, size, 3) float32 and labels int64."""
    generator = np.random.default_rng(0)
    rows = options.steps * options.batch
    images = generator.standard_normal((rows, options.size, options.size, 3), np.float32)
    return images, generator.integers(0, CLASSES, rows)


def bigjax_round(options: argparse.Namespace) -> Callable[[], float]:
    import jax

    from bigjax.build.parts import key_data, traced_hyper
    from bigjax.build.program import build_program
    from bigjax.config.resolve import resolve
    from bigjax.data.sources import Arrays
    from bigjax.mesh import sharding
    from bigjax.models.resnet import PRESETS

    images, labels = examples(options)
    source = Arrays({"image": images, "label": labels})
    raw = dict(
        train=dict(steps=10**6, batch_size=options.batch),
        data=dict(source=dict(type="npz", directory="unused"), splits=dict(train="train")),
        model=dict(type="resnet", outputs=CLASSES, **PRESETS["18"]),
        task=dict(type="classification"),
        optimizer=dict(type="momentum", learning_rate=RATE, momentum=MOMENTUM),
    )
    config = resolve(raw)
    program = build_program(config, source)
    state = program.init(key_data(0), traced_hyper(config))[0]
    layout, batches = sharding.batch_sharding(program.mesh), []
    for step in range(options.steps):
        rows = np.arange(step * options.batch, (step + 1) * options.batch)
        extra = dict(
            mask=np.ones(options.batch, np.float32),
            sample=rows.astype(np.int32),
            epoch=np.zeros(options.batch, np.int32),
        )
        batches.append(jax.device_put({**source.read(rows), **extra}, layout))

    def run() -> float:
        nonlocal state
        started = time.perf_counter()
        for batch in batches:
            state, metrics = program.train_step(state, batch, {})
        jax.block_until_ready(metrics)
        return time.perf_counter() - started

    return run


def torch_round(options: argparse.Namespace, compiled: bool) -> Callable[[], float]:
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int):
            super().__init__()
            self.f = nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
                nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )
            same = stride == 1 and inputs == outputs
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = (
                nn.Identity() if same else nn.Sequential(projection, nn.BatchNorm2d(outputs))
            )

        def forward(self, x):
            return torch.relu(self.f(x) + self.shortcut(x))

    layers = [
        nn.Conv2d(3, WIDTH, 7, 2, 3, bias=False),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    inputs = WIDTH
    for stage, blocks in enumerate(LAYERS):
        for i in range(blocks):
            outputs = WIDTH * 2**stage
            layers.append(Block(inputs, outputs, 2 if stage and not i else 1))
            inputs = outputs
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))
    model = nn.Sequential(*layers, *head)
    assert sum(p.numel() for p in model.parameters()) == 11_689_512  # as published
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    logits_of = torch.compile(model) if compiled else model
    images, labels = (torch.from_numpy(values) for values in examples(options))
    images = images.permute(0, 3, 1, 2).contiguous()  # PyTorch's own layout

    def run() -> float:
        started = time.perf_counter()
        for step in range(options.steps):
            rows = slice(step * options.batch, (step + 1) * options.batch)
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits_of(images[rows]), labels[rows]).backward()
            optimizer.step()
        return time.perf_counter() - started

    return run


CONTESTANTS = {
    "bigjax": bigjax_round,
    "torch_eager": functools.partial(torch_round, compiled=False),
    "torch_compile": functools.partial(torch_round, compiled=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="a round")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224, help="side of the pictures")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        answer(CONTESTANTS[options.work](options))
        return

    sizes = [f"--{key}={getattr(options, key)}" for key in ("steps", "batch", "size")]
    command = [sys.executable, "-m", "scripts.benchmarks.resnet", *sizes]
    seconds, peaks = in_turn(
        {name: [*command, f"--work={name}"] for name in CONTESTANTS}, options.rounds
    )
    samples = options.steps * options.batch
    compare(seconds, peaks, samples, options.out, batch=options.batch, size=options.size)


if __name__ == "__main__":
    main()
