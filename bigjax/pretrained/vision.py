"""What the maps of the convolutional families share: the lines of a convolution and of BatchNorm.

Published convolutions are (out, in, height, width) as in PyTorch; ours (height, width, in, out).
"""

from __future__ import annotations

from bigjax.pretrained.entry import Entry, linear, norm

CONV = "o i h w -> h w i o"


def conv(name: str, path: str, bias: bool = False) -> list[Entry]:
    """A convolution, dense or depthwise."""
    return linear(name, path, CONV, bias)


def batch_norm(name: str, path: str) -> list[Entry]:
    """BatchNorm with its running statistics."""
    return [
        *norm(name, path),
        Entry(f"{name}.running_mean", (f"batch_stats/{path}/mean",)),
        Entry(f"{name}.running_var", (f"batch_stats/{path}/var",)),
    ]
