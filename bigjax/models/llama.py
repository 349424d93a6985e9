"""Llama: a decoder-only Transformer with RMSNorm, rotary positions, grouped queries and SwiGLU.

Nothing has a bias. Every parameter names its logical axes, every block boundary its activation's.
Shapes are in the names: B batch, T length, D width, N query heads, K key and value heads, H width of
a head, F width of the MLP, V vocabulary.

Parameters: embedding, block_0, block_1, ... (with scan_layers: blocks), norm, and unembedding where
the embedding is not tied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError
from bigjax.core.layout import constrain
from bigjax.models.attention import (
    attend,
    cached_keys,
    cached_segments,
    positions,
    rotary_frequencies,
    rotate,
)
from bigjax.models.blocks import (
    branch,
    dense,
    head_width,
    join_heads,
    last_token,
    named,
    normal,
    rms_norm,
    split_heads,
    stack,
    unembed,
)

# "smollm2_135m": Ben Allal et al. 2025, "SmolLM2"; "1b": Zhang et al. 2024, "TinyLlama", table 1, the
# Llama 2 layout at 1.1 billion.
PRESETS = {
    "3m": dict(
        vocab=4096, layers=4, width=128, heads=4, kv_heads=2, mlp_width=352, context=256, tied=True
    ),
    "smollm2_135m": dict(
        vocab=49152,
        layers=30,
        width=576,
        heads=9,
        kv_heads=3,
        mlp_width=1536,
        context=8192,
        rope_theta=100000.0,
        tied=True,
    ),
    "1b": dict(
        vocab=32000, layers=22, width=2048, heads=32, kv_heads=4, mlp_width=5632, context=2048
    ),
}


class Llama(nn.Module):
    """Touvron et al. 2023, with the grouped queries of Ainslie et al. 2023.

    vocab: number of tokens.
    layers, width, heads: number of blocks, their width D, and the query heads.
    kv_heads: key and value heads; heads is a multiple of it.
    head_width: H, even; default: the heads share the width evenly.
    mlp_width: F.
    context: the longest document it can read.
    rope_theta, rope_scaling: of the rotary positions (see `rotary_frequencies`).
    norm_epsilon: added to the mean square in RMSNorm.
    tied: whether the logits are products with the embedding, or with a table of their own.
    attention: which implementation (see `bigjax.models.attention.attend`).
    remat, scan_layers: levers on memory and compile time (see `bigjax.models.blocks`).
    """

    vocab: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp_width: int
    context: int
    head_width: int | None = None
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    norm_epsilon: float = 1e-5
    tied: bool = False
    attention: str = "auto"
    remat: str = "none"
    scan_layers: bool = False

    # Megatron's split (Shoeybi et al. 2019, section 3): heads and the MLP's hidden units over `tensor`.
    TENSOR_RULES = ((".*", "logical"),)
    LOGICAL_RULES = (
        ("vocab", "tensor"),
        ("heads", "tensor"),
        ("kv_heads", "tensor"),
        ("mlp", "tensor"),
    )

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        segments_BT: jax.Array | None = None,
        *,
        train: bool,
        cache: int = 0,
    ) -> jax.Array:
        """Logits of the token that follows.

        Args:
          tokens_BT: int, T <= context.
          segments_BT: int, 0 = padding, 1, 2, ... = which document of the row; None: one document.
          train: changes nothing: there is no dropout.
          cache: slots of the key-value cache; 0: none. See `bigjax.models.generate`.

        Returns:
          float32 (B, T, V); with a cache (B, 1, V), after the last token of each row.
        """
        T = tokens_BT.shape[1]
        if self.context < max(T, cache):
            raise UserError(
                f"model.context: {self.context} is less than the {max(T, cache)} tokens of the data"
            )
        H = self.head_width or head_width(self.width, self.heads)
        if H % 2:
            raise UserError(
                f"model.heads: {self.heads} heads of width {H}; "
                "rotary positions turn pairs and need an even width"
            )
        if self.heads % self.kv_heads:
            raise UserError(
                f"model.kv_heads: {self.kv_heads} key heads do not serve {self.heads} heads evenly"
            )
        table = named(normal(), "vocab", "embed")
        embedding_VD = self.param("embedding", table, (self.vocab, self.width))
        # Whole rows on every device, or a lookup in columns would scatter what it finds.
        embedding_VD = constrain(embedding_VD, "vocab", None)
        if cache:
            at_BT, keys, slot = cached_segments(self, segments_BT, cache)
        else:
            keys, slot = segments_BT, None
            at_BT = jnp.arange(T)[None] if keys is None else positions(keys)
        fields = dict(
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_width=H,
            mlp_width=self.mlp_width,
            norm_epsilon=self.norm_epsilon,
            layers=self.layers,
            cache=cache,
            implementation=self.attention,
        )
        x_BTD = stack(
            Block,
            fields,
            embedding_VD[tokens_BT],
            at_BT,
            rotary_frequencies(H, self.rope_theta, self.rope_scaling),
            segments_BT,
            keys,
            slot,
            layers=self.layers,
            remat=self.remat,
            scan=self.scan_layers,
        )
        if cache:
            x_BTD = last_token(x_BTD, segments_BT)
        x_BTD = rms_norm("norm", self.norm_epsilon)(x_BTD)
        if self.tied:
            return unembed(x_BTD, embedding_VD)
        unembedding_VD = self.param("unembedding", table, (self.vocab, self.width))
        return unembed(x_BTD, constrain(unembedding_VD, "vocab", None))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    norm_epsilon: float
    layers: int  # of the whole model: the residual branches start smaller the deeper it is
    cache: int
    implementation: str

    @nn.compact
    def __call__(self, x_BTD, at_BT, turns_F, segments_BT, key_segments, slot) -> jax.Array:
        x_BTD = constrain(x_BTD, "batch", "length", None)
        attention = Attention(
            self.heads,
            self.kv_heads,
            self.head_width,
            self.layers,
            self.cache,
            self.implementation,
            name="attention",
        )
        mlp = GatedMLP(self.mlp_width, self.layers, name="mlp")
        normed_BTD = rms_norm("attention_norm", self.norm_epsilon)(x_BTD)
        mixed_BTD = branch(attention(normed_BTD, at_BT, turns_F, segments_BT, key_segments, slot))
        # The residual stream keeps its dtype, whatever its branches compute in.
        x_BTD = x_BTD + mixed_BTD.astype(x_BTD.dtype)
        mixed_BTD = branch(mlp(rms_norm("mlp_norm", self.norm_epsilon)(x_BTD)))
        return x_BTD + mixed_BTD.astype(x_BTD.dtype)


class Attention(nn.Module):
    """Attention over the tokens so far, queries and keys turned by their positions, heads joined."""

    heads: int
    kv_heads: int
    head_width: int
    layers: int
    cache: int
    implementation: str

    @nn.compact
    def __call__(self, x_BTD, at_BT, turns_F, segments_BT, key_segments, slot) -> jax.Array:
        D, H = x_BTD.shape[-1], self.head_width
        q_BTNH = split_heads("query", self.heads, H, bias=False)(x_BTD)
        k_BSKH = split_heads("key", self.kv_heads, H, bias=False, axis="kv_heads")(x_BTD)
        v_BSKH = split_heads("value", self.kv_heads, H, bias=False, axis="kv_heads")(x_BTD)
        # One dtype for all, should a precision policy except one of them.
        q_BTNH, k_BSKH, v_BSKH = nn.dtypes.promote_dtype(q_BTNH, k_BSKH, v_BSKH)
        q_BTNH = rotate(q_BTNH, at_BT, turns_F)
        k_BSKH = rotate(k_BSKH, at_BT, turns_F)
        if self.cache:
            k_BSKH, v_BSKH = cached_keys(self, k_BSKH, v_BSKH, slot, self.cache)
        mixed_BTNH = attend(
            q_BTNH,
            k_BSKH,
            v_BSKH,
            causal=True,
            query_segments=segments_BT,
            key_segments=key_segments,
            offset=slot,
            implementation=self.implementation,
        )
        return join_heads("out", D, bias=False, layers=self.layers)(mixed_BTNH)


class GatedMLP(nn.Module):
    """(silu(x G) * x U) W: SwiGLU (Shazeer 2020, eq. 6)."""

    width: int
    layers: int

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        gate_BTF = dense("gate", self.width, "embed", "mlp", bias=False)(x_BTD)
        up_BTF = dense("up", self.width, "embed", "mlp", bias=False)(x_BTD)
        down = dense("down", x_BTD.shape[-1], "mlp", "embed", bias=False, layers=self.layers)
        return down(nn.silu(gate_BTF) * up_BTF)
