"""The rotary settings of a config.json, both ways and in both spellings.

transformers 4 writes `rope_theta` beside `rope_scaling`, and reads nothing else. transformers 5 writes all of it in
`rope_parameters`; it reads `rope_scaling` before that, and what is said within before what is said beside.
A file that the two would read as two models is refused (seen with 4.57.6 and 5.23.0).
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
      UserError: a scaling that is not known here, or one that lacks a number; see `said`.
    """
    older = published.get("rope_scaling")
    rope = dict(older or published.get("rope_parameters") or {})
    if nested := [key for key, value in rope.items() if isinstance(value, Mapping)]:
        raise UserError(f"config.init: rotary settings of {nested[0]!r} alone are not known here")
    theta = float(said("rope_theta", rope, published, theta if older else None) or theta)
    partial = said("partial_rotary_factor", rope, published, 1.0 if older else None)
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


def said(key: str, rope: Mapping[str, Any], beside: Mapping[str, Any], otherwise: Any) -> Any:
    """What a rotary setting is, within `rope` or beside it; None where neither says it.

    otherwise: what transformers 4 takes where it stands within alone; None if it cannot read such a file.

    Raises:
      UserError: transformers 4 would take another value than 5.
    """
    own, other = rope.get(key), beside.get(key)
    other = otherwise if other is None and own is not None else other
    if None not in (own, other) and own != other:
        raise UserError(
            f"config.init: the checkpoint's config.json is read in two ways: {key} is {own} to transformers 5 and "
            f"{other} to transformers 4; say the one that it was trained with in both places"
        )
    return other if own is None else own


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
