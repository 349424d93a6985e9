"""What the benchmarks share: contestants in turn, a summary of noisy figures, what machine it was."""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.core.compilers import for_children


def summary(values: Sequence[float]) -> dict[str, float | int]:
    """Median and quartiles, rounded to four digits."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    rounded = (float(f"{value:.4g}") for value in (middle, low, high))
    return {
        **dict(zip(("median", "quarter", "three_quarters"), rounded, strict=True)),
        "runs": len(values),
    }


def summaries(pairs: Sequence[tuple[float, float]]) -> dict[str, dict[str, float | int]]:
    """Of (wall, processor) seconds."""
    wall, processor = zip(*pairs, strict=True)
    return {"wall_s": summary(wall), "processor_s": summary(processor)}


def machine() -> dict[str, str | int | float]:
    """Where this ran, and how busy the machine was."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }


def _processor() -> str:
    """Its name and cache, by which machines of one name are told apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    said = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in lines if ":" in line)
    known = [said[key] for key in ("model name", "cache size") if said.get(key)]
    return ", ".join(known) or platform.machine()


def tell(result: Mapping[str, Any], out: Path | None) -> None:
    """Prints a benchmark's figures as JSON and, if asked, writes them."""
    text = json.dumps(result, indent=2)
    print(text)
    if out:
        out.write_text(text + "\n")


def in_turn(
    commands: Mapping[str, Sequence[str]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """(Seconds of each round, most resident bytes) of each contestant; all of them see the same machine.

    Each command is a process that ends in `answer`. Its first round is thrown away: it may still be warming up,
    which it does alone, for beside others that compile it may need more memory. All are given huge pages
    where the kernel offers them.
    """

    def ask(process: subprocess.Popen[str]) -> tuple[float, int]:
        process.stdin.write("go\n")
        process.stdin.flush()
        took, peak = process.stdout.readline().split()
        return float(took), int(peak)

    processes = {}
    for name, command in commands.items():
        processes[name] = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=for_children(os.environ),
        )
        ask(processes[name])
    asked = [{name: ask(process) for name, process in processes.items()} for _ in range(rounds)]
    for process in processes.values():
        process.stdin.close()
        process.wait()
    seconds = {name: [answers[name][0] for answers in asked] for name in commands}
    return seconds, {name: asked[-1][name][1] for name in commands}


def compare(
    seconds: Mapping[str, Sequence[float]],
    peaks: Mapping[str, int],
    samples: int,
    out: Path | None,
    ours: Sequence[str] = ("bigjax",),
    **about: object,
) -> None:
    """Prints, and writes to `out`, samples/s of each contestant and of ours over the others.

    Args:
      seconds, peaks: what `in_turn` gave.
      samples: in a round.
      ours: contestants that are held against all others, as "NAME_over".
      about: what else the result should say.
    """
    result = {
        "machine": machine(),
        **about,
        "samples_per_second": {
            name: summary([samples / taken for taken in values]) for name, values in seconds.items()
        },
        **{
            f"{mine}_over": {
                name: summary([b / a for a, b in zip(seconds[mine], values, strict=True)])
                for name, values in seconds.items()
                if name != mine
            }
            for mine in ours
        },
        "peak_mib": {name: round(peak / 2**20) for name, peak in peaks.items()},
    }
    tell(result, out)


def answer(run: Callable[[], float]) -> None:
    """A contestant's process: warms up, then answers every line of its input with a round's seconds and
    the most memory that it ever had."""
    run()
    out = os.fdopen(os.dup(1), "w")
    for _ in sys.stdin:
        took = run()
        print(took, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=out, flush=True)


def bigjax_step(raw: Mapping[str, Any], rows: Mapping[str, np.ndarray]) -> Callable[[], None]:
    """One training step of a config on a batch that lies ready: checks, metrics and rules included.

    Args:
      raw: the config, without its data.
      rows: columns of the one batch.
    """
    import jax

    from bigjax.build import program
    from bigjax.config import resolve as configs
    from bigjax.mesh import sharding

    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "train.npz", **rows)
        data = dict(source=dict(type="npz", directory=folder), splits=dict(train="train"))
        config = configs.resolve({**raw, "data": data})
        built = program.build_program(config, config.section("data").source.open("train"))
    state, _ = built.init(program.key_data(0), program.traced_hyper(config))
    ids = np.arange(config.get("train.batch_size"), dtype=np.int32)
    extra = dict(mask=np.ones(len(ids), np.float32), sample=ids, epoch=np.zeros_like(ids))
    ready = jax.device_put({**rows, **extra}, sharding.batch_sharding(built.mesh))

    def run() -> None:
        nonlocal state
        state, metrics = built.train_step(state, ready, {})
        jax.block_until_ready((state, metrics))

    return run


def torch_step(model: Any, optimizer: Any, compiled: bool, loss_of: Callable) -> Callable[[], None]:
    """One training step in PyTorch; `loss_of(model)` gives the loss of the batch."""
    import torch

    forward = torch.compile(model) if compiled else model

    def run() -> None:
        optimizer.zero_grad()
        loss = loss_of(forward)
        loss.backward()
        optimizer.step()
        loss.item()

    return run


def steps_in_turn(
    module: str,
    document: str,
    bigjax_round: Callable[..., Callable[[], None]],
    torch_round: Callable[..., Callable[[], None]],
    batch: int,
    size: int,
    size_is: str = "length",
) -> None:
    """The command line of a benchmark of single steps against PyTorch.

    With --busy, for a machine that others use: PyTorch has one thread, as its threads wait for each other
    by spinning, and seconds are processor time, summed over the threads of a process.

    Args:
      bigjax_round: (batch, size) -> `run()`, one step.
      torch_round: the same with a third argument, whether it is compiled.
      batch, size: their defaults; the second is called `size_is`.
    """
    contestants = {
        "bigjax": bigjax_round,
        "torch_eager": functools.partial(torch_round, compiled=False),
        "torch_compile": functools.partial(torch_round, compiled=True),
    }
    parser = argparse.ArgumentParser(description=document)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument(f"--{size_is}", dest="size", type=int, default=size)
    parser.add_argument("--busy", action="store_true", help="others use this machine")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", choices=list(contestants), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        if options.busy and options.work != "bigjax":
            import torch

            torch.set_num_threads(1)
        run = contestants[options.work](options.batch, options.size)
        clock = time.process_time if options.busy else time.perf_counter

        def timed() -> float:
            started = clock()
            run()
            return clock() - started

        return answer(timed)

    command = [sys.executable, "-m", module, f"--batch={options.batch}"]
    command += [f"--{size_is}={options.size}", *["--busy"] * options.busy]
    seconds, peaks = in_turn(
        {name: [*command, f"--work={name}"] for name in contestants}, options.rounds
    )
    clock = "processor" if options.busy else "wall"
    about = {"batch": options.batch, size_is: options.size, "clock": clock}
    compare(seconds, peaks, options.batch, options.out, **about)
