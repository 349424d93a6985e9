"""Checkpoints that rot, and a disk that fills up under them."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bigjax.build import program
from bigjax.build.assemble import open_sources
from bigjax.config import resolve as config
from bigjax.run import checkpoint
from bigjax.run.checkpoint import manager
from scripts.fault_injection.runs import (
    SAVE_EVERY,
    STEPS,
    Harness,
    difference,
    get_config,
    outcome,
    start,
    wait,
)

CORRUPTIONS = ("bitflip", "truncate", "delete", "swap", "stale")


def corruptions(harness: Harness, times: int, kind: str) -> tuple[int, int]:
    """Damages the newest checkpoint; it must be set aside and the one before it used."""
    source, resolved = harness.folder / "reference", config.resolve(get_config())
    steps = sorted(int(p.name) for p in (source / "checkpoints").iterdir() if p.name.isdigit())
    options = resolved.section("checkpoint")
    abstract = program.build_program(resolved, open_sources(resolved)["train"]).state
    origin = checkpoint.Origin(run=json.loads((source / "manifest.json").read_text())["run"])
    reader = checkpoint.Checkpoints(source, options)
    pristine = {step: jax.device_get(reader.restore(abstract, step)) for step in steps}
    reader.close()
    detected = 0
    for trial in range(times):
        workdir = harness.fresh(kind)
        shutil.copytree(source / "checkpoints", workdir / "checkpoints")
        what = damage(kind, workdir / "checkpoints", steps, trial, harness.random)
        began = time.monotonic()
        checkpoints = checkpoint.Checkpoints(workdir, options, origin)
        step, state = checkpoints.restore_newest(abstract)
        checkpoints.close()
        harness.seconds.append(time.monotonic() - began)
        equal = jax.tree.all(jax.tree.map(np.array_equal, jax.device_get(state), pristine[step]))
        aside = list((workdir / "checkpoints" / "bad").glob(f"{steps[-1]}-*/why.txt"))
        if step != steps[-1] and equal and aside:
            detected += 1
            shutil.rmtree(workdir)
        else:
            harness.note(f"{what}: step {step}, equal {equal}, set aside {bool(aside)}")
    return detected, times


def damage(kind: str, folder: Path, steps: list[int], trial: int, chance: random.Random) -> str:
    """Damages the newest checkpoint in `folder`, file after file over the trials; says how."""
    newest = folder / str(steps[-1])
    files = sorted(p for p in newest.rglob("*") if p.is_file())
    path = files[trial % len(files)]
    name, content = path.relative_to(newest), path.read_bytes()
    if kind == "bitflip":
        position, bit = chance.randrange(len(content)), chance.randrange(8)
        flipped = bytearray(content)
        flipped[position] ^= 1 << bit
        path.write_bytes(flipped)
        return f"bit {bit} of byte {position} of {name}"
    if kind == "truncate":
        length = chance.randrange(len(content))
        path.write_bytes(content[:length])
        return f"{name} cut to {length} bytes"
    if kind == "delete":
        path.unlink()
        return f"{name} deleted"
    other = folder / str(chance.choice(steps[:-1]))
    if kind == "swap":
        if trial % 5 == 0:  # the whole checkpoint
            shutil.rmtree(newest), shutil.copytree(other, newest)
            return f"checkpoint {other.name} in the place of {newest.name}"
        theirs = other / name
        if not theirs.exists() or theirs.read_bytes() == content:  # data files have random names
            path = chance.choice([p for p in files if p.parent.name == "d"])
            content = path.read_bytes()  # a file that is the same in both steps would be no fault
            theirs = chance.choice(
                [p for p in sorted(other.rglob("d/*")) if p.read_bytes() != content]
            )
        path.write_bytes(theirs.read_bytes())
        return f"{theirs.relative_to(folder)} in the place of {path.relative_to(folder)}"
    if trial % 2:  # stale: an old manifest on new files, or an old state under a new manifest
        shutil.copy(other / "manifest.json", newest / "manifest.json")
        return f"manifest of {other.name} on {newest.name}"
    shutil.rmtree(newest / "default"), shutil.copytree(other / "default", newest / "default")
    return f"files of {other.name} under the manifest of {newest.name}"


def disk_full(harness: Harness, times: int, kind: str) -> tuple[int, int]:
    """Fills the disk under the checkpoints before a random save; needs root, to mount a small one."""
    good = 0
    for _ in range(times):
        workdir, number = harness.fresh(kind), harness.random.randint(2, STEPS // SAVE_EVERY)
        disk = workdir / "checkpoints"
        disk.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=True)
        try:
            code = wait(start(workdir, tamper=_filling(disk, number)))
            last = Path(f"{workdir}.log").read_text().splitlines()[-1]
            said = "was not saved" in last and "space" in last.lower()
            fine = (code == 1 and said) or harness.note(f"{kind}: exit {code}: {last}")
            newest = max(int(p.parent.name) for p in disk.glob("*/manifest.json"))
            if newest != (number - 1) * SAVE_EVERY:
                fine = harness.note(f"{kind}: the newest is of step {newest}, save {number} failed")
            (disk / "filler").unlink()
            began = time.monotonic()
            code = wait(start(workdir))
            harness.seconds.append(time.monotonic() - began)
            if code != 0 or difference(outcome(workdir), harness.reference):
                fine = harness.note(f"{kind}: exit {code}, or another end")
            good += bool(fine)
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    return good, times


def _filling(disk: Path, number: int) -> Callable[[], None]:
    def tamper() -> None:
        saved, calls = manager.Checkpoints.save, []

        def save(self: Any, *positional: Any, **options: Any) -> None:
            calls.append(None)
            if len(calls) == number:
                self.wait()
                with contextlib.suppress(OSError), open(disk / "filler", "wb", 0) as file:
                    while True:
                        file.write(bytes(512))
            saved(self, *positional, **options)

        manager.Checkpoints.save = save

    return tamper
