"""T5: an encoder-decoder Transformer, pre-norm, with relative or sinusoidal positions.

Every parameter names its logical axes; which mesh axis a name lies on is said elsewhere. Shapes are in
the names: B batch, T length of what is being read or written, S length of the source, D width, N heads,
H width of a head, F width of the MLP, V vocabulary, R buckets of distance.

Parameters: embedding, encoder and decoder (each: distances, block_0, block_1, ... or, with scan_layers,
blocks, and norm), and head where it is not tied to the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigjax.core import layout
from bigjax.core.errors import UserError
from bigjax.core.layout import constrain
from bigjax.models.attention import attend, cached_keys, cached_segments, positions
from bigjax.models.blocks import (
    branch,
    head_width,
    joined,
    last_token,
    named,
    product,
    rms_norm,
    stack,
    unembed,
)
from bigjax.models.common import choose
from bigjax.models.ring import check_length
from bigjax.models.transformer import flops_by_formula, size

PRESETS = {
    "tiny": dict(layers=2, width=128, heads=4, mlp_width=512),
    "mini": dict(layers=4, width=256, heads=4, mlp_width=1024),
    "small": dict(layers=6, width=512, heads=8, mlp_width=2048),  # Raffel et al. 2020, section 3.7
    "base": dict(layers=12, width=768, heads=12, mlp_width=3072),
}


class T5(nn.Module):
    """Raffel et al. 2020: a text in, a text out.

    vocab: number of tokens, the same of both texts.
    layers, decoder_layers: blocks of the encoder and of the decoder; the latter default to the former.
    width: D. heads: of each attention. head_width: H; default D / heads.
    mlp_width: F; default 4 D.
    gated: MLP gelu(x G) * (x U) (Shazeer 2020; T5 1.1) in place of relu(x U).
    tied: the logits are products with the embedding, scaled by 1 / sqrt(D).
    positions: "relative" (a learned bias for each head and bucket of distances), or "sinusoidal"
        (Vaswani et al. 2017, 3.5).
    buckets, max_distance: of relative positions; all distances from max_distance share a bucket.
    dropout: of the embeddings, each residual branch and the output.
    remat, scan_layers: levers on memory and compile time (see `bigjax.models.blocks`).
    """

    vocab: int
    layers: int
    width: int
    heads: int
    decoder_layers: int | None = None
    head_width: int | None = None
    mlp_width: int | None = None
    gated: bool = False
    tied: bool = True
    positions: str = "relative"
    buckets: int = 32
    max_distance: int = 128
    dropout: float = 0.0
    norm_epsilon: float = 1e-6
    remat: str = "none"
    scan_layers: bool = False

    # Megatron's split (Shoeybi et al. 2019, section 3): heads and the MLP's hidden units over `tensor`.
    TENSOR_RULES = ((".*", "logical"),)
    LOGICAL_RULES = (("vocab", "tensor"), ("heads", "tensor"), ("mlp", "tensor"))
    MESH_AXES = ("sequence",)  # gathered: see `Stack`

    def setup(self):
        choose("model.positions", self.positions, ("relative", "sinusoidal"))
        init = named(nn.initializers.normal(1.0), "vocab", "embed")
        self.embedding = self.param("embedding", init, (self.vocab, self.width))
        fields = dict(
            heads=self.heads,
            head_width=self.head_width or head_width(self.width, self.heads),
            mlp_width=self.mlp_width or 4 * self.width,
            gated=self.gated,
            distances=(self.buckets, self.max_distance) if self.positions == "relative" else None,
            dropout=self.dropout,
            norm_epsilon=self.norm_epsilon,
            remat=self.remat,
            scan_layers=self.scan_layers,
        )
        self.encoder = Stack(decoder=False, layers=self.layers, **fields)
        self.decoder = Stack(decoder=True, layers=self.decoder_layers or self.layers, **fields)
        if not self.tied:
            self.head = linear(None, self.vocab, "embed", "vocab")

    def __call__(
        self,
        source_BS: jax.Array,
        source_segments_BS: jax.Array,
        target_BT: jax.Array,
        target_segments_BT: jax.Array,
        *,
        train: bool,
    ) -> jax.Array:
        """Float32 logits (B, T, V) of the token after each one of the target.

        All int; segments 0 = padding, 1, 2, ... = which text of the row; a target reads the sources of
        its own segment.
        """
        memory_BSD = self.encode(source_BS, source_segments_BS, train=train)
        target = (target_BT, target_segments_BT)
        return self.decode(memory_BSD, source_segments_BS, *target, train=train)

    def encode(self, source_BS: jax.Array, segments_BS: jax.Array, *, train: bool) -> jax.Array:
        """What the decoder reads of the source, (B, S, D)."""
        return self.encoder(self._embed(source_BS), segments_BS, train=train)

    def decode(
        self,
        memory_BSD: jax.Array,
        source_segments_BS: jax.Array,
        target_BT: jax.Array,
        target_segments_BT: jax.Array,
        *,
        train: bool,
        cache: int = 0,
    ) -> jax.Array:
        """As `__call__`, after `encode`; with a cache of so many slots (see `bigjax.models.generate`) logits
        (B, 1, V) after the last token of each row."""
        x_BTD = self.decoder(
            self._embed(target_BT),
            target_segments_BT,
            memory_BSD,
            source_segments_BS,
            train=train,
            cache=cache,
        )
        if cache:
            x_BTD = last_token(x_BTD, target_segments_BT)
        if self.tied:
            return unembed(x_BTD * self.width**-0.5, self.embedding)
        return self.head(x_BTD).astype(jnp.float32)

    def flops(
        self, params: Any, source_BS: Any, _: Any, target_BT: Any, *__: Any
    ) -> dict[str, float]:
        """FLOPs of forward and backward by formula (see `flops_by_formula`), of inputs of these shapes."""
        (B, S), T = source_BS.shape, target_BT.shape[1]
        width = self.heads * (self.head_width or head_width(self.width, self.heads))
        logits = {"": params["embedding" if self.tied else "head"]}
        multiplied = [
            (size(params["encoder"], "distances"), B * S),
            (size(params["decoder"], "distances"), B * T),
            (size(logits), B * T),
        ]
        decoder = (self.decoder_layers or self.layers) * (T * T + T * S)
        return flops_by_formula(multiplied, width * B * (self.layers * S * S + decoder))

    def _embed(self, tokens_BT: jax.Array) -> jax.Array:
        # Whole rows on every device, or a lookup in columns would scatter what it finds.
        return constrain(self.embedding, "vocab", None)[tokens_BT]


class Stack(nn.Module):
    """The encoder, or the decoder: positions, blocks, and a norm at the end."""

    decoder: bool
    layers: int
    heads: int
    head_width: int
    mlp_width: int
    gated: bool
    distances: Sequence[int] | None  # buckets, max_distance
    dropout: float
    norm_epsilon: float
    remat: str
    scan_layers: bool

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        segments_BT: jax.Array,
        memory_BSD: jax.Array | None = None,
        memory_segments_BS: jax.Array | None = None,
        *,
        train: bool,
        cache: int = 0,
    ) -> jax.Array:
        drop = nn.Dropout(self.dropout, deterministic=not train)
        if layout.parts("length") > 1 and not cache:
            if layout.layout().sequence == "ring":
                raise UserError(
                    "config.sharding.sequence: 'ring' has no biases of distances and no second text; T5 "
                    "takes 'gather'"
                )
            check_length(x_BTD.shape[1], causal=False)
        at_BT, keys, slot = positions(segments_BT), segments_BT, None
        if cache:
            at_BT, keys, slot = cached_segments(self, segments_BT, cache)
        bias = None
        if self.distances:
            bias = self._distance_bias(x_BTD.shape[1], keys.shape[1], slot)
        else:
            x_BTD = x_BTD + sinusoids(at_BT, x_BTD.shape[-1]).astype(x_BTD.dtype)
        fields = dict(
            decoder=self.decoder,
            heads=self.heads,
            head_width=self.head_width,
            mlp_width=self.mlp_width,
            gated=self.gated,
            dropout=self.dropout,
            norm_epsilon=self.norm_epsilon,
            train=train,
            cache=cache,
        )
        x_BTD = stack(
            self,
            Block,
            fields,
            drop(x_BTD),
            bias,
            segments_BT,
            keys,
            slot,
            memory_BSD,
            memory_segments_BS,
        )
        return drop(rms_norm("norm", self.norm_epsilon)(x_BTD))

    def _distance_bias(self, queries: int, keys: int, slot: jax.Array | None) -> jax.Array:
        """What each head adds to the score of a key this far away, float32 (1, N, T, S)."""
        buckets, max_distance = self.distances
        init = named(nn.initializers.normal(0.02), "bucket", "heads")
        table_RN = self.param("distances", init, (buckets, self.heads))
        first = 0 if slot is None else slot
        distance_TS = jnp.arange(keys) - (first + jnp.arange(queries))[:, None]
        bucket_TS = distance_bucket(distance_TS, not self.decoder, buckets, max_distance)
        return jnp.moveaxis(table_RN.astype(jnp.float32)[bucket_TS], -1, 0)[None]


class Block(nn.Module):
    """x + attention(norm(x)), of a decoder also over the memory, then x + mlp(norm(x))."""

    decoder: bool
    heads: int
    head_width: int
    mlp_width: int
    gated: bool
    dropout: float
    norm_epsilon: float
    train: bool
    cache: int

    @nn.compact
    def __call__(self, x_BTD, bias, segments_BT, keys, slot, memory_BSD, memory_segments_BS):
        x_BTD = constrain(x_BTD, "batch", "length", None)
        drop = nn.Dropout(self.dropout, deterministic=not self.train)
        heads = (self.heads, self.head_width, self.cache)

        def add(mixed_BTD: jax.Array) -> jax.Array:
            # The residual stream keeps its dtype, whatever its branches compute in.
            return joined(x_BTD, drop(branch(mixed_BTD)), self.train)

        own = Attention(*heads, causal=self.decoder, cross=False, name="attention")
        x_norm = rms_norm("attention_norm", self.norm_epsilon)(x_BTD)
        x_BTD = add(own(x_norm, x_norm, bias, segments_BT, keys, slot))
        if self.decoder:
            cross = Attention(*heads, causal=False, cross=True, name="cross_attention")
            x_norm = rms_norm("cross_attention_norm", self.norm_epsilon)(x_BTD)
            x_BTD = add(cross(x_norm, memory_BSD, None, segments_BT, memory_segments_BS, None))
        mlp = MLP(self.mlp_width, self.gated, name="mlp")
        return add(mlp(rms_norm("mlp_norm", self.norm_epsilon)(x_BTD)))


class Attention(nn.Module):
    """softmax(q k' + bias) v, all heads, joined: the scale 1 / sqrt(H) is in the initialisation.

    cross: keys and values come from the memory, and with a cache are computed once.
    """

    heads: int
    head_width: int
    cache: int
    causal: bool
    cross: bool

    @nn.compact
    def __call__(self, x_BTD, memory_BSD, bias, segments_BT, keys, slot) -> jax.Array:
        N, H = self.heads, self.head_width

        def project(name: str, of: jax.Array, scale: float = 1.0) -> jax.Array:
            return linear(name, (N, H), "embed", "heads", "head", scale=scale)(of)

        def read(name: str) -> jax.Array:
            if not (self.cross and self.cache):
                return project(name, memory_BSD)
            return self.variable("cache", f"memory_{name}", project, name, memory_BSD).value

        q_BTNH = project("query", x_BTD, scale=1 / H)
        # One dtype for all, should a precision policy except one of them.
        q_BTNH, k_BSNH, v_BSNH = nn.dtypes.promote_dtype(q_BTNH, read("key"), read("value"))
        if self.cache and not self.cross:
            k_BSNH, v_BSNH = cached_keys(self, k_BSNH, v_BSNH, slot, self.cache)
        if not self.cache and layout.parts("length") > 1:  # every device gathers all keys
            k_BSNH, v_BSNH = (constrain(x, "batch", None, "heads", None) for x in (k_BSNH, v_BSNH))
        mixed_BTNH = attend(
            q_BTNH,
            k_BSNH,
            v_BSNH,
            causal=self.causal,
            query_segments=segments_BT,
            key_segments=keys,
            bias=bias,
            offset=slot,
            scale=1.0,
        )
        return linear("out", x_BTD.shape[-1], "heads", "head", "embed", axis=(-2, -1))(mixed_BTNH)


class MLP(nn.Module):
    """relu(x U) W, or gelu(x G) * (x U) W."""

    width: int
    gated: bool

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        h_BTF = linear("up", self.width, "embed", "mlp")(x_BTD)
        if self.gated:
            h_BTF = h_BTF * nn.gelu(linear("gate", self.width, "embed", "mlp")(x_BTD))
        else:
            h_BTF = nn.relu(h_BTF)
        return linear("down", x_BTD.shape[-1], "mlp", "embed")(h_BTF)


def linear(name: str | None, features, *names: str, axis=-1, scale: float = 1.0) -> nn.Module:
    """Linear map without bias, its kernel of variance `scale` / fan in."""
    init = nn.initializers.variance_scaling(scale, "fan_in", "normal")
    return nn.DenseGeneral(
        features,
        axis=axis,
        use_bias=False,
        kernel_init=named(init, *names),
        dot_general=product,
        name=name,
    )


def distance_bucket(distance: jax.Array, both: bool, buckets: int, max_distance: int) -> jax.Array:
    """The bucket of each distance key - query, int (Raffel et al. 2020, section 2.1).

    Half of the buckets are for one distance each, the others for ranges that grow with it up to
    max_distance. With `both`, keys behind and ahead of the query have half of all buckets each; else keys
    ahead share bucket 0.
    """
    side = buckets // 2 if both else buckets
    exact = side // 2
    if exact < 1 or max_distance <= exact:
        raise UserError(f"model: {buckets} buckets do not fit a max_distance of {max_distance}")
    far = np.arange(exact, max_distance + 1)
    growth = np.log(far / exact) / math.log(max_distance / exact)
    ranges = np.minimum(exact + (growth * (side - exact) + 1e-6).astype(np.int32), side - 1)
    table = jnp.asarray(np.concatenate([np.arange(exact), ranges]), jnp.int32)
    away = jnp.abs(distance) if both else jnp.maximum(-distance, 0)
    ahead = jnp.where(distance > 0, side, 0) if both else 0
    return ahead + table[jnp.minimum(away, max_distance)]


def sinusoids(positions_BT: jax.Array, width: int) -> jax.Array:
    """sin and cos of position / 10000^(2i / D), float32 (B, T, D) (Vaswani et al. 2017, section 3.5)."""
    half = -(-width // 2)
    frequency = 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) * 2 / width)
    angle = positions_BT[..., None].astype(jnp.float32) * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)[..., :width]
