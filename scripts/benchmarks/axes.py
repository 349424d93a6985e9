"""How long the step of 24 scanned layers takes to lower and compile, on each mesh axis.

    .venv/bin/python -m scripts.benchmarks.axes [--only=TEXT] [--out=FILE]       default results/axes.json

Llama of 0.4 billion parameters (24 layers, width 1024, 1024 tokens; with experts 8 small ones a layer) on 8
simulated devices, from shapes alone; nothing is run or cached. The aim is 60 s on two cores. Processor
time is what to compare on a busy machine: the compiler works on one core most of the time.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from bigjax.build.parts import abstract_batch
from bigjax.build.program import build_program
from bigjax.config import resolve as configs
from bigjax.data.sources import Arrays
from bigjax.mesh import distributed
from bigjax.plan.sharding_report import lowered_step
from scripts.benchmarks.measure import machine

RESULT = Path(__file__).parent / "results" / "axes.json"
MODEL = dict(type="llama", vocab=32000, layers=24, width=1024, heads=16, kv_heads=16)
MODEL |= dict(mlp_width=2816, context=1024, scan_layers=True, remat="dots_no_batch")
EXPERTS = dict(experts=8, mlp_width=704, expert_capacity=1.25)
ONE_FOR_ALL = dict(data=1)
CASES = {
    "data 8": (dict(data=8), {}, {}),
    "fsdp 8": (dict(fsdp=8), {}, {}),
    "fsdp 2 x tensor 2 x sequence 2": (dict(fsdp=2, tensor=2, sequence=2), {}, {}),
    "sequence 8": (dict(sequence=8), {}, {}),
    "fsdp 2 x expert 4": (dict(fsdp=2, expert=4), EXPERTS, {}),
    "fsdp 2 x pipeline 4": (dict(fsdp=2, pipeline=4), {}, {}),
    "fsdp 2 x pipeline 4, 3 rounds": (dict(fsdp=2, pipeline=4), {}, dict(rounds=3)),
}


def program_of(mesh, model, sharding):
    """(program, features of the data)"""
    config = ConfigDict(
        dict(
            seed=0,
            train=dict(steps=10, batch_size=32),
            data=dict(source=dict(type="npz", directory="unused"), splits=dict(train="train")),
            model={**MODEL, **model},
            task=dict(type="language_model"),
            optimizer=dict(type="adamw", learning_rate=1e-4),
            mesh={**ONE_FOR_ALL, **mesh},
            sharding=sharding,
        )
    )
    source = Arrays({"tokens": np.zeros((64, 1024), np.int32)})
    return build_program(configs.resolve(config, []), source), source.features


def main(only: str, out: Path) -> None:
    distributed.simulate_devices(8)
    found = {}
    for name, case in CASES.items():
        if only not in name:
            continue
        program, features = program_of(*case)
        wall, own = time.perf_counter(), time.process_time()
        lowered_step(program, abstract_batch(program.mesh, features, 32)).compile()
        found[name] = {
            "seconds": round(time.perf_counter() - wall, 1),
            "processor_seconds": round(time.process_time() - own, 1),
            "load_average": machine()["load_average"],
        }
        print(name, found[name], flush=True)
    worst = max(case["processor_seconds"] for case in found.values())
    result = {"compile": found, "most_processor_seconds": worst, "target_seconds": 60}
    out.write_text(json.dumps({**result, "machine": machine()}, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="meshes whose names hold this")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    main(options.only, options.out)
