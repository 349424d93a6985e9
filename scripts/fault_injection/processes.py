"""Processes that end: killed, asked to stop, failing, also while they save, also in pairs.

Each function returns how many faults were followed by a good end, and how many there were.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bigjax.run.checkpoint import manager
from scripts.fault_injection.runs import (
    STEPS,
    Harness,
    at_batch,
    difference,
    fail,
    hang_up,
    last_lines,
    outcome,
    start,
    wait,
)

FRUITLESS = 20  # in a row


def interruptions(harness: Harness, times: int, kind: str) -> tuple[int, int]:
    """Kills, asks to stop, or fails at random moments, up to five times a run, then finishes it."""
    good = done = fruitless = 0
    while done < times:
        workdir, here, fine = harness.fresh(kind), 0, True
        assert fruitless < FRUITLESS, f"{kind}: {FRUITLESS} runs ended before they were interrupted"
        for _ in range(min(5, times - done)):
            tamper = lambda: None  # noqa: E731
            if kind == "exception":
                tamper = at_batch(harness.random.randint(1, STEPS), fail)
            if kind == "sighup":
                tamper = at_batch(harness.random.randint(1, STEPS * 3 // 4), hang_up)
            if kind == "save_kill":
                tamper = _dying(harness.random.randint(1, 3), harness.random.random() * 0.25)
            child = start(workdir, tamper=tamper)
            if kind in ("kill", "sigterm"):
                time.sleep(harness.random.uniform(0.2, harness.duration))
                os.kill(child, signal.SIGKILL if kind == "kill" else signal.SIGTERM)
            began = time.monotonic()
            code = wait(child)
            stopped_in = time.monotonic() - began
            if code == 0:
                break  # too late: nothing was interrupted
            here += 1
            expected = {"exception": (1,), "sighup": (75,), "sigterm": (75, -15)}
            fine &= code in expected.get(kind, (-9,)) or harness.note(
                f"{workdir}: exit {code}: {last_lines(workdir)}"
            )
            if kind == "sigterm":
                fine &= stopped_in < 30 or harness.note(f"{workdir}: {stopped_in:.0f} s to stop")
        fruitless = 0 if here else fruitless + 1
        if here:
            done += here
            good += here if harness.finish(workdir, f"{kind} {workdir.name}") and fine else 0
    return good, done


def pairs(harness: Harness, times: int, kind: str) -> tuple[int, int]:
    """As save_kill, for runs of two processes: both are killed while they save."""

    def run(workdir: Path, tamper: Callable[[], None] = lambda: None) -> list[int]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        flags = ("--config.mesh.fsdp=2", '--config.sharding.rules=((".*", "fsdp"),)')
        join = (f"--coordinator={address}", "--processes=2", *flags)
        children = [start(workdir, *join, f"--process_id={i}", tamper=tamper) for i in range(2)]
        first = wait(children[0])
        if first == -9:
            os.kill(children[1], signal.SIGKILL)
        return [first, wait(children[1])]

    whole, good, done = harness.fresh(kind), 0, 0
    assert run(whole) == [0, 0], Path(f"{whole}.log").read_text()
    expected = outcome(whole)
    while done < times:
        workdir, here = harness.fresh(kind), 0
        for _ in range(min(3, times - done)):
            tamper = _dying(harness.random.randint(1, 2), harness.random.random() * 0.4)
            here += run(workdir, tamper)[0] == -9
        began = time.monotonic()
        codes = run(workdir)
        harness.seconds.append(time.monotonic() - began)
        differs = difference(outcome(workdir), expected) if codes == [0, 0] else f"exits {codes}"
        if differs:
            harness.note(f"{workdir.name}: {differs}: {last_lines(workdir)}")
        done, good = done + here, good + (0 if differs else here)
    return good, done


def _dying(number: int, seconds: float) -> Callable[[], None]:
    """SIGKILL so long after the `number`-th save of this start has begun."""

    def tamper() -> None:
        saved, calls = manager.Checkpoints.save, []

        def save(self: Any, *positional: Any, **options: Any) -> None:
            calls.append(None)
            if len(calls) == number:
                program = f"sleep {seconds}; kill -9 {os.getpid()}"
                subprocess.Popen(["sh", "-c", program])
            saved(self, *positional, **options)
            if len(calls) == number:
                time.sleep(seconds / 2)  # so that the kill finds the save, not the steps after it
                self.wait()

        manager.Checkpoints.save = save

    return tamper
