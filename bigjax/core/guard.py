"""Bad numbers: a loss or gradient that cannot be right is seen inside the step and never applied.

`guarded` is pure and runs on the device; the rest is what the host does once it sees the flag: say
what went wrong, and keep the ledger of the examples that a rewound run leaves out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from bigjax.core import settings
from bigjax.core.errors import RunFailed
from bigjax.core.rules import paths
from bigjax.run.files import plain, write_atomic, write_json

WINDOW = 64  # recent losses that a spike is measured against
LEDGER = "skipped.jsonl"


@flax.struct.dataclass
class Guard:
    """What the check remembers; part of the training state, so that a resume is bitwise.

    Attributes:
      losses: float32 (WINDOW,), the last losses that were applied, in a ring.
      count: int32 scalar, losses ever written to it.
      bad: int32 scalar, steps in a row, up to now, whose update was not applied.
    """

    losses: jax.Array
    count: jax.Array
    bad: jax.Array


def init_guard() -> Guard:
    zero = jnp.zeros((), jnp.int32)
    return Guard(losses=jnp.zeros((WINDOW,), jnp.float32), count=zero, bad=zero)


def guarded(
    old: Any,
    update: Callable[[Any], tuple[Any, dict[str, jax.Array]]],
    loss: Any,
    grad_norm: jax.Array,
    check: settings.Check,
) -> tuple[Any, dict[str, jax.Array]]:
    """`update(old)`, or `old` where the step's numbers are bad. Pure.

    One branch or the other is computed: a choice between two finished states would cost copies of
    the optimizer's (25 % of a step on a CPU). Bad is a loss or gradient norm that is not finite, and, with `check.spike`, a loss above
    median + spike * 1.4826 MAD of the last WINDOW losses, once there are that many (1.4826 makes
    the median absolute deviation a standard deviation for normal noise: Rousseeuw & Croux 1993,
    eq. 1.1). A batch of weight 0, every example of which is left out, is not bad; nothing is
    applied for it either.

    After as many bad steps in a row as the policy bears (1, or `check.max_skips`), the state is
    halted: it stays as it was before the last of them, however many steps are still dispatched.

    Args:
      old: the `TrainState` before the update.
      update: gives the one after it, and scalars to show; these are 0 where it is not applied.
      loss: the step's (sum, weight).
      grad_norm: scalar, the global norm of the gradient.

    Returns:
      (state, its step not counted; the scalars to show with {"bad": bool, "halted": bool}).
    """
    guard = old.guard
    value, weighed = loss[0] / jnp.maximum(loss[1], 1e-8), loss[1] > 0
    bad = ~(jnp.isfinite(value) & jnp.isfinite(grad_norm))
    if check.spike is not None:
        bad |= (guard.count >= WINDOW) & (value > spike_limit(guard.losses, check.spike))
    bad &= weighed

    limit = check.max_skips if check.policy == "skip" else 1
    was_halted = guard.bad >= limit
    apply = ~was_halted & ~bad & weighed
    in_a_row = jnp.where(was_halted, guard.bad, jnp.where(bad, guard.bad + 1, 0))
    halted = in_a_row >= limit

    def keep(old: Any) -> tuple[Any, dict[str, jax.Array]]:
        shown = jax.eval_shape(update, old)[1]
        return old, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shown)

    state, shown = jax.lax.cond(apply, update, keep, old)
    seen = Guard(
        losses=jnp.where(apply, guard.losses.at[guard.count % WINDOW].set(value), guard.losses),
        count=guard.count + apply,
        bad=in_a_row,
    )
    state = state.replace(guard=seen)
    return state, {**shown, "bad": bad, "halted": halted}


def spike_limit(losses: jax.Array, deviations: float) -> jax.Array:
    """The largest loss that is no spike, from the recent ones (WINDOW,)."""
    median = jnp.median(losses)
    deviation = 1.4826 * jnp.median(jnp.abs(losses - median))
    # Losses that are all the same leave no scale but rounding.
    return median + deviations * jnp.maximum(deviation, 1e-6 * jnp.abs(median))


def non_finite(tree: Any) -> dict[str, jax.Array]:
    """Path -> how many numbers of that leaf are not finite. Pure."""
    return {
        path: jnp.sum(~jnp.isfinite(leaf))
        for path, leaf in paths(tree).items()
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }


class BadNumbers(RunFailed):
    """The run halted before the update of `step`; its numbers are bad, for `reason`."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"step {step}: {reason}; the update was not applied")
        self.step, self.reason = step, reason


class Rewind(BadNumbers):
    """As `BadNumbers`, the step's examples being on the ledger: train again and they are left out."""


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
            append_to_ledger(workdir, bad, examples)
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
    """The rewinds of a run, one dict each: step, reason, examples [[epoch, sample], ...]."""
    path = workdir / LEDGER
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def left_out(workdir: Path) -> frozenset[tuple[int, int]]:
    """The (epoch, sample) pairs that the run leaves out."""
    return frozenset(
        (epoch, sample) for line in read_ledger(workdir) for epoch, sample in line["examples"]
    )


def append_to_ledger(workdir: Path, bad: BadNumbers, examples: Any) -> None:
    """Puts a bad step's examples, (B, 2) of (epoch, sample), on the ledger."""
    lines = [*read_ledger(workdir), {"step": bad.step, "reason": bad.reason, "examples": examples}]
    text = "".join(json.dumps(plain(line)) + "\n" for line in lines)
    write_atomic(workdir / LEDGER, text)
