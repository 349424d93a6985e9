"""A stack of layers in stages, each on its own devices, that microbatches pass through in turn.

Huang et al. 2019, "GPipe", as a partition of arrays (Xu et al. 2021, "GSPMD", section 3.3): what the
stages work on is one array with a leading axis of stages, and at every tick it moves on by one place,
which the compiler makes a permutation between neighbours. With p stages and m microbatches there are
m + p - 1 ticks, so devices are idle for (p - 1) / (m + p - 1) of the time: the bubble.

In v rounds (Narayanan et al. 2021, "Efficient large-scale language model training on GPU clusters using
Megatron-LM", section 2.2) a stage has v groups of layers, p groups apart, and a microbatch goes round
the stages v times, p microbatches together. A tick is then a v-th of the work and there are m v + p - 1,
so the idle time over the work is (p - 1) / (m v). Layers lie as they do in one round, and go to their
stages and back once a step. Pure; knows no module and no mesh.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bigjax.core import layout
from bigjax.core.errors import UserError
from bigjax.core.method import split_rows

EACH_STAGE = 4  # microbatches for each stage where nobody says how many


class Schedule(NamedTuple):
    """Who works on what and when; a step is a turn of one stage, and stage s is s ticks behind the first."""

    stages: int
    microbatches: int
    rounds: int = 1

    @property
    def together(self) -> int:
        """How many microbatches go round together: those behind find the first stage busy."""
        return self.stages if self.rounds > 1 else self.microbatches

    @property
    def groups(self) -> int:
        return -(-self.microbatches // self.together)

    @property
    def steps(self) -> int:
        """Of each stage; those of a last group that is not full are idle in part."""
        return self.groups * self.together * self.rounds

    @property
    def ticks(self) -> int:
        return self.steps + self.stages - 1

    @property
    def bubble(self) -> float:
        """The part of the time that a stage is idle."""
        return 1 - self.microbatches * self.rounds / self.ticks

    def at(self, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(microbatch, round) of a step; idle ones work on copies of real rows, whose result nobody reads."""
        step = jnp.clip(step, 0, self.steps - 1)
        group, within = jnp.divmod(step, self.together * self.rounds)
        turn, number = jnp.divmod(within, self.together)
        return jnp.minimum(group * self.together + number, self.microbatches - 1), turn

    def finished(self, out: jax.Array) -> jax.Array:
        """Of (steps, ...), what the last stage gave, the last rounds': (microbatches, ...)."""
        out = out.reshape(self.groups, self.rounds, self.together, *out.shape[1:])[:, -1]
        return out.reshape(-1, *out.shape[2:])[: self.microbatches]


def microbatches(rows: int, stages: int, wanted: int | None) -> int:
    """How many microbatches pass through: the most that divide a device's rows, up to `wanted`."""
    most = min(rows, wanted or EACH_STAGE * stages)
    return next(count for count in range(most, 0, -1) if rows % count == 0)


def pipeline_of(stages: int, rows: int, wanted: int | None, rounds: int = 1) -> dict[str, Any]:
    """What a run's pipeline is: stages, microbatches, rounds, and bubble, the idle part of a stage's time.

    Raises:
      UserError: `wanted` microbatches do not share a device's rows.
    """
    count = microbatches(rows, stages, wanted)
    if wanted and count != wanted:
        raise UserError(
            f"config.sharding.microbatches: {wanted} do not share the {rows} rows of a device evenly; "
            f"{count} would"
        )
    schedule = Schedule(stages, count, rounds)
    return {**schedule._asdict(), "bubble": schedule.bubble}


def pipelined(
    stage: Callable[[Any, jax.Array, Any], jax.Array], layers: Any, x: jax.Array, shared: Any
) -> jax.Array:
    """x after all layers, as if they had run one after the other over the whole batch.

    Args:
      stage: (its layers, x, shared) -> x, shape and dtype kept.
      layers: a tree of arrays with a leading axis of layers, of which each stage has as many.
      x: (B, ...).
      shared: a tree of arrays that all layers read; those with B rows are split as x is.

    Raises:
      UserError: the rounds of all stages do not share the layers evenly.
    """
    laid, B = layout.layout(), x.shape[0]
    stages = laid.parts("layers")
    count = microbatches(B // laid.parts("batch"), stages, laid.microbatches)
    schedule = Schedule(stages, count, laid.rounds)
    layers = jax.tree.map(lambda leaf: _by_round(schedule, leaf), layers)
    x_MB = split_rows(x, count)

    def of(number: jax.Array, leaf: jax.Array) -> jax.Array:
        """A microbatch's rows of an array of the whole batch."""
        rows = split_rows(leaf, count)
        return jax.lax.dynamic_index_in_dim(rows, number, keepdims=False)

    def one(own: Any, x: jax.Array, number: jax.Array, turn: jax.Array) -> jax.Array:
        own = jax.tree.map(lambda leaf: leaf[turn if schedule.rounds > 1 else 0], own)
        seen = jax.tree.map(
            lambda leaf: of(number, leaf) if leaf.shape[:1] == (B,) else leaf, shared
        )
        with layout.seeing(count, lambda drawn: of(number, drawn)):
            return stage(own, x, seen)

    all_stages = jax.vmap(one, in_axes=(1, 0, 0, 0), spmd_axis_name=laid.axes("layers"))
    names = ("layers", "batch", *(None,) * (x.ndim - 1))

    def tick(state: jax.Array, time: jax.Array):
        numbers, turns = schedule.at(time - jnp.arange(stages))
        state = jnp.roll(state, 1, axis=0)
        # The first stage takes on a microbatch, unless one of the last's goes round again.
        number, turn = schedule.at(time)
        enters = (jnp.arange(stages) == 0) & (turn == 0)
        state = jnp.where(enters.reshape(-1, *(1,) * x.ndim), x_MB[number], state)
        state = layout.constrain(state, *names)
        state = layout.constrain(all_stages(layers, state, numbers, turns), *names)
        return state, state

    start = jnp.broadcast_to(x_MB[0], (stages, *x_MB.shape[1:]))
    _, out = jax.lax.scan(tick, layout.constrain(start, *names), jnp.arange(schedule.ticks))
    # Kept where they are made, and moved once: the last stage's, from when the first microbatch is through.
    out_MB = schedule.finished(out[stages - 1 :, stages - 1])
    return layout.constrain(jnp.swapaxes(out_MB, 0, 1).reshape(x.shape), *names[1:])


def _by_round(schedule: Schedule, leaf: jax.Array) -> jax.Array:
    """(layers, ...) -> (rounds, stages, layers of a group, ...), each on its stage's devices."""
    layers, stages, rounds = leaf.shape[0], schedule.stages, schedule.rounds
    if layers % (stages * rounds):
        would = [n for n in range(1, layers + 1) if layers % (stages * n) == 0]
        raise UserError(
            f"config.sharding.rounds: {rounds} rounds of {stages} stages do not share {layers} layers "
            f"evenly; {' or '.join(map(str, would))} would"
        )
    leaf = leaf.reshape(rounds, stages, -1, *leaf.shape[1:])
    if rounds == 1:
        return leaf
    return layout.constrain(leaf, None, "layers", *(layout.FREE,) * (leaf.ndim - 2))
