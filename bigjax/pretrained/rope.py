"""The rotary settings of a config.json, both ways and in both spellings.

transformers 4 writes `rope_theta` beside `rope_scaling`, transformers 5 all of it in `rope_parameters`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bigjax.core.errors import UserError
from bigjax.models.rotary import ORIGINAL, SCALING, checked

LONGEST = "max_position_embeddings"
OLD_TYPES = {"su": "longrope"}


def read(published: Mapping[str, Any], theta: float) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and the share of a head that turns, as "partial".

    theta: where the config.json says none.

    Raises:
      UserError: a scaling that is not known here, or one that lacks a number.
    """
    rope = dict(published.get("rope_parameters") or published.get("rope_scaling") or {})
    theta = float(rope.pop("rope_theta", None) or published.get("rope_theta") or theta)
    partial = rope.pop("partial_rotary_factor", published.get("partial_rotary_factor"))
    kind = rope.pop("rope_type", None) or rope.get("type") or "default"
    rope.pop("type", None)  # as older files call it
    kind = OLD_TYPES.get(kind, kind)
    scaling = None
    if kind != "default":
        if kind not in SCALING:
            raise UserError(
                f"config.init: rope_type '{kind}' is not known here; default, {', '.join(SCALING)} are"
            )
        longest = published[LONGEST]
        if kind == "dynamic":
            rope[ORIGINAL] = longest
        elif kind != "linear":
            rope[ORIGINAL] = published.get(ORIGINAL) or rope.get(ORIGINAL) or longest
        if kind == "longrope" and rope.get("factor") is None:
            rope["factor"] = longest / rope[ORIGINAL]
        known = {*SCALING[kind][0], *SCALING[kind][1]}
        rope = {key: value for key, value in rope.items() if key in known and value is not None}
        for key in ("short_factor", "long_factor"):
            if key in rope:
                rope[key] = tuple(rope[key])
        scaling = {"rope_type": kind, **rope}
        checked(scaling)
    partial = 1.0 if partial is None else partial
    if not 0 < partial <= 1:
        raise UserError(f"config.init: partial_rotary_factor {partial} is not known here")
    return dict(rope_theta=theta, rope_scaling=scaling, partial=partial)


def write(model: Mapping[str, Any]) -> dict[str, Any]:
    """The way back. transformers 4 takes some numbers from the longest text, so that follows from them."""
    theta, scaling = model["rope_theta"], dict(model["rope_scaling"] or {"rope_type": "default"})
    for key in ("short_factor", "long_factor"):
        if key in scaling:
            scaling[key] = list(scaling[key])
    found = dict(rope_theta=theta, rope_scaling=scaling)
    kind = scaling["rope_type"]
    if kind == "default":
        found["rope_scaling"] = None
    if kind == "dynamic":
        found[LONGEST] = scaling.pop(ORIGINAL)
    if kind in ("yarn", "longrope"):
        found[LONGEST] = round(scaling["factor"] * scaling[ORIGINAL])
    if kind == "longrope":
        found[ORIGINAL] = scaling[ORIGINAL]
    return {**found, "rope_parameters": {**scaling, "rope_theta": theta}}
