"""A sweep's `manifest.json`: all that a stranger needs to run it again, and to compare."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from bigjax.run import manifest
from bigjax.run.code import code_diff, code_revision
from bigjax.run.files import plain, read_json, write_json
from bigjax.run.public import command
from bigjax.run.result import read_result
from bigjax.run.writers import read_metrics
from bigjax.sweep.describe import Sweep
from bigjax.sweep.trials import Trial, status, why_failed

FORMAT = 1
LONGEST_DIFF = 1_000_000  # characters; of a longer one the beginning is kept
ENVIRONMENT = ("code", "versions", "devices", "flags", "data")  # parts of a run's manifest


def new_start(how: Mapping[str, Any]) -> dict[str, Any]:
    """What a start of a sweep is made of: command, code with its diff, every installed package.

    Args:
      how: the flags that say how trials are run.
    """
    diff = code_diff()
    packages = {(d.metadata["Name"] or "").lower(): d.version for d in metadata.distributions()}
    return {
        "command": command(sys.argv),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "how": dict(how),
        "code": {
            **code_revision(),
            "diff": diff and diff[:LONGEST_DIFF],
            "diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else None,
            "diff_complete": diff is None or len(diff) <= LONGEST_DIFF,
        },
        "packages": dict(sorted(item for item in packages.items() if item[0])),
    }


def record(
    sweep: Sweep | Mapping[str, Any] | None,
    trials: Iterable[Trial],
    workdir: Path,
    start: dict[str, Any],
) -> dict[str, Any]:
    """Writes `workdir/manifest.json`, in one move, from the trials' folders; returns what it holds.

    Starts before this one are kept, and each trial keeps the start that it ended in.
    """
    path = workdir / "manifest.json"
    before = {"starts": [], "trials": [], **(read_json(path) or {})}
    known = {trial["name"]: trial for trial in before["trials"]}
    starts, rows = before["starts"], []
    for trial in trials:
        said = ("name", "point", "seed", "needs", "in_table")
        row = {name: getattr(trial, name) for name in said}
        row |= {"config": trial.config.values, "config_fingerprint": trial.config.fingerprint}
        row |= outcome(trial.folder(workdir))
        if "started" in row:
            then = known.get(trial.name, {})
            same = "start" in then and then.get("started", row["started"]) == row["started"]
            row["start"] = then["start"] if same else len(starts)
        rows.append(row)
    if any(row.get("start") == len(starts) for row in rows):
        starts = [*starts, start]
    said = asdict(sweep) if isinstance(sweep, Sweep) else sweep
    write_json(path, {"format": FORMAT, "sweep": said, "starts": starts, "trials": rows})
    return json.loads(path.read_text())


def outcome(folder: Path) -> dict[str, Any]:
    """What a run's folder says of its environment (at the newest start) and its results."""
    found: dict[str, Any] = {"status": status(folder)}
    if (first := manifest.read_manifest(folder)) is not None:
        about = manifest.newest_start(first)
        found["environment"] = {name: about[name] for name in ENVIRONMENT}
        found["started"] = about["started"]
        found["config_fingerprint"] = about["config_fingerprint"]
        found["losses"] = loss_stream_hash(folder)
    if (result := read_result(folder)) is not None:
        found |= {name: plain(result[name]) for name in ("step", "fingerprint", "metrics")}
    if found["status"] == "failed":
        found["reason"] = why_failed(folder)
    return found


def loss_stream_hash(folder: Path) -> str:
    """sha256 over every recorded step and its training loss, as exact numbers."""
    lines = read_metrics(folder / "metrics.jsonl")
    losses = {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}
    text = "".join(f"{step}:{loss!r}\n" for step, loss in sorted(losses.items()))
    return hashlib.sha256(text.encode()).hexdigest()
