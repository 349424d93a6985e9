"""Vision Transformer (Dosovitskiy et al. 2021): an image as a sequence of patches, pre-norm blocks.

Shapes are in the names: B batch, T tokens, D width, N heads, H width of a head.

Parameters: patches, positions, (cls, distillation,) block_0, block_1, ... (with scan_layers: blocks),
norm, (pool,) head, (distillation_head).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigjax.core import layout
from bigjax.core.errors import UserError
from bigjax.models.blocks import dense, layer_norm, named, normal, table
from bigjax.models.common import choose
from bigjax.models.convolution import check_images
from bigjax.models.transformer import (
    MLP,
    Attention,
    Form,
    Where,
    blocks,
    flops_by_formula,
    form_of,
    size,
)
from bigjax.models.units import Units, of_blocks

# Table 1 of the paper; Ti and S from Touvron et al. 2021 (DeiT).
PRESETS = {
    "ti": dict(layers=12, width=192, heads=3),
    "s": dict(layers=12, width=384, heads=6),
    "b": dict(layers=12, width=768, heads=12),
    "l": dict(layers=24, width=1024, heads=16),
}
POOLS = ("cls", "mean", "map")
POSITIONS = ("learned", "sincos")


class ViT(nn.Module):
    """Patches -> linear map + positions -> blocks -> norm -> pool -> linear head.

    outputs: of the head; None: no head, what is pooled comes out, (B, D).
    image, patch: side of an image, and of a patch, in pixels; the one is a multiple of the other.
    layers, width, heads: number of blocks, their width D, and the heads that share it evenly.
    mlp_width: default 4 D. head_width: H, where the heads do not share the width evenly.
    pool: "cls" is a token of its own before the patches, "mean" the mean over the patches, "map"
        attention with one learned query (Zhai et al. 2022, section 3.4).
    positions: "learned", one vector a token; "sincos", fixed sines and cosines of row and column
        (Beyer et al. 2022, "Better plain ViT baselines").
    distillation: a second token beside cls (Touvron et al. 2021, section 4). second_head: whether it
        has a head of its own, and the logits are the mean of the two heads'.
    pre_norm: a norm before the blocks, and patches mapped without a bias (CLIP, Radford et al. 2021).
    activation, biases: of the blocks (see `bigjax.models.transformer.Form`).
    dropout: after the positions and on each residual branch.
    remat, scan_layers: levers on memory and compile time (see `bigjax.models.blocks`).
    """

    outputs: int | None
    image: int
    patch: int
    layers: int
    width: int
    heads: int
    mlp_width: int | None = None
    pool: str = "cls"
    positions: str = "learned"
    distillation: bool = False
    second_head: bool = True
    pre_norm: bool = False
    dropout: float = 0.0
    norm_epsilon: float = 1e-6
    activation: str = "gelu"
    biases: Sequence[str] = ("qkv", "out", "mlp")
    remat: str = "none"
    scan_layers: bool = False
    head_width: int | None = None

    # Megatron's split (Shoeybi et al. 2019, section 3): heads and the MLP's hidden units over `tensor`.
    TENSOR_RULES = ((".*", "logical"),)
    LOGICAL_RULES = (("heads", "tensor"), ("mlp", "tensor"))
    MESH_AXES = ("sequence",)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x (B, image, image, channels); returns logits (B, outputs), or (B, D) without a head."""
        check_images(x, "a ViT")
        if x.shape[1:3] != (self.image, self.image):
            H, W = x.shape[1:3]
            raise UserError(f"model.image: {self.image} pixels; the images of the data are {H}x{W}")
        choose("model.pool", self.pool, POOLS)
        choose("model.positions", self.positions, POSITIONS)
        if self.distillation and self.pool != "cls":
            raise UserError(f"model.distillation goes with model.pool 'cls', not '{self.pool}'")
        to_width = dense("patches", self.width, "patch", "embed", bias=not self.pre_norm)
        x_BTD = self._with_positions(to_width(patches(x, self.patch)))
        if self.pre_norm:
            x_BTD = layer_norm("pre_norm", self.norm_epsilon)(x_BTD)
        x_BTD = nn.Dropout(self.dropout, deterministic=not train)(x_BTD)
        form = self._form()
        T, more = x_BTD.shape[1], -x_BTD.shape[1] % layout.parts("length")
        x_BTD, where = self._filled(x_BTD, more, train)
        x_BTD = blocks(self, form, x_BTD, where, train=train)[:, :T]
        x_BTD = layer_norm("norm", self.norm_epsilon)(x_BTD)
        if self.pool == "cls":
            x_BD = x_BTD[:, 0]
        elif self.pool == "mean":
            x_BD = jnp.mean(x_BTD, axis=1, dtype=jnp.float32)
        else:
            x_BD = AttentionPool(form, name="pool")(x_BTD)
        if self.outputs is None:
            return x_BD
        logits = dense("head", self.outputs, "embed", "classes")(x_BD)
        if self.distillation and self.second_head:
            second = dense("distillation_head", self.outputs, "embed", "classes")(x_BTD[:, 1])
            logits = (logits + second) / 2
        return logits

    def _form(self) -> Form:
        return form_of(self, self.head_width, causal=False, biases=self.biases)

    def prunable(self) -> dict[str, list[Units]]:
        """Heads and hidden units of each block, and of the pool where it attends."""
        pool = ["pool"] if self.pool == "map" else []
        return of_blocks(self._form(), [*(f"block_{i}" for i in range(self.layers)), *pool])

    def _with_positions(self, x_BRCD: jax.Array) -> jax.Array:
        """Rows and columns of patches -> tokens (B, T, D): special tokens first, positions added."""
        B, R, C, D = x_BRCD.shape
        x_BTD = x_BRCD.reshape(B, R * C, D)
        if self.positions == "sincos":
            x_BTD = x_BTD + jnp.asarray(sines_and_cosines(R, C, D), x_BTD.dtype)
        special = ("cls", "distillation")[: (self.pool == "cls") + self.distillation]
        tokens = [self.param(name, named(normal(), "embed"), (D,)) for name in special]
        tokens = [jnp.broadcast_to(token.astype(x_BTD.dtype), (B, 1, D)) for token in tokens]
        x_BTD = jnp.concatenate([*tokens, x_BTD], axis=1)
        if self.positions == "learned":
            positions_TD = table(self, "positions", x_BTD.shape[1], "position")
            x_BTD = x_BTD + positions_TD.astype(x_BTD.dtype)
        return x_BTD

    def _filled(self, x_BTD: jax.Array, more: int, train: bool) -> tuple[jax.Array, Where]:
        """The tokens with so many of padding behind them, that devices share their length evenly."""
        if not more:
            return x_BTD, Where()
        B, T, _ = x_BTD.shape
        if train and self.dropout:
            raise UserError(
                f"config.mesh.sequence: {T} tokens are filled up to {T + more}, and dropout would draw other "
                "numbers; take model.dropout=0, or model.pool 'mean', which has no token of its own"
            )
        real_BT = jnp.broadcast_to((jnp.arange(T + more) < T).astype(jnp.int32), (B, T + more))
        return jnp.pad(x_BTD, ((0, 0), (0, more), (0, 0))), Where(segments=real_BT, keys=real_BT)

    def flops(self, params: Any, x: Any) -> dict[str, float]:
        """FLOPs of forward and backward by formula (see `flops_by_formula`), of images of this shape."""
        B = x.shape[0]
        special = {"cls": 1 + self.distillation}.get(self.pool, 0)
        T = (self.image // self.patch) ** 2 + special
        heads = ("head", "distillation_head")
        of_heads = {name: params[name] for name in heads if name in params}
        multiplied = [(size(params, "positions", *heads), B * T), (size(of_heads), B)]
        form = self._form()
        attended = self.layers * form.heads * form.head_width * B * T * T
        return flops_by_formula(multiplied, attended)


class AttentionPool(nn.Module):
    """The tokens as one vector: attention from a learned query, then x + mlp(norm(x))."""

    form: Form

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        B, _, D = x_BTD.shape
        probe_D = self.param("probe", named(normal(), "embed"), (D,))
        probe_B1D = jnp.broadcast_to(probe_D.astype(x_BTD.dtype), (B, 1, D))
        pool = Attention(self.form, name="attention")
        x_BD = pool(probe_B1D, Where(), memory_BSD=x_BTD)[:, 0]
        normed_BD = layer_norm("mlp_norm", self.form.norm_epsilon)(x_BD)
        return x_BD + MLP(self.form, name="mlp")(normed_BD)


def patches(x: jax.Array, side: int) -> jax.Array:
    """Images (B, H, W, C) -> patches (B, H / side, W / side, side * side * C), each row by row.

    Raises:
      UserError: the image's sides are no multiples of `side`.
    """
    B, H, W, C = x.shape
    if H % side or W % side:
        raise UserError(f"model.patch: images of {H}x{W} do not divide into patches of {side}")
    x = x.reshape(B, H // side, side, W // side, side, C).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, H // side, W // side, side * side * C)


def sines_and_cosines(rows: int, columns: int, width: int) -> np.ndarray:
    """Positions (rows * columns, width): sin and cos of the column, then of the row.

    At frequencies 10000^(-i / (n - 1)), i < n = width / 4 (Beyer et al. 2022, after Vaswani et al.
    2017, section 3.5). Raises UserError where the width is no multiple of 4.
    """
    if width % 4 or width < 8:
        raise UserError(
            f"model.positions 'sincos' needs a width that is a multiple of 4, not {width}"
        )
    row, column = (index.reshape(-1, 1) for index in np.mgrid[:rows, :columns])
    frequency = 10000.0 ** -np.linspace(0, 1, width // 4)
    parts = [f(at * frequency) for at in (column, row) for f in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1).astype(np.float32)
