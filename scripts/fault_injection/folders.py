"""A run's folder, damaged: bookkeeping lost, files of others in it, power lost, a disk that turns read-only.

Each function returns how many faults were followed by a good end, and how many there were.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from bigjax.run.checkpoint import manager
from scripts.fault_injection.runs import (
    SAVE_EVERY,
    STEPS,
    Harness,
    at_batch,
    difference,
    fail,
    last_lines,
    outcome,
    start,
    wait,
)

FILES = (
    "manifest.json",
    "config.json",
    "time.json",
    "metrics.jsonl",
    "train_mean.json",
    ".saved",
    ".lock",
)
WAYS = ("delete", "empty", "cut", "bytes", "folder", "torn", "glued")


def _half(harness: Harness, kind: str) -> Path:
    """A run that failed in its middle, with checkpoints."""
    pattern = harness.folder / "half"
    if not pattern.exists():
        assert wait(start(pattern, tamper=at_batch(STEPS // 2 + 3, fail))) == 1
    workdir = harness.fresh(kind)
    shutil.copytree(pattern, workdir)
    shutil.copy(f"{pattern}.samples", f"{workdir}.samples")
    return workdir


def bookkeeping(harness: Harness, times: int, kind: str) -> tuple[int, int]:
    """Damages one bookkeeping file: the run ends as it would have, or is refused in one line.

    A refused run has lost no checkpoint, and goes on once the file is put back.
    """
    good = 0
    for trial in range(times):
        workdir = _half(harness, kind)
        path = workdir / FILES[trial % len(FILES)]
        content = path.read_bytes() if path.exists() else b"{}"
        way = WAYS[trial // len(FILES) % len(WAYS)]
        damage(path, content, way, harness)
        saved = sorted(p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
        began = time.monotonic()
        code = wait(start(workdir))
        harness.seconds.append(time.monotonic() - began)
        last = Path(f"{workdir}.log").read_text().splitlines()[-1]
        if code in (1, 2) and last.startswith("error: ") and path.name in last:
            left = sorted(p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            path.write_bytes(content)
            code = wait(start(workdir)) if left == saved else -1
        expected = harness.reference
        if path.name == "metrics.jsonl":  # of what was lost there nothing more is asked
            expected = {key: expected[key] for key in ("fingerprint", "result", "samples")}
        fine = code == 0 and not difference(outcome(workdir), expected)
        fine = fine and not (workdir / "checkpoints" / "bad").exists()
        if not fine:
            harness.note(f"{path.name} {way}: exit {code}: {last_lines(workdir)}")
        good += fine
    return good, times


def damage(path: Path, content: bytes, way: str, harness: Harness) -> None:
    if way in ("delete", "folder"):
        path.unlink(missing_ok=True)
        if way == "folder":
            path.mkdir()
        return
    at = harness.random.randrange(len(content) + 1)
    path.write_bytes({
        "empty": b"",
        "cut": content[:at],
        "bytes": content[:at] + harness.random.randbytes(5) + content[at + 5 :],
        "torn": content[:at] + b"\n" + content[at + 9 :],
        "glued": content.replace(b"\n", b""),
    }[way])  # fmt: skip


def foreign(harness: Harness, times: int, kind: str) -> tuple[int, int]:
    """Somebody's files among the checkpoints: not one byte of them changes, whatever they are called."""
    good = 0
    for trial in range(times):
        workdir, chance = _half(harness, kind), harness.random
        step = chance.choice([STEPS - SAVE_EVERY, STEPS])
        name = (
            str(chance.randrange(1000, 3000)), "007", f".deleting-{step}", ".deleting-0123456789abcdef-5",
            "bad/5", str(step),
        )[trial % 6]  # fmt: skip
        theirs = workdir / "checkpoints" / name
        (theirs / "letters").mkdir(parents=True)
        (theirs / "letters" / "may.txt").write_text("dear")
        began = time.monotonic()
        code = wait(start(workdir))
        harness.seconds.append(time.monotonic() - began)
        fine = (theirs / "letters" / "may.txt").read_text() == "dear"
        if name == str(step):  # a save would have to go there
            fine = fine and code == 1 and "is no checkpoint" in last_lines(workdir)
        else:
            fine = fine and code == 0 and not difference(outcome(workdir), harness.reference)
        if not fine:
            harness.note(f"{name}: exit {code}: {last_lines(workdir)}")
        good += fine
    return good, times


