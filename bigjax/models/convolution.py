"""What the convolutional families share: convolution, BatchNorm, the inverted residual block.

Images are (B, H, W, C). Parameters: what a convolution or a norm calls its own (kernel, bias, scale).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from bigjax.errors import UserError
from bigjax.models.common import batch_axes

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
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=momentum,
        epsilon=epsilon,
        axis_name=batch_axes(),
        name=name,
        **options,
    )


def convolve(x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any, **options):
    """`lax.conv_general_dilated` of images (B, H, W, C), in the form that the processor likes.

    XLA's own kernel is the fastest on GPU and TPU. On a CPU it is 10 to 60 times slower for a
    depthwise convolution than the sum of shifted products that it stands for, and a 1x1 convolution
    is quicker as the matrix product that it is, above all its gradient.
    """

    def by_xla(x, kernel):
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)

    per_channel = options["feature_group_count"] == x.shape[-1] == kernel.shape[-1] > 1
    if kernel.shape[:2] == (1, 1) and options["feature_group_count"] == 1:
        on_cpu = pointwise
    elif per_channel:
        on_cpu = depthwise
    else:
        return by_xla(x, kernel)
    pads = padding
    if isinstance(padding, str):
        pads = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return lax.platform_dependent(
        x, kernel, cpu=lambda x, kernel: on_cpu(x, kernel, strides, pads), default=by_xla
    )


def pointwise(x: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Any) -> jax.Array:
    """A 1x1 convolution of x (B, H, W, C) with a kernel (1, 1, C, D): the matrix product."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    return x[:, :: strides[0], :: strides[1]] @ kernel[0, 0]


def depthwise(x: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Any) -> jax.Array:
    """A depthwise convolution of x (B, H, W, C) with a kernel (K, L, 1, C), one shift at a time."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    return _shifted_products(x, kernel, tuple(strides))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _shifted_products(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> jax.Array:
    products = zip(_shifts(x, kernel.shape, strides), kernel.reshape(-1, x.shape[-1]), strict=True)
    return sum(shifted * weights for shifted, weights in products)


def _shifts(x: jax.Array, shape: Sequence[int], strides: Sequence[int]) -> list[jax.Array]:
    """What each weight of a kernel of this shape meets, row by row."""
    height, width = (size - side + 1 for size, side in zip(x.shape[1:3], shape[:2], strict=True))
    return [
        x[:, i : i + height : strides[0], j : j + width : strides[1]]
        for i in range(shape[0])
        for j in range(shape[1])
    ]


def _forward(x, kernel, strides):
    return _shifted_products(x, kernel, strides), (x, kernel)


def _backward(strides, saved, dy):
    """The gradients as shifted products too: JAX's own are as many pads and take twice the time."""
    x, kernel = saved
    dkernel = [
        jnp.sum(shifted * dy, axis=(0, 1, 2)) for shifted in _shifts(x, kernel.shape, strides)
    ]
    spread = [(0, 0, 0)]
    for axis, (side, stride) in enumerate(zip(kernel.shape[:2], strides, strict=True), start=1):
        rest = x.shape[axis] - (dy.shape[axis] - 1) * stride - side
        spread.append((side - 1, side - 1 + rest, stride - 1))
    spread_dy = lax.pad(dy, jnp.zeros((), dy.dtype), [*spread, (0, 0, 0)])
    dx = _shifted_products(spread_dy, kernel[::-1, ::-1], (1, 1))
    return dx, jnp.stack(dkernel).reshape(kernel.shape).astype(kernel.dtype)


_shifted_products.defvjp(_forward, _backward)


class InvertedResidual(nn.Module):
    """1x1 widening -> depthwise -> 1x1 narrowing, each with BatchNorm (Sandler et al. 2018, fig. 4).

    ReLU6 after the first two; the input is added where the shape has not changed.

    expand: how many times wider it is inside; 1 leaves the widening out.
    train: whether BatchNorm takes the statistics of the batch.
    norm: further options of `batch_norm`.
    """

    channels: int
    expand: int
    kernel: int
    stride: int
    padding: str
    train: bool
    norm: dict[str, float]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs, wide = x, self.expand * x.shape[-1]
        options = dict(train=self.train, **self.norm)
        if self.expand != 1:
            x = conv(wide, 1, name="expand")(x)
            x = nn.relu6(batch_norm("expand_norm", **options)(x))
        per_channel = conv(
            wide,
            self.kernel,
            stride=self.stride,
            groups=wide,
            padding=self.padding,
            name="depthwise",
        )
        x = nn.relu6(batch_norm("depthwise_norm", **options)(per_channel(x)))
        x = batch_norm("project_norm", **options)(conv(self.channels, 1, name="project")(x))
        unchanged = self.stride == 1 and x.shape == inputs.shape
        return x + inputs if unchanged else x


def divisible(channels: float, by: int = 8) -> int:
    """The nearest multiple of `by`, never less than 90 % of `channels` (Sandler et al. 2018's code)."""
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * channels else rounded


def check_images(x: jax.Array, family: str) -> None:
    """Refuses what is no batch of images (B, H, W, C)."""
    if x.ndim != 4:
        raise UserError(f"{family} reads images (B, H, W, C), not an input of shape {x.shape}")
