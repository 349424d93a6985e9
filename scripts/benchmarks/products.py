"""How near a GPT-2's step is to its matrix products alone: processor time of one thread, beside PyTorch's.

    .venv/bin/python -m scripts.benchmarks.products [--rounds=9] [--out=FILE]

The model, batch and optimizer are those of `scripts.benchmarks.gpt`. Each linear map of a block is timed alone, as the
step does it: forward, the gradient of its rows, the gradient of its kernel; then the whole step. `products_ms` is
what all linear maps of a step take alone, `rest_ms` what the step takes beyond that: attention, norms, activations,
loss, optimizer. As processor time of one thread does not wait for others, it may be measured on a busy machine.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scripts.benchmarks import gpt
from scripts.benchmarks.measure import machine, summary, tell

BATCH, LENGTH, WIDTH = 8, 256, gpt.WIDTH
MAPS = {"attention": (WIDTH, WIDTH, 4), "up": (WIDTH, 4 * WIDTH, 1), "down": (4 * WIDTH, WIDTH, 1)}
"""name -> inputs, outputs, how many a block has."""


def bigjax_products(x, kernel, d_out) -> dict[str, Callable[[], Any]]:
    import jax

    from bigjax.models.blocks import product

    def linear(x, kernel):
        return product(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))

    x, kernel, d_out = (jax.numpy.asarray(each) for each in (x, kernel, d_out))

    def ready(function, *given):
        run = jax.jit(function)
        return lambda: jax.block_until_ready(run(*given))

    return {
        "forward": ready(linear, x, kernel),
        "of rows": ready(
            lambda x, w, d: jax.vjp(lambda x: linear(x, w), x)[1](d), x, kernel, d_out
        ),
        "of kernel": ready(
            lambda x, w, d: jax.vjp(lambda w: linear(x, w), w)[1](d), x, kernel, d_out
        ),
    }


def torch_products(x, kernel, d_out) -> dict[str, Callable[[], Any]]:
    import torch

    x, kernel, d_out = (torch.from_numpy(each.reshape(-1, each.shape[-1])) for each in (x, kernel, d_out))  # fmt: skip
    return {
        "forward": lambda: x @ kernel,
        "of rows": lambda: d_out @ kernel.T,
        "of kernel": lambda: x.T @ d_out,
    }


def processor_ms(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Of each, in turns, the first of which is thrown away."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            started = time.process_time()
            run()
            found[name].append(1e3 * (time.process_time() - started))
    return {name: values[1:] for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ["NPROC"] = "1"  # XLA's threads; read as its backend starts
    import torch

    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    rows, alone = {}, {"bigjax": 0.0, "torch": 0.0}
    for name, (inputs, outputs, count) in MAPS.items():
        shapes = (BATCH, LENGTH, inputs), (inputs, outputs), (BATCH, LENGTH, outputs)
        given = [generator.standard_normal(shape, np.float32) for shape in shapes]
        runs = {("bigjax", what): run for what, run in bigjax_products(*given).items()}
        runs |= {("torch", what): run for what, run in torch_products(*given).items()}
        for (who, what), taken in processor_ms(runs, options.rounds).items():
            alone[who] += float(np.median(taken)) * count * gpt.LAYERS
            speeds = [2e-6 * BATCH * LENGTH * inputs * outputs / ms for ms in taken]
            rows.setdefault(f"{name}, {what}", {})[who] = summary(speeds)
    steps = {
        "bigjax": gpt.bigjax_round(BATCH, LENGTH),
        "torch": gpt.torch_round(BATCH, LENGTH, compiled=False),
    }
    taken = processor_ms(steps, options.rounds)
    result = {
        "machine": machine(),
        "clock": "processor",
        "gflops_a_second": rows,
        "products_ms": {who: round(ms, 1) for who, ms in alone.items()},
        "step_ms": {who: summary(values) for who, values in taken.items()},
        "rest_ms": {who: round(float(np.median(taken[who])) - alone[who], 1) for who in taken},
        "over_torch": summary(
            [b / a for a, b in zip(taken["bigjax"], taken["torch"], strict=True)]
        ),
    }
    tell(result, options.out)


if __name__ == "__main__":
    main()
