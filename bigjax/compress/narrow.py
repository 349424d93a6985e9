"""Structured pruning: hidden units, channels and heads are taken out, so that the model really gets smaller.

What can be taken out is said beside each model (`bigjax.models.units`). A unit's worth is the norm of what
reaches it times the norm of what it gives (its rows in the next layer): Li et al. 2017's filters by
magnitude, with both sides. Pure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from flax import traverse_util

from bigjax.core.errors import UserError
from bigjax.core.rules import paths
from bigjax.models.units import Field, Units


def narrowed(
    step: str, kind: str, model: nn.Module, variables: Mapping[str, Any], share: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(fields of the model that are others, variables) with that share of each layer's units taken out.

    Layers are taken one after the other, each judged as those before it have left it.

    Args:
      step: what to call it in messages. kind: `UNITS` or `HEADS` of `bigjax.models.units`.

    Raises:
      UserError: the model does not say what can be taken out, or its layers are stacked.
    """
    name = type(model).__name__
    if getattr(model, "scan_layers", False):
        raise UserError(
            f"{step}: config.model.scan_layers stacks the layers; export the run, and open it without"
        )
    known = model.prunable() if hasattr(model, "prunable") else {}
    if kind not in known:
        raise UserError(f"{step}: {name} does not say which {kind} can be taken out of it")
    leaves = {path: np.asarray(leaf) for path, leaf in paths(variables).items()}
    sizes: dict[Field, int] = {}
    kept: dict[str, Any] = {}
    for units in known[kind]:
        chosen = _best(_worth(units, leaves), share)
        for path, (axis, each) in _places(units, leaves):
            leaves[path] = np.take(
                leaves[path], _at(units, leaves[path].shape[axis], each, chosen), axis
            )
        sizes |= {field: each * len(chosen) for field, each in units.counted.items()}
        kept |= units.kept
    return _fields(sizes) | kept, traverse_util.unflatten_dict(leaves, sep="/")


def _places(units: Units, leaves: Mapping[str, np.ndarray]) -> list[tuple[str, tuple[int, int]]]:
    """(path with its collection, (axis, adjacent places)) of the leaves that have these units."""
    return [
        (path, place)
        for pattern, place in units.places.items()
        for path in leaves
        if re.fullmatch(pattern, path.partition("/")[2])
    ]


def _worth(units: Units, leaves: Mapping[str, np.ndarray]) -> np.ndarray:
    """float64 (count,)."""
    places = dict(_places(units, leaves))
    worth = np.ones(units.count)
    for path in (f"params/{units.reached}", f"params/{units.read}"):
        axis, each = places[path]
        rows = np.moveaxis(leaves[path].astype(np.float64), axis, 0)
        by_unit = rows.reshape(-1, units.count, each, math.prod(rows.shape[1:]))
        worth *= np.sqrt(np.sum(by_unit**2, axis=(0, 2, 3)))
    return worth


def _at(units: Units, length: int, each: int, chosen: np.ndarray) -> np.ndarray:
    """The places along an axis that the chosen units have."""
    return np.arange(length).reshape(-1, units.count, each)[:, chosen].ravel()


def _best(worth: np.ndarray, share: float) -> np.ndarray:
    """The places, in order, of what is left: at least one."""
    kept = max(1, round((1 - share) * len(worth)))
    return np.sort(np.argsort(-worth, kind="stable")[:kept])


def _fields(sizes: Mapping[Field, int]) -> dict[str, Any]:
    """Field of the model -> its value; places of a tuple, which are all there, put together."""
    found: dict[str, Any] = {}
    for field, size in sizes.items():
        if isinstance(field, str):
            found[field] = size
        else:
            found.setdefault(field[0], {})[field[1]] = size
    return {
        name: tuple(value[i] for i in sorted(value)) if isinstance(value, dict) else value
        for name, value in found.items()
    }
