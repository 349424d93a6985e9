"""Which layers of a published model see a window of the text: lists of layer types, both ways. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bigjax.core.errors import UserError
from bigjax.pretrained import rope

KINDS = {"full_attention": "full", "sliding_attention": "local"}
GLOBAL_THETA, LOCAL_THETA = 160000.0, 10000.0  # ModernBERT's, where a config.json says none
WINDOW = 128  # what it writes where no layer has one


def type_of(local: Any) -> str:
    """A layer's type in config.json."""
    return "sliding_attention" if local else "full_attention"


def kinds_of(types: Sequence[str]) -> tuple[str, ...]:
    """`model.layer_kinds` of a list of layer types; UserError if one is not known."""
    for kind in types:
        if kind not in KINDS:
            raise UserError(f"config.init: layer_types {kind!r} is not known here")
    return shortest([KINDS[kind] for kind in types])


def shortest(kinds: Sequence[str]) -> tuple[str, ...]:
    """The shortest list that gives these kinds when it is gone through again and again."""
    lengths = range(1, len(kinds) + 1)
    period = next(n for n in lengths if all(k == kinds[i % n] for i, k in enumerate(kinds)))
    return tuple(kinds[:period])


def repeated(model: Mapping[str, Any]) -> list[str]:
    """The way back: the kind of every layer of a model."""
    return [model["layer_kinds"][i % len(model["layer_kinds"])] for i in range(model["layers"])]


def read_encoder(published: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """ModernBERT's layers: `layer_kinds`, `window`, `rope_theta` and `local_rope_theta`.

    It says with transformers 5 types and rotary settings of each, with 4 every which layer is full.

    Raises:
      UserError: scaled rotary positions, or another type of layer.
    """
    every = published.get("global_attn_every_n_layers") or 3
    types = published.get("layer_types") or [type_of(i % every) for i in range(layers)]
    kinds, thetas = kinds_of(types), {}
    given = published.get("rope_parameters") or {}
    for kind, key in zip(KINDS, ("global_rope_theta", "local_rope_theta"), strict=True):
        own = {**(published.get("rope_scaling") or {}), **(given.get(kind) or {})}
        if own.get("rope_type", own.get("type", "default")) != "default":
            raise UserError(f"config.init: rope_type {own.get('rope_type')!r} of a ModernBERT")
        thetas[kind] = rope.said("rope_theta", own, {"rope_theta": published.get(key)}, None)
    theta = float(thetas["full_attention"] or GLOBAL_THETA)
    plain = theta if published.get("local_rope_theta", 0) is None else LOCAL_THETA
    # The query's own token among them.
    length = published.get("local_attention")
    reach = (WINDOW if length is None else length) // 2 + 1
    return dict(
        layer_kinds=kinds,
        window=reach if "local" in kinds else None,
        rope_theta=theta,
        local_rope_theta=float(thetas["sliding_attention"] or plain),
    )


def write_encoder(model: Mapping[str, Any]) -> dict[str, Any]:
    """The way back, in both spellings; UserError where no "every n-th layer is full" gives the kinds."""
    kinds, counts = repeated(model), range(1, model["layers"] + 1)
    for every in counts:
        if kinds == ["local" if i % every else "full" for i in range(model["layers"])]:
            break
    else:
        raise UserError(
            "export: the layout of 'modernbert' has full layers at equal distances from the first on, not "
            f"model.layer_kinds {model['layer_kinds']!r}"
        )
    theta = model["rope_theta"]
    thetas = (theta, model["local_rope_theta"] or theta)
    return dict(
        global_attn_every_n_layers=every,
        layer_types=[type_of(kind == "local") for kind in kinds],
        local_attention=2 * (model["window"] - 1) if model["window"] else WINDOW,
        global_rope_theta=thetas[0],
        local_rope_theta=thetas[1],
        rope_parameters={
            kind: dict(rope_type="default", rope_theta=own)
            for kind, own in zip(KINDS, thetas, strict=True)
        },
    )
