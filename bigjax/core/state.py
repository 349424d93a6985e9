"""The training state: everything a step reads and writes, and all that a checkpoint must hold."""

from __future__ import annotations

import hashlib
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from bigjax.core.guard import Guard, init_guard
from bigjax.core.precision import LossScale
from bigjax.core.rules import paths


@flax.struct.dataclass
class TrainState:
    """One pytree; the leaves may be sharded over any mesh.

    Attributes:
      step: int32 scalar, completed updates.
      params: the model's parameters; with `config.adapt`, the trained leaves alone.
      opt_state: Optax's own state, for the trained parameters only.
      collections: the model's mutable collections, e.g. {"batch_stats": ...}.
      ema: moving average of the parameters, or None.
      guard: what the check of bad numbers remembers (`bigjax.core.guard`).
      rng: uint32 (2,), the run's random key; the key of a step is folded in from `step`.
      hyper: float32 scalars that are inputs of the compiled step, by name.
      loss_scale: dynamic loss scaling's own state, or None (`bigjax.core.precision`).
      memory: what the method keeps between steps, or None (`bigjax.core.method`).
    """

    step: jax.Array
    params: Any
    opt_state: Any
    collections: Any
    ema: Any
    guard: Guard
    rng: jax.Array
    hyper: dict[str, jax.Array]
    loss_scale: LossScale | None = None
    memory: Any = None

    @property
    def key(self) -> jax.Array:
        return jax.random.wrap_key_data(self.rng)


def init_state(
    params: Any, collections: Any, optimizer: Any, *, rng: jax.Array, hyper: Any, ema: bool
) -> TrainState:
    """The state before the first step. Pure.

    Args:
      params: the trained leaves.
      collections: the model's other collections.
      optimizer: a `bigjax.core.optimizers.Optimizer`.
      rng: uint32 (2,) key data.
      hyper: float32 scalars by name.
      ema: whether to keep a moving average of the parameters.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        collections=collections,
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        guard=init_guard(),
        rng=rng,
        hyper=hyper,
    )


def params_fingerprint(params: Any) -> str:
    """sha256 over every parameter's path, dtype, shape and bytes, in order of path."""
    digest = hashlib.sha256()
    for path, leaf in sorted(paths(params).items()):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            from jax.experimental import multihost_utils

            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        array = np.asarray(jax.device_get(leaf))
        digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
