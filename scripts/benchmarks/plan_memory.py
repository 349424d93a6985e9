"""The peak memory that `plan --topology=cpu:8` predicts against what real steps on eight simulated devices take.

    .venv/bin/python -m scripts.benchmarks.plan_memory [NAME ...] [--out=FILE]

Predicted: the verb's own figure, from shapes, in a process of its own. Measured: the operating system's
count of this process's resident memory, in another process that starts the run as the loop does (its data,
its first state, its jitted step). All is run once and thrown away, so that compiled code, thread stacks
and scratch space are there; what is resident then is the base. The state is made again, Linux's record
of the peak (VmHWM) is reset, three steps run. Measured is that peak less the base, over eight.

What errs: malloc gives back to the system what is 64 KiB or more, smaller pieces it may keep; memory
that is allotted and never touched does not count; what XLA's kernels allot for themselves (packed matrix
products, sums over devices) counts and is not in the plan. No huge pages, which would round all up.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from bigjax.build.assemble import assemble
from bigjax.config import resolve as configs
from bigjax.loop.record import train_batches
from bigjax.loop.train import train
from bigjax.mesh import distributed
from bigjax.verbs import launch
from scripts.benchmarks.measure import machine

DEVICES, STEPS, MIB = 8, 3, 2**20
LENGTH, VOCAB = 128, 512
DIGITS = dict(
    source=dict(type="tfds", name="digits"),
    splits=dict(train="train", test="test"),
    preprocess=(dict(type="normalize", scale=16.0),),
)
CHAIN = dict(type="markov_tokens", vocab=VOCAB, length=LENGTH, examples=128)
TOKENS = dict(source=CHAIN, splits=dict(train="train", test="test"))
STACK = dict(vocab=VOCAB, layers=4, width=256, heads=4, context=LENGTH)
GPT = dict(
    data=TOKENS,
    model=dict(type="gpt2", **STACK),
    task=dict(type="language_model"),
    optimizer=dict(type="adamw", learning_rate=1e-3, weight_decay=0.1, clip_norm=1.0),
    train=dict(steps=STEPS, batch_size=16),
)
SCANNED = {**GPT["model"], "scan_layers": True}
MLP = dict(
    data=DIGITS,
    model=dict(type="mlp", widths=(1024, 1024), outputs=10),
    task=dict(type="classification"),
    optimizer=dict(type="adam", learning_rate=1e-3),
    train=dict(steps=STEPS, batch_size=800),
)
CNN = dict(type="cnn", channels=(64, 64), outputs=10, batch_norm=True, dense=(1024,))
BERT = dict(type="bert", types=0, head="sequence", outputs=4, **STACK)
ROUTED = dict(type="llama", **STACK, kv_heads=4, mlp_width=256, experts=4, scan_layers=True)
# Name -> config; {folder} is that of the comparison, with texts.npz and a teacher's run in it.
CONFIGS: dict[str, dict[str, Any]] = {
    "MLP, Adam": MLP,
    "CNN with BatchNorm": {**MLP, "model": CNN},
    "GPT-2, scanned, remat": {**GPT, "model": {**SCANNED, "remat": "full"}},
    "BERT, fsdp": dict(
        data=dict(source=dict(type="npz", directory="{folder}/texts"), splits=dict(train="train")),
        model=BERT,
        task=dict(type="classification", input="tokens"),
        optimizer=GPT["optimizer"],
        train=GPT["train"],
        mesh=dict(data=1, fsdp=8),
    ),
    "GPT-2, LoRA": {**GPT, "adapt": (dict(type="lora", rank=8),)},
    "MLP distilled, frozen teacher": {
        **MLP,
        "model": dict(type="mlp", widths=(512,), outputs=10),
        "method": dict(type="distill", teacher="{folder}/teacher"),
    },
    "GPT-2, accumulation": {**GPT, "train": dict(steps=STEPS, batch_size=64, accumulate=4)},
    "GPT-2, sequence": {**GPT, "mesh": dict(data=2, sequence=4)},
    "GPT-2, pipeline": {**GPT, "model": SCANNED, "mesh": dict(data=4, pipeline=2)},
    "Llama with experts": {**GPT, "model": ROUTED, "mesh": dict(data=2, expert=4)},
}


def config_of(name: str, folder: Path) -> ConfigDict:
    text = json.dumps(CONFIGS[name]).replace("{folder}", str(folder))
    quiet = dict(log=dict(every=1, tensorboard=False), checkpoint=dict(every="end"))
    return ConfigDict({"mesh": dict(data=-1), **json.loads(text), **quiet})


def prepare(folder: Path) -> None:
    """Writes what some configs read: texts in two halves, and a teacher that has taken three steps."""
    (folder / "texts").mkdir()
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, VOCAB, (128, LENGTH)).astype(np.int32)
    np.savez(folder / "texts" / "train.npz", tokens=tokens, label=tokens[:, 0] % 4)
    with contextlib.redirect_stdout(io.StringIO()):
        train(configs.resolve(config_of("MLP, Adam", folder)), folder / "teacher")


def predicted(name: str, folder: Path) -> dict[str, Any]:
    """The memory of the verb's answer, in bytes on each device."""
    said = io.StringIO()
    arguments = ["plan", f"--topology=cpu:{DEVICES}", "--json", f"--workdir={folder / 'run'}"]
    with contextlib.redirect_stdout(said):
        code = launch.execute("plan_memory", lambda: config_of(name, folder), arguments)
    if code:
        raise SystemExit(code)
    return json.loads(said.getvalue())["memory"]


