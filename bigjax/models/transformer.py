"""One Transformer block for GPT-2, Llama and their kin, BERT and ViT: which family it is, is data.

`Form` is the table of choices in which the families differ; a decoder, an encoder and a vision model
are stacks of the one `Block`. T5 has a block of its own. Shapes are in the names: B batch, T length,
D width, N query heads, K key and value heads, H width of a head, F width of the MLP.

Parameters of a block: attention_norm, attention (query, key, value, out, and query_norm, key_norm),
mlp_norm, mlp ((gate,) up, down; or see `bigjax.models.experts`), and attention_out_norm, mlp_out_norm where norms follow the branches.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.core import layout
from bigjax.core.errors import UserError
from bigjax.core.layout import constrain
from bigjax.models.attention import attend, cached_keys, cached_segments, positions
from bigjax.models.blocks import (
    Dropout,
    RMSNormFromOne,
    branch,
    dense,
    head_width,
    join_heads,
    joined,
    layer_norm,
    rms_norm,
    split_heads,
    stack,
)
from bigjax.models.common import choose, gelu
from bigjax.models.experts import MixtureOfExperts, Routing
from bigjax.models.ring import check_length, ring_attend, unzigzag, zigzag
from bigjax.models.rotary import rotate

ACTIVATIONS = {
    "gelu": gelu,  # with the error function itself
    "gelu_tanh": nn.gelu,  # Hendrycks and Gimpel 2016, the approximation
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "relu": nn.relu,
    "silu": nn.silu,
    "tanh": jnp.tanh,
}
NORMS = ("layer", "layer_no_bias", "rms", "rms_from_one")
NORM_PLACES = ("before", "after", "both", "sum")
BIASES, NO_KEY_BIAS = ("qkv", "out", "mlp"), "qv"
QK_NORMS = ("none", "head", "all")


@dataclasses.dataclass(frozen=True)
class Form:
    """What one family's block is. The defaults are GPT-2's but for the sizes.

    heads, head_width, mlp_width: N, H, F.
    kv_heads: K, of which N is a multiple; None: N, under the same logical axis.
    causal: whether a token sees only those before it.
    norm: "layer"; "layer_no_bias"; "rms"; "rms_from_one", whose parameter is the distance of the scale from 1 (Gemma).
    norm_places: "before" each branch (GPT-2), "after" it (OLMo 2), "both" (Gemma 2),
        or on the "sum" of the branch and what it is added to (BERT).
    bare_start: whether attention of the first block reads what comes in without a norm (ModernBERT).
    shared: whether all blocks have the same parameters (ALBERT).
    activation: a key of `ACTIVATIONS`.
    gated: MLP (act(x G) * x U) W (Shazeer 2020, eq. 6) in place of act(x U) W.
    biases: which linear maps have one: some of "qkv", "out", "mlp"; "qv" if keys have none (Whisper).
    reads_memory: whether a block's second branch attends to a memory (a decoder behind an encoder).
    qk_norm: RMSNorm of queries and keys: "none", over each "head" (Qwen 3), or over "all" heads (OLMo 2).
    scale: of the scores; None: 1 / sqrt(H). softcap: see `attend`.
    depth: layers of the whole model, where residual branches start smaller the deeper it is; or None.
    dropout: of each residual branch.
    implementation: of attention.
    routing: of a mixture of experts, gated MLPs of width F, in the MLP's place; None: one MLP.
    """

    heads: int
    head_width: int
    mlp_width: int
    kv_heads: int | None = None
    causal: bool = True
    norm: str = "layer"
    norm_epsilon: float = 1e-5
    norm_places: str = "before"
    bare_start: bool = False
    shared: bool = False
    activation: str = "gelu_tanh"
    gated: bool = False
    biases: Sequence[str] = BIASES
    reads_memory: bool = False
    qk_norm: str = "none"
    scale: float | None = None
    softcap: float | None = None
    depth: int | None = None
    dropout: float = 0.0
    implementation: str = "auto"
    routing: Routing | None = None

    def __post_init__(self):
        for what, word, known in (
            ("norm", self.norm, NORMS),
            ("norm_places", self.norm_places, NORM_PLACES),
            ("activation", self.activation, tuple(ACTIVATIONS)),
            ("qk_norm", self.qk_norm, QK_NORMS),
            *(("biases", part, (*BIASES, NO_KEY_BIAS)) for part in self.biases),
        ):
            choose(f"model.{what}", word, known)
        object.__setattr__(self, "biases", tuple(self.biases))  # hashable, as Linen wants fields


def form_of(model: nn.Module, own_width: int | None = None, **more: Any) -> Form:
    """The form of a model from its fields of these names.

    own_width: H; None: the heads share the model's width evenly.
    """
    return Form(
        heads=model.heads,
        head_width=own_width or head_width(model.width, model.heads),
        mlp_width=model.mlp_width or 4 * model.width,
        norm_epsilon=model.norm_epsilon,
        activation=model.activation,
        dropout=model.dropout,
        **more,
    )


class Where(NamedTuple):
    """Where the T tokens and the S keys that they may see stand; arrays or None.

    at, key_at: their positions, int (B or 1, T) and (B or 1, S); None where nothing asks.
    segments, keys: see `attend`. slot: where the T tokens lie in the cache.
    memory, memory_keys: what the tokens also attend to (B, S, D), and its segments.
    """

    at: jax.Array | None = None
    key_at: jax.Array | None = None
    segments: jax.Array | None = None
    keys: jax.Array | None = None
    slot: jax.Array | None = None
    memory: jax.Array | None = None
    memory_keys: jax.Array | None = None


class Layer(NamedTuple):
    """In what one layer of rotary positions differs from the next; stacked, (L, ...), in a model.

    turns: frequencies (F,), 0 for a layer without positions. factor: see `rotate`.
    window: how many tokens back a query sees, itself among them, and as many ahead where attention is not
        causal; None: all, in all layers.
    """

    turns: jax.Array
    factor: jax.Array | float
    window: jax.Array | None


def stand(module: nn.Module, length: int, segments_BT: jax.Array | None, cache: int) -> Where:
    """Where a decoder's tokens stand. Call in the model, once, before its blocks."""
    if cache:
        at_BT, keys_BS, slot = cached_segments(module, segments_BT, cache)
        key_at_BS = jnp.cumsum(keys_BS, axis=1) - 1
        return Where(at_BT, key_at_BS, segments_BT, keys_BS, slot)
    at_BT = jnp.arange(length)[None] if segments_BT is None else positions(segments_BT)
    return Where(at_BT, at_BT, segments_BT, segments_BT, None)


