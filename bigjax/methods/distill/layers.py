"""Losses between layers of two Transformers, row by row: (teacher's, student's, ...) -> float32 (B,). Pure.

Shapes are in the names: B rows, T tokens, D width, N heads, H width of a head. `seen_BTS` is 1 where token t
may look at token s, as `pairs_of` makes it; a text's padding is nowhere counted.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bigjax.methods.distill import features


def pairs_of(segments_BT: jax.Array) -> jax.Array:
    """Which tokens an encoder lets look at which: those of one text; bool (B, T, T)."""
    real_BT = segments_BT > 0
    same_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
    return same_BTS & real_BT[:, :, None] & real_BT[:, None, :]


def hidden_states(
    teacher_BTD: jax.Array, student_BTD: jax.Array, segments_BT: jax.Array
) -> jax.Array:
    """The mean of (t - s)^2 (Jiao et al. 2020, "TinyBERT", eq. 8), the student's mapped already."""
    apart_BT = jnp.mean(jnp.square(_wide(teacher_BTD) - _wide(student_BTD)), axis=-1)
    return _mean(apart_BT, segments_BT > 0)


def hidden_angles(
    teacher_BTD: jax.Array, student_BTD: jax.Array, segments_BT: jax.Array
) -> jax.Array:
    """The mean of 1 - cos(t, s) (Sanh et al. 2019, "DistilBERT", section 2)."""
    similar_BT = features.similarity(_wide(teacher_BTD), _wide(student_BTD))
    return _mean(1 - similar_BT, segments_BT > 0)


def attention_scores(
    teacher: tuple[jax.Array, jax.Array],
    student: tuple[jax.Array, jax.Array],
    seen_BTS: jax.Array,
) -> jax.Array:
    """The mean over heads and pairs of the squared distance of A = q k' / sqrt(H), before the softmax.

    Jiao et al. 2020, eq. 7 (and their footnote: the scores, not the weights). teacher, student: (queries,
    keys), (B, T, N, H) each, N of both the same.
    """
    a_BNTS, b_BNTS = (_products(*both) for both in (teacher, student))
    apart_BTS = jnp.mean(jnp.square(a_BNTS - b_BNTS), axis=1)
    return _mean(apart_BTS, seen_BTS)


def relations(
    teacher: tuple[jax.Array, jax.Array],
    student: tuple[jax.Array, jax.Array],
    seen_BTS: jax.Array,
    heads: int,
) -> jax.Array:
    """The mean over heads and tokens t of KL(teacher's R_t || student's), R = softmax(x y' / sqrt(d)).

    With queries and keys Wang et al. 2020, "MiniLM", eqs. 3 to 5; with values twice their eqs. 6 and 7.
    The heads are those of "MiniLMv2" (2021, section 3): all numbers of a token, cut anew into `heads`.

    teacher, student: (x, y), (B, T, N, H) each; N H a multiple of `heads`.
    """
    logs = []
    for both in (teacher, student):
        cut = [x.reshape(*x.shape[:2], heads, -1) for x in both]
        scores_BNTS = jnp.where(seen_BTS[:, None], _products(*cut), -1e9)
        logs.append(jax.nn.log_softmax(scores_BNTS))
    kl_BNT = jnp.sum(jnp.exp(logs[0]) * (logs[0] - logs[1]), axis=-1)
    return _mean(jnp.mean(kl_BNT, axis=1), jnp.any(seen_BTS, axis=2))


def _products(x_BTNH: jax.Array, y_BSNH: jax.Array) -> jax.Array:
    """x y' / sqrt(H), float32 (B, N, T, S)."""
    x_BTNH, y_BSNH = _wide(x_BTNH), _wide(y_BSNH)
    scores = jnp.einsum("BTNH,BSNH->BNTS", x_BTNH, y_BSNH, precision="highest")
    return scores / jnp.sqrt(x_BTNH.shape[-1])


def _mean(values: jax.Array, counts: jax.Array) -> jax.Array:
    """(B, ...) -> (B,): the mean over what counts."""
    axes = tuple(range(1, values.ndim))
    total = jnp.sum(values, axis=axes, where=counts)
    return total / jnp.maximum(jnp.sum(counts, axis=axes), 1)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)
