"""Structured pruning: hidden units are taken out, so that the model really gets smaller.

A unit's worth is the norm of what reaches it times the norm of what it gives (its row in the next
layer): Li et al. 2017's filters by magnitude, with both sides. Pure.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bigjax.core.errors import UserError


def narrow(
    model: dict[str, Any], variables: dict[str, Any], share: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(changes of `config.model`, variables) with that share of the hidden units taken out.

    Raises:
      UserError: the model is not one whose units are known.
    """
    if model["type"] != "mlp":
        raise UserError(f"narrow: knows the units of mlp, not those of {model['type']}")
    flat = {name: dict(layer) for name, layer in variables["params"].items()}
    stats = {name: dict(layer) for name, layer in variables.get("batch_stats", {}).items()}
    widths = []
    for i, width in enumerate(model["widths"]):
        kept = max(1, round((1 - share) * width))
        following = f"dense_{i + 1}" if f"dense_{i + 1}" in flat else "head"
        reach = np.linalg.norm(np.asarray(flat[f"dense_{i}"]["kernel"], np.float64), axis=0)
        give = np.linalg.norm(np.asarray(flat[following]["kernel"], np.float64), axis=1)
        units = np.sort(np.argsort(-reach * give, kind="stable")[:kept])
        for layers in (flat, stats):
            for name in {f"dense_{i}", f"norm_{i}"} & set(layers):
                layers[name] = {k: np.asarray(x)[..., units] for k, x in layers[name].items()}
        flat[following]["kernel"] = np.asarray(flat[following]["kernel"])[units]
        widths.append(kept)
    changed = {**variables, "params": flat} | ({"batch_stats": stats} if stats else {})
    return {"widths": tuple(widths)}, changed
