"""What the checks of a training step cost, against the same step without them.

    .venv/bin/python -m scripts.benchmarks.checks [--pairs=9] [--steps=20] [--out=FILE]

The step is that of a 784-1024-1024-10 MLP, batch 256, Adam, on one device. Off and on take turns,
`--steps` steps each; the ratio is the median over the pairs. Wall time, and the processor time of
this process, which a busy machine disturbs less. Last, the cost of one `with clock(...)`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import timeit
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from bigjax.build.parts import key_data, traced_hyper
from bigjax.build.program import build_program
from bigjax.config import resolve as configs
from bigjax.data.sources import Arrays
from bigjax.run import ledger
from bigjax.run.clock import Clock
from bigjax.run.text import table
from scripts.benchmarks.measure import machine, summary

BATCH, IN_FLIGHT = 256, 2
CHECKS = {
    "off": dict(policy="off"),
    "off again": dict(policy="off", max_skips=11),  # the same step: what the method itself gives
    "finite (default)": dict(policy="stop"),
    "finite and spikes": dict(policy="stop", spike=10.0),
}


def build(check: dict):
    """(program, state, batch) of the benchmark's model under one check."""
    config = configs.resolve(
        ConfigDict(
            dict(
                train=dict(steps=1, batch_size=BATCH),
                data=dict(source=dict(type="tfds", name="digits"), splits=dict(train="train")),
                model=dict(type="mlp", widths=(1024, 1024), outputs=10),
                task=dict(type="classification"),
                optimizer=dict(type="adam", learning_rate=1e-4),
                check=check,
            )
        )
    )
    rng = np.random.default_rng(0)
    image = rng.normal(size=(BATCH, 28, 28, 1)).astype(np.float32)
    label = rng.integers(0, 10, BATCH).astype(np.int32)
    program = build_program(config, Arrays({"image": image, "label": label}))
    ids = np.zeros(BATCH, np.int32)
    batch = dict(image=image, label=label, mask=np.ones(BATCH, np.float32), sample=ids, epoch=ids)
    return program, program.init(key_data(0), traced_hyper(config))[0], jax.device_put(batch)


def run(program, state, batch, steps: int):
    """Steps as the loop takes them: two in flight, the flags read as each settles."""
    in_flight = []
    for _ in range(steps):
        state, metrics = program.train_step(state, batch, {})
        in_flight.append(metrics)
        if len(in_flight) > IN_FLIGHT:
            settled = in_flight.pop(0)
            jax.block_until_ready(settled["loss"])
            ledger.flags(settled)
    jax.block_until_ready(state)
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, help="write the ratios there, as JSON")
    options = parser.parse_args()

    parts = {name: list(build(check)) for name, check in CHECKS.items()}
    for part in parts.values():
        part[1] = run(*part, steps=3)
    wall = {name: [] for name in parts}
    processor = {name: [] for name in parts}
    for pair in range(options.pairs):
        names = list(parts) if pair % 2 else list(reversed(parts))
        for name in names:
            before = time.perf_counter(), time.process_time()
            parts[name][1] = run(*parts[name], steps=options.steps)
            wall[name].append((time.perf_counter() - before[0]) / options.steps)
            processor[name].append((time.process_time() - before[1]) / options.steps)

    def ratios(of, name):
        return np.divide(of[name], of["off"])

    rows = [
        {
            "checks": name,
            "ms a step": 1e3 * float(np.median(wall[name])),
            "wall": f"{np.median(ratios(wall, name)):.4f}",
            "quartiles": " to ".join(
                f"{q:.3f}" for q in np.quantile(ratios(wall, name), [0.25, 0.75])
            ),
            "processor": f"{np.median(ratios(processor, name)):.4f}",
        }
        for name in parts
    ]
    print(table(rows))
    if options.out:
        result = {
            name: {
                "wall": summary(ratios(wall, name)),
                "processor": summary(ratios(processor, name)),
            }
            for name in parts
            if name != "off"
        }
        options.out.write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n")

    clock = Clock(Path(tempfile.mkdtemp()))

    def charge():
        with clock("input"):
            pass

    runs = timeit.repeat(charge, number=100_000, repeat=7)
    print(f"with clock(...): {min(runs) * 10:.2f} us")


if __name__ == "__main__":
    main()
