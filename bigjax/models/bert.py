"""BERT and its kin: an encoder that reads a text in both directions, and its heads.

Every parameter names its logical axes; which mesh axis a name lies on is said elsewhere. Shapes are in
the names: B batch, T length, D width, N heads, H width of a head, V vocabulary, K outputs.

With its choices the one class is RoBERTa, DistilBERT, ELECTRA, ALBERT and ModernBERT (which choices: the
table in `bigjax.pretrained.encoders`).

Parameters: embedding, (positions, types,) embedding_norm, (embedding_dense,) block_0, block_1, ... (with
scan_layers: blocks; where all share one: shared_block), (norm,) and of the head mlm_dense, mlm_norm and
mlm_bias, or pooler and head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError
from bigjax.models.attention import positions
from bigjax.models.blocks import check_context, dense, named, table, unembed
from bigjax.models.common import choose, of_length_one
from bigjax.models.layer_kinds import layers_of, seen_keys
from bigjax.models.transformer import (
    ACTIVATIONS,
    BIASES,
    Form,
    Where,
    blocks,
    flops_by_formula,
    form_of,
    norm,
    size,
)
from bigjax.models.units import Units, of_blocks

HEADS = ("none", "mlm", "sequence", "tokens", "embedding")
POSITIONS, POOLS, POOLED = ("learned", "rotary"), ("first", "mean"), ("tanh", "relu", "gelu")
PRESETS = {
    "tiny": dict(layers=2, width=128, heads=2, mlp_width=512),  # Turc et al. 2019
    "mini": dict(layers=4, width=256, heads=4, mlp_width=1024),
    "minilm": dict(layers=6, width=384, heads=12, mlp_width=1536),  # Wang et al. 2020
    "base": dict(layers=12, width=768, heads=12, mlp_width=3072),  # Devlin et al. 2019
    "large": dict(layers=24, width=1024, heads=16, mlp_width=4096),
}


class BERT(nn.Module):
    """Devlin et al. 2019; with `roberta` the RoBERTa of Liu et al. 2019; with `pooled` "relu" and no types
    the DistilBERT of Sanh et al. 2019; with `pooled` "gelu" the ELECTRA of Clark et al. 2020; with
    `shared` the ALBERT of Lan et al. 2020; with rotary positions, windows and gated MLPs the ModernBERT
    of Warner et al. 2024.

    vocab: number of tokens.
    layers, width, heads: number of blocks, their width D, and the heads that share it evenly.
    mlp_width: of the blocks' hidden layer; default 4 D. head_width: H, where the heads do not share the width
        evenly.
    context: the longest text it can read.
    types: kinds of token (first or second text of a pair); 0: tokens have none.
    roberta: the sequence head drops out once more, and positions do not start in row 0 of their table.
    first_position: the row in which they start; default 2 for RoBERTa (its padding token is 1), else 0.
    activation: of the blocks and the masked-LM head (see `bigjax.models.transformer.ACTIVATIONS`).
    pooled: what the sequence head does before its last layer: "tanh", "relu" or "gelu".
    pool: what the sequence head reads: the "first" token, or the "mean" over real tokens.
    transformed: whether every head begins as masked LM's does, with a layer, `pooled` and a norm, and the
        sequence head has no other (ModernBERT). head_bias: whether that layer has a bias.
    embedding_width: of the tables, where it is not D: a linear map then leads into the blocks (ELECTRA).
    head: what comes out (see `__call__`); "sequence" and "tokens" need `outputs`.
    outputs: K, classes or tags.
    norm, norm_places, gated, biases, bare_start, shared: of the blocks (see
        `bigjax.models.transformer.Form`); norms "before" the branches are followed by one at the end.
    positions: "learned", or "rotary": then see `rope_theta`, `local_rope_theta`, `layer_kinds` and `window`
        of `bigjax.models.llama.Llama`; a window reaches as far ahead as back.
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
    pool: str = "first"
    transformed: bool = False
    head_bias: bool = True
    norm: str = "layer"
    norm_places: str = "sum"
    gated: bool = False
    biases: Sequence[str] = BIASES
    bare_start: bool = False
    shared: bool = False
    positions: str = "learned"
    rope_theta: float = 10000.0
    local_rope_theta: float | None = None
    layer_kinds: Sequence[str] = ("full",)
    window: int | None = None
    remat: str = "none"
    scan_layers: bool = False
    head_width: int | None = None

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
        logits (B, K); "tokens" logits (B, T, K); "embedding" (B, D), the mean over real tokens, of length 1
        (Reimers and Gurevych 2019). "sequence" and "embedding" are of rows of one text each.
        """
        choose("model.head", self.head, HEADS)
        if (self.head in ("sequence", "tokens")) != (self.outputs is not None):
            raise UserError("model.outputs: heads 'sequence' and 'tokens' need it, the others not")
        choose("model.positions", self.positions, POSITIONS)
        form, rotary = self._form(), self.positions == "rotary"
        embedding_VD = table(self, "embedding", self.vocab, "vocab", width=self.embedding_width)
        x_BTD = self._embed(embedding_VD, tokens_BT, segments_BT, types_BT)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        x_BTD = drop(norm(form, "embedding_norm")(x_BTD))
        if self.embedding_width is not None:
            x_BTD = dense("embedding_dense", self.width, "pooled", "embed")(x_BTD)
        where = Where(segments=segments_BT, keys=segments_BT)
        if rotary:
            at_BT = _places(tokens_BT, segments_BT)
            where = where._replace(at=at_BT, key_at=at_BT)
        each = layers_of(self, form.head_width) if rotary else None
        x_BTD = blocks(self, form, x_BTD, where, train=train, each=each)
        if form.norm_places == "before":
            x_BTD = norm(form, "norm")(x_BTD)
        if self.head == "mlm":
            if places_BP is not None:  # much of the work of a small model are its logits
                x_BTD = jnp.take_along_axis(x_BTD, places_BP[..., None], axis=1, mode="clip")
            return self._masked_lm(form, x_BTD, embedding_VD)
        if self.head in ("sequence", "tokens"):
            if self.head == "sequence":
                x_BTD = self._pool(x_BTD, segments_BT)
            if self.transformed:
                x_BTD = self._transform(form, x_BTD)
            elif self.head == "sequence":
                x_BTD = drop(x_BTD) if self.roberta else x_BTD
                act = ACTIVATIONS[choose("model.pooled", self.pooled, POOLED)]
                x_BTD = act(dense("pooler", self.width, "embed", "pooled")(x_BTD))
            return dense("head", self.outputs, "embed", "outputs")(drop(x_BTD))
        return mean_embedding(x_BTD, segments_BT) if self.head == "embedding" else x_BTD

    def _form(self) -> Form:
        """What the blocks are."""
        names = ("norm", "norm_places", "gated", "biases", "bare_start", "shared")
        form = form_of(
            self, self.head_width, causal=False, **{name: getattr(self, name) for name in names}
        )
        if self.positions == "rotary" and form.head_width % 2:
            raise UserError(
                f"model.heads: {self.heads} heads of width {form.head_width}; rotary positions turn "
                "pairs and need an even width"
            )
        return form

    def _embed(self, embedding_VD, tokens_BT, segments_BT, types_BT) -> jax.Array:
        """The sum of what each token is, where it stands, and of which kind it is, (B, T, D)."""
        check_context(self.context, tokens_BT.shape[1])
        width, x_BTD = self.embedding_width, embedding_VD[tokens_BT]
        if self.positions == "learned":
            first = self.first_position
            first = 2 * self.roberta if first is None else first
            positions_CD = table(self, "positions", first + self.context, "position", width=width)
            x_BTD = x_BTD + positions_CD[first + _places(tokens_BT, segments_BT)]
        if self.types:
            types_YD = table(self, "types", self.types, "type", width=width)
            kinds = jnp.zeros_like(tokens_BT) if types_BT is None else types_BT
            x_BTD = x_BTD + types_YD[kinds]
        return x_BTD

    def _pool(self, x_BTD: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
        """What the sequence head reads of a text, (B, D)."""
        if choose("model.pool", self.pool, POOLS) == "first":
            return x_BTD[:, 0]
        return mean_of_tokens(x_BTD, segments_BT).astype(x_BTD.dtype)

    def _transform(self, form: Form, x: jax.Array) -> jax.Array:
        """A head's first layer, activation and norm, (..., D)."""
        pooled = choose("model.pooled", self.pooled, POOLED)
        act = ACTIVATIONS[pooled if self.transformed else self.activation]
        width, bias = self.embedding_width or self.width, self.head_bias
        x = act(dense("mlm_dense", width, "embed", "pooled", bias=bias)(x))
        return norm(form, "mlm_norm")(x)

    def _masked_lm(self, form: Form, x_BTD: jax.Array, embedding_VD: jax.Array) -> jax.Array:
        """Logits from one more layer and the tokens' own embeddings, float32 (B, T, V)."""
        x_BTD = self._transform(form, x_BTD)
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
        # How often a shared block is gone through again.
        again = self.layers - 1 if self.shared else 0
        multiplied = [
            (size(params, *tables, *head), B * T),
            (size(params.get("shared_block", {})), again * B * T),
            (size(of_head), read.get(self.head, B * T)),
        ]
        keys = self.layers * T
        if self.positions == "rotary":
            keys = seen_keys(self, T, self.window and 2 * self.window - 1)
        form = self._form()
        return flops_by_formula(multiplied, form.heads * form.head_width * B * T * keys)

    def prunable(self) -> dict[str, list[Units]]:
        """Heads and hidden units of each block."""
        each = [f"block_{i}" for i in range(self.layers)]
        return of_blocks(self._form(), ["shared_block"] if self.shared else each)


def _places(tokens_BT: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
    """Where each token stands in its text, int (B or 1, T)."""
    return jnp.arange(tokens_BT.shape[1])[None] if segments_BT is None else positions(segments_BT)


def mean_of_tokens(x_BTD: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
    """The mean over real tokens, float32 (B, D); 0 where there is none."""
    x_BTD = x_BTD.astype(jnp.float32)
    real_BT = jnp.ones(x_BTD.shape[:2]) if segments_BT is None else segments_BT
    real_BT1 = (real_BT > 0)[..., None]
    return jnp.sum(x_BTD, axis=1, where=real_BT1) / jnp.maximum(jnp.sum(real_BT1, axis=1), 1)


def mean_embedding(x_BTD: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
    """The mean over real tokens, float32 (B, D), scaled to length 1."""
    return of_length_one(mean_of_tokens(x_BTD, segments_BT))
