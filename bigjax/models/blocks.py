"""What the Transformer families share: a stack of equal blocks, norms, projections, tables of tokens.

Models call `stack` instead of looping over their layers; it holds the two levers on the memory and
compile time they cost. Every parameter names its logical axes. Knows nothing of devices.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from bigjax.core import layout
from bigjax.core.adapt import PerLayer, made, makes_layers
from bigjax.core.errors import UserError
from bigjax.core.layout import constrain
from bigjax.core.losses import AUXILIARY
from bigjax.core.rules import paths
from bigjax.models import rows
from bigjax.models.common import choose
from bigjax.models.pipeline import pipelined

# What the forward pass keeps of a block for the backward pass; the rest is computed again (Chen et
# al. 2016, "Training deep nets with sublinear memory cost"). From most memory to least:
REMAT: dict[str, Callable[..., bool] | None] = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,  # every matrix product, attention's weights too
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # not attention's
    "names": jax.checkpoint_policies.save_only_these_names("branch"),  # what `branch` marks
    "full": jax.checkpoint_policies.nothing_saveable,  # the blocks' inputs alone
}

STACKED = ("cache", "intermediates", AUXILIARY)  # what every layer of a loop has for itself


def branch(x: jax.Array) -> jax.Array:
    """Marks the output of a residual branch: a named point that remat "names" keeps."""
    return checkpoint_name(x, "branch")


def joined(x: jax.Array, y: jax.Array, train: bool) -> jax.Array:
    """x + y in the dtype of x: a residual branch joins the stream.

    On a CPU in training apart from what reads it, or XLA would fuse the stream's gradient, all the way
    from the last block, with each of its readers (it keeps barriers where `bigjax.build` tells it to).
    """
    total = x + y.astype(x.dtype)
    return jax.lax.optimization_barrier(total) if train and layout.platform() == "cpu" else total


class Dropout(nn.Dropout):
    """nn.Dropout, whose zeros do not depend on which part of the batch the block sees at a time."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.deterministic or self.rate == 0:
            return x
        if self.rate == 1:
            return jnp.zeros_like(x)
        key, keep = self.make_rng("dropout"), 1 - self.rate
        kept = layout.drawn(lambda shape: jax.random.bernoulli(key, keep, shape), x.shape)
        return jnp.where(kept, x / keep, jnp.zeros_like(x))


