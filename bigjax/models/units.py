"""What can be taken out of a model: hidden units, channels, heads. Said beside each model, by its `prunable()`. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

UNITS, HEADS = "units", "heads"  # kinds: hidden units and channels; attention heads
Field = str | tuple[str, int]  # of a model; or a place in one that is a tuple


@dataclasses.dataclass(frozen=True)
class Units:
    """Equal parts of one layer.

    count: how many there are.
    counted: the model's fields that hold their number -> as how many each counts there: a key head is one
      of `kv_heads`, and as many of `heads` as there are queries that share it.
    places: regex of a leaf's path in any collection -> (axis, adjacent places of each unit). An axis longer than
      that has all of them again and again, such as a channel's at every position.
    reached, read: paths of the parameters by which a unit is reached, and what it gives is read.
    kept: fields of the model that must be said once units are gone, for others decided them.
    """

    count: int
    counted: Mapping[Field, int]
    places: Mapping[str, tuple[int, int]]
    reached: str
    read: str
    kept: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def layer(own: str, norm: str | None, count: int, field: Field, reader: str) -> Units:
    """The outputs of a dense layer or a convolution, with the norm behind it, and the layer that reads them."""
    named = f"({own}|{norm})" if norm else own
    return Units(
        count=count,
        counted={field: 1},
        places={f"{named}/.*": (-1, 1), f"{reader}/kernel": (-2, 1)},
        reached=f"{own}/kernel",
        read=f"{reader}/kernel",
    )


def of_blocks(form: Any, blocks: Sequence[str]) -> dict[str, list[Units]]:
    """Heads and hidden units of Transformer blocks: form a `bigjax.models.transformer.Form`, blocks their paths."""
    heads = [_heads(form, f"{block}/attention") for block in blocks]
    if form.routing is not None:  # a mixture of experts has other leaves
        return {HEADS: heads}
    return {HEADS: heads, UNITS: [_hidden(form, f"{block}/mlp") for block in blocks]}


def _heads(form: Any, path: str) -> Units:
    """A key head with the queries that share it. A head is reached by its values."""
    count = form.kv_heads or form.heads
    each = form.heads // count
    norms = (
        "|query_norm" if form.qk_norm == "all" else "",
        "|key_norm" if form.qk_norm == "all" else "",
    )
    return Units(
        count=count,
        counted={"heads": each, **({"kv_heads": 1} if form.kv_heads else {})},
        places={
            f"{path}/(query{norms[0]})/.*": (-2, each),
            f"{path}/(key|value{norms[1]})/.*": (-2, 1),
            f"{path}/out/kernel": (-3, each),
        },
        reached=f"{path}/value/kernel",
        read=f"{path}/out/kernel",
        kept={"head_width": form.head_width},
    )


def _hidden(form: Any, path: str) -> Units:
    return Units(
        count=form.mlp_width,
        counted={"mlp_width": 1},
        places={f"{path}/(up|gate)/.*": (-1, 1), f"{path}/down/kernel": (-2, 1)},
        reached=f"{path}/up/kernel",
        read=f"{path}/down/kernel",
    )
