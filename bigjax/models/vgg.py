"""VGG (Simonyan & Zisserman 2015): stacks of 3x3 convolutions, with or without BatchNorm.

Parameters: conv_0, (norm_0,) conv_1, ..., dense_0, dense_1, head.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigjax.models.cnn import CNN
from bigjax.models.convolution import batch_norm, check_images, conv, max_pool

# Convolutions in each of the five stages (table 1, columns A, B, D and E).
PRESETS = {
    "11": dict(layers=(1, 1, 2, 2, 2)),
    "13": dict(layers=(2, 2, 2, 2, 2)),
    "16": dict(layers=(2, 2, 3, 3, 3)),
    "19": dict(layers=(2, 2, 4, 4, 4)),
}


class VGG(nn.Module):
    """Stages of 3x3 convolutions, each ended by a 2x2 max pool; average pool; dense layers; head.

    layers: convolutions in each stage.
    width: channels of the first stage; each later one has twice as many, up to 8 times.
    pooled: side that the features are averaged down (or spread out) to before the dense layers.
    dense: widths of the hidden dense layers.
    dropout: after each hidden dense layer.
    frozen_statistics: BatchNorm uses, and keeps, its running statistics in training too.
    """

    outputs: int
    layers: Sequence[int]
    width: int = 64
    pooled: int = 7
    dense: Sequence[int] = (4096, 4096)
    dropout: float = 0.5
    batch_norm: bool = False
    frozen_statistics: bool = False

    TENSOR_RULES = CNN.TENSOR_RULES  # the layers have the same names, and lie in the same pairs

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x (B, H, W, C), H and W at least 2 ** stages; returns logits (B, outputs)."""
        check_images(x, "a VGG")
        train_norm = train and not self.frozen_statistics
        number = 0
        for stage, convolutions in enumerate(self.layers):
            for _ in range(convolutions):
                channels = self.width * min(2**stage, 8)
                x = conv(channels, 3, bias=True, name=f"conv_{number}")(x)
                if self.batch_norm:
                    x = batch_norm(f"norm_{number}", train=train_norm)(x)
                x = nn.relu(x)
                number += 1
            x = max_pool(x, 2, stride=2)
        x = average_to(x, self.pooled)
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.dense):
            x = nn.relu(
                nn.Dense(width, kernel_init=nn.initializers.normal(0.01), name=f"dense_{i}")(x)
            )
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.outputs, kernel_init=nn.initializers.normal(0.01), name="head")(x)


def average_to(x: jax.Array, side: int) -> jax.Array:
    """Means over a grid of side x side windows, as even as can be (PyTorch's AdaptiveAvgPool2d).

    Window i of n along an axis of length L runs from floor(i L / n) to ceil((i + 1) L / n).
    """

    def windows(length: int) -> np.ndarray:
        weights = np.zeros((side, length), np.float32)
        for i in range(side):
            inside = slice(i * length // side, -(-(i + 1) * length // side))
            weights[i, inside] = 1 / (inside.stop - inside.start)
        return weights

    if x.shape[1:3] == (side, side):
        return x
    rows, columns = (windows(length) for length in x.shape[1:3])
    return jnp.einsum("oh,pw,bhwc->bopc", rows, columns, x).astype(x.dtype)
