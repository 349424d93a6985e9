"""Peak host memory while a Transformer of 1.07 billion parameters is initialised on 8 simulated devices.

    .venv/bin/python -m scripts.benchmarks.init_memory [--config.optimizer.type=adamw ...]

Prints one JSON object. `ratio` is what the peak resident memory grew by during the initialisation,
divided by the size of the state summed over the devices; the aim is at most 1.3. With AdamW in place
of plain SGD, the default here, it needs several times the memory.
"""

import json
import resource
import sys
import time

import jax

from bigjax.build.assemble import open_sources
from bigjax.build.program import build_program
from bigjax.build.weights import initial_state
from bigjax.config import resolve as configs
from bigjax.mesh import distributed
from bigjax.plan.sharding_report import bytes_per_device
from scripts.benchmarks import billion

DEVICES = 8


def main(arguments: list[str]) -> None:
    distributed.simulate_devices(DEVICES)
    raw = billion.get_config()
    raw.optimizer = dict(type="sgd", learning_rate=1e-4)
    config = configs.resolve(raw, [argument.removeprefix("--config.") for argument in arguments])
    program = build_program(config, open_sources(config)["train"])
    size = bytes_per_device(program.state) * DEVICES
    before, started = peak_bytes(), time.perf_counter()
    state, _ = jax.block_until_ready(initial_state(config, program, None))
    growth = peak_bytes() - before
    print(
        json.dumps(
            {
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
                "state_gib": round(size / 2**30, 3),
                "peak_growth_gib": round(growth / 2**30, 3),
                "peak_gib": round((before + growth) / 2**30, 3),
                "ratio": round(growth / size, 3),
                "seconds": round(time.perf_counter() - started, 1),
            }
        )
    )


def peak_bytes() -> int:
    """The most resident memory this process has had; Linux counts it in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(sys.argv[1:])
