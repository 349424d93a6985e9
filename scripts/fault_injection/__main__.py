"""Breaks real runs on purpose and compares what comes of it with a run that nothing happened to."""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bigjax.run.text import table
from scripts.fault_injection.disks import CORRUPTIONS, corruptions, disk_full
from scripts.fault_injection.folders import (
    bookkeeping,
    foreign,
    port,
    power,
    read_only,
    reader,
)
from scripts.fault_injection.inputs import bad_numbers, configs, mesh
from scripts.fault_injection.processes import interruptions, pairs
from scripts.fault_injection.readers import READERS, fuzz
from scripts.fault_injection.runs import Harness

KINDS: dict[str, Callable[[Harness, int, str], tuple[int, int]]] = {
    **dict.fromkeys(("kill", "sigterm", "sighup", "exception", "save_kill"), interruptions),
    "save_kill_pair": pairs,
    **dict.fromkeys(CORRUPTIONS, corruptions),
    "disk_full": disk_full,
    "bookkeeping": bookkeeping,
    "foreign": foreign,
    "power": power,
    "reader": reader,
    "port": port,
    "read_only": read_only,
    "mesh": mesh,
    **dict.fromkeys(("nan", "spike"), bad_numbers),
    "config": configs,
    **{f"fuzz_{name}": fuzz for name in READERS},
}


def run(kinds: list[str], times: int, seed: int) -> list[dict[str, Any]]:
    """The rows of the table: for each kind how often it was tried and how often all was well."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        harness = Harness(Path(folder), seed)
        if not all(kind.startswith("fuzz_") for kind in kinds):
            harness.prepare()
        rows = []
        for kind in kinds:
            rows.append(_forked(harness, kind, times, seed))
            print(f"{kind}: {rows[-1]['good']} of {rows[-1]['times']}", file=sys.stderr, flush=True)
        return rows


def _forked(harness: Harness, kind: str, times: int, seed: int) -> dict[str, Any]:
    """One row, from a process of its own, which may start JAX."""
    result = harness.folder / "row.json"
    child = os.fork()
    if child == 0:
        try:
            harness.random = random.Random(f"{kind} {seed}")
            began = time.monotonic()
            good, done = KINDS[kind](harness, times, kind)
            row = {
                "kind": kind,
                "times": done,
                "good": good,
                "silent or wrong": done - good,
                "median seconds": statistics.median(harness.seconds),
                "minutes": (time.monotonic() - began) / 60,
            }
            result.write_text(json.dumps(row))
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise SystemExit(f"the trials of {kind} could not be run")
    return json.loads(result.read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--kind",
        default=",".join(KINDS),
        help=f"one or more of {','.join(KINDS)}; fuzz: all of fuzz_NAME",
    )
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    fuzzers = ",".join(f"fuzz_{name}" for name in READERS)
    kinds = re.sub(r"\bfuzz\b", fuzzers, options.kind).split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        parser.error(f"no such kind: {', '.join(unknown)}")
    logging.getLogger("bigjax").setLevel(logging.CRITICAL)  # each run logs into a file of its own
    rows = run(kinds, options.times, options.seed)
    print(table(rows))
    return 0 if all(row["good"] == row["times"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