def blocks(
    model: nn.Module,
    form: Form,
    x_BTD: jax.Array,
    where: Where,
    *,
    train: bool,
    cache: int = 0,
    each: Any = None,
) -> jax.Array:
    """The model's stack of `Block`s (see `bigjax.models.blocks.stack`). Call inside its compact method.

    Where the length is split over devices it is in zig-zag order inside, if attention is causal.
    """
    fields = dict(form=form, train=train, cache=cache)
    first = dict(first=True) if form.bare_start else None
    run = functools.partial(stack, model, Block, fields, each=each, same=form.shared, first=first)
    for axis, name in (("sequence", "length"), ("pipeline", "layers")):
        if form.routing is not None and layout.parts(name) > 1:
            raise UserError(
                f"config.mesh.{axis}: experts decide over whole rows and report from every block; "
                "use mesh.expert, mesh.fsdp or mesh.tensor"
            )
    if _in_ring(cache):
        check_length(x_BTD.shape[1], form.causal)
        if form.implementation not in ("auto", "xla"):
            raise UserError(
                f"model.attention: '{form.implementation}' does not go round a ring; take 'auto', or "
                "sharding.sequence 'gather'"
            )
    if not _in_ring(cache) or not form.causal:
        return run(x_BTD, where)
    if model.is_mutable_collection("intermediates") and not model.is_initializing():
        raise UserError(
            "config.sharding.sequence: 'ring' has the tokens in another order inside the blocks, "
            "and the method reads what they give; take 'gather'"
        )
    with layout.seeing(1, zigzag):
        where = Where(*(x if x is None else _ordered(x) for x in where))
        return unzigzag(run(zigzag(x_BTD), where))


