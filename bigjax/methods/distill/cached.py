"""A teacher's outputs in a batch, read from a cache in place of the teacher: what is kept of them. Pure.

All numbers, or of each distribution the `top` largest logits and their places. A student is compared with
these over its *full* vocabulary: what was not kept counts as a logit of -1e9 in the teacher, so that the
student's chance of everything else is mass in the wrong place. (Normalising the student over the kept ones
alone would leave it free to put its mass anywhere else.)
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

NEVER = -1e9  # a logit whose exp is 0


def kept(
    reference: str, outputs: jax.Array, top: int | None, examples: int
) -> dict[str, jax.Array]:
    """The columns of a cache, by the keys that they have in a batch; outputs (B, ..., K), or (n B, ..., K)
    where n rows of the model are one of B = `examples`: the two texts of a pair."""
    if len(outputs) != examples:
        outputs = outputs.reshape(examples, -1, *outputs.shape[1:])
    if top is None:
        return {_key(reference, "outputs"): outputs}
    values, places = jax.lax.top_k(outputs, top)
    return {_key(reference, "values"): values, _key(reference, "places"): places}


def outputs(reference: str, batch: Mapping[str, jax.Array], student: jax.Array) -> jax.Array:
    """The teacher's outputs, as a batch has them; a row for each row of the student's (..., K)."""
    if (whole := _key(reference, "outputs")) in batch:
        return _rows(batch[whole], student)
    values = batch[_key(reference, "values")]
    nothing = jnp.full((*values.shape[:-1], student.shape[-1]), NEVER, values.dtype)
    places = batch[_key(reference, "places")]
    found = jnp.put_along_axis(nothing, places, values, axis=-1, inplace=False)
    return _rows(found, student)


def _rows(found: jax.Array, student: jax.Array) -> jax.Array:
    return found.reshape(-1, *found.shape[2:]) if found.ndim > student.ndim else found


def _key(reference: str, what: str) -> str:
    return f"{reference}/{what}"
