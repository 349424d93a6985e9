"""What the Transformer families share: a stack of equal blocks, norms, projections, the MLP.

Models call `stack` instead of looping over their layers; it holds the two levers on the memory and
compile time they cost. Every parameter names its logical axes. Knows nothing of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from bigjax.core.errors import UserError
from bigjax.core.layout import constrain
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
    *shared: Any,
    layers: int,
    remat: str,
    scan: bool,
) -> jax.Array:
    """`layers` blocks one after the other. Call inside a compact method.

    Args:
      block: a module with `__call__(x, *shared) -> x`, shape and dtype kept.
      fields: its fields.
      x: what goes through the blocks.
      shared: arrays that every block reads (segments, positions), or None.
      layers: how many blocks.
      remat: a key of `REMAT`.
      scan: one block compiled once and looped over, in place of `layers` copies in the program. The
        parameters are then one subtree "blocks" whose leaves have a leading axis of `layers`, named
        "layers", in place of the subtrees block_0, block_1, ...; the checkpoint has the same layout,
        and so has the collection "cache".
    """
    choose("model.remat", remat, tuple(REMAT))
    if remat != "none":
        # A loop keeps the two passes apart by itself; unrolled, XLA must be kept from joining them.
        block = nn.remat(block, policy=REMAT[remat], prevent_cse=not scan)
    if not scan:
        for i in range(layers):
            x = block(**fields, name=f"block_{i}")(x, *shared)
        return x
    loop = nn.scan(
        lambda module, x, *shared: (module(x, *shared), None),
        variable_axes={"params": 0, "cache": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,
        length=layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return loop(block(**fields, name="blocks"), x, *shared)[0]


def named(init: nn.initializers.Initializer, *names: str) -> nn.initializers.Initializer:
    """The initialiser of a parameter whose axes have these logical names."""
    return nn.with_logical_partitioning(init, names)


def normal(layers: int | None = None) -> nn.initializers.Initializer:
    """N(0, 0.02^2), for the end of a residual branch over sqrt(2 layers) (Radford et al. 2019, 2.3)."""
    return nn.initializers.normal(0.02 if layers is None else 0.02 / (2 * layers) ** 0.5)


def layer_norm(name: str, epsilon: float = 1e-5) -> nn.Module:
    """LayerNorm (Ba et al. 2016) over the last axis. Call inside a compact method.

    Call it something that ends in "norm": the precision policy keeps such parameters in float32.
    """
    return nn.LayerNorm(
        epsilon=epsilon,
        # E[(x - mean)^2], not E[x^2] - mean^2: the latter loses digits where the mean is large.
        use_fast_variance=False,
        scale_init=named(nn.initializers.ones, "embed"),
        bias_init=named(nn.initializers.zeros, "embed"),
        name=name,
    )


def rms_norm(name: str, epsilon: float = 1e-5) -> nn.Module:
    """RMSNorm (Zhang and Sennrich 2019) over the last axis: x / rms(x) times a scale. As `layer_norm`."""
    return nn.RMSNorm(epsilon=epsilon, scale_init=named(nn.initializers.ones, "embed"), name=name)


def head_width(width: int, heads: int) -> int:
    """Width H of each of `heads` heads that share `width` evenly; UserError if they do not."""
    if width % heads:
        raise UserError(f"model.heads: {heads} heads do not share width {width} evenly")
    return width // heads


def split_heads(
    name: str, heads: int, width: int, *, bias: bool = True, axis: str = "heads"
) -> nn.Module:
    """Linear map (..., D) -> (..., heads, width): queries, keys, values. Call inside a compact method."""
    return nn.DenseGeneral(
        (heads, width),
        use_bias=bias,
        kernel_init=named(normal(), "embed", axis, "head"),
        bias_init=named(nn.initializers.zeros, axis, "head"),
        name=name,
    )


def join_heads(name: str, width: int, *, bias: bool = True, layers: int | None = None) -> nn.Module:
    """Linear map (..., heads, H) -> (..., width), a residual branch's end: see `normal`."""
    return nn.DenseGeneral(
        width,
        axis=(-2, -1),
        use_bias=bias,
        kernel_init=named(normal(layers), "heads", "head", "embed"),
        bias_init=named(nn.initializers.zeros, "embed"),
        name=name,
    )


def dense(
    name: str, width: int, *names: str, bias: bool = True, layers: int | None = None
) -> nn.Module:
    """Linear map to `width` whose two axes have these logical names. Call inside a compact method."""
    return nn.Dense(
        width,
        use_bias=bias,
        kernel_init=named(normal(layers), *names),
        bias_init=named(nn.initializers.zeros, names[-1]),
        name=name,
    )


class MLP(nn.Module):
    """activation(x U + b) W + c.

    width: F, of the hidden layer.
    activation: elementwise.
    layers: of the whole model, where the branch should start smaller the deeper it is; else None.
    """

    width: int
    activation: Callable[[jax.Array], jax.Array]
    layers: int | None = None
    bias: bool = True

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        h_BTF = dense("up", self.width, "embed", "mlp", bias=self.bias)(x_BTD)
        down = dense("down", x_BTD.shape[-1], "mlp", "embed", bias=self.bias, layers=self.layers)
        return down(self.activation(h_BTF))


def last_token(x_BTD: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """(B, 1, D): of each row the last position that is not padding."""
    index_T = jnp.arange(segments_BT.shape[1])
    last_B = jnp.max(jnp.where(segments_BT > 0, index_T, 0), axis=1)
    return jnp.take_along_axis(x_BTD, last_B[:, None, None], axis=1)


def unembed(x_BTD: jax.Array, table_VD: jax.Array) -> jax.Array:
    """Float32 logits (B, T, V): the products of x with every row of a table of tokens."""
    logits_BTV = jnp.einsum(
        "BTD,VD->BTV",
        *nn.dtypes.promote_dtype(x_BTD, table_VD),
        preferred_element_type=jnp.float32,
    )
    return constrain(logits_BTV, "batch", "length", "vocab")
