"""BERT and RoBERTa: a post-norm encoder that reads a text in both directions, and its heads.

Every parameter names its logical axes; which mesh axis a name lies on is said elsewhere. Shapes are in
the names: B batch, T length, D width, N heads, H width of a head, V vocabulary, K outputs.

Parameters: embedding, positions, types, embedding_norm, block_0, block_1, ... (with scan_layers:
blocks), and of the head mlm_dense, mlm_norm and mlm_bias, or pooler and head.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError
from bigjax.core.layout import constrain
from bigjax.models.attention import attend, positions
from bigjax.models.blocks import (
    MLP,
    branch,
    dense,
    head_width,
    join_heads,
    layer_norm,
    named,
    normal,
    split_heads,
    stack,
    unembed,
)
from bigjax.models.common import choose

HEADS = ("none", "mlm", "sequence", "tokens", "embedding")
PRESETS = {
    "tiny": dict(layers=2, width=128, heads=2, mlp_width=512),  # Turc et al. 2019
    "mini": dict(layers=4, width=256, heads=4, mlp_width=1024),
    "minilm": dict(layers=6, width=384, heads=12, mlp_width=1536),  # Wang et al. 2020
    "base": dict(layers=12, width=768, heads=12, mlp_width=3072),  # Devlin et al. 2019
    "large": dict(layers=24, width=1024, heads=16, mlp_width=4096),
}
gelu = functools.partial(nn.gelu, approximate=False)  # with the error function itself, as published


class BERT(nn.Module):
    """Devlin et al. 2019; with `roberta` the RoBERTa of Liu et al. 2019.

    vocab: number of tokens.
    layers, width, heads: number of blocks, their width D, and the heads that share it evenly.
    mlp_width: of the blocks' hidden layer; default 4 D.
    context: the longest text it can read.
    types: kinds of token (first or second text of a pair).
    roberta: positions start two rows into their table, and the sequence head drops out once more.
    head: what comes out (see `__call__`); "sequence" and "tokens" need `outputs`.
    outputs: K, classes or tags.
    dropout: of the embeddings, of each residual branch and before the last layer. (The published one
        also drops attention weights, which no fused kernel does.)
    norm_epsilon: of the LayerNorms; 1e-12 for BERT, 1e-5 for RoBERTa.
    remat, scan_layers: levers on memory and compile time (see `bigjax.models.blocks`).
    """

    vocab: int
    layers: int
    width: int
    heads: int
    mlp_width: int | None = None
    context: int = 512
    types: int = 2
    roberta: bool = False
    head: str = "none"
    outputs: int | None = None
    dropout: float = 0.0
    norm_epsilon: float = 1e-12
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
        types_BT: jax.Array | None = None,
        places_BP: jax.Array | None = None,
        *,
        train: bool,
    ) -> jax.Array:
        """tokens, segments (0 = padding; None: no padding) and types int (B, T), T <= context.

        Returns, by `head`, float: "none" the last block's output (B, T, D); "mlm" float32 logits
        (B, T, V) of the token at each place, or (B, P, V) at those of `places_BP` alone; "sequence"
        logits (B, K), read at the first token;
        "tokens" logits (B, T, K); "embedding" (B, D), the mean over real tokens, of length 1
        (Reimers and Gurevych 2019). "sequence" and "embedding" are of rows of one text each.
        """
        choose("model.head", self.head, HEADS)
        if (self.head in ("sequence", "tokens")) != (self.outputs is not None):
            raise UserError("model.outputs: heads 'sequence' and 'tokens' need it, the others not")
        init = named(normal(), "vocab", "embed")
        embedding_VD = self.param("embedding", init, (self.vocab, self.width))
        x_BTD = self._embed(embedding_VD, tokens_BT, segments_BT, types_BT)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        x_BTD = drop(layer_norm("embedding_norm", self.norm_epsilon)(x_BTD))
        fields = dict(
            heads=self.heads,
            mlp_width=self.mlp_width or 4 * self.width,
            dropout=self.dropout,
            norm_epsilon=self.norm_epsilon,
            train=train,
        )
        x_BTD = stack(
            Block,
            fields,
            x_BTD,
            segments_BT,
            layers=self.layers,
            remat=self.remat,
            scan=self.scan_layers,
        )
        if self.head == "mlm":
            if places_BP is not None:  # much of the work of a small model are its logits
                x_BTD = jnp.take_along_axis(x_BTD, places_BP[..., None], axis=1, mode="clip")
            return self._masked_lm(x_BTD, embedding_VD)
        if self.head == "tokens":
            return dense("head", self.outputs, "embed", "outputs")(drop(x_BTD))
        if self.head == "sequence":
            first_BD = drop(x_BTD[:, 0]) if self.roberta else x_BTD[:, 0]
            pooled_BD = jnp.tanh(dense("pooler", self.width, "embed", "pooled")(first_BD))
            return dense("head", self.outputs, "embed", "outputs")(drop(pooled_BD))
        return mean_embedding(x_BTD, segments_BT) if self.head == "embedding" else x_BTD

    def _embed(self, embedding_VD, tokens_BT, segments_BT, types_BT) -> jax.Array:
        """The sum of what each token is, where it stands, and of which kind it is, (B, T, D)."""
        T = tokens_BT.shape[1]
        if self.context < T:
            raise UserError(
                f"model.context: {self.context} is less than the {T} tokens of the data"
            )
        first = 2 if self.roberta else 0
        init = named(normal(), "position", "embed")
        positions_CD = self.param("positions", init, (first + self.context, self.width))
        types_YD = self.param("types", named(normal(), "type", "embed"), (self.types, self.width))
        # Whole rows on every device, or a lookup in columns would scatter what it finds.
        embedding_VD = constrain(embedding_VD, "vocab", None)
        positions_CD, types_YD = (constrain(x, None, None) for x in (positions_CD, types_YD))
        places = jnp.arange(T) if segments_BT is None else positions(segments_BT)
        kinds = jnp.zeros_like(tokens_BT) if types_BT is None else types_BT
        return embedding_VD[tokens_BT] + positions_CD[first + places] + types_YD[kinds]

    def _masked_lm(self, x_BTD: jax.Array, embedding_VD: jax.Array) -> jax.Array:
        """Logits from one more layer and the tokens' own embeddings, float32 (B, T, V)."""
        x_BTD = gelu(dense("mlm_dense", self.width, "embed", "pooled")(x_BTD))
        x_BTD = layer_norm("mlm_norm", self.norm_epsilon)(x_BTD)
        bias_V = self.param("mlm_bias", named(nn.initializers.zeros, "vocab"), (self.vocab,))
        return unembed(x_BTD, embedding_VD) + bias_V


