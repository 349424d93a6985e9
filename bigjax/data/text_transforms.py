"""Transforms of rows of tokens: pure functions of (example, key), run on the device in the step."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError
from bigjax.core.transforms import Example
from bigjax.data.sources import Source
from bigjax.data.text_rows import NOT_SCORED


@dataclasses.dataclass(frozen=True)
class MaskTokens:
    """Hides tokens for a masked language model (Devlin et al. 2019, section 3.1 and appendix A.1).

    Each token that is neither special nor padding is chosen with probability `rate`. Of the chosen,
    `hidden` become the mask token, `random` any token of the vocabulary, the rest stay. "labels"
    int32 (T,) is what stood at the chosen places, -100 elsewhere. A row that has a mask token
    already, as a user writes one for predict, stays as it is.

    places: P, the most that are chosen in a row (by lot), for a model that gives logits at these
        alone. "places" int32 (P,) is then where the mask tokens and the others chosen stand, in
        order, T where there are fewer than P, and "labels" (P,) is what stood there.
    """

    rate: float = 0.15
    hidden: float = 0.8
    random: float = 0.1
    key: str = "tokens"
    segments: str = "segments"
    places: int | None = None

    def __post_init__(self):
        if self.places is not None and self.places < 1:
            raise UserError(f"mask_tokens: places must be at least 1, got {self.places}")
        if not 0 < self.rate <= 1:
            raise UserError(f"mask_tokens: rate must be in (0, 1], got {self.rate}")
        if min(self.hidden, self.random) < 0 or self.hidden + self.random > 1:
            raise UserError(
                f"mask_tokens: hidden {self.hidden} and random {self.random} are parts of 1"
            )

    def fit(self, source: Source) -> _Masking:
        """Takes the mask token and the special ids from the source's tokenizer."""
        tokenizer = getattr(source, "tokenizer", None)
        if tokenizer is None or tokenizer.mask is None:
            raise UserError("mask_tokens: the source has no tokenizer with a mask token")
        special = tuple(tokenizer.special_ids)
        return _Masking(self, tokenizer.mask, special, tokenizer.vocab_size)


@dataclasses.dataclass(frozen=True)
class _Masking:
    config: MaskTokens
    mask: int
    special: tuple[int, ...]
    vocab_size: int

    def __call__(self, example: Example, key: jax.Array) -> Example:
        c, tokens_T = self.config, example[self.config.key]
        is_special_T = jnp.isin(tokens_T, jnp.array(self.special, jnp.int32))
        may_T = ~is_special_T & (example[c.segments] > 0) & ~jnp.any(tokens_T == self.mask)
        which, how, what = jax.random.split(key, 3)
        lot_T = jax.random.uniform(which, tokens_T.shape)
        chosen_T = may_T & (lot_T < c.rate)
        if c.places:
            worst_P = jnp.sort(jnp.where(chosen_T, lot_T, 1.0))[: c.places]
            chosen_T &= lot_T <= worst_P[-1]
        share_T = jax.random.uniform(how, tokens_T.shape)
        random_T = jax.random.randint(what, tokens_T.shape, 0, self.vocab_size)
        replaced_T = jnp.where(share_T < c.hidden + c.random, random_T, tokens_T)
        replaced_T = jnp.where(share_T < c.hidden, self.mask, replaced_T)
        seen_T = jnp.where(chosen_T, replaced_T, tokens_T).astype(jnp.int32)
        labels_T = jnp.where(chosen_T, tokens_T, NOT_SCORED).astype(jnp.int32)
        changed = {c.key: seen_T, "labels": labels_T}
        if c.places:
            (places_P,) = jnp.nonzero(
                chosen_T | (seen_T == self.mask), size=c.places, fill_value=len(tokens_T)
            )
            labels_P = labels_T.at[places_P].get(mode="fill", fill_value=NOT_SCORED)
            changed |= {"places": places_P.astype(jnp.int32), "labels": labels_P}
        return {**example, **changed}