def _in_ring(cache: int) -> bool:
    return layout.parts("length") > 1 and layout.layout().sequence == "ring" and not cache


def _ordered(x_BT: jax.Array) -> jax.Array:
    """Positions or segments, which every device has whole, in zig-zag order."""
    size = layout.parts("length")
    chunks = jnp.split(x_BT, 2 * size, axis=1)
    order = [number for i in range(size) for number in (i, 2 * size - 1 - i)]
    return jnp.concatenate([chunks[number] for number in order], axis=1)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the norms stand where `form.norm_places` says."""

    form: Form
    train: bool
    cache: int = 0
    first: bool = False  # of a form with `bare_start`

    @nn.compact
    def __call__(self, x_BTD: jax.Array, where: Where, layer: Layer | None = None) -> jax.Array:
        x_BTD = constrain(x_BTD, "batch", "length", None)
        form = self.form
        drop = Dropout(form.dropout, deterministic=not self.train)
        attention = Attention(form, self.cache, name="attention")
        mlp = mlp_of(form, self.train)
        parts = {"attention": lambda x: attention(x, where, layer)}
        if form.reads_memory:
            both_ways = dataclasses.replace(form, causal=False)
            cross = Attention(both_ways, self.cache, name="cross_attention")
            there = Where(keys=where.memory_keys)
            parts["cross_attention"] = lambda x: cross(x, there, None, where.memory)
        parts["mlp"] = lambda x: mlp(x, where.segments)
        for name, part in parts.items():
            y_BTD, bare = x_BTD, self.first and name == "attention"
            if form.norm_places in ("before", "both") and not bare:
                y_BTD = norm(form, f"{name}_norm")(y_BTD)
            y_BTD = branch(part(y_BTD))
            if form.norm_places in ("after", "both"):
                y_BTD = norm(form, f"{name}_out_norm")(y_BTD)
            # The residual stream keeps its dtype, whatever its branches compute in.
            x_BTD = joined(x_BTD, drop(y_BTD), self.train)
            if form.norm_places == "sum":
                x_BTD = norm(form, f"{name}_norm")(x_BTD)
        return x_BTD


class Attention(nn.Module):
    """Every head's softmax(q k') v, joined; keys and values from the memory where there is one."""

    form: Form
    cache: int = 0

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        where: Where,
        layer: Layer | None = None,
        memory_BSD: jax.Array | None = None,
    ) -> jax.Array:
        form, own = self.form, memory_BSD is None
        K, axis = (form.kv_heads, "kv_heads") if form.kv_heads else (form.heads, "heads")

        def project(name: str, heads: int, axis: str, of: jax.Array) -> jax.Array:
            bias = "qkv" in form.biases or (NO_KEY_BIAS in form.biases and name != "key")
            return split_heads(name, heads, form.head_width, bias=bias, axis=axis)(of)

        def read(name: str) -> jax.Array:
            if own or not self.cache:
                return project(name, K, axis, x_BTD if own else memory_BSD)
            # Of a memory they stay as they are from token to token.
            kept = self.variable("cache", f"memory_{name}", project, name, K, axis, memory_BSD)
            return kept.value

        q_BTNH = project("query", form.heads, "heads", x_BTD)
        k_BSKH, v_BSKH = read("key"), read("value")
        if form.qk_norm != "none":
            q_BTNH = self._norm("query_norm", "heads")(q_BTNH)
            k_BSKH = self._norm("key_norm", axis)(k_BSKH)
        # One dtype for all, should a precision policy except one of them.
        q_BTNH, k_BSKH, v_BSKH = nn.dtypes.promote_dtype(q_BTNH, k_BSKH, v_BSKH)
        if layer is not None:
            q_BTNH = rotate(q_BTNH, where.at, layer.turns, layer.factor)
            k_BSKH = rotate(k_BSKH, where.at, layer.turns, layer.factor)
        if self.cache and own:
            k_BSKH, v_BSKH = cached_keys(self, k_BSKH, v_BSKH, where.slot, self.cache)
        mixed_BTNH = self._mix(q_BTNH, k_BSKH, v_BSKH, where, layer, axis, own)
        out = join_heads("out", x_BTD.shape[-1], bias="out" in form.biases, layers=form.depth)
        return out(mixed_BTNH)

    def _mix(self, q_BTNH, k_BSKH, v_BSKH, where: Where, layer: Layer | None, axis: str, own: bool):
        """What each query takes of the values; own: keys are of the queries' own tokens."""
        form, window = self.form, None if layer is None else layer.window
        options = dict(
            causal=form.causal,
            query_segments=where.segments,
            key_segments=where.keys,
            scale=form.scale,
            softcap=form.softcap,
        )
        if own and _in_ring(self.cache):
            return ring_attend(q_BTNH, k_BSKH, v_BSKH, window=window, **options)
        if own and not self.cache and layout.parts("length") > 1:  # every device gathers all keys
            k_BSKH, v_BSKH = (constrain(x, "batch", None, axis, None) for x in (k_BSKH, v_BSKH))
        near_BTS = None
        if window is not None:
            behind_BTS = where.at[:, :, None] - where.key_at[:, None, :]
            near_BTS = (behind_BTS if form.causal else jnp.abs(behind_BTS)) < window
        return attend(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            mask=near_BTS,
            offset=where.slot,
            implementation=form.implementation,
            **options,
        )

    def _norm(self, name: str, axis: str) -> nn.Module:
        """RMSNorm of each head, or of all heads as one vector."""
        names = ("head",) if self.form.qk_norm == "head" else (axis, "head")
        return norm(self.form, name, names)


