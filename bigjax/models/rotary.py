"""Rotary positions (Su et al. 2021), and how they are stretched over texts longer than trained on.

F is half of the width that turns: pairs. Knows nothing of parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError
from bigjax.models.common import choose

ORIGINAL = "original_max_position_embeddings"
# rope_type -> the numbers it needs, and those it may have, in the names of published config.json files.
SCALING: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "linear": (("factor",), ()),
    "dynamic": (("factor", ORIGINAL), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", ORIGINAL), ()),
    "yarn": (
        ("factor", ORIGINAL),
        ("attention_factor", "beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim"),
    ),
    "longrope": (("factor", "short_factor", "long_factor", ORIGINAL), ("attention_factor",)),
}


def frequencies(
    width: int, theta: float, scaling: Mapping[str, Any] | None, length: jax.Array | int = 0
) -> jax.Array:
    """By how much each pair turns from one position to the next, float32 (F,).

    Args:
      width: that turns, even: 2 F.
      theta: pair i turns by theta^(-2i/width) (section 3.2.2).
      scaling: `rope_type` and its numbers; None: no pair is slower. "linear": all turn `factor` times
        slower (Chen et al. 2023, eq. 4). "dynamic": theta grows with the text once it is longer than
        the original length L (bloc97 and emozilla 2023, as published in transformers). "llama3": only
        pairs that turn less than `low_freq_factor` times within L are slower; those that turn more
        than `high_freq_factor` times stay, and between the two it is a straight line (Grattafiori et
        al. 2024, section 3.4.1, as published). "yarn": likewise, the line over the pairs' numbers
        (Peng et al. 2024, section 3.2). "longrope": each pair by a factor of its own, of two lists,
        for texts up to L and beyond (Ding et al. 2024).
      length: of the text: the furthest position and one; only "dynamic" and "longrope" ask.

    Raises:
      UserError: another type of scaling, or one that lacks a number or has one too many.
    """
    half = width // 2
    plain_F = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling is None:
        return plain_F
    kind, numbers = checked(scaling)
    if kind == "dynamic":
        beyond = jnp.maximum(length, numbers[ORIGINAL]) / numbers[ORIGINAL]
        growth = numbers["factor"] * beyond - (numbers["factor"] - 1)
        base = theta * growth ** (width / (width - 2))
        return base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if kind == "longrope":
        short_F, long_F = (jnp.asarray(numbers[f"{n}_factor"]) for n in ("short", "long"))
        if short_F.shape != (half,) or long_F.shape != (half,):
            raise UserError(f"model.rope_scaling: longrope needs {half} short and long factors")
        return plain_F / jnp.where(length > numbers[ORIGINAL], long_F, short_F)
    slower_F = plain_F / numbers["factor"]
    if kind == "linear":
        return slower_F
    if kind == "llama3":
        low, high = numbers["low_freq_factor"], numbers["high_freq_factor"]
        turns_F = numbers[ORIGINAL] * plain_F / (2 * jnp.pi)
        kept_F = jnp.clip((turns_F - low) / (high - low), 0.0, 1.0)
    else:
        kept_F = 1 - _yarn_ramp(width, theta, numbers)
    return (1 - kept_F) * slower_F + kept_F * plain_F


def _yarn_ramp(width: int, theta: float, numbers: Mapping[str, Any]) -> jax.Array:
    """1 for pairs that are slowed down, 0 for those that stay, a straight line between."""

    def pair_that_turns(times: float) -> float:
        """The number of the pair that turns so many times within the original length."""
        return width * math.log(numbers[ORIGINAL] / (times * 2 * math.pi)) / (2 * math.log(theta))

    first = pair_that_turns(numbers.get("beta_fast") or 32)
    last = pair_that_turns(numbers.get("beta_slow") or 1)
    if numbers.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    last += 0.001 * (first == last)  # as published
    return jnp.clip((jnp.arange(width // 2, dtype=jnp.float32) - first) / (last - first), 0, 1)


def attention_factor(scaling: Mapping[str, Any] | None) -> float:
    """What "yarn" and "longrope" multiply turned queries and keys by; 1 without."""
    if scaling is None:
        return 1.0
    kind, numbers = checked(scaling)
    if kind not in ("yarn", "longrope"):
        return 1.0
    if numbers.get("attention_factor") is not None:
        return float(numbers["attention_factor"])
    factor = numbers["factor"]
    if factor <= 1:
        return 1.0
    if kind == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(numbers[ORIGINAL]))
    scales = numbers.get("mscale"), numbers.get("mscale_all_dim")
    if not all(scales):
        return 0.1 * math.log(factor) + 1
    above, below = (0.1 * scale * math.log(factor) + 1 for scale in scales)
    return above / below


def checked(scaling: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The type of a scaling and its numbers; UserError if one is missing or unknown."""
    numbers = {k: v for k, v in scaling.items() if k != "rope_type" and v is not None}
    kind = choose("model.rope_scaling.rope_type", scaling.get("rope_type"), tuple(SCALING))
    needed, optional = SCALING[kind]
    if not set(needed) <= set(numbers) <= {*needed, *optional}:
        raise UserError(
            f"model.rope_scaling: '{kind}' has {', '.join(needed)}, "
            f"not {', '.join(numbers) or 'nothing'}"
        )
    return kind, numbers


def rotate(
    x_BTNH: jax.Array,
    positions_BT: jax.Array,
    frequencies_F: jax.Array,
    factor: jax.Array | float = 1.0,
) -> jax.Array:
    """Pair i turned by position * frequency i (eq. 34), then times `factor`; where 2 F < H, the rest
    stays as it is.

    Pair i is (x[i], x[i + F]), the order of Llama's published weights. Computed in float32; the dtype
    is kept.
    """
    half = frequencies_F.shape[-1]
    angle_BT1F = positions_BT[:, :, None, None].astype(jnp.float32) * frequencies_F
    cos, sin = jnp.cos(angle_BT1F) * factor, jnp.sin(angle_BT1F) * factor
    first, second, rest = jnp.split(x_BTNH.astype(jnp.float32), (half, 2 * half), axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin, rest]
    return jnp.concatenate(turned, axis=-1).astype(x_BTNH.dtype)
