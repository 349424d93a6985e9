"""EfficientNet (Tan & Le 2019): inverted residual blocks with squeeze-and-excitation, swish.

Parameters: stem, stem_norm, block_0 (expand, expand_norm, depthwise, depthwise_norm, squeeze, excite,
project, project_norm), ..., last, last_norm, head.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.models.convolution import InvertedResidual, batch_norm, check_images, conv, divisible
from bigjax.models.efficientnet_lite import STAGES
from bigjax.models.mobilenet import MobileNetV2

# Width, depth, image and dropout of the published ones.
PRESETS = {
    "b0": dict(width=1.0, depth=1.0, image=224, dropout=0.2),
    "b1": dict(width=1.0, depth=1.1, image=240, dropout=0.2),
    "b2": dict(width=1.1, depth=1.2, image=260, dropout=0.3),
    "b3": dict(width=1.2, depth=1.4, image=300, dropout=0.3),
    "b4": dict(width=1.4, depth=1.8, image=380, dropout=0.4),
}


def blocks_of(width: float, depth: float, squeeze: float) -> list[dict[str, int]]:
    """expand, channels, kernel, stride and the squeezed channels of every block."""
    found, inputs = [], divisible(32 * width)
    for expand, channels, count, stride, kernel in STAGES:
        for i in range(math.ceil(count * depth)):
            found.append(
                dict(
                    expand=expand,
                    channels=divisible(channels * width),
                    kernel=kernel,
                    stride=1 if i else stride,
                    squeeze=max(1, int(inputs * squeeze)),
                )
            )
            inputs = divisible(channels * width)
    return found


class EfficientNet(nn.Module):
    """3x3 convolution, inverted residual blocks, 1x1 convolution, mean, linear head.

    Padding is TensorFlow's "SAME", as the published weights want it.

    width, depth: multipliers of all channels and of all blocks.
    squeeze: channels of squeeze-and-excitation, as a part of a block's inputs (Hu et al. 2018).
    image: side of the pictures that it is for; it computes nothing, but an export must say it.
    dropout: before the head. (The published ones also dropped whole blocks in training.)
    norm_epsilon: of the BatchNorms.
    frozen_statistics: BatchNorm uses, and keeps, its running statistics in training too.
    """

    outputs: int
    width: float = 1.0
    depth: float = 1.0
    squeeze: float = 0.25
    image: int = 224
    dropout: float = 0.2
    norm_epsilon: float = 1e-3
    frozen_statistics: bool = False

    TENSOR_RULES = (
        *MobileNetV2.TENSOR_RULES,
        (r".*/squeeze/kernel", (None, None, "tensor")),
        (r".*/excite/kernel", (None, None, None, "tensor")),
        (r".*/excite/bias", ("tensor",)),
    )

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x (B, H, W, C); returns logits (B, outputs)."""
        check_images(x, "an EfficientNet")
        options = dict(momentum=0.99, epsilon=self.norm_epsilon)
        train_norm = train and not self.frozen_statistics
        x = conv(divisible(32 * self.width), 3, stride=2, padding="SAME", name="stem")(x)
        x = nn.silu(batch_norm("stem_norm", train=train_norm, **options)(x))
        for number, block in enumerate(blocks_of(self.width, self.depth, self.squeeze)):
            x = InvertedResidual(
                **block,
                padding="SAME",
                activation="silu",
                train=train_norm,
                norm=options,
                name=f"block_{number}",
            )(x)
        x = conv(divisible(1280 * self.width), 1, name="last")(x)
        x = nn.silu(batch_norm("last_norm", train=train_norm, **options)(x))
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.outputs, name="head")(x)
