"""What the maps of the image families share: the lines of a convolution, a norm, a dense layer.

Published convolutions are (out, in, height, width) as in PyTorch; ours (height, width, in, out).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bigjax.pretrained.entry import Entry

CONV = "o i h w -> h w i o"


def conv(name: str, path: str, bias: bool = False) -> list[Entry]:
    """A convolution, dense or depthwise."""
    found = [Entry(f"{name}.weight", (f"params/{path}/kernel",), CONV)]
    return [*found, Entry(f"{name}.bias", (f"params/{path}/bias",))] if bias else found


def batch_norm(name: str, path: str) -> list[Entry]:
    """BatchNorm with its running statistics."""
    return [
        *norm(name, path),
        Entry(f"{name}.running_mean", (f"batch_stats/{path}/mean",)),
        Entry(f"{name}.running_var", (f"batch_stats/{path}/var",)),
    ]


def norm(name: str, path: str) -> list[Entry]:
    """The scale and bias of a norm."""
    return [
        Entry(f"{name}.weight", (f"params/{path}/scale",)),
        Entry(f"{name}.bias", (f"params/{path}/bias",)),
    ]


def dense(name: str, path: str, pattern: str = "o i -> i o", **sizes: int) -> list[Entry]:
    """A dense layer; `pattern` from its published axes to ours."""
    return [
        Entry(f"{name}.weight", (f"params/{path}/kernel",), pattern, sizes),
        Entry(f"{name}.bias", (f"params/{path}/bias",)),
    ]


def outputs_of(published: Mapping[str, Any]) -> int:
    """How many classes a config.json tells: by the names of its labels, or by their number."""
    return len(published.get("id2label") or ()) or published.get("num_labels", 1000)


def labels_of(outputs: int) -> dict[str, Any]:
    """The labels of a config.json; transformers counts them to know the size of the head."""
    return dict(
        id2label={str(i): f"LABEL_{i}" for i in range(outputs)},
        label2id={f"LABEL_{i}": i for i in range(outputs)},
    )
