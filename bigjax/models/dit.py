"""Diffusion Transformer (Peebles & Xie 2023): images in patches, blocks that time and class modulate.

Shapes are in the names: B batch, T tokens, D width.

Parameters: patches, positions, time_up, time_down, classes, block_0, block_1, ... (with scan_layers:
blocks), modulation, head.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError
from bigjax.core.layout import constrain
from bigjax.models.blocks import branch, dense, head_width, joined, named, normal, stack, table
from bigjax.models.convolution import check_images
from bigjax.models.ring import check_length
from bigjax.models.transformer import MLP, Attention, Form, Where
from bigjax.models.vit import patches

FREQUENCIES = 64  # sines and as many cosines that stand for a time


class DiT(nn.Module):
    """Patches -> linear map + positions -> blocks -> modulated norm -> linear map -> patches.

    image, patch: side of an image, and of a patch, in pixels; the one is a multiple of the other.
    classes: labels 0 .. classes - 1; the label -1 is none.
    layers, width, heads: number of blocks, their width D, and the heads that share it evenly.
    mlp_width: default 4 D.
    remat, scan_layers: levers on memory and compile time (see `bigjax.models.blocks`).
    """

    image: int
    patch: int
    classes: int
    layers: int
    width: int
    heads: int
    mlp_width: int | None = None
    remat: str = "none"
    scan_layers: bool = False

    # Megatron's split (Shoeybi et al. 2019, section 3): heads and the MLP's hidden units over `tensor`.
    TENSOR_RULES = ((".*", "logical"),)
    LOGICAL_RULES = (("heads", "tensor"), ("mlp", "tensor"))
    MESH_AXES = ("sequence",)

    @nn.compact
    def __call__(
        self, x: jax.Array, time: jax.Array, label: jax.Array, *, train: bool
    ) -> jax.Array:
        """x (B, image, image, channels); time (B,) in [0, 1]; label int (B,). Returns x's shape."""
        check_images(x, "a DiT")
        B, H, W, C = x.shape
        if (self.image, self.image) != (H, W):
            raise UserError(f"model.image: {self.image} pixels; the images of the data are {H}x{W}")
        x_BRCD = dense("patches", self.width, "patch", "embed")(patches(x, self.patch))
        x_BTD = x_BRCD.reshape(B, -1, self.width)
        check_length(x_BTD.shape[1], causal=False)
        positions_TD = table(self, "positions", x_BTD.shape[1], "position")
        x_BTD = x_BTD + positions_TD.astype(x_BTD.dtype)
        c_BD = self._condition(time, label)
        form = Form(
            heads=self.heads,
            head_width=head_width(self.width, self.heads),
            mlp_width=self.mlp_width or 4 * self.width,
            causal=False,
            activation="gelu",
        )
        x_BTD = stack(
            self,
            Block,
            dict(form=form, train=train),
            x_BTD,
            c_BD,
        )
        shift, scale = modulation("modulation", 2)(c_BD)
        x_BTD = modulated(bare_norm(x_BTD), shift, scale)
        x_BTP = zero_dense("head", self.patch**2 * C, "embed", "patch")(x_BTD)
        side = self.image // self.patch
        x = x_BTP.reshape(B, side, side, self.patch, self.patch, C).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(B, H, W, C)

    def _condition(self, time: jax.Array, label: jax.Array) -> jax.Array:
        """(B, D): the time through an MLP, plus the class's vector, that of no class first."""
        t_BD = dense("time_up", self.width, "frequency", "embed")(frequencies(time))
        t_BD = dense("time_down", self.width, "embed", "embed")(nn.silu(t_BD))
        init = named(normal(), "classes", "embed")
        classes = nn.Embed(self.classes + 1, self.width, embedding_init=init, name="classes")
        return nn.silu(t_BD + classes(label + 1))


class Block(nn.Module):
    """x + g attention(norm(x)), then x + g mlp(norm(x)); the condition shifts and scales both norms.

    "adaLN-Zero" of the paper's section 3.2: the gates g are 0 at first, so a block starts as identity.
    """

    form: Form
    train: bool

    @nn.compact
    def __call__(self, x_BTD: jax.Array, c_BD: jax.Array) -> jax.Array:
        x_BTD = constrain(x_BTD, "batch", "length", None)
        parts = modulation("modulation", 6)(c_BD)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        y_BTD = modulated(bare_norm(x_BTD), shift, scale)
        mixed_BTD = branch(Attention(self.form, name="attention")(y_BTD, Where()))
        x_BTD = joined(x_BTD, gate * mixed_BTD, self.train)
        y_BTD = modulated(bare_norm(x_BTD), mlp_shift, mlp_scale)
        widened_BTD = branch(MLP(self.form, name="mlp")(y_BTD))
        return joined(x_BTD, mlp_gate * widened_BTD, self.train)


def modulation(name: str, count: int):
    """`f(c (B, D)) -> count arrays (B, 1, D)`, all 0 at first. Call inside a compact method."""

    def parts(c_BD: jax.Array) -> list[jax.Array]:
        D = c_BD.shape[-1]
        found = zero_dense(name, count * D, "embed", "modulation")(c_BD)
        return jnp.split(found[:, None], count, axis=-1)

    return parts


def modulated(x_BTD: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    return x_BTD * (1 + scale) + shift


def bare_norm(x_BTD: jax.Array) -> jax.Array:
    """LayerNorm without parameters, in float32."""
    x = x_BTD.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)).astype(x_BTD.dtype)


def zero_dense(name: str, width: int, *names: str) -> nn.Module:
    """A linear map that gives 0 at first."""
    zeros = nn.initializers.zeros
    return nn.Dense(
        width, kernel_init=named(zeros, *names), bias_init=named(zeros, names[-1]), name=name
    )


def frequencies(time: jax.Array) -> jax.Array:
    """(B, 2 FREQUENCIES): cosines and sines of 1000 t (Vaswani et al. 2017, section 3.5)."""
    falling = jnp.exp(-jnp.log(10000.0) * jnp.arange(FREQUENCIES) / FREQUENCIES)
    angles = 1000.0 * time[:, None] * falling
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