def stack(
    model: nn.Module,
    block: type[nn.Module],
    fields: Mapping[str, Any],
    x: jax.Array,
    *shared: Any,
    each: Any = None,
    same: bool = False,
    first: Mapping[str, Any] | None = None,
) -> jax.Array:
    """A model's blocks, one after the other. Call inside its compact method.

    Args:
      model: its fields say how many there are (`layers`), what of them is computed twice (`remat`, a
        key of `REMAT`), and whether one block is compiled and looped over (`scan_layers`). Their
        parameters are then one subtree "blocks" whose leaves have a leading axis of `layers`, named
        "layers", in place of the subtrees block_0, block_1, ...; the checkpoint has the same layout,
        and so has the collection "cache".
      block: a module with `__call__(x, *shared) -> x`, shape and dtype kept; with `each`, its part of
        that comes last.
      fields: its fields.
      x: what goes through the blocks.
      shared: trees of arrays that every block reads (segments, positions), or None.
      each: a tree of arrays with a leading axis of `layers`, in which the blocks differ; None: in none.
      same: whether all blocks have the same parameters, which are then the one subtree "shared_block".
      first: fields of the first block, where it is another than the rest.

    Raises:
      UserError: one loop, or stages of a pipeline, over blocks that are not equal or are all one.
    """
    layers, remat, scan = model.layers, model.remat, model.scan_layers
    in_stages = layout.parts("layers") > 1 and scan and not fields.get("cache")
    choose("model.remat", remat, tuple(REMAT))
    if scan and first is not None:
        raise UserError("model.scan_layers: the first block is another than the rest; leave it out")
    if in_stages and same:
        raise UserError(
            "config.mesh.pipeline: all layers share one block, which has no stages; take mesh.fsdp or "
            "mesh.tensor"
        )
    if scan and not same:
        makes_layers("/".join((*model.scope.path, "blocks")))
    given = paths(model.variables.get("params", {}).get("blocks", {}))
    if scan and any(isinstance(leaf, PerLayer) for leaf in given.values()):
        block = nn.map_variables(block, "params", made)  # in the loop: one layer at a time
    if remat != "none":
        # A loop keeps the two passes apart by itself; unrolled, XLA must be kept from joining them.
        block = nn.remat(block, policy=REMAT[remat], prevent_cse=not scan)
    if not scan:
        one = block(**fields, name="shared_block") if same else None
        for i in range(layers):
            own = () if each is None else (jax.tree.map(operator.itemgetter(i), each),)
            special = first if first is not None and i == 0 else {}
            layer = one or block(**{**fields, **special}, name=f"block_{i}")
            x = layer(x, *shared, *own)
        return x
    own = () if each is None else (each,)
    if in_stages and not model.is_initializing():
        return _in_stages(model, block, fields, x, shared, own)
    loop = nn.scan(
        lambda module, x, *rest: (module(x, *rest), None),
        variable_axes=dict.fromkeys((*STACKED, *(() if same else ("params",))), 0),
        variable_broadcast="params" if same else False,
        split_rngs={"params": not same, "dropout": True},
        in_axes=(nn.broadcast,) * len(shared) + (0,) * len(own),
        length=layers,
        check_constancy_invariants=False,  # one trace: what a block draws does not depend on a second
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    name = "shared_block" if same else "blocks"
    return loop(block(**fields, name=name), x, *shared, *own)[0]


def _in_stages(model, block, fields, x, shared, each) -> jax.Array:
    """The loop of `stack` over stages of a pipeline: the same parameters, random keys and numbers."""
    others = {name for name, tree in model.variables.items() if "blocks" in tree} - {"params"}
    if others or model.is_mutable_collection("intermediates"):
        raise UserError(
            f"config.mesh.pipeline: {', '.join(sorted(others)) or 'what the blocks give'} cannot be "
            "collected from the blocks of a pipeline; take mesh.fsdp or mesh.tensor"
        )
    # Each layer's keys as the loop would split them.
    keys = nn.scan(
        lambda module, carry: (carry, dict(module.scope.rngs)),
        split_rngs={"params": True, "dropout": True},
        length=model.layers,
        check_constancy_invariants=False,
    )(block(**fields, name="blocks"), None)[1]

    def stage(own: Any, x: jax.Array, shared: Any) -> jax.Array:
        def layer(x: jax.Array, own: Any):
            params, rngs, each = own
            module = block(**fields, parent=None)
            return module.apply({"params": params}, x, *shared, *each, rngs=rngs), None

        return jax.lax.scan(layer, x, own)[0]

    return pipelined(stage, (model.variables["params"]["blocks"], keys, each), x, shared)


class Tower(nn.Module):
    """A stack of blocks within a larger model: the fields that `form_of` and `blocks` of
    `bigjax.models.transformer` read, said by that model."""

    layers: int
    width: int
    heads: int
    mlp_width: int | None
    activation: str
    norm_epsilon: float
    dropout: float
    remat: str
    scan_layers: bool


def named(init: nn.initializers.Initializer, *names: str) -> nn.initializers.Initializer:
    """The initialiser of a parameter whose axes have these logical names."""
    return nn.with_logical_partitioning(init, names)


def normal(layers: int | None = None) -> nn.initializers.Initializer:
    """N(0, 0.02^2), for the end of a residual branch over sqrt(2 layers) (Radford et al. 2019, 2.3)."""
    return nn.initializers.normal(0.02 if layers is None else 0.02 / (2 * layers) ** 0.5)


def layer_norm(name: str, epsilon: float = 1e-5, bias: bool = True) -> nn.Module:
    """LayerNorm (Ba et al. 2016) over the last axis. Call inside a compact method.

    Call it something that ends in "norm": the precision policy keeps such parameters in float32.
    """
    return (LayerNorm if rows.on_one_cpu() else nn.LayerNorm)(
        epsilon=epsilon,
        # E[(x - mean)^2], not E[x^2] - mean^2: the latter loses digits where the mean is large.
        use_fast_variance=False,
        use_bias=bias,
        scale_init=named(nn.initializers.ones, "embed"),
        bias_init=named(nn.initializers.zeros, "embed"),
        name=name,
    )


class LayerNorm(nn.LayerNorm):
    """Flax's, by `rows.layer_norm`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", self.scale_init, x.shape[-1:])
        bias = self.param("bias", self.bias_init, x.shape[-1:]) if self.use_bias else None
        return rows.layer_norm(x, scale, bias, self.epsilon)


def rms_norm(name: str, epsilon: float = 1e-5, names: Sequence[str] = ("embed",)) -> nn.Module:
    """RMSNorm (Zhang and Sennrich 2019), x / rms(x) times a scale, over the last axes, which have
    these logical names. As `layer_norm`."""
    axes = tuple(range(-len(names), 0))
    return nn.RMSNorm(
        epsilon=epsilon,
        scale_init=named(nn.initializers.ones, *names),
        reduction_axes=axes,
        feature_axes=axes,
        name=name,
    )


class RMSNormFromOne(nn.Module):
    """x / rms(x) times 1 + scale, over the last axis: decay draws the scale to 1 (Gemma Team 2024)."""

    epsilon: float
    names: Sequence[str]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = named(nn.initializers.zeros, *self.names)
        scale = self.param("scale", init, x.shape[-len(self.names) :])
        wide = x.astype(jnp.float32)
        mean = jnp.mean(wide**2, axis=tuple(range(-len(self.names), 0)), keepdims=True)
        normed = wide * jax.lax.rsqrt(mean + self.epsilon) * (1 + scale.astype(jnp.float32))
        return normed.astype(jnp.promote_types(x.dtype, scale.dtype))


def head_width(width: int, heads: int) -> int:
    """Width H of each of `heads` heads that share `width` evenly; UserError if they do not."""
    if width % heads:
        raise UserError(f"model.heads: {heads} heads do not share width {width} evenly")
    return width // heads


def product(x: jax.Array, kernel: jax.Array, axes: Any, **options: Any) -> jax.Array:
    """`jax.lax.dot_general` of the last axes of x with the first of a kernel.

    On a CPU as a product of two matrices: of a batch of rows XLA would first write what the kernel's gradient
    is made of transposed (`scripts.benchmarks.products`). Not where the rows' length is split.
    """
    contracted = len(axes[0][0])
    if layout.platform() != "cpu" or layout.parts("length") > 1 or x.ndim <= contracted:
        return jax.lax.dot_general(x, kernel, axes, **options)
    rows, outputs = x.shape[:-contracted], kernel.shape[contracted:]
    inputs = math.prod(kernel.shape[:contracted])
    matrices = x.reshape(-1, inputs), kernel.reshape(inputs, -1)
    return jax.lax.dot(*matrices, **options).reshape(*rows, *outputs)


class Linear(nn.Module):
    """x's last axes, as many as `inputs`, times a kernel, plus a bias: (..., *I) -> (..., *outputs).

    Parameters: kernel (*I, *outputs), drawn as the matrix that it is, and bias (*outputs).

    names: logical names of the kernel's axes, and of the bias those of the outputs.
    """

    outputs: Sequence[int]
    names: Sequence[str]
    use_bias: bool
    kernel_init: nn.initializers.Initializer
    inputs: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def as_matrix(rng: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
            sides = math.prod(shape[: self.inputs]), math.prod(shape[self.inputs :])
            return self.kernel_init(rng, sides, dtype).reshape(shape)

        shape = (*x.shape[-self.inputs :], *self.outputs)
        kernel, bias = self.param("kernel", named(as_matrix, *self.names), shape), None
        if self.use_bias:
            zeros = named(nn.initializers.zeros, *self.names[self.inputs :])
            bias = self.param("bias", zeros, tuple(self.outputs))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias)
        contracted = tuple(range(x.ndim - self.inputs, x.ndim)), tuple(range(self.inputs))
        y = product(x, kernel, (contracted, ((), ())))
        return y if bias is None else rows.with_bias(y, bias)


def split_heads(
    name: str, heads: int, width: int, *, bias: bool = True, axis: str = "heads"
) -> nn.Module:
    """Linear map (..., D) -> (..., heads, width): queries, keys, values. Call inside a compact method."""
    return Linear((heads, width), ("embed", axis, "head"), bias, normal(), name=name)


def join_heads(name: str, width: int, *, bias: bool = True, layers: int | None = None) -> nn.Module:
    """Linear map (..., heads, H) -> (..., width), a residual branch's end: see `normal`."""
    names = ("heads", "head", "embed")
    return Linear((width,), names, bias, normal(layers), inputs=2, name=name)


def dense(
    name: str | None, width: int, *names: str, bias: bool = True, layers: int | None = None
) -> nn.Module:
    """Linear map to `width` whose two axes have these logical names. Call inside a compact method."""
    return Linear((width,), names, bias, normal(layers), name=name)


def check_context(context: int, tokens: int) -> None:
    """Raises UserError where a row (or its cache) has more tokens than the model can read."""
    if context < tokens:
        raise UserError(f"model.context: {context} is less than the {tokens} tokens of the data")


def table(
    module: nn.Module,
    name: str,
    rows: int,
    axis: str,
    init: nn.initializers.Initializer | None = None,
    width: int | None = None,
) -> jax.Array:
    """A parameter (rows, width) to look up in; width: default the module's. Call inside its compact method."""
    init = named(init or normal(), axis, "embed")
    found_VD = module.param(name, init, (rows, width or module.width))
    # Whole rows on every device, or a lookup in columns would scatter what it finds.
    return constrain(found_VD, "vocab" if axis == "vocab" else None, None)


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