class Block(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    heads: int
    mlp_width: int
    dropout: float
    norm_epsilon: float
    train: bool

    @nn.compact
    def __call__(self, x_BTD: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
        x_BTD = constrain(x_BTD, "batch", "length", None)
        drop = nn.Dropout(self.dropout, deterministic=not self.train)
        mixed_BTD = branch(Attention(self.heads, name="attention")(x_BTD, segments_BT))
        norm = layer_norm("attention_norm", self.norm_epsilon)
        x_BTD = norm(x_BTD + drop(mixed_BTD).astype(x_BTD.dtype))
        mixed_BTD = branch(MLP(self.mlp_width, gelu, name="mlp")(x_BTD))
        norm = layer_norm("mlp_norm", self.norm_epsilon)
        return norm(x_BTD + drop(mixed_BTD).astype(x_BTD.dtype))


class Attention(nn.Module):
    """Each token over all tokens of its segment (Vaswani et al. 2017, 3.2.2), all heads, joined."""

    heads: int

    @nn.compact
    def __call__(self, x_BTD: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
        D = x_BTD.shape[-1]
        H = head_width(D, self.heads)
        # One dtype for all, should a precision policy except one of them.
        q_BTNH, k_BTNH, v_BTNH = nn.dtypes.promote_dtype(
            *(split_heads(name, self.heads, H)(x_BTD) for name in ("query", "key", "value"))
        )
        mixed_BTNH = attend(
            q_BTNH, k_BTNH, v_BTNH, query_segments=segments_BT, key_segments=segments_BT
        )
        return join_heads("out", D)(mixed_BTNH)


def mean_embedding(x_BTD: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
    """The mean over real tokens, float32 (B, D), scaled to length 1."""
    x_BTD = x_BTD.astype(jnp.float32)
    real_BT = jnp.ones(x_BTD.shape[:2]) if segments_BT is None else segments_BT
    real_BT1 = (real_BT > 0)[..., None]
    mean_BD = jnp.sum(x_BTD, axis=1, where=real_BT1) / jnp.maximum(jnp.sum(real_BT1, axis=1), 1)
    square_B1 = jnp.sum(jnp.square(mean_BD), axis=-1, keepdims=True)
    return mean_BD * jax.lax.rsqrt(jnp.maximum(square_B1, 1e-24))
