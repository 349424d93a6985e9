"""Residual networks (He et al. 2016): ResNet-18, 34 and 50, for ImageNet or for small pictures.

Parameters: stem, stem_norm, stage_0_block_0 (conv_1, norm_1, conv_2, norm_2, and where the shape
changes shortcut, shortcut_norm; a bottleneck has conv_0, norm_0 before them), ..., head.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError
from bigjax.models.common import choose
from bigjax.models.convolution import batch_norm, check_images, conv, max_pool
from bigjax.models.units import UNITS, Units, layer

PRESETS = {
    "18": dict(layers=(2, 2, 2, 2), block="basic"),
    "34": dict(layers=(3, 4, 6, 3), block="basic"),
    "50": dict(layers=(3, 4, 6, 3), block="bottleneck"),
}
EXPANSION = {"basic": 1, "bottleneck": 4}  # channels out of a block over its width
STEMS = ("imagenet", "small")


class ResNet(nn.Module):
    """Stem, stages of residual blocks that halve the image and double the width, mean, linear head.

    layers: blocks in each stage.
    block: "basic" (3x3, 3x3) or "bottleneck" (1x1, 3x3, 1x1); where a bottleneck halves the image
        its 3x3 convolution does it, as in torchvision ("v1.5").
    width: of the first stage.
    stem: "imagenet" is a 7x7 convolution and a max pool, a quarter of the image's side; "small" is
        a 3x3 convolution that keeps it (section 4.2 of the paper, for CIFAR).
    frozen_statistics: BatchNorm uses, and keeps, its running statistics in training too.
    inner_widths: of each stage, between the convolutions of its blocks; default: the stage's width.
    """

    outputs: int
    layers: Sequence[int]
    block: str = "basic"
    width: int = 64
    stem: str = "imagenet"
    frozen_statistics: bool = False
    inner_widths: Sequence[int] | None = None

    # Convolutions in pairs, output channels split then input channels, as in `cnn`.
    TENSOR_RULES = (
        (r"stage_.*/conv_1/kernel", (None, None, None, "tensor")),
        (r"stage_.*/norm_1/(scale|bias)", ("tensor",)),
        (r"stage_.*/conv_2/kernel", (None, None, "tensor")),
        (r"head/kernel", ("tensor",)),
    )

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x (B, H, W, C); returns logits (B, outputs)."""
        check_images(x, "a ResNet")
        choose("model.block", self.block, tuple(EXPANSION))
        train_norm = train and not self.frozen_statistics
        if choose("model.stem", self.stem, STEMS) == "imagenet":
            x = conv(self.width, 7, stride=2, name="stem")(x)
        else:
            x = conv(self.width, 3, name="stem")(x)
        x = nn.relu(batch_norm("stem_norm", train=train_norm)(x))
        if self.stem == "imagenet":
            x = max_pool(x, 3, stride=2, pad=1)
        for stage, blocks in enumerate(self.layers):
            for i in range(blocks):
                x = Block(
                    width=self.width * 2**stage,
                    inner=self._inner(stage),
                    stride=2 if stage and not i else 1,
                    bottleneck=self.block == "bottleneck",
                    train=train_norm,
                    name=f"stage_{stage}_block_{i}",
                )(x)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.outputs, name="head")(x)

    def _inner(self, stage: int) -> int:
        """Channels between the convolutions of a stage's blocks."""
        if self.inner_widths is None:
            return self.width * 2**stage
        if len(self.inner_widths) != len(self.layers):
            raise UserError(
                f"model.inner_widths: {len(self.inner_widths)} widths for {len(self.layers)} stages"
            )
        return self.inner_widths[stage]

    def prunable(self) -> dict[str, list[Units]]:
        """Channels within each block. Those between blocks all add up in one stream, and stay."""
        first = 0 if self.block == "bottleneck" else 1
        found = []
        for stage, blocks in enumerate(self.layers):
            for path in (f"stage_{stage}_block_{i}" for i in range(blocks)):
                found += [
                    layer(
                        f"{path}/conv_{n}",
                        f"{path}/norm_{n}",
                        self._inner(stage),
                        ("inner_widths", stage),
                        f"{path}/conv_{n + 1}",
                    )
                    for n in range(first, 2)
                ]
        return {UNITS: found}


class Block(nn.Module):
    """relu(x + f(x)): He et al. 2016, figure 5. The last norm of f starts at 0, so that a new block
    is the identity (Goyal et al. 2017, section 5.1)."""

    width: int
    inner: int
    stride: int
    bottleneck: bool
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs, train = x, self.train
        channels = self.width * EXPANSION["bottleneck" if self.bottleneck else "basic"]
        if self.bottleneck:
            x = nn.relu(batch_norm("norm_0", train=train)(conv(self.inner, 1, name="conv_0")(x)))
        x = conv(self.inner, 3, stride=self.stride, name="conv_1")(x)
        x = nn.relu(batch_norm("norm_1", train=train)(x))
        x = conv(channels, 1 if self.bottleneck else 3, name="conv_2")(x)
        x = batch_norm("norm_2", train=train, scale_init=nn.initializers.zeros)(x)
        if inputs.shape != x.shape:
            inputs = conv(channels, 1, stride=self.stride, name="shortcut")(inputs)
            inputs = batch_norm("shortcut_norm", train=train)(inputs)
        return nn.relu(x + inputs)
