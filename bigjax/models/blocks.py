"""A stack of equal blocks, and the two levers on the memory and compile time it costs.

Models call `stack` instead of looping over their layers. Knows nothing of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from bigjax.models.common import choose

# What the forward pass keeps of a block for the backward pass; the rest is computed again (Chen et
# al. 2016, "Training deep nets with sublinear memory cost"). From most memory to least:
REMAT: dict[str, Callable[..., bool] | None] = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,  # every matrix product, attention's weights too
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # not attention's
    "names": jax.checkpoint_policies.save_only_these_names("branch"),  # what `branch` marks
    "full": jax.checkpoint_policies.nothing_saveable,  # the blocks' inputs alone
}


def branch(x: jax.Array) -> jax.Array:
    """Marks the output of a residual branch: a named point that remat "names" keeps."""
    return checkpoint_name(x, "branch")


def stack(
    block: type[nn.Module],
    fields: Mapping[str, Any],
    x: jax.Array,
    *,
    layers: int,
    remat: str,
    scan: bool,
) -> jax.Array:
    """`layers` blocks one after the other. Call inside a compact method.

    Args:
      block: a module with `__call__(x) -> x`, shape and dtype kept.
      fields: its fields.
      remat: a key of `REMAT`.
      scan: one block compiled once and looped over, in place of `layers` copies in the program. The
        parameters are then one subtree "blocks" whose leaves have a leading axis of `layers`, named
        "layers", in place of the subtrees block_0, block_1, ...; the checkpoint has the same layout.
    """
    choose("model.remat", remat, tuple(REMAT))
    if remat != "none":
        # A loop keeps the two passes apart by itself; unrolled, XLA must be kept from joining them.
        block = nn.remat(block, policy=REMAT[remat], prevent_cse=not scan)
    if not scan:
        for i in range(layers):
            x = block(**fields, name=f"block_{i}")(x)
        return x
    loop = nn.scan(
        lambda module, x, _: (module(x), None),
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        length=layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return loop(block(**fields, name="blocks"), x, None)[0]
