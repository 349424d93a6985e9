"""Bad numbers: a loss or gradient that cannot be right is seen inside the step and never applied.

Pure, and runs on the device. What the host does once it sees the flag is in `bigjax.run.ledger`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp

from bigjax.core import settings
from bigjax.core.layout import platform
from bigjax.core.rules import paths

WINDOW = 64  # recent losses that a spike is measured against


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
    the optimizer's. Bad is a loss or gradient norm that is not finite, and, with `check.spike`, a loss above
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

    state, shown = _either(apply, update, old)
    seen = Guard(
        losses=jnp.where(apply, guard.losses.at[guard.count % WINDOW].set(value), guard.losses),
        count=guard.count + apply,
        bad=in_a_row,
    )
    state = state.replace(guard=seen)
    return state, {**shown, "bad": bad, "halted": halted}


def in_place(
    old: Any, update: Callable[[Any], tuple[Any, dict[str, jax.Array]]], loss: Any
) -> tuple[Any, dict[str, jax.Array]]:
    """`update(old)`, unguarded. Pure.

    On a CPU as a branch that is always taken, which begins when the gradients are there: an update that
    may run before the last read of the old parameters makes XLA copy them in each step. On a GPU a branch would wait for the host.
    """
    if platform() != "cpu":
        return update(old)
    always = loss[1] >= 0  # a weight is; the compiler does not know it
    return _either(always, update, old)


def _either(
    apply: jax.Array, update: Callable[[Any], tuple[Any, dict[str, jax.Array]]], old: Any
) -> tuple[Any, dict[str, jax.Array]]:
    def keep(old: Any) -> tuple[Any, dict[str, jax.Array]]:
        shown = jax.eval_shape(update, old)[1]
        return old, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shown)

    return jax.lax.cond(apply, update, keep, old)


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
