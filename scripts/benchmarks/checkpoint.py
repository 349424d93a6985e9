"""What verification costs: saves and restores of 512 MiB, bare Orbax and bigjax in turns.

    .venv/bin/python -m scripts.benchmarks.checkpoint [--pairs=7] [--out=FILE]      writes results/checkpoint.json

The state is 8 arrays of 64 MiB of random float32, on the CPU. The stall is the time until `save`
returns; the whole save ends when the checkpoint is on disk (for bigjax: its manifest too).
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from bigjax.core import settings
from bigjax.run.checkpoint import Checkpoints, Origin
from bigjax.run.text import table
from scripts.benchmarks.measure import machine, summary

RESULT = Path(__file__).parent / "results" / "checkpoint.json"
ARRAYS, SHAPE = 8, (4096, 4096)  # 8 x 64 MiB
TARGETS = {
    "stall": "1.05 + 5 ms",
    "whole save": "1.15",
    "restore, verified": "1.5",
    "restore, unverified": "1.1",
}


class Timer:
    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str], list[float]] = {}

    def __call__(self, what: str, who: str, function, *arguments, **options):
        began = time.perf_counter()
        result = jax.block_until_ready(function(*arguments, **options))
        self.seconds.setdefault((what, who), []).append(time.perf_counter() - began)
        return result


def orbax_pair(timer: Timer, folder: Path, state, abstract) -> None:
    checkpointer = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
    began = time.perf_counter()
    timer("stall", "orbax", checkpointer.save, folder / "1", args=ocp.args.StandardSave(state))
    checkpointer.wait_until_finished()
    timer.seconds.setdefault(("whole save", "orbax"), []).append(time.perf_counter() - began)
    for what in ("restore, verified", "restore, unverified"):
        timer(what, "orbax", checkpointer.restore, folder / "1",
              args=ocp.args.StandardRestore(abstract))  # fmt: skip
    checkpointer.close()


def bigjax_pair(timer: Timer, folder: Path, state, abstract) -> None:
    checkpoints = Checkpoints(folder, settings.Checkpoint(), Origin(run="benchmark"))
    began = time.perf_counter()
    timer("stall", "bigjax", checkpoints.save, 1, state, {})
    checkpoints.wait()
    timer.seconds.setdefault(("whole save", "bigjax"), []).append(time.perf_counter() - began)
    timer("restore, verified", "bigjax", checkpoints.restore, abstract, 1)
    timer("restore, unverified", "bigjax", checkpoints.restore, abstract, 1, verify=False)
    checkpoints.close()


def main(pairs: int, out: Path) -> None:
    timer, rng = Timer(), np.random.default_rng(0)
    state = {f"a{i}": jax.device_put(rng.random(SHAPE, np.float32)) for i in range(ARRAYS)}
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-benchmark-"))
    try:
        for pair in range(pairs + 1):
            for run in (orbax_pair, bigjax_pair)[:: 1 if pair % 2 else -1]:
                run(timer, folder / "run", state, abstract)
                shutil.rmtree(folder / "run")
            if pair == 0:
                timer.seconds.clear()  # the first of each warms up
    finally:
        shutil.rmtree(folder)
    rows, result = [], {"machine": machine()}
    for what, target in TARGETS.items():
        bare, ours = timer.seconds[what, "orbax"], timer.seconds[what, "bigjax"]
        ratio = summary([b / a for a, b in zip(bare, ours, strict=True)])
        result[what] = {
            "orbax_seconds": summary(bare),
            "bigjax_seconds": summary(ours),
            "ratio": ratio,
            "added_ms": float(f"{1000 * (np.median(ours) - np.median(bare)):.1f}"),
        }
        rows.append(
            {
                "512 MiB": what,
                "orbax s": f"{np.median(bare):.4f}",
                "bigjax s": f"{np.median(ours):.4f}",
                "ratio": f"{ratio['median']:.2f}",
                "quartiles": f"{ratio['quarter']:.2f} to {ratio['three_quarters']:.2f}",
                "added ms": result[what]["added_ms"],
                "target": target,
            }
        )
    print(table(rows))
    print(f"{pairs} pairs in turns, medians; {json.dumps(result['machine'])}")
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULT)
    main(**vars(parser.parse_args()))