def mlp_of(form: Form, train: bool) -> nn.Module:
    """What stands after attention in a block. Call inside its compact method."""
    if form.routing is None:
        return MLP(form, name="mlp")
    act = ACTIVATIONS[form.activation]
    return MixtureOfExperts(form.routing, form.mlp_width, act, form.depth, train, name="mlp")


class MLP(nn.Module):
    """act(x U + b) W + c, or gated."""

    form: Form

    @nn.compact
    def __call__(self, x_BTD: jax.Array, segments_BT: jax.Array | None = None) -> jax.Array:
        form, bias = self.form, "mlp" in self.form.biases
        act = ACTIVATIONS[form.activation]
        h_BTF = dense("up", form.mlp_width, "embed", "mlp", bias=bias)(x_BTD)
        if form.gated:
            h_BTF = act(dense("gate", form.mlp_width, "embed", "mlp", bias=bias)(x_BTD)) * h_BTF
        else:
            h_BTF = act(h_BTF)
        down = dense("down", x_BTD.shape[-1], "mlp", "embed", bias=bias, layers=form.depth)
        return down(h_BTF)


def norm(form: Form, name: str, names: Sequence[str] = ("embed",)) -> nn.Module:
    """The form's norm over the last axes, as many as there are names. Call inside a compact method."""
    if form.norm in ("layer", "layer_no_bias"):
        return layer_norm(name, form.norm_epsilon, bias=form.norm == "layer")
    if form.norm == "rms":
        return rms_norm(name, form.norm_epsilon, names)
    return RMSNormFromOne(form.norm_epsilon, tuple(names), name=name)


def flops_by_formula(
    multiplied: Sequence[tuple[float, float]], attended: float, *, causal: bool = False
) -> dict[str, float]:
    """6 N + 12 L D T a token (Chowdhery et al. 2022, "PaLM", appendix B), forward and backward.

    The second term is attention's, over the whole square of T x T; as a causal mask leaves half of
    that, some count 6 L D T: for decoders both are given, by name.

    Args:
      multiplied: (parameters, how many tokens they multiply), for each part of the model; a table that is
        only looked up does not count.
      attended: the sum over layers and rows of (width of all heads) x queries x keys.
    """
    products = sum(6.0 * parameters * tokens for parameters, tokens in multiplied)
    found = {"6N + 12LDT": products + 12.0 * attended}
    return found | {"6N + 6LDT, causal": products + 6.0 * attended} if causal else found


def size(params: Any, *without: str) -> int:
    """How many numbers are in the parameters, but for those top-level entries."""
    kept = {name: tree for name, tree in params.items() if name not in without}
    return sum(leaf.size for leaf in jax.tree.leaves(kept))