def measured(name: str, folder: Path) -> dict[str, int]:
    """Bytes on each device, of the state and the peak of a step; to be called in a fresh process."""
    setup = assemble(configs.resolve(config_of(name, folder)), folder / "run")

    def steps(state: Any, frozen: Any) -> Any:
        with contextlib.closing(train_batches(setup, folder, 0)) as batches:
            for _ in range(STEPS):
                state, metrics = setup.program.train_step(state, next(batches), frozen)
                jax.block_until_ready((state, metrics))
        return state

    steps(*setup.start())
    base = resident()
    state, frozen = jax.block_until_ready(setup.start())
    held = resident()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM: proc(5)
    steps(state, frozen)
    return {"state": (held - base) // DEVICES, "peak": (of_status("VmHWM") - base) // DEVICES}


def resident() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return of_status("VmRSS")


def of_status(name: str) -> int:
    """Bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1])


def compared(name: str, folder: Path) -> dict[str, Any]:
    """A row of the table: MiB on each device, and predicted over measured."""
    command = [sys.executable, "-m", "scripts.benchmarks.plan_memory", name, f"--run={folder}"]
    # What is given back is to be seen at once: none of what `for_children` asks for.
    own = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    own |= {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0", "BIGJAX_COMPILED": "off"}
    said = subprocess.run(command, env=os.environ | own, stdout=subprocess.PIPE, check=True)
    taken, plan = json.loads(said.stdout.splitlines()[-1]), predicted(name, folder)
    return {
        "config": name,
        "predicted_mib": round(plan["peak"] / MIB, 2),
        "measured_mib": round(taken["peak"] / MIB, 2),
        "measured_state_mib": round(taken["state"] / MIB, 2),
        "predicted_over_measured": round(plan["peak"] / taken["peak"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(CONFIGS), help="configs; default all")
    parser.add_argument("--out", type=Path, help="write the table there, as JSON")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)  # of the measuring process
    options = parser.parse_args()
    if options.run:
        distributed.simulate_devices(DEVICES)
        print(json.dumps(measured(options.names[0], options.run)))
        return
    result = {"machine": machine(), "devices": DEVICES, "jax": jax.__version__, "rows": []}
    with tempfile.TemporaryDirectory(prefix="bigjax_plan_memory_") as folder:
        prepare(Path(folder))
        for name in options.names:
            result["rows"].append(compared(name, Path(folder)))
            print(json.dumps(result["rows"][-1]), flush=True)
            ratios = [row["predicted_over_measured"] for row in result["rows"]]
            result |= {"least": min(ratios), "most": max(ratios)}
            if options.out:
                options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
