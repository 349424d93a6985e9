"""Convolutional network: a stack of conv / pool stages, optional dense layers, a linear head.

Parameters: conv_0, conv_1, ..., dense_0, ..., head (and norm_0, ... with BatchNorm).
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.core.errors import UserError
from bigjax.models.common import activation, kernel_init
from bigjax.models.convolution import batch_norm, convolve, max_pool
from bigjax.models.units import UNITS, Units, layer


class CNN(nn.Module):
    """Stage: conv (stride 1, same size) -> (BatchNorm) -> activation -> max pool.

    channels: output channels of each stage.
    kernel: side of the convolution's window; pool: side and stride of the pool's, 1 for no pooling.
    global_average_pool: features are the mean over positions instead of all positions.
    dense: widths of the hidden layers after the features.
    dropout: probability that an input of a dense layer or of the head is dropped in training.
    batch_norm: Ioffe & Szegedy 2015; the statistics are those of the global batch.
    """

    channels: Sequence[int]
    outputs: int
    kernel: int = 3
    pool: int = 2
    dense: Sequence[int] = ()
    activation: str = "relu"
    dropout: float = 0.0
    batch_norm: bool = False
    global_average_pool: bool = False

    # Layers in pairs, output channels split then input channels (Shoeybi et al. 2019, section 3).
    TENSOR_RULES = (
        (r"conv_\d*[02468]/kernel", (None, None, None, "tensor")),
        (r"conv_\d+/kernel", (None, None, "tensor")),
        (r"dense_\d*[02468]/kernel", (None, "tensor")),
        (r"(conv|norm|dense)_\d*[02468]/(bias|scale)", ("tensor",)),
        (r"(dense_\d+|head)/kernel", ("tensor",)),
    )

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x (B, H, W) or (B, H, W, C); returns logits (B, outputs)."""
        act, init = activation(self.activation), kernel_init(self.activation)
        if x.ndim not in (3, 4):
            raise UserError(f"a CNN reads images (B, H, W, C), not an input of shape {x.shape}")
        x = x.reshape(*x.shape[:3], -1)
        for i, channels in enumerate(self.channels):
            x = nn.Conv(
                channels,
                (self.kernel, self.kernel),
                use_bias=not self.batch_norm,
                kernel_init=init,
                conv_general_dilated=convolve,
                name=f"conv_{i}",
            )(x)
            if self.batch_norm:
                x = batch_norm(f"norm_{i}", train=train)(x)
            x = act(x)
            if min(x.shape[1:3]) < self.pool:
                raise UserError(
                    f"model.channels: stage {i} would pool {self.pool}x{self.pool} windows of an "
                    f"image of {x.shape[1]}x{x.shape[2]}; use fewer stages or a smaller model.pool"
                )
            x = max_pool(x, self.pool, stride=self.pool)
        if self.global_average_pool:
            x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.dense):
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = act(nn.Dense(width, kernel_init=init, name=f"dense_{i}")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.outputs, name="head")(x)

    def prunable(self) -> dict[str, list[Units]]:
        """Channels, then the hidden units of the dense layers."""
        stages, dense = len(self.channels), len(self.dense)
        names = [
            *(f"conv_{i}" for i in range(stages)),
            *(f"dense_{i}" for i in range(dense)),
            "head",
        ]
        channels = [
            layer(names[i], f"norm_{i}", width, ("channels", i), names[i + 1])
            for i, width in enumerate(self.channels)
        ]
        hidden = [
            layer(names[stages + i], None, width, ("dense", i), names[stages + i + 1])
            for i, width in enumerate(self.dense)
        ]
        return {UNITS: channels + hidden}
