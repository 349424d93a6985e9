"""GPT-2: a decoder-only Transformer, pre-norm, learned positions, tied embedding.

Every parameter names its logical axes, every block boundary its activation's; which mesh axis a name
lies on is said elsewhere. Shapes are in the names: B batch, T length, D width, N heads, H width of a
head, V vocabulary.

Parameters: embedding, positions, block_0, block_1, ... (with scan_layers: blocks), norm.
"""

from __future__ import annotations

import flax.linen as nn
import jax

from bigjax.core.errors import UserError
from bigjax.core.layout import constrain
from bigjax.models.attention import attend, cached_keys, cached_segments, positions
from bigjax.models.blocks import (
    MLP,
    branch,
    head_width,
    join_heads,
    last_token,
    layer_norm,
    named,
    normal,
    split_heads,
    stack,
    unembed,
)

# Radford et al. 2019, table 2 (124m there says 117M, 350m says 345M), and Brown et al. 2020, table 2.1,
# "GPT-3 XL", with GPT-2's vocabulary and 16 heads of 128 in place of 24: a multiple of what GPUs like.
PRESETS = {
    "2m": dict(vocab=4096, layers=4, width=128, heads=4, context=256),
    "10m": dict(vocab=8192, layers=6, width=320, heads=5, context=256),
    "124m": dict(vocab=50257, layers=12, width=768, heads=12, context=1024),
    "350m": dict(vocab=50257, layers=24, width=1024, heads=16, context=1024),
    "1.3b": dict(vocab=50257, layers=24, width=2048, heads=16, context=1024),
}


class GPT2(nn.Module):
    """Radford et al. 2019: Vaswani et al. 2017, decoder only, with norms before the branches.

    vocab: number of tokens.
    layers, width, heads: number of blocks, their width D, and the heads that share it evenly.
    context: the longest document it can read.
    mlp_width: default 4 D.
    dropout: after the embedding and on each residual branch.
    attention: which implementation (see `bigjax.models.attention.attend`).
    remat, scan_layers: levers on memory and compile time (see `bigjax.models.blocks`).
    """

    vocab: int
    layers: int
    width: int
    heads: int
    context: int
    mlp_width: int | None = None
    dropout: float = 0.0
    attention: str = "auto"
    remat: str = "none"
    scan_layers: bool = False

    # Megatron's split (Shoeybi et al. 2019, section 3): heads and the MLP's hidden units over `tensor`.
    TENSOR_RULES = ((".*", "logical"),)
    LOGICAL_RULES = (("vocab", "tensor"), ("heads", "tensor"), ("mlp", "tensor"))

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
          train: whether dropout acts.
          cache: slots of the key-value cache; 0: none. See `bigjax.models.generate`.

        Returns:
          float32 (B, T, V); with a cache (B, 1, V), after the last token of each row.
        """
        T = tokens_BT.shape[1]
        if self.context < max(T, cache):
            raise UserError(
                f"model.context: {self.context} is less than the {max(T, cache)} tokens of the data"
            )
        head_width(self.width, self.heads)
        embedding_VD = self.param(
            "embedding", named(normal(), "vocab", "embed"), (self.vocab, self.width)
        )
        positions_CD = self.param(
            "positions", named(normal(), "position", "embed"), (self.context, self.width)
        )
        # Whole rows on every device, or a lookup in columns would scatter what it finds.
        embedding_VD = constrain(embedding_VD, "vocab", None)
        positions_CD = constrain(positions_CD, None, None)
        keys, slot = segments_BT, None
        if cache:
            at_BT, keys, slot = cached_segments(self, segments_BT, cache)
            x_BTD = positions_CD[at_BT]
        else:
            x_BTD = positions_CD[:T] if keys is None else positions_CD[positions(keys)]
        x_BTD = embedding_VD[tokens_BT] + x_BTD
        x_BTD = nn.Dropout(self.dropout, deterministic=not train)(x_BTD)
        fields = dict(
            heads=self.heads,
            mlp_width=self.mlp_width or 4 * self.width,
            layers=self.layers,
            dropout=self.dropout,
            train=train,
            cache=cache,
            implementation=self.attention,
        )
        x_BTD = stack(
            Block,
            fields,
            x_BTD,
            segments_BT,
            keys,
            slot,
            layers=self.layers,
            remat=self.remat,
            scan=self.scan_layers,
        )
        if cache:
            x_BTD = last_token(x_BTD, segments_BT)
        return unembed(layer_norm("norm")(x_BTD), embedding_VD)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    heads: int
    mlp_width: int
    layers: int  # of the whole model: the residual branches start smaller the deeper it is
    dropout: float
    train: bool
    cache: int
    implementation: str

    @nn.compact
    def __call__(self, x_BTD, segments_BT, key_segments, slot) -> jax.Array:
        x_BTD = constrain(x_BTD, "batch", "length", None)
        drop = nn.Dropout(self.dropout, deterministic=not self.train)
        attention = Attention(
            self.heads, self.layers, self.cache, self.implementation, name="attention"
        )
        mlp = MLP(self.mlp_width, nn.gelu, self.layers, name="mlp")  # tanh's form of GELU
        normed_BTD = layer_norm("attention_norm")(x_BTD)
        mixed_BTD = branch(attention(normed_BTD, segments_BT, key_segments, slot))
        # The residual stream keeps its dtype, whatever its branches compute in.
        x_BTD = x_BTD + drop(mixed_BTD).astype(x_BTD.dtype)
        mixed_BTD = branch(mlp(layer_norm("mlp_norm")(x_BTD)))
        return x_BTD + drop(mixed_BTD).astype(x_BTD.dtype)


class Attention(nn.Module):
    """Attention over the tokens so far, all heads, joined."""

    heads: int
    layers: int
    cache: int
    implementation: str

    @nn.compact
    def __call__(self, x_BTD, segments_BT, key_segments, slot) -> jax.Array:
        D = x_BTD.shape[-1]
        q_BTNH, k_BSNH, v_BSNH = (
            split_heads(name, self.heads, D // self.heads)(x_BTD)
            for name in ("query", "key", "value")
        )
        # One dtype for all, should a precision policy except one of them.
        q_BTNH, k_BSNH, v_BSNH = nn.dtypes.promote_dtype(q_BTNH, k_BSNH, v_BSNH)
        if self.cache:
            k_BSNH, v_BSNH = cached_keys(self, k_BSNH, v_BSNH, slot, self.cache)
        mixed_BTNH = attend(
            q_BTNH,
            k_BSNH,
            v_BSNH,
            causal=True,
            query_segments=segments_BT,
            key_segments=key_segments,
            offset=slot,
            implementation=self.implementation,
        )
        return join_heads("out", D, layers=self.layers)(mixed_BTNH)
