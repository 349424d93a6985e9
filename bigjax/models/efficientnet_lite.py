"""EfficientNet-Lite (Tan & Le 2019; the Lite form by Google, 2020): no squeeze-and-excitation, ReLU6.

Parameters: stem, stem_norm, block_0 (expand, expand_norm, depthwise, depthwise_norm, project,
project_norm), ..., last, last_norm, head.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.models.convolution import InvertedResidual, batch_norm, check_images, conv, divisible
from bigjax.models.mobilenet import MobileNetV2

# Times wider inside, channels, blocks, stride of the first block, kernel (Tan & Le 2019, table 1).
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
# Width, depth and dropout; they were trained on images of 224, 240, 260, 280 and 300 pixels.
PRESETS = {
    "lite0": dict(width=1.0, depth=1.0, dropout=0.2),
    "lite1": dict(width=1.0, depth=1.1, dropout=0.2),
    "lite2": dict(width=1.1, depth=1.2, dropout=0.3),
    "lite3": dict(width=1.2, depth=1.4, dropout=0.3),
    "lite4": dict(width=1.4, depth=1.8, dropout=0.3),
}
# TensorFlow's BatchNorm, in which the published weights were trained.
NORM = dict(momentum=0.99, epsilon=1e-3)


def blocks_of(width: float, depth: float) -> list[dict[str, int]]:
    """expand, channels, kernel and stride of every block; the first and last stage keep their depth."""
    found = []
    for stage, (expand, channels, count, stride, kernel) in enumerate(STAGES):
        scaled = count if stage in (0, len(STAGES) - 1) else math.ceil(count * depth)
        for i in range(scaled):
            found.append(
                dict(
                    expand=expand,
                    channels=divisible(channels * width),
                    kernel=kernel,
                    stride=1 if i else stride,
                )
            )
    return found


class EfficientNetLite(nn.Module):
    """3x3 convolution, inverted residual blocks, 1x1 convolution, mean, linear head.

    Padding is TensorFlow's "SAME", as the published weights want it. Images: (x - 127) / 128.

    width, depth: multipliers of channels and of blocks, except of the stem and of the last layers.
    dropout: before the head.
    frozen_statistics: BatchNorm uses, and keeps, its running statistics in training too.
    """

    outputs: int
    width: float = 1.0
    depth: float = 1.0
    dropout: float = 0.2
    frozen_statistics: bool = False

    TENSOR_RULES = MobileNetV2.TENSOR_RULES

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x (B, H, W, C); returns logits (B, outputs)."""
        check_images(x, "an EfficientNet-Lite")
        train_norm = train and not self.frozen_statistics
        x = conv(32, 3, stride=2, padding="SAME", name="stem")(x)
        x = nn.relu6(batch_norm("stem_norm", train=train_norm, **NORM)(x))
        for number, block in enumerate(blocks_of(self.width, self.depth)):
            x = InvertedResidual(
                **block, padding="SAME", train=train_norm, norm=NORM, name=f"block_{number}"
            )(x)
        x = conv(1280, 1, name="last")(x)
        x = nn.relu6(batch_norm("last_norm", train=train_norm, **NORM)(x))
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.outputs, name="head")(x)