def power(harness: Harness, times: int, kind: str) -> tuple[int, int]:
    """Power is lost during a save: files are cut to what was synced; then the run goes on."""
    good = done = 0
    while done < times:
        workdir = harness.fresh(kind)
        log = Path(f"{workdir}.synced")
        number, delay = harness.random.randint(1, 4), harness.random.random() * 0.4
        if wait(start(workdir, tamper=_recording(log, number, delay))) != -signal.SIGKILL:
            continue
        done += 1
        synced: dict[int, int] = {}
        for line in log.read_text().splitlines() if log.exists() else ():
            inode, _, size = line.partition(" ")
            synced[int(inode)] = max(synced.get(int(inode), 0), int(size or 0))
        for path in list(workdir.rglob("*")):
            if path.is_file() and path.name != ".lock":
                kept = synced.get(path.stat().st_ino)
                path.unlink() if kept is None else os.truncate(path, kept)
        good += harness.finish(workdir, f"{kind} {workdir.name}")
    return good, done


def _recording(log: Path, number: int, delay: float) -> Callable[[], None]:
    """Writes down what is synced, and dies so long after the `number`-th save has begun."""

    def tamper() -> None:
        sync, saved, calls = os.fsync, manager.Checkpoints.save, []

        def recorded(handle: int) -> None:
            sync(handle)
            about = os.fstat(handle)
            with open(log, "a") as file:
                file.write(f"{about.st_ino} {about.st_size}\n")

        def save(self, *positional, **options):
            calls.append(None)
            if len(calls) == number:
                subprocess.Popen(["sh", "-c", f"sleep {delay}; kill -9 {os.getpid()}"])
            saved(self, *positional, **options)

        os.fsync, manager.Checkpoints.save = recorded, save

    return tamper


def reader(harness: Harness, times: int, kind: str) -> tuple[int, int]:
    """Reads a run's checkpoints, again and again, while it keeps only the newest."""
    good = done = 0
    flags = ("--config.checkpoint.every=2", "--config.checkpoint.keep=1")
    while done < times:
        workdir = harness.fresh(kind)
        writer = start(workdir, *flags)
        while not (workdir / ".saved").exists():
            time.sleep(0.01)
        while done < times and os.waitpid(writer, os.WNOHANG) == (0, 0):
            began, done = time.monotonic(), done + 1
            child = start(workdir, "checkpoints", "--verify")
            code = wait(child)
            harness.seconds.append(time.monotonic() - began)
            if code != 0:
                harness.note(f"{kind}: exit {code}: {last_lines(workdir)}")
            good += code == 0
        else:
            continue
        wait(writer)
    return good, done


def port(harness: Harness, times: int, kind: str) -> tuple[int, int]:
    """The port of a run of two processes is taken: process 0 says so and exits 2."""
    good = 0
    for _ in range(times):
        with socket.socket() as taken:
            taken.bind(("", 0))
            taken.listen()
            workdir = harness.fresh(kind)
            address = f"localhost:{taken.getsockname()[1]}"
            began = time.monotonic()
            code = wait(
                start(workdir, f"--coordinator={address}", "--processes=2", "--process_id=0")
            )
            harness.seconds.append(time.monotonic() - began)
            fine = code == 2 and "cannot listen on port" in last_lines(workdir)
            good += fine or harness.note(f"{kind}: exit {code}: {last_lines(workdir)}")
    return good, times


def read_only(harness: Harness, times: int, kind: str) -> tuple[int, int]:
    """The disk turns read-only before a start; one line, and then, writable, on; needs root."""
    good = 0
    for _ in range(times):
        pattern, workdir = _half(harness, kind), harness.fresh(kind)
        workdir.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(workdir)], check=True
        )
        try:
            shutil.copytree(pattern, workdir, dirs_exist_ok=True)
            shutil.copy(f"{pattern}.samples", f"{workdir}.samples")
            subprocess.run(["mount", "-o", "remount,ro", str(workdir)], check=True)
            code = wait(start(workdir))
            said = Path(f"{workdir}.log").read_text().splitlines()[-1]
            fine = code in (1, 2) and said.startswith("error: ") and "ead-only" in said
            subprocess.run(["mount", "-o", "remount,rw", str(workdir)], check=True)
            began = time.monotonic()
            again = wait(start(workdir))
            harness.seconds.append(time.monotonic() - began)
            fine = fine and again == 0 and not difference(outcome(workdir), harness.reference)
            good += fine or harness.note(f"{kind}: exit {code}, then {again}: {said}")
        finally:
            subprocess.run(["umount", str(workdir)], check=True)
    return good, times
