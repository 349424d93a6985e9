"""What the host does about bad numbers: say what went wrong, and keep the ledger of left-out examples.

`bigjax.core.guard` finds them, on the device. A run that rewinds leaves out the bad step's examples
in that epoch; an example that is bad twice it leaves out for good.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from bigjax.core import settings
from bigjax.core.errors import RunFailed, UserError
from bigjax.core.guard import WINDOW
from bigjax.run.files import plain, read_json_lines, write_atomic, write_json

LEDGER = "skipped.jsonl"


class BadNumbers(RunFailed):
    """The run halted before the update of `step`; its numbers are bad, for `reason`."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"step {step}: {reason}; the update was not applied")
        self.step, self.reason = step, reason


class Rewind(BadNumbers):
    """As `BadNumbers`, the step's examples being on the ledger: train again and they are left out."""


@dataclass(frozen=True)
class LeftOut:
    """Which (epoch, sample) pairs a run leaves out: `pair in left_out`.

    Attributes:
      pairs: those of the steps it rewound.
      for_good: sample -> the epoch from which on it is always left out.
    """

    pairs: frozenset[tuple[int, int]]
    for_good: Mapping[int, int]

    def __contains__(self, pair: tuple[int, int]) -> bool:
        epoch, sample = pair
        return pair in self.pairs or epoch >= self.for_good.get(sample, math.inf)

    def __bool__(self) -> bool:
        return bool(self.pairs)


def flags(metrics: dict[str, Any]) -> tuple[bool, bool]:
    """Takes (bad, halted) out of a step's metrics; waits for the step, as logging it would."""
    if "bad" not in metrics:
        return False, False
    bad, halted = jax.device_get((metrics.pop("bad")[0], metrics.pop("halted")[0]))
    return bool(bad), bool(halted)


def halt(
    workdir: Path, check: settings.Check, step: int, reason: str, found: Any, batch: Any
) -> BadNumbers:
    """Writes `bad_step.json`, and the ledger if the policy is to rewind; returns what to raise.

    Args:
      found: what `Program.diagnose` gives for the step.
      batch: the step's batch.
    """
    # Read before the gathering below, where all wait for all: the first process then writes it.
    rewinds = len(read_ledger(workdir))
    found, epochs, samples = to_host((found, batch["epoch"], batch["sample"]))
    examples = np.stack([epochs, samples], axis=1)
    if check.policy == "rewind" and rewinds < check.max_rewinds:
        bad: BadNumbers = Rewind(step, reason)
    elif check.policy == "rewind":
        bad = BadNumbers(step, f"{reason}, after {rewinds} rewinds (check.max_rewinds)")
    elif check.policy == "skip":
        bad = BadNumbers(step, f"{reason}, {check.max_skips} such in a row (check.max_skips)")
    else:
        bad = BadNumbers(step, reason)
    if jax.process_index() == 0:
        write_json(workdir / "bad_step.json", describe(bad, found, examples))
        if isinstance(bad, Rewind):
            append_to_ledger(workdir, bad, examples, examples[found["rows"]])
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the ledger is written")
    return bad


def to_host(tree: Any) -> Any:
    """The arrays of a tree as NumPy, whole, whichever hosts hold their parts."""
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)


def reason(values: Mapping[str, Any]) -> str:
    """Why a step's finished metrics are bad, in words."""
    for name, what in (("loss", "loss"), ("grad_norm", "gradient norm")):
        if not np.isfinite(values[name]):
            return f"the {what} is {values[name]}"
    return f"the loss {values['loss']:.6g} is a spike above those of the last {WINDOW} steps"


def describe(bad: BadNumbers, found: Mapping[str, Any], examples: np.ndarray) -> dict[str, Any]:
    """What `bad_step.json` holds; `examples` (B, 2) are (epoch, sample)."""
    counts = {
        where: {path: int(n) for path, n in found[where].items() if n}
        for where in ("batch", "params", "loss", "gradients")
    }
    first = next((f"{where}: {path}" for where in counts for path in counts[where]), None)
    return {
        "step": bad.step,
        "reason": bad.reason,
        "first_non_finite": first,
        "non_finite": counts,
        "examples_with_non_finite_inputs": examples[found["rows"]],
        "examples": examples,
        "columns": ["epoch", "sample"],
    }


def read_ledger(workdir: Path) -> list[dict[str, Any]]:
    """The rewinds of a run, one dict each.

    step, reason; examples: [[epoch, sample], ...]; suspects: the samples that may be to blame;
    for_good: those of them that were suspects before. Ledgers of older runs lack the last two.

    Raises:
      UserError: it is damaged: a run that guessed what to leave out would be another run.
    """
    path = workdir / LEDGER
    lines, problems = read_json_lines(path)
    if path.exists() and not (path.read_bytes() or b"\n").endswith(b"\n"):
        problems.append("its last line is cut")  # it is written in one move
    for line in lines:
        if not _is_rewind(line):
            problems.append(f"a line that tells of no rewind: {str(line)[:60]}")
    if problems:
        raise UserError(f"{path}: {problems[0]}; put back a whole one, or use a new --workdir")
    return lines


def _is_rewind(line: dict[str, Any]) -> bool:
    """Whether a line of the ledger can be what `append_to_ledger` wrote."""
    examples = line.get("examples")
    if type(line.get("step")) is not int or not isinstance(examples, list) or not examples:
        return False
    if not all(isinstance(pair, list) and list(map(type, pair)) == [int, int] for pair in examples):
        return False
    samples = {sample for _, sample in examples}
    return all(
        isinstance(line.get(key, []), list)
        and all(type(sample) is int and sample in samples for sample in line.get(key, []))
        for key in ("suspects", "for_good")
    )


def left_out(workdir: Path) -> LeftOut:
    """What the run leaves out, by its ledger."""
    pairs: set[tuple[int, int]] = set()
    for_good: dict[int, int] = {}
    for line in read_ledger(workdir):
        pairs |= {(epoch, sample) for epoch, sample in line["examples"]}
        epochs = {sample: epoch for epoch, sample in line["examples"]}
        for sample in line.get("for_good", ()):
            for_good.setdefault(sample, epochs[sample])
    return LeftOut(frozenset(pairs), for_good)


def append_to_ledger(workdir: Path, bad: BadNumbers, examples: Any, blamed: Any = ()) -> None:
    """Puts a bad step's examples, (B, 2) of (epoch, sample), on the ledger.

    Args:
      blamed: those of them that hold numbers that are not finite; without any, all are suspects.
    """
    lines = read_ledger(workdir)
    before = {s for line in lines for s in line.get("suspects", [s for _, s in line["examples"]])}
    suspects = [int(sample) for _, sample in (blamed if len(blamed) else examples)]
    line = {"step": bad.step, "reason": bad.reason, "examples": examples}
    line |= {"suspects": suspects, "for_good": sorted(before.intersection(suspects))}
    text = "".join(json.dumps(plain(item)) + "\n" for item in [*lines, line])
    write_atomic(workdir / LEDGER, text)
