"""BERT and RoBERTa: a post-norm encoder that reads a text in both directions, and its heads.

Every parameter names its logical axes; which mesh axis a name lies on is said elsewhere. Shapes are in
the names: B batch, T length, D width, N heads, H width of a head, V vocabulary, K outputs.

Parameters: embedding, positions, types, embedding_norm, (embedding_dense,) block_0, block_1, ... (with scan_layers:
blocks), and of the head mlm_dense, mlm_norm and mlm_bias, or pooler and head.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError
from bigjax.models.attention import positions
from bigjax.models.blocks import (
    check_context,
    dense,
    layer_norm,
    named,
    table,
    unembed,
)
from bigjax.models.common import choose
from bigjax.models.transformer import ACTIVATIONS, Where, blocks, flops_by_formula, form_of, size

HEADS = ("none", "mlm", "sequence", "tokens", "embedding")
PRESETS = {
    "tiny": dict(layers=2, width=128, heads=2, mlp_width=512),  # Turc et al. 2019
    "mini": dict(layers=4, width=256, heads=4, mlp_width=1024),
    "minilm": dict(layers=6, width=384, heads=12, mlp_width=1536),  # Wang et al. 2020
    "base": dict(layers=12, width=768, heads=12, mlp_width=3072),  # Devlin et al. 2019
    "large": dict(layers=24, width=1024, heads=16, mlp_width=4096),
}


class BERT(nn.Module):
    """Devlin et al. 2019; with `roberta` the RoBERTa of Liu et al. 2019; with `pooled` "relu" and no types
    the DistilBERT of Sanh et al. 2019; with `pooled` "gelu" the ELECTRA of Clark et al. 2020.

    vocab: number of tokens.
    layers, width, heads: number of blocks, their width D, and the heads that share it evenly.
    mlp_width: of the blocks' hidden layer; default 4 D.
    context: the longest text it can read.
    types: kinds of token (first or second text of a pair); 0: tokens have none.
    roberta: the sequence head drops out once more, and positions do not start in row 0 of their table.
    first_position: the row in which they start; default 2 for RoBERTa (its padding token is 1), else 0.
    activation: of the blocks and the masked-LM head (see `bigjax.models.transformer.ACTIVATIONS`).
    pooled: what the sequence head does before its last layer: "tanh", "relu" or "gelu".
    embedding_width: of the tables, where it is not D: a linear map then leads into the blocks (ELECTRA).
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
    first_position: int | None = None
    activation: str = "gelu"
    pooled: str = "tanh"
    embedding_width: int | None = None
    remat: str = "none"
    scan_layers: bool = False

    MESH_AXES = ("sequence",)
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
        form = form_of(self, causal=False, norm_places="sum")
        embedding_VD = table(self, "embedding", self.vocab, "vocab", width=self.embedding_width)
        x_BTD = self._embed(embedding_VD, tokens_BT, segments_BT, types_BT)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        x_BTD = drop(layer_norm("embedding_norm", self.norm_epsilon)(x_BTD))
        if self.embedding_width is not None:
            x_BTD = dense("embedding_dense", self.width, "pooled", "embed")(x_BTD)
        x_BTD = blocks(
            self, form, x_BTD, Where(segments=segments_BT, keys=segments_BT), train=train
        )
        if self.head == "mlm":
            if places_BP is not None:  # much of the work of a small model are its logits
                x_BTD = jnp.take_along_axis(x_BTD, places_BP[..., None], axis=1, mode="clip")
            return self._masked_lm(x_BTD, embedding_VD)
        if self.head == "tokens":
            return dense("head", self.outputs, "embed", "outputs")(drop(x_BTD))
        if self.head == "sequence":
            first_BD = drop(x_BTD[:, 0]) if self.roberta else x_BTD[:, 0]
            act = ACTIVATIONS[choose("model.pooled", self.pooled, ("tanh", "relu", "gelu"))]
            pooled_BD = act(dense("pooler", self.width, "embed", "pooled")(first_BD))
            return dense("head", self.outputs, "embed", "outputs")(drop(pooled_BD))
        return mean_embedding(x_BTD, segments_BT) if self.head == "embedding" else x_BTD

    def _embed(self, embedding_VD, tokens_BT, segments_BT, types_BT) -> jax.Array:
        """The sum of what each token is, where it stands, and of which kind it is, (B, T, D)."""
        T = tokens_BT.shape[1]
        check_context(self.context, T)
        first = self.first_position
        first = 2 * self.roberta if first is None else first
        width = self.embedding_width
        positions_CD = table(self, "positions", first + self.context, "position", width=width)
        places = jnp.arange(T) if segments_BT is None else positions(segments_BT)
        x_BTD = embedding_VD[tokens_BT] + positions_CD[first + places]
        if self.types:
            types_YD = table(self, "types", self.types, "type", width=width)
            kinds = jnp.zeros_like(tokens_BT) if types_BT is None else types_BT
            x_BTD = x_BTD + types_YD[kinds]
        return x_BTD

    def _masked_lm(self, x_BTD: jax.Array, embedding_VD: jax.Array) -> jax.Array:
        """Logits from one more layer and the tokens' own embeddings, float32 (B, T, V)."""
        width = self.embedding_width or self.width
        x_BTD = ACTIVATIONS[self.activation](dense("mlm_dense", width, "embed", "pooled")(x_BTD))
        x_BTD = layer_norm("mlm_norm", self.norm_epsilon)(x_BTD)
        bias_V = self.param("mlm_bias", named(nn.initializers.zeros, "vocab"), (self.vocab,))
        return unembed(x_BTD, embedding_VD) + bias_V

    def flops(
        self,
        params: Any,
        tokens_BT: Any,
        segments_BT: Any = None,
        types_BT: Any = None,
        places: Any = None,
    ) -> dict[str, float]:
        """FLOPs of forward and backward by formula (see `flops_by_formula`), of inputs of these shapes."""
        B, T = tokens_BT.shape
        tables = ("embedding", "positions", "types")
        head = [name for name in params if name.startswith("mlm_") or name in ("pooler", "head")]
        of_head = {name: params[name] for name in head}
        if self.head == "mlm":
            of_head["embedding"] = params["embedding"]
        read = {"mlm": B * (T if places is None else places.shape[1]), "sequence": B}
        multiplied = [
            (size(params, *tables, *head), B * T),
            (size(of_head), read.get(self.head, B * T)),
        ]
        return flops_by_formula(multiplied, self.layers * self.width * B * T * T)


def mean_embedding(x_BTD: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
    """The mean over real tokens, float32 (B, D), scaled to length 1."""
    x_BTD = x_BTD.astype(jnp.float32)
    real_BT = jnp.ones(x_BTD.shape[:2]) if segments_BT is None else segments_BT
    real_BT1 = (real_BT > 0)[..., None]
    mean_BD = jnp.sum(x_BTD, axis=1, where=real_BT1) / jnp.maximum(jnp.sum(real_BT1, axis=1), 1)
    square_B1 = jnp.sum(jnp.square(mean_BD), axis=-1, keepdims=True)
    return mean_BD * jax.lax.rsqrt(jnp.maximum(square_B1, 1e-24))
