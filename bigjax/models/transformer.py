"""Decoder-only Transformer (GPT-2's form): pre-norm, causal attention, learned positions, tied embedding.

Every parameter names its logical axes, every block boundary its activation's; which mesh axis a name
lies on is said elsewhere. Shapes are in the names: B batch, T length, D width, N heads, H width of a
head, F width of the MLP, V vocabulary.

Parameters: embedding, positions, block_0, block_1, ... (with scan_layers: blocks), norm.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.errors import UserError
from bigjax.models.blocks import branch, stack
from bigjax.models.common import constrain


class Transformer(nn.Module):
    """Vaswani et al. 2017, decoder only; pre-norm and initialisation of Radford et al. 2019 (GPT-2).

    vocab: number of tokens.
    layers, width, heads: number of blocks, their width D, and the heads that share it evenly.
    context: the longest sequence it can read.
    mlp_width: F; default 4 D.
    dropout: after the embedding and on each residual branch.
    remat, scan_layers: levers on memory and compile time (see `bigjax.models.blocks`).
    """

    vocab: int
    layers: int
    width: int
    heads: int
    context: int
    mlp_width: int | None = None
    dropout: float = 0.0
    remat: str = "none"
    scan_layers: bool = False

    # Megatron's split (Shoeybi et al. 2019, section 3): heads and the MLP's hidden units over `tensor`.
    TENSOR_RULES = ((".*", "logical"),)
    LOGICAL_RULES = (("vocab", "tensor"), ("heads", "tensor"), ("mlp", "tensor"))

    @nn.compact
    def __call__(self, tokens_BT: jax.Array, *, train: bool) -> jax.Array:
        """tokens int (B, T), T <= context; returns float32 logits (B, T, V) of the token that follows."""
        T = tokens_BT.shape[1]
        if self.context < T:
            raise UserError(
                f"model.context: {self.context} is less than the {T} tokens of the data"
            )
        embedding_VD = self.param(
            "embedding", named(normal(), "vocab", "embed"), (self.vocab, self.width)
        )
        positions_CD = self.param(
            "positions", named(normal(), "position", "embed"), (self.context, self.width)
        )
        # Whole rows on every device, or a lookup in columns would scatter what it finds.
        embedding_VD = constrain(embedding_VD, "vocab", None)
        positions_CD = constrain(positions_CD, None, None)
        x_BTD = embedding_VD[tokens_BT] + positions_CD[:T]
        x_BTD = nn.Dropout(self.dropout, deterministic=not train)(x_BTD)
        fields = dict(
            heads=self.heads,
            mlp_width=self.mlp_width or 4 * self.width,
            layers=self.layers,
            dropout=self.dropout,
            train=train,
        )
        x_BTD = stack(
            Block, fields, x_BTD, layers=self.layers, remat=self.remat, scan=self.scan_layers
        )
        x_BTD = norm("norm")(x_BTD)
        logits_BTV = jnp.einsum(
            "BTD,VD->BTV",
            *nn.dtypes.promote_dtype(x_BTD, embedding_VD),
            preferred_element_type=jnp.float32,
        )
        return constrain(logits_BTV, "batch", "length", "vocab")


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    heads: int
    mlp_width: int
    layers: int  # of the whole model: the residual branches start smaller the deeper it is
    dropout: float
    train: bool

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        x_BTD = constrain(x_BTD, "batch", "length", None)
        drop = nn.Dropout(self.dropout, deterministic=not self.train)
        attention = Attention(self.heads, self.layers, name="attention")
        mlp = MLP(self.mlp_width, self.layers, name="mlp")
        # The residual stream keeps its dtype, whatever its branches compute in.
        mixed_BTD = branch(attention(norm("attention_norm")(x_BTD)))
        x_BTD = x_BTD + drop(mixed_BTD).astype(x_BTD.dtype)
        return x_BTD + drop(branch(mlp(norm("mlp_norm")(x_BTD)))).astype(x_BTD.dtype)


class Attention(nn.Module):
    """softmax(q k' / sqrt(H)) v over the tokens so far (Vaswani et al. 2017, eq. 1), all heads, joined.

    S is T seen from a key. Scores and softmax are float32.
    """

    heads: int
    layers: int

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        D = x_BTD.shape[-1]
        if D % self.heads:
            raise UserError(f"model.heads: {self.heads} heads do not share width {D} evenly")

        def project(name: str) -> jax.Array:
            return nn.DenseGeneral(
                (self.heads, D // self.heads),
                kernel_init=named(normal(), "embed", "heads", "head"),
                bias_init=named(nn.initializers.zeros, "heads", "head"),
                name=name,
            )(x_BTD)

        # One dtype for both, should a precision policy except one of them.
        q_BTNH, k_BSNH = nn.dtypes.promote_dtype(project("query"), project("key"))
        v_BSNH = project("value")
        scores_BNTS = jnp.einsum(
            "BTNH,BSNH->BNTS", q_BTNH, k_BSNH, preferred_element_type=jnp.float32
        )
        seen_TS = jnp.tri(x_BTD.shape[1], dtype=bool)
        scores_BNTS = jnp.where(seen_TS, scores_BNTS / q_BTNH.shape[-1] ** 0.5, -jnp.inf)
        weights_BNTS = jax.nn.softmax(scores_BNTS).astype(v_BSNH.dtype)
        mixed_BTNH = jnp.einsum("BNTS,BSNH->BTNH", weights_BNTS, v_BSNH)
        return nn.DenseGeneral(
            D,
            axis=(-2, -1),
            kernel_init=named(normal(self.layers), "heads", "head", "embed"),
            bias_init=named(nn.initializers.zeros, "embed"),
            name="out",
        )(mixed_BTNH)


class MLP(nn.Module):
    """gelu(x U) W."""

    width: int
    layers: int

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        h_BTF = nn.Dense(
            self.width,
            kernel_init=named(normal(), "embed", "mlp"),
            bias_init=named(nn.initializers.zeros, "mlp"),
            name="up",
        )(x_BTD)
        return nn.Dense(
            x_BTD.shape[-1],
            kernel_init=named(normal(self.layers), "mlp", "embed"),
            bias_init=named(nn.initializers.zeros, "embed"),
            name="down",
        )(nn.gelu(h_BTF))


def norm(name: str) -> nn.Module:
    """LayerNorm (Ba et al. 2016). Call inside a compact method."""
    return nn.LayerNorm(
        epsilon=1e-5,
        scale_init=named(nn.initializers.ones, "embed"),
        bias_init=named(nn.initializers.zeros, "embed"),
        name=name,
    )


def normal(layers: int | None = None) -> nn.initializers.Initializer:
    """N(0, 0.02^2), for the end of a residual branch over sqrt(2 layers) (Radford et al. 2019, 2.3)."""
    return nn.initializers.normal(0.02 if layers is None else 0.02 / (2 * layers) ** 0.5)


def named(init: nn.initializers.Initializer, *names: str) -> nn.initializers.Initializer:
    """The initialiser of a parameter whose axes have these logical names."""
    return nn.with_logical_partitioning(init, names)
