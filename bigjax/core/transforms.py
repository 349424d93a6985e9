"""How transforms of examples are applied: on the device, inside the jitted step. Pure.

The key of an example comes from its epoch and its id, so what happens to it depends on no mesh, host,
batch size or neighbour.
"""

from __future__ import annotations

from collections.abc import Iterable

import jax

Example = dict[str, jax.Array]


def apply_transforms(
    transforms: Iterable, batch: Example, key: jax.Array, first: int = 0
) -> Example:
    """Applies transforms in order; pure, jittable.

    The n-th transform gives example s of epoch e the key
    fold_in(fold_in(fold_in(key, first + n), e), s).

    Args:
      transforms: per-example or batch-level transforms.
      batch: flat dict with leading axis B, including "sample" and "epoch", int32 (B,).
      key: a PRNG key; the same for every step of a run.
      first: how many transforms have been applied before.
    """
    for number, transform in enumerate(transforms, start=first):
        key_n = jax.random.fold_in(key, number)
        if getattr(transform, "batch_level", False):
            batch = transform(batch, key_n)
        else:
            batch = jax.vmap(transform)(batch, example_keys(batch, key_n))
    return batch


def example_keys(batch: Example, key: jax.Array) -> jax.Array:
    """One key per example, (B,)."""

    def example_key(epoch, sample):
        return jax.random.fold_in(jax.random.fold_in(key, epoch), sample)

    return jax.vmap(example_key)(batch["epoch"], batch["sample"])
