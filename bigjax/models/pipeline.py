"""A stack of layers in stages, each on its own devices, that microbatches pass through in turn.

Huang et al. 2019, "GPipe", as a partition of arrays (Xu et al. 2021, "GSPMD", section 3.3): what the
stages work on is one array with a leading axis of stages, and at every tick it moves on by one place,
which the compiler makes a permutation between neighbours. With p stages and m microbatches there are
m + p - 1 ticks, so devices are idle for (p - 1) / (m + p - 1) of the time: the bubble. Pure; knows no
module and no mesh.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bigjax.core import layout
from bigjax.core.errors import UserError
from bigjax.core.method import split_rows

EACH_STAGE = 4  # microbatches for each stage where nobody says how many


def microbatches(rows: int, stages: int, wanted: int | None) -> int:
    """How many microbatches pass through: the most that divide a device's rows, up to `wanted`."""
    most = min(rows, wanted or EACH_STAGE * stages)
    return next(count for count in range(most, 0, -1) if rows % count == 0)


def pipeline_of(stages: int, rows: int, wanted: int | None) -> dict[str, Any]:
    """What a run's pipeline is: stages, microbatches, and bubble, the idle part of a stage's time.

    Raises:
      UserError: `wanted` microbatches do not share a device's rows.
    """
    count = microbatches(rows, stages, wanted)
    if wanted and count != wanted:
        raise UserError(
            f"config.sharding.microbatches: {wanted} do not share the {rows} rows of a device evenly; "
            f"{count} would"
        )
    return dict(stages=stages, microbatches=count, bubble=(stages - 1) / (count + stages - 1))


def pipelined(
    stage: Callable[[Any, jax.Array, Any], jax.Array], layers: Any, x: jax.Array, shared: Any
) -> jax.Array:
    """x after all layers, as if they had run one after the other over the whole batch.

    Args:
      stage: (its layers, x, shared) -> x, shape and dtype kept.
      layers: a tree of arrays with a leading axis of layers, of which each stage has as many.
      x: (B, ...).
      shared: a tree of arrays that all layers read; those with B rows are split as x is.
    """
    laid, B = layout.layout(), x.shape[0]
    stages = laid.parts("layers")
    count = microbatches(B // laid.parts("batch"), stages, laid.microbatches)
    ticks = count + stages - 1
    layers = jax.tree.map(lambda a: a.reshape(stages, -1, *a.shape[1:]), layers)
    x_MB = split_rows(x, count)

    def of(number: jax.Array, leaf: jax.Array) -> jax.Array:
        """A microbatch's rows of an array of the whole batch."""
        rows = split_rows(leaf, count)
        return jax.lax.dynamic_index_in_dim(rows, number, keepdims=False)

    def one(own: Any, x: jax.Array, number: jax.Array) -> jax.Array:
        seen = jax.tree.map(
            lambda leaf: of(number, leaf) if leaf.shape[:1] == (B,) else leaf, shared
        )
        with layout.seeing(count, lambda drawn: of(number, drawn)):
            return stage(own, x, seen)

    all_stages = jax.vmap(one, spmd_axis_name=laid.axes("layers"))
    names = ("layers", "batch", *(None,) * (x.ndim - 1))

    def tick(state: jax.Array, time: jax.Array):
        entering = x_MB[jnp.minimum(time, count - 1)]
        state = jnp.roll(state, 1, axis=0).at[0].set(entering)
        # Outside its turn a stage works on a copy of real rows, whose result nobody reads.
        numbers = jnp.clip(time - jnp.arange(stages), 0, count - 1)
        state = all_stages(layers, layout.constrain(state, *names), numbers)
        state = layout.constrain(state, *names)
        return state, state

    start = jnp.broadcast_to(x_MB[0], (stages, *x_MB.shape[1:]))
    _, out = jax.lax.scan(tick, layout.constrain(start, *names), jnp.arange(ticks))
    # Kept where they are made, and moved once: the last stage's, from when the first microbatch is through.
    out_MB = out[stages - 1 :, stages - 1]
    return layout.constrain(jnp.swapaxes(out_MB, 0, 1).reshape(x.shape), *names[1:])
