"""Model FLOPs utilisation of a GPT-2 training step on one accelerator: 124M, 350M, 1.3B.

    .venv/bin/python -m scripts.benchmarks.gpt_mfu [--models=124m,350m,1.3b] [--out=FILE]
    .venv/bin/python -m scripts.benchmarks.gpt_mfu --models=tiny        on a CPU: that it runs

bfloat16 products, float32 parameters and AdamW, sequences of 1024, no rematerialisation; the step is
that of `bigjax.loop.train`, on tokens that lie on the device. The vocabulary is 50,304, the next multiple
of 128. A model is measured in a process of its own: 5 rounds of steps after a warm-up, the median
round. MFU is by 6 N + 12 L D T a token and, beside it, by the convention that halves attention for its
causal mask; N leaves out the positions, which are only looked up. Targets and floors are of one H200.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bigjax.models.gpt2 import PRESETS
from scripts.benchmarks.measure import machine

VOCAB = 50304
# name -> (sizes, sequences a step, target and floor of MFU in % on one H200)
MODELS = {
    "tiny": (dict(vocab=512, layers=2, width=64, heads=2, context=128), 4, None, None),
    "124m": ({**PRESETS["124m"], "vocab": VOCAB}, 32, 45, 35),
    "350m": ({**PRESETS["350m"], "vocab": VOCAB}, 24, 50, 38),
    "1.3b": ({**PRESETS["1.3b"], "vocab": VOCAB}, 16, 55, 42),
}
HEADER = " model  parameters  batch          step          tokens/s  6N+12LDT   causal      peak"
ROUNDS, WARM_UP = 5, 3


def measure(name: str, batch: int, steps: int, remat: str) -> dict:
    """Times training steps of one model; touches the device."""
    import jax
    import numpy as np

    from bigjax.build.parts import key_data, traced_hyper
    from bigjax.build.program import build_program
    from bigjax.config import resolve as configs
    from bigjax.data.sources import Arrays
    from bigjax.mesh import sharding
    from bigjax.plan import flops
    from bigjax.run import clock

    sizes = MODELS[name][0]
    shape = (batch, sizes["context"])
    config = configs.resolve(
        dict(
            train=dict(steps=1000, batch_size=batch),
            data=dict(source=dict(type="npz", directory="none"), splits=dict(train="train")),
            model=dict(type="gpt2", **sizes, remat=remat),
            task=dict(type="language_model"),
            optimizer=dict(type="adamw", learning_rate=1e-4, weight_decay=0.1, clip_norm=1.0),
            precision=dict(policy="bfloat16"),
        )
    )
    tokens = np.random.default_rng(0).integers(0, sizes["vocab"], shape).astype(np.int32)
    mesh = sharding.make_mesh(config.section("mesh"), jax.devices()[:1])
    program = build_program(config, Arrays({"tokens": tokens}), mesh=mesh)
    state = program.init(key_data(0), traced_hyper(config))[0]
    ids = np.arange(batch, dtype=np.int32)
    rows = dict(tokens=tokens, mask=np.ones(batch, np.float32), sample=ids, epoch=0 * ids)
    rows = jax.device_put(rows, sharding.batch_sharding(mesh))

    def run(count: int) -> float:
        nonlocal state
        started = time.perf_counter()
        for _ in range(count):
            state, metrics = program.train_step(state, rows, {})
        jax.block_until_ready((state, metrics))
        return (time.perf_counter() - started) / count

    started = time.perf_counter()
    run(1)
    compiled_in = time.perf_counter() - started
    run(WARM_UP)
    seconds = statistics.median(run(steps) for _ in range(ROUNDS))
    device = jax.devices()[0]
    counted = flops.multiplied(config.get("model"), program.state.params)
    by_convention = flops.transformer(counted, sizes["layers"], sizes["width"], *shape)
    peak = clock.peak_flops(device.device_kind)
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "model": name,
        "device": device.device_kind,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(program.state.params)),
        "batch": batch,
        "length": sizes["context"],
        "remat": remat,
        "milliseconds": round(1e3 * seconds, 2),
        "tokens_per_second": round(batch * sizes["context"] / seconds),
        "mfu": {
            convention: round(100 * count / seconds / peak, 1) if peak else None
            for convention, count in by_convention.items()
        },
        "peak_gib": round(memory / 2**30, 1) if memory else None,
        "compile_seconds": round(compiled_in, 1),
    }


def line(found: dict) -> str:
    """One row of the table, with target and floor beside what was reached."""
    _, _, target, floor = MODELS[found["model"]]
    whole, causal = ("?" if x is None else f"{x} %" for x in found["mfu"].values())
    goal = "" if target is None else f"target {target} %, floor {floor} %"
    return (
        f"{found['model']:>6} {found['parameters'] / 1e6:9.1f} M {found['batch']:6d} "
        f"{found['milliseconds']:10.2f} ms {found['tokens_per_second']:17,d} "
        f"{whole:>9} {causal:>8} {found['peak_gib'] or '?':>5} GiB  {goal}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="124m,350m,1.3b", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--batch", type=int, help="sequences a step, in place of the model's own")
    parser.add_argument("--steps", type=int, default=10, help="steps of a round")
    parser.add_argument("--remat", default="none")
    parser.add_argument("--out", type=Path, help="write the figures there, as JSON")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.models.split(",")
    if unknown := set(names) - set(MODELS):
        parser.error(f"--models: {', '.join(unknown)} is none of {', '.join(MODELS)}")
    if options.alone:
        batch = options.batch or MODELS[names[0]][1]
        print(json.dumps(measure(names[0], batch, options.steps, options.remat)))
        return
    print(HEADER)
    figures = []
    for name in names:
        command = [sys.executable, "-m", "scripts.benchmarks.gpt_mfu", "--alone", "--models", name]
        command += ["--steps", str(options.steps), "--remat", options.remat]
        command += ["--batch", str(options.batch)] if options.batch else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"{name}: failed, see above")
        figures.append(json.loads(done.stdout.splitlines()[-1]))
        print(line(figures[-1]), flush=True)
    if options.out:
        options.out.write_text(json.dumps({"machine": machine(), "models": figures}, indent=1))


if __name__ == "__main__":
    main()
