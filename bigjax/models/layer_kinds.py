"""The kinds of layers that a model with rotary positions repeats: full attention, a window, no positions.

L counts layers, F pairs of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigjax.core.errors import UserError
from bigjax.models import rotary
from bigjax.models.common import choose
from bigjax.models.transformer import Layer

KINDS = ("full", "local", "no_rope")


def kinds_of(model: nn.Module) -> list[str]:
    """The kind of each layer, by name, from the model's fields `layer_kinds`, `window` and `layers`.

    Raises:
      UserError: a kind that is not known, or a window without a layer that has one.
    """
    for kind in model.layer_kinds:
        choose("model.layer_kinds", kind, KINDS)
    if not model.layer_kinds or ("local" in model.layer_kinds) != (model.window is not None):
        raise UserError("model.window goes with 'local' among model.layer_kinds")
    return [model.layer_kinds[i % len(model.layer_kinds)] for i in range(model.layers)]


def layers_of(
    model: nn.Module,
    width: int,
    scaling: Mapping[str, Any] | None = None,
    length: jax.Array | int = 0,
) -> Layer:
    """In what the layers differ, each leaf (L, ...): see `kinds_of`, and `rope_theta`, `local_rope_theta`.

    width: how much of a head turns. scaling, length: see `bigjax.models.rotary.frequencies`; local layers
    with a theta of their own are not scaled.
    """
    kinds = kinds_of(model)
    turns = {"full": rotary.frequencies(width, model.rope_theta, scaling, length)}
    factors = {"full": rotary.attention_factor(scaling)}
    turns["local"], factors["local"] = turns["full"], factors["full"]
    if model.local_rope_theta is not None:
        turns["local"] = rotary.frequencies(width, model.local_rope_theta, None)
        factors["local"] = 1.0
    turns["no_rope"], factors["no_rope"] = jnp.zeros(width // 2), 1.0
    window_L = None
    if model.window is not None:
        reach = {"local": model.window}
        window_L = np.array([reach.get(kind, model.context) for kind in kinds], np.int32)
    return Layer(
        turns=jnp.stack([turns[kind] for kind in kinds]),
        factor=np.array([factors[kind] for kind in kinds], np.float32),
        window=window_L,
    )


def seen_keys(model: nn.Module, tokens: int, reach: int | None) -> int:
    """The sum over layers of how many of a row's keys a query sees at most; reach: of a local layer."""
    return sum(min(tokens, reach) if kind == "local" else tokens for kind in kinds_of(model))
