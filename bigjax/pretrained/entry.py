"""One line of a name map: which published tensor is which of our leaves, and how its axes are laid out.

A family's map is a list of these. It is read forwards to load a published checkpoint and backwards
to export one, so the two cannot disagree. Below are the lines that most families have: a linear map, a
norm, attention's four projections. Pure; knows no file format and no device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import einops
import numpy as np


@dataclass(frozen=True)
class Entry:
    """A published tensor and the leaf or leaves it becomes.

    Attributes:
      name: the tensor's published name.
      paths: our leaves, collection first: "params/block_0/attention/query/kernel".
      pattern: an einops pattern from the published axes (of a path's part) to ours, such as
        "(n h) d -> d n h"; None where they are the same.
      sizes: the lengths of axes that the pattern splits off.
      shares: with several paths, how the axis `axis` of the tensor is shared out among them.
      optional: a known kind of checkpoint lacks it; our leaves then start from scratch.
    """

    name: str
    paths: tuple[str, ...]
    pattern: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    shares: tuple[int, ...] = (1,)
    axis: int = 0
    optional: bool = False

    def load(self, tensor: np.ndarray) -> tuple[np.ndarray, ...]:
        """The arrays of `paths` from the published tensor.

        Raises:
          ValueError: the tensor's shape does not fit the pattern.
        """
        parts = [tensor]
        if len(self.paths) > 1:
            share, rest = divmod(tensor.shape[self.axis], sum(self.shares))
            if rest:
                raise ValueError(f"does not fall into parts {self.shares}")
            parts = np.split(tensor, np.cumsum(self.shares)[:-1] * share, self.axis)
        if self.pattern is None:
            return tuple(parts)
        try:
            return tuple(einops.rearrange(part, self.pattern, **self.sizes) for part in parts)
        except einops.EinopsError as error:
            raise ValueError(_reason(error)) from None

    def save(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The published tensor from the arrays of `paths`."""
        if self.pattern is not None:
            published, ours = self.pattern.split("->")
            named = {size: n for size, n in self.sizes.items() if size in ours}
            back = f"{ours} -> {published}"
            arrays = [einops.rearrange(array, back, **named) for array in arrays]
        # (`np.ascontiguousarray` would give a scalar an axis.)
        return np.asarray(np.concatenate(arrays, self.axis) if arrays[1:] else arrays[0], order="C")


@dataclass(frozen=True)
class Constant(Entry):
    """A published tensor that our model computes: it is written, and holds nothing of ours."""

    values: np.ndarray | None = None

    def save(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        return self.values


# Our leaves that are stacked -> what stands in their place in the paths of a name map, one a number.
STACKS = {"blocks": "block", "experts": "expert"}


def unstacked(path: str, lengths: Sequence[int]) -> np.ndarray:
    """The paths that a name map has for a leaf: an array with an axis for each part that is stacked.

    lengths: of the leaf's leading axes.
    """
    parts = path.split("/")
    stacks = {place: STACKS[part] for place, part in enumerate(parts) if part in STACKS}
    found = np.empty(tuple(lengths[: len(stacks)]), object)
    for index in np.ndindex(found.shape):
        numbered = {p: f"{one}_{i}" for (p, one), i in zip(stacks.items(), index, strict=True)}
        found[index] = "/".join(numbered.get(p, part) for p, part in enumerate(parts))
    return found


def linear(
    name: str, path: str, pattern: str | None = "o i -> i o", bias: bool = True, **sizes: int
) -> list[Entry]:
    """A linear map; `pattern` from the published axes of its matrix to ours. Paths are of parameters."""
    found = [Entry(f"{name}.weight", (f"params/{path}/kernel",), pattern, sizes)]
    return [*found, Entry(f"{name}.bias", (f"params/{path}/bias",))] if bias else found


def norm(name: str, path: str, bias: bool = True) -> list[Entry]:
    """The scale of a norm, and its bias where it has one."""
    found = [Entry(f"{name}.weight", (f"params/{path}/scale",))]
    return [*found, Entry(f"{name}.bias", (f"params/{path}/bias",))] if bias else found


def projections(
    names: Sequence[str],
    path: str,
    width: int,
    biases: Sequence[str] = ("qkv", "out"),
) -> list[Entry]:
    """Attention's queries, keys, values and output, published as four matrices (out, in).

    names: of the four. path: our attention's. width: H. biases: as `models.transformer.Form` has them.
    """
    found = []
    for name, part in zip(names, ("query", "key", "value"), strict=False):
        here = f"params/{path}/{part}"
        found.append(Entry(f"{name}.weight", (f"{here}/kernel",), "(n h) d -> d n h", {"h": width}))
        if "qkv" in biases or ("qv" in biases and part != "key"):
            found.append(Entry(f"{name}.bias", (f"{here}/bias",), "(n h) -> n h", {"h": width}))
    out = linear(names[3], f"{path}/out", "d (n h) -> n h d", "out" in biases, h=width)
    return found + out


def fused_projections(
    names: Sequence[str],
    path: str,
    width: int,
    biases: Sequence[str] = ("qkv", "out"),
    mark: str = ".",
) -> list[Entry]:
    """As `projections`, of which queries, keys and values are published as one matrix, all heads of each.

    mark: what stands between its name and "weight".
    """
    parts, found = ("query", "key", "value"), []
    for theirs, ours, pattern in (
        ("weight", "kernel", "(n h) d -> d n h"),
        *((("bias", "bias", "(n h) -> n h"),) if "qkv" in biases else ()),
    ):
        paths = tuple(f"params/{path}/{part}/{ours}" for part in parts)
        found.append(
            Entry(f"{names[0]}{mark}{theirs}", paths, pattern, {"h": width}, shares=(1, 1, 1))
        )
    return found + linear(names[1], f"{path}/out", "d (n h) -> n h d", "out" in biases, h=width)


def _reason(error: Exception) -> str:
    """The last line of an einops message, which says what does not fit."""
    return str(error).strip().splitlines()[-1].strip()
