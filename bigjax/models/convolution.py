"""What the convolutional families share: convolution, BatchNorm, the inverted residual block.

Images are (B, H, W, C). Parameters: what a convolution or a norm calls its own (kernel, bias, scale).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from bigjax.core.errors import UserError
from bigjax.core.layout import batch_axes
from bigjax.models import on_cpu, rows, winograd

# He et al. 2015 in its fan-out form: the variance of the gradient is kept through the layers.
HE_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def conv(
    channels: int,
    kernel: int,
    *,
    name: str,
    stride: int = 1,
    groups: int = 1,
    padding: str = "torch",
    bias: bool = False,
) -> nn.Conv:
    """A convolution; call inside a compact method.

    padding: "torch" pads (kernel - 1) / 2 on each side; "SAME" is TensorFlow's, which with a stride
        pads less before the image than after it.
    """
    side = (kernel - 1) // 2
    return nn.Conv(
        channels,
        (kernel, kernel),
        strides=stride,
        padding=[(side, side)] * 2 if padding == "torch" else padding,
        feature_group_count=groups,
        use_bias=bias,
        kernel_init=HE_FAN_OUT,
        conv_general_dilated=convolve,
        name=name,
    )


def batch_norm(
    name: str, *, train: bool, momentum: float = 0.9, epsilon: float = 1e-5, **options: Any
) -> nn.BatchNorm:
    """BatchNorm (Ioffe & Szegedy 2015) over the global batch; call inside a compact method.

    momentum: of the running statistics, running <- momentum running + (1 - momentum) batch; what
        PyTorch calls momentum is 1 - momentum, so that its default 0.1 is 0.9 here. The variance
        averaged is that of the batch itself; PyTorch averages n / (n - 1) times it.
    """
    kind = BatchNorm if train and rows.on_one_cpu() else nn.BatchNorm
    return kind(
        use_running_average=not train,
        momentum=momentum,
        epsilon=epsilon,
        axis_name=batch_axes(),
        name=name,
        **options,
    )


class BatchNorm(nn.BatchNorm):
    """Flax's in training, by `rows.batch_norm`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = x.shape[-1:]
        averages = [
            self.variable("batch_stats", name, make, shape, jnp.float32)
            for name, make in (("mean", jnp.zeros), ("var", jnp.ones))
        ]
        scale = self.param("scale", self.scale_init, shape)
        y, *found = rows.batch_norm(
            x, scale, self.param("bias", self.bias_init, shape), self.epsilon
        )
        if not self.is_initializing():
            for average, new in zip(averages, found, strict=True):
                average.value = self.momentum * average.value + (1 - self.momentum) * new
        return y


def convolve(x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, **options):
    """`lax.conv_general_dilated` of images (B, H, W, C), on a CPU as in `on_cpu` and `winograd`.

    Dense ones only where there is one device: a loop over rows would add up over devices in each turn.
    """

    def by_xla(x, kernel):
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)

    pads = padding
    if isinstance(padding, str):
        pads = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    strides, pads = tuple(strides), tuple(map(tuple, pads))
    groups = options["feature_group_count"]
    if groups == x.shape[-1] == kernel.shape[-1] > 1:
        form = on_cpu.depthwise
    elif groups == 1 and kernel.shape[:2] == (1, 1):
        form = on_cpu.pointwise
    elif groups == 1 and jax.device_count() == 1:
        served = winograd.serves(x, kernel, strides, pads)
        form = winograd.convolution if served else on_cpu.dense
    else:
        return by_xla(x, kernel)
    return lax.platform_dependent(
        x, kernel, cpu=lambda x, kernel: form(x, kernel, strides, pads), default=by_xla
    )


def max_pool(x: jax.Array, window: int, stride: int, pad: int = 0) -> jax.Array:
    """`nn.max_pool` of images (B, H, W, C) with square windows, on a CPU as in `on_cpu`."""
    return lax.platform_dependent(
        x,
        cpu=lambda x: on_cpu.max_pool(x, window, stride, pad),
        default=lambda x: on_cpu.pool_by_xla(x, window, stride, pad),
    )


class InvertedResidual(nn.Module):
    """1x1 widening -> depthwise -> 1x1 narrowing, each with BatchNorm (Sandler et al. 2018, fig. 4).

    An activation after the first two; the input is added where the shape has not changed.

    expand: how many times wider it is inside; 1 leaves the widening out.
    train: whether BatchNorm takes the statistics of the batch.
    norm: further options of `batch_norm`.
    activation: "relu6" or "silu".
    squeeze: channels of squeeze-and-excitation before the narrowing (Hu et al. 2018, eqs. 2 to 4); None: none.
    """

    channels: int
    expand: int
    kernel: int
    stride: int
    padding: str
    train: bool
    norm: dict[str, float]
    activation: str = "relu6"
    squeeze: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs, wide = x, self.expand * x.shape[-1]
        act = {"relu6": nn.relu6, "silu": nn.silu}[self.activation]
        options = dict(train=self.train, **self.norm)
        if self.expand != 1:
            x = conv(wide, 1, name="expand")(x)
            x = act(batch_norm("expand_norm", **options)(x))
        per_channel = conv(
            wide,
            self.kernel,
            stride=self.stride,
            groups=wide,
            padding=self.padding,
            name="depthwise",
        )
        x = act(batch_norm("depthwise_norm", **options)(per_channel(x)))
        if self.squeeze is not None:
            mean = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
            mean = act(conv(self.squeeze, 1, bias=True, name="squeeze")(mean))
            x = x * nn.sigmoid(conv(wide, 1, bias=True, name="excite")(mean))
        x = batch_norm("project_norm", **options)(conv(self.channels, 1, name="project")(x))
        unchanged = self.stride == 1 and x.shape == inputs.shape
        return x + inputs if unchanged else x


def divisible(channels: float) -> int:
    """The nearest multiple of 8, never less than 90 % of `channels` (Sandler et al. 2018's code)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def check_images(x: jax.Array, family: str) -> None:
    """Refuses what is no batch of images (B, H, W, C)."""
    if x.ndim != 4:
        raise UserError(f"{family} reads images (B, H, W, C), not an input of shape {x.shape}")
