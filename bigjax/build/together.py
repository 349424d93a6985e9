"""Many runs of one program at once: a trial axis over its functions. Pure.

Runs differ in their traced scalars, random keys, data order and frozen variables alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.build.program import Program

_MAPPED: dict[int, dict[str, Callable[..., Any]]] = {}  # id of a program -> its mapped functions


def together(program: Program, trials: int) -> Program:
    """The program of N such runs: states, metrics and statistics have a leading axis of N.

    `train_step(states, (seed_of, batches), (which, frozen))`: `batches` holds one batch for each
    distinct seed, and `seed_of` (N,) says whose is whose; likewise `frozen` holds for each name the
    distinct trees, stacked, and `which[name]` (N,) says which one a trial reads.
    """
    if id(program) not in _MAPPED:  # later groups find it compiled; programs live as long as we do
        _MAPPED[id(program)] = _mapped_functions(program)
    return dataclasses.replace(program, trials=trials, **_MAPPED[id(program)])


# What was chosen lies there before it is used, as it does alone: no kernel reads it out of the stack.
apart = jax.lax.optimization_barrier


def _mapped_functions(program: Program) -> dict[str, Callable[..., Any]]:
    def chosen(which: Any, frozen: Any) -> Any:
        return {n: jax.tree.map(lambda x, n=n: x[which[n]], tree) for n, tree in frozen.items()}

    def train_one(own: Any, batches: Any, frozen: Any) -> Any:
        state, seed, which = own
        batch = jax.tree.map(lambda x: x[seed], batches)
        # Only the outermost of nested programs may have options of the compiler.
        train_step = program.train_step.__wrapped__
        return train_step(*apart((state, batch, chosen(which, frozen))))

    def train_step(states: Any, data: Any, frozen: Any) -> Any:
        (seed_of, batches), (which, trees) = data, frozen
        return mapped(train_one)((states, seed_of, which), batches, trees)

    def eval_one(own: Any, batch: Any, frozen: Any) -> Any:
        state, which = own
        return program.eval_step(*apart((state, batch, chosen(which, frozen))))

    def eval_step(states: Any, batch: Any, frozen: Any) -> Any:
        which, trees = frozen
        return mapped(eval_one)((states, which), batch, trees)

    # The options keep the barriers, in evaluation too: else its kernels read out of the stack.
    return {
        "train_step": jax.jit(train_step, donate_argnums=0, compiler_options=program.options),
        "eval_step": jax.jit(eval_step, compiler_options=program.options),
    }


def mapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of the first argument's leading axis, the other arguments shared. Pure.

    Through `jax.vmap`, whose numbers differ from single calls by rounding. On CPUs one after another
    within the program instead: as fast there, and bit for bit the same numbers.
    """
    if jax.default_backend() == "cpu":
        # The barriers keep XLA from fusing a run with the loop around it: other fusions round otherwise.
        return lambda stack, *shared: jax.lax.map(
            lambda own: apart(function(*apart((own, *shared)))), stack
        )
    return lambda stack, *shared: jax.vmap(lambda own: function(own, *shared))(stack)


def stack(trees: Sequence[Any]) -> Any:
    """Trees of arrays as one tree with a new leading axis, put together on the host."""
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *jax.device_get(list(trees)))
