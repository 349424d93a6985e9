"""MobileNetV2 (Sandler et al. 2018): inverted residual blocks with linear bottlenecks.

Parameters: stem, stem_norm, block_0 (expand, expand_norm, depthwise, depthwise_norm, project,
project_norm), ..., last, last_norm, head.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.models.common import choose
from bigjax.models.convolution import InvertedResidual, batch_norm, check_images, conv, divisible

# Times wider inside, channels, blocks, stride of the first block (table 2).
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)

PADDINGS = {"torch": "torch", "same": "SAME"}


class MobileNetV2(nn.Module):
    """3x3 convolution, inverted residual blocks, 1x1 convolution, mean, linear head.

    width: multiplier of every number of channels (section 5), rounded to multiples of 8.
    dropout: before the head.
    padding: "torch", or TensorFlow's "same" (see `bigjax.models.convolution.conv`). norm_epsilon: of the
        BatchNorms; 1e-3 where TensorFlow trained them.
    frozen_statistics: BatchNorm uses, and keeps, its running statistics in training too.
    """

    outputs: int
    width: float = 1.0
    dropout: float = 0.2
    padding: str = "torch"
    norm_epsilon: float = 1e-5
    frozen_statistics: bool = False

    # The wide inside of a block is split: out of `expand`, through `depthwise`, into `project`.
    TENSOR_RULES = (
        (r".*/(expand|depthwise)/kernel", (None, None, None, "tensor")),
        (r".*/(expand|depthwise)_norm/(scale|bias)", ("tensor",)),
        (r".*/project/kernel", (None, None, "tensor")),
        (r"last/kernel", (None, None, None, "tensor")),
        (r"last_norm/(scale|bias)", ("tensor",)),
        (r"head/kernel", ("tensor",)),
    )

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x (B, H, W, C); returns logits (B, outputs)."""
        check_images(x, "a MobileNetV2")
        train_norm = train and not self.frozen_statistics
        padding = PADDINGS[choose("model.padding", self.padding, tuple(PADDINGS))]
        options = dict(epsilon=self.norm_epsilon)
        x = conv(divisible(32 * self.width), 3, stride=2, padding=padding, name="stem")(x)
        x = nn.relu6(batch_norm("stem_norm", train=train_norm, **options)(x))
        number = 0
        for expand, channels, blocks, stride in STAGES:
            for i in range(blocks):
                x = InvertedResidual(
                    divisible(channels * self.width),
                    expand=expand,
                    kernel=3,
                    stride=1 if i else stride,
                    padding=padding,
                    train=train_norm,
                    norm=options,
                    name=f"block_{number}",
                )(x)
                number += 1
        x = conv(divisible(1280 * max(1.0, self.width)), 1, name="last")(x)
        x = nn.relu6(batch_norm("last_norm", train=train_norm, **options)(x))
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.outputs, name="head")(x)
