"""Writing on: one decode loop over a model's cache, whatever the model; greedy or drawn at random.

`decode` knows no model: it asks `step(cache, token) -> (logits, cache)` for one more token until all
rows have stopped. `generate` is the loop for decoder-only models. Pure, made to be called inside jit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError

Step = Callable[[Any, jax.Array], tuple[jax.Array, Any]]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the logits, and when to stop.

    max_new_tokens: at most so many are written.
    temperature: 0: the most likely token; else one drawn from softmax(logits / temperature).
    top_k: only the k most likely tokens can be drawn; 0: all.
    top_p: only the fewest most likely tokens whose probabilities, after top_k, sum to at least this can
        be drawn (Holtzman et al. 2020, "nucleus sampling"); 1: all.
    stop: tokens that end a row; the one that did is not among those written.
    seed: of the draws.
    """

    max_new_tokens: int = 50
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    stop: Sequence[int] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name, right, range_ in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
        ):
            if not right:
                raise UserError(f"generate.{name}: {getattr(self, name)} must be {range_}")


def decode(
    step: Step, cache: Any, logits_BV: jax.Array, sampling: Sampling, key: jax.Array
) -> dict[str, jax.Array]:
    """Writes tokens one by one; the loop ends as soon as every row has stopped.

    Args:
      step: `step(cache, token_B) -> (logits_BV, cache)`: enters one more token of every row, and gives
        the logits of the one after it. Rows that have stopped are fed token 0; what comes out of them
        is not read. The cache is any tree of arrays whose shapes stay: all slots exist from the start,
        `sampling.max_new_tokens` of them still free.
      cache: after the prompt (decoder) or the start token (encoder-decoder).
      logits_BV: of the first token to be written.
      sampling: how it is chosen, and when to stop.
      key: for the draws.

    Returns:
      "tokens" int32 (B, max_new_tokens), 0 after a row's end; "length" int32 (B,), how many were
      written, the stop token not among them.
    """
    B = logits_BV.shape[0]
    stop = jnp.asarray(tuple(sampling.stop) or (-1,), jnp.int32)

    def write(i, tokens_BL, length_B, logits_BV):
        """Chooses token i; returns it with the rows that go on."""
        token_B = choose_token(logits_BV, sampling, jax.random.fold_in(key, i))
        going_B = (length_B == i) & ~jnp.isin(token_B, stop)
        token_B = jnp.where(going_B, token_B, 0)
        return token_B, tokens_BL.at[:, i].set(token_B), length_B + going_B

    def more(carry):
        i, _, _, length_B, _ = carry
        return (i < sampling.max_new_tokens) & jnp.any(length_B == i)

    def body(carry):
        i, token_B, tokens_BL, length_B, cache = carry
        logits_BV, cache = step(cache, token_B)
        return i + 1, *write(i, tokens_BL, length_B, logits_BV), cache

    empty = jnp.zeros((B, sampling.max_new_tokens), jnp.int32)
    first = write(0, empty, jnp.zeros(B, jnp.int32), logits_BV)
    carry = jax.lax.while_loop(more, body, (jnp.int32(1), *first, cache))
    return {"tokens": carry[2], "length": carry[3]}


def choose_token(logits_BV: jax.Array, sampling: Sampling, key: jax.Array) -> jax.Array:
    """int32 (B,): the most likely token or a drawn one, see `Sampling`."""
    logits_BV = logits_BV.astype(jnp.float32)
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / sampling.temperature
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        kth_B1 = jax.lax.top_k(logits_BV, sampling.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < kth_B1, -jnp.inf, logits_BV)
    if sampling.top_p < 1:
        sorted_BV = -jnp.sort(-logits_BV, axis=-1)
        probability_BV = jax.nn.softmax(sorted_BV)
        before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
        kept_BV = before_BV < sampling.top_p
        least_B1 = jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
    return jax.random.categorical(key, logits_BV).astype(jnp.int32)


def generate(
    apply: Callable[..., Any],
    variables: Any,
    tokens_BP: jax.Array,
    segments_BP: jax.Array,
    sampling: Sampling,
    key: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Writes on from prompts, with a decoder-only model.

    Args:
      apply: the model's `apply` (see `bigjax.core.precision.ModelInPrecision`).
      variables: its variables.
      tokens_BP, segments_BP: the prompts, padded on either side to one length P; segments are 1 where
        there is a token and 0 where there is padding. One document a row, of at least one token.
      sampling: how tokens are chosen.
      key: for the draws; default from `sampling.seed`.

    Returns:
      see `decode`.

    Raises:
      UserError: the model's context is less than P + max_new_tokens.
    """
    slots = tokens_BP.shape[1] + sampling.max_new_tokens
    segments_BP = (segments_BP > 0).astype(jnp.int32)

    def enter(cache, tokens_BT, segments_BT):
        logits_B1V, changed = apply(
            {**variables, **cache},
            tokens_BT,
            segments_BT,
            train=False,
            cache=slots,
            mutable=["cache"],
        )
        return logits_B1V[:, 0], changed

    def step(cache, token_B):
        return enter(cache, token_B[:, None], jnp.ones_like(token_B[:, None]))

    logits_BV, cache = enter({}, tokens_BP, segments_BP)
    key = jax.random.key(sampling.seed) if key is None else key
    return decode(step, cache, logits_BV, sampling, key)
