"""A sweep's `manifest.json`: all that a stranger needs to run it again and to see what differs.

Made from what the trials' own folders say; `bigjax.sweep.reproduce` reads it. Runs nothing.
"""

from __future__ import annotations

import argparse
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
from bigjax.run.files import write_json
from bigjax.run.writers import read_metrics
from bigjax.sweep.describe import Sweep
from bigjax.sweep.trials import Trial, status

FORMAT = 1
LONGEST_DIFF = 1_000_000  # characters; of a longer one the beginning is kept
ENVIRONMENT = ("code", "versions", "devices", "flags", "data")  # parts of a run's manifest


def new_start(options: argparse.Namespace) -> dict[str, Any]:
    """What a start of a sweep is made of: command, code with its diff, every installed package.

    Args:
      options: the command line's; those that say how trials are run are kept.
    """
    diff = manifest.code_diff()
    return {
        "command": " ".join(sys.argv),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "how": {name: getattr(options, name) for name in ("workers", "devices", "vectorize")},
        "code": {
            **manifest.code_revision(),
            "diff": diff and diff[:LONGEST_DIFF],
            "diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else None,
            "diff_complete": diff is None or len(diff) <= LONGEST_DIFF,
        },
        "packages": packages(),
    }


def packages() -> dict[str, str]:
    """Name -> version of every installed distribution."""
    found = {(d.metadata["Name"] or "").lower(): d.version for d in metadata.distributions()}
    return dict(sorted(item for item in found.items() if item[0]))


def write(
    sweep: Sweep | Mapping[str, Any], trials: Iterable[Trial], workdir: Path, start: dict[str, Any]
) -> dict[str, Any]:
    """Writes `workdir/manifest.json`, in one move, from the trials' folders; returns what it holds.

    Starts before this one are kept, and each trial keeps the start that it ended in.
    """
    path = workdir / "manifest.json"
    before = json.loads(path.read_text()) if path.exists() else {"starts": [], "trials": []}
    known = {trial["name"]: trial for trial in before["trials"]}
    starts, order = before["starts"], start_order(workdir)
    rows = []
    for trial in trials:
        row = describe_trial(trial, trial.folder(workdir))
        row["order"] = [place for place, name in enumerate(order, 1) if name == trial.name]
        then = known.get(trial.name)
        if row["order"]:
            same = then is not None and then["order"] == row["order"]
            row["start"] = then["start"] if same else len(starts)
        rows.append(row)
    if any(row.get("start") == len(starts) for row in rows):
        starts = [*starts, start]
    said = asdict(sweep) if isinstance(sweep, Sweep) else sweep
    found = {"format": FORMAT, "sweep": said, "starts": starts, "trials": rows}
    write_json(path, found)
    return json.loads(path.read_text())


def describe_trial(trial: Trial, folder: Path) -> dict[str, Any]:
    """What a trial is, what it was made of and what came out, as far as it was run."""
    row = {
        "name": trial.name,
        "status": status(folder),
        "point": trial.point,
        "seed": trial.seed,
        "needs": trial.needs,
        "in_table": trial.in_table,
        "config": trial.config.values,
        "config_fingerprint": trial.config.fingerprint,
    }
    return {**row, **outcome(folder)}


def outcome(folder: Path) -> dict[str, Any]:
    """What a run's folder says of its environment (at the newest start) and its results."""
    found: dict[str, Any] = {}
    if (folder / "manifest.json").exists():
        first = json.loads((folder / "manifest.json").read_text())
        about = {**first, **(first["resumes"][-1] if first["resumes"] else {})}
        found["environment"] = {name: about[name] for name in ENVIRONMENT}
        found["config_fingerprint"] = about["config_fingerprint"]
        found["losses"] = loss_stream_hash(folder)
    if (folder / "result.json").exists():
        result = json.loads((folder / "result.json").read_text())
        found |= {name: result[name] for name in ("step", "fingerprint", "metrics")}
    if (folder / "failure.json").exists():
        found["reason"] = json.loads((folder / "failure.json").read_text())["reason"]
    return found


def loss_stream_hash(folder: Path) -> str:
    """sha256 over every recorded step and its training loss, as exact numbers."""
    losses = {
        line["step"]: line["train/loss"]
        for line in read_metrics(folder / "metrics.jsonl")
        if "train/loss" in line
    }
    text = "".join(f"{step}:{loss!r}\n" for step, loss in sorted(losses.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def start_order(workdir: Path) -> list[str]:
    """The trials' names in the order in which they began, over all starts of the sweep."""
    path = workdir / "starts.jsonl"
    if not path.exists():
        return []
    return [json.loads(line)["trial"] for line in path.read_text().splitlines()]
